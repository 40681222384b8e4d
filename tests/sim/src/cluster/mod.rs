//! The cluster around the pair: two data nodes and a witness, each with the shipping decision core,
//! an acceptor's record on a store of its own, and datagrams between all three. Nobody orders a
//! promotion here: failovers happen by themselves.
//!
//! ```text
//!  seats.rs     processes of the control plane: started, stepped, ended; their records
//!  post.rs      datagrams between them
//!  offices.rs   what a control plane and the replica beside it tell each other
//!  operator.rs  switchovers and switches
//!  troubles.rs  what befalls clusters besides what befalls pairs
//!  checks.rs    what must never be, and what must be in the end
//!  times.rs     how long failovers take;  mode.rs: which world the seeds of a process have
//! ```

mod checks;
pub mod mode;
mod offices;
mod operator;
mod post;
mod seats;
pub mod times;
mod troubles;

use std::collections::BTreeMap;

use failover_core::acceptor::Record;
use failover_core::message::Envelope;
use failover_core::node::Input;
use failover_core::{ClusterState, NodeName};
use history::draw::Draw;
use replicator_core::Span;
use replicator_core::register::RegisterState;

use crate::clock::Clock;
use crate::plan::Plan;
use crate::world::{Event, MS, World};

pub use operator::Operator;
pub use seats::Seat;

/// The only resource.
pub const RESOURCE: &str = "sim";
/// The place of the witness among the seats.
pub const WITNESS: usize = 2;
/// Names in the order of the seats; the data nodes have those of the pair.
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// What a seed of a cluster is about besides.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// The lease.
    pub lease: Span,
    /// Percent of datagrams that get lost on a day without trouble.
    pub percent_lost: u64,
    /// Percent that come twice.
    pub percent_twice: u64,
    /// Percent that take a way of their own and come late.
    pub percent_late: u64,
    /// How late those are at most, in milliseconds.
    pub late_ms: u64,
    /// Longest time until a record is durable, in microseconds.
    pub record_us: u64,
    /// The data nodes have no way to each other but that of the data.
    pub shares_link: bool,
    /// Speed of the witness's clock in per mille.
    pub witness_rate: u64,
}

impl ClusterPlan {
    /// Draws one.
    pub fn draw(draw: &mut Draw) -> Self {
        Self {
            lease: Span::from_ms([400, 1_000, 1_000, 3_000][draw.below(4) as usize]),
            percent_lost: [0, 0, 2, 10][draw.below(4) as usize],
            percent_twice: [0, 2, 20][draw.below(3) as usize],
            percent_late: [0, 5, 20][draw.below(3) as usize],
            late_ms: [20, 300, 2_500][draw.below(3) as usize],
            record_us: [500, 5_000, 40_000, 300_000][draw.below(4) as usize],
            shares_link: draw.chance(60),
            witness_rate: 901 + draw.below(199),
        }
    }

    /// A quiet local network with shipping defaults.
    pub fn quiet() -> Self {
        Self {
            lease: Span::from_ms(1_000),
            percent_lost: 0,
            percent_twice: 0,
            percent_late: 0,
            late_ms: 1,
            record_us: 2_000,
            shares_link: false,
            witness_rate: 1_000,
        }
    }
}

/// Something that will happen in the cluster.
#[expect(missing_docs, reason = "seat and life say what they are")]
#[derive(Debug)]
pub enum Happening {
    /// A datagram arrives.
    Datagram { from: usize, to: usize, envelope: Box<Envelope> },
    /// A record is durable.
    RecordWritten { seat: usize, life: u64, record: Box<Record> },
    /// A fact for a control plane, unless it is gone.
    Tell { seat: usize, life: u64, input: Box<Input> },
    /// A time-out of a control plane.
    Timer { seat: usize, life: u64 },
    /// The daemon looks what its replica is.
    Facts { seat: usize, life: u64 },
    /// The data loop looks at its lease.
    Bell { seat: usize, life: u64 },
    /// The daemon takes an order of its control plane to the replica.
    Job { seat: usize, life: u64, job: offices::Job },
    /// An order to the replica has no answer for too long.
    JobIsLate { seat: usize, ticket: u64 },
    /// The witness starts.
    StartWitness,
    /// The operator looks at the switches once the troubles are over.
    Tidy,
}

/// The control planes of the three nodes, and what is between them.
#[derive(Debug)]
pub struct Cluster {
    /// What the seed is about.
    pub plan: ClusterPlan,
    /// The three nodes.
    pub seats: [Seat; 3],
    /// No datagram passes from one seat to another before.
    pub cut_until: [[u64; 3]; 3],
    /// More of them get lost until then.
    pub stormy_until: u64,
    /// The clock of the witness's machine.
    witness_clock: Clock,
    witness_paused_until: u64,
    witness_starts_at: Option<u64>,
    /// Every committed state that anybody learned, by its revision.
    committed: BTreeMap<u64, ClusterState>,
    /// Who switched what.
    operator: Operator,
    /// Since when no node has served; none while one does.
    unserved_since: Option<u64>,
    /// When a machine whose clock stood still woke up, for each data node (R5e).
    woke_at: [Option<u64>; 2],
    /// Counted for the report.
    pub tally: ClusterTally,
}

/// What a seed of a cluster did.
#[derive(Clone, Debug, Default)]
pub struct ClusterTally {
    /// Takeovers that were committed.
    pub takeovers: u64,
    /// Reads that R5e allows and that would have been stale.
    pub reads_of_the_past: u64,
    /// Acknowledgements in an office after a later one's first: none may be.
    pub overlapping: u64,
    /// The longest time without a primary after the troubles, in nanoseconds.
    pub longest_unserved_ns: u64,
}

impl Cluster {
    fn new(plan: ClusterPlan, draw: &mut Draw) -> Self {
        let seats = [0, 1, 2].map(|number| Seat::new(NAMES[number], draw));
        let witness_clock = Clock::booted(0, plan.witness_rate);
        Self {
            plan,
            seats,
            cut_until: [[0; 3]; 3],
            stormy_until: 0,
            witness_clock,
            witness_paused_until: 0,
            witness_starts_at: None,
            committed: BTreeMap::new(),
            operator: Operator::default(),
            unserved_since: None,
            woke_at: [None; 2],
            tally: ClusterTally::default(),
        }
    }

    /// The newest state that anybody knows to be committed.
    pub fn newest(&self) -> Option<&ClusterState> {
        self.committed.last_key_value().map(|(_, state)| state)
    }

    /// What may be in the register of the resource: what is committed, and what is accepted
    /// anywhere and may be.
    fn possible(&self) -> impl Iterator<Item = &RegisterState> {
        let newest = self.newest();
        let revision = newest.map_or(0, |state| state.revision);
        let accepted = self.seats.iter().flat_map(|seat| {
            let here = seat.node.as_ref().and_then(|node| node.acceptor().accepted());
            here.into_iter().chain(seat.record.accepted.as_ref().map(|(_, state)| state))
        });
        newest
            .into_iter()
            .chain(accepted.filter(move |state| state.revision > revision))
            .filter_map(|state| Some(&state.resource(RESOURCE)?.state))
    }
}

fn name(seat: usize) -> NodeName {
    NodeName::from(NAMES[seat])
}

fn seat_of(name: &NodeName) -> usize {
    NAMES.iter().position(|known| *known == name.as_str()).expect("one of the three")
}

impl World {
    /// The world of a seed with a witness, before anything happens.
    pub fn of_a_cluster(seed: u64, trace: bool) -> Self {
        let mut draw = Draw::new(seed ^ 0xc1a5);
        let plan = Plan::draw_for_a_cluster(&mut draw);
        let cluster = ClusterPlan::draw(&mut draw);
        Self::with_cluster(seed, draw, plan, cluster, trace)
    }

    fn with_cluster(
        seed: u64,
        mut draw: Draw,
        plan: Plan,
        cluster: ClusterPlan,
        trace: bool,
    ) -> Self {
        let cluster = Box::new(Cluster::new(cluster, &mut draw));
        Self::begin(seed, draw, plan, Some(cluster), trace)
    }

    /// What the cluster is, of a world that has one.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("a cluster")
    }

    pub(crate) fn cluster_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a cluster")
    }

    pub(crate) fn soon(&mut self, delay: u64, happening: Happening) {
        self.after(delay, Event::Cluster(happening));
    }

    pub(crate) fn happen_in_cluster(&mut self, happening: Happening) {
        match happening {
            Happening::Datagram { from, to, envelope } => self.datagram_came(from, to, envelope),
            Happening::RecordWritten { seat, life, record } => {
                self.record_written(seat, life, record);
            }
            Happening::Tell { seat, life, input } => self.tell_seat(seat, life, input),
            Happening::Timer { seat, life } => self.seat_timer(seat, life),
            Happening::Facts { seat, life } => self.report_facts(seat, life),
            Happening::Bell { seat, life } => self.look_at_lease(seat, life),
            Happening::Job { seat, life, job } => self.do_job(seat, life, job),
            Happening::JobIsLate { seat, ticket } => self.job_is_late(seat, ticket),
            Happening::StartWitness => self.start_witness(),
            Happening::Tidy => self.tidy_switches(),
        }
    }

    /// The first events of a cluster.
    pub(crate) fn begin_cluster(&mut self) {
        self.cluster_mut().witness_starts_at = Some(MS);
        self.soon(MS, Happening::StartWitness);
    }
}

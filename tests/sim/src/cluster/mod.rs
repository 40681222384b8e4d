//! The cluster around the pair: two data nodes and one or two witnesses, each with the shipping
//! decision core, an acceptor's record on a store of its own, and datagrams between all of them.
//! Nobody orders a promotion here: failovers happen by themselves.
//!
//! ```text
//!  seats.rs     processes of the control plane: started, stepped, ended; their records
//!  post.rs      datagrams between them
//!  offices.rs   what a control plane and the replica beside it tell each other
//!  operator.rs  switchovers and switches
//!  voters.rs    acceptors that lose their record or go back; voters replaced, added, removed
//!  forced.rs    failovers by force, and a register that goes back
//!  troubles.rs  what befalls clusters besides what befalls pairs
//!  checks.rs    what must never be, and what must be in the end
//!  rules.rs     each rule of leases and voters, watched at every step of an acceptor
//!  times.rs     how long failovers take
//! ```

mod checks;
mod forced;
pub mod in_a_row;
mod offices;
mod operator;
mod post;
mod rules;
mod seats;
pub mod times;
mod troubles;
mod voters;

use std::collections::{BTreeMap, BTreeSet};

use failover_core::acceptor::Record;
use failover_core::command::Asker;
use failover_core::message::{Envelope, Message};
use failover_core::node::Input;
use failover_core::{ClusterState, NodeName};
use history::draw::Draw;
use replicator_core::register::RegisterState;
use replicator_core::{Span, Time};

use crate::clock::Clock;
use crate::plan::{Fault, Plan, changes_of_clusters};
use crate::world::{Event, MS, World};

pub use operator::Operator;
pub use seats::Seat;

/// The only resource.
pub const RESOURCE: &str = "sim";
/// The place of the first witness among the seats: those before are the data nodes.
pub const WITNESS: usize = 2;
/// Seats at most: some seeds have a second witness, which comes and goes.
pub const SEATS: usize = 4;
/// Names in the order of the seats; the data nodes have those of the pair.
const NAMES: [&str; SEATS] = ["alpha", "beta", "gamma", "delta"];

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
    /// There is a second witness.
    pub has_delta: bool,
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
            has_delta: false,
        }
    }

    /// In half of the seeds the cluster itself changes: other voters, old and lost records,
    /// failovers by force, data loops that hang. Chance of its own leaves the other half as it was.
    fn draw_changes(&mut self, plan: &mut Plan, draw: &mut Draw) {
        if draw.chance(50) {
            return;
        }
        self.has_delta = draw.chance(30);
        for (fault, weight) in changes_of_clusters() {
            if draw.chance(40) {
                plan.faults.push((fault, 1 + draw.below(weight)));
            }
        }
        if draw.chance(4) {
            plan.faults.push((Fault::RegisterBack, 1));
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
            has_delta: false,
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
    /// A witness starts.
    StartWitness { seat: usize },
    /// The operator wants a switchover no more.
    TakeBack { seat: usize },
    /// The operator looks at the switches once the troubles are over.
    Tidy,
    /// The operator looks after an acceptor without a vote.
    VoterCare,
    /// A node with an old copy of its record starts once more.
    OldCopyFalls { seat: usize },
    /// A process ends that found out that its machine went back with its memory.
    WentBack { seat: usize, life: u64 },
    /// The operator looks after a failover by force.
    ForceCare,
}

/// The control planes of the three nodes, and what is between them.
#[derive(Debug)]
pub struct Cluster {
    /// What the seed is about.
    pub plan: ClusterPlan,
    /// The nodes.
    pub seats: [Seat; SEATS],
    /// No datagram passes from one seat to another before.
    pub cut_until: [[u64; SEATS]; SEATS],
    /// More of them get lost until then.
    pub stormy_until: u64,
    /// The machines of the witnesses.
    witnesses: [Witness; SEATS - WITNESS],
    /// The control plane of a data node stands still until then; its data loop may for longer.
    plane_paused_until: [u64; 2],
    /// Since when, on its clock, the data loop of a node hangs and its control plane goes on (L1).
    pub loop_hangs_since: [Option<Time>; 2],
    /// Every committed state that anybody learned, by its revision.
    committed: BTreeMap<u64, ClusterState>,
    /// Who had which state durably, by its revision.
    durable: BTreeMap<u64, Vec<(ClusterState, BTreeSet<u128>)>>,
    /// Who switched what.
    operator: Operator,
    /// Since when no node has served; none while one does.
    unserved_since: Option<u64>,
    /// When a machine whose clock stood still woke up, for each data node (R5e).
    woke_at: [Option<u64>; 2],
    /// An acceptor that has no vote, and is to be replaced.
    pub(crate) outsider: Option<voters::Outsider>,
    /// A failover by force that is under way.
    pub(crate) forcing: Option<forced::Forcing>,
    /// The register went back to what it was once (R11c): since when.
    pub(crate) went_back_at: Option<u64>,
    /// What each node's disk knew then.
    floors: [u64; 2],
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

/// The machine of a witness.
#[derive(Debug)]
struct Witness {
    clock: Clock,
    paused_until: u64,
    starts_at: Option<u64>,
}

impl Cluster {
    fn new(plan: ClusterPlan, draw: &mut Draw) -> Self {
        let seats = NAMES.map(|name| Seat::new(name, draw));
        let witnesses = [plan.witness_rate, 2_000 - plan.witness_rate].map(|rate| Witness {
            clock: Clock::booted(0, rate),
            paused_until: 0,
            starts_at: None,
        });
        Self {
            plan,
            seats,
            cut_until: [[0; SEATS]; SEATS],
            stormy_until: 0,
            witnesses,
            plane_paused_until: [0; 2],
            loop_hangs_since: [None; 2],
            committed: BTreeMap::new(),
            durable: BTreeMap::new(),
            operator: Operator::default(),
            unserved_since: None,
            woke_at: [None; 2],
            outsider: None,
            forcing: None,
            went_back_at: None,
            floors: [0; 2],
            tally: ClusterTally::default(),
        }
    }

    /// How many seats there are.
    pub fn count(&self) -> usize {
        if self.plan.has_delta { SEATS } else { SEATS - 1 }
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
    NAMES.iter().position(|known| *known == name.as_str()).expect("one of the nodes")
}

impl World {
    /// The world of a seed with a witness, before anything happens.
    pub fn of_a_cluster(seed: u64, trace: bool) -> Self {
        let mut draw = Draw::new(seed ^ 0xc1a5);
        let mut plan = Plan::draw_for_a_cluster(&mut draw);
        let mut cluster = ClusterPlan::draw(&mut draw);
        cluster.draw_changes(&mut plan, &mut Draw::new(seed ^ 0xd31a));
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

    /// Whether a change of the register may still come that leaves a replica out of the set: one
    /// that was begun and is not decided, like the takeover of the other node.
    pub(crate) fn is_being_left_out(&self, node: usize) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        let replica = self.superblock(node).replica;
        let known = cluster.newest().map_or(0, |state| state.revision);
        let on_its_way = self.events().any(|event| {
            let Event::Cluster(Happening::Datagram { envelope, .. }) = event else { return false };
            let Message::Accept { state, .. } = &envelope.message else { return false };
            let entry = state.resource(RESOURCE).filter(|_| state.revision > known);
            entry.is_some_and(|entry| !entry.state.contains(replica))
        });
        let is_begun = cluster.seats.iter().filter_map(|seat| seat.node.as_ref()).any(|node| {
            node.proposer().has(|proposal| matches!(proposal.asker, Asker::Replica { .. }))
        });
        on_its_way || is_begun || cluster.possible().any(|state| !state.contains(replica))
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
            Happening::StartWitness { seat } => self.start_witness(seat),
            Happening::TakeBack { seat } => self.take_back(seat),
            Happening::Tidy => self.tidy_switches(),
            Happening::VoterCare => self.care_for_voters(),
            Happening::OldCopyFalls { seat } => self.old_copy_falls(seat),
            Happening::WentBack { seat, life } => self.ends_gone_back(seat, life),
            Happening::ForceCare => self.care_for_force(),
        }
    }

    /// The first events of a cluster.
    pub(crate) fn begin_cluster(&mut self) {
        for seat in WITNESS..self.cluster().count() {
            self.cluster_mut().witnesses[seat - WITNESS].starts_at = Some(MS);
            self.soon(MS, Happening::StartWitness { seat });
        }
    }
}

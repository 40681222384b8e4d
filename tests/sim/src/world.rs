//! The simulated world: two nodes, a network, clients and an operator, one queue of events ordered
//! by virtual time, and one source of chance. The modules below carry out what the cores order.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use history::draw::{Draw, mix};
use replicator_core::{Effects, Input, PeerIndex, Time};

use crate::ambush::{Ambush, Strike};
use crate::chance::Moments;
use crate::checkers::Checkers;
use crate::clients::Clients;
use crate::cluster::{Cluster, Happening};
use crate::coverage::{Coverage, Observed};
use crate::failure::{Failure, Kind};
use crate::fencing::{self, Fencing};
use crate::growth::Growth;
use crate::host::Node;
use crate::network::{Connection, Weather};
use crate::occasions::{Occasion, Scene};
use crate::operator::Operator;
use crate::parts::Parts;
use crate::plan::{Fault, Plan};
use crate::verifies::Verifies;

mod disk_port;
mod links;
mod processes;
mod stand_in;
mod steps;

pub use stand_in::StandIn;

/// A millisecond of virtual time.
pub const MS: u64 = 1_000_000;
/// The peer of a node, as its core knows it: each has one.
pub const PEER: PeerIndex = PeerIndex(0);
/// More events than any honest seed has.
const EVENTS_MAX: u64 = 3_000_000;

/// Something that will happen.
#[expect(missing_docs, reason = "node, life and connection say what they are")]
#[derive(Debug)]
pub enum Event {
    /// A disk operation ends.
    Disk { node: usize, key: u64 },
    /// The first parcel of a connection arrives at a node.
    Arrival { connection: usize, node: usize },
    /// A fact for a process, unless it is gone.
    Fact { node: usize, life: u64, input: Box<Input> },
    /// A time-out of a process.
    Timer { node: usize, life: u64 },
    /// A client goes on.
    Client { worker: usize },
    /// The operator looks.
    Operator,
    /// The next trouble.
    Trouble,
    /// A process may be started.
    Start { node: usize },
    /// The drivers look whether to connect.
    Dial,
    /// The checkers look.
    Look,
    /// An ambush strikes.
    Strike { strike: Strike },
    /// The kernel gives up on a connection.
    TimesOut { connection: usize, node: usize },
    /// An older copy of a disk is restored.
    Restore { node: usize },
    /// A link flaps once more.
    Flap { times: u64, period_ms: u64 },
    /// Something rots, or a verify is ordered.
    Verify,
    /// The operator sees to the growth of the volume.
    Growth,
    /// Something happens in the cluster around the pair.
    Cluster(Happening),
    /// Something happens in the fencing of a pair.
    Fencing(fencing::Happening),
}

struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What a seed did, for the campaign's report.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Virtual time in nanoseconds.
    pub virtual_ns: u64,
    /// Steps of the cores.
    pub steps: u64,
    /// Client requests.
    pub requests: u64,
    /// Offices taken.
    pub tenures: u64,
    /// Resyncs finished: members made.
    pub resyncs: u64,
    /// Acknowledgements by a primary whose successor had acknowledged something: never any.
    pub overlapping: u64,
    /// Troubles by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// What really occurred.
    pub occasions: BTreeMap<Occasion, u64>,
}

/// The world of one seed.
pub struct World {
    /// The seed.
    pub seed: u64,
    /// What it is about.
    pub plan: Plan,
    /// Chance.
    pub draw: Draw,
    /// Virtual time in nanoseconds.
    pub now: u64,
    queue: BinaryHeap<Entry>,
    events: u64,
    /// When the drivers look next whether to connect; events for other times are void.
    dial_at: Option<u64>,
    /// Empty; kept for its memory.
    effects: Effects,
    /// The two machines.
    pub nodes: [Node; 2],
    /// All connections that ever were; most are closed.
    pub connections: Vec<Connection>,
    /// Nothing arrives at this node before (a partition).
    pub blocked_until: [u64; 2],
    /// What is wrong with the way towards each node besides.
    pub weather: [Weather; 2],
    /// The clients.
    pub clients: Clients,
    /// The operator.
    pub operator: Operator,
    /// The growth of the volume.
    pub growth: Growth,
    /// The checkers.
    pub checkers: Checkers,
    /// Trouble that waits for its moment.
    pub ambush: Option<Ambush>,
    /// The parts of the seed that take place.
    pub parts: Parts,
    /// Troubles so far, those left out too.
    pub troubles: u64,
    /// Which took place, by number.
    pub caused: Vec<(u64, Fault)>,
    /// What must be remembered to know what really occurred.
    pub scene: Scene,
    /// Rot, and the verifies that find it.
    pub verifies: Verifies,
    /// For chance.
    pub moments: Moments,
    /// What was reached.
    pub coverage: Coverage,
    /// What is remembered of each node's process to see that.
    pub observed: [Observed; 2],
    /// The run ends at this time, whatever happened.
    pub gives_up_at: u64,
    /// Whether the story has every step of the cores.
    pub tells_steps: bool,
    /// The first failure.
    pub failure: Option<Failure>,
    /// Everything went well and is over.
    pub done: bool,
    /// For the report.
    pub tally: Tally,
    /// Whether to print the story.
    pub trace: bool,
    /// The witness and the control planes, in a world that has them.
    pub cluster: Option<Box<Cluster>>,
    /// The fencing of a pair whose nodes fence each other.
    pub fencing: Option<Box<Fencing>>,
    /// Takes the inputs instead of the cores.
    stand_in: Option<StandIn>,
}

/// Prints a line of the story.
#[macro_export]
macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace {
            println!("{:>12.6} {}", $world.now as f64 / 1e9, format!($($arg)*));
        }
    };
}

impl World {
    /// The world of a seed before anything happens.
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut draw = Draw::new(seed ^ 0x5eed);
        let plan = Plan::draw(&mut draw);
        Self::begin(seed, draw, plan, None, trace)
    }

    /// A world before anything happens.
    pub(crate) fn begin(
        seed: u64,
        mut draw: Draw,
        mut plan: Plan,
        cluster: Option<Box<Cluster>>,
        trace: bool,
    ) -> Self {
        plan.draw_delays(&mut Draw::new(mix(seed ^ 0xf1a9)));
        plan.draw_verifies(&mut Draw::new(mix(seed ^ 0xb17)));
        plan.draw_growth(&mut Draw::new(mix(seed ^ 0x9203)));
        let nodes = [0, 1].map(|node| Node::new(node, &plan, &mut draw));
        let clients = Clients::new(&plan);
        let mut world = Self {
            seed,
            draw,
            now: 0,
            queue: BinaryHeap::new(),
            events: 0,
            dial_at: None,
            effects: Effects::new(),
            nodes,
            connections: Vec::new(),
            blocked_until: [0; 2],
            weather: [Weather::default(); 2],
            clients,
            operator: Operator::default(),
            growth: Growth::default(),
            checkers: Checkers::default(),
            ambush: None,
            parts: Parts::default(),
            troubles: 0,
            caused: Vec::new(),
            scene: Scene::default(),
            verifies: Verifies::default(),
            moments: Moments::default(),
            coverage: Coverage::default(),
            observed: Default::default(),
            gives_up_at: u64::MAX,
            tells_steps: trace,
            failure: None,
            done: false,
            tally: Tally::default(),
            trace,
            cluster,
            fencing: None,
            stand_in: None,
            plan,
        };
        tell!(world, "plan {:?}", world.plan);
        for node in 0..2 {
            world.start_in(node, MS);
        }
        world.after(2 * MS, Event::Operator);
        world.after(3 * MS, Event::Look);
        if world.cluster.is_some() {
            world.begin_cluster();
        }
        // A cluster is founded first.
        let first = if world.cluster.is_some() { 2_500 } else { 800 };
        if world.plan.troubles > 0 {
            world.after(first * MS, Event::Trouble);
        }
        if world.plan.verify_every_ms.is_some() {
            world.after(first * MS, Event::Verify);
        }
        if !world.plan.growths.is_empty() {
            world.after(first * MS, Event::Growth);
        }
        for worker in 0..world.plan.workers {
            world.after(5 * MS, Event::Client { worker });
        }
        world
    }

    /// Runs to the end; `None` when all promises were kept.
    pub fn run(&mut self) -> Option<Failure> {
        while self.failure.is_none() && !self.done && self.now < self.gives_up_at {
            let entry = self.queue.pop().expect("the operator never sleeps for ever");
            debug_assert!(entry.at >= self.now);
            self.now = entry.at;
            self.begin_sequence(&entry.event);
            self.happen(entry.event);
            if self.events > EVENTS_MAX {
                self.fail(Kind::Liveness, "(e)", "the world is busy without end".into());
            }
        }
        self.tally.virtual_ns = self.now;
        self.failure.clone()
    }

    /// Runs for so long, or to the first failure.
    pub(crate) fn run_for(&mut self, span: u64) {
        let until = self.now + span;
        while self.failure.is_none() && self.queue.peek().is_some_and(|entry| entry.at <= until) {
            let entry = self.queue.pop().expect("just seen");
            self.now = entry.at;
            self.begin_sequence(&entry.event);
            self.happen(entry.event);
        }
        self.now = until;
    }

    /// Plans an event.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.events += 1;
        self.queue.push(Entry { at: self.now + delay, number: self.events, event });
    }

    /// Everything that is on its way.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.queue.iter().map(|entry| &entry.event)
    }

    /// Ends the run with a failure; the first one counts.
    pub fn fail(&mut self, kind: Kind, rule: &'static str, text: String) {
        tell!(self, "FAILURE {rule}: {text}");
        self.failure.get_or_insert(Failure { kind, rule, text });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Disk { node, key } => self.disk_done(node, key),
            Event::Arrival { connection, node } => self.arrive(connection, node),
            Event::Fact { node, life, input } => self.fact(node, life, input),
            Event::Timer { node, life } => self.timer(node, life),
            Event::Client { worker } => self.client_turn(worker),
            Event::Operator => self.operator_turn(),
            Event::Trouble => self.trouble(),
            Event::Start { node } => self.start_process(node),
            Event::Dial => self.dial_if_due(),
            Event::Look => self.look(),
            Event::Strike { strike } => self.strike(strike),
            Event::TimesOut { connection, node } => self.time_out(connection, node),
            Event::Restore { node } => self.restore_disk(node),
            Event::Verify => self.verify_turn(),
            Event::Flap { times, period_ms } => self.flap(times, period_ms),
            Event::Growth => self.growth_turn(),
            Event::Cluster(happening) => self.happen_in_cluster(happening),
            Event::Fencing(happening) => self.happen_in_fencing(happening),
        }
    }

    /// Whether this process still runs (or stands still) on the node.
    pub(crate) fn runs(&self, node: usize, life: u64) -> bool {
        self.nodes[node].process.as_ref().is_some_and(|process| process.life == life)
    }

    /// The time on a node's clock, for messages.
    pub fn local(&self, node: usize) -> Time {
        self.nodes[node].clock.shows(self.now)
    }
}

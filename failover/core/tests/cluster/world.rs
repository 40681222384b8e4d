//! Nodes with scripted replicas and a network in virtual time. At every step at most one node has a
//! lease.

use std::collections::BTreeMap;

use failover_core::acceptor::Record;
use failover_core::facts::{Facts, Hindrance};
use failover_core::message::{Envelope, Message};
use failover_core::node::{Config, Effect, Effects, Input, Node, Undecided};
use failover_core::verdict::Verdict;
use failover_core::{NodeName, Span, Time};
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::register::{Member, RegisterState};

const LEASE: Span = Span::from_ms(1_000);
const DELAY: Span = Span::from_ms(1);
const FSYNC: Span = Span::from_ms(2);
pub const RESOURCE: &str = "data";

#[derive(Debug)]
enum Event {
    Message { from: NodeName, to: NodeName, envelope: Box<Envelope> },
    Durable { node: NodeName, process: u64, record: Box<Record> },
    Fact { node: NodeName, process: u64, input: Box<Input> },
}

pub struct Machine {
    pub node: Option<Node>,
    pub process: u64,
    pub disk: Record,
    pub state: Option<RegisterState>,
    pub lease: Option<Time>,
}

/// A cluster in virtual time.
pub struct World {
    pub now: Time,
    /// The file: all nodes, and whether each is a witness.
    pub nodes: Vec<(NodeName, bool)>,
    pub machines: BTreeMap<NodeName, Machine>,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    pub cut: Vec<(NodeName, NodeName)>,
    processes: u64,
    pub log: Vec<String>,
    /// How the last order of an operator ended.
    pub answer: Option<Result<(), Verdict>>,
    /// Who is in the set that the origin writes.
    pub members: Vec<NodeName>,
    /// The services of whoever hands over take their time to stop.
    pub are_stopping: bool,
    /// How long a message takes, and a write of a record.
    pub delay: Span,
    pub fsync: Span,
    /// Whose replica refuses the office, and why.
    pub refusing: Option<(NodeName, Hindrance)>,
}

pub fn name(text: &str) -> NodeName {
    NodeName::from(text)
}

pub fn replica_of(node: &NodeName) -> ReplicaId {
    ReplicaId(u128::from(node.as_str().as_bytes()[0]))
}

/// Breaks the rule that the environment names, for `every_defect_is_found`.
pub fn wake_defect() {
    #[cfg(feature = "defects")]
    if let Ok(name) = std::env::var("REPLICATOR_DEFECT") {
        use failover_core::defect::{DEFECTS, switch_on};

        let named = DEFECTS.iter().find(|defect| format!("{defect:?}") == name);
        switch_on(*named.expect("a defect has this name"));
    }
}

impl World {
    pub fn new() -> Self {
        Self::of(&[("alpha", false), ("beta", false), ("gamma", true)])
    }

    /// Founded by these nodes.
    pub fn of(nodes: &[(&str, bool)]) -> Self {
        wake_defect();
        let mut world = Self {
            now: Time(1_000_000_000),
            nodes: nodes.iter().map(|(node, witness)| (name(node), *witness)).collect(),
            machines: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            cut: Vec::new(),
            processes: 0,
            log: Vec::new(),
            answer: None,
            members: ["alpha", "beta"].map(name).to_vec(),
            are_stopping: false,
            delay: DELAY,
            fsync: FSYNC,
            refusing: None,
        };
        for (id, (node, _)) in nodes.iter().enumerate() {
            world.install(node, 100 + id as u128);
            world.start(node);
        }
        world
    }

    /// A machine with an empty state directory.
    pub fn install(&mut self, node: &str, id: u128) {
        let disk = Record::new(id);
        let machine = Machine { node: None, process: 0, disk, state: None, lease: None };
        self.machines.insert(name(node), machine);
    }

    fn is_witness(&self, node: &str) -> bool {
        self.nodes.iter().any(|(it, witness)| it.as_str() == node && *witness)
    }

    pub fn start(&mut self, node: &str) {
        self.processes += 1;
        let config = Config {
            name: name(node),
            process: self.processes,
            nodes: self.nodes.clone(),
            resources: if self.is_witness(node) { Vec::new() } else { vec![RESOURCE.into()] },
            lease: LEASE,
        };
        let (now, is_witness) = (self.now, self.is_witness(node));
        let machine = self.machines.get_mut(&name(node)).unwrap();
        machine.process = self.processes;
        machine.node = Some(Node::start(config, machine.disk.clone(), now));
        machine.lease = None;
        if !is_witness {
            let replica = replica_of(&name(node)).0;
            let facts = Facts { replica, ..Facts::default() };
            let resource = RESOURCE.to_string();
            self.step(node, Input::ReplicaReported { resource, facts });
        }
        self.step(node, Input::TimePassed);
    }

    pub fn kill(&mut self, node: &str) {
        self.machines.get_mut(&name(node)).unwrap().node = None;
    }

    fn push(&mut self, after: Span, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + after, self.next_event), event);
    }

    pub fn step(&mut self, node: &str, input: Input) {
        let mut effects = Effects::new();
        let now = self.now;
        let machine = self.machines.get_mut(&name(node)).unwrap();
        let Some(core) = &mut machine.node else { return };
        core.step(now, input, &mut effects);
        // A replica never hears of its own change as of somebody else's.
        for effect in &effects {
            let Effect::Decided { result: Ok(mine), .. } = effect else { continue };
            let news = |it: &Effect| matches!(it, Effect::Learned { state, .. } if state == mine);
            assert!(!effects.iter().any(news), "told twice: {mine:?}");
        }
        // The process may stop between any two (R5d).
        let place = effects.iter().position(|it| matches!(it, Effect::LeaseChanged { .. }));
        let was_endless = machine.lease == Some(Time(u64::MAX));
        assert!(
            !was_endless || place.is_none_or(|place| place == 0),
            "said before it is taken back"
        );
        for effect in effects {
            self.effect(&name(node), effect);
        }
    }

    fn effect(&mut self, node: &NodeName, effect: Effect) {
        let process = self.machines[node].process;
        let fact = |input| Event::Fact { node: node.clone(), process, input: Box::new(input) };
        match effect {
            Effect::Send { to, envelope } => {
                if matches!(envelope.message, Message::Promise { .. }) {
                    self.log.push(format!("{} {node} promises", self.now.0 / 1_000_000));
                }
                self.push(self.delay, Event::Message { from: node.clone(), to, envelope });
            }
            Effect::PersistRecord(record) => {
                self.push(self.fsync, Event::Durable { node: node.clone(), process, record });
            }
            Effect::AskEtcd { .. } => unreachable!("the nodes keep the register"),
            Effect::LeaseChanged { until, .. } => {
                self.machines.get_mut(node).unwrap().lease = until;
            }
            Effect::Learned { state, .. } => {
                self.machines.get_mut(node).unwrap().state = Some(state);
            }
            Effect::Promote { resource, why, .. } => {
                self.log.push(format!("{} {node} promotes: {why}", self.now.0 / 1_000_000));
                if let Some((_, refused)) = self.refusing.clone().filter(|(it, _)| it == node) {
                    let event = fact(Input::PromotionEnded { resource, refused: Some(refused) });
                    return self.push(FSYNC, event);
                }
                let old = self.machines[node].state.clone().unwrap_or_default();
                let me = Member { replica: replica_of(node), incarnation: Incarnation(1) };
                let mut next = old.clone();
                next.generation += 1;
                next.tenure = next.generation;
                next.primary = Some(me.replica);
                if !old.released_clean {
                    next.set = vec![me];
                }
                next.released_clean = false;
                let input = Input::ReplicaProposed {
                    resource,
                    number: 1,
                    expected: old.generation,
                    next,
                    forced: false,
                };
                let event = fact(input);
                self.push(FSYNC, event);
            }
            Effect::HandOver { .. } if self.are_stopping => {}
            Effect::KeepOffice { resource } => {
                self.log.push(format!("{} {node} keeps {resource}", self.now.0 / 1_000_000));
                if self.are_stopping {
                    let why = Hindrance { code: "cancelled".into(), ..Hindrance::default() };
                    let event = fact(Input::HandOverRefused { resource, why });
                    self.push(FSYNC, event);
                }
            }
            Effect::HandOver { resource, .. } => {
                let mut next = self.machines[node].state.clone().unwrap();
                let expected = next.generation;
                next.generation += 1;
                next.primary = None;
                next.released_clean = true;
                let input =
                    Input::ReplicaProposed { resource, number: 2, expected, next, forced: false };
                let event = fact(input);
                self.push(FSYNC, event);
            }
            Effect::Decided { resource, number, result } => {
                if let Ok(state) = &result {
                    self.machines.get_mut(node).unwrap().state = Some(state.clone());
                }
                self.log.push(format!(
                    "{} {node} decided {number}: {}",
                    self.now.0 / 1_000_000,
                    match &result {
                        Ok(state) => format!("generation {}", state.generation),
                        Err(Undecided::Newer(_)) => "newer".into(),
                        Err(Undecided::NotNow(why)) => why.clone(),
                    }
                ));
                if number == 1 {
                    let event = fact(Input::PromotionEnded { resource, refused: None });
                    self.push(FSYNC, event);
                }
            }
            Effect::Answer { result, .. } => {
                self.log.push(format!("answer {result:?}"));
                self.answer = Some(result);
            }
            Effect::Committed(state) => {
                self.log.push(format!(
                    "{} {node} knows revision {}: {} {}",
                    self.now.0 / 1_000_000,
                    state.revision,
                    state.cause.what,
                    state.cause.why
                ));
            }
            Effect::WentBack => self.kill(&node.0.clone()),
        }
    }

    /// Runs until a condition holds; how long that took.
    pub fn run_until(&mut self, limit: Span, holds: impl Fn(&Self) -> bool) -> Span {
        let began = self.now;
        let mut next_tick = self.now;
        while !holds(self) {
            assert!(self.now.since(began) < limit, "not within {limit:?}: {:#?}", self.log);
            let event_at = self.events.first_key_value().map(|((at, _), _)| *at);
            if event_at.is_none_or(|at| at > next_tick) {
                self.now = self.now.max(next_tick);
                next_tick = self.now + Span::from_ms(1);
                let nodes: Vec<String> = self.machines.keys().map(|it| it.0.clone()).collect();
                for node in nodes.iter().map(String::as_str) {
                    let due = self.machines[&name(node)].node.as_ref();
                    let due = due.and_then(Node::next_deadline).is_some_and(|at| at <= self.now);
                    if !self.is_witness(node) {
                        let (resource, at) = (RESOURCE.to_string(), self.now);
                        self.step(node, Input::LoopProgressed { resource, at });
                    }
                    if due {
                        self.step(node, Input::TimePassed);
                    }
                }
                continue;
            }
            let ((at, _), event) = self.events.pop_first().unwrap();
            self.now = self.now.max(at);
            self.happen(event);
            self.check();
        }
        self.now.since(began)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Message { from, to, envelope } => {
                let is_cut = self.cut.iter().any(|(a, b)| (a, b) == (&from, &to));
                if !is_cut && self.machines[&from].node.is_some() {
                    self.step(&to.0.clone(), Input::Received { from, envelope });
                }
            }
            Event::Durable { node, process, record } => {
                let machine = self.machines.get_mut(&node).unwrap();
                if machine.process == process && machine.node.is_some() {
                    let sequence = record.sequence;
                    machine.disk = *record;
                    self.step(&node.0.clone(), Input::RecordDurable { sequence });
                }
            }
            Event::Fact { node, process, input } => {
                if self.machines[&node].process == process {
                    self.step(&node.0.clone(), *input);
                }
            }
        }
    }

    /// Never two with a lease.
    fn check(&self) {
        let holders = self.machines.values().filter(|machine| {
            machine.node.is_some() && machine.lease.is_some_and(|until| until > self.now)
        });
        assert!(holders.count() <= 1, "two leases: {:#?}", self.log);
    }

    pub fn has_lease(&self, node: &str) -> bool {
        let machine = &self.machines[&name(node)];
        machine.node.is_some() && machine.lease.is_some_and(|until| until > self.now)
    }

    /// A founded cluster whose origin is alpha, both members.
    pub fn with_primary() -> Self {
        Self::new().founded()
    }

    /// The same of other nodes, among them alpha and beta.
    pub fn founded(mut self) -> Self {
        let world = &mut self;
        world.run_until(Span::from_ms(3_000), |world| {
            let state = world.machines[&name("beta")].node.as_ref().unwrap().state();
            state.is_some_and(|state| state.resource(RESOURCE).is_some())
        });
        let members = world.members.clone();
        let next = RegisterState {
            generation: 1,
            set: members
                .iter()
                .map(|node| Member { replica: replica_of(node), incarnation: Incarnation(1) })
                .collect(),
            released_clean: true,
            ..RegisterState::default()
        };
        let origin = Input::ReplicaProposed {
            resource: RESOURCE.into(),
            number: 3,
            expected: 0,
            next,
            forced: false,
        };
        world.step("alpha", origin);
        world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
        world.run_until(Span::from_ms(3_000), |world| {
            let lease = world.machines[&name("alpha")].lease.unwrap();
            lease.since(world.now) > Span::from_ms(700)
        });
        self
    }

    /// Lets time pass.
    pub fn pass(&mut self, span: Span) {
        let end = self.now + span;
        self.run_until(Span(2 * span.0), |world| world.now >= end);
    }

    /// The core of a node that runs.
    pub fn core(&self, node: &str) -> &Node {
        self.machines[&name(node)].node.as_ref().expect("it runs")
    }

    /// Orders something of a running node and waits for the answer.
    pub fn order(&mut self, node: &str, input: Input) -> Result<(), Verdict> {
        self.answer = None;
        self.step(node, input);
        self.run_until(Span::from_ms(10_000), |world| world.answer.is_some());
        self.answer.take().expect("it came")
    }

    pub fn isolate(&mut self, node: &str) {
        let others: Vec<NodeName> = self.machines.keys().cloned().collect();
        for other in others {
            if other.as_str() != node {
                self.cut.push((name(node), other.clone()));
                self.cut.push((other, name(node)));
            }
        }
    }

    /// Whether a node asks another one's acceptor to accept a state at this moment.
    pub fn asks_to_accept(&self, node: &str, other: &str) -> bool {
        self.events.values().any(|event| {
            matches!(event, Event::Message { from, to, envelope }
                if *from == name(node)
                    && *to == name(other)
                    && matches!(envelope.message, Message::Accept { .. }))
        })
    }

    /// What is on its way from a node never arrives.
    pub fn lose_messages_of(&mut self, node: &str) {
        let is_lost =
            |event: &Event| matches!(event, Event::Message { from, .. } if *from == name(node));
        self.events.retain(|_, event| !is_lost(event));
    }
}

//! Three nodes with scripted replicas and a network in virtual time: the whole of failover-core
//! without a data plane.

use std::collections::BTreeMap;

use failover_core::acceptor::Record;
use failover_core::cluster::Force;
use failover_core::command::Change;
use failover_core::facts::Facts;
use failover_core::message::Envelope;
use failover_core::node::{Config, Effect, Effects, Input, Node, Undecided};
use failover_core::{NodeName, Span, Time};
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::register::{Member, RegisterState};

const LEASE: Span = Span::from_ms(1_000);
const DELAY: Span = Span::from_ms(1);
const FSYNC: Span = Span::from_ms(2);
const RESOURCE: &str = "data";

#[derive(Debug)]
enum Event {
    Message { from: NodeName, to: NodeName, envelope: Box<Envelope> },
    Durable { node: NodeName, process: u64, record: Box<Record> },
    Fact { node: NodeName, process: u64, input: Box<Input> },
}

struct Machine {
    node: Option<Node>,
    process: u64,
    disk: Record,
    state: Option<RegisterState>,
    lease: Option<Time>,
}

/// A cluster in virtual time.
struct World {
    now: Time,
    machines: BTreeMap<NodeName, Machine>,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    cut: Vec<(NodeName, NodeName)>,
    processes: u64,
    log: Vec<String>,
}

fn name(text: &str) -> NodeName {
    NodeName::from(text)
}

fn replica_of(node: &NodeName) -> ReplicaId {
    ReplicaId(u128::from(node.as_str().as_bytes()[0]))
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Time(1_000_000_000),
            machines: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            cut: Vec::new(),
            processes: 0,
            log: Vec::new(),
        };
        for (id, node) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
            let machine = Machine {
                node: None,
                process: 0,
                disk: Record::new(100 + id as u128),
                state: None,
                lease: None,
            };
            world.machines.insert(name(node), machine);
            world.start(node);
        }
        world
    }

    fn start(&mut self, node: &str) {
        self.processes += 1;
        let config = Config {
            name: name(node),
            process: self.processes,
            nodes: vec![(name("alpha"), false), (name("beta"), false), (name("gamma"), true)],
            resources: if node == "gamma" { Vec::new() } else { vec![RESOURCE.into()] },
            lease: LEASE,
        };
        let now = self.now;
        let machine = self.machines.get_mut(&name(node)).unwrap();
        machine.process = self.processes;
        machine.node = Some(Node::start(config, machine.disk.clone(), now));
        machine.lease = None;
        if node != "gamma" {
            let replica = replica_of(&name(node)).0;
            let facts = Facts { replica, ..Facts::default() };
            let resource = RESOURCE.to_string();
            self.step(node, Input::ReplicaReported { resource, facts });
        }
        self.step(node, Input::TimePassed);
    }

    fn kill(&mut self, node: &str) {
        self.machines.get_mut(&name(node)).unwrap().node = None;
    }

    fn push(&mut self, after: Span, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + after, self.next_event), event);
    }

    fn step(&mut self, node: &str, input: Input) {
        let mut effects = Effects::new();
        let now = self.now;
        let machine = self.machines.get_mut(&name(node)).unwrap();
        let Some(core) = &mut machine.node else { return };
        core.step(now, input, &mut effects);
        for effect in effects {
            self.effect(&name(node), effect);
        }
    }

    fn effect(&mut self, node: &NodeName, effect: Effect) {
        let process = self.machines[node].process;
        let fact = |input| Event::Fact { node: node.clone(), process, input: Box::new(input) };
        match effect {
            Effect::Send { to, envelope } => {
                self.push(DELAY, Event::Message { from: node.clone(), to, envelope });
            }
            Effect::PersistRecord(record) => {
                self.push(FSYNC, Event::Durable { node: node.clone(), process, record });
            }
            Effect::LeaseChanged { until, .. } => {
                self.machines.get_mut(node).unwrap().lease = until;
            }
            Effect::Learned { state, .. } => {
                self.machines.get_mut(node).unwrap().state = Some(state);
            }
            Effect::Promote { resource, why, .. } => {
                self.log.push(format!("{} {node} promotes: {why}", self.now.0 / 1_000_000));
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
            Effect::Answer { result, .. } => self.log.push(format!("answer {result:?}")),
            Effect::Committed(state) => {
                self.log.push(format!(
                    "{} {node} knows revision {}: {}",
                    self.now.0 / 1_000_000,
                    state.revision,
                    state.cause.what
                ));
            }
        }
    }

    /// Runs until a condition holds; how long that took.
    fn run_until(&mut self, limit: Span, holds: impl Fn(&Self) -> bool) -> Span {
        let began = self.now;
        let mut next_tick = self.now;
        while !holds(self) {
            assert!(self.now.since(began) < limit, "not within {limit:?}: {:#?}", self.log);
            let event_at = self.events.first_key_value().map(|((at, _), _)| *at);
            if event_at.is_none_or(|at| at > next_tick) {
                self.now = self.now.max(next_tick);
                next_tick = self.now + Span::from_ms(1);
                for node in ["alpha", "beta", "gamma"] {
                    let due = self.machines[&name(node)].node.as_ref();
                    let due = due.and_then(Node::next_deadline).is_some_and(|at| at <= self.now);
                    if node != "gamma" {
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

    fn has_lease(&self, node: &str) -> bool {
        let machine = &self.machines[&name(node)];
        machine.node.is_some() && machine.lease.is_some_and(|until| until > self.now)
    }

    /// A founded cluster whose origin is alpha, both members.
    fn with_primary() -> Self {
        let mut world = Self::new();
        world.run_until(Span::from_ms(3_000), |world| {
            let state = world.machines[&name("beta")].node.as_ref().unwrap().state();
            state.is_some_and(|state| state.resource(RESOURCE).is_some())
        });
        let members = ["alpha", "beta"].map(name);
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
        world
    }

    fn isolate(&mut self, node: &str) {
        for other in ["alpha", "beta", "gamma"] {
            if other != node {
                self.cut.push((name(node), name(other)));
                self.cut.push((name(other), name(node)));
            }
        }
    }
}

#[test]
fn a_dead_primary_is_replaced_when_its_lease_is_over() {
    let mut world = World::with_primary();
    world.kill("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(1_350), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn an_isolated_primary_loses_its_lease_before_the_other_gets_one() {
    let mut world = World::with_primary();
    world.isolate("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(1_350), "{} ms: {:#?}", took.as_ms(), world.log);
    // It comes back and learns.
    world.cut.clear();
    world.run_until(Span::from_ms(3_000), |world| {
        let state = world.machines[&name("alpha")].state.as_ref().unwrap();
        state.primary == Some(replica_of(&name("beta")))
    });
    assert!(world.has_lease("beta"));
}

#[test]
fn a_cut_between_the_data_nodes_changes_nothing() {
    let mut world = World::with_primary();
    world.cut = vec![(name("alpha"), name("beta")), (name("beta"), name("alpha"))];
    let end = world.now + Span::from_ms(10_000);
    world.run_until(Span::from_ms(11_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

#[test]
fn a_restarted_primary_keeps_its_office() {
    let mut world = World::with_primary();
    world.kill("alpha");
    world.start("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
    assert!(took <= Span::from_ms(600), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn an_operator_moves_the_office() {
    let mut world = World::with_primary();
    let change = Change::Want {
        resource: RESOURCE.into(),
        node: Some(name("beta")),
        force: Force::default(),
    };
    world.step("beta", Input::Ordered { ticket: 1, change, why: "an operator".into() });
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(150), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn a_cluster_that_loses_its_witness_and_gets_it_back_pauses_for_nothing() {
    let mut world = World::with_primary();
    world.kill("gamma");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
    world.start("gamma");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    world.kill("beta");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

//! Two data nodes with scripted replicas, clocks that differ, a network and etcd, in virtual time.
//! Rules are checked at every step, see [`World::check`].

use std::collections::BTreeMap;

use failover_core::acceptor::Record;
use failover_core::command::Change;
use failover_core::etcd::{Answer, Ask, Key, Trouble, Value};
use failover_core::facts::{Facts, Hindrance};
use failover_core::message::Envelope;
use failover_core::node::{Config, Effect, Effects, Input, Node};
use failover_core::verdict::Verdict;
use failover_core::{ClusterState, NodeName, Span, Time};
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::register::{Member, RegisterState};

use crate::store::Store;

pub const LEASE: Span = Span::from_ms(1_000);
pub const RESOURCE: &str = "data";
pub const NODES: [&str; 2] = ["alpha", "beta"];
/// The driver gives a question up after so long.
const DEADLINE: Span = Span::from_ms(200);
const FSYNC: Span = Span::from_ms(2);
const TICK: Span = Span::from_ms(5);
/// A replica whose peer is away or back for so long changes the set.
const SET_EVERY: Span = Span::from_ms(400);
const TAKEOVER: u64 = 1;
const RELEASE: u64 = 2;
const SET: u64 = 3;
const ORIGIN: u64 = 4;

/// A generator of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn percent(&mut self, of: u64) -> bool {
        self.below(100) < of
    }
}

/// What goes wrong with questions to etcd, in percent of them.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// It never arrives.
    pub lost: u64,
    /// It arrives, and its answer is lost.
    pub unanswered: u64,
    /// It arrives up to two leases later.
    pub late: u64,
    /// The answer takes up to a lease, and is waited for.
    pub slow: u64,
}

/// What a question is for, as etcd sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    Read,
    /// It renews a lease key and nothing else.
    Renewal,
    /// It changes the state.
    Change,
}

impl Question {
    fn of(ask: &Ask) -> Self {
        match ask {
            Ask::Read => Self::Read,
            Ask::Write(it) if it.puts.iter().all(|(key, _)| matches!(key, Key::Lease(_))) => {
                Self::Renewal
            }
            Ask::Write(_) => Self::Change,
        }
    }
}

/// How long one question of a story takes, each way; its answer is waited for.
pub struct Way {
    pub of: &'static str,
    pub question: Question,
    pub there: Span,
    pub back: Span,
}

#[derive(Debug)]
enum Event {
    Message {
        from: NodeName,
        to: NodeName,
        envelope: Box<Envelope>,
    },
    Durable {
        node: NodeName,
        process: u64,
        record: Box<Record>,
    },
    Fact {
        node: NodeName,
        process: u64,
        input: Box<Input>,
    },
    /// A question reaches etcd; whether its answer goes back, and when.
    Arrives {
        node: NodeName,
        process: u64,
        number: u64,
        ask: Box<Ask>,
        answered: Option<Span>,
    },
}

/// A machine, its clock, its disk and its process.
pub struct Machine {
    pub node: Option<Node>,
    pub process: u64,
    pub disk: Record,
    /// The state that its replica goes by.
    pub state: Option<RegisterState>,
    /// Whether this process was told it after its settling read.
    is_settled: bool,
    pub lease: Option<Time>,
    /// Speed of its clock in thousandths.
    rate: u64,
    paused_until: Time,
    /// States that it proposed and was told are not in the register.
    refused: Vec<RegisterState>,
    proposed: BTreeMap<u64, RegisterState>,
    set_at: Time,
    progress_at: Time,
    is_hung: bool,
    deadline: Time,
}

impl Machine {
    fn local(&self, now: Time) -> Time {
        Time(now.0 / 1_000 * self.rate)
    }
}

pub struct World {
    pub now: Time,
    pub machines: BTreeMap<NodeName, Machine>,
    pub store: Store,
    pub faults: Faults,
    /// Until then nothing arrives at etcd: what is on its way is done afterwards.
    pub outage_until: Time,
    /// Who does not reach etcd.
    pub isolated: Option<&'static str>,
    /// The next question of its kind takes this way.
    pub way: Option<Way>,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    pub is_cut: bool,
    /// The nodes do not hear each other, and their replicas do.
    pub is_silent: bool,
    processes: u64,
    pub random: Random,
    pub log: Vec<String>,
    pub answer: Option<Result<(), Verdict>>,
    /// The first rule that was broken.
    pub broken: Option<String>,
    pub takeovers: u32,
}

pub fn name(text: &str) -> NodeName {
    NodeName::from(text)
}

fn replica_of(node: &NodeName) -> ReplicaId {
    ReplicaId(u128::from(node.as_str().as_bytes()[0]))
}

fn member(node: &NodeName) -> Member {
    Member { replica: replica_of(node), incarnation: Incarnation(1) }
}

impl World {
    /// Two machines that never ran, and an empty etcd.
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            now: Time(1_000_000_000),
            machines: BTreeMap::new(),
            store: Store { revision: 1, id: 7, ..Store::default() },
            faults: Faults::default(),
            outage_until: Time(0),
            isolated: None,
            way: None,
            events: BTreeMap::new(),
            next_event: 0,
            is_cut: false,
            is_silent: false,
            processes: 0,
            random: Random(seed),
            log: Vec::new(),
            answer: None,
            broken: None,
            takeovers: 0,
        };
        for (id, node) in NODES.iter().enumerate() {
            let rate = if seed == 0 { 1_000 } else { 960 + world.random.below(81) };
            world.install(node, 100 + id as u128, rate);
        }
        for node in NODES {
            world.start(node);
        }
        world
    }

    /// A machine with an empty state directory.
    pub fn install(&mut self, node: &str, id: u128, rate: u64) {
        let machine = Machine {
            node: None,
            process: 0,
            disk: Record::new(id),
            state: None,
            is_settled: false,
            lease: None,
            rate,
            paused_until: Time(0),
            refused: Vec::new(),
            proposed: BTreeMap::new(),
            set_at: Time(0),
            progress_at: Time(0),
            is_hung: false,
            deadline: Time(0),
        };
        self.machines.insert(name(node), machine);
    }

    pub fn start(&mut self, node: &str) {
        self.processes += 1;
        let config = Config {
            name: name(node),
            process: self.processes,
            nodes: NODES.iter().map(|node| (name(node), false)).collect(),
            resources: vec![RESOURCE.into()],
            lease: LEASE,
        };
        let (process, global) = (self.processes, self.now);
        let machine = self.machines.get_mut(&name(node)).unwrap();
        let now = machine.local(global);
        let record = machine.disk.clone();
        machine.node = Some(Node::start_with_etcd(config, record, "shop".into(), now));
        machine.process = process;
        (machine.lease, machine.is_settled, machine.is_hung) = (None, false, false);
        machine.proposed.clear();
        machine.refused.clear();
        let replica = replica_of(&name(node)).0;
        let facts = Facts { replica, ..Facts::default() };
        self.step(node, Input::ReplicaReported { resource: RESOURCE.into(), facts });
        self.step(node, Input::TimePassed);
    }

    pub fn kill(&mut self, node: &str) {
        let machine = self.machines.get_mut(&name(node)).unwrap();
        (machine.node, machine.lease) = (None, None);
    }

    pub fn pause(&mut self, node: &str, span: Span) {
        let until = self.now + span;
        self.machines.get_mut(&name(node)).unwrap().paused_until = until;
    }

    /// Its data loop hangs; the node goes on (L1).
    pub fn hang(&mut self, node: &str, is_hung: bool) {
        self.machines.get_mut(&name(node)).unwrap().is_hung = is_hung;
    }

    fn push(&mut self, at: Time, event: Event) {
        self.next_event += 1;
        self.events.insert((at, self.next_event), event);
    }

    pub fn step(&mut self, node: &str, input: Input) {
        let now = self.now;
        let machine = self.machines.get_mut(&name(node)).unwrap();
        let local = machine.local(now);
        let Some(core) = &mut machine.node else { return };
        let mut effects = Effects::new();
        core.step(local, input, &mut effects);
        machine.deadline = core.next_deadline().unwrap_or(Time(u64::MAX));
        for effect in effects {
            self.effect(&name(node), effect);
        }
        self.check();
    }

    fn say(&mut self, text: String) {
        self.log.push(format!("{} {text}", self.now.0 / 1_000_000));
    }

    fn effect(&mut self, node: &NodeName, effect: Effect) {
        let process = self.machines[node].process;
        match effect {
            Effect::Send { to, envelope } => {
                let at = self.now + Span::from_ms(1);
                self.push(at, Event::Message { from: node.clone(), to, envelope });
            }
            Effect::PersistRecord(record) => {
                let at = self.now + FSYNC;
                self.push(at, Event::Durable { node: node.clone(), process, record });
            }
            Effect::AskEtcd { number, ask } => self.send_to_etcd(node, process, number, ask),
            Effect::LeaseChanged { until, .. } => {
                self.machines.get_mut(node).unwrap().lease = until;
            }
            Effect::Learned { state, .. } => {
                let machine = self.machines.get_mut(node).unwrap();
                (machine.state, machine.is_settled) = (Some(state), true);
            }
            Effect::Promote { why, .. } => self.promote(node, &why),
            Effect::KeepOffice { .. } => {}
            Effect::HandOver { .. } => {
                let mut next = self.machines[node].state.clone().unwrap();
                next.generation += 1;
                next.primary = None;
                next.released_clean = true;
                self.propose(node, RELEASE, next);
            }
            Effect::Decided { resource, number, result } => {
                let machine = self.machines.get_mut(node).unwrap();
                let wanted = machine.proposed.remove(&number);
                let words = match &result {
                    Ok(state) => format!("generation {}", state.generation),
                    Err(why) => format!("{why:?}"),
                };
                match result {
                    Ok(state) => machine.state = Some(state),
                    Err(_) => machine.refused.extend(wanted),
                }
                self.say(format!("{node}.{process} decided {number}: {words}"));
                if number == TAKEOVER {
                    self.takeovers += 1;
                    let input = Input::PromotionEnded { resource, refused: None };
                    self.later(node, input);
                }
            }
            Effect::Answer { result, .. } => self.answer = Some(result),
            Effect::Committed(state) => {
                let what = format!(
                    "{node}.{process} knows revision {}: {}",
                    state.revision, state.cause.what
                );
                self.say(what);
            }
            Effect::WentBack => unreachable!("no machine here forgets"),
        }
    }

    fn later(&mut self, node: &NodeName, input: Input) {
        let (process, at) = (self.machines[node].process, self.now + FSYNC);
        self.push(at, Event::Fact { node: node.clone(), process, input: Box::new(input) });
    }

    /// The replica takes the office, if it is a member as far as it knows (R11a).
    fn promote(&mut self, node: &NodeName, why: &str) {
        self.say(format!("{node} promotes: {why}"));
        let resource = RESOURCE.to_string();
        let old = self.machines[node].state.clone().unwrap_or_default();
        if !old.contains(replica_of(node)) {
            let refused = Some(Hindrance { code: "not_a_member".into(), ..Hindrance::default() });
            return self.later(node, Input::PromotionEnded { resource, refused });
        }
        let mut next = old.clone();
        next.generation += 1;
        next.tenure = next.generation;
        next.primary = Some(replica_of(node));
        if !old.released_clean {
            next.set = vec![member(node)];
        }
        next.released_clean = false;
        self.propose(node, TAKEOVER, next);
    }

    fn propose(&mut self, node: &NodeName, number: u64, next: RegisterState) {
        let expected = next.generation - 1;
        let machine = self.machines.get_mut(node).unwrap();
        // The same once more may be in the register after all.
        machine.refused.retain(|refused| *refused != next);
        machine.proposed.insert(number, next.clone());
        let resource = RESOURCE.into();
        self.later(
            node,
            Input::ReplicaProposed { resource, number, expected, next, forced: false },
        );
    }

    fn send_to_etcd(&mut self, node: &NodeName, process: u64, number: u64, ask: Box<Ask>) {
        let is_it = |way: &mut Way| name(way.of) == *node && way.question == Question::of(&ask);
        if let Some(Way { there, back, .. }) = self.way.take_if(is_it) {
            let (node, answered, at) = (node.clone(), Some(back), self.now + there);
            return self.push(at, Event::Arrives { node, process, number, ask, answered });
        }
        let faults = self.faults;
        let dice = self.random.below(100);
        let mut way = Span::from_ms(1 + self.random.below(5));
        let mut answered = Some(Span::from_ms(1 + self.random.below(5)));
        let failed = Answer::Failed(Trouble {
            code: "unreachable".into(),
            why: "no answer".into(),
            next: "wait".into(),
        });
        let is_lost = dice < faults.lost || self.isolated.is_some_and(|it| name(it) == *node);
        let is_unanswered = dice < faults.lost + faults.unanswered;
        let is_late = dice < faults.lost + faults.unanswered + faults.late;
        if !is_lost && !is_unanswered && is_late {
            way = Span(self.random.below(2 * LEASE.0));
        }
        if !is_late && dice < faults.lost + faults.unanswered + faults.late + faults.slow {
            answered = Some(Span(self.random.below(LEASE.0)));
        }
        let arrives = (self.now + way).max(self.outage_until + way);
        let is_in_time = arrives.since(self.now) < DEADLINE || faults.slow > 0;
        if is_lost || is_unanswered || !is_in_time {
            answered = None;
            let (node, at) = (node.clone(), self.now + DEADLINE);
            let input = Box::new(Input::EtcdAnswered { number, answer: failed });
            self.push(at, Event::Fact { node, process, input });
        }
        if !is_lost {
            let node = node.clone();
            self.push(arrives, Event::Arrives { node, process, number, ask, answered });
        }
    }

    // ------------------------------------------------------------------ time

    /// Runs until a condition holds or the time is over; whether it holds.
    pub fn run(&mut self, limit: Span, holds: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !holds(self) {
            if self.now >= end || self.broken.is_some() {
                return false;
            }
            let tick = Time((self.now.0 / TICK.0 + 1) * TICK.0);
            while let Some(entry) = self.events.first_entry() {
                if entry.key().0 > tick {
                    break;
                }
                let ((at, _), event) = self.events.pop_first().unwrap();
                self.now = self.now.max(at);
                self.happen(event);
            }
            self.now = self.now.max(tick);
            for node in NODES {
                self.tick(node);
            }
        }
        true
    }

    /// The same; the rules must hold and so must the condition.
    pub fn run_until(&mut self, limit: Span, what: &str, holds: impl Fn(&Self) -> bool) -> Span {
        let began = self.now;
        let done = self.run(limit, holds);
        assert!(self.broken.is_none(), "{:?}: {:#?}", self.broken, self.log);
        assert!(done, "not within {limit:?}: {what}: {:#?}", self.log);
        self.now.since(began)
    }

    pub fn pass(&mut self, span: Span) {
        self.run(span, |_| false);
        assert!(self.broken.is_none(), "{:?}: {:#?}", self.broken, self.log);
    }

    fn tick(&mut self, node: &str) {
        let now = self.now;
        let machine = self.machines.get_mut(&name(node)).unwrap();
        if machine.node.is_none() || machine.paused_until > now {
            return;
        }
        let local = machine.local(now);
        if local.since(machine.progress_at) >= Span::from_ms(100) && !machine.is_hung {
            machine.progress_at = local;
            let resource = RESOURCE.to_string();
            self.step(node, Input::LoopProgressed { resource, at: local });
        }
        if self.machines[&name(node)].deadline <= local {
            self.step(node, Input::TimePassed);
        }
        self.change_set(node);
    }

    /// A primary's replica lets a lost peer go and takes one that is back.
    fn change_set(&mut self, node: &str) {
        let now = self.now;
        let me = name(node);
        let other = name(NODES[usize::from(node == NODES[0])]);
        let has_peer = self.machines[&other].node.is_some() && !self.is_cut;
        let has_lease = self.has_lease(node);
        let machine = self.machines.get_mut(&me).unwrap();
        let Some(state) = machine.state.clone() else { return };
        let is_primary = state.primary == Some(replica_of(&me)) && has_lease;
        let is_busy = !machine.proposed.is_empty() || now.since(machine.set_at) < SET_EVERY;
        if !is_primary || is_busy || state.contains(replica_of(&other)) == has_peer {
            return;
        }
        machine.set_at = now;
        let mut next = state;
        next.generation += 1;
        next.set = if has_peer { vec![member(&me), member(&other)] } else { vec![member(&me)] };
        self.propose(&me, SET, next);
    }

    fn happen(&mut self, event: Event) {
        let target = match &event {
            Event::Message { to, .. } => Some(to.clone()),
            Event::Durable { node, .. } | Event::Fact { node, .. } => Some(node.clone()),
            Event::Arrives { .. } => None,
        };
        if let Some(machine) = target.map(|it| &self.machines[&it])
            && machine.paused_until > self.now
        {
            let at = machine.paused_until;
            return self.push(at, event);
        }
        match event {
            Event::Message { from, to, envelope } => {
                let is_lost = self.is_cut || self.is_silent;
                if !is_lost && self.machines[&from].node.is_some() {
                    self.step(&to.0, Input::Received { from, envelope });
                }
            }
            Event::Durable { node, process, record } => {
                let machine = self.machines.get_mut(&node).unwrap();
                if machine.process == process && machine.node.is_some() {
                    let sequence = record.sequence;
                    machine.disk = *record;
                    self.step(&node.0, Input::RecordDurable { sequence });
                }
            }
            Event::Fact { node, process, input } => {
                if self.machines[&node].process == process {
                    self.step(&node.0, *input);
                }
            }
            Event::Arrives { node, process, number, ask, answered } => {
                if self.now < self.outage_until {
                    let at = self.outage_until + Span::from_ms(1);
                    return self.push(at, Event::Arrives { node, process, number, ask, answered });
                }
                let answer = self.store.ask(&ask);
                if let Answer::Written { .. } = answer {
                    self.written(&node, process, &ask);
                }
                if let Some(way) = answered {
                    let at = self.now + way;
                    let input = Box::new(Input::EtcdAnswered { number, answer });
                    self.push(at, Event::Fact { node, process, input });
                }
            }
        }
    }

    // ------------------------------------------------------------------ rules

    fn break_rule(&mut self, text: String) {
        self.say(format!("BROKEN: {text}"));
        self.broken.get_or_insert(text);
    }

    /// Something came to be in etcd.
    fn written(&mut self, node: &NodeName, process: u64, ask: &Ask) {
        let Ask::Write(transaction) = ask else { return };
        let state = transaction.puts.iter().find_map(|(key, value)| match (key, value) {
            (Key::State, Value::State(state)) => Some(state),
            _ => None,
        });
        let Some(state) = state else { return };
        let new = state.resource(RESOURCE).map(|entry| entry.state.clone()).unwrap_or_default();
        let machine = &self.machines[node];
        let is_refused = machine.process == process && machine.refused.contains(&new);
        let is_told = machine.state.as_ref() == Some(&new);
        let is_of_former = machine.process != process && machine.node.is_some();
        let is_late = is_of_former && machine.is_settled && !is_told;
        if is_refused {
            self.break_rule(format!("{node} was told that {new:?} is not in the register"));
        }
        if is_late {
            self.break_rule(format!("a change of a former process of {node} came late"));
        }
    }

    /// Never two with a lease. Who releases his office has stopped serving before (R6c).
    fn check(&mut self) {
        let releases = |node: &str| self.machines[&name(node)].proposed.contains_key(&RELEASE);
        let serving = NODES.iter().filter(|node| self.has_lease(node) && !releases(node));
        if serving.count() > 1 {
            self.break_rule("two have a lease".into());
        }
    }

    pub fn has_lease(&self, node: &str) -> bool {
        let machine = &self.machines[&name(node)];
        let is_now = machine.lease.is_some_and(|until| until > machine.local(self.now));
        machine.node.is_some() && is_now
    }

    pub fn core(&self, node: &str) -> &Node {
        self.machines[&name(node)].node.as_ref().expect("it runs")
    }

    pub fn state(&self) -> Option<ClusterState> {
        self.store.contents().state.map(|(_, state)| state)
    }

    /// An order of an operator, and its answer.
    pub fn order(&mut self, node: &str, change: Change) -> Result<(), Verdict> {
        self.answer = None;
        self.step(node, Input::Ordered { ticket: 1, change, why: "an operator".into() });
        self.run_until(Span::from_ms(10_000), "an answer", |world| world.answer.is_some());
        self.answer.take().expect("it came")
    }

    /// Who is where, for a failure.
    pub fn at_the_end(&self) -> String {
        let tell = |(name, machine): (&NodeName, &Machine)| {
            let core = machine.node.as_ref();
            let why = core.and_then(|core| core.explain(RESOURCE)).map(|it| it.why);
            let waits = core.and_then(|core| core.proposer().waits().map(|(it, ..)| it.clone()));
            let etcd = core.and_then(Node::etcd).map(|etcd| etcd.trouble().cloned());
            format!(
                "\n{name} {} lease {:?} state {:?} proposed {:?} {why:?} {waits:?} {etcd:?}",
                machine.local(self.now).0 / 1_000_000,
                machine.lease,
                machine.state,
                machine.proposed
            )
        };
        let nodes: String = self.machines.iter().map(tell).collect();
        format!("{} {nodes}\n{:?}", self.now.0 / 1_000_000, self.state())
    }

    /// An order that nobody waits for.
    pub fn order_and_forget(&mut self, node: &str, change: Change) {
        self.step(node, Input::Ordered { ticket: 2, change, why: "an operator".into() });
    }

    /// An order, until it is done; whether it was.
    pub fn order_quietly(&mut self, node: &str, change: Change) -> bool {
        for _ in 0..50 {
            self.answer = None;
            self.order_and_forget(node, change.clone());
            self.run(Span::from_ms(1_000), |world| world.answer.is_some());
            if self.answer.take().is_some_and(|answer| answer.is_ok()) {
                return true;
            }
            self.run(Span::from_ms(300), |_| false);
        }
        false
    }

    /// A founded cluster whose origin is alpha, both members.
    pub fn founded(mut self) -> Self {
        self.run_until(Span::from_ms(10_000), "a register", |world| {
            let state = world.core("beta").state();
            state.is_some_and(|state| state.resource(RESOURCE).is_some())
        });
        let next = RegisterState {
            generation: 1,
            set: NODES.iter().map(|node| member(&name(node))).collect(),
            released_clean: true,
            ..RegisterState::default()
        };
        self.propose(&name("alpha"), ORIGIN, next);
        self.run_until(Span::from_ms(10_000), "a primary", |world| world.has_lease("alpha"));
        self.pass(Span::from_ms(500));
        self
    }
}

//! The world that all three models explore: the shipping acceptors, proposers and lease holders,
//! a network in which every message may be lost, doubled or come late, crashes, and clocks.
//!
//! States of the parts and messages are kept once, in tables, and named by numbers: so the shipping
//! code runs once for every pair of a part's state and an input, and a state of the world is small.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use failover_core::{Ballot, ClusterState, NodeName, Span, Time};
use stateright::{Model, Property};

use crate::parts::{Machine, Output, Packet, Seat, To};
use crate::scenario::Scenario;

/// Each value once, with its number.
#[derive(Debug)]
struct Table<T> {
    items: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { items: Vec::new(), numbers: HashMap::new() }
    }

    fn number(&mut self, item: T) -> u32 {
        if let Some(number) = self.numbers.get(&item) {
            return *number;
        }
        let number = u32::try_from(self.items.len()).expect("fewer parts than u32::MAX");
        self.items.push(item.clone());
        self.numbers.insert(item, number);
        number
    }

    fn get(&self, number: u32) -> &T {
        &self.items[number as usize]
    }
}

/// What a part became, and what it said and committed.
#[derive(Clone, Debug)]
struct Became {
    part: u32,
    packets: Vec<u32>,
    commits: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Event {
    Packet(u32),
    Persist,
    Crash,
    Go,
    Renew,
    Restart,
}

/// The tables, which only grow.
#[derive(Debug)]
struct Tables {
    seats: Table<Seat>,
    machines: Table<Machine>,
    packets: Table<Packet>,
    states: Table<(Ballot, ClusterState)>,
    /// What a seat or machine becomes: by its kind, its number, its clock, what happens.
    became: HashMap<(bool, u32, Time, Event), Option<Became>>,
    valid: HashMap<(u32, Time), bool>,
}

/// What the checker explores.
#[derive(Debug)]
pub struct Explored {
    pub scenario: Scenario,
    tables: Mutex<Tables>,
}

/// A state of the world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    /// Which of the scenario's clocks go.
    clocks: u8,
    tick: u8,
    seats: Vec<u32>,
    machines: Vec<u32>,
    /// All messages that can still come in.
    packets: Vec<u32>,
    /// The committed states, by revision.
    committed: Vec<u32>,
    crashes: u8,
    restarts: u8,
    broken: Option<Broken>,
}

/// A rule that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Broken {
    /// One revision, two committed states.
    TwoCommitted,
    /// A committed state that a majority could miss.
    Lost,
    /// One change, committed twice.
    Twice,
    /// Two nodes with a valid lease of one office.
    TwoLeases,
    /// A takeover is committed while the old holder's lease runs.
    TakenWhileLeased,
    /// A takeover is promised while the old holder's lease runs.
    PromisedWhileLeased,
    /// What may be done is done in no order of events.
    Stuck,
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A message comes in.
    Receive(u32),
    /// The record of an acceptor becomes durable.
    Persist(u8),
    /// An acceptor falls back to its durable record.
    Crash(u8),
    /// A proposer starts a round.
    Go(u8),
    /// A holder asks for its lease.
    Renew(u8),
    /// A node starts as a new process.
    Restart(u8),
    /// Time passes.
    Tick,
}

impl Explored {
    pub fn new(scenario: Scenario) -> Self {
        let tables = Tables {
            seats: Table::new(),
            machines: Table::new(),
            packets: Table::new(),
            states: Table::new(),
            became: HashMap::new(),
            valid: HashMap::new(),
        };
        Self { scenario, tables: Mutex::new(tables) }
    }

    fn clock(&self, world: &World, node: &NodeName) -> Time {
        let clocks = &self.scenario.clocks[usize::from(world.clocks)];
        let rate = clocks.iter().find(|(name, _)| name == node).map_or(100, |(_, rate)| *rate);
        let passed = self.scenario.tick.0 * u64::from(world.tick) * rate / 100;
        self.scenario.start + Span(passed)
    }

    fn seat(&self, tables: &mut Tables, world: &World, at: usize, event: Event) -> Option<Became> {
        let setup = &self.scenario.seats[at];
        let (number, now) = (world.seats[at], self.clock(world, &setup.node));
        if let Some(became) = tables.became.get(&(false, number, now, event)) {
            return became.clone();
        }
        let mut seat = tables.seats.get(number).clone();
        let mut output = Output::default();
        match event {
            Event::Packet(packet) => {
                let packet = tables.packets.get(packet).clone();
                seat.hear(now, &packet);
                if !self.scenario.lazy.iter().any(|lazy| usize::from(*lazy) == at) {
                    seat.persist(now);
                }
            }
            Event::Persist => seat.persist(now),
            Event::Crash => seat.crash(now),
            Event::Go | Event::Renew | Event::Restart => unreachable!("it is no machine"),
        }
        output.packets.append(&mut seat.said);
        let became = keep(tables, output, |tables| tables.seats.number(seat));
        let became = (became.part != number || !became.packets.is_empty()).then_some(became);
        tables.became.insert((false, number, now, event), became.clone());
        became
    }

    fn machine(
        &self,
        tables: &mut Tables,
        world: &World,
        at: usize,
        event: Event,
    ) -> Option<Became> {
        let number = world.machines[at];
        let now = self.clock(world, &self.scenario.machines[at].name);
        if let Some(became) = tables.became.get(&(true, number, now, event)) {
            return became.clone();
        }
        let mut machine = tables.machines.get(number).clone();
        let mut output = Output::default();
        let can = match event {
            Event::Packet(packet) => {
                let packet = tables.packets.get(packet).clone();
                machine.hear(now, &packet, &mut output);
                true
            }
            Event::Go => machine.go(now, self.scenario.waits_out_back_off, &mut output),
            Event::Renew => machine.renew(now, &mut output),
            Event::Restart => {
                machine.restart();
                true
            }
            Event::Persist | Event::Crash => unreachable!("it is no acceptor"),
        };
        self.address(&mut output);
        let became = can.then(|| keep(tables, output, |tables| tables.machines.number(machine)));
        let became = became.filter(|became| {
            became.part != number || !became.packets.is_empty() || !became.commits.is_empty()
        });
        tables.became.insert((true, number, now, event), became.clone());
        became
    }

    /// What is committed is told to everybody, where the scenario wants it.
    fn address(&self, output: &mut Output) {
        output.packets.retain(|packet| match &packet.to {
            To::Seat(node) => {
                let cut = (packet.from.clone(), node.clone());
                self.scenario.seats.iter().any(|seat| seat.node == *node)
                    && !self.scenario.cut.contains(&cut)
            }
            To::Machine(_) => true,
        });
        if !self.scenario.teaches {
            return;
        }
        for (ballot, state) in &output.commits {
            for seat in self.scenario.seats.iter().filter(|_| self.scenario.teaches_seats) {
                let to = To::Seat(seat.node.clone());
                output.packets.push(Packet::learn(to, ballot, state));
            }
            for machine in &self.scenario.machines {
                let to = To::Machine(machine.name.clone());
                output.packets.push(Packet::learn(to, ballot, state));
            }
        }
    }

    fn happen(&self, world: &World, action: Action) -> Option<World> {
        let tables = &mut *self.tables.lock().expect("one thread");
        let mut next = world.clone();
        match action {
            Action::Tick => next.tick += 1,
            Action::Receive(packet) => self.receive(tables, &mut next, packet),
            Action::Persist(at) | Action::Crash(at) => {
                let event = match action {
                    Action::Persist(_) => Event::Persist,
                    _ => Event::Crash,
                };
                let became = self.seat(tables, world, usize::from(at), event)?;
                next.crashes -= u8::from(event == Event::Crash);
                next.seats[usize::from(at)] = became.part;
                self.follow(tables, &mut next, became);
            }
            Action::Go(at) | Action::Renew(at) | Action::Restart(at) => {
                let event = match action {
                    Action::Go(_) => Event::Go,
                    Action::Renew(_) => Event::Renew,
                    _ => Event::Restart,
                };
                let became = self.machine(tables, world, usize::from(at), event)?;
                next.restarts -= u8::from(event == Event::Restart);
                next.machines[usize::from(at)] = became.part;
                self.follow(tables, &mut next, became);
            }
        }
        self.talk_to_itself(tables, &mut next);
        self.prune(tables, &mut next);
        if next == *world {
            return None;
        }
        next.broken = next.broken.or_else(|| self.check(tables, &next));
        Some(next)
    }

    fn receive(&self, tables: &mut Tables, next: &mut World, packet: u32) {
        if self.scenario.once {
            next.packets.retain(|other| *other != packet);
        }
        let event = Event::Packet(packet);
        match tables.packets.get(packet).to.clone() {
            To::Seat(node) => {
                let at = self.scenario.seats.iter().position(|seat| seat.node == node);
                let at = at.expect("it was addressed");
                if let Some(became) = self.seat(tables, next, at, event) {
                    next.seats[at] = became.part;
                    self.follow(tables, next, became);
                }
            }
            To::Machine(name) => {
                let machines = &self.scenario.machines;
                let at = machines.iter().position(|machine| machine.name == name);
                let at = at.expect("it was addressed");
                if let Some(became) = self.machine(tables, next, at, event) {
                    next.machines[at] = became.part;
                    self.follow(tables, next, became);
                }
            }
        }
    }

    /// What a node says to itself it hears at once, as in `node.rs`.
    fn talk_to_itself(&self, tables: &mut Tables, next: &mut World) {
        let is_own = |tables: &Tables, packet: &u32| tables.packets.get(*packet).is_own();
        while self.scenario.once
            && let Some(own) = next.packets.iter().copied().find(|packet| is_own(tables, packet))
        {
            self.receive(tables, next, own);
        }
    }

    fn follow(&self, tables: &Tables, next: &mut World, became: Became) {
        next.packets.extend(became.packets);
        next.packets.sort_unstable();
        next.packets.dedup();
        for state in became.commits {
            let (_, new) = tables.states.get(state);
            let same = |known: &u32| tables.states.get(*known).1.revision == new.revision;
            match next.committed.iter().find(|known| same(known)) {
                Some(known) if tables.states.get(*known).1 != *new => {
                    next.broken = Some(Broken::TwoCommitted);
                }
                Some(_) => {}
                None => next.committed.push(state),
            }
        }
        let revision = |state: &u32| tables.states.get(*state).1.revision;
        next.committed.sort_unstable_by_key(revision);
    }

    /// Answers to rounds that are over never mean anything again: they need not be remembered.
    fn prune(&self, tables: &mut Tables, next: &mut World) {
        let packets = std::mem::take(&mut next.packets);
        let world = next.clone();
        next.packets = packets;
        next.packets.retain(|number| {
            let packet = tables.packets.get(*number);
            let To::Machine(name) = &packet.to else { return true };
            if !packet.answers_round() {
                return true;
            }
            let is_it = |setup: &crate::parts::Machine| setup.name == *name;
            match self.scenario.machines.iter().position(is_it) {
                Some(at)
                    if packet.is_denial() && tables.machines.get(world.machines[at]).is_spent() =>
                {
                    false
                }
                Some(at) => self.machine(tables, &world, at, Event::Packet(*number)).is_some(),
                None => false,
            }
        });
    }

    /// Whether what has to be committed at last is.
    fn has_reached(&self, world: &World) -> bool {
        let Some(wanted) = self.scenario.has_to_reach else { return true };
        let tables = self.tables.lock().expect("one thread");
        let newest = world.committed.last().map(|state| tables.states.get(*state));
        newest.is_some_and(|(_, state)| state.revision >= wanted)
    }

    fn check(&self, tables: &mut Tables, world: &World) -> Option<Broken> {
        let mut valid = Vec::new();
        for (at, setup) in self.scenario.machines.iter().enumerate() {
            let (number, now) = (world.machines[at], self.clock(world, &setup.name));
            let machine = tables.machines.get(number);
            let is_valid =
                *tables.valid.entry((number, now)).or_insert_with(|| machine.is_valid(now));
            if is_valid {
                valid.push(&setup.name);
            }
        }
        if valid.len() > 1 {
            return Some(Broken::TwoLeases);
        }
        if world.seats.iter().any(|seat| tables.seats.get(*seat).broke_its_word) {
            return Some(Broken::PromisedWhileLeased);
        }
        if let Some(newest) = world.committed.last() {
            let (ballot, state) = tables.states.get(*newest);
            let holder = state.resources.first().and_then(|entry| entry.holder.as_ref());
            if valid.iter().any(|name| holder.is_some_and(|holder| holder.node != **name)) {
                return Some(Broken::TakenWhileLeased);
            }
            let lacks = |acceptor: u128| {
                world.seats.iter().any(|seat| {
                    let disk = &tables.seats.get(*seat).disk;
                    let newest = disk.accepted.as_ref();
                    disk.id == acceptor && newest.is_none_or(|(accepted, _)| accepted < ballot)
                })
            };
            if state.is_majority(lacks) {
                return Some(Broken::Lost);
            }
        }
        let twice = self.scenario.machines.iter().any(|machine| {
            let is_his = |state: &&u32| {
                let state = &tables.states.get(**state).1;
                state.by == machine.name && state.revision > self.scenario.first_revision
            };
            world.committed.iter().filter(is_his).count() > machine.wants(self.scenario.restarts)
        });
        twice.then_some(Broken::Twice)
    }
}

fn keep(tables: &mut Tables, output: Output, part: impl FnOnce(&mut Tables) -> u32) -> Became {
    let packets = output.packets.into_iter().map(|packet| tables.packets.number(packet)).collect();
    let commits = output.commits.into_iter().map(|state| tables.states.number(state)).collect();
    Became { part: part(tables), packets, commits }
}

impl Model for Explored {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let tables = &mut *self.tables.lock().expect("one thread");
        let scenario = &self.scenario;
        let clocks = 0..u8::try_from(scenario.clocks.len()).expect("few clocks");
        let seats = scenario.seats.iter();
        let seats: Vec<u32> = seats.map(|seat| tables.seats.number(seat.clone())).collect();
        let machines = scenario.machines.iter();
        let machines: Vec<u32> =
            machines.map(|machine| tables.machines.number(machine.clone())).collect();
        let committed = scenario.committed.iter();
        let committed: Vec<u32> =
            committed.map(|state| tables.states.number(state.clone())).collect();
        clocks
            .map(|clocks| World {
                clocks,
                tick: 0,
                seats: seats.clone(),
                machines: machines.clone(),
                packets: Vec::new(),
                committed: committed.clone(),
                crashes: scenario.crashes,
                restarts: scenario.restarts,
                broken: None,
            })
            .collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        actions.extend(world.packets.iter().map(|packet| Action::Receive(*packet)));
        for at in (0u8..).take(world.seats.len()) {
            if self.scenario.lazy.contains(&at) {
                actions.push(Action::Persist(at));
            }
            if world.crashes > 0 && self.scenario.crashing.contains(&at) {
                actions.push(Action::Crash(at));
            }
        }
        for at in (0u8..).take(world.machines.len()) {
            actions.push(Action::Go(at));
            actions.push(Action::Renew(at));
            if world.restarts > 0 && self.scenario.restarting.contains(&at) {
                actions.push(Action::Restart(at));
            }
        }
        if world.tick < self.scenario.ticks {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.happen(world, action)
    }

    fn format_action(&self, action: &Action) -> String {
        let tables = self.tables.lock().expect("one thread");
        match action {
            Action::Receive(packet) => format!("Receive {}", tables.packets.get(*packet)),
            _ => format!("{action:?}"),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let reaches = |model: &Self, world: &World| model.has_reached(world);
        vec![
            Property::always("safe", |_, world: &World| world.broken.is_none()),
            Property::sometimes("reached", reaches),
        ]
    }
}

impl World {
    /// The rule that does not hold any more.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }
}

//! The parts of the world: an acceptor with its disk, and a machine that proposes and holds leases.
//! What they do is done by the shipping code; here is only what connects it, as `node.rs` does.

use std::fmt;

use failover_core::acceptor::{Acceptor, Denial, Record};
use failover_core::cluster::{Cause, Holder, Voter};
use failover_core::command::{Asker, Change};
use failover_core::holder::{Granted, LeaseHolder, office_until};
use failover_core::message::Message;
use failover_core::proposer::{Doing, Proposal, Proposer};
use failover_core::{Ballot, ClusterState, NodeName, Span, Time};
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::register::{Member, RegisterState};

/// The one resource.
pub const RESOURCE: &str = "r";

/// Where a message goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum To {
    /// To the acceptor of a node.
    Seat(NodeName),
    /// To its proposer and lease holder.
    Machine(NodeName),
}

/// A message under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Packet {
    pub to: To,
    pub from: NodeName,
    /// The process that sent it.
    process: u64,
    /// The sender's acceptor.
    acceptor: u128,
    message: Message,
}

impl Packet {
    /// News of a committed state.
    pub fn learn(to: To, ballot: &Ballot, state: &ClusterState) -> Self {
        let message = Message::Learn { ballot: ballot.clone(), state: state.clone() };
        Self { to, from: NodeName::default(), process: 0, acceptor: 0, message }
    }

    /// Whether a node says it to itself.
    pub fn is_own(&self) -> bool {
        let (To::Seat(to) | To::Machine(to)) = &self.to;
        *to == self.from
    }

    /// Whether it says no to a round.
    pub fn is_denial(&self) -> bool {
        matches!(self.message, Message::Denied { .. })
    }

    /// Whether it is an answer to one round of a proposer.
    pub fn answers_round(&self) -> bool {
        matches!(
            self.message,
            Message::Promise { .. } | Message::Accepted { .. } | Message::Denied { .. }
        )
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ballot =
            |ballot: &Ballot| format!("{}.{}.{}", ballot.counter, ballot.node, ballot.process);
        let state = |state: &ClusterState| {
            let holder = state.resources.first().and_then(|entry| entry.holder.as_ref());
            let holder = holder.map(|holder| format!("{}.{}", holder.node, holder.process));
            format!("[r{} by {} holder {holder:?}]", state.revision, state.by)
        };
        let what = match &self.message {
            Message::Prepare { ballot: b, takes } => format!("Prepare {} {takes:?}", ballot(b)),
            Message::Promise { ballot: b, accepted } => {
                let accepted = accepted.as_ref().map(|(b, s)| ballot(b) + &state(s));
                format!("Promise {} {accepted:?}", ballot(b))
            }
            Message::Accept { ballot: b, state: s } => format!("Accept {}{}", ballot(b), state(s)),
            Message::Accepted { ballot: b } => format!("Accepted {}", ballot(b)),
            Message::Denied { ballot: b, why, .. } => format!("Denied {} {why:?}", ballot(b)),
            Message::Learn { ballot: b, state: s } => format!("Learn {}{}", ballot(b), state(s)),
            other => format!("{other:?}"),
        };
        write!(out, "{} -> {:?}: {what}", self.from, self.to)
    }
}

/// What a machine said and committed.
#[derive(Default, Debug)]
pub struct Output {
    pub packets: Vec<Packet>,
    pub commits: Vec<(Ballot, ClusterState)>,
}

/// An acceptor, its disk, and answers that wait for the disk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Seat {
    pub node: NodeName,
    acceptor: Acceptor,
    pub disk: Record,
    waiting: Vec<Packet>,
    /// What leaves in this step.
    pub said: Vec<Packet>,
    /// It promised a takeover while a lease of that office ran (L2).
    pub broke_its_word: bool,
}

impl Seat {
    /// With a record.
    pub fn new(node: &str, disk: Record, now: Time) -> Self {
        let acceptor = Acceptor::start(disk.clone(), now);
        let (waiting, said) = (Vec::new(), Vec::new());
        Self { node: node.into(), acceptor, disk, waiting, said, broke_its_word: false }
    }

    /// The same, its longest wait over.
    pub fn settled(node: &str, disk: Record, now: Time) -> Self {
        Self::new(node, disk, Time(now.0 - 2 * LONG_AGO.0))
    }

    fn answer(&self, to: &Packet, message: Message) -> Packet {
        Packet {
            to: To::Machine(to.from.clone()),
            from: self.node.clone(),
            process: 0,
            acceptor: self.disk.id,
            message,
        }
    }

    /// Takes a message in. What needs the disk waits for [`Seat::persist`].
    pub fn hear(&mut self, now: Time, packet: &Packet) {
        match &packet.message {
            Message::Prepare { ballot, takes } => match self.acceptor.prepare(now, ballot, takes) {
                Ok(accepted) => {
                    self.broke_its_word |= self.is_leased(now, takes, &ballot.node);
                    let ballot = ballot.clone();
                    self.wait(packet, Message::Promise { ballot, accepted });
                }
                Err(why) => self.deny(packet, ballot, false, why),
            },
            Message::Accept { ballot, state } => match self.acceptor.accept(now, ballot, state) {
                Ok(()) => self.wait(packet, Message::Accepted { ballot: ballot.clone() }),
                Err(why) => self.deny(packet, ballot, true, why),
            },
            Message::Learn { ballot, state } => {
                self.acceptor.learn(now, ballot, state);
            }
            Message::Renew { request, offices, voters_since } => {
                let holder = Holder { node: packet.from.clone(), process: packet.process };
                let resources = self.acceptor.renew(now, &holder, offices, *voters_since);
                if resources.is_empty() {
                    return;
                }
                let lease = self.acceptor.accepted().map_or(Span(0), |state| state.lease);
                let (request, process, revision) = (*request, packet.process, 0);
                let granted = Message::Granted { request, process, lease, revision, resources };
                self.said.push(self.answer(packet, granted));
            }
            other => unreachable!("no acceptor is told {other:?}"),
        }
    }

    fn is_leased(&self, now: Time, offices: &[String], by: &NodeName) -> bool {
        let mut leases = self.acceptor.leases(now);
        leases.any(|lease| offices.contains(&lease.resource) && lease.holder.node != *by)
    }

    fn wait(&mut self, packet: &Packet, message: Message) {
        let answer = self.answer(packet, message);
        if !self.waiting.contains(&answer) {
            self.waiting.push(answer);
        }
    }

    fn deny(&mut self, packet: &Packet, ballot: &Ballot, is_accept: bool, why: Denial) {
        // For how long it is refused changes nothing but words.
        let why = match why {
            Denial::Leased { holder, resource, .. } => {
                Denial::Leased { holder, resource, remaining: Span(0) }
            }
            Denial::JustStarted { .. } => Denial::JustStarted { remaining: Span(0) },
            other => other,
        };
        let denied = Message::Denied { ballot: ballot.clone(), is_accept, why };
        self.said.push(self.answer(packet, denied));
    }

    /// The record is durable: the answers that waited for it leave.
    pub fn persist(&mut self, now: Time) {
        self.disk = self.acceptor.record().clone();
        self.acceptor.became_durable(&self.disk);
        for answer in std::mem::take(&mut self.waiting) {
            if let Message::Accepted { ballot } = &answer.message
                && !self.acceptor.first_grant(now, ballot)
            {
                continue;
            }
            self.said.push(answer);
        }
    }

    /// Falls back to what is durable.
    pub fn crash(&mut self, now: Time) {
        self.acceptor = Acceptor::start(self.disk.clone(), now);
        self.disk = self.acceptor.record().clone();
        self.waiting.clear();
    }
}

/// What a machine proposes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Want {
    /// A lease of this length.
    Lease(Span),
    /// The newest state; what is open is settled.
    Read,
    /// The office for itself; also a new process of the holder takes it up so.
    Office,
    /// The other one is a member again: the end of an office without end (R5d).
    Grow,
    /// Other voters.
    Voters(Vec<Voter>),
    /// The end of a change of voters.
    VotersDone(Vec<Voter>),
}

/// The proposer and lease holder of one data node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Machine {
    pub name: NodeName,
    process: u64,
    proposer: Proposer,
    known: Option<(Ballot, ClusterState)>,
    holder: LeaseHolder,
    /// What is still to be proposed, the next one first.
    pub script: Vec<Want>,
    /// What a restarted process proposes.
    after_restart: Vec<Want>,
    rounds: u8,
    renewals: u8,
}

impl Machine {
    /// A machine with what it knows and wants.
    pub fn new(name: &str, known: Option<(Ballot, ClusterState)>, script: &[Want]) -> Self {
        Self {
            name: name.into(),
            process: 1,
            proposer: Proposer::new(name.into(), 1),
            known,
            holder: LeaseHolder::new(1),
            script: script.to_vec(),
            after_restart: Vec::new(),
            rounds: 0,
            renewals: 0,
        }
    }

    /// How many rounds and renewals it may begin.
    pub fn may(mut self, rounds: u8, renewals: u8) -> Self {
        (self.rounds, self.renewals) = (rounds, renewals);
        self
    }

    /// What it proposes when it restarts.
    pub fn then(mut self, script: &[Want]) -> Self {
        self.after_restart = script.to_vec();
        self
    }

    fn me(&self) -> Holder {
        Holder { node: self.name.clone(), process: self.process }
    }

    /// How many changes it and its next processes may make.
    pub fn wants(&self, restarts: u8) -> usize {
        self.script.len() + self.after_restart.len() * usize::from(restarts)
    }

    /// Whether it begins no round any more: that one ended changes nothing.
    pub fn is_spent(&self) -> bool {
        self.rounds == 0
    }

    /// Whether it may act as primary.
    pub fn is_valid(&self, now: Time) -> bool {
        let Some((_, state)) = &self.known else { return false };
        let lease = self.holder.until(state, RESOURCE);
        let until = office_until(state, self.proposer.open(), (&self.me(), RESOURCE), lease);
        until.is_some_and(|until| until > now)
    }

    /// Takes a message in.
    pub fn hear(&mut self, now: Time, packet: &Packet, output: &mut Output) {
        let known = self.known.as_ref();
        let vote = known
            .map_or(packet.acceptor, |(_, state)| state.vote_of(&packet.from, packet.acceptor));
        let mut doing = Vec::new();
        match &packet.message {
            Message::Promise { ballot, accepted } => {
                self.proposer.promised(now, (vote, ballot, accepted.clone()), known, &mut doing);
            }
            Message::Accepted { ballot } => self.proposer.accepted(now, vote, ballot, &mut doing),
            Message::Denied { ballot, is_accept, why } => {
                self.proposer.denied(now, vote, (ballot, *is_accept), why.clone(), &mut doing);
            }
            Message::Learn { ballot, state } => self.learn(ballot, state),
            Message::Granted { request, process, lease, resources, .. } => {
                let (request, process, lease) = (*request, *process, *lease);
                let granted = Granted { acceptor: vote, process, request, lease, resources };
                self.holder.granted(now, &granted);
            }
            other => unreachable!("no machine is told {other:?}"),
        }
        self.carry_out(doing, output);
    }

    fn learn(&mut self, ballot: &Ballot, state: &ClusterState) {
        if self.known.as_ref().is_none_or(|known| known.0 < *ballot) {
            self.known = Some((ballot.clone(), state.clone()));
        }
    }

    fn carry_out(&mut self, doing: Vec<Doing>, output: &mut Output) {
        for doing in doing {
            match doing {
                Doing::Say(node, message) => self.say(To::Seat(node), message, output),
                Doing::Commit(ballot, state) => {
                    self.learn(&ballot, &state);
                    output.commits.push((ballot, state));
                }
                Doing::Granted(granted) => self.holder.accepted(&granted),
                Doing::Ended(..) => {}
            }
        }
    }

    fn say(&self, to: To, message: Message, output: &mut Output) {
        let (from, process) = (self.name.clone(), self.process);
        output.packets.push(Packet { to, from, process, acceptor: 0, message });
    }

    /// Begins a round, if it may and wants one.
    pub fn go(&mut self, now: Time, waits_out: bool, output: &mut Output) -> bool {
        if self.rounds == 0 || self.proposer.is_in_round() {
            return false;
        }
        if self.proposer.is_idle() {
            let Some(change) = self.next_change() else { return false };
            let proposal = Proposal { asker: Asker::Own, change, cause: Cause::default() };
            self.proposer.propose(now, proposal).expect("it was idle");
        }
        let due = self.proposer.next_deadline().expect("something is proposed");
        if due > now && !waits_out {
            return false;
        }
        self.rounds -= 1;
        let mut doing = Vec::new();
        self.proposer.go_on(now.max(due), self.known.as_ref(), (None, Vec::new()), &mut doing);
        self.carry_out(doing, output);
        true
    }

    fn next_change(&mut self) -> Option<Change> {
        let known = self.known.as_ref().map(|(_, state)| state);
        let entry = known.and_then(|state| state.resource(RESOURCE));
        let change = match self.script.first()? {
            Want::Lease(lease) => Change::Lease(*lease),
            Want::Read => Change::Read,
            Want::Office => self.office(&entry?.state),
            Want::Grow => self.grow(&entry?.state),
            Want::Voters(next) => {
                Change::Voters { expected: known?.voters.clone(), next: next.clone() }
            }
            Want::VotersDone(next) => {
                known?.next_voters.as_ref()?;
                Change::VotersDone { next: next.clone() }
            }
        };
        self.script.remove(0);
        Some(change)
    }

    fn office(&self, old: &RegisterState) -> Change {
        let own = replica_of(&self.name);
        let mut next = old.clone();
        next.generation += 1;
        next.primary = Some(own);
        next.tenure = next.generation;
        next.set = vec![member(own)];
        self.of_replica(old, next)
    }

    fn grow(&self, old: &RegisterState) -> Change {
        let mut next = old.clone();
        next.generation += 1;
        next.sole = false;
        next.set.push(member(replica_of(&"b".into())));
        self.of_replica(old, next)
    }

    fn of_replica(&self, old: &RegisterState, next: RegisterState) -> Change {
        Change::Replica {
            resource: RESOURCE.into(),
            expected: old.generation,
            next,
            process: self.process,
            homes: Vec::new(),
            forced: false,
        }
    }

    /// Asks all voters it knows for its lease.
    pub fn renew(&mut self, now: Time, output: &mut Output) -> bool {
        let Some((_, state)) = &self.known else { return false };
        let offices = state.offices_of(&self.me());
        if offices.is_empty() || self.renewals == 0 {
            return false;
        }
        self.renewals -= 1;
        let request = self.holder.ask(now, &offices);
        let (offices, voters_since) = (&offices, state.voters_since);
        for voter in state.all_voters() {
            let message = Message::Renew { request, offices: offices.clone(), voters_since };
            self.say(To::Seat(voter.node.clone()), message, output);
        }
        true
    }

    /// Starts as a new process, which knows nothing but what it has to do.
    pub fn restart(&mut self) {
        self.process += 1;
        self.proposer = Proposer::new(self.name.clone(), self.process);
        self.holder = LeaseHolder::new(self.process);
        self.script = self.after_restart.clone();
    }
}

fn member(replica: ReplicaId) -> Member {
    Member { replica, incarnation: Incarnation(1) }
}

/// The replica of a node.
pub fn replica_of(node: &NodeName) -> ReplicaId {
    ReplicaId(u128::from(node.as_str().as_bytes()[0]))
}

/// Longer than any wait of an acceptor.
const LONG_AGO: Span = Span::from_ms(10_000);

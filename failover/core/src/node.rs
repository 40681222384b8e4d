//! One node of the cluster: the match on inputs, and what follows from what came to be known.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use replicator_core::block::ReplicaId;
use replicator_core::register::RegisterState;
use replicator_core::{Span, Time};

use crate::acceptor::{Acceptor, Denial, Record};
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{Cause, ClusterState, Epoch, Force, Holder, Home, Voter};
use crate::command::{Asker, Change, Unfit};
use crate::decision::Office;
use crate::defect::{Defect, defect};
use crate::detector::{Detector, Own};
use crate::etcd::{Answer, Ask, EtcdRegister};
use crate::facts::{Facts, Hindrance, Placement};
use crate::hindered::Hindered;
use crate::holder::{Granted, LeaseHolder, office_until};
use crate::lapse::Lapsed;
use crate::message::{Envelope, Heartbeat, Message, RecordSeen};
use crate::proposer::{Doing, Outcome, Proposal, Proposer};
use crate::recovery::{Recovery, Stranger};
use crate::verdict::Verdict;
use crate::wording::{in_words, what};

/// Messages of others whose answer waits for a durable record.
const ANSWERS_MAX: usize = 1024;

/// What a node is told at its start; constant for the life of the process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// Its name.
    pub name: NodeName,
    /// A number drawn anew at every start.
    pub process: u64,
    /// All nodes of the configuration, itself too, and whether each is a witness.
    pub nodes: Vec<(NodeName, bool)>,
    /// The resources of the configuration.
    pub resources: Vec<String>,
    /// The lease that a new cluster begins with.
    pub lease: Span,
}

impl Config {
    fn is_witness(&self) -> bool {
        self.nodes.iter().any(|(name, witness)| *name == self.name && *witness)
    }

    /// How often leases are renewed and signs of life are sent: a fifth of the lease.
    pub fn beat(&self, lease: Span) -> Span {
        Span(lease.0 / 5)
    }
}

/// A fact.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// A message of another node came in; its origin is proved.
    Received {
        /// From whom.
        from: NodeName,
        /// What.
        envelope: Box<Envelope>,
    },
    /// The record of that sequence number, or a newer one, is durable.
    RecordDurable {
        /// Its number.
        sequence: u64,
    },
    /// What a replica of this node is and can do.
    ReplicaReported {
        /// The resource.
        resource: String,
        /// Its facts.
        facts: Facts,
    },
    /// The data loop of a resource turned, and its disk ended something or had nothing to do (L1).
    LoopProgressed {
        /// The resource.
        resource: String,
        /// When.
        at: Time,
    },
    /// A replica of this node proposes a change of its state.
    ReplicaProposed {
        /// The resource.
        resource: String,
        /// The replica's number for it.
        number: u64,
        /// The generation that it replaces.
        expected: u64,
        /// The state that is to follow.
        next: RegisterState,
        /// A taker gives up what the old primary may have (R11d).
        forced: bool,
    },
    /// A promotion that was ordered ended: served, or refused.
    PromotionEnded {
        /// The resource.
        resource: String,
        /// Why not.
        refused: Option<Hindrance>,
    },
    /// A hand-over that was ordered was refused.
    HandOverRefused {
        /// The resource.
        resource: String,
        /// Why.
        why: Hindrance,
    },
    /// An operator wants the register changed.
    Ordered {
        /// The driver's name for it.
        ticket: u64,
        /// The change.
        change: Change,
        /// Who ordered it, for history.
        why: String,
    },
    /// An operator declares voters gone for ever, this node's word being the last there is.
    RecoverOrdered {
        /// The driver's name for it.
        ticket: u64,
        /// Those who are gone.
        without: Vec<NodeName>,
        /// Who ordered it, for history.
        why: String,
    },
    /// etcd answered, or did not in time.
    EtcdAnswered {
        /// The number of the question.
        number: u64,
        /// The answer.
        answer: Answer,
    },
    /// Something changed in etcd: a hint, which may be lost.
    EtcdChanged,
    /// A deadline of [`Node::next_deadline`] has come.
    TimePassed,
}

/// An order to the driver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: NodeName,
        /// What.
        envelope: Box<Envelope>,
    },
    /// Make the acceptor's record durable, then say [`Input::RecordDurable`]. A newer one may
    /// replace one that is not being written yet.
    PersistRecord(Box<Record>),
    /// Until when this node may act as primary of a resource; tell the data loop at once.
    LeaseChanged {
        /// The resource.
        resource: String,
        /// `None`: not at all. `Time(u64::MAX)`: without end (R5d).
        until: Option<Time>,
    },
    /// The newest committed state of a resource; tell its replica.
    Learned {
        /// The resource.
        resource: String,
        /// Its state.
        state: RegisterState,
    },
    /// How a replica's proposal ended.
    Decided {
        /// The resource.
        resource: String,
        /// The replica's number.
        number: u64,
        /// The committed state; or why not.
        result: Result<RegisterState, Undecided>,
    },
    /// Take the office of primary here.
    Promote {
        /// The resource.
        resource: String,
        /// What an operator gave his word for.
        force: Force,
        /// In words.
        why: String,
    },
    /// Give the office up orderly (R6c).
    HandOver {
        /// The resource.
        resource: String,
        /// To whom.
        to: NodeName,
    },
    /// Ask etcd, then say [`Input::EtcdAnswered`], in any case and within a beat or two.
    AskEtcd {
        /// The number of the question.
        number: u64,
        /// The question.
        ask: Box<Ask>,
    },
    /// How an operator's change ended.
    Answer {
        /// The driver's name for it.
        ticket: u64,
        /// Done, or why not.
        result: Result<(), Verdict>,
    },
    /// The register changed: for history.
    Committed(Box<ClusterState>),
}

/// Why a replica's proposal is not in the register.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Undecided {
    /// The register has another state.
    Newer(Box<RegisterState>),
    /// It was refused, and may be tried again.
    NotNow(String),
}

/// The orders of one step.
pub type Effects = Vec<Effect>;

/// What this node knows of a resource's replica here.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Local {
    /// What the driver reported last.
    pub facts: Facts,
    /// When the data loop showed progress last.
    pub progress_at: Time,
    /// What this node is doing about the office.
    pub office: Office,
    /// The last refusal of a promotion or hand-over.
    pub refusal: Option<Verdict>,
    /// Why this node does not take the office, by its code, and since when.
    pub explained: Option<(String, Time)>,
    /// No new attempt before.
    pub retry_at: Time,
    /// How often in a row it was refused.
    pub refusals: u32,
    /// Where an operator likes it to be.
    pub placement: Placement,
    /// Since when the holder of the office is known to be who it is.
    pub(crate) holder_since: Time,
    lease_told: Option<Time>,
    state_told: Option<RegisterState>,
}

/// An answer that waits for a durable record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Waiting {
    sequence: u64,
    to: NodeName,
    message: Message,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) acceptor: Acceptor,
    durable: u64,
    writing: Option<Box<Record>>,
    pub(crate) is_dirty: bool,
    answers: VecDeque<Waiting>,
    /// Since when replicas cannot be promoted.
    pub(crate) hindered: Hindered,
    /// The newest state known to be committed.
    pub(crate) known: Option<(Ballot, ClusterState)>,
    /// A quorum round of this process has settled what was open (R14).
    pub(crate) is_settled: bool,
    /// Since when the known state is what it is.
    pub(crate) known_since: Time,
    /// Offices whose lease is over.
    pub(crate) lapsed: Lapsed,
    pub(crate) proposer: Proposer,
    pub(crate) holder: LeaseHolder,
    pub(crate) detector: Detector,
    pub(crate) locals: BTreeMap<String, Local>,
    pub(crate) started_at: Time,
    next_beat: Time,
    beats: u64,
    /// When recent heartbeats left, for round trips.
    beat_times: VecDeque<(u64, Time)>,
    /// Since when a majority is missing.
    pub(crate) no_majority_since: Option<Time>,
    /// The epoch of the durable record.
    durable_epoch: Epoch,
    /// A new epoch that is being made durable.
    pub(crate) recovery: Option<Recovery>,
    /// Who was heard and is none of us.
    pub(crate) strangers: BTreeMap<NodeName, Stranger>,
    /// Since when the acceptor here has a state that is newer than the known one: a change is under
    /// way.
    pub(crate) change_since: Option<Time>,
    /// Messages of this node to its own acceptor and back.
    own: VecDeque<Message>,
    /// The sequence number of the record at the start.
    began_with: u64,
    /// That record was an old copy (L5): this node has no part until it is replaced.
    pub(crate) is_old_copy: bool,
    /// The register, when etcd keeps it: then the acceptor only remembers what was seen of it.
    pub(crate) etcd: Option<EtcdRegister>,
}

impl Node {
    /// A node that starts, with the record of its acceptor.
    pub fn start(config: Config, record: Record, now: Time) -> Self {
        let lease = record.accepted.as_ref().map_or(config.lease, |(_, state)| state.lease);
        let durable = record.sequence;
        let accepted = record.accepted.clone();
        let durable_epoch = record.epoch();
        let is_old_copy = record.is_old_copy();
        let locals = config.resources.iter().map(|name| (name.clone(), Local::default())).collect();
        Self {
            now,
            acceptor: Acceptor::start(record, now),
            durable,
            writing: None,
            is_dirty: false,
            answers: VecDeque::new(),
            hindered: Hindered::default(),
            known: record_is_enough(&accepted),
            is_settled: defect(Defect::RecordTrustedAtStart) && accepted.is_some(),
            known_since: now,
            lapsed: Lapsed::default(),
            proposer: Proposer::new(config.name.clone(), config.process),
            holder: LeaseHolder::new(config.process),
            detector: Detector::new(lease),
            locals,
            started_at: now,
            next_beat: now,
            beats: 0,
            beat_times: VecDeque::new(),
            no_majority_since: Some(now),
            durable_epoch,
            recovery: None,
            strangers: BTreeMap::new(),
            change_since: None,
            own: VecDeque::new(),
            began_with: durable,
            is_old_copy,
            etcd: None,
            config,
        }
    }

    /// Where an operator likes a resource to be.
    pub fn place(&mut self, resource: &str, placement: Placement) {
        if let Some(local) = self.locals.get_mut(resource) {
            local.placement = placement;
        }
    }

    /// Takes one fact and orders what follows. Effects are appended.
    pub fn step(&mut self, now: Time, input: Input, effects: &mut Effects) {
        self.now = self.now.max(now);
        match input {
            Input::Received { from, envelope } => self.received(&from, *envelope, effects),
            Input::RecordDurable { sequence } => self.record_durable(sequence, effects),
            Input::ReplicaReported { resource, facts } => {
                if let Some(local) = self.locals.get_mut(&resource) {
                    let is_news = |facts: &Facts| {
                        (facts.role.clone(), facts.hindrance.clone(), facts.trouble.clone())
                    };
                    if is_news(&local.facts) != is_news(&facts) {
                        // The others decide by it.
                        self.next_beat = self.now;
                    }
                    let me = &self.config.name;
                    self.hindered.note(self.now, me, &resource, &facts);
                    local.facts = facts;
                }
            }
            Input::LoopProgressed { resource, at } => {
                if let Some(local) = self.locals.get_mut(&resource) {
                    local.progress_at = at;
                }
            }
            Input::ReplicaProposed { resource, number, expected, next, forced } => {
                let homes = self.homes(&resource);
                let change = Change::Replica {
                    resource: resource.clone(),
                    expected,
                    next,
                    process: self.config.process,
                    homes,
                    forced,
                };
                let cause = self.cause_of(&change);
                self.propose(Asker::Replica { resource, number }, change, cause, effects);
            }
            Input::PromotionEnded { resource, refused } => {
                self.promotion_ended(&resource, refused);
            }
            Input::HandOverRefused { resource, why } => self.hand_over_refused(&resource, &why),
            Input::Ordered { ticket, .. } if self.check_etcd().is_err() => {
                let result = self.check_etcd();
                effects.push(Effect::Answer { ticket, result });
            }
            Input::Ordered { ticket, change, why } => {
                let cause = Cause { what: what(&change).into(), resource: String::new(), why };
                self.propose(Asker::Operator(ticket), change, cause, effects);
            }
            Input::RecoverOrdered { ticket, without, why } => {
                self.recover(ticket, &without, why, effects);
            }
            Input::EtcdAnswered { number, answer } => self.etcd_answered(number, answer, effects),
            Input::EtcdChanged => {
                if let Some(etcd) = &mut self.etcd {
                    etcd.changed(self.now);
                }
            }
            Input::TimePassed => {}
        }
        self.beat(effects);
        self.go_on(effects);
        self.decide(effects);
        self.go_on(effects);
        self.tell_leases(effects);
        self.watch_lapses();
        self.persist(effects);
        say_once(effects);
    }

    /// When [`Input::TimePassed`] is due.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.has_no_part() {
            return Some(self.next_beat);
        }
        if self.etcd.is_some() {
            return self.etcd_deadline().into_iter().chain([self.next_beat]).min();
        }
        // The end of a lease may be the beginning of a takeover.
        let leases = self.acceptor.leases(self.now).map(|lease| lease.until);
        let proposer = self.proposer.next_deadline().filter(|_| self.may_propose());
        leases.chain(proposer).chain([self.next_beat]).min()
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The newest state known to be committed.
    pub fn state(&self) -> Option<&ClusterState> {
        self.known.as_ref().map(|(_, state)| state)
    }

    /// The newest state this node has, committed or only accepted: for those who look.
    pub fn newest(&self) -> Option<&ClusterState> {
        self.state().or(self.acceptor.accepted())
    }

    /// For how long no majority has been heard; none: it is.
    pub fn without_majority(&self, now: Time) -> Option<Span> {
        self.no_majority_since.map(|since| now.since(since))
    }

    /// The acceptor, for those who look.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Who is heard, for those who look.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// What this node knows of its replica of a resource.
    pub fn local(&self, resource: &str) -> Option<&Local> {
        self.locals.get(resource)
    }

    /// The resources of this node.
    pub fn resources(&self) -> impl Iterator<Item = &String> {
        self.locals.keys()
    }

    /// The proposals under way, for those who look.
    pub fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    pub(crate) fn lease(&self) -> Span {
        self.state().map_or(self.config.lease, |state| state.lease)
    }

    // ------------------------------------------------------------------ messages

    fn envelope(&self, message: Message) -> Box<Envelope> {
        Box::new(Envelope {
            process: self.config.process,
            acceptor: self.acceptor.record().id,
            sequence: self.durable,
            began: self.began_with,
            epoch: self.durable_epoch,
            message,
        })
    }

    fn say(&mut self, to: &NodeName, message: Message, effects: &mut Effects) {
        if *to == self.config.name {
            self.own.push_back(message);
        } else {
            let envelope = self.envelope(message);
            effects.push(Effect::Send { to: to.clone(), envelope });
        }
    }

    fn received(&mut self, from: &NodeName, envelope: Envelope, effects: &mut Effects) {
        if !self.config.nodes.iter().any(|(name, _)| name == from) && !self.is_voter(from) {
            return;
        }
        if !self.belongs(from, &envelope, effects) {
            return;
        }
        let own = self.own_beats();
        let before = self.detector.process_of(from);
        if !self.detector.hears(self.now, from, &envelope, own) {
            return;
        }
        if before != self.detector.process_of(from) {
            // It is to know soon what this node knows of its record.
            self.next_beat = self.now;
        }
        let is_heartbeat = matches!(envelope.message, Message::Heartbeat(_));
        if !is_heartbeat && !self.may_follow(from, &envelope.message) {
            return;
        }
        let is_of_acceptors =
            !matches!(envelope.message, Message::Learn { .. } | Message::Heartbeat(_));
        if self.etcd.is_some() && is_of_acceptors {
            return;
        }
        let acceptor = match self.state() {
            Some(state) => state.vote_of(from, envelope.acceptor),
            None => envelope.acceptor,
        };
        self.said(from, envelope.process, acceptor, envelope.message, effects);
    }

    fn own_beats(&self) -> Own {
        Own { process: self.config.process, beats: self.beats }
    }

    /// L5: whether what another node says counts here. First it has to hear this process and say
    /// in a heartbeat what it knows of the record here: an old copy follows nobody, since a record
    /// that went on from one would soon look as new as the one that is lost.
    fn may_follow(&self, from: &NodeName, message: &Message) -> bool {
        if self.is_old_copy {
            return matches!(message, Message::Learn { .. });
        }
        self.detector.has_answered(from) || defect(Defect::StrangersFollowed)
    }

    /// L5: somebody heard more of this node's acceptor, before this process, than its record had
    /// at the start: it is an old copy.
    fn hear_of_own_record(&mut self, seen: &RecordSeen) {
        let is_newer = seen.process != self.config.process && seen.sequence > self.began_with;
        if seen.acceptor == self.acceptor.record().id
            && (is_newer || seen.went_back)
            && !self.is_old_copy
            && !defect(Defect::OldRecordVotes)
        {
            self.is_old_copy = true;
            self.acceptor.leave_out(self.epoch());
            self.is_dirty = true;
            self.next_beat = self.now;
        }
    }

    fn is_voter(&self, node: &NodeName) -> bool {
        self.state().is_some_and(|state| state.all_voters().any(|voter| voter.node == *node))
    }

    fn said(
        &mut self,
        from: &NodeName,
        process: u64,
        acceptor: u128,
        message: Message,
        effects: &mut Effects,
    ) {
        let now = self.now;
        let mut doing = Vec::new();
        match message {
            Message::Prepare { ballot, takes } => {
                let answer = match self.acceptor.prepare(now, &ballot, &takes) {
                    Ok(accepted) => {
                        return self.after_durable(from, Message::Promise { ballot, accepted });
                    }
                    Err(why) => Message::Denied { ballot, is_accept: false, why },
                };
                self.say(from, answer, effects);
            }
            Message::Accept { ballot, state } => match self.acceptor.accept(now, &ballot, &state) {
                Ok(()) => self.after_durable(from, Message::Accepted { ballot }),
                Err(why) => {
                    let denied = Message::Denied { ballot, is_accept: true, why };
                    self.say(from, denied, effects);
                }
            },
            Message::Promise { ballot, accepted } => {
                let known = self.known.as_ref();
                let promise = (acceptor, &ballot, accepted);
                self.proposer.promised(now, promise, known, &mut doing);
            }
            Message::Accepted { ballot } => {
                self.proposer.accepted(now, acceptor, &ballot, &mut doing);
            }
            Message::Denied { ballot, is_accept, why } => {
                self.proposer.denied(now, acceptor, (&ballot, is_accept), why, &mut doing);
            }
            Message::Learn { ballot, state } => self.learn(ballot, state, effects),
            Message::Renew { request, offices, voters_since } => {
                let holder = Holder { node: from.clone(), process };
                let resources = self.acceptor.renew(now, &holder, &offices, voters_since);
                if resources.len() < offices.len() {
                    self.teach(from, effects);
                }
                let accepted = self.acceptor.accepted();
                let lease = accepted.map_or(Span(0), |state| state.lease);
                let revision = accepted.map_or(0, |state| state.revision);
                let granted = Message::Granted { request, process, lease, revision, resources };
                self.say(from, granted, effects);
            }
            Message::Granted { request, process, lease, revision, resources } => {
                let granted = Granted { acceptor, process, request, lease, resources: &resources };
                self.holder.granted(now, &granted);
                self.look_up(revision, &resources);
            }
            Message::Heartbeat(heartbeat) => self.heard(from, heartbeat, effects),
        }
        self.carry_out(doing, effects);
    }

    /// An acceptor that has something newer refused the lease of an office: what it has is settled
    /// at once (L3), lest an open change of the voters costs the lease (L7).
    fn look_up(&mut self, revision: u64, granted: &[String]) {
        let is_refused = self.offices().iter().any(|(resource, _)| !granted.contains(resource));
        let is_newer = self.state().is_some_and(|known| known.revision < revision);
        if is_refused && is_newer && self.proposer.is_idle() {
            let read =
                Proposal { asker: Asker::Own, change: Change::Read, cause: Cause::default() };
            let queued = self.proposer.propose(self.now, read);
            queued.expect("it was idle");
        }
    }

    fn heard(&mut self, from: &NodeName, heartbeat: Heartbeat, effects: &mut Effects) {
        let is_mine = heartbeat.echo_of == self.config.process;
        let sent = heartbeat.echo.filter(|_| is_mine).and_then(|(number, _)| {
            self.beat_times.iter().find(|(sent, _)| *sent == number).map(|(_, at)| *at)
        });
        let (revision, own) = (heartbeat.revision, self.own_beats());
        for seen in &heartbeat.records {
            if seen.node == self.config.name {
                self.hear_of_own_record(seen);
            } else {
                self.detector.told(seen, own);
            }
        }
        for (resource, facts) in &heartbeat.facts {
            self.hindered.note(self.now, from, resource, facts);
        }
        self.detector.beat(self.now, from, heartbeat, (is_mine, sent));
        if self.state().is_some_and(|state| state.revision > revision) {
            self.teach(from, effects);
        }
    }

    /// Tells a node the newest committed state.
    pub(crate) fn teach(&mut self, node: &NodeName, effects: &mut Effects) {
        if let Some((ballot, state)) = self.known.clone()
            && *node != self.config.name
        {
            self.say(node, Message::Learn { ballot, state }, effects);
        }
    }

    // ------------------------------------------------------------------ the record

    /// An answer that may be heard only when the record as it is now is durable.
    fn after_durable(&mut self, to: &NodeName, message: Message) {
        if self.answers.len() >= ANSWERS_MAX {
            // The asker repeats itself.
            return;
        }
        self.is_dirty = true;
        let sequence = self.acceptor.record().sequence + 1;
        self.answers.push_back(Waiting { sequence, to: to.clone(), message });
    }

    fn persist(&mut self, effects: &mut Effects) {
        if self.is_dirty && self.writing.is_none() {
            self.is_dirty = false;
            let record = Box::new(self.acceptor.next_record());
            self.writing = Some(record.clone());
            effects.push(Effect::PersistRecord(record));
        }
    }

    fn record_durable(&mut self, sequence: u64, effects: &mut Effects) {
        self.durable = self.durable.max(sequence);
        if let Some(record) = self.writing.take_if(|record| record.sequence <= sequence) {
            self.acceptor.became_durable(&record);
            self.durable_epoch = record.epoch();
        }
        self.recovered(sequence, effects);
        while self.answers.front().is_some_and(|answer| answer.sequence <= sequence) {
            let Some(answer) = self.answers.pop_front() else { break };
            if let Message::Accepted { ballot } = &answer.message
                && !self.acceptor.first_grant(self.now, ballot)
            {
                continue;
            }
            self.say(&answer.to, answer.message, effects);
        }
    }

    // ------------------------------------------------------------------ proposals

    pub(crate) fn propose(
        &mut self,
        asker: Asker,
        change: Change,
        cause: Cause,
        effects: &mut Effects,
    ) {
        let proposal = Proposal { asker, change, cause };
        if self.has_no_part() {
            let why = Denial::Promised(Ballot::default());
            return self.ended(proposal, Outcome::NotNow(why), effects);
        }
        if let Some(etcd) = self.etcd.as_mut().filter(|_| self.proposer.is_idle()) {
            etcd.begin_first(self.now);
        }
        if let Err(proposal) = self.proposer.propose(self.now, proposal) {
            let why = Denial::Promised(Ballot::default());
            self.ended(proposal, Outcome::NotNow(why), effects);
        }
    }

    fn go_on(&mut self, effects: &mut Effects) {
        if self.has_no_part() {
            return self.own.clear();
        }
        if self.etcd.is_some() {
            return self.go_on_with_etcd(effects);
        }
        if !self.may_propose() {
            return;
        }
        loop {
            let mut doing = Vec::new();
            let known = self.known.as_ref();
            self.proposer.go_on(self.now, known, self.acceptor.accepted(), &mut doing);
            let is_done = doing.is_empty() && self.own.is_empty();
            self.carry_out(doing, effects);
            while let Some(message) = self.own.pop_front() {
                let (me, process) = (self.config.name.clone(), self.config.process);
                let acceptor = self.acceptor.record().id;
                self.said(&me, process, acceptor, message, effects);
            }
            if is_done {
                return;
            }
        }
    }

    /// L5: the acceptor here follows its own node no earlier than others: a majority, without which
    /// nothing is decided anyway, has to answer this process first.
    fn may_propose(&self) -> bool {
        let is_blank = self.acceptor.accepted().is_none();
        self.is_settled || is_blank || self.hears_majority() || defect(Defect::StrangersFollowed)
    }

    fn carry_out(&mut self, doing: Vec<Doing>, effects: &mut Effects) {
        for doing in doing {
            match doing {
                Doing::Say(node, message) => self.say(&node, message, effects),
                Doing::Commit(ballot, state) => {
                    let nodes: Vec<NodeName> =
                        state.all_voters().map(|voter| voter.node.clone()).collect();
                    let is_new = self.known.as_ref().is_none_or(|known| known.0 < ballot);
                    self.learn(ballot, state, effects);
                    for node in nodes.iter().filter(|_| is_new) {
                        self.teach(node, effects);
                    }
                }
                Doing::Granted(mut granted) => {
                    // L1: no loop that hangs keeps its lease by what its control plane changes.
                    granted.offices.retain(|(resource, _)| self.loop_lives(resource));
                    self.holder.accepted(&granted);
                }
                Doing::Ended(proposal, outcome) => self.ended(proposal, outcome, effects),
            }
        }
    }

    /// This process.
    pub(crate) fn me(&self) -> Holder {
        Holder { node: self.config.name.clone(), process: self.config.process }
    }

    pub(crate) fn learn(&mut self, ballot: Ballot, state: ClusterState, effects: &mut Effects) {
        let epoch = self.epoch();
        if epoch.number > 0 && state.epoch != epoch {
            // Said before this node entered its present epoch.
            return;
        }
        // The record of an old copy stays as it is (L5): what is committed is only known.
        if !self.is_old_copy && self.acceptor.learn(self.now, &ballot, &state) {
            self.is_dirty = true;
        }
        if self.known.as_ref().is_some_and(|known| known.0 >= ballot) {
            return;
        }
        let is_change = self.state().is_none_or(|known| known.revision < state.revision);
        self.detector.set_patience(state.lease);
        for (name, local) in &mut self.locals {
            let holder = |state: &ClusterState| state.resource(name)?.holder.clone();
            let before = self.known.as_ref().and_then(|(_, known)| holder(known));
            if before != holder(&state) {
                local.holder_since = self.now;
            }
        }
        self.known = Some((ballot, state.clone()));
        if is_change {
            self.known_since = self.now;
            effects.push(Effect::Committed(Box::new(state)));
        }
        self.tell_replicas(effects);
    }

    /// What the replicas here go by; nothing before a quorum round of this process (R14).
    fn tell_replicas(&mut self, effects: &mut Effects) {
        let Some((_, state)) = &self.known else { return };
        if !self.is_settled {
            return;
        }
        for (name, local) in &mut self.locals {
            let Some(entry) = state.resource(name) else { continue };
            if entry.state.generation == 0 {
                // No origin yet: what the disk says comes first.
                continue;
            }
            if local.state_told.as_ref() != Some(&entry.state) {
                local.state_told = Some(entry.state.clone());
                effects
                    .push(Effect::Learned { resource: name.clone(), state: entry.state.clone() });
            }
        }
    }

    pub(crate) fn ended(&mut self, proposal: Proposal, outcome: Outcome, effects: &mut Effects) {
        if outcome == Outcome::Committed && !self.is_settled && self.known.is_some() {
            self.is_settled = true;
            self.tell_replicas(effects);
        }
        match proposal.asker {
            Asker::Own => {}
            Asker::Replica { resource, number } => {
                let now = self.state().and_then(|state| state.resource(&resource));
                let result = match (outcome, now) {
                    (Outcome::Committed, Some(entry)) => Ok(entry.state.clone()),
                    (Outcome::NotNow(why), _) => Err(Undecided::NotNow(in_words(&why))),
                    (_, Some(entry)) => Err(Undecided::Newer(Box::new(entry.state.clone()))),
                    (_, None) => {
                        Err(Undecided::NotNow("the register has no such resource".to_string()))
                    }
                };
                effects.push(Effect::Decided { resource, number, result });
            }
            Asker::Operator(ticket) => {
                let result = match outcome {
                    Outcome::Committed | Outcome::Unfit(Unfit::Already) => Ok(()),
                    Outcome::Unfit(unfit) => Err(self.unfit(&unfit)),
                    Outcome::NotNow(why) => Err(Verdict::new(
                        self.now,
                        "not_now",
                        "L2",
                        in_words(&why),
                        "try again in a moment".into(),
                    )),
                };
                effects.push(Effect::Answer { ticket, result });
            }
        }
    }

    /// Where the replicas of a resource live, as far as their nodes were heard.
    pub(crate) fn homes(&self, resource: &str) -> Vec<Home> {
        let own = self.locals.get(resource).map(|local| (&self.config.name, &local.facts));
        let others = self.detector.nodes().filter_map(|(name, node)| {
            let facts = node.heartbeat.facts.iter().find(|(of, _)| of == resource)?;
            Some((name, &facts.1))
        });
        own.into_iter()
            .chain(others)
            .filter(|(_, facts)| facts.replica != 0)
            .map(|(node, facts)| Home { node: node.clone(), replica: ReplicaId(facts.replica) })
            .collect()
    }

    // ------------------------------------------------------------------ signs of life and leases

    fn beat(&mut self, effects: &mut Effects) {
        if self.now < self.next_beat {
            return;
        }
        self.next_beat = self.now + self.config.beat(self.lease());
        self.beats += 1;
        self.beat_times.push_back((self.beats, self.now));
        if self.beat_times.len() > 16 {
            self.beat_times.pop_front();
        }
        if self.etcd.is_none() {
            self.renew(effects);
        }
        let nodes = self.others();
        for node in nodes {
            let heartbeat = self.heartbeat(&node);
            self.say(&node, Message::Heartbeat(heartbeat), effects);
        }
    }

    /// All other nodes of configuration and register.
    pub(crate) fn others(&self) -> Vec<NodeName> {
        let configured = self.config.nodes.iter().map(|(name, _)| name.clone());
        let voters = self.state().into_iter().flat_map(ClusterState::all_voters);
        let mut all: Vec<NodeName> =
            configured.chain(voters.map(|voter| voter.node.clone())).collect();
        all.sort();
        all.dedup();
        all.retain(|name| *name != self.config.name);
        all
    }

    fn heartbeat(&self, to: &NodeName) -> Heartbeat {
        let remaining = |lease: &crate::acceptor::Lease| {
            (lease.resource.clone(), lease.holder.node.clone(), lease.until.since(self.now))
        };
        let echo = self.detector.node(to).filter(|node| node.heartbeat.number > 0);
        Heartbeat {
            number: self.beats,
            echo: echo.map(|node| (node.heartbeat.number, self.now.since(node.heartbeat_at))),
            echo_of: self.detector.node(to).map_or(0, |node| node.process),
            revision: self.state().map_or(0, |state| state.revision),
            accepted: self.acceptor.accepted().map_or(0, |state| state.revision),
            is_blank: self.acceptor.accepted().is_none(),
            leases: self.acceptor.leases(self.now).map(remaining).collect(),
            heard: self
                .detector
                .nodes()
                .filter_map(|(name, node)| Some((name.clone(), self.now.since(node.at?))))
                .collect(),
            facts: self
                .locals
                .iter()
                .map(|(name, local)| (name.clone(), local.facts.clone()))
                .collect(),
            records: self.detector.records().into_iter().chain(self.own_verdict()).collect(),
        }
    }

    /// That the own record is an old copy (L5): the others may never have heard a newer one.
    fn own_verdict(&self) -> Option<RecordSeen> {
        self.is_old_copy.then(|| RecordSeen {
            node: self.config.name.clone(),
            acceptor: self.acceptor.record().id,
            process: self.config.process,
            sequence: self.durable,
            went_back: true,
        })
    }

    /// L1: whether the data loop of a resource made progress a short time ago.
    fn loop_lives(&self, resource: &str) -> bool {
        let local = self.locals.get(resource);
        local.is_some_and(|local| self.now.since(local.progress_at) < self.lease())
            || defect(Defect::ProgressIgnored)
    }

    /// The offices that this process holds, whose loop makes progress (L1) and whose lease it can
    /// use.
    pub(crate) fn offices(&self) -> Vec<(String, u64)> {
        let Some(state) = self.state() else { return Vec::new() };
        // One that hears nobody would go on extending a lease that it cannot use: after its end it
        // asks only while it hears a majority.
        let is_deaf = self.no_majority_since.is_some();
        let is_of_use = |name: &String| {
            !is_deaf || self.lease_until(name).is_some_and(|until| until > self.now)
        };
        // An office that nobody serves is let go, so that others may take it, or finish taking it.
        let is_news = self.now.since(self.known_since) < self.lease();
        let is_alive = |name: &String| {
            self.locals.get(name).is_some_and(|local| {
                self.loop_lives(name) && (local.facts.role != "secondary" || is_news)
            })
        };
        let offices = state.offices_of(&self.me()).into_iter();
        offices.filter(|(resource, _)| is_alive(resource) && is_of_use(resource)).collect()
    }

    /// Asks every acceptor for the lease.
    pub(crate) fn renew(&mut self, effects: &mut Effects) {
        let offices = self.offices();
        if offices.is_empty() {
            return;
        }
        let request = self.holder.ask(self.now, &offices);
        let Some(state) = self.state() else { return };
        let voters_since = state.voters_since;
        let voters: Vec<Voter> = state.all_voters().cloned().collect();
        for voter in voters {
            let message = Message::Renew { request, offices: offices.clone(), voters_since };
            self.say(&voter.node, message, effects);
        }
    }

    /// Until when this node may act as primary of a resource.
    pub fn lease_until(&self, resource: &str) -> Option<Time> {
        if self.has_no_part() {
            return None;
        }
        let state = self.state()?;
        if self.etcd.as_ref().is_some_and(|etcd| etcd.alien().is_some()) {
            // R11c: what was lost may have named somebody else.
            return None;
        }
        let lease = match &self.etcd {
            Some(etcd) => etcd.until(state.resource(resource)?.state.tenure, resource),
            None => self.holder.until(state, resource),
        };
        office_until(state, self.proposer.open(), (&self.me(), resource), lease)
    }

    fn is_holder(&self, resource: &str) -> bool {
        let entry = self.state().and_then(|state| state.resource(resource));
        entry.is_some_and(|entry| entry.holder.as_ref() == Some(&self.me()))
    }

    fn tell_leases(&mut self, effects: &mut Effects) {
        let names: Vec<String> = self.locals.keys().cloned().collect();
        for resource in names {
            let until = self.lease_until(&resource);
            if until.is_none() && !self.is_holder(&resource) {
                self.holder.forget(&resource);
                if let Some(etcd) = &mut self.etcd {
                    etcd.forget(&resource);
                }
            }
            let local = self.locals.get_mut(&resource).expect("it was just listed");
            if local.lease_told != until {
                local.lease_told = until;
                effects.push(Effect::LeaseChanged { resource, until });
            }
        }
    }

    pub(crate) fn is_data_node(&self) -> bool {
        !self.config.is_witness()
    }
}

/// A replica whose proposal was committed hears of it as that: to learn the same state as news
/// would look like somebody else's.
fn say_once(effects: &mut Effects) {
    let decided: Vec<(String, u64)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Decided { resource, result: Ok(state), .. } => {
                Some((resource.clone(), state.generation))
            }
            _ => None,
        })
        .collect();
    effects.retain(|effect| match effect {
        Effect::Learned { resource, state } => !decided
            .iter()
            .any(|(of, generation)| of == resource && *generation == state.generation),
        _ => true,
    });
}

/// What a node that starts takes for committed before any quorum round: nothing (R14).
fn record_is_enough(accepted: &Option<(Ballot, ClusterState)>) -> Option<(Ballot, ClusterState)> {
    if defect(Defect::RecordTrustedAtStart) { accepted.clone() } else { None }
}

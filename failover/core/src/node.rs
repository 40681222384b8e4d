//! One node of the cluster: the match on inputs, and what follows from what came to be known.
//!
//! ```text
//!  node/messages.rs   what others say, and what is said to them
//!  node/changes.rs    the durable record, proposals, and who is told of what is committed
//!  node/leases.rs     signs of life, and until when this node may act as primary
//! ```

mod changes;
mod leases;
mod messages;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::register::RegisterState;
use replicator_core::{Span, Time};

use crate::acceptor::{Acceptor, Record};
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{Cause, ClusterState, Epoch, Force};
use crate::command::{Asker, Change};
use crate::decision::Office;
use crate::defect::{Defect, defect};
use crate::detector::Detector;
use crate::etcd::{Answer, Ask, EtcdRegister};
use crate::facts::{Facts, Hindrance, Placement};
use crate::hindered::Hindered;
use crate::holder::LeaseHolder;
use crate::lapse::Lapsed;
use crate::message::{Envelope, Message};
use crate::proposer::Proposer;
use crate::recovery::{Recovery, Stranger};
use crate::verdict::Verdict;
use crate::wording::what;

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
    /// Do not give it up after all, as far as that can still be: then the hand-over is refused
    /// ([`Input::HandOverRefused`]), else it goes on.
    KeepOffice {
        /// The resource.
        resource: String,
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
    /// The machine went back to an earlier time with its memory: this process does nothing more,
    /// and is to end as by a crash. The next one finds out what its record is worth (L5).
    WentBack,
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
    /// Why it gives the office to somebody, while it does.
    pub(crate) given_for: String,
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
    pub(crate) troubled: Hindered,
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
    /// [`Effect::WentBack`] was ordered.
    has_gone_back: bool,
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
            troubled: Hindered::default(),
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
            has_gone_back: false,
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
        if self.has_gone_back {
            return;
        }
        match input {
            Input::Received { from, envelope } => self.received(&from, *envelope, effects),
            Input::RecordDurable { sequence } => self.record_durable(sequence, effects),
            Input::ReplicaReported { resource, facts } => {
                let me = self.config.name.clone();
                if self.locals.contains_key(&resource) {
                    self.note_facts(&me, &resource, &facts);
                }
                if let Some(local) = self.locals.get_mut(&resource) {
                    let is_news = |facts: &Facts| {
                        let Facts { role, hindrance, trouble, reach, .. } = facts.clone();
                        (role, hindrance, trouble, reach)
                    };
                    if is_news(&local.facts) != is_news(&facts) {
                        // The others decide by it.
                        self.next_beat = self.now;
                    }
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
        if self.has_gone_back {
            return;
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
        if self.has_gone_back {
            return None;
        }
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

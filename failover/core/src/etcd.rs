//! The register kept by etcd instead of by the nodes themselves: what is asked of etcd, and what
//! follows from its answers. The decisions above it are the same (`decision.rs`).
//!
//! ```text
//!  etcd/store.rs      the keys, what is asked of etcd and what it answers
//!  etcd/watching.rs   the lease keys of others, as this node saw them: when may one be taken?
//!  etcd/holding.rs    the lease key of this node: until when may it act as primary?
//!  etcd/writing.rs    a change becomes one transaction; an open outcome is settled by a read
//!  etcd/verdicts.rs   why the register is refused or not heard of
//! ```
//! SAFETY.md "etcd": the lease of etcd itself is not used, since etcd renews it by itself when its
//! leader changes, and no time stamp of another node is compared. A holder renews its own key, in a
//! transaction that succeeds only while the state is the one that names it; it stops 0.9 times the
//! duration after it *sent* the last renewal that was done. A taker must have seen that key
//! unchanged, by its own reads, for 1.1 times the duration, and takes the office in a transaction
//! that succeeds only if key and state are still those.

mod holding;
mod store;
mod verdicts;
mod watching;
mod writing;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

pub use holding::Holding;
pub use store::{Answer, Ask, Contents, Founder, Kept, Key, LeaseKey, Transaction, Trouble, Value};
pub use verdicts::Alien;
pub use watching::Watching;
use writing::Writing;

use crate::ballot::Ballot;
use crate::cluster::{ClusterState, Epoch};
use crate::node::{Config, Effect, Effects, Node};

/// After a failure etcd is asked again after so long, and so much longer each time.
const PAUSE: Span = Span::from_ms(50);
const PAUSES_MAX: u64 = 5;
/// Renewals that may be under way: one that hangs must not keep the next ones back.
const RENEWALS_MAX: usize = 6;

/// Why etcd was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Purpose {
    /// To see what is there.
    Look,
    /// To know what the first proposal in the queue is to replace.
    Base,
    /// It is the transaction of that proposal.
    Write,
    /// It renews the own lease key.
    Renew,
}

/// Something that etcd was asked and has not answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Asked {
    purpose: Purpose,
    sent: Time,
    /// What was known then: an answer shows at least that.
    known: Known,
}

/// What a read that is sent now must show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Known {
    /// The register of this node's durable record.
    pub epoch: Epoch,
    /// The newest revision that this node, or a node that it hears, knows to be committed.
    pub revision: u64,
}

/// The register as this node reaches it through etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EtcdRegister {
    /// The name of the cluster: another one's keys are refused.
    cluster: String,
    next_number: u64,
    asked: BTreeMap<u64, Asked>,
    /// The newest contents that were read.
    newest: Option<Contents>,
    /// When etcd answered last, by a majority of its own.
    answered_at: Option<Time>,
    /// How often in a row it failed.
    failures: u64,
    /// Why it failed last, and since when it fails.
    trouble: Option<(Trouble, Time)>,
    /// Why what is there is not this cluster's register.
    alien: Option<Alien>,
    /// The transaction of the first proposal, whose outcome is open.
    writing: Option<Writing>,
    look_at: Time,
    renew_at: Time,
    write_at: Time,
    watching: Watching,
    holding: Holding,
}

impl EtcdRegister {
    fn new(cluster: String, process: u64, now: Time) -> Self {
        Self {
            cluster,
            next_number: 0,
            asked: BTreeMap::new(),
            newest: None,
            answered_at: None,
            failures: 0,
            trouble: None,
            alien: None,
            writing: None,
            look_at: now,
            renew_at: now,
            write_at: now,
            watching: Watching::default(),
            holding: Holding::new(process),
        }
    }

    /// When it answered last.
    pub fn answered_at(&self) -> Option<Time> {
        self.answered_at
    }

    /// Why it failed last, and since when; none: the last answer was one.
    pub fn trouble(&self) -> Option<&(Trouble, Time)> {
        self.trouble.as_ref()
    }

    /// What was read last.
    pub(crate) fn newest(&self) -> Option<&Contents> {
        self.newest.as_ref()
    }

    pub(crate) fn alien(&self) -> Option<&Alien> {
        self.alien.as_ref()
    }

    /// The lease keys of others, as this node saw them.
    pub fn watching(&self) -> &Watching {
        &self.watching
    }

    pub(crate) fn until(&self, tenure: u64, resource: &str) -> Option<Time> {
        self.holding.until(tenure, resource)
    }

    pub(crate) fn forget(&mut self, resource: &str) {
        self.holding.forget(resource);
    }

    /// Somebody changed something there: it is looked at now.
    pub(crate) fn changed(&mut self, now: Time) {
        self.look_at = self.look_at.min(now);
    }

    /// The first proposal in the queue is another one.
    pub(crate) fn begin_first(&mut self, now: Time) {
        self.writing = None;
        self.write_at = now;
    }

    fn is_asked(&self, purpose: Purpose) -> bool {
        self.asked.values().any(|asked| asked.purpose == purpose)
    }

    fn is_writing(&self) -> bool {
        self.is_asked(Purpose::Base) || self.is_asked(Purpose::Write)
    }

    fn ask(&mut self, purpose: Purpose, sent: Time, known: Known, ask: Ask) -> (u64, Effect) {
        self.next_number += 1;
        let number = self.next_number;
        self.asked.insert(number, Asked { purpose, sent, known });
        (number, Effect::AskEtcd { number, ask: Box::new(ask) })
    }

    fn failed(&mut self, now: Time, asked: &Asked, trouble: Trouble) {
        self.failures += 1;
        let since = self.trouble.as_ref().map_or(now, |(_, since)| *since);
        self.trouble = Some((trouble, since));
        let again = now + Span(PAUSE.0 * self.failures.min(PAUSES_MAX));
        match asked.purpose {
            Purpose::Look => self.look_at = again,
            Purpose::Renew => self.renew_at = self.renew_at.min(again),
            Purpose::Base | Purpose::Write => self.write_at = again,
        }
    }

    fn answered(&mut self, now: Time) {
        (self.answered_at, self.failures, self.trouble) = (Some(now), 0, None);
    }
}

/// The order of states that etcd keeps: that of their revisions.
fn ballot_of(state: &ClusterState) -> Ballot {
    Ballot { counter: state.revision, ..Ballot::default() }
}

impl Node {
    /// A node that starts, whose register is kept by etcd. Its record says to which register it
    /// belongs and what it has seen of it.
    pub fn start_with_etcd(
        config: Config,
        record: crate::acceptor::Record,
        cluster: String,
        now: Time,
    ) -> Self {
        let process = config.process;
        let mut node = Self::start(config, record, now);
        node.etcd = Some(EtcdRegister::new(cluster, process, now));
        node
    }

    /// The register in etcd, for those who look; none: the nodes keep it themselves.
    pub fn etcd(&self) -> Option<&EtcdRegister> {
        self.etcd.as_ref()
    }

    /// What a read that is sent now must show, or etcd went back.
    fn known_to_all(&self) -> Known {
        let record = self.acceptor.accepted().map_or(0, |state| state.revision);
        let own = self.state().map_or(0, |state| state.revision).max(record);
        let heard = self
            .detector
            .nodes()
            .filter(|(name, _)| self.detector.hears_now(self.now, name))
            .map(|(_, node)| node.heartbeat.revision);
        Known { epoch: self.epoch(), revision: heard.fold(own, u64::max) }
    }

    /// What is due: renewals, looks, and the change that is first in the queue.
    pub(crate) fn go_on_with_etcd(&mut self, effects: &mut Effects) {
        self.give_lost_answers_up();
        self.renew_in_etcd(effects);
        let (now, known) = (self.now, self.known_to_all());
        let beat = self.config.beat(self.lease());
        let is_idle = self.proposer.is_idle();
        let Some(etcd) = &mut self.etcd else { return };
        if now >= etcd.look_at && !etcd.is_asked(Purpose::Look) {
            etcd.look_at = now + beat;
            effects.push(etcd.ask(Purpose::Look, now, known, Ask::Read).1);
        }
        if !is_idle && now >= etcd.write_at && !etcd.is_writing() {
            effects.push(etcd.ask(Purpose::Base, now, known, Ask::Read).1);
        }
    }

    /// The driver answers everything in time; this is for one that does not.
    fn give_lost_answers_up(&mut self) {
        let (now, patience) = (self.now, self.lease());
        let Some(etcd) = &mut self.etcd else { return };
        let lost: Vec<u64> = etcd
            .asked
            .iter()
            .filter(|(_, asked)| now.since(asked.sent) >= patience)
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            let asked = etcd.asked.remove(&number).expect("it was just found");
            etcd.failed(now, &asked, Trouble::no_answer());
        }
    }

    /// When something is due without an answer coming in.
    pub(crate) fn etcd_deadline(&self) -> Option<Time> {
        let etcd = self.etcd.as_ref()?;
        let look = (!etcd.is_asked(Purpose::Look)).then_some(etcd.look_at);
        let renew = (etcd.can_renew() && !self.offices().is_empty()).then_some(etcd.renew_at);
        let write = (!self.proposer.is_idle() && !etcd.is_writing()).then_some(etcd.write_at);
        let lost = etcd.asked.values().map(|asked| asked.sent + self.lease()).min();
        let leases = etcd.watching.next_end(self.now);
        [look, renew, write, lost, leases].into_iter().flatten().min()
    }

    /// etcd answered.
    pub(crate) fn etcd_answered(&mut self, number: u64, answer: Answer, effects: &mut Effects) {
        let now = self.now;
        let Some(etcd) = &mut self.etcd else { return };
        let Some(asked) = etcd.asked.remove(&number) else { return };
        match answer {
            Answer::Failed(trouble) => etcd.failed(now, &asked, trouble),
            Answer::Written { revision } => {
                etcd.answered(now);
                match asked.purpose {
                    Purpose::Renew => etcd.holding.done(now, number),
                    Purpose::Write => self.written(revision, effects),
                    Purpose::Look | Purpose::Base => {}
                }
            }
            Answer::Contents(contents) => self.contents_read(&asked, *contents, effects),
        }
    }

    /// A read, or a transaction that was not done since something had changed.
    fn contents_read(&mut self, asked: &Asked, contents: Contents, effects: &mut Effects) {
        let now = self.now;
        let gap_max = Span(self.lease().0 / 5 * 3);
        let Some(etcd) = &mut self.etcd else { return };
        etcd.answered(now);
        etcd.alien = Alien::find(&etcd.cluster, &contents, asked.known);
        if etcd.alien.is_some() {
            // Nothing of it counts; it may be put right.
            etcd.write_at = now + Span(PAUSE.0 * PAUSES_MAX);
            return;
        }
        let seen_at = if crate::defect::defect(crate::defect::Defect::EtcdSeenWhenSent) {
            asked.sent
        } else {
            now
        };
        etcd.watching.observe(seen_at, gap_max, &contents);
        let is_newer =
            |old: &Contents| old.store != contents.store || old.revision <= contents.revision;
        if etcd.newest.as_ref().is_none_or(is_newer) {
            etcd.newest = Some(contents.clone());
        }
        if asked.purpose == Purpose::Renew {
            // The state is another one: if it still names this process, once more.
            etcd.renew_at = now;
        }
        if let Some((_, state)) = &contents.state {
            self.learn(ballot_of(state), state.clone(), effects);
        }
        if matches!(asked.purpose, Purpose::Base | Purpose::Write) {
            self.proceed(&contents, effects);
        }
    }
}

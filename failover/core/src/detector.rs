//! Who is heard, and what the others say they see.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::ballot::NodeName;
use crate::defect::{Defect, defect};
use crate::known_record::KnownRecord;
pub use crate::known_record::Own;
use crate::message::{Envelope, Heartbeat, RecordSeen};

/// Former processes of a node that are remembered, so that their late messages do not count; and
/// so many acceptors of it.
const FORMER_MAX: usize = 4;

/// One other node as this one hears it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Heard {
    /// When anything of it came in last; `None`: never.
    pub at: Option<Time>,
    /// Its process.
    pub process: u64,
    /// Its newest heartbeat.
    pub heartbeat: Heartbeat,
    /// When that came in.
    pub heartbeat_at: Time,
    /// A heartbeat of its process answers to the own process.
    has_answered: bool,
    /// The way there and back, measured with the last heartbeat.
    pub round_trip: Option<Span>,
    former: Vec<u64>,
    /// The sequence with which its process began.
    began: u64,
    /// The records of its acceptors: last the one for which it speaks now, before that such as it
    /// had, or as others say it has.
    records: Vec<KnownRecord>,
}

/// All other nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Detector {
    nodes: BTreeMap<NodeName, Heard>,
    /// Silence after which a node is lost.
    patience: Span,
}

impl Heard {
    /// Its acceptor; 0: none was named.
    pub fn acceptor(&self) -> u128 {
        self.records.last().map_or(0, |record| record.acceptor)
    }

    /// It lives with an old copy of its acceptor's record (L5).
    pub fn went_back(&self) -> bool {
        self.records.last().is_some_and(|record| record.went_back)
    }

    /// The highest sequence number that its acceptor's record is known to have had.
    pub fn newest_record(&self) -> u64 {
        self.records.last().map_or(0, |record| record.sequence)
    }

    fn record_of(&mut self, acceptor: u128) -> &mut KnownRecord {
        let known = self.records.iter().position(|record| record.acceptor == acceptor);
        let at = known.unwrap_or_else(|| {
            if self.records.len() >= FORMER_MAX {
                self.records.remove(0);
            }
            self.records.insert(0, KnownRecord::new(acceptor));
            0
        });
        &mut self.records[at]
    }

    /// It speaks for this acceptor now.
    fn speaks_for(&mut self, acceptor: u128) {
        self.records.sort_by_key(|record| record.acceptor == acceptor);
    }

    /// Another process of it speaks: nothing that the former one heard or said is its own.
    fn begins(&mut self, envelope: &Envelope) {
        (self.process, self.began) = (envelope.process, envelope.began);
        self.heartbeat = Heartbeat::default();
        self.has_answered = false;
    }
}

impl Detector {
    /// Nobody was heard yet.
    pub fn new(patience: Span) -> Self {
        Self { nodes: BTreeMap::new(), patience }
    }

    /// A message came in. Whether it counts: it comes from the node's present process, whose
    /// acceptor did not go back.
    pub fn hears(&mut self, now: Time, from: &NodeName, envelope: &Envelope, own: Own) -> bool {
        let patience = self.patience;
        let node = self.nodes.entry(from.clone()).or_default();
        let is_other = node.process != envelope.process;
        let is_silent = node.at.is_none_or(|at| now.since(at) >= patience);
        // A late message counts for nothing while a later process speaks. Which of two is the
        // later one is a guess after the own start: who goes on speaking is right.
        if is_other && !is_silent && node.former.contains(&envelope.process) {
            return false;
        }
        let record = node.record_of(envelope.acceptor);
        if defect(Defect::OldRecordVotes) {
            // No process is suspected.
        } else if record.went_back {
            // Its later processes go on from the old copy, however far they come.
            node.speaks_for(envelope.acceptor);
            if is_other {
                node.begins(envelope);
            }
            node.at = Some(now);
            return false;
        } else if is_other && record.is_suspect(own, envelope)
            || !is_other && record.names_less(own, envelope)
        {
            return false;
        }
        record.knows(own, envelope.sequence, envelope.process);
        node.speaks_for(envelope.acceptor);
        if is_other {
            if node.at.is_some() {
                node.former.retain(|process| *process != envelope.process);
                node.former.push(node.process);
                if node.former.len() > FORMER_MAX {
                    node.former.remove(0);
                }
            }
            node.begins(envelope);
        }
        node.at = Some(now);
        true
    }

    /// The process of a node that speaks now; 0: none was heard.
    pub fn process_of(&self, name: &NodeName) -> u64 {
        self.nodes.get(name).map_or(0, |node| node.process)
    }

    /// Whether a node's present process has heard the own one, and said what it knows since.
    pub fn has_answered(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(|node| node.has_answered)
    }

    /// What this node knows of the others' records.
    pub fn records(&self) -> Vec<RecordSeen> {
        self.nodes.keys().filter_map(|name| self.record(name)).collect()
    }

    /// And of one of them.
    pub fn record(&self, name: &NodeName) -> Option<RecordSeen> {
        let record = self.nodes.get(name)?.records.last()?;
        Some(RecordSeen {
            node: name.clone(),
            acceptor: record.acceptor,
            process: record.named_by,
            sequence: record.sequence,
            went_back: record.went_back,
        })
    }

    /// Somebody else knows this of a node's record.
    pub fn told(&mut self, seen: &RecordSeen, own: Own) {
        if defect(Defect::OldRecordVotes) {
            return;
        }
        let node = self.nodes.entry(seen.node.clone()).or_default();
        let (process, began) = (node.process, node.began);
        let record = node.record_of(seen.acceptor);
        record.knows(own, seen.sequence, seen.process);
        record.went_back |= seen.went_back;
        let is_older = record.is_older(process, began) && !record.went_back;
        if is_older && node.at.is_some() && node.acceptor() == seen.acceptor {
            node.record_of(seen.acceptor).suspect(own, process);
            (node.process, node.at) = (0, None);
        }
    }

    /// A heartbeat came in. `is_mine`: its sender heard the own process; `own` is when the
    /// heartbeat left that it echoes.
    pub fn beat(
        &mut self,
        now: Time,
        from: &NodeName,
        heartbeat: Heartbeat,
        (is_mine, own): (bool, Option<Time>),
    ) {
        let Some(node) = self.nodes.get_mut(from) else { return };
        node.has_answered |= is_mine;
        if heartbeat.number <= node.heartbeat.number {
            return;
        }
        if let (Some((_, held)), Some(sent)) = (heartbeat.echo, own) {
            node.round_trip = Some(Span(now.since(sent).0.saturating_sub(held.0)));
        }
        node.heartbeat = heartbeat;
        node.heartbeat_at = now;
    }

    /// What is known of a node.
    pub fn node(&self, name: &NodeName) -> Option<&Heard> {
        self.nodes.get(name)
    }

    /// All that were ever heard.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Heard)> {
        self.nodes.iter()
    }

    /// Whether a node was heard a short time ago.
    pub fn hears_now(&self, now: Time, name: &NodeName) -> bool {
        let at = self.nodes.get(name).and_then(|node| node.at);
        at.is_some_and(|at| now.since(at) < self.patience)
    }

    /// How long ago a node was heard; `None`: never.
    pub fn silence(&self, now: Time, name: &NodeName) -> Option<Span> {
        self.nodes.get(name)?.at.map(|at| now.since(at))
    }

    /// The lease has another length now, and so has the silence after which a node is lost.
    pub fn set_patience(&mut self, patience: Span) {
        self.patience = patience;
    }

    /// Silence after which a node is lost.
    pub fn patience(&self) -> Span {
        self.patience
    }
}

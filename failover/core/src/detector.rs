//! Who is heard, and what the others say they see.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::ballot::NodeName;
use crate::defect::{Defect, defect};
use crate::message::{Envelope, Heartbeat, Message, RecordSeen};

/// Former processes of a node that are remembered, so that their late messages do not count; and
/// so many that named an older record than was seen.
const FORMER_MAX: usize = 4;

/// One other node as this one hears it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Heard {
    /// When anything of it came in last; `None`: never.
    pub at: Option<Time>,
    /// Its process.
    pub process: u64,
    /// Its acceptor.
    pub acceptor: u128,
    /// Its newest heartbeat.
    pub heartbeat: Heartbeat,
    /// When that came in.
    pub heartbeat_at: Time,
    /// A heartbeat of its process answers to the own process.
    has_answered: bool,
    /// The way there and back, measured with the last heartbeat.
    pub round_trip: Option<Span>,
    /// It lives, and its record is older than one that was seen of the same acceptor (L5): what
    /// it promised and accepted is forgotten in part, so it has no vote until it is replaced.
    pub went_back: bool,
    former: Vec<u64>,
    /// The highest sequence of its acceptor's record that was ever named, and by which process.
    sequence: u64,
    named_by: u64,
    /// The highest that any other process of it named.
    named_before: u64,
    /// The own heartbeat before that was known.
    known_since: u64,
    /// The sequence with which its process began.
    began: u64,
    suspects: Vec<Suspect>,
}

/// A process that began with an older record than was seen: late messages of one that is gone, or
/// an acceptor that went back. It is the latter when it answers to what was said since.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Suspect {
    process: u64,
    /// The own heartbeat before.
    since: u64,
}

/// The own process and its last heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Own {
    /// The process.
    pub process: u64,
    /// How many heartbeats it has sent.
    pub beats: u64,
}

/// All other nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Detector {
    nodes: BTreeMap<NodeName, Heard>,
    /// Silence after which a node is lost.
    patience: Span,
}

impl Heard {
    /// The highest sequence number that its acceptor's record is known to have had.
    pub fn newest_record(&self) -> u64 {
        self.sequence
    }

    /// L5: whether this comes from a process that began with an older record than was seen. Every
    /// process begins with what the one before it had made durable, so only one that is no longer
    /// the present one, or whose record went back, names less.
    fn is_suspect(&mut self, own: Own, envelope: &Envelope) -> bool {
        let known = self.suspects.iter().find(|it| it.process == envelope.process).copied();
        let suspect = match known {
            Some(suspect) => suspect,
            None if self.is_older(envelope.process, envelope.began) => {
                self.suspect(own, envelope.process)
            }
            None => return false,
        };
        // No earlier process named more than a later one began with.
        self.went_back |=
            envelope.sequence > self.sequence || own.is_answered(envelope, suspect.since);
        true
    }

    /// L5: whether this names less than was heard of its very process: late words, or a machine
    /// that went back with all its memory. It is the latter when it answers to what was said since.
    fn names_less(&mut self, own: Own, envelope: &Envelope) -> bool {
        let names_less = envelope.sequence < self.sequence && !defect(Defect::NamesLessCounts);
        self.went_back |= names_less && own.is_answered(envelope, self.known_since);
        names_less
    }

    /// Another process of it speaks: nothing that the former one heard or said is its own.
    fn begins(&mut self, envelope: &Envelope) {
        (self.process, self.began) = (envelope.process, envelope.began);
        self.heartbeat = Heartbeat::default();
        self.has_answered = false;
    }

    fn knows(&mut self, own: Own, sequence: u64, process: u64) {
        if self.sequence > sequence {
            return;
        }
        if self.named_by != process {
            (self.named_by, self.named_before) = (process, self.sequence);
        }
        if self.sequence < sequence {
            (self.sequence, self.known_since) = (sequence, own.beats);
        }
    }

    fn is_older(&self, process: u64, began: u64) -> bool {
        let is_newest = self.named_by == process;
        let before = if defect(Defect::GossipMakesNewer) { 0 } else { self.named_before };
        began < if is_newest { before } else { self.sequence }
    }

    fn suspect(&mut self, own: Own, process: u64) -> Suspect {
        let suspect = Suspect { process, since: own.beats };
        self.suspects.push(suspect);
        if self.suspects.len() > FORMER_MAX {
            self.suspects.remove(0);
        }
        suspect
    }
}

impl Own {
    /// Whether a heartbeat answers to one of this process that left later than that one.
    fn is_answered(self, envelope: &Envelope, since: u64) -> bool {
        let Message::Heartbeat(heartbeat) = &envelope.message else { return false };
        heartbeat.echo_of == self.process
            && heartbeat.echo.is_some_and(|(number, _)| since < number)
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
        if node.acceptor != envelope.acceptor {
            node.acceptor = envelope.acceptor;
            (node.sequence, node.named_before) = (0, 0);
            (node.began, node.went_back) = (0, false);
            node.suspects.clear();
        } else if defect(Defect::OldRecordVotes) {
            // No process is suspected.
        } else if node.went_back {
            // Its later processes go on from the old copy, however far they come.
            if is_other {
                node.begins(envelope);
            }
            node.at = Some(now);
            return false;
        } else if is_other && node.is_suspect(own, envelope)
            || !is_other && node.names_less(own, envelope)
        {
            return false;
        }
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
        node.knows(own, envelope.sequence, envelope.process);
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
        let node = self.nodes.get(name).filter(|node| node.acceptor != 0)?;
        Some(RecordSeen {
            node: name.clone(),
            acceptor: node.acceptor,
            process: node.named_by,
            sequence: node.sequence,
            went_back: node.went_back,
        })
    }

    /// Somebody else knows this of a node's record.
    pub fn told(&mut self, seen: &RecordSeen, own: Own) {
        let node = self.nodes.entry(seen.node.clone()).or_default();
        if node.acceptor == 0 {
            node.acceptor = seen.acceptor;
        }
        if node.acceptor != seen.acceptor || defect(Defect::OldRecordVotes) {
            return;
        }
        node.knows(own, seen.sequence, seen.process);
        node.went_back |= seen.went_back;
        let is_older = node.is_older(node.process, node.began);
        if is_older && node.at.is_some() && !node.went_back {
            node.suspect(own, node.process);
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

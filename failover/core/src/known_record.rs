//! L5: what is known of the record of another node's acceptor, and when it is older than that.

use alloc::vec::Vec;

use crate::defect::{Defect, defect};
use crate::message::{Envelope, Message};

/// Processes that named an older record than was seen, as far as they are remembered.
const SUSPECTS_MAX: usize = 4;

/// The record of one acceptor. What is known of it outlasts what comes of another acceptor of the
/// same node, which may be late.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct KnownRecord {
    pub(crate) acceptor: u128,
    /// The node lives, and its record is older than one that was seen of the same acceptor: what it
    /// promised and accepted is forgotten in part, so it has no vote until it is replaced.
    pub(crate) went_back: bool,
    /// The highest sequence that was ever named, and by which process.
    pub(crate) sequence: u64,
    pub(crate) named_by: u64,
    /// The highest that any other process of it named.
    named_before: u64,
    /// The own heartbeat before that was known.
    known_since: u64,
    suspects: Vec<Suspect>,
}

/// A process that began with an older record than was seen: late messages of one that is gone, or
/// an acceptor that went back. It is the latter when it answers to what was said since.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Suspect {
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

impl KnownRecord {
    pub(crate) fn new(acceptor: u128) -> Self {
        Self {
            acceptor,
            went_back: false,
            sequence: 0,
            named_by: 0,
            named_before: 0,
            known_since: 0,
            suspects: Vec::new(),
        }
    }

    /// Whether this comes from a process that began with an older record than was seen. Every
    /// process begins with what the one before it had made durable, so only one that is no longer
    /// the present one, or whose record went back, names less.
    pub(crate) fn is_suspect(&mut self, own: Own, envelope: &Envelope) -> bool {
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

    /// Whether this names less than was heard of its very process: late words, or a machine that
    /// went back with all its memory. It is the latter when it answers to what was said since.
    pub(crate) fn names_less(&mut self, own: Own, envelope: &Envelope) -> bool {
        let names_less = envelope.sequence < self.sequence && !defect(Defect::NamesLessCounts);
        self.went_back |= names_less && own.is_answered(envelope, self.known_since);
        names_less
    }

    /// A process of the acceptor named this, as was heard of it or of others.
    pub(crate) fn knows(&mut self, own: Own, sequence: u64, process: u64) {
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

    /// Whether a process that began with this has less than was named.
    pub(crate) fn is_older(&self, process: u64, began: u64) -> bool {
        let is_newest = self.named_by == process;
        let before = if defect(Defect::GossipMakesNewer) { 0 } else { self.named_before };
        began < if is_newest { before } else { self.sequence }
    }

    pub(crate) fn suspect(&mut self, own: Own, process: u64) -> Suspect {
        let suspect = Suspect { process, since: own.beats };
        self.suspects.push(suspect);
        if self.suspects.len() > SUSPECTS_MAX {
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

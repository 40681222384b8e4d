//! What the checker reports: the kinds of violation and the evidence that goes with each.

use std::fmt;

/// What a read found in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The whole unit is the content of this value id; 0 is a unit of zeroes.
    Value(u64),
    /// Parts of the unit come from different writes.
    Torn,
    /// Content that no write of this history can have produced for this unit.
    Foreign,
}

/// The kinds of violation, each a sentence of the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// An acknowledged write is missing, and no allowed loss of power explains it.
    LostAcknowledged,
    /// A write that a flush or FUA made durable is missing. Nothing allows that.
    LostFlushed,
    /// A value came back after a read had already shown that a newer, acknowledged one replaced it.
    Resurrected,
    /// A value of an unacknowledged write was read, and then it was gone without a newer write.
    Unread,
    /// A unit holds parts of different writes.
    Torn,
    /// A unit holds something that nobody wrote there.
    NeverWritten,
    /// An unacknowledged write of an earlier tenure appeared after the later tenure had served
    /// this unit (or had begun before the write did).
    LateWrite,
    /// A write or flush was acknowledged in a tenure after a later tenure had acknowledged one.
    StaleAck,
}

/// One write as evidence. Times are event numbers of the checker; `None` means "did not happen".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    /// The client's operation id; 0 stands for the initial content.
    pub op: u64,
    /// The value that it wrote; 0 is zeroes.
    pub value: u64,
    /// First unit of the request and the unit after its last.
    pub units: std::ops::Range<u64>,
    /// The tenure in which it started.
    pub tenure: u64,
    /// Event number of its start.
    pub started: u64,
    /// Event number of its acknowledgement.
    pub acked: Option<u64>,
    /// True when an acknowledged flush covered it, or it had FUA and was acknowledged.
    pub flushed: bool,
}

/// One unit (or one acknowledgement) that no correct device could have produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What went wrong.
    pub kind: ViolationKind,
    /// The unit; for [`ViolationKind::StaleAck`] the first unit of the request.
    pub unit: u64,
    /// The operation (read, or acknowledged write) that showed it.
    pub op: u64,
    /// What was read; `None` for a wrong acknowledgement.
    pub seen: Option<Seen>,
    /// The write whose value was seen, when it is known.
    pub seen_write: Option<WriteReport>,
    /// The newest write whose value had to be visible instead, when there is one.
    pub expected: Option<WriteReport>,
}

impl fmt::Display for WriteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.op == 0 {
            return write!(f, "the initial content");
        }
        write!(f, "op {} ", self.op)?;
        match self.value {
            0 => write!(f, "(zeroes)")?,
            value => write!(f, "(value {value})")?,
        }
        write!(f, " units {}..{}", self.units.start, self.units.end)?;
        write!(f, " tenure {} started @{}", self.tenure, self.started)?;
        match self.acked {
            Some(at) => write!(f, " acked @{at}")?,
            None => write!(f, " not acked")?,
        }
        write!(f, "{}", if self.flushed { " flushed" } else { "" })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} unit {} op {}", self.kind, self.unit, self.op)?;
        if let Some(seen) = self.seen {
            write!(f, ": read {seen:?}")?;
        }
        if let Some(write) = &self.seen_write {
            write!(f, ", from {write}")?;
        }
        if let Some(write) = &self.expected {
            write!(f, "; expected {write} or newer")?;
        }
        Ok(())
    }
}

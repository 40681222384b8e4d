//! Everything that can happen to a replica, as facts in the past tense.

use alloc::boxed::Box;
use alloc::string::String;

use crate::block::{BlockDigest, BufId, ByteRange, OpId, PeerIndex, RequestId, SessionId, Ticket};
use crate::command::Command;
use crate::register::RegisterState;
use crate::time::Time;
use crate::wire::Message;

/// A fact the driver tells the core. See [`Replica::step`](crate::Replica::step).
#[derive(Clone, Debug)]
pub enum Input {
    /// A client asked for something. Refused or answered by exactly one
    /// [`Effect::ReplyClient`](crate::Effect::ReplyClient).
    ClientRequested {
        /// The driver's name for the request.
        request: RequestId,
        /// What was asked, already checked against the size of the volume.
        what: ClientRequest,
    },
    /// A disk operation ended.
    DiskDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<DiskOutcome, DiskFailure>,
    },
    /// A connection to a peer is open and both ends have proved that they know the cluster's key.
    PeerConnected {
        /// Which peer (the driver knows it from the authenticated greeting).
        peer: PeerIndex,
        /// The new session; higher than every earlier one of this peer.
        session: SessionId,
        /// The protocol version that both ends speak (`wire::VERSIONS`).
        version: u8,
    },
    /// A frame came in whole, its checksums are right.
    PeerSaid {
        /// From whom.
        peer: PeerIndex,
        /// On which session.
        session: SessionId,
        /// What.
        message: Message,
        /// Its data payload, for the messages that carry one. The core gives it back with
        /// [`Effect::ReleaseBuf`](crate::Effect::ReleaseBuf).
        data: Option<BufId>,
    },
    /// The connection ended or was found broken. Never sent for a session the core closed.
    LinkLost {
        /// To whom.
        peer: PeerIndex,
        /// Which session.
        session: SessionId,
        /// Why, for status.
        why: LinkLoss,
    },
    /// An operator asked for something; answered by one
    /// [`Effect::AnswerOperator`](crate::Effect::AnswerOperator).
    Ordered {
        /// The driver's name for the command.
        ticket: Ticket,
        /// The command.
        command: Command,
    },
    /// The majority decided on an [`Effect::Propose`](crate::Effect::Propose): exactly one for
    /// each.
    Decided {
        /// Which proposal.
        number: u64,
        /// The committed state, or why it was not committed.
        result: Result<Box<RegisterState>, Undecided>,
    },
    /// The newest committed state, as the majority knows it: once after a start, from a quorum read
    /// made since then (R14), and whenever it changes. Only where a majority keeps the register.
    RegisterLearned(Box<RegisterState>),
    /// The lease of this node was granted, prolonged or lost. Only where a majority keeps the
    /// register.
    LeaseChanged {
        /// It lasts to just before this time; `Time(u64::MAX)`: without end (R5d); `None`: no
        /// lease.
        until: Option<Time>,
    },
    /// A deadline of [`Replica::next_deadline`](crate::Replica::next_deadline) has come.
    TimePassed,
}

/// What a client may ask of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ClientRequest {
    /// Read bytes; any alignment. The driver's buffer takes the range aligned out to the block
    /// size.
    Read {
        /// What to read, at most [`limits::IO_BYTES_MAX`](crate::limits::IO_BYTES_MAX).
        range: ByteRange,
        /// Where the data go.
        buf: BufId,
    },
    /// Write bytes; any alignment. The payload lies in the buffer at
    /// `range.start % block_size`, so that the range aligned out starts at the buffer's start.
    Write {
        /// What to write, at most [`limits::IO_BYTES_MAX`](crate::limits::IO_BYTES_MAX).
        range: ByteRange,
        /// The payload.
        buf: BufId,
        /// Answer only when the data are durable on every member.
        fua: bool,
    },
    /// Make everything acknowledged so far durable on every member.
    Flush,
    /// The range may read as zeroes from now on, or stay as it is (R17).
    Trim {
        /// Any length.
        range: ByteRange,
        /// As for a write.
        fua: bool,
    },
    /// The range reads as zeroes from now on. Its unaligned edges the driver writes as data.
    WriteZeroes {
        /// Aligned to the block size; any length.
        range: ByteRange,
        /// As for a write.
        fua: bool,
        /// Whether backing storage may be given back (NBD: not NO_HOLE).
        may_punch: bool,
    },
    /// Which parts of the range are holes; the driver keeps the answer of
    /// [`Effect::MapDisk`](crate::Effect::MapDisk) for the reply.
    Map {
        /// Any length.
        range: ByteRange,
    },
}

/// What a successful disk operation tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOutcome {
    /// Nothing but success.
    Done,
    /// A read for resync: the buffer that the driver chose, and whether it is all zeroes.
    /// The core gives the buffer back with [`Effect::ReleaseBuf`](crate::Effect::ReleaseBuf).
    Read {
        /// The data; none is held when they are all zeroes.
        data: Option<BufId>,
    },
    /// How large the disk is now, see [`Effect::MeasureDisk`](crate::Effect).
    Measured {
        /// Bytes of the device that holds the metadata.
        device_bytes: u64,
        /// Bytes of the disk that holds the data.
        disk_bytes: u64,
    },
    /// A fingerprint of the data area, see [`Effect::TakeFingerprint`](crate::Effect).
    Fingerprint([u8; 32]),
    /// The hashes of the blocks of a range, see [`Effect::DigestDisk`](crate::Effect).
    Digests(Box<[BlockDigest]>),
}

/// Why a disk operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFailure {
    /// The kernel's error number (EIO and whatever else is not named here).
    Io(i32),
    /// No space left on a sparse backing file (ENOSPC, EDQUOT).
    NoSpace,
}

/// Why a proposal is not committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undecided {
    /// It never will be: this is the newest committed state, and not what it was to replace.
    Newer(Box<RegisterState>),
    /// It is not and will not be, but may be proposed again.
    NotNow {
        /// In words, for people: for example, that the lease of the old primary still runs.
        why: String,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkLoss {
    /// The peer closed it, or its process died.
    Closed,
    /// The kernel's error number.
    Io(i32),
    /// A frame was malformed: wrong magic, version, checksum or contents.
    Garbled,
    /// Nothing came for longer than the time-out.
    Silent,
}

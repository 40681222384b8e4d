//! Everything the core may order, as orders in the imperative. Effects of one step are
//! unordered: what must come after a durable write is ordered in the step that learns of it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::block::{BufId, ByteRange, OpId, PeerIndex, RequestId, SessionId, Ticket};
use crate::command::{Answer, Refusal};
use crate::note::Note;
use crate::register::RegisterState;
use crate::room::MetaMove;
use crate::wire::Message;

/// An order to the driver.
///
/// Buffers: an effect that names a buffer holds it until that effect is done (the driver counts).
/// A client's buffer is the driver's again after [`Effect::ReplyClient`] and the last such use;
/// any other buffer after [`Effect::ReleaseBuf`] and the last such use.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Read an aligned range of the data area into the start of the buffer.
    ReadDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Aligned to the block size.
        range: ByteRange,
        /// Where to.
        buf: BufId,
    },
    /// Fill the bytes of the buffer that belong to `aligned` but not to `wanted` from the disk
    /// (the head and tail of an unaligned write). The buffer starts at `aligned.start`.
    ReadEdges {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// What the client writes.
        wanted: ByteRange,
        /// The same aligned out to the block size.
        aligned: ByteRange,
        /// Where to.
        buf: BufId,
    },
    /// Read a range into a buffer that the driver takes from the part of its pool set aside for
    /// resync; the core keeps at most [`limits::RESYNC_WINDOW_BYTES`](crate::limits) in use.
    /// The outcome is [`DiskOutcome::Read`](crate::DiskOutcome).
    ReadForResync {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Aligned to the block size, at most [`limits::IO_BYTES_MAX`](crate::limits).
        range: ByteRange,
    },
    /// Write the start of the buffer to an aligned range of the data area. Not durable when done.
    WriteDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Aligned to the block size.
        range: ByteRange,
        /// Where from.
        buf: BufId,
    },
    /// Make a range read as zeroes. Not durable when done.
    ZeroDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Aligned to the block size.
        range: ByteRange,
        /// Whether the backing storage may be given back.
        may_punch: bool,
    },
    /// Look which parts of the range are holes, for the client's reply.
    MapDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// For which request.
        request: RequestId,
        /// Any alignment.
        range: ByteRange,
    },
    /// Make all writes and zeroes that were done before durable (data area).
    FlushDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
    },
    /// Write metadata and make it durable: done means durable. Offset from the start of the
    /// metadata region; length and offset are multiples of 512, of 4096 where the disk needs it.
    WriteMeta {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Bytes from the start of the metadata region.
        offset: u64,
        /// What.
        bytes: Box<[u8]>,
    },
    /// Look how large the disk is now; the outcome is
    /// [`DiskOutcome::Measured`](crate::DiskOutcome).
    MeasureDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
    },
    /// Move the metadata to the end of a disk that was extended. Nothing else of them is written
    /// meanwhile; from a good answer on, their region is the new one. A failure means that
    /// nothing has changed.
    MoveMeta {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// What goes where.
        to: Box<MetaMove>,
    },
    /// Hash the ends and samples of the data area (R12):
    /// [`metadata::fingerprint_samples`](crate::metadata::fingerprint_samples) says which.
    TakeFingerprint {
        /// Comes back in `DiskDone` with `DiskOutcome::Fingerprint`.
        op: OpId,
        /// Size of the data area.
        size_bytes: u64,
    },
    /// Read a range and hash each of its blocks of
    /// [`DIRTY_BLOCK_BYTES`](crate::block::DIRTY_BLOCK_BYTES), for a verify. The outcome is
    /// [`DiskOutcome::Digests`](crate::DiskOutcome).
    DigestDisk {
        /// Comes back in `DiskDone`.
        op: OpId,
        /// Aligned to the block size, at most [`limits::IO_BYTES_MAX`](crate::limits).
        range: ByteRange,
    },
    /// Send a frame. Frames of one session arrive in the order in which they were ordered, within
    /// a step and across steps.
    SendPeer {
        /// To whom.
        peer: PeerIndex,
        /// Dropped silently when this is no longer the session.
        session: SessionId,
        /// What.
        message: Message,
        /// The payload: the buffer's start, as long as the message says.
        data: Option<BufId>,
    },
    /// End a session after sending what was ordered before. Nothing of it comes in any more.
    ClosePeer {
        /// To whom.
        peer: PeerIndex,
        /// Which.
        session: SessionId,
        /// How soon the driver may connect again.
        retry: Retry,
    },
    /// Answer a client. A read's data are in its buffer, at `range.start % block_size`.
    ReplyClient {
        /// Which request.
        request: RequestId,
        /// Success or what the client is told.
        result: Result<(), ClientError>,
    },
    /// The core no longer needs a buffer it got from `PeerSaid` or `DiskOutcome::Read`.
    ReleaseBuf {
        /// Which.
        buf: BufId,
    },
    /// Answer an operator's command.
    AnswerOperator {
        /// Which command.
        ticket: Ticket,
        /// Done, or refused with the reason.
        result: Result<Answer, Box<Refusal>>,
    },
    /// Clients may be served from now on: open the exports, attach the device (R15: a new
    /// instance for every tenure).
    OpenDevice {
        /// The tenure this instance of the device belongs to.
        tenure: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// The open device is larger from now on: tell those who use it.
    ResizeDevice {
        /// Its size.
        size_bytes: u64,
    },
    /// No client is served any more: refuse new requests, fail the device. Requests still open
    /// have been or will be answered by `ReplyClient`.
    CloseDevice {
        /// Whether it was taken away (deposed) rather than given up.
        forced: bool,
    },
    /// Ask the majority to commit a state. Answered by exactly one
    /// [`Input::Decided`](crate::Input::Decided); until then the outcome is unknown.
    Propose {
        /// The core's name for the proposal.
        number: u64,
        /// What is to be committed.
        next: Box<RegisterState>,
        /// The generation it replaces; in no other may it be committed.
        expected: u64,
        /// An operator's word stands for the end of the old primary's lease.
        forced: bool,
    },
    /// Something worth a log line or a counter.
    Note(Note),
    /// Everything is on disk; the process may close the disk now.
    Stopped,
}

/// When to connect again after a session was closed by the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// At once.
    Now,
    /// After the usual delay.
    Later,
    /// After a long delay: something needs a person (refused, diverged).
    Rarely,
    /// Not before an operator says so.
    Never,
}

/// What a client is told when its request fails; the NBD driver maps it to a wire error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ClientError {
    /// The disk failed and no other replica can help (EIO).
    Io,
    /// The backing file system is full (ENOSPC).
    NoSpace,
    /// The device is not or no longer served by this node (ESHUTDOWN).
    Shutdown,
}

/// The buffer that takes the orders of a step; the caller empties and reuses it.
pub type Effects = Vec<Effect>;

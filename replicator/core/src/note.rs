//! Typed notes: what the driver turns into log lines, history and counters. Cores do not log.

use alloc::boxed::Box;
use alloc::string::String;

use crate::block::{ByteRange, DIRTY_BLOCK_BYTES, PeerIndex};
use crate::input::{DiskFailure, LinkLoss};
use crate::time::Span;
use crate::verify::Findings;

/// Something that happened and that a person may want to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The role changed.
    RoleChanged {
        /// For status and log: `secondary`, `promoting`, `primary`, `demoting`.
        role: &'static str,
        /// Generation of the register copy.
        generation: u64,
    },
    /// A change of the register was committed.
    Committed {
        /// The new generation.
        generation: u64,
        /// What changed, in words.
        what: &'static str,
    },
    /// A session was agreed on.
    PeerJoined {
        /// Who.
        peer: PeerIndex,
        /// In words: leads, follows, idle.
        relation: &'static str,
    },
    /// A session ended.
    PeerLost {
        /// Who.
        peer: PeerIndex,
        /// Why.
        why: LinkLoss,
    },
    /// A peer was refused, or refuses us.
    PeerRefused {
        /// Who.
        peer: PeerIndex,
        /// The reason in words.
        why: String,
    },
    /// A resync began.
    ResyncStarted {
        /// Of whom.
        peer: PeerIndex,
        /// What is to be copied, in bytes.
        bytes: u64,
        /// Why all of it, when it is a full one.
        full_because: Option<&'static str>,
    },
    /// A peer was dropped too often lately: it is brought up to date when it was heard for a while
    /// without a break (P6).
    HeldBack {
        /// Who.
        peer: PeerIndex,
        /// How often it was dropped lately.
        drops: usize,
        /// How long it is to be heard from now on.
        left: Span,
    },
    /// The data area is larger from now on.
    Resized {
        /// Before, in bytes.
        from: u64,
        /// Now.
        to: u64,
    },
    /// The metadata lie at the end of a disk that was extended.
    MetadataMoved {
        /// Bytes of the disk.
        device_bytes: u64,
    },
    /// There is no room to be made of what was added to the disk, or not yet.
    NoRoomMade {
        /// Why, in words.
        why: String,
    },
    /// A resync ended and the peer is a member.
    ResyncFinished {
        /// Of whom.
        peer: PeerIndex,
        /// Payload bytes that were sent for it.
        sent_bytes: u64,
    },
    /// A verify began.
    VerifyStarted {
        /// The node whose copy is compared.
        copy: String,
        /// The primary.
        with: String,
        /// What is to be compared.
        bytes: u64,
        /// Whether differences will be mended.
        repair: bool,
    },
    /// A verify ended.
    VerifyEnded {
        /// The node whose copy was compared.
        copy: String,
        /// The primary.
        with: String,
        /// Why it ended before it was through; none: everything was compared.
        broken: Option<String>,
        /// What it found.
        findings: Box<Findings>,
        /// Whether the blocks that differ are now copied again.
        repairs: bool,
    },
    /// A replica whose copy differed was mended and is a member again.
    VerifyRepaired {
        /// Its node.
        copy: String,
        /// Bytes that were copied again.
        bytes: u64,
    },
    /// A disk operation failed.
    DiskFailed {
        /// What was being done.
        during: &'static str,
        /// Where.
        range: ByteRange,
        /// How.
        why: DiskFailure,
    },
    /// A member is lost and may take over: nothing is acknowledged until it is off for sure or
    /// stands back.
    FenceAwaited {
        /// Who.
        peer: PeerIndex,
    },
    /// The lease of a primary ended: clients wait.
    LeaseLapsed,
    /// It is back and the office is still ours: clients go on, none saw an error.
    LeaseBack {
        /// How long they waited.
        after: Span,
    },
    /// An office ended without a release.
    OfficeLost {
        /// Why, in words.
        why: &'static str,
    },
    /// The majority knows less than this replica's disk (R11c).
    RegisterWentBack {
        /// Generation on the disk.
        here: u64,
        /// Generation of the majority.
        there: u64,
    },
    /// After an unclean start or being deposed, hot extents became dirty blocks.
    HotExtentsMarked {
        /// How many.
        extents: u64,
    },
}

/// Bytes that a number of dirty blocks stands for.
pub fn dirty_bytes(blocks: u64) -> u64 {
    blocks * DIRTY_BLOCK_BYTES
}

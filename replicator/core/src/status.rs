//! What a replica tells about itself: plain values, for the driver to show.

use alloc::string::String;
use alloc::vec::Vec;

use crate::block::{PeerIndex, SessionId};
use crate::command::Refusal;
use crate::register::RegisterState;
use crate::time::Span;
use crate::verify::Findings;

/// A snapshot of a replica for `replctl status` and the metrics.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// `starting`, `secondary`, `promoting`, `primary`, `demoting`, `stopping`, `stopped`.
    pub role: &'static str,
    /// Whether the disk is attached and usable.
    pub has_disk: bool,
    /// `up_to_date`, `outdated`, `inconsistent` (being resynced), `diverged`, `invalid`,
    /// `failed`, `unknown`, `register_went_back` (R11c).
    pub data: &'static str,
    /// Why it could not be promoted without force now, as far as its data go; none where it keeps
    /// the register itself.
    pub hindrance: Option<Refusal>,
    /// The register copy.
    pub register: RegisterState,
    /// This replica's id.
    pub replica: u128,
    /// Size of the data area in bytes, as clients see it.
    pub size_bytes: u64,
    /// How far it may grow here.
    pub room_bytes: u64,
    /// How far that will be when what was added to the disk is zeroed.
    pub making_room_to: Option<u64>,
    /// The size that it is growing to.
    pub resizing_to: Option<u64>,
    /// Client requests inside.
    pub requests: usize,
    /// Why requests wait, the longest wait first; empty when nothing waits.
    pub waits: Vec<Wait>,
    /// The lost member that is to be fenced before this replica goes on alone.
    pub awaits_fence: Option<FenceWait>,
    /// Whether this replica may take over when the primary was fenced: it was in sync with it when
    /// it heard it last, in this process, and has not promised to stand back.
    pub takes_fenced: bool,
    /// Extents of the activity log in use and in all.
    pub log_extents: (u32, u32),
    /// Verifies that are under way, as this replica knows: the primary's own, or as it tells.
    pub verifies: Vec<VerifyStatus>,
    /// Each peer, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
}

/// A member that is lost and may take over, so that nothing is acknowledged without it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FenceWait {
    /// Who.
    pub peer: PeerIndex,
    /// The last session with it: what is found out about it counts for this one only.
    pub session: SessionId,
    /// For how long already.
    pub since: Span,
}

/// Something that waits, and for what.
#[derive(Clone, Debug)]
pub struct Wait {
    /// For whom.
    pub party: Party,
    /// For what, in words: `the acknowledgement of beta`, `the disk`, `the activity log`, ...
    pub what: String,
    /// How long already.
    pub since: Span,
    /// In how long it is given up; none where only the party itself ends it.
    pub left: Option<Span>,
    /// What happens then; without an end in time, what ends the wait. In words.
    pub then: String,
}

/// Who is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Party {
    /// The own disk.
    Disk,
    /// A write of the activity log.
    Log,
    /// A peer: its acknowledgement, or its return.
    Peer,
    /// What a resync waits for.
    Resync,
    /// A majority of the voters.
    Majority,
    /// The lease.
    Lease,
    /// Another request.
    Request,
    /// A peer that is to be off for sure.
    Fence,
    /// A peer that was dropped too often lately and is to be heard without a break (P6).
    HeldBack,
}

impl Party {
    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Log => "activity_log",
            Self::Peer => "peer",
            Self::Resync => "resync",
            Self::Majority => "majority",
            Self::Lease => "lease",
            Self::Request => "request",
            Self::Fence => "fence",
            Self::HeldBack => "held_back",
        }
    }
}

/// A verify that is under way.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct VerifyStatus {
    /// The node whose copy is compared.
    pub copy: String,
    /// Bytes to compare in all.
    pub total_bytes: u64,
    /// Whether differences will be mended.
    pub repair: bool,
    /// What was found so far.
    pub findings: Findings,
}

/// One peer as this replica sees it.
#[derive(Clone, Debug, Default)]
pub struct PeerStatus {
    /// Node name.
    pub node: String,
    /// `disconnected`, `refused`, `connecting`, `idle`, `leads`, `held_back`, `syncing`,
    /// `joining`, `current`.
    pub state: &'static str,
    /// Why it is refused or was lost last, in words; empty when there is nothing to say.
    pub why: String,
    /// How often this primary dropped it lately (P6).
    pub drops: usize,
    /// Its role as it says; empty when not connected.
    pub role: &'static str,
    /// Whether it is in the set.
    pub is_member: bool,
    /// Bytes that it may lack.
    pub dirty_bytes: u64,
    /// Blocks that differ because lineages diverged (R11d).
    pub diverged_blocks: u64,
    /// The size of its data area, and how far that may grow; 0 when not connected.
    pub size_and_room_bytes: (u64, u64),
    /// Bytes to copy when the present resync began, and still to copy.
    pub resync_bytes: (u64, u64),
    /// Payload bytes sent to it for resyncs, and for live writes, since the start.
    pub sent_bytes: (u64, u64),
    /// Payload bytes received from it for resyncs, and for live writes, since the start.
    pub received_bytes: (u64, u64),
    /// Frames sent and not yet acknowledged, and their bytes.
    pub in_flight: (usize, u64),
    /// Those of these bytes that belong to a resync.
    pub in_flight_resync_bytes: u64,
}

//! One peer: its link, what was sent to it and is not acknowledged, what it acknowledged and may
//! lose with its power (R8), and its dirty bitmap.
//!
//! ```text
//!            PeerConnected       greetings agree
//!   Down ------------> Waiting/Greeting ------> Idle | Leading(..) | Following
//!    ^                                                |
//!    +---------------- link lost, closed, refused ----+
//!
//!   Leading: AwaitFollow -> [AwaitShrink] -> [HeldBack]
//!            -> [AwaitPlan -> AwaitSyncReady -> Syncing -> Joining] -> Current [-> Leaving]
//! ```

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bitmap::DirtyBitmap;
use crate::block::{ByteRange, ReplicaId, SessionId};
use crate::defect::{Defect, defect};
use crate::flapping::Flapping;
use crate::limits::{PEER_WINDOW_BYTES, PEER_WINDOW_FRAMES};
use crate::resync::Resync;
use crate::status::VerifyStatus;
use crate::time::Time;
use crate::verify::Verify;
use crate::wire::Hello;

/// The state of the connection to a peer.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Link {
    /// No connection.
    Down,
    /// Connected; our greeting waits until old writes have ended (R2d) or our role is settled.
    Waiting,
    /// Our greeting is out; this is what it said.
    Greeting(Box<Hello>),
    /// Greetings agreed, neither is primary.
    Idle,
    /// We are primary.
    Leading(Lead),
    /// The peer is primary.
    Following,
}

/// How far a follower is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Lead {
    /// It makes tenure and register durable and sends its bitmap.
    AwaitFollow,
    /// It is a member that lacks something: it must leave the set first (R8).
    AwaitShrink,
    /// It was dropped too often lately: it has to be heard without a break first (P6).
    HeldBack { since: Time, until: Time },
    /// Our record of a full resync becomes durable.
    AwaitPlan,
    /// It records that it is being resynced.
    AwaitSyncReady,
    /// It is being resynced.
    Syncing,
    /// It gets every write and its acknowledgement is required (R4b).
    Joining(Join),
    /// A member that lacks nothing.
    Current,
    /// It asked to leave and gets no new writes: everything it has becomes durable, and it leaves
    /// the set.
    Leaving {
        /// What it has is durable.
        flushed: bool,
    },
}

/// The steps of R4 after the bitmap is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Join {
    /// Frames sent before its acknowledgement was required are outstanding: up to this one.
    Draining(u64),
    /// One flush that covers everything it received.
    Flushing,
    /// The coming generation becomes durable there.
    Recording(u64),
    /// It is, and another change of the register is under way, or the majority declined this one.
    Waiting,
    /// Proposed; required until the outcome is known.
    Proposed,
}

/// What a peer says of its room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum RoomThere {
    /// It has what its greeting says.
    NotAsked,
    /// It makes more.
    Comes,
    /// It has made what it can.
    Made,
}

/// A frame that was sent and not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Outstanding {
    pub(crate) sent_at: Time,
    pub(crate) what: Sent,
}

/// What a frame was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Sent {
    /// A client's write or zeroes; `request` while it waits for this acknowledgement.
    Write { request: Option<usize>, range: ByteRange, fua: bool },
    /// A flush for the barrier with this number; `mark` is the end of the volatile list then.
    Flush { purpose: FlushPurpose, mark: u64 },
    /// A step of the resync.
    Resync { range: ByteRange },
    /// For the read that waits for it (R5e).
    Echo { request: usize },
    /// A step of the verify with this number.
    Verify { number: u64, range: ByteRange },
}

/// Who waits for a peer's flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum FlushPurpose {
    /// A barrier of client flushes or of the activity log.
    Barrier(u64),
    /// Resync blocks become durable there: so many of the list to clear.
    Resync(usize),
    /// R4c.
    Join,
    /// The peer leaves.
    Leave,
    /// The peer takes over from a primary whose disk failed.
    Heir,
}

/// One peer.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Peer {
    pub(crate) node: String,
    pub(crate) link: Link,
    pub(crate) session: SessionId,
    /// The protocol version of that session.
    pub(crate) version: u8,
    /// An operator wants no connection.
    pub(crate) disconnected: bool,
    /// Greetings agreed at least once since the start ("No witness").
    pub(crate) spoken: bool,
    /// Whether it may take over by a fence, as far as is known here; see `fenced.rs`.
    pub(crate) may_take: bool,
    /// It was here since our start, with good data, in the incarnation in which it is a member.
    pub(crate) kept_caches: bool,
    /// Its greeting of the present session.
    pub(crate) hello: Option<Box<Hello>>,
    /// Why it was lost or refused last.
    pub(crate) why: String,
    pub(crate) refused: bool,
    pub(crate) diverged_blocks: u64,
    pub(crate) last_heard: Time,
    pub(crate) last_sent: Time,
    pub(crate) bitmap: DirtyBitmap,
    pub(crate) resync: Option<Resync>,
    pub(crate) verify: Option<Verify>,
    /// How many there were.
    pub(crate) verifies: u64,
    /// Verifies under way that it tells of, as the primary.
    pub(crate) told: Vec<VerifyStatus>,
    /// Blocks that a repair copies again; 0 when none is under way.
    pub(crate) mending_blocks: u64,
    /// Their bits are on their way to the disk.
    pub(crate) marks_unsaved: bool,
    /// Since when it is to make a larger data area durable.
    pub(crate) resize_asked: Option<Time>,
    /// Whether it has made what room it can for a growth of the volume.
    pub(crate) room: RoomThere,
    pub(crate) flapping: Flapping,
    next_seq: u64,
    first_seq: u64,
    outstanding: VecDeque<Option<Outstanding>>,
    pub(crate) in_flight_frames: usize,
    pub(crate) in_flight_bytes: u64,
    /// Those of them that belong to a resync.
    pub(crate) in_flight_resync_bytes: u64,
    volatile: VecDeque<ByteRange>,
    /// Number of the first entry of `volatile`, counted since the session began.
    volatile_first: u64,
    /// When the volatile list was last empty or bounded by a flush.
    pub(crate) volatile_since: Time,
    pub(crate) sent_resync_bytes: u64,
    pub(crate) sent_write_bytes: u64,
    pub(crate) received_resync_bytes: u64,
    pub(crate) received_write_bytes: u64,
}

impl Peer {
    pub(crate) fn new(node: String, bitmap: DirtyBitmap) -> Self {
        Self {
            node,
            link: Link::Down,
            session: SessionId(0),
            version: 0,
            disconnected: false,
            spoken: false,
            may_take: false,
            kept_caches: false,
            hello: None,
            why: String::new(),
            refused: false,
            diverged_blocks: 0,
            last_heard: Time(0),
            last_sent: Time(0),
            bitmap,
            resync: None,
            verify: None,
            verifies: 0,
            told: Vec::new(),
            mending_blocks: 0,
            marks_unsaved: false,
            resize_asked: None,
            room: RoomThere::NotAsked,
            flapping: Flapping::default(),
            next_seq: 1,
            first_seq: 1,
            outstanding: VecDeque::with_capacity(PEER_WINDOW_FRAMES),
            in_flight_frames: 0,
            in_flight_bytes: 0,
            in_flight_resync_bytes: 0,
            volatile: VecDeque::with_capacity(1024),
            volatile_first: 0,
            volatile_since: Time(0),
            sent_resync_bytes: 0,
            sent_write_bytes: 0,
            received_resync_bytes: 0,
            received_write_bytes: 0,
        }
    }

    /// The replica it greeted as; NONE when not connected.
    pub(crate) fn replica(&self) -> ReplicaId {
        self.hello.as_ref().map_or(ReplicaId::NONE, |hello| hello.replica)
    }

    /// Whether every write needs its acknowledgement.
    pub(crate) fn is_required(&self) -> bool {
        matches!(self.link, Link::Leading(Lead::Current | Lead::Joining(_)))
            && !(defect(Defect::JoiningNotRequired)
                && matches!(self.link, Link::Leading(Lead::Joining(_))))
    }

    /// Whether it gets writes at all.
    pub(crate) fn gets_writes(&self) -> bool {
        matches!(self.link, Link::Leading(Lead::Syncing | Lead::Current | Lead::Joining(_)))
    }

    /// Whether it may hold what was acknowledged and is not durable there.
    pub(crate) fn holds_frames(&self) -> bool {
        self.gets_writes() || matches!(self.link, Link::Leading(Lead::Leaving { .. }))
    }

    /// Whether one more write fits the bounded window.
    pub(crate) fn has_window(&self, bytes: u64) -> bool {
        self.in_flight_frames < PEER_WINDOW_FRAMES / 2
            && (self.in_flight_bytes == 0 || self.in_flight_bytes + bytes <= PEER_WINDOW_BYTES)
    }

    /// Numbers a frame and remembers it until it is acknowledged.
    pub(crate) fn record_sent(&mut self, sent_at: Time, what: Sent) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.outstanding.push_back(Some(Outstanding { sent_at, what }));
        self.in_flight_frames += 1;
        self.in_flight_bytes += what.bytes();
        self.in_flight_resync_bytes += what.resync_bytes();
        seq
    }

    /// The number the next frame will get.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether every frame before `seq` is acknowledged.
    pub(crate) fn all_acknowledged_before(&self, seq: u64) -> bool {
        self.first_seq >= seq
    }

    /// Takes a frame out of the outstanding ones; `None` for one that is not outstanding.
    pub(crate) fn acknowledge(&mut self, seq: u64) -> Option<Outstanding> {
        let index = usize::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        let done = self.outstanding.get_mut(index)?.take()?;
        while let Some(None) = self.outstanding.front() {
            self.outstanding.pop_front();
            self.first_seq += 1;
        }
        self.in_flight_frames -= 1;
        self.in_flight_bytes -= done.what.bytes();
        self.in_flight_resync_bytes -= done.what.resync_bytes();
        Some(done)
    }

    /// When the oldest unacknowledged frame was sent.
    pub(crate) fn oldest_outstanding(&self) -> Option<Time> {
        self.outstanding.front().and_then(|entry| entry.as_ref()).map(|entry| entry.sent_at)
    }

    /// Ends a session's bookkeeping: everything that was not acknowledged.
    pub(crate) fn drain_outstanding(&mut self) -> impl Iterator<Item = Outstanding> + use<> {
        self.next_seq = 1;
        self.first_seq = 1;
        self.in_flight_frames = 0;
        self.in_flight_bytes = 0;
        self.in_flight_resync_bytes = 0;
        core::mem::take(&mut self.outstanding).into_iter().flatten()
    }

    /// The peer acknowledged blocks that it may lose with its power.
    pub(crate) fn add_volatile(&mut self, now: Time, range: ByteRange) {
        if self.volatile.is_empty() {
            self.volatile_since = now;
        }
        self.volatile.push_back(range);
    }

    /// How many ranges may be lost with its power.
    pub(crate) fn volatile_len(&self) -> usize {
        self.volatile.len()
    }

    /// The end of the volatile list, to be given to [`Peer::flushed`] when a flush that starts
    /// now is acknowledged.
    pub(crate) fn volatile_mark(&self) -> u64 {
        self.volatile_first + self.volatile.len() as u64
    }

    /// A flush that started at `mark` is acknowledged.
    pub(crate) fn flushed(&mut self, now: Time, mark: u64) {
        while self.volatile_first < mark && self.volatile.pop_front().is_some() {
            self.volatile_first += 1;
        }
        self.volatile_since = now;
    }

    /// R3, R8: what it acknowledged and may have lost is dirty from now on.
    pub(crate) fn volatile_to_dirty(&mut self) {
        while let Some(range) = self.volatile.pop_front() {
            if defect(Defect::VolatileForgotten) {
                continue;
            }
            self.bitmap.insert(range.dirty_blocks());
        }
        self.volatile_first = 0;
    }
}

impl Sent {
    fn bytes(&self) -> u64 {
        match self {
            Self::Write { range, .. } | Self::Resync { range } => range.length,
            Self::Flush { .. } | Self::Echo { .. } | Self::Verify { .. } => 0,
        }
    }

    fn resync_bytes(&self) -> u64 {
        if let Self::Resync { range } = self { range.length } else { 0 }
    }
}

//! The way of a write on a secondary: frames of the leader are applied in the order in which they
//! overlap, and acknowledged when the disk has them.

use alloc::collections::VecDeque;

use crate::block::{BufId, ByteRange, PeerIndex, SessionId, Ticket};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::flush::FlushWaiter;
use crate::input::DiskFailure;
use crate::mirror::Warmth;
use crate::note::Note;
use crate::replica::{Purpose, Replica};
use crate::wire::Message;

/// The leader this replica follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Following {
    pub(crate) peer: PeerIndex,
    pub(crate) session: SessionId,
    pub(crate) tenure: u64,
    /// Register and tenure are durable: frames may be applied (R2a).
    pub(crate) ready: bool,
    /// An operator waits for its answer about a verify.
    pub(crate) verify_asked: Option<Ticket>,
    /// Reads for verifies that failed in this session; the first are noted.
    pub(crate) verify_failures: usize,
}

/// One frame being applied.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Applied {
    seq: u64,
    what: Apply,
    session: SessionId,
    /// Its number in order of arrival.
    arrival: u64,
    submitted: bool,
    /// Its extents must be hot in the own log first (`mirror.rs`).
    needs_log: bool,
}

impl Applied {
    /// Not on its way to the disk yet.
    pub(crate) fn waits(&self) -> bool {
        !self.submitted
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
enum Apply {
    Write {
        range: ByteRange,
        buf: BufId,
        fua: bool,
    },
    Zero {
        range: ByteRange,
        may_punch: bool,
        fua: bool,
    },
    Flush,
    /// Read for a verify.
    Digest {
        range: ByteRange,
    },
}

impl Apply {
    fn range(&self) -> ByteRange {
        match *self {
            Self::Write { range, .. } | Self::Zero { range, .. } | Self::Digest { range } => range,
            Self::Flush => ByteRange::default(),
        }
    }
}

/// Frames in order of arrival, to know what a flush has to wait for.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Arrivals {
    first: u64,
    done: VecDeque<bool>,
}

impl Arrivals {
    fn begin(&mut self) -> u64 {
        self.done.push_back(false);
        self.first + self.done.len() as u64 - 1
    }

    fn end(&mut self, arrival: u64) {
        self.done[(arrival - self.first) as usize] = true;
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.first += 1;
        }
    }

    /// Whether everything that came before has ended.
    fn is_first(&self, arrival: u64) -> bool {
        self.first == arrival
    }
}

impl Replica {
    /// A data frame or flush of the leader.
    pub(crate) fn apply_frame(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        message: &Message,
        data: Option<BufId>,
        effects: &mut Effects,
    ) {
        let (tenure, seq, what) = match (message, data) {
            (&Message::Write { tenure, seq, range, fua }, Some(buf)) => {
                self.peers[usize::from(peer.0)].received_write_bytes += range.length;
                (tenure, seq, Apply::Write { range, buf, fua })
            }
            (&Message::ResyncData { tenure, seq, range }, Some(buf)) => {
                self.peers[usize::from(peer.0)].received_resync_bytes += range.length;
                (tenure, seq, Apply::Write { range, buf, fua: false })
            }
            (&Message::Zero { tenure, seq, range, may_punch, fua }, None) => {
                (tenure, seq, Apply::Zero { range, may_punch, fua })
            }
            (&Message::ResyncZero { tenure, seq, range }, None) => {
                (tenure, seq, Apply::Zero { range, may_punch: true, fua: false })
            }
            (&Message::Flush { tenure, seq }, None) => (tenure, seq, Apply::Flush),
            (&Message::Verify { tenure, seq, range }, None) => {
                (tenure, seq, Apply::Digest { range })
            }
            _ => return self.misbehaved(peer, "a data frame without its payload", effects),
        };
        let follows = self.follows(peer, session, tenure);
        let range = what.range();
        let fits = range.end() <= self.sizes.durable && range.is_aligned(self.block_bytes());
        let floods = self.applied.len() >= crate::limits::PEER_WINDOW_FRAMES;
        if !follows || !fits || floods {
            if let Some(buf) = data {
                effects.push(Effect::ReleaseBuf { buf });
            }
            let why = if fits { "a write out of its tenure" } else { "a write out of bounds" };
            return self.misbehaved(peer, why, effects);
        }
        let is_resync = matches!(message, Message::ResyncData { .. } | Message::ResyncZero { .. });
        let is_read = matches!(what, Apply::Digest { .. });
        let needs_log = !is_read && self.mark_for_others(peer, range, is_resync);
        let arrival = self.arrivals.begin();
        if is_read {
            // No flush waits for it.
            self.arrivals.end(arrival);
        }
        let frame = Applied { seq, what, session, arrival, submitted: false, needs_log };
        let key = self.applied.insert(frame);
        self.applied_order.push_back(key);
        self.applied_waiting += 1;
        // It changes nothing for those that wait already.
        self.submit_applied(self.applied_order.len() - 1, effects);
    }

    fn follows(&self, peer: PeerIndex, session: SessionId, tenure: u64) -> bool {
        self.following.is_some_and(|leader| {
            leader.ready
                && leader.peer == peer
                && leader.session == session
                && leader.tenure == tenure
        })
    }

    /// R5e: the leader asks whether it still is one. From its own takeover on a replica has no
    /// session that could ask (R2b).
    pub(crate) fn echo_asked(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        (tenure, seq): (u64, u64),
        effects: &mut Effects,
    ) {
        if !self.follows(peer, session, tenure) {
            return self.misbehaved(peer, "an echo out of its tenure", effects);
        }
        self.send(peer, Message::Ack { seq }, None, effects);
    }

    /// Submits what can be, when extents became hot or got room.
    pub(crate) fn submit_waiting(&mut self, effects: &mut Effects) {
        if self.applied_waiting > 0 {
            self.submit_applied(0, effects);
        }
    }

    /// Submits what overlaps nothing that came before it, of the frames from this place on.
    fn submit_applied(&mut self, from: usize, effects: &mut Effects) {
        let mut asked = false;
        for at in from..self.applied_order.len() {
            let key = self.applied_order[at];
            let frame = &self.applied[key];
            if frame.submitted {
                continue;
            }
            let range = frame.what.range();
            let waits = match frame.what {
                Apply::Flush => {
                    !self.arrivals.is_first(frame.arrival) && !defect(Defect::FlushOvertakesWrites)
                }
                _ if defect(Defect::OverlapOnSecondary) => false,
                _ => self
                    .applied_order
                    .iter()
                    .take(at)
                    .any(|&earlier| self.applied[earlier].what.range().overlaps(range)),
            };
            if waits {
                continue;
            }
            if self.applied[key].needs_log {
                match self.warm(range) {
                    Warmth::Hot => self.log.acquire(range),
                    Warmth::Asked => {
                        asked = true;
                        continue;
                    }
                    Warmth::NoRoom => {
                        // The first that waits gets the room that there will be.
                        asked = true;
                        break;
                    }
                }
            }
            self.applied[key].submitted = true;
            self.applied_waiting -= 1;
            match self.applied[key].what {
                Apply::Write { range, buf, .. } => {
                    let op = self.ops.begin(Purpose::Applied(key));
                    effects.push(Effect::WriteDisk { op, range, buf });
                }
                Apply::Zero { range, may_punch, .. } => {
                    let op = self.ops.begin(Purpose::Applied(key));
                    effects.push(Effect::ZeroDisk { op, range, may_punch });
                }
                Apply::Flush => self.flush_disk(FlushWaiter::Applied(key), effects),
                Apply::Digest { range } => {
                    let op = self.ops.begin(Purpose::AppliedDigest(key));
                    effects.push(Effect::DigestDisk { op, range });
                }
            }
        }
        if asked {
            self.keep_log(effects);
        }
    }

    /// The disk finished a frame.
    pub(crate) fn applied_done(
        &mut self,
        key: usize,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let fua = match self.applied[key].what {
            Apply::Write { buf, fua, .. } => {
                effects.push(Effect::ReleaseBuf { buf });
                fua
            }
            Apply::Zero { fua, .. } => fua,
            Apply::Flush | Apply::Digest { .. } => false,
        };
        if let Err(why) = result {
            let range = self.applied[key].what.range();
            effects.push(Effect::Note(Note::DiskFailed { during: "replicated write", range, why }));
            self.forget_applied(key);
            self.secondary_disk_failed(why, effects);
            return;
        }
        if fua {
            self.flush_disk(FlushWaiter::Applied(key), effects);
        } else {
            self.acknowledge_applied(key, effects);
        }
    }

    /// The flush a frame waited for ended.
    pub(crate) fn applied_flushed(
        &mut self,
        key: usize,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        if let Err(why) = result {
            let range = ByteRange::default();
            effects.push(Effect::Note(Note::DiskFailed { during: "flush", range, why }));
            self.forget_applied(key);
            self.secondary_disk_failed(why, effects);
            return;
        }
        self.acknowledge_applied(key, effects);
    }

    fn acknowledge_applied(&mut self, key: usize, effects: &mut Effects) {
        self.answer_applied(key, |seq| Message::Ack { seq }, effects);
    }

    /// Answers a frame that is done.
    pub(crate) fn answer_applied(
        &mut self,
        key: usize,
        answer: impl FnOnce(u64) -> Message,
        effects: &mut Effects,
    ) {
        let (seq, session) = (self.applied[key].seq, self.applied[key].session);
        self.forget_applied(key);
        if let Some(leader) = self.following.filter(|leader| leader.session == session) {
            self.send(leader.peer, answer(seq), None, effects);
        }
        if self.applied_waiting > 0 {
            self.submit_applied(0, effects);
        }
        self.applied_drained(effects);
    }

    pub(crate) fn applied_range(&self, key: usize) -> ByteRange {
        self.applied[key].what.range()
    }

    fn forget_applied(&mut self, key: usize) {
        let frame = self.applied.remove(key);
        if frame.needs_log && frame.submitted {
            self.log.release(frame.what.range());
        }
        self.applied_waiting -= usize::from(!frame.submitted);
        if !matches!(frame.what, Apply::Digest { .. }) {
            self.arrivals.end(frame.arrival);
        }
        let at = self.applied_order.iter().position(|&other| other == key);
        self.applied_order.remove(at.expect("a frame is in its order"));
    }

    /// The session ended: what is not on its way to the disk is dropped; the rest must end before
    /// a new session begins (R2d).
    pub(crate) fn drop_unsubmitted(&mut self, effects: &mut Effects) {
        if defect(Defect::TakerStillApplies) {
            return;
        }
        let waiting: alloc::vec::Vec<usize> = self
            .applied_order
            .iter()
            .copied()
            .filter(|&key| !self.applied[key].submitted)
            .collect();
        for key in waiting {
            if let Apply::Write { buf, .. } = self.applied[key].what {
                effects.push(Effect::ReleaseBuf { buf });
            }
            self.forget_applied(key);
        }
    }

    /// A secondary whose disk failed leaves at once: it holds nothing any more.
    fn secondary_disk_failed(&mut self, why: DiskFailure, effects: &mut Effects) {
        // A full backing file is not a broken disk: after a resync it may go on.
        if !matches!(why, DiskFailure::NoSpace) {
            self.disk_failed = true;
        }
        if let Some(leader) = self.following {
            self.send(leader.peer, Message::DiskFailed, None, effects);
            let at = usize::from(leader.peer.0);
            self.peers[at].why = "the disk of this replica failed".into();
            self.close(at, Retry::Rarely, effects);
        }
        self.applied_drained(effects);
    }
}

//! The way of a client's request on the primary: admission, overlap order, activity log, disk and
//! peers, acknowledgement.
//!
//! ```text
//!  admitted -> queued (overlap, log, peer window) -> [edges read] -> running on disk and peers
//!    -> [own flush for FUA] -> held while acknowledgements are suspended -> replied
//! ```

use alloc::vec::Vec;

use crate::block::{ByteRange, PeerIndex, RequestId};
use crate::defect::{Defect, defect};
use crate::effect::{ClientError, Effect, Effects};
use crate::flush::FlushWaiter;
use crate::input::{ClientRequest, DiskFailure};
use crate::limits::{EXTENT_BYTES, REQUESTS_MAX, ZERO_BYTES_MAX};
use crate::note::Note;
use crate::peer::{Link, Sent};
use crate::replica::{Purpose, Replica, Role};
use crate::time::Time;
use crate::wire::Message;

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Stage {
    /// Waits for an overlapping request, the activity log, or room towards a peer.
    Queued,
    /// Its edges are read.
    Edges,
    /// On disk and peers.
    Running,
    /// Done everywhere, waits for the own flush (FUA) or a barrier (flush).
    Flushing,
    /// Done; acknowledgements are suspended.
    Held,
}

/// What a queued request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Blocked {
    Overlap,
    Log,
    Window(PeerIndex),
}

/// A client's request inside the replica.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Request {
    id: RequestId,
    pub(crate) what: ClientRequest,
    pub(crate) since: Time,
    pub(crate) stage: Stage,
    pub(crate) blocked: Blocked,
    /// The part being done, aligned out to the block size.
    range: ByteRange,
    /// What is left of a long zeroing after this part.
    rest: ByteRange,
    /// The own disk has not finished it.
    local: bool,
    /// Peers whose acknowledgement is missing, a bit each.
    pub(crate) awaits: u8,
    failed: Option<ClientError>,
}

impl Request {
    fn fua(&self) -> bool {
        match self.what {
            ClientRequest::Write { fua, .. }
            | ClientRequest::Trim { fua, .. }
            | ClientRequest::WriteZeroes { fua, .. } => fua,
            _ => false,
        }
    }

    fn changes_data(&self) -> bool {
        matches!(
            self.what,
            ClientRequest::Write { .. }
                | ClientRequest::Trim { .. }
                | ClientRequest::WriteZeroes { .. }
        )
    }
}

/// Ranges in use by requests and by steps of resyncs and verifies. Two that overlap never run
/// together unless both only read.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct ActiveRanges {
    ranges: Vec<(ByteRange, Use)>,
}

/// How a range is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Use {
    /// By a client's read.
    Read,
    /// By a client's write: R5b, and the order of overlapping writes.
    Write,
    /// By a resync step between read and send (R4f).
    Copy,
    /// By a step of a verify, until both copies are read.
    Compare,
}

impl ActiveRanges {
    /// Whether a new use of the range has to wait.
    pub(crate) fn conflicts(&self, range: ByteRange, new: Use) -> bool {
        self.ranges.iter().any(|&(used, by)| conflict(by, new) && used.overlaps(range))
    }

    pub(crate) fn insert(&mut self, range: ByteRange, by: Use) {
        self.ranges.push((range, by));
    }

    pub(crate) fn remove(&mut self, range: ByteRange, by: Use) {
        let at = self.ranges.iter().position(|&entry| entry == (range, by));
        self.ranges.swap_remove(at.expect("the range is in use"));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

fn conflict(one: Use, other: Use) -> bool {
    let both = |a, b| (one, other) == (a, b) || (one, other) == (b, a);
    if defect(Defect::ReadOfWriteInFlight) && both(Use::Read, Use::Write)
        || defect(Defect::ResyncOverLiveWrite) && both(Use::Copy, Use::Write)
        || defect(Defect::VerifyOverLiveWrite) && both(Use::Compare, Use::Write)
        || defect(Defect::OverlapOnPrimary) && both(Use::Write, Use::Write)
    {
        return false;
    }
    one == Use::Write || other == Use::Write
}

impl Replica {
    /// A client asked for something.
    pub(crate) fn client_requested(
        &mut self,
        id: RequestId,
        what: ClientRequest,
        effects: &mut Effects,
    ) {
        if !matches!(self.role, Role::Primary) || self.requests.len() >= REQUESTS_MAX * 2 {
            effects.push(Effect::ReplyClient { request: id, result: Err(ClientError::Shutdown) });
            return;
        }
        let block = self.block_bytes();
        let (range, rest) = match what {
            ClientRequest::Read { range, .. } | ClientRequest::Write { range, .. } => {
                (range.align_out(block), ByteRange::default())
            }
            ClientRequest::Map { range } => (range, ByteRange::default()),
            ClientRequest::Flush => (ByteRange::default(), ByteRange::default()),
            ClientRequest::Trim { range, .. } => self.trim_range(range),
            ClientRequest::WriteZeroes { range, .. } => self.slice_zeroes(range),
        };
        assert!(range.end() <= self.sizes.served, "request {id:?} beyond the end: {range:?}");
        let key = self.requests.insert(Request {
            id,
            what,
            since: self.now,
            stage: Stage::Queued,
            blocked: Blocked::Overlap,
            range,
            rest,
            local: false,
            awaits: 0,
            failed: None,
        });
        match what {
            ClientRequest::Flush => {
                self.requests[key].stage = Stage::Flushing;
                self.waiting_flushes.push(key);
                self.start_client_barrier(effects);
            }
            // A trim without a whole block, or where not all replicas can, is a no-op (R17).
            _ if range.length == 0 => self.complete_part(key, effects),
            _ => {
                self.queue.push_back(key);
                // It changes nothing for those that wait already.
                self.try_start(self.queue.len() - 1, effects);
                self.keep_log(effects);
            }
        }
    }

    /// R17: unaligned edges of a trim are no-ops; all of it is, when one backing cannot punch.
    fn trim_range(&self, range: ByteRange) -> (ByteRange, ByteRange) {
        let inner = range.align_in(self.block_bytes().max(crate::block::DIRTY_BLOCK_BYTES));
        if !self.can_punch_everywhere() || inner.length == 0 {
            return (ByteRange::default(), ByteRange::default());
        }
        self.slice_zeroes(inner)
    }

    /// The first part of a zeroing, and the rest. Parts other than the ends are aligned, an
    /// unaligned end is a part of its own because it is a write with edges.
    fn slice_zeroes(&self, range: ByteRange) -> (ByteRange, ByteRange) {
        let extents = u64::from(self.superblock.log_extents) / 16;
        let most = match defect(Defect::ZeroesNotSliced) {
            true => range.length,
            false => ZERO_BYTES_MAX.min(extents * EXTENT_BYTES),
        };
        let length = range.length.min(most);
        let part = ByteRange::new(range.start, length);
        (part, ByteRange::new(part.end(), range.length - length))
    }

    /// Starts what can start, in order of arrival: nothing overtakes what it overlaps.
    pub(crate) fn start_queued(&mut self, effects: &mut Effects) {
        if !self.role.serves() {
            return;
        }
        let mut at = 0;
        while at < self.queue.len() {
            if !self.try_start(at, effects) {
                at += 1;
            }
        }
        self.keep_log(effects);
    }

    /// The same when a range or room in a window became free. Who waits for the activity log still
    /// does: a durable log block or an eviction starts everything that can. With many cold writes
    /// waiting, looking at all of them for each that ends was a fifth of the daemon's time.
    pub(crate) fn start_released(&mut self, effects: &mut Effects) {
        if !self.role.serves() {
            return;
        }
        if self.resync_may_go_on {
            // A resync step that waits for this range comes before the next client's write.
            self.go_on_with_resync(effects);
        }
        let mut at = 0;
        while at < self.queue.len() {
            let waits_for_log = self.requests[self.queue[at]].blocked == Blocked::Log;
            if waits_for_log || !self.try_start(at, effects) {
                at += 1;
            }
        }
        self.keep_log(effects);
    }

    /// What [`Replica::start_released`] relies on.
    pub(crate) fn nobody_waits_for_nothing(&self) -> bool {
        self.queue.iter().all(|&key| {
            let request = &self.requests[key];
            request.blocked != Blocked::Log || !self.log.is_hot(request.range)
        })
    }

    /// Starts the queued request at this place, unless something blocks it.
    fn try_start(&mut self, at: usize, effects: &mut Effects) -> bool {
        let key = self.queue[at];
        match self.why_blocked(key, at) {
            Some(Blocked::Log) if self.metadata_failed => {
                self.queue.remove(at);
                let request = self.requests.remove(key);
                let result = Err(ClientError::Io);
                effects.push(Effect::ReplyClient { request: request.id, result });
                true
            }
            Some(blocked) => {
                self.requests[key].blocked = blocked;
                false
            }
            None => {
                self.queue.remove(at);
                self.start_request(key, effects);
                true
            }
        }
    }

    fn why_blocked(&mut self, key: usize, at: usize) -> Option<Blocked> {
        let request = &self.requests[key];
        let range = request.range;
        let use_ = if request.changes_data() { Use::Write } else { Use::Read };
        let behind = self.queue.iter().take(at).any(|&earlier| {
            let earlier = &self.requests[earlier];
            let by = if earlier.changes_data() { Use::Write } else { Use::Read };
            conflict(by, use_) && earlier.range.overlaps(range)
        });
        if behind || self.active.conflicts(range, use_) {
            return Some(Blocked::Overlap);
        }
        if use_ == Use::Read {
            return None;
        }
        if let Some(full) =
            self.peers.iter().position(|peer| peer.gets_writes() && !peer.has_window(range.length))
        {
            return Some(Blocked::Window(PeerIndex(full as u8)));
        }
        if !self.log.is_hot(range) {
            self.log_keeper.starved |= !self.log.want(range);
            if !self.log.is_hot(range) {
                return Some(Blocked::Log);
            }
        }
        None
    }

    fn start_request(&mut self, key: usize, effects: &mut Effects) {
        let request = &mut self.requests[key];
        let range = request.range;
        request.stage = Stage::Running;
        request.local = true;
        match request.what {
            ClientRequest::Read { buf, .. } => {
                self.active.insert(range, Use::Read);
                let op = self.ops.begin(Purpose::Request(key));
                effects.push(Effect::ReadDisk { op, range, buf });
                self.confirm_read(key, effects);
            }
            ClientRequest::Map { .. } => {
                self.active.insert(range, Use::Read);
                let request = request.id;
                let op = self.ops.begin(Purpose::Request(key));
                effects.push(Effect::MapDisk { op, request, range });
                self.confirm_read(key, effects);
            }
            ClientRequest::Write { range: wanted, buf, .. } => {
                self.active.insert(range, Use::Write);
                self.log.acquire(range);
                if wanted == range {
                    self.submit_write(key, effects);
                } else {
                    request.stage = Stage::Edges;
                    let op = self.ops.begin(Purpose::Request(key));
                    effects.push(Effect::ReadEdges { op, wanted, aligned: range, buf });
                }
            }
            ClientRequest::Trim { .. } | ClientRequest::WriteZeroes { .. } => {
                self.active.insert(range, Use::Write);
                self.log.acquire(range);
                self.submit_write(key, effects);
            }
            ClientRequest::Flush => unreachable!("a flush has no range"),
        }
    }

    /// R5e: nobody can have taken over before the read came in when every member that could
    /// still follows after that. A read needs nothing else of the others, so this goes on beside
    /// the disk.
    fn confirm_read(&mut self, key: usize, effects: &mut Effects) {
        if !self.config.confirms_reads || defect(Defect::ReadsNotConfirmed) {
            return;
        }
        let tenure = self.register.tenure;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if peer.is_required() {
                let seq = peer.record_sent(self.now, Sent::Echo { request: key });
                self.requests[key].awaits |= 1 << at;
                self.send(PeerIndex(at as u8), Message::Echo { tenure, seq }, None, effects);
            }
        }
    }

    /// The disk and every replica that counts get the write in the same turn.
    fn submit_write(&mut self, key: usize, effects: &mut Effects) {
        let request = &mut self.requests[key];
        request.stage = Stage::Running;
        let (range, fua) = (request.range, request.fua());
        let request_what = request.what;
        let (buf, may_punch) = match request.what {
            ClientRequest::Write { buf, .. } => (Some(buf), false),
            ClientRequest::WriteZeroes { may_punch, .. } => (None, may_punch),
            _ => (None, true),
        };
        let op = self.ops.begin(Purpose::Request(key));
        effects.push(match buf {
            Some(buf) => Effect::WriteDisk { op, range, buf },
            None => Effect::ZeroDisk { op, range, may_punch },
        });
        let blocks = range.dirty_blocks();
        let tenure = self.register.tenure;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let resync_will_copy =
                peer.resync.as_ref().is_some_and(|resync| resync.will_copy(blocks.clone()));
            if !peer.gets_writes() || resync_will_copy {
                // It lacks this write from now on. The extent is hot, so this survives a crash;
                // it becomes a durable bit before the extent leaves the log (R9).
                if !defect(Defect::BitNotSet) {
                    peer.bitmap.insert(blocks.clone());
                }
                continue;
            }
            if defect(Defect::TrimOnOneSide) && matches!(request_what, ClientRequest::Trim { .. }) {
                continue;
            }
            let fua = fua && !defect(Defect::FuaOfOneSide);
            let required = peer.is_required();
            let sent = Sent::Write { request: required.then_some(key), range, fua };
            let seq = peer.record_sent(self.now, sent);
            peer.sent_write_bytes += if buf.is_some() { range.length } else { 0 };
            if required {
                self.requests[key].awaits |= 1 << at;
            }
            let message = match buf {
                Some(_) => Message::Write { tenure, seq, range, fua },
                None => Message::Zero { tenure, seq, range, may_punch, fua },
            };
            self.send(PeerIndex(at as u8), message, buf, effects);
        }
    }

    /// The own disk finished its part of a request.
    pub(crate) fn request_disk_done(
        &mut self,
        key: usize,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let request = &mut self.requests[key];
        let forgives = defect(Defect::FailedWriteAcknowledged) && request.changes_data();
        if let Err(why) = result
            && !forgives
        {
            let error = client_error(why);
            request.failed.get_or_insert(error);
            let note = Note::DiskFailed {
                during: if request.changes_data() { "write" } else { "read" },
                range: request.range,
                why,
            };
            effects.push(Effect::Note(note));
            self.local_write_failed(key, why, effects);
        } else if self.requests[key].stage == Stage::Edges && self.role.serves() {
            self.submit_write(key, effects);
            return;
        }
        let request = &mut self.requests[key];
        if request.stage != Stage::Edges
            && request.failed.is_none()
            && request.changes_data()
            && request.fua()
        {
            request.stage = Stage::Flushing;
            self.flush_disk(FlushWaiter::Request(key), effects);
            return;
        }
        request.local = false;
        self.check_request(key, effects);
    }

    /// R16: when another member holds everything, a primary whose disk fails hands over. Else the
    /// failed write differs between the replicas, so its blocks are dirty until a resync.
    fn local_write_failed(&mut self, key: usize, why: DiskFailure, effects: &mut Effects) {
        let request = &self.requests[key];
        if !request.changes_data() || request.stage == Stage::Edges {
            return;
        }
        let blocks = request.range.dirty_blocks();
        if matches!(why, DiskFailure::Io(_)) {
            self.primary_disk_failed(effects);
        }
        if self.hands_disk_over() {
            // The heir is still to flush. The extent is hot: what differs there is marked when
            // this replica steps down (R9).
            return;
        }
        for at in 0..self.peers.len() {
            self.peers[at].bitmap.insert(blocks.clone());
        }
        for at in 0..self.peers.len() {
            if matches!(self.peers[at].link, Link::Leading(_)) {
                self.drop_session(at, "a write failed on the primary's disk", effects);
            }
        }
    }

    /// The flush for a FUA request ended.
    pub(crate) fn request_flushed(
        &mut self,
        key: usize,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let request = &mut self.requests[key];
        request.local = false;
        if let Err(why) = result {
            request.failed.get_or_insert(client_error(why));
        }
        self.check_request(key, effects);
    }

    /// A barrier made everything durable for a flush.
    pub(crate) fn request_durable(&mut self, key: usize, effects: &mut Effects) {
        self.check_request(key, effects);
    }

    /// A barrier failed.
    pub(crate) fn fail_request(&mut self, key: usize, why: DiskFailure, effects: &mut Effects) {
        self.requests[key].failed.get_or_insert(client_error(why));
        self.check_request(key, effects);
    }

    /// A peer acknowledged a request, or no longer counts.
    pub(crate) fn request_acknowledged(&mut self, key: usize, peer: usize, effects: &mut Effects) {
        self.requests[key].awaits &= !(1 << peer);
        self.check_request(key, effects);
    }

    fn check_request(&mut self, key: usize, effects: &mut Effects) {
        let request = &self.requests[key];
        let early = defect(Defect::AckBeforeOwnDisk)
            && request.stage == Stage::Running
            && request.changes_data();
        if (!request.local || early) && request.awaits == 0 {
            self.complete_part(key, effects);
        }
    }

    /// A request, or a part of it, is done on every replica that counts.
    fn complete_part(&mut self, key: usize, effects: &mut Effects) {
        let stuck = self.metadata_failed && self.role.serves() && !self.members_complete();
        let hands_over = self.role.serves() && self.hands_disk_over();
        let request = &mut self.requests[key];
        if stuck && (request.changes_data_or_flushes() || self.config.confirms_reads) {
            // The member that is missing can never leave the set.
            request.failed.get_or_insert(ClientError::Io);
        }
        let changed = request.changes_data() && request.stage != Stage::Edges;
        let waits = if request.failed.is_some() {
            // R16: while the office goes to another replica not even a failure is told. R5b: what
            // a failed write may have left on the own disk is not read while a member lacks it.
            hands_over || changed && self.role.serves() && !stuck && !self.acks_allowed()
        } else if request.changes_data_or_flushes() || self.config.confirms_reads {
            // The end of a session, also of all with the office, ends the wait for its member.
            !self.acks_allowed()
        } else {
            // A read: no acknowledgement of others is needed, only the lease (R5a).
            self.role.serves() && !self.reads_allowed()
        };
        if waits {
            let request = &mut self.requests[key];
            if request.stage != Stage::Held {
                request.stage = Stage::Held;
                self.held.push(key);
            }
            return;
        }
        let request = &mut self.requests[key];
        let more = request.rest.length > 0 && request.failed.is_none() && self.role.serves();
        self.release_range(key);
        if more {
            let rest = self.requests[key].rest;
            let (range, rest) = self.slice_zeroes(rest);
            let request = &mut self.requests[key];
            (request.range, request.rest, request.stage) = (range, rest, Stage::Queued);
            request.blocked = Blocked::Overlap;
            self.queue.push_back(key);
        } else {
            let request = self.requests.remove(key);
            let result = request.failed.map_or(Ok(()), Err);
            effects.push(Effect::ReplyClient { request: request.id, result });
        }
        self.start_released(effects);
        self.requests_drained(effects);
    }

    fn release_range(&mut self, key: usize) {
        let request = &self.requests[key];
        if request.range.length == 0 {
            return;
        }
        if request.changes_data() {
            self.active.remove(request.range, Use::Write);
            self.log.release(request.range);
            self.resync_may_go_on = true;
        } else {
            self.active.remove(request.range, Use::Read);
        }
    }

    /// Answers are allowed again: what was held is answered, as far as it may.
    pub(crate) fn answer_held(&mut self, effects: &mut Effects) {
        let (acks, reads) = (self.acks_allowed(), self.reads_allowed());
        if !(acks || reads && self.by_majority()) {
            return;
        }
        for key in core::mem::take(&mut self.held) {
            let may = if self.requests[key].changes_data_or_flushes() { acks } else { reads };
            if may {
                self.requests[key].stage = Stage::Running;
                self.complete_part(key, effects);
            } else {
                self.held.push(key);
            }
        }
    }

    /// The office was taken away: every request fails, for ever (R15). Those on the disk are
    /// answered when the disk is done with them.
    pub(crate) fn fail_requests(&mut self, effects: &mut Effects) {
        if defect(Defect::OldInstanceGoesOn) {
            return;
        }
        for key in core::mem::take(&mut self.queue) {
            let request = self.requests.remove(key);
            let result = Err(ClientError::Shutdown);
            effects.push(Effect::ReplyClient { request: request.id, result });
        }
        for key in core::mem::take(&mut self.waiting_flushes) {
            self.requests[key].failed = Some(ClientError::Shutdown);
            self.complete_part(key, effects);
        }
        self.held.clear();
        let all: Vec<usize> = self.requests.iter().map(|(key, _)| key).collect();
        for key in all {
            self.requests[key].failed = Some(ClientError::Shutdown);
            self.requests[key].awaits = 0;
            let request = &self.requests[key];
            let waits_for_peers = request.stage == Stage::Running && !request.local;
            if request.stage == Stage::Held || waits_for_peers {
                self.check_request(key, effects);
            }
        }
    }

    /// The metadata cannot be written and there is no other copy (R16): what would need them fails,
    /// reads and writes to hot extents go on.
    pub(crate) fn fail_blocked(&mut self, effects: &mut Effects) {
        let requests = &self.requests;
        let is_cold = |key: &usize| requests[*key].blocked == Blocked::Log;
        let cold: Vec<usize> = self.queue.iter().copied().filter(is_cold).collect();
        self.queue.retain(|key| !cold.contains(key));
        for key in cold {
            let request = self.requests.remove(key);
            let result = Err(ClientError::Io);
            effects.push(Effect::ReplyClient { request: request.id, result });
        }
        for key in core::mem::take(&mut self.held) {
            self.requests[key].stage = Stage::Running;
            self.complete_part(key, effects);
        }
    }

    /// Whether zeroes can be punched on every replica in reach (R17).
    fn can_punch_everywhere(&self) -> bool {
        self.config.can_punch
            && self
                .peers
                .iter()
                .filter(|peer| peer.gets_writes())
                .all(|peer| peer.hello.as_ref().is_some_and(|hello| hello.can_punch))
    }
}

impl Request {
    fn changes_data_or_flushes(&self) -> bool {
        self.changes_data() || matches!(self.what, ClientRequest::Flush)
    }
}

fn client_error(why: DiskFailure) -> ClientError {
    match why {
        DiskFailure::Io(_) => ClientError::Io,
        DiskFailure::NoSpace => ClientError::NoSpace,
    }
}

//! Resync on the primary: dirty blocks are read, sent, and cleared when they are durable on the
//! peer (R4, R10). The read-and-send of a block excludes client writes to it (R4f); once it is
//! sent, client writes follow it on the same ordered session.

use alloc::vec::Vec;
use core::ops::Range;

use crate::bitmap::Blocks;
use crate::block::{BufId, ByteRange, DIRTY_BLOCK_BYTES, PeerIndex, SessionId};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::input::{DiskFailure, DiskOutcome};
use crate::limits::{
    RESYNC_FLUSH_BYTES, RESYNC_STEP_BYTES, RESYNC_WINDOW_BYTES, RESYNC_YIELDING_BYTES,
};
use crate::note::{Note, dirty_bytes};
use crate::peer::{FlushPurpose, Lead, Link, Sent};
use crate::replica::{Purpose, Replica};
use crate::request::Use;
use crate::time::{Span, Time};
use crate::wire::Message;

/// A resync of one peer.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Resync {
    /// Blocks still to be read and sent. What is not here goes to the peer as it is written.
    to_copy: Blocks,
    cursor: u64,
    /// Steps being read: they hold their range.
    reading: usize,
    /// Bytes read or sent and not yet acknowledged.
    in_flight_bytes: u64,
    /// Acknowledged, not yet durable there.
    to_clear: Vec<ByteRange>,
    to_clear_bytes: u64,
    flushing: bool,
    /// Not before this time: a block could not be read.
    paused_until: Time,
    pub(crate) total_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Resync {
    pub(crate) fn new(dirty: &Blocks) -> Self {
        Self {
            to_copy: dirty.clone(),
            cursor: 0,
            reading: 0,
            in_flight_bytes: 0,
            to_clear: Vec::new(),
            to_clear_bytes: 0,
            flushing: false,
            paused_until: Time(0),
            total_bytes: dirty_bytes(dirty.count()),
            sent_bytes: 0,
        }
    }

    /// The volume has so many blocks from now on; the new ones need no copying.
    pub(crate) fn grow(&mut self, blocks: u64) {
        self.to_copy.grow(blocks);
    }

    /// Whether all of these blocks are still to be copied: then a write to them need not be sent.
    pub(crate) fn will_copy(&self, blocks: Range<u64>) -> bool {
        !self.to_copy.is_empty() && self.to_copy.contains_all(blocks)
    }

    /// Whether everything is sent, and waits to be durable there.
    pub(crate) fn is_clearing(&self) -> bool {
        self.to_copy.is_empty() && self.in_flight_bytes == 0
    }

    /// Bytes not yet acknowledged.
    pub(crate) fn remaining_bytes(&self) -> u64 {
        dirty_bytes(self.to_copy.count()) + self.in_flight_bytes
    }

    /// When a paused resync goes on.
    pub(crate) fn deadline(&self, now: Time) -> Option<Time> {
        (self.paused_until > now).then_some(self.paused_until)
    }
}

impl Replica {
    /// Starts steps for every peer that is being resynced, as far as its window and the clients'
    /// ranges allow.
    pub(crate) fn go_on_with_resync(&mut self, effects: &mut Effects) {
        self.resync_may_go_on = false;
        for at in 0..self.peers.len() {
            if matches!(self.peers[at].link, Link::Leading(Lead::Syncing)) {
                self.start_steps(at, effects);
                self.check_resync(at, effects);
            }
        }
        self.go_on_with_verify(effects);
    }

    fn start_steps(&mut self, at: usize, effects: &mut Effects) {
        let now = self.now;
        let data_bytes = self.superblock.data_bytes;
        let most_blocks = RESYNC_STEP_BYTES / DIRTY_BLOCK_BYTES;
        let window = match self.requests.is_empty() {
            true => RESYNC_WINDOW_BYTES,
            false => RESYNC_YIELDING_BYTES,
        };
        let mut skipped = None;
        loop {
            let peer = &mut self.peers[at];
            let session = peer.session;
            let Some(resync) = &mut peer.resync else { return };
            if resync.in_flight_bytes + RESYNC_STEP_BYTES > window || resync.paused_until > now {
                return;
            }
            let Some(run) = resync.to_copy.next_run(resync.cursor, most_blocks) else {
                if resync.cursor == 0 || resync.to_copy.is_empty() {
                    return;
                }
                resync.cursor = 0;
                continue;
            };
            let start = run.start * DIRTY_BLOCK_BYTES;
            let end = (run.end * DIRTY_BLOCK_BYTES).min(data_bytes);
            let range = ByteRange::new(start, end - start);
            resync.cursor = run.end;
            if self.active.conflicts(range, Use::Copy) {
                // A client writes there now: come back when it is done.
                if skipped.is_some_and(|first| first <= run.start) && resync.cursor >= run.end {
                    return;
                }
                skipped.get_or_insert(run.start);
                continue;
            }
            resync.to_copy.remove(run);
            resync.reading += 1;
            resync.in_flight_bytes += range.length;
            self.active.insert(range, Use::Copy);
            let peer = PeerIndex(at as u8);
            let op = self.ops.begin(Purpose::Resync { peer, session, range });
            effects.push(Effect::ReadForResync { op, range });
        }
    }

    /// A step was read: send it, and let clients write there again.
    pub(crate) fn resync_read(
        &mut self,
        (peer, session, range): (PeerIndex, SessionId, ByteRange),
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        self.active.remove(range, Use::Copy);
        let at = usize::from(peer.0);
        let now = self.now;
        let tenure = self.register.tenure;
        let is_current = self.peers[at].session == session && self.peers[at].resync.is_some();
        match result {
            Ok(DiskOutcome::Read { data }) if is_current => {
                let to = &mut self.peers[at];
                let seq = to.record_sent(now, Sent::Resync { range });
                let resync = to.resync.as_mut().expect("checked");
                resync.reading -= 1;
                let message = match data {
                    Some(_) => {
                        resync.sent_bytes += range.length;
                        to.sent_resync_bytes += range.length;
                        Message::ResyncData { tenure, seq, range }
                    }
                    None => Message::ResyncZero { tenure, seq, range },
                };
                self.send(peer, message, data, effects);
                release(data, effects);
            }
            Ok(DiskOutcome::Read { data }) => release(data, effects),
            Ok(_) => unreachable!("a resync read returns data"),
            Err(why) => {
                effects.push(Effect::Note(Note::DiskFailed { during: "resync read", range, why }));
                if is_current {
                    let resync = self.peers[at].resync.as_mut().expect("checked");
                    resync.reading -= 1;
                    resync.in_flight_bytes -= range.length;
                    resync.to_copy.insert(range.dirty_blocks());
                    resync.paused_until = now + READ_RETRY;
                }
            }
        }
        self.start_queued(effects);
        self.go_on_with_resync(effects);
        self.requests_drained(effects);
    }

    /// The peer has a step on its disk, not yet durably.
    pub(crate) fn resync_acknowledged(&mut self, at: usize, range: ByteRange) {
        if let Some(resync) = &mut self.peers[at].resync {
            resync.in_flight_bytes -= range.length;
            if defect(Defect::ClearedBeforeDurable) {
                self.peers[at].bitmap.remove(range.dirty_blocks());
                self.resync_may_go_on = true;
                return;
            }
            resync.to_clear.push(range);
            resync.to_clear_bytes += range.length;
        }
        self.resync_may_go_on = true;
    }

    /// The peer's flush made so many steps durable: only now their bits are cleared (R10).
    pub(crate) fn resync_flushed(&mut self, at: usize, steps: usize, effects: &mut Effects) {
        let peer = &mut self.peers[at];
        let Some(resync) = &mut peer.resync else { return };
        for range in resync.to_clear.drain(..steps) {
            resync.to_clear_bytes -= range.length;
            peer.bitmap.remove(range.dirty_blocks());
        }
        resync.flushing = false;
        self.check_resync(at, effects);
    }

    /// Flushes the target now and then, and at the end goes on to make it a member.
    fn check_resync(&mut self, at: usize, effects: &mut Effects) {
        let peer = &mut self.peers[at];
        let Some(resync) = &mut peer.resync else { return };
        if resync.flushing {
            return;
        }
        let sent_all = resync.to_copy.is_empty() && resync.in_flight_bytes == 0;
        if !resync.to_clear.is_empty() && (sent_all || resync.to_clear_bytes >= RESYNC_FLUSH_BYTES)
        {
            resync.flushing = true;
            let steps = resync.to_clear.len();
            self.send_flush(PeerIndex(at as u8), FlushPurpose::Resync(steps), effects);
        } else if sent_all {
            debug_assert_eq!(resync.reading, 0);
            assert!(
                peer.bitmap.blocks().is_empty(),
                "resync of {} is through and {} blocks are dirty",
                peer.node,
                peer.bitmap.blocks().count()
            );
            self.start_joining(at, effects);
        }
    }
}

const READ_RETRY: Span = Span::from_ms(5_000);

fn release(data: Option<BufId>, effects: &mut Effects) {
    if let Some(buf) = data {
        effects.push(Effect::ReleaseBuf { buf });
    }
}

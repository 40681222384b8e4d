//! How metadata become durable: the superblock's two copies one after the other, and pages of
//! the dirty bitmaps. One of each at a time, so that an older state never lands on a newer one.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::metadata::{Layout, Superblock};
use crate::replica::{Purpose, Replica};

/// What waits for a superblock update, or a set of bitmap pages, to be durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// Hot extents of an unclean end are durable dirty bits.
    BitsRecovered,
    /// The recovery of the start is complete.
    Recovered,
    /// The replica is a plain secondary again after it was deposed.
    Deposed,
    /// A change of the register is committed (the authority is this node).
    Committed,
    /// Ready to follow the leader of this session.
    FollowReady(crate::SessionId),
    /// Ready to be resynced by the leader of this session.
    SyncReady(crate::SessionId),
    /// Told the leader of this session that the coming generation is durable.
    GrowReady(crate::SessionId, u64),
    /// A leader's plan for a full resync is recorded; tell the follower.
    FullPlanned(crate::PeerIndex, crate::SessionId),
    /// The peer's register was taken over.
    Adopted,
    /// An operator's command is done; meet the peers again with the new state.
    AnswerAndReconnect(crate::Ticket),
    /// The bitmaps are saved for an orderly stop.
    StopClean,
    /// Everything is on disk: the replica may stop.
    Stopped,
    /// Bits of extents that leave the activity log.
    Evict,
    /// Bits of all hot extents, before the log is emptied at a release.
    Release,
}

/// The superblock on its way to the disk.
#[derive(Debug)]
pub(crate) struct SuperblockWriter {
    sequence: u64,
    /// Which copy is being written, with its contents.
    writing: Option<(usize, alloc::boxed::Box<[u8]>)>,
    /// Told when the update being written is durable.
    waiting: Vec<After>,
    /// Told when the next one is.
    queued: Vec<After>,
    /// Where the copies lie in the region.
    places: [u64; 2],
}

impl SuperblockWriter {
    /// `newest` is the copy that has the sequence: an update begins with the other one, which may
    /// be torn, so that one copy verifies at every moment (R12).
    pub(crate) fn new(layout: &Layout, sequence: u64, newest: usize) -> Self {
        Self {
            sequence,
            writing: None,
            waiting: Vec::new(),
            queued: Vec::new(),
            places: [layout.superblocks[1 - newest], layout.superblocks[newest]],
        }
    }

    /// Whether an update is under way or due.
    pub(crate) fn is_busy(&self) -> bool {
        self.writing.is_some()
    }
}

/// Bitmap pages on their way to the disk, one set after the other.
#[derive(Debug, Default)]
pub(crate) struct PageWriter {
    /// Pages of the present set that are not durable.
    pending: usize,
    present: Option<After>,
    queued: VecDeque<(Vec<Range<u64>>, After)>,
}

impl Replica {
    /// Orders that the superblock as it is now becomes durable, and what follows then. Changes
    /// made until the write starts are in it too.
    pub(crate) fn persist(&mut self, after: After, effects: &mut Effects) {
        self.superblock_writer.queued.push(after);
        if !self.superblock_writer.is_busy() {
            self.start_superblock(effects);
        }
    }

    fn start_superblock(&mut self, effects: &mut Effects) {
        let writer = &mut self.superblock_writer;
        debug_assert!(writer.waiting.is_empty());
        core::mem::swap(&mut writer.waiting, &mut writer.queued);
        writer.sequence += 1;
        self.superblock.sequence = writer.sequence;
        let bytes = self.superblock.encode();
        let effect = Effect::WriteMeta {
            op: self.ops.begin(Purpose::Superblock),
            offset: writer.places[0],
            bytes: bytes.clone(),
        };
        writer.writing = Some((0, bytes));
        effects.push(effect);
    }

    /// A superblock copy is durable: the other one follows, then those who waited.
    pub(crate) fn superblock_written(&mut self, effects: &mut Effects) {
        let writer = &mut self.superblock_writer;
        let (copy, bytes) = writer.writing.take().expect("a superblock write was ordered");
        if copy == 0 && !defect(Defect::OneCopyWritten) {
            effects.push(Effect::WriteMeta {
                op: self.ops.begin(Purpose::Superblock),
                offset: writer.places[1],
                bytes: bytes.clone(),
            });
            writer.writing = Some((1, bytes));
            return;
        }
        let waiting = core::mem::take(&mut writer.waiting);
        if !writer.queued.is_empty() {
            self.start_superblock(effects);
        }
        for after in waiting {
            self.continue_after(after, effects);
        }
    }

    /// Orders that all bits of these blocks, for every peer, become durable, and what follows.
    pub(crate) fn save_pages(
        &mut self,
        blocks: Vec<Range<u64>>,
        after: After,
        effects: &mut Effects,
    ) {
        self.pages.queued.push_back((blocks, after));
        if self.pages.present.is_none() {
            self.start_pages(effects);
        }
    }

    fn start_pages(&mut self, effects: &mut Effects) {
        let Some((blocks, after)) = self.pages.queued.pop_front() else { return };
        self.pages.present = Some(after);
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            let start = self.layout.bitmaps[slot].start;
            for range in &blocks {
                while let Some((page, bytes)) = peer.bitmap.take_unsaved_page(range) {
                    self.pages.pending += 1;
                    effects.push(Effect::WriteMeta {
                        op: self.ops.begin(Purpose::BitmapPage),
                        offset: start + page * crate::bitmap::PAGE_BYTES as u64,
                        bytes,
                    });
                }
            }
        }
        if self.pages.pending == 0 {
            self.pages_saved(effects);
        }
    }

    /// One bitmap page is durable.
    pub(crate) fn page_written(&mut self, effects: &mut Effects) {
        self.pages.pending -= 1;
        if self.pages.pending == 0 {
            self.pages_saved(effects);
        }
    }

    fn pages_saved(&mut self, effects: &mut Effects) {
        let after = self.pages.present.take().expect("a set of pages was being saved");
        self.continue_after(after, effects);
        if self.pages.present.is_none() {
            self.start_pages(effects);
        }
    }

    /// The superblock, for those who only look.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}

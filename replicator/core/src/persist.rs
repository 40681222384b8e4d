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
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// Hot extents of an unclean end are durable dirty bits.
    BitsRecovered,
    /// The recovery of the start is complete.
    Recovered,
    /// The bits of a replica that lost its office.
    Deposed,
    /// It is a plain secondary again.
    SteppedDown,
    /// The change of the register with this number is committed (the authority is this node).
    Committed(u64),
    /// Ready to follow the leader of this session.
    FollowReady(crate::SessionId),
    /// What was hot under another leader is dirty, before the leader of this session is followed.
    MirrorSaved(crate::SessionId),
    /// Bits for those outside the set, after a clean release.
    MirrorOver,
    /// Ready to be resynced by the leader of this session.
    SyncReady(crate::SessionId),
    /// Told the leader of this session that the coming generation is durable.
    GrowReady(crate::SessionId, u64),
    /// The data area has so many bytes; tell the leader of this session, if it asked.
    SizeSaved(Option<crate::SessionId>, u64),
    /// More of the disk is known to be zeroes.
    RoomSaved(u64),
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
    /// Bits of blocks of a peer that a verify found to differ.
    VerifyMarked(crate::PeerIndex),
    /// Bits of extents that leave the activity log.
    Evict,
    /// The same, with the mark in the superblock that all blocks are dirty.
    Evicted,
    /// Bits of all hot extents, before the log is emptied at a release.
    Release,
}

/// Updates that may wait for the one being written.
const QUEUED_MAX: usize = 64;

/// The superblock on its way to the disk.
#[derive(Clone, Debug, Hash)]
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
#[derive(Clone, Debug, Default, Hash)]
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
        if self.metadata_failed {
            return self.cannot_persist(after, effects);
        }
        self.superblock_writer.queued.push(after);
        if !self.superblock_writer.is_busy() && !self.holds_metadata() {
            self.start_superblock(effects);
        }
    }

    /// Whether a peer has made this replica write more than the disk keeps up with.
    pub(crate) fn is_persisting_too_much(&self) -> bool {
        self.superblock_writer.queued.len() >= QUEUED_MAX
    }

    /// The metadata cannot be written any more: what waited for them never comes, except for the
    /// ends that need no disk.
    pub(crate) fn abandon_writes(&mut self, effects: &mut Effects) {
        self.metadata_failed = true;
        let writer = &mut self.superblock_writer;
        writer.writing = None;
        let mut waiting = core::mem::take(&mut writer.waiting);
        waiting.append(&mut writer.queued);
        waiting.extend(self.pages.present.take());
        waiting.extend(core::mem::take(&mut self.pages.queued).into_iter().map(|(_, after)| after));
        self.pages.pending = 0;
        for after in waiting {
            self.cannot_persist(after, effects);
        }
    }

    fn cannot_persist(&mut self, after: After, effects: &mut Effects) {
        match after {
            After::Deposed | After::SteppedDown => self.stepped_down(effects),
            After::StopClean | After::Stopped => self.stopped(effects),
            After::BitsRecovered | After::Recovered => self.recovered(effects),
            After::AnswerAndReconnect(ticket) => self.answer_no_disk(ticket, effects),
            _ => {}
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
        // Nothing waits for it when the metadata were given up meanwhile.
        let Some((copy, bytes)) = writer.writing.take() else { return };
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
        if !writer.queued.is_empty() && !self.holds_metadata() {
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
        if self.metadata_failed {
            return self.cannot_persist(after, effects);
        }
        self.pages.queued.push_back((blocks, after));
        if self.pages.present.is_none() {
            self.start_pages(effects);
        }
    }

    fn start_pages(&mut self, effects: &mut Effects) {
        if self.holds_metadata() {
            return;
        }
        let Some((blocks, after)) = self.pages.queued.pop_front() else { return };
        self.pages.present = Some(after);
        for (record, peer) in self.superblock.peers.iter().zip(&mut self.peers) {
            let start = self.layout.bitmaps[usize::from(record.slot)].start;
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
        if self.metadata_failed {
            return;
        }
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

    /// Whether nothing of the metadata but a block of the log is on its way to the disk.
    pub(crate) fn metadata_rests(&self) -> bool {
        !self.superblock_writer.is_busy() && self.pages.present.is_none()
    }

    /// The superblock as it would be written next, and where its copies lie: for one who writes
    /// both himself, somewhere else.
    pub(crate) fn next_superblock(&mut self) -> alloc::boxed::Box<[u8]> {
        self.superblock_writer.sequence += 1;
        self.superblock.sequence = self.superblock_writer.sequence;
        self.superblock.encode()
    }

    /// The region lies elsewhere from now on, or the metadata may be written again where they are.
    pub(crate) fn metadata_go_on(&mut self, layout: Layout, effects: &mut Effects) {
        self.superblock_writer.places = layout.superblocks;
        self.layout = layout;
        if !self.superblock_writer.is_busy() && !self.superblock_writer.queued.is_empty() {
            self.start_superblock(effects);
        }
        if self.pages.present.is_none() {
            self.start_pages(effects);
        }
        self.keep_log(effects);
    }

    /// The superblock, for those who only look.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}

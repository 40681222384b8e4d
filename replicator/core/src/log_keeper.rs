//! Keeps the activity log going on the primary: writes its blocks, and makes room by letting
//! unused extents leave, in the order of R9: one flush on every replica that gets writes, then
//! the dirty bits durable, then the slots are free.

use alloc::vec::Vec;
use core::ops::Range;

use crate::block::{ByteRange, ReplicaId};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::flush::BarrierPurpose;
use crate::persist::After;
use crate::replica::{Purpose, Replica};

/// What is going on with the log.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct LogKeeper {
    /// Extents are on their way out.
    pub(crate) evicting: bool,
    /// A request found no free slot.
    pub(crate) starved: bool,
    /// The blocks the leaving extents cover.
    leaving: Vec<ByteRange>,
    /// Followers that flushed for them.
    flushed: Vec<ReplicaId>,
    writing: bool,
}

impl Replica {
    /// Writes the next log block, and starts an eviction when slots run out.
    pub(crate) fn keep_log(&mut self, effects: &mut Effects) {
        let follows = self.follows_with_mirror();
        if !self.role.serves() && !follows || self.metadata_failed {
            return;
        }
        if !self.log_keeper.writing
            && !self.holds_metadata()
            && let Some((offset, bytes)) = self.log.next_block()
        {
            self.log_keeper.writing = true;
            let offset = self.layout.log.start + offset;
            effects.push(Effect::WriteMeta {
                op: self.ops.begin(Purpose::LogBlock),
                offset,
                bytes,
            });
        }
        if follows {
            if self.log_keeper.starved && !self.log_keeper.evicting {
                self.make_room(effects);
            }
            return;
        }
        let (_, slots) = self.log.fill_level();
        let scarce = self.log_keeper.starved || self.log.free_slots() < slots / 8;
        if scarce && !self.log_keeper.evicting && !self.releasing {
            // A quarter at a time: one flush serves many activations.
            let leaving = self.log.pick_unused(slots as usize / 4);
            if !leaving.is_empty() {
                self.begin_leaving(leaving);
                if defect(Defect::EvictWithoutFlush) {
                    return self.evict_flushed(Vec::new(), effects);
                }
                self.start_barrier(BarrierPurpose::Evict, effects);
            }
        }
    }

    /// A log block is durable: what waited for its extents can start.
    pub(crate) fn log_block_written(&mut self, effects: &mut Effects) {
        self.log_keeper.writing = false;
        self.log.block_done();
        self.start_queued(effects);
        self.requests_drained(effects);
        self.go_on_with_mirror(effects);
        self.stop_drained(effects);
    }

    pub(crate) fn begin_leaving(&mut self, leaving: Vec<ByteRange>) {
        self.log_keeper.evicting = true;
        self.log_keeper.leaving = leaving;
    }

    /// Everything the leaving extents hold is durable wherever it was acknowledged.
    pub(crate) fn evict_flushed(&mut self, flushed: Vec<ReplicaId>, effects: &mut Effects) {
        self.log_keeper.flushed = flushed;
        self.save_leaving(effects);
    }

    /// The bits of what leaves become durable.
    pub(crate) fn save_leaving(&mut self, effects: &mut Effects) {
        let blocks: Vec<Range<u64>> =
            self.log_keeper.leaving.iter().map(|range| self.blocks_of(*range)).collect();
        if defect(Defect::EvictWithoutBits) {
            return self.evict_saved(effects);
        }
        self.save_pages(blocks, After::Evict, effects);
    }

    /// The pages are durable. A mark that all blocks are dirty stands for pages that were not
    /// saved: where it is on its way to the disk, it must be there first (R9).
    pub(crate) fn evict_pages_saved(&mut self, effects: &mut Effects) {
        if self.superblock_writer.is_busy() {
            self.persist(After::Evicted, effects);
        } else {
            self.evict_saved(effects);
        }
    }

    /// The bits of what leaves are durable for every peer.
    pub(crate) fn evict_saved(&mut self, effects: &mut Effects) {
        self.log_keeper.leaving.clear();
        self.log_keeper.evicting = false;
        self.log_keeper.starved = false;
        let flushed = core::mem::take(&mut self.log_keeper.flushed);
        self.tell_cooled(&flushed, effects);
        self.log.evicted();
        self.start_queued(effects);
        self.go_on_with_mirror(effects);
    }

    /// The own disk could not flush: nothing leaves.
    pub(crate) fn eviction_failed(&mut self, effects: &mut Effects) {
        self.log.keep_picked();
        self.log_keeper.leaving.clear();
        self.log_keeper.evicting = false;
        // No room will come of it for those who wait for some.
        self.fail_blocked(effects);
    }

    /// Turns everything that may be hot into dirty bits for every peer, in memory (R9); returns
    /// the number of extents.
    pub(crate) fn hot_to_dirty(&mut self) -> u64 {
        let hot: Vec<ByteRange> = self.log.hot_ranges().collect();
        for range in &hot {
            let blocks = self.blocks_of(*range);
            for peer in &mut self.peers {
                peer.bitmap.insert(blocks.clone());
            }
        }
        hot.len() as u64
    }

    /// The log is empty from now on; its new epoch is durable with the next superblock.
    pub(crate) fn restart_log(&mut self) {
        self.superblock.log_epoch += 1;
        self.log = crate::activity_log::ActivityLog::new(
            self.superblock.data_bytes,
            self.superblock.log_extents,
            self.superblock.log_epoch,
        );
        // What is under way ends, and finds nothing that leaves.
        let LogKeeper { writing, evicting, .. } = self.log_keeper;
        self.log_keeper = LogKeeper { writing, evicting, ..LogKeeper::default() };
    }

    /// Whether a log block is on its way to the disk.
    pub(crate) fn log_is_writing(&self) -> bool {
        self.log_keeper.writing
    }

    /// The dirty blocks of a range of extents, cut at the end of the volume.
    pub(crate) fn blocks_of(&self, range: ByteRange) -> Range<u64> {
        let blocks = range.dirty_blocks();
        blocks.start..blocks.end.min(self.superblock.blocks())
    }
}

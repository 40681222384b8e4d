//! The activity log: which extents of 4 MiB may differ between replicas after a crash (R9).
//!
//! An extent is *hot* from the moment a log block that names it is durable. A write waits until
//! all its extents are hot; many activations share one block. An extent may leave only after a
//! flush of every member that followed its last write, and after its dirty bits are durable; then
//! its slot may be reused. Until it is, the log on disk still names the old extent, so a write to
//! it makes it hot again without any I/O.
//!
//! ```text
//!            want                    block durable
//!   free ------------> activating -------------------> hot
//!    ^  \_______________________________________________^ |
//!    |                 touched again                      | picked as unused
//!    |                                                    v
//!    +------------- flushed, bits durable ---------- evicting --- touched ---> hot
//! ```
//!
//! On disk: a ring of [`RING_BLOCKS`] blocks of 4 KiB. Each has an epoch and a sequence number,
//! the slots it changes, and a stretch of the slot table as context; any [`RING_BLOCKS`] - 1
//! consecutive blocks hold the whole table, so that the block a crash tears is never missed.
//!
//! ```text
//! 0   magic "ALOG" (4), CRC-32 of the rest (4), epoch (8), sequence (8)
//! 24  updates (2), first context slot (2), context slots (2), slots in all (2)
//! 32  updates: slot (4), extent (4) each; then context: extent (4) each
//! ```

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::block::ByteRange;
use crate::defect::{Defect, defect};
use crate::limits::EXTENT_BYTES;

/// Blocks of the ring.
pub const RING_BLOCKS: u64 = 32;
/// Bytes of one block of the ring.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of the log on disk.
pub const REGION_BYTES: u64 = RING_BLOCKS * BLOCK_BYTES as u64;
const UPDATES_MAX: usize = 128;
const CONTEXT_SLOTS: usize = 700;
const MAGIC: u32 = u32::from_le_bytes(*b"ALOG");
const NO_EXTENT: u32 = u32::MAX;
const NO_SLOT: u16 = u16::MAX;

const _: () = assert!(32 + UPDATES_MAX * 8 + CONTEXT_SLOTS * 4 <= BLOCK_BYTES);
const _: () = assert!(
    (RING_BLOCKS as usize - 1) * CONTEXT_SLOTS >= *crate::limits::LOG_EXTENTS_RANGE.end() as usize
);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
enum SlotState {
    Free,
    Activating,
    Hot,
    Evicting,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Slot {
    extent: u32,
    state: SlotState,
    /// Requests that write into the extent now.
    users: u32,
    /// When it was last written, in uses of the log.
    used_at: u64,
    /// Whether the free list names it, perhaps still from before it was touched again.
    listed: bool,
}

/// The log in memory.
#[derive(Clone, Debug, Hash)]
pub struct ActivityLog {
    slots: Vec<Slot>,
    slot_of_extent: Vec<u16>,
    free: VecDeque<u16>,
    /// Slots to be named by the next block.
    queued: Vec<u16>,
    /// Slots named by the block being written.
    in_flight: Vec<u16>,
    epoch: u64,
    sequence: u64,
    context_at: usize,
    uses: u64,
    hot: u32,
}

impl ActivityLog {
    /// An empty log of a new epoch; the epoch must be durable in the superblock before the first
    /// block of it is written.
    pub fn new(volume_bytes: u64, slots: u16, epoch: u64) -> Self {
        let empty =
            Slot { extent: NO_EXTENT, state: SlotState::Free, users: 0, used_at: 0, listed: true };
        Self {
            slots: vec![empty; usize::from(slots)],
            slot_of_extent: vec![NO_SLOT; volume_bytes.div_ceil(EXTENT_BYTES) as usize],
            free: (0..slots).collect(),
            queued: Vec::with_capacity(usize::from(slots)),
            in_flight: Vec::with_capacity(UPDATES_MAX),
            epoch,
            sequence: 0,
            context_at: 0,
            uses: 0,
            hot: 0,
        }
    }

    /// The volume has so many bytes from now on.
    pub fn grow(&mut self, volume_bytes: u64) {
        self.slot_of_extent.resize(volume_bytes.div_ceil(EXTENT_BYTES) as usize, NO_SLOT);
    }

    /// Extents in use (hot, or about to be), and slots in all.
    pub fn fill_level(&self) -> (u32, u32) {
        (self.hot, self.slots.len() as u32)
    }

    /// Whether every extent of the range is hot durably.
    pub fn is_hot(&self, range: ByteRange) -> bool {
        extents_of(range).all(|extent| {
            self.slot(extent)
                .is_some_and(|slot| matches!(slot.state, SlotState::Hot | SlotState::Evicting))
        })
    }

    /// Counts a write into hot extents; [`ActivityLog::release`] ends it. Extents that were about
    /// to leave stay.
    pub fn acquire(&mut self, range: ByteRange) {
        self.uses += 1;
        for extent in extents_of(range) {
            let at = usize::from(self.slot_of_extent[extent as usize]);
            let slot = &mut self.slots[at];
            assert!(matches!(slot.state, SlotState::Hot | SlotState::Evicting), "{slot:?}");
            slot.state = SlotState::Hot;
            slot.users += 1;
            slot.used_at = self.uses;
        }
    }

    /// Ends what [`ActivityLog::acquire`] began.
    pub fn release(&mut self, range: ByteRange) {
        for extent in extents_of(range) {
            let at = usize::from(self.slot_of_extent[extent as usize]);
            assert!(self.slots[at].users > 0, "extent {extent} is not in use");
            self.slots[at].users -= 1;
        }
    }

    /// Asks for the cold extents of a range. False when there are not slots enough: evict.
    pub fn want(&mut self, range: ByteRange) -> bool {
        for extent in extents_of(range) {
            let known = self.slot_of_extent[extent as usize];
            if known != NO_SLOT {
                let slot = &mut self.slots[usize::from(known)];
                if slot.state == SlotState::Free {
                    // The log on disk still names it: hot again without I/O. Its place in the
                    // free list is found stale when it comes up.
                    slot.state = SlotState::Hot;
                    self.hot += 1;
                }
                continue;
            }
            let Some(at) = self.take_free() else { return false };
            let unlogged = defect(Defect::NoLogBeforeWrite);
            let slot = &mut self.slots[usize::from(at)];
            if slot.extent != NO_EXTENT {
                self.slot_of_extent[slot.extent as usize] = NO_SLOT;
            }
            (slot.extent, slot.state, slot.used_at) = (extent, SlotState::Activating, self.uses);
            assert_eq!(slot.users, 0, "a free slot is in use");
            self.slot_of_extent[extent as usize] = at;
            if unlogged {
                self.slots[usize::from(at)].state = SlotState::Hot;
            } else {
                if defect(Defect::BitAfterAck) {
                    self.slots[usize::from(at)].state = SlotState::Hot;
                }
                self.queued.push(at);
            }
            self.hot += 1;
        }
        true
    }

    fn take_free(&mut self) -> Option<u16> {
        while let Some(at) = self.free.pop_front() {
            self.slots[usize::from(at)].listed = false;
            if self.slots[usize::from(at)].state == SlotState::Free {
                return Some(at);
            }
        }
        None
    }

    /// Free slots, roughly: what can be activated before something must leave.
    pub fn free_slots(&self) -> u32 {
        self.slots.len() as u32 - self.hot
    }

    /// The next block to write, as offset in the log's region and contents; one at a time.
    pub fn next_block(&mut self) -> Option<(u64, Box<[u8]>)> {
        if !self.in_flight.is_empty() || self.queued.is_empty() {
            return None;
        }
        let take = self.queued.len().min(UPDATES_MAX);
        self.in_flight.extend(self.queued.drain(..take));
        let mut block = vec![0; BLOCK_BYTES].into_boxed_slice();
        let context = self.slots.len().min(CONTEXT_SLOTS);
        block[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        block[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        for (at, number) in [take, self.context_at, context, self.slots.len()].iter().enumerate() {
            let at = 24 + at * 2;
            block[at..at + 2].copy_from_slice(&(*number as u16).to_le_bytes());
        }
        let mut at = 32;
        let mut put = |number: u32| {
            block[at..at + 4].copy_from_slice(&number.to_le_bytes());
            at += 4;
        };
        for &slot in &self.in_flight {
            put(u32::from(slot));
            put(self.slots[usize::from(slot)].extent);
        }
        for step in 0..context {
            put(self.durable_extent((self.context_at + step) % self.slots.len()));
        }
        block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        let crc = crc32fast::hash(&block[8..]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        let offset = self.sequence % RING_BLOCKS * BLOCK_BYTES as u64;
        self.sequence += 1;
        self.context_at = (self.context_at + context) % self.slots.len();
        Some((offset, block))
    }

    /// What the log names in a slot once the block being built is durable: an activation that
    /// is still queued is not in it, and naming it early would only be more than needed.
    fn durable_extent(&self, slot: usize) -> u32 {
        self.slots[slot].extent
    }

    /// The block given out last is durable: its extents are hot.
    pub fn block_done(&mut self) {
        for at in self.in_flight.drain(..) {
            let slot = &mut self.slots[usize::from(at)];
            let expected = slot.state == SlotState::Activating || defect(Defect::BitAfterAck);
            assert!(expected, "slot {at} is {:?}", slot.state);
            slot.state = SlotState::Hot;
        }
    }

    /// Picks up to `count` unused extents, least recently written first, to be flushed and then
    /// given back by [`ActivityLog::evicted`]. Returns the ranges of blocks they cover.
    pub fn pick_unused(&mut self, count: usize) -> Vec<ByteRange> {
        let mut unused: Vec<u16> = (0..self.slots.len() as u16)
            .filter(|&at| {
                let slot = &self.slots[usize::from(at)];
                slot.state == SlotState::Hot && slot.users == 0
            })
            .collect();
        if unused.len() > count && count > 0 {
            unused.select_nth_unstable_by_key(count - 1, |&at| self.slots[usize::from(at)].used_at);
            unused.truncate(count);
        }
        unused
            .iter()
            .map(|&at| {
                self.slots[usize::from(at)].state = SlotState::Evicting;
                range_of(self.slots[usize::from(at)].extent)
            })
            .collect()
    }

    /// What was picked has been flushed everywhere and its bits are durable: what was not written
    /// again meanwhile is free.
    pub fn evicted(&mut self) {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if slot.state == SlotState::Evicting {
                slot.state = SlotState::Free;
                self.hot -= 1;
                if !core::mem::replace(&mut slot.listed, true) {
                    self.free.push_back(at as u16);
                }
            }
        }
    }

    /// What was picked could not be flushed: it stays hot.
    pub fn keep_picked(&mut self) {
        for slot in &mut self.slots {
            if slot.state == SlotState::Evicting {
                slot.state = SlotState::Hot;
            }
        }
    }

    /// Counts uses; a slot used at a later count was written since.
    pub fn uses(&self) -> u64 {
        self.uses
    }

    /// The extents that are on their way out.
    pub fn evicting(&self) -> impl Iterator<Item = u32> + '_ {
        let leaving = self.slots.iter().filter(|slot| slot.state == SlotState::Evicting);
        leaving.map(|slot| slot.extent)
    }

    /// Picks those of the extents that are hot, not in use, and not written after `uses`, to be
    /// given back by [`ActivityLog::evicted`]. Returns the ranges of blocks they cover.
    pub fn pick(&mut self, extents: &[u32], uses: u64) -> Vec<ByteRange> {
        let mut picked = Vec::new();
        for &extent in extents {
            let at = self.slot_of_extent.get(extent as usize).copied().unwrap_or(NO_SLOT);
            let Some(slot) = self.slots.get_mut(usize::from(at)) else { continue };
            if slot.state == SlotState::Hot && slot.users == 0 && slot.used_at <= uses {
                slot.state = SlotState::Evicting;
                picked.push(range_of(extent));
            }
        }
        picked
    }

    /// Whether the volume has an extent of this number.
    pub fn has_extent(&self, extent: u32) -> bool {
        (extent as usize) < self.slot_of_extent.len()
    }

    /// Every extent that is hot or may be: what becomes dirty bits when this replica is deposed.
    pub fn hot_ranges(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.slots
            .iter()
            .filter(|slot| slot.state != SlotState::Free)
            .map(|slot| range_of(slot.extent))
    }

    fn slot(&self, extent: u32) -> Option<&Slot> {
        let at = *self.slot_of_extent.get(extent as usize)?;
        (at != NO_SLOT).then(|| &self.slots[usize::from(at)])
    }
}

fn extents_of(range: ByteRange) -> Range<u32> {
    if range.length == 0 {
        return 0..0;
    }
    (range.start / EXTENT_BYTES) as u32..range.end().div_ceil(EXTENT_BYTES) as u32
}

pub(crate) fn range_of(extent: u32) -> ByteRange {
    ByteRange::new(u64::from(extent) * EXTENT_BYTES, EXTENT_BYTES)
}

/// What the ring says after a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Replay {
    /// These ranges were hot.
    Hot(Vec<ByteRange>),
    /// Blocks that a single crash cannot have destroyed are missing: everything may be hot.
    Unreadable,
}

/// Reads the ring: the extents that the log of this epoch names.
pub fn replay(region: &[u8], epoch: u64, slots: u16) -> Replay {
    let mut blocks: Vec<LogBlock<'_>> = region
        .chunks_exact(BLOCK_BYTES)
        .filter_map(|block| LogBlock::parse(block, epoch))
        .collect();
    blocks.sort_by_key(|block| block.sequence);
    let Some(newest) = blocks.last().map(|block| block.sequence) else {
        return Replay::Hot(Vec::new());
    };
    // The block after the newest may have been torn over the oldest of the ring.
    let oldest_needed = (newest + 2).saturating_sub(RING_BLOCKS);
    let present = blocks.iter().filter(|block| block.sequence >= oldest_needed).count() as u64;
    if present != newest - oldest_needed + 1
        || blocks.iter().any(|block| block.slots != usize::from(slots))
    {
        return Replay::Unreadable;
    }
    let mut table = vec![NO_EXTENT; usize::from(slots)];
    for block in &blocks {
        for (slot, extent) in block.context().chain(block.updates()) {
            match table.get_mut(slot) {
                Some(entry) => *entry = extent,
                None => return Replay::Unreadable,
            }
        }
    }
    table.retain(|&extent| extent != NO_EXTENT);
    table.sort_unstable();
    table.dedup();
    Replay::Hot(table.into_iter().map(range_of).collect())
}

struct LogBlock<'a> {
    sequence: u64,
    slots: usize,
    context_at: usize,
    updates: &'a [u8],
    context: &'a [u8],
}

impl<'a> LogBlock<'a> {
    fn parse(block: &'a [u8], epoch: u64) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
        if word(0) != MAGIC || word(4) != crc32fast::hash(&block[8..]) || long(8) != epoch {
            return None;
        }
        let (updates, context) = (half(24), half(28));
        let middle = 32 + updates * 8;
        Some(Self {
            sequence: long(16),
            slots: half(30),
            context_at: half(26),
            updates: block.get(32..middle)?,
            context: block.get(middle..middle + context * 4)?,
        })
    }

    fn updates(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.updates.chunks_exact(8).map(|pair| {
            let slot = u32::from_le_bytes(pair[..4].try_into().expect("4 bytes"));
            (slot as usize, u32::from_le_bytes(pair[4..].try_into().expect("4 bytes")))
        })
    }

    fn context(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let (at, slots) = (self.context_at, self.slots.max(1));
        self.context.chunks_exact(4).enumerate().map(move |(step, extent)| {
            let extent = u32::from_le_bytes(extent.try_into().expect("4 bytes"));
            ((at + step) % slots, extent)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(number: u64) -> ByteRange {
        ByteRange::new(number * EXTENT_BYTES, 4096)
    }

    fn write_out(log: &mut ActivityLog, region: &mut [u8]) {
        while let Some((offset, block)) = log.next_block() {
            region[offset as usize..offset as usize + BLOCK_BYTES].copy_from_slice(&block);
            log.block_done();
        }
    }

    #[test]
    fn the_ring_names_every_hot_extent_after_many_rounds() {
        let slots = 512;
        let mut log = ActivityLog::new(100_000 * EXTENT_BYTES, slots, 3);
        let mut region = vec![0; REGION_BYTES as usize];
        for round in 0..400u64 {
            for number in 0..40 {
                let at = extent((round * 37 + number * 101) % 100_000);
                if !log.want(at) {
                    log.pick_unused(100);
                    log.evicted();
                    assert!(log.want(at));
                }
            }
            write_out(&mut log, &mut region);
            let Replay::Hot(named) = replay(&region, 3, slots) else { panic!("unreadable") };
            for hot in log.hot_ranges() {
                assert!(named.contains(&hot), "round {round}: {hot:?} is missing");
            }
            // The next block may be torn over the oldest one: nothing may be lost by that.
            let mut torn = region.clone();
            let at = (log.sequence % RING_BLOCKS) as usize * BLOCK_BYTES;
            torn[at..at + 512].fill(0xee);
            let Replay::Hot(named) = replay(&torn, 3, slots) else { panic!("unreadable") };
            assert!(log.hot_ranges().all(|hot| named.contains(&hot)), "torn in round {round}");
        }
        assert_eq!(replay(&region, 4, slots), Replay::Hot(Vec::new()));
    }

    #[test]
    fn a_block_lost_in_the_middle_is_not_taken_for_an_empty_log() {
        let mut log = ActivityLog::new(1000 * EXTENT_BYTES, 64, 1);
        let mut region = vec![0; REGION_BYTES as usize];
        for number in 0..40 {
            assert!(log.want(extent(number)));
            write_out(&mut log, &mut region);
        }
        region[5 * BLOCK_BYTES + 100] ^= 1;
        // Sequence 37 lies at block 5; 38 and 39 are newer, so it is needed.
        assert_eq!(replay(&region, 1, 64), Replay::Unreadable);
    }

    #[test]
    fn an_extent_written_while_it_leaves_stays_hot() {
        let mut log = ActivityLog::new(1000 * EXTENT_BYTES, 64, 1);
        let mut region = vec![0; REGION_BYTES as usize];
        log.want(extent(1));
        log.want(extent(2));
        write_out(&mut log, &mut region);
        assert_eq!(log.pick_unused(10).len(), 2);
        log.acquire(extent(1));
        log.evicted();
        assert!(log.is_hot(extent(1)) && !log.is_hot(extent(2)));
        // Still named on disk: hot again without a block.
        assert!(log.want(extent(2)) && log.is_hot(extent(2)));
        assert!(log.next_block().is_none());
        log.release(extent(1));
    }
}

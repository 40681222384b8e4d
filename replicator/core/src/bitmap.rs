//! The dirty bitmap: which blocks of 4 KiB one peer may lack.
//!
//! In memory a flat array of bits. On disk pages of 4 KiB, each eight sectors of 512 bytes; every
//! sector is valid or not by itself, because a sector is what a disk writes whole:
//!
//! ```text
//! 0    480 bytes of bits: 3840 blocks, 15 MiB of the volume
//! 480  magic "DRTY" (4), number of the sector (4), base (8), tag of the replica (8)
//! 504  zero (4), CRC-32 of the first 508 bytes (4)
//! ```
//!
//! `base` is the generation at which the bitmap was last empty ([`PeerRecord`]). A sector of an
//! older base counts as empty, so that emptying a bitmap is one superblock write. A sector that
//! is all zeroes was never written and is empty; any other sector that does not verify counts as
//! dirty in all its blocks (R10: nothing is assumed equal on faith).
//!
//! [`PeerRecord`]: crate::metadata::PeerRecord

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::defect::{Defect, defect};

/// Blocks one sector of the bitmap stands for.
pub const SECTOR_BLOCKS: u64 = 3840;
const SECTOR_BYTES: usize = 512;
const SECTOR_BIT_BYTES: usize = 480;
const SECTOR_WORDS: u64 = SECTOR_BLOCKS / 64;
/// Bytes of one page, the unit in which the bitmap is written.
pub const PAGE_BYTES: usize = 4096;
const PAGE_SECTORS: u64 = (PAGE_BYTES / SECTOR_BYTES) as u64;
/// Blocks one page stands for: 120 MiB of the volume.
pub const PAGE_BLOCKS: u64 = SECTOR_BLOCKS * PAGE_SECTORS;
const MAGIC: u32 = u32::from_le_bytes(*b"DRTY");
/// Runs that a bitmap is told to a peer in, at most.
const MERGED_RUNS_MAX: usize = 64 << 10;

/// A set of blocks, with its count.
#[derive(Clone, Debug, Hash)]
pub struct Blocks {
    words: Vec<u64>,
    blocks: u64,
    count: u64,
}

impl Blocks {
    /// An empty set over so many blocks.
    pub fn new(blocks: u64) -> Self {
        Self { words: vec![0; blocks.div_ceil(64) as usize], blocks, count: 0 }
    }

    /// The set may have so many blocks from now on; the new ones are not in it.
    pub fn grow(&mut self, blocks: u64) {
        assert!(blocks >= self.blocks, "a set of {} blocks shrinks to {blocks}", self.blocks);
        self.words.resize(blocks.div_ceil(64) as usize, 0);
        self.blocks = blocks;
    }

    /// How many blocks are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a block is in the set.
    pub fn contains(&self, block: u64) -> bool {
        self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Whether every block of the range is in the set.
    pub fn contains_all(&self, mut range: Range<u64>) -> bool {
        range.all(|block| self.contains(block))
    }

    /// Adds a range; returns whether anything was new.
    pub fn insert(&mut self, range: Range<u64>) -> bool {
        assert!(range.end <= self.blocks, "block {} of {}", range.end, self.blocks);
        let before = self.count;
        for (word, mask) in masks(range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
        self.count != before
    }

    /// Adds the blocks whose bits are set in 64-bit words, of which `at` is the number of the
    /// first; bits beyond the last block do not count.
    fn insert_words(&mut self, at: u64, bits: &[u8]) {
        let words = self.words.iter_mut().enumerate().skip(at as usize);
        for (bytes, (number, word)) in bits.chunks_exact(8).zip(words) {
            let beyond = (number as u64 * 64 + 64).saturating_sub(self.blocks);
            let read = u64::from_le_bytes(bytes.try_into().expect("8 bytes")) & (!0 >> beyond);
            self.count += u64::from((read & !*word).count_ones());
            *word |= read;
        }
    }

    /// Takes a range out; returns whether anything was in it.
    pub fn remove(&mut self, range: Range<u64>) -> bool {
        assert!(range.end <= self.blocks, "block {} of {}", range.end, self.blocks);
        let before = self.count;
        for (word, mask) in masks(range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
        self.count != before
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Puts every block into the set.
    pub fn fill(&mut self) {
        self.insert(0..self.blocks);
    }

    /// The first run of blocks at or after `from`, cut at `length_max`.
    pub fn next_run(&self, from: u64, length_max: u64) -> Option<Range<u64>> {
        if self.is_empty() {
            return None;
        }
        let start = self.find(from..self.blocks, true)?;
        // Looks no further than it has to: a full bitmap is walked once, not once a run.
        let most = self.blocks.min(start.saturating_add(length_max));
        let end = self.find(start..most, false).unwrap_or(most);
        Some(start..end)
    }

    /// The runs of the set, as start and length; so few that a frame sequence of bounded length
    /// tells them. Where they are too many, neighbours are merged: more than the set, never less.
    pub fn merged_runs(&self) -> Vec<(u64, u64)> {
        let mut gap = 0;
        loop {
            let mut runs: Vec<(u64, u64)> = Vec::new();
            let mut from = 0;
            while let Some(run) = self.next_run(from, self.blocks) {
                from = run.end;
                match runs.last_mut() {
                    Some((start, length)) if run.start - (*start + *length) <= gap => {
                        *length = run.end - *start;
                    }
                    _ => runs.push((run.start, run.end - run.start)),
                }
                if runs.len() > MERGED_RUNS_MAX {
                    break;
                }
            }
            if runs.len() <= MERGED_RUNS_MAX {
                return runs;
            }
            gap = gap * 4 + 1;
        }
    }

    /// The first block of the range that is (not) in the set.
    fn find(&self, range: Range<u64>, set: bool) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        let view = |word: u64| if set { word } else { !word };
        let last = (range.end - 1) / 64;
        let mut at = range.start / 64;
        let mut word = view(self.words[at as usize]) & (!0 << (range.start % 64));
        while word == 0 {
            at += 1;
            if at > last {
                return None;
            }
            word = view(self.words[at as usize]);
        }
        let found = at * 64 + u64::from(word.trailing_zeros());
        (found < range.end).then_some(found)
    }
}

/// Word indexes and masks that a range of bits covers.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() { 0..0 } else { range.start / 64..range.end.div_ceil(64) };
    words.map(move |word| {
        let low = range.start.saturating_sub(word * 64).min(64);
        let high = (range.end - word * 64).min(64);
        (word as usize, (!0u64 >> (64 - (high - low))) << low)
    })
}

/// A dirty bitmap together with what of it is not yet on disk.
#[derive(Clone, Debug, Hash)]
pub struct DirtyBitmap {
    dirty: Blocks,
    /// Pages that have bits which are not durable. Bits that were only cleared may stay: an
    /// older, dirtier page on disk is safe.
    unsaved_pages: Blocks,
    base: u64,
    tag: u64,
}

impl DirtyBitmap {
    /// An empty bitmap for so many blocks; `tag` tells this replica's sectors from foreign ones.
    pub fn new(blocks: u64, base: u64, tag: u64) -> Self {
        let pages = Blocks::new(blocks.div_ceil(PAGE_BLOCKS));
        Self { dirty: Blocks::new(blocks), unsaved_pages: pages, base, tag }
    }

    /// Reads the pages of a bitmap region.
    pub fn load(blocks: u64, base: u64, tag: u64, region: &[u8]) -> Self {
        let mut bitmap = Self::new(blocks, base, tag);
        for (number, sector) in region.chunks_exact(SECTOR_BYTES).enumerate() {
            let first = number as u64 * SECTOR_BLOCKS;
            if first >= blocks {
                break;
            }
            let covered = first..(first + SECTOR_BLOCKS).min(blocks);
            match bitmap.sector_state(number as u32, sector) {
                SectorState::Empty => {}
                SectorState::Unreadable => {
                    bitmap.dirty.insert(covered);
                }
                SectorState::Valid => {
                    let words = number as u64 * SECTOR_WORDS;
                    bitmap.dirty.insert_words(words, &sector[..SECTOR_BIT_BYTES]);
                }
            }
        }
        bitmap
    }

    /// The volume has so many blocks from now on; the new ones are clean.
    pub fn grow(&mut self, blocks: u64) {
        if defect(Defect::BitsLostByResize) {
            self.dirty.clear();
        }
        self.dirty.grow(blocks);
        self.unsaved_pages.grow(blocks.div_ceil(PAGE_BLOCKS));
    }

    fn sector_state(&self, number: u32, sector: &[u8]) -> SectorState {
        if sector.iter().all(|&byte| byte == 0) {
            return SectorState::Empty;
        }
        let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("8 bytes"));
        let ours = word(480) == MAGIC
            && word(484) == number
            && long(496) == self.tag
            && word(508) == crc32fast::hash(&sector[..508]);
        match ours {
            false => SectorState::Unreadable,
            true if long(488) < self.base => SectorState::Empty,
            true => SectorState::Valid,
        }
    }

    /// The dirty blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.dirty
    }

    /// Marks blocks dirty. Durable only after the pages are saved.
    pub fn insert(&mut self, range: Range<u64>) {
        if self.dirty.insert(range.clone()) {
            self.unsaved_pages.insert(pages_of(&range));
        }
    }

    /// Marks every block dirty in memory. The caller records that durably in the superblock, so
    /// no page needs to be saved for it.
    pub fn fill_recorded_elsewhere(&mut self) {
        self.dirty.fill();
    }

    /// Marks blocks clean: only when they are durable on the peer, or compared equal (R10).
    pub fn remove(&mut self, range: Range<u64>) {
        self.dirty.remove(range);
    }

    /// Empties the bitmap at a commit that makes both members: durable with the superblock that
    /// records `base`. A lower base than before (a new lineage begins with a lower generation)
    /// makes old sectors count again: more is dirty than need be, never less.
    pub fn restart(&mut self, base: u64) {
        self.dirty.clear();
        self.unsaved_pages.clear();
        self.base = base;
    }

    /// Takes the next page of the given blocks that has to be saved, as page number and contents,
    /// and counts it as saved: the caller writes it before it relies on it.
    pub fn take_unsaved_page(&mut self, blocks: &Range<u64>) -> Option<(u64, Box<[u8]>)> {
        let pages = pages_of(blocks);
        let page = self.unsaved_pages.next_run(pages.start, 1)?.start;
        if page >= pages.end {
            return None;
        }
        self.unsaved_pages.remove(page..page + 1);
        Some((page, self.encode_page(page)))
    }

    fn encode_page(&self, page: u64) -> Box<[u8]> {
        let mut bytes = vec![0; PAGE_BYTES].into_boxed_slice();
        for (index, sector) in bytes.chunks_exact_mut(SECTOR_BYTES).enumerate() {
            let number = page * PAGE_SECTORS + index as u64;
            let words = self.dirty.words.iter().skip((number * SECTOR_WORDS) as usize);
            for (bytes, word) in sector[..SECTOR_BIT_BYTES].chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            sector[SECTOR_BIT_BYTES..484].copy_from_slice(&MAGIC.to_le_bytes());
            sector[484..488].copy_from_slice(&(number as u32).to_le_bytes());
            sector[488..496].copy_from_slice(&self.base.to_le_bytes());
            sector[496..504].copy_from_slice(&self.tag.to_le_bytes());
            let crc = crc32fast::hash(&sector[..508]);
            sector[508..].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }
}

enum SectorState {
    Empty,
    Valid,
    Unreadable,
}

/// The pages that hold the bits of a range of blocks.
fn pages_of(blocks: &Range<u64>) -> Range<u64> {
    if blocks.is_empty() {
        return 0..0;
    }
    blocks.start / PAGE_BLOCKS..blocks.end.div_ceil(PAGE_BLOCKS)
}

/// Bytes of the region a bitmap over so many blocks takes on disk.
pub fn region_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(PAGE_BLOCKS) * PAGE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_words_and_cut() {
        let mut set = Blocks::new(300);
        set.insert(60..130);
        set.insert(299..300);
        assert_eq!(set.count(), 71);
        assert_eq!(set.next_run(0, 1000), Some(60..130));
        assert_eq!(set.next_run(0, 8), Some(60..68));
        assert_eq!(set.next_run(130, 8), Some(299..300));
        assert_eq!(set.next_run(300, 8), None);
        set.remove(64..128);
        assert_eq!(set.next_run(61, 100), Some(61..64));
        set.fill();
        assert_eq!(set.count(), 300);
        assert_eq!(set.next_run(0, 1000), Some(0..300));
    }

    #[test]
    fn a_saved_page_loads_back_and_an_older_base_is_empty() {
        let blocks = PAGE_BLOCKS + 5000;
        let mut bitmap = DirtyBitmap::new(blocks, 7, 42);
        bitmap.insert(3839..3841);
        bitmap.insert(PAGE_BLOCKS + 4999..PAGE_BLOCKS + 5000);
        let mut region = vec![0; region_bytes(blocks) as usize];
        while let Some((page, bytes)) = bitmap.take_unsaved_page(&(0..blocks)) {
            let at = page as usize * PAGE_BYTES;
            region[at..at + PAGE_BYTES].copy_from_slice(&bytes);
        }
        let loaded = DirtyBitmap::load(blocks, 7, 42, &region);
        assert_eq!(loaded.blocks().count(), 3);
        assert!(loaded.blocks().contains(PAGE_BLOCKS + 4999));
        assert!(DirtyBitmap::load(blocks, 8, 42, &region).blocks().is_empty());
        // A foreign replica's sectors prove nothing: all they cover is dirty.
        assert_eq!(DirtyBitmap::load(blocks, 7, 43, &region).blocks().count(), blocks);
    }

    #[test]
    fn a_sector_that_does_not_verify_is_dirty_and_its_neighbours_are_not() {
        let mut bitmap = DirtyBitmap::new(PAGE_BLOCKS, 1, 1);
        bitmap.insert(0..1);
        let (_, mut page) = bitmap.take_unsaved_page(&(0..PAGE_BLOCKS)).expect("unsaved");
        page[SECTOR_BYTES + 17] ^= 1;
        let loaded = DirtyBitmap::load(PAGE_BLOCKS, 1, 1, &page);
        assert_eq!(loaded.blocks().count(), 1 + SECTOR_BLOCKS);
        assert!(loaded.blocks().contains_all(SECTOR_BLOCKS..2 * SECTOR_BLOCKS));
    }

    #[test]
    fn a_bitmap_that_grows_keeps_its_bits_and_its_new_part_is_clean() {
        let (old, new) = (3841, PAGE_BLOCKS + 70);
        let mut bitmap = DirtyBitmap::new(old, 1, 1);
        bitmap.insert(3839..3841);
        bitmap.grow(new);
        assert_eq!(bitmap.blocks().next_run(0, new), Some(3839..3841));
        bitmap.insert(new - 1..new);
        let mut region = vec![0; region_bytes(new) as usize];
        while let Some((page, bytes)) = bitmap.take_unsaved_page(&(0..new)) {
            let at = page as usize * PAGE_BYTES;
            region[at..at + PAGE_BYTES].copy_from_slice(&bytes);
        }
        let loaded = DirtyBitmap::load(new, 1, 1, &region);
        assert_eq!(loaded.blocks().count(), 3);
        assert!(loaded.blocks().contains(new - 1));
    }
}

//! A disk as small as a test needs it: one letter for each sector of 512 bytes, a volatile cache,
//! and a metadata region whose writes are durable when they are done.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use replicator_core::block::DIRTY_BLOCK_BYTES;
use replicator_core::metadata::{Image, SUPERBLOCK_BYTES, Superblock, fingerprint_samples};
use replicator_core::{BlockDigest, ByteRange};

use crate::hash::Fast;

/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 512;
/// The letter of a sector that was never written, or zeroed.
pub const ZERO: u8 = b'.';
/// The letter of a sector that rotted.
const ROT: u8 = b'~';
const PAGE: u64 = 4096;

/// One letter for each sector; `None` stands for zeroes.
pub type Payload = Option<Rc<[u8]>>;

/// A write that is done and not durable.
#[derive(Clone, Debug, Hash)]
pub struct Volatile {
    /// Where, in sectors.
    pub first: usize,
    /// What.
    pub letters: Rc<[u8]>,
    /// A flush that covers it is under way.
    pub flushing: bool,
}

/// A page of the metadata region and its hash, which is looked at far more often than it changes.
#[derive(Clone, Debug)]
struct Page {
    bytes: Rc<[u8]>,
    hash: u64,
}

/// A disk with its metadata region.
#[derive(Clone, Debug)]
pub struct Disk {
    live: Vec<u8>,
    durable: Vec<u8>,
    volatile: Vec<Volatile>,
    meta: BTreeMap<u64, Page>,
    region_bytes: u64,
    device_bytes: u64,
}

impl Hash for Disk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.live, &self.durable, &self.volatile).hash(state);
        self.meta.iter().for_each(|(at, page)| (at, page.hash).hash(state));
    }
}

impl Disk {
    /// A disk full of zeroes.
    pub fn new(data_bytes: u64, region_bytes: u64) -> Self {
        let sectors = (data_bytes / SECTOR_BYTES) as usize;
        Self {
            live: vec![ZERO; sectors],
            durable: vec![ZERO; sectors],
            volatile: Vec::new(),
            meta: BTreeMap::new(),
            region_bytes,
            device_bytes: data_bytes + region_bytes,
        }
    }

    /// What a read returns now, a letter for each sector of the disk.
    pub fn live(&self) -> &[u8] {
        &self.live
    }

    /// What a read of a range returns now.
    pub fn read(&self, range: ByteRange) -> Rc<[u8]> {
        let first = (range.start / SECTOR_BYTES) as usize;
        self.live[first..first + (range.length / SECTOR_BYTES) as usize].into()
    }

    /// Writes, not durably.
    pub fn write(&mut self, range: ByteRange, payload: &Payload) {
        let first = (range.start / SECTOR_BYTES) as usize;
        let count = (range.length / SECTOR_BYTES) as usize;
        let letters = payload.as_ref().map_or_else(|| vec![ZERO; count].into(), Rc::clone);
        self.live[first..first + count].copy_from_slice(&letters[..count]);
        self.volatile.push(Volatile { first, letters, flushing: false });
    }

    /// A flush begins: it will cover what is done by now.
    pub fn flush_begins(&mut self) {
        self.volatile.iter_mut().for_each(|entry| entry.flushing = true);
    }

    /// The flush that began last is done.
    pub fn flush_ends(&mut self) {
        let kept = self.volatile.iter().filter(|entry| !entry.flushing).cloned().collect();
        for entry in std::mem::replace(&mut self.volatile, kept) {
            if entry.flushing {
                self.durable[entry.first..entry.first + entry.letters.len()]
                    .copy_from_slice(&entry.letters);
            }
        }
    }

    /// Writes that a power cut may take, in the order in which they were done.
    pub fn volatile(&self) -> &[Volatile] {
        &self.volatile
    }

    /// The power is cut: of the volatile writes those whose bit is set have reached the medium.
    pub fn lose_power(&mut self, kept: u64) {
        for (at, entry) in std::mem::take(&mut self.volatile).into_iter().enumerate() {
            if kept >> at & 1 == 1 {
                self.durable[entry.first..entry.first + entry.letters.len()]
                    .copy_from_slice(&entry.letters);
            }
        }
        self.live.clone_from(&self.durable);
    }

    /// Somebody writes to the disk while no daemon has it.
    pub fn scribble(&mut self, range: ByteRange, letter: u8) {
        let payload: Rc<[u8]> = vec![letter; (range.length / SECTOR_BYTES) as usize].into();
        self.write(range, &Some(payload));
        self.flush_begins();
        self.flush_ends();
    }

    /// The medium changes by itself.
    pub fn rot(&mut self, range: ByteRange) {
        let first = (range.start / SECTOR_BYTES) as usize;
        let sectors = first..first + (range.length / SECTOR_BYTES) as usize;
        self.live[sectors.clone()].fill(ROT);
        self.durable[sectors].fill(ROT);
    }

    /// Writes metadata for good.
    pub fn write_meta(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.region_bytes, "metadata beyond their region");
        let mut at = offset;
        while at < offset + bytes.len() as u64 {
            let end = ((at / PAGE + 1) * PAGE).min(offset + bytes.len() as u64);
            let part = &bytes[(at - offset) as usize..(end - offset) as usize];
            let old = self.meta.get(&(at / PAGE));
            let mut page = old.map_or_else(|| vec![0; PAGE as usize], |page| page.bytes.to_vec());
            let within = (at % PAGE) as usize;
            page[within..within + part.len()].copy_from_slice(part);
            let mut hasher = Fast::default();
            page.hash(&mut hasher);
            self.meta.insert(at / PAGE, Page { bytes: page.into(), hash: hasher.finish() });
            at = end;
        }
    }

    /// One page of the region; `None` while it is all zeroes.
    pub fn meta_page(&self, page: u64) -> Option<&[u8]> {
        self.meta.get(&page).map(|page| &*page.bytes)
    }

    /// The bytes of the metadata region, for [`Disk::image`].
    pub fn region(&self) -> Vec<u8> {
        let mut region = vec![0; self.region_bytes as usize];
        for (page, contents) in &self.meta {
            let at = (page * PAGE) as usize;
            region[at..at + PAGE as usize].copy_from_slice(&contents.bytes);
        }
        region
    }

    /// The metadata region as a process reads it at its start, with a fresh fingerprint.
    pub fn image<'a>(&self, region: &'a [u8]) -> Image<'a> {
        Image {
            region,
            device_bytes: self.device_bytes,
            disk_bytes: self.device_bytes,
            fingerprint: Some(self.fingerprint()),
        }
    }

    /// The two superblock copies; `None` for one that does not verify.
    pub fn superblocks(&self) -> [Option<Superblock>; 2] {
        let last = self.region_bytes - SUPERBLOCK_BYTES as u64;
        [last, last - (1 << 20)]
            .map(|at| self.meta_page(at / PAGE).and_then(|page| Superblock::decode(page).ok()))
    }

    /// What `DigestDisk` yields: blocks are told apart by their letters.
    pub fn digests(&self, range: ByteRange) -> Box<[BlockDigest]> {
        let letters = self.read(range);
        let blocks = letters.chunks((DIRTY_BLOCK_BYTES / SECTOR_BYTES) as usize);
        let digest = |block: &[u8]| {
            let mut digest = [0; 32];
            digest[..block.len()].copy_from_slice(block);
            digest
        };
        blocks.map(digest).collect()
    }

    /// The hash that `TakeFingerprint` yields.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Fast::default();
        for sample in fingerprint_samples(self.live.len() as u64 * SECTOR_BYTES) {
            self.read(sample).hash(&mut hasher);
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&hasher.finish().to_le_bytes());
        bytes
    }
}

//! A disk of one number for each block of 4 KiB, with a volatile cache, and a metadata region whose
//! writes are durable when they are done.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use replicator_core::ByteRange;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: usize = 512;

/// Numbers of blocks; `None` stands for zeroes.
pub type Payload = Option<Rc<[u32]>>;

#[derive(Clone, Debug, Hash)]
struct Volatile {
    first: usize,
    numbers: Rc<[u32]>,
    /// A flush that covers it is under way.
    flushing: bool,
}

/// A disk with its metadata region. Cheap to clone: what does not change is shared.
#[derive(Clone, Debug)]
pub struct Disk {
    live: Rc<Vec<u32>>,
    durable: Rc<Vec<u32>>,
    volatile: Vec<Volatile>,
    meta: BTreeMap<u64, Rc<[u8]>>,
    region_bytes: u64,
}

impl Hash for Disk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.live, &self.durable, &self.volatile, &self.meta).hash(state);
    }
}

impl Disk {
    /// A disk full of zeroes.
    pub fn new(data_bytes: u64, region_bytes: u64) -> Self {
        let zeroes = Rc::new(vec![0; (data_bytes / BLOCK_BYTES) as usize]);
        Self {
            live: zeroes.clone(),
            durable: zeroes,
            volatile: Vec::new(),
            meta: BTreeMap::new(),
            region_bytes,
        }
    }

    /// What reads return now.
    pub fn live(&self) -> &[u32] {
        &self.live
    }

    /// What a read of a range returns now.
    pub fn read(&self, range: ByteRange) -> Rc<[u32]> {
        let first = (range.start / BLOCK_BYTES) as usize;
        self.live[first..first + (range.length / BLOCK_BYTES) as usize].into()
    }

    /// Writes, not durably.
    pub fn write(&mut self, range: ByteRange, payload: &Payload) {
        let first = (range.start / BLOCK_BYTES) as usize;
        let count = (range.length / BLOCK_BYTES) as usize;
        let numbers = payload.as_ref().map_or_else(|| vec![0; count].into(), Rc::clone);
        Rc::make_mut(&mut self.live)[first..first + count].copy_from_slice(&numbers[..count]);
        self.volatile.push(Volatile { first, numbers, flushing: false });
    }

    /// A flush begins: it will cover what is done by now.
    pub fn flush_begins(&mut self) {
        self.volatile.iter_mut().for_each(|entry| entry.flushing = true);
    }

    /// The flush that began last is done.
    pub fn flush_ends(&mut self) {
        let (done, kept) =
            std::mem::take(&mut self.volatile).into_iter().partition(|entry| entry.flushing);
        self.volatile = kept;
        self.land(done);
    }

    fn land(&mut self, entries: Vec<Volatile>) {
        if entries.is_empty() {
            return;
        }
        let durable = Rc::make_mut(&mut self.durable);
        for entry in entries {
            let end = entry.first + entry.numbers.len();
            durable[entry.first..end].copy_from_slice(&entry.numbers);
        }
    }

    /// Writes that a power cut may take.
    pub fn at_risk(&self) -> usize {
        self.volatile.len()
    }

    /// The power is cut: of the volatile writes those remain for which `kept` says so.
    pub fn lose_power(&mut self, mut kept: impl FnMut() -> bool) {
        let entries = std::mem::take(&mut self.volatile);
        let landed = entries.into_iter().filter(|_| kept()).collect();
        self.land(landed);
        self.live = self.durable.clone();
    }

    /// Writes metadata for good.
    pub fn write_meta(&mut self, offset: u64, bytes: &[u8]) {
        for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let at = offset / SECTOR_BYTES as u64 + number as u64;
            self.meta.insert(at, sector.into());
        }
    }

    /// The first sector of a metadata write: what a power cut may leave of it.
    pub fn tear_meta(&mut self, offset: u64, bytes: &[u8]) {
        self.write_meta(offset, &bytes[..SECTOR_BYTES]);
    }

    /// The bytes of the metadata region.
    pub fn region(&self) -> Vec<u8> {
        let mut region = vec![0; self.region_bytes as usize];
        for (sector, contents) in &self.meta {
            let at = *sector as usize * SECTOR_BYTES;
            region[at..at + contents.len()].copy_from_slice(contents);
        }
        region
    }
}

//! A simulated disk. What it can do to us:
//! - a write that is done is volatile until a flush that *started after it was done* is done;
//! - a power cut keeps any subset of the volatile sectors, of any of their versions, and any part
//!   of what was in flight, torn at 512 bytes; so are metadata writes in flight;
//! - the death of a process loses nothing that was submitted: it lands, perhaps seconds later, and
//!   nobody may open the disk before that (R2e);
//! - part of a write may be visible before the write is done;
//! - operations fail (EIO, ENOSPC; a failed write may have landed in part), are slow, or hang.
//!
//! Metadata writes are durable when done, as the driver promises of `WriteMeta`.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;

use history::draw::Draw;
use replicator_core::block::DIRTY_BLOCK_BYTES;
use replicator_core::metadata::{
    Image, SUPERBLOCK_BYTES, Superblock, fingerprint_samples, read_superblocks,
};
use replicator_core::room::MetaMove;
use replicator_core::{BlockDigest, BufId, ByteRange, DiskFailure, OpId};

use crate::sectors::{Payload, SECTOR_BYTES, Sectors};

/// An operation the disk is working on.
#[derive(Clone, Debug)]
pub struct Working {
    /// The process that ordered it.
    pub life: u64,
    /// Its name in that process.
    pub op: OpId,
    /// What it does.
    pub job: Job,
    /// How it will end.
    pub fate: Result<(), DiskFailure>,
    /// When it began.
    pub began: u64,
}

/// What an operation does, with the fields of the core's order.
#[expect(missing_docs, reason = "the fields are those of the core's effects")]
#[derive(Clone, Debug)]
pub enum Job {
    /// Write or zero a range.
    Write { range: ByteRange, payload: Payload },
    /// Read a range into a buffer.
    Read { range: ByteRange, buf: BufId },
    /// Read what surrounds a client's unaligned write.
    Edges { wanted: ByteRange, aligned: ByteRange, buf: BufId },
    /// Read for a resync.
    ReadForResync { range: ByteRange },
    /// Hash the blocks of a range.
    Digest { range: ByteRange },
    /// Make durable what was done before this stamp.
    Flush { before: u64 },
    /// Write metadata.
    Meta { offset: u64, bytes: Box<[u8]> },
    /// Say how large the disk is.
    Measure,
    /// Move the metadata to the end of the disk.
    Move { to: Box<MetaMove> },
    /// Hash samples of a data area of so many bytes.
    Fingerprint { size_bytes: u64 },
    /// Look for holes; nothing to do here.
    Map,
}

/// What no client wrote.
const LEFT_BEHIND: u64 = u64::MAX - 1;

#[derive(Clone, Debug)]
struct Volatile {
    stamp: u64,
    first: u64,
    count: u64,
    payload: Payload,
}

/// The superblock copies of a disk, decoded.
#[derive(Clone, Debug)]
struct Copies {
    both: [Option<Superblock>; 2],
    counts: Option<Rc<Superblock>>,
}

/// What a loss of power did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Torn {
    /// Something that was done and not flushed is gone.
    pub lost: bool,
    /// And something done later is not.
    pub reordered: bool,
    /// A metadata write landed in part, whole sectors of it.
    pub at_sector: bool,
    /// A metadata write ended within a sector.
    pub in_sector: bool,
}

/// A disk with its metadata region.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What a read returns.
    pub live: Sectors,
    durable: Sectors,
    /// Sectors that changed by themselves since they were written. Only digests show it: who reads
    /// for clients or for a resync has none (`verifies.rs`).
    rotten: BTreeSet<u64>,
    volatile: Vec<Volatile>,
    next_stamp: u64,
    region: Vec<u8>,
    /// Decoded when they are asked for, forgotten when one of them is written.
    copies: OnceCell<Copies>,
    changes: u64,
    device_bytes: u64,
    /// The same with what was added since the metadata were put at its end.
    actual_bytes: u64,
    /// Operations under way.
    pub working: BTreeMap<u64, Working>,
    next_key: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(device_bytes: u64, region_bytes: u64) -> Self {
        Self {
            live: Sectors::new(device_bytes),
            durable: Sectors::new(device_bytes),
            rotten: BTreeSet::new(),
            volatile: Vec::new(),
            next_stamp: 1,
            region: vec![0; region_bytes as usize],
            copies: OnceCell::new(),
            changes: 0,
            device_bytes,
            actual_bytes: device_bytes,
            working: BTreeMap::new(),
            next_key: 1,
        }
    }

    /// Writes metadata bytes for good.
    pub fn write_meta(&mut self, offset: u64, bytes: &[u8]) {
        let at = offset as usize..offset as usize + bytes.len();
        assert!(at.end <= self.region.len(), "metadata beyond their region");
        if self.copies_at().iter().any(|copy| at.start < copy.end && copy.start < at.end) {
            self.copies.take();
        }
        self.region[at].copy_from_slice(bytes);
        self.changes += 1;
    }

    /// Where the superblock copies lie in the region.
    fn copies_at(&self) -> [Range<usize>; 2] {
        let last = self.region.len() - SUPERBLOCK_BYTES;
        [last, last - (1 << 20)].map(|at| at..at + SUPERBLOCK_BYTES)
    }

    /// The metadata lie at the end of the disk now, with so many copies of the superblock. What
    /// they leave is anything but zeroes.
    fn move_meta(&mut self, to: &MetaMove, superblocks: usize) {
        let mut region = vec![0; to.region_bytes as usize];
        for (from, at) in &to.copies {
            let bytes = &self.region[from.start as usize..from.end as usize];
            region[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        for at in &to.superblocks[..superblocks] {
            let at = *at as usize;
            region[at..at + SUPERBLOCK_BYTES].copy_from_slice(&to.superblock);
        }
        let left = to.region_start.min(self.device_bytes) / SECTOR_BYTES;
        let first = (self.device_bytes - self.region.len() as u64) / SECTOR_BYTES;
        for sector in (first..left).step_by(61) {
            self.scribble(sector, LEFT_BEHIND);
        }
        self.region = region;
        self.device_bytes = to.device_bytes;
        self.copies.take();
        self.changes += 1;
    }

    /// Makes the disk larger; what is added is anything but zeroes.
    pub fn extend_to(&mut self, bytes: u64) {
        let old = self.actual_bytes;
        self.actual_bytes = old.max(bytes);
        self.live.grow(self.actual_bytes);
        self.durable.grow(self.actual_bytes);
        for sector in (old / SECTOR_BYTES..self.actual_bytes / SECTOR_BYTES).step_by(1009) {
            self.scribble(sector, LEFT_BEHIND);
        }
    }

    /// How large it is.
    pub fn actual_bytes(&self) -> u64 {
        self.actual_bytes
    }

    /// Part of the metadata region.
    pub fn part(&self, range: &Range<u64>) -> &[u8] {
        &self.region[range.start as usize..range.end as usize]
    }

    /// A number that rises with every change of data or metadata.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The metadata region as a process reads it at its start, with a fresh fingerprint.
    pub fn image(&self) -> Image<'_> {
        Image {
            region: &self.region,
            device_bytes: self.device_bytes,
            disk_bytes: self.device_bytes,
            fingerprint: Some(self.fingerprint()),
        }
    }

    /// Sequence and generation of the two superblock copies; `None` for one that does not verify.
    pub fn copies(&self) -> [Option<(u64, u64)>; 2] {
        let both = self.superblocks().each_ref();
        both.map(|copy| copy.as_ref().map(|copy| (copy.sequence, copy.register.generation)))
    }

    /// Both superblock copies; `None` for one that does not verify.
    pub fn superblocks(&self) -> &[Option<Superblock>; 2] {
        &self.decoded().both
    }

    /// The superblock that counts, as a process would find it.
    pub fn superblock(&self) -> Option<Rc<Superblock>> {
        self.decoded().counts.clone()
    }

    fn decoded(&self) -> &Copies {
        self.copies.get_or_init(|| {
            let pages = self.copies_at().map(|at| &self.region[at]);
            Copies {
                both: pages.map(|page| Superblock::decode(page).ok()),
                counts: read_superblocks(pages).ok().map(|(superblock, _)| Rc::new(superblock)),
            }
        })
    }

    /// What `DigestDisk` yields: the sectors' values are hash enough.
    pub fn digests(&self, range: ByteRange) -> Box<[BlockDigest]> {
        let digest = |block: u64| {
            let start = block * DIRTY_BLOCK_BYTES;
            let length = DIRTY_BLOCK_BYTES.min(range.end() - start);
            let (first, count) = span(ByteRange::new(start, length));
            let mut hasher = DefaultHasher::new();
            let values = self.live.read(first, count);
            values.filter(|values| values.iter().any(|&value| value != 0)).hash(&mut hasher);
            self.rotten.range(first..first + count).for_each(|sector| sector.hash(&mut hasher));
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&hasher.finish().to_le_bytes());
            digest
        };
        range.dirty_blocks().map(digest).collect()
    }

    /// The hash that `TakeFingerprint` would yield now.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.superblock().map_or([0; 32], |superblock| self.fingerprint_of(superblock.data_bytes))
    }

    /// The hash that `TakeFingerprint` yields for a data area of this size.
    pub fn fingerprint_of(&self, data_bytes: u64) -> [u8; 32] {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for sample in fingerprint_samples(data_bytes) {
            let first = sample.start / SECTOR_BYTES;
            for sector in first..first + sample.length / SECTOR_BYTES {
                hash = (hash ^ self.live.get(sector)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    /// When the oldest operation under way began.
    pub fn busy_since(&self) -> Option<u64> {
        self.working.values().map(|one| one.began).min()
    }

    /// Takes an order; the key names it until [`Disk::finish`].
    pub fn begin(&mut self, draw: &mut Draw, working: Working) -> u64 {
        let mut working = working;
        match &mut working.job {
            Job::Flush { before } => *before = self.next_stamp,
            Job::Write { range, payload } if draw.chance(10) => {
                // Part of it is there before it is done.
                let (range, payload) = (*range, payload.clone());
                self.land_some(draw, range, &payload, 30);
            }
            Job::Meta { offset, bytes } => {
                assert!((offset.is_multiple_of(512)) && bytes.len().is_multiple_of(512));
            }
            _ => {}
        }
        let key = self.next_key;
        self.next_key += 1;
        self.working.insert(key, working);
        key
    }

    /// Ends an operation: what it changes is changed now.
    pub fn finish(&mut self, draw: &mut Draw, key: u64) -> Working {
        let working = self.working.remove(&key).expect("a disk operation ends once");
        match (&working.job, working.fate) {
            (Job::Write { range, payload }, Ok(())) => {
                let (first, count) = span(*range);
                self.land(first, count, payload.clone());
            }
            (Job::Write { range, payload }, Err(_)) => self.land_some(draw, *range, payload, 50),
            (Job::Flush { before }, Ok(())) => self.settle(*before),
            (Job::Move { to }, Ok(())) => self.move_meta(to, 2),
            (Job::Meta { offset, bytes }, Ok(())) => self.write_meta(*offset, bytes),
            (Job::Meta { offset, bytes }, Err(_)) => {
                let (offset, bytes) = (*offset, bytes.clone());
                self.tear_meta(draw, offset, &bytes);
            }
            _ => {}
        }
        working
    }

    /// Somebody writes to the disk while no daemon has it.
    pub fn scribble(&mut self, sector: u64, value: u64) {
        self.live.set(sector, value);
        self.durable.set(sector, value);
        self.changes += 1;
    }

    /// The machine loses its power: caches are gone, what was in flight has landed in part.
    pub fn lose_power(&mut self, draw: &mut Draw) -> Torn {
        let mut torn = Torn::default();
        let flying: Vec<Working> = std::mem::take(&mut self.working).into_values().collect();
        for working in flying {
            match working.job {
                Job::Write { range, payload } => {
                    let percent = 25 * draw.below(5);
                    self.land_some(draw, range, &payload, percent);
                }
                Job::Move { to } => {
                    // Nothing, or one copy of the superblock, or all of it.
                    let copies = draw.below(3) as usize;
                    if copies > 0 {
                        self.move_meta(&to, copies);
                    }
                }
                Job::Meta { offset, bytes } => self.cut_meta(draw, offset, &bytes, &mut torn),
                _ => {}
            }
        }
        // Each write is kept whole, lost whole, or kept in part.
        for entry in std::mem::take(&mut self.volatile) {
            let percent = [0, 0, 50, 100, 100][draw.below(5) as usize];
            torn.reordered |= torn.lost && percent > 0;
            torn.lost |= percent < 100;
            for at in 0..entry.count {
                if draw.chance(percent) {
                    let value = entry.payload.as_ref().map_or(0, |values| values[at as usize]);
                    self.durable.set(entry.first + at, value);
                }
            }
        }
        self.live = self.durable.clone();
        self.changes += 1;
        torn
    }

    /// The power goes while metadata are written: whole sectors land in any order; or the bytes up
    /// to some byte do, and the sector that it is in is half old, half new.
    fn cut_meta(&mut self, draw: &mut Draw, offset: u64, bytes: &[u8], torn: &mut Torn) {
        if draw.chance(50) {
            torn.at_sector = true;
            return self.tear_meta(draw, offset, bytes);
        }
        let end = draw.below(bytes.len() as u64 + 1);
        torn.in_sector |= !end.is_multiple_of(SECTOR_BYTES);
        self.write_meta(offset, &bytes[..end as usize]);
    }

    /// The superblock copies that are being written.
    pub fn superblocks_under_way(&self) -> impl Iterator<Item = Superblock> {
        self.working.values().filter_map(|working| match &working.job {
            Job::Meta { bytes, .. } if bytes.len() == SUPERBLOCK_BYTES => {
                Superblock::decode(bytes).ok()
            }
            _ => None,
        })
    }

    fn tear_meta(&mut self, draw: &mut Draw, offset: u64, bytes: &[u8]) {
        let percent = [0, 30, 70, 100][draw.below(4) as usize];
        for (index, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
            if draw.chance(percent) {
                self.write_meta(offset + index as u64 * SECTOR_BYTES, sector);
            }
        }
    }

    fn land_some(&mut self, draw: &mut Draw, range: ByteRange, payload: &Payload, percent: u64) {
        let (first, count) = span(range);
        let mut at = 0;
        while at < count {
            let run = (1 + draw.below(count)).min(count - at);
            if draw.chance(percent) {
                let part =
                    payload.as_ref().map(|values| values[at as usize..(at + run) as usize].into());
                self.land(first + at, run, part);
            }
            at += run;
        }
    }

    /// A sector changes by itself.
    pub fn rot_sector(&mut self, sector: u64) {
        self.rotten.insert(sector);
    }

    /// Sectors that did.
    pub fn rotten(&self) -> &BTreeSet<u64> {
        &self.rotten
    }

    /// It has a sound medium again.
    pub fn forget_rot(&mut self) {
        self.rotten.clear();
    }

    fn land(&mut self, first: u64, count: u64, payload: Payload) {
        if !self.rotten.is_empty() {
            self.rotten.retain(|sector| !(first..first + count).contains(sector));
        }
        self.live.write(first, count, &payload);
        self.changes += 1;
        self.volatile.push(Volatile { stamp: self.next_stamp, first, count, payload });
        self.next_stamp += 1;
    }

    /// Changes a bit of metadata.
    pub fn flip_bit(&mut self, at: u64, bit: u8) {
        let byte = self.region[at as usize] ^ (1 << bit);
        self.write_meta(at, &[byte]);
    }

    /// Everything done before this stamp is durable.
    pub fn settle(&mut self, before: u64) {
        let count = self.volatile.partition_point(|entry| entry.stamp < before);
        for entry in self.volatile.drain(..count) {
            self.durable.write(entry.first, entry.count, &entry.payload);
        }
    }
}

/// First sector and number of sectors of an aligned range.
pub fn span(range: ByteRange) -> (u64, u64) {
    assert!(range.is_aligned(SECTOR_BYTES), "unaligned disk operation {range:?}");
    (range.start / SECTOR_BYTES, range.length / SECTOR_BYTES)
}

//! The cache of the volatile test disk: what was written and not flushed is in the memory of the
//! process only, so SIGKILL loses it as a power cut would. A flush is carried out by a thread of
//! its own, in order, so that the loop answers its peers meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};
use std::thread;

use memmap2::MmapMut;
use nix::sys::eventfd::EventFd;
use replicator_core::{ByteRange, OpId};

/// Neighbouring blocks are written together, up to this.
const RUN_BYTES: usize = 1 << 20;

/// Blocks by their number.
type Blocks = BTreeMap<u64, Box<[u8]>>;

pub(super) struct VolatileCache {
    block_bytes: u64,
    unflushed: Blocks,
    /// What is on its way to the disk, oldest first.
    flushing: VecDeque<(OpId, Arc<Blocks>)>,
    /// Made with the first flush.
    flusher: Option<Flusher>,
    bell: Arc<EventFd>,
}

struct Flusher {
    work: mpsc::Sender<Arc<Blocks>>,
    done: mpsc::Receiver<io::Result<()>>,
}

impl VolatileCache {
    pub fn new(block_bytes: u32, bell: Arc<EventFd>) -> Self {
        Self {
            block_bytes: u64::from(block_bytes),
            unflushed: Blocks::new(),
            flushing: VecDeque::new(),
            flusher: None,
            bell,
        }
    }

    /// Flushes under way.
    pub fn flushes(&self) -> usize {
        self.flushing.len()
    }

    pub fn write(&mut self, range: ByteRange, bytes: &[u8]) {
        let first = range.start / self.block_bytes;
        for (block, bytes) in (first..).zip(bytes.chunks(self.block_bytes as usize)) {
            self.unflushed.insert(block, bytes.into());
        }
    }

    pub fn zero(&mut self, range: ByteRange) {
        for block in range.start / self.block_bytes..range.end() / self.block_bytes {
            let zeroes = vec![0; self.block_bytes as usize].into_boxed_slice();
            self.unflushed.insert(block, zeroes);
        }
    }

    /// Reads from the disk and puts the newer blocks over it; waits for the disk.
    pub fn read(&self, disk: &File, range: ByteRange, into: &mut [u8]) -> io::Result<()> {
        disk.read_exact_at(into, range.start)?;
        let first = range.start / self.block_bytes;
        let beyond = range.end().div_ceil(self.block_bytes);
        let older = self.flushing.iter().map(|(_, blocks)| &**blocks);
        for layer in older.chain([&self.unflushed]) {
            for (block, bytes) in layer.range(first..beyond) {
                let at = ((block - first) * self.block_bytes) as usize;
                into[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Begins a flush of everything written so far; [`VolatileCache::landed`] tells its end.
    pub fn flush(&mut self, op: OpId, disk: &File) -> io::Result<()> {
        if self.flusher.is_none() {
            self.flusher = Some(Flusher::start(disk.try_clone()?, self.block_bytes, &self.bell)?);
        }
        let blocks = Arc::new(mem::take(&mut self.unflushed));
        let work = &self.flusher.as_ref().expect("it was just made").work;
        work.send(blocks.clone()).expect("the flusher lives as long as its channel");
        self.flushing.push_back((op, blocks));
        Ok(())
    }

    /// The next flush that has ended, in the order in which they began.
    pub fn landed(&mut self) -> Option<(OpId, io::Result<()>)> {
        let result = self.flusher.as_ref()?.done.try_recv().ok()?;
        let (op, _) = self.flushing.pop_front().expect("a flush that ended has begun");
        Some((op, result))
    }
}

impl Flusher {
    fn start(disk: File, block_bytes: u64, bell: &Arc<EventFd>) -> io::Result<Self> {
        let mut run = Run { bytes: MmapMut::map_anon(RUN_BYTES)?, length: 0, start: 0 };
        let (work, orders) = mpsc::channel::<Arc<Blocks>>();
        let (sender, done) = mpsc::channel();
        let bell = bell.clone();
        thread::Builder::new().name("volatile-flush".to_owned()).spawn(move || {
            for blocks in orders {
                let result = run.write_all(&blocks, &disk, block_bytes);
                // Both fail only when the loop is gone.
                let _ = sender.send(result);
                let _ = bell.write(1);
            }
        })?;
        Ok(Self { work, done })
    }
}

/// Neighbouring blocks, in a buffer that direct I/O takes.
struct Run {
    bytes: MmapMut,
    length: usize,
    start: u64,
}

impl Run {
    /// Writes everything; the process may be killed afterwards, the machine may not.
    fn write_all(&mut self, blocks: &Blocks, disk: &File, block_bytes: u64) -> io::Result<()> {
        let mut result = Ok(());
        for (block, bytes) in blocks {
            let at = block * block_bytes;
            let follows = at == self.start + self.length as u64;
            if !follows || self.length + bytes.len() > RUN_BYTES {
                result = result.and(self.write_out(disk));
                self.start = at;
            }
            self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
            self.length += bytes.len();
        }
        result.and(self.write_out(disk))
    }

    fn write_out(&mut self, disk: &File) -> io::Result<()> {
        let length = mem::take(&mut self.length);
        disk.write_all_at(&self.bytes[..length], self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    const BLOCK: u64 = 512;

    #[test]
    fn what_is_read_is_the_newest_and_what_is_flushed_is_on_the_disk_and_no_more() {
        let path = std::env::temp_dir().join(format!("volatile-cache-{}", std::process::id()));
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let disk = open.unwrap();
        disk.set_len(64 * BLOCK).unwrap();
        let bell = Arc::new(EventFd::new().unwrap());
        let mut cache = VolatileCache::new(BLOCK as u32, bell.clone());
        cache.write(ByteRange::new(2 * BLOCK, 4 * BLOCK), &[1; 4 * BLOCK as usize]);
        cache.write(ByteRange::new(20 * BLOCK, BLOCK), &[2; BLOCK as usize]);
        cache.flush(OpId(1), &disk).unwrap();
        cache.zero(ByteRange::new(3 * BLOCK, BLOCK));
        cache.write(ByteRange::new(40 * BLOCK, BLOCK), &[3; BLOCK as usize]);

        let seen = |cache: &VolatileCache| {
            let mut bytes = vec![9; 64 * BLOCK as usize];
            cache.read(&disk, ByteRange::new(0, 64 * BLOCK), &mut bytes).unwrap();
            [1, 2, 3, 4, 6, 20, 40].map(|block| bytes[block * BLOCK as usize])
        };
        assert_eq!(seen(&cache), [0, 1, 0, 1, 0, 2, 3]);
        bell.read().unwrap();
        assert!(matches!(cache.landed(), Some((OpId(1), Ok(())))));
        assert_eq!(cache.flushes(), 0);
        assert_eq!(seen(&cache), [0, 1, 0, 1, 0, 2, 3]);
        let after_a_kill = VolatileCache::new(BLOCK as u32, bell);
        assert_eq!(seen(&after_a_kill), [0, 1, 1, 1, 0, 2, 0]);
        std::fs::remove_file(path).unwrap();
    }
}

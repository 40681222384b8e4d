//! The disk operations of a running loop: what the core ordered, carried out by the ring. Short
//! transfers are continued and interrupted ones repeated; a failed one is reported and never
//! repeated, because the kernel may answer the second try with a success that means nothing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::thread;

use nix::sys::eventfd::EventFd;
use replicator_core::block::DIRTY_BLOCK_BYTES;
use replicator_core::metadata::SUPERBLOCK_BYTES;
use replicator_core::metadata::fingerprint_samples;
use replicator_core::room::MetaMove;
use replicator_core::{BufId, ByteRange, DiskFailure, DiskOutcome, Input, OpId, Time, limits};

use super::volatile_cache::VolatileCache;
use super::{Io, Token};
use crate::buffers::{Pool, Share};
use crate::disk::{Disk, DiskError, TestBacking};

/// Size of the buffer of zeroes for disks that cannot zero by themselves.
const ZEROES_BYTES: usize = 64 << 10;
/// Metadata writes go to the disk in steps of at most this.
const META_STEP_BYTES: usize = 64 << 10;

/// How a disk can make a range read as zeroes, the best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ZeroBy {
    Punching,
    Zeroing,
    Writing,
}

#[derive(Debug)]
enum Kind {
    Read {
        buf: BufId,
    },
    Write {
        buf: BufId,
    },
    /// Reads the first and the last block of `aligned` into a bounce buffer; `done` of them are.
    /// The client's request keeps `buf` until the core has answered it.
    Edges {
        wanted: ByteRange,
        aligned: ByteRange,
        buf: BufId,
        bounce: BufId,
        done: usize,
    },
    Resync {
        buf: BufId,
    },
    Digest {
        buf: BufId,
    },
    Zero {
        by: ZeroBy,
    },
    Flush,
    /// `done` bytes are durable.
    Meta {
        bytes: Box<[u8]>,
        bounce: BufId,
        done: usize,
    },
}

#[derive(Debug)]
struct Operation {
    op: OpId,
    kind: Kind,
    /// What is moved now: all of it, or the present step, as a place on the disk.
    range: ByteRange,
    /// Bytes of the range that are moved.
    moved: u64,
    began: Time,
}

/// An operation that waits for a buffer.
#[derive(Debug)]
enum Waiting {
    Resync { op: OpId, range: ByteRange },
    Edges { op: OpId, wanted: ByteRange, aligned: ByteRange, buf: BufId },
    Meta { op: OpId, offset: u64, bytes: Box<[u8]> },
}

/// What a helper thread has done.
type Helped = (OpId, Result<DiskOutcome, DiskFailure>);

/// The disk of a running loop.
pub(crate) struct DiskPort {
    disk: Disk,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    waiting: VecDeque<Waiting>,
    /// Reads for a verify that wait for a buffer: behind all others, and before none.
    digests: VecDeque<(OpId, ByteRange)>,
    /// What this disk was found unable to do is not tried again.
    zero_best: ZeroBy,
    zeroes: BufId,
    scratch: Vec<u8>,
    /// For [`TestBacking::Volatile`].
    volatile: VolatileCache,
    helpers: (mpsc::Sender<Helped>, mpsc::Receiver<Helped>),
    /// The metadata are on their way to the end of their device.
    moving: Option<(OpId, Box<MetaMove>)>,
    bell: Arc<EventFd>,
}

impl DiskPort {
    pub fn new(disk: Disk, bell: Arc<EventFd>, pool: &mut Pool) -> Self {
        let zeroes = pool.take(Share::Internal, ZEROES_BYTES).expect("the pool is new");
        pool.bytes_mut(zeroes, 0..ZEROES_BYTES).fill(0);
        let volatile = VolatileCache::new(disk.layout().block_bytes, bell.clone());
        let zero_best = if disk.can_punch() { ZeroBy::Punching } else { ZeroBy::Zeroing };
        Self {
            disk,
            operations: Vec::with_capacity(limits::REQUESTS_MAX),
            free: Vec::with_capacity(limits::REQUESTS_MAX),
            waiting: VecDeque::new(),
            digests: VecDeque::new(),
            zero_best,
            zeroes,
            scratch: Vec::new(),
            volatile,
            helpers: mpsc::channel(),
            moving: None,
            bell,
        }
    }

    /// When the oldest operation under way began.
    pub fn busy_since(&self) -> Option<Time> {
        self.operations.iter().flatten().map(|operation| operation.began).min()
    }

    /// Operations under way.
    pub fn in_flight(&self) -> usize {
        self.operations.len() - self.free.len() + self.volatile.flushes()
    }

    pub fn block_bytes(&self) -> u32 {
        self.disk.layout().block_bytes
    }

    pub fn read(&mut self, io: &mut Io, op: OpId, range: ByteRange, buf: BufId) {
        match self.disk.test_backing() {
            TestBacking::Off => self.begin(io, op, range, Kind::Read { buf }),
            TestBacking::NoDisk => succeed(io, op),
            TestBacking::Volatile => {
                let result = self.volatile_read(io, range, buf);
                tell(io, op, result.map(|()| DiskOutcome::Done));
            }
        }
    }

    pub fn write(&mut self, io: &mut Io, op: OpId, range: ByteRange, buf: BufId) {
        match self.disk.test_backing() {
            TestBacking::Off => self.begin(io, op, range, Kind::Write { buf }),
            TestBacking::NoDisk => succeed(io, op),
            TestBacking::Volatile => {
                let bytes = io.pool.bytes(buf, 0..range.length as usize);
                self.volatile.write(range, bytes);
                succeed(io, op);
            }
        }
    }

    pub fn read_edges(
        &mut self,
        io: &mut Io,
        op: OpId,
        wanted: ByteRange,
        aligned: ByteRange,
        buf: BufId,
    ) {
        self.waiting.push_back(Waiting::Edges { op, wanted, aligned, buf });
        self.resume(io);
    }

    pub fn read_for_resync(&mut self, io: &mut Io, op: OpId, range: ByteRange) {
        self.waiting.push_back(Waiting::Resync { op, range });
        self.resume(io);
    }

    pub fn digest(&mut self, io: &mut Io, op: OpId, range: ByteRange) {
        self.digests.push_back((op, range));
        self.resume(io);
    }

    pub fn write_meta(&mut self, io: &mut Io, op: OpId, offset: u64, bytes: Box<[u8]>) {
        let layout = self.disk.layout();
        let end = offset + bytes.len() as u64;
        assert!(!bytes.is_empty() && end <= layout.region_bytes, "metadata write at {offset}");
        let superblocks =
            [layout.bitmaps_bytes, layout.region_bytes.saturating_sub(SUPERBLOCK_BYTES as u64)];
        if offset < layout.bitmaps_bytes {
            io.counters.bitmap_writes += 1;
        } else if !superblocks.contains(&offset) {
            io.counters.log_writes += 1;
        }
        self.waiting.push_back(Waiting::Meta { op, offset, bytes });
        self.resume(io);
    }

    pub fn zero(&mut self, io: &mut Io, op: OpId, range: ByteRange, may_punch: bool) {
        match self.disk.test_backing() {
            TestBacking::Off => {
                let by = match self.zero_best {
                    ZeroBy::Punching if !may_punch => ZeroBy::Zeroing,
                    best => best,
                };
                self.begin(io, op, range, Kind::Zero { by });
            }
            TestBacking::NoDisk => succeed(io, op),
            TestBacking::Volatile => {
                self.volatile.zero(range);
                succeed(io, op);
            }
        }
    }

    pub fn flush(&mut self, io: &mut Io, op: OpId) {
        match self.disk.test_backing() {
            TestBacking::Off => self.begin(io, op, ByteRange::default(), Kind::Flush),
            TestBacking::NoDisk => succeed(io, op),
            TestBacking::Volatile => {
                if let Err(error) = self.volatile.flush(op, self.disk.data_file()) {
                    tell(io, op, Err(failure(error)));
                }
            }
        }
    }

    /// Runs of a range: length and whether it is a hole, at most `runs_max`.
    pub fn map(&self, range: ByteRange, runs_max: usize) -> Result<Vec<(u64, bool)>, DiskFailure> {
        self.disk.map(range, runs_max).map_err(failure)
    }

    /// Takes a fingerprint in a thread of its own, since it reads many places one by one.
    pub fn take_fingerprint(&mut self, io: &mut Io, op: OpId, size_bytes: u64) {
        let prepared = self.disk.fingerprinter(fingerprint_samples(size_bytes));
        self.in_helper(io, op, "fingerprint", prepared, |fingerprinter| {
            fingerprinter.take().map(DiskOutcome::Fingerprint)
        });
    }

    /// Says how large the disk is now.
    pub fn measure(&self, io: &mut Io, op: OpId) {
        let measured = self.disk.measure().map_err(failure);
        tell(
            io,
            op,
            measured.map(|(device_bytes, disk_bytes)| DiskOutcome::Measured {
                device_bytes,
                disk_bytes,
            }),
        );
    }

    /// Bytes that were added to the disk and that this replica makes no use of yet.
    pub fn added_bytes(&self) -> u64 {
        self.disk.added_bytes()
    }

    /// Moves the metadata, in a thread of its own.
    pub fn move_meta(&mut self, io: &mut Io, op: OpId, to: Box<MetaMove>) {
        let prepared = self.disk.mover();
        self.moving = Some((op, to.clone()));
        self.in_helper(io, op, "move metadata", prepared, move |mover| {
            mover.run(&to).map(|()| DiskOutcome::Done)
        });
    }

    fn in_helper<T: Send + 'static>(
        &self,
        io: &mut Io,
        op: OpId,
        name: &'static str,
        prepared: io::Result<T>,
        act: impl FnOnce(T) -> Result<DiskOutcome, DiskError> + Send + 'static,
    ) {
        let (sender, bell) = (self.helpers.0.clone(), self.bell.clone());
        let started = prepared.and_then(|handle| {
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                let result = act(handle).map_err(|error| {
                    tracing::error!(%error, "{name}");
                    DiskFailure::Io(libc::EIO)
                });
                // Both fail only when the loop is gone.
                let _ = sender.send((op, result));
                let _ = bell.write(1);
            })
        });
        if let Err(error) = started {
            tell(io, op, Err(failure(error)));
        }
    }

    /// Passes on what helper threads have done; the bell rang.
    pub fn helpers_done(&mut self, io: &mut Io) {
        while let Ok((op, result)) = self.helpers.1.try_recv() {
            if let Some((_, to)) = self.moving.take_if(|(moving, _)| *moving == op)
                && result.is_ok()
            {
                self.disk.meta_moved(&to);
            }
            tell(io, op, result);
        }
        while let Some((op, result)) = self.volatile.landed() {
            tell(io, op, result.map(|()| DiskOutcome::Done).map_err(failure));
        }
    }

    /// Starts operations that wait for a buffer, in their order, as far as there are buffers.
    pub fn resume(&mut self, io: &mut Io) {
        while let Some(next) = self.waiting.front() {
            let (share, bytes) = match next {
                Waiting::Resync { range, .. } => (Share::Resync, range.length as usize),
                Waiting::Edges { .. } => (Share::Internal, self.block_bytes() as usize),
                Waiting::Meta { bytes, .. } => (Share::Internal, bytes.len().min(META_STEP_BYTES)),
            };
            let Some(buf) = io.pool.take(share, bytes) else { break };
            match self.waiting.pop_front().expect("there is a front") {
                Waiting::Resync { op, range } => self.start_resync(io, op, range, buf),
                Waiting::Edges { op, wanted, aligned, buf: target } => {
                    let kind = Kind::Edges { wanted, aligned, buf: target, bounce: buf, done: 0 };
                    self.begin(io, op, ByteRange::default(), kind);
                }
                Waiting::Meta { op, offset, bytes } => {
                    let start = self.disk.layout().region_start + offset;
                    let kind = Kind::Meta { bytes, bounce: buf, done: 0 };
                    self.begin(io, op, ByteRange::new(start, 0), kind);
                }
            }
        }
        while let Some(&(op, range)) = self.digests.front() {
            let Some(buf) = io.pool.take(Share::Resync, range.length as usize) else { return };
            self.digests.pop_front();
            self.start_digest(io, op, range, buf);
        }
    }

    fn start_digest(&mut self, io: &mut Io, op: OpId, range: ByteRange, buf: BufId) {
        let result = match self.disk.test_backing() {
            TestBacking::Off => return self.begin(io, op, range, Kind::Digest { buf }),
            TestBacking::NoDisk => {
                io.pool.bytes_mut(buf, 0..range.length as usize).fill(0);
                Ok(())
            }
            TestBacking::Volatile => self.volatile_read(io, range, buf),
        };
        let result = digests(io, buf, range.length as usize, result);
        tell(io, op, result);
    }

    fn start_resync(&mut self, io: &mut Io, op: OpId, range: ByteRange, buf: BufId) {
        match self.disk.test_backing() {
            TestBacking::Off => self.begin(io, op, range, Kind::Resync { buf }),
            TestBacking::NoDisk => tell(io, op, Ok(DiskOutcome::Read { data: Some(buf) })),
            TestBacking::Volatile => {
                let result = self.volatile_read(io, range, buf);
                let result = resync_outcome(io, buf, range.length as usize, result);
                tell(io, op, result);
            }
        }
    }

    fn begin(&mut self, io: &mut Io, op: OpId, range: ByteRange, kind: Kind) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() as u32 - 1
        });
        let operation = Operation { op, kind, range, moved: 0, began: io.now };
        self.operations[slot as usize] = Some(operation);
        let has_steps = matches!(
            self.operations[slot as usize].as_ref().map(|operation| &operation.kind),
            Some(Kind::Edges { .. } | Kind::Meta { .. })
        );
        if has_steps {
            self.next_step(io, slot);
        } else {
            self.submit(io, slot);
        }
    }

    /// Submits what is left of the present step.
    fn submit(&mut self, io: &mut Io, slot: u32) {
        let operation = self.operations[slot as usize].as_ref().expect("an open operation");
        let data = self.disk.data_file().as_raw_fd();
        let token = Token::Disk(slot);
        let at = operation.range.start + operation.moved;
        let left = operation.range.length - operation.moved;
        let bytes = operation.moved as usize..operation.range.length as usize;
        let Io { ring, pool, .. } = io;
        match operation.kind {
            Kind::Read { buf }
            | Kind::Resync { buf }
            | Kind::Digest { buf }
            | Kind::Edges { bounce: buf, .. } => {
                ring.read(pool, data, at, buf, bytes, token);
            }
            Kind::Write { buf } => ring.write(pool, data, at, buf, bytes, false, token),
            Kind::Meta { bounce, .. } => {
                let meta = self.disk.meta_file().as_raw_fd();
                ring.write(pool, meta, at, bounce, bytes, true, token);
            }
            Kind::Flush => ring.flush(data, token),
            Kind::Zero { by: ZeroBy::Punching } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                ring.allocate(data, mode, at, left, token);
            }
            Kind::Zero { by: ZeroBy::Zeroing } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                ring.allocate(data, mode, at, left, token);
            }
            Kind::Zero { by: ZeroBy::Writing } => {
                let step = left.min(ZEROES_BYTES as u64) as usize;
                ring.write(pool, data, at, self.zeroes, 0..step, false, token);
            }
        }
    }

    /// The ring has completed an operation, or a part of it.
    pub fn completed(&mut self, io: &mut Io, slot: u32, result: Result<u32, i32>) {
        let block_bytes = u64::from(self.block_bytes());
        let operation = self.operations[slot as usize].as_mut().expect("an open operation");
        let zeroes_itself = matches!(operation.kind, Kind::Zero { by } if by != ZeroBy::Writing);
        match result {
            Err(libc::EINTR | libc::EAGAIN) => return self.submit(io, slot),
            Err(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS) if zeroes_itself => {
                if let Kind::Zero { by } = &mut operation.kind {
                    *by = match by {
                        ZeroBy::Punching => ZeroBy::Zeroing,
                        ZeroBy::Zeroing | ZeroBy::Writing => ZeroBy::Writing,
                    };
                    self.zero_best = *by;
                }
                return self.submit(io, slot);
            }
            Err(error) => return self.failed(io, slot, error),
            Ok(_) if matches!(operation.kind, Kind::Flush) => {}
            Ok(_) if zeroes_itself => {}
            Ok(moved) => {
                operation.moved += u64::from(moved);
                if operation.moved < operation.range.length {
                    // Direct I/O goes on at a block. No progress means the disk ends early.
                    operation.moved &= !(block_bytes - 1);
                    if u64::from(moved) < block_bytes {
                        return self.failed(io, slot, libc::EIO);
                    }
                    return self.submit(io, slot);
                }
            }
        }
        if matches!(operation.kind, Kind::Edges { .. } | Kind::Meta { .. }) {
            self.step_done(io, slot);
            self.next_step(io, slot);
        } else {
            self.succeeded(io, slot);
        }
    }

    /// Goes to the next step of an operation that has several, or ends it.
    fn next_step(&mut self, io: &mut Io, slot: u32) {
        let block_bytes = u64::from(self.block_bytes());
        let operation = self.operations[slot as usize].as_mut().expect("an open operation");
        let step = match &operation.kind {
            Kind::Edges { wanted, aligned, done, .. } => {
                edge_block(*wanted, *aligned, block_bytes, *done)
            }
            Kind::Meta { bytes, bounce, done } if *done < bytes.len() => {
                let step = &bytes[*done..bytes.len().min(*done + META_STEP_BYTES)];
                io.pool.bytes_mut(*bounce, 0..step.len()).copy_from_slice(step);
                Some(ByteRange::new(operation.range.end(), step.len() as u64))
            }
            _ => None,
        };
        let Some(range) = step else { return self.succeeded(io, slot) };
        operation.range = range;
        operation.moved = 0;
        if self.disk.test_backing() == TestBacking::Volatile
            && let Kind::Edges { bounce, .. } = operation.kind
        {
            match self.volatile_read(io, range, bounce) {
                Ok(()) => {
                    self.step_done(io, slot);
                    return self.next_step(io, slot);
                }
                Err(_) => return self.failed(io, slot, libc::EIO),
            }
        }
        self.submit(io, slot);
    }

    /// Takes note of a step that is done.
    fn step_done(&mut self, io: &mut Io, slot: u32) {
        let operation = self.operations[slot as usize].as_mut().expect("an open operation");
        let block = operation.range;
        match &mut operation.kind {
            Kind::Meta { done, .. } => *done += block.length as usize,
            Kind::Edges { wanted, aligned, buf, bounce, done } => {
                *done += 1;
                let bounced = io.pool.bytes(*bounce, 0..block.length as usize);
                self.scratch.clear();
                self.scratch.extend_from_slice(bounced);
                // The bytes of the block before and behind what the client writes.
                let head = block.start..wanted.start.clamp(block.start, block.end());
                let tail = wanted.end().clamp(block.start, block.end())..block.end();
                for side in [head, tail] {
                    let from = (side.start - block.start) as usize;
                    let to = (side.start - aligned.start) as usize;
                    let length = (side.end - side.start) as usize;
                    io.pool
                        .bytes_mut(*buf, to..to + length)
                        .copy_from_slice(&self.scratch[from..from + length]);
                }
            }
            _ => unreachable!("only edges and metadata have steps"),
        }
    }

    fn succeeded(&mut self, io: &mut Io, slot: u32) {
        let operation = self.end(io, slot);
        let took = io.now.since(operation.began);
        let result = match operation.kind {
            Kind::Resync { buf } => {
                resync_outcome(io, buf, operation.range.length as usize, Ok(()))
            }
            Kind::Digest { buf } => digests(io, buf, operation.range.length as usize, Ok(())),
            Kind::Read { .. } => {
                io.counters.disk_read.record(took);
                Ok(DiskOutcome::Done)
            }
            Kind::Write { .. } => {
                io.counters.disk_write.record(took);
                Ok(DiskOutcome::Done)
            }
            Kind::Flush => {
                io.counters.disk_flush.record(took);
                Ok(DiskOutcome::Done)
            }
            Kind::Edges { .. } | Kind::Zero { .. } | Kind::Meta { .. } => Ok(DiskOutcome::Done),
        };
        tell(io, operation.op, result);
    }

    fn failed(&mut self, io: &mut Io, slot: u32, error: i32) {
        let operation = self.end(io, slot);
        if let Kind::Resync { buf } | Kind::Digest { buf } = operation.kind {
            io.pool.release(buf);
        }
        tell(io, operation.op, Err(failure(io::Error::from_raw_os_error(error))));
    }

    /// Closes an operation and gives back the buffers that only it needed.
    fn end(&mut self, io: &mut Io, slot: u32) -> Operation {
        let operation = self.operations[slot as usize].take().expect("an open operation");
        self.free.push(slot);
        match operation.kind {
            Kind::Edges { bounce, .. } | Kind::Meta { bounce, .. } => io.pool.release(bounce),
            _ => {}
        }
        operation
    }

    fn volatile_read(
        &mut self,
        io: &mut Io,
        range: ByteRange,
        buf: BufId,
    ) -> Result<(), DiskFailure> {
        let bytes = io.pool.bytes_mut(buf, 0..range.length as usize);
        self.volatile.read(self.disk.data_file(), range, bytes).map_err(failure)
    }
}

/// The blocks at the ends of an unaligned write, one by one: first the one that its head leaves
/// incomplete, then the one that its tail does, unless that is the same.
fn edge_block(
    wanted: ByteRange,
    aligned: ByteRange,
    block_bytes: u64,
    done: usize,
) -> Option<ByteRange> {
    let head = (wanted.start > aligned.start).then_some(aligned.start);
    let last = aligned.end() - block_bytes;
    let tail = (wanted.end() < aligned.end() && head != Some(last)).then_some(last);
    let start = head.into_iter().chain(tail).nth(done)?;
    Some(ByteRange::new(start, block_bytes))
}

/// What a resync read found; blocks of zeroes need no buffer.
fn resync_outcome(
    io: &mut Io,
    buf: BufId,
    length: usize,
    result: Result<(), DiskFailure>,
) -> Result<DiskOutcome, DiskFailure> {
    let keep = result.is_ok() && !is_zero(io.pool.bytes(buf, 0..length));
    if !keep {
        io.pool.release(buf);
    }
    result.map(|()| DiskOutcome::Read { data: keep.then_some(buf) })
}

/// The hashes of the blocks of a read for a verify.
fn digests(
    io: &mut Io,
    buf: BufId,
    length: usize,
    result: Result<(), DiskFailure>,
) -> Result<DiskOutcome, DiskFailure> {
    let blocks = io.pool.bytes(buf, 0..length).chunks(DIRTY_BLOCK_BYTES as usize);
    let outcome = result.map(|()| {
        DiskOutcome::Digests(blocks.map(|block| *blake3::hash(block).as_bytes()).collect())
    });
    io.pool.release(buf);
    outcome
}

/// Whether all bytes are zero; compares the range with itself shifted, at memory speed.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        None => true,
        Some((0, rest)) => rest == &bytes[..rest.len()],
        Some(_) => false,
    }
}

fn succeed(io: &mut Io, op: OpId) {
    tell(io, op, Ok(DiskOutcome::Done));
}

fn tell(io: &mut Io, op: OpId, result: Result<DiskOutcome, DiskFailure>) {
    if result.is_err() {
        io.counters.disk_errors += 1;
    }
    io.tell(Input::DiskDone { op, result });
}

fn failure(error: io::Error) -> DiskFailure {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskFailure::NoSpace,
        Some(error) => DiskFailure::Io(error),
        None => DiskFailure::Io(libc::EIO),
    }
}

//! What a core may rely on of a disk. Each body runs on the simulated disk and on real ones.
//!
//! Where a body returns contents, they are what a crash has left, for the tests to compare how
//! much the different disks do to us: the simulated one must be at least as bad as a real one.

use replicator_core::{BufId, ByteRange, DiskFailure, DiskOutcome, Effect, Input, OpId};

use crate::{BLOCK, BLOCK_BYTES, Crash, Nodes, SECTOR_BYTES, Trouble};

type Outcome = Result<DiskOutcome, DiskFailure>;

/// A body works with one node.
const NODE: usize = 0;
const EIO: i32 = 5;

/// A disk under test, with names for its operations.
struct Bench<'a> {
    nodes: &'a mut dyn Nodes,
    next_op: u64,
}

fn blocks(first: u64, count: u64) -> ByteRange {
    ByteRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES)
}

/// Contents of so many blocks, no two sectors alike.
fn pattern(name: u64, count: u64) -> Vec<u64> {
    (0..count * BLOCK).map(|sector| name * 10_000 + sector + 1).collect()
}

impl<'a> Bench<'a> {
    fn new(nodes: &'a mut dyn Nodes) -> Self {
        Self { nodes, next_op: 0 }
    }

    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn order(&mut self, effect: Effect) {
        self.nodes.order(NODE, vec![effect]);
    }

    /// The outcome of the next operation that ends.
    fn next(&mut self) -> (OpId, Outcome) {
        match self.nodes.hear(NODE) {
            Input::DiskDone { op, result } => (op, result),
            other => panic!("{other:?} instead of the end of a disk operation"),
        }
    }

    /// The outcome of the only operation under way.
    fn await_only(&mut self, op: OpId) -> Outcome {
        let (ended, outcome) = self.next();
        assert_eq!(ended, op);
        outcome
    }

    fn run(&mut self, effect: impl FnOnce(OpId) -> Effect) -> Outcome {
        let op = self.op();
        self.order(effect(op));
        self.await_only(op)
    }

    fn begin_write(&mut self, first: u64, contents: &[u64]) -> (OpId, BufId) {
        let buf = self.nodes.give(NODE, contents);
        let op = self.op();
        let range = blocks(first, contents.len() as u64 / BLOCK);
        self.order(Effect::WriteDisk { op, range, buf });
        (op, buf)
    }

    fn release(&mut self, buf: BufId) {
        self.order(Effect::ReleaseBuf { buf });
    }

    fn write(&mut self, first: u64, contents: &[u64]) {
        let (op, buf) = self.begin_write(first, contents);
        assert_eq!(self.await_only(op), Ok(DiskOutcome::Done));
        self.release(buf);
    }

    fn read(&mut self, first: u64, count: u64) -> Vec<u64> {
        let buf = self.nodes.give(NODE, &pattern(77, count));
        let range = blocks(first, count);
        assert_eq!(self.run(|op| Effect::ReadDisk { op, range, buf }), Ok(DiskOutcome::Done));
        let contents = self.nodes.look(NODE, buf, count * BLOCK);
        self.release(buf);
        contents
    }

    fn flush(&mut self) {
        assert_eq!(self.run(|op| Effect::FlushDisk { op }), Ok(DiskOutcome::Done));
    }

    fn fingerprint(&mut self) -> [u8; 32] {
        let size_bytes = self.nodes.data_bytes();
        match self.run(|op| Effect::TakeFingerprint { op, size_bytes }) {
            Ok(DiskOutcome::Fingerprint(hash)) => hash,
            other => panic!("{other:?} instead of a fingerprint"),
        }
    }

    /// Reads for a resync; `None` when the range is all zeroes.
    fn read_for_resync(&mut self, first: u64, count: u64) -> Option<Vec<u64>> {
        let range = blocks(first, count);
        match self.run(|op| Effect::ReadForResync { op, range }) {
            Ok(DiskOutcome::Read { data }) => data.map(|buf| {
                let contents = self.nodes.look(NODE, buf, count * BLOCK);
                self.release(buf);
                contents
            }),
            other => panic!("{other:?} instead of a read"),
        }
    }
}

/// Digests of a range differ in the blocks whose contents do, and in no other.
pub fn digests_differ_exactly_where_the_contents_do(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    let digests = |bench: &mut Bench<'_>, first| {
        let range = blocks(first, 4);
        match bench.run(|op| Effect::DigestDisk { op, range }) {
            Ok(DiskOutcome::Digests(digests)) => digests.into_vec(),
            other => panic!("{other:?} instead of digests"),
        }
    };
    bench.write(10, &pattern(1, 4));
    bench.write(20, &pattern(1, 4));
    let here = digests(&mut bench, 10);
    assert_eq!(here.len(), 4);
    assert_eq!(here, digests(&mut bench, 20));
    bench.write(22, &pattern(2, 1));
    let there = digests(&mut bench, 20);
    let differ: Vec<usize> = (0..4).filter(|&at| here[at] != there[at]).collect();
    assert_eq!(differ, [2]);
    assert!(here.iter().all(|digest| !digests(&mut bench, 30).contains(digest)), "zeroes");
}

/// A read after a write that is done returns it, in whole or in part; what is around it stays.
pub fn a_read_returns_the_last_write_that_is_done(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    bench.write(10, &pattern(1, 6));
    bench.write(12, &pattern(2, 2));
    let expected = [&pattern(1, 6)[..16], &pattern(2, 2), &pattern(1, 6)[32..]].concat();
    assert_eq!(bench.read(10, 6), expected);
    assert_eq!(bench.read(13, 1), pattern(2, 2)[8..]);
    assert_eq!(bench.read(16, 2), [0; 16]);
    assert_eq!(bench.nodes.buffers(NODE), 0);
}

/// The largest operation, 1 MiB: no transfer is left short.
pub fn the_largest_write_and_read_are_whole(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    bench.write(5, &pattern(3, 256));
    assert_eq!(bench.read(5, 256), pattern(3, 256));
    assert_eq!(bench.read_for_resync(5, 256), Some(pattern(3, 256)));
}

/// A write takes the start of its buffer, a read fills the start of its, as long as the range is.
pub fn only_the_start_of_a_longer_buffer_is_moved(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    let buf = bench.nodes.give(NODE, &pattern(4, 3));
    let range = blocks(20, 1);
    assert_eq!(bench.run(|op| Effect::WriteDisk { op, range, buf }), Ok(DiskOutcome::Done));
    assert_eq!(bench.read(20, 2), [&pattern(4, 1)[..], &[0; 8]].concat());
    let range = blocks(30, 2);
    assert_eq!(bench.run(|op| Effect::ReadDisk { op, range, buf }), Ok(DiskOutcome::Done));
    let contents = bench.nodes.look(NODE, buf, 3 * BLOCK);
    assert_eq!(contents, [&[0; 16][..], &pattern(4, 3)[16..]].concat());
    bench.release(buf);
}

/// Every order of one step is answered once, in whatever order (the probe checks it).
pub fn every_order_is_answered_once(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    let meta = bench.nodes.spare_meta();
    let bufs: Vec<BufId> = (0..24).map(|at| bench.nodes.give(NODE, &pattern(at, 1))).collect();
    let size_bytes = bench.nodes.data_bytes();
    let mut effects = Vec::new();
    for (at, &buf) in bufs.iter().enumerate() {
        let at = at as u64;
        let (range, op) = (blocks(at * 3, 1), bench.op());
        effects.push(match at % 3 {
            0 => Effect::ReadDisk { op, range, buf },
            _ => Effect::WriteDisk { op, range, buf },
        });
        let (range, op) = (blocks(at * 3 + 1, 1), bench.op());
        effects.push(match at % 6 {
            0 => Effect::FlushDisk { op },
            1 => Effect::ZeroDisk { op, range, may_punch: true },
            2 => Effect::ZeroDisk { op, range, may_punch: false },
            3 => Effect::ReadForResync { op, range },
            4 => Effect::WriteMeta { op, offset: meta, bytes: [5; 4096].into() },
            _ => Effect::TakeFingerprint { op, size_bytes },
        });
    }
    let count = effects.len();
    bench.nodes.order(NODE, effects);
    for _ in 0..count {
        let (op, outcome) = bench.next();
        assert!(outcome.is_ok(), "{op:?}: {outcome:?}");
    }
    bufs.into_iter().for_each(|buf| bench.release(buf));
    assert_eq!(bench.nodes.buffers(NODE), 0);
}

/// R17: zeroed ranges read as zeroes, punched or not, and nothing around them changes.
pub fn zeroed_ranges_read_as_zeroes(nodes: &mut dyn Nodes) {
    for may_punch in [true, false] {
        let mut bench = Bench::new(nodes);
        bench.write(40, &pattern(6, 40));
        let range = blocks(43, 33);
        let outcome = bench.run(|op| Effect::ZeroDisk { op, range, may_punch });
        assert_eq!(outcome, Ok(DiskOutcome::Done));
        let before = pattern(6, 40);
        let expected = [&before[..24], &[0; 33 * 8], &before[36 * 8..]].concat();
        assert_eq!(bench.read(40, 40), expected, "may_punch: {may_punch}");
        bench.write(50, &pattern(7, 1));
        assert_eq!(bench.read(49, 3), [&[0; 8][..], &pattern(7, 1), &[0; 8]].concat());
    }
}

/// A zeroing larger than any write: done as a whole.
pub fn a_long_range_is_zeroed_as_a_whole(nodes: &mut dyn Nodes) {
    let count = nodes.data_bytes() / BLOCK_BYTES;
    let mut bench = Bench::new(nodes);
    for first in [0, count / 2, count - 2] {
        bench.write(first, &pattern(8, 2));
    }
    for may_punch in [false, true] {
        let range = blocks(1, count - 2);
        let outcome = bench.run(|op| Effect::ZeroDisk { op, range, may_punch });
        assert_eq!(outcome, Ok(DiskOutcome::Done));
        assert_eq!(bench.read(0, 2), [&pattern(8, 1)[..], &[0; 8]].concat());
        assert_eq!(bench.read(count / 2, 2), [0; 16]);
        assert_eq!(bench.read(count - 2, 2), [&[0; 8][..], &pattern(8, 2)[8..]].concat());
    }
}

/// The edges of an unaligned write come from the disk; what the client sent stays.
pub fn read_edges_fills_the_edges_and_nothing_else(nodes: &mut dyn Nodes) {
    // In sectors, from the start of the first block: head and tail in one block, in blocks next
    // to each other, far apart; one edge only.
    for (start, length) in [(3, 2), (1, 8), (6, 20), (0, 9), (5, 11), (2, 6), (0, 1), (7, 1)] {
        let end: u64 = start + length;
        let count = end.div_ceil(BLOCK);
        let mut bench = Bench::new(nodes);
        bench.write(60, &pattern(9, count));
        let (range, aligned) = (
            ByteRange::new(60 * BLOCK_BYTES + start * SECTOR_BYTES, length * SECTOR_BYTES),
            blocks(60, count),
        );
        let client = pattern(1000, count);
        let buf = bench.nodes.give(NODE, &client);
        let outcome = bench.run(|op| Effect::ReadEdges { op, wanted: range, aligned, buf });
        assert_eq!(outcome, Ok(DiskOutcome::Done));
        let (filled, disk) = (bench.nodes.look(NODE, buf, count * BLOCK), pattern(9, count));
        for sector in 0..count * BLOCK {
            let at = sector as usize;
            let is_edge = sector < start || sector >= end;
            let expected = if is_edge { disk[at] } else { client[at] };
            assert_eq!(filled[at], expected, "sector {sector} of {start}..{end}");
        }
        bench.release(buf);
        assert_eq!(bench.nodes.buffers(NODE), 0);
    }
}

/// Zeroes need no buffer, anything else brings one.
pub fn a_resync_read_of_zeroes_brings_no_buffer(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    assert_eq!(bench.read_for_resync(70, 8), None);
    bench.write(77, &[[0; 7].as_slice(), &[9]].concat());
    assert_eq!(bench.read_for_resync(70, 8), Some([&[0; 63][..], &[9]].concat()));
    let range = blocks(70, 8);
    let outcome = bench.run(|op| Effect::ZeroDisk { op, range, may_punch: true });
    assert_eq!(outcome, Ok(DiskOutcome::Done));
    assert_eq!(bench.read_for_resync(70, 8), None);
    assert_eq!(bench.nodes.buffers(NODE), 0);
}

/// R12: it changes with a sample, with nothing else, and a new process finds the same.
pub fn a_fingerprint_is_that_of_the_samples(nodes: &mut dyn Nodes) {
    let data_bytes = nodes.data_bytes();
    let samples = replicator_core::metadata::fingerprint_samples(data_bytes);
    let outside = (0..data_bytes / BLOCK_BYTES)
        .find(|&block| samples.iter().all(|sample| !sample.overlaps(blocks(block, 1))))
        .expect("not everything is sampled");
    let mut bench = Bench::new(nodes);
    let empty = bench.fingerprint();
    bench.write(outside, &pattern(11, 1));
    bench.flush();
    assert_eq!(bench.fingerprint(), empty, "a change outside of the samples");
    bench.write(samples[3].start / BLOCK_BYTES, &pattern(12, 1));
    bench.flush();
    let changed = bench.fingerprint();
    assert_ne!(changed, empty, "a change in a sample");
    assert!(bench.nodes.crash(NODE, Crash::Process));
    bench.nodes.restart(NODE);
    assert_eq!(Bench::new(nodes).fingerprint(), changed);
}

/// Done means durable, for metadata.
pub fn metadata_are_durable_when_done(nodes: &mut dyn Nodes, how: Crash) {
    let offset = nodes.spare_meta();
    let mut bench = Bench::new(nodes);
    let first: Box<[u8]> = [1; 8192].into();
    let second: Box<[u8]> = [2; 4096].into();
    let done = Ok(DiskOutcome::Done);
    assert_eq!(bench.run(|op| Effect::WriteMeta { op, offset, bytes: first }), done);
    let middle = offset + 4096;
    assert_eq!(bench.run(|op| Effect::WriteMeta { op, offset: middle, bytes: second }), done);
    assert!(bench.nodes.crash(NODE, how));
    let found = bench.nodes.meta(NODE, offset, 8192);
    assert!(found == [[1; 4096], [2; 4096]].concat(), "metadata were lost");
    bench.nodes.restart(NODE);
}

/// Metadata that were being written when the power went: each byte is old or new, even within a
/// sector; they verify themselves.
pub fn metadata_in_flight_are_old_or_new(nodes: &mut dyn Nodes) -> Vec<u64> {
    let offset = nodes.spare_meta();
    let mut bench = Bench::new(nodes);
    let old: Box<[u8]> = [1; 8192].into();
    let done = Ok(DiskOutcome::Done);
    assert_eq!(bench.run(|op| Effect::WriteMeta { op, offset, bytes: old }), done);
    let op = bench.op();
    bench.order(Effect::WriteMeta { op, offset, bytes: [2; 8192].into() });
    assert!(bench.nodes.crash(NODE, Crash::Power));
    let found = bench.nodes.meta(NODE, offset, 8192);
    assert!(found.iter().all(|byte| [1, 2].contains(byte)), "{found:?}");
    bench.nodes.restart(NODE);
    found.into_iter().map(u64::from).collect()
}

/// What a flush covers is there after every crash: all that was done before it was ordered.
pub fn flushed_writes_survive(nodes: &mut dyn Nodes, how: Crash) {
    let mut bench = Bench::new(nodes);
    bench.write(80, &pattern(13, 3));
    let range = blocks(81, 1);
    let outcome = bench.run(|op| Effect::ZeroDisk { op, range, may_punch: true });
    assert_eq!(outcome, Ok(DiskOutcome::Done));
    bench.flush();
    assert!(bench.nodes.crash(NODE, how));
    bench.nodes.restart(NODE);
    let before = pattern(13, 3);
    let expected = [&before[..8], &[0; 8], &before[16..]].concat();
    assert_eq!(Bench::new(nodes).read(80, 3), expected);
}

/// A write that is done and not flushed survives its process.
pub fn done_writes_survive_their_process(nodes: &mut dyn Nodes) {
    let mut bench = Bench::new(nodes);
    bench.write(90, &pattern(14, 4));
    assert!(bench.nodes.crash(NODE, Crash::Process));
    bench.nodes.restart(NODE);
    assert_eq!(Bench::new(nodes).read(90, 4), pattern(14, 4));
}

/// A write that is done and not flushed may be gone with the power; each sector is old or new.
pub fn unflushed_writes_are_old_or_new(nodes: &mut dyn Nodes) -> Vec<u64> {
    let mut bench = Bench::new(nodes);
    bench.write(100, &[15; 16]);
    bench.flush();
    bench.write(100, &[16; 16]);
    assert_eq!(bench.read(100, 2), [16; 16], "the cache is read through");
    assert!(bench.nodes.crash(NODE, Crash::Power));
    bench.nodes.restart(NODE);
    old_or_new(nodes, 100, 15, 16)
}

/// A flush promises nothing about what is in flight when it is ordered; it covers what was done.
pub fn a_flush_covers_what_was_done_and_may_miss_what_is_in_flight(
    nodes: &mut dyn Nodes,
) -> Vec<u64> {
    let mut bench = Bench::new(nodes);
    bench.write(110, &[17; 16]);
    bench.flush();
    bench.write(120, &pattern(18, 2));
    let buf = bench.nodes.give(NODE, &[19; 16]);
    let (write, flush) = (bench.op(), bench.op());
    let write_effect = Effect::WriteDisk { op: write, range: blocks(110, 2), buf };
    bench.nodes.order(NODE, vec![write_effect, Effect::FlushDisk { op: flush }]);
    for _ in 0..2 {
        let (op, outcome) = bench.next();
        assert_eq!(outcome, Ok(DiskOutcome::Done), "{op:?}");
    }
    assert!(bench.nodes.crash(NODE, Crash::Power));
    bench.nodes.restart(NODE);
    assert_eq!(Bench::new(nodes).read(120, 2), pattern(18, 2));
    old_or_new(nodes, 110, 17, 19)
}

/// A write in flight when the node ends: each sector is old or new, and once the disk is open
/// again nothing changes any more (R2e).
pub fn a_write_in_flight_is_old_or_new_and_never_lands_later(
    nodes: &mut dyn Nodes,
    how: Crash,
) -> Vec<u64> {
    let mut bench = Bench::new(nodes);
    bench.write(130, &[20; 16]);
    bench.flush();
    bench.begin_write(130, &[21; 16]);
    assert!(bench.nodes.crash(NODE, how));
    bench.nodes.restart(NODE);
    let found = old_or_new(nodes, 130, 20, 21);
    nodes.settle();
    assert_eq!(old_or_new(nodes, 130, 20, 21), found, "a write landed after the start");
    found
}

/// Two blocks whose sectors each hold one of two values.
fn old_or_new(nodes: &mut dyn Nodes, first: u64, old: u64, new: u64) -> Vec<u64> {
    let found = Bench::new(nodes).read(first, 2);
    assert!(found.iter().all(|value| [old, new].contains(value)), "{found:?}");
    found
}

/// A failed read is an input and brings no buffer; the disk goes on. False where the disk cannot
/// be made to fail.
pub fn a_failed_read_is_told_and_the_disk_goes_on(nodes: &mut dyn Nodes) -> bool {
    if !nodes.begin(NODE, Trouble::Reads) {
        return false;
    }
    let mut bench = Bench::new(nodes);
    let buf = bench.nodes.give(NODE, &pattern(22, 1));
    let range = blocks(140, 1);
    let failed = Err(DiskFailure::Io(EIO));
    assert_eq!(bench.run(|op| Effect::ReadDisk { op, range, buf }), failed);
    bench.nodes.begin(NODE, Trouble::Reads);
    assert_eq!(bench.run(|op| Effect::ReadForResync { op, range }), failed);
    bench.nodes.begin(NODE, Trouble::Reads);
    let wanted = ByteRange::new(range.start + 512, 512);
    let edges = bench.run(|op| Effect::ReadEdges { op, wanted, aligned: range, buf });
    assert_eq!(edges, failed);
    bench.release(buf);
    assert_eq!(bench.nodes.buffers(NODE), 0, "a failed read keeps a buffer");
    bench.nodes.end(NODE, Trouble::Reads);
    bench.write(140, &pattern(23, 1));
    assert_eq!(bench.read(140, 1), pattern(23, 1));
    true
}

/// A full disk is told as such; afterwards each sector is old or new, and the disk goes on.
pub fn a_full_disk_is_told_and_goes_on_when_there_is_space(nodes: &mut dyn Nodes) -> bool {
    if !nodes.begin(NODE, Trouble::Space) {
        return false;
    }
    let mut bench = Bench::new(nodes);
    let (op, buf) = bench.begin_write(150, &[24; 16]);
    assert_eq!(bench.await_only(op), Err(DiskFailure::NoSpace));
    bench.nodes.begin(NODE, Trouble::Space);
    let range = blocks(150, 2);
    let zeroes = bench.run(|op| Effect::ZeroDisk { op, range, may_punch: false });
    assert!([Ok(DiskOutcome::Done), Err(DiskFailure::NoSpace)].contains(&zeroes), "{zeroes:?}");
    bench.nodes.end(NODE, Trouble::Space);
    let found = bench.read(150, 2);
    assert!(found.iter().all(|value| [0, 24].contains(value)), "{found:?}");
    let outcome = bench.run(|op| Effect::WriteDisk { op, range, buf });
    assert_eq!(outcome, Ok(DiskOutcome::Done));
    assert_eq!(bench.read(150, 2), [24; 16]);
    bench.release(buf);
    assert_eq!(bench.nodes.buffers(NODE), 0);
    true
}

//! The buffer pool: one page-aligned piece of memory, cut into runs of 4 KiB to 1 MiB.
//!
//! Each purpose has its own share, so that none can starve another: a client that floods us
//! cannot take the buffers that a peer's frames need. A buffer lives as long as anyone uses it:
//! every owner and every operation of the ring counts as one use.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use memmap2::MmapMut;
use replicator_core::BufId;

/// Smallest run, and the alignment of all.
pub const PAGE_BYTES: usize = 4096;
/// Largest run.
pub const RUN_BYTES_MAX: usize = 1 << 20;
const ORDERS: usize = (RUN_BYTES_MAX / PAGE_BYTES).ilog2() as usize + 1;
const PAGES_PER_RUN_MAX: u32 = (RUN_BYTES_MAX / PAGE_BYTES) as u32;
const NO_PAGE: u32 = u32::MAX;

const _: () = assert!(RUN_BYTES_MAX as u64 >= replicator_core::limits::IO_BYTES_MAX);

/// What a buffer is for; each has its own share of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Payload of client requests.
    Clients,
    /// Payload of frames that peers send.
    Peers,
    /// Blocks read for a resync.
    Resync,
    /// The loop's own: metadata on its way to the disk, edges, zeroes.
    Internal,
}

const SHARES: [Share; 4] = [Share::Clients, Share::Peers, Share::Resync, Share::Internal];

/// The memory itself. The ring keeps it alive as long as the kernel may touch it.
#[derive(Debug)]
pub struct Arena {
    start: *mut u8,
    bytes: usize,
    /// Unmaps at drop.
    _map: MmapMut,
}

impl Arena {
    /// Address of a byte, for the kernel. Panics outside the arena.
    pub(crate) fn address(&self, at: usize, length: usize) -> *mut u8 {
        assert!(at.checked_add(length).is_some_and(|end| end <= self.bytes), "outside the pool");
        self.start.wrapping_add(at)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Inside a run, not its first page.
    Inner,
    Free,
    Used,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    state: State,
    order: u8,
    share: u8,
    /// Owners and operations of the ring that need the buffer.
    uses: u16,
    /// Operations of the ring that write into it now.
    filling: u16,
    /// Neighbours in the list of free runs of this order.
    next: u32,
    previous: u32,
}

#[derive(Debug)]
struct Region {
    free: [u32; ORDERS],
    pages: u32,
    used: u32,
    used_most: u32,
}

/// How much of a share is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShareUse {
    /// Bytes in use now, whole runs.
    pub used_bytes: u64,
    /// The most that ever was.
    pub used_most_bytes: u64,
    /// Size of the share.
    pub bytes: u64,
}

/// The pool of one data loop.
#[derive(Debug)]
pub struct Pool {
    arena: Rc<Arena>,
    pages: Vec<Page>,
    regions: [Region; SHARES.len()],
    /// Why the memory is not locked, when it is not.
    pub unlocked_because: Option<String>,
}

impl Pool {
    /// Maps, touches and, where allowed, locks the memory. `bytes` is rounded down to whole MiB;
    /// at least 8 MiB.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let runs = bytes / RUN_BYTES_MAX;
        assert!(runs >= 8, "a pool of {bytes} bytes has no room for every share");
        let bytes = runs * RUN_BYTES_MAX;
        let mut map = MmapMut::map_anon(bytes)?;
        // Fewer page faults and cheaper pinning; only a hint.
        let _ = map.advise(memmap2::Advice::HugePage);
        // A child (a fence agent) must not turn pages into copies while the disk writes to them.
        let _ = map.advise(memmap2::Advice::DontFork);
        // Touched now, so that no request ever waits for memory.
        map.fill(0);
        let unlocked_because = map.lock().err().map(|error| {
            format!(
                "the buffer pool of {bytes} bytes is not locked in memory ({error}); raise \
                 LimitMEMLOCK, or memory pressure can slow the device down"
            )
        });
        let arena = Rc::new(Arena { start: map.as_mut_ptr(), bytes, _map: map });
        let free_page = Page {
            state: State::Inner,
            order: 0,
            share: 0,
            uses: 0,
            filling: 0,
            next: NO_PAGE,
            previous: NO_PAGE,
        };
        let region = |runs: usize| Region {
            free: [NO_PAGE; ORDERS],
            pages: (runs * RUN_BYTES_MAX / PAGE_BYTES) as u32,
            used: 0,
            used_most: 0,
        };
        // Peers and resync get a fifth each, our own needs are fixed, clients have the rest.
        let fifth = runs / 5;
        let shares = [runs - 2 * fifth - 1, fifth, fifth, 1];
        let mut pool = Self {
            arena,
            pages: vec![free_page; bytes / PAGE_BYTES],
            regions: shares.map(region),
            unlocked_because,
        };
        let mut first = 0;
        for (share, runs) in shares.into_iter().enumerate() {
            for run in (0..runs as u32).rev() {
                pool.put_free(share, first + run * PAGES_PER_RUN_MAX, ORDERS - 1);
            }
            first += runs as u32 * PAGES_PER_RUN_MAX;
        }
        Ok(pool)
    }

    /// The memory, for the ring.
    pub(crate) fn arena(&self) -> &Rc<Arena> {
        &self.arena
    }

    /// A buffer of at least `bytes` (1 to 1 MiB) with one use, or none while the share is used up.
    pub fn take(&mut self, share: Share, bytes: usize) -> Option<BufId> {
        assert!(bytes > 0 && bytes <= RUN_BYTES_MAX, "no buffers of {bytes} bytes");
        let order = order_of(bytes);
        let at = share as usize;
        let found = (order..ORDERS).find(|&order| self.regions[at].free[order] != NO_PAGE)?;
        let page = self.regions[at].free[found];
        self.unlink(at, page, found);
        for half in (order..found).rev() {
            self.put_free(at, page + (1 << half), half);
        }
        let entry = &mut self.pages[page as usize];
        entry.state = State::Used;
        entry.order = order as u8;
        entry.share = at as u8;
        entry.uses = 1;
        let region = &mut self.regions[at];
        region.used += 1 << order;
        region.used_most = region.used_most.max(region.used);
        Some(BufId(page))
    }

    /// One more use.
    pub fn hold(&mut self, buf: BufId) {
        let page = self.used_mut(buf);
        page.uses = page.uses.checked_add(1).expect("a buffer has too many uses");
    }

    /// One use less; the last one frees the buffer.
    pub fn release(&mut self, buf: BufId) {
        let page = self.used_mut(buf);
        page.uses -= 1;
        if page.uses == 0 {
            assert!(page.filling == 0, "buffer {buf:?} freed while the kernel writes into it");
            self.free(buf.0);
        }
    }

    /// The bytes. Panics while the kernel writes into the buffer.
    pub fn bytes(&self, buf: BufId, range: Range<usize>) -> &[u8] {
        let page = self.used(buf);
        assert!(page.filling == 0, "buffer {buf:?} read while the kernel writes into it");
        let address = self.address(buf, &range);
        // SAFETY: the range lies in the live mapping, in one run that is in use; nobody writes
        // to it: not the kernel (asserted), and not this thread while the pool is borrowed.
        unsafe { std::slice::from_raw_parts(address, range.len()) }
    }

    /// The bytes, to change them. Panics unless the caller's use is the only one, so no operation
    /// of the kernel is under way on the buffer.
    pub fn bytes_mut(&mut self, buf: BufId, range: Range<usize>) -> &mut [u8] {
        let page = self.used(buf);
        assert!(page.uses == 1 && page.filling == 0, "buffer {buf:?} changed while in use");
        let address = self.address(buf, &range);
        // SAFETY: the range lies in the live mapping, in one run that is in use only by the
        // caller; the pool is borrowed mutably, so no other slice of it exists.
        unsafe { std::slice::from_raw_parts_mut(address, range.len()) }
    }

    /// Where a buffer lies in the arena. Panics when the range leaves the buffer.
    pub(crate) fn locate(&self, buf: BufId, range: &Range<usize>) -> usize {
        let page = self.used(buf);
        assert!(
            range.start <= range.end && range.end <= PAGE_BYTES << page.order,
            "bytes {range:?} are outside buffer {buf:?} of {} pages",
            1 << page.order
        );
        buf.0 as usize * PAGE_BYTES + range.start
    }

    /// An operation of the ring begins: one more use.
    pub(crate) fn lend(&mut self, buf: BufId, fills: bool) {
        self.hold(buf);
        if fills {
            self.used_mut(buf).filling += 1;
        }
    }

    /// An operation of the ring ended.
    pub(crate) fn take_back(&mut self, buf: BufId, filled: bool) {
        if filled {
            self.used_mut(buf).filling -= 1;
        }
        self.release(buf);
    }

    /// How full a share is.
    pub fn usage(&self, share: Share) -> ShareUse {
        let region = &self.regions[share as usize];
        let in_bytes = |pages: u32| u64::from(pages) * PAGE_BYTES as u64;
        ShareUse {
            used_bytes: in_bytes(region.used),
            used_most_bytes: in_bytes(region.used_most),
            bytes: in_bytes(region.pages),
        }
    }

    fn address(&self, buf: BufId, range: &Range<usize>) -> *mut u8 {
        self.arena.address(self.locate(buf, range), range.len())
    }

    fn used(&self, buf: BufId) -> &Page {
        let page = &self.pages[buf.0 as usize];
        assert!(page.state == State::Used, "buffer {buf:?} is not in use");
        page
    }

    fn used_mut(&mut self, buf: BufId) -> &mut Page {
        let page = &mut self.pages[buf.0 as usize];
        assert!(page.state == State::Used, "buffer {buf:?} is not in use");
        page
    }

    /// Gives a run back and joins it with its free neighbours. Runs never join across 1 MiB, and
    /// shares are whole MiB, so a run never grows out of its share.
    fn free(&mut self, page: u32) {
        let share = usize::from(self.pages[page as usize].share);
        let mut order = usize::from(self.pages[page as usize].order);
        self.regions[share].used -= 1 << order;
        let mut page = page;
        while order < ORDERS - 1 {
            let buddy = page ^ (1 << order);
            let neighbour = self.pages[buddy as usize];
            if neighbour.state != State::Free || usize::from(neighbour.order) != order {
                break;
            }
            self.unlink(share, buddy, order);
            self.pages[page.max(buddy) as usize].state = State::Inner;
            page = page.min(buddy);
            order += 1;
        }
        self.put_free(share, page, order);
    }

    fn put_free(&mut self, share: usize, page: u32, order: usize) {
        let next = self.regions[share].free[order];
        if next != NO_PAGE {
            self.pages[next as usize].previous = page;
        }
        let entry = &mut self.pages[page as usize];
        entry.state = State::Free;
        entry.order = order as u8;
        entry.share = share as u8;
        entry.next = next;
        entry.previous = NO_PAGE;
        self.regions[share].free[order] = page;
    }

    fn unlink(&mut self, share: usize, page: u32, order: usize) {
        let Page { next, previous, .. } = self.pages[page as usize];
        if next != NO_PAGE {
            self.pages[next as usize].previous = previous;
        }
        if previous == NO_PAGE {
            self.regions[share].free[order] = next;
        } else {
            self.pages[previous as usize].next = next;
        }
    }
}

fn order_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES).next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(8 << 20).expect("8 MiB of memory")
    }

    #[test]
    fn a_share_can_be_used_up_and_is_whole_again_when_all_is_released() {
        let mut pool = pool();
        let all = pool.usage(Share::Clients).bytes as usize;
        let mut taken = Vec::new();
        for bytes in [1, 4096, 4097, 70_000, 256 << 10].into_iter().cycle() {
            let Some(buf) = pool.take(Share::Clients, bytes) else { break };
            let filler = taken.len() as u8;
            pool.bytes_mut(buf, 0..bytes).fill(filler);
            taken.push((buf, bytes, filler));
        }
        assert!(taken.len() > 10);
        assert!(pool.take(Share::Peers, RUN_BYTES_MAX).is_some(), "one share starved another");
        for &(buf, bytes, filler) in &taken {
            assert!(pool.bytes(buf, 0..bytes).iter().all(|&byte| byte == filler), "overlap");
        }
        // Released in another order than taken.
        taken.sort_by_key(|(buf, ..)| buf.0 % 7);
        for (buf, ..) in taken {
            pool.release(buf);
        }
        assert_eq!(pool.usage(Share::Clients).used_bytes, 0);
        for _ in 0..all / RUN_BYTES_MAX {
            pool.take(Share::Clients, RUN_BYTES_MAX).expect("runs were not joined again");
        }
        assert_eq!(pool.take(Share::Clients, 1), None);
    }

    #[test]
    fn a_buffer_lives_until_its_last_use_ends() {
        let mut pool = pool();
        let buf = pool.take(Share::Resync, 9000).unwrap();
        pool.lend(buf, false);
        pool.release(buf);
        assert!(pool.usage(Share::Resync).used_bytes > 0);
        pool.take_back(buf, false);
        assert_eq!(pool.usage(Share::Resync).used_bytes, 0);
    }

    #[test]
    #[should_panic(expected = "changed while in use")]
    fn a_buffer_in_the_kernels_hands_cannot_be_changed() {
        let mut pool = pool();
        let buf = pool.take(Share::Clients, 4096).unwrap();
        pool.lend(buf, true);
        pool.bytes_mut(buf, 0..1);
    }

    #[test]
    #[should_panic(expected = "not in use")]
    fn a_buffer_released_twice_is_noticed() {
        let mut pool = pool();
        let buf = pool.take(Share::Clients, 4096).unwrap();
        pool.release(buf);
        pool.release(buf);
    }

    #[test]
    #[should_panic(expected = "outside buffer")]
    fn no_bytes_behind_the_end_of_a_buffer() {
        let mut pool = pool();
        let buf = pool.take(Share::Clients, 4096).unwrap();
        pool.bytes(buf, 0..4097);
    }
}

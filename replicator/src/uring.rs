//! The io_uring: submits operations on descriptors and gives back their results, each with the
//! token it was submitted with. All memory the kernel may touch is owned here, or counted as in
//! use in the pool, until the operation has completed. Nearly all `unsafe` of the data path is in
//! this file; the rest is in `buffers`.
//!
//! Another engine (threads, where io_uring is forbidden) would offer the same methods.

use std::mem;
use std::ops::Range;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{fs, io, ptr, thread};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use replicator_core::{BufId, Span};
use thiserror::Error;

use crate::buffers::{Arena, Pool};

/// Entries of the submission queue; when it is full it is submitted early.
const SUBMISSIONS: u32 = 256;
/// Entries of the completion queue; beyond it the kernel keeps completions in memory of its own.
const COMPLETIONS: u32 = 4096;
/// Pieces of one send; the rest goes with the next.
const PIECES_MAX: usize = 256;
/// Kernel threads for what cannot be done without blocking (flushes, zeroing).
const WORKERS_MAX: u32 = 8;
/// A ring that gets no memory is tried again for so long, so often.
const MEMORY_PATIENCE: Duration = Duration::from_secs(5);
const MEMORY_POLL: Duration = Duration::from_millis(50);

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The administrator or the distribution switched it off.
    #[error(
        "io_uring is switched off on this machine (kernel.io_uring_disabled = {value}); run \
         'sysctl kernel.io_uring_disabled=0', or 1 and put the daemon's group into \
         kernel.io_uring_group"
    )]
    SwitchedOff {
        /// Value of the sysctl.
        value: String,
    },
    /// A seccomp profile, usually of a container.
    #[error(
        "io_uring is forbidden here by a seccomp profile, although the kernel allows it ({errno}); \
         run the container with a profile that permits io_uring_setup, io_uring_enter and \
         io_uring_register"
    )]
    Filtered {
        /// EPERM or ENOSYS.
        errno: io::Error,
    },
    /// The kernel was built without it, or is older than 5.11.
    #[error("this kernel has no usable io_uring ({errno}); Linux 5.15 or newer is needed")]
    Missing {
        /// The kernel's answer.
        errno: io::Error,
    },
    /// Anything else, for example no memory.
    #[error("cannot set up an io_uring: {0}")]
    Setup(io::Error),
}

/// Bytes on their way to a socket, in order: headers that lie here, and payload in the pool.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// Pieces that were sent whole, and what was sent of the next one.
    sent_pieces: usize,
    sent_of_next: usize,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    Header { start: u32, end: u32 },
    Pooled { buf: BufId, start: u32, end: u32 },
}

impl Piece {
    fn len(self) -> usize {
        match self {
            Self::Header { start, end } | Self::Pooled { start, end, .. } => (end - start) as usize,
        }
    }
}

impl Outgoing {
    /// Appends what `write` appends to the vector.
    pub fn put_header(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len() as u32;
        write(&mut self.bytes);
        let end = self.bytes.len() as u32;
        match self.pieces.last_mut() {
            Some(Piece::Header { end: last, .. }) => *last = end,
            _ if start == end => {}
            _ => self.pieces.push(Piece::Header { start, end }),
        }
    }

    /// Appends payload and takes over one use of its buffer.
    pub fn put_pooled(&mut self, buf: BufId, range: Range<usize>) {
        self.pieces.push(Piece::Pooled { buf, start: range.start as u32, end: range.end as u32 });
    }

    /// Nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.sent_pieces == self.pieces.len()
    }

    /// Pieces and header bytes, for limits.
    pub fn weight(&self) -> (usize, usize) {
        (self.pieces.len() - self.sent_pieces, self.bytes.len())
    }

    /// Notes that some bytes were sent, and gives back the buffers that are sent whole.
    pub fn advance(&mut self, mut sent: usize, pool: &mut Pool) {
        while sent > 0 {
            let piece = self.pieces[self.sent_pieces];
            let left = piece.len() - self.sent_of_next;
            if sent < left {
                self.sent_of_next += sent;
                return;
            }
            sent -= left;
            self.sent_of_next = 0;
            self.sent_pieces += 1;
            if let Piece::Pooled { buf, .. } = piece {
                pool.release(buf);
            }
        }
        if self.is_empty() {
            self.clear(pool);
        }
    }

    /// Forgets what was not sent and gives back the buffers.
    pub fn clear(&mut self, pool: &mut Pool) {
        for piece in self.pieces.drain(..).skip(self.sent_pieces) {
            if let Piece::Pooled { buf, .. } = piece {
                pool.release(buf);
            }
        }
        self.bytes.clear();
        self.sent_pieces = 0;
        self.sent_of_next = 0;
    }
}

/// How patient a send is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Send what the socket takes now; this completes during the submission.
    None,
    /// Send all, however long it takes.
    All,
}

/// Memory that an operation owns while it is under way.
#[derive(Debug)]
enum Owned {
    Nothing,
    Pooled { buf: BufId, fills: bool },
    Bytes(Box<[u8]>),
    Outgoing(Box<Outgoing>, Option<Box<Vector>>),
}

/// The memory of an operation, given back to its owner.
#[derive(Debug)]
pub enum Back {
    /// It had none, or a buffer of the pool, which is no longer lent.
    Nothing,
    /// The vector of a receive.
    Bytes(Box<[u8]>),
    /// What was to be sent; the caller notes the progress.
    Outgoing(Box<Outgoing>),
}

/// A completed operation.
#[derive(Debug)]
pub struct Done<T> {
    /// What it was submitted with.
    pub token: T,
    /// Bytes moved, or the kernel's error number.
    pub result: Result<u32, i32>,
    /// Its memory.
    pub back: Back,
}

/// A completion that was taken from the queue and not yet looked at.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    user_data: u64,
    result: i32,
}

struct Slot<T> {
    generation: u32,
    token: Option<T>,
    owned: Owned,
}

/// Header and pieces of one sendmsg.
struct Vector {
    header: libc::msghdr,
    pieces: [libc::iovec; PIECES_MAX],
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pieces", self.header.msg_iovlen)
    }
}

/// One io_uring, used by one thread.
pub struct Ring<T> {
    ring: IoUring,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    vectors: Vec<Box<Vector>>,
    in_flight: usize,
    arena: Rc<Arena>,
}

impl<T: Copy> Ring<T> {
    /// Sets up a ring for the calling thread. The pool is the only one whose buffers may be used
    /// with it.
    pub fn new(pool: &Pool) -> Result<Self, RingError> {
        let ring = set_up_patiently().map_err(explain)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(RingError::Missing { errno: io::Error::from_raw_os_error(libc::ENOSYS) });
        }
        // A bound for both kinds of workers; older kernels do without.
        let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, WORKERS_MAX]);
        Ok(Self {
            ring,
            slots: Vec::with_capacity(COMPLETIONS as usize),
            free: Vec::with_capacity(COMPLETIONS as usize),
            vectors: Vec::new(),
            in_flight: 0,
            arena: pool.arena().clone(),
        })
    }

    /// Receives some bytes into `bytes[range]`.
    pub fn receive(&mut self, fd: RawFd, mut bytes: Box<[u8]>, range: Range<usize>, token: T) {
        let target = &mut bytes[range];
        let entry = opcode::Recv::new(Fd(fd), target.as_mut_ptr(), target.len() as u32).build();
        self.push(entry, token, Owned::Bytes(bytes));
    }

    /// Receives into a buffer of the pool until the range is full, the stream ends, or fails.
    pub fn receive_into(
        &mut self,
        pool: &mut Pool,
        fd: RawFd,
        buf: BufId,
        range: Range<usize>,
        token: T,
    ) {
        let address = self.lend(pool, buf, &range, true);
        let entry =
            opcode::Recv::new(Fd(fd), address, range.len() as u32).flags(libc::MSG_WAITALL).build();
        self.push(entry, token, Owned::Pooled { buf, fills: true });
    }

    /// Sends what is to be sent, or the first [`PIECES_MAX`] pieces of it.
    pub fn send(
        &mut self,
        pool: &Pool,
        fd: RawFd,
        outgoing: Box<Outgoing>,
        patience: Patience,
        token: T,
    ) {
        let flags = libc::MSG_NOSIGNAL
            | match patience {
                Patience::None => libc::MSG_DONTWAIT,
                Patience::All => libc::MSG_WAITALL,
            };
        let pieces = &outgoing.pieces[outgoing.sent_pieces..];
        assert!(!pieces.is_empty(), "nothing to send");
        let mut skip = outgoing.sent_of_next;
        let mut slice = |piece: &Piece| {
            let skipped = mem::take(&mut skip);
            let (address, len) = match *piece {
                Piece::Header { start, end } => {
                    let bytes = &outgoing.bytes[start as usize + skipped..end as usize];
                    (bytes.as_ptr().cast_mut(), bytes.len())
                }
                Piece::Pooled { buf, start, end } => {
                    let range = start as usize + skipped..end as usize;
                    let at = pool.locate(buf, &range);
                    (self.arena.address(at, range.len()), range.len())
                }
            };
            libc::iovec { iov_base: address.cast(), iov_len: len }
        };
        if pieces.len() == 1 {
            let only = slice(&pieces[0]);
            let entry = opcode::Send::new(Fd(fd), only.iov_base.cast(), only.iov_len as u32)
                .flags(flags)
                .build();
            self.push(entry, token, Owned::Outgoing(outgoing, None));
            return;
        }
        let mut vector = self.vectors.pop().unwrap_or_else(Vector::new);
        let count = pieces.len().min(PIECES_MAX);
        for (slot, piece) in vector.pieces.iter_mut().zip(pieces) {
            *slot = slice(piece);
        }
        vector.header.msg_iov = vector.pieces.as_mut_ptr();
        vector.header.msg_iovlen = count as _;
        let entry =
            opcode::SendMsg::new(Fd(fd), &raw const vector.header).flags(flags as u32).build();
        self.push(entry, token, Owned::Outgoing(outgoing, Some(vector)));
    }

    /// Reads from a file or device into a buffer of the pool.
    pub fn read(
        &mut self,
        pool: &mut Pool,
        fd: RawFd,
        at: u64,
        buf: BufId,
        range: Range<usize>,
        token: T,
    ) {
        let address = self.lend(pool, buf, &range, true);
        let entry = opcode::Read::new(Fd(fd), address, range.len() as u32).offset(at).build();
        self.push(entry, token, Owned::Pooled { buf, fills: true });
    }

    /// Reads into memory of its own: for event descriptors.
    pub fn read_bytes(&mut self, fd: RawFd, mut bytes: Box<[u8]>, token: T) {
        let entry = opcode::Read::new(Fd(fd), bytes.as_mut_ptr(), bytes.len() as u32).build();
        self.push(entry, token, Owned::Bytes(bytes));
    }

    /// Writes from a buffer of the pool to a file or device; durable when done, if so wished.
    #[allow(clippy::too_many_arguments)] // One operation, no two of them mean the same.
    pub fn write(
        &mut self,
        pool: &mut Pool,
        fd: RawFd,
        at: u64,
        buf: BufId,
        range: Range<usize>,
        durable: bool,
        token: T,
    ) {
        let address = self.lend(pool, buf, &range, false);
        let entry = opcode::Write::new(Fd(fd), address, range.len() as u32)
            .offset(at)
            .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
            .build();
        self.push(entry, token, Owned::Pooled { buf, fills: false });
    }

    /// Makes the data of a file or device durable.
    pub fn flush(&mut self, fd: RawFd, token: T) {
        let entry = opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build();
        self.push(entry, token, Owned::Nothing);
    }

    /// `fallocate(2)` with a mode.
    pub fn allocate(&mut self, fd: RawFd, mode: i32, at: u64, length: u64, token: T) {
        let entry = opcode::Fallocate::new(Fd(fd), length).offset(at).mode(mode).build();
        self.push(entry, token, Owned::Nothing);
    }

    /// Submits everything and waits until `wanted` operations have completed or the time is over.
    pub fn submit_and_wait(&mut self, wanted: usize, limit: Option<Span>) -> io::Result<()> {
        let timeout = limit.map(|limit| Timespec::from(Duration::from_nanos(limit.0)));
        let mut args = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        match self.ring.submitter().submit_with_args(wanted, &args) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal came, or completions must be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions into the vector.
    pub fn take_completions(&mut self, into: &mut Vec<Completion>) {
        into.extend(
            self.ring
                .completion()
                .map(|entry| Completion { user_data: entry.user_data(), result: entry.result() }),
        );
    }

    /// Ends an operation: gives back its token and its memory. Exactly once for each completion.
    pub fn finish(&mut self, completion: Completion, pool: &mut Pool) -> Done<T> {
        let index = completion.user_data as u32;
        let slot = &mut self.slots[index as usize];
        assert!(
            slot.generation == (completion.user_data >> 32) as u32,
            "the kernel completed an operation twice"
        );
        slot.generation = slot.generation.wrapping_add(1);
        let token = slot.token.take().expect("a completed operation has a token");
        let owned = mem::replace(&mut slot.owned, Owned::Nothing);
        self.free.push(index);
        self.in_flight -= 1;
        let back = match owned {
            Owned::Nothing => Back::Nothing,
            Owned::Pooled { buf, fills } => {
                pool.take_back(buf, fills);
                Back::Nothing
            }
            Owned::Bytes(bytes) => Back::Bytes(bytes),
            Owned::Outgoing(outgoing, vector) => {
                self.vectors.extend(vector);
                Back::Outgoing(outgoing)
            }
        };
        let result = match completion.result {
            error if error < 0 => Err(-error),
            moved => Ok(moved as u32),
        };
        Done { token, result, back }
    }

    fn lend(&self, pool: &mut Pool, buf: BufId, range: &Range<usize>, fills: bool) -> *mut u8 {
        assert!(!range.is_empty(), "an operation on no bytes");
        let at = pool.locate(buf, range);
        pool.lend(buf, fills);
        self.arena.address(at, range.len())
    }

    fn push(&mut self, entry: squeue::Entry, token: T, owned: Owned) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, token: None, owned: Owned::Nothing });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.token = Some(token);
        slot.owned = owned;
        let entry = entry.user_data(u64::from(index) | u64::from(slot.generation) << 32);
        self.in_flight += 1;
        loop {
            // SAFETY: the memory that the entry points to is valid until its completion: vectors
            // and message headers lie on the heap and are owned by the slot; buffers of the pool
            // lie in the arena that this ring keeps, and count as used until `finish`.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            // The queue is full: hand it over now. What fails here shows at the next wait.
            let _ = self.ring.submit();
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        // The kernel cancels what is under way after the ring is closed, in its own time. It may
        // touch the memory until then, so that is never given back; the process is about to end.
        mem::forget(self.arena.clone());
        mem::forget(mem::take(&mut self.slots));
    }
}

impl Vector {
    fn new() -> Box<Self> {
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: msghdr is a plain C struct, for which all zeroes mean "nothing".
        let header = unsafe { mem::zeroed() };
        Box::new(Self { header, pieces: [none; PIECES_MAX] })
    }
}

/// Without the right to lock memory all rings of a user share one limit, and the kernel gives back
/// what those of a killed process had only a moment after its end: a daemon that is started again
/// at once is not to fail for that.
fn set_up_patiently() -> io::Result<IoUring> {
    let began = Instant::now();
    loop {
        match set_up() {
            Err(error)
                if error.raw_os_error() == Some(libc::ENOMEM)
                    && began.elapsed() < MEMORY_PATIENCE =>
            {
                thread::sleep(MEMORY_POLL);
            }
            result => return result,
        }
    }
}

/// The best flags that the kernel knows; each step back is a kernel older than 6.1, 5.19, 5.18.
fn set_up() -> io::Result<IoUring> {
    let mut last = None;
    for step in 0..3 {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(COMPLETIONS);
        match step {
            0 => {
                builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun();
            }
            1 => {
                builder.setup_submit_all().setup_coop_taskrun();
            }
            _ => {}
        }
        match builder.build(SUBMISSIONS) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            result => return result,
        }
    }
    Err(last.expect("at least one try"))
}

/// Tells a sysctl from a seccomp profile from an old kernel.
fn explain(errno: io::Error) -> RingError {
    match errno.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => {
            match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
                Ok(value) if value.trim() != "0" && errno.raw_os_error() == Some(libc::EPERM) => {
                    RingError::SwitchedOff { value: value.trim().to_owned() }
                }
                Ok(_) => RingError::Filtered { errno },
                // The sysctl is newer (6.6) than the call, so its absence proves little.
                Err(_) if errno.raw_os_error() == Some(libc::EPERM) => {
                    RingError::Filtered { errno }
                }
                Err(_) => RingError::Missing { errno },
            }
        }
        Some(libc::EINVAL) => RingError::Missing { errno },
        _ => RingError::Setup(errno),
    }
}

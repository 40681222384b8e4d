//! A FUSE file system of one file in one directory, whose reads, writes, syncs and zeroings become
//! NBD requests.
//!
//! Two threads and one table. The `asker` reads requests from /dev/fuse, notes each in the table
//! and sends it down the NBD stream; the `answerer` reads NBD replies, finds the request by its
//! cookie and answers the kernel. So many requests are under way at once, and neither thread
//! waits for the other: when the data loop is slow, only the asker stops, and the kernel queues.
//!
//! Order: the loop device sends FSYNC only after the writes before it were answered, and a write is
//! answered only after its NBD reply. So the NBD FLUSH made of it covers them, as NBD demands.
//!
//! When the NBD stream ends and the kernel can send again (Linux 6.9), nothing is answered any more
//! and the requests wait for the next server on the same descriptor. Else they fail with EIO.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fuse_wire::{self as wire, Request};
use crate::protocol::{
    CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, REQUEST_LEN, REQUEST_MAGIC,
    SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC,
};

/// One WRITE_ZEROES is at most so long; it has to fit the request's 32 bits.
const ZEROES_BYTES_MAX: u64 = 1 << 30;
/// More than the kernel sends at a time (`BACKGROUND_MAX`, and what does not count as background),
/// so that the table need not grow while memory is short.
const WAITING_EXPECTED: usize = 512;
/// Both threads need little, and their stacks are locked in memory with the rest of the daemon.
const STACK_BYTES: usize = 128 * 1024;

/// What the file is.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Its size, a multiple of the block size.
    pub size_bytes: u64,
    /// Whether the NBD side knows WRITE_ZEROES.
    pub write_zeroes: bool,
}

/// A running server.
pub struct FuseServer {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    device: File,
    stream: UnixStream,
    size_bytes: AtomicU64,
    write_zeroes: bool,
    table: Mutex<Table>,
    /// The kernel has FUSE_NOTIFY_RESEND.
    can_resend: AtomicBool,
    /// The NBD stream has ended.
    stream_lost: AtomicBool,
}

/// A request of the kernel that waits for NBD.
#[derive(Clone, Copy)]
struct Waiting {
    unique: u64,
    answer: Answer,
    /// NBD requests that have not been answered.
    pieces: u32,
    /// The first error among the pieces that have.
    error: i32,
}

#[derive(Clone, Copy)]
enum Answer {
    Data(u32),
    Written(u32),
    Empty,
}

/// Waiting requests by slot. The low half of a cookie is the slot, the high half the piece.
struct Table {
    slots: Vec<Option<Waiting>>,
    free: Vec<u32>,
}

impl Table {
    fn with_capacity(slots: usize) -> Self {
        Self { slots: Vec::with_capacity(slots), free: Vec::with_capacity(slots) }
    }

    fn insert(&mut self, waiting: Waiting) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(waiting);
                slot
            }
            None => {
                self.slots.push(Some(waiting));
                self.slots.len() as u32 - 1
            }
        }
    }

    fn get(&self, cookie: u64) -> Option<Waiting> {
        *self.slots.get(cookie as u32 as usize)?
    }

    /// Notes one answered piece; gives the request when it was the last.
    fn finish_piece(&mut self, cookie: u64, error: i32) -> Option<Waiting> {
        let slot = cookie as u32;
        let waiting = self.slots[slot as usize].as_mut()?;
        waiting.pieces -= 1;
        if waiting.error == 0 {
            waiting.error = error;
        }
        if waiting.pieces > 0 {
            return None;
        }
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    fn take_all(&mut self) -> Vec<Waiting> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().flatten().collect()
    }
}

/// Whether the kernel end of `device` still exists. It is gone when the last copy of the descriptor
/// was closed, or the connection was aborted by hand.
pub fn is_alive(device: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => true,
        Ok(_) => !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)),
        Err(_) => false,
    }
}

impl FuseServer {
    /// Serves a new mount: the kernel's INIT comes first.
    pub fn start(device: OwnedFd, stream: OwnedFd, served: Served) -> io::Result<Self> {
        Self::spawn(File::from(device), stream, served, false)
    }

    /// Goes on where an earlier server of `device` ended: what it had not answered comes again.
    /// `InvalidInput` when the kernel cannot do that.
    pub fn resume(device: OwnedFd, stream: OwnedFd, served: Served) -> io::Result<Self> {
        let mut device = File::from(device);
        device.write_all(&wire::resend())?;
        Self::spawn(device, stream, served, true)
    }

    fn spawn(device: File, stream: OwnedFd, served: Served, can_resend: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            stream: UnixStream::from(stream),
            size_bytes: AtomicU64::new(served.size_bytes),
            write_zeroes: served.write_zeroes,
            table: Mutex::new(Table::with_capacity(WAITING_EXPECTED)),
            can_resend: AtomicBool::new(can_resend),
            stream_lost: AtomicBool::new(false),
        });
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let thread =
            |name: &str| std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
        let mut server = Self { shared: shared.clone(), stop: stop.clone(), threads: Vec::new() };
        let asker = thread("fuse-ask").spawn({
            let shared = shared.clone();
            move || shared.ask(&stop)
        })?;
        server.threads.push(asker);
        server.threads.push(thread("fuse-answer").spawn(move || shared.answer())?);
        Ok(server)
    }

    /// Whether the NBD stream has ended while the kernel still wants to be served.
    pub fn stream_lost(&self) -> bool {
        self.shared.stream_lost.load(Ordering::Acquire)
    }

    /// The size to tell from now on, in bytes.
    pub fn set_size(&self, size_bytes: u64) {
        self.shared.size_bytes.store(size_bytes, Ordering::Relaxed);
    }

    /// Ends both threads without a word to the kernel and gives the descriptor back. When this
    /// returns, nothing will be answered from here.
    pub fn stop(mut self) -> OwnedFd {
        self.end_threads();
        let device = self.shared.device.try_clone();
        device.expect("a descriptor can be duplicated").into()
    }

    fn end_threads(&mut self) {
        self.stop.write(1).expect("an eventfd takes a one");
        let _ = self.shared.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            thread.join().expect("a FUSE thread panicked");
        }
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        self.end_threads();
    }
}

impl Shared {
    /// The thread that reads the kernel's requests.
    fn ask(&self, stop: &EventFd) {
        let mut buffer = vec![0; wire::REQUEST_BYTES_MAX];
        loop {
            let parked =
                self.stream_lost.load(Ordering::Acquire) && self.can_resend.load(Ordering::Relaxed);
            // When nobody can answer, requests are better off with the kernel than with us.
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.device.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if parked { &mut fds[..1] } else { &mut fds[..] };
            if poll(watched, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[0].any() == Some(true) {
                return;
            }
            match (&self.device).read(&mut buffer) {
                Ok(length) => self.handle(&buffer[..length]),
                Err(error) => match Errno::try_from(error) {
                    // ENOENT: a request was given up between its announcement and our read.
                    Ok(Errno::EAGAIN | Errno::EINTR | Errno::ENOENT) => {}
                    // ENODEV: the last user of the file is gone, or the connection was aborted.
                    Ok(Errno::ENODEV) => return,
                    other => {
                        tracing::error!("reading /dev/fuse: {other:?}; the device is not served");
                        return;
                    }
                },
            }
        }
    }

    fn handle(&self, bytes: &[u8]) {
        let Some((unique, request)) = wire::parse(bytes) else {
            tracing::error!("a FUSE request of {} bytes makes no sense", bytes.len());
            if let Some(unique) = bytes.get(8..16).and_then(|unique| unique.try_into().ok()) {
                self.reply(u64::from_ne_bytes(unique), libc::EPROTO, &[]);
            }
            return;
        };
        let size_bytes = self.size_bytes.load(Ordering::Relaxed);
        match request {
            Request::Init { minor, flags } => {
                self.can_resend.store(wire::offers_resend(flags), Ordering::Relaxed);
                self.reply(unique, 0, &wire::init_reply(minor, flags));
            }
            Request::Lookup => self.reply(unique, 0, &wire::entry_reply(size_bytes)),
            Request::GetAttributes { of_directory } => {
                self.reply(unique, 0, &wire::attributes_reply(size_bytes, of_directory));
            }
            Request::Open => self.reply(unique, 0, &wire::open_reply()),
            Request::StatFs => self.reply(unique, 0, &wire::statfs_reply(size_bytes)),
            Request::Acknowledge => self.reply(unique, 0, &[]),
            Request::NoReply => {}
            Request::Unsupported => self.reply(unique, libc::ENOSYS, &[]),
            Request::Read { offset, length } => {
                let length = u64::from(length).min(size_bytes.saturating_sub(offset)) as u32;
                if length == 0 || length > wire::IO_BYTES_MAX {
                    let error = if length == 0 { 0 } else { libc::EINVAL };
                    return self.reply(unique, error, &[]);
                }
                let range = (offset, u64::from(length));
                self.forward(unique, Answer::Data(length), CMD_READ, 0, range, &[]);
            }
            Request::Write { offset, length } => {
                let data = &bytes[wire::WRITE_DATA_OFFSET..];
                let range = (offset, u64::from(length));
                self.forward(unique, Answer::Written(length), CMD_WRITE, 0, range, data);
            }
            Request::Sync => self.forward(unique, Answer::Empty, CMD_FLUSH, 0, (0, 0), &[]),
            Request::Allocate { offset, length, mode } => {
                self.zero(unique, offset, length, mode);
            }
        }
    }

    /// Both kinds of fallocate promise zeroes. So a hole is WRITE_ZEROES that may unmap; TRIM would
    /// leave the contents open, and loop makes write-zeroes requests of the same hole.
    fn zero(&self, unique: u64, offset: u64, length: u64, mode: u32) {
        let flags = match mode & !wire::FALLOCATE_KEEP_SIZE {
            wire::FALLOCATE_PUNCH_HOLE => 0,
            wire::FALLOCATE_ZERO_RANGE => CMD_FLAG_NO_HOLE,
            _ => return self.reply(unique, libc::EOPNOTSUPP, &[]),
        };
        let end = offset.checked_add(length);
        if !self.write_zeroes {
            self.reply(unique, libc::EOPNOTSUPP, &[]);
        } else if length == 0 || end.is_none_or(|end| end > self.size_bytes.load(Ordering::Relaxed))
        {
            self.reply(unique, libc::EINVAL, &[]);
        } else {
            self.forward(unique, Answer::Empty, CMD_WRITE_ZEROES, flags, (offset, length), &[]);
        }
    }

    /// Notes the request and sends it, in pieces when it is a long zeroing.
    fn forward(
        &self,
        unique: u64,
        answer: Answer,
        command: u16,
        flags: u16,
        (offset, length): (u64, u64),
        data: &[u8],
    ) {
        let pieces = length.div_ceil(ZEROES_BYTES_MAX).max(1) as u32;
        let slot = {
            let mut table = self.table.lock().expect("no holder of this lock panics");
            if self.stream_lost.load(Ordering::Acquire) {
                drop(table);
                return self.refuse(unique);
            }
            table.insert(Waiting { unique, answer, pieces, error: 0 })
        };
        for piece in 0..pieces {
            let begin = u64::from(piece) * ZEROES_BYTES_MAX;
            let mut header = [0; REQUEST_LEN];
            header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            header[4..6].copy_from_slice(&flags.to_be_bytes());
            header[6..8].copy_from_slice(&command.to_be_bytes());
            let cookie = u64::from(piece) << 32 | u64::from(slot);
            header[8..16].copy_from_slice(&cookie.to_be_bytes());
            header[16..24].copy_from_slice(&(offset + begin).to_be_bytes());
            let piece_bytes = (length - begin).min(ZEROES_BYTES_MAX) as u32;
            header[24..28].copy_from_slice(&piece_bytes.to_be_bytes());
            if let Err(error) = send_all(&self.stream, &header, data) {
                // The answerer sees the end of the stream too and deals with the table.
                tracing::debug!("NBD stream: {error}");
                let _ = self.stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// A request that came after the stream was lost.
    fn refuse(&self, unique: u64) {
        if !self.can_resend.load(Ordering::Relaxed) {
            self.reply(unique, libc::EIO, &[]);
        }
    }

    /// The thread that reads NBD's replies.
    fn answer(&self) {
        let mut data = vec![0; wire::IO_BYTES_MAX as usize];
        let end = loop {
            if let Err(error) = self.answer_one(&mut data) {
                break error;
            }
        };
        let left = {
            let mut table = self.table.lock().expect("no holder of this lock panics");
            self.stream_lost.store(true, Ordering::Release);
            table.take_all()
        };
        if end.kind() != io::ErrorKind::UnexpectedEof {
            tracing::warn!("NBD stream under the FUSE device: {end}");
        }
        // The other side must not wait for us, whatever was wrong.
        let _ = self.stream.shutdown(Shutdown::Both);
        for waiting in left {
            self.refuse(waiting.unique);
        }
    }

    fn answer_one(&self, data: &mut [u8]) -> io::Result<()> {
        let mut header = [0; SIMPLE_REPLY_LEN];
        (&self.stream).read_exact(&mut header)?;
        let field = |range: std::ops::Range<usize>| {
            header[range].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        if field(0..4) != u64::from(SIMPLE_REPLY_MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply without the magic"));
        }
        let error = match field(4..8) {
            known @ 0..=133 => known as i32,
            _ => libc::EIO,
        };
        let cookie = field(8..16);
        let waiting = self.table.lock().expect("no holder of this lock panics").get(cookie);
        let Some(Waiting { answer, .. }) = waiting else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply nobody waits for"));
        };
        if let (Answer::Data(length), 0) = (answer, error) {
            (&self.stream).read_exact(&mut data[..length as usize])?;
        }
        let done = {
            let mut table = self.table.lock().expect("no holder of this lock panics");
            table.finish_piece(cookie, error)
        };
        let Some(done) = done else { return Ok(()) };
        match done.answer {
            _ if done.error != 0 => self.reply(done.unique, done.error, &[]),
            Answer::Data(length) => self.reply(done.unique, 0, &data[..length as usize]),
            Answer::Written(length) => self.reply(done.unique, 0, &wire::write_reply(length)),
            Answer::Empty => self.reply(done.unique, 0, &[]),
        }
        Ok(())
    }

    fn reply(&self, unique: u64, error: i32, body: &[u8]) {
        let header = wire::out_header(unique, error, body.len());
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        let parts = if body.is_empty() { &parts[..1] } else { &parts[..] };
        // The kernel takes a reply whole or not at all.
        if let Err(failure) = (&self.device).write_vectored(parts) {
            // ENOENT: the request was given up; ENODEV: the connection was aborted.
            match Errno::try_from(failure) {
                Ok(Errno::ENOENT | Errno::ENODEV) => {}
                other => tracing::error!("answering FUSE request {unique}: {other:?}"),
            }
        }
    }
}

/// Sends header and data whole.
fn send_all(mut stream: &UnixStream, header: &[u8], data: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(header), IoSlice::new(data)];
    let mut rest = if data.is_empty() { &mut parts[..1] } else { &mut parts[..] };
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

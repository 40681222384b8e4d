//! The data loop with stand-ins for the core: real sockets, a real ring, a real file.

#![allow(missing_docs)] // Tests are read, not linked to.

mod clients;
mod disks;
mod peers;
#[path = "../../examples/passthrough/single.rs"]
mod single;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nbd_frontend::export::Export;
use nbd_frontend::session::Session;
use replicator::data_loop::{
    Core, FromLoop, LoopConfig, LoopHandle, LoopStatus, POOL_BYTES_DEFAULT, ToLoop, spawn,
};
use replicator::disk::{Disk, Opening, TestBacking};
use replicator_core::Span;

/// Nothing here takes longer, unless it is broken.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A file that is removed at the end of its test. On a file system with direct I/O.
pub struct Backing(PathBuf);

impl Backing {
    pub fn new(bytes: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("data-loop-test-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file for a test");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn open(&self, test: TestBacking) -> Disk {
        let opening = Opening { data: &self.0, meta: None, test };
        let since = Instant::now();
        Disk::open(opening, &mut |waiting| {
            assert!(since.elapsed() < LIMIT, "{waiting}");
            ControlFlow::Continue(())
        })
        .expect("the disk of a test")
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A running loop and what it says.
pub struct Running {
    pub handle: LoopHandle,
    pub events: mpsc::Receiver<FromLoop>,
    pub data_bytes: u64,
    pub block_bytes: u32,
}

impl Running {
    pub fn start<C: Core>(disk: Disk, core: C, client_timeout: Span) -> Self {
        let layout = disk.layout();
        let config = LoopConfig {
            resource: "test".to_owned(),
            disk,
            pool_bytes: POOL_BYTES_DEFAULT,
            client_timeout,
            lease: None,
        };
        let (sender, events) = mpsc::channel();
        let handle = spawn(config, core, sender).expect("a loop");
        let (data_bytes, block_bytes) = (layout.data_bytes, layout.block_bytes);
        Self { handle, events, data_bytes, block_bytes }
    }

    /// One disk without peers, open for clients.
    pub fn single(backing: &Backing, test: TestBacking, client_timeout: Span) -> Self {
        let disk = backing.open(test);
        let core = single::Single::new(disk.layout().block_bytes, disk.can_punch());
        let running = Self::start(disk, core, client_timeout);
        running
            .until(|event| matches!(event, FromLoop::OpenDevice { tenure: 1, .. }).then_some(()));
        running
    }

    /// Waits for an event that fits.
    pub fn until<T>(&self, fits: impl Fn(&FromLoop) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the event came in time");
            if let Some(found) = fits(&event) {
                return found;
            }
        }
    }

    pub fn status(&self) -> LoopStatus {
        let (reply, status) = mpsc::channel();
        self.handle.send(ToLoop::Status { reply }).expect("a running loop");
        status.recv_timeout(LIMIT).expect("a status in time")
    }

    /// Asks for the status until it is as it should be.
    pub fn until_status(&self, what: &str, fits: impl Fn(&LoopStatus) -> bool) {
        let end = Instant::now() + LIMIT;
        while !fits(&self.status()) {
            assert!(Instant::now() < end, "{what} did not come: {:?}", self.status());
            std::thread::yield_now();
        }
    }

    /// A client behind the negotiation.
    pub fn client(&self, structured: bool) -> UnixStream {
        let mut export = Export::new("", self.data_bytes);
        export.block_size_min = self.block_bytes;
        export.serves_unaligned = true;
        let context = structured.then_some(nbd_frontend::protocol::BASE_ALLOCATION_ID);
        let session = Session::new(&export, structured, context);
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(LIMIT)).expect("a time-out");
        ours.set_write_timeout(Some(LIMIT)).expect("a time-out");
        let origin = "test".to_owned();
        let order = ToLoop::Client { stream: theirs.into(), session, leftover: Vec::new(), origin };
        self.handle.send(order).expect("a running loop");
        ours
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

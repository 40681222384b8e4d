//! The real drivers: data loops with their rings, files, and sockets, around probes.
//!
//! Contents come into a buffer and out of it through a further peer, the feeder, whose end is
//! held here: a frame that it sends brings a buffer, a frame to it shows one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use replicator::data_loop::{
    Core, FromLoop, LoopConfig, LoopHandle, LoopStatus, POOL_BYTES_DEFAULT, ToLoop, spawn,
};
use replicator::disk::{Disk, DiskLayout, Opening, TestBacking};
use replicator_core::wire::{self, HEADER_BYTES, Header, Message};
use replicator_core::{
    BufId, ByteRange, Command, Effect, Effects, Input, PeerIndex, SessionId, Span, Status, Ticket,
    Time,
};

use crate::probe::Probe;
use crate::{BLOCK_BYTES, Crash, Nodes, PEER, SECTOR_BYTES, Trouble, await_connected};

const DATA_BYTES: u64 = 8 << 20;
const REGION_BYTES: u64 = 1 << 20;
const FEEDER: PeerIndex = PeerIndex(1);
/// Nothing takes longer unless it is broken.
const LIMIT: Duration = Duration::from_secs(30);

/// What connects two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A pair of Unix sockets.
    Unix,
    /// TCP on loopback.
    Tcp,
}

/// Nodes on this machine.
pub struct Real {
    dir: PathBuf,
    backing: TestBacking,
    transport: Transport,
    has_little_space: bool,
    nodes: Vec<Node>,
    sessions: u64,
}

struct Node {
    path: PathBuf,
    heard: Arc<Heard>,
    run: Option<Run>,
}

struct Run {
    handle: LoopHandle,
    _events: mpsc::Receiver<FromLoop>,
    feeder: UnixStream,
    feeder_session: SessionId,
}

/// What a loop and its test share.
#[derive(Default)]
struct Heard {
    state: Mutex<Shared>,
    news: Condvar,
}

#[derive(Default)]
struct Shared {
    probe: Probe,
    /// What is ordered in the next steps.
    orders: std::collections::VecDeque<Vec<Effect>>,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().expect("no probe panics")
    }

    /// Takes the first input that fits, when it comes.
    fn take(&self, fits: impl Fn(&Input) -> bool) -> Input {
        let end = Instant::now() + LIMIT;
        let mut shared = self.lock();
        loop {
            let inputs = &mut shared.probe.inputs;
            if let Some(at) = inputs.iter().position(&fits) {
                return inputs.remove(at).expect("just seen");
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "an input does not come; there are {inputs:?}");
            shared = self.news.wait_timeout(shared, left).expect("no probe panics").0;
        }
    }

    /// Until everything that was ordered was handed to the loop.
    fn await_orders_carried_out(&self) {
        let end = Instant::now() + LIMIT;
        let mut shared = self.lock();
        while !shared.orders.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the loop takes no orders");
            shared = self.news.wait_timeout(shared, left).expect("no probe panics").0;
        }
    }
}

/// A probe in the place of a core.
struct Player(Arc<Heard>);

impl Core for Player {
    fn step(&mut self, _: Time, input: Input, effects: &mut Effects) {
        let mut shared = self.0.lock();
        if let Input::Ordered { .. } = input {
            let orders = shared.orders.pop_front().expect("one letter for each step");
            orders.iter().for_each(|effect| shared.probe.ordered(effect));
            effects.extend(orders);
        } else {
            effects.extend(shared.probe.step(input));
        }
        self.0.news.notify_all();
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn holds_lease(&self, _: Time) -> bool {
        true
    }

    fn status(&self, _: Time) -> Status {
        Status::default()
    }
}

impl Real {
    /// So many running nodes with files in a directory of their own under `parent`.
    pub fn new(count: usize, parent: &Path, backing: TestBacking, transport: Transport) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("drivers-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("a directory for the test");
        let nodes = (0..count).map(|number| {
            let path = dir.join(format!("disk-{number}"));
            let file = File::create(&path).expect("a file for a disk");
            file.set_len(DATA_BYTES + REGION_BYTES).expect("its size");
            Node { path, heard: Arc::default(), run: None }
        });
        let nodes = nodes.collect();
        let mut real =
            Self { dir, backing, transport, has_little_space: false, nodes, sessions: 0 };
        for node in 0..count {
            real.restart(node);
        }
        real
    }

    /// The file system of `parent` is small and nobody else's: it may be filled.
    pub fn with_little_space(mut self) -> Self {
        self.has_little_space = true;
        self
    }

    fn run(&mut self, node: usize) -> &mut Run {
        self.nodes[node].run.as_mut().expect("the node runs")
    }

    fn open_disk(&self, node: usize) -> Disk {
        let opening = Opening { data: &self.nodes[node].path, meta: None, test: self.backing };
        let since = Instant::now();
        let mut disk = Disk::open(opening, &mut |waiting| {
            assert!(since.elapsed() < LIMIT, "{waiting}");
            ControlFlow::Continue(())
        })
        .expect("the disk of a test");
        let layout = DiskLayout {
            data_bytes: DATA_BYTES,
            block_bytes: BLOCK_BYTES as u32,
            region_start: DATA_BYTES,
            region_bytes: REGION_BYTES,
            ..DiskLayout::default()
        };
        disk.use_layout(layout).expect("a layout that fits");
        disk
    }

    fn status(&mut self, node: usize) -> LoopStatus {
        let (reply, status) = mpsc::channel();
        self.run(node).handle.send(ToLoop::Status { reply }).expect("a running loop");
        status.recv_timeout(LIMIT).expect("a status in time")
    }

    fn pair(&self) -> [OwnedFd; 2] {
        match self.transport {
            Transport::Unix => {
                let (one, other) = UnixStream::pair().expect("a socket pair");
                [one.into(), other.into()]
            }
            Transport::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let address = listener.local_addr().expect("its number");
                let one = TcpStream::connect(address).expect("a connection");
                [one.into(), listener.accept().expect("its other end").0.into()]
            }
        }
    }

    fn fill_path(&self) -> PathBuf {
        self.dir.join("filler")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(run) = node.run.take() {
                run.handle.join();
            }
        }
        // What is left lies in a directory for tests.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Nodes for Real {
    fn order(&mut self, node: usize, effects: Vec<Effect>) {
        self.nodes[node].heard.lock().orders.push_back(effects);
        let order = ToLoop::Command { ticket: Ticket(0), command: Command::Demote };
        self.run(node).handle.send(order).expect("a running loop");
    }

    fn hear(&mut self, node: usize) -> Input {
        let is_feeder = |input: &Input| match input {
            Input::PeerSaid { peer, .. } => *peer == FEEDER,
            _ => false,
        };
        self.nodes[node].heard.take(|input| !is_feeder(input))
    }

    fn give(&mut self, node: usize, contents: &[u64]) -> BufId {
        let bytes: Vec<u8> = contents
            .iter()
            .flat_map(|number| number.to_le_bytes().repeat(SECTOR_BYTES as usize / 8))
            .collect();
        let range = ByteRange::new(0, bytes.len() as u64);
        let message = Message::Write { tenure: 1, seq: 1, range, fua: false };
        let (header, _) = wire::encode(&message, 0, crc32fast::hash(&bytes));
        let feeder = &mut self.run(node).feeder;
        feeder.write_all(&header).and_then(|()| feeder.write_all(&bytes)).expect("a frame sent");
        let fits = |input: &Input| matches!(input, Input::PeerSaid { peer: FEEDER, .. });
        match self.nodes[node].heard.take(fits) {
            Input::PeerSaid { data: Some(buf), .. } => buf,
            other => panic!("{other:?} instead of a buffer"),
        }
    }

    fn look(&mut self, node: usize, buf: BufId, sectors: u64) -> Vec<u64> {
        let session = self.run(node).feeder_session;
        let range = ByteRange::new(0, sectors * SECTOR_BYTES);
        let message = Message::Write { tenure: 1, seq: 1, range, fua: false };
        let effect = Effect::SendPeer { peer: FEEDER, session, message, data: Some(buf) };
        self.order(node, vec![effect]);
        let feeder = &mut self.run(node).feeder;
        let mut header = [0; HEADER_BYTES];
        feeder.read_exact(&mut header).expect("a frame");
        let header = Header::decode(&header).expect("a good header");
        let mut bytes = vec![0; header.payload_bytes as usize];
        feeder.read_exact(&mut bytes).expect("its payload");
        assert_eq!(bytes.len() as u64, sectors * SECTOR_BYTES);
        assert_eq!(crc32fast::hash(&bytes), header.payload_crc);
        let sectors = bytes.chunks(SECTOR_BYTES as usize).map(|sector| {
            let (first, rest) = sector.split_first_chunk::<8>().expect("a sector is longer");
            assert!(rest.chunks(8).all(|number| number == first), "a sector is torn");
            u64::from_le_bytes(*first)
        });
        sectors.collect()
    }

    fn buffers(&mut self, node: usize) -> usize {
        self.settle();
        let held = self.nodes[node].heard.lock().probe.held.len();
        let end = Instant::now() + LIMIT;
        // What was sent lets go of its buffers a little later.
        loop {
            let pool = self.status(node).pool;
            if held > 0 || pool.peers.used_bytes + pool.resync.used_bytes == 0 {
                return held;
            }
            assert!(Instant::now() < end, "the pool keeps what nobody has: {pool:?}");
            std::thread::yield_now();
        }
    }

    fn data_bytes(&self) -> u64 {
        DATA_BYTES
    }

    fn spare_meta(&self) -> u64 {
        64 << 10
    }

    fn meta(&mut self, node: usize, offset: u64, length: usize) -> Vec<u8> {
        self.open_disk(node).read_meta(DATA_BYTES + offset, length).expect("metadata")
    }

    fn crash(&mut self, node: usize, how: Crash) -> bool {
        if how == Crash::Power && self.backing != TestBacking::Volatile {
            return false;
        }
        // Ends the loop as a crash does; with the volatile backing also the cache.
        self.nodes[node].run.take().expect("the node runs").handle.join();
        let mut shared = self.nodes[node].heard.lock();
        shared.orders.clear();
        shared.probe.restart();
        true
    }

    fn restart(&mut self, node: usize) {
        assert!(self.nodes[node].run.is_none(), "it runs");
        let config = LoopConfig {
            resource: format!("test {node}"),
            disk: self.open_disk(node),
            pool_bytes: POOL_BYTES_DEFAULT,
            client_timeout: Span::from_ms(60_000),
            lease: None,
        };
        let (sender, events) = mpsc::channel();
        let heard = self.nodes[node].heard.clone();
        let handle = spawn(config, Player(heard.clone()), sender).expect("a loop");
        let (feeder, theirs) = UnixStream::pair().expect("a socket pair");
        feeder.set_read_timeout(Some(LIMIT)).expect("a time-out");
        feeder.set_write_timeout(Some(LIMIT)).expect("a time-out");
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let stream = theirs.into();
        let order =
            ToLoop::Peer { peer: FEEDER, session, version: 5, stream, leftover: Vec::new() };
        handle.send(order).expect("a running loop");
        heard.take(|input| matches!(input, Input::PeerConnected { peer: FEEDER, .. }));
        let run = Run { handle, _events: events, feeder, feeder_session: session };
        self.nodes[node].run = Some(run);
    }

    fn begin(&mut self, node: usize, trouble: Trouble) -> bool {
        match trouble {
            Trouble::Reads => {
                // A disk that ends early cannot be read.
                let file = File::options().write(true).open(&self.nodes[node].path);
                file.and_then(|file| file.set_len(0)).expect("a shorter file");
                true
            }
            Trouble::Space if !self.has_little_space => false,
            Trouble::Space => {
                let mut filler = File::create(self.fill_path()).expect("a file");
                while filler.write_all(&[1; 4096]).is_ok() {}
                true
            }
        }
    }

    fn end(&mut self, node: usize, trouble: Trouble) {
        match trouble {
            Trouble::Reads => {
                let file = File::options().write(true).open(&self.nodes[node].path);
                let bytes = DATA_BYTES + REGION_BYTES;
                file.and_then(|file| file.set_len(bytes)).expect("its old size");
            }
            Trouble::Space => fs::remove_file(self.fill_path()).expect("it was there"),
        }
    }

    fn connect(&mut self) -> [SessionId; 2] {
        for (node, stream) in self.pair().into_iter().enumerate() {
            self.sessions += 1;
            let session = SessionId(self.sessions);
            let order =
                ToLoop::Peer { peer: PEER, session, version: 5, stream, leftover: Vec::new() };
            self.run(node).handle.send(order).expect("a running loop");
        }
        [0, 1].map(|node| await_connected(self, node))
    }

    fn react(&mut self, node: usize, frame: u64, effects: Vec<Effect>) {
        self.nodes[node].heard.lock().probe.reactions.insert(frame, effects);
    }

    fn settle(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].run.is_some() {
                self.nodes[node].heard.await_orders_carried_out();
                self.status(node);
            }
        }
    }

    fn violations(&mut self) -> Vec<String> {
        let all = self.nodes.iter().flat_map(|node| {
            let mut shared = node.heard.lock();
            std::mem::take(&mut shared.probe.violations)
        });
        all.collect()
    }
}

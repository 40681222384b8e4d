//! Two replicas, their disks and the link between them. Nothing happens unless it is asked for:
//! a disk operation ends, a frame arrives, a process dies, exactly when the caller says so.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{self, FormatRequest, Layout};
use replicator_core::wire::{Message, VERSIONS};
use replicator_core::{
    Answer, BufId, ByteRange, ClientError, ClientRequest, Command, Config, DiskFailure,
    DiskOutcome, Effect, Effects, Input, LinkLoss, Note, OpId, PeerConfig, PeerIndex, Refusal,
    RegisterKeeper, Replica, RequestId, SessionId, Ticket, Time, Timing,
};

use crate::disk::{Disk, Payload, SECTOR_BYTES, ZERO};
use crate::hash::Fast;
use crate::story;

/// What the two machines are called.
pub const NAMES: [&str; 2] = ["alpha", "beta"];
/// The alignment of all I/O, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
const PEER: PeerIndex = PeerIndex(0);
const LOG_EXTENTS: u16 = 64;

/// A disk operation under way.
#[derive(Clone, Debug)]
pub struct Op {
    id: OpId,
    /// What it does.
    pub job: Job,
}

/// What a disk operation does.
#[expect(missing_docs, reason = "the fields are those of the core's effects")]
#[derive(Clone, Debug, Hash)]
pub enum Job {
    Write { range: ByteRange, payload: Payload },
    Read { range: ByteRange, buf: BufId },
    Edges { wanted: ByteRange, aligned: ByteRange, buf: BufId },
    Copy { range: ByteRange },
    Flush,
    Meta { offset: u64, bytes: Rc<[u8]> },
    Digest { range: ByteRange },
    Fingerprint,
    Map,
}

/// What is on its way on the link.
#[derive(Clone, Debug, Hash)]
pub enum Parcel {
    /// A connection was made.
    Open(u64),
    /// A frame of this session, with its payload.
    Frame(u64, Message, Payload),
    /// The other end is closed, or the cable was cut.
    Closed(u64),
}

/// A request of a client that is not answered.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Asked {
    /// What was asked.
    pub what: ClientRequest,
    buf: Option<BufId>,
}

/// A daemon.
#[derive(Clone, Debug)]
pub struct Process {
    /// The shipping core.
    pub replica: Replica,
    buffers: BTreeMap<u32, Rc<[u8]>>,
    /// Requests of clients, by their names.
    pub requests: BTreeMap<u64, Asked>,
    /// The session the driver has.
    pub session: Option<u64>,
    /// The device is open in this tenure.
    pub device: Option<u64>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its disk.
    pub disk: Disk,
    /// Where the parts of the metadata lie.
    pub layout: Rc<Layout>,
    /// Operations of the disk under way, in the order in which they were ordered.
    pub ops: Vec<Op>,
    /// How often it was booted.
    pub boot: u64,
    /// The daemon, while it runs.
    pub process: Option<Process>,
    /// The hash of all this, once it is known.
    digest: Cell<Option<u64>>,
}

/// Something that those who watch want to know.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A client got its answer; for a read with what was read.
    Replied(usize, u64, Result<Payload, ClientError>),
    /// A device was opened: node and tenure.
    Opened(usize, u64),
    /// A change of the register was committed.
    Committed(usize, &'static str),
    /// An operator got the answer.
    Answered(usize, Result<Answer, Box<Refusal>>),
}

/// The two machines and what lies between them.
#[derive(Clone, Debug)]
pub struct Pair {
    nodes: [Rc<Node>; 2],
    /// Parcels on their way to each node.
    pub towards: [VecDeque<Parcel>; 2],
    /// Sessions so far.
    pub session: u64,
    /// The present session was cut: what is sent now is lost.
    pub is_cut: bool,
    /// The clock of both.
    pub now: Time,
    timing: Timing,
    /// Who keeps the register.
    pub keeper: RegisterKeeper,
    /// The protocol version of connections.
    pub version: u8,
    data_bytes: u64,
    /// Replicas made so far; the number of the newest.
    pub replicas: u128,
    tickets: u64,
    /// What happened since this was emptied last.
    pub happened: Vec<Happened>,
    /// The story, while somebody listens.
    pub story: Option<Vec<String>>,
}

impl Pair {
    /// Two machines that are off, with fresh metadata; alpha's data are the origin.
    pub fn new(data_bytes: u64, timing: Timing, assume_equal: bool) -> Self {
        let nodes = [0, 1].map(|number| {
            let replica = number as u128 + 1;
            Rc::new(fresh_node(number, replica, data_bytes, number == 0, assume_equal))
        });
        Self {
            nodes,
            towards: Default::default(),
            session: 0,
            is_cut: false,
            now: Time(1_000_000_000),
            timing,
            keeper: RegisterKeeper::OwnSuperblock,
            version: VERSIONS.1,
            data_bytes,
            replicas: 2,
            tickets: 0,
            happened: Vec::new(),
            story: None,
        }
    }

    /// A machine, to look at.
    pub fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    /// The daemon of a machine, to look at.
    pub fn process(&self, node: usize) -> Option<&Process> {
        self.nodes[node].process.as_ref()
    }

    fn node_mut(&mut self, node: usize) -> &mut Node {
        let node = Rc::make_mut(&mut self.nodes[node]);
        node.digest.set(None);
        node
    }

    /// A hash of everything that decides what can happen from here on.
    pub fn digest(&self) -> u64 {
        let mut hasher = Fast::default();
        for node in &self.nodes {
            hasher.write_u64(node.digest());
        }
        (&self.towards, self.session, self.is_cut, self.now, self.replicas).hash(&mut hasher);
        hasher.finish()
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    // ------------------------------------------------------------------ steps of the cores

    fn step(&mut self, node: usize, input: Input) {
        let now = self.now;
        let process = self.node_mut(node).process.as_mut().expect("a process that runs");
        let mut effects = Effects::new();
        process.replica.step(now, input, &mut effects);
        process.replica.check_invariants();
        for effect in effects {
            if self.story.is_some()
                && let Some(line) = story::effect(&effect, &self.nodes[node])
            {
                self.tell(|| format!("    {:5} {line}", NAMES[node]));
            }
            self.carry_out(node, effect);
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::SendPeer { session, message, data, .. } => {
                let process = self.nodes[node].process.as_ref().expect("it sends");
                let payload = data.map(|buf| {
                    let count = message.data_len() / SECTOR_BYTES as usize;
                    process.buffers[&buf.0][..count].into()
                });
                if process.session == Some(session.0) && !self.is_cut {
                    let parcel = Parcel::Frame(session.0, message, payload);
                    self.towards[1 - node].push_back(parcel);
                }
            }
            Effect::ClosePeer { session, .. } => {
                let process = self.node_mut(node).process.as_mut().expect("it closes");
                if process.session == Some(session.0) {
                    process.session = None;
                    if !self.is_cut {
                        self.towards[1 - node].push_back(Parcel::Closed(session.0));
                    }
                }
            }
            Effect::ReplyClient { request, result } => self.reply(node, request.0, result),
            Effect::ReleaseBuf { buf } => {
                let process = self.node_mut(node).process.as_mut().expect("it releases");
                assert!(process.buffers.remove(&buf.0).is_some(), "a buffer is released twice");
            }
            Effect::AnswerOperator { result, .. } => {
                self.happened.push(Happened::Answered(node, result));
            }
            Effect::OpenDevice { tenure, .. } => {
                self.node_mut(node).process.as_mut().expect("it serves").device = Some(tenure);
                self.happened.push(Happened::Opened(node, tenure));
            }
            Effect::CloseDevice { .. } => {
                self.node_mut(node).process.as_mut().expect("it served").device = None;
            }
            Effect::Note(Note::Committed { what, .. }) => {
                self.happened.push(Happened::Committed(node, what));
            }
            Effect::Note(_) => {}
            Effect::Stopped => {
                self.node_mut(node).process = None;
                self.lose_ends(node);
            }
            other => self.node_mut(node).begin(other),
        }
    }

    fn reply(&mut self, node: usize, request: u64, result: Result<(), ClientError>) {
        let process = self.node_mut(node).process.as_mut().expect("it answers");
        let asked = process.requests.remove(&request).expect("a request is answered once");
        let buffer = asked.buf.and_then(|buf| process.buffers.remove(&buf.0));
        let is_read = matches!(asked.what, ClientRequest::Read { .. });
        let seen = buffer.filter(|_| is_read && result.is_ok());
        if let Some(letters) = &seen {
            self.tell(|| format!("    {:5} read     {}", NAMES[node], story::letters(letters)));
        }
        self.happened.push(Happened::Replied(node, request, result.map(|()| seen)));
    }

    // ------------------------------------------------------------------ what may happen

    /// A daemon is started.
    pub fn start(&mut self, node: usize) {
        let there = self.node_mut(node);
        assert!(there.process.is_none() && there.ops.is_empty(), "it runs, or its disk is locked");
        let config = Config {
            node: NAMES[node].into(),
            peers: vec![PeerConfig { node: NAMES[1 - node].into() }],
            incarnation: Incarnation(u128::from(there.boot) * 2 + node as u128 + 1),
            can_punch: true,
            register: self.keeper,
            confirms_reads: false,
            timing: self.timing,
        };
        let region = self.nodes[node].disk.region();
        let image = self.nodes[node].disk.image(&region);
        let replica = Replica::attach(config, image, self.now).expect("metadata that verify");
        self.node_mut(node).process = Some(Process {
            replica,
            buffers: BTreeMap::new(),
            requests: BTreeMap::new(),
            session: None,
            device: None,
        });
        self.step(node, Input::TimePassed);
    }

    /// Whether the two daemons may be connected: both run, and both know that they are not.
    pub fn can_connect(&self) -> bool {
        let free = |node: usize| self.process(node).is_some_and(|one| one.session.is_none());
        free(0) && free(1) && self.towards.iter().all(VecDeque::is_empty)
    }

    /// A connection is made; both ends will learn of it.
    pub fn connect(&mut self) {
        assert!(self.can_connect(), "both daemons must run and be unconnected");
        self.session += 1;
        self.is_cut = false;
        for queue in &mut self.towards {
            queue.push_back(Parcel::Open(self.session));
        }
    }

    /// The cable is cut. What was sent may still arrive; what is sent from now on does not.
    pub fn cut(&mut self) {
        assert!(!self.is_cut, "the link is cut already");
        self.is_cut = true;
        for queue in &mut self.towards {
            queue.push_back(Parcel::Closed(self.session));
        }
    }

    /// The next parcel arrives at a node.
    pub fn deliver(&mut self, node: usize) {
        let parcel = self.towards[node].pop_front().expect("something is on its way");
        let Some(process) = self.node_mut(node).process.as_mut() else { return };
        match parcel {
            Parcel::Open(session) => {
                assert_eq!(process.session, None, "a session begins in another");
                process.session = Some(session);
                let session = SessionId(session);
                let version = self.version;
                self.step(node, Input::PeerConnected { peer: PEER, session, version });
            }
            Parcel::Frame(session, message, payload) => {
                if process.session == Some(session) {
                    let data = payload.map(|letters| process.take_buffer(letters));
                    let session = SessionId(session);
                    self.step(node, Input::PeerSaid { peer: PEER, session, message, data });
                }
            }
            Parcel::Closed(session) => {
                if process.session == Some(session) {
                    process.session = None;
                    let (session, why) = (SessionId(session), LinkLoss::Closed);
                    self.step(node, Input::LinkLost { peer: PEER, session, why });
                }
            }
        }
    }

    /// Everything that is on its way to a node is lost, except for the news that it is.
    pub fn lose_parcels(&mut self, node: usize) {
        self.towards[node].retain(|parcel| matches!(parcel, Parcel::Closed(_)));
    }

    /// A disk operation ends.
    pub fn finish(&mut self, node: usize, number: usize, result: Result<(), DiskFailure>) {
        let there = self.node_mut(node);
        let op = there.ops.remove(number);
        let outcome = result.map(|()| there.carry_out(op.job));
        self.step(node, Input::DiskDone { op: op.id, result: outcome });
    }

    /// A client asks for something of an open device. `letters` is what a write writes.
    pub fn ask(&mut self, node: usize, request: u64, asks: ClientAsks, letters: u8) {
        let process = self.node_mut(node).process.as_mut().expect("a device has a process");
        let (what, buf) = match asks {
            ClientAsks::Read(range) => {
                let buf = process.take_buffer(client_buffer(range, ZERO));
                (ClientRequest::Read { range, buf }, Some(buf))
            }
            ClientAsks::Write(range, fua) => {
                let buf = process.take_buffer(client_buffer(range, letters));
                (ClientRequest::Write { range, buf, fua }, Some(buf))
            }
            ClientAsks::Trim(range) => (ClientRequest::Trim { range, fua: false }, None),
            ClientAsks::Flush => (ClientRequest::Flush, None),
        };
        process.requests.insert(request, Asked { what, buf });
        self.step(node, Input::ClientRequested { request: RequestId(request), what });
    }

    /// An operator gives a command.
    pub fn order(&mut self, node: usize, command: Command) {
        self.tickets += 1;
        self.step(node, Input::Ordered { ticket: Ticket(self.tickets), command });
    }

    /// Time passes, in milliseconds, and both daemons look at their clocks.
    pub fn wait(&mut self, ms: u64) {
        self.now = self.now + replicator_core::Span::from_ms(ms);
        for node in 0..2 {
            let deadline = self.process(node).and_then(|process| process.replica.next_deadline());
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.step(node, Input::TimePassed);
            }
        }
    }

    /// A daemon is killed. What it gave to its disk lands; its connection is closed.
    pub fn kill(&mut self, node: usize) {
        let there = self.node_mut(node);
        there.process = None;
        for op in std::mem::take(&mut there.ops) {
            there.land(&op.job);
        }
        self.lose_ends(node);
    }

    /// How many writes of data and of metadata a power cut may take from a machine.
    pub fn at_risk(&self, node: usize) -> (usize, usize) {
        let there = &self.nodes[node];
        let metas = there.ops.iter().filter(|op| matches!(op.job, Job::Meta { .. })).count();
        let writes = there.ops.iter().filter(|op| matches!(op.job, Job::Write { .. })).count();
        (there.disk.volatile().len() + writes, metas)
    }

    /// A machine loses its power, and is ready to be started again. A set bit of `kept` says that
    /// a write has reached the medium: first those of data that are done, then those under way,
    /// in their order; then those of metadata, of which a bit of `torn` lands the first sector.
    pub fn cut_power(&mut self, node: usize, kept: u64, torn: u64) {
        let mut bit = self.at_risk(node).0;
        let there = self.node_mut(node);
        there.process = None;
        there.boot += 1;
        for op in std::mem::take(&mut there.ops) {
            let Job::Meta { offset, bytes } = &op.job else {
                there.land(&op.job);
                continue;
            };
            if torn >> bit & 1 == 1 {
                there.disk.write_meta(*offset, &bytes[..SECTOR_BYTES as usize]);
            } else if kept >> bit & 1 == 1 {
                there.land(&op.job);
            }
            bit += 1;
        }
        there.disk.lose_power(kept);
        self.lose_ends(node);
    }

    /// A disk changes what it was given.
    pub fn rot(&mut self, node: usize, range: ByteRange) {
        self.node_mut(node).disk.rot(range);
    }

    /// The disk of a machine that is off is replaced by a new one.
    pub fn replace_disk(&mut self, node: usize) {
        assert!(self.nodes[node].process.is_none(), "it runs");
        self.replicas += 1;
        let boot = self.nodes[node].boot;
        let mut fresh = fresh_node(node, self.replicas, self.data_bytes, false, false);
        fresh.boot = boot;
        self.nodes[node] = Rc::new(fresh);
    }

    /// The disk of a machine that is off, to be changed behind the daemon's back.
    pub fn disk_mut(&mut self, node: usize) -> &mut Disk {
        assert!(self.nodes[node].process.is_none(), "it runs");
        &mut self.node_mut(node).disk
    }

    /// A process is gone: nothing reaches it any more, and the other end learns of it.
    fn lose_ends(&mut self, node: usize) {
        self.towards[node].clear();
        let open = self.process(1 - node).is_some_and(|other| other.session.is_some());
        let opening = self.towards[1 - node].iter().any(|p| matches!(p, Parcel::Open(_)));
        let closing = self.towards[1 - node].iter().any(|p| matches!(p, Parcel::Closed(_)));
        if (open || opening) && !closing {
            self.towards[1 - node].push_back(Parcel::Closed(self.session));
        }
    }
}

/// What a client may ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientAsks {
    /// A read.
    Read(ByteRange),
    /// A write, and whether it is to be durable.
    Write(ByteRange, bool),
    /// Give blocks back.
    Trim(ByteRange),
    /// Make everything durable.
    Flush,
}

impl Process {
    fn take_buffer(&mut self, letters: Rc<[u8]>) -> BufId {
        // The lowest free number: the same buffers in the same state, whatever came before.
        let free = (0..).find(|number| !self.buffers.contains_key(number)).expect("numbers enough");
        self.buffers.insert(free, letters);
        BufId(free)
    }
}

impl Node {
    /// The core ordered a disk operation.
    fn begin(&mut self, effect: Effect) {
        let contents = |process: &Option<Process>, buf: BufId, range: ByteRange| {
            let buffers = &process.as_ref().expect("it has buffers").buffers;
            buffers[&buf.0][..(range.length / SECTOR_BYTES) as usize].into()
        };
        let (id, job) = match effect {
            Effect::ReadDisk { op, range, buf } => (op, Job::Read { range, buf }),
            Effect::ReadEdges { op, wanted, aligned, buf } => {
                (op, Job::Edges { wanted, aligned, buf })
            }
            Effect::ReadForResync { op, range } => (op, Job::Copy { range }),
            Effect::DigestDisk { op, range } => (op, Job::Digest { range }),
            Effect::WriteDisk { op, range, buf } => {
                let payload = Some(contents(&self.process, buf, range));
                (op, Job::Write { range, payload })
            }
            Effect::ZeroDisk { op, range, .. } => (op, Job::Write { range, payload: None }),
            Effect::MapDisk { op, .. } => (op, Job::Map),
            Effect::FlushDisk { op } => {
                self.disk.flush_begins();
                (op, Job::Flush)
            }
            Effect::WriteMeta { op, offset, bytes } => {
                (op, Job::Meta { offset, bytes: bytes.into() })
            }
            Effect::TakeFingerprint { op, .. } => (op, Job::Fingerprint),
            other => unreachable!("no disk operation: {other:?}"),
        };
        self.ops.push(Op { id, job });
    }

    /// What an operation changes is changed.
    fn land(&mut self, job: &Job) {
        match job {
            Job::Write { range, payload } => self.disk.write(*range, payload),
            Job::Meta { offset, bytes } => self.disk.write_meta(*offset, bytes),
            _ => {}
        }
    }

    fn carry_out(&mut self, job: Job) -> DiskOutcome {
        self.land(&job);
        let process = self.process.as_mut().expect("somebody waits for it");
        match job {
            Job::Flush => self.disk.flush_ends(),
            Job::Read { range, buf } => {
                process.buffers.insert(buf.0, self.disk.read(range));
            }
            Job::Edges { wanted, aligned, buf } => {
                let mut letters = self.disk.read(aligned).to_vec();
                let first = ((wanted.start - aligned.start) / SECTOR_BYTES) as usize;
                let kept = first..first + (wanted.length / SECTOR_BYTES) as usize;
                letters[kept.clone()].copy_from_slice(&process.buffers[&buf.0][kept]);
                process.buffers.insert(buf.0, letters.into());
            }
            Job::Copy { range } => {
                let letters = self.disk.read(range);
                let zero = letters.iter().all(|&letter| letter == ZERO);
                let data = (!zero).then(|| process.take_buffer(letters));
                return DiskOutcome::Read { data };
            }
            Job::Digest { range } => return DiskOutcome::Digests(self.disk.digests(range)),
            Job::Fingerprint => return DiskOutcome::Fingerprint(self.disk.fingerprint()),
            _ => {}
        }
        DiskOutcome::Done
    }

    /// Operations in flight count without their names and order, which decide nothing.
    fn digest(&self) -> u64 {
        if let Some(known) = self.digest.get() {
            return known;
        }
        let mut hasher = Fast::default();
        (&self.disk, self.boot).hash(&mut hasher);
        if let Some(process) = &self.process {
            let Process { replica, buffers, requests, session, device } = process;
            replica.digest(&mut hasher);
            (buffers, requests, session, device).hash(&mut hasher);
        }
        let jobs = self.ops.iter().map(|op| {
            let mut hasher = Fast::default();
            op.job.hash(&mut hasher);
            hasher.finish()
        });
        hasher.write_u64(jobs.fold(0, u64::wrapping_add));
        let digest = hasher.finish();
        self.digest.set(Some(digest));
        digest
    }
}

/// The buffer of a client's request, aligned out: unknown around what it writes.
fn client_buffer(range: ByteRange, letter: u8) -> Rc<[u8]> {
    let aligned = range.align_out(BLOCK_BYTES);
    (0..aligned.length / SECTOR_BYTES)
        .map(|sector| {
            let at = aligned.start + sector * SECTOR_BYTES;
            if (range.start..range.end()).contains(&at) { letter } else { b'?' }
        })
        .collect()
}

fn fresh_node(
    number: usize,
    replica: u128,
    data_bytes: u64,
    origin: bool,
    assume_equal: bool,
) -> Node {
    let region_bytes = Layout::new(u64::MAX / 2, data_bytes, 1).region_bytes;
    let formatted = metadata::format(&FormatRequest {
        device_bytes: data_bytes + region_bytes,
        internal: true,
        disk_bytes: data_bytes + region_bytes,
        data_bytes: Some(data_bytes),
        room_bytes: None,
        block_bytes: BLOCK_BYTES as u32,
        log_extents: LOG_EXTENTS,
        resource: "small".into(),
        resource_id: 77,
        node: NAMES[number].into(),
        replica: ReplicaId(replica),
        peers: vec![NAMES[1 - number].into()],
        bitmap_slots: 1,
        incarnation: Incarnation(number as u128 + 1),
        origin,
        assume_equal,
    })
    .expect("a size that fits");
    let mut disk = Disk::new(data_bytes, region_bytes);
    for (offset, bytes) in &formatted.writes {
        disk.write_meta(offset - formatted.layout.region_start, bytes);
    }
    let layout = Rc::new(formatted.layout);
    let digest = Cell::new(None);
    Node { disk, layout, ops: Vec::new(), boot: 0, process: None, digest }
}

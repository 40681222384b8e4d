//! The three machines, their links, and the majority.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{self, FormatRequest, Image, Layout, Superblock};
use replicator_core::register::RegisterState;
use replicator_core::wire::{Message, VERSIONS};
use replicator_core::{
    BufId, ByteRange, ClientError, ClientRequest, Command, Config, DiskOutcome, Effect, Effects,
    Input, LinkLoss, Note, OpId, PeerConfig, PeerIndex, RegisterKeeper, Replica, RequestId,
    SessionId, Span, Ticket, Time, Timing, Undecided,
};

use super::disk::{BLOCK_BYTES, Disk, Payload};
use crate::hash::Fast;

/// Machines.
pub const NODES: usize = 3;
const NAMES: [&str; NODES] = ["alpha", "beta", "gamma"];
/// Extents that the activity log holds.
pub const LOG_EXTENTS: u16 = 64;

/// A disk operation under way.
#[derive(Clone, Debug)]
pub struct Op {
    id: OpId,
    job: Job,
}

#[derive(Clone, Debug, Hash)]
enum Job {
    Write { range: ByteRange, payload: Payload },
    Read { range: ByteRange, buf: BufId },
    Copy { range: ByteRange },
    Flush,
    Meta { offset: u64, bytes: Rc<[u8]> },
    Digest { range: ByteRange },
    Fingerprint,
}

/// What is on its way on a link.
#[derive(Clone, Debug, Hash)]
pub enum Parcel {
    /// A connection was made.
    Open(u64),
    /// A frame of this session, with its payload.
    Frame(u64, Box<Message>, Payload),
    /// The other end is closed, or the cable was cut.
    Closed(u64),
}

/// A proposal without a decision.
#[derive(Clone, Debug, Hash)]
pub struct Proposal {
    /// Whose.
    pub node: usize,
    number: u64,
    next: RegisterState,
    expected: u64,
}

/// A daemon.
#[derive(Clone, Debug)]
pub struct Process {
    /// The shipping core.
    pub replica: Replica,
    buffers: BTreeMap<u32, Rc<[u32]>>,
    /// Requests of clients without an answer.
    pub requests: BTreeMap<u64, (ClientRequest, Option<BufId>)>,
    /// The session the driver has with each.
    sessions: [Option<u64>; NODES],
    /// The device is open in this tenure.
    pub device: Option<u64>,
    /// It has the lease.
    pub lease: bool,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its disk.
    pub disk: Disk,
    /// Operations of the disk under way.
    pub ops: Vec<Op>,
    /// How often it was booted.
    boot: u64,
    /// The daemon, while it runs.
    pub process: Option<Process>,
}

/// Something that those who watch want to know.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A client got its answer; for a read with what was read.
    Replied(usize, u64, Result<Payload, ClientError>),
    /// A device was opened: node and tenure.
    Opened(usize, u64),
    /// A resync began: why all of it, if it is a full one, and how many bytes.
    Resync(Option<&'static str>, u64),
}

/// The machines and what lies between them.
#[derive(Clone, Debug)]
pub struct World {
    nodes: [Rc<Node>; NODES],
    /// Parcels on their way: `towards[to][from]`.
    pub towards: [[VecDeque<Parcel>; NODES]; NODES],
    session: u64,
    /// The cable between two machines is cut.
    cut: [[bool; NODES]; NODES],
    /// The clock of all.
    pub now: Time,
    /// What the majority has committed.
    pub register: RegisterState,
    /// What was proposed to it.
    pub proposals: Vec<Proposal>,
    data_bytes: u64,
    timing: Timing,
    tickets: u64,
    /// Whose configuration does not name the last node.
    knows_two: [bool; NODES],
    /// What happened since this was emptied last.
    pub happened: Vec<Happened>,
    /// The story, while somebody listens.
    pub story: Option<Vec<String>>,
}

/// Another node's place at a node.
fn slot(node: usize, other: usize) -> PeerIndex {
    PeerIndex((other - usize::from(other > node)) as u8)
}

/// The node at a place.
fn at_slot(node: usize, peer: PeerIndex) -> usize {
    let at = usize::from(peer.0);
    at + usize::from(at >= node)
}

fn others(node: usize) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |&other| other != node)
}

impl World {
    /// Machines that are off, with fresh metadata; alpha's data are the origin.
    pub fn new(data_bytes: u64, timing: Timing) -> Self {
        let mut register = RegisterState::default();
        let nodes = [0, 1, 2].map(|node| {
            let region_bytes = Layout::new(u64::MAX / 2, data_bytes, NODES - 1).region_bytes;
            let formatted = metadata::format(&FormatRequest {
                device_bytes: data_bytes + region_bytes,
                internal: true,
                disk_bytes: data_bytes + region_bytes,
                data_bytes: Some(data_bytes),
                room_bytes: None,
                block_bytes: BLOCK_BYTES as u32,
                log_extents: LOG_EXTENTS,
                resource: "trio".into(),
                resource_id: 77,
                node: NAMES[node].into(),
                replica: ReplicaId(node as u128 + 1),
                peers: others(node).map(|other| NAMES[other].into()).collect(),
                bitmap_slots: NODES - 1,
                incarnation: incarnation(node, 0),
                origin: node == 0,
                assume_equal: false,
            })
            .expect("a size that fits");
            if node == 0 {
                let mut copies =
                    formatted.writes.iter().filter_map(|(_, bytes)| Superblock::decode(bytes).ok());
                register = copies.next_back().expect("a superblock").register;
                register.authority = None;
            }
            let mut disk = Disk::new(data_bytes, region_bytes);
            for (offset, bytes) in &formatted.writes {
                disk.write_meta(offset - formatted.layout.region_start, bytes);
            }
            Rc::new(Node { disk, ops: Vec::new(), boot: 0, process: None })
        });
        Self {
            nodes,
            towards: Default::default(),
            session: 0,
            cut: Default::default(),
            now: Time(1_000_000_000),
            register,
            proposals: Vec::new(),
            data_bytes,
            timing,
            tickets: 0,
            knows_two: [false; NODES],
            happened: Vec::new(),
            story: None,
        }
    }

    /// A machine, to look at.
    pub fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    /// A daemon, to look at.
    pub fn process(&self, node: usize) -> Option<&Process> {
        self.nodes[node].process.as_ref()
    }

    fn node_mut(&mut self, node: usize) -> &mut Node {
        Rc::make_mut(&mut self.nodes[node])
    }

    fn process_mut(&mut self, node: usize) -> &mut Process {
        self.node_mut(node).process.as_mut().expect("a process that runs")
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    /// A hash of everything that decides what can happen from here on.
    pub fn digest(&self) -> u64 {
        let mut hasher = Fast::default();
        for node in &self.nodes {
            (&node.disk, node.boot).hash(&mut hasher);
            if let Some(process) = &node.process {
                let Process { replica, buffers, requests, sessions, device, lease } = process;
                replica.digest(&mut hasher);
                (buffers, requests, sessions, device, lease).hash(&mut hasher);
            }
            let jobs = node.ops.iter().map(|op| {
                let mut hasher = Fast::default();
                op.job.hash(&mut hasher);
                hasher.finish()
            });
            hasher.write_u64(jobs.fold(0, u64::wrapping_add));
        }
        (&self.towards, self.session, self.cut, self.now).hash(&mut hasher);
        (&self.register, &self.proposals).hash(&mut hasher);
        hasher.finish()
    }

    // ------------------------------------------------------------------ steps of the cores

    fn step(&mut self, node: usize, input: Input) {
        let now = self.now;
        let process = self.process_mut(node);
        let mut effects = Effects::new();
        process.replica.step(now, input, &mut effects);
        process.replica.check_invariants();
        for effect in effects {
            self.carry_out(node, effect);
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        if self.story.is_some() {
            let text = format!("{effect:?}");
            self.tell(|| format!("    {:5} {}", NAMES[node], text.get(..240).unwrap_or(&text)));
        }
        match effect {
            Effect::SendPeer { peer, session, message, data } => {
                let other = at_slot(node, peer);
                let process = self.process(node).expect("it sends");
                let payload = data.map(|buf| {
                    let count = message.data_len() / BLOCK_BYTES as usize;
                    process.buffers[&buf.0][..count].into()
                });
                if process.sessions[other] == Some(session.0) && !self.cut[node][other] {
                    let parcel = Parcel::Frame(session.0, Box::new(message), payload);
                    self.towards[other][node].push_back(parcel);
                }
            }
            Effect::ClosePeer { peer, session, .. } => {
                let other = at_slot(node, peer);
                let open = &mut self.process_mut(node).sessions[other];
                if *open == Some(session.0) {
                    *open = None;
                    if !self.cut[node][other] {
                        self.towards[other][node].push_back(Parcel::Closed(session.0));
                    }
                }
            }
            Effect::ReplyClient { request, result } => self.reply(node, request.0, result),
            Effect::ReleaseBuf { buf } => {
                let released = self.process_mut(node).buffers.remove(&buf.0);
                assert!(released.is_some(), "a buffer is released twice");
            }
            Effect::OpenDevice { tenure, .. } => {
                self.process_mut(node).device = Some(tenure);
                self.happened.push(Happened::Opened(node, tenure));
            }
            Effect::CloseDevice { .. } => self.process_mut(node).device = None,
            Effect::Propose { number, next, expected, .. } => {
                self.proposals.push(Proposal { node, number, next: *next, expected });
            }
            Effect::Note(Note::ResyncStarted { bytes, full_because, .. }) => {
                self.happened.push(Happened::Resync(full_because, bytes));
            }
            Effect::Note(_) | Effect::AnswerOperator { .. } => {}
            // What is still under way lands before the disk is closed.
            Effect::Stopped => self.kill(node),
            other => self.node_mut(node).begin(other),
        }
    }

    fn reply(&mut self, node: usize, request: u64, result: Result<(), ClientError>) {
        let holds = self.process(node).is_some_and(|p| p.replica.holds_lease(self.now));
        assert!(result.is_err() || holds, "R5a: a reply without a lease");
        let process = self.process_mut(node);
        let (what, buf) = process.requests.remove(&request).expect("a request is answered once");
        let buffer = buf.and_then(|buf| process.buffers.remove(&buf.0));
        let is_read = matches!(what, ClientRequest::Read { .. });
        let seen = buffer.filter(|_| is_read && result.is_ok());
        self.happened.push(Happened::Replied(node, request, result.map(|()| seen)));
    }

    // ------------------------------------------------------------------ what may happen

    /// From its next start on a node's configuration names the last node, or does not.
    pub fn know_two(&mut self, node: usize, knows_two: bool) {
        self.knows_two[node] = knows_two;
    }

    /// A daemon is started.
    pub fn start(&mut self, node: usize) {
        let there = self.node(node);
        assert!(there.process.is_none() && there.ops.is_empty(), "it runs, or its disk is locked");
        let known = NODES - usize::from(self.knows_two[node]);
        let peers = others(node).filter(|&other| other < known);
        let config = Config {
            node: NAMES[node].into(),
            peers: peers.map(|other| PeerConfig { node: NAMES[other].into() }).collect(),
            incarnation: incarnation(node, there.boot),
            can_punch: true,
            register: RegisterKeeper::Majority,
            confirms_reads: false,
            timing: self.timing,
        };
        let region = there.disk.region();
        let device_bytes = self.data_bytes + region.len() as u64;
        let image = Image {
            region: &region,
            device_bytes,
            disk_bytes: device_bytes,
            fingerprint: Some([7; 32]),
        };
        let replica = Replica::attach(config, image, self.now).expect("metadata that verify");
        self.node_mut(node).process = Some(Process {
            replica,
            buffers: BTreeMap::new(),
            requests: BTreeMap::new(),
            sessions: [None; NODES],
            device: None,
            lease: false,
        });
        self.step(node, Input::TimePassed);
    }

    /// The newest committed state is told to a node.
    pub fn learn(&mut self, node: usize) {
        let state = Box::new(self.register.clone());
        self.step(node, Input::RegisterLearned(state));
    }

    /// The lease of a node comes or goes.
    pub fn lease(&mut self, node: usize, held: bool) {
        self.process_mut(node).lease = held;
        let until = held.then_some(Time(u64::MAX));
        self.step(node, Input::LeaseChanged { until });
    }

    /// Whether a node in office could still answer somebody.
    fn may_answer(&self, primary: ReplicaId) -> bool {
        let node = primary.0 as usize - 1;
        self.process(node).is_some_and(|process| process.lease)
    }

    /// The majority decides on a proposal. A takeover from one who has the lease is refused (L2).
    pub fn decide(&mut self, at: usize) {
        let Proposal { node, number, next, expected } = self.proposals.remove(at);
        let mine = ReplicaId(node as u128 + 1);
        let held = self.register.primary.filter(|&id| id != mine && next.primary != Some(id));
        let result = if expected != self.register.generation {
            Err(Undecided::Newer(Box::new(self.register.clone())))
        } else if held.is_some_and(|primary| self.may_answer(primary)) {
            Err(Undecided::NotNow { why: "the old lease runs".into() })
        } else {
            self.register = next.clone();
            Ok(Box::new(next))
        };
        if self.process(node).is_some() {
            self.step(node, Input::Decided { number, result });
        }
    }

    /// Whether two daemons may be connected: both run, and both know that they are not.
    pub fn can_connect(&self, one: usize, other: usize) -> bool {
        let free = |a: usize, b: usize| {
            self.process(a).is_some_and(|process| process.sessions[b].is_none())
        };
        free(one, other)
            && free(other, one)
            && self.towards[one][other].is_empty()
            && self.towards[other][one].is_empty()
    }

    /// A connection is made; both ends will learn of it.
    pub fn connect(&mut self, one: usize, other: usize) {
        self.session += 1;
        self.set_cut(one, other, false);
        self.towards[one][other].push_back(Parcel::Open(self.session));
        self.towards[other][one].push_back(Parcel::Open(self.session));
    }

    fn set_cut(&mut self, one: usize, other: usize, cut: bool) {
        self.cut[one][other] = cut;
        self.cut[other][one] = cut;
    }

    /// Whether a session between two is open at either end.
    pub fn is_connected(&self, one: usize, other: usize) -> bool {
        let open = |a: usize, b: usize| self.process(a).and_then(|process| process.sessions[b]);
        !self.cut[one][other] && (open(one, other).is_some() || open(other, one).is_some())
    }

    /// The cable is cut. What was sent may still arrive.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.set_cut(one, other, true);
        for (a, b) in [(one, other), (other, one)] {
            let open = self.process(a).and_then(|process| process.sessions[b]);
            let opening = self.towards[a][b].iter().find_map(|parcel| match parcel {
                Parcel::Open(session) => Some(*session),
                _ => None,
            });
            if let Some(session) = opening.or(open) {
                self.towards[a][b].push_back(Parcel::Closed(session));
            }
        }
    }

    /// The next parcel arrives.
    pub fn deliver(&mut self, to: usize, from: usize) {
        let parcel = self.towards[to][from].pop_front().expect("something is on its way");
        if self.story.is_some() {
            let text = format!("{parcel:?}");
            let text = text.get(..240).unwrap_or(&text).to_string();
            self.tell(|| format!("{} gets from {}: {text}", NAMES[to], NAMES[from]));
        }
        let Some(process) = self.node_mut(to).process.as_mut() else { return };
        let peer = slot(to, from);
        let open = &mut process.sessions[from];
        match parcel {
            Parcel::Open(session) => {
                assert_eq!(*open, None, "a session begins in another");
                *open = Some(session);
                self.step(
                    to,
                    Input::PeerConnected { peer, session: SessionId(session), version: VERSIONS.1 },
                );
            }
            Parcel::Frame(session, message, payload) if *open == Some(session) => {
                let data = payload.map(|numbers| process.take_buffer(numbers));
                let (session, message) = (SessionId(session), *message);
                self.step(to, Input::PeerSaid { peer, session, message, data });
            }
            Parcel::Closed(session) if *open == Some(session) => {
                *open = None;
                let why = LinkLoss::Closed;
                self.step(to, Input::LinkLost { peer, session: SessionId(session), why });
            }
            _ => {}
        }
    }

    /// Frames on their way to a node are lost, except for the news that they are.
    pub fn lose_parcels(&mut self, to: usize, from: usize) {
        self.towards[to][from].retain(|parcel| matches!(parcel, Parcel::Closed(_)));
    }

    /// Whether frames on their way may be lost: the cable is cut behind them.
    pub fn may_lose(&self, to: usize, from: usize) -> bool {
        let queue = &self.towards[to][from];
        queue.iter().any(|parcel| matches!(parcel, Parcel::Frame(..)))
            && queue.iter().any(|parcel| matches!(parcel, Parcel::Closed(_)))
    }

    /// A disk operation ends.
    pub fn finish(&mut self, node: usize, number: usize) {
        let there = self.node_mut(node);
        let op = there.ops.remove(number);
        let outcome = there.carry_out(op.job.clone());
        let job = op.job;
        if self.story.is_some() {
            let text = format!("{job:?}");
            let text = text.get(..100).unwrap_or(&text).to_string();
            self.tell(|| format!("{} done: {text}", NAMES[node]));
        }
        self.step(node, Input::DiskDone { op: op.id, result: Ok(outcome) });
    }

    /// A client asks an open device. `number` is what a write writes.
    pub fn ask(&mut self, node: usize, request: u64, asks: Asks, number: u32) {
        self.tell(|| format!("a client asks {}: {asks:?} ({number})", NAMES[node]));
        let process = self.process_mut(node);
        let (what, buf) = match asks {
            Asks::Read(block) => {
                let range = ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES);
                let buf = process.take_buffer([0].into());
                (ClientRequest::Read { range, buf }, Some(buf))
            }
            Asks::Write(block, fua) => {
                let range = ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES);
                let buf = process.take_buffer([number].into());
                (ClientRequest::Write { range, buf, fua }, Some(buf))
            }
            Asks::Trim(block) => {
                let range = ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES);
                (ClientRequest::WriteZeroes { range, fua: false, may_punch: true }, None)
            }
            Asks::Flush => (ClientRequest::Flush, None),
        };
        process.requests.insert(request, (what, buf));
        self.step(node, Input::ClientRequested { request: RequestId(request), what });
    }

    /// An operator, or the automation, gives a command.
    pub fn order(&mut self, node: usize, command: Command) {
        self.tell(|| format!("{} is told: {command:?}", NAMES[node]));
        self.tickets += 1;
        self.step(node, Input::Ordered { ticket: Ticket(self.tickets), command });
    }

    /// Promotes a node as the automation does.
    pub fn promote(&mut self, node: usize) {
        let command =
            Command::Promote { old_primary_is_off: false, allow_data_loss: false, alone: false };
        self.order(node, command);
    }

    /// Time passes, and who has a deadline looks at the clock.
    pub fn wait(&mut self, ms: u64) {
        self.now = self.now + Span::from_ms(ms);
        for node in 0..NODES {
            let deadline = self.process(node).and_then(|process| process.replica.next_deadline());
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.step(node, Input::TimePassed);
            }
        }
    }

    /// A daemon is killed. What it gave to its disk lands.
    pub fn kill(&mut self, node: usize) {
        self.tell(|| format!("{} is killed", NAMES[node]));
        let there = self.node_mut(node);
        there.process = None;
        for op in std::mem::take(&mut there.ops) {
            there.land(&op.job);
        }
        self.lose_ends(node);
    }

    /// A machine loses its power, and is ready to be started again. `kept` says for each write that
    /// may be lost whether it was not, and of a metadata write that was, whether it is torn.
    pub fn cut_power(&mut self, node: usize, mut kept: impl FnMut() -> bool) {
        self.tell(|| format!("{} loses its power", NAMES[node]));
        let there = self.node_mut(node);
        there.process = None;
        there.boot += 1;
        for op in std::mem::take(&mut there.ops) {
            match &op.job {
                Job::Meta { offset, bytes } if kept() => there.disk.write_meta(*offset, bytes),
                Job::Meta { offset, bytes } if kept() => there.disk.tear_meta(*offset, bytes),
                Job::Meta { .. } => {}
                job => there.land(job),
            }
        }
        there.disk.lose_power(kept);
        self.lose_ends(node);
    }

    /// How many writes a power cut may take.
    pub fn at_risk(&self, node: usize) -> usize {
        let there = self.node(node);
        let changes = |op: &&Op| matches!(op.job, Job::Meta { .. } | Job::Write { .. });
        there.disk.at_risk() + 2 * there.ops.iter().filter(changes).count()
    }

    /// A process is gone: nothing reaches it any more, and the other ends learn of it. What it
    /// proposed may still be decided.
    fn lose_ends(&mut self, node: usize) {
        for other in others(node) {
            self.towards[node][other].clear();
            let open = self.process(other).and_then(|process| process.sessions[node]);
            let opening = self.towards[other][node].iter().find_map(|parcel| match parcel {
                Parcel::Open(session) => Some(*session),
                _ => None,
            });
            let closing = self.towards[other][node].iter().any(|p| matches!(p, Parcel::Closed(_)));
            if let Some(session) = opening.or(open).filter(|_| !closing) {
                self.towards[other][node].push_back(Parcel::Closed(session));
            }
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.proposals.is_empty()
            && self.towards.iter().flatten().all(VecDeque::is_empty)
            && self.nodes.iter().all(|node| node.ops.is_empty())
    }

    /// The node whose device is open in the newest tenure, with a lease.
    pub fn serving(&self) -> Option<usize> {
        (0..NODES)
            .filter(|&node| self.process(node).is_some_and(|p| p.device.is_some() && p.lease))
            .max_by_key(|&node| self.process(node).and_then(|process| process.device))
    }

    /// The state of a peer at a node, for those who watch.
    pub fn peer_state(&self, node: usize, other: usize) -> &'static str {
        let status = self.process(node).map(|process| process.replica.status(self.now));
        status.map_or("", |status| status.peers[usize::from(slot(node, other).0)].state)
    }
}

/// What a client may ask; by number of block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asks {
    /// A read.
    Read(u64),
    /// A write, and whether it is to be durable.
    Write(u64, bool),
    /// Zeroes.
    Trim(u64),
    /// Make everything durable.
    Flush,
}

impl Process {
    fn take_buffer(&mut self, numbers: Rc<[u32]>) -> BufId {
        // The lowest free number: the same buffers in the same state, whatever came before.
        let free = (0..).find(|number| !self.buffers.contains_key(number)).expect("numbers enough");
        self.buffers.insert(free, numbers);
        BufId(free)
    }
}

impl Node {
    fn begin(&mut self, effect: Effect) {
        let contents = |process: &Option<Process>, buf: BufId, range: ByteRange| {
            let buffers = &process.as_ref().expect("it has buffers").buffers;
            buffers[&buf.0][..(range.length / BLOCK_BYTES) as usize].into()
        };
        let (id, job) = match effect {
            Effect::ReadDisk { op, range, buf } => (op, Job::Read { range, buf }),
            Effect::ReadForResync { op, range } => (op, Job::Copy { range }),
            Effect::DigestDisk { op, range } => (op, Job::Digest { range }),
            Effect::WriteDisk { op, range, buf } => {
                let payload = Some(contents(&self.process, buf, range));
                (op, Job::Write { range, payload })
            }
            Effect::ZeroDisk { op, range, .. } => (op, Job::Write { range, payload: None }),
            Effect::FlushDisk { op } => {
                self.disk.flush_begins();
                (op, Job::Flush)
            }
            Effect::WriteMeta { op, offset, bytes } => {
                (op, Job::Meta { offset, bytes: bytes.into() })
            }
            Effect::TakeFingerprint { op, .. } => (op, Job::Fingerprint),
            other => unreachable!("no disk operation of these tests: {other:?}"),
        };
        self.ops.push(Op { id, job });
    }

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
            Job::Copy { range } => {
                let numbers = self.disk.read(range);
                let zero = numbers.iter().all(|&number| number == 0);
                let data = (!zero).then(|| process.take_buffer(numbers));
                return DiskOutcome::Read { data };
            }
            Job::Digest { range } => {
                let digest = |&number: &u32| {
                    let mut digest = [0; 32];
                    digest[..4].copy_from_slice(&number.to_le_bytes());
                    digest
                };
                return DiskOutcome::Digests(self.disk.read(range).iter().map(digest).collect());
            }
            Job::Fingerprint => return DiskOutcome::Fingerprint([7; 32]),
            Job::Write { .. } | Job::Meta { .. } => {}
        }
        DiskOutcome::Done
    }
}

fn incarnation(node: usize, boot: u64) -> Incarnation {
    Incarnation(u128::from(boot) * NODES as u128 + node as u128 + 1)
}

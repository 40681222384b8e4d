//! The simulated world: two nodes, a network, clients and an operator, one queue of events ordered
//! by virtual time, and one source of chance. Carries out what the shipping cores order.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::mem;

use history::draw::Draw;
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{self, FormatRequest};
use replicator_core::wire::{self, Message};
use replicator_core::{
    BufId, ByteRange, Config, DiskFailure, DiskOutcome, Effect, Effects, Input, LinkLoss, Note,
    PeerConfig, PeerIndex, Replica, Retry, SessionId, Time,
};

use crate::ambush::{Ambush, Moment, Strike};
use crate::checkers::Checkers;
use crate::clients::Clients;
use crate::disk::{Disk, Job, Working, span};
use crate::failure::{Failure, Kind};
use crate::host::{Buffers, Failing, Node, Process};
use crate::network::{Connection, Parcel};
use crate::operator::Operator;
use crate::plan::{Fault, Plan};
use crate::sectors::{Payload, SECTOR_BYTES};

/// A millisecond of virtual time.
pub const MS: u64 = 1_000_000;
/// The peer of a node, as its core knows it: each has one.
pub const PEER: PeerIndex = PeerIndex(0);
/// The slowest disk operation, unless the disk hangs.
const SLOWEST: u64 = 4_000 * MS;
/// More events than any honest seed has.
const EVENTS_MAX: u64 = 3_000_000;
/// Extents of the activity log: the smallest, so that extents must leave.
const LOG_EXTENTS: u16 = 64;

/// Something that will happen.
#[expect(missing_docs, reason = "node, life and connection say what they are")]
#[derive(Debug)]
pub enum Event {
    /// A disk operation ends.
    Disk { node: usize, key: u64 },
    /// The first parcel of a connection arrives at a node.
    Arrival { connection: usize, node: usize },
    /// A fact for a process, unless it is gone.
    Fact { node: usize, life: u64, input: Box<Input> },
    /// A time-out of a process.
    Timer { node: usize, life: u64 },
    /// A client goes on.
    Client { worker: usize },
    /// The operator looks.
    Operator,
    /// The next trouble.
    Trouble,
    /// A process may be started.
    Start { node: usize },
    /// The drivers look whether to connect.
    Dial,
    /// The checkers look.
    Look,
    /// An ambush strikes.
    Strike { strike: Strike },
}

struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What a seed did, for the campaign's report.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Virtual time in nanoseconds.
    pub virtual_ns: u64,
    /// Steps of the cores.
    pub steps: u64,
    /// Client requests.
    pub requests: u64,
    /// Offices taken.
    pub tenures: u64,
    /// Resyncs finished: members made.
    pub resyncs: u64,
    /// Troubles by kind.
    pub faults: BTreeMap<Fault, u64>,
}

/// The world of one seed.
pub struct World {
    /// The seed.
    pub seed: u64,
    /// What it is about.
    pub plan: Plan,
    /// Chance.
    pub draw: Draw,
    /// Virtual time in nanoseconds.
    pub now: u64,
    queue: BinaryHeap<Entry>,
    events: u64,
    /// The two machines.
    pub nodes: [Node; 2],
    /// All connections that ever were; most are closed.
    pub connections: Vec<Connection>,
    /// Nothing arrives at this node before (a partition).
    pub blocked_until: [u64; 2],
    /// The clients.
    pub clients: Clients,
    /// The operator.
    pub operator: Operator,
    /// The checkers.
    pub checkers: Checkers,
    /// Trouble that waits for its moment.
    pub ambush: Option<Ambush>,
    /// Troubles still to come.
    pub troubles_left: u64,
    /// The first failure.
    pub failure: Option<Failure>,
    /// Everything went well and is over.
    pub done: bool,
    /// For the report.
    pub tally: Tally,
    /// Whether to print the story.
    pub trace: bool,
}

/// Prints a line of the story.
#[macro_export]
macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace {
            println!("{:>12.6} {}", $world.now as f64 / 1e9, format!($($arg)*));
        }
    };
}

impl World {
    /// The world of a seed before anything happens.
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut draw = Draw::new(seed ^ 0x5eed);
        let plan = Plan::draw(&mut draw);
        let nodes = [0, 1].map(|node| make_node(node, &plan, &mut draw));
        let clients = Clients::new(&plan);
        let mut world = Self {
            seed,
            draw,
            now: 0,
            queue: BinaryHeap::new(),
            events: 0,
            nodes,
            connections: Vec::new(),
            blocked_until: [0; 2],
            clients,
            operator: Operator::default(),
            checkers: Checkers::default(),
            ambush: None,
            troubles_left: plan.troubles,
            failure: None,
            done: false,
            tally: Tally::default(),
            trace,
            plan,
        };
        tell!(world, "plan {:?}", world.plan);
        for node in 0..2 {
            world.start_in(node, MS);
        }
        world.after(2 * MS, Event::Operator);
        world.after(3 * MS, Event::Look);
        world.after(800 * MS, Event::Trouble);
        for worker in 0..world.plan.workers {
            world.after(5 * MS, Event::Client { worker });
        }
        world
    }

    /// Runs to the end; `None` when all promises were kept.
    pub fn run(&mut self) -> Option<Failure> {
        while self.failure.is_none() && !self.done {
            let entry = self.queue.pop().expect("the operator never sleeps for ever");
            debug_assert!(entry.at >= self.now);
            self.now = entry.at;
            self.happen(entry.event);
            if self.events > EVENTS_MAX {
                self.fail(Kind::Liveness, "(e)", "the world is busy without end".into());
            }
        }
        self.tally.virtual_ns = self.now;
        self.failure.clone()
    }

    /// Plans an event.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.events += 1;
        self.queue.push(Entry { at: self.now + delay, number: self.events, event });
    }

    /// Ends the run with a failure; the first one counts.
    pub fn fail(&mut self, kind: Kind, rule: &'static str, text: String) {
        tell!(self, "FAILURE {rule}: {text}");
        self.failure.get_or_insert(Failure { kind, rule, text });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Disk { node, key } => self.disk_done(node, key),
            Event::Arrival { connection, node } => self.arrive(connection, node),
            Event::Fact { node, life, input } => self.fact(node, life, input),
            Event::Timer { node, life } => self.timer(node, life),
            Event::Client { worker } => self.client_turn(worker),
            Event::Operator => self.operator_turn(),
            Event::Trouble => self.trouble(),
            Event::Start { node } => self.start_process(node),
            Event::Dial => self.dial(),
            Event::Look => self.look(),
            Event::Strike { strike } => self.strike(strike),
        }
    }

    /// Whether this process still runs (or stands still) on the node.
    fn runs(&self, node: usize, life: u64) -> bool {
        self.nodes[node].process.as_ref().is_some_and(|process| process.life == life)
    }

    // ------------------------------------------------------------------ steps of the cores

    /// Tells a process a fact, now or when it is no longer paused.
    pub fn fact(&mut self, node: usize, life: u64, input: Box<Input>) {
        if !self.runs(node, life) {
            return;
        }
        if self.nodes[node].paused_until > self.now {
            let delay = self.nodes[node].paused_until - self.now;
            self.after(delay, Event::Fact { node, life, input });
            return;
        }
        if let Input::ClientRequested { request, .. } = *input
            && !self.request_finds_its_device(node, request.0)
        {
            return;
        }
        self.step(node, *input);
    }

    fn step(&mut self, node: usize, input: Input) {
        let local = self.nodes[node].clock(self.now);
        let process = self.nodes[node].process.as_mut().expect("a process");
        let mut effects = Effects::new();
        self.tally.steps += 1;
        if self.trace && !matches!(input, Input::TimePassed) {
            println!("{:>12.6}   {} <- {:?}", self.now as f64 / 1e9, self.nodes[node].name, input);
        }
        process.replica.step(local, input, &mut effects);
        process.replica.check_invariants();
        self.carry_out(node, effects);
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let Some(deadline) = process.replica.next_deadline() else { return };
        let (life, timer_at) = (process.life, process.timer_at);
        let at = self.nodes[node].world_time(deadline).max(self.now);
        if timer_at <= self.now || at < timer_at {
            self.nodes[node].process.as_mut().expect("a process").timer_at = at.max(self.now + 1);
            let delay = at.max(self.now + 1) - self.now;
            self.after(delay, Event::Timer { node, life });
        }
    }

    fn timer(&mut self, node: usize, life: u64) {
        if !self.runs(node, life) {
            return;
        }
        if self.nodes[node].paused_until > self.now {
            let delay = self.nodes[node].paused_until - self.now;
            self.after(delay, Event::Timer { node, life });
            return;
        }
        let process = self.nodes[node].process.as_ref().expect("a process");
        if process.timer_at > self.now {
            return;
        }
        let local = self.nodes[node].clock(self.now);
        if process.replica.next_deadline().is_some_and(|deadline| deadline <= local) {
            self.step(node, Input::TimePassed);
            let spins = self.nodes[node].process.as_ref().and_then(|process| {
                process.replica.next_deadline().filter(|&deadline| deadline <= local)
            });
            if let Some(deadline) = spins {
                let name = self.nodes[node].name;
                let text = format!("{name} spins: deadline {deadline:?} stays past at {local:?}");
                self.fail(Kind::Liveness, "(e)", text);
            }
        } else {
            self.set_timer(node);
        }
    }

    /// Carries out the orders of one step. Disk operations start in any order (effects of a step
    /// are unordered); frames of a session keep theirs; buffers are freed last.
    fn carry_out(&mut self, node: usize, effects: Effects) {
        let mut disk = Vec::new();
        let mut releases = Vec::new();
        let mut stopped = false;
        for effect in effects {
            if self.trace {
                println!(
                    "{:>12.6}     {} -> {}",
                    self.now as f64 / 1e9,
                    self.nodes[node].name,
                    short(&effect)
                );
            }
            match effect {
                Effect::SendPeer { peer, session, message, data } => {
                    assert_eq!(peer, PEER);
                    self.send(node, session, message, data);
                }
                Effect::ClosePeer { session, retry, .. } => self.close(node, session, retry),
                Effect::ReplyClient { request, result } => self.reply(node, request.0, result),
                Effect::ReleaseBuf { buf } => releases.push(buf),
                Effect::AnswerOperator { ticket, result } => {
                    self.operator_answered(node, ticket.0, result);
                }
                Effect::OpenDevice { tenure } => self.device_opened(node, tenure),
                Effect::CloseDevice { .. } => {
                    self.nodes[node].process.as_mut().expect("a process").device = None;
                }
                Effect::Note(note) => self.noted(node, &note),
                Effect::Stopped => stopped = true,
                other => disk.push(other),
            }
        }
        while !disk.is_empty() {
            let at = self.draw.below(disk.len() as u64) as usize;
            let effect = disk.swap_remove(at);
            self.start_disk(node, effect);
        }
        for buf in releases {
            self.nodes[node].process.as_mut().expect("a process").buffers.release(buf);
        }
        if stopped {
            self.stopped(node);
        }
    }

    fn noted(&mut self, node: usize, note: &Note) {
        match note {
            Note::ResyncFinished { .. } => self.tally.resyncs += 1,
            Note::Committed { what, generation } => {
                self.check_copies(node, what, *generation);
                self.committed(node, what);
            }
            Note::PeerJoined { .. } => self.check_diverged(node),
            _ => {}
        }
        self.spring_at_note(note);
    }

    /// R2c, R3, R6c: before these commits the own disk (at a release, every member's) is flushed,
    /// and nothing is acknowledged between that flush and the commit. So all that is acknowledged
    /// is durable now, as after a client's flush.
    fn committed(&mut self, node: usize, what: &str) {
        if what == "the office was taken" {
            self.tell_history_of_a_wait(node);
        }
        let flushed = ["the office was taken", "a member left the in-sync set"].contains(&what)
            || what == "the office was released";
        if flushed && !self.nodes[node].flush_failed {
            self.clients.covered_by_a_flush();
        }
    }

    fn device_opened(&mut self, node: usize, tenure: u64) {
        self.tally.tenures += 1;
        let other = &self.nodes[1 - node];
        if other.process.as_ref().is_some_and(|process| process.device.is_some()) {
            let text = format!("both nodes serve; {} took tenure {tenure}", self.nodes[node].name);
            self.fail(Kind::Safety, "R6", text);
        }
        let lineage = self.superblock(node).register.basis.lineage;
        let newest = self.checkers.newest_office;
        if (lineage, tenure) < newest {
            let text = format!("tenure {tenure} of lineage {lineage} after {newest:?}");
            self.fail(Kind::Safety, "R2", text);
        }
        if (lineage, tenure) > newest {
            self.checkers.newest_office = (lineage, tenure);
            self.checkers.offices += 1;
        }
        let office = self.checkers.offices;
        self.nodes[node].process.as_mut().expect("a process").device = Some(office);
        self.clients.history.tenure_changed(office);
    }

    fn stopped(&mut self, node: usize) {
        let life = self.nodes[node].lives;
        let local = self.local(node);
        let process = self.nodes[node].process.as_ref().expect("a process");
        let has_disk = process.replica.status(local).has_disk;
        let working = &self.nodes[node].disk.working;
        let writes = |job: &Job| matches!(job, Job::Write { .. } | Job::Meta { .. });
        if has_disk && working.values().any(|one| one.life == life && writes(&one.job)) {
            let text = format!("{} stopped with disk operations under way", self.nodes[node].name);
            self.fail(Kind::Safety, "R12", text);
        }
        self.end_process(node);
        self.use_without_us(node);
        let delay = self.draw.below(1500) * MS + MS;
        self.start_in(node, delay);
    }

    /// Somebody mounts the disk of a stopped daemon and writes to it, if that was planned.
    fn use_without_us(&mut self, node: usize) {
        let there = &mut self.nodes[node];
        let was_planned = mem::replace(&mut there.used_without_us, false);
        if was_planned && there.disk.superblock().is_some_and(|superblock| superblock.clean) {
            tell!(self, "somebody writes to the disk of {}", self.nodes[node].name);
            let sector = self.draw.below(20);
            let value = self.clients.foreign_write(sector);
            self.nodes[node].disk.scribble(sector, value);
        }
    }

    // ------------------------------------------------------------------ disks

    fn start_disk(&mut self, node: usize, effect: Effect) {
        let process = self.nodes[node].process.as_ref().expect("a process");
        let life = process.life;
        let take = |buf: BufId, range: ByteRange| -> Payload {
            let contents = process.buffers.get(buf);
            let count = (range.length / SECTOR_BYTES) as usize;
            Some(contents[..count].into())
        };
        let (op, job) = match effect {
            Effect::WriteDisk { op, range, buf } => {
                (op, Job::Write { range, payload: take(buf, range) })
            }
            Effect::ZeroDisk { op, range, .. } => (op, Job::Write { range, payload: None }),
            Effect::ReadDisk { op, range, buf } => (op, Job::Read { range, buf }),
            Effect::ReadEdges { op, wanted, aligned, buf } => {
                (op, Job::Edges { wanted, aligned, buf })
            }
            Effect::ReadForResync { op, range } => (op, Job::ReadForResync { range }),
            Effect::FlushDisk { op } => (op, Job::Flush { before: 0 }),
            Effect::WriteMeta { op, offset, bytes } => (op, Job::Meta { offset, bytes }),
            Effect::TakeFingerprint { op } => (op, Job::Fingerprint),
            Effect::MapDisk { op, .. } => (op, Job::Map),
            other => unreachable!("not a disk operation: {other:?}"),
        };
        let fate = self.fate(node, &job);
        let delay = self.disk_delay(node, &job);
        let working = Working { life, op, job, fate };
        let key = self.nodes[node].disk.begin(&mut self.draw, working);
        self.after(delay, Event::Disk { node, key });
    }

    fn fate(&mut self, node: usize, job: &Job) -> Result<(), DiskFailure> {
        let Some(failing) = self.nodes[node].failing else { return Ok(()) };
        let hit = match job {
            Job::Write { .. } => matches!(failing, Failing::Write | Failing::Space),
            Job::Read { .. } | Job::Edges { .. } | Job::ReadForResync { .. } => {
                failing == Failing::Read
            }
            Job::Flush { .. } => failing == Failing::Flush,
            Job::Meta { .. } => failing == Failing::Meta,
            Job::Fingerprint | Job::Map => false,
        };
        if !hit {
            return Ok(());
        }
        self.nodes[node].failing = None;
        self.nodes[node].flush_failed |= failing == Failing::Flush;
        tell!(self, "{}: {failing:?} fails", self.nodes[node].name);
        Err(if failing == Failing::Space { DiskFailure::NoSpace } else { DiskFailure::Io(5) })
    }

    fn disk_delay(&mut self, node: usize, job: &Job) -> u64 {
        let most = match job {
            Job::Flush { .. } | Job::Meta { .. } => self.plan.flush_us,
            _ => self.plan.disk_us,
        };
        let mut delay = (20 + self.draw.below(most)) * 1000;
        let disk = &self.nodes[node];
        if disk.slow_until > self.now {
            delay = (delay * disk.slowness).min(SLOWEST);
        }
        if matches!(job, Job::Write { .. }) {
            delay = delay.max(disk.writes_hang_until.saturating_sub(self.now));
        }
        delay.max(disk.hung_until.saturating_sub(self.now))
    }

    fn disk_done(&mut self, node: usize, key: u64) {
        // A power cut took it.
        if !self.nodes[node].disk.working.contains_key(&key) {
            return;
        }
        let working = self.nodes[node].disk.finish(&mut self.draw, key);
        let life = working.life;
        if matches!(working.job, Job::Flush { .. }) && working.fate.is_err() {
            // R8: what a failed flush covered counts as lost, as with the power.
            self.tell_history_of_power_loss(node);
        }
        if !self.runs(node, life) {
            return;
        }
        let disk = &self.nodes[node].disk;
        let contents = |range: ByteRange| {
            let (first, count) = span(range);
            disk.live.read(first, count)
        };
        let mut outcome = DiskOutcome::Done;
        let mut fill = None;
        if working.fate.is_ok() {
            match &working.job {
                Job::Read { range, buf } => fill = Some((*buf, *range, *range, contents(*range))),
                Job::Edges { wanted, aligned, buf } => {
                    fill = Some((*buf, *wanted, *aligned, contents(*aligned)));
                }
                Job::ReadForResync { range } => {
                    let data = contents(*range);
                    let process = self.nodes[node].process.as_mut().expect("a process");
                    let data = data.map(|values| process.buffers.take(values));
                    outcome = DiskOutcome::Read { data };
                }
                Job::Fingerprint => outcome = DiskOutcome::Fingerprint(disk.fingerprint()),
                _ => {}
            }
        }
        let is_edges = matches!(working.job, Job::Edges { .. });
        if let Some((buf, wanted, aligned, data)) = fill {
            self.fill(node, buf, is_edges.then_some(wanted), aligned, data);
        }
        let input = Input::DiskDone { op: working.op, result: working.fate.map(|()| outcome) };
        self.fact(node, life, Box::new(input));
    }

    fn fill(
        &mut self,
        node: usize,
        buf: BufId,
        keep: Option<ByteRange>,
        range: ByteRange,
        data: Payload,
    ) {
        let process = self.nodes[node].process.as_mut().expect("a process");
        let old = process.buffers.get(buf);
        let count = (range.length / SECTOR_BYTES) as usize;
        let kept = keep.map_or(0..0, |keep| {
            let first = ((keep.start - range.start) / SECTOR_BYTES) as usize;
            first..first + (keep.length / SECTOR_BYTES) as usize
        });
        let new = (0..old.len())
            .map(|at| {
                if at >= count || kept.contains(&at) {
                    old[at]
                } else {
                    data.as_ref().map_or(0, |values| values[at])
                }
            })
            .collect();
        process.buffers.set(buf, new);
    }

    // ------------------------------------------------------------------ network

    fn send(&mut self, node: usize, session: SessionId, message: Message, data: Option<BufId>) {
        let number = session.0 as usize - 1;
        if !self.connections[number].open[node] {
            return;
        }
        let payload = data.map(|buf| {
            let process = self.nodes[node].process.as_ref().expect("a process");
            let count = message.data_len() / SECTOR_BYTES as usize;
            process.buffers.get(buf)[..count].into()
        });
        let message = if self.plan.encodes { through_the_wire(message) } else { message };
        self.put(number, 1 - node, Parcel::Frame(message, payload));
    }

    fn put(&mut self, number: usize, to: usize, parcel: Parcel) {
        let delay = (10 + self.draw.below(self.plan.delay_us)) * 1000;
        let connection = &mut self.connections[number];
        let at = (self.now + delay).max(connection.arrives[to] + 1);
        connection.arrives[to] = at;
        connection.towards[to].push_back(parcel);
        let delay = at - self.now;
        self.after(delay, Event::Arrival { connection: number, node: to });
    }

    fn arrive(&mut self, number: usize, node: usize) {
        let wait = self.blocked_until[node].max(self.nodes[node].paused_until);
        if wait > self.now {
            let delay = wait - self.now;
            self.after(delay, Event::Arrival { connection: number, node });
            return;
        }
        let Some(parcel) = self.connections[number].towards[node].pop_front() else { return };
        let life = self.connections[number].lives[node];
        let alive = self.runs(node, life);
        let session = SessionId(number as u64 + 1);
        match parcel {
            Parcel::Open => {
                let newest = self.nodes[node].process.as_ref().map_or(0, |p| p.newest_session);
                if !alive || newest > session.0 {
                    // The driver numbers sessions upwards: one that comes too late is dropped.
                    return self.reset(number, node);
                }
                if let Some(old) = self.nodes[node].process.as_ref().expect("alive").session {
                    // The driver reports an older session lost before it begins a new one.
                    self.end_connection(old as usize, node, LinkLoss::Closed);
                }
                self.connections[number].open[node] = true;
                let process = self.nodes[node].process.as_mut().expect("alive");
                process.session = Some(number as u64);
                process.newest_session = session.0;
                self.step(node, Input::PeerConnected { peer: PEER, session });
            }
            Parcel::Frame(message, payload) => {
                if !alive || !self.connections[number].open[node] {
                    return self.reset(number, node);
                }
                let carries = matches!(message, Message::Write { .. } | Message::ResyncData { .. });
                let count = message.data_len() / SECTOR_BYTES as usize;
                let process = self.nodes[node].process.as_mut().expect("alive");
                let data = carries.then(|| {
                    process.buffers.take(payload.unwrap_or_else(|| vec![0; count].into()))
                });
                let grows = matches!(message, Message::GrowReady { .. });
                self.step(node, Input::PeerSaid { peer: PEER, session, message, data });
                if grows {
                    self.spring(Moment::Growth);
                }
            }
            Parcel::Closed => {
                if alive && self.connections[number].open[node] {
                    self.end_connection(number, node, LinkLoss::Closed);
                }
            }
        }
    }

    /// Something came to an end that is closed: the other side learns of it.
    fn reset(&mut self, number: usize, node: usize) {
        self.connections[number].towards[node].clear();
        if self.connections[number].open[1 - node] {
            self.put(number, 1 - node, Parcel::Closed);
        }
    }

    /// A process learns that its connection is gone.
    pub fn end_connection(&mut self, number: usize, node: usize, why: LinkLoss) {
        if !mem::replace(&mut self.connections[number].open[node], false) {
            return;
        }
        let delay = (50 + self.draw.below(400)) * MS;
        self.nodes[node].retry_at = self.now + delay;
        self.after(delay, Event::Dial);
        let process = self.nodes[node].process.as_mut().expect("an open end has a process");
        process.session = None;
        let life = process.life;
        self.put(number, 1 - node, Parcel::Closed);
        let session = SessionId(number as u64 + 1);
        let input = Input::LinkLost { peer: PEER, session, why };
        self.fact(node, life, Box::new(input));
    }

    /// A core closes a session: what it sent before goes out first.
    fn close(&mut self, node: usize, session: SessionId, retry: Retry) {
        let number = session.0 as usize - 1;
        let delay = match retry {
            Retry::Now => self.draw.below(5) * MS,
            Retry::Later => (100 + self.draw.below(600)) * MS,
            Retry::Rarely => 2_000 * MS,
            Retry::Never => u64::MAX / 2,
        };
        self.nodes[node].retry_at = self.now + delay;
        if retry != Retry::Never {
            self.after(delay, Event::Dial);
        }
        if mem::replace(&mut self.connections[number].open[node], false) {
            let process = self.nodes[node].process.as_mut().expect("a process");
            process.session = None;
            self.put(number, 1 - node, Parcel::Closed);
        }
    }

    /// Connects the two processes when both are there and one of them wants to.
    fn dial(&mut self) {
        let lives = [0, 1].map(|node| self.nodes[node].process.as_ref().map(|p| p.life));
        let [Some(one), Some(two)] = lives else { return };
        let sessions = self.nodes.each_ref().map(|node| node.process.as_ref().unwrap().session);
        if sessions[0].is_some() && sessions[0] == sessions[1] {
            return;
        }
        let retry_at = self.nodes[0].retry_at.min(self.nodes[1].retry_at);
        if retry_at > self.now {
            if retry_at < u64::MAX / 4 {
                let delay = retry_at - self.now;
                self.after(delay, Event::Dial);
            }
            return;
        }
        let blocked = self.blocked_until[0].max(self.blocked_until[1]);
        if blocked > self.now {
            let delay = blocked - self.now + self.draw.below(300) * MS;
            self.after(delay, Event::Dial);
            return;
        }
        for node in &mut self.nodes {
            node.retry_at = self.now + 1_000 * MS;
        }
        self.after(1_000 * MS, Event::Dial);
        let number = self.connections.len();
        tell!(self, "connection {} opens", number + 1);
        self.connections.push(Connection::new([one, two]));
        for node in 0..2 {
            self.put(number, node, Parcel::Open);
        }
    }

    // ------------------------------------------------------------------ processes

    /// Plans the start of a process.
    pub fn start_in(&mut self, node: usize, delay: u64) {
        self.nodes[node].start_at = Some(self.now + delay);
        self.after(delay, Event::Start { node });
    }

    fn start_process(&mut self, node: usize) {
        let there = &self.nodes[node];
        if there.process.is_some() || there.start_at.is_none_or(|at| at > self.now) {
            return;
        }
        if there.held || !there.disk.working.is_empty() {
            // R2e: the lock is free when the last write of the old process has landed.
            self.after(50 * MS, Event::Start { node });
            return;
        }
        let config = Config {
            node: there.name.into(),
            peers: vec![PeerConfig { node: self.nodes[1 - node].name.into() }],
            incarnation: Incarnation(there.incarnation),
            can_punch: there.can_punch,
            timing: self.plan.timing,
        };
        let image = there.disk.image();
        let replica = match Replica::attach(config, image, there.clock(self.now)) {
            Ok(replica) => replica,
            Err(error) => {
                let text = format!("{} cannot attach: {error}", there.name);
                return self.fail(Kind::Safety, "R12", text);
            }
        };
        self.check_newest_copy(node, replica.superblock().sequence);
        let there = &mut self.nodes[node];
        there.start_at = None;
        there.lives += 1;
        there.flush_failed = false;
        there.retry_at = self.now;
        there.process = Some(Process {
            life: there.lives,
            replica,
            buffers: Buffers::default(),
            device: None,
            timer_at: 0,
            session: None,
            newest_session: 0,
        });
        tell!(self, "{} starts, process {}", self.nodes[node].name, self.nodes[node].lives);
        self.check_tracking();
        self.step(node, Input::TimePassed);
        self.after(MS, Event::Dial);
    }

    /// A process is gone: its requests have an unknown outcome, its connections are closed.
    pub fn end_process(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else { return };
        self.nodes[node].paused_until = 0;
        self.forget_requests(node, process.life);
        self.operator_lost(node);
        for number in 0..self.connections.len() {
            let connection = &mut self.connections[number];
            if connection.lives[node] == process.life
                && mem::replace(&mut connection.open[node], false)
            {
                self.put(number, 1 - node, Parcel::Closed);
            }
        }
    }

    /// A process is killed; what it submitted lands, some of it seconds later.
    pub fn kill(&mut self, node: usize) {
        tell!(self, "{} is killed", self.nodes[node].name);
        self.end_process(node);
    }

    /// A machine loses its power.
    pub fn cut_power(&mut self, node: usize) {
        tell!(self, "{} loses its power", self.nodes[node].name);
        self.tell_history_of_power_loss(node);
        let process = self.nodes[node].process.take();
        if let Some(process) = process {
            self.forget_requests(node, process.life);
            self.operator_lost(node);
            for connection in &mut self.connections {
                if connection.lives[node] == process.life {
                    connection.open[node] = false;
                    // What it had sent may still arrive; no one says that it is gone.
                }
            }
        }
        let there = &mut self.nodes[node];
        there.paused_until = 0;
        there.incarnation += 2;
        there.booted_at = self.now;
        there.failing = None;
        there.disk.lose_power(&mut self.draw);
    }

    /// The time on a node's clock, for messages.
    pub fn local(&self, node: usize) -> Time {
        self.nodes[node].clock(self.now)
    }
}

const NAMES: [&str; 2] = ["alpha", "beta"];

fn first_boot(number: usize) -> u128 {
    1001 + number as u128
}

/// An empty disk with fresh metadata.
pub fn fresh_disk(number: usize, plan: &Plan, draw: &mut Draw, origin: bool) -> Disk {
    let device_bytes = plan.data_bytes + (4 << 20);
    let formatted = metadata::format(&FormatRequest {
        device_bytes,
        internal: true,
        disk_bytes: device_bytes,
        data_bytes: Some(plan.data_bytes),
        block_bytes: plan.block_bytes,
        log_extents: LOG_EXTENTS,
        resource: "sim".into(),
        resource_id: 77,
        node: NAMES[number].into(),
        replica: ReplicaId(u128::from(draw.number()) | 1),
        peers: vec![NAMES[1 - number].into()],
        incarnation: Incarnation(first_boot(number)),
        origin,
        assume_equal: false,
    })
    .expect("a plan that fits");
    let layout = &formatted.layout;
    let mut disk = Disk::new(formatted.data_bytes, device_bytes, layout.region_bytes);
    for (offset, bytes) in &formatted.writes {
        disk.write_meta(offset - layout.region_start, bytes);
    }
    disk
}

fn make_node(number: usize, plan: &Plan, draw: &mut Draw) -> Node {
    Node {
        name: NAMES[number],
        disk: fresh_disk(number, plan, draw, number == 0),
        incarnation: first_boot(number),
        process: None,
        lives: 0,
        paused_until: 0,
        start_at: None,
        held: false,
        clock_rate: plan.clock_rates[number],
        booted_at: 0,
        retry_at: 0,
        slowness: 1,
        slow_until: 0,
        hung_until: 0,
        writes_hang_until: 0,
        failing: None,
        can_punch: plan.can_punch[number],
        used_without_us: false,
        flush_failed: false,
    }
}

fn through_the_wire(message: Message) -> Message {
    let (header, control) = wire::encode(&message, 0, 0);
    let header = wire::Header::decode(&header).expect("our own header");
    let decoded = wire::decode(&header, &control).expect("our own frame");
    assert_eq!(decoded, message, "a frame is not what was sent");
    decoded
}

fn short(effect: &Effect) -> String {
    match effect {
        Effect::WriteMeta { op, offset, bytes } => {
            format!("WriteMeta {op:?} at {offset}, {} bytes", bytes.len())
        }
        other => format!("{other:?}"),
    }
}

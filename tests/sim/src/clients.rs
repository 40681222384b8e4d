//! Clients of the device: several at work, overlapping, unaligned; what they ask and get is told
//! to the history checker, which judges every answer (oracle a).

use std::collections::BTreeMap;
use std::rc::Rc;

use history::{Checker, PowerLoss, Seen, Violation, Write};
use replicator_core::{BufId, ByteRange, ClientError, ClientRequest, Input, RequestId};

use crate::ambush::Moment;
use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::plan::Plan;
use crate::sectors::SECTOR_BYTES;
use crate::tell;
use crate::world::{Event, MS, World};

/// A sector that no client wrote: what a buffer holds before it is filled.
const GARBAGE: u64 = u64::MAX;

/// A request whose answer is missing.
#[derive(Debug)]
pub struct Open {
    worker: Option<usize>,
    node: usize,
    life: u64,
    pub(crate) office: u64,
    what: ClientRequest,
    pub(crate) since: u64,
    /// The client is gone: nobody waits for the answer.
    is_gone: bool,
}

impl Open {
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.what, ClientRequest::Read { .. })
    }
}

/// The clients.
#[derive(Debug)]
pub struct Clients {
    /// The judge.
    pub history: Checker,
    /// Requests still to be made.
    pub left: u64,
    /// Requests whose answer is missing.
    pub open: BTreeMap<u64, Open>,
    /// The last write that was acknowledged to nobody in particular (a probe).
    pub acknowledged_last: u64,
    next: u64,
    last_spot: u64,
    /// Steps of the walk over all places.
    steps: u64,
    block_bytes: u64,
}

impl Clients {
    /// Clients with nothing done yet.
    pub fn new(plan: &Plan) -> Self {
        let config = history::Config {
            // As far as it goes may be a little farther.
            units: (plan.room_bytes + (64 << 20)) / SECTOR_BYTES,
            initial_value: 0,
            members: 2,
            acks_are_instant: true,
        };
        Self {
            history: Checker::new(config),
            left: plan.requests,
            open: BTreeMap::new(),
            acknowledged_last: 0,
            next: 1,
            last_spot: plan.spots[0],
            steps: 0,
            block_bytes: u64::from(plan.block_bytes),
        }
    }

    /// Somebody writes to a disk without us: only an operator who accepts these data may ever make
    /// the value visible. Returns the value.
    pub fn foreign_write(&mut self, sector: u64) -> u64 {
        let id = self.next;
        self.next += 1;
        self.history.write_started(id, Write::data(sector..sector + 1, id));
        self.history.write_unknown(id);
        id
    }

    /// All that is acknowledged is durable on every member from now on.
    pub fn covered_by_a_flush(&mut self) {
        let id = self.next;
        self.next += 1;
        self.history.flush_started(id);
        let stale = self.history.flush_acked(id);
        debug_assert!(stale.is_none(), "the newest office is never stale");
    }

    /// Whether an open write overlaps this range, or, without one, another open write.
    pub fn writes_overlap(&self, with: Option<ByteRange>) -> bool {
        let mut seen: Vec<ByteRange> = with.into_iter().collect();
        for open in self.open.values() {
            let ClientRequest::Write { range, .. } = open.what else { continue };
            if seen.iter().any(|other| range.start < other.end() && other.start < range.end()) {
                return true;
            }
            if with.is_none() {
                seen.push(range);
            }
        }
        false
    }

    /// Whether a trim or zeroing is open.
    pub fn zeroes_are_open(&self) -> bool {
        let zeroes =
            |what| matches!(what, ClientRequest::Trim { .. } | ClientRequest::WriteZeroes { .. });
        self.open.values().any(|open| zeroes(open.what))
    }

    /// When the oldest open request was made.
    pub fn oldest(&self) -> Option<u64> {
        self.open.values().map(|open| open.since).min()
    }
}

fn units(range: ByteRange) -> std::ops::Range<u64> {
    range.start / SECTOR_BYTES..range.end() / SECTOR_BYTES
}

impl World {
    /// A client makes its next request, if it finds a device.
    pub fn client_turn(&mut self, worker: usize) {
        if self.clients.left == 0 {
            return;
        }
        let Some((node, tenure)) = self.device_of_a_client() else {
            let delay = (1 + self.draw.below(200)) * MS;
            return self.after(delay, Event::Client { worker });
        };
        let number = self.plan.requests - self.clients.left + 1;
        if self.is_ahead_of_the_troubles(number) {
            let delay = (1 + self.draw.below(200)) * MS;
            return self.after(delay, Event::Client { worker });
        }
        self.clients.left -= 1;
        self.begin_request(number);
        let size = self.nodes[node].process.as_ref().map_or(0, |process| process.size_bytes);
        let what = self.draw_request(number, size);
        if !self.parts.requests.has(number) {
            let think = self.draw.below(self.plan.think_ms + 1) * MS;
            return self.after(think + MS, Event::Client { worker });
        }
        self.spring(Moment::Requested);
        self.request(Some(worker), node, tenure, what);
    }

    fn is_ahead_of_the_troubles(&self, number: u64) -> bool {
        let Some(ahead) = self.plan.ahead.filter(|_| !self.is_calm()) else { return false };
        number > self.plan.requests * self.troubles / self.plan.troubles + ahead
    }

    /// The node that serves, and the tenure of its device.
    pub fn device(&self) -> Option<(usize, u64)> {
        self.devices().max_by_key(|(_, office)| *office)
    }

    fn devices(&self) -> impl Iterator<Item = (usize, u64)> {
        (0..2).filter_map(|node| {
            let process = self.nodes[node].process.as_ref()?;
            Some((node, process.device?))
        })
    }

    /// The device a client finds: now and then that of a node whose office is over and that does
    /// not know (only in a cluster).
    fn device_of_a_client(&mut self) -> Option<(usize, u64)> {
        let newest = self.device()?;
        let oldest = self.devices().min_by_key(|(_, office)| *office)?;
        Some(if oldest != newest && self.draw.chance(30) { oldest } else { newest })
    }

    fn draw_request(&mut self, number: u64, size: u64) -> Ask {
        let plan = &self.plan;
        let draw = &mut self.draw;
        let spot = if draw.chance(plan.percent_again) {
            self.clients.last_spot
        } else {
            let walks = plan.is_wide && draw.chance(90);
            self.clients.steps += u64::from(walks);
            let number = if walks { self.clients.steps } else { draw.number() };
            plan.spots[(number % plan.spots.len() as u64) as usize]
        };
        self.clients.last_spot = spot;
        let block = u64::from(plan.block_bytes);
        let most = [8, 8, 16, 100][draw.below(4) as usize];
        let sectors = 1 + draw.below(most);
        let mut range =
            ByteRange::new(spot + draw.below(24) * SECTOR_BYTES, sectors * SECTOR_BYTES);
        if draw.chance(50) {
            range = range.align_out(4096);
        }
        let end = range.end().min(plan.data_bytes);
        let range = ByteRange::new(range.start, end - range.start);
        let range = self.in_the_new_part(number, range, size);
        let (plan, draw) = (&self.plan, &mut self.draw);
        let dice = draw.below(100);
        let (read, flush) = (plan.percent_read, plan.percent_flush);
        let zero = plan.percent_zero;
        let fua = draw.chance(plan.percent_fua);
        if dice < read {
            Ask::Read(range)
        } else if dice < read + flush {
            Ask::Flush
        } else if dice < read + flush + zero / 2 {
            Ask::Trim(range, fua)
        } else if dice < read + flush + zero {
            let mut range = range.align_out(block);
            if plan.data_bytes > 100 << 20 && draw.chance(3) {
                // Longer than one slice of R17.
                let start = draw.below(plan.data_bytes - (24 << 20)) & !4095;
                range = ByteRange::new(start, 20 << 20);
            }
            Ask::Zero(range, draw.chance(50), fua)
        } else if dice == 99 {
            Ask::Map(range)
        } else {
            Ask::Write(range, fua)
        }
    }

    /// Sends a request to a node's device; its number.
    pub fn request(&mut self, worker: Option<usize>, node: usize, tenure: u64, ask: Ask) -> u64 {
        let id = self.clients.next;
        self.clients.next += 1;
        self.tally.requests += 1;
        let block = self.clients.block_bytes;
        let history = &mut self.clients.history;
        let process = self.nodes[node].process.as_mut().expect("a device has a process");
        let life = process.life;
        let mut buffer = |range: ByteRange, value: u64| -> BufId {
            let aligned = range.align_out(block);
            let contents: Rc<[u64]> = (aligned.start / SECTOR_BYTES..aligned.end() / SECTOR_BYTES)
                .map(|sector| if units(range).contains(&sector) { value } else { GARBAGE })
                .collect();
            process.buffers.take(contents)
        };
        let told = |write: Write, fua: bool| {
            let write = write.in_tenure(tenure);
            if fua { write.fua() } else { write }
        };
        let what = match ask {
            Ask::Read(range) => {
                history.read_started(id, units(range));
                ClientRequest::Read { range, buf: buffer(range, GARBAGE) }
            }
            Ask::Write(range, fua) => {
                history.write_started(id, told(Write::data(units(range), id), fua));
                ClientRequest::Write { range, buf: buffer(range, id), fua }
            }
            Ask::Flush => {
                history.flush_started_in(id, tenure);
                ClientRequest::Flush
            }
            Ask::Trim(range, fua) => {
                history.write_started(id, told(Write::trim(units(range), 0..0), fua));
                ClientRequest::Trim { range, fua }
            }
            Ask::Zero(range, may_punch, fua) => {
                history.write_started(id, told(Write::zero(units(range)), fua));
                ClientRequest::WriteZeroes { range, fua, may_punch }
            }
            Ask::Map(range) => ClientRequest::Map { range },
        };
        tell!(self, "client asks {} for {what:?} as {id}", self.nodes[node].name);
        let open =
            Open { worker, node, life, office: tenure, what, since: self.now, is_gone: false };
        self.occasions_of_request(node, &what);
        self.clients.open.insert(id, open);
        let input = Box::new(Input::ClientRequested { request: RequestId(id), what });
        self.fact(node, life, input);
        self.verify_beside(node, &what);
        id
    }

    /// A core answers a request.
    pub fn reply(&mut self, node: usize, id: u64, result: Result<(), ClientError>) {
        let Some(open) = self.clients.open.remove(&id) else {
            return self.fail(Kind::Safety, "R2f", format!("request {id} is answered twice"));
        };
        let counts = result.is_err() || self.success_counts(node, id, &open);
        let result = if counts { result } else { Err(ClientError::Shutdown) };
        let process = self.nodes[node].process.as_mut().expect("a process answers");
        if open.is_gone {
            if let ClientRequest::Read { buf, .. } | ClientRequest::Write { buf, .. } = open.what {
                process.buffers.release(buf);
            }
            return;
        }
        let history = &mut self.clients.history;
        let mut violations = Vec::new();
        match open.what {
            ClientRequest::Read { range, buf } => {
                let contents = process.buffers.get(buf);
                process.buffers.release(buf);
                if result.is_ok() {
                    let first = (range.start % self.clients.block_bytes / SECTOR_BYTES) as usize;
                    let count = (range.length / SECTOR_BYTES) as usize;
                    let seen: Vec<Seen> = contents[first..first + count]
                        .iter()
                        .map(|&v| if v == GARBAGE { Seen::Foreign } else { Seen::Value(v) })
                        .collect();
                    violations = history.read_done(id, &seen);
                } else {
                    history.read_failed(id);
                }
            }
            ClientRequest::Flush if result.is_ok() => violations.extend(history.flush_acked(id)),
            ClientRequest::Flush => history.flush_unknown(id),
            ClientRequest::Map { .. } => {}
            ClientRequest::Write { .. }
            | ClientRequest::Trim { .. }
            | ClientRequest::WriteZeroes { .. } => {
                if let ClientRequest::Write { buf, .. } = open.what {
                    process.buffers.release(buf);
                }
                if result.is_ok() {
                    if open.worker.is_none() {
                        self.clients.acknowledged_last = id;
                    }
                    let history = &mut self.clients.history;
                    violations = history.write_acked(id);
                } else {
                    history.write_unknown(id);
                }
            }
        }
        tell!(self, "client gets {result:?} for {id}");
        self.spring(Moment::Acknowledged);
        self.judge(violations);
        if let Some(worker) = open.worker {
            let think = if self.draw.chance(40) { 0 } else { self.plan.think_ms };
            let delay = self.draw.below(think + 1) * MS + 1000;
            self.after(delay, Event::Client { worker });
        }
    }

    fn judge(&mut self, violations: Vec<Violation>) {
        if let Some(first) = violations.first() {
            let more = violations.len() - 1;
            let text = format!("{first} (and {more} more)");
            self.fail(Kind::Safety, "oracle (a)", text);
        }
    }

    /// A process is gone: nobody knows what became of its requests.
    pub fn forget_requests(&mut self, node: usize, life: u64) {
        let gone: Vec<u64> = self
            .clients
            .open
            .iter()
            .filter(|(_, open)| open.node == node && open.life == life)
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            self.forget_request(id);
        }
    }

    /// R15: a request that was on its way when its device was closed goes nowhere.
    pub fn request_finds_its_device(&mut self, node: usize, id: u64) -> bool {
        let Some(open) = self.clients.open.get(&id) else { return false };
        let device = self.nodes[node].process.as_ref().and_then(|process| process.device);
        let finds = device == Some(open.office);
        if !finds {
            if let ClientRequest::Write { buf, .. } | ClientRequest::Read { buf, .. } = open.what {
                self.nodes[node].process.as_mut().expect("a process").buffers.release(buf);
            }
            self.forget_request(id);
        }
        finds
    }

    fn forget_request(&mut self, id: u64) {
        let open = self.clients.open.remove(&id).expect("an open request");
        if open.is_gone {
            return;
        }
        self.tell_history_of_unknown(id, open.what);
        if let Some(worker) = open.worker {
            let delay = (1 + self.draw.below(100)) * MS;
            self.after(delay, Event::Client { worker });
        }
    }

    /// A client's connection breaks while it waits for an answer; it comes back at once.
    pub fn client_goes(&mut self) {
        let waiting: Vec<u64> = self
            .clients
            .open
            .iter()
            .filter(|(_, open)| open.worker.is_some())
            .map(|(&id, _)| id)
            .collect();
        if waiting.is_empty() {
            return;
        }
        let id = waiting[self.draw.below(waiting.len() as u64) as usize];
        let open = self.clients.open.get_mut(&id).expect("just seen");
        open.is_gone = true;
        let (worker, what) = (open.worker.take(), open.what);
        tell!(self, "the client of {id} is gone, and comes back");
        self.tell_history_of_unknown(id, what);
        self.happened(Occasion::ClientReconnected);
        if let Some(worker) = worker {
            self.after(MS, Event::Client { worker });
        }
    }

    fn tell_history_of_unknown(&mut self, id: u64, what: ClientRequest) {
        let history = &mut self.clients.history;
        match what {
            ClientRequest::Read { .. } => history.read_failed(id),
            ClientRequest::Flush => history.flush_unknown(id),
            ClientRequest::Map { .. } => {}
            _ => history.write_unknown(id),
        }
    }

    /// Whoever the history has to count as having lost caches when this machine loses its power.
    pub fn tell_history_of_power_loss(&mut self, node: usize) {
        if self.nodes[node].impostor.is_some() {
            return;
        }
        let sets = self.durable_sets();
        let mine = self.superblock(node).replica;
        let lost = if sets.iter().any(|set| set.len() == 1 && set[0].replica == mine) {
            // The only member: what it lost is lost.
            PowerLoss::AllMembers
        } else {
            // Also one that is about to join: what it acknowledged meanwhile may be lost there.
            PowerLoss::Member(node)
        };
        tell!(self, "for the history: {lost:?} lost what was volatile");
        self.clients.history.power_lost(lost);
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// Read a range.
    Read(ByteRange),
    /// Write a range, with FUA or without.
    Write(ByteRange, bool),
    /// Flush.
    Flush,
    /// Trim a range, with FUA or without.
    Trim(ByteRange, bool),
    /// Zero a range, with leave to punch, with FUA.
    Zero(ByteRange, bool, bool),
    /// Look for holes.
    Map(ByteRange),
}

//! The turns of a data loop. One turn: take what has completed, tell the core, carry out its
//! orders until it has no more, submit everything with one system call and wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::{io as std_io, mem};

use nbd_frontend::protocol::EXTENTS_MAX;
use replicator_core::{DiskOutcome, Effect, Effects, Input, Span, Time};

use super::disk_port::DiskPort;
use super::io::now;
use super::{Core, Counters, FromLoop, Io, LoopConfig, LoopError, LoopStatus, Orders, PoolStatus};
use super::{ToLoop, Token};
use crate::buffers::{Pool, Share};
use crate::cluster::LeaseCell;
use crate::nbd_port::NbdPort;
use crate::peer_link::PeerLinks;
use crate::uring::{Back, Completion, Done, Ring};

/// The loop turns at least so often, to show that it lives and to look for stuck clients.
const TURN_LIMIT: Span = Span::from_ms(1_000);

/// While many disk operations are under way, the loop waits for a share of them, so that one turn
/// serves several; for so many at most, and no longer than so long for each. A disk that is slower
/// than that is waited for one by one. Measured: a larger share costs IOPS at depth 8, a shorter
/// wait costs an eighth more CPU at depth 32.
const GATHER_SHARE: usize = 3;
const GATHER_MAX: usize = 10;
const GATHER_EACH: Span = Span(20_000);
/// How often the loop looks since when its disk is busy.
const STAMP_EVERY: Span = Span::from_ms(100);
/// How long replies and frames may take to get out after the core has stopped.
const STOP_LIMIT: Span = Span::from_ms(2_000);

/// What others see of the loop without asking it.
pub(super) struct Stamps {
    /// When the latest turn began.
    pub(super) turned_at: Arc<AtomicU64>,
    /// Since when the disk has not ended its oldest operation; 0: nothing is under way.
    pub(super) disk_busy_since: Arc<AtomicU64>,
}

/// The body of the thread.
pub(super) fn run<C: Core>(
    config: LoopConfig,
    core: C,
    orders: Orders,
    events: mpsc::Sender<FromLoop>,
    stamps: Stamps,
    ready: mpsc::Sender<Result<(), LoopError>>,
) {
    let started = DataLoop::new(config, core, orders, events, stamps);
    // The receiver waits for exactly this.
    let _ = match started {
        Ok(mut data_loop) => {
            let told = ready.send(Ok(()));
            data_loop.run();
            told
        }
        Err(error) => ready.send(Err(error)),
    };
}

struct DataLoop<C> {
    core: C,
    io: Io,
    disk: DiskPort,
    clients: NbdPort,
    peers: PeerLinks,
    effects: Effects,
    orders: Orders,
    events: mpsc::Sender<FromLoop>,
    stamps: Stamps,
    lease: Option<Arc<LeaseCell>>,
    /// What the core was told of the lease last.
    lease_told: Option<Time>,
    next_stamp: Time,
    next_look: Time,
    /// The core has stopped; replies and last frames may be sent until then.
    stop_by: Option<Time>,
    /// The daemon hung up.
    is_abandoned: bool,
}

impl<C: Core> DataLoop<C> {
    fn new(
        config: LoopConfig,
        core: C,
        orders: Orders,
        events: mpsc::Sender<FromLoop>,
        stamps: Stamps,
    ) -> Result<Self, LoopError> {
        let bytes = config.pool_bytes;
        let mut pool = Pool::new(bytes).map_err(|source| LoopError::Pool { bytes, source })?;
        if let Some(warning) = &pool.unlocked_because {
            tracing::warn!(resource = config.resource, "{warning}");
        }
        let ring = Ring::new(&pool)?;
        let bell = orders.bell.clone();
        let disk = DiskPort::new(config.disk, bell, &mut pool);
        let clients = NbdPort::new(disk.block_bytes(), config.client_timeout);
        let io = Io {
            ring,
            pool,
            now: now(),
            inputs: Default::default(),
            instant_sends: 0,
            counters: Counters::default(),
        };
        Ok(Self {
            core,
            io,
            disk,
            clients,
            peers: PeerLinks::new(),
            effects: Effects::new(),
            orders,
            events,
            stamps,
            lease: config.lease,
            lease_told: None,
            next_stamp: Time(0),
            next_look: Time(0),
            stop_by: None,
            is_abandoned: false,
        })
    }

    fn run(&mut self) {
        self.await_bell(vec![0; 8].into_boxed_slice());
        // The core begins what its start requires.
        self.io.tell(Input::TimePassed);
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        loop {
            self.io.now = now();
            self.io.counters.turns += 1;
            self.stamps.turned_at.store(self.io.now.0, Ordering::Relaxed);
            self.stamp_disk();
            self.io.ring.take_completions(&mut completions);
            let has_news = !completions.is_empty();
            for completion in completions.drain(..) {
                let done = self.io.ring.finish(completion, &mut self.io.pool);
                self.completed(done);
            }
            self.look_at_lease();
            if self.core.next_deadline().is_some_and(|deadline| deadline <= self.io.now) {
                self.io.tell(Input::TimePassed);
            }
            self.settle();
            let next_look = self.look_after();
            // R5a: the lease is looked at again right before replies leave; also whether it is
            // still the one the core knows, since an office without end has no time (R5d).
            if self.is_lease_known() && self.core.holds_lease(now()) {
                self.clients.start_sends(&mut self.io);
            }
            self.peers.start_sends(&mut self.io);
            for event in self.peers.ended.drain(..) {
                tell_daemon(&self.events, event);
            }
            if self.is_abandoned {
                return;
            }
            if self.is_over() {
                tell_daemon(&self.events, FromLoop::Stopped);
                return;
            }
            if let Err(error) = self.wait(next_look, has_news) {
                let text = format!("the ring of the data loop failed: {error}");
                tell_daemon(&self.events, FromLoop::Fatal(text));
                return;
            }
        }
    }

    /// L1: now and then, not in every turn, since it looks at every operation.
    fn stamp_disk(&mut self) {
        if self.io.now < self.next_stamp {
            return;
        }
        self.next_stamp = self.io.now + STAMP_EVERY;
        let busy_since = self.disk.busy_since().map_or(0, |since| since.0);
        self.stamps.disk_busy_since.store(busy_since, Ordering::Relaxed);
    }

    /// The lease is one number that the control plane writes and this loop reads.
    fn look_at_lease(&mut self) {
        let Some(lease) = &self.lease else { return };
        let until = lease.get();
        if until != self.lease_told {
            self.lease_told = until;
            self.io.tell(Input::LeaseChanged { until });
        }
    }

    fn is_lease_known(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.get() == self.lease_told)
    }

    fn completed(&mut self, done: Done<Token>) {
        let Done { token, result, back } = done;
        match token {
            Token::Disk(slot) => self.disk.completed(&mut self.io, slot, result),
            Token::ClientReceived(c) => self.clients.received(&mut self.io, c, result, back),
            Token::ClientSent(c) => self.clients.sent(&mut self.io, c, result, back),
            Token::PeerReceived(l) => self.peers.received(&mut self.io, l, result, back),
            Token::PeerSent(l) => self.peers.sent(&mut self.io, l, result, back),
            Token::Bell => {
                self.take_orders();
                self.disk.helpers_done(&mut self.io);
                if let Back::Bytes(bytes) = back {
                    self.await_bell(bytes);
                }
            }
        }
    }

    /// Tells the core all facts and carries out its orders, which may bring new facts, until there
    /// is nothing more to do now.
    fn settle(&mut self) {
        loop {
            while let Some(input) = self.io.inputs.pop_front() {
                self.core.step(self.io.now, input, &mut self.effects);
                let mut effects = mem::take(&mut self.effects);
                for effect in effects.drain(..) {
                    self.carry_out(effect);
                }
                self.effects = effects;
            }
            self.disk.resume(&mut self.io);
            self.peers.resume(&mut self.io);
            self.clients.resume(&mut self.io);
            if self.io.inputs.is_empty() {
                return;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let io = &mut self.io;
        match effect {
            Effect::WriteDisk { op, range, buf } => self.disk.write(io, op, range, buf),
            Effect::ReadDisk { op, range, buf } => self.disk.read(io, op, range, buf),
            Effect::SendPeer { peer, session, message, data } => {
                self.peers.send(io, peer, session, &message, data);
            }
            Effect::ReplyClient { request, result } => self.clients.answer(io, request, result),
            Effect::ReleaseBuf { buf } => io.pool.release(buf),
            Effect::FlushDisk { op } => self.disk.flush(io, op),
            Effect::WriteMeta { op, offset, bytes } => self.disk.write_meta(io, op, offset, bytes),
            Effect::ZeroDisk { op, range, may_punch } => {
                self.disk.zero(io, op, range, may_punch);
            }
            Effect::ReadEdges { op, wanted, aligned, buf } => {
                self.disk.read_edges(io, op, wanted, aligned, buf);
            }
            Effect::ReadForResync { op, range } => self.disk.read_for_resync(io, op, range),
            Effect::DigestDisk { op, range } => self.disk.digest(io, op, range),
            Effect::MapDisk { op, request, range } => {
                let result = self.disk.map(range, EXTENTS_MAX).map(|map| {
                    self.clients.set_map(request, map);
                    DiskOutcome::Done
                });
                io.tell(Input::DiskDone { op, result });
            }
            Effect::MeasureDisk { op } => self.disk.measure(io, op),
            Effect::MoveMeta { op, to } => self.disk.move_meta(io, op, to),
            Effect::TakeFingerprint { op, size_bytes } => {
                self.disk.take_fingerprint(io, op, size_bytes);
            }
            Effect::ClosePeer { peer, session, retry } => {
                self.peers.close(io, peer, session, retry);
            }
            Effect::OpenDevice { tenure, size_bytes } => {
                self.clients.open(size_bytes);
                tell_daemon(&self.events, FromLoop::OpenDevice { tenure, size_bytes });
            }
            Effect::ResizeDevice { size_bytes } => {
                self.clients.grow(size_bytes);
                tell_daemon(&self.events, FromLoop::ResizeDevice { size_bytes });
            }
            Effect::CloseDevice { forced } => {
                self.clients.close(io, forced);
                tell_daemon(&self.events, FromLoop::CloseDevice { forced });
            }
            Effect::AnswerOperator { ticket, result } => {
                tell_daemon(&self.events, FromLoop::Answer { ticket, result });
            }
            Effect::Propose { number, next, expected, forced } => {
                let proposal = FromLoop::Proposed { number, next, expected, forced };
                tell_daemon(&self.events, proposal);
            }
            Effect::Note(note) => tell_daemon(&self.events, FromLoop::Note(note)),
            Effect::Stopped => self.stop_by = Some(io.now + STOP_LIMIT),
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.take_order(order),
                Err(mpsc::TryRecvError::Empty) => return,
                Err(mpsc::TryRecvError::Disconnected) => {
                    self.is_abandoned = true;
                    return;
                }
            }
        }
    }

    fn take_order(&mut self, order: ToLoop) {
        let io = &mut self.io;
        match order {
            ToLoop::Client { stream, session, leftover, origin } => {
                self.clients.add(io, stream, session, &leftover, origin);
            }
            ToLoop::Peer { peer, session, version, stream, leftover } => {
                self.peers.add(io, (peer, session, version), stream, &leftover);
            }
            ToLoop::Command { ticket, command } => io.tell(Input::Ordered { ticket, command }),
            ToLoop::Register(input) => io.tell(input),
            ToLoop::Status { reply } => {
                // Who asked may have gone.
                let _ = reply.send(self.status());
            }
        }
    }

    fn status(&self) -> LoopStatus {
        let pool = &self.io.pool;
        LoopStatus {
            core: self.core.status(self.io.now),
            clients: self.clients.status(self.io.now),
            pool: PoolStatus {
                clients: pool.usage(Share::Clients),
                peers: pool.usage(Share::Peers),
                resync: pool.usage(Share::Resync),
            },
            disk_operations: self.disk.in_flight(),
            counters: self.io.counters.clone(),
            warnings: pool.unlocked_because.iter().cloned().collect(),
            added_bytes: self.disk.added_bytes(),
        }
    }

    /// What time alone brings; when to look again.
    fn look_after(&mut self) -> Time {
        if self.io.now >= self.next_look {
            self.next_look = self.io.now + TURN_LIMIT;
            self.clients.drop_stuck(&mut self.io);
        }
        let late = self.peers.close_late(&mut self.io);
        [late, self.stop_by].into_iter().flatten().fold(self.next_look, Time::min)
    }

    fn is_over(&self) -> bool {
        let is_quiet = self.peers.is_settled() && self.clients.is_idle();
        self.stop_by.is_some_and(|limit| is_quiet || limit <= self.io.now)
    }

    fn wait(&mut self, next_look: Time, has_news: bool) -> std_io::Result<()> {
        // The sends of this turn complete while they are submitted; one completion more is news.
        let mut wanted = 1 + mem::take(&mut self.io.instant_sends);
        let until = self.core.next_deadline().map_or(next_look, |time| time.min(next_look));
        // What came up in the last moment (a session cut off) is told without a wait.
        let mut limit = if self.io.inputs.is_empty() { until.since(self.io.now) } else { Span(0) };
        let gathered = (self.disk.in_flight() / GATHER_SHARE).min(GATHER_MAX);
        if gathered > 0 && has_news {
            wanted += gathered;
            limit = limit.min(Span(GATHER_EACH.0 * gathered as u64));
        }
        self.io.ring.submit_and_wait(wanted, Some(limit))
    }

    fn await_bell(&mut self, bytes: Box<[u8]>) {
        use std::os::fd::{AsFd, AsRawFd};
        let fd = self.orders.bell.as_fd().as_raw_fd();
        self.io.ring.read_bytes(fd, bytes, Token::Bell);
    }
}

fn tell_daemon(events: &mpsc::Sender<FromLoop>, event: FromLoop) {
    // A daemon that no longer listens is about to hang up.
    let _ = events.send(event);
}

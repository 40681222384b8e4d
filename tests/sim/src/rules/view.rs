//! What the rules look at: everything one process has ordered and been told since its start, as a
//! bystander sees it who reads every fact and every order. Nothing here trusts the core's memory.

use std::collections::{BTreeMap, VecDeque};

use replicator_core::activity_log::{Replay, replay};
use replicator_core::block::{DIRTY_BLOCK_BYTES, ReplicaId};
use replicator_core::limits::EXTENT_BYTES;
use replicator_core::metadata::{Layout, Superblock};
use replicator_core::register::{Member, RegisterState};
use replicator_core::wire::{Hello, Message};
use replicator_core::{
    BufId, ByteRange, ClientRequest, DiskFailure, DiskOutcome, Effect, Input, OpId, SessionId,
};

use crate::disk::Disk;
use crate::rules::log_block;

/// A moment in the life of a process: the number of its step.
pub type Step = u64;

/// A disk operation under way.
#[derive(Clone, Debug)]
pub enum Op {
    /// A part of a client's write, trim or zeroing.
    Client { request: u64, range: ByteRange },
    /// A frame of the leader, by its number among all that were received.
    Frame { number: u64, range: ByteRange },
    /// A resync reads it to send it (R4f).
    Copy { range: ByteRange },
    /// A flush that began at this step.
    Flush { since: Step },
    /// A copy of the superblock with this sequence.
    Superblock { sequence: u64 },
    /// The metadata move, with both copies of the superblock with this sequence.
    Move { sequence: u64, before: Box<Layout> },
    /// A block of the activity log: the slots it names.
    Log { slots: Vec<(usize, u32)> },
    /// Anything else.
    Other,
}

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Nothing is changed.
    Read,
    /// A flush.
    Flush,
    /// Data.
    Write,
    /// Zeroes.
    Zero,
    /// A trim.
    Trim,
}

/// A client's request that is not answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// What.
    pub asked: Asked,
    /// Where.
    pub range: ByteRange,
    /// The client's buffer.
    pub buf: Option<BufId>,
    /// Whether it is to be durable when answered.
    pub fua: bool,
    /// When it came.
    pub since: Step,
    /// Its instance of the device.
    pub instance: u64,
    /// Parts on the own disk.
    pub in_flight: u64,
    /// When the own disk ended its last part; 0: no part was ever submitted.
    pub done: Step,
    /// Whether a part was submitted to the own disk.
    pub submitted: bool,
    /// The own disk failed it.
    pub failed: bool,
    /// Where its next part begins, of a trim or zeroing.
    next_part: u64,
    /// All its frames of a session that is over were acknowledged: the follower has it, or lost it
    /// with its caches and was resynced.
    pub delivered: bool,
    /// Its frames: session and number.
    pub frames: Vec<(u64, u64)>,
}

/// What a frame to a follower was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// A client's write or zeroes.
    Write {
        /// With FUA.
        fua: bool,
    },
    /// A step of a resync.
    Resync,
    /// A flush.
    Flush,
    /// For a read that waits for it, or for a verify.
    Question,
}

/// A frame to a follower.
#[derive(Clone, Copy, Debug)]
pub struct SentFrame {
    /// What.
    pub what: Sent,
    /// When.
    pub at: Step,
    /// When it was acknowledged; 0: not yet.
    pub acked: Step,
    /// When its request was answered with success; 0: not yet.
    pub answered: Step,
}

/// A frame of the leader.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The session it came on.
    pub session: u64,
    /// Its number in the session.
    pub seq: u64,
    /// The tenure it names.
    pub tenure: u64,
    /// The range, empty for a flush.
    pub range: ByteRange,
    /// The payload's buffer.
    pub buf: Option<BufId>,
    /// Acknowledge only when durable.
    pub durable: bool,
    /// Whether it is a flush.
    pub is_flush: bool,
    /// On its way to the disk.
    pub submitted: bool,
    /// When the disk was done with it; 0: not yet.
    pub done: Step,
    /// Acknowledged, or dropped with its session.
    pub over: bool,
}

/// A session with the peer.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Its number.
    pub id: u64,
    /// Our greeting went out.
    pub greeted: bool,
    /// The peer's greeting, until the peer says that it still holds.
    pub unconfirmed: Option<Box<Hello>>,
    /// The same from then on.
    pub hello: Option<Box<Hello>>,
    /// Frames to the follower; the first has number 1.
    pub sent: Vec<SentFrame>,
    /// The highest number of a flush that was acknowledged.
    pub flushed: u64,
    /// When the follower was ready to be resynced.
    pub sync_ready: Step,
    /// When the follower was told of its membership (R4d).
    pub grow_sent: Step,
    /// The generation it has recorded.
    pub grow_ready: u64,
}

impl Session {
    /// A frame by its number.
    pub fn frame(&self, seq: u64) -> Option<&SentFrame> {
        self.sent.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }
}

/// What was done to an extent of the volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// Client writes on the own disk now.
    pub in_flight: u64,
    /// When the last of them ended.
    pub done: Step,
    /// The last frame with data of it: session and number.
    pub frame: (u64, u64),
    /// The last part that was answered while no peer was there; none since a resync began.
    pub missed: ByteRange,
}

/// The device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Never opened, or given up.
    Closed,
    /// Clients are served.
    Open,
    /// No new requests; those that are open are answered.
    Closing,
    /// Taken away: nothing is answered with success any more (R15).
    Lost,
}

/// A bystander of one process.
#[derive(Debug)]
pub struct View {
    /// The present step.
    pub step: Step,
    /// The replica.
    pub me: ReplicaId,
    /// The boot.
    pub incarnation: u128,
    ops: Vec<Option<Op>>,
    /// When the last data write on the own disk ended.
    pub last_write: Step,
    /// Every write that had ended by then is durable on the own disk.
    pub flushed: Step,
    /// When the newest flush of the own disk began, whether it ended or not.
    pub flush_began: Step,
    /// When the newest write that was answered had ended on the own disk.
    pub answered: Step,
    layout: Layout,
    /// The newest superblock that is in both copies.
    pub committed: Box<Superblock>,
    /// One that is not in both copies, or whose outcome is unknown.
    pub proposed: Option<Box<Superblock>>,
    copies_written: u32,
    /// A growth proposed while a superblock was being written: it is in the next one, whether its
    /// session still stands then or not.
    pub grows_behind: Option<(Member, u64)>,
    /// The newest register that it may act on: its own, given, or greeted with.
    pub newest_known: RegisterState,
    /// What the log on disk names in each slot.
    pub log: Vec<u32>,
    /// What was hot at an unclean start, while the peer may be a member (R5c).
    pub hot_at_start: Vec<ByteRange>,
    /// The log's epoch at the start.
    pub first_epoch: u64,
    /// Whether any greeting went out.
    pub has_greeted: bool,
    /// Extents that were written.
    pub extents: BTreeMap<u32, Extent>,
    /// Extents that were surely hot when the office was taken away (R9).
    pub hot_when_lost: Vec<u32>,
    /// The device.
    pub device: Device,
    /// How often it was opened.
    pub instance: u64,
    /// A take-over is proposed or made.
    pub in_office: bool,
    /// A release is proposed or made.
    pub released: bool,
    /// The request whose part was submitted last.
    last_part: u64,
    /// Requests that are not answered.
    pub requests: BTreeMap<u64, Request>,
    /// The present or last session.
    pub session: Session,
    /// Frames of leaders that are not over, of all sessions, oldest first.
    pub received: VecDeque<Received>,
    first_received: u64,
    /// When the disk was done with the last frame that is no longer in `received`.
    pub received_done: Step,
}

/// No extent is named by a slot.
pub const NO_EXTENT: u32 = u32::MAX;

/// The extents that a range touches.
pub fn extents_of(range: ByteRange) -> std::ops::Range<u32> {
    if range.length == 0 {
        return 0..0;
    }
    (range.start / EXTENT_BYTES) as u32..range.end().div_ceil(EXTENT_BYTES) as u32
}

impl View {
    /// A bystander of a process that starts on this disk now.
    pub fn new(disk: &Disk, incarnation: u128) -> Self {
        let superblock = disk.superblock().expect("a process starts from metadata");
        let superblock = Box::new(Superblock::clone(&superblock));
        let layout = superblock.layout();
        let copies = disk.superblocks();
        let sequence = superblock.sequence;
        let is_whole =
            copies.iter().all(|copy| copy.as_ref().is_some_and(|copy| copy.sequence == sequence));
        let hot = if superblock.clean && is_whole {
            Vec::new()
        } else {
            match replay(disk.part(&layout.log), superblock.log_epoch, superblock.log_extents) {
                Replay::Unreadable => vec![ByteRange::new(0, superblock.data_bytes)],
                Replay::Hot(ranges) => ranges,
            }
        };
        Self {
            step: 1,
            me: superblock.replica,
            incarnation,
            ops: Vec::new(),
            // What earlier processes wrote counts as not durable.
            last_write: 1,
            flushed: 0,
            flush_began: 0,
            answered: 0,
            layout,
            newest_known: superblock.register.clone(),
            log: vec![NO_EXTENT; usize::from(superblock.log_extents)],
            hot_at_start: hot,
            first_epoch: superblock.log_epoch,
            has_greeted: false,
            committed: superblock,
            proposed: None,
            copies_written: 0,
            grows_behind: None,
            extents: BTreeMap::new(),
            hot_when_lost: Vec::new(),
            device: Device::Closed,
            instance: 0,
            in_office: false,
            released: false,
            last_part: 0,
            requests: BTreeMap::new(),
            session: Session::default(),
            received: VecDeque::new(),
            first_received: 0,
            received_done: 0,
        }
    }

    /// Disk operations under way.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().flatten()
    }

    /// Whether another replica has to acknowledge: it is in the newest committed set, or in one
    /// that is proposed or whose outcome is unknown.
    pub fn required_member(&self) -> Option<ReplicaId> {
        let sets = [Some(&self.committed), self.proposed.as_ref()];
        sets.into_iter()
            .flatten()
            .flat_map(|superblock| &superblock.register.set)
            .map(|member| member.replica)
            .find(|&replica| replica != self.me)
    }

    /// Where a metadata write goes.
    pub fn is_superblock(&self, offset: u64) -> bool {
        self.layout.superblocks.contains(&offset)
    }

    /// The same for the activity log.
    pub fn is_log(&self, offset: u64) -> bool {
        self.layout.log.contains(&offset)
    }

    /// The frame of the leader that a write of the disk carries out.
    pub fn frame_of_write(&self, range: ByteRange, buf: Option<BufId>) -> Option<usize> {
        let find = |over: bool| {
            self.received.iter().position(|frame| {
                let waits = !frame.submitted && frame.over == over && !frame.is_flush;
                waits && frame.buf == buf && frame.range == range
            })
        };
        find(false).or_else(|| find(true))
    }

    /// The request that a write of the disk carries out a part of.
    fn request_of_write(&self, range: ByteRange, buf: Option<BufId>) -> Option<u64> {
        let found = self.requests.iter().find(|(_, request)| match buf {
            Some(_) => request.asked == Asked::Write && request.buf == buf,
            None => {
                matches!(request.asked, Asked::Zero | Asked::Trim)
                    && request.next_part == range.start
                    && range.end() <= request.range.end()
            }
        });
        found.map(|(&id, _)| id)
    }

    // ------------------------------------------------------------------ facts

    /// A fact is told to the process.
    pub fn told(&mut self, input: &Input) {
        self.step += 1;
        match input {
            Input::ClientRequested { request, what } => self.requested(request.0, what),
            Input::DiskDone { op, result } => self.disk_done(*op, result),
            Input::PeerConnected { session, .. } => {
                self.end_session();
                self.session = Session { id: session.0, ..Session::default() };
            }
            Input::PeerSaid { session, message, data, .. } => {
                if session.0 == self.session.id {
                    self.peer_said(message, *data);
                }
            }
            Input::LinkLost { session, .. } => self.session_over(*session),
            // A majority keeps no register here.
            Input::Decided { .. } | Input::RegisterLearned(_) | Input::LeaseChanged { .. } => {}
            Input::Ordered { .. } | Input::TimePassed => {}
        }
    }

    fn requested(&mut self, id: u64, what: &ClientRequest) {
        let (asked, range, buf, fua) = match *what {
            ClientRequest::Read { range, buf } => (Asked::Read, range, Some(buf), false),
            ClientRequest::Map { range } => (Asked::Read, range, None, false),
            ClientRequest::Flush => (Asked::Flush, ByteRange::default(), None, false),
            ClientRequest::Write { range, buf, fua } => (Asked::Write, range, Some(buf), fua),
            ClientRequest::Trim { range, fua } => (Asked::Trim, range, None, fua),
            ClientRequest::WriteZeroes { range, fua, .. } => (Asked::Zero, range, None, fua),
        };
        let next_part = match asked {
            Asked::Trim => range.align_in(DIRTY_BLOCK_BYTES).start,
            _ => range.start,
        };
        let request = Request {
            asked,
            range,
            buf,
            fua,
            since: self.step,
            instance: self.instance,
            in_flight: 0,
            done: 0,
            submitted: false,
            failed: false,
            next_part,
            delivered: false,
            frames: Vec::new(),
        };
        self.requests.insert(id, request);
    }

    fn disk_done(&mut self, op: OpId, result: &Result<DiskOutcome, DiskFailure>) {
        let Some(op) = self.ops.get_mut(op.0 as usize).and_then(Option::take) else { return };
        let (ok, step) = (result.is_ok(), self.step);
        match op {
            Op::Client { request, range } => {
                self.last_write = step;
                if let Some(request) = self.requests.get_mut(&request) {
                    request.in_flight -= 1;
                    request.done = step;
                    request.failed |= !ok;
                }
                for extent in extents_of(range) {
                    let extent = self.extents.entry(extent).or_default();
                    extent.in_flight = extent.in_flight.saturating_sub(1);
                    extent.done = step;
                }
            }
            Op::Frame { number, .. } => {
                self.last_write = step;
                if let Some(index) = number.checked_sub(self.first_received)
                    && let Some(frame) = self.received.get_mut(index as usize)
                {
                    frame.done = step;
                    // Nobody waits for its acknowledgement any more.
                    frame.over |= frame.session != self.session.id || !self.session.greeted;
                    self.forget_received();
                }
            }
            Op::Flush { since } if ok => self.flushed = self.flushed.max(since),
            Op::Superblock { sequence } if ok => self.copy_written(sequence),
            Op::Move { sequence, .. } if ok => {
                self.copies_written += 1;
                self.copy_written(sequence);
            }
            Op::Move { before, .. } => {
                self.layout = *before;
                self.proposed = None;
            }
            Op::Log { slots } if ok => {
                for (slot, extent) in slots {
                    self.log[slot] = extent;
                }
            }
            _ => {}
        }
    }

    fn copy_written(&mut self, sequence: u64) {
        if self.proposed.as_ref().is_none_or(|proposed| proposed.sequence != sequence) {
            return;
        }
        self.copies_written += 1;
        if self.copies_written < 2 {
            return;
        }
        let committed = self.proposed.take().expect("just seen");
        if committed.log_epoch != self.committed.log_epoch {
            self.log.fill(NO_EXTENT);
        }
        let is_alone = committed.register.set.iter().all(|member| member.replica == self.me);
        if self.in_office && (is_alone || committed.register.set != self.committed.register.set) {
            self.hot_at_start.clear();
        }
        self.learn(&committed.register);
        self.committed = committed;
    }

    fn learn(&mut self, register: &RegisterState) {
        if register.order() > self.newest_known.order() {
            self.newest_known = register.clone();
        }
    }

    fn peer_said(&mut self, message: &Message, data: Option<BufId>) {
        match message {
            Message::Hello(hello) => self.session.unconfirmed = Some(hello.clone()),
            Message::Met => {
                if let Some(hello) = self.session.unconfirmed.take() {
                    self.learn(&hello.register);
                    self.session.hello = Some(hello);
                }
            }
            Message::AuthorityGiven(state) | Message::Committed(state) => self.learn(state),
            Message::SyncReady => {
                self.session.sync_ready = self.step;
                // A resync clears bits from now on.
                for extent in self.extents.values_mut() {
                    extent.missed = ByteRange::default();
                }
            }
            Message::GrowReady { generation } => {
                self.session.grow_ready = *generation;
                let hello = self.session.hello.as_ref().filter(|_| self.proposed.is_some());
                self.grows_behind = hello.map(|hello| {
                    let (replica, incarnation) = (hello.replica, hello.incarnation);
                    (Member { replica, incarnation }, *generation)
                });
            }
            Message::Ack { seq } | Message::VerifyDigests { seq, .. } => {
                let step = self.step;
                let at = usize::try_from(*seq).ok().and_then(|seq| seq.checked_sub(1));
                if let Some(frame) = at.and_then(|at| self.session.sent.get_mut(at)) {
                    frame.acked = step;
                    if frame.what == Sent::Flush {
                        self.session.flushed = self.session.flushed.max(*seq);
                    }
                }
            }
            _ => self.frame_came(message, data),
        }
    }

    fn frame_came(&mut self, message: &Message, buf: Option<BufId>) {
        let (tenure, seq, range, durable, is_flush) = match *message {
            Message::Write { tenure, seq, range, fua }
            | Message::Zero { tenure, seq, range, fua, .. } => (tenure, seq, range, fua, false),
            Message::ResyncData { tenure, seq, range }
            | Message::ResyncZero { tenure, seq, range } => (tenure, seq, range, false, false),
            Message::Flush { tenure, seq } => (tenure, seq, ByteRange::default(), true, true),
            _ => return,
        };
        self.received.push_back(Received {
            session: self.session.id,
            seq,
            tenure,
            range,
            buf,
            durable,
            is_flush,
            submitted: false,
            done: 0,
            over: false,
        });
    }

    fn session_over(&mut self, session: SessionId) {
        if session.0 == self.session.id {
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        self.session.hello = None;
        for frame in self.received.iter_mut().filter(|f| !f.submitted || f.done > 0) {
            frame.over = true;
        }
        self.forget_received();
        let session = &self.session;
        for request in self.requests.values_mut().filter(|r| !r.frames.is_empty()) {
            request.delivered |= request.frames.iter().all(|&(id, seq)| {
                id == session.id && session.frame(seq).is_some_and(|frame| frame.acked > 0)
            });
        }
        self.session.greeted = false;
    }

    // ------------------------------------------------------------------ orders

    fn begin(&mut self, op: OpId, what: Op) {
        let at = op.0 as usize;
        if self.ops.len() <= at {
            self.ops.resize(at + 1, None);
        }
        self.ops[at] = Some(what);
    }

    /// The process orders something.
    pub fn ordered(&mut self, effect: &Effect) {
        match effect {
            Effect::WriteDisk { op, range, buf } => self.writes(*op, *range, Some(*buf)),
            Effect::ZeroDisk { op, range, .. } => self.writes(*op, *range, None),
            Effect::ReadForResync { op, range } => self.begin(*op, Op::Copy { range: *range }),
            Effect::FlushDisk { op } => {
                self.flush_began = self.step;
                self.begin(*op, Op::Flush { since: self.step });
            }
            Effect::WriteMeta { op, offset, bytes } => self.writes_meta(*op, *offset, bytes),
            Effect::MoveMeta { op, to } => {
                let superblock = Superblock::decode(&to.superblock).expect("our own superblock");
                let (sequence, new) = (superblock.sequence, superblock.layout());
                let before = std::mem::replace(&mut self.layout, new);
                self.begin(*op, Op::Move { sequence, before: Box::new(before) });
                self.superblock_goes_out(superblock);
            }
            Effect::ReadDisk { op, .. }
            | Effect::ReadEdges { op, .. }
            | Effect::DigestDisk { op, .. }
            | Effect::TakeFingerprint { op, .. }
            | Effect::MeasureDisk { op }
            | Effect::MapDisk { op, .. } => self.begin(*op, Op::Other),
            Effect::SendPeer { session, message, .. } => {
                if session.0 == self.session.id {
                    self.sends(message);
                }
            }
            Effect::ClosePeer { session, .. } => self.session_over(*session),
            Effect::ReplyClient { request, result } => {
                let request = self.requests.remove(&request.0);
                if let Some(request) = request.filter(|r| result.is_ok() && r.submitted) {
                    self.answers(&request);
                }
            }
            Effect::OpenDevice { .. } => {
                self.device = Device::Open;
                self.instance += 1;
            }
            Effect::CloseDevice { forced } => self.device_closed(*forced),
            Effect::ReleaseBuf { .. }
            | Effect::AnswerOperator { .. }
            | Effect::ResizeDevice { .. }
            | Effect::Propose { .. }
            | Effect::Note(_)
            | Effect::Stopped => {}
        }
    }

    fn answers(&mut self, request: &Request) {
        self.answered = self.answered.max(request.done);
        let alone = self.session.hello.is_none() && request.frames.is_empty();
        if alone && request.asked == Asked::Write {
            for extent in extents_of(request.range) {
                let start = request.range.start.max(u64::from(extent) * EXTENT_BYTES);
                let end = request.range.end().min(u64::from(extent + 1) * EXTENT_BYTES);
                let missed = &mut self.extents.entry(extent).or_default().missed;
                *missed = ByteRange::new(start, end - start);
            }
        }
        for &(_, seq) in request.frames.iter().filter(|(id, _)| *id == self.session.id) {
            self.session.sent[seq as usize - 1].answered = self.step;
        }
    }

    fn device_closed(&mut self, forced: bool) {
        self.device = if forced { Device::Lost } else { Device::Closing };
        if forced {
            self.in_office = false;
            self.released = false;
            let began = self.flush_began;
            let written = |extent: &Extent| extent.in_flight > 0 || extent.done > began;
            self.hot_when_lost = self
                .extents
                .iter()
                .filter(|(_, e)| written(e))
                .map(|(&extent, _)| extent)
                .collect();
        }
    }

    fn writes(&mut self, op: OpId, range: ByteRange, buf: Option<BufId>) {
        if let Some(at) = self.frame_of_write(range, buf) {
            self.received[at].submitted = true;
            let number = self.first_received + at as u64;
            return self.begin(op, Op::Frame { number, range });
        }
        let Some(id) = self.request_of_write(range, buf) else {
            return self.begin(op, Op::Other);
        };
        let request = self.requests.get_mut(&id).expect("just found");
        request.submitted = true;
        request.next_part = range.end();
        request.in_flight += 1;
        self.last_part = id;
        for extent in extents_of(range) {
            self.extents.entry(extent).or_default().in_flight += 1;
        }
        self.begin(op, Op::Client { request: id, range });
    }

    fn writes_meta(&mut self, op: OpId, offset: u64, bytes: &[u8]) {
        if self.is_log(offset) {
            let slots = log_block::slots(bytes);
            return self.begin(op, Op::Log { slots });
        }
        if !self.is_superblock(offset) {
            return self.begin(op, Op::Other);
        }
        let superblock = Superblock::decode(bytes).expect("our own superblock");
        let sequence = superblock.sequence;
        self.begin(op, Op::Superblock { sequence });
        self.superblock_goes_out(superblock);
    }

    fn superblock_goes_out(&mut self, superblock: Superblock) {
        let sequence = superblock.sequence;
        if self.proposed.as_ref().is_some_and(|proposed| proposed.sequence == sequence) {
            return;
        }
        if self.takes_office(&superblock) {
            self.in_office = true;
            self.released = false;
            if self.newest_known.released_clean {
                // All members are equal.
                self.hot_at_start.clear();
            }
        } else if self.releases(&superblock) {
            self.released = true;
            self.in_office = false;
        }
        if superblock.log_epoch != self.committed.log_epoch {
            self.hot_when_lost.clear();
        }
        self.copies_written = 0;
        self.proposed = Some(Box::new(superblock));
    }

    /// Whether this update proposes that this replica takes the office.
    pub fn takes_office(&self, superblock: &Superblock) -> bool {
        let register = &superblock.register;
        !self.in_office
            && register.primary == Some(self.me)
            && register.authority == Some(self.me)
            && register.order() > self.newest_known.order()
    }

    /// Whether this update proposes the release of the office.
    pub fn releases(&self, superblock: &Superblock) -> bool {
        self.in_office
            && superblock.register.primary.is_none()
            && superblock.register.released_clean
    }

    fn sends(&mut self, message: &Message) {
        let step = self.step;
        let session = &mut self.session;
        let what = match *message {
            Message::Hello(_) => {
                session.greeted = true;
                self.has_greeted = true;
                return;
            }
            Message::Grow(_) => {
                session.grow_sent = if session.grow_sent == 0 { step } else { session.grow_sent };
                return;
            }
            Message::Ack { seq } => return self.acknowledges(seq),
            Message::Write { range, fua, .. } | Message::Zero { range, fua, .. } => {
                let seq = session.sent.len() as u64 + 1;
                let frame = (session.id, seq);
                // A part goes to the disk and to the followers in the same step.
                if let Some(request) = self.requests.get_mut(&self.last_part) {
                    request.frames.push(frame);
                }
                for extent in extents_of(range) {
                    self.extents.entry(extent).or_default().frame = frame;
                }
                Sent::Write { fua }
            }
            Message::ResyncData { .. } | Message::ResyncZero { .. } => Sent::Resync,
            Message::Flush { .. } => Sent::Flush,
            Message::Echo { .. } | Message::Verify { .. } => Sent::Question,
            _ => return,
        };
        self.session.sent.push(SentFrame { what, at: step, acked: 0, answered: 0 });
    }

    fn acknowledges(&mut self, seq: u64) {
        if let Some(frame) = self.frame_acknowledged(seq) {
            self.received[frame].over = true;
        }
        self.forget_received();
    }

    /// The frame that an acknowledgement is about.
    pub fn frame_acknowledged(&self, seq: u64) -> Option<usize> {
        let session = self.session.id;
        self.received.iter().position(|f| f.session == session && f.seq == seq && !f.over)
    }

    fn forget_received(&mut self) {
        while self.received.front().is_some_and(|frame| frame.over && self.is_off_disk(frame)) {
            let frame = self.received.pop_front().expect("just seen");
            self.received_done = self.received_done.max(frame.done);
            self.first_received += 1;
        }
    }

    fn is_off_disk(&self, frame: &Received) -> bool {
        frame.is_flush || !frame.submitted || frame.done > 0
    }
}

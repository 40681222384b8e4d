//! The replica: its state, the one match on inputs, and what it tells about itself.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use slab::Slab;

use crate::activity_log::{self, ActivityLog, Replay};
use crate::bitmap::DirtyBitmap;
use crate::block::{ByteRange, OpId, PeerIndex, SessionId, Ticket};
use crate::command::Command;
use crate::config::{Config, RegisterKeeper};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::flush::{Barrier, BarrierPurpose, FlushGate};
use crate::input::{DiskFailure, DiskOutcome, Input};
use crate::limits::VOLATILE_RANGES_MAX;
use crate::log_keeper::LogKeeper;
use crate::majority::Majority;
use crate::membership::Change;
use crate::metadata::{AttachError, Image, Layout, Superblock, read_superblocks};
use crate::mirror::Mirror;
use crate::note::{Note, dirty_bytes};
use crate::office::{Promotion, Stopping};
use crate::peer::{Lead, Link, Peer};
use crate::persist::{After, PageWriter, SuperblockWriter};
use crate::register::RegisterState;
use crate::request::{ActiveRanges, Request};
use crate::resize::Sizes;
use crate::room::Room;
use crate::secondary::{Applied, Arrivals, Following};
use crate::status::{PeerStatus, Status};
use crate::time::{Span, Time};

/// The role of a replica. `Promoting`, `Demoting` and `Deposed` are on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Role {
    /// Hot extents of an unclean end become durable dirty bits.
    Starting,
    Secondary,
    Promoting(Promotion),
    Primary,
    Demoting,
    /// The office was taken away; what may differ becomes durable.
    Deposed,
    /// Sessions are closed, the disk is flushed and fingerprinted.
    Stopping,
    Stopped,
}

impl Role {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Secondary => "secondary",
            Self::Promoting(_) => "promoting",
            Self::Primary => "primary",
            Self::Demoting => "demoting",
            Self::Deposed => "deposed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether requests of clients are being worked on.
    pub(crate) fn serves(&self) -> bool {
        matches!(self, Self::Primary | Self::Demoting)
    }

    pub(crate) fn is_deposed(&self) -> bool {
        matches!(self, Self::Deposed)
    }
}

/// What a disk operation was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A client's request.
    Request(usize),
    /// A leader's frame.
    Applied(usize),
    /// A step of a resync.
    Resync {
        peer: PeerIndex,
        session: SessionId,
        range: ByteRange,
    },
    /// A step of a verify, on the primary.
    Verify {
        peer: PeerIndex,
        number: u64,
        range: ByteRange,
    },
    /// A leader's frame that asks for digests.
    AppliedDigest(usize),
    Flush,
    Superblock,
    BitmapPage,
    LogBlock,
    Fingerprint,
    /// A step on the way to more room.
    Room,
}

/// Disk operations under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ops {
    table: Slab<Purpose>,
}

impl Ops {
    pub(crate) fn begin(&mut self, purpose: Purpose) -> OpId {
        OpId(self.table.insert(purpose) as u64)
    }

    fn end(&mut self, op: OpId) -> Purpose {
        self.table.remove(op.0 as usize)
    }
}

/// One replica of one volume.
#[derive(Clone, Debug)]
pub struct Replica {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) started_at: Time,
    /// The superblock's sequence at the start (R12).
    pub(crate) started_from: u64,
    pub(crate) role: Role,
    /// The newest committed state this replica knows of.
    pub(crate) register: RegisterState,
    /// A change that is being made.
    pub(crate) change: Option<Change>,
    /// Tells changes apart: each proposal has the next number.
    pub(crate) change_number: u64,
    pub(crate) majority: Majority,
    /// The superblock as it is or is about to be on disk.
    pub(crate) superblock: Superblock,
    pub(crate) superblock_writer: SuperblockWriter,
    pub(crate) pages: PageWriter,
    pub(crate) layout: Layout,
    pub(crate) sizes: Sizes,
    pub(crate) room: Room,
    pub(crate) peers: Vec<Peer>,
    pub(crate) ops: Ops,
    pub(crate) disk_failed: bool,
    pub(crate) metadata_failed: bool,
    // On the primary.
    pub(crate) requests: Slab<Request>,
    pub(crate) queue: VecDeque<usize>,
    pub(crate) held: Vec<usize>,
    pub(crate) waiting_flushes: Vec<usize>,
    pub(crate) client_barrier: bool,
    pub(crate) active: ActiveRanges,
    pub(crate) log: ActivityLog,
    pub(crate) log_keeper: LogKeeper,
    pub(crate) mirror: Mirror,
    pub(crate) gate: FlushGate,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) next_barrier: u64,
    pub(crate) resync_may_go_on: bool,
    pub(crate) office_since: Time,
    pub(crate) lost_in_office: bool,
    pub(crate) demotion_ticket: Option<Ticket>,
    pub(crate) releasing: bool,
    pub(crate) deposing: bool,
    /// Since when a lost member is to be fenced before this replica goes on alone.
    pub(crate) awaits_fence: Option<(PeerIndex, Time)>,
    // On a secondary.
    pub(crate) following: Option<Following>,
    pub(crate) applied: Slab<Applied>,
    pub(crate) applied_order: VecDeque<usize>,
    /// Those of them that are not on their way to the disk.
    pub(crate) applied_waiting: usize,
    pub(crate) arrivals: Arrivals,
    /// Whether this replica may take over by a fence; see `fenced.rs`.
    pub(crate) takes_fenced: bool,
    // At the start and the end.
    pub(crate) early: Vec<(Ticket, Command)>,
    pub(crate) stopping: Option<Stopping>,
    pub(crate) stop_flushing: bool,
    pub(crate) recovery_due: bool,
    pub(crate) recovered_extents: u64,
}

impl Replica {
    /// Takes up a replica from the metadata on its disk. The driver then steps it once with
    /// [`Input::TimePassed`], which starts the recovery.
    pub fn attach(config: Config, image: Image<'_>, now: Time) -> Result<Self, AttachError> {
        let (mut superblock, single_copy, newest) = find_superblock(&image)?;
        let layout = superblock.layout();
        if superblock.device_bytes != image.device_bytes {
            return Err(AttachError::SizeChanged(superblock.device_bytes, image.device_bytes));
        }
        if image.disk_bytes < superblock.room_bytes {
            return Err(AttachError::SizeChanged(superblock.room_bytes, image.disk_bytes));
        }
        let names: Vec<&str> = config.peers.iter().map(|peer| peer.node.as_str()).collect();
        superblock.take_peers(&names)?;
        let blocks = superblock.blocks();
        let mut peers = Vec::new();
        for record in &superblock.peers {
            let region = slice(image.region, &layout.bitmaps[usize::from(record.slot)])?;
            let tag = superblock.tag();
            let mut bitmap = DirtyBitmap::load(blocks, record.base, tag, region);
            if record.all_dirty {
                bitmap.fill_recorded_elsewhere();
            }
            let mut peer = Peer::new(record.node.clone(), bitmap);
            peer.may_take = config.register == RegisterKeeper::FencedSuperblock;
            peers.push(peer);
        }
        let was_clean = superblock.clean && !single_copy;
        if superblock.clean {
            // Also when only one copy says so: a start that got no further may have torn the other.
            check_fingerprint(&mut superblock, image.fingerprint, &mut peers);
        }
        let hot = if was_clean {
            Vec::new()
        } else {
            let region = slice(image.region, &layout.log)?;
            match activity_log::replay(region, superblock.log_epoch, superblock.log_extents) {
                Replay::Hot(ranges) => ranges,
                Replay::Unreadable => alloc::vec![ByteRange::new(0, superblock.data_bytes)],
            }
        };
        for range in hot.iter().filter(|_| !defect(Defect::HotForgottenAtStart)) {
            let touched = range.dirty_blocks();
            for peer in &mut peers {
                peer.bitmap.insert(touched.start..touched.end.min(blocks));
            }
        }
        let slots = superblock.log_extents;
        superblock.clean &= defect(Defect::CleanMarkStays);
        superblock.log_epoch += 1;
        let announced = superblock.coming;
        if superblock.incarnation != config.incarnation {
            // It was told of a membership and lost its caches since: as a member with another
            // incarnation it must not be promoted on that alone (R11a).
            superblock.coming = 0;
        }
        superblock.incarnation = config.incarnation;
        Ok(Self {
            now,
            started_at: now,
            started_from: superblock.sequence,
            role: Role::Starting,
            register: superblock.register.clone(),
            change: None,
            change_number: 0,
            majority: Majority::new(config.register, announced),
            superblock_writer: SuperblockWriter::new(&layout, superblock.sequence, newest),
            pages: PageWriter::default(),
            sizes: Sizes::new(superblock.data_bytes),
            room: Room::default(),
            peers,
            ops: Ops::default(),
            disk_failed: false,
            metadata_failed: false,
            requests: Slab::with_capacity(256),
            queue: VecDeque::with_capacity(256),
            held: Vec::with_capacity(256),
            waiting_flushes: Vec::with_capacity(256),
            client_barrier: false,
            active: ActiveRanges::default(),
            log: ActivityLog::new(superblock.data_bytes, slots, superblock.log_epoch),
            log_keeper: LogKeeper::default(),
            mirror: Mirror::default(),
            gate: FlushGate::default(),
            barriers: Vec::new(),
            next_barrier: 0,
            resync_may_go_on: false,
            office_since: now,
            lost_in_office: false,
            demotion_ticket: None,
            releasing: false,
            deposing: false,
            awaits_fence: None,
            following: None,
            applied: Slab::with_capacity(256),
            applied_order: VecDeque::with_capacity(256),
            applied_waiting: 0,
            arrivals: Arrivals::default(),
            takes_fenced: false,
            early: Vec::new(),
            stopping: None,
            stop_flushing: false,
            recovery_due: true,
            recovered_extents: hot.len() as u64,
            layout,
            superblock,
            config,
        })
    }

    /// Takes one fact and orders what follows from it. Effects are appended.
    pub fn step(&mut self, now: Time, input: Input, effects: &mut Effects) {
        self.now = self.now.max(now);
        match input {
            Input::ClientRequested { request, what } => {
                self.client_requested(request, what, effects);
            }
            Input::DiskDone { op, result } => self.disk_done(op, result, effects),
            Input::PeerConnected { peer, session, version } => {
                self.peers[usize::from(peer.0)].version = version;
                self.peer_connected(peer, session, effects);
            }
            Input::PeerSaid { peer, session, message, data } => {
                self.peer_said(peer, session, message, data, effects);
            }
            Input::LinkLost { peer, session, why } => self.link_lost(peer, session, why, effects),
            Input::Ordered { ticket, command } => self.ordered(ticket, command, effects),
            Input::Decided { number, result } => self.decided(number, result, effects),
            Input::RegisterLearned(state) => self.register_learned(*state, effects),
            Input::LeaseChanged { until } => self.lease_changed(until, effects),
            Input::TimePassed => self.time_passed(effects),
        }
        if self.resync_may_go_on {
            self.go_on_with_resync(effects);
        }
        self.go_on_with_room(effects);
        self.go_on_with_resize(effects);
    }

    fn disk_done(
        &mut self,
        op: OpId,
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        let purpose = self.ops.end(op);
        let plain = result.as_ref().map(|_| ()).map_err(|why| *why);
        let is_failure = result.is_err();
        match purpose {
            Purpose::Request(key) => self.request_disk_done(key, plain, effects),
            Purpose::Applied(key) => self.applied_done(key, plain, effects),
            Purpose::Resync { peer, session, range } => {
                self.resync_read((peer, session, range), result, effects);
            }
            Purpose::Verify { peer, number, range } => {
                self.verify_read((peer, number, range), result, effects);
            }
            Purpose::AppliedDigest(key) => self.digest_taken(key, result, effects),
            Purpose::Flush => {
                if let Err(why) = plain {
                    let range = ByteRange::default();
                    effects.push(Effect::Note(Note::DiskFailed { during: "flush", range, why }));
                }
                self.flush_ended(plain, effects);
                if plain.is_err() && self.role.serves() {
                    self.primary_disk_failed(effects);
                }
            }
            Purpose::Fingerprint => self.fingerprint_taken(result, effects),
            Purpose::Room => self.room_step_done(result, effects),
            Purpose::Superblock | Purpose::BitmapPage | Purpose::LogBlock => match plain {
                Ok(()) => match purpose {
                    Purpose::Superblock => self.superblock_written(effects),
                    Purpose::BitmapPage => self.page_written(effects),
                    _ => self.log_block_written(effects),
                },
                Err(why) => self.metadata_write_failed(why, effects),
            },
        }
        if is_failure {
            self.forgive_all_drops(effects);
        }
    }

    /// What waited for metadata to be durable goes on.
    pub(crate) fn continue_after(&mut self, after: After, effects: &mut Effects) {
        match after {
            After::Nothing => {}
            After::BitsRecovered => self.bits_recovered(effects),
            After::Recovered => self.recovered(effects),
            After::Deposed => self.deposed_saved(effects),
            After::Committed(number) => self.change_committed(number, effects),
            After::SteppedDown => self.stepped_down(effects),
            After::FollowReady(session) => self.follow_ready(session, effects),
            After::MirrorSaved(session) => self.mirror_saved(session, effects),
            After::MirrorOver => self.mirror_over(effects),
            After::SyncReady(session) => {
                self.say_to_leader(session, crate::wire::Message::SyncReady, effects);
            }
            After::GrowReady(session, generation) => {
                let message = crate::wire::Message::GrowReady { generation };
                self.say_to_leader(session, message, effects);
            }
            After::RoomSaved(end) => self.room_saved(end, effects),
            After::SizeSaved(session, size) => self.size_saved(session, size, effects),
            After::FullPlanned(peer, session) => self.full_planned(peer, session, effects),
            After::Adopted => self.resume_office(effects),
            After::AnswerAndReconnect(ticket) => self.answer_and_reconnect(ticket, effects),
            After::VerifyMarked(peer) => self.verify_marked(peer, effects),
            After::Evict => self.evict_pages_saved(effects),
            After::Evicted => self.evict_saved(effects),
            After::Release => self.release_saved(effects),
            After::StopClean => self.persist(After::Stopped, effects),
            After::Stopped => self.stopped(effects),
        }
    }

    pub(crate) fn say_to_leader(
        &mut self,
        session: SessionId,
        message: crate::wire::Message,
        effects: &mut Effects,
    ) {
        if let Some(leader) = self.following.filter(|leader| leader.session == session) {
            self.send(leader.peer, message, None, effects);
        }
    }

    // ------------------------------------------------------------------ start and failure

    /// R14: hot extents become durable dirty bits before anything else happens.
    fn start_recovery(&mut self, effects: &mut Effects) {
        self.recovery_due = false;
        let extents = self.recovered_extents;
        if extents > 0 {
            effects.push(Effect::Note(Note::HotExtentsMarked { extents }));
        }
        let all = 0..self.superblock.blocks();
        if defect(Defect::BitsNotDurableAtStart) {
            return self.bits_recovered(effects);
        }
        self.save_pages(alloc::vec![all], After::BitsRecovered, effects);
    }

    /// The bits are durable: the log of the new epoch may be used from the next superblock on.
    fn bits_recovered(&mut self, effects: &mut Effects) {
        if defect(Defect::OpenProposalNotSettled) {
            self.persist(After::Nothing, effects);
            return self.recovered(effects);
        }
        self.persist(After::Recovered, effects);
    }

    pub(crate) fn recovered(&mut self, effects: &mut Effects) {
        self.set_role(Role::Secondary, effects);
        for (ticket, command) in core::mem::take(&mut self.early) {
            self.ordered(ticket, command, effects);
        }
        self.greet_waiting(effects);
        self.take_up_pending(effects);
    }

    /// R16: the last member goes on with what needs no metadata, and tells what fails; any other
    /// replica stops.
    fn metadata_write_failed(&mut self, why: DiskFailure, effects: &mut Effects) {
        let range = ByteRange::default();
        effects.push(Effect::Note(Note::DiskFailed { during: "metadata write", range, why }));
        if self.metadata_failed {
            return;
        }
        // A member that is missing could never leave the set: nothing would be acknowledged any
        // more, and what clients were refused would be read all the same (R5b).
        // One that was proposed counts too: its membership may be on the disk all the same (R4e).
        let recorded = self.superblock.register.set.len();
        let proposed = recorded.max(self.majority.proposed_members());
        let is_alone = self.register.set.len().max(proposed) == 1 && self.is_last_member();
        let goes_on = self.role == Role::Primary && is_alone;
        self.disk_failed |= !goes_on;
        self.change = None;
        self.abandon_writes(effects);
        if goes_on {
            self.fail_blocked(effects);
        } else if self.role.serves() {
            self.step_down(None, effects);
        } else {
            for at in 0..self.peers.len() {
                if self.peers[at].link != Link::Down {
                    let peer = PeerIndex(at as u8);
                    self.send(peer, crate::wire::Message::DiskFailed, None, effects);
                    self.peers[at].why = "the metadata of this replica cannot be written".into();
                    self.close(at, crate::effect::Retry::Rarely, effects);
                }
            }
            self.give_up_promotion(effects);
        }
        self.stop_drained(effects);
    }

    // ------------------------------------------------------------------ time

    fn time_passed(&mut self, effects: &mut Effects) {
        if self.recovery_due {
            self.start_recovery(effects);
        }
        self.watch_majority(effects);
        self.watch_links(effects);
        self.watch_held_back(effects);
        self.check_members(effects);
        self.bound_volatile(effects);
        self.watch_promotion(effects);
        if self.stopping.and_then(|stopping| stopping.leaving_until).is_some_and(|t| t <= self.now)
        {
            self.stop_sessions(effects);
        }
        self.resync_may_go_on = true;
    }

    /// R8: flushes of our own bound what a peer may lose with its power.
    fn bound_volatile(&mut self, effects: &mut Effects) {
        if !self.role.serves() || !self.barriers.is_empty() {
            return;
        }
        let due = self.peers.iter().any(|peer| {
            peer.holds_frames()
                && peer.volatile_len() > 0
                && (peer.volatile_len() >= VOLATILE_RANGES_MAX
                    || self.now.since(peer.volatile_since) >= VOLATILE_AGE)
        });
        if due {
            self.start_barrier(BarrierPurpose::BoundVolatile, effects);
        }
    }

    /// When to step with [`Input::TimePassed`] at the latest; `None`: whenever something happens.
    pub fn next_deadline(&self) -> Option<Time> {
        let mut next = None;
        let mut at = |time: Time| next = Some(next.map_or(time, |known: Time| known.min(time)));
        let timing = &self.config.timing;
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.link == Link::Down {
                continue;
            }
            at(self.last_heard(index) + timing.peer_silence);
            at(peer.last_sent + timing.ping_interval);
            for sent in peer.oldest_outstanding().into_iter().chain(peer.resize_asked) {
                at(sent + timing.ack_limit);
            }
            if peer.volatile_len() > 0 && self.barriers.is_empty() {
                at(peer.volatile_since + VOLATILE_AGE);
            }
            if let Some(paused) = peer.resync.as_ref().and_then(|r| r.deadline(self.now)) {
                at(paused);
            }
            if let Some(until) = peer.held_back_until() {
                at(until);
            }
        }
        if self.role.serves() && self.change.is_none() && !self.lost_in_office {
            let grace = self.office_since + timing.join_grace;
            if grace > self.now {
                at(grace);
            }
        }
        if let Role::Promoting(promotion) = self.role
            && promotion.may_time_out()
        {
            at(promotion.since + timing.drain_limit);
        }
        if let Some(until) = self.stopping.and_then(|stopping| stopping.leaving_until) {
            at(until);
        }
        if self.recovery_due {
            at(self.now);
        }
        self.majority_deadlines().for_each(at);
        next
    }

    // ------------------------------------------------------------------ what it tells

    pub(crate) fn block_bytes(&self) -> u64 {
        u64::from(self.superblock.block_bytes)
    }

    /// A snapshot for people and metrics.
    pub fn status(&self, now: Time) -> Status {
        Status {
            role: self.role.name(),
            has_disk: !self.disk_failed && !self.metadata_failed,
            data: self.data_state().name(),
            hindrance: self.promotion_hindrance(),
            register: self.register.clone(),
            replica: self.superblock.replica.0,
            size_bytes: self.size_bytes(),
            room_bytes: self.superblock.room_bytes,
            resizing_to: self.sizes.resizing_to(),
            making_room_to: self.making_room_to(),
            requests: self.requests.len(),
            waits: self.waits(now),
            awaits_fence: self.fence_wait(now),
            takes_fenced: self.takes_fenced,
            log_extents: self.log.fill_level(),
            verifies: self.verifies(),
            peers: self.peers.iter().map(|peer| self.peer_status(peer)).collect(),
        }
    }

    fn peer_status(&self, peer: &Peer) -> PeerStatus {
        let state = match peer.link {
            Link::Down if peer.refused => "refused",
            Link::Down => "disconnected",
            Link::Waiting | Link::Greeting(_) => "connecting",
            Link::Idle => "idle",
            Link::Following => "leads",
            Link::Leading(Lead::Syncing | Lead::AwaitPlan | Lead::AwaitSyncReady) => "syncing",
            Link::Leading(Lead::Joining(_)) => "joining",
            Link::Leading(Lead::Current) => "current",
            Link::Leading(Lead::HeldBack { .. }) => "held_back",
            Link::Leading(_) => "connecting",
        };
        let replica = self
            .superblock
            .peers
            .iter()
            .find(|record| record.node == peer.node)
            .map(|record| record.replica)
            .filter(|_| peer.hello.is_none())
            .unwrap_or(peer.replica());
        let drops = peer.flapping.drops(self.now, &self.config.timing);
        PeerStatus {
            node: peer.node.clone(),
            state,
            why: self.why_of(peer, drops),
            drops,
            role: match (&peer.link, &peer.hello) {
                (Link::Following, _) => "primary",
                (Link::Idle | Link::Leading(_), Some(_)) => "secondary",
                _ => "",
            },
            is_member: self.register.contains(replica),
            dirty_bytes: dirty_bytes(peer.bitmap.blocks().count()),
            diverged_blocks: peer.diverged_blocks,
            size_and_room_bytes: peer
                .hello
                .as_ref()
                .map_or((0, 0), |hello| (hello.size_bytes, hello.room_bytes)),
            resync_bytes: peer
                .resync
                .as_ref()
                .map_or((0, 0), |resync| (resync.total_bytes, resync.remaining_bytes())),
            sent_bytes: (peer.sent_resync_bytes, peer.sent_write_bytes),
            received_bytes: (peer.received_resync_bytes, peer.received_write_bytes),
            in_flight: (peer.in_flight_frames, peer.in_flight_bytes),
            in_flight_resync_bytes: peer.in_flight_resync_bytes,
        }
    }

    fn why_of(&self, peer: &Peer, drops: usize) -> String {
        let Link::Leading(Lead::HeldBack { since, until }) = peer.link else {
            return peer.why.clone();
        };
        let delay = until.since(since).as_ms();
        format!("dropped {drops} times lately: to be heard for {delay} ms without a break first")
    }

    /// Panics when the state contradicts the rules; cheap enough to run after every step in the
    /// simulator.
    pub fn check_invariants(&self) {
        let mine = self.superblock.replica;
        if self.role.serves() {
            assert_eq!(self.register.primary, Some(mine), "serving without office");
            assert!(self.register.contains(mine), "a primary is a member");
            assert!(self.following.is_none(), "a primary follows nobody");
            assert!(self.applied.is_empty(), "a primary applies nobody's writes (R2b)");
        }
        for (at, peer) in self.peers.iter().enumerate() {
            if let Link::Leading(Lead::HeldBack { .. }) = peer.link {
                assert!(self.role.serves(), "a {} holds {at} back", self.role.name());
            }
            if peer.link == Link::Leading(Lead::Current) {
                assert!(self.role.serves(), "a {} leads {at}", self.role.name());
                assert!(peer.bitmap.blocks().is_empty(), "member {} has dirty blocks", peer.node);
            }
        }
        assert!(self.superblock.tenure >= self.register.tenure, "tenure went back");
        self.check_sizes();
        assert!(self.held.len() <= self.requests.len());
        assert!(self.nobody_waits_for_nothing(), "a write waits for extents that are hot");
        let waiting = self.applied.iter().filter(|(_, frame)| frame.waits()).count();
        assert_eq!(self.applied_waiting, waiting, "frames that wait for earlier ones");
        if self.acks_allowed() {
            assert!(self.held.is_empty(), "requests are held for nothing");
        }
    }
}

const VOLATILE_AGE: Span = Span::from_ms(1_000);

/// The superblock that counts, whether only one copy has it, and which one has it.
fn find_superblock(image: &Image<'_>) -> Result<(Superblock, bool, usize), AttachError> {
    let region = image.region;
    let bytes = crate::metadata::SUPERBLOCK_BYTES;
    let last = region.len().checked_sub(bytes).ok_or(AttachError::NoMetadata)?;
    let first_copy = &region[last..];
    let empty: &[u8] = &[];
    let second_copy = last
        .checked_sub(crate::metadata::COPY_DISTANCE as usize)
        .map_or(empty, |at| &region[at..at + bytes]);
    let (superblock, single_copy) = read_superblocks([first_copy, second_copy])?;
    let first = Superblock::decode(first_copy).is_ok_and(|s| s.sequence == superblock.sequence);
    Ok((superblock, single_copy, usize::from(!first)))
}

fn slice<'a>(region: &'a [u8], range: &core::ops::Range<u64>) -> Result<&'a [u8], AttachError> {
    region
        .get(range.start as usize..range.end as usize)
        .ok_or(AttachError::Bounds("the metadata region is shorter than its layout"))
}

/// R12: a disk that was used without us since its orderly stop is not what its bitmaps say. When
/// another replica is up to date this one is resynced in full; else its data are all there is, and
/// the others are.
fn check_fingerprint(
    superblock: &mut Superblock,
    fingerprint: Option<[u8; 32]>,
    peers: &mut [Peer],
) {
    if fingerprint == Some(superblock.fingerprint) || defect(Defect::FingerprintIgnored) {
        return;
    }
    let mine = superblock.replica;
    let alone = superblock.register.contains(mine) && superblock.register.set.len() == 1;
    if !alone {
        superblock.invalid = true;
        return;
    }
    for (record, peer) in superblock.peers.iter_mut().zip(peers) {
        record.replica = crate::block::ReplicaId::NONE;
        record.all_dirty = true;
        peer.bitmap.fill_recorded_elsewhere();
    }
}

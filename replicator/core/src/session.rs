//! Sessions: greeting a peer, agreeing what each is to the other, leading a follower up to date,
//! following a leader, and the end of a session.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::block::{BufId, PeerIndex, ReplicaId, SessionId};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::handshake::{self, Cause, Diverged, Plan, Relation};
use crate::input::LinkLoss;
use crate::membership::Change;
use crate::note::{Note, dirty_bytes};
use crate::peer::{FlushPurpose, Join, Lead, Link, RoomThere, Sent};
use crate::persist::After;
use crate::register::RegisterState;
use crate::replica::{Replica, Role};
use crate::resync::Resync;
use crate::secondary::Following;
use crate::time::Time;
use crate::wire::{BITMAP_RUNS_MAX, Hello, Message};

impl Replica {
    /// A connection to a peer stands and both ends know the cluster's key.
    pub(crate) fn peer_connected(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        effects: &mut Effects,
    ) {
        let at = usize::from(peer.0);
        if self.peers[at].link != Link::Down {
            // The driver knows of a loss that we do not: the old session ends first.
            self.end_session(at, effects);
        }
        let peer = &mut self.peers[at];
        peer.session = session;
        peer.last_heard = self.now;
        peer.last_sent = self.now;
        if peer.disconnected || self.metadata_failed {
            self.close(at, Retry::Rarely, effects);
            return;
        }
        peer.link = Link::Waiting;
        self.greet_waiting(effects);
    }

    /// Greets those who wait for it, once our state is settled and no write of an old session is
    /// on its way to the disk (R2d).
    pub(crate) fn greet_waiting(&mut self, effects: &mut Effects) {
        let old_writes = !self.applied.is_empty() && !defect(Defect::SessionOverOldWrites);
        if old_writes
            || self.change.is_some()
            || !self.majority.is_settled()
            || self.marks_unsaved()
        {
            return;
        }
        if self.sizes.durable != self.superblock.data_bytes {
            return;
        }
        if self.metadata_failed {
            // What was being written may not be durable, and must not be told: an authority that
            // moves is durable at the giver first ("No witness").
            return;
        }
        let settled = match self.role {
            Role::Primary => true,
            Role::Secondary => self.following.is_none() && self.requests.is_empty(),
            _ => false,
        };
        if !settled {
            return;
        }
        for at in 0..self.peers.len() {
            if self.peers[at].link == Link::Waiting {
                let hello = Box::new(self.hello(at));
                self.takes_fenced = false;
                self.peers[at].link = Link::Greeting(hello.clone());
                self.send(PeerIndex(at as u8), Message::Hello(hello), None, effects);
                if self.peers[at].hello.is_some() {
                    // Theirs came first.
                    self.send(PeerIndex(at as u8), Message::Met, None, effects);
                }
            }
        }
    }

    pub(crate) fn hello(&self, at: usize) -> Hello {
        let record = &self.superblock.peers[at];
        Hello {
            resource_id: self.superblock.resource_id,
            replica: self.superblock.replica,
            incarnation: self.config.incarnation,
            size_bytes: self.superblock.data_bytes,
            room_bytes: self.superblock.room_bytes,
            block_bytes: self.superblock.block_bytes,
            can_punch: self.config.can_punch,
            is_primary: matches!(self.role, Role::Primary),
            has_disk: !self.disk_failed,
            invalid: self.superblock.invalid,
            syncing: self.superblock.syncing,
            discard_diverged: self.superblock.discard_diverged,
            assumed_equal: self.superblock.assumed_equal,
            started_from: self.started_from,
            tenure: self.superblock.tenure,
            register: self.register.clone(),
            coming: self.superblock.coming,
            knows_you_as: record.replica,
            base: record.base,
            dirty_blocks: self.peers[at].bitmap.blocks().count(),
        }
    }

    /// A frame of the present session came in.
    pub(crate) fn peer_said(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        message: Message,
        data: Option<BufId>,
        effects: &mut Effects,
    ) {
        let at = usize::from(peer.0);
        if self.peers[at].session != session || self.peers[at].link == Link::Down {
            if let Some(buf) = data {
                effects.push(Effect::ReleaseBuf { buf });
            }
            return;
        }
        self.peers[at].last_heard = self.now;
        match message {
            Message::Write { .. }
            | Message::Zero { .. }
            | Message::Flush { .. }
            | Message::ResyncData { .. }
            | Message::ResyncZero { .. } => {
                self.apply_frame(peer, session, &message, data, effects)
            }
            Message::Verify { .. } => self.apply_frame(peer, session, &message, data, effects),
            Message::VerifyDigests { seq, digests } => {
                self.digests_came(at, seq, digests, effects);
            }
            Message::VerifyNews { copy, news } => self.verify_news_came(at, copy, news, effects),
            Message::VerifyWanted { repair, cancel } => {
                self.verify_wanted(at, repair, cancel, effects);
            }
            Message::VerifyAnswer(result) => self.verify_answered(at, result, effects),
            Message::Ack { seq } => self.acknowledged(at, seq, effects),
            Message::Echo { tenure, seq } => self.echo_asked(peer, session, (tenure, seq), effects),
            Message::Ping => {}
            Message::Resize { size_bytes } => self.resize_asked(at, size_bytes, effects),
            Message::Resized { size_bytes } => self.resized(at, size_bytes, effects),
            Message::MakeRoom => self.room_wanted(at, effects),
            Message::Room { room_bytes, is_growing } => {
                self.room_told(at, room_bytes, is_growing, effects);
            }
            Message::Hello(hello) => self.greeted(at, hello, effects),
            Message::Met => self.met(at, effects),
            Message::Refused { reason, diverged_blocks } => {
                self.refused(at, &reason, diverged_blocks, effects);
            }
            Message::Bitmap(runs) => self.bitmap_came(at, &runs, effects),
            Message::Follow => self.follower_ready(at, effects),
            Message::SyncStart { full, base } => self.sync_start(at, full, base, effects),
            Message::SyncReady => self.sync_ready(at, effects),
            Message::Grow(state) => self.grow_announced(at, *state, effects),
            Message::GrowReady { generation } => self.grow_ready(at, generation, effects),
            Message::Committed(state) => self.committed_came(at, *state, effects),
            Message::InSync => self.in_sync_with(at),
            Message::Leave { sequence } => self.leave_asked(at, sequence, effects),
            Message::LeaveDone => self.leave_done(effects),
            Message::DiskFailed => {
                self.peers[at].why = "its disk failed".into();
                self.drop_session(at, "its disk failed", effects);
            }
            Message::Replicas(replicas) => self.replicas_named(at, &replicas, effects),
            Message::Cooled { extents, flushed } => self.cooled(at, extents, &flushed, effects),
            Message::AuthorityWanted => self.authority_wanted(at, effects),
            Message::AuthorityGiven(state) => self.authority_given(at, *state, effects),
            Message::AuthorityRefused { reason } => {
                self.authority_refused(at, &reason, effects);
            }
        }
    }

    /// Their greeting: it counts when they say that it still holds, which they can only when ours
    /// has reached them in this session. One that was long on its way would be taken for news.
    fn greeted(&mut self, at: usize, theirs: Box<Hello>, effects: &mut Effects) {
        let index = PeerIndex(at as u8);
        let greets = matches!(self.peers[at].link, Link::Waiting | Link::Greeting(_));
        if !greets || self.peers[at].hello.is_some() {
            return self.misbehaved(index, "a second greeting", effects);
        }
        self.peers[at].hello = Some(theirs);
        if let Link::Greeting(mine) = &self.peers[at].link {
            if !self.still_holds(mine) {
                return self.close(at, Retry::Now, effects);
            }
            self.send(index, Message::Met, None, effects);
            if defect(Defect::GreetingNotConfirmed) {
                self.met(at, effects);
            }
        }
    }

    /// What we said must still hold, or the two sides would decide differently.
    fn still_holds(&self, mine: &Hello) -> bool {
        mine.register == self.register
            && mine.is_primary == matches!(self.role, Role::Primary)
            && mine.size_bytes == self.superblock.data_bytes
    }

    /// Their greeting holds, and they have read ours: both sides decide from the same two.
    fn met(&mut self, at: usize, effects: &mut Effects) {
        let peer = &self.peers[at];
        let (Link::Greeting(mine), Some(theirs)) = (&peer.link, &peer.hello) else {
            if !defect(Defect::GreetingNotConfirmed) {
                self.misbehaved(PeerIndex(at as u8), "it met nobody", effects);
            }
            return;
        };
        if !self.still_holds(mine) {
            return self.close(at, Retry::Now, effects);
        }
        let (mine, theirs) = (mine.clone(), theirs.clone());
        // Its sender answers to ours, and had cleared its own flag: see `fenced.rs`. A greeting
        // alone may be of a connection that came late, and older than what its sender heard since.
        self.peers[at].may_take = false;
        if self.following.is_some() {
            // Somebody else is followed since the greeting: they meet when that is over.
            return self.close(at, Retry::Later, effects);
        }
        match handshake::relation(&mine, &theirs) {
            Relation::Refuse { cause, reason, diverged } => {
                if cause == Cause::Sizes && mine.size_bytes < theirs.size_bytes {
                    // The volume grew while this replica was away; its disk may have been extended.
                    self.extend_room(effects);
                }
                let blocks = match diverged {
                    Some(Diverged::Mine) => mine.dirty_blocks,
                    Some(Diverged::Theirs) => theirs.dirty_blocks,
                    None => 0,
                };
                let to = PeerIndex(at as u8);
                let text = reason.clone();
                let message = Message::Refused { reason: text, diverged_blocks: blocks };
                self.send(to, message, None, effects);
                if diverged == Some(Diverged::Mine) && !self.superblock.diverged {
                    self.superblock.diverged = true;
                    self.persist(After::Nothing, effects);
                }
                self.refused(at, &reason, blocks, effects);
            }
            Relation::Lead if self.takes_up_size_of(at, effects) => self.begin_leading(at, effects),
            Relation::Lead => {}
            Relation::Follow => self.begin_following(at, *theirs, effects),
            Relation::Idle { adopt } => self.begin_idle(at, adopt, *theirs, effects),
            // It only learned of our commit before we did.
            Relation::Deposed if self.by_majority() && self.is_own_office(&theirs.register) => {
                self.close(at, Retry::Later, effects);
            }
            Relation::Deposed => self.deposed(at, &theirs, effects),
            Relation::Wait => self.close(at, Retry::Later, effects),
        }
    }

    pub(crate) fn refused(
        &mut self,
        at: usize,
        reason: &str,
        diverged_blocks: u64,
        effects: &mut Effects,
    ) {
        let peer = &mut self.peers[at];
        peer.why = reason.to_string();
        peer.refused = true;
        peer.diverged_blocks = diverged_blocks;
        let (peer, why) = (PeerIndex(at as u8), reason.to_string());
        effects.push(Effect::Note(Note::PeerRefused { peer, why }));
        self.close(at, Retry::Rarely, effects);
    }

    fn agreed(&mut self, at: usize, relation: &'static str, effects: &mut Effects) {
        let mine = self.hello(at);
        let peer = &mut self.peers[at];
        peer.flapping.met(self.now);
        peer.spoken = true;
        peer.refused = false;
        peer.diverged_blocks = 0;
        peer.why.clear();
        let recorded = peer.hello.as_ref().is_some_and(|hello| {
            let member = self.register.member(hello.replica);
            hello.has_disk
                && handshake::may_hold_more(&mine, hello)
                && member.is_some_and(|member| member.incarnation == hello.incarnation)
        });
        peer.kept_caches = recorded;
        effects.push(Effect::Note(Note::PeerJoined { peer: PeerIndex(at as u8), relation }));
    }

    // ------------------------------------------------------------------ neither is primary

    fn begin_idle(&mut self, at: usize, adopt: bool, theirs: Hello, effects: &mut Effects) {
        self.agreed(at, "idle", effects);
        self.peers[at].link = Link::Idle;
        if adopt {
            let was_invalid = self.superblock.invalid;
            self.adopt(at, &theirs, effects);
            self.persist(After::Adopted, effects);
            if self.superblock.invalid != was_invalid {
                // The peer decided from a greeting that did not say so.
                self.close(at, Retry::Now, effects);
            }
        } else {
            if self.register == theirs.register {
                // What this replica was told to expect was never committed, or is over again.
                self.settle_coming(at, &theirs);
            }
            self.resume_office(effects);
        }
    }

    /// Takes over a newer register copy (not yet durably), and learns whether the commit that this
    /// replica was told to expect was made (R4d).
    fn adopt(&mut self, at: usize, theirs: &Hello, effects: &mut Effects) {
        let mine = self.hello(at);
        let old = core::mem::replace(&mut self.register, theirs.register.clone());
        self.superblock.register = self.register.clone();
        self.superblock.tenure = self.superblock.tenure.max(theirs.register.tenure);
        self.superblock.clean &= defect(Defect::CleanMarkStays);
        let met = self.superblock.peers[at].replica == theirs.replica;
        if met && handshake::joined_unknowingly(theirs, &mine) {
            self.joined(at, theirs.base);
            self.joined_others(at, theirs.base);
        } else if !self.by_majority() && handshake::is_not_who_joined(theirs, &mine) {
            self.superblock.invalid = true;
        }
        self.superblock.coming = 0;
        self.members_changed(&old.set, effects);
        self.majority.forget_foreign(&self.register);
        let generation = self.register.generation;
        effects.push(Effect::Note(Note::Committed { generation, what: "learned from the peer" }));
    }

    /// The peer's register is ours. A majority may have told us of it first, so the peer's word on
    /// the commit that was expected is still to be heard.
    fn settle_coming(&mut self, at: usize, theirs: &Hello) {
        let met = self.superblock.peers[at].replica == theirs.replica;
        if self.by_majority() && met && handshake::joined_unknowingly(theirs, &self.hello(at)) {
            self.joined(at, theirs.base);
            self.joined_others(at, theirs.base);
        }
        self.superblock.coming = 0;
    }

    /// This replica became a member together with the peer in that generation: what its bitmap
    /// for the peer said is over.
    pub(crate) fn joined(&mut self, at: usize, generation: u64) {
        let record = &mut self.superblock.peers[at];
        if record.base != generation {
            record.base = generation;
            record.all_dirty = false;
            self.peers[at].bitmap.restart(generation);
        }
        self.superblock.coming = 0;
        self.superblock.syncing = false;
        self.superblock.diverged = false;
        self.superblock.discard_diverged = false;
    }

    // ------------------------------------------------------------------ the peer is primary

    fn begin_following(&mut self, at: usize, theirs: Hello, effects: &mut Effects) {
        self.agreed(at, "follows", effects);
        let peer = &mut self.peers[at];
        peer.link = Link::Following;
        self.following = Some(Following {
            peer: PeerIndex(at as u8),
            session: peer.session,
            tenure: theirs.register.tenure,
            ready: false,
            verify_asked: None,
            verify_failures: 0,
        });
        self.adopt(at, &theirs, effects);
        let session = self.peers[at].session;
        if defect(Defect::TenureNotDurable) {
            return self.follow_ready(session, effects);
        }
        if self.keeps_mirror() {
            return self.begin_mirror(session, effects);
        }
        self.persist(After::FollowReady(session), effects);
    }

    /// Tenure and register copy are durable (R2a): tell the leader what we may have that it lacks.
    pub(crate) fn follow_ready(&mut self, session: SessionId, effects: &mut Effects) {
        let Some(following) = &mut self.following else { return };
        if following.session != session {
            return;
        }
        following.ready = true;
        let leader = following.peer;
        let at = usize::from(leader.0);
        for runs in self.peers[at].bitmap.blocks().merged_runs().chunks(BITMAP_RUNS_MAX) {
            self.send(leader, Message::Bitmap(runs.to_vec()), None, effects);
        }
        // From now on this is the replica we know there.
        self.send(leader, Message::Follow, None, effects);
    }

    pub(crate) fn leads_us(&self, at: usize) -> bool {
        self.following.is_some_and(|leader| {
            leader.ready
                && usize::from(leader.peer.0) == at
                && leader.session == self.peers[at].session
        })
    }

    fn sync_start(&mut self, at: usize, full: bool, base: u64, effects: &mut Effects) {
        if !self.leads_us(at) || self.is_persisting_too_much() {
            return self.misbehaved(PeerIndex(at as u8), "a resync without a leader", effects);
        }
        self.superblock.syncing = !defect(Defect::SyncingForgotten);
        if full {
            // The leader has recorded that everything differs; a mark made later stays (R12).
            self.superblock.invalid = false;
        }
        self.superblock.coming = 0;
        self.remember_replica(at);
        if full && self.superblock.peers[at].base != base {
            self.superblock.peers[at].base = base;
            self.peers[at].bitmap.restart(base);
        }
        if full && self.keeps_mirror() {
            self.forget_others(at);
        }
        let session = self.peers[at].session;
        self.persist(After::SyncReady(session), effects);
    }

    /// R4d: the generation that will make this replica a member becomes durable before the leader
    /// proposes it.
    fn grow_announced(&mut self, at: usize, state: RegisterState, effects: &mut Effects) {
        let in_order = state.order() > self.register.order() && self.continues(&state);
        if self.by_majority() && self.leads_us(at) && self.continues(&state) && !in_order {
            // The leader is about to hear what we know already, and announces anew.
            let message = Message::GrowReady { generation: state.generation };
            return self.send(PeerIndex(at as u8), message, None, effects);
        }
        if !self.leads_us(at) || !in_order || self.is_persisting_too_much() {
            return self.misbehaved(PeerIndex(at as u8), "an announcement out of order", effects);
        }
        self.superblock.coming = state.generation;
        if defect(Defect::ComingNotRecorded) {
            self.superblock.coming = 0;
        }
        self.remember_replica(at);
        let session = self.peers[at].session;
        self.persist(After::GrowReady(session, state.generation), effects);
    }

    fn committed_came(&mut self, at: usize, state: RegisterState, effects: &mut Effects) {
        let in_order = state.order() >= self.register.order() && self.continues(&state);
        if self.by_majority() && self.leads_us(at) && self.continues(&state) && !in_order {
            // The majority told us of a later one first.
            return;
        }
        if !self.leads_us(at) || !in_order || self.is_persisting_too_much() {
            return self.misbehaved(PeerIndex(at as u8), "a commit out of order", effects);
        }
        let mine = self.superblock.replica;
        let joins = state.contains(mine) && self.superblock.coming == state.generation;
        let old = core::mem::replace(&mut self.register, state);
        self.superblock.register = self.register.clone();
        if joins {
            self.joined(at, self.register.generation);
            self.joined_others(at, self.register.generation);
        }
        self.takes_fenced &= self.register.contains(mine);
        self.members_changed(&old.set, effects);
        let generation = self.register.generation;
        effects.push(Effect::Note(Note::Committed { generation, what: "told by the primary" }));
        self.persist(After::Nothing, effects);
    }

    /// Whether a state belongs to the tenure that is followed, or ends it (R2a).
    fn continues(&self, state: &RegisterState) -> bool {
        state.basis == self.register.basis && state.tenure == self.register.tenure
    }

    fn remember_replica(&mut self, at: usize) {
        let replica = self.peers[at].replica();
        debug_assert_ne!(replica, ReplicaId::NONE);
        self.superblock.peers[at].replica = replica;
    }

    // ------------------------------------------------------------------ this replica is primary

    fn begin_leading(&mut self, at: usize, effects: &mut Effects) {
        self.agreed(at, "leads", effects);
        self.peers[at].link = Link::Leading(Lead::AwaitFollow);
    }

    /// R13: the union of the bits of both. The peer keeps its own until it is a member, so ours
    /// need not be durable.
    fn bitmap_came(&mut self, at: usize, runs: &[(u64, u64)], effects: &mut Effects) {
        let blocks = self.superblock.blocks();
        if self.peers[at].link != Link::Leading(Lead::AwaitFollow) {
            return self.misbehaved(PeerIndex(at as u8), "a bitmap out of order", effects);
        }
        for &(start, length) in runs {
            let Some(end) = start.checked_add(length).filter(|&end| end <= blocks) else {
                return self.misbehaved(PeerIndex(at as u8), "a bitmap out of bounds", effects);
            };
            if !defect(Defect::NoUnionOfBits) {
                self.peers[at].bitmap.insert(start..end);
            }
        }
    }

    fn follower_ready(&mut self, at: usize, effects: &mut Effects) {
        if self.peers[at].link != Link::Leading(Lead::AwaitFollow) {
            return self.misbehaved(PeerIndex(at as u8), "it follows out of order", effects);
        }
        self.plan_follower(at, effects);
    }

    /// Decides how the follower is brought up to date. Called again after it had to leave the set,
    /// or was held back.
    pub(crate) fn plan_follower(&mut self, at: usize, effects: &mut Effects) {
        let replica = self.peers[at].replica();
        if matches!(self.change, Some(Change::Shrink { replica: gone, .. }) if gone == replica) {
            // It is being taken out of the set: look again when that is committed.
            self.peers[at].link = Link::Leading(Lead::AwaitShrink);
            return;
        }
        self.tell_size(at, effects);
        let mine = Hello { size_bytes: self.sizes.served, ..self.hello(at) };
        let theirs = self.peers[at].hello.clone().expect("a follower has greeted");
        let dirty = self.peers[at].bitmap.blocks().count();
        let plan = handshake::plan(&mine, &theirs, &self.superblock.peers[at], dirty);
        if plan == Plan::Current {
            self.peers[at].link = Link::Leading(Lead::Current);
            self.peers[at].volatile_since = self.now;
            self.tell_register(at, effects);
            self.tell_replicas(effects);
            self.tell_current(at, effects);
            self.membership_changed(effects);
            return;
        }
        if self.register.contains(theirs.replica) {
            // It is a member and lacks something: nothing is acknowledged until it is out (R8).
            self.peers[at].link = Link::Leading(Lead::AwaitShrink);
            self.check_members(effects);
            return;
        }
        if self.hold_back(at, effects) {
            return;
        }
        let floor = &mut self.superblock.peers[at].floor;
        *floor = match plan {
            Plan::Full(_) => theirs.started_from,
            _ => theirs.started_from.max(*floor),
        };
        match plan {
            Plan::Full(_) => {
                let generation = self.register.generation;
                let record = &mut self.superblock.peers[at];
                record.replica = theirs.replica;
                record.all_dirty = true;
                record.base = generation;
                self.peers[at].bitmap.restart(generation);
                self.peers[at].bitmap.fill_recorded_elsewhere();
                self.peers[at].link = Link::Leading(Lead::AwaitPlan);
                let session = self.peers[at].session;
                self.persist(After::FullPlanned(PeerIndex(at as u8), session), effects);
            }
            _ => {
                self.superblock.peers[at].replica = theirs.replica;
                self.send_sync_start(at, false, effects);
            }
        }
        let full_because = if let Plan::Full(why) = plan { Some(why) } else { None };
        effects.push(Effect::Note(Note::ResyncStarted {
            peer: PeerIndex(at as u8),
            bytes: dirty_bytes(self.peers[at].bitmap.blocks().count()),
            full_because,
        }));
    }

    /// The plan of a full resync is durable.
    pub(crate) fn full_planned(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        effects: &mut Effects,
    ) {
        let at = usize::from(peer.0);
        if self.peers[at].session == session
            && self.peers[at].link == Link::Leading(Lead::AwaitPlan)
        {
            self.send_sync_start(at, true, effects);
        }
    }

    fn send_sync_start(&mut self, at: usize, full: bool, effects: &mut Effects) {
        self.peers[at].link = Link::Leading(Lead::AwaitSyncReady);
        self.tell_replicas(effects);
        let base = self.superblock.peers[at].base;
        self.send(PeerIndex(at as u8), Message::SyncStart { full, base }, None, effects);
    }

    fn sync_ready(&mut self, at: usize, effects: &mut Effects) {
        if self.peers[at].link != Link::Leading(Lead::AwaitSyncReady) {
            return self.misbehaved(PeerIndex(at as u8), "a resync out of order", effects);
        }
        // Blocks that clients wrote since the plan are in the bitmap too.
        let peer = &mut self.peers[at];
        peer.resync = Some(Resync::new(peer.bitmap.blocks()));
        peer.link = Link::Leading(Lead::Syncing);
        peer.volatile_since = self.now;
        self.tell_register(at, effects);
        self.go_on_with_resync(effects);
    }

    fn acknowledged(&mut self, at: usize, seq: u64, effects: &mut Effects) {
        let now = self.now;
        let Some(done) = self.peers[at].acknowledge(seq) else {
            let index = PeerIndex(at as u8);
            return self.misbehaved(index, "an acknowledgement of nothing", effects);
        };
        let peer = &mut self.peers[at];
        match done.what {
            Sent::Write { request, range, fua } => {
                if !fua {
                    peer.add_volatile(now, range);
                }
                if let Some(key) = request {
                    self.request_acknowledged(key, at, effects);
                }
            }
            Sent::Echo { request } => self.request_acknowledged(request, at, effects),
            Sent::Verify { .. } => {
                let index = PeerIndex(at as u8);
                return self.misbehaved(index, "it acknowledges a verify", effects);
            }
            Sent::Resync { range } => {
                // Its bit stays until a flush; should the session end before, it is copied again.
                self.resync_acknowledged(at, range);
            }
            Sent::Flush { purpose, mark } => {
                peer.flushed(now, mark);
                match purpose {
                    FlushPurpose::Barrier(number) => {
                        self.barrier_flushed(number, PeerIndex(at as u8), effects);
                    }
                    FlushPurpose::Resync(steps) => self.resync_flushed(at, steps, effects),
                    FlushPurpose::Join => self.join_flushed(at, effects),
                    FlushPurpose::Leave => self.leave_flushed(at, effects),
                    FlushPurpose::Heir => self.heir_flushed(effects),
                }
            }
        }
        if let Link::Leading(Lead::Joining(Join::Draining(before))) = self.peers[at].link
            && self.peers[at].all_acknowledged_before(before)
        {
            self.join_drained(at, effects);
        }
        // Room in the window may let a write start.
        if !self.queue.is_empty() {
            self.start_released(effects);
        }
    }

    // ------------------------------------------------------------------ the end of a session

    /// The driver lost a connection.
    pub(crate) fn link_lost(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        why: LinkLoss,
        effects: &mut Effects,
    ) {
        let at = usize::from(peer.0);
        if self.peers[at].session != session || self.peers[at].link == Link::Down {
            return;
        }
        if !self.peers[at].refused {
            self.peers[at].why = match why {
                LinkLoss::Closed => "the connection was closed".into(),
                LinkLoss::Io(errno) => alloc::format!("the connection failed (errno {errno})"),
                LinkLoss::Garbled => "it sent a broken frame".into(),
                LinkLoss::Silent => "it was silent for too long".into(),
            };
        }
        effects.push(Effect::Note(Note::PeerLost { peer, why }));
        self.end_session(at, effects);
    }

    /// Ends a session from our side because of what the peer did wrong.
    pub(crate) fn misbehaved(&mut self, peer: PeerIndex, why: &'static str, effects: &mut Effects) {
        self.drop_session(usize::from(peer.0), why, effects);
    }

    /// Ends a session from our side, to be taken up again after the usual delay.
    pub(crate) fn drop_session(&mut self, at: usize, why: &str, effects: &mut Effects) {
        self.peers[at].why = why.to_string();
        let (peer, lost) = (PeerIndex(at as u8), LinkLoss::Closed);
        effects.push(Effect::Note(Note::PeerLost { peer, why: lost }));
        self.close(at, Retry::Later, effects);
    }

    /// Closes a session.
    pub(crate) fn close(&mut self, at: usize, retry: Retry, effects: &mut Effects) {
        let session = self.peers[at].session;
        if self.peers[at].link == Link::Down && session == SessionId(0) {
            return;
        }
        effects.push(Effect::ClosePeer { peer: PeerIndex(at as u8), session, retry });
        self.end_session(at, effects);
    }

    /// What must happen at the end of a session, whoever ended it: what the peer may lack is
    /// dirty for it from now on, and nobody waits for it any more.
    fn end_session(&mut self, at: usize, effects: &mut Effects) {
        let was = core::mem::replace(&mut self.peers[at].link, Link::Down);
        self.peers[at].hello = None;
        self.peers[at].resync = None;
        self.end_verify(at, "the connection was lost", effects);
        self.peers[at].resize_asked = None;
        self.peers[at].room = RoomThere::NotAsked;
        match was {
            Link::Following => {
                self.end_told_verifies(at, effects);
                self.following = None;
                self.drop_unsubmitted(effects);
                self.leader_lost(effects);
            }
            Link::Leading(_) => self.follower_lost(at, effects),
            _ => {}
        }
        self.office_lost_link(at, effects);
        self.greet_waiting(effects);
    }

    fn follower_lost(&mut self, at: usize, effects: &mut Effects) {
        let outstanding: Vec<_> = self.peers[at].drain_outstanding().collect();
        self.peers[at].volatile_to_dirty();
        for frame in &outstanding {
            if let Sent::Write { range, .. } | Sent::Resync { range } = frame.what
                && !defect(Defect::OutstandingForgotten)
            {
                self.peers[at].bitmap.insert(range.dirty_blocks());
            }
        }
        self.note_lost_member();
        self.check_members(effects);
        for frame in outstanding {
            match frame.what {
                Sent::Write { request: Some(key), .. } | Sent::Echo { request: key } => {
                    self.request_acknowledged(key, at, effects);
                }
                Sent::Flush { purpose: FlushPurpose::Barrier(number), .. } => {
                    self.barrier_peer(number, PeerIndex(at as u8), effects);
                }
                _ => {}
            }
        }
        self.heir_lost(at, effects);
        self.start_queued(effects);
    }

    // ------------------------------------------------------------------ frames out, and time

    /// Orders a frame on a peer's present session.
    pub(crate) fn send(
        &mut self,
        peer: PeerIndex,
        message: Message,
        data: Option<BufId>,
        effects: &mut Effects,
    ) {
        let to = &mut self.peers[usize::from(peer.0)];
        to.last_sent = self.now;
        effects.push(Effect::SendPeer { peer, session: to.session, message, data });
    }

    /// When a peer was heard last. While the own disk is behind, the driver may have stopped
    /// reading the leader's link: that is not the leader's silence.
    pub(crate) fn last_heard(&self, at: usize) -> Time {
        let leads = self.following.is_some_and(|leader| usize::from(leader.peer.0) == at);
        if leads && !self.applied.is_empty() { self.now } else { self.peers[at].last_heard }
    }

    /// Pings silent links and ends dead ones.
    pub(crate) fn watch_links(&mut self, effects: &mut Effects) {
        let timing = self.config.timing;
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            if peer.link == Link::Down {
                continue;
            }
            let index = PeerIndex(at as u8);
            let hung = peer
                .oldest_outstanding()
                .into_iter()
                .chain(peer.resize_asked)
                .any(|sent| self.now.since(sent) >= timing.ack_limit);
            if self.now.since(self.last_heard(at)) >= timing.peer_silence || hung {
                let why = if hung { "it did not acknowledge in time" } else { "it was silent" };
                self.peers[at].why = why.into();
                let lost = Note::PeerLost { peer: index, why: LinkLoss::Silent };
                effects.push(Effect::Note(lost));
                self.close(at, Retry::Later, effects);
            } else if self.now.since(peer.last_sent) >= timing.ping_interval {
                self.send(index, Message::Ping, None, effects);
            }
        }
    }
}

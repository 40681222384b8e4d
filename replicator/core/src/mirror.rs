//! Three and more replicas: what two secondaries may differ in when their primary is gone (R13,
//! last clause). With one peer nothing of this happens.
//!
//! A primary that is gone took with it what it knew of its followers: which of its last writes
//! only some of them have, and which they may lose with their power. So each replica also keeps
//! what is needed towards every *other* replica P, whoever leads, such that at every moment
//!
//! ```text
//! every block in which two replicas differ, or may after a loss of power, is in the bitmap of one
//! of them for the other, or in an extent that is hot in the log of one of them
//! ```
//!
//! - **Mirror.** A follower makes an extent hot in its own log, durably, before it applies a write
//!   there. It lets the extent leave when its primary did (`Cooled`): after a flush of all that
//!   get writes. Members that had no part in that flush may lack the writes: dirty for them first.
//!   Where there is no room, extents leave with bits for everybody but the primary.
//! - **Bits for non-members.** A follower marks what it applies for every replica that is no
//!   member; and all that is hot for one that leaves the set, when it hears of that. Nothing that
//!   needs it is sent before it hears: register and frames come on one ordered session.
//! - **Resync.** Its blocks are marked and logged like writes: a follower that was away gets them
//!   from the primary, and somebody else that is still away lacks them. A full resync ends what was
//!   known of the others; then nothing need be logged.
//! - **Bases.** A commit that makes two followers members empties the bitmaps between them too,
//!   under its generation. Who missed that commit has another base: a full resync, never a guess.
//! - **Another leader.** What was hot under the old one becomes durable bits for everybody, and is
//!   told to the new one, before its first frame is applied. Who takes the office itself keeps the
//!   log and marks what is hot in it. Both halves meet when the survivors do: the union of R13.
//!
//! After a clean release all members are equal: the mirror ends, and with it the bits for members.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::block::{ByteRange, PeerIndex, ReplicaId, SessionId};
use crate::defect::{Defect, defect};
use crate::effect::Effects;
use crate::peer::{Lead, Link};
use crate::persist::After;
use crate::register::{Member, RegisterState};
use crate::replica::{Replica, Role};
use crate::wire::Message;

/// Lists of cold extents that wait for the one that is leaving; the rest leaves when room is
/// needed.
const COOLED_MAX: usize = 64;

/// Whose writes the log of a follower names.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Mirror {
    /// Tenure and place of the leader.
    of: Option<(u64, usize)>,
    /// Extents that left the leader's log, with the count of uses when it said so.
    cooled: VecDeque<(u64, Vec<u32>)>,
    /// The leader released its office: what is hot is equal on all members, and marked for others.
    is_over: bool,
}

/// Whether a frame's extents are hot.
pub(crate) enum Warmth {
    /// Durably: the frame may be applied.
    Hot,
    /// They will be.
    Asked,
    /// Something has to leave first.
    NoRoom,
}

impl Replica {
    /// Whether there are others than the two ends of a session.
    pub(crate) fn keeps_mirror(&self) -> bool {
        self.peers.len() > 1
    }

    /// Whether the log is written because a leader's frames need it.
    pub(crate) fn follows_with_mirror(&self) -> bool {
        self.keeps_mirror()
            && matches!(self.role, Role::Secondary)
            && self.following.is_some_and(|leader| leader.ready)
    }

    fn is_other_member(&self, at: usize) -> bool {
        self.register.contains(self.superblock.peers[at].replica)
    }

    // ------------------------------------------------------------------ following

    /// What was hot under another leader becomes durable bits before this one is followed.
    pub(crate) fn begin_mirror(&mut self, session: SessionId, effects: &mut Effects) {
        let Some(leader) = self.following else { return };
        let of = Some((leader.tenure, usize::from(leader.peer.0)));
        let is_empty = self.log.fill_level().0 == 0;
        if is_empty || self.mirror.of == of && !self.mirror.is_over {
            (self.mirror.of, self.mirror.is_over) = (of, false);
            return self.persist(After::FollowReady(session), effects);
        }
        self.mark_mirror();
        let all = 0..self.superblock.blocks();
        self.save_pages(alloc::vec![all], After::MirrorSaved(session), effects);
    }

    /// The bits are durable: the log begins anew for this leader.
    pub(crate) fn mirror_saved(&mut self, session: SessionId, effects: &mut Effects) {
        let Some(leader) = self.following.filter(|leader| leader.session == session) else {
            return;
        };
        self.restart_log();
        let of = Some((leader.tenure, usize::from(leader.peer.0)));
        self.mirror = Mirror { of, ..Mirror::default() };
        self.persist(After::FollowReady(session), effects);
    }

    /// This replica takes the office, or ends: what the mirror names may differ from everybody.
    pub(crate) fn end_mirror(&mut self) {
        if !self.keeps_mirror() {
            return;
        }
        self.mark_mirror();
        self.mirror = Mirror::default();
    }

    fn mark_mirror(&mut self) {
        if !self.mirror.is_over && !defect(Defect::MirrorForgotten) {
            self.hot_to_dirty();
        }
    }

    /// The same at an orderly stop. The leader knows by itself what this replica may lack.
    pub(crate) fn end_mirror_at_stop(&mut self) {
        if self.mirror.is_over {
            return;
        }
        let leader = self.mirror.of.map(|(_, at)| at);
        let hot: Vec<ByteRange> = self.log.hot_ranges().collect();
        for at in (0..self.peers.len()).filter(|&at| Some(at) != leader) {
            self.mark(at, &hot);
        }
    }

    fn mark(&mut self, at: usize, ranges: &[ByteRange]) {
        for &range in ranges {
            let blocks = self.blocks_of(range);
            self.peers[at].bitmap.insert(blocks);
        }
    }

    /// Marks a leader's frame for those outside the set. Whether its extents must be hot before it
    /// is applied: not where a full resync made everything dirty for all others.
    pub(crate) fn mark_for_others(
        &mut self,
        leader: PeerIndex,
        range: ByteRange,
        is_resync: bool,
    ) -> bool {
        if !self.keeps_mirror() || range.length == 0 {
            return false;
        }
        if is_resync && defect(Defect::ResyncNotMarked) {
            return false;
        }
        let blocks = self.blocks_of(range);
        let mut all_dirty = is_resync;
        for at in (0..self.peers.len()).filter(|&at| at != usize::from(leader.0)) {
            all_dirty &= self.superblock.peers[at].all_dirty;
            if !self.is_other_member(at) && !defect(Defect::BitNotSetByFollower) {
                self.peers[at].bitmap.insert(blocks.clone());
            }
        }
        !all_dirty && !defect(Defect::NoMirror)
    }

    /// Asks for the extents of a frame.
    pub(crate) fn warm(&mut self, range: ByteRange) -> Warmth {
        let has_room = self.log.is_hot(range) || self.log.want(range);
        if self.log.is_hot(range) {
            return Warmth::Hot;
        }
        self.log_keeper.starved |= !has_room;
        if has_room { Warmth::Asked } else { Warmth::NoRoom }
    }

    /// The leader's log has no use for these extents any more.
    pub(crate) fn cooled(
        &mut self,
        at: usize,
        extents: Vec<u32>,
        flushed: &[ReplicaId],
        effects: &mut Effects,
    ) {
        let known = extents.iter().all(|&extent| self.log.has_extent(extent));
        if !self.leads_us(at) || !known {
            return self.misbehaved(PeerIndex(at as u8), "cold extents out of order", effects);
        }
        if !self.keeps_mirror() || !flushed.contains(&self.superblock.replica) {
            // What this replica has of them may not be durable: they stay hot.
            return;
        }
        let ranges: Vec<ByteRange> =
            extents.iter().map(|&extent| crate::activity_log::range_of(extent)).collect();
        for other in (0..self.peers.len()).filter(|&other| other != at) {
            let replica = self.superblock.peers[other].replica;
            // Writes that a missing member lacks wait for its removal, with their extents; and who
            // follows hears of removals first. This marks what neither may ever have missed.
            let may_lack = self.is_other_member(other) && !flushed.contains(&replica);
            if may_lack {
                self.mark(other, &ranges);
            }
        }
        if self.mirror.cooled.len() >= COOLED_MAX {
            self.mirror.cooled.pop_front();
        }
        self.mirror.cooled.push_back((self.log.uses(), extents));
        self.let_cooled_go(effects);
    }

    fn let_cooled_go(&mut self, effects: &mut Effects) {
        while !self.log_keeper.evicting {
            let Some((uses, extents)) = self.mirror.cooled.pop_front() else { return };
            let leaving = self.log.pick(&extents, uses);
            if !leaving.is_empty() {
                self.begin_leaving(leaving);
                self.save_leaving(effects);
            }
        }
    }

    /// Room in a follower's log: what is not in use leaves with bits for everybody but the leader.
    pub(crate) fn make_room(&mut self, effects: &mut Effects) {
        let Some(leader) = self.following else { return };
        let (_, slots) = self.log.fill_level();
        let leaving = self.log.pick_unused(slots as usize / 4);
        if leaving.is_empty() {
            return;
        }
        for at in (0..self.peers.len()).filter(|&at| at != usize::from(leader.peer.0)) {
            self.mark(at, &leaving);
        }
        self.begin_leaving(leaving);
        self.save_leaving(effects);
    }

    /// Something left the log, or became hot in it.
    pub(crate) fn go_on_with_mirror(&mut self, effects: &mut Effects) {
        if self.follows_with_mirror() {
            self.let_cooled_go(effects);
            self.submit_waiting(effects);
            self.keep_log(effects);
        }
    }

    /// A full resync ends what was known of the others: durably, before its first block.
    pub(crate) fn forget_others(&mut self, at: usize) {
        for other in (0..self.peers.len()).filter(|&other| other != at) {
            self.forget_base(other);
        }
    }

    fn forget_base(&mut self, at: usize) {
        let record = &mut self.superblock.peers[at];
        record.base = 0;
        record.all_dirty = true;
        self.peers[at].bitmap.fill_recorded_elsewhere();
    }

    /// The primary says which replica is where: commits name replicas, bitmaps belong to places.
    pub(crate) fn replicas_named(
        &mut self,
        at: usize,
        replicas: &[(ReplicaId, alloc::boxed::Box<str>)],
        effects: &mut Effects,
    ) {
        if !self.leads_us(at) || self.is_persisting_too_much() {
            return self.misbehaved(PeerIndex(at as u8), "names out of order", effects);
        }
        if !self.keeps_mirror() {
            // The leader knows a third replica already, this node does not yet: when it does, that
            // one is new to it, and they meet with a full resync.
            return;
        }
        let mut changed = false;
        for (replica, node) in replicas {
            let place = self.peers.iter().position(|peer| peer.node == **node);
            let Some(other) = place.filter(|&other| other != at) else { continue };
            if self.superblock.peers[other].replica != *replica {
                self.superblock.peers[other].replica = *replica;
                self.superblock.peers[other].floor = 0;
                self.forget_base(other);
                changed = true;
            }
        }
        if changed {
            self.persist(After::Nothing, effects);
        }
    }

    // ------------------------------------------------------------------ the set changes

    /// Another register was taken over: who left the set may lack what is hot here, and with whom
    /// joined it this member begins anew.
    pub(crate) fn members_changed(&mut self, old: &[Member], effects: &mut Effects) {
        if !self.keeps_mirror() {
            return;
        }
        let mine = self.superblock.replica;
        let (next, generation) = (self.register.clone(), self.register.generation);
        let was_member = old.iter().any(|member| member.replica == mine);
        let leader = self.mirror.of.map(|(_, at)| at);
        for at in 0..self.peers.len() {
            let replica = self.superblock.peers[at].replica;
            let was = old.iter().any(|member| member.replica == replica);
            let is = next.contains(replica);
            if was && !is && Some(at) != leader && !defect(Defect::BitNotSetByFollower) {
                let hot: Vec<ByteRange> = self.log.hot_ranges().collect();
                self.mark(at, &hot);
            }
            if !was && is && was_member && next.contains(mine) {
                self.both_members(at, generation);
            }
        }
        self.released(&next, effects);
    }

    /// This replica became a member with a leader, and with all that were members then.
    pub(crate) fn joined_others(&mut self, leader: usize, generation: u64) {
        if !self.keeps_mirror() {
            return;
        }
        for at in (0..self.peers.len()).filter(|&at| at != leader) {
            if self.is_other_member(at) {
                self.both_members(at, generation);
            }
        }
    }

    fn both_members(&mut self, at: usize, generation: u64) {
        if defect(Defect::BaseKeptByFollower) {
            return;
        }
        let record = &mut self.superblock.peers[at];
        if record.base != generation {
            record.base = generation;
            record.all_dirty = false;
            self.peers[at].bitmap.restart(generation);
        }
    }

    /// All members of a clean release are equal, and nothing is under way.
    fn released(&mut self, state: &RegisterState, effects: &mut Effects) {
        let ends = state.released_clean
            && state.contains(self.superblock.replica)
            && matches!(self.role, Role::Secondary)
            && self.applied.is_empty();
        if !ends {
            return;
        }
        self.mirror.is_over = true;
        let all = 0..self.superblock.blocks();
        for at in 0..self.peers.len() {
            if self.is_other_member(at) && !self.superblock.peers[at].all_dirty {
                self.peers[at].bitmap.remove(all.clone());
            }
        }
        self.save_pages(alloc::vec![all], After::MirrorOver, effects);
    }

    /// Bits for those outside the set are durable: the log of an office that is over may go.
    pub(crate) fn mirror_over(&mut self, effects: &mut Effects) {
        if self.mirror.is_over && matches!(self.role, Role::Secondary) && self.following.is_none() {
            self.mirror = Mirror::default();
            self.restart_log();
            self.persist(After::Nothing, effects);
        }
    }

    // ------------------------------------------------------------------ leading

    /// Tells every follower which replica is where, and the newest set.
    pub(crate) fn tell_replicas(&mut self, effects: &mut Effects) {
        if !self.keeps_mirror() {
            return;
        }
        let mut replicas: Vec<(ReplicaId, alloc::boxed::Box<str>)> = Vec::new();
        for (peer, record) in self.peers.iter().zip(&self.superblock.peers) {
            let replica = if peer.is_led() { peer.replica() } else { record.replica };
            if replica != ReplicaId::NONE {
                replicas.push((replica, peer.node.as_str().into()));
            }
        }
        for at in 0..self.peers.len() {
            if self.peers[at].is_led() {
                let message = Message::Replicas(replicas.clone());
                self.send(PeerIndex(at as u8), message, None, effects);
            }
        }
    }

    /// A follower that missed a change of the set hears of it before the first frame.
    pub(crate) fn tell_register(&mut self, at: usize, effects: &mut Effects) {
        if self.keeps_mirror() {
            let state = alloc::boxed::Box::new(self.register.clone());
            self.send(PeerIndex(at as u8), Message::Committed(state), None, effects);
        }
    }

    /// Tells the followers what leaves the log.
    pub(crate) fn tell_cooled(&mut self, flushed: &[ReplicaId], effects: &mut Effects) {
        if !self.keeps_mirror() || !self.role.serves() {
            return;
        }
        let extents: Vec<u32> = self.log.evicting().collect();
        for at in 0..self.peers.len() {
            if self.peers[at].gets_writes() && !extents.is_empty() {
                let message = Message::Cooled { extents: extents.clone(), flushed: flushed.into() };
                self.send(PeerIndex(at as u8), message, None, effects);
            }
        }
    }
}

impl crate::peer::Peer {
    /// Whether it follows, and has said that it is ready to.
    pub(crate) fn is_led(&self) -> bool {
        matches!(self.link, Link::Leading(lead) if lead != Lead::AwaitFollow)
    }
}

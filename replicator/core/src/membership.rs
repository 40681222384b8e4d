//! The in-sync set as the primary keeps it: a member that is lost leaves before anything is
//! acknowledged without it (R3), a follower that is up to date joins (R4). One change at a time.

use alloc::boxed::Box;

use crate::block::{PeerIndex, ReplicaId, SessionId};
use crate::command::Answer;
use crate::defect::{Defect, defect};
use crate::effect::Effect;
use crate::effect::{Effects, Retry};
use crate::flush::FlushWaiter;
use crate::input::DiskFailure;
use crate::note::Note;
use crate::peer::{FlushPurpose, Join, Lead, Link};
use crate::persist::After;
use crate::register::{Member, RegisterState};
use crate::replica::{Replica, Role};
use crate::wire::Message;

/// A change of the register that this replica is making.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Change {
    /// A lost member leaves; first the own disk is flushed.
    Shrink { replica: ReplicaId, proposed: bool },
    /// A follower joins.
    Grow { peer: PeerIndex, session: SessionId },
    /// This replica takes the office.
    TakeOver,
    /// This replica gives the office up.
    Release,
    /// The own disk failed: the member that takes over makes durable what it has (R3), then this
    /// replica leaves.
    FlushHeir { peer: PeerIndex, session: SessionId },
    /// The office goes to nobody, without a clean release: the disk failed (R16), or the office was
    /// lost in this process. Only with a majority.
    HandOver,
    /// A set of the own tenure that the majority has committed is recorded.
    Adopt,
    /// The authority goes to a peer.
    GiveAuthority { peer: PeerIndex, session: SessionId },
}

impl Replica {
    /// R1, R5a: whether writes and flushes may be acknowledged now.
    pub(crate) fn acks_allowed(&self) -> bool {
        self.members_complete()
            && (self.holds_lease(self.now) || defect(Defect::LeaseIgnoredForAcks))
    }

    /// R5a: whether reads may be answered now.
    pub(crate) fn reads_allowed(&self) -> bool {
        if self.config.confirms_reads {
            // R5e: a member that is missing may be the one that took over.
            return self.acks_allowed();
        }
        self.holds_lease(self.now) || defect(Defect::LeaseIgnoredForReads)
    }

    /// R1: every member of the newest known set, and every replica proposed for it, is there and
    /// has to acknowledge too.
    pub(crate) fn members_complete(&self) -> bool {
        if !self.role.serves() || self.hands_disk_over() {
            return false;
        }
        if defect(Defect::AckWithoutMember) {
            return true;
        }
        let proposed = match self.change {
            Some(Change::Grow { peer, session }) => {
                let peer = &self.peers[usize::from(peer.0)];
                peer.session == session && peer.is_required()
            }
            _ => true,
        } || defect(Defect::UnknownOutcomeIsFailed);
        let leaves = |replica| {
            matches!(self.change, Some(Change::Shrink { replica: gone, .. })
            if gone == replica && defect(Defect::AckWhileRemovalProposed))
        };
        // What a majority committed counts before it is recorded, and the old set until then.
        let recorded: &[Member] =
            if self.by_majority() { &self.superblock.register.set } else { &[] };
        proposed
            && self.register.set.iter().chain(recorded).all(|member| {
                member.replica == self.superblock.replica
                    || leaves(member.replica)
                    || self.peer_of(member.replica).is_some_and(|at| self.peers[at].is_required())
            })
    }

    /// The peer that is connected as this replica.
    pub(crate) fn peer_of(&self, replica: ReplicaId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.replica() == replica)
    }

    /// The peer that this replica was last, connected or not.
    pub(crate) fn peer_known_as(&self, replica: ReplicaId) -> Option<usize> {
        self.superblock.peers.iter().position(|record| record.replica == replica)
    }

    /// Starts to remove a member that is lost, if there is one and nothing else is changing.
    pub(crate) fn check_members(&mut self, effects: &mut Effects) {
        let waits = self.change.is_some() || self.majority.is_busy() || self.marks_unsaved();
        let may_propose = self.role.serves()
            || defect(Defect::SecondaryProposes) && matches!(self.role, Role::Secondary);
        if !may_propose || waits || self.metadata_failed {
            return;
        }
        let in_grace = self.now.since(self.office_since) < self.config.timing.join_grace;
        let lost = self.register.set.iter().map(|member| member.replica).find(|&replica| {
            replica != self.superblock.replica
                && match self.peer_of(replica) {
                    Some(at) => match self.peers[at].link {
                        Link::Waiting | Link::Greeting(_) | Link::Leading(Lead::AwaitFollow) => {
                            !in_grace
                        }
                        _ => !self.peers[at].is_required(),
                    },
                    // After a hand-over the others may take a moment to come.
                    None => !in_grace || self.lost_in_office,
                }
        });
        if !self.may_leave(lost, effects) {
            return;
        }
        if let Some(replica) = lost {
            self.change = Some(Change::Shrink { replica, proposed: false });
            if defect(Defect::NoFlushAtShrink) {
                return self.shrink_flushed(Ok(()), effects);
            }
            self.flush_disk(FlushWaiter::Shrink, effects);
        }
    }

    /// R3: the own disk is flushed; propose. When it cannot be flushed, the copy of the lost member
    /// may be the better one: it stays a member, and this replica stops (R16).
    pub(crate) fn shrink_flushed(
        &mut self,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let Some(Change::Shrink { replica, proposed: false }) = self.change else { return };
        if result.is_err() {
            self.disk_failed = true;
            return self.step_down(None, effects);
        }
        let mut next = self.register.without(replica);
        next.sole = self.by_majority() && next.set.len() == 1;
        self.propose(Change::Shrink { replica, proposed: true }, next, effects);
    }

    /// Proposes a change: to a majority, or it is committed when it is durable at the authority,
    /// which is this node.
    pub(crate) fn propose(&mut self, change: Change, next: RegisterState, effects: &mut Effects) {
        self.change = Some(change);
        self.change_number += 1;
        if self.by_majority() {
            return self.ask_majority(next, effects);
        }
        self.superblock.register = next;
        self.persist(After::Committed(self.change_number), effects);
    }

    /// The change is committed, and durable here.
    pub(crate) fn change_committed(&mut self, number: u64, effects: &mut Effects) {
        // A change that was given up meanwhile has no say in the next one.
        let Some(change) = self.change.take_if(|_| number == self.change_number) else { return };
        let old = core::mem::replace(&mut self.register, self.superblock.register.clone());
        let what = match change {
            Change::Shrink { .. } => "a member left the in-sync set",
            Change::Grow { .. } => "a replica joined the in-sync set",
            Change::TakeOver => "the office was taken",
            Change::Release => "the office was released",
            Change::HandOver | Change::FlushHeir { .. } => "the office was given up",
            Change::Adopt => "a set that was committed before",
            Change::GiveAuthority { .. } => "the authority was given away",
        };
        let generation = self.register.generation;
        effects.push(Effect::Note(Note::Committed { generation, what }));
        if matches!(change, Change::Shrink { .. } | Change::Adopt) {
            self.count_drops(&old);
        }
        match change {
            Change::Shrink { .. } => self.shrink_committed(effects),
            Change::Grow { peer, session } => self.grow_committed(peer, session, effects),
            Change::TakeOver => self.office_taken(effects),
            Change::Release => self.office_released(effects),
            Change::HandOver => self.answer_demotion(Ok(Answer::Done), effects),
            Change::FlushHeir { .. } => unreachable!("nothing is proposed yet"),
            Change::Adopt => self.review_members(effects),
            Change::GiveAuthority { peer, session } => {
                let at = usize::from(peer.0);
                if self.peers[at].session == session && self.peers[at].link == Link::Idle {
                    let state = Box::new(self.register.clone());
                    self.send(peer, Message::AuthorityGiven(state), None, effects);
                }
            }
        }
        self.announce_waiting(effects);
        self.membership_changed(effects);
        self.greet_waiting(effects);
        self.take_up_pending(effects);
    }

    /// What a change of the set, or of who is there, sets free.
    pub(crate) fn membership_changed(&mut self, effects: &mut Effects) {
        self.check_members(effects);
        self.answer_held(effects);
        self.start_queued(effects);
        self.requests_drained(effects);
    }

    pub(crate) fn shrink_committed(&mut self, effects: &mut Effects) {
        self.tell_followers(effects);
        for at in 0..self.peers.len() {
            if self.peers[at].link == Link::Leading(Lead::AwaitShrink) {
                self.plan_follower(at, effects);
            }
            self.finish_leaving(at, effects);
        }
    }

    /// Every follower keeps a copy of the register.
    fn tell_followers(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            let follows = matches!(
                self.peers[at].link,
                Link::Leading(
                    Lead::HeldBack { .. } | Lead::Syncing | Lead::Current | Lead::Joining(_)
                )
            );
            if follows {
                let state = Box::new(self.register.clone());
                self.send(PeerIndex(at as u8), Message::Committed(state), None, effects);
            }
        }
    }

    // ------------------------------------------------------------------ joining (R4)

    /// R4b: the bitmap is empty and no step is under way. From now on its acknowledgement is
    /// required; what was sent before is waited for.
    pub(crate) fn start_joining(&mut self, at: usize, effects: &mut Effects) {
        let before = self.peers[at].next_seq();
        self.peers[at].link = Link::Leading(Lead::Joining(Join::Draining(before)));
        if self.peers[at].all_acknowledged_before(before) || defect(Defect::JoinWithFramesOut) {
            self.join_drained(at, effects);
        }
    }

    /// R4c: one flush covers everything it received.
    pub(crate) fn join_drained(&mut self, at: usize, effects: &mut Effects) {
        self.peers[at].link = Link::Leading(Lead::Joining(Join::Flushing));
        if defect(Defect::GrowWithoutFlush) {
            return self.join_flushed(at, effects);
        }
        self.send_flush(PeerIndex(at as u8), FlushPurpose::Join, effects);
    }

    /// R4d: it makes the coming generation durable.
    pub(crate) fn join_flushed(&mut self, at: usize, effects: &mut Effects) {
        if self.peers[at].link != Link::Leading(Lead::Joining(Join::Flushing)) {
            // It asked to leave meanwhile.
            return;
        }
        assert!(self.peers[at].bitmap.blocks().is_empty(), "a joining replica has dirty blocks");
        self.announce(at, effects);
    }

    fn announce(&mut self, at: usize, effects: &mut Effects) {
        let hello = self.peers[at].hello.as_ref().expect("a follower has greeted");
        let next = self.register.with(hello.replica, hello.incarnation);
        self.peers[at].link = Link::Leading(Lead::Joining(Join::Recording(next.generation)));
        self.send(PeerIndex(at as u8), Message::Grow(Box::new(next)), None, effects);
    }

    /// A change is over: who was ready to join meanwhile gets a new generation.
    pub(crate) fn announce_waiting(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            if self.peers[at].link == Link::Leading(Lead::Joining(Join::Waiting)) {
                self.announce(at, effects);
            }
        }
    }

    /// R4e: propose, unless the register moved on meanwhile.
    pub(crate) fn grow_ready(&mut self, at: usize, generation: u64, effects: &mut Effects) {
        let index = PeerIndex(at as u8);
        if self.peers[at].link != Link::Leading(Lead::Joining(Join::Recording(generation))) {
            return self.misbehaved(index, "it joins out of order", effects);
        }
        if self.change.is_some() || self.majority.is_busy() {
            // Announced again when that is over: until then the answer could only be the same.
            self.peers[at].link = Link::Leading(Lead::Joining(Join::Waiting));
            return;
        }
        if generation != self.register.generation + 1 {
            return self.announce(at, effects);
        }
        let fences = self.fences();
        let peer = &mut self.peers[at];
        peer.link = Link::Leading(Lead::Joining(Join::Proposed));
        peer.may_take = fences;
        let session = peer.session;
        let hello = peer.hello.as_ref().expect("a follower has greeted");
        let next = self.register.with(hello.replica, hello.incarnation);
        // The commit empties the bitmaps between the two members in the same superblock (R13).
        let record = &mut self.superblock.peers[at];
        if !defect(Defect::BaseKeptAtGrowth) {
            record.base = next.generation;
            peer.bitmap.restart(next.generation);
        }
        record.all_dirty = false;
        self.propose(Change::Grow { peer: index, session }, next, effects);
    }

    fn grow_committed(&mut self, peer: PeerIndex, session: SessionId, effects: &mut Effects) {
        let at = usize::from(peer.0);
        let still_here = self.peers[at].session == session
            && self.peers[at].link == Link::Leading(Lead::Joining(Join::Proposed));
        if !still_here {
            return;
        }
        let sent_bytes = self.peers[at].resync.take().map_or(0, |resync| resync.sent_bytes);
        self.peers[at].link = Link::Leading(Lead::Current);
        self.tell_followers(effects);
        self.tell_current(at, effects);
        effects.push(Effect::Note(Note::ResyncFinished { peer, sent_bytes }));
        self.mended(at, effects);
    }

    // ------------------------------------------------------------------ leaving

    /// A follower wants to leave: it gets nothing new, everything sent becomes durable there,
    /// then it is taken out of the set; so nothing will be missing but what is written meanwhile.
    pub(crate) fn leave_asked(&mut self, at: usize, sequence: u64, effects: &mut Effects) {
        // It marks its disk clean after this: one that comes back without the mark is older (R12).
        let floor = &mut self.superblock.peers[at].floor;
        *floor = (*floor).max(sequence.saturating_add(1));
        self.peers[at].may_take = false;
        self.peers[at].flapping.leaves = true;
        match self.peers[at].link {
            Link::Leading(Lead::Current | Lead::Joining(_) | Lead::Syncing) => {
                self.peers[at].link = Link::Leading(Lead::Leaving { flushed: false });
                self.peers[at].resync = None;
                self.send_flush(PeerIndex(at as u8), FlushPurpose::Leave, effects);
                self.end_verify(at, "it wants to leave", effects);
                self.check_members(effects);
                self.start_queued(effects);
            }
            Link::Leading(Lead::Leaving { .. }) => {}
            _ => self.let_go(at, effects),
        }
    }

    /// Everything it acknowledged is durable there.
    pub(crate) fn leave_flushed(&mut self, at: usize, effects: &mut Effects) {
        self.peers[at].link = Link::Leading(Lead::Leaving { flushed: true });
        self.finish_leaving(at, effects);
    }

    /// It goes when it knows that it is out: alone later, it must not think that it has everything
    /// (D12 of SCENARIOS.md).
    fn finish_leaving(&mut self, at: usize, effects: &mut Effects) {
        let ready = self.peers[at].link == Link::Leading(Lead::Leaving { flushed: true });
        if ready && !self.register.contains(self.peers[at].replica()) {
            let state = Box::new(self.register.clone());
            self.send(PeerIndex(at as u8), Message::Committed(state), None, effects);
            self.let_go(at, effects);
        }
    }

    fn let_go(&mut self, at: usize, effects: &mut Effects) {
        self.send(PeerIndex(at as u8), Message::LeaveDone, None, effects);
        self.peers[at].why = "it left orderly".into();
        self.close(at, Retry::Later, effects);
    }

    /// Whether this replica is primary, and a member is missing since it took office.
    pub(crate) fn note_lost_member(&mut self) {
        if matches!(self.role, Role::Primary | Role::Demoting) {
            self.lost_in_office = true;
        }
    }

    /// The peer that a member entry belongs to, for messages to people.
    pub(crate) fn node_of(&self, replica: ReplicaId) -> &str {
        if replica == self.superblock.replica {
            &self.config.node
        } else {
            self.peer_known_as(replica).map_or("an unknown replica", |at| &self.peers[at].node)
        }
    }
}

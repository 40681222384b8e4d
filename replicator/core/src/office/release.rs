//! Giving the office up orderly (R6c), and losing it: to a newer primary, or to the own disk.

use alloc::boxed::Box;

use super::busy;
use crate::block::{PeerIndex, Ticket};
use crate::command::{Answer, Refusal};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::flush::{BarrierPurpose, FlushWaiter};
use crate::handshake;
use crate::membership::Change;
use crate::note::Note;
use crate::peer::{FlushPurpose, Lead, Link};
use crate::persist::After;
use crate::register::RegisterState;
use crate::replica::{Replica, Role};
use crate::wire::{Hello, Message};

impl Replica {
    pub(super) fn demote(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        match self.role {
            Role::Secondary if self.by_majority() && self.change.is_none() => {
                // An office that is only in the register stands in everybody's way.
                if self.register.primary == Some(self.superblock.replica) {
                    return self.give_up_office(ticket, effects);
                }
                return Ok(Some(Answer::Already));
            }
            Role::Secondary => return Ok(Some(Answer::Already)),
            Role::Primary => {}
            _ => return Err(busy(self.role.name())),
        }
        self.demotion_ticket = Some(ticket);
        self.begin_demotion(effects);
        Ok(None)
    }

    pub(super) fn begin_demotion(&mut self, effects: &mut Effects) {
        self.set_role(Role::Demoting, effects);
        effects.push(Effect::CloseDevice { forced: false });
        self.requests_drained(effects);
    }

    /// R6c: drained; now one flush on every member, the bits of the log, and the release.
    pub(crate) fn requests_drained(&mut self, effects: &mut Effects) {
        let drained = self.requests.is_empty() || defect(Defect::ReleaseWithoutDrain);
        if !drained || !self.active.is_empty() && self.role.is_deposed() {
            return;
        }
        match self.role {
            Role::Demoting
                if !self.releasing
                    && self.members_complete()
                    && self.members_have_one_size()
                    && self.change.is_none()
                    && !self.majority.is_busy() =>
            {
                self.releasing = true;
                if defect(Defect::ReleaseWithoutFlush) {
                    return self.release_flushed(effects);
                }
                self.start_barrier(BarrierPurpose::Release, effects);
            }
            Role::Deposed => self.deposed_drained(effects),
            _ => {}
        }
    }

    pub(crate) fn release_flushed(&mut self, effects: &mut Effects) {
        let all = 0..self.superblock.blocks();
        self.save_pages(alloc::vec![all], After::Release, effects);
    }

    pub(crate) fn release_saved(&mut self, effects: &mut Effects) {
        if self.role != Role::Demoting {
            return;
        }
        let is_complete = self.members_complete() && self.members_have_one_size();
        if !is_complete || self.change.is_some() || self.log_is_writing() {
            // A member was lost meanwhile: once more when it is out of the set.
            self.releasing = false;
            return;
        }
        let mut next = self.register.clone();
        next.generation += 1;
        next.primary = None;
        next.released_clean = true;
        next.sole = false;
        if !defect(Defect::ReleaseKeepsLog) {
            self.restart_log();
        }
        self.propose(Change::Release, next, effects);
    }

    pub(crate) fn office_released(&mut self, effects: &mut Effects) {
        self.releasing = false;
        // From here on the end of a session removes nobody from the set: it was released as it is.
        self.set_role(Role::Secondary, effects);
        for at in 0..self.peers.len() {
            if matches!(self.peers[at].link, Link::Leading(Lead::Current)) {
                let state = Box::new(self.register.clone());
                self.send(PeerIndex(at as u8), Message::Committed(state), None, effects);
            }
            self.close(at, Retry::Now, effects);
        }
        if let Some(ticket) = self.demotion_ticket.take() {
            effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        }
        self.continue_stop(effects);
    }

    // ------------------------------------------------------------------ losing the office

    /// A peer knows a newer state: this office is over (R2). What it knows is kept, so that no
    /// later promotion here forgets it.
    pub(crate) fn deposed(&mut self, at: usize, theirs: &Hello, effects: &mut Effects) {
        let next = if handshake::diverged_from(&self.hello(at), theirs) {
            self.superblock.diverged = true;
            None
        } else {
            Some(theirs.register.clone())
        };
        self.step_down(next, effects);
        self.peers[at].why = "it knows of a newer primary".into();
    }

    /// Ends the office without a release: nothing is served any more, what may differ becomes
    /// durable dirty bits (R9), then the peers are met again. A change that was being made is void:
    /// nothing was acknowledged under it.
    pub(crate) fn step_down(&mut self, next: Option<RegisterState>, effects: &mut Effects) {
        self.change = None;
        self.releasing = false;
        if self.by_majority() && self.superblock.register.order() > self.register.order() {
            // Committed, and on its way to the disk.
            self.register = self.superblock.register.clone();
        }
        if let Some(next) = next {
            self.superblock.tenure = self.superblock.tenure.max(next.tenure);
            self.register = next;
        }
        self.superblock.register = self.register.clone();
        self.set_role(Role::Deposed, effects);
        effects.push(Effect::CloseDevice { forced: true });
        for at in 0..self.peers.len() {
            self.close(at, Retry::Now, effects);
        }
        self.fail_requests(effects);
        self.requests_drained(effects);
    }

    fn deposed_drained(&mut self, effects: &mut Effects) {
        if !self.deposing {
            self.deposing = true;
            self.flush_disk(FlushWaiter::Deposed, effects);
        }
    }

    pub(crate) fn deposed_flushed(&mut self, effects: &mut Effects) {
        let keeps = !defect(Defect::HotForgottenWhenDeposed);
        let extents = if keeps { self.hot_to_dirty() } else { 0 };
        effects.push(Effect::Note(Note::HotExtentsMarked { extents }));
        let all = 0..self.superblock.blocks();
        self.save_pages(alloc::vec![all], After::Deposed, effects);
    }

    /// The bits are durable: the log begins anew, durably with what is known of the register.
    pub(crate) fn deposed_saved(&mut self, effects: &mut Effects) {
        self.restart_log();
        self.persist(After::SteppedDown, effects);
    }

    /// A plain secondary from now on.
    pub(crate) fn stepped_down(&mut self, effects: &mut Effects) {
        self.deposing = false;
        self.set_role(Role::Secondary, effects);
        self.greet_waiting(effects);
        self.take_up_pending(effects);
        if let Some(ticket) = self.demotion_ticket.take() {
            effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        }
        self.continue_stop(effects);
    }

    // ------------------------------------------------------------------ a primary's own disk

    /// Whether no other replica holds everything.
    pub(crate) fn is_last_member(&self) -> bool {
        self.heir().is_none()
    }

    fn heir(&self) -> Option<usize> {
        self.peers.iter().position(|peer| {
            peer.link == Link::Leading(Lead::Current)
                || defect(Defect::LastMemberDetaches) && peer.gets_writes()
        })
    }

    /// Whether a primary whose disk failed is about to leave: nothing is answered.
    pub(crate) fn hands_disk_over(&self) -> bool {
        matches!(self.change, Some(Change::FlushHeir { .. } | Change::HandOver))
    }

    /// R16: the primary's disk failed. When another member holds everything, that one flushes, and
    /// then this replica leaves the set and the other one gets the authority: it learns of it when
    /// they meet again, after it is durable here. The last member goes on, and every failure is
    /// told.
    pub(crate) fn primary_disk_failed(&mut self, effects: &mut Effects) {
        if self.hands_disk_over() {
            return;
        }
        let Some(heir) = self.heir() else {
            if self.releasing && !defect(Defect::ReleaseAfterFailedFlush) {
                // R6c: a flush failed, so the release cannot call the data durable. Nor does the
                // replica take up again what the operator ended.
                let next = (!self.by_majority()).then(|| RegisterState {
                    generation: self.register.generation + 1,
                    primary: None,
                    released_clean: false,
                    ..self.register.clone()
                });
                self.step_down(next, effects);
            }
            return;
        };
        self.disk_failed = true;
        if self.change.is_some() || self.by_majority() && self.majority.is_busy() {
            return self.step_down(None, effects);
        }
        let (peer, session) = (PeerIndex(heir as u8), self.peers[heir].session);
        self.change = Some(Change::FlushHeir { peer, session });
        if defect(Defect::HeirNotFlushed) {
            return self.heir_flushed(effects);
        }
        self.send_flush(peer, FlushPurpose::Heir, effects);
    }

    /// R3: what the heir has is durable there; now this replica may leave the set.
    pub(crate) fn heir_flushed(&mut self, effects: &mut Effects) {
        let Some(Change::FlushHeir { peer, .. }) = self.change else { return };
        self.change = None;
        let heir = usize::from(peer.0);
        if self.by_majority() {
            self.propose_hand_over(effects);
            for at in 0..self.peers.len() {
                self.close(at, Retry::Now, effects);
            }
            return;
        }
        let mut next = self.register.without(self.superblock.replica);
        next.primary = None;
        next.authority = Some(self.peers[heir].replica());
        next.released_clean = false;
        self.step_down(Some(next), effects);
    }

    /// Nobody can take over for now: the set stays as it is, since what the heir had may not be
    /// durable there.
    pub(crate) fn heir_lost(&mut self, at: usize, effects: &mut Effects) {
        if let Some(Change::FlushHeir { peer, .. }) = self.change
            && usize::from(peer.0) == at
        {
            self.change = None;
            self.step_down(None, effects);
        }
    }
}

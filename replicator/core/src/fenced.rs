//! Two data nodes that fence each other by themselves (SAFETY.md "No witness"). The one that takes
//! over must lack nothing, so the primary acknowledges nothing alone before the lost member is off
//! for sure, or has promised to stand back.
//!
//! Each side has a flag. `takes_fenced`, on the secondary: it may take over once a fence of the
//! primary is confirmed. It is set when the primary, in a session, says that this replica is a
//! member and in sync, and cleared before the greeting of every session, by a promise to stand
//! back, and by a restart. `may_take`, on the primary: the peer's flag may be set. It is set before
//! the peer can learn that it is in sync, and cleared when the peer has answered to the greeting of
//! a session (it had cleared its own before), when it leaves, when it has promised, and when it is
//! off, which ended its process. So the peer's flag is never set while ours is clear, and a member
//! leaves the set only while ours is clear: whoever takes over was in the set all the time.

use alloc::format;

use crate::block::{PeerIndex, ReplicaId, SessionId, Ticket};
use crate::command::{Answer, Refusal};
use crate::config::RegisterKeeper;
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::note::Note;
use crate::office::busy;
use crate::peer::Link;
use crate::replica::{Replica, Role};
use crate::status::FenceWait;
use crate::time::Time;
use crate::wire::Message;

impl Replica {
    pub(crate) fn fences(&self) -> bool {
        self.config.register == RegisterKeeper::FencedSuperblock
    }

    // ------------------------------------------------------------------ on the primary

    /// Whether the lost member, if there is one, may leave the set now. When not, that is waited
    /// for: nothing is acknowledged meanwhile (R1).
    pub(crate) fn may_leave(&mut self, lost: Option<ReplicaId>, effects: &mut Effects) -> bool {
        let holds_it = |replica: &ReplicaId| {
            let known = self.peer_of(*replica).or_else(|| self.peer_known_as(*replica));
            // A replica that is nobody's any more was on a node that is still there.
            let all = 0..self.peers.len();
            all.into_iter().find(|&at| known.is_none_or(|it| it == at) && self.peers[at].may_take)
        };
        let holder = lost.as_ref().filter(|_| self.fences()).and_then(holds_it);
        let Some(at) = holder.filter(|_| !defect(Defect::LeavesUnfenced)) else {
            self.awaits_fence = None;
            return true;
        };
        let peer = PeerIndex(at as u8);
        if self.awaits_fence.is_none_or(|(other, _)| other != peer) {
            self.awaits_fence = Some((peer, self.now));
            effects.push(Effect::Note(Note::FenceAwaited { peer }));
        }
        false
    }

    /// A lost peer is off or stands back; found out after that session with it.
    pub(crate) fn peer_is_off(
        &mut self,
        peer: PeerIndex,
        session: SessionId,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        let it = &mut self.peers[usize::from(peer.0)];
        if it.session != session || !matches!(it.link, Link::Down | Link::Waiting) {
            return Err(Refusal {
                code: "peer_is_heard",
                rule: "No witness",
                why: format!("a session with {} began since that was found out", it.node),
                next: "look at replctl status".into(),
            });
        }
        if !core::mem::replace(&mut it.may_take, false) {
            return Ok(Some(Answer::Already));
        }
        self.membership_changed(effects);
        Ok(Some(Answer::Done))
    }

    /// The peer is a member and in sync: it learns that, and may take over from now on.
    pub(crate) fn tell_current(&mut self, at: usize, effects: &mut Effects) {
        if self.fences() {
            self.peers[at].may_take = true;
            self.send(PeerIndex(at as u8), Message::InSync, None, effects);
        }
    }

    pub(crate) fn fence_wait(&self, now: Time) -> Option<FenceWait> {
        let (peer, since) = self.awaits_fence.filter(|_| self.role.serves())?;
        let session = self.peers[usize::from(peer.0)].session;
        Some(FenceWait { peer, session, since: now.since(since) })
    }

    // ------------------------------------------------------------------ on the secondary

    /// The primary said so; maybe before it heard that this replica is about to leave.
    pub(crate) fn in_sync_with(&mut self, at: usize) {
        if self.stopping.is_some() {
            return;
        }
        let is_member = self.register.contains(self.superblock.replica);
        self.takes_fenced =
            self.fences() && self.leads_us(at) && is_member && !self.superblock.syncing;
    }

    /// The session ends with the promise: what is still on its way in it would break that.
    pub(crate) fn stand_back(&mut self, effects: &mut Effects) -> Result<Option<Answer>, Refusal> {
        if !matches!(self.role, Role::Secondary) || self.change.is_some() {
            return Err(busy(self.role.name()));
        }
        self.takes_fenced &= defect(Defect::PromiseNotKept);
        for at in 0..self.peers.len() {
            if self.peers[at].link != Link::Down {
                self.close(at, Retry::Later, effects);
            }
        }
        Ok(Some(Answer::Done))
    }

    /// The old primary is fenced, which is confirmed.
    pub(crate) fn take_fenced(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        if self.fences() && !self.takes_fenced && !matches!(self.role, Role::Primary) {
            return Err(Refusal {
                code: "stands_back",
                rule: "No witness",
                why: "since this replica heard the primary last it was not in sync with it, was \
                      restarted, or promised to stand back: the primary may have acknowledged \
                      writes alone"
                    .into(),
                next: "bring the old primary back; or, if its data are gone for ever: replctl \
                       promote RESOURCE --old-primary-is-off"
                    .into(),
            });
        }
        self.promote(ticket, true, false, false, effects)
    }
}

//! The office of primary: taking it, giving it up, losing it, and the operator's commands.
//!
//! ```text
//!   secondary --promote--> promoting --committed--> primary --demote--> demoting --released--+
//!       ^                     | refused                 | deposed                            |
//!       +---------------------+-------------------------+------------------------------------+
//! ```

pub(crate) mod promotion;
mod release;
mod stop;

use alloc::boxed::Box;
use alloc::format;

use crate::block::{PeerIndex, ReplicaId, Ticket};
use crate::command::{Answer, Command, Refusal};
use crate::effect::{Effect, Effects, Retry};
use crate::flapping::Flapping;
use crate::membership::Change;
use crate::note::Note;
use crate::persist::After;
use crate::replica::{Replica, Role};

pub(crate) use promotion::{Phase, Promotion};
pub(crate) use stop::Stopping;

impl Replica {
    /// An operator's command.
    pub(crate) fn ordered(&mut self, ticket: Ticket, command: Command, effects: &mut Effects) {
        if matches!(self.role, Role::Starting) {
            self.early.push((ticket, command));
            return;
        }
        let result = match command {
            Command::Promote { old_primary_is_off, allow_data_loss, alone } => {
                self.promote(ticket, old_primary_is_off, allow_data_loss, alone, effects)
            }
            Command::TakeFenced => self.take_fenced(ticket, effects),
            Command::PeerIsOff(peer, session) => self.peer_is_off(peer, session, effects),
            Command::StandBack => self.stand_back(effects),
            Command::Demote => self.demote(ticket, effects),
            Command::Connect(peer) => {
                let at = usize::from(peer.0);
                let was = core::mem::take(&mut self.peers[at].disconnected);
                let is_news = self.forgive_drops(at, effects) || was;
                Ok(Some(if is_news { Answer::Done } else { Answer::Already }))
            }
            Command::Disconnect(peer) => {
                let at = usize::from(peer.0);
                self.peers[at].disconnected = true;
                self.peers[at].flapping.leaves = true;
                self.peers[at].why = "an operator disconnected it".into();
                self.close(at, Retry::Never, effects);
                Ok(Some(Answer::Done))
            }
            Command::Invalidate => self.invalidate(ticket, effects),
            Command::ResyncFull(peer) => self.resync_full(peer, effects),
            Command::DiscardDiverged => self.discard_diverged(ticket, effects),
            Command::Verify { repair } => self.order_verify(ticket, Some(repair), effects),
            Command::CancelVerify => self.order_verify(ticket, None, effects),
            Command::Resize(size) => self.resize(ticket, size, effects),
            Command::Stop => self.stop(ticket, effects),
        };
        match result {
            Ok(Some(answer)) => effects.push(Effect::AnswerOperator { ticket, result: Ok(answer) }),
            Ok(None) => {}
            Err(refusal) => {
                effects.push(Effect::AnswerOperator { ticket, result: Err(Box::new(refusal)) });
            }
        }
    }

    // ------------------------------------------------------------------ other commands

    fn invalidate(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        if !matches!(self.role, Role::Secondary) || self.change.is_some() {
            return Err(Refusal {
                code: "not_secondary",
                rule: "R16",
                why: format!("this replica is {}", self.role.name()),
                next: "invalidate a secondary; demote this node first".into(),
            });
        }
        let mine = self.superblock.replica;
        let state = self.majority.state_that_went_back().unwrap_or(&self.register);
        if state.contains(mine) && state.set.len() == 1 {
            return Err(Refusal {
                code: "last_copy",
                rule: "R16",
                why: "this is the only replica that is up to date".into(),
                next: "resync the other replica first".into(),
            });
        }
        if let Some(state) = self.majority.take_what_went_back() {
            // These data are given up, and with them what only they knew of the register.
            self.superblock.tenure = self.superblock.tenure.max(state.tenure);
            self.superblock.register = (*state).clone();
            self.register = *state;
        }
        self.superblock.invalid = true;
        self.persist(After::AnswerAndReconnect(ticket), effects);
        Ok(None)
    }

    fn resync_full(
        &mut self,
        peer: PeerIndex,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        let at = usize::from(peer.0);
        if !matches!(self.role, Role::Primary) {
            return Err(Refusal {
                code: "not_primary",
                rule: "R13",
                why: format!("this replica is {}", self.role.name()),
                next: "run it on the primary, or replctl invalidate on the secondary".into(),
            });
        }
        // The proposal that is on its way says that it lacks nothing.
        if matches!(self.change, Some(Change::Grow { peer: grown, .. }) if grown == peer) {
            return Err(Refusal {
                code: "busy",
                rule: "R13",
                why: "that replica is just becoming a member: the change is being committed".into(),
                next: "say it again in a moment".into(),
            });
        }
        // Forgetting which replica it was makes it a new one: a full resync when it comes back.
        self.superblock.peers[at].replica = ReplicaId::NONE;
        self.superblock.peers[at].all_dirty = true;
        self.peers[at].bitmap.fill_recorded_elsewhere();
        self.peers[at].flapping = Flapping::of_one_who_leaves();
        self.persist(After::Nothing, effects);
        self.close(at, Retry::Now, effects);
        Ok(Some(Answer::Done))
    }

    fn discard_diverged(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        if !matches!(self.role, Role::Secondary) || !self.superblock.diverged {
            return Err(Refusal {
                code: "not_diverged",
                rule: "R11d",
                why: "no peer has reported that this replica diverged".into(),
                next: "connect the nodes and look at replctl status".into(),
            });
        }
        if core::mem::replace(&mut self.superblock.discard_diverged, true) {
            return Ok(Some(Answer::Already));
        }
        self.persist(After::AnswerAndReconnect(ticket), effects);
        Ok(None)
    }

    /// A command cannot become durable.
    pub(crate) fn answer_no_disk(&mut self, ticket: Ticket, effects: &mut Effects) {
        let refusal = Refusal {
            code: "no_disk",
            rule: "R16",
            why: "the metadata of this replica cannot be written".into(),
            next: "replace this disk".into(),
        };
        effects.push(Effect::AnswerOperator { ticket, result: Err(Box::new(refusal)) });
    }

    /// A command that had to become durable is; the peers are met anew.
    pub(crate) fn answer_and_reconnect(&mut self, ticket: Ticket, effects: &mut Effects) {
        effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        for at in 0..self.peers.len() {
            self.close(at, Retry::Now, effects);
        }
    }

    /// Sets the role and tells about it.
    pub(crate) fn set_role(&mut self, role: Role, effects: &mut Effects) {
        let changed = role.name() != self.role.name();
        self.takes_fenced &= matches!(role, Role::Secondary | Role::Promoting(_));
        self.role = role;
        if changed {
            self.forget_verifies(effects);
            let generation = self.register.generation;
            effects.push(Effect::Note(Note::RoleChanged { role: role.name(), generation }));
        }
    }
}

pub(crate) fn busy(what: &'static str) -> Refusal {
    Refusal {
        code: "busy",
        rule: "",
        why: format!("this replica is {what} right now"),
        next: "try again in a moment".into(),
    }
}

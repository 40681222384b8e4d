//! Stopping orderly: leave the leader or release the office, flush, fingerprint, mark the disk.

use super::busy;
use crate::block::Ticket;
use crate::command::{Answer, Refusal};
use crate::effect::{Effect, Effects, Retry};
use crate::flush::FlushWaiter;
use crate::input::{DiskFailure, DiskOutcome};
use crate::peer::Link;
use crate::persist::After;
use crate::replica::{Purpose, Replica, Role};
use crate::time::Time;
use crate::wire::Message;

/// How a stop is going.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Stopping {
    pub(crate) ticket: Ticket,
    /// The leader was told; go on without its answer at this time.
    pub(crate) leaving_until: Option<Time>,
}

impl Replica {
    pub(super) fn stop(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        if self.stopping.is_some() {
            return Err(busy("stopping"));
        }
        match self.role {
            Role::Primary => {
                self.stopping = Some(Stopping { ticket, leaving_until: None });
                self.begin_demotion(effects);
            }
            Role::Secondary if self.change.is_none() => {
                self.stopping = Some(Stopping { ticket, leaving_until: None });
                self.continue_stop(effects);
            }
            _ => return Err(busy(self.role.name())),
        }
        Ok(None)
    }

    /// Leaves the leader orderly, or goes straight to the end.
    pub(super) fn continue_stop(&mut self, effects: &mut Effects) {
        let deadline = self.now + self.config.timing.ack_limit;
        let Some(stopping) = &mut self.stopping else { return };
        if let Some(leader) = self.following.filter(|leader| leader.ready) {
            stopping.leaving_until = Some(deadline);
            let sequence = self.superblock.sequence;
            self.takes_fenced = false;
            self.send(leader.peer, Message::Leave { sequence }, None, effects);
        } else {
            self.stop_sessions(effects);
        }
    }

    pub(crate) fn leave_done(&mut self, effects: &mut Effects) {
        if self.stopping.is_some() {
            self.stop_sessions(effects);
        }
    }

    /// The leader is gone while this replica wanted to leave.
    pub(crate) fn leader_lost(&mut self, effects: &mut Effects) {
        if self.stopping.is_some_and(|stopping| stopping.leaving_until.is_some()) {
            self.stop_sessions(effects);
        }
    }

    pub(crate) fn stop_sessions(&mut self, effects: &mut Effects) {
        let Some(stopping) = &mut self.stopping else { return };
        stopping.leaving_until = None;
        self.set_role(Role::Stopping, effects);
        for at in 0..self.peers.len() {
            if self.peers[at].link != Link::Down {
                self.close(at, Retry::Never, effects);
            }
        }
        self.stop_drained(effects);
    }

    /// Goes on with the end once nothing is under way: what is applied, and a block of the log of
    /// an office that was lost while it was written.
    pub(crate) fn stop_drained(&mut self, effects: &mut Effects) {
        let log_rests = !self.log_is_writing() || self.metadata_failed;
        let rests = self.applied.is_empty() && log_rests && !self.room.is_on_disk();
        if self.role == Role::Stopping && rests && !self.stop_flushing {
            self.stop_flushing = true;
            self.flush_disk(FlushWaiter::Stop, effects);
        }
    }

    pub(crate) fn stop_flushed(&mut self, result: Result<(), DiskFailure>, effects: &mut Effects) {
        if result.is_ok() && !self.disk_failed {
            let op = self.ops.begin(Purpose::Fingerprint);
            let size_bytes = self.superblock.data_bytes;
            effects.push(Effect::TakeFingerprint { op, size_bytes });
        } else {
            self.stop_uncleanly(effects);
        }
    }

    pub(crate) fn fingerprint_taken(
        &mut self,
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        if let Ok(DiskOutcome::Fingerprint(hash)) = result {
            self.superblock.fingerprint = hash;
            self.superblock.clean = true;
            self.end_mirror_at_stop();
            let all = 0..self.superblock.blocks();
            self.save_pages(alloc::vec![all], After::StopClean, effects);
        } else {
            self.stop_uncleanly(effects);
        }
    }

    /// The disk failed: stop without the clean mark, when what is being written has ended.
    fn stop_uncleanly(&mut self, effects: &mut Effects) {
        if self.metadata_failed {
            self.stopped(effects);
        } else {
            self.persist(After::Stopped, effects);
        }
    }

    /// Nothing is left to do: the driver may close the disk.
    pub(crate) fn stopped(&mut self, effects: &mut Effects) {
        if self.role == Role::Stopped {
            return;
        }
        self.set_role(Role::Stopped, effects);
        if let Some(stopping) = self.stopping.take() {
            let ticket = stopping.ticket;
            effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        }
        effects.push(Effect::Stopped);
    }
}

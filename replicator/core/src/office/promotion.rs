//! Taking the office: what is refused, the order of a promotion (R2c), resuming it after a restart,
//! and the authority that moves with it (no witness).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use super::busy;
use crate::block::{PeerIndex, ReplicaId, SessionId, Ticket};
use crate::command::{Answer, Refusal};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::flapping::Flapping;
use crate::flush::FlushWaiter;
use crate::handshake;
use crate::input::DiskFailure;
use crate::membership::Change;
use crate::peer::Link;
use crate::persist::After;
use crate::register::{Basis, Member, RegisterState};
use crate::replica::{Replica, Role};
use crate::time::Time;
use crate::wire::{Hello, Message};

/// A promotion under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Promotion {
    /// Who waits for the answer; `None` when the office is resumed after a restart.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) since: Time,
    pub(crate) phase: Phase,
    /// Without the consent of the old authority: a new lineage.
    pub(crate) forced: bool,
    /// The tenure is kept: a restart on the same boot (R6a).
    pub(crate) resumed: bool,
}

/// How far a promotion is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Phase {
    /// The peer was asked for the authority.
    Asking(PeerIndex, SessionId),
    /// Sessions are closed; writes of the old leader end on the own disk (R2c).
    Draining,
    /// The own disk is flushed.
    Flushing,
    /// The new state becomes durable.
    Committing,
    /// Committed and durable; it serves when it has the lease.
    AwaitLease,
}

impl Promotion {
    /// Whether it may still be given up: nothing is proposed yet.
    pub(crate) fn may_time_out(&self) -> bool {
        !matches!(self.phase, Phase::Committing | Phase::AwaitLease)
    }
}

impl Replica {
    pub(crate) fn promote(
        &mut self,
        ticket: Ticket,
        old_primary_is_off: bool,
        allow_data_loss: bool,
        alone: bool,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        match self.role {
            Role::Primary => return Ok(Some(Answer::Already)),
            Role::Secondary if self.change.is_none() => {}
            _ => return Err(busy(self.role.name())),
        }
        if self.by_majority() {
            return self.promote_by_majority(ticket, old_primary_is_off, allow_data_loss, effects);
        }
        self.check_own_data(allow_data_loss)?;
        let mine = self.superblock.replica;
        let holds_authority = self.register.authority == Some(mine);
        let connected =
            self.peers.iter().position(|peer| matches!(peer.link, Link::Idle | Link::Following));
        if let Some(at) = connected
            && self.peers[at].link == Link::Following
        {
            return Err(self.peer_is_primary(at));
        }
        let mut promotion = Promotion {
            ticket: Some(ticket),
            since: self.now,
            phase: Phase::Draining,
            forced: false,
            resumed: false,
        };
        if !holds_authority {
            // A peer that does not hold it either has nothing to give: the replica that does is
            // gone, or its disk was exchanged.
            let holder = connected.filter(|&at| {
                self.register.authority.is_none_or(|id| self.peers[at].replica() == id)
            });
            match holder {
                Some(at) => {
                    let peer = PeerIndex(at as u8);
                    promotion.phase = Phase::Asking(peer, self.peers[at].session);
                }
                None if old_primary_is_off => promotion.forced = true,
                None => return Err(self.authority_unreachable()),
            }
        } else if connected.is_none() {
            self.check_alone(old_primary_is_off, alone)?;
        }
        self.check_power_loss(allow_data_loss)?;
        if old_primary_is_off && connected.is_none() {
            // Whoever says so says it of a peer that cannot take over any more either.
            self.peers.iter_mut().for_each(|peer| peer.may_take = false);
        }
        // R11d: serving data that miss acknowledged writes is a new lineage whoever agreed to it.
        // And with nobody to ask, an operator who says that a peer was primary, or that writes may
        // be lost, may know of an office that this disk has never heard of.
        promotion.forced |= allow_data_loss && !self.is_up_to_date()
            || connected.is_none() && (allow_data_loss || old_primary_is_off);
        self.begin_promotion(promotion, effects);
        Ok(None)
    }

    pub(crate) fn begin_promotion(&mut self, promotion: Promotion, effects: &mut Effects) {
        self.set_role(Role::Promoting(promotion), effects);
        match promotion.phase {
            Phase::Asking(peer, _) => self.send(peer, Message::AuthorityWanted, None, effects),
            _ => self.drain_for_promotion(effects),
        }
    }

    /// Whether this replica holds every acknowledged write, as far as its register copy tells.
    pub(crate) fn is_up_to_date(&self) -> bool {
        let mine = self.superblock.replica;
        // A majority knows whether the commit that was announced here was made.
        let may_join = self.superblock.coming == self.register.generation + 1;
        let joins = may_join && !self.by_majority();
        (self.register.contains(mine) || joins)
            && !self.superblock.invalid
            && !self.superblock.diverged
            && !self.superblock.discard_diverged
            && !self.superblock.syncing_unless(joins)
            && !self.disk_failed
    }

    pub(crate) fn check_own_data(&self, allow_data_loss: bool) -> Result<(), Refusal> {
        if self.disk_failed {
            return Err(Refusal {
                code: "no_disk",
                rule: "R16",
                why: "the disk of this replica failed".into(),
                next: "promote the other node, or replace the disk and create it anew".into(),
            });
        }
        let is_enough = self.is_up_to_date()
            || allow_data_loss
            || defect(Defect::StalePromoted)
            || self.register.generation == 0 && defect(Defect::OriginNotNeeded);
        if is_enough {
            return Ok(());
        }
        let (rule, why) = if self.register.generation == 0 {
            ("R11b", String::from("no replica of this resource was ever named its origin"))
        } else if self.superblock.invalid {
            let why = "the data of this replica were declared bad or changed without us";
            ("R12", String::from(why))
        } else if self.superblock.syncing {
            let why =
                "a resync of this replica was not finished: its blocks are of different times";
            ("R4", String::from(why))
        } else if self.superblock.diverged {
            let why = format!(
                "this replica has writes that the lineage of generation {} does not have",
                self.register.generation
            );
            ("R11d", why)
        } else {
            let why = format!(
                "this replica is not in the in-sync set of generation {}: it lacks acknowledged \
                 writes",
                self.register.generation
            );
            ("R11a", why)
        };
        Err(Refusal { code: "not_up_to_date", rule, why, next: self.what_instead() })
    }

    /// What may be done where the data here cannot be served.
    fn what_instead(&self) -> String {
        let first = self.register.set.first();
        let other = first.map_or("the other node", |member| self.node_of(member.replica));
        if self.register.generation == 0 {
            "name the node whose data count: replctl init RESOURCE --from NODE".into()
        } else if self.superblock.diverged {
            "save what is needed, then give it up here: replctl resync RESOURCE --discard".into()
        } else if self.by_majority() {
            format!(
                "bring {other} back, it has them; or, if it is gone for ever, serve these old \
                 data: replctl failover RESOURCE --to NODE --allow-data-loss"
            )
        } else {
            format!(
                "promote {other} instead; or, if its data are gone for ever, serve these old data \
                 with --allow-data-loss"
            )
        }
    }

    pub(crate) fn peer_is_primary(&self, at: usize) -> Refusal {
        let node = &self.peers[at].node;
        Refusal {
            code: "peer_is_primary",
            rule: "R6d",
            why: format!("{node} is primary (tenure {})", self.register.tenure),
            next: format!("demote it first, on {node}: replctl demote RESOURCE"),
        }
    }

    fn authority_unreachable(&self) -> Refusal {
        let node = self.register.authority.map_or("the other node", |id| self.node_of(id));
        Refusal {
            code: "peer_unreachable",
            rule: "No witness",
            why: format!(
                "{node} was primary last and cannot be reached: it may be alive and go on alone"
            ),
            next: format!(
                "reconnect {node}; or switch it off for sure and say so: --old-primary-is-off"
            ),
        }
    }

    /// The holder of the authority, with nobody to talk to.
    fn check_alone(&self, old_primary_is_off: bool, alone: bool) -> Result<(), Refusal> {
        let spoken = self.peers.iter().all(|peer| peer.spoken);
        if spoken || alone || old_primary_is_off {
            return Ok(());
        }
        Err(Refusal {
            code: "not_spoken",
            rule: "No witness",
            why: "since its start this node has not spoken with its peer, which may have been \
                  promoted meanwhile"
                .into(),
            next: "connect the peer; or, if it cannot have been promoted, say --alone; or, if it \
                   is switched off, --old-primary-is-off"
                .into(),
        })
    }

    /// R11a: a member whose machine lost its caches may lack what was acknowledged and never
    /// flushed. Another member that kept its caches, or that may have kept them, goes first.
    pub(crate) fn check_power_loss(&self, allow_data_loss: bool) -> Result<(), Refusal> {
        let mine = self.superblock.replica;
        let lost = self
            .register
            .member(mine)
            .is_some_and(|member| member.incarnation != self.config.incarnation);
        let waits = !defect(Defect::NoPowerLossWait);
        if !lost || self.register.released_clean || allow_data_loss || !waits {
            return Ok(());
        }
        let others = || self.register.set.iter().filter(|member| member.replica != mine);
        // One that is known to be better says more than one that is silent.
        others().try_for_each(|other| self.check_kept_caches(other))?;
        others().try_for_each(|other| self.check_silence(other))
    }

    /// The greeting of a member that is here, and has data that could be waited for.
    fn greeted_with_data(&self, other: &Member) -> Option<&Hello> {
        let at = self.peer_of(other.replica).filter(|&at| {
            let link = &self.peers[at].link;
            *link == Link::Idle || *link == Link::Following && !self.by_majority()
        })?;
        let hello = self.peers[at].hello.as_deref()?;
        handshake::may_hold_more(&self.hello(at), hello).then_some(hello)
    }

    fn check_kept_caches(&self, other: &Member) -> Result<(), Refusal> {
        let node = self.node_of(other.replica);
        let (why, next) = match self.greeted_with_data(other) {
            Some(hello) if hello.incarnation != other.incarnation => return Ok(()),
            Some(_) => ("did not", format!("promote {node}")),
            None => {
                let known = self.peer_known_as(other.replica).map(|at| &self.peers[at]);
                if !known.is_some_and(|peer| peer.kept_caches) {
                    return Ok(());
                }
                let next = format!("reconnect and promote {node}; or --allow-data-loss");
                ("did not: it was here since", next)
            }
        };
        Err(self.power_was_lost(other, why, next))
    }

    fn check_silence(&self, other: &Member) -> Result<(), Refusal> {
        let silent = self.now.since(self.started_at);
        let wait = self.config.timing.power_loss_wait;
        if self.greeted_with_data(other).is_some() || silent >= wait {
            return Ok(());
        }
        let next = format!(
            "start the other node; or try again in {} s, when only writes that were never \
             flushed can be missing; or --allow-data-loss",
            (wait.as_ms() - silent.as_ms()).div_ceil(1000)
        );
        Err(self.power_was_lost(other, "is silent or has bad data", next))
    }

    fn power_was_lost(&self, other: &Member, why: &str, next: String) -> Refusal {
        let node = self.node_of(other.replica);
        Refusal {
            code: "power_was_lost",
            rule: "R11a",
            why: format!(
                "this machine lost its caches while it was a member, and {node}, a member too, \
                 {why}"
            ),
            next,
        }
    }

    /// R2c: the old sessions are closed; then every write submitted to the own disk ends.
    fn drain_for_promotion(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            if self.peers[at].link != Link::Waiting && !defect(Defect::SessionsKeptAtPromotion) {
                self.close(at, Retry::Now, effects);
            }
        }
        self.applied_drained(effects);
    }

    /// The own disk has nothing of an old leader under way any more.
    pub(crate) fn applied_drained(&mut self, effects: &mut Effects) {
        let waits = !defect(Defect::NoDrainAtPromotion) && !defect(Defect::TakerStillApplies);
        if !self.applied.is_empty() && waits {
            return;
        }
        if let Some(leader) = self.following {
            self.peers[usize::from(leader.peer.0)].last_heard = self.now;
        }
        if let Role::Promoting(promotion) = &mut self.role
            && promotion.phase == Phase::Draining
        {
            promotion.phase = Phase::Flushing;
            if defect(Defect::NoFlushAtPromotion) {
                return self.promotion_flushed(Ok(()), effects);
            }
            self.flush_disk(FlushWaiter::Promotion, effects);
        }
        self.stop_drained(effects);
        self.greet_waiting(effects);
    }

    /// Flushed: only now the take-over is proposed (R2c).
    pub(crate) fn promotion_flushed(
        &mut self,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let Role::Promoting(mut promotion) = self.role else { return };
        if promotion.phase != Phase::Flushing && !defect(Defect::NoFlushAtPromotion) {
            return;
        }
        if result.is_err() || self.disk_failed {
            self.disk_failed = true;
            return self.promotion_refused(
                Refusal {
                    code: "no_disk",
                    rule: "R16",
                    why: "the disk of this replica failed to flush".into(),
                    next: "promote the other node".into(),
                },
                effects,
            );
        }
        self.end_mirror();
        promotion.phase = Phase::Committing;
        self.role = Role::Promoting(promotion);
        let next = self.state_after_take_over(promotion);
        if !self.by_majority() {
            self.superblock.tenure = next.tenure;
            self.settle_take_over(promotion.forced);
        }
        self.propose(Change::TakeOver, next, effects);
        if defect(Defect::ServesBeforeDurable) {
            self.change_committed(self.change_number, effects);
        }
    }

    /// What a take-over makes of the own superblock, with the commit.
    pub(crate) fn settle_take_over(&mut self, forced: bool) {
        self.superblock.coming = 0;
        self.superblock.clean &= defect(Defect::CleanMarkStays);
        if forced {
            // The operator chose these data: from now on they are what the resource is.
            if self.superblock.invalid {
                self.forget_equality();
            }
            self.superblock.invalid = false;
            self.superblock.syncing = false;
            self.superblock.diverged = false;
        }
        // Whoever takes the office keeps what it has.
        self.superblock.discard_diverged = false;
    }

    /// Nobody knows where this replica differs from the others: they are resynced in full.
    fn forget_equality(&mut self) {
        for (record, peer) in self.superblock.peers.iter_mut().zip(&mut self.peers) {
            record.replica = ReplicaId::NONE;
            record.all_dirty = true;
            peer.bitmap.fill_recorded_elsewhere();
        }
    }

    fn state_after_take_over(&self, promotion: Promotion) -> RegisterState {
        let mine = self.superblock.replica;
        let me = Member { replica: mine, incarnation: self.config.incarnation };
        let old = self.committed();
        let was_member = self.is_up_to_date();
        let known = old.generation.max(self.superblock.coming);
        let mut next = old.clone();
        // R6b: a take-over commits the taker alone; after a clean release all members are equal.
        let keeps_set = old.released_clean && was_member && !promotion.forced
            || defect(Defect::SetKeptAtTakeover)
            || defect(Defect::ReadOfHotExtent) && promotion.resumed;
        if !keeps_set {
            next.set.clear();
        }
        next = next.with(mine, me.incarnation);
        let resumed = defect(Defect::ResumeWithoutCommit) && promotion.resumed;
        next.generation = if resumed { old.generation } else { known + 1 };
        if !promotion.resumed {
            next.tenure = next.generation.max(self.superblock.tenure + 1);
            next.generation = next.tenure;
        }
        next.primary = Some(mine);
        next.authority = Some(mine);
        next.released_clean = false;
        next.sole = false;
        if promotion.forced {
            next.basis = Basis { lineage: old.basis.lineage + 1, taker_was_member: was_member };
        }
        next
    }

    /// The office is ours, durably: serve, as soon as there is a lease (R2c).
    pub(crate) fn office_taken(&mut self, effects: &mut Effects) {
        let Role::Promoting(mut promotion) = self.role else {
            unreachable!("an office was taken by nobody")
        };
        if self.holds_lease(self.now) {
            self.serve(promotion, effects);
        } else {
            (promotion.phase, promotion.since) = (Phase::AwaitLease, self.now);
            self.role = Role::Promoting(promotion);
            self.watch_lease(effects);
        }
    }

    /// Opens the device.
    pub(crate) fn serve(&mut self, promotion: Promotion, effects: &mut Effects) {
        self.note_served();
        self.office_since = self.now;
        self.lost_in_office = false;
        self.peers.iter_mut().for_each(|peer| peer.flapping = Flapping::default());
        self.set_role(Role::Primary, effects);
        self.open_device(effects);
        if let Some(ticket) = promotion.ticket {
            effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        }
    }

    pub(crate) fn promotion_refused(&mut self, refusal: Refusal, effects: &mut Effects) {
        let Role::Promoting(promotion) = self.role else { return };
        self.set_role(Role::Secondary, effects);
        if let Some(ticket) = promotion.ticket {
            let result = Err(Box::new(refusal));
            effects.push(Effect::AnswerOperator { ticket, result });
        }
        self.greet_waiting(effects);
        self.take_up_pending(effects);
    }

    /// R2c: a disk that does not end what it was given, or a peer that does not answer, ends the
    /// promotion; another replica may try.
    pub(crate) fn watch_promotion(&mut self, effects: &mut Effects) {
        let Role::Promoting(promotion) = self.role else { return };
        let limit = self.config.timing.drain_limit;
        if !promotion.may_time_out() || self.now.since(promotion.since) < limit {
            return;
        }
        let refusal = match promotion.phase {
            Phase::Asking(..) => self.authority_unreachable(),
            _ => Refusal {
                code: "disk_hangs",
                rule: "R2c",
                why: format!(
                    "the disk of this replica did not end {} within {} s",
                    match self.applied.len() {
                        0 => "a flush".into(),
                        count => format!("{count} earlier writes"),
                    },
                    limit.as_ms() / 1000
                ),
                next: "look after the disk; or let another node have it: replctl switchover \
                       RESOURCE --to NODE"
                    .into(),
            },
        };
        self.promotion_refused(refusal, effects);
    }

    /// The metadata cannot be written: no office for this replica.
    pub(crate) fn give_up_promotion(&mut self, effects: &mut Effects) {
        self.change = None;
        let refusal = Refusal {
            code: "no_disk",
            rule: "R16",
            why: "the metadata of this replica cannot be written".into(),
            next: "promote the other node, and replace this disk".into(),
        };
        self.promotion_refused(refusal, effects);
    }

    /// R6a: a new process on the same boot goes on with the office of the old one, once the peer
    /// has said that nobody took it.
    pub(crate) fn resume_office(&mut self, effects: &mut Effects) {
        if self.by_majority() {
            // The driver orders it: it knows when a majority can be reached.
            return;
        }
        let mine = self.superblock.replica;
        let was_primary = self.register.primary == Some(mine)
            && self.register.authority == Some(mine)
            && self.register.member(mine).is_some_and(|member| {
                member.incarnation == self.config.incarnation
                    || defect(Defect::ResumeAfterPowerLoss)
            });
        let free = matches!(self.role, Role::Secondary) && self.change.is_none();
        if was_primary && free && self.is_up_to_date() && self.stopping.is_none() {
            let promotion = Promotion {
                ticket: None,
                since: self.now,
                phase: Phase::Draining,
                forced: false,
                resumed: true,
            };
            self.begin_promotion(promotion, effects);
        }
    }

    // ------------------------------------------------------------------ the authority moves

    pub(crate) fn authority_wanted(&mut self, at: usize, effects: &mut Effects) {
        let peer = PeerIndex(at as u8);
        let free = matches!(self.role, Role::Secondary)
            && self.change.is_none()
            && self.stopping.is_none()
            && self.peers[at].link == Link::Idle;
        if !free || self.register.authority != Some(self.superblock.replica) {
            let reason = if matches!(self.role, Role::Primary) {
                "it is primary"
            } else {
                "its own role is changing; try again"
            };
            let message = Message::AuthorityRefused { reason: reason.into() };
            return self.send(peer, message, None, effects);
        }
        let session = self.peers[at].session;
        let mut next = self.register.clone();
        next.generation += 1;
        next.authority = Some(self.peers[at].replica());
        self.propose(Change::GiveAuthority { peer, session }, next, effects);
    }

    /// Whether a promotion waits for this peer's word.
    fn asks(&self, at: usize) -> bool {
        let session = self.peers[at].session;
        matches!(self.role, Role::Promoting(promotion)
            if promotion.phase == Phase::Asking(PeerIndex(at as u8), session))
    }

    pub(crate) fn authority_given(
        &mut self,
        at: usize,
        state: RegisterState,
        effects: &mut Effects,
    ) {
        let mine = self.superblock.replica;
        let newer = state.order() > self.register.order() && state.authority == Some(mine);
        let (true, true, Role::Promoting(promotion)) = (newer, self.asks(at), &mut self.role)
        else {
            return self.misbehaved(PeerIndex(at as u8), "an authority out of order", effects);
        };
        promotion.phase = Phase::Draining;
        let forced = promotion.forced;
        self.register = state;
        self.superblock.register = self.register.clone();
        if self.is_up_to_date() || forced {
            self.drain_for_promotion(effects);
        } else {
            let refusal = self.check_own_data(false).expect_err("not up to date");
            self.persist(After::Nothing, effects);
            self.promotion_refused(refusal, effects);
        }
    }

    pub(crate) fn authority_refused(&mut self, at: usize, reason: &str, effects: &mut Effects) {
        if !self.asks(at) {
            return self.misbehaved(PeerIndex(at as u8), "an answer to no question", effects);
        }
        let node = &self.peers[at].node;
        let refusal = Refusal {
            code: "authority_refused",
            rule: "No witness",
            why: format!("{node} keeps the authority: {reason}"),
            next: format!("look at replctl status on {node}, then try again"),
        };
        self.promotion_refused(refusal, effects);
    }

    /// A promotion that asked a peer cannot go on without it.
    pub(crate) fn office_lost_link(&mut self, at: usize, effects: &mut Effects) {
        if let Role::Promoting(promotion) = self.role
            && let Phase::Asking(peer, _) = promotion.phase
            && usize::from(peer.0) == at
        {
            let refusal = self.authority_unreachable();
            self.promotion_refused(refusal, effects);
        }
    }
}

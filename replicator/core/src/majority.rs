//! The register kept by a majority: changes are proposed to it instead of to the own superblock,
//! what it committed is learned, and the lease it grants decides what may be answered.
//!
//! ```text
//!   propose --> Effect::Propose ..?.. Input::Decided --Ok--> superblock --> as in the other mode
//!                                                    | Newer: void; deposed, or taken over
//!                                                    | NotNow: once more a little later
//! ```

use alloc::boxed::Box;
use alloc::format;

use crate::block::{ReplicaId, Ticket};
use crate::command::{Answer, Refusal};
use crate::config::RegisterKeeper;
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::handshake;
use crate::input::Undecided;
use crate::membership::Change;
use crate::note::Note;
use crate::office::{Phase, Promotion};
use crate::peer::{Join, Lead, Link};
use crate::persist::After;
use crate::register::RegisterState;
use crate::replica::{Replica, Role};
use crate::time::{Span, Time};

/// What a replica knows of a majority that keeps its register.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Majority {
    /// What is committed is known since the start (R14).
    learned: bool,
    /// The majority knows less than the own disk (R11c): this.
    went_back: Option<Box<RegisterState>>,
    /// Came while it could not be looked at: at the start, or during a change.
    pending: Option<Box<RegisterState>>,
    /// What is committed, where the own copy stays that of a lineage that ended (R11d).
    foreign: Option<Box<RegisterState>>,
    /// A proposal without a decision. Its change may be void already.
    open: Option<Open>,
    /// Nothing is proposed before this time: the last proposal was declined.
    not_before: Option<Time>,
    lease: Option<Time>,
    /// Since when there is no lease.
    lapse: Option<Time>,
    /// This process has opened the device: the next one belongs to a new tenure (R15).
    has_served: bool,
    /// The generation whose announcement the disk had at the start (R4d): what was to be resynced
    /// for it was durable here.
    announced: u64,
}

/// A proposal whose outcome is unknown.
#[derive(Clone, Hash, Debug)]
struct Open {
    number: u64,
    next: RegisterState,
    since: Time,
}

/// A declined proposal is repeated after this time.
const PROPOSE_AGAIN: Span = Span::from_ms(100);
/// How long the defect of taking an unknown outcome for a failure waits.
const IMPATIENCE: Span = Span::from_ms(200);

impl Majority {
    pub(crate) fn new(keeper: RegisterKeeper, announced: u64) -> Self {
        let knows = keeper != RegisterKeeper::Majority || defect(Defect::RegisterNotAwaited);
        Self { learned: knows, announced, ..Self::default() }
    }

    /// Whether peers may be greeted and an office be taken (R14, R11c).
    pub(crate) fn is_settled(&self) -> bool {
        self.learned && self.went_back.is_none()
    }

    pub(crate) fn register_went_back(&self) -> bool {
        self.went_back.is_some()
    }

    /// Whether a majority has answered since the start.
    pub(crate) fn is_learned(&self) -> bool {
        self.learned
    }

    /// Since when a proposal has no decision, and the generation it would make.
    pub(crate) fn open_since(&self) -> Option<(Time, u64)> {
        self.open.as_ref().map(|open| (open.since, open.next.generation))
    }

    /// Whether a new proposal has to wait.
    pub(crate) fn is_busy(&self) -> bool {
        self.open.is_some() || self.not_before.is_some()
    }

    /// Members of the proposed set; 0 when nothing is proposed.
    pub(crate) fn proposed_members(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.next.set.len())
    }

    fn has_lease(&self, now: Time) -> bool {
        self.lease.is_some_and(|until| now < until)
            || defect(Defect::ServesBeforeLease) && self.lease.is_none()
    }

    /// The own copy is this again.
    pub(crate) fn forget_foreign(&mut self, own: &RegisterState) {
        self.foreign.take_if(|foreign| foreign.order() <= own.order());
    }

    /// The majority's state becomes the own one, by an operator's word (R11c).
    pub(crate) fn take_what_went_back(&mut self) -> Option<Box<RegisterState>> {
        self.went_back.take()
    }

    pub(crate) fn state_that_went_back(&self) -> Option<&RegisterState> {
        self.went_back.as_deref()
    }
}

impl Replica {
    pub(crate) fn by_majority(&self) -> bool {
        self.config.register == RegisterKeeper::Majority
    }

    /// R5a, R6c: whether clients may be answered with success at this time. The driver asks again
    /// right before it sends replies; failures may always be sent. Always true when the register
    /// is kept in the own superblock.
    pub fn holds_lease(&self, now: Time) -> bool {
        let gives_up = matches!(self.change, Some(Change::Release | Change::HandOver));
        !self.by_majority() || self.majority.has_lease(now) && !gives_up
    }

    /// The newest committed state this replica knows of, in its own lineage or not.
    pub(crate) fn committed(&self) -> &RegisterState {
        if !self.by_majority() {
            return &self.register;
        }
        self.majority.foreign.as_deref().unwrap_or(&self.superblock.register)
    }

    /// Whether a state names this replica primary in the tenure it has.
    pub(crate) fn is_own_office(&self, state: &RegisterState) -> bool {
        state.primary == Some(self.superblock.replica)
            && state.tenure == self.register.tenure
            && state.basis == self.register.basis
    }

    // ------------------------------------------------------------------ proposals

    /// Asks for a change. Until the decision its outcome is unknown.
    pub(crate) fn ask_majority(&mut self, mut next: RegisterState, effects: &mut Effects) {
        assert!(self.majority.open.is_none(), "a proposal while another is open");
        next.authority = None;
        let number = self.change_number;
        let forced = matches!(self.role, Role::Promoting(promotion) if promotion.forced);
        let expected = self.committed().generation;
        self.majority.open = Some(Open { number, next: next.clone(), since: self.now });
        let next = Box::new(next);
        effects.push(Effect::Propose { number, next, expected, forced });
    }

    /// The majority decided on a proposal.
    pub(crate) fn decided(
        &mut self,
        number: u64,
        result: Result<Box<RegisterState>, Undecided>,
        effects: &mut Effects,
    ) {
        let open = self.majority.open.take_if(|open| open.number == number);
        // A change that was given up meanwhile: what is committed counts all the same.
        let is_void = self.change.is_none() || number != self.change_number || open.is_none();
        let proposed = |state: &RegisterState| open.is_some_and(|open| open.next == *state);
        match result {
            Ok(state) if is_void => self.register_learned(*state, effects),
            Ok(state) => self.change_decided(*state, effects),
            Err(Undecided::Newer(state)) if is_void => self.register_learned(*state, effects),
            // Another round found it and finished it.
            Err(Undecided::Newer(state)) if proposed(&state) => {
                self.change_decided(*state, effects)
            }
            Err(Undecided::Newer(state)) => self.change_lost(*state, effects),
            Err(Undecided::NotNow { why }) if !is_void => self.change_declined(&why, effects),
            Err(Undecided::NotNow { .. }) => {}
        }
        self.take_up_pending(effects);
    }

    /// Committed: recorded in the superblock before anything follows from it.
    fn change_decided(&mut self, state: RegisterState, effects: &mut Effects) {
        if self.change == Some(Change::HandOver) && self.role.serves() {
            return self.step_down(Some(state), effects);
        }
        if let (Some(Change::TakeOver), Role::Promoting(promotion)) = (self.change, self.role) {
            self.settle_take_over(promotion.forced);
        }
        self.superblock.tenure = self.superblock.tenure.max(state.tenure);
        self.superblock.register = state;
        self.majority.foreign = None;
        if self.metadata_failed {
            self.change_committed(self.change_number, effects);
        } else {
            self.persist(After::Committed(self.change_number), effects);
        }
    }

    /// Not committed, and something newer is.
    fn change_lost(&mut self, state: RegisterState, effects: &mut Effects) {
        let hands_over = self.change.take() == Some(Change::HandOver);
        self.releasing = false;
        let is_older = state.order() < self.committed().order();
        if is_older && !defect(Defect::RegisterMayGoBack) {
            self.register_went_back(state, effects);
        } else if self.role.serves() {
            if self.is_own_office(&state) && !hands_over {
                self.take_over_set(state, effects);
            } else {
                self.deposed_by(state, effects);
            }
        } else if let Role::Promoting(_) = self.role {
            self.adopt_learned(state, effects);
            self.promotion_refused(self.lost_the_race(), effects);
        } else {
            self.adopt_learned(state, effects);
            self.answer_demotion(Ok(Answer::Done), effects);
        }
    }

    /// Definitely not committed; it may be tried again.
    fn change_declined(&mut self, why: &str, effects: &mut Effects) {
        self.majority.not_before = Some(self.now + PROPOSE_AGAIN);
        let refusal = Refusal {
            code: "not_now",
            rule: "R6d",
            why: format!("the majority declined: {why}"),
            next: "try again in a moment".into(),
        };
        match self.change {
            // The disk failed: nothing is answered until somebody else has the office.
            Some(Change::HandOver) if self.role.serves() => return,
            Some(Change::HandOver) => self.answer_demotion(Err(Box::new(refusal)), effects),
            Some(Change::TakeOver) => {
                self.change = None;
                self.majority.not_before = None;
                return self.promotion_refused(refusal, effects);
            }
            Some(Change::Grow { peer, session }) => {
                let peer = &mut self.peers[usize::from(peer.0)];
                let proposed = Link::Leading(Lead::Joining(Join::Proposed));
                if peer.session == session && peer.link == proposed {
                    peer.link = Link::Leading(Lead::Joining(Join::Waiting));
                }
            }
            _ => {}
        }
        self.change = None;
        self.releasing = false;
        // What waited only for the outcome goes on.
        self.membership_changed(effects);
        self.greet_waiting(effects);
    }

    /// After a while declined proposals are made again, as far as they are still wanted.
    fn propose_again(&mut self, effects: &mut Effects) {
        self.majority.not_before = None;
        if self.change == Some(Change::HandOver) && self.role.serves() {
            return self.propose_hand_over(effects);
        }
        self.membership_changed(effects);
        self.announce_waiting(effects);
    }

    /// R16: the office, and the membership, go to those that hold everything.
    pub(crate) fn propose_hand_over(&mut self, effects: &mut Effects) {
        let mut next = self.register.without(self.superblock.replica);
        next.primary = None;
        next.released_clean = false;
        self.propose(Change::HandOver, next, effects);
    }

    /// An office that this replica has in the register and does not hold any more.
    pub(crate) fn give_up_office(
        &mut self,
        ticket: Ticket,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        self.check_settled()?;
        let mut next = self.register.clone();
        next.generation += 1;
        next.primary = None;
        next.released_clean = false;
        next.sole = false;
        self.demotion_ticket = Some(ticket);
        self.propose(Change::HandOver, next, effects);
        Ok(None)
    }

    pub(crate) fn answer_demotion(
        &mut self,
        result: Result<Answer, Box<Refusal>>,
        effects: &mut Effects,
    ) {
        if let Some(ticket) = self.demotion_ticket.take() {
            effects.push(Effect::AnswerOperator { ticket, result });
        }
    }

    // ------------------------------------------------------------------ what is committed

    /// The newest committed state, as the majority knows it. The first one after a start comes from
    /// a quorum read (R14); later ones may be late, and then say nothing.
    pub(crate) fn register_learned(&mut self, state: RegisterState, effects: &mut Effects) {
        assert!(self.by_majority(), "a majority's register for a replica that keeps its own");
        match self.role {
            Role::Starting => return self.keep_pending(state),
            Role::Stopping | Role::Stopped => return,
            _ => {}
        }
        let known = self.committed().order();
        let must_be_newest = !self.majority.learned || self.majority.went_back.is_some();
        self.majority.learned = true;
        if state.order() < known && must_be_newest && !defect(Defect::RegisterMayGoBack) {
            return self.register_went_back(state, effects);
        }
        if state.order() >= known {
            self.majority.went_back = None;
        }
        if state.order() > known || state.order() == known && state != *self.committed() {
            self.take_up(state, effects);
        }
        self.greet_waiting(effects);
    }

    fn keep_pending(&mut self, state: RegisterState) {
        let pending = &mut self.majority.pending;
        if pending.as_ref().is_none_or(|other| other.order() < state.order()) {
            *pending = Some(Box::new(state));
        }
    }

    /// What came while it could not be looked at is looked at now.
    pub(crate) fn take_up_pending(&mut self, effects: &mut Effects) {
        if let Some(state) = self.majority.pending.take() {
            self.register_learned(*state, effects);
        }
    }

    fn take_up(&mut self, state: RegisterState, effects: &mut Effects) {
        match self.role {
            // The decision on what is proposed comes too.
            Role::Primary | Role::Demoting if self.is_own_office(&state) => {
                if self.change.is_some() {
                    self.keep_pending(state);
                } else {
                    self.take_over_set(state, effects);
                }
            }
            // Its release is committed, and being recorded.
            Role::Demoting
                if self.change == Some(Change::Release) && self.majority.open.is_none() =>
            {
                self.keep_pending(state);
            }
            Role::Primary | Role::Demoting => self.deposed_by(state, effects),
            Role::Promoting(promotion) => self.promotion_learned(promotion, state, effects),
            Role::Secondary if self.change.is_none() => self.adopt_learned(state, effects),
            _ => self.keep_pending(state),
        }
    }

    fn promotion_learned(
        &mut self,
        promotion: Promotion,
        state: RegisterState,
        effects: &mut Effects,
    ) {
        if promotion.phase == Phase::Committing {
            return self.keep_pending(state);
        }
        let same_tenure = state.tenure == self.register.tenure;
        self.adopt_learned(state, effects);
        let holds_all = self.is_up_to_date() || promotion.forced;
        if !same_tenure || !holds_all {
            self.promotion_refused(self.lost_the_race(), effects);
        }
    }

    /// Another set of the own tenure is committed: acknowledgements follow it as soon as it is
    /// recorded, and until then both.
    fn take_over_set(&mut self, state: RegisterState, effects: &mut Effects) {
        self.change = Some(Change::Adopt);
        self.change_number += 1;
        self.superblock.register = state;
        self.persist(After::Committed(self.change_number), effects);
    }

    /// What the peers are to a set that was taken over.
    pub(crate) fn review_members(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            let is_member = self.register.contains(self.peers[at].replica());
            match self.peers[at].link {
                Link::Leading(Lead::Joining(Join::Proposed)) if is_member => {
                    self.peers[at].link = Link::Leading(Lead::Current);
                    self.peers[at].resync = None;
                }
                Link::Leading(Lead::Joining(Join::Proposed)) => {
                    self.peers[at].link = Link::Leading(Lead::Joining(Join::Waiting));
                }
                Link::Leading(Lead::Current) if !is_member => self.close(at, Retry::Now, effects),
                Link::Leading(Lead::Joining(_)) if is_member => self.close(at, Retry::Now, effects),
                _ => {}
            }
        }
        self.shrink_committed(effects);
    }

    fn deposed_by(&mut self, state: RegisterState, effects: &mut Effects) {
        effects.push(Effect::Note(Note::OfficeLost { why: "the register names another office" }));
        if self.diverges_from(&state) {
            self.superblock.diverged = true;
            self.majority.foreign = Some(Box::new(state));
            self.step_down(None, effects);
        } else {
            self.step_down(Some(state), effects);
        }
    }

    /// A replica without an office takes a newer state over.
    fn adopt_learned(&mut self, state: RegisterState, effects: &mut Effects) {
        if self.diverges_from(&state) {
            // The own copy stays what it was: by it the peers see what diverged (R11d).
            self.superblock.diverged = true;
            self.majority.foreign = Some(Box::new(state));
            self.persist(After::Nothing, effects);
            return self.leave_old_leader(effects);
        }
        let mine = self.superblock.replica;
        let leader = self.register.primary.and_then(|leader| self.peer_known_as(leader));
        let coming = self.superblock.coming;
        let announced = core::mem::take(&mut self.majority.announced);
        let joins = (1..=state.generation).contains(&coming)
            && state.contains(mine)
            && !self.register.contains(mine);
        let takes_over = state.primary == Some(mine) && state.tenure > self.superblock.tenure;
        if takes_over {
            // Proposed before a crash, and committed all the same.
            self.settle_take_over(state.basis.lineage > self.register.basis.lineage);
            // By a process that was a member already and may not have come to record that.
            if (1..=state.generation).contains(&announced) {
                self.superblock.syncing = false;
            }
        }
        self.superblock.tenure = self.superblock.tenure.max(state.tenure);
        self.superblock.clean &= defect(Defect::CleanMarkStays);
        self.superblock.register = state.clone();
        let old = core::mem::replace(&mut self.register, state);
        self.majority.foreign = None;
        if let Some(at) = leader.filter(|_| joins && !takes_over) {
            self.joined(at, coming);
            self.joined_others(at, coming);
        }
        self.members_changed(&old.set, effects);
        let generation = self.register.generation;
        let what = "learned from the majority";
        effects.push(Effect::Note(Note::Committed { generation, what }));
        self.persist(After::Nothing, effects);
        self.leave_old_leader(effects);
    }

    /// R2a: nothing is applied from a peer that the newest state does not name primary.
    fn leave_old_leader(&mut self, effects: &mut Effects) {
        let tenure = self.committed().tenure;
        if let Some(leader) = self.following.filter(|leader| leader.tenure != tenure) {
            let at = usize::from(leader.peer.0);
            self.peers[at].why = "it is no longer primary".into();
            self.close(at, Retry::Now, effects);
        }
    }

    /// R11d: whether this replica may hold what a newer lineage does not.
    fn diverges_from(&self, state: &RegisterState) -> bool {
        let mine = self.superblock.replica;
        let others = state.set.iter().map(|member| member.replica).filter(|&id| id != mine);
        let taker = state.primary.or_else(|| others.min()).unwrap_or(ReplicaId::NONE);
        let gave_up = self.superblock.discard_diverged;
        taker != mine && handshake::has_other_writes(&self.register, mine, gave_up, state, taker)
    }

    /// R11c: what is committed cannot be older than what was learned as committed. Nothing here may
    /// be trusted until it is not, or until an operator gives these data up.
    fn register_went_back(&mut self, state: RegisterState, effects: &mut Effects) {
        let (here, there) = (self.committed().generation, state.generation);
        effects.push(Effect::Note(Note::RegisterWentBack { here, there }));
        self.majority.went_back = Some(Box::new(state));
        if self.role.serves() {
            self.step_down(None, effects);
        } else if let Role::Promoting(_) = self.role {
            self.promotion_refused(self.refusal_went_back(), effects);
        } else {
            self.answer_demotion(Err(Box::new(self.refusal_went_back())), effects);
        }
        for at in 0..self.peers.len() {
            if !matches!(self.peers[at].link, Link::Down | Link::Waiting) {
                self.peers[at].why = "the register went back (R11c)".into();
                self.close(at, Retry::Later, effects);
            }
        }
    }

    // ------------------------------------------------------------------ the lease

    /// The lease was granted, prolonged or lost.
    pub(crate) fn lease_changed(&mut self, until: Option<Time>, effects: &mut Effects) {
        assert!(self.by_majority(), "a lease for a replica that keeps its own register");
        // A loop that hung may not have seen the end of the one before: what it completed since
        // then is held.
        self.note_lapse(effects);
        self.majority.lease = until;
        self.watch_lease(effects);
    }

    fn note_lapse(&mut self, effects: &mut Effects) {
        let now = self.now;
        if self.majority.has_lease(now) || self.majority.lapse.is_some() {
            return;
        }
        self.majority.lapse = Some(self.majority.lease.unwrap_or(now).min(now));
        if self.role.serves() {
            effects.push(Effect::Note(Note::LeaseLapsed));
        }
    }

    /// When the office began, for as long as there is one.
    fn in_office_since(&self) -> Option<Time> {
        match self.role {
            Role::Primary | Role::Demoting => Some(self.office_since),
            Role::Promoting(promotion) if promotion.phase == Phase::AwaitLease => {
                Some(promotion.since)
            }
            _ => None,
        }
    }

    /// L4: without a lease everything waits; with it everything goes on; after `demote_after` the
    /// office is given up.
    pub(crate) fn watch_lease(&mut self, effects: &mut Effects) {
        let now = self.now;
        if self.majority.has_lease(now) {
            let lapse = self.majority.lapse.take();
            if let Role::Promoting(promotion) = self.role
                && promotion.phase == Phase::AwaitLease
            {
                self.serve(promotion, effects);
                self.greet_waiting(effects);
            } else if let (Some(since), true) = (lapse, self.role.serves()) {
                effects.push(Effect::Note(Note::LeaseBack { after: now.since(since) }));
                self.membership_changed(effects);
            }
            return;
        }
        self.note_lapse(effects);
        let limit = self.config.timing.demote_after;
        if self.without_lease_since().is_some_and(|since| now.since(since) >= limit) {
            self.abandon_office(effects);
        }
    }

    /// Since when an office waits for the lease.
    pub(crate) fn without_lease_since(&self) -> Option<Time> {
        let lapse = self.majority.lapse?;
        self.in_office_since().map(|begun| begun.max(lapse))
    }

    fn abandon_office(&mut self, effects: &mut Effects) {
        effects.push(Effect::Note(Note::OfficeLost { why: "the lease did not come back" }));
        if let Role::Promoting(_) = self.role {
            let refusal = Refusal {
                code: "no_lease",
                rule: "R2c",
                why: format!(
                    "the office is committed, and no lease came within {} s",
                    self.config.timing.demote_after.as_ms() / 1000
                ),
                next: "look at the majority: replctl status".into(),
            };
            self.promotion_refused(refusal, effects);
        } else {
            self.step_down(None, effects);
        }
    }

    /// The device of this tenure is open.
    pub(crate) fn note_served(&mut self) {
        self.majority.has_served = true;
    }

    // ------------------------------------------------------------------ time

    pub(crate) fn watch_majority(&mut self, effects: &mut Effects) {
        if !self.by_majority() {
            return;
        }
        self.watch_lease(effects);
        if self.majority.not_before.is_some_and(|time| time <= self.now) {
            self.propose_again(effects);
        }
        let open_for = self.majority.open.as_ref().map(|open| self.now.since(open.since));
        let Some(open_for) = open_for else { return };
        if self.stopping.is_some()
            && self.role.serves()
            && open_for >= self.config.timing.demote_after
        {
            // A stop does not wait for a majority for ever.
            let why = "no majority decided on its release before the stop";
            effects.push(Effect::Note(Note::OfficeLost { why }));
            self.step_down(None, effects);
        }
        if defect(Defect::UndecidedIsFailed) && open_for >= IMPATIENCE && self.role.serves() {
            self.take_for_failed(effects);
        }
    }

    /// The deliberate defect: as if the proposal were not and would never be committed.
    fn take_for_failed(&mut self, effects: &mut Effects) {
        self.majority.open = None;
        let was = self.change.take();
        if was == Some(Change::Release) {
            self.releasing = false;
            self.set_role(Role::Primary, effects);
            self.open_device(effects);
        }
        self.answer_held(effects);
    }

    pub(crate) fn majority_deadlines(&self) -> impl Iterator<Item = Time> {
        let majority = &self.majority;
        let limit = self.config.timing.demote_after;
        let in_office = self.in_office_since().is_some();
        let lease_end = majority
            .lease
            .filter(|&until| in_office && majority.lapse.is_none() && until != Time(u64::MAX));
        let abandoned = self.without_lease_since().map(|since| since + limit);
        let open_since = majority.open.as_ref().map(|open| open.since);
        let stops = self.stopping.is_some() && self.role.serves();
        let given_up = open_since.filter(|_| stops).map(|since| since + limit);
        let failed = open_since
            .filter(|_| defect(Defect::UndecidedIsFailed) && self.role.serves())
            .map(|since| since + IMPATIENCE);
        let all = [lease_end, abandoned, majority.not_before, given_up, failed];
        all.into_iter().flatten().filter(|_| self.by_majority())
    }

    // ------------------------------------------------------------------ a promotion

    /// Promotion with a majority: it decides who was first; this replica only tells what it holds.
    pub(crate) fn promote_by_majority(
        &mut self,
        ticket: Ticket,
        old_primary_is_off: bool,
        allow_data_loss: bool,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        self.check_settled()?;
        self.check_own_data(allow_data_loss)?;
        let mine = self.superblock.replica;
        let state = self.committed();
        let is_named = |replica: ReplicaId| state.primary == Some(replica);
        let of_another = state.primary.is_some_and(|primary| primary != mine);
        if state.sole && of_another && !old_primary_is_off && !defect(Defect::SoleIgnored) {
            return Err(Refusal {
                code: "sole_primary",
                rule: "R5d",
                why: format!(
                    "{} went on alone under a lease without end",
                    state.primary.map_or("the old primary", |id| self.node_of(id))
                ),
                next: "bring it back; or switch it off for sure and say so: --old-primary-is-off"
                    .into(),
            });
        }
        self.check_power_loss(allow_data_loss)?;
        let keeps_caches = self.register.member(mine).is_some_and(|member| {
            member.incarnation == self.config.incarnation || defect(Defect::ResumeAfterPowerLoss)
        });
        let resumed = is_named(mine)
            && keeps_caches
            && !self.majority.has_served
            && self.superblock.tenure == state.tenure
            && self.is_up_to_date();
        let forced = allow_data_loss && !self.is_up_to_date() || old_primary_is_off && of_another;
        let promotion = Promotion {
            ticket: Some(ticket),
            since: self.now,
            phase: Phase::Draining,
            forced,
            resumed,
        };
        self.begin_promotion(promotion, effects);
        Ok(None)
    }

    /// Why a promotion would be refused for what this replica is and has.
    pub(crate) fn promotion_hindrance(&self) -> Option<Refusal> {
        if !self.by_majority() {
            return None;
        }
        self.check_settled()
            .and_then(|()| self.check_own_data(false))
            .and_then(|()| self.check_power_loss(false))
            .err()
    }

    /// R14, R11c: whether this replica knows where it stands.
    fn check_settled(&self) -> Result<(), Refusal> {
        if self.majority.went_back.is_some() {
            return Err(self.refusal_went_back());
        }
        if self.majority.learned && self.majority.open.is_none() {
            return Ok(());
        }
        let why = if self.majority.learned {
            "an earlier proposal of this replica has no decision yet"
        } else {
            "no majority has answered since this replica started"
        };
        Err(Refusal {
            code: "register_unknown",
            rule: "R14",
            why: why.into(),
            next: "wait until a majority of the nodes can be reached: replctl status".into(),
        })
    }

    fn refusal_went_back(&self) -> Refusal {
        let there = self.majority.went_back.as_ref().map_or(0, |state| state.generation);
        Refusal {
            code: "register_went_back",
            rule: "R11c",
            why: format!(
                "the disk of this replica knows generation {} as committed, the majority {there}",
                self.committed().generation
            ),
            next: "find out which nodes lost their state; or give these data up: replctl \
                   invalidate RESOURCE"
                .into(),
        }
    }

    fn lost_the_race(&self) -> Refusal {
        let state = self.committed();
        let who = state.primary.map_or("nobody", |primary| self.node_of(primary));
        Refusal {
            code: "lost_the_race",
            rule: "R6d",
            why: format!(
                "generation {} was committed meanwhile: primary is {who}",
                state.generation
            ),
            next: "look at replctl status".into(),
        }
    }
}

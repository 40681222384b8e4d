//! The proposer: turns changes into committed states, one after the other, each in two rounds of a
//! majority. It never gives up a change whose outcome is open; it only waits, visibly.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::acceptor::Denial;
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{Cause, ClusterState, Holder};
use crate::command::{Asker, Change, Unfit};
use crate::defect::{Defect, defect};
use crate::message::Message;
use crate::sole::check_sole;

/// Changes that may wait.
pub const QUEUE_MAX: usize = 64;
/// Messages of a round without an answer are sent again after so long.
const RESEND: Span = Span::from_ms(100);
/// A round that lost against another one starts again after a multiple of this, or of the time that
/// it took to lose.
const BACK_OFF: Span = Span::from_ms(8);
/// That time counts up to this, which doubles with every attempt, as the multiples do: one round
/// may have been long since somebody was silent, or since this machine stood still.
const LOSES_WITHIN: Span = Span::from_ms(8);
/// They double this often.
const DOUBLINGS_MAX: u64 = 5;
/// Somebody said no, and the others, who may still be enough, say nothing: others wait behind it.
const PATIENCE: Span = Span::from_ms(10_000);

/// A change that somebody wants.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposal {
    /// Who.
    pub asker: Asker,
    /// What.
    pub change: Change,
    /// Why, for history.
    pub cause: Cause,
}

/// How a proposal ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It is in the register. The state is the newest one.
    Committed,
    /// It does not fit the newest state, which has been learned; it is not in the register.
    Unfit(Unfit),
    /// It was refused, nowhere accepted, and may be tried again.
    NotNow(Denial),
}

/// The offices that a committed state leaves or gives to the process that proposed it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Offices {
    /// The offices, with their tenures.
    pub offices: Vec<(String, u64)>,
    /// The lease of that state.
    pub lease: Span,
    /// The acceptors that accepted it, and so granted the lease (L3).
    pub by: Vec<u128>,
    /// When it was sent to them first.
    pub sent: Time,
}

/// What the proposer wants to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Doing {
    /// Say this to the acceptor of a node, which may be the own one.
    Say(NodeName, Message),
    /// This state is committed.
    Commit(Ballot, ClusterState),
    /// A state of this process is committed: whoever accepted it granted the lease of its offices.
    Granted(Offices),
    /// A proposal ended.
    Ended(Proposal, Outcome),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Preparing {
        promises: BTreeMap<u128, Option<(Ballot, ClusterState)>>,
    },
    Accepting {
        state: ClusterState,
        /// The state it follows: its voters have to agree too.
        base: Option<ClusterState>,
        accepted: BTreeSet<u128>,
        /// When it was sent first.
        since: Time,
        /// It is somebody else's open proposal, settled before our own.
        is_repeat: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Round {
    ballot: Ballot,
    /// The newest state known to be committed: its voters are asked.
    voters_of: Option<ClusterState>,
    /// Others that are asked what they have accepted: they may be voters of a newer state.
    also: Vec<(NodeName, u128)>,
    phase: Phase,
    denied: BTreeMap<u128, Denial>,
    began: Time,
    resend_at: Time,
}

/// The proposer of one data node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposer {
    me: NodeName,
    process: u64,
    counter: u64,
    queue: VecDeque<Proposal>,
    round: Option<Round>,
    retry_at: Time,
    attempts: u64,
    /// The state that the last accept of the first in the queue carried: its outcome is open until
    /// it is settled.
    open: Option<ClusterState>,
    /// Somebody's open proposal that the last round had to settle first, and did not yet.
    to_settle: Option<ClusterState>,
    /// When the first in the queue came to be the first.
    since: Time,
    /// Why the last round of the first in the queue ended.
    last_denial: Option<Denial>,
}

impl Proposer {
    /// A proposer of this process.
    pub fn new(me: NodeName, process: u64) -> Self {
        Self {
            me,
            process,
            counter: 0,
            queue: VecDeque::new(),
            round: None,
            retry_at: Time(0),
            attempts: 0,
            open: None,
            to_settle: None,
            since: Time(0),
            last_denial: None,
        }
    }

    /// The highest counter it has used or seen.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// The voters are others, by an operator's word: a round among the old ones never ends.
    pub fn start_anew(&mut self, now: Time) {
        self.round = None;
        self.retry_at = now;
    }

    /// Whether nothing is proposed or waiting.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a round is under way.
    pub fn is_in_round(&self) -> bool {
        self.round.is_some()
    }

    /// The state whose voters the round asks.
    pub(crate) fn asks(&self) -> Option<&ClusterState> {
        self.round.as_ref()?.voters_of.as_ref()
    }

    /// The state that was proposed and may be committed, or come to be (SAFETY.md "Open proposal").
    pub fn open(&self) -> Option<&ClusterState> {
        self.open.as_ref()
    }

    /// Somebody's open proposal that has to be settled before anything else.
    pub(crate) fn to_settle(&self) -> Option<&ClusterState> {
        self.to_settle.as_ref()
    }

    /// Whether a proposal of this asker is under way.
    pub fn has(&self, wanted: impl Fn(&Proposal) -> bool) -> bool {
        self.queue.iter().any(wanted)
    }

    /// What is being proposed, since when, and why the last round failed.
    pub fn waits(&self) -> Option<(&Proposal, Time, Option<&Denial>)> {
        Some((self.queue.front()?, self.since, self.last_denial.as_ref()))
    }

    /// The change that is next, for a register that is not kept by the nodes (`etcd.rs`).
    pub(crate) fn first(&self) -> Option<&Proposal> {
        self.queue.front()
    }

    /// The first change was proposed as that state; its outcome is open.
    pub(crate) fn opened(&mut self, state: ClusterState) {
        self.open = Some(state);
    }

    /// The first change ended.
    pub(crate) fn end_first(&mut self, now: Time) -> Option<Proposal> {
        let proposal = self.queue.pop_front();
        self.begin_first(now);
        proposal
    }

    /// Queues a change; refused when too many wait.
    pub fn propose(&mut self, now: Time, proposal: Proposal) -> Result<(), Proposal> {
        if self.queue.len() >= QUEUE_MAX {
            return Err(proposal);
        }
        if self.queue.is_empty() {
            self.begin_first(now);
        }
        self.queue.push_back(proposal);
        Ok(())
    }

    fn begin_first(&mut self, now: Time) {
        (self.attempts, self.open, self.since, self.last_denial) = (0, None, now, None);
        (self.to_settle, self.retry_at) = (None, now);
    }

    /// When something is to be done without a message coming in.
    pub fn next_deadline(&self) -> Option<Time> {
        match &self.round {
            Some(round) => Some(round.resend_at),
            None => (!self.queue.is_empty()).then_some(self.retry_at),
        }
    }

    /// Starts the next round, or repeats what had no answer. `known` is committed; before anything
    /// is, `accepted`, which may not be, says whom to ask, and `also` who has something newer.
    pub fn go_on(
        &mut self,
        now: Time,
        known: Option<&(Ballot, ClusterState)>,
        (accepted, also): (Option<&ClusterState>, Vec<(NodeName, u128)>),
        doing: &mut Vec<Doing>,
    ) {
        self.close_overtaken(known.map(|(_, state)| state));
        if let Some(round) = self.round.as_mut().filter(|_| !also.is_empty()) {
            round.also.clone_from(&also);
        }
        if self.round.as_ref().is_some_and(|round| now >= round.resend_at) {
            self.end_without_prospect(now, known.map(|(_, state)| state), doing);
        }
        if let Some(round) = self.round.as_ref().filter(|round| now >= round.resend_at) {
            // Who has promised more never agrees to this ballot, and the others may be silent for
            // ever: a higher one is tried.
            let is_outbid = round.denied.values().any(|why| matches!(why, Denial::Promised(_)));
            if is_outbid {
                self.back_off(now);
            } else {
                self.send(now, doing);
            }
        }
        if self.round.is_some() || self.queue.is_empty() || now < self.retry_at {
            return;
        }
        let voters_of = known.map(|(_, state)| state).or(accepted).cloned();
        let change = self.queue.front().map(|proposal| &proposal.change);
        let has_whom = voters_of.is_some() || !also.is_empty();
        if !has_whom && !matches!(change, Some(Change::Found { .. })) {
            // There is nobody to be asked: a round would never end, and nothing come after it.
            return self.end(now, Outcome::Unfit(Unfit::NotFounded), doing);
        }
        let known_counter = known.map_or(0, |(ballot, _)| ballot.counter);
        self.counter = self.counter.max(known_counter).saturating_add(1);
        let ballot = Ballot { counter: self.counter, node: self.me.clone(), process: self.process };
        self.round = Some(Round {
            ballot,
            voters_of,
            also,
            phase: Phase::Preparing { promises: BTreeMap::new() },
            denied: BTreeMap::new(),
            began: now,
            resend_at: now,
        });
        self.send(now, doing);
    }

    /// What a replica wants names the state that it replaces. Once the register is known to have
    /// moved past the revision that was proposed, and still has that state, the proposal was not
    /// committed and never will be: nothing of it is open any more.
    fn close_overtaken(&mut self, known: Option<&ClusterState>) {
        if let (Some(open), Some(known), Some(first)) = (&self.open, known, self.queue.front())
            && first.change.is_of_replica()
            && known.revision >= open.revision
            && first.change.apply(Some(known), &self.me, &first.cause).is_ok()
        {
            self.open = None;
        }
    }

    /// Ends the first proposal when nothing of it is open and it has no prospect: what is known by
    /// now has overtaken it, or somebody refuses and the rest is silent.
    fn end_without_prospect(
        &mut self,
        now: Time,
        known: Option<&ClusterState>,
        doing: &mut Vec<Doing>,
    ) {
        let (Some(round), None) = (&self.round, &self.open) else { return };
        let (Phase::Preparing { .. }, Some(proposal)) = (&round.phase, self.queue.front()) else {
            return;
        };
        let asked = round.voters_of.as_ref().map_or(0, |state| state.revision);
        let newer = known.filter(|known| known.revision > asked && proposal.change.is_of_replica());
        let overtaken = newer
            .and_then(|newer| proposal.change.apply(Some(newer), &self.me, &proposal.cause).err());
        let is_late = now.since(round.began) >= PATIENCE;
        let refusal = round.denied.values().next().filter(|_| is_late);
        let outcome = match (overtaken, refusal) {
            (Some(Unfit::Already), _) => Outcome::Committed,
            (Some(unfit), _) => Outcome::Unfit(unfit),
            (None, Some(why)) => Outcome::NotNow(why.clone()),
            (None, None) => return,
        };
        self.end(now, outcome, doing);
    }

    /// The nodes whose acceptors are asked.
    fn asked(&self) -> Vec<(NodeName, u128)> {
        let of = |state: &ClusterState| -> Vec<(NodeName, u128)> {
            state.all_voters().map(|voter| (voter.node.clone(), voter.acceptor)).collect()
        };
        let Some(round) = &self.round else { return Vec::new() };
        let mut asked = match &round.voters_of {
            Some(state) => of(state),
            None => match self.queue.front().map(|proposal| &proposal.change) {
                Some(Change::Found { voters, .. }) => {
                    voters.iter().map(|voter| (voter.node.clone(), voter.acceptor)).collect()
                }
                _ => Vec::new(),
            },
        };
        match &round.phase {
            Phase::Preparing { .. } => asked.extend(round.also.iter().cloned()),
            Phase::Accepting { state, .. } => asked.extend(of(state)),
        }
        asked.sort();
        asked.dedup();
        asked
    }

    fn send(&mut self, now: Time, doing: &mut Vec<Doing>) {
        let asked = self.asked();
        let takes = self.takes();
        let Some(round) = &mut self.round else { return };
        round.resend_at = now + RESEND;
        for (node, acceptor) in asked {
            let message = match &round.phase {
                Phase::Preparing { promises } if !promises.contains_key(&acceptor) => {
                    Message::Prepare { ballot: round.ballot.clone(), takes: takes.clone() }
                }
                Phase::Accepting { state, accepted, .. } if !accepted.contains(&acceptor) => {
                    Message::Accept { ballot: round.ballot.clone(), state: state.clone() }
                }
                _ => continue,
            };
            doing.push(Doing::Say(node, message));
        }
    }

    /// The offices that the first in the queue would take from somebody else (L2). One that the
    /// register moved past takes nothing: only its outcome is asked for, which no lease may delay.
    fn takes(&self) -> Vec<String> {
        let change = self.queue.front().map(|proposal| &proposal.change);
        let Some(Change::Replica { resource, expected, next, .. }) = change else {
            return Vec::new();
        };
        let known = self.round.as_ref().and_then(|round| round.voters_of.as_ref());
        let old = known.and_then(|state| state.resource(resource));
        let taken = old.is_some_and(|old| {
            old.holder.as_ref().is_some_and(|holder| holder.node != self.me)
                && next.tenure != old.state.tenure
                && *expected == old.state.generation
        });
        if taken { alloc::vec![resource.clone()] } else { Vec::new() }
    }

    /// An acceptor promised.
    pub fn promised(
        &mut self,
        now: Time,
        (acceptor, ballot, accepted): (u128, &Ballot, Option<(Ballot, ClusterState)>),
        known: Option<&(Ballot, ClusterState)>,
        doing: &mut Vec<Doing>,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.ballot == *ballot) else {
            return;
        };
        let Phase::Preparing { promises } = &mut round.phase else { return };
        promises.insert(acceptor, accepted);
        let promises = promises.clone();
        let highest = promises.values().flatten().max_by(|a, b| a.0.cmp(&b.0)).cloned();
        let highest = if defect(Defect::HighestValueIgnored) { known.cloned() } else { highest };
        // The newest state that the promises know of says who votes (L7).
        if let Some((_, state)) = &highest
            && round.voters_of.as_ref().is_none_or(|of| of.revision < state.revision)
        {
            let asked = round.voters_of.as_ref().map(|of| (&of.voters, &of.next_voters));
            let is_new = asked != Some((&state.voters, &state.next_voters));
            round.voters_of = Some(state.clone());
            if is_new {
                round.resend_at = now;
            }
        }
        if !self.is_majority(|id| promises.contains_key(&id)) {
            return self.go_on(now, known, (None, Vec::new()), doing);
        }
        let newest = match (highest, known) {
            // What is known to be committed needs no proof.
            (Some(highest), Some(known)) if known.0 >= highest.0 => Some((known.clone(), true)),
            (Some(highest), _) => {
                let has = |id: u128| {
                    promises.get(&id).and_then(Option::as_ref).is_some_and(|a| a.0 == highest.0)
                };
                let is_chosen = highest.1.is_majority(has);
                Some((highest, is_chosen))
            }
            (None, known) => known.cloned().map(|known| (known, true)),
        };
        self.promised_by_majority(now, newest, doing);
    }

    fn promised_by_majority(
        &mut self,
        now: Time,
        newest: Option<((Ballot, ClusterState), bool)>,
        doing: &mut Vec<Doing>,
    ) {
        let base = match newest {
            Some(((_, mut state), false)) => {
                // Somebody's open proposal: it is settled first, in its proposer's name (L2).
                if defect(Defect::RepeatInOwnName) {
                    state.by = self.me.clone();
                }
                return self.begin_accept(now, state, None, true, doing);
            }
            Some(((ballot, state), true)) => {
                doing.push(Doing::Commit(ballot, state.clone()));
                Some(state)
            }
            None => None,
        };
        let first = self.queue.front().expect("a round has a proposal");
        if first.change == Change::Read && base.is_some() {
            return self.end(now, Outcome::Committed, doing);
        }
        // It may have been committed, and undone since by somebody else: it is not made again.
        if let (Some(open), Some(base)) = (&self.open, &base)
            && base.revision > open.revision
            && !first.change.is_guarded()
            && !defect(Defect::OpenChangeRepeated)
        {
            return self.end(now, Outcome::Unfit(Unfit::Newer), doing);
        }
        if self.open.is_some() && self.open == base {
            return self.end(now, Outcome::Committed, doing);
        }
        match first.change.apply(base.as_ref(), &self.me, &first.cause) {
            Ok(next) => match base.as_ref().map_or(Ok(()), |base| check_sole(base, &next)) {
                Ok(()) => self.begin_accept(now, next, base, false, doing),
                // Nowhere accepted: what was sent of it before followed this very state, and
                // passed, or one that another has followed since.
                Err(why) => self.end(now, Outcome::NotNow(why), doing),
            },
            // Proposed before with an outcome that was open: it was committed.
            Err(Unfit::Already) => self.end(now, Outcome::Committed, doing),
            Err(unfit) => self.end(now, Outcome::Unfit(unfit), doing),
        }
    }

    fn begin_accept(
        &mut self,
        now: Time,
        state: ClusterState,
        base: Option<ClusterState>,
        is_repeat: bool,
        doing: &mut Vec<Doing>,
    ) {
        if is_repeat {
            self.to_settle = Some(state.clone());
        } else {
            (self.open, self.to_settle) = (Some(state.clone()), None);
        }
        let round = self.round.as_mut().expect("its promises came in");
        let accepted = BTreeSet::new();
        round.phase = Phase::Accepting { state, base, accepted, since: now, is_repeat };
        round.denied.clear();
        self.send(now, doing);
    }

    /// An acceptor accepted.
    pub fn accepted(&mut self, now: Time, acceptor: u128, ballot: &Ballot, doing: &mut Vec<Doing>) {
        let Some(round) = self.round.as_mut().filter(|round| round.ballot == *ballot) else {
            return;
        };
        let Phase::Accepting { state, base, accepted, since, is_repeat } = &mut round.phase else {
            return;
        };
        accepted.insert(acceptor);
        let has = |id: u128| accepted.contains(&id);
        let base_agrees = base.as_ref().is_none_or(|base| base.is_majority(has))
            || defect(Defect::NewMajorityOnly);
        if !base_agrees || !state.is_majority(has) {
            return;
        }
        if !*is_repeat {
            let me = Holder { node: self.me.clone(), process: self.process };
            let offices = state.offices_of(&me);
            let (lease, by, sent) = (state.lease, accepted.iter().copied().collect(), *since);
            doing.push(Doing::Granted(Offices { offices, lease, by, sent }));
        }
        doing.push(Doing::Commit(ballot.clone(), state.clone()));
        if *is_repeat {
            (self.round, self.to_settle) = (None, None);
            self.retry_at = now;
        } else {
            self.end(now, Outcome::Committed, doing);
        }
    }

    /// An acceptor refused.
    pub fn denied(
        &mut self,
        now: Time,
        acceptor: u128,
        (ballot, is_accept): (&Ballot, bool),
        why: Denial,
        doing: &mut Vec<Doing>,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.ballot == *ballot) else {
            return;
        };
        if is_accept != matches!(round.phase, Phase::Accepting { .. }) {
            return;
        }
        if let Denial::Promised(higher) = &why {
            self.counter = self.counter.max(higher.counter);
        }
        round.denied.insert(acceptor, why.clone());
        let denied = round.denied.clone();
        if self.is_majority(|id| !denied.contains_key(&id)) {
            // The others may still be enough.
            return;
        }
        self.last_denial = Some(why.clone());
        if matches!(why, Denial::Promised(_)) || self.open.is_some() {
            self.back_off(now);
        } else {
            self.end(now, Outcome::NotNow(why), doing);
        }
    }

    /// The round is over, and another one begins after a pause: those who are in each other's way
    /// part since the pauses of each process are others, and since they grow until one of them has
    /// the time that a round takes here.
    fn back_off(&mut self, now: Time) {
        let took = self.round.take().map_or(Span(0), |round| now.since(round.began));
        self.attempts += 1;
        let widest = 1 << self.attempts.min(DOUBLINGS_MAX);
        let place = mix(self.process, self.attempts) % widest + 1;
        let unit = took.clamp(BACK_OFF, Span(LOSES_WITHIN.0 * widest));
        self.retry_at = now + Span(unit.0 * place);
    }

    fn is_majority(&self, has: impl Fn(u128) -> bool) -> bool {
        let Some(round) = &self.round else { return false };
        match &round.voters_of {
            Some(state) => state.is_majority(has),
            None => match self.queue.front().map(|proposal| &proposal.change) {
                // The first state needs everybody, so that no second cluster comes to be.
                Some(Change::Found { voters, .. }) => {
                    voters.iter().all(|voter| has(voter.acceptor))
                }
                _ => false,
            },
        }
    }

    fn end(&mut self, now: Time, outcome: Outcome, doing: &mut Vec<Doing>) {
        self.round = None;
        let proposal = self.queue.pop_front().expect("a round has a proposal");
        self.begin_first(now);
        doing.push(Doing::Ended(proposal, outcome));
    }
}

/// A number that looks drawn (SplitMix64, Steele et al. 2014).
fn mix(process: u64, attempts: u64) -> u64 {
    let mut word = process.wrapping_add(attempts.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

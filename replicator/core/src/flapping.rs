//! A link that flaps (P6 of SCENARIOS.md): a follower that was dropped again and again has to be
//! heard for a while without a break before it is brought up to date once more.
//!
//! Each time a member is lost, clients wait until the loss is noticed and its removal is committed
//! (R3). A member that comes and goes makes them wait each time, and is a member for so short that
//! nobody is safer for it. So the primary counts how often it dropped each peer:
//!
//! | drops in the last ten minutes | 0-2 | 3 | 4 | 5 | 6 | 7 and more |
//! |---|---|---|---|---|---|---|
//! | to be heard without a break for | 0 | 5 s | 10 s | 20 s | 40 s | 60 s |
//!
//! (the shipped [`Timing`]). The time begins anew with each session: where the link holds for
//! less, the peer does not come back until enough of its drops are old. Meanwhile it is what any
//! replica outside the set is: what is written is dirty for it, and nothing waits for it (R4).
//!
//! A drop is a removal from the in-sync set that nobody wished: not the orderly stop of a daemon,
//! a disconnection or full resync that an operator orders here, a take-over. Nobody is held back
//! who is a member still; nor when this replica's disk fails, since the peer is needed (R16); nor
//! after an operator's `connect`. What is counted is in memory only: a new office begins at
//! nothing.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use crate::block::PeerIndex;
use crate::config::Timing;
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::note::Note;
use crate::peer::{Lead, Link};
use crate::register::RegisterState;
use crate::replica::Replica;
use crate::time::{Span, Time};
use crate::wire::Message;

/// So many drops have no consequence.
const DROPS_FORGIVEN: usize = 2;
/// More make no difference: the delay is at its most long before.
const DROPS_KEPT: usize = 16;

/// How often a peer was dropped lately.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Flapping {
    /// When, oldest first.
    drops: VecDeque<Time>,
    /// It leaves because somebody wants it to.
    pub(crate) leaves: bool,
    /// Since when it is heard without a break: its present session was agreed on then.
    heard_since: Time,
}

impl Flapping {
    /// Nothing is counted, and its coming removal will not be.
    pub(crate) fn of_one_who_leaves() -> Self {
        Self { leaves: true, ..Self::default() }
    }

    /// A session was agreed on.
    pub(crate) fn met(&mut self, now: Time) {
        self.heard_since = now;
        self.leaves = false;
    }

    /// How many drops are remembered.
    pub(crate) fn drops(&self, now: Time, timing: &Timing) -> usize {
        self.drops.iter().filter(|&&drop| now.since(drop) < timing.drops_window).count()
    }

    fn count(&mut self, now: Time, timing: &Timing) {
        if timing.rejoin_delay == Span(0) || defect(Defect::DropNotCounted) {
            return;
        }
        self.drops.retain(|&drop| now.since(drop) < timing.drops_window);
        if self.drops.len() == DROPS_KEPT {
            self.drops.pop_front();
        }
        self.drops.push_back(now);
    }

    /// For how long it has to be heard before it is brought up to date.
    fn delay(&self, now: Time, timing: &Timing) -> Span {
        rejoin_delay(self.drops(now, timing), timing)
    }

    fn forget(&mut self) -> bool {
        !core::mem::take(&mut self.drops).is_empty()
    }
}

/// What so many drops cost.
fn rejoin_delay(drops: usize, timing: &Timing) -> Span {
    let Some(doublings) = drops.checked_sub(DROPS_FORGIVEN + 1) else { return Span(0) };
    let factor = 1u64 << doublings.min(DROPS_KEPT);
    let longest = timing.rejoin_delay_max.max(timing.rejoin_delay);
    Span(timing.rejoin_delay.0.saturating_mul(factor)).min(longest)
}

impl Replica {
    /// A commit of the own office removed members: those that were lost count as dropped.
    pub(crate) fn count_drops(&mut self, old: &RegisterState) {
        let (now, timing) = (self.now, self.config.timing);
        for member in old.set.iter().filter(|it| !self.register.contains(it.replica)) {
            let replica = member.replica;
            let at = self.peer_of(replica).or_else(|| self.peer_known_as(replica));
            if let Some(at) = at
                && !self.peers[at].flapping.leaves
            {
                self.peers[at].flapping.count(now, &timing);
            }
        }
    }

    /// Whether a follower that is no member has to wait, and then lets it.
    pub(crate) fn hold_back(&mut self, at: usize, effects: &mut Effects) -> bool {
        let flapping = &self.peers[at].flapping;
        let timing = &self.config.timing;
        let since = flapping.heard_since;
        let until = since + flapping.delay(self.now, timing);
        if until <= self.now {
            return false;
        }
        let drops = flapping.drops(self.now, timing);
        self.peers[at].link = Link::Leading(Lead::HeldBack { since, until });
        let peer = PeerIndex(at as u8);
        // It may not have heard of its removal, and must not think meanwhile that it is a member.
        let state = Box::new(self.register.clone());
        self.send(peer, Message::Committed(state), None, effects);
        let left = until.since(self.now);
        effects.push(Effect::Note(Note::HeldBack { peer, drops, left }));
        true
    }

    /// Who was heard for long enough is brought up to date.
    pub(crate) fn watch_held_back(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            if self.peers[at].held_back_until().is_some_and(|until| until <= self.now) {
                self.plan_follower(at, effects);
            }
        }
    }

    /// What was counted of a peer counts no more; whether there was anything.
    pub(crate) fn forgive_drops(&mut self, at: usize, effects: &mut Effects) -> bool {
        let had_drops = self.peers[at].flapping.forget();
        if self.peers[at].held_back_until().is_some() {
            self.plan_follower(at, effects);
        }
        had_drops
    }

    /// The own disk fails: whoever has the data is needed.
    pub(crate) fn forgive_all_drops(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            self.forgive_drops(at, effects);
        }
    }
}

impl crate::peer::Peer {
    /// When it is brought up to date, if it is held back.
    pub(crate) fn held_back_until(&self) -> Option<Time> {
        match self.link {
            Link::Leading(Lead::HeldBack { until, .. }) if !defect(Defect::HeldBackForEver) => {
                Some(until)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_that_of_the_table() {
        let timing = Timing::default();
        let seconds: alloc::vec::Vec<u64> =
            (0..10).map(|drops| rejoin_delay(drops, &timing).as_ms() / 1000).collect();
        assert_eq!(seconds, [0, 0, 0, 5, 10, 20, 40, 60, 60, 60]);
        let mut flapping = Flapping::default();
        flapping.count(Time(1), &Timing { rejoin_delay: Span(0), ..timing });
        assert!(flapping.drops.is_empty(), "nothing is counted where nothing follows from it");
    }

    #[test]
    fn drops_are_forgotten_one_by_one_and_few_are_kept() {
        let timing = Timing::default();
        let mut flapping = Flapping::default();
        let minute = |minutes: u64| Time(minutes * 60_000_000_000);
        for minutes in 0..4 {
            flapping.count(minute(minutes), &timing);
        }
        let drops = |minutes| flapping.drops(minute(minutes), &timing);
        assert_eq!([3, 9, 10, 11, 12, 13].map(drops), [4, 4, 3, 2, 1, 0]);
        for _ in 0..1000 {
            flapping.count(minute(20), &timing);
        }
        assert_eq!(flapping.drops.len(), DROPS_KEPT);
    }
}

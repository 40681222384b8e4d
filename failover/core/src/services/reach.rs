//! Who sees more: whether a primary that its clients cannot reach gives the office to a node that
//! they can, and why that never goes round in circles.
//!
//! Each data node counts how many of the targets of a `reach` service answer it. The primary moves
//! only when **all** of this holds: it sees too few; another node sees strictly more, and enough;
//! both have been so without a break for [`STEADY_FOR`]; and it is in office for long enough. How
//! long that is doubles with every move for this reason, so that a network that flaps on both sides
//! in turn moves the office ever more rarely. When all see equally little, nobody moves: a dead
//! gateway is nobody's fault.

use alloc::vec::Vec;

use replicator_core::{Span, Time};
use serde::{Deserialize, Serialize};

use crate::ballot::NodeName;

/// For so long the primary must see too few, and the other one more.
pub const STEADY_FOR: Span = Span::from_ms(3_000);
/// So long an office is kept after it was taken, before it may move for this reason.
pub const OFFICE_MIN: Span = Span::from_ms(30_000);
/// And twice as long for each such move of the last hour, up to so many doublings.
const DOUBLINGS_MAX: usize = 6;
const MOVES_REMEMBERED: Span = Span::from_ms(3_600_000);

/// What a node sees of the targets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// How many answer.
    pub answer: u16,
    /// Of how many.
    pub of: u16,
    /// How many must.
    pub need: u16,
    /// Whether the link has a carrier, where one is asked for.
    pub has_carrier: bool,
}

impl Seen {
    /// Whether clients are taken to reach this node.
    pub fn is_enough(&self) -> bool {
        self.has_carrier && self.answer >= self.need
    }

    fn count(&self) -> u16 {
        if self.has_carrier { self.answer } else { 0 }
    }
}

/// What the primary remembers between looks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    too_few_since: Option<Time>,
    /// Who has been seeing more, and since when.
    more_since: Option<(NodeName, Time)>,
    moved: Vec<Time>,
}

impl Comparison {
    /// Looks again; to whom the office should go now, if to anybody. `in_office_since`: when this
    /// node took it.
    pub fn look<'a>(
        &mut self,
        now: Time,
        in_office_since: Time,
        own: &Seen,
        others: impl Iterator<Item = (&'a NodeName, &'a Seen)>,
    ) -> Option<NodeName> {
        self.moved.retain(|at| now.since(*at) < MOVES_REMEMBERED);
        if own.is_enough() {
            (self.too_few_since, self.more_since) = (None, None);
            return None;
        }
        let too_few_since = *self.too_few_since.get_or_insert(now);
        let better = others.filter(|(_, seen)| seen.is_enough() && seen.count() > own.count());
        // Of several the one that sees most; the first by name, so that it stays the same one.
        let best = better
            .max_by(|(one, a), (other, b)| a.count().cmp(&b.count()).then_with(|| other.cmp(one)));
        let Some((best, _)) = best else {
            self.more_since = None;
            return None;
        };
        let more_since = match &self.more_since {
            Some((node, since)) if node == best => *since,
            _ => now,
        };
        self.more_since = Some((best.clone(), more_since));
        let is_steady = |since: Time| now.since(since) >= STEADY_FOR;
        let has_served = now.since(in_office_since) >= self.office_min(now);
        if !(is_steady(too_few_since) && is_steady(more_since) && has_served) {
            return None;
        }
        self.moved.push(now);
        (self.too_few_since, self.more_since) = (None, None);
        Some(best.clone())
    }

    /// How long the office is kept now.
    pub fn office_min(&self, now: Time) -> Span {
        let recent = self.moved.iter().filter(|at| now.since(**at) < MOVES_REMEMBERED);
        Span(OFFICE_MIN.0 << recent.count().min(DOUBLINGS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 200;

    fn seen(answer: u16) -> Seen {
        Seen { answer, of: 3, need: 2, has_carrier: true }
    }

    fn at(ms: u64) -> Time {
        Time(Span::from_ms(ms).0)
    }

    fn node(name: &str) -> NodeName {
        NodeName(name.into())
    }

    /// When the office moves, if it does within ten minutes.
    fn moves_at(own: impl Fn(u64) -> Seen, other: impl Fn(u64) -> Seen) -> Option<u64> {
        let (mut comparison, beta) = (Comparison::default(), node("beta"));
        (0..600_000).step_by(STEP as usize).find(|ms| {
            let seen = other(*ms);
            let others = [(&beta, &seen)];
            comparison.look(at(*ms), at(0), &own(*ms), others.into_iter()).is_some()
        })
    }

    #[test]
    fn a_primary_that_sees_too_few_moves_to_one_that_sees_enough() {
        let lost_at = 60_000;
        let own = |ms| seen(if ms < lost_at { 3 } else { 1 });
        let moved = moves_at(own, |_| seen(3)).unwrap();
        assert_eq!(moved, lost_at + STEADY_FOR.as_ms());
    }

    #[test]
    fn it_stays_when_the_other_one_sees_no_more_or_not_enough() {
        assert_eq!(moves_at(|_| seen(0), |_| seen(0)), None);
        assert_eq!(moves_at(|_| seen(1), |_| seen(1)), None);
        assert_eq!(moves_at(|_| seen(0), |_| seen(1)), None);
        assert_eq!(moves_at(|_| seen(2), |_| seen(3)), None, "it sees enough");
    }

    #[test]
    fn a_lost_carrier_is_seeing_nothing() {
        let dark = Seen { has_carrier: false, ..seen(3) };
        assert!(moves_at(|_| dark, |_| seen(2)).is_some());
        assert_eq!(moves_at(|_| seen(1), |_| dark), None);
    }

    #[test]
    fn a_short_loss_moves_nothing() {
        let flapping = |ms: u64| seen(if ms % 4_000 < 2_500 { 0 } else { 3 });
        assert_eq!(moves_at(flapping, |_| seen(3)), None);
        assert_eq!(moves_at(|_| seen(0), flapping), None);
    }

    #[test]
    fn a_fresh_primary_stays_for_a_while() {
        assert_eq!(moves_at(|_| seen(0), |_| seen(3)), Some(OFFICE_MIN.as_ms()));
    }

    /// Two nodes that go blind in turn, each for a minute: the office moves ever more rarely.
    #[test]
    fn two_that_flap_in_turn_never_loop() {
        let names = [node("alpha"), node("beta")];
        let mut comparisons = [Comparison::default(), Comparison::default()];
        let (mut primary, mut since, mut moves) = (0, 0, Vec::new());
        for ms in (0..3_600_000).step_by(STEP as usize) {
            let blind = (ms / 60_000 % 2) as usize;
            let sees = |index: usize| seen(if index == blind { 0 } else { 3 });
            let other = 1 - primary;
            let seen_there = sees(other);
            let others = [(&names[other], &seen_there)];
            let own = sees(primary);
            if comparisons[primary].look(at(ms), at(since), &own, others.into_iter()).is_some() {
                moves.push(ms);
                (primary, since) = (other, ms);
            }
        }
        assert!((3..=14).contains(&moves.len()), "{moves:?}");
        let pauses: Vec<u64> = moves.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.last() > pauses.first(), "{pauses:?}");
    }

    #[test]
    fn of_several_the_one_that_sees_most_is_taken() {
        let mut comparison = Comparison::default();
        let (beta, delta, gamma) = (node("beta"), node("delta"), node("gamma"));
        let (two, three) = (seen(2), seen(3));
        let others = || [(&gamma, &three), (&delta, &two), (&beta, &three)].into_iter();
        let start = at(100_000);
        assert_eq!(comparison.look(start, at(0), &seen(0), others()), None);
        let later = start + STEADY_FOR;
        assert_eq!(comparison.look(later, at(0), &seen(0), others()), Some(beta.clone()));
    }
}

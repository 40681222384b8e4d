//! Two data nodes without a witness (SAFETY.md "No witness"): when one switches the other off, what
//! counts as confirmed, and when it takes the office, or goes on alone, then. Pure: facts in,
//! orders out.
//!
//! A primary that lost its peer suspends writes until the peer is off for sure, or has promised to
//! stand back: so the peer, should it be the one that survives, lacks nothing. When both are alive
//! and cut off, each is about to switch the other off: the primary waits half as long, so that it
//! is first; whoever is off in the end has acknowledged nothing alone.
//!
//! ```text
//!  watching -> suspected -> fencing(off, status, probe) -> confirmed: promote
//!                              |  ^                            |
//!                              v  | back-off                   v refused
//!                             failed  <------------------------+
//! ```
//! An attempt counts only when `off` succeeded, `status` says off, nothing accepts connections at
//! any address of the peer, and the peer was silent all the time: a lie promotes nobody.
//!
//! Here: what is seen and when that is reason enough; `fence/attempt.rs`: an attempt to its end;
//! `fence/report.rs`: what can be seen of it; `fence/boundary.rs`: what goes in and comes out.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;

use replicator_core::{Span, Time};

use crate::verdict::Verdict;

mod attempt;
mod boundary;
mod report;

pub use boundary::{Action, Effect, Ended, Facts, Input, Note, Request, Settings, Waiting};

/// The rule of SAFETY.md that all of this is about.
const RULE: &str = "No witness";
/// How often `status` is asked again while it says on: machines take a while to lose power.
const ASK_AGAIN: Span = Span::from_ms(1_000);

/// Where an attempt is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// `off` runs.
    Switching,
    /// `status` runs.
    Asking,
    /// `status` said on; it is asked again at this time.
    StillOn(Time),
    /// The addresses are tried.
    Probing,
}

/// One state.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Watching,
    /// The peer is silent and was primary of something.
    Suspected,
    Fencing {
        attempt: u32,
        stage: Stage,
        /// When `off` succeeded.
        off_at: Time,
    },
    /// It is off. Promotions that did not end yet.
    Confirmed {
        waiting: Vec<String>,
        /// Why one was refused.
        refused: Option<String>,
    },
    Failed {
        attempt: u32,
        /// When it is tried again; none: only by an operator.
        retry_at: Option<Time>,
    },
}

/// The decision, for one peer.
#[derive(Clone, Debug)]
pub struct Fence {
    settings: Settings,
    state: State,
    /// When the state began.
    since: Time,
    facts: Facts,
    /// Since when the peer has been silent; none while it is heard, or before the first facts.
    silent_since: Option<Time>,
    /// When the last facts came.
    looked_at: Time,
    /// Whether it was ever heard.
    was_heard: bool,
    /// Whether it was heard since the attempt began.
    heard_meanwhile: bool,
    /// What waited when the attempt began: only that is set free by its end.
    covered: Vec<Waiting>,
    /// When a living peer was asked to stand back last, whether it has answered, and its refusal.
    asked: Option<(Time, bool, String)>,
    /// Whether an operator waits for the end of the attempt.
    is_ordered: bool,
    /// Whether the peer is off by an operator's word.
    is_by_word: bool,
    /// Why the last attempt failed.
    failure: Option<Verdict>,
    /// When and how the peer was fenced last.
    last_fenced: Option<(Time, String)>,
}

impl Fence {
    /// Nothing is known yet.
    pub fn new(now: Time, settings: Settings) -> Self {
        assert!(settings.attempts > 0, "a round has attempts: checked with the configuration");
        Self {
            settings,
            state: State::Watching,
            since: now,
            facts: Facts::default(),
            silent_since: None,
            looked_at: now,
            was_heard: false,
            heard_meanwhile: false,
            covered: Vec::new(),
            asked: None,
            is_ordered: false,
            is_by_word: false,
            failure: None,
            last_fenced: None,
        }
    }

    /// Takes in a fact and says what is to be done.
    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Looked(facts) => self.looked(now, facts, effects),
            Input::Ordered { is_off } => self.ordered(now, is_off, effects),
            Input::StoodBack { waiting, refused } => self.stood_back(waiting, refused, effects),
            Input::AgentEnded { request, ended, said } => {
                self.agent_ended(now, request, &ended, &said, effects);
            }
            Input::Probed { accepted } => self.probed(now, accepted, effects),
            Input::PromotionEnded { resource, refused } => {
                self.promotion_ended(now, &resource, refused, effects);
            }
        }
    }

    // ------------------------------------------------------------------ what is seen

    fn looked(&mut self, now: Time, facts: Facts, effects: &mut Vec<Effect>) {
        self.facts = facts;
        // Who slept for half of the patience heard nothing because of that: it counts anew.
        let has_slept = now.since(self.looked_at).0 * 2 > self.patience().0;
        self.looked_at = now;
        if has_slept && matches!(self.state, State::Watching | State::Suspected) {
            self.silent_since = None;
        }
        if self.facts.is_heard {
            self.was_heard = true;
            self.heard_meanwhile = true;
            self.silent_since = None;
        } else if self.silent_since.is_none() {
            self.silent_since = Some(now);
        }
        self.ask_living_peer(now, effects);
        match self.state {
            State::Watching if self.has_lost_peer() => {
                self.enter(now, State::Suspected);
                let peer = &self.settings.peer;
                let text = format!("{peer} is silent {}: {}", self.what_for(), self.what_follows());
                effects.push(Effect::Note(Note::Suspected(text)));
            }
            State::Suspected if !self.has_lost_peer() => self.watch_again(now, effects),
            State::Suspected if self.settings.is_automatic && self.waited(now) => {
                self.begin(now, 1, effects);
            }
            State::Fencing { stage: Stage::StillOn(again), .. } if now >= again => {
                self.set_stage(Stage::Asking);
                effects.push(Effect::RunAgent(Request::Status));
            }
            // Promotions under way are waited for: their core notices a living peer itself.
            State::Confirmed { ref waiting, .. } if !waiting.is_empty() => {}
            State::Confirmed { .. } | State::Failed { .. } if self.facts.is_heard => {
                self.watch_again(now, effects);
            }
            State::Failed { .. } if self.facts.lost.is_empty() && self.facts.waiting.is_empty() => {
                self.watch_again(now, effects);
            }
            // Another resource came up since; an old confirmation does not count for it.
            State::Confirmed { .. } if self.has_lost_peer() && !self.is_covered() => {
                self.enter(now, State::Suspected);
            }
            State::Failed { attempt, retry_at: Some(at) } if now >= at => {
                let next = if attempt < self.settings.attempts { attempt + 1 } else { 1 };
                self.begin(now, next, effects);
            }
            _ => {}
        }
    }

    /// A peer is lost only if it was there: after a start nobody is fenced by itself, or two nodes
    /// that boot together would switch each other off.
    fn has_lost_peer(&self) -> bool {
        let matters = !self.facts.lost.is_empty() || !self.facts.waiting.is_empty();
        !self.facts.is_heard && self.was_heard && matters
    }

    /// Whether a confirmation has set everything free that is to be.
    fn is_covered(&self) -> bool {
        self.facts.lost.is_empty()
            && self.facts.waiting.iter().all(|waiting| self.covered.contains(waiting))
    }

    fn what_for(&self) -> String {
        let waiting: Vec<&str> =
            self.facts.waiting.iter().map(|waiting| waiting.resource.as_str()).collect();
        match (self.facts.lost.is_empty(), waiting.is_empty()) {
            (true, _) => format!("and may take over {}, which waits", waiting.join(", ")),
            (false, true) => format!("and was primary of {}", self.facts.lost.join(", ")),
            (false, false) => format!(
                "and was primary of {}; {} waits for its fence",
                self.facts.lost.join(", "),
                waiting.join(", ")
            ),
        }
    }

    // ------------------------------------------------------------------ a peer that is alive

    /// A peer without a session that answers all the same (its resource is down, its disk failed,
    /// an operator disconnected it) is not switched off but asked.
    fn ask_living_peer(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let is_quiet = matches!(self.state, State::Watching | State::Suspected);
        let is_due = match &self.asked {
            None => true,
            Some((at, is_answered, _)) => *is_answered && now.since(*at) >= ASK_AGAIN,
        };
        let Some(waiting) = self.facts.waiting.first() else {
            if self.asked.as_ref().is_some_and(|(_, is_answered, _)| *is_answered) {
                self.asked = None;
            }
            return;
        };
        if self.facts.is_heard && is_quiet && is_due {
            effects.push(Effect::AskToStandBack(waiting.clone()));
            self.asked = Some((now, false, String::new()));
        }
    }

    fn stood_back(&mut self, waiting: Waiting, refused: Option<String>, effects: &mut Vec<Effect>) {
        if let Some((_, is_answered, why)) = &mut self.asked {
            *is_answered = true;
            *why = refused.clone().unwrap_or_default();
        }
        if refused.is_none() {
            let (peer, resource) = (&self.settings.peer, &waiting.resource);
            let text = format!("{peer} is alive and stands back: {resource} goes on alone");
            effects.push(Effect::Note(Note::StoodBack { resource: resource.clone(), text }));
            effects.push(Effect::Proceed(waiting));
        }
    }

    /// `fence_after`; half of it for a node that serves, so that in a duel (each is cut off and
    /// about to fence the other) it is first. Where both serve, the one with fewer offices waits
    /// longer by the configured delay; with equal numbers both do, by the delay of each, and when
    /// none is configured the later name by half of `fence_after`.
    fn patience(&self) -> Span {
        let Settings { node, peer, fence_after, delay, .. } = &self.settings;
        let own = self.facts.own_offices;
        let theirs = self.facts.lost.len() + self.facts.not_mine.len();
        let head_start = Span(fence_after.0 / 2);
        let after = if own > 0 { head_start } else { *fence_after };
        let delay = match own.cmp(&theirs) {
            Ordering::Greater => Span(0),
            Ordering::Equal if own > 0 && *delay == Span(0) && node > peer => head_start,
            _ => *delay,
        };
        Span(after.0 + delay.0)
    }

    fn waited(&self, now: Time) -> bool {
        self.silent_since.is_some_and(|since| now.since(since) >= self.patience())
    }

    fn what_follows(&self) -> String {
        if self.settings.is_automatic {
            let ms = self.patience().as_ms();
            format!("it is fenced when it stays so for {ms} ms")
        } else {
            String::from("fencing is manual")
        }
    }

    fn watch_again(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.facts.is_heard {
            let text = format!("{} is heard again", self.settings.peer);
            effects.push(Effect::Note(Note::Back(text)));
        }
        self.enter(now, State::Watching);
    }

    fn enter(&mut self, now: Time, state: State) {
        (self.state, self.since) = (state, now);
    }

    fn set_stage(&mut self, next: Stage) {
        let State::Fencing { stage, .. } = &mut self.state else {
            unreachable!("only an attempt has stages")
        };
        *stage = next;
    }

    /// When this wants to look again by itself.
    pub fn next_deadline(&self) -> Option<Time> {
        match self.state {
            State::Suspected if self.settings.is_automatic => {
                self.silent_since.map(|since| Time(since.0 + self.patience().0))
            }
            State::Fencing { stage: Stage::StillOn(again), .. } => Some(again),
            State::Failed { retry_at, .. } => retry_at,
            _ => None,
        }
    }
}

//! What can be seen of a fence: where it is, what it waits for, why nothing is taken over.

use alloc::format;
use alloc::string::String;

use replicator_core::{Span, Time};

use super::{Fence, RULE, Settings, Stage, State};
use crate::verdict::Verdict;

impl Fence {
    /// `watching`, `suspected`, `fencing`, `fenced` or `failed`, and since when.
    pub fn state(&self) -> (&'static str, Time) {
        let word = match self.state {
            State::Watching => "watching",
            State::Suspected => "suspected",
            State::Fencing { .. } => "fencing",
            State::Confirmed { .. } => "fenced",
            State::Failed { .. } => "failed",
        };
        (word, self.since)
    }

    /// For how long the peer has been silent.
    pub fn silent_for(&self, now: Time) -> Span {
        self.silent_since.map_or(Span(0), |since| now.since(since))
    }

    /// What it waits for or does now, in words; empty when there is nothing to say.
    pub fn activity(&self, now: Time) -> String {
        let Settings { peer, agent, .. } = &self.settings;
        let left = |at: Time| at.since(now).as_ms();
        match &self.state {
            State::Watching => String::new(),
            State::Suspected if self.settings.is_automatic => {
                let silent = self.silent_since.map_or(0, |since| now.since(since).as_ms());
                let patience = self.patience().as_ms();
                format!("{peer} has been silent for {silent} of {patience} ms")
            }
            State::Suspected => format!("waits for: replctl fence {peer}"),
            State::Fencing { attempt, stage, .. } => {
                let what = match stage {
                    Stage::Switching => format!("{agent} off runs"),
                    Stage::Asking => format!("{agent} status runs"),
                    Stage::StillOn(again) => {
                        format!("{agent} status says on; asked again in {} ms", left(*again))
                    }
                    Stage::Probing => format!("the addresses of {peer} are tried"),
                };
                format!("attempt {attempt} of {}: {what}", self.settings.attempts)
            }
            State::Confirmed { waiting, .. } if waiting.is_empty() => {
                self.last_fenced.as_ref().map_or_else(String::new, |(_, text)| text.clone())
            }
            State::Confirmed { waiting, .. } => format!("promoting {}", waiting.join(", ")),
            State::Failed { attempt, retry_at } => {
                let next = match retry_at {
                    Some(at) => format!("tried again in {} ms", left(*at)),
                    None => format!("tried again by: replctl fence {peer}"),
                };
                format!("attempt {attempt} of {} failed; {next}", self.settings.attempts)
            }
        }
    }

    /// Why this node does not take the office of its silent peer now; none when there is nothing
    /// to take, or nothing in the way.
    pub fn verdict(&self, now: Time) -> Option<Verdict> {
        let peer = &self.settings.peer;
        if let Some(verdict) = self.stand_back_verdict(now) {
            return Some(verdict);
        }
        let silent_since = self.silent_since?;
        let silent_ms = now.since(silent_since).as_ms();
        let by_hand = format!("replctl fence {peer}; or bring {peer} back");
        let (code, rule, why, next, since) = match &self.state {
            State::Failed { .. } => {
                return self.failure.clone();
            }
            State::Confirmed { .. } => return None,
            State::Fencing { .. } => (
                "fencing",
                RULE,
                format!("{peer} is not confirmed to be off yet: {}", self.activity(now)),
                String::from("nothing: it goes on by itself"),
                self.since,
            ),
            State::Suspected if !self.settings.is_automatic => (
                "fencing_is_manual",
                RULE,
                format!(
                    "{peer} was primary of {} and has been silent for {silent_ms} ms, but may be \
                     alive; fencing = \"manual\"",
                    self.facts.lost.join(", ")
                ),
                by_hand,
                silent_since,
            ),
            State::Suspected => (
                "peer_suspected",
                RULE,
                format!(
                    "{peer} has been silent for {silent_ms} ms {}; it is fenced after {} ms",
                    self.what_for(),
                    self.patience().as_ms()
                ),
                String::from("nothing: it goes on by itself"),
                silent_since,
            ),
            State::Watching if !self.facts.waiting.is_empty() => (
                "peer_never_heard",
                RULE,
                format!(
                    "{peer} was not heard since this daemon started, {silent_ms} ms ago, {}: only \
                     a peer that was lost is fenced by itself",
                    self.what_for()
                ),
                format!("{by_hand}; when it is off for sure: replctl fence {peer} --is-off"),
                silent_since,
            ),
            State::Watching if !self.facts.lost.is_empty() => (
                "peer_never_heard",
                RULE,
                format!(
                    "{peer} was primary of {} and was not heard since this daemon started, {} ms \
                     ago: only a peer that was lost is fenced by itself",
                    self.facts.lost.join(", "),
                    silent_ms
                ),
                by_hand,
                silent_since,
            ),
            State::Watching => {
                let (resource, why) = self.facts.not_mine.first()?;
                let why = format!("{resource} may not be promoted here: {why}");
                let next = format!("bring {peer} back, it has what is missing here");
                ("not_up_to_date", "R11a", why, next, silent_since)
            }
        };
        Some(Verdict { since, ..Verdict::new(now, code, rule, why, next) })
    }

    /// A living peer that has not promised to stand back yet.
    fn stand_back_verdict(&self, now: Time) -> Option<Verdict> {
        let waiting = self.facts.waiting.first().filter(|_| self.facts.is_heard)?;
        let (since, _, refused) = self.asked.as_ref()?;
        let (peer, resource) = (&self.settings.peer, &waiting.resource);
        let answer = match refused.as_str() {
            "" => String::from("no answer yet"),
            why => format!("it did not promise: {why}"),
        };
        let why = format!(
            "{peer} is alive, has no session for {resource} and may take over; it is asked to \
             stand back: {answer}"
        );
        let next = format!("look at replctl status on {peer}; it goes on when that has a session");
        let verdict = Verdict::new(now, "asks_to_stand_back", RULE, why, next);
        Some(Verdict { since: *since, ..verdict })
    }

    /// Why the last attempt failed, if no later one succeeded.
    pub fn failure(&self) -> Option<&Verdict> {
        self.failure.as_ref()
    }

    /// When the peer was fenced last in the life of this process, in words.
    pub fn last_fenced(&self) -> Option<&(Time, String)> {
        self.last_fenced.as_ref()
    }
}

//! An attempt: `off`, `status`, the addresses; then it is confirmed and what waited goes on, or it
//! has failed and is tried again.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::{ASK_AGAIN, Action, Effect, Ended, Fence, Note, RULE, Request, Settings, Stage, State};
use crate::defect::{Defect, defect};
use crate::verdict::Verdict;

/// The exit code of `status` that means off.
const EXIT_OFF: i32 = 2;
/// The first pause after a failed attempt; it doubles with each one of a round.
const PAUSE_FIRST: Span = Span::from_ms(2_000);
/// The pause after the last attempt of a round; then a new round begins.
const PAUSE_ROUND: Span = Span::from_ms(60_000);

impl Fence {
    /// By hand. A peer that is heard is not fenced: what it says is better than an agent's word.
    pub(super) fn ordered(&mut self, now: Time, is_off: bool, effects: &mut Vec<Effect>) {
        let peer = &self.settings.peer;
        let refused = match self.state {
            State::Fencing { .. } => Some((
                "fencing",
                format!("{peer} is being fenced already"),
                String::from("look at replctl status"),
            )),
            State::Confirmed { .. } => Some((
                "is_fenced",
                format!("{peer} is fenced, and was not heard since"),
                String::from("switch it on again to bring it back"),
            )),
            _ if self.silent_since.is_none() => Some((
                "peer_is_heard",
                format!("{peer} is heard: it is alive"),
                format!(
                    "replctl demote on {peer} and promote here; to stop {peer} by force switch it \
                     off and wait until it is silent"
                ),
            )),
            _ => None,
        };
        if let Some((code, why, next)) = refused {
            effects.push(Effect::Answer(Err(Verdict::new(now, code, RULE, why, next))));
            return;
        }
        self.is_ordered = true;
        if !is_off {
            return self.begin(now, 1, effects);
        }
        // His word stands for the agent's; a machine that accepts connections is not off.
        self.cover();
        self.is_by_word = true;
        self.enter(now, State::Fencing { attempt: 1, stage: Stage::Probing, off_at: now });
        effects.push(Effect::Probe);
    }

    fn cover(&mut self) {
        self.heard_meanwhile = false;
        self.covered = self.facts.waiting.clone();
    }

    pub(super) fn begin(&mut self, now: Time, attempt: u32, effects: &mut Vec<Effect>) {
        self.cover();
        self.is_by_word = false;
        self.enter(now, State::Fencing { attempt, stage: Stage::Switching, off_at: now });
        let Settings { peer, agent, .. } = &self.settings;
        let silent_ms = self.silent_since.map_or(0, |since| now.since(since).as_ms());
        let text = format!(
            "fencing {peer} with {agent}, attempt {attempt}: it has been silent for {silent_ms} ms"
        );
        effects.push(Effect::Note(Note::Fencing(text)));
        let was_fenced = defect(Defect::OldFenceCounts) && self.last_fenced.is_some();
        if was_fenced || defect(Defect::FenceNotAwaited) {
            return self.confirmed(now, String::from("the deliberate defect"), effects);
        }
        effects.push(Effect::RunAgent(Request::Off));
    }

    pub(super) fn agent_ended(
        &mut self,
        now: Time,
        request: Request,
        ended: &Ended,
        said: &str,
        effects: &mut Vec<Effect>,
    ) {
        if request == Request::On {
            return self.switched_on(ended, said, effects);
        }
        let State::Fencing { stage, off_at, .. } = &mut self.state else {
            unreachable!("an agent ended that nobody called")
        };
        match (request, ended) {
            (Request::Off, Ended::Exit(0)) => {
                (*stage, *off_at) = (Stage::Asking, now);
                effects.push(Effect::RunAgent(Request::Status));
            }
            (Request::Status, Ended::Exit(EXIT_OFF)) => {
                *stage = Stage::Probing;
                effects.push(Effect::Probe);
            }
            (Request::Status, Ended::Exit(0)) => {
                let off_at = *off_at;
                if now.since(off_at) < self.settings.off_within {
                    self.set_stage(Stage::StillOn(Time(now.0 + ASK_AGAIN.0)));
                } else {
                    let why = format!(
                        "{} said that it switched {} off, but its status says on after {} ms",
                        self.settings.agent,
                        self.settings.peer,
                        now.since(off_at).as_ms()
                    );
                    self.fail(now, "fence_unconfirmed", why, effects);
                }
            }
            _ => {
                let code =
                    if *ended == Ended::TimedOut { "fence_timed_out" } else { "fence_failed" };
                let why = self.describe(request, ended, said);
                self.fail(now, code, why, effects);
            }
        }
    }

    fn describe(&self, request: Request, ended: &Ended, said: &str) -> String {
        let how = match ended {
            Ended::Exit(code) => format!("ended with {code}"),
            Ended::TimedOut => String::from("did not end in its time and was killed"),
            Ended::NotRun => String::from("could not be run"),
        };
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        format!("{} {} {how}{said}", self.settings.agent, request.word())
    }

    pub(super) fn probed(
        &mut self,
        now: Time,
        accepted: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        assert!(
            matches!(self.state, State::Fencing { stage: Stage::Probing, .. }),
            "a probe ended that nobody ordered"
        );
        let Settings { node, peer, agent, .. } = &self.settings;
        let life = match accepted {
            Some(address) => Some(format!("{address} accepts connections")),
            None if self.heard_meanwhile => Some(String::from("it was heard meanwhile")),
            None => None,
        };
        let life = life.filter(|_| !defect(Defect::FenceLieBelieved));
        let who = if self.is_by_word { "an operator" } else { agent.as_str() };
        if let Some(life) = life {
            let why = format!("fence unconfirmed: {who} says that {peer} is off, but {life}");
            return self.fail(now, "fence_unconfirmed", why, effects);
        }
        let text = if self.is_by_word {
            format!("{peer} is off by the word of an operator on {node}")
        } else {
            format!("{node} fenced {peer} ({agent}, off confirmed)")
        };
        self.confirmed(now, text, effects);
    }

    /// It is off for sure: what waits for that goes on.
    fn confirmed(&mut self, now: Time, text: String, effects: &mut Vec<Effect>) {
        effects.push(Effect::Note(Note::Fenced(text.clone())));
        self.failure = None;
        self.last_fenced = Some((now, text.clone()));
        for waiting in &self.covered {
            effects.push(Effect::Proceed(waiting.clone()));
        }
        let waiting = self.facts.lost.clone();
        for resource in &waiting {
            effects.push(Effect::Promote { resource: resource.clone() });
        }
        let is_done = waiting.is_empty();
        self.enter(now, State::Confirmed { waiting, refused: None });
        if is_done {
            self.settle(text, effects);
        }
    }

    /// The peer is off, and everything that could be promoted is.
    fn settle(&mut self, text: String, effects: &mut Vec<Effect>) {
        if self.settings.action == Action::Reboot {
            effects.push(Effect::RunAgent(Request::On));
        }
        if core::mem::take(&mut self.is_ordered) {
            effects.push(Effect::Answer(Ok(text)));
        }
    }

    fn switched_on(&self, ended: &Ended, said: &str, effects: &mut Vec<Effect>) {
        if *ended != Ended::Exit(0) {
            let text = self.describe(Request::On, ended, said);
            effects.push(Effect::Note(Note::Failed(text)));
        }
    }

    /// One refusal is enough to try all of it again, once all have ended.
    pub(super) fn promotion_ended(
        &mut self,
        now: Time,
        resource: &str,
        ended: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        let State::Confirmed { waiting, refused } = &mut self.state else {
            unreachable!("a promotion ended that nobody ordered")
        };
        waiting.retain(|it| it != resource);
        if let Some(why) = ended {
            *refused = Some(format!("{resource} cannot be promoted: {why}"));
        }
        if !waiting.is_empty() {
            return;
        }
        match refused.take() {
            Some(why) => self.fail(now, "promotion_refused", why, effects),
            None => {
                let (_, text) = self.last_fenced.clone().expect("it was fenced before");
                self.settle(text, effects);
            }
        }
    }

    fn fail(&mut self, now: Time, code: &str, why: String, effects: &mut Vec<Effect>) {
        let attempt = match self.state {
            State::Fencing { attempt, .. } => attempt,
            // The promotion was refused; it is as if the round were over.
            _ => self.settings.attempts,
        };
        let pause = if attempt < self.settings.attempts {
            Span(PAUSE_FIRST.0 << (attempt - 1).min(4))
        } else {
            PAUSE_ROUND
        };
        let retry_at = self.settings.is_automatic.then_some(Time(now.0 + pause.0));
        let peer = &self.settings.peer;
        let next = format!(
            "look after the fence device (replctl check --fence), or bring {peer} back; when \
             {peer} is off for sure: replctl fence {peer} --is-off, or replctl promote RESOURCE \
             --old-primary-is-off"
        );
        effects.push(Effect::Note(Note::Failed(why.clone())));
        let since = self.failing_since(now, code);
        let verdict = Verdict { since, ..Verdict::new(now, code, RULE, why, next) };
        self.failure = Some(verdict.clone());
        self.enter(now, State::Failed { attempt, retry_at });
        if core::mem::take(&mut self.is_ordered) {
            effects.push(Effect::Answer(Err(verdict)));
        }
    }

    /// Since when attempts fail in this way, while the peer was silent all the time.
    fn failing_since(&self, now: Time, code: &str) -> Time {
        let silent_since = self.silent_since.unwrap_or(now);
        let earlier = self.failure.as_ref().filter(|it| it.code == code);
        earlier.map(|it| it.since).filter(|since| *since >= silent_since).unwrap_or(now)
    }
}

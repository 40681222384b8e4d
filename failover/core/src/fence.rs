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

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;

use replicator_core::{Span, Time};

use crate::defect::{Defect, defect};
use crate::verdict::Verdict;

/// The rule of SAFETY.md that all of this is about.
const RULE: &str = "No witness";
/// The exit code of `status` that means off.
const EXIT_OFF: i32 = 2;
/// How often `status` is asked again while it says on: machines take a while to lose power.
const ASK_AGAIN: Span = Span::from_ms(1_000);
/// The first pause after a failed attempt; it doubles with each one of a round.
const PAUSE_FIRST: Span = Span::from_ms(2_000);
/// The pause after the last attempt of a round; then a new round begins.
const PAUSE_ROUND: Span = Span::from_ms(60_000);

/// What the agent does with the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Off, and it stays off.
    Off,
    /// Off, confirmed, and on again once the office is taken. The agent's own `reboot` is not used:
    /// after it nothing could be confirmed.
    Reboot,
}

/// What the configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node that decides.
    pub node: String,
    /// The node that it may switch off.
    pub peer: String,
    /// How the agent is called in messages.
    pub agent: String,
    /// Whether it is done without an operator.
    pub is_automatic: bool,
    /// Off, or off and on again.
    pub action: Action,
    /// Silence after which a lost primary is fenced; a primary fences its lost peer after half of
    /// it.
    pub fence_after: Span,
    /// How much longer a node waits that holds fewer offices than its peer: see
    /// [`Facts::own_offices`].
    pub delay: Span,
    /// For so long at most `status` may go on to say on after an `off` that succeeded.
    pub off_within: Span,
    /// Attempts of a round, at least 1.
    pub attempts: u32,
}

/// What the driver sees, told again and again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Whether the peer was heard since the last facts, on any path, proved by the shared key.
    pub is_heard: bool,
    /// Resources whose primary the peer was, that are up to date here.
    pub lost: Vec<String>,
    /// Resources whose primary the peer was, that may not be promoted here, with the reason.
    pub not_mine: Vec<(String, String)>,
    /// Offices that this node holds. In a duel the node with more of them does not wait; with
    /// equal numbers `delay` of the configuration decides, then the name.
    pub own_offices: usize,
    /// Own offices that acknowledge nothing until the peer is off, or stands back.
    pub waiting: Vec<Waiting>,
}

/// A resource that this node serves and that waits for the fence of its peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The resource.
    pub resource: String,
    /// The last session with the peer: what is found out counts for this one only.
    pub session: u64,
}

/// How a run of the agent ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this code.
    Exit(i32),
    /// It was killed after its time.
    TimedOut,
    /// It could not be run.
    NotRun,
}

/// What the agent is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Switch the peer off.
    Off,
    /// Say whether it is on.
    Status,
    /// Switch it on again.
    On,
}

impl Request {
    /// The value of `action=` in the agent's contract.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Status => "status",
            Self::On => "on",
        }
    }
}

/// A fact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Time passed, and this is how things are.
    Looked(Facts),
    /// An operator wants the peer fenced; or says that he has switched it off himself.
    Ordered {
        /// Whether it is off by his word.
        is_off: bool,
    },
    /// A living peer was asked to stand back.
    StoodBack {
        /// For what.
        waiting: Waiting,
        /// Why it did not promise.
        refused: Option<String>,
    },
    /// The agent ended.
    AgentEnded {
        /// What it was asked.
        request: Request,
        /// How it ended.
        ended: Ended,
        /// What it said about it, bounded by the driver.
        said: String,
    },
    /// All addresses of the peer were tried; the first that accepted a connection.
    Probed {
        /// The address, in words.
        accepted: Option<String>,
    },
    /// A promotion ended; with the reason when it was refused.
    PromotionEnded {
        /// The resource.
        resource: String,
        /// Why not.
        refused: Option<String>,
    },
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Run the agent; answered by [`Input::AgentEnded`].
    RunAgent(Request),
    /// Try to connect to every address of the peer; answered by [`Input::Probed`].
    Probe,
    /// Promote with the meaning of `--old-primary-is-off`; answered by [`Input::PromotionEnded`].
    Promote {
        /// The resource.
        resource: String,
    },
    /// The peer is off or stands back: the resource may go on alone.
    Proceed(Waiting),
    /// Ask the living peer to stand back; answered by [`Input::StoodBack`].
    AskToStandBack(Waiting),
    /// Say what happened.
    Note(Note),
    /// The operator's order ended.
    Answer(Result<String, Verdict>),
}

/// What happened, for the log and the events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The peer is silent, and that matters.
    Suspected(String),
    /// The agent is called.
    Fencing(String),
    /// Confirmed: belongs into the history.
    Fenced(String),
    /// An attempt failed.
    Failed(String),
    /// The peer is heard again.
    Back(String),
    /// A living peer promised not to take over: belongs into the history.
    StoodBack {
        /// Of what.
        resource: String,
        /// In words.
        text: String,
    },
}

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

    // ------------------------------------------------------------------ an attempt

    /// By hand. A peer that is heard is not fenced: what it says is better than an agent's word.
    fn ordered(&mut self, now: Time, is_off: bool, effects: &mut Vec<Effect>) {
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

    fn begin(&mut self, now: Time, attempt: u32, effects: &mut Vec<Effect>) {
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

    fn agent_ended(
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

    fn probed(&mut self, now: Time, accepted: Option<String>, effects: &mut Vec<Effect>) {
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
    fn promotion_ended(
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

    // ------------------------------------------------------------------ what can be seen

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

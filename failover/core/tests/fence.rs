//! Fencing without a witness, step by step: when it begins, what confirms it, and every way in
//! which it must not promote.

use failover_core::fence::{
    Action, Effect, Ended, Facts, Fence, Input, Note, Request, Settings, Waiting,
};
use failover_core::{Span, Time};

fn settings() -> Settings {
    Settings {
        node: "beta".into(),
        peer: "alpha".into(),
        agent: "fence_x".into(),
        is_automatic: true,
        action: Action::Off,
        fence_after: Span::from_ms(5_000),
        delay: Span(0),
        off_within: Span::from_ms(10_000),
        attempts: 2,
    }
}

/// beta, with the facts it is told and everything it ordered.
struct Story {
    fence: Fence,
    facts: Facts,
    now_ms: u64,
    ordered: Vec<Effect>,
}

impl Story {
    /// alpha is heard and primary of `shop`.
    fn new(settings: Settings) -> Self {
        let facts = Facts { is_heard: true, lost: vec!["shop".into()], ..Facts::default() };
        let fence = Fence::new(Time(0), settings);
        let mut story = Self { fence, facts, now_ms: 0, ordered: Vec::new() };
        story.look();
        story
    }

    fn now(&self) -> Time {
        Time(self.now_ms * 1_000_000)
    }

    fn tell(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.fence.step(self.now(), input, &mut effects);
        self.ordered.extend(effects);
    }

    fn look(&mut self) {
        self.tell(Input::Looked(self.facts.clone()));
    }

    /// Looks every 100 ms for so long.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.look();
        }
    }

    fn alpha_falls_silent(&mut self) {
        self.facts.is_heard = false;
        self.look();
    }

    fn agent(&mut self, request: Request, ended: Ended) {
        self.tell(Input::AgentEnded { request, ended, said: "some words".into() });
    }

    /// What was ordered since the last call, without the notes.
    fn orders(&mut self) -> Vec<Effect> {
        let is_note = |effect: &Effect| matches!(effect, Effect::Note(_));
        self.ordered.drain(..).filter(|effect| !is_note(effect)).collect()
    }

    fn state(&self) -> &'static str {
        self.fence.state().0
    }

    fn code(&self) -> String {
        self.fence.verdict(self.now()).map(|verdict| verdict.code).unwrap_or_default()
    }

    /// From silence to the probe, with an agent that works.
    fn until_probe(&mut self) {
        self.alpha_falls_silent();
        self.pass(5_000);
        assert_eq!(self.orders(), [Effect::RunAgent(Request::Off)]);
        self.agent(Request::Off, Ended::Exit(0));
        assert_eq!(self.orders(), [Effect::RunAgent(Request::Status)]);
        self.agent(Request::Status, Ended::Exit(2));
        assert_eq!(self.orders(), [Effect::Probe]);
    }
}

fn promote_shop() -> Effect {
    Effect::Promote { resource: "shop".into() }
}

#[test]
fn a_lost_primary_is_fenced_and_replaced_and_that_is_recorded() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    assert_eq!((story.state(), story.code()), ("suspected", "peer_suspected".into()));
    story.pass(4_900);
    assert_eq!(story.orders(), [], "not before fence_after_ms");
    story.pass(100);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
    assert_eq!((story.state(), story.code()), ("fencing", "fencing".into()));
    // An agent may take its time.
    story.pass(30_000);
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(2));
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Status), Effect::Probe]);
    story.tell(Input::Probed { accepted: None });
    let record = Note::Fenced("beta fenced alpha (fence_x, off confirmed)".into());
    assert_eq!(story.ordered, [Effect::Note(record), promote_shop()]);
    story.facts.lost.clear();
    story.tell(Input::PromotionEnded { resource: "shop".into(), refused: None });
    story.pass(1_000);
    assert_eq!((story.state(), story.code()), ("fenced", String::new()));
    story.facts.is_heard = true;
    story.look();
    assert_eq!(story.state(), "watching");
}

#[test]
fn a_primary_that_comes_back_in_time_is_left_alone() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    story.pass(4_000);
    story.facts.is_heard = true;
    story.pass(100);
    story.facts.is_heard = false;
    story.pass(4_000);
    assert_eq!((story.state(), story.orders()), ("suspected", Vec::new()));
}

#[test]
fn a_node_that_slept_counts_the_silence_anew() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    story.pass(1_000);
    // A paused machine: hours on the clock, and nothing was looked at.
    story.now_ms += 3_600_000;
    story.look();
    story.pass(4_900);
    assert_eq!((story.state(), story.orders()), ("suspected", vec![]));
    story.pass(100);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
}

#[test]
fn a_node_that_lost_only_its_secondary_goes_on_alone() {
    let mut story = Story::new(settings());
    story.facts = Facts { is_heard: true, own_offices: 1, ..Facts::default() };
    story.look();
    story.alpha_falls_silent();
    story.pass(100_000);
    assert_eq!((story.state(), story.code(), story.orders()), ("watching", String::new(), vec![]));
}

#[test]
fn a_replica_that_lacks_writes_fences_nobody_and_says_why() {
    let mut story = Story::new(settings());
    story.facts.lost.clear();
    story.facts.not_mine = vec![("shop".into(), "it lacks acknowledged writes".into())];
    story.alpha_falls_silent();
    story.pass(100_000);
    assert_eq!((story.code(), story.orders()), ("not_up_to_date".into(), vec![]));
}

#[test]
fn after_a_start_only_an_operator_has_a_peer_fenced_that_was_never_heard() {
    let mut story = Story::new(settings());
    story.fence = Fence::new(Time(0), settings());
    story.alpha_falls_silent();
    story.pass(100_000);
    assert_eq!((story.code(), story.orders()), ("peer_never_heard".into(), vec![]));
    story.tell(Input::Ordered { is_off: false });
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
}

#[test]
fn manual_fencing_waits_for_the_operator_and_is_confirmed_the_same_way() {
    let mut story = Story::new(Settings { is_automatic: false, ..settings() });
    story.alpha_falls_silent();
    story.pass(100_000);
    assert_eq!((story.code(), story.orders()), ("fencing_is_manual".into(), vec![]));
    story.tell(Input::Ordered { is_off: false });
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(2));
    story.tell(Input::Probed { accepted: None });
    story.orders();
    story.tell(Input::PromotionEnded { resource: "shop".into(), refused: None });
    let text = "beta fenced alpha (fence_x, off confirmed)".into();
    assert_eq!(story.orders(), [Effect::Answer(Ok(text))]);
}

#[test]
fn nobody_fences_a_peer_that_is_heard() {
    let mut story = Story::new(settings());
    story.tell(Input::Ordered { is_off: false });
    let orders = story.orders();
    let [Effect::Answer(Err(verdict))] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!((verdict.code.as_str(), verdict.rule.as_str()), ("peer_is_heard", "No witness"));
    assert_eq!(story.state(), "watching");
}

#[test]
fn an_agent_that_says_off_while_the_peer_accepts_connections_is_refused() {
    let mut story = Story::new(settings());
    story.until_probe();
    story.tell(Input::Probed { accepted: Some("10.0.0.1:7788".into()) });
    assert_eq!((story.orders(), story.state()), (vec![], "failed"));
    let verdict = story.fence.verdict(story.now()).unwrap();
    assert_eq!((verdict.code.as_str(), verdict.rule.as_str()), ("fence_unconfirmed", "No witness"));
    assert_eq!(
        verdict.why,
        "fence unconfirmed: fence_x says that alpha is off, but 10.0.0.1:7788 accepts connections"
    );
    assert!(verdict.next.contains("--old-primary-is-off"), "{}", verdict.next);
}

#[test]
fn an_unconfirmed_fence_says_since_when_it_is_that() {
    let mut story = Story::new(settings());
    let since = |story: &Story| {
        let verdict = story.fence.verdict(story.now()).unwrap();
        assert_eq!(verdict.code, "fence_unconfirmed");
        verdict.since
    };
    let lie = |story: &mut Story| {
        story.agent(Request::Off, Ended::Exit(0));
        story.agent(Request::Status, Ended::Exit(2));
        story.tell(Input::Probed { accepted: Some("10.0.0.1:7788".into()) });
    };
    story.alpha_falls_silent();
    story.pass(5_000);
    lie(&mut story);
    let first = story.now();
    assert_eq!(since(&story), first);
    // The next attempt fails in the same way: the reason is as old as the first one.
    story.pass(2_000);
    lie(&mut story);
    assert_eq!((since(&story), story.fence.state()), (first, ("failed", story.now())));
    // The peer was there meanwhile: this is another silence.
    story.facts.is_heard = true;
    story.pass(100);
    story.alpha_falls_silent();
    story.pass(5_000);
    lie(&mut story);
    assert_eq!(since(&story), story.now());
}

#[test]
fn an_agent_that_says_off_while_the_peer_speaks_is_refused() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    story.pass(5_000);
    story.agent(Request::Off, Ended::Exit(0));
    story.facts.is_heard = true;
    story.pass(100);
    story.facts.is_heard = false;
    story.pass(100);
    story.agent(Request::Status, Ended::Exit(2));
    story.tell(Input::Probed { accepted: None });
    assert!(!story.orders().contains(&promote_shop()));
    assert_eq!((story.state(), story.code()), ("failed", "fence_unconfirmed".into()));
}

#[test]
fn a_status_that_stays_on_confirms_nothing() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    story.pass(5_000);
    story.agent(Request::Off, Ended::Exit(0));
    story.orders();
    for _ in 0..10 {
        story.agent(Request::Status, Ended::Exit(0));
        story.pass(1_000);
        assert_eq!(story.orders(), [Effect::RunAgent(Request::Status)]);
    }
    story.agent(Request::Status, Ended::Exit(0));
    assert_eq!((story.state(), story.code()), ("failed", "fence_unconfirmed".into()));
}

#[test]
fn a_machine_that_loses_its_power_slowly_is_asked_until_it_is_off() {
    let mut story = Story::new(settings());
    story.alpha_falls_silent();
    story.pass(5_000);
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(0));
    story.pass(1_000);
    story.orders();
    story.agent(Request::Status, Ended::Exit(2));
    assert_eq!(story.orders(), [Effect::Probe]);
}

#[test]
fn failed_attempts_back_off_and_nothing_else_confirms() {
    let ends = [Ended::Exit(1), Ended::Exit(2), Ended::TimedOut, Ended::NotRun];
    for ended in ends {
        let mut story = Story::new(settings());
        story.alpha_falls_silent();
        story.pass(5_000);
        story.agent(Request::Off, ended.clone());
        assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)], "{ended:?}: no status");
        let code = if ended == Ended::TimedOut { "fence_timed_out" } else { "fence_failed" };
        assert_eq!((story.state(), story.code()), ("failed", code.into()));
        let verdict = story.fence.verdict(story.now()).unwrap();
        assert!(verdict.why.contains("fence_x off") && verdict.why.contains("some words"));
        story.pass(1_900);
        assert_eq!(story.orders(), []);
        story.pass(100);
        assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
        // The last attempt of the round: a minute.
        story.agent(Request::Off, ended.clone());
        story.pass(59_900);
        assert_eq!(story.orders(), []);
        assert!(story.fence.activity(story.now()).contains("tried again in 100 ms"));
        story.pass(100);
        assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
    }
    for ended in [Ended::Exit(1), Ended::TimedOut, Ended::NotRun] {
        let mut story = Story::new(settings());
        story.alpha_falls_silent();
        story.pass(5_000);
        story.agent(Request::Off, Ended::Exit(0));
        story.agent(Request::Status, ended);
        assert!(!story.orders().contains(&Effect::Probe));
        assert_eq!(story.state(), "failed");
    }
}

#[test]
fn a_refused_promotion_shows_and_is_tried_again_with_a_new_fence() {
    let mut story = Story::new(settings());
    story.until_probe();
    story.tell(Input::Probed { accepted: None });
    let refused = Some("this machine lost its caches".into());
    story.tell(Input::PromotionEnded { resource: "shop".into(), refused });
    assert_eq!((story.state(), story.code()), ("failed", "promotion_refused".into()));
    story.orders();
    story.pass(60_000);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
}

#[test]
fn in_a_duel_the_node_with_more_offices_does_not_wait() {
    let delayed = Settings { delay: Span::from_ms(3_000), ..settings() };
    for (own_offices, waits_ms) in [(0, 8_000), (1, 5_500), (2, 2_500)] {
        let mut story = Story::new(delayed.clone());
        story.facts.own_offices = own_offices;
        story.alpha_falls_silent();
        story.pass(waits_ms - 100);
        assert_eq!(story.orders(), [], "{own_offices} offices");
        story.pass(100);
        assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
    }
}

#[test]
fn a_reboot_is_off_confirmed_promoted_and_on() {
    let mut story = Story::new(Settings { action: Action::Reboot, ..settings() });
    story.until_probe();
    story.tell(Input::Probed { accepted: None });
    assert_eq!(story.orders(), [promote_shop()], "it stays off until the office is taken");
    story.facts.lost.clear();
    story.tell(Input::PromotionEnded { resource: "shop".into(), refused: None });
    assert_eq!(story.orders(), [Effect::RunAgent(Request::On)]);
    story.agent(Request::On, Ended::Exit(1));
    assert_eq!(story.state(), "fenced", "a machine that does not start again is no danger");
    assert!(matches!(story.ordered.last(), Some(Effect::Note(Note::Failed(_)))));
}

/// A sequence of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What was seen of an attempt, by somebody who knows only the rule.
#[derive(Default)]
struct Evidence {
    off_succeeded: bool,
    status_said_off: bool,
    nothing_accepts: bool,
    heard: bool,
}

/// Agents, peers and operators do anything at any time; whoever is promoted was fenced by the rule.
#[test]
fn nobody_is_ever_promoted_without_all_of_the_evidence() {
    let (mut promoted, mut refused) = (0, 0);
    for seed in 0..3_000 {
        let mut dice = Dice(seed);
        let mut story = Story::new(Settings { is_automatic: seed % 3 > 0, ..settings() });
        let mut running: Option<Effect> = None;
        let mut seen = Evidence::default();
        for _ in 0..150 {
            let attempts_before = matches!(story.state(), "fencing");
            match (running.take(), dice.below(6)) {
                (Some(Effect::RunAgent(request)), 0..=2) => {
                    let ended = match dice.below(8) {
                        0 => Ended::TimedOut,
                        1 => Ended::NotRun,
                        2 => Ended::Exit(1),
                        3 if request == Request::Status => Ended::Exit(0),
                        _ if request == Request::Status => Ended::Exit(2),
                        _ => Ended::Exit(0),
                    };
                    match request {
                        Request::Off => seen.off_succeeded = ended == Ended::Exit(0),
                        Request::Status => seen.status_said_off = ended == Ended::Exit(2),
                        Request::On => {}
                    }
                    story.agent(request, ended);
                }
                (Some(Effect::Probe), 0..=2) => {
                    let accepted = (dice.below(4) == 0).then(|| "10.0.0.1:7788".to_owned());
                    seen.nothing_accepts = accepted.is_none();
                    story.tell(Input::Probed { accepted });
                }
                (Some(Effect::Promote { resource }), 0..=2) => {
                    let refused = (dice.below(3) == 0).then(|| "no".to_owned());
                    story.tell(Input::PromotionEnded { resource, refused });
                }
                (waits, 5) => {
                    running = waits;
                    story.tell(Input::Ordered { is_off: false });
                }
                (waits, _) => {
                    running = waits;
                    let is_rare = dice.below(20) == 0;
                    story.facts.is_heard ^= is_rare || story.now_ms == 0;
                    seen.heard |= story.facts.is_heard;
                    story.now_ms += 100 * (1 + dice.below(40));
                    story.look();
                }
            }
            for effect in story.orders() {
                match &effect {
                    Effect::Promote { .. } => {
                        assert!(
                            seen.off_succeeded && seen.status_said_off && seen.nothing_accepts,
                            "seed {seed}: promoted without a confirmation"
                        );
                        assert!(!seen.heard, "seed {seed}: promoted although it was heard");
                        promoted += 1;
                    }
                    Effect::RunAgent(Request::Off) => {
                        assert!(!attempts_before, "seed {seed}: two attempts at once");
                        seen = Evidence::default();
                    }
                    Effect::Answer(Err(_)) => refused += 1,
                    _ => {}
                }
                if !matches!(effect, Effect::Answer(_)) {
                    assert!(running.is_none(), "seed {seed}: {effect:?} beside {running:?}");
                    running = Some(effect);
                }
            }
        }
    }
    assert!(promoted > 500 && refused > 500, "{promoted} promoted, {refused} refused");
}

// ---------------------------------------------------------------------- a primary that lost its
// peer

fn waiting(session: u64) -> Waiting {
    Waiting { resource: "shop".into(), session }
}

/// beta serves `shop`; alpha, a member, falls silent, and nothing is acknowledged until it is off.
fn primary_story(settings: Settings) -> Story {
    let mut story = Story::new(settings);
    story.facts = Facts { is_heard: true, own_offices: 1, ..Facts::default() };
    story.look();
    story.facts.waiting = vec![waiting(7)];
    story
}

#[test]
fn a_primary_is_first_and_goes_on_alone_only_when_its_peer_is_off() {
    let mut story = primary_story(settings());
    story.alpha_falls_silent();
    assert_eq!((story.state(), story.code()), ("suspected", "peer_suspected".into()));
    story.pass(2_400);
    assert_eq!(story.orders(), [], "not before half of fence_after_ms");
    story.pass(100);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
    story.pass(30_000);
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(2));
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Status), Effect::Probe]);
    story.tell(Input::Probed { accepted: None });
    assert_eq!(story.orders(), [Effect::Proceed(waiting(7))]);
    // The core takes a moment: nobody is fenced again meanwhile.
    story.pass(20_000);
    story.facts.waiting.clear();
    story.pass(20_000);
    assert_eq!((story.state(), story.orders()), ("fenced", vec![]));
}

#[test]
fn a_primary_waits_for_as_long_as_its_agent_fails() {
    let mut story = primary_story(Settings { attempts: 1, ..settings() });
    story.alpha_falls_silent();
    story.pass(2_500);
    story.agent(Request::Off, Ended::TimedOut);
    let verdict = story.fence.verdict(story.now()).unwrap();
    assert_eq!(verdict.code, "fence_timed_out");
    assert!(verdict.next.contains("replctl fence alpha --is-off"), "{}", verdict.next);
    story.orders();
    story.pass(59_900);
    assert_eq!(story.orders(), []);
    story.pass(100);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)]);
    // A lie: it answers all the same.
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(2));
    story.orders();
    story.tell(Input::Probed { accepted: Some("10.0.0.1:7788".into()) });
    assert_eq!((story.code(), story.orders()), ("fence_unconfirmed".into(), vec![]));
}

#[test]
fn the_word_of_an_operator_stands_for_the_agents_and_not_for_the_probe() {
    let mut story = primary_story(settings());
    story.tell(Input::Ordered { is_off: true });
    let Some(Effect::Answer(Err(refused))) = story.orders().pop() else { panic!("not refused") };
    assert_eq!(refused.code, "peer_is_heard");
    story.alpha_falls_silent();
    for accepted in [Some("10.0.0.1:7788".to_owned()), None] {
        story.tell(Input::Ordered { is_off: true });
        assert_eq!(story.orders(), [Effect::Probe]);
        story.tell(Input::Probed { accepted: accepted.clone() });
        let orders = story.orders();
        if accepted.is_some() {
            assert!(matches!(&orders[..], [Effect::Answer(Err(_))]), "{orders:?}");
        } else {
            assert!(
                matches!(&orders[..], [Effect::Proceed(_), Effect::Answer(Ok(_))]),
                "{orders:?}"
            );
        }
    }
}

#[test]
fn a_living_peer_is_asked_to_stand_back_and_never_fenced() {
    let mut story = primary_story(settings());
    story.pass(100);
    assert_eq!(story.orders(), [Effect::AskToStandBack(waiting(7))]);
    story.pass(10_000);
    assert_eq!(story.orders(), [], "one question at a time");
    assert_eq!(story.code(), "asks_to_stand_back");
    story.tell(Input::StoodBack { waiting: waiting(7), refused: Some("it is promoting".into()) });
    assert!(story.fence.verdict(story.now()).unwrap().why.contains("it is promoting"));
    story.pass(1_000);
    assert_eq!(story.orders(), [Effect::AskToStandBack(waiting(7))]);
    story.tell(Input::StoodBack { waiting: waiting(7), refused: None });
    assert_eq!(story.orders(), [Effect::Proceed(waiting(7))]);
    story.facts.waiting.clear();
    story.pass(60_000);
    assert_eq!((story.state(), story.orders()), ("watching", vec![]));
}

#[test]
fn a_confirmation_counts_for_the_session_that_it_was_sought_for() {
    let mut story = primary_story(settings());
    story.alpha_falls_silent();
    story.pass(2_500);
    // It came back and was lost again while the agent ran.
    story.facts.waiting = vec![waiting(8)];
    story.pass(100);
    story.agent(Request::Off, Ended::Exit(0));
    story.agent(Request::Status, Ended::Exit(2));
    story.orders();
    story.tell(Input::Probed { accepted: None });
    assert_eq!(story.orders(), [Effect::Proceed(waiting(7))], "the core refuses that one");
    story.pass(200);
    assert_eq!(story.orders(), [Effect::RunAgent(Request::Off)], "and it is fenced anew");
}

#[test]
fn in_a_duel_the_one_that_serves_more_is_first_then_delay_then_the_name() {
    let first_after = |own: usize, theirs: usize, delay_ms: u64, node: &str, peer: &str| {
        let mut settings = settings();
        (settings.node, settings.peer) = (node.into(), peer.into());
        settings.delay = Span::from_ms(delay_ms);
        let mut story = Story::new(settings);
        story.facts.own_offices = own;
        story.facts.lost = (0..theirs).map(|it| format!("lost-{it}")).collect();
        story.facts.waiting = if own > 0 { vec![waiting(1)] } else { vec![] };
        story.look();
        story.alpha_falls_silent();
        story.orders();
        let mut passed = 0;
        while story.orders().is_empty() {
            story.pass(100);
            passed += 100;
        }
        passed
    };
    assert_eq!(first_after(1, 0, 4_000, "beta", "alpha"), 2_500);
    assert_eq!(first_after(0, 1, 0, "beta", "alpha"), 5_000);
    assert_eq!(first_after(0, 1, 4_000, "beta", "alpha"), 9_000);
    assert_eq!(first_after(2, 1, 4_000, "beta", "alpha"), 2_500);
    assert_eq!(first_after(1, 2, 4_000, "beta", "alpha"), 6_500);
    assert_eq!(first_after(1, 1, 0, "alpha", "beta"), 2_500);
    assert_eq!(first_after(1, 1, 0, "beta", "alpha"), 5_000);
    assert_eq!(first_after(1, 1, 4_000, "alpha", "beta"), 6_500);
}

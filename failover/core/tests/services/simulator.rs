//! A seeded simulator: one node's engine with services that are slow, fail, hang, flap, leave
//! something behind and lie; an office that comes, goes, loses its lease and is taken away; an
//! operator who plays. What really runs is known here and judged after every order.
//!
//! First everything may go wrong; then faults stop, and what should run must run in bounded time.

use failover_core::facts::Hindrance;
use failover_core::services::{
    Action, Answer, Change, Condition, Effect, Engine, Force, FsckPolicy, Gain, Input, Kind, Order,
    Phase, Place, Release, ServiceSpec, ServiceTiming, Settings,
};
use failover_core::{Span, Time};

use crate::story::{failure, ms};

const LEASE: Span = ms(900);
/// How long the faults last.
const PLAY: Span = ms(300_000);
/// So long after the last fault everything must run: the longest pause of a service that was given
/// up, and the deadlines of a few attempts.
const CALM: Span = ms(1_500_000);

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A service as it really is.
struct Fake {
    spec: ServiceSpec,
    runs: bool,
    /// It answers what is not true.
    lies: bool,
    /// How likely something goes wrong with it, in percent.
    bad: u64,
    job: Option<(u64, Action)>,
    is_frozen: bool,
}

/// Something that will happen.
struct Coming {
    at: Time,
    input: Input,
    /// The job whose end it is.
    ends: Option<(usize, u64)>,
}

struct World {
    engine: Engine,
    dice: Dice,
    now: Time,
    fakes: Vec<Fake>,
    coming: Vec<Coming>,
    /// The tenure, while this node has the office.
    office: Option<u64>,
    last_tenure: u64,
    lease_until: Option<Time>,
    release: Option<Release>,
    release_asked_at: Time,
    is_calm: bool,
    /// What only the primary runs may not run here.
    is_forbidden: bool,
    deaf_until: Time,
    starts: u64,
    log: Vec<String>,
}

fn specs(dice: &mut Dice) -> Vec<ServiceSpec> {
    let mut step = 0;
    let count = 1 + dice.below(6);
    (0..count)
        .map(|number| {
            step += u16::from(dice.percent(70));
            let kind = match dice.below(6) {
                0 => Kind::Filesystem {
                    mount_point: "/srv".into(),
                    fs_type: None,
                    options: vec![],
                    fsck: FsckPolicy::Auto,
                },
                1 => Kind::Address { address: [192, 0, 2, 1].into(), prefix: 24, interface: None },
                2 => Kind::Reach { interface: None, targets: vec![], need: 0 },
                _ => Kind::Command { start: String::new(), stop: None, monitor: None },
            };
            ServiceSpec {
                name: format!("s{number}"),
                kind,
                place: match dice.below(10) {
                    0 => Place::Secondary,
                    1 => Place::All,
                    _ => Place::Primary,
                },
                step,
                timing: ServiceTiming {
                    start: ms(2_000 + dice.below(20_000)),
                    stop: ms(2_000 + dice.below(20_000)),
                    monitor: ms(1_000 + dice.below(5_000)),
                    monitor_every: ms(dice.below(2) * (1_000 + dice.below(20_000))),
                },
                restarts_max: dice.below(4) as u32,
                is_critical: dice.percent(80),
            }
        })
        .collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let services = specs(&mut dice);
        let now = Time(1_000_000_000_000);
        let settings = Settings {
            resource: "demo".into(),
            services: services.clone(),
            lease: ms(1_000),
            demote_after: ms(10_000),
        };
        let bad = [0, 5, 30, 70][dice.below(4) as usize];
        let fakes = services
            .into_iter()
            .map(|spec| Fake {
                spec,
                // Left by an earlier process.
                runs: dice.percent(20),
                lies: dice.percent(10),
                bad,
                job: None,
                is_frozen: false,
            })
            .collect();
        Self {
            engine: Engine::new(now, settings),
            now,
            fakes,
            coming: Vec::new(),
            office: None,
            last_tenure: 1,
            lease_until: None,
            release: None,
            release_asked_at: now,
            is_calm: false,
            is_forbidden: false,
            deaf_until: now,
            starts: 0,
            log: Vec::new(),
            dice,
        }
    }

    fn tell(&mut self, input: Input) {
        if !matches!(input, Input::TimePassed | Input::LeaseChanged { .. }) {
            self.log.push(format!("{:>9} {input:?}", self.now.0 / 1_000_000 - 1_000_000));
        }
        let mut effects = Vec::new();
        self.engine.step(self.now, input, &mut effects);
        for effect in effects {
            if !matches!(effect, Effect::Note(_) | Effect::Lease { .. }) {
                let ms = self.now.0 / 1_000_000 - 1_000_000;
                self.log.push(format!("{ms:>9}    {effect:?}"));
            }
            self.carry_out(effect);
        }
        self.judge();
    }

    fn later(&mut self, after: Span, input: Input, ends: Option<(usize, u64)>) {
        self.coming.push(Coming { at: self.now + after, input, ends });
    }

    // ------------------------------------------------------------------ what services do

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Do { service, ticket, action } => {
                assert!(self.fakes[service].job.is_none(), "two jobs at once");
                self.check_order(service, action);
                self.fakes[service].job = Some((ticket, action));
                self.play(service, ticket, action);
            }
            Effect::Drop { service, ticket } => self.dropped(service, ticket),
            Effect::Suspend { service, is_suspended } => {
                self.fakes[service].is_frozen = is_suspended;
            }
            Effect::FailDevice => self.later(ms(20), Input::DeviceFailed, None),
            Effect::Released => self.released(),
            Effect::ReleaseFailed(_) => self.release = None,
            Effect::Lease { service, left } => {
                let fake = &mut self.fakes[service];
                if left.is_none() {
                    fake.is_frozen = true;
                } else {
                    assert!(self.office.is_some(), "an address is refreshed without an office");
                    fake.is_frozen = false;
                }
            }
            Effect::Note(_) => {}
        }
    }

    fn play(&mut self, at: usize, ticket: u64, action: Action) {
        let goes_wrong = !self.is_calm && self.dice.percent(self.fakes[at].bad);
        let hangs = goes_wrong && self.dice.percent(40);
        let slow = self.dice.percent(10);
        let took = ms(1 + self.dice.below(if slow { 15_000 } else { 300 }));
        let runs = self.fakes[at].runs;
        let result = match action {
            Action::Start if goes_wrong => {
                // It may leave something behind.
                self.fakes[at].runs |= self.dice.percent(40);
                Err(failure(self.dice.percent(10)))
            }
            Action::Start => {
                self.fakes[at].runs = true;
                Ok(Answer::Done)
            }
            Action::Stop(_) if goes_wrong && runs => Err(failure(false)),
            Action::Stop(_) => {
                self.fakes[at].runs = false;
                Ok(Answer::Done)
            }
            Action::Monitor if goes_wrong && self.dice.percent(50) => Err(failure(false)),
            Action::Monitor => Ok(Answer::Is(self.condition(at, goes_wrong))),
        };
        if !hangs {
            let took = if slow && self.is_calm { ms(500) } else { took };
            let input = Input::Ended { service: at, ticket, result };
            self.later(took, input, Some((at, ticket)));
        }
    }

    fn condition(&mut self, at: usize, goes_wrong: bool) -> Condition {
        let fake = &self.fakes[at];
        let lies = fake.lies && !self.is_calm && self.dice.percent(30);
        match fake.runs != lies {
            _ if goes_wrong && self.dice.percent(30) => Condition::Changing("activating".into()),
            true if self.dice.percent(10) => Condition::Degraded("not well".into()),
            true => Condition::Running,
            false => Condition::Stopped,
        }
    }

    /// A job that was dropped says nothing more, or says it late.
    fn dropped(&mut self, at: usize, ticket: u64) {
        assert!(self.fakes[at].job.take_if(|job| job.0 == ticket).is_some(), "nothing to drop");
        let says_it_late = self.dice.percent(30);
        for coming in &mut self.coming {
            if coming.ends == Some((at, ticket)) {
                coming.ends = None;
                if !says_it_late {
                    coming.input = Input::TimePassed;
                }
            }
        }
    }

    // ------------------------------------------------------------------ what the oracle says

    fn honest(&self) -> impl Iterator<Item = (usize, &Fake)> {
        self.fakes.iter().enumerate().filter(|(_, fake)| !fake.lies)
    }

    /// What an order must be like.
    fn check_order(&mut self, at: usize, action: Action) {
        let fake = &self.fakes[at];
        let has_lease = self.lease_until.is_some_and(|until| until > self.now);
        match action {
            Action::Start => {
                self.starts += 1;
                if fake.spec.place == Place::Primary {
                    assert!(self.office.is_some(), "started without an office");
                    assert!(has_lease, "started without a lease");
                    assert!(self.release.is_none(), "started while the office is given up");
                    let only_looks = matches!(fake.spec.kind, Kind::Reach { .. });
                    assert!(!self.is_forbidden || only_looks, "started where it is forbidden");
                }
                let step = fake.spec.step;
                for (_, other) in self.honest() {
                    let is_with = other.spec.place == fake.spec.place
                        || other.spec.place == Place::All && fake.spec.place != Place::All;
                    let blocks =
                        other.spec.is_critical && !matches!(other.spec.kind, Kind::Reach { .. });
                    let is_expected = is_with && blocks && other.spec.step < step;
                    // An address that an operator stopped is not waited for.
                    let may_lack = matches!(other.spec.kind, Kind::Address { .. });
                    let known = self
                        .engine
                        .services()
                        .iter()
                        .find(|it| it.name() == other.spec.name)
                        .expect("they are the same")
                        .phase();
                    if is_expected && !may_lack {
                        assert_eq!(
                            known,
                            Phase::Running,
                            "{} before {}",
                            fake.spec.name,
                            other.spec.name
                        );
                    }
                }
            }
            Action::Stop(Force::Orderly) if self.release.is_some() && self.office.is_some() => {
                let step = fake.spec.step;
                for (other, later) in self.honest() {
                    let phase = self.engine.services()[other].phase();
                    let is_left = later.spec.place == Place::Primary
                        && fake.spec.place == Place::Primary
                        && later.spec.step > step
                        && later.runs
                        && phase != Phase::Stopped;
                    assert!(!is_left, "{} stops before {}", fake.spec.name, later.spec.name);
                }
            }
            Action::Stop(_) | Action::Monitor => {}
        }
    }

    fn released(&mut self) {
        let Some(release) = self.release.take() else { return };
        for (at, fake) in self.honest() {
            let matters = release == Release::Down || fake.spec.place == Place::Primary;
            let told = self.coming.iter().any(|it| is_told(&it.input, at));
            assert!(!(matters && fake.runs) || told, "{} still runs at a release", fake.spec.name);
        }
        if self.office.is_some() {
            self.office = None;
            self.lease_until = None;
            self.tell(Input::OfficeReleased);
            self.tell(Input::LeaseChanged { until: None });
        }
    }

    /// What happened last.
    fn show(&self) {
        for fake in &self.fakes {
            println!("{:?}", fake.spec);
        }
        let tail = self.log.len().saturating_sub(150);
        for line in &self.log[tail..] {
            println!("{line}");
        }
        println!("{:?}", self.engine.state(self.now));
    }

    fn judge(&self) {
        if let Some(at) = self.engine.next_deadline() {
            assert!(at > self.now, "a deadline that is over");
        }
        if self.release.is_some() {
            let waits = self.now.since(self.release_asked_at);
            let stuck = self.engine.is_moving() && self.engine.must_reset();
            assert!(waits < ms(600_000) || stuck, "a release takes for ever");
        }
        let lapsed = self.lease_until.is_none_or(|until| until <= self.now);
        if self.office.is_some() && lapsed {
            for (at, fake) in self.fakes.iter().enumerate() {
                let phase = self.engine.services()[at].phase();
                let acts = fake.spec.place == Place::Primary
                    && matches!(phase, Phase::Running | Phase::Starting)
                    && !matches!(fake.spec.kind, Kind::Reach { .. });
                assert!(!acts || fake.is_frozen, "{} acts without a lease", fake.spec.name);
            }
        }
    }

    // ------------------------------------------------------------------ what happens

    fn happen(&mut self) {
        let at = self.dice.below(self.fakes.len() as u64) as usize;
        let name = Some(self.fakes[at].spec.name.clone()).filter(|_| self.dice.percent(80));
        match self.dice.below(20) {
            0..5 => self.office_changes(),
            5..8 => self.lease_changes(),
            8 if self.office.is_some() && self.release.is_none() => {
                let moves = self.dice.percent(50);
                self.ask_release(if moves { Release::Move } else { Release::HandOver });
            }
            9 if self.dice.percent(30) && self.release.is_none() => self.ask_release(Release::Down),
            10 if self.release.is_some() && self.dice.percent(50) => {
                self.tell(Input::HandOverWithdrawn);
            }
            10 if self.release.take().is_some() => self.tell(Input::ReleaseCancelled),
            11..14 if self.fakes[at].bad > 0 => self.dies(at),
            14 => self.by_hand(at),
            15 => self.tell(Input::Ordered(Order::Stop(name))),
            16 => self.tell(Input::Ordered(Order::Start(name))),
            17 => self.tell(Input::Ordered(Order::Restart(name))),
            18 => {
                let is_on = self.dice.percent(30);
                self.tell(Input::Ordered(Order::Maintenance(is_on)));
            }
            19 if self.dice.percent(50) => self.forbid(!self.is_forbidden),
            19 => self.tell(Input::Ordered(Order::Clear(name))),
            _ => {}
        }
    }

    /// A watchdog that is required goes, or comes.
    fn forbid(&mut self, is_forbidden: bool) {
        self.is_forbidden = is_forbidden;
        let why =
            is_forbidden.then(|| Hindrance { code: "watchdog".into(), ..Hindrance::default() });
        self.tell(Input::Forbidden(why));
    }

    fn office_changes(&mut self) {
        match self.office {
            None => {
                let how = [Gain::TakenFromSilent, Gain::HandedOver, Gain::Resumed]
                    [self.dice.below(3) as usize];
                self.gain(how, LEASE);
            }
            Some(_) if self.dice.percent(30) => {
                if self.dice.percent(50) {
                    self.last_tenure += 1;
                    self.office = None;
                    self.tell(Input::NotHeld { tenure: self.last_tenure });
                }
                self.lose();
            }
            Some(_) => {}
        }
        if self.office.is_none() {
            self.tell(Input::NotHeld { tenure: self.last_tenure });
        }
    }

    fn gain(&mut self, how: Gain, lease: Span) {
        self.release = None;
        self.tell(Input::ReleaseCancelled);
        self.last_tenure += 1;
        self.lease_until = Some(self.now + lease);
        self.tell(Input::LeaseChanged { until: self.lease_until });
        self.office = Some(self.last_tenure);
        self.tell(Input::OfficeGained { tenure: self.last_tenure, how });
    }

    /// Renewals come by themselves; this is a gap in them.
    fn lease_changes(&mut self) {
        self.deaf_until = self.now + ms([500, 1_500, 20_000][self.dice.below(3) as usize]);
    }

    fn ask_release(&mut self, release: Release) {
        self.release = Some(release);
        self.release_asked_at = self.now;
        self.tell(Input::ReleaseWanted(release));
    }

    fn dies(&mut self, at: usize) {
        let fake = &mut self.fakes[at];
        if fake.job.is_some_and(|(_, action)| action != Action::Monitor) {
            return;
        }
        // What is never asked is told for sure.
        let is_asked = fake.spec.timing.monitor_every > ms(0);
        if std::mem::take(&mut fake.runs) && (!is_asked || self.dice.percent(70)) {
            let change = Change::Failed("killed".into());
            self.tell(Input::Changed { service: at, change });
        }
    }

    fn by_hand(&mut self, at: usize) {
        if self.fakes[at].job.is_some() {
            return;
        }
        self.fakes[at].runs = !self.fakes[at].runs;
        let change = if self.fakes[at].runs {
            Change::StartedByHand("by hand".into())
        } else {
            Change::StoppedByHand("by hand".into())
        };
        self.later(ms(5), Input::Changed { service: at, change }, None);
    }

    /// Until then whatever comes happens.
    fn run_until(&mut self, end: Time) {
        loop {
            let next = self.coming.iter().map(|it| it.at).chain(self.engine.next_deadline()).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            let due = self.coming.iter().position(|it| it.at <= self.now);
            match due {
                Some(due) => {
                    let Coming { input, ends, .. } = self.coming.swap_remove(due);
                    if let Some((service, ticket)) = ends {
                        let job = &mut self.fakes[service].job;
                        assert!(job.take_if(|job| job.0 == ticket).is_some());
                    }
                    self.tell(input);
                }
                None => self.tell(Input::TimePassed),
            }
        }
        self.now = end;
        self.tell(Input::TimePassed);
    }

    /// Also what a replica does: without a lease for ten seconds it gives the office up.
    fn renew(&mut self) {
        let Some(until) = self.lease_until.filter(|_| self.office.is_some()) else { return };
        if self.now.since(until) >= ms(10_000) {
            return self.lose();
        }
        if self.now >= self.deaf_until && self.dice.percent(95) {
            self.lease_until = Some(until.max(self.now + LEASE));
            self.tell(Input::LeaseChanged { until: self.lease_until });
        }
    }

    fn lose(&mut self) {
        self.office = None;
        self.lease_until = None;
        self.tell(Input::LeaseChanged { until: None });
        self.tell(Input::OfficeLost);
    }

    /// Faults stop: what is told late is told, nobody plays, and a lasting office comes.
    fn calm_down(&mut self) {
        self.is_calm = true;
        self.forbid(false);
        self.tell(Input::Ordered(Order::Maintenance(false)));
        self.tell(Input::Ordered(Order::Start(None)));
        self.release = None;
        self.tell(Input::ReleaseCancelled);
        self.tell(Input::ResourceUp);
        if self.office.is_some() {
            self.lease_until = Some(Time(u64::MAX));
            self.tell(Input::LeaseChanged { until: self.lease_until });
        } else {
            self.gain(Gain::HandedOver, Span(u64::MAX));
        }
    }
}

fn is_told(input: &Input, at: usize) -> bool {
    matches!(input, Input::Changed { service, .. } if *service == at)
}

fn play(world: &mut World) {
    world.tell(Input::ResourceUp);
    let end = world.now + PLAY;
    while world.now < end {
        let pause = ms(1 + world.dice.below(3_000));
        let next = world.now + pause;
        while world.now < next {
            let beat = (world.now + ms(200)).min(next);
            world.run_until(beat);
            world.renew();
        }
        world.happen();
    }
}

fn run(world: &mut World) {
    play(world);
    world.calm_down();
    let end = world.now + CALM;
    world.run_until(end);
    let state = world.engine.state(world.now);
    for (at, fake) in world.fakes.iter().enumerate() {
        let wanted = fake.spec.place != Place::Secondary;
        let (name, service) = (&fake.spec.name, &state.services[at]);
        // One that says that it does not run, and does, is not asked again where it should not.
        let is_believed = fake.lies && (!wanted || fake.spec.timing.monitor_every == ms(0));
        assert!(fake.runs == wanted || is_believed, "{name} at the end: {service:?}");
        assert_eq!(service.phase == Phase::Running, wanted, "{name}: {service:?}");
    }
    // And all of it stops again.
    world.ask_release(Release::Down);
    world.run_until(world.now + ms(300_000));
    assert!(world.release.is_none(), "not released");
    assert!(world.honest().all(|(_, fake)| !fake.runs), "something is left");
}

/// `SERVICES_SEED=17` runs one seed and prints what happened; `SERVICES_SEEDS=100000` so many.
#[test]
fn seeds() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let one = number("SERVICES_SEED");
    let all = one.map_or(0..number("SERVICES_SEEDS").unwrap_or(60), |seed| seed..seed + 1);
    let mut starts = 0;
    for seed in all {
        let mut world = World::new(seed);
        let told = catch_unwind(AssertUnwindSafe(|| run(&mut world)));
        starts += world.starts;
        if one.is_some() || told.is_err() {
            world.show();
        }
        assert!(told.is_ok(), "seed {seed} failed: SERVICES_SEED={seed} shows it");
    }
    println!("{starts} starts");
    assert!(starts > 0, "nothing was ever started");
}

/// A service that never starts is tried for a day: a bounded number of times.
#[test]
fn what_never_starts_is_tried_less_and_less_often() {
    let mut dice = Dice(1);
    let mut services = specs(&mut dice);
    services.truncate(1);
    services[0].place = Place::Primary;
    services[0].restarts_max = 3;
    services[0].is_critical = true;
    services[0].kind = Kind::Command { start: String::new(), stop: None, monitor: None };
    let mut story = crate::story::Story::secondary(services);
    story.lease(Some(Time(u64::MAX)));
    story.gain(2, Gain::HandedOver);
    let name = "s0";
    let mut starts = 0;
    let end = story.now + ms(86_400_000);
    while story.now < end {
        match story.job(name) {
            Some(Action::Start) => {
                starts += 1;
                story.fails(name);
            }
            Some(_) => story.done(name),
            None => story.wait(ms(1_000)),
        }
    }
    assert!((100..200).contains(&starts), "{starts} attempts in a day");
}

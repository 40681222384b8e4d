//! An engine in a story: what it is told, and what it orders, as lines of text.

use failover_core::services::{
    Action, Answer, Change, Condition, Effect, Engine, Failure, Force, FsckPolicy, Gain, Input,
    Kind, Note, Order, Phase, Place, Release, ServiceSpec, ServiceTiming, Settings,
};
use failover_core::{Span, Time};

/// A span of milliseconds.
pub const fn ms(ms: u64) -> Span {
    Span::from_ms(ms)
}

/// A service with the timing that stories use.
pub fn spec(name: &str, step: u16, kind: Kind) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        kind,
        place: Place::Primary,
        step,
        timing: ServiceTiming {
            start: ms(60_000),
            stop: ms(60_000),
            monitor: ms(10_000),
            monitor_every: ms(30_000),
        },
        restarts_max: 2,
        is_critical: true,
    }
}

/// A command.
pub fn command(name: &str, step: u16) -> ServiceSpec {
    let kind = Kind::Command { start: "true".into(), stop: None, monitor: None };
    spec(name, step, kind)
}

/// A resource agent.
pub fn agent(name: &str, step: u16) -> ServiceSpec {
    let (provider, agent) = ("heartbeat".into(), "nfsserver".into());
    spec(name, step, Kind::Ocf { provider, agent, parameters: [].into() })
}

/// A file system, an address and a unit: the example of the README.
pub fn usual() -> Vec<ServiceSpec> {
    let filesystem = Kind::Filesystem {
        mount_point: "/srv".into(),
        fs_type: None,
        options: vec![],
        fsck: FsckPolicy::Auto,
    };
    let address = Kind::Address { address: [192, 0, 2, 100].into(), prefix: 24, interface: None };
    vec![
        spec("fs", 0, filesystem),
        spec("address", 1, address),
        spec("db", 2, Kind::Systemd { unit: "db.service".into() }),
    ]
}

/// The engine with its clock.
#[derive(Clone)]
pub struct Story {
    pub engine: Engine,
    pub now: Time,
    jobs: Vec<Option<(u64, Action)>>,
    names: Vec<String>,
    /// Orders since the last look, in words.
    lines: Vec<String>,
    /// Codes of notes since the beginning.
    pub notes: Vec<String>,
}

impl Story {
    /// Nothing has happened.
    pub fn new(services: Vec<ServiceSpec>) -> Self {
        let settings = Settings {
            resource: "demo".into(),
            services: services.clone(),
            lease: ms(1_000),
            demote_after: ms(10_000),
        };
        let now = Time(1_000_000_000_000);
        Self {
            engine: Engine::new(now, settings),
            now,
            jobs: vec![None; services.len()],
            names: services.into_iter().map(|spec| spec.name).collect(),
            lines: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A secondary that knows that nothing runs.
    pub fn secondary(services: Vec<ServiceSpec>) -> Self {
        let mut story = Self::new(services);
        story.tell(Input::ResourceUp);
        story.tell(Input::NotHeld { tenure: 1 });
        for name in story.names.clone() {
            if story.job(&name).is_some() {
                story.is(&name, Condition::Stopped);
            }
        }
        story.lines.clear();
        story
    }

    /// A primary on which everything runs.
    pub fn running(services: Vec<ServiceSpec>) -> Self {
        let mut story = Self::secondary(services);
        story.lease(Some(Time(u64::MAX)));
        story.gain(2, Gain::HandedOver);
        for name in story.names.clone() {
            story.done(&name);
        }
        story.lines.clear();
        story
    }

    pub fn tell(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.engine.step(self.now, input, &mut effects);
        for effect in effects {
            self.hear(effect);
        }
    }

    fn hear(&mut self, effect: Effect) {
        let line = match effect {
            Effect::Do { service, ticket, action } => {
                self.jobs[service] = Some((ticket, action));
                let word = match action {
                    Action::Monitor => "ask",
                    Action::Start => "start",
                    Action::Stop(Force::Orderly) => "stop",
                    Action::Stop(Force::Kill) => "kill",
                    Action::Stop(Force::Detach) => "detach",
                };
                format!("{word} {}", self.names[service])
            }
            Effect::Drop { service, .. } => {
                self.jobs[service] = None;
                format!("drop {}", self.names[service])
            }
            Effect::Lease { service, left } => match left {
                None => format!("withdraw {}", self.names[service]),
                Some(_) => return,
            },
            Effect::Suspend { service, is_suspended: true } => {
                format!("freeze {}", self.names[service])
            }
            Effect::Suspend { service, .. } => format!("thaw {}", self.names[service]),
            Effect::FailDevice => "fail the device".into(),
            Effect::Released => "released".into(),
            Effect::ReleaseFailed(failure) => format!("not released: {}", failure.why),
            Effect::Note(Note { code, .. }) => return self.notes.push(code.into()),
        };
        self.lines.push(line);
    }

    /// What was ordered since the last look.
    pub fn orders(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// What was ordered since the last look must be this.
    #[track_caller]
    pub fn expect(&mut self, lines: &[&str]) {
        assert_eq!(self.orders(), lines);
    }

    fn at(&self, name: &str) -> usize {
        self.names.iter().position(|it| it == name).expect(name)
    }

    pub fn job(&self, name: &str) -> Option<Action> {
        self.jobs[self.at(name)].map(|(_, action)| action)
    }

    pub fn phase(&self, name: &str) -> Phase {
        self.engine.services()[self.at(name)].phase()
    }

    #[track_caller]
    fn end(&mut self, name: &str, result: Result<Answer, Failure>) {
        let service = self.at(name);
        let (ticket, _) = self.jobs[service].take().unwrap_or_else(|| panic!("{name}: no job"));
        self.tell(Input::Ended { service, ticket, result });
    }

    /// The job of a service ends well.
    #[track_caller]
    pub fn done(&mut self, name: &str) {
        self.end(name, Ok(Answer::Done));
    }

    /// The job of a service fails.
    #[track_caller]
    pub fn fails(&mut self, name: &str) {
        self.end(name, Err(failure(false)));
    }

    /// The job of a service fails for good.
    #[track_caller]
    pub fn fails_for_good(&mut self, name: &str) {
        self.end(name, Err(failure(true)));
    }

    /// A monitor answers.
    #[track_caller]
    pub fn is(&mut self, name: &str, condition: Condition) {
        self.end(name, Ok(Answer::Is(condition)));
    }

    pub fn change(&mut self, name: &str, change: Change) {
        let service = self.at(name);
        self.tell(Input::Changed { service, change });
    }

    pub fn dies(&mut self, name: &str) {
        self.change(name, Change::Failed("killed by signal 9".into()));
    }

    pub fn lease(&mut self, until: Option<Time>) {
        self.tell(Input::LeaseChanged { until });
    }

    /// A lease of 0.9 s from now on.
    pub fn renew(&mut self) {
        self.lease(Some(self.now + ms(900)));
    }

    pub fn gain(&mut self, tenure: u64, how: Gain) {
        self.tell(Input::OfficeGained { tenure, how });
    }

    pub fn release(&mut self, release: Release) {
        self.tell(Input::ReleaseWanted(release));
    }

    pub fn order(&mut self, order: Order) {
        self.tell(Input::Ordered(order));
    }

    /// Time passes, with a step at every deadline.
    pub fn wait(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            assert!(at > self.now, "a deadline that is over is asked for again");
            self.now = at;
            self.tell(Input::TimePassed);
        }
        self.now = end;
        self.tell(Input::TimePassed);
    }
}

/// A failure.
pub fn failure(is_permanent: bool) -> Failure {
    Failure {
        code: "broken".into(),
        why: "it is broken".into(),
        next: "mend it".into(),
        is_permanent,
    }
}

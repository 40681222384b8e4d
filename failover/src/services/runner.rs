//! Carries out what the engine of services orders: one thread for each resource, so that no
//! resource waits for another's, and neither the data loop nor the lease for any.
//!
//! A job of a service is a task; when the engine drops it, its future is dropped, and the next job
//! of that service begins when that is done.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use failover_core::facts::Hindrance;
use failover_core::services::reach::Seen;
use failover_core::services::report::State;
use failover_core::services::{
    Action, Answer, Change, Effect, Engine, Failure, Input, Note, Place, Release, Settings,
};
use failover_core::{Span, Time};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::guarded::Guarded;
use super::{Service, Site};
use crate::guard::Registry;
use crate::node::now;

/// The engine looks at least so often; a machine that slept notices then.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The guard hears so often that the thread lives.
const BEAT_EVERY: Duration = Duration::from_millis(100);
/// How long a start waits until what can be checked beforehand is checked.
const PREPARED_WITHIN: Duration = Duration::from_secs(10);
/// How long that may take at all: nobody else waits for it, and a daemon-reload of a big machine
/// takes its time.
const PREPARE_LIMIT: Duration = Duration::from_secs(150);
/// A watch that ended begins again after this.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// Who hears what happens. Called from the thread of the resource: nothing here may wait.
pub trait Listener: Send + 'static {
    /// Something happened; the name of the service, if it is about one.
    fn noted(&self, service: Option<&str>, note: &Note);
    /// Fail all I/O of the device; then tell the runner [`Input::DeviceFailed`].
    fn fail_device(&self);
}

/// What a runner is given.
pub struct Setup {
    /// What the engine is told.
    pub settings: Settings,
    /// The services, in the order of the settings.
    pub services: Vec<Arc<dyn Service>>,
    /// What the resource gives to them.
    pub site: Site,
    /// Where the guard is told of them.
    pub registry: Registry,
    /// Why services may not run on this node, if so. Asked again and again; must not wait.
    pub forbidden: Box<dyn Fn() -> Option<Hindrance> + Send>,
}

enum Letter {
    Tell(Input),
    Release { release: Release, reply: mpsc::Sender<Result<(), Failure>> },
}

/// The handle of the services of one resource.
#[derive(Clone)]
pub struct Runner {
    letters: UnboundedSender<Letter>,
    engine: Arc<Mutex<Engine>>,
    services: Vec<Arc<dyn Service>>,
}

impl Runner {
    /// Starts the thread. The engine knows nothing yet, and starts nothing.
    pub fn start(setup: Setup, listener: impl Listener) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let name = format!("run {}", setup.settings.resource);
        let (letters, inbox) = unbounded_channel();
        let specs = setup.settings.services.iter();
        let guarded = setup.services.iter().zip(specs).filter(|(_, it)| it.place == Place::Primary);
        let guarded = guarded.map(|(service, _)| service.clone()).collect();
        let registry = setup.registry;
        registry.set_demote_after(&setup.settings.resource, setup.settings.demote_after);
        let guarded = Guarded::new(registry, &setup.settings.resource, guarded)?;
        let engine = Arc::new(Mutex::new(Engine::new(now(), setup.settings)));
        let services = setup.services.clone();
        let thread = RunnerThread {
            engine: engine.clone(),
            jobs: setup.services.iter().map(|_| None).collect(),
            prepared: Vec::new(),
            dropped: setup.services.iter().map(|_| None).collect(),
            services: setup.services,
            site: Arc::new(setup.site),
            listener: Box::new(listener),
            guarded,
            ask_forbidden: setup.forbidden,
            forbidden: None,
            own: letters.clone(),
            waiting: Vec::new(),
        };
        thread::Builder::new().name(name).spawn(move || runtime.block_on(thread.run(inbox)))?;
        Ok(Self { letters, engine, services })
    }

    /// Tells the engine a fact.
    pub fn tell(&self, input: Input) {
        // The thread lives as long as the process.
        let _ = self.letters.send(Letter::Tell(input));
    }

    /// Stops everything, so that the office can be given up; waits for the end. Afterwards either
    /// [`Input::OfficeReleased`] or [`Input::ReleaseCancelled`] is to be told.
    pub fn release(&self, release: Release, patience: Duration) -> Result<(), Failure> {
        let (reply, answer) = mpsc::channel();
        let _ = self.letters.send(Letter::Release { release, reply });
        answer.recv_timeout(patience).unwrap_or_else(|_| {
            self.tell(Input::ReleaseCancelled);
            Err(Failure {
                code: "stop_takes_long".into(),
                why: format!("services are not stopped after {} s", patience.as_secs()),
                next: "replctl status shows which one; mend it and try again".into(),
                is_permanent: false,
            })
        })
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things are.
    pub fn state(&self) -> State {
        self.engine().state(now())
    }

    /// Why services cannot run on this node, if so.
    pub fn trouble(&self) -> Option<Hindrance> {
        self.engine().trouble().cloned()
    }

    /// What this node sees of the clients, by each `reach` service.
    pub fn reach(&self) -> Vec<Seen> {
        self.services.iter().filter_map(|service| service.reach()).collect()
    }

    /// Whether nothing that belongs to the primary runs here.
    pub fn is_all_stopped(&self) -> bool {
        self.engine().is_all_stopped()
    }

    /// How long an orderly stop of everything takes at most, by its deadlines.
    pub fn stop_limit(&self) -> Span {
        self.engine().stop_limit()
    }
}

struct Job {
    ticket: u64,
    action: Action,
    task: JoinHandle<()>,
}

impl Job {
    fn is_start(&self) -> bool {
        self.action == Action::Start && !self.task.is_finished()
    }
}

struct RunnerThread {
    engine: Arc<Mutex<Engine>>,
    services: Vec<Arc<dyn Service>>,
    site: Arc<Site>,
    listener: Box<dyn Listener>,
    guarded: Guarded,
    ask_forbidden: Box<dyn Fn() -> Option<Hindrance> + Send>,
    /// What the engine was told of that.
    forbidden: Option<Hindrance>,
    own: UnboundedSender<Letter>,
    jobs: Vec<Option<Job>>,
    /// Which services were looked at beforehand.
    prepared: Vec<watch::Receiver<bool>>,
    /// The last job that was dropped, until it is gone.
    dropped: Vec<Option<JoinHandle<()>>>,
    /// Who waits for the end of a release.
    waiting: Vec<mpsc::Sender<Result<(), Failure>>>,
}

impl RunnerThread {
    async fn run(mut self, mut inbox: UnboundedReceiver<Letter>) {
        // Before the first order, which may be about any of them.
        self.prepare();
        loop {
            self.guarded.beat();
            self.look_whether_forbidden();
            // What a start has made so far is the guard's business too.
            let starts = |job: &Option<Job>| job.as_ref().is_some_and(Job::is_start);
            if self.jobs.iter().any(starts) {
                self.guarded.look_soon();
            }
            let pause = self.pause();
            tokio::select! {
                letter = inbox.recv() => match letter {
                    Some(Letter::Tell(input)) => self.step(input),
                    Some(Letter::Release { release, reply }) => {
                        self.waiting.push(reply);
                        self.step(Input::ReleaseWanted(release));
                    }
                    None => return,
                },
                () = sleep(pause) => self.step(Input::TimePassed),
            }
        }
    }

    /// The guard has no watchdog, or has one again.
    fn look_whether_forbidden(&mut self) {
        let found = (self.ask_forbidden)();
        if found != self.forbidden {
            self.forbidden.clone_from(&found);
            self.step(Input::Forbidden(found));
        }
    }

    /// Everything that can be checked beforehand, all at once, and then watched. Meanwhile what an
    /// earlier process left is asked after and, without a lease, made to stand still.
    fn prepare(&mut self) {
        for (at, service) in self.services.iter().enumerate() {
            let (done, prepared) = watch::channel(false);
            self.prepared.push(prepared);
            let (service, own) = (service.clone(), self.own.clone());
            tokio::spawn(async move {
                let limited = timeout(PREPARE_LIMIT, service.prepare());
                if let Err(why) = limited.await.unwrap_or_else(|_| Err(prepare_takes_long())) {
                    let _ = own.send(Letter::Tell(Input::Unprepared { service: at, why }));
                }
                done.send_replace(true);
                pass_on_changes(at, service, own).await;
            });
        }
    }

    fn locked(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self) -> Duration {
        let due = self.locked().next_deadline().unwrap_or(Time(u64::MAX));
        let longest = if self.guarded.is_told() { BEAT_EVERY } else { LOOK_EVERY };
        Duration::from_nanos(due.since(now()).0).min(longest)
    }

    fn step(&mut self, input: Input) {
        let has_changed = matches!(input, Input::Ended { .. } | Input::Changed { .. });
        let mut effects = Vec::new();
        let must_reset = {
            let mut engine = self.locked();
            engine.step(now(), input, &mut effects);
            engine.must_reset()
        };
        if has_changed {
            self.guarded.look_soon();
        }
        self.guarded.give_up(must_reset);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Do { service, ticket, action } => self.begin(service, ticket, action),
            Effect::Drop { service, ticket } => {
                if let Some(job) = self.jobs[service].take_if(|job| job.ticket == ticket) {
                    job.task.abort();
                    self.dropped[service] = Some(job.task);
                }
            }
            Effect::Lease { service, left } => {
                let service = self.services[service].clone();
                let left = left.map(|left| Duration::from_nanos(left.0));
                tokio::spawn(async move { service.lease(left).await });
            }
            Effect::Suspend { service, is_suspended } => {
                let service = self.services[service].clone();
                tokio::spawn(async move { service.suspend(is_suspended).await });
            }
            Effect::FailDevice => self.listener.fail_device(),
            Effect::Released => self.answer(&Ok(())),
            Effect::ReleaseFailed(why) => self.answer(&Err(why)),
            Effect::Note(note) => {
                let name = note.service.map(|at| self.locked().services()[at].name().to_owned());
                self.listener.noted(name.as_deref(), &note);
            }
        }
    }

    fn answer(&mut self, result: &Result<(), Failure>) {
        for reply in self.waiting.drain(..) {
            // Who asked may have lost patience.
            let _ = reply.send(result.clone());
        }
    }

    fn begin(&mut self, at: usize, ticket: u64, action: Action) {
        let (service, site) = (self.services[at].clone(), self.site.clone());
        let (own, before) = (self.own.clone(), self.dropped[at].take());
        let mut prepared = self.prepared[at].clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                // It was aborted: it ends when its future is gone.
                let _ = before.await;
            }
            let result = match action {
                Action::Start => {
                    // Whatever comes of it: the start says by itself what it lacks.
                    let _ = timeout(PREPARED_WITHIN, prepared.wait_for(|done| *done)).await;
                    service.start(&site).await.map(|()| Answer::Done)
                }
                Action::Stop(force) => service.stop(force).await.map(|()| Answer::Done),
                Action::Monitor => service.monitor().await.map(Answer::Is),
            };
            let _ = own.send(Letter::Tell(Input::Ended { service: at, ticket, result }));
        });
        self.jobs[at] = Some(Job { ticket, action, task });
    }
}

fn prepare_takes_long() -> Failure {
    Failure {
        code: "prepare_takes_long".into(),
        why: format!("what it needs cannot be looked at within {} s", PREPARE_LIMIT.as_secs()),
        next: "look at the log of this machine".into(),
        is_permanent: false,
    }
}

/// Passes on what a service tells by itself.
async fn pass_on_changes(at: usize, service: Arc<dyn Service>, own: UnboundedSender<Letter>) {
    loop {
        let (changes, mut told) = unbounded_channel::<Change>();
        let pass_on = async {
            while let Some(change) = told.recv().await {
                let _ = own.send(Letter::Tell(Input::Changed { service: at, change }));
            }
        };
        tokio::join!(service.watch(changes), pass_on);
        sleep(WATCH_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Instant;

    use failover_core::services::{Condition, Force, Gain, Kind, ServiceSpec, ServiceTiming};
    use tokio::sync::Notify;

    use super::super::Doing;
    use super::*;

    /// One whose preparation ends when the test says so.
    #[derive(Default)]
    struct Slow {
        may_end: Notify,
        is_prepared: AtomicBool,
        asked: AtomicU32,
        started: AtomicU32,
    }

    impl Service for Slow {
        fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
            Box::pin(async {
                self.may_end.notified().await;
                self.is_prepared.store(true, Ordering::SeqCst);
                Ok(())
            })
        }

        fn start<'a>(&'a self, _: &'a Site) -> Doing<'a, Result<(), Failure>> {
            assert!(self.is_prepared.load(Ordering::SeqCst), "started before it was looked at");
            self.started.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(()) })
        }

        fn stop(&self, _: Force) -> Doing<'_, Result<(), Failure>> {
            Box::pin(async { Ok(()) })
        }

        fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(Condition::Stopped) })
        }

        fn watch(&self, _: UnboundedSender<Change>) -> Doing<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    struct Deaf;

    impl Listener for Deaf {
        fn noted(&self, _: Option<&str>, _: &Note) {}
        fn fail_device(&self) {}
    }

    fn spec() -> ServiceSpec {
        ServiceSpec {
            name: "slow".into(),
            kind: Kind::Command { start: "true".into(), stop: None, monitor: None },
            place: Place::Primary,
            step: 0,
            timing: ServiceTiming {
                start: Span::from_ms(60_000),
                stop: Span::from_ms(60_000),
                monitor: Span::from_ms(60_000),
                monitor_every: Span::from_ms(60_000),
            },
            restarts_max: 3,
            is_critical: true,
        }
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// L4: what an earlier process left is dealt with, and the guard hears of a thread that lives,
    /// however long agents and systemd take to tell what they are.
    #[test]
    fn a_preparation_that_takes_long_holds_up_its_own_start_and_nothing_else() {
        let service = Arc::new(Slow::default());
        let registry = Registry::for_tests();
        let setup = Setup {
            settings: Settings {
                resource: "demo".into(),
                services: vec![spec()],
                lease: Span::from_ms(1_000),
                demote_after: Span::from_ms(10_000),
            },
            services: vec![service.clone()],
            site: Site {
                device: "/dev/null".into(),
                resource: "demo".into(),
                node: "alpha".into(),
            },
            registry: registry.clone(),
            // At first, as where a watchdog is required that the guard has not found yet.
            forbidden: Box::new({
                let is_asked = AtomicBool::new(false);
                move || {
                    let is_first = !is_asked.swap(true, Ordering::SeqCst);
                    is_first.then(Hindrance::default)
                }
            }),
        };
        let began = Instant::now();
        let runner = Runner::start(setup, Deaf).unwrap();
        let first = registry.services_beat("demo");
        assert!(first.is_some(), "the guard knows from the first moment who has to live");
        until("it beats", || registry.services_beat("demo") > first);
        runner.tell(Input::ResourceUp);
        until("it is asked what it is", || service.asked.load(Ordering::SeqCst) > 0);
        assert!(began.elapsed() < PREPARED_WITHIN, "that is what a start waits");
        runner.tell(Input::LeaseChanged { until: Some(Time(u64::MAX)) });
        runner.tell(Input::OfficeGained { tenure: 2, how: Gain::HandedOver });
        until("its start is ordered", || {
            runner.engine().services()[0].phase() == failover_core::services::Phase::Starting
        });
        let beat = registry.services_beat("demo");
        until("it still beats", || registry.services_beat("demo") > beat);
        assert_eq!(service.started.load(Ordering::SeqCst), 0);
        service.may_end.notify_one();
        until("it starts", || service.started.load(Ordering::SeqCst) == 1);
    }
}

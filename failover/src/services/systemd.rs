//! Units of systemd as services, over D-Bus.
//!
//! ```text
//!   bus.rs      the connection all units share; looks at a unit whenever something of it changed
//!   state.rs    what systemd says about a unit, and what a change of it means
//!   drop_in.rs  what units are told beside their own files: restarts are ours; how a machine stops
//!   limits.rs   how long a unit's own file lets it start and stop
//!   cgroup.rs   a unit's processes, without systemd
//!   proxies.rs  the methods that are called
//! ```
//!
//! Nothing here believes that an order was carried out because it was accepted: the end of a job is
//! waited for (`JobRemoved`), and then systemd is asked what the unit is. A call without an answer
//! (the bus restarted, systemd executes itself anew) has an unknown outcome and is made again,
//! which every one of these orders allows; only when nobody has answered for half a minute
//! is that a failure. A unit is not reported as failed because systemd is silent: a monitor answers
//! in time that its processes live, or that nobody knows.

mod bus;
mod cgroup;
pub mod drop_in;
pub mod limits;
mod proxies;
mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use failover_core::services::spec::ServiceSpec;
use nix::sys::signal::Signal;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};
use zbus::OwnedObjectPath;

use self::bus::{Bus, Tracked, refused};
use self::state::{Activity, Expect, Judge, Seen, State, View};
use super::{Change, Condition, Doing, Failure, Force, Service, Site};

/// Between two looks at a unit whose job takes long, beside what signals tell.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Between two orders to stop a unit that somebody else starts again.
const ORDER_AGAIN: Duration = Duration::from_millis(200);
/// Between two SIGKILLs to a unit that starts new processes while it stops.
const KILL_AGAIN: Duration = Duration::from_millis(200);
/// A unit without processes (an NFS server is threads of the kernel) has only its stop command,
/// which is not killed before it had so long.
const STOP_COMMAND_LIMIT: Duration = Duration::from_secs(3);
/// Nothing of a unit is left, and systemd has not said so for so long: nobody waits for it.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// How long the kernel may take to end killed processes before that is an error.
const REAP_PATIENCE: Duration = Duration::from_secs(2);
/// A signal about a job may be read a little after the look it explains.
const LATE_SIGNAL: Duration = Duration::from_millis(20);
/// How long a monitor waits for systemd, where nothing else is said.
const MONITOR_PATIENCE: Duration = Duration::from_secs(5);
/// How often a start is ordered again whose outcome is not known.
const UNKNOWN_STARTS_MAX: u32 = 5;

/// The systemd of this machine. One for all units of a node.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
    /// Where drop-ins are written.
    directory: PathBuf,
    owner: String,
    lists: std::sync::Mutex<Vec<Vec<ServiceSpec>>>,
    /// One writer of drop-ins at a time.
    writing: Mutex<()>,
}

impl Systemd {
    /// Of this node, on the system bus. Connects when the first unit is asked for.
    pub fn new(cluster: &str, node: &str) -> Arc<Self> {
        Self::at(None, PathBuf::from(drop_in::RUNTIME_UNITS), cluster, node)
    }

    /// On another bus, with drop-ins below another directory.
    pub fn at(bus: Option<String>, directory: PathBuf, cluster: &str, node: &str) -> Arc<Self> {
        Arc::new(Self {
            bus: Bus::new(bus),
            directory,
            owner: drop_in::owner_line(cluster, node),
            lists: std::sync::Mutex::default(),
            writing: Mutex::new(()),
        })
    }

    /// The services of every resource of this node. Their drop-ins are written by the next
    /// [`Service::prepare`] of any unit, or by [`Systemd::write_drop_ins`].
    pub fn configure(&self, lists: Vec<Vec<ServiceSpec>>) {
        *self.lists.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = lists;
    }

    /// Writes the drop-ins that are missing, removes those of units that are no longer configured,
    /// and makes systemd read them, once, if there was anything to do.
    pub async fn write_drop_ins(&self) -> Result<(), Failure> {
        let _writing = self.writing.lock().await;
        let lists = self.lists.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let daemon = self.own_unit().await?;
        let lists = lists.iter().map(Vec::as_slice);
        let wanted: BTreeMap<String, String> = drop_in::wanted(lists, daemon.as_deref());
        let written = drop_in::write(&self.directory, &self.owner, &wanted);
        let has_changed = written.map_err(|error| Failure {
            code: "drop_in_not_written".to_owned(),
            why: format!("cannot write below {}: {error}", self.directory.display()),
            next: "run replicatord as root; look for a full or read-only /run".to_owned(),
            is_permanent: false,
        })?;
        if has_changed {
            let reloaded = self.bus.call("Reload", |manager| async move { manager.reload().await });
            reloaded.await?.map_err(|(name, text)| refused("daemon-reload", &name, &text))?;
        }
        Ok(())
    }

    /// The unit that this process belongs to, if a service unit does.
    async fn own_unit(&self) -> Result<Option<String>, Failure> {
        let own = self.bus.call("GetUnitByPID", |manager| async move {
            let path = manager.get_unit_by_pid(0).await?;
            unit_id(manager.inner().connection(), &path).await
        });
        let own = own.await?.ok();
        Ok(own.filter(|unit| unit.ends_with(".service")))
    }
}

async fn unit_id(connection: &zbus::Connection, path: &OwnedObjectPath) -> zbus::Result<String> {
    let proxy = proxies::UnitProxy::builder(connection).path(path).build().await?;
    proxy.id().await
}

/// Whether systemd stops this process only to start it again (`systemctl restart`, an upgrade), so
/// that services and devices may stay. False when it cannot tell within `patience`. Blocks.
pub fn is_being_restarted(patience: Duration) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return false };
    runtime.block_on(async {
        let job = timeout(patience, own_job_type(None)).await;
        matches!(job, Ok(Ok(kind)) if kind.contains("restart"))
    })
}

async fn own_job_type(address: Option<&str>) -> zbus::Result<String> {
    let builder = match address {
        Some(address) => zbus::connection::Builder::address(address),
        None => zbus::connection::Builder::system(),
    };
    let connection = builder.build().await?;
    let unit = proxies::ManagerProxy::new(&connection).await?.get_unit_by_pid(0).await?;
    let unit = proxies::UnitProxy::builder(&connection).path(unit).build().await?;
    let (_, job) = unit.job().await?;
    proxies::JobProxy::builder(&connection).path(job).build().await?.job_type().await
}

/// One unit as a service.
#[derive(Debug)]
pub struct Unit {
    systemd: Arc<Systemd>,
    tracked: Arc<Tracked>,
    /// How long a monitor waits for systemd.
    patience: Duration,
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// As `JobRemoved` said: `done`, `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
    With(String),
    /// The signal may have been missed: only the unit itself can tell.
    Unknown,
}

impl Unit {
    /// The unit of this full name.
    pub fn new(systemd: Arc<Systemd>, name: &str) -> Self {
        let tracked = systemd.bus.track(name);
        Self { systemd, tracked, patience: MONITOR_PATIENCE }
    }

    /// Its monitors have an answer well within this.
    pub fn monitored_within(self, limit: Duration) -> Self {
        Self { patience: limit / 2, ..self }
    }

    fn name(&self) -> &str {
        &self.tracked.name
    }

    async fn look(&self) -> Result<State, Failure> {
        self.systemd.bus.look(&self.tracked, |_, _| {}).await
    }

    /// Looks, and from this look on expects it to be so.
    async fn look_and_expect(&self, expect: Expect) -> Result<State, Failure> {
        self.systemd.bus.look(&self.tracked, move |view, _| view.expect = expect).await
    }

    fn failure(&self, code: &str, why: String) -> Failure {
        let next = format!("journalctl -u {0} -n 50; systemctl status {0}", self.name());
        Failure { code: code.to_owned(), why, next, is_permanent: false }
    }

    async fn prepare_it(&self) -> Result<(), Failure> {
        self.systemd.write_drop_ins().await?;
        self.look().await?.defect(self.name()).map_or(Ok(()), Err)
    }

    async fn start_it(&self) -> Result<(), Failure> {
        self.tracked.view.send_modify(|view| view.expect = Expect::Busy);
        let started = self.start_until_known().await;
        if started.is_err() {
            self.tracked.view.send_modify(|view| view.expect = Expect::Unknown);
        }
        started
    }

    async fn start_until_known(&self) -> Result<(), Failure> {
        let mut unknown = 0;
        let state = self.look().await?;
        if let Some(defect) = state.defect(self.name()) {
            return Err(defect);
        }
        if state.active == Activity::Failed {
            self.reset_failed().await?;
        }
        loop {
            let ended = self.run_job(Order::Start).await?;
            let state = self.settled().await?;
            match state.active {
                Activity::Up => {
                    self.look_and_expect(Expect::Running).await?;
                    return Ok(());
                }
                _ if ended == Ended::Unknown && unknown < UNKNOWN_STARTS_MAX => unknown += 1,
                _ => return Err(self.why_not_started(&ended, &state)),
            }
        }
    }

    fn why_not_started(&self, ended: &Ended, state: &State) -> Failure {
        let name = self.name();
        let result = match ended {
            Ended::With(result) => result.as_str(),
            Ended::Unknown => "unknown",
        };
        // A condition that was never looked at does not hold either.
        if result == "done" && state.active == Activity::Down && !state.condition_held {
            let why =
                format!("{name} was not started: a Condition= of its unit file does not hold");
            return self.failure("unit_condition", why);
        }
        match result {
            "dependency" => {
                let why = format!("{name} was not started: a unit that it requires has failed");
                let next = format!("systemctl list-dependencies {name}; systemctl --failed");
                Failure { next, ..self.failure("unit_dependency", why) }
            }
            "canceled" => {
                let why = format!("the start of {name} was canceled by somebody else");
                self.failure("unit_start_canceled", why)
            }
            "done" if state.active == Activity::Down && state.result == "success" => {
                let why = format!("{name} ended as soon as it was started, without an error");
                let next = format!(
                    "a unit of Type=oneshot needs RemainAfterExit=yes to be supervised; {}",
                    self.failure("", String::new()).next
                );
                Failure { next, ..self.failure("unit_ended_at_once", why) }
            }
            _ => {
                let why = format!("{name} did not start: {}", state.how_it_ended());
                self.failure("unit_start_failed", why)
            }
        }
    }

    async fn stop_it(&self, force: Force) -> Result<(), Failure> {
        self.tracked.view.send_modify(|view| view.expect = Expect::Busy);
        let stopped = match force {
            Force::Orderly => self.stop_orderly().await,
            Force::Kill | Force::Detach => self.stop_by_force().await,
        };
        if stopped.is_err() {
            self.tracked.view.send_modify(|view| view.expect = Expect::Unknown);
        }
        stopped
    }

    async fn stop_orderly(&self) -> Result<(), Failure> {
        loop {
            let state = self.look().await?;
            if state.active.is_down() && state.job.is_none() {
                return self.is_stopped(&state).await;
            }
            self.run_job(Order::Stop).await?;
            if !self.settled().await?.active.is_down() {
                sleep(ORDER_AGAIN).await;
            }
        }
    }

    /// The kernel kills and systemd is asked to stop, at the same time: in a failover systemd may
    /// read all its units anew for as long as it likes.
    async fn stop_by_force(&self) -> Result<(), Failure> {
        let directory = self.directory().or_else(|| cgroup::find(self.name()));
        let directory = directory.filter(|directory| cgroup::has_processes(directory));
        let grace = if directory.is_some() { Duration::ZERO } else { STOP_COMMAND_LIMIT };
        let without_systemd = async {
            match &directory {
                Some(directory) => {
                    // Twice: who it is, is told before the time of a stop by force is over.
                    let ended = self.end_processes(directory).await;
                    if !ended && !self.end_processes(directory).await {
                        return Err(self.not_killed(directory));
                    }
                }
                // Only systemd can stop what runs without a process.
                None if self.is_known_to_run() => std::future::pending().await,
                None => {}
            }
            sleep(SILENT_AFTER).await;
            Ok(())
        };
        tokio::select! {
            // Of both at the same time systemd knows more.
            biased;
            stopped = self.stop_by_systemd(grace) => match stopped {
                Err(failure) if is_about_the_bus(&failure) => match self.directory() {
                    Some(directory) => self.kill_without_systemd(&directory, failure).await,
                    None => Err(failure),
                },
                stopped => stopped,
            },
            ended = without_systemd => {
                ended?;
                tracing::warn!("{}: nothing of it is left; systemd is silent", self.name());
                self.tracked.view.send_modify(|view| view.expect = Expect::Stopped);
                Ok(())
            }
        }
    }

    fn not_killed(&self, directory: &std::path::Path) -> Failure {
        let left = cgroup::names(&cgroup::processes(directory));
        let why = format!("processes of {} do not end: {left}", self.name());
        let next = "they hang in the kernel, as a rule on a disk: dmesg".to_owned();
        Failure { next, ..self.failure("unit_not_killed", why) }
    }

    /// By the last look, if there was one.
    fn is_known_to_run(&self) -> bool {
        self.tracked.view.borrow().state.as_ref().is_some_and(|state| !state.active.is_down())
    }

    async fn stop_by_systemd(&self, grace: Duration) -> Result<(), Failure> {
        loop {
            let state = self.look().await?;
            if state.active.is_down() && state.job.is_none() {
                return self.kill_leftovers(&state).await;
            }
            tokio::select! {
                ended = self.run_job(Order::Stop) => {
                    ended?;
                    sleep(LATE_SIGNAL).await;
                }
                failed = self.kill_for_ever(grace) => return failed,
            }
        }
    }

    /// Ends only with an error.
    async fn kill_for_ever(&self, grace: Duration) -> Result<(), Failure> {
        sleep(grace).await;
        let name = self.name().to_owned();
        loop {
            let killed = self.systemd.bus.call("KillUnit", |manager| {
                let name = name.clone();
                async move { manager.kill_unit(&name, "all", Signal::SIGKILL as i32).await }
            });
            // Refused when there is no process, or none left.
            let _ = killed.await?;
            sleep(KILL_AGAIN).await;
        }
    }

    async fn kill_without_systemd(
        &self,
        directory: &std::path::Path,
        failure: Failure,
    ) -> Result<(), Failure> {
        if self.end_processes(directory).await {
            tracing::warn!("{}: killed without systemd, which is silent", self.name());
            self.tracked.view.send_modify(|view| view.expect = Expect::Stopped);
            return Ok(());
        }
        Err(failure)
    }

    /// It is down; of an orderly stop nothing may be left.
    async fn is_stopped(&self, state: &State) -> Result<(), Failure> {
        self.is_empty(state)?;
        self.is_down(state).await
    }

    /// Whether it has no processes; who they are.
    fn is_empty(&self, state: &State) -> Result<(), Failure> {
        let left = self.leftovers(state);
        if left.is_empty() {
            return Ok(());
        }
        let why = format!("{} is stopped, but left {}", self.name(), cgroup::names(&left));
        Err(self.failure("unit_left_processes", why))
    }

    async fn kill_leftovers(&self, state: &State) -> Result<(), Failure> {
        if let Some(directory) = state.control_group.as_deref().and_then(cgroup::directory)
            && !self.end_processes(&directory).await
        {
            return Err(self.not_killed(&directory));
        }
        self.is_down(state).await
    }

    async fn is_down(&self, state: &State) -> Result<(), Failure> {
        if state.active == Activity::Failed {
            self.reset_failed().await?;
        }
        self.look_and_expect(Expect::Stopped).await.map(|_| ())
    }

    /// Whether all of them ended.
    async fn end_processes(&self, directory: &std::path::Path) -> bool {
        let ended = async {
            while !cgroup::processes(directory).is_empty() {
                if let Err(error) = cgroup::kill_all(directory) {
                    tracing::warn!("{}: {error}", directory.display());
                }
                sleep(LATE_SIGNAL).await;
            }
        };
        timeout(REAP_PATIENCE, ended).await.is_ok()
    }

    fn leftovers(&self, state: &State) -> Vec<i32> {
        let directory = state.control_group.as_deref().and_then(cgroup::directory);
        directory.map(|directory| cgroup::processes(&directory)).unwrap_or_default()
    }

    /// Where its processes are, as far as we know.
    fn directory(&self) -> Option<PathBuf> {
        let view = self.tracked.view.borrow();
        let control_group = view.state.as_ref()?.control_group.as_deref()?;
        cgroup::directory(control_group)
    }

    async fn reset_failed(&self) -> Result<(), Failure> {
        let name = self.name().to_owned();
        let reset = self.systemd.bus.call("ResetFailedUnit", |manager| {
            let name = name.clone();
            async move { manager.reset_failed_unit(&name).await }
        });
        // Refused for a unit that systemd has forgotten meanwhile: then it is not failed either.
        let _ = reset.await?;
        Ok(())
    }

    /// The unit once it is on its way nowhere.
    async fn settled(&self) -> Result<State, Failure> {
        let mut view = self.tracked.view.subscribe();
        loop {
            let state = self.look().await?;
            if matches!(state.active, Activity::Up | Activity::Down | Activity::Failed) {
                return Ok(state);
            }
            let _ = timeout(LOOK_AGAIN, view.changed()).await;
        }
    }

    /// Orders, and waits until the job has ended.
    async fn run_job(&self, order: Order) -> Result<Ended, Failure> {
        // From now on, so that the signal cannot come before we listen.
        let mut view = self.tracked.view.subscribe();
        let job = self.order(order, "replace").await?;
        let number = self.systemd.bus.number();
        loop {
            if let Some(result) = view.borrow_and_update().result_of(job.as_str()) {
                return Ok(Ended::With(result));
            }
            if timeout(LOOK_AGAIN, view.changed()).await.is_ok() {
                continue;
            }
            let state = self.look().await?;
            let has_ended = state.job.is_none_or(|number| !job.ends_with(&format!("/{number}")));
            if has_ended || self.systemd.bus.number() != number {
                let known = view.borrow().result_of(job.as_str());
                return Ok(known.map_or(Ended::Unknown, Ended::With));
            }
            if order == Order::Stop && self.waits_for_us(state.job).await? {
                self.order(order, "ignore-dependencies").await?;
            }
        }
    }

    async fn order(&self, order: Order, mode: &'static str) -> Result<OwnedObjectPath, Failure> {
        let name = self.name().to_owned();
        let ordered = self.systemd.bus.call(order.method(), |manager| {
            let name = name.clone();
            async move {
                match order {
                    Order::Start => manager.start_unit(&name, mode).await,
                    Order::Stop => manager.stop_unit(&name, mode).await,
                }
            }
        });
        ordered.await?.map_err(|(name, text)| refused(self.name(), &name, &text))
    }

    /// At a shutdown systemd has ordered the same stop already and lets it wait for the hand-over,
    /// and the hand-over is us. Whether that is all it waits for.
    async fn waits_for_us(&self, job: Option<u32>) -> Result<bool, Failure> {
        let Some(job) = job else { return Ok(false) };
        let before = self
            .systemd
            .bus
            .call("GetJobBefore", |manager| async move { manager.get_job_before(job).await });
        let Ok(before) = before.await? else { return Ok(false) };
        let units: Vec<&str> = before.iter().map(|(_, unit, ..)| unit.as_str()).collect();
        Ok(!units.is_empty() && units.iter().all(|unit| *unit == drop_in::HANDOVER_UNIT))
    }

    async fn monitor_it(&self) -> Result<Condition, Failure> {
        let state = match timeout(self.patience, self.look()).await {
            Ok(Ok(state)) => state,
            Ok(Err(failure)) if is_about_the_bus(&failure) => return self.without_systemd(failure),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Ok(self.while_systemd_is_silent()),
        };
        Ok(match state.active {
            Activity::Up => Condition::Running,
            Activity::Down | Activity::Failed => {
                // systemd gives up on what SIGKILL does not end, and calls the unit failed.
                self.is_empty(&state)?;
                Condition::Stopped
            }
            Activity::Starting => Condition::Changing(format!("starting ({})", state.sub)),
            Activity::Stopping => Condition::Changing(format!("stopping ({})", state.sub)),
        })
    }

    /// What can be said while systemd is silent.
    fn without_systemd(&self, failure: Failure) -> Result<Condition, Failure> {
        let directory = self.directory().or_else(|| cgroup::find(self.name()));
        match directory.map(|directory| cgroup::processes(&directory)) {
            Some(processes) if !processes.is_empty() => {
                Ok(Condition::Degraded(format!("its processes live; {}", failure.why)))
            }
            _ => Err(failure),
        }
    }

    /// A daemon-reload or daemon-reexec of a big machine takes longer than a monitor may, and is no
    /// failure of the unit: nothing could be stopped or started before it is over. The engine asks
    /// again; it does not take that for an answer for ever.
    fn while_systemd_is_silent(&self) -> Condition {
        let silent = bus::no_answer();
        let why = silent.why.clone();
        self.without_systemd(silent).unwrap_or(Condition::Changing(why))
    }

    async fn watch_it(&self, changes: UnboundedSender<Change>) {
        self.systemd.bus.wake();
        let mut view = self.tracked.view.subscribe();
        let mut judge = Judge::default();
        let mut said_boot = false;
        let mut said_silent = None;
        let mut is_first = true;
        loop {
            let is_up =
                |view: &View| view.state.as_ref().is_none_or(|state| state.active == Activity::Up);
            if !is_up(&view.borrow_and_update()) && !std::mem::take(&mut is_first) {
                // Whether somebody ordered it is in a signal.
                sleep(LATE_SIGNAL).await;
            }
            let now = view.borrow_and_update().clone();
            if let Some(seen) = judge.look(&now) {
                let _ = changes.send(self.change(seen, &now));
            }
            let starts_at_boot = view.borrow().state.as_ref().is_some_and(State::starts_at_boot);
            if starts_at_boot && !said_boot {
                let _ = changes.send(Change::Warning(format!(
                    "{0} is enabled at boot, where it would start before anybody has decided that \
                     it may run here; systemctl disable {0}",
                    self.name()
                )));
            }
            said_boot = starts_at_boot;
            if now.silent != said_silent {
                let _ = changes.send(Change::Warning(now.silent.clone().unwrap_or_default()));
            }
            said_silent = now.silent;
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    fn change(&self, seen: Seen, view: &View) -> Change {
        let name = self.name();
        let Some(state) = &view.state else {
            return Change::Failed(format!("{name} is gone"));
        };
        match seen {
            Seen::StartedByHand => {
                Change::StartedByHand(format!("{name} was started by somebody else"))
            }
            Seen::StoppedByHand => Change::StoppedByHand(format!(
                "{name} was stopped by somebody else (systemctl stop, or a unit that it requires)"
            )),
            Seen::Failed => {
                Change::Failed(format!("{name} does not run any more: {}", state.how_it_ended()))
            }
        }
    }
}

fn is_about_the_bus(failure: &Failure) -> bool {
    matches!(failure.code.as_str(), "no_bus" | "systemd_silent")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Start,
    Stop,
}

impl Order {
    fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
        }
    }
}

impl Service for Unit {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.prepare_it())
    }

    fn start<'a>(&'a self, _site: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.start_it())
    }

    fn stop(&self, force: Force) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.stop_it(force))
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(self.monitor_it())
    }

    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()> {
        Box::pin(self.watch_it(changes))
    }

    fn groups(&self) -> Vec<PathBuf> {
        self.directory().into_iter().collect()
    }
}

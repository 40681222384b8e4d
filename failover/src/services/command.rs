//! Kind `command`: what an operator writes for start, stop and monitor, run by `/bin/sh -c`. What
//! the start leaves running is the service: each of these processes is attended, and all of them
//! are gone when the stop says so.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::attended::{ASKED_AFTER, Attendance, Held, News};
use super::process::{Leftovers, Order, Run, WordsFile, run};
use super::processes::{self, names};
use super::scope::Scope;
use super::{Change, Condition, Doing, Failure, Force, Home, Service, Site};

/// Exit code of a monitor that says: it is stopped, and that is no failure.
const NOT_RUNNING: i32 = 7;
/// How often the end of processes is looked for that were asked to end.
const POLL: Duration = Duration::from_millis(20);
/// How long an orderly stop lets processes end after SIGTERM, before it says who stays.
const TERM_PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed process may take before the stop says who stays.
const KILL_PATIENCE: Duration = Duration::from_secs(3);

/// One command as a service.
pub struct Commands {
    name: String,
    resource: String,
    node: String,
    start: String,
    stop: Option<String>,
    monitor: Option<String>,
    /// What the start leaves running.
    body: Scope,
    /// Stop and monitor themselves.
    asking: Scope,
    /// The monitor that a death asks, beside those of the engine.
    looking: Scope,
    words: [WordsFile; 4],
    attendance: Attendance,
    /// The last start left nothing running that could be watched.
    left_nothing: AtomicBool,
    monitor_limit: Duration,
}

#[derive(Clone, Copy)]
enum Action {
    Start,
    Stop,
    Monitor,
    Look,
}

impl Action {
    fn word(self) -> &'static str {
        ["start", "stop", "monitor", "monitor"][self as usize]
    }

    fn file(self) -> &'static str {
        ["start", "stop", "monitor", "look"][self as usize]
    }
}

impl Commands {
    /// A service of `resource`.
    pub fn new(
        home: &Home,
        resource: &str,
        name: &str,
        (start, stop, monitor): (&str, Option<&str>, Option<&str>),
        monitor_limit: Duration,
    ) -> Self {
        let dir = &home.run_dir;
        Self {
            name: name.to_owned(),
            resource: resource.to_owned(),
            node: home.node.clone(),
            start: start.to_owned(),
            stop: stop.map(str::to_owned),
            monitor: monitor.map(str::to_owned),
            body: Scope::new(dir, resource, name, "run"),
            asking: Scope::new(dir, resource, name, "ask"),
            looking: Scope::new(dir, resource, name, "look"),
            words: [Action::Start, Action::Stop, Action::Monitor, Action::Look]
                .map(|action| WordsFile::new(dir, resource, name, action.file())),
            attendance: Attendance::default(),
            left_nothing: AtomicBool::new(false),
            monitor_limit,
        }
    }

    async fn run(
        &self,
        action: Action,
        command: &str,
        site: Option<&Site>,
    ) -> Result<Run, Failure> {
        let (scope, leftovers) = match action {
            Action::Start => (&self.body, Leftovers::Stay),
            Action::Stop | Action::Monitor => (&self.asking, Leftovers::Kill),
            Action::Look => (&self.looking, Leftovers::Kill),
        };
        let mut environment = vec![
            ("REPLICATOR_ACTION".to_owned(), action.word().to_owned()),
            ("REPLICATOR_RESOURCE".to_owned(), self.resource.clone()),
            ("REPLICATOR_SERVICE".to_owned(), self.name.clone()),
            ("REPLICATOR_NODE".to_owned(), self.node.clone()),
        ];
        if let Some(site) = site {
            let device = site.device.display().to_string();
            environment.push(("REPLICATOR_DEVICE".to_owned(), device));
        }
        let order = Order {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), command.into()],
            environment,
        };
        let done = run(&order, scope, &self.words[action as usize], leftovers).await;
        done.map_err(|error| Failure {
            code: "command_not_run".into(),
            why: format!(
                "the {} command of {} could not be run: {error}",
                action.word(),
                self.name
            ),
            next: "is there a /bin/sh, and is /run writable and not full?".into(),
            is_permanent: false,
        })
    }

    fn failed(&self, action: Action, run: &Run) -> Failure {
        let (word, is_shell_error) = (action.word(), matches!(run.code(), Some(126 | 127)));
        Failure {
            code: format!("{word}_failed"),
            why: format!("the {word} command of {} {}", self.name, run.story()),
            next: format!("run it by hand as root and see: {}", self.text(action)),
            // The program is not there or cannot be run.
            is_permanent: is_shell_error,
        }
    }

    fn text(&self, action: Action) -> &str {
        let text = match action {
            Action::Start => Some(&self.start),
            Action::Stop => self.stop.as_ref(),
            Action::Monitor | Action::Look => self.monitor.as_ref(),
        };
        text.map_or("", String::as_str)
    }

    async fn condition(&self, action: Action) -> Result<Condition, Failure> {
        self.words[Action::Start as usize].bound();
        if self.body.is_suspended().await {
            return Ok(Condition::Running);
        }
        let Some(monitor) = &self.monitor else {
            let runs = self.left_nothing.load(Relaxed) || self.body.lives().await;
            return Ok(if runs { Condition::Running } else { Condition::Stopped });
        };
        let run = self.run(action, monitor, None).await?;
        match run.code() {
            Some(0) => Ok(Condition::Running),
            Some(NOT_RUNNING) => Ok(Condition::Stopped),
            _ => Err(self.failed(action, &run)),
        }
    }

    async fn start_it(&self, site: &Site) -> Result<(), Failure> {
        // Without a monitor and without processes nobody knows whether it ran: it is started.
        self.left_nothing.store(false, Relaxed);
        let held = Held::of(&self.body).await;
        if matches!(self.condition(Action::Monitor).await, Ok(Condition::Running)) {
            self.attendance.begins(held);
            return Ok(());
        }
        self.attendance.ends();
        let run = self.run(Action::Start, &self.start, Some(site)).await?;
        if run.code() != Some(0) {
            self.end(Force::Kill).await?;
            return Err(self.failed(Action::Start, &run));
        }
        let held = Held::of(&self.body).await;
        self.left_nothing.store(held.is_empty(), Relaxed);
        self.attendance.begins(held);
        Ok(())
    }

    async fn stop_it(&self, force: Force) -> Result<(), Failure> {
        self.attendance.ends();
        self.left_nothing.store(false, Relaxed);
        if force == Force::Orderly
            && let Some(stop) = &self.stop
        {
            let run = self.run(Action::Stop, stop, None).await?;
            if run.code() != Some(0) {
                return Err(self.failed(Action::Stop, &run));
            }
        }
        self.end(force).await
    }

    /// Ends its processes; an error names those that stay.
    async fn end(&self, force: Force) -> Result<(), Failure> {
        let patience = match force {
            Force::Orderly => {
                self.body.terminate().await;
                TERM_PATIENCE
            }
            Force::Kill | Force::Detach => {
                for scope in [&self.asking, &self.looking, &self.body] {
                    scope.kill().await;
                }
                KILL_PATIENCE
            }
        };
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let left = self.body.processes().await;
            if left.is_empty() {
                self.body.tidy();
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(self.left_over(&left, force));
            }
            if force != Force::Orderly {
                self.body.kill().await;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn left_over(&self, left: &[processes::Process], force: Force) -> Failure {
        let signal = if force == Force::Orderly { "SIGTERM" } else { "SIGKILL" };
        let place = left.first().and_then(|first| processes::waits_in(first.pid));
        let place = place.map(|it| format!(", which waits in {it}")).unwrap_or_default();
        Failure {
            code: "processes_left".into(),
            why: format!("{} did not end after {signal}: {}{place}", self.name, names(left)),
            next: match force {
                Force::Orderly => {
                    "they are killed next; give `stop` a command that ends them".into()
                }
                _ => "they wait for the kernel, most likely for a disk or a network".into(),
            },
            is_permanent: false,
        }
    }

    /// Whether the monitor still says that it runs, some time after a death.
    async fn is_well(&self) -> bool {
        for pause in ASKED_AFTER {
            tokio::time::sleep(pause).await;
            let asked = tokio::time::timeout(self.monitor_limit, self.condition(Action::Look));
            if !matches!(asked.await, Ok(Ok(Condition::Running))) {
                return false;
            }
        }
        true
    }

    async fn tell(&self, changes: UnboundedSender<Change>) {
        loop {
            let News::Died(died) = self.attendance.news(&self.body).await else { continue };
            // A helper of the start may end: only the monitor can tell, if there is one.
            if self.monitor.is_some()
                && self.attendance.unless_over(self.is_well()).await != Some(false)
            {
                continue;
            }
            let said = super::process::last_lines(&self.words[Action::Start as usize].tail());
            let said = if said.is_empty() { said } else { format!("; it said: {said}") };
            let why = format!("process {} of {} ended{said}", died.label(), self.name);
            self.attendance.ends();
            if changes.send(Change::Failed(why)).is_err() {
                return;
            }
        }
    }
}

impl Service for Commands {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, site: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.start_it(site))
    }

    fn stop(&self, force: Force) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.stop_it(force))
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(async {
            let held = self.attendance.before_adoption(&self.body).await;
            let condition = self.condition(Action::Monitor).await;
            if matches!(condition, Ok(Condition::Running)) {
                self.attendance.adopts(held);
            }
            condition
        })
    }

    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()> {
        Box::pin(self.tell(changes))
    }

    fn suspend(&self, is_suspended: bool) -> Doing<'_, ()> {
        Box::pin(self.body.suspend(is_suspended))
    }

    fn groups(&self) -> Vec<std::path::PathBuf> {
        [&self.body, &self.asking, &self.looking].into_iter().flat_map(Scope::groups).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::super::processes::LOOKS;
    use super::*;

    /// Reading the environment of a process may wait for that one's memory, and so for a disk.
    #[tokio::test]
    async fn the_thread_of_the_resource_never_looks_through_all_processes_itself() {
        let dir = std::env::temp_dir().join(format!("replicator-looks-{}", std::process::id()));
        let home = Home {
            run_dir: dir.clone(),
            node: "alpha".into(),
            device: "/dev/null".into(),
            ocf_root: dir.clone(),
        };
        let site = Site { device: "/dev/null".into(), resource: "db".into(), node: "alpha".into() };
        let limit = Duration::from_secs(60);
        let start = "sleep 600 & sleep 600 & true";
        for monitor in [None, Some("true")] {
            let commands = (start, None, monitor);
            let service = Commands::new(&home, "db", "looks", commands, limit);
            let (changes, _told) = tokio::sync::mpsc::unbounded_channel();
            let acting = async {
                service.start(&site).await.unwrap();
                assert_eq!(service.monitor().await, Ok(Condition::Running));
                service.suspend(true).await;
                assert_eq!(service.monitor().await, Ok(Condition::Running));
                service.suspend(false).await;
                service.stop(Force::Orderly).await.unwrap();
                service.start(&site).await.unwrap();
                service.stop(Force::Kill).await.unwrap();
            };
            tokio::select! {
                () = service.watch(changes) => panic!("it ended by itself"),
                done = timeout(limit, acting) => done.unwrap(),
            }
            // A start that is given up.
            let hangs = Commands::new(&home, "db", "hangs", ("sleep 600", None, None), limit);
            let given_up = timeout(Duration::from_millis(50), hangs.start(&site)).await;
            assert!(given_up.is_err());
            hangs.stop(Force::Kill).await.unwrap();
        }
        assert_eq!(LOOKS.get(), 0);
        let _ = std::fs::remove_dir_all(&dir);
    }
}

//! Kind `ocf`: the resource agents that people have, by the contract of OCF 1.1 as Pacemaker keeps
//! it: environment, exit codes, exit reasons, meta-data. A cluster manager is not needed.

pub mod metadata;
mod presence;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use failover_core::services::{KILL_LIMIT, ServiceTiming};
use tokio::sync::mpsc::UnboundedSender;

pub use self::metadata::{Agent, Metadata};
use self::presence::Presence;
use super::attended::{ASKED_AFTER, Attendance, Held, News};
use super::process::{Leftovers, Order, Run, WordsFile, run};
use super::scope::Scope;
use super::{Change, Condition, Doing, Failure, Force, Home, Service, Site};

/// Agents begin a line of their standard error with it that says why they failed.
const REASON: &str = "ocf-exit-reason:";
/// Where agents keep what they must remember; Debian makes it at boot.
const AGENTS_TMP: &str = "/run/resource-agents";
/// Agents look for features of Pacemaker by this version.
const FEATURE_SET: &str = "3.20.0";
/// How long the last stop of what was never here may take.
const LAST_WORD: Duration = Duration::from_millis(KILL_LIMIT.as_ms() / 2);

const OK: i32 = 0;
const NOT_RUNNING: i32 = 7;
const RUNNING_PROMOTED: i32 = 8;
const FAILED_PROMOTED: i32 = 9;
const DEGRADED: i32 = 190;
const DEGRADED_PROMOTED: i32 = 191;

/// One agent as a service.
pub struct Ocf {
    name: String,
    resource: String,
    node: String,
    root: PathBuf,
    provider: String,
    agent: String,
    parameters: BTreeMap<String, String>,
    timing: ServiceTiming,
    /// What its start leaves running.
    body: Scope,
    /// Its other actions.
    asking: Scope,
    /// The monitor that a death asks, beside those of the engine.
    looking: Scope,
    words: [WordsFile; 4],
    presence: Presence,
    attendance: Attendance,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Start,
    Stop,
    Monitor,
    /// A monitor that asks whether it runs at all, as Pacemaker's probe.
    Probe,
    /// A stop that has no time.
    StopByForce,
}

impl Action {
    fn word(self) -> &'static str {
        ["start", "stop", "monitor", "monitor", "stop"][self as usize]
    }
}

impl Ocf {
    /// A service of `resource`.
    pub fn new(
        home: &Home,
        resource: &str,
        name: &str,
        (provider, agent): (&str, &str),
        parameters: &BTreeMap<String, String>,
        timing: ServiceTiming,
    ) -> Self {
        let dir = &home.run_dir;
        let words = |action| WordsFile::new(dir, resource, name, action);
        Self {
            name: name.to_owned(),
            resource: resource.to_owned(),
            node: home.node.clone(),
            root: home.ocf_root.clone(),
            provider: provider.to_owned(),
            agent: agent.to_owned(),
            parameters: parameters.clone(),
            timing,
            body: Scope::new(dir, resource, name, "run"),
            asking: Scope::new(dir, resource, name, "ask"),
            looking: Scope::new(dir, resource, name, "look"),
            words: ["start", "stop", "monitor", "look"].map(words),
            presence: Presence::new(dir, resource, name),
            attendance: Attendance::default(),
        }
    }

    fn agent(&self) -> Agent<'_> {
        Agent { root: &self.root, provider: &self.provider, agent: &self.agent }
    }

    fn environment(&self, action: Action) -> Vec<(String, String)> {
        let (limit, interval) = match action {
            Action::Start => (self.timing.start, 0),
            Action::Stop => (self.timing.stop, 0),
            // Some wait for an orderly end until shortly before that, and use force only then.
            Action::StopByForce => (KILL_LIMIT, 0),
            // An interval of zero means a probe, and some agents answer that differently.
            Action::Monitor => (self.timing.monitor, self.timing.monitor_every.as_ms().max(1)),
            Action::Probe => (self.timing.monitor, 0),
        };
        let instance: String = self.name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        let mut environment = self.agent().basics();
        let mut add = |key: &str, value: String| environment.push((key.to_owned(), value));
        add("OCF_RESOURCE_INSTANCE", instance);
        add("OCF_CHECK_LEVEL", "0".into());
        add("OCF_RESKEY_crm_feature_set", FEATURE_SET.into());
        add("OCF_RESKEY_CRM_meta_timeout", limit.as_ms().to_string());
        add("OCF_RESKEY_CRM_meta_interval", interval.to_string());
        add("OCF_RESKEY_CRM_meta_name", action.word().into());
        add("OCF_RESKEY_CRM_meta_on_node", self.node.clone());
        add("OCF_RESKEY_CRM_meta_on_node_uuid", self.node.clone());
        add("REPLICATOR_RESOURCE", self.resource.clone());
        for (key, value) in &self.parameters {
            match key.as_str() {
                "OCF_CHECK_LEVEL" => add(key, value.clone()),
                _ => add(&format!("OCF_RESKEY_{key}"), value.clone()),
            }
        }
        environment
    }

    async fn run(&self, action: Action, scope: &Scope, words: usize) -> Result<Run, Failure> {
        let order = Order {
            program: self.agent().path(),
            arguments: vec![action.word().into()],
            environment: self.environment(action),
        };
        // What an action leaves behind is the agent's business; only one that is cut off is killed.
        let done = run(&order, scope, &self.words[words], Leftovers::Stay).await;
        done.map_err(|error| Failure {
            code: "agent_not_run".into(),
            why: format!("{} could not be run: {error}", self.agent().label()),
            next: format!("see {}", self.agent().path().display()),
            is_permanent: error.kind() == std::io::ErrorKind::NotFound,
        })
    }

    async fn act(&self, action: Action) -> Result<Run, Failure> {
        let scope = if action == Action::Start { &self.body } else { &self.asking };
        let words = match action {
            Action::Probe => Action::Monitor,
            Action::StopByForce => Action::Stop,
            action => action,
        };
        self.run(action, scope, words as usize).await
    }

    fn failed(&self, action: Action, run: &Run) -> Failure {
        let word = action.word();
        let reason = reason(&run.words);
        let story = match (&reason, run.code()) {
            (Some(reason), Some(code)) => {
                format!("ended with {code} ({}): {reason}", meaning(code))
            }
            (None, Some(code)) => {
                let said = super::process::last_lines(&run.words);
                let said = if said.is_empty() { "it said nothing".into() } else { said };
                format!("ended with {code} ({}): {said}", meaning(code))
            }
            (_, None) => run.story(),
        };
        Failure {
            code: format!("{word}_failed"),
            why: format!("{word} of {} by {} {story}", self.name, self.agent().label()),
            next: match run.code() {
                Some(2 | 6) => "correct its `params`; the agent's meta-data explain them".into(),
                Some(4) => "give it the rights it needs on this node".into(),
                Some(5) => "install on this node what the agent needs".into(),
                _ => format!("the last words of the agent are in {}", self.words_dir().display()),
            },
            is_permanent: matches!(run.code(), Some(2..=6)),
        }
    }

    fn words_dir(&self) -> &Path {
        self.words[0].dir()
    }

    fn judge(&self, action: Action, run: &Run) -> Result<Condition, Failure> {
        let or = |text: &str| reason(&run.words).unwrap_or_else(|| text.to_owned());
        match run.code() {
            // Nobody promotes agents here; one that is promoted all the same runs.
            Some(OK | RUNNING_PROMOTED) => Ok(Condition::Running),
            Some(NOT_RUNNING) => Ok(Condition::Stopped),
            Some(DEGRADED | DEGRADED_PROMOTED) => {
                Ok(Condition::Degraded(or("the agent says that it runs degraded")))
            }
            _ => Err(self.failed(action, run)),
        }
    }

    async fn start_it(&self) -> Result<(), Failure> {
        self.agent().is_there()?;
        self.attendance.ends();
        self.presence.begins();
        let run = self.act(Action::Start).await?;
        if !matches!(run.code(), Some(OK | DEGRADED)) {
            return Err(self.failed(Action::Start, &run));
        }
        self.attendance.begins(Held::of(&self.body).await);
        Ok(())
    }

    async fn stop_it(&self, force: Force) -> Result<(), Failure> {
        self.attendance.ends();
        // Before anything of it is killed.
        let may_be_here = self.presence.is_possible() || self.body.lives().await;
        if force != Force::Orderly {
            for scope in [&self.looking, &self.asking, &self.body] {
                scope.kill().await;
            }
        }
        if let Err(missing) = self.agent().is_there() {
            // Without an agent nothing of it was ever started, unless something of it still runs.
            return if self.body.lives().await { Err(missing) } else { Ok(()) };
        }
        let stop = self.stop_by_agent(force, may_be_here);
        if may_be_here || force != Force::Detach {
            return stop.await;
        }
        // A reset of the machine would come next, and would change nothing.
        tokio::time::timeout(LAST_WORD, stop).await.unwrap_or(Ok(()))
    }

    async fn stop_by_agent(&self, force: Force, may_be_here: bool) -> Result<(), Failure> {
        let is_orderly = force == Force::Orderly;
        let action = if is_orderly { Action::Stop } else { Action::StopByForce };
        let stop = self.act(action).await?;
        let is_done = matches!(stop.code(), Some(OK | NOT_RUNNING));
        if !is_done && may_be_here {
            return Err(self.failed(Action::Stop, &stop));
        }
        // It says that it stopped, or was never here; it is asked once more, since a wrong answer
        // would be two of it.
        let probe = self.act(Action::Probe).await?;
        if says_that_it_is_there(&probe) {
            self.presence.begins();
            if !is_done {
                return Err(self.failed(Action::Stop, &stop));
            }
            let mut failure = self.failed(Action::Probe, &probe);
            failure.code = "still_running".into();
            failure.why = format!("{} was stopped without an error, and runs", failure.why);
            return Err(failure);
        }
        self.presence.ends();
        [&self.body, &self.asking, &self.looking].into_iter().for_each(Scope::tidy);
        Ok(())
    }

    async fn condition(&self) -> Result<Condition, Failure> {
        self.words[Action::Start as usize].bound();
        if self.body.is_suspended().await {
            return Ok(Condition::Running);
        }
        // Before it was started or found running, the question is whether it runs at all: where the
        // disk is not, an agent answers a probe with 7, and any other monitor with an error.
        let action = if self.attendance.is_open() { Action::Monitor } else { Action::Probe };
        let run = self.act(action).await?;
        self.judge(action, &run)
    }

    /// The agent is asked at once when a process dies that the start left running, and after each
    /// start, as cluster managers do: what died before its processes were held nobody saw.
    async fn tell(&self, changes: UnboundedSender<Change>) {
        loop {
            let (pauses, what) = match self.attendance.news(&self.body).await {
                News::Began => (&ASKED_AFTER[..1], format!("{} was started", self.name)),
                News::Died(died) => {
                    (&ASKED_AFTER[..], format!("process {} of {} ended", died.label(), self.name))
                }
            };
            // A stop that begins meanwhile has the death for itself.
            let Some(Some(why)) = self.attendance.unless_over(self.complaint(pauses)).await else {
                continue;
            };
            self.attendance.ends();
            if changes.send(Change::Failed(format!("{what}: {why}"))).is_err() {
                return;
            }
        }
    }

    /// What the agent says after these pauses; nothing when it runs all the same.
    async fn complaint(&self, pauses: &[Duration]) -> Option<String> {
        let limit = Duration::from_nanos(self.timing.monitor.0);
        for pause in pauses {
            tokio::time::sleep(*pause).await;
            let asked = self.run(Action::Monitor, &self.looking, 3);
            let Ok(run) = tokio::time::timeout(limit, asked).await else {
                return Some("the agent does not answer".into());
            };
            match run.and_then(|run| self.judge(Action::Monitor, &run)) {
                Ok(Condition::Stopped) => {
                    return Some("the agent says that it does not run".into());
                }
                Err(failure) => return Some(failure.why),
                Ok(_) => {}
            }
        }
        None
    }

    async fn check(&self) -> Result<(), Failure> {
        make_agents_tmp();
        let agent = self.agent();
        let metadata = agent.metadata(&self.looking).await?;
        self.looking.tidy();
        let Some(metadata) = metadata else { return Ok(()) };
        let names: Vec<&str> = metadata.parameters.iter().map(|it| it.name.as_str()).collect();
        let wrong = |code: &str, why: String| Failure {
            code: code.into(),
            why,
            next: format!("its parameters are: {}", names.join(", ")),
            is_permanent: true,
        };
        if let Some(name) = metadata.missing(&self.parameters).first() {
            let why = format!("{} needs the parameter `{name}`", agent.label());
            return Err(wrong("parameter_missing", why));
        }
        match metadata.unknown(&self.parameters).first() {
            Some(name) => {
                let why = format!("{} knows no parameter `{name}`", agent.label());
                Err(wrong("parameter_unknown", why))
            }
            None => Ok(()),
        }
    }
}

fn says_that_it_is_there(run: &Run) -> bool {
    let there = [OK, RUNNING_PROMOTED, FAILED_PROMOTED, DEGRADED, DEGRADED_PROMOTED];
    run.code().is_some_and(|code| there.contains(&code))
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Debian makes it at boot by tmpfiles.d; without systemd nobody does.
fn make_agents_tmp() {
    let dir = Path::new(AGENTS_TMP);
    if std::fs::create_dir(dir).is_ok() {
        let _ = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1755));
    }
}

/// The last exit reason among the words.
fn reason(words: &str) -> Option<String> {
    let mut reasons = words.lines().filter_map(|line| line.trim().strip_prefix(REASON));
    let last = reasons.next_back()?;
    Some(last.trim().chars().filter(|c| !c.is_control()).take(300).collect())
}

/// What the exit codes of agents mean.
fn meaning(code: i32) -> &'static str {
    match code {
        OK => "running",
        1 => "error",
        2 => "wrong parameters",
        3 => "the agent does not do that",
        4 => "not permitted",
        5 => "not installed",
        6 => "not configured",
        NOT_RUNNING => "not running",
        RUNNING_PROMOTED => "running promoted",
        FAILED_PROMOTED => "failed while promoted",
        DEGRADED => "degraded",
        DEGRADED_PROMOTED => "degraded and promoted",
        124 => "timed out by itself",
        126 | 127 => "a command of it is missing",
        _ => "an error of its own",
    }
}

impl Service for Ocf {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.check())
    }

    fn start<'a>(&'a self, _: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.start_it())
    }

    fn stop(&self, force: Force) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.stop_it(force))
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(async {
            let held = self.attendance.before_adoption(&self.body).await;
            let condition = self.condition().await;
            if matches!(condition, Ok(Condition::Running | Condition::Degraded(_))) {
                self.presence.begins();
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

    fn groups(&self) -> Vec<PathBuf> {
        [&self.body, &self.asking, &self.looking].into_iter().flat_map(Scope::groups).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exit_reason_counts() {
        let words =
            "ocf-exit-reason:first\nnoise\n  ocf-exit-reason: the second\u{7} one \nnoise\n";
        assert_eq!(reason(words).as_deref(), Some("the second one"));
        assert_eq!(reason("nothing"), None);
    }
}

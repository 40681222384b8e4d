//! What systemd says about one unit, and what a change of it means.

use std::collections::VecDeque;

use crate::services::Failure;

/// Results of jobs remembered per unit: a waiter looks within milliseconds.
const REMOVED_MAX: usize = 32;

/// The ActiveState of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Activity {
    Up,
    Down,
    Failed,
    Starting,
    Stopping,
}

impl Activity {
    pub(super) fn parse(word: &str) -> Self {
        match word {
            // It runs and reads its configuration anew, or its mounts.
            "active" | "reloading" | "refreshing" => Self::Up,
            "failed" => Self::Failed,
            "inactive" => Self::Down,
            "deactivating" => Self::Stopping,
            // `activating`, and `maintenance` of a unit that is being set up.
            _ => Self::Starting,
        }
    }

    pub(super) fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::Failed)
    }
}

/// One look at a unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub load: String,
    pub load_error: String,
    pub active: Activity,
    pub sub: String,
    /// The number of the job that is queued or runs for it.
    pub job: Option<u32>,
    /// `enabled`, `disabled`, `static`, ...
    pub file_state: String,
    pub condition_held: bool,
    /// Below the root of the cgroup file system; none while it has none.
    pub control_group: Option<String>,
    /// Of a service that does not run: `exit-code`, `signal`, `timeout`, ...
    pub result: String,
    /// How its main process ended: `CLD_EXITED` and so on, and the code or the signal.
    pub main_ended: (i32, i32),
}

impl State {
    /// In words, why it does not run.
    pub(super) fn how_it_ended(&self) -> String {
        let (how, number) = self.main_ended;
        let main = match how {
            libc::CLD_EXITED => format!("its main process ended with exit code {number}"),
            libc::CLD_KILLED | libc::CLD_DUMPED => {
                let name = nix::sys::signal::Signal::try_from(number)
                    .map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned());
                format!("its main process was ended by {name}")
            }
            _ => String::new(),
        };
        let result = match self.result.as_str() {
            "" | "success" => "",
            "timeout" => "it took longer than its unit file allows",
            "watchdog" => "its watchdog was not fed",
            "oom-kill" => "the kernel killed it for want of memory",
            "start-limit-hit" => "it was started too often (StartLimitBurst)",
            "protocol" => "it did not behave as Type= of its unit file says",
            "resources" => "systemd could not set up what its unit file asks for",
            "exec-condition" => "its ExecCondition= did not hold",
            "exit-code" | "signal" | "core-dump" if !main.is_empty() => "",
            other => other,
        };
        match (main.is_empty(), result.is_empty()) {
            (false, false) => format!("{main}; {result}"),
            (false, true) => main,
            (true, false) => result.to_owned(),
            (true, true) => "systemd says no reason".to_owned(),
        }
    }

    /// A unit that cannot be started, now or later, without an operator.
    pub(super) fn defect(&self, unit: &str) -> Option<Failure> {
        let (code, why, next) = match self.load.as_str() {
            "not-found" => (
                "unit_not_found",
                format!("systemd knows no unit {unit}"),
                format!(
                    "install the package that has {unit}, or correct its name in the configuration \
                     (systemctl list-unit-files)"
                ),
            ),
            "masked" => {
                ("unit_masked", format!("{unit} is masked"), format!("systemctl unmask {unit}"))
            }
            "bad-setting" | "error" => (
                "unit_broken",
                format!("systemd cannot load {unit}: {}", self.load_error),
                format!("systemd-analyze verify {unit}"),
            ),
            _ => return None,
        };
        Some(Failure { code: code.to_owned(), why, next, is_permanent: true })
    }

    /// Whether it would start by itself at boot, before anybody has decided where it may run.
    pub(super) fn starts_at_boot(&self) -> bool {
        matches!(self.file_state.as_str(), "enabled" | "enabled-runtime")
    }
}

/// What we last ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Expect {
    /// Nothing yet, by this process.
    #[default]
    Unknown,
    /// A start or stop of ours is under way.
    Busy,
    Running,
    Stopped,
}

/// What is known of one unit, as its watchers see it.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The newest look; none before the first.
    pub state: Option<State>,
    pub expect: Expect,
    /// Jobs that were queued for it by anybody, since we look.
    pub jobs: u64,
    /// How many of them were known before the newest look.
    pub jobs_before_look: u64,
    /// Path and result of the jobs that ended last.
    pub removed: VecDeque<(String, String)>,
    /// Why systemd does not say what it is, for so long that it is worth a warning; none while it
    /// answers.
    pub silent: Option<String>,
}

impl View {
    pub(super) fn remember(&mut self, job: String, result: String) {
        if self.removed.len() == REMOVED_MAX {
            self.removed.pop_front();
        }
        self.removed.push_back((job, result));
    }

    pub(super) fn result_of(&self, job: &str) -> Option<String> {
        self.removed.iter().rev().find(|(path, _)| path == job).map(|(_, result)| result.clone())
    }
}

/// What a watcher tells next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    Failed,
    StoppedByHand,
    StartedByHand,
}

/// Turns looks at a unit into what happened to it. One thing is told once.
#[derive(Debug, Default)]
pub(super) struct Judge {
    was_up: bool,
    was_down: bool,
    told_down: bool,
    told_up: bool,
    /// Jobs that were known when it last ran undisturbed; none before the first look.
    jobs_while_up: Option<u64>,
}

impl Judge {
    /// Takes one look.
    pub(super) fn look(&mut self, view: &View) -> Option<Seen> {
        let state = view.state.as_ref()?;
        if view.expect == Expect::Busy {
            // Ours; whatever comes afterwards is judged against how it ends.
            *self = Self { jobs_while_up: Some(view.jobs), ..Self::default() };
            return None;
        }
        let has_new_job = *self.jobs_while_up.get_or_insert(view.jobs) != view.jobs;
        match state.active {
            Activity::Up | Activity::Starting => self.up(view, state),
            Activity::Down | Activity::Failed => self.down(view, has_new_job),
            // With a job somebody stops it, and it may still take a while. Without one it has
            // failed already, and systemd cleans up.
            Activity::Stopping if !has_new_job && state.job.is_none() => self.down(view, false),
            Activity::Stopping => None,
        }
    }

    fn up(&mut self, view: &View, state: &State) -> Option<Seen> {
        // What was told as lost and has not been ordered since was started by somebody else.
        let is_foreign = match view.expect {
            Expect::Stopped => true,
            Expect::Running => self.told_down,
            Expect::Unknown | Expect::Busy => self.was_down,
        };
        self.was_up = true;
        self.was_down = false;
        self.told_down = false;
        if state.active == Activity::Up && state.job.is_none() {
            // Not those that came since: what they did is in the next look.
            self.jobs_while_up = Some(view.jobs_before_look);
        }
        if is_foreign && !self.told_up {
            self.told_up = true;
            return Some(Seen::StartedByHand);
        }
        None
    }

    fn down(&mut self, view: &View, is_by_hand: bool) -> Option<Seen> {
        let is_loss =
            view.expect == Expect::Running || (view.expect == Expect::Unknown && self.was_up);
        let active = view.state.as_ref().map(|state| state.active);
        if active.is_some_and(Activity::is_down) {
            self.was_up = false;
            self.was_down = true;
            self.told_up = false;
        }
        if !is_loss || self.told_down {
            return None;
        }
        self.told_down = true;
        let has_failed = active == Some(Activity::Failed);
        Some(if is_by_hand && !has_failed { Seen::StoppedByHand } else { Seen::Failed })
    }
}

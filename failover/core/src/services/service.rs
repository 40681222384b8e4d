//! One service on this node: what it is as far as is known, what is being done with it, how often
//! it failed. [`next`] is the table of phases and events; it names every pair.
//!
//! ```text
//!              found            start            started
//!   Unknown ----------> Stopped ------> Starting ------> Running
//!      ^                   ^                | failed        | failed
//!      | ask again         | stopped        v               v
//!      +------ Stopping <--+------------- Failed <----------+
//!                | failed: harder (Orderly, Kill, Detach)
//!                v
//!            StopHangs  (tried again; a watchdog may end it)
//! ```

use alloc::format;
use alloc::string::{String, ToString};

use replicator_core::{Span, Time};

use super::outcome::{Failure, Force};
use super::spec::{Kind, Place, ServiceSpec};

/// A service that ran so long has no bad past.
pub const STABLE: Span = Span::from_ms(600_000);
/// Pauses before restarts in place: none before the first.
const BACKOFF_MS: [u64; 6] = [0, 1_000, 2_000, 4_000, 8_000, 15_000];
/// After it was given up it is tried again here after this time, and after twice as long each time.
const RETRY_FIRST: Span = Span::from_ms(10_000);
const RETRY_MAX: Span = Span::from_ms(600_000);
/// A stop that failed with all force is tried again.
const HANG_RETRY: Span = Span::from_ms(10_000);
/// How long a stop by force may take, unless it is an agent's.
pub const KILL_LIMIT: Span = Span::from_ms(5_000);
/// Somebody else may stop it so often within this and it is no failure: an operator who does not
/// know of us. Once more, and something does it again and again: a unit that it is bound to dies.
const STOPS_FORGIVEN: usize = 2;
const STOPS_WITHIN: Span = Span::from_ms(60_000);
/// A unit that is activating is asked again.
const ASK_AGAIN: Span = Span::from_ms(200);

/// What a service is, as far as is known here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// It was not asked yet, or what it answered is out of date.
    Unknown,
    /// It does not run.
    Stopped,
    /// A start is under way.
    Starting,
    /// It runs.
    Running,
    /// A stop is under way.
    Stopping(Force),
    /// It failed; something of it may be left: it is stopped before anything else.
    Failed,
    /// A stop failed with all the force that is allowed now.
    StopHangs,
}

impl Phase {
    /// For status and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping(Force::Orderly) => "stopping",
            Self::Stopping(_) => "killing",
            Self::Failed => "failed",
            Self::StopHangs => "stop hangs",
        }
    }
}

/// What is done with a service. One at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Ask what it is.
    Monitor,
    /// Start it.
    Start,
    /// Stop it.
    Stop(Force),
}

/// What happens to a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The engine orders a start.
    StartOrdered,
    /// The engine orders a stop.
    StopOrdered(Force),
    /// What was being done was taken back.
    Dropped,
    /// The start ended well.
    Started,
    /// The start failed or took too long.
    StartFailed,
    /// The stop ended well.
    StopDone,
    /// The stop failed or took too long, and nothing harder is allowed now.
    StopFailed,
    /// It answered that it runs.
    FoundRunning,
    /// It answered that it does not run.
    FoundStopped,
    /// It could not be asked, or took too long.
    MonitorFailed,
    /// It was told that it failed.
    ToldFailed,
    /// It was told that somebody stopped it.
    ToldStopped,
    /// It was told that somebody started it.
    ToldStarted,
}

/// What follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Next {
    /// Nothing changes.
    Stay,
    /// It is this now.
    To(Phase),
    /// It failed, and that counts.
    Fails,
    /// What it said is out of date: it is asked anew.
    Ask,
    /// The engine never lets that happen: what is being done always fits the phase.
    Never,
}

/// What follows when `event` happens in `phase`. Every pair is named.
pub fn next(phase: Phase, event: Event) -> Next {
    use Next::{Ask, Fails, Never, Stay, To};
    use Phase::{Failed, Running, Starting, StopHangs, Stopped, Stopping, Unknown};
    match event {
        Event::StartOrdered => match phase {
            Stopped => To(Starting),
            Unknown | Starting | Running | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::StopOrdered(force) => match phase {
            Unknown | Running | Failed | StopHangs | Stopping(_) => To(Stopping(force)),
            Starting | Stopped => Never,
        },
        Event::Dropped => match phase {
            // What a start that was dropped has left is to be cleared away.
            Starting | Stopping(_) => To(Failed),
            // A monitor leaves nothing.
            Unknown | Running => Stay,
            Stopped | Failed | StopHangs => Never,
        },
        Event::Started => match phase {
            Starting => To(Running),
            Unknown | Stopped | Running | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::StartFailed => match phase {
            Starting => Fails,
            Unknown | Stopped | Running | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::StopDone => match phase {
            Stopping(_) => To(Stopped),
            Unknown | Stopped | Starting | Running | Failed | StopHangs => Never,
        },
        Event::StopFailed => match phase {
            Stopping(_) => To(StopHangs),
            Unknown | Stopped | Starting | Running | Failed | StopHangs => Never,
        },
        Event::FoundRunning => match phase {
            Unknown => To(Running),
            Running => Stay,
            Stopped | Starting | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::FoundStopped => match phase {
            Unknown => To(Stopped),
            Running => Fails,
            Stopped | Starting | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::MonitorFailed => match phase {
            // Whether it runs cannot be found out: something may be there.
            Unknown => To(Failed),
            Running => Fails,
            Stopped | Starting | Stopping(_) | Failed | StopHangs => Never,
        },
        Event::ToldFailed => match phase {
            Running => Fails,
            Unknown | StopHangs => Ask,
            // The start or stop under way says itself how it ended; the others know.
            Starting | Stopping(_) | Stopped | Failed => Stay,
        },
        Event::ToldStopped => match phase {
            Running => To(Stopped),
            Unknown | StopHangs => Ask,
            Starting | Stopping(_) | Stopped | Failed => Stay,
        },
        Event::ToldStarted => match phase {
            Stopped => To(Running),
            Unknown | Failed => Ask,
            Starting | Stopping(_) | Running | StopHangs => Stay,
        },
    }
}

/// What is being done with a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Tells its result from a late one of an earlier job.
    pub ticket: u64,
    /// What.
    pub action: Action,
    /// When it began.
    pub since: Time,
    /// When it has taken too long.
    pub until: Time,
}

/// One service on this node.
#[derive(Clone, Debug)]
pub struct Service {
    /// What is configured.
    pub spec: ServiceSpec,
    pub(super) phase: Phase,
    /// Since when the phase is what it is.
    pub(super) since: Time,
    pub(super) job: Option<Job>,
    /// Where the escalation of its next stop begins.
    pub(super) stop_from: Force,
    /// It may belong to an office that is over, or was never ours: it is stopped before it is used.
    pub(super) is_suspect: bool,
    /// The hardest force that was tried in vain since it last ran or was stopped.
    pub(super) defies: Option<Force>,
    /// It was frozen, since the lease is over.
    pub(super) is_suspended: bool,
    /// An operator wants it stopped and started.
    pub(super) restart_wanted: bool,
    /// An operator wants it stopped.
    pub(super) is_off: bool,
    /// Failures in a row.
    pub(super) failures: u32,
    /// When somebody else stopped it, the last times.
    pub(super) stopped_at: [Option<Time>; STOPS_FORGIVEN],
    /// Restarts since this node took the office, for status.
    pub(super) restarts: u32,
    /// How often in a row it was given up here.
    pub(super) rounds: u32,
    /// Whether it was given up, and is only tried now and then.
    pub(super) is_given_up: bool,
    pub(super) last_failure: Option<(Time, Failure)>,
    /// It is not started, or stopped again, before.
    pub(super) retry_at: Time,
    /// When it is asked next; `Time(u64::MAX)`: never.
    pub(super) monitor_at: Time,
    /// Since when it answers that it is on its way.
    pub(super) changing_since: Option<Time>,
    /// A warning: degraded, stopped by hand, ...
    pub(super) remark: String,
    /// Since when it is that.
    pub(super) remark_since: Time,
}

impl Service {
    pub(super) fn new(now: Time, spec: ServiceSpec) -> Self {
        Self {
            spec,
            phase: Phase::Unknown,
            since: now,
            job: None,
            stop_from: Force::Orderly,
            is_suspect: false,
            defies: None,
            is_suspended: false,
            restart_wanted: false,
            is_off: false,
            failures: 0,
            stopped_at: [None; STOPS_FORGIVEN],
            restarts: 0,
            rounds: 0,
            is_given_up: false,
            last_failure: None,
            retry_at: now,
            monitor_at: now,
            changing_since: None,
            remark: String::new(),
            remark_since: now,
        }
    }

    /// What it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub(super) fn is_primary_only(&self) -> bool {
        self.spec.place == Place::Primary
    }

    pub(super) fn is_address(&self) -> bool {
        matches!(self.spec.kind, Kind::Address { .. })
    }

    pub(super) fn is_filesystem(&self) -> bool {
        matches!(self.spec.kind, Kind::Filesystem { .. })
    }

    /// It says something about this node and nothing stands on it.
    pub(super) fn is_witness_only(&self) -> bool {
        matches!(self.spec.kind, Kind::Reach { .. })
    }

    /// Whether what comes after it in the list stands on it: without it the others cannot go on
    /// running. An address that comes back is enough for them.
    pub(super) fn carries(&self) -> bool {
        self.spec.is_critical && !self.is_address() && !self.is_witness_only()
    }

    /// Whether what comes after it waits with its start until this one runs.
    pub(super) fn blocks(&self) -> bool {
        self.spec.is_critical && !self.is_witness_only()
    }

    /// Whether a service that does not block had its chance.
    pub(super) fn had_its_chance(&self) -> bool {
        match self.phase {
            Phase::Running | Phase::Failed | Phase::StopHangs => true,
            Phase::Stopped => self.failures > 0 || self.is_off,
            Phase::Unknown | Phase::Starting | Phase::Stopping(_) => false,
        }
    }

    pub(super) fn enter(&mut self, now: Time, phase: Phase) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        self.since = now;
        match phase {
            Phase::Stopped => {
                self.defies = None;
                self.is_suspect = false;
                self.restart_wanted = false;
                self.stop_from = Force::Orderly;
                self.remark("", now);
            }
            Phase::Running => {
                self.defies = None;
                self.monitor_at = self.next_monitor(now);
            }
            Phase::Unknown => self.monitor_at = now,
            Phase::StopHangs => self.retry_at = now + HANG_RETRY,
            Phase::Starting | Phase::Stopping(_) | Phase::Failed => {}
        }
        self.changing_since = None;
    }

    /// What there is to say of it now; nothing: all is well.
    pub(super) fn remark(&mut self, what: &str, now: Time) {
        if self.remark != what {
            self.remark = what.to_string();
            self.remark_since = now;
        }
    }

    /// When it is asked after now.
    pub(super) fn next_monitor(&self, now: Time) -> Time {
        match self.spec.timing.monitor_every {
            Span(0) => Time(u64::MAX),
            every => now + every,
        }
    }

    /// It answered that it is on its way: it is asked again soon; whether that has lasted too long.
    pub(super) fn is_changing(&mut self, now: Time, what: String) -> bool {
        let since = *self.changing_since.get_or_insert(now);
        self.remark(&what, now);
        self.monitor_at = now + ASK_AGAIN;
        now.since(since) >= self.spec.timing.start
    }

    /// How long an action may take.
    pub(super) fn limit(&self, action: Action) -> Span {
        match action {
            Action::Monitor => self.spec.timing.monitor,
            Action::Start => self.spec.timing.start,
            Action::Stop(Force::Orderly) => self.spec.timing.stop,
            Action::Stop(_) => self.kill_limit(),
        }
    }

    /// How long a stop by force may take. What has no process only the stop of its agent can end.
    fn kill_limit(&self) -> Span {
        match self.spec.kind {
            Kind::Ocf { .. } => self.spec.timing.stop.max(KILL_LIMIT),
            _ => KILL_LIMIT,
        }
    }

    /// How long a stop may take with all its escalation.
    pub(super) fn stop_limit(&self) -> Span {
        Span(self.spec.timing.stop.0 + 2 * self.kill_limit().0)
    }

    /// Since when it is being asked what it is.
    pub(super) fn asked_since(&self) -> Option<Time> {
        let job = self.job.as_ref().filter(|job| job.action == Action::Monitor);
        job.map(|job| job.since)
    }

    /// It runs where it must not: its next stop is by force.
    pub(super) fn kill_next(&mut self) {
        self.is_suspect = true;
        self.stop_from = self.stop_from.max(Force::Kill);
    }

    /// It failed: when it is tried again, and whether it is given up here.
    pub(super) fn count_failure(&mut self, now: Time, failure: Failure) -> bool {
        if self.phase == Phase::Running && now.since(self.since) >= STABLE {
            self.forgive();
        }
        self.failures = self.failures.saturating_add(1);
        let is_hopeless = failure.is_permanent || self.failures > self.spec.restarts_max;
        self.last_failure = Some((now, failure));
        self.is_given_up = is_hopeless;
        self.retry_at = if is_hopeless {
            self.rounds = self.rounds.saturating_add(1);
            now + doubled(RETRY_FIRST, self.rounds - 1, RETRY_MAX)
        } else {
            let at = (self.failures as usize - 1).min(BACKOFF_MS.len() - 1);
            now + Span::from_ms(BACKOFF_MS[at])
        };
        is_hopeless
    }

    /// Somebody else stopped it: whether that happens again and again.
    pub(super) fn is_stopped_again(&mut self, now: Time) -> bool {
        let first = self.stopped_at[0];
        self.stopped_at.rotate_left(1);
        self.stopped_at[STOPS_FORGIVEN - 1] = Some(now);
        first.is_some_and(|at| now.since(at) < STOPS_WITHIN)
    }

    /// Its past is forgotten.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
        self.rounds = 0;
        self.is_given_up = false;
    }

    /// That an action took too long.
    pub(super) fn overdue(&self, action: Action) -> Failure {
        let (what, key) = match action {
            Action::Monitor => ("monitor", "monitor_timeout_ms"),
            Action::Start => ("start", "start_timeout_ms"),
            Action::Stop(_) => ("stop", "stop_timeout_ms"),
        };
        let job = self.job.as_ref().filter(|job| job.action == action);
        let limit = job.map_or(self.limit(action), |job| job.until.since(job.since));
        // What it was about to do, where that is known.
        let remark = match (action, self.remark.as_str()) {
            (Action::Start, remark) if !remark.is_empty() => format!(": {remark}"),
            _ => String::new(),
        };
        Failure {
            code: "timed_out".to_string(),
            why: format!(
                "{what} of {} was not done after {} ms{remark}",
                self.spec.name,
                limit.as_ms()
            ),
            next: format!("look at its log; if it needs longer: {key}"),
            is_permanent: false,
        }
    }

    /// Shifts what waits by the time in which nothing could go on.
    pub(super) fn shift(&mut self, by: Span) {
        if let Some(job) = &mut self.job {
            job.until = job.until + by;
        }
        if self.monitor_at != Time(u64::MAX) {
            self.monitor_at = self.monitor_at + by;
        }
    }
}

/// A span doubled so many times, up to a limit.
pub(super) fn doubled(first: Span, times: u32, limit: Span) -> Span {
    let factor = 1_u64.checked_shl(times.min(32)).unwrap_or(u64::MAX);
    Span(first.0.saturating_mul(factor).min(limit.0))
}

//! What a service answers and tells: the words between the engine and the kinds.

use alloc::string::String;

use replicator_core::Span;

/// How hard a stop tries; the engine escalates from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Force {
    /// Orderly: SIGTERM, umount, StopUnit.
    Orderly,
    /// Whoever hinders is killed: SIGKILL to the cgroup, to holders of the mount, KillUnit.
    Kill,
    /// The device fails all I/O by now: lazy and forced umount. What is left after this is for the
    /// watchdog.
    Detach,
}

/// What a service is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// It runs.
    Running,
    /// It runs, but not well (OCF 190 and 191, a read-only remount, ...): a warning.
    Degraded(String),
    /// It does not run.
    Stopped,
    /// It is on its way to one of them (a unit that is activating): counts against the time-out.
    Changing(String),
}

/// Something changed without being asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// It failed or ended, and why.
    Failed(String),
    /// Somebody else stopped it (an operator with systemctl, a umount by hand).
    StoppedByHand(String),
    /// Somebody else started it where it should not run.
    StartedByHand(String),
    /// Its start has come to a step with a deadline of its own, from now on: a check of a file
    /// system takes as long as that is large. Without a limit it is that of a start again.
    Step {
        /// What is done now, for status; nothing said: nothing special.
        what: String,
        /// How long it may take.
        limit: Option<Span>,
    },
    /// Worth a warning: an address that somebody else has too, ...; empty: that is over.
    Warning(String),
}

/// Why something did not work.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Failure {
    /// Stable name for programs: `mount_failed`, `unit_not_found`, `agent_missing`, ...
    pub code: String,
    /// What went wrong, with the name of the culprit.
    pub why: String,
    /// What an operator may do.
    pub next: String,
    /// Trying again here cannot help (OCF 2-6, a unit that does not exist).
    pub is_permanent: bool,
}

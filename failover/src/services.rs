//! The kinds of services as this machine runs them. What is started, stopped or restarted, when and
//! how often is decided in `failover_core::services`; here it is done.
//!
//! ```text
//!   filesystem.rs  mount(8), mountinfo, who holds a mount
//!   address.rs     rtnetlink with valid_lft, gratuitous ARP and unsolicited NA
//!   systemd.rs     units over D-Bus
//!   ocf.rs         resource agents
//!   command.rs     commands of the operator
//!   reach.rs       carrier and neighbours
//!   process.rs     what ocf and command share: process groups, cgroups, output, kill
//! ```

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use tokio::sync::mpsc::UnboundedSender;

/// What a method of a service returns. Dropping it ends what it was doing: child processes are
/// killed with everything they started.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One service on this node. Methods have no deadlines of their own: the engine has, and drops what
/// takes too long. Every method may be called again after it failed or was dropped, and in any state
/// of the service: `start` of one that runs and `stop` of one that does not run succeed.
pub trait Service: Send + Sync {
    /// What must not be done in the middle of a failover, and what can be checked before one:
    /// drop-ins of systemd, the meta-data of an agent, whether programs and interfaces exist.
    /// Called when the daemon starts and when the configuration changes.
    fn prepare(&self) -> Doing<'_, Result<(), Failure>>;

    /// Starts it; ends when it is usable. `site` tells what the resource gives.
    fn start<'a>(&'a self, site: &'a Site) -> Doing<'a, Result<(), Failure>>;

    /// Stops it; ends when nothing of it is left, which it verifies. Never says that it is stopped
    /// while something is left.
    fn stop(&self, force: Force) -> Doing<'_, Result<(), Failure>>;

    /// What it is now.
    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>>;

    /// Tells changes as the kernel or systemd tell them, until it is dropped. Kinds that can only be
    /// asked never end and never tell.
    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()>;

    /// The lease was renewed (`Some`: how long clients may still be served), or is over (`None`). A
    /// floating address is refreshed or taken away; others have nothing to do. Must not wait.
    fn lease(&self, left: Option<std::time::Duration>) -> Doing<'_, ()> {
        let _ = left;
        Box::pin(async {})
    }

    /// The processes and cgroups that belong to it now, for the guard to freeze.
    fn cgroups(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// What the resource gives to its services.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its block device.
    pub device: PathBuf,
    /// Its name.
    pub resource: String,
    /// This node.
    pub node: String,
}

/// How hard a stop tries; the engine escalates from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It failed or ended, and why.
    Failed(String),
    /// Somebody else stopped it (an operator with systemctl, a umount by hand).
    StoppedByHand(String),
    /// Somebody else started it where it should not run.
    StartedByHand(String),
    /// Worth a warning: an address that somebody else has too, ...
    Warning(String),
}

/// Why something did not work.
#[derive(Clone, PartialEq, Eq, Debug)]
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

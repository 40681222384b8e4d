//! The kinds of services as this machine runs them. What is started, stopped or restarted, when and
//! how often is decided in `failover_core::services`; here it is done.
//!
//! ```text
//!   runner.rs      carries out what the engine orders; the handle that the daemon holds
//!   filesystem.rs  mount(8), mountinfo, who holds a mount
//!   address.rs     route netlink with valid_lft, gratuitous ARP and unsolicited NA
//!   systemd.rs     units over D-Bus
//!   ocf.rs         resource agents
//!   command.rs     commands of the operator
//!   reach.rs       carrier and neighbours
//!   neighbour.rs   frames of ARP and neighbour discovery;  link_socket.rs: where they pass
//!   process.rs     what ocf and command share: a session of their own, output, kill
//!   scope.rs       the processes of one service: a cgroup, or a mark in the environment
//!   guarded.rs     what the guard is told of them
//!   attended.rs    what a start left running, and that it lives;  pidfd.rs, processes.rs
//! ```

pub mod address;
mod attended;
mod command;
mod filesystem;
mod guarded;
mod link_socket;
mod neighbour;
pub mod ocf;
mod pidfd;
mod process;
mod processes;
pub mod reach;
pub mod runner;
mod scope;
pub mod systemd;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use failover_core::services::reach::Seen;
use failover_core::services::{Kind, ServiceSpec};
use tokio::sync::mpsc::UnboundedSender;

pub use command::Commands;
pub use failover_core::services::{Change, Condition, Failure, Force};
pub use filesystem::{Filesystem, Wish};
pub use ocf::Ocf;
use reach::{Reach, ReachConfig};

/// Where Debian and others keep the agents.
pub const OCF_ROOT: &str = "/usr/lib/ocf";

/// What a method of a service returns. Dropping it ends what it was doing: child processes are
/// killed with everything they started.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One service on this node. Methods have no deadlines of their own: the engine has, and drops what
/// takes too long. Every method may be called again after it failed or was dropped, and in any
/// state of the service: `start` of one that runs and `stop` of one that does not run succeed.
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

    /// Tells changes as the kernel or systemd tell them, until it is dropped. Kinds that can only
    /// be asked never end and never tell.
    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()>;

    /// The lease was renewed (`Some`: how long clients may still be served), or is over (`None`). A
    /// floating address is refreshed or taken away; others have nothing to do. Must not wait.
    fn lease(&self, left: Option<Duration>) -> Doing<'_, ()> {
        let _ = left;
        Box::pin(async {})
    }

    /// Freezes everything it runs, or lets it go on: while the lease is over nothing of it may act
    /// (L4). `stop` by force may come while it is frozen. Must not wait long.
    fn suspend(&self, is_suspended: bool) -> Doing<'_, ()> {
        for cgroup in self.groups() {
            freeze(&cgroup, is_suspended);
        }
        Box::pin(async {})
    }

    /// What it sees of the clients; only `reach` looks at them.
    fn reach(&self) -> Option<Seen> {
        None
    }

    /// Where its processes are, for the guard to freeze: cgroups, also before something is in them;
    /// or, as `/proc/NUMBER`, process groups that there are now.
    fn groups(&self) -> Vec<PathBuf> {
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

/// Where the services of one resource live on this machine.
#[derive(Clone, Debug)]
pub struct Home {
    /// For what must not outlive a reboot: words of services, what was mounted. It also tells
    /// several daemons of one machine apart, and is the same after a restart of this one.
    pub run_dir: PathBuf,
    /// This node.
    pub node: String,
    /// The block device of the resource.
    pub device: PathBuf,
    /// Where the agents are: [`OCF_ROOT`].
    pub ocf_root: PathBuf,
}

/// Makes a service of what is configured. Nothing is done on the machine yet. Units need a
/// connection that all of them share, addresses the registry of the guard: the daemon makes those.
pub fn make(spec: &ServiceSpec, resource: &str, home: &Home) -> Result<Box<dyn Service>, Failure> {
    let name = &spec.name;
    match &spec.kind {
        Kind::Filesystem { mount_point, fs_type, options, fsck } => {
            let fs_type = fs_type.as_deref();
            let wish = Wish { mount_point, fs_type, options, fsck: *fsck };
            Ok(Box::new(Filesystem::new(home, resource, name, wish)))
        }
        Kind::Ocf { provider, agent, parameters } => {
            let agent = (provider.as_str(), agent.as_str());
            Ok(Box::new(Ocf::new(home, resource, name, agent, parameters, spec.timing)))
        }
        Kind::Command { start, stop, monitor } => {
            let commands = (start.as_str(), stop.as_deref(), monitor.as_deref());
            let limit = Duration::from_nanos(spec.timing.monitor.0);
            Ok(Box::new(Commands::new(home, resource, name, commands, limit)))
        }
        Kind::Reach { interface, targets, need } => {
            let (interface, targets, need) = (interface.clone(), targets.clone(), *need);
            Ok(Box::new(Reach::new(ReachConfig { interface, targets, need })))
        }
        Kind::Address { .. } | Kind::Systemd { .. } => Err(Failure {
            code: "made_elsewhere".into(),
            why: format!("{name} needs more than its home"),
            next: "this is a mistake of the daemon: report it".into(),
            is_permanent: true,
        }),
    }
}

/// Freezes a cgroup with all below it, where it is one of version 2.
fn freeze(cgroup: &Path, is_frozen: bool) {
    let word = if is_frozen { "1" } else { "0" };
    if let Err(error) = fs::write(cgroup.join("cgroup.freeze"), word) {
        tracing::debug!("cannot freeze {}: {error}", cgroup.display());
    }
}

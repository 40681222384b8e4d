//! One node: all its resources, the sockets it listens on, and the order in which it starts and
//! stops.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use failover::services::systemd::Systemd;
use nbd_frontend::attach::Keeper;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use replicator_core::Span;
use thiserror::Error;

use crate::at_once::at_once;
use crate::cluster::ControlPlane;
use crate::config::{ClusterConfig, NodeConfig};
use crate::control::Reply;
use crate::control_server;
use crate::events::{Events, Weight};
use crate::fence::{Fencing, agent};
use crate::guard::Guarding;
use crate::hooks::{self, Hooks};
use crate::http::DaemonPages;
use crate::key::{ClusterKey, KeyError};
use crate::lock_holders::{is_alive, lock_holder};
use crate::nbd_listen::NbdPort;
use crate::peers::Peers;
use crate::report::{GuardReport, ResourceReport, StatusReport};
use crate::resource::Resource;
use crate::verdict;

/// How often a stop looks whether a resource is still in use.
const USE_POLL: Duration = Duration::from_millis(500);
/// How often it says so.
const USE_REMINDER: Duration = Duration::from_secs(30);
/// A stop waits for so long that a majority decides about the office of a replica that serves
/// nobody: where this is the last node to be switched off, none ever will.
const DECISION_PATIENCE: Span = Span::from_ms(10_000);

/// A running node.
pub struct Daemon {
    cluster: Arc<ClusterConfig>,
    node: NodeConfig,
    resources: Vec<Arc<Resource>>,
    peers: Arc<Peers>,
    /// The control plane, where a majority decides.
    pub control_plane: Option<Arc<ControlPlane>>,
    /// Fencing of the peer, without a majority.
    pub fencing: Option<Arc<Fencing>>,
    /// What has happened.
    pub events: Arc<Events>,
    /// Who withdraws services when this process cannot.
    guarding: Option<Arc<Guarding>>,
    warnings: Vec<String>,
    started: Instant,
    /// It is told to stop: what is lost from now on is given up.
    is_ending: AtomicBool,
    /// Keeps a second daemon of the same node away.
    _lock: Flock<File>,
}

/// Why a daemon cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The control plane cannot start.
    #[error(transparent)]
    ControlPlane(#[from] failover::StartError),
    /// No usable key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Another daemon runs as this node.
    #[error("another replicatord runs as {node} on this machine: {holder} holds {path}")]
    AlreadyRunning {
        /// The node.
        node: String,
        /// The lock file.
        path: PathBuf,
        /// The other one, in words.
        holder: String,
    },
    /// The daemon of this node was killed, and has not ended.
    #[error(
        "process {pid}, the replicatord of {node} before this one, was killed and is not gone: a \
         disk has not answered it (dmesg may say why); start this one when it has ended"
    )]
    NotGone {
        /// The node.
        node: String,
        /// The other one.
        pid: u32,
    },
    /// A file, directory or socket cannot be made.
    #[error("cannot {verb} {what}: {source}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(verb: &'static str, what: impl ToString) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_string();
    move |source| StartError::Io { verb, what, source }
}

impl Daemon {
    /// Opens the sockets and starts every resource. Nothing of a resource's own trouble stops the
    /// others or the daemon. A process may be the witness of several clusters, which share `ports`.
    pub fn start(
        cluster: ClusterConfig,
        node: NodeConfig,
        keeper: Keeper,
        ports: &failover::Ports,
        mut warnings: Vec<String>,
    ) -> Result<Arc<Self>, StartError> {
        let key = ClusterKey::load(&node.key)?;
        let plane_key = key.clone();
        make_private_dir(&node.run_dir).map_err(io_error("make", node.run_dir.display()))?;
        let lock = take_lock(&node)?;
        let control = listen(&node.control_socket)?;

        warnings.extend(cluster.warnings.iter().cloned());
        if let Some((peer, fence)) = cluster.fence_of_peer(&node.name)
            && let Some(problem) = agent::missing(fence)
        {
            warnings.push(format!("{} cannot be fenced: {problem}", peer.name));
        }
        warnings.extend(cluster.hooks.as_ref().and_then(hooks::missing));
        let cluster = Arc::new(cluster);
        let events = Arc::new(Events::default());
        if let Some(hooks) = &cluster.hooks {
            let hooks = Hooks::start(hooks.clone(), cluster.cluster.clone(), node.name.clone());
            events.use_hooks(hooks.map_err(io_error("start", "the hooks"))?);
        }
        let keeper = Arc::new(keeper);
        let resources: Vec<Arc<Resource>> = cluster
            .resources
            .iter()
            .filter(|_| !node.witness)
            .map(|config| {
                let (config, cluster) = (config.clone(), cluster.clone());
                let (events, keeper) = (events.clone(), keeper.clone());
                Arc::new(Resource::new(config, cluster, &node, events, keeper))
            })
            .collect();
        let systemd = Systemd::new(&cluster.cluster, &node.name);
        systemd.configure(resources.iter().map(|it| it.config.services.specs.clone()).collect());
        let has_services = resources.iter().any(|it| !it.config.services.specs.is_empty());
        let guarding = has_services.then(|| Guarding::start(&node, cluster.lease_ms));
        for resource in &resources {
            let what = format!("the services of {}", resource.name());
            let made = resource.make_services(&systemd, guarding.as_ref());
            made.map_err(io_error("make", what))?;
        }
        let peers = Arc::new(Peers::new(
            cluster.clone(),
            node.clone(),
            key,
            resources.clone(),
            events.clone(),
        ));
        if !node.witness {
            peers.listen().map_err(io_error("start", "the listener for peers"))?;
            let port = Arc::new(NbdPort::new(node.name.clone(), resources.clone(), events.clone()));
            for address in &node.nbd_listen {
                port.listen_tcp(*address).map_err(io_error("start", "the NBD port"))?;
            }
            let nbd = listen(&node.nbd_socket)?;
            port.listen_unix(nbd).map_err(io_error("start", "the NBD socket"))?;
        }
        let control_plane = if cluster.has_majority() {
            let (cluster, events) = (cluster.clone(), events.clone());
            Some(ControlPlane::start(cluster, &node, plane_key, ports, &resources, events)?)
        } else {
            None
        };

        let fencing = Fencing::start(&cluster, &node, &resources, peers.clone(), events.clone())
            .map_err(io_error("start", "fencing"))?;

        let started = Instant::now();
        let daemon = Arc::new(Self {
            cluster,
            node,
            resources,
            peers,
            control_plane,
            fencing,
            events,
            guarding,
            warnings,
            started,
            is_ending: AtomicBool::new(false),
            _lock: lock,
        });
        for resource in &daemon.resources {
            resource.start().map_err(io_error("start", resource.name()))?;
        }
        daemon.peers.dial().map_err(io_error("start", "the dialers"))?;
        control_server::serve(daemon.clone(), control)
            .map_err(io_error("start", "the control socket"))?;
        failover::http::serve(daemon.node.http.clone(), Arc::new(DaemonPages::new(&daemon)))
            .map_err(io_error("start", "HTTP"))?;
        if daemon.cluster.hooks.is_some() {
            hooks::watch(&daemon).map_err(io_error("start", "the thread conditions"))?;
        }
        Ok(daemon)
    }

    /// Which node this is.
    pub fn node_name(&self) -> &str {
        &self.node.name
    }

    /// A resource by its name.
    pub fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|resource| resource.name() == name)
    }

    /// The place of a node in the configuration, which is the same on every node.
    pub fn number_of(&self, node: &str) -> Option<usize> {
        self.cluster.nodes.iter().position(|it| it.name == node)
    }

    /// The names of all resources.
    pub fn resource_names(&self) -> Vec<String> {
        self.resources.iter().map(|resource| resource.name().to_owned()).collect()
    }

    /// Everything there is to tell, or only about one resource. The resources are asked at once, so
    /// that one hanging disk delays the answer only once.
    pub fn report(&self, only: Option<&str>) -> StatusReport {
        let is_wanted = |it: &&Arc<Resource>| only.is_none_or(|name| it.name() == name);
        let wanted: Vec<_> = self.resources.iter().filter(is_wanted).collect();
        let mut resources: Vec<ResourceReport> = at_once(&wanted, |resource| resource.report());
        let cluster_state = self.control_plane.as_ref().and_then(|plane| plane.report());
        if let Some(cluster) = &cluster_state {
            for resource in &mut resources {
                resource.verdict = verdict::in_cluster(resource, &self.node.name, cluster);
            }
        }
        for resource in &mut resources {
            verdict::mention_services(resource, &self.node.name);
        }
        StatusReport {
            cluster: self.cluster.cluster.clone(),
            node: self.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up_ms: self.started.elapsed().as_millis() as u64,
            warnings: self.warnings(),
            guard: self.guard_report(),
            refused_greetings: self.peers.refused_greetings(),
            cluster_state,
            fence: self.fencing.as_ref().map(|fencing| fencing.report()),
            resources,
        }
    }

    /// The guard and the watchdog, where there are services.
    pub fn guard_report(&self) -> Option<GuardReport> {
        self.guarding.as_ref().and_then(|guarding| guarding.report())
    }

    /// Whether it was told to stop.
    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    /// The name of its cluster.
    pub fn cluster_name(&self) -> &str {
        &self.cluster.cluster
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.guarding.iter().flat_map(|guarding| guarding.warnings()));
        warnings
    }

    /// Everything is stopped: the guard ends, and switches the watchdog off.
    pub fn end(&self) {
        if let Some(guarding) = &self.guarding {
            guarding.end();
        }
    }

    /// One line for systemd.
    pub fn summary(&self) -> String {
        if self.node.witness {
            return format!("witness of {}", self.cluster_name());
        }
        let up = self.resources.iter().filter(|resource| resource.is_up()).count();
        format!("{} of {} resources up", up, self.resources.len())
    }

    /// Stops every resource orderly, each on a thread of its own if there is one; a resource that
    /// is in use keeps serving until it is not. `stopped` is called for each one that is down.
    pub fn stop(self: &Arc<Self>, stopped: impl Fn() + Send + Clone + 'static) {
        self.is_ending.store(true, Ordering::Relaxed);
        for resource in &self.resources {
            resource.close();
            let daemon = self.clone();
            resource.in_helper("watch the stop", move |resource| daemon.watch_stop(resource));
            let (daemon, stopped) = (self.clone(), stopped.clone());
            resource.in_helper_or_here("stop", move |resource| {
                daemon.stop_one(resource);
                stopped();
            });
        }
    }

    /// Ends the stop of a replica whose office nobody decides about, as a crash would: it serves
    /// nobody any more, and what it acknowledged is safe.
    fn watch_stop(&self, resource: &Resource) {
        while !resource.is_down() {
            if resource.undecided_for() >= Some(DECISION_PATIENCE) {
                let text =
                    "stops as a crash would: there is no majority to decide about its office";
                self.events.emit(Weight::Warning, resource.name(), text);
                return resource.abandon();
            }
            thread::sleep(USE_POLL);
        }
    }

    fn stop_one(&self, resource: &Arc<Resource>) {
        let mut said_at: Option<Instant> = None;
        loop {
            // With services those who use the device are, as a rule, services: they stop first.
            let users = if resource.services().is_some() { Vec::new() } else { resource.users() };
            let hindrance = if users.is_empty() {
                match resource.down() {
                    Reply::Refused(refusal) => refusal.why,
                    _ => return,
                }
            } else {
                users.join("; ")
            };
            if said_at.is_none_or(|at| at.elapsed() >= USE_REMINDER) {
                said_at = Some(Instant::now());
                let text = format!(
                    "waits with stopping: {hindrance}. A second signal stops at once, as a crash \
                     would, and leaves the device to the next start"
                );
                self.events.emit(Weight::Warning, resource.name(), text);
            }
            thread::sleep(USE_POLL);
        }
    }

    /// How many resources there are.
    pub fn resource_count(&self) -> usize {
        self.resources.len()
    }

    /// Ends everything as a crash would. What was acknowledged is safe.
    pub fn abandon(&self) {
        for resource in &self.resources {
            resource.abandon();
        }
    }
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    // Others may pass through an existing one as its owner decided.
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn take_lock(node: &NodeConfig) -> Result<Flock<File>, StartError> {
    let path = node.run_dir.join("replicatord.lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(io_error("open", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, _)| {
        let node = node.name.clone();
        match file.metadata().ok().and_then(|file| lock_holder(&file)) {
            Some(pid) if !is_alive(pid) => StartError::NotGone { node, pid },
            pid => {
                let holder = pid.map_or_else(|| "it".into(), |pid| format!("process {pid}"));
                StartError::AlreadyRunning { node, path, holder }
            }
        }
    })
}

/// A Unix socket that only the daemon's own user can connect to. The lock is held, so whatever
/// lies there is of a daemon that is gone.
fn listen(path: &Path) -> Result<UnixListener, StartError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("replace", path.display())(error));
        }
        _ => {}
    }
    if let Some(dir) = path.parent() {
        make_private_dir(dir).map_err(io_error("make", dir.display()))?;
    }
    // The mask is the process's. At this time it has one thread; where it serves several clusters,
    // a file that a thread of another one makes at this moment is only readable to fewer.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(io_error("listen on", path.display()))
}

//! The configuration file, `/etc/replicator/replicator.toml`: the same on every node, every value
//! with a default that is named here. Unknown keys and impossible values are refused with file,
//! line, column and a hint. `replctl check` shows the result.

mod directory;
mod etcd;
mod fence;
mod parse;
mod problem;
mod reader;
#[cfg(test)]
mod service_tests;
pub mod services;
#[cfg(test)]
mod tests;
mod watchdog;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use failover::guard::WatchdogWish;
use failover::http::HttpConfig;
use replicator_core::{Timing, limits};

use crate::hooks::HookConfig;
pub use directory::{Directory, FileProblem};
pub use etcd::EtcdSite;
pub use fence::FenceConfig;
pub use problem::{ConfigError, Problem, line_and_column, suggestion};
pub use services::Services;

/// Where the file is by default.
pub const DEFAULT_PATH: &str = "/etc/replicator/replicator.toml";

const HOST_NAME_PATH: &str = "/proc/sys/kernel/hostname";

/// Every default of the file in one place.
pub mod defaults {
    /// The key file of the cluster.
    pub const KEY: &str = "/etc/replicator/key";
    /// Where state outlives a reboot.
    pub const STATE_DIR: &str = "/var/lib/replicator";
    /// Where sockets live.
    pub const RUN_DIR: &str = "/run/replicator";
    /// Where the devices appear.
    pub const DEVICE_DIR: &str = "/dev/replicator";
    /// Length of the lease of a primary in milliseconds.
    pub const LEASE_MS: u64 = 1_000;
    /// TCP port of data and UDP port of the cluster.
    pub const PORT: u16 = 7788;
    /// TCP port of HTTP: roles for load balancers, metrics, a live page. 0: none.
    pub const HTTP_PORT: u16 = 7790;
    /// TCP port of NBD, used where `nbd_address` is given.
    pub const NBD_PORT: u16 = 10809;
    /// Buffer pool of one resource in MiB.
    pub const POOL_MIB: u64 = 32;
    /// A client that takes no data or stops in the middle of a request for so long is closed.
    pub const CLIENT_TIMEOUT_MS: u64 = 30_000;
    /// A hook that runs so long is killed.
    pub const HOOK_TIMEOUT_MS: u64 = 30_000;
}

/// A whole configuration file, checked.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// The file it came from.
    pub path: PathBuf,
    /// Name of the cluster.
    pub cluster: String,
    /// How long a lease is; machine death is noticed a tenth later.
    pub lease_ms: u64,
    /// Where etcd is, if it keeps the register in place of the nodes.
    pub etcd: Option<EtcdSite>,
    /// Without a witness: whether a node fences a lost primary by itself.
    pub fences_by_itself: bool,
    /// All nodes, by name.
    pub nodes: Vec<NodeConfig>,
    /// All resources, by name.
    pub resources: Vec<ResourceConfig>,
    /// What is run at events.
    pub hooks: Option<HookConfig>,
    /// What is accepted and looks like a mistake, in words.
    pub warnings: Vec<String>,
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name.
    pub name: String,
    /// Has no disks and only helps to decide.
    pub witness: bool,
    /// Where it is reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where it listens for its peers; its addresses unless `listen` says otherwise.
    pub listen: Vec<SocketAddr>,
    /// Where it serves NBD over TCP; nowhere by default, since NBD knows no passwords.
    pub nbd_listen: Vec<SocketAddr>,
    /// Where it tells its roles, status and metrics over HTTP, and whom.
    pub http: HttpConfig,
    /// Where it serves NBD to local clients.
    pub nbd_socket: PathBuf,
    /// Where `replctl` reaches it.
    pub control_socket: PathBuf,
    /// The key file of the cluster.
    pub key: PathBuf,
    /// Where state outlives a reboot.
    pub state_dir: PathBuf,
    /// Where sockets live.
    pub run_dir: PathBuf,
    /// Where the devices appear.
    pub device_dir: PathBuf,
    /// How the others switch it off.
    pub fence: Option<FenceConfig>,
    /// Which watchdog resets it when its services cannot be stopped.
    pub watchdog: WatchdogWish,
}

/// One resource.
#[derive(Debug, Clone)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// Its disk on each data node, in the order of the nodes.
    pub copies: Vec<CopyConfig>,
    /// Extents of 4 MiB that the activity log holds.
    pub log_extents: u16,
    /// How the block device appears on the primary.
    pub attach: AttachWish,
    /// Whether reads wait for an echo of every other member (R5e).
    pub confirms_reads: bool,
    /// Whether NBD clients may open it; the attached device works without.
    pub nbd: bool,
    /// Bytes of its buffer pool.
    pub pool_bytes: usize,
    /// A client that takes no data or stops in the middle of a request for so long is closed.
    pub client_timeout_ms: u64,
    /// What runs on top of it, and where it is to run.
    pub services: Services,
    /// Time-outs of replication.
    pub timing: Timing,
    /// What the disk is in tests.
    pub test_backing: TestBackingWish,
    /// Where this process records the steps of its core; not from the file but from `--record`.
    pub record: Option<PathBuf>,
}

/// Where one node keeps its copy of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyConfig {
    /// The node.
    pub node: String,
    /// A block device or a file.
    pub disk: PathBuf,
    /// The file or device of the metadata; none: at the end of the disk.
    pub metadata: Option<PathBuf>,
}

/// How the block device appears on the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachWish {
    /// Kernel nbd where the kernel has it, else FUSE and loop, else none (with a warning).
    Auto,
    /// The kernel's nbd driver.
    Nbd,
    /// A FUSE file and a loop device.
    Fuse,
    /// No device; NBD clients only.
    None,
}

/// What a disk is; anything but `Normal` is for tests and the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestBackingWish {
    /// The disk.
    Normal,
    /// The disk behind a cache that is lost when the process is killed; the incarnation changes
    /// with every process.
    Volatile,
    /// Reads and writes of data touch nothing.
    Null,
}

impl ClusterConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mode = fs::metadata(path).map_or(0, |file| file.permissions().mode());
        let config = Self::parse(path, text.clone())?;
        config.check_secrets(mode & 0o7777, text)?;
        Ok(config)
    }

    /// A file with passwords of fence agents is nobody else's business.
    fn check_secrets(&self, mode: u32, text: String) -> Result<(), ConfigError> {
        let mut fences = self.nodes.iter().filter_map(|node| node.fence.as_ref());
        let Some((span, key)) = fences.find_map(|fence| fence.secret.clone()) else {
            return Ok(());
        };
        if mode & 0o004 == 0 {
            return Ok(());
        }
        let problem = Problem {
            span,
            what: format!("`{key}` is a secret, and everybody can read this file ({mode:04o})"),
            help: "chmod 0600 it; or use `password_file` beside `agent`, or the agent's own \
                   `password_script`"
                .into(),
        };
        Err(ConfigError::Wrong { path: self.path.clone(), text, problems: vec![problem] })
    }

    /// Checks the text of a file; the path is for messages.
    pub fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        parse::parse(path, &text).map_err(|problems| ConfigError::Wrong {
            path: path.to_owned(),
            text,
            problems,
        })
    }

    /// Whether a majority decides: there is a witness, or there are three data nodes, which are
    /// their own majority, or etcd, whose members are one.
    pub fn has_majority(&self) -> bool {
        self.etcd.is_some() || has_voters(&self.nodes)
    }

    /// Whether a node that is lost is fenced by itself, and a primary replaced, without a majority:
    /// wished for, and each of the two nodes can fence the other.
    pub fn fences_lost_primaries(&self) -> bool {
        let can_be_fenced = self.nodes.iter().all(|node| node.fence.is_some());
        self.fences_by_itself && !self.has_majority() && can_be_fenced
    }

    /// How `node` switches its peer off, when that is decided without a majority.
    pub fn fence_of_peer(&self, node: &str) -> Option<(&NodeConfig, &FenceConfig)> {
        if self.has_majority() {
            return None;
        }
        self.peers_of(node).into_iter().find_map(|peer| Some((peer, peer.fence.as_ref()?)))
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// A resource by its name.
    pub fn resource(&self, name: &str) -> Option<&ResourceConfig> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// Has every core recorded: into the file, and with more than one resource into one file for
    /// each, with its name behind the file's.
    pub fn record_into(&mut self, file: &Path) {
        let is_alone = self.resources.len() == 1;
        for resource in &mut self.resources {
            let mut path = file.as_os_str().to_owned();
            if !is_alone {
                path.push(format!(".{}", resource.name));
            }
            resource.record = Some(path.into());
        }
    }

    /// The names of the nodes with disks.
    pub fn data_nodes(&self) -> impl Iterator<Item = &NodeConfig> {
        self.nodes.iter().filter(|node| !node.witness)
    }

    /// The other data nodes, in the order of their names: the order of
    /// [`PeerIndex`](replicator_core::PeerIndex).
    pub fn peers_of(&self, node: &str) -> Vec<&NodeConfig> {
        self.data_nodes().filter(|other| other.name != node).collect()
    }

    /// The node to act as: the given name, or the host name when the file knows it.
    pub fn choose_node(&self, given: Option<&str>) -> Result<&NodeConfig, UnknownNode> {
        let wanted = match given {
            Some(name) => name.to_owned(),
            None => fs::read_to_string(HOST_NAME_PATH).unwrap_or_default().trim().to_owned(),
        };
        // A host name may carry the domain; the file has the short one.
        let short = wanted.split('.').next().unwrap_or_default();
        let found = self.node(&wanted);
        let found = if given.is_none() { found.or_else(|| self.node(short)) } else { found };
        found.ok_or_else(|| UnknownNode {
            wanted,
            is_host_name: given.is_none(),
            known: self.nodes.iter().map(|node| node.name.clone()).collect(),
        })
    }
}

impl ResourceConfig {
    /// Its disk on a node; panics for a node that is no data node of the same file.
    pub fn copy_on(&self, node: &str) -> &CopyConfig {
        let found = self.copies.iter().find(|copy| copy.node == node);
        found.unwrap_or_else(|| panic!("{} has no disk on {node}: checked when parsed", self.name))
    }
}

/// The daemon or command was to act as a node that the file does not know.
#[derive(Debug, thiserror::Error)]
pub struct UnknownNode {
    wanted: String,
    is_host_name: bool,
    known: Vec<String>,
}

impl std::fmt::Display for UnknownNode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        if self.is_host_name {
            write!(out, "this host is called {:?}", self.wanted)?;
        } else {
            write!(out, "there is no node {:?}", self.wanted)?;
        }
        write!(out, "; the configuration knows {}", known.join(", "))?;
        match suggestion(&self.wanted, &known) {
            Some(meant) => write!(out, "; did you mean --node {meant}?"),
            None => write!(out, "; say which one with --node NAME"),
        }
    }
}

/// See [`ClusterConfig::has_majority`].
fn has_voters(nodes: &[NodeConfig]) -> bool {
    nodes.iter().any(|node| node.witness) || nodes.len() > 2
}

const _: () = assert!(defaults::POOL_MIB << 20 > limits::PEER_WINDOW_BYTES);

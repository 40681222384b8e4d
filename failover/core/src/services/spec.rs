//! What is configured to run on top of a resource: the ordered list of its services.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use replicator_core::Span;
use serde::{Deserialize, Serialize};

/// One service as the configuration names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// How operators call it: `/srv/mariadb`, `192.0.2.100/24`, `mariadb.service`,
    /// `ocf:heartbeat:IPaddr2 vip`, or what `name` says. Unique within its resource.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// On which nodes it runs.
    pub place: Place,
    /// The step of the list it belongs to. Steps start in this order and stop in the reverse one;
    /// services of one step (a `parallel` group) start and stop together.
    pub step: u16,
    /// Deadlines and repetition.
    pub timing: ServiceTiming,
    /// Restarts in place before the resource moves.
    pub restarts_max: u32,
    /// Whether the resource moves when it fails here for good; else it stays failed, visibly.
    pub is_critical: bool,
}

/// Deadlines of one service. Every wait has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceTiming {
    /// A start that takes longer has failed.
    pub start: Span,
    /// A stop that takes longer escalates.
    pub stop: Span,
    /// A monitor that takes longer has failed.
    pub monitor: Span,
    /// How often a monitor runs, beside what the kernel or systemd tells at once; zero: never.
    pub monitor_every: Span,
}

/// On which nodes a service runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Place {
    /// Where the resource is primary.
    #[default]
    Primary,
    /// On data nodes where it is not.
    Secondary,
    /// On every data node, whatever its role.
    All,
}

/// What a service is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A file system on the resource's device.
    Filesystem {
        /// Where it is mounted.
        mount_point: String,
        /// As `mount -t` knows it; none: what blkid finds.
        fs_type: Option<String>,
        /// As `mount -o` takes them.
        options: Vec<String>,
        /// What is done before the mount.
        fsck: FsckPolicy,
    },
    /// A floating address.
    Address {
        /// The address.
        address: IpAddr,
        /// Length of its prefix.
        prefix: u8,
        /// The interface; none: the one that has an address of the same network.
        interface: Option<String>,
    },
    /// A systemd unit.
    Systemd {
        /// Its full name.
        unit: String,
    },
    /// An OCF resource agent.
    Ocf {
        /// `heartbeat`.
        provider: String,
        /// `IPaddr2`.
        agent: String,
        /// `OCF_RESKEY_*`.
        parameters: BTreeMap<String, String>,
    },
    /// Commands, run by `/bin/sh -c`.
    Command {
        /// Starts it. Whatever it leaves running belongs to the service.
        start: String,
        /// Stops it; none: its processes get SIGTERM.
        stop: Option<String>,
        /// Exit code 0: it runs; 7: it is stopped; else it failed. None: its processes are watched.
        monitor: Option<String>,
    },
    /// Whether clients can reach this node: carrier, and `need` of the targets answer.
    Reach {
        /// The interface whose carrier is needed; none: no carrier is looked at.
        interface: Option<String>,
        /// Who is asked.
        targets: Vec<ReachTarget>,
        /// How many of them must answer.
        need: u16,
    },
}

/// Somebody who is asked whether we reach him.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReachTarget {
    /// By ARP (IPv4) or neighbour solicitation (IPv6), on a link.
    Neighbour(IpAddr),
    /// By ICMP echo.
    Ping(IpAddr),
    /// By a TCP connection.
    Tcp(IpAddr, u16),
}

/// What is done with a file system before it is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum FsckPolicy {
    /// The journal is replayed by the mount; a check only where the file system asks for it
    /// (`fsck -p`; never for xfs and btrfs).
    #[default]
    Auto,
    /// Never.
    Never,
    /// `fsck -p` before every mount.
    Always,
}

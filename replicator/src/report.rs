//! What a daemon tells about itself: plain values that travel to `replctl` as JSON and are shown
//! from there. Every field is part of the interface of `--json`; sizes are bytes, times are
//! milliseconds.

use failover::core::Span;
use failover::core::services::Place;
use failover::core::services::report::ServiceState;
pub use failover::guard::GuardReport;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterReport;
use crate::control::RefusalReport;
use crate::fence::FenceReport;
use crate::verdict::Verdict;
pub use crate::verify::{Repair, VerifyReport};

/// A whole node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of the cluster.
    pub cluster: String,
    /// The node that answers.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// For how long it has been running.
    pub up_ms: u64,
    /// What an operator should know: rights that are missing, values without effect.
    pub warnings: Vec<String>,
    /// The guard and the watchdog, where there are services.
    #[serde(default)]
    pub guard: Option<GuardReport>,
    /// Greetings that failed, by reason, since the start.
    pub refused_greetings: Vec<RefusedGreetings>,
    /// The cluster, where a majority decides.
    #[serde(default)]
    pub cluster_state: Option<ClusterReport>,
    /// Fencing of the peer, without a majority.
    #[serde(default)]
    pub fence: Option<FenceReport>,
    /// Its resources.
    pub resources: Vec<ResourceReport>,
}

impl StatusReport {
    /// Peers of a resource that were dropped too often lately, as this node's replica waits for
    /// them: the name of the peer begins `what`.
    pub fn held_back(&self, resource: &str) -> impl Iterator<Item = &WaitReport> {
        let replicas = self.resources.iter().filter(move |it| it.name == resource);
        let waits = replicas.filter_map(|it| it.replica.as_ref()).flat_map(|it| &it.waits);
        waits.filter(|wait| wait.party == "held_back")
    }
}

/// How often greetings ended for one reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusedGreetings {
    /// The reason: `wrong_key`, `wrong_cluster`, `unknown_node`, ...
    pub reason: String,
    /// How often.
    pub count: u64,
    /// The latest, in words, with the address.
    pub last: String,
}

/// One resource on this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// `down`, `starting`, `up`, `stopping`, `failed`.
    pub state: String,
    /// Why it is not up, or what it waits for.
    pub why: String,
    /// For how long it has been in this state.
    #[serde(default)]
    pub state_ms: u64,
    /// What its start waits for: writes of a dead process that are still on their way (R2e).
    #[serde(default)]
    pub start_waits: Option<WaitReport>,
    /// The disk with the data.
    pub disk: String,
    /// The metadata; the same path when internal.
    pub metadata: String,
    /// What the replica says; none while it is not up.
    pub replica: Option<ReplicaReport>,
    /// The block device; none while there is none.
    pub device: Option<DeviceReport>,
    /// What runs on top of it here; none where nothing is configured.
    #[serde(default)]
    pub services: Option<ServicesReport>,
    /// The newest verify of each copy that this node knows of.
    #[serde(default)]
    pub verifies: Vec<VerifyReport>,
    /// NBD clients that are connected.
    pub clients: Vec<ClientReport>,
    /// Operations of its disk that are under way.
    #[serde(default)]
    pub disk_operations: usize,
    /// Counts since it came up.
    pub counters: CountersReport,
    /// What an operator should know about this resource.
    pub warnings: Vec<String>,
    /// The latest events, oldest first.
    pub events: Vec<EventReport>,
    /// All of it in one sentence.
    pub verdict: Verdict,
}

/// What a replica says about itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// `starting`, `secondary`, `promoting`, `primary`, `demoting`, `stopping`, `stopped`.
    pub role: String,
    /// `up_to_date`, `outdated`, `inconsistent`, `diverged`, `invalid`, `failed`, `unknown`.
    pub data: String,
    /// Random id of this replica.
    pub id: String,
    /// Size of the data area, as clients see it.
    pub size_bytes: u64,
    /// How far it may grow here (`replctl resize`).
    #[serde(default)]
    pub room_bytes: u64,
    /// How far when what was added to the disk is zeroed; none while nothing is.
    #[serde(default)]
    pub making_room_to: Option<u64>,
    /// The size it is growing to.
    #[serde(default)]
    pub resizing_to: Option<u64>,
    /// Bytes that were added to the backing disk and are not made use of yet.
    #[serde(default)]
    pub added_bytes: u64,
    /// Block size.
    pub block_bytes: u32,
    /// Generation of the register copy.
    pub generation: u64,
    /// Generation in which the present or last primary took office.
    pub tenure: u64,
    /// Node of the primary, as far as this replica knows; empty when there is none.
    pub primary: String,
    /// Node that may change the register; empty when there is none.
    pub authority: String,
    /// Nodes of the in-sync set.
    pub in_sync: Vec<String>,
    /// Whether the last primary released its office orderly.
    pub released_clean: bool,
    /// Client requests inside.
    pub requests: usize,
    /// Why requests wait, the longest wait first.
    pub waits: Vec<WaitReport>,
    /// Extents of the activity log in use, and in all.
    pub log_extents: (u32, u32),
    /// The other nodes.
    pub peers: Vec<PeerReport>,
}

/// Something that waits.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WaitReport {
    /// For whom: `disk`, `activity_log`, `peer`, `resync`, `majority`, `lease`, `request`,
    /// `fence`, `lock`, `held_back`.
    #[serde(default)]
    pub party: String,
    /// For what.
    pub what: String,
    /// For how long already.
    pub since_ms: u64,
    /// After how long in all it is given up; none where only the party itself ends it.
    #[serde(default)]
    pub limit_ms: Option<u64>,
    /// What happens then; without a limit, what ends the wait.
    #[serde(default)]
    pub then: String,
}

impl WaitReport {
    /// Whether clients' requests may wait for this; a peer's return is another matter.
    pub fn is_of_requests(&self) -> bool {
        !matches!(self.party.as_str(), "resync" | "held_back")
    }
}

/// One peer as this node sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name.
    pub node: String,
    /// `disconnected`, `refused`, `connecting`, `idle`, `leads`, `held_back`, `syncing`,
    /// `joining`, `current`.
    pub state: String,
    /// Why it is refused or not connected.
    pub why: String,
    /// How often this primary dropped it lately (P6).
    #[serde(default)]
    pub drops: usize,
    /// Its role as it says.
    pub role: String,
    /// Whether it is in the in-sync set.
    pub is_member: bool,
    /// Bytes it may lack.
    pub dirty_bytes: u64,
    /// Blocks that differ because lineages diverged.
    pub diverged_blocks: u64,
    /// Size of its data area, and how far that may grow there; 0 when not connected.
    #[serde(default)]
    pub size_bytes: u64,
    /// See there.
    #[serde(default)]
    pub room_bytes: u64,
    /// Bytes to copy when the present resync began; 0 when none runs.
    pub resync_total_bytes: u64,
    /// Bytes still to copy.
    pub resync_left_bytes: u64,
    /// Payload bytes sent for resyncs and for live writes.
    pub sent_bytes: (u64, u64),
    /// Payload bytes received for resyncs and for live writes.
    pub received_bytes: (u64, u64),
    /// Frames sent and not acknowledged, and their bytes.
    pub in_flight: (usize, u64),
    /// Those of these bytes that belong to a resync.
    #[serde(default)]
    pub in_flight_resync_bytes: u64,
    /// Which side connects: `this node` or the peer's name.
    pub dialled_by: String,
}

/// The block device of a primary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Where it appears.
    pub path: String,
    /// `nbd` or `fuse`; empty while it is being made.
    pub kind: String,
    /// `attaching`, `attached`, `failed`, `leftover`.
    pub state: String,
    /// Why it is not there.
    pub why: String,
    /// Who uses it.
    pub users: Vec<String>,
}

/// What runs on top of a resource on this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServicesReport {
    /// `running`, `starting`, `stopping`, `stopped`, `suspended`, `failed`, `forbidden`,
    /// `maintenance`.
    pub state: String,
    /// Whether an operator said hands off.
    pub maintenance: bool,
    /// Why services cannot run on this node, if so.
    pub trouble: Option<RefusalReport>,
    /// Whether a stop hangs that only a reset of this machine ends.
    pub needs_reset: bool,
    /// Each, in the order of its start.
    pub services: Vec<ServiceReport>,
}

/// One service on this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// `primary`, `secondary` or `all`: on which nodes it runs.
    pub on: String,
    /// `unknown`, `stopped`, `starting`, `running`, `stopping`, `killing`, `failed`, `stop hangs`.
    pub state: String,
    /// For how long.
    pub since_ms: u64,
    /// What is being done may take so much longer; none: nothing is.
    pub deadline_in_ms: Option<u64>,
    /// It is tried again after so long.
    pub retry_in_ms: Option<u64>,
    /// Whether it should run here now.
    pub wanted: bool,
    /// Whether an operator wants it stopped.
    pub stopped_by_operator: bool,
    /// Whether it is frozen, since there is no lease.
    pub suspended: bool,
    /// Restarts since this node took the office.
    pub restarts: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Why it failed last; empty: it did not.
    pub last_failure: String,
    /// How long ago that was.
    pub failed_ago_ms: u64,
    /// A warning; empty: none.
    pub warning: String,
    /// For how long that is so.
    #[serde(default)]
    pub warning_for_ms: u64,
}

impl ServiceReport {
    /// As the engine tells it.
    pub fn of(state: &ServiceState) -> Self {
        let failure = state.last_failure.as_ref();
        Self {
            name: state.name.clone(),
            on: match state.place {
                Place::Primary => "primary",
                Place::Secondary => "secondary",
                Place::All => "all",
            }
            .to_owned(),
            state: state.phase.word().to_owned(),
            since_ms: state.since.as_ms(),
            deadline_in_ms: state.left.map(Span::as_ms),
            retry_in_ms: state.retry_in.map(Span::as_ms),
            wanted: state.is_wanted,
            stopped_by_operator: state.is_off,
            suspended: state.is_suspended,
            restarts: state.restarts,
            failures: state.failures,
            last_failure: failure.map(|(_, failure)| failure.why.clone()).unwrap_or_default(),
            failed_ago_ms: failure.map_or(0, |(ago, _)| ago.as_ms()),
            warning: state.remark.clone(),
            warning_for_ms: if state.remark.is_empty() { 0 } else { state.remark_for.as_ms() },
        }
    }
}

/// One NBD client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientReport {
    /// Where it comes from.
    pub origin: String,
    /// Requests not yet answered.
    pub requests: usize,
    /// For how long it has not read its replies.
    pub not_reading_for_ms: u64,
    /// Why the loop does not read from it.
    pub held_back_by: String,
}

/// Counts since the resource came up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CountersReport {
    /// Requests answered.
    pub reads: u64,
    /// Requests answered.
    pub writes: u64,
    /// Requests answered.
    pub flushes: u64,
    /// Trims and zeroes answered.
    pub zeroes: u64,
    /// Payload of the reads.
    pub read_bytes: u64,
    /// Payload of the writes.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Writes of the activity log.
    #[serde(default)]
    pub log_writes: u64,
    /// Writes of dirty bitmaps.
    #[serde(default)]
    pub bitmap_writes: u64,
    /// Disk operations that failed.
    pub disk_errors: u64,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventReport {
    /// Number of the event in this process, from 1.
    pub number: u64,
    /// Seconds since 1970, by the wall clock.
    pub at_unix_ms: u64,
    /// The resource; empty for the node.
    pub resource: String,
    /// In words.
    pub text: String,
}

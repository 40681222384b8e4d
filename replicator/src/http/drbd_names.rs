//! The metrics of drbd-reactor's exporter under its names and in its words, so that dashboards made
//! for DRBD go on (drbd-reactor, src/plugin/prometheus.rs). What has no counterpart here is left
//! out rather than invented: `drbd_connection_rsinflight_bytes` (in flight are resync and live
//! writes together), `drbd_device_alwrites_total`, `_bmwrites_total`, `_lowerpending` (not
//! counted), and `_alsuspended` (the activity log never is). `drbd_device_client` is always 0: who
//! has a resource has a disk for it.

use failover::http::Page;
use replicator_core::limits;

use super::families::{Families, Labels};
use crate::daemon::Daemon;
use crate::report::{PeerReport, ReplicaReport, ResourceReport};

const ROLES: [&str; 3] = ["Primary", "Secondary", "Unknown"];
const CONNECTIONS: [&str; 4] = ["StandAlone", "Unconnected", "Connecting", "Connected"];
const DISKS: [&str; 7] =
    ["Diskless", "Failed", "Attaching", "Inconsistent", "Outdated", "Consistent", "UpToDate"];
/// Every resource has the volume 0 only.
const VOLUME: &str = "0";

/// The page.
pub fn page(daemon: &Daemon) -> Page {
    let report = daemon.report(None);
    let mut out = Families::default();
    out.gauge("drbdreactor_up", "Whether the exporter runs.", Labels::new(), 1.0);
    let help = "Version of what answers.";
    let version = vec![("utils", report.version.clone())];
    out.gauge("drbd_version", help, version, 1.0);
    let count = report.resources.len() as f64;
    out.gauge("drbd_resource_resources", "Number of resources.", Labels::new(), count);
    for resource in &report.resources {
        let has_majority = report.cluster_state.as_ref().is_none_or(|it| it.has_majority);
        one(&mut out, resource, has_majority);
    }
    out.into_page()
}

fn one(out: &mut Families, resource: &ResourceReport, has_majority: bool) {
    let name: Labels = vec![("name", resource.name.clone())];
    let mut device = name.clone();
    device.push(("volume", VOLUME.into()));
    let disk = disk_state(resource);
    let help = "State of the local disk.";
    out.states("drbd_device_state", help, &device, ("drbd_device_state", &DISKS, disk));
    out.flag("drbd_device_quorum", "Whether there is a majority.", device.clone(), has_majority);
    let is_lost = matches!(disk, "Diskless" | "Failed");
    out.flag(
        "drbd_device_unintentionaldiskless",
        "Whether the disk is lost.",
        device.clone(),
        is_lost,
    );
    out.flag("drbd_device_client", "Whether it is to have no disk: never.", device.clone(), false);
    let fails = resource.device.as_ref().is_some_and(|device| device.state == "leftover");
    let help = "Whether a device of an earlier office fails all I/O.";
    out.flag("drbd_resource_forceiofailures", help, name.clone(), fails);
    let is_open = resource.device.as_ref().is_some_and(|device| !device.users.is_empty());
    out.flag("drbd_device_open", "Whether the device is in use.", device.clone(), is_open);
    let counters = &resource.counters;
    let help = "Bytes read from the local disk for clients.";
    out.counter("drbd_device_read_bytes", help, device.clone(), counters.read_bytes);
    let help = "Bytes written to the local disk for clients.";
    out.counter("drbd_device_written_bytes", help, device.clone(), counters.written_bytes);
    let Some(replica) = &resource.replica else { return };
    let help = "Role of this node.";
    out.states("drbd_resource_role", help, &name, ("drbd_resource_role", &ROLES, role(replica)));
    let is_suspended = replica.waits.iter().any(|wait| wait.is_of_requests());
    out.flag("drbd_resource_suspended", "Whether requests wait.", name.clone(), is_suspended);
    let may = replica.data == "up_to_date" && replica.role == "secondary";
    out.flag("drbd_resource_maypromote", "Whether its data allow it.", name.clone(), may);
    let help = "How well its data suit for a promotion; 0: not at all.";
    let score = promotion_score(replica, has_majority);
    out.gauge("drbd_resource_promotionscore", help, name.clone(), score);
    let size = replica.size_bytes as f64;
    out.gauge("drbd_device_size_bytes", "Size of the device.", device.clone(), size);
    let pending = replica.requests as f64;
    out.gauge("drbd_device_upperpending", "Requests of clients.", device, pending);
    replica.peers.iter().for_each(|it| peer(out, &resource.name, it));
}

fn peer(out: &mut Families, name: &str, peer: &PeerReport) {
    let labels: Labels = vec![("name", name.to_owned()), ("conn_name", peer.node.clone())];
    let state = match peer.state.as_str() {
        "refused" => "StandAlone",
        "disconnected" => "Unconnected",
        "connecting" => "Connecting",
        _ => "Connected",
    };
    let help = "State of the connection.";
    let states = ("drbd_connection_state", &CONNECTIONS[..], state);
    out.states("drbd_connection_state", help, &labels, states);
    let help = "Bytes sent and not acknowledged.";
    let in_flight = peer.in_flight.1 as f64;
    out.gauge("drbd_connection_apinflight_bytes", help, labels.clone(), in_flight);
    let help = "Whether nothing more is sent before something is acknowledged.";
    let is_congested = peer.in_flight.1 * 10 >= limits::PEER_WINDOW_BYTES * 8;
    out.flag("drbd_connection_congested", help, labels.clone(), is_congested);
    let mut volume = labels;
    volume.push(("volume", VOLUME.into()));
    let help = "Bytes that the peer may lack.";
    let dirty = peer.dirty_bytes as f64;
    out.gauge("drbd_peerdevice_outofsync_bytes", help, volume.clone(), dirty);
    let (sent, received) = (peer.sent_bytes, peer.received_bytes);
    let help = "Payload sent.";
    out.gauge("drbd_peerdevice_sent_bytes", help, volume.clone(), (sent.0 + sent.1) as f64);
    let help = "Payload received.";
    out.gauge("drbd_peerdevice_received_bytes", help, volume, (received.0 + received.1) as f64);
}

/// As DRBD has it: without a majority or with stale data none, else by the disk here and by how
/// many are up to date.
fn promotion_score(replica: &ReplicaReport, has_majority: bool) -> f64 {
    if !has_majority || replica.data != "up_to_date" {
        return 0.0;
    }
    10_000.0 + 100.0 + replica.in_sync.len() as f64
}

fn role(replica: &ReplicaReport) -> &'static str {
    match replica.role.as_str() {
        "primary" | "demoting" => "Primary",
        "secondary" | "promoting" => "Secondary",
        _ => "Unknown",
    }
}

fn disk_state(resource: &ResourceReport) -> &'static str {
    match (resource.state.as_str(), resource.replica.as_ref().map(|it| it.data.as_str())) {
        ("starting", _) => "Attaching",
        (_, Some("up_to_date")) => "UpToDate",
        (_, Some("outdated" | "diverged")) => "Outdated",
        (_, Some("inconsistent" | "invalid")) => "Inconsistent",
        (_, Some("failed")) | ("failed", _) => "Failed",
        (_, Some(_)) => "Consistent",
        (_, None) => "Diskless",
    }
}

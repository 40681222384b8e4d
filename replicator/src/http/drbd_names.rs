//! The metrics of drbd-reactor's exporter under its names and in its words, so that dashboards made
//! for DRBD go on (drbd-reactor, src/plugin/prometheus.rs). Where DRBD has numbers and we have
//! names, the place in the configuration stands: of the node for `peer_node_id`, of the resource
//! for `minor`. `drbd_device_client` is always 0: who has a resource has a disk for it; and so is
//! `drbd_device_alsuspended`: the activity log never is.

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
    of_exporter(&mut out, &report.version, report.resources.len());
    let has_majority = report.cluster_state.as_ref().is_none_or(|it| it.has_majority);
    let number_of = |node: &str| daemon.number_of(node);
    for (minor, resource) in report.resources.iter().enumerate() {
        one(&mut out, resource, (minor, has_majority), number_of);
    }
    out.into_page()
}

fn of_exporter(out: &mut Families, version: &str, resources: usize) {
    out.gauge("drbdreactor_up", "Whether the exporter runs.", Labels::new(), 1.0);
    let help = "Version of what answers.";
    let version = vec![("kmod", "none".into()), ("utils", version.to_owned())];
    out.gauge("drbd_version", help, version, 1.0);
    let count = resources as f64;
    out.gauge("drbd_resource_resources", "Number of resources.", Labels::new(), count);
}

fn one(
    out: &mut Families,
    resource: &ResourceReport,
    (minor, has_majority): (usize, bool),
    number_of: impl Fn(&str) -> Option<usize>,
) {
    let name: Labels = vec![("name", resource.name.clone())];
    let mut device = name.clone();
    device.extend([("volume", VOLUME.into()), ("minor", minor.to_string())]);
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
    let help = "Writes of the activity log.";
    out.counter("drbd_device_alwrites", help, device.clone(), counters.log_writes);
    let help = "Writes of the dirty bitmaps.";
    out.counter("drbd_device_bmwrites", help, device.clone(), counters.bitmap_writes);
    let help = "Whether the activity log is suspended: never.";
    out.flag("drbd_device_alsuspended", help, device.clone(), false);
    let help = "Operations of the local disk under way.";
    let pending = resource.disk_operations as f64;
    out.gauge("drbd_device_lowerpending", help, device.clone(), pending);
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
    for it in &replica.peers {
        let number = number_of(&it.node).map_or_else(String::new, |number| number.to_string());
        let labels = vec![("conn_name", it.node.clone()), ("peer_node_id", number)];
        peer(out, it, name.iter().cloned().chain(labels).collect());
    }
}

fn peer(out: &mut Families, peer: &PeerReport, labels: Labels) {
    let state = match peer.state.as_str() {
        "refused" => "StandAlone",
        "disconnected" => "Unconnected",
        "connecting" => "Connecting",
        _ => "Connected",
    };
    let help = "State of the connection.";
    let states = ("drbd_connection_state", &CONNECTIONS[..], state);
    out.states("drbd_connection_state", help, &labels, states);
    let help = "Bytes of clients' writes sent and not acknowledged.";
    let resync = peer.in_flight_resync_bytes;
    let of_clients = peer.in_flight.1.saturating_sub(resync) as f64;
    out.gauge("drbd_connection_apinflight_bytes", help, labels.clone(), of_clients);
    let help = "Bytes of resyncs sent and not acknowledged.";
    out.gauge("drbd_connection_rsinflight_bytes", help, labels.clone(), resync as f64);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What drbd-reactor 1.11 exports (src/plugin/prometheus.rs, with `enums`): labels, then the
    /// names that have them.
    const LISTED: &str = "
: drbdreactor_up drbd_resource_resources
kmod,utils: drbd_version
name,drbd_resource_role: drbd_resource_role
name: drbd_resource_suspended drbd_resource_maypromote drbd_resource_promotionscore
name: drbd_resource_forceiofailures
name,conn_name,peer_node_id,drbd_connection_state: drbd_connection_state
name,conn_name,peer_node_id: drbd_connection_congested drbd_connection_apinflight_bytes
name,conn_name,peer_node_id: drbd_connection_rsinflight_bytes
name,conn_name,peer_node_id,volume: drbd_peerdevice_outofsync_bytes drbd_peerdevice_sent_bytes
name,conn_name,peer_node_id,volume: drbd_peerdevice_received_bytes
name,volume,minor,drbd_device_state: drbd_device_state
name,volume,minor: drbd_device_client drbd_device_unintentionaldiskless drbd_device_quorum
name,volume,minor: drbd_device_open drbd_device_size_bytes drbd_device_upperpending
name,volume,minor: drbd_device_read_bytes_total drbd_device_written_bytes_total
name,volume,minor: drbd_device_alwrites_total drbd_device_bmwrites_total
name,volume,minor: drbd_device_lowerpending drbd_device_alsuspended
";

    /// `NAME{LABEL,LABEL}` of every sample of a page.
    fn exported(page: &str) -> BTreeSet<String> {
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let shape = |line: &str| {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) =
                series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
            // No value of this page has a comma in it.
            let labels: Vec<&str> = labels
                .split(',')
                .map(|label| label.split_once('=').map_or("", |it| it.0))
                .collect();
            format!("{name}{{{}}}", labels.join(","))
        };
        samples.map(shape).collect()
    }

    #[test]
    fn the_names_and_labels_are_those_of_drbd_reactor_no_more_and_no_fewer() {
        let listed: BTreeSet<String> = LISTED
            .trim()
            .lines()
            .flat_map(|line| {
                let (labels, names) = line.split_once(':').unwrap();
                names.split_whitespace().map(move |name| format!("{name}{{{labels}}}"))
            })
            .collect();
        let peers = vec![PeerReport { node: "beta".into(), ..PeerReport::default() }];
        let replica = Some(ReplicaReport { peers, ..ReplicaReport::default() });
        let resource = ResourceReport { name: "shop".into(), replica, ..ResourceReport::default() };
        let mut out = Families::default();
        of_exporter(&mut out, "1.0", 1);
        one(&mut out, &resource, (0, true), |_| Some(1));
        let page = out.into_page().body;
        assert_eq!(exported(&page), listed, "{page}");
        assert!(page.contains(r#"conn_name="beta",peer_node_id="1""#), "{page}");
    }

    #[test]
    fn what_is_in_flight_is_told_apart() {
        let in_flight = (3, 10_000);
        let beta = PeerReport { in_flight, in_flight_resync_bytes: 4_096, ..PeerReport::default() };
        let mut out = Families::default();
        peer(&mut out, &beta, Labels::new());
        let page = out.into_page().body;
        assert!(page.contains("drbd_connection_apinflight_bytes 5904.0"), "{page}");
        assert!(page.contains("drbd_connection_rsinflight_bytes 4096.0"), "{page}");
    }
}

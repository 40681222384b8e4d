//! What Prometheus is told: everything an operator alerts on. Names follow the conventions of
//! Prometheus: base units, `_total` for counts that only rise, one series for every state.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use failover::http::Page;

use super::families::{Families, Labels, PAUSES_US};
use super::services;
use crate::cluster::{ClusterReport, HistoryEntry, OfficeReport, Taken};
use crate::daemon::Daemon;
use crate::data_loop::LoopStatus;
use crate::report::{PeerReport, ReplicaReport, ResourceReport, StatusReport, VerifyReport};
use crate::verdict::Level;

pub(super) const ROLES: [&str; 7] =
    ["starting", "secondary", "promoting", "primary", "demoting", "stopping", "stopped"];
const DATA: [&str; 8] = [
    "up_to_date",
    "outdated",
    "inconsistent",
    "diverged",
    "invalid",
    "failed",
    "register_went_back",
    "unknown",
];
pub(super) const PEER_STATES: [&str; 9] = [
    "disconnected",
    "refused",
    "connecting",
    "idle",
    "leads",
    "held_back",
    "syncing",
    "joining",
    "current",
];

/// The page `/metrics`.
pub fn page(daemon: &Daemon) -> Page {
    let report = daemon.report(None);
    let mut out = Families::default();
    node(&mut out, &report);
    services::guard(&mut out, &report);
    if let Some(cluster) = &report.cluster_state {
        control_plane(&mut out, cluster);
    }
    for resource in &report.resources {
        let loop_status = daemon.resource(&resource.name).and_then(|it| it.loop_status());
        of_resource(&mut out, resource, &report.node);
        for found in &resource.verifies {
            verify(&mut out, &with(&named(&resource.name), "copy", &found.copy), found);
        }
        if let Some(of_resource) = &resource.services {
            services::of_resource(&mut out, &resource.name, of_resource);
        }
        if let Some(status) = &loop_status {
            data_loop(&mut out, &resource.name, status);
        }
    }
    if let Some(plane) = &daemon.control_plane {
        changes_of_office(&mut out, &plane.history.entries());
        offices_taken(&mut out, &plane.history.taken());
    } else if let Some(fencing) = &daemon.fencing {
        offices_taken(&mut out, &fencing.history.taken());
    }
    out.into_page()
}

pub(super) fn named(resource: &str) -> Labels {
    vec![("resource", resource.to_owned())]
}

pub(super) fn with(labels: &Labels, label: &'static str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((label, value.to_owned()));
    labels
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn node(out: &mut Families, report: &StatusReport) {
    let labels = vec![
        ("cluster", report.cluster.clone()),
        ("node", report.node.clone()),
        ("version", report.version.clone()),
    ];
    out.gauge("replicator_build_info", "Which cluster, node and version answer.", labels, 1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let started = now - seconds(report.up_ms);
    let help = "When the daemon started, in seconds since 1970.";
    out.gauge("replicator_start_time_seconds", help, Labels::new(), started);
    let count = report.warnings.len() as f64;
    let help = "Warnings about this node that `replctl status` shows.";
    out.gauge("replicator_warnings", help, Labels::new(), count);
    let help = "Peers whose greeting was refused, by reason.";
    for refused in &report.refused_greetings {
        let labels = vec![("reason", refused.reason.clone())];
        out.counter("replicator_refused_greetings", help, labels, refused.count);
    }
}

fn control_plane(out: &mut Families, cluster: &ClusterReport) {
    let none = Labels::new;
    out.flag("replicator_majority", "Whether a majority is heard.", none(), cluster.has_majority);
    let help = "For how long no majority has been heard; 0 while one is.";
    let missing = seconds(cluster.no_majority_ms);
    out.gauge("replicator_majority_missing_seconds", help, none(), missing);
    let help = "Whether an operator has paused automatic failovers.";
    out.flag("replicator_automation_paused", help, none(), cluster.is_paused);
    let help = "Revision of the register as this node knows it.";
    out.gauge("replicator_register_revision", help, none(), cluster.revision as f64);
    let help = "Values in which the configuration file differs from the register.";
    let count = cluster.differences.len() as f64;
    out.gauge("replicator_configuration_differences", help, none(), count);
    let help = "Messages of the cluster that were refused: wrong key, wrong cluster, ...";
    out.counter("replicator_refused_messages", help, none(), cluster.refused_messages.0);
    for node in &cluster.nodes {
        let labels = vec![("peer", node.name.clone())];
        let is_heard = matches!(node.state.as_str(), "here" | "reachable");
        let help = "Whether a node is heard by this one.";
        out.flag("replicator_node_reachable", help, labels.clone(), is_heard);
        let help = "Whether a node's vote counts.";
        out.flag("replicator_node_votes", help, labels.clone(), node.votes);
        let is_on_standby = cluster.standby.contains(&node.name);
        let help = "Whether an operator put a node on standby.";
        out.flag("replicator_node_standby", help, labels.clone(), is_on_standby);
        if node.round_trip_us > 0 {
            let help = "The way to a node and back.";
            let took = node.round_trip_us as f64 / 1e6;
            out.gauge("replicator_node_round_trip_seconds", help, labels, took);
        }
    }
    cluster.resources.iter().for_each(|it| office(out, it));
}

fn office(out: &mut Families, office: &OfficeReport) {
    let labels = named(&office.name);
    let help = "Generation of the register: rises with every change of primary or in-sync set.";
    out.gauge("replicator_generation", help, labels.clone(), office.generation as f64);
    let help = "Generation in which the present primary took office.";
    out.gauge("replicator_tenure", help, labels.clone(), office.tenure as f64);
    let help = "Replicas in the in-sync set.";
    out.gauge("replicator_in_sync_replicas", help, labels.clone(), office.in_sync.len() as f64);
    let help = "Whether anybody is primary as far as this node knows.";
    out.flag("replicator_has_primary", help, labels.clone(), !office.primary.is_empty());
    let help = "How long the lease of the primary still runs, as this node sees it.";
    let left = seconds(office.lease_left_ms);
    out.gauge("replicator_lease_remaining_seconds", help, labels.clone(), left);
    let help = "Whether the primary is the only member and holds its office without end.";
    out.flag("replicator_sole_member", help, labels.clone(), office.is_sole);
    for replica in &office.replicas {
        let labels = with(&labels, "peer", &replica.node);
        let help = "Whether a node's replica is in the in-sync set.";
        out.flag("replicator_in_sync", help, labels, replica.is_member);
    }
}

fn of_resource(out: &mut Families, resource: &ResourceReport, node: &str) {
    let labels = named(&resource.name);
    let help = "Whether the replica of this node is up.";
    out.flag("replicator_resource_up", help, labels.clone(), resource.state == "up");
    let level = match resource.verdict.level {
        Level::Safe => 0.0,
        Level::Attention => 2.0,
        Level::Degraded => 1.0,
    };
    let help = "What `replctl status` says of all of it: 0 safe, 1 less safe than it could be, \
                2 somebody must look.";
    out.gauge("replicator_verdict", help, labels.clone(), level);
    let help = "Warnings about this resource that `replctl status` shows.";
    out.gauge("replicator_resource_warnings", help, labels.clone(), resource.warnings.len() as f64);
    if let Some(device) = &resource.device {
        let is_there = device.state == "attached";
        let help = "Whether the block device is attached here.";
        out.flag("replicator_device_attached", help, labels.clone(), is_there);
    }
    let help = "NBD clients that are connected, the block device among them.";
    out.gauge("replicator_clients", help, labels.clone(), resource.clients.len() as f64);
    if let Some(own) = &resource.replica {
        replica(out, &labels, own, node);
    }
}

fn replica(out: &mut Families, labels: &Labels, replica: &ReplicaReport, node: &str) {
    let help = "Role of the replica of this node.";
    out.states("replicator_role", help, labels, ("role", &ROLES, &replica.role));
    let help = "What the data of this node are.";
    out.states("replicator_data_state", help, labels, ("state", &DATA, &replica.data));
    let is_member = replica.in_sync.iter().any(|member| member == node);
    let help = "Whether the replica of this node is in the in-sync set.";
    out.flag("replicator_member", help, labels.clone(), is_member);
    let size = replica.size_bytes as f64;
    out.gauge("replicator_size_bytes", "Size of the device.", labels.clone(), size);
    let requests = replica.requests as f64;
    let help = "Client requests that are not answered yet.";
    out.gauge("replicator_requests_in_flight", help, labels.clone(), requests);
    let longest = replica.waits.iter().filter(|wait| wait.is_of_requests());
    let longest = longest.map(|wait| wait.since_ms).max().unwrap_or(0);
    let help = "For how long the longest waiting request has waited.";
    out.gauge("replicator_longest_wait_seconds", help, labels.clone(), seconds(longest));
    let (used, all) = replica.log_extents;
    let help = "Extents of the activity log in use.";
    out.gauge("replicator_log_extents_used", help, labels.clone(), f64::from(used));
    let help = "Extents that the activity log holds.";
    out.gauge("replicator_log_extents", help, labels.clone(), f64::from(all));
    replica.peers.iter().for_each(|it| peer(out, &with(labels, "peer", &it.node), it));
}

fn peer(out: &mut Families, labels: &Labels, peer: &PeerReport) {
    let help = "State of the connection and of the replica behind it.";
    out.states("replicator_peer_state", help, labels, ("state", &PEER_STATES, &peer.state));
    let help = "How often this primary dropped a peer lately; from three on it is held back (P6).";
    out.gauge("replicator_peer_drops", help, labels.clone(), peer.drops as f64);
    let dirty = peer.dirty_bytes as f64;
    out.gauge("replicator_dirty_bytes", "Bytes that a peer may lack.", labels.clone(), dirty);
    let help = "Blocks that differ because lineages diverged; only an operator decides.";
    out.gauge("replicator_diverged_blocks", help, labels.clone(), peer.diverged_blocks as f64);
    let help = "Bytes to copy when the present resync began; 0 when none runs.";
    out.gauge("replicator_resync_bytes", help, labels.clone(), peer.resync_total_bytes as f64);
    let help = "Bytes that the present resync has still to copy.";
    let left = peer.resync_left_bytes as f64;
    out.gauge("replicator_resync_remaining_bytes", help, labels.clone(), left);
    for (kind, sent, received) in [
        ("resync", peer.sent_bytes.0, peer.received_bytes.0),
        ("write", peer.sent_bytes.1, peer.received_bytes.1),
    ] {
        let labels = with(labels, "kind", kind);
        out.counter("replicator_peer_sent_bytes", "Payload sent.", labels.clone(), sent);
        out.counter("replicator_peer_received_bytes", "Payload received.", labels, received);
    }
    let help = "Frames sent and not yet acknowledged.";
    out.gauge("replicator_peer_frames_in_flight", help, labels.clone(), peer.in_flight.0 as f64);
    let help = "Bytes sent and not yet acknowledged.";
    out.gauge("replicator_peer_bytes_in_flight", help, labels.clone(), peer.in_flight.1 as f64);
}

fn verify(out: &mut Families, labels: &Labels, found: &VerifyReport) {
    if found.last_end_unix_ms > 0 {
        let help = "When a verify of this copy came to its end last, in seconds since 1970.";
        let at = seconds(found.last_end_unix_ms);
        out.gauge("replicator_verify_last_end_time_seconds", help, labels.clone(), at);
    }
    let is_running = found.state == "running";
    let help = "Whether a verify of this copy is under way.";
    out.flag("replicator_verify_running", help, labels.clone(), is_running);
    let (left, bad) = (found.total_bytes.saturating_sub(found.checked_bytes), found.is_bad());
    let help = "Bytes that a verify under way has still to compare.";
    let left = if is_running { left as f64 } else { 0.0 };
    out.gauge("replicator_verify_remaining_bytes", help, labels.clone(), left);
    let help = "Blocks of 4096 bytes that the newest verify found to differ, unless repaired.";
    let differing = if bad { found.differing_blocks as f64 } else { 0.0 };
    out.gauge("replicator_verify_differing_blocks", help, labels.clone(), differing);
    let unreadable = found.unreadable_here_bytes + found.unreadable_there_bytes;
    let unreadable = if bad { unreadable as f64 } else { 0.0 };
    let help = "Bytes that the newest verify could not read on either side, unless repaired.";
    out.gauge("replicator_verify_unreadable_bytes", help, labels.clone(), unreadable);
}

fn data_loop(out: &mut Families, resource: &str, status: &LoopStatus) {
    let labels = named(resource);
    let counters = &status.counters;
    for (kind, count, took) in [
        ("read", counters.reads, &counters.client_read),
        ("write", counters.writes, &counters.client_write),
        ("flush", counters.flushes, &counters.client_flush),
        ("zero", counters.zeroes, &counters.client_zero),
    ] {
        let labels = with(&labels, "operation", kind);
        out.counter("replicator_requests", "Client requests answered.", labels.clone(), count);
        let help = "From a client's request to its reply, end to end.";
        out.durations("replicator_request_duration_seconds", help, labels, took);
    }
    for (kind, took) in [
        ("read", &counters.disk_read),
        ("write", &counters.disk_write),
        ("flush", &counters.disk_flush),
    ] {
        let labels = with(&labels, "operation", kind);
        let help = "Operations of the local disk alone.";
        out.durations("replicator_disk_duration_seconds", help, labels, took);
    }
    let help = "From a frame that was sent to its acknowledgement by the peer.";
    for (peer, took) in status.core.peers.iter().zip(&counters.peer_ack) {
        let labels = with(&labels, "peer", &peer.node);
        out.durations("replicator_peer_acknowledgement_seconds", help, labels, took);
    }
    for (kind, bytes) in [("read", counters.read_bytes), ("write", counters.written_bytes)] {
        let labels = with(&labels, "operation", kind);
        out.counter("replicator_request_bytes", "Payload of client requests.", labels, bytes);
    }
    let help = "Client requests answered with an error.";
    out.counter("replicator_request_errors", help, labels.clone(), counters.errors);
    let help = "Operations of the local disk that failed.";
    out.counter("replicator_disk_errors", help, labels, counters.disk_errors);
}

/// How often this node took an office, and how long that took.
fn offices_taken(out: &mut Families, taken: &Taken) {
    for ((resource, cause), took) in taken {
        let labels = with(&named(resource), "cause", cause);
        let help = "How often this node became primary since its daemon started, by cause.";
        out.counter("replicator_failovers", help, labels.clone(), took.count());
        let help = "How long clients had no answer, where that is known; else how long becoming \
                    primary took.";
        let name = "replicator_failover_duration_seconds";
        out.durations_by(name, help, labels, (took, &PAUSES_US));
    }
}

/// What changed in the register, and how long changes of office took, by the history of this node.
fn changes_of_office(out: &mut Families, entries: &[HistoryEntry]) {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut newest: BTreeMap<&str, &HistoryEntry> = BTreeMap::new();
    for entry in entries.iter().filter(|it| !it.resource.is_empty() && it.to_bytes.is_none()) {
        *counts.entry((&entry.resource, &entry.what)).or_default() += 1;
        if entry.what == "takeover" {
            newest.insert(&entry.resource, entry);
        }
    }
    for ((resource, what), count) in counts {
        let labels = with(&named(resource), "change", what);
        let help = "Changes of the register that this node remembers, by kind.";
        out.gauge("replicator_register_changes", help, labels, count as f64);
    }
    for (resource, entry) in newest {
        let help = "When the last takeover was, in seconds since 1970.";
        let at = seconds(entry.at_unix_ms);
        out.gauge("replicator_last_takeover_time_seconds", help, named(resource), at);
        for (phase, took_ms) in &entry.phases {
            let labels = with(&named(resource), "phase", phase);
            let help = "How long each part of the last takeover took on this node.";
            out.gauge("replicator_last_takeover_phase_seconds", help, labels, seconds(*took_ms));
        }
    }
}

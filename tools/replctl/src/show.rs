//! Reports in words, for a terminal of 100 columns.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use replicator::cluster::OfficeReport;
use replicator::config::{ClusterConfig, NodeConfig};
use replicator::control::RefusalReport;
use replicator::dump::Dump;
use replicator::report::{
    EventReport, GuardReport, PeerReport, ReplicaReport, ResourceReport, StatusReport, WaitReport,
};

use crate::show_cluster;
use crate::show_fence;
use crate::show_services;
use crate::verify;

/// The size of a volume, with what there is to say of its growth.
fn size_of(replica: &ReplicaReport) -> String {
    let size = bytes(replica.size_bytes);
    match (replica.resizing_to, replica.making_room_to) {
        (Some(to), _) => format!("{size}, growing to {}", bytes(to)),
        (None, Some(to)) => {
            format!("{size}, room for {}, zeroing up to {}", bytes(replica.room_bytes), bytes(to))
        }
        _ if replica.added_bytes > 0 => {
            format!("{size}, its disk has {} more: replctl resize", bytes(replica.added_bytes))
        }
        _ if replica.room_bytes > replica.size_bytes => {
            format!("{size}, room for {}", bytes(replica.room_bytes))
        }
        _ => size,
    }
}

/// A size with a unit.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", units[unit]) }
}

/// A span of time in the unit that fits.
pub fn span(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..60 => format!("{}.{} s", s, ms % 1000 / 100),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// How long ago.
pub fn ago(at_unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} ago", span((now.as_millis() as u64).saturating_sub(at_unix_ms)))
}

/// A refusal: what, under which rule, what now.
pub fn refusal(refusal: &RefusalReport) -> String {
    // `R5d`, `L6`; others, as `operator` or `reach`, are in no list.
    let is_listed = refusal.rule.starts_with(['R', 'L']);
    let rule = match refusal.rule.as_str() {
        "" => String::new(),
        rule if is_listed => format!("  (rule {rule} of SAFETY.md)"),
        rule => format!("  (rule: {rule})"),
    };
    let mut text = format!("refused: {}{rule}", refusal.why);
    if !refusal.next.is_empty() {
        let _ = write!(text, "\n  next: {}", refusal.next);
    }
    text
}

/// One event in one line.
pub fn event(event: &EventReport) -> String {
    let whose = if event.resource.is_empty() { "node" } else { &event.resource };
    format!("{:>10}  {whose}: {}", ago(event.at_unix_ms), event.text)
}

/// A whole status; with an earlier one also how fast a resync goes.
pub fn status(report: &StatusReport, before: Option<(&StatusReport, Duration)>) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cluster {} · node {} · running for {} · {}",
        report.cluster,
        report.node,
        span(report.up_ms),
        report.version
    );
    let cluster = report.cluster_state.as_ref();
    if let Some(cluster) = cluster {
        show_cluster::head(&mut out, cluster);
    }
    for resource in &report.resources {
        let earlier = before.and_then(|(report, pause)| {
            let same = report.resources.iter().find(|it| it.name == resource.name)?;
            Some((same, pause))
        });
        let office = cluster.and_then(|it| it.resources.iter().find(|o| o.name == resource.name));
        one_resource(&mut out, resource, &report.node, office, earlier);
    }
    if let Some(cluster) = cluster {
        let is_here =
            |office: &&OfficeReport| report.resources.iter().any(|it| it.name == office.name);
        for office in cluster.resources.iter().filter(|office| !is_here(office)) {
            show_cluster::office_alone(&mut out, office);
        }
        show_cluster::nodes(&mut out, cluster);
        let _ = writeln!(out, "last change: {}", cluster.last_change);
    }
    if let Some(fence) = &report.fence {
        show_fence::status(&mut out, fence);
    }
    if let Some(guard) = &report.guard {
        let _ = writeln!(out, "guard: {}", describe_guard(guard));
    }
    for refused in &report.refused_greetings {
        let _ = writeln!(
            out,
            "refused greetings: {} {} (last: {})",
            refused.count, refused.reason, refused.last
        );
    }
    for warning in &report.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// The guard and the watchdog in one line.
fn describe_guard(guard: &GuardReport) -> String {
    let watchdog = &guard.watchdog;
    let restarts = match guard.restarts {
        0 => String::new(),
        1 => ", started again once".to_owned(),
        count => format!(", started again {count} times"),
    };
    let watched = if watchdog.is_armed {
        format!("watchdog {} armed, {}", watchdog.device, watchdog.why)
    } else {
        "no watchdog".to_owned()
    };
    format!("process {}{restarts}; {watched}", guard.pid)
}

fn one_resource(
    out: &mut String,
    resource: &ResourceReport,
    node: &str,
    office: Option<&OfficeReport>,
    earlier: Option<(&ResourceReport, Duration)>,
) {
    match &resource.replica {
        None => {
            let why = if resource.why.is_empty() { "" } else { ": " };
            let since = span(resource.state_ms);
            let _ = writeln!(
                out,
                "{} · {} for {since}{why}{}",
                resource.name, resource.state, resource.why
            );
            if let Some(wait) = &resource.start_waits {
                let _ = writeln!(out, "{}", wait_line(wait));
            }
        }
        Some(replica) => {
            let in_sync = if replica.in_sync.is_empty() {
                "nobody".to_owned()
            } else {
                replica.in_sync.join(" ")
            };
            let _ = writeln!(
                out,
                "{} · generation {} · {} · in sync: {in_sync}",
                resource.name,
                replica.generation,
                size_of(replica)
            );
            own_line(out, resource, replica, node);
            if let Some(office) = office {
                show_cluster::office(out, office);
            }
            for peer in &replica.peers {
                let _ = writeln!(out, "{}", peer_line(peer, earlier));
            }
            for verify in &resource.verifies {
                let _ = writeln!(out, "  {}", verify::line(verify, earlier));
            }
            if let Some(services) = &resource.services {
                show_services::services(out, services);
            }
            for wait in replica.waits.iter().take(3) {
                let _ = writeln!(out, "{}", wait_line(wait));
            }
        }
    }
    for client in &resource.clients {
        let held = if client.held_back_by.is_empty() {
            String::new()
        } else {
            format!(", held back by {}", client.held_back_by)
        };
        let _ = writeln!(out, "  client {} · {} requests{held}", client.origin, client.requests);
    }
    for warning in &resource.warnings {
        let _ = writeln!(out, "  warning: {warning}");
    }
    if let Some(last) = resource.events.last() {
        let _ = writeln!(out, "last: {} ({})", last.text, ago(last.at_unix_ms));
    }
    let _ = writeln!(out, "verdict: {}", resource.verdict.text);
}

/// For whom, for how long already, until when, and what happens then.
fn wait_line(wait: &WaitReport) -> String {
    let mut line = format!("  waits for {} (since {}", wait.what, span(wait.since_ms));
    match wait.limit_ms {
        Some(limit_ms) if wait.party == "held_back" => {
            let _ = write!(line, ", for {} in all", span(limit_ms));
        }
        Some(limit_ms) => {
            let _ = write!(line, ", given up after {}", span(limit_ms));
        }
        None => {}
    }
    if !wait.then.is_empty() {
        let then = if wait.limit_ms.is_some() { ", then " } else { "; " };
        let _ = write!(line, "{then}{}", wait.then);
    }
    line + ")"
}

/// Peers that were dropped too often lately: why each is not brought up to date, and until when.
pub fn held_back(out: &mut String, report: &StatusReport, resource: Option<&str>) {
    for it in report.resources.iter().filter(|it| resource.is_none_or(|name| it.name == name)) {
        for wait in report.held_back(&it.name) {
            let line = wait_line(wait);
            let _ = writeln!(out, "{}: {} {} (P6)", it.name, report.node, line.trim_start());
        }
    }
}

fn own_line(out: &mut String, resource: &ResourceReport, replica: &ReplicaReport, node: &str) {
    let device = match &resource.device {
        Some(device) if device.state == "attached" => {
            let users = device.users.len();
            let used = if users == 0 { String::new() } else { format!(" ({users} users)") };
            format!("  {}{used}", device.path)
        }
        Some(device) => format!("  {} {}", device.path, device.state),
        None => String::new(),
    };
    let data = replica.data.replace('_', " ");
    let log = format!("log {}/{}", replica.log_extents.0, replica.log_extents.1);
    let _ = writeln!(out, "  {node:<8} {:<10} {data:<12} {log}{device}", replica.role);
    if let Some(device) = &resource.device {
        for user in &device.users {
            let _ = writeln!(out, "           in use: {user}");
        }
    }
}

fn peer_line(peer: &PeerReport, earlier: Option<(&ResourceReport, Duration)>) -> String {
    let role = if peer.role.is_empty() { "?" } else { &peer.role };
    let dirty = if peer.dirty_bytes == 0 {
        "0 dirty".to_owned()
    } else {
        format!("{} dirty", bytes(peer.dirty_bytes))
    };
    let mut line = format!("  {:<8} {role:<10} {:<12} {dirty}", peer.node, peer.state);
    if peer.resync_total_bytes > 0 {
        let total = peer.resync_total_bytes;
        let done = total - peer.resync_left_bytes.min(total);
        let _ = write!(line, " · resync {} %", done * 100 / total);
        let rate = earlier.and_then(|(before, pause)| rate_of(peer, before, pause));
        if let Some(rate) = rate {
            let left_s = peer.resync_left_bytes / rate;
            let _ = write!(line, " · {}/s · {} left", bytes(rate), span(left_s * 1000));
        }
    }
    if !peer.why.is_empty() {
        let _ = write!(line, " · {}", peer.why);
    }
    line
}

/// Bytes a second that the resync has done since the earlier report; none when it stands still.
fn rate_of(peer: &PeerReport, before: &ResourceReport, pause: Duration) -> Option<u64> {
    let same = before.replica.as_ref()?.peers.iter().find(|it| it.node == peer.node)?;
    let copied = same.resync_left_bytes.checked_sub(peer.resync_left_bytes)?;
    let rate = (copied as f64 / pause.as_secs_f64()) as u64;
    (rate > 0).then_some(rate)
}

/// The meaning of a configuration file.
pub fn config(config: &ClusterConfig, here: Option<&NodeConfig>, problems: &[String]) -> String {
    let mut out = format!("{}: cluster {}\n", config.path.display(), config.cluster);
    for node in &config.nodes {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        let kind = if node.witness { "witness" } else { "data node" };
        let mark = if here.is_some_and(|here| here.name == node.name) { " (this one)" } else { "" };
        let _ = writeln!(out, "  node {}{mark}: {kind}, {}", node.name, addresses.join(", "));
        if !node.witness {
            let nbd: Vec<String> = node.nbd_listen.iter().map(ToString::to_string).collect();
            let tcp = if nbd.is_empty() { "no TCP".to_owned() } else { nbd.join(", ") };
            let _ = writeln!(
                out,
                "    control {}, NBD {} and {tcp}, key {}",
                node.control_socket.display(),
                node.nbd_socket.display(),
                node.key.display()
            );
        }
        if let Some(fence) = &node.fence {
            let by = if config.fences_by_itself { "by itself" } else { "by hand" };
            let _ = writeln!(
                out,
                "    fenced by {} {by}, after {} of silence, at most {} a call",
                fence.label(),
                span(fence.fence_after_ms),
                span(fence.timeout_ms)
            );
        }
    }
    for resource in &config.resources {
        let _ = writeln!(
            out,
            "  resource {}: attach {:?}, log of {} extents, pool of {}",
            resource.name,
            resource.attach,
            resource.log_extents,
            bytes(resource.pool_bytes as u64)
        );
        for copy in &resource.copies {
            let place = match &copy.metadata {
                None => "internal".to_owned(),
                Some(path) => path.display().to_string(),
            };
            let _ =
                writeln!(out, "    on {}: {}, metadata {place}", copy.node, copy.disk.display());
        }
        let services: Vec<&str> =
            resource.services.specs.iter().map(|spec| spec.name.as_str()).collect();
        if !services.is_empty() {
            let _ = writeln!(out, "    services: {}", services.join(" · "));
        }
    }
    for problem in problems {
        let _ = writeln!(out, "  warning: {problem}");
    }
    let verdict = if problems.is_empty() { "good" } else { "usable, with warnings" };
    let _ = writeln!(out, "verdict: {verdict}");
    out
}

/// The metadata of a replica.
pub fn dump(dump: &Dump) -> String {
    let mut out = String::new();
    let or_nobody = |id: &str| if id.is_empty() { "nobody".to_owned() } else { id.to_owned() };
    let register = &dump.register;
    let flags = if dump.flags.is_empty() { "none".to_owned() } else { dump.flags.join(", ") };
    let copies = if dump.single_copy { "one copy only: crashed or damaged" } else { "both copies" };
    let hot = match dump.log.hot_extents {
        Some(count) => format!("{count} extents may differ"),
        None => "not readable: every extent may differ".to_owned(),
    };
    let lines = [
        ("metadata", format!("{}, sequence {} ({copies})", dump.path.display(), dump.sequence)),
        ("resource", format!("{} ({})", dump.resource, dump.resource_id)),
        ("replica", format!("{} on {}", dump.replica, dump.node)),
        ("last boot", dump.incarnation.clone()),
        ("data", format!("{} in blocks of {} bytes", bytes(dump.data_bytes), dump.block_bytes)),
        (
            "region",
            format!(
                "{} at byte {}, {}",
                bytes(dump.region.1),
                dump.region.0,
                if dump.internal { "internal" } else { "external" }
            ),
        ),
        ("flags", flags),
        ("generation", format!("{} (tenure {})", register.generation, register.tenure)),
        ("accepted", format!("tenure {}, coming generation {}", dump.tenure, dump.coming)),
        ("primary", or_nobody(&register.primary)),
        ("authority", or_nobody(&register.authority)),
        ("in sync", or_nobody(&register.set.join(" "))),
        ("released", if register.released_clean { "clean" } else { "not clean" }.to_owned()),
        ("log", format!("{} slots, epoch {}: {hot}", dump.log.slots, dump.log.epoch)),
    ];
    for (name, value) in lines {
        let _ = writeln!(out, "{name:<11} {value}");
    }
    for peer in &dump.peers {
        let all = if peer.all_dirty { " (a full resync is due)" } else { "" };
        let _ = writeln!(
            out,
            "peer {:<6} replica {}, base {}, {} dirty blocks = {}{all}",
            peer.node,
            or_nobody(&peer.replica),
            peer.base,
            peer.dirty_blocks,
            bytes(peer.dirty_bytes)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_have_the_unit_that_fits() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(span(12), "12 ms");
        assert_eq!(span(1_240), "1.2 s");
        assert_eq!(span(3 * 86_400_000), "3 d");
    }

    #[test]
    fn a_refusal_names_rule_and_next_step() {
        let text = refusal(&RefusalReport {
            code: "authority_unreachable".into(),
            rule: "R2".into(),
            why: "beta cannot be asked".into(),
            next: "wait for it".into(),
        });
        assert_eq!(
            text,
            "refused: beta cannot be asked  (rule R2 of SAFETY.md)\n  next: wait for it"
        );
    }
}

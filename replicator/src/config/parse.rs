//! From the text of the file to [`ClusterConfig`]: which keys there are, their ranges, and the
//! rules between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use failover::core::cluster::RESOURCES_MAX;
use failover::guard::WatchdogWish;
use failover::http::{HttpConfig, Network};
use replicator_core::{Span, Timing, limits};
use toml::de::DeTable;

use super::problem::{Problem, place, suggestion};
use super::reader::{Placed, Problems, Section, absolute};
use super::watchdog::watchdog;
use super::{
    AttachWish, ClusterConfig, CopyConfig, NodeConfig, ResourceConfig, TestBackingWish, defaults,
    etcd, fence, services,
};
use crate::hooks::{EVENTS, HookConfig};

/// Data nodes that this version supports: so many were tried in every order (SAFETY.md R13).
const DATA_NODES_MAX: usize = 3;
const NAME_MAX: usize = 63;
/// Below, the scheduling of a busy machine lets leases lapse.
const LEASE_RANGE_MS: RangeInclusive<u64> = 200..=60_000;

/// Paths and ports of the top level: what a node has unless it says otherwise.
struct NodeDefaults {
    key: PathBuf,
    state_dir: PathBuf,
    run_dir: PathBuf,
    device_dir: PathBuf,
    port: u16,
    nbd_port: u16,
    http_port: u16,
    http_allow: Vec<Network>,
    watchdog: WatchdogWish,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<ClusterConfig, Vec<Problem>> {
    let document = DeTable::parse(text).map_err(|error| {
        let what = error.message().to_owned();
        vec![Problem { span: error.span().unwrap_or(0..0), what, help: String::new() }]
    })?;
    let problems = Problems::default();
    let top = Section::new("the top level".into(), 0..0, document.get_ref(), &problems);
    let unusual = Problems::default();
    let config = top_level(path, top, &problems, &unusual);
    let problems = problems.into_sorted();
    match config {
        Some(mut config) if problems.is_empty() => {
            let warnings = unusual.into_sorted();
            let lines = warnings.iter().map(|warning| warning.one_line(path, text));
            config.warnings.extend(lines);
            if let Some(etcd) = &mut config.etcd {
                etcd.locate(|span| place(path, text, span));
            }
            Ok(config)
        }
        _ => Err(problems),
    }
}

fn top_level(
    path: &Path,
    mut top: Section<'_>,
    problems: &Problems,
    unusual: &Problems,
) -> Option<ClusterConfig> {
    let cluster = top.string("cluster");
    if cluster.is_none() {
        let help = "write cluster = \"NAME\" in the first line; all nodes must name the same";
        top.problem(0..0, "`cluster` is missing", help);
    }
    if let Some(name) = &cluster {
        check_name(problems, "a cluster", name);
    }
    let node_defaults = NodeDefaults {
        key: top.path("key").unwrap_or_else(|| defaults::KEY.into()),
        state_dir: top.path("state_dir").unwrap_or_else(|| defaults::STATE_DIR.into()),
        run_dir: top.path("run_dir").unwrap_or_else(|| defaults::RUN_DIR.into()),
        device_dir: top.path("device_dir").unwrap_or_else(|| defaults::DEVICE_DIR.into()),
        port: port(&mut top, "port").unwrap_or(defaults::PORT),
        nbd_port: port(&mut top, "nbd_port").unwrap_or(defaults::NBD_PORT),
        http_port: http_port(&mut top).unwrap_or(defaults::HTTP_PORT),
        http_allow: networks(&mut top, "http_allow").unwrap_or_default(),
        watchdog: watchdog(&mut top, &WatchdogWish::default()),
    };
    let lease_ms = top.number("lease_ms", LEASE_RANGE_MS);
    let chosen = etcd::register(&mut top, cluster.as_ref().map_or("", |name| &name.value));
    let lease_ms = chosen.lease_ms.or(lease_ms).unwrap_or(defaults::LEASE_MS);
    let fences_by_itself = top.word("fencing", &["auto", "manual"]) == Some("auto");
    let hooks = top.section("hooks").and_then(hooks);
    let timing = match top.section("timing") {
        Some(section) => timing(section, default_timing()),
        None => default_timing(),
    };

    let mut warnings = Vec::new();
    let mut nodes = Vec::new();
    for (name, section) in top.named_sections("node") {
        check_name(problems, "a node", &name);
        if let Some(node) = node(&name, section, &node_defaults, problems) {
            let data_nodes = nodes.iter().filter(|node: &&NodeConfig| !node.witness).count();
            if !node.witness && data_nodes == DATA_NODES_MAX {
                problems.add(
                    name.span.clone(),
                    format!("`{}` is a fourth data node; this version supports three", node.name),
                    "remove it or make it a witness",
                );
            }
            nodes.push(node);
        }
    }
    if nodes.iter().all(|node| node.witness) {
        problems.add(0..0, "there is no node with disks", "write [node.NAME] with its address");
    }
    check_addresses(&nodes, &mut warnings);
    if chosen.etcd.is_some() {
        etcd::check_nodes(&nodes, &top, top.key_span("register"));
    }
    let has_majority = chosen.etcd.is_some() || super::has_voters(&nodes);
    warnings.extend(fence::warnings(&nodes, has_majority, fences_by_itself));

    let names = |is_witness: bool| -> Vec<&str> {
        let wanted = nodes.iter().filter(|node| node.witness == is_witness);
        wanted.map(|node| node.name.as_str()).collect()
    };
    let (data_nodes, witnesses) = (names(false), names(true));
    let mut resources = Vec::new();
    let mut owners = BTreeMap::new();
    for (name, section) in top.named_sections("resource") {
        check_name(problems, "a resource", &name);
        if let Some(resource) =
            resource(&name, section, (&data_nodes, &witnesses), timing, problems)
        {
            check_disks(&resource, &name, &mut owners, problems);
            if resources.len() == RESOURCES_MAX {
                let what = format!("`{}` is one resource more than {RESOURCES_MAX}", resource.name);
                problems.add(name.span.clone(), what, "put it into another cluster");
            }
            resources.push(resource);
        }
    }
    top.finish();
    services::check(&nodes, &resources, problems, unusual);
    let cluster = cluster?.value;
    let path = path.to_owned();
    let etcd = chosen.etcd;
    Some(ClusterConfig {
        path,
        cluster,
        lease_ms,
        etcd,
        fences_by_itself,
        nodes,
        resources,
        hooks,
        warnings,
    })
}

/// Names appear in paths, NBD exports and commands: letters, digits, `-`, `_` and `.`.
fn check_name(problems: &Problems, whose: &str, name: &Placed<String>) {
    let word = &name.value;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    if word.len() > NAME_MAX || !starts_well || !word.chars().all(good) {
        let what = format!("{whose} cannot be called {word:?}");
        let help = format!(
            "a name has 1 to {NAME_MAX} letters (a-z, A-Z), digits, '-', '_' or '.', and begins \
             with a letter or digit"
        );
        problems.add(name.span.clone(), what, help);
    }
}

fn port(section: &mut Section<'_>, key: &'static str) -> Option<u16> {
    section.number(key, 1..=65535).map(|port| port as u16)
}

/// 0 switches HTTP off.
fn http_port(section: &mut Section<'_>) -> Option<u16> {
    section.number("http_port", 0..=65535).map(|port| port as u16)
}

fn hooks(mut section: Section<'_>) -> Option<HookConfig> {
    let command = section.path("command");
    if command.is_none() {
        let help = "write command = \"/path/to/program\"; it gets the event in its environment";
        section.problem(section.span.clone(), "[hooks] has no `command`", help);
    }
    let mut events = Vec::new();
    for event in section.strings("events").unwrap_or_default() {
        match EVENTS.iter().find(|known| **known == event.value) {
            Some(known) => events.push((*known).to_owned()),
            None => {
                let help = match suggestion(&event.value, &EVENTS) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None => format!("the events are: {}", EVENTS.join(", ")),
                };
                let what = format!("there is no event \"{}\"", event.value);
                section.problem(event.span, what, help);
            }
        }
    }
    let timeout_ms =
        section.number("timeout_ms", 100..=600_000).unwrap_or(defaults::HOOK_TIMEOUT_MS);
    section.finish();
    let timeout = Duration::from_millis(timeout_ms);
    Some(HookConfig { command: command?, events, timeout })
}

fn networks(section: &mut Section<'_>, key: &'static str) -> Option<Vec<Network>> {
    let texts = section.strings(key)?;
    let network = |text: Placed<String>| {
        let network = Network::parse(&text.value);
        if network.is_none() {
            let what = format!("\"{}\" is no network", text.value);
            section.problem(text.span, what, "write 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32");
        }
        network
    };
    Some(texts.into_iter().filter_map(network).collect())
}

fn node(
    name: &Placed<String>,
    mut section: Section<'_>,
    from: &NodeDefaults,
    problems: &Problems,
) -> Option<NodeConfig> {
    let witness = section.boolean("witness").unwrap_or(false);
    let peer_port = port(&mut section, "port").unwrap_or(from.port);
    let nbd_port = port(&mut section, "nbd_port").unwrap_or(from.nbd_port);
    let http_port = http_port(&mut section).unwrap_or(from.http_port);
    let http_listen = socket_addresses(&mut section, "http_address", http_port, problems);
    let http_allow = networks(&mut section, "http_allow").unwrap_or(from.http_allow.clone());
    let addresses = socket_addresses(&mut section, "address", peer_port, problems);
    if addresses.as_ref().is_none_or(Vec::is_empty) {
        let what = format!("`address` is missing in {}", section.name);
        let help = "write address = \"192.0.2.1\", or a list with the best address first";
        section.problem(name.span.clone(), what, help);
    }
    let listen = socket_addresses(&mut section, "listen", peer_port, problems);
    let nbd_listen = socket_addresses(&mut section, "nbd_address", nbd_port, problems);
    let listen = listen.or_else(|| addresses.clone()).unwrap_or_default();
    let http_listen = http_listen.unwrap_or_else(|| {
        let mut own: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        own.dedup();
        own.into_iter().map(|ip| SocketAddr::new(ip, http_port)).collect()
    });
    let run_dir = section.path("run_dir").unwrap_or_else(|| from.run_dir.clone());
    let node = NodeConfig {
        name: name.value.clone(),
        witness,
        listen,
        http: HttpConfig {
            listen: http_listen.into_iter().filter(|at| at.port() != 0).collect(),
            allow: http_allow,
        },
        addresses: addresses.unwrap_or_default(),
        nbd_listen: nbd_listen.unwrap_or_default(),
        nbd_socket: section.path("nbd_socket").unwrap_or_else(|| run_dir.join("nbd.sock")),
        control_socket: section
            .path("control_socket")
            .unwrap_or_else(|| run_dir.join("control.sock")),
        key: section.path("key").unwrap_or_else(|| from.key.clone()),
        state_dir: section.path("state_dir").unwrap_or_else(|| from.state_dir.clone()),
        device_dir: section.path("device_dir").unwrap_or_else(|| from.device_dir.clone()),
        run_dir,
        fence: fence::fence(&name.value, &mut section, witness),
        watchdog: watchdog(&mut section, &from.watchdog),
    };
    section.finish();
    Some(node)
}

/// IP addresses with an optional port: `192.0.2.1`, `192.0.2.1:7788`, `2001:db8::1`,
/// `[2001:db8::1]:7788`.
fn socket_addresses(
    section: &mut Section<'_>,
    key: &'static str,
    port: u16,
    problems: &Problems,
) -> Option<Vec<SocketAddr>> {
    let texts = section.strings(key)?;
    let mut addresses = Vec::new();
    for text in texts {
        let bare = text.value.trim_start_matches('[').trim_end_matches(']');
        let parsed = match bare.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, port)),
            Err(_) => text.value.parse::<SocketAddr>().ok(),
        };
        match parsed {
            Some(address) if addresses.contains(&address) => {
                problems.add(text.span, format!("{address} is named twice"), "");
            }
            Some(address) => addresses.push(address),
            None => problems.add(
                text.span,
                format!("\"{}\" is not an IP address", text.value),
                "write 192.0.2.1, 192.0.2.1:7788, 2001:db8::1 or [2001:db8::1]:7788; host names \
                 are not taken, because a failover must not wait for a name server",
            ),
        }
    }
    Some(addresses)
}

/// Two nodes with one address are a mistake that shows only as "the other end is alpha too".
fn check_addresses(nodes: &[NodeConfig], warnings: &mut Vec<String>) {
    for (index, node) in nodes.iter().enumerate() {
        for other in &nodes[index + 1..] {
            if let Some(shared) = node.addresses.iter().find(|it| other.addresses.contains(it)) {
                warnings
                    .push(format!("{} and {} have one address: {shared}", node.name, other.name));
            }
        }
    }
}

fn resource(
    name: &Placed<String>,
    mut section: Section<'_>,
    (data_nodes, witnesses): (&[&str], &[&str]),
    timing_default: Timing,
    problems: &Problems,
) -> Option<ResourceConfig> {
    let disks = per_node(&mut section, "disk", data_nodes, problems);
    let metadata = per_node(&mut section, "metadata", data_nodes, problems);
    let mut copies = Vec::new();
    for node in data_nodes {
        let Some(disk) = disks.get(*node) else {
            let what = format!("{} has no `disk` for node {node}", section.name);
            let help = format!("write disk = \"/dev/...\" for all nodes, or disk.{node} = \"...\"");
            section.problem(name.span.clone(), what, help);
            continue;
        };
        let disk_path = absolute(problems, "disk", disk);
        let metadata = match metadata.get(*node) {
            Some(place) if place.value != "internal" => absolute(problems, "metadata", place),
            _ => None,
        };
        if let Some(disk) = disk_path {
            copies.push(CopyConfig { node: (*node).to_owned(), disk, metadata });
        }
    }
    let services = services::services(&mut section, data_nodes, witnesses);
    let timing = match section.section("timing") {
        Some(own) => timing(own, timing_default),
        None => timing_default,
    };
    let log_range = limits::LOG_EXTENTS_RANGE;
    let log_range = u64::from(*log_range.start())..=u64::from(*log_range.end());
    let resource = ResourceConfig {
        name: name.value.clone(),
        copies,
        log_extents: section
            .number("log_extents", log_range)
            .map_or(limits::LOG_EXTENTS_DEFAULT, |extents| extents as u16),
        attach: match section.word("attach", &["auto", "nbd", "fuse", "none"]) {
            Some("nbd") => AttachWish::Nbd,
            Some("fuse") => AttachWish::Fuse,
            Some("none") => AttachWish::None,
            _ => AttachWish::Auto,
        },
        confirms_reads: section.word("reads", &["lease", "confirmed"]) == Some("confirmed"),
        nbd: section.boolean("nbd").unwrap_or(true),
        pool_bytes: (section.number("pool_mib", 24..=1024).unwrap_or(defaults::POOL_MIB) << 20)
            as usize,
        client_timeout_ms: section
            .number("client_timeout_ms", 1_000..=3_600_000)
            .unwrap_or(defaults::CLIENT_TIMEOUT_MS),
        services,
        timing,
        test_backing: match section.word("test_backing", &["normal", "volatile", "null"]) {
            Some("volatile") => TestBackingWish::Volatile,
            Some("null") => TestBackingWish::Null,
            _ => TestBackingWish::Normal,
        },
        record: None,
    };
    section.finish();
    Some(resource)
}

/// A value for all nodes (`disk = "..."`) or one for each (`disk.alpha = "..."`).
fn per_node(
    section: &mut Section<'_>,
    key: &'static str,
    data_nodes: &[&str],
    problems: &Problems,
) -> BTreeMap<String, Placed<String>> {
    let mut found = BTreeMap::new();
    let Some(value) = section.raw(key) else { return found };
    let Some(table) = value.get_ref().as_table() else {
        if let Some(text) = value.get_ref().as_str() {
            for node in data_nodes {
                let placed = Placed { value: text.to_owned(), span: value.span() };
                found.insert((*node).to_owned(), placed);
            }
        } else {
            let what = format!("`{key}` must be a string, or a string for each node");
            problems.add(
                value.span(),
                what,
                format!("write {key} = \"...\" or {key}.NODE = \"...\""),
            );
        }
        return found;
    };
    for (node, value) in table.iter() {
        let name: &str = node.get_ref();
        if !data_nodes.contains(&name) {
            let help = match super::suggestion(name, data_nodes) {
                Some(meant) => format!("did you mean `{key}.{meant}`?"),
                None => format!("the data nodes are: {}", data_nodes.join(", ")),
            };
            problems.add(node.span(), format!("`{key}.{name}` names no data node"), help);
        }
        match value.get_ref().as_str() {
            Some(text) => {
                let placed = Placed { value: text.to_owned(), span: value.span() };
                found.insert(name.to_owned(), placed);
            }
            None => problems.add(value.span(), format!("`{key}.{name}` must be a string"), ""),
        }
    }
    found
}

/// One disk can belong to one resource and one node only; nodes on one machine would else write
/// to the same file.
fn check_disks(
    resource: &ResourceConfig,
    name: &Placed<String>,
    owners: &mut BTreeMap<(String, PathBuf), String>,
    problems: &Problems,
) {
    for copy in &resource.copies {
        for path in [Some(&copy.disk), copy.metadata.as_ref()].into_iter().flatten() {
            let owner = format!("resource {}", resource.name);
            if let Some(earlier) = owners.insert((copy.node.clone(), path.clone()), owner) {
                let what = format!("{} is used twice on node {}", path.display(), copy.node);
                let help = format!("{earlier} has it already; every disk has one resource");
                problems.add(name.span.clone(), what, help);
            }
        }
    }
}

/// Clients are to wait for less than a second when only the link between the data nodes is cut, so
/// a peer is missed sooner than the core alone would.
fn default_timing() -> Timing {
    Timing {
        peer_silence: Span::from_ms(700),
        ping_interval: Span::from_ms(200),
        ..Timing::default()
    }
}

fn timing(mut section: Section<'_>, from: Timing) -> Timing {
    let mut take =
        |key, range, default: Span| section.number(key, range).map_or(default, Span::from_ms);
    let mut timing = Timing {
        peer_silence: take("peer_silence_ms", 100..=60_000, from.peer_silence),
        ping_interval: take("ping_interval_ms", 10..=30_000, from.ping_interval),
        ack_limit: take("ack_limit_ms", 500..=600_000, from.ack_limit),
        drain_limit: take("drain_limit_ms", 1_000..=600_000, from.drain_limit),
        join_grace: take("join_grace_ms", 0..=60_000, from.join_grace),
        power_loss_wait: from.power_loss_wait,
        demote_after: take("demote_after_ms", 1_000..=600_000, from.demote_after),
        drops_window: take("drops_window_ms", 1_000..=86_400_000, from.drops_window),
        rejoin_delay: take("rejoin_delay_ms", 0..=600_000, from.rejoin_delay),
        rejoin_delay_max: take("rejoin_delay_max_ms", 0..=3_600_000, from.rejoin_delay_max),
    };
    let forever = section.raw("power_loss_wait_ms").and_then(|value| value.get_ref().as_str());
    if forever == Some("forever") {
        timing.power_loss_wait = Span(u64::MAX);
    } else if let Some(ms) = section.number("power_loss_wait_ms", 0..=86_400_000) {
        timing.power_loss_wait = Span::from_ms(ms);
    }
    if timing.ping_interval.0 * 2 >= timing.peer_silence.0 {
        let what = format!(
            "`ping_interval_ms` is {}, but must be below half of `peer_silence_ms`, which is {}",
            timing.ping_interval.as_ms(),
            timing.peer_silence.as_ms()
        );
        section.problem(section.span.clone(), what, "a quarter of it is a good choice");
    }
    section.finish();
    timing
}

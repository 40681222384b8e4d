//! `register` and `[etcd]`: who keeps the register. By default the nodes do, with a witness; sites
//! that run etcd can have it do that, and need no witness then.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use super::NodeConfig;
use super::reader::{Placed, Section};

/// etcd's usual port for clients.
const CLIENT_PORT: u16 = 2379;
/// etcd needs up to two seconds for a new leader; a shorter lease would lapse every time.
const LEASE_RANGE_MS: RangeInclusive<u64> = 2_000..=60_000;
const LEASE_MS: u64 = 5_000;

/// Where etcd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSite {
    /// The client addresses of its members.
    pub endpoints: Vec<SocketAddr>,
    /// Our keys begin with it.
    pub prefix: String,
    /// The user, if etcd wants one.
    pub user: Option<String>,
    /// The file with his password.
    pub password_file: Option<PathBuf>,
}

/// What the top level says of the register.
pub(super) struct Chosen {
    pub etcd: Option<EtcdSite>,
    /// From `[etcd]`.
    pub lease_ms: Option<u64>,
}

/// Reads both keys. `cluster` gives the prefix its default.
pub(super) fn register(top: &mut Section<'_>, cluster: &str) -> Chosen {
    let is_etcd = top.word("register", &["built-in", "etcd"]) == Some("etcd");
    let place = top.key_span(if is_etcd { "register" } else { "etcd" });
    let section = top.section("etcd");
    match section {
        None if is_etcd => {
            let help = "write [etcd] with endpoints = [\"192.0.2.1:2379\", ...]";
            top.problem(place, "`register` is \"etcd\", and `[etcd]` is missing", help);
            Chosen { etcd: None, lease_ms: None }
        }
        None => Chosen { etcd: None, lease_ms: None },
        Some(section) => {
            let chosen = etcd(section, cluster);
            if !is_etcd {
                let help = "write register = \"etcd\" at the top level, or remove the table";
                top.problem(place, "`[etcd]` has no effect without register = \"etcd\"", help);
            } else if top.raw("lease_ms").is_some() {
                let help = "move it into [etcd]: the default there is 5000";
                let place = top.key_span("lease_ms");
                top.problem(place, "`lease_ms` here is for the built-in register", help);
            }
            chosen
        }
    }
}

fn etcd(mut section: Section<'_>, cluster: &str) -> Chosen {
    let place = section.span.clone();
    let endpoints = endpoints(&mut section);
    if endpoints.is_empty() {
        let help =
            "write endpoints = [\"192.0.2.1:2379\", ...], the client addresses of its members";
        section.problem(place.clone(), "`endpoints` is missing in [etcd]", help);
    }
    let user = section.string("user").map(|user| user.value);
    let password_file = section.path("password_file");
    if user.is_some() != password_file.is_some() {
        section.problem(place, "`user` and `password_file` belong together in [etcd]", "");
    }
    let prefix = section.string("prefix");
    let prefix = match &prefix {
        Some(given) => checked_prefix(&section, given),
        None => format!("/replicator/{cluster}"),
    };
    let lease_ms = section.number("lease_ms", LEASE_RANGE_MS).unwrap_or(LEASE_MS);
    section.finish();
    let etcd = Some(EtcdSite { endpoints, prefix, user, password_file });
    Chosen { etcd, lease_ms: Some(lease_ms) }
}

fn checked_prefix(section: &Section<'_>, given: &Placed<String>) -> String {
    let prefix = given.value.trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_graphic();
    if prefix.is_empty() || !prefix.chars().all(is_plain) {
        let help = "write prefix = \"/replicator/NAME\", and another one for every cluster";
        section.problem(given.span.clone(), "`prefix` must be printable and not empty", help);
    }
    prefix.to_owned()
}

fn endpoints(section: &mut Section<'_>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for text in section.strings("endpoints").unwrap_or_default() {
        match endpoint(&text.value) {
            Ok(address) if found.contains(&address) => {
                section.problem(text.span, format!("{address} is named twice"), "");
            }
            Ok(address) => found.push(address),
            Err(help) => {
                let what = format!("\"{}\" is no endpoint of etcd", text.value);
                section.problem(text.span, what, help);
            }
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:2379`, `[2001:db8::1]:2379`, with or without `http://`.
fn endpoint(text: &str) -> Result<SocketAddr, &'static str> {
    if text.starts_with("https://") {
        return Err(
            "https is not supported: use the client address without TLS on a network that \
                    only these machines share, with user and password_file",
        );
    }
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let ip = bare.trim_start_matches('[').trim_end_matches(']').parse();
    ip.map(|ip| SocketAddr::new(ip, CLIENT_PORT)).or_else(|_| bare.parse()).map_err(|_| {
        "write 192.0.2.1:2379 or [2001:db8::1]:2379; host names are not taken, because a failover \
         must not wait for a name server"
    })
}

/// Witnesses have no part where etcd decides.
pub(super) fn check_nodes(nodes: &[NodeConfig], top: &Section<'_>, span: Range<usize>) {
    if let Some(witness) = nodes.iter().find(|node| node.witness) {
        let what = format!("{} is a witness, and etcd is the register", witness.name);
        let help = "remove it: two nodes with disks suffice, the members of etcd are the majority";
        top.problem(span, what, help);
    }
}

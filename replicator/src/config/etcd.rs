//! `register` and `[etcd]`: who keeps the register. By default the nodes do, with a witness; sites
//! that run etcd can have it do that, and need no witness then.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use failover::etcd::TlsFiles;

use super::NodeConfig;
use super::reader::{Placed, Section, absolute};

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
    /// The certificates, if its members are spoken to by TLS.
    pub tls: Option<TlsFiles>,
    /// Our keys begin with it.
    pub prefix: String,
    /// The user, if etcd wants one.
    pub user: Option<String>,
    /// The file with his password.
    pub password_file: Option<PathBuf>,
    named: Vec<NamedFile>,
}

/// Where the configuration names a file, for what is found out about it later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedFile {
    path: PathBuf,
    span: Range<usize>,
    /// `FILE:LINE:COLUMN: `
    place: String,
}

impl EtcdSite {
    /// Lets places be told by line and column; `place` gives that of a byte of the text.
    pub(super) fn locate(&mut self, place: impl Fn(&Range<usize>) -> String) {
        for named in &mut self.named {
            named.place = place(&named.span);
        }
    }

    /// Where a file is named.
    pub fn place_of(&self, path: &Path) -> &str {
        self.named.iter().find(|it| it.path == path).map_or("", |it| &it.place)
    }
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
    let mut named = Vec::new();
    let tls = tls(&mut section, &endpoints, &mut named);
    if endpoints.is_empty() {
        let help =
            "write endpoints = [\"192.0.2.1:2379\", ...], the client addresses of its members";
        section.problem(place.clone(), "`endpoints` is missing in [etcd]", help);
    }
    let user = section.string("user").map(|user| user.value);
    let password_file = file(&mut section, "password_file", &mut named);
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
    let endpoints = endpoints.iter().map(|it| it.address).collect();
    let etcd = Some(EtcdSite { endpoints, tls, prefix, user, password_file, named });
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

fn file(
    section: &mut Section<'_>,
    key: &'static str,
    named: &mut Vec<NamedFile>,
) -> Option<PathBuf> {
    let text = section.string(key)?;
    let path = absolute(section.problems(), key, &text)?;
    named.push(NamedFile { path: path.clone(), span: text.span, place: String::new() });
    Some(path)
}

/// `ca`, `certificate` and `key`. All endpoints are spoken to by TLS or none, so that no password
/// goes in clear text to one that was forgotten.
fn tls(
    section: &mut Section<'_>,
    endpoints: &[Endpoint],
    named: &mut Vec<NamedFile>,
) -> Option<TlsFiles> {
    let ca = file(section, "ca", named);
    let (certificate, key) = (file(section, "certificate", named), file(section, "key", named));
    let is_given = |name: &str| section.keys().iter().any(|(key, ..)| *key == name);
    let first = ["ca", "certificate", "key"].into_iter().find(|name| is_given(name));
    let is_wished = first.is_some() || endpoints.iter().any(|it| it.is_tls);
    if !is_wished {
        return None;
    }
    for plain in endpoints.iter().filter(|it| !it.is_tls) {
        let what = match first {
            Some(name) => {
                format!("`{name}` has no effect on {}: it is spoken to by http", plain.address)
            }
            None => format!("{} is spoken to by http, and others by https", plain.address),
        };
        let help = format!("write \"https://{}\"", plain.address);
        section.problem(plain.span.clone(), what, help);
    }
    for (name, other) in [("certificate", "key"), ("key", "certificate")] {
        if is_given(name) && !is_given(other) {
            let what = format!("`{name}` without `{other}` in [etcd]");
            let help = format!(
                "write {other} = \"/etc/replicator/etcd-client.{}\"",
                match other {
                    "key" => "key",
                    _ => "crt",
                }
            );
            section.problem(section.key_span(name), what, help);
        }
    }
    if !is_given("ca") {
        let place = endpoints.iter().find(|it| it.is_tls).map(|it| it.span.clone());
        let what = "https needs `ca` in [etcd]: the CA of this machine's programs is not asked";
        let help = "write ca = \"/etc/replicator/etcd-ca.crt\", who signed etcd's --cert-file";
        section.problem(place.unwrap_or_else(|| section.span.clone()), what, help);
    }
    Some(TlsFiles { ca: ca?, own: certificate.zip(key) })
}

/// The client address of a member.
struct Endpoint {
    address: SocketAddr,
    is_tls: bool,
    span: Range<usize>,
}

fn endpoints(section: &mut Section<'_>) -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = Vec::new();
    for text in section.strings("endpoints").unwrap_or_default() {
        match endpoint(&text.value) {
            Some((address, _)) if found.iter().any(|it| it.address == address) => {
                section.problem(text.span, format!("{address} is named twice"), "");
            }
            Some((address, is_tls)) => found.push(Endpoint { address, is_tls, span: text.span }),
            None => {
                let what = format!("\"{}\" is no endpoint of etcd", text.value);
                let help = "write 192.0.2.1:2379 or https://[2001:db8::1]:2379; host names are \
                            not taken, because a failover must not wait for a name server";
                section.problem(text.span, what, help);
            }
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:2379`, `[2001:db8::1]:2379`, with or without `http://` or `https://`.
fn endpoint(text: &str) -> Option<(SocketAddr, bool)> {
    let (is_tls, bare) = match text.strip_prefix("https://") {
        Some(bare) => (true, bare),
        None => (false, text.strip_prefix("http://").unwrap_or(text)),
    };
    let bare = bare.trim_end_matches('/');
    let ip = bare.trim_start_matches('[').trim_end_matches(']').parse();
    let address = ip.map(|ip| SocketAddr::new(ip, CLIENT_PORT)).or_else(|_| bare.parse()).ok()?;
    Some((address, is_tls))
}

/// Witnesses have no part where etcd decides.
pub(super) fn check_nodes(nodes: &[NodeConfig], top: &Section<'_>, span: Range<usize>) {
    if let Some(witness) = nodes.iter().find(|node| node.witness) {
        let what = format!("{} is a witness, and etcd is the register", witness.name);
        let help = "remove it: two nodes with disks suffice, the members of etcd are the majority";
        top.problem(span, what, help);
    }
}

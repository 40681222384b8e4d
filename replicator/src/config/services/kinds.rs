//! The keys of each kind of service, what they may be, and the defaults of their deadlines.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path};

use failover::core::services::{FsckPolicy, Kind, ReachTarget, ServiceTiming};
use replicator_core::Span;

use super::super::reader::{Placed, Section, absolute};

/// Mount points that hold the system itself.
const OF_THE_SYSTEM: [&str; 12] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sbin", "/sys", "/usr",
];
/// What systemd knows as units that can be started and stopped.
const UNIT_SUFFIXES: [&str; 7] =
    ["service", "target", "socket", "mount", "timer", "path", "automount"];
const INTERFACE_MAX: usize = 15;
const TARGET_HELP: &str = "write \"192.0.2.1\" (ICMP echo), \"arp:192.0.2.1\" (ARP or IPv6 \
                           neighbour discovery) or \"tcp:192.0.2.1:443\"";

/// Deadlines of a kind where the file says nothing. Those of OCF agents are replaced by what their
/// meta-data advise, and those of units by what their files allow, where that can be asked
/// ([`local::complete`](super::local::complete)).
pub(super) fn timing(kind: &str) -> ServiceTiming {
    let (start, stop, monitor, every) = match kind {
        // A journal to replay, holders to be ended.
        "filesystem" => (60_000, 30_000, 10_000, 10_000),
        "address" => (5_000, 5_000, 5_000, 10_000),
        // What systemd itself allows by default; changes are told at once, so monitors are rare.
        "systemd" => (90_000, 90_000, 10_000, 30_000),
        "ocf" => (60_000, 60_000, 30_000, 10_000),
        "command" => (60_000, 60_000, 10_000, 10_000),
        "reach" => (5_000, 1_000, 2_000, 2_000),
        _ => unreachable!("the kinds are listed in KINDS"),
    };
    ServiceTiming {
        start: Span::from_ms(start),
        stop: Span::from_ms(stop),
        monitor: Span::from_ms(monitor),
        monitor_every: Span::from_ms(every),
    }
}

/// Restarts in place of a kind where the file says nothing.
pub(super) fn restarts(kind: &str) -> u32 {
    match kind {
        // What it stands for cannot be restarted.
        "reach" => 0,
        // Everything above it restarts too.
        "filesystem" => 1,
        _ => 3,
    }
}

/// Reads the keys of one kind: its name where the file gives none, and what it is.
pub(super) fn kind(word: &'static str, section: &mut Section<'_>) -> Option<(String, Kind)> {
    match word {
        "filesystem" => filesystem(section),
        "address" => address(section),
        "systemd" => systemd(section),
        "ocf" => ocf(section),
        "command" => command(section),
        "reach" => reach(section),
        _ => unreachable!("the kinds are listed in KINDS"),
    }
}

fn filesystem(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let text = section.string("filesystem");
    let fs_type = section.string("type").and_then(|text| type_name(section, text));
    let options = options(section);
    let fsck = match section.word("fsck", &["auto", "never", "always"]) {
        Some("never") => FsckPolicy::Never,
        Some("always") => FsckPolicy::Always,
        _ => FsckPolicy::Auto,
    };
    let mount_point = mount_point(section, text?)?;
    Some((mount_point.clone(), Kind::Filesystem { mount_point, fs_type, options, fsck }))
}

fn mount_point(section: &Section<'_>, text: Placed<String>) -> Option<String> {
    let path = absolute(section.problems(), "filesystem", &text)?;
    if path.starts_with("/dev") && path != Path::new("/dev") {
        let what = "`filesystem` is where it is mounted, not the disk";
        let help = "write filesystem = \"/srv/NAME\"; what is mounted there is the device of this \
                    resource, whose disk stands in `disk`";
        section.problem(text.span, what, help);
        return None;
    }
    if path.components().any(|part| part == Component::ParentDir) {
        section.problem(text.span, "a mount point without `..`, please", "write the plain path");
        return None;
    }
    // Without double and trailing slashes, as mountinfo has it.
    let path: String = path.components().collect::<std::path::PathBuf>().display().to_string();
    if OF_THE_SYSTEM.contains(&path.as_str()) {
        let what = format!("{path} belongs to the operating system");
        section.problem(text.span, what, "mount it elsewhere, for example at \"/srv/NAME\"");
        return None;
    }
    Some(path)
}

fn type_name(section: &Section<'_>, text: Placed<String>) -> Option<String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.value.is_empty() || text.value.starts_with('-') || !text.value.chars().all(is_good) {
        let what = format!("{:?} is no type of file system", text.value);
        let help = "write type = \"ext4\", \"xfs\", \"btrfs\" or what else `mount -t` takes";
        section.problem(text.span, what, help);
        return None;
    }
    Some(text.value)
}

/// `["noatime", "discard"]`, or as in fstab: `"noatime,discard"`.
fn options(section: &mut Section<'_>) -> Vec<String> {
    let mut options = Vec::new();
    for text in section.strings("options").unwrap_or_default() {
        for option in text.value.split(',').map(str::trim) {
            let is_good = !option.is_empty() && !option.contains(|c: char| c.is_whitespace());
            if !is_good {
                let what = format!("{:?} is no list of mount options", text.value);
                let help = "write options = [\"noatime\", \"discard\"]";
                section.problem(text.span, what, help);
                break;
            }
            options.push(option.to_owned());
        }
    }
    options
}

fn address(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let text = section.string("address");
    let interface = interface(section);
    let text = text?;
    let (address, prefix) = address_with_prefix(section, &text)?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        let what = format!("{address} is no address that clients could reach");
        section.problem(text.span, what, "write a free address of the network of the clients");
        return None;
    }
    if let Some(what) = end_of_network(address, prefix) {
        let help = "write a free host address of that network";
        section.problem(text.span, format!("{address}/{prefix} is {what}"), help);
        return None;
    }
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if is_link_local && interface.is_none() {
        let help = "add interface = \"eth0\"";
        section.problem(text.span, "a link-local address needs its `interface`", help);
    }
    Some((format!("{address}/{prefix}"), Kind::Address { address, prefix, interface }))
}

fn address_with_prefix(section: &Section<'_>, text: &Placed<String>) -> Option<(IpAddr, u8)> {
    let (left, right) = match text.value.split_once('/') {
        Some((left, right)) => (left, Some(right)),
        None => (text.value.as_str(), None),
    };
    let span = text.span.clone();
    let Ok(address) = left.parse::<IpAddr>() else {
        let help = "write address = \"192.0.2.100/24\" or \"2001:db8::100/64\"; host names are not \
                    taken, because a failover must not wait for a name server";
        section.problem(span, format!("\"{}\" is not an IP address", text.value), help);
        return None;
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let usual = if address.is_ipv4() { 24 } else { 64 };
    let Some(right) = right else {
        let what = format!("{address} needs the length of its prefix");
        let help = format!(
            "write \"{address}/{usual}\" with the length that `ip address` shows for the \
             interface's own address"
        );
        section.problem(span, what, help);
        return None;
    };
    match right.parse::<u8>() {
        Ok(prefix) if (1..=longest).contains(&prefix) => Some((address, prefix)),
        _ => {
            let what = format!("/{right} is no length of a prefix");
            section.problem(
                span,
                what,
                format!("a number from 1 to {longest}: \"{address}/{usual}\""),
            );
            None
        }
    }
}

/// Whether an IPv4 address is the first or last of its network, which no host can have.
fn end_of_network(address: IpAddr, prefix: u8) -> Option<&'static str> {
    let IpAddr::V4(v4) = address else { return None };
    if prefix >= 31 {
        return None;
    }
    let host_bits = u32::MAX >> prefix;
    match v4.to_bits() & host_bits {
        0 => Some("the network itself"),
        bits if bits == host_bits => Some("the broadcast address of its network"),
        _ => None,
    }
}

fn interface(section: &mut Section<'_>) -> Option<String> {
    let text = section.string("interface")?;
    let name = &text.value;
    let is_good = (1..=INTERFACE_MAX).contains(&name.len())
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if is_good {
        return Some(text.value);
    }
    let what = format!("{name:?} is no name of an interface");
    let help =
        format!("1 to {INTERFACE_MAX} characters, as `ip link` shows it; no alias like eth0:1");
    section.problem(text.span, what, help);
    None
}

fn systemd(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let text = section.string("systemd")?;
    let unit = &text.value;
    let is_good = |c: char| c.is_ascii_alphanumeric() || "_.@:\\-".contains(c);
    if unit.is_empty() || unit.len() > 255 || !unit.chars().all(is_good) {
        let what = format!("{unit:?} is no name of a unit");
        section.problem(text.span, what, "write it as `systemctl list-unit-files` shows it");
        return None;
    }
    let suffix = unit.rsplit_once('.').map(|(_, suffix)| suffix);
    if !suffix.is_some_and(|suffix| UNIT_SUFFIXES.contains(&suffix)) {
        let what = format!("{unit:?} is not the full name of a unit");
        section.problem(text.span, what, format!("write systemd = \"{unit}.service\""));
        return None;
    }
    if unit.ends_with("@.service") {
        let what = format!("{unit} is a template, not a unit");
        let help =
            format!("name its instance: \"{}NAME.service\"", unit.trim_end_matches(".service"));
        section.problem(text.span, what, help);
        return None;
    }
    Some((text.value.clone(), Kind::Systemd { unit: text.value }))
}

fn ocf(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let text = section.string("ocf");
    let parameters = parameters(section);
    let text = text?;
    let parts: Vec<&str> = text.value.trim_start_matches("ocf:").split(':').collect();
    let is_good = |part: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    let [provider, agent] = parts[..] else {
        let what = format!("{:?} names no agent", text.value);
        let meant = parts.last().copied().filter(is_good).unwrap_or("IPaddr2");
        section.problem(text.span, what, format!("write ocf = \"heartbeat:{meant}\""));
        return None;
    };
    if ![provider, agent].iter().all(is_good) {
        let what = format!("{:?} names no agent", text.value);
        section.problem(text.span, what, "write ocf = \"heartbeat:IPaddr2\"");
        return None;
    }
    let name = format!("ocf:{provider}:{agent}");
    let (provider, agent) = (provider.to_owned(), agent.to_owned());
    Some((name, Kind::Ocf { provider, agent, parameters }))
}

/// `params = { ip = "192.0.2.100", cidr_netmask = 24, run_arping = true }`.
fn parameters(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(value) = section.raw("params") else { return found };
    let Some(table) = value.get_ref().as_table() else {
        let help = "write params = { ip = \"192.0.2.100\", cidr_netmask = 24 }";
        section.problem(value.span(), "`params` must be a table", help);
        return found;
    };
    for (name, value) in table.iter() {
        let key: &str = name.get_ref();
        let text = match value.get_ref() {
            value if value.as_str().is_some() => value.as_str().map(str::to_owned),
            value if value.as_bool().is_some() => value.as_bool().map(|it| it.to_string()),
            value if value.as_integer().is_some() => {
                value.as_integer().map(|it| it.as_str().to_owned())
            }
            value => value.as_float().map(|it| it.as_str().to_owned()),
        };
        let Some(text) = text.filter(|text| !text.contains('\0')) else {
            let what = format!("`{key}` must be a string, a number or a boolean");
            section.problem(value.span(), what, format!("write {key} = \"...\""));
            continue;
        };
        // It becomes the name of a shell variable.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if key.is_empty() || !key.chars().all(is_plain) {
            let help = "the agent's meta-data list the names of its parameters";
            section.problem(name.span(), format!("{key:?} is no name of a parameter"), help);
            continue;
        }
        found.insert(key.to_owned(), text);
    }
    found
}

fn command(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let name = section.string("command");
    let start = section.string("start").and_then(|text| shell(section, text));
    let stop = section.string("stop").and_then(|text| shell(section, text));
    let monitor = section.string("monitor").and_then(|text| shell(section, text));
    let name = name?;
    let name_span = name.span.clone();
    let name = super::checked_name(section, name)?;
    if start.is_none() && section.raw("start").is_none() {
        let help = "add start = \"...\", as /bin/sh runs it; `command` itself is only its name";
        section.problem(name_span, format!("command {name:?} has no `start`"), help);
    }
    Some((name, Kind::Command { start: start?, stop, monitor }))
}

fn shell(section: &Section<'_>, text: Placed<String>) -> Option<String> {
    if text.value.trim().is_empty() || text.value.contains('\0') {
        let help = "write what /bin/sh shall run, or remove the key";
        section.problem(text.span, "this command is empty", help);
        return None;
    }
    Some(text.value)
}

fn reach(section: &mut Section<'_>) -> Option<(String, Kind)> {
    let texts = section.strings("reach").unwrap_or_default();
    let interface = interface(section);
    let mut targets = Vec::new();
    let is_empty = texts.is_empty();
    for text in &texts {
        match target(&text.value) {
            Some(target) if targets.contains(&target) => {
                section.problem(text.span.clone(), format!("{} is named twice", text.value), "");
            }
            Some(target) => targets.push(target),
            None => {
                let what = format!("{:?} is nobody who can be asked", text.value);
                section.problem(text.span.clone(), what, TARGET_HELP);
            }
        }
    }
    if is_empty && interface.is_none() {
        let span = section.key_span("reach");
        section.problem(span, "`reach` names neither targets nor an `interface`", TARGET_HELP);
        return None;
    }
    let most = targets.len() as u64;
    let need = section.number("need", 0..=u64::from(u16::MAX));
    if need.is_some_and(|need| need > most || (need == 0 && most > 0)) {
        let what = format!("`need` must be a whole number from 1 to {most}");
        section.problem(section.key_span("need"), what, "so many of the targets must answer");
    }
    let need = need.unwrap_or(1).min(most) as u16;
    Some(("reach".into(), Kind::Reach { interface, targets, need }))
}

fn target(text: &str) -> Option<ReachTarget> {
    if let Some(ip) = text.strip_prefix("arp:") {
        return ip.parse().ok().map(ReachTarget::Neighbour);
    }
    if let Some(ip) = text.strip_prefix("ping:") {
        return ip.parse().ok().map(ReachTarget::Ping);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ReachTarget::Ping(ip));
    }
    let socket = text.strip_prefix("tcp:").unwrap_or(text);
    let socket: std::net::SocketAddr = socket.parse().ok()?;
    (socket.port() != 0).then(|| ReachTarget::Tcp(socket.ip(), socket.port()))
}

//! What `replctl check` looks for on the machine it runs on: the file is the same on all nodes, so
//! what is missing here is a warning and not a mistake of the file. And what resource agents and
//! files of units say about their deadlines.
//!
//! ```text
//!   units.rs      whether systemd has a unit, and leaves its start to us
//!   programs.rs   whether the programs of a command are here
//! ```

mod programs;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use failover::core::services::{Kind, ServiceSpec};
use failover::services::OCF_ROOT;
use failover::services::address::place_for;
use failover::services::ocf::{Agent, Metadata};
use failover::services::systemd::limits::{UnitLimits, limits_now};
use replicator_core::Span;

use crate::at_once::{at_once, both};

use super::super::problem::Problem;
use super::super::{ClusterConfig, ResourceConfig};
use super::ServicePlace;

/// How long systemd is asked for what it allows its units: the daemon starts without it, too.
const UNITS_PATIENCE: Duration = Duration::from_secs(2);
/// Beyond what the file of a unit allows: systemd judges first, and says why.
const AFTER_SYSTEMD: Span = Span::from_ms(10_000);
/// What a start without end has here: the recovery of a large database ends before, and what does
/// not end moves.
const START_MAX: Span = Span::from_ms(3_600_000);
/// What a stop has here at most: longer than that nobody waits for a switchover.
const STOP_MAX: Span = Span::from_ms(900_000);

/// Looks at this machine, as a data node of the file would; one line each.
pub fn warnings(config: &ClusterConfig) -> Vec<String> {
    let text = fs::read_to_string(&config.path).unwrap_or_default();
    let mut found = Vec::new();
    for resource in &config.resources {
        let services = &resource.services;
        for (spec, place) in services.specs.iter().zip(&services.places) {
            for (span, what, help) in look(spec, place, resource) {
                found.push(Problem { span, what, help }.one_line(&config.path, &text));
            }
        }
    }
    found
}

type Found = (Range<usize>, String, String);

fn look(spec: &ServiceSpec, place: &ServicePlace, resource: &ResourceConfig) -> Vec<Found> {
    match &spec.kind {
        Kind::Address { interface: Some(name), .. } | Kind::Reach { interface: Some(name), .. } => {
            let span = place.values.get("interface").unwrap_or(&place.span).clone();
            missing_interface(name).map(|(what, help)| (span, what, help)).into_iter().collect()
        }
        Kind::Address { address, prefix, interface: None } => {
            let found = place_for(*address, *prefix).err();
            let found = found.map(|failure| (place.span.clone(), failure.why, failure.next));
            found.into_iter().collect()
        }
        Kind::Filesystem { mount_point, fs_type, .. } => {
            let in_use = mount_point_in_use(Path::new(mount_point), &resource.name);
            let span = place.values.get("type").unwrap_or(&place.span).clone();
            let unknown = fs_type.as_deref().and_then(unknown_type);
            let in_use = in_use.map(|(what, help)| (place.span.clone(), what, help));
            in_use.into_iter().chain(unknown.map(|(what, help)| (span, what, help))).collect()
        }
        Kind::Systemd { unit } => {
            let found = units::problem(Path::new("/"), unit, &units_of(resource));
            found.map(|(what, help)| (place.span.clone(), what, help)).into_iter().collect()
        }
        Kind::Command { start, stop, monitor } => {
            let hidden = mount_points(resource);
            let commands =
                [("start", Some(start)), ("stop", stop.as_ref()), ("monitor", monitor.as_ref())];
            let missing = commands.into_iter().filter_map(|(key, command)| {
                let (what, help) = programs::missing(command?, &hidden)?;
                Some((place.values.get(key).unwrap_or(&place.span).clone(), what, help))
            });
            missing.collect()
        }
        Kind::Ocf { provider, agent, parameters } => {
            agent_in_use(&Agent { root: Path::new(OCF_ROOT), provider, agent }, parameters, place)
        }
        _ => Vec::new(),
    }
}

fn units_of(resource: &ResourceConfig) -> Vec<&str> {
    let units = resource.services.specs.iter().filter_map(|spec| match &spec.kind {
        Kind::Systemd { unit } => Some(unit.as_str()),
        _ => None,
    });
    units.collect()
}

fn mount_points(resource: &ResourceConfig) -> Vec<&str> {
    let points = resource.services.specs.iter().filter_map(|spec| match &spec.kind {
        Kind::Filesystem { mount_point, .. } => Some(mount_point.as_str()),
        _ => None,
    });
    points.collect()
}

/// A type that neither the kernel has, nor a module, nor a helper of mount.
fn unknown_type(fs_type: &str) -> Option<(String, String)> {
    let has_helper = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(format!("mount.{fs_type}")).exists());
    let known = fs::read_to_string("/proc/filesystems").ok()?;
    let is_known = known.lines().any(|line| line.split('\t').next_back() == Some(fs_type));
    if has_helper || is_known {
        return None;
    }
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["--dry-run", "--quiet", &format!("fs-{fs_type}")]);
    let has_module = modprobe.status().ok()?.success();
    (!has_module).then(|| {
        let what = format!("this machine knows no file system `{fs_type}`");
        (what, "install its package on every data node, or correct `type`".into())
    })
}

/// Whether the agent is here, and knows its parameters.
fn agent_in_use(
    agent: &Agent<'_>,
    parameters: &BTreeMap<String, String>,
    place: &ServicePlace,
) -> Vec<Found> {
    let metadata = match agent.metadata_now(&std::env::temp_dir()) {
        Ok(Some(metadata)) => metadata,
        Ok(None) => {
            let what =
                format!("{} tells no meta-data: its parameters are not checked", agent.label());
            return vec![(place.span.clone(), what, String::new())];
        }
        Err(failure) => return vec![(place.span.clone(), failure.why, failure.next)],
    };
    let span = place.values.get("params").unwrap_or(&place.span).clone();
    let names: Vec<&str> = metadata.parameters.iter().map(|it| it.name.as_str()).collect();
    let mut found = Vec::new();
    for name in metadata.missing(parameters) {
        let what = format!("{} needs the parameter `{name}`", agent.label());
        found.push((span.clone(), what, format!("write params = {{ {name} = \"...\" }}")));
    }
    for name in metadata.unknown(parameters) {
        let help = match super::super::suggestion(name, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("its parameters are: {}", names.join(", ")),
        };
        found.push((span.clone(), format!("{} knows no parameter `{name}`", agent.label()), help));
    }
    if metadata.action("promote").is_some() && waits_for_promotion(agent.agent, parameters) {
        let what =
            format!("{} waits to be promoted, and agents are only started here", agent.label());
        let help = "the disk is replicated already: let the agent run one server on it, without a \
                    replication of its own";
        found.push((span, what, help.into()));
    }
    found
}

/// Whether an agent that can be promoted does not do its work before; some need not be.
fn waits_for_promotion(agent: &str, parameters: &BTreeMap<String, String>) -> bool {
    match agent {
        "pgsql" => parameters.get("rep_mode").is_some_and(|mode| mode != "none"),
        "mysql" | "db2" | "SAPInstance" | "conntrackd" => false,
        _ => true,
    }
}

/// Takes the deadlines that agents advise in their meta-data and those that systemd allows units,
/// where the file gives none and they are installed. Asks each once, all at the same time;
/// `run_dir` is this node's.
pub fn complete(config: &mut ClusterConfig, run_dir: &Path) {
    let (units, known) = both(|| ask_systemd(config), || ask_agents(config, run_dir));
    for resource in &mut config.resources {
        let services = &mut resource.services;
        for (spec, place) in services.specs.iter_mut().zip(&services.places) {
            match &spec.kind {
                Kind::Ocf { provider, agent, .. } => {
                    if let Some(metadata) = known.get(&(provider.clone(), agent.clone())) {
                        take_advice(spec, place, metadata);
                    }
                }
                Kind::Systemd { unit } => {
                    if let Some(limits) = units.get(unit) {
                        take_limits(spec, place, limits);
                    }
                }
                _ => {}
            }
        }
    }
}

/// What systemd allows all units in the file.
fn ask_systemd(config: &ClusterConfig) -> BTreeMap<String, UnitLimits> {
    let units: BTreeSet<&str> = config.resources.iter().flat_map(units_of).collect();
    if units.is_empty() {
        return BTreeMap::new();
    }
    limits_now(&units.into_iter().collect::<Vec<_>>(), UNITS_PATIENCE)
}

/// Never shorter than without it: a start may wait for units that it requires.
pub(crate) fn take_limits(spec: &mut ServiceSpec, place: &ServicePlace, limits: &UnitLimits) {
    let longer = |least: Span, allowed: Option<Duration>, most: Span| match allowed {
        Some(allowed) => {
            let ms = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX);
            let ms = ms.saturating_add(AFTER_SYSTEMD.as_ms()).min(most.as_ms());
            least.max(Span::from_ms(ms))
        }
        None => least.max(most),
    };
    let timing = &mut spec.timing;
    // One without a word about it in its file is not meant to have no end.
    let has_start = limits.start.is_some() || !limits.is_oneshot;
    if !place.start_is_given && has_start {
        timing.start = longer(timing.start, limits.start, START_MAX);
    }
    if !place.stop_is_given {
        timing.stop = longer(timing.stop, limits.stop, STOP_MAX);
    }
}

/// The meta-data of all agents in the file that tell some, by provider and name.
fn ask_agents(config: &ClusterConfig, run_dir: &Path) -> BTreeMap<(String, String), Metadata> {
    let specs = config.resources.iter().flat_map(|resource| &resource.services.specs);
    let agents: BTreeSet<(&str, &str)> = specs
        .filter_map(|spec| match &spec.kind {
            Kind::Ocf { provider, agent, .. } => Some((provider.as_str(), agent.as_str())),
            _ => None,
        })
        .collect();
    let agents: Vec<_> = agents.into_iter().collect();
    let ask = |&(provider, agent): &(&str, &str)| {
        let asked = Agent { root: Path::new(OCF_ROOT), provider, agent };
        let metadata = asked.metadata_now(run_dir).ok().flatten()?;
        Some(((provider.to_owned(), agent.to_owned()), metadata))
    };
    at_once(&agents, ask).into_iter().flatten().collect()
}

fn take_advice(spec: &mut ServiceSpec, place: &ServicePlace, metadata: &Metadata) {
    let advice = |action: &str| metadata.action(action);
    let limit = |action| advice(action).and_then(|action| action.timeout_ms);
    let every = advice("monitor").and_then(|action| action.interval_ms);
    let timing = &mut spec.timing;
    for (deadline, advised, is_given) in [
        (&mut timing.start, limit("start"), place.start_is_given),
        (&mut timing.stop, limit("stop"), place.stop_is_given),
        (&mut timing.monitor, limit("monitor"), place.monitor_is_given),
        (&mut timing.monitor_every, every, place.every_is_given),
    ] {
        // An agent that advises nothing sensible is not followed.
        if let Some(ms) = advised.filter(|ms| !is_given && (100..=3_600_000).contains(ms)) {
            *deadline = Span::from_ms(ms);
        }
    }
}

fn missing_interface(name: &str) -> Option<(String, String)> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if names.iter().any(|known| known == name) {
        return None;
    }
    names.sort();
    let what = format!("there is no interface {name} on this machine");
    let help = format!(
        "it has {}; the file is the same on all nodes, so the interface must be called alike on \
         all of them",
        names.join(", ")
    );
    Some((what, help))
}

/// Files below a mount point are hidden by the mount, and are most likely data that somebody
/// expects on the replicated disk.
fn mount_point_in_use(mount_point: &Path, resource: &str) -> Option<(String, String)> {
    let shown = mount_point.display();
    let fstab = fs::read_to_string("/etc/fstab").unwrap_or_default();
    let is_in_fstab = fstab.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let device = fields.next().unwrap_or("#");
        let at_boot = !line.contains("noauto");
        !device.starts_with('#') && at_boot && fields.next().map(Path::new) == Some(mount_point)
    });
    if is_in_fstab {
        let what = format!("{shown} is mounted at boot too, by /etc/fstab");
        return Some((what, format!("remove that line: {resource} mounts it where it is primary")));
    }
    let metadata = match fs::symlink_metadata(mount_point) {
        Ok(metadata) => metadata,
        // The first start makes it.
        Err(_) => return None,
    };
    if metadata.is_symlink() {
        let help = "name the directory itself, so that it can be recognised among the mounts";
        return Some((format!("{shown} is a symbolic link"), help.into()));
    }
    if !metadata.is_dir() {
        return Some((format!("{shown} is no directory"), "name a directory".into()));
    }
    let is_mounted = is_mount_point(mount_point);
    let is_empty = fs::read_dir(mount_point).ok()?.next().is_none();
    (!is_mounted && !is_empty).then(|| {
        let what = format!("{shown} is not empty: its files are hidden by the mount");
        (what, format!("move them away, or into the file system of {resource}"))
    })
}

fn is_mount_point(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let target = |line: &str| line.split(' ').nth(4).map(|field| field.replace("\\040", " "));
    table.lines().any(|line| target(line).is_some_and(|it| Path::new(&it) == path))
}

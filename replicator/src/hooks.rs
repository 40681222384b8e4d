//! Notification hooks: a command of the operator for every event, to page somebody, write a ticket
//! or move something that is not ours. Hooks are told, they decide nothing: their exit code is
//! logged, and a hook that hangs is killed.
//!
//! The command gets its event in the environment:
//! - `REPLICATOR_EVENT`, one of
//!   - of the office: `primary` (this node serves now), `not_primary`, `lease_lapsed` (its clients
//!     wait), `lease_back`, `resized` (the volume grew),
//!     `register_changed` (every node tells it)
//!   - of the node: `disk_failed`, `verify_found` (copies differ or cannot be read),
//!     `majority_lost`, `majority_back`, `guard_lost`, `guard_back`, `watchdog_lost`,
//!     `watchdog_back`
//!   - of services: `services_running` (all of a resource, after a change of office too),
//!     `service_failed`, `service_given_up` (nothing more is tried for a while),
//!     `address_conflict` (somebody else has it), `stop_hangs` (only a reset ends it)
//! - `REPLICATOR_CLUSTER`, `REPLICATOR_NODE`: where it runs; `REPLICATOR_RESOURCE`: empty for the
//!   whole cluster; `REPLICATOR_TIME_MS`: when, in milliseconds since 1970.
//! - `REPLICATOR_WHAT`, `REPLICATOR_WHY`: in words; for `register_changed` the kind of change
//!   (`takeover`, `shrink`, `grow`, ...) and its cause.
//! - `REPLICATOR_SERVICE`: the service, for events of one. `service_failed` is told each time a
//!   service fails, is restarted or not, and when a stop of it fails.
//! - `REPLICATOR_GENERATION`, `REPLICATOR_PRIMARY`, `REPLICATOR_IN_SYNC`: the register afterwards,
//!   where it changed.
//! - `REPLICATOR_BY`: the node that made the change. Every node tells it; a hook that must act once
//!   acts where this is `REPLICATOR_NODE`.
//!
//! Hooks of one node run one after the other, in the order of the events. When more than
//! [`WAITING_MAX`] wait, the newest are dropped and that is logged.

mod conditions;

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};

pub use conditions::watch;

/// Events that wait for their turn at most.
pub const WAITING_MAX: usize = 256;
/// How often a running hook is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookConfig {
    /// The program.
    pub command: PathBuf,
    /// Which events it wants; empty: all.
    pub events: Vec<String>,
    /// A hook that runs longer is killed with everything it started.
    pub timeout: Duration,
}

/// The events there are.
pub const EVENTS: [&str; 19] = [
    "primary",
    "not_primary",
    "lease_lapsed",
    "lease_back",
    "resized",
    "register_changed",
    "disk_failed",
    "verify_found",
    "majority_lost",
    "majority_back",
    "guard_lost",
    "guard_back",
    "watchdog_lost",
    "watchdog_back",
    "services_running",
    "service_failed",
    "service_given_up",
    "address_conflict",
    "stop_hangs",
];

/// What can be seen to be wrong with the hook on this machine.
pub fn missing(config: &HookConfig) -> Option<String> {
    let error = access(&config.command, AccessFlags::X_OK).err()?;
    Some(format!("the hook {} cannot be run: {}", config.command.display(), error.desc()))
}

/// Something a hook is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookEvent {
    /// One of [`EVENTS`].
    pub event: &'static str,
    /// The resource; empty for the whole cluster.
    pub resource: String,
    /// What happened.
    pub what: String,
    /// Why, in words.
    pub why: String,
    /// The service, if it is about one.
    pub service: String,
    /// The generation afterwards; 0: does not apply.
    pub generation: u64,
    /// The primary's node afterwards.
    pub primary: String,
    /// The in-sync set afterwards.
    pub in_sync: Vec<String>,
    /// The node that made the change.
    pub by: String,
}

/// Where events are handed in.
pub struct Hooks(SyncSender<(HookEvent, u128)>);

impl Hooks {
    /// Starts the thread that runs them.
    pub fn start(config: HookConfig, cluster: String, node: String) -> io::Result<Self> {
        let (sender, events) = sync_channel(WAITING_MAX);
        let run = move || run_all(&config, &[("CLUSTER", cluster), ("NODE", node)], &events);
        thread::Builder::new().name("hooks".into()).spawn(run)?;
        Ok(Self(sender))
    }

    /// Hands one in; never waits.
    pub fn tell(&self, event: HookEvent) {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let (name, resource) = (event.event, event.resource.clone());
        if self.0.try_send((event, at_ms)).is_err() {
            tracing::warn!(resource, "{WAITING_MAX} hooks wait: the one for {name} is dropped");
        }
    }
}

fn run_all(config: &HookConfig, place: &[(&str, String)], events: &Receiver<(HookEvent, u128)>) {
    for (event, at_ms) in events {
        if !config.events.is_empty() && !config.events.iter().any(|it| it == event.event) {
            continue;
        }
        let name = event.event;
        match run_one(config, place, &event, at_ms) {
            Ok(()) => {}
            Err(why) => tracing::warn!(
                resource = event.resource,
                "hook {} for {name}: {why}",
                config.command.display()
            ),
        }
    }
}

fn run_one(
    config: &HookConfig,
    place: &[(&str, String)],
    event: &HookEvent,
    at_ms: u128,
) -> Result<(), String> {
    let mut command = Command::new(&config.command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let mut tell = |name: &str, value: &str| {
        command.env(format!("REPLICATOR_{name}"), value);
    };
    place.iter().for_each(|(name, value)| tell(name, value));
    tell("EVENT", event.event);
    tell("RESOURCE", &event.resource);
    tell("TIME_MS", &at_ms.to_string());
    tell("WHAT", &event.what);
    tell("WHY", &event.why);
    tell("SERVICE", &event.service);
    tell("GENERATION", &event.generation.to_string());
    tell("PRIMARY", &event.primary);
    tell("IN_SYNC", &event.in_sync.join(" "));
    tell("BY", &event.by);
    let child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
    wait_for(child, config.timeout)
}

fn wait_for(mut child: Child, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                return Err(match (status.code(), status.signal()) {
                    (Some(code), _) => format!("ended with exit code {code}"),
                    (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
                });
            }
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            Ok(None) => {
                // The whole group; what it left behind in groups of its own is not ours.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("killed: still running after {} s", patience.as_secs_f32()));
            }
            Err(error) => return Err(format!("cannot be waited for: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(name: &str, text: &str) -> (PathBuf, PathBuf) {
        let dir =
            std::env::temp_dir().join(format!("replicator-hook-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    /// The example answers to every event, and names all that a hook is given.
    #[test]
    fn the_example_knows_every_event_and_every_variable() {
        let example = include_str!("../../tools/deploy/examples/hook");
        let cases: Vec<&str> = example.lines().filter(|line| line.contains(')')).collect();
        for event in EVENTS {
            let is_word = |word: &str| word == event;
            let mut words = cases.iter().flat_map(|line| line.split([' ', '|', ')']));
            assert!(words.any(is_word), "{event}");
        }
        let (dir, path) = script("given", "env >$(dirname $0)/env");
        let place = [("CLUSTER", "shop".to_owned()), ("NODE", "alpha".to_owned())];
        run_one(&config(path), &place, &event(), 0).unwrap();
        let given = fs::read_to_string(dir.join("env")).unwrap();
        let names = given.lines().filter_map(|line| line.split_once('='));
        let ours: Vec<&str> =
            names.map(|(name, _)| name).filter(|name| name.starts_with("REPLICATOR_")).collect();
        assert!(ours.len() > 10, "{given}");
        for name in ours {
            assert!(example.contains(&format!("#   {name} ")), "{name}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    fn config(command: PathBuf) -> HookConfig {
        HookConfig { command, events: Vec::new(), timeout: Duration::from_secs(10) }
    }

    fn event() -> HookEvent {
        HookEvent {
            event: "register_changed",
            resource: "db".into(),
            what: "takeover".into(),
            why: "alpha is lost".into(),
            service: String::new(),
            generation: 12,
            primary: "beta".into(),
            in_sync: vec!["beta".into(), "delta".into()],
            by: "beta".into(),
        }
    }

    fn wait_for_lines(path: &std::path::Path, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < deadline, "only {lines:?}");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_hook_is_told_everything_in_order() {
        let (dir, command) = script(
            "told",
            "echo \"$REPLICATOR_EVENT $REPLICATOR_CLUSTER $REPLICATOR_NODE $REPLICATOR_RESOURCE \
             $REPLICATOR_WHAT [$REPLICATOR_WHY] $REPLICATOR_GENERATION $REPLICATOR_PRIMARY \
             [$REPLICATOR_IN_SYNC] $REPLICATOR_BY\" >> ${0%/*}/out; exit 3",
        );
        let mut config = config(command);
        config.events = vec!["register_changed".into()];
        let hooks = Hooks::start(config, "shop".into(), "alpha".into()).unwrap();
        hooks.tell(event());
        hooks.tell(HookEvent { event: "primary", ..event() });
        hooks.tell(HookEvent { what: "grow".into(), ..event() });
        let lines = wait_for_lines(&dir.join("out"), 2);
        let line =
            "register_changed shop alpha db takeover [alpha is lost] 12 beta [beta delta] beta";
        assert_eq!(lines, [line.to_owned(), line.replace("takeover", "grow")]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children_and_others_follow() {
        let (dir, command) = script("hangs", "sleep 1000 & wait");
        let mut config = config(command);
        config.timeout = Duration::from_millis(100);
        let why = run_one(&config, &[], &event(), 0).unwrap_err();
        assert!(why.starts_with("killed"), "{why}");
        let why =
            run_one(&super::HookConfig { command: dir.join("none"), ..config }, &[], &event(), 0);
        assert!(why.unwrap_err().starts_with("cannot be run"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn failures_of_a_hook_are_named() {
        let (dir, command) = script("fails", "exit 3");
        let why = run_one(&config(command), &[], &event(), 0).unwrap_err();
        assert_eq!(why, "ended with exit code 3");
        fs::remove_dir_all(dir).unwrap();
    }
}

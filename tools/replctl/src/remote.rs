//! Commands that a daemon carries out: ask, and show what it says.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use replicator::cluster::{Applied, ClusterRequest, OfficeReport};
use replicator::config::{ClusterConfig, NodeConfig};
use replicator::control::{Conversation, Order, RefusalReport, Reply, ask};
use replicator::report::{ResourceReport, StatusReport};
use replicator::verdict::Level;
use serde_json::json;

use crate::arguments::{Arguments, Command, NodeAction};
use crate::progress;
use crate::resize;
use crate::show;
use crate::show_cluster;
use crate::show_fence;
use crate::verify;
use crate::{EXIT_DONE, EXIT_NO_DAEMON, EXIT_NOT_SAFE, EXIT_REFUSED, Failure};

/// Longer than any wait inside the daemon.
const PATIENCE: Duration = Duration::from_secs(180);
/// The state is told from memory.
const STATUS_PATIENCE: Duration = Duration::from_secs(20);
/// A fence agent may take its whole time more than once.
const FENCE_PATIENCE: Duration = Duration::from_secs(3600);
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// How long `events` waits for the next one before it ends without --follow.
const EVENT_PAUSE: Duration = Duration::from_millis(300);

/// Carries out one of the commands of a daemon.
pub fn run(
    config: &ClusterConfig,
    node: &NodeConfig,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    let socket = node.control_socket.as_path();
    match &arguments.command {
        Command::Status { resource, watch: false } => {
            status(socket, resource.as_deref(), arguments.json)
        }
        Command::Status { resource, watch: true } => {
            watch(socket, resource.as_deref(), arguments.json)
        }
        Command::Fence { name, is_off } => fence(socket, name, *is_off, arguments.json),
        Command::History { resource, number } => {
            history(socket, resource.as_deref(), *number, arguments.json)
        }
        Command::Explain { resource } => explain(socket, resource.as_deref(), arguments.json),
        Command::Dump { resource, .. } => status(socket, Some(resource), true),
        Command::Apply { dry_run } => apply(socket, config, *dry_run, arguments.json),
        Command::Events { follow } => events(socket, *follow, arguments.json),
        Command::Resize { resource, size, dry_run } => {
            resize::run(socket, resource, *size, *dry_run, arguments.json)
        }
        Command::Resync { resource, full, discard, peer, wait, timeout_s } => {
            let order = resync_order(resource, *full, *discard, peer.as_deref());
            let code = match order {
                Some(order) => simple(socket, order, arguments.json)?,
                None => EXIT_DONE,
            };
            if !wait {
                if !full && !discard {
                    eprintln!(
                        "replctl: a resync runs by itself; --wait waits for it, --full \
                               copies everything, --discard gives up what diverged here"
                    );
                }
                return Ok(code);
            }
            progress::wait(socket, resource, timeout_s.map(Duration::from_secs), arguments.json)
        }
        Command::Verify { resource, repair, cancel: false, wait: true } => {
            verify::run(socket, resource, *repair, arguments.json)
        }
        command => simple(socket, order_of(command), arguments.json),
    }
}

fn resync_order(resource: &str, full: bool, discard: bool, peer: Option<&str>) -> Option<Order> {
    let resource = resource.to_owned();
    if full {
        Some(Order::ResyncFull { resource, peer: peer.map(str::to_owned) })
    } else if discard {
        Some(Order::DiscardDiverged { resource })
    } else {
        None
    }
}

/// `RESOURCE` or `RESOURCE/SERVICE`; the service may have slashes of its own.
fn service_of(what: &str) -> (String, Option<String>) {
    match what.split_once('/') {
        Some((resource, service)) => (resource.to_owned(), Some(service.to_owned())),
        None => (what.to_owned(), None),
    }
}

/// The order of a command that is nothing but an order.
fn order_of(command: &Command) -> Order {
    match command {
        Command::Up { resource } => Order::Up { resource: resource.clone() },
        Command::Down { resource } => Order::Down { resource: resource.clone() },
        Command::Promote { resource, old_primary_is_off, allow_data_loss, alone } => {
            Order::Promote {
                resource: resource.clone(),
                old_primary_is_off: *old_primary_is_off,
                allow_data_loss: *allow_data_loss,
                alone: *alone,
            }
        }
        Command::Demote { resource, drop_clients } => {
            Order::Demote { resource: resource.clone(), drop_clients: *drop_clients }
        }
        Command::Connect { resource, peer } => {
            Order::Connect { resource: resource.clone(), peer: peer.clone() }
        }
        Command::Disconnect { resource, peer } => {
            Order::Disconnect { resource: resource.clone(), peer: peer.clone() }
        }
        Command::Verify { resource, cancel: true, .. } => {
            Order::CancelVerify { resource: resource.clone() }
        }
        Command::Verify { resource, repair, .. } => {
            Order::Verify { resource: resource.clone(), repair: *repair }
        }
        Command::Invalidate { resource } => Order::Invalidate { resource: resource.clone() },
        Command::Switchover { resource, cancel: true, .. } => {
            Order::CancelSwitchover { resource: resource.clone() }
        }
        Command::Switchover { resource, to, .. } => {
            Order::Switchover { resource: resource.clone(), to: to.clone() }
        }
        Command::Failover { resource, to, allow_data_loss, old_primary_is_off } => {
            Order::Failover {
                resource: resource.clone(),
                to: to.clone(),
                allow_data_loss: *allow_data_loss,
                old_primary_is_off: *old_primary_is_off,
            }
        }
        Command::Start { what } => {
            let (resource, service) = service_of(what);
            Order::StartServices { resource, service }
        }
        Command::Stop { what } => {
            let (resource, service) = service_of(what);
            Order::StopServices { resource, service }
        }
        Command::Restart { what } => {
            let (resource, service) = service_of(what);
            Order::RestartServices { resource, service }
        }
        Command::Clear { what } => {
            let (resource, service) = service_of(what);
            Order::ClearServices { resource, service }
        }
        Command::Maintenance { resource, switch } => {
            Order::Maintenance { resource: resource.clone(), is_on: switch == "on" }
        }
        Command::Pause => Order::Pause { paused: true },
        Command::Resume => Order::Pause { paused: false },
        Command::Standby { name } => Order::Standby { node: name.clone(), is_standby: true },
        Command::Online { name } => Order::Standby { node: name.clone(), is_standby: false },
        Command::Node { action: NodeAction::Replace { name } } => {
            Order::NodeReplace { node: name.clone() }
        }
        Command::Node { action: NodeAction::Add { name } } => Order::NodeAdd { node: name.clone() },
        Command::Node { action: NodeAction::Remove { name } } => {
            Order::NodeRemove { node: name.clone() }
        }
        Command::Recover { without, .. } => Order::Recover { without: without.clone() },
        _ => unreachable!("the other commands are handled before"),
    }
}

/// Asks and takes one reply; no daemon is a failure of its own kind.
pub fn ask_daemon(socket: &Path, order: Order) -> Result<Reply, Failure> {
    ask_within(PATIENCE, socket, order)
}

fn ask_within(patience: Duration, socket: &Path, order: Order) -> Result<Reply, Failure> {
    ask(socket, order, patience).map_err(|error| Failure::new(EXIT_NO_DAEMON, error))
}

/// The state of one or all resources.
pub fn fetch_status(socket: &Path, resource: Option<&str>) -> Result<StatusReport, Failure> {
    let order = Order::Status { resource: resource.map(str::to_owned) };
    match ask_within(STATUS_PATIENCE, socket, order)? {
        Reply::Status(report) => Ok(*report),
        Reply::Refused(refusal) => Err(refusal_failure(&refusal)),
        other => Err(Failure::new(EXIT_NO_DAEMON, format!("unexpected answer: {other:?}"))),
    }
}

pub fn refusal_failure(refusal: &RefusalReport) -> Failure {
    let json = json!({ "refused": refusal });
    Failure::with_json(EXIT_REFUSED, show::refusal(refusal), json)
}

fn simple(socket: &Path, order: Order, wants_json: bool) -> Result<u8, Failure> {
    say(&ask_daemon(socket, order)?, wants_json)
}

fn fence(socket: &Path, node: &str, is_off: bool, wants_json: bool) -> Result<u8, Failure> {
    let order = Order::Fence { node: node.to_owned(), is_off };
    say(&ask_within(FENCE_PATIENCE, socket, order)?, wants_json)
}

pub fn say(reply: &Reply, wants_json: bool) -> Result<u8, Failure> {
    if let Reply::Refused(refusal) = reply {
        return Err(refusal_failure(refusal));
    }
    if wants_json {
        println!("{}", serde_json::to_string(reply).expect("plain values"));
    } else if let Reply::Done(text) | Reply::Already(text) = reply {
        println!("{text}");
    }
    Ok(EXIT_DONE)
}

fn apply(
    socket: &Path,
    config: &ClusterConfig,
    dry_run: bool,
    wants_json: bool,
) -> Result<u8, Failure> {
    let order = Order::Apply { request: ClusterRequest::of(config), dry_run };
    let applied = match ask_daemon(socket, order)? {
        Reply::Applied(applied) => applied,
        Reply::Refused(refusal) => return Err(refusal_failure(&refusal)),
        other => return Err(Failure::new(EXIT_NO_DAEMON, format!("unexpected answer: {other:?}"))),
    };
    if wants_json {
        println!("{}", serde_json::to_string_pretty(&applied).expect("plain values"));
    } else {
        print!("{}", show_cluster::applied(&applied, dry_run));
    }
    let is_left = |it: &Applied| it.refused.is_some();
    Ok(if applied.iter().any(is_left) { EXIT_REFUSED } else { EXIT_DONE })
}

fn history(
    socket: &Path,
    resource: Option<&str>,
    number: usize,
    wants_json: bool,
) -> Result<u8, Failure> {
    let mut entries = match ask_daemon(socket, Order::History)? {
        Reply::History(entries) => entries,
        Reply::Refused(refusal) => return Err(refusal_failure(&refusal)),
        other => return Err(Failure::new(EXIT_NO_DAEMON, format!("unexpected answer: {other:?}"))),
    };
    entries.retain(|entry| resource.is_none_or(|name| entry.resource == name));
    let first = entries.len().saturating_sub(number);
    if wants_json {
        println!("{}", serde_json::to_string_pretty(&entries[first..]).expect("plain values"));
        return Ok(EXIT_DONE);
    }
    for entry in &entries[first..] {
        println!("{}", show_cluster::history(entry));
    }
    Ok(EXIT_DONE)
}

fn explain(socket: &Path, resource: Option<&str>, wants_json: bool) -> Result<u8, Failure> {
    let report = fetch_status(socket, None)?;
    let Some(cluster) = &report.cluster_state else {
        return explain_fence(&report, resource, wants_json);
    };
    let offices: Vec<_> =
        cluster.resources.iter().filter(|it| resource.is_none_or(|name| it.name == name)).collect();
    if wants_json {
        let explained: Vec<_> = offices.into_iter().map(|it| explained(it, &report)).collect();
        println!("{}", serde_json::to_string_pretty(&explained).expect("plain values"));
        return Ok(EXIT_DONE);
    }
    let mut out = String::new();
    show_cluster::head(&mut out, cluster);
    for office in offices {
        show_cluster::explain(&mut out, office, &report.node);
        show::held_back(&mut out, &report, Some(&office.name));
    }
    show_cluster::nodes(&mut out, cluster);
    print!("{out}");
    Ok(EXIT_DONE)
}

/// An office, with the peers that this node's replica holds back (P6).
fn explained(office: &OfficeReport, report: &StatusReport) -> serde_json::Value {
    let mut value = serde_json::to_value(office).expect("plain values");
    let held_back: Vec<_> = report.held_back(&office.name).collect();
    value["held_back"] = serde_json::to_value(held_back).expect("plain values");
    value
}

/// Without a witness only fencing decides anything.
fn explain_fence(
    report: &StatusReport,
    resource: Option<&str>,
    wants_json: bool,
) -> Result<u8, Failure> {
    let mut held_back = String::new();
    show::held_back(&mut held_back, report, resource);
    let is_meant = |it: &&ResourceReport| resource.is_none_or(|name| it.name == name);
    for found in report.resources.iter().filter(is_meant).filter_map(|it| it.services.as_ref()) {
        if let Some(trouble) = &found.trouble {
            held_back += &show_cluster::no_services(&report.node, trouble);
            held_back.push('\n');
        }
    }
    if !wants_json {
        print!("{held_back}");
    }
    let Some(fence) = &report.fence else {
        if !held_back.is_empty() {
            return Ok(EXIT_DONE);
        }
        return Err(Failure::new(
            EXIT_REFUSED,
            "this cluster has no witness and no fence agent, so nothing is decided by itself: \
             replctl status says what is safe",
        ));
    };
    if wants_json {
        println!("{}", serde_json::to_string_pretty(fence).expect("plain values"));
    } else {
        print!("{}", show_fence::explain(fence, &report.node));
    }
    Ok(EXIT_DONE)
}

fn code_of(report: &StatusReport) -> u8 {
    let is_safe = |level: Level| level == Level::Safe;
    let all_safe = report.resources.iter().all(|it| is_safe(it.verdict.level));
    if all_safe { EXIT_DONE } else { EXIT_NOT_SAFE }
}

fn status(socket: &Path, resource: Option<&str>, wants_json: bool) -> Result<u8, Failure> {
    let report = fetch_status(socket, resource)?;
    if wants_json {
        println!("{}", serde_json::to_string_pretty(&report).expect("plain values"));
    } else {
        print!("{}", show::status(&report, None));
    }
    Ok(code_of(&report))
}

fn watch(socket: &Path, resource: Option<&str>, wants_json: bool) -> Result<u8, Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut before: Option<StatusReport> = None;
    loop {
        let report = fetch_status(socket, resource);
        let mut out = std::io::stdout().lock();
        let text = match &report {
            Ok(report) if wants_json => serde_json::to_string(report).expect("plain values") + "\n",
            Ok(report) => show::status(report, before.as_ref().map(|it| (it, WATCH_PAUSE))),
            // A daemon that restarts comes back.
            Err(failure) => format!("{}\n", failure.text),
        };
        let clear = if is_terminal && !wants_json { "\x1b[H\x1b[2J" } else { "" };
        if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() {
            return Ok(EXIT_DONE);
        }
        drop(out);
        before = report.ok();
        thread::sleep(WATCH_PAUSE);
    }
}

fn events(socket: &Path, follow: bool, wants_json: bool) -> Result<u8, Failure> {
    let patience = if follow { None } else { Some(EVENT_PAUSE) };
    let mut conversation = Conversation::start(socket, Order::Events, patience)
        .map_err(|error| Failure::new(EXIT_NO_DAEMON, error))?;
    loop {
        match conversation.next_reply() {
            Ok(Some(Reply::Event(event))) if wants_json => {
                println!("{}", serde_json::to_string(&event).expect("plain values"));
            }
            Ok(Some(Reply::Event(event))) => println!("{}", show::event(&event)),
            Ok(Some(Reply::Refused(refusal))) => return Err(refusal_failure(&refusal)),
            Ok(Some(_)) => {}
            // The daemon ended, or nothing more has happened so far.
            Ok(None) => return Ok(EXIT_DONE),
            Err(_) if !follow => return Ok(EXIT_DONE),
            Err(error) => return Err(Failure::new(EXIT_NO_DAEMON, error)),
        }
    }
}

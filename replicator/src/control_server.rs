//! The daemon's side of the control socket: a bounded number of threads, one request each.

mod services;

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use failover::core::NodeName;
use failover::core::cluster::Force;
use failover::core::voters::VotersWish;

use crate::cluster::ControlPlane;
use crate::control::{Order, RefusalReport, Reply, read_request};
use crate::daemon::Daemon;
use crate::report::WaitReport;
use crate::resource::Resource;

/// Requests at once; a promotion that waits holds one.
const REQUESTS_MAX: usize = 32;
/// A caller that does not send or read for so long is closed.
const CALLER_PATIENCE: Duration = Duration::from_secs(5);
const EVENT_WAIT: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves the socket for ever on a thread of its own.
pub fn serve(daemon: Arc<Daemon>, listener: UnixListener) -> io::Result<()> {
    let busy = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => accepted(&daemon, &busy, stream),
                Err(error) => {
                    tracing::warn!("cannot accept a control connection: {error}");
                    thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    };
    thread::Builder::new().name("control".into()).spawn(accept).map(drop)
}

fn accepted(daemon: &Arc<Daemon>, busy: &Arc<AtomicUsize>, stream: UnixStream) {
    let _ = stream.set_read_timeout(Some(CALLER_PATIENCE));
    let _ = stream.set_write_timeout(Some(CALLER_PATIENCE));
    if busy.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
        busy.fetch_sub(1, Ordering::Relaxed);
        let why = format!("{REQUESTS_MAX} requests are under way");
        let refusal = RefusalReport::new("busy", why, "wait for one of them to end");
        let _ = send(&stream, &Reply::Refused(refusal));
        return;
    }
    let (daemon, counter) = (daemon.clone(), busy.clone());
    let spawned = thread::Builder::new().name("request".into()).spawn(move || {
        handle(&daemon, &stream);
        counter.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        busy.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("no thread for a control request: {error}");
    }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).expect("replies are plain values");
    line.push(b'\n');
    stream.write_all(&line)
}

fn handle(daemon: &Arc<Daemon>, stream: &UnixStream) {
    let reply = match read_request(stream) {
        Err(refusal) => Reply::Refused(refusal),
        Ok(Order::Events) => return stream_events(daemon, stream),
        Ok(order) => {
            if !matches!(order, Order::Status { .. }) {
                tracing::info!("operator: {order:?}");
            }
            execute(daemon, order)
        }
    };
    // A caller that went away has decided not to know.
    let _ = send(stream, &reply);
}

fn stream_events(daemon: &Daemon, stream: &UnixStream) {
    let mut seen = 0;
    let _ = stream.set_nonblocking(false);
    loop {
        let new = daemon.events.after(seen, EVENT_WAIT);
        for event in new {
            seen = event.number;
            if send(stream, &Reply::Event(event)).is_err() {
                return;
            }
        }
        if caller_is_gone(stream) {
            return;
        }
    }
}

fn caller_is_gone(stream: &UnixStream) -> bool {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut look = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut look, PollTimeout::ZERO).is_err()
        || look[0].revents().is_some_and(|events| events.intersects(gone))
}

fn execute(daemon: &Daemon, order: Order) -> Reply {
    let with = |name: &str, act: &dyn Fn(&Arc<Resource>) -> Reply| match daemon.resource(name) {
        Some(resource) => act(resource),
        None => Reply::Refused(unknown_resource(daemon, name)),
    };
    match order {
        Order::Status { resource: Some(name) } if daemon.resource(&name).is_none() => {
            Reply::Refused(unknown_resource(daemon, &name))
        }
        Order::Status { resource } => Reply::Status(Box::new(daemon.report(resource.as_deref()))),
        Order::Promote { resource, old_primary_is_off, allow_data_loss, alone } => {
            with(&resource, &|it| it.promote(old_primary_is_off, allow_data_loss, alone))
        }
        Order::Demote { resource, drop_clients } => with(&resource, &|it| it.demote(drop_clients)),
        Order::Connect { resource, peer } => with(&resource, &|it| it.connect(peer.as_deref())),
        Order::Disconnect { resource, peer } => {
            with(&resource, &|it| it.disconnect(peer.as_deref()))
        }
        Order::Invalidate { resource } => with(&resource, &|it| it.invalidate()),
        Order::ResyncFull { resource, peer } => {
            with(&resource, &|it| it.resync_full(peer.as_deref()))
        }
        Order::Verify { resource, repair } => with(&resource, &|it| it.verify(repair)),
        Order::CancelVerify { resource } => with(&resource, &|it| it.cancel_verify()),
        Order::Resize { resource, size_bytes } => with(&resource, &|it| it.resize(size_bytes)),
        Order::DiscardDiverged { resource } => with(&resource, &|it| it.discard_diverged()),
        Order::Up { resource } => with(&resource, &|it| it.up()),
        Order::Down { resource } => with(&resource, &|it| it.down()),
        Order::CancelSwitchover { resource } => {
            with_plane(daemon, &|plane| plane.cancel_switchover(&resource))
        }
        Order::Switchover { resource, to } => {
            let reply = with_plane(daemon, &|plane| plane.switchover(&resource, to.as_deref()));
            with_held_back(daemon, &resource, to.as_deref(), reply)
        }
        Order::Failover { resource, to, allow_data_loss, old_primary_is_off } => {
            let force = Force { allow_data_loss, old_primary_is_off };
            with_plane(daemon, &|plane| plane.failover(&resource, &to, force))
        }
        Order::Pause { paused } => with_plane(daemon, &|plane| plane.pause(paused)),
        Order::Standby { node, is_standby } => {
            with_plane(daemon, &|plane| plane.standby(&node, is_standby))
        }
        Order::StartServices { resource, service } => services::start(daemon, &resource, service),
        Order::StopServices { resource, service } => services::stop(daemon, &resource, service),
        Order::RestartServices { resource, service } => {
            services::restart(daemon, &resource, service.as_deref())
        }
        Order::ClearServices { resource, service } => {
            services::clear(daemon, &resource, service.as_deref())
        }
        Order::Maintenance { resource, is_on } => services::maintain(daemon, &resource, is_on),
        Order::Fence { node, is_off } => fence(daemon, &node, is_off),
        Order::History => match &daemon.fencing {
            Some(fencing) => Reply::History(fencing.history.entries()),
            None => with_plane(daemon, &|plane| Reply::History(plane.history.entries())),
        },
        Order::NodeReplace { node } => {
            with_plane(daemon, &|plane| plane.change_voters(VotersWish::Replace(name_of(&node))))
        }
        Order::NodeAdd { node } => {
            with_plane(daemon, &|plane| plane.change_voters(VotersWish::Add(name_of(&node))))
        }
        Order::NodeRemove { node } => {
            with_plane(daemon, &|plane| plane.change_voters(VotersWish::Remove(name_of(&node))))
        }
        Order::Recover { without } => with_plane(daemon, &|plane| plane.recover(&without)),
        Order::Apply { request, dry_run } => {
            with_plane(daemon, &|plane| plane.apply(&request, dry_run))
        }
        Order::Events => unreachable!("handled by the caller"),
    }
}

/// What only two nodes without a witness need.
fn fence(daemon: &Daemon, node: &str, is_off: bool) -> Reply {
    if let Some(fencing) = &daemon.fencing {
        return fencing.order(node, is_off);
    }
    let refusal = if daemon.control_plane.is_some() {
        RefusalReport::new(
            "majority_decides",
            "here a majority decides: nobody needs to be fenced",
            "for a failover by force: replctl failover",
        )
    } else {
        RefusalReport::new(
            "no_fence_agent",
            format!("the configuration has no [node.{node}.fence]"),
            "write one on both nodes and restart the daemons (see tools/deploy/examples); or \
             switch the node off and say so: replctl promote RESOURCE --old-primary-is-off",
        )
    };
    Reply::Refused(refusal)
}

fn name_of(node: &str) -> NodeName {
    NodeName::from(node)
}

/// What only a majority can do.
fn with_plane(daemon: &Daemon, act: &dyn Fn(&ControlPlane) -> Reply) -> Reply {
    match &daemon.control_plane {
        Some(plane) => act(plane),
        None => Reply::Refused(RefusalReport::new(
            "no_majority_here",
            "this cluster has no witness: no majority decides here",
            "use promote and demote; or add a witness to the configuration of all nodes",
        )),
    }
}

/// A switchover that is refused since its target is held back (P6) says for how long it will be.
fn with_held_back(daemon: &Daemon, resource: &str, to: Option<&str>, reply: Reply) -> Reply {
    let Reply::Refused(mut refusal) = reply else { return reply };
    if matches!(refusal.code.as_str(), "not_a_member" | "no_target") {
        let report = daemon.report(Some(resource));
        let is_meant = |wait: &&WaitReport| {
            to.is_none_or(|to| wait.what.strip_prefix(to).is_some_and(|rest| rest.starts_with(' ')))
        };
        if let Some(wait) = report.held_back(resource).find(is_meant) {
            let left_ms = wait.limit_ms.unwrap_or_default().saturating_sub(wait.since_ms);
            let seconds = left_ms as f64 / 1000.0;
            refusal.why = format!(
                "{}; {} waits for {}, for another {seconds:.1} s",
                refusal.why, report.node, wait.what
            );
            refusal.next = format!(
                "wait for {seconds:.1} s and its resync; {}",
                wait.then.replace("RESOURCE", resource)
            );
        }
    }
    Reply::Refused(refusal)
}

fn unknown_resource(daemon: &Daemon, name: &str) -> RefusalReport {
    if let Some(refusal) = daemon.control_plane.as_ref().and_then(|it| it.keeps_no_replica(name)) {
        return refusal;
    }
    let names = daemon.resource_names().join(", ");
    RefusalReport::new(
        "unknown_resource",
        format!("there is no resource {name} in the configuration of the daemon"),
        format!("it has: {names}; a daemon reads its configuration when it starts"),
    )
}

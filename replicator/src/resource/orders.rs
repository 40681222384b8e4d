//! What operators want of a resource: carried to the core, with the parts around it that only the
//! daemon knows (the block device, clients, the life of the loop).

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use failover::core::services::{Input, Release};
use replicator_core::{Answer, Command, PeerIndex, PeerStatus, Refusal, Ticket};

use super::{DEVICE_ORIGIN, Phase, Resource};
use crate::block_device::DetachError;
use crate::control::{RefusalReport, Reply};
use crate::data_loop::{LoopStatus, ToLoop};
use crate::events::Weight;
use crate::link::Link;

/// A promotion or demotion may wait for disks and peers for so long before the operator is told
/// what it waits for.
pub(super) const ROLE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a promotion waits for a session that may be on its way.
const SESSION_PATIENCE: Duration = Duration::from_secs(3);
/// How long the end of a session takes at most from the loop to here.
const SESSION_NEWS_PATIENCE: Duration = Duration::from_millis(200);
const SESSION_POLL: Duration = Duration::from_millis(20);
/// The same for what only changes book-keeping.
const SHORT_PATIENCE: Duration = Duration::from_secs(15);
/// How long a promotion waits for its block device.
pub(super) const DEVICE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a stop waits for whoever takes the office that it gave up: as long as that one would
/// wait for it.
const HEIR_PATIENCE: Duration = Duration::from_secs(1);
const HEIR_POLL: Duration = Duration::from_millis(10);

impl Resource {
    /// Becomes primary and attaches the block device.
    pub fn promote(
        self: &Arc<Self>,
        old_primary_is_off: bool,
        allow_data_loss: bool,
        alone: bool,
    ) -> Reply {
        let command = Command::Promote { old_primary_is_off, allow_data_loss, alone };
        self.promote_by(command, !old_primary_is_off)
    }

    /// The same, when the old primary was fenced and is confirmed to be off.
    pub fn promote_fenced(self: &Arc<Self>) -> Reply {
        self.promote_by(Command::TakeFenced, false)
    }

    fn promote_by(self: &Arc<Self>, command: Command, waits_for_sessions: bool) -> Reply {
        if self.is_in_cluster() {
            return Reply::Refused(decided_by_majority("promote"));
        }
        if let Some(refusal) = self.loop_status().and_then(|status| self.old_device(&status)) {
            return Reply::Refused(refusal);
        }
        if waits_for_sessions {
            self.wait_for_sessions();
        }
        self.note_before_office();
        let deadline = Instant::now() + SESSION_PATIENCE;
        let mut reply = self.order(command, ROLE_PATIENCE);
        while Instant::now() < deadline && self.is_refused_for_a_moment(&reply) {
            self.wait_for_sessions();
            reply = self.order(command, ROLE_PATIENCE);
        }
        if !matches!(reply, Reply::Done(_)) {
            return reply;
        }
        self.wait_for_device();
        let node = &self.node.name;
        Reply::Done(match self.device.report() {
            Some(device) if device.state == "attached" => {
                format!("{node} is primary; the device is {}", device.path)
            }
            Some(device) => {
                format!("{node} is primary; no block device: {}{}", device.state, why(&device.why))
            }
            None => format!("{node} is primary"),
        })
    }

    /// Sessions begin anew when a role changes or a node starts. A promotion right behind that
    /// would be refused because nobody can be asked; so it waits a moment for a session that
    /// ended, or could have begun, a moment ago.
    fn wait_for_sessions(&self) {
        let deadline = Instant::now() + SESSION_PATIENCE;
        while Instant::now() < deadline {
            let (pending, believed_up) = {
                let state = self.lock();
                let now = Instant::now();
                let briefly = |link: &Link| link.is_briefly_down(SESSION_PATIENCE, now);
                let pending = state.run.is_some() && state.links.iter().any(briefly);
                (pending, state.links.iter().any(Link::is_up))
            };
            // The core learns of an end a moment before the links here do.
            let greets = |status: LoopStatus| {
                status.core.peers.iter().any(|peer| {
                    peer.state == "connecting" || believed_up && peer.state == "disconnected"
                })
            };
            if !pending && !self.loop_status().is_some_and(greets) {
                return;
            }
            let state = self.lock();
            drop(self.changed.wait_timeout(state, SESSION_POLL));
        }
    }

    /// A primary that was demoted or killed a moment ago still looks alive here. Waits until it
    /// does not, or has been heard from for longer than a dead one could be.
    fn leader_is_gone_soon(&self) -> bool {
        let patience =
            Duration::from_millis(self.config.timing.peer_silence.as_ms()) + SESSION_POLL;
        let deadline = Instant::now() + patience;
        let leads =
            |status: LoopStatus| status.core.peers.iter().any(|peer| peer.role == "primary");
        while Instant::now() < deadline {
            if !self.loop_status().is_some_and(leads) {
                return true;
            }
            let state = self.lock();
            drop(self.changed.wait_timeout(state, SESSION_POLL));
        }
        false
    }

    /// Whether a refusal was due to sessions that are just ending or beginning.
    fn is_refused_for_a_moment(&self, reply: &Reply) -> bool {
        match reply {
            Reply::Refused(refusal) if refusal.code == "peer_is_primary" => {
                self.leader_is_gone_soon()
            }
            Reply::Refused(refusal) if refusal.code == "peer_unreachable" => {
                self.session_ended_just_now()
            }
            _ => false,
        }
    }

    /// Whether a session that the core has lost is only ending here: the loop's word about it
    /// may still be on its way.
    fn session_ended_just_now(&self) -> bool {
        let state = self.lock();
        let is_up = |state: &mut super::State| state.links.iter().any(Link::is_up);
        let waited = self.changed.wait_timeout_while(state, SESSION_NEWS_PATIENCE, is_up);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_news = |link: &Link| link.is_up() || link.is_briefly_down(SESSION_PATIENCE, now);
        state.links.iter().any(is_news)
    }

    fn wait_for_device(&self) {
        let state = self.lock();
        let pending = |_: &mut super::State| !self.device.is_settled();
        let _ = self
            .changed
            .wait_timeout_while(state, DEVICE_PATIENCE, pending)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Gives the role up: services first, then clients and device, then the core.
    pub fn demote(self: &Arc<Self>, drop_clients: bool) -> Reply {
        self.demote_for(Release::HandOver, drop_clients)
    }

    /// The same; services are told what for. When it is refused they come back.
    pub(super) fn demote_for(self: &Arc<Self>, release: Release, drop_clients: bool) -> Reply {
        let clients = if drop_clients { Vec::new() } else { self.foreign_clients() };
        if self.serving().is_some() && !clients.is_empty() {
            return Reply::Refused(clients_connected(&clients));
        }
        if let Err(refusal) = self.stop_services(release) {
            return Reply::Refused(refusal);
        }
        if self.serving().is_some()
            && let Err(refusal) = self.retire_device(drop_clients)
        {
            self.services_come_back();
            return Reply::Refused(refusal);
        }
        self.mark("device closed");
        let reply = self.order(Command::Demote, ROLE_PATIENCE);
        if matches!(reply, Reply::Refused(_)) {
            self.resume_device();
            self.services_come_back();
        } else {
            self.tell_services(Input::OfficeReleased);
        }
        reply
    }

    /// A release was refused. A daemon that ends tries again, and its services stay stopped.
    fn services_come_back(&self) {
        if !self.lock().is_closing {
            self.tell_services(Input::ReleaseCancelled);
        }
    }

    /// Takes the device away, and refuses when somebody uses it or is connected.
    fn retire_device(&self, drop_clients: bool) -> Result<(), RefusalReport> {
        self.set_retiring(true);
        let clients = if drop_clients { Vec::new() } else { self.foreign_clients() };
        if !clients.is_empty() {
            self.set_retiring(false);
            return Err(clients_connected(&clients));
        }
        let refusal = match self.device.detach() {
            Ok(()) => return Ok(()),
            Err(DetachError::Broken(why)) if drop_clients => {
                self.emit(Weight::Warning, format!("giving the block device up: {why}"));
                self.device.fail(None, &mut |text| self.emit(Weight::Warning, text));
                return Ok(());
            }
            Err(DetachError::Broken(why)) => RefusalReport::new(
                "device_broken",
                format!("the block device cannot be taken away: {why}"),
                "say --drop-clients to give it up as it is",
            ),
            Err(DetachError::InUse(why)) => RefusalReport::new(
                "device_in_use",
                why,
                "unmount it or end these users, then try again",
            ),
        };
        self.set_retiring(false);
        Err(refusal)
    }

    fn foreign_clients(&self) -> Vec<String> {
        let clients = self.loop_status().map(|status| status.clients).unwrap_or_default();
        let foreign = clients.into_iter().filter(|client| client.origin != DEVICE_ORIGIN);
        foreign.map(|client| client.origin).collect()
    }

    fn set_retiring(&self, is_retiring: bool) {
        if let Some(run) = &mut self.lock().run {
            run.is_retiring = is_retiring;
        }
    }

    /// After a refused demotion the device comes back.
    fn resume_device(self: &Arc<Self>) {
        self.set_retiring(false);
        let shape = self.lock().run.as_ref().map(|run| run.shape.clone());
        if let (Some(tenure), Some(shape)) = (self.serving(), shape)
            && !self.device.is_attached()
        {
            self.open_device(tenure, shape.size_bytes);
        }
    }

    /// Who keeps this resource from being given up: users of the device, clients. Empty when
    /// nobody does, or when it does not serve.
    pub fn users(&self) -> Vec<String> {
        if self.serving().is_none() {
            return Vec::new();
        }
        let mut users = self.device.users();
        if !self.is_in_cluster() {
            let clients = self.foreign_clients().into_iter();
            users.extend(clients.map(|client| format!("NBD client {client}")));
        }
        users
    }

    /// Starts it and waits until it runs or cannot.
    pub fn up(self: &Arc<Self>) -> Reply {
        if self.is_up() {
            return Reply::Already(format!("{} is up", self.name()));
        }
        if let Err(error) = self.start() {
            return refused("no_thread", error.to_string(), "free memory or threads");
        }
        let state = self.settled();
        match &state.phase {
            Phase::Up => Reply::Done(format!("{} is up", self.name())),
            Phase::Starting(what) => refused(
                "still_starting",
                format!("it is still starting: {what}"),
                "it goes on trying; `replctl down` ends that",
            ),
            Phase::Failed(why) => refused("cannot_start", why.clone(), "mend that, then try again"),
            Phase::Down | Phase::Stopping => {
                refused("stopped", "it was stopped meanwhile", "try again")
            }
        }
    }

    /// Stops it orderly: refuses while it is in use.
    pub fn down(self: &Arc<Self>) -> Reply {
        match &self.lock().phase {
            Phase::Down => return Reply::Already(format!("{} is down", self.name())),
            Phase::Up | Phase::Starting(_) | Phase::Stopping | Phase::Failed(_) => {}
        }
        {
            let mut state = self.lock();
            if state.run.is_none() {
                // The keeper sees this while it waits for the disk; a failed one has ended.
                state.stop_wanted = true;
                if matches!(state.phase, Phase::Failed(_)) {
                    state.enter(Phase::Down);
                }
                drop(state);
                if let Err(refusal) = self.stop_services(Release::Down) {
                    return Reply::Refused(refusal);
                }
                return self.wait_until_down();
            }
        }
        // In a cluster NBD clients find the node that serves next; without, somebody may not.
        let drop_clients = self.is_in_cluster();
        self.set_leaving(true);
        let has_heirs = self.serving().is_some() && self.is_in_cluster() && self.has_members();
        if let Err(refusal) = self.give_up_office(drop_clients) {
            self.set_leaving(false);
            return Reply::Refused(refusal);
        }
        if has_heirs {
            self.wait_for_heir();
        }
        self.lock().enter(Phase::Stopping);
        let reply = self.order(Command::Stop, ROLE_PATIENCE);
        if let Reply::Refused(refusal) = &reply {
            // A loop that has ended without an answer did stop.
            if refusal.code != "loop_ended" {
                self.lock().enter(Phase::Up);
                self.set_leaving(false);
                self.services_come_back();
                return reply;
            }
        }
        self.wait_until_down()
    }

    /// Services stop, also those of a secondary; and an office is given up.
    fn give_up_office(self: &Arc<Self>, drop_clients: bool) -> Result<(), RefusalReport> {
        if self.serving().is_none() {
            return self.stop_services(Release::Down);
        }
        match self.demote_for(Release::Down, drop_clients) {
            Reply::Refused(refusal) => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Whether another member is connected.
    fn has_members(&self) -> bool {
        self.peers_now().iter().any(|peer| {
            peer.is_member && !matches!(peer.state, "disconnected" | "refused" | "connecting")
        })
    }

    /// Whoever takes the office now has this replica among the members, and would wait for one that
    /// is just gone as for one that was lost. So it is followed first, if somebody takes it: then
    /// this replica leaves orderly, and no client waits for that.
    fn wait_for_heir(&self) {
        let deadline = Instant::now() + HEIR_PATIENCE;
        while Instant::now() < deadline && !self.peers_now().iter().any(|it| it.state == "leads") {
            thread::sleep(HEIR_POLL);
        }
    }

    fn peers_now(&self) -> Vec<PeerStatus> {
        self.loop_status().map_or_else(Vec::new, |status| status.core.peers)
    }

    fn wait_until_down(&self) -> Reply {
        let is_down = |phase: &Phase| matches!(phase, Phase::Down | Phase::Failed(_));
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, ROLE_PATIENCE, |state| !is_down(&state.phase))
            .unwrap_or_else(PoisonError::into_inner);
        if is_down(&state.phase) {
            return Reply::Done(format!("{} is down", self.name()));
        }
        refused("still_stopping", "it is still stopping", "look at `replctl status`, it goes on")
    }

    /// Takes up connections again, to one peer or all.
    pub fn connect(&self, peer: Option<&str>) -> Reply {
        self.for_peers(peer, |resource, peer| {
            let reply = resource.order(Command::Connect(peer), SHORT_PATIENCE);
            if !matches!(reply, Reply::Refused(_)) {
                let now = Instant::now();
                resource.lock().links[usize::from(peer.0)].unblock(now);
                resource.changed.notify_all();
            }
            reply
        })
    }

    /// Holds no connections any more, to one peer or all.
    pub fn disconnect(&self, peer: Option<&str>) -> Reply {
        self.for_peers(peer, |resource, peer| {
            let reply = resource.order(Command::Disconnect(peer), SHORT_PATIENCE);
            if !matches!(reply, Reply::Refused(_)) {
                resource.lock().links[usize::from(peer.0)].block();
            }
            reply
        })
    }

    /// Declares the data here bad.
    pub fn invalidate(&self) -> Reply {
        self.order(Command::Invalidate, SHORT_PATIENCE)
    }

    /// Copies everything to one peer or all.
    pub fn resync_full(&self, peer: Option<&str>) -> Reply {
        self.for_peers(peer, |resource, peer| {
            resource.order(Command::ResyncFull(peer), SHORT_PATIENCE)
        })
    }

    /// Compares the copies of the others with the one here; `repair`: and copies what differs.
    pub fn verify(&self, repair: bool) -> Reply {
        match self.order(Command::Verify { repair }, SHORT_PATIENCE) {
            Reply::Done(_) => {
                Reply::Done(format!("a verify of {} began; replctl status shows it", self.name()))
            }
            other => other,
        }
    }

    /// Ends a verify that is under way.
    pub fn cancel_verify(&self) -> Reply {
        self.order(Command::CancelVerify, SHORT_PATIENCE)
    }

    /// Gives up what diverged here.
    pub fn discard_diverged(&self) -> Reply {
        let reply = self.order(Command::DiscardDiverged, SHORT_PATIENCE);
        if matches!(reply, Reply::Done(_)) {
            let now = Instant::now();
            self.lock().links.iter_mut().for_each(|link| link.unblock(now));
            self.changed.notify_all();
        }
        reply
    }

    fn for_peers(&self, name: Option<&str>, act: impl Fn(&Self, PeerIndex) -> Reply) -> Reply {
        let chosen: Vec<PeerIndex> = match name {
            None => (0..self.peers.len() as u8).map(PeerIndex).collect(),
            Some(name) => match self.peer_index(name) {
                Some(peer) => vec![peer],
                None => {
                    return refused(
                        "unknown_peer",
                        format!("{} has no peer {name}", self.name()),
                        format!("its peers are: {}", self.peers.join(", ")),
                    );
                }
            },
        };
        let mut last = Reply::Already("there is no peer".into());
        for peer in chosen {
            last = act(self, peer);
            if matches!(last, Reply::Refused(_)) {
                break;
            }
        }
        last
    }

    /// The state once the start is over, or has taken too long.
    fn settled(&self) -> MutexGuard<'_, super::State> {
        let starting = |state: &mut super::State| matches!(state.phase, Phase::Starting(_));
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), SHORT_PATIENCE, starting)
            .unwrap_or_else(PoisonError::into_inner);
        state
    }

    /// Gives the core a command and waits for its answer.
    /// A promotion that the cluster ordered: the core waits for disks, majority and lease.
    pub(super) fn order_role(&self, command: Command) -> Reply {
        self.order(command, ROLE_PATIENCE)
    }

    pub(super) fn order(&self, command: Command, patience: Duration) -> Reply {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        {
            // A command right behind the start waits a moment for it.
            let mut state = self.settled();
            let Some(run) = &state.run else {
                let name = self.name();
                let why = match &state.phase {
                    Phase::Failed(why) => format!("{name} cannot run here: {why}"),
                    Phase::Starting(what) => format!("{name} is still starting: {what}"),
                    _ => format!("{name} is not up here"),
                };
                return refused("not_up", why, format!("replctl up {name}"));
            };
            if let Err(error) = run.handle.send(ToLoop::Command { ticket: Ticket(ticket), command })
            {
                return refused("loop_stuck", error.to_string(), "look at the log and the disk");
            }
            state.waiting.insert(ticket, sender);
        }
        match answer.recv_timeout(patience) {
            Ok(Ok(Answer::Done)) => Reply::Done("done".into()),
            Ok(Ok(Answer::Already)) => Reply::Already("there was nothing to do".into()),
            Ok(Err(refusal)) => {
                self.emit(Weight::Info, format!("{command:?} was refused: {}", refusal.why));
                Reply::Refused(self.refusal_report(&refusal))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => refused(
                "loop_ended",
                "the data loop ended before it answered",
                "look at `replctl status` and the log",
            ),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.lock().waiting.remove(&ticket);
                refused(
                    "still_waiting",
                    format!("not done after {} s{}", patience.as_secs(), self.what_waits()),
                    "it goes on; look at `replctl status`",
                )
            }
        }
    }

    /// The core does not know what its resource is called.
    pub(super) fn refusal_report(&self, refusal: &Refusal) -> RefusalReport {
        let named = |text: &str| text.replace("RESOURCE", self.name());
        RefusalReport {
            code: refusal.code.to_owned(),
            rule: refusal.rule.to_owned(),
            why: named(&refusal.why),
            next: named(&refusal.next),
        }
    }

    fn what_waits(&self) -> String {
        match self.loop_status() {
            None => ": the data loop does not answer, its disk may hang".into(),
            Some(status) => match status.core.waits.first() {
                Some(wait) => format!(": it waits for {}", wait.what),
                None => String::new(),
            },
        }
    }
}

fn clients_connected(clients: &[String]) -> RefusalReport {
    RefusalReport::new(
        "clients_connected",
        format!("{} NBD clients are connected: {}", clients.len(), clients.join(", ")),
        "disconnect them, or say --drop-clients to close their connections",
    )
}

fn why(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

fn refused(code: &str, why: impl Into<String>, next: impl Into<String>) -> Reply {
    Reply::Refused(RefusalReport::new(code, why, next))
}

/// Roles are not given by hand where a majority decides.
fn decided_by_majority(verb: &str) -> RefusalReport {
    RefusalReport::new(
        "majority_decides",
        format!("`{verb}` is for clusters without a witness: here a majority decides"),
        "move the office with replctl switchover; by force with replctl failover",
    )
}

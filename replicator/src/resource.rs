//! One resource on this node: brings its disk up, starts the data loop around the core, reacts to
//! what the loop tells, and carries what operators, peers and clients want into it. One keeper
//! thread per resource; everybody else calls the methods here, none of which waits for the disk
//! longer than it says.

mod bring_up;
mod growth;
mod in_cluster;
mod old_device;
mod orders;
mod phases;
mod reports;
mod services;
mod standing;
mod threads;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use failover::Cluster;
use failover::core::services::Input as ServicesInput;
use failover::services::address::LeaseLength;
use failover::services::runner::Runner;
use nbd_frontend::attach::Keeper;
use nbd_frontend::export::Export;
use nbd_frontend::session::Session;
use replicator_core::register::RegisterState;
use replicator_core::{Answer, Note, PeerIndex, Refusal, Retry, SessionId, Span};

use crate::block_device::{BlockDevice, Shape};
use crate::cluster::{LeaseCell, ToHistory};
use crate::config::{ClusterConfig, NodeConfig, ResourceConfig};
use crate::data_loop::{FromLoop, LoopHandle, LoopStatus, ToLoop};
use crate::events::{Events, Weight, describe};
use crate::guard::Guarding;
use crate::hooks::HookEvent;
use crate::link::{Due, Link};
use crate::verify::Verifies;
use growth::Growth;
use phases::Marks;
pub use standing::Standing;

/// How often a keeper looks after its device.
const TICK: Duration = Duration::from_secs(1);
/// How long a healthy loop may take to answer a question about its state.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How the loop's client for the attached device is called.
pub(crate) const DEVICE_ORIGIN: &str = "block device";

type OperatorResult = Result<Answer, Box<Refusal>>;

/// One resource.
pub struct Resource {
    /// Its configuration.
    pub config: ResourceConfig,
    cluster: Arc<ClusterConfig>,
    node: NodeConfig,
    /// Names of the other data nodes, in the order of their index.
    peers: Vec<String>,
    events: Arc<Events>,
    device: BlockDevice,
    state: Mutex<State>,
    changed: Condvar,
    next_session: AtomicU64,
    next_ticket: AtomicU64,
    /// The control plane, where a majority decides.
    cluster_handle: OnceLock<Cluster>,
    /// What keeps the history of the cluster.
    chronicle: OnceLock<mpsc::Sender<ToHistory>>,
    /// Until when this node may act as primary.
    lease: Arc<LeaseCell>,
    /// How long leases are: as configured, until the register says it.
    lease_length: LeaseLength,
    /// What runs on top of it.
    services: OnceLock<Runner>,
    /// Who withdraws it when this process cannot.
    guarding: OnceLock<Arc<Guarding>>,
    /// What verifies found.
    verifies: Verifies,
}

struct State {
    phase: Phase,
    /// Since when; other words for what a start waits for change nothing.
    phase_since: Instant,
    run: Option<Run>,
    links: Vec<Link>,
    /// Operators who wait for an answer of the loop, by ticket.
    waiting: HashMap<u64, mpsc::Sender<OperatorResult>>,
    /// It is about to stop: the office is to go elsewhere.
    is_leaving: bool,
    /// The newest committed state, for a loop that starts later.
    learned: Option<RegisterState>,
    /// The register before the last promotion, and whether it named this node.
    before_office: Option<(RegisterState, bool)>,
    /// A change of office under way.
    marks: Option<Marks>,
    growth: Growth,
    /// Somebody wants this resource down.
    stop_wanted: bool,
    /// No keeper may be started any more.
    is_closing: bool,
}

enum Phase {
    Down,
    Starting(String),
    Up,
    Stopping,
    Failed(String),
}

impl State {
    fn enter(&mut self, phase: Phase) {
        if std::mem::discriminant(&phase) != std::mem::discriminant(&self.phase) {
            self.phase_since = Instant::now();
        }
        self.phase = phase;
    }
}

/// What exists while the loop runs.
struct Run {
    handle: LoopHandle,
    shape: Shape,
    /// The tenure clients are served in; none while this node does not serve.
    serving: Option<u64>,
    /// An operator is taking the device away: no new clients.
    is_retiring: bool,
}

impl Resource {
    /// A resource that is down.
    pub fn new(
        config: ResourceConfig,
        cluster: Arc<ClusterConfig>,
        node: &NodeConfig,
        events: Arc<Events>,
        keeper: Arc<Keeper>,
    ) -> Self {
        let peers: Vec<String> =
            cluster.peers_of(&node.name).iter().map(|peer| peer.name.clone()).collect();
        let device = BlockDevice::new(
            config.attach,
            &config.name,
            node.device_dir.clone(),
            &node.run_dir,
            keeper,
        );
        let lease_length = LeaseLength::new(Span::from_ms(cluster.lease_ms));
        let now = Instant::now();
        let state = State {
            phase: Phase::Down,
            phase_since: now,
            run: None,
            links: peers.iter().map(|_| Link::new(now)).collect(),
            waiting: HashMap::new(),
            is_leaving: false,
            learned: None,
            before_office: None,
            marks: None,
            growth: Growth::default(),
            stop_wanted: false,
            is_closing: false,
        };
        let verifies = Verifies::open(&node.state_dir, &config.name);
        Self {
            config,
            cluster,
            node: node.clone(),
            peers,
            events,
            device,
            state: Mutex::new(state),
            changed: Condvar::new(),
            next_session: AtomicU64::new(1),
            next_ticket: AtomicU64::new(1),
            cluster_handle: OnceLock::new(),
            chronicle: OnceLock::new(),
            lease: Arc::default(),
            lease_length,
            services: OnceLock::new(),
            guarding: OnceLock::new(),
            verifies,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Names of the other data nodes, in the order of their index.
    pub fn peers(&self) -> &[String] {
        &self.peers
    }

    /// Whether its loop runs.
    pub fn is_up(&self) -> bool {
        matches!(self.lock().phase, Phase::Up)
    }

    /// Whether it has ended.
    pub fn is_down(&self) -> bool {
        matches!(self.lock().phase, Phase::Down | Phase::Failed(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, weight: Weight, text: impl Into<String>) {
        self.events.emit(weight, self.name(), text);
    }

    fn tell_hooks(&self, event: &'static str, what: &str) {
        self.events.tell_hooks(|| HookEvent {
            event,
            resource: self.name().to_owned(),
            what: what.to_owned(),
            ..HookEvent::default()
        });
    }

    fn disk_paths(&self) -> (PathBuf, Option<PathBuf>) {
        let copy = self.config.copy_on(&self.node.name);
        (copy.disk.clone(), copy.metadata.clone())
    }

    /// Starts the keeper thread unless one runs. What becomes of it shows in the phase.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let mut state = self.lock();
        if state.is_closing || !matches!(state.phase, Phase::Down | Phase::Failed(_)) {
            return Ok(());
        }
        state.enter(Phase::Starting(String::new()));
        state.stop_wanted = false;
        state.is_leaving = false;
        drop(state);
        let resource = self.clone();
        let spawned = thread::Builder::new()
            .name(format!("keep {}", self.name()))
            .spawn(move || resource.keep());
        if let Err(error) = &spawned {
            self.set_phase(Phase::Failed(format!("cannot start a thread: {error}")));
        }
        spawned.map(drop)
    }

    fn set_phase(&self, phase: Phase) {
        self.lock().enter(phase);
        self.changed.notify_all();
    }

    /// The keeper thread: from down to down.
    fn keep(self: Arc<Self>) {
        let (events_in, events) = mpsc::channel();
        let end = match self.bring_up(events_in) {
            Ok(()) => {
                self.tell_services(ServicesInput::ResourceUp);
                self.follow(&events)
            }
            Err(why) if self.lock().stop_wanted => {
                self.emit(Weight::Info, format!("not started: {why}"));
                Phase::Down
            }
            Err(why) => {
                self.emit(Weight::Error, format!("cannot be started: {why}"));
                Phase::Failed(why)
            }
        };
        let run = {
            let mut state = self.lock();
            let now = Instant::now();
            state.links.iter_mut().for_each(|link| link.reset(now));
            // Whoever still waits learns that nobody will answer: the senders are dropped.
            state.waiting.clear();
            state.run.take()
        };
        if let Some(run) = run {
            run.handle.join();
        }
        // A loop that ended by itself serves nothing any more.
        self.office_closed(false);
        self.set_phase(end);
    }

    /// Reacts to the loop until it ends; with what it ended.
    fn follow(self: &Arc<Self>, events: &mpsc::Receiver<FromLoop>) -> Phase {
        let mut device_misses = 0;
        loop {
            match events.recv_timeout(TICK) {
                Ok(FromLoop::Stopped) => {
                    self.device.fail(None, &mut |text| self.emit(Weight::Warning, text));
                    self.emit(Weight::Info, "down");
                    return Phase::Down;
                }
                Ok(FromLoop::Fatal(why)) => {
                    self.emit(Weight::Error, format!("the data loop ended: {why}"));
                    return Phase::Failed(why);
                }
                Ok(event) => self.react(event),
                Err(mpsc::RecvTimeoutError::Timeout) => self.look_after_device(&mut device_misses),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    if self.lock().is_closing {
                        return Phase::Down;
                    }
                    let why = "the data loop ended unexpectedly; the log says why".to_owned();
                    self.emit(Weight::Error, why.clone());
                    return Phase::Failed(why);
                }
            }
        }
    }

    fn react(self: &Arc<Self>, event: FromLoop) {
        match event {
            FromLoop::Answer { ticket, result } => {
                let mut state = self.lock();
                match state.waiting.remove(&ticket.0) {
                    Some(operator) => drop(operator.send(result)),
                    // An operator who no longer waits has seen the time-out.
                    None => state.growth.forget_order(),
                }
            }
            FromLoop::OpenDevice { tenure, size_bytes } => self.open_device(tenure, size_bytes),
            FromLoop::ResizeDevice { size_bytes } => self.resize_device(size_bytes),
            FromLoop::CloseDevice { forced } => self.close_device(forced),
            FromLoop::SessionEnded { peer, session, retry, why } => {
                self.session_ended(peer, session, retry, &why);
            }
            FromLoop::Note(note) => {
                let (weight, text) = describe(&note, &self.peers);
                self.note_verify(&note);
                match &note {
                    Note::Resized { from, to } => self.note_resized(*from, *to),
                    Note::NoRoomMade { why } => self.lock().growth.no_room = Some(why.clone()),
                    Note::MetadataMoved { device_bytes } => {
                        self.lock().growth.no_room = None;
                        self.remember_end(*device_bytes);
                    }
                    _ => {}
                }
                let event = match note {
                    Note::DiskFailed { .. } => Some("disk_failed"),
                    Note::LeaseLapsed => Some("lease_lapsed"),
                    Note::LeaseBack { .. } => Some("lease_back"),
                    Note::VerifyEnded { findings, .. } if !findings.is_clean() => {
                        Some("verify_found")
                    }
                    _ => None,
                };
                if let Some(event) = event {
                    self.tell_hooks(event, &text);
                }
                self.emit(weight, text);
            }
            proposal @ FromLoop::Proposed { .. } => self.proposed(proposal),
            FromLoop::Stopped | FromLoop::Fatal(_) => unreachable!("follow handles the ends"),
        }
    }

    fn note_verify(&self, note: &Note) {
        match note {
            Note::VerifyStarted { copy, with, bytes, .. } => {
                self.verifies.began(copy, with, *bytes);
            }
            Note::VerifyEnded { copy, with, broken, findings, repairs } => {
                self.verifies.ended((copy, with), broken.as_deref(), findings, *repairs);
            }
            Note::VerifyRepaired { copy, .. } => self.verifies.repaired(copy),
            Note::RoleChanged { role, .. } if *role != "primary" => self.verifies.office_ended(),
            _ => {}
        }
    }

    fn open_device(self: &Arc<Self>, tenure: u64, size_bytes: u64) {
        let shape = {
            let mut state = self.lock();
            let Some(run) = &mut state.run else { return };
            run.serving = Some(tenure);
            run.is_retiring = false;
            run.shape.size_bytes = size_bytes;
            run.shape.clone()
        };
        self.changed.notify_all();
        self.emit(Weight::Info, format!("serving clients, tenure {tenure}"));
        self.tell_hooks("primary", "serving clients");
        self.mark_served();
        self.in_helper_or_here("attach", move |resource| {
            let mut serve = |stream| resource.serve_device(stream);
            let mut told = |text| resource.emit(Weight::Info, text);
            resource.device.attach(&shape, tenure, &mut serve, &mut told);
            if resource.device.is_attached() {
                resource.mark("device open");
            }
            resource.end_marks(true);
            // The office may have been lost while the attach took its time.
            if resource.serving() == Some(tenure) {
                resource.office_gained(tenure);
            } else {
                resource.device.fail(Some(tenure), &mut told);
            }
            resource.changed.notify_all();
        });
    }

    fn close_device(self: &Arc<Self>, forced: bool) {
        let tenure = {
            let mut state = self.lock();
            state.growth = Growth::default();
            state.run.as_mut().and_then(|run| run.serving.take())
        };
        self.office_closed(forced);
        let weight = if forced { Weight::Warning } else { Weight::Info };
        let how = if forced { "taken away" } else { "given up" };
        self.emit(weight, format!("no longer serving clients: the office was {how}"));
        self.tell_hooks("not_primary", &format!("the office was {how}"));
        // Orderly demotions detached the device before; what is left then is failed too, since
        // nothing answers it any more.
        self.in_helper_or_here("detach", move |resource| {
            resource.device.fail(tenure, &mut |text| resource.emit(Weight::Warning, text));
            resource.changed.notify_all();
        });
    }

    fn serving(&self) -> Option<u64> {
        self.lock().run.as_ref().and_then(|run| run.serving)
    }

    /// Hands the loop its end of a stream of the block device.
    fn serve_device(&self, stream: OwnedFd) {
        let state = self.lock();
        let Some(run) = &state.run else { return };
        let session = Session::new(&self.export_of(&run.shape), false, None);
        let order = ToLoop::Client {
            stream,
            session,
            leftover: Vec::new(),
            origin: DEVICE_ORIGIN.to_owned(),
        };
        if let Err(error) = run.handle.send(order) {
            drop(state);
            self.emit(Weight::Error, format!("cannot serve the block device: {error}"));
        }
    }

    /// A device whose stream the loop dropped (a time-out, a broken request) gets a new one.
    fn look_after_device(self: &Arc<Self>, misses: &mut u32) {
        if !self.is_in_cluster() && self.services().is_some() {
            self.report_facts();
        }
        if self.serving().is_none() && self.device.remembered_tenure().is_some() {
            self.in_helper("leftovers", |resource| {
                if let Some(status) = resource.loop_status() {
                    resource.fail_old_device(&status);
                }
            });
        }
        if self.serving().is_none() || !self.device.is_attached() {
            *misses = 0;
            return;
        }
        let Some(status) = self.loop_status() else { return };
        let is_served = status.clients.iter().any(|client| client.origin == DEVICE_ORIGIN);
        *misses = if is_served { 0 } else { *misses + 1 };
        if *misses >= 2 {
            *misses = 0;
            self.emit(Weight::Warning, "the block device lost its connection to the data loop");
            self.in_helper("reconnect", |resource| {
                let mut serve = |stream| resource.serve_device(stream);
                let mut told = |text| resource.emit(Weight::Info, text);
                resource.device.reconnect(&mut serve, &mut told);
            });
        }
    }

    /// A snapshot of loop and core; none when the resource is not up or its loop hangs.
    pub fn loop_status(&self) -> Option<LoopStatus> {
        let (reply, answer) = mpsc::channel();
        {
            let state = self.lock();
            state.run.as_ref()?.handle.send(ToLoop::Status { reply }).ok()?;
        }
        answer.recv_timeout(STATUS_PATIENCE).ok()
    }

    fn export_of(&self, shape: &Shape) -> Export {
        let mut export = Export::new(self.name(), shape.size_bytes);
        export.description = format!("{} of cluster {}", self.name(), self.cluster.cluster);
        export.block_size_min = shape.block_bytes;
        export.serves_unaligned = true;
        export
    }

    /// What an NBD client gets, or why it gets nothing, in words.
    pub fn open_export(&self) -> Result<Export, String> {
        let name = self.name();
        let me = &self.node.name;
        {
            let state = self.lock();
            match (&state.phase, &state.run) {
                (Phase::Up, Some(run)) if run.is_retiring => {
                    return Err(format!("{name}: {me} is giving up its role just now"));
                }
                (Phase::Up, Some(run)) if run.serving.is_some() => {
                    return Ok(self.export_of(&run.shape));
                }
                (Phase::Up, Some(_)) => {}
                (Phase::Failed(why), _) => {
                    return Err(format!("{name}: cannot run on {me}: {why}"));
                }
                _ => return Err(format!("{name}: is not up on {me}")),
            }
        }
        let primary = self.known_primary();
        Err(match primary {
            Some(primary) => format!("{name}: {me} is secondary here; the primary is {primary}"),
            None => format!("{name}: {me} is secondary here; no primary is known"),
        })
    }

    /// Gives a negotiated client to the loop.
    pub fn give_client(
        &self,
        stream: OwnedFd,
        session: Session,
        leftover: Vec<u8>,
        origin: String,
    ) -> Result<(), String> {
        let state = self.lock();
        match &state.run {
            Some(run) if run.serving.is_some() && !run.is_retiring => run
                .handle
                .send(ToLoop::Client { stream, session, leftover, origin })
                .map_err(|error| error.to_string()),
            _ => Err(format!("{} stopped serving meanwhile", self.name())),
        }
    }

    /// The index of a peer.
    pub fn peer_index(&self, node: &str) -> Option<PeerIndex> {
        self.peers.iter().position(|peer| peer == node).map(|index| PeerIndex(index as u8))
    }

    /// Gives the loop an authenticated connection to a peer.
    pub fn give_peer(&self, peer: PeerIndex, version: u8, stream: OwnedFd, leftover: Vec<u8>) {
        let session = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let mut state = self.lock();
        let Some(run) = &state.run else { return };
        match run.handle.send(ToLoop::Peer { peer, session, version, stream, leftover }) {
            Ok(()) => state.links[usize::from(peer.0)].began(session, Instant::now()),
            Err(error) => {
                drop(state);
                self.emit(Weight::Error, format!("cannot take a connection of a peer: {error}"));
            }
        }
    }

    fn session_ended(&self, peer: PeerIndex, session: SessionId, retry: Retry, why: &str) {
        let index = usize::from(peer.0);
        self.lock().links[index].ended(session, retry, why, Instant::now());
        self.changed.notify_all();
        let level = format!("session {} with {} ended: {why}", session.0, self.peers[index]);
        tracing::debug!(resource = self.name(), "{level}");
    }

    /// Whether an incoming connection of a peer may be taken now; else why not.
    pub fn peer_is_welcome(&self, peer: PeerIndex) -> Result<(), PeerUnwelcome> {
        let state = self.lock();
        if state.run.is_none() {
            return Err(PeerUnwelcome::Down);
        }
        if state.links[usize::from(peer.0)].is_blocked() {
            return Err(PeerUnwelcome::Disconnected);
        }
        Ok(())
    }

    /// For a dialer thread: waits until this peer should be dialled. Breaks when the daemon ends
    /// and the loop has: until then whoever takes the office is still followed.
    pub fn wait_until_due(&self, peer: PeerIndex) -> ControlFlow<()> {
        const LONG: Duration = Duration::from_secs(3600);
        let mut state = self.lock();
        loop {
            let due = match state.run {
                Some(_) => state.links[usize::from(peer.0)].due(Instant::now()),
                None if state.is_closing => return ControlFlow::Break(()),
                None => Due::WhenChanged,
            };
            let wait = match due {
                Due::Now => return ControlFlow::Continue(()),
                Due::After(wait) => wait,
                Due::WhenChanged => LONG,
            };
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// An attempt to reach a peer failed.
    pub fn dial_failed(&self, peer: PeerIndex, why: String, rarely: bool) {
        self.lock().links[usize::from(peer.0)].failed(why, rarely, Instant::now());
    }

    /// An incoming connection of a peer failed its greeting: for status, on the side that does
    /// not dial.
    pub fn greeting_failed(&self, peer: PeerIndex, why: String) {
        self.lock().links[usize::from(peer.0)].failed(why, true, Instant::now());
    }

    /// Ends the loop as a crash would and forbids new ones; the block device is left to the next
    /// process.
    pub fn abandon(&self) {
        self.device.leave();
        let run = {
            let mut state = self.lock();
            state.is_closing = true;
            state.run.take()
        };
        self.changed.notify_all();
        drop(run);
    }

    /// Forbids new starts, when the daemon ends; wakes the dialers, so that they end with the loop.
    pub fn close(&self) {
        self.lock().is_closing = true;
        self.changed.notify_all();
    }
}

/// Why an incoming connection of a peer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerUnwelcome {
    /// The resource is not up here.
    Down,
    /// An operator disconnected the two.
    Disconnected,
}

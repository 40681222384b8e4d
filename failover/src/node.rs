//! One thread that steps the core of this node, and the handle the daemon holds. Sockets are read
//! by threads of their own, the record is written by another, so that a renewal of a lease never
//! waits behind an fsync (L1).

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use failover_core::acceptor::Record;
use failover_core::cluster::{ClusterState, Force};
use failover_core::command::Change;
use failover_core::facts::Placement;
use failover_core::message::Envelope;
use failover_core::node::{Config, Effect, Effects, Input, Node, Undecided};
use failover_core::verdict::Verdict;
use failover_core::{NodeName, Span, Time};
use nix::time::{ClockId, clock_gettime};
use replicator_core::register::RegisterState;
use thiserror::Error;

use crate::datagram::{Authenticate, Opened, Sealer};
use crate::etcd::{EndpointReport, Etcd, EtcdConfig, FileProblem, Told};
use crate::port::{Ports, Refused, Station};
use crate::store::{Store, StoreError};

/// The thread wakes at least so often, to look whether the data loops make progress.
const TURN: Duration = Duration::from_millis(50);
/// How long an operator's change may take before he is told what it waits for.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);
/// When a write of the record is said to hang.
const WRITE_HANGS_AFTER: Span = Span::from_ms(1_000);
/// When one that failed is tried again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What came before a promotion was ordered, for history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// How long the last primary, another node, had been silent; none when it was not lost.
    pub silent: Option<Duration>,
    /// The silence after which a node counts as lost.
    pub patience: Duration,
    /// How long ago an operator's order to have the office here became known; none without one.
    pub wanted: Option<Duration>,
}

/// What the node thread wants of the resources of this node. Called from that thread: nothing here
/// may wait.
pub trait Offices: Send + 'static {
    /// Take the office of primary; `force` is what an operator gave his word for.
    fn promote(&self, resource: &str, force: Force, why: &str, before: Before);
    /// Give it up orderly.
    fn hand_over(&self, resource: &str, to: &NodeName);
    /// Do not, as far as that can still be.
    fn keep_office(&self, resource: &str);
    /// How a proposal of the replica ended.
    fn decided(&self, resource: &str, number: u64, result: Result<RegisterState, Undecided>);
    /// The newest committed state.
    fn learned(&self, resource: &str, state: RegisterState);
    /// Until when this node may act as primary.
    fn lease_changed(&self, resource: &str, until: Option<Time>);
    /// The register changed.
    fn committed(&self, state: &ClusterState);
    /// When the data loop of a resource showed progress last; `None`: it is down.
    fn progress(&self, resource: &str) -> Option<Time>;
    /// The machine went back to an earlier time with its memory: the process is to end at once.
    fn went_back(&self);
    /// The thread lives: told at every turn, at least twenty times a second.
    fn turned(&self) {}
}

/// What the thread is given.
pub struct ClusterConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// What the core is told.
    pub core: Config,
    /// Where this node listens.
    pub listen: Vec<SocketAddr>,
    /// Where the others are reached, best first; every message goes to all of them.
    pub addresses: HashMap<NodeName, Vec<SocketAddr>>,
    /// Where the acceptor's record lives.
    pub directory: PathBuf,
    /// Where it would live if the register were of the other kind: a node that has one there
    /// belongs to that register.
    pub other_directory: PathBuf,
    /// Where etcd is, if it keeps the register.
    pub etcd: Option<EtcdConfig>,
    /// The code with the cluster's key.
    pub authenticate: Authenticate,
    /// Where an operator likes each resource to be.
    pub placements: Vec<(String, Placement)>,
}

/// Why the node cannot take part.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It belongs to a register of the other kind.
    #[error(
        "this node belongs to the register that {kept_by} ({path}): two registers must never \
         decide at a time. To move the cluster: stop replicatord on all nodes, remove that \
         directory on all nodes, change `register` in the file of all nodes, and start them"
    )]
    OtherRegister {
        /// Who keeps that one.
        kept_by: &'static str,
        /// Its record here.
        path: PathBuf,
    },
    /// A socket or thread.
    #[error("cannot {what}: {source}")]
    Io {
        /// What.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

enum Letter {
    Datagram(Box<Opened>),
    Fact(Input),
    Order { change: Change, why: String, reply: mpsc::Sender<Result<(), Verdict>> },
    Recover { without: Vec<NodeName>, why: String, reply: mpsc::Sender<Result<(), Verdict>> },
    Look(mpsc::Sender<Box<Node>>),
}

/// The daemon's handle of the node thread.
#[derive(Clone)]
pub struct Cluster {
    letters: mpsc::Sender<Letter>,
    refused: Arc<Refused>,
    ports: Ports,
    moved: Moved,
    etcd: Option<Etcd>,
    unwritten: Unwritten,
}

/// The record that is being written: since when, and why that failed, if it did.
type Unwritten = Arc<Mutex<Option<(Time, Option<StoreError>)>>>;

/// Where nodes say they are reached, by name.
type Moved = Arc<Mutex<HashMap<NodeName, Vec<SocketAddr>>>>;

impl Cluster {
    /// Opens the record and the sockets and starts the threads. Clusters that one process serves
    /// share its ports.
    pub fn start(
        config: ClusterConfig,
        ports: &Ports,
        offices: impl Offices,
    ) -> Result<Self, StartError> {
        check_other_register(&config)?;
        let (store, record) = Store::open(&config.directory)?;
        let (letters, inbox) = mpsc::channel();
        let refused = Arc::new(Refused::default());
        let me = config.core.name.clone();
        let own = config.addresses.get(&me).cloned().unwrap_or_default();
        let sealer = Sealer::new(&config.cluster, me, own, config.authenticate.clone());
        let moved = Moved::default();
        for address in &config.listen {
            let (letters, refused) = (letters.clone(), refused.clone());
            let give = move |opened| letters.send(Letter::Datagram(Box::new(opened))).is_ok();
            ports.listen(*address, Station::new(sealer.clone(), refused, give))?;
        }
        let unwritten = Unwritten::default();
        let records = start_writer(store, letters.clone(), unwritten.clone())?;
        let etcd = match &config.etcd {
            Some(etcd) => Some(start_etcd(etcd.clone(), &config.core.name, letters.clone())?),
            None => None,
        };
        let mut node = match &config.etcd {
            Some(etcd) => Node::start_with_etcd(config.core, record, etcd.cluster.clone(), now()),
            None => Node::start(config.core, record, now()),
        };
        for (resource, placement) in config.placements {
            node.place(&resource, placement);
        }
        let (addresses, told) = (config.addresses, moved.clone());
        let post = Post { sealer, addresses, moved: told, sockets: sending_sockets()? };
        let thread = NodeThread {
            node,
            offices: Box::new(offices),
            post,
            records,
            watched_at: Instant::now(),
            etcd: etcd.clone(),
            effects: Effects::new(),
            orders: HashMap::new(),
            wanted_since: HashMap::new(),
            next_ticket: 0,
        };
        spawn("cluster", move || thread.run(&inbox))?;
        Ok(Self { letters, refused, ports: ports.clone(), moved, etcd, unwritten })
    }

    /// Tells the core a fact.
    pub fn tell(&self, input: Input) {
        // The thread lives as long as the process.
        let _ = self.letters.send(Letter::Fact(input));
    }

    /// Has the register changed; waits for the end.
    pub fn order(&self, change: Change, why: &str) -> Result<(), Verdict> {
        let (reply, answer) = mpsc::channel();
        let _ = self.letters.send(Letter::Order { change, why: why.to_owned(), reply });
        self.wait_for(&answer)
    }

    /// Has this node go on without voters that are gone for ever; waits until that is durable.
    pub fn recover(&self, without: Vec<NodeName>, why: &str) -> Result<(), Verdict> {
        let (reply, answer) = mpsc::channel();
        let _ = self.letters.send(Letter::Recover { without, why: why.to_owned(), reply });
        self.wait_for(&answer)
    }

    /// Where a node says it is reached; empty before it was heard.
    pub fn addresses_of(&self, node: &NodeName) -> Vec<SocketAddr> {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.get(node).cloned().unwrap_or_default()
    }

    /// How the endpoints of etcd are; empty when the nodes keep the register themselves.
    pub fn etcd_endpoints(&self) -> Vec<EndpointReport> {
        self.etcd.as_ref().map_or_else(Vec::new, Etcd::endpoints)
    }

    /// Why the certificates for etcd cannot be used as they are now.
    pub fn etcd_file_trouble(&self) -> Option<FileProblem> {
        self.etcd.as_ref().and_then(Etcd::file_trouble)
    }

    fn wait_for(&self, answer: &mpsc::Receiver<Result<(), Verdict>>) -> Result<(), Verdict> {
        answer.recv_timeout(ORDER_PATIENCE).unwrap_or_else(|_| {
            let (code, rule, who) = match &self.etcd {
                Some(_) => ("no_etcd", "etcd", "etcd"),
                None => ("no_majority", "L6", "a majority of the voters"),
            };
            Err(Verdict::new(
                now(),
                code,
                rule,
                format!("{who} did not answer within {} s", ORDER_PATIENCE.as_secs()),
                "look at replctl status; the order stays open and is done when they answer"
                    .to_owned(),
            ))
        })
    }

    /// The core as it is now, to look at; none when the thread hangs.
    pub fn look(&self) -> Option<Box<Node>> {
        let (reply, answer) = mpsc::channel();
        self.letters.send(Letter::Look(reply)).ok()?;
        answer.recv_timeout(Duration::from_secs(2)).ok()
    }

    /// What keeps this node from voting: its record is not durable. Since when, and why.
    pub fn unwritten(&self) -> Option<(Time, String)> {
        let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, error) = unwritten.as_ref()?;
        match error {
            Some(error) => Some((*since, error.to_string())),
            None if now().since(*since) < WRITE_HANGS_AFTER => None,
            None => Some((*since, "the disk with its register does not answer".to_owned())),
        }
    }

    /// How many datagrams for this cluster were refused, and the last reason.
    pub fn refused(&self) -> (u64, String) {
        self.refused.told()
    }

    /// The same for datagrams that are for no cluster of this process.
    pub fn strangers(&self) -> (u64, String) {
        self.ports.strangers()
    }
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    let what = || format!("start the thread {name}");
    started.map(drop).map_err(|source| StartError::Io { what: what(), source })
}

/// A node that has a part in a register of the other kind does not begin another one: the other
/// nodes may still decide by the first.
fn check_other_register(config: &ClusterConfig) -> Result<(), StartError> {
    let path = config.other_directory.clone();
    if !path.exists() {
        return Ok(());
    }
    let (_, record) = Store::open(&path)?;
    let kept_by = if config.etcd.is_some() { "the nodes keep themselves" } else { "etcd keeps" };
    match record.accepted {
        None => Ok(()),
        Some(_) => Err(StartError::OtherRegister { kept_by, path }),
    }
}

fn start_etcd(
    config: EtcdConfig,
    me: &NodeName,
    letters: mpsc::Sender<Letter>,
) -> Result<Etcd, StartError> {
    let tell = move |told| {
        let fact = match told {
            Told::Answered { number, answer } => Input::EtcdAnswered { number, answer },
            Told::Changed => Input::EtcdChanged,
        };
        // The thread lives as long as the process.
        let _ = letters.send(Letter::Fact(fact));
    };
    let what = "start the thread etcd".to_owned();
    Etcd::start(config, me, tell).map_err(|source| StartError::Io { what, source })
}

/// Writes records, newest only, and tells when each is durable.
fn start_writer(
    mut store: Store,
    letters: mpsc::Sender<Letter>,
    unwritten: Unwritten,
) -> Result<mpsc::Sender<Box<Record>>, StartError> {
    let (records, inbox) = mpsc::channel::<Box<Record>>();
    let note = move |state| {
        *unwritten.lock().unwrap_or_else(PoisonError::into_inner) = state;
    };
    spawn("register", move || {
        while let Ok(mut record) = inbox.recv() {
            while let Ok(newer) = inbox.try_recv() {
                record = newer;
            }
            let since = now();
            note(Some((since, None)));
            while let Err(error) = store.write(&record) {
                // Without its record this node must not vote: it says nothing until it can write.
                tracing::error!("{error}; this node does not vote until that works");
                note(Some((since, Some(error))));
                thread::sleep(WRITE_AGAIN_AFTER);
            }
            note(None);
            let sequence = record.sequence;
            if letters.send(Letter::Fact(Input::RecordDurable { sequence })).is_err() {
                return;
            }
        }
    })?;
    Ok(records)
}

fn sending_sockets() -> Result<[Option<UdpSocket>; 2], StartError> {
    let bind = |address: SocketAddr| {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let what = || "open a socket to send from".to_owned();
    let v4 = bind((Ipv4Addr::UNSPECIFIED, 0).into())
        .map_err(|source: io::Error| StartError::Io { what: what(), source })?;
    // A machine without IPv6 has no peers there either.
    let v6 = bind((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
    Ok([Some(v4), v6])
}

struct Post {
    sealer: Sealer,
    addresses: HashMap<NodeName, Vec<SocketAddr>>,
    /// Where nodes say they are, whatever our file says.
    moved: Moved,
    sockets: [Option<UdpSocket>; 2],
}

impl Post {
    /// On every path there is. A datagram that cannot be sent is a lost one.
    fn send(&self, to: &NodeName, envelope: &Envelope) {
        let bytes = match self.sealer.seal(to, envelope) {
            Ok(bytes) => bytes,
            Err(error) => return tracing::error!("cannot say something to {to}: {error}"),
        };
        let told = {
            let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            moved.get(to).cloned().unwrap_or_default()
        };
        let configured = self.addresses.get(to).map_or(&[][..], Vec::as_slice);
        let new = told.iter().filter(|address| !configured.contains(address));
        for address in configured.iter().chain(new) {
            if let Some(socket) = &self.sockets[usize::from(address.is_ipv6())]
                && let Err(error) = socket.send_to(&bytes, address)
            {
                tracing::trace!("{to} at {address}: {error}");
            }
        }
    }
}

struct NodeThread {
    node: Node,
    offices: Box<dyn Offices>,
    post: Post,
    records: mpsc::Sender<Box<Record>>,
    /// When it looked last how the data loops get on, which is often also while letters come in
    /// without end: their leases hang on it (L1).
    watched_at: Instant,
    etcd: Option<Etcd>,
    effects: Effects,
    orders: HashMap<u64, mpsc::Sender<Result<(), Verdict>>>,
    /// Since when an operator wants a resource on this node, as far as is known here.
    wanted_since: HashMap<String, Instant>,
    next_ticket: u64,
}

impl NodeThread {
    fn run(mut self, inbox: &mpsc::Receiver<Letter>) {
        self.step(Input::TimePassed);
        loop {
            self.offices.turned();
            let deadline = self
                .node
                .next_deadline()
                .map_or(TURN, |at| Duration::from_nanos(at.since(now()).0).min(TURN));
            let letter = inbox.recv_timeout(deadline);
            if letter.is_err() || self.watched_at.elapsed() >= TURN {
                self.watched_at = Instant::now();
                self.watch_progress();
            }
            match letter {
                Ok(letter) => self.read(letter),
                Err(mpsc::RecvTimeoutError::Timeout) => self.step(Input::TimePassed),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn read(&mut self, letter: Letter) {
        match letter {
            Letter::Datagram(opened) => self.received(*opened),
            Letter::Fact(input) => self.step(input),
            Letter::Order { change, why, reply } => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                self.orders.insert(ticket, reply);
                self.step(Input::Ordered { ticket, change, why });
            }
            Letter::Recover { without, why, reply } => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                self.orders.insert(ticket, reply);
                self.step(Input::RecoverOrdered { ticket, without, why });
            }
            Letter::Look(reply) => {
                // Who asked may have gone.
                let _ = reply.send(Box::new(self.node.clone()));
            }
        }
    }

    fn received(&mut self, opened: Opened) {
        let Opened { from, addresses, envelope } = opened;
        let process = envelope.process;
        self.step(Input::Received { from: from.clone(), envelope: Box::new(envelope) });
        // A late message of a former process knows nothing of where the node is now.
        if self.node.detector().node(&from).is_some_and(|node| node.process == process) {
            let mut moved = self.post.moved.lock().unwrap_or_else(PoisonError::into_inner);
            if moved.get(&from) != Some(&addresses) {
                moved.insert(from, addresses);
            }
        }
    }

    fn watch_progress(&mut self) {
        let resources: Vec<String> = self.node.resources().cloned().collect();
        for resource in resources {
            if let Some(at) = self.offices.progress(&resource) {
                self.step(Input::LoopProgressed { resource, at });
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.node.step(now(), input, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        let offices = &self.offices;
        match effect {
            Effect::Send { to, envelope } => self.post.send(&to, &envelope),
            Effect::PersistRecord(record) => {
                // The writer lives as long as this thread.
                let _ = self.records.send(record);
            }
            Effect::AskEtcd { number, ask } => {
                if let Some(etcd) = &self.etcd {
                    etcd.ask(number, ask);
                }
            }
            Effect::LeaseChanged { resource, until } => offices.lease_changed(&resource, until),
            Effect::Learned { resource, state } => offices.learned(&resource, state),
            Effect::Decided { resource, number, result } => {
                offices.decided(&resource, number, result);
            }
            Effect::Promote { resource, force, why } => {
                offices.promote(&resource, force, &why, self.before(&resource));
            }
            Effect::HandOver { resource, to } => offices.hand_over(&resource, &to),
            Effect::KeepOffice { resource } => offices.keep_office(&resource),
            Effect::Answer { ticket, result } => {
                if let Some(reply) = self.orders.remove(&ticket) {
                    // The operator may no longer wait.
                    let _ = reply.send(result);
                }
            }
            Effect::Committed(state) => {
                offices.committed(&state);
                self.note_wanted(&state);
            }
            Effect::WentBack => offices.went_back(),
        }
    }

    fn note_wanted(&mut self, state: &ClusterState) {
        let me = &self.node.config().name;
        for entry in &state.resources {
            if entry.wanted.as_ref() == Some(me) {
                self.wanted_since.entry(entry.name.clone()).or_insert_with(Instant::now);
            } else {
                self.wanted_since.remove(&entry.name);
            }
        }
    }

    /// What came before a promotion that is ordered now.
    fn before(&self, resource: &str) -> Before {
        let holder = self.node.state().and_then(|state| state.resource(resource)?.holder.as_ref());
        let lost = holder.filter(|holder| holder.node != self.node.config().name);
        let silent = lost.and_then(|it| self.node.detector().silence(now(), &it.node));
        let in_real_time = |span: Span| Duration::from_nanos(span.0);
        Before {
            silent: silent.map(in_real_time),
            patience: in_real_time(self.node.detector().patience()),
            wanted: self.wanted_since.get(resource).map(Instant::elapsed),
        }
    }
}

/// The clock of the cores.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    Time(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// A number that tells this process from every other.
pub fn fresh_process() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The lease of a configuration in milliseconds as the cores want it.
pub fn lease_of(ms: u64) -> Span {
    Span::from_ms(ms)
}

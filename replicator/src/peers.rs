//! Connections between nodes: one listener for all resources, one dialer per resource and peer.
//! The node whose name sorts lower dials, so that two nodes never connect to each other at once.
//! A connection is handed to the data loop when both ends have proved who they are (`greeting`).

mod alive;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use replicator_core::PeerIndex;
use thiserror::Error;

use crate::config::{ClusterConfig, NodeConfig};
use crate::events::{Events, Weight};
use crate::greeting::{
    self, Agreement, Directory, Greeting, GreetingError, Identity, Nonce, Outcome, RefusalCode,
};
use crate::key::ClusterKey;
use crate::report::RefusedGreetings;
use crate::resource::{PeerUnwelcome, Resource};

/// A greeting is over after so long, one way or the other.
const GREETING_LIMIT: Duration = Duration::from_secs(4);
/// One attempt to reach one address.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Greetings at once from addresses of the configuration, and from all others together: strangers
/// cannot keep members out.
const GREETINGS_OF_MEMBERS_MAX: usize = 32;
const GREETINGS_OF_STRANGERS_MAX: usize = 4;
/// How often a listener tries an address that this machine does not have yet.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// A failed kind of greeting is logged at most this often.
const LOG_PAUSE: Duration = Duration::from_secs(30);
/// The kernel gives a connection up when sent bytes stay unacknowledged for so long; the core's own
/// time-outs are shorter, this one catches a core that is asleep.
const TCP_USER_TIMEOUT_MS: u32 = 10_000;

/// Everything that the threads of this file share.
pub struct Peers {
    cluster: Arc<ClusterConfig>,
    node: NodeConfig,
    key: ClusterKey,
    resources: Vec<Arc<Resource>>,
    events: Arc<Events>,
    failures: Mutex<BTreeMap<&'static str, Failures>>,
    /// When another node asked something last (`alive`).
    asked: Mutex<BTreeMap<String, Instant>>,
    member_greetings: AtomicUsize,
    stranger_greetings: AtomicUsize,
}

#[derive(Default)]
struct Failures {
    count: u64,
    last: String,
    logged_at: Option<Instant>,
}

/// Why a connection did not get through its greeting.
#[derive(Debug, Error)]
enum ConnectError {
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error("the greeting was not over after {} s", GREETING_LIMIT.as_secs())]
    TooSlow,
    #[error("the other end closed the connection during the greeting")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ConnectError {
    fn name(&self) -> &'static str {
        match self {
            Self::Greeting(error) => error.name(),
            Self::TooSlow => "too_slow",
            Self::Closed => "closed",
            Self::Io(_) => "io",
        }
    }

    /// Whether it needs a person, so that frequent attempts help nobody.
    fn needs_a_person(&self) -> bool {
        match self {
            Self::Greeting(GreetingError::RefusedByThem(refusal)) => {
                !matches!(refusal.code, RefusalCode::ResourceDown | RefusalCode::Busy)
            }
            Self::Greeting(_) => true,
            _ => false,
        }
    }
}

impl Peers {
    /// What the threads need.
    pub fn new(
        cluster: Arc<ClusterConfig>,
        node: NodeConfig,
        key: ClusterKey,
        resources: Vec<Arc<Resource>>,
        events: Arc<Events>,
    ) -> Self {
        Self {
            cluster,
            node,
            key,
            resources,
            events,
            failures: Mutex::default(),
            asked: Mutex::default(),
            member_greetings: AtomicUsize::new(0),
            stranger_greetings: AtomicUsize::new(0),
        }
    }

    /// Listens on the addresses of this node. An address in use is an error, one that the machine
    /// does not have yet is tried again in the background.
    pub fn listen(self: &Arc<Self>) -> io::Result<()> {
        for address in self.node.listen.clone() {
            let listener = match TcpListener::bind(address) {
                Ok(listener) => Some(listener),
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                    let text = format!("cannot listen on {address} yet: {error}; trying again");
                    self.events.emit(Weight::Warning, "", text);
                    None
                }
                Err(error) => {
                    let text = format!("cannot listen for peers on {address}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            };
            let peers = self.clone();
            thread::Builder::new()
                .name(format!("listen {address}"))
                .spawn(move || peers.accept_for_ever(address, listener))?;
        }
        Ok(())
    }

    /// Starts a dialer for every resource and peer that this node has to dial.
    pub fn dial(self: &Arc<Self>) -> io::Result<()> {
        for resource in &self.resources {
            for peer in resource.peers() {
                if self.node.name >= *peer {
                    continue;
                }
                let index = resource.peer_index(peer).expect("it is one of its peers");
                let (peers, resource, peer) = (self.clone(), resource.clone(), peer.clone());
                thread::Builder::new()
                    .name(format!("dial {peer}"))
                    .spawn(move || peers.dial_for_ever(&resource, &peer, index))?;
            }
        }
        Ok(())
    }

    /// Greetings that failed, by reason.
    pub fn refused_greetings(&self) -> Vec<RefusedGreetings> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(reason, failures): (&&'static str, &Failures)| RefusedGreetings {
            reason: (*reason).to_owned(),
            count: failures.count,
            last: failures.last.clone(),
        };
        failures.iter().map(report).collect()
    }

    fn note_failure(&self, with: &str, error: &ConnectError) {
        let text = format!("{with}: {error}");
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failures.entry(error.name()).or_default();
        entry.count += 1;
        entry.last.clone_from(&text);
        let is_due = entry.logged_at.is_none_or(|at| at.elapsed() >= LOG_PAUSE);
        if is_due {
            entry.logged_at = Some(Instant::now());
            drop(failures);
            self.events.emit(Weight::Warning, "", format!("no connection with {text}"));
        }
    }

    fn accept_for_ever(self: Arc<Self>, address: SocketAddr, listener: Option<TcpListener>) {
        let listener = listener.unwrap_or_else(|| {
            loop {
                thread::sleep(LISTEN_RETRY);
                if let Ok(listener) = TcpListener::bind(address) {
                    self.events.emit(Weight::Info, "", format!("listening on {address} now"));
                    break listener;
                }
            }
        });
        loop {
            match listener.accept() {
                Ok((stream, from)) => self.accepted(stream, from),
                Err(error) => {
                    tracing::warn!("cannot accept on {address}: {error}");
                    thread::sleep(LISTEN_RETRY);
                }
            }
        }
    }

    fn is_member_address(&self, ip: IpAddr) -> bool {
        let mut nodes = self.cluster.nodes.iter();
        nodes.any(|node| node.addresses.iter().any(|address| address.ip() == ip))
    }

    fn accepted(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) {
        let (slots, slots_max) = if self.is_member_address(from.ip()) {
            (Peers::member_slots as fn(&Self) -> &AtomicUsize, GREETINGS_OF_MEMBERS_MAX)
        } else {
            (Peers::stranger_slots as fn(&Self) -> &AtomicUsize, GREETINGS_OF_STRANGERS_MAX)
        };
        if slots(self).fetch_add(1, Ordering::Relaxed) >= slots_max {
            slots(self).fetch_sub(1, Ordering::Relaxed);
            send_busy(&stream);
            return;
        }
        let peers = self.clone();
        let spawned = thread::Builder::new().name("greet".into()).spawn(move || {
            peers.greet_dialer(stream, from);
            slots(&peers).fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            slots(self).fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn member_slots(&self) -> &AtomicUsize {
        &self.member_greetings
    }

    fn stranger_slots(&self) -> &AtomicUsize {
        &self.stranger_greetings
    }

    fn greet_dialer(&self, stream: TcpStream, from: SocketAddr) {
        let greeted = fresh_nonce().map_err(ConnectError::Io).and_then(|nonce| {
            let mut out = Vec::new();
            let greeting = Greeting::listen(
                self.key.clone(),
                self.cluster.cluster.clone(),
                self.node.name.clone(),
                nonce,
                &mut out,
            );
            converse(&stream, greeting, out, self)
        });
        match greeted {
            Ok((agreement, leftover)) => {
                let resource = self.resource(&agreement.resource).expect("admit has found it");
                let peer = resource.peer_index(&agreement.peer).expect("admit has found it");
                hand_over(resource, (peer, agreement.version), stream, leftover);
            }
            // It only wanted to know whether this node is alive.
            Err(ConnectError::Greeting(GreetingError::RefusedByUs(refusal)))
                if refusal.code == RefusalCode::Alive => {}
            Err(error) => {
                self.note_failure(&from.to_string(), &error);
                self.blame_for_status(from, &error);
            }
        }
    }

    /// The side that is dialled shows in its status too why a peer does not get in, when the
    /// address tells which peer that is.
    fn blame_for_status(&self, from: SocketAddr, error: &ConnectError) {
        if !matches!(error, ConnectError::Greeting(_)) {
            return;
        }
        let mut owners = self.cluster.nodes.iter().filter(|node| {
            node.name != self.node.name
                && node.addresses.iter().any(|address| address.ip() == from.ip())
        });
        // Several nodes on one machine share their address: then it tells nothing.
        let (Some(owner), None) = (owners.next(), owners.next()) else { return };
        if self.is_member_of_self(from.ip()) {
            return;
        }
        for resource in &self.resources {
            if let Some(peer) = resource.peer_index(&owner.name) {
                resource.greeting_failed(peer, error.to_string());
            }
        }
    }

    fn is_member_of_self(&self, ip: IpAddr) -> bool {
        self.node.addresses.iter().any(|address| address.ip() == ip)
    }

    fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|resource| resource.name() == name)
    }

    fn dial_for_ever(&self, resource: &Resource, peer: &str, index: PeerIndex) {
        let configured = self.cluster.node(peer).expect("peers are nodes").addresses.clone();
        while resource.wait_until_due(index) == ControlFlow::Continue(()) {
            let mut failure = None;
            let mut addresses = configured.clone();
            // A peer with a newer file says itself where it is.
            addresses.extend(resource.told_addresses(peer));
            for address in &addresses {
                match self.dial_once(*address, peer, resource.name()) {
                    Ok((stream, version, leftover)) => {
                        hand_over(resource, (index, version), stream, leftover);
                        failure = None;
                        break;
                    }
                    Err(error) => {
                        if !matches!(error, ConnectError::Io(_)) {
                            self.note_failure(&format!("{peer} at {address}"), &error);
                        }
                        let text = format!("{address}: {error}");
                        failure = Some((text, error.needs_a_person()));
                    }
                }
            }
            if let Some((why, rarely)) = failure {
                resource.dial_failed(index, why, rarely);
            }
        }
    }

    fn dial_once(
        &self,
        address: SocketAddr,
        peer: &str,
        resource: &str,
    ) -> Result<(TcpStream, u8, Vec<u8>), ConnectError> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
        let identity = Identity {
            cluster: self.cluster.cluster.clone(),
            node: self.node.name.clone(),
            peer: peer.to_owned(),
            resource: resource.to_owned(),
        };
        let mut out = Vec::new();
        let greeting = Greeting::dial(self.key.clone(), identity, fresh_nonce()?, &mut out);
        let (agreement, leftover) = converse(&stream, greeting, out, self)?;
        Ok((stream, agreement.version, leftover))
    }
}

impl Directory for Peers {
    fn admit(&self, identity: &Identity) -> Result<(), greeting::Refusal> {
        let refuse = |code, text: String| Err(greeting::Refusal { code, text });
        let me = &self.node.name;
        let (node, resource) = (&identity.node, &identity.resource);
        let is_data_node = self.cluster.node(node).is_some_and(|node| !node.witness);
        if !is_data_node {
            let text = format!(
                "the configuration of {me} has no data node {node}; it must be the same everywhere"
            );
            return refuse(RefusalCode::UnknownNode, text);
        }
        if let Some(answer) = self.answer(node, resource) {
            return Err(answer);
        }
        if node > me {
            let text = format!("{node} must wait for {me} to connect: the lower name dials");
            return refuse(RefusalCode::WrongSide, text);
        }
        let Some(found) = self.resource(resource) else {
            let text = format!("the configuration of {me} has no resource {resource}");
            return refuse(RefusalCode::UnknownResource, text);
        };
        let peer = found.peer_index(node).expect("every data node is a peer of the others");
        match found.peer_is_welcome(peer) {
            Ok(()) => Ok(()),
            Err(PeerUnwelcome::Down) => {
                refuse(RefusalCode::ResourceDown, format!("{resource} is not up on {me}"))
            }
            Err(PeerUnwelcome::Disconnected) => {
                let text = format!("{resource} was disconnected on {me} by an operator");
                refuse(RefusalCode::Disconnected, text)
            }
        }
    }
}

fn fresh_nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// Sends and receives until the greeting is over; what was received behind it.
fn converse(
    stream: &TcpStream,
    mut greeting: Greeting,
    mut out: Vec<u8>,
    directory: &dyn Directory,
) -> Result<(Agreement, Vec<u8>), ConnectError> {
    stream.set_nodelay(true)?;
    let deadline = Instant::now() + GREETING_LIMIT;
    let mut input = [0; 2048];
    loop {
        send_all(stream, &out, deadline)?;
        out.clear();
        let received = receive(stream, &mut input, deadline)?;
        let progress = greeting.feed(&input[..received], directory, &mut out);
        match progress.outcome {
            Outcome::NeedMore => {}
            Outcome::Agreed(agreement) => {
                send_all(stream, &out, deadline)?;
                return Ok((agreement, input[progress.consumed..received].to_vec()));
            }
            Outcome::Failed(error) => {
                let _ = send_all(stream, &out, deadline);
                let _ = stream.shutdown(Shutdown::Write);
                // Unread bytes would turn the close into a reset that eats the refusal just sent.
                let soon = Instant::now() + Duration::from_millis(200);
                while receive(stream, &mut input, soon.min(deadline)).is_ok() {}
                return Err(error.into());
            }
        }
    }
}

fn time_left(deadline: Instant) -> Result<Duration, ConnectError> {
    match deadline.checked_duration_since(Instant::now()) {
        None | Some(Duration::ZERO) => Err(ConnectError::TooSlow),
        Some(left) => Ok(left),
    }
}

fn send_all(stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> Result<(), ConnectError> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match (&mut { stream }).write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ConnectError::TooSlow);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive(
    stream: &TcpStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> Result<usize, ConnectError> {
    loop {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match (&mut { stream }).read(buffer) {
            Ok(0) => return Err(ConnectError::Closed),
            Ok(received) => return Ok(received),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ConnectError::TooSlow);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn send_busy(stream: &TcpStream) {
    // One small write into an empty buffer; whoever does not read it misses nothing.
    let _ = stream.set_nonblocking(true);
    let _ = (&mut { stream }).write(&greeting::busy_answer());
}

fn hand_over(
    resource: &Resource,
    (peer, version): (PeerIndex, u8),
    stream: TcpStream,
    leftover: Vec<u8>,
) {
    let prepared = prepare(&stream);
    if let Err(error) = prepared {
        resource.dial_failed(peer, format!("cannot set socket options: {error}"), false);
        return;
    }
    resource.give_peer(peer, version, OwnedFd::from(stream), leftover);
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &5)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

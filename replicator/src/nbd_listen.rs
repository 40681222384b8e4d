//! Connections of NBD clients: accepted on a Unix socket and, where configured, on TCP; negotiated
//! on a short-lived thread with a deadline; then handed to the data loop of the resource. Slow or
//! hostile clients can hold a bounded number of threads for a bounded time, and nothing else.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_frontend::export::{Export, Exports, Refusal, RefusalKind};
use nbd_frontend::negotiation::{self, CloseReason, Negotiation, State};
use nbd_frontend::session::Session;
use nix::sys::socket::{getsockopt, sockopt};

use crate::events::{Events, Weight};
use crate::resource::Resource;

/// A negotiation is over after so long, one way or the other.
const NEGOTIATION_LIMIT: Duration = Duration::from_secs(10);
/// Negotiations at once; whoever comes then is closed.
const NEGOTIATIONS_MAX: usize = 32;
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves negotiations for all resources of a node.
pub struct NbdPort {
    node: String,
    resources: Vec<Arc<Resource>>,
    events: Arc<Events>,
    negotiations: AtomicUsize,
}

impl NbdPort {
    /// What the threads need.
    pub fn new(node: String, resources: Vec<Arc<Resource>>, events: Arc<Events>) -> Self {
        Self { node, resources, events, negotiations: AtomicUsize::new(0) }
    }

    /// Accepts on a Unix socket.
    pub fn listen_unix(self: &Arc<Self>, listener: UnixListener) -> io::Result<()> {
        let port = self.clone();
        let accept = move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let origin = origin_of(&stream);
                        port.accepted(Socket::Unix(stream), origin);
                    }
                    Err(error) => port.accept_failed(&error),
                }
            }
        };
        thread::Builder::new().name("nbd unix".into()).spawn(accept).map(drop)
    }

    /// Accepts on a TCP address.
    pub fn listen_tcp(self: &Arc<Self>, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let text = format!("cannot listen for NBD clients on {address}: {error}");
            io::Error::new(error.kind(), text)
        })?;
        let port = self.clone();
        let accept = move || {
            loop {
                match listener.accept() {
                    Ok((stream, from)) => port.accepted(Socket::Tcp(stream), from.to_string()),
                    Err(error) => port.accept_failed(&error),
                }
            }
        };
        thread::Builder::new().name("nbd tcp".into()).spawn(accept).map(drop)
    }

    fn accept_failed(&self, error: &io::Error) {
        // Out of descriptors, as a rule: a pause lets others finish.
        tracing::warn!("cannot accept an NBD client: {error}");
        thread::sleep(ACCEPT_RETRY);
    }

    fn accepted(self: &Arc<Self>, socket: Socket, origin: String) {
        if self.negotiations.fetch_add(1, Ordering::Relaxed) >= NEGOTIATIONS_MAX {
            self.negotiations.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("NBD client {origin} was closed: too many negotiate at once");
            return;
        }
        let (port, client) = (self.clone(), origin.clone());
        let spawned = thread::Builder::new().name("negotiate".into()).spawn(move || {
            port.serve(socket, origin);
            port.negotiations.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            self.negotiations.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("NBD client {client} was closed: no thread for it: {error}");
        }
    }

    fn serve(&self, mut socket: Socket, origin: String) {
        let opened = match self.negotiate(&mut socket) {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(why) => {
                tracing::info!("NBD client {origin}: {why}");
                return;
            }
        };
        let found = self.resources.iter().find(|resource| resource.name() == opened.export);
        let Some(resource) = found else { return };
        if let Err(error) = socket.wait_for_ever() {
            tracing::info!("NBD client {origin}: {error}");
            return;
        }
        let given =
            resource.give_client(socket.into(), opened.session, opened.leftover, origin.clone());
        match given {
            Ok(()) => tracing::info!(resource = resource.name(), "NBD client {origin} connected"),
            Err(why) => {
                let text = format!("NBD client {origin} was closed: {why}");
                self.events.emit(Weight::Warning, resource.name(), text);
            }
        }
    }

    /// Ends with an open export, or with nothing when the client went its way.
    fn negotiate(&self, socket: &mut Socket) -> Result<Option<Opened>, String> {
        let deadline = Instant::now() + NEGOTIATION_LIMIT;
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("its negotiation was not over after {} s", NEGOTIATION_LIMIT.as_secs())
            }
            _ => error.to_string(),
        };
        let mut negotiation = Negotiation::new();
        let mut out = negotiation::greeting().to_vec();
        let mut buffer = [0; 4096];
        socket.send(&out, deadline).map_err(failed)?;
        loop {
            let received = socket.receive(&mut buffer, deadline).map_err(failed)?;
            if received == 0 {
                return Ok(None);
            }
            let mut input = &buffer[..received];
            loop {
                out.clear();
                let progress = negotiation.feed(input, self, &mut out);
                input = &input[progress.consumed..];
                socket.send(&out, deadline).map_err(failed)?;
                match progress.state {
                    State::NeedMore => break,
                    State::SendFirst => {}
                    State::Transmission { export, session } => {
                        let leftover = input.to_vec();
                        return Ok(Some(Opened { export: export.name, session, leftover }));
                    }
                    State::Close(CloseReason::Aborted) => return Ok(None),
                    State::Close(reason) => return Err(reason.to_string()),
                }
            }
        }
    }

    fn exported(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter().filter(|resource| resource.config.nbd)
    }
}

struct Opened {
    export: String,
    session: Session,
    leftover: Vec<u8>,
}

impl Exports for NbdPort {
    /// `RES`, `RES/0` (volume 0), or nothing when there is only one resource.
    fn lookup(&self, name: &str) -> Result<Export, Refusal> {
        let mut all = self.exported();
        let found = match name {
            "" => match (all.next(), all.next()) {
                (Some(only), None) => Some(only),
                _ => None,
            },
            _ => {
                let wanted = name.strip_suffix("/0").unwrap_or(name);
                all.find(|resource| resource.name() == wanted)
            }
        };
        let Some(resource) = found else {
            let names: Vec<&str> = self.exported().map(|resource| resource.name()).collect();
            let text =
                format!("{} has no export {name:?}; it has: {}", self.node, names.join(", "));
            return Err(Refusal { kind: RefusalKind::Unknown, text });
        };
        resource.open_export().map_err(|text| Refusal { kind: RefusalKind::Policy, text })
    }

    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for resource in self.exported() {
            match resource.open_export() {
                Ok(export) => each(&export.name, &export.description),
                Err(why) => each(resource.name(), &why),
            }
        }
    }
}

fn origin_of(stream: &UnixStream) -> String {
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(peer) => {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", peer.pid()));
            let name = name.unwrap_or_default();
            format!("process {} ({}), user {}", peer.pid(), name.trim_end(), peer.uid())
        }
        Err(_) => "a local process".into(),
    }
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            let left = Some(time_left(deadline)?);
            let received = match self {
                Self::Tcp(stream) => {
                    stream.set_read_timeout(left).and_then(|()| stream.read(buffer))
                }
                Self::Unix(stream) => {
                    stream.set_read_timeout(left).and_then(|()| stream.read(buffer))
                }
            };
            match received {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = Some(time_left(deadline)?);
            let sent = match self {
                Self::Tcp(stream) => {
                    stream.set_write_timeout(left).and_then(|()| stream.write(bytes))
                }
                Self::Unix(stream) => {
                    stream.set_write_timeout(left).and_then(|()| stream.write(bytes))
                }
            };
            match sent {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => bytes = &bytes[other?..],
            }
        }
        Ok(())
    }

    /// From now on the data loop has the deadlines.
    fn wait_for_ever(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)
            }
        }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(stream) => stream.into(),
            Socket::Unix(stream) => stream.into(),
        }
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        None | Some(Duration::ZERO) => Err(ErrorKind::TimedOut.into()),
        Some(left) => Ok(left),
    }
}

//! The data loop: one thread and one io_uring per resource that own the disk, the sockets of the
//! clients and the sockets of the peers together, and carry out what the replication core orders.
//!
//! How the daemon uses it:
//! 1. [`Disk::open`] (waits visibly for the lock), read the superblocks and the metadata region
//!    with [`Disk::read_meta`], then [`Disk::use_layout`]; attach the core.
//! 2. [`spawn`] with the disk, the core and a channel for [`FromLoop`].
//! 3. Hand over connections with [`LoopHandle::send`]: clients after the NBD negotiation
//!    ([`ToLoop::Client`]), peers after both sides proved that they know the key
//!    ([`ToLoop::Peer`]). Blocking or not does not matter; the loop sets what it needs.
//! 4. React to [`FromLoop`]: attach or detach the device, connect again after
//!    [`FromLoop::SessionEnded`], log the notes, answer operators.
//! 5. To stop: `Command::Stop`, wait for [`FromLoop::Stopped`], then [`LoopHandle::join`].
//!
//! The way of a request: `nbd_port` parses it and takes a buffer, the core says what to do with
//! it (`data_loop::turn` carries that out), `disk_port` and `peer_link` do it, `nbd_port` replies.

mod disk_port;
mod io;
mod outbox;
pub(crate) mod socket;
mod status;
mod turn;
mod volatile_cache;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use nbd_frontend::session::Session;
use nix::sys::eventfd::{EfdFlags, EventFd};
use replicator_core::register::RegisterState;
use replicator_core::{
    Answer, Command, Effects, Input, Note, PeerIndex, Refusal, Retry, SessionId, Span, Status,
    Ticket, Time,
};
use thiserror::Error;

pub use crate::buffers::ShareUse;
use crate::cluster::LeaseCell;
use crate::disk::Disk;
pub use crate::uring::RingError;

pub(crate) use io::{Io, Token};
pub(crate) use outbox::Outbox;
pub use status::{ClientStatus, Counters, LoopStatus, PoolStatus};

/// Orders that may wait in front of the loop; the daemon sends a few a second.
const MAILBOX_LENGTH: usize = 256;
/// Smallest pool that serves: every share must hold a few of the largest buffers.
pub const POOL_BYTES_MIN: usize = 16 << 20;
/// Size of the pool when the configuration says nothing.
pub const POOL_BYTES_DEFAULT: usize = 24 << 20;

/// What the loop drives: [`replicator_core`]'s replica, or a stand-in in tests and examples.
/// The meaning of the three is that of `replicator_core::Replica`.
pub trait Core: Send + 'static {
    /// Takes one fact and appends the orders that follow from it.
    fn step(&mut self, now: Time, input: Input, effects: &mut Effects);
    /// When the core wants `Input::TimePassed` at the latest.
    fn next_deadline(&self) -> Option<Time>;
    /// Whether clients may be answered with success at this time (R5a).
    fn holds_lease(&self, now: Time) -> bool;
    /// A snapshot for people.
    fn status(&self, now: Time) -> Status;
}

/// What a data loop is given at its start.
#[derive(Debug)]
pub struct LoopConfig {
    /// Name of the resource; becomes a part of the thread's name.
    pub resource: String,
    /// Opened, locked, with [`Disk::use_layout`] done.
    pub disk: Disk,
    /// Bytes of the buffer pool, at least [`POOL_BYTES_MIN`]; see [`POOL_BYTES_DEFAULT`].
    pub pool_bytes: usize,
    /// A client that does not read its replies for so long is dropped. An idle one is fine.
    pub client_timeout: Span,
    /// Until when this node may act as primary; none where no majority decides.
    pub lease: Option<Arc<LeaseCell>>,
}

/// What the daemon tells the loop.
#[derive(Debug)]
pub enum ToLoop {
    /// A client finished its negotiation. Closed at once while no device is open.
    Client {
        /// TCP or Unix stream socket, or the loop's end of a socket pair.
        stream: OwnedFd,
        /// What was negotiated.
        session: Session,
        /// Bytes that were received behind the negotiation.
        leftover: Vec<u8>,
        /// Who it is, for status: an address, `kernel`, ...
        origin: String,
    },
    /// A connection to a peer on which both ends proved that they know the key. An older session
    /// with the same peer is reported lost to the core first.
    Peer {
        /// Which peer.
        peer: PeerIndex,
        /// Higher than every earlier session with this peer.
        session: SessionId,
        /// The protocol version that both ends speak, by the greeting.
        version: u8,
        /// Stream socket.
        stream: OwnedFd,
        /// Bytes that were received behind the greeting.
        leftover: Vec<u8>,
    },
    /// An operator's command; answered by [`FromLoop::Answer`].
    Command {
        /// Comes back with the answer.
        ticket: Ticket,
        /// What to do.
        command: Command,
    },
    /// What a majority decided about the register. There is always room for it.
    Register(Input),
    /// Asks for a snapshot; the loop drops it silently when nobody listens any more.
    Status {
        /// Where to.
        reply: mpsc::Sender<LoopStatus>,
    },
}

/// What the loop tells the daemon.
#[derive(Debug)]
pub enum FromLoop {
    /// The answer to [`ToLoop::Command`].
    Answer {
        /// Which command.
        ticket: Ticket,
        /// Done, or refused with the reason.
        result: Result<Answer, Box<Refusal>>,
    },
    /// Clients are served from now on: open exports, attach the device.
    OpenDevice {
        /// The tenure this instance of the device belongs to.
        tenure: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// The open device is larger from now on.
    ResizeDevice {
        /// Its size.
        size_bytes: u64,
    },
    /// No client is served any more. The loop closes the client sockets itself: at once when
    /// forced, else when what they asked is answered.
    CloseDevice {
        /// Whether it was taken away rather than given up.
        forced: bool,
    },
    /// The connection to a peer is closed.
    SessionEnded {
        /// Which peer.
        peer: PeerIndex,
        /// Which session.
        session: SessionId,
        /// How soon to connect again.
        retry: Retry,
        /// In words, for log and status.
        why: String,
    },
    /// The core wants the register changed by a majority.
    Proposed {
        /// The core's number for it; comes back with the decision.
        number: u64,
        /// The state that is to follow.
        next: Box<RegisterState>,
        /// The generation that it replaces.
        expected: u64,
        /// On an operator's word.
        forced: bool,
    },
    /// For log, history and counters.
    Note(Note),
    /// Everything is on disk, the thread is about to end.
    Stopped,
    /// The loop cannot go on and ends; what was acknowledged is safe. For people.
    Fatal(String),
}

/// Why a loop could not be started or told something.
#[derive(Debug, Error)]
pub enum LoopError {
    /// No ring, see the text.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The kernel gave no memory for the pool.
    #[error("no memory for a buffer pool of {bytes} bytes: {source}; set pool_bytes lower")]
    Pool {
        /// What was asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The configured pool is too small to make progress.
    #[error("a buffer pool of {bytes} bytes is too small; at least {POOL_BYTES_MIN} are needed")]
    PoolTooSmall {
        /// What was configured.
        bytes: usize,
    },
    /// A thread or an event descriptor could not be made.
    #[error("cannot start the thread of resource {resource}: {source}")]
    Start {
        /// Whose.
        resource: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The loop ended before; the reason came as [`FromLoop`].
    #[error("the data loop of this resource has ended")]
    Ended,
    /// The loop has not taken what it was sent for a long time: a system call of it hangs.
    #[error("the data loop of this resource does not take orders; its disk may hang")]
    Stuck,
}

/// The daemon's end of a running loop. Dropping it ends the loop as a crash would: nothing is
/// lost, but the next start has more to do than after `Command::Stop`.
pub struct LoopHandle {
    mailbox: Mailbox,
    turned_at: Arc<AtomicU64>,
    disk_busy_since: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl LoopHandle {
    /// Gives the loop something; never blocks.
    pub fn send(&self, order: ToLoop) -> Result<(), LoopError> {
        self.mailbox.send(order)
    }

    /// When the loop began its latest turn (CLOCK_BOOTTIME). A healthy loop turns at least once
    /// a second; an older stamp means that a system call hangs.
    pub fn turned_at(&self) -> Time {
        Time(self.turned_at.load(Ordering::Relaxed))
    }

    /// Ends the loop's wait, so that it looks at its lease and shows that it lives.
    pub fn wake(&self) {
        self.mailbox.ring_bell();
    }

    /// When the loop showed progress last: it turned, and its disk does not hang (L1). A loop with
    /// nothing to do is woken by this question, so that the next answer is newer.
    pub fn progress(&self, disk_hangs_after: Span) -> Option<Time> {
        let since = Time(self.disk_busy_since.load(Ordering::Relaxed));
        if since.0 != 0 && io::now().since(since) > disk_hangs_after {
            return None;
        }
        self.wake();
        Some(self.turned_at())
    }

    /// For how long the disk has been at work without anything being done; none when it is not.
    pub fn disk_busy_for(&self) -> Option<Span> {
        let since = Time(self.disk_busy_since.load(Ordering::Relaxed));
        (since.0 != 0).then(|| io::now().since(since))
    }

    /// Waits for the end of the thread. Call it after [`FromLoop::Stopped`] or
    /// [`FromLoop::Fatal`]; before that it ends the loop as a crash would.
    pub fn join(mut self) {
        let thread = self.thread.take();
        drop(self);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the data loop's thread panicked");
        }
    }
}

impl Drop for LoopHandle {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// Starts the thread of a resource. Returns when its ring and pool exist, or why they do not.
pub fn spawn<C: Core>(
    config: LoopConfig,
    core: C,
    events: mpsc::Sender<FromLoop>,
) -> Result<LoopHandle, LoopError> {
    if config.pool_bytes < POOL_BYTES_MIN {
        return Err(LoopError::PoolTooSmall { bytes: config.pool_bytes });
    }
    let resource = config.resource.clone();
    let start_error = |source| LoopError::Start { resource: resource.clone(), source };
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|e| start_error(e.into()))?;
    let (mailbox, orders) = mailbox(bell);
    let turned_at = Arc::new(AtomicU64::new(io::now().0));
    let disk_busy_since = Arc::new(AtomicU64::new(0));
    let (ready, started) = mpsc::channel();
    let stamps =
        turn::Stamps { turned_at: turned_at.clone(), disk_busy_since: disk_busy_since.clone() };
    let thread = thread::Builder::new()
        .name(format!("data {}", config.resource))
        .spawn(move || turn::run(config, core, orders, events, stamps, ready))
        .map_err(start_error)?;
    match started.recv() {
        Ok(Ok(())) => Ok(LoopHandle { mailbox, turned_at, disk_busy_since, thread: Some(thread) }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(LoopError::Ended),
    }
}

/// What a majority decided, in its order. Nobody says it again, so it has a place however many
/// letters wait: one proposal of the core is open at a time, and of states only the newest counts.
type Decisions = Arc<Mutex<VecDeque<Input>>>;

/// The receiving half of the loop's mailbox.
struct Orders {
    letters: mpsc::Receiver<ToLoop>,
    decisions: Decisions,
    bell: Arc<EventFd>,
}

impl Orders {
    fn try_recv(&self) -> Result<ToLoop, mpsc::TryRecvError> {
        let decision = locked(&self.decisions).pop_front();
        decision.map_or_else(|| self.letters.try_recv(), |input| Ok(ToLoop::Register(input)))
    }
}

/// The sending half of the loop's mailbox: a bounded queue and a bell that ends its wait.
struct Mailbox {
    letters: Option<mpsc::SyncSender<ToLoop>>,
    decisions: Decisions,
    bell: Arc<EventFd>,
}

fn mailbox(bell: EventFd) -> (Mailbox, Orders) {
    let (sender, letters) = mpsc::sync_channel(MAILBOX_LENGTH);
    let (decisions, bell) = (Decisions::default(), Arc::new(bell));
    let orders = Orders { letters, decisions: decisions.clone(), bell: bell.clone() };
    (Mailbox { letters: Some(sender), decisions, bell }, orders)
}

fn locked(decisions: &Decisions) -> MutexGuard<'_, VecDeque<Input>> {
    decisions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    fn send(&self, order: ToLoop) -> Result<(), LoopError> {
        let letters = self.letters.as_ref().ok_or(LoopError::Ended)?;
        if let ToLoop::Register(decision) = order {
            self.leave(decision);
            self.ring_bell();
            return Ok(());
        }
        letters.try_send(order).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => LoopError::Stuck,
            mpsc::TrySendError::Disconnected(_) => LoopError::Ended,
        })?;
        self.ring_bell();
        Ok(())
    }

    fn leave(&self, decision: Input) {
        let mut decisions = locked(&self.decisions);
        let is_state = |input: &Input| matches!(input, Input::RegisterLearned(_));
        if is_state(&decision) && decisions.back().is_some_and(is_state) {
            decisions.pop_back();
        }
        decisions.push_back(decision);
    }

    /// Hangs up; the loop notices because it is woken and finds no sender.
    fn close(&mut self) {
        self.letters = None;
        self.ring_bell();
    }

    fn ring_bell(&self) {
        // Fails only when the counter is full, and then the loop is about to wake anyway.
        let _ = self.bell.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(generation: u64) -> ToLoop {
        let state = RegisterState { generation, ..RegisterState::default() };
        ToLoop::Register(Input::RegisterLearned(Box::new(state)))
    }

    fn decided(number: u64) -> ToLoop {
        let result = Ok(Box::new(RegisterState::default()));
        ToLoop::Register(Input::Decided { number, result })
    }

    #[test]
    fn what_was_decided_is_heard_by_a_loop_that_stood_still_while_its_mailbox_filled() {
        let (mailbox, orders) = mailbox(EventFd::new().unwrap());
        let (reply, _answer) = mpsc::channel();
        let mut filled = 0;
        while mailbox.send(ToLoop::Status { reply: reply.clone() }).is_ok() {
            filled += 1;
        }
        assert_eq!(filled, MAILBOX_LENGTH);
        mailbox.send(decided(7)).unwrap();
        for generation in 0..1_000 {
            mailbox.send(learned(generation)).unwrap();
        }
        let first = orders.try_recv().unwrap();
        assert!(matches!(first, ToLoop::Register(Input::Decided { number: 7, .. })), "{first:?}");
        let second = orders.try_recv().unwrap();
        let ToLoop::Register(Input::RegisterLearned(state)) = second else {
            panic!("{second:?}");
        };
        assert_eq!(state.generation, 999);
        for _ in 0..filled {
            assert!(matches!(orders.try_recv().unwrap(), ToLoop::Status { .. }));
        }
        assert_eq!(orders.try_recv().unwrap_err(), mpsc::TryRecvError::Empty);
    }
}

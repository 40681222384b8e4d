//! The thread that keeps one address: it sleeps until an order, a change of the network, a frame,
//! or a time comes.
//!
//! ```text
//!   Down ── start ──> Starting ── probed, and a fresh renewal ──> Up ── stop, or failed ──> Down
//! ```
//!
//! In `Up` the address is there only while the lease lasts. It comes and goes with it, and the
//! service runs all the same.

mod probe;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;

use failover_core::services::address::{Announcements, EXPIRY_LATENESS, life_s, longest_life_s};
use failover_core::{Span, Time};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::AddressConfig;
use super::place::{Choice, choose, failure, places};
use crate::guard::{AddressSlot, Registry};
use crate::netlink::{Event, Events, Life, Link, Mac, Requests};
use crate::node::now;
use crate::services::link_socket::{FRAME_BYTES_MAX, LinkSocket};
use crate::services::neighbour::{announcement, claim};
use crate::services::{Change, Condition, Failure};
use probe::Probe;

/// An address that the kernel does not let go is tried again so soon.
const REMOVE_RETRY: Span = Span::from_ms(50);
/// A start waits so long for a renewal that is fresh enough.
const RENEWAL_WITHIN: Span = Span::from_ms(3_000);
/// The kernel's own removal is known from one by hand by the time, within so much.
const CLOCK_SLACK: Span = Span::from_ms(50);
/// Frames read at a time, before orders are looked at again.
const FRAMES_MAX: usize = 64;

/// The words of conflicts.
const HAS_IT: &str = "says that it has";
const ANSWERS: &str = "still answers for";
const IN_USE: &str = "is in use on this network";

/// Whether what an address tells is that somebody else has it too.
pub fn is_conflict(text: &str) -> bool {
    [HAS_IT, ANSWERS, IN_USE].iter().any(|words| text.contains(words))
}

type Answer<T> = oneshot::Sender<T>;

/// What the keeper is told.
pub enum Order {
    /// Whether there is a link for the address.
    Prepare(Answer<Result<(), Failure>>),
    /// Have the address while the lease lasts.
    Start(Answer<Result<(), Failure>>),
    /// Remove it.
    Stop(Answer<Result<(), Failure>>),
    /// How it stands.
    Look(Answer<Result<Condition, Failure>>),
    /// To whom changes are told from now on.
    Watch(UnboundedSender<Change>),
    /// The lease was renewed until then, or is over.
    Lease(Option<Time>),
}

/// Where orders for the keeper are left.
pub struct Desk {
    orders: mpsc::Sender<Order>,
    bell: Arc<EventFd>,
}

impl Desk {
    /// Starts the thread.
    pub fn open(config: AddressConfig, registry: Registry) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags)?);
        let keeper = Keeper {
            requests: Requests::open()?,
            events: Events::open()?,
            inbox,
            bell: bell.clone(),
            config,
            registry,
            until: None,
            state: State::Down,
            watcher: None,
        };
        let name = format!("{}", keeper.config.address);
        thread::Builder::new().name(name).spawn(move || keeper.run())?;
        Ok(Self { orders, bell })
    }

    /// Leaves one.
    pub fn order(&self, order: Order) {
        // A keeper that ended answers by its silence.
        let _ = self.orders.send(order);
        let _ = self.bell.write(1);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let (orders, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.orders, orders));
        let _ = self.bell.write(1);
    }
}

/// Where the address is, or is to be.
struct Seat {
    choice: Choice,
    /// None where nobody is to be told (loopback, no Ethernet).
    socket: Option<(LinkSocket, Mac)>,
}

struct Starting {
    answer: Answer<Result<(), Failure>>,
    seat: Seat,
    probe: Probe,
    gives_up_at: Time,
}

struct Up {
    seat: Seat,
    /// There is one while the address is there: how it was refreshed last.
    present: Option<Present>,
    /// The kernel did not remove it; tried again then.
    stuck: Option<(AddressSlot, Time)>,
}

struct Present {
    refreshed_at: Time,
    life: Span,
    announcements: Announcements,
    slot: AddressSlot,
}

impl Present {
    /// Whether somebody has removed it by now, as he should.
    fn is_over(&self, at: Time) -> bool {
        let ends_at = self.refreshed_at + Span(self.life.0.saturating_sub(CLOCK_SLACK.0));
        self.slot.was_removed() || at >= ends_at
    }
}

enum State {
    Down,
    Starting(Box<Starting>),
    Up(Box<Up>),
}

struct Keeper {
    config: AddressConfig,
    registry: Registry,
    requests: Requests,
    events: Events,
    inbox: mpsc::Receiver<Order>,
    bell: Arc<EventFd>,
    /// The end of the lease.
    until: Option<Time>,
    state: State,
    watcher: Option<UnboundedSender<Change>>,
}

impl Keeper {
    fn run(mut self) {
        while self.take_orders() {
            self.pass_time();
            self.wait();
            self.read_events();
            self.read_frames();
        }
    }

    // ------------------------------------------------------------------ waiting

    fn wait(&self) {
        let timeout = match self.next_deadline() {
            None => PollTimeout::NONE,
            Some(at) => {
                let left_ms = at.since(now()).0.div_ceil(1_000_000).min(60_000);
                PollTimeout::try_from(left_ms as i32).unwrap_or(PollTimeout::ZERO)
            }
        };
        let mut look = vec![
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
        ];
        look.extend(self.socket().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        if let Err(error) = poll(&mut look, timeout)
            && error != Errno::EINTR
        {
            tracing::error!("{}: cannot wait: {error}", self.config);
            thread::sleep(std::time::Duration::from_millis(10));
        }
        // Only the bell's number is taken: the orders are in the inbox.
        let _ = self.bell.read();
    }

    fn socket(&self) -> Option<&LinkSocket> {
        let seat = match &self.state {
            State::Down => return None,
            State::Starting(starting) => &starting.seat,
            State::Up(up) => &up.seat,
        };
        seat.socket.as_ref().map(|(socket, _)| socket)
    }

    fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            State::Down => None,
            State::Starting(starting) => Some(
                starting.probe.next().unwrap_or(starting.gives_up_at).min(starting.gives_up_at),
            ),
            State::Up(up) => {
                let present = up.present.as_ref();
                let end = present.map(|_| self.until.unwrap_or_default());
                let announced = present.map(|present| present.announcements.next());
                let stuck = up.stuck.as_ref().map(|(_, at)| *at);
                [end, announced, stuck].into_iter().flatten().min()
            }
        }
    }

    // ------------------------------------------------------------------ orders

    /// Whether somebody may still give some.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(order) => self.take(order),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Who asked may have gone: answers to nobody are lost.
    fn take(&mut self, order: Order) {
        match order {
            Order::Prepare(answer) => drop(answer.send(self.choose().map(drop))),
            Order::Start(answer) => self.start(answer),
            Order::Stop(answer) => drop(answer.send(self.stop())),
            Order::Look(answer) => drop(answer.send(self.look())),
            Order::Watch(changes) => self.watcher = Some(changes),
            Order::Lease(until) => self.lease(until),
        }
    }

    fn choose(&mut self) -> Result<Choice, Failure> {
        let links = self.requests.links().map_err(unreadable)?;
        let addresses = self.requests.addresses().map_err(unreadable)?;
        choose(&self.config, &links, &addresses)
    }

    fn start(&mut self, answer: Answer<Result<(), Failure>>) {
        if let State::Up(up) = &self.state
            && up.present.is_some()
        {
            drop(answer.send(Ok(())));
            return;
        }
        match self.take_seat() {
            Ok(seat) => {
                // The last renewal may have come before anybody told us of renewals.
                self.until = self.until.max(self.registry.lease(&self.config.resource));
                // One that is there already is ours from before: nobody is asked.
                let is_asked = seat.socket.is_some() && !seat.choice.is_there;
                let (probe, gives_up_at) = (Probe::begin(now(), is_asked), now() + RENEWAL_WITHIN);
                self.state =
                    State::Starting(Box::new(Starting { answer, seat, probe, gives_up_at }));
            }
            Err(failure) => drop(answer.send(Err(failure))),
        }
    }

    fn take_seat(&mut self) -> Result<Seat, Failure> {
        let choice = self.choose()?;
        check_link(&choice.link)?;
        for place in &choice.misplaced {
            self.requests.remove_address(place).map_err(|error| self.not_removed(&error))?;
        }
        let socket = open_socket(&choice.link, &self.config).map_err(|error| {
            let why = format!("cannot listen on {}: {error}", choice.link.name);
            failure("no_packet_socket", why, "run the daemon as root or with CAP_NET_RAW")
        })?;
        Ok(Seat { choice, socket })
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let state = std::mem::replace(&mut self.state, State::Down);
        let removed = self.remove_everywhere();
        match state {
            State::Down => {}
            State::Starting(starting) => {
                let stopped = failure("stopped", format!("{} was stopped", self.config), "");
                drop(starting.answer.send(Err(stopped)));
            }
            // The guard knows of it as long as it is there.
            State::Up(mut up) if removed.is_err() => {
                let slot = up.present.take().map(|present| present.slot);
                up.stuck = up.stuck.take().or(slot.map(|slot| (slot, now() + REMOVE_RETRY)));
                self.state = State::Up(up);
            }
            State::Up(_) => {}
        }
        removed
    }

    /// Removes the address wherever it is, and looks.
    fn remove_everywhere(&mut self) -> Result<(), Failure> {
        let links = self.requests.links().map_err(unreadable)?;
        let there = self.requests.addresses().map_err(unreadable)?;
        for place in places(&self.config, &links, &there) {
            self.requests.remove_address(&place).map_err(|error| self.not_removed(&error))?;
        }
        let left = self.requests.addresses().map_err(unreadable)?;
        match places(&self.config, &links, &left).first() {
            None => Ok(()),
            Some(place) => Err(failure(
                "address_stays",
                format!("{} is there again on link {}", self.config, place.index),
                "something else adds it: look for it in the network configuration of the system",
            )),
        }
    }

    fn look(&mut self) -> Result<Condition, Failure> {
        let links = self.requests.links().map_err(unreadable)?;
        let addresses = self.requests.addresses().map_err(unreadable)?;
        let is_there = !places(&self.config, &links, &addresses).is_empty();
        let State::Up(up) = &self.state else {
            return Ok(if is_there { Condition::Running } else { Condition::Stopped });
        };
        let index = up.seat.choice.link.index;
        match links.iter().find(|link| link.index == index) {
            Some(link) => check_link(link)?,
            None => return Err(link_gone(&up.seat.choice.link)),
        }
        Ok(match &up.present {
            Some(_) if is_there => Condition::Running,
            Some(_) => Condition::Stopped,
            None => Condition::Degraded("withdrawn until the lease is back".into()),
        })
    }

    fn not_removed(&self, error: &io::Error) -> Failure {
        let next = "run the daemon as root or with CAP_NET_ADMIN";
        failure("address_not_removed", format!("cannot remove {}: {error}", self.config), next)
    }

    // ------------------------------------------------------------------ lease

    fn lease(&mut self, until: Option<Time>) {
        self.until = until;
        if until.is_none() {
            self.withdraw("the lease is over");
        } else if matches!(&self.state, State::Up(up) if up.stuck.is_none()) {
            self.refresh();
        }
        if matches!(&self.state, State::Starting(starting) if starting.probe.is_done()) {
            self.finish_start();
        }
    }

    /// How long the kernel may keep the address from now on, and until when it must be gone.
    fn life(&self, at: Time) -> Option<(u32, Span)> {
        let left = self.until?.since(at);
        let seconds = life_s(left, self.config.lease.get())?;
        Some((seconds, Span::from_ms(u64::from(seconds) * 1_000)))
    }

    /// Adds the address or prolongs its life, if the last renewal allows that now.
    fn refresh(&mut self) {
        let before = now();
        let Some((valid_s, life)) = self.life(before) else { return };
        let State::Up(up) = &mut self.state else { return };
        let choice = &up.seat.choice;
        // What the kernel or the guard removed meanwhile is new, and announced as such.
        up.present.take_if(|present| present.is_over(before));
        let slot = match &up.present {
            Some(_) => None,
            // The guard must know of it before the kernel does.
            None => Some(self.registry.guard_address(&self.config.resource, &choice.place)),
        };
        let life_of = Life { valid_s, is_source: self.config.is_source };
        if let Err(error) = self.requests.set_address(&choice.place, life_of, choice.has_route) {
            let why = format!("cannot refresh {} on {}: {error}", self.config, choice.link.name);
            return self.fail(why);
        }
        let after = now();
        let present = match (up.present.take(), slot) {
            (Some(present), _) => Present { refreshed_at: after, life, ..present },
            (None, Some(slot)) => Present {
                refreshed_at: after,
                life,
                announcements: Announcements::begin(after),
                slot,
            },
            (None, None) => unreachable!("what is not there has a new slot"),
        };
        up.present = Some(present);
        // We may have stood still between the decision and the kernel's deed.
        let left = self.until.map_or(Span(0), |until| until.since(after));
        if longest_life_s(left, self.config.lease.get()).is_none_or(|still_s| still_s < valid_s) {
            self.withdraw("it was refreshed too late");
        } else {
            self.announce();
        }
    }

    /// Removes the address; the service goes on, and has it again with the next renewal.
    fn withdraw(&mut self, why: &str) {
        let State::Up(up) = &mut self.state else { return };
        let Some(present) = up.present.take() else { return };
        tracing::info!("{} is withdrawn: {why}", self.config);
        self.remove_or_retry(present.slot);
    }

    fn remove_or_retry(&mut self, slot: AddressSlot) {
        let State::Up(up) = &mut self.state else { return };
        match self.requests.remove_address(&up.seat.choice.place) {
            Ok(_) => up.stuck = None,
            Err(error) => {
                tracing::error!("{} cannot be removed: {error}; trying again", self.config);
                up.stuck = Some((slot, now() + REMOVE_RETRY));
            }
        }
    }

    // ------------------------------------------------------------------ time

    fn pass_time(&mut self) {
        let at = now();
        match &mut self.state {
            State::Down => {}
            State::Starting(_) => self.go_on_starting(at),
            State::Up(up) => {
                if let Some((_, retry_at)) = &up.stuck {
                    if at >= *retry_at
                        && let Some((slot, _)) = up.stuck.take()
                    {
                        self.remove_or_retry(slot);
                    }
                } else if up.present.is_some() && self.until.is_none_or(|until| at >= until) {
                    self.withdraw("no renewal came before the end of the lease");
                } else {
                    self.announce();
                }
            }
        }
    }

    fn announce(&mut self) {
        let State::Up(up) = &mut self.state else { return };
        let Some(present) = &mut up.present else { return };
        if !present.announcements.take_due(now()) {
            return;
        }
        let Some((socket, mac)) = &up.seat.socket else { return };
        for frame in announcement(self.config.address, *mac) {
            if let Err(error) = socket.send(&frame) {
                tracing::warn!("{} could not be announced: {error}", self.config);
            }
        }
    }

    fn go_on_starting(&mut self, at: Time) {
        let State::Starting(starting) = &mut self.state else { return };
        if starting.answer.is_closed() {
            // Nobody waits for it any more: it took too long.
            self.state = State::Down;
            return;
        }
        if let Some((socket, mac)) = &starting.seat.socket {
            starting.probe.go_on(at, self.config.address, socket, *mac);
        }
        if starting.probe.is_done() {
            self.finish_start();
        }
        let State::Starting(starting) = &self.state else { return };
        if at >= starting.gives_up_at {
            let (why, next) = match self.until {
                Some(until) if at < until => (
                    "every renewal of the lease took too long to let the address be added",
                    "look at the network between the nodes, or write a longer lease_ms",
                ),
                _ => ("this node has no lease", "look at replctl explain"),
            };
            let why = format!("{}: {why}", self.config);
            self.answer_start(Err(failure("no_fresh_lease", why, next)));
        }
    }

    /// Adds it, if the last renewal is fresh enough; else with the next one.
    fn finish_start(&mut self) {
        if self.life(now()).is_none() {
            return;
        }
        let State::Starting(starting) = std::mem::replace(&mut self.state, State::Down) else {
            return;
        };
        let Starting { answer, seat, probe, gives_up_at } = *starting;
        if answer.is_closed() {
            return;
        }
        self.state = State::Up(Box::new(Up { seat, present: None, stuck: None }));
        self.refresh();
        match std::mem::replace(&mut self.state, State::Down) {
            State::Up(up) if up.present.is_some() => {
                self.state = State::Up(up);
                drop(answer.send(Ok(())));
            }
            // The kernel was too slow for this renewal: the next one will do.
            State::Up(up) if up.stuck.is_none() => {
                let seat = up.seat;
                self.state =
                    State::Starting(Box::new(Starting { answer, seat, probe, gives_up_at }));
            }
            _ => {
                let why = format!("{} could not be added", self.config);
                let next = "the log has the kernel's answer";
                drop(answer.send(Err(failure("address_not_added", why, next))));
            }
        }
    }

    fn answer_start(&mut self, result: Result<(), Failure>) {
        if let State::Starting(starting) = std::mem::replace(&mut self.state, State::Down) {
            drop(starting.answer.send(result));
        }
    }

    // ------------------------------------------------------------------ what others do

    fn read_events(&mut self) {
        let events = self.events.read().unwrap_or_else(|error| {
            tracing::error!("{}: cannot hear of changes: {error}", self.config);
            vec![Event::Missed]
        });
        for event in events {
            let State::Up(up) = &mut self.state else { continue };
            let (place, index) = (up.seat.choice.place, up.seat.choice.link.index);
            match event {
                Event::AddressGone(record) if record.place == place => self.check_presence(),
                Event::LinkThere(link) if link.index == index => self.link_changed(link),
                Event::LinkGone(link) if link.index == index => {
                    let why = format!("the interface {} is gone", link.name);
                    self.fail(why);
                }
                Event::Missed => {
                    self.check_presence();
                    self.check_own_link();
                }
                _ => {}
            }
        }
    }

    /// Whether the address is still there, and if not, who removed it.
    fn check_presence(&mut self) {
        let State::Up(up) = &mut self.state else { return };
        let Some(present) = &up.present else { return };
        let place = up.seat.choice.place;
        let Ok(addresses) = self.requests.addresses() else { return };
        if addresses.iter().any(|record| record.place == place) {
            return;
        }
        if present.is_over(now()) {
            let by = if present.slot.was_removed() { "the guard" } else { "the kernel" };
            let late = now().since(present.refreshed_at + present.life).as_ms();
            tracing::warn!(
                "{} was removed by {by}: no renewal for too long ({late} ms after its life)",
                self.config
            );
            if by == "the kernel" && late > EXPIRY_LATENESS.as_ms() {
                let life = present.life.as_ms();
                self.tell(Change::Warning(format!(
                    "the kernel removed {} {late} ms after its life of {life} ms",
                    self.config
                )));
            }
            let State::Up(up) = &mut self.state else { return };
            up.present = None;
            return;
        }
        let name = up.seat.choice.link.name.clone();
        self.fail(format!("{} was removed from {name} by somebody else", self.config));
    }

    fn check_own_link(&mut self) {
        let State::Up(up) = &self.state else { return };
        let own = up.seat.choice.link.clone();
        let Ok(links) = self.requests.links() else { return };
        match links.into_iter().find(|link| link.index == own.index) {
            Some(link) => self.link_changed(link),
            None => self.fail(link_gone(&own).why),
        }
    }

    fn link_changed(&mut self, link: Link) {
        let State::Up(up) = &mut self.state else { return };
        let before = std::mem::replace(&mut up.seat.choice.link, link.clone());
        if before.works() && !link.works() {
            let lost = check_link(&link).err().map_or_else(String::new, |failure| failure.why);
            self.tell(Change::Failed(lost));
        } else if before.mac != link.mac || (!before.works() && link.works()) {
            match open_socket(&link, &self.config) {
                Ok(socket) => up.seat.socket = socket,
                Err(error) => tracing::warn!("{}: {}: {error}", self.config, link.name),
            }
            if let Some(present) = &mut up.present {
                present.announcements = Announcements::begin(now());
            }
            self.announce();
        }
    }

    fn read_frames(&mut self) {
        let mut buffer = [0; FRAME_BYTES_MAX];
        for _ in 0..FRAMES_MAX {
            let Some(socket) = self.socket() else { return };
            let foreign = match socket.receive(&mut buffer) {
                Ok(Some(frame)) => {
                    claim(frame).filter(|claim| claim.address == self.config.address)
                }
                Ok(None) => return,
                // The link went down: its event says so.
                Err(_) => return,
            };
            if let Some(claim) = foreign {
                self.claimed(claim.mac);
            }
        }
    }

    /// Somebody says that the address is his.
    fn claimed(&mut self, mac: Mac) {
        match &mut self.state {
            State::Down => {}
            State::Starting(starting) => {
                let own = starting.seat.socket.as_ref().map(|(_, own)| *own);
                if own != Some(mac) && !starting.probe.is_done() {
                    self.probe_answered(mac);
                }
            }
            State::Up(up) => {
                let own = up.seat.socket.as_ref().map(|(_, own)| *own);
                let Some(present) = &mut up.present else { return };
                if own != Some(mac) && present.announcements.contest(now()) {
                    self.announce();
                    self.tell(Change::Warning(format!(
                        "{mac} {HAS_IT} {} too",
                        self.config.address
                    )));
                }
            }
        }
    }

    fn probe_answered(&mut self, mac: Mac) {
        let address = self.config.address;
        if self.is_of_a_peer(mac) {
            self.tell(Change::Warning(format!(
                "another node ({mac}) {ANSWERS} {address}, after its lease"
            )));
            return;
        }
        self.answer_start(Err(failure(
            "address_in_use",
            format!("{address} {IN_USE}, by {mac}"),
            "find that machine and take the address away from it; the start is tried again",
        )));
    }

    /// Whether the kernel knows this hardware address as that of another node.
    fn is_of_a_peer(&mut self, mac: Mac) -> bool {
        let neighbours = self.requests.neighbours().unwrap_or_default();
        neighbours.iter().any(|it| it.mac == mac && self.config.peers.contains(&it.address))
    }

    // ------------------------------------------------------------------ telling

    /// Something beyond the lease took the address away: the engine decides what to do.
    fn fail(&mut self, why: String) {
        if let State::Up(up) = &mut self.state
            && up.present.take().is_some()
        {
            // Whatever is left of it must not outlive the failure.
            let _ = self.requests.remove_address(&up.seat.choice.place);
        }
        self.state = State::Down;
        tracing::error!("{why}");
        self.tell(Change::Failed(why));
    }

    fn tell(&mut self, change: Change) {
        if let Some(watcher) = &self.watcher
            && watcher.send(change).is_err()
        {
            self.watcher = None;
        }
    }
}

fn open_socket(link: &Link, config: &AddressConfig) -> io::Result<Option<(LinkSocket, Mac)>> {
    match link.mac {
        Some(mac) if !link.is_loopback && !link.is_noarp => {
            Ok(Some((LinkSocket::open(link.index, config.address)?, mac)))
        }
        _ => Ok(None),
    }
}

fn check_link(link: &Link) -> Result<(), Failure> {
    let name = &link.name;
    if !link.is_up {
        let next = format!("ip link set {name} up");
        return Err(failure("link_down", format!("{name} is down"), &next));
    }
    if !link.has_carrier {
        let next = "look at the cable and the switch";
        return Err(failure("no_carrier", format!("{name} has no carrier"), next));
    }
    Ok(())
}

fn link_gone(link: &Link) -> Failure {
    failure("link_gone", format!("the interface {} is gone", link.name), "bring it back")
}

fn unreadable(error: io::Error) -> Failure {
    let why = format!("cannot read the network configuration of the kernel: {error}");
    failure("network_unreadable", why, "look at the log of the kernel")
}

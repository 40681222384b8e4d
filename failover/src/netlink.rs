//! Addresses, links and neighbours of this machine by the kernel's route netlink.
//!
//! Everything here is one request and its answer, synchronous, in buffers of a fixed size: the
//! guard must not allocate when it removes an address, and a request that was left in the queue of
//! a busy runtime would prolong an address after the lease is over. A call may wait for the
//! kernel's lock on the network configuration, so it belongs on a thread of its own.

mod message;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub use message::{AddressRecord, Event, Link, Mac, Neighbour};
use message::{Builder, Messages, flag, kind};

/// The kernel answers at once; this only bounds what must never happen.
const ANSWER_WITHIN_S: i64 = 5;
const BUFFER_BYTES: usize = 32 * 1024;
/// A dump that other changes interrupted is asked for again, at most so often.
const DUMPS_MAX: usize = 5;

const GROUP_LINK: u32 = 1;
const GROUP_IPV4_ADDRESS: u32 = 0x10;
const GROUP_IPV6_ADDRESS: u32 = 0x100;

/// How long the kernel keeps an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// Removed by the kernel after so many seconds.
    pub valid_s: u32,
    /// Whether the kernel may choose it as the source of new connections.
    pub is_source: bool,
}

/// One address on one link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The link.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
}

impl Place {
    /// Whether another address is of the network of this one.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.is_same_network(&Self { address, ..*self })
    }

    /// Whether both are of one network, with one prefix.
    pub fn is_same_network(&self, other: &Self) -> bool {
        let (difference, bits) = match (self.address, other.address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                (u128::from(u32::from(one) ^ u32::from(other)), 32)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => (u128::from(one) ^ u128::from(other), 128),
            _ => return false,
        };
        let host_bits = u32::saturating_sub(bits, self.prefix.into());
        // A shift by all bits leaves nothing of the mask: everything is one network.
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        self.prefix == other.prefix && difference & mask == 0
    }
}

/// A socket for requests.
#[derive(Debug)]
pub struct Requests {
    socket: OwnedFd,
    sequence: u32,
}

impl Requests {
    /// Opens one, in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = route_socket(0, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN_S))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds an address, or sets the life of one that is there. `has_route`: another address of the
    /// link makes the route to its network already, and a second one that expires would take that
    /// away with it.
    pub fn set_address(&mut self, place: &Place, life: Life, has_route: bool) -> io::Result<()> {
        let flags = flag::ACK | flag::CREATE | flag::REPLACE;
        let mut builder = Builder::address(kind::NEW_ADDRESS, flags, self.next(), place);
        if let (IpAddr::V4(address), 1..=30) = (place.address, place.prefix) {
            let broadcast = u32::from(address) | (u32::MAX >> place.prefix);
            builder.broadcast(Ipv4Addr::from(broadcast));
        }
        builder.life(life, has_route);
        self.order(builder.finish())
    }

    /// Removes an address; whether it was there. Allocates nothing.
    pub fn remove_address(&mut self, place: &Place) -> io::Result<bool> {
        let mut builder = Builder::address(kind::DELETE_ADDRESS, flag::ACK, self.next(), place);
        match self.order(builder.finish()) {
            Ok(()) => Ok(true),
            // The link went with it.
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EADDRNOTAVAIL | Errno::ENODEV)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// All addresses.
    pub fn addresses(&mut self) -> io::Result<Vec<AddressRecord>> {
        self.dump(kind::GET_ADDRESS, 8, |message| message.address())
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        self.dump(kind::GET_LINK, 16, |message| message.link())
    }

    /// All neighbours that the kernel knows by their hardware address.
    pub fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        self.dump(kind::GET_NEIGHBOUR, 12, |message| message.neighbour())
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and waits for the kernel's word on it.
    fn order(&mut self, request: &[u8]) -> io::Result<()> {
        send_all(&self.socket, request)?;
        let mut bytes = [0; 1024];
        loop {
            let length = receive(&self.socket, &mut bytes)?;
            for message in Messages::new(&bytes[..length]) {
                if message.sequence == self.sequence && message.kind == kind::ERROR {
                    return message.verdict();
                }
            }
        }
    }

    fn dump<T>(
        &mut self,
        kind: u16,
        header_bytes: usize,
        read: impl Fn(&message::Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMPS_MAX {
            let sequence = self.next();
            send_all(&self.socket, Builder::dump(kind, sequence, header_bytes).finish())?;
            if let Some(found) = self.collect(sequence, &read)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the network configuration changes faster than it can be read"))
    }

    /// The parts of a dump; `None` when it is not of one moment.
    fn collect<T>(
        &self,
        sequence: u32,
        read: impl Fn(&message::Message<'_>) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        let mut found = Vec::new();
        let mut is_whole = true;
        let mut bytes = vec![0; BUFFER_BYTES];
        loop {
            let length = receive(&self.socket, &mut bytes)?;
            for message in Messages::new(&bytes[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                is_whole &= !message.is_interrupted();
                match message.kind {
                    kind::DONE => return Ok(is_whole.then_some(found)),
                    kind::ERROR => message.verdict()?,
                    _ => found.extend(read(&message)),
                }
            }
        }
    }
}

/// What changes, as the kernel tells it.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
}

impl Events {
    /// Listens from now on.
    pub fn open() -> io::Result<Self> {
        let groups = GROUP_LINK | GROUP_IPV4_ADDRESS | GROUP_IPV6_ADDRESS;
        let socket = route_socket(groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        Ok(Self { socket })
    }

    /// What has happened; empty when nothing has.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut found = Vec::new();
        let mut bytes = vec![0; BUFFER_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(length) => {
                    found.extend(Messages::new(&bytes[..length]).filter_map(|it| it.event()));
                }
                Err(Errno::EAGAIN) => return Ok(found),
                Err(Errno::EINTR) => {}
                // More happened than the socket holds.
                Err(Errno::ENOBUFS) => found.push(Event::Missed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn route_socket(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn send_all(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

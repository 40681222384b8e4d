//! One target is asked once or twice. Every function here waits, at most [`ANSWER_WITHIN`], and
//! belongs on a thread that may.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use failover_core::services::ReachTarget;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv,
    send, socket,
};

use crate::netlink::{AddressRecord, Link, Requests};
use crate::services::link_socket::{FRAME_BYTES_MAX, LinkSocket};
use crate::services::neighbour::{claim, echo_request, is_echo_reply, solicitation};

/// How long a target has to answer.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(800);
/// Who has not answered by then is asked a second time.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Whether a target answers; if not, why.
pub fn answers(target: &ReachTarget, interface: Option<&str>) -> Result<(), String> {
    let asked = match target {
        ReachTarget::Neighbour(address) => neighbour(*address, interface),
        ReachTarget::Ping(address) => ping(*address),
        ReachTarget::Tcp(address, port) => tcp(SocketAddr::new(*address, *port)),
    };
    match asked {
        Ok(true) => Ok(()),
        Ok(false) => Err("no answer".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn tcp(address: SocketAddr) -> io::Result<bool> {
    match TcpStream::connect_timeout(&address, ANSWER_WITHIN) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error),
    }
}

fn ping(address: IpAddr) -> io::Result<bool> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Others ping too: our numbers begin with the process.
    let number = (std::process::id() << 16) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff);
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    let request = echo_request(address, number);
    let mut packet = [0; FRAME_BYTES_MAX];
    until_answered(
        socket.as_fd(),
        || match send(socket.as_raw_fd(), &request, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        },
        || match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => Ok(Some(is_echo_reply(address.is_ipv4(), &packet[..length], number))),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        },
    )
}

fn neighbour(address: IpAddr, interface: Option<&str>) -> io::Result<bool> {
    let mut requests = Requests::open()?;
    let (links, addresses) = (requests.links()?, requests.addresses()?);
    let Some((link, from)) = way_to(address, interface, &links, &addresses) else {
        let why = format!("no link has an address of the network of {address}");
        return Err(io::Error::other(why));
    };
    let question = link.mac.and_then(|mac| solicitation(address, from, mac));
    let Some(question) = question else {
        return Err(io::Error::other(format!("{} is no Ethernet", link.name)));
    };
    let socket = LinkSocket::open(link.index, address)?;
    let mut frame = [0; FRAME_BYTES_MAX];
    until_answered(
        socket.as_fd(),
        || socket.send(&question),
        || {
            let received = socket.receive(&mut frame)?;
            Ok(received.map(|frame| claim(frame).is_some_and(|it| it.address == address)))
        },
    )
}

/// The link to a neighbour, and our address there.
fn way_to<'a>(
    address: IpAddr,
    interface: Option<&str>,
    links: &'a [Link],
    addresses: &[AddressRecord],
) -> Option<(&'a Link, IpAddr)> {
    let candidates = addresses.iter().map(|record| &record.place).filter_map(|place| {
        let link = links.iter().find(|link| link.index == place.index)?;
        let is_wanted = interface.is_none_or(|name| link.name == name) && !link.is_loopback;
        (is_wanted && place.address != address && place.covers(address)).then_some((place, link))
    });
    candidates.max_by_key(|(place, _)| place.prefix).map(|(place, link)| (link, place.address))
}

/// Asks, and once more, until the answer is there or the time is over. `hear` gives nothing when
/// there is nothing to be heard, and whether what it heard is the answer.
fn until_answered(
    fd: BorrowedFd<'_>,
    mut ask: impl FnMut() -> io::Result<()>,
    mut hear: impl FnMut() -> io::Result<Option<bool>>,
) -> io::Result<bool> {
    let began = Instant::now();
    let mut ask_at = Duration::ZERO;
    loop {
        let passed = began.elapsed();
        if passed >= ANSWER_WITHIN {
            return Ok(false);
        }
        if passed >= ask_at {
            ask()?;
            ask_at = if ask_at.is_zero() { ASKED_AGAIN_AFTER } else { ANSWER_WITHIN };
        }
        let left = ask_at.min(ANSWER_WITHIN).saturating_sub(began.elapsed());
        let left_ms = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut look = [PollFd::new(fd, PollFlags::POLLIN)];
        // An interrupted sleep is a short one.
        let _ = poll(&mut look, PollTimeout::from(left_ms));
        while let Some(is_answer) = hear()? {
            if is_answer {
                return Ok(true);
            }
        }
    }
}

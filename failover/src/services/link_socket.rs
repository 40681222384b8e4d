//! A socket on one link that sends and hears the frames by which a network learns who has an
//! address. The only `unsafe` of the services: nix cannot make such a socket.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

/// More than any frame that is looked at.
pub const FRAME_BYTES_MAX: usize = 512;

/// Hears ARP, or neighbour solicitations and advertisements, on one link.
#[derive(Debug)]
pub struct LinkSocket {
    socket: OwnedFd,
}

impl LinkSocket {
    /// On the link of that number, for addresses of the family of `address`.
    pub fn open(link: u32, address: IpAddr) -> io::Result<Self> {
        let protocol = if address.is_ipv4() { libc::ETH_P_ARP } else { libc::ETH_P_IPV6 };
        let protocol = (protocol as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // It hears nothing (protocol 0) until the filter is there and it is bound.
        // SAFETY: socket() takes plain numbers and touches no memory of ours.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if address.is_ipv6() {
            hear_only_neighbour_discovery(&socket)?;
        }
        bind(&socket, link, protocol)?;
        Ok(Self { socket })
    }

    /// Sends a whole Ethernet frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// The next frame that came, if one did; it is cut at the length of the buffer.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for LinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(socket: &OwnedFd, link: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: link as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_ll, `length` is its size, and bind() only reads it.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// All IPv6 traffic of the link would come here: the kernel is to pass only ICMPv6 of types 135
/// and 136.
fn hear_only_neighbour_discovery(socket: &OwnedFd) -> io::Result<()> {
    const NEXT_HEADER_AT: u32 = 14 + 6;
    const ICMP_TYPE_AT: u32 = 14 + 40;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let word = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        word(LOAD_BYTE, NEXT_HEADER_AT, 0, 0),
        word(JUMP_EQUAL, 58, 0, 4),
        word(LOAD_BYTE, ICMP_TYPE_AT, 0, 0),
        word(JUMP_EQUAL, 135, 1, 0),
        word(JUMP_EQUAL, 136, 0, 1),
        word(RETURN, FRAME_BYTES_MAX as u32, 0, 0),
        word(RETURN, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let length = size_of_val(&filter) as libc::socklen_t;
    // SAFETY: `filter` points to `program`, which lives until after the call and has `len` words;
    // the kernel copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

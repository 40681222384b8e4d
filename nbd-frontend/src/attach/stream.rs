//! The pair of sockets between a device and the data loop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

/// Room for some large requests: a sender that can stop half way through one gets the kernel's nbd
/// driver confused before Linux 7.3, and stalls the others behind it in any case.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Two connected stream sockets: the device's end, and the data loop's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (device, data_loop) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    for end in [&device, &data_loop] {
        if setsockopt(end, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
            // Without CAP_NET_ADMIN the system's limit applies.
            setsockopt(end, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        }
    }
    Ok((device, data_loop))
}

/// Whether the other end is closed.
pub fn is_hung_up(end: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

//! What the loop needs of a socket that it takes over.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{self, Shutdown, sockopt};

/// What a socket may hold of each direction: a few of the largest requests.
const SOCKET_BYTES: usize = 1 << 20;

/// Makes a socket blocking (the ring waits for it), prompt (no Nagle) and roomy.
pub(crate) fn prepare(stream: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
    fcntl(stream, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    // Fails on what is not TCP, where it is not needed.
    let _ = socket::setsockopt(stream, sockopt::TcpNoDelay, &true);
    // Beyond the usual limit only with privileges; without, as much as is allowed.
    if socket::setsockopt(stream, sockopt::SndBufForce, &SOCKET_BYTES).is_err() {
        let _ = socket::setsockopt(stream, sockopt::SndBuf, &SOCKET_BYTES);
    }
    if socket::setsockopt(stream, sockopt::RcvBufForce, &SOCKET_BYTES).is_err() {
        let _ = socket::setsockopt(stream, sockopt::RcvBuf, &SOCKET_BYTES);
    }
    Ok(())
}

/// Ends both directions, and with them every operation that waits on the socket.
pub(crate) fn shut_down(stream: &OwnedFd) {
    // Fails only when the other side was faster.
    let _ = socket::shutdown(stream.as_raw_fd(), Shutdown::Both);
}

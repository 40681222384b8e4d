//! One process, held by a pidfd: its death is noticed at once, and a signal never meets another
//! process that got its number. The system calls that nix does not have are only here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime tell when something happens to a descriptor.
pub fn attend(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same and open for as long as the result owns it.
    let attended = unsafe { AsyncFd::register_with_interest(fd, interest) };
    attended.map_err(io::Error::from)
}

/// A process that cannot be taken for another one.
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Takes hold of the process that has this number now.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes plain numbers and touches no memory of ours.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        Ok(Self { fd })
    }

    /// Sends a signal. One that is dead already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let null = std::ptr::null::<libc::siginfo_t>();
        let fd = self.fd.as_raw_fd();
        // SAFETY: the descriptor is open, and a null siginfo is what the call takes for "as kill".
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, null, 0) };
        match nix::errno::Errno::result(done) {
            Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ends when the process has ended, also as a zombie.
    pub async fn ended(self) -> io::Result<()> {
        let fd = attend(self.fd, Interest::READABLE)?;
        fd.readable().await?.retain_ready();
        Ok(())
    }
}

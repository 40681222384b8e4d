//! A tiny process that holds descriptors over a restart of the daemon, where no systemd does.
//!
//! It owns a Unix socket in the runtime directory and a table of name and descriptor. Each message
//! is one packet: a letter, then the name. `P` (put, with the descriptor) and `D` (drop) change the
//! table, `G` (get) answers with a copy, `Q` ends the process. It also ends by itself when a drop
//! leaves the table empty, so that nothing of ours stays behind.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::syscalls::{adopt_received, close_inherited};

const PUT: u8 = b'P';
const GET: u8 = b'G';
const DROP: u8 = b'D';
const QUIT: u8 = b'Q';
const DONE: u8 = b'K';
const ABSENT: u8 = b'N';
/// A letter and a name.
const PACKET_BYTES_MAX: usize = 256;
/// Descriptors held at most; one per resource.
const HELD_MAX: usize = 1024;
/// A client that is silent for so long is cut off, in seconds.
const PATIENCE_S: i64 = 5;

/// The socket of the holder in this runtime directory.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("holder.sock")
}

/// Runs the holder. Returns in the foreground process as soon as the socket listens and the process
/// in the background serves it; in the background process, when the holder has nothing left to do.
///
/// `replicatord holder RUNTIME_DIR` calls this and exits. The process must have no other thread,
/// and no open descriptor but the three standard ones: all others are closed.
pub fn run(runtime_dir: &Path) -> io::Result<()> {
    // Foreign pipes and locks must not live as long as we do.
    close_inherited()?;
    // The daemon may have blocked its signals when it started us.
    nix::sys::signal::SigSet::all().thread_unblock()?;
    let path = socket_path(runtime_dir);
    let listener = seqpacket()?;
    // A socket file that nobody listens to is left over from a killed holder.
    if call(&path, GET, "", None).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("a holder already listens at {}", path.display()),
        ));
    }
    let _ = fs::remove_file(&path);
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &UnixAddr::new(&path)?);
    nix::sys::stat::umask(mask);
    bound?;
    listen(&listener, Backlog::new(16)?)?;
    nix::unistd::daemon(false, false)?;
    let mut held = HashMap::new();
    loop {
        let client = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => adopt_received(vec![fd]).remove(0),
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        // A client that misbehaves or has gone loses its connection, nothing else.
        if matches!(serve(&client, &mut held), Ok(Then::End)) {
            let _ = fs::remove_file(&path);
            return Ok(());
        }
    }
}

enum Then {
    Continue,
    End,
}

/// Answers the one request of a client.
fn serve(client: &OwnedFd, held: &mut HashMap<String, OwnedFd>) -> io::Result<Then> {
    limit_waiting(client)?;
    let peer = getsockopt(client, sockopt::PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (letter, name, fd) = receive(client)?;
    match letter {
        PUT => {
            let fd = fd.ok_or(io::ErrorKind::InvalidData)?;
            if held.len() >= HELD_MAX && !held.contains_key(&name) {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            held.insert(name, fd);
            send(client, DONE, "", None)?;
        }
        GET => match held.get(&name) {
            Some(fd) => send(client, DONE, "", Some(fd.as_fd()))?,
            None => send(client, ABSENT, "", None)?,
        },
        DROP => {
            let was_held = held.remove(&name).is_some();
            send(client, if was_held { DONE } else { ABSENT }, "", None)?;
            if was_held && held.is_empty() {
                return Ok(Then::End);
            }
        }
        QUIT => {
            send(client, DONE, "", None)?;
            return Ok(Then::End);
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(Then::Continue)
}

/// The daemon's side: how to reach the holder, and how to start it.
#[derive(Debug, Clone)]
pub struct Client {
    runtime_dir: PathBuf,
    command: Vec<OsString>,
}

impl Client {
    /// `command` starts a program that calls [`run`], for example
    /// `["/usr/sbin/replicatord", "holder", "/run/replicator"]`.
    pub fn new(runtime_dir: &Path, command: Vec<OsString>) -> Self {
        assert!(!command.is_empty(), "the command of the holder is empty");
        Self { runtime_dir: runtime_dir.to_path_buf(), command }
    }

    /// Gives a copy of `fd` to the holder, which is started if it does not run.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let path = socket_path(&self.runtime_dir);
        if call(&path, PUT, name, Some(fd)).is_ok() {
            return Ok(());
        }
        self.start()?;
        call(&path, PUT, name, Some(fd)).map(drop)
    }

    /// A copy of the descriptor held under `name`; `None` when there is none or no holder.
    pub fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match call(&socket_path(&self.runtime_dir), GET, name, None) {
            Err(error) if nobody_there(&error) => Ok(None),
            other => other,
        }
    }

    /// Makes the holder close what it holds under `name`.
    pub fn drop_held(&self, name: &str) -> io::Result<()> {
        match call(&socket_path(&self.runtime_dir), DROP, name, None) {
            Err(error) if nobody_there(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends the holder, which closes all it holds.
    pub fn quit(&self) -> io::Result<()> {
        match call(&socket_path(&self.runtime_dir), QUIT, "", None) {
            Err(error) if nobody_there(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The command returns when its child in the background listens.
    fn start(&self) -> io::Result<()> {
        fs::create_dir_all(&self.runtime_dir)?;
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .current_dir("/")
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("the holder {:?} did not start: {reason}", self.command)))
    }
}

fn nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn call(
    path: &Path,
    letter: u8,
    name: &str,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<Option<OwnedFd>> {
    let socket = seqpacket()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    limit_waiting(&socket)?;
    send(&socket, letter, name, fd)?;
    match receive(&socket)? {
        (DONE, _, fd) => Ok(fd),
        (ABSENT, ..) => Ok(None),
        _ => Err(io::Error::other(format!("nonsense from the holder at {}", path.display()))),
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

fn limit_waiting(socket: &OwnedFd) -> io::Result<()> {
    let patience = TimeVal::seconds(PATIENCE_S);
    setsockopt(socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(setsockopt(socket, sockopt::SendTimeout, &patience)?)
}

fn send(socket: &OwnedFd, letter: u8, name: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    assert!(name.len() < PACKET_BYTES_MAX, "name of {} bytes", name.len());
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let letter = [letter];
    let parts = [IoSlice::new(&letter), IoSlice::new(name.as_bytes())];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<(u8, String, Option<OwnedFd>)> {
    let mut packet = [0; PACKET_BYTES_MAX];
    let mut control = cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            fds.extend(adopt_received(raw));
        }
    }
    let length = message.bytes;
    let (&letter, name) = packet[..length].split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
    let name = std::str::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((letter, name.to_owned(), fds.pop()))
}

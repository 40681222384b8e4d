//! Where a descriptor outlives the daemon: in the descriptor store of systemd, or in our holder.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Mutex;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

use super::holder;
use super::syscalls::duplicate_inherited;

/// The first descriptor that systemd passes.
const FIRST_PASSED: RawFd = 3;
/// In front of our names in the store of systemd.
const STORE_PREFIX: &str = "attach-";

/// Keeps descriptors alive while the daemon restarts.
#[derive(Debug)]
pub enum Keeper {
    /// The descriptor store of systemd; the unit needs `FileDescriptorStoreMax=`.
    Systemd {
        /// Path of the notification socket.
        notify_socket: OsString,
        /// What systemd handed to this process at its start.
        inherited: Mutex<HashMap<String, OwnedFd>>,
    },
    /// A process of our own.
    Holder(holder::Client),
    /// Nothing: a device of kind FUSE dies with the daemon.
    Nobody,
}

impl Keeper {
    /// Chooses systemd when it runs this process, else a holder that `holder_command` starts.
    ///
    /// Call it once, early in main, as it reads the environment. See [`holder::Client::new`].
    pub fn choose(runtime_dir: &Path, holder_command: Vec<OsString>) -> Self {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(notify_socket) => {
                Self::Systemd { notify_socket, inherited: Mutex::new(inherited_descriptors()) }
            }
            None => Self::Holder(holder::Client::new(runtime_dir, holder_command)),
        }
    }

    /// Keeps a copy of `fd` under `name`, in place of what was there.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Systemd { notify_socket, .. } => {
                let text = format!("FDSTORE=1\nFDNAME={}", store_name(name));
                notify(notify_socket, &text, Some(fd))
            }
            Self::Holder(client) => client.put(name, fd),
            Self::Nobody => Ok(()),
        }
    }

    /// A copy of what an earlier daemon put under `name`.
    pub fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Systemd { inherited, .. } => {
                let inherited = inherited.lock().expect("no holder of this lock panics");
                inherited.get(&store_name(name)).map(|fd| fd.try_clone()).transpose()
            }
            Self::Holder(client) => client.get(name),
            Self::Nobody => Ok(None),
        }
    }

    /// Forgets `name`; every copy of the descriptor outside this process' own hands is closed.
    pub fn drop_kept(&self, name: &str) -> io::Result<()> {
        match self {
            Self::Systemd { notify_socket, inherited } => {
                inherited.lock().expect("no holder of this lock panics").remove(&store_name(name));
                notify(
                    notify_socket,
                    &format!("FDSTOREREMOVE=1\nFDNAME={}", store_name(name)),
                    None,
                )
            }
            Self::Holder(client) => client.drop_held(name),
            Self::Nobody => Ok(()),
        }
    }
}

/// Names in the store may hold no colon; ours have none, and a slash only between two parts.
fn store_name(name: &str) -> String {
    format!("{STORE_PREFIX}{name}")
}

/// Our descriptors among those that systemd passed.
fn inherited_descriptors() -> HashMap<String, OwnedFd> {
    let number = |variable| std::env::var(variable).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return HashMap::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0) as usize;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let numbered = names.split(':').take(count).zip(FIRST_PASSED..);
    numbered
        .filter(|(name, _)| name.starts_with(STORE_PREFIX))
        .filter_map(|(name, fd)| {
            let copy = duplicate_inherited(fd).ok()?;
            // The passed number itself would stay open for ever and keep a dead device alive.
            let _ = nix::unistd::close(fd);
            Some((name.to_owned(), copy))
        })
        .collect()
}

fn notify(path: &OsString, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let name = path.as_encoded_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(name)?,
    };
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let parts = [IoSlice::new(text.as_bytes())];
    let fd = socket.as_fd().as_raw_fd();
    sendmsg(fd, &parts, control, MsgFlags::MSG_NOSIGNAL, Some(&address))?;
    Ok(())
}

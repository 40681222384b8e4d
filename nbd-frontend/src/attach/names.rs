//! The names under /dev/replicator: one link for the device, one for each partition, kept right by
//! the kernel's own events, as udev may be absent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::disk::Disk;

/// The link of a resource's device and of its partitions.
#[derive(Debug, Clone)]
pub struct Names {
    link: PathBuf,
}

impl Names {
    /// The names of `resource` in `device_dir`.
    pub fn new(device_dir: &Path, resource: &str) -> Self {
        Self { link: device_dir.join(resource) }
    }

    /// The path that users mount.
    pub fn path(&self) -> &Path {
        &self.link
    }

    /// Points the names at `disk`.
    pub fn publish(&self, disk: &Disk) -> io::Result<()> {
        if let Some(parent) = self.link.parent() {
            fs::create_dir_all(parent)?;
        }
        point(&self.link, &disk.node()?)?;
        self.refresh_partitions(disk)
    }

    /// Removes the names.
    pub fn remove(&self) -> io::Result<()> {
        for (_, link) in self.partition_links()? {
            fs::remove_file(link)?;
        }
        match fs::remove_file(&self.link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the partition links fit what the kernel has found on the disk.
    fn refresh_partitions(&self, disk: &Disk) -> io::Result<()> {
        let mut wanted = Vec::new();
        for part in disk.parts()?.into_iter().skip(1) {
            let Some(suffix) = part.name.strip_prefix(disk.name()) else { continue };
            wanted.push((suffix.to_owned(), part.node()?));
        }
        for (suffix, link) in self.partition_links()? {
            if !wanted.iter().any(|(wanted, _)| *wanted == suffix) {
                fs::remove_file(link)?;
            }
        }
        for (suffix, node) in wanted {
            let mut link = self.link.clone().into_os_string();
            link.push(&suffix);
            point(Path::new(&link), &node)?;
        }
        Ok(())
    }

    /// Links named like a partition of ours: `p1` of `mariadbp1`, with its path. A resource whose
    /// name ends like a partition is told apart by where its link points.
    fn partition_links(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let (Some(parent), Some(name)) = (self.link.parent(), self.link.file_name()) else {
            return Ok(Vec::new());
        };
        let Ok(entries) = fs::read_dir(parent) else { return Ok(Vec::new()) };
        let name = name.to_string_lossy();
        let is_partition = |suffix: &str| {
            suffix
                .strip_prefix('p')
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let suffix = file.strip_prefix(&*name)?.to_owned();
                let target = fs::read_link(entry.path()).ok()?;
                let ours = is_partition(&suffix) && target.to_str()?.ends_with(&suffix);
                ours.then(|| (suffix, entry.path()))
            })
            .collect())
    }
}

/// Replaces or makes a link in one step: nobody finds it missing.
fn point(link: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    if fs::symlink_metadata(link).is_ok_and(|found| !found.file_type().is_symlink()) {
        let text = format!("{} exists and is not a link; remove it", link.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let mut fresh = link.to_path_buf().into_os_string();
    fresh.push(".new");
    let _ = fs::remove_file(&fresh);
    symlink(target, &fresh)?;
    fs::rename(&fresh, link)
}

/// A thread that follows the kernel's events and keeps the partition links right.
pub struct Watch {
    stop: std::sync::Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to follow `disk`. The thread begins with a look of its own, so that no change before
    /// its first event is missed.
    pub fn start(names: Names, disk: Disk) -> io::Result<Self> {
        let events = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        const KERNEL_EVENTS: u32 = 1;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
        let stop = std::sync::Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let thread = std::thread::Builder::new().name(format!("names-{}", disk.name())).spawn({
            let stop = stop.clone();
            move || follow(&names, &disk, &events, &stop)
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(names: &Names, disk: &Disk, events: &OwnedFd, stop: &EventFd) {
    let about_us = format!("/block/{}/", disk.name());
    let mut buffer = vec![0; 8192];
    let mut stale = true;
    loop {
        if std::mem::take(&mut stale)
            && let Err(error) = names.refresh_partitions(disk)
        {
            tracing::warn!("partition names of {}: {error}", names.path().display());
        }
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if fds[0].any() == Some(true) {
            return;
        }
        loop {
            match recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    stale |= String::from_utf8_lossy(&buffer[..length]).contains(&about_us)
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // Events were lost: look for ourselves.
                Err(_) => {
                    stale = true;
                    break;
                }
            }
        }
    }
}

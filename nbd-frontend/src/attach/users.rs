//! Who uses a block device: mounts, swap, other devices stacked on it, processes that have it open.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::{Disk, Part, block_device_at, parse_dev};

/// In what way a device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKind {
    /// A file system on it is mounted.
    Mount,
    /// The kernel swaps to it.
    Swap,
    /// Another block device is built on it (device mapper, md, bcache, loop).
    Device,
    /// A process has it open.
    Process,
    /// Something in the kernel has claimed it, and no other sign of it can be seen from here.
    Unknown,
}

/// One user of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// In what way it uses the device.
    pub kind: UserKind,
    /// The disk or partition in use (`nbd0p1`), as the kernel names it.
    pub name: String,
    /// The process, or one process that sees the mount when that is in another mount namespace.
    pub pid: Option<u32>,
    /// The mount point, swap device, stacked device or program.
    pub path: Option<PathBuf>,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_deref().unwrap_or(Path::new("?")).display();
        match (self.kind, self.pid) {
            (UserKind::Mount, None) => write!(f, "{} is mounted on {path}", self.name),
            (UserKind::Mount, Some(pid)) => {
                write!(
                    f,
                    "{} is mounted on {path} in the mount namespace of process {pid}",
                    self.name
                )
            }
            (UserKind::Swap, _) => write!(f, "{} is swap space", self.name),
            (UserKind::Device, _) => write!(f, "{} is part of {path}", self.name),
            (UserKind::Process, pid) => {
                write!(f, "{} is open in process {} ({path})", self.name, pid.unwrap_or(0))
            }
            (UserKind::Unknown, _) => {
                write!(
                    f,
                    "{} is claimed in the kernel, perhaps in a namespace unseen here",
                    self.name
                )
            }
        }
    }
}

/// Everybody who uses the disk or a partition of it, as far as /proc and /sys show. This process is
/// left out. Never touches the device itself.
pub fn find_users(disk: &Disk) -> io::Result<Vec<User>> {
    let parts = disk.parts()?;
    let mut users = mounts(&parts);
    users.extend(btrfs_members(&parts, &users));
    users.extend(swaps(&parts));
    users.extend(stacked_devices(&parts));
    users.extend(loops(&parts));
    users.extend(processes(&parts));
    Ok(users)
}

fn part_of(parts: &[Part], rdev: u64) -> Option<&Part> {
    parts.iter().find(|part| part.rdev == rdev)
}

fn user(kind: UserKind, part: &Part, pid: Option<u32>, path: impl Into<PathBuf>) -> User {
    User { kind, name: part.name.clone(), pid, path: Some(path.into()) }
}

/// The processes that /proc shows, lowest number first.
fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Mounts of every mount namespace that some visible process lives in.
fn mounts(parts: &[Part]) -> Vec<User> {
    let own = std::process::id();
    let mut seen = HashSet::new();
    let mut users = Vec::new();
    // Our own namespace first, so that a mount everybody sees is not told as somebody else's.
    for pid in std::iter::once(own).chain(pids()) {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/mnt")) else { continue };
        if !seen.insert(namespace.ino()) {
            continue;
        }
        let Ok(table) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        for line in table.lines() {
            let Some((rdev, source, point)) = parse_mount(line) else { continue };
            // btrfs shows a number of its own, so that only the source tells the device.
            let part = part_of(parts, rdev).or_else(|| {
                let inside = PathBuf::from(format!("/proc/{pid}/root{source}"));
                source
                    .starts_with('/')
                    .then(|| block_device_at(&inside))?
                    .and_then(|rdev| part_of(parts, rdev))
            });
            let Some(part) = part else { continue };
            let found = user(UserKind::Mount, part, (pid != own).then_some(pid), point);
            // Services with a mount namespace of their own see most mounts at the same place.
            let is_known = |known: &User| (&known.name, &known.path) == (&found.name, &found.path);
            if !users.iter().any(is_known) {
                users.push(found);
            }
        }
    }
    users
}

/// Device number, source and mount point of a line of mountinfo.
fn parse_mount(line: &str) -> Option<(u64, String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let rdev = parse_dev(fields.nth(2)?)?;
    let point = fields.nth(1)?;
    Some((rdev, unescape(right.split(' ').nth(1)?), unescape(point)))
}

/// Undoes the `\040` of /proc's tables.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = rest.get(1..4).filter(|_| first == b'\\');
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Members of a mounted btrfs that no mount names.
fn btrfs_members(parts: &[Part], known: &[User]) -> Vec<User> {
    let Ok(file_systems) = fs::read_dir("/sys/fs/btrfs") else { return Vec::new() };
    let file_systems: Vec<_> = file_systems.flatten().collect();
    let mut users = Vec::new();
    for part in parts {
        if known.iter().any(|user| user.name == part.name) {
            continue;
        }
        for file_system in &file_systems {
            if file_system.path().join("devices").join(&part.name).exists() {
                let name = format!("btrfs {}", file_system.file_name().to_string_lossy());
                users.push(user(UserKind::Mount, part, None, name));
            }
        }
    }
    users
}

fn swaps(parts: &[Part]) -> Vec<User> {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    devices
        .map(|path| PathBuf::from(unescape(path)))
        .filter_map(|path| {
            let part = part_of(parts, block_device_at(&path)?)?;
            Some(user(UserKind::Swap, part, None, path))
        })
        .collect()
}

/// Device mapper, md and others, which the kernel lists as holders.
fn stacked_devices(parts: &[Part]) -> Vec<User> {
    let mut users = Vec::new();
    for part in parts {
        let Ok(holders) = fs::read_dir(part.sysfs.join("holders")) else { continue };
        for holder in holders.flatten() {
            let name = holder.file_name().to_string_lossy().into_owned();
            let mapped = fs::read_to_string(format!("/sys/block/{name}/dm/name"));
            let shown = mapped.map_or(format!("/dev/{name}"), |mapped| {
                format!("/dev/mapper/{}", mapped.trim_end())
            });
            users.push(user(UserKind::Device, part, None, shown));
        }
    }
    users
}

/// Loop devices on top of our device; they are no holders in /sys.
fn loops(parts: &[Part]) -> Vec<User> {
    Disk::all("loop")
        .into_iter()
        .filter_map(|disk| {
            let backing = PathBuf::from(disk.read("loop/backing_file").ok()?);
            // A loop device on FUSE may name a file that cannot be looked at without waiting.
            backing.starts_with("/dev").then_some(())?;
            let part = part_of(parts, block_device_at(&backing)?)?;
            Some(user(UserKind::Device, part, None, Path::new("/dev").join(disk.name())))
        })
        .collect()
}

/// Processes that have a node of the device open.
fn processes(parts: &[Part]) -> Vec<User> {
    let own = std::process::id();
    let mut users = Vec::new();
    for pid in pids().into_iter().filter(|pid| *pid != own) {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut found = HashSet::new();
        for fd in fds.flatten() {
            // Looking at an open file of a dead network file system would hang: nodes only.
            if !fs::read_link(fd.path()).is_ok_and(|target| target.starts_with("/dev")) {
                continue;
            }
            let Some(part) = block_device_at(&fd.path()).and_then(|rdev| part_of(parts, rdev))
            else {
                continue;
            };
            if found.insert(part.rdev) {
                let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                users.push(user(UserKind::Process, part, Some(pid), program.trim_end()));
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_blanks_and_optional_fields_is_read() {
        let line =
            r"36 35 43:1 / /srv/my\040data rw,noatime shared:1 master:2 - ext4 /dev/nbd0p1 rw";
        let (rdev, source, point) = parse_mount(line).unwrap();
        assert_eq!(rdev, nix::sys::stat::makedev(43, 1));
        assert_eq!((source.as_str(), point.as_str()), ("/dev/nbd0p1", "/srv/my data"));
    }

    #[test]
    fn a_backslash_that_is_no_escape_stays() {
        assert_eq!(unescape(r"a\b\04"), r"a\b\04");
        assert_eq!(unescape(r"a\134b"), r"a\b");
    }
}

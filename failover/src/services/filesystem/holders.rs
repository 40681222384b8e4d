//! Who keeps a file system busy: processes with a directory, an open file or a mapping there, found
//! by the kernel's numbers of mounts and devices and never by paths; and what of the kernel does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::processes::{self, Process};
use super::mounts::{self, DeviceNumber, Mount};

/// Looking into these may wait for a server that is gone.
const REMOTE: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "fuse", "glusterfs"];

/// What is searched for.
#[derive(Clone, Default, Debug)]
pub struct Wanted {
    /// Numbers of mounts of the file system, in all namespaces; also of those that were detached.
    pub mounts: BTreeSet<u32>,
    /// Its device.
    pub device: Option<DeviceNumber>,
}

/// What was found.
#[derive(Default, Debug)]
pub struct Found {
    /// Processes that hold it, without this one, init and threads of the kernel.
    pub holders: Vec<Process>,
    /// Processes that only have it mounted in a namespace of their own.
    pub elsewhere: Vec<Process>,
    /// Its mounts in those namespaces, each with a process that can show the way.
    pub mounts_elsewhere: Vec<(i32, PathBuf)>,
}

/// The mounts that the processes of this machine see, one entry for every namespace.
#[derive(Default)]
struct Namespaces {
    mounts: BTreeMap<u64, Vec<Mount>>,
    of_process: BTreeMap<i32, u64>,
    /// All numbers of mounts: one that is not among them was detached, or is the kernel's own.
    ids: BTreeSet<u32>,
}

impl Namespaces {
    fn look() -> Self {
        let mut found = Self::default();
        for pid in processes::all() {
            let namespace = namespace_of(&pid.to_string());
            found.of_process.insert(pid, namespace);
            found.mounts.entry(namespace).or_insert_with(|| mounts::of(&pid.to_string()));
        }
        found.ids = found.mounts.values().flatten().map(|mount| mount.id).collect();
        found
    }

    fn of(&self, pid: i32) -> &[Mount] {
        let mounts = self.of_process.get(&pid).and_then(|namespace| self.mounts.get(namespace));
        mounts.map_or(&[], Vec::as_slice)
    }
}

fn namespace_of(pid: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).map_or(0, |file| file.ino())
}

/// Adds every mount of the device, in all namespaces.
pub fn add_mounts(wanted: &mut Wanted) {
    let Some(device) = wanted.device else { return };
    let namespaces = Namespaces::look();
    let on_it = namespaces.mounts.values().flatten().filter(|mount| mount.is_on(device));
    wanted.mounts.extend(on_it.map(|mount| mount.id));
}

/// Looks through all processes.
pub fn find(wanted: &Wanted) -> Found {
    let mut found = Found::default();
    let namespaces = Namespaces::look();
    let own_namespace = namespace_of("self");
    let mut shown = BTreeSet::new();
    for (&pid, &namespace) in &namespaces.of_process {
        let Some(process) = Process::of(pid) else { continue };
        let is_ours = pid == std::process::id() as i32;
        if pid == 1 || is_ours || process.is_kernel_thread || process.is_zombie {
            continue;
        }
        let sees = |mount: &&Mount| wanted.device.is_some_and(|device| mount.is_on(device));
        let mut seen = namespaces.of(pid).iter().filter(sees);
        if namespace != own_namespace && shown.insert(namespace) {
            let points = seen.clone().map(|mount| (pid, mount.point.clone()));
            found.mounts_elsewhere.extend(points);
        }
        if holds(pid, wanted, &namespaces) {
            found.holders.push(process);
        } else if namespace != own_namespace && seen.next().is_some() {
            found.elsewhere.push(process);
        }
    }
    found
}

fn holds(pid: i32, wanted: &Wanted, namespaces: &Namespaces) -> bool {
    let places = ["cwd", "root", "exe"];
    places.iter().any(|place| is_there(pid, place, wanted, namespaces))
        || has_open(pid, wanted, namespaces)
        || has_mapped(pid, wanted)
}

/// A link of `/proc/PID` leads to it.
fn is_there(pid: i32, place: &str, wanted: &Wanted, namespaces: &Namespaces) -> bool {
    let path = format!("/proc/{pid}/{place}");
    let Ok(target) = fs::read_link(&path) else { return false };
    if is_remote(&target, namespaces.of(pid)) {
        return false;
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path);
    let Ok(file) = opened else { return false };
    let Some(id) = mount_of(&file) else { return false };
    wanted.mounts.contains(&id)
        || (!namespaces.ids.contains(&id) && file.metadata().is_ok_and(|it| is_on(&it, wanted)))
}

/// By the device itself, where the number of the mount says nothing.
fn is_on(file: &fs::Metadata, wanted: &Wanted) -> bool {
    let number = file.dev();
    let number = (nix::sys::stat::major(number) as u32, nix::sys::stat::minor(number) as u32);
    wanted.device == Some(number)
}

/// Whether a look at the path could hang; a guess by its text, only used to look away.
fn is_remote(target: &Path, mounts: &[Mount]) -> bool {
    let above = mounts.iter().filter(|mount| target.starts_with(&mount.point));
    let nearest = above.max_by_key(|mount| mount.point.as_os_str().len());
    nearest.is_some_and(|mount| {
        let family = mount.fs_type.split('.').next().unwrap_or_default();
        REMOTE.contains(&family)
    })
}

fn mount_of(file: &File) -> Option<u32> {
    mount_id(&fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?)
}

fn mount_id(fdinfo: &str) -> Option<u32> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// An open file, without touching the file: fdinfo names the mount.
fn has_open(pid: i32, wanted: &Wanted, namespaces: &Namespaces) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let Some(id) = mount_id(&text) else { return false };
        let file = Path::new("/proc").join(pid.to_string()).join("fd").join(entry.file_name());
        wanted.mounts.contains(&id)
            || (!namespaces.ids.contains(&id)
                && fs::metadata(file).is_ok_and(|it| is_on(&it, wanted)))
    })
}

fn has_mapped(pid: i32, wanted: &Wanted) -> bool {
    let Some((major, minor)) = wanted.device else { return false };
    let number = format!("{major:02x}:{minor:02x}");
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    text.lines().any(|line| line.split_whitespace().nth(3) == Some(&number))
}

/// What keeps it busy without being a process: mounts on it, loop devices, swap, NFS exports.
pub fn kernel_users(mount: &Mount, all: &[Mount]) -> Vec<String> {
    let mut users = Vec::new();
    for other in all.iter().filter(|other| other.parent == mount.id) {
        users.push(format!("{} is mounted on it (umount it first)", other.label()));
    }
    let is_inside = |path: &str| Path::new(path).starts_with(&mount.point);
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if is_inside(file.trim_end()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            users.push(format!("/dev/{name} is a loop device on {} (losetup -d)", file.trim_end()));
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        if is_inside(path) {
            users.push(format!("the kernel swaps to {path} (swapoff)"));
        }
    }
    let exports = fs::read_to_string("/proc/fs/nfsd/exports").unwrap_or_default();
    for path in exports.lines().filter_map(|line| line.split_whitespace().next()) {
        if is_inside(path) {
            users.push(format!("the NFS server exports {path} (exportfs -u, then exportfs -f)"));
        }
    }
    users
}

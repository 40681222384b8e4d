//! Loop devices: bind one to our file, find it again by its name, take it down.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::syscalls::{
    LOOP_DIRECT_IO, LOOP_NAME_BYTES, LOOP_PARTITIONS, LoopInfo, loop_clear, loop_configure,
    loop_free_number, loop_status,
};

/// In front of the resource's uuid in the name of a loop device.
const NAME_PREFIX: &str = "replicator:";
/// How often another process may take the free device before us.
const RACES_MAX: u32 = 64;

fn name_of(uuid: &str) -> [u8; LOOP_NAME_BYTES] {
    let text = format!("{NAME_PREFIX}{uuid}");
    assert!(text.len() < LOOP_NAME_BYTES, "loop device name {text:?} is too long");
    let mut name = [0; LOOP_NAME_BYTES];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

/// Binds a free loop device to `file`: direct I/O, partitions read, named after `uuid`.
pub fn bind(file: &OwnedFd, uuid: &str, block_size_bytes: u32) -> io::Result<Disk> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..RACES_MAX {
        let disk = Disk::new(format!("loop{}", loop_free_number(control.as_fd())?));
        let device = OpenOptions::new().read(true).write(true).open(disk.node()?)?;
        let info = LoopInfo {
            flags: LOOP_DIRECT_IO | LOOP_PARTITIONS,
            file_name: name_of(uuid),
            ..LoopInfo::empty()
        };
        match loop_configure(device.as_fd(), file.as_fd(), block_size_bytes, info) {
            Ok(()) => {
                // The page cache between would double the memory and can deadlock in reclaim.
                if disk.read("loop/dio").is_ok_and(|value| value == "1") {
                    return Ok(disk);
                }
                loop_clear(device.as_fd())?;
                let text = format!("{} does not do direct I/O on the file", disk.name());
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other processes take every free loop device"))
}

/// The loop device that carries the name of `uuid`; `hint` is looked at first.
///
/// A look at a loop device makes the kernel ask its file: what serves it must run. So devices that
/// other links in `device_dir` point to are left alone; they may wait for their own daemon.
pub fn find(uuid: &str, hint: Option<String>, device_dir: &Path) -> Option<Disk> {
    let is_ours = |disk: &Disk| {
        disk.sysfs().join("loop").exists()
            && disk
                .open(false)
                .and_then(|device| loop_status(device.as_fd()))
                .is_ok_and(|info| info.file_name == name_of(uuid))
    };
    if let Some(disk) = hint.filter(|name| name.starts_with("loop")).map(Disk::new)
        && is_ours(&disk)
    {
        return Some(disk);
    }
    let others = linked_names(device_dir);
    Disk::all("loop").into_iter().find(|disk| !others.contains(disk.name()) && is_ours(disk))
}

/// Whether the loop device `name`, which a link of ours points to, is still bound to a file of ours.
///
/// Its own name cannot be asked for when nobody serves the file: that would wait for ever. But only
/// a file in a mount that is nowhere has the path `/`.
pub fn is_bound_nowhere(name: &str) -> bool {
    let backing_file = Disk::new(name).read("loop/backing_file");
    name.starts_with("loop") && backing_file.is_ok_and(|path| path == "/")
}

/// The kernel's names that links in a directory of device links point to.
fn linked_names(device_dir: &Path) -> HashSet<String> {
    let Ok(entries) = fs::read_dir(device_dir) else { return HashSet::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            fs::read_link(entry.path()).ok()?.file_name()?.to_str().map(String::from)
        })
        .collect()
}

/// Takes the device down now, or, if others have it open, as soon as the last of them closes it.
/// `device` is closed here.
pub fn clear(device: File) -> io::Result<()> {
    match loop_clear(device.as_fd()) {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(error),
        _ => Ok(()),
    }
}

/// Waits until the device is bound to nothing. `TimedOut` names the wait.
pub fn wait_cleared(disk: &Disk, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    while disk.sysfs().join("loop").exists() {
        if Instant::now() > deadline {
            let text = format!("{} is still bound after {patience:?}", disk.name());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

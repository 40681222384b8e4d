//! Loop devices: bind one to our file, find it again by its name, take it down.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::syscalls::{
    LOOP_DIRECT_IO, LOOP_PARTITIONS, LoopInfo, loop_clear, loop_configure, loop_free_number,
};

/// How often another process may take the free device before us.
const RACES_MAX: u32 = 64;

/// The name of the file under the loop device of a resource. It is the only file of a mount that is
/// nowhere, so that a slash and this are its whole path.
pub fn file_name(uuid: &str) -> String {
    format!("replicator:{uuid}")
}

/// Binds a free loop device to `file`: direct I/O, partitions read.
pub fn bind(file: &OwnedFd, block_size_bytes: u32) -> io::Result<Disk> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..RACES_MAX {
        let disk = Disk::new(format!("loop{}", loop_free_number(control.as_fd())?));
        let device = OpenOptions::new().read(true).write(true).open(disk.node()?)?;
        let info = LoopInfo { flags: LOOP_DIRECT_IO | LOOP_PARTITIONS, ..LoopInfo::empty() };
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

/// The loop device of the resource with this uuid. Looks only at /sys: to ask the device itself
/// would wait for whoever serves its file.
pub fn find(uuid: &str) -> Option<Disk> {
    let path = format!("/{}", file_name(uuid));
    let is_ours = |disk: &Disk| disk.read("loop/backing_file").is_ok_and(|found| found == path);
    Disk::all("loop").into_iter().find(is_ours)
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

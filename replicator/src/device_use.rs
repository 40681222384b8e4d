//! Who uses a disk right now: asked before metadata are written, and when a lock is not to be had,
//! so that the refusal can name the culprit.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::lock_holders::lock_holders;

/// Whether a path is a block device.
pub fn is_block_device(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_block_device())
}

/// Everybody who is known to use the block device or file: mounts, swap, devices on top of it,
/// processes that hold its lock. In words; empty when nobody was found.
pub fn users(path: &Path) -> io::Result<Vec<String>> {
    let metadata = fs::metadata(path)?;
    let mut found = Vec::new();
    if metadata.file_type().is_block_device() {
        let number = device_number(metadata.rdev());
        found.extend(mounts_of(&number));
        found.extend(swap_on(path));
        found.extend(holders_of(&number));
    } else {
        found.extend(loops_on(path));
    }
    found.extend(lock_holders(&metadata).into_iter().map(locker));
    Ok(found)
}

fn device_number(rdev: u64) -> String {
    let major = nix::sys::stat::major(rdev);
    let minor = nix::sys::stat::minor(rdev);
    format!("{major}:{minor}")
}

fn mounts_of(number: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = |line: &str| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        let target = fields.nth(1)?;
        (device == number).then(|| format!("it is mounted on {}", target.replace("\\040", " ")))
    };
    table.lines().filter_map(mounted).collect()
}

fn swap_on(path: &Path) -> Option<String> {
    let wanted = fs::canonicalize(path).ok()?;
    let table = fs::read_to_string("/proc/swaps").ok()?;
    let mut devices = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let used = devices.any(|device| fs::canonicalize(device).is_ok_and(|path| path == wanted));
    used.then(|| "the kernel swaps to it".to_owned())
}

fn holders_of(number: &str) -> Vec<String> {
    let dir = format!("/sys/dev/block/{number}/holders");
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| format!("it is a part of /dev/{}", entry.file_name().to_string_lossy()))
        .collect()
}

fn loops_on(path: &Path) -> Vec<String> {
    let Ok(wanted) = fs::canonicalize(path) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let backing = |entry: fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(file.trim_end()) == wanted)
            .then(|| format!("it is behind /dev/{}", entry.file_name().to_string_lossy()))
    };
    entries.flatten().filter_map(backing).collect()
}

fn locker(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({}) has it locked", name.trim_end())
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{Flock, FlockArg};

    use super::*;

    #[test]
    fn a_locked_file_names_the_process_that_has_it() {
        let path = std::env::temp_dir().join(format!("device-use-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        assert!(users(&path).unwrap().is_empty());
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let users = users(&path).unwrap();
        let pid = std::process::id();
        assert!(users[0].contains(&format!("process {pid} (")), "{users:?}");
        drop(lock);
        fs::remove_file(path).unwrap();
    }
}

//! Which process has a file locked, and whether it still runs: one that was killed has its locks,
//! and its listening sockets, until its last write has landed.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// The processes that hold a `flock` on the file, from /proc/locks. Waiting ones are left out.
pub(crate) fn lock_holders(file: &Metadata) -> Vec<u32> {
    let device = file.dev();
    let wanted = format!("{:02x}:{:02x}:{}", major(device), minor(device), file.ino());
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file == wanted).then(|| pid.parse().ok()).flatten()
    };
    table.lines().filter_map(holder).collect()
}

/// The first of them.
pub(crate) fn lock_holder(file: &Metadata) -> Option<u32> {
    lock_holders(file).into_iter().next()
}

/// Whether a process still runs anything: one that was killed is a zombie, or gone, while its
/// writes land.
pub(crate) fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether its main thread has ended, and not everything of it.
pub(crate) fn is_zombie(pid: u32) -> bool {
    state(pid).is_some_and(|state| matches!(state, 'Z' | 'X'))
}

/// Whether a process was stopped by a signal or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    state(pid).is_some_and(|state| matches!(state, 'T' | 't'))
}

/// The letter of its main thread, see proc_pid_status(5).
fn state(pid: u32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:"))?.trim_start().chars().next()
}

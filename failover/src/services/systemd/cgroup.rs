//! The processes of a unit as the kernel counts them, for when systemd does not answer, and for
//! what a unit left behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the hierarchy is in which systemd keeps its units: version 2, hybrid, version 1.
const ROOTS: [(&str, &str); 3] = [
    ("/sys/fs/cgroup", "cgroup.controllers"),
    ("/sys/fs/cgroup/unified", "cgroup.controllers"),
    ("/sys/fs/cgroup/systemd", "cgroup.procs"),
];

/// The directory of a cgroup that systemd names.
pub(super) fn directory(control_group: &str) -> Option<PathBuf> {
    let (root, _) = ROOTS.iter().find(|(root, mark)| Path::new(root).join(mark).exists())?;
    Some(Path::new(root).join(control_group.trim_start_matches('/')))
}

/// The cgroup of a unit of which systemd has not said where it is; none when nothing of it runs.
pub(super) fn find(unit: &str) -> Option<PathBuf> {
    let mut to_look = vec![directory("")?];
    while let Some(slice) = to_look.pop() {
        let found = slice.join(unit);
        if found.is_dir() {
            return Some(found);
        }
        let entries = fs::read_dir(&slice).into_iter().flatten().flatten();
        let is_slice = |path: &PathBuf| path.extension().is_some_and(|it| it == "slice");
        to_look.extend(entries.map(|entry| entry.path()).filter(is_slice));
    }
    None
}

/// The processes in it and below it; none when it is gone.
pub(super) fn processes(directory: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    let mut to_read = vec![directory.to_path_buf()];
    while let Some(directory) = to_read.pop() {
        let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        to_read.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    // Zero: a process of another PID namespace, which is not ours to name or to kill.
    found.retain(|pid| *pid > 0);
    found
}

/// Whether anything runs in it.
pub(super) fn has_processes(directory: &Path) -> bool {
    !processes(directory).is_empty()
}

/// Kills everything in it, at once where the kernel can (Linux 5.14).
pub(super) fn kill_all(directory: &Path) -> io::Result<()> {
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for pid in processes(directory) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// `1234 (mariadbd), 1240 (sh)`, at most a handful.
pub(super) fn names(pids: &[i32]) -> String {
    let one = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{pid} ({})", name.trim_end())
    };
    let mut text = pids.iter().take(5).map(one).collect::<Vec<_>>().join(", ");
    if pids.len() > 5 {
        text.push_str(&format!(" and {} more", pids.len() - 5));
    }
    text
}

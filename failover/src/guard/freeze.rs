//! Processes made to stand still, and to go on. Allocates nothing.
//!
//! A group is a directory of cgroup v2, which the kernel freezes as a whole, with what is born in
//! it; or one of cgroup v1, whose processes are stopped one by one; or, as `/proc/PID`, a process
//! group.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, read, write};

use super::table::PATH_BYTES_MAX;

/// The longest name of a file in a cgroup that is used here, with its slash.
const NAME_BYTES_MAX: usize = 16;
const CHUNK_BYTES: usize = 4096;
const PROC: &[u8] = b"/proc/";

/// Stops a group, or lets it go on. `Ok(false)`: not yet, look again; `Ok(true)`: it is so, or
/// nothing of it is left.
pub fn set_frozen(group: &[u8], is_frozen: bool) -> io::Result<bool> {
    if let Some(number) = group.strip_prefix(PROC) {
        return stop_process_group(number, is_frozen);
    }
    match write_file(group, b"/cgroup.freeze", if is_frozen { b"1" } else { b"0" }) {
        Ok(()) => says_frozen(group).map(|frozen| frozen == is_frozen),
        Err(Errno::ENOENT) if !exists(group) => Ok(true),
        // cgroup v1, or the root.
        Err(Errno::ENOENT) => stop_each(group, is_frozen),
        Err(error) => Err(error.into()),
    }
}

fn stop_process_group(number: &[u8], is_frozen: bool) -> io::Result<bool> {
    let pid = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
    let Some(pid) = pid.filter(|pid: &i32| *pid > 1) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match killpg(Pid::from_raw(pid), signal(is_frozen)) {
        Ok(()) | Err(Errno::ESRCH) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn signal(is_frozen: bool) -> Signal {
    if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT }
}

fn says_frozen(group: &[u8]) -> io::Result<bool> {
    let mut bytes = [0; 256];
    let file = open_in(group, b"/cgroup.events", OFlag::O_RDONLY)?;
    let length = read(&file, &mut bytes)?;
    let mut lines = bytes[..length].split(|byte| *byte == b'\n');
    Ok(lines.any(|line| line == b"frozen 1"))
}

/// Twice, since a process may have been born between.
fn stop_each(group: &[u8], is_frozen: bool) -> io::Result<bool> {
    for _ in 0..2 {
        let file = open_in(group, b"/cgroup.procs", OFlag::O_RDONLY)?;
        let mut bytes = [0; CHUNK_BYTES];
        let mut number = 0_i32;
        loop {
            let length = read(&file, &mut bytes)?;
            if length == 0 {
                break;
            }
            for byte in &bytes[..length] {
                match byte {
                    b'0'..=b'9' => {
                        number = number.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
                    }
                    _ if number > 1 => match kill(Pid::from_raw(number), signal(is_frozen)) {
                        Ok(()) | Err(Errno::ESRCH) => number = 0,
                        Err(error) => return Err(error.into()),
                    },
                    _ => number = 0,
                }
            }
        }
    }
    Ok(true)
}

fn exists(group: &[u8]) -> bool {
    open_in(group, b"", OFlag::O_PATH).is_ok()
}

fn write_file(group: &[u8], name: &[u8], content: &[u8]) -> Result<(), Errno> {
    let file = open_in(group, name, OFlag::O_WRONLY)?;
    write(&file, content).map(drop)
}

fn open_in(group: &[u8], name: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut path = [0; PATH_BYTES_MAX + NAME_BYTES_MAX];
    let length = group.len() + name.len();
    if length > path.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    path[..group.len()].copy_from_slice(group);
    path[group.len()..length].copy_from_slice(name);
    open(&path[..length], flags | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").process_group(0).spawn().unwrap()
    }

    fn state(pid: u32) -> char {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
    }

    fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(5), "after 5 s still not: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_process_group_stops_and_goes_on() {
        let mut child = sleeper();
        let group = format!("/proc/{}", child.id());
        assert!(set_frozen(group.as_bytes(), true).unwrap());
        wait_for("stopped", || state(child.id()) == 'T');
        assert!(set_frozen(group.as_bytes(), false).unwrap());
        wait_for("going on", || state(child.id()) != 'T');
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(set_frozen(group.as_bytes(), true).unwrap(), "nothing of it is left");
    }

    #[test]
    fn process_1_and_no_process_are_never_stopped() {
        for group in ["/proc/1", "/proc/0", "/proc/self", "/proc/-5", "/proc/"] {
            assert!(set_frozen(group.as_bytes(), true).is_err(), "{group}");
        }
    }

    /// A directory with a cgroup.procs is all that is looked at where nothing freezes as a whole.
    #[test]
    fn without_a_freezer_every_process_of_the_group_is_stopped() {
        let mut children = [sleeper(), sleeper()];
        let dir = std::env::temp_dir().join(format!("replicator-freeze-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [one, other] = [children[0].id(), children[1].id()];
        fs::write(dir.join("cgroup.procs"), format!("{one}\n{other}\n")).unwrap();
        let group = dir.to_str().unwrap().as_bytes();
        assert!(set_frozen(group, true).unwrap());
        wait_for("both stopped", || state(one) == 'T' && state(other) == 'T');
        assert!(set_frozen(group, false).unwrap());
        wait_for("both going on", || state(one) != 'T' && state(other) != 'T');
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        fs::remove_dir_all(&dir).unwrap();
        assert!(set_frozen(group, true).unwrap(), "the group is gone");
    }
}

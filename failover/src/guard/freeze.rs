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

/// How a group stands after it was acted upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Not yet as it is to be: look again.
    NotYet,
    /// As it is to be, or there is nothing in it now.
    Done,
    /// A process group that has ended: its number may be somebody else's by the next look.
    Gone,
}

/// Stops a group, or lets it go on.
pub fn set_frozen(group: &[u8], is_frozen: bool) -> io::Result<Seen> {
    if let Some(number) = group.strip_prefix(PROC) {
        return signal_process_group(number, signal(is_frozen));
    }
    match write_file(group, b"/cgroup.freeze", if is_frozen { b"1" } else { b"0" }) {
        Ok(()) => match says_frozen(group) {
            Ok(frozen) if frozen == is_frozen => Ok(Seen::Done),
            Ok(_) => Ok(Seen::NotYet),
            // Removed under our eyes: it was empty.
            Err(_) if !exists(group) => Ok(Seen::Done),
            Err(error) => Err(error),
        },
        Err(Errno::ENOENT | Errno::ENODEV) if !exists(group) => Ok(Seen::Done),
        // cgroup v1, or the root.
        Err(Errno::ENOENT) => signal_each(group, signal(is_frozen)),
        Err(error) => Err(error.into()),
    }
}

/// Kills everything in a group, whether it stands still or not.
pub fn kill_all(group: &[u8]) -> io::Result<Seen> {
    if let Some(number) = group.strip_prefix(PROC) {
        return signal_process_group(number, Signal::SIGKILL);
    }
    match write_file(group, b"/cgroup.kill", b"1") {
        Ok(()) => Ok(Seen::Done),
        Err(Errno::ENOENT | Errno::ENODEV) if !exists(group) => Ok(Seen::Done),
        // Before Linux 5.14, or cgroup v1.
        Err(Errno::ENOENT) => signal_each(group, Signal::SIGKILL),
        Err(error) => Err(error.into()),
    }
}

fn signal_process_group(number: &[u8], signal: Signal) -> io::Result<Seen> {
    let pid = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
    let Some(pid) = pid.filter(|pid: &i32| *pid > 1) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match killpg(Pid::from_raw(pid), signal) {
        Ok(()) => Ok(Seen::Done),
        Err(Errno::ESRCH) => Ok(Seen::Gone),
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
fn signal_each(group: &[u8], signal: Signal) -> io::Result<Seen> {
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
                    _ if number > 1 => match kill(Pid::from_raw(number), signal) {
                        Ok(()) | Err(Errno::ESRCH) => number = 0,
                        Err(error) => return Err(error.into()),
                    },
                    _ => number = 0,
                }
            }
        }
    }
    Ok(Seen::Done)
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
        assert_eq!(set_frozen(group.as_bytes(), true).unwrap(), Seen::Done);
        wait_for("stopped", || state(child.id()) == 'T');
        assert_eq!(set_frozen(group.as_bytes(), false).unwrap(), Seen::Done);
        wait_for("going on", || state(child.id()) != 'T');
        assert_eq!(set_frozen(group.as_bytes(), true).unwrap(), Seen::Done);
        assert_eq!(kill_all(group.as_bytes()).unwrap(), Seen::Done);
        child.wait().unwrap();
        assert_eq!(set_frozen(group.as_bytes(), true).unwrap(), Seen::Gone);
        assert_eq!(kill_all(group.as_bytes()).unwrap(), Seen::Gone);
    }

    #[test]
    fn process_1_and_no_process_are_never_stopped() {
        for group in ["/proc/1", "/proc/0", "/proc/self", "/proc/-5", "/proc/"] {
            assert!(set_frozen(group.as_bytes(), true).is_err(), "{group}");
            assert!(kill_all(group.as_bytes()).is_err(), "{group}");
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
        assert_eq!(set_frozen(group, true).unwrap(), Seen::Done);
        wait_for("both stopped", || state(one) == 'T' && state(other) == 'T');
        assert_eq!(set_frozen(group, false).unwrap(), Seen::Done);
        wait_for("both going on", || state(one) != 'T' && state(other) != 'T');
        assert_eq!(set_frozen(group, true).unwrap(), Seen::Done);
        assert_eq!(kill_all(group).unwrap(), Seen::Done);
        for child in &mut children {
            child.wait().unwrap();
        }
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(set_frozen(group, true).unwrap(), Seen::Done, "it may be made again");
    }
}

//! What `/proc` tells of the processes of this machine. Everything here may be gone a moment later,
//! so nothing is an error: what cannot be read is left out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// Who shows nothing at this moment is looked at again after so long,
const AGAIN: Duration = Duration::from_micros(200);
/// so often in all while one looks at all of them.
const AGAIN_MAX: u32 = 250;
/// Longer environments are rare.
const ENVIRONMENT_BYTES: usize = 128 << 10;
/// Who was seen so often to have no environment has none.
const NOTHING_SEEN: u32 = 4;

/// One process as it was a moment ago.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// When it began, in ticks since boot: together with the number nobody else.
    pub began: u64,
    /// Its name, at most 15 characters.
    pub name: String,
    /// It has ended, and its parent did not ask for it yet.
    pub is_zombie: bool,
    /// A thread of the kernel: it has no memory of its own, and nobody kills it.
    pub is_kernel_thread: bool,
    /// A signal made it stand still.
    pub is_stopped: bool,
}

/// The kernel's flag of its own threads, in `/proc/PID/stat`. Their numbers tell nothing: in a
/// container 2 is a process like any other.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Process {
    /// Looks one up.
    pub fn of(pid: i32) -> Option<Self> {
        parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether the number still belongs to the same process, and it lives.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.began == self.began && !now.is_zombie)
    }

    /// As messages name it: `mariadbd (712)`.
    pub fn label(&self) -> String {
        format!("{} ({})", self.name, self.pid)
    }
}

fn parse(pid: i32, stat: &str) -> Option<Process> {
    // The name stands in parentheses and may contain some.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let flags: u32 = fields.nth(4)?.parse().ok()?;
    let began = fields.nth(12)?.parse().ok()?;
    let is_zombie = matches!(state, "Z" | "X");
    let is_stopped = state == "T";
    let is_kernel_thread = flags & PF_KTHREAD != 0;
    Some(Process { pid, parent, began, name, is_zombie, is_stopped, is_kernel_thread })
}

/// One look at the environments of many processes.
struct Look {
    bytes: Vec<u8>,
    /// How often one may still be looked at again.
    again: u32,
}

impl Look {
    /// The environment that a process had at its start. While it executes another program the
    /// kernel does not know that of the new one yet and shows none (`environ_read` in Linux'
    /// fs/proc/base.c), and whoever is looked for would not be found: that is waited for.
    fn environment(&mut self, process: &Process) -> &[u8] {
        if process.is_zombie || process.is_kernel_thread {
            return &[];
        }
        let mut nothing = 0;
        loop {
            match self.read(process.pid) {
                Ok(0) if self.again > 0 => {
                    nothing += u32::from(begins_with_nothing(process.pid));
                    if !process.lives() || nothing >= NOTHING_SEEN {
                        return &[];
                    }
                }
                length => return &self.bytes[..length.unwrap_or(0)],
            }
            thread::sleep(AGAIN);
            self.again -= 1;
        }
    }

    /// Reads it in one call, as far as that can be: what a process is replaced by between two ends
    /// the file in the middle.
    fn read(&mut self, pid: i32) -> io::Result<usize> {
        let mut file = File::open(format!("/proc/{pid}/environ"))?;
        let mut length = 0;
        loop {
            match file.read(&mut self.bytes[length..])? {
                0 => return Ok(length),
                more => length += more,
            }
            if length == self.bytes.len() {
                self.bytes.resize(2 * length, 0);
            }
        }
    }
}

/// Whether the kernel knows where the environment of a process is, and that nothing is in it; for
/// an instant of an execution it says so of any.
fn begins_with_nothing(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `env_start` and `env_end` of proc_pid_stat(5), counted from `state`.
    let tail = stat.rsplit_once(") ").map_or("", |(_, tail)| tail);
    let mut places = tail.split(' ').skip(47).map_while(|place| place.parse::<u64>().ok());
    let (start, end) = (places.next(), places.next());
    start == end && start.is_some_and(|start| start != 0)
}

/// The numbers of all processes.
pub fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
thread_local! {
    /// How often this thread looked into all environments.
    pub static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Processes whose environment at their start had this line, and all their descendants.
pub fn with_environment(line: &str) -> Vec<Process> {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    let found = belonging(|entry| (entry == line.as_bytes()).then_some(()));
    found.into_iter().map(|(process, ())| process).collect()
}

/// All processes whose environment at their start had a line that begins so, with that line, and
/// all their descendants.
pub fn marked(beginning: &str) -> BTreeMap<i32, String> {
    let found = belonging(|entry| {
        entry.starts_with(beginning.as_bytes()).then(|| String::from_utf8_lossy(entry).into_owned())
    });
    found.into_iter().map(|(process, line)| (process.pid, line)).collect()
}

/// The processes of whose environment `mark` knows a line, with what it says, and all their
/// descendants with the same.
fn belonging<M: Clone>(mark: impl Fn(&[u8]) -> Option<M>) -> Vec<(Process, M)> {
    let own = std::process::id() as i32;
    let mut look = Look { bytes: vec![0; ENVIRONMENT_BYTES], again: AGAIN_MAX };
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    for process in
        all().into_iter().filter_map(Process::of).filter(|it| ![own, 1].contains(&it.pid))
    {
        match look.environment(&process).split(|byte| *byte == 0).find_map(&mark) {
            Some(mark) => found.push((process, mark)),
            None => rest.push(process),
        }
    }
    // A descendant may have cleaned its environment.
    loop {
        let mut children = Vec::new();
        rest.retain(|process| {
            let parent = found.iter().find(|(parent, _)| parent.pid == process.parent);
            children.extend(parent.map(|(_, mark)| (process.clone(), mark.clone())));
            parent.is_none()
        });
        if children.is_empty() {
            return found;
        }
        found.append(&mut children);
    }
}

/// Those whose parent is not among them: what the others hang on.
pub fn roots(processes: &[Process]) -> Vec<Process> {
    let is_inside = |it: &&Process| !processes.iter().any(|other| other.pid == it.parent);
    processes.iter().filter(is_inside).cloned().collect()
}

/// A few names for a message: `mariadbd (712), sh (713) and 4 more`.
pub fn names(processes: &[Process]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = processes.iter().take(SHOWN).map(Process::label).collect();
    match processes.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What the kernel says of a process that does not react: where in the kernel it waits.
pub fn waits_in(pid: i32) -> Option<String> {
    let path: PathBuf = format!("/proc/{pid}/wchan").into();
    let text = fs::read_to_string(path).ok()?;
    (!text.is_empty() && text != "0").then_some(text)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn names_with_parentheses_and_blanks_are_read() {
        let stat = "712 (a) b (x) S 1 712 712 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 5511 1 1";
        let process = parse(712, stat).unwrap();
        assert_eq!((process.name.as_str(), process.parent, process.began), ("a) b (x", 1, 5511));
        assert!(!process.is_zombie && !process.is_kernel_thread && !process.is_stopped);
        assert!(parse(712, &stat.replace(") S ", ") T ")).unwrap().is_stopped);
        assert_eq!(parse(712, "712 (a"), None);
    }

    #[test]
    fn a_thread_of_the_kernel_is_known_by_its_flag_not_by_its_number() {
        let kernel = "12 (ksoftirqd/0) S 0 0 0 0 -1 69238848 0 0 0 0 0 9 0 0 20 0 1 0 5 0 0";
        assert!(parse(12, kernel).unwrap().is_kernel_thread);
        let first_of_a_container =
            "3 (mariadbd) S 2 2 2 0 -1 4194560 0 0 0 0 0 9 0 0 20 0 1 0 5 1 1";
        assert!(!parse(3, first_of_a_container).unwrap().is_kernel_thread);
    }

    #[test]
    fn this_process_is_found_and_a_dead_number_is_not() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.lives() && own.began > 0);
        assert!(Process::of(i32::MAX).is_none());
        assert!(all().contains(&own.pid));
    }

    #[test]
    fn marked_processes_are_found_with_their_mark_and_their_children() {
        let mark = format!("REPLICATOR_TEST_MARK=m{}", std::process::id());
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "env -i sleep 60 & echo $!; wait"])
            .env("REPLICATOR_TEST_MARK", format!("m{}", std::process::id()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut text).unwrap();
        let sleeper: i32 = text.trim().parse().unwrap();
        let found = marked("REPLICATOR_TEST_MARK=");
        let pid = child.id() as i32;
        assert_eq!([found.get(&pid), found.get(&sleeper)], [Some(&mark), Some(&mark)]);
        assert!(!found.contains_key(&1));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }

    /// A service that a shell left in the background was looked for when its program was being
    /// executed, was not found, and nobody noticed its death.
    #[test]
    fn a_process_is_found_also_while_it_executes_a_program() {
        let script = "exec /bin/sh -c \"$0\" \"$0\"";
        let mut for_ever = std::process::Command::new("/bin/sh")
            .args(["-c", script, script])
            .env("REPLICATOR_TEST_EXEC", "1")
            .spawn()
            .unwrap();
        let missed = (0..300).filter(|_| {
            let found = with_environment("REPLICATOR_TEST_EXEC=1");
            !found.iter().any(|process| process.pid == for_ever.id() as i32)
        });
        let missed = missed.count();
        for_ever.kill().unwrap();
        for_ever.wait().unwrap();
        assert_eq!(missed, 0, "so often of 300");
    }

    #[test]
    fn a_root_is_who_hangs_on_nobody_of_them() {
        let process = |pid, parent| Process {
            pid,
            parent,
            began: 1,
            name: format!("p{pid}"),
            is_zombie: false,
            is_kernel_thread: false,
            is_stopped: false,
        };
        let all = [process(10, 1), process(11, 10), process(12, 11), process(20, 1)];
        let found: Vec<i32> = roots(&all).iter().map(|root| root.pid).collect();
        assert_eq!(found, [10, 20]);
        assert_eq!(names(&all[..2]), "p10 (10), p11 (11)");
    }
}

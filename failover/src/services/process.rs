//! Child processes of services: each run in a scope of its own, with a session and an environment
//! of its own, its words in a bounded file, and all of it killed when nobody waits for it any more.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::Mode;
use tokio::process::{Child, Command};

use super::scope::Scope;

/// More words than that are cut away while they are written.
const WORDS_MAX: u64 = 1 << 20;
/// What of the end of the words is read.
const TAIL_MAX: u64 = 16 << 10;
/// Lines of them in a message.
const LINES_SHOWN: usize = 3;
const LINE_MAX: usize = 300;
/// How often a file of words that is being written is looked at.
const WORDS_EVERY: Duration = Duration::from_millis(500);
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Order {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, besides what every program gets.
    pub environment: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// The exit status of the program itself.
    pub status: ExitStatus,
    /// The end of what it wrote, standard output and error together.
    pub words: String,
}

impl Run {
    /// Its exit code; a signal is none.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// How it ended and what it said last, for a message.
    pub fn story(&self) -> String {
        use std::os::unix::process::ExitStatusExt;
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("ended with {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => format!("was killed by {signal}"),
                Err(_) => format!("was killed by signal {signal}"),
            },
            (None, None) => "ended".into(),
        };
        let said = last_lines(&self.words);
        if said.is_empty() { end } else { format!("{end}: {said}") }
    }
}

/// The last lines, in one.
pub fn last_lines(words: &str) -> String {
    let mut lines: Vec<String> = words
        .lines()
        .map(|line| line.trim().chars().filter(|c| !c.is_control()).take(LINE_MAX).collect())
        .filter(|line: &String| !line.is_empty())
        .collect();
    lines.drain(..lines.len().saturating_sub(LINES_SHOWN));
    lines.join("; ")
}

/// Where the words of one kind of run go: a file, so that what the run leaves behind can go on
/// writing when the daemon is restarted. It is cut when it grows.
#[derive(Clone, Debug)]
pub struct WordsFile(PathBuf);

impl WordsFile {
    /// `DIR/services/RESOURCE.SERVICE.ACTION`.
    pub fn new(run_dir: &Path, resource: &str, service: &str, action: &str) -> Self {
        let name = super::scope::file_name(&format!("{resource}.{service}.{action}"));
        Self(run_dir.join("services").join(name))
    }

    /// The directory it is in.
    pub fn dir(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }

    /// Empties it and opens it for a run.
    fn open(&self) -> io::Result<File> {
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(dir)?;
        }
        // Appending: after a cut the next words stand at the new end.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.0)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// The end of what stands in it.
    pub fn tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.0)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Cuts it when it grew too long. A talkative daemon must not fill the memory that `/run` is.
    pub fn bound(&self) {
        let is_long = fs::metadata(&self.0).is_ok_and(|file| file.len() > WORDS_MAX);
        if is_long && let Ok(file) = OpenOptions::new().write(true).open(&self.0) {
            let _ = file.set_len(0);
        }
    }
}

/// What happens to the processes that a run leaves behind when it ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// They stay: they are the service.
    Stay,
    /// They are killed.
    Kill,
}

/// Runs a program to its end. When the future is dropped, everything in the scope is killed.
pub async fn run(
    order: &Order,
    scope: &Scope,
    words: &WordsFile,
    leftovers: Leftovers,
) -> io::Result<Run> {
    let file = words.open()?;
    let output = (Stdio::from(file.try_clone()?), Stdio::from(file));
    let mut running = Running { child: spawn(order, scope, output)?, scope, is_over: false };
    let status = loop {
        match tokio::time::timeout(WORDS_EVERY, running.child.wait()).await {
            Ok(status) => break status?,
            Err(_) => words.bound(),
        }
    };
    if leftovers == Leftovers::Kill {
        scope.kill().await;
        scope.tidy();
    }
    running.is_over = true;
    drop(running);
    Ok(Run { status, words: words.tail() })
}

/// Runs a program and takes its standard output, at most `most` bytes of it.
pub async fn output_of(
    order: &Order,
    scope: &Scope,
    most: u64,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    use tokio::io::AsyncReadExt;
    let mut child = spawn(order, scope, (Stdio::piped(), Stdio::null()))?;
    let pipe = child.stdout.take();
    let mut running = Running { child, scope, is_over: false };
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(most).read_to_end(&mut bytes).await?;
    }
    let status = running.child.wait().await?;
    scope.kill().await;
    scope.tidy();
    running.is_over = true;
    drop(running);
    Ok((status, bytes))
}

/// A run that nobody has seen the end of: dropped, it is killed with all it started.
struct Running<'a> {
    child: Child,
    scope: &'a Scope,
    is_over: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // The program itself first, so that it cannot start more while the others are killed.
            let _ = self.child.start_kill();
            self.scope.kill_soon();
            self.scope.tidy();
        }
    }
}

fn spawn(order: &Order, scope: &Scope, (out, err): (Stdio, Stdio)) -> io::Result<Child> {
    let mut command = Command::new(&order.program);
    command.args(&order.arguments).env_clear().envs(basics());
    command.envs(order.environment.iter().map(|(key, value)| (key, value)));
    command.envs([scope.mark()]);
    command.current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
    let cgroup = scope.ready().and_then(|group| {
        OpenOptions::new().write(true).open(group.join("cgroup.procs")).ok().map(OwnedFd::from)
    });
    let oom_path = CString::new("/proc/self/oom_score_adj").expect("no zero in it");
    let group_fd = cgroup.as_ref().map(|fd| fd.as_fd().as_raw_fd());
    // SAFETY: between fork and exec only system calls are made, with memory from before the fork;
    // the descriptor of the cgroup stays open in the parent until `spawn` has returned.
    unsafe {
        command.pre_exec(move || become_nobodys_child(group_fd, &oom_path));
    }
    let child = command.spawn();
    drop(cgroup);
    child
}

/// What a child must not have of the daemon: its session, its blocked signals, its protection from
/// the OOM killer, its marks of a process that block I/O depends on.
fn become_nobodys_child(cgroup: Option<RawFd>, oom_path: &CString) -> io::Result<()> {
    nix::unistd::setsid()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // SAFETY: plain numbers; an old kernel or a user without rights had nothing to lose.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0) };
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    if let Ok(file) = nix::fcntl::open(oom_path.as_c_str(), flags, Mode::empty()) {
        let _ = nix::unistd::write(&file, b"0");
    }
    if let Some(cgroup) = cgroup {
        // SAFETY: the parent holds it open while this runs; an error leaves the mark.
        let _ = unsafe { libc::write(cgroup, b"0".as_ptr().cast(), 1) };
    }
    Ok(())
}

/// What every program may expect.
fn basics() -> Vec<(String, String)> {
    let mut basics: Vec<(String, String)> = [
        ("PATH", PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/sh"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    for key in ["LANG", "LC_ALL", "TZ"] {
        basics.extend(std::env::var(key).ok().map(|value| (key.to_owned(), value)));
    }
    basics
}

//! The processes that belong to one service, and to nobody else: a cgroup of their own where cgroup
//! v2 lets us make one, else what carries its mark in the environment. It is found again by a
//! daemon that was restarted.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::pidfd::PidFd;
use super::processes::{self, Process};

/// The name of the variable that marks the processes of a service.
pub const MARK: &str = "REPLICATOR_SCOPE";
/// How often a kill without cgroup.kill is repeated: processes that fork may slip through a pass.
const KILL_PASSES: u32 = 50;
/// How long a kill is waited for by whoever cannot do that in an orderly way: shorter than the
/// guard takes a thread for one that stands still.
const KILL_SOON: Duration = Duration::from_millis(150);
/// How long a killed cgroup is waited for where that is done without a runtime.
const EMPTY_PATIENCE: Duration = Duration::from_millis(200);

/// One look at all processes of the machine serves all scopes for so long.
const MARKED_FOR: Duration = Duration::from_millis(100);
type Marked = (Instant, BTreeSet<(String, i32)>);
static MARKED: Mutex<Option<Marked>> = Mutex::new(None);

/// A place for processes. Making one makes nothing on the machine; [`Scope::ready`] does.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The value of [`MARK`]: the same after a restart of the daemon.
    id: String,
    cgroup: Option<PathBuf>,
    /// The kernel did not let us make it.
    is_refused: Arc<AtomicBool>,
    /// Rises whenever something new is about to be started in it.
    turn: Arc<AtomicU64>,
    /// One look through all processes at a time, in the order in which they were asked for.
    looking: Arc<tokio::sync::Mutex<()>>,
}

impl Scope {
    /// The scope `part` of a service. `run_dir` tells several daemons of one machine apart.
    pub fn new(run_dir: &Path, resource: &str, service: &str, part: &str) -> Self {
        let daemon = crc32fast::hash(run_dir.as_os_str().as_encoded_bytes());
        let name = file_name(&format!("{resource}.{service}"));
        let id = format!("{daemon:08x}/{name}.{part}");
        let cgroup = own_cgroup()
            .map(|own| own.join(format!("replicator-{daemon:08x}")).join(format!("{name}.{part}")));
        let (is_refused, turn, looking) = Default::default();
        Self { id, cgroup, is_refused, turn, looking }
    }

    /// Makes the cgroup, if that can be: the path, for the process that goes into it.
    pub fn ready(&self) -> Option<PathBuf> {
        self.turn.fetch_add(1, Relaxed);
        let cgroup = self.cgroup.as_ref()?;
        // Another service may remove the directory above in between.
        let made = (0..3).any(|_| fs::create_dir_all(cgroup).is_ok());
        self.is_refused.store(!made, Relaxed);
        // One that was frozen while the lease was over would freeze what is started in it.
        let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
        made.then(|| cgroup.clone())
    }

    /// The line of the environment that marks its processes.
    pub fn mark(&self) -> (&'static str, &str) {
        (MARK, &self.id)
    }

    /// Where its processes are: the cgroup, also before something is in it; where there is none,
    /// the process groups that there are now, as `/proc/NUMBER`.
    pub fn groups(&self) -> Vec<PathBuf> {
        match &self.cgroup {
            Some(cgroup) if self.has_cgroup() => vec![cgroup.clone()],
            _ => self.process_groups(),
        }
    }

    fn process_groups(&self) -> Vec<PathBuf> {
        let line = format!("{MARK}={}", self.id);
        let mut marked = MARKED.lock().unwrap_or_else(PoisonError::into_inner);
        if marked.as_ref().is_none_or(|(at, _)| at.elapsed() > MARKED_FOR) {
            let found = groups_of_all();
            // Counted from the end: a look may take long.
            *marked = Some((Instant::now(), found));
        }
        let all = marked.iter().flat_map(|(_, groups)| groups);
        let own = all.filter(|(mark, _)| *mark == line);
        own.map(|(_, group)| format!("/proc/{group}").into()).collect()
    }

    /// Looks through all processes on another thread. The kernel lets whoever reads the environment
    /// of a process wait for that one's memory, and so, it may be, for the disk of another
    /// resource: the thread that keeps our addresses alive must not.
    async fn apart<T: Send + 'static>(&self, look: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let (scope, turn) = (self.clone(), self.looking.clone().lock_owned().await);
        let look = move || {
            let found = look(&scope);
            drop(turn);
            found
        };
        tokio::task::spawn_blocking(look).await.expect("a look through /proc does not panic")
    }

    /// Whether it was made to stand still, by us, by an earlier daemon or by the guard: then it can
    /// say nothing about itself, and it is there.
    pub async fn is_suspended(&self) -> bool {
        let is_frozen = |cgroup: PathBuf| {
            let word = fs::read_to_string(cgroup.join("cgroup.freeze")).unwrap_or_default();
            word.trim() == "1" && !self.in_cgroup().is_empty()
        };
        if self.cgroup().is_some_and(is_frozen) {
            return true;
        }
        // Where there is a cgroup, nobody stops its processes one by one.
        if self.has_cgroup() {
            return false;
        }
        let processes = self.processes().await;
        !processes.is_empty() && processes.iter().all(|process| process.is_stopped)
    }

    fn has_cgroup(&self) -> bool {
        self.cgroup.is_some() && !self.is_refused.load(Relaxed)
    }

    /// Whether something of it lives.
    pub async fn lives(&self) -> bool {
        !self.in_cgroup().is_empty() || !self.processes().await.is_empty()
    }

    /// All its processes. Those that left the cgroup (`su` with PAM may) are found by their mark.
    pub async fn processes(&self) -> Vec<Process> {
        self.apart(Self::look).await
    }

    /// Its cgroup, if there is one now.
    fn cgroup(&self) -> Option<PathBuf> {
        self.cgroup.clone().filter(|cgroup| cgroup.join("cgroup.procs").exists())
    }

    fn look(&self) -> Vec<Process> {
        let mut found = self.in_cgroup();
        for process in processes::with_environment(&format!("{MARK}={}", self.id)) {
            if !process.is_zombie && !found.iter().any(|other| other.pid == process.pid) {
                found.push(process);
            }
        }
        found
    }

    fn in_cgroup(&self) -> Vec<Process> {
        let Some(cgroup) = &self.cgroup else { return Vec::new() };
        let mut found = Vec::new();
        for group in tree(cgroup) {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            let pids = text.lines().filter_map(|line| line.parse().ok());
            found.extend(pids.filter_map(Process::of).filter(|process| !process.is_zombie));
        }
        found
    }

    /// Lets nothing of it act, or lets it go on.
    pub async fn suspend(&self, is_suspended: bool) {
        let word = if is_suspended { "1" } else { "0" };
        let file = self.cgroup().map(|cgroup| cgroup.join("cgroup.freeze"));
        if file.is_some_and(|file| fs::write(file, word).is_ok()) {
            return;
        }
        let signal = if is_suspended { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.apart(move |scope| scope.look().iter().for_each(|it| send(it, signal))).await;
    }

    /// Asks all its processes to end.
    pub async fn terminate(&self) {
        let turn = self.turn.load(Relaxed);
        let ask = move |scope: &Self| {
            let found = scope.look();
            if scope.turn.load(Relaxed) == turn {
                found.iter().for_each(|process| send(process, Signal::SIGTERM));
            }
        };
        self.apart(ask).await;
    }

    /// Kills all its processes, also those that are being forked. Does not wait until they are
    /// gone: one that waits for a disk stays until the disk answers.
    pub async fn kill(&self) {
        self.kill_cgroup();
        let turn = self.turn.load(Relaxed);
        self.apart(move |scope| scope.kill_found(turn)).await;
    }

    /// The same where nobody can wait for it: what could not be found soon is killed later.
    pub fn kill_soon(&self) {
        self.kill_cgroup();
        let (scope, turn) = (self.clone(), self.turn.load(Relaxed));
        let (done, is_done) = sync_channel(1);
        let kill = move || {
            scope.kill_found(turn);
            let _ = done.send(());
        };
        match thread::Builder::new().name("kill".into()).spawn(kill) {
            Ok(_) => drop(is_done.recv_timeout(KILL_SOON)),
            Err(error) => tracing::error!("{}: not all of it is killed: {error}", self.id),
        }
    }

    fn kill_cgroup(&self) {
        if let Some(cgroup) = &self.cgroup {
            // Since Linux 5.14; else one by one.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
    }

    /// Kills one by one, and nothing that was started after `turn`.
    fn kill_found(&self, turn: u64) {
        let mut known: Vec<Process> = Vec::new();
        for _ in 0..KILL_PASSES {
            let all = self.look();
            let new: Vec<Process> = all.into_iter().filter(|it| !known.contains(it)).collect();
            if new.is_empty() || self.turn.load(Relaxed) != turn {
                return;
            }
            new.iter().for_each(|process| send(process, Signal::SIGKILL));
            known.extend(new);
        }
    }

    /// Removes the cgroup once it is empty; one that is not stays.
    pub fn tidy(&self) {
        let Some(cgroup) = self.cgroup() else { return };
        let deadline = Instant::now() + EMPTY_PATIENCE;
        while let Err(error) = remove(&cgroup) {
            let is_busy = error.raw_os_error() == Some(libc::EBUSY);
            // Busy with one that was killed: gone in a moment. Busy with others: stays.
            if !is_busy || !self.in_cgroup().is_empty() || Instant::now() > deadline {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The directory of all services of this daemon goes with the last of them.
        let _ = cgroup.parent().map(fs::remove_dir);
    }
}

/// The process groups of all scopes, with their marks.
fn groups_of_all() -> BTreeSet<(String, i32)> {
    let own = getpgrp();
    let marked = processes::marked(&format!("{MARK}=")).into_iter();
    let grouped = marked.filter_map(|(pid, mark)| {
        let group = getpgid(Some(Pid::from_raw(pid))).ok()?;
        (group != own && group.as_raw() > 1).then_some((mark, group.as_raw()))
    });
    grouped.collect()
}

fn send(process: &Process, signal: Signal) {
    if let Ok(held) = PidFd::open(process.pid)
        && process.lives()
    {
        let _ = held.signal(signal);
    }
}

fn remove(cgroup: &Path) -> io::Result<()> {
    let mut groups = tree(cgroup);
    groups.reverse();
    groups.iter().try_for_each(fs::remove_dir)
}

/// A cgroup and all below it, from the top.
fn tree(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_owned()];
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let entries = fs::read_dir(group).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// The cgroup of this process in the v2 hierarchy, if it is mounted and we may make groups there.
fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = cgroup_path(&mounts, &own)?;
    let may_write = nix::unistd::access(&group, nix::unistd::AccessFlags::W_OK).is_ok();
    may_write.then_some(group)
}

fn cgroup_path(mounts: &str, own: &str) -> Option<PathBuf> {
    let line = mounts.lines().find(|line| {
        line.split_once(" - ").is_some_and(|(_, right)| right.starts_with("cgroup2 "))
    })?;
    let mut fields = line.split(' ');
    let root = fields.nth(3)?;
    let mount_point = fields.next()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = Path::new(path).strip_prefix(root).ok()?;
    // A group that was deleted under us cannot have children.
    (!path.ends_with(" (deleted)")).then(|| Path::new(mount_point).join(inside))
}

/// A name that is one part of a path, and still tells any two services apart.
pub fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let kept: String = name.chars().map(|c| if plain(c) { c } else { '_' }).take(80).collect();
    if kept == name { kept } else { format!("{kept}-{:08x}", crc32fast::hash(name.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_below_every_kind_of_mount() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hybrid = "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
                      30 29 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let inside = "30 23 0:26 /lxc/a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let path = |mounts, own| cgroup_path(mounts, own).map(|it| it.display().to_string());
        let unit = "0::/system.slice/replicator.service\n";
        assert_eq!(
            path(unified, unit).as_deref(),
            Some("/sys/fs/cgroup/system.slice/replicator.service")
        );
        assert_eq!(
            path(hybrid, "1:name=systemd:/\n0::/\n").as_deref(),
            Some("/sys/fs/cgroup/unified/")
        );
        assert_eq!(path(inside, "0::/lxc/a/x\n").as_deref(), Some("/sys/fs/cgroup/x"));
        assert_eq!(path("", unit), None);
        assert_eq!(path(unified, "4:memory:/\n"), None);
    }

    #[test]
    fn two_services_never_share_a_name() {
        assert_eq!(file_name("db.feed"), "db.feed");
        assert_ne!(file_name("db./srv/a"), file_name("db._srv_a"));
        assert!(!file_name("db./srv/../a b").contains(['/', ' ']));
        assert!(file_name(&"x".repeat(300)).len() < 100);
    }
}

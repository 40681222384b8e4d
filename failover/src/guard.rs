//! The guard, from the daemon's side: a small process of its own that withdraws addresses and
//! freezes services when the lease is over and the daemon cannot do it, and that feeds the
//! watchdog.
//!
//! ```text
//!   table.rs     what both share: a mapping of atomics, no pointers, no locks
//!   process.rs   the guard itself, `replicatord guard`
//!   remover.rs   addresses removed, by a thread that may wait for the kernel
//!   freeze.rs    cgroups and process groups made to stand still, and killed
//!   watchdog.rs  /dev/watchdog
//! ```
//!
//! What is to be done at which time is decided in `failover_core::guard`.
//!
//! The daemon notes in the table what it is about to start, and takes it out when it has verified
//! that it is gone. The guard acts on what is left. It outlives a daemon that was killed, ends with
//! one that ends orderly, and makes room for the guard of the next daemon, to which it leaves what
//! it froze as it is.

mod freeze;
mod process;
mod remover;
mod table;
mod watchdog;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use failover_core::{Span, Time, guard as rules};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::netlink::Place;
use crate::node::now;
use table::{Shared, Table};

pub use process::run;
pub use watchdog::WatchdogWish;

/// The guard opens the watchdog first; some take a moment.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// How long an old guard has to make room, and ours to end.
const END_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A guard that gave no sign of life for so long is replaced.
const STALE_AFTER: Span = Span::from_ms(1_000);
/// One that ends again and again is not started more often than this.
const RESPAWN_PAUSE: Duration = Duration::from_millis(200);

/// What the daemon has its guard know. Cheap to clone; [`Registry::none`] leads nowhere.
#[derive(Clone)]
pub struct Registry {
    table: Option<Shared>,
    /// Rows are given out here; the guard only reads them.
    rows: Arc<Mutex<Rows>>,
}

#[derive(Default)]
struct Rows {
    /// Names of the resources, by row.
    offices: Vec<String>,
}

impl Registry {
    /// Where there is no guard.
    pub fn none() -> Self {
        Self { table: None, rows: Arc::default() }
    }

    /// Whether it leads nowhere.
    pub fn is_none(&self) -> bool {
        self.table.is_none()
    }

    fn over(table: Shared) -> Self {
        Self { table: Some(table), rows: Arc::default() }
    }

    /// The register has another lease than at the start of the guard. Never waits.
    pub fn set_lease_length(&self, lease: Span) {
        if let Some(table) = self.table {
            table.set_lease(lease);
        }
    }

    /// Until when this node may act as primary of a resource. Never waits.
    pub fn set_lease(&self, resource: &str, until: Option<Time>) {
        self.with_office(resource, |table, row| table.set_until(row, until));
    }

    /// Until when this node may act as primary of a resource, as far as it was told here.
    pub fn lease(&self, resource: &str) -> Option<Time> {
        let row = self.lock().offices.iter().position(|name| name == resource)?;
        self.table?.office(row)?.0
    }

    /// Nothing has stopped a service of this resource: the watchdog is to fire. `false` takes it
    /// back.
    pub fn give_up(&self, resource: &str, is_given_up: bool) {
        self.with_office(resource, |table, row| table.set_given_up(row, is_given_up));
    }

    /// The thread that renews the lease lives. Never waits.
    pub fn beat(&self) {
        if let Some(table) = self.table {
            table.beat(now());
        }
    }

    /// The thread that starts and stops the services of a resource lives.
    pub fn beat_services(&self, resource: &str) {
        self.with_office(resource, |table, row| table.beat_services(row, now()));
    }

    /// After how long without a lease the services of a resource stop, whoever stops them.
    pub fn set_demote_after(&self, resource: &str, span: Span) {
        self.with_office(resource, |table, row| table.set_demote_after(row, span));
    }

    /// An address is about to be added. It is the guard's business until the slot is dropped.
    pub fn guard_address(&self, resource: &str, place: &Place) -> AddressSlot {
        let mut slot = AddressSlot { table: None, row: 0 };
        self.with_office(resource, |table, office| match table.take_address(office, place) {
            Some(row) => slot = AddressSlot { table: Some(table), row },
            None => tracing::error!("{} has no guard: its table is full", place.address),
        });
        slot
    }

    /// A service has these cgroups (directories of cgroup v2) or, as `/proc/PID`, process groups.
    /// They are the guard's business until the slot is dropped.
    pub fn guard_groups(&self, resource: &str, paths: &[PathBuf]) -> Vec<GroupSlot> {
        let mut slots = Vec::new();
        self.with_office(resource, |table, office| {
            for path in paths {
                match table.take_group(office, path) {
                    Some(row) => slots.push(GroupSlot { table, row }),
                    None => tracing::error!("{} has no guard: no room", path.display()),
                }
            }
        });
        slots
    }

    fn with_office(&self, resource: &str, act: impl FnOnce(Shared, usize)) {
        let Some(table) = self.table else { return };
        let mut rows = self.lock();
        let known = rows.offices.iter().position(|name| name == resource);
        let row = known.or_else(|| {
            let row = table.use_office(rows.offices.len())?;
            rows.offices.push(resource.to_owned());
            Some(row)
        });
        match row {
            Some(row) => act(table, row),
            None => tracing::error!("{resource} has no guard: its table is full"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Registry {
    /// One whose table nobody reads.
    pub(crate) fn for_tests() -> Self {
        Self::over(Table::map(&table::create().expect("memory")).expect("a mapping"))
    }

    /// The last sign of life of the thread of a resource.
    pub(crate) fn services_beat(&self, resource: &str) -> Option<Time> {
        let row = self.lock().offices.iter().position(|name| name == resource)?;
        self.table?.heartbeat(row)
    }
}

/// An address that the guard removes when the lease is over.
pub struct AddressSlot {
    table: Option<Shared>,
    row: usize,
}

impl AddressSlot {
    /// Whether the guard has removed it.
    pub fn was_removed(&self) -> bool {
        self.table.is_some_and(|table| table.was_removed(self.row))
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        if let Some(table) = self.table {
            table.free_address(self.row);
        }
    }
}

/// Processes that the guard freezes when the lease is over and the daemon does not live.
pub struct GroupSlot {
    table: Shared,
    row: usize,
}

impl Drop for GroupSlot {
    fn drop(&mut self) {
        self.table.free_group(self.row);
    }
}

/// How the guard is to be.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// Starts a program that calls [`run`] with `run_dir` and the watchdog as its last arguments,
    /// for example `["/usr/sbin/replicatord", "guard"]`.
    pub command: Vec<OsString>,
    /// Where its lock file is.
    pub run_dir: PathBuf,
    /// The lease, until [`Registry::set_lease_length`] says another one.
    pub lease: Span,
    /// Which watchdog it feeds.
    pub watchdog: WatchdogWish,
}

/// The guard and the watchdog as status shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardReport {
    /// Its process; 0 while there is none.
    pub pid: u32,
    /// The lease it goes by.
    pub lease_ms: u64,
    /// How often it had to be started again.
    pub restarts: u64,
    /// How many groups of processes it would freeze: a cgroup for each service, or, without
    /// cgroup v2, the process groups that were found so far.
    pub groups: usize,
    /// What the kernel refused to it, in words.
    pub warnings: Vec<String>,
    /// The watchdog.
    pub watchdog: WatchdogReport,
}

/// The watchdog as status shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogReport {
    /// Whether it is armed.
    pub is_armed: bool,
    /// Its device; empty where there is none.
    pub device: String,
    /// After how many seconds without food it fires.
    pub timeout_s: u32,
    /// Whether it fires before another node has the addresses.
    pub is_in_time: bool,
    /// Whether it can be switched off again at an orderly end.
    pub can_be_disarmed: bool,
    /// Whether renewals of the lease are too slow for it, so that services are frozen.
    pub is_starved: bool,
    /// How its time-out and the lease go together; or why there is none.
    pub why: String,
    /// Whether services may not run on this node without it.
    pub is_required: bool,
}

impl WatchdogReport {
    /// Why services may not run on this node, if so.
    pub fn hindrance(&self) -> Option<String> {
        (self.is_required && !self.is_armed).then(|| {
            format!("a watchdog is required for services, and this node has none: {}", self.why)
        })
    }
}

/// The guard of this daemon.
pub struct Guard {
    registry: Registry,
    table: Shared,
    options: GuardOptions,
    state: Arc<Mutex<State>>,
}

struct State {
    child: Option<Child>,
    restarts: u64,
    is_ending: bool,
}

impl Guard {
    /// Takes the place of an older guard, starts one, and waits until it is ready: until the
    /// watchdog is armed, where there is one.
    pub fn start(options: GuardOptions) -> io::Result<Self> {
        replace_old_guard(&options.run_dir)?;
        let memory = table::create()?;
        let table: Shared = Table::map(&memory)?;
        table.begin(options.lease, std::process::id());
        let registry = Registry::over(table);
        let child = spawn(&options, &memory)?;
        let state = State { child: Some(child), restarts: 0, is_ending: false };
        let state = Arc::new(Mutex::new(state));
        let guard = Self { registry, table, options: options.clone(), state: state.clone() };
        guard.wait_until_ready()?;
        let keeper = Keeper { table, memory, options, state };
        thread::Builder::new().name("guard".into()).spawn(move || keeper.keep())?;
        Ok(guard)
    }

    /// Where services note what they start.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Why services may not run on this node, if so.
    pub fn hindrance(&self) -> Option<String> {
        self.explain(self.table.watchdog()).hindrance()
    }

    /// How it stands.
    pub fn report(&self) -> GuardReport {
        let state = lock(&self.state);
        let (watchdog, warnings) = (self.table.watchdog(), self.table.warnings());
        GuardReport {
            pid: state.child.as_ref().map_or(0, Child::id),
            lease_ms: self.table.lease().as_ms(),
            restarts: state.restarts,
            groups: (0..table::GROUPS_MAX).filter(|row| self.table.group(*row).is_some()).count(),
            warnings,
            watchdog: self.explain(watchdog),
        }
    }

    fn explain(&self, found: table::WatchdogFacts) -> WatchdogReport {
        let timeout = Span::from_ms(u64::from(found.timeout_s) * 1_000);
        let lease = self.table.lease();
        let is_in_time = found.is_armed && rules::is_in_time(timeout, lease);
        let why = match (&self.options.watchdog, found.is_armed) {
            (WatchdogWish::Off, _) => "switched off: watchdog = \"off\"".to_owned(),
            (_, false) => found.problem,
            (_, true) => relation(timeout, lease),
        };
        WatchdogReport {
            is_armed: found.is_armed,
            device: found.device,
            timeout_s: found.timeout_s,
            is_in_time,
            can_be_disarmed: found.can_be_disarmed,
            is_starved: found.is_armed && self.table.is_starved(),
            why,
            is_required: self.options.watchdog.is_required(),
        }
    }

    /// The daemon ends orderly: everything of it is stopped. The guard switches the watchdog off
    /// and ends too.
    pub fn end(&self) {
        let child = {
            let mut state = lock(&self.state);
            state.is_ending = true;
            state.child.take()
        };
        self.table.end();
        if let Some(child) = child {
            reap(child, END_WITHIN);
        }
    }

    fn wait_until_ready(&self) -> io::Result<()> {
        let began = Instant::now();
        while !self.table.is_ready() {
            let ended = match &mut lock(&self.state).child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                return Err(io::Error::other(format!("the guard ended at once: {status}")));
            }
            if began.elapsed() > READY_WITHIN {
                return Err(io::Error::other("the guard is not ready after 5 s"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// How a time-out and a lease go together, with the figures.
fn relation(timeout: Span, lease: Span) -> String {
    let seconds = |span: Span| span.as_ms() as f64 / 1_000.0;
    let (fires, others) = (seconds(timeout), seconds(rules::others_from(lease)));
    if rules::is_in_time(timeout, lease) {
        return format!(
            "fires {fires:.0} s after it was fed last, in time: another node has the addresses \
             {others:.1} s after the last renewal at the earliest"
        );
    }
    format!(
        "too long: it fires {fires:.0} s after it was fed last, and another node may have the \
         addresses {others:.1} s after the last renewal; lease_ms = {} or more would be in time",
        rules::lease_for_ms(timeout)
    )
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(options: &GuardOptions, memory: &File) -> io::Result<Child> {
    let (program, arguments) = options.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Command::new(program)
        .args(arguments)
        .arg(&options.run_dir)
        .arg(options.watchdog.word())
        // The table is its standard input: it needs nothing else of ours.
        .stdin(Stdio::from(memory.try_clone()?))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Waits for a child, and kills it when that takes too long: no zombie, no second guard.
fn reap(mut child: Child, within: Duration) {
    let began = Instant::now();
    while began.elapsed() < within {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
    tracing::error!("the guard did not end within {} s: killed", within.as_secs());
    kill_and_wait(child);
}

fn kill_and_wait(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Starts the guard again when it ended or stands still.
struct Keeper {
    table: Shared,
    memory: File,
    options: GuardOptions,
    state: Arc<Mutex<State>>,
}

impl Keeper {
    fn keep(self) {
        loop {
            thread::sleep(LOOK_EVERY);
            let mut state = lock(&self.state);
            if state.is_ending {
                return;
            }
            let why = match &mut state.child {
                None => "it could not be started".to_owned(),
                Some(child) => match child.try_wait() {
                    Ok(Some(status)) => status.to_string(),
                    Ok(None) if self.is_stale() => {
                        // One that waits for the kernel ends when the kernel lets it. Nobody
                        // else waits meanwhile.
                        let stuck = state.child.take();
                        drop(state);
                        stuck.into_iter().for_each(kill_and_wait);
                        state = lock(&self.state);
                        if state.is_ending {
                            return;
                        }
                        "it stood still and was killed".to_owned()
                    }
                    Ok(None) => continue,
                    Err(error) => error.to_string(),
                },
            };
            tracing::error!("the guard is gone ({why}): starting another one");
            state.child = None;
            state.restarts += 1;
            self.table.forget_guard(now());
            match spawn(&self.options, &self.memory) {
                Ok(child) => state.child = Some(child),
                Err(error) => tracing::error!("the guard cannot be started: {error}"),
            }
            drop(state);
            thread::sleep(RESPAWN_PAUSE);
        }
    }

    fn is_stale(&self) -> bool {
        now().since(self.table.guard_heartbeat()) > STALE_AFTER
    }
}

/// The file that a guard locks and writes its process into.
fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.lock")
}

fn open_lock(run_dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    options.open(lock_path(run_dir))
}

/// A guard of a daemon that is gone makes room: what it froze stays so, for the new daemon to
/// decide about. Two guards with two opinions would be worse than none for a moment.
fn replace_old_guard(run_dir: &Path) -> io::Result<()> {
    let began = Instant::now();
    let mut signal = Signal::SIGUSR2;
    loop {
        let mut file = open_lock(run_dir)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            return Ok(());
        }
        // Its owner holds the lock, so this number is its.
        if let Ok(pid) = text.trim().parse::<i32>() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        match began.elapsed() {
            waited if waited > END_WITHIN * 2 => {
                let path = lock_path(run_dir);
                let why = format!("an older guard holds {} and does not end", path.display());
                return Err(io::Error::other(why));
            }
            waited if waited > END_WITHIN => signal = Signal::SIGKILL,
            _ => {}
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// How an address is written into the table: its family and four words.
fn words(address: IpAddr) -> (u32, [u32; 4]) {
    match address {
        IpAddr::V4(address) => (4, [u32::from(address), 0, 0, 0]),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (6, [0, 1, 2, 3].map(|index| (bits >> (32 * index)) as u32))
        }
    }
}

//! The guard itself: one thread, and one that may wait for the kernel's lock on the network; locked
//! memory, real-time priority where that is permitted. After its start it allocates nothing and
//! waits for nobody.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use failover_core::guard::{Duty, Office, Sight, in_force, wanted_timeout_s};
use failover_core::{Span, Time};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::freeze::{Seen, kill_all, set_frozen};
use super::remover::Remover;
use super::table::{ADDRESSES_MAX, GROUPS_MAX, Group, OFFICES_MAX, Shared, Table, WatchdogFacts};
use super::watchdog::{self, Device, Kernel, Watchdog, WatchdogWish};
use super::{END_WITHIN, open_lock};
use crate::netlink::{Place, Requests};
use crate::node::now;

/// How often it looks.
const TICK: u8 = 20;
/// What is withdrawn is withdrawn again, in case it came back.
const AGAIN_AFTER: Span = Span::from_ms(200);
const SECOND: Span = Span::from_ms(1_000);
/// The watchdog is fed at most so often.
const FEED_EVERY: Span = Span::from_ms(100);
/// Among the real-time processes it is not the most urgent one.
const PRIORITY: i32 = 10;
/// Never chosen when memory runs out.
const OOM_SCORE: &str = "-1000";

/// What the guard does to the machine.
trait Machine {
    /// Whether the address of a row of the table was there; `None`: that takes a while yet.
    fn remove_address(&mut self, row: usize, place: &Place) -> io::Result<Option<bool>>;
    fn set_frozen(&mut self, group: &[u8], is_frozen: bool) -> io::Result<Seen>;
    fn kill_all(&mut self, group: &[u8]) -> io::Result<Seen>;
}

struct Kernels {
    remover: Remover,
}

impl Machine for Kernels {
    fn remove_address(&mut self, row: usize, place: &Place) -> io::Result<Option<bool>> {
        self.remover.remove(row, place)
    }

    fn set_frozen(&mut self, group: &[u8], is_frozen: bool) -> io::Result<Seen> {
        set_frozen(group, is_frozen)
    }

    fn kill_all(&mut self, group: &[u8]) -> io::Result<Seen> {
        kill_all(group)
    }
}

/// Runs the guard, whose standard input is the table; ends with its daemon, or when the next daemon
/// takes over.
///
/// `replicatord guard RUN_DIR WATCHDOG` calls this. The process must have no other thread.
pub fn run(run_dir: &Path, watchdog: &str) -> io::Result<()> {
    let wish = WatchdogWish::parse(watchdog).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("no watchdog: {watchdog}"))
    })?;
    let memory = take_standard_input()?;
    let table = Table::map(&memory)?;
    if !table.is_valid() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no table of a guard"));
    }
    let _lock = lock(run_dir)?;
    let signals = take_signals()?;
    let daemon = open_process(table.daemon_pid())?;
    let mut warnings = prepare();
    let lease = table.lease();
    let watchdog = arm(&wish, table, lease);
    let mut requests = Requests::open()?;
    // Its threads inherit no priority. What is refused to it was refused to this one too.
    let begin = || drop(take_priority());
    let remover = Remover::start(begin, move |place| requests.remove_address(place))?;
    let machine = Kernels { remover };
    let mut watch = Watch::new(table, machine, watchdog, lease);
    // From here on nothing new is mapped.
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        warnings.push(format!("the memory of the guard is not locked: {error}"));
    }
    table.set_warning(&warnings.join("\n"));
    table.guard_beat(now());
    table.set_ready();
    watch.go_on(daemon, &signals)
}

/// Nothing else may read or close the table.
fn take_standard_input() -> io::Result<File> {
    // SAFETY: descriptor 0 is the table that the daemon gave us; nothing else in this process uses
    // its standard input.
    let memory = File::from(unsafe { OwnedFd::from_raw_fd(0) });
    if memory.metadata()?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the daemon starts the guard"));
    }
    Ok(memory)
}

fn lock(run_dir: &Path) -> io::Result<Flock<File>> {
    let began = Instant::now();
    loop {
        match Flock::lock(open_lock(run_dir)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.write_all(std::process::id().to_string().as_bytes())?;
                return Ok(file);
            }
            Err(_) if began.elapsed() < END_WITHIN => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

fn take_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// The daemon, as a descriptor that becomes readable when it dies; `None`: it is dead by now.
fn open_process(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes plain numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd >= 0 {
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }));
    }
    match Errno::last() {
        Errno::ESRCH => Ok(None),
        error => Err(error.into()),
    }
}

/// What it asks of the kernel for itself; gives what was refused, in words.
fn prepare() -> Vec<String> {
    let mut refused = Vec::new();
    if let Err(error) = take_priority() {
        refused.push(format!(
            "the guard has no real-time priority ({error}): on a machine under load it may be late"
        ));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        refused.push(format!("the guard may be killed when memory runs out: {error}"));
    }
    refused
}

/// Of the thread that calls.
fn take_priority() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameter` is a whole sched_param that lives during the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn arm(wish: &WatchdogWish, table: Shared, lease: Span) -> Option<Watchdog<Kernel>> {
    if *wish == WatchdogWish::Off {
        return None;
    }
    match watchdog::open(wish, lease) {
        Ok(armed) => {
            table.set_watchdog(&armed.facts);
            Some(armed)
        }
        Err(problem) => {
            table.set_watchdog(&WatchdogFacts { problem, ..WatchdogFacts::default() });
            None
        }
    }
}

/// What the guard did about an address.
#[derive(Clone, Copy, Default)]
struct RemovedAddress {
    place: Option<Place>,
    removed_at: Option<Time>,
}

/// What the guard did about a group of processes.
#[derive(Default)]
struct FrozenGroup {
    /// The group, as long as it is in the table, and longer while it is frozen.
    group: Option<Group>,
    is_frozen: bool,
    /// Whether the kernel has said so.
    is_settled: bool,
    /// A process group that has ended.
    is_gone: bool,
    looked_at: Option<Time>,
}

struct Watch<M, D> {
    table: Shared,
    machine: M,
    watchdog: Option<Watchdog<D>>,
    /// The time-out that was asked for, in seconds, and the lease that is judged by.
    asked_s: u32,
    lease: Span,
    fed_at: Option<Time>,
    /// Renewals are too slow for the watchdog.
    is_starved: bool,
    offices: Vec<Option<(Office, Duty)>>,
    unattended_since: Vec<Option<Time>>,
    addresses: Vec<RemovedAddress>,
    groups: Vec<FrozenGroup>,
}

enum Then {
    GoOn,
    End,
}

impl<M: Machine, D: Device> Watch<M, D> {
    /// The watchdog has the time-out that `lease` wants.
    fn new(table: Shared, machine: M, watchdog: Option<Watchdog<D>>, lease: Span) -> Self {
        Self {
            table,
            machine,
            watchdog,
            asked_s: wanted_timeout_s(lease),
            lease,
            fed_at: None,
            is_starved: false,
            offices: vec![None; OFFICES_MAX],
            unattended_since: vec![None; OFFICES_MAX],
            addresses: vec![RemovedAddress::default(); ADDRESSES_MAX],
            groups: (0..GROUPS_MAX).map(|_| FrozenGroup::default()).collect(),
        }
    }

    fn go_on(&mut self, daemon: Option<OwnedFd>, signals: &SignalFd) -> io::Result<()> {
        let mut daemon = daemon;
        loop {
            if let Then::End = Self::wait(&mut daemon, signals) {
                return self.end();
            }
            if self.table.is_ended() {
                return self.end();
            }
            self.step(now(), daemon.is_some());
            if daemon.is_none() && self.has_nothing_left() {
                return self.end();
            }
        }
    }

    /// Sleeps for a tick, or until the daemon dies or a signal comes.
    fn wait(daemon: &mut Option<OwnedFd>, signals: &SignalFd) -> Then {
        // Nothing is heard of a dead daemon: the place of its descriptor hears of signals too.
        let watched: BorrowedFd<'_> = daemon.as_ref().map_or(signals.as_fd(), AsFd::as_fd);
        let mut look = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(watched, PollFlags::POLLIN),
        ];
        // An interrupted sleep is a short one.
        let _ = poll(&mut look, PollTimeout::from(TICK));
        let died = daemon.is_some() && look[1].any() == Some(true);
        let mut then = Then::GoOn;
        while let Ok(Some(signal)) = signals.read_signal() {
            // Everything else asks us to end while there is something to guard.
            if signal.ssi_signo == Signal::SIGUSR2 as u32 {
                then = Then::End;
            }
        }
        if died {
            *daemon = None;
        }
        then
    }

    /// Looks at everything once and does what is due.
    fn step(&mut self, now: Time, has_daemon: bool) {
        let table = self.table;
        let offices = (0..OFFICES_MAX).filter_map(|row| table.office(row));
        let offices = offices.map(|(until, _)| Office { until, ..Office::default() });
        self.lease = in_force(self.lease, table.lease(), now, offices);
        self.look_whether_it_starves(now);
        let (lease, is_starved) = (self.lease, self.is_starved);
        for (row, known) in self.offices.iter_mut().enumerate() {
            let since = &mut self.unattended_since[row];
            *known = table.office(row).map(|(until, is_given_up)| {
                let demote_after = table.demote_after(row);
                let mut office = Office {
                    until,
                    is_given_up,
                    is_withdrawn: true,
                    is_frozen: true,
                    unattended_since: *since,
                    demote_after,
                };
                let sight = Self::sight(table, lease, row, now, has_daemon);
                let duty = Sight { is_starved, ..sight }.duty(&office);
                let is_over = until.is_none_or(|until| now >= until);
                let is_unattended = is_over && duty.freeze == Some(true);
                *since = is_unattended.then(|| since.unwrap_or(now));
                office.unattended_since = *since;
                (office, duty)
            });
        }
        for row in 0..GROUPS_MAX {
            self.look_after_group(row, now);
        }
        for row in 0..ADDRESSES_MAX {
            self.look_after_address(row, now);
        }
        self.feed(now, has_daemon);
        table.guard_beat(now);
    }

    fn look_whether_it_starves(&mut self, now: Time) {
        let Some(watchdog) = &self.watchdog else { return };
        // It was fed when it was armed.
        let unfed = now.since(*self.fed_at.get_or_insert(now));
        let (table, is_starved) = (self.table, self.is_starved);
        let sight = Sight { now, heartbeat: None, lease: self.lease, is_starved };
        let offices = (0..OFFICES_MAX).filter_map(|row| table.office(row));
        let offices = offices.map(|(until, _)| Office { until, ..Office::default() });
        self.is_starved = sight.starves(offices, watchdog.timeout(), unfed);
        table.set_starved(self.is_starved);
    }

    /// What is known of the daemon, for one office. A process of which no thread gave a sign yet
    /// has just begun.
    fn sight(table: Shared, lease: Span, row: usize, now: Time, has_daemon: bool) -> Sight {
        let given = table.heartbeat(row);
        let heartbeat = has_daemon.then(|| given.unwrap_or(now));
        Sight { now, heartbeat, lease, is_starved: false }
    }

    fn look_after_address(&mut self, row: usize, now: Time) {
        let known = &mut self.addresses[row];
        let Some((number, place)) = self.table.address(row) else {
            *known = RemovedAddress::default();
            return;
        };
        let Some(Some((office, duty))) = self.offices.get_mut(number) else { return };
        if known.place != Some(place) || !duty.remove_addresses {
            *known = RemovedAddress { place: Some(place), removed_at: None };
        }
        let is_due = known.removed_at.is_none_or(|at| now.since(at) >= AGAIN_AFTER);
        if duty.remove_addresses && is_due {
            match self.machine.remove_address(row, &place) {
                Ok(None) => {}
                Ok(Some(was_there)) => {
                    known.removed_at = Some(now);
                    if was_there {
                        self.table.set_removed(row);
                    }
                }
                Err(_) => known.removed_at = None,
            }
        }
        office.is_withdrawn &= known.removed_at.is_some();
    }

    fn look_after_group(&mut self, row: usize, now: Time) {
        let known = &mut self.groups[row];
        let found = self.table.group(row);
        let is_same = match (&found, &known.group) {
            (Some(found), Some(group)) => {
                found.office == group.office && found.path() == group.path()
            }
            (None, None) => return,
            _ => false,
        };
        if !is_same {
            // Whoever takes a group out of our hands has stopped what was in it.
            *known = FrozenGroup { group: found, ..FrozenGroup::default() };
        }
        let Some(group) = &known.group else { return };
        let Some(Some((office, duty))) = self.offices.get_mut(group.office) else { return };
        if known.is_gone {
            return;
        }
        let is_new = known.looked_at.is_none();
        let is_due = known.looked_at.is_some_and(|at| now.since(at) >= AGAIN_AFTER);
        let freeze = duty.freeze.unwrap_or(known.is_frozen);
        let is_changed = known.is_frozen != freeze || !known.is_settled;
        // A group that a former guard froze is new to us. Frozen processes may have been joined by
        // others, where the group is none of cgroup v2. A daemon that lives may thaw what it stops.
        let is_ours = duty.freeze == Some(true);
        if (is_new && duty.freeze.is_some()) || (!is_new && is_changed) || (is_ours && is_due) {
            let mut done = self.machine.set_frozen(group.path(), freeze);
            if duty.kill && done.is_ok() {
                done = self.machine.kill_all(group.path());
            }
            known.is_frozen = freeze;
            known.is_settled = done.as_ref().is_ok_and(|seen| *seen != Seen::NotYet);
            known.is_gone = matches!(done, Ok(Seen::Gone));
            known.looked_at = Some(now);
        }
        office.is_frozen &= known.is_frozen && known.is_settled;
        office.is_withdrawn &= office.is_frozen;
    }

    fn feed(&mut self, now: Time, has_daemon: bool) {
        let Some(watchdog) = &mut self.watchdog else { return };
        let (table, lease, offices) = (self.table, self.lease, &self.offices);
        let is_starved = self.is_starved;
        let may_feed = |timeout| {
            offices.iter().enumerate().all(|(row, known)| {
                let sight = Self::sight(table, lease, row, now, has_daemon);
                let sight = Sight { is_starved, ..sight };
                sight.may_feed(known.iter().map(|(office, _)| *office), timeout)
            })
        };
        let wanted_s = wanted_timeout_s(lease);
        if wanted_s != self.asked_s && may_feed(Span(SECOND.0 * u64::from(wanted_s))) {
            self.asked_s = wanted_s;
            watchdog.set_timeout(wanted_s);
            table.set_watchdog(&watchdog.facts);
        }
        if self.fed_at.is_some_and(|at| now.since(at) < FEED_EVERY) {
            return;
        }
        if may_feed(watchdog.timeout()) && watchdog.feed().is_ok() {
            self.fed_at = Some(now);
        }
    }

    /// Whether a dead daemon has left nothing that ever could need us.
    fn has_nothing_left(&self) -> bool {
        (0..ADDRESSES_MAX).all(|row| self.table.address(row).is_none())
            && (0..GROUPS_MAX).all(|row| self.table.group(row).is_none())
    }

    /// Switches the watchdog off. What it froze stays as it is: the next daemon, which knows
    /// whether it may go on, finds it so; after an orderly end nothing is left.
    fn end(&mut self) -> io::Result<()> {
        match &mut self.watchdog {
            Some(watchdog) => watchdog.disarm(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

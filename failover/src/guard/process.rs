//! The guard itself: one thread, locked memory, real-time priority where that is permitted. After
//! its start it allocates nothing and waits for nobody but the kernel.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use failover_core::guard::{Duty, Office, Sight};
use failover_core::{Span, Time};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::freeze::{Seen, kill_all, set_frozen};
use super::table::{ADDRESSES_MAX, GROUPS_MAX, Group, OFFICES_MAX, Shared, Table, WatchdogFacts};
use super::watchdog::{self, Kernel, Watchdog, WatchdogWish};
use super::{END_WITHIN, open_lock};
use crate::netlink::{Place, Requests};
use crate::node::now;

/// How often it looks.
const TICK: u8 = 20;
/// What is withdrawn is withdrawn again, in case it came back.
const AGAIN_AFTER: Span = Span::from_ms(200);
/// The watchdog is fed at most so often.
const FEED_EVERY: Span = Span::from_ms(100);
/// Among the real-time processes it is not the most urgent one.
const PRIORITY: i32 = 10;
/// Never chosen when memory runs out.
const OOM_SCORE: &str = "-1000";

/// What the guard does to the machine.
trait Machine {
    fn remove_address(&mut self, place: &Place) -> io::Result<bool>;
    fn set_frozen(&mut self, group: &[u8], is_frozen: bool) -> io::Result<Seen>;
    fn kill_all(&mut self, group: &[u8]) -> io::Result<Seen>;
}

struct Kernels {
    requests: Requests,
}

impl Machine for Kernels {
    fn remove_address(&mut self, place: &Place) -> io::Result<bool> {
        self.requests.remove_address(place)
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
    let watchdog = arm(&wish, table);
    let machine = Kernels { requests: Requests::open()? };
    let mut watch = Watch::new(table, machine, watchdog);
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
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `parameter` is a whole sched_param that lives during the call.
    let done = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK,
            &raw const parameter,
        )
    };
    if done < 0 {
        let error = io::Error::last_os_error();
        refused.push(format!(
            "the guard has no real-time priority ({error}): on a machine under load it may be late"
        ));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        refused.push(format!("the guard may be killed when memory runs out: {error}"));
    }
    refused
}

fn arm(wish: &WatchdogWish, table: Shared) -> Option<Watchdog<Kernel>> {
    if *wish == WatchdogWish::Off {
        return None;
    }
    match watchdog::open(wish, table.lease()) {
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

struct Watch<M> {
    table: Shared,
    machine: M,
    watchdog: Option<Watchdog<Kernel>>,
    fed_at: Option<Time>,
    offices: Vec<Option<(Office, Duty)>>,
    unattended_since: Vec<Option<Time>>,
    addresses: Vec<RemovedAddress>,
    groups: Vec<FrozenGroup>,
}

enum Then {
    GoOn,
    End,
}

impl<M: Machine> Watch<M> {
    fn new(table: Shared, machine: M, watchdog: Option<Watchdog<Kernel>>) -> Self {
        Self {
            table,
            machine,
            watchdog,
            fed_at: None,
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
        for (row, known) in self.offices.iter_mut().enumerate() {
            let since = &mut self.unattended_since[row];
            *known = table.office(row).map(|(until, is_given_up)| {
                let demote_after = table.demote_after(row);
                let mut office = Office {
                    until,
                    is_given_up,
                    is_withdrawn: true,
                    unattended_since: *since,
                    demote_after,
                };
                let duty = Self::sight(table, row, now, has_daemon).duty(&office);
                let is_unattended = duty.freeze == Some(true);
                *since = is_unattended.then(|| since.unwrap_or(now));
                office.unattended_since = *since;
                (office, duty)
            });
        }
        for row in 0..ADDRESSES_MAX {
            self.look_after_address(row, now);
        }
        for row in 0..GROUPS_MAX {
            self.look_after_group(row, now);
        }
        self.feed(now, has_daemon);
        table.guard_beat(now);
    }

    /// What is known of the daemon, for one office. A process of which no thread gave a sign yet
    /// has just begun.
    fn sight(table: Shared, row: usize, now: Time, has_daemon: bool) -> Sight {
        let given = table.heartbeat(row);
        let heartbeat = has_daemon.then(|| given.unwrap_or(now));
        Sight { now, heartbeat, lease: table.lease() }
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
            match self.machine.remove_address(&place) {
                Ok(was_there) => {
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
        office.is_withdrawn &= known.is_frozen && known.is_settled;
    }

    fn feed(&mut self, now: Time, has_daemon: bool) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if self.fed_at.is_some_and(|at| now.since(at) < FEED_EVERY) {
            return;
        }
        let timeout = watchdog.timeout();
        let may_feed = self.offices.iter().enumerate().all(|(row, known)| {
            let sight = Self::sight(self.table, row, now, has_daemon);
            sight.may_feed(known.iter().map(|(office, _)| *office), timeout)
        });
        if may_feed && watchdog.feed().is_ok() {
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use failover_core::guard::STALE_AFTER;

    use super::super::Registry;
    use super::super::table::create;
    use super::*;

    const LEASE: Span = Span::from_ms(1_000);
    const DEMOTE_AFTER: Span = Span::from_ms(10_000);
    const GROUP: &str = "/sys/fs/cgroup/replicator/demo";

    #[derive(Default)]
    struct Fake {
        there: BTreeSet<std::net::IpAddr>,
        frozen: BTreeMap<Vec<u8>, bool>,
        ended: BTreeSet<Vec<u8>>,
        looks: u32,
        refuses: bool,
    }

    impl Machine for Fake {
        fn remove_address(&mut self, place: &Place) -> io::Result<bool> {
            if self.refuses {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(self.there.remove(&place.address))
        }

        fn set_frozen(&mut self, group: &[u8], is_frozen: bool) -> io::Result<Seen> {
            if self.refuses {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.frozen.insert(group.to_vec(), is_frozen);
            self.looks += 1;
            Ok(if self.ended.contains(group) { Seen::Gone } else { Seen::Done })
        }

        fn kill_all(&mut self, group: &[u8]) -> io::Result<Seen> {
            self.ended.insert(group.to_vec());
            Ok(Seen::Done)
        }
    }

    fn at(ms: u64) -> Time {
        Time(Span::from_ms(1_000_000 + ms).0)
    }

    fn place() -> Place {
        Place { index: 3, address: [192, 0, 2, 100].into(), prefix: 24 }
    }

    struct World {
        registry: Registry,
        table: Shared,
        watch: Watch<Fake>,
    }

    impl World {
        fn new() -> Self {
            let table = Table::map(&create().unwrap()).unwrap();
            table.begin(LEASE, 1);
            table.set_demote_after(0, DEMOTE_AFTER);
            let machine = Fake { there: [place().address].into(), ..Fake::default() };
            let watch = Watch::new(table, machine, None);
            Self { registry: Registry::over(table), table, watch }
        }

        fn renewed(&self, ms: u64) {
            self.registry.set_lease("demo", Some(at(ms + 900)));
            self.table.beat(at(ms));
        }

        fn is_there(&self) -> bool {
            self.watch.machine.there.contains(&place().address)
        }

        fn is_frozen(&self) -> Option<bool> {
            self.watch.machine.frozen.get(GROUP.as_bytes()).copied()
        }

        fn is_withdrawn(&self) -> bool {
            self.watch.offices[0].is_some_and(|(office, _)| office.is_withdrawn)
        }
    }

    #[test]
    fn a_stopped_daemon_loses_its_address_and_its_services_stand_still_until_it_is_back() {
        let mut world = World::new();
        world.renewed(0);
        let slot = world.registry.guard_address("demo", &place());
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        let ends = 900;
        for ms in (0..ends).step_by(20) {
            world.watch.step(at(ms), true);
        }
        assert!(world.is_there() && !slot.was_removed());
        assert_eq!(world.is_frozen(), Some(false), "a new group runs");
        assert!(!world.is_withdrawn());
        world.watch.step(at(ends), true);
        assert!(!world.is_there() && slot.was_removed());
        assert_eq!(world.is_frozen(), Some(true));
        assert!(world.is_withdrawn());
        world.renewed(ends + 20);
        world.watch.step(at(ends + 20), true);
        assert_eq!(world.is_frozen(), Some(false));
    }

    #[test]
    fn a_daemon_that_lives_without_a_lease_keeps_its_services_running() {
        let mut world = World::new();
        world.renewed(0);
        let _slot = world.registry.guard_address("demo", &place());
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        for ms in (0..5_000).step_by(20) {
            world.table.beat(at(ms));
            world.watch.step(at(ms), true);
        }
        assert!(!world.is_there(), "an address it forgot is removed all the same");
        assert_eq!(world.is_frozen(), Some(false));
    }

    #[test]
    fn what_was_frozen_stays_so_for_a_daemon_that_is_back_without_its_lease() {
        let mut world = World::new();
        world.renewed(0);
        let groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.watch.step(at(2_000), true);
        assert_eq!(world.is_frozen(), Some(true));
        world.table.beat(at(2_500));
        world.watch.step(at(2_520), true);
        assert_eq!(world.is_frozen(), Some(true));
        let looks = world.watch.machine.looks;
        world.table.beat(at(3_000));
        world.watch.step(at(3_020), true);
        assert_eq!(world.watch.machine.looks, looks, "a daemon that lives may thaw what it stops");
        drop(groups);
    }

    #[test]
    fn a_dead_daemon_is_not_believed_its_last_heartbeat() {
        let mut world = World::new();
        world.renewed(0);
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.table.beat(at(1_000));
        world.watch.step(at(1_001), false);
        assert_eq!(world.is_frozen(), Some(true));
    }

    #[test]
    fn an_address_that_comes_back_is_removed_again() {
        let mut world = World::new();
        world.renewed(0);
        let _slot = world.registry.guard_address("demo", &place());
        world.watch.step(at(2_000), false);
        world.watch.machine.there.insert(place().address);
        world.watch.step(at(2_020), false);
        world.watch.step(at(2_000 + AGAIN_AFTER.as_ms()), false);
        assert!(!world.is_there());
    }

    #[test]
    fn what_cannot_be_withdrawn_is_not_called_withdrawn() {
        let mut world = World::new();
        world.renewed(0);
        let _slot = world.registry.guard_address("demo", &place());
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.watch.machine.refuses = true;
        world.watch.step(at(5_000), true);
        assert!(!world.is_withdrawn());
        world.watch.machine.refuses = false;
        world.watch.step(at(5_020), true);
        assert!(world.is_withdrawn());
    }

    #[test]
    fn what_it_froze_stays_so_when_it_ends_since_the_lease_may_be_another_nodes() {
        let mut world = World::new();
        world.renewed(0);
        let groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.watch.step(at(5_000), true);
        assert_eq!(world.is_frozen(), Some(true));
        drop(groups);
        world.watch.step(at(5_020), true);
        world.watch.end().unwrap();
        assert_eq!(world.is_frozen(), Some(true));
    }

    #[test]
    fn services_of_a_daemon_that_does_not_come_back_are_killed() {
        let mut world = World::new();
        world.renewed(0);
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        let is_killed = |world: &World| world.watch.machine.ended.contains(GROUP.as_bytes());
        let (frozen, ends) = (1_100, 1_100 + DEMOTE_AFTER.as_ms());
        for ms in (frozen..ends).step_by(20) {
            world.watch.step(at(ms), false);
        }
        assert!(world.is_frozen() == Some(true) && !is_killed(&world));
        world.watch.step(at(ends + 200), false);
        assert!(is_killed(&world));
    }

    #[test]
    fn time_in_which_the_daemon_was_there_does_not_count_as_unattended() {
        let mut world = World::new();
        world.renewed(0);
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.watch.step(at(2_000), true);
        world.table.beat(at(9_000));
        world.watch.step(at(9_020), true);
        world.watch.step(at(12_500), true);
        assert!(world.watch.machine.ended.is_empty());
    }

    #[test]
    fn the_number_of_a_process_group_that_ended_is_never_used_again() {
        let mut world = World::new();
        world.renewed(0);
        let groups = world.registry.guard_groups("demo", &["/proc/4711".into()]);
        world.watch.machine.ended.insert(b"/proc/4711".to_vec());
        world.watch.step(at(2_000), false);
        let looks = world.watch.machine.looks;
        for ms in (2_020..20_000).step_by(20) {
            world.watch.step(at(ms), false);
        }
        assert_eq!((world.watch.machine.looks, looks), (1, 1));
        assert!(world.is_withdrawn());
        drop(groups);
    }

    #[test]
    fn a_thread_of_services_that_stands_still_makes_the_daemon_stuck() {
        let mut world = World::new();
        world.renewed(0);
        let _groups = world.registry.guard_groups("demo", &[GROUP.into()]);
        world.table.beat_services(0, at(0));
        for ms in (0..2_000).step_by(20) {
            world.table.beat(at(ms));
            world.watch.step(at(ms), true);
        }
        assert_eq!(world.is_frozen(), Some(true));
    }

    #[test]
    fn a_standstill_shorter_than_the_lease_changes_nothing() {
        let mut world = World::new();
        world.renewed(0);
        let _slot = world.registry.guard_address("demo", &place());
        assert!(STALE_AFTER.as_ms() < 850);
        world.watch.step(at(850), true);
        assert!(world.is_there());
    }
}

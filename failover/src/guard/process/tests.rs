//! The guard with a machine that is none.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

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
    /// The kernel does not answer about addresses.
    is_slow: bool,
}

impl Machine for Fake {
    fn remove_address(&mut self, _row: usize, place: &Place) -> io::Result<Option<bool>> {
        if self.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok((!self.is_slow).then(|| self.there.remove(&place.address)))
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

/// A watchdog that is set in seconds, and in time.
struct Dog {
    timeout_s: u32,
    is_fixed: bool,
    now: Rc<Cell<Time>>,
    fed: Rc<Cell<Time>>,
}

impl Device for Dog {
    fn set_timeout(&mut self, seconds: u32) -> io::Result<()> {
        if self.is_fixed {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.timeout_s = seconds;
        self.feed()
    }

    fn timeout(&mut self) -> io::Result<u32> {
        Ok(self.timeout_s)
    }

    fn feed(&mut self) -> io::Result<()> {
        self.fed.set(self.now.get());
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn can_be_disarmed(&self) -> bool {
        true
    }
}

/// A primary whose watchdog was armed for one lease, and whose register has others.
struct Watched {
    world: World,
    now: Rc<Cell<Time>>,
    fed: Rc<Cell<Time>>,
    ms: u64,
}

impl Watched {
    fn new(file_ms: u64, is_fixed: bool) -> Self {
        let (now, fed) = (Rc::new(Cell::new(at(0))), Rc::new(Cell::new(at(0))));
        let lease = Span::from_ms(file_ms);
        let timeout_s = wanted_timeout_s(lease);
        let dog = Dog { timeout_s, is_fixed, now: now.clone(), fed: fed.clone() };
        let armed = watchdog::arm(dog, Path::new("/dev/watchdog0"), lease).unwrap();
        let facts = armed.facts.clone();
        let world = World::with(lease, Some(armed));
        world.table.set_watchdog(&facts);
        Self { world, now, fed, ms: 0 }
    }

    fn timeout_s(&self) -> u32 {
        self.world.watch.watchdog.as_ref().unwrap().facts.timeout_s
    }

    /// Renews this lease for a time, every fifth of it; the machine is not reset meanwhile.
    fn renew(&mut self, lease_ms: u64, for_ms: u64) {
        self.renew_slowly(lease_ms, 20, for_ms);
    }

    /// The same with answers that take so long.
    fn renew_slowly(&mut self, lease_ms: u64, answer_ms: u64, for_ms: u64) {
        let ends = self.ms + for_ms;
        while self.ms < ends {
            let is_answered =
                self.ms >= answer_ms && (self.ms - answer_ms).is_multiple_of(lease_ms / 5);
            if is_answered {
                let until = at(self.ms - answer_ms + lease_ms * 9 / 10);
                self.world.registry.set_lease("demo", Some(until));
            }
            self.live(20);
        }
    }

    /// The daemon lives for a time; the machine is not reset meanwhile.
    fn live(&mut self, for_ms: u64) {
        let ends = self.ms + for_ms;
        while self.ms < ends {
            self.world.table.beat(at(self.ms));
            self.step(true);
            let unfed = at(self.ms).since(self.fed.get());
            let timeout_s = self.timeout_s();
            assert!(
                unfed < Span::from_ms(u64::from(timeout_s) * 1_000),
                "at {} ms it was not fed for {timeout_s} s",
                self.ms
            );
        }
    }

    fn step(&mut self, has_daemon: bool) {
        self.now.set(at(self.ms));
        self.world.watch.step(at(self.ms), has_daemon);
        self.ms += 20;
    }
}

struct World {
    registry: Registry,
    table: Shared,
    watch: Watch<Fake, Dog>,
}

impl World {
    fn new() -> Self {
        Self::with(LEASE, None)
    }

    fn with(lease: Span, watchdog: Option<Watchdog<Dog>>) -> Self {
        let table = Table::map(&create().unwrap()).unwrap();
        table.begin(lease, 1);
        table.set_demote_after(0, DEMOTE_AFTER);
        let machine = Fake { there: [place().address].into(), ..Fake::default() };
        let watch = Watch::new(table, machine, watchdog, lease);
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
fn a_kernel_that_is_busy_with_the_network_holds_up_neither_the_freeze_nor_the_food() {
    let mut watched = Watched::new(1_000, false);
    let _slot = watched.world.registry.guard_address("demo", &place());
    let _groups = watched.world.registry.guard_groups("demo", &[GROUP.into()]);
    watched.world.watch.machine.is_slow = true;
    watched.renew(1_000, 1_000);
    watched.live(5_000);
    assert!(watched.world.is_there() && !watched.world.is_withdrawn());
    // Now the daemon dies, and nobody says that all is well.
    let died = watched.ms;
    while watched.ms < died + 2_000 {
        watched.step(false);
    }
    assert_eq!(watched.world.is_frozen(), Some(true));
    assert!(watched.fed.get() <= at(died));
    watched.world.watch.machine.is_slow = false;
    watched.step(false);
    assert!(!watched.world.is_there() && watched.world.is_withdrawn());
    assert!(watched.fed.get() > at(died));
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
fn a_primary_whose_register_has_another_lease_than_its_file_is_not_reset() {
    for register_ms in [200, 1_000, 2_000, 5_000] {
        for file_ms in [200, 1_000, 2_000, 5_000] {
            for is_fixed in [false, true] {
                let mut watched = Watched::new(file_ms, is_fixed);
                watched.world.registry.set_lease_length(Span::from_ms(register_ms));
                watched.renew(register_ms, 12_000);
                let wanted_s = wanted_timeout_s(Span::from_ms(register_ms));
                assert!(is_fixed || watched.timeout_s() == wanted_s);
            }
        }
    }
}

#[test]
fn the_time_out_of_the_watchdog_follows_a_lease_that_is_changed() {
    let mut watched = Watched::new(1_000, false);
    for lease_ms in [1_000, 5_000, 1_000, 200, 3_000, 500, 1_000] {
        let lease = Span::from_ms(lease_ms);
        watched.world.registry.set_lease_length(lease);
        watched.renew(lease_ms, 8_000);
        assert_eq!(watched.timeout_s(), wanted_timeout_s(lease), "{lease_ms}");
        assert_eq!(watched.world.table.watchdog().timeout_s, watched.timeout_s());
    }
}

#[test]
fn renewals_that_are_slow_but_not_lost_freeze_services_and_do_not_reset_the_machine() {
    for (lease_ms, answer_ms) in [(1_000, 420), (1_000, 500), (1_000, 700), (5_000, 1_000)] {
        let mut watched = Watched::new(lease_ms, false);
        let _groups = watched.world.registry.guard_groups("demo", &[GROUP.into()]);
        watched.renew(lease_ms, 4_000);
        assert_eq!(watched.world.is_frozen(), Some(false));
        watched.renew_slowly(lease_ms, answer_ms, 20_000);
        let is_told = watched.world.table.is_starved();
        assert_eq!((watched.world.is_frozen(), is_told), (Some(true), true), "{answer_ms}");
        assert!(watched.world.watch.machine.ended.is_empty(), "a daemon lives");
        watched.renew(lease_ms, 4_000);
        let is_told = watched.world.table.is_starved();
        assert_eq!((watched.world.is_frozen(), is_told), (Some(false), false), "{answer_ms}");
    }
    // What is fast enough, most of the time, changes nothing.
    let mut watched = Watched::new(1_000, false);
    let _groups = watched.world.registry.guard_groups("demo", &[GROUP.into()]);
    watched.renew_slowly(1_000, 360, 10_000);
    assert_eq!(watched.world.is_frozen(), Some(false));
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

//! The bodies about disks, on every disk there is: the simulated one (many seeds), a file of this
//! file system, one of tmpfs, the volatile backing of tests, a full file system.

#![allow(missing_docs)] // Tests are read, not linked to.

use std::collections::BTreeSet;
use std::path::Path;

use drivers::real::{Real, Transport};
use drivers::simulated::Simulated;
use drivers::{Crash, Nodes, disk_bodies as bodies};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use replicator::disk::TestBacking;

/// Seeds of the simulator that each body runs with.
const SEEDS: u64 = 60;

fn here() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn file() -> Real {
    Real::new(1, here(), TestBacking::Off, Transport::Unix)
}

fn tmpfs() -> Real {
    Real::new(1, Path::new("/dev/shm"), TestBacking::Off, Transport::Unix)
}

fn volatile() -> Real {
    Real::new(1, here(), TestBacking::Volatile, Transport::Unix)
}

fn check<T>(mut nodes: impl Nodes, body: impl Fn(&mut dyn Nodes) -> T) -> T {
    let found = body(&mut nodes);
    assert_eq!(nodes.violations(), [""; 0]);
    found
}

fn simulated<T>(body: impl Fn(&mut dyn Nodes) -> T) -> Vec<T> {
    (0..SEEDS).map(|seed| check(Simulated::new(seed), &body)).collect()
}

/// On disks of every kind.
fn everywhere(body: impl Fn(&mut dyn Nodes)) {
    simulated(&body);
    check(file(), &body);
    check(tmpfs(), &body);
    check(volatile(), &body);
}

/// What a crash may leave: all old, all new, or some of each.
fn kinds(found: &[Vec<u64>]) -> BTreeSet<&'static str> {
    let old = found.iter().flatten().min().expect("at least one");
    let kind = |sectors: &Vec<u64>| match sectors.iter().filter(|value| *value == old).count() {
        0 => "new",
        count if count == sectors.len() => "old",
        _ => "torn",
    };
    found.iter().map(kind).collect()
}

/// The simulated disk does all of it to us, in some seed; a real one may do some of it.
fn at_least_as_bad_as(simulated: &[Vec<u64>], all: &[&'static str]) {
    assert_eq!(kinds(simulated), all.iter().copied().collect());
}

#[test]
fn digests_differ_exactly_where_the_contents_do() {
    everywhere(bodies::digests_differ_exactly_where_the_contents_do);
}

#[test]
fn a_read_returns_the_last_write_that_is_done() {
    everywhere(bodies::a_read_returns_the_last_write_that_is_done);
}

#[test]
fn the_largest_write_and_read_are_whole() {
    everywhere(bodies::the_largest_write_and_read_are_whole);
}

#[test]
fn only_the_start_of_a_longer_buffer_is_moved() {
    everywhere(bodies::only_the_start_of_a_longer_buffer_is_moved);
}

#[test]
fn every_order_is_answered_once() {
    everywhere(bodies::every_order_is_answered_once);
}

#[test]
fn zeroed_ranges_read_as_zeroes() {
    everywhere(bodies::zeroed_ranges_read_as_zeroes);
}

#[test]
fn a_long_range_is_zeroed_as_a_whole() {
    everywhere(bodies::a_long_range_is_zeroed_as_a_whole);
}

#[test]
fn read_edges_fills_the_edges_and_nothing_else() {
    everywhere(bodies::read_edges_fills_the_edges_and_nothing_else);
}

#[test]
fn a_resync_read_of_zeroes_brings_no_buffer() {
    everywhere(bodies::a_resync_read_of_zeroes_brings_no_buffer);
}

#[test]
fn a_fingerprint_is_that_of_the_samples() {
    everywhere(bodies::a_fingerprint_is_that_of_the_samples);
}

#[test]
fn metadata_are_durable_when_done() {
    everywhere(|nodes| bodies::metadata_are_durable_when_done(nodes, Crash::Process));
    simulated(|nodes| bodies::metadata_are_durable_when_done(nodes, Crash::Power));
    check(volatile(), |nodes| bodies::metadata_are_durable_when_done(nodes, Crash::Power));
}

#[test]
fn metadata_in_flight_are_old_or_new() {
    let found = simulated(bodies::metadata_in_flight_are_old_or_new);
    at_least_as_bad_as(&found, &["old", "new", "torn"]);
    check(volatile(), bodies::metadata_in_flight_are_old_or_new);
}

#[test]
fn flushed_writes_survive() {
    everywhere(|nodes| bodies::flushed_writes_survive(nodes, Crash::Process));
    simulated(|nodes| bodies::flushed_writes_survive(nodes, Crash::Power));
    check(volatile(), |nodes| bodies::flushed_writes_survive(nodes, Crash::Power));
}

#[test]
fn done_writes_survive_their_process() {
    simulated(bodies::done_writes_survive_their_process);
    check(file(), bodies::done_writes_survive_their_process);
    check(tmpfs(), bodies::done_writes_survive_their_process);
}

#[test]
fn unflushed_writes_are_old_or_new() {
    let found = simulated(bodies::unflushed_writes_are_old_or_new);
    at_least_as_bad_as(&found, &["old", "new", "torn"]);
    let found = check(volatile(), bodies::unflushed_writes_are_old_or_new);
    assert!(found.iter().all(|&value| value == 15), "the volatile disk kept {found:?}");
}

#[test]
fn a_flush_covers_what_was_done_and_may_miss_what_is_in_flight() {
    let body = bodies::a_flush_covers_what_was_done_and_may_miss_what_is_in_flight;
    let found = simulated(body);
    at_least_as_bad_as(&found, &["old", "new", "torn"]);
    check(volatile(), body);
}

#[test]
fn a_write_in_flight_is_old_or_new_and_never_lands_later() {
    let body = bodies::a_write_in_flight_is_old_or_new_and_never_lands_later;
    let found = simulated(|nodes| body(nodes, Crash::Power));
    at_least_as_bad_as(&found, &["old", "new", "torn"]);
    simulated(|nodes| body(nodes, Crash::Process));
    check(file(), |nodes| body(nodes, Crash::Process));
    check(tmpfs(), |nodes| body(nodes, Crash::Process));
    check(volatile(), |nodes| body(nodes, Crash::Power));
}

#[test]
fn a_failed_read_is_told_and_the_disk_goes_on() {
    everywhere(|nodes| assert!(bodies::a_failed_read_is_told_and_the_disk_goes_on(nodes)));
}

#[test]
fn a_full_disk_is_told_and_goes_on_when_there_is_space() {
    let body = bodies::a_full_disk_is_told_and_goes_on_when_there_is_space;
    assert!(simulated(body).into_iter().all(|tried| tried));
    // A file system of this thread and the loops it starts, gone when they end.
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
        assert!(!nix::unistd::geteuid().is_root(), "no mount namespace: {error}");
        println!("the real disk was not tried: only root may mount ({error})");
        return;
    }
    let (none, root) = (None::<&str>, "/");
    mount(none, root, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    let target = here().join(format!("small-{}", std::process::id()));
    std::fs::create_dir_all(&target).expect("a directory");
    mount(Some("none"), &target, Some("tmpfs"), MsFlags::empty(), Some("size=16m"))
        .expect("a small file system");
    let nodes = Real::new(1, &target, TestBacking::Off, Transport::Unix).with_little_space();
    assert!(check(nodes, body));
}

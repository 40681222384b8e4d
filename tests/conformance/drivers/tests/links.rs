//! The bodies about connections, on the simulated network (many seeds), on Unix sockets and on
//! TCP.

#![allow(missing_docs)] // Tests are read, not linked to.

use std::path::Path;

use drivers::real::{Real, Transport};
use drivers::simulated::Simulated;
use drivers::{Nodes, link_bodies as bodies};
use replicator::disk::TestBacking;

/// Seeds of the simulator that each body runs with.
const SEEDS: u64 = 60;
/// How often it runs on real sockets, where threads decide who is first.
const ROUNDS: u64 = 5;

fn everywhere(body: impl Fn(&mut dyn Nodes)) {
    let check = |nodes: &mut dyn Nodes| {
        body(nodes);
        assert_eq!(nodes.violations(), [""; 0]);
    };
    (0..SEEDS).for_each(|seed| check(&mut Simulated::new(seed)));
    let here = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for transport in [Transport::Unix, Transport::Tcp] {
        for _ in 0..ROUNDS {
            check(&mut Real::new(2, here, TestBacking::Off, transport));
        }
    }
}

#[test]
fn frames_arrive_in_order_with_their_payload() {
    everywhere(bodies::frames_arrive_in_order_with_their_payload);
}

#[test]
fn a_closed_session_delivers_what_was_ordered_and_is_silent() {
    everywhere(bodies::a_closed_session_delivers_what_was_ordered_and_is_silent);
}

#[test]
fn nothing_comes_behind_the_frame_at_which_a_core_closes() {
    everywhere(bodies::nothing_comes_behind_the_frame_at_which_a_core_closes);
}

#[test]
fn the_end_of_a_process_ends_its_session() {
    everywhere(bodies::the_end_of_a_process_ends_its_session);
}

#[test]
fn a_newer_session_replaces_the_old_one() {
    everywhere(bodies::a_newer_session_replaces_the_old_one);
}

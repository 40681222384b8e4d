//! The lease: a holder, a candidate, three acceptors, time in steps, clocks that go a tenth too
//! fast or too slow or stop, restarts of everybody. There are never two nodes with a valid lease,
//! and no takeover is committed while the old holder's lease runs.

use failover_core::defect::Defect;
use failover_core::{Ballot, ClusterState, NodeName, Span};

use crate::parts::{Machine, Packet, Seat, To, Want};
use crate::scenario::{LEASE, START, Scenario, beginning, record};

/// The models, and the defects that each has to find.
pub fn all() -> Vec<(&'static str, Scenario, Vec<Defect>)> {
    vec![
        (
            "lease: renewed, taken over, clocks drift",
            takeover(),
            vec![
                Defect::PrepareIgnoresLease,
                Defect::AcceptIgnoresLease,
                Defect::GrantAfterTakeover,
                Defect::LeaseFromReply,
                Defect::HolderKeepsTooLong,
            ],
        ),
        ("lease: renewed twice", renewed_twice(), vec![Defect::LeaseFromNewest]),
        ("lease: an acceptor restarts", acceptor_restarts(), vec![Defect::RestartWithoutWait]),
        (
            "lease: taken, records lag behind, an acceptor restarts",
            lagging_disks(),
            vec![Defect::GrantBeforeDurable],
        ),
        ("lease: its holder restarts", holder_restarts(), vec![Defect::FormerGrantCounts]),
        ("lease: its length changes", length_changes(), vec![Defect::GrantWithoutTerm]),
        (
            "lease: its holder reads and finds that it is being taken",
            holder_reads(),
            vec![Defect::RepeatInOwnName],
        ),
        (
            "lease: without end, until its holder proposes another member",
            sole_grows(),
            vec![Defect::SoleKeptWhileChanging, Defect::SoleIgnored],
        ),
        (
            "lease: without end, and an acceptor that misses its end is needed",
            sole_ends_unheard(),
            vec![Defect::SoleJudgedByAcceptors, Defect::SoleIgnored],
        ),
    ]
}

const VOTERS: &[&str] = &["a", "b", "w"];

/// All that drifts against the holder, nothing that drifts, and the clock of an acceptor or of the
/// taker that stops. (When the holder's stops while it goes on, it may answer reads: R5e.)
fn clocks() -> Vec<Vec<(NodeName, u64)>> {
    let clocks = |a, b, w| vec![("a".into(), a), ("b".into(), b), ("w".into(), w)];
    vec![clocks(100, 100, 100), clocks(90, 110, 110), clocks(90, 110, 0), clocks(90, 0, 110)]
}

fn seats() -> Vec<Seat> {
    let first = beginning(VOTERS, Some("a"));
    VOTERS.iter().map(|name| Seat::settled(name, record(name, &first), START)).collect()
}

fn holder(script: &[Want]) -> Machine {
    Machine::new("a", Some(beginning(VOTERS, Some("a"))), script)
}

fn taker() -> Machine {
    Machine::new("b", Some(beginning(VOTERS, Some("a"))), &[Want::Office])
}

fn timed(machines: Vec<Machine>, tick_ms: u64, ticks: u8) -> Scenario {
    let mut scenario = Scenario::new(seats(), machines);
    (scenario.tick, scenario.ticks) = (Span::from_ms(tick_ms), ticks);
    scenario.cut = vec![("b".into(), "a".into())];
    (scenario.waits_out_back_off, scenario.once) = (false, true);
    scenario
}

fn takeover() -> Scenario {
    let mut scenario = timed(vec![holder(&[]).may(0, 1), taker().may(1, 0)], 600, 2);
    scenario.clocks = clocks();
    scenario
}

fn renewed_twice() -> Scenario {
    timed(vec![holder(&[]).may(0, 2), taker().may(1, 0)], 600, 2)
}

fn acceptor_restarts() -> Scenario {
    let mut scenario = timed(vec![holder(&[]).may(0, 1), taker().may(1, 0)], 600, 2);
    (scenario.crashes, scenario.crashing) = (1, vec![2]);
    scenario
}

/// a took the office; w has accepted that, but only its memory knows it yet.
fn lagging_disks() -> Scenario {
    let mut before = beginning(VOTERS, Some("b"));
    before.0.counter = 0;
    before.1.revision = 0;
    before.1.resources[0].holder = None;
    let mut scenario = timed(vec![holder(&[]).may(0, 1), taker().may(1, 0)], 600, 2);
    let mut behind = Seat::settled("w", record("w", &before), START);
    let (ballot, state) = beginning(VOTERS, Some("a"));
    behind.hear(START, &Packet::learn(To::Seat("w".into()), &ballot, &state));
    scenario.seats[2] = behind;
    scenario.lazy = vec![2];
    (scenario.crashes, scenario.crashing) = (1, vec![2]);
    scenario
}

fn holder_restarts() -> Scenario {
    let holder = holder(&[]).may(1, 2).then(&[Want::Office]);
    let mut scenario = timed(vec![holder, taker().may(1, 0)], 600, 2);
    scenario.cut.push(("a".into(), "b".into()));
    scenario.teaches = true;
    (scenario.restarts, scenario.restarting) = (1, vec![0]);
    scenario
}

/// The holder does not know that the lease was shortened.
fn length_changes() -> Scenario {
    let first = Some(beginning(VOTERS, Some("a")));
    let shorter = Want::Lease(Span(LEASE.0 / 2));
    let taker = Machine::new("b", first, &[shorter, Want::Office]).may(2, 0);
    timed(vec![holder(&[]).may(0, 1), taker], 600, 2)
}

/// The takeover was promised before the lease was renewed, and accepted by the taker alone.
fn holder_reads() -> Scenario {
    let mut scenario = timed(vec![holder(&[Want::Read]).may(2, 1), taker().may(2, 1)], 600, 0);
    scenario.waits_out_back_off = true;
    scenario
}

/// a is the only member, and may never learn that b is one too; b hears of it from the majority.
fn sole_grows() -> Scenario {
    let holder = |first| Machine::new("a", Some(first), &[Want::Grow]).may(1, 0);
    sole(holder)
}

/// The same, where w never hears a: the end is committed by a and b, which learns that, and the
/// takeover by b and w, whose acceptor goes from the office without end to the one of b.
fn sole_ends_unheard() -> Scenario {
    let holder = |first| Machine::new("a", Some(first), &[Want::Grow]).may(1, 1);
    let mut scenario = sole(holder);
    scenario.cut.push(("a".into(), "w".into()));
    (scenario.teaches, scenario.has_to_reach) = (true, Some(3));
    scenario
}

fn sole(holder: impl Fn((Ballot, ClusterState)) -> Machine) -> Scenario {
    let mut first = beginning(VOTERS, Some("a"));
    let state = &mut first.1.resources[0].state;
    state.set.truncate(1);
    state.sole = true;
    let taker = Machine::new("b", Some(first.clone()), &[Want::Office, Want::Office]).may(2, 0);
    let mut scenario = timed(vec![holder(first.clone()), taker], 600, 2);
    scenario.seats =
        VOTERS.iter().map(|name| Seat::settled(name, record(name, &first), START)).collect();
    scenario
}

//! A switchover to a node that cannot take the office: what holds it back was not heard when the
//! primary gave the office up. Nobody waits for it.

use failover_core::Span;
use failover_core::cluster::Force;
use failover_core::command::Change;
use failover_core::facts::{Facts, Hindrance};
use failover_core::node::Input;

use crate::world::{RESOURCE, World, name, replica_of};

/// The clients' pause: a round for the release, one for the end of the wish, one to take it back.
const PAUSE_MAX: Span = Span::from_ms(200);

fn held_back(code: &str) -> Hindrance {
    Hindrance {
        code: code.into(),
        rule: "R15".into(),
        why: "the device of an earlier tenure is still mounted".into(),
        next: "umount it".into(),
    }
}

fn report(world: &mut World, node: &str, hindrance: Option<Hindrance>) {
    let replica = replica_of(&name(node)).0;
    let facts = Facts { replica, hindrance, ..Facts::default() };
    world.step(node, Input::ReplicaReported { resource: RESOURCE.into(), facts });
}

fn want_beta(world: &mut World) {
    order(world, Some("beta"));
}

fn order(world: &mut World, node: Option<&str>) {
    let (resource, node) = (RESOURCE.into(), node.map(name));
    let change = Change::Want { resource, node, force: Force::default() };
    world.step("alpha", Input::Ordered { ticket: 1, change, why: "an operator".into() });
}

/// alpha gave the office up, and the register says so.
fn was_given(world: &World) -> bool {
    let known = ["alpha", "beta", "gamma"].map(|node| world.core(node).state().unwrap());
    known.iter().any(|state| state.cause.what == "release")
}

/// beta is held back, and alpha does not hear of it.
fn unheard(world: &mut World, hindrance: Hindrance) {
    world.cut = vec![(name("beta"), name("alpha"))];
    report(world, "beta", Some(hindrance));
    want_beta(world);
    world.run_until(Span::from_ms(500), was_given);
    world.cut.clear();
}

#[test]
fn the_old_primary_goes_on_at_once_and_history_says_why() {
    let mut world = World::with_primary();
    unheard(&mut world, held_back("old_instance"));
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("alpha"));
    assert!(took <= PAUSE_MAX, "{} ms: {:#?}", took.as_ms(), world.log);
    let refused =
        |line: &String| line.contains("alpha knows") && line.contains("switchover refused");
    assert_eq!(world.log.iter().filter(|line| refused(line)).count(), 1, "{:#?}", world.log);
    // The wish is over: beta does not get it later, when it could.
    report(&mut world, "beta", None);
    world.pass(Span::from_ms(15_000));
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

#[test]
fn the_old_primary_goes_on_also_while_the_automation_is_paused() {
    let mut world = World::with_primary();
    let pause = Input::Ordered { ticket: 7, change: Change::Pause(true), why: "test".into() };
    world.order("beta", pause).unwrap();
    unheard(&mut world, held_back("old_instance"));
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("alpha"));
    assert!(took <= PAUSE_MAX, "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn what_is_over_in_a_moment_does_not_end_a_switchover() {
    let mut world = World::with_primary();
    unheard(&mut world, held_back("register_unknown"));
    world.pass(Span::from_ms(100));
    report(&mut world, "beta", None);
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("beta"));
    assert!(took <= PAUSE_MAX, "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn a_replica_that_refuses_the_office_twice_keeps_nobody_waiting() {
    let mut world = World::with_primary();
    world.refusing = Some((name("beta"), held_back("disk_hangs")));
    want_beta(&mut world);
    world.run_until(Span::from_ms(500), was_given);
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("alpha"));
    assert!(took <= Span::from_ms(1_000), "{} ms: {:#?}", took.as_ms(), world.log);
    // Once it can, a new order succeeds at the first attempt.
    world.refusing = None;
    world.pass(Span::from_ms(2_000));
    want_beta(&mut world);
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("beta"));
    assert!(took <= PAUSE_MAX, "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn two_nodes_that_both_refuse_do_not_pass_the_wish_to_and_fro() {
    let mut world = World::with_primary();
    world.cut = vec![(name("beta"), name("alpha"))];
    report(&mut world, "beta", Some(held_back("old_instance")));
    want_beta(&mut world);
    world.run_until(Span::from_ms(500), was_given);
    report(&mut world, "alpha", Some(held_back("old_instance")));
    world.cut.clear();
    world.pass(Span::from_ms(5_000));
    let told = |line: &&String| line.contains("alpha knows") && line.contains("switchover refused");
    assert_eq!(world.log.iter().filter(told).count(), 2, "{:#?}", world.log);
    let wanted = world.core("gamma").state().unwrap().resource(RESOURCE).unwrap().wanted.clone();
    assert_eq!(wanted, None);
    // Whoever can first, serves.
    report(&mut world, "beta", None);
    world.run_until(Span::from_ms(5_000), |world| world.has_lease("beta"));
}

/// O3: it is cancelled while the services of the old primary stop.
#[test]
fn a_switchover_that_is_cancelled_half_way_leaves_the_office_where_it_is() {
    let mut world = World::with_primary();
    world.are_stopping = true;
    want_beta(&mut world);
    world.pass(Span::from_ms(500));
    order(&mut world, None);
    let keeps = |world: &World| world.log.iter().filter(|it| it.contains("alpha keeps")).count();
    world.run_until(Span::from_ms(500), |world| keeps(world) == 1);
    world.are_stopping = false;
    world.pass(Span::from_ms(5_000));
    assert!(world.has_lease("alpha") && keeps(&world) == 1, "{:#?}", world.log);
    // It counts as no failure: the next order is done at once.
    want_beta(&mut world);
    let took = world.run_until(Span::from_ms(20_000), |world| world.has_lease("beta"));
    assert!(took <= PAUSE_MAX, "{} ms: {:#?}", took.as_ms(), world.log);
}

/// And when the office is given up already: somebody has it soon.
#[test]
fn a_switchover_that_is_cancelled_too_late_leaves_nobody_without_a_primary() {
    let mut world = World::with_primary();
    world.cut = vec![(name("alpha"), name("beta")), (name("gamma"), name("beta"))];
    want_beta(&mut world);
    world.run_until(Span::from_ms(500), was_given);
    order(&mut world, None);
    world.pass(Span::from_ms(20));
    world.cut.clear();
    let has_one = |world: &World| world.has_lease("alpha") || world.has_lease("beta");
    let took = world.run_until(Span::from_ms(20_000), has_one);
    assert!(took <= Span::from_ms(500), "{} ms: {:#?}", took.as_ms(), world.log);
}

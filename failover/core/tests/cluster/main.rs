//! The whole of failover-core without a data plane, in virtual time.

mod members;
mod world;

use failover_core::Span;
use failover_core::cluster::Force;
use failover_core::command::Change;
use failover_core::node::Input;

use world::{RESOURCE, World, name, replica_of};

#[test]
fn a_dead_primary_is_replaced_when_its_lease_is_over() {
    let mut world = World::with_primary();
    world.kill("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(1_350), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn an_isolated_primary_loses_its_lease_before_the_other_gets_one() {
    let mut world = World::with_primary();
    world.isolate("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(1_350), "{} ms: {:#?}", took.as_ms(), world.log);
    // It comes back and learns.
    world.cut.clear();
    world.run_until(Span::from_ms(3_000), |world| {
        let state = world.machines[&name("alpha")].state.as_ref().unwrap();
        state.primary == Some(replica_of(&name("beta")))
    });
    assert!(world.has_lease("beta"));
}

#[test]
fn a_cut_between_the_data_nodes_changes_nothing() {
    let mut world = World::with_primary();
    world.cut = vec![(name("alpha"), name("beta")), (name("beta"), name("alpha"))];
    let end = world.now + Span::from_ms(10_000);
    world.run_until(Span::from_ms(11_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

#[test]
fn a_restarted_primary_keeps_its_office() {
    let mut world = World::with_primary();
    world.kill("alpha");
    world.start("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
    assert!(took <= Span::from_ms(600), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn an_operator_moves_the_office() {
    let mut world = World::with_primary();
    let change = Change::Want {
        resource: RESOURCE.into(),
        node: Some(name("beta")),
        force: Force::default(),
    };
    world.step("beta", Input::Ordered { ticket: 1, change, why: "an operator".into() });
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(150), "{} ms: {:#?}", took.as_ms(), world.log);
}

#[test]
fn a_cluster_that_loses_its_witness_and_gets_it_back_pauses_for_nothing() {
    let mut world = World::with_primary();
    world.kill("gamma");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
    world.start("gamma");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    world.kill("beta");
    let end = world.now + Span::from_ms(3_000);
    world.run_until(Span::from_ms(4_000), |world| world.now >= end);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

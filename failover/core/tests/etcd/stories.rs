//! Stories of one cluster whose register is kept by etcd.

use failover_core::Span;
use failover_core::command::Change;

use crate::world::{LEASE, NODES, RESOURCE, World, name};

fn holder(world: &World) -> Option<String> {
    let state = world.state()?;
    Some(state.resource(RESOURCE)?.holder.as_ref()?.node.0.clone())
}

fn code(world: &World, node: &str) -> String {
    world.core(node).explain(RESOURCE).map(|verdict| verdict.code).unwrap_or_default()
}

#[test]
fn a_dead_primary_is_replaced_when_its_key_was_seen_unchanged_for_long_enough() {
    let mut world = World::new(0).founded();
    world.kill("alpha");
    world.pass(Span::from_ms(300));
    assert_eq!(code(&world, "beta"), "lease_runs");
    let took = world.run_until(Span::from_ms(5_000), "beta", |world| world.has_lease("beta"));
    let all = Span(took.0 + Span::from_ms(300).0);
    // 1.1 leases after the last renewal that beta saw, which may have been a beat before.
    assert!(all >= Span::from_ms(900) && all <= Span::from_ms(1_500), "{all:?}");
}

#[test]
fn a_primary_whose_loop_hangs_loses_its_office_although_its_node_goes_on() {
    let mut world = World::new(0).founded();
    world.hang("alpha", true);
    world.run_until(Span::from_ms(6_000), "beta", |world| world.has_lease("beta"));
    assert_eq!(holder(&world).as_deref(), Some("beta"));
}

#[test]
fn without_etcd_the_primary_stops_in_time_and_goes_on_later_without_a_failover() {
    let mut world = World::new(0).founded();
    let takeovers = world.takeovers;
    world.outage_until = world.now + Span::from_ms(8_000);
    world.run_until(Span::from_ms(1_000), "a stop", |world| !world.has_lease("alpha"));
    world.pass(Span::from_ms(3_000));
    for node in NODES {
        assert_eq!(code(&world, node), "no_etcd");
    }
    let took = world.run_until(Span::from_ms(6_000), "a lease", |world| world.has_lease("alpha"));
    assert!(world.now >= world.outage_until && took < Span::from_ms(5_000), "{took:?}");
    world.pass(Span::from_ms(5_000));
    assert_eq!((holder(&world).as_deref(), world.takeovers), (Some("alpha"), takeovers));
}

#[test]
fn an_election_of_etcd_that_is_shorter_than_half_a_lease_is_noticed_by_nobody() {
    let mut world = World::new(0).founded();
    let takeovers = world.takeovers;
    for _ in 0..20 {
        world.outage_until = world.now + Span(LEASE.0 / 2);
        let end = world.now + Span::from_ms(1_700);
        world.run(Span::from_ms(3_000), |world| world.now >= end || !world.has_lease("alpha"));
        assert!(world.has_lease("alpha"), "{:#?}", world.log);
    }
    assert_eq!(world.takeovers, takeovers);
}

#[test]
fn a_switchover_waits_for_no_lease() {
    let mut world = World::new(0).founded();
    let node = Some(name("beta"));
    let change = Change::Want { resource: RESOURCE.into(), node, force: Default::default() };
    let began = world.now;
    world.order("beta", change).unwrap();
    world.run_until(Span::from_ms(1_000), "beta", |world| world.has_lease("beta"));
    let took = world.now.since(began);
    assert!(took < Span::from_ms(200), "{took:?}");
    let state = world.state().unwrap();
    assert_eq!(state.resource(RESOURCE).unwrap().state.set.len(), 2, "nobody left the set");
}

#[test]
fn a_primary_that_is_back_at_once_takes_its_office_up_again_and_nobody_else() {
    let mut world = World::new(0).founded();
    world.kill("alpha");
    world.pass(Span::from_ms(100));
    world.start("alpha");
    world.run_until(Span::from_ms(900), "alpha", |world| world.has_lease("alpha"));
    world.pass(Span::from_ms(4_000));
    assert_eq!(holder(&world).as_deref(), Some("alpha"));
}

#[test]
fn a_register_that_went_back_is_refused_by_all_and_its_primary_stops() {
    let mut world = World::new(0).founded();
    let backup = world.store.backup();
    world.order("beta", Change::Pause(true)).unwrap();
    world.order("beta", Change::Pause(false)).unwrap();
    world.pass(Span::from_ms(500));
    world.store = backup;
    world.pass(Span::from_ms(500));
    for node in NODES {
        assert_eq!(code(&world, node), "went_back");
        assert!(!world.has_lease(node));
    }
    // Also by one that was not there.
    world.kill("beta");
    world.start("beta");
    world.pass(Span::from_ms(2_000));
    assert_eq!(code(&world, "beta"), "went_back");
    let refused = world.order("beta", Change::Pause(true)).unwrap_err();
    assert_eq!(refused.code, "went_back");
}

#[test]
fn an_emptied_register_is_never_founded_again_by_those_who_knew_it() {
    let mut world = World::new(0).founded();
    world.store.empty();
    world.pass(Span::from_ms(4_000));
    assert!(world.state().is_none());
    assert_eq!(code(&world, "alpha"), "went_back");
    for node in NODES {
        world.kill(node);
        world.start(node);
    }
    world.pass(Span::from_ms(4_000));
    assert!(world.state().is_none());
    assert_eq!(code(&world, "beta"), "went_back");
}

#[test]
fn a_node_with_an_old_copy_of_its_record_has_no_part_until_that_is_removed() {
    let mut world = World::new(0).founded();
    let old = world.machines[&name("beta")].disk.clone();
    world.order("alpha", Change::Pause(true)).unwrap();
    world.order("alpha", Change::Pause(false)).unwrap();
    world.pass(Span::from_ms(500));
    world.kill("beta");
    let newest = world.machines[&name("beta")].disk.sequence;
    assert!(newest > old.sequence, "what it saw is in its record");
    world.machines.get_mut(&name("beta")).unwrap().disk = old;
    world.start("beta");
    world.pass(Span::from_ms(500));
    world.kill("alpha");
    world.pass(Span::from_ms(3_000));
    let refused = world.core("beta").explain(RESOURCE).unwrap();
    assert_eq!(refused.code, "went_back");
    assert!(refused.next.contains("register-etcd"), "{}", refused.next);
    assert!(!world.has_lease("beta"));
    world.start("alpha");
    world.run_until(Span::from_ms(3_000), "alpha", |world| world.has_lease("alpha"));
}

#[test]
fn a_register_of_somebody_else_is_left_alone() {
    let mut world = World::new(0).founded();
    // Both machines are new ones of another cluster with this name and key and this prefix.
    let mut other = World::new(0);
    other.kill("alpha");
    other.kill("beta");
    other.install("alpha", 900, 1_000);
    other.install("beta", 901, 1_000);
    other.start("alpha");
    other.start("beta");
    let mut other = other.founded();
    other.store = world.store.backup();
    let revision = other.store.revision;
    other.pass(Span::from_ms(3_000));
    assert_eq!(code(&other, "alpha"), "foreign_register");
    assert_eq!(code(&other, "beta"), "foreign_register");
    assert!(!other.has_lease("alpha"));
    assert_eq!(other.store.revision, revision, "nothing was written");
    world.pass(Span::from_ms(100));
}

#[test]
fn a_machine_that_lost_its_state_directory_simply_takes_part() {
    let mut world = World::new(0).founded();
    world.kill("beta");
    world.install("beta", 777, 1_000);
    world.start("beta");
    world.pass(Span::from_ms(3_000));
    let state = world.core("beta").state().unwrap().revision;
    assert_eq!(Some(state), world.state().map(|state| state.revision));
    assert!(world.core("alpha").vote_trouble(&name("beta")).is_none());
}

#[test]
fn members_are_refused_with_the_reason() {
    let world = World::new(0).founded();
    let wish = failover_core::voters::VotersWish::Replace(name("beta"));
    assert_eq!(world.core("alpha").check_voters(&wish).unwrap_err().code, "etcd");
    let refused = world.core("alpha").check_recover(&[name("beta")]).unwrap_err();
    assert_eq!(refused.code, "etcd");
}

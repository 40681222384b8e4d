//! P4: clients do not reach the primary. The office goes to a node that sees enough of the same
//! targets, and to no other.

use failover_core::Span;
use failover_core::command::Change;
use failover_core::facts::{Facts, Hindrance};
use failover_core::node::Input;
use failover_core::services::reach::Seen;

use crate::world::{RESOURCE, World, name, replica_of};

fn trouble(code: &str) -> Option<Hindrance> {
    let why = "clients do not reach this node, by reach: no answer".to_string();
    Some(Hindrance { code: code.into(), rule: "reach".into(), why, next: "mend it".into() })
}

fn seen(answer: u16) -> Seen {
    Seen { answer, of: 3, need: 2, has_carrier: true }
}

fn report(world: &mut World, node: &str, trouble: Option<Hindrance>, reach: &[Seen]) {
    let replica = replica_of(&name(node)).0;
    let facts = Facts { replica, trouble, reach: reach.to_vec(), ..Facts::default() };
    world.step(node, Input::ReplicaReported { resource: RESOURCE.into(), facts });
}

/// alpha is primary and sees one of three; beta sees what is given.
fn blind(alpha: Option<Hindrance>, beta: Option<Hindrance>, reach: &[Seen]) -> World {
    let mut world = World::with_primary();
    world.pass(Span::from_ms(2_000));
    report(&mut world, "beta", beta, reach);
    world.pass(Span::from_ms(300));
    report(&mut world, "alpha", alpha, &[seen(1)]);
    world.pass(Span::from_ms(5_000));
    world
}

fn why_it_stays(world: &World) -> String {
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
    let verdict = world.core("alpha").explain(RESOURCE).expect("it says why it stays");
    assert_eq!((verdict.code.as_str(), verdict.rule.as_str()), ("clients_unreachable", "reach"));
    assert!(world.now.since(verdict.since) >= Span::from_ms(4_000), "{verdict:?}");
    verdict.why
}

#[test]
fn it_moves_to_one_that_sees_enough_and_history_has_both_counts() {
    let mut world = blind(trouble("clients_unreachable"), None, &[seen(2)]);
    world.run_until(Span::from_ms(2_000), |world| world.has_lease("beta"));
    let known = &world.core("beta").state().unwrap().cause;
    assert_eq!(known.what, "takeover");
    let told = world.log.iter().any(|line| {
        line.contains("reach: alpha sees 1 of 3 targets (2 must answer), beta sees 2 of 3")
    });
    assert!(told, "{:#?}", world.log);
}

#[test]
fn it_stays_where_the_other_one_sees_more_but_not_enough() {
    let nothing = Seen { has_carrier: false, ..seen(3) };
    for reach in [&[seen(1)][..], &[seen(0)], &[nothing], &[seen(3), seen(1)], &[]] {
        let why = why_it_stays(&blind(trouble("clients_unreachable"), None, reach));
        assert!(why.contains("alpha sees 1 of 3 targets (2 must answer), beta sees"), "{why}");
    }
}

#[test]
fn it_stays_where_the_other_one_failed_a_short_time_ago() {
    let unreached = trouble("clients_unreachable");
    let why = why_it_stays(&blind(unreached.clone(), unreached, &[seen(3)]));
    assert!(why.contains("beta sees 3 of 3 targets (2 must answer) and had the office"), "{why}");
}

#[test]
fn a_paused_automation_is_named_as_what_would_change_it() {
    let mut world = World::with_primary();
    let pause = Input::Ordered { ticket: 7, change: Change::Pause(true), why: "test".into() };
    world.order("beta", pause).unwrap();
    report(&mut world, "beta", None, &[seen(3)]);
    report(&mut world, "alpha", trouble("clients_unreachable"), &[seen(0)]);
    world.pass(Span::from_ms(5_000));
    let verdict = world.core("alpha").explain(RESOURCE).unwrap();
    assert!(verdict.next.contains("replctl resume"), "{verdict:?}");
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

/// What sees enough again is not moved while its trouble is still being told.
#[test]
fn it_stays_when_it_sees_enough_again() {
    let mut world = World::with_primary();
    world.pass(Span::from_ms(2_000));
    report(&mut world, "beta", None, &[seen(3)]);
    report(&mut world, "alpha", trouble("clients_unreachable"), &[seen(2)]);
    world.pass(Span::from_ms(5_000));
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
    assert!(world.core("alpha").explain(RESOURCE).is_none());
}

/// Services that fail for another reason ask nobody what he sees.
#[test]
fn other_trouble_moves_it_as_ever() {
    let mut world = blind(trouble("services_failed"), None, &[seen(0)]);
    world.run_until(Span::from_ms(2_000), |world| world.has_lease("beta"));
}

//! The whole of failover-core without a data plane, in virtual time.

mod members;
mod missed_voters;
mod old_record;
mod reached;
mod refused_wish;
mod sole;
mod world;

use failover_core::cluster::{Epoch, Force};
use failover_core::command::Change;
use failover_core::facts::Hindrance;
use failover_core::message::{Envelope, Heartbeat, Message};
use failover_core::node::Input;
use failover_core::{Span, Time};

use world::{RESOURCE, World, name, replica_of};

/// The proof that these stories can fail.
#[cfg(feature = "defects")]
#[test]
fn every_defect_is_found() {
    let program = std::env::current_exe().expect("this program has a path");
    for defect in failover_core::defect::DEFECTS_OF_STORIES {
        let run = std::process::Command::new(&program)
            .args(["--skip", "every_defect_is_found", "old_record", "longest_lease"])
            .env("REPLICATOR_DEFECT", format!("{defect:?}"))
            .output()
            .expect("this program starts");
        assert!(!run.status.success(), "the defect {defect:?} is not found");
    }
}

#[test]
fn a_dead_primary_is_replaced_when_its_lease_is_over() {
    let mut world = World::with_primary();
    world.kill("alpha");
    let took = world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(1_350), "{} ms: {:#?}", took.as_ms(), world.log);
}

/// A takeover was begun when the primary was not heard; it is heard again, and the third voter is
/// gone: neither promises nor refusals make a majority (sim --cluster 1796025513957).
#[test]
fn a_takeover_without_prospect_does_not_hold_up_what_an_operator_orders() {
    let mut world = World::with_primary();
    world.pass(Span::from_ms(500));
    world.cut.extend(["beta", "gamma"].map(|other| (name("alpha"), name(other))));
    let promotes = |world: &World| world.log.iter().any(|line| line.contains("beta promotes"));
    world.run_until(Span::from_ms(3_000), promotes);
    world.kill("gamma");
    world.cut.clear();
    let pause = Input::Ordered { ticket: 1, change: Change::Pause(true), why: "test".into() };
    world.pass(Span::from_ms(500));
    world.answer = None;
    world.step("beta", pause);
    world.run_until(Span::from_ms(15_000), |world| world.answer.is_some());
    assert_eq!(world.answer, Some(Ok(())), "{:#?}", world.log);
}

/// Only its own acceptor took the takeover in, and the primary, whose lease the others go on
/// granting, has moved the register past it since (sim --cluster 1796026870551).
#[test]
fn a_takeover_that_another_change_overtook_does_not_hold_up_what_an_operator_orders() {
    let pause = |is_on| {
        let change = Change::Pause(is_on);
        Input::Ordered { ticket: 1, change, why: "test".into() }
    };
    let mut world = World::with_primary();
    world.isolate("alpha");
    world.run_until(Span::from_ms(3_000), |world| world.asks_to_accept("beta", "gamma"));
    world.lose_messages_of("beta");
    world.cut.clear();
    world.isolate("beta");
    world.order("alpha", pause(true)).unwrap();
    world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
    world.cut.clear();
    world.pass(Span::from_ms(1_000));
    world.answer = None;
    world.step("beta", pause(false));
    world.run_until(Span::from_ms(2_000), |world| world.answer.is_some());
    assert_eq!(world.answer, Some(Ok(())), "{:#?}", world.log);
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

/// The other node's acceptor has taken its takeover in, the witness is dead, and the primary's own
/// acceptor, without which there is no majority, granted it a lease that nobody else does (sim
/// --cluster 1796039675790).
#[test]
fn a_primary_without_a_majority_does_not_stop_the_takeover_that_it_has_to_settle() {
    let mut world = World::with_primary();
    world.isolate("alpha");
    world.run_until(Span::from_ms(3_000), |world| world.asks_to_accept("beta", "gamma"));
    world.kill("gamma");
    world.pass(Span::from_ms(100));
    world.cut.clear();
    world.run_until(Span::from_ms(5_000), |world| {
        ["alpha", "beta"].iter().any(|node| world.has_lease(node))
    });
}

/// Two propose, and a round takes longer than the pause after one that was lost: they get out of
/// each other's way all the same (sim --cluster 1796037927747).
#[test]
fn two_that_propose_at_a_time_part_also_where_stores_are_slow() {
    for (delay_ms, fsync_ms) in [(1, 2), (20, 60), (50, 100), (50, 300)] {
        let mut world = World::with_primary();
        world.kill("alpha");
        world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
        world.start("alpha");
        world.pass(Span::from_ms(3_000));
        (world.delay, world.fsync) = (Span::from_ms(delay_ms), Span::from_ms(fsync_ms));
        for (number, is_standby) in [true, false, true, false].into_iter().enumerate() {
            let pause = Change::Pause(is_standby);
            let standby = Change::Standby { node: name("gamma"), is_standby };
            for (node, change) in [("alpha", pause), ("beta", standby)] {
                let (ticket, why) = (number as u64, "test".into());
                world.step(node, Input::Ordered { ticket, change, why });
            }
            let wanted = 2 * (number + 1);
            let is_done = |world: &World| {
                world.log.iter().filter(|line| line.starts_with("answer")).count() == wanted
            };
            let took = world.run_until(Span::from_ms(60_000), is_done);
            let limit = Span::from_ms(50 * (fsync_ms + 2 * delay_ms));
            assert!(took <= limit, "{delay_ms}, {fsync_ms}: {} ms", took.as_ms());
        }
    }
}

#[test]
fn every_node_knows_since_when_the_lease_of_a_dead_primary_is_over() {
    let mut world = World::with_primary();
    let pause = Input::Ordered { ticket: 1, change: Change::Pause(true), why: "test".into() };
    world.order("beta", pause).unwrap();
    for node in ["alpha", "beta", "gamma"] {
        assert_eq!(world.core(node).lapsed_since(RESOURCE), None, "{node}");
    }
    world.kill("alpha");
    let killed = world.now;
    world.pass(Span::from_ms(5_000));
    for node in ["beta", "gamma"] {
        let since = world.core(node).lapsed_since(RESOURCE).unwrap().since(killed);
        assert!(since >= Span::from_ms(800) && since <= Span::from_ms(1_200), "{node}: {since:?}");
    }
    world.start("alpha");
    world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
    world.pass(Span::from_ms(300));
    assert_eq!(world.core("beta").lapsed_since(RESOURCE), None);
}

#[test]
fn a_lease_that_others_granted_is_not_over() {
    let mut world = World::with_primary();
    world.cut = vec![(name("alpha"), name("beta")), (name("beta"), name("alpha"))];
    world.pass(Span::from_ms(5_000));
    assert_eq!(world.core("beta").lapsed_since(RESOURCE), None);
    assert!(world.core("beta").lease_seen(RESOURCE).unwrap() > world.now);
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
fn of_two_candidates_the_second_takes_over_only_when_the_first_does_nothing() {
    let three = || {
        let mut world = World::of(&[("alpha", false), ("beta", false), ("gamma", false)]);
        world.members.push(name("gamma"));
        let mut world = world.founded();
        world.pass(Span::from_ms(5_000));
        world.kill("alpha");
        world
    };
    let is_tried = |world: &World, node: &str| {
        world.log.iter().any(|line| line.contains(&format!("{node} promotes: alpha is lost")))
    };
    let mut world = three();
    let took = world.run_until(Span::from_ms(1_500), |world| world.has_lease("beta"));
    assert!(!is_tried(&world, "gamma"), "after {} ms: {:#?}", took.as_ms(), world.log);

    let mut world = three();
    let (code, why) = ("drain".into(), "its disk hangs".into());
    let hangs = Hindrance { code, rule: "R2c".into(), why, next: "wait".into() };
    world.refusing = Some((name("beta"), hangs));
    let took = world.run_until(Span::from_ms(5_000), |world| world.has_lease("gamma"));
    assert!(is_tried(&world, "beta") && took >= Span::from_ms(2_500), "{:#?}", world.log);
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
    // The old one does not take the new one for lost before it has heard of its lease.
    world.pass(Span::from_ms(2_000));
    assert!(
        !world.log.iter().any(|line| line.contains("alpha promotes: beta")),
        "{:#?}",
        world.log
    );
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

#[test]
fn a_late_message_of_an_earlier_process_makes_nobody_deaf() {
    let mut world = World::with_primary();
    let heartbeat = Heartbeat { number: 1_000, is_blank: false, ..Heartbeat::default() };
    let late = Envelope {
        process: world.machines[&name("alpha")].process,
        acceptor: world.machines[&name("alpha")].disk.id,
        epoch: Epoch::default(),
        sequence: world.machines[&name("alpha")].disk.sequence,
        began: 0,
        yours: None,
        message: Message::Heartbeat(heartbeat),
    };
    world.kill("alpha");
    world.start("alpha");
    // The witness starts too: it knows no process of alpha, hears the new one, then the late word.
    world.kill("gamma");
    world.start("gamma");
    let hears = |world: &World| {
        let gamma = world.machines[&name("gamma")].node.as_ref().unwrap();
        let now = world.now;
        let alpha = gamma.detector().node(&name("alpha"))?;
        Some((alpha.process, gamma.detector().hears_now(now, &name("alpha"))))
    };
    world.run_until(Span::from_ms(1_000), |world| hears(world).is_some());
    world.step("gamma", Input::Received { from: name("alpha"), envelope: Box::new(late) });
    let present = world.machines[&name("alpha")].process;
    world.run_until(Span::from_ms(3_000), |world| hears(world) == Some((present, true)));
}

#[test]
fn a_takeover_that_the_register_moved_past_is_settled_while_the_other_has_the_lease() {
    let mut world = World::with_primary();
    world.isolate("alpha");
    world.run_until(Span::from_ms(3_000), |world| {
        let beta = world.machines[&name("beta")].node.as_ref().unwrap();
        beta.acceptor().accepted().is_some_and(|state| state.by == name("beta"))
    });
    // Its accept reached nobody else, and the old primary is back and changes its set.
    world.cut = vec![
        (name("beta"), name("alpha")),
        (name("beta"), name("gamma")),
        (name("gamma"), name("beta")),
        (name("alpha"), name("beta")),
    ];
    world.lose_messages_of("beta");
    world.run_until(Span::from_ms(3_000), |world| world.has_lease("alpha"));
    let mut next = world.machines[&name("alpha")].state.clone().unwrap();
    let expected = next.generation;
    next.generation += 1;
    next.set.retain(|member| member.replica == replica_of(&name("alpha")));
    let resource = RESOURCE.to_string();
    let shrink = Input::ReplicaProposed { resource, number: 9, expected, next, forced: false };
    world.step("alpha", shrink);
    let is_decided = |world: &World, what: &str| world.log.iter().any(|line| line.contains(what));
    // Gamma has promised more to beta, which is silent: alpha outbids it.
    world.run_until(Span::from_ms(1_000), |world| is_decided(world, "alpha decided 9: generation"));
    world.cut.clear();
    world.run_until(Span::from_ms(3_000), |world| is_decided(world, "beta decided 1: newer"));
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

#[test]
fn a_primary_that_is_heard_but_hears_nobody_is_replaced() {
    let mut world = World::with_primary();
    world.cut = vec![(name("beta"), name("alpha")), (name("gamma"), name("alpha"))];
    let took = world.run_until(Span::from_ms(5_000), |world| world.has_lease("beta"));
    assert!(took <= Span::from_ms(2_500), "{} ms: {:#?}", took.as_ms(), world.log);
}

/// The last member comes back with the witness, after a stale replica was there alone: it must
/// serve (D12), though the third acceptor never answers.
#[test]
fn the_last_member_and_the_witness_are_enough_after_others_have_proposed() {
    let mut world = World::with_primary();
    world.kill("beta");
    let mut next = world.machines[&name("alpha")].state.clone().unwrap();
    let expected = next.generation;
    next.generation += 1;
    next.sole = true;
    next.set.retain(|member| member.replica == replica_of(&name("alpha")));
    let shrink = Input::ReplicaProposed {
        resource: RESOURCE.into(),
        number: 4,
        expected,
        next,
        forced: false,
    };
    world.step("alpha", shrink);
    world.run_until(Span::from_ms(3_000), |world| {
        world.machines[&name("alpha")].lease == Some(Time(u64::MAX))
    });
    world.pass(Span::from_ms(4_000));
    assert_eq!(world.core("gamma").lapsed_since(RESOURCE), None, "it goes on renewing");
    world.kill("alpha");
    world.start("beta");
    let end = world.now + Span::from_ms(4_000);
    world.run_until(Span::from_ms(5_000), |world| world.now >= end);
    assert!(!world.has_lease("beta"));
    for node in ["beta", "gamma"] {
        assert!(world.core(node).lapsed_since(RESOURCE).is_some(), "{node} takes it for alive");
    }
    world.kill("beta");
    world.start("alpha");
    world.run_until(Span::from_ms(5_000), |world| world.has_lease("alpha"));
}

/// A hand-over is in the acceptors a moment before everybody knows of it: nobody takes that for a
/// lost primary.
#[test]
fn a_switchover_is_never_taken_for_a_failure() {
    let mut world = World::with_primary();
    for round in 0..60 {
        let target = if round % 2 == 0 { "beta" } else { "alpha" };
        let change = Change::Want {
            resource: RESOURCE.into(),
            node: Some(name(target)),
            force: Force::default(),
        };
        world.step("alpha", Input::Ordered { ticket: round, change, why: "an operator".into() });
        world.run_until(Span::from_ms(3_000), |world| world.has_lease(target));
        let end = world.now + Span::from_ms(200 + round * 7);
        world.run_until(Span::from_ms(3_000), |world| world.now >= end);
    }
    let lost: Vec<&String> = world.log.iter().filter(|line| line.contains("is lost")).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

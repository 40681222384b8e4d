//! Who votes: nodes replaced, added, removed, wiped and left out.

use failover_core::Span;
use failover_core::command::Change;
use failover_core::facts::Hindrance;
use failover_core::node::Input;
use failover_core::request::{Difference, Request, differences};
use failover_core::verdict::Verdict;
use failover_core::voters::VotersWish;

use crate::world::{RESOURCE, World, name};

const LONG: Span = Span::from_ms(10_000);

impl World {
    fn wipe(&mut self, node: &str, id: u128) {
        self.kill(node);
        self.install(node, id);
    }

    fn wish(&mut self, by: &str, wish: &VotersWish) -> Result<(), Verdict> {
        let change = self.core(by).check_voters(wish)?;
        self.order(by, Input::Ordered { ticket: 1, change, why: "an operator".into() })?;
        self.run_until(LONG, |world| {
            world.core(by).state().is_some_and(|state| state.next_voters.is_none())
        });
        Ok(())
    }

    fn recover(&mut self, by: &str, without: &[&str]) -> Result<(), Verdict> {
        let without = without.iter().map(|node| name(node)).collect();
        let why = "an operator".into();
        self.order(by, Input::RecoverOrdered { ticket: 2, without, why })
    }

    fn voters(&self, by: &str) -> Vec<u128> {
        let state = self.core(by).state().expect("it knows the register");
        state.voters.iter().map(|voter| voter.acceptor).collect()
    }

    /// Runs on and fails if the node loses its lease for a moment.
    fn pass_with_lease(&mut self, node: &str, span: Span) {
        let end = self.now + span;
        self.run_until(Span(2 * span.0), |world| {
            assert!(world.has_lease(node), "{node} lost its lease: {:#?}", world.log);
            world.now >= end
        });
    }
}

fn replace(node: &str) -> VotersWish {
    VotersWish::Replace(name(node))
}

fn code(result: Result<(), Verdict>) -> String {
    result.expect_err("it must be refused").code
}

#[test]
fn a_wiped_witness_has_no_vote() {
    let mut world = World::with_primary();
    world.wipe("gamma", 200);
    world.start("gamma");
    world.pass_with_lease("alpha", Span::from_ms(3_000));
    assert!(!world.core("alpha").has_vote(&name("gamma")));
    let trouble = world.core("alpha").vote_trouble(&name("gamma")).expect("it says so");
    assert_eq!(trouble.next, "on a member: replctl node replace gamma");
    // Beta and it are no majority.
    world.kill("alpha");
    world.pass(LONG);
    assert!(!world.has_lease("beta"), "{:#?}", world.log);
}

#[test]
fn a_wiped_witness_is_replaced_under_a_running_lease_and_then_votes() {
    let mut world = World::with_primary();
    world.wipe("gamma", 200);
    world.start("gamma");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    world.wish("alpha", &replace("gamma")).unwrap();
    assert_eq!(world.voters("alpha"), [100, 101, 200]);
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    assert!(world.core("alpha").has_vote(&name("gamma")));
    assert_eq!(world.core("alpha").vote_trouble(&name("gamma")), None);
    world.kill("alpha");
    world.run_until(Span::from_ms(3_000), |world| world.has_lease("beta"));
}

#[test]
fn a_takeover_right_after_a_replacement_waits_for_the_lease_that_the_new_acceptor_never_saw() {
    let mut world = World::with_primary();
    world.wipe("gamma", 200);
    world.start("gamma");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    world.wish("alpha", &replace("gamma")).unwrap();
    // The world's own check at every step: never two leases.
    world.isolate("alpha");
    let took = world.run_until(LONG, |world| world.has_lease("beta"));
    assert!(took >= Span::from_ms(800), "{} ms: {:#?}", took.as_ms(), world.log);
}

/// What is ordered of a node that knows no voters came to nothing and nothing came after it, for
/// as long as its process lived (sim --cluster 130).
#[test]
fn an_order_to_a_node_without_a_register_is_refused_and_holds_nothing_up() {
    let mut world = World::with_primary();
    world.wipe("beta", 201);
    world.start("beta");
    let order = || Input::Ordered { ticket: 3, change: Change::Pause(true), why: "a test".into() };
    assert_eq!(code(world.order("beta", order())), "no_register");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    world.wish("alpha", &replace("beta")).unwrap();
    world.pass(Span::from_ms(1_000));
    world.order("beta", order()).unwrap();
}

#[test]
fn a_wiped_data_node_is_replaced_by_the_survivors() {
    let mut world = World::with_primary();
    world.wipe("beta", 201);
    world.start("beta");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    world.wish("alpha", &replace("beta")).unwrap();
    assert_eq!(world.voters("alpha"), [100, 201, 102]);
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    // The new beta's vote counts: the witness may go.
    world.kill("gamma");
    world.pass_with_lease("alpha", Span::from_ms(3_000));
}

#[test]
fn a_replacement_is_refused_with_the_reason() {
    let mut world = World::with_primary();
    assert_eq!(code(world.wish("alpha", &replace("gamma"))), "is_recorded");
    assert_eq!(code(world.wish("alpha", &replace("delta"))), "unknown_node");
    world.kill("gamma");
    world.pass(Span::from_ms(2_000));
    assert_eq!(code(world.wish("alpha", &replace("gamma"))), "not_heard");
    world.wipe("gamma", 200);
    world.start("gamma");
    world.pass(Span::from_ms(2_000));
    world.kill("beta");
    world.pass(Span::from_ms(2_000));
    assert_eq!(code(world.wish("alpha", &replace("gamma"))), "no_majority");
}

#[test]
fn an_acceptor_of_another_cluster_is_not_admitted() {
    let mut other = World::with_primary();
    other.kill("gamma");
    let foreign = other.machines[&name("gamma")].disk.clone();
    let mut world = World::with_primary();
    world.wipe("gamma", 200);
    let machine = world.machines.get_mut(&name("gamma")).unwrap();
    machine.disk = foreign;
    machine.disk.id = 300;
    let (_, state) = machine.disk.accepted.as_mut().expect("it was founded");
    state.epoch.founder = 77;
    world.start("gamma");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    let refused = world.wish("alpha", &replace("gamma")).unwrap_err();
    assert_eq!(refused.code, "foreign");
    assert!(refused.next.contains("register.*"), "{}", refused.next);
    let trouble = world.core("alpha").vote_trouble(&name("gamma")).expect("it says so");
    assert!(trouble.why.contains("another register"), "{}", trouble.why);
}

#[test]
fn an_old_machine_that_comes_back_beside_its_replacement_is_refused() {
    let mut world = World::with_primary();
    world.kill("gamma");
    let old = world.machines.remove(&name("gamma")).unwrap();
    world.install("gamma", 200);
    world.start("gamma");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    world.wish("alpha", &replace("gamma")).unwrap();
    world.pass(Span::from_ms(1_000));
    let envelope = failover_core::message::Envelope {
        process: 999,
        acceptor: old.disk.id,
        sequence: old.disk.sequence,
        began: old.disk.sequence,
        epoch: old.disk.epoch(),
        yours: None,
        message: failover_core::message::Message::Heartbeat(Default::default()),
    };
    let from = name("gamma");
    world.step("alpha", Input::Received { from, envelope: Box::new(envelope) });
    let trouble = world.core("alpha").vote_trouble(&name("gamma")).expect("it says so");
    assert!(trouble.why.contains("a second machine"), "{}", trouble.why);
    assert!(world.core("alpha").has_vote(&name("gamma")));
    world.kill("beta");
    world.pass_with_lease("alpha", Span::from_ms(3_000));
}

#[test]
fn witnesses_come_and_go() {
    let mut world = World::with_primary();
    let remove = VotersWish::Remove(name("gamma"));
    assert_eq!(code(world.wish("alpha", &remove)), "only_witness");
    let remove_data = VotersWish::Remove(name("beta"));
    assert_eq!(code(world.wish("alpha", &remove_data)), "too_few");
    let add = VotersWish::Add(name("delta"));
    assert_eq!(code(world.wish("alpha", &add)), "unknown_node");
    // The new file reaches one node after the other.
    world.nodes.push((name("delta"), true));
    world.install("delta", 103);
    world.start("delta");
    for node in ["gamma", "alpha"] {
        world.kill(node);
        world.start(node);
        world.pass(Span::from_ms(3_000));
    }
    assert_eq!(code(world.wish("alpha", &add)), "not_known");
    world.kill("beta");
    world.start("beta");
    world.pass(Span::from_ms(3_000));
    world.wish("alpha", &add).unwrap();
    assert_eq!(world.voters("alpha"), [100, 101, 103, 102]);
    assert_eq!(code(world.wish("alpha", &add)), "already");
    world.wish("beta", &remove).unwrap();
    world.kill("gamma");
    world.kill("beta");
    world.pass(Span::from_ms(3_000));
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

#[test]
fn a_data_node_goes_when_it_serves_nothing_no_set_counts_on_it_and_it_is_stopped() {
    let nodes = [("alpha", false), ("beta", false), ("delta", true), ("gamma", false)];
    let mut world = World::of(&nodes);
    let (code_of, why) = ("stale".into(), "it lacks something".into());
    let stale = Hindrance { code: code_of, rule: "R11a".into(), why, next: "wait".into() };
    world.refusing = Some((name("gamma"), stale));
    let mut world = world.founded();
    world.pass(Span::from_ms(1_000));
    let remove = |node| VotersWish::Remove(name(node));
    assert_eq!(code(world.wish("beta", &remove("alpha"))), "is_primary");
    assert_eq!(code(world.wish("alpha", &remove("gamma"))), "is_running");
    assert_eq!(code(world.wish("gamma", &remove("gamma"))), "is_running");
    // The scripted primary never takes a member out.
    world.kill("beta");
    world.pass(Span::from_ms(3_000));
    assert_eq!(code(world.wish("alpha", &remove("beta"))), "is_member");
    world.start("beta");
    world.pass(Span::from_ms(3_000));
    world.kill("gamma");
    world.pass(Span::from_ms(3_000));
    let homes = |world: &World| {
        let state = world.core("alpha").state().expect("it knows the register");
        let homes = &state.resource(RESOURCE).expect("it is there").homes;
        homes.iter().map(|home| home.node.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(homes(&world), ["alpha", "beta", "gamma"]);
    world.wish("alpha", &remove("gamma")).unwrap();
    assert_eq!(world.voters("alpha"), [100, 101, 102]);
    assert_eq!(homes(&world), ["alpha", "beta"]);
    assert_eq!(code(world.wish("alpha", &remove("beta"))), "too_few");
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    // Three voters outlive one.
    world.kill("alpha");
    world.run_until(LONG, |world| world.has_lease("beta"));
}

#[test]
fn one_survivor_goes_on_in_a_new_epoch_and_the_old_members_stay_out() {
    let mut world = World::with_primary();
    world.kill("alpha");
    world.run_until(LONG, |world| world.has_lease("beta"));
    world.start("alpha");
    world.pass(Span::from_ms(3_000));
    assert_eq!(code(world.recover("alpha", &["beta", "gamma"])), "has_majority");
    world.kill("beta");
    world.kill("gamma");
    world.pass(Span::from_ms(3_000));
    assert_eq!(code(world.recover("alpha", &["beta", "gamma"])), "not_gone");
    world.pass(LONG);
    assert_eq!(code(world.recover("alpha", &["beta"])), "not_heard");
    assert_eq!(code(world.recover("alpha", &["alpha", "beta"])), "wrong_nodes");
    assert_eq!(code(world.recover("alpha", &["beta", "delta"])), "unknown_node");
    world.recover("alpha", &["beta", "gamma"]).unwrap();
    // It is in no set of the scripted replicas' making, but the lease of beta is over.
    world.run_until(LONG, |world| world.has_lease("alpha"));
    assert_eq!(world.core("alpha").epoch().number, 2);
    assert_eq!(world.voters("alpha"), [100]);

    // The two old members together are a majority of the old epoch.
    world.start("gamma");
    world.start("beta");
    world.pass_with_lease("alpha", LONG);
    for node in ["beta", "gamma"] {
        let trouble = world.core("alpha").vote_trouble(&name(node)).expect("it says so");
        assert!(trouble.why.contains("earlier epoch (1)"), "{}", trouble.why);
        assert!(world.core(node).left_out_of().is_some(), "{node} does not know");
        let own = world.core(node).vote_trouble(&name(node)).expect("it says so");
        assert_eq!(own.code, "earlier_epoch");
    }
    let verdict = world.core("beta").judge(RESOURCE).expect_err("it has no part");
    assert_eq!(verdict.code, "earlier_epoch");
    // Also when they never hear of the new epoch again.
    world.isolate("alpha");
    for node in ["beta", "gamma"] {
        world.kill(node);
        world.start(node);
    }
    world.pass(LONG);
    assert!(world.has_lease("alpha") && !world.has_lease("beta"), "{:#?}", world.log);
    world.cut.clear();
    world.pass(Span::from_ms(1_000));

    // Wiped, they are admitted one after the other.
    assert_eq!(code(world.wish("alpha", &replace("beta"))), "foreign");
    for (node, id) in [("gamma", 200), ("beta", 201)] {
        world.wipe(node, id);
        world.start(node);
        world.pass_with_lease("alpha", LONG);
        world.wish("alpha", &replace(node)).unwrap();
    }
    world.pass_with_lease("alpha", Span::from_ms(2_000));
    assert_eq!(world.voters("alpha"), [100, 201, 200]);
    world.kill("gamma");
    world.pass_with_lease("alpha", Span::from_ms(3_000));
}

#[test]
fn a_crash_in_the_middle_of_a_recovery_leaves_one_epoch_or_the_other() {
    for crash_after_us in [0, 1_000, 1_900, 2_100, 3_000, 5_000] {
        let mut world = World::with_primary();
        world.kill("beta");
        world.kill("gamma");
        world.pass(LONG);
        let without = vec![name("beta"), name("gamma")];
        let why = "an operator".into();
        world.answer = None;
        world.step("alpha", Input::RecoverOrdered { ticket: 1, without, why });
        let end = world.now + Span(crash_after_us * 1_000);
        world.run_until(LONG, |world| world.now >= end);
        let was_told = world.answer.clone();
        world.kill("alpha");
        world.start("alpha");
        world.pass(LONG);
        let epoch = world.core("alpha").epoch().number;
        assert_eq!(was_told.is_some(), world.has_lease("alpha"), "{crash_after_us} us");
        assert_eq!(was_told.is_some(), epoch == 2, "{crash_after_us} us: epoch {epoch}");
    }
}

#[test]
fn of_five_voters_two_go_on_together() {
    let nodes =
        [("alpha", false), ("beta", false), ("gamma", true), ("delta", true), ("omega", true)];
    let mut world = World::of(&nodes).founded();
    for node in ["beta", "gamma", "delta"] {
        world.kill(node);
    }
    world.pass(LONG);
    assert!(!world.has_lease("alpha"));
    world.recover("alpha", &["beta", "gamma", "delta"]).unwrap();
    world.run_until(LONG, |world| world.core("omega").epoch().number == 2);
    world.pass(Span::from_ms(2_000));
    world.pass_with_lease("alpha", LONG);
    assert_eq!(world.voters("alpha"), [100, 104]);
}

#[test]
fn a_file_that_differs_is_shown_and_applied() {
    let mut world = World::with_primary();
    let nodes = world.nodes.clone();
    let lease = Span::from_ms(3_000);
    let request = Request { lease, nodes, resources: Vec::new() };
    let state = world.core("alpha").state().expect("it is founded").clone();
    let found = differences(&state, &request);
    let now = state.lease;
    let wanted =
        [Difference::Lease { now, wanted: lease }, Difference::OldResource(RESOURCE.into())];
    assert_eq!(found, wanted);
    let refused = world.core("alpha").check_difference(&found[1]).unwrap_err();
    assert_eq!(refused.code, "still_there");
    let change = world.core("alpha").check_difference(&found[0]).unwrap();
    assert_eq!(change, Change::Lease(lease));
    world.order("alpha", Input::Ordered { ticket: 1, change, why: "an operator".into() }).unwrap();
    world.pass_with_lease("alpha", Span::from_ms(4_000));
    world.isolate("alpha");
    let took = world.run_until(LONG, |world| world.has_lease("beta"));
    assert!(took >= Span::from_ms(2_400), "{} ms", took.as_ms());
}

/// L5: what a restarted acceptor had granted may have been of a longer lease than the present one:
/// the record of alpha says what the register's history had.
#[test]
fn a_restarted_acceptor_waits_for_the_longest_lease_there_ever_was() {
    let mut world = World::with_primary();
    for (ticket, lease) in [LONG, Span::from_ms(1_000)].into_iter().enumerate() {
        let (ticket, why) = (ticket as u64, "an operator".into());
        let change = Change::Lease(lease);
        world.order("beta", Input::Ordered { ticket, change, why }).unwrap();
    }
    world.kill("alpha");
    world.kill("gamma");
    world.start("gamma");
    let took = world.run_until(Span(2 * LONG.0), |world| world.has_lease("beta"));
    assert!(took >= LONG, "{} ms", took.as_ms());
}

#[test]
fn a_grant_of_the_short_lease_never_counts_as_a_long_one() {
    for isolated_after_ms in [0, 3, 6, 50, 150, 250] {
        let mut world = World::with_primary();
        let change = Change::Lease(LONG);
        let why = "an operator".into();
        world.order("beta", Input::Ordered { ticket: 1, change, why }).unwrap();
        world.pass(Span::from_ms(isolated_after_ms));
        world.isolate("alpha");
        // At every step the world looks that there are never two leases.
        world.run_until(Span::from_ms(20_000), |world| world.has_lease("beta"));
    }
}

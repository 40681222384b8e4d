//! L7: a node that was away while the voters changed finds out who votes now, also when those who
//! voted when it left are no majority any more (sim --cluster 1795998422795).

use failover_core::Span;
use failover_core::node::Input;
use failover_core::voters::VotersWish;

use crate::world::{World, name};

const LONG: Span = Span::from_ms(10_000);

impl World {
    /// By order of an operator, while the named nodes are away.
    fn vote_without(&mut self, away: &[&str], wish: &VotersWish) {
        let change = self.core("alpha").check_voters(wish).unwrap();
        away.iter().for_each(|node| self.kill(node));
        let why = "an operator".into();
        self.order("alpha", Input::Ordered { ticket: 1, change, why }).unwrap();
        self.run_until(LONG, |world| {
            world.core("alpha").state().is_some_and(|state| state.next_voters.is_none())
        });
        self.pass(Span::from_ms(500));
    }

    fn restart(&mut self, node: &str) {
        self.kill(node);
        self.start(node);
    }

    /// The lost record of beta was replaced by a new acceptor, which never heard that it votes.
    fn with_beta_admitted_unheard() -> Self {
        let mut world = Self::with_primary();
        world.kill("beta");
        world.install("beta", 201);
        world.start("beta");
        world.pass(Span::from_ms(2_000));
        world.vote_without(&["beta"], &VotersWish::Replace(name("beta")));
        world
    }
}

#[test]
fn a_new_acceptor_that_missed_its_admission_votes_when_who_admitted_it_has_lost_his_record() {
    let mut world = World::with_beta_admitted_unheard();
    // What is committed is known to nobody: gamma has it accepted, and never proposes.
    world.kill("alpha");
    world.install("alpha", 200);
    for node in ["alpha", "gamma", "beta"] {
        world.restart(node);
    }
    // Alpha has no vote; its replica was primary.
    world.run_until(LONG, |world| world.has_lease("alpha"));
    let state = world.core("beta").state().unwrap();
    let voters: Vec<u128> = state.voters.iter().map(|voter| voter.acceptor).collect();
    assert_eq!(voters, [100, 201, 102]);
    // And the operator's next order is done.
    let change = world.core("beta").check_voters(&VotersWish::Replace(name("alpha"))).unwrap();
    world.order("beta", Input::Ordered { ticket: 1, change, why: "a test".into() }).unwrap();
}

/// The same, and it never heard of the cluster: only the witness has a record, and never proposes
/// (sim --cluster 1796032760792).
#[test]
fn a_blank_acceptor_that_missed_its_admission_asks_who_has_a_record() {
    let mut world = World::with_primary();
    world.kill("beta");
    world.install("beta", 201);
    world.isolate("beta");
    world.start("beta");
    let hears_beta = |world: &World| {
        let beta = world.core("alpha").detector().node(&name("beta"));
        beta.is_some_and(|beta| beta.acceptor() == 201)
    };
    // Alpha hears the new acceptor, which hears nobody.
    world.cut.retain(|(from, _)| *from != name("beta"));
    world.run_until(LONG, hears_beta);
    world.pass(Span::from_ms(2_000));
    world.vote_without(&["beta"], &VotersWish::Replace(name("beta")));
    world.kill("alpha");
    world.install("alpha", 200);
    world.cut.clear();
    for node in ["alpha", "gamma", "beta"] {
        world.restart(node);
    }
    world.run_until(LONG, |world| world.has_lease("alpha"));
    let change = world.core("beta").check_voters(&VotersWish::Replace(name("alpha"))).unwrap();
    world.order("beta", Input::Ordered { ticket: 1, change, why: "a test".into() }).unwrap();
}

#[test]
fn a_new_acceptor_that_missed_its_admission_votes_when_who_admitted_it_is_dead() {
    let mut world = World::with_beta_admitted_unheard();
    world.kill("alpha");
    world.restart("gamma");
    world.start("beta");
    world.run_until(LONG, |world| world.has_lease("beta"));
}

#[test]
fn a_witness_that_came_while_a_node_was_away_tells_it_who_votes() {
    let mut world = World::with_primary();
    world.nodes.push((name("delta"), true));
    world.install("delta", 103);
    for node in ["delta", "gamma", "beta", "alpha"] {
        world.restart(node);
        world.pass(Span::from_ms(2_000));
    }
    world.run_until(LONG, |world| world.has_lease("alpha"));
    world.vote_without(&["beta"], &VotersWish::Add(name("delta")));
    world.vote_without(&[], &VotersWish::Remove(name("gamma")));
    world.kill("alpha");
    world.kill("gamma");
    world.restart("delta");
    world.start("beta");
    world.run_until(LONG, |world| world.has_lease("beta"));
}

/// L5: what others have accepted makes no majority. An old copy that went on from it would soon be
/// as new as the record that is lost.
#[test]
fn an_old_copy_follows_nobody_because_somebody_has_something_newer() {
    let nodes =
        [("alpha", false), ("beta", false), ("gamma", true), ("delta", true), ("omega", true)];
    let mut world = World::of(&nodes).founded();
    let old = world.machines[&name("beta")].disk.clone();
    for paused in [true, false] {
        let change = failover_core::command::Change::Pause(paused);
        let order = Input::Ordered { ticket: 5, change, why: "a test".into() };
        world.order("alpha", order).unwrap();
        world.pass(Span::from_ms(500));
    }
    // Omega has forgotten what it heard of beta's record, and hears nobody else.
    world.isolate("omega");
    world.isolate("beta");
    let both = ["beta", "omega"].map(name);
    world.cut.retain(|(from, to)| !(both.contains(from) && both.contains(to)));
    world.restart("omega");
    world.kill("beta");
    world.machines.get_mut(&name("beta")).unwrap().disk = old.clone();
    world.start("beta");
    world.pass(LONG);
    let detector = world.core("beta").detector();
    assert!(detector.has_answered(&name("omega")), "they hear each other");
    let newest = detector.node(&name("omega")).unwrap().heartbeat.accepted;
    assert!(newest > old.accepted.as_ref().unwrap().1.revision, "it has something newer");
    assert_eq!(world.machines[&name("beta")].disk, old);
    world.cut.clear();
    world.pass(Span::from_ms(2_000));
    let trouble = world.core("beta").vote_trouble(&name("beta")).expect("it was told");
    assert_eq!(trouble.code, "went_back");
}

//! R5d: an acceptor that missed how an office without end ended votes for what came after it.

use failover_core::cluster::Force;
use failover_core::command::Change;
use failover_core::facts::Hindrance;
use failover_core::node::Input;
use failover_core::{Span, Time};
use replicator_core::block::Incarnation;
use replicator_core::register::{Member, RegisterState};

use crate::world::{RESOURCE, World, name, replica_of};

const LONG: Span = Span::from_ms(10_000);

impl World {
    /// The primary proposes another set.
    fn propose_set(&mut self, primary: &str, members: &[&str]) {
        let state = self.machines[&name(primary)].state.clone().unwrap();
        let member =
            |node: &&str| Member { replica: replica_of(&name(node)), incarnation: Incarnation(1) };
        let next = RegisterState {
            generation: state.generation + 1,
            set: members.iter().map(member).collect(),
            sole: members.len() == 1,
            ..state.clone()
        };
        let (resource, expected) = (RESOURCE.to_string(), state.generation);
        let input = Input::ReplicaProposed { resource, number: 9, expected, next, forced: false };
        self.step(primary, input);
    }

    fn is_sole(&self, node: &str) -> bool {
        self.machines[&name(node)].lease == Some(Time(u64::MAX))
    }

    /// Alpha is alone with the office, as the acceptor of gamma knows too, which then is away.
    /// Alpha and beta end that without it, and beta takes the office.
    fn with_an_end_that_gamma_missed() -> Self {
        let mut world = Self::with_primary();
        world.kill("beta");
        world.propose_set("alpha", &["alpha"]);
        world.run_until(LONG, |world| world.is_sole("alpha"));
        world.pass(Span::from_ms(500));
        world.kill("gamma");
        world.start("beta");
        world.pass(Span::from_ms(2_000));
        world.propose_set("alpha", &["alpha", "beta"]);
        world.run_until(LONG, |world| world.has_lease("alpha") && !world.is_sole("alpha"));
        let (node, force) = (Some(name("beta")), Force::default());
        let change = Change::Want { resource: RESOURCE.into(), node, force };
        world.order("alpha", Input::Ordered { ticket: 1, change, why: "a test".into() }).unwrap();
        world.run_until(LONG, |world| world.has_lease("beta"));
        world.pass(Span::from_ms(500));
        world
    }

    fn accepted(&self, node: &str) -> u64 {
        self.machines[&name(node)].disk.accepted.as_ref().map_or(0, |(_, state)| state.revision)
    }
}

/// sim --cluster 1795999569002: it said `no_register` for ever.
#[test]
fn a_witness_that_missed_the_end_of_an_office_without_end_settles_what_came_after() {
    let mut world = World::with_an_end_that_gamma_missed();
    let newest = world.accepted("alpha");
    assert!(world.accepted("gamma") + 2 < newest, "{:#?}", world.log);
    // Power fails everywhere, and the new primary loses its record.
    world.kill("alpha");
    world.kill("beta");
    world.install("beta", 201);
    for node in ["alpha", "gamma", "beta"] {
        world.start(node);
    }
    world.run_until(LONG, |world| world.core("alpha").state().is_some());
    assert!(world.core("alpha").state().unwrap().revision >= newest);
    world.run_until(LONG, |world| world.has_lease("alpha") || world.has_lease("beta"));
}

/// A primary that dies while it goes alone leaves what nobody committed with the witness alone; the
/// others, a majority, went on from the state before. The taker needs the witness later.
#[test]
fn an_office_without_end_that_was_never_committed_binds_nobody() {
    let mut world = World::with_primary();
    world.cut = vec![(name("alpha"), name("beta")), (name("beta"), name("alpha"))];
    let base = world.accepted("gamma");
    world.propose_set("alpha", &["alpha"]);
    world.run_until(LONG, |world| {
        world.core("gamma").acceptor().accepted().is_some_and(|state| state.revision > base)
    });
    world.kill("alpha");
    assert_eq!(world.accepted("alpha"), base, "not durable there");
    world.run_until(LONG, |world| world.accepted("gamma") > base);
    world.kill("gamma");
    // Beta takes the office with the acceptor of alpha, whose replica has no disk any more.
    let (code, why, next) = ("no_disk".into(), "its disk failed".into(), "replace it".into());
    world.refusing = Some((name("alpha"), Hindrance { code, rule: "R16".into(), why, next }));
    world.cut.clear();
    world.start("alpha");
    world.run_until(LONG, |world| world.has_lease("beta"));
    let taken = world.core("beta").state().unwrap().clone();
    assert_eq!(taken.by, name("beta"), "{:#?}", world.log);
    // Power fails, and alpha does not come back.
    world.kill("alpha");
    world.kill("beta");
    world.start("gamma");
    world.start("beta");
    world.run_until(LONG, |world| world.has_lease("beta"));
}

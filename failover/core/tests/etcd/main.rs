//! The register kept by etcd, in virtual time: stories, races, and seeds with faults at random.

#![cfg_attr(feature = "defects", allow(dead_code))]

mod races;
mod store;
#[cfg(not(feature = "defects"))]
mod stories;
mod world;

use failover_core::command::Change;
use failover_core::{Span, Time};
use world::{Faults, NODES, RESOURCE, World, name};

/// One life with faults at random, and then without: the rules hold, and it comes to rest.
pub fn seed(seed: u64) -> Result<u32, String> {
    let mut world = World::new(seed).founded();
    world.faults = match seed % 4 {
        0 => Faults { lost: 10, unanswered: 10, late: 10, slow: 20 },
        1 => Faults { lost: 0, unanswered: 5, late: 50, slow: 30 },
        2 => Faults { lost: 20, unanswered: 40, late: 20, slow: 0 },
        _ => Faults::default(),
    };
    let end = world.now + Span::from_ms(20_000);
    while world.now < end && world.broken.is_none() {
        let pause = Span::from_ms(50 + world.random.below(1_000));
        world.run(pause, |_| false);
        disturb(&mut world);
    }
    (world.faults, world.is_cut, world.outage_until) = (Faults::default(), false, Time(0));
    for node in NODES {
        world.hang(node, false);
        world.pause(node, Span(0));
        if world.machines[&name(node)].node.is_none() {
            world.start(node);
        }
    }
    let ok = world.order_quietly("alpha", Change::Pause(false));
    let is_well = |world: &World| {
        let serves = NODES.iter().any(|node| world.has_lease(node));
        let state = world.state().and_then(|state| state.resource(RESOURCE).cloned());
        serves && state.is_some_and(|entry| entry.state.set.len() == 2)
    };
    let rests = ok && world.run(Span::from_ms(20_000), is_well);
    match &world.broken {
        Some(broken) => Err(format!("{broken}: {:#?}", world.log)),
        None if !rests => {
            Err(format!("it does not come to rest: {:#?}{}", world.log, world.at_the_end()))
        }
        None => Ok(world.takeovers),
    }
}

fn disturb(world: &mut World) {
    let node = NODES[world.random.below(2) as usize];
    let span = Span::from_ms(world.random.below(3_000));
    match world.random.below(12) {
        0 | 1 => world.kill(node),
        2..=4 => {
            for node in NODES {
                if world.machines[&name(node)].node.is_none() {
                    world.start(node);
                }
            }
        }
        5 => world.pause(node, span),
        6 => world.outage_until = world.now + span,
        7 => world.is_cut = !world.is_cut,
        8 => {
            let is_hung = world.random.percent(50);
            world.hang(node, is_hung);
        }
        9 => {
            let to = Some(name(NODES[world.random.below(2) as usize]));
            let resource = RESOURCE.into();
            let change = Change::Want { resource, node: to, force: Default::default() };
            world.order_and_forget(node, change);
        }
        10 => {
            let paused = world.random.percent(50);
            world.order_and_forget(node, Change::Pause(paused));
        }
        _ => {
            world.kill(node);
            world.start(node);
        }
    }
}

#[cfg(not(feature = "defects"))]
#[test]
fn seeds_with_faults_at_random_break_no_rule_and_come_to_rest() {
    let count = std::env::var("ETCD_SEEDS").map_or(200, |text| text.parse().unwrap());
    let mut takeovers = 0;
    for it in 1..=count {
        match seed(it) {
            Ok(some) => takeovers += some,
            Err(why) => panic!("seed {it}: {why}"),
        }
    }
    println!("{count} seeds, {takeovers} takeovers");
    assert!(u64::from(takeovers) > count, "the faults do too little");
}

/// Every rule that is broken on purpose is found by a race or by some seed: the proof that they can
/// fail.
#[cfg(feature = "defects")]
#[test]
fn every_deliberate_defect_is_found() {
    use failover_core::defect::{Defect, ETCD_DEFECTS, switch_off, switch_on};
    const SEEDS: u64 = 200;
    for (name, race) in races::RACES {
        race().unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    let others = [Defect::LeaseFromReply, Defect::HolderKeepsTooLong];
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for defect in ETCD_DEFECTS.iter().chain(&others) {
        switch_on(*defect);
        let fails = |world: &dyn Fn() -> bool| {
            let world = std::panic::AssertUnwindSafe(world);
            std::panic::catch_unwind(|| !world()).unwrap_or(true)
        };
        let race = races::RACES.iter().find(|(_, race)| fails(&|| race().is_ok()));
        let found = race.map(|(name, _)| format!("\"{name}\"")).or_else(|| {
            let seed = (1..=SEEDS).find(|it| fails(&|| seed(*it).is_ok()))?;
            Some(format!("seed {seed}"))
        });
        switch_off();
        match found {
            Some(by) => println!("{defect:?}: {by}"),
            None => missed.push(*defect),
        }
    }
    std::panic::set_hook(quiet);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

//! Many failovers of one cluster, one after the other (O8), with clients at work: nothing may be
//! lost, wear out or be forgotten by the thousandth. Each begins when both replicas are in sync
//! again, so that each could lose something.

use history::draw::Draw;

use crate::cluster::times::quiet_plan;
use crate::cluster::{ClusterPlan, RESOURCE};
use crate::plan::Plan;
use crate::tell;
use crate::world::{MS, World};

/// From a blow to a new office, and from there to two replicas in sync.
const LIMIT: u64 = 120_000 * MS;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Changes of the office from one node to the other.
    pub failovers: u64,
    /// How long that took in virtual time, in nanoseconds.
    pub virtual_ns: u64,
    /// Requests of clients.
    pub requests: u64,
    /// The longest time from a blow to an office at the other node, in nanoseconds.
    pub longest_ns: u64,
}

/// So many failovers; an error says what broke, and after how many.
pub fn run(count: u64, seed: u64) -> Result<Row, String> {
    let mut draw = Draw::new(seed ^ 0x08);
    let plan = Plan { requests: u64::MAX, think_ms: 200, ..quiet_plan(&mut draw) };
    let mut world = World::with_cluster(seed, draw, plan, ClusterPlan::quiet(), false);
    let mut longest_ns = 0;
    for number in 0..count {
        let at = |why| format!("failover {number} of seed {seed}: {why}");
        become_whole(&mut world).map_err(at)?;
        let (primary, _) = world.device().expect("somebody serves");
        let began = world.now;
        strike(&mut world, primary);
        let is_elsewhere = |world: &World| world.would_answer(1 - primary);
        wait_until(&mut world, "the other node serves", is_elsewhere).map_err(at)?;
        longest_ns = longest_ns.max(world.now - began);
    }
    become_whole(&mut world)?;
    let (failovers, virtual_ns) = (count, world.now);
    Ok(Row { failovers, virtual_ns, requests: world.tally.requests, longest_ns })
}

/// Until both are in sync, and a while later still: a new primary drops and brings back at once who
/// missed its first writes.
fn become_whole(world: &mut World) -> Result<(), String> {
    let began = world.now;
    loop {
        wait_until(world, "both replicas are in sync", is_whole)?;
        let newest = world.cluster().newest().map(|state| state.revision);
        world.advance(300 * MS)?;
        if is_whole(world) && newest == world.cluster().newest().map(|state| state.revision) {
            return Ok(());
        }
        if world.now - began > LIMIT {
            return Err(format!("not within {} s: rest", LIMIT / MS / 1000));
        }
    }
}

/// Both members, somebody serves, and nothing is left to copy.
fn is_whole(world: &World) -> bool {
    let newest = world.cluster().newest();
    let entry = newest.and_then(|state| state.resource(RESOURCE));
    entry.is_some_and(|entry| entry.state.set.len() == 2)
        && (0..2).any(|node| world.would_answer(node))
        && world.nodes.iter().all(|node| node.process.is_some() && node.paused_until <= world.now)
}

fn wait_until(world: &mut World, what: &str, holds: impl Fn(&World) -> bool) -> Result<(), String> {
    let began = world.now;
    while !holds(world) {
        world.advance(10 * MS)?;
        if world.now - began > LIMIT {
            return Err(format!("not within {} s: {what}", LIMIT / MS / 1000));
        }
    }
    Ok(())
}

/// The primary is lost in one of five ways, and comes back after two to four leases.
fn strike(world: &mut World, primary: usize) {
    let away = (2_000 + world.draw.below(2_000)) * MS;
    let how = world.draw.below(5);
    tell!(world, "blow {how} at {primary}");
    match how {
        0 => world.fall(primary, away, false),
        1 => world.fall(primary, away, true),
        2 => world.stand_still(primary, away),
        3 => world.isolate_wholly(primary, away),
        _ => world.switch_over(),
    }
}

//! A short campaign: the seeds that once failed, then some fresh ones; and a seed is its story.

use sim::world::World;

const REGRESSIONS: &str = include_str!("../regressions.txt");

fn keeps_all_promises(seed: u64) {
    if let Some(failure) = World::new(seed, false).run() {
        panic!("seed {seed}: {failure}; see it with: cargo run --release -p sim -- {seed} --trace");
    }
}

#[test]
fn seeds_that_once_failed_keep_all_promises() {
    for seed in sim::regressions(REGRESSIONS) {
        keeps_all_promises(seed);
    }
}

#[test]
fn fresh_seeds_keep_all_promises() {
    (1_000_000..1_000_100).for_each(keeps_all_promises);
}

#[test]
fn clusters_keep_all_promises() {
    let regressions = sim::regressions(include_str!("../regressions-cluster.txt"));
    for seed in regressions.chain(1_000_000..1_000_060) {
        if let Some(failure) = World::of_a_cluster(seed, false).run() {
            panic!("seed {seed}: {failure}; see it with: cargo run -p sim -- {seed} --cluster");
        }
    }
}

#[test]
fn a_cluster_runs_the_same_way_twice() {
    for seed in 0..5 {
        let stories = [0, 1].map(|_| {
            let mut world = World::of_a_cluster(seed, false);
            world.run();
            (world.tally.steps, world.tally.requests, world.tally.virtual_ns)
        });
        assert_eq!(stories[0], stories[1], "seed {seed}");
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..5 {
        let stories = [0, 1].map(|_| {
            let mut world = World::new(seed, false);
            world.run();
            (world.tally.steps, world.tally.requests, world.tally.virtual_ns)
        });
        assert_eq!(stories[0], stories[1], "seed {seed}");
    }
}

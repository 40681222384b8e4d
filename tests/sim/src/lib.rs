//! The deterministic simulator: the shipping replication cores in a world of virtual time, with a
//! network, disks and machines that fail, all from one seed.

pub mod ambush;
pub mod campaign;
pub mod chance;
pub mod checkers;
pub mod clients;
pub mod clock;
pub mod cluster;
pub mod coverage;
pub mod disk;
pub mod failure;
pub mod faults;
pub mod fencing;
pub mod growth;
pub mod host;
pub mod minimise;
pub mod mode;
pub mod mutants;
pub mod network;
pub mod occasions;
pub mod operator;
pub mod other_disk;
pub mod parts;
pub mod plan;
pub mod pretence;
pub mod replay;
pub mod report;
pub mod rules;
pub mod runner;
pub mod scenarios;
pub mod sectors;
pub mod verifies;
pub mod world;

/// The seeds of a list of regressions: the first word of each line that is no comment.
pub fn regressions(list: &str) -> impl Iterator<Item = u64> {
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|word| word.parse().ok())
}

//! The deterministic simulator: the shipping replication cores in a world of virtual time, with a
//! network, disks and machines that fail, all from one seed.

pub mod ambush;
pub mod checkers;
pub mod clients;
pub mod disk;
pub mod failure;
pub mod faults;
pub mod host;
pub mod mutants;
pub mod network;
pub mod operator;
pub mod plan;
pub mod sectors;
pub mod world;

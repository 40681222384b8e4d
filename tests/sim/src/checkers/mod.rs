//! What is checked while a seed runs and at its end, each check named by its rule of SAFETY.md.
//! (The answers to clients are judged in `clients.rs`, by the history checker.)

mod convergence;
mod flapping;
mod metadata;
mod tracking;

use crate::rules::Held;

pub use flapping::Flaps;

/// What the checkers remember.
#[derive(Debug, Default)]
pub struct Checkers {
    /// When the troubles ended.
    pub calm_since: Option<u64>,
    /// The node has writes that an operator gave up by promoting the other one: it may take part
    /// only when the operator says so (R11d).
    pub diverged: [bool; 2],
    /// A device was open in a tenure in which the node was a member and the other one was none, and
    /// they were not both members since: only then can it have writes that the other one lacks.
    pub wrote_alone: [bool; 2],
    /// Lineage and tenure of the newest office.
    pub newest_office: (u64, u64),
    /// Offices so far: the tenures that the history is told.
    pub offices: u64,
    /// The changes of both disks when the tracking of differences was checked last.
    pub tracked: [u64; 2],
    /// The last office of each node (R6a).
    pub held: [Option<Held>; 2],
    /// How often each node dropped its peer (P6).
    pub flaps: [Flaps; 2],
    /// The final reading has begun.
    pub reading: bool,
}

impl Checkers {
    /// What a node had that the other one lacks counts no longer: it has another disk, or an
    /// operator gave it up.
    pub fn given_up(&mut self, node: usize) {
        self.diverged[node] = false;
        self.wrote_alone[node] = false;
    }
}

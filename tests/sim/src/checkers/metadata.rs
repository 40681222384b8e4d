//! R12: an update of the superblock is durable in both copies before anything relies on it, and the
//! newer copy counts after a crash. R11d: who diverged takes part only when an operator said so.

use crate::failure::Kind;
use crate::world::World;

impl World {
    /// A change is committed: both copies must have it.
    pub fn check_copies(&mut self, node: usize, what: &str, generation: u64) {
        if ["learned from the peer", "told by the primary", "learned from the majority"]
            .contains(&what)
        {
            return;
        }
        if self.cluster.as_ref().is_some_and(|cluster| cluster.seats[node].metadata_failed) {
            // What the majority committed counts; the next start learns it again.
            return;
        }
        let copies = self.nodes[node].disk.copies();
        if !copies.iter().all(|copy| copy.is_some_and(|(_, on_disk)| on_disk >= generation)) {
            let text = format!("generation {generation} ({what}) counts, copies have {copies:?}");
            self.fail(Kind::Safety, "R12", text);
        }
    }

    /// A process starts: it must have taken the newer copy.
    pub fn check_newest_copy(&mut self, node: usize, sequence: u64) {
        let newest = self.nodes[node].disk.copies().into_iter().flatten().map(|copy| copy.0).max();
        if newest != Some(sequence) {
            let text = format!("sequence {sequence} was trusted, a copy has {newest:?}");
            self.fail(Kind::Safety, "R12", text);
        }
    }

    /// A session is agreed on. What is read from one that its other end has closed is no part in
    /// anything.
    pub fn check_diverged(&mut self, node: usize) {
        let session = self.nodes[node].process.as_ref().and_then(|process| process.session);
        let is_met = session.is_some_and(|at| self.connections[at as usize].open[1 - node]);
        if self.checkers.diverged[node] && is_met {
            let name = self.nodes[node].name;
            let text = format!("{name} diverged, and takes part though nobody discarded its data");
            self.fail(Kind::Safety, "R11d", text);
        }
    }
}

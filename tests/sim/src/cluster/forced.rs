//! Failovers by force: an operator gives up what the old primary may have, and it comes back
//! (R11d, D13); and a register that goes back to what it once was (R11c).

use failover_core::ClusterState;
use failover_core::cluster::Force;
use failover_core::command::Change;
use replicator_core::register::RegisterState;

use crate::cluster::{Happening, NAMES, RESOURCE, WITNESS, name};
use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::tell;
use crate::world::{MS, World};

/// The operator looks so often.
const LOOKS: u64 = 200 * MS;
/// After so long the operator withdraws what does not happen.
const PATIENCE: u64 = 12_000 * MS;
/// So long a world is watched whose register went back.
const WATCHED: u64 = 30_000 * MS;

/// A failover by force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forcing {
    target: usize,
    since: u64,
    /// The operator keeps the other node off meanwhile.
    holds: bool,
}

impl World {
    /// A failover by force to some node that is not primary; the other one is switched off, or not.
    pub(super) fn force_failover(&mut self) {
        let target = self.draw.below(2) as usize;
        let (holds, power) = (self.draw.chance(60), self.draw.chance(50));
        let (mine, other) = (self.superblock(target), self.superblock(1 - target));
        let cluster = self.cluster();
        let is_founded = cluster
            .newest()
            .and_then(|state| state.resource(RESOURCE))
            .is_some_and(|entry| entry.state.generation > 0 && entry.force == Force::default());
        let is_busy = cluster.forcing.is_some()
            || cluster.outsider.is_some()
            || cluster.went_back_at.is_some()
            || !cluster.operator.is_idle()
            || self.operator_is_busy();
        let is_primary = self.device().is_some_and(|(primary, _)| primary == target);
        let has_office = self.nodes[target].process.is_none() || is_primary;
        if !is_founded
            || is_busy
            || has_office
            || self.cluster().seats[target].node.is_none()
            || mine.register.basis.lineage < other.register.basis.lineage
        {
            return;
        }
        if holds {
            if self.nodes[1 - target].process.is_some() {
                if power {
                    self.cut_power(1 - target);
                } else {
                    self.kill(1 - target);
                }
                self.start_in(1 - target, MS);
            }
            self.nodes[1 - target].held = true;
        }
        tell!(self, "the operator accepts the loss of data; the other one is off: {holds}");
        self.accept_loss();
        let force = Force { allow_data_loss: true, old_primary_is_off: holds };
        let node = Some(name(target));
        self.cluster_mut().forcing = Some(Forcing { target, since: self.now, holds });
        self.switch(target, Change::Want { resource: RESOURCE.into(), node, force });
        self.soon(LOOKS, Happening::ForceCare);
    }

    /// The operator waits for the failover, or withdraws it.
    pub(super) fn care_for_force(&mut self) {
        let Some(forcing) = self.cluster().forcing else { return };
        self.soon(LOOKS, Happening::ForceCare);
        self.forget_lost_orders();
        if !self.cluster().operator.is_idle() {
            return;
        }
        let entry = self.cluster().newest().and_then(|state| state.resource(RESOURCE));
        if entry.is_none_or(|entry| entry.force == Force::default()) && self.nobody_forces() {
            if forcing.holds {
                self.nodes[1 - forcing.target].held = false;
            }
            self.cluster_mut().forcing = None;
        } else if self.now - forcing.since > PATIENCE {
            let by = self.draw.below(2) as usize;
            let (resource, force) = (RESOURCE.into(), Force::default());
            self.switch(by, Change::Want { resource, node: None, force });
        }
    }

    /// Whether no acceptor has the order to use force: it may be committed yet.
    fn nobody_forces(&self) -> bool {
        let accepted = self.cluster().seats.iter().flat_map(|seat| {
            let here = seat.node.as_ref().and_then(|node| node.acceptor().accepted());
            here.into_iter().chain(seat.record.accepted.as_ref().map(|(_, state)| state))
        });
        let newest = self.cluster().newest().map_or(0, |state| state.revision);
        let forces = |state: &ClusterState| {
            state.resource(RESOURCE).is_some_and(|entry| entry.force != Force::default())
        };
        !accepted.filter(|state| state.revision > newest).any(forces)
    }

    /// A takeover by force is committed: what it cost is told to the history.
    pub(super) fn forced_takeover(&mut self, state: &ClusterState) {
        let entry = |state: &ClusterState| state.resource(RESOURCE).cloned();
        let before = self.cluster().committed.get(&(state.revision - 1)).and_then(entry);
        let (Some(before), Some(now)) = (before, entry(state)) else { return };
        if now.state.basis.lineage <= before.state.basis.lineage {
            return;
        }
        tell!(self, "a new lineage begins");
        self.happened(Occasion::ForcedFailover);
        self.accept_loss();
        let replicas = [0, 1].map(|node| self.superblock(node).replica);
        let Some(taker) = (0..2).find(|node| now.state.primary == Some(replicas[*node])) else {
            return;
        };
        let gives_up = before.state.contains(replicas[1 - taker]);
        let lacks_writes =
            !before.state.contains(replicas[taker]) && self.checkers.wrote_alone[1 - taker];
        // Given up already, and not resynced since: the operator's word holds.
        let is_given_up = self.superblock(1 - taker).discard_diverged;
        self.checkers.diverged[taker] = false;
        self.checkers.diverged[1 - taker] |= gives_up && lacks_writes && !is_given_up;
    }

    /// A state is committed: whether writes go to one node without the other from now on. They do
    /// when a device was opened in its tenure. (A node that took the office may die before it
    /// serves: there is nothing to give up then.)
    pub(super) fn note_sole_writer(&mut self, state: &RegisterState) {
        let members = [0, 1].map(|node| state.contains(self.superblock(node).replica));
        if members == [true, true] {
            self.checkers.wrote_alone = [false; 2];
        } else if self.checkers.newest_office == (state.basis.lineage, state.tenure) {
            self.note_write_to(members);
        }
    }

    /// A device opens: the same.
    pub(crate) fn note_office_opened(&mut self, node: usize) {
        let state = self.superblock(node).register.clone();
        self.note_write_to([0, 1].map(|node| state.contains(self.superblock(node).replica)));
    }

    fn note_write_to(&mut self, members: [bool; 2]) {
        for node in 0..2 {
            self.checkers.wrote_alone[node] |= members[node] && !members[1 - node];
        }
    }

    // ------------------------------------------------------------------ the register goes back

    /// Everybody loses the power, and every acceptor comes back with what it knew before the
    /// office changed hands the last time, as from a backup.
    pub(super) fn register_goes_back(&mut self) {
        let seats = 0..self.cluster().count();
        let has_copy = |seat: usize| {
            let there = &self.cluster().seats[seat];
            there.older.as_ref().is_some_and(|older| older.id == there.record.id)
        };
        let cluster = self.cluster();
        let is_busy = cluster.outsider.is_some() || cluster.forcing.is_some();
        if is_busy || self.operator_is_busy() || !seats.clone().all(has_copy) {
            return;
        }
        tell!(self, "everybody loses the power, and finds an old record");
        self.happened(Occasion::RegisterWentBack);
        for node in 0..2 {
            let back_after = self.draw.below(500) * MS + MS;
            self.fall(node, back_after, true);
        }
        for seat in WITNESS..self.cluster().count() {
            self.witness_falls(seat, 10 * MS, true);
        }
        self.clients.left = 0;
        let now = self.now;
        let generations = [0, 1].map(|node| self.superblock(node).register.generation);
        let cluster = self.cluster_mut();
        cluster.committed.clear();
        (cluster.went_back_at, cluster.floors) = (Some(now), generations);
        for seat in seats {
            let there = &mut cluster.seats[seat];
            there.record = there.older.take().expect("just seen");
        }
    }

    /// R11c: who knows more than the register serves nobody. The world ends soon.
    pub(crate) fn watch_register_that_went_back(&mut self) -> bool {
        let since = self.cluster.as_ref().and_then(|cluster| cluster.went_back_at);
        self.done |= since.is_some_and(|since| self.now - since > WATCHED);
        since.is_some()
    }

    /// A device opens in a world whose register went back; whether it is such a world.
    pub(crate) fn device_opened_after_going_back(&mut self, node: usize, tenure: u64) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        if cluster.went_back_at.is_none() {
            return false;
        }
        let floor = cluster.floors[node];
        if tenure <= floor {
            let node = NAMES[node];
            let text = format!("{node} knows generation {floor}, and serves in tenure {tenure}");
            self.fail(Kind::Safety, "R11c", text);
        }
        true
    }
}

//! What befalls clusters besides what befalls pairs.

use crate::cluster::{Happening, NAMES, SEATS, WITNESS};
use crate::occasions::Occasion;
use crate::plan::Fault;
use crate::tell;
use crate::world::{MS, World};

impl World {
    /// A trouble that only clusters have.
    pub(crate) fn trouble_cluster(&mut self, fault: Fault, some_time: u64) {
        let until = self.now + some_time;
        let seat = self.draw.below(self.cluster().count() as u64) as usize;
        let witness = seat.max(WITNESS);
        match fault {
            Fault::WitnessFalls => {
                let power = self.draw.chance(50);
                self.witness_falls(witness, some_time, power);
            }
            Fault::WitnessPauses => {
                let length = some_time * (1 + self.draw.below(4));
                let stands = self.draw.chance(50);
                self.witness_pauses(witness, length, stands);
            }
            Fault::Isolation => self.isolate(seat, until),
            Fault::ControlCut => {
                let count = self.cluster().count();
                let other = (seat + 1 + self.draw.below(count as u64 - 1) as usize) % count;
                let both = self.draw.chance(50);
                let cluster = self.cluster_mut();
                cluster.cut_until[seat][other] = until;
                if both {
                    cluster.cut_until[other][seat] = until;
                }
            }
            Fault::Storm => {
                self.happened(Occasion::ManyDatagramsLost);
                self.cluster_mut().stormy_until = until;
            }
            Fault::Orders => self.order_something(some_time),
            Fault::OldRecord => self.restore_record(seat),
            Fault::LostRecord => self.lose_record(seat, some_time),
            Fault::Members => self.change_members(),
            Fault::Forced => self.force_failover(),
            Fault::HungLoop => self.hang(seat % 2, some_time),
            Fault::RegisterBack => self.register_goes_back(),
            other => unreachable!("no trouble of a cluster: {other:?}"),
        }
    }

    /// Nobody hears a node, or it hears nobody, or both.
    pub(crate) fn isolate(&mut self, seat: usize, until: u64) {
        let (deaf, dumb) = match self.draw.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        tell!(self, "{} is isolated; deaf: {deaf}, dumb: {dumb}", NAMES[seat]);
        self.occasions_of_isolation(seat, deaf && dumb);
        for other in (0..self.cluster().count()).filter(|other| *other != seat) {
            let cluster = self.cluster_mut();
            if deaf {
                cluster.cut_until[other][seat] = until;
            }
            if dumb {
                cluster.cut_until[seat][other] = until;
            }
            if seat < WITNESS && other < WITNESS {
                if deaf {
                    self.blocked_until[seat] = self.blocked_until[seat].max(until);
                }
                if dumb {
                    self.blocked_until[other] = self.blocked_until[other].max(until);
                }
            }
        }
    }

    /// The data loop of a node hangs, or its disk for longer than that is borne (L1).
    fn hang(&mut self, node: usize, some_time: u64) {
        let now = self.now;
        if self.nodes[node].process.is_none() {
            return;
        }
        if self.draw.chance(50) {
            let until = now + some_time + self.cluster().plan.lease.0 * (1 + self.draw.below(6));
            tell!(self, "the data loop of {} hangs", NAMES[node]);
            self.happened(Occasion::LoopHung);
            let paused_until = self.nodes[node].paused_until;
            self.nodes[node].paused_until = until.max(paused_until);
            let since = self.local(node);
            let was_free = paused_until <= now;
            let cluster = self.cluster_mut();
            if was_free || cluster.loop_hangs_since[node].is_none() {
                cluster.loop_hangs_since[node] = Some(since);
                cluster.plane_paused_until[node] = paused_until;
            }
        } else {
            let until = now + (11_000 + self.draw.below(15_000)) * MS;
            tell!(self, "the disk of {} hangs for long", NAMES[node]);
            self.happened(Occasion::DiskHungForLong);
            self.nodes[node].hung_until = until;
        }
    }

    /// The troubles are over for the cluster too.
    pub(crate) fn heal_cluster(&mut self) {
        let now = self.now;
        let cluster = self.cluster_mut();
        cluster.cut_until = [[0; SEATS]; SEATS];
        cluster.stormy_until = 0;
        cluster.unserved_since = Some(now);
        for seat in WITNESS..self.cluster().count() {
            let cluster = self.cluster_mut();
            let is_down = cluster.seats[seat].node.is_none();
            let starts_at = &mut cluster.witnesses[seat - WITNESS].starts_at;
            if is_down && starts_at.is_none() {
                *starts_at = Some(now);
                self.soon(1, Happening::StartWitness { seat });
            }
        }
        self.soon(MS, Happening::Tidy);
    }
}

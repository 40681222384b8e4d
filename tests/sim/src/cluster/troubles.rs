//! What befalls clusters besides what befalls pairs.

use crate::cluster::{Happening, NAMES, WITNESS};
use crate::plan::Fault;
use crate::tell;
use crate::world::{MS, World};

impl World {
    /// A trouble that only clusters have.
    pub(crate) fn trouble_cluster(&mut self, fault: Fault, some_time: u64) {
        let until = self.now + some_time;
        let seat = self.draw.below(3) as usize;
        match fault {
            Fault::WitnessFalls => {
                let power = self.draw.chance(50);
                self.witness_falls(some_time, power);
            }
            Fault::WitnessPauses => {
                let length = some_time * (1 + self.draw.below(4));
                let stands = self.draw.chance(50);
                self.witness_pauses(length, stands);
            }
            Fault::Isolation => self.isolate(seat, until),
            Fault::ControlCut => {
                let other = (seat + 1 + self.draw.below(2) as usize) % 3;
                let both = self.draw.chance(50);
                let cluster = self.cluster_mut();
                cluster.cut_until[seat][other] = until;
                if both {
                    cluster.cut_until[other][seat] = until;
                }
            }
            Fault::Storm => self.cluster_mut().stormy_until = until,
            Fault::Orders => self.order_something(some_time),
            Fault::OldRecord => self.restore_record(seat),
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
        for other in (0..3).filter(|other| *other != seat) {
            let cluster = self.cluster_mut();
            if deaf {
                cluster.cut_until[other][seat] = until;
            }
            if dumb {
                cluster.cut_until[seat][other] = until;
            }
            if seat != WITNESS && other != WITNESS {
                if deaf {
                    self.blocked_until[seat] = self.blocked_until[seat].max(until);
                }
                if dumb {
                    self.blocked_until[other] = self.blocked_until[other].max(until);
                }
            }
        }
    }

    /// A copy of the acceptor's record is taken, or the node comes back with it (L5).
    fn restore_record(&mut self, seat: usize) {
        let there = &mut self.cluster_mut().seats[seat];
        let Some(older) = there.older.take() else {
            there.older = Some(there.record.clone());
            return;
        };
        tell!(self, "{} loses its power and finds an older record", NAMES[seat]);
        let back_after = self.draw.below(3_000) * MS + MS;
        if seat == WITNESS {
            self.witness_falls(back_after, true);
        } else {
            self.fall(seat, back_after, true);
        }
        self.cluster_mut().seats[seat].record = older;
    }

    /// The troubles are over for the cluster too.
    pub(crate) fn heal_cluster(&mut self) {
        let now = self.now;
        let cluster = self.cluster_mut();
        cluster.cut_until = [[0; 3]; 3];
        cluster.stormy_until = 0;
        cluster.unserved_since = Some(now);
        let is_down = cluster.seats[WITNESS].node.is_none();
        if is_down && cluster.witness_starts_at.is_none() {
            cluster.witness_starts_at = Some(now);
            self.soon(1, Happening::StartWitness);
        }
        self.soon(MS, Happening::Tidy);
    }
}

//! Datagrams between the control planes: lost, doubled, late, in another order, cut off in one
//! direction or both.

use failover_core::message::Envelope;
use failover_core::node::Input;

use crate::cluster::{Happening, WITNESS, name};
use crate::world::{MS, World};

/// Datagrams that a kernel keeps for a process that stands still: those of the last so long.
const KEPT: u64 = 2_000 * MS;

impl World {
    /// Whether nothing passes this way now.
    fn is_cut(&self, from: usize, to: usize) -> bool {
        let cluster = self.cluster();
        let data = from < WITNESS && to < WITNESS && cluster.plan.shares_link;
        cluster.cut_until[from][to] > self.now || data && self.blocked_until[to] > self.now
    }

    /// Percent of datagrams that get lost on this way now.
    fn percent_lost(&self, from: usize, to: usize) -> u64 {
        let cluster = self.cluster();
        let storm = if cluster.stormy_until > self.now { 40 } else { 0 };
        let data = from < WITNESS && to < WITNESS && cluster.plan.shares_link;
        let weather = match to {
            node if data && self.weather[node].lossy_until > self.now => {
                self.weather[node].percent_lost
            }
            _ => 0,
        };
        cluster.plan.percent_lost + storm + weather
    }

    pub(super) fn post(&mut self, from: usize, to: usize, envelope: Box<Envelope>) {
        let lost = self.percent_lost(from, to);
        if self.is_cut(from, to) || self.draw.chance(lost) {
            return;
        }
        let (twice, late, late_ms) = {
            let plan = &self.cluster().plan;
            (plan.percent_twice, plan.percent_late, plan.late_ms)
        };
        if self.draw.chance(twice) {
            let delay = self.way(late, late_ms);
            let envelope = envelope.clone();
            self.soon(delay, Happening::Datagram { from, to, envelope });
        }
        let delay = self.way(late, late_ms);
        self.soon(delay, Happening::Datagram { from, to, envelope });
    }

    fn way(&mut self, percent_late: u64, late_ms: u64) -> u64 {
        let delay = (10 + self.draw.below(self.plan.delay_us)) * 1_000;
        let is_late = self.draw.chance(percent_late);
        delay + if is_late { self.draw.below(late_ms * MS) } else { 0 }
    }

    pub(super) fn datagram_came(&mut self, from: usize, to: usize, envelope: Box<Envelope>) {
        if self.is_cut(from, to) {
            return;
        }
        let life = self.cluster().seats[to].life;
        let paused_until = self.seat_paused_until(to);
        if paused_until > self.now + KEPT {
            return;
        }
        self.tell_seat(to, life, Box::new(Input::Received { from: name(from), envelope }));
    }
}

//! Troubles: when, which, and to whom.

use replicator_core::{Command, LinkLoss};

use crate::ambush::Ambush;
use crate::host::{Failing, fresh_disk};
use crate::plan::Fault;
use crate::tell;
use crate::world::{Event, MS, PEER, World};

impl World {
    /// The next trouble happens.
    pub fn trouble(&mut self) {
        let end = self.parts.end.map_or(self.plan.troubles, |end| end.min(self.plan.troubles));
        if self.troubles >= end {
            return self.heal();
        }
        self.troubles += 1;
        let chosen = self.plan.draw_fault(&mut self.draw);
        let delay = (1 + self.draw.below(self.plan.gap_ms)) * MS;
        self.after(delay, Event::Trouble);
        if self.parts.has_fault(self.troubles, chosen) {
            *self.tally.faults.entry(chosen).or_default() += 1;
            self.caused.push((self.troubles, chosen));
            self.cause(chosen);
        }
    }

    fn cause(&mut self, fault: Fault) {
        let node = self.draw.below(2) as usize;
        let most = [50, 1500, 5000][self.draw.below(3) as usize];
        let some_time = (1 + self.draw.below(most)) * MS;
        let until = self.now + some_time;
        let (number, name) = (self.troubles, self.nodes[node].name);
        tell!(self, "trouble {number}: {fault:?} at {name}, {} ms", some_time / MS);
        match fault {
            Fault::Kill => self.fall(node, some_time, false),
            Fault::PowerCut => self.fall(node, some_time, true),
            Fault::BothPowerCut => {
                self.fall(node, some_time, true);
                let other = self.draw.below(3000) * MS;
                self.fall(1 - node, other, true);
            }
            Fault::Pause => self.nodes[node].paused_until = until,
            Fault::Partition => self.blocked_until = [until; 2],
            Fault::OneWay => self.blocked_until[node] = until,
            Fault::Reset => self.reset_connection(node),
            Fault::SlowDisk => {
                self.nodes[node].slow_until = until;
                self.nodes[node].slowness = [5, 50, 500][self.draw.below(3) as usize];
            }
            Fault::HungDisk => self.nodes[node].hung_until = until,
            Fault::DiskError => {
                let kinds = [Failing::Write, Failing::Read, Failing::Flush, Failing::Meta];
                self.nodes[node].failing = Some(kinds[self.draw.below(4) as usize]);
            }
            Fault::DiskFull => self.nodes[node].failing = Some(Failing::Space),
            Fault::Switchover | Fault::Restart | Fault::Disconnect => self.routine(fault, node),
            Fault::Invalidate | Fault::ResyncFull => self.routine(fault, node),
            Fault::Ambush => self.ambush = Some(Ambush::draw(&mut self.draw)),
            Fault::NewDisk => self.replace_disk(some_time),
            Fault::ForeignUse => {
                if let Some((primary, _)) = self.device()
                    && self.nodes[1 - primary].process.is_some()
                    && !self.operator_is_busy()
                {
                    self.nodes[1 - primary].used_without_us = true;
                    self.order(1 - primary, Command::Stop, false);
                }
            }
            Fault::Fence => {
                if let Some((primary, _)) = self.device()
                    && self.nodes[1 - primary].process.is_some()
                    && !self.operator_is_busy()
                {
                    self.promote_with_the_other_off(1 - primary);
                }
            }
            Fault::ForcedPromotion => {
                let (mine, other) = (self.superblock(node), self.superblock(1 - node));
                let newest = mine.register.basis.lineage >= other.register.basis.lineage;
                let is_primary = self.device().is_some_and(|(primary, _)| primary == node);
                if newest && !is_primary && mine.register.generation > 0 {
                    self.order_forced(node, true);
                }
            }
        }
    }

    /// A process or its machine falls, and comes back after a while.
    pub fn fall(&mut self, node: usize, back_after: u64, power: bool) {
        if power {
            self.cut_power(node);
        } else {
            self.kill(node);
        }
        self.start_in(node, back_after);
    }

    /// The disk of the node that does not serve is replaced by an empty one.
    fn replace_disk(&mut self, back_after: u64) {
        let Some((primary, _)) = self.device() else { return };
        let node = 1 - primary;
        if !self.holds_everything(primary) || self.operator_is_busy() {
            return;
        }
        self.cut_power(node);
        self.checkers.diverged[node] = false;
        self.nodes[node].disk = fresh_disk(node, &self.plan, &mut self.draw, false);
        self.start_in(node, back_after);
    }

    fn reset_connection(&mut self, node: usize) {
        let session = self.nodes[node].process.as_ref().and_then(|process| process.session);
        if let Some(number) = session {
            self.end_connection(number as usize, node, LinkLoss::Io(104));
        }
    }

    fn routine(&mut self, fault: Fault, node: usize) {
        if self.operator_is_busy() || self.nodes[node].process.is_none() {
            return;
        }
        let primary = self.device().map(|(primary, _)| primary);
        match (fault, primary) {
            (Fault::Switchover, Some(primary)) => self.order(primary, Command::Demote, false),
            (Fault::Restart, _) => self.order(node, Command::Stop, false),
            (Fault::Disconnect, _) => self.order(node, Command::Disconnect(PEER), false),
            (Fault::Invalidate, Some(primary)) => {
                self.order(1 - primary, Command::Invalidate, false);
            }
            (Fault::ResyncFull, Some(primary)) => {
                self.order(primary, Command::ResyncFull(PEER), false);
            }
            _ => {}
        }
    }

    /// The troubles are over: from now on everything must converge.
    fn heal(&mut self) {
        tell!(self, "the troubles are over");
        self.checkers.calm_since = Some(self.now);
        self.blocked_until = [0; 2];
        self.ambush = None;
        for node in 0..2 {
            let there = &mut self.nodes[node];
            there.slow_until = 0;
            there.hung_until = 0;
            there.writes_hang_until = 0;
            there.failing = None;
            if there.process.is_none() && there.start_at.is_none() {
                self.start_in(node, MS);
            }
        }
    }

    /// Whether the troubles are over.
    pub fn is_calm(&self) -> bool {
        self.checkers.calm_since.is_some()
    }
}

//! Troubles: when, which, and to whom.

use replicator_core::{Command, LinkLoss};

use crate::ambush::Strike;
use crate::host::Failing;
use crate::occasions::Occasion;
use crate::plan::Fault;
use crate::tell;
use crate::world::{Event, MS, PEER, World};

impl World {
    /// The next trouble happens.
    pub fn trouble(&mut self) {
        if self.watch_register_that_went_back() {
            return;
        }
        let end = self.parts.end.map_or(self.plan.troubles, |end| end.min(self.plan.troubles));
        if self.troubles >= end {
            // Who stands still for long wakes up first.
            let awake = self.nodes.iter().map(|node| node.paused_until).max().unwrap_or(0);
            let awake = awake.max(self.witness_wakes_at());
            if awake > self.now {
                return self.after(awake - self.now, Event::Trouble);
            }
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
            Fault::Kill if self.draw.chance(15) => {
                // It stays away until all is over.
                if self.must_stay(node) {
                    return;
                }
                self.kill(node);
                self.nodes[node].start_at = None;
                self.happened(Occasion::AwayForLong);
            }
            Fault::Kill => self.fall(node, some_time, false),
            Fault::PowerCut => self.fall(node, some_time, true),
            Fault::BothPowerCut => {
                self.fall(node, some_time, true);
                let other = self.draw.below(3000) * MS;
                self.fall(1 - node, other, true);
            }
            Fault::Pause => self.stand_still(node, some_time),
            Fault::LongPause => self.pause_machine(node),
            Fault::ClockJump => self.upset_clock(node),
            Fault::WitnessFalls
            | Fault::WitnessPauses
            | Fault::Isolation
            | Fault::ControlCut
            | Fault::Storm
            | Fault::Orders
            | Fault::OldRecord
            | Fault::LostRecord
            | Fault::Members
            | Fault::Forced
            | Fault::HungLoop
            | Fault::RegisterBack => self.trouble_cluster(fault, some_time),
            Fault::Switchover if self.cluster.is_some() => self.switch_over(),
            Fault::Partition => {
                self.occasions_of_cut(None);
                let is_alone = self.cluster.as_ref().is_some_and(|it| !it.plan.shares_link);
                if is_alone && self.device().is_some() {
                    self.happened(Occasion::DataLinkCutOnly);
                }
                self.blocked_until = [until; 2];
            }
            Fault::OneWay => {
                self.occasions_of_cut(Some(node));
                self.blocked_until[node] = until;
            }
            Fault::FrameLoss | Fault::SlowLink | Fault::BlackHole => {
                self.cause_weather(fault, node, until);
            }
            Fault::Flap => {
                let period_ms = [100, 500, 2_000, 10_000][self.draw.below(4) as usize];
                let times = 2 + self.draw.below(6);
                self.flap(times, period_ms);
            }
            Fault::LateConnection => self.connect_late(node),
            Fault::Careless => self.careless(node),
            Fault::Reset => self.reset_connection(node),
            Fault::Switchover | Fault::Restart | Fault::Disconnect => self.routine(fault, node),
            Fault::Invalidate | Fault::ResyncFull => self.routine(fault, node),
            Fault::ClientGone => self.client_goes(),
            Fault::Ambush => self.lay_ambush(),
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
            disk => self.trouble_disk(disk, node, some_time),
        }
    }

    fn trouble_disk(&mut self, fault: Fault, node: usize, some_time: u64) {
        let until = self.now + some_time;
        let kinds = [Failing::Write, Failing::Read, Failing::Flush, Failing::Meta];
        match fault {
            Fault::SlowDisk => {
                self.nodes[node].slow_until = until;
                self.nodes[node].slowness = [5, 50, 500][self.draw.below(3) as usize];
            }
            Fault::HungDisk => {
                self.nodes[node].hung_until = until;
                if self.draw.chance(30) {
                    let delay = self.draw.below(some_time);
                    self.after(delay, Event::Strike { strike: Strike::Kill { node } });
                }
            }
            Fault::DiskError => {
                self.nodes[node].failing = Some(kinds[self.draw.below(4) as usize]);
            }
            Fault::DiskFull => self.nodes[node].failing = Some(Failing::Space),
            Fault::DeadDisk => {
                let more = [Failing::Space, Failing::Everything, Failing::Everything];
                let all = [&kinds[..], &more[..]].concat();
                self.nodes[node].failing = Some(all[self.draw.below(7) as usize]);
                self.nodes[node].failing_until = until;
            }
            Fault::ForeignDisk => self.put_in_another_disk(node, some_time),
            Fault::RestoredDisk => self.copy_disk(),
            Fault::NewDisk => self.replace_disk(some_time),
            Fault::BitRot => {
                self.nodes[node].rots = true;
                self.fall(node, some_time, false);
            }
            other => unreachable!("no trouble of a disk: {other:?}"),
        }
    }

    /// A process or its machine falls, and comes back after a while.
    pub fn fall(&mut self, node: usize, back_after: u64, power: bool) {
        if self.must_stay(node) {
            return;
        }
        if power {
            self.cut_power(node);
        } else {
            self.kill(node);
        }
        self.start_in(node, back_after);
    }

    /// A machine stands still: a paused virtual machine, whose clock may stand still too, or a
    /// laptop's lid.
    fn pause_machine(&mut self, node: usize) {
        let most = [5_000, 60_000, 600_000][self.draw.below(3) as usize];
        let length = (1_000 + self.draw.below(most - 999)) * MS;
        let stands = self.draw.chance(50);
        let until = self.now + length;
        tell!(self, "{} stands still for {} ms", self.nodes[node].name, length / MS);
        self.stand_still(node, length);
        if stands {
            self.nodes[node].clock.stand_still(self.now, until);
            self.clock_stands_still(node, until);
        }
        if self.nodes[node].process.is_some() {
            let slept = Occasion::MachineSleptOn;
            self.happened(if stands { Occasion::MachineStoodStill } else { slept });
        }
    }

    /// A process stands still for so long, or for as long as it does already.
    pub(crate) fn stand_still(&mut self, node: usize, length: u64) {
        let until = self.now + length;
        let there = &mut self.nodes[node];
        there.paused_until = there.paused_until.max(until);
        self.plane_stands_still(node, until);
        self.occasions_of_pause(node, length);
    }

    fn upset_clock(&mut self, node: usize) {
        // A clock that jumps while its machine runs is none that leases are made for.
        if self.draw.chance(50) || self.cluster.is_some() {
            let rate = 900 + self.draw.below(201);
            self.nodes[node].clock.drift(self.now, rate);
        } else {
            let most = [100, 5_000, 600_000][self.draw.below(3) as usize];
            let forward = self.draw.below(most) * MS;
            self.nodes[node].clock.jump(self.now, forward);
            self.happened(Occasion::ClockJumped);
        }
        self.set_timer(node);
    }

    fn reset_connection(&mut self, node: usize) {
        let session = self.nodes[node].process.as_ref().and_then(|process| process.session);
        if let Some(number) = session {
            let why = [LinkLoss::Io(104), LinkLoss::Garbled][self.draw.below(2) as usize];
            self.end_connection(number as usize, node, why);
        }
    }

    /// A command that may not fit: nobody looked at the status before.
    fn careless(&mut self, node: usize) {
        let local = self.local(node);
        let Some(process) = &self.nodes[node].process else { return };
        let status = process.replica.status(local);
        // It must come to nothing: what it says of the other node is not true. A replica that
        // starts keeps it for later, and one that stands still may be something else then.
        let awake = self.nodes[node].paused_until <= self.now;
        let has_office = awake && ["promoting", "primary", "demoting"].contains(&status.role);
        let command = match self.draw.below(7) {
            0 if has_office => {
                let [old_primary_is_off, allow_data_loss, alone] =
                    [0; 3].map(|_| self.draw.chance(50));
                Command::Promote { old_primary_is_off, allow_data_loss, alone }
            }
            1 | 2 => Command::Demote,
            3 => Command::ResyncFull(PEER),
            4 => Command::Connect(PEER),
            5 if has_office => Command::Invalidate,
            // What diverged is given up where the history learns of it.
            _ if status.data != "diverged" => Command::DiscardDiverged,
            _ => Command::Connect(PEER),
        };
        self.order_besides(node, command);
    }

    fn routine(&mut self, fault: Fault, node: usize) {
        let is_stop = fault == Fault::Restart;
        if self.operator_is_busy()
            || self.nodes[node].process.is_none()
            || is_stop && self.must_stay(node)
        {
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
        self.weather = Default::default();
        self.ambush = None;
        self.release_parcels();
        if self.cluster.is_some() {
            self.heal_cluster();
        }
        for node in 0..2 {
            let there = &mut self.nodes[node];
            there.slow_until = 0;
            there.hung_until = 0;
            there.writes_hang_until = 0;
            there.failing = None;
            there.failing_until = 0;
            there.held &= self.fencing.is_none();
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

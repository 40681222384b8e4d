//! Processes and machines: started, stopped, killed, without power.

use std::mem;

use replicator_core::block::Incarnation;
use replicator_core::defect::{Defect, is_switched_on};
use replicator_core::{Config, Input, PeerConfig, RegisterKeeper};

use crate::disk::Job;
use crate::failure::Kind;
use crate::host::{Buffers, Failing, Process};
use crate::network::Parcel;
use crate::occasions::Occasion;
use crate::rules::View;
use crate::tell;
use crate::world::{Event, MS, World};

impl World {
    /// Plans the start of a process.
    pub fn start_in(&mut self, node: usize, delay: u64) {
        self.nodes[node].start_at = Some(self.now + delay);
        self.after(delay, Event::Start { node });
    }

    pub(super) fn start_process(&mut self, node: usize) {
        let there = &self.nodes[node];
        if there.process.is_some() || there.start_at.is_none_or(|at| at > self.now) {
            return;
        }
        if self.cluster.is_some() {
            self.start_seat(node);
        }
        let there = &self.nodes[node];
        let is_dead = there.failing == Some(Failing::Everything) && there.failing_until > self.now;
        if is_dead {
            self.happened(Occasion::DiskDeadAtStart);
            return self.after(200 * MS, Event::Start { node });
        }
        let has_landed = there.disk.working.is_empty();
        if there.held || !has_landed && !is_switched_on(Defect::OldWritesNotAwaited) {
            // R2e: the lock is free when the last write of the old process has landed.
            self.after(50 * MS, Event::Start { node });
            return;
        }
        let config = Config {
            node: there.name.into(),
            peers: vec![PeerConfig { node: self.nodes[1 - node].name.into() }],
            incarnation: Incarnation(there.incarnation),
            can_punch: there.can_punch,
            register: self.register_keeper(),
            confirms_reads: self.plan.confirms_reads,
            timing: self.plan.timing,
        };
        let attached = self.attach_disk(node, config);
        let Some(replica) = self.judge_attach(node, attached) else { return };
        self.check_newest_copy(node, replica.superblock().sequence);
        let there = &mut self.nodes[node];
        let view = View::new(&there.disk, there.incarnation);
        there.start_at = None;
        there.lives += 1;
        there.flush_failed = false;
        there.retry_at = self.now;
        there.process = Some(Process {
            life: there.lives,
            replica,
            buffers: Buffers::default(),
            device: None,
            size_bytes: 0,
            timer_at: 0,
            session: None,
            sessions: Vec::new(),
            knows_register: false,
            view,
        });
        tell!(self, "{} starts, process {}", self.nodes[node].name, self.nodes[node].lives);
        self.check_tracking();
        self.occasions_of_start(node);
        self.step(node, Input::TimePassed);
        if self.cluster.is_some() {
            self.replica_is_up(node);
        }
        if self.fencing.is_some() {
            self.start_fencing(node, self.nodes[node].lives);
        }
        self.dial_in(MS);
    }

    fn register_keeper(&self) -> RegisterKeeper {
        match self.cluster {
            Some(_) => RegisterKeeper::Majority,
            None if self.fencing.is_some() => RegisterKeeper::FencedSuperblock,
            None => RegisterKeeper::OwnSuperblock,
        }
    }

    /// A process is gone: its requests have an unknown outcome, its connections are closed.
    pub fn end_process(&mut self, node: usize) {
        if self.cluster.is_some() {
            self.end_seat(node);
        }
        let Some(process) = self.nodes[node].process.take() else { return };
        self.nodes[node].paused_until = 0;
        self.nodes[node].clock.go_on(self.now);
        self.forget_requests(node, process.life);
        self.operator_lost(node);
        for number in 0..self.connections.len() {
            let connection = &mut self.connections[number];
            if connection.lives[node] == process.life
                && mem::replace(&mut connection.open[node], false)
            {
                self.put(number, 1 - node, Parcel::Closed);
            }
        }
    }

    pub(super) fn stopped(&mut self, node: usize) {
        let life = self.nodes[node].lives;
        let local = self.local(node);
        let process = self.nodes[node].process.as_ref().expect("a process");
        let has_disk = process.replica.status(local).has_disk;
        let working = &self.nodes[node].disk.working;
        let writes =
            |job: &Job| matches!(job, Job::Write { .. } | Job::Meta { .. } | Job::Move { .. });
        if has_disk && working.values().any(|one| one.life == life && writes(&one.job)) {
            let text = format!("{} stopped with disk operations under way", self.nodes[node].name);
            self.fail(Kind::Safety, "R12", text);
        }
        self.end_process(node);
        self.use_without_us(node);
        let delay = self.draw.below(1500) * MS + MS;
        self.start_in(node, delay);
    }

    /// Somebody mounts the disk of a stopped daemon and writes to it, if that was planned.
    pub(super) fn use_without_us(&mut self, node: usize) {
        let there = &mut self.nodes[node];
        let was_planned = mem::replace(&mut there.used_without_us, false);
        if was_planned && there.disk.superblock().is_some_and(|superblock| superblock.clean) {
            tell!(self, "somebody writes to the disk of {}", self.nodes[node].name);
            let sector = self.draw.below(20);
            self.happened(Occasion::UsedWithoutUs);
            let value = self.clients.foreign_write(sector);
            self.nodes[node].disk.scribble(sector, value);
        }
    }

    /// A process is killed; what it submitted lands, some of it seconds later.
    pub fn kill(&mut self, node: usize) {
        tell!(self, "{} is killed", self.nodes[node].name);
        self.occasions_of_fall(node, false);
        self.end_process(node);
    }

    /// A machine loses its power.
    pub fn cut_power(&mut self, node: usize) {
        tell!(self, "{} loses its power", self.nodes[node].name);
        self.occasions_of_fall(node, true);
        let proposes = self.is_proposing(node);
        let before = self.superblock(node).register.order();
        self.tell_history_of_power_loss(node);
        if self.cluster.is_some() {
            self.end_seat(node);
        }
        let process = self.nodes[node].process.take();
        if let Some(process) = process {
            self.forget_requests(node, process.life);
            self.operator_lost(node);
            for connection in &mut self.connections {
                if connection.lives[node] == process.life {
                    connection.open[node] = false;
                    // What it had sent may still arrive; no one says that it is gone.
                }
            }
        }
        let there = &mut self.nodes[node];
        there.paused_until = 0;
        there.incarnation += 2;
        there.clock.reboot(self.now);
        if there.failing_until <= self.now {
            there.failing = None;
        }
        let torn = there.disk.lose_power(&mut self.draw);
        self.occasions_of_loss(node, torn, proposes.then_some(before));
    }
}

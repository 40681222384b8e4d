//! Processes of the control plane: started with the record of their store, stepped, ended.

use std::mem;

use failover_core::acceptor::Record;
use failover_core::cluster::Holder;
use failover_core::node::{Config, Effect, Effects, Input, Node};
use failover_core::{NodeName, Time};
use history::draw::Draw;
use replicator_core::register::RegisterState;

use crate::cluster::offices::{Job, Order};
use crate::cluster::rules::Before;
use crate::cluster::{Happening, NAMES, RESOURCE, WITNESS, name, seat_of};
use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::tell;
use crate::world::{MS, World};

/// The driver looks at least so often whether the data loop lives.
const TURN: u64 = 50 * MS;

/// The control plane of one node.
#[derive(Debug)]
pub struct Seat {
    /// The node's name.
    pub name: NodeName,
    /// The shipping core, while its process runs.
    pub node: Option<Node>,
    /// Processes so far; the number of the present one.
    pub life: u64,
    /// What is durable on its store.
    pub record: Record,
    /// A record on its way to the store.
    pub(super) writing: Option<Box<Record>>,
    /// An older copy of the record that will be restored.
    pub(super) older: Option<Record>,
    /// The process of a witness as it was when its last record was written, and as it was with the
    /// older copy.
    with_record: Option<Box<Node>>,
    pub(super) with_older: Option<Box<Node>>,
    /// What the memory of a machine went back to: that process goes on.
    pub(super) resumes: Option<Box<Node>>,
    timer_at: u64,
    /// What the control plane says of the lease, and what the replica was told of it.
    pub(super) lease: Option<Time>,
    pub(super) lease_told: Option<Time>,
    /// What the replica is to know when it is there.
    pub(super) learned: Option<RegisterState>,
    /// What is told to the replica, and by it, keeps its order.
    pub(super) towards_replica_at: u64,
    pub(super) towards_node_at: u64,
    /// An order of the control plane that the replica has not answered.
    pub(super) order: Option<Order>,
    /// The operator's ticket for a promotion that used R11a's wait and was cut off.
    pub(super) cut_off_wait: bool,
    /// The replica could not write metadata: it goes by the majority alone from then on.
    pub metadata_failed: bool,
}

impl Seat {
    /// A node before its first start.
    pub fn new(name: &str, draw: &mut Draw) -> Self {
        let id = u128::from(draw.number()) | 1;
        Self {
            name: NodeName::from(name),
            node: None,
            life: 0,
            record: Record::new(id),
            writing: None,
            older: None,
            with_record: None,
            with_older: None,
            resumes: None,
            timer_at: 0,
            lease: None,
            lease_told: None,
            learned: None,
            towards_replica_at: 0,
            towards_node_at: 0,
            order: None,
            cut_off_wait: false,
            metadata_failed: false,
        }
    }
}

impl World {
    /// The time on the clock of a node's machine.
    pub(crate) fn seat_local(&self, seat: usize) -> Time {
        match seat {
            WITNESS.. => self.cluster().witnesses[seat - WITNESS].clock.shows(self.now),
            node => self.local(node),
        }
    }

    pub(super) fn seat_paused_until(&self, seat: usize) -> u64 {
        match seat {
            WITNESS.. => self.cluster().witnesses[seat - WITNESS].paused_until,
            node if self.cluster().loop_hangs_since[node].is_some() => {
                self.cluster().plane_paused_until[node]
            }
            node => self.nodes[node].paused_until,
        }
    }

    /// Until when a witness stands still, in a world that has one.
    pub(crate) fn witness_wakes_at(&self) -> u64 {
        let witnesses = self.cluster.iter().flat_map(|cluster| &cluster.witnesses);
        witnesses.map(|witness| witness.paused_until).max().unwrap_or(0)
    }

    /// Whether this process of a control plane still runs, or stands still.
    pub(super) fn seat_runs(&self, seat: usize, life: u64) -> bool {
        let seat = &self.cluster().seats[seat];
        seat.node.is_some() && seat.life == life
    }

    pub(super) fn start_witness(&mut self, seat: usize) {
        let now = self.now;
        let witness = &mut self.cluster_mut().witnesses[seat - WITNESS];
        if witness.starts_at.take_if(|at| *at <= now).is_some() {
            self.start_seat(seat);
        }
    }

    /// The daemon of a node starts, unless it runs.
    pub(crate) fn start_seat(&mut self, seat: usize) {
        if self.cluster().seats[seat].node.is_some() {
            return;
        }
        let process = self.draw.number();
        let now = self.seat_local(seat);
        let config = Config {
            name: name(seat),
            process,
            nodes: (0..self.cluster().count()).map(|it| (name(it), it >= WITNESS)).collect(),
            resources: if seat >= WITNESS { Vec::new() } else { vec![RESOURCE.into()] },
            lease: self.cluster().plan.lease,
        };
        let there = &mut self.cluster_mut().seats[seat];
        let resumed = there.resumes.take().map(|node| *node);
        let starts = || Node::start(config, there.record.clone(), now);
        there.node = Some(resumed.unwrap_or_else(starts));
        there.life += 1;
        (there.timer_at, there.lease, there.lease_told, there.learned) = (0, None, None, None);
        let life = there.life;
        tell!(self, "{} starts its control plane, process {life}", NAMES[seat]);
        self.step_seat(seat, Input::TimePassed);
        if seat < WITNESS {
            self.soon(1, Happening::Facts { seat, life });
        }
    }

    /// The daemon of a node is gone. A record on its way may have landed.
    pub(crate) fn end_seat(&mut self, seat: usize) {
        let lands = self.draw.chance(50);
        let cluster = self.cluster_mut();
        if seat < WITNESS {
            cluster.loop_hangs_since[seat] = None;
        }
        let there = &mut cluster.seats[seat];
        if there.node.take().is_none() {
            return;
        }
        // Another process never goes back to the memory of this one.
        (there.with_record, there.with_older) = (None, None);
        there.cut_off_wait |= there.order.take().is_some_and(|order| order.waited);
        let writing = there.writing.take();
        if let Some(record) = writing.filter(|_| lands) {
            there.record = *record;
            self.note_durable(seat);
        }
        let now = self.now;
        match seat {
            WITNESS.. => {
                let witness = &mut self.cluster_mut().witnesses[seat - WITNESS];
                witness.paused_until = 0;
                witness.clock.go_on(now);
            }
            node => {
                self.nodes[node].paused_until = 0;
                self.nodes[node].clock.go_on(now);
                let woke_at = &mut self.cluster_mut().woke_at[node];
                *woke_at = woke_at.map(|at| at.min(now));
            }
        }
    }

    /// Tells a control plane a fact, now or when it is no longer paused.
    pub(super) fn tell_seat(&mut self, seat: usize, life: u64, input: Box<Input>) {
        if !self.seat_runs(seat, life) {
            return;
        }
        let paused_until = self.seat_paused_until(seat);
        if paused_until > self.now {
            let delay = paused_until - self.now;
            return self.soon(delay, Happening::Tell { seat, life, input });
        }
        self.step_seat(seat, *input);
    }

    /// The same for a fact of the daemon on the same node: it takes a moment and keeps its order.
    pub(super) fn tell_own_seat(&mut self, seat: usize, input: Input) {
        let delay = self.draw.below(1_000) * 1_000;
        let now = self.now;
        let there = &mut self.cluster_mut().seats[seat];
        there.towards_node_at = (now + delay).max(there.towards_node_at + 1);
        let (delay, life) = (there.towards_node_at - now, there.life);
        self.soon(delay, Happening::Tell { seat, life, input: Box::new(input) });
    }

    pub(super) fn step_seat(&mut self, seat: usize, input: Input) {
        let local = self.seat_local(seat);
        let tells = self.tells_steps && !matches!(input, Input::TimePassed);
        if tells {
            println!("{:>12.6}   {} <= {input:?}", self.now as f64 / 1e9, NAMES[seat]);
        }
        let mut effects = Effects::new();
        let there = &mut self.cluster_mut().seats[seat];
        let Some(node) = &mut there.node else { return };
        let before = Before::of(node, local, &input);
        node.step(local, input, &mut effects);
        self.tally.steps += 1;
        self.check_acceptor(seat, &before);
        for effect in effects {
            if self.tells_steps {
                println!("{:>12.6}     {} => {effect:?}", self.now as f64 / 1e9, NAMES[seat]);
            }
            self.carry_out_of_seat(seat, effect);
        }
        self.set_seat_timer(seat);
    }

    fn carry_out_of_seat(&mut self, seat: usize, effect: Effect) {
        match effect {
            Effect::Send { to, envelope } => self.post(seat, seat_of(&to), envelope),
            Effect::PersistRecord(record) => {
                let delay = (50 + self.draw.below(self.cluster().plan.record_us)) * 1_000;
                let there = &mut self.cluster_mut().seats[seat];
                there.writing = Some(record.clone());
                let life = there.life;
                self.soon(delay, Happening::RecordWritten { seat, life, record });
            }
            Effect::AskEtcd { .. } => unreachable!("the nodes keep the register"),
            Effect::LeaseChanged { until, .. } => self.lease_changed(seat, until),
            Effect::Learned { state, .. } => self.learned(seat, state),
            Effect::Decided { number, result, .. } => self.decided(seat, number, result),
            Effect::Promote { force, why, .. } => {
                self.check_promotion(seat, force);
                tell!(self, "{} is to take the office: {why}", NAMES[seat]);
                self.begin_job(seat, Job::Promote(force));
            }
            Effect::HandOver { to, .. } => {
                tell!(self, "{} is to hand over to {to}", NAMES[seat]);
                self.begin_job(seat, Job::HandOver);
            }
            // Without services nothing is left to be stopped: the demotion is under way.
            Effect::KeepOffice { .. } => self.happened(Occasion::SwitchoverCancelled),
            Effect::Answer { ticket, result } => self.switch_answered(ticket, result),
            Effect::Committed(state) => self.state_committed(seat, *state),
            Effect::WentBack => {
                let life = self.cluster().seats[seat].life;
                self.soon(1, Happening::WentBack { seat, life });
            }
        }
    }

    pub(super) fn record_written(&mut self, seat: usize, life: u64, record: Box<Record>) {
        if !self.seat_runs(seat, life) {
            return;
        }
        let sequence = record.sequence;
        let there = &mut self.cluster_mut().seats[seat];
        there.writing = None;
        let before = mem::replace(&mut there.record, *record);
        if holder_of(&before) != holder_of(&there.record) {
            // A copy of it would bring an earlier holder of the office back.
            there.older = Some(before.clone());
            there.with_older = there.with_record.take();
        }
        if before.sequence >= sequence {
            let text = format!("{} wrote record {sequence} over {}", NAMES[seat], before.sequence);
            self.fail(Kind::Safety, "L5", text);
        }
        self.note_durable(seat);
        self.tell_seat(seat, life, Box::new(Input::RecordDurable { sequence }));
        let there = &mut self.cluster_mut().seats[seat];
        let is_whole = seat >= WITNESS && there.writing.is_none();
        there.with_record = there.node.clone().filter(|_| is_whole).map(Box::new);
    }

    pub(super) fn set_seat_timer(&mut self, seat: usize) {
        let Some(node) = &self.cluster().seats[seat].node else { return };
        let Some(deadline) = node.next_deadline() else { return };
        let clock = match seat {
            WITNESS.. => &self.cluster().witnesses[seat - WITNESS].clock,
            node => &self.nodes[node].clock,
        };
        let at = clock.moment_of(deadline).clamp(self.now + 1, self.now + TURN);
        let now = self.now;
        let there = &mut self.cluster_mut().seats[seat];
        if there.timer_at <= now || at < there.timer_at {
            there.timer_at = at;
            let life = there.life;
            self.soon(at - now, Happening::Timer { seat, life });
        }
    }

    pub(super) fn seat_timer(&mut self, seat: usize, life: u64) {
        if !self.seat_runs(seat, life) || self.cluster().seats[seat].timer_at > self.now {
            return;
        }
        let paused_until = self.seat_paused_until(seat);
        if paused_until > self.now {
            self.cluster_mut().seats[seat].timer_at = paused_until;
            let delay = paused_until - self.now;
            return self.soon(delay, Happening::Timer { seat, life });
        }
        self.tell_progress(seat);
        self.step_seat(seat, Input::TimePassed);
        let local = self.seat_local(seat);
        let node = self.cluster().seats[seat].node.as_ref();
        if let Some(deadline) = node.and_then(Node::next_deadline).filter(|at| *at <= local) {
            let text = format!("{} spins: {deadline:?} stays past at {local:?}", NAMES[seat]);
            self.fail(Kind::Liveness, "(e)", text);
        }
    }

    /// A witness falls, and is back after a while.
    pub(super) fn witness_falls(&mut self, seat: usize, back_after: u64, power: bool) {
        if self.must_stay(seat) {
            return;
        }
        tell!(self, "{} falls; power: {power}", NAMES[seat]);
        self.occasions_of_witness(power);
        self.end_seat(seat);
        self.cluster_mut().seats[seat].resumes = None;
        let now = self.now;
        let witness = &mut self.cluster_mut().witnesses[seat - WITNESS];
        if power {
            witness.clock.reboot(now);
        }
        witness.starts_at = Some(now + back_after);
        self.soon(back_after, Happening::StartWitness { seat });
    }

    /// A witness stands still; its clock too, or not.
    pub(super) fn witness_pauses(&mut self, seat: usize, length: u64, stands: bool) {
        let until = self.now + length;
        let (ms, node) = (length / MS, NAMES[seat]);
        tell!(self, "{node} stands still for {ms} ms, its clock too: {stands}");
        self.happened(Occasion::WitnessStoodStill);
        let now = self.now;
        let witness = &mut self.cluster_mut().witnesses[seat - WITNESS];
        witness.paused_until = witness.paused_until.max(until);
        if stands {
            witness.clock.stand_still(now, until);
        }
    }

    /// The control plane of a data node stands still as its data loop does.
    pub(crate) fn plane_stands_still(&mut self, node: usize, until: u64) {
        if let Some(cluster) = &mut self.cluster {
            let paused = &mut cluster.plane_paused_until[node];
            *paused = until.max(*paused);
        }
    }
}

fn holder_of(record: &Record) -> Option<&Holder> {
    let (_, state) = record.accepted.as_ref()?;
    state.resource(RESOURCE)?.holder.as_ref()
}

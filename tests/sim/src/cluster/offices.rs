//! What a control plane and the replica beside it tell each other, as the daemon carries it
//! (`replicator/src/cluster.rs`, `replicator/src/resource/in_cluster.rs`).

use failover_core::Time;
use failover_core::cluster::Force;
use failover_core::facts::{Facts, Hindrance};
use failover_core::node::{Input as Fact, Undecided as NotCommitted};
use replicator_core::input::Undecided;
use replicator_core::register::RegisterState;
use replicator_core::{Answer, Command, Effect, Input, Refusal, Ticket};

use crate::cluster::{Happening, NAMES, RESOURCE, WITNESS};
use crate::tell;
use crate::world::{Event, MS, World};

/// How often a daemon looks what its replica is.
const FACTS_EVERY: u64 = 200 * MS;
/// An order to a replica may take so long.
const ROLE_PATIENCE: u64 = 60_000 * MS;

/// What the control plane orders of the replica beside it.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// Take the office.
    Promote(Force),
    /// Give it up.
    HandOver,
}

/// An order that the replica has not answered.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    ticket: u64,
    is_promotion: bool,
    /// A promotion that may use R11a's wait.
    pub waited: bool,
}

fn hindrance(refusal: &Refusal) -> Hindrance {
    Hindrance {
        code: refusal.code.into(),
        rule: refusal.rule.into(),
        why: refusal.why.clone(),
        next: refusal.next.clone(),
    }
}

fn not_up() -> Hindrance {
    Hindrance {
        code: "not_up".into(),
        rule: String::new(),
        why: "the replica is not up here".into(),
        next: "wait".into(),
    }
}

impl World {
    /// The replica of a node is there: it is told what its control plane knows.
    pub(crate) fn replica_is_up(&mut self, node: usize) {
        let there = &mut self.cluster_mut().seats[node];
        there.lease_told = None;
        there.metadata_failed = false;
        let life = there.life;
        if let Some(state) = there.learned.clone() {
            self.tell_replica(node, Input::RegisterLearned(Box::new(state)));
        }
        self.soon(1, Happening::Bell { seat: node, life });
    }

    fn tell_replica(&mut self, node: usize, input: Input) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        let delay = self.draw.below(1_000) * 1_000;
        let now = self.now;
        let there = &mut self.cluster_mut().seats[node];
        there.towards_replica_at = (now + delay).max(there.towards_replica_at + 1);
        let delay = there.towards_replica_at - now;
        self.after(delay, Event::Fact { node, life, input: Box::new(input) });
    }

    pub(super) fn learned(&mut self, seat: usize, state: RegisterState) {
        self.cluster_mut().seats[seat].learned = Some(state.clone());
        self.tell_replica(seat, Input::RegisterLearned(Box::new(state)));
    }

    pub(super) fn decided(
        &mut self,
        seat: usize,
        number: u64,
        result: Result<RegisterState, NotCommitted>,
    ) {
        let result = match result {
            Ok(state) => Ok(Box::new(state)),
            Err(NotCommitted::Newer(state)) => Err(Undecided::Newer(state)),
            Err(NotCommitted::NotNow(why)) => Err(Undecided::NotNow { why }),
        };
        self.tell_replica(seat, Input::Decided { number, result });
    }

    /// The replica proposes a change, told by its order.
    pub(crate) fn proposed(&mut self, node: usize, effect: Effect) {
        let Effect::Propose { number, next, expected, forced } = effect else {
            unreachable!("not a proposal: {effect:?}");
        };
        let resource = RESOURCE.to_string();
        let fact = Fact::ReplicaProposed { resource, number, expected, next: *next, forced };
        self.tell_own_seat(node, fact);
    }

    // ------------------------------------------------------------------ the lease

    pub(super) fn lease_changed(&mut self, seat: usize, until: Option<Time>) {
        let there = &mut self.cluster_mut().seats[seat];
        there.lease = until;
        let life = there.life;
        let delay = self.draw.below(200) * 1_000;
        self.soon(delay, Happening::Bell { seat, life });
    }

    pub(super) fn look_at_lease(&mut self, seat: usize, life: u64) {
        if !self.seat_runs(seat, life) || self.nodes[seat].process.is_none() {
            return;
        }
        let paused_until = self.nodes[seat].paused_until;
        if paused_until > self.now {
            let delay = paused_until - self.now;
            return self.soon(delay, Happening::Bell { seat, life });
        }
        self.tell_lease(seat);
    }

    /// No reply leaves a data loop before it has looked whether the lease is still what it knows
    /// (R5a, R5d), so none is made here before that.
    pub(crate) fn tell_lease(&mut self, node: usize) {
        let Some(cluster) = &mut self.cluster else { return };
        let there = &mut cluster.seats[node];
        if there.lease_told != there.lease {
            there.lease_told = there.lease;
            let until = there.lease;
            self.step(node, Input::LeaseChanged { until });
            self.check_one_serves();
        }
    }

    /// L1: the data loop turns, unless its process stands still.
    pub(super) fn tell_progress(&mut self, seat: usize) {
        if seat < WITNESS && self.data_loop_turns(seat) {
            let at = self.seat_local(seat);
            self.step_seat(seat, Fact::LoopProgressed { resource: RESOURCE.into(), at });
        }
    }

    /// Whether the data loop of a node turns and its disk does not hang, as far as its driver sees.
    fn data_loop_turns(&self, node: usize) -> bool {
        let turns = self.nodes[node].process.is_some() && self.nodes[node].paused_until <= self.now;
        let limit = self.cluster().plan.lease.0;
        turns && self.nodes[node].disk.busy_since().is_none_or(|since| self.now - since <= limit)
    }

    // ------------------------------------------------------------------ facts

    pub(super) fn report_facts(&mut self, seat: usize, life: u64) {
        if !self.seat_runs(seat, life) {
            return;
        }
        let delay = FACTS_EVERY.max(self.seat_paused_until(seat).saturating_sub(self.now));
        self.soon(delay, Happening::Facts { seat, life });
        if delay == FACTS_EVERY && self.nodes[seat].paused_until <= self.now {
            let facts = self.facts_of_replica(seat);
            self.tell_own_seat(seat, Fact::ReplicaReported { resource: RESOURCE.into(), facts });
        }
    }

    fn facts_of_replica(&self, node: usize) -> Facts {
        let Some(process) = &self.nodes[node].process else { return Facts::default() };
        let status = process.replica.status(self.local(node));
        Facts {
            replica: status.replica,
            role: status.role.into(),
            data: status.data.into(),
            serves: process.device.is_some(),
            hindrance: status.hindrance.as_ref().map(hindrance),
            copy: status.register,
            trouble: None,
            reach: Vec::new(),
        }
    }

    // ------------------------------------------------------------------ orders to the replica

    pub(super) fn begin_job(&mut self, seat: usize, job: Job) {
        let there = &self.cluster().seats[seat];
        let life = there.life;
        // What the control plane said before comes before.
        let before = there.towards_replica_at.saturating_sub(self.now);
        let delay = before + 1 + self.draw.below(1_000) * 1_000;
        self.soon(delay, Happening::Job { seat, life, job });
    }

    pub(super) fn do_job(&mut self, seat: usize, life: u64, job: Job) {
        if !self.seat_runs(seat, life) {
            return;
        }
        let paused_until = self.seat_paused_until(seat);
        if paused_until > self.now {
            let delay = paused_until - self.now;
            return self.soon(delay, Happening::Job { seat, life, job });
        }
        let is_promotion = matches!(job, Job::Promote(_));
        let Some(process) = &self.nodes[seat].process else {
            return self.job_ended(seat, is_promotion, Some(not_up()));
        };
        let process = process.life;
        let waited = is_promotion && self.lost_power_and_is_alone(seat);
        let ticket = self.next_ticket();
        let command = match job {
            Job::Promote(force) => Command::Promote {
                old_primary_is_off: force.old_primary_is_off,
                allow_data_loss: force.allow_data_loss,
                alone: false,
            },
            Job::HandOver => Command::Demote,
        };
        tell!(self, "{} tells its replica: {command:?} ({ticket})", NAMES[seat]);
        self.occasions_of_order(command);
        let there = &mut self.cluster_mut().seats[seat];
        there.order = Some(Order { ticket, is_promotion, waited });
        self.soon(ROLE_PATIENCE, Happening::JobIsLate { seat, ticket });
        let input = Input::Ordered { ticket: Ticket(ticket), command };
        self.fact(seat, process, Box::new(input));
    }

    /// The replica answers its control plane; whether that is who asked.
    pub(crate) fn job_answered(
        &mut self,
        node: usize,
        ticket: u64,
        result: &Result<Answer, Box<Refusal>>,
    ) -> bool {
        let Some(cluster) = &mut self.cluster else { return false };
        let there = &mut cluster.seats[node];
        let Some(order) = there.order.take_if(|order| order.ticket == ticket) else { return false };
        let refusal = result.as_ref().err();
        // The metadata failed in the middle: the commit may have landed all the same.
        there.cut_off_wait |= order.waited && refusal.is_some();
        tell!(self, "the replica of {} answers {ticket}: {result:?}", NAMES[node]);
        self.job_ended(node, order.is_promotion, refusal.map(|refusal| hindrance(refusal)));
        true
    }

    pub(super) fn job_is_late(&mut self, seat: usize, ticket: u64) {
        let there = &mut self.cluster_mut().seats[seat];
        if let Some(order) = there.order.take_if(|order| order.ticket == ticket) {
            there.cut_off_wait |= order.waited;
            let why = Hindrance { code: "no_answer".into(), ..not_up() };
            self.job_ended(seat, order.is_promotion, Some(why));
        }
    }

    fn job_ended(&mut self, seat: usize, is_promotion: bool, refused: Option<Hindrance>) {
        let resource = RESOURCE.to_string();
        match (is_promotion, refused) {
            (true, refused) => {
                self.tell_own_seat(seat, Fact::PromotionEnded { resource, refused });
            }
            (false, Some(why)) => {
                self.tell_own_seat(seat, Fact::HandOverRefused { resource, why });
            }
            (false, None) => {}
        }
    }

    /// Whether the office that begins now may have used R11a's wait.
    pub(crate) fn office_used_the_wait(&mut self, node: usize) -> bool {
        let Some(cluster) = &mut self.cluster else { return false };
        let there = &mut cluster.seats[node];
        let was_cut_off = std::mem::take(&mut there.cut_off_wait);
        was_cut_off || there.order.is_some_and(|order| order.waited)
    }
}

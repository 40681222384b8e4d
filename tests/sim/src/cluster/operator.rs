//! The operator of a cluster: moves the office now and then, pauses the automation, sets a node on
//! standby; and undoes what he did. He never takes part in a failover.

use failover_core::cluster::Force;
use failover_core::command::Change;
use failover_core::node::Input;
use failover_core::verdict::Verdict;
use history::draw::mix;

use crate::cluster::{Happening, NAMES, RESOURCE, name};
use crate::failure::Kind;
use crate::tell;
use crate::world::{MS, World};

/// An order may take so long when nothing is in its way.
const PATIENCE: u64 = 30_000 * MS;

/// Of so many orders to move the office one is taken back soon.
const TAKEN_BACK_OF: u64 = 4;
/// Within so long: about what a switchover takes.
const TAKEN_BACK_WITHIN: u64 = 20 * MS;

/// What was ordered and not answered.
#[derive(Debug, Default)]
pub struct Operator {
    pending: Vec<Pending>,
}

impl Operator {
    /// Whether every order has its answer.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

#[derive(Debug)]
struct Pending {
    ticket: u64,
    seat: usize,
    life: u64,
    since: u64,
    what: String,
}

impl World {
    /// One of the operator's orders, at some node.
    pub(super) fn order_something(&mut self, some_time: u64) {
        let seat = self.draw.below(2) as usize;
        let node = self.draw.below(2) as usize;
        let dice = self.draw.below(8);
        let want = |node| Change::Want {
            resource: RESOURCE.into(),
            node: Some(name(node)),
            force: Force::default(),
        };
        let standby = |is_standby| Change::Standby { node: name(node), is_standby };
        let change = match dice {
            0..=3 => want(node),
            4 => Change::Pause(true),
            5 => Change::Pause(false),
            6 => standby(true),
            _ => standby(false),
        };
        // What is switched on is switched off after a while.
        if matches!(dice, 4 | 6) {
            self.soon(some_time, Happening::Tidy);
        }
        self.switch(seat, change);
        // Not drawn: older seeds keep what they are about.
        let word = mix(self.now);
        if dice < 4 && word.is_multiple_of(TAKEN_BACK_OF) {
            self.soon(word % TAKEN_BACK_WITHIN, Happening::TakeBack { seat });
        }
    }

    /// The office is to move to the other node.
    pub(crate) fn switch_over(&mut self) {
        let Some((primary, _)) = self.device() else { return };
        let seat = self.draw.below(2) as usize;
        let change = Change::Want {
            resource: RESOURCE.into(),
            node: Some(name(1 - primary)),
            force: Force::default(),
        };
        self.switch(seat, change);
    }

    pub(super) fn switch(&mut self, seat: usize, change: Change) {
        if self.cluster().seats[seat].node.is_none() {
            return;
        }
        let life = self.cluster().seats[seat].life;
        let ticket = self.next_ticket();
        if !self.parts.orders.has(ticket) && !self.is_calm() {
            return;
        }
        tell!(self, "operator at {}: {change:?} ({ticket})", NAMES[seat]);
        self.occasions_of_switch(&change);
        let (what, since) = (format!("{change:?}"), self.now);
        self.cluster_mut().operator.pending.push(Pending { ticket, seat, life, since, what });
        let why = "the operator".into();
        self.tell_seat(seat, life, Box::new(Input::Ordered { ticket, change, why }));
    }

    /// The operator takes back what he wanted (O3).
    pub(super) fn take_back(&mut self, seat: usize) {
        let (resource, force) = (RESOURCE.into(), Force::default());
        self.switch(seat, Change::Want { resource, node: None, force });
    }

    /// Whether the office is on its way to a node that is not primary.
    pub(crate) fn is_wanted_elsewhere(&self, node: usize) -> bool {
        let newest = self.cluster.as_ref().and_then(|cluster| cluster.newest());
        let entry = newest.and_then(|state| state.resource(RESOURCE));
        entry.is_some_and(|entry| entry.wanted == Some(name(node)))
    }

    pub(super) fn switch_answered(&mut self, ticket: u64, result: Result<(), Verdict>) {
        tell!(self, "the operator's order {ticket}: {result:?}");
        self.cluster_mut().operator.pending.retain(|pending| pending.ticket != ticket);
    }

    /// Whatever is switched is switched back, until that is committed.
    pub(super) fn tidy_switches(&mut self) {
        self.check_switches();
        if self.is_calm() {
            self.soon(1_000 * MS, Happening::Tidy);
        }
        if !self.cluster().operator.pending.is_empty() {
            return;
        }
        let Some(state) = self.cluster().newest() else { return };
        let change = match (state.paused, state.standby.first()) {
            (true, _) => Change::Pause(false),
            (_, Some(node)) => Change::Standby { node: node.clone(), is_standby: false },
            _ => return,
        };
        let seat = self.draw.below(2) as usize;
        self.switch(seat, change);
    }

    /// Orders whose process is gone are never answered.
    pub(super) fn forget_lost_orders(&mut self) {
        let gone: Vec<u64> = self
            .cluster()
            .operator
            .pending
            .iter()
            .filter(|pending| !self.seat_runs(pending.seat, pending.life))
            .map(|pending| pending.ticket)
            .collect();
        let pending = &mut self.cluster_mut().operator.pending;
        pending.retain(|pending| !gone.contains(&pending.ticket));
    }

    /// (e): an order is answered in time once nothing is in its way.
    fn check_switches(&mut self) {
        self.forget_lost_orders();
        let now = self.now;
        let calm = self.checkers.calm_since;
        let pending = &self.cluster().operator.pending;
        let Some(calm) = calm else { return };
        let late = pending.iter().find(|pending| now - pending.since.max(calm) > PATIENCE);
        if let Some(late) = late {
            let text = format!("{} has no answer for {PATIENCE} ns", late.what);
            self.fail(Kind::Liveness, "(e)", text);
        }
    }
}

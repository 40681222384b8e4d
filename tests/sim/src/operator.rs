//! The operator of a pair without a witness. Keeps the promises that the commands ask for: says
//! `old_primary_is_off` only while the other daemon is down, and keeps it down until the promotion
//! is done; never promotes a node of an older lineage against a newer one.

use std::rc::Rc;

use history::PowerLoss;
use replicator_core::metadata::Superblock;
use replicator_core::register::Member;
use replicator_core::{Answer, Command, Input, Refusal, Ticket};

use crate::disk::{Job, Working};
use crate::failure::Kind;
use crate::tell;
use crate::world::{Event, MS, PEER, World};

/// A command is answered in this time, once nothing stands still; or it waits for a fence.
const PATIENCE: u64 = 60_000 * MS;
const PATIENCE_FOR_FENCES: u64 = 400_000 * MS;

/// A command that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: u64,
    node: usize,
    command: Command,
    since: u64,
    /// Keeps the other node off meanwhile.
    holds: bool,
    /// A promotion that may use R11a's wait.
    waited: bool,
    /// A promotion that gives up writes of the other node.
    diverges: bool,
}

/// The operator.
#[derive(Debug, Default)]
pub struct Operator {
    pending: Option<Pending>,
    tickets: u64,
    /// Promote this node next, after a demotion.
    next_promotion: Option<usize>,
    /// Refusals since a node was primary last.
    refusals: u64,
    no_primary_since: Option<u64>,
    /// A promotion that may use R11a's wait was cut off: its commit may have landed all the same.
    cut_off_waits: [bool; 2],
    /// A node that gave up a connection and is to be told to connect again, and when.
    reconnect: Vec<(usize, u64)>,
}

impl World {
    /// The operator looks at both nodes and does what is due.
    pub fn operator_turn(&mut self) {
        let delay = (50 + self.draw.below(250)) * MS;
        self.after(delay, Event::Operator);
        let due: Vec<usize> = self
            .operator
            .reconnect
            .iter()
            .filter(|(_, at)| *at <= self.now)
            .map(|(node, _)| *node)
            .collect();
        self.operator.reconnect.retain(|(_, at)| *at > self.now);
        for node in due {
            self.nodes[node].retry_at = self.now;
            self.dial_in(1);
            self.order(node, Command::Connect(PEER), false);
        }
        self.replace_failed_disks();
        self.replace_impostors();
        if let Some(pending) = self.operator.pending {
            let since = pending.since.max(self.nodes[pending.node].paused_until);
            let process = self.nodes[pending.node].process.as_ref();
            let status = process.map(|p| p.replica.status(self.local(pending.node)));
            // An agent takes its time, and a round that failed is followed by a pause.
            let fences = self.fencing.is_some();
            let patience = if fences { PATIENCE_FOR_FENCES } else { PATIENCE };
            if self.now.saturating_sub(since) > patience {
                let text = format!("{:?} is not answered: {status:?}", pending.command);
                self.fail(Kind::Liveness, "(e)", text);
            }
            return;
        }
        self.decide_diverged();
        if self.operator.pending.is_none() && self.cluster.is_none() {
            self.see_to_a_primary();
        }
    }

    fn replace_failed_disks(&mut self) {
        for node in 0..2 {
            let local = self.local(node);
            let failed = self.nodes[node].process.as_ref().is_some_and(|process| {
                let status = process.replica.status(local);
                !status.has_disk && status.role != "stopping"
            });
            if failed && !self.must_stay(node) && self.draw.chance(30) {
                tell!(self, "operator restarts {}, whose disk failed", self.nodes[node].name);
                self.kill(node);
                let delay = self.draw.below(1000) * MS;
                self.start_in(node, delay);
            }
        }
    }

    fn decide_diverged(&mut self) {
        for node in 0..2 {
            let local = self.local(node);
            let diverged = self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.replica.status(local).data == "diverged");
            if diverged && self.draw.chance(30) {
                self.nodes[node].retry_at = self.now;
                return self.order(node, Command::DiscardDiverged, false);
            }
        }
    }

    fn see_to_a_primary(&mut self) {
        let roles = [0, 1].map(|node| {
            let local = self.local(node);
            let process = self.nodes[node].process.as_ref();
            process.map_or("down", |process| process.replica.status(local).role)
        });
        if roles.iter().any(|&role| role != "secondary" && role != "down") {
            self.operator.no_primary_since = None;
            if roles.contains(&"primary") {
                self.operator.refusals = 0;
            }
            return;
        }
        let since = *self.operator.no_primary_since.get_or_insert(self.now);
        let patience = self.draw.below(600) * MS;
        if self.now - since < patience {
            return;
        }
        let up: Vec<usize> = (0..2).filter(|&node| roles[node] == "secondary").collect();
        if up.is_empty() {
            return;
        }
        let node = self
            .operator
            .next_promotion
            .take()
            .filter(|node| up.contains(node))
            .unwrap_or_else(|| up[self.draw.below(up.len() as u64) as usize]);
        // Where nodes fence each other, the operator leaves that to them.
        let forces = !self.is_calm() && self.fencing.is_none();
        let alone = up.len() == 1 && forces;
        let stuck = self.operator.refusals > 4 && forces;
        if alone && self.draw.chance(30) || stuck && self.draw.chance(30) {
            return self.promote_with_the_other_off(node);
        }
        // The only member was declared bad: somebody has to accept what is left (R11a).
        let hopeless = !self.holds_everything(0) && !self.holds_everything(1);
        let lossy = self.operator.refusals > 30 && up.len() == 2 && hopeless;
        let node = if lossy { usize::from(self.superblock(0).invalid) } else { node };
        if lossy {
            tell!(self, "the operator accepts the loss of data");
            self.accept_loss();
        }
        // The authority went to a disk that was exchanged before it heard of that.
        let (one, two) = (self.superblock(0), self.superblock(1));
        let gone =
            lossy && ![Some(one.replica), Some(two.replica)].contains(&one.register.authority);
        let command =
            Command::Promote { old_primary_is_off: gone, allow_data_loss: lossy, alone: lossy };
        self.order(node, command, false);
    }

    /// Takes the other node down for sure, then promotes this one.
    pub fn promote_with_the_other_off(&mut self, node: usize) {
        let (mine, other) = (self.superblock(node), self.superblock(1 - node));
        if mine.register.basis.lineage < other.register.basis.lineage {
            return;
        }
        let lossy = !self.holds_everything(node);
        if lossy && !self.draw.chance(5) {
            return;
        }
        self.order_forced(node, lossy);
    }

    /// Promotes a node with the other one off, whatever is lost.
    pub fn order_forced(&mut self, node: usize, lossy: bool) {
        // A disk restored from a copy cannot know how old it is while its peer is off.
        let foreign = self.nodes[node].impostor.is_some() || self.is_restored(node);
        if self.nodes[node].process.is_none() || self.operator.pending.is_some() || foreign {
            return;
        }
        if !self.parts.orders.has(self.operator.tickets + 1) {
            self.operator.tickets += 1;
            return;
        }
        // The other one may be about to take the office: two promotions by force are one too many.
        let local = self.local(1 - node);
        let other = &self.nodes[1 - node];
        let role = other.process.as_ref().map(|process| process.replica.status(local).role);
        let is_landing = |working: &Working| matches!(working.job, Job::Meta { .. });
        if role == Some("promoting") || other.disk.working.values().any(is_landing) {
            return;
        }
        if self.nodes[1 - node].process.is_some() {
            if self.draw.chance(50) {
                self.cut_power(1 - node);
            } else {
                self.kill(1 - node);
            }
            let delay = self.draw.below(3000) * MS;
            self.start_in(1 - node, delay);
        }
        self.nodes[1 - node].held = true;
        if lossy {
            tell!(self, "the operator accepts the loss of data");
            self.accept_loss();
        }
        // Who holds the authority need only know that nobody took it meanwhile.
        let mine = self.superblock(node);
        let alone = mine.register.authority == Some(mine.replica) && self.draw.chance(50);
        let old_primary_is_off = !alone;
        let command = Command::Promote { old_primary_is_off, allow_data_loss: lossy, alone };
        let other = self.superblock(1 - node);
        let diverges = !self.holds_everything(node) && other.register.contains(other.replica);
        self.order(node, command, true);
        if let Some(pending) = &mut self.operator.pending {
            pending.diverges = diverges;
        }
    }

    /// R11a: a member that lost its power is promoted although another, silent one may hold what
    /// it lost: flushed data are safe then, others are not.
    pub(crate) fn lost_power_and_is_alone(&self, node: usize) -> bool {
        let mine = self.superblock(node);
        let boot = self.nodes[node].incarnation;
        let member = mine.register.member(mine.replica);
        let local = self.local(node);
        let process = self.nodes[node].process.as_ref().expect("an order has a process");
        let is_alone = process.replica.status(local).peers[0].state != "idle"
            || self.superblock(1 - node).invalid
            || self.superblock(1 - node).syncing;
        is_alone && member.is_some_and(|member| member.incarnation.0 != boot)
    }

    /// A new office begins: what it may have cost is told to the history.
    pub fn tell_history_of_a_wait(&mut self, node: usize) {
        let waited = |pending: &Pending| pending.node == node && pending.waited;
        let mut cut_off = std::mem::take(&mut self.operator.cut_off_waits[node]);
        cut_off |= self.office_used_the_wait(node);
        if cut_off || self.operator.pending.as_ref().is_some_and(waited) {
            tell!(self, "for the history: R11a's wait was used");
            self.clients.history.power_lost(PowerLoss::AllMembers);
        }
        let pending = self.operator.pending.as_ref();
        if pending.is_some_and(|pending| pending.node == node && pending.holds) {
            self.checkers.diverged[node] = false;
            self.checkers.diverged[1 - node] |= pending.is_some_and(|pending| pending.diverges);
        }
    }

    /// Gives a command.
    pub fn order(&mut self, node: usize, command: Command, holds: bool) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        if self.nodes[node].impostor.is_some() {
            return;
        }
        self.operator.tickets += 1;
        let ticket = self.operator.tickets;
        // The end of a disconnection, and what another node is held off for, go with their causes.
        let may_be_left_out = !holds && !matches!(command, Command::Connect(_));
        if may_be_left_out && !self.parts.orders.has(ticket) {
            return;
        }
        if command == Command::DiscardDiverged {
            self.checkers.given_up(node);
        }
        self.occasions_of_order(command);
        tell!(self, "operator to {}: {command:?} ({ticket})", self.nodes[node].name);
        if !matches!(command, Command::Connect(_)) {
            let since = self.now;
            let waited =
                matches!(command, Command::Promote { .. }) && self.lost_power_and_is_alone(node);
            self.operator.pending =
                Some(Pending { ticket, node, command, since, holds, waited, diverges: false });
        }
        let input = Input::Ordered { ticket: Ticket(ticket), command };
        self.fact(node, life, Box::new(input));
    }

    /// Gives a command without waiting for its answer.
    pub fn order_besides(&mut self, node: usize, command: Command) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        self.operator.tickets += 1;
        let ticket = self.operator.tickets;
        tell!(self, "somebody to {}: {command:?} ({ticket})", self.nodes[node].name);
        if self.parts.orders.has(ticket) {
            let input = Input::Ordered { ticket: Ticket(ticket), command };
            self.fact(node, life, Box::new(input));
        }
    }

    /// A core answers a command.
    pub fn operator_answered(
        &mut self,
        node: usize,
        ticket: u64,
        result: Result<Answer, Box<Refusal>>,
    ) {
        tell!(self, "{} answers {ticket}: {result:?}", self.nodes[node].name);
        let Some(pending) = self.operator.pending.filter(|p| p.ticket == ticket) else { return };
        self.operator.pending = None;
        if pending.holds {
            self.nodes[1 - node].held = false;
        }
        self.occasions_of_answer(node, pending.command, result.as_ref().err().map(|r| &**r));
        if let Err(refusal) = &result {
            self.operator.refusals += 1;
            // The metadata failed in the middle: the commit may have landed all the same.
            self.operator.cut_off_waits[node] |= pending.waited && refusal.code == "no_disk";
        }
        match pending.command {
            Command::Disconnect(_) => {
                let at = self.now + self.draw.below(2500) * MS;
                self.operator.reconnect.push((node, at));
            }
            Command::Demote if result.is_ok() && self.draw.chance(85) => {
                self.operator.next_promotion = Some(1 - node);
            }
            _ => {}
        }
    }

    /// The process that was to answer is gone.
    pub fn operator_lost(&mut self, node: usize) {
        if let Some(pending) = self.operator.pending.filter(|pending| pending.node == node) {
            self.operator.pending = None;
            self.operator.cut_off_waits[node] |= pending.waited;
            if pending.holds {
                self.nodes[1 - node].held = false;
            }
        }
    }

    /// The ticket of the next order that somebody gives.
    pub(crate) fn next_ticket(&mut self) -> u64 {
        self.operator.tickets += 1;
        self.operator.tickets
    }

    /// Orders so far, those left out too.
    pub fn orders(&self) -> u64 {
        self.operator.tickets
    }

    /// Whether the node is to take over from one that was demoted for it.
    pub fn is_target_of_switchover(&self, node: usize) -> bool {
        self.operator.next_promotion == Some(node)
    }

    /// Whether the operator waits for an answer.
    pub fn operator_is_busy(&self) -> bool {
        self.operator.pending.is_some()
    }

    /// What a node would find in its superblock now.
    pub fn superblock(&self, node: usize) -> Rc<Superblock> {
        self.nodes[node].disk.superblock().expect("a disk keeps its metadata")
    }

    /// The sets that may be the committed one: the newest on each node's disk. Where one is
    /// plainly newer, only that; while it is being changed, the old one and the new one.
    pub fn durable_sets(&self) -> Vec<Vec<Member>> {
        if let Some(sets) = self.possible_sets() {
            return sets;
        }
        let orders = [0, 1].map(|node| self.superblock(node).register.order());
        let newest = orders[0].max(orders[1]);
        (0..2)
            .filter(|&node| orders[node] == newest)
            .flat_map(|node| self.nodes[node].disk.superblocks())
            .flatten()
            .map(|superblock| superblock.register.set.clone())
            .collect()
    }

    /// Whether a replica is a member as far as anybody may know.
    pub fn holds_everything(&self, node: usize) -> bool {
        let (mine, other) = (self.superblock(node), self.superblock(1 - node));
        let mine_is_newest = mine.register.order() >= other.register.order();
        let newest = if mine_is_newest { &mine } else { &other };
        // A join that it was told of and that was made is the end of its resync (R4d).
        let joined = mine.coming != 0 && mine.coming <= newest.register.generation;
        self.nodes[node].impostor.is_none()
            && !self.is_restored(node)
            && newest.register.contains(mine.replica)
            && !mine.invalid
            && (!mine.syncing || joined)
    }
}

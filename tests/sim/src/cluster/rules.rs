//! The rules of leases, takeovers and voters, each watched where it is kept or broken: at every
//! step of an acceptor, at every promotion that is ordered, at every state that is committed. What
//! shows only when several things go wrong together is so found when the first of them does.

use std::collections::{BTreeMap, BTreeSet};

use failover_core::acceptor::{Lease, Record};
use failover_core::ballot::Ballot;
use failover_core::cluster::{ClusterState, Force, Voter};
use failover_core::message::Message;
use failover_core::node::{Input, Node};
use replicator_core::{Span, Time};

use crate::cluster::{NAMES, RESOURCE, WITNESS, name};
use crate::failure::Kind;
use crate::world::{MS, World};

/// What an acceptor had before a step.
pub(super) struct Before {
    at: Time,
    leases: Vec<Lease>,
    promised: Ballot,
    accepted: Option<Ballot>,
    /// A prepare came in: its number, and the offices that it would take.
    prepare: Option<(Ballot, Vec<String>)>,
}

impl Before {
    pub(super) fn of(node: &Node, at: Time, input: &Input) -> Self {
        let record = node.acceptor().record();
        let prepare = match input {
            Input::Received { envelope, .. } => match &envelope.message {
                Message::Prepare { ballot, takes } => Some((ballot.clone(), takes.clone())),
                _ => None,
            },
            _ => None,
        };
        Self {
            at,
            leases: node.acceptor().leases(at).cloned().collect(),
            promised: record.promised.clone(),
            accepted: accepted(record),
            prepare,
        }
    }

    /// The lease of an office that runs, unless its holder is this node.
    fn lease_against(&self, resource: &str, node: &failover_core::NodeName) -> Option<&Lease> {
        let running = |lease: &&Lease| lease.resource == resource && lease.until > self.at;
        self.leases.iter().filter(running).find(|lease| lease.holder.node != *node)
    }
}

fn accepted(record: &Record) -> Option<Ballot> {
    record.accepted.as_ref().map(|(ballot, _)| ballot.clone())
}

impl World {
    /// L2: while a lease runs here, no promise is raised for a takeover, and none is accepted.
    pub(super) fn check_acceptor(&mut self, seat: usize, before: &Before) {
        let Some(node) = &self.cluster().seats[seat].node else { return };
        let committed = &self.cluster().committed;
        let broken =
            breaks_promise(node, before).or_else(|| takes_leased_office(node, before, committed));
        if let Some(what) = broken {
            self.fail(Kind::Safety, "L2", format!("{} {what}", NAMES[seat]));
        }
        self.check_old_copy(seat, before);
    }

    /// L5: an old copy follows nobody while it was not told what it is, since all others know.
    /// (Then it only learns what is committed.)
    fn check_old_copy(&mut self, seat: usize, before: &Before) {
        let cluster = self.cluster();
        let is_old = cluster.outsider.is_some_and(|it| it.is_old_copy_at(seat));
        let Some(node) = cluster.seats[seat].node.as_ref().filter(|_| is_old) else { return };
        let record = node.acceptor().record();
        let is_told = record.left_out_of.is_some();
        let went_on = record.promised != before.promised || accepted(record) != before.accepted;
        if went_on && !is_told && cluster.went_back_at.is_none() {
            let text = format!("{} goes on from an old copy of its record", NAMES[seat]);
            self.fail(Kind::Safety, "L5", text);
        }
    }

    /// L6, R5d: what has to be so when a node begins to take an office by itself.
    pub(super) fn check_promotion(&mut self, seat: usize, force: Force) {
        let local = self.seat_local(seat);
        let Some(node) = &self.cluster().seats[seat].node else { return };
        let entry = node.state().and_then(|state| state.resource(RESOURCE));
        let Some(entry) = entry else { return };
        let of_another = entry.holder.as_ref().filter(|holder| holder.node != name(seat)).cloned();
        let Some(holder) = of_another else { return };
        if entry.state.sole && force == Force::default() {
            let text = format!("{} takes the office of {holder:?}, the sole member", NAMES[seat]);
            return self.fail(Kind::Safety, "R5d", text);
        }
        let runs = node.acceptor().leases(local).any(|lease| lease.resource == RESOURCE);
        if force == Force::default() && runs {
            let text = format!("{} takes over while the lease of {holder:?} runs", NAMES[seat]);
            self.fail(Kind::Safety, "L6", text);
        }
    }

    /// L7: voters change one at a time, by way of a state in which both majorities count.
    pub(super) fn check_voters_changed(&mut self, state: &ClusterState) {
        let Some(before) = self.cluster().committed.get(&(state.revision - 1)) else { return };
        let is_right = match (&before.next_voters, &state.next_voters) {
            (None, None) => state.voters == before.voters,
            (None, Some(next)) => {
                state.voters == before.voters
                    && missing(next, &state.voters) <= 1
                    && missing(&state.voters, next) <= 1
            }
            (Some(coming), None) => state.voters == *coming,
            (Some(coming), Some(next)) => coming == next && state.voters == before.voters,
        };
        if !is_right {
            let text = format!("voters {:?} after {:?}", state.voters, before.voters);
            self.fail(Kind::Safety, "L7", text);
        }
    }

    /// What an acceptor has accepted is durable now.
    pub(super) fn note_durable(&mut self, seat: usize) {
        let cluster = self.cluster_mut();
        let record = &cluster.seats[seat].record;
        let Some((_, state)) = &record.accepted else { return };
        let states = cluster.durable.entry(state.revision).or_default();
        match states.iter_mut().find(|(known, _)| known == state) {
            Some((_, acceptors)) => {
                acceptors.insert(record.id);
            }
            None => states.push((state.clone(), [record.id].into())),
        }
    }

    /// L5, L7: a state counts as committed only when a majority of its voters has it durably, and
    /// of the coming ones; each acceptor with its own vote. (The end of a change that somebody else
    /// settles needs the new voters alone: its beginning, which both majorities have, makes every
    /// older proposer ask them.)
    pub(super) fn check_majority_has(&mut self, state: &ClusterState) {
        let cluster = self.cluster();
        let states = cluster.durable.get(&state.revision);
        let found = states.and_then(|states| states.iter().find(|(known, _)| known == state));
        let none = BTreeSet::new();
        let acceptors = found.map_or(&none, |(_, acceptors)| acceptors);
        let electorates = [Some(&state.voters), state.next_voters.as_ref()];
        let is_majority = |voters: &Vec<Voter>| {
            let has = voters.iter().filter(|voter| acceptors.contains(&voter.acceptor)).count();
            has * 2 > voters.len()
        };
        if !electorates.into_iter().flatten().all(is_majority) {
            let revision = state.revision;
            let text = format!("revision {revision} counts as committed, durable at {acceptors:?}");
            self.fail(Kind::Safety, "L7", text);
        }
    }

    /// L1: who hangs has no lease for long, unless it has it without end (R5d).
    pub(super) fn check_hung_loops(&mut self) {
        let bearable = Span(self.cluster().plan.lease.0 * 5 / 2 + 500 * MS);
        for (node, called) in NAMES.iter().enumerate().take(WITNESS) {
            let cluster = self.cluster();
            let since = cluster.loop_hangs_since[node]
                .filter(|_| cluster.plane_paused_until[node] <= self.now);
            let Some(since) = since else { continue };
            if self.nodes[node].paused_until <= self.now {
                self.cluster_mut().loop_hangs_since[node] = None;
                continue;
            }
            let lease = cluster.seats[node].lease.filter(|until| *until != Time(u64::MAX));
            let local = self.local(node);
            if local.since(since) > bearable && lease.is_some_and(|until| until > local) {
                let text = format!("{called} has a lease, and hangs");
                self.fail(Kind::Safety, "L1", text);
            }
        }
    }
}

/// How many of these acceptors are not among the others.
fn missing(of: &[Voter], others: &[Voter]) -> usize {
    let is_there = |voter: &Voter| others.iter().any(|other| other.acceptor == voter.acceptor);
    of.iter().filter(|voter| !is_there(voter)).count()
}

fn breaks_promise(node: &Node, before: &Before) -> Option<String> {
    let (ballot, takes) = before.prepare.as_ref()?;
    let promised = &node.acceptor().record().promised;
    if promised != ballot || before.promised == *ballot {
        return None;
    }
    let lease = takes.iter().find_map(|office| before.lease_against(office, &ballot.node))?;
    Some(format!("promises a takeover to {} while a lease runs: {lease:?}", ballot.node))
}

/// What another state took before, and this one only leaves as it is, is taken by neither.
fn takes_leased_office(
    node: &Node,
    before: &Before,
    committed: &BTreeMap<u64, ClusterState>,
) -> Option<String> {
    let record = node.acceptor().record();
    let (ballot, state) = record.accepted.as_ref()?;
    let is_known = node.state().is_some_and(|known| known.revision >= state.revision);
    if before.accepted.as_ref() == Some(ballot) || is_known {
        // What is committed is only learned.
        return None;
    }
    let taken = state.resources.iter().find_map(|entry| {
        let holder = entry.holder.as_ref()?;
        let earlier = committed.get(&(state.revision - 1)).and_then(|it| it.resource(&entry.name));
        if earlier.is_some_and(|earlier| earlier.holder.as_ref() == Some(holder)) {
            return None;
        }
        Some((holder, before.lease_against(&entry.name, &holder.node)?))
    });
    let (holder, lease) = taken?;
    Some(format!("accepts {holder:?} in an office while a lease runs: {lease:?}"))
}

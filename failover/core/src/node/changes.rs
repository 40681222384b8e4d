//! How a change becomes the state: what must be durable first, the proposals of this node, and who
//! is told of what is committed.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec::Vec;

use replicator_core::block::ReplicaId;

use super::{ANSWERS_MAX, Effect, Effects, Node, Undecided, Waiting};
use crate::acceptor::Denial;
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{Cause, ClusterState, Holder, Home};
use crate::command::{Asker, Change, Unfit};
use crate::defect::{Defect, defect};
use crate::detector::Heard;
use crate::message::Message;
use crate::proposer::{Doing, Outcome, Proposal};
use crate::verdict::Verdict;
use crate::wording::in_words;

impl Node {
    // ------------------------------------------------------------------ the record

    /// An answer that may be heard only when the record as it is now is durable.
    pub(super) fn after_durable(&mut self, to: &NodeName, message: Message) {
        if self.answers.len() >= ANSWERS_MAX {
            // The asker repeats itself.
            return;
        }
        self.is_dirty = true;
        let sequence = self.acceptor.record().sequence + 1;
        self.answers.push_back(Waiting { sequence, to: to.clone(), message });
    }

    pub(super) fn persist(&mut self, effects: &mut Effects) {
        if self.is_dirty && self.writing.is_none() {
            self.is_dirty = false;
            let record = Box::new(self.acceptor.next_record());
            self.writing = Some(record.clone());
            effects.push(Effect::PersistRecord(record));
        }
    }

    pub(super) fn record_durable(&mut self, sequence: u64, effects: &mut Effects) {
        self.durable = self.durable.max(sequence);
        if let Some(record) = self.writing.take_if(|record| record.sequence <= sequence) {
            self.acceptor.became_durable(&record);
            self.durable_epoch = record.epoch();
        }
        self.recovered(sequence, effects);
        while self.answers.front().is_some_and(|answer| answer.sequence <= sequence) {
            let Some(answer) = self.answers.pop_front() else { break };
            if let Message::Accepted { ballot } = &answer.message
                && !self.acceptor.first_grant(self.now, ballot)
            {
                continue;
            }
            self.say(&answer.to, answer.message, effects);
        }
    }

    // ------------------------------------------------------------------ proposals

    pub(crate) fn propose(
        &mut self,
        asker: Asker,
        change: Change,
        cause: Cause,
        effects: &mut Effects,
    ) {
        let proposal = Proposal { asker, change, cause };
        if self.has_no_part() {
            let why = Denial::Promised(Ballot::default());
            return self.ended(proposal, Outcome::NotNow(why), effects);
        }
        if let Some(etcd) = self.etcd.as_mut().filter(|_| self.proposer.is_idle()) {
            etcd.begin_first(self.now);
        }
        if let Err(proposal) = self.proposer.propose(self.now, proposal) {
            let why = Denial::Promised(Ballot::default());
            self.ended(proposal, Outcome::NotNow(why), effects);
        }
    }

    pub(super) fn go_on(&mut self, effects: &mut Effects) {
        if self.has_no_part() {
            return self.own.clear();
        }
        if self.etcd.is_some() {
            return self.go_on_with_etcd(effects);
        }
        if !self.may_propose() {
            return;
        }
        loop {
            let mut doing = Vec::new();
            let (known, newer) = (self.known.as_ref(), self.newer_elsewhere());
            self.proposer.go_on(self.now, known, (self.acceptor.accepted(), newer), &mut doing);
            let is_done = doing.is_empty() && self.own.is_empty();
            self.carry_out(doing, effects);
            while let Some(message) = self.own.pop_front() {
                let is_asked = matches!(message, Message::Prepare { .. } | Message::Accept { .. });
                if is_asked && !self.may_follow_itself() {
                    // The proposer repeats itself.
                    continue;
                }
                let (me, process) = (self.config.name.clone(), self.config.process);
                let acceptor = self.acceptor.record().id;
                self.said(&me, process, acceptor, message, effects);
            }
            if is_done {
                return;
            }
        }
    }

    /// L5: the acceptor here follows its own node no earlier than others: a majority, without which
    /// nothing is decided anyway, has to answer this process first.
    fn may_follow_itself(&self) -> bool {
        let is_first = self.is_blank() && self.newer_elsewhere().is_empty();
        self.is_settled || is_first || self.hears_majority() || defect(Defect::StrangersFollowed)
    }

    /// This node knows of no state at all.
    pub(crate) fn is_blank(&self) -> bool {
        self.state().is_none() && self.acceptor.accepted().is_none()
    }

    /// Whether others are asked. The voters may have changed while this node was away (L7): so one
    /// that has accepted something newer is asked before a majority of those is there that voted
    /// when it left, and by its promise this node knows whose majority counts.
    pub(super) fn may_propose(&self) -> bool {
        self.may_follow_itself() || !self.newer_elsewhere().is_empty()
    }

    /// The acceptors that have accepted something newer than what this process began with.
    pub(crate) fn newer_elsewhere(&self) -> Vec<(NodeName, u128)> {
        if self.is_settled || self.etcd.is_some() {
            return Vec::new();
        }
        let own = self.state().or(self.acceptor.accepted()).map_or(0, |own| own.revision);
        let is_newer = |(name, node): &(&NodeName, &Heard)| {
            node.heartbeat.accepted > own
                && !node.went_back()
                && self.detector.has_answered(name)
                && self.detector.hears_now(self.now, name)
        };
        let newer = self.detector.nodes().filter(is_newer);
        newer.map(|(name, node)| (name.clone(), node.acceptor())).collect()
    }

    pub(super) fn carry_out(&mut self, doing: Vec<Doing>, effects: &mut Effects) {
        for doing in doing {
            match doing {
                Doing::Say(node, message) => self.say(&node, message, effects),
                Doing::Commit(ballot, state) => {
                    let nodes: Vec<NodeName> =
                        state.all_voters().map(|voter| voter.node.clone()).collect();
                    let is_new = self.known.as_ref().is_none_or(|known| known.0 < ballot);
                    self.learn(ballot, state, effects);
                    for node in nodes.iter().filter(|_| is_new) {
                        self.teach(node, effects);
                    }
                }
                Doing::Granted(mut granted) => {
                    // L1: no loop that hangs keeps its lease by what its control plane changes.
                    granted.offices.retain(|(resource, _)| self.loop_lives(resource));
                    self.holder.accepted(&granted);
                }
                Doing::Ended(proposal, outcome) => self.ended(proposal, outcome, effects),
            }
        }
    }

    /// This process.
    pub(crate) fn me(&self) -> Holder {
        Holder { node: self.config.name.clone(), process: self.config.process }
    }

    pub(crate) fn learn(&mut self, ballot: Ballot, state: ClusterState, effects: &mut Effects) {
        let epoch = self.epoch();
        if epoch.number > 0 && state.epoch != epoch {
            // Said before this node entered its present epoch.
            return;
        }
        // The record of an old copy stays as it is (L5): what is committed is only known.
        if !self.is_old_copy && self.acceptor.learn(self.now, &ballot, &state) {
            self.is_dirty = true;
        }
        if self.known.as_ref().is_some_and(|known| known.0 >= ballot) {
            return;
        }
        let is_change = self.state().is_none_or(|known| known.revision < state.revision);
        self.detector.set_patience(state.lease);
        for (name, local) in &mut self.locals {
            let holder = |state: &ClusterState| state.resource(name)?.holder.clone();
            let before = self.known.as_ref().and_then(|(_, known)| holder(known));
            if before != holder(&state) {
                local.holder_since = self.now;
            }
        }
        self.known = Some((ballot, state.clone()));
        if is_change {
            self.known_since = self.now;
            effects.push(Effect::Committed(Box::new(state)));
        }
        self.tell_replicas(effects);
    }

    /// What the replicas here go by; nothing before a quorum round of this process (R14).
    fn tell_replicas(&mut self, effects: &mut Effects) {
        let Some((_, state)) = &self.known else { return };
        if !self.is_settled {
            return;
        }
        for (name, local) in &mut self.locals {
            let Some(entry) = state.resource(name) else { continue };
            if entry.state.generation == 0 {
                // No origin yet: what the disk says comes first.
                continue;
            }
            if local.state_told.as_ref() != Some(&entry.state) {
                local.state_told = Some(entry.state.clone());
                effects
                    .push(Effect::Learned { resource: name.clone(), state: entry.state.clone() });
            }
        }
    }

    pub(crate) fn ended(&mut self, proposal: Proposal, outcome: Outcome, effects: &mut Effects) {
        if outcome == Outcome::Committed && !self.is_settled && self.known.is_some() {
            self.is_settled = true;
            self.tell_replicas(effects);
        }
        match proposal.asker {
            Asker::Own => {}
            Asker::Replica { resource, number } => {
                let now = self.state().and_then(|state| state.resource(&resource));
                let result = match (outcome, now) {
                    (Outcome::Committed, Some(entry)) => Ok(entry.state.clone()),
                    (Outcome::NotNow(why), _) => Err(Undecided::NotNow(in_words(&why))),
                    (_, Some(entry)) => Err(Undecided::Newer(Box::new(entry.state.clone()))),
                    (_, None) => {
                        Err(Undecided::NotNow("the register has no such resource".to_string()))
                    }
                };
                effects.push(Effect::Decided { resource, number, result });
            }
            Asker::Operator(ticket) => {
                let result = match outcome {
                    Outcome::Committed | Outcome::Unfit(Unfit::Already) => Ok(()),
                    Outcome::Unfit(unfit) => Err(self.unfit(&unfit)),
                    Outcome::NotNow(why) => Err(Verdict::new(
                        self.now,
                        "not_now",
                        "L2",
                        in_words(&why),
                        "try again in a moment".into(),
                    )),
                };
                effects.push(Effect::Answer { ticket, result });
            }
        }
    }

    /// Where the replicas of a resource live, as far as their nodes were heard.
    pub(crate) fn homes(&self, resource: &str) -> Vec<Home> {
        let own = self.locals.get(resource).map(|local| (&self.config.name, &local.facts));
        let others = self.detector.nodes().filter_map(|(name, node)| {
            let facts = node.heartbeat.facts.iter().find(|(of, _)| of == resource)?;
            Some((name, &facts.1))
        });
        own.into_iter()
            .chain(others)
            .filter(|(_, facts)| facts.replica != 0)
            .map(|(node, facts)| Home { node: node.clone(), replica: ReplicaId(facts.replica) })
            .collect()
    }
}

//! Signs of life, and the lease of this node: when it is renewed, and until when it counts.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Time;

use super::{Effect, Effects, Node};
use crate::ballot::NodeName;
use crate::cluster::{ClusterState, Voter};
use crate::defect::{Defect, defect};
use crate::holder::office_until;
use crate::message::{Heartbeat, Message, RecordSeen};

impl Node {
    pub(super) fn beat(&mut self, effects: &mut Effects) {
        if self.now < self.next_beat {
            return;
        }
        self.next_beat = self.now + self.config.beat(self.lease());
        self.beats += 1;
        self.beat_times.push_back((self.beats, self.now));
        if self.beat_times.len() > 16 {
            self.beat_times.pop_front();
        }
        if self.etcd.is_none() {
            self.renew(effects);
        }
        let nodes = self.others();
        for node in nodes {
            let heartbeat = self.heartbeat(&node);
            self.say(&node, Message::Heartbeat(heartbeat), effects);
        }
    }

    /// All other nodes of configuration and register.
    pub(crate) fn others(&self) -> Vec<NodeName> {
        let configured = self.config.nodes.iter().map(|(name, _)| name.clone());
        let voters = self.state().into_iter().flat_map(ClusterState::all_voters);
        let mut all: Vec<NodeName> =
            configured.chain(voters.map(|voter| voter.node.clone())).collect();
        all.sort();
        all.dedup();
        all.retain(|name| *name != self.config.name);
        all
    }

    fn heartbeat(&self, to: &NodeName) -> Heartbeat {
        let remaining = |lease: &crate::acceptor::Lease| {
            (lease.resource.clone(), lease.holder.node.clone(), lease.until.since(self.now))
        };
        let echo = self.detector.node(to).filter(|node| node.heartbeat.number > 0);
        Heartbeat {
            number: self.beats,
            echo: echo.map(|node| (node.heartbeat.number, self.now.since(node.heartbeat_at))),
            echo_of: self.detector.node(to).map_or(0, |node| node.process),
            revision: self.state().map_or(0, |state| state.revision),
            accepted: self.acceptor.accepted().map_or(0, |state| state.revision),
            is_blank: self.acceptor.accepted().is_none(),
            leases: self.acceptor.leases(self.now).map(remaining).collect(),
            heard: self
                .detector
                .nodes()
                .filter_map(|(name, node)| Some((name.clone(), self.now.since(node.at?))))
                .collect(),
            facts: self
                .locals
                .iter()
                .map(|(name, local)| (name.clone(), local.facts.clone()))
                .collect(),
            records: self.detector.records().into_iter().chain(self.own_verdict()).collect(),
        }
    }

    /// That the own record is an old copy (L5): the others may never have heard a newer one.
    fn own_verdict(&self) -> Option<RecordSeen> {
        self.is_old_copy.then(|| RecordSeen {
            node: self.config.name.clone(),
            acceptor: self.acceptor.record().id,
            process: self.config.process,
            sequence: self.durable,
            went_back: true,
        })
    }

    /// L1: whether the data loop of a resource made progress a short time ago.
    pub(super) fn loop_lives(&self, resource: &str) -> bool {
        let local = self.locals.get(resource);
        local.is_some_and(|local| self.now.since(local.progress_at) < self.lease())
            || defect(Defect::ProgressIgnored)
    }

    /// The offices that this process holds, whose loop makes progress (L1) and whose lease it can
    /// use.
    pub(crate) fn offices(&self) -> Vec<(String, u64)> {
        let Some(state) = self.state() else { return Vec::new() };
        // One that hears nobody would go on extending a lease that it cannot use: after its end it
        // asks only while it hears a majority.
        let is_deaf = self.no_majority_since.is_some();
        // And what the own acceptor alone grants keeps up a takeover that it has to accept.
        let is_taken = |name: &String| {
            let next = self.proposer.to_settle();
            next.is_some_and(|next| {
                !next.leaves_office(name, &self.me()) && next.by != self.config.name
            })
        };
        let is_of_use = |name: &String| {
            let is_running = self.lease_until(name).is_some_and(|until| until > self.now);
            is_running || !is_deaf && !is_taken(name)
        };
        // An office that nobody serves is let go, so that others may take it, or finish taking it.
        let is_news = self.now.since(self.known_since) < self.lease();
        let is_alive = |name: &String| {
            self.locals.get(name).is_some_and(|local| {
                self.loop_lives(name) && (local.facts.role != "secondary" || is_news)
            })
        };
        let offices = state.offices_of(&self.me()).into_iter();
        offices.filter(|(resource, _)| is_alive(resource) && is_of_use(resource)).collect()
    }

    /// Asks every acceptor for the lease.
    pub(crate) fn renew(&mut self, effects: &mut Effects) {
        let offices = self.offices();
        if offices.is_empty() {
            return;
        }
        let request = self.holder.ask(self.now, &offices);
        let Some(state) = self.state() else { return };
        let voters_since = state.voters_since;
        let voters: Vec<Voter> = state.all_voters().cloned().collect();
        for voter in voters {
            let message = Message::Renew { request, offices: offices.clone(), voters_since };
            self.say(&voter.node, message, effects);
        }
    }

    /// Until when this node may act as primary of a resource.
    pub fn lease_until(&self, resource: &str) -> Option<Time> {
        if self.has_no_part() {
            return None;
        }
        let state = self.state()?;
        if self.etcd.as_ref().is_some_and(|etcd| etcd.alien().is_some()) {
            // R11c: what was lost may have named somebody else.
            return None;
        }
        let lease = match &self.etcd {
            Some(etcd) => etcd.until(state.resource(resource)?.state.tenure, resource),
            None => self.holder.until(state, resource),
        };
        office_until(state, self.proposer.open(), (&self.me(), resource), lease)
    }

    fn is_holder(&self, resource: &str) -> bool {
        let entry = self.state().and_then(|state| state.resource(resource));
        entry.is_some_and(|entry| entry.holder.as_ref() == Some(&self.me()))
    }

    pub(super) fn tell_leases(&mut self, effects: &mut Effects) {
        let names: Vec<String> = self.locals.keys().cloned().collect();
        for resource in names {
            let until = self.lease_until(&resource);
            if until.is_none() && !self.is_holder(&resource) {
                self.holder.forget(&resource);
                if let Some(etcd) = &mut self.etcd {
                    etcd.forget(&resource);
                }
            }
            let local = self.locals.get_mut(&resource).expect("it was just listed");
            if local.lease_told != until {
                let was_endless = local.lease_told == Some(Time(u64::MAX));
                local.lease_told = until;
                // An office without end is over before the change that ends it leaves (R5d): the
                // process may stop between any two effects.
                let at = if was_endless { 0 } else { effects.len() };
                effects.insert(at, Effect::LeaseChanged { resource, until });
            }
        }
    }

    pub(crate) fn is_data_node(&self) -> bool {
        !self.config.is_witness()
    }
}

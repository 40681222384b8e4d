//! A new epoch: when a majority of the voters is gone for ever, an operator has one node that is
//! left begin again with those who remain (`recover --without`). Who belongs to which epoch: the
//! old members are refused when they come back, are told, and never vote again.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::acceptor::Record;
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{Cause, ClusterState, Epoch, Voter};
use crate::message::{Envelope, Message};
use crate::node::{Effect, Effects, Node};
use crate::verdict::Verdict;

/// A node must have been silent for so long, while this one listened, to be called gone.
pub const GONE_AFTER: Span = Span::from_ms(5_000);

/// A new epoch that is being made durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Recovery {
    /// The record that has it.
    sequence: u64,
    ticket: u64,
    ballot: Ballot,
    state: ClusterState,
}

/// Somebody who knows the key and the name of a node, and is not that node of this cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stranger {
    /// When it was heard last.
    pub at: Time,
    /// Its acceptor.
    pub acceptor: u128,
    /// Its epoch.
    pub epoch: Epoch,
    /// What is strange about it.
    pub why: Strange,
}

/// Why a node's messages are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Strange {
    /// It was left out when a later epoch began.
    EarlierEpoch,
    /// This node was.
    LaterEpoch,
    /// Another register of the same epoch: of another cluster, or of a second `recover`.
    OtherRegister,
    /// The node that is recorded under this name is heard too.
    SecondOfItsName,
}

impl Record {
    /// The epoch of its accepted state.
    pub fn epoch(&self) -> Epoch {
        self.accepted.as_ref().map_or_else(Epoch::default, |(_, state)| state.epoch)
    }
}

impl Node {
    /// The epoch of this node; number 0 before it knows of any.
    pub fn epoch(&self) -> Epoch {
        self.acceptor.record().epoch()
    }

    /// The later epoch that began without this node.
    pub fn left_out_of(&self) -> Option<Epoch> {
        self.acceptor.record().left_out_of.filter(|epoch| *epoch != self.epoch())
    }

    /// Whether this node votes, proposes and holds nothing: it was left out of a later epoch, or
    /// its record is an old copy (L5).
    pub(crate) fn has_no_part(&self) -> bool {
        self.is_old_copy || self.left_out_of().is_some()
    }

    /// Who was heard under a node's name a short time ago and is refused.
    pub fn stranger(&self, name: &NodeName) -> Option<&Stranger> {
        let is_recent = |it: &&Stranger| self.now.since(it.at) < GONE_AFTER;
        self.strangers.get(name).filter(is_recent)
    }

    // ------------------------------------------------------------------ who belongs here

    /// Whether a message is of this register and epoch, from the one node of its name.
    pub(crate) fn belongs(
        &mut self,
        from: &NodeName,
        envelope: &Envelope,
        effects: &mut Effects,
    ) -> bool {
        let (mine, theirs) = (self.epoch(), envelope.epoch);
        let why = if mine.number == 0 || theirs.number == 0 || mine == theirs {
            match self.is_second(from, envelope) {
                false if self.left_out_of().is_none() => {
                    // It may have been refused until it was silent, or blank, or admitted.
                    let is_it = |it: &Stranger| it.acceptor == envelope.acceptor;
                    if self.strangers.get(from).is_some_and(is_it) {
                        self.strangers.remove(from);
                    }
                    return true;
                }
                false => Strange::EarlierEpoch,
                true => Strange::SecondOfItsName,
            }
        } else if mine.number == theirs.number {
            Strange::OtherRegister
        } else if mine.number > theirs.number {
            Strange::EarlierEpoch
        } else {
            Strange::LaterEpoch
        };
        let (acceptor, epoch) = (envelope.acceptor, envelope.epoch);
        let stranger = Stranger { at: self.now, acceptor, epoch, why };
        self.strangers.insert(from.clone(), stranger);
        match &envelope.message {
            Message::Heartbeat(_) if why == Strange::EarlierEpoch => self.teach(from, effects),
            Message::Learn { ballot, state } if state.epoch.number > mine.number => {
                self.later_epoch(ballot, state, effects);
            }
            _ => {}
        }
        false
    }

    /// Two answer under one name: an old machine came back after it was replaced.
    fn is_second(&self, from: &NodeName, envelope: &Envelope) -> bool {
        let Some(state) = self.state() else { return false };
        let Some(voter) = state.all_voters().find(|voter| voter.node == *from) else {
            return false;
        };
        !state.is_voter(envelope.acceptor) && self.hears_voter(voter)
    }

    /// A later epoch began: with this acceptor, which enters it, or without, which ends its vote.
    fn later_epoch(&mut self, ballot: &Ballot, state: &ClusterState, effects: &mut Effects) {
        if self.is_old_copy {
            return;
        }
        let id = self.acceptor.record().id;
        let was_voter = self.acceptor.accepted().is_some_and(|old| old.is_voter(id));
        self.is_dirty = true;
        if was_voter && !state.is_voter(id) {
            return self.leave_out(state.epoch);
        }
        self.acceptor.enter_epoch(self.now, ballot, state);
        self.begin_epoch(ballot.clone(), state.clone(), effects);
    }

    fn begin_epoch(&mut self, ballot: Ballot, state: ClusterState, effects: &mut Effects) {
        self.known = Some((ballot, state.clone()));
        self.known_since = self.now;
        self.is_settled = false;
        self.proposer.start_anew(self.now);
        effects.push(Effect::Committed(alloc::boxed::Box::new(state)));
    }

    /// That this node has no part in the present epoch, if so.
    pub(crate) fn check_epoch(&self) -> Result<(), Verdict> {
        if self.is_old_copy {
            let why = "the record of this node's acceptor is an old copy: others heard a newer one \
                       of it before it started";
            let next = match &self.etcd {
                None => format!(
                    "stop replicatord here, remove the two files register.* of its state \
                     directory, start it, then on a member: replctl node replace {}",
                    self.config.name
                ),
                // Nobody votes there: a node without a record just takes part.
                Some(_) => "stop replicatord here, remove the directory register-etcd of its \
                            state directory, and start it"
                    .to_string(),
            };
            return Err(self.say_no("went_back", "L5", why, &next));
        }
        let Some(epoch) = self.left_out_of() else { return Ok(()) };
        let why = format!(
            "this node belongs to epoch {}; epoch {} began without it (replctl recover)",
            self.epoch().number,
            epoch.number
        );
        let next = format!(
            "stop replicatord here, remove the two files register.* of its state directory, start \
             it, then on a member: replctl node replace {}",
            self.config.name
        );
        Err(self.say_no("earlier_epoch", "L5", &why, &next))
    }

    // ------------------------------------------------------------------ recover

    /// The voters that are left without those, or why they cannot be left out.
    pub fn check_recover(&self, without: &[NodeName]) -> Result<Vec<Voter>, Verdict> {
        self.refuse_with_etcd("there is no majority of nodes to recover")?;
        self.check_epoch()?;
        let me = &self.config.name;
        if !self.is_data_node() {
            let why = "this node is a witness";
            return Err(self.say_no("witness", "", why, "give this command on a data node"));
        }
        let state = self.acceptor.accepted().ok_or_else(|| self.no_register())?;
        let own = self.acceptor.record().id;
        if !state.is_voter(own) {
            let why = format!("the acceptor of {me} has no vote itself");
            let next = "give this command on a data node that has";
            return Err(self.say_no("no_vote", "L5", &why, next));
        }
        let is_known = |name: &&NodeName| state.all_voters().any(|voter| voter.node == **name);
        let known: Vec<String> = state.all_voters().map(|voter| voter.node.to_string()).collect();
        if let Some(name) = without.iter().find(|name| !is_known(name)) {
            let (why, next) =
                (format!("{name} is no voter"), format!("it has: {}", known.join(", ")));
            return Err(self.say_no("unknown_node", "", &why, &next));
        }
        if without.is_empty() || without.contains(me) {
            let why = format!("{me} is to go on, and others are to be named");
            return Err(self.say_no("wrong_nodes", "", &why, "name the nodes that are gone"));
        }
        if self.no_majority_since.is_none() {
            let why = "a majority of the voters is there: nothing has to be recovered";
            let next = "replctl node replace NODE, for a node that is dead";
            return Err(self.say_no("has_majority", "L7", why, next));
        }
        self.check_gone(without)?;
        self.check_remaining(state, without)
    }

    /// None of the named is heard, and would have been.
    fn check_gone(&self, without: &[NodeName]) -> Result<(), Verdict> {
        for name in without {
            let silence = self.detector.silence(self.now, name);
            let strange = self.stranger(name).map(|it| self.now.since(it.at));
            if let Some(span) =
                silence.into_iter().chain(strange).min().filter(|it| *it < GONE_AFTER)
            {
                let why = format!("{name} is not gone: it was heard {} ms ago", span.as_ms());
                let next = format!(
                    "leave it in; or switch it off for ever and wait {} s",
                    GONE_AFTER.as_ms() / 1000
                );
                return Err(self.say_no("not_gone", "L6", &why, &next));
            }
        }
        let listened = self.now.since(self.started_at);
        if listened < GONE_AFTER {
            let why = format!("this node has listened for {} ms only", listened.as_ms());
            let next = format!("wait until it has for {} s", GONE_AFTER.as_ms() / 1000);
            return Err(self.say_no("just_started", "", &why, &next));
        }
        Ok(())
    }

    /// All others are heard, and this node has what any of them has accepted.
    fn check_remaining(
        &self,
        state: &ClusterState,
        without: &[NodeName],
    ) -> Result<Vec<Voter>, Verdict> {
        let mut left: Vec<Voter> =
            state.voters.iter().filter(|voter| !without.contains(&voter.node)).cloned().collect();
        let own = self.acceptor.record().id;
        left.retain(|voter| voter.node != self.config.name || voter.acceptor == own);
        if let Some(voter) = left.iter().find(|voter| !self.hears_voter(voter)) {
            let why = format!("{} is not heard and not named as gone", voter.node);
            let next = "bring it back, or name it too";
            return Err(self.say_no("not_heard", "L6", &why, next));
        }
        for voter in &left {
            let accepted =
                self.detector.node(&voter.node).map_or(0, |node| node.heartbeat.accepted);
            if accepted > state.revision {
                let why = format!(
                    "{} has accepted revision {accepted}, this node {}",
                    voter.node, state.revision
                );
                let next =
                    format!("give this command on {}, or bring another node back", voter.node);
                return Err(self.say_no("newer_elsewhere", "R14", &why, &next));
            }
        }
        if !left.iter().any(|voter| voter.acceptor == own) {
            // It was about to come in when the majority was lost: the operator's word admits it.
            let witness = !self.is_data_node();
            left.push(Voter { node: self.config.name.clone(), acceptor: own, witness });
            left.sort();
        }
        Ok(left)
    }

    pub(crate) fn recover(
        &mut self,
        ticket: u64,
        without: &[NodeName],
        why: String,
        effects: &mut Effects,
    ) {
        let voters = match self.check_recover(without) {
            _ if self.recovery.is_some() => {
                let why = "a recovery is under way";
                Err(self.say_no("under_way", "", why, "wait for it"))
            }
            checked => checked,
        };
        let voters = match voters {
            Ok(voters) => voters,
            Err(verdict) => {
                return effects.push(Effect::Answer { ticket, result: Err(verdict) });
            }
        };
        let state = self.recovered_state(voters, without, why);
        let record = self.acceptor.record();
        let known = self.known.as_ref().map_or(0, |(ballot, _)| ballot.counter);
        let highest = record.promised.counter.max(known).max(self.proposer.counter());
        let (node, process) = (self.config.name.clone(), self.config.process);
        let ballot = Ballot { counter: highest.saturating_add(1), node, process };
        // As for an answer: the next record that is written has it.
        let sequence = record.sequence + 1;
        self.acceptor.enter_epoch(self.now, &ballot, &state);
        self.is_dirty = true;
        self.recovery = Some(Recovery { sequence, ticket, ballot, state });
    }

    /// The first state of the new epoch: the last one of the old, with those who are left.
    ///
    /// Who is gone may have served on, unheard, and have acknowledged what nobody here has: every
    /// resource begins a new lineage, by which replicas that come back see that (R11d).
    fn recovered_state(
        &self,
        voters: Vec<Voter>,
        without: &[NodeName],
        why: String,
    ) -> ClusterState {
        let mut state = self.acceptor.accepted().expect("it was checked").clone();
        state.revision += 1;
        let founder = self.acceptor.record().id;
        state.epoch = Epoch { number: state.epoch.number + 1, founder };
        state.by = self.config.name.clone();
        (state.voters, state.next_voters) = (voters, None);
        state.voters_since = state.revision;
        for entry in state.resources.iter_mut().filter(|entry| entry.state.generation > 0) {
            entry.state.generation += 1;
            entry.state.basis.lineage += 1;
            entry.state.basis.taker_was_member = true;
            if entry.wanted.as_ref().is_some_and(|node| without.contains(node)) {
                (entry.wanted, entry.force) = (None, Default::default());
            }
        }
        let gone: Vec<&str> = without.iter().map(NodeName::as_str).collect();
        let what = format!("recovered without {}", gone.join(", "));
        state.cause = Cause { what, resource: String::new(), why };
        state
    }

    /// The new epoch is durable here: only now anybody hears of it.
    pub(crate) fn recovered(&mut self, sequence: u64, effects: &mut Effects) {
        let Some(done) = self.recovery.take_if(|it| it.sequence <= sequence) else { return };
        self.begin_epoch(done.ballot, done.state, effects);
        effects.push(Effect::Answer { ticket: done.ticket, result: Ok(()) });
    }
}

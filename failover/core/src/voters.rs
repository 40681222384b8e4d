//! Who may vote: whether a node can be replaced, added or removed now, and by which change of the
//! register (L5, L7). Only an acceptor that answers is admitted, by the voters that are there.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::ballot::NodeName;
use crate::cluster::{ClusterState, Resource, Voter};
use crate::command::Change;
use crate::node::Node;
use crate::recovery::Strange;
use crate::verdict::Verdict;

/// What an operator wants of the voters.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum VotersWish {
    /// Admit the acceptor that now answers as this node in place of the recorded one.
    Replace(NodeName),
    /// Admit a node that had no vote.
    Add(NodeName),
    /// Take a node's vote away: a witness's, or that of a data node that was stopped for good.
    Remove(NodeName),
}

/// Cure for an acceptor that has a register which is not this cluster's.
fn start_blank(name: &NodeName) -> String {
    format!(
        "stop replicatord on {name}, remove the two files register.* of its state directory, start \
         it, and order this again"
    )
}

impl Node {
    /// The change of the register that does what an operator wants, or why it cannot be done now.
    pub fn check_voters(&self, wish: &VotersWish) -> Result<Change, Verdict> {
        self.refuse_with_etcd("no node is replaced, added or removed")?;
        self.check_epoch()?;
        let state = self.state().ok_or_else(|| self.no_register())?;
        if state.next_voters.is_some() {
            let next = "wait for it, then order it again";
            return Err(self.say_no("voters_change", "L7", "another change is under way", next));
        }
        let recorded = |name: &NodeName| state.voters.iter().find(|voter| voter.node == *name);
        let mut next = state.voters.clone();
        match wish {
            VotersWish::Replace(name) => {
                let old = recorded(name);
                next.retain(|voter| voter.node != *name);
                next.push(self.candidate(state, name, old)?);
            }
            VotersWish::Add(name) => {
                if recorded(name).is_some() {
                    let why = format!("{name} is a voter already");
                    let next = format!("replctl node replace {name}, if it lost its state");
                    return Err(self.say_no("already", "", &why, &next));
                }
                next.push(self.candidate(state, name, None)?);
            }
            VotersWish::Remove(name) => {
                self.check_removal(state, name)?;
                next.retain(|voter| voter.node != *name);
            }
        }
        next.sort();
        self.check_majorities(state, &next)?;
        Ok(Change::Voters { expected: state.voters.clone(), next })
    }

    /// The acceptor that answers as a node, if it may be admitted.
    fn candidate(
        &self,
        state: &ClusterState,
        name: &NodeName,
        recorded: Option<&Voter>,
    ) -> Result<Voter, Verdict> {
        let configured = self.config.nodes.iter().find(|(node, _)| node == name);
        let Some((_, witness)) = configured else {
            let why = format!("the configuration of {} has no node {name}", self.config.name);
            let next = "write it into the file of every node and restart the daemons one by one";
            return Err(self.say_no("unknown_node", "", &why, next));
        };
        let (node, acceptor) = (name.clone(), self.answering(name)?);
        let voter = Voter { node, acceptor, witness: *witness };
        if recorded.is_some_and(|old| old.acceptor == acceptor) {
            let went_back = self.detector.node(name).is_some_and(|node| node.went_back());
            if went_back {
                let why = format!("{name} answers with an old copy of its register");
                return Err(self.say_no("went_back", "L5", &why, &start_blank(name)));
            }
            let why = format!("the acceptor that answers as {name} is the recorded one");
            let next = "nothing has to be replaced: replctl status says whether all is well";
            return Err(self.say_no("is_recorded", "L5", &why, next));
        }
        if let Some(twin) = state.all_voters().find(|voter| voter.acceptor == acceptor) {
            let why = format!("{name} answers with a copy of the register of {}", twin.node);
            return Err(self.say_no("is_copy", "L5", &why, &start_blank(name)));
        }
        if recorded.is_none() {
            self.check_known_everywhere(state, name)?;
        }
        Ok(voter)
    }

    /// The acceptor that answers as a node.
    fn answering(&self, name: &NodeName) -> Result<u128, Verdict> {
        if *name == self.config.name {
            return Ok(self.acceptor.record().id);
        }
        if let Some(stranger) = self.stranger(name)
            && stranger.why != Strange::SecondOfItsName
        {
            let why = format!(
                "{name} is not blank: it belongs to {}",
                match stranger.why {
                    Strange::OtherRegister =>
                        "another register (another cluster, or a second \
                                               recover)",
                    _ => "another epoch",
                }
            );
            return Err(self.say_no("foreign", "L5", &why, &start_blank(name)));
        }
        let heard = self.detector.node(name).filter(|_| self.detector.hears_now(self.now, name));
        // Any message will do: the first of a new process may be an answer.
        match heard {
            Some(node) => Ok(node.acceptor()),
            None => {
                let why = format!("{name} is not heard");
                let next = format!("start replicatord on {name}, then order this again");
                Err(self.say_no("not_heard", "L5", &why, &next))
            }
        }
    }

    /// A new voter that some voter cannot reach would count for that one as missing.
    fn check_known_everywhere(&self, state: &ClusterState, name: &NodeName) -> Result<(), Verdict> {
        let lacks = |voter: &&Voter| {
            let is_other = voter.node != self.config.name && voter.node != *name;
            is_other
                && self.hears_voter(voter)
                && self.detector.node(&voter.node).is_some_and(|node| {
                    let heard = node.heartbeat.heard.iter().find(|(other, _)| other == name);
                    heard.is_none_or(|(_, silence)| *silence >= self.detector.patience())
                })
        };
        let Some(voter) = state.voters.iter().find(lacks) else { return Ok(()) };
        let why = format!("{} does not hear {name}", voter.node);
        let next = format!(
            "write {name} into the configuration of {} too and restart its daemon",
            voter.node
        );
        Err(self.say_no("not_known", "L7", &why, &next))
    }

    fn check_removal(&self, state: &ClusterState, name: &NodeName) -> Result<(), Verdict> {
        let Some(voter) = state.voters.iter().find(|voter| voter.node == *name) else {
            let known: Vec<&str> = state.voters.iter().map(|it| it.node.as_str()).collect();
            let (why, next) =
                (format!("{name} is no voter"), format!("it has: {}", known.join(", ")));
            return Err(self.say_no("unknown_node", "", &why, &next));
        };
        let kind = if voter.witness { "witness" } else { "data node" };
        let is_same_kind = |other: &&Voter| other.witness == voter.witness;
        let is_only = state.voters.iter().filter(is_same_kind).count() == 1;
        // Three data nodes are their own majority; two voters are none without each other.
        if state.voters.len() <= 3 {
            let code = if is_only && voter.witness { "only_witness" } else { "too_few" };
            let which = if is_only { "the only" } else { "a" };
            let why = format!(
                "{name} is {which} {kind}: of two voters neither could go on without the other"
            );
            let next = format!("replctl node replace {name}; or add another witness first");
            return Err(self.say_no(code, "L7", &why, &next));
        }
        if voter.witness {
            return Ok(());
        }
        if is_only {
            let why = format!("{name} is the only data node");
            return Err(self.say_no("last_data_node", "R16", &why, "add another data node first"));
        }
        self.check_is_gone(state, name)
    }

    /// A data node is taken out when it serves nothing, no set counts on it, and it is stopped: one
    /// that runs would be brought up to date and be a member again.
    fn check_is_gone(&self, state: &ClusterState, name: &NodeName) -> Result<(), Verdict> {
        let is_held =
            |entry: &&Resource| entry.holder.as_ref().is_some_and(|holder| holder.node == *name);
        if let Some(entry) = state.resources.iter().find(is_held) {
            let why = format!("{name} is primary of {}", entry.name);
            let next =
                format!("replctl switchover {}, then stop replicatord on {name}", entry.name);
            return Err(self.say_no("is_primary", "L7", &why, &next));
        }
        let stop = format!("stop replicatord on {name} for good, then order this again");
        if *name == self.config.name || self.detector.hears_now(self.now, name) {
            let why =
                format!("{name} is running: its replica would come back into the in-sync set");
            return Err(self.say_no("is_running", "R4", &why, &stop));
        }
        if let Some(entry) = state.resources.iter().find(|entry| entry.has_member(name)) {
            let why = format!(
                "{name} is in the in-sync set of {} in generation {}",
                entry.name, entry.state.generation
            );
            let next = "it leaves the set as soon as a primary serves without it: replctl status";
            return Err(self.say_no("is_member", "R1", &why, next));
        }
        Ok(())
    }

    /// A change needs a majority of the present voters and of the coming ones (L7); those who come
    /// or go count for nothing among the others.
    fn check_majorities(&self, state: &ClusterState, next: &[Voter]) -> Result<(), Verdict> {
        let is_there = |voter: &Voter| {
            self.hears_voter(voter) || self.answering(&voter.node) == Ok(voter.acceptor)
        };
        for (voters, whose) in [(&state.voters[..], "present"), (next, "coming")] {
            let there = voters.iter().filter(|voter| is_there(voter)).count();
            if there * 2 > voters.len() {
                continue;
            }
            let missing: Vec<&str> = voters
                .iter()
                .filter(|voter| !is_there(voter))
                .map(|voter| voter.node.as_str())
                .collect();
            let why = format!(
                "{there} of the {} {whose} voters are heard, a majority is needed; missing: {}",
                voters.len(),
                missing.join(", ")
            );
            let next = "bring them back; if they are gone for ever: replctl recover --without NODE";
            return Err(self.say_no("no_majority", "L7", &why, next));
        }
        Ok(())
    }

    /// Whether the acceptor that answers as a node has a vote; of a node that is silent, whether
    /// one is recorded.
    pub fn has_vote(&self, name: &NodeName) -> bool {
        if self.etcd.is_some() {
            // Nobody has; and nobody lacks one.
            return self.stranger(name).is_none();
        }
        let Some(state) = self.newest() else { return false };
        let mut recorded = state.all_voters().filter(|voter| voter.node == *name);
        if *name == self.config.name {
            return !self.has_no_part() && state.is_voter(self.acceptor.record().id);
        }
        let heard = self.detector.node(name).filter(|_| self.detector.hears_now(self.now, name));
        recorded.any(|voter| {
            heard.is_none_or(|node| node.acceptor() == voter.acceptor && !node.went_back())
        }) && self.stranger(name).is_none_or(|it| it.why == Strange::SecondOfItsName)
    }

    /// Why a node has no vote or is refused, and what to do about it.
    pub fn vote_trouble(&self, name: &NodeName) -> Option<Verdict> {
        let state = self.newest()?;
        if let Err(verdict) = self.check_epoch() {
            // Whoever else is strange to it, this is why.
            return (*name == self.config.name).then_some(verdict);
        }
        let replace = format!("on a member: replctl node replace {name}");
        if let Some(stranger) = self.stranger(name) {
            let number = stranger.epoch.number;
            let (why, next) = match stranger.why {
                Strange::EarlierEpoch => (
                    format!("{name} belongs to an earlier epoch ({number}) and is refused"),
                    start_blank(name).replace("order this again", &replace),
                ),
                Strange::LaterEpoch => (
                    format!("{name} belongs to a later epoch ({number}) than this node"),
                    "if this stays: this node was left out, see replctl explain there".into(),
                ),
                Strange::OtherRegister => (
                    format!(
                        "{name} belongs to another register of epoch {number}: another cluster of \
                         this name and key, or a second recover"
                    ),
                    start_blank(name).replace("order this again", &replace),
                ),
                Strange::SecondOfItsName => (
                    format!("a second machine answers as {name} and is refused"),
                    "switch the old one off".into(),
                ),
            };
            return Some(self.say_no("refused", "L5", &why, &next));
        }
        if self.has_vote(name) || self.etcd.is_some() {
            return None;
        }
        let is_recorded = state.all_voters().any(|voter| voter.node == *name);
        let heard = self.detector.node(name);
        Some(if heard.is_some_and(|node| node.went_back()) {
            let why = format!("{name} came back with an old copy of its register");
            let next = start_blank(name).replace("order this again", &replace);
            self.say_no("went_back", "L5", &why, &next)
        } else if is_recorded {
            let why = format!("the acceptor of {name} is another than the recorded one");
            self.say_no("other_acceptor", "L5", &why, &replace)
        } else {
            let why = format!("{name} is in the configuration and not among the voters");
            let next = format!("replctl node add {name}; or take it out of the file of every node");
            self.say_no("not_a_voter", "L5", &why, &next)
        })
    }
}

//! The state that the register holds: who votes, what the operator switched, and for every
//! resource who is primary and which replicas are in sync.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;
use replicator_core::block::ReplicaId;
use replicator_core::register::RegisterState;
use serde::{Deserialize, Serialize};

use crate::ballot::NodeName;

/// Voters at most.
pub const VOTERS_MAX: usize = 7;
/// Resources at most.
pub const RESOURCES_MAX: usize = 64;

/// Which register a state belongs to: one begins with a cluster, and another with every
/// `recover --without`. Nodes of different epochs refuse each other.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Epoch {
    /// 1 for a new cluster; 0 for a node that knows of none.
    pub number: u64,
    /// The acceptor of the node that began it: tells it from another of the same number.
    pub founder: u128,
}

/// A node whose acceptor votes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Voter {
    /// The node.
    pub node: NodeName,
    /// The random id of its acceptor: a node that lost its state directory comes with another one
    /// and has no vote (L5).
    pub acceptor: u128,
    /// Has no disks and never proposes.
    pub witness: bool,
}

/// Who acts as primary of a resource: a node, and which process of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub node: NodeName,
    /// A number that every start of the daemon draws anew.
    pub process: u64,
}

/// Which node has a replica.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Home {
    /// The node.
    pub node: NodeName,
    /// Its replica, once it has been a member.
    pub replica: ReplicaId,
}

/// An operator's word for what no node can know (R11d).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Force {
    /// Serve these data though they may be old.
    pub allow_data_loss: bool,
    /// The old primary is switched off for sure.
    pub old_primary_is_off: bool,
}

/// One resource.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// What its replicas go by.
    pub state: RegisterState,
    /// Who holds the office; none after a release and before the first primary.
    pub holder: Option<Holder>,
    /// Where an operator wants it, until it is there.
    pub wanted: Option<NodeName>,
    /// Whether by force.
    pub force: Force,
    /// Where its replicas are.
    pub homes: Vec<Home>,
    /// What an operator wants of its services.
    pub switches: Switches,
}

/// What an operator wants of the services of a resource, wherever it is primary.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Switches {
    /// Nothing is started, stopped or restarted.
    pub is_maintained: bool,
    /// Services that are to be stopped; an empty name means all.
    pub off: Vec<String>,
}

impl Resource {
    /// The node of a replica.
    pub fn node_of(&self, replica: ReplicaId) -> Option<&NodeName> {
        self.homes.iter().find(|home| home.replica == replica).map(|home| &home.node)
    }

    /// Whether a node's replica is in the in-sync set.
    pub fn has_member(&self, node: &NodeName) -> bool {
        self.homes.iter().any(|home| home.node == *node && self.state.contains(home.replica))
    }
}

/// Why the state changed last, for history.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Cause {
    /// What happened: `takeover`, `switchover`, `shrink`, `grow`, `release`, `resume`, `pause`, ...
    pub what: String,
    /// The resource, if it concerns one.
    pub resource: String,
    /// In words: who was lost, who ordered it.
    pub why: String,
}

/// Everything in the register.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// Rises with every change.
    pub revision: u64,
    /// Rises when a majority was declared gone for ever (`recover --without`): older members are
    /// refused.
    pub epoch: Epoch,
    /// Who proposed this state (L2).
    pub by: NodeName,
    /// How long a lease is.
    pub lease: Span,
    /// The longest lease there ever was (L5).
    pub longest_lease: Span,
    /// Whose votes count.
    pub voters: Vec<Voter>,
    /// The revision in which the voters changed last.
    pub voters_since: u64,
    /// While the voters change: a majority of these is needed too (L7).
    pub next_voters: Option<Vec<Voter>>,
    /// Automation is off: nothing is taken over.
    pub paused: bool,
    /// Nodes that are to hold no office.
    pub standby: Vec<NodeName>,
    /// All resources, by name.
    pub resources: Vec<Resource>,
    /// The last change.
    pub cause: Cause,
}

impl ClusterState {
    /// A resource by its name.
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// A resource by its name, to change it.
    pub fn resource_mut(&mut self, name: &str) -> Option<&mut Resource> {
        self.resources.iter_mut().find(|resource| resource.name == name)
    }

    /// Everybody who votes now or will.
    pub fn all_voters(&self) -> impl Iterator<Item = &Voter> {
        let next = self.next_voters.iter().flatten();
        self.voters.iter().chain(next.filter(|voter| !self.voters.contains(voter)))
    }

    /// Whose vote an answer of a node is: that of the acceptor that gave it. An acceptor without
    /// its record has another id, and so no vote (L5).
    pub fn vote_of(&self, node: &NodeName, acceptor: u128) -> u128 {
        let as_voter = || self.all_voters().find(|voter| voter.node == *node);
        match as_voter() {
            Some(voter) if crate::defect::defect(crate::defect::Defect::EmptyRecordVotes) => {
                voter.acceptor
            }
            _ => acceptor,
        }
    }

    /// Whether an acceptor has a vote.
    pub fn is_voter(&self, acceptor: u128) -> bool {
        self.all_voters().any(|voter| voter.acceptor == acceptor)
    }

    /// Whether those for whom `has` is true are a majority: of the voters, and while they change
    /// also of the coming ones (L7).
    pub fn is_majority(&self, has: impl Fn(u128) -> bool) -> bool {
        let of = |voters: &[Voter]| {
            voters.iter().filter(|voter| has(voter.acceptor)).count() * 2 > voters.len()
        };
        match &self.next_voters {
            Some(next) if crate::defect::defect(crate::defect::Defect::NewMajorityOnly) => of(next),
            Some(next) => of(&self.voters) && of(next),
            None => of(&self.voters),
        }
    }

    /// Whether a state may follow this one although `holder` of `resource` has a lease and did not
    /// propose it: only when it leaves that office alone.
    pub fn leaves_office(&self, resource: &str, holder: &Holder) -> bool {
        self.resource(resource).is_some_and(|entry| entry.holder.as_ref() == Some(holder))
    }

    /// The offices of a holder, with their tenures.
    pub fn offices_of(&self, holder: &Holder) -> Vec<(String, u64)> {
        let held = |entry: &&Resource| entry.holder.as_ref() == Some(holder);
        let office = |entry: &Resource| (entry.name.clone(), entry.state.tenure);
        self.resources.iter().filter(held).map(office).collect()
    }

    /// The offices that `next` takes from somebody who did not propose it.
    pub fn taken_by<'a>(&'a self, next: &'a Self) -> impl Iterator<Item = (&'a str, &'a Holder)> {
        self.resources.iter().filter_map(move |old| {
            let holder = old.holder.as_ref()?;
            let is_taken = !next.leaves_office(&old.name, holder) && holder.node != next.by;
            is_taken.then_some((old.name.as_str(), holder))
        })
    }
}

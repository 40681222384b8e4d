//! The ways to change the register. Each is guarded by what it replaces, so that doing it twice,
//! or late, does nothing.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;
use replicator_core::register::RegisterState;
use serde::{Deserialize, Serialize};

use crate::ballot::NodeName;
use crate::cluster::{
    Cause, ClusterState, Epoch, Force, Holder, Home, RESOURCES_MAX, Resource, Switches, VOTERS_MAX,
    Voter,
};
use crate::defect::{Defect, defect};

/// The names of all services that are switched off, of all resources: the register has to fit a
/// datagram. All services of a resource together need none.
const SWITCHED_OFF_BYTES_MAX: usize = 8 * 1024;

/// Who wants a command to be done, and hears how it ended.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Asker {
    /// This node, for itself.
    Own,
    /// The replica of a resource on this node, with its number for the proposal.
    Replica {
        /// The resource.
        resource: String,
        /// The replica's number.
        number: u64,
    },
    /// An operator, with the driver's ticket.
    Operator(u64),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Nothing: find out the newest state and settle what is open (a linearizable read).
    Read,
    /// The first state of a cluster.
    Found {
        /// The lease.
        lease: Span,
        /// Everybody who votes.
        voters: Vec<Voter>,
    },
    /// A resource that the register does not know.
    AddResource {
        /// Its name.
        name: String,
    },
    /// A resource that no configuration has any more.
    RemoveResource {
        /// Its name.
        name: String,
    },
    /// A resource's replica makes a change of its office or its in-sync set.
    Replica {
        /// The resource.
        resource: String,
        /// The generation that it replaces.
        expected: u64,
        /// The state that follows.
        next: RegisterState,
        /// The process of the proposer.
        process: u64,
        /// Where this replica, and those it knows, live.
        homes: Vec<Home>,
        /// The operator gave up what the old primary may have (R11d).
        forced: bool,
    },
    /// Where an operator wants the primary; none to withdraw the wish.
    Want {
        /// The resource.
        resource: String,
        /// The node.
        node: Option<NodeName>,
        /// Whether by force.
        force: Force,
    },
    /// What an operator wants of the services of a resource.
    Switch {
        /// The resource.
        resource: String,
        /// What.
        switch: Switch,
    },
    /// Automation off or on.
    Pause(bool),
    /// Whether a node is to hold no office.
    Standby {
        /// The node.
        node: NodeName,
        /// Whether it is.
        is_standby: bool,
    },
    /// The length of the lease.
    Lease(Span),
    /// Another acceptor for a node, another node, or one less: first both old and new voters
    /// count, then the new ones (L7).
    Voters {
        /// The voters that this replaces.
        expected: Vec<Voter>,
        /// The coming ones.
        next: Vec<Voter>,
    },
    /// The end of a change of voters.
    VotersDone {
        /// The coming voters of the change that ends.
        next: Vec<Voter>,
    },
}

/// What an operator wants of services.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Switch {
    /// Hands off, or on again.
    Maintenance(bool),
    /// One service, or all when none is named, is to be stopped until it is started.
    Off {
        /// Which.
        service: Option<String>,
        /// Whether it is.
        is_off: bool,
    },
}

impl Switch {
    fn apply(&self, switches: &mut Switches) -> Result<(), Unfit> {
        let before = switches.clone();
        match self {
            Self::Maintenance(is_on) => switches.is_maintained = *is_on,
            Self::Off { service: None, is_off } => {
                switches.off.clear();
                if *is_off {
                    switches.off.push(String::new());
                }
            }
            Self::Off { service: Some(name), is_off } => {
                switches.off.retain(|other| other != name);
                if *is_off {
                    switches.off.push(name.clone());
                    switches.off.sort();
                }
            }
        }
        if *switches == before { Err(Unfit::Already) } else { Ok(()) }
    }
}

/// Why a change does not fit the newest state.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Unfit {
    /// It is done already.
    Already,
    /// The register moved on: another generation than the expected one.
    Newer,
    /// The cluster has no register yet.
    NotFounded,
    /// There is none of this name.
    Unknown(String),
    /// More than the register holds.
    TooMany,
    /// Another change of the voters is under way.
    VotersChange,
    /// More than one voter would come or go (L7).
    OneAtATime,
}

impl Change {
    /// The state that follows, proposed by `by`.
    pub fn apply(
        &self,
        old: Option<&ClusterState>,
        by: &NodeName,
        cause: &Cause,
    ) -> Result<ClusterState, Unfit> {
        if let Self::Found { lease, voters } = self {
            return match old {
                Some(_) => Err(Unfit::Already),
                None => Ok(ClusterState {
                    revision: 1,
                    epoch: first_epoch(voters, by),
                    by: by.clone(),
                    lease: *lease,
                    longest_lease: *lease,
                    voters: voters.clone(),
                    voters_since: 1,
                    cause: cause.clone(),
                    ..ClusterState::default()
                }),
            };
        }
        let mut next = old.ok_or(Unfit::NotFounded)?.clone();
        self.change(&mut next, by)?;
        next.revision += 1;
        if matches!(self, Self::Voters { .. } | Self::VotersDone { .. }) {
            next.voters_since = next.revision;
        }
        next.by = by.clone();
        next.cause = cause.clone();
        Ok(next)
    }

    /// Whether doing it twice does nothing, whatever was done in between. What an operator sets can
    /// be set back meanwhile.
    pub(crate) fn is_guarded(&self) -> bool {
        !matches!(
            self,
            Self::Want { .. }
                | Self::Switch { .. }
                | Self::Pause(_)
                | Self::Standby { .. }
                | Self::Lease(_)
                | Self::Voters { .. }
                | Self::AddResource { .. }
                | Self::RemoveResource { .. }
        )
    }

    /// What a replica wants of its own resource: it names the state that it replaces.
    pub(crate) fn is_of_replica(&self) -> bool {
        matches!(self, Self::Replica { .. })
    }

    fn change(&self, state: &mut ClusterState, by: &NodeName) -> Result<(), Unfit> {
        match self {
            Self::Read | Self::Found { .. } => return Err(Unfit::Already),
            Self::AddResource { name } => {
                if state.resource(name).is_some() {
                    return Err(Unfit::Already);
                }
                if state.resources.len() >= RESOURCES_MAX {
                    return Err(Unfit::TooMany);
                }
                state.resources.push(Resource { name: name.clone(), ..Resource::default() });
                state.resources.sort_by(|a, b| a.name.cmp(&b.name));
            }
            Self::RemoveResource { name } => {
                if state.resource(name).is_none() {
                    return Err(Unfit::Already);
                }
                state.resources.retain(|resource| resource.name != *name);
            }
            Self::Replica { resource, expected, next, process, homes, .. } => {
                let entry = named(state, resource)?;
                change_replica(entry, (*expected, next), (by, *process), homes)?;
            }
            Self::Want { resource, node, force } => {
                let entry = named(state, resource)?;
                let is_there = |node: &NodeName| {
                    entry.holder.as_ref().is_some_and(|holder| holder.node == *node)
                };
                let is_same = entry.wanted == *node && entry.force == *force;
                if is_same || node.as_ref().is_some_and(is_there) {
                    return Err(Unfit::Already);
                }
                (entry.wanted, entry.force) = (node.clone(), *force);
            }
            Self::Switch { resource, switch } => {
                switch.apply(&mut named(state, resource)?.switches)?;
                let off = state.resources.iter().flat_map(|resource| &resource.switches.off);
                let is_more = matches!(switch, Switch::Off { is_off: true, .. });
                let bytes: usize = off.map(|name| name.len() + 1).sum();
                if is_more && bytes > SWITCHED_OFF_BYTES_MAX {
                    return Err(Unfit::TooMany);
                }
            }
            Self::Pause(paused) => set(&mut state.paused, *paused)?,
            Self::Standby { node, is_standby } => {
                if state.standby.contains(node) == *is_standby {
                    return Err(Unfit::Already);
                }
                state.standby.retain(|standby| standby != node);
                if *is_standby {
                    state.standby.push(node.clone());
                }
            }
            Self::Lease(lease) => {
                set(&mut state.lease, *lease)?;
                state.longest_lease = state.longest_lease.max(*lease);
            }
            Self::Voters { expected, next } => {
                if state.next_voters.as_ref() == Some(next) || state.voters == *next {
                    return Err(Unfit::Already);
                }
                if state.next_voters.is_some() {
                    return Err(Unfit::VotersChange);
                }
                if state.voters != *expected {
                    return Err(Unfit::Newer);
                }
                if next.len() > VOTERS_MAX {
                    return Err(Unfit::TooMany);
                }
                if !is_one_step(expected, next) && !defect(Defect::TwoAtATime) {
                    return Err(Unfit::OneAtATime);
                }
                state.next_voters = Some(next.clone());
            }
            Self::VotersDone { next } => {
                if state.next_voters.as_ref() != Some(next) {
                    return Err(Unfit::Already);
                }
                let before = core::mem::replace(&mut state.voters, next.clone());
                state.next_voters = None;
                forget_nodes(state, &before);
            }
        }
        Ok(())
    }
}

/// What was recorded of nodes that vote no more goes with them, but where a set counts on one.
fn forget_nodes(state: &mut ClusterState, before: &[Voter]) {
    let voters = &state.voters;
    let is_gone = |node: &NodeName| {
        before.iter().any(|voter| voter.node == *node)
            && voters.iter().all(|voter| voter.node != *node)
    };
    state.standby.retain(|node| !is_gone(node));
    for entry in &mut state.resources {
        let set = &entry.state;
        entry.homes.retain(|home| !is_gone(&home.node) || set.contains(home.replica));
        entry.wanted.take_if(|node| is_gone(node));
    }
}

fn first_epoch(voters: &[Voter], by: &NodeName) -> Epoch {
    let founder = voters.iter().find(|voter| voter.node == *by);
    Epoch { number: 1, founder: founder.map_or(0, |voter| voter.acceptor) }
}

/// Whether at most one acceptor comes and at most one goes (L7).
fn is_one_step(old: &[Voter], new: &[Voter]) -> bool {
    let missing =
        |from: &[Voter], voter: &&Voter| !from.iter().any(|other| other.acceptor == voter.acceptor);
    let came = new.iter().filter(|voter| missing(old, voter)).count();
    let gone = old.iter().filter(|voter| missing(new, voter)).count();
    !new.is_empty() && came <= 1 && gone <= 1
}

fn named<'a>(state: &'a mut ClusterState, name: &str) -> Result<&'a mut Resource, Unfit> {
    state.resource_mut(name).ok_or_else(|| Unfit::Unknown(name.into()))
}

fn set<T: PartialEq>(place: &mut T, value: T) -> Result<(), Unfit> {
    if *place == value {
        return Err(Unfit::Already);
    }
    *place = value;
    Ok(())
}

fn change_replica(
    entry: &mut Resource,
    (expected, next): (u64, &RegisterState),
    (by, process): (&NodeName, u64),
    homes: &[Home],
) -> Result<(), Unfit> {
    if entry.state == *next {
        return Err(Unfit::Already);
    }
    if entry.state.generation != expected {
        return Err(Unfit::Newer);
    }
    for home in homes {
        entry.homes.retain(|old| old.node != home.node);
        entry.homes.push(home.clone());
    }
    entry.homes.sort();
    let holder = Holder { node: by.clone(), process };
    entry.holder = next.primary.map(|primary| match &entry.holder {
        // A change of the set leaves the office where it is.
        Some(old)
            if entry.state.primary == Some(primary)
                && entry.state.tenure == next.tenure
                && old.node != *by =>
        {
            old.clone()
        }
        _ => holder,
    });
    if entry.wanted.as_ref() == Some(by) && entry.holder.as_ref().is_some_and(|h| h.node == *by) {
        (entry.wanted, entry.force) = (None, Force::default());
    }
    entry.state = next.clone();
    Ok(())
}

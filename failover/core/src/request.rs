//! The register is the truth, a configuration file a request: in what they differ, and which
//! changes of the register would do what the file says.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;

use crate::ballot::NodeName;
use crate::cluster::ClusterState;
use crate::command::Change;
use crate::node::Node;
use crate::verdict::Verdict;
use crate::voters::VotersWish;

/// What a configuration file says of the whole cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Length of the lease.
    pub lease: Span,
    /// All nodes, and whether each is a witness; none where nodes have no votes (etcd).
    pub nodes: Vec<(NodeName, bool)>,
    /// All resources.
    pub resources: Vec<String>,
}

/// One thing in which a request differs from the register.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Difference {
    /// The lease has another length.
    Lease {
        /// In the register.
        now: Span,
        /// In the request.
        wanted: Span,
    },
    /// The register lacks a resource.
    NewResource(String),
    /// The request lacks one.
    OldResource(String),
    /// A node of the request has no vote.
    NewNode(NodeName),
    /// A voter is not in the request.
    OldNode(NodeName),
    /// A voter is a witness in one and a data node in the other.
    OtherKind(NodeName),
}

impl core::fmt::Display for Difference {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Lease { now, wanted } => write!(
                out,
                "the lease is {} ms in the register, {} ms in the file",
                now.as_ms(),
                wanted.as_ms()
            ),
            Self::NewResource(name) => write!(out, "resource {name} is new to the register"),
            Self::OldResource(name) => {
                write!(out, "resource {name} is in the register and not in the file")
            }
            Self::NewNode(name) => write!(out, "node {name} is in the file and has no vote"),
            Self::OldNode(name) => write!(out, "node {name} has a vote and is not in the file"),
            Self::OtherKind(name) => {
                write!(
                    out,
                    "node {name} is a witness in one of file and register, not in the other"
                )
            }
        }
    }
}

/// In what a request differs from a state, in the order in which it is best changed.
pub fn differences(state: &ClusterState, request: &Request) -> Vec<Difference> {
    let mut found = Vec::new();
    if state.lease != request.lease {
        found.push(Difference::Lease { now: state.lease, wanted: request.lease });
    }
    let new = request.resources.iter().filter(|name| state.resource(name).is_none());
    found.extend(new.map(|name| Difference::NewResource(name.clone())));
    let old = state.resources.iter().filter(|entry| !request.resources.contains(&entry.name));
    found.extend(old.map(|entry| Difference::OldResource(entry.name.clone())));
    if request.nodes.is_empty() {
        return found;
    }
    let coming = state.next_voters.as_ref().unwrap_or(&state.voters);
    for (name, witness) in &request.nodes {
        match coming.iter().find(|voter| voter.node == *name) {
            None => found.push(Difference::NewNode(name.clone())),
            Some(voter) if voter.witness != *witness => {
                found.push(Difference::OtherKind(name.clone()));
            }
            Some(_) => {}
        }
    }
    let is_old = |name: &NodeName| request.nodes.iter().all(|(node, _)| node != name);
    let old = coming.iter().map(|voter| &voter.node).filter(|name| is_old(name));
    found.extend(old.map(|name| Difference::OldNode(name.clone())));
    found
}

impl Node {
    /// The change that ends a difference, or why it cannot be made now.
    pub fn check_difference(&self, difference: &Difference) -> Result<Change, Verdict> {
        self.check_epoch()?;
        match difference {
            Difference::Lease { wanted, .. } => Ok(Change::Lease(*wanted)),
            Difference::NewResource(name) => Ok(Change::AddResource { name: name.clone() }),
            Difference::OldResource(name) => self.check_resource_removal(name),
            Difference::NewNode(name) => self.check_voters(&VotersWish::Add(name.clone())),
            Difference::OldNode(name) => self.check_voters(&VotersWish::Remove(name.clone())),
            Difference::OtherKind(name) => {
                let why = format!("{name} cannot become the other kind of node by itself");
                let next = "give the node another name in the file";
                Err(self.say_no("other_kind", "", &why, next))
            }
        }
    }

    /// A resource goes only when every data node was heard and none has it any more; one that a
    /// node still has would come back.
    fn check_resource_removal(&self, name: &str) -> Result<Change, Verdict> {
        let state = self.state().ok_or_else(|| self.no_register())?;
        let me = &self.config.name;
        for voter in state.voters.iter().filter(|voter| !voter.witness) {
            let has_it = if voter.node == *me {
                self.locals.contains_key(name)
            } else if self.hears_voter(voter) {
                self.detector.node(&voter.node).is_some_and(|node| {
                    node.heartbeat.number == 0
                        || node.heartbeat.facts.iter().any(|(resource, _)| resource == name)
                })
            } else {
                let why = format!("{} is not heard: it may have {name} in use", voter.node);
                return Err(self.say_no("not_heard", "", &why, "bring it back"));
            };
            if has_it {
                let why = format!("the daemon of {} still has {name}", voter.node);
                let next =
                    format!("replctl down {name} there, and restart its daemon with the new file");
                return Err(self.say_no("still_there", "", &why, &next));
            }
        }
        Ok(Change::RemoveResource { name: name.into() })
    }
}

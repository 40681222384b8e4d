//! Who belongs to the cluster, and what the file wants of the register: replace, add, remove,
//! recover and apply. What may be done is decided in `failover-core`.

use std::thread;
use std::time::{Duration, Instant};

use failover::core::NodeName;
use failover::core::cluster::ClusterState;
use failover::core::request::{Difference, Request, differences};
use failover::core::voters::VotersWish;
use failover::node::lease_of;
use serde::{Deserialize, Serialize};

use super::orders::POLL;
use super::{ControlPlane, refusal};
use crate::config::ClusterConfig;
use crate::control::{RefusalReport, Reply};

/// A change of the voters may take so long before the operator is told what it waits for.
const VOTERS_PATIENCE: Duration = Duration::from_secs(20);

/// What a configuration file says of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRequest {
    /// Length of the lease.
    pub lease_ms: u64,
    /// All nodes, and whether each is a witness; none where nodes have no votes (etcd).
    pub nodes: Vec<(String, bool)>,
    /// All resources.
    pub resources: Vec<String>,
}

/// A difference between file and register, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The difference, in words.
    pub difference: String,
    /// Whether the register has it now as the file says; false in a dry run.
    pub is_done: bool,
    /// Why it is not done.
    pub refused: Option<RefusalReport>,
}

impl ClusterRequest {
    /// What a file says.
    pub fn of(config: &ClusterConfig) -> Self {
        let has_votes = config.etcd.is_none();
        let voters = config.nodes.iter().filter(|_| has_votes);
        Self {
            lease_ms: config.lease_ms,
            nodes: voters.map(|node| (node.name.clone(), node.witness)).collect(),
            resources: config.resources.iter().map(|it| it.name.clone()).collect(),
        }
    }

    /// The same for the core.
    pub fn into_core(self) -> Request {
        let nodes = self.nodes.into_iter();
        Request {
            lease: lease_of(self.lease_ms),
            nodes: nodes.map(|(name, witness)| (NodeName(name), witness)).collect(),
            resources: self.resources,
        }
    }
}

impl ControlPlane {
    /// Replaces, adds or removes a voter; waits until the change is complete.
    pub fn change_voters(&self, wish: VotersWish) -> Reply {
        let ordered = self.refuse_witness().and_then(|()| self.look()).and_then(|node| {
            let change = node.check_voters(&wish).map_err(|verdict| refusal(&verdict))?;
            let why = match &wish {
                VotersWish::Replace(name) => format!("{name} replaced by an operator"),
                VotersWish::Add(name) => format!("{name} added by an operator"),
                VotersWish::Remove(name) => format!("{name} removed by an operator"),
            };
            self.order(change, &why)?;
            self.wait_for_voters()
        });
        match ordered {
            Ok(state) => Reply::Done(voters_in_words(&state, &wish)),
            Err(refusal) => Reply::Refused(refusal),
        }
    }

    fn wait_for_voters(&self) -> Result<ClusterState, RefusalReport> {
        let began = Instant::now();
        while began.elapsed() < VOTERS_PATIENCE {
            let node = self.look()?;
            if let Some(state) = node.state().filter(|state| state.next_voters.is_none()) {
                return Ok(state.clone());
            }
            thread::sleep(POLL);
        }
        Err(RefusalReport::new(
            "takes_long",
            format!("the change of the voters is not complete after {VOTERS_PATIENCE:?}"),
            "it goes on by itself when a majority of the old and of the new voters is there: \
             replctl status",
        ))
    }

    /// Goes on without voters that are gone for ever.
    pub fn recover(&self, without: &[String]) -> Reply {
        let names: Vec<NodeName> = without.iter().map(|name| NodeName(name.clone())).collect();
        let why = format!("an operator, on {}", self.node.name);
        match self.cluster.recover(names, &why) {
            Err(verdict) => Reply::Refused(refusal(&verdict)),
            Ok(()) => Reply::Done(format!(
                "{} goes on in a new epoch without {}; they are refused when they come back. A new \
                 machine, or an old one whose files register.* were removed, comes in by: replctl \
                 node replace NODE",
                self.node.name,
                without.join(", ")
            )),
        }
    }

    /// Changes the register into what a file wants, or only shows in what they differ.
    pub fn apply(&self, request: &ClusterRequest, dry_run: bool) -> Reply {
        let request = request.clone().into_core();
        let found = self.refuse_witness().and_then(|()| self.look()).and_then(|node| {
            node.check_majority_known().map_err(|verdict| refusal(&verdict))?;
            let state = node.state().expect("a majority agrees on one");
            Ok(differences(state, &request))
        });
        let found = match found {
            Ok(found) => found,
            Err(refusal) => return Reply::Refused(refusal),
        };
        let apply = |difference: &Difference| {
            let done =
                if dry_run { self.could_apply(difference) } else { self.apply_one(difference) };
            Applied {
                difference: difference.to_string(),
                is_done: done.is_ok() && !dry_run,
                refused: done.err(),
            }
        };
        Reply::Applied(found.iter().map(apply).collect())
    }

    fn could_apply(&self, difference: &Difference) -> Result<(), RefusalReport> {
        let checked = self.look()?.check_difference(difference);
        checked.map(drop).map_err(|verdict| refusal(&verdict))
    }

    fn apply_one(&self, difference: &Difference) -> Result<(), RefusalReport> {
        let checked = self.look()?.check_difference(difference);
        let change = checked.map_err(|verdict| refusal(&verdict))?;
        self.order(change, "replctl apply")?;
        self.wait_for_voters().map(drop)
    }
}

fn voters_in_words(state: &ClusterState, wish: &VotersWish) -> String {
    let names: Vec<&str> = state.voters.iter().map(|voter| voter.node.as_str()).collect();
    let done = match wish {
        VotersWish::Replace(name) => format!("{name} votes with its new acceptor"),
        VotersWish::Add(name) => format!("{name} votes"),
        VotersWish::Remove(name) => format!("{name} has no vote any more"),
    };
    let count = names.len();
    let mut text = format!("{done}; voters: {}", names.join(", "));
    if count.is_multiple_of(2) {
        let (majority, spare) = (count / 2 + 1, count - count / 2 - 1);
        text += &format!(
            ". {count} voters are an even number: a majority is {majority}, so at most {spare} \
             may fail, as with {}",
            count - 1
        );
    }
    text
}

//! The keys in etcd, what is asked of it, and what it answers. Their form as bytes is the driver's.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;
use serde::{Deserialize, Serialize};

use crate::ballot::NodeName;
use crate::cluster::ClusterState;

/// A key below the prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// Whose register it is.
    Founder,
    /// The state of the cluster.
    State,
    /// The lease key of a node.
    Lease(NodeName),
}

/// Whose register lies below a prefix.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Founder {
    /// The name of the cluster.
    pub cluster: String,
    /// The founder of its epoch: tells it from another cluster of that name.
    pub id: u128,
}

/// An office that a lease key keeps.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The resource.
    pub resource: String,
    /// The tenure.
    pub tenure: u64,
    /// The counter of the last renewal that covered it: an office whose loop or disk hangs stays
    /// behind, while the node goes on renewing others (L1).
    pub counter: u64,
    /// How long that renewal lasts.
    pub duration: Span,
}

/// The lease key of a node: that it changes is all that counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LeaseKey {
    /// The process that renews it.
    pub process: u64,
    /// Rises with every renewal of that process.
    pub counter: u64,
    /// What it holds.
    pub offices: Vec<Kept>,
}

/// A value to be put.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    /// For [`Key::Founder`].
    Founder(Founder),
    /// For [`Key::State`].
    State(Box<ClusterState>),
    /// For [`Key::Lease`].
    Lease(LeaseKey),
}

/// Everything or nothing: done only if every key was changed last in the revision given here.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Transaction {
    /// Keys, and the revision of etcd in which each was changed last; 0: there is no such key.
    pub compares: Vec<(Key, u64)>,
    /// What is put.
    pub puts: Vec<(Key, Value)>,
}

impl Transaction {
    /// Whether it could still be done, now or late: revisions only rise, so one that is another
    /// than the wanted one stays so.
    pub fn could_be_done(&self, contents: &Contents) -> bool {
        self.compares.iter().all(|(key, revision)| contents.revision_of(key) == *revision)
    }
}

/// What etcd is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Everything below the prefix, linearizable.
    Read,
    /// A transaction; if it is not done, everything below the prefix.
    Write(Transaction),
}

/// What etcd answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// What is there: the answer to a read, or to a transaction that was not done.
    Contents(Box<Contents>),
    /// The transaction was done, in that revision of etcd.
    Written {
        /// The revision.
        revision: u64,
    },
    /// Nothing is known: a transaction may have been done, or be done late.
    Failed(Trouble),
}

/// Everything below the prefix at one moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Contents {
    /// The id of the etcd cluster: another one after etcd was restored from a backup.
    pub store: u64,
    /// The revision of etcd.
    pub revision: u64,
    /// Whose register it is, and whether that was written with our key of the cluster.
    pub founder: Option<(Founder, bool)>,
    /// The state, and the revision of etcd in which it was written.
    pub state: Option<(u64, ClusterState)>,
    /// The lease keys, each with its revision.
    pub leases: BTreeMap<NodeName, (u64, LeaseKey)>,
}

impl Contents {
    /// The revision in which a key was changed last; 0: there is none.
    pub fn revision_of(&self, key: &Key) -> u64 {
        match key {
            // It is written with the first state and never again: whether it is there is enough.
            Key::Founder => self.founder.as_ref().map_or(0, |_| self.revision),
            Key::State => self.state.as_ref().map_or(0, |(revision, _)| *revision),
            Key::Lease(node) => self.leases.get(node).map_or(0, |(revision, _)| *revision),
        }
    }
}

/// Why etcd did not answer as it should.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Trouble {
    /// Stable name for programs: `unreachable`, `no_leader`, `password`, `permission`, `nonsense`.
    pub code: String,
    /// What went wrong, with the endpoint.
    pub why: String,
    /// What an operator may do.
    pub next: String,
}

impl Trouble {
    pub(super) fn no_answer() -> Self {
        Self {
            code: "unreachable".into(),
            why: "etcd did not answer in time".into(),
            next: "look at the endpoints of [etcd]: etcdctl endpoint status".into(),
        }
    }
}

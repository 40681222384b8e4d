//! Names of nodes, and the ballots that order proposals.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// The name of a node, as in the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct NodeName(pub String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl core::fmt::Display for NodeName {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(&self.0)
    }
}

/// The number of a proposal: unique, since a process never uses a counter twice, and totally
/// ordered.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Higher than every counter the proposer has seen.
    pub counter: u64,
    /// Who proposes.
    pub node: NodeName,
    /// Which process of it: a restarted proposer does not know which counters it used.
    pub process: u64,
}

//! What the driver reports about the replica of a resource on this node, and what every node
//! tells the others about its own.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::register::RegisterState;
use serde::{Deserialize, Serialize};

use crate::ballot::NodeName;
use crate::services::reach::Seen;

/// What a replica can do.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Its id; 0 while its disk is not attached.
    pub replica: u128,
    /// `starting`, `secondary`, `promoting`, `primary`, `demoting`, ...
    pub role: String,
    /// `up_to_date`, `outdated`, `inconsistent`, `diverged`, ...
    pub data: String,
    /// Whether it serves clients.
    pub serves: bool,
    /// Why it could not be promoted now, if it could not.
    pub hindrance: Option<Hindrance>,
    /// The register copy on its disk.
    pub copy: RegisterState,
    /// Why services cannot run on this node, if so: the office goes elsewhere if it can.
    pub trouble: Option<Hindrance>,
    /// What this node sees by each `reach` service, in the order of the configuration.
    pub reach: Vec<Seen>,
}

/// Where an operator likes a resource to be; what the configuration says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Placement {
    /// Nodes that it runs on if it can, best first.
    pub prefer: Vec<NodeName>,
    /// Nodes that it runs on only if it must.
    pub avoid: Vec<NodeName>,
    /// The resource that it follows.
    pub with: Option<String>,
}

impl Placement {
    /// The smaller, the better.
    pub(crate) fn rank(&self, node: &NodeName) -> (bool, usize) {
        let liked = self.prefer.iter().position(|it| it == node);
        (self.avoid.contains(node), liked.unwrap_or(self.prefer.len()))
    }
}

/// Why a replica cannot be promoted.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Hindrance {
    /// Stable name for programs.
    pub code: String,
    /// The rule of SAFETY.md.
    pub rule: String,
    /// What is wrong, with the values compared.
    pub why: String,
    /// What an operator may do.
    pub next: String,
}

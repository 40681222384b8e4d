//! What the driver reports about the replica of a resource on this node, and what every node
//! tells the others about its own.

use alloc::string::String;

use replicator_core::register::RegisterState;
use serde::{Deserialize, Serialize};

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

//! Why something is not done: what `explain` shows.

use alloc::string::String;

use replicator_core::Time;
use serde::{Deserialize, Serialize};

use crate::facts::Hindrance;

/// A decision against something, with all an operator needs.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Stable name for programs, for example `lease_runs`.
    pub code: String,
    /// The rule of SAFETY.md, for example `L2`; empty where none is meant.
    pub rule: String,
    /// What was compared, with the values.
    pub why: String,
    /// What would change it.
    pub next: String,
    /// Since when it is so, on the clock of the node that says it.
    pub since: Time,
}

impl Verdict {
    /// A verdict of the moment.
    pub fn new(now: Time, code: &str, rule: &str, why: String, next: String) -> Self {
        Self { code: code.into(), rule: rule.into(), why, next, since: now }
    }

    /// What a replica says of itself.
    pub fn of_replica(now: Time, hindrance: &Hindrance) -> Self {
        let Hindrance { code, rule, why, next } = hindrance.clone();
        Self { code, rule, why, next, since: now }
    }
}

//! What fencing asks of a resource (`fence`): is the peer heard, and whose office is it.

use replicator_core::block::ReplicaId;

use super::Resource;
use crate::link::Link;

/// How a resource stands towards the office, without a witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// This node is primary.
    Held,
    /// Another was primary last, and this node has everything.
    Lost,
    /// Another was primary last, and this node may not follow it, for this reason.
    NotMine(String),
    /// Nobody is primary, or nothing is known here.
    Nothing,
}

impl Resource {
    /// Whether a session with a peer lives, and how many began so far.
    pub fn sessions(&self) -> (bool, u64) {
        let is_up = self.lock().links.iter().any(Link::is_up);
        (is_up, self.next_session.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// The generation of its copy of the register; 0 when nothing is known.
    pub fn generation(&self) -> u64 {
        self.loop_status().map_or(0, |status| status.core.register.generation)
    }

    /// Whose office it is. Takes two seconds when the loop hangs.
    pub fn standing(&self) -> Standing {
        let Some(status) = self.loop_status() else { return Standing::Nothing };
        let (core, register) = (&status.core, &status.core.register);
        match (core.role, register.primary) {
            ("primary", _) => Standing::Held,
            ("secondary", Some(_)) if core.data != "up_to_date" => {
                Standing::NotMine(format!("its data here are {}", core.data.replace('_', " ")))
            }
            ("secondary", Some(_)) if !register.contains(ReplicaId(core.replica)) => {
                Standing::NotMine("this replica is not in the in-sync set".into())
            }
            ("secondary", Some(_)) => Standing::Lost,
            _ => Standing::Nothing,
        }
    }
}

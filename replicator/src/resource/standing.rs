//! What fencing asks of a resource (`fence`): is the peer heard, whose office is it, does it wait
//! for the fence of its peer; and what fencing tells it.

use std::time::Duration;

use replicator_core::block::ReplicaId;
use replicator_core::{Command, PeerIndex, SessionId};

use super::{Phase, Resource};
use crate::control::Reply;
use crate::link::Link;

/// A promise is given while the greeting of the one who asks for it lasts.
const PROMISE_PATIENCE: Duration = Duration::from_secs(2);
/// How long the core may take to let a member go.
const PROCEED_PATIENCE: Duration = Duration::from_secs(15);

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

    /// Whose office it is, and the last session with the peer whose fence it waits for, if it does.
    /// Takes two seconds when the loop hangs.
    pub fn standing(&self) -> (Standing, Option<u64>) {
        let Some(status) = self.loop_status() else { return (Standing::Nothing, None) };
        let (core, register) = (&status.core, &status.core.register);
        let waits = core.awaits_fence.as_ref().map(|wait| wait.session.0);
        let standing = match (core.role, register.primary) {
            ("primary", _) => Standing::Held,
            ("secondary", Some(_)) if core.data != "up_to_date" => {
                Standing::NotMine(format!("its data here are {}", core.data.replace('_', " ")))
            }
            ("secondary", Some(_)) if !register.contains(ReplicaId(core.replica)) => {
                Standing::NotMine("this replica is not in the in-sync set".into())
            }
            ("secondary", Some(_))
                if self.cluster.fences_lost_primaries() && !core.takes_fenced =>
            {
                Standing::NotMine(
                    "since it heard the primary last it was not in sync with it, was restarted, or \
                     promised to stand back"
                        .into(),
                )
            }
            ("secondary", Some(_)) => Standing::Lost,
            _ => Standing::Nothing,
        };
        (standing, waits)
    }

    /// The peer of that last session is off, or stands back: this node may go on alone.
    pub fn proceed_alone(&self, session: u64) -> Reply {
        self.order(Command::PeerIsOff(PeerIndex(0), SessionId(session)), PROCEED_PATIENCE)
    }

    /// Promises not to take over by a fence before the primary was met again; or why not. A replica
    /// that is not up has nothing to promise: it comes up without knowing the primary.
    pub fn stand_back(&self) -> Result<(), String> {
        if !matches!(self.lock().phase, Phase::Up | Phase::Stopping) {
            return Ok(());
        }
        match self.order(Command::StandBack, PROMISE_PATIENCE) {
            Reply::Refused(refusal) => Err(refusal.why),
            _ => Ok(()),
        }
    }
}

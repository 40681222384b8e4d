//! What the guard is told of the services of one resource: which processes are theirs, that the
//! thread which carries out their orders lives, and when only a reset is left.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::Service;
use crate::guard::{GroupSlot, Registry};

/// Processes are looked for so often without being asked to.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And never more often than this: where there are no cgroups every process is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// The services of one resource that only the primary runs.
pub struct Guarded {
    registry: Registry,
    resource: String,
    nudge: SyncSender<()>,
}

impl Guarded {
    /// Their cgroups are known to the guard from now on, before anything is started in them.
    /// Processes without a cgroup are looked for by a thread of its own, for whom nobody waits.
    pub fn new(
        registry: Registry,
        resource: &str,
        services: Vec<Arc<dyn Service>>,
    ) -> io::Result<Self> {
        let (nudge, nudges) = sync_channel(1);
        let guarded = Self { registry: registry.clone(), resource: resource.to_owned(), nudge };
        // From now on the guard takes a thread that does not beat for one that stands still.
        guarded.beat();
        if guarded.is_told() && !services.is_empty() {
            let resource = resource.to_owned();
            let mut known = Known { registry, resource, services, slots: Vec::new() };
            known.look();
            let name = format!("groups {}", guarded.resource);
            thread::Builder::new().name(name).spawn(move || known.keep(&nudges))?;
        }
        Ok(guarded)
    }

    /// Whether there is a guard.
    pub fn is_told(&self) -> bool {
        !self.registry.is_none()
    }

    /// The thread that carries out their orders lives.
    pub fn beat(&self) {
        self.registry.beat_services(&self.resource);
    }

    /// Processes may have come or gone: they are looked for soon.
    pub fn look_soon(&self) {
        // One that waits is enough.
        let _ = self.nudge.try_send(());
    }

    /// Whether nothing but a reset is left.
    pub fn give_up(&self, is_given_up: bool) {
        self.registry.give_up(&self.resource, is_given_up);
    }
}

/// What the guard knows by now.
struct Known {
    registry: Registry,
    resource: String,
    services: Vec<Arc<dyn Service>>,
    slots: Vec<(PathBuf, GroupSlot)>,
}

impl Known {
    fn keep(mut self, nudges: &Receiver<()>) {
        loop {
            match nudges.recv_timeout(LOOK_EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            thread::sleep(PAUSE);
        }
    }

    fn look(&mut self) {
        let there: Vec<PathBuf> = self.services.iter().flat_map(|it| it.groups()).collect();
        self.slots.retain(|(path, _)| there.contains(path));
        for path in there {
            if self.slots.iter().any(|(known, _)| *known == path) {
                continue;
            }
            let slots = self.registry.guard_groups(&self.resource, std::slice::from_ref(&path));
            self.slots.extend(slots.into_iter().map(|slot| (path.clone(), slot)));
        }
    }
}

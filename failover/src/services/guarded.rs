//! What the guard is told of the services of one resource: which processes are theirs, that the
//! thread which carries out their orders lives, and when only a reset is left.

use std::path::PathBuf;
use std::sync::Arc;

use failover_core::{Span, Time};

use super::Service;
use crate::guard::{GroupSlot, Registry};

/// Processes without a cgroup are looked for at most so often, and always after a service changed.
const LOOK_EVERY: Span = Span::from_ms(1_000);

/// The services of one resource that only the primary runs.
pub struct Guarded {
    registry: Registry,
    resource: String,
    services: Vec<Arc<dyn Service>>,
    known: Vec<(PathBuf, GroupSlot)>,
    looked_at: Option<Time>,
}

impl Guarded {
    /// Their cgroups are known to the guard from now on, before anything is started in them.
    pub fn new(registry: Registry, resource: &str, services: Vec<Arc<dyn Service>>) -> Self {
        let resource = resource.to_owned();
        let mut guarded = Self { registry, resource, services, known: Vec::new(), looked_at: None };
        guarded.look();
        guarded
    }

    /// Whether there is a guard.
    pub fn is_told(&self) -> bool {
        !self.registry.is_none()
    }

    /// The thread that carries out their orders lives.
    pub fn beat(&self) {
        self.registry.beat_services(&self.resource);
    }

    /// Looks for their processes, when something happened or it is time.
    pub fn look_at(&mut self, now: Time, has_changed: bool) {
        let is_due = self.looked_at.is_none_or(|at| now.since(at) >= LOOK_EVERY);
        if has_changed || is_due {
            self.looked_at = Some(now);
            self.look();
        }
    }

    fn look(&mut self) {
        if !self.is_told() {
            return;
        }
        let there: Vec<PathBuf> = self.services.iter().flat_map(|it| it.groups()).collect();
        self.known.retain(|(path, _)| there.contains(path));
        for path in there {
            if self.known.iter().any(|(known, _)| *known == path) {
                continue;
            }
            let slots = self.registry.guard_groups(&self.resource, std::slice::from_ref(&path));
            self.known.extend(slots.into_iter().map(|slot| (path.clone(), slot)));
        }
    }

    /// Whether nothing but a reset is left.
    pub fn give_up(&self, is_given_up: bool) {
        self.registry.give_up(&self.resource, is_given_up);
    }
}

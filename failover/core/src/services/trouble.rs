//! That services cannot run on this node: said to the others, so that the office goes to one that
//! has no such trouble; and how long that holds.
//!
//! It holds as long as a service that should run here does not, and for a time after: a minute, and
//! twice as long each time, so that two nodes that both fail do not throw the office at each other.
//! With an hour's pause at most nothing is banned for ever.
//!
//! Where something that was required is missing (a watchdog), services may not run at all: also not
//! when no node has it, for as long as it is missing.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::engine::{Engine, Office};
use super::port::{Effect, Weight};
use super::service::{Phase, STABLE, doubled};
use crate::facts::Hindrance;
use crate::reached;

const LASTS_FIRST: Span = Span::from_ms(60_000);
const LASTS_MAX: Span = Span::from_ms(3_600_000);

/// Why services cannot run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// The service that failed.
    pub service: usize,
    /// Since when.
    pub since: Time,
    /// Until when at least, once nothing that should run here fails.
    pub expires: Time,
    /// In words, for the other nodes.
    pub why: Hindrance,
}

impl Engine {
    /// Services may not run on this node, or may again. What runs stops orderly.
    pub(super) fn forbid(&mut self, why: Option<Hindrance>, effects: &mut Vec<Effect>) {
        let (code, weight, text) = match &why {
            Some(why) => ("services_forbidden", Weight::Error, why.why.clone()),
            None => ("services_allowed", Weight::Info, "services may run here again".to_string()),
        };
        if self.forbidden.is_some() != why.is_some() {
            self.note(effects, code, weight, None, text);
        }
        self.forbidden = why;
    }

    /// A service was given up here.
    pub(super) fn given_up(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        let retry_ms = service.retry_at.since(self.now).as_ms();
        let text = format!("cannot run here; it is tried again in {} s", retry_ms.div_ceil(1000));
        let is_critical = service.spec.is_critical;
        self.note(effects, "service_given_up", Weight::Error, Some(at), text);
        if is_critical {
            self.begin_trouble(at);
        }
    }

    pub(super) fn begin_trouble(&mut self, at: usize) {
        let service = &self.services[at];
        let resource = &self.settings.resource;
        let why = match &service.last_failure {
            Some((_, failure)) => failure.why.clone(),
            None => "it failed".to_string(),
        };
        let name = &service.spec.name;
        let (code, rule, why) = if service.is_witness_only() {
            let why = format!("clients do not reach this node, by {name}: {why}");
            (reached::UNREACHED, reached::RULE, why)
        } else {
            ("services_failed", "services", format!("{name} does not run here: {why}"))
        };
        let hindrance = Hindrance {
            code: code.into(),
            rule: rule.into(),
            why,
            next: format!(
                "mend it, then replctl clear {resource}; it is tried again by itself after a time"
            ),
        };
        self.trouble_level = self.trouble_level.saturating_add(1);
        let since = self.trouble.as_ref().map_or(self.now, |trouble| trouble.since);
        let expires = self.now + doubled(LASTS_FIRST, self.trouble_level - 1, LASTS_MAX);
        self.trouble = Some(Trouble { service: at, since, expires, why: hindrance });
    }

    /// Whether something that should run here and that others need does not.
    fn lacks_something(&self) -> bool {
        (0..self.services.len()).any(|at| {
            let service = &self.services[at];
            service.spec.is_critical && self.may_run(at) && service.phase != Phase::Running
        })
    }

    pub(super) fn watch_trouble(&mut self, effects: &mut Vec<Effect>) {
        if self.running_since.is_some_and(|since| self.now.since(since) >= STABLE) {
            self.trouble_level = 0;
            for service in self.services.iter_mut().filter(|it| it.phase == Phase::Running) {
                service.forgive();
            }
        }
        let Some(trouble) = &self.trouble else { return };
        let is_over = match self.office {
            Office::Held => !self.lacks_something(),
            // While it goes it is not looked at.
            Office::Releasing(_) => false,
            Office::Unknown | Office::NotHeld | Office::Lost => {
                !self.lacks_something() && self.now >= trouble.expires
            }
        };
        if is_over {
            let at = trouble.service;
            self.end_trouble(false);
            let text = "nothing speaks against this node any more".to_string();
            self.note(effects, "trouble_over", Weight::Info, Some(at), text);
        }
    }

    /// Services get their restarts back; with the operator's word also a clean past.
    pub(super) fn end_trouble(&mut self, is_ordered: bool) {
        if is_ordered {
            self.trouble_level = 0;
        }
        if self.trouble.take().is_some() && !self.holds() {
            for service in &mut self.services {
                service.failures = 0;
                service.is_given_up = false;
            }
        }
    }
}

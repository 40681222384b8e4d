//! What those who look see of the services of a resource on this node: plain values.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::engine::{Engine, Office};
use super::outcome::Failure;
use super::port::Release;
use super::service::{Phase, Service};
use super::spec::Place;
use crate::facts::Hindrance;

/// One service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceState {
    /// Its name.
    pub name: String,
    /// On which nodes it runs.
    pub place: Place,
    /// What it is.
    pub phase: Phase,
    /// For how long.
    pub since: Span,
    /// What is being done with it has so long left; none: nothing is.
    pub left: Option<Span>,
    /// It is tried again after so long; none: it is not waiting for that.
    pub retry_in: Option<Span>,
    /// Whether it is frozen, since there is no lease.
    pub is_suspended: bool,
    /// Whether an operator wants it stopped.
    pub is_off: bool,
    /// Whether it should run here now.
    pub is_wanted: bool,
    /// Restarts since this node took the office.
    pub restarts: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Why it failed last, and how long ago.
    pub last_failure: Option<(Span, Failure)>,
    /// A warning: degraded, stopped by hand, ...
    pub remark: String,
    /// For how long that is so.
    pub remark_for: Span,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// `running`, `starting`, `stopping`, `stopped`, `suspended`, `failed`, `forbidden`,
    /// `maintenance`.
    pub word: &'static str,
    /// Whether the operator wants hands off.
    pub is_maintained: bool,
    /// Why services cannot run on this node, if so.
    pub trouble: Option<Hindrance>,
    /// Whether only a reset of the machine helps.
    pub must_reset: bool,
    /// Each.
    pub services: Vec<ServiceState>,
}

impl Engine {
    /// How things are.
    pub fn state(&self, now: Time) -> State {
        State {
            word: self.word(),
            is_maintained: self.is_maintained,
            trouble: self.trouble().cloned(),
            must_reset: self.must_reset(),
            services: (0..self.services.len()).map(|at| self.service_state(at, now)).collect(),
        }
    }

    fn word(&self) -> &'static str {
        let any = |what: fn(&Service) -> bool| self.services.iter().any(what);
        if self.is_maintained {
            "maintenance"
        } else if self.holds() && self.lapsed_since.is_some() {
            "suspended"
        } else if any(|it| it.phase == Phase::StopHangs || it.is_given_up) {
            "failed"
        } else if matches!(self.office, Office::Lost | Office::Releasing(_)) {
            "stopping"
        } else if self.office == Office::Held && self.forbidden.is_some() {
            if self.is_all_stopped() { "forbidden" } else { "stopping" }
        } else if self.office == Office::Held {
            if self.runs_all() { "running" } else { "starting" }
        } else if any(|it| it.phase != Phase::Stopped) {
            "running"
        } else {
            "stopped"
        }
    }

    fn service_state(&self, at: usize, now: Time) -> ServiceState {
        let service = &self.services[at];
        let is_wanted = self.may_run(at);
        let waits =
            is_wanted && service.phase == Phase::Stopped || service.phase == Phase::StopHangs;
        ServiceState {
            name: service.spec.name.clone(),
            place: service.spec.place,
            phase: service.phase,
            since: now.since(service.since),
            left: service.job.as_ref().map(|job| job.until.since(now)),
            retry_in: (waits && service.retry_at > now).then(|| service.retry_at.since(now)),
            is_suspended: service.is_suspended,
            is_off: service.is_off,
            is_wanted,
            restarts: service.restarts,
            failures: service.failures,
            last_failure: service
                .last_failure
                .as_ref()
                .map(|(when, failure)| (now.since(*when), failure.clone())),
            remark: service.remark.clone(),
            remark_for: now.since(service.remark_since),
        }
    }

    /// How long an orderly stop of everything takes at most: each step its longest deadline, then
    /// force.
    pub fn stop_limit(&self) -> Span {
        let mut steps: BTreeMap<u16, Span> = BTreeMap::new();
        for service in &self.services {
            let limit = steps.entry(service.spec.step).or_default();
            *limit = (*limit).max(service.stop_limit());
        }
        Span(steps.values().map(|limit| limit.0).sum())
    }

    /// Whether the office is being given up since services cannot run here.
    pub fn is_moving(&self) -> bool {
        self.office == Office::Releasing(Release::Move)
    }
}

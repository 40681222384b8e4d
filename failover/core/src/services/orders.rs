//! What operators want of services: start, stop, restart, clear, maintenance.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Time;

use super::engine::Engine;
use super::port::{Effect, Order};
use super::service::{Action, Phase, Service};

impl Engine {
    pub(super) fn ordered(&mut self, order: &Order, effects: &mut Vec<Effect>) {
        let now = self.now;
        match order {
            Order::Start(name) => {
                self.named(name.as_deref(), |it| it.allow(now));
                self.end_trouble(true);
            }
            Order::Stop(name) => self.named(name.as_deref(), |it| it.is_off = true),
            Order::Restart(name) => self.named(name.as_deref(), |it| it.restart(now)),
            Order::Clear(name) => {
                self.named(name.as_deref(), |it| it.clear(now));
                self.end_trouble(true);
            }
            Order::Maintenance(is_on) => self.maintain(*is_on, effects),
            Order::Switches { is_maintained, off } => {
                self.maintain(*is_maintained, effects);
                self.switch_off(off);
            }
        }
    }

    fn named(&mut self, name: Option<&str>, act: impl Fn(&mut Service)) {
        let is_meant = |it: &&mut Service| name.is_none_or(|name| name == it.spec.name);
        self.services.iter_mut().filter(is_meant).for_each(act);
    }

    /// What the register says; said again it changes nothing.
    fn switch_off(&mut self, off: &[String]) {
        let now = self.now;
        for service in &mut self.services {
            let is_off = off.iter().any(|name| name.is_empty() || *name == service.spec.name);
            if service.is_off && !is_off {
                service.allow(now);
            }
            service.is_off = is_off;
        }
    }

    /// After maintenance everything is asked what it is.
    fn maintain(&mut self, is_on: bool, effects: &mut Vec<Effect>) {
        if is_on == self.is_maintained {
            return;
        }
        self.is_maintained = is_on;
        for at in 0..self.services.len() {
            let service = &self.services[at];
            if !matches!(service.phase, Phase::Running | Phase::Stopped | Phase::Failed) {
                continue;
            }
            if service.job.as_ref().is_some_and(|job| job.action == Action::Monitor) {
                self.drop_job(at, effects);
            }
            if !is_on {
                let now = self.now;
                self.services[at].enter(now, Phase::Unknown);
            }
        }
    }
}

impl Service {
    fn allow(&mut self, now: Time) {
        self.is_off = false;
        self.forgive();
        self.retry_at = now;
    }

    fn restart(&mut self, now: Time) {
        self.restart_wanted = self.phase != Phase::Stopped;
        self.forgive();
        self.retry_at = now;
    }

    fn clear(&mut self, now: Time) {
        self.forgive();
        self.retry_at = now;
        self.last_failure = None;
        self.defies = None;
        if self.phase == Phase::StopHangs {
            self.enter(now, Phase::Unknown);
        }
    }
}

//! What runs on top of a resource: made from the configuration, told what becomes of office and
//! lease, stopped before the office is given up. What is decided about it is decided in
//! `failover_core::services`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use failover::core::cluster::Switches;
use failover::core::facts::Hindrance;
use failover::core::services::report::ServiceState;
use failover::core::services::{
    Failure, Gain, Input, Kind, Note, Order, Release, ServiceSpec, Settings, Weight as NoteWeight,
};
use failover::core::{Span, Time};
use failover::guard::Registry;
use failover::services::address::{Address, AddressConfig};
use failover::services::runner::{Listener, Runner, Setup};
use failover::services::systemd::{Systemd, Unit};
use failover::services::{self, Home, Service, Site};
use replicator_core::register::RegisterState;

use super::Resource;
use crate::cluster::ToHistory;
use crate::control::{RefusalReport, Reply};
use crate::events::Weight;
use crate::guard::Guarding;
use crate::hooks::HookEvent;
use crate::report::{ServiceReport, ServicesReport};

/// How much longer than all its deadlines a stop of services is waited for.
const STOP_MARGIN: Duration = Duration::from_secs(10);

impl Resource {
    /// Makes its services. Nothing is started.
    pub fn make_services(
        self: &Arc<Self>,
        systemd: &Arc<Systemd>,
        guarding: Option<&Arc<Guarding>>,
    ) -> std::io::Result<()> {
        let specs = &self.config.services.specs;
        if specs.is_empty() {
            return Ok(());
        }
        let registry = guarding.map_or_else(Registry::none, |guarding| guarding.registry());
        if let Some(guarding) = guarding {
            // Set once, before the resource starts.
            let _ = self.guarding.set(guarding.clone());
        }
        let device = self.node.device_dir.join(self.name());
        let home = Home {
            run_dir: self.node.run_dir.clone(),
            node: self.node.name.clone(),
            device: device.clone(),
            ocf_root: services::OCF_ROOT.into(),
        };
        let make = |spec: &ServiceSpec| -> std::io::Result<Arc<dyn Service>> {
            match &spec.kind {
                Kind::Systemd { unit } => {
                    let limit = Duration::from_nanos(spec.timing.monitor.0);
                    Ok(Arc::new(Unit::new(systemd.clone(), unit).monitored_within(limit)))
                }
                Kind::Address { address, prefix, interface } => {
                    let config = AddressConfig {
                        resource: self.name().to_owned(),
                        address: *address,
                        prefix: *prefix,
                        interface: interface.clone(),
                        is_source: false,
                        lease: self.lease_length.clone(),
                        peers: self.addresses_of_others(),
                    };
                    Ok(Arc::new(Address::new(config, registry.clone())?))
                }
                _ => {
                    let made = services::make(spec, self.name(), &home);
                    let made = made.map_err(|failure| {
                        std::io::Error::other(format!("{}: {}", spec.name, failure.why))
                    })?;
                    Ok(Arc::from(made))
                }
            }
        };
        let setup = Setup {
            settings: Settings {
                resource: self.name().to_owned(),
                services: specs.clone(),
                lease: self.lease_length.get(),
                demote_after: self.config.timing.demote_after,
            },
            services: specs.iter().map(make).collect::<std::io::Result<_>>()?,
            site: Site { device, resource: self.name().to_owned(), node: self.node.name.clone() },
            registry: registry.clone(),
            forbidden: match guarding.cloned() {
                Some(guarding) => Box::new(move || guarding.hindrance()),
                None => Box::new(|| None),
            },
        };
        let story = Story { resource: self.clone(), phases: Mutex::default() };
        let runner = Runner::start(setup, story)?;
        // Set once, before the resource starts.
        let _ = self.services.set(runner);
        Ok(())
    }

    fn addresses_of_others(&self) -> Vec<std::net::IpAddr> {
        let others = self.cluster.nodes.iter().filter(|node| node.name != self.node.name);
        others.flat_map(|node| node.addresses.iter().map(|address| address.ip())).collect()
    }

    /// The services, if it has some.
    pub fn services(&self) -> Option<&Runner> {
        self.services.get()
    }

    pub(super) fn tell_services(&self, input: Input) {
        if let Some(services) = self.services() {
            services.tell(input);
        }
    }

    // ------------------------------------------------------------------ the office

    /// A promotion begins: by what the register says now it will be known how the office came.
    pub(super) fn note_before_office(&self) {
        let register = self.loop_status().map(|status| {
            let is_mine =
                status.core.register.primary.is_some_and(|it| it.0 == status.core.replica);
            (status.core.register, is_mine)
        });
        self.lock().before_office = register;
    }

    /// The device is open, or there is none: services may start.
    pub(super) fn office_gained(&self, tenure: u64) {
        if self.services().is_none() {
            return;
        }
        let how = self
            .lock()
            .before_office
            .as_ref()
            .map_or(Gain::TakenFromSilent, |before| gain(tenure, &before.0, before.1));
        if !self.is_in_cluster() {
            // Without a majority there is no lease: the authority has the office until it gives it.
            let until = Some(Time(u64::MAX));
            self.tell_guard_of_lease(until);
            self.tell_services(Input::LeaseChanged { until });
        }
        self.tell_services(Input::OfficeGained { tenure, how });
    }

    /// The replica no longer serves: given up when everything was stopped, or taken away.
    pub(super) fn office_closed(&self, forced: bool) {
        let Some(services) = self.services() else { return };
        if forced || !services.is_all_stopped() {
            services.tell(Input::OfficeLost);
        }
    }

    /// A secondary that knows whose office it is has nothing of the primary running.
    pub(super) fn tell_whose_office(&self, role: &str, replica: u128, register: &RegisterState) {
        if role != "secondary" || self.services().is_none() {
            return;
        }
        let newest = if self.is_in_cluster() {
            self.lock().learned.clone()
        } else {
            Some(register.clone()).filter(|register| register.generation > 0)
        };
        if let Some(newest) = newest
            && newest.primary.is_none_or(|primary| primary.0 != replica)
        {
            self.tell_services(Input::NotHeld { tenure: newest.tenure });
        }
    }

    /// What the operator wants, as the register says.
    pub fn switches_changed(&self, switches: &Switches) {
        self.tell_services(Input::Ordered(Order::Switches {
            is_maintained: switches.is_maintained,
            off: switches.off.clone(),
        }));
    }

    /// Stops all services, so that the office can be given up; nothing to do without services.
    pub(super) fn stop_services(&self, release: Release) -> Result<(), RefusalReport> {
        let Some(services) = self.services() else { return Ok(()) };
        let patience = Duration::from_nanos(services.stop_limit().0) + STOP_MARGIN;
        services.release(release, patience).map_err(|failure| refusal(&failure))
    }

    /// Services cannot run here, or somebody wants the office elsewhere.
    pub(super) fn why_released(&self) -> Release {
        match self.trouble() {
            Some(_) => Release::Move,
            None => Release::HandOver,
        }
    }

    /// Why services cannot run on this node, if so.
    pub fn trouble(&self) -> Option<Hindrance> {
        self.services().and_then(Runner::trouble)
    }

    // ------------------------------------------------------------------ the guard

    /// Whoever guards this node, if anybody does.
    pub fn guarding(&self) -> Option<&Arc<Guarding>> {
        self.guarding.get()
    }

    pub(super) fn tell_guard_of_lease(&self, until: Option<Time>) {
        if let Some(guarding) = self.guarding.get() {
            guarding.registry().set_lease(self.name(), until);
        }
    }

    /// The lease of the register. Its file may say another one: an operator has not applied it yet,
    /// or this node was not started since.
    pub fn lease_length_changed(&self, lease: Span) {
        if self.lease_length.get() == lease {
            return;
        }
        // Before anybody is told of the next renewal.
        self.lease_length.set(lease);
        if let Some(guarding) = self.guarding.get() {
            guarding.registry().set_lease_length(lease);
        }
        self.tell_services(Input::LeaseLengthChanged { lease });
    }

    // ------------------------------------------------------------------ operators

    /// What an operator wants of services on this node.
    pub fn order_services(
        &self,
        order: &dyn Fn(Option<String>) -> Order,
        name: Option<&str>,
    ) -> Reply {
        let known = &self.config.services.specs;
        if let Err(refusal) = self.check_service(name) {
            return Reply::Refused(refusal);
        }
        self.tell_services(Input::Ordered(order(name.map(str::to_owned))));
        let what = match name {
            Some(name) => name.to_owned(),
            None => known.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        Reply::Done(format!("ordered for {what}; replctl status shows how it goes"))
    }

    /// Whether a service, or any at all, should run on this node now.
    pub fn runs_any(&self, name: Option<&str>) -> bool {
        let is_meant = |it: &&ServiceState| name.is_none_or(|name| name == it.name);
        self.services().is_some_and(|services| {
            services.state().services.iter().filter(is_meant).any(|it| it.is_wanted)
        })
    }

    /// Whether there is a service of that name.
    pub fn check_service(&self, name: Option<&str>) -> Result<(), RefusalReport> {
        let known: Vec<&str> =
            self.config.services.specs.iter().map(|spec| spec.name.as_str()).collect();
        if known.is_empty() {
            return Err(RefusalReport::new(
                "no_services",
                format!("{} has no services", self.name()),
                "write services = [ ... ] into its section of the configuration",
            ));
        }
        match name {
            Some(name) if !known.contains(&name) => Err(RefusalReport::new(
                "unknown_service",
                format!("{} has no service {name}", self.name()),
                format!("it has: {}", known.join(", ")),
            )),
            _ => Ok(()),
        }
    }

    /// For status.
    pub(super) fn services_report(&self) -> Option<ServicesReport> {
        let state = self.services()?.state();
        Some(ServicesReport {
            state: state.word.to_owned(),
            maintenance: state.is_maintained,
            trouble: state.trouble.map(|trouble| RefusalReport {
                code: trouble.code,
                rule: trouble.rule,
                why: trouble.why,
                next: trouble.next,
            }),
            needs_reset: state.must_reset,
            services: state.services.iter().map(ServiceReport::of).collect(),
        })
    }
}

/// How an office came, by what the register said before. Only an office whose last change was the
/// own proposal right behind that state is known to be handed over.
fn gain(tenure: u64, before: &RegisterState, was_mine: bool) -> Gain {
    if was_mine && before.tenure == tenure {
        Gain::Resumed
    } else if before.primary.is_none() && tenure == before.generation + 1 {
        Gain::HandedOver
    } else {
        Gain::TakenFromSilent
    }
}

fn refusal(failure: &Failure) -> RefusalReport {
    RefusalReport::new(&failure.code, failure.why.clone(), failure.next.clone())
}

/// Writes down what happens to services.
struct Story {
    resource: Arc<Resource>,
    /// How long each step took since the office came or began to go.
    phases: Mutex<Vec<(String, u64)>>,
}

impl Listener for Story {
    fn noted(&self, service: Option<&str>, note: &Note) {
        let weight = match note.weight {
            NoteWeight::Info => Weight::Info,
            NoteWeight::Warning => Weight::Warning,
            NoteWeight::Error => Weight::Error,
        };
        let text = match service {
            Some(name) => format!("{name}: {}", note.text),
            None => format!("services: {}", note.text),
        };
        self.resource.emit(weight, text);
        for event in hook_events(self.resource.name(), service, note) {
            self.resource.events.tell_hooks(|| event);
        }
        let took = note.took.map_or(0, Span::as_ms);
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        match (note.code, service) {
            ("service_started", Some(name)) => phases.push((format!("start {name}"), took)),
            ("service_stopped", Some(name)) => phases.push((format!("stop {name}"), took)),
            ("all_running", _) => {
                phases.push(("all services".to_owned(), took));
                let phases = std::mem::take(&mut *phases);
                let resource = self.resource.name().to_owned();
                self.resource.tell_history(ToHistory::Served { resource, phases });
            }
            _ => {}
        }
        // Whoever restarts for ever without ever running whole fills no memory.
        let surplus = phases.len().saturating_sub(PHASES_MAX);
        phases.drain(..surplus);
    }

    fn fail_device(&self) {
        let tenure = self.resource.serving();
        self.resource.in_helper_or_here("fail", move |resource| {
            resource.emit(Weight::Warning, "the device is failed, since services do not stop");
            resource.device.fail(tenure, &mut |text| resource.emit(Weight::Warning, text));
            resource.tell_services(Input::DeviceFailed);
        });
    }
}

/// What hooks are told of a note.
fn hook_events(resource: &str, service: Option<&str>, note: &Note) -> Vec<HookEvent> {
    let is_conflict = services::address::is_conflict(&note.text);
    let conflict = is_conflict.then_some(("address_conflict", "somebody else has it"));
    let told = match note.code {
        "all_running" => Some(("services_running", "all run")),
        "service_failed" => Some(("service_failed", "failed")),
        "stop_failed" => Some(("service_failed", "stop failed")),
        "service_given_up" => Some(("service_given_up", "was given up")),
        "stop_hangs" => Some(("stop_hangs", "cannot be stopped")),
        "service_warning" => None,
        _ => return Vec::new(),
    };
    let event = |(event, what): (&'static str, &str)| HookEvent {
        event,
        resource: resource.to_owned(),
        what: format!("{} {what}", service.unwrap_or("services")),
        why: note.text.clone(),
        service: service.unwrap_or_default().to_owned(),
        ..HookEvent::default()
    };
    told.into_iter().chain(conflict).map(event).collect()
}

/// Steps of one change of office that are remembered.
const PHASES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use replicator_core::block::ReplicaId;

    use super::*;

    fn register(generation: u64, tenure: u64, primary: Option<u128>) -> RegisterState {
        RegisterState {
            generation,
            tenure,
            primary: primary.map(ReplicaId),
            ..RegisterState::default()
        }
    }

    #[test]
    fn only_an_office_right_behind_a_release_counts_as_handed_over() {
        assert_eq!(gain(8, &register(7, 5, None), false), Gain::HandedOver);
        // Somebody took it meanwhile and was lost.
        assert_eq!(gain(9, &register(7, 5, None), false), Gain::TakenFromSilent);
        assert_eq!(gain(8, &register(7, 5, Some(1)), false), Gain::TakenFromSilent);
        assert_eq!(gain(5, &register(7, 5, Some(1)), true), Gain::Resumed);
        assert_eq!(gain(8, &register(7, 5, Some(1)), true), Gain::TakenFromSilent);
    }

    #[test]
    fn hooks_are_told_of_what_services_run_into() {
        let told = |code: &'static str, service: Option<&str>, text: &str| {
            let text = text.to_owned();
            let weight = NoteWeight::Info;
            let note = Note { code, weight, service: None, took: None, text };
            let events = hook_events("db", service, &note);
            events.iter().map(|it| format!("{}: {}", it.event, it.what)).collect::<Vec<_>>()
        };
        let vip = Some("192.0.2.9/24");
        assert_eq!(
            told("all_running", None, "all services run"),
            ["services_running: services all run"]
        );
        assert_eq!(
            told("service_given_up", vip, "x"),
            ["service_given_up: 192.0.2.9/24 was given up"]
        );
        assert_eq!(
            told("stop_hangs", Some("/srv/db"), "x"),
            ["stop_hangs: /srv/db cannot be stopped"]
        );
        assert_eq!(
            told("service_failed", Some("x.service"), "x"),
            ["service_failed: x.service failed"]
        );
        let too = "02:00:00:00:00:01 says that it has 192.0.2.9 too";
        let conflict = "address_conflict: 192.0.2.9/24 somebody else has it";
        assert_eq!(told("service_warning", vip, too), [conflict]);
        let in_use = "192.0.2.9 is in use on this network, by 02:00:00:00:00:01";
        assert_eq!(
            told("service_failed", vip, in_use),
            ["service_failed: 192.0.2.9/24 failed", conflict]
        );
        assert!(told("service_warning", Some("/srv/db"), "has become read-only").is_empty());
        assert!(told("service_started", vip, "started").is_empty());
    }
}

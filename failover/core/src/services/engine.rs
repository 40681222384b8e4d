//! The services of one resource on this node: facts in, orders out. What is to run follows from the
//! office, the lease, the operator's switches and what the services answer, looked at anew after
//! every fact (`goal.rs`); so there is no order of events that was not thought of.
//!
//! Steps start top-down and stop bottom-up, services of one step together. A failed service is
//! restarted in place; when that does not help, this node says so ([`Engine::trouble`]) and the
//! office moves to another one, if that has no trouble; else it is tried again here, after growing
//! times. Nothing is banned for ever.
//!
//! When the lease is over, addresses are withdrawn and the rest is frozen, at once (L4). When it is
//! back all goes on. When the office is lost everything stops by force.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::outcome::{Change, Condition, Failure, Force};
use super::port::{Answer, Effect, Gain, Input, Note, Release, Settings, Weight};
use super::service::{Action, Event, Job, Next, Phase, STABLE, Service, next};
use super::spec::Place;
use super::trouble::Trouble;
use crate::facts::Hindrance;

/// How this node stands to the office.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Office {
    /// Since its start this process does not know whether it is to resume it.
    Unknown,
    /// Another node's, or nobody's.
    NotHeld,
    /// Ours.
    Held,
    /// Ours, and about to be given up.
    Releasing(Release),
    /// It was ours: everything is to stop.
    Lost,
}

/// The services of one resource on this node.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) now: Time,
    pub(super) services: Vec<Service>,
    pub(super) office: Office,
    /// Since when.
    pub(super) office_since: Time,
    pub(super) tenure: u64,
    /// Addresses are not added before.
    pub(super) address_from: Time,
    pub(super) lease_until: Option<Time>,
    /// What the lease was before it changed, and until when a lost primary may still have its
    /// address by it.
    pub(super) earlier_lease: Option<(Span, Time)>,
    /// Since when the lease of an office is over.
    pub(super) lapsed_since: Option<Time>,
    /// The resource runs on this node.
    pub(super) is_up: bool,
    pub(super) is_maintained: bool,
    device_fail: DeviceFail,
    /// Somebody waits for [`Effect::Released`].
    is_release_open: bool,
    /// That everything runs was told.
    is_running_told: bool,
    /// Since when everything that should runs.
    pub(super) running_since: Option<Time>,
    /// Why nothing of the primary may run on this node, whatever office it has.
    pub(super) forbidden: Option<Hindrance>,
    pub(super) trouble: Option<Trouble>,
    /// How often in a row there was trouble.
    pub(super) trouble_level: u32,
    last_ticket: u64,
    /// When addresses under a lease without end are refreshed.
    pub(super) refresh_at: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DeviceFail {
    Not,
    Ordered,
    Done,
}

impl Engine {
    /// Nothing is known yet.
    pub fn new(now: Time, settings: Settings) -> Self {
        let services = settings.services.iter().map(|spec| Service::new(now, spec.clone()));
        Self {
            now,
            services: services.collect(),
            office: Office::Unknown,
            office_since: now,
            tenure: 0,
            address_from: now,
            lease_until: None,
            earlier_lease: None,
            lapsed_since: None,
            is_up: false,
            is_maintained: false,
            device_fail: DeviceFail::Not,
            is_release_open: false,
            is_running_told: false,
            running_since: None,
            forbidden: None,
            trouble: None,
            trouble_level: 0,
            last_ticket: 0,
            refresh_at: now,
            settings,
        }
    }

    /// Takes in a fact and says what is to be done.
    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        match input {
            Input::ResourceUp => {
                self.is_up = true;
                self.office_since = self.now;
            }
            Input::OfficeGained { tenure, how } => self.gained(tenure, how),
            Input::NotHeld { tenure } => self.not_held(tenure, effects),
            Input::LeaseChanged { until } => self.lease_changed(until, effects),
            Input::LeaseLengthChanged { lease } => self.lease_length_changed(lease),
            Input::OfficeLost => {
                if self.holds() {
                    self.lose("the office was taken away", effects);
                }
            }
            Input::ReleaseWanted(release) => self.release_wanted(release, effects),
            Input::ReleaseCancelled => self.release_cancelled(),
            Input::HandOverWithdrawn => self.hand_over_withdrawn(effects),
            Input::OfficeReleased => self.released(),
            Input::DeviceFailed => self.device_failed(),
            Input::Ended { service, ticket, result } => {
                self.ended(service, ticket, result, effects);
            }
            Input::Changed { service, change } => self.changed(service, change, effects),
            Input::Unprepared { service, why } => self.unprepared(service, why, effects),
            Input::Forbidden(why) => self.forbid(why, effects),
            Input::Ordered(order) => self.ordered(&order, effects),
            Input::TimePassed => {}
        }
        self.watch_lease(effects);
        self.watch_deadlines(effects);
        self.watch_trouble(effects);
        self.reconcile(effects);
        self.suspend(effects);
        self.refresh(effects);
        self.tell_progress(effects);
        self.check_invariants();
    }

    // ------------------------------------------------------------------ the office

    fn enter(&mut self, office: Office) {
        self.office = office;
        self.office_since = self.now;
        self.is_running_told = false;
        self.running_since = None;
    }

    fn gained(&mut self, tenure: u64, how: Gain) {
        // Said again; or lost here for want of a lease, and not back yet.
        if self.tenure == tenure && (self.holds() || !self.has_lease()) && tenure != 0 {
            return;
        }
        let is_resumed = how == Gain::Resumed && self.office == Office::Unknown;
        // Whoever sent the office here wants it tried.
        self.end_trouble(false);
        for service in self.services.iter_mut().filter(|it| it.is_primary_only()) {
            service.restarts = 0;
            service.is_suspect = !is_resumed && service.phase != Phase::Stopped;
            if !service.is_given_up {
                service.retry_at = self.now;
            }
        }
        self.tenure = tenure;
        self.lapsed_since = None;
        self.device_fail = DeviceFail::Not;
        self.address_from = match how {
            Gain::TakenFromSilent => self.now + self.delay_of_addresses(),
            Gain::HandedOver | Gain::Resumed => self.now,
        };
        self.enter(Office::Held);
    }

    /// Whether this node has the office, so far.
    pub(super) fn holds(&self) -> bool {
        matches!(self.office, Office::Held | Office::Releasing(_))
    }

    fn not_held(&mut self, tenure: u64, effects: &mut Vec<Effect>) {
        match self.office {
            Office::Unknown => {
                self.tenure = tenure;
                self.enter(Office::NotHeld);
                // What an earlier process left runs beside the new primary's.
                let is_left = |it: &&mut Service| {
                    it.is_primary_only() && (it.is_suspended || it.phase == Phase::Running)
                };
                self.services.iter_mut().filter(is_left).for_each(Service::kill_next);
            }
            Office::Held | Office::Releasing(_) if tenure > self.tenure => {
                self.lose("another node took the office", effects);
            }
            Office::Held | Office::Releasing(_) | Office::NotHeld | Office::Lost => {}
        }
    }

    /// Whether another node, or nobody, has the office that a service belongs to.
    fn is_foreign(&self, at: usize) -> bool {
        self.services[at].is_primary_only() && self.office == Office::NotHeld
    }

    /// Everything of the primary stops by force.
    pub(super) fn lose(&mut self, why: &str, effects: &mut Vec<Effect>) {
        if matches!(self.office, Office::NotHeld | Office::Lost) {
            return;
        }
        if self.is_all_stopped() {
            self.lapsed_since = None;
            return self.enter(Office::NotHeld);
        }
        for service in self.services.iter_mut().filter(|it| it.is_primary_only()) {
            if service.phase != Phase::Stopped {
                service.is_suspect = true;
                service.stop_from = Force::Kill;
                // One whose stop hung is tried with all force, now.
                service.retry_at = self.now;
            }
        }
        self.lapsed_since = None;
        self.enter(Office::Lost);
        self.note(
            effects,
            "office_lost",
            Weight::Warning,
            None,
            format!("{why}: everything stops by force"),
        );
    }

    fn release_wanted(&mut self, release: Release, effects: &mut Vec<Effect>) {
        if release == Release::Down {
            self.is_up = false;
            if self.office == Office::Unknown {
                // What an earlier process left runs on a device that nobody serves.
                self.lose("the resource goes down", effects);
            }
        }
        self.is_release_open = true;
        if self.holds() {
            self.enter(Office::Releasing(release));
        }
    }

    fn release_cancelled(&mut self) {
        if let Office::Releasing(_) = self.office {
            self.enter(Office::Held);
        }
        self.is_release_open = false;
        self.is_up = true;
    }

    fn hand_over_withdrawn(&mut self, effects: &mut Vec<Effect>) {
        let is_open = self.is_release_open && self.office == Office::Releasing(Release::HandOver);
        if is_open {
            self.release_cancelled();
            effects.push(Effect::ReleaseFailed(Failure {
                code: "cancelled".into(),
                why: "the switchover was cancelled".into(),
                next: "order it again: replctl switchover".into(),
                is_permanent: false,
            }));
        }
    }

    fn released(&mut self) {
        if self.holds() {
            self.enter(Office::NotHeld);
            self.lapsed_since = None;
        }
    }

    fn device_failed(&mut self) {
        self.device_fail = DeviceFail::Done;
        for service in &mut self.services {
            if service.phase == Phase::StopHangs {
                service.stop_from = Force::Detach;
                service.retry_at = self.now;
            }
        }
    }

    // ------------------------------------------------------------------ what services say

    /// Carries an event out on one service, by the table.
    pub(super) fn apply(&mut self, at: usize, event: Event) -> Next {
        let now = self.now;
        let service = &mut self.services[at];
        let outcome = next(service.phase, event);
        match outcome {
            Next::Stay => {}
            Next::To(phase) => service.enter(now, phase),
            Next::Fails => service.enter(now, Phase::Failed),
            Next::Ask => service.enter(now, Phase::Unknown),
            Next::Never => panic!("{}: {event:?} in {:?}", service.spec.name, service.phase),
        }
        outcome
    }

    fn ended(
        &mut self,
        at: usize,
        ticket: u64,
        result: Result<Answer, Failure>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(service) = self.services.get_mut(at) else { return };
        // What was dropped may still answer.
        let Some(job) = service.job.take_if(|job| job.ticket == ticket) else { return };
        match (job.action, result) {
            (Action::Start, Ok(_)) => self.started(at, &job, effects),
            (Action::Start, Err(failure)) => self.fails(at, Event::StartFailed, failure, effects),
            (Action::Stop(_), Ok(_)) => {
                self.apply(at, Event::StopDone);
                let took = self.now.since(job.since);
                self.note_done(effects, "service_stopped", Some(at), ("stopped", took));
            }
            (Action::Stop(force), Err(failure)) => self.stop_failed(at, force, failure, effects),
            (Action::Monitor, Ok(Answer::Is(condition))) => self.found(at, condition, effects),
            (Action::Monitor, Ok(Answer::Done)) => self.found(at, Condition::Running, effects),
            (Action::Monitor, Err(failure)) => self.monitor_failed(at, failure, effects),
        }
    }

    fn started(&mut self, at: usize, job: &Job, effects: &mut Vec<Effect>) {
        self.apply(at, Event::Started);
        let took = self.now.since(job.since);
        self.note_done(effects, "service_started", Some(at), ("started", took));
        let service = &self.services[at];
        if service.is_address() && service.is_primary_only() {
            let left = self.lease_left();
            effects.push(Effect::Lease { service: at, left });
        }
    }

    fn found(&mut self, at: usize, condition: Condition, effects: &mut Vec<Effect>) {
        let now = self.now;
        let service = &mut self.services[at];
        let was_unknown = service.phase == Phase::Unknown;
        match condition {
            Condition::Running | Condition::Degraded(_) => {
                let remark = match condition {
                    Condition::Degraded(why) => why,
                    _ => String::new(),
                };
                let is_news = service.remark != remark && !remark.is_empty();
                service.remark(&remark, now);
                service.monitor_at = service.next_monitor(now);
                service.changing_since = None;
                self.apply(at, Event::FoundRunning);
                if was_unknown && self.is_foreign(at) {
                    self.services[at].kill_next();
                }
                if was_unknown {
                    let text = "was found running".to_string();
                    self.note(effects, "service_found", Weight::Info, Some(at), text);
                }
                if is_news {
                    self.note(effects, "service_degraded", Weight::Warning, Some(at), remark);
                }
            }
            // That it ended is believed of another stop, not of a monitor.
            Condition::Stopped | Condition::Changing(_)
                if was_unknown && service.defies >= Some(Force::Kill) =>
            {
                self.is_of_no_use(at, effects);
            }
            Condition::Stopped if was_unknown => {
                self.apply(at, Event::FoundStopped);
            }
            Condition::Stopped => {
                let why = "it was found stopped".to_string();
                self.fails(at, Event::FoundStopped, ended_by_itself(why), effects);
            }
            Condition::Changing(what) => {
                if service.is_changing(now, what) {
                    let failure = service.overdue(Action::Start);
                    self.monitor_failed(at, failure, effects);
                }
            }
        }
    }

    /// It was killed, does not run, and does not end either: nobody is served here any more. The
    /// next move is one for want of a service, which may use all force.
    fn is_of_no_use(&mut self, at: usize, effects: &mut Vec<Effect>) {
        self.apply(at, Event::MonitorFailed);
        // The next order to move may have come before its answer.
        let is_wanted = self.may_run(at) || self.holds();
        let service = &mut self.services[at];
        service.stop_from = service.stop_from.max(Force::Kill);
        if is_wanted && !service.is_given_up {
            service.is_given_up = true;
            service.rounds = service.rounds.saturating_add(1);
            self.given_up(at, effects);
        }
    }

    fn monitor_failed(&mut self, at: usize, failure: Failure, effects: &mut Vec<Effect>) {
        if self.services[at].phase != Phase::Unknown {
            return self.fails(at, Event::MonitorFailed, failure, effects);
        }
        if self.services[at].defies >= Some(Force::Kill) && !failure.is_permanent {
            return self.is_of_no_use(at, effects);
        }
        let text = format!("cannot be asked what it is: {}", failure.why);
        let is_permanent = failure.is_permanent;
        self.services[at].last_failure = Some((self.now, failure));
        if is_permanent {
            // What is not installed does not run.
            self.apply(at, Event::FoundStopped);
        } else {
            self.apply(at, Event::MonitorFailed);
        }
        self.note(effects, "service_unknown", Weight::Warning, Some(at), text);
    }

    fn changed(&mut self, at: usize, change: Change, effects: &mut Vec<Effect>) {
        if at >= self.services.len() {
            return;
        }
        match change {
            Change::Failed(why) => self.told(at, Event::ToldFailed, why, effects),
            Change::StoppedByHand(why) => self.told(at, Event::ToldStopped, why, effects),
            Change::StartedByHand(why) => self.told(at, Event::ToldStarted, why, effects),
            Change::Step { what, limit } => self.step_of_start(at, what, limit, effects),
            Change::Warning(why) => {
                self.services[at].remark(&why, self.now);
                if !why.is_empty() {
                    self.note(effects, "service_warning", Weight::Warning, Some(at), why);
                }
            }
        }
    }

    /// A start under way has come to a step that takes its own time.
    fn step_of_start(
        &mut self,
        at: usize,
        what: String,
        limit: Option<Span>,
        effects: &mut Vec<Effect>,
    ) {
        let (now, service) = (self.now, &mut self.services[at]);
        let limit = limit.unwrap_or(service.limit(Action::Start));
        let Some(job) = service.job.as_mut().filter(|job| job.action == Action::Start) else {
            return;
        };
        job.until = now + limit;
        service.remark(&what, now);
        if !what.is_empty() {
            self.note(effects, "service_step", Weight::Warning, Some(at), what);
        }
    }

    fn told(&mut self, at: usize, event: Event, why: String, effects: &mut Vec<Effect>) {
        let is_wanted = !self.is_maintained && self.may_run(at);
        let outcome = next(self.services[at].phase, event);
        match outcome {
            Next::Stay | Next::Never => return,
            Next::Fails => return self.fails(at, event, ended_by_itself(why), effects),
            Next::To(Phase::Stopped) if is_wanted => {
                if self.services[at].is_stopped_again(self.now) {
                    let failure = stopped_again(why);
                    return self.fails(at, Event::ToldFailed, failure, effects);
                }
                self.services[at].restarts += 1;
                self.drop_job(at, effects);
            }
            Next::To(_) | Next::Ask => self.drop_job(at, effects),
        }
        self.apply(at, event);
        let service = &mut self.services[at];
        let (code, text) = match event {
            Event::ToldStopped => ("stopped_by_hand", format!("{why}; use replctl stop instead")),
            Event::ToldStarted => ("started_by_hand", why),
            _ => ("service_asked", why),
        };
        service.remark(&text, self.now);
        self.note(effects, code, Weight::Warning, Some(at), text);
    }

    /// It failed, by the table; counted, unless nothing is expected of it any more.
    fn fails(&mut self, at: usize, event: Event, failure: Failure, effects: &mut Vec<Effect>) {
        self.drop_job(at, effects);
        let is_wanted = !self.is_maintained && self.may_run(at);
        let text = failure.why.clone();
        let is_given_up = if is_wanted {
            self.services[at].count_failure(self.now, failure)
        } else {
            self.services[at].last_failure = Some((self.now, failure));
            false
        };
        self.apply(at, event);
        self.note(effects, "service_failed", Weight::Warning, Some(at), text);
        if is_given_up {
            self.given_up(at, effects);
        } else if is_wanted {
            self.services[at].restarts += 1;
        }
    }

    fn stop_failed(
        &mut self,
        at: usize,
        force: Force,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        let harder = match force {
            Force::Orderly => Some(Force::Kill),
            Force::Kill => Some(Force::Detach),
            Force::Detach => None,
        };
        let text = format!("stop failed ({}): {}", force_word(force), failure.why);
        self.note(effects, "stop_failed", Weight::Error, Some(at), text);
        let service = &mut self.services[at];
        service.last_failure = Some((self.now, failure.clone()));
        service.defies = service.defies.max(Some(force));
        match harder {
            Some(harder) if harder <= self.force_max(at) => {
                self.services[at].stop_from = harder;
                self.order(at, Action::Stop(harder), effects);
            }
            _ => self.stop_hangs(at, failure, effects),
        }
    }

    /// No force that is allowed now could stop it.
    fn stop_hangs(&mut self, at: usize, failure: Failure, effects: &mut Vec<Effect>) {
        self.apply(at, Event::StopFailed);
        match self.office {
            Office::Releasing(Release::Move)
                if self.device_fail == DeviceFail::Not && self.services[at].is_primary_only() =>
            {
                self.device_fail = DeviceFail::Ordered;
                effects.push(Effect::FailDevice);
            }
            Office::Releasing(Release::Down) => self.cannot_release(at, failure, effects),
            Office::Releasing(Release::HandOver) if self.services[at].is_primary_only() => {
                self.cannot_release(at, failure, effects);
            }
            Office::Held => {
                let service = &mut self.services[at];
                service.is_given_up = true;
                service.rounds = service.rounds.saturating_add(1);
                self.given_up(at, effects);
            }
            Office::NotHeld if !self.is_up => self.cannot_release(at, failure, effects),
            Office::Releasing(Release::Move | Release::HandOver)
            | Office::Unknown
            | Office::NotHeld
            | Office::Lost => {}
        }
        if self.must_reset() {
            let text = "no force can stop it: only a reset of this machine can".to_string();
            self.note(effects, "stop_hangs", Weight::Error, Some(at), text);
        }
    }

    /// What did not stop is asked what it is, and the rest comes back.
    fn cannot_release(&mut self, at: usize, failure: Failure, effects: &mut Vec<Effect>) {
        let why = Failure {
            why: format!("{} cannot be stopped: {}", self.services[at].spec.name, failure.why),
            ..failure
        };
        if self.holds() {
            self.enter(Office::Held);
        }
        self.is_up = true;
        let service = &mut self.services[at];
        service.enter(self.now, Phase::Unknown);
        service.stop_from = Force::Orderly;
        self.is_release_open = false;
        effects.push(Effect::ReleaseFailed(why));
    }

    fn unprepared(&mut self, at: usize, why: Failure, effects: &mut Vec<Effect>) {
        if at >= self.services.len() {
            return;
        }
        let text = format!("will not run here: {}", why.why);
        self.services[at].remark(&text, self.now);
        self.services[at].last_failure = Some((self.now, why));
        self.note(effects, "service_unprepared", Weight::Warning, Some(at), text);
        // Where it is to run now, its start says whether that is true.
        if self.services[at].spec.is_critical && !self.holds() {
            self.begin_trouble(at);
        }
    }

    // ------------------------------------------------------------------ orders to services

    pub(super) fn order(&mut self, at: usize, action: Action, effects: &mut Vec<Effect>) {
        match action {
            Action::Start => {
                self.apply(at, Event::StartOrdered);
            }
            Action::Stop(force) => {
                self.apply(at, Event::StopOrdered(force));
            }
            Action::Monitor => {}
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let (now, service) = (self.now, &mut self.services[at]);
        assert!(service.job.is_none(), "{}: one thing at a time", service.spec.name);
        let until = now + service.limit(action);
        service.job = Some(Job { ticket, action, since: now, until });
        effects.push(Effect::Do { service: at, ticket, action });
    }

    pub(super) fn drop_job(&mut self, at: usize, effects: &mut Vec<Effect>) {
        if let Some(job) = self.services[at].job.take() {
            effects.push(Effect::Drop { service: at, ticket: job.ticket });
        }
    }

    /// Every step has a deadline. While there is no lease nothing of the primary can go on, so
    /// nothing is late.
    fn watch_deadlines(&mut self, effects: &mut Vec<Effect>) {
        let lapsed = self.lapsed_since.is_some();
        for at in 0..self.services.len() {
            let service = &self.services[at];
            let is_held_up = lapsed && service.is_primary_only();
            let Some(job) = service.job.as_ref().filter(|job| job.until <= self.now) else {
                continue;
            };
            if is_held_up {
                continue;
            }
            let (action, failure) = (job.action, service.overdue(job.action));
            self.drop_job(at, effects);
            match action {
                Action::Start => self.fails(at, Event::StartFailed, failure, effects),
                Action::Stop(force) => self.stop_failed(at, force, failure, effects),
                Action::Monitor => self.monitor_failed(at, failure, effects),
            }
        }
    }

    /// When [`Input::TimePassed`] is due.
    pub fn next_deadline(&self) -> Option<Time> {
        let lapsed = self.lapsed_since.is_some();
        let services = self.services.iter().flat_map(|service| {
            let is_held_up = lapsed && service.is_primary_only();
            let job = service.job.as_ref().map(|job| job.until).filter(|_| !is_held_up);
            let asks = matches!(service.phase, Phase::Unknown | Phase::Running);
            let monitor = Some(service.monitor_at)
                .filter(|at| asks && service.job.is_none() && *at != Time(u64::MAX));
            let waits = matches!(service.phase, Phase::Stopped | Phase::StopHangs);
            let retry = Some(service.retry_at).filter(|_| waits);
            let address = Some(self.address_from).filter(|_| waits && service.is_address());
            [job, monitor, retry, address, self.unasked_until(service)]
        });
        let lease = self.lease_until.filter(|until| {
            self.holds() && self.lapsed_since.is_none() && *until != Time(u64::MAX)
        });
        let lost = Some(self.given_up_at());
        let is_endless = self.holds() && self.lease_until == Some(Time(u64::MAX));
        let has_address = self.services.iter().any(Service::is_address);
        let refresh = (is_endless && has_address).then_some(self.refresh_at);
        let trouble = self.trouble.as_ref().map(|it| it.expires);
        let stable = self.running_since.map(|since| since + STABLE);
        let all = services.chain([lease, lost, refresh, trouble, stable]).flatten();
        // What is due and was not done waits for another fact.
        all.filter(|at| *at > self.now && *at != Time(u64::MAX)).min()
    }

    // ------------------------------------------------------------------ what is told

    pub(super) fn note(
        &self,
        effects: &mut Vec<Effect>,
        code: &'static str,
        weight: Weight,
        service: Option<usize>,
        text: String,
    ) {
        effects.push(Effect::Note(Note { code, weight, service, took: None, text }));
    }

    /// A note of something that took its time.
    fn note_done(
        &self,
        effects: &mut Vec<Effect>,
        code: &'static str,
        service: Option<usize>,
        (what, took): (&str, Span),
    ) {
        let text = format!("{what} after {} ms", took.as_ms());
        let weight = Weight::Info;
        effects.push(Effect::Note(Note { code, weight, service, took: Some(took), text }));
    }

    /// Says when a release is ready and when everything runs.
    fn tell_progress(&mut self, effects: &mut Vec<Effect>) {
        let is_stopped = |it: &Service| it.phase == Phase::Stopped;
        let of_office = |it: &&Service| it.is_primary_only();
        let is_office_free = self.services.iter().filter(of_office).all(is_stopped);
        if self.office == Office::Lost && is_office_free {
            self.enter(Office::NotHeld);
            self.note(effects, "all_stopped", Weight::Info, None, "everything is stopped".into());
        }
        let is_done = match self.office {
            Office::Releasing(Release::HandOver | Release::Move) => is_office_free,
            Office::Releasing(Release::Down) => self.services.iter().all(is_stopped),
            // What is not ours need not be given up.
            Office::NotHeld | Office::Unknown => self.is_up || self.services.iter().all(is_stopped),
            Office::Held | Office::Lost => false,
        };
        if is_done && self.is_release_open {
            self.is_release_open = false;
            effects.push(Effect::Released);
        }
        self.tell_running(effects);
    }

    fn tell_running(&mut self, effects: &mut Vec<Effect>) {
        let runs = self.office == Office::Held && self.forbidden.is_none() && self.runs_all();
        if !runs {
            self.running_since = None;
            return;
        }
        self.running_since = self.running_since.or(Some(self.now));
        if !self.is_running_told {
            self.is_running_told = true;
            if self.services.iter().any(Service::is_primary_only) {
                let took = self.now.since(self.office_since);
                self.note_done(effects, "all_running", None, ("all services run", took));
            }
        }
    }

    /// Something that must not run here cannot be stopped: a watchdog is not to be fed any more,
    /// also while it is tried again, since a watchdog may need longer than the pauses between.
    pub fn must_reset(&self) -> bool {
        let must_not = match self.office {
            Office::Lost | Office::NotHeld => true,
            // Nothing can run on a device that fails, whoever has lost patience with the move.
            Office::Held | Office::Releasing(_) => self.device_fail == DeviceFail::Done,
            Office::Unknown => false,
        };
        must_not
            && self
                .services
                .iter()
                .any(|it| it.is_primary_only() && it.defies == Some(Force::Detach))
    }

    /// Nothing that belongs to the primary runs here.
    pub fn is_all_stopped(&self) -> bool {
        self.services.iter().filter(|it| it.is_primary_only()).all(|it| it.phase == Phase::Stopped)
    }

    /// How hard a stop may try now.
    pub(super) fn force_max(&self, at: usize) -> Force {
        match self.office {
            Office::NotHeld | Office::Lost => Force::Detach,
            _ if self.services[at].is_suspect || self.device_fail == DeviceFail::Done => {
                Force::Detach
            }
            Office::Unknown | Office::Held | Office::Releasing(_) => Force::Kill,
        }
    }

    /// Which hindrance this node has, if services cannot run here.
    pub fn trouble(&self) -> Option<&Hindrance> {
        self.forbidden.as_ref().or(self.trouble.as_ref().map(|trouble| &trouble.why))
    }

    /// Its services, for those who look.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Panics when something is not as it must be.
    pub fn check_invariants(&self) {
        for service in &self.services {
            let action = service.job.as_ref().map(|job| job.action);
            let fits = match service.phase {
                Phase::Starting => action == Some(Action::Start),
                Phase::Stopping(force) => action == Some(Action::Stop(force)),
                Phase::Running | Phase::Unknown => matches!(action, None | Some(Action::Monitor)),
                Phase::Stopped | Phase::Failed | Phase::StopHangs => action.is_none(),
            };
            let name = &service.spec.name;
            assert!(fits, "{name}: {:?} while {action:?} is under way", service.phase);
            let may_start = self.office == Office::Held || service.spec.place != Place::Primary;
            assert!(
                service.phase != Phase::Starting || may_start,
                "{name}: starts without an office"
            );
        }
    }
}

/// How hard, in a word.
fn force_word(force: Force) -> &'static str {
    match force {
        Force::Orderly => "orderly",
        Force::Kill => "by force",
        Force::Detach => "with all force",
    }
}

fn stopped_again(why: String) -> Failure {
    Failure {
        code: "stopped_again".to_string(),
        why: format!("{why}, again and again"),
        next: "find out who stops it: a unit that it is bound to (BindsTo=, PartOf=) and that \
               dies, or a program that unmounts; to stop it on purpose: replctl stop"
            .to_string(),
        is_permanent: false,
    }
}

fn ended_by_itself(why: String) -> Failure {
    Failure {
        code: "ended".to_string(),
        why,
        next: "look at its log".to_string(),
        is_permanent: false,
    }
}

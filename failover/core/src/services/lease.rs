//! What the lease means to services (L4): without it addresses are withdrawn and the rest is
//! frozen, at once; with it back all goes on; after `demote_after` everything stops.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::address::others_from;
use super::engine::{Engine, Office};
use super::port::{Effect, Weight};
use super::service::{Action, Phase, Service};

/// A lease without end is told to addresses again so often.
const REFRESH: Span = Span::from_ms(250);

/// What an earlier process left and does not say within so long what it is, is frozen until it is
/// known whether it may go on.
const UNASKED: Span = Span::from_ms(300);

/// How much longer than the replica the services wait before they give up an office without lease.
const REPLICA_FIRST: Span = Span::from_ms(2_000);

/// How long a new primary waits before it adds an address, after it took the office from a silent
/// holder (L4). The takeover came at least 1.1 leases after a majority granted the last renewal;
/// what is missing to [`others_from`] is waited for here, never less than 0.3 s. By then the
/// holder's kernel has dropped the address, if nobody else did. A holder that lives has withdrawn
/// it long before, when its lease ended.
pub fn address_delay(lease: Span) -> Span {
    let waited = lease.0 / 10 * 11;
    Span(others_from(lease).0 - waited)
}

impl Engine {
    pub(super) fn lease_changed(&mut self, until: Option<Time>, effects: &mut Vec<Effect>) {
        self.lease_until = until;
        if self.holds() && self.has_lease() {
            self.tell_addresses(effects);
        }
    }

    pub(super) fn lease_length_changed(&mut self, lease: Span) {
        let before = self.settings.lease;
        if lease != before {
            self.earlier_lease = Some((before, self.now + others_from(before)));
            self.settings.lease = lease;
        }
    }

    /// [`address_delay`] by the lease that a silent holder may have had: its last renewal may have
    /// been granted for that of before a change.
    pub(super) fn delay_of_addresses(&self) -> Span {
        let earlier = self.earlier_lease.filter(|(_, until)| self.now < *until);
        let earlier = earlier.map(|(lease, _)| address_delay(lease));
        earlier.unwrap_or_default().max(address_delay(self.settings.lease))
    }

    pub(super) fn has_lease(&self) -> bool {
        self.lease_until.is_some_and(|until| until > self.now)
    }

    pub(super) fn lease_left(&self) -> Option<Span> {
        self.lease_until.filter(|until| *until > self.now).map(|until| until.since(self.now))
    }

    /// A refresh right after each won renewal: the kernel drops the address when we stall.
    fn tell_addresses(&mut self, effects: &mut Vec<Effect>) {
        let left = self.lease_left();
        self.refresh_at = self.now + REFRESH;
        for (at, service) in self.services.iter().enumerate() {
            let is_there = matches!(service.phase, Phase::Running | Phase::Starting);
            if service.is_address() && service.is_primary_only() && is_there {
                effects.push(Effect::Lease { service: at, left });
            }
        }
    }

    /// A lease without end is never renewed.
    pub(super) fn refresh(&mut self, effects: &mut Vec<Effect>) {
        let is_endless = self.lease_until == Some(Time(u64::MAX));
        if self.holds() && is_endless && self.now >= self.refresh_at {
            self.tell_addresses(effects);
        }
    }

    /// How long services wait for a lease. The replica gives its office up first, unless it hangs.
    fn patience(&self) -> Span {
        Span(self.settings.demote_after.0 + REPLICA_FIRST.0)
    }

    /// When an office without a lease ends; also one of which is not known whether it goes on.
    pub(super) fn given_up_at(&self) -> Time {
        match (self.office, self.lapsed_since) {
            (Office::Unknown, _) if self.is_up => self.office_since + self.patience(),
            (_, Some(since)) if self.holds() => since + self.patience(),
            _ => Time(u64::MAX),
        }
    }

    /// L4.
    pub(super) fn watch_lease(&mut self, effects: &mut Vec<Effect>) {
        if self.office == Office::Unknown && self.now >= self.given_up_at() {
            return self.lose("this node does not learn whether it is still primary", effects);
        }
        if !self.holds() {
            return;
        }
        match (self.lapsed_since, self.has_lease()) {
            (None, true) => {}
            (None, false) => self.lapsed(effects),
            (Some(since), true) => self.lease_is_back(since, effects),
            (Some(since), false) => {
                let limit = self.patience();
                if self.now.since(since) >= limit {
                    let limit = limit.as_ms();
                    self.lose(&format!("the lease did not come back within {limit} ms"), effects);
                }
            }
        }
    }

    fn lapsed(&mut self, effects: &mut Vec<Effect>) {
        self.lapsed_since = Some(self.lease_until.unwrap_or(self.now).min(self.now));
        for at in 0..self.services.len() {
            let service = &self.services[at];
            let asks = service.job.as_ref().is_some_and(|job| job.action == Action::Monitor);
            if service.is_primary_only() && asks {
                self.drop_job(at, effects);
            }
        }
        if self.services.iter().any(|it| it.is_primary_only() && it.phase != Phase::Stopped) {
            let text = "the lease is over: addresses are withdrawn, the rest is frozen";
            self.note(effects, "lease_lapsed", Weight::Warning, None, text.to_string());
        }
    }

    fn lease_is_back(&mut self, since: Time, effects: &mut Vec<Effect>) {
        let gap = self.now.since(since);
        self.lapsed_since = None;
        for service in self.services.iter_mut().filter(|it| it.is_primary_only()) {
            service.shift(gap);
        }
        self.tell_addresses(effects);
        if self.services.iter().any(|it| it.is_primary_only() && it.phase != Phase::Stopped) {
            let text = format!("the lease is back after {} ms: services go on", gap.as_ms());
            self.note(effects, "lease_back", Weight::Info, None, text);
        }
    }

    /// When a service that an earlier process left has had its time to say what it is.
    pub(super) fn unasked_until(&self, service: &Service) -> Option<Time> {
        let is_open = self.office == Office::Unknown && service.phase == Phase::Unknown;
        service.asked_since().filter(|_| is_open).map(|since| since + UNASKED)
    }

    /// Freezes what must not go on without a lease, and thaws it. Addresses are withdrawn instead;
    /// a renewal brings them back.
    pub(super) fn suspend(&mut self, effects: &mut Vec<Effect>) {
        // What an earlier process left has no lease before the office is resumed.
        let is_unknown = self.office == Office::Unknown && !self.has_lease();
        let lapsed = self.lapsed_since.is_some() || is_unknown;
        let is_over = matches!(self.office, Office::Lost | Office::NotHeld);
        let now = self.now;
        for (at, service) in self.services.iter_mut().enumerate() {
            let is_address = service.is_address();
            let is_there = match service.phase {
                Phase::Stopped => false,
                Phase::Unknown if is_address || service.is_suspended => true,
                Phase::Unknown => service.asked_since().is_some_and(|at| now.since(at) >= UNASKED),
                _ => true,
            };
            // What is killed is killed as it is.
            let stays = is_over && service.is_suspended;
            let wanted = service.is_primary_only()
                && !service.is_witness_only()
                && is_there
                && (lapsed || stays);
            if wanted == service.is_suspended {
                continue;
            }
            service.is_suspended = wanted;
            match (is_address, wanted) {
                (false, _) => effects.push(Effect::Suspend { service: at, is_suspended: wanted }),
                (true, true) => effects.push(Effect::Lease { service: at, left: None }),
                (true, false) => {}
            }
        }
    }
}

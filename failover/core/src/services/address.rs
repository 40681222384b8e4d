//! How long the kernel may keep a floating address, and when it is announced.
//!
//! **The life of an address (L4).** The lease of a primary counts from t, the time at which the
//! request was sent whose grants made the majority. Another node takes over no earlier than t + 1.1
//! T, and adds the address no earlier than 0.3 s after that, nor earlier than t + 1.4 s
//! ([`others_from`]). So whatever becomes of us, the address must be gone by then. The kernel
//! helps: an address has a life in whole seconds, and is removed by itself up to
//! [`EXPIRY_LATENESS`] after its end (measured). Hence it may be refreshed at a time r, with a life
//! of V seconds, only if
//!
//! ```text
//! r + V + lateness <= t + 1.1 T + 0.3 s
//! ```
//!
//! A service is told `left` = t + 0.9 T - r, so the right side is r + left + 0.2 T + 0.3 s; and
//! since `left` is never more than 0.9 T, 0.2 T is at least `left` * 2 / 9. That makes the
//! condition one of `left` alone, whatever lease the register has: V <= `left` * 11 / 9 + 0.3 s -
//! lateness. With T = 1 s and V = 1 s the refresh may come up to 98 ms after the request was sent;
//! a renewal that took longer refreshes nothing, and the next one comes 200 ms later. With a
//! shorter lease it is the same with 1.4 s on the right.
//!
//! One thing can make the kernel later than that, by up to a second: it looks at the lives of all
//! addresses at least a second after the last change of *any* address of the machine. The guard
//! does not depend on it.

use replicator_core::{Span, Time};

/// How long after the end of its life the kernel has removed an address: 0.00 to 0.28 s, measured
/// on Linux 6.18; its timer is rounded up by at most a quarter of a second.
pub const EXPIRY_LATENESS: Span = Span::from_ms(280);

/// So long after the end of the old lease a new primary adds the address at the earliest (L4).
pub const ADDED_AFTER: Span = Span::from_ms(300);

/// And never sooner than this after the last renewal was sent: a life of a second, what the kernel
/// is late, and [`FRESH`].
const NEVER_SOONER: Span = Span::from_ms(1_400);

/// What is longer is a lease without end (R5d), which nobody else waits for. It is told again a few
/// times a second, so the kernel still drops the address of a daemon that is gone.
const LEASE_MAX: Span = Span::from_ms(100_000);
const ENDLESS_LIFE_S: u32 = 2;

/// Under a short lease, how old a renewal may be that refreshes.
const FRESH: Span = Span::from_ms(100);

/// After the first announcement, when it is repeated: switches and hosts may have lost any of them.
const REPEATED_AT_MS: [u64; 6] = [50, 150, 400, 1_000, 2_000, 5_000];
/// And so often after that, since somebody may have learned a wrong one meanwhile.
const REPEATED_EVERY: Span = Span::from_ms(40_000);
/// Somebody else's announcement is answered at most so often: two who contend must not flood.
const CONTEST_PAUSE: Span = Span::from_ms(1_000);

/// How many seconds the kernel may keep an address of which a renewal has just been won; `None`: it
/// must not be refreshed by this one. `lease` is what the register says.
pub fn life_s(left: Span, lease: Span) -> Option<u32> {
    match longest_life_s(left, lease)? {
        // A second less where that still outlasts two renewals: the kernel may be slow to hear it.
        seconds if seconds > 2 => Some(seconds - 1),
        seconds => Some(seconds),
    }
}

/// The longest life that is allowed.
pub fn longest_life_s(left: Span, lease: Span) -> Option<u32> {
    if left.0 > LEASE_MAX.0 {
        return Some(ENDLESS_LIFE_S);
    }
    if lease.0 / 10 * 11 + ADDED_AFTER.0 < NEVER_SOONER.0 {
        let age = (lease.0 / 10 * 9).saturating_sub(left.0);
        return (left.0 > 0 && age <= FRESH.0).then_some(1);
    }
    let may_last = (left.0 * 11 / 9 + ADDED_AFTER.0).checked_sub(EXPIRY_LATENESS.0)?;
    let seconds = u32::try_from(may_last / Span::from_ms(1_000).0).unwrap_or(u32::MAX);
    (seconds > 0 && left.0 > 0).then_some(seconds)
}

/// How long after the last renewal was sent another node has the addresses at the earliest.
pub fn others_from(lease: Span) -> Span {
    Span((lease.0 / 10 * 11 + ADDED_AFTER.0).max(NEVER_SOONER.0))
}

/// When the address is announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announcements {
    began: Time,
    sent: usize,
    next: Time,
    contested: Option<Time>,
}

impl Announcements {
    /// From now on: the address was added, or the link is back.
    pub fn begin(now: Time) -> Self {
        Self { began: now, sent: 0, next: now, contested: None }
    }

    /// When the next one is due.
    pub fn next(&self) -> Time {
        self.next
    }

    /// Whether one is due; it counts as sent.
    pub fn take_due(&mut self, now: Time) -> bool {
        if now < self.next {
            return false;
        }
        self.sent += 1;
        // One that is long overdue (we were stopped) is sent once, not once for each that was
        // missed.
        self.next = loop {
            match REPEATED_AT_MS.get(self.sent - 1) {
                Some(ms) if self.began + Span::from_ms(*ms) <= now => self.sent += 1,
                Some(ms) => break self.began + Span::from_ms(*ms),
                None => break now + REPEATED_EVERY,
            }
        };
        true
    }

    /// Somebody else says that he has the address: it is announced at once, but not more often than
    /// once a second. Whether it is news.
    pub fn contest(&mut self, now: Time) -> bool {
        if self.contested.is_some_and(|at| now.since(at) < CONTEST_PAUSE) {
            return false;
        }
        self.contested = Some(now);
        self.next = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const SECOND: u64 = 1_000;

    fn ms(ms: u64) -> Span {
        Span::from_ms(ms)
    }

    #[test]
    fn the_kernel_never_keeps_an_address_longer_than_another_node_waits() {
        for lease_ms in [200, 500, 900, 999, 1_000, 1_500, 2_000, 5_000, 60_000] {
            for age_ms in 0..lease_ms * 9 / 10 {
                let left = ms(lease_ms * 9 / 10 - age_ms);
                let allowed_ms = others_from(ms(lease_ms)).as_ms() - age_ms;
                // What the file says may differ from the register's lease: never to our harm.
                for configured in [lease_ms, 1_000, 60_000] {
                    if let Some(seconds) = life_s(left, ms(configured)) {
                        let gone_at = u64::from(seconds) * SECOND + EXPIRY_LATENESS.as_ms();
                        assert!(gone_at <= allowed_ms, "{lease_ms} {age_ms} {configured}");
                    }
                }
            }
        }
    }

    #[test]
    fn with_the_default_lease_a_renewal_of_98_ms_refreshes() {
        assert_eq!(life_s(ms(900), ms(1_000)), Some(1));
        assert_eq!(life_s(ms(803), ms(1_000)), Some(1));
        assert_eq!(life_s(ms(800), ms(1_000)), None);
        assert_eq!(life_s(ms(0), ms(1_000)), None);
    }

    #[test]
    fn a_lease_without_end_gives_a_short_life_all_the_same() {
        assert_eq!(life_s(Span(u64::MAX), ms(1_000)), Some(2));
        assert_eq!(life_s(Span(u64::MAX - 1), ms(200)), Some(2));
    }

    #[test]
    fn a_long_lease_gives_a_life_that_outlasts_the_pause_between_renewals() {
        for lease_ms in [1_000, 2_000, 5_000, 60_000] {
            // Renewals are a fifth of the lease apart.
            let seconds = life_s(ms(lease_ms * 9 / 10), ms(lease_ms)).unwrap();
            assert!(u64::from(seconds) * SECOND > 2 * lease_ms / 5, "{lease_ms}: {seconds}");
        }
    }

    #[test]
    fn under_a_short_lease_a_fresh_renewal_gives_one_second_and_no_lease_gives_none() {
        assert_eq!(life_s(ms(180), ms(200)), Some(1));
        assert_eq!(life_s(ms(80), ms(200)), Some(1));
        assert_eq!(life_s(ms(79), ms(200)), None);
        assert_eq!(life_s(ms(0), ms(200)), None);
    }

    #[test]
    fn announcements_come_at_0_50_150_400_ms_1_2_5_s_and_then_every_40_s() {
        let start = Time(7_000_000_000);
        let mut announcements = Announcements::begin(start);
        let mut sent = Vec::new();
        for at in 0..90_000 {
            let now = start + ms(at);
            if announcements.take_due(now) {
                sent.push(at);
            }
        }
        assert_eq!(sent, [0, 50, 150, 400, 1_000, 2_000, 5_000, 45_000, 85_000]);
    }

    #[test]
    fn who_was_stopped_announces_once_and_goes_on() {
        let start = Time(0);
        let mut announcements = Announcements::begin(start);
        assert!(announcements.take_due(start));
        assert!(announcements.take_due(start + ms(1_500)));
        assert!(!announcements.take_due(start + ms(1_501)));
        assert_eq!(announcements.next(), start + ms(2_000));
    }

    #[test]
    fn a_contested_address_is_announced_at_once_and_at_most_once_a_second() {
        let start = Time(0);
        let mut announcements = Announcements::begin(start);
        while announcements.next() < start + ms(10_000) {
            let next = announcements.next();
            assert!(announcements.take_due(next));
        }
        let foreign = start + ms(10_000);
        assert!(announcements.contest(foreign));
        assert!(announcements.take_due(foreign));
        assert!(!announcements.contest(foreign + ms(900)));
        assert!(!announcements.take_due(foreign + ms(900)));
        assert!(announcements.contest(foreign + ms(1_000)));
        assert!(announcements.take_due(foreign + ms(1_000)));
    }
}

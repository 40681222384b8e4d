//! What the guard does at which time: a small process beside the daemon that withdraws what must
//! not go on when the lease is over and the daemon does not do it, because it is stopped, stuck or
//! dead; and when the watchdog is fed.
//!
//! Times on the way, for a lease T that counts from t (L4):
//!
//! ```text
//! t + 0.9 T            the daemon suspends I/O and removes the addresses itself
//!                      the guard does it for a daemon that gives no sign of life, and freezes its
//!                      services
//!   + grace            the guard removes what a daemon that lives has left
//!   + demote_after     it kills what it froze: by then the daemon itself would have stopped it
//! t + 1.1 T            another node may take over
//! t + 1.1 T + 0.3 s    it adds the addresses (never before t + 1.4 s); a watchdog that was fed in
//!                      time has fired before
//! ```
//!
//! A daemon that lives suspends services by itself; what the guard froze while it did not is left
//! frozen until the lease is back, or until the daemon thaws or stops it. That holds for the next
//! daemon too: a guard never thaws because somebody else comes.
//!
//! **The watchdog** resets the machine a whole number of seconds W after it was fed last. Where W
//! is short enough, it is fed only at times f for which f + W is before the others have the
//! addresses. So a machine on which both daemon and guard stand still is reset in time. A pause of
//! the lease does not let it fire: with a daemon that lives, or with everything withdrawn, it is
//! fed. A W that is too long for that is better than none, and status says by how much.
//!
//! Renewals may be in time for the lease and too late for the watchdog, on a slow network. Then
//! services are frozen before it fires, as for a lapse, and it is fed; addresses have their life
//! from the kernel (`services::address`), which no slow renewal prolongs too far.

use replicator_core::{Span, Time};

use crate::services::address::ADDED_AFTER;
pub use crate::services::address::others_from;

/// A daemon that gave no sign of life for so long is stopped, stuck or dead.
pub const STALE_AFTER: Span = Span::from_ms(300);
/// The guard hears of a renewal and feeds the watchdog within so long of its request.
const FED_WITHIN: Span = Span::from_ms(100);
const SECOND: Span = Span::from_ms(1_000);
/// Longer than this a watchdog need not wait in any case.
const TIMEOUT_MAX_S: u32 = 30;

/// How long after a lease T ends at its holder (t + 0.9 T) another node may have the addresses.
pub fn others_after(lease: Span) -> Span {
    Span(others_from(lease).0 - lease.0 / 10 * 9)
}

/// What the daemon has before the guard withdraws in its place.
pub fn grace(lease: Span) -> Span {
    Span(others_after(lease).0 / 5)
}

/// The office of one resource as the guard sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Office {
    /// Until when this node may act as primary; `None`: it may not.
    pub until: Option<Time>,
    /// Everything that was tried to stop its services has failed: only a reset is left.
    pub is_given_up: bool,
    /// Whether the guard has removed every address and frozen every service of it.
    pub is_withdrawn: bool,
    /// Whether it has frozen every service of it.
    pub is_frozen: bool,
    /// Since when the lease is over and the daemon does nothing about it.
    pub unattended_since: Option<Time>,
    /// After so long without a lease everything stops.
    pub demote_after: Span,
}

/// What is common to all offices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Now.
    pub now: Time,
    /// The last sign of life of the daemon, for this office; `None`: its process is gone.
    pub heartbeat: Option<Time>,
    /// The lease that ends of leases are judged by ([`in_force`]).
    pub lease: Span,
    /// Whether renewals are too slow for the watchdog ([`Self::starves`]).
    pub is_starved: bool,
}

/// What is to be done about an office.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Duty {
    /// Remove its addresses, again and again while they are there.
    pub remove_addresses: bool,
    /// Whether its services are to stand still (`true`) or to run; `None`: they stay as they are.
    pub freeze: Option<bool>,
    /// Kill its services: nobody will ever let them go on.
    pub kill: bool,
}

impl Sight {
    /// Whether the daemon does its work.
    pub fn is_alive(&self) -> bool {
        self.heartbeat.is_some_and(|at| self.now.since(at) <= STALE_AFTER)
    }

    /// What the guard does about an office.
    pub fn duty(&self, office: &Office) -> Duty {
        // Nobody is waited for who is not there: another node starts services 0.2 T later.
        let grace = if self.is_alive() { grace(self.lease) } else { Span::default() };
        let is_over = office.until.is_none_or(|until| self.now >= until + grace);
        let freeze = match is_over {
            // In its grace, the daemon itself freezes what stands still already.
            false if self.is_starved => self.runs(office).then_some(true),
            false => Some(false),
            true => (!self.is_alive()).then_some(true),
        };
        let kill = freeze == Some(true)
            && office.unattended_since.is_some_and(|since| self.now >= since + office.demote_after);
        Duty { remove_addresses: is_over, freeze, kill }
    }

    /// Whether a watchdog that fires `timeout` after it was fed may be fed now.
    pub fn may_feed(&self, offices: impl IntoIterator<Item = Office>, timeout: Span) -> bool {
        offices.into_iter().all(|office| self.may_feed_for(&office, timeout))
    }

    fn may_feed_for(&self, office: &Office, timeout: Span) -> bool {
        if office.is_given_up {
            return false;
        }
        if self.runs(office) {
            return self.is_fresh(office, timeout) || self.is_starved && office.is_frozen;
        }
        // A pause of the lease, or services that stop within their deadlines.
        self.is_alive() || office.is_withdrawn
    }

    fn runs(&self, office: &Office) -> bool {
        office.until.is_some_and(|until| self.now < until)
    }

    /// Whether the last renewal is so young that a watchdog that is fed now fires in time.
    fn is_fresh(&self, office: &Office, timeout: Span) -> bool {
        let until = office.until.unwrap_or_default();
        !is_in_time(timeout, self.lease) || self.now + timeout <= until + others_after(self.lease)
    }

    /// Whether renewals are too slow for a watchdog that was not fed for so long. It is half its
    /// time-out before that counts, and ends with a renewal that is fast enough.
    pub fn starves(
        &self,
        offices: impl IntoIterator<Item = Office>,
        timeout: Span,
        unfed: Span,
    ) -> bool {
        let mut running = offices.into_iter().filter(|office| self.runs(office)).peekable();
        if running.peek().is_none() {
            return self.is_starved;
        }
        let is_late = unfed.0 >= timeout.0 / 2;
        !running.all(|office| self.is_fresh(&office, timeout)) && (self.is_starved || is_late)
    }
}

/// By which lease the ends of leases are to be judged, when the register's is `told` and another
/// one was in force `before`. A shorter one counts at once. A longer one counts when no lease that
/// runs can have been granted for the shorter one: whoever takes over goes by what was granted.
pub fn in_force(
    before: Span,
    told: Span,
    now: Time,
    offices: impl IntoIterator<Item = Office>,
) -> Span {
    let at_most = now + Span(before.0 / 10 * 9);
    let mut running = offices.into_iter().filter_map(|it| it.until.filter(|until| *until > now));
    if told <= before || running.all(|until| until > at_most) { told } else { before }
}

/// Whether a watchdog can fire before another node has the addresses.
pub fn is_in_time(timeout: Span, lease: Span) -> bool {
    timeout.0 + FED_WITHIN.0 <= others_from(lease).0
}

/// The time-out a watchdog should have, in seconds: as long as it may be, so that it does not fire
/// without need.
pub fn wanted_timeout_s(lease: Span) -> u32 {
    let longest = others_from(lease).0.saturating_sub(FED_WITHIN.0) / SECOND.0;
    (longest as u32).clamp(1, TIMEOUT_MAX_S)
}

/// The shortest lease, in milliseconds, for which a watchdog of this time-out is in time.
pub fn lease_for_ms(timeout: Span) -> u64 {
    let others = Span(timeout.0 + FED_WITHIN.0 - ADDED_AFTER.0).as_ms();
    others.saturating_mul(10).div_ceil(11)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Span = Span::from_ms(1_000);

    const RUNS: Duty = Duty { remove_addresses: false, freeze: Some(false), kill: false };
    const STANDS: Duty = Duty { remove_addresses: true, freeze: Some(true), kill: false };

    fn at(ms: u64) -> Time {
        Time(Span::from_ms(100_000 + ms).0)
    }

    fn sight(now_ms: u64, heartbeat_ms: Option<u64>) -> Sight {
        let (now, heartbeat) = (at(now_ms), heartbeat_ms.map(at));
        Sight { now, heartbeat, lease: LEASE, is_starved: false }
    }

    /// A lease that was asked for at 0.
    fn held() -> Office {
        Office { until: Some(at(900)), ..Office::default() }
    }

    #[test]
    fn while_the_lease_lasts_nothing_is_withdrawn_even_from_a_stopped_daemon() {
        assert_eq!(sight(899, Some(0)).duty(&held()), RUNS);
        assert_eq!(sight(899, None).duty(&held()), RUNS);
    }

    #[test]
    fn the_daemon_comes_first_then_the_guard_then_another_node() {
        let grace_ends = 900 + grace(LEASE).as_ms();
        let lives = |now| sight(now, Some(now)).duty(&held());
        assert_eq!(lives(grace_ends - 1), RUNS);
        assert!(lives(grace_ends).remove_addresses);
        assert!(grace_ends + 100 < others_from(LEASE).as_ms());
        let shortest = Span::from_ms(200);
        assert!(grace(shortest).as_ms() + 180 + 100 < others_from(shortest).as_ms());
    }

    #[test]
    fn for_a_daemon_that_is_dead_or_stopped_the_guard_acts_as_soon_as_the_lease_is_over() {
        assert_eq!(sight(900, None).duty(&held()), STANDS);
        assert_eq!(sight(900, Some(0)).duty(&held()), STANDS);
    }

    #[test]
    fn services_of_a_daemon_that_lives_are_its_own_business() {
        let leaves = Duty { remove_addresses: true, freeze: None, kill: false };
        assert_eq!(sight(5_000, Some(4_990)).duty(&held()), leaves);
        assert_eq!(sight(0, Some(0)).duty(&Office::default()), leaves);
    }

    #[test]
    fn a_lease_that_is_back_thaws() {
        let stopped = sight(5_000, Some(100));
        assert_eq!(stopped.duty(&held()).freeze, Some(true));
        let renewed = Office { until: Some(at(5_900)), ..Office::default() };
        assert_eq!(sight(5_001, Some(5_000)).duty(&renewed), RUNS);
    }

    #[test]
    fn what_nobody_attends_to_for_as_long_as_the_lease_may_be_missing_is_killed() {
        let office = Office {
            unattended_since: Some(at(1_000)),
            demote_after: Span::from_ms(10_000),
            ..held()
        };
        assert_eq!(sight(10_999, None).duty(&office), STANDS);
        assert_eq!(sight(11_000, None).duty(&office), Duty { kill: true, ..STANDS });
        assert_eq!(sight(11_000, Some(0)).duty(&office), Duty { kill: true, ..STANDS });
        assert!(!sight(11_000, Some(11_000)).duty(&office).kill, "the daemon lives");
        let renewed = Office { until: Some(at(11_900)), ..office };
        assert_eq!(sight(11_000, None).duty(&renewed), RUNS);
    }

    #[test]
    fn a_watchdog_fires_before_another_node_has_the_address() {
        let timeout = Span::from_ms(1_000 * u64::from(wanted_timeout_s(LEASE)));
        assert!(is_in_time(timeout, LEASE));
        let last_fed = (0..900).filter(|now| sight(*now, Some(*now)).may_feed([held()], timeout));
        let last_fed = last_fed.max().expect("it is fed");
        assert!(last_fed >= 200, "each renewal feeds it, {last_fed} ms after the last one");
        assert!(last_fed + timeout.as_ms() <= others_from(LEASE).as_ms());
    }

    #[test]
    fn a_pause_of_the_lease_feeds_it_and_so_does_what_is_withdrawn() {
        let timeout = Span::from_ms(1_000);
        assert!(sight(901, Some(900)).may_feed([held()], timeout));
        assert!(sight(60_000, Some(60_000)).may_feed([held()], timeout));
        assert!(sight(60_000, Some(60_000)).may_feed([Office::default()], timeout));
        assert!(!sight(2_000, Some(0)).may_feed([held()], timeout), "stopped, and not withdrawn");
        let withdrawn = Office { is_withdrawn: true, ..held() };
        assert!(sight(2_000, Some(0)).may_feed([withdrawn], timeout));
        assert!(sight(2_000, None).may_feed([withdrawn], timeout));
        assert!(sight(2_000, None).may_feed([], timeout), "nothing of ours is left");
    }

    #[test]
    fn no_gap_between_feeds_reaches_the_time_out_when_the_lease_is_lost_and_the_daemon_lives() {
        let timeout = Span::from_ms(1_000);
        let mut fed = 0;
        for now in 0..10_000 {
            if sight(now, Some(now)).may_feed([held()], timeout) {
                assert!(now - fed < 600, "a gap of {} ms", now - fed);
                fed = now;
            }
        }
    }

    #[test]
    fn renewals_that_are_too_slow_for_it_freeze_services_and_then_feed_it() {
        let timeout = Span::from_ms(1_000);
        let slow = |now| sight(now, Some(now));
        let unfed = |ms| Span::from_ms(ms);
        // The lease runs until 900, and nobody may feed after 400.
        assert!(!slow(600).starves([held()], timeout, unfed(499)));
        assert!(slow(600).starves([held()], timeout, unfed(500)));
        assert!(!slow(400).starves([held()], timeout, unfed(900)));
        let starved = Sight { is_starved: true, ..slow(600) };
        assert_eq!(starved.duty(&held()), Duty { freeze: Some(true), ..RUNS });
        assert!(!starved.may_feed([held()], timeout), "its services run yet");
        let frozen = Office { is_frozen: true, ..held() };
        assert!(starved.may_feed([frozen], timeout));
        assert!(!starved.may_feed([Office { is_given_up: true, ..frozen }], timeout));
        // At the end of the lease nothing is thawed behind the back of the daemon.
        let lapsed = Sight { is_starved: true, ..slow(900) };
        assert_eq!(lapsed.duty(&held()).freeze, None);
        assert!(lapsed.starves([held()], timeout, unfed(0)));
        // Only a renewal that is fast enough ends it.
        let renewed = Office { until: Some(at(1_400)), ..held() };
        assert!(Sight { is_starved: true, ..slow(901) }.starves([renewed], timeout, unfed(0)));
        assert!(!Sight { is_starved: true, ..slow(900) }.starves([renewed], timeout, unfed(0)));
        // One that is too long in any case is fed.
        assert!(!slow(600).starves([held()], Span::from_ms(10_000), unfed(9_000)));
    }

    #[test]
    fn a_stop_that_hangs_lets_it_fire_whatever_else_is_well() {
        let hangs = Office { is_given_up: true, ..held() };
        assert!(!sight(1, Some(1)).may_feed([held(), hangs], Span::from_ms(1_000)));
    }

    #[test]
    fn one_that_is_too_long_is_fed_while_the_lease_lasts_and_the_lease_that_fits_is_named() {
        let timeout = Span::from_ms(10_000);
        assert!(!is_in_time(timeout, LEASE));
        assert!(sight(899, Some(899)).may_feed([held()], timeout));
        let fits = Span::from_ms(lease_for_ms(timeout));
        assert!(is_in_time(timeout, fits), "{fits:?}");
        assert!(!is_in_time(timeout, Span::from_ms(fits.as_ms() - 20)));
    }

    #[test]
    fn a_shorter_lease_counts_at_once_and_a_longer_one_when_it_was_granted() {
        let (short, long) = (Span::from_ms(1_000), Span::from_ms(5_000));
        let until = |ms| Office { until: Some(at(ms)), ..Office::default() };
        assert_eq!(in_force(long, short, at(0), [until(4_500)]), short);
        // A renewal under the old one, and one whose answer took 50 ms under the new one.
        assert_eq!(in_force(short, long, at(0), [until(900)]), short);
        assert_eq!(in_force(short, long, at(50), [until(4_500)]), long);
        assert_eq!(in_force(short, long, at(50), [until(4_500), until(700)]), short);
        assert_eq!(in_force(short, long, at(900), [until(900), Office::default()]), long);
        assert_eq!(in_force(short, long, at(0), [until(u64::MAX / 2_000_000)]), long);
    }

    #[test]
    fn the_wanted_time_out_follows_the_lease() {
        let wanted = |ms| wanted_timeout_s(Span::from_ms(ms));
        assert_eq!([wanted(200), wanted(1_000), wanted(5_000), wanted(60_000)], [1, 1, 5, 30]);
    }
}

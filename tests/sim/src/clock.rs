//! The clock of a machine (CLOCK_BOOTTIME): it drifts, jumps forward, stands still while a virtual
//! machine is paused, and begins anew at a boot. It never goes back under a living process: a
//! virtual machine that is resumed from a snapshot goes back together with its processes. There
//! is no wall clock in the cores, so none is here.

use replicator_core::Time;

/// What a clock shows right after a boot, in nanoseconds.
const BOOT_SHOWS: u64 = 1_000_000_000;

/// A clock: what it showed at some moment of the world, and how fast it runs since then.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    showed: u64,
    at: u64,
    /// Speed in per mille.
    rate: u64,
}

impl Clock {
    /// The clock of a machine that boots now.
    pub fn booted(now: u64, rate: u64) -> Self {
        Self { showed: BOOT_SHOWS, at: now, rate }
    }

    /// Its speed in per mille.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// The machine boots again.
    pub fn reboot(&mut self, now: u64) {
        *self = Self::booted(now, self.rate);
    }

    /// What it shows.
    pub fn shows(&self, now: u64) -> Time {
        Time(self.showed + now.saturating_sub(self.at) * self.rate / 1000)
    }

    /// When it will show this time (or a moment later); a time in the past yields the moment at
    /// which it was set last.
    pub fn moment_of(&self, local: Time) -> u64 {
        let since = local.0.saturating_sub(self.showed);
        self.at + since.saturating_mul(1000).div_ceil(self.rate)
    }

    /// It goes forward at once.
    pub fn jump(&mut self, now: u64, forward: u64) {
        self.showed = self.shows(now).0 + forward;
        self.at = now.max(self.at);
    }

    /// It runs at another speed from now on.
    pub fn drift(&mut self, now: u64, rate: u64) {
        self.jump(now, 0);
        self.rate = rate;
    }

    /// It stands still until then.
    pub fn stand_still(&mut self, now: u64, until: u64) {
        self.jump(now, 0);
        self.at = until.max(self.at);
    }

    /// A machine that stood still goes on earlier than was thought.
    pub fn go_on(&mut self, now: u64) {
        self.at = self.at.min(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_drifts_jumps_and_stands_still_but_never_goes_back() {
        let mut clock = Clock::booted(1_000, 900);
        assert_eq!(clock.shows(11_000), Time(BOOT_SHOWS + 9_000));
        clock.jump(11_000, 500);
        assert_eq!(clock.shows(11_000), Time(BOOT_SHOWS + 9_500));
        clock.stand_still(11_000, 50_000);
        assert_eq!(clock.shows(40_000), Time(BOOT_SHOWS + 9_500));
        clock.drift(40_000, 1_100);
        assert_eq!(clock.shows(50_000), Time(BOOT_SHOWS + 9_500));
        assert_eq!(clock.shows(60_000), Time(BOOT_SHOWS + 20_500));
        assert_eq!(clock.moment_of(Time(BOOT_SHOWS + 20_500)), 60_000);
    }

    #[test]
    fn its_moment_of_a_time_is_never_too_early() {
        let clock = Clock::booted(77, 901);
        for local in (BOOT_SHOWS..BOOT_SHOWS + 5_000).step_by(7) {
            let moment = clock.moment_of(Time(local));
            assert!(clock.shows(moment) >= Time(local));
            assert!(moment == 77 || clock.shows(moment - 1) < Time(local));
        }
    }
}

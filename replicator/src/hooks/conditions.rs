//! What comes and goes on a node as a whole: the majority, the guard, the watchdog. Looked at again
//! and again, and told to hooks when it changes; lost only counts after it was there.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use failover::guard::GuardReport;

use super::HookEvent;
use crate::daemon::Daemon;

const EVERY: Duration = Duration::from_millis(500);

/// How things stand; none: there is nothing of the kind, or nobody says.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    majority: Option<bool>,
    guard: Option<bool>,
    /// How often the guard had to be started again.
    guard_restarts: u64,
    watchdog: Option<bool>,
}

impl Seen {
    fn of(majority: Option<bool>, guard: Option<&GuardReport>) -> Self {
        Self {
            majority,
            guard: guard.map(|guard| guard.pid != 0),
            guard_restarts: guard.map_or(0, |guard| guard.restarts),
            watchdog: guard.map(|guard| guard.watchdog.is_armed),
        }
    }

    /// What has changed since: an event and its words.
    fn news(&mut self, now: Self) -> Vec<(&'static str, &'static str)> {
        let mut news = Vec::new();
        let mut look = |known: &mut Option<bool>, is: Option<bool>, lost, back| match (*known, is) {
            (None | Some(true), Some(true)) => *known = is,
            (Some(true), Some(false)) => {
                *known = is;
                news.push(lost);
            }
            (Some(false), Some(true)) => {
                *known = is;
                news.push(back);
            }
            _ => {}
        };
        let majority =
            (("majority_lost", "no majority is heard"), ("majority_back", "a majority is heard"));
        look(&mut self.majority, now.majority, majority.0, majority.1);
        let watchdog = (
            ("watchdog_lost", "no watchdog is armed any more"),
            ("watchdog_back", "a watchdog is armed"),
        );
        look(&mut self.watchdog, now.watchdog, watchdog.0, watchdog.1);
        let was_there = self.guard == Some(true);
        let guard = (("guard_lost", "the guard ended"), ("guard_back", "a guard runs"));
        look(&mut self.guard, now.guard, guard.0, guard.1);
        if was_there && now.guard == Some(true) && now.guard_restarts > self.guard_restarts {
            news.push(("guard_lost", "the guard ended, and was started again"));
        }
        self.guard_restarts = now.guard_restarts;
        news
    }
}

/// Tells hooks from now on, until the daemon ends.
pub fn watch(daemon: &Arc<Daemon>) -> std::io::Result<()> {
    let daemon = Arc::downgrade(daemon);
    let body = move || {
        let mut known = Seen::default();
        while let Some(daemon) = daemon.upgrade().filter(|daemon| !daemon.is_ending()) {
            let majority = daemon.control_plane.as_ref().and_then(|plane| plane.has_majority());
            let seen = Seen::of(majority, daemon.guard_report().as_ref());
            for (event, what) in known.news(seen) {
                let what = what.to_owned();
                daemon.events.tell_hooks(|| HookEvent { event, what, ..HookEvent::default() });
            }
            drop(daemon);
            thread::sleep(EVERY);
        }
    };
    thread::Builder::new().name("conditions".into()).spawn(body).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(news: Vec<(&'static str, &'static str)>) -> Vec<&'static str> {
        news.into_iter().map(|(event, _)| event).collect()
    }

    #[test]
    fn only_what_was_there_is_lost_and_only_what_was_lost_comes_back() {
        let mut known = Seen::default();
        let start = Seen { majority: Some(false), watchdog: Some(false), ..Seen::default() };
        assert!(known.news(start).is_empty());
        let well = Seen { majority: Some(true), guard: Some(true), ..start };
        assert!(known.news(well).is_empty());
        // A node thread that does not answer says nothing of the majority.
        assert!(known.news(Seen { majority: None, ..well }).is_empty());
        let alone = Seen { majority: Some(false), ..well };
        assert_eq!(names(known.news(alone)), ["majority_lost"]);
        assert!(known.news(alone).is_empty());
        assert_eq!(names(known.news(well)), ["majority_back"]);
        assert_eq!(names(known.news(Seen { guard: Some(false), ..well })), ["guard_lost"]);
        let again = Seen { guard_restarts: 1, ..well };
        assert_eq!(names(known.news(again)), ["guard_back"]);
        // Too quick to be seen.
        assert_eq!(names(known.news(Seen { guard_restarts: 2, ..well })), ["guard_lost"]);
        let armed = Seen { watchdog: Some(true), guard_restarts: 2, ..well };
        assert!(known.news(armed).is_empty());
        assert_eq!(names(known.news(Seen { watchdog: Some(false), ..armed })), ["watchdog_lost"]);
        assert_eq!(names(known.news(armed)), ["watchdog_back"]);
    }
}

//! The connection of one resource to one peer, as a book-keeper sees it: is there a session, when
//! to dial next, why the last one ended. No sockets and no clock: `peers` has those.

use std::time::{Duration, Instant};

use replicator_core::{Retry, SessionId};

/// First and longest delay between attempts when nothing is wrong but the peer's absence. The
/// first is short because every change of roles closes the session and waits for the next one.
const DELAY_MIN: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// Delay when something needs a person.
const DELAY_RARELY: Duration = Duration::from_secs(5);
/// A session that lived for so long was a good one: the delays begin anew.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// One link.
#[derive(Debug)]
pub struct Link {
    session: Option<(SessionId, Instant)>,
    is_blocked: bool,
    delay: Duration,
    next_attempt: Instant,
    /// When the last session ended, or when the first could have begun.
    down_since: Instant,
    why: String,
}

/// What a dialer should do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Dial.
    Now,
    /// Look again after so long, or when something changed.
    After(Duration),
    /// Look again when something changed.
    WhenChanged,
}

impl Link {
    /// A link that may be dialled at once.
    pub fn new(now: Instant) -> Self {
        Self {
            session: None,
            is_blocked: false,
            delay: DELAY_MIN,
            next_attempt: now,
            down_since: now,
            why: String::new(),
        }
    }

    /// Whether a session is believed to live.
    pub fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// Whether an operator, or the core, wants no connection until told otherwise.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Why there is no session, in words; empty while there is one.
    pub fn why(&self) -> &str {
        if self.is_up() { "" } else { &self.why }
    }

    /// Whether there is no session since a moment ago only, so that one may be on its way.
    pub fn is_briefly_down(&self, moment: Duration, now: Instant) -> bool {
        !self.is_up() && !self.is_blocked && now.duration_since(self.down_since) < moment
    }

    /// When the dialer should act.
    pub fn due(&self, now: Instant) -> Due {
        if self.is_up() || self.is_blocked {
            return Due::WhenChanged;
        }
        match self.next_attempt.checked_duration_since(now) {
            None | Some(Duration::ZERO) => Due::Now,
            Some(wait) => Due::After(wait),
        }
    }

    /// A session began; it replaces an older one.
    pub fn began(&mut self, session: SessionId, now: Instant) {
        self.session = Some((session, now));
    }

    /// A session ended. The end of a session that was replaced means nothing any more.
    pub fn ended(&mut self, session: SessionId, retry: Retry, why: &str, now: Instant) {
        let Some((current, since)) = self.session else { return };
        if current != session {
            return;
        }
        self.session = None;
        self.down_since = now;
        self.why = why.to_owned();
        if now.duration_since(since) >= GOOD_SESSION {
            self.delay = DELAY_MIN;
        }
        match retry {
            Retry::Now => self.next_attempt = now,
            Retry::Later => self.wait_longer(now),
            Retry::Rarely => self.next_attempt = now + DELAY_RARELY,
            Retry::Never => self.is_blocked = true,
        }
    }

    /// An attempt to connect failed. `rarely`: it will not get better by itself soon.
    pub fn failed(&mut self, why: String, rarely: bool, now: Instant) {
        self.why = why;
        if rarely {
            self.next_attempt = now + DELAY_RARELY;
        } else {
            self.wait_longer(now);
        }
    }

    fn wait_longer(&mut self, now: Instant) {
        self.next_attempt = now + self.delay;
        self.delay = (self.delay * 3 / 2).min(DELAY_MAX);
    }

    /// The office moved: both ends begin anew now, so that this is not the time to wait.
    pub fn hurry(&mut self, now: Instant) {
        self.delay = DELAY_MIN;
        self.next_attempt = self.next_attempt.min(now);
    }

    /// An operator wants a connection.
    pub fn unblock(&mut self, now: Instant) {
        self.is_blocked = false;
        self.delay = DELAY_MIN;
        self.next_attempt = now;
    }

    /// An operator wants no connection.
    pub fn block(&mut self) {
        self.is_blocked = true;
        self.why = "an operator disconnected it; `replctl connect` ends that".into();
    }

    /// The resource went down: whatever lived is gone.
    pub fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_two_seconds_and_begin_anew_after_a_good_session() {
        let start = Instant::now();
        let mut link = Link::new(start);
        assert_eq!(link.due(start), Due::Now);
        let mut waits = Vec::new();
        for _ in 0..13 {
            link.failed("refused".into(), false, start);
            let Due::After(wait) = link.due(start) else { panic!("{link:?}") };
            waits.push(wait.as_millis());
        }
        assert_eq!(waits[..3], [20, 30, 45]);
        assert_eq!(waits[12], 2000);
        link.began(SessionId(1), start);
        link.ended(SessionId(1), Retry::Later, "closed", start + GOOD_SESSION);
        assert_eq!(link.due(start + GOOD_SESSION), Due::After(DELAY_MIN));
    }

    #[test]
    fn a_moved_office_ends_the_waiting_but_not_a_block() {
        let now = Instant::now();
        let mut link = Link::new(now);
        for _ in 0..9 {
            link.failed("refused".into(), false, now);
        }
        link.hurry(now);
        assert_eq!(link.due(now), Due::Now);
        link.failed("refused".into(), false, now);
        assert_eq!(link.due(now), Due::After(DELAY_MIN));
        link.block();
        link.hurry(now);
        assert_eq!(link.due(now), Due::WhenChanged);
    }

    #[test]
    fn never_means_until_an_operator_says_so() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.began(SessionId(1), now);
        assert_eq!(link.due(now), Due::WhenChanged);
        link.ended(SessionId(1), Retry::Never, "disconnected", now);
        assert!(link.is_blocked());
        assert_eq!(link.due(now + Duration::from_secs(60)), Due::WhenChanged);
        assert_eq!(link.why(), "disconnected");
        link.unblock(now);
        assert_eq!(link.due(now), Due::Now);
    }

    #[test]
    fn the_end_of_a_replaced_session_changes_nothing() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.began(SessionId(1), now);
        link.began(SessionId(2), now);
        link.ended(SessionId(1), Retry::Never, "old", now);
        assert!(link.is_up());
        assert!(!link.is_blocked());
    }
}

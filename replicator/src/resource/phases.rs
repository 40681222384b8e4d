//! How long each part of a change of office took on this node, for history: marks set where the
//! parts end, and at the end one note.

use std::time::{Duration, Instant};

use failover::Before;

use super::Resource;
use crate::cluster::{Timed, ToHistory};

/// The words of history for a change that gives the office to a node, or takes it away.
const TAKEN: &[&str] = &["takeover", "forced takeover", "resume"];
const RELEASED: &[&str] = &["release"];

/// A change of office under way.
pub(super) struct Marks {
    what: &'static [&'static str],
    phases: Vec<(String, u64)>,
    last: Instant,
    /// Clients are answered: what the register goes through now is no part of the change.
    is_served: bool,
    /// Since when clients may have been without answers.
    paused_since: Option<Instant>,
    paused_ms: Option<u64>,
}

impl Marks {
    /// A promotion that is ordered now, with what came before it.
    fn taking(before: Before) -> Self {
        let now = Instant::now();
        let mut phases = Vec::new();
        if let Some(silent) = before.silent {
            let detected = silent.min(before.patience);
            phases.push(("detected".to_owned(), ms(detected)));
            phases.push(("lease waited".to_owned(), ms(silent - detected)));
        } else if let Some(wanted) = before.wanted {
            phases.push(("handed over".to_owned(), ms(wanted)));
        }
        let earlier = before.silent.or(before.wanted);
        let paused_since = earlier.and_then(|earlier| now.checked_sub(earlier));
        Self { what: TAKEN, phases, last: now, is_served: false, paused_since, paused_ms: None }
    }

    /// A hand-over that is ordered now.
    fn giving() -> Self {
        let now = Instant::now();
        Self {
            what: RELEASED,
            phases: Vec::new(),
            last: now,
            is_served: false,
            paused_since: None,
            paused_ms: None,
        }
    }

    fn mark(&mut self, phase: &str) {
        let now = Instant::now();
        let took = ms(now - self.last);
        match self.phases.last_mut() {
            // A proposal that was declined is made again: one part.
            Some((last, ms)) if last == phase => *ms += took,
            _ => self.phases.push((phase.to_owned(), took)),
        }
        self.last = now;
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl Resource {
    pub(super) fn begin_taking(&self, before: Before) {
        self.lock().marks = Some(Marks::taking(before));
    }

    pub(super) fn begin_giving(&self) {
        self.lock().marks = Some(Marks::giving());
    }

    /// The replica made a proposal.
    pub(super) fn mark_proposed(&self) {
        if let Some(marks) = self.lock().marks.as_mut().filter(|marks| !marks.is_served) {
            let is_taking = marks.what == TAKEN;
            marks.mark(if is_taking { "drained" } else { "drained and flushed" });
        }
    }

    /// The proposal was committed.
    pub(super) fn mark_committed(&self) {
        let is_open = |marks: &&mut Marks| !marks.is_served && marks.what == TAKEN;
        if let Some(marks) = self.lock().marks.as_mut().filter(is_open) {
            marks.mark("committed");
        }
    }

    /// A part of the change of office under way, if there is one, is over.
    pub(super) fn mark(&self, phase: &str) {
        if let Some(marks) = &mut self.lock().marks {
            marks.mark(phase);
        }
    }

    /// Clients are answered again.
    pub(super) fn mark_served(&self) {
        if let Some(marks) = &mut self.lock().marks {
            marks.mark("durable, lease held");
            marks.is_served = true;
            marks.paused_ms = marks.paused_since.map(|since| ms(since.elapsed()));
        }
    }

    /// The change is over: history gets what was marked, or nothing when it was refused.
    pub(super) fn end_marks(&self, is_done: bool) {
        let Some(marks) = self.lock().marks.take().filter(|_| is_done) else { return };
        self.tell_history(ToHistory::Timed(Timed {
            resource: self.name().to_owned(),
            by: self.node.name.clone(),
            what: marks.what,
            phases: marks.phases,
            paused_ms: marks.paused_ms,
        }));
    }
}

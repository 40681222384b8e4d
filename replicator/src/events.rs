//! What has happened on this node: a short memory that `replctl status` and `replctl events` read,
//! and a log line for each.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use replicator_core::{DiskFailure, Findings, LinkLoss, Note, PeerIndex};

use crate::hooks::{HookEvent, Hooks};
use crate::report::EventReport;

/// Events that are remembered; older ones are in the log only.
const REMEMBERED: usize = 256;

/// How loud an event is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// For the record.
    Info,
    /// Somebody should look when there is time.
    Warning,
    /// Somebody should look now.
    Error,
}

/// The memory; shared by all threads of the daemon.
#[derive(Default)]
pub struct Events {
    kept: Mutex<VecDeque<EventReport>>,
    happened: Condvar,
    hooks: OnceLock<Hooks>,
}

impl Events {
    /// From now on hooks are told.
    pub fn use_hooks(&self, hooks: Hooks) {
        // Set once, when the daemon starts.
        let _ = self.hooks.set(hooks);
    }

    /// Tells the operator's hooks, if there are any.
    pub fn tell_hooks(&self, event: impl FnOnce() -> HookEvent) {
        if let Some(hooks) = self.hooks.get() {
            hooks.tell(event());
        }
    }

    /// Remembers and logs an event. `resource` is empty for the whole node.
    pub fn emit(&self, weight: Weight, resource: &str, text: impl Into<String>) {
        let text = text.into();
        match weight {
            Weight::Info => tracing::info!(resource, "{text}"),
            Weight::Warning => tracing::warn!(resource, "{text}"),
            Weight::Error => tracing::error!(resource, "{text}"),
        }
        let at_unix_ms = unix_ms();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let number = kept.back().map_or(1, |last| last.number + 1);
        if kept.len() == REMEMBERED {
            kept.pop_front();
        }
        kept.push_back(EventReport { number, at_unix_ms, resource: resource.to_owned(), text });
        self.happened.notify_all();
    }

    /// Events with a number above the given one; waits for the first for at most `patience`.
    pub fn after(&self, number: u64, patience: Duration) -> Vec<EventReport> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_new =
            |kept: &mut VecDeque<EventReport>| kept.back().is_none_or(|last| last.number <= number);
        let (kept, _) = self
            .happened
            .wait_timeout_while(kept, patience, nothing_new)
            .unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|event| event.number > number).cloned().collect()
    }

    /// The latest events of one resource, oldest first.
    pub fn latest(&self, resource: &str, count: usize) -> Vec<EventReport> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = kept.iter().rev().filter(|event| event.resource == resource);
        let mut latest: Vec<EventReport> = mine.take(count).cloned().collect();
        latest.reverse();
        latest
    }
}

/// A note of the core in words; `peers` are the names behind the indexes.
pub fn describe(note: &Note, peers: &[String]) -> (Weight, String) {
    let name = |peer: &PeerIndex| peers.get(usize::from(peer.0)).map_or("?", String::as_str);
    match note {
        Note::RoleChanged { role, generation } => {
            (Weight::Info, format!("role is {role} now, generation {generation}"))
        }
        Note::Committed { generation, what } => {
            (Weight::Info, format!("generation {generation}: {what}"))
        }
        Note::PeerJoined { peer, relation } => {
            (Weight::Info, format!("connected to {}: {relation}", name(peer)))
        }
        Note::PeerLost { peer, why } => {
            (Weight::Warning, format!("lost {}: {}", name(peer), describe_loss(*why)))
        }
        Note::PeerRefused { peer, why } => (Weight::Warning, format!("{}: {why}", name(peer))),
        Note::ResyncStarted { peer, bytes, full_because } => {
            let kind = match full_because {
                Some(reason) => format!("full resync ({reason})"),
                None => "resync".to_owned(),
            };
            (Weight::Info, format!("{kind} with {} began: {bytes} bytes to copy", name(peer)))
        }
        Note::HeldBack { peer, drops, left } => {
            let text = format!(
                "{} was dropped {drops} times lately: it is brought up to date when it has been \
                 heard for {} ms without a break",
                name(peer),
                left.as_ms()
            );
            (Weight::Warning, text)
        }
        Note::ResyncFinished { peer, sent_bytes } => {
            (Weight::Info, format!("resync with {} ended: {sent_bytes} bytes sent", name(peer)))
        }
        Note::Resized { from, to } => {
            (Weight::Info, format!("the volume grew from {from} to {to} bytes"))
        }
        Note::MetadataMoved { device_bytes } => {
            let text = format!("the metadata lie at the end of the disk again, at {device_bytes}");
            (Weight::Info, text)
        }
        Note::NoRoomMade { why } => (Weight::Warning, format!("no room is made: {why}")),
        Note::DiskFailed { during, range, why } => {
            let why = match why {
                DiskFailure::Io(number) => std::io::Error::from_raw_os_error(*number).to_string(),
                DiskFailure::NoSpace => "no space left".to_owned(),
            };
            let text = format!(
                "the disk failed ({during}, {} bytes at {}): {why}",
                range.length, range.start
            );
            (Weight::Error, text)
        }
        Note::FenceAwaited { peer } => {
            let text = format!(
                "{0} is lost and may take over: clients wait until it is off for sure, stands \
                 back, or is here again",
                name(peer)
            );
            (Weight::Warning, text)
        }
        Note::LeaseLapsed => {
            (Weight::Warning, "the lease ended: clients wait until it is back".into())
        }
        Note::LeaseBack { after } => {
            let text = format!("the lease is back: clients waited {} ms", after.as_ms());
            (Weight::Info, text)
        }
        Note::OfficeLost { why } => (Weight::Error, format!("no longer primary: {why}")),
        Note::RegisterWentBack { here, there } => {
            let text = format!(
                "the register went back: generation {here} is on this disk, {there} at the \
                 majority (R11c); this replica stops"
            );
            (Weight::Error, text)
        }
        Note::VerifyStarted { copy, bytes, repair, .. } => {
            let then = if *repair { "; what differs is copied again" } else { "" };
            let text = format!("verify of {copy} began: {bytes} bytes to compare{then}");
            (Weight::Info, text)
        }
        Note::VerifyEnded { copy, broken, findings, repairs, .. } => {
            verify_ended(copy, broken.as_deref(), findings, *repairs)
        }
        Note::VerifyRepaired { copy, bytes } => {
            let text = format!("{copy} is in sync again, {bytes} bytes were repaired");
            (Weight::Info, text)
        }
        Note::HotExtentsMarked { extents } => {
            let text =
                format!("after the crash {extents} extents of the activity log count as different");
            (Weight::Info, text)
        }
    }
}

/// How a verify ended: that of a whole, same copy is for the record.
fn verify_ended(
    copy: &str,
    broken: Option<&str>,
    findings: &Findings,
    repairs: bool,
) -> (Weight, String) {
    let checked = findings.checked_bytes;
    let mut text = match broken {
        Some(why) => format!("verify of {copy} ended early, {checked} bytes compared: {why}"),
        None => format!("verify of {copy} ended: {checked} bytes compared"),
    };
    if findings.is_clean() {
        text += "; all are the same";
        return (if broken.is_some() { Weight::Warning } else { Weight::Info }, text);
    }
    if findings.differing_blocks > 0 {
        let first = findings.differing.first().map_or(0, |run| run.start);
        text += &format!("; {} blocks differ, from byte {first} on", findings.differing_blocks);
    }
    let sides = [
        ("by the primary", findings.unreadable_here_bytes),
        ("there", findings.unreadable_there_bytes),
    ];
    for (side, bytes) in sides.into_iter().filter(|(_, bytes)| *bytes > 0) {
        text += &format!("; {bytes} bytes cannot be read {side}");
    }
    if repairs {
        text += &format!("; {copy} leaves the in-sync set and gets them again");
    }
    (Weight::Error, text)
}

fn describe_loss(why: LinkLoss) -> String {
    match why {
        LinkLoss::Closed => "it closed the connection".into(),
        LinkLoss::Io(number) => std::io::Error::from_raw_os_error(number).to_string(),
        LinkLoss::Garbled => "it sent a frame that does not decode".into(),
        LinkLoss::Silent => "it said nothing for too long".into(),
    }
}

/// The time in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_is_new_and_only_the_newest_are_kept() {
        let events = Events::default();
        for number in 0..REMEMBERED + 10 {
            events.emit(Weight::Info, if number % 2 == 0 { "a" } else { "b" }, number.to_string());
        }
        let all = events.after(0, Duration::ZERO);
        assert_eq!(all.len(), REMEMBERED);
        assert_eq!(all[0].number, 11);
        let last = all.last().unwrap().number;
        assert!(events.after(last, Duration::ZERO).is_empty());
        let latest = events.latest("a", 2);
        assert_eq!(latest.len(), 2);
        assert!(latest[0].number < latest[1].number);
        assert!(latest.iter().all(|event| event.resource == "a"));
    }

    #[test]
    fn notes_name_the_peer() {
        let note = Note::PeerLost { peer: PeerIndex(0), why: LinkLoss::Silent };
        let (weight, text) = describe(&note, &["beta".to_owned()]);
        assert_eq!(weight, Weight::Warning);
        assert_eq!(text, "lost beta: it said nothing for too long");
    }
}

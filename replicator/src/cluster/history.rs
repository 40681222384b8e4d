//! What the register went through, and volumes that grew, as this node saw it: one JSON object a
//! line, kept across restarts, newest at the end, bounded.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use failover::core::cluster::ClusterState;
use replicator_core::Span;
use serde::{Deserialize, Serialize};

use crate::events::unix_ms;
use crate::hooks::HookEvent;
use crate::latency::Histogram;
use crate::state_file;

/// Entries that are kept at least; the file has at most twice as many.
const KEPT: usize = 1_000;

/// One change of the register, or of the size of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When this node learned of it, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Revision of the register; with a `resize` the one that it had.
    pub revision: u64,
    /// What happened: `takeover`, `shrink`, `grow`, `release`, `switchover ordered`, `resize`, ...
    pub what: String,
    /// The resource; empty for the whole cluster.
    pub resource: String,
    /// Why, in words.
    pub why: String,
    /// The node that proposed it.
    pub by: String,
    /// The resource's generation afterwards; 0 for the whole cluster.
    pub generation: u64,
    /// Its primary afterwards; empty: none.
    pub primary: String,
    /// Its in-sync set afterwards.
    pub in_sync: Vec<String>,
    /// How long each part of a change of office took, or a resize in all, as this node saw it, in
    /// milliseconds, in their order; empty on nodes that had no part in it.
    #[serde(default)]
    pub phases: Vec<(String, u64)>,
    /// How long clients had no answer, at most, in milliseconds.
    #[serde(default)]
    pub paused_ms: Option<u64>,
    /// The size of the volume before a `resize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_bytes: Option<u64>,
    /// Its size afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_bytes: Option<u64>,
}

impl HistoryEntry {
    fn is_same(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.what == other.what
            && self.resource == other.resource
            && self.to_bytes == other.to_bytes
    }
}

/// What fencing did.
#[derive(Default)]
pub struct Fenced<'a> {
    /// `fence`, `takeover`, `stood back`.
    pub what: &'a str,
    /// The resource; empty for the node.
    pub resource: &'a str,
    /// In words.
    pub why: &'a str,
    /// This node.
    pub by: &'a str,
    /// The generation afterwards, when this node took the office.
    pub generation: u64,
    /// How long its parts took, in milliseconds.
    pub phases: Vec<(String, u64)>,
    /// How long clients had no answer, at most.
    pub paused_ms: Option<u64>,
}

/// How long the parts of a change of office took on this node.
pub struct Timed {
    /// The resource.
    pub resource: String,
    /// This node.
    pub by: String,
    /// What the change may be called in the history.
    pub what: &'static [&'static str],
    /// The parts in their order, in milliseconds.
    pub phases: Vec<(String, u64)>,
    /// How long clients had no answer, at most.
    pub paused_ms: Option<u64>,
}

/// A volume that grew.
pub struct Resized {
    /// The resource.
    pub resource: String,
    /// Its primary.
    pub primary: String,
    /// Its generation.
    pub generation: u64,
    /// Its in-sync set.
    pub in_sync: Vec<String>,
    /// Its size before.
    pub from_bytes: u64,
    /// Its size now.
    pub to_bytes: u64,
    /// How long it took since an operator ordered it here; none: nobody did.
    pub took_ms: Option<u64>,
}

/// How often this node took an office since the daemon started, and how long it took, by resource
/// and cause: `lost` (its primary was silent), `ordered` (by an operator), `forced`, `released`
/// (by a primary that could or should not go on), `resumed` (by the same node), `fenced`.
pub type Taken = BTreeMap<(String, &'static str), Histogram>;

/// The file and what is in it.
pub struct History {
    path: PathBuf,
    kept: Mutex<Vec<HistoryEntry>>,
    taken: Mutex<Taken>,
}

impl History {
    /// Reads what an earlier process wrote. Lines that make no sense are left out.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join("history.jsonl");
        let mut kept: Vec<HistoryEntry> = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let Ok(entry) = serde_json::from_str::<HistoryEntry>(&line?) else { continue };
                    match kept.iter_mut().rev().find(|old| old.is_same(&entry)) {
                        Some(old) => *old = entry,
                        None => kept.push(entry),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self { path, kept: Mutex::new(kept), taken: Mutex::default() })
    }

    /// Notes a state that was committed, unless it is known from before a restart; with its entry
    /// when it is news.
    pub fn note(&self, state: &ClusterState) -> Option<HistoryEntry> {
        let entry = state.resource(&state.cause.resource);
        let node_of = |replica| {
            let node = entry.and_then(|entry| entry.node_of(replica));
            node.map_or_else(String::new, |node| node.0.clone())
        };
        let register = entry.map(|entry| &entry.state);
        let set = register.map_or(&[][..], |it| &it.set);
        let mut in_sync: Vec<String> = set.iter().map(|it| node_of(it.replica)).collect();
        in_sync.sort();
        let entry = HistoryEntry {
            at_unix_ms: unix_ms(),
            revision: state.revision,
            what: state.cause.what.clone(),
            resource: state.cause.resource.clone(),
            why: state.cause.why.clone(),
            by: state.by.0.clone(),
            generation: register.map_or(0, |register| register.generation),
            primary: register.and_then(|it| it.primary).map(node_of).unwrap_or_default(),
            in_sync,
            ..HistoryEntry::default()
        };
        self.add(entry.clone()).then_some(entry)
    }

    /// Notes that a volume grew.
    pub fn note_resized(&self, resized: Resized) {
        let Resized { resource, primary, generation, in_sync, from_bytes, to_bytes, took_ms } =
            resized;
        let ordered = took_ms.map_or(String::new(), |_| format!(", an operator, on {primary}"));
        self.add(HistoryEntry {
            at_unix_ms: unix_ms(),
            revision: self.newest(|_| true).map_or(0, |newest| newest.revision),
            what: "resize".into(),
            resource,
            why: format!("from {from_bytes} to {to_bytes} bytes{ordered}"),
            by: primary.clone(),
            generation,
            primary,
            in_sync,
            phases: took_ms.map(|ms| ("grown".to_owned(), ms)).into_iter().collect(),
            paused_ms: None,
            from_bytes: Some(from_bytes),
            to_bytes: Some(to_bytes),
        });
    }

    /// Notes what fencing did, where no majority has a register with revisions.
    pub fn note_fence(&self, fenced: Fenced<'_>) {
        let Fenced { what, resource, why, by, generation, phases, paused_ms } = fenced;
        let revision = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.last().map_or(1, |last| last.revision + 1)
        };
        let taker = if generation > 0 { by } else { "" };
        if !taker.is_empty() {
            self.count_taken(resource, "fenced", &phases, paused_ms);
        }
        self.add(HistoryEntry {
            at_unix_ms: unix_ms(),
            revision,
            what: what.to_owned(),
            resource: resource.to_owned(),
            why: why.to_owned(),
            by: by.to_owned(),
            generation,
            primary: taker.to_owned(),
            in_sync: if taker.is_empty() { Vec::new() } else { vec![taker.to_owned()] },
            phases,
            paused_ms,
            ..HistoryEntry::default()
        });
    }

    /// Notes how long the parts of a change of office took here, in the entry of that change.
    pub fn note_timed(&self, timed: Timed) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |entry: &&mut HistoryEntry| {
            entry.resource == timed.resource
                && entry.by == timed.by
                && timed.what.contains(&entry.what.as_str())
        };
        let newest = kept.iter_mut().rev().find(is_meant);
        let Some(entry) = newest.filter(|entry| entry.phases.is_empty()) else { return };
        (entry.phases, entry.paused_ms) = (timed.phases, timed.paused_ms);
        self.write(entry);
        if let Some(cause) = cause_of(entry) {
            self.count_taken(&entry.resource, cause, &entry.phases, entry.paused_ms);
        }
    }

    /// Clients had no answer for so long, as far as that is known; else what was done took so long.
    fn count_taken(
        &self,
        resource: &str,
        cause: &'static str,
        phases: &[(String, u64)],
        paused_ms: Option<u64>,
    ) {
        let took_ms = paused_ms.unwrap_or_else(|| phases.iter().map(|(_, ms)| ms).sum());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.entry((resource.to_owned(), cause)).or_default().record(Span::from_ms(took_ms));
    }

    /// Changes of office to this node since the daemon started.
    pub fn taken(&self) -> Taken {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how long services took after the last change of a resource, as an entry of its own.
    pub fn note_phases(&self, resource: &str, what: &str, phases: Vec<(String, u64)>) {
        let is_meant =
            |entry: &HistoryEntry| entry.resource == resource && entry.to_bytes.is_none();
        let Some(last) = self.newest(is_meant) else { return };
        let (at_unix_ms, what) = (unix_ms(), what.to_owned());
        self.add(HistoryEntry { at_unix_ms, what, phases, paused_ms: None, ..last });
    }

    fn newest(&self, is_meant: impl Fn(&HistoryEntry) -> bool) -> Option<HistoryEntry> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|entry| is_meant(entry)).cloned()
    }

    /// Whether it is news.
    fn add(&self, entry: HistoryEntry) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|old| old.is_same(&entry)) {
            return false;
        }
        kept.push(entry.clone());
        if kept.len() > 2 * KEPT {
            let surplus = kept.len() - KEPT;
            kept.drain(..surplus);
            if let Err(error) = self.write_anew(&kept) {
                tracing::warn!("cannot write {}: {error}", self.path.display());
            }
        } else {
            self.write(&entry);
        }
        true
    }

    /// A later line about the same change takes the place of an earlier one.
    fn write(&self, entry: &HistoryEntry) {
        if let Err(error) = self.append(entry) {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    fn append(&self, entry: &HistoryEntry) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o644).open(&self.path)?;
        file.write_all(&line(entry))
    }

    fn write_anew(&self, kept: &[HistoryEntry]) -> io::Result<()> {
        state_file::replace(&self.path, &kept.iter().flat_map(line).collect::<Vec<u8>>())
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> Vec<HistoryEntry> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How an office came to this node; none: it went away.
fn cause_of(entry: &HistoryEntry) -> Option<&'static str> {
    let has = |phase: &str| entry.phases.iter().any(|(name, _)| name == phase);
    match entry.what.as_str() {
        "forced takeover" => Some("forced"),
        "resume" => Some("resumed"),
        "takeover" if has("detected") => Some("lost"),
        "takeover" if has("handed over") => Some("ordered"),
        "takeover" => Some("released"),
        _ => None,
    }
}

impl From<HistoryEntry> for HookEvent {
    fn from(entry: HistoryEntry) -> Self {
        Self {
            event: "register_changed",
            resource: entry.resource,
            what: entry.what,
            why: entry.why,
            service: String::new(),
            generation: entry.generation,
            primary: entry.primary,
            in_sync: entry.in_sync,
            by: entry.by,
        }
    }
}

fn line(entry: &HistoryEntry) -> Vec<u8> {
    let mut line = serde_json::to_vec(entry).expect("entries are plain values");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_outlive_a_restart_and_are_bounded() {
        let directory =
            std::env::temp_dir().join(format!("replicator-history-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let history = History::open(&directory).unwrap();
        let mut state = ClusterState::default();
        for revision in 1..=2 * KEPT as u64 + 5 {
            state.revision = revision;
            history.note(&state);
            history.note(&state);
        }
        let entries = History::open(&directory).unwrap().entries();
        assert_eq!(entries, history.entries());
        assert!(entries.len() <= 2 * KEPT);
        let phases = vec![("drained".to_owned(), 5)];
        history.note_timed(Timed {
            resource: String::new(),
            by: String::new(),
            what: &[""],
            phases: phases.clone(),
            paused_ms: Some(7),
        });
        let entries = History::open(&directory).unwrap().entries();
        assert_eq!(entries, history.entries());
        let last = entries.last().unwrap();
        assert_eq!((&last.phases, last.paused_ms), (&phases, Some(7)));
        assert_eq!(entries.last().unwrap().revision, 2 * KEPT as u64 + 5);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn every_growth_of_a_volume_is_noted_once_and_is_no_change_of_office() {
        let directory =
            std::env::temp_dir().join(format!("replicator-resized-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let history = History::open(&directory).unwrap();
        let mut state = ClusterState { revision: 7, ..ClusterState::default() };
        (state.cause.resource, state.cause.what) = ("db".into(), "takeover".into());
        history.note(&state);
        let grown = |resource: &str, from_bytes, to_bytes, took_ms| {
            history.note_resized(Resized {
                resource: resource.into(),
                primary: "alpha".into(),
                generation: 3,
                in_sync: vec!["alpha".into()],
                from_bytes,
                to_bytes,
                took_ms,
            });
        };
        grown("db", 1, 2, Some(80));
        grown("db", 2, 3, None);
        grown("db", 2, 3, None);
        grown("web", 2, 3, None);
        history.note_phases("db", "services started", vec![("database".into(), 5)]);
        let entries = History::open(&directory).unwrap().entries();
        assert_eq!(entries, history.entries());
        let [_, first, second, other, services] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((first.from_bytes, first.to_bytes, first.revision), (Some(1), Some(2), 7));
        assert_eq!(first.why, "from 1 to 2 bytes, an operator, on alpha");
        assert_eq!(first.phases, [("grown".to_owned(), 80)]);
        assert_eq!((second.to_bytes, second.why.as_str()), (Some(3), "from 2 to 3 bytes"));
        assert_eq!((other.resource.as_str(), other.to_bytes), ("web", Some(3)));
        assert_eq!((services.to_bytes, services.why.as_str()), (None, ""));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn offices_that_were_taken_are_counted_by_cause_with_the_pause() {
        let directory =
            std::env::temp_dir().join(format!("replicator-taken-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let history = History::open(&directory).unwrap();
        let mut state = ClusterState::default();
        state.cause.resource = "db".into();
        for (revision, what, phases, paused_ms) in [
            (
                1,
                "takeover",
                vec![("detected", 700), ("lease waited", 400), ("drained", 3)],
                Some(1103),
            ),
            (2, "takeover", vec![("handed over", 30), ("drained", 3)], Some(33)),
            (3, "takeover", vec![("drained", 3), ("committed", 4)], None),
            (4, "release", vec![("drained and flushed", 9)], None),
            (5, "resume", vec![("drained", 3)], None),
            (6, "forced takeover", vec![("handed over", 50)], Some(60)),
            (7, "takeover", vec![("detected", 700)], Some(1200)),
        ] {
            (state.revision, state.cause.what) = (revision, what.into());
            history.note(&state);
            let phases = phases.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect();
            let what: &'static [&'static str] = match what {
                "release" => &["release"],
                _ => &["takeover", "forced takeover", "resume"],
            };
            let (resource, by) = ("db".to_owned(), String::new());
            history.note_timed(Timed { resource, by, what, phases, paused_ms });
        }
        let taken: Vec<(&'static str, u64, u64)> = history
            .taken()
            .iter()
            .map(|((_, cause), took)| (*cause, took.count(), took.sum_ns() / 1_000_000))
            .collect();
        let wanted = [
            ("forced", 1, 60),
            ("lost", 2, 2303),
            ("ordered", 1, 33),
            ("released", 1, 7),
            ("resumed", 1, 3),
        ];
        assert_eq!(taken, wanted);
        fs::remove_dir_all(directory).unwrap();
    }
}

//! What verifies of a resource found: what this node knows of the newest of each copy, in a file of
//! its state directory, so that age and findings outlive the daemon.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use replicator_core::{ByteRange, Findings};
use serde::{Deserialize, Serialize};

use crate::events::unix_ms;
use crate::state_file;

/// What became of the repair that a verify ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// None was ordered, or nothing was to be repaired.
    #[default]
    None,
    /// The copy is out of the in-sync set and gets the blocks again.
    Running,
    /// It has them, and is in sync again.
    Done,
    /// The office or the daemon ended before that: the copy is resynced all the same as soon as its
    /// primary has marked it, and only another verify knows.
    Unknown,
}

/// The newest verify of one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The node whose copy was compared.
    pub copy: String,
    /// The primary that it was compared with.
    pub with: String,
    /// `running`, `ended` (all was compared) or `broken`.
    pub state: String,
    /// Why it is broken.
    pub why: String,
    /// When it began, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// When it ended; 0 while it runs.
    pub ended_unix_ms: u64,
    /// Bytes to compare in all.
    pub total_bytes: u64,
    /// Bytes that were compared.
    pub checked_bytes: u64,
    /// Blocks of 4096 bytes that differ.
    pub differing_blocks: u64,
    /// The first ranges that differ: first byte and length.
    pub differing: Vec<(u64, u64)>,
    /// Bytes that could not be read on the primary.
    pub unreadable_here_bytes: u64,
    /// Bytes that could not be read on the other node.
    pub unreadable_there_bytes: u64,
    /// The first ranges that could not be read on either side.
    pub unreadable: Vec<(u64, u64)>,
    /// What became of the repair.
    pub repair: Repair,
    /// When a verify of this copy came to its end last; 0: never, as far as this node knows.
    pub last_end_unix_ms: u64,
}

impl VerifyReport {
    /// Whether it says that the two copies are not the same, and nothing was done about it.
    pub fn is_bad(&self) -> bool {
        let unreadable = self.unreadable_here_bytes + self.unreadable_there_bytes;
        self.repair != Repair::Done && self.differing_blocks + unreadable > 0
    }

    /// Takes over what was found.
    pub fn found(&mut self, findings: &Findings) {
        let runs = |runs: &[ByteRange]| runs.iter().map(|run| (run.start, run.length)).collect();
        self.checked_bytes = findings.checked_bytes;
        self.differing_blocks = findings.differing_blocks;
        self.differing = runs(&findings.differing);
        self.unreadable_here_bytes = findings.unreadable_here_bytes;
        self.unreadable_there_bytes = findings.unreadable_there_bytes;
        self.unreadable = runs(&findings.unreadable);
    }
}

/// The file and what is in it.
pub struct Verifies {
    path: PathBuf,
    kept: Mutex<Vec<VerifyReport>>,
}

impl Verifies {
    /// Reads what an earlier process wrote.
    pub fn open(directory: &Path, resource: &str) -> Self {
        let path = directory.join(format!("verify-{resource}.json"));
        let mut kept: Vec<VerifyReport> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is not understood: {error}", path.display());
                Vec::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("cannot read {}: {error}", path.display());
                }
                Vec::new()
            }
        };
        let why = "the daemon ended";
        kept.iter_mut().for_each(|it| interrupt(it, why));
        Self { path, kept: Mutex::new(kept) }
    }

    /// The newest of each copy.
    pub fn reports(&self) -> Vec<VerifyReport> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One began.
    pub fn began(&self, copy: &str, with: &str, total_bytes: u64) {
        self.change(copy, |it| {
            *it = VerifyReport {
                copy: copy.to_owned(),
                with: with.to_owned(),
                state: "running".into(),
                began_unix_ms: unix_ms(),
                total_bytes,
                last_end_unix_ms: it.last_end_unix_ms,
                ..VerifyReport::default()
            };
        });
    }

    /// It ended.
    pub fn ended(
        &self,
        (copy, with): (&str, &str),
        broken: Option<&str>,
        findings: &Findings,
        repairs: bool,
    ) {
        self.change(copy, |it| {
            it.found(findings);
            with.clone_into(&mut it.with);
            it.ended_unix_ms = unix_ms();
            it.state = if broken.is_some() { "broken" } else { "ended" }.into();
            it.why = broken.unwrap_or_default().into();
            it.repair = if repairs { Repair::Running } else { Repair::None };
            if broken.is_none() {
                it.last_end_unix_ms = it.ended_unix_ms;
            }
        });
    }

    /// What it found was mended.
    pub fn repaired(&self, copy: &str) {
        self.change(copy, |it| it.repair = Repair::Done);
    }

    /// The office ended: what was under way is not followed any more.
    pub fn office_ended(&self) {
        let copies: Vec<String> = self.reports().into_iter().map(|it| it.copy).collect();
        for copy in copies {
            self.change(&copy, |it| interrupt(it, "the office of its primary ended"));
        }
    }

    fn change(&self, copy: &str, change: impl FnOnce(&mut VerifyReport)) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|it| it.copy == copy).unwrap_or_else(|| {
            kept.push(VerifyReport { copy: copy.to_owned(), ..VerifyReport::default() });
            kept.len() - 1
        });
        let before = kept[at].clone();
        change(&mut kept[at]);
        if kept[at] != before
            && let Err(error) = self.write(&kept)
        {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    fn write(&self, kept: &[VerifyReport]) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let bytes = serde_json::to_vec_pretty(kept).expect("plain values");
        state_file::replace(&self.path, &bytes)
    }
}

fn interrupt(report: &mut VerifyReport, why: &str) {
    if report.state == "running" {
        report.state = "broken".into();
        report.why = why.into();
        report.ended_unix_ms = unix_ms();
    }
    if report.repair == Repair::Running {
        report.repair = Repair::Unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(differing_blocks: u64) -> Findings {
        let differing = vec![ByteRange::new(8192, 4096)];
        Findings { checked_bytes: 1 << 20, differing_blocks, differing, ..Findings::default() }
    }

    #[test]
    fn what_was_found_outlives_a_restart_and_what_was_under_way_does_not() {
        let directory = std::env::temp_dir().join(format!("verifies-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let verifies = Verifies::open(&directory, "shop");
        assert!(verifies.reports().is_empty());
        verifies.began("beta", "alpha", 1 << 20);
        verifies.ended(("beta", "alpha"), None, &findings(1), true);
        verifies.began("gamma", "alpha", 1 << 20);

        let again = Verifies::open(&directory, "shop").reports();
        let beta = &again[0];
        assert_eq!((beta.copy.as_str(), beta.state.as_str()), ("beta", "ended"));
        assert_eq!(beta.differing, [(8192, 4096)]);
        assert!(beta.is_bad() && beta.last_end_unix_ms > 0);
        assert_eq!(beta.repair, Repair::Unknown, "nobody saw its end");
        assert_eq!((again[1].state.as_str(), again[1].last_end_unix_ms), ("broken", 0));

        verifies.repaired("beta");
        assert!(!Verifies::open(&directory, "shop").reports()[0].is_bad());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn one_that_broke_does_not_hide_when_the_last_came_to_its_end() {
        let directory = std::env::temp_dir().join(format!("verifies-b-{}", std::process::id()));
        let verifies = Verifies::open(&directory, "shop");
        verifies.began("beta", "alpha", 1 << 20);
        verifies.ended(("beta", "alpha"), None, &findings(0), false);
        let last = verifies.reports()[0].last_end_unix_ms;
        verifies.began("beta", "alpha", 1 << 20);
        verifies.ended(("beta", "alpha"), Some("the connection was lost"), &findings(0), false);
        let report = &verifies.reports()[0];
        assert_eq!((report.last_end_unix_ms, report.state.as_str()), (last, "broken"));
        fs::remove_dir_all(directory).unwrap();
    }
}

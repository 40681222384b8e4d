//! Whether something of a service may be on this machine: from the moment a start began, or it was
//! found running, until a stop that is believed. An agent whose own daemon does not run can tell
//! neither, and at boot that may be so for a while.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::super::scope::file_name;

/// A file where nothing outlives a reboot, so that a daemon that was restarted knows it.
pub struct Presence {
    file: PathBuf,
    /// Also where the file could not be written.
    has_begun: AtomicBool,
}

impl Presence {
    pub fn new(run_dir: &Path, resource: &str, service: &str) -> Self {
        let name = file_name(&format!("{resource}.{service}.here"));
        Self { file: run_dir.join("services").join(name), has_begun: AtomicBool::new(false) }
    }

    /// It may be here from now on.
    pub fn begins(&self) {
        if self.has_begun.swap(true, Relaxed) {
            return;
        }
        if let Some(dir) = self.file.parent() {
            let _ = fs::create_dir_all(dir);
        }
        let _ = fs::write(&self.file, "");
    }

    /// It is gone.
    pub fn ends(&self) {
        self.has_begun.store(false, Relaxed);
        let _ = fs::remove_file(&self.file);
    }

    /// Whether it may be here.
    pub fn is_possible(&self) -> bool {
        self.has_begun.load(Relaxed) || self.file.exists()
    }
}

//! `replicatord --record FILE`: writes what a core was made from, its inputs and its effects into
//! a file, for `sim --replay FILE`. A debugging option: it costs a system call at every step.
//!
//! What a step does is written together with the input of the next one, before that step: a
//! process that is killed, or whose core panics, leaves everything but the effects of its last
//! step. A file that cannot be written any more ends the recording, not the service.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use replicator_core::metadata::Image;
use replicator_core::recording;
use replicator_core::{Config, Effects, Input, Replica, Status, Time};

use crate::data_loop::Core;

/// How many recordings may lie beside each other.
const RECORDINGS_MAX: u32 = 100_000;

/// A file that takes one recording.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    /// None after an error.
    file: Option<File>,
    pending: Vec<u8>,
}

impl Recorder {
    /// Makes the file: the path itself, or with `.2`, `.3` and so on behind it when that exists;
    /// no recording is ever written over.
    pub fn create(wish: &Path) -> io::Result<Self> {
        for number in 1..=RECORDINGS_MAX {
            let mut path = wish.as_os_str().to_owned();
            if number > 1 {
                path.push(format!(".{number}"));
            }
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    let pending = recording::title().into_bytes();
                    return Ok(Self { path: path.into(), file: Some(file), pending });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where it writes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what the core is about to be made from.
    pub fn start(&mut self, now: Time, config: &Config, image: &Image<'_>) {
        recording::put_start(&mut self.pending, now, config, image);
        self.write();
    }

    fn write(&mut self) {
        let pending = mem::take(&mut self.pending);
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&pending)
        {
            tracing::error!(path = %self.path.display(), %error, "the recording ends here");
            self.file = None;
        }
        self.pending = pending;
        self.pending.clear();
    }
}

/// A replica whose steps are recorded.
#[derive(Debug)]
pub struct Recorded {
    replica: Replica,
    recorder: Recorder,
}

impl Recorded {
    /// Records every step of the replica; [`Recorder::start`] was called before it was attached.
    pub fn new(replica: Replica, recorder: Recorder) -> Self {
        Self { replica, recorder }
    }
}

impl Core for Recorded {
    fn step(&mut self, now: Time, input: Input, effects: &mut Effects) {
        recording::put_input(&mut self.recorder.pending, now, &input);
        self.recorder.write();
        let before = effects.len();
        self.replica.step(now, input, effects);
        recording::put_effects(&mut self.recorder.pending, &effects[before..]);
    }

    fn holds_lease(&self, now: Time) -> bool {
        self.replica.holds_lease(now)
    }

    fn next_deadline(&self) -> Option<Time> {
        self.replica.next_deadline()
    }

    fn status(&self, now: Time) -> Status {
        self.replica.status(now)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            recording::put_end(&mut self.recorder.pending);
        }
        self.recorder.write();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_recording_is_never_written_over() {
        let dir = std::env::temp_dir().join(format!("recordings-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let wish = dir.join("one");
        let paths = [(); 3].map(|()| {
            let mut recorder = Recorder::create(&wish).expect("a file");
            recorder.write();
            recorder.path().to_owned()
        });
        assert_eq!(paths, [wish.clone(), dir.join("one.2"), dir.join("one.3")]);
        let text = fs::read_to_string(&wish).expect("its title");
        assert_eq!(text, recording::title());
        fs::remove_dir_all(&dir).expect("it was there");
    }
}

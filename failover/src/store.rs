//! The acceptor's record on disk: two files that are written in turn, so that the newest good one
//! is never overwritten, each with a checksum, and durable before anybody hears of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use failover_core::acceptor::Record;
use thiserror::Error;

const MAGIC: &[u8; 8] = b"RPLACPT3";
const HEADER_BYTES: usize = 16;
const SLOTS: [&str; 2] = ["register.0", "register.1"];

/// Why there is no record to start with, or it cannot be written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Both slots are there and neither can be read.
    #[error(
        "{0} has a register that cannot be read ({1}): this node must not vote with it. Remove the \
         two files register.* there and run `replctl node replace` for this node"
    )]
    Damaged(PathBuf, String),
    /// The directory or a file cannot be used.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The two slots in a directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    next_slot: usize,
    /// Kept open from the first write on: a process without descriptors must go on voting.
    files: [Option<File>; SLOTS.len()],
    /// Whether the directory is known to be durable with the slots in it: never at the start, since
    /// a process before may have ended between the two.
    is_listed: [bool; SLOTS.len()],
}

impl Store {
    /// Opens the directory and reads the newest record; a new one when there is none.
    pub fn open(directory: &Path) -> Result<(Self, Record), StoreError> {
        let io = |verb, path: &Path, source| StoreError::Io { verb, path: path.into(), source };
        fs::create_dir_all(directory).map_err(|error| io("make", directory, error))?;
        let mut newest: Option<(usize, Record)> = None;
        let mut problems = Vec::new();
        for (slot, name) in SLOTS.iter().enumerate() {
            let path = directory.join(name);
            match fs::read(&path) {
                Ok(bytes) => match decode(&bytes) {
                    Ok(record) => {
                        if newest.as_ref().is_none_or(|(_, old)| old.sequence < record.sequence) {
                            newest = Some((slot, record));
                        }
                    }
                    Err(why) => problems.push(format!("{name}: {why}")),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io("read", &path, error)),
            }
        }
        let mut store = Self {
            directory: directory.into(),
            next_slot: 0,
            files: [const { None }; SLOTS.len()],
            is_listed: [false; SLOTS.len()],
        };
        let record = match newest {
            Some((slot, record)) => {
                store.next_slot = 1 - slot;
                record
            }
            // A first write that was torn left one bad slot: nobody has heard of it.
            None if problems.len() < SLOTS.len() => {
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(|error| {
                    io("draw an id for", directory, io::Error::other(error.to_string()))
                })?;
                let record = Record::new(u128::from_le_bytes(id));
                store.write(&record)?;
                record
            }
            None => {
                return Err(StoreError::Damaged(directory.into(), problems.join("; ")));
            }
        };
        Ok((store, record))
    }

    /// Writes a record; durable when it returns.
    pub fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        let path = self.directory.join(SLOTS[self.next_slot]);
        let io = |verb, source| StoreError::Io { verb, path: path.clone(), source };
        // One that failed is opened anew.
        let file = match self.files[self.next_slot].take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                options.open(&path).map_err(|error| io("open", error))?
            }
        };
        let bytes = encode(record);
        file.write_all_at(&bytes, 0).map_err(|error| io("write", error))?;
        file.set_len(bytes.len() as u64).map_err(|error| io("write", error))?;
        file.sync_all().map_err(|error| io("sync", error))?;
        self.files[self.next_slot] = Some(file);
        if !self.is_listed[self.next_slot] {
            let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
            synced.map_err(|error| io("sync the directory of", error))?;
            self.is_listed[self.next_slot] = true;
        }
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

fn encode(record: &Record) -> Vec<u8> {
    let body = postcard::to_stdvec(record).expect("a record has a form");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let body = bytes.get(HEADER_BYTES..).ok_or("it is too short")?;
    if &bytes[..8] != MAGIC {
        return Err("it is no register".into());
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    if body.len() as u64 != u64::from(word(8)) {
        return Err(format!("it has {} bytes, not {}", body.len(), word(8)));
    }
    if crc32fast::hash(body) != word(12) {
        return Err("its checksum is wrong".into());
    }
    postcard::from_bytes(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("failover-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn the_newest_record_comes_back() {
        let directory = directory("newest");
        let (mut store, mut record) = Store::open(&directory).unwrap();
        for sequence in 1..=5 {
            record.sequence = sequence;
            store.write(&record).unwrap();
        }
        let (_, found) = Store::open(&directory).unwrap();
        assert_eq!(found, record);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let directory = directory("torn");
        let (mut store, mut record) = Store::open(&directory).unwrap();
        record.sequence = 1;
        store.write(&record).unwrap();
        let whole = encode(&Record { sequence: 2, ..record.clone() });
        for length in 0..whole.len() {
            fs::write(directory.join(SLOTS[store.next_slot]), &whole[..length]).unwrap();
            let (_, found) = Store::open(&directory).unwrap();
            assert_eq!(found, record, "{length} bytes");
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn two_bad_slots_are_refused_with_the_cure() {
        let directory = directory("bad");
        fs::create_dir_all(&directory).unwrap();
        for slot in SLOTS {
            fs::write(directory.join(slot), b"RPLACPT2 and then something else").unwrap();
        }
        let text = Store::open(&directory).unwrap_err().to_string();
        assert!(text.contains("replctl node replace"), "{text}");
        fs::remove_dir_all(directory).unwrap();
    }
}

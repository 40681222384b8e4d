//! The journal: one line per event, in the order in which the checker was told them.
//!
//! The line that starts a request is handed to the kernel (`write`) before the request is sent, so
//! that whatever the device may have seen is known even if this process is killed at any
//! instruction. Lines that end a request are buffered and go out with the next start. When they are
//! lost, an acknowledged write is taken for one of unknown outcome, a flush for one that proves
//! nothing, a read for one without an answer: the judgement becomes milder, never wrong. The order
//! of lines is the order of what was seen, so a flush covers exactly the writes whose
//! acknowledgement stands before its start. Only the death of the client's machine is not covered:
//! nothing is synced to disk.
//!
//! A line that was cut short at the end of the file is dropped: its request was never sent.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::ops::Range;
use std::path::Path;

use history::{Checker, Config, PowerLoss, Seen, Violation, Write};

/// What stays the same over all runs with one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Written into every unit.
    pub run: u32,
    /// Bytes of a unit.
    pub unit_bytes: u64,
    /// Units that are used, from the start of the export.
    pub units: u64,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A write of data starts; its value is its id.
    Write { id: u64, units: Range<u64>, fua: bool },
    /// Write-zeroes starts.
    Zero { id: u64, units: Range<u64>, fua: bool },
    /// Trim starts; it must zero `certain`.
    Trim { id: u64, units: Range<u64>, certain: Range<u64> },
    /// A flush starts.
    Flush { id: u64 },
    /// A read starts.
    Read { id: u64, units: Range<u64> },
    /// The write, zeroing or trim was acknowledged.
    Acked { id: u64 },
    /// It failed or its connection was lost.
    Unknown { id: u64 },
    /// The flush was acknowledged.
    Flushed { id: u64 },
    /// It was not.
    NotFlushed { id: u64 },
    /// The read returned.
    Seen { id: u64, seen: Vec<Seen> },
    /// It did not.
    NotRead { id: u64 },
    /// A process began to use the journal: whatever was in flight is of unknown outcome.
    Begin,
    /// A take-over.
    TenureChanged,
    /// All members lost their power.
    PowerLost,
}

impl Record {
    fn is_start(&self) -> bool {
        use Record::{Flush, Read, Trim, Write, Zero};
        matches!(self, Write { .. } | Zero { .. } | Trim { .. } | Flush { .. } | Read { .. })
    }

    /// Tells the checker.
    pub fn apply(&self, checker: &mut Checker) -> Vec<Violation> {
        match self {
            Record::Write { id, units, fua } => {
                let write = Write::data(units.clone(), *id);
                checker.write_started(*id, if *fua { write.fua() } else { write });
            }
            Record::Zero { id, units, fua } => {
                let write = Write::zero(units.clone());
                checker.write_started(*id, if *fua { write.fua() } else { write });
            }
            Record::Trim { id, units, certain } => {
                checker.write_started(*id, Write::trim(units.clone(), certain.clone()));
            }
            Record::Flush { id } => checker.flush_started(*id),
            Record::Read { id, units } => checker.read_started(*id, units.clone()),
            Record::Acked { id } => return checker.write_acked(*id),
            Record::Unknown { id } => checker.write_unknown(*id),
            Record::Flushed { id } => return Vec::from_iter(checker.flush_acked(*id)),
            Record::NotFlushed { id } => checker.flush_unknown(*id),
            Record::Seen { id, seen } => return checker.read_done(*id, seen),
            Record::NotRead { id } => checker.read_failed(*id),
            Record::Begin => drop(checker.connection_lost()),
            Record::TenureChanged => checker.tenure_changed(checker.tenure() + 1),
            Record::PowerLost => checker.power_lost(PowerLoss::AllMembers),
        }
        Vec::new()
    }

    fn id(&self) -> u64 {
        match self {
            Record::Write { id, .. }
            | Record::Zero { id, .. }
            | Record::Trim { id, .. }
            | Record::Flush { id }
            | Record::Read { id, .. } => *id,
            _ => 0,
        }
    }

    fn append_to(&self, text: &mut String) {
        let written = match self {
            Record::Write { id, units, fua } => {
                writeln!(text, "W {id} {} {} {}", units.start, units.end, u8::from(*fua))
            }
            Record::Zero { id, units, fua } => {
                writeln!(text, "Z {id} {} {} {}", units.start, units.end, u8::from(*fua))
            }
            Record::Trim { id, units: u, certain: c } => {
                writeln!(text, "T {id} {} {} {} {}", u.start, u.end, c.start, c.end)
            }
            Record::Flush { id } => writeln!(text, "F {id}"),
            Record::Read { id, units } => writeln!(text, "R {id} {} {}", units.start, units.end),
            Record::Acked { id } => writeln!(text, "a {id}"),
            Record::Unknown { id } => writeln!(text, "u {id}"),
            Record::Flushed { id } => writeln!(text, "f {id}"),
            Record::NotFlushed { id } => writeln!(text, "g {id}"),
            Record::NotRead { id } => writeln!(text, "x {id}"),
            Record::Begin => writeln!(text, "begin"),
            Record::TenureChanged => writeln!(text, "tenure-changed"),
            Record::PowerLost => writeln!(text, "power-lost"),
            Record::Seen { id, seen } => {
                let _ = write!(text, "r {id}");
                for run in seen.chunk_by(|a, b| a == b) {
                    let _ = match run[0] {
                        Seen::Value(value) => write!(text, " {value}*{}", run.len()),
                        Seen::Torn => write!(text, " t*{}", run.len()),
                        Seen::Foreign => write!(text, " x*{}", run.len()),
                    };
                }
                writeln!(text)
            }
        };
        written.expect("a String takes everything");
    }

    fn parse(line: &str) -> Option<Record> {
        let mut words = line.split(' ');
        let command = words.next()?;
        if command == "r" {
            let id = words.next()?.parse().ok()?;
            let mut seen = Vec::new();
            for word in words {
                let (value, count) = word.split_once('*')?;
                let value = match value {
                    "t" => Seen::Torn,
                    "x" => Seen::Foreign,
                    number => Seen::Value(number.parse().ok()?),
                };
                let count: u32 = count.parse().ok()?;
                seen.extend((0..count).map(|_| value));
            }
            return Some(Record::Seen { id, seen });
        }
        let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(match (command, numbers.as_slice()) {
            ("W", &[id, from, to, fua]) => Record::Write { id, units: from..to, fua: fua == 1 },
            ("Z", &[id, from, to, fua]) => Record::Zero { id, units: from..to, fua: fua == 1 },
            ("T", &[id, from, to, certain_from, certain_to]) => {
                Record::Trim { id, units: from..to, certain: certain_from..certain_to }
            }
            ("F", &[id]) => Record::Flush { id },
            ("R", &[id, from, to]) => Record::Read { id, units: from..to },
            ("a", &[id]) => Record::Acked { id },
            ("u", &[id]) => Record::Unknown { id },
            ("f", &[id]) => Record::Flushed { id },
            ("g", &[id]) => Record::NotFlushed { id },
            ("x", &[id]) => Record::NotRead { id },
            ("begin", []) => Record::Begin,
            ("tenure-changed", []) => Record::TenureChanged,
            ("power-lost", []) => Record::PowerLost,
            _ => return None,
        })
    }
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    buffer: String,
    failed: Option<std::io::Error>,
}

/// What a journal says about the past.
#[derive(Debug)]
pub struct Past {
    pub layout: Layout,
    pub checker: Checker,
    /// The first operation id that was never used.
    pub next_id: u64,
    /// What was found wrong before, again.
    pub violations: Vec<Violation>,
}

impl Journal {
    /// Begins a new journal. The file must not exist.
    pub fn create(path: &Path, layout: Layout) -> Result<Journal, String> {
        let named = |error| format!("{}: {error}", path.display());
        let mut file =
            OpenOptions::new().append(true).create_new(true).open(path).map_err(named)?;
        let Layout { run, unit_bytes, units } = layout;
        file.write_all(format!("blkload-journal-1 {run} {unit_bytes} {units}\n").as_bytes())
            .map_err(named)?;
        Ok(Journal { file, buffer: String::new(), failed: None })
    }

    /// Opens a journal and goes through all of it again.
    pub fn open(path: &Path) -> Result<(Journal, Past), String> {
        let named = |error| format!("{}: {error}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).open(path).map_err(named)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(named)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(named)?;
        let mut lines = text[..whole].lines();
        let layout = lines.next().and_then(parse_layout).ok_or_else(|| {
            format!("{} is no journal of blkload, or of another version", path.display())
        })?;
        let mut past = Past {
            layout,
            checker: Checker::new(Config::new(layout.units)),
            next_id: 1,
            violations: Vec::new(),
        };
        for (index, line) in lines.enumerate() {
            let record = Record::parse(line)
                .ok_or_else(|| format!("{}:{}: cannot be read", path.display(), index + 2))?;
            past.next_id = past.next_id.max(record.id() + 1);
            past.violations.extend(record.apply(&mut past.checker));
        }
        Ok((Journal { file, buffer: String::new(), failed: None }, past))
    }

    /// Adds an event. A start is with the kernel when this returns true; when it returns false the
    /// journal cannot be written and nothing more may be sent.
    #[must_use]
    pub fn add(&mut self, record: &Record) -> bool {
        record.append_to(&mut self.buffer);
        if record.is_start() { self.write_out() } else { self.failed.is_none() }
    }

    /// Hands everything to the kernel. False when that failed now or earlier.
    pub fn write_out(&mut self) -> bool {
        if self.failed.is_none() {
            self.failed = self.file.write_all(self.buffer.as_bytes()).err();
            self.buffer.clear();
        }
        self.failed.is_none()
    }

    /// Why the journal cannot be written any more.
    pub fn failure(&self) -> Option<&std::io::Error> {
        self.failed.as_ref()
    }
}

fn parse_layout(line: &str) -> Option<Layout> {
    let numbers = line.strip_prefix("blkload-journal-1 ")?;
    let mut numbers = numbers.split(' ');
    let layout = Layout {
        run: numbers.next()?.parse().ok()?,
        unit_bytes: numbers.next()?.parse().ok()?,
        units: numbers.next()?.parse().ok()?,
    };
    let sane = (super::content::MIN_UNIT_BYTES as u64..=65_536).contains(&layout.unit_bytes)
        && layout.unit_bytes.is_power_of_two()
        && layout.units > 0;
    sane.then_some(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_survives_its_line() {
        let records = [
            Record::Write { id: 1, units: 2..9, fua: true },
            Record::Zero { id: 2, units: 2..9, fua: false },
            Record::Trim { id: 6, units: 2..9, certain: 3..8 },
            Record::Flush { id: 3 },
            Record::Read { id: 4, units: 0..1 },
            Record::Acked { id: 1 },
            Record::Unknown { id: 2 },
            Record::Flushed { id: 3 },
            Record::NotFlushed { id: 3 },
            Record::NotRead { id: 4 },
            Record::Begin,
            Record::TenureChanged,
            Record::PowerLost,
            Record::Seen {
                id: 5,
                seen: vec![Seen::Value(3), Seen::Value(3), Seen::Torn, Seen::Foreign],
            },
        ];
        for record in records {
            let mut line = String::new();
            record.append_to(&mut line);
            assert_eq!(Record::parse(line.trim_end()), Some(record));
        }
    }
}

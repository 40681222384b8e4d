//! `sim --replay FILE`: steps the shipping core through a recording of `replicatord --record` and
//! shows the first step that goes another way.
//!
//! Exit codes: 0 no difference, 1 the first difference is shown, 2 it cannot be read, 127 the core
//! panicked. A recording that ends in the middle of a record is good up to there: its daemon was
//! killed. `--defect NAME` before `--replay` breaks a rule first, to see what it would have done.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::exit;

use replicator_core::metadata::Image;
use replicator_core::recording::{
    HEAD_BYTES, Head, Record, RecordError, TITLE_BYTES_MAX, TITLE_START, describe_all,
};
use replicator_core::{Config, Effects, Input, Replica, Time};

/// Steps before the difference that are shown with it.
const SHOWN_BEFORE: usize = 8;

/// What a replay came to.
#[derive(Debug)]
pub struct Replayed {
    /// The version of the core that was recorded.
    pub version: String,
    /// Whose core it was.
    pub node: String,
    /// Steps that were compared and are equal.
    pub equal: u64,
    /// Inputs by their kind, the last one included.
    pub inputs: BTreeMap<&'static str, u64>,
    /// From the start to the last input, in nanoseconds of its clock.
    pub span_ns: u64,
    /// How the file ends.
    pub ending: Ending,
    /// The first step that went another way; the replay ends there.
    pub difference: Option<Difference>,
}

/// How a recording ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The daemon let go of the core.
    Orderly,
    /// After a whole record, without an end: the daemon was killed or could not write.
    Killed,
    /// In the middle of a record: the daemon was killed or could not write.
    Torn,
    /// Nobody looked: there is a difference before.
    Unseen,
}

/// A step that went another way.
#[derive(Debug)]
pub struct Difference {
    /// Its number; the first step is 1.
    pub step: u64,
    /// Since the start, in nanoseconds.
    pub after_ns: u64,
    /// What the core was told.
    pub input: String,
    /// A line for every effect that was recorded.
    pub expected: String,
    /// A line for every effect now.
    pub now: String,
    /// The inputs before, with their number and time.
    pub before: Vec<String>,
}

/// Why a file cannot be replayed.
#[derive(Debug)]
pub enum ReplayError {
    /// It cannot be opened or read.
    Io(io::Error),
    /// It does not begin as a recording that this build reads.
    Foreign(String),
    /// It is damaged: the byte where the record begins, and what is wrong.
    Damaged(u64, String),
    /// The core refuses the metadata it was made from.
    Attach(String),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Foreign(line) => {
                write!(f, "does not begin with \"{TITLE_START}\" but with {line:?}")
            }
            Self::Damaged(at, what) => write!(f, "damaged at byte {at}: {what}"),
            Self::Attach(error) => write!(f, "the core cannot be made again: {error}"),
        }
    }
}

impl From<io::Error> for ReplayError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

thread_local! {
    /// The step under way, for a panic of the core.
    static UNDER_WAY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Replays a file, prints what it came to and ends the program.
pub fn main(path: &str) -> ! {
    std::panic::set_hook(Box::new(|info| {
        UNDER_WAY.with_borrow(|step| println!("the core panics in {step}: {info}"));
        exit(127);
    }));
    match replay(Path::new(path)) {
        Ok(replayed) => {
            println!("{path}: {replayed}");
            exit(i32::from(replayed.difference.is_some()))
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            exit(2)
        }
    }
}

/// Steps a core through the recording until its end or the first difference.
pub fn replay(path: &Path) -> Result<Replayed, ReplayError> {
    let mut file = Reading::open(path)?;
    let (began, config, region, rest) = file.start()?;
    let image = Image { region: &region, ..rest };
    let node = config.node.clone();
    let mut replica = Replica::attach(config, image, began)
        .map_err(|error| ReplayError::Attach(error.to_string()))?;
    let mut replayed = Replayed {
        version: file.version.clone(),
        node,
        equal: 0,
        inputs: BTreeMap::new(),
        span_ns: 0,
        ending: Ending::Unseen,
        difference: None,
    };
    let mut steps = Steps { began, number: 0, latest: Vec::new() };
    let mut effects = Effects::new();
    loop {
        let record = match file.next()? {
            Ok(record) => record,
            Err(ending) => {
                replayed.ending = ending;
                return Ok(replayed);
            }
        };
        match record {
            Record::Input { now, input } => {
                *replayed.inputs.entry(kind(&input)).or_default() += 1;
                replayed.span_ns = now.since(began).0;
                steps.begin(now, &input);
                effects.clear();
                replica.step(now, input, &mut effects);
            }
            Record::Effects(expected) => {
                let now = describe_all(&effects);
                if now != expected {
                    replayed.difference = Some(steps.difference(expected, now));
                    return Ok(replayed);
                }
                replayed.equal += 1;
            }
            Record::End => {}
            Record::Start { .. } | Record::Region { .. } => {
                return Err(file.damaged("a second start"));
            }
        }
    }
}

/// The steps so far, as far as they are shown.
struct Steps {
    began: Time,
    number: u64,
    latest: Vec<(u64, Time, String)>,
}

impl Steps {
    fn begin(&mut self, now: Time, input: &Input) {
        self.number += 1;
        if self.latest.len() > SHOWN_BEFORE {
            self.latest.remove(0);
        }
        let text = format!("{input:?}");
        UNDER_WAY.set(format!("step {}: {text}", self.number));
        self.latest.push((self.number, now, text));
    }

    fn difference(&mut self, expected: String, now: String) -> Difference {
        let (step, time, input) = self.latest.pop().unwrap_or_default();
        let line = |(number, time, text): &(u64, Time, String)| {
            format!("{number} at {}: {text}", seconds(time.since(self.began).0))
        };
        let before = self.latest.iter().map(line).collect();
        let after_ns = time.since(self.began).0;
        Difference { step, after_ns, input, expected, now, before }
    }
}

/// A recording that is being read.
struct Reading {
    version: String,
    from: BufReader<File>,
    at: u64,
    /// A record that was read and is still to be given out.
    held: Option<Record>,
    is_ended: bool,
}

impl Reading {
    fn open(path: &Path) -> Result<Self, ReplayError> {
        let mut from = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut title = Vec::new();
        (&mut from).take(TITLE_BYTES_MAX as u64).read_until(b'\n', &mut title)?;
        let title = String::from_utf8_lossy(&title).into_owned();
        let version = title.strip_prefix(TITLE_START).and_then(|rest| rest.strip_suffix('\n'));
        let version = version.ok_or_else(|| ReplayError::Foreign(title.clone()))?.to_owned();
        Ok(Self { version, from, at: title.len() as u64, held: None, is_ended: false })
    }

    /// The start, with its whole metadata region.
    fn start(&mut self) -> Result<(Time, Config, Vec<u8>, Image<'static>), ReplayError> {
        let start = self.next()?;
        let Ok(Record::Start { now, config, region_bytes, device_bytes, disk_bytes, fingerprint }) =
            start
        else {
            return Err(self.damaged("it does not begin with a start"));
        };
        let mut region = vec![0; region_bytes as usize];
        loop {
            match self.next()? {
                Ok(Record::Region { offset, bytes }) => {
                    let place = usize::try_from(offset)
                        .ok()
                        .and_then(|from| region.get_mut(from..from.checked_add(bytes.len())?));
                    let Some(place) = place else {
                        return Err(self.damaged("metadata beyond their region"));
                    };
                    place.copy_from_slice(&bytes);
                }
                Ok(other) => {
                    self.held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let image = Image { region: &[], device_bytes, disk_bytes, fingerprint };
        Ok((now, config, region, image))
    }

    /// The next record, or how the file ends.
    fn next(&mut self) -> Result<Result<Record, Ending>, ReplayError> {
        if let Some(held) = self.held.take() {
            return Ok(Ok(held));
        }
        let mut head = [0; HEAD_BYTES];
        match self.fill(&mut head)? {
            0 if self.is_ended => return Ok(Err(Ending::Orderly)),
            0 => return Ok(Err(Ending::Killed)),
            HEAD_BYTES => {}
            _ => return Ok(Err(Ending::Torn)),
        }
        if self.is_ended {
            return Err(self.damaged("something comes behind the end"));
        }
        let head = Head::decode(&head).map_err(|error| self.broken(error))?;
        let mut contents = vec![0; head.length];
        if self.fill(&mut contents)? < head.length {
            return Ok(Err(Ending::Torn));
        }
        let record = head.record(&contents).map_err(|error| self.broken(error))?;
        self.at += (HEAD_BYTES + head.length) as u64;
        self.is_ended = matches!(record, Record::End);
        Ok(Ok(record))
    }

    /// Reads until the place is full or the file ends; how much there was.
    fn fill(&mut self, place: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < place.len() {
            match self.from.read(&mut place[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn broken(&self, error: RecordError) -> ReplayError {
        ReplayError::Damaged(self.at, error.to_string())
    }

    fn damaged(&self, what: &str) -> ReplayError {
        ReplayError::Damaged(self.at, what.to_owned())
    }
}

fn kind(input: &Input) -> &'static str {
    match input {
        Input::ClientRequested { .. } => "ClientRequested",
        Input::DiskDone { .. } => "DiskDone",
        Input::PeerConnected { .. } => "PeerConnected",
        Input::PeerSaid { .. } => "PeerSaid",
        Input::LinkLost { .. } => "LinkLost",
        Input::Ordered { .. } => "Ordered",
        Input::Decided { .. } => "Decided",
        Input::RegisterLearned(_) => "RegisterLearned",
        Input::LeaseChanged { .. } => "LeaseChanged",
        Input::TimePassed => "TimePassed",
    }
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000)
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.version == env!("CARGO_PKG_VERSION") {
            String::new()
        } else {
            format!(" (recorded with {}, this is {})", self.version, env!("CARGO_PKG_VERSION"))
        };
        let verdict = if self.difference.is_none() { "equal" } else { "DIFFERENT" };
        writeln!(
            f,
            "{verdict}: {} steps of {} in {} are as recorded{version}",
            self.equal,
            self.node,
            seconds(self.span_ns)
        )?;
        let inputs: Vec<String> =
            self.inputs.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "  inputs: {}", inputs.join(", "))?;
        match self.ending {
            Ending::Orderly => write!(f, "\n  ends orderly"),
            Ending::Killed => write!(f, "\n  ends without an end: the daemon was killed"),
            Ending::Torn => write!(f, "\n  ends in the middle of a record: the daemon was killed"),
            Ending::Unseen => Ok(()),
        }?;
        self.difference.as_ref().map_or(Ok(()), |difference| write!(f, "\n{difference}"))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.before {
            writeln!(f, "  step {line}")?;
        }
        writeln!(f, "  step {} at {}: {}", self.step, seconds(self.after_ns), self.input)?;
        let (expected, now): (Vec<_>, Vec<_>) =
            (self.expected.lines().collect(), self.now.lines().collect());
        let same = expected.iter().zip(&now).take_while(|(one, other)| one == other).count();
        for line in &expected[..same] {
            writeln!(f, "      {line}")?;
        }
        for line in &expected[same..] {
            writeln!(f, "    - {line}")?;
        }
        for line in &now[same..] {
            writeln!(f, "    + {line}")?;
        }
        write!(f, "  (- recorded, + now)")
    }
}

//! The command line of blkload.

use std::path::PathBuf;
use std::time::Duration;

use crate::journal::Record;
use crate::wire::Uri;

/// The text of `--help`.
pub const HELP: &str = "\
blkload - drives a live NBD export and checks every answer against the history checker

  blkload run    --uri URI [--uri URI].. --journal FILE [options]   load the export and check
  blkload verify --uri URI [--uri URI].. --journal FILE [options]   read all back and check
  blkload --selftest                                                show that faults are found

URI is unix:PATH:EXPORT or tcp:HOST:PORT:EXPORT; with several, each is tried until one serves. To
change to another one is taken for a take-over (a later tenure). FILE is made by the first run (the
export must then read as zeroes, or give --wipe) and goes on with every later run and verify.

  --seconds N            length of the run (10)
  --connections C        NBD connections (4)
  --depth D              requests in flight on each connection (16)
  --size BYTES[K|M|G]    use only the start of the export; first run only (all of it)
  --unit BYTES           grain of requests and of the check; below 512 it makes sub-sector requests;
                         first run only (512)
  --max-request BYTES    longest read and write (128K)
  --seed X               seed of the mix (1)
  --rate N               requests started per second, all connections together (no limit)
  --mix K=W,..           weights of read, write, fua, flush, trim, zero
                         (read=40,write=40,fua=5,flush=3,trim=4,zero=8)
  --unaligned PERCENT    requests that ignore 4 KiB bounds (30)
  --hot PERCENT          requests that go to the first MiB, where they overlap (50)
  --trim ignorable|zeroes[:ALIGN]  what a trim promises: nothing, or zeroes in the part aligned to
                         ALIGN bytes (ignorable)
  --wipe                 zero and flush the used part before the first run
  --io-timeout SECONDS   a connection without an answer for so long is given up (30)
  --reconnect-seconds N  look for a server for so long after a loss (0: the run ends)
  --note tenure-changed|power-lost   what happened since the journal was last used; repeatable
  --notes-stdin          take such notes also while it runs: one a line on standard input, each
                         answered with `noted NOTE` on stdout once the checker knows it;
                         the line `stop` ends the run early
  --show N               violations printed in full (10)
  --json                 result as one JSON object on stdout

Exit: 0 no violation (also when the server died), 1 violations, 2 it could not be done.";

/// What a trim promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrimPromise {
    /// It may do nothing.
    Ignorable,
    /// It zeroes the part aligned to so many bytes.
    Zeroes { align: u64 },
}

/// Weights of the kinds of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    pub read: u64,
    pub write: u64,
    pub fua: u64,
    pub flush: u64,
    pub trim: u64,
    pub zero: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Run,
    Verify,
    Selftest,
    Help,
}

/// The parsed command line.
#[derive(Debug, Clone)]
pub struct Args {
    pub command: Command,
    pub uris: Vec<Uri>,
    pub journal: PathBuf,
    pub duration: Duration,
    pub connections: usize,
    pub depth: usize,
    pub size: Option<u64>,
    pub unit: u64,
    pub max_request: u64,
    pub seed: u64,
    pub rate: Option<u64>,
    pub mix: Mix,
    pub unaligned: u64,
    pub hot: u64,
    pub trim: TrimPromise,
    pub wipe: bool,
    pub io_timeout: Duration,
    pub reconnect: Duration,
    pub notes: Vec<Record>,
    pub notes_stdin: bool,
    pub show: usize,
    pub json: bool,
}

impl Args {
    /// Parses the words after the program name. Errors are sentences that name the word.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args, String> {
        let mut words = words.into_iter();
        let command = match words.next().as_deref() {
            Some("run") => Command::Run,
            Some("verify") => Command::Verify,
            Some("--selftest" | "selftest") => Command::Selftest,
            Some("--help" | "-h" | "help") => Command::Help,
            Some(word) => return Err(format!("unknown command {word:?}; see blkload --help")),
            None => return Err("no command given; see blkload --help".into()),
        };
        let mut args = Args::defaults(command);
        while let Some(option) = words.next() {
            match option.as_str() {
                "--json" => args.json = true,
                "--wipe" => args.wipe = true,
                "--notes-stdin" => args.notes_stdin = true,
                _ => {
                    let value = words.next().ok_or(format!("{option} needs a value"))?;
                    args.set(&option, &value)?;
                }
            }
        }
        args.check()?;
        Ok(args)
    }

    fn defaults(command: Command) -> Args {
        Args {
            command,
            uris: Vec::new(),
            journal: PathBuf::new(),
            duration: Duration::from_secs(10),
            connections: 4,
            depth: 16,
            size: None,
            unit: 512,
            max_request: 128 << 10,
            seed: 1,
            rate: None,
            mix: Mix { read: 40, write: 40, fua: 5, flush: 3, trim: 4, zero: 8 },
            unaligned: 30,
            hot: 50,
            trim: TrimPromise::Ignorable,
            wipe: false,
            io_timeout: Duration::from_secs(30),
            reconnect: Duration::ZERO,
            notes: Vec::new(),
            notes_stdin: false,
            show: 10,
            json: false,
        }
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("{option} {value}: not a number this option takes");
        let number = || value.parse::<u64>().map_err(|_| wrong());
        let seconds = || {
            let seconds = value.parse::<f64>().map_err(|_| wrong())?;
            Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
        };
        match option {
            "--uri" => self.uris.push(Uri::parse(value)?),
            "--journal" => self.journal = value.into(),
            "--seconds" => self.duration = seconds()?,
            "--connections" => self.connections = number()?.clamp(1, 64) as usize,
            "--depth" => self.depth = number()?.clamp(1, 1024) as usize,
            "--size" => self.size = Some(bytes(value).ok_or_else(wrong)?),
            "--unit" => self.unit = bytes(value).ok_or_else(wrong)?,
            "--max-request" => self.max_request = bytes(value).ok_or_else(wrong)?,
            "--seed" => self.seed = number()?,
            "--rate" => self.rate = Some(number()?.max(1)),
            "--mix" => self.mix = parse_mix(value)?,
            "--unaligned" => self.unaligned = number()?.min(100),
            "--hot" => self.hot = number()?.min(100),
            "--trim" => self.trim = parse_trim(value)?,
            "--io-timeout" => self.io_timeout = seconds()?,
            "--reconnect-seconds" => self.reconnect = seconds()?,
            "--show" => self.show = number()? as usize,
            "--note" => self.notes.push(parse_note(value)?),
            _ => return Err(format!("unknown option {option}; see blkload --help")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if !matches!(self.command, Command::Run | Command::Verify) {
            return Ok(());
        }
        if self.uris.is_empty() {
            return Err("--uri is missing".into());
        }
        if self.journal.as_os_str().is_empty() {
            return Err("--journal is missing".into());
        }
        if !self.unit.is_power_of_two() || !(32..=4096).contains(&self.unit) {
            return Err(format!("--unit {}: a power of two from 32 to 4096", self.unit));
        }
        if self.max_request < 4096 || self.max_request > 32 << 20 {
            return Err("--max-request: from 4K to 32M".into());
        }
        if self.io_timeout.is_zero() {
            return Err("--io-timeout must be above 0".into());
        }
        Ok(())
    }
}

/// Something that happened to the device, in the words of `--note`.
pub fn parse_note(text: &str) -> Result<Record, String> {
    match text {
        "tenure-changed" => Ok(Record::TenureChanged),
        "power-lost" => Ok(Record::PowerLost),
        _ => Err(format!("--note {text}: tenure-changed or power-lost")),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    let mut mix = Mix { read: 0, write: 0, fua: 0, flush: 0, trim: 0, zero: 0 };
    for part in text.split(',') {
        let wrong = || format!("--mix {part}: KIND=WEIGHT, see blkload --help");
        let (kind, weight) = part.split_once('=').ok_or_else(wrong)?;
        let weight = weight.parse::<u32>().map_err(|_| wrong())?.into();
        match kind {
            "read" => mix.read = weight,
            "write" => mix.write = weight,
            "fua" => mix.fua = weight,
            "flush" => mix.flush = weight,
            "trim" => mix.trim = weight,
            "zero" => mix.zero = weight,
            _ => return Err(wrong()),
        }
    }
    if mix.read + mix.write + mix.fua + mix.flush + mix.trim + mix.zero == 0 {
        return Err("--mix: all weights are 0".into());
    }
    Ok(mix)
}

fn parse_trim(text: &str) -> Result<TrimPromise, String> {
    match text.split_once(':') {
        None if text == "ignorable" => Ok(TrimPromise::Ignorable),
        None if text == "zeroes" => Ok(TrimPromise::Zeroes { align: 1 }),
        Some(("zeroes", align)) => match bytes(align) {
            Some(align) if align > 0 => Ok(TrimPromise::Zeroes { align }),
            _ => Err(format!("--trim {text}: the alignment is no number of bytes above 0")),
        },
        _ => Err(format!("--trim {text}: ignorable or zeroes[:ALIGN]")),
    }
}

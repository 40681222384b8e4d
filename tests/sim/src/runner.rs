//! Seeds in a process of their own, so that a core that panics or spins ends neither a campaign nor
//! a minimising. The other side of the pipe is [`serve`].

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use std::{fs, io, panic, thread};

use crate::coverage::Coverage;
use crate::failure::{Failure, Kind};
use crate::mode;
use crate::parts::Parts;
use crate::world::Tally;

/// A seed that needs longer hangs in a step of a core.
const LONGEST: Duration = Duration::from_secs(120);
/// The rule a crash breaks, in reports.
const PANIC: &str = "panic";

/// How a seed failed, as told over the pipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What kind.
    pub kind: Kind,
    /// The rule of SAFETY.md; of a crash, where the code is.
    pub rule: String,
    /// What was seen.
    pub text: String,
}

impl Found {
    /// Whether two failures are of one class: the same kind and the same rule or place.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.kind, &self.rule) == (other.kind, &other.rule)
    }
}

impl From<&Failure> for Found {
    fn from(failure: &Failure) -> Self {
        Self { kind: failure.kind, rule: failure.rule.into(), text: failure.text.clone() }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}: {}", self.kind, self.rule, self.text)
    }
}

/// What became of a seed. After a crash only the failure is known.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The failure, if there was one.
    pub failure: Option<Found>,
    /// What it did.
    pub tally: Tally,
    /// What it reached.
    pub coverage: Coverage,
    /// Client requests made.
    pub made: u64,
    /// Orders that the operator gave.
    pub orders: u64,
    /// Processor time of its process so far, in nanoseconds; 0 when unknown.
    pub cpu_ns: u64,
}

/// A child process that runs seeds.
pub struct Runner {
    arguments: Vec<String>,
    child: Option<Running>,
    /// Processor time of children that ended, in nanoseconds.
    cpu_ended_ns: u64,
    cpu_ns: u64,
}

struct Running {
    process: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Runner {
    /// A runner whose children get these arguments too (deliberate defects).
    pub fn new(arguments: &[String]) -> Self {
        Self { arguments: arguments.to_vec(), child: None, cpu_ended_ns: 0, cpu_ns: 0 }
    }

    /// Runs the parts of a seed, at most up to this virtual time.
    pub fn run(&mut self, seed: u64, parts: &Parts, gives_up_at: u64) -> Outcome {
        let outcome = self.ask(&format!("{seed} {gives_up_at} {parts}"));
        match &outcome.failure {
            Some(found) if found.kind == Kind::Crash => self.end(),
            _ => self.cpu_ns = outcome.cpu_ns,
        }
        outcome
    }

    /// Processor time of all children, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        self.cpu_ended_ns + self.cpu_ns
    }

    fn ask(&mut self, order: &str) -> Outcome {
        let child = self.child.get_or_insert_with(|| Running::start(&self.arguments));
        // A child that is gone says so by the end of its output.
        let _ = writeln!(child.orders, "{order}");
        let mut outcome = Outcome::default();
        loop {
            match child.lines.recv_timeout(LONGEST) {
                Ok(line) if line == "end" => return outcome,
                Ok(line) => outcome.take_line(&line),
                Err(error) => {
                    outcome.failure.get_or_insert_with(|| Found {
                        kind: Kind::Crash,
                        rule: "no answer".into(),
                        text: format!("{error}: the process ended, or a step does not end"),
                    });
                    return outcome;
                }
            }
        }
    }

    fn end(&mut self) {
        self.cpu_ended_ns += std::mem::take(&mut self.cpu_ns);
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            let _ = child.process.kill();
            let _ = child.process.wait();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Running {
    fn start(arguments: &[String]) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut process = Command::new(program)
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this program starts");
        let orders = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, orders, lines }
    }
}

impl Outcome {
    fn take_line(&mut self, line: &str) {
        let Some((what, rest)) = line.split_once(' ') else { return };
        let numbers = || rest.split_whitespace().filter_map(|word| word.parse().ok());
        match what {
            "failure" => self.failure = decode_failure(rest),
            "coverage" => self.coverage.set(&numbers().collect::<Vec<u64>>()),
            "tally" => self.tally.set(&numbers().collect::<Vec<u64>>()),
            "run" => {
                let mut numbers = numbers();
                self.made = numbers.next().unwrap_or(0);
                self.orders = numbers.next().unwrap_or(0);
                self.cpu_ns = numbers.next().unwrap_or(0);
            }
            _ => {}
        }
    }
}

/// Three fields, tabs between them.
fn encode_failure(found: &Found) -> String {
    let text = found.text.replace(['\n', '\t'], " ");
    format!("failure {:?}\t{}\t{text}", found.kind, found.rule)
}

fn decode_failure(text: &str) -> Option<Found> {
    let mut fields = text.splitn(3, '\t');
    let name = fields.next()?;
    let kinds = [Kind::Crash, Kind::Liveness, Kind::Safety];
    let kind = kinds.into_iter().find(|kind| format!("{kind:?}") == name)?;
    Some(Found { kind, rule: fields.next()?.into(), text: fields.next()?.into() })
}

/// The child's side: runs what the lines of its input order, until the input ends.
pub fn serve() {
    panic::set_hook(Box::new(|info| {
        println!("{}\nend", encode_failure(&crash(info)));
    }));
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (seed, gives_up_at) = (number(), number());
        let parts = words.next().unwrap_or("").parse().expect("parts of a seed");
        let mut world = mode::world(seed, false);
        world.parts = parts;
        world.gives_up_at = gives_up_at;
        if let Some(failure) = world.run() {
            println!("{}", encode_failure(&Found::from(&failure)));
        }
        println!("{}\n{}", world.tally.line(), world.coverage.line());
        println!("run {} {} {}", world.tally.requests, world.orders(), cpu_ns());
        println!("end");
    }
}

/// A panic as a failure: its class is the place.
pub fn crash(info: &panic::PanicHookInfo<'_>) -> Found {
    let place = info
        .location()
        .map_or(PANIC.into(), |place| format!("{PANIC} at {}:{}", place.file(), place.line()));
    let payload = info.payload();
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).into(),
        (_, Some(text)) => text.clone(),
        _ => "no message".into(),
    };
    Found { kind: Kind::Crash, rule: place, text }
}

/// Processor time of this process's only thread.
fn cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        let found = Found { kind: Kind::Safety, rule: "oracle (a)".into(), text: "a b".into() };
        let mut outcome = Outcome::default();
        outcome.take_line(&encode_failure(&found));
        assert_eq!(outcome.failure, Some(found));
    }
}

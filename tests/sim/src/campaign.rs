//! Many seeds on all cores. Each core has a child process that runs them, so that a seed that
//! panics is a failed seed and no more. A failing seed is minimised before it is reported.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::minimise::minimise;
use crate::parts::Parts;
use crate::report::Report;
use crate::runner::{Outcome, Runner};

/// A campaign ends early after so many failures.
const FAILURES_MAX: usize = 10;

/// Which seeds, and how.
#[derive(Debug)]
pub struct Campaign {
    /// These run first, whatever else is wanted.
    pub regressions: Vec<u64>,
    /// The first of the others.
    pub from: u64,
    /// The one after the last.
    pub to: u64,
    /// No seed begins after this moment.
    pub until: Option<Instant>,
    /// Whether to tell how often everything was reached.
    pub tells_all: bool,
    /// Arguments for the children, and for the commands that replay.
    pub arguments: Vec<String>,
}

struct Shared {
    next: AtomicU64,
    report: Mutex<Report>,
    cpu_ns: AtomicU64,
}

impl Campaign {
    /// Runs it, prints the failures and the report; returns the exit code.
    pub fn run(&self) -> i32 {
        let began = Instant::now();
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let report = Mutex::new(Report::default());
        let shared = Shared { next: AtomicU64::new(0), report, cpu_ns: AtomicU64::new(0) };
        thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| self.work(&shared));
            }
        });
        let report = shared.report.into_inner().expect("no worker panics");
        let cpu_seconds = shared.cpu_ns.into_inner() as f64 / 1e9;
        if self.tells_all {
            report.coverage.print_all();
        }
        report.print(began.elapsed().as_secs_f64(), cpu_seconds, cores);
        report.exit_code()
    }

    fn work(&self, shared: &Shared) {
        let mut runner = Runner::new(&self.arguments);
        while let Some(seed) = self.next_seed(shared) {
            let outcome = runner.run(seed, &Parts::default(), u64::MAX);
            if outcome.failure.is_some() {
                self.report_failure(seed, outcome.clone(), shared);
            }
            shared.report.lock().expect("no worker panics").add(seed, &outcome);
        }
        shared.cpu_ns.fetch_add(runner.cpu_ns(), Ordering::Relaxed);
    }

    fn next_seed(&self, shared: &Shared) -> Option<u64> {
        let failures = shared.report.lock().expect("no worker panics").failures.len();
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if failures >= FAILURES_MAX {
            return None;
        }
        if let Some(&seed) = self.regressions.get(number as usize) {
            return Some(seed);
        }
        let seed = self.from.checked_add(number - self.regressions.len() as u64)?;
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        (seed < self.to && !is_late).then_some(seed)
    }

    /// One seed of each class is minimised.
    fn report_failure(&self, seed: u64, outcome: Outcome, shared: &Shared) {
        let found = outcome.failure.clone().expect("a failed seed");
        println!("seed {seed}: {found}");
        let is_known = shared
            .report
            .lock()
            .expect("no worker panics")
            .failures
            .iter()
            .any(|(_, earlier)| earlier.is_like(&found));
        if !is_known {
            let smallest = minimise(&mut Runner::new(&self.arguments), seed, outcome);
            let command = smallest.command(&self.arguments);
            println!("seed {seed}: {smallest}\n  replay it: {command} --trace");
        }
    }
}

//! `sim SEED [--trace]` replays one seed; `sim --seeds FROM..TO` runs a campaign on all cores.
//! Exit codes: 0 all promises kept, 127 a core crashed, 128 liveness, 129 safety.

use std::collections::BTreeMap;
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sim::failure::Failure;
use sim::mutants;
use sim::world::{Tally, World};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut seed = None;
    let mut seeds = None;
    let mut trace = false;
    let mut count = None;
    let mut minutes = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--trace" => trace = true,
            "mutants" => return look_for_defects(args.next().map(String::as_str)),
            "--defect" => {
                if let Some(name) = args.next() {
                    mutants::wake(name);
                }
            }
            "--count" => count = args.next().and_then(|text| range(text)),
            "--minutes" => minutes = args.next().and_then(|text| text.parse::<f64>().ok()),
            "--seeds" => seeds = args.next().and_then(|text| range(text)),
            text => seed = text.parse::<u64>().ok(),
        }
    }
    if let Some((from, to)) = count {
        return mutants::count(from, to);
    }
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    match (seed, seeds) {
        (Some(seed), _) => replay(seed, trace),
        (None, Some((from, to))) => campaign(from, to, until),
        (None, None) if until.is_some() => campaign(0, u64::MAX, until),
        _ => {
            eprintln!(
                "usage: sim SEED [--trace]\n       sim [--seeds FROM..TO] [--minutes M]\n       \
                 sim mutants [NAME | --first]\nall take --defect NAME"
            );
            exit(2);
        }
    }
}

/// `mutants` counts in all seeds, `mutants --first` ends each search at the first seed.
fn look_for_defects(argument: Option<&str>) {
    match argument {
        Some("--first") => mutants::run(None, true),
        only => mutants::run(only, false),
    }
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_once("..")?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

fn replay(seed: u64, trace: bool) {
    tell_seed_on_panic(seed);
    let mut world = World::new(seed, trace);
    let failure = world.run();
    println!("seed {seed}: {:?}", world.tally);
    if let Some(failure) = failure {
        println!("seed {seed}: {failure}");
        exit(failure.kind.exit_code());
    }
    println!("seed {seed}: all promises kept");
}

thread_local! {
    static SEED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A panic of a core ends the program with exit code 127 and the seed.
fn tell_seed_on_panic(seed: u64) {
    SEED.set(seed);
    std::panic::set_hook(Box::new(|info| {
        println!("seed {}: Crash: {info}", SEED.get());
        exit(127);
    }));
}

#[derive(Default)]
struct Report {
    tally: Tally,
    failures: Vec<(u64, Failure)>,
    seeds: u64,
}

/// Runs the seeds until the last of them or the given moment.
fn campaign(from: u64, to: u64, until: Option<Instant>) {
    for seed in sim::regressions(include_str!("../regressions.txt")) {
        if let Some(failure) = World::new(seed, false).run() {
            println!("regression {seed}: {failure}");
            exit(failure.kind.exit_code());
        }
    }
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(from));
    let report = Arc::new(Mutex::new(Report::default()));
    tell_seed_on_panic(0);
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let workers: Vec<_> = (0..cores)
        .map(|_| {
            let (next, report) = (next.clone(), report.clone());
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || until.is_some_and(|until| Instant::now() >= until) {
                        return;
                    }
                    SEED.set(seed);
                    let mut world = World::new(seed, false);
                    let failure = world.run();
                    let mut report = report.lock().expect("no worker panics");
                    report.add(&world.tally);
                    if let Some(failure) = failure {
                        println!("seed {seed}: {failure}");
                        report.failures.push((seed, failure));
                        if report.failures.len() >= 10 {
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("a panic ends the program");
    }
    let report = report.lock().expect("all workers are done");
    report.print(started.elapsed().as_secs_f64(), cores);
    if let Some((_, failure)) = report.failures.first() {
        exit(failure.kind.exit_code());
    }
}

impl Report {
    fn add(&mut self, tally: &Tally) {
        self.seeds += 1;
        self.tally.virtual_ns += tally.virtual_ns;
        self.tally.steps += tally.steps;
        self.tally.requests += tally.requests;
        self.tally.tenures += tally.tenures;
        self.tally.resyncs += tally.resyncs;
        for (fault, count) in &tally.faults {
            *self.tally.faults.entry(*fault).or_default() += count;
        }
    }

    fn print(&self, seconds: f64, cores: usize) {
        let seeds = self.seeds as f64;
        println!(
            "{} seeds in {seconds:.1} s on {cores} cores: {:.0} seeds/s and core, {:.1} h \
             simulated",
            self.seeds,
            seeds / seconds / cores as f64,
            self.tally.virtual_ns as f64 / 3.6e12,
        );
        println!(
            "a seed: {:.0} requests, {:.0} steps, {:.1} tenures, {:.1} resyncs, {:.0} faults",
            self.tally.requests as f64 / seeds,
            self.tally.steps as f64 / seeds,
            self.tally.tenures as f64 / seeds,
            self.tally.resyncs as f64 / seeds,
            self.tally.faults.values().sum::<u64>() as f64 / seeds,
        );
        let faults: BTreeMap<String, u64> =
            self.tally.faults.iter().map(|(f, n)| (format!("{f:?}"), *n)).collect();
        println!("faults: {faults:?}");
        println!("{} failures", self.failures.len());
    }
}

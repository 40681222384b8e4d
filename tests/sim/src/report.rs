//! What seeds did, added up, and the report of a campaign.

use std::collections::BTreeMap;

use crate::coverage::Coverage;
use crate::failure::Kind;
use crate::mode::{self, Mode};
use crate::plan::all_faults;
use crate::runner::{Found, Outcome};
use crate::world::Tally;

/// Numbers of a tally before those of the faults.
const PLAIN: usize = 6;

impl Tally {
    /// For the pipe between a runner and its child; [`Tally::set`] reads the numbers.
    pub fn line(&self) -> String {
        let plain = [
            self.virtual_ns,
            self.steps,
            self.requests,
            self.tenures,
            self.resyncs,
            self.overlapping,
        ];
        let faults = all_faults().map(|fault| self.faults.get(&fault).copied().unwrap_or(0));
        let words: Vec<String> =
            plain.into_iter().chain(faults).map(|number| number.to_string()).collect();
        format!("tally {}", words.join(" "))
    }

    /// Takes the numbers of a line; too few of them count as nothing.
    pub fn set(&mut self, numbers: &[u64]) {
        if numbers.len() != PLAIN + all_faults().count() {
            return;
        }
        self.virtual_ns = numbers[0];
        self.steps = numbers[1];
        self.requests = numbers[2];
        self.tenures = numbers[3];
        self.resyncs = numbers[4];
        self.overlapping = numbers[5];
        let caused = all_faults().zip(&numbers[PLAIN..]).filter(|(_, count)| **count > 0);
        self.faults = caused.map(|(fault, count)| (fault, *count)).collect();
    }

    /// Adds what another seed did.
    pub fn add(&mut self, other: &Self) {
        self.virtual_ns += other.virtual_ns;
        self.steps += other.steps;
        self.requests += other.requests;
        self.tenures += other.tenures;
        self.resyncs += other.resyncs;
        self.overlapping += other.overlapping;
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

/// What a campaign did.
#[derive(Debug, Default)]
pub struct Report {
    /// What the seeds did.
    pub tally: Tally,
    /// What they reached.
    pub coverage: Coverage,
    /// Which failed, and how.
    pub failures: Vec<(u64, Found)>,
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds that were eventful: at least 20 troubles and two tenures.
    pub eventful: u64,
}

impl Report {
    /// A seed ended.
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        let faults: u64 = outcome.tally.faults.values().sum();
        self.eventful += u64::from(faults >= 20 && outcome.tally.tenures >= 2);
        self.tally.add(&outcome.tally);
        self.coverage.add(&outcome.coverage);
        if let Some(found) = &outcome.failure {
            self.failures.push((seed, found.clone()));
        }
    }

    /// The exit code that tells the worst of the failures: a broken promise, then a crash, then
    /// what did not happen in time. 0 when there was none.
    pub fn exit_code(&self) -> i32 {
        [Kind::Safety, Kind::Crash, Kind::Liveness]
            .into_iter()
            .find(|kind| self.failures.iter().any(|(_, found)| found.kind == *kind))
            .map_or(0, Kind::exit_code)
    }

    /// Prints it.
    pub fn print(&self, seconds: f64, cpu_seconds: f64, cores: usize) {
        let seeds = self.seeds.max(1) as f64;
        let of_a_seed = |count: u64| count as f64 / seeds;
        let faults: u64 = self.tally.faults.values().sum();
        println!(
            "{} seeds in {seconds:.1} s on {cores} cores: {:.0} seeds/s, {:.0} per second of \
             processor time",
            self.seeds,
            seeds / seconds,
            seeds / cpu_seconds.max(1e-9),
        );
        println!(
            "{:.1} h simulated, {} client requests, {} steps, {} tenures, {} resyncs, {faults} \
             faults",
            self.tally.virtual_ns as f64 / 3.6e12,
            self.tally.requests,
            self.tally.steps,
            self.tally.tenures,
            self.tally.resyncs,
        );
        println!(
            "a seed: {:.0} requests, {:.0} steps, {:.1} tenures, {:.1} resyncs, {:.0} faults, \
             {:.0} s simulated; {:.0} % had at least 20 faults and two tenures",
            of_a_seed(self.tally.requests),
            of_a_seed(self.tally.steps),
            of_a_seed(self.tally.tenures),
            of_a_seed(self.tally.resyncs),
            of_a_seed(faults),
            of_a_seed(self.tally.virtual_ns) / 1e9,
            100.0 * of_a_seed(self.eventful),
        );
        let kinds: Vec<String> =
            self.tally.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        println!("faults by kind: {}", kinds.join(", "));
        if mode::mode() != Mode::Pair {
            println!(
                "split brain: {} acknowledgements by two primaries of overlapping generations",
                self.tally.overlapping
            );
        } else {
            self.coverage.print();
        }
        let mut classes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (seed, found) in &self.failures {
            classes.entry(format!("{:?} {}", found.kind, found.rule)).or_default().push(*seed);
        }
        for (class, seeds) in &classes {
            println!("failed with {class}: {seeds:?}");
        }
        println!("{} failures", self.failures.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Fault;

    #[test]
    fn a_tally_survives_the_pipe() {
        let faults = [(Fault::Kill, 3), (Fault::Ambush, 2)].into();
        let tally = Tally {
            virtual_ns: 1,
            steps: 2,
            requests: 3,
            tenures: 4,
            resyncs: 5,
            overlapping: 6,
            faults,
            ..Tally::default()
        };
        let line = tally.line();
        let numbers: Vec<u64> =
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let mut read = Tally::default();
        read.set(&numbers);
        read.add(&Tally::default());
        assert_eq!(read.line(), line);
    }

    #[test]
    fn the_worst_failure_decides_the_exit_code() {
        let found = |kind| Found { kind, rule: String::new(), text: String::new() };
        let mut report = Report::default();
        assert_eq!(report.exit_code(), 0);
        for (kind, code) in [(Kind::Liveness, 128), (Kind::Crash, 127), (Kind::Safety, 129)] {
            report.failures.push((1, found(kind)));
            assert_eq!(report.exit_code(), code);
        }
    }
}

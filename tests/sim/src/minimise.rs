//! Makes a failing seed small before a person reads it: leaves out troubles, client requests and
//! orders as long as a failure of the same class remains (delta debugging).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::failure::Kind;
use crate::mode;
use crate::parts::{Choice, Parts};
use crate::plan::Fault;
use crate::runner::{Found, Outcome, Runner};
use crate::world::{MS, World};

/// So many runs at most.
const RUNS_MAX: u64 = 2_000;
/// So long at most.
const LONGEST: Duration = Duration::from_secs(60);

/// The smallest part of a seed that was found to fail in the same way.
#[derive(Debug)]
pub struct Smallest {
    /// The seed.
    pub seed: u64,
    /// What is left of it.
    pub parts: Parts,
    /// How it fails.
    pub found: Found,
    /// Troubles left: number and kind.
    pub faults: Vec<(u64, Fault)>,
    /// Troubles and client requests of the whole seed.
    pub whole: (u64, u64),
    /// Client requests left.
    pub requests: u64,
    /// Operator's orders left.
    pub orders: u64,
    /// Virtual time up to the failure, in milliseconds; 0 when a crash hides it.
    pub virtual_ms: u64,
    /// Runs that were needed.
    pub runs: u64,
    /// Time that was needed.
    pub took: Duration,
}

struct Search<'a> {
    runner: &'a mut Runner,
    seed: u64,
    wanted: Found,
    gives_up_at: u64,
    runs: u64,
    began: Instant,
    parts: Parts,
    best: Outcome,
}

/// Minimises a seed that fails as a whole.
pub fn minimise(runner: &mut Runner, seed: u64, whole: Outcome) -> Smallest {
    let wanted = whole.failure.clone().expect("a failed seed");
    let world = mode::world(seed, false);
    let (troubles, requests) = (world.plan.troubles, world.plan.requests);
    let gives_up_at = match wanted.kind {
        // Converging may take longer when things happen in another order.
        Kind::Liveness | Kind::Crash => u64::MAX,
        Kind::Safety => whole.tally.virtual_ns * 2 + 5_000 * MS,
    };
    let began = Instant::now();
    let parts = Parts::default();
    let mut search =
        Search { runner, seed, wanted, gives_up_at, runs: 0, began, parts, best: whole };
    search.shorten(troubles, requests);
    search.leave_out_kinds(&world);
    loop {
        let before = search.parts.clone();
        let faults = search.numbers(|parts| &parts.faults, search.parts.end.unwrap_or(troubles));
        search.reduce(&faults, |numbers| Parts { faults: Choice::Only(numbers), ..before.clone() });
        let before_requests = search.parts.clone();
        let made = search.numbers(|parts| &parts.requests, requests);
        search.reduce(&made, |numbers| Parts {
            requests: Choice::Only(numbers),
            ..before_requests.clone()
        });
        search.leave_out_orders();
        if search.parts == before || !search.may_go_on() {
            return search.smallest(&world, (troubles, requests));
        }
    }
}

impl Search<'_> {
    fn may_go_on(&self) -> bool {
        self.runs < RUNS_MAX && self.began.elapsed() < LONGEST
    }

    /// Whether these parts fail in the same way; then they are the best so far.
    fn fails(&mut self, parts: Parts) -> bool {
        self.fails_if(parts, |_, _| true)
    }

    fn fails_if(&mut self, parts: Parts, better: fn(&Outcome, &Outcome) -> bool) -> bool {
        if !self.may_go_on() {
            return false;
        }
        self.runs += 1;
        let outcome = self.runner.run(self.seed, &parts, self.gives_up_at);
        let same = outcome.failure.as_ref().is_some_and(|found| found.is_like(&self.wanted));
        let taken = same && better(&outcome, &self.best);
        if taken {
            self.parts = parts;
            self.best = outcome;
        }
        taken
    }

    /// Ends the troubles and the requests as early as halving finds.
    fn shorten(&mut self, troubles: u64, requests: u64) {
        let parts = self.parts.clone();
        self.halve(troubles, |end| Parts { end: Some(end), ..parts.clone() });
        let parts = self.parts.clone();
        self.halve(requests, |last| Parts {
            requests: Choice::Only((1..=last).collect()),
            ..parts.clone()
        });
    }

    fn halve(&mut self, fails: u64, make: impl Fn(u64) -> Parts) {
        let (mut passes, mut fails) = (0, fails);
        if self.fails(make(0)) {
            return;
        }
        while passes + 1 < fails {
            let middle = passes.midpoint(fails);
            match self.fails(make(middle)) {
                true => fails = middle,
                false => passes = middle,
            }
        }
    }

    fn leave_out_kinds(&mut self, world: &World) {
        for &(kind, _) in &world.plan.faults {
            let mut parts = self.parts.clone();
            parts.no_kinds.insert(kind);
            self.fails(parts);
        }
        // From now on by number: the kinds are told by the troubles that are left.
        let end = self.parts.end.unwrap_or(world.plan.troubles);
        let left =
            (1..=end).filter(|&number| !self.parts.no_kinds.contains(&world.kind_of(number)));
        self.parts.faults = Choice::Only(left.collect());
        self.parts.no_kinds.clear();
    }

    fn numbers(&self, of: fn(&Parts) -> &Choice, most: u64) -> Vec<u64> {
        (1..=most).filter(|&number| of(&self.parts).has(number)).collect()
    }

    /// Leaves out as many of the numbers as it can: halves, quarters, ... one by one.
    fn reduce(&mut self, numbers: &[u64], make: impl Fn(BTreeSet<u64>) -> Parts) {
        if numbers.is_empty() || self.fails(make(BTreeSet::new())) {
            return;
        }
        let mut left = numbers.to_vec();
        let mut pieces = 2;
        while left.len() > 1 && self.may_go_on() {
            let size = left.len().div_ceil(pieces);
            let mut smaller = None;
            for piece in left.chunks(size) {
                let others: Vec<u64> =
                    left.iter().copied().filter(|number| !piece.contains(number)).collect();
                if self.fails(make(others.iter().copied().collect())) {
                    smaller = Some(others);
                    break;
                }
            }
            match smaller {
                Some(others) => {
                    left = others;
                    pieces = (pieces - 1).max(2);
                }
                None if size == 1 => return,
                None => pieces = (pieces * 2).min(left.len()),
            }
        }
    }

    /// An order that is left out may be given again later: only fewer orders are better.
    fn leave_out_orders(&mut self) {
        for ticket in (1..=self.best.orders).rev() {
            let mut parts = self.parts.clone();
            let mut left_out = match &parts.orders {
                Choice::Without(tickets) => tickets.clone(),
                _ => BTreeSet::new(),
            };
            if left_out.insert(ticket) {
                parts.orders = Choice::Without(left_out);
                self.fails_if(parts, |new, best| new.orders < best.orders);
            }
        }
    }

    fn smallest(self, world: &World, whole: (u64, u64)) -> Smallest {
        let end = self.parts.end.unwrap_or(whole.0);
        let numbers = (1..=end).filter(|&number| self.parts.faults.has(number));
        let faults = numbers.map(|number| (number, world.kind_of(number))).collect();
        let requests = (1..=whole.1).filter(|&number| self.parts.requests.has(number)).count();
        Smallest {
            seed: self.seed,
            parts: self.parts,
            found: self.best.failure.expect("the best fails"),
            faults,
            whole,
            requests: requests as u64,
            orders: self.best.orders,
            virtual_ms: self.best.tally.virtual_ns / MS,
            runs: self.runs,
            took: self.began.elapsed(),
        }
    }
}

impl Smallest {
    /// The command that replays it, with these arguments before the parts.
    pub fn command(&self, arguments: &[String]) -> String {
        let mut words = vec!["sim".to_string(), self.seed.to_string()];
        words.extend_from_slice(arguments);
        words.push(self.parts.to_string());
        words.join(" ").trim_end().to_string()
    }
}

impl std::fmt::Display for Smallest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<String> =
            self.faults.iter().map(|(number, kind)| format!("{number} {kind:?}")).collect();
        write!(
            f,
            "smallest found: {} of {} faults ({}), {} of {} requests, {} orders, {:.1} s of \
             virtual time; after {} runs in {:.1} s\n  it fails with {}",
            self.faults.len(),
            self.whole.0,
            faults.join(", "),
            self.requests,
            self.whole.1,
            self.orders,
            self.virtual_ms as f64 / 1e3,
            self.runs,
            self.took.as_secs_f64(),
            self.found,
        )
    }
}

//! The proof that the simulator can fail: every deliberate defect of the core must be found. Each
//! runs in processes of its own, since a defect may make a core panic.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::mode::{self, Mode};
use replicator_core::defect::{DEFECTS, Defect};

/// Every defect must be found within so many seeds.
const SEEDS: u64 = 2000;

/// Which seed found a defect before: in a hurry it is tried first. It need not be right.
const FOUND_BEFORE: &str = include_str!("../mutants.txt");

/// Defects of what a majority decides: there is none here. The stories of
/// `replicator/core/tests/majority` find them.
const WITH_A_MAJORITY: &[Defect] = &[
    Defect::LeaseIgnoredForReads,
    Defect::LeaseIgnoredForAcks,
    Defect::ServesBeforeLease,
    Defect::UndecidedIsFailed,
    Defect::RegisterMayGoBack,
    Defect::RegisterNotAwaited,
    Defect::SoleIgnored,
];

/// Defects that need a machine whose clock stood still and a read within a lease of its return, or
/// a resource without an origin: the same stories find them.
const BY_STORIES: &[Defect] = &[Defect::ReadsNotConfirmed, Defect::OriginNotNeeded];

/// Defects that pairs and clusters find, each by a checker of its own.
const IN_BOTH: &[Defect] = &[Defect::DivergedAccepted];

/// Defects of what three replicas need (R13, last clause): there are two here. `trio --mutants` of
/// `tests/small` finds them.
const WITH_THREE_REPLICAS: &[Defect] = &[
    Defect::NoMirror,
    Defect::MirrorForgotten,
    Defect::BitNotSetByFollower,
    Defect::ResyncNotMarked,
    Defect::BaseKeptByFollower,
];

/// What the models of `failover/core/tests/models` find now, and by which of them: some defects
/// need several rare things in one order, which no seed may meet, and models go through all orders.
fn found_by_models() -> BTreeMap<String, String> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--release", "--locked", "--quiet", "-p", "failover-core"])
        .args(["--features", "defects", "--test", "models"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs the models");
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if !output.status.success() {
        eprintln!("the models fail: {}", output.status);
        exit(1);
    }
    read_models(&text)
}

/// A line with a model's name, `NAME: N states, safe`, then indented ones with what it found.
fn read_models(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut model = "";
    for line in text.lines() {
        match line.strip_prefix("  ").and_then(|line| line.split_once(": ")) {
            Some((defect, how)) if how.contains(" after ") => {
                found.entry(defect.to_string()).or_insert(model.to_string());
            }
            Some(_) => {}
            None => model = line.rsplit_once(": ").map_or(line, |(name, _)| name),
        }
    }
    found
}

/// Breaks a rule in this process.
#[cfg(feature = "defects")]
pub fn wake(name: &str) {
    use failover_core::defect as control;
    use replicator_core::defect::switch_on;
    let of_replicas = DEFECTS.iter().find(|defect| format!("{defect:?}") == name);
    let of_control = control::DEFECTS.iter().find(|defect| format!("{defect:?}") == name);
    // A rule that both cores keep is broken in both.
    of_replicas.copied().into_iter().for_each(switch_on);
    of_control.copied().into_iter().for_each(control::switch_on);
    if of_replicas.is_none() && of_control.is_none() {
        eprintln!("no defect has the name {name}; there are {DEFECTS:?} {:?}", control::DEFECTS);
        exit(2);
    }
}

/// Breaks no rule: this build has none that can be broken.
#[cfg(not(feature = "defects"))]
pub fn wake(name: &str) {
    eprintln!("{name}: built without the feature `defects`");
    exit(2);
}

/// Defects of pairs whose nodes fence each other.
const BY_FENCING: &[&str] =
    &["FenceNotAwaited", "FenceLieBelieved", "OldFenceCounts", "LeavesUnfenced", "PromiseNotKept"];

/// The names of the defects that the seeds of this process must find.
fn wanted() -> Vec<String> {
    use failover_core::defect as control;

    let name = |defect: &dyn std::fmt::Debug| format!("{defect:?}");
    let elsewhere = [WITH_A_MAJORITY, WITH_THREE_REPLICAS, BY_STORIES].concat();
    let of_replicas = DEFECTS.iter().filter(|defect| !elsewhere.contains(defect));
    let mut all: Vec<String> = match mode::mode() {
        Mode::Fence => return BY_FENCING.iter().map(|defect| defect.to_string()).collect(),
        Mode::Pair => of_replicas.map(|defect| name(defect)).collect(),
        Mode::Cluster => {
            let elsewhere = [control::ETCD_DEFECTS, control::DEFECTS_OF_STORIES].concat();
            let control = control::DEFECTS.iter().filter(|defect| !elsewhere.contains(defect));
            let with_a_majority = WITH_A_MAJORITY.iter().chain(IN_BOTH).map(|defect| name(defect));
            control.map(|defect| name(defect)).chain(with_a_majority).collect()
        }
    };
    all.retain(|defect| !BY_FENCING.contains(&defect.as_str()));
    all.sort();
    all.dedup();
    all
}

/// Runs seeds one after the other and prints a line for each that fails (in the child process).
pub fn count(from: u64, to: u64) {
    for seed in from..to {
        std::panic::set_hook(Box::new(move |info| {
            let text = info.to_string().replace('\n', " ");
            println!("found {seed} Crash: {text}");
            exit(127);
        }));
        if let Some(failure) = mode::world(seed, false).run() {
            println!("found {seed} {failure}");
        }
    }
    println!("all");
}

struct Found {
    defect: String,
    seeds: u64,
    first: Option<(u64, String)>,
}

impl Found {
    fn in_no_seed(defect: &str) -> Self {
        Self { defect: defect.into(), seeds: 0, first: None }
    }
}

/// Looks for every defect, or for one, in all seeds or until it is found; exits with 1 when one is
/// not found. In a hurry no seed is tried for what a model finds.
pub fn run(only: Option<&str>, until_found: bool) {
    let wanted: Vec<String> =
        wanted().into_iter().filter(|defect| only.is_none_or(|name| defect == name)).collect();
    assert!(!wanted.is_empty(), "no defect that is looked for has the name {only:?}");
    let models = if mode::is_cluster() { found_by_models() } else { BTreeMap::new() };
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(defect) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = match models.get(defect) {
                        Some(_) if until_found => Found::in_no_seed(defect),
                        _ => look_for(defect, until_found),
                    };
                    println!("{}", line(&found, models.get(defect), until_found));
                    results.lock().expect("no thread panics").push(found);
                }
            });
        }
    });
    let results = results.into_inner().expect("no thread panics");
    let in_seeds = results.iter().filter(|found| found.seeds > 0).count();
    let is_missed = |found: &&Found| found.seeds == 0 && !models.contains_key(&found.defect);
    let missed: Vec<&str> =
        results.iter().filter(is_missed).map(|found| found.defect.as_str()).collect();
    println!(
        "{} of {} defects found, {in_seeds} of them in seeds",
        results.len() - missed.len(),
        results.len()
    );
    if !missed.is_empty() {
        println!("not found within {SEEDS} seeds: {missed:?}");
        exit(1);
    }
}

fn line(found: &Found, model: Option<&String>, until_found: bool) -> String {
    let name = &found.defect;
    let and_model = model.map_or(String::new(), |model| format!("; by the model \"{model}\""));
    match &found.first {
        Some((seed, how)) => {
            let how: String = how.chars().take(100).collect();
            let count = match until_found {
                true => "found at seed".into(),
                false => format!("{:5} of {SEEDS} seeds, first", found.seeds),
            };
            format!("{name:24} {count} {seed}: {how}{and_model}")
        }
        None if model.is_some() && until_found => format!("{name:24} found{}", &and_model[1..]),
        None if model.is_some() => format!("{name:24} in no seed{and_model}"),
        None => format!("{name:24} NOT FOUND"),
    }
}

fn look_for(defect: &str, until_found: bool) -> Found {
    let before = found_before(mode::argument().unwrap_or("pair"), defect);
    if until_found && let Some(seed) = before {
        let found = look_in(defect, seed, seed + 1, true);
        if found.seeds > 0 {
            return found;
        }
    }
    look_in(defect, 0, SEEDS, until_found)
}

fn found_before(mode: &str, defect: &str) -> Option<u64> {
    let mode = mode.trim_start_matches('-');
    FOUND_BEFORE.lines().find_map(|line| {
        let [of, name, seed] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        (of == mode && name == defect).then(|| seed.parse().ok())?
    })
}

fn look_in(defect: &str, mut from: u64, to: u64, until_found: bool) -> Found {
    let mut found = Found::in_no_seed(defect);
    let program = std::env::current_exe().expect("this program has a path");
    while from < to {
        let mut child = Command::new(&program)
            .args(mode::argument())
            .args(["--defect", defect, "--count", &format!("{from}..{to}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut last = None;
        for text in output.lines().map_while(Result::ok) {
            if text == "all" {
                last = Some(to);
            } else if let Some((seed, how)) =
                text.strip_prefix("found ").and_then(|text| text.split_once(' '))
                && let Ok(seed) = seed.parse()
            {
                found.seeds += 1;
                found.first.get_or_insert((seed, how.to_string()));
                last = Some(seed);
                if until_found {
                    // It may have ended by itself already.
                    let _ = child.kill();
                }
            }
        }
        child.wait().expect("a child ends");
        match last {
            _ if until_found && found.seeds > 0 => return found,
            Some(seed) if seed >= from => from = seed + 1,
            _ => panic!("{defect}: a child ended without a word at {from}"),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_what_was_found_before_is_read() {
        let lines = FOUND_BEFORE.lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let mut words = line.split(' ');
            let (mode, defect) = (words.next().unwrap(), words.next().unwrap());
            assert!(found_before(mode, defect).is_some_and(|seed| seed < SEEDS), "{line}");
        }
    }

    #[test]
    fn what_models_say_is_read() {
        let text = "lease: renewed twice: 812 states, safe (0.1 s)\n  LeaseFromNewest: TwoLeases \
                    after 90 states (0.0 s)\n  Other: NOT FOUND in 3 states (0.0 s)\n";
        let found = read_models(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["LeaseFromNewest"], "lease: renewed twice");
    }
}

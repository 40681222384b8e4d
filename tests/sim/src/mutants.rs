//! The proof that the simulator can fail: every deliberate defect of the core must be found. Each
//! runs in processes of its own, since a defect may make a core panic.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::cluster::mode;
use replicator_core::defect::{DEFECTS, Defect, switch_on};

/// Every defect must be found within so many seeds.
const SEEDS: u64 = 2000;

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

/// Defects of what three replicas need (R13, last clause): there are two here. `trio --mutants` of
/// `tests/small` finds them.
const WITH_THREE_REPLICAS: &[Defect] = &[
    Defect::NoMirror,
    Defect::MirrorForgotten,
    Defect::BitNotSetByFollower,
    Defect::ResyncNotMarked,
    Defect::BaseKeptByFollower,
];

/// Defects that need several rare things in one order, which no seed may meet: the models of
/// `failover/core/tests/models` go through all orders and have to find them, in the same test
/// command.
const BY_MODELS: &[(&str, &str)] = &[
    ("FormerGrantCounts", "lease: its holder restarts"),
    ("GrantBeforeDurable", "lease: taken, records lag behind, an acceptor restarts"),
    ("GrantToUninformed", "membership: a voter is replaced while a lease is held"),
    ("GrantWithoutTerm", "lease: its length changes"),
    ("HolderKeepsTooLong", "lease: renewed, taken over, clocks drift"),
    ("LeaseFromNewest", "lease: renewed twice"),
    ("LeaseFromReply", "lease: renewed, taken over, clocks drift"),
    ("NewAcceptorWaitsOnce", "membership: a voter is replaced while a lease is held"),
    ("NewAcceptorWithoutWait", "membership: a voter is replaced while a lease is held"),
    ("NewMajorityOnly", "membership: a voter is replaced, a stale node proposes"),
    ("OpenChangeRepeated", "register: two rounds each, one does not reach the other"),
    ("PromiseForgotten", "register: two rounds against one, acceptors restart"),
    ("RestartWithoutWait", "lease: an acceptor restarts"),
];

/// The model that has to find a defect.
fn model_of(defect: &str) -> Option<&'static str> {
    BY_MODELS.iter().find(|(name, _)| *name == defect).map(|(_, model)| *model)
}

/// Breaks a rule in this process.
pub fn wake(name: &str) {
    use failover_core::defect as control;
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

/// The names of the defects that the seeds of this process must find.
fn wanted() -> Vec<String> {
    let name = |defect: &dyn std::fmt::Debug| format!("{defect:?}");
    if !mode::is_cluster() {
        let elsewhere = [WITH_A_MAJORITY, WITH_THREE_REPLICAS].concat();
        let of_a_pair = DEFECTS.iter().filter(|defect| !elsewhere.contains(defect));
        return of_a_pair.map(|defect| name(defect)).collect();
    }
    let with_etcd = failover_core::defect::ETCD_DEFECTS;
    let control = failover_core::defect::DEFECTS
        .iter()
        .filter(|defect| !with_etcd.contains(defect))
        .map(|defect| name(defect));
    let mut all: Vec<String> =
        control.chain(WITH_A_MAJORITY.iter().map(|defect| name(defect))).collect();
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

/// Looks for every defect, or for one, in all seeds or until it is found; exits with 1 when one is
/// not found.
pub fn run(only: Option<&str>, until_found: bool) {
    let wanted: Vec<String> =
        wanted().into_iter().filter(|defect| only.is_none_or(|name| defect == name)).collect();
    assert!(!wanted.is_empty(), "no defect that is looked for has the name {only:?}");
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(defect) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = look_for(defect, until_found);
                    println!("{}", line(&found, until_found));
                    results.lock().expect("no thread panics").push(found);
                }
            });
        }
    });
    let results = results.into_inner().expect("no thread panics");
    let missed = results.iter().map(|found| (found.seeds, &*found.defect)).collect::<Vec<_>>();
    let missed: Vec<&str> = missed
        .into_iter()
        .filter(|(seeds, defect)| *seeds == 0 && model_of(defect).is_none())
        .map(|(_, defect)| defect)
        .collect();
    println!("{} of {} defects found", results.len() - missed.len(), results.len());
    if !missed.is_empty() {
        println!("not found within {SEEDS} seeds: {missed:?}");
        exit(1);
    }
}

fn line(found: &Found, until_found: bool) -> String {
    let name = &found.defect;
    match &found.first {
        Some((seed, how)) => {
            let how: String = how.chars().take(100).collect();
            let count = match until_found {
                true => "found at seed".into(),
                false => format!("{:5} of {SEEDS} seeds, first", found.seeds),
            };
            format!("{name:24} {count} {seed}: {how}")
        }
        None => match model_of(name) {
            Some(model) => format!("{name:24} in no seed; by the model \"{model}\""),
            None => format!("{name:24} NOT FOUND"),
        },
    }
}

fn look_for(defect: &str, until_found: bool) -> Found {
    let mut found = Found { defect: defect.into(), seeds: 0, first: None };
    let mut from = 0;
    let program = std::env::current_exe().expect("this program has a path");
    while from < SEEDS {
        let mut child = Command::new(&program)
            .args(mode::is_cluster().then_some("--cluster"))
            .args(["--defect", defect, "--count", &format!("{from}..{SEEDS}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut last = None;
        for text in output.lines().map_while(Result::ok) {
            if text == "all" {
                last = Some(SEEDS);
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

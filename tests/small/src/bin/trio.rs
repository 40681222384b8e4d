//! `trio`: three replicas of the shipping core, from seeds. See `--help`.

use std::process::{Command, ExitCode};

use replicator_core::defect::{DEFECTS, Defect, switch_on};
use small::trio::random::{Seen, run};
use small::trio::{scripted, search};

const HELP: &str = "\
trio: three replicas, a majority that decides at once, clients, and faults of processes, machines
and links (SAFETY.md R13, last clause)

  trio [--from SEED] [--seeds COUNT]   runs seeds (default 0, 1000), after the scripted stories
  trio --search [--long]               every order in which a primary of three may die; with
                                       --long also round a flush (some 100 s)
  trio --story                         a failing seed is told
  trio --defect NAME                   breaks a rule on purpose
  trio --mutants                       every rule that only three replicas need is broken in turn
exit codes: 0 kept, 1 a promise was broken, 2 usage, 101 a core broke its own assertion";

/// What pairs do not need.
const OF_THREE: &[Defect] = &[
    Defect::NoMirror,
    Defect::MirrorForgotten,
    Defect::BitNotSetByFollower,
    Defect::ResyncNotMarked,
    Defect::BaseKeptByFollower,
    Defect::NoUnionOfBits,
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| words.iter().any(|word| word == name);
    let after = |name: &str| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).cloned()
    };
    let number = |name: &str, otherwise: u64| match after(name).map(|word| word.parse()) {
        None => Some(otherwise),
        Some(word) => word.ok(),
    };
    let (Some(from), Some(count)) = (number("--from", 0), number("--seeds", 1000)) else {
        return usage("a number is missing");
    };
    if has("--help") || has("-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if has("--mutants") {
        return mutants(count);
    }
    if has("--defect") {
        let name = after("--defect").unwrap_or_default();
        let defect = DEFECTS.iter().find(|defect| format!("{defect:?}") == name);
        let Some(defect) = defect else { return usage("no such defect") };
        switch_on(*defect);
    }
    if has("--search") {
        return search_all(has("--long"));
    }
    seeds(from, count, has("--story"))
}

fn usage(why: &str) -> ExitCode {
    eprintln!("{why}\n{HELP}");
    ExitCode::from(2)
}

fn seeds(from: u64, count: u64, story: bool) -> ExitCode {
    if let Err(why) = scripted::play() {
        println!("a scripted story: {why}");
        return ExitCode::from(1);
    }
    let mut all = Seen::default();
    for seed in from..from + count {
        match run(seed, story) {
            Ok(seen) => all.add(seen),
            Err(why) => {
                println!("{why}");
                return ExitCode::from(1);
            }
        }
    }
    println!(
        "{count} seeds kept: {} writes, {} offices, {} resyncs of a part, {} of all",
        all.writes, all.offices, all.partial, all.full
    );
    ExitCode::SUCCESS
}

fn search_all(long: bool) -> ExitCode {
    for scene in search::SCENES.iter().filter(|scene| long || !scene.is_long) {
        match search::search(scene) {
            Ok(found) => println!(
                "{:24} {:7} states, {:7} deaths of the primary with two takers each  exhausted",
                scene.name, found.states, found.deaths
            ),
            Err(why) => {
                println!("{}: {why}", scene.name);
                return ExitCode::from(1);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Every defect in a process of its own.
fn mutants(count: u64) -> ExitCode {
    let program = std::env::current_exe().expect("this program");
    let mut missed = 0;
    for defect in OF_THREE {
        let name = format!("{defect:?}");
        let mut child = Command::new(&program);
        child.args(["--defect", &name, "--seeds", &count.to_string()]);
        let output = child.output().expect("this program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let found = matches!(output.status.code(), Some(1 | 101));
        missed += usize::from(!found);
        println!("{name:22} {}", if found { text.trim() } else { "NOT FOUND" });
    }
    println!("{} of {} defects found", OF_THREE.len() - missed, OF_THREE.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

//! The command: replays one seed, runs a campaign on all cores, or looks for deliberate defects.

use std::panic;
use std::process::{Command, exit};
use std::time::{Duration, Instant};

use sim::campaign::Campaign;
use sim::cluster::{in_a_row, times};
use sim::minimise::minimise;
use sim::mode::{self, Mode};
use sim::parts::Parts;
use sim::runner::{Found, Runner, crash, serve};
use sim::{mutants, pretence};

const HELP: &str = "\
sim SEED [PARTS] [--trace | --story]   replays a seed exactly; one that fails is minimised
sim [--seeds FROM..TO] [--minutes M]   a campaign on all cores; the regressions first
sim mutants [--cluster | --fence] [NAME | --first]  every deliberate defect must be found
sim [--defect NAME] --replay FILE      steps a core through what replicatord --record wrote
sim failover-times [RUNS | BLOW SEED]               failovers in virtual time (200 runs each)
sim failovers [COUNT [SEED]]           so many of one cluster, one after the other (10000)
sim scenarios [--cluster | --fence] [FROM..TO]   which scenarios occur in these seeds, and how often

PARTS leave out parts of a seed without moving the rest; numbers as in 3,7-9:
  --only faults=N | requests=N | orders=N | kinds=NAME,NAME
  --without the same
  --end N           the troubles end after N
--trace             the story with every step of the cores; nothing is minimised
--story             the story without the steps
--cluster           two data nodes and a witness; failovers happen by themselves
--fence             two nodes without a witness that fence each other by themselves
--coverage          a campaign tells how often everything was reached, and what is impossible
--defect NAME       breaks a rule on purpose (names: see sim mutants)
--pretend KIND      every seed fails as crash, liveness or safety, to test what reports that

exit codes: 0 all promises kept; 2 wrong arguments;
  127 crash: a core panicked, or a step of it does not end
  128 liveness: something that must happen did not happen in time
  129 safety: something happened that must never happen
  A campaign with several failures tells the worst: safety, then crash, then liveness.
  sim mutants, sim scenarios: 1 when something is not found; failover-times: 1 when a goal is
  missed; failovers, --replay: 1 when something goes another way.
";

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    minutes: Option<f64>,
    parts: Parts,
    trace: bool,
    story: bool,
    coverage: bool,
    /// What children and replays need too.
    passed_on: Vec<String>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("-h" | "--help") => return print!("{HELP}"),
        Some("failover-times") => {
            let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
            let is_well = match words.get(1) {
                Some(blow) if number(1).is_none() => times::tell(blow, number(2).unwrap_or(0)),
                _ => times::print(number(1).unwrap_or(200)),
            };
            exit(i32::from(!is_well));
        }
        Some("failovers") => {
            let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
            exit(failovers(number(1).unwrap_or(10_000), number(2).unwrap_or(0)));
        }
        Some("scenarios") => return scenarios(&words[1..]),
        Some("mutants") => return look_for_defects(&words[1..]),
        _ => {}
    }
    let (arguments, task) = match read(&words) {
        Ok(read) => read,
        Err(why) => {
            eprintln!("{why}; see sim --help");
            exit(2);
        }
    };
    match task {
        Task::Serve => serve(),
        Task::Count(from, to) => mutants::count(from, to),
        Task::Usual => {
            let code = match arguments.seed {
                Some(seed) => replay(seed, &arguments),
                None => campaign(&arguments),
            };
            exit(code);
        }
    }
}

fn failovers(count: u64, seed: u64) -> i32 {
    match in_a_row::run(count, seed) {
        Ok(row) => {
            println!(
                "{} failovers of one cluster, {:.1} virtual hours, {} requests of clients; from a \
                 blow to the next office at most {} ms",
                row.failovers,
                row.virtual_ns as f64 / 3.6e12,
                row.requests,
                row.longest_ns / 1_000_000
            );
            0
        }
        Err(why) => {
            println!("{why}");
            1
        }
    }
}

enum Task {
    Usual,
    /// The child of a runner.
    Serve,
    /// The child that looks for a defect.
    Count(u64, u64),
}

fn read(words: &[String]) -> Result<(Arguments, Task), String> {
    let mut read = Arguments::default();
    let mut task = Task::Usual;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut argument = || words.next().ok_or(format!("{word} wants an argument"));
        match word.as_str() {
            "--trace" => read.trace = true,
            "--story" => read.story = true,
            "--coverage" => read.coverage = true,
            "--only" => read.parts.option(true, argument()?)?,
            "--without" => read.parts.option(false, argument()?)?,
            "--end" => read.parts.end = Some(number(argument()?)?),
            "--seeds" => read.seeds = Some(range(argument()?)?),
            "--minutes" => {
                let minutes = argument()?;
                read.minutes = Some(minutes.parse().map_err(|_| format!("{minutes} minutes"))?);
            }
            "--defect" | "--pretend" => {
                let name = argument()?;
                if word == "--defect" {
                    mutants::wake(name);
                } else {
                    pretence::pretend(name).ok_or(format!("{name}: no kind of failure"))?;
                }
                read.passed_on.extend([word.clone(), name.clone()]);
            }
            word if mode::choose(word) => read.passed_on.push(word.into()),
            "--replay" => sim::replay::main(argument()?),
            "serve" => task = Task::Serve,
            "--count" => {
                let (from, to) = range(argument()?)?;
                task = Task::Count(from, to);
            }
            seed => read.seed = Some(number(seed)?),
        }
    }
    let is_idle = read.seed.is_none() && read.seeds.is_none() && read.minutes.is_none();
    if is_idle && matches!(task, Task::Usual) {
        return Err("a seed, --seeds or --minutes is wanted".into());
    }
    if read.seed.is_none() && (!read.parts.is_all() || read.trace || read.story) {
        return Err("parts and stories are those of one seed".into());
    }
    Ok((read, task))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is neither a number nor an option"))
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or(format!("{text}: FROM..TO is wanted"))?;
    Ok((number(from)?, number(to)?))
}

/// Runs seeds and prints which scenarios occurred in them.
fn scenarios(arguments: &[String]) {
    let mut arguments = arguments.iter().peekable();
    arguments.next_if(|word| mode::choose(word));
    let seeds = arguments.next();
    let (from, to) = match seeds.map_or(Ok((0, 2_000)), |text| range(text)) {
        Ok(seeds) => seeds,
        Err(why) => {
            eprintln!("{why}");
            exit(2);
        }
    };
    let counts = sim::scenarios::count(from..to);
    sim::scenarios::print(&counts);
    exit(i32::from(!sim::scenarios::missing(&counts).is_empty()));
}

/// `mutants` counts in all seeds, `mutants --first` ends each search at the first seed; with
/// `--cluster` those of the control plane are looked for in clusters.
fn look_for_defects(arguments: &[String]) {
    let mut arguments = arguments.iter().map(String::as_str).peekable();
    arguments.next_if(|word| mode::choose(word));
    match arguments.next() {
        Some("--first") => mutants::run(None, true),
        only => mutants::run(only, false),
    }
}

fn campaign(arguments: &Arguments) -> i32 {
    let length = |minutes: f64| Duration::from_secs_f64(minutes.max(0.0) * 60.0);
    let (from, to) = arguments.seeds.unwrap_or((0, u64::MAX));
    let campaign = Campaign {
        regressions: sim::regressions(match mode::mode() {
            Mode::Pair => include_str!("../regressions.txt"),
            Mode::Cluster => include_str!("../regressions-cluster.txt"),
            Mode::Fence => include_str!("../regressions-fence.txt"),
        })
        .collect(),
        from,
        to,
        until: arguments.minutes.map(|minutes| Instant::now() + length(minutes)),
        tells_all: arguments.coverage,
        arguments: arguments.passed_on.clone(),
    };
    campaign.run()
}

/// Runs a seed, or parts of it; a whole one that fails is minimised, unless its story is wanted.
fn replay(seed: u64, arguments: &Arguments) -> i32 {
    if arguments.trace || arguments.story {
        return tell(seed, arguments);
    }
    let mut runner = Runner::new(&arguments.passed_on);
    let outcome = runner.run(seed, &arguments.parts, u64::MAX);
    println!("seed {seed}: {:?}", outcome.tally);
    let Some(found) = outcome.failure.clone() else {
        println!("seed {seed}: all promises kept");
        return 0;
    };
    println!("seed {seed}: {found}");
    if arguments.parts.is_all() {
        let smallest = minimise(&mut runner, seed, outcome);
        let command = smallest.command(&arguments.passed_on);
        println!("{smallest}\n  replay it: {command} --trace\n  its story:");
        let program = std::env::current_exe().expect("this program has a path");
        let words = command.split_whitespace().skip(1);
        Command::new(program).args(words).arg("--story").status().expect("this program starts");
    }
    found.kind.exit_code()
}

/// Tells the story of a seed while it happens, in this process.
fn tell(seed: u64, arguments: &Arguments) -> i32 {
    panic::set_hook(Box::new(move |info| {
        let found = crash(info);
        println!("seed {seed}: {found}");
        exit(found.kind.exit_code());
    }));
    let mut world = mode::world(seed, true);
    world.tells_steps = arguments.trace;
    world.parts = arguments.parts.clone();
    let failure = world.run();
    println!("seed {seed}: {:?}", world.tally);
    match failure {
        Some(failure) => {
            println!("seed {seed}: {}", Found::from(&failure));
            failure.kind.exit_code()
        }
        None => {
            println!("seed {seed}: all promises kept");
            0
        }
    }
}

//! blkload: drives a live NBD export with a mixed load, checks every answer against the history
//! checker, and checks all of it again after a fail-over, a kill or a loss of power.
#![forbid(unsafe_code)]

mod args;
mod content;
mod engine;
mod journal;
mod load;
mod readout;
mod report;
mod selftest;
mod wire;
mod workload;

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use history::draw::mix;

use args::{Args, Command};
use engine::Engine;
use journal::{Journal, Layout, Record};
use load::Load;

const EXIT_IMPOSSIBLE: u8 = 2;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| execute(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("blkload: {reason}");
            ExitCode::from(EXIT_IMPOSSIBLE)
        }
    }
}

/// True when no violation was found.
fn execute(args: &Args) -> Result<bool, String> {
    match args.command {
        Command::Help => {
            println!("{}", args::HELP);
            Ok(true)
        }
        Command::Selftest => selftest::selftest().map(|()| true),
        Command::Run => run(args),
        Command::Verify => verify(args),
    }
}

fn run(args: &Args) -> Result<bool, String> {
    if !args.journal.exists() {
        begin(args)?;
    }
    let load = Load::new(args, resume(args)?);
    load.run();
    let elapsed = load.started.elapsed();
    let mut engine = load.engine.into_inner().expect("no thread panicked");
    engine.finish();
    let clean = report::report(args, &engine, elapsed);
    match engine.journal_failure() {
        Some(reason) => Err(reason),
        None if clean && engine.counts.reads + engine.counts.acked_writes == 0 => {
            Err("no server answered a single request".into())
        }
        None => Ok(clean),
    }
}

fn verify(args: &Args) -> Result<bool, String> {
    let started = Instant::now();
    let mut engine = resume(args)?;
    let result = readout::read_all_back(args, &mut engine);
    engine.finish();
    let clean = report::report(args, &engine, started.elapsed());
    result.map(|()| clean)
}

/// Makes the journal of a first run: asks the server for its size, and wipes if told to.
fn begin(args: &Args) -> Result<(), String> {
    let nothing = Layout { run: 0, unit_bytes: args.unit, units: 0 };
    let (_, mut stream, export) = readout::connect_patiently(args, nothing)?;
    let size = args.size.unwrap_or(export.size);
    if size > export.size || size < args.unit {
        return Err(format!("--size {size}: the export has {} bytes", export.size));
    }
    if args.wipe {
        readout::wipe(args, &mut stream, export, size)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let run = mix(args.seed ^ mix(now)) as u32;
    let layout = Layout { run, unit_bytes: args.unit, units: size / args.unit };
    Journal::create(&args.journal, layout).map(drop)
}

/// Goes on from the journal, and adds what the command line says about the time in between.
fn resume(args: &Args) -> Result<Engine, String> {
    let (journal, past) = Journal::open(&args.journal)?;
    let mut engine = Engine::new(journal, past);
    engine.tell(&Record::Begin);
    for note in &args.notes {
        engine.tell(note);
    }
    Ok(engine)
}

//! Models of the register, the lease and the change of voters. `stateright` steps the shipping
//! acceptors, proposers and lease holders through every order of messages, crashes and time; each
//! model says how many states it went through, and has to find deliberate defects.
//!
//! Run it with `cargo test --release -p failover-core --features defects --test models`; words
//! after `--` choose the models whose names contain one of them.

mod lease;
mod membership;
mod parts;
mod register;
mod scenario;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use failover_core::defect::{Defect, switch_off, switch_on};
use stateright::{Checker, Model};

use scenario::Scenario;
use world::{Broken, Explored};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let mut failures = 0;
    let models = register::all().into_iter().chain(lease::all()).chain(membership::all());
    for (name, scenario, defects) in models {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        failures += u32::from(!check(name, &scenario, None));
        for defect in defects {
            switch_on(defect);
            failures += u32::from(!check(name, &scenario, Some(defect)));
            switch_off();
        }
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Explores a model, with the defect that is switched on. Whether it is as expected.
fn check(name: &str, scenario: &Scenario, defect: Option<Defect>) -> bool {
    let began = Instant::now();
    let checker = Explored::new(scenario.clone()).checker().spawn_bfs().join();
    let states = checker.unique_state_count();
    let found = checker.discovery("safe");
    let took = began.elapsed().as_secs_f32();
    let is_stuck = found.is_none() && checker.discovery("reached").is_none();
    let broken = match &found {
        Some(path) => path.last_state().broken(),
        None => is_stuck.then_some(Broken::Stuck),
    };
    let is_right = broken.is_some() == defect.is_some();
    match (defect, broken) {
        (None, None) => println!("{name}: {states} states, safe ({took:.1} s)"),
        (Some(defect), Some(broken)) => {
            println!("  {defect:?}: {broken:?} after {states} states ({took:.1} s)");
        }
        (Some(defect), None) => {
            println!("  {defect:?}: NOT FOUND in {states} states ({took:.1} s)");
        }
        (None, Some(broken)) => println!("{name}: NOT SAFE: {broken:?} after {states} states"),
    }
    if !is_right && let Some(path) = found {
        for action in path.into_actions() {
            println!("    {}", checker.model().format_action(&action));
        }
    }
    is_right
}

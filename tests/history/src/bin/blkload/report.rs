//! The result, for people on stderr and as JSON on stdout.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use history::{Violation, ViolationKind};

use crate::args::Args;
use crate::engine::Engine;

/// Prints everything. True when there is no violation.
pub fn report(args: &Args, engine: &Engine, elapsed: Duration) -> bool {
    let kinds = by_kind(&engine.violations);
    print_violations(args, engine, &kinds);
    let counts = &engine.counts;
    eprintln!(
        "{}: {} writes and {} flushes acknowledged, {} reads, {} unknown, {} errors, \
         {} connections lost, longest pause {} ms, {} violations",
        if engine.violations.is_empty() { "ok" } else { "FAILED" },
        counts.acked_writes,
        counts.acked_flushes,
        counts.reads,
        counts.unknown_writes,
        counts.errors,
        counts.connections_lost,
        counts.longest_pause.as_millis(),
        engine.violations.len()
    );
    if args.json {
        println!("{}", json(engine, &kinds, elapsed));
    }
    engine.violations.is_empty()
}

fn by_kind(violations: &[Violation]) -> BTreeMap<ViolationKind, usize> {
    let mut kinds = BTreeMap::new();
    for violation in violations {
        *kinds.entry(violation.kind).or_insert(0) += 1;
    }
    kinds
}

/// The first violations of each kind with the history of their unit, and one line for each kind.
fn print_violations(args: &Args, engine: &Engine, kinds: &BTreeMap<ViolationKind, usize>) {
    for (kind, count) in kinds {
        eprintln!("violation {kind:?}: {count} units");
        let of_kind = engine.violations.iter().filter(|violation| violation.kind == *kind);
        for violation in of_kind.take(args.show) {
            let byte = violation.unit * engine.layout.unit_bytes;
            eprintln!("  at byte {byte}: {violation}");
            let history = engine.unit_history(violation.unit);
            let skipped = history.len().saturating_sub(8);
            if skipped > 0 {
                eprintln!("    ({skipped} older writes)");
            }
            for write in &history[skipped..] {
                eprintln!("    {write}");
            }
        }
    }
}

fn json(engine: &Engine, kinds: &BTreeMap<ViolationKind, usize>, elapsed: Duration) -> String {
    let counts = &engine.counts;
    let mut text = String::from("{");
    let numbers = [
        ("elapsed_ms", elapsed.as_millis() as u64),
        ("acked_writes", counts.acked_writes),
        ("acked_flushes", counts.acked_flushes),
        ("reads", counts.reads),
        ("unknown_writes", counts.unknown_writes),
        ("unanswered_flushes", counts.unanswered_flushes),
        ("unanswered_reads", counts.unanswered_reads),
        ("errors", counts.errors),
        ("connections_lost", counts.connections_lost),
        ("tenure_changes", counts.tenure_changes),
        ("longest_pause_ms", counts.longest_pause.as_millis() as u64),
        ("first_ack_unix_ms", counts.first_ack_unix_ms),
        ("last_ack_unix_ms", counts.last_ack_unix_ms),
        ("violations", engine.violations.len() as u64),
    ];
    for (name, value) in numbers {
        write!(text, "\"{name}\":{value},").expect("a String takes everything");
    }
    let kinds: Vec<String> =
        kinds.iter().map(|(kind, count)| format!("\"{kind:?}\":{count}")).collect();
    let interruptions: Vec<String> = counts
        .interruptions
        .iter()
        .map(|i| {
            let after = i.first_ack_after_unix_ms.map_or("null".into(), |ms| ms.to_string());
            format!(
                "{{\"lost_unix_ms\":{},\"last_ack_before_unix_ms\":{},\
                 \"first_ack_after_unix_ms\":{after}}}",
                i.lost_unix_ms, i.last_ack_before_unix_ms
            )
        })
        .collect();
    let (kinds, interruptions) = (kinds.join(","), interruptions.join(","));
    write!(text, "\"kinds\":{{{kinds}}},\"interruptions\":[{interruptions}]}}")
        .expect("a String takes everything");
    text
}

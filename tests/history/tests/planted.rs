//! Every planted history gets the verdict that the table names, and no kind is without three.

use std::collections::BTreeMap;

use history::planted::{TABLE, run, run_all};

#[test]
fn every_planted_history_gets_its_verdict() {
    let wrong: Vec<String> = TABLE
        .iter()
        .filter_map(|(script, expected)| {
            let found = run(script);
            let kinds: Vec<_> = found.iter().map(|v| v.kind).collect();
            let text: Vec<String> = found.iter().map(|v| v.to_string()).collect();
            (kinds != Vec::from_iter(*expected))
                .then(|| format!("\"{script}\": expected {expected:?}, found {text:#?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(run_all(), Ok(TABLE.len()));
}

#[test]
fn every_kind_is_planted_at_least_three_times() {
    let mut counts = BTreeMap::new();
    for (_, kind) in TABLE {
        *counts.entry(*kind).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 9, "eight kinds and the correct histories");
    assert!(counts.values().all(|count| *count >= 3), "{counts:?}");
}

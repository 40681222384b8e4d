//! The scripted traces: what two replicas order, line by line, in the situations that matter.
//! `UPDATE_TRACES=1 cargo test -p replicator-core --test traces` writes them anew; the difference
//! is what a reviewer reads. The language is told in `tests/small/src/script.rs`.

use std::fs;
use std::path::{Path, PathBuf};

fn traces() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder of the traces")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "trace"))
        .collect();
    found.sort();
    found
}

/// The first line that is not what it was, with its number.
fn first_difference(old: &str, new: &str) -> Option<String> {
    let (mut old, mut new) = (old.lines(), new.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (then, now) if then == now => {}
            (then, now) => {
                let [then, now] = [then, now].map(|line| line.unwrap_or("(the end)"));
                return Some(format!("line {number}\n  expected {then}\n  now      {now}"));
            }
        }
    }
    None
}

#[test]
fn the_cores_order_what_the_traces_say() {
    let update = std::env::var_os("UPDATE_TRACES").is_some();
    let mut wrong = Vec::new();
    let paths = traces();
    assert!(!paths.is_empty(), "no traces");
    for path in paths {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let script = fs::read_to_string(&path).expect("a trace");
        match small::script::retell(&script) {
            Err(why) => wrong.push(format!("{name}: {why}")),
            Ok(told) if update && told != script => fs::write(&path, told).expect("a new trace"),
            Ok(told) => {
                wrong.extend(first_difference(&script, &told).map(|line| format!("{name}: {line}")))
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE_TRACES=1 writes them anew", wrong.join("\n"));
}

#[test]
fn a_changed_line_is_found() {
    let script = "ready\nalpha write A 0+4K\n    alpha disk     nothing\n";
    let told = small::script::retell(script).expect("a script that runs");
    let difference = first_difference(script, &told).expect("it differs");
    assert!(difference.starts_with("line 2\n"), "{difference}");
}

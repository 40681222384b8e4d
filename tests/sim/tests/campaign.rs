//! The program as people and scripts use it: exit codes, crashes that end nothing, and failing
//! seeds that become small. The failures are pretended: each needs the troubles 5 and 9 and the
//! request 7 of its seed, and nothing else.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output();
    output.expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const KINDS: [(&str, i32); 3] = [("crash", 127), ("liveness", 128), ("safety", 129)];

#[test]
fn a_seed_tells_how_it_failed_and_becomes_small() {
    for (kind, code) in KINDS {
        let output = sim(&["3", "--pretend", kind]);
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains("smallest found: 2 of "), "{told}");
        assert!(told.contains(", 1 of "), "{told}");
        let command = format!("sim 3 --pretend {kind} --only faults=5,9 --only requests=7");
        assert!(told.contains(&command), "{told}");
        assert!(told.contains("trouble 9:") && !told.contains("trouble 8:"), "{told}");
    }
}

#[test]
fn the_parts_alone_fail_in_the_same_way_and_less_does_not() {
    let parts = ["3", "--pretend", "safety", "--only", "faults=5,9", "--only", "requests=7"];
    assert_eq!(sim(&parts).status.code(), Some(129));
    let output = sim(&["3", "--pretend", "safety", "--without", "faults=9"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn a_campaign_goes_on_after_a_failure_and_tells_the_seeds() {
    for (kind, code) in KINDS {
        let output = sim(&["--seeds", "5000..5003", "--pretend", kind]);
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains("replay it: sim "), "{told}");
        assert!(told.contains("10 failures") || told.contains("11 failures"), "{told}");
    }
}

#[test]
fn a_campaign_without_failures_ends_with_a_report() {
    let output = sim(&["--seeds", "6000..6004"]);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for part in [
        "seeds/s",
        "processor time",
        "h simulated",
        "tenures",
        "faults by kind: Kill ",
        "coverage: ",
    ] {
        assert!(told.contains(part), "{part} is missing in {told}");
    }
    assert!(told.ends_with("0 failures\n"), "{told}");
}

#[test]
fn wrong_arguments_are_named() {
    for arguments in [&["--frobnicate"][..], &[], &["--seeds", "9"], &["1", "--only", "x=1"]] {
        assert_eq!(sim(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let help = text(&sim(&["--help"]));
    assert!(["127", "128", "129"].iter().all(|code| help.contains(code)), "{help}");
}

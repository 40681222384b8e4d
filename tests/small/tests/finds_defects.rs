//! The proof that the search can fail: broken rules are found, with the shortest way to see it.

use std::process::Command;

/// Searches one scene with a broken rule; returns the exit code and what was printed.
fn search(defect: &str, scene: &str) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_small"));
    if !defect.is_empty() {
        program.args(["--defect", defect]);
    }
    let output = program.arg(scene).output().expect("the search runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_read_of_a_write_in_flight_is_found_with_its_story() {
    let (code, told) = search("ReadOfWriteInFlight", "writes");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.starts_with("writes: broken in 6 steps: R5b"), "{told}");
    assert!(told.contains("  6. alpha done read 0+4K"), "{told}");
}

#[test]
fn an_acknowledgement_before_the_removal_is_committed_is_found() {
    for defect in ["AckWithoutMember", "AckWhileRemovalProposed"] {
        let (code, told) = search(defect, "take-over-cut");
        assert_eq!(code, Some(1), "{defect}: {told}");
        assert!(told.contains("was acknowledged after it"), "{defect}: {told}");
    }
}

#[test]
fn a_promotion_that_does_not_drain_meets_an_assertion() {
    let (code, told) = search("NoDrainAtPromotion", "take-over");
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("R2b"), "{told}");
}

#[test]
fn the_shipping_rules_are_exhausted_without_a_failure() {
    let (code, told) = search("", "take-over-cut");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains(" exhausted"), "{told}");
}

//! Every scenario that this simulator is to reach does occur: what no seed reaches, no seed proves.

use sim::scenarios::{SCENARIOS, count_until_all, missing};

#[test]
fn every_scenario_occurs_within_2000_seeds() {
    let counts = count_until_all(2_000_000..2_002_000);
    assert!(missing(&counts).is_empty(), "never occurred: {:?}", missing(&counts));
}

#[test]
fn what_never_occurred_is_named() {
    let all: usize = SCENARIOS.iter().map(|scenario| scenario.occasions.len()).sum();
    assert_eq!(missing(&Default::default()).len(), all);
    assert!(SCENARIOS.iter().all(|scenario| !scenario.occasions.is_empty()));
}

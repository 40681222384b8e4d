//! The register: two proposers, three acceptors, two rounds each. For one revision there is never
//! more than one committed state, none is lost, and no change is made twice.

use failover_core::Span;
use failover_core::defect::Defect;

use crate::parts::{Machine, Seat, Want};
use crate::scenario::{START, Scenario, beginning, record};

/// The models, and the defects that each has to find.
pub fn all() -> Vec<(&'static str, Scenario, Vec<Defect>)> {
    vec![
        (
            "register: two rounds each, one does not reach the other",
            two_rounds_each(),
            vec![Defect::HighestValueIgnored, Defect::OpenChangeRepeated],
        ),
        (
            "register: two rounds against one, acceptors restart",
            two_against_one(),
            vec![Defect::PromiseForgotten, Defect::AcceptForgotten, Defect::HighestValueIgnored],
        ),
        (
            "register: records lag behind, acceptors restart, news come late",
            lagging_disks(),
            vec![Defect::PromiseForgotten, Defect::AcceptForgotten],
        ),
    ]
}

fn seats() -> Vec<Seat> {
    let first = beginning(&["a", "b", "w"], None);
    let seat = |name: &&str| Seat::new(name, record(name, &first), START);
    ["a", "b", "w"].iter().map(seat).collect()
}

fn machine(name: &str, lease: u64) -> Machine {
    let known = Some(beginning(&["a", "b", "w"], None));
    Machine::new(name, known, &[Want::Lease(Span::from_ms(lease))])
}

fn two_against_one() -> Scenario {
    let machines = vec![machine("a", 500).may(2, 0), machine("b", 700).may(1, 0)];
    let mut scenario = Scenario::new(seats(), machines);
    scenario.crashes = 1;
    scenario.crashing = vec![0, 1, 2];
    scenario
}

fn lagging_disks() -> Scenario {
    let machines = vec![machine("a", 500).may(1, 0), machine("b", 700).may(1, 0)];
    let mut scenario = Scenario::new(seats(), machines);
    scenario.lazy = vec![0];
    (scenario.crashes, scenario.crashing) = (1, vec![0]);
    scenario
}

fn two_rounds_each() -> Scenario {
    let machines = vec![machine("a", 500).may(2, 0), machine("b", 700).may(2, 0)];
    let mut scenario = Scenario::new(seats(), machines);
    scenario.cut = vec![("a".into(), "b".into())];
    scenario
}

//! The change of voters: one acceptor is replaced while a lease is held and a stale node knows only
//! the old voters. The same rules hold as for register and lease.

use failover_core::Span;
use failover_core::acceptor::Record;
use failover_core::defect::Defect;

use crate::parts::{Machine, Seat, Want};
use crate::scenario::{START, Scenario, acceptor_of, beginning, record, voters};

/// The models, and the defects that each has to find.
pub fn all() -> Vec<(&'static str, Scenario, Vec<Defect>)> {
    vec![
        (
            "membership: a voter is replaced, a stale node proposes",
            stale_proposer(),
            vec![Defect::NewMajorityOnly],
        ),
        ("membership: a voter lost its record", record_lost(), vec![Defect::EmptyRecordVotes]),
        (
            "membership: a voter is replaced while a lease is held",
            lease_held(),
            vec![
                Defect::NewAcceptorWithoutWait,
                Defect::NewAcceptorWaitsOnce,
                Defect::GrantToUninformed,
            ],
        ),
    ]
}

const OLD: &[&str] = &["a", "b", "w"];
const NEW: &[&str] = &["a", "b", "d"];

fn seats(holder: Option<&str>) -> Vec<Seat> {
    let first = beginning(OLD, holder);
    let old = OLD.iter().map(|name| Seat::settled(name, record(name, &first), START));
    old.chain([Seat::settled("d", Record::new(acceptor_of("d")), START)]).collect()
}

fn stale_proposer() -> Scenario {
    let known = Some(beginning(OLD, None));
    let changing = Machine::new("b", known.clone(), &[Want::Voters(voters(NEW))]).may(1, 0);
    let stale = Machine::new("a", known, &[Want::Lease(Span::from_ms(500))]).may(2, 0);
    Scenario::new(seats(None), vec![stale, changing])
}

/// Revision 2 is at a and was at w, whose disk was replaced; b does not know of it.
fn record_lost() -> Scenario {
    let first = beginning(OLD, None);
    let mut second = first.clone();
    (second.0.counter, second.1.revision, second.1.paused) = (2, 2, true);
    let seats = vec![
        Seat::settled("a", record("a", &second), START),
        Seat::settled("b", record("b", &first), START),
        Seat::settled("w", Record::new(999), START),
    ];
    let proposing = Machine::new("b", Some(first), &[Want::Lease(Span::from_ms(500))]).may(3, 0);
    let mut scenario = Scenario::new(seats, vec![proposing]);
    (scenario.first_revision, scenario.committed) = (2, vec![second]);
    scenario
}

fn lease_held() -> Scenario {
    let known = Some(beginning(OLD, Some("a")));
    let holder = Machine::new("a", known.clone(), &[]).may(0, 1);
    let script = [Want::Voters(voters(NEW)), Want::VotersDone(voters(NEW)), Want::Office];
    let changing = Machine::new("b", known, &script).may(3, 0);
    let mut scenario = Scenario::new(seats(Some("a")), vec![holder, changing]);
    (scenario.tick, scenario.ticks) = (Span::from_ms(600), 3);
    scenario.cut = vec![("b".into(), "a".into())];
    (scenario.waits_out_back_off, scenario.once) = (false, true);
    scenario
}

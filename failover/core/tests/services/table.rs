//! The table of one service: every pair of phase and event.

use failover_core::services::service::{Event, Next, next};
use failover_core::services::{Force, Phase};

const PHASES: [Phase; 9] = [
    Phase::Unknown,
    Phase::Stopped,
    Phase::Starting,
    Phase::Running,
    Phase::Stopping(Force::Orderly),
    Phase::Stopping(Force::Kill),
    Phase::Stopping(Force::Detach),
    Phase::Failed,
    Phase::StopHangs,
];

const EVENTS: [Event; 15] = [
    Event::StartOrdered,
    Event::StopOrdered(Force::Orderly),
    Event::StopOrdered(Force::Kill),
    Event::StopOrdered(Force::Detach),
    Event::Dropped,
    Event::Started,
    Event::StartFailed,
    Event::StopDone,
    Event::StopFailed,
    Event::FoundRunning,
    Event::FoundStopped,
    Event::MonitorFailed,
    Event::ToldFailed,
    Event::ToldStopped,
    Event::ToldStarted,
];

/// What a service tells by itself comes at any time: no phase is without an answer to it.
#[test]
fn what_comes_from_outside_is_answered_in_every_phase() {
    for phase in PHASES {
        for event in [Event::ToldFailed, Event::ToldStopped, Event::ToldStarted] {
            assert_ne!(next(phase, event), Next::Never, "{event:?} in {phase:?}");
        }
    }
}

/// All pairs are defined, and only a stop that ended well, or an answer, makes a service stopped:
/// a failed or overdue stop never does.
#[test]
fn every_pair_is_defined_and_only_an_answer_makes_it_stopped() {
    let mut pairs = 0;
    for phase in PHASES {
        for event in EVENTS {
            pairs += 1;
            let outcome = next(phase, event);
            if outcome == Next::To(Phase::Stopped) {
                let is_answer =
                    matches!(event, Event::StopDone | Event::FoundStopped | Event::ToldStopped);
                assert!(is_answer, "{event:?} in {phase:?}");
            }
            if outcome == Next::To(Phase::Starting) {
                assert_eq!((phase, event), (Phase::Stopped, Event::StartOrdered));
            }
            if event == Event::StopFailed && outcome != Next::Never {
                assert_eq!(outcome, Next::To(Phase::StopHangs), "in {phase:?}");
            }
            if outcome == Next::Fails {
                assert!(matches!(phase, Phase::Running | Phase::Starting), "{event:?} {phase:?}");
            }
        }
    }
    assert_eq!(pairs, PHASES.len() * EVENTS.len());
}

/// From every phase there is a way to both ends.
#[test]
fn no_phase_is_a_dead_end() {
    for target in [Phase::Running, Phase::Stopped] {
        for start in PHASES {
            let mut reached = vec![start];
            let mut at = 0;
            while at < reached.len() {
                for event in EVENTS {
                    let phase = match next(reached[at], event) {
                        Next::To(phase) => phase,
                        Next::Fails => Phase::Failed,
                        Next::Ask => Phase::Unknown,
                        Next::Stay | Next::Never => continue,
                    };
                    if !reached.contains(&phase) {
                        reached.push(phase);
                    }
                }
                at += 1;
            }
            assert!(reached.contains(&target), "{start:?} never becomes {target:?}");
        }
    }
}

//! Small histories with a known verdict, as a table that tests and `blkload --selftest` run.
//!
//! A script is a line of words about one unit. `W1` starts write 1 of value 1 (`W1!` with FUA,
//! `W1:0` in tenure 0), `Z2` starts a zeroing, `T3` a trim that may be ignored; `A1` acknowledges,
//! `U1` ends with unknown outcome; `F9` starts flush 9 and `f9` acknowledges it, `F` is both at
//! once; `R=1` is a read that returned 1 (or `torn`, `foreign`), `r5` starts read 5 and `r5=1` ends
//! it; `P` is a power loss of all members, `P0` of member 0 of two; `N2` begins tenure 2; `L`
//! allows data loss.

use crate::{Checker, Config, PowerLoss, Seen, Violation, ViolationKind, Write};

/// A script and the one violation it must show; `None` where it is a correct history.
pub type Planted = (&'static str, Option<ViolationKind>);

/// Runs a script on a device of one unit and two members, and returns every violation.
pub fn run(script: &str) -> Vec<Violation> {
    let mut checker = Checker::new(Config { members: 2, acks_are_instant: true, ..Config::new(1) });
    let mut violations = Vec::new();
    for (position, word) in script.split_whitespace().enumerate() {
        violations.extend(step(&mut checker, word, 1_000_000 + position as u64));
    }
    violations
}

/// Runs the whole table. Returns the number of scripts, or what went wrong with one of them.
pub fn run_all() -> Result<usize, String> {
    for (script, expected) in TABLE {
        let kinds: Vec<ViolationKind> = run(script).iter().map(|v| v.kind).collect();
        if kinds != Vec::from_iter(*expected) {
            return Err(format!("\"{script}\": expected {expected:?}, found {kinds:?}"));
        }
    }
    Ok(TABLE.len())
}

fn step(checker: &mut Checker, word: &str, spare_id: u64) -> Vec<Violation> {
    let (command, rest) = word.split_at(1);
    let number = |text: &str| -> u64 {
        text.parse().unwrap_or_else(|_| panic!("the word {word} of a script needs a number"))
    };
    match command {
        "W" | "Z" | "T" => {
            let (rest, tenure) = match rest.split_once(':') {
                Some((rest, tenure)) => (rest, Some(number(tenure))),
                None => (rest, None),
            };
            let id = number(rest.trim_end_matches('!'));
            let mut write = match command {
                "W" => Write::data(0..1, id),
                "Z" => Write::zero(0..1),
                _ => Write::trim(0..1, 0..0),
            };
            if rest.ends_with('!') {
                write = write.fua();
            }
            if let Some(tenure) = tenure {
                write = write.in_tenure(tenure);
            }
            checker.write_started(id, write);
        }
        "A" => return checker.write_acked(number(rest)),
        "U" => checker.write_unknown(number(rest)),
        "F" if rest.is_empty() => {
            checker.flush_started(spare_id);
            return Vec::from_iter(checker.flush_acked(spare_id));
        }
        "F" => checker.flush_started(number(rest)),
        "f" => return Vec::from_iter(checker.flush_acked(number(rest))),
        "R" => return checker.read_out(spare_id, 0, &[seen(&rest[1..])]),
        "r" => match rest.split_once('=') {
            Some((id, value)) => return checker.read_done(number(id), &[seen(value)]),
            None => checker.read_started(number(rest), 0..1),
        },
        "P" if rest.is_empty() => checker.power_lost(PowerLoss::AllMembers),
        "P" => checker.power_lost(PowerLoss::Member(number(rest) as usize)),
        "N" => checker.tenure_changed(number(rest)),
        "L" => checker.data_loss_allowed(),
        _ => panic!("unknown word {word} in a script"),
    }
    Vec::new()
}

fn seen(text: &str) -> Seen {
    match text {
        "torn" => Seen::Torn,
        "foreign" => Seen::Foreign,
        value => Seen::Value(value.parse().expect("a value is a number")),
    }
}

/// The histories.
pub const TABLE: &[Planted] = &[
    // Correct: plain use.
    ("R=0 W1 A1 R=1 W2 A2 R=2 F R=2", None),
    ("W1 R=0 R=1 R=1 A1 R=1", None),
    ("W1 A1 Z2 A2 R=0 W3! A3 R=3", None),
    // Correct: overlapping writes take effect in either order, reads overlap them.
    ("W1 W2 A1 A2 R=1 R=1", None),
    ("W1 W2 R=2 R=1 A1 A2 R=1", None),
    ("W1 A1 r5 W2 A2 W3 r5=1 A3 R=3", None),
    ("W1 A1 r5 W2 A2 r5=2 R=2", None),
    ("W1 A1 W2 r5 r6 r6=1 r5=2 A2 R=2", None),
    ("W1 A1 W2 r5 r6 r6=2 r5=1 A2 R=2", None),
    // Correct: an unknown outcome appears late or never.
    ("W1 A1 W2 U2 R=1 R=1 R=2 R=2", None),
    ("W1 A1 W2 U2 W3 A3 R=3 R=2", None),
    ("W1 A1 W2 U2 N1 R=2 W3 A3 R=3", None),
    ("W1 A1 W2 U2 N1 R=1 R=1", None),
    // Correct: a trim may be ignored, but not undone.
    ("W1 A1 T2 A2 R=1 R=1", None),
    ("W1 A1 T2 A2 R=0 R=0", None),
    // Correct: power loss takes what was not flushed, also what was read.
    ("W1 A1 F W2 A2 R=2 P R=1 R=1", None),
    ("W1 A1 F W2 A2 W3 A3 P R=2", None),
    ("W1 A1 F W2 A2 P R=2 R=2", None),
    ("W1 A1 P R=0", None),
    ("W1 A1 P0 P1 R=0", None),
    ("W1 P A1 R=0", None),
    ("W1! A1 W2 A2 P R=1", None),
    ("W1 A1 F W2 U2 P R=1 R=2", None),
    ("F8 W1 A1 f8 P R=0", None),
    ("W1 A1 F W2 A2 W3 A3 P R=1 P R=3", None),
    ("W1 A1 F W2 A2 F L R=1 R=1", None),
    ("W1 A1 W2 A2 L R=2 P R=1 F R=1", None),
    ("W1 A1 F W2 A2 L R=2 P P R=1", None),
    // An acknowledged write is lost.
    ("W1 A1 R=0", Some(ViolationKind::LostAcknowledged)),
    ("W1 A1 F W2 A2 R=1", Some(ViolationKind::LostAcknowledged)),
    ("W1 A1 W2 A2 N1 R=1", Some(ViolationKind::LostAcknowledged)),
    ("W1 A1 F W2 A2 P0 R=1", Some(ViolationKind::LostAcknowledged)),
    ("W1 A1 P0 W2 A2 P1 R=1", Some(ViolationKind::LostAcknowledged)),
    ("W1 W2 A1 A2 W3 A3 r5 r5=2", Some(ViolationKind::LostAcknowledged)),
    ("W1 A1 W2 N1 R=1 A2", Some(ViolationKind::LostAcknowledged)),
    // A flushed write is lost.
    ("W1 A1 F R=0", Some(ViolationKind::LostFlushed)),
    ("W1 A1 F P R=0", Some(ViolationKind::LostFlushed)),
    ("W1! A1 P R=0", Some(ViolationKind::LostFlushed)),
    ("W1 A1 F W2 A2 F W3 A3 P R=1", Some(ViolationKind::LostFlushed)),
    ("W1 A1 W2 A2 F P0 P1 R=1", Some(ViolationKind::LostFlushed)),
    // An old value comes back after a newer one was seen.
    ("W1 A1 W2 A2 R=2 R=1", Some(ViolationKind::Resurrected)),
    ("W1 A1 F W2 A2 F R=2 W3 A3 R=3 R=1", Some(ViolationKind::Resurrected)),
    ("W1 A1 W2 R=2 A2 N1 R=1", Some(ViolationKind::Resurrected)),
    ("W1 A1 F W2 A2 W3 A3 P R=2 W4 A4 R=4 R=3", Some(ViolationKind::Resurrected)),
    ("W1 A1 T2 A2 R=0 R=1 R=1", Some(ViolationKind::Resurrected)),
    // A value of an unacknowledged write is read and then gone.
    ("W1 A1 W2 R=2 R=1", Some(ViolationKind::Unread)),
    ("W1 A1 W2 U2 R=2 R=1", Some(ViolationKind::Unread)),
    ("W1 U1 R=1 N1 R=0", Some(ViolationKind::Unread)),
    ("W1 A1 W2 W3 R=2 R=3 R=2", Some(ViolationKind::Unread)),
    ("W1 A1 W2 r5 r5=2 r6 r6=1", Some(ViolationKind::Unread)),
    // Half a write.
    ("W1 A1 R=torn", Some(ViolationKind::Torn)),
    ("W1 A1 W2 U2 R=torn", Some(ViolationKind::Torn)),
    ("W1 A1 W2 A2 P R=torn", Some(ViolationKind::Torn)),
    // Something nobody wrote here.
    ("R=7", Some(ViolationKind::NeverWritten)),
    ("W1 A1 R=2 W2 A2 R=2", Some(ViolationKind::NeverWritten)),
    ("W1 A1 R=foreign", Some(ViolationKind::NeverWritten)),
    ("W1 A1 F L R=9", Some(ViolationKind::NeverWritten)),
    ("W1 A1 W2 A2 L R=2 F P R=1", Some(ViolationKind::LostFlushed)),
    ("W1 A1 W2 A2 L R=2 W3! A3 P R=1", Some(ViolationKind::LostFlushed)),
    ("W1 A1 W2 A2 L R=2 P F R=1 R=2", Some(ViolationKind::Resurrected)),
    // A write of an earlier tenure appears after the later tenure has served the unit.
    ("W1 A1 W2 U2 N1 R=1 R=2", Some(ViolationKind::LateWrite)),
    ("W1 A1 W2 U2 N1 W3 A3 R=2", Some(ViolationKind::LateWrite)),
    ("W1 A1 W2 W3 U2 U3 N1 R=3 R=2", Some(ViolationKind::LateWrite)),
    ("W1 A1 N1 W2:0 R=2", Some(ViolationKind::LateWrite)),
    // Two tenures acknowledge.
    ("W1 N1 W2 A2 A1", Some(ViolationKind::StaleAck)),
    ("N1 W1 A1 W2:0 A2", Some(ViolationKind::StaleAck)),
    ("F8 N1 F f8", Some(ViolationKind::StaleAck)),
];

//! Shows that faults are found: the planted histories, and damaged units.

use std::collections::BTreeMap;

use history::{Seen, planted};

use crate::content;

/// Runs everything. An error says which planted fault was missed.
pub fn selftest() -> Result<(), String> {
    planted::run_all()?;
    let mut counts = BTreeMap::new();
    for (_, kind) in planted::TABLE {
        *counts.entry(*kind).or_insert(0) += 1;
    }
    for (kind, count) in counts {
        match kind {
            None => eprintln!("{count:3} correct histories pass"),
            Some(kind) => eprintln!("{count:3} histories with {kind:?} are found"),
        }
    }
    let checked = damaged_units()?;
    eprintln!("{checked:3} damaged or foreign units are recognised");
    Ok(())
}

fn damaged_units() -> Result<usize, String> {
    let mut checked = 0;
    for size in [32_usize, 512, 4096] {
        let unit = |run, id, number| {
            let mut bytes = vec![0; size];
            content::fill(&mut bytes, run, id, number);
            bytes
        };
        let (old, new) = (unit(7, 41, 5), unit(7, 42, 5));
        let half_new = [&new[..size / 2], &old[size / 2..]].concat();
        let mut cases = vec![
            ("whole", new.clone(), Seen::Value(42)),
            ("zero", vec![0; size], Seen::Value(0)),
            ("half of two writes", half_new, Seen::Torn),
            ("front only", [&new[..size / 2], &vec![0; size / 2]].concat(), Seen::Torn),
            ("of another place", unit(7, 42, 6), Seen::Foreign),
            ("of another run", unit(8, 42, 5), Seen::Foreign),
            ("no content of ours", vec![0xa5; size], Seen::Foreign),
        ];
        if size >= 64 {
            let back = [&vec![0; size / 2], &new[size / 2..]].concat();
            cases.push(("back only", back, Seen::Torn));
            let mut flipped = new.clone();
            flipped[size / 2] ^= 1;
            cases.push(("one bit wrong", flipped, Seen::Torn));
        }
        for (name, bytes, expected) in cases {
            let found = content::identify(&bytes, 7, 5, &mut vec![0; size]);
            if found != expected {
                return Err(format!(
                    "unit of {size}, {name}: expected {expected:?}, not {found:?}"
                ));
            }
            checked += 1;
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_selftest_finds_every_planted_fault() {
        assert_eq!(super::selftest(), Ok(()));
    }
}

//! A part of a seed: which of its troubles, client requests and operator's orders take place. What
//! is left out is drawn all the same and then has no effect, so that the rest stays as it was.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::str::FromStr;

use crate::plan::{Fault, all_faults};

/// Numbers from 1 on, some of which take place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// All of them.
    #[default]
    All,
    /// Only these.
    Only(BTreeSet<u64>),
    /// All but these.
    Without(BTreeSet<u64>),
}

impl Choice {
    /// Whether this one takes place.
    pub fn has(&self, number: u64) -> bool {
        match self {
            Self::All => true,
            Self::Only(numbers) => numbers.contains(&number),
            Self::Without(numbers) => !numbers.contains(&number),
        }
    }
}

/// The parts of a seed that take place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    /// Troubles by their number in the seed.
    pub faults: Choice,
    /// Client requests by their number in the seed.
    pub requests: Choice,
    /// Operator's orders by their ticket. One that the world needs is given again later.
    pub orders: Choice,
    /// Kinds of trouble that never happen.
    pub no_kinds: BTreeSet<Fault>,
    /// The troubles end after so many.
    pub end: Option<u64>,
}

impl Parts {
    /// Whether a trouble takes place.
    pub fn has_fault(&self, number: u64, kind: Fault) -> bool {
        self.faults.has(number) && !self.no_kinds.contains(&kind)
    }

    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Takes one option of the command line: `only` or `without` as `true` or `false`, and its
    /// argument, for example `faults=3,7-9`. An error says what is wrong with it.
    pub fn option(&mut self, only: bool, text: &str) -> Result<(), String> {
        let wanted = "faults=, requests=, orders= with numbers as in 3,7-9, or kinds= with names";
        let Some((what, list)) = text.split_once('=') else {
            return Err(format!("{text}: wanted is {wanted}"));
        };
        if what == "kinds" {
            let mut named = BTreeSet::new();
            for name in list.split(',').filter(|name| !name.is_empty()) {
                let kind = all_faults().find(|kind| format!("{kind:?}") == name);
                let there_are = || format!("{name}: there are {:?}", Vec::from_iter(all_faults()));
                named.insert(kind.ok_or_else(there_are)?);
            }
            let left_out = all_faults().filter(|kind| named.contains(kind) != only);
            self.no_kinds.extend(left_out);
            return Ok(());
        }
        let numbers = numbers(list)?;
        let choice = if only { Choice::Only(numbers) } else { Choice::Without(numbers) };
        match what {
            "faults" => self.faults = choice,
            "requests" => self.requests = choice,
            "orders" => self.orders = choice,
            _ => return Err(format!("{what}: wanted is {wanted}")),
        }
        Ok(())
    }
}

/// The options of the command line that choose these parts.
impl Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        let all =
            [("faults", &self.faults), ("requests", &self.requests), ("orders", &self.orders)];
        for (what, choice) in all {
            match choice {
                Choice::All => {}
                Choice::Only(numbers) => words.push(format!("--only {what}={}", list(numbers))),
                Choice::Without(numbers) => {
                    words.push(format!("--without {what}={}", list(numbers)));
                }
            }
        }
        if !self.no_kinds.is_empty() {
            let kinds: Vec<String> = self.no_kinds.iter().map(|kind| format!("{kind:?}")).collect();
            words.push(format!("--without kinds={}", kinds.join(",")));
        }
        if let Some(end) = self.end {
            words.push(format!("--end {end}"));
        }
        f.write_str(&words.join(" "))
    }
}

/// The way back from the options, one space between two words.
impl FromStr for Parts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Self::default();
        let mut words = text.split_whitespace();
        while let Some(option) = words.next() {
            let argument = words.next().ok_or(format!("{option} wants an argument"))?;
            match option {
                "--only" => parts.option(true, argument)?,
                "--without" => parts.option(false, argument)?,
                "--end" => parts.end = Some(number(argument)?),
                _ => return Err(format!("{option} chooses no parts")),
            }
        }
        Ok(parts)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

/// The numbers of `3,7-9`.
fn numbers(text: &str) -> Result<BTreeSet<u64>, String> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if last < first || last - first > 1_000_000 {
            return Err(format!("{part} is no range"));
        }
        all.extend(first..=last);
    }
    Ok(all)
}

/// `3,7-9` of the numbers.
fn list(numbers: &BTreeSet<u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_say_what_the_parts_are() {
        let text = "--only faults=3,7-9 --without requests=1 --only orders= --without \
                    kinds=Kill,Pause --end 12";
        let parts: Parts = text.parse().expect("good options");
        assert_eq!(parts.to_string(), text);
        assert!(parts.has_fault(8, Fault::Reset) && !parts.has_fault(8, Fault::Kill));
        assert!(!parts.has_fault(4, Fault::Reset));
        assert!(!parts.requests.has(1) && parts.requests.has(2) && !parts.orders.has(1));
    }

    #[test]
    fn only_some_kinds_are_all_others_left_out() {
        let mut parts = Parts::default();
        parts.option(true, "kinds=Kill").expect("a kind");
        assert!(parts.has_fault(1, Fault::Kill) && !parts.has_fault(1, Fault::Reset));
    }

    #[test]
    fn bad_options_are_named() {
        for text in ["--only faults", "--only x=1", "--end x", "--only faults=9-3", "--end"] {
            assert!(text.parse::<Parts>().is_err(), "{text}");
        }
        assert!("--only kinds=Nothing".parse::<Parts>().unwrap_err().contains("Kill"));
    }
}

//! Which datagrams came in already. They come over every path there is, so most come twice; and
//! whoever listens on the network could send one again later, to make a dead node look alive or to
//! have its lease renewed. The sender numbers what it seals; the receiver keeps, as IPsec does
//! (RFC 4303, 3.4.3), the highest number and which of those just below it came in.

use std::collections::{HashMap, VecDeque};

use failover_core::NodeName;

/// So far below the highest number a datagram may come; what is later still is thrown away.
const WINDOW: u64 = 1024;
/// So many processes of a node are remembered; a repeated datagram of an earlier one passes, and
/// means nothing while a later process of the node speaks.
const PROCESSES_MAX: usize = 64;

/// What came in of every node.
#[derive(Default)]
pub struct Repeats(HashMap<NodeName, VecDeque<Window>>);

struct Window {
    process: u64,
    highest: u64,
    /// One bit for each of the last numbers, at its remainder.
    came: [u64; WINDOW as usize / 64],
}

impl Repeats {
    /// Whether this number of a process comes in for the first time, as far as is remembered.
    pub fn is_new(&mut self, from: &NodeName, process: u64, number: u64) -> bool {
        let windows = self.0.entry(from.clone()).or_default();
        if let Some(window) = windows.iter_mut().find(|window| window.process == process) {
            return window.is_new(number);
        }
        if windows.len() == PROCESSES_MAX {
            windows.pop_front();
        }
        let mut window = Window { process, highest: number, came: [0; WINDOW as usize / 64] };
        window.mark(number);
        windows.push_back(window);
        true
    }
}

impl Window {
    fn is_new(&mut self, number: u64) -> bool {
        if number > self.highest {
            if number - self.highest >= WINDOW {
                self.came = [0; WINDOW as usize / 64];
            } else {
                (self.highest + 1..number).for_each(|between| self.clear(between));
            }
            self.highest = number;
            self.mark(number);
            return true;
        }
        let is_new = self.highest - number < WINDOW && !self.has(number);
        if is_new {
            self.mark(number);
        }
        is_new
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.came[word] & bit != 0
    }

    fn mark(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.came[word] |= bit;
    }

    fn clear(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.came[word] &= !bit;
    }
}

fn place(number: u64) -> (usize, u64) {
    let at = number % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_counts_once_for_each_process_of_each_node() {
        let mut repeats = Repeats::default();
        for (node, process) in [("alpha", 1), ("alpha", 2), ("beta", 1)] {
            assert!(repeats.is_new(&node.into(), process, 7));
            assert!(!repeats.is_new(&node.into(), process, 7));
        }
        assert!(!repeats.is_new(&"alpha".into(), 1, 7), "a former process is remembered");
    }

    #[test]
    fn processes_without_end_take_no_memory_without_end() {
        let mut repeats = Repeats::default();
        for process in 0..10_000 {
            assert!(repeats.is_new(&"alpha".into(), process, 1));
        }
        assert_eq!(repeats.0[&NodeName::from("alpha")].len(), PROCESSES_MAX);
    }

    proptest! {
        /// Against a set that remembers everything.
        #[test]
        fn nothing_passes_twice_and_nothing_recent_is_refused(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..3_000), 1..400),
        ) {
            let (mut repeats, mut came) = (Repeats::default(), HashSet::new());
            let mut highest = 5_000_u64;
            for (is_ahead, far) in steps {
                let number = if is_ahead { highest + far } else { highest - far.min(highest) };
                let is_recent = came.is_empty() || number + WINDOW > highest;
                let expected = is_recent && !came.contains(&number);
                prop_assert_eq!(repeats.is_new(&"alpha".into(), 1, number), expected);
                if expected {
                    came.insert(number);
                    highest = if came.len() == 1 { number } else { highest.max(number) };
                }
            }
        }
    }
}

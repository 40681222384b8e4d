//! Chance, split by what it is for. Every event draws from a sequence of its own, which follows
//! from the seed, the kind of event, its place and its time; a trouble's from its number, a client
//! request's from its number. So what is left out of a seed changes only what it touches.

use history::draw::{Draw, mix};

use crate::plan::Fault;
use crate::world::{Event, World};

/// Which sequence the events of the present moment draw from.
#[derive(Debug, Default)]
pub struct Moments {
    now: u64,
    /// Events at this very time so far.
    events: u64,
    operator_turns: u64,
}

fn sequence(seed: u64, kind: u64, place: u64, number: u64) -> Draw {
    Draw::new(mix(mix(seed ^ (kind << 56) ^ (place << 40)) ^ number))
}

impl World {
    /// An event is about to happen: its sequence is drawn from now on.
    pub fn begin_sequence(&mut self, event: &Event) {
        let moments = &mut self.moments;
        if moments.now != self.now {
            moments.now = self.now;
            moments.events = 0;
        }
        moments.events += 1;
        let at = mix(self.now ^ (moments.events << 48));
        let (kind, place, number) = match event {
            Event::Disk { node, .. } => (1, *node, at),
            Event::Arrival { node, .. } => (2, *node, at),
            Event::Fact { node, .. } => (3, *node, at),
            Event::Timer { node, .. } => (4, *node, at),
            Event::Client { worker } => (5, *worker, at),
            Event::Operator => {
                moments.operator_turns += 1;
                (6, 0, moments.operator_turns)
            }
            Event::Trouble => (7, 0, self.troubles),
            Event::Start { node } => (8, *node, at),
            Event::Dial => (9, 0, at),
            Event::Look => (10, 0, at),
            Event::Strike { .. } => (11, 0, at),
            Event::TimesOut { node, .. } => (13, *node, at),
            Event::Flap { .. } => (14, 0, at),
            Event::Restore { node } => (15, *node, at),
            Event::Cluster(_) => (16, 0, at),
            Event::Fencing(_) => (17, 0, at),
            Event::Verify => (18, 0, at),
            Event::Growth => (19, 0, at),
        };
        self.draw = sequence(self.seed, kind, place as u64, number);
    }

    /// The kind of the trouble with this number.
    pub fn kind_of(&self, number: u64) -> Fault {
        self.plan.draw_fault(&mut sequence(self.seed, 7, 0, number - 1))
    }

    /// What a client asks for is drawn from now on.
    pub fn begin_request(&mut self, number: u64) {
        self.draw = sequence(self.seed, 12, 0, number);
    }
}

//! The disks and the network of the world by themselves: something else takes the inputs in the
//! place of the cores. For the tests that run on the real drivers as well
//! (`tests/conformance/drivers`).

use std::fmt;

use replicator_core::{Effects, Input};

use crate::world::{Event, World};

/// Takes an input of a node and says what is ordered, as a core does.
pub struct StandIn(pub Box<dyn FnMut(usize, Input) -> Effects>);

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandIn")
    }
}

impl World {
    /// A world without clients, operator and trouble, and without cores: both processes run, and
    /// the stand-in is told what the cores would be told.
    pub fn without_cores(seed: u64, stand_in: StandIn) -> Self {
        let mut world = Self::new(seed, false);
        world.stand_in = Some(stand_in);
        while world.nodes.iter().any(|node| node.process.is_none()) {
            assert!(world.go_on(), "both processes start");
        }
        world
    }

    /// What happens next; whether there was anything.
    pub fn go_on(&mut self) -> bool {
        let Some(entry) = self.queue.pop() else { return false };
        self.now = entry.at;
        if let Event::Disk { .. }
        | Event::Arrival { .. }
        | Event::Fact { .. }
        | Event::Start { .. } = entry.event
        {
            // Nothing else happens here; nobody connects but who is told to.
            self.happen(entry.event);
        }
        true
    }

    /// Orders something of the drivers of a node, as a step of its core does.
    pub fn order_drivers(&mut self, node: usize, mut effects: Effects) {
        self.carry_out(node, &mut effects);
    }

    /// Opens a connection, beside the one there may be: as when only one side lost that.
    pub fn connect(&mut self) {
        let lives = [0, 1].map(|node| self.nodes[node].lives);
        self.open_connection(lives);
    }

    pub(super) fn step_stand_in(&mut self, node: usize, input: Input) {
        let mut stand_in = self.stand_in.take().expect("asked before");
        let mut effects = (stand_in.0)(node, input);
        self.stand_in = Some(stand_in);
        self.carry_out(node, &mut effects);
    }
}

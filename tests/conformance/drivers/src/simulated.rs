//! The simulated disk and network.

use std::cell::RefCell;
use std::rc::Rc;

use replicator_core::{BufId, Effect, Input, SessionId};
use sim::host::Failing;
use sim::world::{StandIn, World};

use crate::probe::Probe;
use crate::{Crash, Nodes, PEER, Trouble, await_connected};

/// More events than a test has.
const EVENTS_MAX: u64 = 100_000;

/// Two nodes of the simulator.
pub struct Simulated {
    world: World,
    probes: Rc<RefCell<[Probe; 2]>>,
    down: Option<usize>,
}

impl Simulated {
    /// The world of a seed, which decides about delays and what a crash leaves.
    pub fn new(seed: u64) -> Self {
        let probes = Rc::new(RefCell::new([Probe::default(), Probe::default()]));
        let heard = probes.clone();
        let step = move |node: usize, input: Input| heard.borrow_mut()[node].step(input);
        let world = World::without_cores(seed, StandIn(Box::new(step)));
        Self { world, probes, down: None }
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..EVENTS_MAX {
            if holds(self) {
                return;
            }
            assert!(self.world.go_on(), "nothing happens any more and still not: {what}");
        }
        panic!("after {EVENTS_MAX} events still not: {what}");
    }

    fn sessions(&self) -> [Option<SessionId>; 2] {
        self.probes.borrow().each_ref().map(|probe| probe.session(PEER))
    }
}

impl Nodes for Simulated {
    fn order(&mut self, node: usize, effects: Vec<Effect>) {
        let mut probes = self.probes.borrow_mut();
        effects.iter().for_each(|effect| probes[node].ordered(effect));
        drop(probes);
        self.world.order_drivers(node, effects);
    }

    fn hear(&mut self, node: usize) -> Input {
        self.until("an input", |here| !here.probes.borrow()[node].inputs.is_empty());
        self.probes.borrow_mut()[node].inputs.pop_front().expect("just seen")
    }

    fn give(&mut self, node: usize, contents: &[u64]) -> BufId {
        let process = self.world.nodes[node].process.as_mut().expect("it runs");
        let buf = process.buffers.take(contents.into());
        assert!(self.probes.borrow_mut()[node].held.insert(buf));
        buf
    }

    fn look(&mut self, node: usize, buf: BufId, sectors: u64) -> Vec<u64> {
        let process = self.world.nodes[node].process.as_ref().expect("it runs");
        process.buffers.get(buf)[..sectors as usize].to_vec()
    }

    fn buffers(&mut self, node: usize) -> usize {
        let held = self.probes.borrow()[node].held.len();
        let used = self.world.nodes[node].process.as_ref().map_or(0, |it| it.buffers.used());
        assert_eq!(held, used, "a buffer is in use that the probe does not know");
        held
    }

    fn data_bytes(&self) -> u64 {
        self.world.plan.data_bytes
    }

    fn spare_meta(&self) -> u64 {
        let superblock = self.world.nodes[0].disk.superblock().expect("a disk with metadata");
        superblock.layout().log.start
    }

    fn meta(&mut self, node: usize, offset: u64, length: usize) -> Vec<u8> {
        self.world.nodes[node].disk.part(&(offset..offset + length as u64)).to_vec()
    }

    fn crash(&mut self, node: usize, how: Crash) -> bool {
        match how {
            Crash::Process => self.world.kill(node),
            Crash::Power => self.world.cut_power(node),
        }
        self.probes.borrow_mut()[node].restart();
        self.down = Some(node);
        true
    }

    fn restart(&mut self, node: usize) {
        assert_eq!(self.down.take(), Some(node), "it runs");
        self.world.start_in(node, 0);
        self.until("it runs again", |here| here.world.nodes[node].process.is_some());
    }

    fn begin(&mut self, node: usize, trouble: Trouble) -> bool {
        self.world.nodes[node].failing = Some(match trouble {
            Trouble::Reads => Failing::Read,
            Trouble::Space => Failing::Space,
        });
        true
    }

    fn end(&mut self, node: usize, _: Trouble) {
        self.world.nodes[node].failing = None;
    }

    fn connect(&mut self) -> [SessionId; 2] {
        let before = self.sessions();
        self.world.connect();
        self.until("a new session", |here| {
            let now = here.sessions();
            (0..2).all(|node| now[node] > before[node])
        });
        [0, 1].map(|node| await_connected(self, node))
    }

    fn react(&mut self, node: usize, frame: u64, effects: Vec<Effect>) {
        self.probes.borrow_mut()[node].reactions.insert(frame, effects);
    }

    fn settle(&mut self) {
        while self.world.go_on() {}
    }

    fn violations(&mut self) -> Vec<String> {
        self.probes.borrow_mut().iter_mut().flat_map(|probe| probe.violations.drain(..)).collect()
    }
}

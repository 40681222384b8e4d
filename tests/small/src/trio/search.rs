//! Every order of frames, disk operations and losses of power in which a primary of three may die:
//! at each such moment either survivor takes over, the other joins it, and they must be equal.

use std::collections::{HashSet, VecDeque};

use super::scripted::{BETA, GAMMA, Stage};
use super::world::{Asks, NODES};

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Its name.
    pub name: &'static str,
    /// What clients ask, in this order, each at any time.
    pub asks: &'static [Asks],
    /// How often a survivor may lose its power before.
    pub power: u8,
    /// Takes minutes: only when asked for.
    pub is_long: bool,
}

/// All of them.
pub const SCENES: &[Scene] = &[
    Scene { name: "one-write", asks: &[Asks::Write(3, false)], power: 0, is_long: false },
    Scene { name: "one-write-power", asks: &[Asks::Write(3, false)], power: 1, is_long: false },
    Scene {
        name: "two-writes-of-a-block",
        asks: &[Asks::Write(3, false), Asks::Write(3, false)],
        power: 0,
        is_long: false,
    },
    Scene {
        name: "two-writes-power",
        asks: &[Asks::Write(3, false), Asks::Write(9, false)],
        power: 1,
        is_long: false,
    },
    Scene {
        name: "write-flush-write-power",
        asks: &[Asks::Write(3, false), Asks::Flush, Asks::Write(3, false)],
        power: 1,
        is_long: true,
    },
];

/// How a search ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Different states before the primary's death.
    pub states: usize,
    /// Different deaths, each with both takers.
    pub deaths: usize,
}

#[derive(Clone)]
struct State {
    stage: Stage,
    asked: usize,
    power: u8,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Deliver(usize, usize),
    Finish(usize, usize),
    Ask,
    /// A survivor loses its power; nothing, or all of what was volatile remains.
    Power(usize, bool),
}

/// Looks at everything.
pub fn search(scene: &Scene) -> Result<Found, String> {
    let first = State { stage: Stage::of_three()?, asked: 0, power: scene.power };
    let mut seen = HashSet::from([first.digest()]);
    let mut dead = HashSet::new();
    let mut waiting = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(state) = waiting.pop_front() {
        found.states += 1;
        found.deaths += state.die(&mut dead)?;
        for action in state.actions(scene) {
            let mut next = state.clone();
            next.take(scene, action);
            if seen.insert(next.digest()) {
                waiting.push_back(next);
            }
        }
    }
    Ok(found)
}

impl State {
    fn digest(&self) -> (u64, usize, u8, u64) {
        (self.stage.world.digest(), self.asked, self.power, self.stage.acknowledged())
    }

    fn actions(&self, scene: &Scene) -> Vec<Action> {
        let world = &self.stage.world;
        let mut actions = Vec::new();
        for node in 0..NODES {
            let ops = 0..world.node(node).ops.len();
            actions.extend(ops.map(|number| Action::Finish(node, number)));
            let full = (0..NODES).filter(|&from| !world.towards[node][from].is_empty());
            actions.extend(full.map(|from| Action::Deliver(node, from)));
        }
        if self.asked < scene.asks.len() {
            actions.push(Action::Ask);
        }
        if self.power > 0 {
            for kept in [false, true] {
                actions.push(Action::Power(BETA, kept));
                actions.push(Action::Power(GAMMA, kept));
            }
        }
        actions
    }

    fn take(&mut self, scene: &Scene, action: Action) {
        match action {
            Action::Deliver(to, from) => self.stage.world.deliver(to, from),
            Action::Finish(node, number) => self.stage.world.finish(node, number),
            Action::Ask => {
                self.stage.ask(0, scene.asks[self.asked]);
                self.asked += 1;
            }
            Action::Power(node, kept) => {
                self.power -= 1;
                self.stage.world.cut_power(node, || kept);
            }
        }
        self.stage.look();
    }

    /// The primary dies now.
    fn die(&self, dead: &mut HashSet<(u64, u64)>) -> Result<usize, String> {
        let mut state = self.clone();
        state.stage.lose(0);
        // What was to be removed stays: nothing else was decided.
        state.stage.world.proposals.clear();
        if !dead.insert((state.stage.world.digest(), state.stage.acknowledged())) {
            return Ok(0);
        }
        for taker in [BETA, GAMMA] {
            let mut stage = state.stage.clone();
            stage.survive(taker).map_err(|why| format!("{taker} takes over: {why}"))?;
        }
        Ok(1)
    }
}

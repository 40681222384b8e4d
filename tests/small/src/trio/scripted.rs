//! Stories of three replicas that chance seldom tells, with what must come of them.

use replicator_core::{Span, Timing};

use super::disk::BLOCK_BYTES;
use super::world::{Asks, Happened, NODES, World};

const ALPHA: usize = 0;
pub(super) const BETA: usize = 1;
pub(super) const GAMMA: usize = 2;
/// Writes are numbered from here.
const FIRST_NUMBER: u32 = 100;
const ROUNDS_MAX: usize = 100_000;

type Outcome = Result<(), String>;

#[derive(Clone)]
pub(super) struct Stage {
    pub(super) world: World,
    request: u64,
    /// Bytes that partial resyncs were to copy, and reasons of full ones.
    partial_bytes: Vec<u64>,
    full: Vec<&'static str>,
    /// Writes: request, block, whether it was acknowledged.
    writes: Vec<(u64, u64, bool)>,
}

/// Every story in turn.
pub fn play() -> Outcome {
    a_write_at_one_survivor(BETA)?;
    a_write_at_one_survivor(GAMMA)?;
    for (first, second) in [(ALPHA, BETA), (BETA, ALPHA)] {
        for taker in [BETA, GAMMA] {
            a_third_comes((first, second), taker)?;
        }
    }
    a_third_takes_over_before_all_know_it()?;
    got_by_a_resync_and_away_for_another()
}

/// The primary dies with a write at one of two survivors; either takes over; the other gets, or
/// loses, the write by a resync of a part.
fn a_write_at_one_survivor(taker: usize) -> Outcome {
    let other = BETA + GAMMA - taker;
    for holder in [BETA, GAMMA] {
        let mut stage = Stage::of_three()?;
        stage.world.cut(ALPHA, BETA + GAMMA - holder);
        stage.ask(ALPHA, Asks::Write(3, false));
        stage.settle_without_decisions()?;
        stage.lose(ALPHA);
        // The removal it was about to propose reached nobody.
        stage.world.proposals.clear();
        stage.take_over(taker)?;
        stage.join(taker, other)?;
        let number = stage.world.node(taker).disk.live()[3];
        if (number != 0) != (taker == holder) {
            return Err(format!("the taker has {number}"));
        }
        stage.equal(&[taker, other])?;
        // The old primary comes back.
        stage.world.start(ALPHA);
        stage.world.learn(ALPHA);
        stage.join(taker, ALPHA)?;
        stage.equal(&[ALPHA, BETA, GAMMA])?;
        stage.only_parts()?;
    }
    Ok(())
}

/// Two are away; one comes back, gets by a resync what it missed, and takes over. What the third
/// missed is known to it.
fn got_by_a_resync_and_away_for_another() -> Outcome {
    let mut stage = Stage::of_three()?;
    stage.lose(GAMMA);
    stage.settle()?;
    stage.lose(BETA);
    stage.settle()?;
    stage.ask(ALPHA, Asks::Write(3, false));
    stage.settle()?;
    if stage.acknowledged() != 1 {
        return Err("the last member acknowledges".into());
    }
    stage.world.start(BETA);
    stage.world.learn(BETA);
    stage.join(ALPHA, BETA)?;
    stage.lose(ALPHA);
    stage.take_over(BETA)?;
    stage.world.start(GAMMA);
    stage.world.learn(GAMMA);
    stage.join(BETA, GAMMA)?;
    stage.equal(&[BETA, GAMMA])?;
    stage.only_parts()
}

/// Two nodes learn of a third one by one, each by a restart, and stay in sync meanwhile. The third
/// gets everything once. Then the primary dies with a write at one of the others.
fn a_third_comes((first, second): (usize, usize), taker: usize) -> Outcome {
    let mut stage = Stage::of_two()?;
    for node in [first, second] {
        stage.learn_of_third(node)?;
        stage.ask(ALPHA, Asks::Write(node as u64, false));
        stage.settle()?;
    }
    if stage.acknowledged() != 0b11 || !stage.full.is_empty() {
        return Err("the two do not stay in sync".into());
    }
    stage.world.start(GAMMA);
    stage.world.learn(GAMMA);
    stage.join(ALPHA, GAMMA)?;
    if stage.full != ["it is a new replica"] {
        return Err(format!("the third comes with {:?}", stage.full));
    }
    stage.full.clear();
    stage.world.connect(BETA, GAMMA);
    stage.settle()?;
    stage.world.cut(ALPHA, BETA);
    stage.ask(ALPHA, Asks::Write(3, false));
    stage.settle_without_decisions()?;
    stage.lose(ALPHA);
    stage.world.proposals.clear();
    stage.survive(taker)
}

/// A primary that knows a third takes it in while the second node does not know it yet; then it
/// dies, and the third takes over. What the second has of it is nothing to rely on.
fn a_third_takes_over_before_all_know_it() -> Outcome {
    let mut stage = Stage::of_two()?;
    stage.learn_of_third(ALPHA)?;
    stage.world.start(GAMMA);
    stage.world.learn(GAMMA);
    stage.join(ALPHA, GAMMA)?;
    stage.world.cut(ALPHA, GAMMA);
    stage.ask(ALPHA, Asks::Write(3, false));
    stage.settle_without_decisions()?;
    stage.lose(ALPHA);
    stage.world.proposals.clear();
    stage.take_over(GAMMA)?;
    stage.full.clear();
    stage.lose(BETA);
    stage.world.know_two(BETA, false);
    stage.world.start(BETA);
    stage.world.learn(BETA);
    stage.join(GAMMA, BETA)?;
    stage.equal(&[BETA, GAMMA])?;
    match stage.full.as_slice() {
        ["it is a new replica"] | ["it does not know this replica"] => Ok(()),
        other => Err(format!("they become equal by {other:?}")),
    }
}

impl Stage {
    /// Two members whose configuration names no third; alpha is primary.
    fn of_two() -> Result<Self, String> {
        let mut stage = Self::of_nobody();
        for node in [ALPHA, BETA] {
            stage.world.know_two(node, true);
            stage.world.start(node);
            stage.world.learn(node);
        }
        stage.settle()?;
        stage.take_over(ALPHA)?;
        stage.join(ALPHA, BETA)?;
        stage.full.clear();
        Ok(stage)
    }

    /// A node is restarted with a configuration that names the third; a primary keeps its office.
    fn learn_of_third(&mut self, node: usize) -> Outcome {
        self.lose(node);
        self.settle_without_decisions()?;
        self.world.know_two(node, false);
        self.world.start(node);
        self.world.learn(node);
        self.settle()?;
        if node == ALPHA {
            self.take_over(ALPHA)?;
        }
        self.join(ALPHA, BETA)
    }

    fn of_nobody() -> Self {
        let timing = Timing { join_grace: Span(0), ..Timing::default() };
        Self {
            world: World::new(64 * BLOCK_BYTES, timing),
            request: 0,
            partial_bytes: Vec::new(),
            full: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Three members, alpha is primary, nothing is under way.
    pub(super) fn of_three() -> Result<Self, String> {
        let mut stage = Self::of_nobody();
        for node in 0..NODES {
            stage.world.start(node);
            stage.world.learn(node);
        }
        stage.settle()?;
        stage.take_over(ALPHA)?;
        stage.join(ALPHA, BETA)?;
        stage.join(ALPHA, GAMMA)?;
        stage.world.connect(BETA, GAMMA);
        stage.settle()?;
        stage.full.clear();
        Ok(stage)
    }

    pub(super) fn ask(&mut self, node: usize, asks: Asks) {
        self.request += 1;
        let number = FIRST_NUMBER + self.request as u32;
        if let Asks::Write(block, _) = asks {
            self.writes.push((self.request, block, false));
        }
        self.world.ask(node, self.request, asks, number);
    }

    pub(super) fn lose(&mut self, node: usize) {
        self.world.kill(node);
    }

    /// Writes that were acknowledged, a bit each.
    pub(super) fn acknowledged(&self) -> u64 {
        self.writes.iter().fold(0, |all, write| all << 1 | u64::from(write.2))
    }

    /// One of two survivors takes over, unless it lost its power and the other did not; the other
    /// joins; what was acknowledged is there, and both are equal. Then the old primary returns.
    pub(super) fn survive(&mut self, taker: usize) -> Outcome {
        for node in [BETA, GAMMA] {
            if self.world.process(node).is_none() {
                self.world.start(node);
            }
            self.world.learn(node);
        }
        self.meet(BETA, GAMMA)?;
        let hindered = self
            .world
            .process(taker)
            .is_some_and(|process| process.replica.status(self.world.now).hindrance.is_some());
        let taker = if hindered { BETA + GAMMA - taker } else { taker };
        let other = BETA + GAMMA - taker;
        self.take_over(taker)?;
        self.join(taker, other)?;
        self.equal(&[taker, other])?;
        let live = self.world.node(taker).disk.live();
        for &(request, block, acknowledged) in &self.writes {
            let number = live[block as usize];
            if acknowledged && number < FIRST_NUMBER + request as u32 {
                return Err(format!("block {block} is {number} after the answer to {request}"));
            }
        }
        self.world.start(ALPHA);
        self.world.learn(ALPHA);
        self.join(taker, ALPHA)?;
        self.equal(&[ALPHA, BETA, GAMMA])?;
        self.only_parts()
    }

    /// Two secondaries meet.
    fn meet(&mut self, one: usize, other: usize) -> Outcome {
        for _ in 0..8 {
            self.settle()?;
            if self.world.peer_state(one, other) == "idle" {
                return Ok(());
            }
            if self.world.can_connect(one, other) {
                self.world.connect(one, other);
            }
        }
        Err("the survivors do not meet".into())
    }

    fn take_over(&mut self, node: usize) -> Outcome {
        self.settle()?;
        self.world.promote(node);
        self.settle()?;
        self.world.lease(node, true);
        self.settle()?;
        for other in 0..NODES {
            if self.world.process(other).is_some() {
                self.world.learn(other);
            }
        }
        self.settle()?;
        match self.world.serving() {
            Some(serving) if serving == node => Ok(()),
            other => Err(format!("{node} is told to take over, and {other:?} serves")),
        }
    }

    fn join(&mut self, leader: usize, follower: usize) -> Outcome {
        for _ in 0..8 {
            self.settle()?;
            if self.world.peer_state(leader, follower) == "current" {
                return Ok(());
            }
            if self.world.can_connect(leader, follower) {
                self.world.connect(leader, follower);
            }
        }
        Err(format!("{follower} does not join {leader}"))
    }

    fn settle(&mut self) -> Outcome {
        for _ in 0..ROUNDS_MAX {
            if !self.work() {
                if self.world.proposals.is_empty() {
                    return Ok(());
                }
                self.world.decide(0);
            }
            self.look();
        }
        Err("it never comes to rest".into())
    }

    fn settle_without_decisions(&mut self) -> Outcome {
        for _ in 0..ROUNDS_MAX {
            if !self.work() {
                return Ok(());
            }
            self.look();
        }
        Err("it never comes to rest".into())
    }

    fn work(&mut self) -> bool {
        if let Some(node) = (0..NODES).find(|&node| !self.world.node(node).ops.is_empty()) {
            self.world.finish(node, 0);
            return true;
        }
        let links = (0..NODES * NODES).map(|at| (at / NODES, at % NODES));
        let mut links = links.filter(|&(to, from)| !self.world.towards[to][from].is_empty());
        let next = links.next();
        if let Some((to, from)) = next {
            self.world.deliver(to, from);
        }
        next.is_some()
    }

    pub(super) fn look(&mut self) {
        for event in std::mem::take(&mut self.world.happened) {
            match event {
                Happened::Resync(None, bytes) => self.partial_bytes.push(bytes),
                Happened::Resync(Some(why), _) => self.full.push(why),
                Happened::Replied(_, request, result) => {
                    let write = self.writes.iter_mut().find(|write| write.0 == request);
                    write.into_iter().for_each(|write| write.2 = result.is_ok());
                }
                Happened::Opened(..) => {}
            }
        }
    }

    fn equal(&self, nodes: &[usize]) -> Outcome {
        let first = self.world.node(nodes[0]).disk.live();
        for &node in nodes {
            let live = self.world.node(node).disk.live();
            if let Some(at) = first.iter().zip(live).position(|(one, other)| one != other) {
                let (here, there) = (first[at], live[at]);
                return Err(format!("block {at} is {here} on one member, {there} on another"));
            }
        }
        Ok(())
    }

    fn only_parts(&self) -> Outcome {
        match self.full.first() {
            Some(why) => Err(format!("a full resync: {why}")),
            None => Ok(()),
        }
    }
}

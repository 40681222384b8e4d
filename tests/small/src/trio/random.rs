//! Worlds by chance: clients, faults of processes, machines and links, takeovers, from a seed; then
//! the faults stop, all three become members, and their disks must be equal.

use replicator_core::block::ReplicaId;
use replicator_core::limits::EXTENT_BYTES;
use replicator_core::{Command, Span, Timing};

use super::disk::BLOCK_BYTES;
use super::oracle::Oracle;
use super::world::{Asks, Happened, LOG_EXTENTS, NODES, World};

/// What a run was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Writes that were asked for.
    pub writes: usize,
    /// Offices that were taken.
    pub offices: usize,
    /// Resyncs of a part.
    pub partial: usize,
    /// Resyncs of all.
    pub full: usize,
    /// Those of replicas that had been here before.
    pub full_again: usize,
}

impl Seen {
    /// Adds another run.
    pub fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.offices += other.offices;
        self.partial += other.partial;
        self.full += other.full;
        self.full_again += other.full_again;
    }
}

const STEPS_MAX: usize = 400_000;
/// Rounds of help until three members are expected.
const ROUNDS_MAX: usize = 500;

/// A sequence of numbers (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }
}

struct Run {
    world: World,
    oracle: Oracle,
    chance: Chance,
    seen: Seen,
    /// Blocks that clients use.
    blocks: Vec<u64>,
    request: u64,
    number: u32,
    /// Faults still to come.
    faults: usize,
    faults_in_all: usize,
    loses_power: bool,
    /// This node stays away until so many steps are done.
    away: Option<(usize, usize)>,
    steps: usize,
}

/// Runs a seed; with `story` an error comes with the last of what happened.
pub fn run(seed: u64, story: bool) -> Result<Seen, String> {
    let mut run = Run::new(seed);
    if story {
        run.world.story = Some(Vec::new());
    }
    let result = run.play();
    match result {
        Ok(()) => Ok(run.seen),
        Err(why) => {
            let lines = run.world.story.unwrap_or_default();
            let from = lines.len().saturating_sub(STORY_MAX);
            Err(format!("{}\nseed {seed}: {why}", lines[from..].join("\n")))
        }
    }
}

const STORY_MAX: usize = 4000;

type Outcome = Result<(), String>;

impl Run {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x1234_5678_9abc_def1));
        // Few extents: everything stays hot. More than the log holds: extents come and go.
        let is_wide = chance.one_in(3);
        let extents = if is_wide { u64::from(LOG_EXTENTS) + 24 } else { 1 + chance.next() % 3 };
        let each = if is_wide { 1 } else { 1 + chance.next() % 3 };
        let per_extent = EXTENT_BYTES / BLOCK_BYTES;
        let blocks = (0..extents)
            .flat_map(|extent| (0..each).map(move |at| extent * per_extent + at * 5))
            .collect();
        let faults = 1 + chance.below(8);
        let timing = Timing {
            join_grace: Span(0),
            power_loss_wait: Span::from_ms(5_000),
            rejoin_delay: Span::from_ms(20),
            rejoin_delay_max: Span::from_ms(100),
            ..Timing::default()
        };
        Self {
            world: World::new(extents * EXTENT_BYTES, timing),
            oracle: Oracle::default(),
            seen: Seen::default(),
            blocks,
            request: 0,
            number: 0,
            faults,
            faults_in_all: faults,
            loses_power: chance.one_in(2),
            away: None,
            steps: 0,
            chance,
        }
    }

    fn play(&mut self) -> Outcome {
        for node in 0..NODES {
            self.world.start(node);
        }
        self.converge()?;
        self.seen = Seen::default();
        let steps = 200 + self.chance.below(1500);
        // In a wide world most extents become hot before anything else happens.
        let calm = if self.blocks.len() > 20 { 1500 } else { 0 };
        let stays_away = self.chance.one_in(3);
        for step in 0..steps + calm {
            self.steps = step;
            if step == calm && stays_away {
                self.send_away(calm + steps);
            }
            self.step(step < calm)?;
            if step % 512 == 511 && self.away.is_none() && self.chance.one_in(3) {
                self.converge()?;
            }
        }
        self.away = None;
        self.converge()?;
        if self.faults_in_all == 1 && self.seen.full_again > 0 {
            return Err("R13: one fault, and a full resync".into());
        }
        Ok(())
    }

    fn watch(&mut self) -> Outcome {
        let happened = std::mem::take(&mut self.world.happened);
        for event in &happened {
            match event {
                Happened::Opened(..) => self.seen.offices += 1,
                Happened::Resync(None, _) => self.seen.partial += 1,
                Happened::Resync(Some(why), _) => {
                    self.seen.full += 1;
                    self.seen.full_again += usize::from(*why != "it is a new replica");
                }
                Happened::Replied(..) => {}
            }
        }
        self.oracle.watch(&self.world, &happened)
    }

    // ------------------------------------------------------------------ by chance

    fn step(&mut self, calm: bool) -> Outcome {
        if !calm && self.faults > 0 && self.chance.one_in(40) {
            self.faults -= 1;
            self.fault();
        }
        match self.chance.below(16) {
            0..=5 => self.deliver_one(),
            6..=10 => self.finish_one(),
            11 | 12 => self.ask_one(),
            13 => self.decide_one(),
            14 => self.automate(calm),
            _ => self.world.wait(5),
        }
        self.watch()
    }

    /// One machine is gone for a long time.
    fn send_away(&mut self, until: usize) {
        let node = self.chance.below(NODES);
        self.world.kill(node);
        self.oracle.answers_lost(node);
        self.away = Some((node, until - self.chance.below(200)));
        self.faults += 2;
        self.faults_in_all += 2;
    }

    fn is_away(&self, node: usize) -> bool {
        self.away.is_some_and(|(away, until)| away == node && self.steps < until)
    }

    fn deliver_one(&mut self) {
        let at = self.chance.below(NODES * NODES);
        let links = (0..NODES * NODES).map(|n| (n + at) % (NODES * NODES));
        let mut links = links.map(|n| (n / NODES, n % NODES));
        let full = links.find(|&(to, from)| !self.world.towards[to][from].is_empty());
        if let Some((to, from)) = full {
            self.world.deliver(to, from);
        }
    }

    fn finish_one(&mut self) {
        let first = self.chance.below(NODES);
        let busy = (0..NODES).map(|n| (n + first) % NODES);
        let mut busy = busy.filter(|&node| !self.world.node(node).ops.is_empty());
        if let Some(node) = busy.next() {
            let number = self.chance.below(self.world.node(node).ops.len());
            self.world.finish(node, number);
        }
    }

    fn decide_one(&mut self) {
        if !self.world.proposals.is_empty() {
            let at = self.chance.below(self.world.proposals.len());
            self.world.decide(at);
        }
    }

    fn ask_one(&mut self) {
        let open = (0..NODES)
            .find(|&node| self.world.process(node).is_some_and(|p| p.device.is_some() && p.lease));
        let Some(node) = open else { return };
        let block = self.blocks[self.chance.below(self.blocks.len())];
        let kind = self.chance.below(12);
        let asks = match kind {
            0 => Asks::Flush,
            1 => Asks::Trim(block),
            2..=3 => Asks::Read(block),
            4 => Asks::Write(block, true),
            _ => Asks::Write(block, false),
        };
        let may = match asks {
            Asks::Flush => self.oracle.under_way() == 0,
            _ => self.oracle.is_free(block) && self.oracle.under_way() < 4,
        };
        if may {
            self.ask(node, asks);
        }
    }

    fn ask(&mut self, node: usize, asks: Asks) {
        self.request += 1;
        self.number += 1;
        self.seen.writes += usize::from(matches!(asks, Asks::Write(..)));
        self.oracle.asked(&self.world, node, self.request, asks, self.number);
        self.world.ask(node, self.request, asks, self.number);
    }

    /// What the automation does: connects, tells of the register, starts, promotes.
    fn automate(&mut self, eager: bool) {
        let node = self.chance.below(NODES);
        let other = (node + 1) % NODES;
        match self.chance.below(if eager { 2 } else { 8 }) {
            0 if self.world.can_connect(node, other) => self.world.connect(node, other),
            0..=2 if self.world.process(node).is_some() => self.world.learn(node),
            3 if self.world.process(node).is_none() && !self.is_away(node) => {
                self.world.start(node);
            }
            4 => self.grant(node),
            5 => self.promote(node),
            _ => {}
        }
    }

    /// The lease follows the register.
    fn grant(&mut self, node: usize) {
        let Some(process) = self.world.process(node) else { return };
        let status = process.replica.status(self.world.now);
        let named = self.world.register.primary == Some(ReplicaId(node as u128 + 1))
            && self.world.register.tenure == status.register.tenure;
        let in_office = matches!(status.role, "promoting" | "primary" | "demoting");
        if process.lease != (named && in_office) {
            self.world.lease(node, named && in_office);
        }
    }

    fn promote(&mut self, node: usize) {
        let held = self.world.register.primary.is_some_and(|primary| {
            let primary = primary.0 as usize - 1;
            primary != node && self.world.process(primary).is_some_and(|process| process.lease)
        });
        if !held && self.world.process(node).is_some_and(|p| p.device.is_none()) {
            self.world.promote(node);
        }
    }

    fn fault(&mut self) {
        let node = self.chance.below(NODES);
        let primary = self.world.serving();
        // The primary is hit more often than the others.
        let node = primary.filter(|_| self.chance.one_in(2)).unwrap_or(node);
        let other = (node + 1 + self.chance.below(NODES - 1)) % NODES;
        let runs = self.world.process(node).is_some();
        match self.chance.below(8) {
            0 | 1 if runs => {
                self.world.kill(node);
                self.oracle.answers_lost(node);
            }
            2 | 3 if runs && self.loses_power => self.lose_power(node),
            4 if runs && self.world.process(node).is_some_and(|process| process.lease) => {
                // The lease is lost: a partition from the majority.
                self.world.lease(node, false);
            }
            5 if runs => self.world.order(node, Command::Demote),
            6 if runs && self.chance.one_in(3) => self.world.order(node, Command::Stop),
            _ => {
                if self.world.is_connected(node, other) {
                    self.world.cut(node, other);
                    for (to, from) in [(node, other), (other, node)] {
                        if self.chance.one_in(2) && self.world.may_lose(to, from) {
                            self.world.lose_parcels(to, from);
                        }
                    }
                }
            }
        }
    }

    fn lose_power(&mut self, node: usize) {
        let chance = &mut self.chance;
        let odds = 1 + chance.below(3);
        self.world.cut_power(node, || chance.one_in(odds));
        self.oracle.answers_lost(node);
        self.oracle.power_lost(node);
    }

    // ------------------------------------------------------------------ at rest

    /// No faults: everybody runs, there is a primary, and all three become members.
    fn converge(&mut self) -> Outcome {
        for round in 0..ROUNDS_MAX {
            self.settle()?;
            if self.is_whole() {
                return self.oracle.check_equal(&self.world);
            }
            self.help(round);
            self.watch()?;
        }
        let states: String = (0..NODES).map(|node| self.describe(node)).collect();
        Err(format!("(d) no three members: {:?}{states}", self.world.register))
    }

    fn describe(&self, node: usize) -> String {
        let Some(process) = self.world.process(node) else { return "\n  off".into() };
        let status = process.replica.status(self.world.now);
        let peers: Vec<_> = status.peers.iter().map(|p| (&p.node, p.state, &p.why)).collect();
        let (hindrance, waits) = (&status.hindrance, &status.waits);
        format!("\n  {} {peers:?} {hindrance:?} {waits:?}", status.role)
    }

    fn settle(&mut self) -> Outcome {
        for _ in 0..STEPS_MAX {
            if self.world.is_quiet() {
                return Ok(());
            }
            match self.chance.below(3) {
                0 => self.decide_one(),
                1 => self.deliver_one(),
                _ => self.finish_one(),
            }
            self.watch()?;
        }
        Err("(d) it never comes to rest".into())
    }

    fn is_whole(&self) -> bool {
        self.world.serving().is_some_and(|primary| {
            self.world.register.set.len() == NODES
                && self.oracle.under_way() == 0
                && (0..NODES)
                    .filter(|&other| other != primary)
                    .all(|other| self.world.peer_state(primary, other) == "current")
        })
    }

    fn help(&mut self, round: usize) {
        for node in 0..NODES {
            if self.world.process(node).is_none() {
                self.world.start(node);
            }
            self.world.learn(node);
            self.grant(node);
            let other = (node + 1) % NODES;
            if self.world.can_connect(node, other) {
                self.world.connect(node, other);
            }
        }
        if self.world.serving().is_none() && self.world.proposals.is_empty() {
            self.promote(round % NODES);
        }
        self.world.wait(100);
    }
}

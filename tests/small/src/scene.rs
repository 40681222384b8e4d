//! The small worlds that are searched: a client's script, so many faults, so many commands of an
//! operator; and everything that can happen next in a state of such a world.

use std::hash::{Hash, Hasher};

use replicator_core::block::ByteRange;
use replicator_core::{Command, DiskFailure, Span, Timing};

use crate::hash::Fast;
use crate::oracle::{self, Oracle};
use crate::pair::{BLOCK_BYTES, ClientAsks, NAMES, Pair, Parcel};
use crate::story;

/// Two blocks.
const DATA_BYTES: u64 = 2 * BLOCK_BYTES;

/// A small world.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// What the client asks, in this order, each at any time.
    pub client: &'static [Ask],
    /// How often the daemon of each node may be killed.
    pub kills: [u8; 2],
    /// How often each machine may lose its power.
    pub power: [u8; 2],
    /// How many operations of each disk may fail (EIO).
    pub fails: [u8; 2],
    /// How often the link may be cut.
    pub cuts: u8,
    /// How often the two may be connected again.
    pub connects: u8,
    /// What the operator may say, in this order, each at any time.
    pub operator: &'static [Order],
    /// Part of the short run.
    pub is_short: bool,
}

/// What a client asks.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// Write a block.
    Write(u64),
    /// Write a block durably.
    Fua(u64),
    /// Give a block back.
    Trim(u64),
    /// Flush.
    Flush,
    /// Read block 0.
    Read,
}

/// What an operator says.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Promote a node.
    Promote(usize),
    /// Promote a node with `--alone`.
    Alone(usize),
    /// Promote a node with `--old-primary-is-off`, when that is true and the node is a member.
    Forced(usize),
    /// Demote a node.
    Demote(usize),
}

/// Something that can happen next.
#[expect(missing_docs, reason = "the fields are nodes, numbers of operations, and bits of writes")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Deliver(usize),
    LoseParcels(usize),
    Finish(usize, usize),
    Fail(usize, usize),
    Ask,
    Order,
    Connect,
    Cut,
    Kill(usize),
    CutPower { node: usize, kept: u64, torn: u64 },
    Start(usize),
}

/// One state of a world.
#[derive(Clone, Debug)]
pub struct State {
    /// The machines.
    pub pair: Pair,
    oracle: Oracle,
    asked: usize,
    ordered: usize,
    kills: [u8; 2],
    power: [u8; 2],
    fails: [u8; 2],
    cuts: u8,
    connects: u8,
}

impl State {
    /// Both run and are members, alpha is primary.
    pub fn first(scene: &Scene) -> Self {
        // Time stands still: who is lost is lost by the link, and nobody waits for a grace.
        // Nor is anybody held back, which would only end in time.
        let timing = Timing { join_grace: Span(0), rejoin_delay: Span(0), ..Timing::default() };
        let mut pair = Pair::new(DATA_BYTES, timing, false);
        for node in 0..2 {
            pair.start(node);
        }
        settle(&mut pair);
        let alone = Order::Alone(0).command();
        pair.order(0, alone);
        settle(&mut pair);
        pair.connect();
        settle(&mut pair);
        pair.happened.clear();
        let Scene { kills, power, fails, cuts, connects, .. } = *scene;
        let oracle = Oracle::default();
        Self { pair, oracle, asked: 0, ordered: 0, kills, power, fails, cuts, connects }
    }

    /// A hash that tells it from every other state.
    pub fn digest(&self) -> u64 {
        let Self { pair, oracle, asked, ordered, kills, power, fails, cuts, connects } = self;
        let mut hasher = Fast::default();
        (oracle, asked, ordered, kills, power, fails, cuts, connects).hash(&mut hasher);
        hasher.write_u64(pair.digest());
        hasher.finish()
    }

    /// Everything that can happen now.
    pub fn actions(&self, scene: &Scene, out: &mut Vec<Action>) {
        let pair = &self.pair;
        for node in 0..2 {
            let queue = &pair.towards[node];
            if !queue.is_empty() {
                out.push(Action::Deliver(node));
            }
            let lost = queue.iter().any(|parcel| matches!(parcel, Parcel::Closed(_)));
            if lost && queue.iter().any(|parcel| matches!(parcel, Parcel::Frame(..))) {
                out.push(Action::LoseParcels(node));
            }
            let ops = 0..pair.node(node).ops.len();
            out.extend(ops.clone().map(|number| Action::Finish(node, number)));
            if self.fails[node] > 0 {
                out.extend(ops.map(|number| Action::Fail(node, number)));
            }
        }
        if self.asked < scene.client.len() && self.serving().is_some() {
            out.push(Action::Ask);
        }
        if let Some(order) = scene.operator.get(self.ordered)
            && self.makes_sense(*order)
        {
            out.push(Action::Order);
        }
        if self.connects > 0 && pair.can_connect() {
            out.push(Action::Connect);
        }
        let connected = |node: usize| pair.process(node).is_some_and(|p| p.session.is_some());
        if self.cuts > 0 && !pair.is_cut && connected(0) && connected(1) {
            out.push(Action::Cut);
        }
        for node in 0..2 {
            self.faults(node, out);
        }
    }

    fn faults(&self, node: usize, out: &mut Vec<Action>) {
        let pair = &self.pair;
        let Some(_) = pair.process(node) else {
            // Who was told that the other is off has to be told the truth.
            let forced = pair.process(1 - node).is_some_and(|other| {
                let promoting = other.replica.status(pair.now).role == "promoting";
                promoting && other.session.is_none()
            });
            if !forced {
                out.push(Action::Start(node));
            }
            return;
        };
        if self.kills[node] > 0 {
            out.push(Action::Kill(node));
        }
        if self.power[node] > 0 {
            let (writes, metas) = pair.at_risk(node);
            for kept in 0..1u64 << writes {
                for fate in 0..3u64.pow(metas as u32) {
                    let (mut kept, mut torn, mut fate) = (kept, 0, fate);
                    for meta in 0..metas {
                        let bit = 1 << (writes + meta);
                        kept |= if fate % 3 == 1 { bit } else { 0 };
                        torn |= if fate % 3 == 2 { bit } else { 0 };
                        fate /= 3;
                    }
                    out.push(Action::CutPower { node, kept, torn });
                }
            }
        }
    }

    fn serving(&self) -> Option<usize> {
        (0..2).find(|&node| self.pair.process(node).is_some_and(|p| p.device.is_some()))
    }

    fn makes_sense(&self, order: Order) -> bool {
        let role = |node: usize| {
            let process = self.pair.process(node)?;
            Some(process.replica.status(self.pair.now).role)
        };
        match order {
            Order::Promote(node) => role(node) == Some("secondary"),
            Order::Alone(node) => role(node) == Some("secondary") && role(1 - node).is_none(),
            Order::Demote(node) => role(node) == Some("primary"),
            Order::Forced(node) => {
                role(node) == Some("secondary") && role(1 - node).is_none() && self.is_member(node)
            }
        }
    }

    /// Whether the newest register that is durable anywhere names this node a member.
    fn is_member(&self, node: usize) -> bool {
        let all = (0..2).flat_map(|node| self.pair.node(node).disk.superblocks()).flatten();
        let newest = all.map(|superblock| superblock.register).max_by_key(|state| state.order());
        let replica = replicator_core::block::ReplicaId(node as u128 + 1);
        newest.is_some_and(|state| state.contains(replica))
    }

    /// Lets something happen; an error names the promise that was broken.
    pub fn take(&mut self, scene: &Scene, action: Action) -> Result<(), String> {
        let pair = &mut self.pair;
        match action {
            Action::Deliver(node) => pair.deliver(node),
            Action::LoseParcels(node) => pair.lose_parcels(node),
            Action::Finish(node, number) => pair.finish(node, number, Ok(())),
            Action::Fail(node, number) => {
                self.fails[node] -= 1;
                pair.finish(node, number, Err(DiskFailure::Io(5)));
            }
            Action::Ask => {
                let node = self.serving().expect("an open device");
                let (asks, letter) = (scene.client[self.asked].asks(), letter(self.asked));
                self.oracle.asked(letter, asks);
                self.pair.ask(node, u64::from(letter), asks, letter);
                self.asked += 1;
            }
            Action::Order => {
                let order = scene.operator[self.ordered];
                pair.order(order.node(), order.command());
                self.ordered += 1;
            }
            Action::Connect => {
                self.connects -= 1;
                pair.connect();
            }
            Action::Cut => {
                self.cuts -= 1;
                pair.cut();
            }
            Action::Kill(node) => {
                self.kills[node] -= 1;
                self.lose_answers(node);
                self.pair.kill(node);
            }
            Action::CutPower { node, kept, torn } => {
                self.power[node] -= 1;
                self.lose_answers(node);
                self.oracle.power_lost(node);
                self.pair.cut_power(node, kept, torn);
            }
            Action::Start(node) => pair.start(node),
        }
        let happened = std::mem::take(&mut self.pair.happened);
        self.oracle.watch(&self.pair, &happened)
    }

    fn lose_answers(&mut self, node: usize) {
        if self.pair.process(node).is_some_and(|process| !process.requests.is_empty()) {
            self.oracle.answers_lost();
        }
    }

    /// An action as a line for people.
    pub fn describe(&self, scene: &Scene, action: Action) -> String {
        match action {
            Action::Deliver(node) => {
                let next = self.pair.towards[node].front().map(story::brief).unwrap_or_default();
                format!("{} gets {next}", NAMES[node])
            }
            Action::LoseParcels(node) => format!("{} loses frames", NAMES[node]),
            Action::Finish(node, number) | Action::Fail(node, number) => {
                let there = self.pair.node(node);
                let job = &there.ops[number].job;
                let place = story::job_range(job).map(story::place).unwrap_or_default();
                let how = if matches!(action, Action::Fail(..)) { "fails" } else { "done" };
                format!("{} {how} {} {place}", NAMES[node], story::job_kind(job, there))
            }
            Action::Ask => {
                let name = char::from(letter(self.asked));
                format!("a client asks {name}: {:?}", scene.client[self.asked])
            }
            Action::Order => format!("the operator says {:?}", scene.operator[self.ordered]),
            Action::Connect => "connect".into(),
            Action::Cut => "cut".into(),
            Action::Kill(node) => format!("{} is killed", NAMES[node]),
            Action::CutPower { node, kept, torn } => {
                let (writes, metas) = self.pair.at_risk(node);
                let bits = |bits: u64, from: usize, count: usize| {
                    let all = (from..from + count).filter(|&at| bits >> at & 1 == 1);
                    all.map(|at| (at - from + 1).to_string()).collect::<Vec<_>>().join(",")
                };
                format!(
                    "{} loses power; of {writes} writes kept [{}], of {metas} of metadata kept \
                     [{}], torn [{}]",
                    NAMES[node],
                    bits(kept, 0, writes),
                    bits(kept, writes, metas),
                    bits(torn, writes, metas)
                )
            }
            Action::Start(node) => format!("start {}", NAMES[node]),
        }
    }
}

fn letter(number: usize) -> u8 {
    oracle::FIRST_LETTER + number as u8
}

impl Ask {
    fn asks(self) -> ClientAsks {
        let block = |number: u64| ByteRange::new(number * BLOCK_BYTES, BLOCK_BYTES);
        match self {
            Self::Write(number) => ClientAsks::Write(block(number), false),
            Self::Fua(number) => ClientAsks::Write(block(number), true),
            Self::Trim(number) => ClientAsks::Trim(block(number)),
            Self::Flush => ClientAsks::Flush,
            Self::Read => ClientAsks::Read(block(0)),
        }
    }
}

impl Order {
    fn node(self) -> usize {
        match self {
            Self::Promote(node) | Self::Alone(node) | Self::Forced(node) | Self::Demote(node) => {
                node
            }
        }
    }

    fn command(self) -> Command {
        let promote = |old_primary_is_off, alone| Command::Promote {
            old_primary_is_off,
            allow_data_loss: false,
            alone,
        };
        match self {
            Self::Promote(_) => promote(false, false),
            Self::Alone(_) => promote(false, true),
            Self::Forced(_) => promote(true, false),
            Self::Demote(_) => Command::Demote,
        }
    }
}

fn settle(pair: &mut Pair) {
    loop {
        if let Some(node) = (0..2).find(|&node| !pair.node(node).ops.is_empty()) {
            pair.finish(node, 0, Ok(()));
        } else if let Some(node) = (0..2).find(|&node| !pair.towards[node].is_empty()) {
            pair.deliver(node);
        } else {
            return;
        }
    }
}

const NOTHING: Scene = Scene {
    name: "",
    about: "",
    client: &[],
    kills: [0, 0],
    power: [0, 0],
    fails: [0, 0],
    cuts: 0,
    connects: 0,
    operator: &[],
    is_short: true,
};

/// All scenes.
pub const SCENES: &[Scene] = &[
    Scene {
        name: "writes",
        about: "overlapping writes, a read, a flush, FUA; nothing goes wrong",
        client: &[Ask::Write(0), Ask::Write(0), Ask::Read, Ask::Flush, Ask::Fua(1)],
        ..NOTHING
    },
    Scene {
        name: "cut",
        about: "the link goes at any moment and comes back: R3, R4, R13",
        client: &[Ask::Write(0), Ask::Write(1)],
        cuts: 1,
        connects: 1,
        ..NOTHING
    },
    Scene {
        name: "cut-one-block",
        about: "the same with writes and a trim of one block: R2d, R4f, R17",
        client: &[Ask::Write(0), Ask::Write(0), Ask::Trim(0)],
        cuts: 1,
        connects: 1,
        ..NOTHING
    },
    Scene {
        name: "cut-without-power",
        about: "a resync in the middle of which the secondary loses its power: R8, R10",
        client: &[Ask::Write(0)],
        cuts: 1,
        power: [0, 1],
        connects: 2,
        ..NOTHING
    },
    Scene {
        name: "secondary-killed",
        about: "the secondary's process dies and comes back",
        client: &[Ask::Write(0), Ask::Write(0)],
        kills: [0, 1],
        connects: 1,
        ..NOTHING
    },
    Scene {
        name: "primary-killed",
        about: "the primary's process dies, comes back and goes on: R6a, R5c, R9, R14",
        client: &[Ask::Write(0), Ask::Write(1), Ask::Read],
        kills: [1, 0],
        connects: 2,
        ..NOTHING
    },
    Scene {
        name: "primary-killed-twice",
        about: "what it said after the first time is kept when the other takes over: R5c",
        client: &[Ask::Write(0), Ask::Read],
        kills: [2, 0],
        connects: 1,
        operator: &[Order::Forced(1)],
        ..NOTHING
    },
    Scene {
        name: "secondary-without-power",
        about: "the secondary loses its power and what was volatile: R7, R8",
        client: &[Ask::Write(0), Ask::Flush],
        power: [0, 1],
        connects: 1,
        ..NOTHING
    },
    Scene {
        name: "primary-without-power",
        about: "the primary loses its power; it or the other one is promoted: R6a, R11a",
        client: &[Ask::Write(0), Ask::Flush],
        power: [1, 0],
        connects: 2,
        operator: &[Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "both-without-power",
        about: "what was flushed is there whoever is promoted: R7",
        client: &[Ask::Write(0), Ask::Flush],
        power: [1, 1],
        connects: 1,
        operator: &[Order::Promote(1)],
        is_short: false,
        ..NOTHING
    },
    Scene {
        name: "fua-without-power",
        about: "the same for a write with FUA: R7",
        client: &[Ask::Fua(0)],
        power: [1, 1],
        connects: 1,
        operator: &[Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "switchover",
        about: "the office moves in the middle of writes: R6c, R2c",
        client: &[Ask::Write(0), Ask::Write(0)],
        connects: 2,
        operator: &[Order::Demote(0), Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "switchover-cut",
        about: "the office is asked for by one that missed a write: R11a, R6c",
        client: &[Ask::Write(0)],
        cuts: 1,
        connects: 2,
        operator: &[Order::Demote(0), Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "switchover-power",
        about: "a release is durable on every member: R6c",
        client: &[Ask::Write(0)],
        power: [1, 1],
        connects: 1,
        operator: &[Order::Demote(0), Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "take-over",
        about: "the primary dies, the other is promoted by force, the old one returns: R11d, R2",
        client: &[Ask::Write(0), Ask::Write(0)],
        kills: [1, 0],
        connects: 1,
        operator: &[Order::Forced(1)],
        ..NOTHING
    },
    Scene {
        name: "take-over-cut",
        about: "the link goes before the primary does: R1, R3",
        client: &[Ask::Write(0)],
        kills: [1, 0],
        cuts: 1,
        operator: &[Order::Forced(1)],
        ..NOTHING
    },
    Scene {
        name: "take-over-return",
        about: "the primary dies while the other one joins again: R4",
        client: &[Ask::Write(0), Ask::Write(1)],
        kills: [1, 0],
        cuts: 2,
        connects: 1,
        operator: &[Order::Forced(1)],
        is_short: false,
        ..NOTHING
    },
    Scene {
        name: "take-over-power",
        about: "the taker loses its power when it serves alone: R2c",
        client: &[Ask::Write(0)],
        kills: [1, 0],
        power: [0, 1],
        operator: &[Order::Forced(1), Order::Alone(1)],
        ..NOTHING
    },
    Scene {
        name: "shrink-power",
        about: "the primary goes on alone and loses its power: R3",
        client: &[Ask::Write(0)],
        kills: [0, 1],
        power: [1, 0],
        operator: &[Order::Alone(0)],
        ..NOTHING
    },
    Scene {
        name: "primary-fails",
        about: "an operation of the primary's disk fails: R16",
        client: &[Ask::Write(0), Ask::Read, Ask::Flush],
        fails: [1, 0],
        connects: 1,
        operator: &[Order::Promote(1)],
        ..NOTHING
    },
    Scene {
        name: "secondary-fails",
        about: "an operation of the secondary's disk fails: R16, R8",
        client: &[Ask::Write(0), Ask::Flush],
        fails: [0, 1],
        connects: 1,
        ..NOTHING
    },
    Scene {
        name: "join-power",
        about: "a replica joins in the middle of writes, then both lose their power: R4c",
        client: &[Ask::Write(0), Ask::Flush],
        cuts: 1,
        power: [1, 1],
        connects: 2,
        operator: &[Order::Promote(1)],
        is_short: false,
        ..NOTHING
    },
    Scene {
        name: "long-cut",
        about: "two cuts among four requests",
        client: &[Ask::Write(0), Ask::Write(1), Ask::Write(0), Ask::Flush],
        cuts: 2,
        connects: 2,
        is_short: false,
        ..NOTHING
    },
    Scene {
        name: "long-kills",
        about: "either process dies, once each, and the link goes once",
        client: &[Ask::Write(0), Ask::Write(0), Ask::Read],
        kills: [1, 1],
        cuts: 1,
        connects: 3,
        operator: &[Order::Promote(1)],
        is_short: false,
        ..NOTHING
    },
];

//! Trouble that waits for the moment at which it hurts most: between a proposal and its commit,
//! behind an acknowledgement, in the middle of a resync (D9, D10, P8).

use history::draw::Draw;
use replicator_core::metadata::Superblock;
use replicator_core::{Command, LinkLoss, Note};

use crate::disk::Job;
use crate::host::Failing;
use crate::tell;
use crate::world::{Event, MS, World};

/// What an ambush waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A change of the register is committed.
    Commit,
    /// A peer is ready to join: its membership is about to be proposed (R4e).
    Growth,
    /// A resync begins.
    ResyncStart,
    /// A session is agreed on.
    Joined,
    /// A session is lost.
    Lost,
    /// A role changes.
    Role,
    /// A promotion begins.
    Promotion,
    /// An office was released: a switchover is half done.
    Release,
    /// A change of the register is on its way to the disk (D9, D18).
    Proposal,
    /// A client's write or flush is acknowledged.
    Acknowledged,
    /// A client makes a request.
    Requested,
    /// A follower hears that the volume grows.
    ResizeAsked,
    /// The primary hears that a follower has the new size.
    ResizeAnswered,
    /// A replica has grown.
    Resized,
}

/// What happens then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strike {
    /// The node that serves falls.
    Primary {
        /// Whether its machine loses its power; else its process is killed.
        power: bool,
    },
    /// The other one falls.
    Secondary {
        /// As for the primary.
        power: bool,
    },
    /// Both lose their power.
    Both,
    /// The other one loses its power and is back at once; the node that serves falls for long. So
    /// the only copy of what is not flushed is gone, and flushed data must be enough (R11a).
    Doom,
    /// The process of the node that serves is killed and started again at once.
    Blink,
    /// The disk of the node that serves is slow, and the next write on it fails: requests are under
    /// way when the office is lost (R15).
    Sicken,
    /// The connection is reset.
    Reset,
    /// The process of this node is killed, whatever it is.
    Kill {
        /// Which.
        node: usize,
    },
    /// The other one loses its power and is back before anybody notices (D17).
    Flicker,
    /// Nothing passes for a while.
    Cut,
    /// A cut is over (P8).
    Heal,
    /// The two nodes die in turn, so many times more, first the one that serves or the other (D10).
    Turns {
        /// How many times more.
        left: u64,
        /// Whether the one that serves is next.
        primary: bool,
    },
    /// Fail over, so many times more (D19).
    PingPong {
        /// How many times more.
        left: u64,
    },
    /// The disk of the node that does not serve hangs.
    Hang,
    /// This node releases the office, and takes it up again soon.
    GiveBack {
        /// Which.
        node: usize,
    },
    /// This node is to take the office, if that is free.
    TakeUp {
        /// Which.
        node: usize,
    },
}

/// An ambush that is laid.
#[derive(Clone, Debug)]
pub struct Ambush {
    waits_for: Moment,
    /// Strikes with the longest delay of each, in microseconds.
    strikes: Vec<(Strike, u64)>,
    /// Chance of its own: while it waits, nothing else changes.
    draw: Draw,
}

impl Ambush {
    /// Lays one: a known bad combination, or anything at any moment.
    pub fn draw(draw: &mut Draw) -> Self {
        if draw.chance(40) { Self::draw_classic(draw) } else { Self::draw_any(draw) }
    }

    /// What a rule is there for, so that a broken one shows in some hundred seeds.
    fn draw_classic(draw: &mut Draw) -> Self {
        let power = draw.chance(50);
        let over = Strike::PingPong { left: 1 };
        let (waits_for, strikes) = match draw.below(9) {
            // R4c, R8: the new member loses its caches, and the old one is gone.
            0 | 1 => (Moment::Growth, vec![(Strike::Doom, 200_000)]),
            2 => (Moment::Commit, vec![(Strike::Doom, 20_000)]),
            // R4b, R4e: cut off in the middle of a growth, and the other one takes over.
            3 => (Moment::Growth, vec![(Strike::Cut, 1_000), (over, 300_000)]),
            // R5c, R9: what differs after a crash is read, and the other one takes over.
            4 | 5 => (
                Moment::Requested,
                vec![(Strike::Cut, 1_000), (Strike::Blink, 100_000), (over, 900_000)],
            ),
            // R2c: the other one takes over while what it was sent hangs on its disk.
            6 | 7 => (
                Moment::Requested,
                vec![(Strike::Hang, 1_000), (Strike::Cut, 60_000), (over, 250_000)],
            ),
            // R14: the outcome of a proposal is unknown.
            _ => (Moment::Proposal, vec![(Strike::Primary { power }, 20_000)]),
        };
        Self { waits_for, strikes, draw: Draw::new(draw.number()) }
    }

    /// Lays one that waits for a growth of the volume.
    pub fn at_growth(draw: &mut Draw) -> Self {
        let moments = [Moment::ResizeAsked, Moment::ResizeAnswered, Moment::Resized];
        let waits_for = moments[draw.below(3) as usize];
        let window = [300, 2_000, 20_000, 300_000][draw.below(4) as usize];
        let power = draw.chance(50);
        let over = Strike::PingPong { left: 1 };
        let strikes = match draw.below(12) {
            0 | 1 => vec![(Strike::Primary { power }, window)],
            2 => vec![(Strike::Secondary { power }, window)],
            3 => vec![(Strike::Both, window)],
            4 | 5 => vec![(Strike::Doom, window)],
            6 | 7 => vec![(Strike::Cut, window), (over, window + 300_000)],
            8 => vec![(over, window)],
            9 => vec![(Strike::Blink, window)],
            10 => vec![(Strike::Secondary { power }, window), (Strike::Primary { power }, window)],
            _ => vec![(Strike::Reset, window)],
        };
        Self { waits_for, strikes, draw: Draw::new(draw.number()) }
    }

    fn draw_any(draw: &mut Draw) -> Self {
        let moments = [
            Moment::Commit,
            Moment::Commit,
            Moment::ResyncStart,
            Moment::ResyncStart,
            Moment::Growth,
            Moment::Growth,
            Moment::Joined,
            Moment::Lost,
            Moment::Role,
            Moment::Promotion,
            Moment::Release,
            Moment::Proposal,
            Moment::Proposal,
            Moment::Acknowledged,
            Moment::Requested,
        ];
        let waits_for = moments[draw.below(moments.len() as u64) as usize];
        let window = [1_000, 10_000, 60_000, 500_000][draw.below(4) as usize];
        let power = draw.chance(50);
        let strikes = match draw.below(22) {
            0 | 1 => vec![(Strike::Primary { power }, window)],
            2 => vec![(Strike::Secondary { power }, window)],
            3 => vec![(Strike::Both, window)],
            4 => vec![(Strike::Reset, window), (Strike::Primary { power }, 2 * window)],
            5 => vec![(Strike::Cut, window), (Strike::Primary { power }, 2 * window)],
            6 => vec![(Strike::Secondary { power }, window), (Strike::Primary { power }, window)],
            7 | 8 => vec![(Strike::Hang, 1_000), (Strike::Primary { power }, 4 * window + 100_000)],
            9..=11 => vec![(Strike::Doom, window)],
            14 => vec![(Strike::Flicker, window)],
            15 => vec![(Strike::Turns { left: 4, primary: draw.chance(50) }, window)],
            16 => vec![(Strike::PingPong { left: 4 }, window)],
            17 => vec![(Strike::Cut, window), (Strike::Heal, window + 400_000)],
            18 | 19 => vec![(Strike::Heal, window)],
            12 | 13 => vec![
                (Strike::Reset, window),
                (Strike::Blink, 2 * window),
                (Strike::Primary { power }, 2 * window + 400_000),
            ],
            21 => vec![(Strike::Sicken, window)],
            _ => vec![(Strike::Reset, window)],
        };
        Self { waits_for, strikes, draw: Draw::new(draw.number()) }
    }
}

impl World {
    /// A core noted something: an ambush may be waiting for it.
    pub fn spring_at_note(&mut self, note: &Note) {
        let moment = match note {
            Note::Committed { what: "the office was released", .. } => Moment::Release,
            Note::Committed { .. } => Moment::Commit,
            Note::ResyncStarted { .. } => Moment::ResyncStart,
            Note::PeerJoined { .. } => Moment::Joined,
            Note::PeerLost { .. } => Moment::Lost,
            Note::Resized { .. } => Moment::Resized,
            Note::RoleChanged { role: "promoting", .. } => Moment::Promotion,
            Note::RoleChanged { .. } => Moment::Role,
            _ => return,
        };
        self.spring(moment);
    }

    /// An ambush is laid; one that waits for a cut to heal begins with the cut.
    pub fn lay_ambush(&mut self) {
        let mut ambush = Ambush::draw(&mut self.draw);
        if let [(Strike::Heal, _)] = ambush.strikes[..] {
            let moments = [Moment::Proposal, Moment::Proposal, Moment::Promotion, Moment::Lost];
            ambush.waits_for = moments[self.draw.below(4) as usize];
            let until = self.now + 8_000 * MS;
            if self.draw.chance(50) {
                self.blocked_until = [until; 2];
            } else {
                self.blocked_until[self.draw.below(2) as usize] = until;
            }
        }
        self.ambush = Some(ambush);
    }

    /// An order begins on a disk: it may be a proposal.
    pub fn spring_at_proposal(&mut self, node: usize, job: &Job) {
        let waits = self.ambush.as_ref().is_some_and(|it| it.waits_for == Moment::Proposal);
        if let Job::Meta { bytes, .. } = job
            && waits
            && let Ok(coming) = Superblock::decode(bytes)
            && coming.register.order() > self.superblock(node).register.order()
        {
            self.spring(Moment::Proposal);
        }
    }

    /// A moment has come.
    pub fn spring(&mut self, moment: Moment) {
        let Some(ambush) = &mut self.ambush else { return };
        if ambush.waits_for != moment || ambush.draw.chance(50) {
            return;
        }
        let mut ambush = self.ambush.take().expect("just seen");
        tell!(self, "an ambush springs at {moment:?}: {:?}", ambush.strikes);
        for (strike, within_us) in ambush.strikes {
            let delay = ambush.draw.below(within_us) * 1000 + 1;
            self.after(delay, Event::Strike { strike });
        }
    }

    /// An ambush strikes.
    pub fn strike(&mut self, strike: Strike) {
        if self.is_calm() {
            return;
        }
        let primary = self.device().map_or_else(|| self.draw.below(2) as usize, |(node, _)| node);
        let back_after = [300, 2_000, 9_000][self.draw.below(3) as usize];
        let back_after = (1 + self.draw.below(back_after)) * MS;
        tell!(self, "strike: {strike:?}");
        match strike {
            Strike::Primary { power } => self.fall(primary, back_after, power),
            Strike::Secondary { power } => self.fall(1 - primary, back_after, power),
            Strike::Both => {
                self.fall(primary, back_after, true);
                let other = self.draw.below(4_000) * MS;
                self.fall(1 - primary, other, true);
            }
            Strike::Reset => {
                let session = self.nodes[primary].process.as_ref().and_then(|p| p.session);
                if let Some(number) = session {
                    self.end_connection(number as usize, primary, LinkLoss::Io(104));
                }
            }
            Strike::Blink => self.fall(primary, MS, false),
            Strike::Doom => {
                self.fall(1 - primary, 50 * MS, true);
                let power = self.draw.chance(50);
                self.fall(primary, 9_000 * MS + back_after, power);
            }
            Strike::Hang => {
                let until = self.now + back_after.min(3_000 * MS);
                if self.draw.chance(70) {
                    self.nodes[1 - primary].writes_hang_until = until;
                } else {
                    self.nodes[1 - primary].hung_until = until;
                }
            }
            Strike::Kill { node } => self.fall(node, back_after, false),
            Strike::GiveBack { node } => {
                self.order_besides(node, Command::Demote);
                for _ in 0..4 {
                    let delay = (20 + self.draw.below(1_000)) * MS;
                    self.after(delay, Event::Strike { strike: Strike::TakeUp { node } });
                }
            }
            Strike::TakeUp { node } => {
                let (old_primary_is_off, allow_data_loss, alone) = (false, false, false);
                let promote = Command::Promote { old_primary_is_off, allow_data_loss, alone };
                self.order_besides(node, promote);
            }
            Strike::Flicker => self.fall(1 - primary, MS, true),
            Strike::Sicken => {
                let there = &mut self.nodes[primary];
                there.slow_until = self.now + 1_000 * MS;
                there.slowness = 50;
                there.failing = Some(Failing::Write);
            }
            Strike::Cut => self.blocked_until = [self.now + back_after; 2],
            Strike::Heal => {
                self.occasions_of_healing();
                self.blocked_until = [0; 2];
                self.release_parcels();
            }
            Strike::Turns { left, primary: next } => {
                let victim = if next { primary } else { 1 - primary };
                let power = self.draw.chance(50);
                self.fall(victim, back_after.min(1_500 * MS), power);
                if left > 1 {
                    let strike = Strike::Turns { left: left - 1, primary: !next };
                    let delay = self.draw.below(2_500) * MS;
                    self.after(delay, Event::Strike { strike });
                }
            }
            Strike::PingPong { left } => {
                if self.cluster.is_some() {
                    self.switch_over();
                } else if !self.operator_is_busy() {
                    self.promote_with_the_other_off(1 - primary);
                }
                if left > 1 {
                    let strike = Strike::PingPong { left: left - 1 };
                    let delay = (200 + self.draw.below(3_000)) * MS;
                    self.after(delay, Event::Strike { strike });
                }
            }
        }
    }
}

//! The simulated network between the two nodes: connections whose frames arrive in order, after a
//! delay, or not before a partition heals. The end of a connection travels like a frame, so a
//! partition hides it; only silence tells then. Connections know nothing of each other: the end of
//! one, and the beginning of the next, reach the two nodes in any order.
//!
//! A frame that is lost is sent again by TCP, each time after twice the time; what comes behind it
//! waits. After too many attempts the sender's connection ends with an error, while the receiver
//! hears nothing. A path that lets no large packet through swallows a connection at its first
//! large frame.

use std::collections::VecDeque;

use replicator_core::LinkLoss;
use replicator_core::wire::Message;

use crate::occasions::Occasion;
use crate::plan::Fault;
use crate::sectors::Payload;
use crate::tell;
use crate::world::{Event, MS, World};

/// Frames with more payload than this need large packets.
const LARGE_SECTORS: usize = 8;
/// The first time after which TCP sends a lost frame again.
const RESENDS_AFTER: u64 = 200 * MS;

/// What travels in one direction of a connection.
#[derive(Debug)]
pub enum Parcel {
    /// The connection stands and both ends have proved who they are.
    Open,
    /// A frame.
    Frame(Message, Payload),
    /// The other end is closed.
    Closed,
}

/// One connection. Index 0 and 1 are the nodes.
#[derive(Debug)]
pub struct Connection {
    /// Whether the end at this node is open: told to its process, and not closed by it.
    pub open: [bool; 2],
    /// The process at each end.
    pub lives: [u64; 2],
    /// The session it is for each process, counted from 1; 0 before it is open.
    pub sessions: [u64; 2],
    /// On the way to this node.
    pub towards: [VecDeque<Parcel>; 2],
    /// Nothing arrives at this node before: frames keep their order.
    pub arrives: [u64; 2],
    /// Nothing more arrives at this node, ever.
    pub swallowed: [bool; 2],
}

impl Connection {
    /// A connection between two processes.
    pub fn new(lives: [u64; 2]) -> Self {
        Self {
            open: [false; 2],
            lives,
            sessions: [0; 2],
            towards: [VecDeque::new(), VecDeque::new()],
            arrives: [0; 2],
            swallowed: [false; 2],
        }
    }
}

/// What is wrong with the way towards a node, besides partitions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Frames get lost until then.
    pub lossy_until: u64,
    /// Percent of frames that get lost.
    pub percent_lost: u64,
    /// Frames take longer until then.
    pub slow_until: u64,
    /// How much longer at most, in milliseconds.
    pub slow_ms: u64,
    /// Large packets get lost until then.
    pub narrow_until: u64,
}

impl World {
    /// How much longer a parcel takes in this weather; `None` when it never arrives.
    pub fn weather(&mut self, number: usize, to: usize, parcel: &Parcel) -> Option<u64> {
        let weather = self.weather[to];
        if self.connections[number].swallowed[to] {
            return None;
        }
        let large = |payload: &Payload| payload.as_ref().is_some_and(|p| p.len() > LARGE_SECTORS);
        let is_large = matches!(parcel, Parcel::Frame(_, payload) if large(payload));
        if is_large && weather.narrow_until > self.now {
            self.happened(Occasion::LargeFrameSwallowed);
            self.swallow(number, to);
            return None;
        }
        let mut longer = 0;
        if weather.slow_until > self.now {
            longer += self.draw.below(weather.slow_ms * MS);
            self.happened(Occasion::FrameDelayed);
        }
        if weather.lossy_until > self.now && self.draw.chance(weather.percent_lost) {
            let attempts = self.draw.below(7);
            if attempts == 6 {
                self.happened(Occasion::ConnectionTimedOut);
                self.swallow(number, to);
                return None;
            }
            self.happened(Occasion::FrameLost);
            longer += RESENDS_AFTER << attempts;
        }
        Some(longer)
    }

    /// Nothing more of a connection arrives there; the sender's end gives up after a while.
    fn swallow(&mut self, number: usize, to: usize) {
        tell!(self, "connection {} is swallowed towards {}", number + 1, self.nodes[to].name);
        self.connections[number].swallowed[to] = true;
        let delay = self.draw.below(5_000) * MS;
        self.after(delay, Event::TimesOut { connection: number, node: 1 - to });
    }

    /// The way towards a node gets bad, sometimes both ways.
    pub fn cause_weather(&mut self, fault: Fault, node: usize, until: u64) {
        let ways = if self.draw.chance(50) { vec![0, 1] } else { vec![node] };
        let percent_lost = 5 + self.draw.below(46);
        let slow_ms = 1 + self.draw.below(500);
        for way in ways {
            let weather = &mut self.weather[way];
            match fault {
                Fault::FrameLoss => {
                    weather.lossy_until = until;
                    weather.percent_lost = percent_lost;
                }
                Fault::SlowLink => {
                    weather.slow_until = until;
                    weather.slow_ms = slow_ms;
                }
                _ => weather.narrow_until = until,
            }
        }
    }

    /// A connection that its dialer gave up comes to the other end after all, or two come to the
    /// two ends in different orders.
    pub fn connect_late(&mut self, node: usize) {
        let lives = [0, 1].map(|node| self.nodes[node].process.as_ref().map(|p| p.life));
        let [Some(one), Some(two)] = lives else { return };
        if self.nodes.iter().any(|node| node.retry_at > self.now + 60_000 * MS) {
            // An operator wants no connection.
            return;
        }
        let number = self.connections.len();
        let given_up = self.draw.chance(50);
        tell!(self, "connection {} comes late to {}", number + 1, self.nodes[node].name);
        self.connections.push(Connection::new([one, two]));
        let late = self.now + self.draw.below(2_000) * MS;
        self.connections[number].arrives[node] = late;
        self.put(number, node, Parcel::Open);
        if given_up {
            self.happened(Occasion::LateConnection);
            return self.put(number, node, Parcel::Closed);
        }
        self.happened(Occasion::ConnectionsCrossed);
        self.put(number, 1 - node, Parcel::Open);
        self.connections.push(Connection::new([one, two]));
        for node in 0..2 {
            self.put(number + 1, node, Parcel::Open);
        }
    }

    /// A cut is over: what waits for it arrives now.
    pub fn release_parcels(&mut self) {
        for connection in 0..self.connections.len() {
            for node in 0..2 {
                for _ in 0..self.connections[connection].towards[node].len() {
                    self.after(1, Event::Arrival { connection, node });
                }
            }
        }
    }

    /// The kernel gives up on a connection at this end.
    pub fn time_out(&mut self, number: usize, node: usize) {
        let life = self.connections[number].lives[node];
        if self.nodes[node].process.as_ref().is_some_and(|process| process.life == life) {
            self.end_connection(number, node, LinkLoss::Io(110));
        }
    }

    /// A link that flaps: it is cut and heals, again and again.
    pub fn flap(&mut self, times: u64, period_ms: u64) {
        if times == 0 || self.is_calm() {
            return;
        }
        let cut = self.now + (1 + self.draw.below(period_ms)) * MS;
        if self.draw.chance(60) {
            self.blocked_until = [cut; 2];
        } else {
            self.blocked_until[self.draw.below(2) as usize] = cut;
        }
        self.happened(Occasion::LinkFlapped);
        self.after(period_ms * 2 * MS, Event::Flap { times: times - 1, period_ms });
    }
}

//! Connections between the two nodes: dialed, filled with frames, closed, lost.

use std::mem;

use replicator_core::wire::{self, Message, VERSIONS};
use replicator_core::{BufId, Input, LinkLoss, Retry, SessionId};

use crate::ambush::Moment;
use crate::network::{Connection, Parcel};
use crate::sectors::SECTOR_BYTES;
use crate::tell;
use crate::world::{Event, MS, PEER, World};

impl World {
    pub(super) fn send(
        &mut self,
        node: usize,
        session: SessionId,
        message: Message,
        data: Option<BufId>,
    ) {
        let number = self.connection_of(node, session);
        if !self.connections[number].open[node] {
            return;
        }
        let payload = data.map(|buf| {
            let process = self.nodes[node].process.as_ref().expect("a process");
            let count = message.data_len() / SECTOR_BYTES as usize;
            process.buffers.get(buf)[..count].into()
        });
        let message = if self.plan.encodes { through_the_wire(message) } else { message };
        self.put(number, 1 - node, Parcel::Frame(message, payload));
    }

    pub(crate) fn put(&mut self, number: usize, to: usize, parcel: Parcel) {
        let delay = (10 + self.draw.below(self.plan.delay_us)) * 1000;
        let Some(longer) = self.weather(number, to, &parcel) else { return };
        let delay = delay + longer;
        let connection = &mut self.connections[number];
        let at = (self.now + delay).max(connection.arrives[to] + 1);
        connection.arrives[to] = at;
        connection.towards[to].push_back(parcel);
        let delay = at - self.now;
        self.after(delay, Event::Arrival { connection: number, node: to });
    }

    pub(super) fn arrive(&mut self, number: usize, node: usize) {
        // After a pause first what the process is to learn of itself: the loss of a session.
        let wait = self.blocked_until[node].max(self.nodes[node].paused_until + 1);
        if wait > self.now {
            let delay = wait - self.now;
            self.after(delay, Event::Arrival { connection: number, node });
            return;
        }
        let Some(parcel) = self.connections[number].towards[node].pop_front() else { return };
        let life = self.connections[number].lives[node];
        let alive = self.runs(node, life);
        match parcel {
            Parcel::Open => {
                if !alive {
                    return self.reset(number, node);
                }
                if let Some(old) = self.nodes[node].process.as_ref().expect("alive").session {
                    // The driver reports an older session lost before it begins a new one.
                    self.end_connection(old as usize, node, LinkLoss::Closed);
                }
                self.connections[number].open[node] = true;
                let process = self.nodes[node].process.as_mut().expect("alive");
                process.session = Some(number as u64);
                // The driver numbers sessions in the order in which they come in.
                process.sessions.push(number);
                let session = SessionId(process.sessions.len() as u64);
                self.connections[number].sessions[node] = session.0;
                self.step(node, Input::PeerConnected { peer: PEER, session, version: VERSIONS.1 });
            }
            Parcel::Frame(message, payload) => {
                if !alive || !self.connections[number].open[node] {
                    return self.reset(number, node);
                }
                let carries = matches!(message, Message::Write { .. } | Message::ResyncData { .. });
                let count = message.data_len() / SECTOR_BYTES as usize;
                let process = self.nodes[node].process.as_mut().expect("alive");
                let data = carries.then(|| {
                    process.buffers.take(payload.unwrap_or_else(|| vec![0; count].into()))
                });
                let session = SessionId(self.connections[number].sessions[node]);
                let grows = matches!(message, Message::GrowReady { .. });
                let resizes = match message {
                    Message::Resize { .. } => Some(Moment::ResizeAsked),
                    Message::Resized { .. } => Some(Moment::ResizeAnswered),
                    _ => None,
                };
                self.step(node, Input::PeerSaid { peer: PEER, session, message, data });
                if grows {
                    self.spring(Moment::Growth);
                }
                if let Some(moment) = resizes {
                    self.spring(moment);
                }
            }
            Parcel::Closed => {
                if alive && self.connections[number].open[node] {
                    self.end_connection(number, node, LinkLoss::Closed);
                }
            }
        }
    }

    /// Something came to an end that is closed: the other side learns of it.
    fn reset(&mut self, number: usize, node: usize) {
        self.connections[number].towards[node].clear();
        if self.connections[number].open[1 - node] {
            self.put(number, 1 - node, Parcel::Closed);
        }
    }

    /// A process learns that its connection is gone.
    pub fn end_connection(&mut self, number: usize, node: usize, why: LinkLoss) {
        if !mem::replace(&mut self.connections[number].open[node], false) {
            return;
        }
        let delay = (50 + self.draw.below(400)) * MS;
        self.nodes[node].retry_at = self.now + delay;
        self.dial_in(delay);
        let process = self.nodes[node].process.as_mut().expect("an open end has a process");
        process.session = None;
        let life = process.life;
        self.put(number, 1 - node, Parcel::Closed);
        let session = SessionId(self.connections[number].sessions[node]);
        let input = Input::LinkLost { peer: PEER, session, why };
        self.fact(node, life, Box::new(input));
    }

    fn connection_of(&self, node: usize, session: SessionId) -> usize {
        let process = self.nodes[node].process.as_ref().expect("a process has sessions");
        process.sessions[session.0 as usize - 1]
    }

    /// A core closes a session: what it sent before goes out first.
    pub(super) fn close(&mut self, node: usize, session: SessionId, retry: Retry) {
        let number = self.connection_of(node, session);
        let delay = match retry {
            Retry::Now => self.draw.below(5) * MS,
            Retry::Later => (100 + self.draw.below(600)) * MS,
            Retry::Rarely => 2_000 * MS,
            Retry::Never => u64::MAX / 2,
        };
        self.nodes[node].retry_at = self.now + delay;
        if retry != Retry::Never {
            self.dial_in(delay);
        }
        if mem::replace(&mut self.connections[number].open[node], false) {
            let process = self.nodes[node].process.as_mut().expect("a process");
            process.session = None;
            self.put(number, 1 - node, Parcel::Closed);
        }
    }

    /// The drivers look whether to connect, unless they do so earlier: a look that comes too early
    /// plans the next one.
    pub fn dial_in(&mut self, delay: u64) {
        let at = self.now + delay;
        if self.dial_at.is_none_or(|planned| at < planned) {
            self.dial_at = Some(at);
            self.after(delay, Event::Dial);
        }
    }

    pub(super) fn dial_if_due(&mut self) {
        if self.dial_at == Some(self.now) {
            self.dial_at = None;
            self.dial();
        }
    }

    /// Connects the two processes when both are there and one of them wants to.
    fn dial(&mut self) {
        let lives = [0, 1].map(|node| self.nodes[node].process.as_ref().map(|p| p.life));
        let [Some(one), Some(two)] = lives else { return };
        let sessions = self.nodes.each_ref().map(|node| node.process.as_ref().unwrap().session);
        if sessions[0].is_some() && sessions[0] == sessions[1] {
            return;
        }
        let retry_at = self.nodes[0].retry_at.min(self.nodes[1].retry_at);
        if retry_at > self.now {
            if retry_at < u64::MAX / 4 {
                let delay = retry_at - self.now;
                self.dial_in(delay);
            }
            return;
        }
        let blocked = self.blocked_until[0].max(self.blocked_until[1]);
        if blocked > self.now {
            let delay = blocked - self.now + self.draw.below(300) * MS;
            self.dial_in(delay);
            return;
        }
        let stands_still = self.nodes.iter().any(|node| node.paused_until > self.now);
        if self.fencing.is_some() && stands_still {
            // Who stands still does not greet, and is not heard by that.
            return self.dial_in(500 * MS);
        }
        for node in &mut self.nodes {
            node.retry_at = self.now + 1_000 * MS;
        }
        self.dial_in(1_000 * MS);
        self.open_connection([one, two]);
    }

    pub(super) fn open_connection(&mut self, lives: [u64; 2]) {
        let number = self.connections.len();
        tell!(self, "connection {} opens", number + 1);
        self.connections.push(Connection::new(lives));
        for node in 0..2 {
            self.put(number, node, Parcel::Open);
        }
    }
}

fn through_the_wire(message: Message) -> Message {
    let (header, control) = wire::encode(&message, 0, 0);
    let header = wire::Header::decode(&header).expect("our own header");
    let decoded = wire::decode(&header, &control).expect("our own frame");
    assert_eq!(decoded, message, "a frame is not what was sent");
    decoded
}

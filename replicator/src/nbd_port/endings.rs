//! The ways in which a connection of a client ends, and what is given back then.

use replicator_core::ClientError;

use super::{Life, NbdPort, Step};
use crate::data_loop::{Io, socket};

impl NbdPort {
    /// No new request is taken. Forced: every connection is closed at once.
    pub fn close(&mut self, io: &mut Io, forced: bool) {
        self.is_open = false;
        for c in 0..self.connections.len() as u32 {
            match self.connections[c as usize].life {
                Life::Open | Life::Draining if forced => self.kill(io, c),
                Life::Open => self.drain(io, c),
                _ => {}
            }
        }
    }

    /// Every connection is closed.
    pub fn is_idle(&self) -> bool {
        self.connections.iter().all(|c| matches!(c.life, Life::Vacant | Life::Dead))
    }

    /// Drops clients that do not read their replies, or that stopped in the middle of a request.
    /// Called about once a second.
    pub fn drop_stuck(&mut self, io: &mut Io) {
        for c in 0..self.connections.len() as u32 {
            let connection = &self.connections[c as usize];
            let is_alive = matches!(connection.life, Life::Open | Life::Draining);
            let why = if !is_alive {
                continue;
            } else if connection.outbox.stuck_for(io.now) > self.timeout {
                "it does not read its replies"
            } else if connection.silent_for(io.now) > self.timeout {
                "it stopped in the middle of a request"
            } else {
                continue;
            };
            let timeout_ms = self.timeout.as_ms();
            let origin = &connection.origin;
            tracing::warn!(origin, timeout_ms, "client dropped: {why}");
            self.kill(io, c);
        }
    }

    /// Nothing more is taken from a connection; closes it when all is answered and sent.
    pub(super) fn drain(&mut self, io: &mut Io, c: u32) {
        self.forget_step(io, c);
        let connection = &mut self.connections[c as usize];
        connection.life = Life::Draining;
        if connection.in_core == 0 && connection.outbox.is_empty() {
            self.kill(io, c);
        }
    }

    /// Closes a connection at once. What is in the core stays there until it is answered.
    pub(super) fn kill(&mut self, io: &mut Io, c: u32) {
        self.forget_step(io, c);
        let connection = &mut self.connections[c as usize];
        connection.life = Life::Dead;
        connection.read = None;
        connection.outbox.clear(io);
        for answer in connection.behind_read.drain(..) {
            if let Some(buf) = answer.buf {
                io.pool.release(buf);
            }
        }
        if let Some(stream) = &connection.stream {
            // Ends the operations of the ring on it.
            socket::shut_down(stream);
        }
        self.vacate(c);
    }

    /// Gives up a payload that will not be received to its end.
    pub(super) fn forget_step(&mut self, io: &mut Io, c: u32) {
        let connection = &mut self.connections[c as usize];
        if let Step::Payload { buf, .. } = connection.step {
            io.pool.release(buf);
            self.coming -= 1;
        }
        connection.step = Step::Header;
        connection.held_back_by = "";
        if let Some(sliced) = connection.sliced_write.take() {
            let write = self.writes[sliced as usize].as_mut().expect("an open write");
            write.is_received = true;
            write.result = Err(ClientError::Shutdown);
            if write.open == 0 {
                self.writes[sliced as usize] = None;
            }
        }
    }

    /// Frees the slot of a dead connection when nobody can name it any more.
    pub(super) fn vacate(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if connection.life != Life::Dead || connection.receiving || connection.outbox.is_sending() {
            return;
        }
        connection.stream = None;
        connection.inbox = None;
        if connection.in_core == 0 {
            connection.life = Life::Vacant;
            connection.origin = String::new();
            self.stalled.retain(|&other| other != c);
        }
    }
}

//! What waits to be sent on one socket. Everything of a turn goes with one system call; while
//! that is under way the next batch gathers.

use std::os::fd::RawFd;

use replicator_core::{Span, Time};

use super::{Io, Token};
use crate::uring::{Back, Outgoing, Patience};

/// The sending half of a connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    gathering: Outgoing,
    /// An empty one, whose memory is used again.
    spare: Option<Box<Outgoing>>,
    /// Since when a send is under way.
    sending_since: Option<Time>,
    /// Pieces and header bytes of the send that is under way.
    sending: (usize, usize),
}

impl Outbox {
    /// What is being gathered, to append to.
    pub fn add(&mut self) -> &mut Outgoing {
        &mut self.gathering
    }

    /// Everything was sent.
    pub fn is_empty(&self) -> bool {
        self.gathering.is_empty() && self.sending_since.is_none()
    }

    /// A send is under way in the kernel.
    pub fn is_sending(&self) -> bool {
        self.sending_since.is_some()
    }

    /// Pieces and header bytes that wait or are under way.
    pub fn weight(&self) -> (usize, usize) {
        let (pieces, bytes) = self.gathering.weight();
        (pieces + self.sending.0, bytes + self.sending.1)
    }

    /// How long the send that is under way has taken.
    pub fn stuck_for(&self, now: Time) -> Span {
        self.sending_since.map_or(Span(0), |since| now.since(since))
    }

    /// Submits what has gathered, unless a send is under way.
    pub fn start(&mut self, io: &mut Io, fd: RawFd, token: Token) {
        if self.sending_since.is_some() || self.gathering.is_empty() {
            return;
        }
        let mut outgoing = self.spare.take().unwrap_or_default();
        std::mem::swap(&mut *outgoing, &mut self.gathering);
        self.sending = outgoing.weight();
        self.sending_since = Some(io.now);
        io.instant_sends += 1;
        io.ring.send(&io.pool, fd, outgoing, Patience::None, token);
    }

    /// A send ended. When the socket did not take all, the rest follows at once. An error number
    /// means that the connection is dead; what was to be sent on it is forgotten.
    pub fn sent(
        &mut self,
        io: &mut Io,
        fd: RawFd,
        result: Result<u32, i32>,
        back: Back,
        token: Token,
    ) -> Result<(), i32> {
        let Back::Outgoing(mut outgoing) = back else { panic!("a send gives its bytes back") };
        let moved = match result {
            Ok(moved) => moved as usize,
            Err(libc::EAGAIN | libc::EINTR) => 0,
            Err(error) => {
                outgoing.clear(&mut io.pool);
                self.spare = Some(outgoing);
                self.sending_since = None;
                self.sending = (0, 0);
                return Err(error);
            }
        };
        outgoing.advance(moved, &mut io.pool);
        if outgoing.is_empty() {
            self.spare = Some(outgoing);
            self.sending_since = None;
            self.sending = (0, 0);
            self.start(io, fd, token);
        } else {
            if moved > 0 {
                self.sending_since = Some(io.now);
            }
            self.sending = outgoing.weight();
            io.ring.send(&io.pool, fd, outgoing, Patience::All, token);
        }
        Ok(())
    }

    /// Forgets what was not submitted.
    pub fn clear(&mut self, io: &mut Io) {
        self.gathering.clear(&mut io.pool);
    }
}

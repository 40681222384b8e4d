//! What every part of the loop works with: the ring, the pool, the clock of the turn, and the
//! facts that wait for the core.

use std::collections::VecDeque;

use replicator_core::{Input, PeerIndex, SessionId, Time};

use super::Counters;
use crate::buffers::Pool;
use crate::uring::Ring;

/// Says whose operation has completed. The numbers are slots of the part's own table; a slot is
/// not used again while an operation names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    /// The daemon rang.
    Bell,
    /// A disk operation.
    Disk(u32),
    /// A client's connection received.
    ClientReceived(u32),
    /// A client's connection sent.
    ClientSent(u32),
    /// A peer's connection received.
    PeerReceived(u32),
    /// A peer's connection sent.
    PeerSent(u32),
}

/// The shared means of one loop.
pub(crate) struct Io {
    pub ring: Ring<Token>,
    pub pool: Pool,
    /// Time of this turn.
    pub now: Time,
    /// Facts for the core, in their order.
    pub inputs: VecDeque<Input>,
    /// Sends that complete during the next submission, so that waiting for their completions
    /// alone would be a wasted turn.
    pub instant_sends: usize,
    pub counters: Counters,
}

impl Io {
    /// Tells the core something, before the next wait.
    pub fn tell(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// The core has closed a session: it hears nothing of it any more, not even what came in the
    /// same turn as that which made it close.
    pub fn forget_session(&mut self, closed: (PeerIndex, SessionId)) {
        let Self { inputs, pool, .. } = self;
        inputs.retain(|input| match *input {
            Input::PeerSaid { peer, session, data, .. } if (peer, session) == closed => {
                data.into_iter().for_each(|buf| pool.release(buf));
                false
            }
            Input::PeerConnected { peer, session, .. } | Input::LinkLost { peer, session, .. } => {
                (peer, session) != closed
            }
            _ => true,
        });
    }
}

/// The clock of the data path: it goes on while the machine sleeps.
pub(crate) fn now() -> Time {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
    Time(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

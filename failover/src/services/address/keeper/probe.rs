//! Whether somebody has the address already: asked twice before it is added (RFC 5227, shortened to
//! what a failover can wait for).

use std::net::IpAddr;

use failover_core::{Span, Time};

use crate::netlink::Mac;
use crate::services::link_socket::LinkSocket;
use crate::services::neighbour::probe;

/// When it is asked, after the start.
const ASKED_AT: [Span; 2] = [Span::from_ms(0), Span::from_ms(40)];
/// Who has not answered by then does not have it.
const ENDS_AT: Span = Span::from_ms(100);

/// A question that is being asked.
pub struct Probe {
    began: Time,
    asked: usize,
    is_done: bool,
}

impl Probe {
    /// From now on; done at once when nobody is asked.
    pub fn begin(now: Time, is_asked: bool) -> Self {
        Self { began: now, asked: 0, is_done: !is_asked }
    }

    /// Whether nobody answered in time.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// When there is something to do.
    pub fn next(&self) -> Option<Time> {
        let after = ASKED_AT.get(self.asked).copied().unwrap_or(ENDS_AT);
        (!self.is_done).then(|| self.began + after)
    }

    /// Asks what is due.
    pub fn go_on(&mut self, now: Time, address: IpAddr, socket: &LinkSocket, mac: Mac) {
        while self.next().is_some_and(|at| now >= at) {
            if self.asked == ASKED_AT.len() {
                self.is_done = true;
                return;
            }
            self.asked += 1;
            if let Err(error) = socket.send(&probe(address, mac)) {
                tracing::warn!("cannot ask who has {address}: {error}");
            }
        }
    }
}

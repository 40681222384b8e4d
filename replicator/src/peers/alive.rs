//! Is another node alive? Asked on every path, without a connection for replication: what fencing
//! needs to know (`fence`). Two questions, because a stopped process still has its connections
//! accepted by the kernel: it is silent, and all the same it is not off.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use super::{CONNECT_LIMIT, ConnectError, Peers};
use crate::greeting::{GreetingError, RefusalCode};

/// No resource can be called so: who asks for it wants to know only whether somebody is there.
pub(super) const QUESTION: &str = "?";

impl Peers {
    /// Whether the node answers at one of its addresses and proves that it knows the key. Takes
    /// some seconds for every address when it does not.
    pub fn is_alive(&self, node: &str) -> bool {
        self.addresses_of(node).into_iter().any(|address| {
            match self.dial_once(address, node, QUESTION) {
                Err(ConnectError::Greeting(GreetingError::RefusedByThem(refusal))) => {
                    refusal.code == RefusalCode::Alive
                }
                _ => false,
            }
        })
    }

    /// The first address of the node at which something accepts connections: that machine is not
    /// off. A refused connection proves nothing, routers refuse too.
    pub fn accepting_address(&self, node: &str) -> Option<SocketAddr> {
        // At the same time: a takeover waits for this.
        thread::scope(|scope| {
            let attempts: Vec<_> = self
                .addresses_of(node)
                .into_iter()
                .map(|address| scope.spawn(move || accepts(address).then_some(address)))
                .collect();
            let answers = attempts.into_iter().map(|attempt| attempt.join());
            answers.filter_map(|answer| answer.expect("connecting does not panic")).next()
        })
    }

    fn addresses_of(&self, node: &str) -> Vec<SocketAddr> {
        self.cluster.node(node).map(|node| node.addresses.clone()).unwrap_or_default()
    }
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok()
}

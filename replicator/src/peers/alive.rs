//! Is another node alive? And does it stand back? Asked on every path, without a connection for
//! replication: what fencing needs to know (`fence`). Alive are two questions, because a stopped
//! process still has its connections accepted by the kernel: it is silent, and all the same it is
//! not off.

use std::net::{SocketAddr, TcpStream};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{CONNECT_LIMIT, ConnectError, Peers};
use crate::at_once::at_once;
use crate::greeting::{GreetingError, Refusal, RefusalCode};

/// No resource can be called so: who asks for it wants to know only whether somebody is there.
pub(super) const QUESTION: &str = "?";
/// Before the name of a resource: who asks for it wants the promise not to take it over by a fence.
pub(super) const STAND_BACK: char = '!';

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

    /// Asks a living node to stand back: not to take a resource over by a fence before it has met
    /// this node again. Why it does not promise, if it does not.
    pub fn ask_to_stand_back(&self, node: &str, resource: &str) -> Result<(), String> {
        let question = format!("{STAND_BACK}{resource}");
        let mut answer = Err("it has no address".to_owned());
        for address in self.addresses_of(node) {
            answer = match self.dial_once(address, node, &question) {
                Err(ConnectError::Greeting(GreetingError::RefusedByThem(refusal))) => {
                    match refusal.code {
                        RefusalCode::Alive => return Ok(()),
                        _ => Err(refusal.text),
                    }
                }
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("it took the question for a session".to_owned()),
            };
        }
        answer
    }

    /// Whether the node has asked something within this time.
    pub fn has_asked(&self, node: &str, within: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(node).is_some_and(|at| at.elapsed() < within)
    }

    /// The answer to a node that asks whether this one is alive, or to stand back; none to other
    /// things.
    pub(super) fn answer(&self, node: &str, question: &str) -> Option<Refusal> {
        let resource = question.strip_prefix(STAND_BACK);
        if question != QUESTION && resource.is_none() {
            return None;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(node.to_owned(), Instant::now());
        drop(asked);
        let me = &self.node.name;
        let (code, text) = match resource.map(|name| (name, self.resource(name))) {
            None => (RefusalCode::Alive, format!("{me} is alive")),
            Some((name, None)) => {
                (RefusalCode::UnknownResource, format!("{me} has no resource {name}"))
            }
            Some((name, Some(resource))) => match resource.stand_back() {
                Ok(()) => (RefusalCode::Alive, format!("{me} does not take {name} over")),
                Err(why) => (RefusalCode::Busy, why),
            },
        };
        Some(Refusal { code, text })
    }

    /// The first address of the node at which something accepts connections: that machine is not
    /// off. A refused connection proves nothing, routers refuse too.
    pub fn accepting_address(&self, node: &str) -> Option<SocketAddr> {
        // At the same time: a takeover waits for this.
        let attempt = |address: &SocketAddr| accepts(*address).then_some(*address);
        at_once(&self.addresses_of(node), attempt).into_iter().flatten().next()
    }

    fn addresses_of(&self, node: &str) -> Vec<SocketAddr> {
        self.cluster.node(node).map(|node| node.addresses.clone()).unwrap_or_default()
    }
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok()
}

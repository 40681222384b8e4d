//! The simulated network between the two nodes: connections whose frames arrive in order, after a
//! delay, or not before a partition heals. The end of a connection travels like a frame, so a
//! partition hides it; only silence tells then.

use std::collections::VecDeque;

use replicator_core::wire::Message;

use crate::sectors::Payload;

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
    /// On the way to this node.
    pub towards: [VecDeque<Parcel>; 2],
    /// Nothing arrives at this node before: frames keep their order.
    pub arrives: [u64; 2],
}

impl Connection {
    /// A connection between two processes.
    pub fn new(lives: [u64; 2]) -> Self {
        Self {
            open: [false; 2],
            lives,
            towards: [VecDeque::new(), VecDeque::new()],
            arrives: [0; 2],
        }
    }
}

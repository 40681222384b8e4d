//! The simulated disk and network and the real ones, behind one interface: [`Nodes`]. The bodies
//! in [`disk_bodies`] and [`link_bodies`] say what a core may rely on and run on both, so that
//! what the simulator proves holds for the drivers that ship.
//!
//! In the place of the cores stands a [`probe::Probe`]: it keeps what it is told, and checks at
//! every input what must hold always (each order is answered once, nothing of a session that is
//! over, payload exactly where a frame carries some).

pub mod disk_bodies;
pub mod link_bodies;
pub mod probe;
pub mod real;
pub mod simulated;

use replicator_core::{BufId, Effect, Input, PeerIndex, SessionId};

/// The peer that each of the two nodes has in the other.
pub const PEER: PeerIndex = PeerIndex(0);
/// Contents are told by one number per sector of this many bytes; 0 is zeroes.
pub const SECTOR_BYTES: u64 = 512;
/// Everything but the edges of a write is aligned to blocks of this many bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Sectors of a block.
pub const BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// How a node ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Its process is killed.
    Process,
    /// Its machine loses its power, with everything that is not durable.
    Power,
}

/// What may be wrong with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Reads fail.
    Reads,
    /// There is no space for what is written.
    Space,
}

/// One node, or two that can be connected, each with a disk, and with a probe instead of a core.
pub trait Nodes {
    /// Orders effects as one step.
    fn order(&mut self, node: usize, effects: Vec<Effect>);
    /// The next input of a node; panics when none comes.
    fn hear(&mut self, node: usize) -> Input;
    /// A buffer of the node's driver with these contents, as if a peer had sent them.
    fn give(&mut self, node: usize, contents: &[u64]) -> BufId;
    /// What so many sectors at the start of a buffer are.
    fn look(&mut self, node: usize, buf: BufId, sectors: u64) -> Vec<u64>;
    /// Buffers that the probe of the node got and has not given back.
    fn buffers(&mut self, node: usize) -> usize;
    /// Size of the data area in bytes.
    fn data_bytes(&self) -> u64;
    /// A part of the metadata region, at least 8 KiB, that nobody needs: its offset.
    fn spare_meta(&self) -> u64;
    /// Metadata as a process would read them at its start. Only while the node is down.
    fn meta(&mut self, node: usize, offset: u64, length: usize) -> Vec<u8>;
    /// Ends a node; whether it can end like this.
    fn crash(&mut self, node: usize, how: Crash) -> bool;
    /// Starts it again, when everything that the kernel was given has ended (R2e).
    fn restart(&mut self, node: usize);
    /// Makes trouble for the first operation that it concerns at least; whether it can be made.
    fn begin(&mut self, node: usize, trouble: Trouble) -> bool;
    /// Ends the trouble.
    fn end(&mut self, node: usize, trouble: Trouble);
    /// Connects the two nodes, also while a connection stands; what the session is called on each
    /// node, when both have heard of it.
    fn connect(&mut self) -> [SessionId; 2];
    /// From within the step that hears the given frame (the first is 1) of the session, the node
    /// orders this.
    fn react(&mut self, node: usize, frame: u64, effects: Vec<Effect>);
    /// Everything that is under way has come to its end.
    fn settle(&mut self);
    /// What broke a rule that holds always.
    fn violations(&mut self) -> Vec<String>;
}

/// The session that the node hears of next; the loss of the one before it may come first.
fn await_connected(nodes: &mut dyn Nodes, node: usize) -> SessionId {
    loop {
        match nodes.hear(node) {
            Input::PeerConnected { peer: PEER, session, .. } => return session,
            Input::LinkLost { .. } => {}
            other => panic!("{other:?} before a new session"),
        }
    }
}

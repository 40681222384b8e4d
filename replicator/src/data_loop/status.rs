//! What a data loop tells about itself.

use replicator_core::limits::PEERS_MAX;
use replicator_core::{Span, Status};

use crate::buffers::ShareUse;
use crate::latency::Histogram;

/// A snapshot of a loop and of its core.
#[derive(Clone, Debug)]
pub struct LoopStatus {
    /// What the core tells.
    pub core: Status,
    /// The connected clients.
    pub clients: Vec<ClientStatus>,
    /// How full the buffer pool is.
    pub pool: PoolStatus,
    /// Operations of the disk that are under way.
    pub disk_operations: usize,
    /// Since the start of the loop.
    pub counters: Counters,
    /// For people: memory that could not be locked, and the like.
    pub warnings: Vec<String>,
    /// Bytes that were added to the disk and are not made use of.
    pub added_bytes: u64,
}

/// One client.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    /// As it was handed over.
    pub origin: String,
    /// Requests that are not yet answered.
    pub requests: usize,
    /// For how long it has not read its replies; 0 when it does.
    pub not_reading_for: Span,
    /// Why the loop does not read from it; empty when it does.
    pub held_back_by: &'static str,
}

/// The shares of the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolStatus {
    /// Payload of client requests.
    pub clients: ShareUse,
    /// Payload of frames of peers.
    pub peers: ShareUse,
    /// Blocks of a resync.
    pub resync: ShareUse,
}

/// Counts since the start of the loop, and how long things took.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Turns of the loop.
    pub turns: u64,
    /// Requests answered, by kind.
    pub reads: u64,
    /// Writes answered.
    pub writes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Trims and zeroes answered.
    pub zeroes: u64,
    /// Payload bytes of the reads.
    pub read_bytes: u64,
    /// Payload bytes of the writes.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Frames sent to peers.
    pub frames_sent: u64,
    /// Frames received from peers.
    pub frames_received: u64,
    /// Writes of the activity log.
    pub log_writes: u64,
    /// Writes of dirty bitmaps.
    pub bitmap_writes: u64,
    /// Disk operations that failed.
    pub disk_errors: u64,
    /// Writes, on the local disk alone.
    pub disk_write: Histogram,
    /// Reads, on the local disk alone.
    pub disk_read: Histogram,
    /// Flushes of the local disk.
    pub disk_flush: Histogram,
    /// From a frame that was ordered to its acknowledgement, for each peer.
    pub peer_ack: [Histogram; PEERS_MAX],
    /// Reads, from the request to the reply.
    pub client_read: Histogram,
    /// Writes, from the request to the reply.
    pub client_write: Histogram,
    /// Flushes, from the request to the reply.
    pub client_flush: Histogram,
    /// Trims and zeroes, from the request to the reply.
    pub client_zero: Histogram,
}

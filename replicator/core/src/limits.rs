//! Every limit of the replication core, with the relations between them proved at compile time.

use crate::block::DIRTY_BLOCK_BYTES;

/// Most payload bytes of one read, write or resync step; larger client requests are sliced by the
/// driver, zeroes and trims by the core.
pub const IO_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of one zeroing step: such a step blocks a kernel worker for its whole length.
pub const ZERO_BYTES_MAX: u64 = 64 << 20;
/// Most client requests in the core at one time; the driver stops reading from clients there.
pub const REQUESTS_MAX: usize = 1024;
/// Most payload bytes sent to one peer and not yet acknowledged, before new writes wait.
pub const PEER_WINDOW_BYTES: u64 = 16 << 20;
/// Most frames sent to one peer and not yet acknowledged.
pub const PEER_WINDOW_FRAMES: usize = 4096;
/// Most bytes a resync has between read and acknowledgement.
pub const RESYNC_WINDOW_BYTES: u64 = 4 << 20;
/// The same while clients have requests open: a resync yields to applications.
pub const RESYNC_YIELDING_BYTES: u64 = 512 << 10;
/// Bytes of one resync step at most.
pub const RESYNC_STEP_BYTES: u64 = 256 << 10;
/// Bytes a resync copies between two flushes of its target, at most.
pub const RESYNC_FLUSH_BYTES: u64 = 256 << 20;
/// Bytes of one step of a verify: clients' writes there wait while it is compared.
pub const VERIFY_STEP_BYTES: u64 = 64 << 10;
/// Most bytes a verify compares at the same time.
pub const VERIFY_WINDOW_BYTES: u64 = 4 << 20;
/// The same while clients have requests open.
pub const VERIFY_YIELDING_BYTES: u64 = 512 << 10;
/// So often the primary tells the others how far it is.
pub const VERIFY_NEWS_BYTES: u64 = 32 << 20;
/// Ranges that a verify names; the others it counts.
pub const VERIFY_RUNS_MAX: usize = 16;
/// Ranges acknowledged by a peer but not known durable there, before a flush of our own (R8).
pub const VOLATILE_RANGES_MAX: usize = 16 * 1024;
/// Bytes one extent of the activity log covers.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Extents the activity log holds by default: what a crash of the primary costs at most is
/// this many extents of resync.
pub const LOG_EXTENTS_DEFAULT: u16 = 1024;
/// Smallest and largest number of extents of the log.
pub const LOG_EXTENTS_RANGE: core::ops::RangeInclusive<u16> = 64..=8192;
/// Other replicas a volume may have.
pub const PEERS_MAX: usize = 7;
/// Largest control payload of a frame (a greeting, a piece of a bitmap).
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(IO_BYTES_MAX.is_multiple_of(DIRTY_BLOCK_BYTES));
const _: () = assert!(RESYNC_STEP_BYTES <= IO_BYTES_MAX);
const _: () = assert!(RESYNC_STEP_BYTES <= RESYNC_YIELDING_BYTES);
const _: () = assert!(RESYNC_YIELDING_BYTES <= RESYNC_WINDOW_BYTES);
const _: () = assert!(VERIFY_STEP_BYTES.is_multiple_of(DIRTY_BLOCK_BYTES));
const _: () = assert!(VERIFY_STEP_BYTES <= VERIFY_YIELDING_BYTES);
// The digests of the longest range fit a control frame.
const _: () = assert!(IO_BYTES_MAX / DIRTY_BLOCK_BYTES * 32 <= CONTROL_BYTES_MAX as u64);
const _: () = assert!(EXTENT_BYTES.is_multiple_of(DIRTY_BLOCK_BYTES));
const _: () = assert!(IO_BYTES_MAX <= EXTENT_BYTES);
// R17: no request needs more than a sixteenth of the log.
const _: () = assert!(ZERO_BYTES_MAX / EXTENT_BYTES <= LOG_EXTENTS_DEFAULT as u64 / 16);

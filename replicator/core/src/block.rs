//! Addresses and names: bytes and blocks of a volume, and the ids that tie inputs to effects.

/// The grain of dirty tracking: one bit of a dirty bitmap stands for this many bytes.
pub const DIRTY_BLOCK_BYTES: u64 = 4096;

/// A strong hash of one such block (R10), or of the shorter one at the end: BLAKE3.
pub type BlockDigest = [u8; 32];

/// A range of bytes of a volume. `start + length` never overflows: [`ByteRange::new`] checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Length in bytes; may be 0.
    pub length: u64,
}

impl ByteRange {
    /// A range from its first byte and its length; panics when the end does not fit in 64 bits,
    /// which callers exclude by checking requests against the size of the volume first.
    pub fn new(start: u64, length: u64) -> Self {
        assert!(start.checked_add(length).is_some(), "byte range overflows: {start} + {length}");
        Self { start, length }
    }

    /// One past the last byte.
    pub fn end(self) -> u64 {
        self.start + self.length
    }

    /// Whether the two share at least one byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The smallest range of whole grains (a power of two) that contains this one.
    pub fn align_out(self, grain: u64) -> Self {
        debug_assert!(grain.is_power_of_two());
        let start = self.start & !(grain - 1);
        let end = (self.end() + grain - 1) & !(grain - 1);
        Self { start, length: end - start }
    }

    /// The largest range of whole grains inside this one; empty when there is none.
    pub fn align_in(self, grain: u64) -> Self {
        debug_assert!(grain.is_power_of_two());
        let start = (self.start + grain - 1) & !(grain - 1);
        let end = self.end() & !(grain - 1);
        Self { start, length: end.saturating_sub(start) }
    }

    /// Whether start and length are multiples of the grain.
    pub fn is_aligned(self, grain: u64) -> bool {
        (self.start | self.length) & (grain - 1) == 0
    }

    /// The dirty blocks this range touches, as first block and one past the last.
    pub fn dirty_blocks(self) -> core::ops::Range<u64> {
        if self.length == 0 {
            return 0..0;
        }
        self.start / DIRTY_BLOCK_BYTES..self.end().div_ceil(DIRTY_BLOCK_BYTES)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub $inner);
    };
}

id!(
    /// One disk operation that the core ordered; the driver returns it exactly once in
    /// [`Input::DiskDone`](crate::Input::DiskDone).
    OpId(u64)
);
id!(
    /// One client request; chosen by the driver, returned once in
    /// [`Effect::ReplyClient`](crate::Effect::ReplyClient). Never reused while open.
    RequestId(u64)
);
id!(
    /// A buffer of the driver's pool that holds payload.
    BufId(u32)
);
id!(
    /// A peer, as an index into [`Config::peers`](crate::Config).
    PeerIndex(u8)
);
id!(
    /// One connection to a peer. The driver numbers them upwards; what belongs to an old one is
    /// ignored on both sides of the boundary.
    SessionId(u64)
);
id!(
    /// An operator's command that waits for its answer.
    Ticket(u64)
);
id!(
    /// The random id a replica got when its metadata was created (R12).
    ReplicaId(u128)
);
id!(
    /// Changes when the machine may have lost its caches: the boot id (R8, R11).
    Incarnation(u128)
);

impl ReplicaId {
    /// No replica.
    pub const NONE: Self = Self(0);
}

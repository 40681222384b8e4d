//! The metadata of a replica: where they lie, the superblock, and what a fresh disk gets.
//!
//! The metadata region ends where its device ends (internal: the disk itself, behind the data;
//! external: a file or partition of their own). Counted from its end:
//!
//! ```text
//!   ... dirty bitmaps, one per slot | superblock 1 (end - 1 MiB) | activity log | superblock 0
//! ```
//!
//! Both superblock copies are found from the size of the device alone. They are a MiB apart, and
//! an update writes one after the other, so that no crash and no single bad spot destroys both
//! (R12).
//!
//! There are more slots than peers: a replica that comes later gets a free one, and the place of
//! everything else stays.

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::activity_log;
use crate::bitmap;
use crate::block::{ByteRange, DIRTY_BLOCK_BYTES, Incarnation, ReplicaId};
use crate::defect::{Defect, defect};
use crate::limits::{LOG_EXTENTS_RANGE, PEERS_MAX};
use crate::register::RegisterState;
use crate::wire::{FrameError, Reader, put_register, take_register};

/// Bytes of one superblock copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Version of the layout; a change that old builds cannot read raises it.
///
/// 4 has room behind the data area; without any the older form says the same, and is written.
pub const FORMAT_VERSION: u32 = 4;
/// Bytes of a name (node, resource) at most.
pub const NAME_BYTES_MAX: usize = 63;
/// The last version that has no room.
const WITHOUT_ROOM: u32 = 3;
const MAGIC: u64 = u64::from_le_bytes(*b"REPLICA1");
pub(crate) const COPY_DISTANCE: u64 = 1 << 20;
/// Slots for bitmaps that fresh metadata get at least: a third replica finds room.
pub const BITMAP_SLOTS_MIN: usize = 2;
/// Smallest data area: one bit of the dirty bitmap.
pub const DATA_BYTES_MIN: u64 = DIRTY_BLOCK_BYTES;

/// What this replica knows of one peer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct PeerRecord {
    /// Node name.
    pub node: String,
    /// Which of the bitmaps on disk is for it.
    pub slot: u8,
    /// The replica met there last; NONE before the first meeting.
    pub replica: ReplicaId,
    /// The generation at which the bitmap for it was last empty while both were members, or the
    /// one in which a full resync of it was begun; 0: never.
    pub base: u64,
    /// Its superblock has reached at least this sequence: one that starts from an older is a disk
    /// restored from a copy (R12).
    pub floor: u64,
    /// Every block counts as dirty, whatever the bitmap says: a full resync is due or under way.
    pub all_dirty: bool,
}

/// The state of a replica that survives it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Superblock {
    /// Rises with every update.
    pub sequence: u64,
    /// Random id of the resource.
    pub resource_id: u128,
    /// Its name, for people.
    pub resource: String,
    /// Which volume of the resource; 0 in this version.
    pub volume: u16,
    /// The node it was made on, for people.
    pub node: String,
    /// Random id of this replica (R12).
    pub replica: ReplicaId,
    /// The boot in which it was written last (R8).
    pub incarnation: Incarnation,
    /// Bytes of the data area; it starts at offset 0 of the disk.
    pub data_bytes: u64,
    /// Bytes it may have without more ado; what is behind its end reads as zeroes.
    pub room_bytes: u64,
    /// Bytes it may have without moving the metadata: the bitmaps are long enough for that. What
    /// is behind the room is no metadata, and is still to be zeroed (`room.rs`).
    pub bitmaps_for_bytes: u64,
    /// Bytes of the device that holds the metadata when they were made.
    pub device_bytes: u64,
    /// Whether that device is the disk itself.
    pub internal: bool,
    /// Alignment of all I/O: 512 to 4096, a power of two; one for the whole resource.
    pub block_bytes: u32,
    /// Slots of the activity log.
    pub log_extents: u16,
    /// The log blocks that count are those of this epoch.
    pub log_epoch: u64,
    /// The newest tenure accepted (R2).
    pub tenure: u64,
    /// Copy of the register.
    pub register: RegisterState,
    /// A generation this replica was told it will join in (R4d); 0: none.
    pub coming: u64,
    /// Stopped orderly: log empty, everything flushed, fingerprint valid.
    pub clean: bool,
    /// The data are bad (an operator said so, or the disk was used without us).
    pub invalid: bool,
    /// A resync of this replica is not finished: its blocks are of different times.
    pub syncing: bool,
    /// A peer's newer lineage does not have writes that this replica has (R11d).
    pub diverged: bool,
    /// The operator gave up what diverged here (R11d).
    pub discard_diverged: bool,
    /// The operator said at creation that the replicas are equal (R10).
    pub assumed_equal: bool,
    /// Hash of samples of the data at the orderly stop (R12).
    pub fingerprint: [u8; 32],
    /// Bitmaps there is room for; constant, since it fixes where the region begins.
    pub bitmap_slots: u8,
    /// The peers. In memory in the order of the configuration.
    pub peers: Vec<PeerRecord>,
}

/// Where the parts of the region lie. All but the first are relative to the region's start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Absolute, on the device that holds the region.
    pub region_start: u64,
    /// Length of the region.
    pub region_bytes: u64,
    /// The two superblock copies.
    pub superblocks: [u64; 2],
    /// The activity log.
    pub log: Range<u64>,
    /// One dirty bitmap per slot.
    pub bitmaps: Vec<Range<u64>>,
}

/// Why metadata cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// Neither place holds a superblock of ours.
    NoMetadata,
    /// There were superblocks, none verifies.
    Damaged,
    /// Written by a newer build.
    Version(u32),
    /// The device is not as large as it was: (then, now) in bytes.
    SizeChanged(u64, u64),
    /// It belongs to this other node of the configuration.
    OfPeer(String),
    /// The configuration has more other replicas than there are bitmaps: (has, wants).
    TooFewSlots(u8, usize),
    /// A length or count in a superblock that verifies is outside its limits.
    Bounds(&'static str),
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMetadata => {
                f.write_str("no replicator metadata on it; make them with: replctl create RESOURCE")
            }
            Self::Damaged => f.write_str(
                "both copies of its metadata are damaged; the data area starts at offset 0 and \
                 is untouched; make new metadata with: replctl create --force RESOURCE",
            ),
            Self::Version(version) => {
                write!(f, "its metadata have format {version}, this build knows {FORMAT_VERSION}")
            }
            Self::SizeChanged(then, now) => write!(
                f,
                "the device had {then} bytes when its metadata were made, now it has {now}"
            ),
            Self::OfPeer(node) => write!(
                f,
                "it is the disk of {node}: the disks were swapped, or one was cloned; put the own \
                 one in"
            ),
            Self::TooFewSlots(slots, peers) => write!(
                f,
                "its metadata have room for {slots} other replica(s), the configuration has \
                 {peers}; take this node out of the in-sync set (stop it), make its metadata anew \
                 with: replctl create --force RESOURCE, and it is resynced"
            ),
            Self::Bounds(what) => write!(f, "its metadata are inconsistent: {what}"),
        }
    }
}

impl core::error::Error for AttachError {}

/// Absolute offsets of the two superblock copies on a device of so many bytes.
pub fn superblock_offsets(device_bytes: u64) -> [u64; 2] {
    let end = device_bytes & !(SUPERBLOCK_BYTES as u64 - 1);
    [
        end.saturating_sub(SUPERBLOCK_BYTES as u64),
        end.saturating_sub(COPY_DISTANCE + SUPERBLOCK_BYTES as u64),
    ]
}

impl Layout {
    /// The layout of a region at the end of a device, with bitmaps for a data area that may reach
    /// so far.
    pub fn new(device_bytes: u64, room_bytes: u64, bitmap_slots: usize) -> Self {
        let end = device_bytes & !(SUPERBLOCK_BYTES as u64 - 1);
        let bitmap = bitmap::region_bytes(room_bytes.div_ceil(DIRTY_BLOCK_BYTES));
        let bitmaps_bytes = bitmap * bitmap_slots as u64;
        let region_bytes = bitmaps_bytes + COPY_DISTANCE + SUPERBLOCK_BYTES as u64;
        let log_start = bitmaps_bytes + SUPERBLOCK_BYTES as u64;
        Self {
            region_start: end.saturating_sub(region_bytes),
            region_bytes,
            superblocks: [region_bytes - SUPERBLOCK_BYTES as u64, bitmaps_bytes],
            log: log_start..log_start + activity_log::REGION_BYTES,
            bitmaps: (0..bitmap_slots as u64)
                .map(|slot| slot * bitmap..(slot + 1) * bitmap)
                .collect(),
        }
    }
}

const _: () = assert!(activity_log::REGION_BYTES + 2 * SUPERBLOCK_BYTES as u64 <= COPY_DISTANCE);

/// Picks the superblock that counts: the highest sequence that verifies. The flag says whether
/// fewer than two copies have it: a crash in the middle of an update, or damage.
pub fn read_superblocks(copies: [&[u8]; 2]) -> Result<(Superblock, bool), AttachError> {
    let decoded = copies.map(Superblock::decode);
    let mut found: Vec<&Superblock> =
        decoded.iter().filter_map(|copy| copy.as_ref().ok()).collect();
    found.sort_by_key(|copy| copy.sequence);
    if defect(Defect::OlderCopyTrusted) {
        found.reverse();
    }
    match (found.pop(), found.pop()) {
        (Some(newest), other) => {
            let single = other.is_none_or(|other| other.sequence != newest.sequence);
            newest.check()?;
            Ok((newest.clone(), single))
        }
        (None, _) => Err(decoded
            .into_iter()
            .filter_map(Result::err)
            .max_by_key(|error| match error {
                AttachError::NoMetadata => 0,
                AttachError::Damaged => 1,
                _ => 2,
            })
            .unwrap_or(AttachError::NoMetadata)),
    }
}

impl Superblock {
    /// Where everything lies.
    pub fn layout(&self) -> Layout {
        Layout::new(self.device_bytes, self.bitmaps_for_bytes, usize::from(self.bitmap_slots))
    }

    /// Dirty blocks the data area has.
    pub fn blocks(&self) -> u64 {
        self.data_bytes.div_ceil(DIRTY_BLOCK_BYTES)
    }

    /// Tells this replica's bitmap sectors from those of an earlier life of the disk.
    pub fn tag(&self) -> u64 {
        self.replica.0 as u64
    }

    fn check(&self) -> Result<(), AttachError> {
        let layout_fits = self.layout();
        let behind_data = if self.internal { self.bitmaps_for_bytes } else { 0 };
        let wrong =
            if !self.block_bytes.is_power_of_two() || !(512..=4096).contains(&self.block_bytes) {
                "block size"
            } else if !LOG_EXTENTS_RANGE.contains(&self.log_extents) {
                "size of the activity log"
            } else if self.data_bytes < DATA_BYTES_MIN
                || !self.data_bytes.is_multiple_of(u64::from(self.block_bytes))
            {
                "size of the data area"
            } else if self.room_bytes < self.data_bytes
                || self.bitmaps_for_bytes < self.room_bytes
                || !self.room_bytes.is_multiple_of(u64::from(self.block_bytes))
            {
                "room of the data area"
            } else if layout_fits.region_start < behind_data
                || layout_fits.region_bytes > self.device_bytes
            {
                "size of the device"
            } else if self.replica == ReplicaId::NONE {
                "replica id"
            } else if self.volume != 0 {
                "volume number"
            } else if !self.slots_are_sound() {
                "slots of the dirty bitmaps"
            } else {
                return Ok(());
            };
        Err(AttachError::Bounds(wrong))
    }

    /// Whether a resync is unfinished; one whose commit only was not heard of is finished.
    pub(crate) fn syncing_unless(&self, joins: bool) -> bool {
        self.syncing && !joins
    }

    /// The 4 KiB of one copy.
    pub fn encode(&self) -> Box<[u8]> {
        let mut out = Vec::with_capacity(SUPERBLOCK_BYTES);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        let has_room = self.bitmaps_for_bytes != self.data_bytes;
        let version = if has_room { FORMAT_VERSION } else { WITHOUT_ROOM };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        for id in [self.resource_id, self.replica.0, self.incarnation.0] {
            out.extend_from_slice(&id.to_le_bytes());
        }
        for number in [self.data_bytes, self.device_bytes, self.log_epoch, self.tenure, self.coming]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.block_bytes.to_le_bytes());
        out.extend_from_slice(&self.log_extents.to_le_bytes());
        out.extend_from_slice(&self.volume.to_le_bytes());
        let flags = self.flags().iter().rev().fold(0u16, |all, &flag| all << 1 | u16::from(flag));
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&self.fingerprint);
        put_name(&self.resource, &mut out);
        put_name(&self.node, &mut out);
        put_register(&self.register, &mut out);
        out.push(self.bitmap_slots);
        out.push(self.peers.len() as u8);
        for peer in &self.peers {
            put_name(&peer.node, &mut out);
            out.push(peer.slot);
            out.extend_from_slice(&peer.replica.0.to_le_bytes());
            out.extend_from_slice(&peer.base.to_le_bytes());
            out.extend_from_slice(&peer.floor.to_le_bytes());
            out.push(u8::from(peer.all_dirty));
        }
        if has_room {
            out.extend_from_slice(&self.room_bytes.to_le_bytes());
            out.extend_from_slice(&self.bitmaps_for_bytes.to_le_bytes());
        }
        assert!(out.len() <= SUPERBLOCK_BYTES - 4, "superblock of {} bytes", out.len());
        out.resize(SUPERBLOCK_BYTES - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.into_boxed_slice()
    }

    /// Each peer has a bitmap of its own.
    fn slots_are_sound(&self) -> bool {
        let slot_of = |peer: &PeerRecord| peer.slot;
        let is_own = |(at, peer): (usize, &PeerRecord)| {
            peer.slot < self.bitmap_slots
                && !self.peers[..at].iter().map(slot_of).any(|other| other == peer.slot)
        };
        usize::from(self.bitmap_slots) <= PEERS_MAX && self.peers.iter().enumerate().all(is_own)
    }

    /// Takes the peers that a configuration names, in its order. One that is not named gives its
    /// bitmap up; a new one gets a free one, and lacks everything.
    pub(crate) fn take_peers(&mut self, names: &[&str]) -> Result<(), AttachError> {
        if names.contains(&self.node.as_str()) {
            return Err(AttachError::OfPeer(self.node.clone()));
        }
        if names.len() > usize::from(self.bitmap_slots) {
            return Err(AttachError::TooFewSlots(self.bitmap_slots, names.len()));
        }
        let mut known: Vec<Option<PeerRecord>> = names
            .iter()
            .map(|name| self.peers.iter().find(|peer| peer.node == **name).cloned())
            .collect();
        for at in 0..known.len() {
            if known[at].is_none() {
                let is_free =
                    |slot: &u8| known.iter().flatten().all(|peer: &PeerRecord| peer.slot != *slot);
                let slot = (0..self.bitmap_slots).find(is_free).expect("there are enough slots");
                let node = String::from(names[at]);
                known[at] =
                    Some(PeerRecord { node, slot, all_dirty: true, ..PeerRecord::default() });
            }
        }
        self.peers = known.into_iter().flatten().collect();
        Ok(())
    }

    fn flags(&self) -> [bool; 7] {
        [
            self.internal,
            self.clean,
            self.invalid,
            self.syncing,
            self.discard_diverged,
            self.assumed_equal,
            self.diverged,
        ]
    }

    /// Reads one copy.
    pub fn decode(bytes: &[u8]) -> Result<Self, AttachError> {
        let mut input = Reader { bytes };
        let magic = input.u64().map_err(|_| AttachError::NoMetadata)?;
        if magic != MAGIC {
            return Err(AttachError::NoMetadata);
        }
        let body = bytes.get(..SUPERBLOCK_BYTES).ok_or(AttachError::Damaged)?;
        let (body, crc) = body.split_at(SUPERBLOCK_BYTES - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(AttachError::Damaged);
        }
        let version = input.u32().map_err(|_| AttachError::Damaged)?;
        // 1 had no register that says `sole`; it reads as one that does not. Up to 2 there was a
        // bitmap for each peer, in their order, and no other. Up to 3 there was no room.
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(AttachError::Version(version));
        }
        Self::decode_body(&mut input, version).map_err(|_| AttachError::Damaged)
    }

    fn decode_body(input: &mut Reader<'_>, version: u32) -> Result<Self, FrameError> {
        let mut superblock = Self {
            sequence: input.u64()?,
            resource_id: input.u128()?,
            replica: ReplicaId(input.u128()?),
            incarnation: Incarnation(input.u128()?),
            data_bytes: input.u64()?,
            device_bytes: input.u64()?,
            log_epoch: input.u64()?,
            tenure: input.u64()?,
            coming: input.u64()?,
            block_bytes: input.u32()?,
            log_extents: input.u16()?,
            volume: input.u16()?,
            ..Self::default()
        };
        let flags = input.u16()?;
        superblock.internal = flags & 1 != 0;
        superblock.clean = flags & 2 != 0;
        superblock.invalid = flags & 4 != 0;
        superblock.syncing = flags & 8 != 0;
        superblock.discard_diverged = flags & 16 != 0;
        superblock.assumed_equal = flags & 32 != 0;
        superblock.diverged = flags & 64 != 0;
        superblock.fingerprint.copy_from_slice(input.slice(32)?);
        superblock.resource = take_name(input)?;
        superblock.node = take_name(input)?;
        superblock.register = take_register(input)?;
        let has_slots = version > 2;
        let slots = if has_slots { Some(input.u8()?) } else { None };
        let peers = input.u8()?;
        if usize::from(peers) > PEERS_MAX {
            return Err(FrameError::Bounds);
        }
        superblock.bitmap_slots = slots.unwrap_or(peers);
        for number in 0..peers {
            superblock.peers.push(PeerRecord {
                node: take_name(input)?,
                slot: if has_slots { input.u8()? } else { number },
                replica: ReplicaId(input.u128()?),
                base: input.u64()?,
                floor: input.u64()?,
                all_dirty: input.u8()? != 0,
            });
        }
        (superblock.room_bytes, superblock.bitmaps_for_bytes) = match version > WITHOUT_ROOM {
            true => (input.u64()?, input.u64()?),
            false => (superblock.data_bytes, superblock.data_bytes),
        };
        Ok(superblock)
    }
}

fn put_name(name: &str, out: &mut Vec<u8>) {
    assert!(name.len() <= NAME_BYTES_MAX, "name of {} bytes", name.len());
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn take_name(input: &mut Reader<'_>) -> Result<String, FrameError> {
    let length = input.u8()?;
    let bytes = input.slice(usize::from(length))?;
    core::str::from_utf8(bytes).map(String::from).map_err(|_| FrameError::Payload)
}

/// The whole metadata region as the driver read it at the start.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// The region's bytes.
    pub region: &'a [u8],
    /// Bytes of the device that holds the region, now.
    pub device_bytes: u64,
    /// Bytes of the disk that holds the data, now.
    pub disk_bytes: u64,
    /// The fingerprint of the data, taken now; needed only when the superblock is clean.
    pub fingerprint: Option<[u8; 32]>,
}

/// The ranges of the data area that a fingerprint hashes, in order: both ends, and samples
/// between. The driver hashes each range's bytes one after the other (R12).
pub fn fingerprint_samples(data_bytes: u64) -> Vec<ByteRange> {
    const SAMPLES: u64 = 64;
    const SAMPLE_BYTES: u64 = 16 << 10;
    // A very small area is hashed whole.
    let step = (data_bytes / SAMPLES).max(DIRTY_BLOCK_BYTES) & !4095;
    let mut samples: Vec<ByteRange> = (0..SAMPLES.min(data_bytes / step))
        .map(|number| ByteRange::new(number * step, SAMPLE_BYTES.min(step)))
        .collect();
    let tail = SAMPLE_BYTES.min(data_bytes);
    samples.push(ByteRange::new((data_bytes - tail) & !4095, tail & !4095));
    samples
}

/// What `replctl create` asks for.
#[derive(Clone, Debug)]
pub struct FormatRequest {
    /// Bytes of the device that gets the metadata region.
    pub device_bytes: u64,
    /// Whether that is the disk itself, so that the data area ends before the region.
    pub internal: bool,
    /// Bytes of the disk that holds the data.
    pub disk_bytes: u64,
    /// Wanted size of the data area; `None`: as large as the disk allows.
    pub data_bytes: Option<u64>,
    /// How far it may grow without more ado; `None`: not at all.
    pub room_bytes: Option<u64>,
    /// Block size of the resource.
    pub block_bytes: u32,
    /// Slots of the activity log.
    pub log_extents: u16,
    /// Name of the resource.
    pub resource: String,
    /// Its random id.
    pub resource_id: u128,
    /// Name of this node.
    pub node: String,
    /// Random id for this replica.
    pub replica: ReplicaId,
    /// Names of the other data nodes.
    pub peers: Vec<String>,
    /// Bitmaps there is to be room for; at least one for each peer is made.
    pub bitmap_slots: usize,
    /// Boot id.
    pub incarnation: Incarnation,
    /// This disk holds the data (R11b): it is the first and only member of the set.
    pub origin: bool,
    /// The operator says that every replica holds the same data now (R10).
    pub assume_equal: bool,
}

impl FormatRequest {
    fn slots(&self) -> usize {
        self.bitmap_slots.max(self.peers.len())
    }
}

/// Why metadata cannot be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormatError {
    /// The disk is too small: (has, needs) in bytes.
    TooSmall(u64, u64),
    /// A name is empty or too long.
    Name(String),
    /// The log must have 64 to 8192 extents.
    LogExtents(u16),
    /// 512, 1024, 2048 or 4096.
    BlockBytes(u32),
    /// More peers than the format has slots for.
    Peers(usize),
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooSmall(has, needs) => {
                write!(f, "too small: it has {has} bytes, at least {needs} are needed")
            }
            Self::Name(name) => {
                write!(f, "the name {name:?} must have 1 to {NAME_BYTES_MAX} bytes")
            }
            Self::LogExtents(extents) => {
                write!(f, "log_extents is {extents}, it must be 64 to 8192")
            }
            Self::BlockBytes(bytes) => {
                write!(f, "block size {bytes} is not 512, 1024, 2048 or 4096")
            }
            Self::Peers(peers) => write!(f, "{peers} peers, at most {PEERS_MAX} are possible"),
        }
    }
}

impl core::error::Error for FormatError {}

/// What has to be written to make a disk a replica.
#[derive(Clone, Debug)]
pub struct Formatted {
    /// Where the parts lie.
    pub layout: Layout,
    /// Bytes of the data area.
    pub data_bytes: u64,
    /// The range of the disk behind the data area that it may grow into: to be zeroed first.
    pub room: Range<u64>,
    /// The absolute range of the metadata device to be zeroed first.
    pub zero: Range<u64>,
    /// Then these, absolute; each durable before the next.
    pub writes: Vec<(u64, Box<[u8]>)>,
}

/// Plans fresh metadata.
pub fn format(request: &FormatRequest) -> Result<Formatted, FormatError> {
    for name in [&request.resource, &request.node].into_iter().chain(&request.peers) {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(FormatError::Name(name.clone()));
        }
    }
    if !LOG_EXTENTS_RANGE.contains(&request.log_extents) {
        return Err(FormatError::LogExtents(request.log_extents));
    }
    if ![512, 1024, 2048, 4096].contains(&request.block_bytes) {
        return Err(FormatError::BlockBytes(request.block_bytes));
    }
    if request.slots() > PEERS_MAX {
        return Err(FormatError::Peers(request.slots()));
    }
    let data_bytes = data_area(request, request.data_bytes)?;
    let room_bytes = match request.room_bytes {
        Some(room) => data_area(request, Some(room.max(data_bytes)))?,
        None => data_bytes,
    };
    let layout = Layout::new(request.device_bytes, room_bytes, request.slots());
    let superblock = fresh_superblock(request, data_bytes, room_bytes).encode();
    let [first, second] = layout.superblocks.map(|at| layout.region_start + at);
    let start = layout.region_start;
    Ok(Formatted {
        zero: start..start + layout.region_bytes,
        writes: vec![(first, superblock.clone()), (second, superblock)],
        layout,
        data_bytes,
        room: data_bytes..room_bytes,
    })
}

/// The data area of a wanted size, or the largest there is a place for.
fn data_area(request: &FormatRequest, wanted: Option<u64>) -> Result<u64, FormatError> {
    let slots = request.slots();
    let room = if request.internal {
        // The bitmaps for the whole device are at least as large as those for the data area.
        let region = Layout::new(u64::MAX / 2, request.device_bytes, slots).region_bytes;
        (request.device_bytes & !4095).saturating_sub(region)
    } else {
        request.disk_bytes
    };
    let wanted = wanted.unwrap_or(room & !4095);
    let region = Layout::new(u64::MAX / 2, wanted, slots).region_bytes;
    if wanted > room || wanted < DATA_BYTES_MIN {
        let needs = wanted.max(DATA_BYTES_MIN) + if request.internal { region } else { 0 };
        return Err(FormatError::TooSmall(request.disk_bytes, needs));
    }
    if !request.internal && request.device_bytes < region {
        return Err(FormatError::TooSmall(request.device_bytes, region));
    }
    Ok(wanted & !4095)
}

fn fresh_superblock(request: &FormatRequest, data_bytes: u64, room_bytes: u64) -> Superblock {
    let mut register = RegisterState::default();
    if request.origin {
        register = register.with(request.replica, request.incarnation);
        register.authority = Some(request.replica);
        register.released_clean = true;
    }
    // With --assume-equal both bitmaps name generation 1 and are empty, so that the first
    // resync finds nothing to copy; without it the base 0 means a full one.
    let base = u64::from(request.assume_equal);
    let record = |(slot, node): (u8, &String)| {
        let node = node.clone();
        PeerRecord { node, slot, base, ..PeerRecord::default() }
    };
    Superblock {
        sequence: 1,
        resource_id: request.resource_id,
        resource: request.resource.clone(),
        node: request.node.clone(),
        replica: request.replica,
        incarnation: request.incarnation,
        data_bytes,
        room_bytes,
        bitmaps_for_bytes: room_bytes,
        device_bytes: request.device_bytes,
        internal: request.internal,
        block_bytes: request.block_bytes,
        log_extents: request.log_extents,
        log_epoch: 1,
        register,
        assumed_equal: request.assume_equal,
        bitmap_slots: request.slots() as u8,
        peers: (0..).zip(&request.peers).map(record).collect(),
        ..Superblock::default()
    }
}

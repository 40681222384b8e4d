//! The frames two replicas exchange.
//!
//! Every frame is a header of [`HEADER_BYTES`] bytes, then `payload_len` bytes: data for the
//! messages of [`Header::carries_data`], else the encoded rest of the message. All numbers are
//! little-endian. The checksums are CRC-32 (IEEE). Before the first frame both ends have proved
//! that they know the cluster's key (the driver's greeting, `replicator/src/greeting.rs`).
//!
//! Protocol versions (retired numbers are never used again):
//! - 1: the first.
//! - 2: a register says whether its primary is the only member under a lease without end.
//! - 3: a greeting counts when its sender says, in the same session, that it still holds (`Met`).
//! - 4: with three and more replicas a primary names the others (`Replicas`) and tells which
//!   extents are cold (`Cooled`).
//! - 5: a primary has a member read and hash what it has (`Verify` and so on). A volume may grow
//!   (`Resize`, `Resized`); a greeting says how much room there is, and more is made of a disk that
//!   was extended (`MakeRoom`, `Room`). A frame bears the version that brought it, so a peer of
//!   version 4 reads all others.

mod verify;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::block::{BlockDigest, ByteRange, Incarnation, ReplicaId};
use crate::command::{Answer, Refusal};
use crate::limits::{CONTROL_BYTES_MAX, IO_BYTES_MAX, ZERO_BYTES_MAX};
use crate::register::{Basis, Member, RegisterState};
use crate::verify_news::VerifyNews;

/// Oldest and newest protocol version this build speaks.
pub const VERSIONS: (u8, u8) = (4, 5);
/// The version since which copies can be compared.
pub const VERIFY_SINCE: u8 = 5;
/// Length of a frame header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"RPL1");

/// What a frame says.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Message {
    /// First on every session, from both sides: one atomic snapshot of the sender.
    Hello(Box<Hello>),
    /// The sender has read the greeting of this session, and its own still holds. Without this
    /// word a greeting may be an old one: a connection that its dialer gave up long ago can come
    /// through after later ones.
    Met,
    /// The sender ends the session and says why; the other side shows it.
    Refused {
        /// In words.
        reason: Box<str>,
        /// Dirty blocks that differ, when lineages diverged (R11d); else 0.
        diverged_blocks: u64,
    },
    /// A piece of the sender's dirty bitmap for the receiver: runs of dirty blocks.
    Bitmap(Vec<(u64, u64)>),
    /// Secondary to primary: tenure and register copy are durable, my bitmap is complete.
    Follow,
    /// Primary to secondary: how the resync will be done; `base` is the generation both bitmaps
    /// will name from now on.
    SyncStart {
        /// Whether every block is copied.
        full: bool,
        /// See [`crate::superblock::PeerRecord::base`].
        base: u64,
    },
    /// The secondary has recorded that it is being resynced.
    SyncReady,
    /// A client's write, for every replica.
    Write {
        /// The tenure it was admitted in (R2).
        tenure: u64,
        /// Number of this frame in its session, counted together with all data frames.
        seq: u64,
        /// Aligned to the block size.
        range: ByteRange,
        /// Acknowledge only when durable.
        fua: bool,
    },
    /// A client's zeroes, trim included.
    Zero {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
        /// Aligned to the block size.
        range: ByteRange,
        /// Backing storage may be given back.
        may_punch: bool,
        /// Acknowledge only when durable.
        fua: bool,
    },
    /// Make durable everything that came before in this session.
    Flush {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
    },
    /// A block range of a resync.
    ResyncData {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
        /// Aligned to the block size.
        range: ByteRange,
    },
    /// A range of a resync that is all zeroes.
    ResyncZero {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
        /// Aligned to the block size.
        range: ByteRange,
    },
    /// A data frame or flush is done on the secondary.
    Ack {
        /// Which.
        seq: u64,
    },
    /// The next generation will make you a member: make it durable (R4d).
    Grow(Box<RegisterState>),
    /// The coming generation is durable here.
    GrowReady {
        /// Which.
        generation: u64,
    },
    /// The authority committed this.
    Committed(Box<RegisterState>),
    /// The receiver is a member and in sync, and the sender acknowledges nothing without it before
    /// it is off for sure or has promised to stand back (`fenced.rs`).
    InSync,
    /// The sender wants to leave orderly.
    Leave {
        /// The sequence of its superblock; it will only come back with a higher one (R12).
        sequence: u64,
    },
    /// It is out of the set, or nobody minds.
    LeaveDone,
    /// The sender's disk failed; it holds nothing any more.
    DiskFailed,
    /// The sender asks for the authority (no witness), to be promoted.
    AuthorityWanted,
    /// The sender gave the authority away, durably: this is the register now.
    AuthorityGiven(Box<RegisterState>),
    /// The authority stays where it is.
    AuthorityRefused {
        /// In words.
        reason: Box<str>,
    },
    /// Primary to secondary, with three and more replicas: which replica is where.
    Replicas(Vec<(ReplicaId, Box<str>)>),
    /// Primary to secondary, with three and more replicas: these extents left its activity log.
    Cooled {
        /// Numbers of extents.
        extents: Vec<u32>,
        /// The secondaries whose flush covered everything the primary sent them there.
        flushed: Vec<ReplicaId>,
    },
    /// Primary to member: read this range, after what was written to it before, and hash it.
    Verify {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
        /// Aligned to the block size.
        range: ByteRange,
    },
    /// Member to primary: the hashes of the blocks; none when they cannot be read.
    VerifyDigests {
        /// Which.
        seq: u64,
        /// One for each block of the range.
        digests: Vec<BlockDigest>,
    },
    /// Primary to followers: how the verify of a node's copy goes.
    VerifyNews {
        /// The node.
        copy: Box<str>,
        /// What is new.
        news: VerifyNews,
    },
    /// Follower to primary: an operator there orders a verify, or its end.
    VerifyWanted {
        /// Whether to repair.
        repair: bool,
        /// Whether to end it.
        cancel: bool,
    },
    /// The answer to that.
    VerifyAnswer(Result<Answer, Box<Refusal>>),
    /// Primary to secondary: the data area is to have so many bytes; what is beyond the old end
    /// reads as zeroes on both.
    Resize {
        /// The new size.
        size_bytes: u64,
    },
    /// The data area has so many bytes here, durably.
    Resized {
        /// The new size.
        size_bytes: u64,
    },
    /// Primary to secondary: a volume is to grow; make room of what was added to the backing disk.
    MakeRoom,
    /// The room here. One that was asked says so when no more will come soon.
    Room {
        /// How far the data area may grow.
        room_bytes: u64,
        /// Whether more is being made.
        is_growing: bool,
    },
    /// I am here.
    Ping,
    /// Primary to member: acknowledge this if the sender is still the one you follow (R5e).
    Echo {
        /// As for a write.
        tenure: u64,
        /// As for a write.
        seq: u64,
    },
}

/// The greeting of a session: everything a resync decision needs, as one snapshot (R13).
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Hello {
    /// Random id of the resource from `replctl init`; differing ones never replicate.
    pub resource_id: u128,
    /// Who the sender is.
    pub replica: ReplicaId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Size of its data area in bytes.
    pub size_bytes: u64,
    /// How far that may grow, in bytes; 0 from a peer that does not know growing (version 4).
    pub room_bytes: u64,
    /// Its block size in bytes.
    pub block_bytes: u32,
    /// Whether zeroes can be punched there (R17).
    pub can_punch: bool,
    /// Whether it is primary right now (serving).
    pub is_primary: bool,
    /// Whether its disk is usable.
    pub has_disk: bool,
    /// An operator called its data bad, or its disk was used without us: full resync.
    pub invalid: bool,
    /// A resync of it was begun and not finished.
    pub syncing: bool,
    /// An operator gave up its diverged data (R11d).
    pub discard_diverged: bool,
    /// An operator said at its creation that all replicas are equal (R10).
    pub assumed_equal: bool,
    /// The sequence of its superblock when its process started (R12).
    pub started_from: u64,
    /// The newest tenure it has accepted.
    pub tenure: u64,
    /// Its copy of the register.
    pub register: RegisterState,
    /// The generation it was told it would join in (R4d); 0 when none is open.
    pub coming: u64,
    /// Which replica it remembers at the receiver's place; NONE when it never met one.
    pub knows_you_as: ReplicaId,
    /// The generation at which its bitmap for the receiver was last empty.
    pub base: u64,
    /// Dirty blocks in its bitmap for the receiver.
    pub dirty_blocks: u64,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    kind: u8,
    flags: u16,
    /// Volume the frame is about; 0 in this version.
    pub volume: u16,
    /// Bytes that follow the header.
    pub payload_bytes: u32,
    /// Checksum of these bytes; 0 when there are none.
    pub payload_crc: u32,
    tenure: u64,
    seq: u64,
    start: u64,
    length: u64,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// Not our magic: the stream is out of step or not ours.
    Magic(u32),
    /// A protocol version this build does not speak.
    Version(u8),
    /// The header checksum is wrong.
    HeaderChecksum,
    /// The payload checksum is wrong.
    PayloadChecksum,
    /// An unknown message number.
    Kind(u8),
    /// A length or range outside its limits.
    Bounds,
    /// The control payload does not decode.
    Payload,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "not a replicator frame (magic {magic:#010x})"),
            Self::Version(version) => write!(f, "protocol version {version} is not spoken here"),
            Self::HeaderChecksum => f.write_str("header checksum is wrong"),
            Self::PayloadChecksum => f.write_str("payload checksum is wrong"),
            Self::Kind(kind) => write!(f, "unknown message number {kind}"),
            Self::Bounds => f.write_str("a length or range is outside its limits"),
            Self::Payload => f.write_str("the contents do not decode"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Message numbers on the wire.
mod kind {
    pub const HELLO: u8 = 1;
    pub const REFUSED: u8 = 2;
    pub const BITMAP: u8 = 3;
    pub const FOLLOW: u8 = 4;
    pub const SYNC_START: u8 = 5;
    pub const SYNC_READY: u8 = 6;
    pub const WRITE: u8 = 7;
    pub const ZERO: u8 = 8;
    pub const FLUSH: u8 = 9;
    pub const RESYNC_DATA: u8 = 10;
    pub const RESYNC_ZERO: u8 = 11;
    pub const ACK: u8 = 12;
    pub const GROW: u8 = 13;
    pub const GROW_READY: u8 = 14;
    pub const COMMITTED: u8 = 15;
    pub const LEAVE: u8 = 16;
    pub const LEAVE_DONE: u8 = 17;
    pub const DISK_FAILED: u8 = 18;
    pub const AUTHORITY_WANTED: u8 = 19;
    pub const AUTHORITY_GIVEN: u8 = 20;
    pub const AUTHORITY_REFUSED: u8 = 21;
    pub const PING: u8 = 22;
    pub const MET: u8 = 23;
    pub const IN_SYNC: u8 = 24;
    pub const REPLICAS: u8 = 25;
    pub const COOLED: u8 = 26;
    pub const ECHO: u8 = 27;
    pub const VERIFY: u8 = 40;
    pub const VERIFY_DIGESTS: u8 = 41;
    pub const VERIFY_NEWS: u8 = 42;
    pub const VERIFY_WANTED: u8 = 43;
    pub const VERIFY_ANSWER: u8 = 44;
    pub const RESIZE: u8 = 50;
    pub const RESIZED: u8 = 51;
    pub const MAKE_ROOM: u8 = 52;
    pub const ROOM: u8 = 53;

    /// The protocol version that brought a message; 4 is the oldest that is spoken.
    pub fn version(kind: u8) -> u8 {
        if kind < VERIFY { 4 } else { 5 }
    }
}

/// Largest generation, tenure or lineage a state may name.
const NUMBER_MAX: u64 = 1 << 62;
const FLAG_FUA: u16 = 1;
const FLAG_PUNCH: u16 = 2;
const FLAG_FULL: u16 = 4;
const FLAG_GROWING: u16 = 8;
/// Runs one `Bitmap` message holds at most.
pub const BITMAP_RUNS_MAX: usize = CONTROL_BYTES_MAX / 16;

impl Message {
    /// Bytes of data payload; 0 for control messages.
    pub fn data_len(&self) -> usize {
        match self {
            Self::Write { range, .. } | Self::ResyncData { range, .. } => range.length as usize,
            _ => 0,
        }
    }
}

/// A message as a header and the control payload that follows it; the data payload of data
/// messages follows instead, with the checksum given in `data_crc`.
pub fn encode(message: &Message, volume: u16, data_crc: u32) -> ([u8; HEADER_BYTES], Vec<u8>) {
    let mut header = Header {
        kind: 0,
        flags: 0,
        volume,
        payload_bytes: message.data_len() as u32,
        payload_crc: data_crc,
        tenure: 0,
        seq: 0,
        start: 0,
        length: 0,
    };
    let mut control = Vec::new();
    header.fill(message, &mut control);
    if !control.is_empty() {
        debug_assert!(control.len() <= CONTROL_BYTES_MAX);
        header.payload_bytes = control.len() as u32;
        header.payload_crc = crc32fast::hash(&control);
    }
    (header.to_bytes(), control)
}

/// The message of a header and its control payload (empty for data messages).
pub fn decode(header: &Header, control: &[u8]) -> Result<Message, FrameError> {
    if header.volume != 0 {
        return Err(FrameError::Bounds);
    }
    let mut input = Reader { bytes: control };
    let message = header.message(&mut input)?;
    if !input.bytes.is_empty() { Err(FrameError::Payload) } else { Ok(message) }
}

impl Header {
    /// Checks and reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut input = Reader { bytes };
        let magic = input.u32()?;
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if crc32fast::hash(&bytes[..60]).to_le_bytes() != bytes[60..] {
            return Err(FrameError::HeaderChecksum);
        }
        let version = input.u8()?;
        if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
            return Err(FrameError::Version(version));
        }
        let header = Self {
            kind: input.u8()?,
            flags: input.u16()?,
            volume: input.u16()?,
            payload_bytes: {
                input.u16()?;
                input.u32()?
            },
            tenure: input.u64()?,
            seq: input.u64()?,
            start: input.u64()?,
            length: input.u64()?,
            payload_crc: input.u32()?,
        };
        header.check()?;
        Ok(header)
    }

    /// Whether the payload is data of the volume (else it belongs to the message itself).
    pub fn carries_data(&self) -> bool {
        matches!(self.kind, kind::WRITE | kind::RESYNC_DATA)
    }

    fn check(&self) -> Result<(), FrameError> {
        let payload = u64::from(self.payload_bytes);
        let ranged = matches!(
            self.kind,
            kind::WRITE | kind::RESYNC_DATA | kind::ZERO | kind::RESYNC_ZERO | kind::VERIFY
        );
        let reads = self.kind == kind::VERIFY;
        let length_max = if self.carries_data() || reads { IO_BYTES_MAX } else { ZERO_BYTES_MAX };
        let fits = if self.carries_data() {
            payload == self.length
        } else {
            payload <= CONTROL_BYTES_MAX as u64
        };
        let ordered = !ranged
            || (self.length > 0
                && self.length <= length_max
                && self.start.checked_add(self.length).is_some());
        if fits && ordered { Ok(()) } else { Err(FrameError::Bounds) }
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = kind::version(self.kind);
        bytes[5] = self.kind;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.volume.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tenure.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.start.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.length.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn ranged(&mut self, kind: u8, tenure: u64, seq: u64, range: ByteRange, flags: u16) {
        (self.kind, self.tenure, self.seq, self.flags) = (kind, tenure, seq, flags);
        (self.start, self.length) = (range.start, range.length);
    }

    fn fill(&mut self, message: &Message, out: &mut Vec<u8>) {
        match message {
            Message::Hello(hello) => {
                // Version 4 looks at no number of the head here.
                (self.kind, self.start) = (kind::HELLO, hello.room_bytes);
                hello.put(out);
            }
            Message::Met => self.kind = kind::MET,
            Message::InSync => self.kind = kind::IN_SYNC,
            Message::Refused { reason, diverged_blocks } => {
                (self.kind, self.seq) = (kind::REFUSED, *diverged_blocks);
                out.extend_from_slice(reason.as_bytes());
                out.truncate(1024);
            }
            Message::Bitmap(runs) => {
                self.kind = kind::BITMAP;
                for (start, length) in runs {
                    out.extend_from_slice(&start.to_le_bytes());
                    out.extend_from_slice(&length.to_le_bytes());
                }
            }
            Message::Follow => self.kind = kind::FOLLOW,
            Message::SyncStart { full, base } => {
                (self.kind, self.seq) = (kind::SYNC_START, *base);
                self.flags = if *full { FLAG_FULL } else { 0 };
            }
            Message::SyncReady => self.kind = kind::SYNC_READY,
            Message::Write { tenure, seq, range, fua } => {
                self.ranged(kind::WRITE, *tenure, *seq, *range, u16::from(*fua) * FLAG_FUA);
            }
            Message::Zero { tenure, seq, range, may_punch, fua } => {
                let flags = (u16::from(*fua) * FLAG_FUA) | (u16::from(*may_punch) * FLAG_PUNCH);
                self.ranged(kind::ZERO, *tenure, *seq, *range, flags);
            }
            Message::Flush { tenure, seq } => {
                (self.kind, self.tenure, self.seq) = (kind::FLUSH, *tenure, *seq);
            }
            Message::ResyncData { tenure, seq, range } => {
                self.ranged(kind::RESYNC_DATA, *tenure, *seq, *range, 0);
            }
            Message::ResyncZero { tenure, seq, range } => {
                self.ranged(kind::RESYNC_ZERO, *tenure, *seq, *range, 0);
            }
            Message::Ack { seq } => (self.kind, self.seq) = (kind::ACK, *seq),
            Message::Grow(state) => self.register(kind::GROW, state, out),
            Message::GrowReady { generation } => {
                (self.kind, self.seq) = (kind::GROW_READY, *generation);
            }
            Message::Committed(state) => self.register(kind::COMMITTED, state, out),
            Message::Leave { sequence } => (self.kind, self.seq) = (kind::LEAVE, *sequence),
            Message::LeaveDone => self.kind = kind::LEAVE_DONE,
            Message::DiskFailed => self.kind = kind::DISK_FAILED,
            Message::AuthorityWanted => self.kind = kind::AUTHORITY_WANTED,
            Message::AuthorityGiven(state) => self.register(kind::AUTHORITY_GIVEN, state, out),
            Message::AuthorityRefused { reason } => {
                self.kind = kind::AUTHORITY_REFUSED;
                out.extend_from_slice(reason.as_bytes());
                out.truncate(1024);
            }
            Message::Replicas(replicas) => {
                self.kind = kind::REPLICAS;
                for (replica, node) in replicas {
                    out.extend_from_slice(&replica.0.to_le_bytes());
                    out.push(node.len() as u8);
                    out.extend_from_slice(node.as_bytes());
                }
            }
            Message::Cooled { extents, flushed } => {
                self.kind = kind::COOLED;
                out.push(flushed.len() as u8);
                for replica in flushed {
                    out.extend_from_slice(&replica.0.to_le_bytes());
                }
                for extent in extents {
                    out.extend_from_slice(&extent.to_le_bytes());
                }
            }
            Message::Verify { tenure, seq, range } => {
                self.ranged(kind::VERIFY, *tenure, *seq, *range, 0);
            }
            Message::VerifyDigests { seq, digests } => self.put_digests(*seq, digests, out),
            Message::VerifyNews { copy, news } => self.put_news(copy, news, out),
            Message::VerifyWanted { repair, cancel } => self.put_wanted(*repair, *cancel),
            Message::VerifyAnswer(result) => self.put_answer(result, out),
            Message::Resize { size_bytes } => {
                (self.kind, self.start) = (kind::RESIZE, *size_bytes);
            }
            Message::Resized { size_bytes } => {
                (self.kind, self.start) = (kind::RESIZED, *size_bytes);
            }
            Message::MakeRoom => self.kind = kind::MAKE_ROOM,
            Message::Room { room_bytes, is_growing } => {
                (self.kind, self.start) = (kind::ROOM, *room_bytes);
                self.flags = u16::from(*is_growing) * FLAG_GROWING;
            }
            Message::Ping => self.kind = kind::PING,
            Message::Echo { tenure, seq } => {
                (self.kind, self.tenure, self.seq) = (kind::ECHO, *tenure, *seq);
            }
        }
    }

    fn register(&mut self, kind: u8, state: &RegisterState, out: &mut Vec<u8>) {
        self.kind = kind;
        put_register(state, out);
    }

    fn message(&self, input: &mut Reader<'_>) -> Result<Message, FrameError> {
        let (tenure, seq) = (self.tenure, self.seq);
        let range = ByteRange { start: self.start, length: self.length };
        let fua = self.flags & FLAG_FUA != 0;
        let may_punch = self.flags & FLAG_PUNCH != 0;
        Ok(match self.kind {
            kind::HELLO => {
                let hello = Hello { room_bytes: self.start, ..Hello::take(input)? };
                Message::Hello(Box::new(hello))
            }
            kind::MET => Message::Met,
            kind::IN_SYNC => Message::InSync,
            kind::REFUSED => Message::Refused { reason: input.rest_text(), diverged_blocks: seq },
            kind::BITMAP => {
                let mut runs = Vec::new();
                while !input.bytes.is_empty() {
                    runs.push((input.u64()?, input.u64()?));
                }
                Message::Bitmap(runs)
            }
            kind::FOLLOW => Message::Follow,
            kind::SYNC_START => Message::SyncStart { full: self.flags & FLAG_FULL != 0, base: seq },
            kind::SYNC_READY => Message::SyncReady,
            kind::WRITE => Message::Write { tenure, seq, range, fua },
            kind::ZERO => Message::Zero { tenure, seq, range, may_punch, fua },
            kind::FLUSH => Message::Flush { tenure, seq },
            kind::RESYNC_DATA => Message::ResyncData { tenure, seq, range },
            kind::RESYNC_ZERO => Message::ResyncZero { tenure, seq, range },
            kind::ACK => Message::Ack { seq },
            kind::GROW => Message::Grow(Box::new(take_register(input)?)),
            kind::GROW_READY => Message::GrowReady { generation: seq },
            kind::COMMITTED => Message::Committed(Box::new(take_register(input)?)),
            kind::LEAVE => Message::Leave { sequence: seq },
            kind::LEAVE_DONE => Message::LeaveDone,
            kind::DISK_FAILED => Message::DiskFailed,
            kind::AUTHORITY_WANTED => Message::AuthorityWanted,
            kind::AUTHORITY_GIVEN => Message::AuthorityGiven(Box::new(take_register(input)?)),
            kind::AUTHORITY_REFUSED => Message::AuthorityRefused { reason: input.rest_text() },
            kind::REPLICAS => take_replicas(input)?,
            kind::COOLED => take_cooled(input)?,
            kind::VERIFY => Message::Verify { tenure, seq, range },
            kind::VERIFY_DIGESTS => self.take_digests(input)?,
            kind::VERIFY_NEWS => self.take_news(input)?,
            kind::VERIFY_WANTED => self.take_wanted(),
            kind::VERIFY_ANSWER => self.take_answer(input)?,
            kind::RESIZE => Message::Resize { size_bytes: self.start },
            kind::RESIZED => Message::Resized { size_bytes: self.start },
            kind::MAKE_ROOM => Message::MakeRoom,
            kind::ROOM => {
                Message::Room { room_bytes: self.start, is_growing: self.flags & FLAG_GROWING != 0 }
            }
            kind::PING => Message::Ping,
            kind::ECHO => Message::Echo { tenure, seq },
            other => return Err(FrameError::Kind(other)),
        })
    }
}

impl Hello {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.resource_id.to_le_bytes());
        out.extend_from_slice(&self.replica.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.knows_you_as.0.to_le_bytes());
        for number in [
            self.size_bytes,
            self.started_from,
            self.tenure,
            self.coming,
            self.base,
            self.dirty_blocks,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.block_bytes.to_le_bytes());
        let flags = self.flags().iter().rev().fold(0u16, |all, &flag| all << 1 | u16::from(flag));
        out.extend_from_slice(&flags.to_le_bytes());
        put_register(&self.register, out);
    }

    fn flags(&self) -> [bool; 7] {
        [
            self.can_punch,
            self.is_primary,
            self.has_disk,
            self.invalid,
            self.syncing,
            self.discard_diverged,
            self.assumed_equal,
        ]
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, FrameError> {
        let mut hello = Self {
            resource_id: input.u128()?,
            replica: ReplicaId(input.u128()?),
            incarnation: Incarnation(input.u128()?),
            knows_you_as: ReplicaId(input.u128()?),
            size_bytes: input.u64()?,
            started_from: input.u64()?,
            tenure: input.u64()?,
            coming: input.u64()?,
            base: input.u64()?,
            dirty_blocks: input.u64()?,
            block_bytes: input.u32()?,
            ..Self::default()
        };
        let flags = input.u16()?;
        hello.can_punch = flags & 1 != 0;
        hello.is_primary = flags & 2 != 0;
        hello.has_disk = flags & 4 != 0;
        hello.invalid = flags & 8 != 0;
        hello.syncing = flags & 16 != 0;
        hello.discard_diverged = flags & 32 != 0;
        hello.assumed_equal = flags & 64 != 0;
        hello.register = take_register(input)?;
        Ok(hello)
    }
}

/// Appends a register state in the form that frames and superblocks share.
pub(crate) fn put_register(state: &RegisterState, out: &mut Vec<u8>) {
    out.extend_from_slice(&state.generation.to_le_bytes());
    out.extend_from_slice(&state.tenure.to_le_bytes());
    out.extend_from_slice(&state.primary.unwrap_or_default().0.to_le_bytes());
    out.extend_from_slice(&state.authority.unwrap_or_default().0.to_le_bytes());
    out.extend_from_slice(&state.basis.lineage.to_le_bytes());
    let flags = u8::from(state.released_clean)
        | u8::from(state.basis.taker_was_member) << 1
        | u8::from(state.sole) << 2;
    out.extend_from_slice(&[flags, state.set.len() as u8]);
    for member in &state.set {
        out.extend_from_slice(&member.replica.0.to_le_bytes());
        out.extend_from_slice(&member.incarnation.0.to_le_bytes());
    }
}

/// Reads what [`put_register`] wrote.
pub(crate) fn take_register(input: &mut Reader<'_>) -> Result<RegisterState, FrameError> {
    let some = |id: u128| (id != 0).then_some(ReplicaId(id));
    let mut state = RegisterState {
        generation: input.u64()?,
        tenure: input.u64()?,
        primary: some(input.u128()?),
        authority: some(input.u128()?),
        basis: Basis { lineage: input.u64()?, taker_was_member: false },
        ..RegisterState::default()
    };
    let flags = input.u8()?;
    state.released_clean = flags & 1 != 0;
    state.basis.taker_was_member = flags & 2 != 0;
    state.sole = flags & 4 != 0;
    // No cluster lives that long; a larger number would overflow where one is added to it.
    if state.generation.max(state.tenure).max(state.basis.lineage) > NUMBER_MAX {
        return Err(FrameError::Bounds);
    }
    let members = input.u8()?;
    if usize::from(members) > crate::limits::PEERS_MAX + 1 {
        return Err(FrameError::Payload);
    }
    for _ in 0..members {
        state.set.push(Member {
            replica: ReplicaId(input.u128()?),
            incarnation: Incarnation(input.u128()?),
        });
    }
    let ordered = state.set.is_sorted_by(|one, other| one.replica < other.replica);
    if !ordered || state.contains(ReplicaId::NONE) {
        return Err(FrameError::Payload);
    }
    Ok(state)
}

fn take_replicas(input: &mut Reader<'_>) -> Result<Message, FrameError> {
    let mut replicas = Vec::new();
    while !input.bytes.is_empty() {
        if replicas.len() > crate::limits::PEERS_MAX {
            return Err(FrameError::Payload);
        }
        let replica = ReplicaId(input.u128()?);
        let length = usize::from(input.u8()?);
        let node = core::str::from_utf8(input.slice(length)?).map_err(|_| FrameError::Payload)?;
        if replica == ReplicaId::NONE {
            return Err(FrameError::Payload);
        }
        replicas.push((replica, node.into()));
    }
    Ok(Message::Replicas(replicas))
}

fn take_cooled(input: &mut Reader<'_>) -> Result<Message, FrameError> {
    let mut flushed = Vec::new();
    let count = usize::from(input.u8()?);
    if count > crate::limits::PEERS_MAX {
        return Err(FrameError::Payload);
    }
    for _ in 0..count {
        flushed.push(ReplicaId(input.u128()?));
    }
    let mut extents = Vec::with_capacity(input.bytes.len() / 4);
    while !input.bytes.is_empty() {
        extents.push(input.u32()?);
    }
    Ok(Message::Cooled { extents, flushed })
}

/// Takes little-endian numbers from the front of foreign bytes.
pub(crate) struct Reader<'a> {
    /// What is left.
    pub bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (first, rest) = self.bytes.split_first_chunk::<N>().ok_or(FrameError::Payload)?;
        self.bytes = rest;
        Ok(*first)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.take::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    pub(crate) fn u128(&mut self) -> Result<u128, FrameError> {
        Ok(u128::from_le_bytes(self.take()?))
    }
    pub(crate) fn slice(&mut self, length: usize) -> Result<&[u8], FrameError> {
        let (first, rest) = self.bytes.split_at_checked(length).ok_or(FrameError::Payload)?;
        self.bytes = rest;
        Ok(first)
    }
    fn rest_text(&mut self) -> Box<str> {
        let text = alloc::string::String::from_utf8_lossy(self.bytes).into_owned();
        self.bytes = &[];
        text.into_boxed_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version byte of a frame, after it was read back.
    fn version(message: Message) -> u8 {
        let (bytes, control) = encode(&message, 0, 0);
        let header = Header::decode(&bytes).expect("a good header");
        assert_eq!(decode(&header, &control), Ok(message));
        bytes[4]
    }

    #[test]
    fn a_frame_has_the_version_in_which_its_message_came() {
        assert_eq!(version(Message::Ping), 4);
        let hello = Hello { size_bytes: 7, room_bytes: 9, ..Hello::default() };
        assert_eq!(version(Message::Hello(Box::new(hello))), 4);
        for message in [
            Message::Resize { size_bytes: 1 << 40 },
            Message::Resized { size_bytes: 1 << 40 },
            Message::MakeRoom,
            Message::Room { room_bytes: 1 << 41, is_growing: true },
            Message::Room { room_bytes: 1 << 41, is_growing: false },
        ] {
            assert_eq!(version(message), 5);
        }
    }

    #[test]
    fn a_greeting_of_version_4_has_no_room() {
        // What version 4 left in the head of a greeting: nothing.
        let hello = Hello { size_bytes: 7, room_bytes: 0, ..Hello::default() };
        let (bytes, control) = encode(&Message::Hello(Box::new(hello)), 0, 0);
        assert_eq!(bytes[32..40], [0; 8]);
        let header = Header::decode(&bytes).expect("a good header");
        let Ok(Message::Hello(hello)) = decode(&header, &control) else { panic!("no greeting") };
        assert_eq!((hello.size_bytes, hello.room_bytes), (7, 0));
    }
}

//! The form of a recording: what a replica was made from, each of its inputs with its time, and
//! what it ordered at each step, so that the same core can be stepped again (`sim --replay`).
//!
//! A file is one line of text that says what it is ([`title`]), then records: a [`Head`] of
//! [`HEAD_BYTES`] bytes and as many bytes of contents as it says, at most [`RECORD_BYTES_MAX`].
//! The input of a step is written before the step and its effects after, so that a file that ends
//! anywhere is good up to there. Payload never passes through a core and is in no recording.
//! Numbers are little-endian, checksums CRC-32 (IEEE); frames have their form on the wire.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::block::{BufId, ByteRange, Incarnation, OpId, PeerIndex, RequestId, SessionId, Ticket};
use crate::command::Command;
use crate::config::{Config, PeerConfig, RegisterKeeper, Timing};
use crate::effect::Effect;
use crate::input::{ClientRequest, DiskFailure, DiskOutcome, Input, LinkLoss, Undecided};
use crate::metadata::Image;
use crate::register::RegisterState;
use crate::time::{Span, Time};
use crate::wire::{self, FrameError, Reader, put_register, take_register};

/// How every title begins; then come the version of the core and the end of the line.
pub const TITLE_START: &str = "replicator recording 4 of core ";
/// Longest title in bytes, its line end included.
pub const TITLE_BYTES_MAX: usize = 80;
/// Bytes of a [`Head`].
pub const HEAD_BYTES: usize = 9;
/// Most bytes of contents one record may have.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Bytes of a piece of the metadata region in one record; pieces of zeroes are left out.
const PIECE_BYTES: usize = 64 << 10;
/// Largest metadata region that is read back; that of a disk of 120 TiB with one peer.
const REGION_BYTES_MAX: u64 = 4 << 30;
/// An effect's text is cut here; a checksum stands for the rest.
const TEXT_BYTES_MAX: usize = 600;

const START: u8 = 1;
const REGION: u8 = 2;
const INPUT: u8 = 3;
const EFFECTS: u8 = 4;
const END: u8 = 5;

/// What stands in front of each record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    kind: u8,
    /// Bytes that follow, at most [`RECORD_BYTES_MAX`].
    pub length: usize,
    crc: u32,
}

/// One record.
#[derive(Clone, Debug)]
pub enum Record {
    /// What the core was made from: first in every file.
    Start {
        /// When it was attached.
        now: Time,
        /// What the driver told it.
        config: Config,
        /// Bytes of the metadata region; what no [`Record::Region`] says is zeroes.
        region_bytes: u64,
        /// As in [`Image`].
        device_bytes: u64,
        /// As in [`Image`].
        disk_bytes: u64,
        /// As in [`Image`].
        fingerprint: Option<[u8; 32]>,
    },
    /// A piece of the metadata region that is not all zeroes; all come right after the start.
    Region {
        /// From the start of the region.
        offset: u64,
        /// What is there.
        bytes: Vec<u8>,
    },
    /// A step began.
    Input {
        /// Its time.
        now: Time,
        /// What it was told.
        input: Input,
    },
    /// The step ended: a line of text for every effect, as [`describe`] makes it, in their order.
    Effects(String),
    /// The driver let go of the core in its own time; a killed process writes none.
    End,
}

/// Why a record cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// The head names an unknown kind of record, or a length above the limit.
    Head,
    /// The checksum is wrong.
    Checksum,
    /// The contents do not decode.
    Contents,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "a record of an unknown kind or length",
            Self::Checksum => "a record's checksum is wrong",
            Self::Contents => "a record does not decode",
        })
    }
}

impl core::error::Error for RecordError {}

impl From<FrameError> for RecordError {
    fn from(_: FrameError) -> Self {
        Self::Contents
    }
}

/// The first line of a file, with its line end.
pub fn title() -> String {
    format!("{TITLE_START}{}\n", env!("CARGO_PKG_VERSION"))
}

/// Appends what a core is made from, before [`Replica::attach`](crate::Replica::attach).
pub fn put_start(out: &mut Vec<u8>, now: Time, config: &Config, image: &Image<'_>) {
    put_record(out, START, |out| {
        put_u64(out, now.0);
        put_config(out, config);
        put_u64(out, image.region.len() as u64);
        put_u64(out, image.device_bytes);
        put_u64(out, image.disk_bytes);
        out.push(u8::from(image.fingerprint.is_some()));
        out.extend_from_slice(&image.fingerprint.unwrap_or_default());
    });
    for (number, piece) in image.region.chunks(PIECE_BYTES).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            put_record(out, REGION, |out| {
                put_u64(out, (number * PIECE_BYTES) as u64);
                out.extend_from_slice(piece);
            });
        }
    }
}

/// Appends an input, before the step that takes it.
pub fn put_input(out: &mut Vec<u8>, now: Time, input: &Input) {
    put_record(out, INPUT, |out| {
        put_u64(out, now.0);
        encode_input(out, input);
    });
}

/// Appends the effects of a step.
pub fn put_effects(out: &mut Vec<u8>, effects: &[Effect]) {
    put_record(out, EFFECTS, |out| {
        let text = describe_all(effects);
        out.extend_from_slice(text.as_bytes());
    });
}

/// Appends the orderly end of a recording.
pub fn put_end(out: &mut Vec<u8>) {
    put_record(out, END, |_| {});
}

/// The effects of a step as text: a line for each, in their order.
pub fn describe_all(effects: &[Effect]) -> String {
    let lines: Vec<String> = effects.iter().map(describe).collect();
    let text = lines.join("\n");
    if text.len() <= RECORD_BYTES_MAX {
        return text;
    }
    format!("{} effects, checksum {:08x}", effects.len(), crc32fast::hash(text.as_bytes()))
}

/// An effect as one line of text of a bounded length, which is the same for equal effects and
/// differs for different ones; a checksum stands for what is long.
pub fn describe(effect: &Effect) -> String {
    if let Effect::WriteMeta { op, offset, bytes } = effect {
        let crc = crc32fast::hash(bytes);
        let length = bytes.len();
        return format!("WriteMeta {{ op: {op:?}, offset: {offset}, {length} bytes {crc:08x} }}");
    }
    let mut text = format!("{effect:?}");
    if text.len() > TEXT_BYTES_MAX {
        let crc = crc32fast::hash(text.as_bytes());
        let end = (0..=TEXT_BYTES_MAX).rfind(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        text.push_str(&format!("... checksum {crc:08x}"));
    }
    text
}

/// Appends a record; the contents are what `fill` appends.
fn put_record(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    fill(out);
    let contents = &out[at + HEAD_BYTES..];
    assert!(contents.len() <= RECORD_BYTES_MAX, "a record of {} bytes", contents.len());
    let (length, crc) = (contents.len() as u32, crc32fast::hash(contents));
    out[at] = kind;
    out[at + 1..at + 5].copy_from_slice(&length.to_le_bytes());
    out[at + 5..at + 9].copy_from_slice(&crc.to_le_bytes());
}

impl Head {
    /// Reads what stands in front of a record.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, RecordError> {
        let mut from = Reader { bytes };
        let (kind, length, crc) = (from.u8()?, from.u32()? as usize, from.u32()?);
        if !(START..=END).contains(&kind) || length > RECORD_BYTES_MAX {
            return Err(RecordError::Head);
        }
        Ok(Self { kind, length, crc })
    }

    /// The record whose contents these are.
    pub fn record(&self, contents: &[u8]) -> Result<Record, RecordError> {
        if crc32fast::hash(contents) != self.crc {
            return Err(RecordError::Checksum);
        }
        let mut from = Reader { bytes: contents };
        let record = match self.kind {
            START => take_start(&mut from)?,
            REGION => {
                let offset = from.u64()?;
                Record::Region { offset, bytes: take_rest(&mut from).to_vec() }
            }
            INPUT => Record::Input { now: Time(from.u64()?), input: decode_input(&mut from)? },
            EFFECTS => {
                let text = core::str::from_utf8(take_rest(&mut from));
                Record::Effects(text.map_err(|_| RecordError::Contents)?.to_string())
            }
            _ => Record::End,
        };
        if from.bytes.is_empty() { Ok(record) } else { Err(RecordError::Contents) }
    }
}

fn put_config(out: &mut Vec<u8>, config: &Config) {
    put_text(out, &config.node);
    put_u32(out, config.peers.len() as u32);
    for peer in &config.peers {
        put_text(out, &peer.node);
    }
    out.extend_from_slice(&config.incarnation.0.to_le_bytes());
    out.push(u8::from(config.can_punch));
    let timing = &config.timing;
    for span in [
        timing.peer_silence,
        timing.ping_interval,
        timing.ack_limit,
        timing.drain_limit,
        timing.join_grace,
        timing.power_loss_wait,
        timing.demote_after,
        timing.drops_window,
        timing.rejoin_delay,
        timing.rejoin_delay_max,
    ] {
        put_u64(out, span.0);
    }
    out.push(match config.register {
        RegisterKeeper::OwnSuperblock => 0,
        RegisterKeeper::Majority => 1,
        RegisterKeeper::FencedSuperblock => 2,
    });
    out.push(u8::from(config.confirms_reads));
}

fn take_config(from: &mut Reader<'_>) -> Result<Config, RecordError> {
    let node = take_text(from)?;
    let count = from.u32()? as usize;
    if count > crate::limits::PEERS_MAX {
        return Err(RecordError::Contents);
    }
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(PeerConfig { node: take_text(from)? });
    }
    let incarnation = Incarnation(from.u128()?);
    let can_punch = take_bool(from)?;
    let mut span = || from.u64().map(Span);
    let timing = Timing {
        peer_silence: span()?,
        ping_interval: span()?,
        ack_limit: span()?,
        drain_limit: span()?,
        join_grace: span()?,
        power_loss_wait: span()?,
        demote_after: span()?,
        drops_window: span()?,
        rejoin_delay: span()?,
        rejoin_delay_max: span()?,
    };
    let register = match from.u8()? {
        0 => RegisterKeeper::OwnSuperblock,
        1 => RegisterKeeper::Majority,
        2 => RegisterKeeper::FencedSuperblock,
        _ => return Err(RecordError::Contents),
    };
    let confirms_reads = take_bool(from)?;
    Ok(Config { node, peers, incarnation, can_punch, register, confirms_reads, timing })
}

fn take_start(from: &mut Reader<'_>) -> Result<Record, RecordError> {
    let now = Time(from.u64()?);
    let config = take_config(from)?;
    let region_bytes = from.u64()?;
    let (device_bytes, disk_bytes) = (from.u64()?, from.u64()?);
    let has_fingerprint = take_bool(from)?;
    let fingerprint: [u8; 32] = from.slice(32)?.try_into().map_err(|_| RecordError::Contents)?;
    if region_bytes > device_bytes.min(REGION_BYTES_MAX) {
        return Err(RecordError::Contents);
    }
    let fingerprint = has_fingerprint.then_some(fingerprint);
    Ok(Record::Start { now, config, region_bytes, device_bytes, disk_bytes, fingerprint })
}

mod input_kind {
    pub const CLIENT_REQUESTED: u8 = 1;
    pub const DISK_DONE: u8 = 2;
    pub const PEER_CONNECTED: u8 = 3;
    pub const PEER_SAID: u8 = 4;
    pub const LINK_LOST: u8 = 5;
    pub const ORDERED: u8 = 6;
    pub const TIME_PASSED: u8 = 7;
    pub const DECIDED: u8 = 8;
    pub const REGISTER_LEARNED: u8 = 9;
    pub const LEASE_CHANGED: u8 = 10;
}

fn encode_input(out: &mut Vec<u8>, input: &Input) {
    match input {
        Input::ClientRequested { request, what } => {
            out.push(input_kind::CLIENT_REQUESTED);
            put_u64(out, request.0);
            put_request(out, what);
        }
        Input::DiskDone { op, result } => {
            out.push(input_kind::DISK_DONE);
            put_u64(out, op.0);
            put_result(out, result);
        }
        Input::PeerConnected { peer, session, version } => {
            out.extend_from_slice(&[input_kind::PEER_CONNECTED, peer.0]);
            put_u64(out, session.0);
            out.push(*version);
        }
        Input::PeerSaid { peer, session, message, data } => {
            out.extend_from_slice(&[input_kind::PEER_SAID, peer.0]);
            put_u64(out, session.0);
            put_buf(out, *data);
            let (header, control) = wire::encode(message, 0, 0);
            out.extend_from_slice(&header);
            out.extend_from_slice(&control);
        }
        Input::LinkLost { peer, session, why } => {
            out.extend_from_slice(&[input_kind::LINK_LOST, peer.0]);
            put_u64(out, session.0);
            let (kind, error) = match why {
                LinkLoss::Closed => (1, 0),
                LinkLoss::Io(error) => (2, *error),
                LinkLoss::Garbled => (3, 0),
                LinkLoss::Silent => (4, 0),
            };
            out.push(kind);
            put_u32(out, error as u32);
        }
        Input::Ordered { ticket, command } => {
            out.push(input_kind::ORDERED);
            put_u64(out, ticket.0);
            put_command(out, *command);
        }
        Input::TimePassed => out.push(input_kind::TIME_PASSED),
        Input::Decided { number, result } => {
            out.push(input_kind::DECIDED);
            put_u64(out, *number);
            put_decision(out, result);
        }
        Input::RegisterLearned(state) => {
            out.push(input_kind::REGISTER_LEARNED);
            put_register(state, out);
        }
        Input::LeaseChanged { until } => {
            out.extend_from_slice(&[input_kind::LEASE_CHANGED, u8::from(until.is_some())]);
            put_u64(out, until.map_or(0, |until| until.0));
        }
    }
}

fn decode_input(from: &mut Reader<'_>) -> Result<Input, RecordError> {
    Ok(match from.u8()? {
        input_kind::CLIENT_REQUESTED => {
            Input::ClientRequested { request: RequestId(from.u64()?), what: take_request(from)? }
        }
        input_kind::DISK_DONE => {
            Input::DiskDone { op: OpId(from.u64()?), result: take_result(from)? }
        }
        input_kind::PEER_CONNECTED => {
            let peer = PeerIndex(from.u8()?);
            let session = SessionId(from.u64()?);
            Input::PeerConnected { peer, session, version: from.u8()? }
        }
        input_kind::PEER_SAID => {
            let (peer, session) = (PeerIndex(from.u8()?), SessionId(from.u64()?));
            let data = take_buf(from)?;
            let header = from.slice(wire::HEADER_BYTES)?.first_chunk();
            let header = wire::Header::decode(header.ok_or(RecordError::Contents)?)?;
            let message = wire::decode(&header, take_rest(from))?;
            Input::PeerSaid { peer, session, message, data }
        }
        input_kind::LINK_LOST => {
            let (peer, session) = (PeerIndex(from.u8()?), SessionId(from.u64()?));
            let (kind, error) = (from.u8()?, from.u32()? as i32);
            let why = match kind {
                1 => LinkLoss::Closed,
                2 => LinkLoss::Io(error),
                3 => LinkLoss::Garbled,
                4 => LinkLoss::Silent,
                _ => return Err(RecordError::Contents),
            };
            Input::LinkLost { peer, session, why }
        }
        input_kind::ORDERED => {
            Input::Ordered { ticket: Ticket(from.u64()?), command: take_command(from)? }
        }
        input_kind::TIME_PASSED => Input::TimePassed,
        input_kind::DECIDED => Input::Decided { number: from.u64()?, result: take_decision(from)? },
        input_kind::REGISTER_LEARNED => Input::RegisterLearned(Box::new(take_register(from)?)),
        input_kind::LEASE_CHANGED => {
            let (is_held, until) = (take_bool(from)?, Time(from.u64()?));
            Input::LeaseChanged { until: is_held.then_some(until) }
        }
        _ => return Err(RecordError::Contents),
    })
}

type Decision = Result<Box<RegisterState>, Undecided>;

fn put_decision(out: &mut Vec<u8>, result: &Decision) {
    match result {
        Ok(state) => {
            out.push(0);
            put_register(state, out);
        }
        Err(Undecided::Newer(state)) => {
            out.push(1);
            put_register(state, out);
        }
        Err(Undecided::NotNow { why }) => {
            out.push(2);
            put_text(out, why);
        }
    }
}

fn take_decision(from: &mut Reader<'_>) -> Result<Decision, RecordError> {
    Ok(match from.u8()? {
        0 => Ok(Box::new(take_register(from)?)),
        1 => Err(Undecided::Newer(Box::new(take_register(from)?))),
        2 => Err(Undecided::NotNow { why: take_text(from)? }),
        _ => return Err(RecordError::Contents),
    })
}

fn put_request(out: &mut Vec<u8>, what: &ClientRequest) {
    match *what {
        ClientRequest::Read { range, buf } => {
            out.push(1);
            put_range(out, range);
            put_u32(out, buf.0);
        }
        ClientRequest::Write { range, buf, fua } => {
            out.push(2);
            put_range(out, range);
            put_u32(out, buf.0);
            out.push(u8::from(fua));
        }
        ClientRequest::Flush => out.push(3),
        ClientRequest::Trim { range, fua } => {
            out.push(4);
            put_range(out, range);
            out.push(u8::from(fua));
        }
        ClientRequest::WriteZeroes { range, fua, may_punch } => {
            out.push(5);
            put_range(out, range);
            out.extend_from_slice(&[u8::from(fua), u8::from(may_punch)]);
        }
        ClientRequest::Map { range } => {
            out.push(6);
            put_range(out, range);
        }
    }
}

fn take_request(from: &mut Reader<'_>) -> Result<ClientRequest, RecordError> {
    Ok(match from.u8()? {
        1 => ClientRequest::Read { range: take_range(from)?, buf: BufId(from.u32()?) },
        2 => {
            let (range, buf) = (take_range(from)?, BufId(from.u32()?));
            ClientRequest::Write { range, buf, fua: take_bool(from)? }
        }
        3 => ClientRequest::Flush,
        4 => ClientRequest::Trim { range: take_range(from)?, fua: take_bool(from)? },
        5 => {
            let (range, fua) = (take_range(from)?, take_bool(from)?);
            ClientRequest::WriteZeroes { range, fua, may_punch: take_bool(from)? }
        }
        6 => ClientRequest::Map { range: take_range(from)? },
        _ => return Err(RecordError::Contents),
    })
}

fn put_result(out: &mut Vec<u8>, result: &Result<DiskOutcome, DiskFailure>) {
    match result {
        Ok(DiskOutcome::Done) => out.push(1),
        Ok(DiskOutcome::Read { data }) => {
            out.push(2);
            put_buf(out, *data);
        }
        Ok(DiskOutcome::Fingerprint(hash)) => {
            out.push(3);
            out.extend_from_slice(hash);
        }
        Ok(DiskOutcome::Digests(digests)) => {
            out.push(6);
            put_u32(out, digests.len() as u32);
            digests.iter().for_each(|digest| out.extend_from_slice(digest));
        }
        Err(DiskFailure::Io(error)) => {
            out.push(4);
            put_u32(out, *error as u32);
        }
        Err(DiskFailure::NoSpace) => out.push(5),
        Ok(DiskOutcome::Measured { device_bytes, disk_bytes }) => {
            out.push(7);
            put_u64(out, *device_bytes);
            put_u64(out, *disk_bytes);
        }
    }
}

fn take_result(from: &mut Reader<'_>) -> Result<Result<DiskOutcome, DiskFailure>, RecordError> {
    Ok(match from.u8()? {
        1 => Ok(DiskOutcome::Done),
        2 => Ok(DiskOutcome::Read { data: take_buf(from)? }),
        3 => {
            let hash = from.slice(32)?.try_into().map_err(|_| RecordError::Contents)?;
            Ok(DiskOutcome::Fingerprint(hash))
        }
        6 => {
            let mut digests = Vec::new();
            for _ in 0..from.u32()? {
                let digest = from.slice(32)?.try_into().map_err(|_| RecordError::Contents)?;
                digests.push(digest);
            }
            Ok(DiskOutcome::Digests(digests.into_boxed_slice()))
        }
        4 => Err(DiskFailure::Io(from.u32()? as i32)),
        5 => Err(DiskFailure::NoSpace),
        7 => {
            let (device_bytes, disk_bytes) = (from.u64()?, from.u64()?);
            Ok(DiskOutcome::Measured { device_bytes, disk_bytes })
        }
        _ => return Err(RecordError::Contents),
    })
}

fn put_command(out: &mut Vec<u8>, command: Command) {
    match command {
        Command::Promote { old_primary_is_off, allow_data_loss, alone } => {
            let flags = [old_primary_is_off, allow_data_loss, alone].map(u8::from);
            out.push(1);
            out.extend_from_slice(&flags);
        }
        Command::Demote => out.push(2),
        Command::Connect(peer) => out.extend_from_slice(&[3, peer.0]),
        Command::Disconnect(peer) => out.extend_from_slice(&[4, peer.0]),
        Command::Invalidate => out.push(5),
        Command::ResyncFull(peer) => out.extend_from_slice(&[6, peer.0]),
        Command::DiscardDiverged => out.push(7),
        Command::Stop => out.push(8),
        Command::TakeFenced => out.push(9),
        Command::PeerIsOff(peer, session) => {
            out.extend_from_slice(&[10, peer.0]);
            put_u64(out, session.0);
        }
        Command::StandBack => out.push(11),
        Command::Verify { repair } => out.extend_from_slice(&[40, u8::from(repair)]),
        Command::CancelVerify => out.push(41),
        Command::Resize(size) => {
            out.extend_from_slice(&[20, u8::from(size.is_some())]);
            put_u64(out, size.unwrap_or(0));
        }
    }
}

fn take_command(from: &mut Reader<'_>) -> Result<Command, RecordError> {
    Ok(match from.u8()? {
        1 => Command::Promote {
            old_primary_is_off: take_bool(from)?,
            allow_data_loss: take_bool(from)?,
            alone: take_bool(from)?,
        },
        2 => Command::Demote,
        3 => Command::Connect(PeerIndex(from.u8()?)),
        4 => Command::Disconnect(PeerIndex(from.u8()?)),
        5 => Command::Invalidate,
        6 => Command::ResyncFull(PeerIndex(from.u8()?)),
        7 => Command::DiscardDiverged,
        8 => Command::Stop,
        9 => Command::TakeFenced,
        10 => Command::PeerIsOff(PeerIndex(from.u8()?), SessionId(from.u64()?)),
        11 => Command::StandBack,
        40 => Command::Verify { repair: take_bool(from)? },
        41 => Command::CancelVerify,
        20 => {
            let (is_given, size) = (take_bool(from)?, from.u64()?);
            Command::Resize(is_given.then_some(size))
        }
        _ => return Err(RecordError::Contents),
    })
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_range(out: &mut Vec<u8>, range: ByteRange) {
    put_u64(out, range.start);
    put_u64(out, range.length);
}

fn take_range(from: &mut Reader<'_>) -> Result<ByteRange, RecordError> {
    let (start, length) = (from.u64()?, from.u64()?);
    start.checked_add(length).ok_or(RecordError::Contents)?;
    Ok(ByteRange { start, length })
}

fn put_buf(out: &mut Vec<u8>, buf: Option<BufId>) {
    out.push(u8::from(buf.is_some()));
    put_u32(out, buf.unwrap_or_default().0);
}

fn take_buf(from: &mut Reader<'_>) -> Result<Option<BufId>, RecordError> {
    let is_there = take_bool(from)?;
    let buf = BufId(from.u32()?);
    Ok(is_there.then_some(buf))
}

fn take_bool(from: &mut Reader<'_>) -> Result<bool, RecordError> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordError::Contents),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

/// All that is left.
fn take_rest<'a>(from: &mut Reader<'a>) -> &'a [u8] {
    core::mem::take(&mut from.bytes)
}

fn take_text(from: &mut Reader<'_>) -> Result<String, RecordError> {
    let length = from.u32()? as usize;
    let text = core::str::from_utf8(from.slice(length)?);
    text.map(String::from).map_err(|_| RecordError::Contents)
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use alloc::vec;

    use super::*;
    use crate::block::ReplicaId;
    use crate::command::Answer;
    use crate::verify::Findings;
    use crate::verify_news::VerifyNews;
    use crate::wire::{Hello, Message};

    fn inputs() -> Vec<Input> {
        let (range, buf) = (ByteRange::new(4096, 8192), BufId(7));
        let (peer, session) = (PeerIndex(0), SessionId(3));
        let requests = [
            ClientRequest::Read { range, buf },
            ClientRequest::Write { range, buf, fua: true },
            ClientRequest::Flush,
            ClientRequest::Trim { range, fua: false },
            ClientRequest::WriteZeroes { range, fua: false, may_punch: true },
            ClientRequest::Map { range },
        ];
        let results = [
            Ok(DiskOutcome::Done),
            Ok(DiskOutcome::Read { data: None }),
            Ok(DiskOutcome::Read { data: Some(buf) }),
            Ok(DiskOutcome::Fingerprint([9; 32])),
            Ok(DiskOutcome::Digests(Box::new([[7; 32], [8; 32]]))),
            Err(DiskFailure::Io(-5)),
            Err(DiskFailure::NoSpace),
            Ok(DiskOutcome::Measured { device_bytes: 8, disk_bytes: 9 }),
        ];
        let news = |news| Message::VerifyNews { copy: "beta".into(), news };
        let findings = Box::new(Findings {
            checked_bytes: 1 << 20,
            differing_blocks: 2,
            differing: vec![range],
            ..Findings::default()
        });
        let messages = [
            (
                Message::Hello(Box::new(Hello {
                    resource_id: 4,
                    room_bytes: 9,
                    ..Hello::default()
                })),
                None,
            ),
            (Message::Met, None),
            (Message::Bitmap(vec![(1, 2), (9, 100)]), None),
            (Message::Refused { reason: "because".into(), diverged_blocks: 8 }, None),
            (Message::Write { tenure: 3, seq: 4, range, fua: true }, Some(buf)),
            (Message::Replicas(vec![(ReplicaId(5), "gamma".into())]), None),
            (Message::Cooled { extents: vec![7, 9], flushed: vec![ReplicaId(5)] }, None),
            (Message::Verify { tenure: 3, seq: 5, range }, None),
            (Message::VerifyDigests { seq: 5, digests: vec![[6; 32]] }, None),
            (Message::VerifyWanted { repair: true, cancel: false }, None),
            (Message::VerifyAnswer(Ok(Answer::Already)), None),
            (news(VerifyNews::Began { bytes: 1 << 30, repair: true }), None),
            (news(VerifyNews::Compared(Box::default())), None),
            (
                news(VerifyNews::Ended { broken: Some("lost".into()), findings, repairs: true }),
                None,
            ),
            (news(VerifyNews::Repaired { bytes: 4096 }), None),
            (Message::Ack { seq: 12 }, None),
            (Message::Resize { size_bytes: 1 << 40 }, None),
            (Message::Resized { size_bytes: 1 << 40 }, None),
            (Message::MakeRoom, None),
            (Message::Room { room_bytes: 1 << 41, is_growing: true }, None),
        ];
        let losses = [LinkLoss::Closed, LinkLoss::Io(104), LinkLoss::Garbled, LinkLoss::Silent];
        let promote =
            Command::Promote { old_primary_is_off: true, allow_data_loss: false, alone: true };
        let commands = [
            promote,
            Command::Demote,
            Command::Connect(peer),
            Command::Disconnect(peer),
            Command::Invalidate,
            Command::ResyncFull(peer),
            Command::DiscardDiverged,
            Command::Stop,
            Command::TakeFenced,
            Command::PeerIsOff(peer, SessionId(9)),
            Command::StandBack,
            Command::Verify { repair: true },
            Command::CancelVerify,
            Command::Resize(None),
            Command::Resize(Some(1 << 40)),
        ];
        let request = RequestId(1 << 40);
        let mut all = vec![Input::TimePassed, Input::PeerConnected { peer, session, version: 5 }];
        all.extend(requests.map(|what| Input::ClientRequested { request, what }));
        all.extend(results.map(|result| Input::DiskDone { op: OpId(5), result }));
        all.extend(messages.map(|(message, data)| Input::PeerSaid {
            peer,
            session,
            message,
            data,
        }));
        let state = Box::new(RegisterState { generation: 6, sole: true, ..Default::default() });
        let newer = Err(Undecided::Newer(state.clone()));
        let not_now = Err(Undecided::NotNow { why: "the lease runs".into() });
        let decisions = [Ok(state.clone()), newer, not_now];
        all.extend(decisions.map(|result| Input::Decided { number: 7, result }));
        all.push(Input::RegisterLearned(state));
        all.extend([None, Some(Time(9))].map(|until| Input::LeaseChanged { until }));
        all.extend(losses.map(|why| Input::LinkLost { peer, session, why }));
        all.extend(commands.map(|command| Input::Ordered { ticket: Ticket(2), command }));
        all
    }

    fn read(bytes: &[u8]) -> Result<(Record, usize), RecordError> {
        let (head, rest) = bytes.split_first_chunk().ok_or(RecordError::Contents)?;
        let head = Head::decode(head)?;
        let contents = rest.get(..head.length).ok_or(RecordError::Contents)?;
        Ok((head.record(contents)?, HEAD_BYTES + head.length))
    }

    #[test]
    fn every_input_is_read_back_as_it_was_written() {
        for input in inputs() {
            let mut bytes = Vec::new();
            put_input(&mut bytes, Time(77), &input);
            let (record, length) = read(&bytes).expect("a good record");
            assert_eq!(length, bytes.len());
            let wanted = Record::Input { now: Time(77), input };
            assert_eq!(format!("{record:?}"), format!("{wanted:?}"));
        }
    }

    #[test]
    fn the_start_and_the_pieces_of_the_region_make_the_same_image() {
        let config = Config {
            node: "alpha".into(),
            peers: vec![PeerConfig { node: "beta".into() }],
            incarnation: Incarnation(11),
            can_punch: true,
            register: RegisterKeeper::Majority,
            confirms_reads: true,
            timing: Timing::default(),
        };
        let mut region = vec![0; 3 * PIECE_BYTES + 512];
        (region[PIECE_BYTES], region[3 * PIECE_BYTES + 511]) = (1, 2);
        let (device_bytes, disk_bytes) = (1 << 30, 1 << 31);
        let fingerprint = Some([3; 32]);
        let image = Image { region: &region, device_bytes, disk_bytes, fingerprint };
        let mut bytes = Vec::new();
        put_start(&mut bytes, Time(5), &config, &image);

        let (start, mut at) = read(&bytes).expect("a start");
        let now = Time(5);
        let region_bytes = region.len() as u64;
        let wanted =
            Record::Start { now, config, region_bytes, device_bytes, disk_bytes, fingerprint };
        assert_eq!(format!("{start:?}"), format!("{wanted:?}"));
        let mut found = vec![0; region.len()];
        let mut pieces = 0;
        while at < bytes.len() {
            let (piece, length) = read(&bytes[at..]).expect("a piece");
            let Record::Region { offset, bytes } = piece else { panic!("{piece:?}") };
            found[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            at += length;
            pieces += 1;
        }
        assert_eq!(pieces, 2, "pieces of zeroes are left out");
        assert!(found == region);
    }

    #[test]
    fn changed_and_cut_records_are_refused_and_never_panic() {
        for input in inputs() {
            let mut good = Vec::new();
            put_input(&mut good, Time(1), &input);
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] ^= 0x55;
                assert!(read(&bytes).is_err(), "byte {at} of {input:?} does not matter");
                assert!(read(&good[..at]).is_err());
                // Whoever makes the checksum right as well may say what he likes.
                let crc = crc32fast::hash(&bytes[HEAD_BYTES..]);
                bytes[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
                let _ = read(&bytes);
            }
        }
    }

    #[test]
    fn long_effects_become_short_lines_that_still_differ() {
        let texts = [1, 2].map(|last| {
            let mut runs = vec![(0, 1); 4000];
            runs.push((last, 1));
            let message = Message::Bitmap(runs);
            let (peer, session) = (PeerIndex(0), SessionId(1));
            describe(&Effect::SendPeer { peer, session, message, data: None })
        });
        assert_ne!(texts[0], texts[1]);
        assert!(texts.iter().all(|text| text.len() < TEXT_BYTES_MAX + 40));
    }
}

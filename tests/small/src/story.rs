//! Orders, frames and metadata as short lines that a person can read, without numbers that change
//! for no reason.

use replicator_core::block::ReplicaId;
use replicator_core::metadata::Superblock;
use replicator_core::register::RegisterState;
use replicator_core::wire::{Hello, Message};
use replicator_core::{Answer, ByteRange, Effect, Findings, Note, Refusal, Retry};

use crate::disk::{Payload, SECTOR_BYTES, ZERO};
use crate::pair::{Job, NAMES, Node, Parcel};

/// An order as a line; `None` for the housekeeping of buffers.
pub fn effect(effect: &Effect, node: &Node) -> Option<String> {
    Some(match effect {
        Effect::ReadDisk { range, .. } => format!("disk     read {}", place(*range)),
        Effect::ReadEdges { wanted, aligned, .. } => {
            format!("disk     edges of {} in {}", place(*wanted), place(*aligned))
        }
        Effect::DigestDisk { range, .. } => format!("disk     hash {}", place(*range)),
        Effect::ReadForResync { range, .. } => format!("disk     copy {}", place(*range)),
        Effect::WriteDisk { range, .. } => format!("disk     write {}", place(*range)),
        Effect::ZeroDisk { range, .. } => format!("disk     zero {}", place(*range)),
        Effect::MapDisk { range, .. } => format!("disk     map {}", place(*range)),
        Effect::FlushDisk { .. } => "disk     flush".into(),
        Effect::WriteMeta { offset, bytes, .. } => {
            format!("disk     {}", meta(node, *offset, bytes))
        }
        Effect::MeasureDisk { .. } => "disk     measure".into(),
        Effect::MoveMeta { to, .. } => format!("disk     metadata to {}", size(to.region_start)),
        Effect::TakeFingerprint { .. } => "disk     fingerprint".into(),
        Effect::SendPeer { message, .. } => format!("send     {}", frame(message)),
        Effect::ClosePeer { retry, .. } => format!("close    {}", again(*retry)),
        Effect::ReplyClient { request, result } => match result {
            Ok(()) => format!("reply    {} ok", request_name(request.0)),
            Err(error) => format!("reply    {} {error:?}", request_name(request.0)),
        },
        Effect::ReleaseBuf { .. } => return None,
        Effect::AnswerOperator { result, .. } => format!("answer   {}", answer(result)),
        Effect::OpenDevice { tenure, .. } => format!("device   open, tenure {tenure}"),
        Effect::ResizeDevice { size_bytes } => format!("device   has {}", size(*size_bytes)),
        Effect::CloseDevice { forced: false } => "device   closed".into(),
        Effect::CloseDevice { forced: true } => "device   taken away".into(),
        Effect::Propose { number, next, .. } => {
            format!("propose  {number}: generation {}", next.generation)
        }
        Effect::Note(told) => format!("note     {}", note(told)),
        Effect::Stopped => "stopped".into(),
    })
}

fn again(retry: Retry) -> &'static str {
    match retry {
        Retry::Now => "and connect again at once",
        Retry::Later => "and connect again later",
        Retry::Rarely => "and connect again rarely",
        Retry::Never => "for good",
    }
}

/// The name of a request: the letter that its client gave it.
pub fn request_name(request: u64) -> char {
    char::from(request as u8)
}

fn answer(result: &Result<Answer, Box<Refusal>>) -> String {
    match result {
        Ok(Answer::Done) => "done".into(),
        Ok(Answer::Already) => "nothing to do".into(),
        Err(refusal) => format!("refused ({}): {}", refusal.code, refusal.why),
    }
}

fn note(note: &Note) -> String {
    match note {
        Note::RoleChanged { role, .. } => format!("role {role}"),
        Note::Committed { generation, what } => format!("committed g{generation}: {what}"),
        Note::PeerJoined { relation, .. } => format!("greetings agree: {relation}"),
        Note::PeerLost { why, .. } => format!("the peer is lost: {why:?}"),
        Note::PeerRefused { why, .. } => format!("refused: {why}"),
        Note::ResyncStarted { bytes, full_because: None, .. } => {
            format!("partial resync of {}", size(*bytes))
        }
        Note::ResyncStarted { bytes, full_because: Some(why), .. } => {
            format!("full resync of {}: {why}", size(*bytes))
        }
        Note::HeldBack { drops, left, .. } => {
            format!("held back: dropped {drops} times, to be heard for {} ms", left.as_ms())
        }
        Note::ResyncFinished { sent_bytes, .. } => {
            format!("resync finished, {} sent", size(*sent_bytes))
        }
        Note::VerifyStarted { bytes, repair, .. } => {
            format!("verify of {}{}", size(*bytes), if *repair { ", to repair" } else { "" })
        }
        Note::VerifyEnded { broken, findings, .. } => verified(broken.as_deref(), findings),
        Note::VerifyRepaired { bytes, .. } => format!("repaired {}", size(*bytes)),
        Note::MetadataMoved { .. } => "the metadata moved".into(),
        Note::NoRoomMade { why } => format!("no room: {why}"),
        Note::Resized { from, to } => format!("grew from {} to {}", size(*from), size(*to)),
        Note::DiskFailed { during, .. } => format!("the disk failed during a {during}"),
        Note::FenceAwaited { .. } => "waits for the fence of the peer".into(),
        Note::LeaseLapsed => "the lease ended".into(),
        Note::LeaseBack { after } => format!("the lease is back after {} ms", after.as_ms()),
        Note::OfficeLost { why } => format!("the office is lost: {why}"),
        Note::RegisterWentBack { here, there } => {
            format!("the register went back from g{here} to g{there}")
        }
        Note::HotExtentsMarked { extents } => format!("{extents} hot extents became dirty bits"),
    }
}

fn verified(broken: Option<&str>, findings: &Findings) -> String {
    let mut out = match broken {
        Some(why) => format!("verify broken ({why}), {} compared", size(findings.checked_bytes)),
        None => format!("verify ended, {} compared", size(findings.checked_bytes)),
    };
    let places = |runs: &[ByteRange]| runs.iter().map(|run| place(*run)).collect::<Vec<_>>();
    if findings.differing_blocks > 0 {
        let where_ = places(&findings.differing).join(" ");
        out += &format!(", {} blocks differ: {where_}", findings.differing_blocks);
    }
    if !findings.unreadable.is_empty() {
        out += &format!(", unreadable: {}", places(&findings.unreadable).join(" "));
    }
    out
}

/// A size or offset in bytes, in KiB or MiB where that is exact.
pub fn size(bytes: u64) -> String {
    match bytes {
        0 => "0".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}K", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// A range as start and length.
pub fn place(range: ByteRange) -> String {
    format!("{}+{}", size(range.start), size(range.length))
}

/// Sectors as runs of letters; a dot is a sector of zeroes.
pub fn letters(letters: &[u8]) -> String {
    if letters.iter().all(|&letter| letter == ZERO) {
        return "zeroes".into();
    }
    let mut out = String::new();
    let mut at = 0;
    for run in letters.chunk_by(|one, two| one == two) {
        if run[0] != ZERO {
            let range = ByteRange::new(at, run.len() as u64 * SECTOR_BYTES);
            out += &format!(
                "{}{}={}",
                if out.is_empty() { "" } else { " " },
                place(range),
                char::from(run[0])
            );
        }
        at += run.len() as u64 * SECTOR_BYTES;
    }
    out
}

fn name(replica: ReplicaId) -> String {
    match replica.0 {
        0 => "nobody".into(),
        1 | 2 => NAMES[replica.0 as usize - 1].into(),
        number => format!("replica-{number}"),
    }
}

/// The state of the register in a few words.
pub fn register(state: &RegisterState) -> String {
    let set: Vec<String> = state.set.iter().map(|member| name(member.replica)).collect();
    let set = if set.is_empty() { "empty".into() } else { set.join("+") };
    let mut out = format!("g{} set {set}", state.generation);
    if let Some(primary) = state.primary {
        out += &format!(", primary {} since g{}", name(primary), state.tenure);
    }
    if state.authority != state.primary {
        out += &format!(", authority {}", state.authority.map_or("nobody".into(), name));
    }
    if state.basis.lineage > 0 {
        out += &format!(", lineage {}", state.basis.lineage);
    }
    if state.released_clean {
        out += ", released";
    }
    out
}

/// A frame in a few words.
pub fn frame(message: &Message) -> String {
    let fua = |fua: bool| if fua { " fua" } else { "" };
    match message {
        Message::Hello(hello) => format!("hello {}", greeting(hello)),
        Message::Met => "met".into(),
        Message::InSync => "in sync".into(),
        Message::Replicas(_) => "replicas".into(),
        Message::Cooled { extents, .. } => format!("cooled {} extents", extents.len()),
        Message::Refused { reason, diverged_blocks } => {
            format!("refused ({diverged_blocks} blocks diverged): {reason}")
        }
        Message::Bitmap(runs) => {
            let blocks: u64 = runs.iter().map(|run| run.1).sum();
            format!("bitmap of {blocks} dirty blocks")
        }
        Message::Follow => "follow".into(),
        Message::SyncStart { full, base } => {
            format!("sync-start {}, base g{base}", if *full { "full" } else { "partial" })
        }
        Message::SyncReady => "sync-ready".into(),
        Message::Write { seq, range, fua: f, .. } => {
            format!("write #{seq} {}{}", place(*range), fua(*f))
        }
        Message::Zero { seq, range, fua: f, .. } => {
            format!("zero #{seq} {}{}", place(*range), fua(*f))
        }
        Message::Flush { seq, .. } => format!("flush #{seq}"),
        Message::ResyncData { seq, range, .. } => format!("copy #{seq} {}", place(*range)),
        Message::ResyncZero { seq, range, .. } => format!("copy #{seq} {} zeroes", place(*range)),
        Message::Ack { seq } => format!("ack #{seq}"),
        Message::Grow(state) => format!("grow {}", register(state)),
        Message::GrowReady { generation } => format!("grow-ready g{generation}"),
        Message::Committed(state) => format!("committed {}", register(state)),
        Message::Leave { .. } => "leave".into(),
        Message::LeaveDone => "leave-done".into(),
        Message::DiskFailed => "disk-failed".into(),
        Message::AuthorityWanted => "authority-wanted".into(),
        Message::AuthorityGiven(state) => format!("authority-given {}", register(state)),
        Message::AuthorityRefused { reason } => format!("authority-refused: {reason}"),
        Message::Verify { seq, range, .. } => format!("verify #{seq} {}", place(*range)),
        Message::VerifyDigests { seq, digests } => {
            format!("digests #{seq} of {} blocks", digests.len())
        }
        Message::VerifyNews { copy, .. } => format!("verify-news of {copy}"),
        Message::VerifyWanted { cancel: true, .. } => "verify-wanted no more".into(),
        Message::VerifyWanted { .. } => "verify-wanted".into(),
        Message::VerifyAnswer(result) => format!("verify-answer {}", answer(result)),
        Message::Ping => "ping".into(),
        Message::MakeRoom => "make room".into(),
        Message::Room { room_bytes, is_growing } => {
            format!("room {}{}", size(*room_bytes), if *is_growing { ", more comes" } else { "" })
        }
        Message::Resize { size_bytes } => format!("resize to {}", size(*size_bytes)),
        Message::Resized { size_bytes } => format!("resized to {}", size(*size_bytes)),
        Message::Echo { seq, .. } => format!("echo {seq}"),
    }
}

fn greeting(hello: &Hello) -> String {
    let mut out = register(&hello.register);
    let known = name(hello.knows_you_as);
    out += &format!("; knows {known}, base g{}, {} dirty", hello.base, hello.dirty_blocks);
    let marks = [
        (hello.is_primary, "serving"),
        (!hello.has_disk, "no disk"),
        (hello.invalid, "invalid"),
        (hello.syncing, "syncing"),
        (hello.discard_diverged, "discarding"),
        (hello.assumed_equal, "assumed equal"),
    ];
    out +=
        &marks.iter().filter(|mark| mark.0).map(|mark| format!(", {}", mark.1)).collect::<String>();
    if hello.coming != 0 {
        out += &format!(", coming g{}", hello.coming);
    }
    out
}

/// What is on its way, in a few words.
pub fn parcel(parcel: &Parcel) -> String {
    match parcel {
        Parcel::Open(_) => "connection".into(),
        Parcel::Frame(_, message, _) => frame(message),
        Parcel::Closed(_) => "loss".into(),
    }
}

/// The same in the one or two words that tell it from others on the way.
pub fn brief(awaited: &Parcel) -> String {
    let text = parcel(awaited);
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    match words.next().filter(|number| number.starts_with('#')) {
        Some(number) => format!("{kind} {number}"),
        None => kind.into(),
    }
}

/// The first word of a disk operation: how scripts name it.
pub fn job_kind(job: &Job, node: &Node) -> &'static str {
    match job {
        Job::Write { payload: None, .. } => "zero",
        Job::Write { .. } => "write",
        Job::Read { .. } => "read",
        Job::Edges { .. } => "edges",
        Job::Copy { .. } => "copy",
        Job::Digest { .. } => "hash",
        Job::Flush => "flush",
        Job::Meta { offset, .. } if node.layout.superblocks.contains(offset) => "superblock",
        Job::Meta { offset, .. } if node.layout.log.contains(offset) => "log",
        Job::Meta { .. } => "bitmap",
        Job::Fingerprint => "fingerprint",
        Job::Map => "map",
    }
}

/// The range a disk operation is about, if it is about one.
pub fn job_range(job: &Job) -> Option<ByteRange> {
    match job {
        Job::Write { range, .. }
        | Job::Read { range, .. }
        | Job::Copy { range }
        | Job::Digest { range } => Some(*range),
        Job::Edges { aligned, .. } => Some(*aligned),
        _ => None,
    }
}

fn meta(node: &Node, offset: u64, bytes: &[u8]) -> String {
    if let Some(copy) = node.layout.superblocks.iter().position(|&at| at == offset) {
        return match Superblock::decode(bytes) {
            Ok(superblock) => format!("superblock {copy}: {}", superblock_text(&superblock)),
            Err(error) => format!("superblock {copy}: {error}"),
        };
    }
    if node.layout.log.contains(&offset) {
        return format!("log: hot {}", hot_extents(bytes));
    }
    format!("bitmap: {}", dirty_runs(bytes))
}

fn superblock_text(superblock: &Superblock) -> String {
    let mut out = register(&superblock.register);
    let marks = [
        (superblock.clean, "clean"),
        (superblock.invalid, "invalid"),
        (superblock.syncing, "syncing"),
        (superblock.diverged, "diverged"),
        (superblock.discard_diverged, "discarding"),
    ];
    out +=
        &marks.iter().filter(|mark| mark.0).map(|mark| format!("; {}", mark.1)).collect::<String>();
    if superblock.coming != 0 {
        out += &format!("; coming g{}", superblock.coming);
    }
    for peer in superblock.peers.iter().filter(|peer| peer.all_dirty) {
        out += &format!("; all of {} dirty", peer.node);
    }
    out
}

/// The extents that a block of the activity log makes hot (the form is that of `activity_log`).
fn hot_extents(block: &[u8]) -> String {
    let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
    let updates = usize::from(u16::from_le_bytes([block[24], block[25]]));
    let extents: Vec<String> =
        (0..updates).map(|update| format!("extent {}", word(36 + update * 8))).collect();
    extents.join(", ")
}

/// The blocks that are dirty in a page of a bitmap (the form is that of `bitmap`).
fn dirty_runs(page: &[u8]) -> String {
    let dirty: Vec<bool> = page
        .chunks(512)
        .flat_map(|sector| (0..480 * 8).map(move |bit| sector[bit / 8] >> (bit % 8) & 1 == 1))
        .collect();
    let mut runs = Vec::new();
    let mut at = 0;
    for run in dirty.chunk_by(|one, two| one == two) {
        if run[0] {
            runs.push(format!("{at}-{}", at + run.len() - 1));
        }
        at += run.len();
    }
    if runs.is_empty() {
        "nothing dirty".into()
    } else {
        format!("dirty blocks {}", runs.join(", "))
    }
}

/// What was read, in letters.
pub fn payload(payload: &Payload) -> String {
    payload.as_ref().map_or_else(|| "zeroes".into(), |found| letters(found))
}

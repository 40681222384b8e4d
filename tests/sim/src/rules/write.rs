//! R2b, R3, R4f, R5b, R5c, R9: data written and read, and the activity log.

use replicator_core::limits::EXTENT_BYTES;
use replicator_core::{BufId, ByteRange};

use crate::rules::view::{Asked, NO_EXTENT, Op, Session, extents_of};
use crate::rules::{Case, Verdict, demand, fence, log_block};

/// Data are written to the own disk.
pub fn data(case: &Case<'_>, range: ByteRange, buf: Option<BufId>) -> Verdict {
    let view = case.view;
    if let Some(at) = view.frame_of_write(range, buf) {
        demand(!view.received[at].over, "R2b", || {
            format!("a leader's write of {range:?} is applied after its session")
        })?;
        demand(!view.in_office, "R2b", || {
            format!("a leader's write of {range:?} is applied after the take-over was proposed")
        })?;
        let overlapped = view
            .ops()
            .find(|op| matches!(op, Op::Frame { range: other, .. } if other.overlaps(range)));
        demand(overlapped.is_none(), "R1", || {
            format!("a leader's write of {range:?} overtakes {overlapped:?}")
        })?;
        return fence::tenure_is_durable(case, view.received[at].tenure, "applied");
    }
    if buf.is_none() && range.start >= case.memory.room_bytes {
        // Room for the volume to grow.
        return Ok(());
    }
    let conflict = view.ops().find(|op| match op {
        Op::Copy { range: other } | Op::Client { range: other, .. } => other.overlaps(range),
        _ => false,
    });
    match conflict {
        Some(Op::Copy { range: copied }) => {
            return Err(("R4f", format!("{range:?} is written while {copied:?} is resynced")));
        }
        Some(other) => {
            return Err(("R1", format!("{range:?} is written beside {other:?}")));
        }
        None => {}
    }
    let log_share = EXTENT_BYTES * u64::from(case.memory.log_extents) / 16;
    demand(range.length <= log_share, "R17", || {
        format!("{range:?} needs more than a sixteenth of the log")
    })?;
    let cold = extents_of(range).find(|extent| !view.log.contains(extent));
    demand(cold.is_none(), "R9", || {
        format!("{range:?} is written, the log on the disk does not name extent {cold:?}")
    })
}

/// R4f: a block is read for a resync.
pub fn copy(case: &Case<'_>, range: ByteRange) -> Verdict {
    let written = case
        .view
        .ops()
        .find(|op| matches!(op, Op::Client { range: other, .. } if other.overlaps(range)));
    demand(written.is_none(), "R4f", || format!("{range:?} is resynced beside {written:?}"))
}

/// A client's read goes to the disk.
pub fn read(case: &Case<'_>, range: ByteRange) -> Verdict {
    let view = case.view;
    let written = view
        .ops()
        .find(|op| matches!(op, Op::Client { range: other, .. } if other.overlaps(range)));
    demand(written.is_none(), "R5b", || format!("{range:?} is read beside {written:?}"))?;
    let unacknowledged = view.requests.iter().find(|(_, request)| {
        request.asked == Asked::Write && request.submitted && request.range.overlaps(range)
    });
    demand(unacknowledged.is_none(), "R5b", || {
        format!("{range:?} is read, it has data of {unacknowledged:?}")
    })?;
    let hot = view.hot_at_start.iter().find(|hot| hot.overlaps(range));
    let member = view.required_member();
    demand(hot.is_none() || member.is_none(), "R5c", || {
        format!("{range:?} is read, {hot:?} was hot at the start and {member:?} is a member")
    })
}

/// R9: a block of the log, which ends what its slots named before.
pub fn log(case: &Case<'_>, bytes: &[u8]) -> Verdict {
    let view = case.view;
    let mut after = view.log.clone();
    for (slot, extent) in log_block::slots(bytes) {
        after[slot] = extent;
    }
    for (slot, &extent) in view.log.iter().enumerate() {
        let stays = extent == NO_EXTENT || after[slot] == extent || after.contains(&extent);
        if stays {
            continue;
        }
        let seen = view.extents.get(&extent).copied().unwrap_or_default();
        demand(seen.in_flight == 0 && seen.done <= view.flushed, "R9", || {
            format!("extent {extent} leaves the log, not flushed on the own disk: {seen:?}")
        })?;
        let is_missed = seen.missed.length > 0 && view.session.sync_ready == 0;
        demand(!is_missed || case.has_bits(seen.missed.dirty_blocks()), "R9", || {
            format!("extent {extent} leaves the log, no durable bit says what was missed: {seen:?}")
        })?;
        demand(is_flushed(&view.session, seen.frame), "R9", || {
            format!("extent {extent} leaves the log, the follower has not flushed {seen:?}")
        })?;
    }
    Ok(())
}

/// Whether a frame of the present session is covered by a flush; what was lost with a session is
/// dirty.
fn is_flushed(session: &Session, (id, seq): (u64, u64)) -> bool {
    id != session.id || session.hello.is_none() || seq <= session.flushed
}

/// R3: what the absent replica lacks is recorded, as a bit or a hot extent, when the write is
/// answered.
pub fn is_recorded(case: &Case<'_>, range: ByteRange) -> bool {
    let view = case.view;
    if extents_of(range).all(|extent| view.log.contains(&extent)) {
        return true;
    }
    case.has_bits(range.dirty_blocks())
}

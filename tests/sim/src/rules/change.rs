//! R2c, R3, R4e, R6, R9: a change of the register goes to the disk.

use replicator_core::limits::EXTENT_BYTES;
use replicator_core::metadata::Superblock;

use crate::rules::view::{Device, Op, Sent, SentFrame, View};
use crate::rules::{Case, Verdict, demand};

/// A copy of the superblock is written.
pub fn superblock(case: &Case<'_>, bytes: &[u8]) -> Verdict {
    let view = case.view;
    let next = Superblock::decode(bytes).expect("our own superblock");
    if view.proposed.as_ref().is_some_and(|proposed| proposed.sequence == next.sequence) {
        return Ok(());
    }
    demand(!next.register.set.is_empty() || view.committed.register.set.is_empty(), "R16", || {
        "the last member leaves the set".into()
    })?;
    if next.log_epoch > view.committed.log_epoch {
        log_is_over(case)?;
    }
    if view.takes_office(&next) {
        return taken(view, &next);
    }
    if view.releases(&next) {
        return released(view, &next);
    }
    if !view.in_office || next.register.primary != Some(view.me) {
        return changed_by_nobody(view, &next);
    }
    let before = &view.committed.register;
    for gone in before.set.iter().filter(|member| !next.register.contains(member.replica)) {
        demand(view.answered <= view.flushed, "R3", || {
            format!("{:?} is to leave, what was answered is not flushed here", gone.replica)
        })?;
    }
    for new in next.register.set.iter().filter(|member| !before.contains(member.replica)) {
        // A session that was lost before the proposal starts again.
        let session = &view.session;
        let hello = session.hello.as_ref();
        let is_ready = hello.is_some_and(|hello| {
            hello.replica == new.replica && hello.incarnation == new.incarnation
        }) && session.grow_ready == next.register.generation;
        let base = next.peers[0].base;
        demand(base == next.register.generation && !next.peers[0].all_dirty, "R13", || {
            format!("{new:?} is to join, the bitmap for it counts from generation {base}")
        })?;
        let is_ready = is_ready || view.grows_behind == Some((*new, next.register.generation));
        let known = view.proposed.as_ref().is_some_and(|p| p.register.contains(new.replica));
        demand(is_ready || known, "R4e", || {
            format!("{new:?} is proposed and has recorded generation {}", session.grow_ready)
        })?;
    }
    Ok(())
}

/// R1: without an office a replica proposes neither a member nor the absence of one. It may give
/// its authority away, leave by R16, and copy what others committed.
fn changed_by_nobody(view: &View, next: &Superblock) -> Verdict {
    let known = &view.newest_known;
    let kept = next.register.set == known.set || next.register.order() <= known.order();
    let leaves = !next.register.contains(view.me) && view.device == Device::Lost;
    demand(kept || leaves, "R1", || {
        format!("a replica without an office proposes the set {:?}", next.register.set)
    })?;
    // R3: it leaves to one that has made durable what was answered.
    let session = &view.session;
    let answered =
        |frame: &SentFrame| matches!(frame.what, Sent::Write { .. }) && frame.answered > 0;
    let last = session.sent.iter().rposition(answered);
    let flushed = last.is_none_or(|last| session.flushed > last as u64 + 1);
    demand(kept || flushed, "R3", || {
        format!("this replica leaves the set, the heir flushed up to {}", session.flushed)
    })
}

/// R2c, R6b: the office is to be taken.
fn taken(view: &View, next: &Superblock) -> Verdict {
    demand(!view.session.greeted, "R2c", || "a take-over is proposed in an old session".into())?;
    let writing = view.ops().find(|op| matches!(op, Op::Frame { .. } | Op::Client { .. }));
    demand(writing.is_none(), "R2c", || {
        format!("a take-over is proposed while {writing:?} is under way")
    })?;
    demand(view.last_write <= view.flushed, "R2c", || {
        "a take-over is proposed and the own disk was not flushed".into()
    })?;
    let others = next.register.set.iter().any(|member| member.replica != view.me);
    demand(!others || view.newest_known.released_clean, "R6b", || {
        format!("a take-over keeps the set {:?} that nobody released", next.register.set)
    })
}

/// R6c: the office is to be released.
fn released(view: &View, next: &Superblock) -> Verdict {
    demand(view.requests.is_empty() && view.device == Device::Closing, "R6c", || {
        format!("the office is released with {} requests open", view.requests.len())
    })?;
    demand(view.last_write <= view.flushed, "R6c", || {
        "the office is released and the own disk was not flushed".into()
    })?;
    let member = next.register.set.iter().any(|member| member.replica != view.me);
    let session = &view.session;
    let last = session.sent.iter().rposition(|frame| matches!(frame.what, Sent::Write { .. }));
    let flushed = last.is_none_or(|last| session.flushed > last as u64 + 1);
    demand(!member || session.hello.is_none() || flushed, "R6c", || {
        format!("the office is released, the other member flushed {}", session.flushed)
    })?;
    demand(next.log_epoch > view.committed.log_epoch, "R6c", || {
        "the office is released with a log that is not empty".into()
    })
}

/// R9: a log is over: after a start, a release, or a lost office.
fn log_is_over(case: &Case<'_>) -> Verdict {
    let view = case.view;
    if view.hot_when_lost.is_empty() {
        return Ok(());
    }
    let bitmap = case.bits_on_disk();
    let last = case.memory.blocks();
    let clean = view.hot_when_lost.iter().find(|&&extent| {
        let start = u64::from(extent) * EXTENT_BYTES / 4096;
        let end = (start + EXTENT_BYTES / 4096).min(last);
        !bitmap.blocks().contains_all(start..end)
    });
    demand(clean.is_none() || case.memory.peers[0].all_dirty, "R9", || {
        format!("the log is over, extent {clean:?} was hot and is not dirty on the disk")
    })
}

//! R4, R10, R13: a follower is resynced and becomes a member.

use replicator_core::block::ReplicaId;
use replicator_core::wire::Message;

use crate::rules::view::{Sent, SentFrame, View};
use crate::rules::{Case, Verdict, demand};

/// A frame goes out.
pub fn frame(case: &Case<'_>, message: &Message) -> Verdict {
    match message {
        Message::SyncStart { full: false, .. } => partial(case),
        Message::SyncReady => {
            let copies = case.disk.superblocks();
            let recorded = copies.iter().all(|copy| copy.as_ref().is_some_and(|c| c.syncing));
            demand(recorded, "R13", || "a resync begins that its target has not recorded".into())
        }
        Message::Grow(_) => announced(case.view),
        Message::GrowReady { generation } => {
            let copies = case.disk.superblocks();
            let recorded =
                copies.iter().all(|copy| copy.as_ref().is_some_and(|c| c.coming == *generation));
            demand(recorded, "R4d", || {
                format!("generation {generation} is said to be recorded, and is not")
            })
        }
        Message::Write { range, .. } | Message::Zero { range, .. } => {
            let Some(proposed) = &case.view.proposed else { return Ok(()) };
            let Some(hello) = &case.view.session.hello else { return Ok(()) };
            let committed = &case.view.committed.register;
            let leaves =
                committed.contains(hello.replica) && !proposed.register.contains(hello.replica);
            demand(!leaves, "R3", || {
                format!("{range:?} is sent to a replica whose removal is proposed")
            })
        }
        _ => Ok(()),
    }
}

/// R13: a partial resync.
fn partial(case: &Case<'_>) -> Verdict {
    let Some(theirs) = &case.view.session.hello else { return Ok(()) };
    let mine = &case.memory.peers[0];
    let me = case.view.me;
    let joined = theirs.coming != 0 && theirs.coming == mine.base && theirs.knows_you_as == me;
    let base = if joined { theirs.coming } else { theirs.base };
    demand(base != 0 && base == mine.base, "R13", || {
        format!("a partial resync from base {} to base {base}", mine.base)
    })?;
    let new = theirs.knows_you_as == ReplicaId::NONE && theirs.assumed_equal;
    demand(theirs.knows_you_as == me || new, "R13", || {
        format!("a partial resync of a replica that knows {:?}", theirs.knows_you_as)
    })?;
    demand(!theirs.invalid, "R13", || "a partial resync of bad data".into())
}

/// R4a-c: the follower is told of its membership.
fn announced(view: &View) -> Verdict {
    let session = &view.session;
    let sent = &session.sent;
    let is_flush = |frame: &&SentFrame| frame.what == Sent::Flush && frame.acked > 0;
    let last_copy = sent.iter().rposition(|frame| frame.what == Sent::Resync);
    let begun = match last_copy {
        None => session.sync_ready,
        Some(last) => {
            let cleared = sent[last..].iter().find(is_flush).map(|frame| frame.acked);
            let Some(cleared) = cleared else {
                return Err(("R10", "a replica joins, its last blocks are not durable".into()));
            };
            cleared
        }
    };
    // From here on its acknowledgement was required: one flush must cover all that came before.
    let flushes: Vec<&SentFrame> =
        sent.iter().filter(is_flush).filter(|frame| frame.at >= begun).collect();
    demand(!flushes.is_empty(), "R4c", || "a replica joins without a flush of its own".into())?;
    let before: Vec<&SentFrame> = sent.iter().filter(|frame| frame.at < begun).collect();
    let drained =
        |flush: &&SentFrame| before.iter().all(|frame| frame.acked > 0 && frame.acked <= flush.at);
    demand(flushes.iter().any(drained), "R4a", || {
        "a replica joins, its flush began while earlier frames were out".into()
    })?;
    // Since which of the flushes it was required only the core knows: since the last, surely.
    let required = flushes.iter().map(|flush| flush.at).max().unwrap_or(begun);
    let free = sent.iter().find(|frame| {
        let is_out = frame.acked == 0 || frame.acked > frame.answered;
        frame.at > required && frame.answered > 0 && is_out
    });
    demand(free.is_none(), "R4b", || {
        format!("a replica joins, its acknowledgement was not required: {free:?}")
    })
}

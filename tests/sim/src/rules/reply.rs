//! R1, R3, R4b, R7, R8, R15, R16, R17: a client is told that its request succeeded.

use replicator_core::block::{DIRTY_BLOCK_BYTES, ReplicaId};

use crate::rules::view::{Asked, Device, Request, Sent, View};
use crate::rules::write::is_recorded;
use crate::rules::{Case, Verdict, demand};

/// A request succeeded.
pub fn success(case: &Case<'_>, id: u64) -> Verdict {
    let view = case.view;
    let Some(request) = view.requests.get(&id) else { return Ok(()) };
    demand(request.instance == view.instance, "R2f", || {
        format!("request {id} of an earlier instance is answered: {request:?}")
    })?;
    demand(matches!(view.device, Device::Open | Device::Closing), "R15", || {
        format!("request {id} succeeds on a device that is {:?}: {request:?}", view.device)
    })?;
    demand(!view.released, "R6c", || {
        format!("request {id} is answered after the release was proposed: {request:?}")
    })?;
    if request.asked == Asked::Read {
        return Ok(());
    }
    demand(!request.failed, "R16", || format!("request {id} failed on the disk: {request:?}"))?;
    demand(request.in_flight == 0, "R1", || {
        format!("request {id} is answered before the own disk has it: {request:?}")
    })?;
    if request.asked == Asked::Flush {
        return flush(view, id, request);
    }
    if request.submitted {
        written(case, id, request)?;
    }
    Ok(())
}

/// Why the register demands an acknowledgement of that replica.
fn clause(view: &View, replica: ReplicaId) -> &'static str {
    let is_in =
        |superblock: &replicator_core::metadata::Superblock| superblock.register.contains(replica);
    match (is_in(&view.committed), view.proposed.as_deref().map(is_in)) {
        (true, Some(false)) => "R3",
        (false, Some(true)) => "R4e",
        _ => "R1",
    }
}

/// The session with a member, unless the member counts as missing (R1, R8).
fn member_is_there(view: &View, replica: ReplicaId) -> Verdict {
    let hello = view.session.hello.as_ref().filter(|hello| hello.replica == replica);
    let rule = clause(view, replica);
    let Some(hello) = hello else {
        return Err((rule, format!("an answer while the member {replica:?} is not there")));
    };
    let entry = view.committed.register.member(replica);
    demand(entry.is_none_or(|entry| entry.incarnation == hello.incarnation), "R8", || {
        format!("an answer while {replica:?} is a member with another incarnation")
    })
}

fn written(case: &Case<'_>, id: u64, request: &Request) -> Verdict {
    let view = case.view;
    let session = &view.session;
    let frames = || {
        let here = request.frames.iter().filter(|(number, _)| *number == session.id);
        here.filter_map(|(_, seq)| Some((*seq, session.frame(*seq)?)))
    };
    if let Some(replica) = view.required_member() {
        member_is_there(view, replica)?;
        let rule = if request.asked == Asked::Trim { "R17" } else { clause(view, replica) };
        demand(request.delivered || frames().next().is_some(), rule, || {
            format!("request {id} is answered and was never sent to {replica:?}: {request:?}")
        })?;
        let missing = frames().find(|(_, frame)| frame.acked == 0);
        demand(missing.is_none(), clause(view, replica), || {
            format!("request {id} is answered, {replica:?} has not acknowledged {missing:?}")
        })?;
        let volatile = frames().find(|(seq, frame)| {
            let durable = frame.what == (Sent::Write { fua: true }) || session.flushed > *seq;
            request.fua && !durable
        });
        demand(volatile.is_none(), "R7", || {
            format!("request {id} has FUA, {replica:?} was not told: {volatile:?}")
        })?;
    } else {
        // The edges of a trim are no-ops (R17).
        let range = match request.asked {
            Asked::Trim => request.range.align_in(DIRTY_BLOCK_BYTES),
            _ => request.range,
        };
        demand(is_recorded(case, range), "R3", || {
            format!("request {id} is answered, nothing durable says that it was missed")
        })?;
    }
    let early = frames().find(|(_, frame)| {
        session.grow_sent > 0 && frame.at > session.grow_sent && frame.acked == 0
    });
    demand(early.is_none() || session.hello.is_none(), "R4b", || {
        format!("request {id} is answered without the joining replica: {early:?}")
    })?;
    demand(!request.fua || request.done <= view.flushed, "R7", || {
        format!("request {id} has FUA and is not durable on the own disk: {request:?}")
    })
}

fn flush(view: &View, id: u64, request: &Request) -> Verdict {
    demand(view.flushed >= request.since, "R7", || {
        format!("flush {id} is answered, the own disk did not flush since: {request:?}")
    })?;
    let Some(replica) = view.required_member() else { return Ok(()) };
    member_is_there(view, replica)?;
    let session = &view.session;
    let missed = session.sent.iter().zip(1..).skip(session.flushed as usize).find(|(frame, _)| {
        let before = frame.answered > 0 && frame.answered <= request.since;
        before && frame.what == (Sent::Write { fua: false })
    });
    demand(missed.is_none(), "R7", || {
        format!("flush {id} is answered, {replica:?} has not flushed {missed:?}")
    })
}

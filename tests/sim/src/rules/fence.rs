//! R2 and R6a: who may apply and who may serve.

use replicator_core::wire::Message;

use crate::disk::Disk;
use crate::rules::view::{Op, Received, View};
use crate::rules::{Case, Verdict, demand};

/// The last office of a node: lineage and tenure, boot, generation, process.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    tenure: (u64, u64),
    incarnation: u128,
    generation: u64,
}

/// A frame goes out.
pub fn frame(case: &Case<'_>, message: &Message) -> Verdict {
    let view = case.view;
    match message {
        Message::Hello(_) => {
            let writing = view.ops().find(|op| matches!(op, Op::Frame { .. }));
            demand(writing.is_none(), "R2d", || {
                format!("a session begins while {writing:?} of an old one is under way")
            })
        }
        Message::Ack { seq } => {
            let Some(at) = view.frame_acknowledged(*seq) else { return Ok(()) };
            let frame = &view.received[at];
            tenure_is_durable(case, frame.tenure, "acknowledged")?;
            if !frame.durable {
                return Ok(());
            }
            // R7: what came before a flush, or the write itself with FUA.
            let before: Vec<_> = match frame.is_flush {
                true => {
                    let writes = |f: &&Received| !f.is_flush && f.session == frame.session;
                    view.received.iter().take(at).filter(writes).collect()
                }
                false => vec![frame],
            };
            let missing = before.iter().find(|f| f.done == 0 || f.done > view.flushed);
            let older = frame.is_flush && view.received_done > view.flushed;
            demand(missing.is_none() && !older, "R7", || {
                format!("frame {seq} is acknowledged as durable, {missing:?} is not")
            })
        }
        _ => Ok(()),
    }
}

/// R2a: the tenure of a frame, and who leads in it, are in both copies of the superblock.
pub fn tenure_is_durable(case: &Case<'_>, tenure: u64, what: &str) -> Verdict {
    let register = &case.view.committed.register;
    let on_disk = case.view.committed.tenure;
    demand(on_disk >= tenure, "R2a", || {
        format!("a frame of tenure {tenure} is {what}, tenure {on_disk} is durable")
    })?;
    let leader = case.view.session.hello.as_ref().map(|hello| hello.replica);
    demand(leader.is_none() || register.primary == leader, "R2a", || {
        let named = register.primary;
        format!("a frame of {leader:?} is {what}, the durable register names {named:?} primary")
    })
}

/// R2c, R6a: the device opens.
pub fn office(view: &View, disk: &Disk, tenure: u64, held: &mut Option<Held>) -> Verdict {
    let register = &view.committed.register;
    let copies = disk.superblocks();
    let durable = copies.iter().all(|copy| {
        copy.as_ref().is_some_and(|copy| {
            copy.register.tenure == tenure && copy.register.primary == Some(view.me)
        })
    });
    demand(durable, "R2c", || {
        format!("tenure {tenure} serves, the copies have {:?}", disk.copies())
    })?;
    let now = Held {
        tenure: (register.basis.lineage, tenure),
        incarnation: view.incarnation,
        generation: register.generation,
    };
    let before = held.replace(now).filter(|before| before.tenure == now.tenure);
    let Some(before) = before else { return Ok(()) };
    demand(before.incarnation == now.incarnation, "R6a", || {
        format!("tenure {tenure} goes on after the machine lost its caches")
    })?;
    demand(before.generation < now.generation, "R6a", || {
        format!("tenure {tenure} goes on, no new generation was committed: {before:?} {now:?}")
    })
}

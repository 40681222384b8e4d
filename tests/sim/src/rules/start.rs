//! R14: what a process does before it speaks for the first time.

use replicator_core::wire::Message;

use crate::rules::{Case, Verdict, demand};

/// A frame goes out; only the first greeting of a process is looked at.
pub fn greeting(case: &Case<'_>, message: &Message) -> Verdict {
    let view = case.view;
    let Message::Hello(hello) = message else { return Ok(()) };
    // Without a disk it only tells what it knows.
    if view.has_greeted || !hello.has_disk {
        return Ok(());
    }
    let wanted = hello.register.order();
    let copies = case.disk.superblocks();
    let settled =
        copies.iter().all(|copy| copy.as_ref().is_some_and(|copy| copy.register.order() >= wanted));
    demand(settled, "R14", || {
        let copies = case.disk.copies();
        format!("it speaks of {wanted:?} before its own change is settled: copies {copies:?}")
    })?;
    if view.hot_at_start.is_empty() {
        return Ok(());
    }
    demand(view.committed.log_epoch > view.first_epoch, "R14", || {
        "it speaks before the log that it found is over".into()
    })?;
    let bitmap = case.bits_on_disk();
    let last = case.memory.blocks();
    let missing = view.hot_at_start.iter().find(|range| {
        let blocks = range.dirty_blocks();
        !bitmap.blocks().contains_all(blocks.start..blocks.end.min(last))
    });
    demand(missing.is_none() || case.memory.peers[0].all_dirty, "R9", || {
        format!("{missing:?} was hot at the start and is not dirty on the disk")
    })
}

//! The rules of SAFETY.md, asserted clause by clause: a bystander of each process reads every fact
//! it is told and every order it gives, beside its disk, and fails the seed at the first order
//! that a rule forbids. So a broken rule is found when it is broken, whether data suffer or not.
//!
//! Not here, for want of their object in a pair without a witness: R5d, R5e and R6d (leases), R11b
//! and R11c (a register elsewhere), L1-L7. R2e is what `start_process` of the world does; R11a,
//! R11d and the two copies of R12 are judged in `checkers/metadata.rs`, R9, R10 and R13 once more
//! by their outcome in `checkers/tracking.rs`.
//!
//! `view.rs` is the bystander; each other file judges orders by one family of rules. What only the
//! two disks together or the clients' answers can show is in `checkers` and `history`.

mod change;
mod fence;
mod join;
mod log_block;
mod reply;
mod start;
mod view;
mod write;

use replicator_core::Effect;
use std::ops::Range;

use replicator_core::bitmap::DirtyBitmap;
use replicator_core::metadata::Superblock;

use crate::disk::Disk;
use crate::failure::Kind;
use crate::world::World;

pub use fence::Held;
pub use view::View;

/// A clause, and what was seen that breaks it.
pub type Broken = (&'static str, String);
/// What a rule says of an order.
pub type Verdict = Result<(), Broken>;

/// One process at the moment of an order.
pub struct Case<'a> {
    /// What was seen of it until now.
    pub view: &'a View,
    /// Its disk.
    pub disk: &'a Disk,
    /// The superblock in its memory after the step.
    pub memory: &'a Superblock,
}

impl Case<'_> {
    /// The dirty blocks that the disk names for the peer.
    fn bits_on_disk(&self) -> DirtyBitmap {
        let bits = self.disk.part(&self.memory.layout().bitmaps[0]);
        let base = self.memory.peers[0].base;
        DirtyBitmap::load(self.memory.blocks(), base, self.memory.tag(), bits)
    }

    /// Whether the disk says that the peer lacks all of these blocks.
    fn has_bits(&self, blocks: Range<u64>) -> bool {
        self.memory.peers[0].all_dirty || self.bits_on_disk().blocks().contains_all(blocks)
    }
}

/// Fails a rule unless a condition holds.
pub fn demand(holds: bool, rule: &'static str, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err((rule, text())) }
}

fn judge(case: &Case<'_>, effect: &Effect) -> Verdict {
    match effect {
        Effect::WriteDisk { range, buf, .. } => write::data(case, *range, Some(*buf)),
        Effect::ZeroDisk { range, .. } => write::data(case, *range, None),
        Effect::ReadDisk { range, .. } => write::read(case, *range),
        Effect::ReadForResync { range, .. } => write::copy(case, *range),
        Effect::WriteMeta { offset, bytes, .. } if case.view.is_log(*offset) => {
            write::log(case, bytes)
        }
        Effect::WriteMeta { offset, bytes, .. } if case.view.is_superblock(*offset) => {
            change::superblock(case, bytes)
        }
        Effect::SendPeer { session, message, .. } if session.0 == case.view.session.id => {
            start::greeting(case, message)?;
            fence::frame(case, message)?;
            join::frame(case, message)
        }
        Effect::ReplyClient { request, result: Ok(()) } => reply::success(case, request.0),
        _ => Ok(()),
    }
}

impl World {
    /// A process has ordered this; none of it is carried out.
    pub fn watch_orders(&mut self, node: usize, effects: &[Effect]) {
        let there = &mut self.nodes[node];
        let disk = &there.disk;
        let process = there.process.as_mut().expect("a process");
        let memory = process.replica.superblock();
        let mut broken = None;
        for effect in effects {
            let case = Case { view: &process.view, disk, memory };
            let verdict = judge(&case, effect);
            broken = broken.or(verdict.err());
            process.view.ordered(effect);
        }
        if let Effect::OpenDevice { tenure, .. } = effect_of_office(effects) {
            let held = &mut self.checkers.held[node];
            broken = broken.or(fence::office(&process.view, disk, *tenure, held).err());
        }
        if let Some((rule, text)) = broken {
            let text = format!("{}: {text}", there.name);
            self.fail(Kind::Safety, rule, text);
        }
    }
}

fn effect_of_office(effects: &[Effect]) -> &Effect {
    const NONE: Effect = Effect::Stopped;
    effects.iter().find(|effect| matches!(effect, Effect::OpenDevice { .. })).unwrap_or(&NONE)
}

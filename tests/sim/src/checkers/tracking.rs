//! R9, R10, R13: every block in which the replicas differ is known, durably, to one of them: a
//! dirty bit, a hot extent, or a reason for a full resync. Looked up on the disks alone, as if
//! both machines lost their power now.

use std::mem;

use replicator_core::ByteRange;
use replicator_core::activity_log::{Replay, replay};
use replicator_core::bitmap::DirtyBitmap;
use replicator_core::block::{DIRTY_BLOCK_BYTES, ReplicaId};
use replicator_core::metadata::Superblock;

use crate::disk::Disk;
use crate::failure::Kind;
use crate::sectors::SECTOR_BYTES;
use crate::world::World;

const SECTORS_PER_BLOCK: u64 = DIRTY_BLOCK_BYTES / SECTOR_BYTES;

impl World {
    /// Checks it.
    pub fn check_tracking(&mut self) {
        let changes = [0, 1].map(|node| self.nodes[node].disk.changes());
        if mem::replace(&mut self.checkers.tracked, changes) == changes {
            // What it said of these disks before.
            return;
        }
        let blocks = self.differing_blocks();
        if blocks.is_empty() {
            return;
        }
        let supers = [self.superblock(0), self.superblock(1)];
        let used_without_us = (0..2).any(|node| {
            // R12: the next start finds it out.
            supers[node].clean && supers[node].fingerprint != self.nodes[node].disk.fingerprint()
        });
        if used_without_us || needs_full(&supers[0], &supers[1]) {
            return;
        }
        let mut untracked = blocks;
        for node in 0..2 {
            let base = base_of(&supers[node], &supers[1 - node]);
            let known = Known::new(&self.nodes[node].disk, &supers[node], base);
            untracked.retain(|&block| !known.contains(block));
        }
        if let Some(block) = untracked.first() {
            let values = [0, 1].map(|node| {
                let first = block * SECTORS_PER_BLOCK;
                (first..first + SECTORS_PER_BLOCK)
                    .map(|sector| self.nodes[node].disk.live.get(sector))
                    .collect::<Vec<_>>()
            });
            let text = format!(
                "block {block} differs and no disk knows ({} such): {values:?}",
                untracked.len()
            );
            self.fail(Kind::Safety, "R9", text);
        }
    }

    fn differing_blocks(&self) -> Vec<u64> {
        let differences = self.nodes[0].disk.live.differences(&self.nodes[1].disk.live);
        // Behind its room a replica has anything: nobody has written there, it counts as zeroes.
        let rooms = [0, 1].map(|node| self.superblock(node).room_bytes / SECTOR_BYTES);
        let differs = |sector: &u64| {
            let known = |node: usize| match *sector < rooms[node] {
                true => self.nodes[node].disk.live.get(*sector),
                false => 0,
            };
            known(0) != known(1)
        };
        let mut blocks: Vec<u64> = differences
            .into_iter()
            .filter(differs)
            .map(|sector| sector / SECTORS_PER_BLOCK)
            .collect();
        blocks.dedup();
        blocks
    }
}

/// The generation a replica's bitmap counts from when the two meet (a join it was told of, and
/// that the other made, counts).
fn base_of(mine: &Superblock, theirs: &Superblock) -> u64 {
    let joined = mine.coming != 0 && mine.coming == theirs.peers[0].base;
    if joined { mine.coming } else { mine.peers[0].base }
}

fn needs_full(one: &Superblock, two: &Superblock) -> bool {
    one.invalid
        || two.invalid
        || one.peers[0].all_dirty
        || two.peers[0].all_dirty
        || one.peers[0].replica != two.replica
        || two.peers[0].replica != one.replica
        || one.peers[0].replica == ReplicaId::NONE
        || base_of(one, two) != base_of(two, one)
}

/// What one disk knows to differ.
struct Known {
    bitmap: DirtyBitmap,
    blocks: u64,
    hot: Vec<ByteRange>,
}

impl Known {
    fn new(disk: &Disk, superblock: &Superblock, base: u64) -> Self {
        let layout = superblock.layout();
        let bits = disk.part(&layout.bitmaps[0]);
        let bitmap = DirtyBitmap::load(superblock.blocks(), base, superblock.tag(), bits);
        let log = disk.part(&layout.log);
        let hot = match replay(log, superblock.log_epoch, superblock.log_extents) {
            _ if superblock.clean => Vec::new(),
            Replay::Unreadable => vec![ByteRange::new(0, superblock.data_bytes)],
            Replay::Hot(ranges) => ranges,
        };
        Self { bitmap, blocks: superblock.blocks(), hot }
    }

    fn contains(&self, block: u64) -> bool {
        let at = block * DIRTY_BLOCK_BYTES;
        // A replica that has not grown yet knows nothing of what is behind its end: zeroes.
        block < self.blocks && self.bitmap.blocks().contains(block)
            || self.hot.iter().any(|range| range.start <= at && at < range.end())
    }
}

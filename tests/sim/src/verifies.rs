//! Bit rot, and the verify that finds it: in some seeds single sectors of a secondary's disk change
//! while nobody writes them, and somebody orders verifies and repairs, from either node, also in
//! the middle of other troubles. What a verify found must be exactly what had rotted, and nothing
//! where nothing had; a repair mends it; at the end nothing is rotten.
//!
//! A node that takes an office is taken to have a sound disk again: what clients read is not what
//! this is about, and their history knows of no rot.

use std::collections::BTreeSet;

use replicator_core::block::DIRTY_BLOCK_BYTES;
use replicator_core::{ByteRange, ClientRequest, Command, Findings, Input, Note, Ticket};

use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::plan::EARLY_BYTES;
use crate::sectors::SECTOR_BYTES;
use crate::tell;
use crate::world::{Event, MS, World};

/// So many sectors of a disk are rotten at the same time at most: a verify names every one.
const ROTTEN_MAX: usize = 6;
/// Tickets of these orders, far from those of others.
const FIRST_TICKET: u64 = 1 << 60;

type BlockSet = BTreeSet<u64>;

/// What is remembered of verifies.
#[derive(Debug, Default)]
pub struct Verifies {
    tickets: u64,
    /// To be given to the primary when a client has asked it to write where a verify begins.
    beside_a_write: Option<Command>,
    /// By the node whose copy it is.
    copies: [Copy; 2],
    /// One that repairs came to its end after all troubles.
    pub is_last_done: bool,
}

/// One copy.
#[derive(Debug, Default)]
struct Copy {
    /// Blocks that were rotten when the verify began that is under way.
    at_begin: Option<BlockSet>,
    /// Blocks that rotted since.
    since: BlockSet,
    /// Blocks that the repair under way is to mend.
    to_mend: BlockSet,
}

fn blocks_of(runs: &[ByteRange]) -> BlockSet {
    runs.iter().flat_map(|run| run.dirty_blocks()).collect()
}

impl World {
    /// Something rots, or somebody orders a verify.
    pub fn verify_turn(&mut self) {
        let Some(longest_ms) = self.plan.verify_every_ms else { return };
        if self.verifies.is_last_done {
            return;
        }
        let pause = (1 + self.draw.below(longest_ms)) * MS;
        self.after(pause, Event::Verify);
        let Some((primary, _)) = self.device() else { return };
        if self.is_calm() {
            return self.order_verify(primary, Command::Verify { repair: true });
        }
        if self.draw.chance(40) {
            self.rot(1 - primary);
        }
        let repair = self.draw.chance(50);
        let (node, command) = match self.draw.below(20) {
            0 => (primary, Command::CancelVerify),
            1..4 => (1 - primary, Command::Verify { repair }),
            4..8 => (primary, Command::Verify { repair }),
            8..14 => {
                self.verifies.beside_a_write = Some(Command::Verify { repair });
                return;
            }
            _ => return,
        };
        self.order_verify(node, command);
    }

    /// A client has asked for this.
    pub fn verify_beside(&mut self, node: usize, what: &ClientRequest) {
        let ClientRequest::Write { range, .. } = what else { return };
        if range.start < EARLY_BYTES
            && let Some(command) = self.verifies.beside_a_write.take()
        {
            self.order_verify(node, command);
        }
    }

    fn order_verify(&mut self, node: usize, command: Command) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        self.verifies.tickets += 1;
        let ticket = Ticket(FIRST_TICKET + self.verifies.tickets);
        tell!(self, "somebody to {}: {command:?}", self.nodes[node].name);
        self.fact(node, life, Box::new(Input::Ordered { ticket, command }));
    }

    /// A sector of a secondary's disk changes by itself.
    fn rot(&mut self, node: usize) {
        let local = self.local(node);
        let process = self.nodes[node].process.as_ref();
        let role = process.map(|process| process.replica.status(local).role);
        if role != Some("secondary") || self.nodes[node].disk.rotten().len() >= ROTTEN_MAX {
            return;
        }
        let draw = &mut self.draw;
        let spot = self.plan.spots[draw.below(self.plan.spots.len() as u64) as usize];
        // Where clients write, and where they do not.
        let far = if draw.chance(50) { draw.below(64) } else { 200 + draw.below(500) };
        let last = self.plan.data_bytes / SECTOR_BYTES - 1;
        let sector = (spot / SECTOR_BYTES + far).min(last);
        let block = sector * SECTOR_BYTES / DIRTY_BLOCK_BYTES;
        tell!(self, "block {block} of {} rots", self.nodes[node].name);
        self.nodes[node].disk.rot_sector(sector);
        let copy = &mut self.verifies.copies[node];
        copy.since.insert(block);
        copy.to_mend.remove(&block);
        self.happened(Occasion::DataRot);
    }

    /// A node takes an office.
    pub fn rot_ends(&mut self, node: usize) {
        self.nodes[node].disk.forget_rot();
    }

    fn rotten_blocks(&self, node: usize) -> BlockSet {
        let sectors = self.nodes[node].disk.rotten().iter();
        sectors.map(|sector| sector * SECTOR_BYTES / DIRTY_BLOCK_BYTES).collect()
    }

    /// A primary notes something of the verify of its peer; what a follower is told is the same.
    pub fn check_verify(&mut self, node: usize, note: &Note) {
        let name = self.nodes[node].name;
        match note {
            Note::VerifyStarted { with, .. } if with == name => {
                let rotten = self.rotten_blocks(1 - node);
                let copy = &mut self.verifies.copies[1 - node];
                (copy.at_begin, copy.since) = (Some(rotten), BlockSet::new());
            }
            Note::VerifyEnded { with, broken, findings, repairs, .. } if with == name => {
                // What rotted after it had been compared is for another one.
                let saw_all = self.verifies.copies[1 - node].since.is_empty();
                self.check_findings(1 - node, broken.is_none(), findings);
                let is_done = broken.is_none();
                let occasion = if is_done { Occasion::VerifyEnded } else { Occasion::VerifyBroken };
                self.happened(occasion);
                if is_done && findings.differing_blocks > 0 {
                    self.happened(Occasion::RotFound);
                }
                self.verifies.is_last_done |=
                    is_done && saw_all && self.is_calm() && (*repairs || findings.is_clean());
                if *repairs {
                    let mut to_mend = blocks_of(&findings.differing);
                    to_mend.retain(|block| self.rotten_blocks(1 - node).contains(block));
                    self.verifies.copies[1 - node].to_mend = to_mend;
                }
            }
            Note::VerifyRepaired { .. } if self.serves(node) => {
                self.happened(Occasion::RotRepaired);
                let rotten = self.rotten_blocks(1 - node);
                let to_mend = std::mem::take(&mut self.verifies.copies[1 - node].to_mend);
                let left: Vec<&u64> = to_mend.intersection(&rotten).collect();
                if !left.is_empty() {
                    let text = format!("a repair of {} left blocks {left:?}", name_of(1 - node));
                    self.fail(Kind::Safety, "R10", text);
                }
            }
            _ => {}
        }
    }

    fn check_findings(&mut self, of: usize, is_whole: bool, findings: &Findings) {
        let now = self.rotten_blocks(of);
        let copy = &mut self.verifies.copies[of];
        let Some(at_begin) = copy.at_begin.take() else {
            let text = "a verify ended that never began".into();
            return self.fail(Kind::Safety, "R10", text);
        };
        let since = std::mem::take(&mut copy.since);
        let found = blocks_of(&findings.differing);
        let may_differ: BlockSet = at_begin.union(&since).copied().collect();
        let false_alarm: Vec<u64> = found.difference(&may_differ).copied().collect();
        if !false_alarm.is_empty() || found.len() as u64 != findings.differing_blocks {
            let text = format!("false alarm: blocks {false_alarm:?} of {findings:?}");
            return self.fail(Kind::Safety, "R10", text);
        }
        let unreadable = blocks_of(&findings.unreadable);
        // The list is bounded, and may have lost ranges before others in it were merged.
        let named: u64 = findings.unreadable.iter().map(|range| range.length).sum();
        let names_all = named == findings.unreadable_here_bytes + findings.unreadable_there_bytes;
        // What rotted or was written meanwhile may have been read before or after.
        let missed: Vec<u64> = at_begin
            .iter()
            .copied()
            .filter(|block| now.contains(block) && !since.contains(block))
            .filter(|block| !found.contains(block) && !unreadable.contains(block))
            .collect();
        if is_whole && names_all && !missed.is_empty() {
            let text = format!("a verify did not find that blocks {missed:?} rotted: {findings:?}");
            self.fail(Kind::Safety, "R10", text);
        }
    }

    /// What is missing until all is well.
    pub fn why_rotten(&self) -> Option<&'static str> {
        let waits = self.plan.verify_every_ms.is_some() && !self.verifies.is_last_done;
        waits.then_some("the last verify is to come")
    }

    /// At the end, when a verify has repaired what it found.
    pub fn check_nothing_is_rotten(&mut self) {
        for node in 0..2 {
            let rotten = self.rotten_blocks(node);
            if !rotten.is_empty() {
                let text = format!("{} ends with rotten blocks {rotten:?}", name_of(node));
                self.fail(Kind::Safety, "R10", text);
            }
        }
    }
}

fn name_of(node: usize) -> &'static str {
    ["alpha", "beta"][node]
}

//! Disks that are not what they were: swapped, cloned, re-created, restored from an older copy,
//! shrunk, grown, smaller than the peer's, rotten (R12; D5, D6, D7 of SCENARIOS.md). Either the
//! replica refuses to start, or its peer refuses it, or it is resynced in full. The operator puts
//! right what was refused.

use replicator_core::activity_log::{Replay, replay};
use replicator_core::metadata::{AttachError, Image, Superblock};
use replicator_core::{Config, Note, Replica};

use crate::disk::Disk;
use crate::failure::Kind;
use crate::host::fresh_disk;
use crate::occasions::Occasion;
use crate::tell;
use crate::world::{Event, MS, World};

/// How a disk is not the one that the node had. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Other {
    /// The other node's disk is in this machine: refused at the start.
    Swapped,
    /// The device is smaller than it was: refused at the start.
    Shrunk(u64),
    /// The device is larger: refused at the start.
    Grown(u64),
    /// A copy of the other node's disk, made to fit this node: two have one id, so the peer
    /// refuses it.
    Cloned,
    /// A new disk, smaller than the peer's, which refuses it.
    Smaller,
}

/// A disk that the peer will refuse.
#[derive(Clone, Copy, Debug)]
pub struct Impostor {
    since: u64,
    refused: bool,
}

impl World {
    /// A machine is off, and comes back with another disk.
    pub fn put_in_another_disk(&mut self, node: usize, back_after: u64) {
        let bytes = [4096, 65_536, 1 << 20, 3 << 20][self.draw.below(4) as usize];
        let other = match self.draw.below(7) {
            0 => Other::Swapped,
            1 => Other::Shrunk(bytes),
            2 => Other::Grown(bytes),
            3 | 4 => Other::Cloned,
            _ => Other::Smaller,
        };
        match other {
            Other::Cloned | Other::Smaller => self.put_in_an_impostor(other, back_after),
            _ => {
                self.fall(node, back_after, true);
                self.nodes[node].other = Some(other);
            }
        }
    }

    fn put_in_an_impostor(&mut self, other: Other, back_after: u64) {
        let Some((primary, _)) = self.device() else { return };
        let node = 1 - primary;
        if !self.may_lose_its_disk(node) {
            return;
        }
        tell!(self, "{} gets a disk: {other:?}", self.nodes[node].name);
        self.cut_power(node);
        self.checkers.given_up(node);
        self.nodes[node].disk = if other == Other::Cloned {
            self.clone_for(node)
        } else {
            let mut plan = self.plan.clone();
            plan.data_bytes -= 4 << 20;
            plan.room_bytes = plan.data_bytes;
            fresh_disk(node, &plan, &mut self.draw, false)
        };
        self.nodes[node].impostor = Some(Impostor { since: self.now, refused: false });
        self.start_in(node, back_after);
    }

    fn clone_for(&self, node: usize) -> Disk {
        let mut disk = self.nodes[1 - node].disk.copy();
        let mut superblock = Superblock::clone(&self.superblock(1 - node));
        superblock.node = self.nodes[node].name.into();
        superblock.peers[0].node = self.nodes[1 - node].name.into();
        let copy = superblock.encode();
        for at in superblock.layout().superblocks {
            disk.write_meta(at, &copy);
        }
        disk
    }

    /// Whether the other node has all that this one has, so that this one may lose its disk.
    pub fn may_lose_its_disk(&self, node: usize) -> bool {
        self.holds_everything(1 - node)
            && !self.operator_is_busy()
            && !self.is_being_left_out(1 - node)
            && self.nodes.iter().all(|node| node.impostor.is_none() && node.other.is_none())
    }

    /// The disk of the node that does not serve is replaced by an empty one.
    pub fn replace_disk(&mut self, back_after: u64) {
        let Some((primary, _)) = self.device() else { return };
        let node = 1 - primary;
        if self.may_lose_its_disk(node) {
            self.cut_power(node);
            self.give_a_new_disk(node);
            self.start_in(node, back_after);
        }
    }

    fn give_a_new_disk(&mut self, node: usize) {
        self.checkers.given_up(node);
        self.nodes[node].impostor = None;
        self.nodes[node].disk = fresh_disk(node, &self.plan, &mut self.draw, false);
        self.extend_disks();
        self.scene.other_disk[node] = Some(Occasion::NewDiskResynced);
    }

    /// The operator gives a new disk to a node whose disk was refused, or waited in vain for it.
    pub fn replace_impostors(&mut self) {
        for node in 0..2 {
            let Some(impostor) = self.nodes[node].impostor else { continue };
            let other_is_down = self.nodes[1 - node].process.is_none();
            let is_over = impostor.refused || self.now - impostor.since > 6_000 * MS;
            if is_over && !other_is_down || self.is_calm() {
                self.cut_power(node);
                self.give_a_new_disk(node);
                self.start_in(node, 10 * MS);
            }
        }
    }

    /// Whether a disk was restored from an older copy and not yet resynced.
    pub fn is_restored(&self, node: usize) -> bool {
        self.scene.other_disk[node] == Some(Occasion::RestoredDiskResynced)
    }

    /// Two nodes of which one has an impostor must refuse each other.
    pub fn check_impostor(&mut self, noting: usize, note: &Note) {
        let Some(node) = (0..2).find(|&node| self.nodes[node].impostor.is_some()) else { return };
        let session = self.nodes[noting].process.as_ref().and_then(|process| process.session);
        let Some(session) = session else { return };
        let life = self.connections[session as usize].lives[node];
        if self.nodes[node].process.as_ref().is_none_or(|process| process.life != life) {
            // What the process before said on the old disk is still on its way.
            return;
        }
        match note {
            Note::PeerRefused { .. } => {
                self.nodes[node].impostor.as_mut().expect("just seen").refused = true;
            }
            Note::PeerJoined { .. } => {
                let text = format!("{} takes part with a foreign disk", self.nodes[node].name);
                self.fail(Kind::Safety, "R12", text);
            }
            _ => {}
        }
    }

    /// A process takes up the disk that is in its machine.
    pub fn attach_disk(&mut self, node: usize, config: Config) -> Result<Replica, AttachError> {
        if std::mem::take(&mut self.nodes[node].rots)
            && let Some(occasion) = self.nodes[node].disk.rot(&mut self.draw)
        {
            tell!(self, "metadata of {} rot: {occasion:?}", self.nodes[node].name);
            self.happened(occasion);
        }
        let now = self.local(node);
        let image = self.nodes[node].disk.image();
        let (region, device_bytes) = match self.nodes[node].other {
            Some(Other::Swapped) => {
                return Replica::attach(config, self.nodes[1 - node].disk.image(), now);
            }
            Some(Other::Shrunk(bytes)) => {
                (moved(image.region, bytes, false), image.device_bytes - bytes)
            }
            Some(Other::Grown(bytes)) => {
                (moved(image.region, bytes, true), image.device_bytes + bytes)
            }
            _ => return Replica::attach(config, image, now),
        };
        let image = Image { region: &region, device_bytes, disk_bytes: device_bytes, ..image };
        Replica::attach(config, image, now)
    }

    /// A process has read its metadata. `None`: it rightly refuses to start.
    pub fn judge_attach(
        &mut self,
        node: usize,
        attached: Result<Replica, AttachError>,
    ) -> Option<Replica> {
        let name = self.nodes[node].name;
        let other = self.nodes[node].other.take();
        match (attached, other) {
            (Ok(replica), None) => return Some(replica),
            (Ok(_), Some(other)) => {
                self.fail(Kind::Safety, "R12", format!("{name} starts on a disk: {other:?}"));
            }
            (Err(error), None) => {
                self.fail(Kind::Safety, "R12", format!("{name} cannot attach: {error}"));
            }
            (Err(error), Some(other)) => {
                tell!(self, "{name} refuses its disk: {error}");
                self.happened(match other {
                    Other::Shrunk(_) => Occasion::ShrunkDiskRefused,
                    Other::Grown(_) => Occasion::GrownDiskRefused,
                    _ => Occasion::SwappedDiskRefused,
                });
                // The operator puts the right one in again.
                let delay = self.draw.below(1_000) * MS;
                self.start_in(node, delay);
            }
        }
        None
    }

    /// A copy is made of the disk of the node that does not serve, to be restored later.
    pub fn copy_disk(&mut self) {
        let Some((primary, _)) = self.device() else { return };
        let node = 1 - primary;
        if self.nodes[node].older_copy.is_some() || self.nodes[node].impostor.is_some() {
            return;
        }
        tell!(self, "a copy is made of the disk of {}", self.nodes[node].name);
        self.nodes[node].older_copy = Some(Box::new(self.nodes[node].disk.copy()));
        let delay = (1_000 + self.draw.below(20_000)) * MS;
        self.after(delay, Event::Restore { node });
    }

    /// The older copy comes back, if that can be found out: it was made before the last time that
    /// the replica became a member. A copy of the present membership, put in after a crash, looks
    /// like the disk itself; nothing on the disk changed since that could tell them apart.
    pub fn restore_disk(&mut self, node: usize) {
        if self.is_calm() {
            return;
        }
        let Some(copy) = &self.nodes[node].older_copy else { return };
        let (old, leader) = (copy.superblock(), self.superblock(1 - node));
        let old = old.expect("a copy has metadata");
        let bases = [old.coming, old.peers[0].base];
        let differs = old.replica != leader.peers[0].replica
            || !bases.contains(&leader.peers[0].base) && !old.syncing;
        if self.serves(1 - node) && differs && self.may_lose_its_disk(node) {
            tell!(self, "an older copy of the disk of {} is restored", self.nodes[node].name);
            self.cut_power(node);
            self.checkers.given_up(node);
            self.nodes[node].disk = *self.nodes[node].older_copy.take().expect("just seen");
            self.extend_disks();
            self.scene.other_disk[node] = Some(Occasion::RestoredDiskResynced);
            self.start_in(node, 10 * MS);
        } else {
            self.after(3_000 * MS, Event::Restore { node });
        }
    }
}

/// What a process reads at the end of a device that is not as large as it was: the driver looks
/// for the metadata where they would have to be now.
fn moved(region: &[u8], bytes: u64, grows: bool) -> Vec<u8> {
    let shift = (bytes as usize).min(region.len());
    let zeroes = vec![0; shift];
    if grows {
        [&region[shift..], &zeroes].concat()
    } else {
        [&zeroes, &region[..region.len() - shift]].concat()
    }
}

impl Disk {
    /// The disk copied to another one while nobody writes to it, or as a snapshot.
    pub fn copy(&self) -> Self {
        let mut copy = self.clone();
        copy.settle(u64::MAX);
        copy.working.clear();
        copy
    }

    /// Some metadata change by themselves: one superblock copy while the other is the same, one
    /// block of the log, or a sector of a bitmap. What rots is found by its checksum.
    ///
    /// The newest block of the log is spared: without it the log looks as after a power cut that
    /// tore the next block, and the extents that only it names are forgotten.
    fn rot(&mut self, draw: &mut history::draw::Draw) -> Option<Occasion> {
        let copies = self.copies();
        let superblock = self.superblock()?;
        let layout = superblock.layout();
        let (part, occasion) = match draw.below(3) {
            0 if copies[0].is_some() && copies[0] == copies[1] => {
                let at = layout.superblocks[draw.below(2) as usize];
                (at..at + 4096, Occasion::SuperblockRot)
            }
            1 => (layout.log.clone(), Occasion::LogRot),
            _ => (layout.bitmaps[0].clone(), Occasion::BitsRot),
        };
        let at = part.start + draw.below(part.end - part.start);
        let before = self.hot_bytes(&superblock);
        let bit = draw.below(8) as u8;
        self.flip_bit(at, bit);
        if self.hot_bytes(&superblock) < before {
            self.flip_bit(at, bit);
            return None;
        }
        Some(occasion)
    }

    fn hot_bytes(&self, superblock: &Superblock) -> u64 {
        let log = superblock.layout().log;
        match replay(self.part(&log), superblock.log_epoch, superblock.log_extents) {
            Replay::Hot(ranges) => ranges.iter().map(|range| range.length).sum(),
            Replay::Unreadable => u64::MAX,
        }
    }
}

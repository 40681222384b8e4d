//! The volume grows, in a share of the seeds (O9 of SCENARIOS.md): the operator orders it while
//! clients are at work, whatever befalls the nodes, until it is done; clients use the new part at
//! once. Everything about it is drawn from sequences of its own: seeds in which nothing grows are
//! what they were before volumes could.

use history::draw::{Draw, mix};
use replicator_core::{Answer, ByteRange, Command, Input, Note, Refusal, Ticket};

use crate::ambush::{Ambush, Strike};
use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::plan::Plan;
use crate::tell;
use crate::world::{Event, MS, World};

/// An order is answered in this time, once nothing stands still.
const PATIENCE: u64 = 60_000 * MS;
/// Places in the new part that clients use: few, so that requests meet.
const PLACES: u64 = 6;

/// How far the growth is.
#[derive(Debug, Default)]
pub struct Growth {
    /// Steps of the plan that are done.
    done: usize,
    asked: Option<Asked>,
    /// For how many of them the disks were extended.
    extended: usize,
    /// Lineage and size of the device as clients saw it last.
    seen: (u64, u64),
    /// An operator accepted the loss of data: the next office may show less.
    loss_accepted: bool,
}

/// An order that is not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    node: usize,
    life: u64,
    ticket: u64,
    since: u64,
}

impl Plan {
    /// Draws whether there is room behind the volume, and when it grows into it.
    pub fn draw_growth(&mut self, draw: &mut Draw) {
        if self.troubles == 0 || !draw.chance(25) {
            return;
        }
        let steps = 1 + draw.below(3);
        let longest = self.troubles * self.gap_ms / 2;
        for _ in 0..steps {
            // Not always whole extents or bitmap pages.
            let bytes = [4096, 1 << 20, (4 << 20) + 4096, 130 << 20][draw.below(4) as usize];
            // Wide volumes take long to compare.
            let bytes = if self.verify_every_ms.is_some() { bytes.min(8 << 20) } else { bytes };
            self.room_bytes += bytes;
            self.growths.push((300 + draw.below(longest), self.room_bytes));
        }
        self.growths.sort_unstable_by_key(|&(_, size)| size);
        self.extends = draw.chance(60);
        self.room_bytes += 4096 * draw.below(2);
    }
}

impl World {
    /// The operator sees to the growth of the volume.
    pub fn growth_turn(&mut self) {
        let Some(&(at_ms, size)) = self.plan.growths.get(self.growth.done) else { return };
        let delay = (20 + self.draw.below(300)) * MS;
        self.after(delay, Event::Growth);
        if let Some(asked) = self.growth.asked {
            return self.wait_for_growth(asked, size);
        }
        let Some((node, _)) = self.device().filter(|_| self.now >= at_ms * MS) else { return };
        self.growth.extended = self.growth.done + 1;
        let ticket = self.next_ticket();
        if !self.parts.orders.has(ticket) {
            self.growth.done += 1;
            return;
        }
        let is_plain = self.cluster.is_none() && self.fencing.is_none();
        if is_plain && !self.is_calm() && self.draw.chance(20) {
            // The office changes hands while the other one is still writing its new size.
            let other = &mut self.nodes[1 - node];
            other.slow_until = self.now + 2_000 * MS;
            other.slowness = [5, 20, 100][self.draw.below(3) as usize];
            let delay = self.draw.below(20) * MS;
            self.after(delay, Event::Strike { strike: Strike::GiveBack { node } });
        } else if !self.is_calm() && self.draw.chance(80) {
            self.ambush = Some(Ambush::at_growth(&mut self.draw));
        }
        let life = self.nodes[node].lives;
        self.growth.asked = Some(Asked { node, life, ticket, since: self.now });
        self.extend_disks();
        let is_all = size == self.plan.room_bytes && !self.plan.extends && self.draw.chance(50);
        let command = Command::Resize((!is_all).then_some(size));
        tell!(self, "operator to {}: {command:?} ({ticket})", self.nodes[node].name);
        self.fact(node, life, Box::new(Input::Ordered { ticket: Ticket(ticket), command }));
    }

    /// Both disks are extended for the growths that are ordered by now; not one that must be
    /// refused.
    pub fn extend_disks(&mut self) {
        let Some(&(_, size)) = self.plan.growths.get(self.growth.extended.wrapping_sub(1)) else {
            return;
        };
        // Each time far enough for the metadata to move.
        let bytes = size + (4 << 20) * (1 + self.growth.extended as u64);
        for node in 0..2 {
            if self.plan.extends && self.nodes[node].impostor.is_none() {
                self.nodes[node].disk.extend_to(bytes);
            }
        }
    }

    fn wait_for_growth(&mut self, asked: Asked, size: u64) {
        if !self.runs(asked.node, asked.life) {
            // Nobody answers. It may be done all the same, and is ordered again.
            self.growth.asked = None;
            self.happened(Occasion::GrowthCutOff);
            return;
        }
        let since = asked.since.max(self.nodes[asked.node].paused_until);
        if self.now.saturating_sub(since) > PATIENCE {
            let text = format!("the growth to {size} is not answered by {}", asked.node);
            self.fail(Kind::Liveness, "(e)", text);
        }
    }

    /// Whether the answer was that to the order to grow.
    pub fn growth_answered(&mut self, ticket: u64, result: &Result<Answer, Box<Refusal>>) -> bool {
        if self.growth.asked.is_none_or(|asked| asked.ticket != ticket) {
            return false;
        }
        tell!(self, "growth {ticket}: {result:?}");
        self.growth.asked = None;
        let mut passing = vec!["not_primary", "busy", "member_missing", "no_disk"];
        if self.plan.extends {
            // A disk that failed, or that was exchanged a moment ago; that it does not stay so says
            // the end, which does not come before all has grown.
            passing.push("no_room");
        }
        match result {
            Ok(_) => self.growth.done += 1,
            // An order whose answer was cut off made it as large as there is room.
            Err(refusal) if refusal.code == "shrinks" => self.growth.done += 1,
            Err(refusal) if passing.contains(&refusal.code) => {}
            Err(refusal) => {
                let text = format!("there is room, and it is refused: {refusal:?}");
                self.fail(Kind::Liveness, "resize", text);
            }
        }
        true
    }

    /// Why the end has not come: the volume is to grow, or has two sizes.
    pub fn why_not_grown(&self) -> Option<&'static str> {
        if self.growth.done < self.plan.growths.len() {
            return Some("the volume is still to grow");
        }
        let sizes = [0, 1].map(|node| self.superblock(node).data_bytes);
        (sizes[0] != sizes[1]).then_some("the replicas differ in size")
    }

    /// An operator promotes a replica that may lack what was acknowledged: also what was grown.
    pub fn accept_loss(&mut self) {
        self.clients.history.data_loss_allowed();
        self.growth.loss_accepted = true;
    }

    /// Clients see a device of this size: never a smaller one than before, unless an operator
    /// accepted the loss of data; and every member has as much.
    pub fn device_has(&mut self, node: usize, size: u64) {
        let process = self.nodes[node].process.as_mut().expect("a process has a device");
        process.size_bytes = size;
        let register = process.replica.superblock().register.clone();
        let (lineage, before) = self.growth.seen;
        if register.basis.lineage < lineage {
            return;
        }
        // What opens a device has at most what clients saw; more is a growth.
        let loss_accepted = size <= before && std::mem::take(&mut self.growth.loss_accepted);
        let name = self.nodes[node].name;
        if size < before && !loss_accepted {
            let text = format!("{name} shows {size} bytes, clients saw {before} before");
            self.fail(Kind::Safety, "resize", text);
        }
        self.growth.seen = (register.basis.lineage, size);
        let (other, theirs) = (1 - node, self.superblock(1 - node));
        let is_itself = self.nodes[other].impostor.is_none() && !self.is_restored(other);
        if is_itself && register.contains(theirs.replica) && theirs.data_bytes < size {
            let text = format!(
                "{name} shows {size} bytes, the member {} has {}",
                self.nodes[other].name, theirs.data_bytes
            );
            self.fail(Kind::Safety, "resize", text);
        }
    }

    /// The device that clients use became larger.
    pub fn device_grew(&mut self, node: usize, size: u64) {
        tell!(self, "the device of {} has {size} bytes", self.nodes[node].name);
        self.device_has(node, size);
        let under_load = self.clients.open.values().any(|open| !open.is_read());
        if under_load {
            self.happened(Occasion::GrewUnderLoad);
        }
        let dirty = self.nodes[node].process.as_ref().is_some_and(|process| {
            let status = process.replica.status(self.local(node));
            ["syncing", "joining"].contains(&status.peers[0].state)
        });
        if dirty {
            self.happened(Occasion::GrewInResync);
        }
    }

    /// A replica grew: by an order, or because its peer had grown before.
    pub fn occasions_of_growth(&mut self, node: usize, note: &Note) {
        if let Note::MetadataMoved { .. } = note {
            self.happened_to(node, Occasion::PrimaryMadeRoom, Occasion::SecondaryMadeRoom);
        }
        let Note::Resized { .. } = note else { return };
        if self.growth.asked.is_some() {
            return;
        }
        let taken_up = self.serves(node);
        self.happened(if taken_up {
            Occasion::FollowersSizeTakenUp
        } else {
            Occasion::FollowerGrewLater
        });
    }

    /// Where a client's request goes when the device has grown: often into the new part, also over
    /// the old end.
    pub fn in_the_new_part(&self, number: u64, range: ByteRange, size: u64) -> ByteRange {
        let old = self.plan.data_bytes;
        let mut draw = Draw::new(mix(self.seed ^ mix(number ^ 0x9203)));
        if size <= old || draw.chance(30) {
            return range;
        }
        let place = (size - old) / PLACES * draw.below(PLACES);
        let around = (draw.below(32) + draw.below(2)) * 512;
        let grain = if range.is_aligned(4096) { 4096 } else { 512 };
        let start =
            ((old + place + around).saturating_sub(8 << 10) & !(grain - 1)).min(size - grain);
        ByteRange::new(start, range.length.min(size - start))
    }

    /// What is read at the end besides the places that clients knew from the beginning.
    pub fn grown_places(&self, size: u64) -> Vec<ByteRange> {
        let (first, step) = (self.plan.data_bytes.saturating_sub(64 << 10), 1 << 20);
        if size <= self.plan.data_bytes {
            return Vec::new();
        }
        (first..size)
            .step_by(step as usize)
            .map(|start| ByteRange::new(start, step.min(size - start)))
            .collect()
    }
}

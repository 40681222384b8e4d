//! Oracle (d), (e): when the troubles stop, both nodes become members, nothing is dirty, every
//! request is answered, and the disks are equal byte for byte; then every block that was ever
//! written is read once more.

use replicator_core::ByteRange;

use crate::clients::Ask;
use crate::failure::Kind;
use crate::sectors::SECTOR_BYTES;
use crate::tell;
use crate::world::{Event, MS, World};

/// Virtual time in which everything must have converged.
const CONVERGES_WITHIN_MS: u64 = 180_000;
/// A request may wait so long for its answer once nothing is in its way.
const LOOK_EVERY_MS: u64 = 200;

impl World {
    /// The checkers look at everything.
    pub fn look(&mut self) {
        let delay = LOOK_EVERY_MS * MS;
        self.after(delay, Event::Look);
        if self.watch_register_that_went_back() {
            return;
        }
        self.check_tracking();
        self.look_at_cluster();
        self.pretend();
        let Some(calm_since) = self.checkers.calm_since else { return };
        let settled = self.why_unsettled();
        match settled {
            None if self.checkers.reading => {
                self.check_equal();
                self.check_nothing_is_rotten();
                self.done = true;
            }
            None => self.read_everything(),
            Some(why) if self.now - calm_since > CONVERGES_WITHIN_MS * MS => {
                let text = self.tell_unsettled(why);
                self.fail(Kind::Liveness, "(d)", text);
            }
            Some(_) => {}
        }
    }

    /// What is missing until all is well. Asked often: the details are for the failure alone.
    fn why_unsettled(&self) -> Option<&'static str> {
        if self.clients.left > 0 || !self.clients.open.is_empty() {
            return Some("requests wait");
        }
        if let Some(why) = self.why_cluster_unsettled() {
            return Some(why);
        }
        if let Some(why) = self.why_rotten() {
            return Some(why);
        }
        if let Some(why) = self.why_not_grown() {
            return Some(why);
        }
        let mut primaries = 0;
        for node in 0..2 {
            let there = &self.nodes[node];
            let Some(process) = &there.process else { return Some("a node is down") };
            let status = process.replica.status(self.local(node));
            let peer = &status.peers[0];
            let is_well = match status.role {
                "primary" => peer.state == "current",
                "secondary" => peer.state == "leads",
                _ => false,
            };
            primaries += usize::from(status.role == "primary");
            let quiet = there.disk.working.is_empty()
                && peer.in_flight.0 == 0
                && process.buffers.used() == 0;
            if !is_well || !peer.is_member || peer.dirty_bytes > 0 || status.data != "up_to_date" {
                return Some("a replica is not in sync");
            }
            if !quiet {
                return Some("a replica is not at rest");
            }
        }
        (primaries != 1).then_some("not one primary")
    }

    fn tell_unsettled(&self, why: &str) -> String {
        let oldest = self.clients.oldest().map(|since| (self.now - since) / MS);
        let nodes = self.nodes.each_ref().map(|there| {
            let process = there.process.as_ref()?;
            let status = process.replica.status(there.clock.shows(self.now));
            Some((there.name, process.buffers.used(), status))
        });
        format!(
            "{why}: {} requests are not made, {} not answered (oldest {oldest:?} ms); name, \
             buffers used, status: {nodes:?}",
            self.clients.left,
            self.clients.open.len()
        )
    }

    fn read_everything(&mut self) {
        tell!(self, "all is quiet: reading everything");
        self.checkers.reading = true;
        self.check_equal();
        let (node, tenure) = self.device().expect("a primary serves");
        let mut places = self.plan.spots.clone();
        places.sort_unstable();
        places.dedup();
        let size = self.nodes[node].process.as_ref().map_or(0, |process| process.size_bytes);
        let known = places.iter().map(|&spot| {
            let end = (spot + 128 * SECTOR_BYTES).min(self.plan.data_bytes);
            ByteRange::new(spot, end - spot)
        });
        for range in known.chain(self.grown_places(size)).collect::<Vec<_>>() {
            if self.failure.is_none() {
                self.request(None, node, tenure, Ask::Read(range));
            }
        }
    }

    fn check_equal(&mut self) {
        let mut differ = self.nodes[0].disk.live.differences(&self.nodes[1].disk.live);
        let end = self.superblock(0).data_bytes / SECTOR_BYTES;
        differ.retain(|&sector| sector < end);
        if let Some(&sector) = differ.first() {
            let values = [0, 1].map(|node| self.nodes[node].disk.live.get(sector));
            let text = format!(
                "the replicas are members and differ in {} sectors, first {sector}: {values:?}",
                differ.len()
            );
            self.fail(Kind::Safety, "R10", text);
        }
    }
}

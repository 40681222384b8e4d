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
        self.check_tracking();
        self.pretend();
        let Some(calm_since) = self.checkers.calm_since else { return };
        let settled = self.why_unsettled();
        match settled {
            None if self.checkers.reading => {
                self.check_equal();
                self.done = true;
            }
            None => self.read_everything(),
            Some(why) if self.now - calm_since > CONVERGES_WITHIN_MS * MS => {
                self.fail(Kind::Liveness, "(d)", why);
            }
            Some(_) => {}
        }
    }

    /// What is missing until all is well.
    fn why_unsettled(&self) -> Option<String> {
        if self.clients.left > 0 || !self.clients.open.is_empty() {
            let oldest = self.clients.oldest().map(|since| (self.now - since) / MS);
            let status = [0, 1].map(|node| {
                let process = self.nodes[node].process.as_ref();
                process.map(|process| process.replica.status(self.local(node)))
            });
            return Some(format!(
                "{} requests are not made, {} not answered (oldest {oldest:?} ms): {status:?}",
                self.clients.left,
                self.clients.open.len()
            ));
        }
        let mut primaries = 0;
        for node in 0..2 {
            let there = &self.nodes[node];
            let Some(process) = &there.process else {
                return Some(format!("{} is down", there.name));
            };
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
            if !is_well
                || !peer.is_member
                || peer.dirty_bytes > 0
                || status.data != "up_to_date"
                || !quiet
            {
                return Some(format!(
                    "{}: {} buffers used, {status:?}",
                    there.name,
                    process.buffers.used()
                ));
            }
        }
        (primaries != 1).then(|| format!("{primaries} primaries"))
    }

    fn read_everything(&mut self) {
        tell!(self, "all is quiet: reading everything");
        self.checkers.reading = true;
        self.check_equal();
        let (node, tenure) = self.device().expect("a primary serves");
        let mut places = self.plan.spots.clone();
        places.sort_unstable();
        places.dedup();
        for spot in places {
            let end = (spot + 128 * SECTOR_BYTES).min(self.plan.data_bytes);
            if self.failure.is_none() {
                let range = ByteRange::new(spot, end - spot);
                self.request(None, node, tenure, Ask::Read(range));
            }
        }
    }

    fn check_equal(&mut self) {
        let differ = self.nodes[0].disk.live.differences(&self.nodes[1].disk.live);
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

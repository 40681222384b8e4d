//! What a resource tells about itself, as plain values for `replctl`.

use replicator_core::block::ReplicaId;
use replicator_core::status::{Party, Wait};
use replicator_core::{PeerStatus, Span, Status};

use super::in_cluster::DISK_HANGS_AFTER;
use super::{Phase, Resource};
use crate::data_loop::{ClientStatus, Counters, LoopStatus};
use crate::report::{
    ClientReport, CountersReport, PeerReport, ReplicaReport, ResourceReport, WaitReport,
};
use crate::report::{Repair, VerifyReport};
use crate::verdict;

/// Events that a status carries.
const EVENTS_SHOWN: usize = 5;

impl Resource {
    /// Everything there is to tell. Takes two seconds when the loop hangs.
    pub fn report(&self) -> ResourceReport {
        let status = self.loop_status();
        let (disk, metadata) = self.disk_paths();
        let (state, why, state_ms, shape) = {
            let state = self.lock();
            let (word, why) = match &state.phase {
                Phase::Down => ("down", String::new()),
                Phase::Starting(what) => ("starting", what.clone()),
                Phase::Up if status.is_none() => {
                    ("up", "the data loop does not answer; its disk may hang".to_owned())
                }
                Phase::Up => ("up", String::new()),
                Phase::Stopping => ("stopping", String::new()),
                Phase::Failed(why) => ("failed", why.clone()),
            };
            let state_ms = state.phase_since.elapsed().as_millis() as u64;
            (word.to_owned(), why, state_ms, state.run.as_ref().map(|run| run.shape.clone()))
        };
        let start_waits = (state == "starting" && !why.is_empty()).then(|| WaitReport {
            party: "lock".to_owned(),
            what: why.trim_start_matches("waiting for ").to_owned(),
            since_ms: state_ms,
            limit_ms: None,
            then: "it goes on by itself when that lets the disk go (R2e)".into(),
        });
        let mut report = ResourceReport {
            name: self.name().to_owned(),
            state,
            why,
            state_ms,
            start_waits,
            metadata: metadata.unwrap_or_else(|| disk.clone()).display().to_string(),
            disk: disk.display().to_string(),
            device: self.device.report(),
            services: self.services_report(),
            verifies: self.verifies.reports(),
            events: self.events.latest(self.name(), EVENTS_SHOWN),
            ..ResourceReport::default()
        };
        if let Some(status) = &status {
            let block_bytes = shape.map_or(0, |shape| shape.block_bytes);
            self.add_status(&mut report, status, block_bytes);
        }
        report.verdict = verdict::of(&report, &self.node.name);
        let fence = self.node.fence.as_ref().filter(|_| self.cluster.fences_lost_primaries());
        if let (Some(fence), [peer]) = (fence, &self.peers[..]) {
            verdict::mention_fencing(&mut report, &self.node.name, peer, &fence.label());
        }
        report
    }

    fn add_status(&self, report: &mut ResourceReport, status: &LoopStatus, block_bytes: u32) {
        let mut replica = self.replica_report(&status.core, block_bytes);
        replica.added_bytes = status.added_bytes;
        report.replica = Some(replica);
        report.clients = status.clients.iter().map(client_report).collect();
        report.disk_operations = status.disk_operations;
        report.counters = counters_report(&status.counters);
        report.warnings.clone_from(&status.warnings);
        for verify in &status.core.verifies {
            if let Some(running) = report.verifies.iter_mut().find(|it| it.copy == verify.copy) {
                running.found(&verify.findings);
            }
        }
        let no_room = self.lock().growth.no_room.clone();
        report.warnings.extend(no_room.map(|why| format!("no room is made: {why}")));
        report.warnings.extend(report.verifies.iter().filter_map(|it| self.verify_warning(it)));
        let text = "this resource runs on a backing that is for tests only".to_owned();
        if self.config.test_backing != crate::config::TestBackingWish::Normal {
            report.warnings.push(text);
        }
        if let Some(device) = &report.device
            && device.state == "failed"
        {
            report.warnings.push(format!("no block device: {}", device.why));
        }
    }

    fn verify_warning(&self, found: &VerifyReport) -> Option<String> {
        let is_settled = found.state == "running" || found.repair == Repair::Running;
        if is_settled || !found.is_bad() {
            return None;
        }
        let VerifyReport { copy, with, differing_blocks, .. } = found;
        let mut text = format!("the verify of {copy} found ");
        if *differing_blocks > 0 {
            text += &format!("{differing_blocks} blocks that differ from those of {with}");
        } else {
            text += "places that cannot be read";
        }
        Some(text + &format!("; replctl verify {} --repair copies them again", self.name()))
    }

    pub(super) fn replica_report(&self, core: &Status, block_bytes: u32) -> ReplicaReport {
        let register = &core.register;
        let name_of = |replica: ReplicaId| self.node_of(replica, core.replica);
        let mut in_sync = Vec::new();
        if register.contains(ReplicaId(core.replica)) {
            in_sync.push(self.node.name.clone());
        }
        in_sync.extend(core.peers.iter().filter(|peer| peer.is_member).map(|it| it.node.clone()));
        in_sync.sort();
        ReplicaReport {
            role: core.role.to_owned(),
            data: core.data.to_owned(),
            id: format!("{:032x}", core.replica),
            size_bytes: core.size_bytes,
            room_bytes: core.room_bytes,
            making_room_to: core.making_room_to,
            resizing_to: core.resizing_to,
            added_bytes: 0,
            block_bytes,
            generation: register.generation,
            tenure: register.tenure,
            primary: register.primary.map(name_of).unwrap_or_default(),
            authority: register.authority.map(name_of).unwrap_or_default(),
            in_sync,
            released_clean: register.released_clean,
            requests: core.requests,
            waits: core.waits.iter().map(|wait| self.wait_report(wait, core.role)).collect(),
            log_extents: core.log_extents,
            peers: core.peers.iter().map(|peer| self.peer_report(peer)).collect(),
        }
    }

    /// A wait; that for a hanging disk ends where the lease is let go for it (L1), which the core
    /// does not know.
    fn wait_report(&self, wait: &Wait, role: &str) -> WaitReport {
        let mut report = WaitReport {
            party: wait.party.name().to_owned(),
            what: wait.what.clone(),
            since_ms: wait.since.as_ms(),
            limit_ms: wait.left.map(|left| Span(wait.since.0 + left.0).as_ms()),
            then: wait.then.replace("RESOURCE", self.name()),
        };
        let is_on_disk = matches!(wait.party, Party::Disk | Party::Log) && wait.left.is_none();
        if is_on_disk && role == "primary" && self.is_in_cluster() {
            let busy_for = self.lock().run.as_ref().and_then(|run| run.handle.disk_busy_for());
            if let Some(busy_for) = busy_for {
                let left_ms = DISK_HANGS_AFTER.as_ms().saturating_sub(busy_for.as_ms());
                report.limit_ms = Some(report.since_ms + left_ms);
                report.then = "the lease is let go, so that another member takes over".into();
            }
        }
        report
    }

    /// The node behind a replica id. With two data nodes whatever is not here is there; with more
    /// the register of the cluster knows.
    fn node_of(&self, replica: ReplicaId, own: u128) -> String {
        match &self.peers[..] {
            _ if replica.0 == own => self.node.name.clone(),
            [peer] => peer.clone(),
            _ => {
                let node = self.cluster_handle.get().and_then(|cluster| cluster.look());
                let entry = node.as_ref().and_then(|it| it.state()?.resource(self.name()));
                let home = entry.and_then(|entry| entry.node_of(replica));
                home.map_or_else(|| format!("{:032x}", replica.0), |home| home.0.clone())
            }
        }
    }

    fn peer_report(&self, peer: &PeerStatus) -> PeerReport {
        let index = self.peer_index(&peer.node);
        let state = self.lock();
        let link = index.and_then(|index| state.links.get(usize::from(index.0)));
        // The core knows why it refused a peer, the link why nobody could be reached.
        let why = match link {
            Some(link) if peer.why.is_empty() => link.why().to_owned(),
            _ => peer.why.clone(),
        };
        let dials = self.node.name < peer.node;
        PeerReport {
            node: peer.node.clone(),
            state: peer.state.to_owned(),
            why,
            drops: peer.drops,
            role: peer.role.to_owned(),
            is_member: peer.is_member,
            dirty_bytes: peer.dirty_bytes,
            diverged_blocks: peer.diverged_blocks,
            size_bytes: peer.size_and_room_bytes.0,
            room_bytes: peer.size_and_room_bytes.1,
            resync_total_bytes: peer.resync_bytes.0,
            resync_left_bytes: peer.resync_bytes.1,
            sent_bytes: peer.sent_bytes,
            received_bytes: peer.received_bytes,
            in_flight: peer.in_flight,
            in_flight_resync_bytes: peer.in_flight_resync_bytes,
            dialled_by: if dials { "this node".to_owned() } else { peer.node.clone() },
        }
    }

    /// The primary, as far as this replica knows from a peer or its register.
    pub fn known_primary(&self) -> Option<String> {
        let status = self.loop_status()?;
        let serving = status.core.peers.iter().find(|peer| peer.role == "primary");
        match (serving, status.core.register.primary) {
            (Some(peer), _) => Some(peer.node.clone()),
            (None, Some(primary)) if primary.0 != status.core.replica => {
                Some(self.node_of(primary, status.core.replica))
            }
            _ => None,
        }
    }
}

fn client_report(client: &ClientStatus) -> ClientReport {
    ClientReport {
        origin: client.origin.clone(),
        requests: client.requests,
        not_reading_for_ms: client.not_reading_for.as_ms(),
        held_back_by: client.held_back_by.to_owned(),
    }
}

fn counters_report(counters: &Counters) -> CountersReport {
    CountersReport {
        reads: counters.reads,
        writes: counters.writes,
        flushes: counters.flushes,
        zeroes: counters.zeroes,
        read_bytes: counters.read_bytes,
        written_bytes: counters.written_bytes,
        errors: counters.errors,
        log_writes: counters.log_writes,
        bitmap_writes: counters.bitmap_writes,
        disk_errors: counters.disk_errors,
    }
}

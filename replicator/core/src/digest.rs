//! A digest of all that decides what a replica does next, for a search that must know whether it
//! has seen a state before.

use core::hash::{Hash, Hasher};

use crate::replica::Replica;

impl Replica {
    /// Feeds the state to a hasher. Two replicas with the same digest and the same operations in
    /// flight behave alike; the names of these operations (`OpId`) are left out, since the driver
    /// chose nothing by them.
    pub fn digest(&self, state: &mut impl Hasher) {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self {
            config: _,
            now,
            started_at,
            started_from,
            role,
            register,
            change,
            change_number,
            majority,
            superblock,
            superblock_writer,
            pages,
            layout: _,
            peers,
            ops: _,
            disk_failed,
            metadata_failed,
            requests,
            queue,
            held,
            waiting_flushes,
            client_barrier,
            active,
            log,
            log_keeper,
            mirror,
            gate,
            barriers,
            next_barrier,
            resync_may_go_on,
            office_since,
            lost_in_office,
            demotion_ticket,
            releasing,
            deposing,
            awaits_fence,
            following,
            applied,
            applied_order,
            applied_waiting,
            arrivals,
            takes_fenced,
            early,
            stopping,
            stop_flushing,
            recovery_due,
            recovered_extents,
            sizes,
            room,
        } = self;
        (now, started_at, started_from, role, register, change, change_number).hash(state);
        majority.hash(state);
        (superblock, superblock_writer, pages, peers, disk_failed, metadata_failed).hash(state);
        (queue, held, waiting_flushes, client_barrier, active, log, log_keeper).hash(state);
        (gate, barriers, next_barrier, resync_may_go_on, office_since).hash(state);
        (lost_in_office, demotion_ticket, releasing, deposing, following).hash(state);
        (awaits_fence, takes_fenced).hash(state);
        (applied_order, applied_waiting, arrivals, early, stopping, stop_flushing).hash(state);
        (recovery_due, recovered_extents, mirror, sizes, room).hash(state);
        requests.iter().for_each(|entry| entry.hash(state));
        applied.iter().for_each(|entry| entry.hash(state));
    }
}

//! Flushes: one at a time on the own disk, shared by everybody who waits (group commit), and
//! barriers, which are one flush on every replica that counts (R7).

use alloc::vec::Vec;

use crate::block::{PeerIndex, ReplicaId};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::input::DiskFailure;
use crate::peer::{FlushPurpose, Link, Sent};
use crate::replica::{Purpose, Replica};
use crate::wire::Message;

/// Who waits for a flush of the own disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum FlushWaiter {
    /// A barrier.
    Barrier(u64),
    /// A client's write with FUA.
    Request(usize),
    /// A leader's write with FUA, or its flush.
    Applied(usize),
    /// Before the set shrinks (R3).
    Shrink,
    /// Before a take-over (R2c).
    Promotion,
    /// Before the log of a deposed primary is emptied.
    Deposed,
    /// More room is zeroed, up to this end.
    Room(u64),
    /// Before the replica stops.
    Stop,
}

/// The own disk's flushes.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct FlushGate {
    running: Vec<FlushWaiter>,
    next: Vec<FlushWaiter>,
    busy: bool,
}

/// One flush on every replica that counts.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Barrier {
    number: u64,
    local: bool,
    /// Peers whose acknowledgement is missing, a bit each.
    awaits: u8,
    requests: Vec<usize>,
    for_clients: bool,
    evicts: bool,
    releases: bool,
    /// Who has flushed, where followers are to be told.
    flushed: Vec<ReplicaId>,
}

impl Barrier {
    fn is_done(&self) -> bool {
        !self.local && self.awaits == 0
    }
}

impl Replica {
    /// Flushes the own disk for somebody. Covers every write that is done by now.
    pub(crate) fn flush_disk(&mut self, waiter: FlushWaiter, effects: &mut Effects) {
        if matches!(waiter, FlushWaiter::Shrink | FlushWaiter::Promotion) {
            // There is one at a time: an earlier one was given up while its flush hung, and that
            // flush does not cover what was written since (R2c, R3).
            self.gate.running.retain(|other| *other != waiter);
            self.gate.next.retain(|other| *other != waiter);
        }
        if self.gate.busy {
            self.gate.next.push(waiter);
        } else {
            self.gate.running.push(waiter);
            self.start_flush(effects);
        }
    }

    fn start_flush(&mut self, effects: &mut Effects) {
        self.gate.busy = true;
        effects.push(Effect::FlushDisk { op: self.ops.begin(Purpose::Flush) });
    }

    /// A flush of the own disk ended.
    pub(crate) fn flush_ended(&mut self, result: Result<(), DiskFailure>, effects: &mut Effects) {
        self.gate.busy = false;
        let mut waiters = core::mem::take(&mut self.gate.running);
        core::mem::swap(&mut self.gate.running, &mut self.gate.next);
        if !self.gate.running.is_empty() {
            self.start_flush(effects);
        }
        for waiter in waiters.drain(..) {
            self.flush_over(waiter, result, effects);
        }
        if self.gate.running.is_empty() && self.gate.running.capacity() == 0 {
            self.gate.running = waiters;
        }
    }

    fn flush_over(
        &mut self,
        waiter: FlushWaiter,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        match waiter {
            FlushWaiter::Barrier(number) => self.barrier_local(number, result, effects),
            FlushWaiter::Request(request) => self.request_flushed(request, result, effects),
            FlushWaiter::Applied(applied) => self.applied_flushed(applied, result, effects),
            FlushWaiter::Shrink => self.shrink_flushed(result, effects),
            FlushWaiter::Promotion => self.promotion_flushed(result, effects),
            FlushWaiter::Deposed => self.deposed_flushed(effects),
            FlushWaiter::Room(end) => self.room_flushed(end, result, effects),
            FlushWaiter::Stop => self.stop_flushed(result, effects),
        }
    }

    /// Of the barrier that a client's flush is a part of: whether it waits for the own disk, and
    /// the first peer that it waits for. None while it waits for the next barrier.
    pub(crate) fn barrier_waits(&self, request: usize) -> Option<(bool, Option<usize>)> {
        let barrier = self.barriers.iter().find(|barrier| barrier.requests.contains(&request))?;
        let peer = (barrier.awaits != 0).then(|| barrier.awaits.trailing_zeros() as usize);
        Some((barrier.local, peer))
    }

    /// Starts a barrier over the own disk and every peer that gets writes. Client flushes that
    /// come while one runs share the next.
    pub(crate) fn start_barrier(&mut self, purpose: BarrierPurpose, effects: &mut Effects) {
        let number = self.next_barrier;
        self.next_barrier += 1;
        let mut barrier = Barrier {
            number,
            local: true,
            awaits: 0,
            requests: Vec::new(),
            for_clients: false,
            evicts: false,
            releases: false,
            flushed: Vec::new(),
        };
        match purpose {
            BarrierPurpose::Requests(requests) => {
                (barrier.for_clients, barrier.requests) = (true, requests);
            }
            BarrierPurpose::Evict => barrier.evicts = true,
            BarrierPurpose::Release => barrier.releases = true,
            BarrierPurpose::BoundVolatile => {}
        }
        let everyone = !barrier.for_clients;
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            if defect(Defect::FlushOfOneSide) && barrier.for_clients {
                continue;
            }
            if peer.is_required() || everyone && peer.holds_frames() {
                barrier.awaits |= 1 << at;
                self.send_flush(PeerIndex(at as u8), FlushPurpose::Barrier(number), effects);
            }
        }
        self.barriers.push(barrier);
        self.flush_disk(FlushWaiter::Barrier(number), effects);
    }

    /// Sends a flush to a follower.
    pub(crate) fn send_flush(
        &mut self,
        peer: PeerIndex,
        purpose: FlushPurpose,
        effects: &mut Effects,
    ) {
        let now = self.now;
        let tenure = self.register.tenure;
        let to = &mut self.peers[usize::from(peer.0)];
        debug_assert!(matches!(to.link, Link::Leading(_)));
        let mark = to.volatile_mark();
        let seq = to.record_sent(now, Sent::Flush { purpose, mark });
        self.send(peer, Message::Flush { tenure, seq }, None, effects);
    }

    fn barrier_local(
        &mut self,
        number: u64,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        let Some(at) = self.barriers.iter().position(|barrier| barrier.number == number) else {
            return;
        };
        self.barriers[at].local = false;
        if let Err(why) = result {
            // A failed flush is never retried (R16): what it covered may be gone.
            let requests = core::mem::take(&mut self.barriers[at].requests);
            for request in requests {
                self.fail_request(request, why, effects);
            }
            if core::mem::take(&mut self.barriers[at].evicts) {
                self.eviction_failed(effects);
            }
            // No release follows (R6c): the office ends without one.
            self.barriers[at].releases &= defect(Defect::ReleaseAfterFailedFlush);
        }
        self.check_barrier(at, effects);
    }

    /// A peer has flushed for a barrier.
    pub(crate) fn barrier_flushed(&mut self, number: u64, peer: PeerIndex, effects: &mut Effects) {
        let replica = self.peers[usize::from(peer.0)].replica();
        let tells = self.keeps_mirror();
        if let Some(barrier) = self.barriers.iter_mut().find(|barrier| barrier.number == number)
            && barrier.evicts
            && tells
        {
            barrier.flushed.push(replica);
        }
        self.barrier_peer(number, peer, effects);
    }

    /// A peer has flushed for a barrier, or is gone.
    pub(crate) fn barrier_peer(&mut self, number: u64, peer: PeerIndex, effects: &mut Effects) {
        let Some(at) = self.barriers.iter().position(|barrier| barrier.number == number) else {
            return;
        };
        self.barriers[at].awaits &= !(1 << peer.0);
        self.check_barrier(at, effects);
    }

    fn check_barrier(&mut self, at: usize, effects: &mut Effects) {
        if !self.barriers[at].is_done() {
            return;
        }
        let barrier = self.barriers.swap_remove(at);
        for &request in &barrier.requests {
            self.request_durable(request, effects);
        }
        if barrier.for_clients {
            self.client_barrier = false;
            self.start_client_barrier(effects);
        }
        if barrier.evicts {
            self.evict_flushed(barrier.flushed, effects);
        }
        if barrier.releases {
            self.release_flushed(effects);
        }
    }

    /// Starts a barrier for the client flushes that came meanwhile.
    pub(crate) fn start_client_barrier(&mut self, effects: &mut Effects) {
        if !self.client_barrier && !self.waiting_flushes.is_empty() {
            self.client_barrier = true;
            let requests = core::mem::take(&mut self.waiting_flushes);
            self.start_barrier(BarrierPurpose::Requests(requests), effects);
        }
    }
}

/// Why a barrier is started.
#[derive(Debug)]
pub(crate) enum BarrierPurpose {
    /// For these client requests.
    Requests(Vec<usize>),
    /// Before extents leave the activity log (R9).
    Evict,
    /// Before a release of the office (R6c).
    Release,
    /// To bound what peers may lose with their power (R8).
    BoundVolatile,
}

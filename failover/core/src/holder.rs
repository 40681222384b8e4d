//! The holder's side of the lease: until when this node may act as primary of each resource.
//!
//! A grant counts from the moment its request was *sent*; the lease from the oldest of the grants
//! that make a majority (L3, "t").

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Time;

use crate::acceptor::holder_term;
use crate::cluster::{ClusterState, Voter};
use crate::defect::{Defect, defect};

/// Requests whose grants still count; older ones are over anyway.
const REQUESTS_MAX: usize = 32;

/// Grants that this process collected.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct LeaseHolder {
    next_request: u64,
    requests: VecDeque<(u64, Time)>,
    /// When the newest granted request was sent, by resource and acceptor.
    granted: BTreeMap<(String, u128), Time>,
}

impl LeaseHolder {
    /// Notes that a request leaves now; its number.
    pub fn ask(&mut self, now: Time) -> u64 {
        self.next_request += 1;
        self.requests.push_back((self.next_request, now));
        if self.requests.len() > REQUESTS_MAX {
            self.requests.pop_front();
        }
        self.next_request
    }

    /// An acceptor granted a request for these resources.
    pub fn granted(&mut self, acceptor: u128, request: u64, resources: &[String], now: Time) {
        let Some(&(_, sent)) = self.requests.iter().find(|(number, _)| *number == request) else {
            return;
        };
        let counts_from = if defect(Defect::LeaseFromReply) { now } else { sent };
        for resource in resources {
            self.note(resource, acceptor, counts_from);
        }
    }

    /// An acceptor accepted the takeover that was sent then: the first grant (L3).
    pub fn note(&mut self, resource: &str, acceptor: u128, sent: Time) {
        let newest = self.granted.entry((resource.into(), acceptor)).or_default();
        *newest = sent.max(*newest);
    }

    /// Forgets a resource: the office is over.
    pub fn forget(&mut self, resource: &str) {
        self.granted.retain(|(held, _), _| held != resource);
    }

    /// Until when this node may act as primary of the resource; `None`: no longer.
    pub fn until(&self, state: &ClusterState, resource: &str) -> Option<Time> {
        let of = |voters: &[Voter]| self.majority_since(voters, resource);
        let since = match &state.next_voters {
            Some(next) => of(&state.voters)?.min(of(next)?),
            None => of(&state.voters)?,
        };
        Some(since + holder_term(state.lease))
    }

    fn majority_since(&self, voters: &[Voter], resource: &str) -> Option<Time> {
        let sent_to = |voter: &Voter| self.granted.get(&(resource.into(), voter.acceptor)).copied();
        let mut sent: Vec<Time> = voters.iter().filter_map(sent_to).collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        if defect(Defect::LeaseFromNewest) && sent.len() > voters.len() / 2 {
            return sent.first().copied();
        }
        sent.get(voters.len() / 2).copied()
    }
}

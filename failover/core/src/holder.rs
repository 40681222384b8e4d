//! The holder's side of the lease: until when this node may act as primary of each resource.
//!
//! A grant counts from the moment its request was *sent*, for the lease that the acceptor goes by;
//! the lease lasts as long as the shortest of the grants that make a majority (L3, "t").

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::acceptor::holder_term;
use crate::cluster::{ClusterState, Holder, Voter};
use crate::defect::{Defect, defect};
use crate::proposer::Offices;

/// Requests whose grants still count; older ones are over anyway.
const REQUESTS_MAX: usize = 32;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Request {
    number: u64,
    sent: Time,
    /// The offices it asked for, with their tenures.
    offices: Vec<(String, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Grant {
    tenure: u64,
    sent: Time,
    lease: Span,
}

impl Grant {
    pub fn until(&self) -> Time {
        self.sent + holder_term(self.lease)
    }
}

/// An answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Granted<'a> {
    /// The acceptor that gave it.
    pub acceptor: u128,
    /// The process that asked.
    pub process: u64,
    /// The number of the request.
    pub request: u64,
    /// The lease that the acceptor goes by.
    pub lease: Span,
    /// The resources it is granted for.
    pub resources: &'a [String],
}

/// Grants that this process collected.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LeaseHolder {
    process: u64,
    next_request: u64,
    requests: VecDeque<Request>,
    /// The best grant, by resource and acceptor.
    granted: BTreeMap<(String, u128), Grant>,
}

impl LeaseHolder {
    /// Nothing is granted to this process yet.
    pub fn new(process: u64) -> Self {
        Self { process, next_request: 0, requests: VecDeque::new(), granted: BTreeMap::new() }
    }

    /// Notes that a request for these offices leaves now; its number.
    pub fn ask(&mut self, now: Time, offices: &[(String, u64)]) -> u64 {
        self.next_request += 1;
        let number = self.next_request;
        self.requests.push_back(Request { number, sent: now, offices: offices.to_vec() });
        if self.requests.len() > REQUESTS_MAX {
            self.requests.pop_front();
        }
        number
    }

    /// An acceptor answered a request. An answer to a former process, or for a former tenure,
    /// may come late: it means nothing.
    pub fn granted(&mut self, now: Time, granted: &Granted<'_>) {
        if granted.process != self.process && !defect(Defect::FormerGrantCounts) {
            return;
        }
        let mut requests = self.requests.iter();
        let Some(request) = requests.find(|request| request.number == granted.request) else {
            return;
        };
        let sent = if defect(Defect::LeaseFromReply) { now } else { request.sent };
        let is_granted = |office: &&(String, u64)| granted.resources.contains(&office.0);
        let offices: Vec<_> = request.offices.iter().filter(is_granted).cloned().collect();
        for (resource, tenure) in offices {
            self.note(resource, granted.acceptor, Grant { tenure, sent, lease: granted.lease });
        }
    }

    /// Acceptors accepted a state of this process: a grant, and the first one of an office that it
    /// takes (L3).
    pub fn accepted(&mut self, granted: &Offices) {
        let (sent, lease) = (granted.sent, granted.lease);
        for (resource, tenure) in &granted.offices {
            for acceptor in &granted.by {
                self.note(resource.clone(), *acceptor, Grant { tenure: *tenure, sent, lease });
            }
        }
    }

    fn note(&mut self, resource: String, acceptor: u128, new: Grant) {
        let best = self.granted.entry((resource, acceptor)).or_insert(new);
        if (new.tenure, new.until()) > (best.tenure, best.until()) {
            *best = new;
        }
    }

    /// Forgets a resource: the office is over.
    pub fn forget(&mut self, resource: &str) {
        self.granted.retain(|(held, _), _| held != resource);
    }

    /// Until when this node may act as primary of the resource, whose holder it is; `None`: no
    /// longer.
    pub fn until(&self, state: &ClusterState, resource: &str) -> Option<Time> {
        let tenure = state.resource(resource)?.state.tenure;
        let of = |voters: &[Voter]| self.majority_until(state, voters, (resource, tenure));
        match &state.next_voters {
            Some(next) => Some(of(&state.voters)?.min(of(next)?)),
            None => of(&state.voters),
        }
    }

    fn majority_until(
        &self,
        state: &ClusterState,
        voters: &[Voter],
        (resource, tenure): (&str, u64),
    ) -> Option<Time> {
        let of = |voter: &Voter| {
            let grant = self.granted.get(&(resource.into(), voter.acceptor))?;
            let lease = if defect(Defect::GrantWithoutTerm) { state.lease } else { grant.lease };
            (grant.tenure == tenure).then(|| Grant { lease, ..*grant }.until())
        };
        let mut until: Vec<Time> = voters.iter().filter_map(of).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        if defect(Defect::LeaseFromNewest) && until.len() > voters.len() / 2 {
            return until.first().copied();
        }
        until.get(voters.len() / 2).copied()
    }
}

/// Until when a process may act as primary of a resource, by the newest state it knows, by what it
/// proposed with an outcome that is open, and by its lease; `None`: not at all.
pub fn office_until(
    state: &ClusterState,
    open: Option<&ClusterState>,
    (me, resource): (&Holder, &str),
    lease: Option<Time>,
) -> Option<Time> {
    let entry = state.resource(resource)?;
    if entry.holder.as_ref() != Some(me) {
        return None;
    }
    // It ends with the holder's own next proposal, whose outcome may be a commit (R5d).
    let is_changing = open
        .is_some_and(|open| open.resource(resource).is_none_or(|open| open.state != entry.state));
    if entry.state.sole && (!is_changing || defect(Defect::SoleKeptWhileChanging)) {
        return Some(Time(u64::MAX));
    }
    lease
}

//! The lease key of this node: until when it may act as primary of each resource. A renewal counts
//! from the moment it was *sent*, and only once etcd said that it was done.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::store::{Ask, Kept, Key, LeaseKey, Transaction, Value};
use super::{EtcdRegister, Purpose, RENEWALS_MAX};
use crate::acceptor::holder_term;
use crate::defect::{Defect, defect};
use crate::node::{Effects, Node};

/// Offices, each with its tenure.
pub(super) type Offices = Vec<(String, u64)>;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Renewal {
    sent: Time,
    duration: Span,
    offices: Offices,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Grant {
    tenure: u64,
    until: Time,
}

/// What this process holds in etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holding {
    process: u64,
    counter: u64,
    /// The last renewal of each office that was sent, whether or not it was done.
    kept: BTreeMap<String, Kept>,
    /// Renewals without an answer, by the number of the question.
    renewals: BTreeMap<u64, Renewal>,
    granted: BTreeMap<String, Grant>,
}

impl Holding {
    pub(super) fn new(process: u64) -> Self {
        Self {
            process,
            counter: 0,
            kept: BTreeMap::new(),
            renewals: BTreeMap::new(),
            granted: BTreeMap::new(),
        }
    }

    /// The next lease key: it renews `covered`, and leaves what else is in `held` as it was.
    pub(super) fn next_key(
        &mut self,
        held: &[(String, u64)],
        covered: &[(String, u64)],
        duration: Span,
    ) -> LeaseKey {
        self.counter += 1;
        let counter = self.counter;
        for (resource, tenure) in covered {
            let (name, tenure) = (resource.clone(), *tenure);
            let kept = Kept { resource: name.clone(), tenure, counter, duration };
            self.kept.insert(name, kept);
        }
        self.kept.retain(|name, kept| {
            held.iter().any(|(held, tenure)| held == name && *tenure == kept.tenure)
        });
        LeaseKey { process: self.process, counter, offices: self.kept.values().cloned().collect() }
    }

    /// That key was sent, with the question of that number.
    fn sent(&mut self, number: u64, sent: Time, duration: Span, offices: Offices) {
        self.renewals.insert(number, Renewal { sent, duration, offices });
        while self.renewals.len() > 2 * RENEWALS_MAX {
            // Those are over anyway.
            self.renewals.pop_first();
        }
    }

    /// The renewal with that number was done.
    pub(super) fn done(&mut self, now: Time, number: u64) {
        if let Some(renewal) = self.renewals.remove(&number) {
            let sent = if defect(Defect::LeaseFromReply) { now } else { renewal.sent };
            self.granted(sent, renewal.duration, &renewal.offices);
        }
    }

    /// A key that renews these offices was sent then, and is in etcd.
    pub(super) fn granted(&mut self, sent: Time, duration: Span, offices: &[(String, u64)]) {
        let until = sent + holder_term(duration);
        for (resource, tenure) in offices {
            let new = Grant { tenure: *tenure, until };
            let best = self.granted.entry(resource.clone()).or_insert(new);
            if (new.tenure, new.until) > (best.tenure, best.until) {
                *best = new;
            }
        }
    }

    /// Until when this process may act as primary in that tenure.
    pub(super) fn until(&self, tenure: u64, resource: &str) -> Option<Time> {
        let grant = self.granted.get(resource)?;
        (grant.tenure == tenure).then_some(grant.until)
    }

    /// Forgets a resource: the office is over.
    pub(super) fn forget(&mut self, resource: &str) {
        self.granted.remove(resource);
    }
}

impl EtcdRegister {
    /// Whether another renewal may be sent.
    pub(super) fn can_renew(&self) -> bool {
        let under_way = self.asked.values().filter(|it| it.purpose == Purpose::Renew).count();
        under_way < RENEWALS_MAX && self.alien.is_none()
    }
}

impl Node {
    /// Renews the own lease key, for the offices whose loops make progress (L1), if the state is
    /// still the one that names this process (L3).
    pub(super) fn renew_in_etcd(&mut self, effects: &mut Effects) {
        let is_due = self.etcd.as_ref().is_some_and(|it| self.now >= it.renew_at && it.can_renew());
        if !is_due {
            return;
        }
        let (now, known, covered) = (self.now, self.known_to_all(), self.offices());
        let beat = self.config.beat(self.lease());
        let me = self.me();
        let Some((Some(etcd), state)) = self.state().cloned().map(|it| (self.etcd.as_mut(), it))
        else {
            return;
        };
        let base = etcd.newest.as_ref().and_then(|contents| contents.state.as_ref());
        let Some((revision, _)) = base.filter(|(_, base)| *base == state) else {
            // What is known was told by another node: etcd is looked at first.
            if !covered.is_empty() {
                etcd.look_at = etcd.look_at.min(now);
                etcd.renew_at = now + super::PAUSE;
            }
            return;
        };
        if covered.is_empty() {
            return;
        }
        let compares = if defect(Defect::EtcdRenewalUnguarded) {
            Vec::new()
        } else {
            alloc::vec![(Key::State, *revision)]
        };
        let key = etcd.holding.next_key(&state.offices_of(&me), &covered, state.lease);
        let puts = alloc::vec![(Key::Lease(me.node), Value::Lease(key))];
        let renewal = Ask::Write(Transaction { compares, puts });
        etcd.renew_at = now + beat;
        let (number, effect) = etcd.ask(Purpose::Renew, now, known, renewal);
        etcd.holding.sent(number, now, state.lease, covered);
        effects.push(effect);
    }
}

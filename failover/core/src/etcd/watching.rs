//! The lease keys of others as this node itself saw them. A key counts as unchanged from the moment
//! the answer of the read that first showed it *came in*: whatever was put before was sent before
//! that, so its holder has stopped by the time the wait is over, whatever the clocks say.

use alloc::collections::BTreeMap;
use alloc::string::String;

use replicator_core::{Span, Time};

use super::store::Contents;
use crate::acceptor::acceptor_term;
use crate::cluster::{Holder, Resource};
use crate::defect::{Defect, defect};

/// What must not change while the wait lasts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Mark {
    holder: Holder,
    tenure: u64,
    /// The renewal that covered the office last.
    counter: u64,
    /// The key as a whole, where it does not name the office: an operator may have deleted it.
    revision: u64,
}

/// How one office is kept, as far as this node saw.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Watched {
    mark: Mark,
    duration: Span,
    since: Time,
}

impl Watched {
    fn until(&self) -> Time {
        self.since + acceptor_term(self.duration)
    }
}

/// All offices that somebody holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Watching {
    store: u64,
    revision: u64,
    seen_at: Option<Time>,
    offices: BTreeMap<String, Watched>,
}

impl Watching {
    /// The answer to a linearizable read came in. After a gap in the answers every wait begins
    /// anew: when etcd was away, the holder is to have the time to renew first.
    pub fn observe(&mut self, now: Time, gap_max: Span, contents: &Contents) {
        if self.store != contents.store {
            *self = Self { store: contents.store, ..Self::default() };
        }
        if contents.revision < self.revision {
            // It was overtaken by a later answer.
            return;
        }
        self.revision = contents.revision;
        let is_new = self.seen_at.is_none_or(|at| now.since(at) > gap_max);
        let Some((_, state)) = &contents.state else { return };
        self.seen_at = Some(now);
        self.offices
            .retain(|name, _| state.resource(name).is_some_and(|entry| entry.holder.is_some()));
        for entry in &state.resources {
            let Some(holder) = &entry.holder else { continue };
            let (mark, duration) = mark(contents, entry, holder, state.longest_lease);
            let known = self.offices.get(&entry.name);
            let is_same = known.is_some_and(|known| known.mark == mark) && !is_new;
            if !is_same {
                let watched = Watched { mark, duration, since: now };
                self.offices.insert(entry.name.clone(), watched);
            }
        }
    }

    /// How long a holder's key must stay unchanged yet before its office may be taken; `None`: it
    /// has never been seen in this office.
    pub fn remaining(&self, now: Time, resource: &str, holder: &Holder) -> Option<Span> {
        if defect(Defect::EtcdTakenUnwatched) {
            return Some(Span(0));
        }
        let watched = self.offices.get(resource).filter(|it| it.mark.holder == *holder)?;
        Some(watched.until().since(now))
    }

    /// Since when a resource's lease key is unchanged, and for how long it must be.
    pub fn unchanged(&self, resource: &str) -> Option<(Time, Span)> {
        let watched = self.offices.get(resource)?;
        Some((watched.since, acceptor_term(watched.duration)))
    }

    /// The end of the next wait.
    pub fn next_end(&self, now: Time) -> Option<Time> {
        self.offices.values().map(Watched::until).filter(|until| *until > now).min()
    }
}

fn mark(
    contents: &Contents,
    entry: &Resource,
    holder: &Holder,
    longest_lease: Span,
) -> (Mark, Span) {
    let tenure = entry.state.tenure;
    let lease = contents.leases.get(&holder.node);
    let kept = lease
        .filter(|(_, key)| key.process == holder.process)
        .and_then(|(_, key)| key.offices.iter().find(|kept| kept.resource == entry.name))
        .filter(|kept| kept.tenure == tenure);
    let holder = holder.clone();
    match kept {
        Some(kept) => (Mark { holder, tenure, counter: kept.counter, revision: 0 }, kept.duration),
        None => {
            let revision = lease.map_or(0, |(revision, _)| *revision);
            (Mark { holder, tenure, counter: 0, revision }, longest_lease)
        }
    }
}

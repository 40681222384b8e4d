//! Until when the lease of each primary runs, and since when it is over, as this node sees it: what
//! status shows, and from when several candidates have their turns. Whether a lease is over is not
//! decided by it: the acceptors know, and a taker's own watch of a lease key.

use alloc::collections::BTreeMap;
use alloc::string::String;

use replicator_core::Time;

use crate::cluster::Resource;
use crate::node::Node;

/// Offices whose lease is over: in which tenure, and since when.
pub(crate) type Lapsed = BTreeMap<String, (u64, Time)>;

impl Node {
    /// When the lease of a resource's holder ends, as this node knows it: by its own lease, by what
    /// the acceptors granted, or by the lease key in etcd that it watches.
    pub fn lease_seen(&self, resource: &str) -> Option<Time> {
        if let Some(own) = self.lease_until(resource) {
            return Some(own);
        }
        if let Some(etcd) = &self.etcd {
            return etcd.watching().unchanged(resource).map(|(since, term)| since + term);
        }
        let entry = self.newest().and_then(|state| state.resource(resource))?;
        self.granted_until(entry)
    }

    /// Since when the lease of a resource's primary is over; none: it runs, or there is none. One
    /// that holds its office without end (R5d) goes on renewing: it is silent since then.
    pub fn lapsed_since(&self, resource: &str) -> Option<Time> {
        self.lapsed.get(resource).map(|(_, since)| *since)
    }

    /// The latest end of a lease that this acceptor, or one that is heard, granted the holder.
    fn granted_until(&self, entry: &Resource) -> Option<Time> {
        let holder = entry.holder.as_ref()?;
        let own = self
            .acceptor()
            .leases(self.now)
            .find(|lease| lease.resource == entry.name)
            .map(|lease| lease.until);
        let heard = self.detector.nodes().filter_map(|(_, node)| {
            let of_holder = |(resource, node, _): &&(String, _, _)| {
                *resource == entry.name && *node == holder.node
            };
            let (.., remaining) = node.heartbeat.leases.iter().find(of_holder)?;
            Some(node.heartbeat_at + *remaining)
        });
        own.into_iter().chain(heard).max()
    }

    /// Notes when leases end and when they run again.
    pub(crate) fn watch_lapses(&mut self) {
        let (now, before) = (self.now, core::mem::take(&mut self.lapsed));
        let mut lapsed = Lapsed::new();
        let offices = self.newest().map_or(&[][..], |state| &state.resources);
        for entry in offices.iter().filter(|it| it.holder.is_some()) {
            let until = self.lease_seen(&entry.name);
            if until.is_some_and(|until| until > now) {
                continue;
            }
            let tenure = entry.state.tenure;
            let known = before.get(&entry.name).filter(|(of, _)| *of == tenure);
            let since = known.map_or(until.unwrap_or(now), |(_, since)| *since);
            lapsed.insert(entry.name.clone(), (tenure, since));
        }
        self.lapsed = lapsed;
    }
}

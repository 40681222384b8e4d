//! What must never be in a cluster, and what must be in the end.

use failover_core::ClusterState;
use replicator_core::register::Member;

use crate::clients::Open;
use crate::cluster::{NAMES, RESOURCE};
use crate::failure::Kind;
use crate::tell;
use crate::world::{MS, World};

/// When nothing is in the way, a node serves after so long: a lease, the longest pause of an
/// attempt that was refused (32 s), and the waits of the plan.
const SERVES_WITHIN: u64 = 60_000 * MS;

impl World {
    /// A node learned a committed state: everybody learns the same ones.
    pub(super) fn state_committed(&mut self, seat: usize, state: ClusterState) {
        let cause = &state.cause;
        tell!(
            self,
            "{} knows revision {}: {} {} {:?}",
            NAMES[seat],
            state.revision,
            cause.what,
            cause.why,
            state.resource(RESOURCE).map(|entry| (
                entry.state.generation,
                entry.state.tenure,
                entry.state.set.len(),
                entry.holder.as_ref().map(|holder| holder.node.as_str().to_string()),
            ))
        );
        let is_takeover = cause.what == "takeover";
        let revision = state.revision;
        if self.cluster().went_back_at.is_none() {
            self.check_majority_has(&state);
        }
        let cluster = self.cluster_mut();
        let Some(known) = cluster.committed.get(&revision) else {
            cluster.committed.insert(revision, state.clone());
            cluster.tally.takeovers += u64::from(is_takeover);
            self.check_voters_changed(&state);
            self.forced_takeover(&state);
            if let Some(entry) = state.resource(RESOURCE) {
                self.note_sole_writer(&entry.state);
            }
            return;
        };
        if *known != state && cluster.went_back_at.is_none() {
            let text = format!(
                "{} learned revision {revision} as {state:?}, somebody else as {known:?}",
                NAMES[seat]
            );
            self.fail(Kind::Safety, "register", text);
        }
    }

    /// R5e: a machine whose clock stood still may not know for a lease that it lost its office.
    pub(crate) fn may_live_in_the_past(&self, node: usize) -> bool {
        let cluster = self.cluster();
        let window = cluster.plan.lease.0 * 5 / 4;
        cluster.woke_at[node].is_some_and(|at| self.now < at + window)
    }

    /// The clock of a data node's machine stands still until then.
    pub(crate) fn clock_stands_still(&mut self, node: usize, until: u64) {
        if let Some(cluster) = &mut self.cluster {
            cluster.woke_at[node] = cluster.woke_at[node].max(Some(until));
        }
    }

    /// Whether a node would answer a read now.
    pub(crate) fn would_answer(&self, node: usize) -> bool {
        let there = &self.nodes[node];
        there.paused_until <= self.now
            && there.process.as_ref().is_some_and(|process| {
                process.device.is_some() && process.replica.holds_lease(self.local(node))
            })
    }

    /// L4, R5a: never two nodes that would answer.
    pub(crate) fn check_one_serves(&mut self) {
        if self.would_answer(0) && self.would_answer(1) {
            if (0..2).any(|node| self.may_live_in_the_past(node)) {
                return;
            }
            let text = "both nodes would answer reads now".to_string();
            self.fail(Kind::Safety, "L4", text);
        }
    }

    /// A success is about to be told to a client. Whether it counts: R5e excuses some.
    pub(crate) fn success_counts(&mut self, node: usize, id: u64, open: &Open) -> bool {
        if self.cluster.is_none() {
            return true;
        }
        let local = self.local(node);
        let process = self.nodes[node].process.as_ref().expect("a process answers");
        if !process.replica.holds_lease(local) {
            let text = format!("{} answers request {id} without a lease", NAMES[node]);
            self.fail(Kind::Safety, "R5a", text);
            return true;
        }
        if self.cluster().went_back_at.is_some() {
            return false;
        }
        if open.office >= self.checkers.offices {
            return true;
        }
        if self.may_live_in_the_past(node) {
            let woke_at = self.cluster().woke_at[node];
            // Alone in its set it has nobody to ask, and only an operator's word deposes it.
            let has_others = process.replica.status(local).register.set.len() > 1;
            let is_confirmed = self.plan.confirms_reads && open.is_read() && has_others;
            if is_confirmed && woke_at < Some(open.since) {
                let text = format!("read {id} came in after the machine woke, and is of the past");
                self.fail(Kind::Safety, "R5e", text);
            }
            self.cluster_mut().tally.reads_of_the_past += 1;
            return false;
        }
        self.cluster_mut().tally.overlapping += 1;
        self.tally.overlapping += 1;
        let newest = self.checkers.offices;
        let text =
            format!("request {id} succeeds in office {}, office {newest} has begun", open.office);
        self.fail(Kind::Safety, "oracle (b)", text);
        true
    }

    /// The sets that may be the committed one.
    pub(crate) fn possible_sets(&self) -> Option<Vec<Vec<Member>>> {
        let cluster = self.cluster.as_ref()?;
        let sets: Vec<Vec<Member>> = cluster
            .possible()
            .map(|state| state.set.clone())
            .filter(|set| !set.is_empty())
            .collect();
        (!sets.is_empty()).then_some(sets)
    }

    /// (d): once the troubles are over a node serves soon, without an operator.
    pub(crate) fn look_at_cluster(&mut self) {
        if self.cluster.is_none() {
            return;
        }
        self.check_hung_loops();
        self.check_one_serves();
        let serves = (0..2).any(|node| self.would_answer(node));
        let Some(calm) = self.checkers.calm_since else { return };
        let now = self.now;
        let cluster = self.cluster_mut();
        if serves {
            cluster.unserved_since = None;
            return;
        }
        let since = (*cluster.unserved_since.get_or_insert(now)).max(calm);
        cluster.tally.longest_unserved_ns = cluster.tally.longest_unserved_ns.max(now - since);
        if now - since > SERVES_WITHIN {
            let why: Vec<String> = (0..2)
                .map(|seat| {
                    let node = cluster.seats[seat].node.as_ref();
                    format!("{}: {:?}", NAMES[seat], node.map(|node| node.judge(RESOURCE)))
                })
                .collect();
            let text = format!("nobody serves for {} ms: {why:?}", (now - since) / MS);
            self.fail(Kind::Liveness, "(d)", text);
        }
    }

    /// What is missing in the cluster until all is well.
    pub(crate) fn why_cluster_unsettled(&self) -> Option<&'static str> {
        let cluster = self.cluster.as_ref()?;
        let newest = cluster.newest();
        let Some(newest) = newest else { return Some("no register") };
        for seat in &cluster.seats[..cluster.count()] {
            let Some(node) = &seat.node else { return Some("a daemon is down") };
            if node.state().is_none_or(|state| state.revision != newest.revision) {
                return Some("a node does not know the newest state");
            }
        }
        if cluster.outsider.is_some() || newest.next_voters.is_some() {
            return Some("somebody has no vote");
        }
        if cluster.forcing.is_some() {
            return Some("a failover by force is under way");
        }
        if newest.paused || !newest.standby.is_empty() {
            return Some("a switch is not as it was");
        }
        None
    }
}

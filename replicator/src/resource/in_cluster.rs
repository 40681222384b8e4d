//! A resource as a part of a cluster with a majority: what the cluster decides comes in here, what
//! the replica is and proposes goes out.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use failover::core::cluster::Force;
use failover::core::facts::Facts;
use failover::core::node::{Input as Fact, Undecided as NotCommitted};
use failover::core::services::Input as ServicesInput;
use failover::{Before, Cluster};
use replicator_core::input::Undecided;
use replicator_core::register::RegisterState;
use replicator_core::status::Party;
use replicator_core::{Command, Input, Span, Time};

use super::threads::no_thread;
use super::{Phase, Resource};
use crate::cluster::{ToHistory, hindrance, hindrance_in, shortened};
use crate::control::{RefusalReport, Reply};
use crate::data_loop::{FromLoop, LoopError, ToLoop};
use crate::events::Weight;

/// A disk operation that takes longer counts as a hanging disk: the lease is let go (L1).
pub(super) const DISK_HANGS_AFTER: Span = Span::from_ms(10_000);

/// What all resources together may say of their hindrances: a datagram has 60 000 bytes.
const WORDS_BYTES_MAX: usize = 20_000;

impl Resource {
    /// From now on this resource belongs to a cluster with a majority.
    pub fn join_cluster(&self, cluster: Cluster) {
        // Set once, before the resource starts.
        let _ = self.cluster_handle.set(cluster);
    }

    /// Where it has its history noted; set once, before it starts.
    pub fn keep_history(&self, chronicle: mpsc::Sender<ToHistory>) {
        let _ = self.chronicle.set(chronicle);
    }

    /// Has something noted in the history; nothing where none is kept.
    pub(super) fn tell_history(&self, told: ToHistory) {
        if let Some(chronicle) = self.chronicle.get() {
            // The thread that reads it lives as long as the process.
            let _ = chronicle.send(told);
        }
    }

    /// Where a peer says it is reached; nothing without a control plane.
    pub fn told_addresses(&self, peer: &str) -> Vec<std::net::SocketAddr> {
        let cluster = self.cluster_handle.get();
        cluster.map_or_else(Vec::new, |cluster| cluster.addresses_of(&peer.into()))
    }

    fn tell_cluster(&self, fact: Fact) {
        if let Some(cluster) = self.cluster_handle.get() {
            cluster.tell(fact);
        }
    }

    /// What this replica is and can do.
    pub fn facts(&self) -> Facts {
        let Some(status) = self.loop_status() else { return Facts::default() };
        let old_device = self.old_device(&status).as_ref().map(hindrance);
        let core = status.core;
        let leaving = self.lock().is_leaving.then(|| {
            let why = "this resource is being stopped on this node";
            hindrance(&RefusalReport::new("stopping", why, "start replicatord again"))
        });
        let own = core.hindrance.as_ref().map(|refusal| hindrance(&self.refusal_report(refusal)));
        // Each may have two hindrances, with two texts.
        let bytes_max = (WORDS_BYTES_MAX / 4 / self.cluster.resources.len().max(1)).min(1_000);
        let short = |hindrance| shortened(hindrance, bytes_max);
        Facts {
            replica: core.replica,
            role: core.role.to_owned(),
            data: core.data.to_owned(),
            serves: self.serving().is_some(),
            hindrance: leaving.or(old_device).or(own).map(short),
            copy: core.register,
            trouble: self.trouble().map(short),
            reach: self.services().map_or_else(Vec::new, |services| services.reach()),
        }
    }

    /// Tells the cluster what this replica is and can do.
    pub fn report_facts(&self) {
        let (resource, facts) = (self.name().to_owned(), self.facts());
        self.tell_whose_office(&facts.role, facts.replica, &facts.copy);
        self.tell_cluster(Fact::ReplicaReported { resource, facts });
    }

    /// The office goes to another node before this one stops; it is not to come back here.
    pub(super) fn set_leaving(&self, is_leaving: bool) {
        self.lock().is_leaving = is_leaving;
        self.report_facts();
    }

    /// When the data loop turned last, if its disk does not hang (L1).
    pub fn progress(&self) -> Option<Time> {
        self.lock().run.as_ref().and_then(|run| run.handle.progress(DISK_HANGS_AFTER))
    }

    /// The cluster orders this replica to take the office. Answered by a fact.
    pub fn promote_by_cluster(self: &Arc<Self>, force: Force, why: &str, before: Before) {
        let why = why.to_owned();
        self.begin_taking(before);
        let started = self.try_in_helper("promote", move |resource| {
            resource.emit(Weight::Info, format!("taking the office: {why}"));
            let reply = resource.take_office(force);
            if let Reply::Refused(refusal) = &reply {
                let text = format!("cannot take the office: {}", refusal.why);
                resource.emit(Weight::Warning, text);
                resource.end_marks(false);
            }
            let refused = hindrance_in(&reply);
            let name = resource.name().to_owned();
            resource.tell_cluster(Fact::PromotionEnded { resource: name, refused });
        });
        if started.is_err() {
            self.end_marks(false);
            let (resource, why) =
                (self.name().to_owned(), hindrance(&no_thread("take the office")));
            self.tell_cluster(Fact::PromotionEnded { resource, refused: Some(why) });
        }
    }

    fn take_office(self: &Arc<Self>, force: Force) -> Reply {
        if let Some(refusal) = self.loop_status().and_then(|status| self.old_device(&status)) {
            return Reply::Refused(refusal);
        }
        self.note_before_office();
        let command = Command::Promote {
            old_primary_is_off: force.old_primary_is_off,
            allow_data_loss: force.allow_data_loss,
            alone: false,
        };
        self.order_role(command)
    }

    /// The cluster moves the office to another node.
    pub fn hand_over(self: &Arc<Self>, to: &str) {
        let to = to.to_owned();
        let started = self.try_in_helper("hand over", move |resource| {
            resource.emit(Weight::Info, format!("handing the office over to {to}"));
            resource.begin_giving();
            let reply = resource.demote_for(resource.why_released(), true);
            resource.mark("released");
            resource.end_marks(matches!(reply, Reply::Done(_)));
            if let Some(why) = hindrance_in(&reply) {
                resource.emit(Weight::Warning, format!("cannot hand over: {}", why.why));
                let name = resource.name().to_owned();
                resource.tell_cluster(Fact::HandOverRefused { resource: name, why });
            }
        });
        if started.is_err() {
            let (resource, why) = (self.name().to_owned(), hindrance(&no_thread("hand over")));
            self.tell_cluster(Fact::HandOverRefused { resource, why });
        }
    }

    /// The office is to stay after all. While services stop it does; a closed device goes its way.
    pub fn keep_office(&self) {
        self.emit(Weight::Info, "the switchover was cancelled".to_owned());
        self.tell_services(ServicesInput::HandOverWithdrawn);
    }

    /// How a proposal of the replica ended.
    pub fn decided(&self, number: u64, result: Result<RegisterState, NotCommitted>) {
        if let Ok(state) = &result {
            self.keep_state(state);
            self.mark_committed();
        }
        let result = match result {
            Ok(state) => Ok(Box::new(state)),
            Err(NotCommitted::Newer(state)) => Err(Undecided::Newer(state)),
            Err(NotCommitted::NotNow(why)) => Err(Undecided::NotNow { why }),
        };
        self.tell_loop(Input::Decided { number, result });
    }

    /// The newest committed state; kept for a loop that is not up yet.
    pub fn register_learned(&self, state: RegisterState) {
        self.keep_state(&state);
        self.tell_loop(Input::RegisterLearned(Box::new(state)));
    }

    /// Keeps a committed state. When the office moved, sessions begin anew at once.
    fn keep_state(&self, state: &RegisterState) {
        let mut kept = self.lock();
        let office = |state: &RegisterState| (state.tenure, state.primary);
        if kept.learned.as_ref().map(office) != Some(office(state)) {
            let now = Instant::now();
            kept.links.iter_mut().for_each(|link| link.hurry(now));
            self.changed.notify_all();
        }
        kept.learned = Some(state.clone());
    }

    /// Until when this node may act as primary.
    pub fn lease_changed(&self, until: Option<Time>) {
        self.lease.set(until);
        self.tell_guard_of_lease(until);
        self.tell_services(ServicesInput::LeaseChanged { until });
        if let Some(run) = &self.lock().run {
            run.handle.wake();
        }
    }

    fn tell_loop(&self, input: Input) {
        let state = self.lock();
        let Some(run) = &state.run else { return };
        match run.handle.send(ToLoop::Register(input)) {
            // It is stopping; the next one is told what is newest.
            Ok(()) | Err(LoopError::Ended) => {}
            Err(error) => {
                drop(state);
                self.emit(Weight::Error, format!("cannot tell the data loop: {error}"));
            }
        }
    }

    /// The replica proposes a change of the register.
    pub(super) fn proposed(&self, proposal: FromLoop) {
        let FromLoop::Proposed { number, next, expected, forced } = proposal else { return };
        self.mark_proposed();
        self.tell_cluster(Fact::ReplicaProposed {
            resource: self.name().to_owned(),
            number,
            expected,
            next: *next,
            forced,
        });
    }

    /// Whether a majority decides about this resource.
    pub fn is_in_cluster(&self) -> bool {
        self.cluster_handle.get().is_some()
    }

    /// For how long its replica, which serves nobody, has waited for a majority to decide about its
    /// office; none: it does not.
    pub fn undecided_for(&self) -> Option<Span> {
        let core = self.loop_status()?.core;
        let waits = core.waits.iter().filter(|wait| wait.party == Party::Majority);
        let longest = waits.map(|wait| wait.since).max();
        longest.filter(|_| matches!(core.role, "promoting" | "demoting"))
    }

    /// Whether it is up and has a loop.
    pub fn has_loop(&self) -> bool {
        matches!(self.lock().phase, Phase::Up)
    }
}

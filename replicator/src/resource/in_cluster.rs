//! A resource as a part of a cluster with a majority: what the cluster decides comes in here, what
//! the replica is and proposes goes out.

use std::sync::Arc;
use std::time::Instant;

use failover::Cluster;
use failover::core::cluster::Force;
use failover::core::facts::Facts;
use failover::core::node::{Input as Fact, Undecided as NotCommitted};
use failover::core::services::Input as ServicesInput;
use replicator_core::input::Undecided;
use replicator_core::register::RegisterState;
use replicator_core::{Command, Input, Span, Time};

use super::{Phase, Resource};
use crate::cluster::{History, hindrance, hindrance_in};
use crate::control::{RefusalReport, Reply};
use crate::data_loop::{FromLoop, LoopError, ToLoop};
use crate::events::Weight;

/// A disk operation that takes longer counts as a hanging disk: the lease is let go (L1).
const DISK_HANGS_AFTER: Span = Span::from_ms(10_000);

impl Resource {
    /// From now on this resource belongs to a cluster with a majority.
    pub fn join_cluster(&self, cluster: Cluster, history: Arc<History>) {
        // Set once, before the resource starts.
        let _ = self.cluster_handle.set(cluster);
        let _ = self.history.set(history);
    }

    /// Notes in the history how long the parts of a change of office took.
    pub(super) fn note_phases(&self, what: &str, phases: Vec<(String, u64)>) {
        if let Some(history) = self.history.get() {
            history.note_phases(self.name(), what, phases);
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
        let core = status.core;
        let users = self.device.leftover_users();
        let leaving = self.lock().is_leaving.then(|| {
            let why = "this resource is being stopped on this node";
            hindrance(&RefusalReport::new("stopping", why, "start replicatord again"))
        });
        let own = core.hindrance.as_ref().map(|refusal| hindrance(&self.refusal_report(refusal)));
        let old_device = (!users.is_empty() && self.serving().is_none())
            .then(|| hindrance(&old_device_in_use(&users)));
        Facts {
            replica: core.replica,
            role: core.role.to_owned(),
            data: core.data.to_owned(),
            serves: self.serving().is_some(),
            hindrance: leaving.or(old_device).or(own),
            copy: core.register,
            trouble: self.trouble(),
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
    pub fn promote_by_cluster(self: &Arc<Self>, force: Force, why: &str) {
        let why = why.to_owned();
        self.in_helper("promote", move |resource| {
            resource.emit(Weight::Info, format!("taking the office: {why}"));
            let reply = resource.take_office(force);
            if let Reply::Refused(refusal) = &reply {
                let text = format!("cannot take the office: {}", refusal.why);
                resource.emit(Weight::Warning, text);
            }
            let refused = hindrance_in(&reply);
            let name = resource.name().to_owned();
            resource.tell_cluster(Fact::PromotionEnded { resource: name, refused });
        });
    }

    fn take_office(self: &Arc<Self>, force: Force) -> Reply {
        let users = self.device.leftover_users();
        if !users.is_empty() && self.serving().is_none() && !self.may_resume() {
            return Reply::Refused(old_device_in_use(&users));
        }
        self.note_before_office();
        let command = Command::Promote {
            old_primary_is_off: force.old_primary_is_off,
            allow_data_loss: force.allow_data_loss,
            alone: false,
        };
        self.order_role(command)
    }

    /// Whether the device that an earlier process left is the one of the tenure that this node has
    /// in the register: then it is taken over with its users (R6a, R15).
    fn may_resume(&self) -> bool {
        let Some(tenure) = self.device.remembered_tenure() else { return false };
        self.loop_status().is_some_and(|status| {
            let register = &status.core.register;
            let is_mine = register.primary.is_some_and(|it| it.0 == status.core.replica);
            is_mine && register.tenure == tenure
        })
    }

    /// The cluster moves the office to another node.
    pub fn hand_over(self: &Arc<Self>, to: &str) {
        let to = to.to_owned();
        self.in_helper("hand over", move |resource| {
            resource.emit(Weight::Info, format!("handing the office over to {to}"));
            let reply = resource.demote_for(resource.why_released(), true);
            if let Some(why) = hindrance_in(&reply) {
                resource.emit(Weight::Warning, format!("cannot hand over: {}", why.why));
                let name = resource.name().to_owned();
                resource.tell_cluster(Fact::HandOverRefused { resource: name, why });
            }
        });
    }

    /// How a proposal of the replica ended.
    pub fn decided(&self, number: u64, result: Result<RegisterState, NotCommitted>) {
        if let Ok(state) = &result {
            self.keep_state(state);
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

    /// Whether it is up and has a loop.
    pub fn has_loop(&self) -> bool {
        matches!(self.lock().phase, Phase::Up)
    }
}

fn old_device_in_use(users: &[String]) -> RefusalReport {
    RefusalReport {
        code: "old_device_in_use".into(),
        rule: "R15".into(),
        why: format!(
            "a device of an earlier time in office is still in use here: {}",
            users.join("; ")
        ),
        next: "unmount it or end these processes".into(),
    }
}

//! The control plane on this node: carries what the cluster decides to the resources, and what the
//! resources are and want to the cluster. Decisions are made in `failover-core` and
//! `replicator-core`; this file only passes them on.

mod etcd;
mod history;
mod members;
mod orders;
mod report;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use failover::core::cluster::{ClusterState, Force};
use failover::core::facts::{Hindrance, Placement};
use failover::core::node::{Config, Undecided};
use failover::core::{NodeName, Time};
use failover::node::{fresh_process, lease_of};
use failover::{Before, Cluster, Offices};
use replicator_core::register::RegisterState;

use crate::config::{ClusterConfig, NodeConfig, ResourceConfig};
use crate::control::{RefusalReport, Reply};
use crate::events::{Events, Weight};
use crate::greeting::cut;
use crate::key::ClusterKey;
use crate::resource::Resource;

pub use etcd::{EtcdEndpoint, EtcdReport, check_etcd};
pub use history::{Fenced, History, HistoryEntry, Resized, Taken, Timed};
pub use members::{Applied, ClusterRequest};
pub use report::{ClusterReport, Explanation, NodeReport, OfficeReport, ReplicaFacts};

/// How often a node looks what its replicas can do.
const FACTS_EVERY: Duration = Duration::from_millis(200);

/// What the data loop of a resource knows of its lease: the time it ends, 0 for none. Written by
/// the node thread, read by the loop in every turn.
#[derive(Debug, Default)]
pub struct LeaseCell(AtomicU64);

impl LeaseCell {
    /// Sets the end.
    pub fn set(&self, until: Option<Time>) {
        self.0.store(until.map_or(0, |until| until.0), Ordering::Release);
    }

    /// The end.
    pub fn get(&self) -> Option<replicator_core::Time> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            until => Some(Time(until)),
        }
    }
}

/// The control plane of a node of a cluster with a majority.
pub struct ControlPlane {
    cluster: Cluster,
    config: Arc<ClusterConfig>,
    node: NodeConfig,
    /// What the register went through, as this node saw it.
    pub history: Arc<History>,
}

impl ControlPlane {
    /// Starts the node thread and connects it with the resources, which are not up yet.
    pub fn start(
        config: Arc<ClusterConfig>,
        node: &NodeConfig,
        key: ClusterKey,
        ports: &failover::Ports,
        resources: &[Arc<Resource>],
        events: Arc<Events>,
    ) -> Result<Arc<Self>, failover::StartError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| failover::StartError::Io { what, source }
        };
        let process = fresh_process().map_err(io("draw a number for this process"))?;
        let name = |node: &NodeConfig| NodeName(node.name.clone());
        let core = Config {
            name: name(node),
            process,
            nodes: config.nodes.iter().map(|node| (name(node), node.witness)).collect(),
            resources: resources.iter().map(|it| it.name().to_owned()).collect(),
            lease: lease_of(config.lease_ms),
        };
        let etcd = etcd::etcd_config(&config, &key);
        // A register in etcd and one that the nodes keep have nothing to do with each other.
        let (mut own, mut other) = ("register", "register-etcd");
        if etcd.is_some() {
            std::mem::swap(&mut own, &mut other);
        }
        let history = Arc::new(History::open(&node.state_dir).map_err(io("open the history"))?);
        let chronicle =
            start_chronicle(history.clone(), events).map_err(io("start the thread history"))?;
        let wiring = Wiring {
            resources: resources.iter().map(|it| (it.name().to_owned(), it.clone())).collect(),
            chronicle: chronicle.clone(),
        };
        let cluster = Cluster::start(
            failover::ClusterConfig {
                cluster: config.cluster.clone(),
                core,
                listen: node.listen.clone(),
                addresses: config.nodes.iter().map(|it| (name(it), it.addresses.clone())).collect(),
                directory: node.state_dir.join(own),
                other_directory: node.state_dir.join(other),
                etcd,
                authenticate: Arc::new(move |parts| key.authenticate(parts)),
                placements: config.resources.iter().map(placement).collect(),
            },
            ports,
            wiring,
        )?;
        for resource in resources {
            resource.join_cluster(cluster.clone());
            resource.keep_history(chronicle.clone());
        }
        let plane = Arc::new(Self { cluster, config, node: node.clone(), history });
        Self::start_reporting(resources.to_vec()).map_err(io("start the thread facts"))?;
        Ok(plane)
    }

    /// Tells the node thread again and again what the replicas are.
    fn start_reporting(resources: Vec<Arc<Resource>>) -> std::io::Result<()> {
        // One thread each: a loop that hangs is waited for, and the others have news meanwhile.
        for resource in resources {
            let name = format!("facts {}", resource.name());
            let body = move || {
                loop {
                    resource.report_facts();
                    thread::sleep(FACTS_EVERY);
                }
            };
            thread::Builder::new().name(name).spawn(body)?;
        }
        Ok(())
    }
}

/// The resources as the node thread reaches them.
struct Wiring {
    resources: HashMap<String, Arc<Resource>>,
    /// Writes files and log lines, which the node thread must not wait for.
    chronicle: mpsc::Sender<ToHistory>,
}

/// What history is told.
pub enum ToHistory {
    /// The register changed.
    Committed(Box<ClusterState>),
    /// A change of office on this node is over: how long its parts took.
    Timed(Timed),
    /// All services of a resource run here: how long each step took.
    Served {
        /// The resource.
        resource: String,
        /// The steps in their order, in milliseconds.
        phases: Vec<(String, u64)>,
    },
    /// A volume grew.
    Resized(Resized),
}

/// Notes every change of the register, on a thread of its own.
pub(crate) fn start_chronicle(
    history: Arc<History>,
    events: Arc<Events>,
) -> std::io::Result<mpsc::Sender<ToHistory>> {
    let (sender, told) = mpsc::channel::<ToHistory>();
    let body = move || {
        for told in told {
            let state = match told {
                ToHistory::Committed(state) => state,
                ToHistory::Timed(timed) => {
                    history.note_timed(timed);
                    continue;
                }
                ToHistory::Served { resource, phases } => {
                    history.note_phases(&resource, "services started", phases);
                    continue;
                }
                ToHistory::Resized(resized) => {
                    history.note_resized(resized);
                    continue;
                }
            };
            let cause = &state.cause;
            let text = match cause.why.as_str() {
                "" => format!("register revision {}: {}", state.revision, cause.what),
                why => format!("register revision {}: {} ({why})", state.revision, cause.what),
            };
            events.emit(Weight::Info, &cause.resource, text);
            if let Some(entry) = history.note(&state) {
                events.tell_hooks(|| entry.into());
            }
        }
    };
    thread::Builder::new().name("history".into()).spawn(body)?;
    Ok(sender)
}

impl Wiring {
    fn with(&self, resource: &str, act: impl FnOnce(&Arc<Resource>)) {
        if let Some(resource) = self.resources.get(resource) {
            act(resource);
        }
    }
}

impl Offices for Wiring {
    fn promote(&self, resource: &str, force: Force, why: &str, before: Before) {
        self.with(resource, |it| it.promote_by_cluster(force, why, before));
    }

    fn hand_over(&self, resource: &str, to: &NodeName) {
        self.with(resource, |it| it.hand_over(to.as_str()));
    }

    fn keep_office(&self, resource: &str) {
        self.with(resource, |it| it.keep_office());
    }

    fn decided(&self, resource: &str, number: u64, result: Result<RegisterState, Undecided>) {
        self.with(resource, |it| it.decided(number, result));
    }

    fn learned(&self, resource: &str, state: RegisterState) {
        self.with(resource, |it| it.register_learned(state));
    }

    fn lease_changed(&self, resource: &str, until: Option<Time>) {
        self.with(resource, |it| it.lease_changed(until));
    }

    fn committed(&self, state: &ClusterState) {
        for resource in self.resources.values() {
            resource.lease_length_changed(state.lease);
        }
        for entry in &state.resources {
            self.with(&entry.name, |it| it.switches_changed(&entry.switches));
        }
        // The thread lives as long as this one.
        let _ = self.chronicle.send(ToHistory::Committed(Box::new(state.clone())));
    }

    fn progress(&self, resource: &str) -> Option<Time> {
        self.resources.get(resource)?.progress()
    }

    fn went_back(&self) {
        // The thread that writes events would be too late.
        eprintln!(
            "replicatord: other nodes heard more of this very process than it remembers: this \
             machine went back to an earlier time with its memory (a snapshot?). The process ends, \
             and the next one finds out what is still true"
        );
        std::process::exit(1);
    }

    fn turned(&self) {
        if let Some(guarding) = self.resources.values().find_map(|it| it.guarding()) {
            guarding.registry().beat();
        }
    }
}

/// Where the configuration wants a resource to be.
fn placement(resource: &ResourceConfig) -> (String, Placement) {
    let names = |nodes: &[String]| nodes.iter().map(|node| NodeName(node.clone())).collect();
    let services = &resource.services;
    let placement = Placement {
        prefer: names(&services.prefer),
        avoid: names(&services.avoid),
        with: services.with.clone(),
    };
    (resource.name.clone(), placement)
}

/// A refusal of the data plane, in the words of the control plane.
pub fn hindrance(refusal: &RefusalReport) -> Hindrance {
    Hindrance {
        code: refusal.code.clone(),
        rule: refusal.rule.clone(),
        why: refusal.why.clone(),
        next: refusal.next.clone(),
    }
}

/// A hindrance whose words have at most so many bytes each. Every sign of life carries those of all
/// resources in one datagram, and some name all users of a device.
pub fn shortened(hindrance: Hindrance, bytes_max: usize) -> Hindrance {
    let shorten = |mut text: String| {
        if text.len() > bytes_max {
            cut(&mut text, bytes_max.saturating_sub(4));
            text.push_str(" ...");
        }
        text
    };
    Hindrance { why: shorten(hindrance.why), next: shorten(hindrance.next), ..hindrance }
}

/// A verdict of the control plane, as `replctl` shows it.
pub fn refusal(verdict: &failover::core::verdict::Verdict) -> RefusalReport {
    RefusalReport {
        code: verdict.code.clone(),
        rule: verdict.rule.clone(),
        why: verdict.why.clone(),
        next: verdict.next.clone(),
    }
}

/// The hindrance that a reply names, if it is none of success.
pub fn hindrance_in(reply: &Reply) -> Option<Hindrance> {
    match reply {
        Reply::Refused(refusal) => Some(hindrance(refusal)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_too_long_are_cut_between_characters() {
        let long =
            Hindrance { why: "ü".repeat(1_000), next: "wait".into(), ..Hindrance::default() };
        for bytes_max in 5..20 {
            let short = shortened(long.clone(), bytes_max);
            assert!(short.why.len() <= bytes_max && short.why.ends_with(" ..."), "{}", short.why);
            assert_eq!(short.next, "wait");
        }
        assert_eq!(shortened(long.clone(), 2_000), long);
    }
}

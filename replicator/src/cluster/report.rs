//! The whole cluster as this node knows it, as plain values for `replctl` and `--json`.

use failover::core::cluster::{ClusterState, Resource as Entry};
use failover::core::facts::Hindrance;
use failover::core::node::Node;
use failover::core::recovery::Strange;
use failover::core::request::differences;
use failover::core::{NodeName, Span, Time};
use failover::node::now;
use serde::{Deserialize, Serialize};

use super::etcd::file_refusal;
use super::{ClusterRequest, ControlPlane, EtcdReport, refusal};
use crate::control::RefusalReport;

/// The control plane.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Revision of the register; 0: not known.
    pub revision: u64,
    /// Its epoch: rises with every `recover`.
    pub epoch: u64,
    /// In what the file of this daemon differs from the register.
    pub differences: Vec<String>,
    /// Whether a majority of the voters is heard.
    pub has_majority: bool,
    /// For how long not.
    pub no_majority_ms: u64,
    /// Whether automation is paused.
    pub is_paused: bool,
    /// Nodes on standby.
    pub standby: Vec<String>,
    /// Length of the lease.
    pub lease_ms: u64,
    /// Everybody in the cluster.
    pub nodes: Vec<NodeReport>,
    /// Every resource of the register.
    pub resources: Vec<OfficeReport>,
    /// The last change of the register, in words.
    pub last_change: String,
    /// What is being proposed and why it takes time; empty: nothing.
    pub proposing: String,
    /// For how long already.
    pub proposing_ms: u64,
    /// etcd, if it keeps the register.
    pub etcd: Option<EtcdReport>,
    /// Messages for this cluster that were refused since the start, and the last reason.
    pub refused_messages: (u64, String),
    /// Messages for clusters that this process does not serve, or for nobody, and the last one.
    #[serde(default)]
    pub strange_messages: (u64, String),
}

/// One node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Has no disks.
    pub is_witness: bool,
    /// Whether its vote counts.
    pub votes: bool,
    /// `here`, `reachable`, `silent`, `never heard`, `went back`, `refused`.
    pub state: String,
    /// Why its vote does not count or it is refused, and what to do.
    pub trouble: Option<RefusalReport>,
    /// For how long it has been silent.
    pub silent_ms: u64,
    /// The way there and back in microseconds; 0: not measured.
    pub round_trip_us: u64,
    /// Nodes that are heard here and that it says it does not hear: what they send to it is lost.
    #[serde(default)]
    pub does_not_hear: Vec<String>,
}

/// The office of a resource.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OfficeReport {
    /// The resource.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// The generation in which the present primary took office.
    pub tenure: u64,
    /// The primary's node; empty: none.
    pub primary: String,
    /// Nodes of the in-sync set.
    pub in_sync: Vec<String>,
    /// Nodes that could take the office without loss, best first; the primary may be among them.
    #[serde(default)]
    pub heirs: Vec<String>,
    /// Whether the primary holds its office without end, being the only member (R5d).
    pub is_sole: bool,
    /// Where an operator wants it; empty: nowhere.
    pub wanted: String,
    /// How long the lease runs here, if this node holds it; as an acceptor sees it otherwise.
    pub lease_left_ms: u64,
    /// For how long it has been over, or, if it has no end, not renewed with anybody who is heard;
    /// none: it runs, or nobody is primary.
    #[serde(default)]
    pub lease_over_ms: Option<u64>,
    /// What is waited for while it is over.
    #[serde(default)]
    pub awaits: String,
    /// What each data node says of its replica.
    pub replicas: Vec<ReplicaFacts>,
    /// Why this node does not take the office, if it does not.
    pub explain: Option<Explanation>,
}

/// What a node says of its replica.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReplicaFacts {
    /// The node.
    pub node: String,
    /// Its role.
    pub role: String,
    /// `up_to_date`, `outdated`, ...; `unknown` when the node is not heard.
    pub data: String,
    /// Whether it is in the in-sync set.
    pub is_member: bool,
    /// Why it could not be promoted.
    pub hindrance: Option<RefusalReport>,
    /// For how long that has been the reason.
    #[serde(default)]
    pub hindered_ms: u64,
    /// Why services cannot run on that node, if so.
    #[serde(default)]
    pub trouble: Option<RefusalReport>,
    /// For how long that has been the reason.
    #[serde(default)]
    pub troubled_ms: u64,
    /// What it sees of the targets of each `reach` service, in words.
    #[serde(default)]
    pub sees: Vec<String>,
}

/// A decision, or why it is not made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// The refusal: rule, values, next step.
    pub refusal: RefusalReport,
    /// For how long it has been so.
    pub since_ms: u64,
}

impl ControlPlane {
    /// Whether a majority of the voters is heard; none when the node thread hangs.
    pub fn has_majority(&self) -> Option<bool> {
        Some(self.cluster.look()?.without_majority(now()).is_none())
    }

    /// Everything there is to tell; none when the node thread hangs.
    pub fn report(&self) -> Option<ClusterReport> {
        let node = self.cluster.look()?;
        let mut report = ClusterReport {
            refused_messages: self.cluster.refused(),
            strange_messages: self.cluster.strangers(),
            nodes: self.node_reports(&node),
            etcd: self.etcd_report(&node),
            ..ClusterReport::default()
        };
        let silent = node.without_majority(now());
        report.has_majority = silent.is_none();
        report.no_majority_ms = silent.map_or(0, |span| span.as_ms());
        if let Some((proposal, since, denial)) = node.proposer().waits() {
            let why = denial.map(failover::core::wording::in_words).unwrap_or_default();
            report.proposing = format!("{} {why}", proposal.cause.what).trim().to_owned();
            report.proposing_ms = now().since(since).as_ms();
        }
        let Some(state) = node.newest() else { return Some(report) };
        report.revision = state.revision;
        report.epoch = state.epoch.number;
        report.differences = differences(state, &ClusterRequest::of(&self.config).into_core())
            .iter()
            .map(ToString::to_string)
            .collect();
        report.is_paused = state.paused;
        report.standby = state.standby.iter().map(|node| node.0.clone()).collect();
        report.lease_ms = state.lease.as_ms();
        report.last_change = last_change(state);
        report.resources =
            state.resources.iter().map(|entry| self.office_report(&node, entry)).collect();
        Some(report)
    }

    fn etcd_report(&self, node: &Node) -> Option<EtcdReport> {
        let (site, etcd) = (self.config.etcd.as_ref()?, node.etcd()?);
        Some(EtcdReport {
            prefix: site.prefix.clone(),
            endpoints: self.cluster.etcd_endpoints().into_iter().map(Into::into).collect(),
            answered_ms: etcd.answered_at().map(|at| now().since(at).as_ms()),
            trouble: node
                .etcd_trouble()
                .as_ref()
                .map(refusal)
                .or_else(|| self.cluster.etcd_file_trouble().map(file_refusal)),
        })
    }

    fn node_reports(&self, node: &Node) -> Vec<NodeReport> {
        let now = now();
        let unwritten = self.cluster.unwritten();
        let report = |config: &crate::config::NodeConfig| {
            let name = NodeName(config.name.clone());
            let unwritten = unwritten.as_ref().filter(|_| config.name == self.node.name);
            let heard = node.detector().node(&name);
            let word = if config.name == self.node.name {
                "here"
            } else if node.stranger(&name).is_some_and(|it| it.why != Strange::SecondOfItsName) {
                "refused"
            } else if heard.is_none_or(|heard| heard.at.is_none()) {
                "never heard"
            } else if heard.is_some_and(|heard| heard.went_back()) {
                "went back"
            } else if node.detector().hears_now(now, &name) {
                "reachable"
            } else {
                "silent"
            };
            NodeReport {
                name: config.name.clone(),
                is_witness: config.witness,
                votes: node.has_vote(&name) && unwritten.is_none(),
                trouble: (node.vote_trouble(&name).as_ref().map(refusal))
                    .or_else(|| unwritten.map(|(since, why)| not_durable(now.since(*since), why))),
                state: word.to_owned(),
                silent_ms: node.detector().silence(now, &name).map_or(0, |span| span.as_ms()),
                round_trip_us: heard
                    .and_then(|heard| heard.round_trip)
                    .map_or(0, |span| span.0 / 1_000),
                does_not_hear: if word == "reachable" { self.lost_on(node, &name) } else { vec![] },
            }
        };
        self.config.nodes.iter().map(report).collect()
    }

    /// Whom a node that is heard does not hear, of those that are heard here: its last heartbeat
    /// says so.
    fn lost_on(&self, node: &Node, name: &NodeName) -> Vec<String> {
        let detector = node.detector();
        let Some(heartbeat) = detector.node(name).map(|heard| &heard.heartbeat) else {
            return Vec::new();
        };
        let is_lost = |other: &NodeName| {
            let lives = other.0 == self.node.name || detector.hears_now(now(), other);
            let heard = heartbeat.heard.iter().find(|(heard, _)| heard == other);
            lives && heard.is_none_or(|(_, silence)| *silence >= detector.patience())
        };
        let others = self.config.nodes.iter().map(|it| NodeName(it.name.clone()));
        others.filter(|other| other != name && is_lost(other)).map(|other| other.0).collect()
    }

    fn office_report(&self, node: &Node, entry: &Entry) -> OfficeReport {
        let name = &entry.name;
        let explain = node.explain(name).map(|verdict| Explanation {
            refusal: refusal(&verdict),
            since_ms: now().since(verdict.since).as_ms(),
        });
        let left = |until: Time| until.since(now()).as_ms();
        let lapsed = node.lapsed_since(name);
        OfficeReport {
            name: name.clone(),
            lease_over_ms: lapsed.map(|since| now().since(since).as_ms()),
            awaits: lapsed.map_or_else(String::new, |_| awaits(node, entry)),
            generation: entry.state.generation,
            tenure: entry.state.tenure,
            primary: entry.holder.as_ref().map(|it| it.node.0.clone()).unwrap_or_default(),
            in_sync: entry
                .homes
                .iter()
                .filter(|home| entry.state.contains(home.replica))
                .map(|home| home.node.0.clone())
                .collect(),
            heirs: node.heirs(entry).into_iter().map(|heir| heir.0).collect(),
            is_sole: entry.state.sole,
            wanted: entry.wanted.as_ref().map(|node| node.0.clone()).unwrap_or_default(),
            lease_left_ms: node.lease_seen(name).map_or(0, left),
            replicas: self
                .config
                .data_nodes()
                .map(|config| replica_facts(node, entry, &NodeName(config.name.clone())))
                .collect(),
            explain: if self.node.witness { None } else { explain },
        }
    }
}

/// This node cannot make durable what it promised.
fn not_durable(since: Span, why: &str) -> RefusalReport {
    RefusalReport {
        code: "record_not_durable".into(),
        rule: "L5".into(),
        why: format!("{why}, for {} ms: this node does not vote until that works", since.as_ms()),
        next: "look after the disk that `state_dir` is on: is it full, read-only, failing? It is \
               tried again every second"
            .into(),
    }
}

/// What an office waits for whose lease is over, as this node knows.
fn awaits(node: &Node, entry: &Entry) -> String {
    let holder = entry.holder.as_ref().map(|holder| &holder.node);
    if holder == Some(&node.config().name) {
        return "this node waits for a majority that renews it".to_owned();
    }
    if let Some(verdict) = node.explain(&entry.name).filter(|it| it.code != "not_here") {
        return format!("{}; next: {}", verdict.why, verdict.next);
    }
    if node.newest().is_some_and(|state| state.paused) {
        return "an operator paused the automation; next: replctl resume".to_owned();
    }
    let heirs: Vec<String> = node
        .heirs(entry)
        .into_iter()
        .filter(|heir| Some(heir) != holder)
        .map(|heir| heir.0)
        .collect();
    match (heirs.as_slice(), holder) {
        ([], Some(holder)) => format!("{holder} has to come back: nobody else can take over"),
        _ => format!("{} is to take over", heirs.join(" or ")),
    }
}

fn replica_facts(node: &Node, entry: &Entry, name: &NodeName) -> ReplicaFacts {
    let facts = node.facts_of(name, &entry.name);
    let refused = |it: &Hindrance| RefusalReport {
        code: it.code.clone(),
        rule: it.rule.clone(),
        why: it.why.clone(),
        next: it.next.clone(),
    };
    ReplicaFacts {
        node: name.0.clone(),
        role: facts.map_or_else(String::new, |facts| facts.role.clone()),
        data: facts.map_or_else(|| "unknown".to_owned(), |facts| facts.data.clone()),
        is_member: entry.has_member(name),
        hindrance: facts.and_then(|facts| facts.hindrance.as_ref()).map(refused),
        trouble: facts.and_then(|facts| facts.trouble.as_ref()).map(refused),
        hindered_ms: node.hindered_for(name, &entry.name, now()).map_or(0, |span| span.as_ms()),
        troubled_ms: node
            .troubled_since(name, &entry.name)
            .map_or(0, |since| now().since(since).as_ms()),
        sees: facts
            .map_or_else(Vec::new, |facts| facts.reach.iter().map(ToString::to_string).collect()),
    }
}

fn last_change(state: &ClusterState) -> String {
    let cause = &state.cause;
    let mut text = cause.what.clone();
    for part in [&cause.resource, &cause.why] {
        if !part.is_empty() {
            text = format!("{text}, {part}");
        }
    }
    text
}

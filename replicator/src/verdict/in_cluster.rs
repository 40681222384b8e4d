//! The same sentence where a majority decides: who would take over by itself, or what keeps it from
//! that.

use super::{Level, Verdict, because, catching_up, is_connected, lacking, trouble, verdict};
use crate::cluster::{ClusterReport, EtcdEndpoint, EtcdReport, NodeReport, OfficeReport};
use crate::report::{PeerReport, ReplicaReport, ResourceReport};

/// A takeover takes so much longer than the lease, as a rule: its end at the acceptors, a look at
/// the facts, the promotion.
const BEYOND_LEASE_PERMILLE: u64 = 1_100;
const TAKEOVER_MS: u64 = 200;

/// The verdict of a node of a cluster with a majority on one of its resources.
pub fn of(resource: &ResourceReport, node: &str, cluster: &ClusterReport) -> Verdict {
    if let Some(found) = trouble(resource, node) {
        return found;
    }
    let office = cluster.resources.iter().find(|office| office.name == resource.name);
    let (Some(replica), Some(office)) = (&resource.replica, office) else {
        let why = match &cluster.etcd {
            _ if cluster.has_majority => String::new(),
            Some(etcd) => in_etcd_words(etcd),
            None => ", and no majority is heard".to_owned(),
        };
        let text = format!("not served: the register is not known on {node} yet{why}");
        return verdict(Level::Attention, text);
    };
    match replica.role.as_str() {
        "primary" => primary(node, replica, cluster, office),
        "secondary" => secondary(node, replica, cluster, office),
        // It began just before it missed the majority, and waits for its decision.
        "promoting" if office.explain.is_some() => not_served(node, office),
        other => verdict(Level::Attention, format!("{node} is {other}")),
    }
}

fn primary(
    node: &str,
    replica: &ReplicaReport,
    cluster: &ClusterReport,
    office: &OfficeReport,
) -> Verdict {
    if !office.is_sole
        && office.lease_left_ms == 0
        && let Some(etcd) = &cluster.etcd
    {
        let text = format!(
            "clients wait: the lease of {node} is over{}. It goes on when etcd answers again, if \
             nobody took over meanwhile",
            in_etcd_words(etcd)
        );
        return verdict(Level::Attention, text);
    }
    if !office.is_sole && office.lease_left_ms == 0 {
        let text = format!(
            "clients wait: the lease of {node} is over{}. It goes on when a majority is heard \
             again, if nobody took over meanwhile",
            silent_ones(cluster)
        );
        return verdict(Level::Attention, text);
    }
    if let Some(peer) = replica.peers.iter().find(|peer| !peer.is_member) {
        return verdict(Level::Degraded, with_missing(node, replica, peer, cluster));
    }
    if let Some(peer) = replica.peers.iter().find(|peer| peer.state != "current") {
        let text = format!(
            "served by {node}; {} is in the set but {}{}. Writes wait until it is back or removed",
            peer.node,
            peer.state,
            because(peer)
        );
        return verdict(Level::Degraded, text);
    }
    let others = replica.peers.iter().map(|peer| peer.node.as_str());
    may_fail("", node, heir(node, others, cluster, office), cluster)
}

/// Who would take over: the best as the cluster ranks them, else any other that has everything.
fn heir<'a>(
    primary: &str,
    mut others: impl Iterator<Item = &'a str>,
    cluster: &ClusterReport,
    office: &'a OfficeReport,
) -> &'a str {
    let is_other = |heir: &&String| *heir != primary;
    if let Some(best) = office.heirs.iter().find(is_other) {
        return best;
    }
    let first = others.next().unwrap_or("");
    let is_online = |node: &&str| cluster.standby.iter().all(|standby| standby != node);
    [first].into_iter().chain(others).find(is_online).unwrap_or(first)
}

/// One copy lacks something; with three there may be another that does not.
fn with_missing(
    node: &str,
    replica: &ReplicaReport,
    missing: &PeerReport,
    cluster: &ClusterReport,
) -> String {
    let lacks = lacking(missing);
    match replica.peers.iter().find(|peer| peer.is_member && peer.state == "current") {
        Some(other) if one_more_ends_votes(node, &other.node, cluster) => format!(
            "served by {node}, and {} has everything too, but one more failure leaves no \
             majority{}. {lacks}",
            other.node,
            silent_ones(cluster)
        ),
        Some(other) => format!(
            "served by {node}, and {} has everything too: one of the two may fail. {lacks}",
            other.node
        ),
        None => format!("served by {node} alone: {lacks}"),
    }
}

fn secondary(
    node: &str,
    replica: &ReplicaReport,
    cluster: &ClusterReport,
    office: &OfficeReport,
) -> Verdict {
    let is_held = office.is_sole && office.lease_over_ms.is_none() || office.lease_left_ms > 0;
    if office.primary.is_empty() || office.primary == node || !is_held {
        return not_served(node, office);
    }
    let primary = &office.primary;
    let is_member = office.in_sync.iter().any(|member| member == node);
    if let Some(peer) = replica.peers.iter().find(|peer| peer.node == *primary)
        && !is_connected(peer)
    {
        let place = if is_member { "still in the set" } else { "not in sync" };
        let text = format!(
            "{primary} serves; {node} is {place} and {}{}",
            peer.state.replace("idle", "not connected"),
            because(peer)
        );
        return verdict(Level::Degraded, text);
    }
    if !is_member || replica.data != "up_to_date" {
        return verdict(Level::Degraded, catching_up(primary, node, &replica.data));
    }
    let heir = heir(primary, std::iter::once(node), cluster, office);
    may_fail(&format!("{primary} serves. "), primary, heir, cluster)
}

/// All copies are equal: what keeps a failure from being harmless?
fn may_fail(who: &str, primary: &str, heir: &str, cluster: &ClusterReport) -> Verdict {
    if cluster.is_paused {
        let text = format!(
            "{who}{heir} has everything, but automation is paused: nobody takes over by itself. \
             replctl resume"
        );
        return verdict(Level::Degraded, text);
    }
    if cluster.standby.iter().any(|node| node == heir) {
        let text = format!(
            "{who}{heir} has everything, but is on standby: nobody takes over if {primary} fails. \
             replctl online {heir}"
        );
        return verdict(Level::Degraded, text);
    }
    let silent = silent_ones(cluster);
    if let Some(etcd) = cluster.etcd.as_ref().filter(|it| one_more_ends_majority(it)) {
        let text = format!(
            "{who}{heir} has everything, but one more failure leaves etcd no majority{}. Bring \
             that back",
            in_etcd_words(etcd)
        );
        return verdict(Level::Degraded, text);
    }
    if !silent.is_empty() && cluster.etcd.is_none() && one_more_ends_votes(primary, heir, cluster) {
        let text = format!(
            "{who}{heir} has everything, but one more failure leaves no majority{silent}. Bring \
             that back"
        );
        return verdict(Level::Degraded, text);
    }
    let takeover_ms = cluster.lease_ms * BEYOND_LEASE_PERMILLE / 1_000 + TAKEOVER_MS;
    let text = format!(
        "safe. {who}Any one node may fail now; {heir} would take over in about {}.{} s",
        takeover_ms / 1_000,
        takeover_ms % 1_000 / 100
    );
    verdict(Level::Safe, text)
}

/// Whether those who are heard are no majority any more when one of them fails: for the primary,
/// or, when that is the one, for who would take over. A vote counts when both hear each other.
fn one_more_ends_votes(primary: &str, heir: &str, cluster: &ClusterReport) -> bool {
    let voters = cluster.nodes.iter().filter(|node| node.votes || lost_its_vote(node)).count();
    let heard: Vec<&NodeReport> =
        cluster.nodes.iter().filter(|node| node.votes && is_heard(node)).collect();
    let ends_with = |failed: &NodeReport| {
        let leader = if failed.name == primary { heir } else { primary };
        let votes = heard.iter().filter(|it| {
            it.name != failed.name && (it.name == leader || hear_each_other(cluster, leader, it))
        });
        votes.count() * 2 <= voters
    };
    cluster.etcd.is_none()
        && (heard.len().saturating_sub(1) * 2 <= voters || heard.iter().any(|it| ends_with(it)))
}

/// Whether nothing between two nodes is lost, as far as they tell.
fn hear_each_other(cluster: &ClusterReport, one: &str, two: &NodeReport) -> bool {
    let hears_two = cluster
        .nodes
        .iter()
        .filter(|it| it.name == one)
        .all(|it| it.does_not_hear.iter().all(|name| *name != two.name));
    hears_two && two.does_not_hear.iter().all(|name| name != one)
}

fn is_heard(node: &NodeReport) -> bool {
    matches!(node.state.as_str(), "here" | "reachable")
}

/// Whether a vote is recorded for a node, and what answers as it may not give it.
fn lost_its_vote(node: &NodeReport) -> bool {
    !node.votes && node.trouble.as_ref().is_some_and(|why| why.code != "not_a_voter")
}

/// `: gamma is silent for 3.1 s`, `: gamma does not hear beta`, or nothing.
fn silent_ones(cluster: &ClusterReport) -> String {
    let mut missing: Vec<String> = cluster
        .nodes
        .iter()
        .filter(|node| !is_heard(node) || lost_its_vote(node))
        .map(|node| match node.state.as_str() {
            "silent" => {
                let ms = node.silent_ms;
                format!("{} is silent for {}.{} s", node.name, ms / 1_000, ms % 1_000 / 100)
            }
            "reachable" => format!("{} has no vote", node.name),
            other => format!("{} is {other}", node.name),
        })
        .collect();
    for node in cluster.nodes.iter().filter(|node| !node.does_not_hear.is_empty()) {
        missing.push(format!("{} does not hear {}", node.name, node.does_not_hear.join(" and ")));
    }
    if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) }
}

/// Whether half of the members of etcd that the file names are away already.
fn one_more_ends_majority(etcd: &EtcdReport) -> bool {
    let lost = etcd.endpoints.iter().filter(|it| is_lost(it)).count();
    lost > 0 && (lost + 1) * 2 >= etcd.endpoints.len()
}

fn is_lost(endpoint: &EtcdEndpoint) -> bool {
    matches!(endpoint.state.as_str(), "unreachable" | "no_leader")
}

/// `: 192.0.2.1:2379 is unreachable`, or etcd's own words.
fn in_etcd_words(etcd: &EtcdReport) -> String {
    let lost: Vec<String> = etcd
        .endpoints
        .iter()
        .filter(|it| is_lost(it))
        .map(|it| format!("{} {}", it.address, it.state.replace('_', " ")))
        .collect();
    match &etcd.trouble {
        _ if !lost.is_empty() => format!(": {}", lost.join(", ")),
        Some(trouble) => format!(": {}", trouble.why),
        None => String::new(),
    }
}

fn not_served(node: &str, office: &OfficeReport) -> Verdict {
    let text = match &office.explain {
        Some(explanation) => {
            let refusal = &explanation.refusal;
            let rule = if refusal.rule.is_empty() {
                String::new()
            } else {
                format!(" ({})", refusal.rule)
            };
            format!(
                "not served as far as {node} knows: {}{rule}. Next: {}",
                refusal.why, refusal.next
            )
        }
        None => format!("not served for the moment: {node} is about to take over"),
    };
    verdict(Level::Attention, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Explanation;
    use crate::control::RefusalReport;

    fn node(name: &str, state: &str) -> NodeReport {
        NodeReport {
            name: name.into(),
            state: state.into(),
            votes: true,
            silent_ms: 3_140,
            ..NodeReport::default()
        }
    }

    fn cluster() -> ClusterReport {
        ClusterReport {
            has_majority: true,
            lease_ms: 1_000,
            nodes: vec![
                node("alpha", "here"),
                node("beta", "reachable"),
                node("gamma", "reachable"),
            ],
            resources: vec![OfficeReport {
                name: "shop".into(),
                primary: "alpha".into(),
                in_sync: vec!["alpha".into(), "beta".into()],
                lease_left_ms: 800,
                ..OfficeReport::default()
            }],
            ..ClusterReport::default()
        }
    }

    fn resource(role: &str, peer: &str) -> ResourceReport {
        let peer = PeerReport {
            node: peer.into(),
            state: "current".into(),
            is_member: true,
            ..PeerReport::default()
        };
        ResourceReport {
            name: "shop".into(),
            state: "up".into(),
            replica: Some(ReplicaReport {
                role: role.into(),
                data: "up_to_date".into(),
                peers: vec![peer],
                ..ReplicaReport::default()
            }),
            ..ResourceReport::default()
        }
    }

    #[test]
    fn a_whole_cluster_says_who_would_take_over_and_when() {
        let primary = of(&resource("primary", "beta"), "alpha", &cluster());
        assert_eq!(primary.level, Level::Safe);
        let text = "safe. Any one node may fail now; beta would take over in about 1.3 s";
        assert_eq!(primary.text, text);
        let secondary = of(&resource("secondary", "alpha"), "beta", &cluster());
        assert_eq!(secondary.level, Level::Safe);
        assert!(secondary.text.starts_with("safe. alpha serves."), "{}", secondary.text);
    }

    #[test]
    fn what_keeps_others_from_taking_over_is_named() {
        let mut paused = cluster();
        paused.is_paused = true;
        let mut standby = cluster();
        standby.standby = vec!["beta".into()];
        let mut silent = cluster();
        silent.nodes[2] = node("gamma", "silent");
        for (cluster, words) in [
            (paused, "replctl resume"),
            (standby, "replctl online beta"),
            (silent, "gamma is silent for 3.1 s"),
        ] {
            let verdict = of(&resource("primary", "beta"), "alpha", &cluster);
            assert_eq!(verdict.level, Level::Degraded, "{}", verdict.text);
            assert!(verdict.text.contains(words), "{}", verdict.text);
        }
    }

    #[test]
    fn a_vote_that_is_lost_on_its_way_counts_for_whoever_needs_it() {
        let told = |deaf: usize, to: &str| {
            let mut cluster = cluster();
            cluster.nodes[deaf].does_not_hear = vec![to.into()];
            [("primary", "beta", "alpha"), ("secondary", "alpha", "beta")]
                .map(|(role, peer, node)| of(&resource(role, peer), node, &cluster))
        };
        // Alpha needs gamma when beta fails, beta needs it when alpha fails.
        for (deaf, to) in [(2, "alpha"), (2, "beta"), (1, "gamma"), (0, "gamma")] {
            let name = ["alpha", "beta", "gamma"][deaf];
            for verdict in told(deaf, to) {
                assert_eq!(verdict.level, Level::Degraded, "{}", verdict.text);
                let words = format!("leaves no majority: {name} does not hear {to}. Bring");
                assert!(verdict.text.contains(&words), "{}", verdict.text);
            }
        }
        // Where neither needs the other, nothing is lost: three of five outlive any one.
        let mut cluster = cluster();
        cluster.nodes.push(node("delta", "reachable"));
        cluster.nodes.push(node("zeta", "reachable"));
        cluster.nodes[3].does_not_hear = vec!["zeta".into()];
        let verdict = of(&resource("primary", "beta"), "alpha", &cluster);
        assert_eq!(verdict.level, Level::Safe, "{}", verdict.text);
    }

    #[test]
    fn with_three_copies_one_that_is_away_is_named_and_whether_more_may_fail() {
        let mut cluster = cluster();
        cluster.resources[0].heirs = vec!["alpha".into(), "gamma".into(), "beta".into()];
        let mut three = resource("primary", "beta");
        let peers = &mut three.replica.as_mut().unwrap().peers;
        peers.push(PeerReport { node: "gamma".into(), ..peers[0].clone() });
        let whole = of(&three, "alpha", &cluster).text;
        assert!(whole.contains("gamma would take over"), "{whole}");
        let peers = &mut three.replica.as_mut().unwrap().peers;
        (peers[0].is_member, peers[0].state) = (false, "syncing".into());
        let syncing = of(&three, "alpha", &cluster).text;
        assert!(syncing.contains("gamma has everything too: one of the two may fail"), "{syncing}");
        cluster.nodes[1] = node("beta", "silent");
        let gone = of(&three, "alpha", &cluster).text;
        assert!(gone.contains("one more failure leaves no majority: beta is silent"), "{gone}");
        // Four voters outlive one, and then no other.
        cluster.nodes[1] = node("beta", "reachable");
        cluster.nodes.push(node("delta", "silent"));
        let fourth = of(&three, "alpha", &cluster).text;
        assert!(fourth.contains("no majority: delta is silent"), "{fourth}");
        cluster.nodes.push(node("zeta", "reachable"));
        let fifth = of(&three, "alpha", &cluster).text;
        assert!(fifth.contains("one of the two may fail"), "{fifth}");
    }

    #[test]
    fn a_primary_without_a_lease_says_who_is_missing() {
        let mut cluster = cluster();
        cluster.resources[0].lease_left_ms = 0;
        cluster.nodes[1] = node("beta", "silent");
        let verdict = of(&resource("primary", "beta"), "alpha", &cluster);
        assert_eq!(verdict.level, Level::Attention);
        assert!(verdict.text.contains("beta is silent for 3.1 s"), "{}", verdict.text);
    }

    #[test]
    fn the_only_member_does_not_serve_when_nobody_hears_it() {
        let mut cluster = cluster();
        let office = &mut cluster.resources[0];
        office.is_sole = true;
        office.in_sync = vec!["alpha".into()];
        (office.lease_left_ms, office.lease_over_ms) = (0, None);
        let serves = of(&resource("secondary", "alpha"), "beta", &cluster);
        assert!(serves.text.starts_with("alpha serves; beta is"), "{}", serves.text);
        let office = &mut cluster.resources[0];
        office.lease_over_ms = Some(4_000);
        office.explain = Some(Explanation {
            refusal: RefusalReport {
                code: "sole".into(),
                rule: "R5d".into(),
                why: "alpha was the only member".into(),
                next: "bring alpha back".into(),
            },
            since_ms: 4_000,
        });
        let text = "not served as far as beta knows: alpha was the only member (R5d). Next: bring \
                    alpha back";
        for role in ["secondary", "promoting"] {
            let verdict = of(&resource(role, "alpha"), "beta", &cluster);
            assert_eq!(verdict.level, Level::Attention);
            assert_eq!(verdict.text, text);
        }
    }

    #[test]
    fn a_secondary_that_does_not_take_over_says_why_and_what_next() {
        let mut cluster = cluster();
        cluster.resources[0].lease_left_ms = 0;
        cluster.resources[0].explain = Some(Explanation {
            refusal: RefusalReport {
                code: "not_a_member".into(),
                rule: "R11a".into(),
                why: "beta is stale".into(),
                next: "bring alpha back".into(),
            },
            since_ms: 5,
        });
        let verdict = of(&resource("secondary", "alpha"), "beta", &cluster);
        assert_eq!(verdict.level, Level::Attention);
        assert!(verdict.text.contains("beta is stale (R11a). Next: bring alpha back"));
    }
}

//! The state of a resource in one sentence that a tired person understands at night: is it safe,
//! what may fail next, and what to type if something should change.

mod in_cluster;
mod services;

use serde::{Deserialize, Serialize};

use crate::report::{PeerReport, ReplicaReport, ResourceReport};

/// How good or bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every acknowledged write is on two nodes and the service can be served.
    Safe,
    /// Served, or could be, but one more failure may stop it.
    Degraded,
    /// Not served, or somebody has to decide.
    #[default]
    Attention,
}

/// The level and the sentence.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// How good or bad.
    pub level: Level,
    /// In words.
    pub text: String,
}

fn verdict(level: Level, text: String) -> Verdict {
    Verdict { level, text }
}

pub use in_cluster::of as in_cluster;
pub use services::mention as mention_services;

/// The verdict of a node on one of its resources, where no majority decides.
pub fn of(resource: &ResourceReport, node: &str) -> Verdict {
    let name = &resource.name;
    if let Some(found) = trouble(resource, node) {
        return found;
    }
    let replica = resource.replica.as_ref().expect("a resource without one is trouble");
    match replica.role.as_str() {
        "primary" => primary(name, node, replica),
        "secondary" => secondary(name, node, replica),
        other => verdict(Level::Attention, format!("{node} is {other}")),
    }
}

/// What is wrong whoever decides: not up, no disk, diverged.
fn trouble(resource: &ResourceReport, node: &str) -> Option<Verdict> {
    let name = &resource.name;
    let Some(replica) = &resource.replica else {
        let text = match resource.state.as_str() {
            "down" => format!("down on {node}. Start it with: replctl up {name}"),
            "failed" => format!("cannot run on {node}: {}", resource.why),
            other => format!("{other} on {node}: {}", resource.why),
        };
        return Some(verdict(Level::Attention, text));
    };
    match replica.data.as_str() {
        "failed" => {
            let text = format!("the disk of {node} failed: {}", first_of(&resource.warnings));
            return Some(verdict(Level::Attention, text));
        }
        "diverged" => return Some(diverged_here(name, node, replica)),
        _ => {}
    }
    let peer = replica.peers.iter().find(|peer| peer.diverged_blocks > 0)?;
    let text = format!(
        "{} has {} blocks that nobody else has, from before the last forced promotion. Save what \
         is needed, then on {}: replctl resync {name} --discard",
        peer.node, peer.diverged_blocks, peer.node
    );
    Some(verdict(Level::Degraded, text))
}

/// A primary that would be fenced and replaced when it is lost says so instead of naming the
/// command for it.
pub fn mention_fencing(resource: &mut ResourceReport, node: &str, peer: &str, agent: &str) {
    let is_primary = resource.replica.as_ref().is_some_and(|replica| replica.role == "primary");
    if is_primary && resource.verdict.level == Level::Safe {
        resource.verdict.text = format!(
            "safe. Any one node may fail now; when {node} is lost, {peer} switches it off \
             ({agent}) and takes over"
        );
    }
}

fn first_of(warnings: &[String]) -> &str {
    warnings.first().map_or("see the log", String::as_str)
}

fn diverged_here(name: &str, node: &str, replica: &ReplicaReport) -> Verdict {
    let other = replica.peers.first().map_or("the other node", |peer| peer.node.as_str());
    let text = format!(
        "{node} was primary when {other} was promoted by force: its last writes are not on \
         {other}. Save what is needed, then give them up on {node}: replctl resync {name} --discard"
    );
    verdict(Level::Attention, text)
}

fn primary(name: &str, node: &str, replica: &ReplicaReport) -> Verdict {
    if replica.peers.is_empty() {
        let text = format!("served by {node}. There is no second copy: nothing may fail");
        return verdict(Level::Degraded, text);
    }
    if let Some(peer) = replica.peers.iter().find(|peer| !peer.is_member) {
        return verdict(Level::Degraded, format!("served by {node} alone: {}", lacking(peer)));
    }
    if replica.waits.iter().any(|wait| wait.party == "fence") {
        let peer = &replica.peers[0].node;
        let text = format!(
            "clients wait: {peer} is lost and may take over. They go on when {peer} is off for \
             sure, stands back, or is here again. When you have switched it off: replctl fence \
             {peer} --is-off"
        );
        return verdict(Level::Attention, text);
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
    let peer = &replica.peers[0].node;
    let text = format!(
        "safe. Any one node may fail now. There is no witness, so roles change by hand: if {node} \
         is lost, on {peer}: replctl promote {name} --old-primary-is-off"
    );
    verdict(Level::Safe, text)
}

fn lacking(peer: &PeerReport) -> String {
    let lacks = mebibytes(peer.dirty_bytes);
    match peer.state.as_str() {
        "syncing" | "joining" => {
            let total = peer.resync_total_bytes.max(1);
            let done = total - peer.resync_left_bytes.min(total);
            let percent = done * 100 / total;
            format!("{} is being brought up to date, {percent} % done", peer.node)
        }
        state => format!(
            "{} is {}{} and lacks {lacks} so far. Nothing is lost while {} runs",
            peer.node,
            state.replace('_', " "),
            because(peer),
            "this node"
        ),
    }
}

/// A replica that lacks something, and whose primary is here.
fn catching_up(primary: &str, node: &str, data: &str) -> String {
    match data {
        "outdated" => format!(
            "{primary} serves; {node} is outdated and waits until {primary} brings it up to date"
        ),
        data => {
            let data = data.replace('_', " ");
            format!("{primary} serves; {node} is {data} and being brought up to date")
        }
    }
}

fn because(peer: &PeerReport) -> String {
    if peer.why.is_empty() { String::new() } else { format!(" ({})", peer.why) }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn secondary(name: &str, node: &str, replica: &ReplicaReport) -> Verdict {
    if replica.generation == 0 && replica.in_sync.is_empty() {
        let text = format!(
            "new: no node holds the data yet. On the node with the data (or any, when the disks \
             are empty): replctl down {name}; replctl init {name} --from {node}; replctl up {name}"
        );
        return verdict(Level::Attention, text);
    }
    let primary_peer = replica.peers.iter().find(|peer| peer.role == "primary");
    let in_set = replica.in_sync.iter().any(|member| member == node);
    match (primary_peer, replica.data.as_str()) {
        (Some(peer), "up_to_date") if in_set => {
            let text = format!("safe. {} serves, {node} has everything and stands by", peer.node);
            verdict(Level::Safe, text)
        }
        (Some(peer), data) => verdict(Level::Degraded, catching_up(&peer.node, node, data)),
        (None, "up_to_date") if in_set => not_served(name, node, replica),
        (None, data) if replica.peers.iter().any(|peer| peer.is_member && is_connected(peer)) => {
            let holders = replica.peers.iter().filter(|peer| peer.is_member && is_connected(peer));
            let holder = holders.map(|peer| peer.node.as_str()).next().unwrap_or("?");
            let text = format!(
                "not served: nobody is primary. {node} is {} and will be brought up to date once \
                 {holder} serves; on {holder}: replctl promote {name}",
                data.replace('_', " ")
            );
            verdict(Level::Attention, text)
        }
        (None, data) => {
            let others = replica
                .peers
                .iter()
                .map(|peer| format!("{} is {}{}", peer.node, peer.state, because(peer)))
                .collect::<Vec<_>>()
                .join(", ");
            let text = format!(
                "not served as far as {node} knows, and its data are {}; {others}. Bring the other \
                 node back, it has what is missing here",
                data.replace('_', " ")
            );
            verdict(Level::Attention, text)
        }
    }
}

fn is_connected(peer: &PeerReport) -> bool {
    !matches!(peer.state.as_str(), "disconnected" | "refused" | "connecting")
}

fn not_served(name: &str, node: &str, replica: &ReplicaReport) -> Verdict {
    let text = if replica.peers.iter().all(is_connected) {
        format!("not served: nobody is primary. {node} is up to date: replctl promote {name}")
    } else {
        let peer = &replica.peers[0];
        format!(
            "not served as far as {node} knows: {} is {}{}. {node} is up to date. Only if {} is \
             switched off or its service is stopped: replctl promote {name} --old-primary-is-off",
            peer.node,
            peer.state,
            because(peer),
            peer.node
        )
    };
    verdict(Level::Attention, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(role: &str, peer: PeerReport) -> ResourceReport {
        let in_sync = if peer.is_member { vec!["alpha", "beta"] } else { vec!["alpha"] };
        ResourceReport {
            name: "shop".into(),
            state: "up".into(),
            replica: Some(ReplicaReport {
                role: role.into(),
                data: "up_to_date".into(),
                generation: 4,
                in_sync: in_sync.into_iter().map(String::from).collect(),
                peers: vec![peer],
                ..ReplicaReport::default()
            }),
            ..ResourceReport::default()
        }
    }

    fn beta(state: &str, is_member: bool) -> PeerReport {
        PeerReport {
            node: "beta".into(),
            state: state.into(),
            is_member,
            dirty_bytes: 3 << 20,
            ..PeerReport::default()
        }
    }

    #[test]
    fn two_current_members_are_safe() {
        let verdict = of(&resource("primary", beta("current", true)), "alpha");
        assert_eq!(verdict.level, Level::Safe);
        assert!(verdict.text.starts_with("safe. Any one node may fail now."), "{}", verdict.text);
    }

    #[test]
    fn with_fencing_a_safe_primary_says_what_happens_by_itself() {
        let mut resource = resource("primary", beta("current", true));
        resource.verdict = of(&resource, "alpha");
        mention_fencing(&mut resource, "alpha", "beta", "fence_x");
        assert!(resource.verdict.text.ends_with("beta switches it off (fence_x) and takes over"));
    }

    #[test]
    fn a_missing_peer_is_named_with_what_it_lacks() {
        let mut peer = beta("disconnected", false);
        peer.why = "connection refused".into();
        let verdict = of(&resource("primary", peer), "alpha");
        assert_eq!(verdict.level, Level::Degraded);
        let text = verdict.text;
        assert!(
            text.contains("beta is disconnected (connection refused) and lacks 3.0 MiB"),
            "{text}"
        );
    }

    #[test]
    fn a_resync_shows_how_far_it_is() {
        let mut peer = beta("syncing", false);
        peer.resync_total_bytes = 200;
        peer.resync_left_bytes = 50;
        let verdict = of(&resource("primary", peer), "alpha");
        assert!(verdict.text.contains("75 % done"), "{}", verdict.text);
    }

    #[test]
    fn a_lonely_secondary_is_told_when_it_may_be_promoted() {
        let verdict = of(&resource("secondary", beta("disconnected", true)), "alpha");
        assert_eq!(verdict.level, Level::Attention);
        assert!(verdict.text.contains("Only if beta is switched off"), "{}", verdict.text);
    }

    #[test]
    fn an_outdated_secondary_names_the_node_that_can_serve() {
        let mut resource = resource("secondary", beta("idle", true));
        let replica = resource.replica.as_mut().unwrap();
        replica.data = "outdated".into();
        replica.in_sync = vec!["beta".into()];
        let text = of(&resource, "alpha").text;
        assert!(text.ends_with("once beta serves; on beta: replctl promote shop"), "{text}");
    }

    #[test]
    fn a_resource_that_is_not_up_says_why() {
        let report = ResourceReport {
            name: "shop".into(),
            state: "failed".into(),
            why: "cannot open /dev/x: No such file".into(),
            ..ResourceReport::default()
        };
        let verdict = of(&report, "alpha");
        assert_eq!(verdict.text, "cannot run on alpha: cannot open /dev/x: No such file");
    }
}

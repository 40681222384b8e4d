//! `resync --wait`: waits until every replica is in the in-sync set, with a bar on a terminal.

use std::io::IsTerminal;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use replicator::report::{PeerReport, ReplicaReport, ResourceReport};
use serde_json::json;

use crate::remote::fetch_status;
use crate::{EXIT_DONE, EXIT_REFUSED, Failure};

const POLL: Duration = Duration::from_millis(200);

/// How far a resource is.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Everything is equal.
    Done,
    /// So many bytes of so many are copied.
    Copying { peer: String, done_bytes: u64, total_bytes: u64 },
    /// Nothing moves, for this reason.
    Waiting(String),
}

/// Waits for the end; gives up after the limit.
pub fn wait(
    socket: &Path,
    resource: &str,
    limit: Option<Duration>,
    wants_json: bool,
) -> Result<u8, Failure> {
    let bar = new_bar(wants_json);
    let started = Instant::now();
    loop {
        let report = fetch_status(socket, Some(resource))?;
        let stage = report.resources.first().map_or_else(
            || Stage::Waiting("the daemon does not know it".into()),
            |resource| stage_of(resource, &report.node),
        );
        match &stage {
            Stage::Done => {
                bar.finish_and_clear();
                let seconds = started.elapsed().as_secs_f64();
                if wants_json {
                    println!("{}", json!({ "done": true, "seconds": seconds }));
                } else {
                    println!("{resource}: every replica is up to date ({seconds:.1} s)");
                }
                return Ok(EXIT_DONE);
            }
            Stage::Copying { peer, done_bytes, total_bytes } => {
                bar.set_length(*total_bytes);
                bar.set_position(*done_bytes);
                bar.set_message(format!("{resource} with {peer}"));
            }
            Stage::Waiting(why) => bar.set_message(format!("{resource}: {why}")),
        }
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            bar.finish_and_clear();
            let state = match stage {
                Stage::Copying { done_bytes, total_bytes, .. } => {
                    format!("{done_bytes} of {total_bytes} bytes are copied")
                }
                Stage::Waiting(why) => why,
                Stage::Done => unreachable!("returned above"),
            };
            let text = format!("{resource} is not up to date yet: {state}");
            return Err(Failure::new(EXIT_REFUSED, text));
        }
        thread::sleep(POLL);
    }
}

pub fn new_bar(wants_json: bool) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if wants_json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = "{msg} [{bar:30}] {percent} % · {binary_bytes_per_sec} · {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(POLL);
    bar
}

fn stage_of(resource: &ResourceReport, node: &str) -> Stage {
    let Some(replica) = &resource.replica else {
        return Stage::Waiting(format!("{} {}", resource.state, resource.why));
    };
    if let Some(copying) = replica.peers.iter().find(|peer| peer.resync_total_bytes > 0) {
        let total_bytes = copying.resync_total_bytes;
        return Stage::Copying {
            peer: copying.node.clone(),
            done_bytes: total_bytes - copying.resync_left_bytes.min(total_bytes),
            total_bytes,
        };
    }
    if is_done(replica, node) {
        return Stage::Done;
    }
    let missing = replica.peers.iter().find(|peer| !peer.is_member);
    Stage::Waiting(match missing {
        Some(peer) => state_of(peer),
        None => format!("data are {}", replica.data.replace('_', " ")),
    })
}

fn is_done(replica: &ReplicaReport, node: &str) -> bool {
    let here = replica.in_sync.iter().any(|member| member == node);
    let there = replica.peers.iter().all(|peer| peer.is_member && peer.dirty_bytes == 0);
    let connected = replica
        .peers
        .iter()
        .all(|peer| !matches!(peer.state.as_str(), "disconnected" | "refused" | "connecting"));
    here && there && connected && replica.data == "up_to_date"
}

fn state_of(peer: &PeerReport) -> String {
    let why = if peer.why.is_empty() { String::new() } else { format!(" ({})", peer.why) };
    format!("{} is {}{why}", peer.node, peer.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(peer: PeerReport, in_sync: &[&str]) -> ResourceReport {
        let replica = ReplicaReport {
            role: "primary".into(),
            data: "up_to_date".into(),
            in_sync: in_sync.iter().map(ToString::to_string).collect(),
            peers: vec![peer],
            ..ReplicaReport::default()
        };
        ResourceReport { replica: Some(replica), ..ResourceReport::default() }
    }

    #[test]
    fn members_without_dirty_blocks_are_done() {
        let peer = PeerReport {
            node: "beta".into(),
            state: "current".into(),
            is_member: true,
            ..PeerReport::default()
        };
        assert_eq!(stage_of(&resource(peer, &["alpha", "beta"]), "alpha"), Stage::Done);
    }

    #[test]
    fn a_resync_and_a_missing_peer_are_told_apart() {
        let mut peer = PeerReport {
            node: "beta".into(),
            state: "syncing".into(),
            resync_total_bytes: 100,
            resync_left_bytes: 40,
            ..PeerReport::default()
        };
        let copying = Stage::Copying { peer: "beta".into(), done_bytes: 60, total_bytes: 100 };
        assert_eq!(stage_of(&resource(peer.clone(), &["alpha"]), "alpha"), copying);
        peer.resync_total_bytes = 0;
        peer.state = "disconnected".into();
        peer.why = "refused".into();
        let waiting = Stage::Waiting("beta is disconnected (refused)".into());
        assert_eq!(stage_of(&resource(peer, &["alpha"]), "alpha"), waiting);
    }
}

//! `resize`: a volume grows. The daemon answers when it has; what takes longer than an answer may
//! is asked for again, with the reason of the wait. So the last answer may be about a growth beyond
//! the one that was waited for.

use std::path::Path;
use std::thread;
use std::time::Duration;

use replicator::control::{Order, Reply};
use replicator::report::{ReplicaReport, ResourceReport, StatusReport};
use serde_json::json;

use crate::remote::{ask_daemon, fetch_status, refusal_failure, say};
use crate::show::bytes;
use crate::{EXIT_DONE, EXIT_REFUSED, Failure};

const POLL: Duration = Duration::from_secs(1);

/// Orders it and waits for the end, or only says what there is.
pub fn run(
    socket: &Path,
    resource: &str,
    size_bytes: Option<u64>,
    dry_run: bool,
    wants_json: bool,
) -> Result<u8, Failure> {
    if dry_run {
        return look(&fetch_status(socket, Some(resource))?, wants_json);
    }
    let order = Order::Resize { resource: resource.to_owned(), size_bytes };
    let mut size_before = None;
    let mut told = String::new();
    loop {
        let reply = ask_daemon(socket, order.clone())?;
        let Reply::Refused(refusal) = &reply else { return say(&reply, wants_json) };
        let code = refusal.code.as_str();
        if size_before.is_none() && code != "still_waiting" {
            return Err(refusal_failure(refusal));
        }
        let report = fetch_status(socket, Some(resource))?;
        let size = replica(&report).map_or(0, |(_, replica)| replica.size_bytes);
        let before = *size_before.get_or_insert(size);
        if code == "no_room" && size > before {
            return say(&Reply::Done(format!("{resource} has {size} bytes")), wants_json);
        }
        if !["still_waiting", "busy"].contains(&code) {
            return Err(refusal_failure(refusal));
        }
        let wait = replica(&report).and_then(|(_, replica)| replica.waits.first());
        let what = wait.map_or(String::new(), |wait| wait.what.clone());
        if what != told && !wants_json {
            eprintln!("replctl: it waits for {what}");
            told = what;
        }
        thread::sleep(POLL);
    }
}

fn replica(report: &StatusReport) -> Option<(&ResourceReport, &ReplicaReport)> {
    let resource = report.resources.first()?;
    Some((resource, resource.replica.as_ref()?))
}

fn look(report: &StatusReport, wants_json: bool) -> Result<u8, Failure> {
    let Some((resource, replica)) = replica(report) else {
        return Err(Failure::new(EXIT_REFUSED, "the resource is not up here"));
    };
    if wants_json {
        let peers: Vec<_> = replica
            .peers
            .iter()
            .map(|peer| json!({ "node": peer.node, "room_bytes": peer.room_bytes }))
            .collect();
        let answer = json!({
            "size_bytes": replica.size_bytes,
            "room_bytes": replica.room_bytes,
            "added_bytes": replica.added_bytes,
            "peers": peers,
        });
        println!("{answer}");
        return Ok(EXIT_DONE);
    }
    println!("{}: {}", resource.name, amount(replica.size_bytes));
    let added = match replica.added_bytes {
        0 => String::new(),
        added => format!(", and what can be made of {} that were added to its disk", bytes(added)),
    };
    println!("  {}: room for {}{added}", report.node, amount(replica.room_bytes));
    for peer in &replica.peers {
        match peer.room_bytes {
            0 => println!("  {}: not connected, or its build cannot grow a volume", peer.node),
            room => println!(
                "  {}: room for {}, more if its disk was extended",
                peer.node,
                amount(room)
            ),
        }
    }
    Ok(EXIT_DONE)
}

fn amount(number: u64) -> String {
    format!("{number} bytes ({})", bytes(number))
}

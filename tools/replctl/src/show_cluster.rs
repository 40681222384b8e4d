//! The cluster in words: who is there, who is primary and why, and why not.

use std::fmt::Write;

use replicator::cluster::{
    Applied, ClusterReport, EtcdReport, HistoryEntry, NodeReport, OfficeReport, ReplicaFacts,
};
use replicator::control::RefusalReport;

use crate::show::{ago, refusal, span};

/// The head of a status: nodes, majority, switches.
pub fn head(out: &mut String, cluster: &ClusterReport) {
    let heard = |node: &&NodeReport| matches!(node.state.as_str(), "here" | "reachable");
    let count = cluster.nodes.iter().filter(heard).count();
    let majority = if cluster.etcd.is_some() {
        match cluster.has_majority {
            true => "etcd answers".to_owned(),
            false => format!("ETCD SILENT for {}", span(cluster.no_majority_ms)),
        }
    } else if cluster.has_majority {
        "majority".to_owned()
    } else {
        format!("NO MAJORITY for {}", span(cluster.no_majority_ms))
    };
    let epoch = match cluster.epoch {
        0 | 1 => String::new(),
        epoch => format!(" of epoch {epoch}"),
    };
    let automation = if cluster.is_paused { "automation PAUSED" } else { "automation on" };
    let _ = writeln!(
        out,
        "{count} of {} nodes · {majority} · {automation} · register revision {}{epoch}",
        cluster.nodes.len(),
        cluster.revision
    );
    if let Some(report) = &cluster.etcd {
        etcd(out, report);
    }
    if !cluster.proposing.is_empty() {
        let since = span(cluster.proposing_ms);
        let _ = writeln!(out, "  proposing for {since}: {}", cluster.proposing);
    }
    for node in &cluster.standby {
        let _ = writeln!(out, "  {node} is on standby");
    }
    for difference in &cluster.differences {
        let _ = writeln!(out, "  warning: {difference}; replctl apply");
    }
    for (count, last) in [&cluster.refused_messages, &cluster.strange_messages] {
        if *count > 0 {
            let _ = writeln!(out, "  {count} messages were refused, the last: {last}");
        }
    }
}

/// etcd, when it keeps the register: who of it is there, and what is wrong.
fn etcd(out: &mut String, report: &EtcdReport) {
    let reachable = report.endpoints.iter().filter(|it| it.state != "unreachable").count();
    let _ = writeln!(
        out,
        "  etcd {} · {reachable} of {} endpoints reachable",
        report.prefix,
        report.endpoints.len()
    );
    for endpoint in &report.endpoints {
        let state = match endpoint.state.as_str() {
            "unreachable" => format!("UNREACHABLE: {}", endpoint.why),
            other => format!(
                "{} {:.1} ms · etcd {}",
                other.replace('_', " "),
                endpoint.round_trip_us as f64 / 1000.0,
                endpoint.version
            ),
        };
        let _ = writeln!(out, "    {:<21} {state}", endpoint.address);
    }
    if let Some(trouble) = &report.trouble {
        let text = refusal(trouble).replace("\n  next", "\n    next");
        let _ = writeln!(out, "    {}", text.trim_start_matches("refused: "));
    }
}

/// The nodes that this one hears, one line each.
pub fn nodes(out: &mut String, cluster: &ClusterReport) {
    let is_shown = |node: &&NodeReport| node.state != "here" || node.trouble.is_some();
    for node in cluster.nodes.iter().filter(is_shown) {
        let kind = if node.is_witness { "witness" } else { "data node" };
        let state = match node.state.as_str() {
            "reachable" if node.round_trip_us > 0 => {
                format!("reachable {:.1} ms", node.round_trip_us as f64 / 1000.0)
            }
            "silent" => format!("SILENT for {}", span(node.silent_ms)),
            other => other.to_owned(),
        };
        let vote = if node.votes { "" } else { " · has no vote" };
        let lost = match &node.does_not_hear[..] {
            [] => String::new(),
            names => format!(" · DOES NOT HEAR {}", names.join(" ")),
        };
        let _ = writeln!(out, "  {:<8} {kind:<10} {state}{vote}{lost}", node.name);
        if let Some(trouble) = &node.trouble {
            let text = refusal(trouble).replace("\n  next", "\n           next");
            let _ = writeln!(out, "           {}", text.trim_start_matches("refused: "));
        }
    }
}

/// The office of a resource: who holds it, how long the lease runs, or since when it is over and
/// what is waited for, where it should go.
pub fn office(out: &mut String, office: &OfficeReport) {
    let lease = match office.lease_over_ms {
        Some(over) if office.is_sole => {
            let silent = span(over);
            format!("lease without end (the only member), silent for {silent}: {}", office.awaits)
        }
        None if office.is_sole => "lease without end (the only member)".to_owned(),
        Some(over) => format!("lease over for {}: {}", span(over), office.awaits),
        None => format!("lease {:.1} s", office.lease_left_ms as f64 / 1000.0),
    };
    let primary = match office.primary.as_str() {
        "" => "nobody is primary".to_owned(),
        primary => format!("primary {primary} since generation {}, {lease}", office.tenure),
    };
    let wanted = match office.wanted.as_str() {
        "" => String::new(),
        node => format!(" · wanted on {node}"),
    };
    let _ = writeln!(out, "  office: {primary}{wanted}");
}

/// Resources as a witness, or a node without them, sees them.
pub fn office_alone(out: &mut String, report: &OfficeReport) {
    let in_sync =
        if report.in_sync.is_empty() { "nobody".to_owned() } else { report.in_sync.join(" ") };
    let _ =
        writeln!(out, "{} · generation {} · in sync: {in_sync}", report.name, report.generation);
    office(out, report);
    for replica in &report.replicas {
        let data = replica.data.replace('_', " ");
        let _ = writeln!(out, "  {:<8} {:<10} {data}", replica.node, replica.role);
    }
}

/// Why things are as they are.
pub fn explain(out: &mut String, report: &OfficeReport, node: &str) {
    office_alone(out, report);
    let has_trouble = |it: &ReplicaFacts| it.node == node && it.trouble.is_some();
    match &report.explain {
        None if report.replicas.iter().any(has_trouble) => {}
        None => {
            let _ = writeln!(out, "{node}: all is as it should be");
        }
        Some(explanation) => {
            let what = match report.primary == node {
                true => "keeps the office",
                false => "does not take the office",
            };
            let _ = writeln!(
                out,
                "{node} {what} (for {}): {}",
                span(explanation.since_ms),
                refusal(&explanation.refusal).trim_start_matches("refused: ")
            );
        }
    }
    for replica in &report.replicas {
        if let Some(hindrance) = &replica.hindrance {
            let _ = writeln!(
                out,
                "{} could not be promoted (for {}): {}",
                replica.node,
                span(replica.hindered_ms),
                refusal(hindrance).trim_start_matches("refused: ")
            );
        }
        if let Some(trouble) = &replica.trouble {
            let text = no_services(&replica.node, trouble);
            let _ = writeln!(out, "for {}: {text}", span(replica.troubled_ms));
        }
        if !replica.sees.is_empty() {
            let _ =
                writeln!(out, "{} sees of the clients {}", replica.node, replica.sees.join(", "));
        }
    }
}

/// Why a node runs no services, or clients do not reach those that it runs.
pub fn no_services(node: &str, trouble: &RefusalReport) -> String {
    let what = match trouble.code.as_str() {
        "clients_unreachable" => "is the last choice for services",
        _ => "cannot run services",
    };
    format!("{node} {what}: {}", refusal(trouble).trim_start_matches("refused: "))
}

/// What became of each difference between file and register.
pub fn applied(applied: &[Applied], dry_run: bool) -> String {
    if applied.is_empty() {
        return "the register is as the file says\n".to_owned();
    }
    let mut out = String::new();
    for it in applied {
        match &it.refused {
            None if dry_run => {
                let _ = writeln!(out, "would change: {}", it.difference);
            }
            None => {
                let _ = writeln!(out, "changed: {}", it.difference);
            }
            Some(why) => {
                let _ = writeln!(out, "left: {}\n  {}", it.difference, refusal(why));
            }
        }
    }
    out
}

/// One line of history.
pub fn history(entry: &HistoryEntry) -> String {
    let resource =
        if entry.resource.is_empty() { String::new() } else { format!(" {}", entry.resource) };
    let mut text =
        format!("{:>10}  {:>5}{resource} {}", ago(entry.at_unix_ms), entry.revision, entry.what);
    if entry.generation > 0 {
        let primary = if entry.primary.is_empty() { "nobody" } else { &entry.primary };
        let _ = write!(
            text,
            " · generation {} · primary {primary} · in sync: {}",
            entry.generation,
            entry.in_sync.join(" ")
        );
    }
    if !entry.why.is_empty() {
        let _ = write!(text, " · {}", entry.why);
    }
    if !entry.by.is_empty() {
        let _ = write!(text, " · by {}", entry.by);
    }
    if !entry.phases.is_empty() {
        let phases: Vec<String> =
            entry.phases.iter().map(|(phase, ms)| format!("{phase} {ms} ms")).collect();
        let _ = write!(text, "\n                  {}", phases.join(" · "));
    }
    if let Some(ms) = entry.paused_ms {
        let _ = write!(text, " · clients paused {} at most", span(ms));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_over_says_since_when_and_what_is_waited_for() {
        let mut report = OfficeReport {
            primary: "alpha".into(),
            tenure: 7,
            lease_left_ms: 640,
            ..OfficeReport::default()
        };
        let shown = |report: &OfficeReport| {
            let mut out = String::new();
            office(&mut out, report);
            out
        };
        assert_eq!(shown(&report), "  office: primary alpha since generation 7, lease 0.6 s\n");
        report.lease_left_ms = 0;
        report.lease_over_ms = Some(3_200);
        report.awaits = "an operator paused the automation; next: replctl resume".into();
        assert_eq!(
            shown(&report),
            "  office: primary alpha since generation 7, lease over for 3.2 s: an operator paused \
             the automation; next: replctl resume\n"
        );
        report.is_sole = true;
        report.awaits = "bring alpha back".into();
        let silent = "lease without end (the only member), silent for 3.2 s: bring alpha back\n";
        assert!(shown(&report).ends_with(silent), "{}", shown(&report));
        report.lease_over_ms = None;
        assert!(shown(&report).ends_with("lease without end (the only member)\n"));
    }
}

//! What runs on top of a resource, in words.

use std::fmt::Write;

use replicator::report::{ServiceReport, ServicesReport};

use crate::show::span;

/// One line when all is well: `running    /srv/mariadb · 192.0.2.100/24 · mariadb.service (3 d)`;
/// else one more for each service of which there is something to say.
pub fn services(out: &mut String, report: &ServicesReport) {
    let here: Vec<&ServiceReport> = report.services.iter().filter(|it| is_here(it)).collect();
    if here.is_empty() && report.trouble.is_none() {
        return;
    }
    let line: Vec<String> = here.iter().map(|it| in_line(it)).collect();
    let age = here.iter().filter(|it| it.state == "running").map(|it| it.since_ms).min();
    let age = age.map_or(String::new(), |ms| format!(" ({})", span(ms)));
    let age = if report.state == "running" { age } else { String::new() };
    let _ = writeln!(out, "           {:<10} {}{age}", report.state, line.join(" · "));
    for service in here {
        for text in remarks(service) {
            let _ = writeln!(out, "           {}: {text}", service.name);
        }
    }
    if let Some(trouble) = &report.trouble {
        let _ = writeln!(out, "           trouble: {}", trouble.why);
        let _ = writeln!(out, "           next: {}", trouble.next);
    }
    if report.needs_reset {
        let _ = writeln!(out, "           a stop hangs: only a reset of this machine ends it");
    }
}

/// Whether it matters on this node now.
fn is_here(service: &ServiceReport) -> bool {
    service.wanted || service.stopped_by_operator || service.state != "stopped"
}

fn in_line(service: &ServiceReport) -> String {
    let word = if service.suspended {
        "frozen"
    } else if service.stopped_by_operator && service.state == "stopped" {
        "stopped by operator"
    } else if service.state == "running" {
        return service.name.clone();
    } else {
        &service.state
    };
    format!("{} ({word})", service.name)
}

fn remarks(service: &ServiceReport) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(left) = service.deadline_in_ms.filter(|_| service.state != "running") {
        found.push(format!(
            "{} for {}, at most {} more",
            service.state,
            span(service.since_ms),
            span(left)
        ));
    }
    if service.state != "running" && !service.last_failure.is_empty() {
        let ago = span(service.failed_ago_ms);
        found.push(format!("{} ({ago} ago, {} failures)", service.last_failure, service.failures));
    }
    if let Some(retry) = service.retry_in_ms {
        found.push(format!("is tried again in {}", span(retry)));
    }
    if service.state == "running" && service.restarts > 0 {
        let restarts = service.restarts;
        found.push(format!("restarted {restarts} times; last: {}", service.last_failure));
    }
    if !service.warning.is_empty() {
        found.push(format!("{} (for {})", service.warning, span(service.warning_for_ms)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, state: &str, since_ms: u64) -> ServiceReport {
        ServiceReport {
            name: name.into(),
            state: state.into(),
            since_ms,
            wanted: true,
            ..ServiceReport::default()
        }
    }

    #[test]
    fn all_that_runs_is_one_line() {
        let report = ServicesReport {
            state: "running".into(),
            services: vec![
                service("/srv/mariadb", "running", 400_000_000),
                service("192.0.2.100/24", "running", 400_000_000),
                service("mariadb.service", "running", 259_200_000),
            ],
            ..ServicesReport::default()
        };
        let mut out = String::new();
        services(&mut out, &report);
        let line = "running    /srv/mariadb · 192.0.2.100/24 · mariadb.service (3 d)";
        assert_eq!(out.trim(), line);
    }

    #[test]
    fn what_does_not_run_says_why_and_when_it_is_tried_again() {
        let failed = ServiceReport {
            last_failure: "exit code 1".into(),
            failed_ago_ms: 2_000,
            failures: 3,
            retry_in_ms: Some(8_000),
            ..service("db", "stopped", 2_000)
        };
        let report = ServicesReport {
            state: "failed".into(),
            services: vec![failed],
            ..ServicesReport::default()
        };
        let mut out = String::new();
        services(&mut out, &report);
        assert!(out.contains("failed     db (stopped)"), "{out}");
        assert!(out.contains("db: exit code 1 (2.0 s ago, 3 failures)"), "{out}");
        assert!(out.contains("db: is tried again in 8.0 s"), "{out}");
    }
}

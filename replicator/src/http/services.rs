//! What Prometheus is told of services, of the guard and of the watchdog.

use failover::guard::GuardReport;

use super::families::{Families, Labels};
use super::metrics::{named, with};
use crate::report::{ServicesReport, StatusReport};

const STATES: [&str; 8] =
    ["unknown", "stopped", "starting", "running", "stopping", "killing", "failed", "stop_hangs"];

/// The services of a resource on this node.
pub(super) fn of_resource(out: &mut Families, resource: &str, services: &ServicesReport) {
    let labels = named(resource);
    let help = "Whether the services of a resource cannot run on this node.";
    let has_trouble = services.trouble.is_some();
    out.flag("replicator_services_trouble", help, labels.clone(), has_trouble);
    let help = "Whether a stop hangs that only a reset of this machine ends.";
    out.flag("replicator_services_need_reset", help, labels.clone(), services.needs_reset);
    for service in &services.services {
        let labels = with(&labels, "service", &service.name);
        let state = service.state.replace(' ', "_");
        let help = "What a service is on this node.";
        out.states("replicator_service_state", help, &labels, ("state", &STATES, &state));
        let help = "Whether a service should run on this node now.";
        out.flag("replicator_service_wanted", help, labels.clone(), service.wanted);
        let help = "Whether a service stands still, since there is no lease.";
        out.flag("replicator_service_frozen", help, labels.clone(), service.suspended);
        let help = "Restarts of a service since this node took the office.";
        out.gauge("replicator_service_restarts", help, labels, f64::from(service.restarts));
    }
}

/// Guard and watchdog; nothing on a node without services.
pub(super) fn guard(out: &mut Families, report: &StatusReport) {
    let has_services = report.resources.iter().any(|it| it.services.is_some());
    match &report.guard {
        Some(guard) => one_guard(out, guard),
        None if has_services => running(out, false),
        None => {}
    }
}

fn running(out: &mut Families, runs: bool) {
    let help = "Whether a guard withdraws services when the daemon stands still.";
    out.flag("replicator_guard_running", help, Labels::new(), runs);
}

fn one_guard(out: &mut Families, guard: &GuardReport) {
    running(out, guard.pid != 0);
    let help = "How often the guard had to be started again.";
    out.counter("replicator_guard_restarts", help, Labels::new(), guard.restarts);
    let watchdog = &guard.watchdog;
    let help = "Whether a watchdog of the kernel is armed.";
    out.flag("replicator_watchdog_armed", help, Labels::new(), watchdog.is_armed);
    if watchdog.is_armed {
        let help = "Whether the watchdog fires before another node has the addresses.";
        out.flag("replicator_watchdog_in_time", help, Labels::new(), watchdog.is_in_time);
        let help = "After how long without food the watchdog fires.";
        let timeout = f64::from(watchdog.timeout_s);
        out.gauge("replicator_watchdog_timeout_seconds", help, Labels::new(), timeout);
    }
}

#[cfg(test)]
mod tests {
    use failover::core::services::Phase;

    use super::*;
    use crate::report::{ResourceReport, ServiceReport};

    fn lines(out: Families) -> Vec<String> {
        out.into_page().body.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_phase_is_a_state() {
        use failover::core::services::Force;
        let phases = [
            Phase::Unknown,
            Phase::Stopped,
            Phase::Starting,
            Phase::Running,
            Phase::Stopping(Force::Orderly),
            Phase::Stopping(Force::Kill),
            Phase::Failed,
            Phase::StopHangs,
        ];
        assert_eq!(phases.map(|phase| phase.word().replace(' ', "_")), STATES);
    }

    #[test]
    fn a_service_that_should_run_and_does_not_is_seen() {
        let service = ServiceReport {
            name: "db".into(),
            state: "stop hangs".into(),
            wanted: true,
            restarts: 2,
            ..ServiceReport::default()
        };
        let services = ServicesReport { services: vec![service], ..ServicesReport::default() };
        let mut out = Families::default();
        of_resource(&mut out, "shop", &services);
        let lines = lines(out);
        let of = "{resource=\"shop\",service=\"db\"";
        for line in [
            format!("replicator_service_state{of},state=\"stop_hangs\"}} 1.0"),
            format!("replicator_service_state{of},state=\"running\"}} 0.0"),
            format!("replicator_service_wanted{of}}} 1.0"),
            format!("replicator_service_restarts{of}}} 2.0"),
        ] {
            assert!(lines.contains(&line), "{line} not in {lines:#?}");
        }
    }

    #[test]
    fn services_without_a_guard_are_told() {
        let mut report: StatusReport = serde_json::from_value(serde_json::json!({
            "cluster": "shop", "node": "alpha", "version": "", "pid": 1, "up_ms": 1,
            "warnings": [], "refused_greetings": [], "resources": [],
            "cluster_state": null, "fence": null
        }))
        .unwrap();
        let told = |report: &StatusReport| {
            let mut out = Families::default();
            guard(&mut out, report);
            lines(out)
        };
        assert!(!told(&report).iter().any(|line| line.contains("guard")));
        let services = Some(ServicesReport::default());
        report.resources = vec![ResourceReport { services, ..ResourceReport::default() }];
        assert!(told(&report).contains(&"replicator_guard_running 0.0".to_owned()));
        report.guard = Some(GuardReport { pid: 7, restarts: 3, ..GuardReport::default() });
        let lines = told(&report);
        assert!(lines.contains(&"replicator_guard_running 1.0".to_owned()));
        assert!(lines.contains(&"replicator_guard_restarts_total 3".to_owned()));
        assert!(lines.contains(&"replicator_watchdog_armed 0.0".to_owned()));
    }
}

//! What services change in the verdict: data that are served are of no use to anybody when what
//! runs on top of them does not.

use super::{Level, Verdict, verdict};
use crate::report::{ResourceReport, ServiceReport, ServicesReport};

/// Adds what is to be said of services to a verdict on the data.
pub fn mention(resource: &mut ResourceReport, node: &str) {
    let Some(services) = &resource.services else { return };
    if let Some(found) = of(services, &resource.verdict, &resource.name, node) {
        resource.verdict = found;
    }
}

fn of(services: &ServicesReport, data: &Verdict, name: &str, node: &str) -> Option<Verdict> {
    if services.needs_reset {
        // Also while it is tried again.
        let hanging = named(services, |it| matches!(it.state.as_str(), "stop hangs" | "killing"));
        let text = format!(
            "{hanging} must not run on {node} and cannot be stopped. Only a reset of {node} ends \
             that; a watchdog does it, where one is armed"
        );
        return Some(verdict(Level::Attention, text));
    }
    let is_missing = |it: &ServiceReport| it.wanted && it.state != "running";
    let missing = named(services, is_missing);
    match services.state.as_str() {
        "maintenance" => {
            let text = format!(
                "{}. Nobody looks after the services of {name}: replctl maintenance {name} off",
                data.text.trim_end_matches('.')
            );
            Some(verdict(data.level.max(Level::Degraded), text))
        }
        "failed" if !missing.is_empty() => {
            let why = services
                .trouble
                .as_ref()
                .map_or_else(|| first_failure(services), |trouble| trouble.why.clone());
            let text = format!(
                "the data are served by {node}, but {missing} does not run: {why}. Mend it, then: \
                 replctl clear {name}"
            );
            Some(verdict(Level::Attention, text))
        }
        "forbidden" => {
            let (why, next) = services.trouble.as_ref().map_or(("", ""), |it| (&it.why, &it.next));
            let text =
                format!("the data are served by {node}, but no service runs: {why}. Next: {next}");
            Some(verdict(Level::Attention, text))
        }
        "starting" if !missing.is_empty() && data.level < Level::Attention => {
            let text = format!("{node} is starting: {missing}");
            Some(verdict(Level::Degraded, text))
        }
        "stopping" => {
            let left = named(services, |it| it.state != "stopped");
            Some(verdict(data.level.max(Level::Degraded), format!("{node} is stopping: {left}")))
        }
        _ => services.trouble.as_ref().filter(|_| data.level < Level::Attention).map(|trouble| {
            let how = if trouble.code == "services_failed" { "did not" } else { "may not" };
            let text = format!(
                "{}. But services {how} run on {node} and it is the last choice for them: {}. \
                 Next: {}",
                data.text.trim_end_matches('.'),
                trouble.why,
                trouble.next
            );
            verdict(data.level.max(Level::Degraded), text)
        }),
    }
}

fn named(services: &ServicesReport, is_meant: impl Fn(&ServiceReport) -> bool) -> String {
    let names: Vec<&str> =
        services.services.iter().filter(|it| is_meant(it)).map(|it| it.name.as_str()).collect();
    names.join(", ")
}

fn first_failure(services: &ServicesReport) -> String {
    let failed = services.services.iter().find(|it| it.wanted && !it.last_failure.is_empty());
    failed.map_or_else(|| "it failed".to_owned(), |it| it.last_failure.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::RefusalReport;

    fn report(state: &str, service: &str) -> ResourceReport {
        let service = ServiceReport {
            name: "db".into(),
            state: service.into(),
            wanted: true,
            last_failure: "exit code 1".into(),
            ..ServiceReport::default()
        };
        ResourceReport {
            name: "shop".into(),
            verdict: verdict(Level::Safe, "safe. Any one node may fail now".into()),
            services: Some(ServicesReport {
                state: state.into(),
                services: vec![service],
                ..ServicesReport::default()
            }),
            ..ResourceReport::default()
        }
    }

    #[test]
    fn services_that_run_leave_the_verdict_as_it_is() {
        let mut report = report("running", "running");
        mention(&mut report, "alpha");
        assert_eq!(report.verdict.text, "safe. Any one node may fail now");
    }

    #[test]
    fn data_without_their_service_are_not_safe() {
        let mut report = report("failed", "stopped");
        mention(&mut report, "alpha");
        assert_eq!(report.verdict.level, Level::Attention);
        assert!(report.verdict.text.contains("db does not run: exit code 1"), "{report:?}");
    }

    #[test]
    fn services_that_may_not_run_say_why_and_what_to_do() {
        let mut report = report("forbidden", "stopped");
        let trouble = RefusalReport::new("watchdog_missing", "no watchdog", "modprobe softdog");
        report.services.as_mut().unwrap().trouble = Some(trouble);
        mention(&mut report, "alpha");
        assert_eq!(report.verdict.level, Level::Attention);
        let expected = "no service runs: no watchdog. Next: modprobe softdog";
        assert!(report.verdict.text.ends_with(expected), "{report:?}");
    }

    #[test]
    fn maintenance_is_not_forgotten() {
        let mut report = report("maintenance", "running");
        mention(&mut report, "alpha");
        assert_eq!(report.verdict.level, Level::Degraded);
        assert!(report.verdict.text.ends_with("replctl maintenance shop off"), "{report:?}");
    }
}

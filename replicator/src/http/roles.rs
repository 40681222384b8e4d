//! 200 or 503 for load balancers, with the reason, by the paths that users of HAProxy and Patroni
//! expect.

use serde::Serialize;

use crate::report::{ResourceReport, StatusReport};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Does this node serve the resource now?
    Primary,
    /// Is it a secondary with all data?
    Replica,
    /// Is it a secondary in the in-sync set?
    Sync,
    /// Is every resource here up, and no service of it given up?
    Health,
    /// Do the daemon's threads answer?
    Liveness,
    /// Does it take part: register, majority, resources up?
    Readiness,
}

/// A path that asks for a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    asked: Asked,
    resource: Option<String>,
}

/// The answer, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Who answers.
    node: String,
    /// Its cluster.
    cluster: String,
    /// What was asked about; empty: the node.
    resource: String,
    /// The role of the replica here; empty for the node.
    role: String,
    /// Whether the answer is yes.
    ok: bool,
    /// Why.
    reason: String,
}

impl Question {
    /// What a path asks; none for another kind of path.
    pub fn of(path: &str) -> Option<Self> {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let asked = match parts.next()? {
            "primary" | "leader" | "read-write" | "master" => Asked::Primary,
            "replica" | "secondary" | "standby" => Asked::Replica,
            "sync" | "synchronous" => Asked::Sync,
            "health" => Asked::Health,
            "liveness" => Asked::Liveness,
            "readiness" => Asked::Readiness,
            _ => return None,
        };
        let resource = parts.next().filter(|name| !name.is_empty()).map(str::to_owned);
        Some(Self { asked, resource })
    }

    /// The one resource whose report answers it; none: all are needed, also to say that there is
    /// none of that name.
    pub fn about(&self, known: &[String]) -> Option<&str> {
        let asks_for_a_role = matches!(self.asked, Asked::Primary | Asked::Replica | Asked::Sync);
        let name = self.resource.as_deref().filter(|_| asks_for_a_role)?;
        known.iter().any(|it| it == name).then_some(name)
    }

    /// The HTTP status and the answer.
    pub fn answer(&self, report: &StatusReport) -> (u16, Answer) {
        let mut answer = Answer {
            node: report.node.clone(),
            cluster: report.cluster.clone(),
            resource: self.resource.clone().unwrap_or_default(),
            role: String::new(),
            ok: false,
            reason: String::new(),
        };
        let verdict = match self.asked {
            Asked::Primary | Asked::Replica | Asked::Sync => match self.find(report) {
                Ok(resource) => {
                    answer.resource.clone_from(&resource.name);
                    answer.role =
                        resource.replica.as_ref().map(|it| it.role.clone()).unwrap_or_default();
                    match self.asked {
                        Asked::Primary => serves(report, resource),
                        _ => follows(report, resource, self.asked == Asked::Sync),
                    }
                }
                Err((404, reason)) => {
                    answer.reason = reason;
                    return (404, answer);
                }
                Err((_, reason)) => Err(reason),
            },
            Asked::Health => is_healthy(report),
            Asked::Liveness => is_alive(report),
            Asked::Readiness => is_alive(report).and_then(|_| is_ready(report)),
        };
        answer.ok = verdict.is_ok();
        answer.reason = verdict.unwrap_or_else(|why| why);
        (if answer.ok { 200 } else { 503 }, answer)
    }

    fn find<'a>(&self, report: &'a StatusReport) -> Result<&'a ResourceReport, (u16, String)> {
        let names: Vec<&str> = report.resources.iter().map(|it| it.name.as_str()).collect();
        match (&self.resource, &report.resources[..]) {
            (None, [only]) => Ok(only),
            (None, []) => Err((503, "this node has no resources".into())),
            (None, _) => {
                let list = names.join(", ");
                Err((404, format!("say which resource, as the last part of the path: {list}")))
            }
            (Some(name), _) => {
                let found = report.resources.iter().find(|it| it.name == *name);
                found.ok_or_else(|| match names[..] {
                    [] => (503, "this node has no resources".into()),
                    _ => (
                        404,
                        format!("there is no resource {name}; there are {}", names.join(", ")),
                    ),
                })
            }
        }
    }
}

type Verdict = Result<String, String>;

fn serves(report: &StatusReport, resource: &ResourceReport) -> Verdict {
    let Some(replica) = resource.replica.as_ref() else {
        return Err(format!("it is {}: {}", resource.state, resource.why));
    };
    if replica.role != "primary" {
        let where_it_is = match replica.primary.as_str() {
            "" => "nobody is primary as far as this node knows".to_owned(),
            node => format!("{node} is primary"),
        };
        return Err(format!("this node is {}; {where_it_is}", replica.role));
    }
    let office = report
        .cluster_state
        .as_ref()
        .and_then(|cluster| cluster.resources.iter().find(|office| office.name == resource.name));
    match office {
        Some(office) if !office.is_sole && office.lease_left_ms == 0 => {
            Err("its lease is over: it waits for the majority and answers nobody".into())
        }
        _ => Ok(format!("primary since generation {}", replica.tenure)),
    }
}

fn follows(report: &StatusReport, resource: &ResourceReport, must_be_member: bool) -> Verdict {
    let Some(replica) = resource.replica.as_ref() else {
        return Err(format!("it is {}: {}", resource.state, resource.why));
    };
    if replica.role != "secondary" {
        return Err(format!("this node is {}", replica.role));
    }
    if replica.data != "up_to_date" {
        return Err(format!("its data are {}", replica.data.replace('_', " ")));
    }
    let is_member = replica.in_sync.contains(&report.node);
    if must_be_member && !is_member {
        return Err(format!("it is not in the in-sync set: {}", replica.in_sync.join(" ")));
    }
    if !replica.peers.iter().any(|peer| peer.role == "primary") {
        return Err("it is not connected to the primary".into());
    }
    Ok(if is_member { "in sync" } else { "up to date" }.to_owned())
}

fn is_healthy(report: &StatusReport) -> Verdict {
    are_up(report).and_then(|_| do_services_run(report))
}

fn are_up(report: &StatusReport) -> Verdict {
    let sick = report.resources.iter().find(|it| it.state != "up" || !it.why.is_empty());
    match sick {
        Some(resource) => Err(format!("{} is {}: {}", resource.name, resource.state, resource.why)),
        None => Ok("every resource of this node is up".into()),
    }
}

/// Services that were given up, or whose stop hangs, are sick where they should run.
fn do_services_run(report: &StatusReport) -> Verdict {
    let failed = |it: &&ResourceReport| it.services.as_ref().is_some_and(|it| it.state == "failed");
    let Some(resource) = report.resources.iter().find(failed) else {
        return Ok("every resource of this node is up".into());
    };
    let services = resource.services.iter().flat_map(|it| &it.services);
    let sick: Vec<String> = services
        .filter(|it| it.state == "stop hangs" || (it.wanted && it.state != "running"))
        .map(|it| format!("{} is {}: {}", it.name, it.state, it.last_failure))
        .collect();
    Err(format!("services of {} failed: {}", resource.name, sick.join("; ")))
}

fn is_alive(report: &StatusReport) -> Verdict {
    let hanging = |it: &&ResourceReport| it.state == "up" && it.replica.is_none();
    match report.resources.iter().find(hanging) {
        Some(resource) => Err(format!("the data loop of {} does not answer", resource.name)),
        None => Ok(format!("running for {} s", report.up_ms / 1_000)),
    }
}

fn is_ready(report: &StatusReport) -> Verdict {
    if let Some(cluster) = &report.cluster_state {
        if !cluster.has_majority {
            return Err(format!("no majority for {} ms", cluster.no_majority_ms));
        }
        if cluster.revision == 0 {
            return Err("the register is not known yet".into());
        }
    }
    are_up(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{ClusterReport, OfficeReport};
    use crate::report::{PeerReport, ReplicaReport, ServiceReport, ServicesReport};
    use crate::verdict::Verdict as Sentence;

    fn report(role: &str) -> StatusReport {
        let peer_role = if role == "primary" { "secondary" } else { "primary" };
        let replica = ReplicaReport {
            role: role.into(),
            data: "up_to_date".into(),
            in_sync: vec!["alpha".into(), "beta".into()],
            peers: vec![PeerReport { role: peer_role.into(), ..PeerReport::default() }],
            ..ReplicaReport::default()
        };
        let resource = ResourceReport {
            name: "db".into(),
            state: "up".into(),
            replica: Some(replica),
            verdict: Sentence::default(),
            ..ResourceReport::default()
        };
        let office =
            OfficeReport { name: "db".into(), lease_left_ms: 700, ..OfficeReport::default() };
        StatusReport {
            cluster: "shop".into(),
            node: "alpha".into(),
            version: String::new(),
            pid: 1,
            up_ms: 5_000,
            warnings: Vec::new(),
            guard: None,
            refused_greetings: Vec::new(),
            cluster_state: Some(ClusterReport {
                has_majority: true,
                revision: 3,
                resources: vec![office],
                ..ClusterReport::default()
            }),
            fence: None,
            resources: vec![resource],
        }
    }

    fn ask(path: &str, report: &StatusReport) -> (u16, String) {
        let (status, answer) = Question::of(path).expect(path).answer(report);
        assert_eq!(answer.ok, status == 200);
        (status, answer.reason)
    }

    #[test]
    fn a_primary_and_a_secondary_say_what_they_are() {
        let (primary, secondary) = (report("primary"), report("secondary"));
        for path in ["/primary", "/primary/db", "/leader", "/read-write/db"] {
            assert_eq!(ask(path, &primary).0, 200, "{path}");
            assert_eq!(ask(path, &secondary).0, 503, "{path}");
        }
        for path in ["/replica", "/sync/db"] {
            assert_eq!(ask(path, &primary).0, 503, "{path}");
            assert_eq!(ask(path, &secondary).0, 200, "{path}");
        }
        for path in ["/health", "/liveness", "/readiness"] {
            assert_eq!(ask(path, &primary).0, 200, "{path}");
        }
        assert_eq!(ask("/primary/other", &primary).0, 404);
        assert_eq!(Question::of("/metrics"), None);
    }

    #[test]
    fn a_role_of_one_resource_needs_no_other() {
        let known = ["db".to_owned(), "web".to_owned()];
        let about = |path: &str| Question::of(path).expect(path).about(&known).map(str::to_owned);
        assert_eq!(about("/primary/db"), Some("db".into()));
        assert_eq!(about("/sync/web"), Some("web".into()));
        for path in ["/primary", "/replica/other", "/health", "/readiness/db"] {
            assert_eq!(about(path), None, "{path}");
        }
    }

    #[test]
    fn a_primary_without_its_lease_serves_nobody() {
        let mut lapsed = report("primary");
        let offices = &mut lapsed.cluster_state.as_mut().unwrap().resources;
        offices[0].lease_left_ms = 0;
        let (status, reason) = ask("/primary", &lapsed);
        assert_eq!(status, 503);
        assert!(reason.contains("lease"), "{reason}");
    }

    #[test]
    fn a_secondary_that_lacks_something_takes_no_reads() {
        let mut behind = report("secondary");
        behind.resources[0].replica.as_mut().unwrap().in_sync = vec!["beta".into()];
        assert_eq!(ask("/sync", &behind).0, 503);
        assert_eq!(ask("/replica", &behind).0, 200);
        behind.resources[0].replica.as_mut().unwrap().data = "inconsistent".into();
        assert_eq!(ask("/replica", &behind).0, 503);
        let mut cut_off = report("secondary");
        cut_off.resources[0].replica.as_mut().unwrap().peers[0].role = String::new();
        assert_eq!(ask("/replica", &cut_off).0, 503);
    }

    #[test]
    fn a_service_that_was_given_up_is_sick_and_the_disk_serves_all_the_same() {
        let mut failed = report("primary");
        failed.resources[0].services = Some(ServicesReport {
            state: "failed".into(),
            services: vec![ServiceReport {
                name: "mariadb".into(),
                state: "failed".into(),
                wanted: true,
                last_failure: "exit code 1".into(),
                ..ServiceReport::default()
            }],
            ..ServicesReport::default()
        });
        let (status, reason) = ask("/health", &failed);
        let wanted = "services of db failed: mariadb is failed: exit code 1";
        assert_eq!((status, reason.as_str()), (503, wanted));
        assert_eq!(ask("/primary", &failed).0, 200);
        assert_eq!(ask("/liveness", &failed).0, 200);
        assert_eq!(ask("/readiness", &failed).0, 200);
    }

    #[test]
    fn a_hanging_loop_and_a_lost_majority_show() {
        let mut hangs = report("primary");
        hangs.resources[0].replica = None;
        hangs.resources[0].why = "the data loop does not answer".into();
        for path in ["/primary", "/liveness", "/health", "/readiness"] {
            assert_eq!(ask(path, &hangs).0, 503, "{path}");
        }
        let mut alone = report("secondary");
        alone.cluster_state.as_mut().unwrap().has_majority = false;
        assert_eq!(ask("/readiness", &alone).0, 503);
        assert_eq!(ask("/liveness", &alone).0, 200);
        let mut none = report("primary");
        none.resources.clear();
        assert_eq!(ask("/primary", &none).0, 503);
        assert_eq!(ask("/liveness", &none).0, 200);
    }
}

//! What this node tells over HTTP: its roles for load balancers, its metrics, its status, a live
//! page. Everything comes from the same report as `replctl status`.
//!
//! ```text
//!   roles.rs       /primary, /replica, /sync, /health, ...: 200 or 503 and why
//!   metrics.rs     /metrics: what Prometheus is told
//!   services.rs    what it says of services, guard and watchdog
//!   families.rs    metrics on their way into the text format
//!   drbd_names.rs  /metrics?names=drbd: the names that drbd-reactor has
//!   page.html      /: a picture of the cluster that looks again every second
//! ```

mod drbd_names;
mod families;
mod metrics;
mod roles;
mod services;

use std::sync::{Arc, Weak};

use failover::http::{Page, Pages};

use crate::daemon::Daemon;

const JSON: &str = "application/json";
const PATHS: &str = "/metrics /primary[/RES] /replica[/RES] /sync[/RES] /health /liveness \
                     /readiness /status /history /";

/// The pages of a daemon.
pub struct DaemonPages(Weak<Daemon>);

impl DaemonPages {
    /// They end with the daemon.
    pub fn new(daemon: &Arc<Daemon>) -> Self {
        Self(Arc::downgrade(daemon))
    }
}

impl Pages for DaemonPages {
    fn page(&self, path: &str, query: &str) -> Page {
        let Some(daemon) = self.0.upgrade() else {
            return json(503, &serde_json::json!({ "reason": "the daemon is stopping" }));
        };
        let has = |wanted: &str| query.split('&').any(|part| part == wanted);
        match path {
            "/" => Page {
                status: 200,
                content_type: "text/html; charset=utf-8",
                body: include_str!("http/page.html").to_owned(),
            },
            "/metrics" if has("names=drbd") => drbd_names::page(&daemon),
            "/metrics" => metrics::page(&daemon),
            "/status" => json(200, &daemon.report(None)),
            "/history" => {
                let entries = daemon.control_plane.as_ref().map(|plane| plane.history.entries());
                json(200, &entries.unwrap_or_default())
            }
            _ => match roles::Question::of(path) {
                Some(question) => {
                    // A hanging disk of another resource must not delay the answer.
                    let only = question.about(&daemon.resource_names());
                    let (status, answer) = question.answer(&daemon.report(only));
                    json(status, &answer)
                }
                None => {
                    let reason = format!("there is no {path}; there are {PATHS}");
                    json(404, &serde_json::json!({ "reason": reason }))
                }
            },
        }
    }
}

fn json(status: u16, value: &impl serde::Serialize) -> Page {
    let mut body = serde_json::to_string_pretty(value).expect("reports are plain values");
    body.push('\n');
    Page { status, content_type: JSON, body }
}

//! The guard of this node: started before the services, told of the lease, shown in status. What it
//! does is `failover::guard`.

use std::ffi::OsString;
use std::sync::Arc;

use failover::core::Span;
use failover::core::facts::Hindrance;
use failover::guard::{Guard, GuardOptions, GuardReport, Registry};

use crate::config::NodeConfig;

/// The guard, or why there is none.
pub struct Guarding {
    guard: Option<Guard>,
    problem: Option<String>,
    /// Whether services may not run without a watchdog.
    needs_watchdog: bool,
}

impl Guarding {
    /// Starts one; without one services run all the same, and status says so.
    pub fn start(node: &NodeConfig, lease_ms: u64) -> Arc<Self> {
        let needs_watchdog = node.watchdog.is_required();
        let program =
            std::env::current_exe().unwrap_or_else(|_| OsString::from("replicatord").into());
        let started = Guard::start(GuardOptions {
            command: vec![program.into(), "guard".into()],
            run_dir: node.run_dir.clone(),
            lease: Span::from_ms(lease_ms),
            watchdog: node.watchdog.clone(),
        });
        Arc::new(match started {
            Ok(guard) => Self { guard: Some(guard), problem: None, needs_watchdog },
            Err(error) => {
                let text = format!(
                    "there is no guard ({error}): when this daemon stands still, nothing but the \
                     kernel withdraws its addresses, and nothing freezes its services"
                );
                tracing::error!("{text}");
                Self { guard: None, problem: Some(text), needs_watchdog }
            }
        })
    }

    /// Where services note what they start.
    pub fn registry(&self) -> Registry {
        self.guard.as_ref().map_or_else(Registry::none, |guard| guard.registry().clone())
    }

    /// How it stands.
    pub fn report(&self) -> Option<GuardReport> {
        self.guard.as_ref().map(Guard::report)
    }

    /// What an operator should know, now.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.problem.iter().cloned().collect();
        if let Some(report) = self.report() {
            warnings.extend(report.warnings);
            let watchdog = &report.watchdog;
            if !watchdog.is_armed {
                warnings.push(format!("no watchdog: {}", watchdog.why));
            } else if !watchdog.is_in_time {
                warnings.push(format!("the watchdog {} is {}", watchdog.device, watchdog.why));
            }
            if watchdog.is_starved {
                warnings.push(
                    "services are frozen: the lease is renewed, but too slowly for the watchdog. \
                     Look at the network between the nodes, or write a longer lease_ms"
                        .to_owned(),
                );
            }
        }
        warnings
    }

    /// Why services may not run here, if so.
    pub fn hindrance(&self) -> Option<Hindrance> {
        let why = match &self.guard {
            Some(guard) => guard.hindrance()?,
            None if self.needs_watchdog => {
                let why = "a watchdog is required for services, and nothing feeds one: ";
                format!("{why}{}", self.problem.as_deref().unwrap_or("there is no guard"))
            }
            None => return None,
        };
        Some(Hindrance {
            code: "watchdog_missing".into(),
            rule: "L4".into(),
            why,
            next: "see that its device is there and free (softdog is one: modprobe softdog), then \
                   restart replicatord; or write watchdog = \"auto\""
                .into(),
        })
    }

    /// The daemon ends orderly.
    pub fn end(&self) {
        if let Some(guard) = &self.guard {
            guard.end();
        }
    }
}

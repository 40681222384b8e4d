//! Keeps a floating address as the daemon does, with a lease that is renewed by itself: for tests
//! of what happens to the address when this process is stopped or killed.
//!
//! ```text
//! hold-address ADDRESS/PREFIX INTERFACE LEASE_MS [RUN_DIR [WATCHDOG]]
//! hold-address guard RUN_DIR WATCHDOG                  the guard itself
//! ```
//!
//! With a RUN_DIR there is a guard.
//! It writes `there` when the address was added, each change as `change: ...`, and `gone` after an
//! orderly stop, which a line on its standard input orders.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Duration;

use failover::core::Span;
use failover::guard::{self, Guard, GuardOptions, Registry, WatchdogWish};
use failover::node::now;
use failover::services::address::{Address, AddressConfig, LeaseLength};
use failover::services::{Force, Service, Site};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[1..] {
        [word, run_dir, watchdog] if word == "guard" => {
            Ok(guard::run(Path::new(run_dir), watchdog)?)
        }
        [address, interface, lease_ms, rest @ ..] => {
            let (address, prefix) = address.split_once('/').ok_or("ADDRESS/PREFIX")?;
            let config = AddressConfig {
                resource: "demo".into(),
                address: address.parse()?,
                prefix: prefix.parse()?,
                interface: Some(interface.clone()),
                is_source: true,
                lease: LeaseLength::new(Span::from_ms(lease_ms.parse()?)),
                peers: Vec::new(),
            };
            let wish =
                rest.get(1).map_or(Some(WatchdogWish::Off), |word| WatchdogWish::parse(word));
            hold(config, rest.first().map(Path::new), wish.ok_or("WATCHDOG")?)
        }
        _ => Err("see the top of hold-address.rs".into()),
    }
}

fn hold(
    config: AddressConfig,
    run_dir: Option<&Path>,
    watchdog: WatchdogWish,
) -> Result<(), Box<dyn std::error::Error>> {
    let lease = config.lease.get();
    let guard = match run_dir {
        Some(run_dir) => {
            std::fs::create_dir_all(run_dir)?;
            Some(Guard::start(GuardOptions {
                command: vec![std::env::current_exe()?.into(), "guard".into()],
                run_dir: run_dir.into(),
                lease,
                watchdog,
            })?)
        }
        None => None,
    };
    if let Some(guard) = &guard {
        say(&format!("guard: {:?}", guard.report()));
    }
    let registry = guard.as_ref().map_or(Registry::none(), |guard| guard.registry().clone());
    let address = Address::new(config, registry.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stopped = std::thread::spawn(|| io::stdin().lock().lines().next());
    runtime.block_on(async {
        let (changes, mut news) = tokio::sync::mpsc::unbounded_channel();
        let watching = address.watch(changes);
        let (device, resource, node) = ("/dev/null".into(), "demo".into(), "here".into());
        let site = Site { device, resource, node };
        let mut renewal = tokio::time::interval(Duration::from_nanos(lease.0 / 5));
        let mut start = Some(address.start(&site));
        tokio::pin!(watching);
        while !stopped.is_finished() {
            tokio::select! {
                _ = renewal.tick() => {
                    let left = Span(lease.0 / 10 * 9);
                    registry.set_lease("demo", Some(now() + left));
                    registry.beat();
                    address.lease(Some(Duration::from_nanos(left.0))).await;
                }
                result = wait_for(&mut start), if start.is_some() => {
                    start = None;
                    match result {
                        Ok(()) => say("there"),
                        Err(failure) => say(&format!("{}: {}", failure.code, failure.why)),
                    }
                }
                Some(change) = news.recv() => say(&format!("change: {change:?}")),
                () = &mut watching => {}
            }
        }
        match address.stop(Force::Orderly).await {
            Ok(()) => say("gone"),
            Err(failure) => say(&format!("{}: {}", failure.code, failure.why)),
        }
    });
    if let Some(guard) = guard {
        guard.end();
    }
    Ok(())
}

async fn wait_for<F: Future + Unpin>(start: &mut Option<F>) -> F::Output {
    match start {
        Some(start) => start.await,
        None => std::future::pending().await,
    }
}

fn say(text: &str) {
    println!("{text}");
    // Whoever reads may have gone.
    let _ = io::stdout().flush();
}

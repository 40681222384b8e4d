//! Drives one systemd unit as a service, by orders on standard input; for tests/vm/systemd_unit.sh.
//!
//! ```text
//!   drive-unit UNIT
//!   prepare | start MS | stop MS | kill MS | monitor | quit
//! ```
//! Each order is answered by one line: `start ok 120 ms`, `start late`, `start failed CODE: WHY`.
//! What the unit does of itself is told as it comes: `change 12.34 Failed(...)`, with the uptime.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use failover::core::services::spec::{Kind, Place, ServiceSpec, ServiceTiming};
use failover::services::systemd::{Systemd, Unit};
use failover::services::{Failure, Force, Service, Site};
use replicator_core::Span;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

fn main() {
    let name = std::env::args().nth(1).expect("the name of a unit");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(drive(&name));
}

async fn drive(name: &str) {
    let systemd = Systemd::new("drive-unit", name);
    systemd.configure(vec![vec![spec(name)]]);
    let unit = Arc::new(Unit::new(systemd, name));
    let site = Site { device: PathBuf::new(), resource: String::new(), node: String::new() };
    let (sender, mut changes) = unbounded_channel();
    let watched = unit.clone();
    tokio::spawn(async move { watched.watch(sender).await });
    tokio::spawn(async move {
        while let Some(change) = changes.recv().await {
            let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
            println!("change {} {change:?}", uptime.split(' ').next().unwrap_or_default());
        }
    });
    let (told, mut lines) = unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
    });
    while let Some(line) = lines.recv().await {
        let mut words = line.split_whitespace();
        let order = words.next().unwrap_or_default();
        let ms = words.next().and_then(|word| word.parse().ok()).unwrap_or(10_000);
        let work: failover::services::Doing<'_, Result<String, Failure>> = match order {
            "prepare" => Box::pin(async { unit.prepare().await.map(|()| String::new()) }),
            "start" => Box::pin(async { unit.start(&site).await.map(|()| String::new()) }),
            "stop" => Box::pin(async { unit.stop(Force::Orderly).await.map(|()| String::new()) }),
            "kill" => Box::pin(async { unit.stop(Force::Kill).await.map(|()| String::new()) }),
            "monitor" => Box::pin(async { unit.monitor().await.map(|it| format!("{it:?} ")) }),
            _ => return,
        };
        let began = Instant::now();
        match timeout(Duration::from_millis(ms), work).await {
            Ok(Ok(text)) => println!("{order} ok {text}{} ms", began.elapsed().as_millis()),
            Ok(Err(failure)) => println!("{order} failed {}: {}", failure.code, failure.why),
            Err(_) => println!("{order} late"),
        }
    }
}

fn spec(unit: &str) -> ServiceSpec {
    let span = Span::from_ms(1000);
    ServiceSpec {
        name: unit.to_owned(),
        kind: Kind::Systemd { unit: unit.to_owned() },
        place: Place::Primary,
        step: 0,
        timing: ServiceTiming { start: span, stop: span, monitor: span, monitor_every: span },
        restarts_max: 0,
        is_critical: true,
    }
}

//! `replicatord`: reads the configuration, becomes one node of it, and serves until it is told to
//! stop.
//!
//! Signals: SIGTERM or SIGINT stops every resource orderly; a primary that is in use (mounted, or
//! with NBD clients) goes on serving and the daemon waits for it, visibly. A second signal stops at
//! once, as a crash would: nothing acknowledged is lost, and a block device stays for the next
//! start. When systemd stops the daemon only to start it again, it ends like that at once. Exit
//! codes: 0 stopped orderly, 1 could not start or run, 2 wrong usage or configuration, 3 stopped by
//! a second signal while in use.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use failover::Ports;
use failover::services::systemd;
use nbd_frontend::attach::{Keeper, holder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use replicator::config::{ClusterConfig, DEFAULT_PATH, Directory, NodeConfig, services};
use replicator::daemon::{Daemon, StartError};
use replicator::process;
use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_IN_USE: u8 = 3;
const TICK_MS: u16 = 500;
/// How long systemd may take to say whether a stop is half of a restart. Without an answer it is
/// not.
const RESTART_QUESTION: Duration = Duration::from_millis(1000);

/// The Replicator daemon: keeps the replicas of one node.
#[derive(Parser)]
#[command(name = "replicatord", version, after_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file; or a directory of them, to be the witness of many clusters.
    ///
    /// Every `*.toml` of the directory is the file of one cluster, as its data nodes have it; there
    /// `[node.WITNESS]` names a `state_dir`, `run_dir` and `key` of its own. All are served at one
    /// port. A file that is wrong is reported, and the others are served.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Which node of the configuration to be; the host name by default.
    #[arg(long)]
    node: Option<String>,
    /// Records what each resource's core is told and orders, for `sim --replay FILE` (debugging).
    ///
    /// With several resources the name of each comes behind FILE; a file that exists is kept and
    /// a number comes behind the new one's name. It holds no payload. It slows the data loop (a
    /// system call and about half a KiB for every step) and grows without end; keep it off
    /// replicated devices.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Keeps descriptors of block devices while the daemon restarts (started by the daemon).
    #[command(hide = true)]
    Holder {
        /// Where its socket is.
        run_dir: PathBuf,
    },
    /// Withdraws addresses and freezes services when the daemon cannot (started by the daemon).
    #[command(hide = true)]
    Guard {
        /// Where its lock file is.
        run_dir: PathBuf,
        /// The watchdog it feeds: auto, required, off, or a device.
        watchdog: String,
    },
}

const AFTER_HELP: &str = "\
Signals: SIGTERM and SIGINT stop orderly and wait for whoever uses a device; a second one stops
at once, as a crash would (nothing acknowledged is lost, the device waits for the next start).
`systemctl restart` leaves devices, mounts and services as they are.
Exit codes: 0 stopped orderly, 1 could not start or run, 2 wrong usage or configuration,
3 stopped by a second signal while in use.
Log level: RUST_LOG=debug. Example of two nodes on one machine: tools/deploy/examples.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let beside = match &arguments.command {
        Some(Other::Holder { run_dir }) => Some(holder::run(run_dir)),
        Some(Other::Guard { run_dir, watchdog }) => Some(failover::guard::run(run_dir, watchdog)),
        None => None,
    };
    match beside {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => return complain(EXIT_FAILED, &error),
        None => {}
    }
    start_logging();
    if replicator_core::HAS_DEFECTS {
        tracing::warn!(
            "built together with the simulator, with its switches for broken rules; for use build \
             with: cargo build --release"
        );
    }
    if arguments.config.is_dir() {
        return run_witness(&arguments.config, arguments.node.as_deref());
    }
    let mut config = match ClusterConfig::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return complain(EXIT_USAGE, &error),
    };
    if let Some(file) = &arguments.record {
        config.record_into(file);
    }
    let node = match config.choose_node(arguments.node.as_deref()) {
        Ok(node) => node.clone(),
        Err(error) => return complain(EXIT_USAGE, &error),
    };
    if !node.witness {
        services::local::complete(&mut config, &node.run_dir);
    }
    run(vec![(config, node)], Vec::new())
}

/// The witness of every cluster of a directory.
fn run_witness(directory: &Path, node: Option<&str>) -> ExitCode {
    let found = match Directory::load(directory, node) {
        Ok(found) => found,
        Err(error) => {
            let text = format!("cannot read {}: {error}", directory.display());
            return complain(EXIT_USAGE, &text);
        }
    };
    let mut problems: Vec<String> =
        found.problems.iter().map(|problem| format!("not served: {problem}")).collect();
    for problem in &problems {
        tracing::error!("{problem}");
    }
    for missing in &found.without {
        tracing::warn!("{missing}");
    }
    problems.extend(found.without);
    if found.served.is_empty() {
        let text = format!("{}: no configuration there can be served", directory.display());
        return complain(EXIT_USAGE, &text);
    }
    run(found.served, problems)
}

fn complain(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("replicatord: {error}");
    ExitCode::from(code)
}

fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // The journal has its own time stamps.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}

/// Becomes a node of each cluster; one that cannot be started costs the others nothing. `problems`
/// are shown by their status.
fn run(clusters: Vec<(ClusterConfig, NodeConfig)>, problems: Vec<String>) -> ExitCode {
    let keepers: Vec<Keeper> = clusters
        .iter()
        .map(|(_, node)| Keeper::choose(&node.run_dir, holder_command(node)))
        .collect();
    // Before the first thread, so that every thread has them blocked and only `wait` sees them.
    let signals = match block_signals() {
        Ok(signals) => signals,
        Err(error) => return complain(EXIT_FAILED, &format!("cannot take signals: {error}")),
    };
    let mut warnings = process::protect_from_memory_pressure();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    warnings.extend(problems);
    let ports = Ports::default();
    let is_alone = clusters.len() == 1;
    let mut daemons = Vec::new();
    let mut exit_code = EXIT_FAILED;
    for ((config, node), keeper) in clusters.into_iter().zip(keepers) {
        let (cluster, name) = (config.cluster.clone(), node.name.clone());
        match Daemon::start(config, node, keeper, &ports, warnings.clone()) {
            Ok(daemon) => {
                let process = std::process::id();
                tracing::info!("node {name} of {cluster} is running, process {process}");
                daemons.push(daemon);
            }
            Err(error) => {
                if matches!(error, StartError::Key(_)) {
                    exit_code = EXIT_USAGE;
                }
                if is_alone {
                    return complain(exit_code, &error);
                }
                let text = format!("cluster {cluster} is not served: {error}");
                tracing::error!("{text}");
                warnings.push(text);
            }
        }
    }
    if daemons.is_empty() {
        return ExitCode::from(exit_code);
    }
    notify(&[NotifyState::Ready, NotifyState::Status(&summary_of(&daemons))]);
    wait(&daemons, &signals)
}

fn summary_of(daemons: &[Arc<Daemon>]) -> String {
    match daemons {
        [daemon] => daemon.summary(),
        _ => {
            let clusters: Vec<&str> = daemons.iter().map(|it| it.cluster_name()).collect();
            format!("witness of {} clusters: {}", clusters.len(), clusters.join(", "))
        }
    }
}

fn holder_command(node: &NodeConfig) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap_or_else(|_| "replicatord".into());
    vec![program.into(), "holder".into(), node.run_dir.clone().into()]
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Nothing is wrong when nobody listens: the daemon also runs without systemd.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

fn wait(daemons: &[Arc<Daemon>], signals: &SignalFd) -> ExitCode {
    let resources: usize = daemons.iter().map(|daemon| daemon.resource_count()).sum();
    let has_watchdog = sd_notify::watchdog_enabled().is_some();
    let is_under_systemd = std::env::var_os("NOTIFY_SOCKET").is_some();
    let mut summary = summary_of(daemons);
    let stopped = Arc::new(AtomicUsize::new(0));
    let mut is_stopping = false;
    loop {
        if next_signal(signals) {
            if is_stopping {
                tracing::warn!("second signal: stopping at once");
                daemons.iter().for_each(|daemon| daemon.abandon());
                return ExitCode::from(EXIT_IN_USE);
            }
            is_stopping = true;
            if is_under_systemd && systemd::is_being_restarted(RESTART_QUESTION) {
                tracing::info!("restarting: devices and services stay as they are");
                daemons.iter().for_each(|daemon| daemon.abandon());
                return ExitCode::SUCCESS;
            }
            tracing::info!("stopping");
            notify(&[NotifyState::Stopping]);
            for daemon in daemons {
                let counter = stopped.clone();
                daemon.stop(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                });
            }
        }
        if is_stopping && stopped.load(Ordering::SeqCst) == resources {
            daemons.iter().for_each(|daemon| daemon.end());
            tracing::info!("stopped");
            return ExitCode::SUCCESS;
        }
        let now = summary_of(daemons);
        if now != summary {
            notify(&[NotifyState::Status(&now)]);
            summary = now;
        }
        if has_watchdog {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

/// Waits a moment for a signal; whether one came.
fn next_signal(signals: &SignalFd) -> bool {
    let mut look = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    if poll(&mut look, PollTimeout::from(TICK_MS)).is_err() {
        std::thread::sleep(Duration::from_millis(u64::from(TICK_MS)));
    }
    matches!(signals.read_signal(), Ok(Some(_)))
}

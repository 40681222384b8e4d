//! `replctl`: the operator's command. `local` is what works without a daemon, `remote` asks one,
//! `show` puts answers into words, `progress` waits for a resync.

mod arguments;
mod local;
mod progress;
mod remote;
mod resize;
mod show;
mod show_cluster;
mod show_fence;
mod show_services;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use replicator::config::ClusterConfig;
use serde_json::json;

use arguments::{Arguments, Command};

/// What is done, or was already so.
pub const EXIT_DONE: u8 = 0;
/// Refused, or failed.
pub const EXIT_REFUSED: u8 = 1;
/// Wrong arguments or configuration.
pub const EXIT_USAGE: u8 = 2;
/// The daemon cannot be asked.
pub const EXIT_NO_DAEMON: u8 = 3;
/// `status`: something is not safe.
pub const EXIT_NOT_SAFE: u8 = 4;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
    json: serde_json::Value,
}

impl Failure {
    /// A failure in words; the JSON has the same words.
    pub fn new(code: u8, error: impl std::fmt::Display) -> Self {
        let text = error.to_string();
        let json = json!({ "error": text });
        Self { code, text, json }
    }

    /// A failure whose JSON says more than the words.
    pub fn with_json(code: u8, text: String, json: serde_json::Value) -> Self {
        Self { code, text, json }
    }
}

fn main() -> ExitCode {
    end_quietly_on_closed_pipe();
    let arguments = Arguments::parse();
    let wants_json = arguments.json;
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) if wants_json => {
            println!("{}", failure.json);
            ExitCode::from(failure.code)
        }
        Err(failure) => {
            eprintln!("replctl: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// `replctl status | head` ends like any other command.
fn end_quietly_on_closed_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let config =
        ClusterConfig::load(&arguments.config).map_err(|error| Failure::new(EXIT_USAGE, error))?;
    if let Command::Check { fence } = arguments.command {
        return local::check(&config, fence, arguments);
    }
    let node = config
        .choose_node(arguments.node.as_deref())
        .map_err(|error| Failure::new(EXIT_USAGE, error))?;
    match &arguments.command {
        Command::Check { .. } => unreachable!("done above, it needs no node"),
        Command::Init { resource, from } => {
            local::init(&config, node, resource.as_deref(), from.as_deref(), arguments)
        }
        Command::Create(create) => local::create(&config, node, create, arguments),
        Command::Dump { resource, live: false } => local::dump(&config, node, resource, arguments),
        _ => remote::run(&config, node, arguments),
    }
}

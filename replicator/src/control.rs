//! What `replctl` and a daemon say to each other on the control socket: one JSON object a line,
//! one request per connection, one or more replies. The socket belongs to the user of the daemon
//! (mode 0600). This file has the words and the client; `control_server` has the other side.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cluster::{Applied, ClusterRequest, HistoryEntry};
use crate::lock_holders::{is_stopped, is_zombie};
use crate::report::{EventReport, StatusReport};

/// Version of this interface; a change that old commands cannot read raises it.
pub const VERSION: u32 = 1;
/// A request is never longer than this.
pub const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// A reply line is never longer than this.
const REPLY_BYTES_MAX: u64 = 16 << 20;
/// How often who waits looks whether the daemon still is one.
const LIFE_POLL: Duration = Duration::from_millis(500);

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What it wants.
    pub command: Order,
}

/// What can be asked of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// The state of all or one resource.
    Status {
        /// Only this one.
        resource: Option<String>,
    },
    /// Become primary.
    Promote {
        /// Which.
        resource: String,
        /// The operator knows that the old primary is off.
        old_primary_is_off: bool,
        /// Serve old data, start a new lineage.
        allow_data_loss: bool,
        /// Do not wait for the peer after a restart.
        alone: bool,
    },
    /// Stop being primary.
    Demote {
        /// Which.
        resource: String,
        /// Close the connections of NBD clients instead of refusing because of them.
        drop_clients: bool,
    },
    /// Connect to peers again.
    Connect {
        /// Which.
        resource: String,
        /// Only to this one.
        peer: Option<String>,
    },
    /// Hold no connection to peers.
    Disconnect {
        /// Which.
        resource: String,
        /// Only to this one.
        peer: Option<String>,
    },
    /// Declare the data here bad.
    Invalidate {
        /// Which.
        resource: String,
    },
    /// Copy everything to peers.
    ResyncFull {
        /// Which.
        resource: String,
        /// Only to this one.
        peer: Option<String>,
    },
    /// Compare the copies with that of the primary.
    Verify {
        /// Which.
        resource: String,
        /// Copy what differs again, from the primary.
        repair: bool,
    },
    /// End a verify that is under way.
    CancelVerify {
        /// Which.
        resource: String,
    },
    /// Make the volume larger, while it is used.
    Resize {
        /// Which.
        resource: String,
        /// To this size; as far as all nodes have room by default.
        size_bytes: Option<u64>,
    },
    /// Give up what diverged here.
    DiscardDiverged {
        /// Which.
        resource: String,
    },
    /// Start to run it.
    Up {
        /// Which.
        resource: String,
    },
    /// Stop to run it.
    Down {
        /// Which.
        resource: String,
    },
    /// Move the office to another node, without loss.
    Switchover {
        /// Which.
        resource: String,
        /// Whereto; the best other node by default.
        to: Option<String>,
    },
    /// Take back an order to move the office that is under way.
    CancelSwitchover {
        /// Which.
        resource: String,
    },
    /// Have a node take the office by force.
    Failover {
        /// Which.
        resource: String,
        /// Where.
        to: String,
        /// Serve these data though they may be old.
        allow_data_loss: bool,
        /// The operator knows that the old primary is off.
        old_primary_is_off: bool,
    },
    /// Automation off or on.
    Pause {
        /// Whether it is off.
        paused: bool,
    },
    /// Whether a node is to hold no office.
    Standby {
        /// The node.
        node: String,
        /// Whether it is.
        is_standby: bool,
    },
    /// Start services that an operator stopped, and those that failed, at once.
    StartServices {
        /// Of which resource.
        resource: String,
        /// Only this one.
        service: Option<String>,
    },
    /// Stop services until they are started again, wherever the resource is primary.
    StopServices {
        /// Of which resource.
        resource: String,
        /// Only this one, and what stands on it.
        service: Option<String>,
    },
    /// Stop services and start them again.
    RestartServices {
        /// Of which resource.
        resource: String,
        /// Only this one, and what stands on it.
        service: Option<String>,
    },
    /// Forget the failures of services on this node.
    ClearServices {
        /// Of which resource.
        resource: String,
        /// Only this one.
        service: Option<String>,
    },
    /// Hands off the services of a resource, or on again.
    Maintenance {
        /// Of which resource.
        resource: String,
        /// Whether hands are off.
        is_on: bool,
    },
    /// Have the peer of this node fenced, and its offices taken when that is confirmed.
    Fence {
        /// The node to be switched off.
        node: String,
        /// The operator has switched it off himself.
        is_off: bool,
    },
    /// Admit the acceptor that now answers as a node in place of the recorded one.
    NodeReplace {
        /// The node.
        node: String,
    },
    /// Give a node of the configuration a vote.
    NodeAdd {
        /// The node.
        node: String,
    },
    /// Take a node's vote away.
    NodeRemove {
        /// The node.
        node: String,
    },
    /// Go on without voters that are gone for ever, in a new epoch.
    Recover {
        /// Those who are gone.
        without: Vec<String>,
    },
    /// Change the register into what a file wants.
    Apply {
        /// What the file says.
        request: ClusterRequest,
        /// Only show the difference.
        dry_run: bool,
    },
    /// What the register went through.
    History,
    /// Everything that happens from now on, and the latest before; ends when the caller closes.
    Events,
}

/// One line of the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done(String),
    /// There was nothing to do.
    Already(String),
    /// It was not done.
    Refused(RefusalReport),
    /// The answer to `Status`.
    Status(Box<StatusReport>),
    /// The answer to `Apply`: each difference and what became of it.
    Applied(Vec<Applied>),
    /// The answer to `History`, oldest first.
    History(Vec<HistoryEntry>),
    /// One of many for `Events`.
    Event(EventReport),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalReport {
    /// Stable name for programs.
    pub code: String,
    /// The rule of SAFETY.md; empty where none is meant.
    pub rule: String,
    /// What is wrong.
    pub why: String,
    /// What the operator may do now.
    pub next: String,
}

impl RefusalReport {
    /// A refusal of the daemon itself, under no numbered rule.
    pub fn new(code: &str, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: code.into(), rule: String::new(), why: why.into(), next: next.into() }
    }
}

/// Why a daemon could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No daemon listens.
    #[error(
        "no daemon answers on {path}: {source}; is replicatord running for this node \
         (systemctl status replicator), and are you allowed to use its socket (root)?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was killed, and takes connections as long as one of its threads waits for a disk.
    #[error(
        "the daemon, process {pid}, was killed and is not gone: a disk has not answered it (dmesg \
         may say why); it can be started again when that process has ended"
    )]
    Killed {
        /// The process.
        pid: u32,
    },
    /// It runs, and says nothing.
    #[error("the daemon{process} has not answered for {waited_s} s{}", hint(*.is_stopped))]
    Silent {
        /// Which process, in words.
        process: String,
        /// Whether it was stopped by a signal or a debugger.
        is_stopped: bool,
        /// How long it had, seconds.
        waited_s: u64,
    },
    /// The conversation broke.
    #[error("the daemon did not finish its answer: {0}")]
    Broken(io::Error),
    /// It answered something that is no reply of this version.
    #[error("the daemon's answer is not understood ({0}); daemon and replctl differ in version")]
    Unintelligible(serde_json::Error),
}

fn hint(is_stopped: bool) -> &'static str {
    if is_stopped {
        ": it was stopped by a signal or a debugger; kill -CONT lets it go on"
    } else {
        "; its log may say why (journalctl -u replicator)"
    }
}

/// A connection to a daemon with one request under way.
pub struct Conversation {
    replies: BufReader<UnixStream>,
    patience: Option<Duration>,
    /// The process that listens; none where the kernel does not tell, as to another PID namespace.
    daemon: Option<u32>,
}

impl Conversation {
    /// Sends a request. `patience` limits the wait for each reply; none waits for ever.
    pub fn start(
        socket: &Path,
        command: Order,
        patience: Option<Duration>,
    ) -> Result<Self, ControlError> {
        let connect = |source| ControlError::Connect { path: socket.to_owned(), source };
        let mut stream = UnixStream::connect(socket).map_err(connect)?;
        let poll = patience.map_or(LIFE_POLL, |patience| patience.min(LIFE_POLL));
        stream.set_read_timeout(Some(poll)).map_err(connect)?;
        let listener = getsockopt(&stream, sockopt::PeerCredentials).ok();
        let daemon = listener.and_then(|it| u32::try_from(it.pid()).ok()).filter(|pid| *pid != 0);
        let request = Request { version: VERSION, command };
        let mut line = serde_json::to_vec(&request).expect("requests are plain values");
        line.push(b'\n');
        // A busy daemon may refuse before it reads; what it says is then still to be read.
        let _ = stream.write_all(&line);
        Ok(Self { replies: BufReader::new(stream), patience, daemon })
    }

    /// The next reply; none at the end.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, ControlError> {
        let mut line = Vec::new();
        let began = Instant::now();
        let mut limited = self.replies.by_ref().take(REPLY_BYTES_MAX);
        while let Err(error) = limited.read_until(b'\n', &mut line) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(ControlError::Broken(error));
            }
            // Had it ended, the connection had, too.
            if let Some(pid) = self.daemon.filter(|pid| is_zombie(*pid)) {
                return Err(ControlError::Killed { pid });
            }
            if self.patience.is_some_and(|patience| began.elapsed() >= patience) {
                return Err(silent(self.daemon, began.elapsed().as_secs()));
            }
        }
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(ControlError::Unintelligible)
    }
}

fn silent(daemon: Option<u32>, waited_s: u64) -> ControlError {
    let process = daemon.map_or_else(String::new, |pid| format!(", process {pid},"));
    ControlError::Silent { process, is_stopped: daemon.is_some_and(is_stopped), waited_s }
}

/// Asks for one thing and takes the first reply.
pub fn ask(socket: &Path, command: Order, patience: Duration) -> Result<Reply, ControlError> {
    let mut conversation = Conversation::start(socket, command, Some(patience))?;
    conversation.next_reply()?.ok_or_else(|| {
        let text = "it closed the connection; its log says why";
        ControlError::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, text))
    })
}

/// Reads the request of a client: one line, not too long, of a version that is understood.
pub fn read_request(stream: &UnixStream) -> Result<Order, RefusalReport> {
    let mut line = Vec::new();
    let mut limited = BufReader::new(stream).take(REQUEST_BYTES_MAX);
    if let Err(error) = limited.read_until(b'\n', &mut line) {
        let next = "send one JSON object and a line end within 5 seconds";
        return Err(RefusalReport::new("no_request", format!("no request came: {error}"), next));
    }
    parse_request(&line)
}

fn parse_request(line: &[u8]) -> Result<Order, RefusalReport> {
    #[derive(Deserialize)]
    struct AnyVersion {
        version: u32,
    }
    let bad = |error: serde_json::Error| {
        let next = "use replctl of the same version as the daemon";
        RefusalReport::new("bad_request", format!("the request is not understood: {error}"), next)
    };
    let any: AnyVersion = serde_json::from_slice(line).map_err(bad)?;
    if any.version != VERSION {
        return Err(RefusalReport::new(
            "wrong_version",
            format!("the command speaks version {}, this daemon {VERSION}", any.version),
            "use replctl of the same version as the daemon",
        ));
    }
    serde_json::from_slice::<Request>(line).map(|request| request.command).map_err(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_survives_the_way_to_the_daemon() {
        let command = Order::Promote {
            resource: "shop".into(),
            old_primary_is_off: true,
            allow_data_loss: false,
            alone: false,
        };
        let request = Request { version: VERSION, command: command.clone() };
        let line = serde_json::to_vec(&request).unwrap();
        assert_eq!(parse_request(&line).unwrap(), command);
    }

    #[test]
    fn another_version_is_refused_before_the_command_is_looked_at() {
        let refusal = parse_request(br#"{"version": 9, "command": {"fly": {}}}"#).unwrap_err();
        assert_eq!(refusal.code, "wrong_version");
        assert_eq!(refusal.why, "the command speaks version 9, this daemon 1");
    }

    #[test]
    fn an_unknown_command_or_field_is_refused() {
        for text in [
            r#"{"version": 1, "command": {"fly": {}}}"#,
            r#"{"version": 1, "command": {"up": {"resource": "a", "force": true}}}"#,
            "",
            "null",
        ] {
            assert_eq!(parse_request(text.as_bytes()).unwrap_err().code, "bad_request", "{text}");
        }
    }

    proptest! {
        #[test]
        fn random_lines_never_panic(line in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(parse_request(&line).is_err());
        }
    }
}

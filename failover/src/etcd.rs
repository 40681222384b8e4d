//! Asks etcd what the core wants to know, on a thread with a small runtime of its own: nothing else
//! runs there, so no renewal of the lease waits for anything but etcd. `failover_core::etcd` has
//! the rules; here are only sockets, deadlines and the form of keys.
//!
//! ```text
//!   etcd/form.rs     keys and transactions as etcd's JSON, and back
//!   etcd/client.rs   one question to one endpoint; which endpoint is next
//!   etcd/tls.rs      certificates, and what a refusal by one of the sides means
//!   etcd/check.rs    what `replctl check` finds out
//! ```

mod check;
mod client;
mod form;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use failover_core::NodeName;
use failover_core::etcd::{Answer, Ask};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::datagram::Authenticate;
use client::Client;
use form::Form;

pub use check::{CheckError, EtcdCheck, check};
pub use tls::{FileProblem, TlsFiles};

/// The endpoints are asked how they are so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A watch that says nothing for so many beats is begun again elsewhere.
const WATCH_BEATS: u32 = 5;
/// One question may take at least and at most so long, whatever the lease is.
const DEADLINE_MIN: Duration = Duration::from_millis(300);
const DEADLINE_MAX: Duration = Duration::from_secs(2);

/// Where etcd is, and what is ours there.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The client addresses of its members, in the order in which they are tried.
    pub endpoints: Vec<SocketAddr>,
    /// Our keys begin with it.
    pub prefix: String,
    /// The certificates, if it is spoken to by TLS.
    pub tls: Option<TlsFiles>,
    /// User and password, if etcd wants them.
    pub login: Option<Login>,
    /// The name of the cluster.
    pub cluster: String,
    /// The code with the cluster's key: two clusters with one name are told apart by it.
    pub authenticate: Authenticate,
    /// The lease; a question may take a fifth of it.
    pub lease: Duration,
}

/// A user of etcd.
#[derive(Clone)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The file with the password.
    pub password_file: PathBuf,
    /// Reads that file; it is called for every token, so a new password needs no restart.
    pub read: fn(&Path) -> Result<String, String>,
}

impl Login {
    /// The password; read elsewhere than on this thread.
    async fn password(&self) -> Result<String, FileProblem> {
        let (path, read) = (self.password_file.clone(), self.read);
        let found = tokio::task::spawn_blocking(move || read(&path)).await;
        let found = found.unwrap_or_else(|error| Err(error.to_string()));
        found.map_err(|why| FileProblem {
            path: self.password_file.clone(),
            why,
            next: "correct the file, or password_file of [etcd]".into(),
        })
    }
}

impl EtcdConfig {
    fn beat(&self) -> Duration {
        (self.lease / 5).clamp(DEADLINE_MIN, DEADLINE_MAX)
    }
}

/// How one endpoint is, as `replctl status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointReport {
    /// Its address.
    pub address: String,
    /// Whether it answered the last time.
    pub is_reachable: bool,
    /// Whether it knows a leader, and so is with a majority.
    pub has_leader: bool,
    /// Whether it is that leader.
    pub is_leader: bool,
    /// Its version.
    pub version: String,
    /// The etcd cluster it belongs to.
    pub store: u64,
    /// The way there and back in microseconds.
    pub round_trip_us: u64,
    /// The size of its database: without compaction it grows with every renewal.
    pub database_bytes: u64,
    /// Why it is not reachable.
    pub why: String,
}

/// What the thread is told.
struct Question {
    number: u64,
    ask: Box<Ask>,
}

/// The handle of the thread.
#[derive(Clone)]
pub(crate) struct Etcd {
    questions: mpsc::UnboundedSender<Question>,
    reports: Arc<Mutex<Reports>>,
}

/// What the thread finds out by itself.
#[derive(Default)]
struct Reports {
    endpoints: Vec<EndpointReport>,
    /// Why the certificates cannot be used as they are now.
    file_trouble: Option<FileProblem>,
}

/// What the thread tells.
pub(crate) enum Told {
    /// The answer to a question.
    Answered { number: u64, answer: Answer },
    /// Somebody changed something.
    Changed,
}

impl Etcd {
    /// Starts the thread; `tell` is called from it and must not wait.
    pub(crate) fn start(
        config: EtcdConfig,
        me: &NodeName,
        tell: impl Fn(Told) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (questions, inbox) = mpsc::unbounded_channel();
        let blank = |address: &SocketAddr| EndpointReport {
            address: address.to_string(),
            why: "not asked yet".into(),
            ..EndpointReport::default()
        };
        let endpoints = config.endpoints.iter().map(blank).collect();
        let own = Arc::new(Mutex::new(Reports { endpoints, file_trouble: None }));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (reports, me) = (own.clone(), me.clone());
        let body = move || runtime.block_on(serve(config, me, inbox, reports, Arc::new(tell)));
        thread::Builder::new().name("etcd".into()).spawn(body)?;
        Ok(Self { questions, reports: own })
    }

    /// Asks; the answer comes in any case.
    pub(crate) fn ask(&self, number: u64, ask: Box<Ask>) {
        // The thread lives as long as the process.
        let _ = self.questions.send(Question { number, ask });
    }

    /// How the endpoints are.
    pub(crate) fn endpoints(&self) -> Vec<EndpointReport> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).endpoints.clone()
    }

    /// Why the certificates cannot be used as they are now; those from before may still be in use.
    pub(crate) fn file_trouble(&self) -> Option<FileProblem> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).file_trouble.clone()
    }
}

async fn serve(
    config: EtcdConfig,
    me: NodeName,
    mut inbox: mpsc::UnboundedReceiver<Question>,
    reports: Arc<Mutex<Reports>>,
    tell: Arc<dyn Fn(Told) + Send + Sync>,
) {
    let client = Arc::new(Client::new(&config));
    let form = Arc::new(Form::new(&config));
    let beat = config.beat();
    // So that the first question finds them; after that, answers come in any case.
    let _ = timeout(beat, client.reload()).await;
    tokio::spawn(look_at_files(client.clone(), reports.clone()));
    tokio::spawn(look_at_endpoints(client.clone(), reports));
    tokio::spawn(watch(client.clone(), form.clone(), me, beat, tell.clone()));
    while let Some(Question { number, ask }) = inbox.recv().await {
        let (client, form, tell) = (client.clone(), form.clone(), tell.clone());
        tokio::spawn(async move {
            let answer = answer(&client, &form, &ask, beat).await;
            tell(Told::Answered { number, answer });
        });
    }
}

async fn answer(client: &Arc<Client>, form: &Form, ask: &Ask, deadline: Duration) -> Answer {
    let (path, body) = form.request(ask);
    let found = match client.post(path, &body, deadline).await {
        Ok(answer) => form.answer(ask, &answer).map_err(client::nonsense),
        Err(trouble) => Err(trouble),
    };
    found.unwrap_or_else(|trouble| {
        tracing::debug!("etcd: {}", trouble.why);
        Answer::Failed(trouble)
    })
}

async fn look_at_files(client: Arc<Client>, reports: Arc<Mutex<Reports>>) {
    loop {
        let found = client.reload().await;
        reports.lock().unwrap_or_else(PoisonError::into_inner).file_trouble = found;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look_at_endpoints(client: Arc<Client>, reports: Arc<Mutex<Reports>>) {
    loop {
        let began = Instant::now();
        let count = client.endpoint_count();
        let asked = (0..count).map(|index| client.look(index, LOOK_EVERY));
        let found = futures_util::future::join_all(asked).await;
        reports.lock().unwrap_or_else(PoisonError::into_inner).endpoints = found;
        tokio::time::sleep(LOOK_EVERY.saturating_sub(began.elapsed())).await;
    }
}

/// Tells whenever somebody else changes something. It may miss things: the core looks by itself.
async fn watch(
    client: Arc<Client>,
    form: Arc<Form>,
    me: NodeName,
    beat: Duration,
    tell: Arc<dyn Fn(Told) + Send + Sync>,
) {
    let mut index = 0;
    loop {
        let patience = beat * WATCH_BEATS;
        let lines = |line: &[u8]| {
            if form.is_change_by_others(line, &me) {
                tell(Told::Changed);
            }
        };
        client.watch(index, &form.watch_request(), patience, lines).await;
        index += 1;
        tokio::time::sleep(beat / 4).await;
    }
}

//! One question to etcd over HTTP: which endpoint, how long, and what a failure means. A question
//! that may have arrived is not asked again elsewhere: the core settles what became of it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use failover_core::etcd::Trouble;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::tls::{Credentials, FileProblem, Tls};
use super::{EndpointReport, EtcdConfig, Login};

/// An answer at most; a register has a few KiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Connections that wait for the next question, for each endpoint.
const IDLE_MAX: usize = 4;
/// The part of the time for a question that connecting may take.
const CONNECT_PART: u32 = 2;
/// A line of a watch at most.
const LINE_BYTES_MAX: usize = 1 << 20;
/// etcd verifies a password by a hash that is slow on purpose, the slower the busier it is.
const LOG_IN_PATIENCE: Duration = Duration::from_secs(5);
const LOG_IN_PAUSE: Duration = Duration::from_secs(1);
const ENDPOINTS: &str = "look at etcd: etcdctl endpoint status, for the endpoints of [etcd]";
const NO_NAME: &str = "sign the certificate of [etcd] again, without a common name (CN): \
                       with one, etcd takes no user over HTTP";

type Connection = SendRequest<Full<Bytes>>;

struct Endpoint {
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    /// With these it has answered.
    proven: Mutex<Option<Credentials>>,
    /// Held while user and password are verified: why they were not the last time, and when.
    refused: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    idle: Mutex<Vec<Connection>>,
}

/// The endpoints, and which of them is asked.
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<String>>,
    tls: Option<Arc<Tls>>,
}

/// What one endpoint made of one question.
#[derive(Clone)]
pub(super) enum Failure {
    /// It never arrived: another endpoint may be asked.
    NotSent(String),
    /// The same, because one side refuses the other.
    Tls { why: String, next: String },
    /// A file of this machine cannot be used, so it is of no use to ask others.
    File(FileProblem),
    /// It may have been done.
    Unknown(String),
    /// etcd said no.
    Refused(StatusCode, String),
}

pub(super) fn nonsense(why: String) -> Trouble {
    Trouble {
        code: "nonsense".into(),
        why: format!("etcd cannot be understood: {why}"),
        next: "look whether the endpoints of [etcd] are etcd 3.4 or later, and whether something \
               else writes below the prefix"
            .into(),
    }
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let tls = config.tls.clone().map(|files| Arc::new(Tls::new(files)));
        let endpoint = |address: &SocketAddr| Endpoint {
            address: *address,
            tls: tls.clone(),
            proven: Mutex::default(),
            refused: tokio::sync::Mutex::default(),
            idle: Mutex::default(),
        };
        Self {
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            current: AtomicUsize::new(0),
            login: config.login.clone(),
            token: Mutex::default(),
            tls,
        }
    }

    /// Looks for new certificates; gives why they cannot be used.
    pub(super) async fn reload(&self) -> Option<FileProblem> {
        let tls = self.tls.as_ref()?;
        tls.reload().await;
        tls.trouble()
    }

    pub(super) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// The next questions go to the one after it.
    fn pass_on(&self, from: usize) {
        let next = (from + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks an endpoint that can be reached.
    pub(super) async fn post(
        self: &Arc<Self>,
        path: &str,
        body: &Json,
        limit: Duration,
    ) -> Result<Vec<u8>, Trouble> {
        let deadline = tokio::time::Instant::now() + limit;
        let bytes = Bytes::from(body.to_string());
        let mut problems = Vec::new();
        let mut advice = None;
        for _ in 0..self.endpoints.len() {
            let index = self.current.load(Ordering::Relaxed) % self.endpoints.len();
            let address = self.endpoints[index].address;
            let asked = self.ask(index, path, bytes.clone(), limit);
            let failure = match timeout_at(deadline, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Unknown(format!("no answer within {} ms", limit.as_millis())),
            };
            self.pass_on(index);
            match failure {
                Failure::NotSent(why) => problems.push(format!("{address}: {why}")),
                Failure::Tls { why, next } => {
                    problems.push(format!("{address}: {why}"));
                    advice.get_or_insert(next);
                }
                Failure::File(problem) => return Err(problem.into()),
                Failure::Unknown(why) => {
                    problems.push(format!("{address}: {why}"));
                    break;
                }
                Failure::Refused(status, why) => {
                    return Err(self.refused(address, status, &why));
                }
            }
        }
        Err(Trouble {
            code: if advice.is_some() { "certificate" } else { "unreachable" }.into(),
            why: format!("etcd does not answer: {}", problems.join("; ")),
            next: advice.unwrap_or_else(|| ENDPOINTS.into()),
        })
    }

    /// etcd's own words, and what to do about them.
    fn refused(&self, address: SocketAddr, status: StatusCode, why: &str) -> Trouble {
        let lower = why.to_ascii_lowercase();
        let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let (code, next) = if is(&["user name is empty", "user name not found"]) {
            ("password", "etcd wants a user: write user and password_file into [etcd]")
        } else if is(&["commonname of client"]) {
            ("certificate", NO_NAME)
        } else if is(&["authentication failed", "invalid user"]) {
            ("password", "look at user and password_file of [etcd]")
        } else if is(&["permission denied"]) {
            (
                "permission",
                "give the user of [etcd] read and write below the prefix: etcdctl role \
                 grant-permission ROLE readwrite PREFIX --prefix",
            )
        } else if is(&["space exceeded"]) {
            (
                "no_space",
                "etcd is full: etcdctl compact, defrag, alarm disarm; and run etcd with \
                 --auto-compaction-retention=1",
            )
        } else if is(&["no leader", "timed out", "leader changed", "unavailable"]) {
            ("no_leader", "bring back members of etcd, until it has a majority")
        } else {
            ("refused", ENDPOINTS)
        };
        let why = format!("etcd at {address} refuses: {why} ({status})");
        Trouble { code: code.into(), why, next: next.into() }
    }

    /// One endpoint, with a token if there is a password; one that is over is replaced.
    async fn ask(
        self: &Arc<Self>,
        index: usize,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        for attempt in 0..2 {
            let token = self.token(index).await?;
            match self.exchange(index, path, body.clone(), token.as_deref(), limit).await {
                Err(Failure::Refused(_, why)) if attempt == 0 && is_old_token(&why) => {
                    let mut known = self.token.lock().unwrap_or_else(PoisonError::into_inner);
                    // Another question may have a newer one already.
                    known.take_if(|known| Some(known.as_str()) == token.as_deref());
                }
                other => return other,
            }
        }
        unreachable!("the second attempt returns")
    }

    fn known_token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn token(self: &Arc<Self>, index: usize) -> Result<Option<String>, Failure> {
        if self.login.is_none() {
            return Ok(None);
        }
        if let Some(known) = self.known_token() {
            return Ok(Some(known));
        }
        // It goes on when this question is given up: a password is slow to verify on purpose, and
        // every question that began anew would make it slower.
        let client = self.clone();
        let logging_in = tokio::spawn(async move { client.log_in(index).await });
        logging_in.await.unwrap_or_else(|error| Err(Failure::NotSent(error.to_string())))
    }

    /// One at a time for each endpoint, and not at once again after a refusal.
    async fn log_in(&self, index: usize) -> Result<Option<String>, Failure> {
        let mut refused = self.endpoints[index].refused.lock().await;
        if let Some(known) = self.known_token() {
            return Ok(Some(known));
        }
        if let Some((at, failure)) = &*refused
            && at.elapsed() < LOG_IN_PAUSE
        {
            return Err(failure.clone());
        }
        let found = timeout(LOG_IN_PATIENCE, self.authenticate(index)).await;
        let late = |_| Err(Failure::NotSent("the password was not verified in time".into()));
        let found = found.unwrap_or_else(late);
        *refused = found.as_ref().err().map(|failure| (Instant::now(), failure.clone()));
        found
    }

    async fn authenticate(&self, index: usize) -> Result<Option<String>, Failure> {
        let Some(login) = &self.login else { return Ok(None) };
        let password = login.password().await.map_err(Failure::File)?;
        let body = json!({ "name": login.user, "password": password }).to_string();
        let path = "/v3/auth/authenticate";
        let asked = self.exchange(index, path, body.into(), None, LOG_IN_PATIENCE).await;
        let answer = match asked {
            // A password given to an etcd that wants none does no harm.
            Err(Failure::Refused(_, why)) if why.contains("authentication is not enabled") => {
                return Ok(None);
            }
            // Nothing but the token was asked for.
            Err(Failure::Unknown(why)) => return Err(Failure::NotSent(why)),
            other => other?,
        };
        let answer: Json = serde_json::from_slice(&answer).unwrap_or_default();
        let token = answer["token"].as_str().map(str::to_owned);
        if token.is_none() {
            return Err(Failure::NotSent("it gave no token for the password".into()));
        }
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        Ok(token)
    }

    async fn exchange(
        &self,
        index: usize,
        path: &str,
        body: Bytes,
        token: Option<&str>,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let endpoint = &self.endpoints[index];
        let connection = endpoint.connect(limit / CONNECT_PART).await?;
        endpoint.converse(connection, endpoint.request(path, body, token)).await
    }

    /// How an endpoint is.
    pub(super) async fn look(&self, index: usize, limit: Duration) -> EndpointReport {
        let endpoint = &self.endpoints[index];
        let address = endpoint.address.to_string();
        let began = Instant::now();
        let answer = match timeout(limit, endpoint.status(limit)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure::NotSent(why) | Failure::Unknown(why))) => Err(why),
            Ok(Err(Failure::Tls { why, next })) => Err(format!("{why}; {next}")),
            Ok(Err(Failure::File(problem))) => Err(format!("{}; {}", problem.why, problem.next)),
            Ok(Err(Failure::Refused(status, why))) => {
                let Trouble { why, next, .. } = self.refused(endpoint.address, status, &why);
                Err(format!("{why}; {next}"))
            }
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return EndpointReport { address, why, ..EndpointReport::default() },
        };
        let said: Json = serde_json::from_slice(&answer).unwrap_or_default();
        let text = |from: &Json| from.as_str().unwrap_or_default().to_owned();
        let (leader, member) = (text(&said["leader"]), text(&said["header"]["member_id"]));
        let version = text(&said["version"]);
        if version.is_empty() {
            let why = "what answers there is no etcd".into();
            return EndpointReport { address, why, ..EndpointReport::default() };
        }
        let has_leader = !leader.is_empty() && leader != "0";
        EndpointReport {
            address,
            is_reachable: true,
            has_leader,
            is_leader: has_leader && leader == member,
            version,
            store: text(&said["header"]["cluster_id"]).parse().unwrap_or_default(),
            round_trip_us: began.elapsed().as_micros() as u64,
            database_bytes: text(&said["dbSize"]).parse().unwrap_or_default(),
            why: String::new(),
        }
    }

    /// Gives the lines of a watch, until it ends or says nothing for so long.
    pub(super) async fn watch(
        self: &Arc<Self>,
        index: usize,
        body: &Json,
        patience: Duration,
        lines: impl Fn(&[u8]),
    ) {
        let index = index % self.endpoints.len();
        let endpoint = &self.endpoints[index];
        let Ok(Ok(token)) = timeout(patience, self.token(index)).await else { return };
        let Ok(mut connection) = endpoint.connect(patience).await else { return };
        let body = Bytes::from(body.to_string());
        let request = endpoint.request("/v3/watch", body, token.as_deref());
        let asked = timeout(patience, connection.send_request(request)).await;
        let Ok(Ok(response)) = asked else { return };
        let mut body = response.into_body();
        let mut line = Vec::new();
        while let Ok(Some(Ok(frame))) = timeout(patience, body.frame()).await {
            for byte in frame.data_ref().into_iter().flatten() {
                match byte {
                    b'\n' => {
                        lines(&line);
                        line.clear();
                    }
                    byte => line.push(*byte),
                }
            }
            if line.len() > LINE_BYTES_MAX {
                return;
            }
        }
    }
}

fn is_old_token(why: &str) -> bool {
    let words = ["invalid auth token", "auth store is old", "user name is empty"];
    words.iter().any(|word| why.contains(word))
}

async fn read(
    response: Response<Incoming>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok(body.collect().await?.to_bytes().to_vec())
}

impl Endpoint {
    /// A connection that waits, or a new one.
    async fn connect(&self, limit: Duration) -> Result<Connection, Failure> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connection) = idle else { break };
            // Its last answer may be known before it is ready for the next question.
            if let Ok(Ok(())) = timeout(limit, connection.ready()).await {
                return Ok(connection);
            }
        }
        let Some(tls) = &self.tls else { return self.open(None, limit).await };
        let proven = self.proven().clone();
        let credentials = proven.map_or_else(|| tls.credentials(), Ok)?;
        self.open(Some((tls, &credentials)), limit).await
    }

    async fn open(
        &self,
        tls: Option<(&Tls, &Credentials)>,
        limit: Duration,
    ) -> Result<Connection, Failure> {
        let opening = async {
            let failed = |error: io::Error| Failure::NotSent(error.to_string());
            let socket = TcpStream::connect(self.address).await.map_err(failed)?;
            // Small questions, one at a time.
            let _ = socket.set_nodelay(true);
            match tls {
                None => start(socket).await,
                Some((tls, credentials)) => {
                    start(tls.connect(credentials, self.address, socket).await?).await
                }
            }
        };
        let late = |_| Failure::NotSent("cannot connect in time".into());
        timeout(limit, opening).await.map_err(late)?
    }

    fn proven(&self) -> MutexGuard<'_, Option<Credentials>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks how it is: with new certificates on a new connection. Until they have proved good there
    /// all else uses the former ones, so that wrong ones are seen before they do harm.
    async fn status(&self, limit: Duration) -> Result<Vec<u8>, Failure> {
        let request = self.request("/v3/maintenance/status", Bytes::from("{}"), None);
        let limit = limit / CONNECT_PART;
        if let Some(tls) = &self.tls {
            let newest = tls.credentials()?;
            let proven = self.proven().as_ref().map(|it| it.generation);
            if proven != Some(newest.generation) {
                let connection = self.open(Some((tls, &newest)), limit).await?;
                let answer = self.converse(connection, request).await?;
                *self.proven() = Some(newest);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                return Ok(answer);
            }
        }
        self.converse(self.connect(limit).await?, request).await
    }

    async fn converse(
        &self,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Vec<u8>, Failure> {
        let response = connection.send_request(request).await.map_err(|error| {
            let refused = self.tls.as_ref().and_then(|tls| tls.failure(&error));
            refused.unwrap_or_else(|| {
                let hint = match &self.tls {
                    None if error.is_incomplete_message() => {
                        ": if it speaks TLS, write https:// and ca into [etcd]"
                    }
                    _ => "",
                };
                Failure::Unknown(format!("{error}{hint}"))
            })
        })?;
        let status = response.status();
        let answer = read(response).await.map_err(|it| Failure::Unknown(it.to_string()))?;
        self.keep(connection);
        if status.is_success() {
            return Ok(answer);
        }
        let said: Json = serde_json::from_slice(&answer).unwrap_or_default();
        // What the gateway itself refuses is plain text.
        let plain = String::from_utf8_lossy(&answer);
        let words = said["error"].as_str().or(said["message"].as_str());
        let words = words.or(plain.lines().next()).unwrap_or("without a reason");
        Err(Failure::Refused(status, words.to_owned()))
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    fn request(&self, path: &str, body: Bytes, token: Option<&str>) -> Request<Full<Bytes>> {
        let mut request = Request::post(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        request.body(Full::new(body)).expect("its parts are valid")
    }
}

/// Speaks HTTP on a connection.
async fn start<T>(socket: T) -> Result<Connection, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| Failure::NotSent(error.to_string());
    let (connection, driver) = handshake(TokioIo::new(socket)).await.map_err(failed)?;
    tokio::spawn(driver);
    Ok(connection)
}

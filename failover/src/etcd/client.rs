//! One question to etcd over HTTP: which endpoint, how long, and what a failure means. A question
//! that may have arrived is not asked again elsewhere: the core settles what became of it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use failover_core::etcd::Trouble;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::{EndpointReport, EtcdConfig};

/// An answer at most; a register has a few KiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Connections that wait for the next question, for each endpoint.
const IDLE_MAX: usize = 4;
/// The part of the time for a question that connecting may take.
const CONNECT_PART: u32 = 2;
/// A line of a watch at most.
const LINE_BYTES_MAX: usize = 1 << 20;
const ENDPOINTS: &str = "look at etcd: etcdctl endpoint status, for the endpoints of [etcd]";

struct Endpoint {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// The endpoints, and which of them is asked.
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    login: Option<(String, String)>,
    token: Mutex<Option<String>>,
}

/// What one endpoint made of one question.
enum Failure {
    /// It never arrived: another endpoint may be asked.
    NotSent(String),
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
        let endpoint =
            |address: &SocketAddr| Endpoint { address: *address, idle: Mutex::default() };
        Self {
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            current: AtomicUsize::new(0),
            login: config.login.clone(),
            token: Mutex::default(),
        }
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
        &self,
        path: &str,
        body: &Json,
        limit: Duration,
    ) -> Result<Vec<u8>, Trouble> {
        let deadline = tokio::time::Instant::now() + limit;
        let bytes = Bytes::from(body.to_string());
        let mut problems = Vec::new();
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
            code: "unreachable".into(),
            why: format!("etcd does not answer: {}", problems.join("; ")),
            next: ENDPOINTS.into(),
        })
    }

    /// etcd's own words, and what to do about them.
    fn refused(&self, address: SocketAddr, status: StatusCode, why: &str) -> Trouble {
        let lower = why.to_ascii_lowercase();
        let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let (code, next) = if is(&["user name is empty", "user name not found"]) {
            ("password", "etcd wants a user: write user and password_file into [etcd]")
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
        &self,
        index: usize,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        for attempt in 0..2 {
            let token = self.token(index, limit).await?;
            match self.exchange(index, path, body.clone(), token.as_deref(), limit).await {
                Err(Failure::Refused(_, why)) if attempt == 0 && is_old_token(&why) => {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                other => return other,
            }
        }
        unreachable!("the second attempt returns")
    }

    async fn token(&self, index: usize, limit: Duration) -> Result<Option<String>, Failure> {
        let Some((name, password)) = &self.login else { return Ok(None) };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let body = json!({ "name": name, "password": password }).to_string();
        let asked = self.exchange(index, "/v3/auth/authenticate", body.into(), None, limit).await;
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
        let mut connection = endpoint.connect(limit / CONNECT_PART).await?;
        let request = endpoint.request(path, body, token);
        let unknown = |error: &dyn std::fmt::Display| Failure::Unknown(error.to_string());
        let response = connection.send_request(request).await.map_err(|it| unknown(&it))?;
        let status = response.status();
        let answer = read(response).await.map_err(|it| unknown(&it))?;
        endpoint.keep(connection);
        if status.is_success() {
            return Ok(answer);
        }
        let said: Json = serde_json::from_slice(&answer).unwrap_or_default();
        let words = said["error"].as_str().or(said["message"].as_str());
        Err(Failure::Refused(status, words.unwrap_or("without a reason").to_owned()))
    }

    /// How an endpoint is.
    pub(super) async fn look(&self, index: usize, limit: Duration) -> EndpointReport {
        let endpoint = &self.endpoints[index];
        let address = endpoint.address.to_string();
        let began = Instant::now();
        let asked = self.exchange(index, "/v3/maintenance/status", Bytes::from("{}"), None, limit);
        let answer = match timeout(limit, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Failure::NotSent(why) | Failure::Unknown(why))) => {
                return EndpointReport { address, why, ..EndpointReport::default() };
            }
            Ok(Err(Failure::Refused(status, why))) => {
                let why = format!("{why} ({status})");
                return EndpointReport { address, why, ..EndpointReport::default() };
            }
            Err(_) => {
                let why = format!("no answer within {} ms", limit.as_millis());
                return EndpointReport { address, why, ..EndpointReport::default() };
            }
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
        &self,
        index: usize,
        body: &Json,
        patience: Duration,
        lines: impl Fn(&[u8]),
    ) {
        let index = index % self.endpoints.len();
        let endpoint = &self.endpoints[index];
        let Ok(token) = self.token(index, patience).await else { return };
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
    async fn connect(&self, limit: Duration) -> Result<SendRequest<Full<Bytes>>, Failure> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(connection) if connection.is_ready() => return Ok(connection),
                Some(_) => {}
                None => break,
            }
        }
        let failed = |error: &dyn std::fmt::Display| Failure::NotSent(error.to_string());
        let connecting = timeout(limit, TcpStream::connect(self.address)).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "cannot connect in time");
        let socket =
            connecting.map_err(late).and_then(|done| done).map_err(|error| failed(&error))?;
        // Small questions, one at a time.
        let _ = socket.set_nodelay(true);
        let (connection, driver) =
            handshake(TokioIo::new(socket)).await.map_err(|error| failed(&error))?;
        tokio::spawn(driver);
        Ok(connection)
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

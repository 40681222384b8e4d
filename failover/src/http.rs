//! HTTP for load balancers, Prometheus and people: GET, HEAD and OPTIONS, nothing that changes
//! anything. What a page says is its owner's business ([`Pages`]); here are the sockets, the limits
//! and who may ask.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// Pages made at once: each may wait for a data loop that hangs.
const PAGES_MAX: usize = 8;
/// A client that has not sent its request by then is closed.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// A connection that lives so long is closed; keep-alive clients come again.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// How long a request waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(4);
/// How often an address is tried that cannot be bound.
const BIND_RETRY: Duration = Duration::from_secs(2);

/// A range of addresses, as `192.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// From `ADDRESS` or `ADDRESS/PREFIX`; none when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let base: IpAddr = base.parse().ok()?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(longest), |text| text.parse().ok())?;
        (prefix <= longest).then_some(Self { base, prefix })
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = |a: u128, b: u128, bits: u32| {
            let differing = (a ^ b) << (128 - bits);
            differing.leading_zeros() >= u32::from(self.prefix)
        };
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// Where to listen, and for whom.
#[derive(Debug, Clone, Default)]
pub struct HttpConfig {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// Who may ask; empty: everybody.
    pub allow: Vec<Network>,
}

/// A page as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The HTTP status.
    pub status: u16,
    /// Its type.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

/// Makes pages. Called on threads that may wait.
pub trait Pages: Send + Sync + 'static {
    /// The page of a path, with what came behind `?`.
    fn page(&self, path: &str, query: &str) -> Page;
}

struct Server {
    allow: Vec<Network>,
    pages: Arc<dyn Pages>,
    connections: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// Serves for ever, on a thread of its own. An address that cannot be bound yet is tried again.
pub fn serve(config: HttpConfig, pages: Arc<dyn Pages>) -> io::Result<()> {
    if config.listen.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(PAGES_MAX)
        .build()?;
    let server = Arc::new(Server {
        allow: config.allow,
        pages,
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        turns: Arc::new(Semaphore::new(PAGES_MAX)),
    });
    let body = move || {
        runtime.block_on(async move {
            let listeners = config.listen.into_iter().map(|at| listen(at, server.clone()));
            futures_util::future::join_all(listeners).await;
        });
    };
    thread::Builder::new().name("http".into()).spawn(body).map(drop)
}

async fn listen(address: SocketAddr, server: Arc<Server>) {
    let mut has_complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !has_complained => {
                has_complained = true;
                tracing::warn!("cannot serve HTTP on {address} yet: {error}; trying again");
            }
            Err(_) => {}
        }
        sleep(BIND_RETRY).await;
    };
    loop {
        let Ok(permit) = server.connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    serve_one(&server, stream, from).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept an HTTP connection: {error}");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn serve_one(server: &Arc<Server>, stream: TcpStream, from: SocketAddr) {
    let is_welcome =
        server.allow.is_empty() || server.allow.iter().any(|it| it.contains(from.ip()));
    let service = service_fn(|request| answer(server.clone(), is_welcome, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    // Errors are those of a client that went away or speaks no HTTP: it has its answer.
    let _ = timeout(CONNECTION_LIFE, connection).await;
}

async fn answer(
    server: Arc<Server>,
    is_welcome: bool,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().clone();
    let page = if !is_welcome {
        plain(403, "this address is not in `http_allow`\n")
    } else if !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) {
        plain(405, "nothing can be changed here; use replctl\n")
    } else {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        make(server, path, query).await
    };
    let has_body = method != Method::HEAD && method != Method::OPTIONS;
    let body = if has_body { Bytes::from(page.body) } else { Bytes::new() };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() =
        StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if method == Method::OPTIONS || page.status == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    Ok(response)
}

async fn make(server: Arc<Server>, path: String, query: String) -> Page {
    let Ok(Ok(turn)) = timeout(TURN_PATIENCE, server.turns.clone().acquire_owned()).await else {
        return plain(503, "too many requests wait for a data loop that does not answer\n");
    };
    let pages = server.pages.clone();
    let made = tokio::task::spawn_blocking(move || {
        let page = pages.page(&path, &query);
        drop(turn);
        page
    });
    made.await.unwrap_or_else(|_| plain(500, "the page could not be made\n"))
}

fn plain(status: u16, text: &str) -> Page {
    Page { status, content_type: "text/plain; charset=utf-8", body: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener as StdListener, TcpStream as StdStream};

    use super::*;

    struct Echo;

    impl Pages for Echo {
        fn page(&self, path: &str, query: &str) -> Page {
            let status = if path == "/primary" { 200 } else { 503 };
            plain(status, &format!("{path} {query}"))
        }
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = (0..200)
            .find_map(|_| {
                thread::yield_now();
                StdStream::connect(address).ok().or_else(|| {
                    thread::park_timeout(Duration::from_millis(20));
                    None
                })
            })
            .expect("it listens within seconds");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn served(allow: &[&str]) -> SocketAddr {
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let allow = allow.iter().map(|text| Network::parse(text).unwrap()).collect();
        serve(HttpConfig { listen: vec![address], allow }, Arc::new(Echo)).unwrap();
        address
    }

    #[test]
    fn each_method_gets_what_load_balancers_expect() {
        let address = served(&[]);
        let request = |method: &str, path: &str| {
            ask(
                address,
                &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            )
        };
        let got = request("GET", "/primary?a=1");
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        assert!(got.ends_with("/primary a=1"), "{got}");
        for method in ["HEAD", "OPTIONS"] {
            let got = request(method, "/replica");
            assert!(got.starts_with("HTTP/1.1 503"), "{got}");
            assert!(got.ends_with("\r\n\r\n"), "a body: {got}");
        }
        let got = request("POST", "/primary");
        assert!(got.starts_with("HTTP/1.1 405"), "{got}");
        assert!(got.to_lowercase().contains("allow: get, head, options"), "{got}");
        assert!(ask(address, "no http\r\n\r\n").starts_with("HTTP/1.1 400"));
    }

    #[test]
    fn who_is_not_allowed_is_told_so() {
        let address = served(&["192.0.2.0/24", "2001:db8::/32"]);
        let got = ask(address, "GET /primary HTTP/1.0\r\n\r\n");
        assert!(got.contains(" 403 "), "{got}");
        assert!(got.contains("http_allow"), "{got}");
    }

    #[test]
    fn networks_hold_the_addresses_of_their_prefix() {
        let holds = |network: &str, address: &str| {
            Network::parse(network).unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("192.0.2.0/24", "192.0.2.255") && !holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("192.0.2.1", "::ffff:192.0.2.1") && !holds("192.0.2.1", "192.0.2.2"));
        assert!(holds("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!holds("2001:db8::/33", "2001:db8:8000::1"));
        for wrong in ["192.0.2.0/33", "host", "192.0.2.0/", "::/129", ""] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }
}

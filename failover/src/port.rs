//! The UDP sockets that this process hears at. One socket serves every cluster that listens at its
//! address: a datagram says in its head which one it is for, and is opened with the key of that
//! one. One for a cluster that is not served here, or of a sender without the key, is refused,
//! counted, and named.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::datagram::{DATAGRAM_BYTES_MAX, DatagramError, Opened, Sealer};
use crate::node::{StartError, spawn};

/// How often a listener tries an address that this machine does not have yet.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// Refused datagrams are counted, and one is logged at most this often.
const LOG_PAUSE: Duration = Duration::from_secs(30);

/// Datagrams that were thrown away.
#[derive(Default)]
pub struct Refused {
    count: AtomicU64,
    last: Mutex<(String, Option<Instant>)>,
}

impl Refused {
    fn note(&self, from: SocketAddr, why: &dyn std::fmt::Display) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.0 = format!("{from}: {why}");
        if last.1.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
            last.1 = Some(Instant::now());
            tracing::warn!("refused a message from {from}: {why}");
        }
    }

    /// How many, and the last reason.
    pub fn told(&self) -> (u64, String) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (self.count.load(Ordering::Relaxed), last.0.clone())
    }
}

type Give = Arc<dyn Fn(Opened) -> bool + Send + Sync>;

/// One cluster at one address.
#[derive(Clone)]
pub struct Station {
    sealer: Sealer,
    refused: Arc<Refused>,
    /// Takes an opened message; false when nobody is there any more.
    give: Give,
}

impl Station {
    /// What `sealer` opens goes to `give`, what it refuses is noted.
    pub fn new(
        sealer: Sealer,
        refused: Arc<Refused>,
        give: impl Fn(Opened) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { sealer, refused, give: Arc::new(give) }
    }
}

type Stations = Arc<Mutex<HashMap<String, Station>>>;

/// All addresses that this process listens at.
#[derive(Clone, Default)]
pub struct Ports {
    open: Arc<Mutex<HashMap<SocketAddr, Stations>>>,
    strangers: Arc<Refused>,
}

impl Ports {
    /// Has a cluster heard at an address. An address in use by another process is an error, one
    /// that the machine does not have yet is tried again in the background.
    pub fn listen(&self, address: SocketAddr, station: Station) -> Result<(), StartError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = station.sealer.cluster().to_owned();
        if let Some(stations) = open.get(&address) {
            locked(stations).insert(cluster, station);
            return Ok(());
        }
        let stations = Stations::default();
        locked(&stations).insert(cluster, station);
        self.hear(address, stations.clone())?;
        open.insert(address, stations);
        Ok(())
    }

    /// How many datagrams were for no cluster of this process, and the last one.
    pub fn strangers(&self) -> (u64, String) {
        self.strangers.told()
    }

    fn hear(&self, address: SocketAddr, stations: Stations) -> Result<(), StartError> {
        let socket = match UdpSocket::bind(address) {
            Ok(socket) => Some(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tracing::warn!("cannot listen on {address} yet: {error}; trying again");
                None
            }
            Err(source) => {
                return Err(StartError::Io { what: format!("listen on {address} (UDP)"), source });
            }
        };
        let strangers = self.strangers.clone();
        spawn(&format!("hear {address}"), move || {
            let socket = socket.unwrap_or_else(|| bind_later(address));
            hear_for_ever(&socket, &stations, &strangers);
        })
    }
}

fn bind_later(address: SocketAddr) -> UdpSocket {
    loop {
        thread::sleep(LISTEN_RETRY);
        if let Ok(socket) = UdpSocket::bind(address) {
            return socket;
        }
    }
}

fn hear_for_ever(socket: &UdpSocket, stations: &Stations, strangers: &Refused) {
    let mut bytes = vec![0; DATAGRAM_BYTES_MAX + 1];
    loop {
        // Errors are those of datagrams that we sent from here: none.
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        take_in(&bytes[..length], from, stations, strangers);
    }
}

fn take_in(bytes: &[u8], from: SocketAddr, stations: &Stations, strangers: &Refused) {
    let cluster = match Sealer::cluster_of(bytes) {
        Ok(cluster) => cluster,
        Err(why) => return strangers.note(from, &why),
    };
    let Some(station) = locked(stations).get(cluster).cloned() else {
        let served: Vec<String> = locked(stations).keys().cloned().collect();
        let why = DatagramError::UnknownCluster {
            cluster: cluster.escape_debug().to_string(),
            served: sorted(served).join(", "),
        };
        return strangers.note(from, &why);
    };
    match station.sealer.open(bytes) {
        Ok(opened) => {
            if !(station.give)(opened) {
                locked(stations).remove(cluster);
            }
        }
        // Most come over several paths.
        Err(DatagramError::Repeated) => {}
        Err(why) => station.refused.note(from, &why),
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

fn locked(stations: &Stations) -> MutexGuard<'_, HashMap<String, Station>> {
    stations.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::datagram::tests::envelope;

    fn sealer(cluster: &str, node: &str, key: u8) -> Sealer {
        // Not a code anybody should use; the daemon brings HMAC-SHA256.
        let authenticate = move |parts: &[&[u8]]| {
            let mut sum = [key; 32];
            for (at, byte) in parts.concat().iter().enumerate() {
                sum[at % 32] = sum[at % 32].wrapping_mul(31).wrapping_add(*byte);
            }
            sum
        };
        Sealer::new(cluster, node.into(), Vec::new(), Arc::new(authenticate))
    }

    fn sealed(cluster: &str, key: u8) -> Vec<u8> {
        sealer(cluster, "alpha", key).seal(&"gamma".into(), &envelope()).unwrap()
    }

    #[test]
    fn each_cluster_gets_its_own_and_others_are_refused_by_name() {
        let (stations, strangers) = (Stations::default(), Refused::default());
        let mut inboxes = HashMap::new();
        for (cluster, key) in [("shop", 1), ("blog", 2)] {
            let (sender, inbox) = mpsc::channel();
            let refused = Arc::new(Refused::default());
            let give = move |opened| sender.send(opened).is_ok();
            let station = Station::new(sealer(cluster, "gamma", key), refused.clone(), give);
            locked(&stations).insert(cluster.to_owned(), station);
            inboxes.insert(cluster, (inbox, refused));
        }
        let from: SocketAddr = "192.0.2.1:7788".parse().unwrap();
        let take = |bytes: &[u8]| take_in(bytes, from, &stations, &strangers);
        take(&sealed("shop", 1));
        take(&sealed("blog", 2));
        for (inbox, refused) in inboxes.values() {
            assert!(inbox.try_recv().is_ok() && inbox.try_recv().is_err());
            assert_eq!(refused.told().0, 0);
        }
        // The key of one cluster opens nothing of another.
        take(&sealed("blog", 1));
        let (count, why) = inboxes["blog"].1.told();
        assert!(count == 1 && why.contains("its code is wrong"), "{why}");
        assert_eq!(strangers.told().0, 0);
        take(&sealed("mail", 1));
        let (count, why) = strangers.told();
        assert_eq!(count, 1);
        assert!(why.contains("192.0.2.1") && why.contains("mail"), "{why}");
        assert!(why.contains("blog, shop"), "{why}");
        take(b"nonsense");
        assert_eq!(strangers.told().0, 2);
    }
}

//! Messages between nodes as UDP datagrams: each with the names of cluster, sender and receiver,
//! and a code that proves that the sender knows the cluster's key. Nothing behind the names is
//! parsed before the code is right.
//!
//! ```text
//!   magic (4)  version (1)  cluster  from  to  payload  code (32)
//! ```
//! A name is one byte of length and its bytes; the payload is postcard: the addresses that the
//! sender's own configuration gives it, the number of the datagram, and the message. A node that
//! has moved is heard, since only its name is proved, and tells those with an older file where it
//! is. Datagrams may be lost, doubled or late: the messages are made for it
//! (`failover_core::message`). One that comes again is thrown away (`repeats.rs`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use failover_core::NodeName;
use failover_core::message::Envelope;
use thiserror::Error;

use crate::repeats::Repeats;

const MAGIC: &[u8; 4] = b"RPLC";
/// The version of the messages that this build speaks.
pub const VERSION: u8 = 4;
const CODE_BYTES: usize = 32;
/// A datagram at most; UDP carries 65 507 bytes.
pub const DATAGRAM_BYTES_MAX: usize = 60_000;

/// Computes the code over parts with the cluster's key.
pub type Authenticate = Arc<dyn Fn(&[&[u8]]) -> [u8; 32] + Send + Sync>;

/// Why a datagram is thrown away.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatagramError {
    /// It is no datagram of ours.
    #[error("it is no message of replicatord")]
    Foreign,
    /// It speaks another version.
    #[error("it speaks version {0} of the cluster protocol, this node {VERSION}")]
    Version(u8),
    /// It belongs to another cluster or is for another node.
    #[error("it is for {0}")]
    Misdirected(String),
    /// It is for a cluster that this process does not serve.
    #[error("it is for cluster {cluster}, which is not served here (served: {served})")]
    UnknownCluster {
        /// The cluster.
        cluster: String,
        /// Those that are.
        served: String,
    },
    /// Its sender does not know the key, or it was changed on its way.
    #[error("its code is wrong: the sender has another key, or it was changed on its way")]
    Code,
    /// It was sealed with the key and yet makes no sense.
    #[error("it cannot be understood: {0}")]
    Nonsense(String),
    /// It came in already, over another path, or somebody sent it again.
    #[error("it came in already")]
    Repeated,
    /// The name of a node is too long for a datagram.
    #[error("the name of {0:?} has more than 255 bytes")]
    LongName(NodeName),
    /// The message is larger than a datagram.
    #[error("the message has {0} bytes, a datagram takes {DATAGRAM_BYTES_MAX}")]
    TooLarge(usize),
}

/// What a datagram holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its sender.
    pub from: NodeName,
    /// Where the sender is reached, by its own file.
    pub addresses: Vec<SocketAddr>,
    /// The message.
    pub envelope: Envelope,
}

/// Seals and opens the datagrams of one node.
#[derive(Clone)]
pub struct Sealer {
    cluster: String,
    me: NodeName,
    addresses: Vec<SocketAddr>,
    authenticate: Authenticate,
    sealed: Arc<AtomicU64>,
    opened: Arc<Mutex<Repeats>>,
}

impl Sealer {
    /// A sealer for a node of a cluster, and where it is reached. Names have at most 255 bytes.
    pub fn new(
        cluster: &str,
        me: NodeName,
        addresses: Vec<SocketAddr>,
        authenticate: Authenticate,
    ) -> Self {
        let (sealed, opened) = (Arc::default(), Arc::default());
        Self { cluster: cluster.to_owned(), me, addresses, authenticate, sealed, opened }
    }

    /// The cluster that it seals for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The cluster that a datagram says it is for. Nothing proves that yet.
    pub fn cluster_of(bytes: &[u8]) -> Result<&str, DatagramError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(DatagramError::Foreign)?;
        let (_, rest) = rest.split_first().ok_or(DatagramError::Foreign)?;
        Ok(name(rest)?.0)
    }

    /// The datagram of a message.
    pub fn seal(&self, to: &NodeName, envelope: &Envelope) -> Result<Vec<u8>, DatagramError> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        for name in [&self.cluster, &self.me.0, &to.0] {
            let length =
                u8::try_from(name.len()).map_err(|_| DatagramError::LongName(to.clone()))?;
            bytes.push(length);
            bytes.extend_from_slice(name.as_bytes());
        }
        let number = self.sealed.fetch_add(1, Ordering::Relaxed);
        let nonsense = |error: postcard::Error| DatagramError::Nonsense(error.to_string());
        let bytes = postcard::to_extend(&(&self.addresses, number, envelope), bytes);
        let mut bytes =
            postcard::to_extend(&envelope.yours, bytes.map_err(nonsense)?).map_err(nonsense)?;
        let code = (self.authenticate)(&[b"cluster datagram", &bytes]);
        bytes.extend_from_slice(&code);
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(DatagramError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// The sender of a datagram, its addresses, and the message.
    pub fn open(&self, bytes: &[u8]) -> Result<Opened, DatagramError> {
        let (body, code) = bytes
            .len()
            .checked_sub(CODE_BYTES)
            .map(|at| bytes.split_at(at))
            .ok_or(DatagramError::Foreign)?;
        let rest = body.strip_prefix(MAGIC).ok_or(DatagramError::Foreign)?;
        let (version, rest) = rest.split_first().ok_or(DatagramError::Foreign)?;
        let (cluster, rest) = name(rest)?;
        let (from, rest) = name(rest)?;
        let (to, payload) = name(rest)?;
        if *version != VERSION {
            return Err(DatagramError::Version(*version));
        }
        if cluster != self.cluster || to != self.me.0 {
            return Err(DatagramError::Misdirected(format!("{to} of cluster {cluster}")));
        }
        let right = (self.authenticate)(&[b"cluster datagram", body]);
        if !equal_in_constant_time(code, &right) {
            return Err(DatagramError::Code);
        }
        let nonsense = |error: postcard::Error| DatagramError::Nonsense(error.to_string());
        let ((addresses, number, mut envelope), rest): ((_, u64, Envelope), _) =
            postcard::take_from_bytes(payload).map_err(nonsense)?;
        // What an earlier build does not say; and what a later one says behind it is ignored.
        if !rest.is_empty() {
            (envelope.yours, _) = postcard::take_from_bytes(rest).map_err(nonsense)?;
        }
        let from = NodeName(from.to_owned());
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !opened.is_new(&from, envelope.process, number) {
            return Err(DatagramError::Repeated);
        }
        Ok(Opened { from, addresses, envelope })
    }
}

fn name(bytes: &[u8]) -> Result<(&str, &[u8]), DatagramError> {
    let (length, rest) = bytes.split_first().ok_or(DatagramError::Foreign)?;
    let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or(DatagramError::Foreign)?;
    let name = std::str::from_utf8(name).map_err(|_| DatagramError::Foreign)?;
    Ok((name, rest))
}

fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use failover_core::Ballot;
    use failover_core::cluster::{
        Cause, ClusterState, Epoch, Holder, Home, RESOURCES_MAX, Resource,
    };
    use failover_core::command::{Change, Switch, Unfit};
    use failover_core::message::{Heartbeat, Message, RecordSeen};
    use proptest::prelude::*;
    use replicator_core::block::{Incarnation, ReplicaId};
    use replicator_core::register::{Member, RegisterState};

    use super::*;

    fn sealer(node: &str, key: u8) -> Sealer {
        // Not a code anybody should use; the daemon brings HMAC-SHA256.
        let authenticate = move |parts: &[&[u8]]| {
            let mut sum = [key; 32];
            for (at, byte) in parts.concat().iter().enumerate() {
                sum[at % 32] = sum[at % 32].wrapping_mul(31).wrapping_add(*byte);
            }
            sum
        };
        Sealer::new("shop", node.into(), addresses(), Arc::new(authenticate))
    }

    fn addresses() -> Vec<SocketAddr> {
        vec!["192.0.2.1:7788".parse().unwrap()]
    }

    pub(crate) fn envelope() -> Envelope {
        let message = Message::Heartbeat(Heartbeat { number: 7, ..Heartbeat::default() });
        Envelope {
            process: 1,
            acceptor: 2,
            sequence: 3,
            began: 3,
            epoch: Epoch::default(),
            yours: None,
            message,
        }
    }

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let sealed = sealer("alpha", 1).seal(&"beta".into(), &envelope()).unwrap();
        let opened = sealer("beta", 1).open(&sealed).unwrap();
        let (from, addresses, envelope) = ("alpha".into(), addresses(), envelope());
        assert_eq!(opened, Opened { from, addresses, envelope });
    }

    /// O6: a rolling upgrade has both on one network.
    #[test]
    fn messages_of_earlier_and_of_later_builds_are_understood() {
        let seen = RecordSeen { node: "beta".into(), sequence: 9, ..RecordSeen::default() };
        let sent = Envelope { yours: Some(seen), ..envelope() };
        let sealed = sealer("alpha", 1).seal(&"beta".into(), &sent).unwrap();
        assert_eq!(sealer("beta", 1).open(&sealed).unwrap().envelope, sent);

        let body = &sealed[..sealed.len() - CODE_BYTES];
        let behind = postcard::to_allocvec(&sent.yours).unwrap().len();
        let again = |body: &[u8]| {
            let code = (sealer("alpha", 1).authenticate)(&[b"cluster datagram", body]);
            sealer("beta", 1).open(&[body, &code[..]].concat()).unwrap().envelope
        };
        assert_eq!(again(&body[..body.len() - behind]), envelope(), "an earlier build");
        assert_eq!(again(&[body, b"more".as_slice()].concat()), sent, "a later build");
    }

    #[test]
    fn what_is_sent_again_is_thrown_away_whichever_path_it_comes_over() {
        let (alpha, beta) = (sealer("alpha", 1), sealer("beta", 1));
        let sealed = alpha.seal(&"beta".into(), &envelope()).unwrap();
        assert!(beta.open(&sealed).is_ok());
        assert_eq!(beta.clone().open(&sealed), Err(DatagramError::Repeated));
        let same = alpha.clone().seal(&"beta".into(), &envelope()).unwrap();
        assert!(beta.open(&same).is_ok(), "the same message in another datagram counts");
    }

    /// With the longest names, three copies of each resource and as many services switched off as
    /// the register takes.
    #[test]
    fn a_full_register_fits() {
        let long = |prefix: &str, number: usize| format!("{prefix}{number:0>62}");
        let nodes: Vec<NodeName> = (0..3).map(|number| NodeName(long("n", number))).collect();
        let mut state = ClusterState::default();
        for number in 0..RESOURCES_MAX {
            let home = |node: &NodeName| Home { node: node.clone(), replica: ReplicaId(u128::MAX) };
            let incarnation = Incarnation(u128::MAX);
            let member = Member { replica: ReplicaId(u128::MAX), incarnation };
            let replica = RegisterState {
                generation: u64::MAX,
                tenure: u64::MAX,
                primary: Some(ReplicaId(u128::MAX)),
                set: vec![member; 3],
                ..RegisterState::default()
            };
            state.resources.push(Resource {
                name: long("r", number),
                state: replica,
                holder: Some(Holder { node: nodes[0].clone(), process: u64::MAX }),
                wanted: Some(nodes[1].clone()),
                homes: nodes.iter().map(home).collect(),
                ..Resource::default()
            });
        }
        let is_full = (0..1_000).find_map(|number| {
            let switch = Switch::Off { service: Some(long("s", number)), is_off: true };
            let resource = state.resources[number % RESOURCES_MAX].name.clone();
            let change = Change::Switch { resource, switch };
            match change.apply(Some(&state), &nodes[0], &Cause::default()) {
                Ok(next) => state = next,
                Err(unfit) => return Some(unfit),
            }
            None
        });
        assert_eq!(is_full, Some(Unfit::TooMany));
        let message = Message::Learn { ballot: Ballot::default(), state };
        let sealed = sealer("alpha", 1).seal(&"beta".into(), &Envelope { message, ..envelope() });
        assert!(sealed.is_ok(), "{:?}", sealed.unwrap_err());
    }

    #[test]
    fn a_name_that_no_datagram_can_hold_is_an_error() {
        let to = NodeName("n".repeat(256));
        let sealed = sealer("alpha", 1).seal(&to, &envelope());
        assert_eq!(sealed, Err(DatagramError::LongName(to)));
    }

    #[test]
    fn strangers_and_the_misdirected_are_refused() {
        let sealed = sealer("alpha", 1).seal(&"beta".into(), &envelope()).unwrap();
        assert_eq!(sealer("beta", 2).open(&sealed), Err(DatagramError::Code));
        let misdirected = sealer("gamma", 1).open(&sealed);
        assert!(matches!(misdirected, Err(DatagramError::Misdirected(_))));
        let mut newer = sealed;
        newer[4] = 9;
        assert_eq!(sealer("beta", 1).open(&newer), Err(DatagramError::Version(9)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = sealer("beta", 1).open(&bytes);
            let _ = Sealer::cluster_of(&bytes);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0_usize..80, bit in 0_u8..8) {
            let mut sealed = sealer("alpha", 1).seal(&"beta".into(), &envelope()).unwrap();
            let at = at % sealed.len();
            sealed[at] ^= 1 << bit;
            prop_assert!(sealer("beta", 1).open(&sealed).is_err());
        }
    }
}

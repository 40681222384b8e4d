//! The greeting: what two daemons say before the first frame of replication. Both prove that they
//! know the cluster's key before anything else of the other is parsed; then they tell each other,
//! authenticated, for which cluster, resource and node they speak.
//!
//! ```text
//! dialer                              listener
//!   Opening (48 bytes)        ->
//!                             <-        Opening (48 bytes)
//!   Proof                     ->                             HMAC over role and both openings
//!                             <-        Proof
//!   Identity                  ->                             cluster, node, peer, resource
//!                             <-        Identity
//!   Ready                     ->                             frames of replication follow
//! ```
//! Every unit after the opening is a kind (1 byte), a length (2 bytes) and a body of at most 1 KiB;
//! Identity, Ready and late refusals end with an HMAC under a key of this session. Before the
//! proofs only a proof or a one-byte refusal is accepted. This file is a pure state machine: the
//! sockets and deadlines are in `peers.rs`.

use thiserror::Error;

use crate::key::{ClusterKey, equal_in_constant_time};

/// Oldest and newest version of greeting and replication protocol that this build speaks.
pub const VERSIONS: (u8, u8) = replicator_core::wire::VERSIONS;
/// Length of the opening in bytes.
pub const OPENING_BYTES: usize = 48;
const MAGIC: &[u8; 8] = b"RPLGREET";
const NONCE_AT: usize = 16;
const MAC_BYTES: usize = 32;
const UNIT_HEADER_BYTES: usize = 3;
const UNIT_BODY_MAX: usize = 1024;
const NAME_MAX: usize = 64;

/// A random number that is used for one greeting only.
pub type Nonce = [u8; 32];

/// Which side of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It connected.
    Dialer,
    /// It accepted.
    Listener,
}

impl Side {
    fn byte(self) -> u8 {
        match self {
            Self::Dialer => b'D',
            Self::Listener => b'L',
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Listener,
            Self::Listener => Self::Dialer,
        }
    }
}

/// What one side says about itself and whom it expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the speaking node.
    pub node: String,
    /// Name of the node it believes to speak to.
    pub peer: String,
    /// The resource the connection is for.
    pub resource: String,
}

/// Decides for the listener whether a member of the cluster may have this connection now.
pub trait Directory {
    /// Refuses with the reason, or lets it in. `identity` has the right cluster and names us.
    fn admit(&self, identity: &Identity) -> Result<(), Refusal>;
}

/// A listener's reason to send an authenticated member away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule.
    pub code: RefusalCode,
    /// In words; cut at 500 bytes.
    pub text: String,
}

/// The reasons for which one side sends the other away, as they travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RefusalCode {
    /// No protocol version in common.
    Version = 1,
    /// The proof was wrong: another key.
    Key = 2,
    /// Another cluster.
    Cluster = 3,
    /// The configuration does not know the speaking node, or not as a data node.
    UnknownNode = 4,
    /// The speaking node calls itself by our own name.
    Itself = 5,
    /// The dialer wanted another node.
    WrongNode = 6,
    /// The resource is not configured here.
    UnknownResource = 7,
    /// The resource is configured but not up here.
    ResourceDown = 8,
    /// An operator disconnected the two.
    Disconnected = 9,
    /// The wrong side dialled.
    WrongSide = 10,
    /// Too many greetings at once.
    Busy = 11,
    /// The question was only whether somebody is there.
    Alive = 12,
}

impl RefusalCode {
    const ALL: [Self; 12] = [
        Self::Version,
        Self::Key,
        Self::Cluster,
        Self::UnknownNode,
        Self::Itself,
        Self::WrongNode,
        Self::UnknownResource,
        Self::ResourceDown,
        Self::Disconnected,
        Self::WrongSide,
        Self::Busy,
        Self::Alive,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == byte)
    }

    /// A stable name for counters and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "wrong_version",
            Self::Key => "wrong_key",
            Self::Cluster => "wrong_cluster",
            Self::UnknownNode => "unknown_node",
            Self::Itself => "self_connection",
            Self::WrongNode => "wrong_node",
            Self::UnknownResource => "unknown_resource",
            Self::ResourceDown => "resource_down",
            Self::Disconnected => "disconnected",
            Self::WrongSide => "wrong_side",
            Self::Busy => "busy",
            Self::Alive => "alive",
        }
    }
}

/// Why a greeting ended without an agreement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GreetingError {
    /// Not our protocol at all.
    #[error("the other end does not speak Replicator's protocol; is another service on this port?")]
    NotReplicator,
    /// No version in common.
    #[error(
        "the other end speaks protocol versions {0} to {1}, this build {low} to {high}; upgrade \
         the older node",
        low = VERSIONS.0,
        high = VERSIONS.1
    )]
    Version(u8, u8),
    /// Our own opening came back, or the other end has the same role.
    #[error("the other end repeats what was sent to it: something reflects the connection")]
    Reflected,
    /// Its proof does not fit our key.
    #[error("the other end has another key; copy the key file from the node where it was made")]
    WrongKey,
    /// It says that our proof does not fit its key.
    #[error("the other end says that our key is another; compare the key files of both nodes")]
    WrongKeyThere,
    /// It is from another cluster with the same key.
    #[error("the other end belongs to cluster {theirs:?}, this node to {ours:?}")]
    Cluster {
        /// What it said.
        theirs: String,
        /// What the configuration says.
        ours: String,
    },
    /// It has our own name.
    #[error(
        "the other end calls itself {0} as we do: the address leads back to this node, or two \
         machines run as {0}"
    )]
    Itself(String),
    /// Another node answered than was dialled, or it wanted another one than us.
    #[error("the other end is {theirs}, but {expected} was expected; check the addresses")]
    WrongNode {
        /// What it said.
        theirs: String,
        /// What it should have been.
        expected: String,
    },
    /// We sent an authenticated member away.
    #[error("{}", .0.text)]
    RefusedByUs(Refusal),
    /// It sent us away.
    #[error("the other end refused: {}", .0.text)]
    RefusedByThem(Refusal),
    /// A unit that is not allowed here or does not decode.
    #[error("the other end broke the rules of the greeting: {0}")]
    Malformed(&'static str),
    /// An authentication code is wrong: the bytes were changed on the way.
    #[error("a message of the greeting was changed on its way")]
    Tampered,
}

impl GreetingError {
    /// A stable name for counters and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotReplicator => "not_replicator",
            Self::Version(..) => "wrong_version",
            Self::Reflected => "reflected",
            Self::WrongKey => "wrong_key",
            Self::WrongKeyThere => "wrong_key_there",
            Self::Cluster { .. } => "wrong_cluster",
            Self::Itself(_) => "self_connection",
            Self::WrongNode { .. } => "wrong_node",
            Self::RefusedByUs(refusal) | Self::RefusedByThem(refusal) => refusal.code.name(),
            Self::Malformed(_) => "malformed",
            Self::Tampered => "tampered",
        }
    }
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// Name of the other node.
    pub peer: String,
    /// The resource.
    pub resource: String,
    /// The newest version that both speak.
    pub version: u8,
}

/// How to go on after [`Greeting::feed`]. Send what is in the output first, in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Receive more.
    NeedMore,
    /// Done; the bytes behind `consumed` belong to replication.
    Agreed(Agreement),
    /// Over: close the connection after sending the output.
    Failed(GreetingError),
}

/// What one call of [`Greeting::feed`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that were used.
    pub consumed: usize,
    /// How to go on.
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Proof,
    Identity,
    Ready,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Proof = 1,
    Identity = 2,
    Ready = 3,
    Refused = 4,
}

/// One greeting in progress.
pub struct Greeting {
    side: Side,
    key: ClusterKey,
    /// What we say; the listener learns `peer` and `resource` from the dialer.
    identity: Identity,
    ours: [u8; OPENING_BYTES],
    theirs: [u8; OPENING_BYTES],
    session_key: Option<ClusterKey>,
    version: u8,
    stage: Stage,
    pending: Vec<u8>,
}

impl Greeting {
    /// The dialer's side. `identity` says whom and what it wants. The output gets the opening.
    pub fn dial(key: ClusterKey, identity: Identity, nonce: Nonce, out: &mut Vec<u8>) -> Self {
        Self::new(Side::Dialer, key, identity, nonce, out)
    }

    /// The listener's side: it knows only its own cluster and node.
    pub fn listen(
        key: ClusterKey,
        cluster: String,
        node: String,
        nonce: Nonce,
        out: &mut Vec<u8>,
    ) -> Self {
        let identity = Identity { cluster, node, peer: String::new(), resource: String::new() };
        Self::new(Side::Listener, key, identity, nonce, out)
    }

    fn new(
        side: Side,
        key: ClusterKey,
        identity: Identity,
        nonce: Nonce,
        out: &mut Vec<u8>,
    ) -> Self {
        let mut ours = [0; OPENING_BYTES];
        ours[..8].copy_from_slice(MAGIC);
        ours[8] = VERSIONS.0;
        ours[9] = VERSIONS.1;
        ours[10] = side.byte();
        ours[NONCE_AT..].copy_from_slice(&nonce);
        out.extend_from_slice(&ours);
        Self {
            side,
            key,
            identity,
            ours,
            theirs: [0; OPENING_BYTES],
            session_key: None,
            version: 0,
            stage: Stage::Opening,
            pending: Vec::new(),
        }
    }

    /// Takes bytes of the other side in pieces of any size. Panics when called again after it
    /// said `Agreed` or `Failed`.
    pub fn feed(&mut self, input: &[u8], directory: &dyn Directory, out: &mut Vec<u8>) -> Progress {
        assert!(self.stage != Stage::Over, "the greeting is over");
        let mut consumed = 0;
        loop {
            let wanted = match self.unit_bytes() {
                Ok(wanted) => wanted,
                Err(error) => return self.end(consumed, Outcome::Failed(error)),
            };
            let missing = wanted - self.pending.len();
            let taken = missing.min(input.len() - consumed);
            self.pending.extend_from_slice(&input[consumed..consumed + taken]);
            consumed += taken;
            if taken < missing {
                return Progress { consumed, outcome: Outcome::NeedMore };
            }
            // A header alone only tells how long the unit is.
            if self.stage != Stage::Opening && self.unit_bytes() != Ok(self.pending.len()) {
                continue;
            }
            let unit = std::mem::take(&mut self.pending);
            match self.advance(&unit, directory, out) {
                Ok(None) => {}
                Ok(Some(agreement)) => return self.end(consumed, Outcome::Agreed(agreement)),
                Err(error) => {
                    self.tell_refusal(&error, out);
                    return self.end(consumed, Outcome::Failed(error));
                }
            }
        }
    }

    fn end(&mut self, consumed: usize, outcome: Outcome) -> Progress {
        self.stage = Stage::Over;
        Progress { consumed, outcome }
    }

    /// Length of the unit that is being received, as far as it is known.
    fn unit_bytes(&self) -> Result<usize, GreetingError> {
        if self.stage == Stage::Opening {
            return Ok(OPENING_BYTES);
        }
        let Some(header) = self.pending.first_chunk::<UNIT_HEADER_BYTES>() else {
            return Ok(UNIT_HEADER_BYTES);
        };
        let body = usize::from(u16::from_le_bytes([header[1], header[2]]));
        if body > UNIT_BODY_MAX {
            return Err(GreetingError::Malformed("a message is too long"));
        }
        Ok(UNIT_HEADER_BYTES + body)
    }

    fn advance(
        &mut self,
        unit: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Option<Agreement>, GreetingError> {
        if self.stage == Stage::Opening {
            self.take_opening(unit, out)?;
            return Ok(None);
        }
        let body = &unit[UNIT_HEADER_BYTES..];
        if unit[0] == Kind::Refused as u8 {
            return Err(self.take_refusal(body));
        }
        match self.stage {
            Stage::Proof if unit[0] == Kind::Proof as u8 => {
                self.take_proof(body, out)?;
                Ok(None)
            }
            Stage::Identity if unit[0] == Kind::Identity as u8 => {
                self.take_identity(body, directory, out)
            }
            Stage::Ready if unit[0] == Kind::Ready as u8 => {
                self.open_sealed(Kind::Ready, body)?;
                Ok(Some(self.agreement()))
            }
            _ => Err(GreetingError::Malformed("a message came out of turn")),
        }
    }

    fn take_opening(&mut self, unit: &[u8], out: &mut Vec<u8>) -> Result<(), GreetingError> {
        self.theirs.copy_from_slice(unit);
        if &unit[..8] != MAGIC {
            return Err(GreetingError::NotReplicator);
        }
        let (low, high) = (unit[8], unit[9]);
        let version = high.min(VERSIONS.1);
        if version < low.max(VERSIONS.0) {
            return Err(GreetingError::Version(low, high));
        }
        let is_ours = self.theirs[NONCE_AT..] == self.ours[NONCE_AT..];
        if is_ours || unit[10] != self.side.other().byte() {
            return Err(GreetingError::Reflected);
        }
        self.version = version;
        let (dialer, listener) = self.openings();
        let derived = self.key.authenticate(&[b"session key", dialer, listener]);
        self.session_key = Some(ClusterKey::from_bytes(&derived));
        self.stage = Stage::Proof;
        // The dialer proves first: a listener tells a stranger nothing.
        if self.side == Side::Dialer {
            self.send_proof(out);
        }
        Ok(())
    }

    fn openings(&self) -> (&[u8], &[u8]) {
        match self.side {
            Side::Dialer => (&self.ours, &self.theirs),
            Side::Listener => (&self.theirs, &self.ours),
        }
    }

    fn proof(&self, of: Side) -> [u8; MAC_BYTES] {
        let (dialer, listener) = self.openings();
        self.key.authenticate(&[b"membership proof", &[of.byte()], dialer, listener])
    }

    fn send_proof(&self, out: &mut Vec<u8>) {
        put_unit(Kind::Proof, &self.proof(self.side), out);
    }

    fn take_proof(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), GreetingError> {
        let Ok(proof) = <[u8; MAC_BYTES]>::try_from(body) else {
            return Err(GreetingError::Malformed("a proof has the wrong length"));
        };
        if !equal_in_constant_time(&proof, &self.proof(self.side.other())) {
            return Err(GreetingError::WrongKey);
        }
        self.stage = Stage::Identity;
        match self.side {
            Side::Listener => self.send_proof(out),
            Side::Dialer => self.send_identity(out),
        }
        Ok(())
    }

    fn send_identity(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let identity = &self.identity;
        for name in [&identity.cluster, &identity.node, &identity.peer, &identity.resource] {
            assert!(name.len() <= NAME_MAX, "the configuration limits names");
            body.push(name.len() as u8);
            body.extend_from_slice(name.as_bytes());
        }
        self.put_sealed(Kind::Identity, body, out);
    }

    fn take_identity(
        &mut self,
        body: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Option<Agreement>, GreetingError> {
        let theirs = decode_identity(self.open_sealed(Kind::Identity, body)?)?;
        if theirs.cluster != self.identity.cluster {
            let ours = self.identity.cluster.clone();
            return Err(GreetingError::Cluster { theirs: theirs.cluster, ours });
        }
        if theirs.node == self.identity.node {
            return Err(GreetingError::Itself(theirs.node));
        }
        match self.side {
            Side::Listener => {
                if theirs.peer != self.identity.node {
                    let text = format!(
                        "{} wanted {} but reached {}; check the addresses in its configuration",
                        theirs.node, theirs.peer, self.identity.node
                    );
                    let refusal = Refusal { code: RefusalCode::WrongNode, text };
                    return Err(GreetingError::RefusedByUs(refusal));
                }
                directory.admit(&theirs).map_err(GreetingError::RefusedByUs)?;
                self.identity.peer = theirs.node;
                self.identity.resource = theirs.resource;
                self.send_identity(out);
                self.stage = Stage::Ready;
                Ok(None)
            }
            Side::Dialer => {
                if theirs.node != self.identity.peer {
                    let expected = self.identity.peer.clone();
                    return Err(GreetingError::WrongNode { theirs: theirs.node, expected });
                }
                let answers_us = theirs.peer == self.identity.node;
                if !answers_us || theirs.resource != self.identity.resource {
                    return Err(GreetingError::Malformed("the answer is for another question"));
                }
                self.put_sealed(Kind::Ready, Vec::new(), out);
                Ok(Some(self.agreement()))
            }
        }
    }

    fn agreement(&self) -> Agreement {
        Agreement {
            peer: self.identity.peer.clone(),
            resource: self.identity.resource.clone(),
            version: self.version,
        }
    }

    /// Tells the other side why, as far as it may know.
    fn tell_refusal(&self, error: &GreetingError, out: &mut Vec<u8>) {
        let code = match error {
            GreetingError::Version(..) => RefusalCode::Version,
            GreetingError::WrongKey => RefusalCode::Key,
            GreetingError::Cluster { .. } => RefusalCode::Cluster,
            GreetingError::Itself(_) => RefusalCode::Itself,
            GreetingError::WrongNode { .. } => RefusalCode::WrongNode,
            GreetingError::RefusedByUs(refusal) => refusal.code,
            // A stranger, a fault on the way, or the other side ended it itself.
            _ => return,
        };
        if self.stage == Stage::Opening || self.stage == Stage::Proof {
            put_unit(Kind::Refused, &[code as u8], out);
            return;
        }
        let mut text = error.to_string();
        cut(&mut text, 500);
        let mut body = vec![code as u8];
        body.extend_from_slice(text.as_bytes());
        self.put_sealed(Kind::Refused, body, out);
    }

    fn take_refusal(&self, body: &[u8]) -> GreetingError {
        if self.stage == Stage::Proof {
            // Not authenticated: only a few bare codes are believed, and none changes anything.
            let &[code] = body else {
                return GreetingError::Malformed("a refusal has the wrong length");
            };
            return match RefusalCode::from_byte(code) {
                Some(RefusalCode::Key) => GreetingError::WrongKeyThere,
                Some(RefusalCode::Version) => {
                    GreetingError::Version(self.theirs[8], self.theirs[9])
                }
                Some(RefusalCode::Busy) => GreetingError::RefusedByThem(Refusal {
                    code: RefusalCode::Busy,
                    text: "it greets too many others at once".into(),
                }),
                _ => GreetingError::Malformed("a refusal came out of turn"),
            };
        }
        let body = match self.open_sealed(Kind::Refused, body) {
            Ok(body) => body,
            Err(error) => return error,
        };
        let Some((code, text)) = body.split_first() else {
            return GreetingError::Malformed("a refusal is empty");
        };
        match RefusalCode::from_byte(*code) {
            Some(code) => GreetingError::RefusedByThem(Refusal {
                code,
                text: String::from_utf8_lossy(text).into_owned(),
            }),
            None => GreetingError::Malformed("a refusal has an unknown reason"),
        }
    }

    fn seal(&self, of: Side, kind: Kind, body: &[u8]) -> [u8; MAC_BYTES] {
        let key = self.session_key.as_ref().expect("known since the openings");
        key.authenticate(&[&[of.byte(), kind as u8], body])
    }

    fn put_sealed(&self, kind: Kind, mut body: Vec<u8>, out: &mut Vec<u8>) {
        let mac = self.seal(self.side, kind, &body);
        body.extend_from_slice(&mac);
        put_unit(kind, &body, out);
    }

    fn open_sealed<'a>(&self, kind: Kind, body: &'a [u8]) -> Result<&'a [u8], GreetingError> {
        let Some((body, mac)) = body.split_last_chunk::<MAC_BYTES>() else {
            return Err(GreetingError::Malformed("a message is too short"));
        };
        if !equal_in_constant_time(mac, &self.seal(self.side.other(), kind, body)) {
            return Err(GreetingError::Tampered);
        }
        Ok(body)
    }
}

/// What a listener sends instead of an opening's answer when it has no room; the dialer expects an
/// opening first, so it gets one.
pub fn busy_answer() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSIONS.0, VERSIONS.1, Side::Listener.byte()]);
    out.resize(OPENING_BYTES, 0);
    put_unit(Kind::Refused, &[RefusalCode::Busy as u8], &mut out);
    out
}

fn put_unit(kind: Kind, body: &[u8], out: &mut Vec<u8>) {
    assert!(body.len() <= UNIT_BODY_MAX, "units are limited where they are made");
    out.push(kind as u8);
    out.extend_from_slice(&(body.len() as u16).to_le_bytes());
    out.extend_from_slice(body);
}

fn decode_identity(mut body: &[u8]) -> Result<Identity, GreetingError> {
    let mut name = || {
        let (len, rest) = body.split_first()?;
        let len = usize::from(*len);
        if len > NAME_MAX || rest.len() < len {
            return None;
        }
        let (name, rest) = rest.split_at(len);
        body = rest;
        String::from_utf8(name.to_vec()).ok()
    };
    let identity =
        (|| Some(Identity { cluster: name()?, node: name()?, peer: name()?, resource: name()? }))();
    match identity {
        Some(identity) if body.is_empty() => Ok(identity),
        _ => Err(GreetingError::Malformed("an identity does not decode")),
    }
}

/// Leaves at most so many bytes of a text, and no character in part.
pub fn cut(text: &mut String, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rfind(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests;

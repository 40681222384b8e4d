//! The connections to the peers: frames out of what they send, and frames to them. A frame is
//! checked (header, length, checksums) before the core sees it; a broken one ends the session.
//!
//! When the buffers for received payload are used up, a link is not read until some are free
//! again; the peer's window and TCP do the rest.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use replicator_core::limits::{CONTROL_BYTES_MAX, PEERS_MAX};
use replicator_core::wire::{self, HEADER_BYTES, Header, Message};
use replicator_core::{BufId, Input, LinkLoss, PeerIndex, Retry, SessionId, Span, Time};

use crate::buffers::Share;
use crate::data_loop::{FromLoop, Io, Outbox, Token, socket};
use crate::uring::Back;

/// Bytes received at once. The largest control frame must fit.
const INBOX_BYTES: usize = 128 << 10;
/// What is missing of a payload is received straight into its buffer from this size on.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// How long a session that the core closed may take to send what was ordered before.
const CLOSE_LIMIT: Span = Span::from_ms(1_000);
/// Frames (in pieces and header bytes) that may wait for a peer that does not read: more than the
/// core's windows allow, so reaching it means that something is broken.
const OUTBOX_MAX: (usize, usize) = (64 << 10, 16 << 20);
/// Writes whose time of sending is remembered; more than the core has under way.
const SENT_TIMES: usize = 8192;

const _: () = assert!(INBOX_BYTES >= HEADER_BYTES + CONTROL_BYTES_MAX);
const _: () = assert!(SENT_TIMES > replicator_core::limits::PEER_WINDOW_FRAMES);

/// All links of one resource.
pub(crate) struct PeerLinks {
    links: Vec<Link>,
    /// The link of each peer's present session.
    present: [Option<u32>; PEERS_MAX],
    /// Links that wait for a buffer.
    stalled: VecDeque<u32>,
    to_send: Vec<u32>,
    /// For the daemon.
    pub ended: Vec<FromLoop>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Vacant,
    Open,
    /// The core ended the session; what it ordered before is still being sent.
    Closing {
        until: Time,
        retry: Retry,
    },
    /// Closed; waits for the ring.
    Dead,
}

struct Link {
    life: Life,
    peer: PeerIndex,
    session: SessionId,
    stream: Option<OwnedFd>,
    /// Not here while a receive into it is under way.
    inbox: Option<Box<[u8]>>,
    unread: Range<usize>,
    receiving: bool,
    /// A data frame whose payload is not complete.
    payload: Option<Payload>,
    outbox: Outbox,
    sends_queued: bool,
    /// When each write went out, by its number.
    sent_at: Box<[(u64, Time)]>,
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    header: Header,
    buf: BufId,
    filled: usize,
}

/// How parsing goes on.
enum Going {
    On,
    NeedsBytes,
    LacksBuffer,
    Over,
}

impl PeerLinks {
    pub fn new() -> Self {
        Self {
            links: Vec::new(),
            present: [None; PEERS_MAX],
            stalled: VecDeque::new(),
            to_send: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Takes over a connection whose ends know each other.
    pub fn add(
        &mut self,
        io: &mut Io,
        (peer, session, version): (PeerIndex, SessionId, u8),
        stream: OwnedFd,
        leftover: &[u8],
    ) {
        if let Some(old) = self.present[usize::from(peer.0)] {
            // The peer would not connect again if the old connection still served it.
            self.lose(io, old, LinkLoss::Closed, "replaced by a newer connection");
        }
        if let Err(error) = socket::prepare(&stream) {
            let why = format!("its socket cannot be used: {error}");
            self.ended.push(FromLoop::SessionEnded { peer, session, retry: Retry::Later, why });
            return;
        }
        let mut inbox = vec![0; INBOX_BYTES.max(leftover.len())].into_boxed_slice();
        inbox[..leftover.len()].copy_from_slice(leftover);
        let link = Link {
            life: Life::Open,
            peer,
            session,
            stream: Some(stream),
            inbox: Some(inbox),
            unread: 0..leftover.len(),
            receiving: false,
            payload: None,
            outbox: Outbox::default(),
            sends_queued: false,
            sent_at: vec![(u64::MAX, Time(0)); SENT_TIMES].into_boxed_slice(),
        };
        let l = match self.links.iter().position(|link| link.life == Life::Vacant) {
            Some(l) => {
                self.links[l] = link;
                l
            }
            None => {
                self.links.push(link);
                self.links.len() - 1
            }
        };
        self.present[usize::from(peer.0)] = Some(l as u32);
        io.tell(Input::PeerConnected { peer, session, version });
        self.advance(io, l as u32);
    }

    /// Orders a frame to be sent with the others of this turn.
    pub fn send(
        &mut self,
        io: &mut Io,
        peer: PeerIndex,
        session: SessionId,
        message: &Message,
        data: Option<BufId>,
    ) {
        let Some(l) = self.open_link(peer, session) else { return };
        let link = &mut self.links[l as usize];
        let length = message.data_len();
        let crc = data.map_or(0, |buf| crc32fast::hash(io.pool.bytes(buf, 0..length)));
        let (header, control) = wire::encode(message, 0, crc);
        let out = link.outbox.add();
        out.put_header(|bytes| {
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(&control);
        });
        if let Some(buf) = data {
            io.pool.hold(buf);
            out.put_pooled(buf, 0..length);
        }
        if let Message::Write { seq, .. } = message {
            link.sent_at[*seq as usize % SENT_TIMES] = (*seq, io.now);
        }
        io.counters.frames_sent += 1;
        let (pieces, bytes) = link.outbox.weight();
        if pieces > OUTBOX_MAX.0 || bytes > OUTBOX_MAX.1 {
            return self.lose(io, l, LinkLoss::Io(libc::ENOBUFS), "it does not read what we send");
        }
        self.queue_send(l);
    }

    /// The core ends a session; what it ordered before is sent first.
    pub fn close(&mut self, io: &mut Io, peer: PeerIndex, session: SessionId, retry: Retry) {
        io.forget_session((peer, session));
        let Some(l) = self.open_link(peer, session) else { return };
        let link = &mut self.links[l as usize];
        drop_payload(io, link);
        link.life = Life::Closing { until: io.now + CLOSE_LIMIT, retry };
        if link.outbox.is_empty() {
            self.finish_closing(io, l);
        }
    }

    /// A receive has completed.
    pub fn received(&mut self, io: &mut Io, l: u32, result: Result<u32, i32>, back: Back) {
        let link = &mut self.links[l as usize];
        link.receiving = false;
        let is_direct = match back {
            Back::Bytes(inbox) => {
                link.inbox = Some(inbox);
                false
            }
            _ => true,
        };
        match (link.life, result) {
            (Life::Dead, _) => self.vacate(l),
            (Life::Closing { .. }, Ok(moved)) if moved > 0 => {}
            (Life::Closing { .. }, _) => self.finish_closing(io, l),
            (_, Ok(0)) => self.lose(io, l, LinkLoss::Closed, "closed by the peer"),
            (_, Ok(moved)) => {
                match &mut link.payload {
                    Some(payload) if is_direct => payload.filled += moved as usize,
                    _ => link.unread.end += moved as usize,
                }
                self.advance(io, l);
            }
            (_, Err(libc::EINTR | libc::EAGAIN)) => self.advance(io, l),
            (_, Err(libc::ECONNRESET)) => {
                self.lose(io, l, LinkLoss::Closed, "reset by the peer");
            }
            (_, Err(error)) => self.lose_by(io, l, error),
        }
    }

    /// A send has completed.
    pub fn sent(&mut self, io: &mut Io, l: u32, result: Result<u32, i32>, back: Back) {
        let link = &mut self.links[l as usize];
        let fd = link.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let sent = link.outbox.sent(io, fd, result, back, Token::PeerSent(l));
        match (link.life, sent) {
            (Life::Dead, _) => self.vacate(l),
            (Life::Closing { .. }, Ok(())) if !link.outbox.is_empty() => {}
            (Life::Closing { .. }, _) => self.finish_closing(io, l),
            (_, Ok(())) => {}
            (_, Err(libc::EPIPE | libc::ECONNRESET)) => {
                self.lose(io, l, LinkLoss::Closed, "closed by the peer");
            }
            (_, Err(error)) => self.lose_by(io, l, error),
        }
    }

    /// Goes on with links that waited for a buffer.
    pub fn resume(&mut self, io: &mut Io) {
        for _ in 0..self.stalled.len() {
            if let Some(l) = self.stalled.pop_front() {
                self.advance(io, l);
            }
        }
    }

    /// Submits the frames of this turn.
    pub fn start_sends(&mut self, io: &mut Io) {
        while let Some(l) = self.to_send.pop() {
            let link = &mut self.links[l as usize];
            link.sends_queued = false;
            let instant_sends = io.instant_sends;
            if let Some(stream) = &link.stream {
                link.outbox.start(io, stream.as_raw_fd(), Token::PeerSent(l));
            }
            if matches!(link.life, Life::Closing { .. }) {
                // The session ends when this is sent, so its completion is waited for.
                io.instant_sends = instant_sends;
            }
        }
    }

    /// Cuts off closed sessions whose last frames do not get out; the next time to look again.
    pub fn close_late(&mut self, io: &mut Io) -> Option<Time> {
        let mut next: Option<Time> = None;
        for l in 0..self.links.len() as u32 {
            if let Life::Closing { until, .. } = self.links[l as usize].life {
                if until <= io.now {
                    self.finish_closing(io, l);
                } else {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
            }
        }
        next
    }

    /// No session is being closed.
    pub fn is_settled(&self) -> bool {
        !self.links.iter().any(|link| matches!(link.life, Life::Closing { .. }))
    }

    /// Takes frames out of the inbox until more bytes or a buffer are needed.
    fn advance(&mut self, io: &mut Io, l: u32) {
        loop {
            let link = &mut self.links[l as usize];
            if link.life != Life::Open || link.receiving {
                return;
            }
            let going = match link.payload {
                None => self.parse(io, l),
                Some(payload) => self.fill(io, l, payload),
            };
            match going {
                Going::On => {}
                Going::NeedsBytes => return self.receive(io, l),
                Going::LacksBuffer => return self.stalled.push_back(l),
                Going::Over => return,
            }
        }
    }

    fn parse(&mut self, io: &mut Io, l: u32) -> Going {
        let link = &mut self.links[l as usize];
        let inbox = link.inbox.as_ref().expect("no receive is under way");
        let unread = &inbox[link.unread.clone()];
        let Some(header) = unread.first_chunk::<HEADER_BYTES>() else { return Going::NeedsBytes };
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(error) => return self.garbled(io, l, &error.to_string()),
        };
        let length = header.payload_bytes as usize;
        if header.carries_data() {
            if length == 0 || length > crate::buffers::RUN_BYTES_MAX {
                return self.garbled(io, l, "a data frame without data, or with too much");
            }
            let Some(buf) = io.pool.take(Share::Peers, length) else { return Going::LacksBuffer };
            link.payload = Some(Payload { header, buf, filled: 0 });
            link.unread.start += HEADER_BYTES;
            return Going::On;
        }
        if length > CONTROL_BYTES_MAX {
            return self.garbled(io, l, "a control frame that is too long");
        }
        let Some(control) = unread.get(HEADER_BYTES..HEADER_BYTES + length) else {
            return Going::NeedsBytes;
        };
        if length > 0 && crc32fast::hash(control) != header.payload_crc {
            return self.garbled(io, l, "the checksum of a control frame is wrong");
        }
        let message = match wire::decode(&header, control) {
            Ok(message) => message,
            Err(error) => return self.garbled(io, l, &error.to_string()),
        };
        link.unread.start += HEADER_BYTES + length;
        if let Message::Ack { seq } = message {
            let (sent, at) = link.sent_at[seq as usize % SENT_TIMES];
            if sent == seq {
                io.counters.peer_ack[usize::from(link.peer.0)].record(io.now.since(at));
            }
        }
        let (peer, session) = (link.peer, link.session);
        io.counters.frames_received += 1;
        io.tell(Input::PeerSaid { peer, session, message, data: None });
        Going::On
    }

    fn fill(&mut self, io: &mut Io, l: u32, payload: Payload) -> Going {
        let Payload { header, buf, filled } = payload;
        let link = &mut self.links[l as usize];
        let length = header.payload_bytes as usize;
        let copied = (length - filled).min(link.unread.len());
        let inbox = link.inbox.as_ref().expect("no receive is under way");
        let from = link.unread.start;
        io.pool
            .bytes_mut(buf, filled..filled + copied)
            .copy_from_slice(&inbox[from..from + copied]);
        link.unread.start += copied;
        let filled = filled + copied;
        link.payload = Some(Payload { header, buf, filled });
        let missing = length - filled;
        if missing >= DIRECT_BYTES_MIN {
            link.receiving = true;
            let fd = link.stream.as_ref().expect("an open link").as_raw_fd();
            let token = Token::PeerReceived(l);
            io.ring.receive_into(&mut io.pool, fd, buf, filled..length, token);
            return Going::Over;
        }
        if missing > 0 {
            return Going::NeedsBytes;
        }
        if crc32fast::hash(io.pool.bytes(buf, 0..length)) != header.payload_crc {
            return self.garbled(io, l, "the checksum of a data frame is wrong");
        }
        match wire::decode(&header, &[]) {
            Ok(message) => {
                // The buffer is the core's from here on.
                link.payload = None;
                let (peer, session) = (link.peer, link.session);
                io.counters.frames_received += 1;
                io.tell(Input::PeerSaid { peer, session, message, data: Some(buf) });
                Going::On
            }
            Err(error) => self.garbled(io, l, &error.to_string()),
        }
    }

    fn receive(&mut self, io: &mut Io, l: u32) {
        let link = &mut self.links[l as usize];
        let mut inbox = link.inbox.take().expect("no receive is under way");
        let unread = link.unread.clone();
        if unread.is_empty() {
            link.unread = 0..0;
        } else if unread.start > 0 {
            inbox.copy_within(unread.clone(), 0);
            link.unread = 0..unread.len();
        }
        link.receiving = true;
        let fd = link.stream.as_ref().expect("an open link").as_raw_fd();
        let free = link.unread.end..inbox.len();
        io.ring.receive(fd, inbox, free, Token::PeerReceived(l));
    }

    fn garbled(&mut self, io: &mut Io, l: u32, what: &str) -> Going {
        tracing::error!(peer = self.links[l as usize].peer.0, what, "a peer sent a broken frame");
        self.lose(io, l, LinkLoss::Garbled, what);
        Going::Over
    }

    fn lose_by(&mut self, io: &mut Io, l: u32, error: i32) {
        let why = std::io::Error::from_raw_os_error(error).to_string();
        self.lose(io, l, LinkLoss::Io(error), &why);
    }

    /// The connection is broken: the core and the daemon learn of it.
    fn lose(&mut self, io: &mut Io, l: u32, loss: LinkLoss, why: &str) {
        let link = &self.links[l as usize];
        let (peer, session) = (link.peer, link.session);
        let retry = match link.life {
            Life::Open => {
                io.tell(Input::LinkLost { peer, session, why: loss });
                Retry::Later
            }
            Life::Closing { retry, .. } => retry,
            Life::Vacant | Life::Dead => return,
        };
        self.cut(io, l, retry, why.to_owned());
    }

    fn finish_closing(&mut self, io: &mut Io, l: u32) {
        if let Life::Closing { retry, .. } = self.links[l as usize].life {
            self.cut(io, l, retry, "closed by this node".to_owned());
        }
    }

    fn cut(&mut self, io: &mut Io, l: u32, retry: Retry, why: String) {
        let link = &mut self.links[l as usize];
        link.life = Life::Dead;
        drop_payload(io, link);
        link.outbox.clear(io);
        if let Some(stream) = &link.stream {
            socket::shut_down(stream);
        }
        let (peer, session) = (link.peer, link.session);
        if self.present[usize::from(peer.0)] == Some(l) {
            self.present[usize::from(peer.0)] = None;
        }
        self.ended.push(FromLoop::SessionEnded { peer, session, retry, why });
        self.vacate(l);
    }

    /// Frees the slot of a dead link when the ring cannot name it any more.
    fn vacate(&mut self, l: u32) {
        let link = &mut self.links[l as usize];
        if link.life == Life::Dead && !link.receiving && !link.outbox.is_sending() {
            link.stream = None;
            link.inbox = None;
            link.life = Life::Vacant;
            self.stalled.retain(|&other| other != l);
        }
    }

    fn open_link(&self, peer: PeerIndex, session: SessionId) -> Option<u32> {
        let l = self.present[usize::from(peer.0)]?;
        let link = &self.links[l as usize];
        (link.session == session && link.life == Life::Open).then_some(l)
    }

    fn queue_send(&mut self, l: u32) {
        let link = &mut self.links[l as usize];
        if !link.sends_queued {
            link.sends_queued = true;
            self.to_send.push(l);
        }
    }
}

fn drop_payload(io: &mut Io, link: &mut Link) {
    if let Some(payload) = link.payload.take() {
        io.pool.release(payload.buf);
    }
}

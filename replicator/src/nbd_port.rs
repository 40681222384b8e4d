//! The clients of a data loop: parses what they send, gives requests to the core, and replies.
//! The rules of the protocol are in `nbd_frontend::session`; here are the buffers, the limits,
//! and the order of things.
//!
//! A connection stops being read when the core is full, when the clients' share of the pool is
//! used up, or when its replies are not read; what it holds up is only itself. Requests that are
//! larger than the core takes are cut into slices and answered once.

mod endings;
mod replies;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nbd_frontend::protocol::REQUEST_LEN;
use nbd_frontend::reply::{ReadReply, Replies, WireError};
use nbd_frontend::session::{Command, Parsed, Request, Session};
use replicator_core::{
    BufId, ByteRange, ClientError, ClientRequest, Input, RequestId, Span, Time, limits,
};

use crate::buffers::Share;
use crate::data_loop::{ClientStatus, Io, Outbox, Token, socket};
use crate::uring::Back;

/// Bytes received at once; many small requests fit.
const INBOX_BYTES: usize = 32 << 10;
/// What is missing of a payload is received straight into its buffer from this size on.
const DIRECT_BYTES_MIN: usize = 8 << 10;
/// Connections, closed ones with open requests included.
pub const CLIENTS_MAX: usize = 256;
/// Replies (in pieces and header bytes) that may wait for a client to read them.
const OUTBOX_MAX: (usize, usize) = (1024, 64 << 10);
const SLICE_BYTES_MAX: u64 = limits::IO_BYTES_MAX;

/// All clients of one resource.
pub(crate) struct NbdPort {
    connections: Vec<Connection>,
    requests: Vec<OpenRequest>,
    free_requests: Vec<u32>,
    /// Requests in the core, and payloads on their way there.
    in_core: usize,
    coming: usize,
    writes: Vec<Option<SlicedWrite>>,
    /// Connections that wait for a request slot or a buffer, the longest wait first.
    stalled: VecDeque<u32>,
    /// Connections with replies of this turn.
    to_send: Vec<u32>,
    is_open: bool,
    size_bytes: u64,
    block_bytes: u64,
    timeout: Span,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// The slot is free.
    Vacant,
    Open,
    /// Nothing more is taken; closes when all is answered and sent.
    Draining,
    /// Closed; waits for the ring and the core to give back what is theirs.
    Dead,
}

struct Connection {
    life: Life,
    stream: Option<OwnedFd>,
    session: Session,
    replies: Replies,
    origin: String,
    /// Not here while a receive into it is under way.
    inbox: Option<Box<[u8]>>,
    /// Bytes of the inbox that were received and not yet used.
    unread: Range<usize>,
    receiving: bool,
    /// When the receive that is under way, or the last one, was begun.
    receiving_since: Time,
    step: Step,
    /// Receive no more than a header: a large payload is likely to follow it.
    narrow: bool,
    /// Requests of it in the core.
    in_core: usize,
    outbox: Outbox,
    sends_queued: bool,
    held_back_by: &'static str,
    read: Option<SlicedRead>,
    /// The large write whose slices come in now.
    sliced_write: Option<u32>,
    /// Requests that were answered while a reply that cannot be interrupted was half sent.
    behind_read: Vec<Answer>,
}

impl Connection {
    /// For how long the rest of a request has been missing; 0 between requests.
    fn silent_for(&self, now: Time) -> Span {
        let between = matches!(self.step, Step::Header) && self.unread.is_empty();
        if !self.receiving || between { Span(0) } else { now.since(self.receiving_since) }
    }
}

/// What the next bytes of a client are.
#[derive(Clone, Copy, Debug)]
enum Step {
    Header,
    /// Payload of a write: `filled` bytes of the slice `range` are in the buffer.
    Payload {
        request: Request,
        range: ByteRange,
        buf: BufId,
        filled: usize,
        fua: bool,
    },
    /// A large write goes on at `offset`, when there is a buffer for the next slice.
    NextSlice {
        request: Request,
        offset: u64,
        fua: bool,
    },
    /// Payload of a refused write; then the error goes out.
    Discard {
        left: u32,
        cookie: u64,
        error: WireError,
        text: &'static str,
    },
}

/// What was asked, as far as the reply needs it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read { df: bool },
    ReadSlice,
    Write,
    WriteSlice { sliced: u32 },
    Flush,
    Zero,
    Map { req_one: bool },
}

/// A request in the core.
struct OpenRequest {
    generation: u32,
    is_open: bool,
    connection: u32,
    kind: Kind,
    cookie: u64,
    range: ByteRange,
    buf: Option<BufId>,
    began: Time,
    map: Vec<(u64, bool)>,
}

/// A request that came back from the core.
struct Answer {
    kind: Kind,
    cookie: u64,
    range: ByteRange,
    buf: Option<BufId>,
    map: Vec<(u64, bool)>,
    result: Result<(), ClientError>,
}

/// A write in slices: answered when all of it was received and no slice is open.
#[derive(Clone, Copy, Debug)]
struct SlicedWrite {
    open: usize,
    is_received: bool,
    result: Result<(), ClientError>,
}

/// A read in slices, one after the other; a connection has one at most.
#[derive(Clone, Copy, Debug)]
struct SlicedRead {
    reply: ReadReply,
    next: u64,
    end: u64,
    is_in_core: bool,
    /// Its header is out and promises all the data: no other reply may come in between.
    is_exclusive: bool,
}

impl NbdPort {
    pub fn new(block_bytes: u32, timeout: Span) -> Self {
        Self {
            connections: Vec::new(),
            requests: Vec::with_capacity(limits::REQUESTS_MAX),
            free_requests: Vec::with_capacity(limits::REQUESTS_MAX),
            in_core: 0,
            coming: 0,
            writes: Vec::new(),
            stalled: VecDeque::new(),
            to_send: Vec::new(),
            is_open: false,
            size_bytes: 0,
            block_bytes: u64::from(block_bytes),
            timeout,
        }
    }

    /// Clients are served from now on, with a device of this size.
    pub fn open(&mut self, size_bytes: u64) {
        self.is_open = true;
        self.size_bytes = size_bytes;
    }

    /// The device is larger from now on: who learns of that in another way (the kernel does) may
    /// use all of it at once.
    pub fn grow(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        for connection in &mut self.connections {
            connection.session.grow(size_bytes);
        }
    }

    /// Takes over a connection in the transmission phase.
    pub fn add(
        &mut self,
        io: &mut Io,
        stream: OwnedFd,
        mut session: Session,
        leftover: &[u8],
        origin: String,
    ) {
        if !self.is_open {
            tracing::info!(origin, "client refused: this node does not serve the device now");
            return;
        }
        if let Err(error) = socket::prepare(&stream) {
            tracing::warn!(origin, %error, "client refused: its socket cannot be used");
            return;
        }
        let vacant = self.connections.iter().position(|c| c.life == Life::Vacant);
        if vacant.is_none() && self.connections.len() == CLIENTS_MAX {
            tracing::warn!(origin, "client refused: {CLIENTS_MAX} connections are open");
            return;
        }
        // It may have grown since this client was told its size.
        session.grow(self.size_bytes);
        let mut inbox = vec![0; INBOX_BYTES.max(leftover.len())].into_boxed_slice();
        inbox[..leftover.len()].copy_from_slice(leftover);
        let connection = Connection {
            life: Life::Open,
            stream: Some(stream),
            session,
            replies: session.replies(),
            origin,
            inbox: Some(inbox),
            unread: 0..leftover.len(),
            receiving: false,
            receiving_since: io.now,
            step: Step::Header,
            narrow: false,
            in_core: 0,
            outbox: Outbox::default(),
            sends_queued: false,
            held_back_by: "",
            read: None,
            sliced_write: None,
            behind_read: Vec::new(),
        };
        let c = match vacant {
            Some(c) => {
                self.connections[c] = connection;
                c
            }
            None => {
                self.connections.push(connection);
                self.connections.len() - 1
            }
        };
        self.advance(io, c as u32, false);
    }

    /// A receive has completed.
    pub fn received(&mut self, io: &mut Io, c: u32, result: Result<u32, i32>, back: Back) {
        let connection = &mut self.connections[c as usize];
        connection.receiving = false;
        let is_direct = match back {
            Back::Bytes(inbox) => {
                connection.inbox = Some(inbox);
                false
            }
            _ => true,
        };
        if matches!(connection.life, Life::Dead) {
            return self.vacate(c);
        }
        let moved = match result {
            Ok(0) => return self.kill(io, c),
            Ok(moved) => moved as usize,
            Err(libc::EINTR | libc::EAGAIN) => 0,
            Err(_) => return self.kill(io, c),
        };
        if is_direct {
            if let Step::Payload { filled, .. } = &mut connection.step {
                *filled += moved;
            }
        } else {
            connection.unread.end += moved;
        }
        self.advance(io, c, false);
    }

    /// A send has completed.
    pub fn sent(&mut self, io: &mut Io, c: u32, result: Result<u32, i32>, back: Back) {
        let connection = &mut self.connections[c as usize];
        let fd = connection.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let sent = connection.outbox.sent(io, fd, result, back, Token::ClientSent(c));
        match connection.life {
            Life::Dead => self.vacate(c),
            _ if sent.is_err() => self.kill(io, c),
            Life::Draining => self.drain(io, c),
            Life::Open if !connection.held_back_by.is_empty() && !connection.receiving => {
                self.advance(io, c, false);
            }
            _ => {}
        }
    }

    /// Goes on with connections that waited for what is free again.
    pub fn resume(&mut self, io: &mut Io) {
        for _ in 0..self.stalled.len() {
            let Some(c) = self.stalled.pop_front() else { return };
            if self.connections[c as usize].life != Life::Open {
                continue;
            }
            self.advance(io, c, true);
            if self.stalled.front() == Some(&c) {
                return;
            }
        }
    }

    /// Submits the replies of this turn.
    pub fn start_sends(&mut self, io: &mut Io) {
        while let Some(c) = self.to_send.pop() {
            let connection = &mut self.connections[c as usize];
            connection.sends_queued = false;
            let instant_sends = io.instant_sends;
            if let Some(stream) = &connection.stream {
                connection.outbox.start(io, stream.as_raw_fd(), Token::ClientSent(c));
            }
            if connection.life == Life::Draining {
                // The connection may end with this, so its completion is waited for.
                io.instant_sends = instant_sends;
            }
        }
    }

    /// Each client, for people.
    pub fn status(&self, now: Time) -> Vec<ClientStatus> {
        let alive =
            self.connections.iter().filter(|c| matches!(c.life, Life::Open | Life::Draining));
        alive
            .map(|connection| ClientStatus {
                origin: connection.origin.clone(),
                requests: connection.in_core,
                not_reading_for: connection.outbox.stuck_for(now),
                held_back_by: connection.held_back_by,
            })
            .collect()
    }

    /// Parses and starts requests until more bytes are needed or something is used up.
    /// `is_resumed`: it is this connection's turn to get what is scarce.
    fn advance(&mut self, io: &mut Io, c: u32, is_resumed: bool) {
        self.connections[c as usize].held_back_by = "";
        loop {
            let connection = &mut self.connections[c as usize];
            if connection.life != Life::Open || connection.receiving {
                return;
            }
            let going = match connection.step {
                Step::Header => self.parse(io, c, is_resumed),
                Step::Payload { .. } => self.fill(io, c),
                Step::NextSlice { request, offset, fua } => {
                    self.begin_slice(io, c, request, offset, fua, is_resumed)
                }
                Step::Discard { .. } => self.discard(c),
            };
            match going {
                Going::On => {}
                Going::NeedsBytes => return self.receive(io, c),
                Going::Lacks(what) => {
                    self.connections[c as usize].held_back_by = what;
                    if is_resumed {
                        self.stalled.push_front(c);
                    } else if !self.stalled.contains(&c) {
                        self.stalled.push_back(c);
                    }
                    return;
                }
                Going::Paused(why) => {
                    self.connections[c as usize].held_back_by = why;
                    return;
                }
                Going::Over => return,
            }
        }
    }

    /// Looks at the next header.
    fn parse(&mut self, io: &mut Io, c: u32, is_resumed: bool) -> Going {
        let connection = &mut self.connections[c as usize];
        if connection.read.is_some() {
            return self.next_read_slice(io, c, is_resumed);
        }
        let (pieces, bytes) = connection.outbox.weight();
        if pieces > OUTBOX_MAX.0 || bytes > OUTBOX_MAX.1 {
            return Going::Paused("it does not read its replies");
        }
        let inbox = connection.inbox.as_ref().expect("no receive is under way");
        match connection.session.next_request(&inbox[connection.unread.clone()]) {
            Parsed::NeedMore { .. } => Going::NeedsBytes,
            Parsed::Request { consumed, request } => {
                let going = self.begin(io, c, request, is_resumed);
                if matches!(going, Going::On) {
                    let connection = &mut self.connections[c as usize];
                    connection.unread.start += consumed;
                    connection.narrow &= request.payload_len() as usize >= DIRECT_BYTES_MIN;
                }
                going
            }
            Parsed::Invalid { consumed, cookie, error, text, discard_payload } => {
                connection.unread.start += consumed;
                connection.step = Step::Discard { left: discard_payload, cookie, error, text };
                Going::On
            }
            Parsed::Disconnect { consumed } => {
                connection.unread.start += consumed;
                self.drain(io, c);
                Going::Over
            }
            Parsed::Close(error) => {
                let origin = &connection.origin;
                tracing::warn!(origin, %error, "client dropped: it broke the protocol");
                self.kill(io, c);
                Going::Over
            }
        }
    }

    /// Starts a request whose header has come in.
    fn begin(&mut self, io: &mut Io, c: u32, request: Request, is_resumed: bool) -> Going {
        let cookie = request.cookie;
        match request.command {
            Command::Read { offset, len: 0, df } => {
                let connection = &mut self.connections[c as usize];
                let mut reply = connection.replies.read(cookie, offset, 0, df);
                connection.outbox.add().put_header(|out| reply.data(0, out));
                self.queue_send(c);
                Going::On
            }
            Command::Write { len: 0, .. }
            | Command::Trim { len: 0, .. }
            | Command::WriteZeroes { len: 0, .. }
            | Command::Cache { .. } => {
                let connection = &mut self.connections[c as usize];
                let replies = connection.replies;
                connection.outbox.add().put_header(|out| replies.done(cookie, out));
                self.queue_send(c);
                Going::On
            }
            Command::WriteZeroes { fast_zero: true, .. } => {
                // Never offered: the other replicas' disks may be slow at it.
                let connection = &mut self.connections[c as usize];
                let replies = connection.replies;
                let text = "fast zeroes are not offered";
                let add = |out: &mut _| replies.error(cookie, WireError::NotSupported, text, out);
                connection.outbox.add().put_header(add);
                self.queue_send(c);
                Going::On
            }
            Command::Read { offset, len, df } => {
                let range = ByteRange::new(offset, u64::from(len));
                if self.slice_end(range) < range.end() {
                    let connection = &mut self.connections[c as usize];
                    connection.read = Some(SlicedRead {
                        reply: connection.replies.read(cookie, offset, len, df),
                        next: offset,
                        end: range.end(),
                        is_in_core: false,
                        is_exclusive: false,
                    });
                    return Going::On;
                }
                self.begin_read(io, c, cookie, range, Kind::Read { df }, is_resumed)
            }
            Command::Write { offset, fua, .. } => {
                self.begin_slice(io, c, request, offset, fua, is_resumed)
            }
            Command::Flush => {
                self.ask(io, c, cookie, Kind::Flush, is_resumed, |_| ClientRequest::Flush)
            }
            Command::Trim { offset, len, fua } => {
                let range = ByteRange::new(offset, u64::from(len));
                let what = ClientRequest::Trim { range, fua };
                self.ask(io, c, cookie, Kind::Zero, is_resumed, |_| what)
            }
            Command::WriteZeroes { offset, len, fua, no_hole, .. } => {
                let range = ByteRange::new(offset, u64::from(len));
                let what = ClientRequest::WriteZeroes { range, fua, may_punch: !no_hole };
                self.ask(io, c, cookie, Kind::Zero, is_resumed, |_| what)
            }
            Command::BlockStatus { offset, len, req_one } => {
                let range = ByteRange::new(offset, u64::from(len));
                let kind = Kind::Map { req_one };
                self.ask(io, c, cookie, kind, is_resumed, |open| {
                    open.range = range;
                    ClientRequest::Map { range }
                })
            }
        }
    }

    /// A request without payload goes to the core.
    fn ask(
        &mut self,
        io: &mut Io,
        c: u32,
        cookie: u64,
        kind: Kind,
        is_resumed: bool,
        what: impl FnOnce(&mut OpenRequest) -> ClientRequest,
    ) -> Going {
        if self.lacks_room(is_resumed) {
            return Going::Lacks("too many requests are open");
        }
        self.enter(io, c, cookie, kind, what);
        Going::On
    }

    fn begin_read(
        &mut self,
        io: &mut Io,
        c: u32,
        cookie: u64,
        range: ByteRange,
        kind: Kind,
        is_resumed: bool,
    ) -> Going {
        if self.lacks_room(is_resumed) {
            return Going::Lacks("too many requests are open");
        }
        let bytes = range.align_out(self.block_bytes).length as usize;
        let Some(buf) = io.pool.take(Share::Clients, bytes) else {
            return Going::Lacks("the buffers of clients are used up");
        };
        self.enter(io, c, cookie, kind, |open| {
            open.range = range;
            open.buf = Some(buf);
            ClientRequest::Read { range, buf }
        });
        Going::On
    }

    /// Takes a buffer for the slice of a write that begins at `offset`.
    fn begin_slice(
        &mut self,
        io: &mut Io,
        c: u32,
        request: Request,
        offset: u64,
        fua: bool,
        is_resumed: bool,
    ) -> Going {
        let Command::Write { offset: start, len, .. } = request.command else {
            unreachable!("only writes have payload")
        };
        // Checked here, so that a received payload never has to wait for the core.
        if self.lacks_room(is_resumed) {
            return Going::Lacks("too many requests are open");
        }
        let end = start + u64::from(len);
        let rest = ByteRange::new(offset, end - offset);
        let range = ByteRange::new(offset, self.slice_end(rest) - offset);
        let bytes = range.align_out(self.block_bytes).length as usize;
        let Some(buf) = io.pool.take(Share::Clients, bytes) else {
            return Going::Lacks("the buffers of clients are used up");
        };
        self.coming += 1;
        let connection = &mut self.connections[c as usize];
        connection.step = Step::Payload { request, range, buf, filled: 0, fua };
        Going::On
    }

    /// Moves payload from the inbox to its buffer; the full buffer goes to the core.
    fn fill(&mut self, io: &mut Io, c: u32) -> Going {
        let block_bytes = self.block_bytes;
        let connection = &mut self.connections[c as usize];
        let Step::Payload { request, range, buf, filled, fua } = &mut connection.step else {
            unreachable!("called for payload only")
        };
        let length = range.length as usize;
        let lead = (range.start % block_bytes) as usize;
        let copied = (length - *filled).min(connection.unread.len());
        if copied > 0 {
            let inbox = connection.inbox.as_ref().expect("no receive is under way");
            let from = connection.unread.start;
            let at = lead + *filled;
            io.pool.bytes_mut(*buf, at..at + copied).copy_from_slice(&inbox[from..from + copied]);
            connection.unread.start += copied;
            *filled += copied;
        }
        let missing = length - *filled;
        if missing >= DIRECT_BYTES_MIN {
            let to = lead + *filled..lead + length;
            let buf = *buf;
            connection.receiving = true;
            connection.receiving_since = io.now;
            connection.narrow = true;
            let fd = connection.stream.as_ref().expect("an open connection").as_raw_fd();
            io.ring.receive_into(&mut io.pool, fd, buf, to, Token::ClientReceived(c));
            return Going::Over;
        }
        if missing > 0 {
            return Going::NeedsBytes;
        }
        let (request, range, buf, fua) = (*request, *range, *buf, *fua);
        let Command::Write { offset, len, .. } = request.command else {
            unreachable!("only writes have payload")
        };
        let is_last = range.end() == offset + u64::from(len);
        connection.step = if is_last {
            Step::Header
        } else {
            Step::NextSlice { request, offset: range.end(), fua }
        };
        self.coming -= 1;
        let kind = if is_last && range.start == offset {
            Kind::Write
        } else {
            Kind::WriteSlice { sliced: self.count_slice(c, range.start == offset, is_last) }
        };
        self.enter(io, c, request.cookie, kind, |open| {
            open.range = range;
            open.buf = Some(buf);
            ClientRequest::Write { range, buf, fua }
        });
        Going::On
    }

    /// Drops the payload of a refused write, then sends the error.
    fn discard(&mut self, c: u32) -> Going {
        let connection = &mut self.connections[c as usize];
        let Step::Discard { left, cookie, error, text } = &mut connection.step else {
            unreachable!("called for discarded payload only")
        };
        let dropped = (*left as usize).min(connection.unread.len());
        connection.unread.start += dropped;
        *left -= dropped as u32;
        if *left > 0 {
            return Going::NeedsBytes;
        }
        let (cookie, error, text) = (*cookie, *error, *text);
        let replies = connection.replies;
        connection.outbox.add().put_header(|out| replies.error(cookie, error, text, out));
        connection.step = Step::Header;
        self.queue_send(c);
        Going::On
    }

    /// Starts a receive into the inbox.
    fn receive(&mut self, io: &mut Io, c: u32) {
        let connection = &mut self.connections[c as usize];
        let mut inbox = connection.inbox.take().expect("no receive is under way");
        let unread = connection.unread.clone();
        if unread.is_empty() {
            connection.unread = 0..0;
        } else if unread.start > 0 {
            inbox.copy_within(unread.clone(), 0);
            connection.unread = 0..unread.len();
        }
        let start = connection.unread.end;
        let is_header = matches!(connection.step, Step::Header);
        let end =
            if connection.narrow && is_header { REQUEST_LEN.max(start + 1) } else { inbox.len() };
        connection.receiving = true;
        connection.receiving_since = io.now;
        let fd = connection.stream.as_ref().expect("an open connection").as_raw_fd();
        io.ring.receive(fd, inbox, start..end, Token::ClientReceived(c));
    }

    /// Gives a request to the core.
    fn enter(
        &mut self,
        io: &mut Io,
        c: u32,
        cookie: u64,
        kind: Kind,
        what: impl FnOnce(&mut OpenRequest) -> ClientRequest,
    ) {
        let index = self.free_requests.pop().unwrap_or_else(|| {
            self.requests.push(OpenRequest::vacant());
            self.requests.len() as u32 - 1
        });
        let open = &mut self.requests[index as usize];
        open.is_open = true;
        open.connection = c;
        open.kind = kind;
        open.cookie = cookie;
        open.began = io.now;
        open.buf = None;
        open.range = ByteRange::default();
        let what = what(open);
        let request = RequestId(u64::from(index) | u64::from(open.generation) << 32);
        self.in_core += 1;
        self.connections[c as usize].in_core += 1;
        io.tell(Input::ClientRequested { request, what });
    }

    fn lacks_room(&self, is_resumed: bool) -> bool {
        // Who waits already comes first, or a large request would starve behind small ones.
        let others_wait = !is_resumed && !self.stalled.is_empty();
        self.in_core + self.coming >= limits::REQUESTS_MAX || others_wait
    }

    /// Starts the next slice of a large read, unless one is open.
    fn next_read_slice(&mut self, io: &mut Io, c: u32, is_resumed: bool) -> Going {
        let read = self.connections[c as usize].read.as_ref().expect("a large read");
        if read.is_in_core {
            return Going::Paused("a large read of it is under way");
        }
        let rest = ByteRange::new(read.next, read.end - read.next);
        let range = ByteRange::new(rest.start, self.slice_end(rest) - rest.start);
        let going = self.begin_read(io, c, 0, range, Kind::ReadSlice, is_resumed);
        if matches!(going, Going::On) {
            let read = self.connections[c as usize].read.as_mut().expect("a large read");
            read.next = range.end();
            read.is_in_core = true;
        }
        going
    }

    /// Notes that a slice of a write went to the core; returns the number of the write.
    fn count_slice(&mut self, c: u32, is_first: bool, is_last: bool) -> u32 {
        if is_first {
            let fresh = SlicedWrite { open: 0, is_received: false, result: Ok(()) };
            let free = self.writes.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                self.writes.push(None);
                self.writes.len() - 1
            });
            self.writes[index] = Some(fresh);
            self.connections[c as usize].sliced_write = Some(index as u32);
        }
        let index = self.connections[c as usize].sliced_write.expect("the first slice came first");
        let write = self.writes[index as usize].as_mut().expect("an open write");
        write.open += 1;
        write.is_received = is_last;
        if is_last {
            self.connections[c as usize].sliced_write = None;
        }
        index
    }

    fn queue_send(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if !connection.sends_queued {
            connection.sends_queued = true;
            self.to_send.push(c);
        }
    }

    /// Where the first slice of a range ends: with its head aligned out it fits a buffer.
    fn slice_end(&self, range: ByteRange) -> u64 {
        let lead = range.start % self.block_bytes;
        range.end().min(range.start - lead + SLICE_BYTES_MAX)
    }
}

/// How parsing goes on.
enum Going {
    /// Look again.
    On,
    /// Nothing more to parse.
    NeedsBytes,
    /// Waits its turn for something scarce.
    Lacks(&'static str),
    /// Waits for something of its own.
    Paused(&'static str),
    /// A receive is under way, or the connection is over.
    Over,
}

impl OpenRequest {
    fn vacant() -> Self {
        Self {
            generation: 0,
            is_open: false,
            connection: 0,
            kind: Kind::Flush,
            cookie: 0,
            range: ByteRange::default(),
            buf: None,
            began: Time::default(),
            map: Vec::new(),
        }
    }
}

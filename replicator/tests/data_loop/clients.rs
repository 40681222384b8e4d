//! What clients are promised.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nbd_frontend::client::{Content, encode_request, extents, parse_reply};
use nbd_frontend::protocol::{
    CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_DF, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, RawRequest, STATE_HOLE, STATE_ZERO,
};
use replicator::data_loop::{FromLoop, ToLoop};
use replicator::disk::TestBacking;
use replicator_core::{Command, Span, Ticket};

use crate::{Backing, Dice, Running};

const PATIENT: Span = Span::from_ms(60_000);
const SIZE: u64 = 16 << 20;

/// A blocking client that reads replies in any order.
pub struct Client {
    stream: UnixStream,
    inbox: Vec<u8>,
    next_cookie: u64,
    /// Data of reads that are not complete, by cookie: first offset and bytes.
    reads: HashMap<u64, (u64, Vec<u8>)>,
}

/// A complete reply.
#[derive(Debug, Default)]
pub struct Reply {
    cookie: u64,
    pub error: u32,
    data: Vec<u8>,
    extents: Vec<(u32, u32)>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: Vec::new(), next_cookie: 1, reads: HashMap::new() }
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut wire = Vec::new();
        encode_request(&RawRequest { flags, command, cookie, offset, len }, &mut wire);
        self.stream.write_all(&wire).expect("a request sent");
        self.stream.write_all(data).expect("a payload sent");
        if command == CMD_READ {
            self.reads.insert(cookie, (offset, vec![0xee; len as usize]));
        }
        cookie
    }

    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Reply {
        let cookie = self.send(command, flags, offset, len, data);
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        reply
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(CMD_WRITE, 0, offset, data.len() as u32, data).error, 0);
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let reply = self.call(CMD_READ, 0, offset, len as u32, &[]);
        assert_eq!(reply.error, 0);
        reply.data
    }

    pub fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.try_parse() {
                return reply;
            }
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65536];
        let received = self.stream.read(&mut buffer).expect("a reply in time");
        assert!(received > 0, "the loop closed the connection");
        self.inbox.extend_from_slice(&buffer[..received]);
    }

    /// Takes chunks until one ends a reply.
    fn try_parse(&mut self) -> Option<Reply> {
        loop {
            let (used, head) = parse_reply(&self.inbox).expect("a reply of the protocol")?;
            let (cookie, done) = (head.cookie, head.done);
            let mut reply = Reply { cookie, ..Reply::default() };
            let mut data_len = 0;
            let mut at = 0;
            match head.content {
                Content::Simple(error) => {
                    reply.error = error;
                    if let (0, Some((_, data))) = (error, self.reads.get(&cookie)) {
                        data_len = data.len();
                    }
                }
                Content::Data { offset, len } => {
                    data_len = len as usize;
                    at = (offset - self.reads[&cookie].0) as usize;
                }
                Content::Status { entries, .. } => reply.extents = extents(entries).collect(),
                Content::Error { error, .. } => reply.error = error,
                Content::None | Content::Hole { .. } => {}
            }
            while self.inbox.len() < used + data_len {
                self.receive();
            }
            if let Some((_, data)) = self.reads.get_mut(&cookie) {
                data[at..at + data_len].copy_from_slice(&self.inbox[used..used + data_len]);
            }
            self.inbox.drain(..used + data_len);
            if done {
                reply.data = self.reads.remove(&cookie).map(|(_, data)| data).unwrap_or_default();
                return Some(reply);
            }
        }
    }

    /// Waits until the loop has closed the connection.
    pub fn until_closed(&mut self) {
        let mut buffer = [0; 65536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection was not closed in time: {error}"),
            }
        }
    }
}

fn mixed_load(test: TestBacking, structured: bool, seed: u64) {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, test, PATIENT);
    let mut client = Client::new(running.client(structured));
    let mut dice = Dice(seed);
    let mut model = vec![0; SIZE as usize];
    for _ in 0..150 {
        let len = match dice.below(4) {
            0 => dice.below(600) + 1,
            1 => 4096,
            2 => dice.below(200_000) + 1,
            _ => dice.below(4 << 20) + 1,
        };
        let start = dice.below(SIZE - len);
        let range = start as usize..(start + len) as usize;
        match dice.below(8) {
            0..=3 => {
                let data = vec![dice.below(256) as u8; len as usize];
                client.write(start, &data);
                model[range].copy_from_slice(&data);
            }
            4 => {
                // The stand-in zeroes whole blocks only.
                let blocks = start / 4096 * 4096..(start + len) / 4096 * 4096;
                let len = (blocks.end - blocks.start) as u32;
                let command = if dice.below(2) == 0 { CMD_TRIM } else { CMD_WRITE_ZEROES };
                assert_eq!(client.call(command, 0, blocks.start, len, &[]).error, 0);
                model[blocks.start as usize..blocks.end as usize].fill(0);
            }
            5 => assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).error, 0),
            6 if structured => {
                let reply = client.call(CMD_READ, CMD_FLAG_DF, start, len as u32, &[]);
                assert!(reply.data == model[range], "read of {start}+{len} with DF differs");
            }
            _ => {
                let data = client.read(start, len as usize);
                assert!(data == model[range], "read of {start}+{len} differs");
            }
        }
    }
    assert!(client.read(0, SIZE as usize) == model, "the whole disk differs");
    running.until_status("an empty pool", |status| status.pool.clients.used_bytes == 0);
}

#[test]
fn a_client_reads_what_it_wrote_at_any_size_and_alignment() {
    mixed_load(TestBacking::Off, true, 1);
    mixed_load(TestBacking::Off, false, 2);
}

#[test]
fn a_volatile_test_disk_reads_like_a_real_one() {
    mixed_load(TestBacking::Volatile, true, 3);
}

#[test]
fn more_requests_than_any_limit_allows_are_all_answered() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    let stream = running.client(true);
    let mut sender = Client::new(stream.try_clone().expect("a second handle"));
    let mut receiver = Client::new(stream);
    const COUNT: u64 = 3000;
    const LEN: u64 = 48 << 10;
    let place = |cookie: u64| (cookie * LEN % SIZE).min(SIZE - LEN);
    for cookie in (1..=COUNT).filter(|cookie| cookie % 3 == 0) {
        receiver.reads.insert(cookie, (place(cookie), vec![0; LEN as usize]));
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            let data = vec![7; LEN as usize];
            for cookie in 1..=COUNT {
                let offset = place(cookie);
                if cookie % 3 == 0 {
                    sender.send(CMD_READ, 0, offset, LEN as u32, &[]);
                } else {
                    sender.send(CMD_WRITE, 0, offset, LEN as u32, &data);
                }
            }
        });
        let mut seen = vec![false; COUNT as usize + 1];
        for _ in 0..COUNT {
            let reply = receiver.reply();
            assert_eq!(reply.error, 0);
            assert!(!std::mem::replace(&mut seen[reply.cookie as usize], true), "answered twice");
        }
    });
    running.until_status("an empty pool", |status| status.pool.clients.used_bytes == 0);
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, Span::from_ms(300));
    let mut deaf = Client::new(running.client(true));
    for _ in 0..40 {
        deaf.send(CMD_READ, 0, 0, 1 << 20, &[]);
    }
    running.until_status("a stuck client", |status| {
        status.clients.iter().any(|client| client.not_reading_for > Span(0))
    });
    let mut other = Client::new(running.client(true));
    other.write(4096, &[5; 4096]);
    running.until_status("the end of the deaf client", |status| status.clients.len() == 1);
    deaf.until_closed();
    assert_eq!(other.read(4096, 4096), [5; 4096]);
    running.until_status("an empty pool", |status| status.pool.clients.used_bytes == 0);
}

#[test]
fn a_client_that_vanishes_in_a_payload_leaves_nothing_behind() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    for len in [4096, 100_000, 3 << 20] {
        for part in [0, 1, len / 2, len - 1] {
            let mut client = Client::new(running.client(true));
            client.send(CMD_WRITE, 0, 0, len, &vec![1; part as usize]);
        }
    }
    running.until_status("no clients and an empty pool", |status| {
        status.clients.is_empty() && status.pool.clients.used_bytes == 0
    });
}

#[test]
fn a_refused_write_leaves_the_stream_in_step() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    for structured in [false, true] {
        let mut client = Client::new(running.client(structured));
        let data = vec![9; 70_000];
        assert_eq!(client.call(CMD_WRITE, 0, SIZE - 1, 70_000, &data).error, 28);
        assert_eq!(client.call(CMD_READ, 0, SIZE, 1, &[]).error, 22);
        assert_eq!(client.call(77, 0, 0, 0, &[]).error, 22);
        assert_eq!(client.call(CMD_READ, 0, 5, 0, &[]).error, 0);
        client.write(8192, b"still in step");
        assert_eq!(client.read(8192, 13), b"still in step");
    }
}

#[test]
fn a_map_tells_holes_from_data() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    let mut client = Client::new(running.client(true));
    client.write(1 << 20, &vec![1; 1 << 20]);
    assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).error, 0);
    let reply = client.call(CMD_BLOCK_STATUS, 0, 0, 4 << 20, &[]);
    let hole = STATE_HOLE | STATE_ZERO;
    assert_eq!(reply.extents, [(1 << 20, hole), (1 << 20, 0), (2 << 20, hole)]);
}

#[test]
fn goodbye_is_answered_by_what_is_outstanding_and_the_end_of_the_stream() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    let mut client = Client::new(running.client(true));
    for block in 0..50 {
        client.send(CMD_WRITE, 0, block * 4096, 4096, &[3; 4096]);
    }
    client.send(CMD_DISC, 0, 0, 0, &[]);
    for _ in 0..50 {
        assert_eq!(client.reply().error, 0);
    }
    client.until_closed();
}

#[test]
fn a_client_that_is_answered_and_leaves_is_closed_at_once() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    let took = (0..5).map(|_| {
        let mut client = Client::new(running.client(true));
        let began = Instant::now();
        client.send(CMD_READ, 0, 0, 4096, &[]);
        client.send(CMD_DISC, 0, 0, 0, &[]);
        assert_eq!(client.reply().error, 0);
        client.until_closed();
        began.elapsed()
    });
    // Well below the second after which an idle loop looks around.
    let shortest = took.min().expect("five clients");
    assert!(shortest < Duration::from_millis(500), "it was closed after {shortest:?}");
}

#[test]
fn a_stop_closes_the_clients_and_ends_the_loop() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Off, PATIENT);
    let mut client = Client::new(running.client(true));
    client.write(0, &[1; 4096]);
    let order = ToLoop::Command { ticket: Ticket(7), command: Command::Stop };
    running.handle.send(order).expect("a running loop");
    running.until(|event| {
        matches!(event, FromLoop::Answer { ticket: Ticket(7), result: Ok(_) }).then_some(())
    });
    running.until(|event| matches!(event, FromLoop::Stopped).then_some(()));
    client.until_closed();
    running.handle.join();
    // The lock is free again.
    backing.open(TestBacking::Off);
}

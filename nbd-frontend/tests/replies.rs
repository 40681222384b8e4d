//! The bytes of replies, against the layout in the protocol document and against the parser of our
//! own client.

mod script;

use std::io::{self, Read, Write};

use nbd_frontend::client::{ClientError, Content, Negotiated, Reply, Wish, extents, parse_reply};
use nbd_frontend::negotiation::{Negotiation, State, greeting};
use nbd_frontend::protocol::*;
use nbd_frontend::reply::{ERROR_REPLY_MAX_LEN, Extent, HeaderAlreadySent, Replies, WireError};
use script::{Bytes, COOKIE, DISK_BYTES, Site};

const SIMPLE: fn() -> Replies = || Replies::new(false, None);
const STRUCTURED: fn() -> Replies = || Replies::new(true, Some(BASE_ALLOCATION_ID));

fn simple_bytes(error: u32) -> Vec<u8> {
    Bytes::default().u32(0x6744_6698).u32(error).u64(COOKIE).0
}

fn chunk_bytes(flags: u16, kind: u16, body: Bytes) -> Vec<u8> {
    let len = body.0.len() as u32;
    let header = Bytes::default().u32(0x668e_33ef).u16(flags).u16(kind).u64(COOKIE);
    header.u32(len).raw(&body.0).0
}

/// Parses one reply and demands that every shorter prefix asks for more.
fn parse(out: &[u8]) -> (usize, Reply<'_>) {
    let (len, reply) = parse_reply(out).expect("our own replies are correct").expect("whole");
    for cut in 0..len {
        assert!(parse_reply(&out[..cut]).expect("no prefix is wrong").is_none());
    }
    assert_eq!(reply.cookie, COOKIE);
    (len, reply)
}

#[test]
fn success_without_data_is_a_simple_reply_in_both_forms() {
    for replies in [SIMPLE(), STRUCTURED()] {
        let mut out = Vec::new();
        replies.done(COOKIE, &mut out);
        assert_eq!(out, simple_bytes(0));
    }
}

#[test]
fn errors_carry_their_text_only_in_chunks() {
    let mut out = Vec::new();
    SIMPLE().error(COOKIE, WireError::NoSpace, "full", &mut out);
    assert_eq!(out, simple_bytes(28));
    out.clear();
    STRUCTURED().error(COOKIE, WireError::NoSpace, "full", &mut out);
    assert_eq!(out, chunk_bytes(1, 0x8001, Bytes::default().u32(28).u16(4).raw(b"full")));
    let content = Content::Error { error: 28, text: b"full", offset: None };
    assert_eq!(parse(&out).1, Reply { cookie: COOKIE, done: true, content });
}

#[test]
fn long_texts_are_cut_between_characters() {
    let mut out = Vec::new();
    STRUCTURED().error(COOKIE, WireError::Io, &"ä€".repeat(3000), &mut out);
    assert!(out.len() <= ERROR_REPLY_MAX_LEN);
    let Content::Error { text, .. } = parse(&out).1.content else { panic!() };
    assert!(std::str::from_utf8(text).is_ok());
    assert!(text.len() > 500);
}

#[test]
fn a_simple_read_has_one_header_before_all_slices() {
    let mut out = Vec::new();
    let mut read = SIMPLE().read(COOKIE, 4096, 3000, false);
    read.data(1000, &mut out);
    assert_eq!(out, simple_bytes(0));
    read.data(1000, &mut out);
    read.data(1000, &mut out);
    assert_eq!(out, simple_bytes(0), "middle and last slice have no header");
    assert!(read.is_complete());
}

#[test]
fn a_structured_read_has_a_chunk_for_each_slice_and_done_on_the_last() {
    let mut out = Vec::new();
    let mut read = STRUCTURED().read(COOKIE, 4096, 3000, false);
    let data = |flags, offset, len: usize| {
        chunk_bytes(flags, 1, Bytes::default().u64(offset).raw(&vec![0; len]))[..28].to_vec()
    };
    read.data(1000, &mut out);
    assert_eq!(out, data(0, 4096, 1000), "first");
    out.clear();
    read.hole(1000, &mut out);
    assert_eq!(out, chunk_bytes(0, 2, Bytes::default().u64(5096).u32(1000)), "middle, a hole");
    assert!(!parse(&out).1.done);
    out.clear();
    read.data(1000, &mut out);
    assert_eq!(out, data(1, 6096, 1000), "last");
    let (len, reply) = parse(&out);
    assert_eq!((len, reply.done), (28, true));
    assert_eq!(reply.content, Content::Data { offset: 6096, len: 1000 });
    assert!(read.is_complete());
}

#[test]
fn one_slice_or_a_last_hole_says_done() {
    let mut out = Vec::new();
    STRUCTURED().read(COOKIE, 0, 512, false).data(512, &mut out);
    assert!(parse(&out).1.done);
    out.clear();
    STRUCTURED().read(COOKIE, 0, 512, false).hole(512, &mut out);
    assert_eq!(parse(&out).1.content, Content::Hole { offset: 0, len: 512 });
    assert!(parse(&out).1.done);
}

#[test]
fn df_puts_all_slices_into_one_chunk() {
    let mut out = Vec::new();
    let mut read = STRUCTURED().read(COOKIE, 0, 2 << 20, true);
    assert!(!read.takes_holes());
    read.data(1 << 20, &mut out);
    read.data(1 << 20, &mut out);
    let (len, reply) = parse(&out);
    assert_eq!(len, out.len());
    assert_eq!(reply.content, Content::Data { offset: 0, len: 2 << 20 });
    assert!(reply.done && read.is_complete());
}

#[test]
fn a_read_of_no_bytes_is_answered() {
    let mut out = Vec::new();
    SIMPLE().read(COOKIE, 0, 0, false).data(0, &mut out);
    assert_eq!(out, simple_bytes(0));
    for df in [false, true] {
        out.clear();
        STRUCTURED().read(COOKIE, 0, 0, df).data(0, &mut out);
        assert_eq!(out, chunk_bytes(1, 0, Bytes::default()), "a NONE chunk");
        assert_eq!(parse(&out).1.content, Content::None);
    }
}

#[test]
fn a_late_read_error_is_a_chunk_or_the_end_of_the_connection() {
    let mut out = Vec::new();
    let mut read = STRUCTURED().read(COOKIE, 4096, 3000, false);
    read.data(1000, &mut out);
    out.clear();
    read.fail(WireError::Io, "bad sector", &mut out).expect("chunks may fail late");
    let body = Bytes::default().u32(5).u16(10).raw(b"bad sector").u64(5096);
    assert_eq!(out, chunk_bytes(1, 0x8002, body));
    let content = Content::Error { error: 5, text: b"bad sector", offset: Some(5096) };
    assert_eq!(parse(&out).1.content, content);

    for (replies, df) in [(SIMPLE(), false), (STRUCTURED(), true)] {
        out.clear();
        let mut read = replies.read(COOKIE, 0, 3000, df);
        assert!(!read.may_fail_late());
        let mut early = Vec::new();
        read.fail(WireError::Io, "", &mut early).expect("nothing was promised yet");
        assert!(parse(&early).1.done);
        read.data(1000, &mut out);
        let sent = out.clone();
        assert_eq!(read.fail(WireError::Io, "", &mut out), Err(HeaderAlreadySent));
        assert_eq!(out, sent);
    }
}

#[test]
fn block_status_merges_cuts_and_stops() {
    let extent = |len, hole| Extent { len, hole, zero: hole };
    let run = [extent(4096, false), extent(4096, false), extent(0, true), extent(1 << 40, true)];
    let status = |len, req_one, run: &[Extent]| {
        let mut out = Vec::new();
        STRUCTURED().block_status(COOKIE, len, req_one, run.iter().copied(), &mut out);
        let (used, reply) = parse(&out);
        assert!(reply.done && used == out.len());
        let Content::Status { context, entries } = reply.content else { panic!() };
        assert_eq!(context, BASE_ALLOCATION_ID);
        extents(entries).collect::<Vec<_>>()
    };
    assert_eq!(status(1 << 20, false, &run), [(8192, 0), ((1 << 20) - 8192, 3)]);
    assert_eq!(status(1 << 20, true, &run), [(8192, 0)]);
    assert_eq!(status(5000, false, &run), [(5000, 0)]);
    assert_eq!(status(u32::MAX, false, &run[3..]), [(u32::MAX, 3)]);
    assert_eq!(status(4096, false, &[]), [(4096, 0)], "not knowing means allocated");
    let zebra: Vec<_> = (0..10_000).map(|at| extent(512, at % 2 == 1)).collect();
    let listed = status(10_000 * 512, false, &zebra);
    assert_eq!(listed.len(), EXTENTS_MAX);
    assert!(listed.iter().all(|(len, _)| *len == 512));
}

#[test]
fn errors_of_the_system_become_those_of_the_protocol() {
    let numbers = [
        (libc::EPERM, 1),
        (libc::EROFS, 1),
        (libc::EIO, 5),
        (libc::ENOMEM, 12),
        (libc::EINVAL, 22),
        (libc::ENOSPC, 28),
        (libc::EDQUOT, 28),
        (libc::EFBIG, 28),
        (libc::EOVERFLOW, 75),
        (libc::EOPNOTSUPP, 95),
        (libc::ESHUTDOWN, 108),
        (libc::EBADF, 5),
        (-1, 5),
    ];
    for (errno, wire) in numbers {
        assert_eq!(WireError::from_os(errno).number(), wire);
    }
}

#[test]
fn answers_fit_the_space_that_was_reserved_for_them() {
    let mut out = Vec::with_capacity(64);
    let before = (out.as_ptr(), out.capacity());
    for _ in 0..1000 {
        out.clear();
        STRUCTURED().done(COOKIE, &mut out);
        STRUCTURED().read(COOKIE, 0, 512, false).data(512, &mut out);
        assert_eq!((out.as_ptr(), out.capacity()), before, "no allocation");
    }
}

/// A stream whose other end is a negotiation: what is written is answered at once.
struct InMemory {
    negotiation: Negotiation,
    answers: Vec<u8>,
    at: usize,
    opened: Option<String>,
}

impl InMemory {
    fn new() -> Self {
        let answers = greeting().to_vec();
        Self { negotiation: Negotiation::new(), answers, at: 0, opened: None }
    }
}

impl Read for InMemory {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let len = data.len().min(self.answers.len() - self.at).min(7);
        data[..len].copy_from_slice(&self.answers[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

impl Write for InMemory {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(5)];
        let progress = self.negotiation.feed(data, &Site, &mut self.answers);
        if let State::Transmission { export, .. } = progress.state {
            self.opened = Some(export.name);
        }
        Ok(progress.consumed)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn our_client_negotiates_with_our_server() {
    let mut stream = InMemory::new();
    let wish = Wish { structured: true, base_allocation: true };
    let got = Negotiated::go_with(&mut stream, "disk", wish).expect("the export exists");
    assert_eq!(stream.opened.as_deref(), Some("disk"));
    assert_eq!((got.size_bytes, got.structured), (DISK_BYTES, true));
    assert_eq!(got.base_allocation, Some(BASE_ALLOCATION_ID));
    assert_eq!(got.block_sizes, Some([512, 4096, 32 << 20]));
    assert_ne!(got.flags & TFLAG_SEND_DF, 0);

    let plain = Negotiated::go(&mut InMemory::new(), "").expect("the default export exists");
    assert_eq!((plain.structured, plain.base_allocation), (false, None));

    let refused = Negotiated::go(&mut InMemory::new(), "sec").expect_err("sec is refused");
    let ClientError::Refused { option, error, text } = refused else { panic!("{refused}") };
    assert_eq!((option, error), (OPT_GO, REP_ERR_POLICY));
    assert_eq!(text, "beta is secondary; the primary is alpha");
}

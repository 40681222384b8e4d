//! What the tests share: a small set of exports, the bytes that a client would send, and a driver
//! that feeds them to a negotiation in pieces of any size.
#![allow(dead_code)] // Each test file uses its part of it.

use nbd_frontend::export::{Export, Exports, Refusal, RefusalKind};
use nbd_frontend::negotiation::{CloseReason, Negotiation, State};
use nbd_frontend::protocol::{OPTION_MAGIC, OPTION_REPLY_MAGIC, RawRequest};
use nbd_frontend::session::Session;

pub const DISK_BYTES: u64 = 64 << 20;

/// `disk` (also the default) and `plain`, which offers as little as possible; `sec` is refused,
/// `late` is stopping, `odd` is described wrongly.
pub struct Site;

impl Exports for Site {
    fn lookup(&self, name: &str) -> Result<Export, Refusal> {
        let refuse = |kind, text: &str| Err(Refusal { kind, text: text.to_owned() });
        match name {
            "" | "disk" => {
                let mut export = Export::new("disk", DISK_BYTES);
                export.description = "a disk".to_owned();
                Ok(export)
            }
            "plain" => {
                let mut export = Export::new("plain", DISK_BYTES);
                export.trim = false;
                export.write_zeroes = false;
                export.multi_conn = false;
                Ok(export)
            }
            "odd" => Ok(Export::new("odd", 1000)),
            "sec" => refuse(RefusalKind::Policy, "beta is secondary; the primary is alpha"),
            "late" => refuse(RefusalKind::Shutdown, "stopping"),
            _ => refuse(RefusalKind::Unknown, "no such export"),
        }
    }

    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        each("disk", "a disk");
        each("plain", "");
    }
}

/// Builds the bytes of a client.
#[derive(Debug, Default, Clone)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Starts with the usual client flags.
    pub fn hello() -> Self {
        Self(3u32.to_be_bytes().to_vec())
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A string with its length before it.
    pub fn string(self, text: &str) -> Self {
        self.u32(text.len() as u32).raw(text.as_bytes())
    }

    pub fn option(self, option: u32, data: &[u8]) -> Self {
        self.u64(OPTION_MAGIC).u32(option).u32(data.len() as u32).raw(data)
    }

    pub fn request(self, command: u16, flags: u16, offset: u64, len: u32) -> Self {
        let request = RawRequest { flags, command, cookie: COOKIE, offset, len };
        self.raw(&request.encode())
    }
}

pub const COOKIE: u64 = 0x0123_4567_89ab_cdef;

/// The data of GO and INFO.
pub fn open_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let bytes = Bytes::default().string(name).u16(infos.len() as u16);
    infos.iter().fold(bytes, |bytes, info| bytes.u16(*info)).0
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let bytes = Bytes::default().string(name).u32(queries.len() as u32);
    queries.iter().fold(bytes, |bytes, query| bytes.string(query)).0
}

/// How a scripted negotiation went.
#[derive(Debug, PartialEq)]
pub struct Run {
    pub out: Vec<u8>,
    pub end: End,
    /// Input that was left to the session.
    pub rest: Vec<u8>,
}

#[derive(Debug, PartialEq)]
pub enum End {
    Hungry,
    Open(String, Session),
    Closed(CloseReason),
}

/// Feeds `input` in pieces that end at the offsets of `cuts`.
pub fn negotiate(input: &[u8], cuts: &[usize]) -> Run {
    let mut negotiation = Negotiation::new();
    let mut out = Vec::new();
    let mut buffered_from = 0;
    let mut ends = cuts.to_vec();
    ends.push(input.len());
    for end in ends {
        loop {
            let piece = &input[buffered_from..end];
            let progress = negotiation.feed(piece, &Site, &mut out);
            assert!(progress.consumed <= piece.len());
            buffered_from += progress.consumed;
            match progress.state {
                State::NeedMore => {
                    assert_eq!(buffered_from, end, "hungry with food on the table");
                    break;
                }
                State::SendFirst => assert!(progress.consumed > 0, "no progress"),
                State::Transmission { export, session } => {
                    let rest = input[buffered_from..].to_vec();
                    return Run { out, end: End::Open(export.name, session), rest };
                }
                State::Close(reason) => {
                    return Run { out, end: End::Closed(reason), rest: Vec::new() };
                }
            }
        }
    }
    Run { out, end: End::Hungry, rest: Vec::new() }
}

/// Runs a script whole, cut in two at every offset, and byte by byte: the result never differs.
pub fn negotiate_every_way(input: &Bytes) -> Run {
    let whole = negotiate(&input.0, &[]);
    for cut in 0..input.0.len() {
        assert_eq!(negotiate(&input.0, &[cut]), whole, "cut at {cut}");
    }
    let every_byte: Vec<usize> = (1..input.0.len()).collect();
    assert_eq!(negotiate(&input.0, &every_byte), whole, "byte by byte");
    whole
}

/// Splits output into option replies: option, type, data. Panics on anything else.
pub fn option_replies(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!(out[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let len = word(16) as usize;
        replies.push((word(8), word(12), out[20..20 + len].to_vec()));
        out = &out[20 + len..];
    }
    replies
}

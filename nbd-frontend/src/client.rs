//! The client side of the protocol, for load generators, checks and tests: a blocking negotiation
//! over any stream, and codecs for requests and replies that need no socket.

use std::io::{self, Read, Write};

use thiserror::Error;

use crate::protocol::{
    BASE_ALLOCATION, CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_ERROR_BIT, CHUNK_ERROR_OFFSET,
    CHUNK_FLAG_DONE, CHUNK_HEADER_LEN, CHUNK_MAGIC, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, EXPORT_MAX_BYTES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_LEN,
    GREETING_MAGIC, INFO_BLOCK_SIZE, INFO_EXPORT, OPT_ABORT, OPT_GO, OPT_SET_META_CONTEXT,
    OPT_STRUCTURED_REPLY, OPTION_KEEP_MAX_LEN, OPTION_MAGIC, OPTION_REPLY_HEADER_LEN,
    OPTION_REPLY_MAGIC, PAYLOAD_MAX_BYTES, REP_ACK, REP_ERROR_BIT, REP_INFO, REP_META_CONTEXT,
    RawRequest, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC, read_u16, read_u32, read_u64,
};

/// What went wrong on the client side.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The stream failed or ended.
    #[error("the connection to the NBD server failed: {0}")]
    Stream(#[from] io::Error),
    /// The server said no.
    #[error("the NBD server refused option {option} (error {error:#x}): {text}")]
    Refused {
        /// Number of the option.
        option: u32,
        /// `REP_ERR_*`.
        error: u32,
        /// Text of the server; may be empty.
        text: String,
    },
    /// The server broke the protocol.
    #[error("the NBD server broke the protocol: {what}")]
    Protocol {
        /// The rule that it broke.
        what: &'static str,
    },
}

fn broken(what: &'static str) -> ClientError {
    ClientError::Protocol { what }
}

/// What to ask for besides the export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// Ask for structured replies.
    pub structured: bool,
    /// Ask for the context base:allocation; needs `structured`.
    pub base_allocation: bool,
}

/// The result of a negotiation: the stream is now in the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// `TFLAG_*`.
    pub flags: u16,
    /// Structured replies are in use.
    pub structured: bool,
    /// Number of base:allocation in block status replies, if the server has it.
    pub base_allocation: Option<u32>,
    /// Minimum, preferred and maximum block size in bytes, if the server told them.
    pub block_sizes: Option<[u32; 3]>,
}

impl Negotiated {
    /// Opens `export` with GO and simple replies. The stream should have a read timeout.
    pub fn go<S: Read + Write>(stream: &mut S, export: &str) -> Result<Self, ClientError> {
        Self::go_with(stream, export, Wish::default())
    }

    /// Opens `export` with GO, after asking for what `wish` says.
    pub fn go_with<S: Read + Write>(
        stream: &mut S,
        export: &str,
        wish: Wish,
    ) -> Result<Self, ClientError> {
        let mut greeting = [0; GREETING_LEN];
        stream.read_exact(&mut greeting)?;
        if read_u64(&greeting, 0) != GREETING_MAGIC || read_u64(&greeting, 8) != OPTION_MAGIC {
            return Err(broken("the greeting is not that of a newstyle server"));
        }
        let offered = read_u16(&greeting, 16);
        if offered & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(broken("the server does not offer fixed newstyle"));
        }
        let flags = u32::from(offered & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        stream.write_all(&flags.to_be_bytes())?;

        let mut negotiated = Self {
            size_bytes: 0,
            flags: 0,
            structured: wish.structured,
            base_allocation: None,
            block_sizes: None,
        };
        if wish.structured {
            send_option(stream, OPT_STRUCTURED_REPLY, &[])?;
            read_answers(stream, OPT_STRUCTURED_REPLY, |_, _| Ok(()))?;
        }
        let mut data = Vec::with_capacity(export.len() + 32);
        data.extend_from_slice(&(export.len() as u32).to_be_bytes());
        data.extend_from_slice(export.as_bytes());
        let name_end = data.len();
        if wish.base_allocation {
            data.extend_from_slice(&1u32.to_be_bytes());
            data.extend_from_slice(&(BASE_ALLOCATION.len() as u32).to_be_bytes());
            data.extend_from_slice(BASE_ALLOCATION.as_bytes());
            send_option(stream, OPT_SET_META_CONTEXT, &data)?;
            read_answers(stream, OPT_SET_META_CONTEXT, |kind, body| {
                if kind == REP_META_CONTEXT && body.get(4..) == Some(BASE_ALLOCATION.as_bytes()) {
                    negotiated.base_allocation = Some(read_u32(body, 0));
                }
                Ok(())
            })?;
        }
        data.truncate(name_end);
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        send_option(stream, OPT_GO, &data)?;
        let mut has_size = false;
        read_answers(stream, OPT_GO, |kind, body| {
            if kind != REP_INFO || body.len() < 2 {
                return Ok(());
            }
            match (read_u16(body, 0), body.len()) {
                (INFO_EXPORT, 12) => {
                    negotiated.size_bytes = read_u64(body, 2);
                    negotiated.flags = read_u16(body, 10);
                    has_size = true;
                }
                (INFO_BLOCK_SIZE, 14) => {
                    let sizes = [read_u32(body, 2), read_u32(body, 6), read_u32(body, 10)];
                    negotiated.block_sizes = Some(sizes);
                }
                (INFO_EXPORT | INFO_BLOCK_SIZE, _) => {
                    return Err(broken("an INFO reply has the wrong length"));
                }
                _ => {}
            }
            Ok(())
        })?;
        if !has_size || negotiated.size_bytes > EXPORT_MAX_BYTES {
            return Err(broken("GO gave no size, or one of more than 63 bits"));
        }
        Ok(negotiated)
    }
}

/// Ends a negotiation that was refused, as good manners want; the stream is useless afterwards.
pub fn abort<S: Read + Write>(stream: &mut S) -> Result<(), ClientError> {
    send_option(stream, OPT_ABORT, &[])
}

fn send_option<S: Write>(stream: &mut S, option: u32, data: &[u8]) -> Result<(), ClientError> {
    let mut wire = Vec::with_capacity(16 + data.len());
    wire.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    wire.extend_from_slice(&option.to_be_bytes());
    wire.extend_from_slice(&(data.len() as u32).to_be_bytes());
    wire.extend_from_slice(data);
    Ok(stream.write_all(&wire)?)
}

/// Gives every reply to `option` before its ACK to `each`; an error reply becomes an error.
fn read_answers<S: Read>(
    stream: &mut S,
    option: u32,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    loop {
        let mut header = [0; OPTION_REPLY_HEADER_LEN];
        stream.read_exact(&mut header)?;
        if read_u64(&header, 0) != OPTION_REPLY_MAGIC || read_u32(&header, 8) != option {
            return Err(broken("an option reply has the wrong magic or option"));
        }
        let kind = read_u32(&header, 12);
        let len = read_u32(&header, 16);
        if len > OPTION_KEEP_MAX_LEN {
            return Err(broken("an option reply is longer than 64 KiB"));
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body)?;
        if kind == REP_ACK {
            return Ok(());
        }
        if kind & REP_ERROR_BIT != 0 {
            let text = String::from_utf8_lossy(&body).into_owned();
            return Err(ClientError::Refused { option, error: kind, text });
        }
        each(kind, &body)?;
    }
}

/// Appends one request; the payload of a WRITE is appended or sent by the caller.
pub fn encode_request(request: &RawRequest, out: &mut Vec<u8>) {
    out.extend_from_slice(&request.encode());
}

/// One simple reply, or one chunk of a structured reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// From the request.
    pub cookie: u64,
    /// No more chunks follow for this cookie.
    pub done: bool,
    /// What it says.
    pub content: Content<'a>,
}

/// The content of a [`Reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A simple reply with this error number, 0 for success. The data of a READ follow a success.
    Simple(u32),
    /// A chunk without content.
    None,
    /// `len` bytes of data follow, for the export at `offset`.
    Data {
        /// In bytes, from the start of the export.
        offset: u64,
        /// In bytes.
        len: u32,
    },
    /// The range reads as zeroes.
    Hole {
        /// In bytes, from the start of the export.
        offset: u64,
        /// In bytes.
        len: u32,
    },
    /// Block status: see [`extents`].
    Status {
        /// Number of the context.
        context: u32,
        /// Pairs of u32: length and `STATE_*` flags.
        entries: &'a [u8],
    },
    /// The request, or a part of it, failed.
    Error {
        /// Number on the wire.
        error: u32,
        /// Text of the server.
        text: &'a [u8],
        /// Where, if the server told.
        offset: Option<u64>,
    },
}

/// Parses the reply at the start of `input`: how many bytes it has and what it says, or `None`
/// when more bytes are needed. Data of a READ are not part of it; they follow.
pub fn parse_reply(input: &[u8]) -> Result<Option<(usize, Reply<'_>)>, ClientError> {
    if input.len() < 4 {
        return Ok(None);
    }
    match read_u32(input, 0) {
        SIMPLE_REPLY_MAGIC if input.len() < SIMPLE_REPLY_LEN => Ok(None),
        SIMPLE_REPLY_MAGIC => {
            let content = Content::Simple(read_u32(input, 4));
            let reply = Reply { cookie: read_u64(input, 8), done: true, content };
            Ok(Some((SIMPLE_REPLY_LEN, reply)))
        }
        CHUNK_MAGIC if input.len() < CHUNK_HEADER_LEN => Ok(None),
        CHUNK_MAGIC => parse_chunk(input),
        _ => Err(broken("a reply has the wrong magic")),
    }
}

fn parse_chunk(input: &[u8]) -> Result<Option<(usize, Reply<'_>)>, ClientError> {
    let kind = read_u16(input, 6);
    let body_len = read_u32(input, 16) as usize;
    // Data stay outside, so only their offset has to be here.
    let kept_len = if kind == CHUNK_OFFSET_DATA { 8 } else { body_len };
    if body_len < kept_len || body_len > PAYLOAD_MAX_BYTES as usize + 8 {
        return Err(broken("a chunk has an impossible length"));
    }
    let Some(body) = input.get(CHUNK_HEADER_LEN..CHUNK_HEADER_LEN + kept_len) else {
        return Ok(None);
    };
    let content = match kind {
        CHUNK_NONE if body_len == 0 => Content::None,
        CHUNK_OFFSET_DATA if body_len > 8 => {
            Content::Data { offset: read_u64(body, 0), len: body_len as u32 - 8 }
        }
        CHUNK_OFFSET_HOLE if body_len == 12 => {
            Content::Hole { offset: read_u64(body, 0), len: read_u32(body, 8) }
        }
        CHUNK_BLOCK_STATUS if body_len >= 12 && body_len % 8 == 4 => {
            Content::Status { context: read_u32(body, 0), entries: &body[4..] }
        }
        _ if kind & CHUNK_ERROR_BIT != 0 && body_len >= 6 => {
            let text_end = 6 + usize::from(read_u16(body, 4));
            let offset_len = if kind == CHUNK_ERROR_OFFSET { 8 } else { 0 };
            let fits = if matches!(kind, CHUNK_ERROR | CHUNK_ERROR_OFFSET) {
                text_end + offset_len == body_len
            } else {
                text_end <= body_len
            };
            if !fits {
                return Err(broken("the text of an error chunk has the wrong length"));
            }
            let offset = (offset_len > 0).then(|| read_u64(body, text_end));
            Content::Error { error: read_u32(body, 0), text: &body[6..text_end], offset }
        }
        _ => return Err(broken("a chunk has an unknown type or a wrong length")),
    };
    let done = read_u16(input, 4) & CHUNK_FLAG_DONE != 0;
    Ok(Some((CHUNK_HEADER_LEN + kept_len, Reply { cookie: read_u64(input, 8), done, content })))
}

/// The extents of a block status reply: length in bytes and `STATE_*` flags.
pub fn extents(entries: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    entries.chunks_exact(8).map(|entry| (read_u32(entry, 0), read_u32(entry, 4)))
}

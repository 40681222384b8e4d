//! The transmission phase: turns bytes of a client into requests that are known to be good.
//! Every rule about what a client may ask lives here, one function for each, with the error that
//! a breach is answered with. Nothing is allocated and nothing is copied.

use thiserror::Error;

use crate::export::Export;
use crate::protocol::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
    PAYLOAD_MAX_BYTES, REQUEST_LEN, REQUEST_MAGIC, RawRequest, TFLAG_READ_ONLY, TFLAG_SEND_CACHE,
    TFLAG_SEND_DF, TFLAG_SEND_FAST_ZERO, TFLAG_SEND_FUA, TFLAG_SEND_TRIM, TFLAG_SEND_WRITE_ZEROES,
    read_u32,
};
use crate::reply::{Replies, WireError};

/// The agreement with one client for the time after the negotiation. Small and `Copy`; one for
/// each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    size_bytes: u64,
    alignment: u32,
    payload_max_bytes: u32,
    flags: u16,
    structured: bool,
    base_allocation: Option<u32>,
    shutting_down: bool,
}

/// What the next bytes of a client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The buffer holds no whole request; call again when it holds `at_least` bytes.
    NeedMore {
        /// Bytes from the start of the buffer to the end of the next request header.
        at_least: usize,
    },
    /// A good request. A WRITE is followed by its payload, which the driver takes itself.
    Request {
        /// Bytes of the buffer that were used (the header, never the payload).
        consumed: usize,
        /// What to do.
        request: Request,
    },
    /// A request that must fail: drop the payload, then send the error; the stream stays in step.
    Invalid {
        /// Bytes of the buffer that were used.
        consumed: usize,
        /// Goes into the reply.
        cookie: u64,
        /// The error to answer.
        error: WireError,
        /// Says which rule was broken; for the reply and for a log.
        text: &'static str,
        /// Payload bytes that follow and must be read and dropped, at most 32 MiB.
        discard_payload: u32,
    },
    /// The client said goodbye: answer what is outstanding, then close. There is no reply.
    Disconnect {
        /// Bytes of the buffer that were used.
        consumed: usize,
    },
    /// The stream cannot be understood any more: close at once.
    Close(StreamError),
}

/// One good request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client; goes into the reply. Not unique unless the client is correct.
    pub cookie: u64,
    /// What to do. Ranges are inside the export.
    pub command: Command,
}

impl Request {
    /// Bytes of payload that follow the header in the stream: the length of a WRITE, else 0.
    pub fn payload_len(&self) -> u32 {
        match self.command {
            Command::Write { len, .. } => len,
            _ => 0,
        }
    }
}

/// The commands. Offsets and lengths are in bytes; a length of 0 is legal everywhere but in
/// BLOCK_STATUS and asks for nothing but an answer. Lengths of READ and WRITE are at most the
/// payload limit of the export; the others go up to 4 GiB - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Fields mean the same everywhere: see above and below.
pub enum Command {
    /// Read; `df` asks for one content chunk.
    Read { offset: u64, len: u32, df: bool },
    /// Write `len` bytes that follow; `fua`: durable before the reply.
    Write { offset: u64, len: u32, fua: bool },
    /// Make everything acknowledged before durable.
    Flush,
    /// The data of the range are no longer needed.
    Trim { offset: u64, len: u32, fua: bool },
    /// The range must read as zeroes; `no_hole`: keep it allocated; `fast_zero`: answer
    /// [`WireError::NotSupported`] if that is not faster than a write.
    WriteZeroes { offset: u64, len: u32, fua: bool, no_hole: bool, fast_zero: bool },
    /// Prefetch the range.
    Cache { offset: u64, len: u32 },
    /// Describe the range; `req_one`: one extent is enough. `len` is never 0.
    BlockStatus { offset: u64, len: u32, req_one: bool },
}

/// Why a transmission cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The client and we lost step, or it never spoke NBD.
    #[error("client sent request magic {got:#010x} where {REQUEST_MAGIC:#010x} was due")]
    BadMagic {
        /// The four bytes that stood there.
        got: u32,
    },
    /// A payload so long that dropping it would be a service to nobody.
    #[error("client announced a WRITE of {len} bytes, more than {PAYLOAD_MAX_BYTES}")]
    WriteTooLong {
        /// Announced length in bytes.
        len: u32,
    },
}

/// A broken rule: the error on the wire and the words for it.
type Breach = (WireError, &'static str);

impl Session {
    /// The session that follows a negotiation. `flags` are worked out from the export and from
    /// `structured`; `base_allocation` is the context number for BLOCK_STATUS, if it was chosen.
    pub fn new(export: &Export, structured: bool, base_allocation: Option<u32>) -> Self {
        assert!(structured || base_allocation.is_none(), "contexts need structured replies");
        Self {
            size_bytes: export.size_bytes,
            alignment: if export.serves_unaligned { 1 } else { export.block_size_min },
            payload_max_bytes: export.payload_max_bytes.min(PAYLOAD_MAX_BYTES),
            flags: export.transmission_flags(structured),
            structured,
            base_allocation,
            shutting_down: false,
        }
    }

    /// The encoder of the answers to this client.
    pub fn replies(&self) -> Replies {
        Replies::new(self.structured, self.base_allocation)
    }

    /// Structured replies were negotiated.
    pub fn structured(&self) -> bool {
        self.structured
    }

    /// The context number of base:allocation, if the client chose it.
    pub fn base_allocation(&self) -> Option<u32> {
        self.base_allocation
    }

    /// From now on every request but DISC is answered ESHUTDOWN. Answer what is in flight, then
    /// close.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Parses the request at the start of `input`. Call it again behind `consumed` bytes and the
    /// payload of that request until it says [`Parsed::NeedMore`].
    pub fn next_request(&self, input: &[u8]) -> Parsed {
        if input.len() >= 4 && read_u32(input, 0) != REQUEST_MAGIC {
            return Parsed::Close(StreamError::BadMagic { got: read_u32(input, 0) });
        }
        let Some(header) = input.first_chunk::<REQUEST_LEN>() else {
            return Parsed::NeedMore { at_least: REQUEST_LEN };
        };
        let raw = RawRequest::decode(header);
        let consumed = REQUEST_LEN;
        if raw.command == CMD_DISC {
            return Parsed::Disconnect { consumed };
        }
        let payload_len = if raw.command == CMD_WRITE { raw.len } else { 0 };
        if payload_len > PAYLOAD_MAX_BYTES {
            return Parsed::Close(StreamError::WriteTooLong { len: payload_len });
        }
        match self.check(&raw) {
            Ok(command) => {
                Parsed::Request { consumed, request: Request { cookie: raw.cookie, command } }
            }
            Err((error, text)) => Parsed::Invalid {
                consumed,
                cookie: raw.cookie,
                error,
                text,
                discard_payload: payload_len,
            },
        }
    }

    /// The rules of each command, in the order in which they are reported.
    fn check(&self, raw: &RawRequest) -> Result<Command, Breach> {
        if self.shutting_down {
            return Err((WireError::Shutdown, "the server is shutting down"));
        }
        let RawRequest { offset, len, .. } = *raw;
        let has = |flag| raw.flags & flag != 0;
        let fua = has(CMD_FLAG_FUA);
        match raw.command {
            CMD_READ => {
                self.only_flags(raw, CMD_FLAG_FUA | CMD_FLAG_DF)?;
                self.payload_fits(raw)?;
                self.inside(raw, WireError::Invalid)?;
                self.aligned(raw)?;
                Ok(Command::Read { offset, len, df: has(CMD_FLAG_DF) })
            }
            CMD_WRITE => {
                self.writable()?;
                self.only_flags(raw, CMD_FLAG_FUA)?;
                self.payload_fits(raw)?;
                self.inside(raw, WireError::NoSpace)?;
                self.aligned(raw)?;
                Ok(Command::Write { offset, len, fua })
            }
            CMD_FLUSH => {
                self.only_flags(raw, CMD_FLAG_FUA)?;
                if offset != 0 || len != 0 {
                    return Err((WireError::Invalid, "FLUSH with an offset or a length"));
                }
                Ok(Command::Flush)
            }
            CMD_TRIM => {
                self.writable()?;
                self.offered(TFLAG_SEND_TRIM)?;
                self.only_flags(raw, CMD_FLAG_FUA)?;
                self.inside(raw, WireError::Invalid)?;
                self.aligned(raw)?;
                Ok(Command::Trim { offset, len, fua })
            }
            CMD_WRITE_ZEROES => {
                self.writable()?;
                self.offered(TFLAG_SEND_WRITE_ZEROES)?;
                self.only_flags(raw, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO)?;
                self.inside(raw, WireError::NoSpace)?;
                self.aligned(raw)?;
                let no_hole = has(CMD_FLAG_NO_HOLE);
                let fast_zero = has(CMD_FLAG_FAST_ZERO);
                Ok(Command::WriteZeroes { offset, len, fua, no_hole, fast_zero })
            }
            CMD_CACHE => {
                self.offered(TFLAG_SEND_CACHE)?;
                self.only_flags(raw, 0)?;
                self.inside(raw, WireError::Invalid)?;
                self.aligned(raw)?;
                Ok(Command::Cache { offset, len })
            }
            CMD_BLOCK_STATUS => {
                if self.base_allocation.is_none() {
                    let text = "BLOCK_STATUS without a metadata context";
                    return Err((WireError::Invalid, text));
                }
                self.only_flags(raw, CMD_FLAG_FUA | CMD_FLAG_REQ_ONE)?;
                if len == 0 {
                    return Err((WireError::Invalid, "BLOCK_STATUS of no bytes"));
                }
                self.inside(raw, WireError::Invalid)?;
                self.aligned(raw)?;
                Ok(Command::BlockStatus { offset, len, req_one: has(CMD_FLAG_REQ_ONE) })
            }
            _ => Err((WireError::Invalid, "unknown command")),
        }
    }

    /// No flag but those of the command, and of those only the ones whose feature was advertised.
    fn only_flags(&self, raw: &RawRequest, of_command: u16) -> Result<(), Breach> {
        let mut allowed = of_command;
        for (flag, feature) in [
            (CMD_FLAG_FUA, TFLAG_SEND_FUA),
            (CMD_FLAG_DF, TFLAG_SEND_DF),
            (CMD_FLAG_FAST_ZERO, TFLAG_SEND_FAST_ZERO),
        ] {
            if self.flags & feature == 0 {
                allowed &= !flag;
            }
        }
        if raw.flags & !allowed != 0 {
            return Err((
                WireError::Invalid,
                "flag is unknown, not offered, or not for this command",
            ));
        }
        Ok(())
    }

    /// The export has at least so many bytes from now on.
    pub fn grow(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.max(size_bytes);
    }

    fn writable(&self) -> Result<(), Breach> {
        if self.flags & TFLAG_READ_ONLY != 0 {
            return Err((WireError::NotPermitted, "the export is read-only"));
        }
        Ok(())
    }

    fn offered(&self, feature: u16) -> Result<(), Breach> {
        if self.flags & feature == 0 {
            return Err((WireError::Invalid, "the export does not offer this command"));
        }
        Ok(())
    }

    fn payload_fits(&self, raw: &RawRequest) -> Result<(), Breach> {
        if raw.len > self.payload_max_bytes {
            return Err((WireError::Invalid, "longer than the maximum block size"));
        }
        Ok(())
    }

    fn inside(&self, raw: &RawRequest, error: WireError) -> Result<(), Breach> {
        match raw.offset.checked_add(u64::from(raw.len)) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err((error, "the range ends behind the end of the export")),
        }
    }

    fn aligned(&self, raw: &RawRequest) -> Result<(), Breach> {
        // The alignment is a power of two: Export::check.
        let mask = self.alignment - 1;
        if (raw.offset as u32 | raw.len) & mask != 0 {
            return Err((WireError::Invalid, "not aligned to the minimum block size"));
        }
        Ok(())
    }
}

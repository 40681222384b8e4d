//! Every number of the NBD protocol, in one place, and the two fixed-size wire structures of the
//! transmission phase. The names in parentheses are the headings of the protocol document
//! (`doc/proto.md` of the NBD project) where each group is defined.

// ---- Greeting and flags (Fixed newstyle negotiation, Flag fields) ----

/// First eight bytes of the greeting: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second half of the greeting and start of every option of the client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Handshake flag, both directions: fixed newstyle negotiation.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both directions: no 124 zero bytes after the answer to EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Length of the greeting in bytes.
pub const GREETING_LEN: usize = 18;
/// Length of the client flags that answer the greeting, in bytes.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Padding after the answer to EXPORT_NAME unless the client said NO_ZEROES, in bytes.
pub const EXPORT_NAME_PADDING_LEN: usize = 124;

// ---- Options (Option types) ----

/// Length of an option header: magic, option, length of the data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Choose an export, the old way: no error reply is possible.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Give up the negotiation.
pub const OPT_ABORT: u32 = 2;
/// List the exports.
pub const OPT_LIST: u32 = 3;
/// Withdrawn option; its number stays reserved.
pub const OPT_PEEK_EXPORT: u32 = 4;
/// Switch to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Ask about an export.
pub const OPT_INFO: u32 = 6;
/// Ask about an export and enter the transmission phase.
pub const OPT_GO: u32 = 7;
/// Use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Select metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// 64-bit headers (an extension that we do not offer).
pub const OPT_EXTENDED_HEADERS: u32 = 11;

// ---- Option replies (Option reply types) ----

/// Start of every option reply of the server.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Length of an option reply header: magic, option, type, length of the data.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// The option succeeded; nothing more follows for it.
pub const REP_ACK: u32 = 1;
/// One export of a listing.
pub const REP_SERVER: u32 = 2;
/// One piece of information about an export.
pub const REP_INFO: u32 = 3;
/// One metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Set in the type of every error reply.
pub const REP_ERROR_BIT: u32 = 1 << 31;
/// The server does not know this option.
pub const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
/// Known, but not allowed here.
pub const REP_ERR_POLICY: u32 = REP_ERROR_BIT | 2;
/// The data of the option are wrong.
pub const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
/// Not possible on this server as it was built or configured.
pub const REP_ERR_PLATFORM: u32 = REP_ERROR_BIT | 4;
/// TLS is needed first.
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
/// No such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;
/// The server is shutting down.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;
/// The client must negotiate block sizes first (we never ask for that).
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR_BIT | 8;
/// The data of the option are too long.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT | 9;

// ---- Information about an export (Option reply types, NBD_REP_INFO) ----

/// Size and transmission flags; always sent.
pub const INFO_EXPORT: u16 = 0;
/// Canonical name of the export.
pub const INFO_NAME: u16 = 1;
/// Description of the export for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Minimum, preferred and maximum block size.
pub const INFO_BLOCK_SIZE: u16 = 3;

// ---- Transmission flags (Transmission flags) ----

/// Must be set in every set of transmission flags.
pub const TFLAG_HAS_FLAGS: u16 = 1 << 0;
/// The export refuses writes.
pub const TFLAG_READ_ONLY: u16 = 1 << 1;
/// FLUSH is served.
pub const TFLAG_SEND_FLUSH: u16 = 1 << 2;
/// The FUA flag is served.
pub const TFLAG_SEND_FUA: u16 = 1 << 3;
/// The medium rotates; an elevator helps.
pub const TFLAG_ROTATIONAL: u16 = 1 << 4;
/// TRIM is served.
pub const TFLAG_SEND_TRIM: u16 = 1 << 5;
/// WRITE_ZEROES is served.
pub const TFLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// The DF flag of READ is served (only with structured replies).
pub const TFLAG_SEND_DF: u16 = 1 << 7;
/// A flush on one connection covers all connections of the export.
pub const TFLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// CACHE is served.
pub const TFLAG_SEND_CACHE: u16 = 1 << 10;
/// The FAST_ZERO flag of WRITE_ZEROES is served.
pub const TFLAG_SEND_FAST_ZERO: u16 = 1 << 11;

// ---- Requests (Request message, Request types, Command flags) ----

/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Length of a request header in bytes.
pub const REQUEST_LEN: usize = 28;
/// Read data.
pub const CMD_READ: u16 = 0;
/// Write data; the only request that is followed by a payload.
pub const CMD_WRITE: u16 = 1;
/// Orderly end of the connection; has no reply.
pub const CMD_DISC: u16 = 2;
/// Make everything that was acknowledged durable.
pub const CMD_FLUSH: u16 = 3;
/// The client no longer needs the data of a range.
pub const CMD_TRIM: u16 = 4;
/// Prefetch a range.
pub const CMD_CACHE: u16 = 5;
/// Make a range read as zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Ask what is allocated.
pub const CMD_BLOCK_STATUS: u16 = 7;
/// Resize the export (an extension that we do not offer).
pub const CMD_RESIZE: u16 = 8;

/// Durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// WRITE_ZEROES: keep the range allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// READ: answer with one content chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// BLOCK_STATUS: one extent only.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// WRITE_ZEROES: fail with ENOTSUP rather than write out zeroes slowly.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

// ---- Replies (Simple reply message, Structured reply chunk message) ----

/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Length of a simple reply without data, in bytes.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Start of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Length of the header of a chunk, in bytes.
pub const CHUNK_HEADER_LEN: usize = 20;
/// This chunk is the last of its reply.
pub const CHUNK_FLAG_DONE: u16 = 1 << 0;
/// A chunk without content.
pub const CHUNK_NONE: u16 = 0;
/// A chunk with data: u64 offset, then the data.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// A chunk that stands for zeroes: u64 offset, u32 length.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// A chunk with block status: u32 context, then (u32 length, u32 flags) for each extent.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Set in the type of every error chunk.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// An error: u32 errno, u16 length, text.
pub const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT | 1;
/// An error at an offset: u32 errno, u16 length, text, u64 offset.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT | 2;

// ---- Metadata context base:allocation (Metadata querying) ----

/// The only metadata context that we serve.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Our number for [`BASE_ALLOCATION`] in block status replies.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// The extent is not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// The extent reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

// ---- Limits: of the protocol (Strings, Size constraints), and our own ----

/// Longest string on the wire (names, descriptions, error texts), in bytes.
pub const STRING_MAX_LEN: usize = 4096;
/// Every server must take payloads up to here; above it a server may close. 32 MiB.
pub const PAYLOAD_MAX_BYTES: u32 = 32 << 20;
/// Preferred block size that we advertise by default, in bytes.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Largest minimum block size that the protocol allows, in bytes.
pub const BLOCK_SIZE_MIN_MAX: u32 = 64 << 10;
/// Largest export that clients accept: the size must fit a signed 64-bit number.
pub const EXPORT_MAX_BYTES: u64 = i64::MAX as u64;

/// Option data that we keep while they arrive, in bytes; longer ones are answered TOO_BIG.
pub const OPTION_KEEP_MAX_LEN: u32 = 64 << 10;
/// Option data that we read and drop, in bytes; a client that announces more is disconnected.
pub const OPTION_SKIP_MAX_LEN: u32 = 1 << 20;
/// Options in one negotiation; a client that sends more is disconnected.
pub const OPTIONS_MAX: u32 = 1024;
/// Negotiation output after which we ask the caller to send before we go on, in bytes.
pub const OUTPUT_PAUSE_LEN: usize = 32 << 10;
/// Extents in one BLOCK_STATUS reply; the client asks again for the rest.
pub const EXTENTS_MAX: usize = 2048;

const _: () = assert!(OPTION_KEEP_MAX_LEN < OPTION_SKIP_MAX_LEN);
const _: () = assert!(STRING_MAX_LEN <= u16::MAX as usize);
const _: () = assert!(BLOCK_SIZE_PREFERRED <= BLOCK_SIZE_MIN_MAX);

/// A request header as it stands on the wire, before any check but the magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRequest {
    /// `CMD_FLAG_*`.
    pub flags: u16,
    /// `CMD_*`.
    pub command: u16,
    /// Chosen by the client; copied into the reply.
    pub cookie: u64,
    /// Start of the range, in bytes.
    pub offset: u64,
    /// Length of the range, in bytes.
    pub len: u32,
}

impl RawRequest {
    /// Writes the 28 bytes of the wire form.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut wire = [0; REQUEST_LEN];
        wire[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        wire[4..6].copy_from_slice(&self.flags.to_be_bytes());
        wire[6..8].copy_from_slice(&self.command.to_be_bytes());
        wire[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        wire[16..24].copy_from_slice(&self.offset.to_be_bytes());
        wire[24..28].copy_from_slice(&self.len.to_be_bytes());
        wire
    }

    /// Reads the fields of a header; the caller has compared the magic.
    pub fn decode(wire: &[u8; REQUEST_LEN]) -> Self {
        Self {
            flags: read_u16(wire, 4),
            command: read_u16(wire, 6),
            cookie: read_u64(wire, 8),
            offset: read_u64(wire, 16),
            len: read_u32(wire, 24),
        }
    }
}

/// Big-endian u16 at `at`; the caller has checked the length.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Big-endian u32 at `at`; the caller has checked the length.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Big-endian u64 at `at`; the caller has checked the length.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    (u64::from(read_u32(bytes, at)) << 32) | u64::from(read_u32(bytes, at + 4))
}

/// Cuts a text to at most `max_len` bytes without cutting a character in two.
pub(crate) fn clip_text(text: &str, max_len: usize) -> &str {
    if text.len() <= max_len {
        return text;
    }
    let mut end = max_len;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

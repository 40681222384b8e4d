//! The bytes of answers in the transmission phase. The encoders append headers to a buffer of the
//! caller, which sends the data of a READ from its own memory right behind its header. With
//! enough capacity in that buffer nothing is allocated.

use thiserror::Error;

use crate::protocol::{
    CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_FLAG_DONE, CHUNK_HEADER_LEN,
    CHUNK_MAGIC, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, EXTENTS_MAX, SIMPLE_REPLY_MAGIC,
    STATE_HOLE, STATE_ZERO, clip_text,
};

/// Longest text in an error reply, in bytes; longer ones are cut.
pub const ERROR_TEXT_MAX_LEN: usize = 512;
/// Longest header of one slice of data, in bytes.
pub const READ_HEADER_MAX_LEN: usize = CHUNK_HEADER_LEN + 8;
/// Longest error reply, in bytes.
pub const ERROR_REPLY_MAX_LEN: usize = CHUNK_HEADER_LEN + 6 + ERROR_TEXT_MAX_LEN + 8;

/// The errors that the protocol knows; the discriminant is the number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[repr(u32)]
pub enum WireError {
    /// EPERM: the export is read-only.
    #[error("not permitted")]
    NotPermitted = 1,
    /// EIO.
    #[error("input/output error")]
    Io = 5,
    /// ENOMEM.
    #[error("out of memory")]
    NoMemory = 12,
    /// EINVAL.
    #[error("invalid request")]
    Invalid = 22,
    /// ENOSPC.
    #[error("no space left")]
    NoSpace = 28,
    /// EOVERFLOW.
    #[error("too large")]
    Overflow = 75,
    /// ENOTSUP: only for a WRITE_ZEROES with FAST_ZERO.
    #[error("not supported")]
    NotSupported = 95,
    /// ESHUTDOWN.
    #[error("server is shutting down")]
    Shutdown = 108,
}

impl WireError {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The error for a number of the operating system; what the protocol does not know is EIO.
    pub fn from_os(errno: i32) -> Self {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => Self::NotPermitted,
            libc::ENOMEM => Self::NoMemory,
            libc::EINVAL => Self::Invalid,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EOVERFLOW => Self::Overflow,
            libc::EOPNOTSUPP => Self::NotSupported,
            libc::ESHUTDOWN => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// The encoder of one connection. Errors are chunks with a text when structured replies were
/// negotiated, else bare numbers; READ is always chunks then, as the protocol demands; every other
/// success is the shorter simple reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replies {
    structured: bool,
    base_allocation: Option<u32>,
}

impl Replies {
    /// The encoder for what was negotiated; see [`crate::session::Session::replies`].
    pub fn new(structured: bool, base_allocation: Option<u32>) -> Self {
        Self { structured, base_allocation }
    }

    /// Success of WRITE, FLUSH, TRIM, WRITE_ZEROES or CACHE: 16 bytes.
    pub fn done(&self, cookie: u64, out: &mut Vec<u8>) {
        simple(0, cookie, out);
    }

    /// Failure of any request, before a byte of its answer was sent. At most
    /// [`ERROR_REPLY_MAX_LEN`] bytes.
    pub fn error(&self, cookie: u64, error: WireError, text: &str, out: &mut Vec<u8>) {
        if !self.structured {
            return simple(error.number(), cookie, out);
        }
        let text = clip_text(text, ERROR_TEXT_MAX_LEN);
        chunk(CHUNK_FLAG_DONE, CHUNK_ERROR, cookie, 6 + text.len() as u32, out);
        error_body(error, text, out);
    }

    /// Starts the answer to a READ of `len` bytes at `offset`.
    pub fn read(&self, cookie: u64, offset: u64, len: u32, df: bool) -> ReadReply {
        let form = match (self.structured, df) {
            (false, _) => ReadForm::Simple,
            (true, true) => ReadForm::OneChunk,
            (true, false) => ReadForm::Chunks,
        };
        ReadReply { cookie, offset, len, sent: 0, form }
    }

    /// Answers a BLOCK_STATUS of `len` bytes with the extents from its offset on, in order.
    /// Neighbours of one kind are merged, what goes past `len` is cut, and the answer stops after
    /// one extent if `req_one`, or after [`EXTENTS_MAX`]. Without any extent the range is called
    /// allocated. Panics if the client never chose the context: `session` refuses that request.
    pub fn block_status(
        &self,
        cookie: u64,
        len: u32,
        req_one: bool,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) {
        let context = self.base_allocation.expect("BLOCK_STATUS needs a chosen context");
        let header_at = out.len();
        chunk(CHUNK_FLAG_DONE, CHUNK_BLOCK_STATUS, cookie, 0, out);
        out.extend_from_slice(&context.to_be_bytes());
        let max = if req_one { 1 } else { EXTENTS_MAX };
        let mut written = 0;
        let mut left = u64::from(len);
        let mut current: Option<(u64, u32)> = None;
        for extent in extents {
            if left == 0 || written == max {
                break;
            }
            let take = extent.len.min(left);
            if take == 0 {
                continue;
            }
            match &mut current {
                Some((have, flags)) if *flags == extent.flags() => *have += take,
                _ => {
                    if let Some((have, flags)) = current.take() {
                        status_entry(have, flags, out);
                        written += 1;
                    }
                    current = Some((take, extent.flags()));
                }
            }
            left -= take;
        }
        if written < max {
            let (have, flags) = current.unwrap_or((u64::from(len), 0));
            status_entry(have, flags, out);
        }
        let body_len = (out.len() - header_at - CHUNK_HEADER_LEN) as u32;
        out[header_at + 16..header_at + 20].copy_from_slice(&body_len.to_be_bytes());
    }
}

/// One run of equal block status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Not allocated on the medium.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

impl Extent {
    fn flags(&self) -> u32 {
        (u32::from(self.hole) * STATE_HOLE) | (u32::from(self.zero) * STATE_ZERO)
    }
}

/// How the data of one READ are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadForm {
    /// One header, then all data.
    Simple,
    /// One chunk with all data, because the client set DF.
    OneChunk,
    /// A chunk for each slice; the last one says DONE.
    Chunks,
}

/// The answer to one READ, given in slices in rising order of their offsets. Where one header
/// stands for all data, it goes out with the first slice and the later slices have none.
///
/// ```
/// # use nbd_frontend::reply::Replies;
/// # let (mut out, slices) = (Vec::new(), [1 << 20, 1 << 20]);
/// let mut reply = Replies::new(true, None).read(7, 4096, 2 << 20, false);
/// for slice_len in slices {
///     reply.data(slice_len, &mut out); // then send slice_len bytes of data
/// }
/// assert!(reply.is_complete());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadReply {
    cookie: u64,
    offset: u64,
    len: u32,
    sent: u32,
    form: ReadForm,
}

/// A READ failed when its header, which promises all data, was already given out. The connection
/// must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a READ failed after its header was sent; the connection must be closed")]
pub struct HeaderAlreadySent;

impl ReadReply {
    /// Appends the header of the next slice (0 to [`READ_HEADER_MAX_LEN`] bytes); `slice_len`
    /// bytes of data must follow it. For a READ of no bytes call it once with 0. Panics if the
    /// slices are longer than the request.
    pub fn data(&mut self, slice_len: u32, out: &mut Vec<u8>) {
        let first = self.sent == 0;
        let at = self.offset + u64::from(self.sent);
        self.advance(slice_len);
        match self.form {
            ReadForm::Simple if first => simple(0, self.cookie, out),
            ReadForm::Simple => {}
            _ if self.len == 0 => chunk(CHUNK_FLAG_DONE, CHUNK_NONE, self.cookie, 0, out),
            ReadForm::OneChunk if first => {
                chunk(CHUNK_FLAG_DONE, CHUNK_OFFSET_DATA, self.cookie, 8 + self.len, out);
                out.extend_from_slice(&at.to_be_bytes());
            }
            ReadForm::OneChunk => {}
            ReadForm::Chunks => {
                chunk(self.done_flag(), CHUNK_OFFSET_DATA, self.cookie, 8 + slice_len, out);
                out.extend_from_slice(&at.to_be_bytes());
            }
        }
    }

    /// Answers the next slice as a hole: no data follow. Only where [`Self::takes_holes`].
    pub fn hole(&mut self, slice_len: u32, out: &mut Vec<u8>) {
        assert!(self.takes_holes(), "this client cannot be sent holes");
        let at = self.offset + u64::from(self.sent);
        self.advance(slice_len);
        chunk(self.done_flag(), CHUNK_OFFSET_HOLE, self.cookie, 12, out);
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(&slice_len.to_be_bytes());
    }

    /// Whether the next slice may be answered with [`Self::hole`] instead of zeroes.
    pub fn takes_holes(&self) -> bool {
        self.form == ReadForm::Chunks && self.len > 0
    }

    /// Whether a later slice may still fail. If not, read all data before the first header is
    /// given out, or be ready to close the connection.
    pub fn may_fail_late(&self) -> bool {
        self.form == ReadForm::Chunks
    }

    /// Ends the answer with an error at the first byte that was not sent.
    pub fn fail(
        self,
        error: WireError,
        text: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), HeaderAlreadySent> {
        assert!(!self.is_complete() || self.sent == 0, "the answer was already complete");
        if self.form == ReadForm::Simple {
            if self.sent > 0 {
                return Err(HeaderAlreadySent);
            }
            simple(error.number(), self.cookie, out);
            return Ok(());
        }
        if self.form == ReadForm::OneChunk && self.sent > 0 {
            return Err(HeaderAlreadySent);
        }
        let text = clip_text(text, ERROR_TEXT_MAX_LEN);
        let at = self.offset + u64::from(self.sent);
        if self.len == 0 {
            // An offset would have to lie inside the request; there is none.
            chunk(CHUNK_FLAG_DONE, CHUNK_ERROR, self.cookie, 6 + text.len() as u32, out);
            error_body(error, text, out);
            return Ok(());
        }
        chunk(CHUNK_FLAG_DONE, CHUNK_ERROR_OFFSET, self.cookie, 14 + text.len() as u32, out);
        error_body(error, text, out);
        out.extend_from_slice(&at.to_be_bytes());
        Ok(())
    }

    /// Every byte of the request was answered.
    pub fn is_complete(&self) -> bool {
        self.sent == self.len
    }

    fn advance(&mut self, slice_len: u32) {
        assert!(
            slice_len <= self.len - self.sent && (slice_len > 0 || self.len == 0),
            "slice of {slice_len} bytes after {} of {} bytes",
            self.sent,
            self.len
        );
        self.sent += slice_len;
    }

    fn done_flag(&self) -> u16 {
        if self.is_complete() { CHUNK_FLAG_DONE } else { 0 }
    }
}

fn simple(error: u32, cookie: u64, out: &mut Vec<u8>) {
    let mut wire = [0; 16];
    wire[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    wire[4..8].copy_from_slice(&error.to_be_bytes());
    wire[8..16].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&wire);
}

fn chunk(flags: u16, kind: u16, cookie: u64, body_len: u32, out: &mut Vec<u8>) {
    let mut wire = [0; CHUNK_HEADER_LEN];
    wire[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    wire[4..6].copy_from_slice(&flags.to_be_bytes());
    wire[6..8].copy_from_slice(&kind.to_be_bytes());
    wire[8..16].copy_from_slice(&cookie.to_be_bytes());
    wire[16..20].copy_from_slice(&body_len.to_be_bytes());
    out.extend_from_slice(&wire);
}

fn error_body(error: WireError, text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&error.number().to_be_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn status_entry(len: u64, flags: u32, out: &mut Vec<u8>) {
    // Extents are cut to the length of the request, which is a u32.
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
}

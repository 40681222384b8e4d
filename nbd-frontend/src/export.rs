//! What a client can open: the description of one export, and the question that the negotiation
//! asks of its driver ("may this client have the export of this name?").

use thiserror::Error;

use crate::protocol::{
    BLOCK_SIZE_MIN_MAX, BLOCK_SIZE_PREFERRED, EXPORT_MAX_BYTES, PAYLOAD_MAX_BYTES, STRING_MAX_LEN,
    TFLAG_CAN_MULTI_CONN, TFLAG_HAS_FLAGS, TFLAG_READ_ONLY, TFLAG_ROTATIONAL, TFLAG_SEND_CACHE,
    TFLAG_SEND_DF, TFLAG_SEND_FAST_ZERO, TFLAG_SEND_FLUSH, TFLAG_SEND_FUA, TFLAG_SEND_TRIM,
    TFLAG_SEND_WRITE_ZEROES,
};

/// One export as its clients see it. FLUSH and FUA are always offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Canonical name, at most 4096 bytes, no NUL.
    pub name: String,
    /// A sentence for people, at most 4096 bytes; may be empty.
    pub description: String,
    /// Size in bytes; a multiple of `block_size_min`, at most 2^63 - 1.
    pub size_bytes: u64,
    /// Smallest unit of access in bytes: a power of two, 1 to 65536.
    pub block_size_min: u32,
    /// Unit in bytes that works well: a power of two, at least `block_size_min` and 512.
    pub block_size_preferred: u32,
    /// Largest READ or WRITE in bytes: a multiple of `block_size_min`, at most 32 MiB.
    pub payload_max_bytes: u32,
    /// Requests that are not aligned to `block_size_min` reach the driver instead of failing with
    /// EINVAL: clients that never negotiated block sizes may send them.
    pub serves_unaligned: bool,
    /// Every changing request fails with EPERM.
    pub read_only: bool,
    /// TRIM is offered.
    pub trim: bool,
    /// WRITE_ZEROES is offered.
    pub write_zeroes: bool,
    /// The FAST_ZERO flag is offered; needs `write_zeroes`.
    pub fast_zero: bool,
    /// CACHE is offered.
    pub cache: bool,
    /// Several connections see one consistent cache; clients then open more than one.
    pub multi_conn: bool,
    /// The medium rotates.
    pub rotational: bool,
}

impl Export {
    /// A writable export with TRIM, WRITE_ZEROES and several connections, a minimum block size of
    /// 512 bytes and the usual limits. Change the fields that differ.
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size_bytes,
            block_size_min: 512,
            block_size_preferred: BLOCK_SIZE_PREFERRED,
            payload_max_bytes: PAYLOAD_MAX_BYTES,
            serves_unaligned: false,
            read_only: false,
            trim: true,
            write_zeroes: true,
            fast_zero: false,
            cache: false,
            multi_conn: true,
            rotational: false,
        }
    }

    /// Tells whether the fields keep the rules of the protocol. A driver calls this when it builds
    /// an export; the negotiation answers PLATFORM with the text of the error if it did not.
    pub fn check(&self) -> Result<(), ExportError> {
        let error = |problem| ExportError { name: self.name.clone(), problem };
        let min = self.block_size_min;
        let preferred = self.block_size_preferred;
        let payload = self.payload_max_bytes;
        for text in [&self.name, &self.description] {
            if text.len() > STRING_MAX_LEN || text.contains('\0') {
                return Err(error(ExportProblem::Text));
            }
        }
        if !min.is_power_of_two() || min > BLOCK_SIZE_MIN_MAX {
            return Err(error(ExportProblem::BlockSizeMin { min }));
        }
        if !preferred.is_power_of_two() || preferred < min.max(512) {
            return Err(error(ExportProblem::BlockSizePreferred { preferred, min }));
        }
        if payload < preferred || payload > PAYLOAD_MAX_BYTES || !payload.is_multiple_of(min) {
            return Err(error(ExportProblem::Payload { payload, preferred }));
        }
        let size = self.size_bytes;
        if size > EXPORT_MAX_BYTES || !size.is_multiple_of(u64::from(min)) {
            return Err(error(ExportProblem::Size { size, min }));
        }
        if self.fast_zero && !self.write_zeroes {
            return Err(error(ExportProblem::FastZero));
        }
        Ok(())
    }

    /// The transmission flags (`TFLAG_*`) that the client is told.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let writable = !self.read_only;
        let mut flags = TFLAG_HAS_FLAGS | TFLAG_SEND_FLUSH | TFLAG_SEND_FUA;
        for (set, flag) in [
            (self.read_only, TFLAG_READ_ONLY),
            (self.rotational, TFLAG_ROTATIONAL),
            (self.trim && writable, TFLAG_SEND_TRIM),
            (self.write_zeroes && writable, TFLAG_SEND_WRITE_ZEROES),
            (self.fast_zero && writable, TFLAG_SEND_FAST_ZERO),
            (self.cache, TFLAG_SEND_CACHE),
            (self.multi_conn, TFLAG_CAN_MULTI_CONN),
            (structured, TFLAG_SEND_DF),
        ] {
            if set {
                flags |= flag;
            }
        }
        flags
    }
}

/// An export was described in a way that no client could use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("export {name:?} cannot be offered: {problem}")]
pub struct ExportError {
    /// Name of the export.
    pub name: String,
    /// What is wrong with it.
    pub problem: ExportProblem,
}

/// The rule that an [`Export`] breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs)] // The messages say it.
pub enum ExportProblem {
    #[error("name and description must be at most {STRING_MAX_LEN} bytes and hold no NUL")]
    Text,
    #[error("minimum block size {min} is not a power of two from 1 to {BLOCK_SIZE_MIN_MAX}")]
    BlockSizeMin { min: u32 },
    #[error("preferred block size {preferred} is not a power of two of at least 512 and {min}")]
    BlockSizePreferred { preferred: u32, min: u32 },
    #[error(
        "largest payload {payload} is not a multiple of the minimum block size from \
         {preferred} to {PAYLOAD_MAX_BYTES}"
    )]
    Payload { payload: u32, preferred: u32 },
    #[error("size {size} is not a multiple of the minimum block size {min} below 2^63")]
    Size { size: u64, min: u32 },
    #[error("fast zeroes need write zeroes")]
    FastZero,
}

/// Why a client does not get an export now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// No such export.
    Unknown,
    /// The export exists; the server is stopping.
    Shutdown,
    /// The export exists; this client may not have it here and now.
    Policy,
}

/// A refusal with the text that the user of the client will read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Selects the error number on the wire.
    pub kind: RefusalKind,
    /// Says why and what to do next; cut at 4096 bytes.
    pub text: String,
}

/// The exports of a server, asked during negotiation. Implemented by the driver.
pub trait Exports {
    /// Finds an export by the name that the client sent; the empty name means the default export.
    fn lookup(&self, name: &str) -> Result<Export, Refusal>;

    /// Calls `each` with name and description of every export that clients may know of.
    fn list(&self, each: &mut dyn FnMut(&str, &str));
}

//! The FUSE kernel protocol, as far as a file system of one file needs it: numbers, requests read
//! from bytes, replies written to bytes. Native byte order; offsets follow linux/fuse.h.

/// The directory that is mounted.
const NODE_ROOT: u64 = 1;
/// The one file in it.
const NODE_FILE: u64 = 2;
/// The only name never changes its meaning, so the kernel need not ask again.
const NAME_VALID_S: u64 = 1 << 31;
pub const IN_HEADER_BYTES: usize = 40;
pub const OUT_HEADER_BYTES: usize = 16;
const WRITE_IN_BYTES: usize = 40;
/// Where the data of a WRITE begins in a request.
pub const WRITE_DATA_OFFSET: usize = IN_HEADER_BYTES + WRITE_IN_BYTES;
/// The largest WRITE or READ that we let the kernel send.
pub const IO_BYTES_MAX: u32 = 1 << 20;
/// The longest request: header, arguments and data, with room for extensions.
pub const REQUEST_BYTES_MAX: usize = IO_BYTES_MAX as usize + 8192;

const MAJOR: u32 = 7;
/// The newest minor version whose replies we know.
const MINOR: u32 = 40;
/// The kernel must at least speak this (Linux 3.15); all of max_pages and async direct I/O is newer
/// and asked for by flag.
const MINOR_MIN: u32 = 23;

const FLAG_ASYNC_READ: u64 = 1 << 0;
const FLAG_BIG_WRITES: u64 = 1 << 5;
const FLAG_ASYNC_DIRECT_IO: u64 = 1 << 15;
const FLAG_MAX_PAGES: u64 = 1 << 22;
const FLAG_INIT_EXT: u64 = 1 << 30;
const FLAG_HAS_RESEND: u64 = 1 << 39;

const OPEN_DIRECT_IO: u32 = 1 << 0;
const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

pub const FALLOCATE_KEEP_SIZE: u32 = 1;
pub const FALLOCATE_PUNCH_HOLE: u32 = 2;
pub const FALLOCATE_ZERO_RANGE: u32 = 16;

const NOTIFY_RESEND: i32 = 7;

/// Requests in the background that the kernel has with us at a time: two full queues of loop.
const BACKGROUND_MAX: u16 = 256;

/// One request of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Init {
        minor: u32,
        flags: u64,
    },
    /// A name in the directory; whatever it is, it means the file.
    Lookup,
    GetAttributes {
        of_directory: bool,
    },
    Open,
    Read {
        offset: u64,
        length: u32,
    },
    /// The data follow at [`WRITE_DATA_OFFSET`].
    Write {
        offset: u64,
        length: u32,
    },
    Sync,
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    StatFs,
    /// A file was closed, permission was asked for: nothing to do, but an answer is due.
    Acknowledge,
    /// No answer is expected.
    NoReply,
    /// Anything else: answered with ENOSYS, after which the kernel stops asking.
    Unsupported,
}

/// Splits what was read from /dev/fuse: the request's number and meaning. `None` for bytes that no
/// kernel sends.
pub fn parse(bytes: &[u8]) -> Option<(u64, Request)> {
    if u32_at(bytes, 0)? as usize != bytes.len() {
        return None;
    }
    let opcode = u32_at(bytes, 4)?;
    let unique = u64_at(bytes, 8)?;
    let body = bytes.get(IN_HEADER_BYTES..)?;
    let request = match opcode {
        26 => {
            let low = u64::from(u32_at(body, 12)?);
            let extended = low & FLAG_INIT_EXT != 0;
            let high = if extended { u64::from(u32_at(body, 16)?) } else { 0 };
            if u32_at(body, 0)? != MAJOR || u32_at(body, 4)? < MINOR_MIN {
                return None;
            }
            Request::Init { minor: u32_at(body, 4)?, flags: low | high << 32 }
        }
        1 => Request::Lookup,
        3 => Request::GetAttributes { of_directory: u64_at(bytes, 16)? == NODE_ROOT },
        14 => Request::Open,
        15 => Request::Read { offset: u64_at(body, 8)?, length: u32_at(body, 16)? },
        16 => {
            let length = u32_at(body, 16)?;
            if bytes.len() != WRITE_DATA_OFFSET + length as usize {
                return None;
            }
            Request::Write { offset: u64_at(body, 8)?, length }
        }
        20 => Request::Sync,
        43 => Request::Allocate {
            offset: u64_at(body, 8)?,
            length: u64_at(body, 16)?,
            mode: u32_at(body, 24)?,
        },
        17 => Request::StatFs,
        18 | 34 => Request::Acknowledge,
        // FORGET, BATCH_FORGET, INTERRUPT (we answer soon anyway), and DESTROY without a reader.
        2 | 42 | 36 => Request::NoReply,
        _ => Request::Unsupported,
    };
    Some((unique, request))
}

/// Whether INIT offers [`resend`].
pub fn offers_resend(flags: u64) -> bool {
    flags & FLAG_HAS_RESEND != 0
}

/// The header of a reply: `error` is 0 or a positive errno.
pub fn out_header(unique: u64, error: i32, body_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    let mut header = [0; OUT_HEADER_BYTES];
    header[0..4].copy_from_slice(&((OUT_HEADER_BYTES + body_bytes) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&(-error).to_ne_bytes());
    header[8..16].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// Asks the kernel to send again every request that it has sent and that is not answered.
pub fn resend() -> [u8; OUT_HEADER_BYTES] {
    out_header(0, -NOTIFY_RESEND, 0)
}

/// The body of INIT's reply.
pub fn init_reply(minor: u32, offered: u64) -> Vec<u8> {
    let wanted = FLAG_ASYNC_READ
        | FLAG_BIG_WRITES
        | FLAG_ASYNC_DIRECT_IO
        | FLAG_MAX_PAGES
        | FLAG_INIT_EXT
        | FLAG_HAS_RESEND;
    let flags = wanted & offered;
    let mut body = vec![0; 64];
    put_u32(&mut body, 0, MAJOR);
    put_u32(&mut body, 4, minor.min(MINOR));
    put_u32(&mut body, 12, flags as u32);
    body[16..18].copy_from_slice(&BACKGROUND_MAX.to_ne_bytes());
    body[18..20].copy_from_slice(&(BACKGROUND_MAX / 4 * 3).to_ne_bytes());
    put_u32(&mut body, 20, IO_BYTES_MAX);
    put_u32(&mut body, 24, 1); // granularity of times, in nanoseconds
    body[28..30].copy_from_slice(&((IO_BYTES_MAX / 4096) as u16).to_ne_bytes());
    put_u32(&mut body, 32, (flags >> 32) as u32);
    body
}

/// The body of LOOKUP's reply: the file.
pub fn entry_reply(size_bytes: u64) -> Vec<u8> {
    let mut body = vec![0; 40];
    put_u64(&mut body, 0, NODE_FILE);
    put_u64(&mut body, 16, NAME_VALID_S);
    body.extend_from_slice(&attributes(size_bytes, false));
    body
}

/// The body of GETATTR's reply, to be asked for anew each time.
pub fn attributes_reply(size_bytes: u64, of_directory: bool) -> Vec<u8> {
    let mut body = vec![0; 16];
    body.extend_from_slice(&attributes(size_bytes, of_directory));
    body
}

/// `struct fuse_attr` of the file or of the directory around it.
fn attributes(size_bytes: u64, of_directory: bool) -> [u8; 88] {
    const DIRECTORY: u32 = 0o040700;
    const REGULAR_FILE: u32 = 0o100600;
    let size_bytes = if of_directory { 0 } else { size_bytes };
    let mut bytes = [0; 88];
    put_u64(&mut bytes, 0, if of_directory { NODE_ROOT } else { NODE_FILE });
    put_u64(&mut bytes, 8, size_bytes);
    put_u64(&mut bytes, 16, size_bytes / 512);
    put_u32(&mut bytes, 60, if of_directory { DIRECTORY } else { REGULAR_FILE });
    put_u32(&mut bytes, 64, 1); // links
    put_u32(&mut bytes, 80, 4096); // preferred block size
    bytes
}

/// The body of OPEN's reply: no page cache for this file, and writes side by side.
pub fn open_reply() -> Vec<u8> {
    let mut body = vec![0; 16];
    put_u32(&mut body, 8, OPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES);
    body
}

/// The body of WRITE's reply.
pub fn write_reply(length: u32) -> [u8; 8] {
    let mut body = [0; 8];
    put_u32(&mut body, 0, length);
    body
}

/// The body of STATFS' reply. Loop takes its granularity of discards from the block size.
pub fn statfs_reply(size_bytes: u64) -> Vec<u8> {
    const BLOCK_BYTES: u32 = 4096;
    let mut body = vec![0; 80];
    put_u64(&mut body, 0, size_bytes / u64::from(BLOCK_BYTES));
    put_u64(&mut body, 24, 1); // files
    put_u32(&mut body, 40, BLOCK_BYTES);
    put_u32(&mut body, 44, 255); // longest name
    put_u32(&mut body, 48, BLOCK_BYTES);
    body
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..offset + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER_BYTES];
        put_u32(&mut bytes, 0, (IN_HEADER_BYTES + body.len()) as u32);
        put_u32(&mut bytes, 4, opcode);
        put_u64(&mut bytes, 8, 42);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_write_must_carry_as_much_data_as_it_says() {
        let mut body = vec![0; WRITE_IN_BYTES + 512];
        put_u64(&mut body, 8, 4096);
        put_u32(&mut body, 16, 512);
        let expected = Request::Write { offset: 4096, length: 512 };
        assert_eq!(parse(&request(16, &body)), Some((42, expected)));
        put_u32(&mut body, 16, 513);
        assert_eq!(parse(&request(16, &body)), None);
    }

    #[test]
    fn bytes_cut_anywhere_are_refused() {
        let whole = request(43, &[0; 32]);
        assert!(parse(&whole).is_some());
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_know_resend_is_not_asked_for_it() {
        let reply = init_reply(38, FLAG_MAX_PAGES);
        assert_eq!(u32_at(&reply, 4), Some(38));
        assert_eq!(u32_at(&reply, 12), Some(FLAG_MAX_PAGES as u32));
        assert_eq!(u32_at(&reply, 32), Some(0));
    }
}

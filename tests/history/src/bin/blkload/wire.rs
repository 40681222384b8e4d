//! A small blocking NBD client: the handshake, requests, and simple replies (proto.md baseline).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The server can flush.
pub const CAN_FLUSH: u16 = 1 << 2;
/// The server takes FUA.
pub const CAN_FUA: u16 = 1 << 3;
/// The server can trim.
pub const CAN_TRIM: u16 = 1 << 5;
/// The server can write zeroes.
pub const CAN_ZERO: u16 = 1 << 6;
/// A flush on one connection covers all.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
const READ_ONLY: u16 = 1 << 1;

/// Request flag: durable before the reply.
pub const FLAG_FUA: u16 = 1;
/// Request flag of write-zeroes: keep the space allocated.
pub const FLAG_NO_HOLE: u16 = 2;

/// Request types.
pub const READ: u16 = 0;
/// Write with payload.
pub const WRITE: u16 = 1;
/// End of the connection.
pub const DISCONNECT: u16 = 2;
/// Everything acknowledged becomes durable.
pub const FLUSH: u16 = 3;
/// Trim.
pub const TRIM: u16 = 4;
/// Write zeroes.
pub const WRITE_ZEROES: u16 = 6;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// `unix:PATH:EXPORT`
    Unix { path: String, export: String },
    /// `tcp:HOST:PORT:EXPORT`
    Tcp { host: String, port: u16, export: String },
}

impl Uri {
    /// Parses the two forms. The export may be left out: the default export.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither unix:PATH:EXPORT nor tcp:HOST:PORT:EXPORT");
        if let Some(rest) = text.strip_prefix("unix:") {
            let (path, export) = rest.split_once(':').unwrap_or((rest, ""));
            return Ok(Uri::Unix { path: path.into(), export: export.into() });
        }
        let rest = text.strip_prefix("tcp:").ok_or_else(wrong)?;
        let (host, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or_else(wrong)?,
            None => rest.split_once(':').ok_or_else(wrong)?,
        };
        let (port, export) = rest.split_once(':').unwrap_or((rest, ""));
        let port = port.parse().map_err(|_| wrong())?;
        Ok(Uri::Tcp { host: host.into(), port, export: export.into() })
    }

    fn export(&self) -> &str {
        match self {
            Uri::Unix { export, .. } | Uri::Tcp { export, .. } => export,
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::Unix { path, export } => write!(f, "unix:{path}:{export}"),
            Uri::Tcp { host, port, export } => write!(f, "tcp:{host}:{port}:{export}"),
        }
    }
}

/// A connected stream of either kind.
#[derive(Debug)]
pub enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
}

impl Stream {
    /// A second handle of the same connection.
    pub fn duplicate(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
        })
    }

    /// Ends the connection for every handle. One that ended already is fine.
    pub fn end(&self) {
        let both = std::net::Shutdown::Both;
        let _already_ended = match self {
            Stream::Unix(stream) => stream.shutdown(both),
            Stream::Tcp(stream) => stream.shutdown(both),
        };
    }

    fn set_timeouts(&self, read: Duration, write: Duration) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(read))?;
                stream.set_write_timeout(Some(write))
            }
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(read))?;
                stream.set_write_timeout(Some(write))
            }
        }
    }

    /// Reads all of `buffer`. `gives_up` is asked about ten times a second while nothing comes,
    /// with the time since the last byte.
    pub fn read_all(
        &mut self,
        mut buffer: &mut [u8],
        gives_up: impl Fn(Duration) -> bool,
    ) -> io::Result<()> {
        let mut last_progress = Instant::now();
        while !buffer.is_empty() {
            match self.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    last_progress = Instant::now();
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        if gives_up(last_progress.elapsed()) {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the server said about the export.
#[derive(Debug, Clone, Copy)]
pub struct Export {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest request in bytes; 1 when the server did not say.
    pub min_block: u32,
}

/// Connects and negotiates. Errors are sentences that name the address.
pub fn connect(uri: &Uri, io_timeout: Duration) -> Result<(Stream, Export), String> {
    let named = |error: io::Error| format!("{uri}: {error}");
    let mut stream = open(uri).map_err(named)?;
    stream.set_timeouts(POLL, HANDSHAKE_TIMEOUT).map_err(named)?;
    let export = negotiate(&mut stream, uri.export()).map_err(named)?;
    stream.set_timeouts(POLL, io_timeout).map_err(named)?;
    if export.flags & READ_ONLY != 0 {
        return Err(format!("{uri}: the export is read-only"));
    }
    Ok((stream, export))
}

fn open(uri: &Uri) -> io::Result<Stream> {
    match uri {
        Uri::Unix { path, .. } => UnixStream::connect(path).map(Stream::Unix),
        Uri::Tcp { host, port, .. } => {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT) {
                    Ok(stream) => return Ok(Stream::Tcp(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

fn negotiate(stream: &mut Stream, name: &str) -> io::Result<Export> {
    let mut hello = [0; 18];
    handshake_read(stream, &mut hello)?;
    if hello[..16] != *b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::other("this is no NBD server with fixed newstyle negotiation"));
    }
    let flags = u32::from(u16::from_be_bytes([hello[16], hello[17]])) & 3;
    let mut request = flags.to_be_bytes().to_vec();
    request.extend(b"IHAVEOPT");
    request.extend(7_u32.to_be_bytes()); // NBD_OPT_GO
    request.extend((name.len() as u32 + 8).to_be_bytes());
    request.extend((name.len() as u32).to_be_bytes());
    request.extend(name.as_bytes());
    request.extend([0, 1, 0, 3]); // one information request: block size
    stream.write_all(&request)?;
    let mut export = None;
    let mut min_block = 1;
    loop {
        let mut header = [0; 20];
        handshake_read(stream, &mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4"));
        if header[..8] != 0x0003_e889_0455_65a9_u64.to_be_bytes() || number(16) > 65_536 {
            return Err(io::Error::other("malformed option reply"));
        }
        let mut data = vec![0; number(16) as usize];
        handshake_read(stream, &mut data)?;
        match (number(12), data.as_slice()) {
            (1, _) => break,
            (3, [0, 0, rest @ ..]) if rest.len() == 10 => {
                let size = u64::from_be_bytes(rest[..8].try_into().expect("8"));
                export = Some((size, u16::from_be_bytes([rest[8], rest[9]])));
            }
            (3, [0, 3, rest @ ..]) if rest.len() == 12 => {
                min_block = u32::from_be_bytes(rest[..4].try_into().expect("4"));
            }
            (3, _) => {}
            (code, text) => {
                let text = String::from_utf8_lossy(text);
                return Err(io::Error::other(format!("export refused: {code:#x} {text}")));
            }
        }
    }
    let (size, flags) = export.ok_or_else(|| io::Error::other("no size in the GO reply"))?;
    Ok(Export { size, flags, min_block })
}

fn handshake_read(stream: &mut Stream, buffer: &mut [u8]) -> io::Result<()> {
    stream.read_all(buffer, |idle| idle > HANDSHAKE_TIMEOUT)
}

/// The 28 bytes of a request header.
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Takes a simple reply apart: (error, cookie). An error if it is none.
pub fn simple_reply(bytes: &[u8; 16]) -> io::Result<(u32, u64)> {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4"));
    if number(0) != 0x6744_6698 {
        return Err(io::Error::other("malformed reply"));
    }
    Ok((number(4), u64::from_be_bytes(bytes[8..].try_into().expect("8"))))
}

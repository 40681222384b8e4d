//! A RAM disk that speaks NBD, to try real clients against this crate without the daemon.
//! It keeps only the 4 KiB blocks that were written, so block status shows real holes.
//!
//! ```text
//! ramdisk [--unix PATH]... [--tcp ADDRESS:PORT]... --export NAME=BYTES[,OPTION]...
//!         [--refuse NAME=TEXT]...
//! options: ro, min=BYTES, unaligned, payload=BYTES, no-trim, no-zeroes, fast-zero, cache,
//!          single-conn
//! ```
//! The first export is also the default export. It says `listening on ...` for each socket.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use nbd_frontend::export::{Export, Exports, Refusal, RefusalKind};
use nbd_frontend::negotiation::{Negotiation, State, greeting};
use nbd_frontend::reply::{Extent, Replies, WireError};
use nbd_frontend::session::{Command, Parsed, Request, Session};

const BLOCK_LEN: u64 = 4096;
const RECEIVE_LEN: usize = 64 << 10;
const SLICE_MAX_LEN: u32 = 1 << 20;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ramdisk: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Vec<String>) -> Result<(), String> {
    let mut server = Server { disks: Vec::new(), refused: Vec::new() };
    let mut listeners = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or(format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--unix" | "--tcp" => listeners.push((arg, value)),
            "--export" => server.disks.push(Arc::new(Disk::from_argument(&value)?)),
            "--refuse" => {
                let (name, text) = value.split_once('=').ok_or("--refuse needs NAME=TEXT")?;
                server.refused.push((name.to_owned(), text.to_owned()));
            }
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    if listeners.is_empty() || server.disks.is_empty() {
        return Err("give at least one --unix or --tcp, and one --export".to_owned());
    }
    let server = Arc::new(server);
    let mut threads = Vec::new();
    for (kind, address) in listeners {
        let server = Arc::clone(&server);
        threads.push(if kind == "--unix" {
            let _ = std::fs::remove_file(&address);
            let listener = UnixListener::bind(&address).map_err(|e| format!("{address}: {e}"))?;
            println!("listening on {address}");
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    serve(stream, &server);
                }
            })
        } else {
            let listener = TcpListener::bind(&address).map_err(|e| format!("{address}: {e}"))?;
            println!("listening on {}", listener.local_addr().map_err(|e| e.to_string())?);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = stream.set_nodelay(true);
                    serve(stream, &server);
                }
            })
        });
    }
    for thread in threads {
        thread.join().map_err(|_| "a listener panicked".to_owned())?;
    }
    Ok(())
}

struct Server {
    disks: Vec<Arc<Disk>>,
    refused: Vec<(String, String)>,
}

impl Server {
    fn disk(&self, name: &str) -> Option<&Arc<Disk>> {
        if name.is_empty() {
            return self.disks.first();
        }
        self.disks.iter().find(|disk| disk.export.name == name)
    }
}

impl Exports for Server {
    fn lookup(&self, name: &str) -> Result<Export, Refusal> {
        if let Some((_, text)) = self.refused.iter().find(|(refused, _)| refused == name) {
            return Err(Refusal { kind: RefusalKind::Policy, text: text.clone() });
        }
        self.disk(name).map(|disk| disk.export.clone()).ok_or_else(|| Refusal {
            kind: RefusalKind::Unknown,
            text: format!("there is no export {name:?} here"),
        })
    }

    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for disk in &self.disks {
            each(&disk.export.name, &disk.export.description);
        }
        for (name, text) in &self.refused {
            each(name, text);
        }
    }
}

/// Blocks by number; `None` is a block that is allocated and full of zeroes.
type Blocks = BTreeMap<u64, Option<Box<[u8; BLOCK_LEN as usize]>>>;

struct Disk {
    export: Export,
    blocks: Mutex<Blocks>,
}

impl Disk {
    fn from_argument(argument: &str) -> Result<Self, String> {
        let (name, rest) = argument.split_once('=').ok_or("--export needs NAME=BYTES")?;
        let mut options = rest.split(',');
        let size = options.next().unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
        let mut export = Export::new(name, number(size)?);
        export.description = format!("RAM disk {name}");
        for option in options {
            match option.split_once('=') {
                Some(("min", value)) => export.block_size_min = number(value)? as u32,
                Some(("payload", value)) => export.payload_max_bytes = number(value)? as u32,
                None if option == "ro" => export.read_only = true,
                None if option == "unaligned" => export.serves_unaligned = true,
                None if option == "no-trim" => export.trim = false,
                None if option == "no-zeroes" => export.write_zeroes = false,
                None if option == "fast-zero" => export.fast_zero = true,
                None if option == "cache" => export.cache = true,
                None if option == "single-conn" => export.multi_conn = false,
                _ => return Err(format!("unknown option {option:?} of export {name}")),
            }
        }
        export.check().map_err(|error| error.to_string())?;
        Ok(Self { export, blocks: Mutex::new(BTreeMap::new()) })
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().expect("no thread panics with the lock")
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let blocks = self.blocks();
        let end = offset + data.len() as u64;
        for (number, block) in blocks.range(offset / BLOCK_LEN..end.div_ceil(BLOCK_LEN)) {
            let Some(block) = block else { continue };
            let from = (number * BLOCK_LEN).max(offset);
            let to = ((number + 1) * BLOCK_LEN).min(end);
            data[(from - offset) as usize..(to - offset) as usize].copy_from_slice(
                &block[(from - number * BLOCK_LEN) as usize..][..(to - from) as usize],
            );
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut blocks = self.blocks();
        let mut at = offset;
        let mut data = data;
        while !data.is_empty() {
            let start = (at % BLOCK_LEN) as usize;
            let (now, later) = data.split_at(data.len().min(BLOCK_LEN as usize - start));
            let block = blocks.entry(at / BLOCK_LEN).or_default();
            let block = block.get_or_insert_with(|| Box::new([0; BLOCK_LEN as usize]));
            block[start..start + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            data = later;
        }
    }

    /// Makes a range zero; whole blocks become holes, or stay allocated with `keep`.
    fn zero(&self, offset: u64, len: u64, keep: bool) {
        let end = offset + len;
        let first_whole = offset.div_ceil(BLOCK_LEN);
        let end_whole = (end / BLOCK_LEN).max(first_whole);
        if len > 0 {
            let edge = vec![0; BLOCK_LEN as usize];
            let head = (first_whole * BLOCK_LEN).min(end) - offset;
            self.write(offset, &edge[..head as usize]);
            if end_whole * BLOCK_LEN < end && end_whole * BLOCK_LEN >= offset {
                self.write(end_whole * BLOCK_LEN, &edge[..(end - end_whole * BLOCK_LEN) as usize]);
            }
        }
        let mut blocks = self.blocks();
        if keep {
            blocks.extend((first_whole..end_whole).map(|number| (number, None)));
            return;
        }
        let mut rest = blocks.split_off(&first_whole);
        blocks.append(&mut rest.split_off(&end_whole));
    }

    fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let blocks = self.blocks();
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        let hole = |len| Extent { len, hole: true, zero: true };
        for (number, block) in blocks.range(offset / BLOCK_LEN..end.div_ceil(BLOCK_LEN)) {
            let start = (number * BLOCK_LEN).max(offset);
            let stop = ((number + 1) * BLOCK_LEN).min(end);
            if start > at {
                extents.push(hole(start - at));
            }
            extents.push(Extent { len: stop - start, hole: false, zero: block.is_none() });
            at = stop;
        }
        if end > at {
            extents.push(hole(end - at));
        }
        extents
    }
}

fn serve<S: Read + Write + Send + 'static>(stream: S, server: &Arc<Server>) {
    let server = Arc::clone(server);
    thread::spawn(move || {
        let mut connection =
            Connection { stream, input: vec![0; RECEIVE_LEN], filled: 0, out: Vec::new() };
        if let Err(error) = connection.run(&server) {
            eprintln!("ramdisk: connection closed: {error}");
        }
    });
}

/// One client: a receive buffer of which the first `filled` bytes are unread, and output.
struct Connection<S> {
    stream: S,
    input: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    fn run(&mut self, server: &Server) -> io::Result<()> {
        self.out.extend_from_slice(&greeting());
        let mut negotiation = Negotiation::new();
        loop {
            let progress = negotiation.feed(&self.input[..self.filled], server, &mut self.out);
            self.consume(progress.consumed);
            self.flush()?;
            match progress.state {
                State::NeedMore if !self.receive()? => return Ok(()),
                State::NeedMore | State::SendFirst => {}
                State::Transmission { export, session } => {
                    let disk = Arc::clone(server.disk(&export.name).expect("lookup found it"));
                    return self.transmit(&disk, session);
                }
                State::Close(reason) => {
                    eprintln!("ramdisk: negotiation ended: {reason}");
                    return Ok(());
                }
            }
        }
    }

    fn transmit(&mut self, disk: &Disk, session: Session) -> io::Result<()> {
        let replies = session.replies();
        loop {
            match session.next_request(&self.input[..self.filled]) {
                Parsed::NeedMore { .. } => {
                    self.flush()?;
                    if !self.receive()? {
                        return Ok(());
                    }
                }
                Parsed::Request { consumed, request } => {
                    self.consume(consumed);
                    self.execute(disk, replies, request)?;
                }
                Parsed::Invalid { consumed, cookie, error, text, discard_payload } => {
                    self.consume(consumed);
                    self.payload(discard_payload)?;
                    replies.error(cookie, error, text, &mut self.out);
                }
                Parsed::Disconnect { .. } => return self.flush(),
                Parsed::Close(error) => {
                    eprintln!("ramdisk: {error}");
                    return self.flush();
                }
            }
        }
    }

    fn execute(&mut self, disk: &Disk, replies: Replies, request: Request) -> io::Result<()> {
        let Request { cookie, command } = request;
        match command {
            Command::Read { offset, len, df } => {
                let mut reply = replies.read(cookie, offset, len, df);
                let mut sent = 0;
                while sent == 0 || sent < len {
                    let slice_len = SLICE_MAX_LEN.min(len - sent);
                    let at = offset + u64::from(sent);
                    let extents = disk.extents(at, u64::from(slice_len));
                    if reply.takes_holes() && extents.iter().all(|extent| extent.hole) {
                        reply.hole(slice_len, &mut self.out);
                    } else {
                        reply.data(slice_len, &mut self.out);
                        let data_at = self.out.len();
                        self.out.resize(data_at + slice_len as usize, 0);
                        disk.read(at, &mut self.out[data_at..]);
                    }
                    sent += slice_len;
                    if len == 0 {
                        break;
                    }
                }
                assert!(reply.is_complete());
            }
            Command::Write { offset, len, .. } => {
                let data = self.payload(len)?;
                disk.write(offset, &data);
                replies.done(cookie, &mut self.out);
            }
            Command::Trim { offset, len, .. } => {
                disk.zero(offset, u64::from(len), false);
                replies.done(cookie, &mut self.out);
            }
            // A zeroing that must keep blocks is slow here; the rest is as fast as a trim.
            Command::WriteZeroes { no_hole: true, fast_zero: true, .. } => {
                let text = "keeping the blocks makes zeroes slow";
                replies.error(cookie, WireError::NotSupported, text, &mut self.out);
            }
            Command::WriteZeroes { offset, len, no_hole, .. } => {
                disk.zero(offset, u64::from(len), no_hole);
                replies.done(cookie, &mut self.out);
            }
            Command::Flush | Command::Cache { .. } => replies.done(cookie, &mut self.out),
            Command::BlockStatus { offset, len, req_one } => {
                let extents = disk.extents(offset, u64::from(len));
                replies.block_status(cookie, len, req_one, extents, &mut self.out);
            }
        }
        if self.out.len() >= SLICE_MAX_LEN as usize { self.flush() } else { Ok(()) }
    }

    /// Takes `len` bytes from the receive buffer and then from the stream.
    fn payload(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut data = vec![0; len as usize];
        let buffered = self.filled.min(data.len());
        data[..buffered].copy_from_slice(&self.input[..buffered]);
        self.consume(buffered);
        self.stream.read_exact(&mut data[buffered..])?;
        Ok(data)
    }

    fn consume(&mut self, len: usize) {
        self.input.copy_within(len..self.filled, 0);
        self.filled -= len;
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Receives once; false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        let received = self.stream.read(&mut self.input[self.filled..])?;
        self.filled += received;
        Ok(received > 0)
    }
}

//! Serves a file or device over NBD on a Unix socket, through the data loop alone: what an
//! unreplicated resource costs. Usage: passthrough FILE SOCKET [volatile|nodisk]

mod single;

use std::error::Error;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::{env, fs, thread};

use nbd_frontend::export::{Export, Exports, Refusal};
use nbd_frontend::negotiation::{Negotiation, State, greeting};
use nbd_frontend::session::Session;
use replicator::data_loop::{LoopConfig, LoopStatus, POOL_BYTES_DEFAULT, ToLoop, spawn};
use replicator::disk::{Disk, Opening, TestBacking};
use replicator_core::Span;

struct One(Export);

impl Exports for One {
    fn lookup(&self, _name: &str) -> Result<Export, Refusal> {
        Ok(self.0.clone())
    }

    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        each("", "");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [file, socket, rest @ ..] = &arguments[..] else {
        return Err("usage: passthrough FILE SOCKET [volatile|nodisk]".into());
    };
    let test = match rest.first().map(String::as_str) {
        Some("volatile") => TestBacking::Volatile,
        Some("nodisk") => TestBacking::NoDisk,
        _ => TestBacking::Off,
    };
    let opening = Opening { data: Path::new(file), meta: None, test };
    let disk = Disk::open(opening, &mut |waiting| {
        eprintln!("{waiting}");
        ControlFlow::Continue(())
    })?;
    let layout = disk.layout();
    let mut export = Export::new("", layout.data_bytes);
    export.block_size_min = layout.block_bytes;
    export.check()?;
    let core = single::Single::new(layout.block_bytes, disk.can_punch());
    let config = LoopConfig {
        resource: "passthrough".to_owned(),
        disk,
        pool_bytes: POOL_BYTES_DEFAULT,
        client_timeout: Span::from_ms(60_000),
        lease: None,
    };
    let (events, event_receiver) = mpsc::channel();
    let data_loop = spawn(config, core, events)?;
    thread::spawn(move || {
        for event in event_receiver {
            eprintln!("{event:?}");
        }
    });
    let _ = fs::remove_file(socket);
    for stream in UnixListener::bind(socket)?.incoming() {
        let mut stream = stream?;
        if let Some((session, leftover)) = negotiate(&mut stream, &One(export.clone()))? {
            let origin = "client".to_owned();
            data_loop.send(ToLoop::Client { stream: stream.into(), session, leftover, origin })?;
        }
        let (reply, status) = mpsc::channel();
        data_loop.send(ToLoop::Status { reply })?;
        eprintln!("{}", summary(&status.recv()?));
    }
    Ok(())
}

/// A session, and what the client sent behind its negotiation.
type Negotiated = (Session, Vec<u8>);

/// Negotiates; none when the client only wanted to look.
fn negotiate(stream: &mut UnixStream, exports: &One) -> Result<Option<Negotiated>, Box<dyn Error>> {
    stream.write_all(&greeting())?;
    let mut negotiation = Negotiation::new();
    let mut buffer = [0; 4096];
    loop {
        let received = stream.read(&mut buffer)?;
        if received == 0 {
            return Ok(None);
        }
        let mut input = &buffer[..received];
        loop {
            let mut out = Vec::new();
            let progress = negotiation.feed(input, exports, &mut out);
            stream.write_all(&out)?;
            input = &input[progress.consumed..];
            match progress.state {
                State::NeedMore => break,
                State::SendFirst => {}
                State::Transmission { session, .. } => {
                    return Ok(Some((session, input.to_vec())));
                }
                State::Close(_) => return Ok(None),
            }
        }
    }
}

fn summary(status: &LoopStatus) -> String {
    let c = &status.counters;
    format!(
        "turns {} reads {} writes {} flushes {} disk write p50 {} us p99 {} us, client write p50 \
         {} us p99 {} us, pool most {} KiB",
        c.turns,
        c.reads,
        c.writes,
        c.flushes,
        c.disk_write.quantile_ns(0.5) / 1000,
        c.disk_write.quantile_ns(0.99) / 1000,
        c.client_write.quantile_ns(0.5) / 1000,
        c.client_write.quantile_ns(0.99) / 1000,
        status.pool.clients.used_most_bytes >> 10,
    )
}

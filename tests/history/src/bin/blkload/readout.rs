//! Requests one at a time: the read-out of `verify` and the wiping before a first run.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::engine::Engine;
use crate::journal::{Layout, Record};
use crate::load::{connect_any, encode, identify_all};
use crate::wire::{self, Export, Stream};

const CHUNK_BYTES: u64 = 256 << 10;
const RETRY: Duration = Duration::from_millis(100);

/// Connects to the first server that serves, for as long as `--reconnect-seconds` says.
pub fn connect_patiently(args: &Args, layout: Layout) -> Result<(usize, Stream, Export), String> {
    let start = Instant::now();
    loop {
        match connect_any(&args.uris, 0, args.io_timeout, layout) {
            Err(_) if start.elapsed() < args.reconnect => std::thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Reads everything back and lets the checker judge it.
pub fn read_all_back(args: &Args, engine: &mut Engine) -> Result<(), String> {
    let layout = engine.layout;
    let (uri, mut stream, _) = connect_patiently(args, layout)?;
    let handle = stream.duplicate().map_err(|error| error.to_string())?;
    let session = engine.session_begins(uri, handle);
    let mut bytes = Vec::new();
    let mut data = Vec::new();
    let step = (CHUNK_BYTES / layout.unit_bytes).max(1);
    let mut first = 0;
    while first < layout.units {
        let units = first..(first + step).min(layout.units);
        let record = engine.start(session, |id| Record::Read { id, units: units.clone() });
        let record = record.ok_or_else(|| engine.journal_failure().unwrap_or_default())?;
        encode(&record, layout, false, &mut bytes);
        data.resize(((units.end - units.start) * layout.unit_bytes) as usize, 0);
        let id = exchange(&mut stream, &bytes, &mut data, args.io_timeout)
            .map_err(|error| format!("reading units {units:?} of {}: {error}", args.uris[uri]))?;
        engine.done(id, identify_all(&data, layout, first));
        first = units.end;
    }
    let _goodbye = stream.write_all(&wire::request(0, wire::DISCONNECT, 0, 0, 0));
    engine.session_ends(session, false);
    Ok(())
}

/// Zeroes the first `size` bytes of an export and flushes.
pub fn wipe(args: &Args, stream: &mut Stream, export: Export, size: u64) -> Result<(), String> {
    if export.flags & wire::CAN_ZERO == 0 || export.flags & wire::CAN_FLUSH == 0 {
        return Err("--wipe: the export can not write zeroes and flush".into());
    }
    let step = 32 << 20;
    let mut requests = Vec::new();
    for offset in (0..size).step_by(step) {
        let length = (step as u64).min(size - offset) as u32;
        requests.push(wire::request(wire::FLAG_NO_HOLE, wire::WRITE_ZEROES, 1, offset, length));
    }
    requests.push(wire::request(0, wire::FLUSH, 1, 0, 0));
    for request in requests {
        exchange(stream, &request, &mut [], args.io_timeout)
            .map_err(|error| format!("--wipe: {error}"))?;
    }
    Ok(())
}

fn exchange(
    stream: &mut Stream,
    request: &[u8],
    data: &mut [u8],
    io_timeout: Duration,
) -> std::io::Result<u64> {
    stream.write_all(request)?;
    let mut header = [0; 16];
    stream.read_all(&mut header, |idle| idle >= io_timeout)?;
    match wire::simple_reply(&header)? {
        (0, id) => {
            stream.read_all(data, |idle| idle >= io_timeout)?;
            Ok(id)
        }
        (error, _) => Err(std::io::Error::other(format!("the server answered NBD error {error}"))),
    }
}

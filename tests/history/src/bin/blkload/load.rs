//! The connections of a run: each has a thread that sends and a thread that takes the replies.

use std::io::{BufRead as _, Write as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use history::Seen;
use history::draw::mix;

use crate::args::{Args, parse_note};
use crate::content;
use crate::engine::{Engine, Pending};
use crate::journal::{Layout, Record};
use crate::wire::{self, Export, Stream, Uri};
use crate::workload::Workload;

const RETRY: Duration = Duration::from_millis(100);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);
const SHUTTING_DOWN: u32 = 108; // NBD_ESHUTDOWN

/// A run in progress.
#[derive(Debug)]
pub struct Load<'a> {
    pub args: &'a Args,
    pub engine: Mutex<Engine>,
    pub started: Instant,
    stop: AtomicBool,
    first_id: u64,
    /// Requests started in this run, for `--rate`.
    requests: AtomicU64,
}

/// How many requests of one connection may start, and whether it still works.
#[derive(Debug, Default)]
struct Window {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl<'a> Load<'a> {
    /// Prepares a run; the clock starts now.
    pub fn new(args: &'a Args, engine: Engine) -> Self {
        Load {
            args,
            first_id: engine.next_id(),
            engine: Mutex::new(engine),
            started: Instant::now(),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        }
    }

    /// Runs all connections to the end of the time, or to the death of the server.
    pub fn run(&self) {
        thread::scope(|scope| {
            let connections: Vec<_> = (0..self.args.connections)
                .map(|number| scope.spawn(move || self.connection(number as u64)))
                .collect();
            let mut next_report = Instant::now() + Duration::from_secs(1);
            let notes = self.args.notes_stdin.then(lines_of_stdin);
            while connections.iter().any(|thread| !thread.is_finished()) {
                match notes.as_ref().map(|lines| lines.recv_timeout(RETRY)) {
                    Some(Ok(line)) => self.take_note(&line),
                    Some(Err(mpsc::RecvTimeoutError::Timeout)) => {}
                    Some(Err(mpsc::RecvTimeoutError::Disconnected)) | None => thread::sleep(RETRY),
                }
                if self.time_is_up() {
                    self.stop.store(true, Ordering::Relaxed);
                }
                if Instant::now() >= next_report {
                    next_report += Duration::from_secs(1);
                    self.report_progress();
                }
            }
        });
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().expect("no thread panics with the engine")
    }

    fn time_is_up(&self) -> bool {
        self.started.elapsed() >= self.args.duration
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.time_is_up()
    }

    /// Tells the checker what happened to the device, and whoever said so that it knows.
    fn take_note(&self, line: &str) {
        if line.trim() == "stop" {
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        match parse_note(line.trim()) {
            Ok(note) => {
                self.engine().tell(&note);
                println!("noted {}", line.trim());
            }
            Err(reason) => eprintln!("{reason}"),
        }
    }

    fn report_progress(&self) {
        let engine = self.engine();
        let counts = &engine.counts;
        eprintln!(
            "{:5.0} s  {} writes, {} flushes, {} reads, {} unknown, {} errors, {} violations",
            self.started.elapsed().as_secs_f64(),
            counts.acked_writes,
            counts.acked_flushes,
            counts.reads,
            counts.unknown_writes,
            counts.errors,
            engine.violations.len()
        );
    }

    fn connection(&self, number: u64) {
        let layout = self.engine().layout;
        // A later run with the same journal draws other requests.
        let seed = mix(self.args.seed) ^ mix(self.first_id << 8 | number);
        let mut workload = Workload::new(self.args, layout, seed);
        let mut alone_since = Instant::now();
        while !self.stopping() {
            let first = self.engine().current_uri();
            match connect_any(&self.args.uris, first, self.args.io_timeout, layout) {
                Ok((uri, _, export))
                    if self.args.connections > 1 && export.flags & wire::CAN_MULTI_CONN == 0 =>
                {
                    let uri = &self.args.uris[uri];
                    eprintln!("{uri}: a flush covers one connection only; use --connections 1");
                    return;
                }
                Ok((uri, stream, export)) => {
                    if !self.session(uri, stream, export, layout, &mut workload) {
                        return;
                    }
                    alone_since = Instant::now();
                }
                Err(reason) if alone_since.elapsed() >= self.args.reconnect => {
                    eprintln!("connection {number}: {reason}");
                    return;
                }
                Err(_) => thread::sleep(RETRY),
            }
            if self.args.reconnect.is_zero() {
                return;
            }
        }
    }

    /// One connection from its handshake to its end. False when the run is over for it.
    fn session(
        &self,
        uri: usize,
        stream: Stream,
        export: Export,
        layout: Layout,
        workload: &mut Workload,
    ) -> bool {
        let (Ok(mut receiver), Ok(handle)) = (stream.duplicate(), stream.duplicate()) else {
            eprintln!("out of file descriptors");
            return false;
        };
        let session = self.engine().session_begins(uri, handle);
        let window = Window::default();
        let mut sender = stream;
        let finished = thread::scope(|scope| {
            let replies = scope.spawn(|| {
                let end = self.take_replies(&mut receiver, layout, &window);
                window.close();
                end
            });
            let sent = self.send_requests(&mut sender, session, &export, workload, &window);
            if sent && window.wait_until_idle(self.args.io_timeout) {
                let _goodbye = sender.write_all(&wire::request(0, wire::DISCONNECT, 0, 0, 0));
                self.engine().session_ends(session, false);
                let _end_of_stream = replies.join();
                return true;
            }
            sender.end();
            let reason = replies.join().expect("the receiver does not panic");
            eprintln!("connection to {} lost: {reason}", self.args.uris[uri]);
            self.engine().session_ends(session, true);
            false
        });
        !finished && self.engine().journal_failure().is_none()
    }

    /// Sends until the time is up (true) or the connection fails (false).
    fn send_requests(
        &self,
        stream: &mut Stream,
        session: u64,
        export: &Export,
        workload: &mut Workload,
        window: &Window,
    ) -> bool {
        let mut bytes = Vec::new();
        while !self.stopping() {
            match window.enter(self.args.depth) {
                Entry::Closed => return false,
                Entry::Full => continue,
                Entry::Entered => {}
            }
            self.keep_to_rate();
            let mut engine = self.engine();
            let layout = engine.layout;
            let record = engine.start(session, |id| workload.next(id, export));
            drop(engine);
            let Some(record) = record else { return false };
            encode(&record, layout, workload.coin(), &mut bytes);
            if stream.write_all(&bytes).is_err() {
                return false;
            }
        }
        true
    }

    fn keep_to_rate(&self) {
        let Some(rate) = self.args.rate else { return };
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let due = self.started + Duration::from_secs_f64(number as f64 / rate as f64);
        if due > Instant::now() && !self.stopping() {
            thread::sleep(due - Instant::now().min(due));
        }
    }

    /// Takes replies until the connection ends, and says why it did.
    fn take_replies(&self, stream: &mut Stream, layout: Layout, window: &Window) -> String {
        let mut data = Vec::new();
        loop {
            if let Err(error) = self.take_reply(stream, layout, window, &mut data) {
                return error.to_string();
            }
        }
    }

    fn take_reply(
        &self,
        stream: &mut Stream,
        layout: Layout,
        window: &Window,
        data: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let gives_up = |idle: Duration| window.is_busy_for(idle, self.args.io_timeout);
        let mut header = [0; 16];
        stream.read_all(&mut header, gives_up)?;
        let (error, id) = wire::simple_reply(&header)?;
        let Some(pending) = self.engine().pending(id) else {
            return Err(std::io::Error::other("a reply to nothing in flight"));
        };
        if error != 0 {
            let mut engine = self.engine();
            engine.counts.errors += 1;
            engine.failed(id);
            drop(engine);
            if error == SHUTTING_DOWN {
                return Err(std::io::Error::other("the server shuts down"));
            }
            thread::sleep(PAUSE_AFTER_ERROR);
        } else {
            let mut seen = Vec::new();
            if let Pending::Read(units) = pending {
                data.resize(((units.end - units.start) * layout.unit_bytes) as usize, 0);
                stream.read_all(data, gives_up)?;
                seen = identify_all(data, layout, units.start);
            }
            self.engine().done(id, seen);
        }
        window.leave();
        Ok(())
    }
}

enum Entry {
    Entered,
    Full,
    Closed,
}

impl Window {
    /// Waits a moment for room for one more request.
    fn enter(&self, depth: usize) -> Entry {
        let guard = self.state.lock().expect("plain numbers");
        let (mut guard, _) = self
            .changed
            .wait_timeout_while(guard, RETRY, |(count, closed)| *count >= depth && !*closed)
            .expect("plain numbers");
        match *guard {
            (_, true) => Entry::Closed,
            (count, _) if count >= depth => Entry::Full,
            _ => {
                guard.0 += 1;
                Entry::Entered
            }
        }
    }

    fn leave(&self) {
        self.state.lock().expect("plain numbers").0 -= 1;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().expect("plain numbers").1 = true;
        self.changed.notify_all();
    }

    fn is_busy_for(&self, idle: Duration, limit: Duration) -> bool {
        idle >= limit && self.state.lock().expect("plain numbers").0 > 0
    }

    /// False when the connection ended or stalled with requests in flight.
    fn wait_until_idle(&self, limit: Duration) -> bool {
        let guard = self.state.lock().expect("plain numbers");
        let (guard, _) = self
            .changed
            .wait_timeout_while(guard, limit, |(count, closed)| *count > 0 && !*closed)
            .expect("plain numbers");
        *guard == (0, false)
    }
}

/// The lines of standard input as they come. The thread that waits for them ends with the process.
fn lines_of_stdin() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Tries every address once, from `first` on.
pub fn connect_any(
    uris: &[Uri],
    first: usize,
    io_timeout: Duration,
    layout: Layout,
) -> Result<(usize, Stream, Export), String> {
    let mut reasons = Vec::new();
    for turn in 0..uris.len() {
        let index = (first + turn) % uris.len();
        match wire::connect(&uris[index], io_timeout) {
            Ok((_, export)) if export.size < layout.units * layout.unit_bytes => {
                reasons.push(format!("{}: smaller than the journal says", uris[index]));
            }
            Ok((_, export)) if u64::from(export.min_block) > layout.unit_bytes => {
                let min = export.min_block;
                reasons.push(format!("{}: needs --unit {min} or larger", uris[index]));
            }
            Ok((stream, export)) => return Ok((index, stream, export)),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

/// The units that a read returned.
pub fn identify_all(data: &[u8], layout: Layout, first_unit: u64) -> Vec<Seen> {
    let mut scratch = vec![0; layout.unit_bytes as usize];
    let units = data.chunks_exact(layout.unit_bytes as usize);
    units
        .zip(first_unit..)
        .map(|(unit, number)| content::identify(unit, layout.run, number, &mut scratch))
        .collect()
}

/// The bytes of a request that starts.
pub fn encode(record: &Record, layout: Layout, coin: bool, bytes: &mut Vec<u8>) {
    let offset = |units: &Range<u64>| units.start * layout.unit_bytes;
    let length = |units: &Range<u64>| ((units.end - units.start) * layout.unit_bytes) as u32;
    let fua = |fua: &bool| if *fua { wire::FLAG_FUA } else { 0 };
    bytes.clear();
    match record {
        Record::Write { id, units, fua: flag } => {
            let (offset, length) = (offset(units), length(units));
            bytes.extend(wire::request(fua(flag), wire::WRITE, *id, offset, length));
            bytes.resize(28 + length as usize, 0);
            let payload = bytes[28..].chunks_exact_mut(layout.unit_bytes as usize);
            for (unit, number) in payload.zip(units.clone()) {
                content::fill(unit, layout.run, *id, number);
            }
        }
        Record::Trim { id, units, .. } => {
            bytes.extend(wire::request(0, wire::TRIM, *id, offset(units), length(units)));
        }
        Record::Zero { id, units, fua: flag } => {
            let flags = fua(flag) | if coin { wire::FLAG_NO_HOLE } else { 0 };
            let (offset, length) = (offset(units), length(units));
            bytes.extend(wire::request(flags, wire::WRITE_ZEROES, *id, offset, length));
        }
        Record::Flush { id } => bytes.extend(wire::request(0, wire::FLUSH, *id, 0, 0)),
        Record::Read { id, units } => {
            bytes.extend(wire::request(0, wire::READ, *id, offset(units), length(units)));
        }
        _ => unreachable!("only starts are sent"),
    }
}

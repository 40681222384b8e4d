//! Serves a file as a block device through the attach: to try it by hand, and for the tests that
//! kill a server and start it again. It knows nothing of replication.
//!
//! ```text
//! nbd-attach-file serve FILE KEY=VALUE...   resource= uuid= runtime= devices= attach= block=
//!                                           delay-ms= (before each reply)
//! nbd-attach-file holder RUNTIME_DIR        holds the FUSE descriptor over a restart
//! nbd-attach-file fail KEY=VALUE...         fails what a killed server left behind
//! ```
//! `serve` prints `ready PATH DEVICE KIND new|adopted` when the device is there. Signals:
//! - TERM detaches and ends, or says on stderr who uses the device and goes on;
//! - USR1 fails all I/O and ends; USR2 replaces the stream;
//! - HUP makes the device as large as the file is now;
//! - INT ends and leaves the device behind.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_frontend::attach::{
    self, AttachError, Attached, Choice, Features, Keeper, Request, holder,
};
use nbd_frontend::protocol::{
    CMD_DISC, CMD_FLAG_FUA, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
    REQUEST_LEN, REQUEST_MAGIC, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC,
};
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["serve", file, settings @ ..] => serve(Path::new(file), settings),
        ["holder", runtime_dir] => holder::run(Path::new(runtime_dir)).map_err(Into::into),
        ["fail", settings @ ..] => fail(settings),
        _ => Err("see the head of nbd-attach-file.rs for the arguments".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-attach-file: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Settings(HashMap<String, String>);

impl Settings {
    fn parse(words: &[&str]) -> Result<Self, Box<dyn Error>> {
        let pairs = words.iter().map(|word| {
            let (key, value) = word.split_once('=').ok_or(format!("{word}: not KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        pairs.collect::<Result<_, Box<dyn Error>>>().map(Self)
    }

    fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.0.get(key).map_or(default, String::as_str)
    }

    fn keeper(&self) -> Result<Keeper, Box<dyn Error>> {
        let runtime_dir = PathBuf::from(self.text("runtime", "/run/nbd-attach-file"));
        let program = std::env::current_exe()?;
        let command = vec![program.into(), "holder".into(), runtime_dir.clone().into()];
        Ok(Keeper::choose(&runtime_dir, command))
    }

    fn request(&self, size_bytes: u64) -> Result<Request, Box<dyn Error>> {
        Ok(Request {
            resource: self.text("resource", "file").to_owned(),
            uuid: self.text("uuid", "00000000-0000-0000-0000-000000000001").to_owned(),
            size_bytes,
            block_size_bytes: self.text("block", "512").parse()?,
            features: Features { trim: true, write_zeroes: true, rotational: false },
            dead_connection_timeout_s: Request::DEAD_CONNECTION_TIMEOUT_S,
            device_dir: self.text("devices", Request::DEVICE_DIR).into(),
            choice: self.text("attach", "auto").parse::<Choice>()?,
        })
    }
}

fn fail(words: &[&str]) -> Result<(), Box<dyn Error>> {
    let settings = Settings::parse(words)?;
    let keeper = settings.keeper()?;
    for leftover in attach::fail_leftovers(&settings.request(4096)?, &keeper)? {
        println!("{leftover}");
    }
    Ok(())
}

fn serve(path: &Path, words: &[&str]) -> Result<(), Box<dyn Error>> {
    let settings = Settings::parse(words)?;
    let mut signals = SigSet::empty();
    for signal in
        [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGINT]
    {
        signals.add(signal);
    }
    // Before the first thread, which inherits it.
    signals.thread_block()?;
    let keeper = Arc::new(settings.keeper()?);
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // Until the old server and its last write are gone, nothing may be answered.
    let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let request = settings.request(file.metadata()?.len())?;
    let delay = Duration::from_millis(settings.text("delay-ms", "0").parse()?);
    let servers = Servers { file: Arc::new(file), delay, threads: Mutex::default() };
    let mut attached = attach::attach(&request, &keeper, &mut |stream| servers.add(stream))?;
    for leftover in attached.leftovers() {
        eprintln!("{leftover}");
    }
    let origin = if attached.adopted() { "adopted" } else { "new" };
    println!(
        "ready {} {} {} {origin}",
        attached.path().display(),
        attached.device(),
        attached.kind()
    );
    io::stdout().flush()?;
    loop {
        match signals.wait()? {
            Signal::SIGTERM => match attached.detach() {
                Ok(()) => return Ok(()),
                Err(AttachError::InUse(users)) => eprintln!("refused: {users}"),
                Err(error) => return Err(error.into()),
            },
            Signal::SIGUSR1 => return fail_all(&mut attached),
            Signal::SIGUSR2 => {
                servers.end_all();
                attached.reconnect(&mut |stream| servers.add(stream))?;
                println!("reconnected");
                io::stdout().flush()?;
            }
            Signal::SIGHUP => attached.resize(servers.file.metadata()?.len())?,
            _ => return Ok(()),
        }
    }
}

fn fail_all(attached: &mut Attached) -> Result<(), Box<dyn Error>> {
    for user in attached.fail()? {
        println!("still in use: {user}");
    }
    Ok(())
}

/// One thread per stream, each answering in order: enough for tests, and no model for the daemon.
struct Servers {
    file: Arc<Flock<File>>,
    delay: Duration,
    threads: Mutex<Vec<(UnixStream, JoinHandle<()>)>>,
}

impl Servers {
    fn add(&self, stream: OwnedFd) {
        let stream = UnixStream::from(stream);
        let cutter = stream.try_clone().expect("a descriptor can be duplicated");
        let (file, delay) = (self.file.clone(), self.delay);
        let thread = std::thread::spawn(move || {
            if let Err(error) = answer_all(&stream, &file, delay) {
                eprintln!("stream: {error}");
            }
            let _ = stream.shutdown(std::net::Shutdown::Both);
        });
        self.threads.lock().expect("no holder of this lock panics").push((cutter, thread));
    }

    /// Returns when the last request of every stream has ended.
    fn end_all(&self) {
        for (stream, thread) in self.threads.lock().expect("no holder panics").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            thread.join().expect("a server thread panicked");
        }
    }
}

fn answer_all(mut stream: &UnixStream, file: &File, delay: Duration) -> io::Result<()> {
    let mut data = Vec::new();
    loop {
        let mut request = [0; REQUEST_LEN];
        match stream.read_exact(&mut request) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let number = |range: std::ops::Range<usize>| {
            request[range].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        assert_eq!(number(0..4), u64::from(REQUEST_MAGIC), "the stream is out of step");
        let (flags, command) = (number(4..6) as u16, number(6..8) as u16);
        let (offset, length) = (number(16..24), number(24..28));
        data.resize(if command <= CMD_WRITE { length as usize } else { 0 }, 0);
        let outcome = match command {
            CMD_READ => file.read_exact_at(&mut data, offset),
            CMD_WRITE => {
                stream.read_exact(&mut data)?;
                file.write_all_at(&data, offset)
            }
            CMD_DISC => return Ok(()),
            CMD_FLUSH => file.sync_data(),
            CMD_TRIM | CMD_WRITE_ZEROES => punch(file, offset, length),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        let outcome = outcome
            .and_then(|()| if flags & CMD_FLAG_FUA != 0 { file.sync_data() } else { Ok(()) });
        std::thread::sleep(delay);
        let error = outcome.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let mut reply = Vec::with_capacity(SIMPLE_REPLY_LEN + data.len());
        reply.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        reply.extend_from_slice(&(error as u32).to_be_bytes());
        reply.extend_from_slice(&request[8..16]);
        if command == CMD_READ && error == 0 {
            reply.extend_from_slice(&data);
        }
        stream.write_all(&reply)?;
    }
}

fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, offset as i64, length as i64)?)
}

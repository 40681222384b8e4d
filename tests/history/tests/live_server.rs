//! blkload against real NBD servers (nbdkit): clean runs, killed servers, killed clients, lost
//! data.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

/// A directory for sockets, disks and journals that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("blkload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn disk(&self) -> PathBuf {
        let disk = self.path("disk");
        std::fs::write(&disk, vec![0; 8 << 20]).expect("a disk image");
        disk
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _the_rest_is_left = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that is killed with the test.
struct Server {
    process: Child,
    uri: String,
}

impl Server {
    fn start(socket: &Path, words: &[&str]) -> Self {
        let _was_not_there = std::fs::remove_file(socket);
        let process = Command::new("nbdkit")
            .args(["--exit-with-parent", "--foreground", "--unix"])
            .arg(socket)
            .args(words)
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is installed");
        wait_until("the server listens", || {
            std::os::unix::net::UnixStream::connect(socket).is_ok()
        });
        Server { process, uri: format!("unix:{}:", socket.display()) }
    }

    /// One request at a time: the kernel's page cache, unlike a disk, lets a read see half of a
    /// write to the same sector that is on its way.
    fn on_disk(socket: &Path, disk: &Path) -> Self {
        let disk = disk.to_str().expect("plain names");
        let words = ["--filter=noparallel", "file", disk, "serialize=all-requests"];
        Server::start(socket, &words)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("our own child");
        self.process.wait().expect("our own child");
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn blkload(command: &str, uris: &[&str], journal: &Path, more: &str) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_blkload"));
    process.arg(command).arg("--json").arg("--journal").arg(journal);
    for uri in uris {
        process.args(["--uri", uri]);
    }
    process.args(more.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    process
}

struct Outcome {
    code: Option<i32>,
    text: String,
}

impl Outcome {
    fn of(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Outcome { code: output.status.code(), text: String::from_utf8_lossy(&text).into() }
    }

    fn number(&self, name: &str) -> u64 {
        let (_, rest) = self.text.split_once(&format!("\"{name}\":")).expect(&self.text);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.text);
        self
    }
}

fn finish(command: &mut Command) -> Outcome {
    Outcome::of(command.output().expect("blkload runs"))
}

fn run(uri: &str, journal: &Path, more: &str) -> Outcome {
    finish(&mut blkload("run", &[uri], journal, more))
}

fn verify(uri: &str, journal: &Path, more: &str) -> Outcome {
    finish(&mut blkload("verify", &[uri], journal, more))
}

/// Waits until a run has got so many acknowledgements.
fn wait_for_acks(journal: &Path, count: usize) {
    wait_until("the load runs", || {
        let text = std::fs::read_to_string(journal).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("a ")).count() >= count
    });
}

#[test]
fn a_good_server_passes_again_and_again() {
    let scratch = Scratch::new("good");
    let server = Server::start(&scratch.path("s"), &["memory", "8M"]);
    let journal = scratch.path("j");
    for _ in 0..2 {
        let outcome = run(&server.uri, &journal, "--seconds 0.7 --trim zeroes").expect(0);
        assert!(outcome.number("acked_writes") > 50, "{}", outcome.text);
        assert!(outcome.number("acked_flushes") > 0 && outcome.number("reads") > 50);
        assert_eq!(outcome.number("unknown_writes"), 0);
        verify(&server.uri, &journal, "").expect(0);
    }
}

#[test]
fn requests_smaller_than_a_sector_are_checked() {
    let scratch = Scratch::new("small");
    let server = Server::start(&scratch.path("s"), &["memory", "1M"]);
    let journal = scratch.path("j");
    run(&server.uri, &journal, "--seconds 0.7 --unit 32 --unaligned 80").expect(0);
    verify(&server.uri, &journal, "").expect(0);
}

#[test]
fn a_server_that_forgets_everything_is_found() {
    let scratch = Scratch::new("forget");
    let journal = scratch.path("j");
    let socket = scratch.path("s");
    let server = Server::start(&socket, &["memory", "8M"]);
    run(&server.uri, &journal, "--seconds 0.5").expect(0);
    drop(server);
    let server = Server::start(&socket, &["memory", "8M"]);
    let outcome = verify(&server.uri, &journal, "--note power-lost").expect(1);
    assert!(outcome.number("LostFlushed") > 0);
    // What was reported stays reported.
    verify(&server.uri, &journal, "").expect(1);
}

#[test]
fn only_a_power_loss_excuses_the_loss_of_unflushed_writes() {
    let scratch = Scratch::new("power");
    let (socket, disk, journal) = (scratch.path("s"), scratch.disk(), scratch.path("j"));
    let server = Server::on_disk(&socket, &disk);
    run(&server.uri, &journal, "--seconds 0.4 --mix write=50,flush=50").expect(0);
    drop(server);
    let flushed = std::fs::read(&disk).unwrap();
    let server = Server::on_disk(&socket, &disk);
    run(&server.uri, &journal, "--seconds 0.4 --mix write=1").expect(0);
    drop(server);
    std::fs::write(&disk, flushed).unwrap();

    let copy = |name: &str| {
        std::fs::copy(&journal, scratch.path(name)).unwrap();
        scratch.path(name)
    };
    let (without_note, with_note, worse) = (copy("j1"), copy("j2"), copy("j3"));
    let server = Server::on_disk(&socket, &disk);
    let outcome = verify(&server.uri, &without_note, "").expect(1);
    assert!(outcome.number("LostAcknowledged") > 0);
    assert!(!outcome.text.contains("LostFlushed"), "{}", outcome.text);
    verify(&server.uri, &with_note, "--note power-lost --note tenure-changed").expect(0);
    drop(server);

    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let server = Server::on_disk(&socket, &disk);
    let outcome = verify(&server.uri, &worse, "--note power-lost").expect(1);
    assert!(outcome.number("LostFlushed") > 0);
}

#[test]
fn a_run_ends_cleanly_when_the_server_dies() {
    let scratch = Scratch::new("dies");
    let (socket, disk, journal) = (scratch.path("s"), scratch.disk(), scratch.path("j"));
    let server = Server::on_disk(&socket, &disk);
    let load = blkload("run", &[&server.uri], &journal, "--seconds 60").spawn().unwrap();
    wait_for_acks(&journal, 100);
    drop(server);
    let outcome = Outcome::of(load.wait_with_output().unwrap()).expect(0);
    assert!(outcome.number("connections_lost") == 4, "{}", outcome.text);
    let server = Server::on_disk(&socket, &disk);
    verify(&server.uri, &journal, "").expect(0);
}

#[test]
fn a_run_survives_the_change_to_another_server() {
    let scratch = Scratch::new("change");
    let (disk, journal) = (scratch.disk(), scratch.path("j"));
    let first = Server::on_disk(&scratch.path("s1"), &disk);
    let second_socket = scratch.path("s2");
    let second_uri = format!("unix:{}:", second_socket.display());
    let options = "--seconds 3 --reconnect-seconds 20";
    let uris = [first.uri.as_str(), second_uri.as_str()];
    let load = blkload("run", &uris, &journal, options).spawn().unwrap();
    wait_for_acks(&journal, 100);
    drop(first);
    let second = Server::on_disk(&second_socket, &disk);
    let outcome = Outcome::of(load.wait_with_output().unwrap()).expect(0);
    assert_eq!(outcome.number("tenure_changes"), 1, "{}", outcome.text);
    assert!(outcome.number("first_ack_after_unix_ms") >= outcome.number("lost_unix_ms"));
    verify(&second.uri, &journal, "").expect(0);
}

#[test]
fn a_killed_client_leaves_a_journal_that_goes_on() {
    let scratch = Scratch::new("killed");
    let journal = scratch.path("j");
    // With more threads nbdkit 1.32.5 may abort: one sends on the socket that another has closed.
    let server = Server::start(&scratch.path("s"), &["--threads", "1", "memory", "8M"]);
    let mut load = blkload("run", &[&server.uri], &journal, "--seconds 60").spawn().unwrap();
    wait_for_acks(&journal, 100);
    load.kill().unwrap();
    load.wait().unwrap();
    verify(&server.uri, &journal, "").expect(0);
    run(&server.uri, &journal, "--seconds 0.4").expect(0);
    verify(&server.uri, &journal, "").expect(0);
}

#[test]
fn failed_writes_are_of_unknown_outcome() {
    let scratch = Scratch::new("errors");
    let journal = scratch.path("j");
    let words = ["--filter=error", "memory", "8M", "error-pwrite=EIO", "error-pwrite-rate=20%"];
    let server = Server::start(&scratch.path("s"), &words);
    let outcome = run(&server.uri, &journal, "--seconds 1").expect(0);
    assert!(outcome.number("errors") > 0);
    assert!(outcome.number("unknown_writes") > 0);
    verify(&server.uri, &journal, "").expect(0);
}

#[test]
fn a_missing_server_is_no_success() {
    let scratch = Scratch::new("missing");
    let uri = format!("unix:{}:", scratch.path("nobody").display());
    run(&uri, &scratch.path("j"), "--seconds 1").expect(2);
}

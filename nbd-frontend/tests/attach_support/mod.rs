//! A server of one file in a process of its own, so that tests can kill it; and waiting for things.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Generous: a wait ends as soon as its condition holds, and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// False, with a word on the terminal, when the test cannot run here.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// One device and all that belongs to it. Whatever a test leaves is torn down when this is dropped.
pub struct Device {
    pub dir: PathBuf,
    name: String,
    settings: Vec<String>,
    server: Option<Server>,
}

struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Device {
    /// A file of `size_mib` to serve, not served yet.
    pub fn new(name: &str, size_mib: u64, settings: &[&str]) -> Self {
        let dir = PathBuf::from(format!("/var/tmp/attach-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("mnt")).unwrap();
        File::create(dir.join("disk")).unwrap().set_len(size_mib << 20).unwrap();
        let mut all = vec![
            format!("resource={name}"),
            format!("uuid={name}-{}", std::process::id()),
            format!("runtime={}", dir.join("run").display()),
            format!("devices={}", dir.join("dev").display()),
        ];
        all.extend(settings.iter().map(|setting| (*setting).to_owned()));
        Self { dir, name: name.to_owned(), settings: all, server: None }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("dev").join(&self.name)
    }

    /// The link of partition `number`.
    pub fn partition(&self, number: u32) -> PathBuf {
        self.dir.join("dev").join(format!("{}p{number}", self.name))
    }

    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// The kernel's name of the device, from the link.
    pub fn kernel_name(&self) -> String {
        let target = fs::read_link(self.path()).unwrap();
        target.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-attach-file"));
        command.args(words).args(&self.settings).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts a server and waits until the device is there; gives the line it says then.
    pub fn start(&mut self) -> String {
        let serve = self.serve_command();
        self.start_by(serve)
    }

    pub fn serve_command(&self) -> Command {
        self.command(&["serve", self.dir.join("disk").to_str().unwrap()])
    }

    /// Starts a server by this command.
    pub fn start_by(&mut self, mut command: Command) -> String {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        self.server = Some(Server { child, stdout });
        let line = self.line();
        assert!(line.starts_with("ready "), "no device: {line:?}\n{}", self.log());
        line
    }

    /// The next line of the server; empty when it has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let server = self.server.as_mut().expect("a running server");
        server.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What all servers of this device have said on stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("a running server");
        kill(Pid::from_raw(server.child.id() as i32), signal).unwrap();
    }

    /// Waits for the server's end; whether it ended well.
    pub fn wait(&mut self) -> bool {
        let mut server = self.server.take().expect("a running server");
        let mut ended = None;
        wait_until("the end of the server", || {
            ended = server.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().success()
    }

    /// SIGKILL, as a crash would.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Detaches in good order.
    pub fn detach(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.wait(), "detach failed: {}", self.log());
    }

    /// Fails what a crashed server left; what was found.
    pub fn fail_leftovers(&self) -> String {
        text(self.command(&["fail"]).output().unwrap())
    }

    pub fn mount(&self, source: &Path) {
        run("mount", &[source.to_str().unwrap(), self.mount_point().to_str().unwrap()]);
    }

    pub fn unmount(&self) {
        run("umount", &[self.mount_point().to_str().unwrap()]);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.name, self.log());
        }
        let _ = self.command(&["fail"]).output();
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).output();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a program that must succeed; what it says.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program}: {error}");
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(output));
    text(output)
}

fn text(output: Output) -> String {
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

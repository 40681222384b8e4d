//! What the tests stand on: a directory of their own, loop devices, waiting with a deadline.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use failover::services::{Home, Site};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory of one test, removed with it.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("replicator-kinds-{name}-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn home(&self, device: &Path) -> Home {
        Home {
            run_dir: self.path("run"),
            node: "alpha".into(),
            device: device.to_owned(),
            ocf_root: self.path("ocf"),
        }
    }

    /// A file with that text that can be run.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn site(device: &Path) -> Site {
    Site { device: device.to_owned(), resource: "db".into(), node: "alpha".into() }
}

/// Whether this test can run here; says so when not.
pub fn is_root(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped, needs root: {test}");
    }
    is_root
}

/// Runs a program that must succeed; its standard output.
pub fn shell(line: &str) -> String {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {:?}: {said}", done.status);
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .unwrap()
        .status
        .success()
}

/// Waits until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is polled beside the caller has had its turn when this ends, whichever is polled first: a
/// watcher holds what it watches.
pub async fn its_turn() {
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

/// At most the patience of the tests.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("takes too long: {what}"),
    }
}

/// A process runs while it is not dead and not a zombie.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, tail)| !tail.starts_with(['Z', 'X']))
}

/// The number in a file that a script wrote.
pub async fn pid_in(path: &Path) -> i32 {
    let read = || fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    until(&format!("a number in {}", path.display()), || read().is_some()).await;
    read().unwrap()
}

/// One for each disk. Who has all of them knows that no other test has mounted anything: a
/// namespace made now holds no mount of theirs.
static DISKS: Semaphore = Semaphore::const_new(DISKS_MAX as usize);
const DISKS_MAX: u32 = 100;

/// A file of a few MiB behind a loop device, detached with the test.
pub struct Disk {
    pub device: PathBuf,
    pub image: PathBuf,
    _counted: SemaphorePermit<'static>,
}

impl Disk {
    /// With what a line of shell makes on `$DISK`.
    pub fn new(place: &Place, name: &str, mkfs: &str) -> Self {
        let image = place.path(name);
        let file = fs::File::create(&image).unwrap();
        file.set_len(128 << 20).unwrap();
        if !mkfs.is_empty() {
            shell(&format!("DISK={}; {mkfs} >/dev/null", image.display()));
        }
        Self::of(image)
    }

    /// Of an image that is there.
    pub fn of(image: PathBuf) -> Self {
        let counted = permits(1);
        let device = shell(&format!("losetup -f --show {}", image.display())).into();
        Self { device, image, _counted: counted }
    }

    /// Waits until this is the only disk; it stays so until the end of what is returned. Its own
    /// test must not ask for another one meanwhile.
    pub fn alone(&self) -> SemaphorePermit<'static> {
        permits(DISKS_MAX - 1)
    }

    pub fn ext4(place: &Place, name: &str) -> Self {
        Self::new(place, name, "mkfs.ext4 -q -F $DISK")
    }
}

/// Tests run on threads of their own, and one may have several disks: who waits for many must not
/// be in the way of who needs one more.
fn permits(count: u32) -> SemaphorePermit<'static> {
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        if let Ok(permits) = DISKS.try_acquire_many(count) {
            return permits;
        }
        assert!(Instant::now() < deadline, "other tests keep their disks");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let device = self.device.display();
        let line = format!(
            "for p in $(findmnt -rno TARGET -S {device}); do umount -l $p; done; \
             blockdev --setrw {device}; losetup -d {device}"
        );
        let _ = Command::new("sh").args(["-c", &line]).output();
    }
}

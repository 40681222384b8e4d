//! Kind `filesystem`: the file system on the resource's device, mounted by mount(8) so that every
//! type has its helper, and believed only when mountinfo shows it.
//!
//! ```text
//!   mounts.rs   mountinfo
//!   holders.rs  who keeps it busy
//!   fsck.rs     whether it is checked before the mount
//!   unmount.rs  the stop: umount, then whoever hinders it
//! ```

mod fsck;
mod holders;
mod mounts;
mod unmount;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use failover_core::Span;
use failover_core::services::FsckPolicy;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use self::fsck::Check;
use self::holders::Wanted;
use self::mounts::{DeviceNumber, Mount, device_number, top_at};
use super::pidfd::attend;
use super::process::{Leftovers, Order, Run, WordsFile, run};
use super::scope::Scope;
use super::{Change, Condition, Doing, Failure, Force, Home, Service, Site};

/// How long a check before the mount may take: a day, for the largest there are.
const CHECK_LIMIT: Span = Span::from_ms(86_400_000);

/// One file system as a service.
pub struct Filesystem {
    point: PathBuf,
    fs_type: Option<String>,
    options: Vec<String>,
    policy: FsckPolicy,
    device: PathBuf,
    /// mount, umount and fsck.
    asking: Scope,
    words: WordsFile,
    /// The device number at the mount, for a stop after a restart of the daemon.
    memory: PathBuf,
    known: Mutex<Known>,
    /// Whether it is to be mounted now.
    is_wanted: watch::Sender<bool>,
    /// Whoever is told of changes, also of what a start does.
    told: Mutex<Option<UnboundedSender<Change>>>,
}

#[derive(Default)]
struct Known {
    device: Option<DeviceNumber>,
    /// Mounts of it that were detached: still in use, and in no mountinfo any more.
    detached: Wanted,
    /// It was read-only at the last look: told once.
    was_read_only: bool,
}

/// What is configured for one file system.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Where it is mounted.
    pub mount_point: &'a str,
    /// As `mount -t` knows it.
    pub fs_type: Option<&'a str>,
    /// As `mount -o` takes them.
    pub options: &'a [String],
    /// What is done before the mount.
    pub fsck: FsckPolicy,
}

impl Filesystem {
    /// A service of `resource`.
    pub fn new(home: &Home, resource: &str, name: &str, wish: Wish<'_>) -> Self {
        let dir = &home.run_dir;
        let memory = super::scope::file_name(&format!("{resource}.{name}.device"));
        Self {
            point: wish.mount_point.into(),
            fs_type: wish.fs_type.map(str::to_owned),
            options: wish.options.to_vec(),
            policy: wish.fsck,
            device: home.device.clone(),
            asking: Scope::new(dir, resource, name, "ask"),
            words: WordsFile::new(dir, resource, name, "mount"),
            memory: dir.join("services").join(memory),
            known: Mutex::default(),
            is_wanted: watch::channel(false).0,
            told: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the device: as it is now, else as it was at the mount.
    fn number(&self) -> Option<DeviceNumber> {
        let remembered = || {
            let text = fs::read_to_string(&self.memory).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let at_mount = self.known().device;
        at_mount.or_else(remembered).or_else(|| device_number(&self.device))
    }

    fn remember(&self, number: DeviceNumber) {
        self.known().device = Some(number);
        // A restarted daemon must know it: the device of an office that was lost meanwhile has no
        // name any more when its mount has to go.
        if let Some(dir) = self.memory.parent() {
            let _ = fs::create_dir_all(dir);
        }
        let _ = fs::write(&self.memory, format!("{}:{}\n", number.0, number.1));
    }

    fn forget(&self) {
        *self.known() = Known::default();
        let _ = fs::remove_file(&self.memory);
    }

    fn wants_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<Run, Failure> {
        let order = Order {
            program: program.into(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            environment: vec![("LC_ALL".into(), "C".into())],
        };
        // A helper of FUSE stays: it is the file system.
        let leftovers = if program == "mount" { Leftovers::Stay } else { Leftovers::Kill };
        let done = run(&order, &self.asking, &self.words, leftovers).await;
        done.map_err(|error| Failure {
            code: "program_missing".into(),
            why: format!("{program} could not be run: {error}"),
            next: format!("is {program} installed, and is /run writable and not full?"),
            is_permanent: error.kind() == std::io::ErrorKind::NotFound,
        })
    }

    async fn start_it(&self, site: &Site) -> Result<(), Failure> {
        let device = &site.device;
        let Some(number) = device_number(device) else {
            return Err(Failure {
                code: "device_missing".into(),
                why: format!("{} is not there, or no block device", device.display()),
                next: format!("see `replctl status {}` why it is not attached", site.resource),
                is_permanent: false,
            });
        };
        let mounts = mounts::own();
        if self.is_mounted_already(&mounts, number)? {
            self.remember(number);
            self.is_wanted.send_replace(true);
            return Ok(());
        }
        fs::create_dir_all(&self.point).map_err(|error| Failure {
            code: "mount_point_missing".into(),
            why: format!("the directory {} cannot be made: {error}", self.point.display()),
            next: "make it by hand".into(),
            is_permanent: true,
        })?;
        self.check_before(device).await?;
        self.remember(number);
        self.mount(device).await?;
        self.verify(device, number).await?;
        self.is_wanted.send_replace(true);
        Ok(())
    }

    /// Whether there is nothing to do; an error when something else is in the way.
    fn is_mounted_already(&self, mounts: &[Mount], number: DeviceNumber) -> Result<bool, Failure> {
        let in_the_way = |code: &str, mount: &Mount, next: String| Failure {
            code: code.into(),
            why: format!("{} is in the way of {}", mount.label(), self.point.display()),
            next,
            is_permanent: true,
        };
        let umount = |mount: &Mount| format!("umount {}", mount.point.display());
        if let Some(top) = top_at(mounts, &self.point) {
            if !top.is_on(number) {
                return Err(in_the_way("mount_point_taken", top, umount(top)));
            }
            if top.is_read_only && !self.wants_read_only() {
                let next = format!("{}; the next start mounts it anew", umount(top));
                return Err(in_the_way("mounted_read_only", top, next));
            }
            return Ok(true);
        }
        // Subvolumes of one btrfs are several services.
        let elsewhere = mounts.iter().find(|mount| mount.is_on(number) && mount.fs_type != "btrfs");
        match elsewhere {
            Some(mount) => Err(in_the_way("mounted_elsewhere", mount, umount(mount))),
            None => Ok(false),
        }
    }

    async fn check_before(&self, device: &Path) -> Result<(), Failure> {
        let (policy, fs_type) = (self.policy, self.fs_type.clone());
        let path = device.to_owned();
        let look = move || fsck::check(policy, fs_type.as_deref(), &path);
        let check = tokio::task::spawn_blocking(look).await.unwrap_or(Check::None);
        let shown = device.display().to_string();
        let fs_type = match check {
            Check::None => return Ok(()),
            Check::Repair(fs_type) => fs_type.to_owned(),
            Check::ByType => self.fs_type.clone().unwrap_or_default(),
        };
        // As long as it is large: killed midway it would begin anew here and on every other node.
        let what = format!("fsck.{fs_type} -p {shown} runs: the file system is checked first");
        self.say(Change::Step { what, limit: Some(CHECK_LIMIT) });
        let run = self.run(&format!("fsck.{fs_type}"), &["-p", &shown]).await;
        self.say(Change::Step { what: String::new(), limit: None });
        let run = run?;
        fsck::verdict(run.code()).map_err(|what| Failure {
            code: "fsck_failed".into(),
            why: format!("fsck.{fs_type} -p {shown} {what}; it {}", run.story()),
            next: format!(
                "run `fsck.{fs_type} {shown}` by hand where {shown} is primary and not mounted, \
                 after `replctl pause`; keep a copy of the disk first"
            ),
            // The other node has the same blocks, but only here it is known.
            is_permanent: true,
        })
    }

    fn say(&self, change: Change) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.as_ref() {
            // Nobody listens any more: then nobody waits either.
            let _ = told.send(change);
        }
    }

    async fn mount(&self, device: &Path) -> Result<(), Failure> {
        let (device, point) = (device.display().to_string(), self.point.display().to_string());
        let options = self.options.join(",");
        let mut arguments = Vec::new();
        if let Some(fs_type) = &self.fs_type {
            arguments.extend(["-t", fs_type]);
        }
        if !options.is_empty() {
            arguments.extend(["-o", &options]);
        }
        arguments.extend([device.as_str(), &point]);
        let run = self.run("mount", &arguments).await?;
        if run.code() == Some(0) {
            return Ok(());
        }
        let story = run.story();
        let wrong_type = story.contains("wrong fs type") || story.contains("unknown filesystem");
        let next = match story.contains("needs cleaning") {
            true => {
                "the file system is damaged: `xfs_repair -n` shows what is wrong with it".into()
            }
            false if wrong_type => format!(
                "see with `blkid {device}` what is on it; a new resource has no file system before \
                 `mkfs`"
            ),
            false => format!("see the kernel's words with `dmesg`; try `mount {device} {point}`"),
        };
        let why = format!("mount of {device} on {point} {story}");
        Err(Failure { code: "mount_failed".into(), why, next, is_permanent: wrong_type })
    }

    /// Believes nothing that mountinfo does not show.
    async fn verify(&self, device: &Path, number: DeviceNumber) -> Result<(), Failure> {
        let mounts = mounts::own();
        let (shown, point) = (device.display(), self.point.display());
        let top = top_at(&mounts, &self.point).filter(|top| top.is_on(number));
        let Some(top) = top else {
            return Err(Failure {
                code: "mount_not_seen".into(),
                why: format!(
                    "mount said that {shown} is on {point}, and mountinfo does not show it"
                ),
                next: format!("see `findmnt {point}`; does a helper mount it in a namespace?"),
                is_permanent: false,
            });
        };
        if top.is_read_only && !self.wants_read_only() {
            let label = top.label();
            self.unmount(Force::Orderly).await?;
            return Err(Failure {
                code: "mounted_read_only".into(),
                why: format!("{label} could be mounted read-only only"),
                next: "see the kernel's words with `dmesg`; is the device write-protected?".into(),
                is_permanent: false,
            });
        }
        Ok(())
    }

    async fn condition(&self) -> Result<Condition, Failure> {
        let condition = self.look();
        if matches!(condition, Condition::Stopped) {
            return Ok(condition);
        }
        if !self.is_wanted.borrow().to_owned() && matches!(condition, Condition::Running) {
            // Found mounted by a daemon that was restarted.
            self.is_wanted.send_replace(true);
        }
        // Opening its root shows a file system that has shut itself down.
        let point = self.point.display().to_string();
        let run = self.run("/bin/sh", &["-c", "exec 3<\"$1\"", "sh", &point]).await?;
        match run.code() {
            Some(0) => Ok(condition),
            _ => Err(Failure {
                code: "not_readable".into(),
                why: format!("{point} is mounted and cannot be read: {}", run.story()),
                next: "see the kernel's words with `dmesg`".into(),
                is_permanent: false,
            }),
        }
    }

    /// What mountinfo shows now.
    fn look(&self) -> Condition {
        let mounts = mounts::own();
        let number = self.number();
        let is_ours = |mount: &&Mount| number.is_some_and(|number| mount.is_on(number));
        match top_at(&mounts, &self.point).filter(is_ours) {
            None => Condition::Stopped,
            Some(mount) if mount.is_read_only && !self.wants_read_only() => {
                Condition::Degraded(format!("{} has become read-only", mount.label()))
            }
            Some(_) => {
                if self.known().device.is_none() {
                    self.known().device = number;
                }
                Condition::Running
            }
        }
    }

    /// Tells what happens to the mount while it is wanted.
    async fn tell(&self, changes: UnboundedSender<Change>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(changes.clone());
        let mut wanted = self.is_wanted.subscribe();
        loop {
            if wanted.wait_for(|wanted| *wanted).await.is_err() {
                return;
            }
            let mut alarm = Alarm::new(self.number());
            while *wanted.borrow_and_update() {
                if let Some(change) = self.change() {
                    let is_over = matches!(change, Change::StoppedByHand(_));
                    if changes.send(change).is_err() || is_over {
                        self.is_wanted.send_replace(false);
                        break;
                    }
                }
                tokio::select! {
                    () = alarm.rings() => {}
                    changed = wanted.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    fn change(&self) -> Option<Change> {
        match self.look() {
            Condition::Stopped => {
                let point = self.point.display();
                Some(Change::StoppedByHand(format!("{point} was unmounted by somebody else")))
            }
            Condition::Degraded(what) => {
                let was_read_only = std::mem::replace(&mut self.known().was_read_only, true);
                (!was_read_only).then_some(Change::Warning(what))
            }
            _ => {
                self.known().was_read_only = false;
                None
            }
        }
    }
}

/// Rings when the kernel changed a mount, or saw an error of ext4 (which tells no mount table).
struct Alarm(Vec<AsyncFd<OwnedFd>>);

impl Alarm {
    fn new(device: Option<DeviceNumber>) -> Self {
        let mut paths = vec![PathBuf::from("/proc/self/mountinfo")];
        let block = device.map(|(major, minor)| format!("/sys/dev/block/{major}:{minor}"));
        let name = block.and_then(|link| fs::canonicalize(link).ok());
        if let Some(name) = name.as_deref().and_then(Path::file_name) {
            paths.push(Path::new("/sys/fs/ext4").join(name).join("errors_count"));
        }
        let watched = paths.iter().filter_map(|path| {
            let file = fs::File::open(path).ok()?;
            // An attribute of sysfs rings only after it was read.
            let _ = std::io::Read::read_to_end(&mut &file, &mut Vec::new());
            let interest = Interest::PRIORITY | Interest::ERROR;
            attend(OwnedFd::from(file), interest).ok()
        });
        Self(watched.collect())
    }

    async fn rings(&mut self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let interest = Interest::PRIORITY | Interest::ERROR;
        let waits = self.0.iter().map(|fd| Box::pin(fd.ready(interest)));
        let (ready, index, _) = futures_util::future::select_all(waits).await;
        if let Ok(mut guard) = ready {
            guard.clear_ready();
        }
        let file = self.0[index].get_ref();
        // Read again from the start, so that the next change rings.
        let _ = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekSet);
        let mut buffer = [0; 4096];
        while nix::unistd::read(file, &mut buffer).is_ok_and(|count| count > 0) {}
    }
}

impl Service for Filesystem {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async {
            let Some(fs_type) = &self.fs_type else { return Ok(()) };
            let helper = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
                .iter()
                .any(|dir| Path::new(dir).join(format!("mount.{fs_type}")).exists());
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
            let is_known = known.lines().any(|line| line.split('\t').next_back() == Some(fs_type));
            if helper || is_known {
                return Ok(());
            }
            // Not loaded yet is no reason to complain; not there at all is.
            let run =
                self.run("modprobe", &["--dry-run", "--quiet", &format!("fs-{fs_type}")]).await;
            match run {
                Ok(run) if run.code() != Some(0) => Err(Failure {
                    code: "type_unknown".into(),
                    why: format!("this kernel knows no file system {fs_type:?}"),
                    next: "install its package, or correct `type`".into(),
                    is_permanent: true,
                }),
                _ => Ok(()),
            }
        })
    }

    fn start<'a>(&'a self, site: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.start_it(site))
    }

    fn stop(&self, force: Force) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async move {
            self.is_wanted.send_replace(false);
            self.unmount(force).await
        })
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(self.condition())
    }

    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()> {
        Box::pin(self.tell(changes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_started_again_knows_the_device_that_has_no_name_any_more() {
        let dir = std::env::temp_dir().join(format!("replicator-mount-{}", std::process::id()));
        let home = Home {
            run_dir: dir.clone(),
            node: "alpha".into(),
            device: dir.join("gone"),
            ocf_root: "/usr/lib/ocf".into(),
        };
        let wish = Wish {
            mount_point: "/srv/x",
            fs_type: Some("ext4"),
            options: &[],
            fsck: FsckPolicy::Auto,
        };
        // Nothing was run before the first mount, so nothing else has made the directory.
        Filesystem::new(&home, "x", "fs", wish).remember((7, 22));
        assert_eq!(Filesystem::new(&home, "x", "fs", wish).number(), Some((7, 22)));
        fs::remove_dir_all(dir).unwrap();
    }
}

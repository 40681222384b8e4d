//! The stop of a file system: umount first; when it is busy, whoever holds it is asked to go,
//! killed, and kept from coming back; and it is said to be stopped only when the kernel has let the
//! device go.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::mount::MntFlags;
use nix::sys::signal::Signal;

use super::super::pidfd::PidFd;
use super::super::processes::{self, Process, names};
use super::super::{Failure, Force};
use super::Filesystem;
use super::holders::{self, Found, Wanted};
use super::mounts::{self, DeviceNumber, Mount};

/// How often a busy mount is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long holders have after SIGTERM before an orderly stop names them.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
/// A holder may be gone between umount and look; so many times nobody, and it is the kernel.
const LOOKS_IN_VAIN: u32 = 5;
/// How long killed holders may take, and the device to be let go after its last mount.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Rounds of SIGKILL after which the mount is taken out of the reach of what respawns.
const KILL_ROUNDS: u32 = 3;

impl Filesystem {
    /// Unmounts it, as hard as asked.
    pub(super) async fn unmount(&self, force: Force) -> Result<(), Failure> {
        let Some(number) = self.number() else { return self.without_device() };
        match force {
            Force::Orderly => self.unmount_orderly(number).await?,
            Force::Kill => self.unmount_killing(number).await?,
            Force::Detach => self.detach(number)?,
        }
        self.await_release(number, force).await?;
        self.forget();
        Ok(())
    }

    /// Nobody knows the device, now or from the mount: then what is mounted there is not ours.
    fn without_device(&self) -> Result<(), Failure> {
        let mounts = mounts::own();
        match mounts::top_at(&mounts, &self.point) {
            None => Ok(()),
            Some(top) => Err(Failure {
                code: "foreign_mount".into(),
                why: format!("{} is mounted, and is not this resource's device", top.label()),
                next: format!("see whose it is, then umount {}", top.point.display()),
                is_permanent: true,
            }),
        }
    }

    async fn unmount_orderly(&self, number: DeviceNumber) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + TERM_PATIENCE;
        let mut asked: Vec<Process> = Vec::new();
        let mut looks_in_vain = 0;
        while let Some(mount) = self.mounted(number) {
            let story = match self.umount(&mount).await? {
                None => continue,
                Some(story) => story,
            };
            let found = self.find(number).await;
            looks_in_vain += u32::from(found.holders.is_empty());
            if tokio::time::Instant::now() > deadline || looks_in_vain > LOOKS_IN_VAIN {
                return Err(busy(&mount, &found, &story, "SIGTERM"));
            }
            let new = found.holders.into_iter().filter(|it| !asked.contains(it));
            let new: Vec<Process> = new.collect();
            new.iter().for_each(|holder| signal(holder, Signal::SIGTERM));
            asked.extend(new);
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    async fn unmount_killing(&self, number: DeviceNumber) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + KILL_PATIENCE;
        let mut rounds = 0;
        while let Some(mount) = self.any_mounted(number) {
            let Some(story) = self.umount(&mount).await? else { continue };
            self.umount_what_is_on(&mount).await?;
            let found = self.find(number).await;
            if found.holders.is_empty() {
                if tokio::time::Instant::now() > deadline {
                    return Err(busy(&mount, &found, &story, "SIGKILL"));
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
            rounds += 1;
            if rounds > KILL_ROUNDS {
                // Whatever starts again and again finds nothing there any more.
                return self.detach(number);
            }
            kill_and_wait(found.holders).await;
        }
        Ok(())
    }

    /// Its mount at the place where it belongs.
    fn mounted(&self, number: DeviceNumber) -> Option<Mount> {
        let mounts = mounts::own();
        let at_point = |mount: &Mount| mount.point == self.point && mount.is_on(number);
        mounts.into_iter().rev().find(at_point)
    }

    /// Any mount of the device: bind mounts keep it as busy as the first one. With btrfs the other
    /// mounts are other services.
    fn any_mounted(&self, number: DeviceNumber) -> Option<Mount> {
        let mounts = mounts::own();
        let is_ours = |mount: &Mount| {
            mount.is_on(number) && (mount.point == self.point || mount.fs_type != "btrfs")
        };
        mounts.into_iter().rev().find(is_ours)
    }

    /// Runs umount; its story when the mount is still there.
    async fn umount(&self, mount: &Mount) -> Result<Option<String>, Failure> {
        let point = mount.point.display().to_string();
        let run = self.run("umount", &[&point]).await?;
        let is_there = mounts::own().iter().any(|other| other.id == mount.id);
        Ok(is_there.then(|| run.story()))
    }

    async fn umount_what_is_on(&self, mount: &Mount) -> Result<(), Failure> {
        let all = mounts::own();
        for other in all.iter().rev().filter(|other| other.parent == mount.id) {
            self.umount(other).await?;
        }
        Ok(())
    }

    /// Looks for holders in a thread of its own: it may have to wait for others' file systems.
    async fn find(&self, number: DeviceNumber) -> Found {
        let mut wanted = self.known().detached.clone();
        wanted.device = Some(number);
        let all = mounts::own();
        let is_root = mounts::top_at(&all, Path::new("/")).is_some_and(|it| it.is_on(number));
        if is_root {
            // Everything on this machine would be a holder.
            return Found::default();
        }
        let look = move || {
            holders::add_mounts(&mut wanted);
            holders::find(&wanted)
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Takes all its mounts out of sight. What is open stays open, and is looked for by number.
    fn detach(&self, number: DeviceNumber) -> Result<(), Failure> {
        let mut wanted = Wanted { device: Some(number), ..Wanted::default() };
        holders::add_mounts(&mut wanted);
        self.known().detached.mounts.append(&mut wanted.mounts);
        // As many as there are, and no more, should one not go away.
        for _ in 0..mounts::own().len() {
            let Some(mount) = self.any_mounted(number) else { break };
            let flags = MntFlags::MNT_DETACH | MntFlags::MNT_FORCE;
            let done = nix::mount::umount2(&mount.point, flags)
                .or_else(|_| nix::mount::umount2(&mount.point, MntFlags::MNT_DETACH));
            if let Err(errno) = done {
                return Err(Failure {
                    code: "umount_failed".into(),
                    why: format!("{} cannot even be detached: {errno}", mount.label()),
                    next: "only a reboot of this node helps".into(),
                    is_permanent: false,
                });
            }
        }
        Ok(())
    }

    /// Waits until nobody has the device mounted in any namespace: the kernel's own word, by an
    /// exclusive open. Holders that are left are killed, if that was asked for.
    async fn await_release(&self, number: DeviceNumber, force: Force) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + KILL_PATIENCE;
        let shared = |mount: &Mount| mount.is_on(number) && mount.fs_type == "btrfs";
        let mut tried: Vec<Process> = Vec::new();
        loop {
            if is_free(&self.device, number) || mounts::own().iter().any(shared) {
                return Ok(());
            }
            let found = self.find(number).await;
            if tokio::time::Instant::now() > deadline {
                return Err(self.held(number, &found));
            }
            if force != Force::Orderly && self.any_mounted(number).is_none() {
                self.umount_elsewhere(&found).await?;
                // Who stays in the way after that is killed too.
                let elsewhere = found.elsewhere.into_iter().filter(|it| tried.contains(it));
                kill_and_wait(found.holders.into_iter().chain(elsewhere).collect()).await;
                tried = self.find(number).await.elsewhere;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Unmounts it in the namespaces of others, which does their processes no other harm.
    async fn umount_elsewhere(&self, found: &Found) -> Result<(), Failure> {
        for (pid, point) in found.mounts_elsewhere.iter().rev() {
            let (pid, point) = (pid.to_string(), point.display().to_string());
            self.run("nsenter", &["-t", &pid, "-m", "umount", "-l", &point]).await?;
        }
        Ok(())
    }

    fn held(&self, number: DeviceNumber, found: &Found) -> Failure {
        let device = self.device.display();
        let mounts = mounts::own();
        let others: Vec<String> =
            mounts.iter().filter(|mount| mount.is_on(number)).map(Mount::label).collect();
        let by = match (&found.holders[..], &found.elsewhere[..]) {
            _ if !others.is_empty() => others.join(", "),
            ([], []) => "the kernel; nobody was found".into(),
            ([], elsewhere) => format!("mounts in the namespaces of {}", names(elsewhere)),
            (holders, _) => format!("{}{}", names(holders), stuck(holders)),
        };
        Failure {
            code: "device_held".into(),
            why: format!("{device} is still in use after the umount, by {by}"),
            next: match others.first() {
                Some(_) => "umount what is named; `umount` of a bind mount does no harm".into(),
                None => "end the processes that are named".into(),
            },
            is_permanent: false,
        }
    }
}

/// Whether no file system has claimed the device. Without its name, as after an office that was
/// taken away, it is known by its number only: what was detached may still hold it.
fn is_free(device: &Path, number: DeviceNumber) -> bool {
    if mounts::device_number(device) == Some(number) {
        return is_unclaimed(device);
    }
    // The kernel gives a number again: by now it may be another resource's.
    let names =
        std::fs::read_dir(device.parent().unwrap_or(device)).into_iter().flatten().flatten();
    let is_of_another = names
        .into_iter()
        .filter(|name| name.file_type().is_ok_and(|it| it.is_symlink()))
        .any(|name| mounts::device_number(&name.path()) == Some(number));
    let link = format!("/sys/dev/block/{}:{}", number.0, number.1);
    let kernels_name = std::fs::canonicalize(link).ok();
    let node =
        kernels_name.as_deref().and_then(Path::file_name).map(|it| Path::new("/dev").join(it));
    is_of_another || node.is_none_or(|node| is_unclaimed(&node))
}

/// One that is not there any more is free.
fn is_unclaimed(device: &Path) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    !opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn signal(process: &Process, signal: Signal) {
    if let Ok(held) = PidFd::open(process.pid)
        && process.lives()
    {
        let _ = held.signal(signal);
    }
}

/// Kills all of them and waits, at most a little, until they have let go.
async fn kill_and_wait(victims: Vec<Process>) {
    let mut ends = Vec::new();
    for victim in &victims {
        if let Ok(held) = PidFd::open(victim.pid)
            && victim.lives()
        {
            let _ = held.signal(Signal::SIGKILL);
            ends.push(held.ended());
        }
    }
    let all = futures_util::future::join_all(ends);
    let _ = tokio::time::timeout(RETRY * 10, all).await;
}

fn busy(mount: &Mount, found: &Found, story: &str, after: &str) -> Failure {
    let users = holders::kernel_users(mount, &mounts::own());
    let (by, next) = match (&found.holders[..], &users[..]) {
        ([], []) => (String::new(), format!("see `fuser -vm {}`", mount.point.display())),
        ([], users) => (format!("; {}", users.join("; ")), "end what is named".into()),
        (holders, _) => {
            let words = format!("; {} had {after} and still use it", names(holders));
            (words + &stuck(holders), "end them, or let a service in front of it stop them".into())
        }
    };
    Failure {
        code: "umount_busy".into(),
        why: format!("umount of {} {story}{by}", mount.point.display()),
        next,
        is_permanent: false,
    }
}

/// Where in the kernel the first of them waits, if it does.
fn stuck(holders: &[Process]) -> String {
    let place = holders.first().and_then(|first| processes::waits_in(first.pid));
    place.map(|place| format!(", which waits in {place}")).unwrap_or_default()
}

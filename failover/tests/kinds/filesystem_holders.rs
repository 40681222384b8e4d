//! The stop of a file system that somebody holds: who it is, and that nothing is called stopped
//! while the device is in use (V3).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use failover::core::services::FsckPolicy;
use failover::services::{Condition, Force, Service};

use super::bench::{Disk, Place, is_root, lives, pid_in, shell, site, soon, until};
use super::filesystem::{filesystem, source_at};

struct Mounted {
    service: Box<dyn Service>,
    point: PathBuf,
    disk: Disk,
    place: Place,
}

async fn mounted(name: &str) -> Mounted {
    let place = Place::new(name);
    let disk = Disk::ext4(&place, "a.img");
    let point = place.path("point");
    let service = filesystem(&place.home(&disk.device), &point, "ext4", FsckPolicy::Auto);
    service.start(&site(&disk.device)).await.unwrap();
    Mounted { service, point, disk, place }
}

/// Whether any file system has claimed the device, in whatever namespace.
fn is_free(device: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device).is_ok()
}

/// A process of the test, killed with it.
struct Holder(Child);

impl Holder {
    fn new(line: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdin(Stdio::null()).process_group(0);
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn whoever_ends_at_sigterm_is_no_obstacle() {
    if !is_root("whoever_ends_at_sigterm_is_no_obstacle") {
        return;
    }
    let it = mounted("term").await;
    let point = it.point.display();
    fs::copy("/bin/sleep", it.point.join("sleep")).unwrap();
    // A directory, an open file, a running program.
    let mut holders: Vec<Holder> = [
        format!("cd {point} && exec sleep 1000"),
        format!("exec 3>{point}/open; exec sleep 1000"),
        format!("exec {point}/sleep 1000"),
    ]
    .iter()
    .map(|line| Holder::new(line))
    .collect();
    let bystander = Holder::new("cd /tmp && exec sleep 1000");
    until("all three run", || {
        holders.iter().all(|holder| {
            fs::read_to_string(format!("/proc/{}/comm", holder.pid())).unwrap().trim() == "sleep"
        })
    })
    .await;
    soon("stop", it.service.stop(Force::Orderly)).await.unwrap();
    assert_eq!(source_at(&it.point), "");
    assert!(is_free(&it.disk.device));
    for holder in &mut holders {
        let ended = holder.0.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(15));
    }
    assert!(lives(bystander.pid()));
}

#[tokio::test]
async fn v3_a_stubborn_holder_is_named_and_then_killed() {
    if !is_root("v3_a_stubborn_holder_is_named_and_then_killed") {
        return;
    }
    let it = mounted("stubborn").await;
    let line = format!("trap '' TERM; cd {} && while :; do sleep 1000; done", it.point.display());
    let holder = Holder::new(&line);
    until("it is there", || {
        fs::read_link(format!("/proc/{}/cwd", holder.pid())).is_ok_and(|cwd| cwd == it.point)
    })
    .await;
    let failure = soon("stop", it.service.stop(Force::Orderly)).await.unwrap_err();
    assert_eq!(failure.code, "umount_busy");
    let named = format!("sh ({})", holder.pid());
    assert!(
        failure.why.contains(&named) && failure.why.contains("target is busy"),
        "{}",
        failure.why
    );
    assert!(lives(holder.pid()));
    assert_eq!(it.service.monitor().await, Ok(Condition::Running));
    soon("kill", it.service.stop(Force::Kill)).await.unwrap();
    until("it is dead", || !lives(holder.pid())).await;
    assert!(is_free(&it.disk.device));
    assert_eq!(source_at(&it.point), "");
}

#[tokio::test]
async fn v3_a_process_that_respawns_on_the_mount_does_not_keep_it() {
    if !is_root("v3_a_process_that_respawns_on_the_mount_does_not_keep_it") {
        return;
    }
    let it = mounted("respawn").await;
    // Five supervisors, each with a child on the mount again within a millisecond of its death.
    let line = format!(
        "for i in 1 2 3 4 5; do (while :; do (cd {} && exec sleep 1000) 2>/dev/null || sleep 0.1; \
         done) & done; wait",
        it.point.display()
    );
    let supervisor = Holder::new(&line);
    let on_it = || {
        let found = shell(&format!("fuser -m {} 2>/dev/null || true", it.point.display()));
        found.split_whitespace().count()
    };
    until("five are on it", || on_it() >= 5).await;
    soon("kill", it.service.stop(Force::Kill)).await.unwrap();
    assert!(is_free(&it.disk.device), "said to be stopped, and held");
    assert_eq!(source_at(&it.point), "");
    assert!(lives(supervisor.pid()), "who does not hold the mount is left alone");
    // It can be mounted again, for example after a switchover and back.
    drop(supervisor);
    soon("start", it.service.start(&site(&it.disk.device))).await.unwrap();
    soon("stop", it.service.stop(Force::Orderly)).await.unwrap();
}

#[tokio::test]
async fn a_bind_mount_and_a_mount_in_another_namespace_keep_it_from_being_stopped() {
    if !is_root("a_bind_mount_and_a_mount_in_another_namespace_keep_it_from_being_stopped") {
        return;
    }
    let it = mounted("bind").await;
    let bind = it.place.path("bind");
    fs::create_dir_all(&bind).unwrap();
    shell(&format!("mount --bind {} {}", it.point.display(), bind.display()));
    let failure = soon("stop", it.service.stop(Force::Orderly)).await.unwrap_err();
    assert_eq!(failure.code, "device_held");
    assert!(failure.why.contains(&bind.display().to_string()), "{}", failure.why);
    soon("kill", it.service.stop(Force::Kill)).await.unwrap();
    assert!(is_free(&it.disk.device));

    it.service.start(&site(&it.disk.device)).await.unwrap();
    // The other namespace must hold this mount alone.
    let _alone = it.disk.alone();
    let ready = it.place.path("ready");
    let line = format!(
        "exec unshare -m --propagation private sh -c 'echo $$ > {}; exec sleep 1000'",
        ready.display()
    );
    let _other = Holder::new(&line);
    let pid = pid_in(&ready).await;
    let failure = soon("stop", it.service.stop(Force::Orderly)).await.unwrap_err();
    assert_eq!(failure.code, "device_held");
    assert!(failure.why.contains(&format!("namespaces of sleep ({pid})")), "{}", failure.why);
    soon("kill", it.service.stop(Force::Kill)).await.unwrap();
    assert!(is_free(&it.disk.device) && lives(pid), "unmounted there, and nobody killed");
}

#[tokio::test]
async fn what_was_detached_is_stopped_only_when_its_holder_is_gone() {
    if !is_root("what_was_detached_is_stopped_only_when_its_holder_is_gone") {
        return;
    }
    let it = mounted("detach").await;
    for by_hand in [true, false] {
        let line = format!("trap '' TERM; cd {} && exec sleep 1000", it.point.display());
        let holder = Holder::new(&line);
        until("it is there", || {
            fs::read_link(format!("/proc/{}/cwd", holder.pid())).is_ok_and(|cwd| cwd == it.point)
        })
        .await;
        if by_hand {
            // No mount table shows it any more, and the device is in use.
            shell(&format!("umount -l {}", it.point.display()));
            let failure = soon("stop", it.service.stop(Force::Orderly)).await.unwrap_err();
            assert_eq!(failure.code, "device_held");
            let named = format!("by sleep ({})", holder.pid());
            assert!(failure.why.contains(&named), "{}", failure.why);
        }
        soon("detach", it.service.stop(Force::Detach)).await.unwrap();
        assert!(is_free(&it.disk.device) && !lives(holder.pid()));
        it.service.start(&site(&it.disk.device)).await.unwrap();
    }
    soon("stop", it.service.stop(Force::Orderly)).await.unwrap();
}

#[tokio::test]
async fn a_detached_mount_of_a_device_without_a_name_is_not_stopped_either() {
    if !is_root("a_detached_mount_of_a_device_without_a_name_is_not_stopped_either") {
        return;
    }
    let place = Place::new("nameless");
    let disk = Disk::ext4(&place, "a.img");
    let (point, names) = (place.path("point"), place.path("names"));
    let name = names.join("db");
    fs::create_dir_all(&names).unwrap();
    std::os::unix::fs::symlink(&disk.device, &name).unwrap();
    let service = filesystem(&place.home(&name), &point, "ext4", FsckPolicy::Auto);
    let hold = || Holder::new(&format!("trap '' TERM; cd {} && exec sleep 1000", point.display()));
    let is_there = |holder: &Holder| {
        fs::read_link(format!("/proc/{}/cwd", holder.pid())).is_ok_and(|cwd| cwd == point)
    };
    service.start(&site(&name)).await.unwrap();
    let holder = hold();
    until("it is there", || is_there(&holder)).await;
    shell(&format!("umount -l {}", point.display()));
    // The office was taken away: the device lost its name, and what is open stays open.
    fs::remove_file(&name).unwrap();
    let failure = soon("stop", service.stop(Force::Orderly)).await.unwrap_err();
    assert_eq!(failure.code, "device_held");
    let named = format!("by sleep ({})", holder.pid());
    assert!(failure.why.contains(&named), "{}", failure.why);
    soon("kill", service.stop(Force::Kill)).await.unwrap();
    assert!(is_free(&disk.device) && !lives(holder.pid()));

    // The number may be another resource's by now: that one is left alone.
    std::os::unix::fs::symlink(&disk.device, &name).unwrap();
    service.start(&site(&name)).await.unwrap();
    let other = hold();
    until("the other is there", || is_there(&other)).await;
    shell(&format!("umount -l {}", point.display()));
    fs::rename(&name, names.join("other")).unwrap();
    soon("kill", service.stop(Force::Kill)).await.unwrap();
    assert!(lives(other.pid()));
}

#[tokio::test]
async fn what_of_the_kernel_keeps_it_busy_is_named() {
    if !is_root("what_of_the_kernel_keeps_it_busy_is_named") {
        return;
    }
    let it = mounted("kernel").await;
    let (inner, on_it) = (it.point.join("inner.img"), it.point.join("on-it"));
    fs::File::create(&inner).unwrap().set_len(1 << 20).unwrap();
    let inner = Disk::of(inner);
    fs::create_dir_all(&on_it).unwrap();
    shell(&format!("mount -t tmpfs none {}", on_it.display()));
    let failure = soon("stop", it.service.stop(Force::Orderly)).await.unwrap_err();
    for named in [&inner.device, &on_it] {
        assert!(failure.why.contains(&named.display().to_string()), "{}", failure.why);
    }
    assert!(failure.why.contains("losetup -d"), "{}", failure.why);
    shell(&format!("umount {}", on_it.display()));
    drop(inner);
    soon("stop", it.service.stop(Force::Orderly)).await.unwrap();
}

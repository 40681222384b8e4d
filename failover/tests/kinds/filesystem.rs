//! Kind `filesystem`: what is mounted, what is checked before, and what is told (V4).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use failover::core::services::{FsckPolicy, Kind};
use failover::services::{Change, Condition, Force, Home, Service, make};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::bench::{Disk, Place, has, is_root, its_turn, shell, site, soon};
use super::command::spec;

pub fn filesystem(home: &Home, point: &Path, fs_type: &str, fsck: FsckPolicy) -> Box<dyn Service> {
    let kind = Kind::Filesystem {
        mount_point: point.display().to_string(),
        fs_type: (!fs_type.is_empty()).then(|| fs_type.into()),
        options: vec!["noatime".into()],
        fsck,
    };
    make(&spec("/srv/db", kind), "db", home).unwrap()
}

/// What is mounted at a path, as findmnt says it.
pub fn source_at(point: &Path) -> String {
    let line = format!("findmnt -rno SOURCE -M '{}' || true", point.display());
    shell(&line)
}

#[tokio::test]
async fn it_is_mounted_and_unmounted_and_both_may_be_repeated() {
    if !is_root("it_is_mounted_and_unmounted_and_both_may_be_repeated") {
        return;
    }
    let mut kinds = vec![("ext4", "mkfs.ext4 -q -F $DISK"), ("", "mkfs.ext4 -q -F $DISK")];
    for (fs_type, mkfs) in
        [("xfs", "truncate -s 400M $DISK; mkfs.xfs -q $DISK"), ("btrfs", "mkfs.btrfs -q $DISK")]
    {
        if has(&format!("mkfs.{fs_type}")) {
            kinds.push((fs_type, mkfs));
        } else {
            eprintln!("skipped: {fs_type}, there is no mkfs.{fs_type}");
        }
    }
    for (fs_type, mkfs) in kinds {
        let place = Place::new("mount");
        let disk = Disk::new(&place, "a.img", mkfs);
        let point = place.path("deep/mount point");
        let service = filesystem(&place.home(&disk.device), &point, fs_type, FsckPolicy::Auto);
        service.prepare().await.unwrap();
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        let here = site(&disk.device);
        for _ in 0..2 {
            soon("start", service.start(&here)).await.unwrap();
            assert_eq!(source_at(&point), disk.device.display().to_string());
        }
        assert_eq!(service.monitor().await, Ok(Condition::Running));
        fs::write(point.join("rows"), "1\n").unwrap();
        for _ in 0..2 {
            soon("stop", service.stop(Force::Orderly)).await.unwrap();
            assert!(!point.join("rows").exists());
        }
        service.start(&here).await.unwrap();
        assert_eq!(fs::read_to_string(point.join("rows")).unwrap(), "1\n");
        // A daemon that was restarted knows by the device what is its own.
        let again = filesystem(&place.home(&disk.device), &point, fs_type, FsckPolicy::Auto);
        assert_eq!(again.monitor().await, Ok(Condition::Running));
        soon("stop", again.stop(Force::Orderly)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_left_alone() {
    if !is_root("what_is_in_the_way_is_named_and_left_alone") {
        return;
    }
    let place = Place::new("in-the-way");
    let (ours, other) = (Disk::ext4(&place, "a.img"), Disk::ext4(&place, "b.img"));
    let (point, elsewhere) = (place.path("point"), place.path("elsewhere"));
    let service = filesystem(&place.home(&ours.device), &point, "ext4", FsckPolicy::Auto);
    let here = site(&ours.device);
    fs::create_dir_all(&point).unwrap();
    fs::create_dir_all(&elsewhere).unwrap();

    shell(&format!("mount {} {}", other.device.display(), point.display()));
    let failure = service.start(&here).await.unwrap_err();
    let taken =
        format!("{} (ext4) on {1} is in the way of {1}", other.device.display(), point.display());
    assert_eq!((failure.code.as_str(), &failure.why), ("mount_point_taken", &taken));
    assert_eq!(failure.next, format!("umount {}", point.display()));
    assert_eq!(service.monitor().await, Ok(Condition::Stopped));
    // The stop of ours does not touch theirs.
    for force in [Force::Orderly, Force::Kill, Force::Detach] {
        soon("stop", service.stop(force)).await.unwrap();
        assert_eq!(source_at(&point), other.device.display().to_string());
    }
    shell(&format!("umount {}", point.display()));

    shell(&format!("mount {} {}", ours.device.display(), elsewhere.display()));
    let failure = service.start(&here).await.unwrap_err();
    assert_eq!(failure.code, "mounted_elsewhere");
    assert!(failure.why.contains(&elsewhere.display().to_string()), "{}", failure.why);
    shell(&format!("umount {}", elsewhere.display()));

    let gone = site(Path::new("/dev/replicator/nowhere"));
    assert_eq!(service.start(&gone).await.unwrap_err().code, "device_missing");
    let empty = Disk::new(&place, "c.img", "");
    let service = filesystem(&place.home(&empty.device), &point, "ext4", FsckPolicy::Auto);
    let failure = service.start(&site(&empty.device)).await.unwrap_err();
    assert!(failure.is_permanent && failure.code == "mount_failed", "{failure:?}");
    assert!(failure.next.contains("mkfs"), "{}", failure.next);
    shell(&format!(
        "blockdev --setro {0}; mkfs.ext4 -q -F {1}",
        empty.device.display(),
        empty.image.display()
    ));
    let failure = service.start(&site(&empty.device)).await.unwrap_err();
    assert!(matches!(failure.code.as_str(), "mounted_read_only" | "mount_failed"), "{failure:?}");
    assert_eq!(source_at(&point), "");
}

/// The image as a power cut leaves it: mounted, written to, not unmounted.
fn crashed(place: &Place) -> Disk {
    let (disk, point) = (Disk::ext4(place, "live.img"), place.path("live"));
    fs::create_dir_all(&point).unwrap();
    let (device, shown) = (disk.device.display(), point.display());
    let copy = place.path("crashed.img");
    shell(&format!(
        "mount {device} {shown} && echo 1 > {shown}/rows && sync && cp {} {} && umount {shown}",
        disk.image.display(),
        copy.display()
    ));
    Disk::of(copy)
}

fn features(disk: &Disk) -> String {
    shell(&format!("dumpe2fs -h {} 2>/dev/null | grep -E 'features|state'", disk.device.display()))
}

#[tokio::test]
async fn v4_a_journal_is_replayed_by_the_mount() {
    if !is_root("v4_a_journal_is_replayed_by_the_mount") {
        return;
    }
    let place = Place::new("replay");
    let disk = crashed(&place);
    assert!(features(&disk).contains("needs_recovery"), "the image must need a replay");
    let point = place.path("point");
    let service = filesystem(&place.home(&disk.device), &point, "ext4", FsckPolicy::Auto);
    soon("start", service.start(&site(&disk.device))).await.unwrap();
    assert_eq!(fs::read_to_string(point.join("rows")).unwrap(), "1\n");
    soon("stop", service.stop(Force::Orderly)).await.unwrap();
    assert!(!features(&disk).contains("needs_recovery"));
}

#[tokio::test]
async fn v4_a_file_system_with_errors_is_checked_before_it_is_mounted() {
    if !is_root("v4_a_file_system_with_errors_is_checked_before_it_is_mounted") {
        return;
    }
    let place = Place::new("fsck");
    let disk = Disk::ext4(&place, "a.img");
    let point = place.path("point");
    let mark = format!("debugfs -w -R 'ssv state 3' {} 2>/dev/null", disk.device.display());
    shell(&mark);
    assert!(features(&disk).contains("errors"), "{}", features(&disk));
    let home = place.home(&disk.device);
    let never = filesystem(&home, &point, "ext4", FsckPolicy::Never);
    never.start(&site(&disk.device)).await.unwrap();
    never.stop(Force::Orderly).await.unwrap();
    assert!(features(&disk).contains("errors"), "nobody checked it: {}", features(&disk));
    let auto = filesystem(&home, &point, "ext4", FsckPolicy::Auto);
    let (sender, mut changes) = unbounded_channel();
    let here = site(&disk.device);
    let acting = async {
        soon("start", auto.start(&here)).await.unwrap();
        // As long as it takes, and not as long as a mount may.
        let check = soon("the check", changes.recv()).await.unwrap();
        let what = format!("fsck.ext4 -p {} runs", disk.device.display());
        let Change::Step { what: said, limit } = check else { panic!("{check:?}") };
        assert!(said.starts_with(&what), "{said}");
        assert!(limit.is_some_and(|limit| limit.as_ms() == 86_400_000), "{limit:?}");
        let mount = soon("the mount", changes.recv()).await.unwrap();
        assert_eq!(mount, Change::Step { what: String::new(), limit: None });
    };
    tokio::select! {
        biased;
        () = auto.watch(sender) => panic!("it ended by itself"),
        () = acting => {}
    }
    auto.stop(Force::Orderly).await.unwrap();
    assert!(!features(&disk).contains("errors"), "{}", features(&disk));
}

#[tokio::test]
async fn v4_damage_that_fsck_does_not_repair_is_not_mounted() {
    if !is_root("v4_damage_that_fsck_does_not_repair_is_not_mounted") {
        return;
    }
    let place = Place::new("damage");
    let disk = Disk::ext4(&place, "a.img");
    let device = disk.device.display();
    shell(&format!(
        "debugfs -w -R 'clri <2>' {device} 2>/dev/null; \
         debugfs -w -R 'ssv state 3' {device} 2>/dev/null"
    ));
    let point = place.path("point");
    for policy in [FsckPolicy::Auto, FsckPolicy::Always] {
        let service = filesystem(&place.home(&disk.device), &point, "ext4", policy);
        let failure = soon("start", service.start(&site(&disk.device))).await.unwrap_err();
        assert_eq!(failure.code, "fsck_failed");
        let why = format!("fsck.ext4 -p {device} found damage that it does not repair by itself");
        assert!(failure.why.starts_with(&why), "{}", failure.why);
        assert!(failure.why.contains("RUN fsck MANUALLY"), "{}", failure.why);
        assert!(failure.next.contains("replctl pause"), "{}", failure.next);
        assert_eq!(source_at(&point), "");
    }
}

async fn news(changes: &mut UnboundedReceiver<Change>, began: Instant) -> (Change, Duration) {
    let change = soon("the news", changes.recv()).await.unwrap();
    (change, began.elapsed())
}

#[tokio::test]
async fn what_others_do_to_the_mount_is_told_at_once() {
    if !is_root("what_others_do_to_the_mount_is_told_at_once") {
        return;
    }
    let place = Place::new("told");
    let disk = Disk::new(
        &place,
        "a.img",
        "mkfs.ext4 -q -F -E nodiscard $DISK; tune2fs -e remount-ro $DISK",
    );
    let point = place.path("point");
    let service = filesystem(&place.home(&disk.device), &point, "ext4", FsckPolicy::Auto);
    let here = site(&disk.device);
    let shown = point.display().to_string();
    let (sender, mut changes) = unbounded_channel();
    let acting = async {
        service.start(&here).await.unwrap();
        its_turn().await;
        shell(&format!("mount -o remount,ro {shown}"));
        let (change, took) = news(&mut changes, Instant::now()).await;
        let text = format!("{} (ext4) on {shown} has become read-only", disk.device.display());
        assert_eq!(change, Change::Warning(text.clone()));
        assert!(took < Duration::from_millis(200), "{took:?}");
        assert_eq!(service.monitor().await, Ok(Condition::Degraded(text.clone())));
        assert_eq!(service.start(&here).await.unwrap_err().code, "mounted_read_only");
        shell(&format!("mount -o remount,rw {shown}"));
        assert_eq!(service.monitor().await, Ok(Condition::Running));
        // The watcher has seen that it is well again.
        tokio::time::sleep(Duration::from_millis(50)).await;

        // An error that ext4 itself finds rings no mount table.
        let name = disk.device.file_name().unwrap().to_str().unwrap().to_owned();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "test").unwrap();
        let (change, took) = news(&mut changes, Instant::now()).await;
        assert_eq!(change, Change::Warning(text));
        // The kernel counts it when it has written it down, which may wait for a commit of the
        // journal: every 5 s.
        println!("an error of ext4 was told after {took:?}");
        service.stop(Force::Orderly).await.unwrap();

        shell(&format!("e2fsck -fp {} >/dev/null || true", disk.device.display()));
        service.start(&here).await.unwrap();
        its_turn().await;
        shell(&format!("umount {shown}"));
        let (change, took) = news(&mut changes, Instant::now()).await;
        assert_eq!(
            change,
            Change::StoppedByHand(format!("{shown} was unmounted by somebody else"))
        );
        assert!(took < Duration::from_millis(200), "{took:?}");
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        service.stop(Force::Orderly).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(changes.try_recv().is_err(), "our own stop is no news");
    };
    tokio::select! {
        () = service.watch(sender) => panic!("it ended by itself"),
        () = acting => {}
    }
}

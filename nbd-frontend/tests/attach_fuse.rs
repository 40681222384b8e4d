//! The FUSE attach with a real kernel: file systems, partitions, discards, crashes, teardown.

mod attach_support;

use std::fs::{self, File, OpenOptions};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use attach_support::{Device, is_root, run, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

const FUSE: &[&str] = &["attach=fuse"];

fn content_of(number: u64) -> Vec<u8> {
    let length = 1 + number as usize * 2311 % 30_000;
    (0..length as u64).map(|at| (at.wrapping_mul(31) ^ number.wrapping_mul(97)) as u8).collect()
}

fn write_files(dir: &Path, count: u64) {
    for number in 0..count {
        fs::write(dir.join(format!("file-{number}")), content_of(number)).unwrap();
    }
}

fn check_files(dir: &Path, count: u64) {
    for number in 0..count {
        let found = fs::read(dir.join(format!("file-{number}"))).unwrap();
        assert!(found == content_of(number), "file-{number} differs");
    }
}

/// mkfs, thousands of files, a new mount, the files, the checker of the file system.
fn file_system_lives(name: &str, size_mib: u64, mkfs: &[&str], check: &[&str]) {
    if !is_root() {
        return;
    }
    let mut device = Device::new(name, size_mib, FUSE);
    device.start();
    let path = device.path();
    let path = path.to_str().unwrap();
    run(mkfs[0], &[&mkfs[1..], &[path]].concat());
    device.mount(&device.path());
    write_files(&device.mount_point(), 2000);
    device.unmount();
    device.mount(&device.path());
    check_files(&device.mount_point(), 2000);
    device.unmount();
    run(check[0], &[&check[1..], &[path]].concat());
    device.detach();
    assert!(!device.path().exists(), "the link is still there");
}

#[test]
fn ext4_lives_on_the_device() {
    file_system_lives("ext4", 256, &["mkfs.ext4", "-q"], &["e2fsck", "-fn"]);
}

#[test]
fn xfs_lives_on_the_device() {
    file_system_lives("xfs", 400, &["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
}

#[test]
fn btrfs_lives_on_the_device_and_its_mount_blocks_a_detach() {
    if !is_root() {
        return;
    }
    file_system_lives("btrfs", 300, &["mkfs.btrfs", "-q"], &["btrfs", "check"]);
    let mut device = Device::new("btrfs-held", 300, FUSE);
    device.start();
    run("mkfs.btrfs", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    device.signal(Signal::SIGTERM);
    let expected = format!("is mounted on {}", device.mount_point().display());
    wait_until("the refusal", || device.log().contains(&expected));
    device.unmount();
    device.detach();
}

#[test]
fn blocks_of_4096_bytes_are_told_to_the_file_system() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("block4k", 64, &["attach=fuse", "block=4096"]);
    device.start();
    assert_eq!(run("blockdev", &["--getss", device.path().to_str().unwrap()]).trim(), "4096");
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.detach();
}

#[test]
fn partitions_come_and_go_and_a_mounted_one_blocks_a_detach() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("parts", 128, FUSE);
    device.start();
    let path = device.path();
    let script = device.dir.join("table");
    fs::write(&script, "label: gpt\nsize=32MiB\nsize=32MiB\n").unwrap();
    let sfdisk = format!("sfdisk -q {} < {}", path.display(), script.display());
    run("sh", &["-c", &sfdisk]);
    // A kernel that does not know the kind of table is told the partitions.
    run("partx", &["--update", path.to_str().unwrap()]);
    wait_until("two partitions", || device.partition(1).exists() && device.partition(2).exists());
    run("mkfs.ext4", &["-q", device.partition(2).to_str().unwrap()]);
    device.mount(&device.partition(2));
    write_files(&device.mount_point(), 100);

    device.signal(Signal::SIGTERM);
    let name = device.kernel_name();
    let expected = format!("{name}p2 is mounted on {}", device.mount_point().display());
    wait_until("the refusal", || device.log().contains(&expected));
    check_files(&device.mount_point(), 100);
    device.unmount();

    run("sfdisk", &["-q", "--delete", path.to_str().unwrap(), "2"]);
    run("partx", &["--update", path.to_str().unwrap()]);
    // A table that is read anew takes them all away for a moment.
    wait_until("one partition", || {
        !device.partition(2).is_symlink() && device.partition(1).exists()
    });
    // A new server finds the partition that is left.
    device.detach();
    assert!(!device.partition(1).is_symlink(), "a partition link outlives the device");
    device.start();
    run("partx", &["--update", path.to_str().unwrap()]);
    wait_until("the first partition again", || device.partition(1).exists());
    device.crash();
    device.start();
    wait_until("the partition after a crash", || device.partition(1).exists());
    device.detach();
}

#[test]
fn a_process_that_has_the_device_open_blocks_a_detach_and_is_named() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("opened", 16, FUSE);
    device.start();
    let open = File::open(device.path()).unwrap();
    device.signal(Signal::SIGTERM);
    let expected = format!("{} is open in process {}", device.kernel_name(), std::process::id());
    wait_until("the refusal", || device.log().contains(&expected));
    drop(open);
    device.detach();
}

#[test]
fn discards_punch_holes_and_read_as_zeroes() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("trim", 256, FUSE);
    device.start();
    let path = device.path();
    run("mkfs.ext4", &["-q", "-E", "nodiscard", path.to_str().unwrap()]);
    device.mount(&path);
    let big = device.mount_point().join("big");
    fs::write(&big, vec![7; 100 << 20]).unwrap();
    run("sync", &["-f", big.to_str().unwrap()]);
    let used = || fs::metadata(device.dir.join("disk")).unwrap().blocks() * 512;
    assert!(used() >= 100 << 20);
    fs::remove_file(&big).unwrap();
    run("sync", &["-f", device.mount_point().to_str().unwrap()]);
    run("fstrim", &[device.mount_point().to_str().unwrap()]);
    assert!(used() < 50 << 20, "{} bytes still in use", used());
    device.unmount();

    let raw = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    raw.write_all_at(&[9; 8192], 1 << 20).unwrap();
    raw.sync_all().unwrap();
    run("blkdiscard", &["-f", "-z", "-o", "1048576", "-l", "4096", path.to_str().unwrap()]);
    let mut found = [1; 8192];
    OpenOptions::new().read(true).open(&path).unwrap().read_exact_at(&mut found, 1 << 20).unwrap();
    assert!(found[..4096].iter().all(|byte| *byte == 0) && found[4096..] == [9; 4096]);
    drop(raw);
    device.detach();
}

/// Writes files, each with fsync, until told to stop. Panics at the first I/O error.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(dir: &Path) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (dir, stop, written) = (dir.to_owned(), stop.clone(), written.clone());
            move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut file = File::create(dir.join(format!("file-{number}"))).unwrap();
                    file.write_all(&content_of(number)).unwrap();
                    file.sync_all().unwrap();
                    written.fetch_add(1, Ordering::Release);
                }
            }
        });
        Self { stop, written, thread }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn wait_for_more(&self) {
        let enough = self.written() + 20;
        wait_until("the writer to go on", || self.written() >= enough || self.thread.is_finished());
        assert!(!self.thread.is_finished(), "the writer met an I/O error");
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer met an I/O error");
        self.written.load(Ordering::Acquire)
    }
}

#[test]
fn a_writer_notices_nothing_when_the_server_is_killed_again_and_again() {
    if !is_root() {
        return;
    }
    // Slow enough that every kill finds requests under way.
    let mut device = Device::new("killed", 256, &["attach=fuse", "delay-ms=1"]);
    device.start();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    let writer = Writer::start(&device.mount_point());
    for _ in 0..5 {
        writer.wait_for_more();
        device.crash();
        assert!(device.start().ends_with(" adopted"), "{}", device.log());
    }
    writer.wait_for_more();
    let written = writer.end();
    device.unmount();
    device.mount(&device.path());
    check_files(&device.mount_point(), written);
    device.unmount();
    run("e2fsck", &["-fn", device.path().to_str().unwrap()]);
    device.detach();
}

/// What systemd does with a descriptor store, as far as the attach uses it.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The next message, and the descriptor that came with it.
    fn receive(&self) -> (String, Option<OwnedFd>) {
        let mut text = [0; 512];
        let mut parts = [IoSliceMut::new(&mut text)];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let fd = self.socket.as_raw_fd();
        let message =
            recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut control), MsgFlags::empty()).unwrap();
        let mut rights = message.cmsgs().unwrap().filter_map(|control| match control {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            ControlMessageOwned::ScmRights(fds) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
            _ => None,
        });
        let stored = rights.next();
        let length = message.bytes;
        (String::from_utf8(text[..length].to_vec()).unwrap(), stored)
    }
}

#[test]
fn the_descriptor_store_of_systemd_keeps_the_device_over_a_crash() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("stored", 64, FUSE);
    let path = device.dir.join("notify");
    let manager = Manager { socket: UnixDatagram::bind(&path).unwrap() };
    manager.socket.set_read_timeout(Some(attach_support::PATIENCE)).unwrap();
    let mut serve = device.serve_command();
    serve.env("NOTIFY_SOCKET", &path);
    device.start_by(serve);
    let (text, stored) = manager.receive();
    assert_eq!(text, "FDSTORE=1\nFDNAME=attach-stored");
    assert!(!device.dir.join("run").exists(), "a holder runs beside systemd");
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    device.crash();

    // The shell puts it where systemd would; LISTEN_PID must be the number of the server itself.
    let serve = device.serve_command();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0 && LISTEN_PID=$$ exec \"$@\"", "sh"]);
    shell.arg(serve.get_program()).args(serve.get_args());
    shell.env("NOTIFY_SOCKET", &path).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "attach-stored");
    shell.stdin(stored.expect("no descriptor came with FDSTORE"));
    assert!(device.start_by(shell).ends_with(" adopted"), "{}", device.log());
    write_files(&device.mount_point(), 10);
    device.unmount();
    device.detach();
    assert_eq!(manager.receive().0, "FDSTOREREMOVE=1\nFDNAME=attach-stored");
}

#[test]
fn a_writer_notices_nothing_when_the_stream_is_replaced() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("replaced", 256, &["attach=fuse", "delay-ms=1"]);
    device.start();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    let writer = Writer::start(&device.mount_point());
    for _ in 0..5 {
        writer.wait_for_more();
        device.signal(Signal::SIGUSR2);
        assert_eq!(device.line(), "reconnected", "{}", device.log());
    }
    writer.wait_for_more();
    let written = writer.end();
    check_files(&device.mount_point(), written);
    device.unmount();
    run("e2fsck", &["-fn", device.path().to_str().unwrap()]);
    device.detach();
}

#[test]
fn an_orderly_end_leaves_the_device_to_the_next_server() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("upgraded", 64, FUSE);
    device.start();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    device.signal(Signal::SIGINT);
    assert!(device.wait());
    assert!(device.start().ends_with(" adopted"));
    write_files(&device.mount_point(), 10);
    device.unmount();
    device.detach();
}

#[test]
fn a_deposed_primary_fails_all_io_of_a_mounted_file_system() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("deposed", 64, FUSE);
    device.start();
    let name = device.kernel_name();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    let mut file = File::create(device.mount_point().join("file")).unwrap();
    file.write_all(b"before").unwrap();
    file.sync_all().unwrap();
    device.signal(Signal::SIGUSR1);
    let said = device.line();
    assert!(said.contains(&format!("{name} is mounted on")), "{said:?} {}", device.log());
    assert!(device.wait());
    file.write_all(b"after").unwrap();
    file.sync_all().expect_err("a write of a deposed primary was acknowledged");
    assert!(!device.path().is_symlink());
    drop(file);
    device.unmount();
    let backing_file = format!("/sys/block/{name}/loop/backing_file");
    // Another test may take the device as soon as it is free.
    let is_ours = || fs::read_to_string(&backing_file).is_ok_and(|path| path.contains("deposed"));
    wait_until("the loop device to be free", || !is_ours());
}

#[test]
fn leftovers_of_a_crash_are_failed_on_demand() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("left", 64, FUSE);
    device.start();
    let name = device.kernel_name();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    device.mount(&device.path());
    let file = File::create(device.mount_point().join("file")).unwrap();
    device.crash();
    let blocked = std::thread::spawn(move || file.sync_all());
    let said = device.fail_leftovers();
    assert!(said.contains(&format!("fuse leftover {name}: removed")), "{said}");
    assert!(said.contains(&format!("{name} is mounted on")), "{said}");
    blocked.join().unwrap().expect_err("a sync with nobody to serve it succeeded");
    assert!(!device.path().is_symlink());
    device.unmount();
    assert_eq!(device.fail_leftovers(), "");
}

#[test]
fn a_device_that_nobody_held_over_the_crash_is_replaced_by_a_new_one() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("unheld", 64, FUSE);
    device.start();
    let holder =
        nbd_frontend::attach::holder::Client::new(&device.dir.join("run"), vec!["-".into()]);
    holder.quit().unwrap();
    let mut open = File::open(device.path()).unwrap();
    let old_name = device.kernel_name();
    device.crash();
    open.read_exact(&mut [0; 4096]).expect_err("nobody serves this device");
    assert!(device.start().ends_with(" new"));
    assert_ne!(device.kernel_name(), old_name, "the old one still has a user");
    let expected = format!("fuse leftover {old_name}: removed; {old_name} is open in process");
    assert!(device.log().contains(&expected), "{}", device.log());
    drop(open);
    device.detach();
}

#[test]
fn a_mounted_file_system_grows_with_the_device() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("grown", 320, FUSE);
    device.start();
    let path = device.path();
    let path = path.to_str().unwrap();
    run("mkfs.xfs", &["-q", path]);
    device.mount(&device.path());
    let disk = OpenOptions::new().write(true).open(device.dir.join("disk")).unwrap();
    disk.set_len(480 << 20).unwrap();
    device.signal(Signal::SIGHUP);
    let size = || run("blockdev", &["--getsize64", path]).trim().parse::<u64>().unwrap();
    wait_until("the new size", || size() == 480 << 20);
    run("xfs_growfs", &[device.mount_point().to_str().unwrap()]);
    fs::write(device.mount_point().join("big"), vec![1; 380 << 20]).unwrap();
    device.unmount();
    run("xfs_repair", &["-n", path]);
    device.detach();
}

#[test]
fn many_requests_are_under_way_at_once_and_none_is_mixed_up() {
    if !is_root() {
        return;
    }
    let mut device = Device::new("fio", 128, FUSE);
    device.start();
    let file = format!("--filename={}", device.path().display());
    run(
        "fio",
        &[
            "--name=verify",
            &file,
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=64",
            "--rw=randwrite",
            "--bsrange=4k-2m",
            "--size=100%",
            "--io_size=256M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=64",
        ],
    );
    device.detach();
}

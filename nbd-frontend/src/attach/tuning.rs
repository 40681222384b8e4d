//! Settings of a new device's queue, written by a child process.
//!
//! To write some of them waits, in a way that no signal ends, until the device's I/O is done. A
//! thread of ours that waits so would keep a killed daemon half alive, with the very sockets open
//! that have to close before the next daemon can go on. A child holds none of them.

use std::io;
use std::process::{Command, Stdio};

use super::disk::Disk;

/// Best effort, in the background: the device works without, only slower. Values that are right
/// already are left alone, as for a device that is continued.
pub fn tune(disk: &Disk, settings: Vec<(&'static str, String)>) {
    let thread = std::thread::Builder::new().name(format!("tune-{}", disk.name()));
    let spawned = thread.spawn({
        let disk = disk.clone();
        move || {
            for (file, value) in settings {
                if is_set(&disk, file, &value) {
                    continue;
                }
                if let Err(error) = write_by_child(&disk, file, &value) {
                    tracing::warn!("{}: {file} = {value}: {error}", disk.name());
                }
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("{} is not tuned: {error}", disk.name());
    }
}

fn is_set(disk: &Disk, file: &str, value: &str) -> bool {
    // The scheduler in use stands in brackets among the others, unless there is only one.
    disk.read(file).is_ok_and(|now| now == value || now.contains(&format!("[{value}]")))
}

fn write_by_child(disk: &Disk, file: &str, value: &str) -> io::Result<()> {
    run(Command::new("sh")
        .args(["-c", r#"printf %s "$1" > "$2""#, "sh", value])
        .arg(disk.sysfs().join(file)))
}

/// Writes back what the page cache holds of the device, and flushes it; by a child as well.
pub fn flush_by_child(disk: &Disk) -> io::Result<()> {
    run(Command::new("sync").arg(disk.node()?))
}

/// Runs a program that must succeed. Every descriptor of ours is closed on exec.
fn run(command: &mut Command) -> io::Result<()> {
    let output = command.current_dir("/").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
}

//! A block device as /sys/block shows it: its number, its node in /dev, its partitions, its knobs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// A whole disk, known by the kernel's name (`nbd0`, `loop3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    name: String,
}

/// A disk or one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The kernel's name, `nbd0` or `nbd0p1`.
    pub name: String,
    /// Device number as stat's `st_rdev` has it.
    pub rdev: u64,
    /// Its directory in /sys.
    pub sysfs: PathBuf,
}

impl Disk {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// All disks whose name is `prefix` and a number.
    pub fn all(prefix: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
        let mut disks: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| Some((name.strip_prefix(prefix)?.parse::<u32>().ok()?, name)))
            .collect();
        disks.sort();
        disks.into_iter().map(|(_, name)| Self { name }).collect()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number behind the driver's name: 3 of `loop3`.
    pub fn number(&self) -> u32 {
        let digits = self.name.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.parse().unwrap_or_else(|_| panic!("disk name {:?} has no number", self.name))
    }

    pub fn sysfs(&self) -> PathBuf {
        Path::new("/sys/block").join(&self.name)
    }

    /// Reads a file of the disk's directory in /sys, without the line end.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.sysfs().join(file)).map(|text| text.trim_end().to_owned())
    }

    /// The disk itself, then its partitions.
    pub fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts = vec![read_part(self.name.clone(), self.sysfs())?];
        for entry in fs::read_dir(self.sysfs())?.flatten() {
            if entry.path().join("partition").exists()
                && let Ok(name) = entry.file_name().into_string()
                && let Ok(part) = read_part(name, entry.path())
            {
                parts.push(part);
            }
        }
        parts[1..].sort_by(|a, b| a.name.cmp(&b.name));
        Ok(parts)
    }

    /// The device node, made if devtmpfs or udev have not.
    pub fn node(&self) -> io::Result<PathBuf> {
        read_part(self.name.clone(), self.sysfs())?.node()
    }

    /// Opens the disk for reading; with `exclusive` only if no mount, swap or device holds it.
    pub fn open(&self, exclusive: bool) -> io::Result<File> {
        let flags = if exclusive { libc::O_EXCL } else { 0 };
        OpenOptions::new().read(true).custom_flags(flags | libc::O_CLOEXEC).open(self.node()?)
    }
}

impl Part {
    /// The device node, made if devtmpfs or udev have not.
    pub fn node(&self) -> io::Result<PathBuf> {
        let path = Path::new("/dev").join(&self.name);
        match fs::metadata(&path) {
            Ok(found) if found.file_type().is_block_device() && found.rdev() == self.rdev => {
                return Ok(path);
            }
            Ok(_) => fs::remove_file(&path)?, // left over from a device that had this name before
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        mknod(&path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), self.rdev)?;
        Ok(path)
    }
}

fn read_part(name: String, sysfs: PathBuf) -> io::Result<Part> {
    let text = fs::read_to_string(sysfs.join("dev"))?;
    let rdev = parse_dev(text.trim_end()).ok_or_else(|| {
        io::Error::other(format!("{}: not a device number: {text:?}", sysfs.display()))
    })?;
    Ok(Part { name, rdev, sysfs })
}

/// A device number from `major:minor`.
pub fn parse_dev(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The device number of the block device at `path`; `None` when it is something else or nothing.
pub fn block_device_at(path: &Path) -> Option<u64> {
    let found = fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

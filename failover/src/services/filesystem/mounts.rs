//! What is mounted: `/proc/PID/mountinfo`.

use std::fs;
use std::path::{Path, PathBuf};

/// The number of a device: major and minor.
pub type DeviceNumber = (u32, u32);

/// One line of mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The kernel's number of this mount, alike in all namespaces.
    pub id: u32,
    /// The mount it hangs on.
    pub parent: u32,
    /// The device of the file system; btrfs and network file systems have made-up ones.
    pub device: DeviceNumber,
    /// What of the file system is mounted: `/`, or a directory for a bind mount.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// `ext4`.
    pub fs_type: String,
    /// What was given to `mount`, for most types a path of a device.
    pub source: String,
    /// Mounted read-only, or the file system itself turned read-only.
    pub is_read_only: bool,
}

impl Mount {
    /// As messages name it: `/dev/sda3 (ext4) on /srv/x`.
    pub fn label(&self) -> String {
        format!("{} ({}) on {}", self.source, self.fs_type, self.point.display())
    }

    /// Whether it is on that device. The source counts where the number is made up.
    pub fn is_on(&self, device: DeviceNumber) -> bool {
        self.device == device
            || (self.device.0 == 0 && device_number(Path::new(&self.source)) == Some(device))
    }
}

/// The mounts that this process sees.
pub fn own() -> Vec<Mount> {
    of("self")
}

/// The mounts that a process sees, in the order in which they were made.
pub fn of(pid: &str) -> Vec<Mount> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// The mount that is on top at a path, if the path is a mount point.
pub fn top_at<'a>(mounts: &'a [Mount], point: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.point == point)
}

/// The number of a block device.
pub fn device_number(path: &Path) -> Option<DeviceNumber> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = fs::metadata(path).ok()?;
    let rdev = metadata.rdev();
    let number = (nix::sys::stat::major(rdev) as u32, nix::sys::stat::minor(rdev) as u32);
    metadata.file_type().is_block_device().then_some(number)
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, point) = (plain(fields.next()?), plain(fields.next()?));
    let options = fields.next()?;
    let mut fields = right.split(' ');
    let fs_type = fields.next()?.to_owned();
    let source = plain(fields.next()?);
    // Since Linux 6.15 an ext4 that met an error stays `rw` and says `emergency_ro` or `shutdown`.
    let has_ro = |options: &str| {
        options.split(',').any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"))
    };
    let is_read_only = has_ro(options) || fields.next().is_some_and(has_ro);
    let (root, point) = (root.into(), point.into());
    Some(Mount { id, parent, device, root, point, fs_type, source, is_read_only })
}

/// `\040` and the like, as the kernel writes blanks, tabs, line ends and backslashes.
fn plain(field: &str) -> String {
    let mut out = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u8, |sum, digit| {
                let value = digit.checked_sub(b'0').filter(|value| *value < 8)?;
                sum.checked_mul(8)?.checked_add(value)
            })
        };
        match tail.get(..3).and_then(octal).filter(|_| *first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_optional_fields_and_blanks_are_read() {
        let line =
            "98 29 7:3 / /srv/a\\040b rw,noatime shared:51 master:2 - ext4 /dev/loop3 ro,discard";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (98, 29, (7, 3)));
        assert_eq!(mount.point, Path::new("/srv/a b"));
        assert!(mount.is_read_only);
        assert_eq!(mount.label(), "/dev/loop3 (ext4) on /srv/a b");
        let error = "43 27 7:2 / /a rw,relatime - ext4 /dev/loop2 rw,emergency_ro";
        assert!(parse(error).unwrap().is_read_only);
        let bare = "21 1 0:21 / /proc rw - proc proc rw";
        assert!(!parse(bare).unwrap().is_read_only);
        assert_eq!(parse("21 1 0:21 / /proc rw"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(plain("a\\134b\\9x\\"), "a\\b\\9x\\");
        assert_eq!(plain("\\777"), "\\777");
    }

    #[test]
    fn the_last_mount_of_a_point_is_on_top() {
        let lines =
            ["98 29 7:3 / /a rw - ext4 /dev/loop3 rw", "99 98 7:4 / /a rw - xfs /dev/loop4 rw"];
        let mounts: Vec<Mount> = lines.iter().filter_map(|line| parse(line)).collect();
        assert_eq!(top_at(&mounts, Path::new("/a")).unwrap().device, (7, 4));
        assert_eq!(top_at(&mounts, Path::new("/b")), None);
        assert!(!own().is_empty());
    }
}

//! Whether a file system is checked before it is mounted, and what the check's exit code means.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use failover_core::services::FsckPolicy;

/// Where the superblock of ext2, ext3 and ext4 begins.
const EXT_AT: u64 = 1024;
const EXT_MAGIC: u16 = 0xef53;
/// Bits of `s_state`.
const EXT_CLEAN: u16 = 1;
const EXT_HAS_ERRORS: u16 = 2;
const EXT_HAS_JOURNAL: u32 = 4;

/// What is to be done before the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Nothing: the mount replays what there is to replay.
    None,
    /// `fsck -p` of this type.
    Repair(&'static str),
    /// `fsck -p`, as the type that was configured.
    ByType,
}

/// Decides by policy, type and, for the ext family, what the superblock says.
pub fn check(policy: FsckPolicy, fs_type: Option<&str>, device: &Path) -> Check {
    let superblock = ext_superblock(device);
    // xfs and btrfs have programs of that name that do nothing, for good reason.
    let is_known_not_to = matches!(fs_type, Some("xfs" | "btrfs" | "zfs" | "bcachefs" | "none"));
    match policy {
        FsckPolicy::Never => Check::None,
        _ if is_known_not_to => Check::None,
        FsckPolicy::Auto if superblock.as_deref().is_some_and(ext_asks_for_check) => {
            Check::Repair("ext4")
        }
        FsckPolicy::Auto => Check::None,
        FsckPolicy::Always if superblock.is_some() => Check::Repair("ext4"),
        FsckPolicy::Always if fs_type.is_some() => Check::ByType,
        FsckPolicy::Always => Check::None,
    }
}

fn ext_superblock(device: &Path) -> Option<Vec<u8>> {
    let mut block = vec![0; 1024];
    let mut file = File::open(device).ok()?;
    file.seek(SeekFrom::Start(EXT_AT)).ok()?;
    file.read_exact(&mut block).ok()?;
    (u16_at(&block, 56) == EXT_MAGIC).then_some(block)
}

/// Errors were seen while it was mounted, or it was not unmounted and has no journal to replay.
fn ext_asks_for_check(block: &[u8]) -> bool {
    let state = u16_at(block, 58);
    let has_journal = u32_at(block, 92) & EXT_HAS_JOURNAL != 0;
    state & EXT_HAS_ERRORS != 0 || (state & EXT_CLEAN == 0 && !has_journal)
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// What an exit code of fsck(8) means: `Ok` may be mounted.
pub fn verdict(code: Option<i32>) -> Result<(), &'static str> {
    match code {
        // 1: repaired. 2: repaired, and a mounted root would need a reboot; this is not mounted.
        Some(code) if code & !3 == 0 => Ok(()),
        // The shell's or the loader's word, no set of bits.
        Some(126..) => Err("could not be run"),
        Some(code) if code & 4 != 0 => Err("found damage that it does not repair by itself"),
        Some(code) if code & 8 != 0 => Err("could not do its work"),
        Some(code) if code & 32 != 0 => Err("was cancelled"),
        Some(_) => Err("could not be run"),
        None => Err("was killed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(state: u16, journal: u32) -> Vec<u8> {
        let mut block = vec![0; 1024];
        block[56..58].copy_from_slice(&EXT_MAGIC.to_le_bytes());
        block[58..60].copy_from_slice(&state.to_le_bytes());
        block[92..96].copy_from_slice(&journal.to_le_bytes());
        block
    }

    #[test]
    fn a_journal_is_left_to_the_mount_and_errors_are_not() {
        assert!(!ext_asks_for_check(&block(EXT_CLEAN, EXT_HAS_JOURNAL)));
        assert!(!ext_asks_for_check(&block(0, EXT_HAS_JOURNAL)), "only to be replayed");
        assert!(ext_asks_for_check(&block(0, 0)), "ext2 that was not unmounted");
        assert!(!ext_asks_for_check(&block(EXT_CLEAN, 0)));
        assert!(ext_asks_for_check(&block(EXT_CLEAN | EXT_HAS_ERRORS, EXT_HAS_JOURNAL)));
    }

    #[test]
    fn policy_and_type_decide_and_then_the_superblock() {
        let path = std::env::temp_dir().join(format!("replicator-fsck-{}", std::process::id()));
        let mut image = vec![0; 1024];
        image.extend(block(EXT_CLEAN | EXT_HAS_ERRORS, EXT_HAS_JOURNAL));
        std::fs::write(&path, &image).unwrap();
        for (policy, fs_type, wanted) in [
            (FsckPolicy::Auto, Some("ext4"), Check::Repair("ext4")),
            (FsckPolicy::Auto, None, Check::Repair("ext4")),
            (FsckPolicy::Never, Some("ext4"), Check::None),
            (FsckPolicy::Always, None, Check::Repair("ext4")),
            (FsckPolicy::Always, Some("xfs"), Check::None),
        ] {
            assert_eq!(check(policy, fs_type, &path), wanted, "{policy:?} {fs_type:?}");
        }
        std::fs::write(&path, vec![0; 4096]).unwrap();
        assert_eq!(check(FsckPolicy::Auto, Some("vfat"), &path), Check::None);
        assert_eq!(check(FsckPolicy::Always, Some("vfat"), &path), Check::ByType);
        assert_eq!(check(FsckPolicy::Always, None, &path), Check::None);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn exit_codes_are_a_set_of_bits() {
        for code in [0, 1, 2, 3] {
            assert_eq!(verdict(Some(code)), Ok(()));
        }
        assert_eq!(verdict(Some(5)), Err("found damage that it does not repair by itself"));
        assert_eq!(verdict(Some(8)), Err("could not do its work"));
        assert_eq!(verdict(Some(32)), Err("was cancelled"));
        assert_eq!(verdict(Some(127)), Err("could not be run"));
        assert_eq!(verdict(None), Err("was killed"));
    }
}

//! What a disk holds already: file systems, partition tables, volume managers, metadata of our
//! own. `replctl create` asks before it makes a disk a replica, so that nobody's data are lost by
//! a slip. Only what is found here or is not zero is protected; the tables are small on purpose.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use replicator_core::metadata;

/// Something that was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A short word for commands: `ext4`, `lvm`, `gpt`, `replicator`, `data`, ...
    pub word: &'static str,
    /// For people: what it is.
    pub title: String,
    /// One past the last byte that it uses; none where that is not known or is the whole disk.
    pub end: Option<u64>,
}

impl Finding {
    fn whole(word: &'static str, title: &str) -> Self {
        Self { word, title: title.to_owned(), end: None }
    }

    fn until(word: &'static str, title: &str, end: Option<u64>) -> Self {
        Self { word, title: title.to_owned(), end }
    }
}

/// Looks for one kind of content.
type Recogniser = fn(&Look<'_>) -> io::Result<Option<Finding>>;

/// Magic bytes at a fixed place that tell all that is to be known.
struct Mark {
    at: u64,
    magic: &'static [u8],
    word: &'static str,
    title: &'static str,
}

const fn mark(at: u64, magic: &'static [u8], word: &'static str, title: &'static str) -> Mark {
    Mark { at, magic, word, title }
}

const MARKS: &[Mark] = &[
    mark(0, b"LUKS\xba\xbe", "luks", "a LUKS encrypted volume"),
    mark(24, b"LVM2 001", "lvm", "an LVM physical volume"),
    mark(512 + 24, b"LVM2 001", "lvm", "an LVM physical volume"),
    mark(1024 + 24, b"LVM2 001", "lvm", "an LVM physical volume"),
    mark(1536 + 24, b"LVM2 001", "lvm", "an LVM physical volume"),
    mark(0, &[0xfc, 0x4e, 0x2b, 0xa9], "md", "a member of an md array"),
    mark(4096, &[0xfc, 0x4e, 0x2b, 0xa9], "md", "a member of an md array"),
    mark(512, b"EFI PART", "gpt", "a GPT partition table"),
    mark(4096, b"EFI PART", "gpt", "a GPT partition table"),
    mark(1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs", "an f2fs file system"),
    mark(32769, b"CD001", "iso9660", "an ISO 9660 file system"),
    mark(
        4096 + 24,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
        "bcache",
        "a bcache device",
    ),
];

/// The same at places counted from the end of the disk.
const MARKS_AT_END: &[Mark] = &[
    mark(512, b"EFI PART", "gpt", "a GPT partition table"),
    mark(4096, b"EFI PART", "gpt", "a GPT partition table"),
];

/// Everything that is known to be on the disk; empty for a disk that looks unused.
pub fn find(disk: &File, disk_bytes: u64) -> io::Result<Vec<Finding>> {
    let look = Look { disk, disk_bytes };
    let mut found = Vec::new();
    let recognisers: [Recogniser; 11] =
        [our_own, ext, xfs, btrfs, swap, ntfs_or_exfat, fat, md_at_end, drbd, zfs, mbr];
    for recognise in recognisers {
        found.extend(recognise(&look)?);
    }
    for (marks, from_end) in [(MARKS, false), (MARKS_AT_END, true)] {
        for mark in marks {
            let at = if from_end { disk_bytes.saturating_sub(mark.at) } else { mark.at };
            let known = found.iter().any(|finding: &Finding| finding.word == mark.word);
            if !known && look.has(at, mark.magic)? {
                found.push(Finding::whole(mark.word, mark.title));
            }
        }
    }
    // A GPT always comes with a protective MBR; naming both would ask the operator twice.
    if found.iter().any(|finding| finding.word == "gpt") {
        found.retain(|finding| finding.word != "mbr");
    }
    if found.is_empty() {
        found.extend(unknown_data(&look)?);
    }
    Ok(found)
}

struct Look<'a> {
    disk: &'a File,
    disk_bytes: u64,
}

impl Look<'_> {
    /// Bytes at a place; zeroes where the disk has none.
    fn bytes<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut done = 0;
        while done < N {
            match self.disk.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    fn has(&self, at: u64, magic: &[u8]) -> io::Result<bool> {
        let bytes: [u8; 16] = self.bytes(at)?;
        Ok(bytes.starts_with(magic))
    }

    fn u16_le(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(|bytes| u64::from(u16::from_le_bytes(bytes)))
    }

    fn u32_le(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
    }

    fn u32_be(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(|bytes| u64::from(u32::from_be_bytes(bytes)))
    }

    fn u64_le(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn u64_be(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

fn our_own(look: &Look<'_>) -> io::Result<Option<Finding>> {
    let [first, second] = metadata::superblock_offsets(look.disk_bytes);
    let copies: [[u8; metadata::SUPERBLOCK_BYTES]; 2] = [look.bytes(first)?, look.bytes(second)?];
    let title = match metadata::read_superblocks([&copies[0], &copies[1]]) {
        Ok((superblock, _)) => format!(
            "a replica of resource {:?}, made on node {:?}",
            superblock.resource, superblock.node
        ),
        Err(metadata::AttachError::NoMetadata) => return Ok(None),
        Err(error) => format!("a replica ({error})"),
    };
    Ok(Some(Finding { word: "replicator", title, end: None }))
}

fn ext(look: &Look<'_>) -> io::Result<Option<Finding>> {
    const AT: u64 = 1024;
    if look.u16_le(AT + 0x38)? != 0xef53 {
        return Ok(None);
    }
    let compatible = look.u32_le(AT + 0x5c)?;
    let incompatible = look.u32_le(AT + 0x60)?;
    let (word, title) = if incompatible & 0x2c0 != 0 {
        ("ext4", "an ext4 file system")
    } else if compatible & 4 != 0 {
        ("ext3", "an ext3 file system")
    } else {
        ("ext2", "an ext2 file system")
    };
    let high = if incompatible & 0x80 != 0 { look.u32_le(AT + 0x150)? } else { 0 };
    let blocks = high << 32 | look.u32_le(AT + 4)?;
    let shift = look.u32_le(AT + 0x18)?;
    let end = if shift <= 6 { blocks.checked_mul(1024 << shift) } else { None };
    Ok(Some(Finding::until(word, title, end)))
}

fn xfs(look: &Look<'_>) -> io::Result<Option<Finding>> {
    if !look.has(0, b"XFSB")? {
        return Ok(None);
    }
    let end = look.u64_be(8)?.checked_mul(look.u32_be(4)?);
    Ok(Some(Finding::until("xfs", "an XFS file system", end)))
}

fn btrfs(look: &Look<'_>) -> io::Result<Option<Finding>> {
    const AT: u64 = 0x1_0000;
    if !look.has(AT + 0x40, b"_BHRfS_M")? {
        return Ok(None);
    }
    // The size of this device, not of the file system, which may span several.
    let end = look.u64_le(AT + 0xc9 + 8)?;
    Ok(Some(Finding::until("btrfs", "a btrfs file system", Some(end))))
}

fn swap(look: &Look<'_>) -> io::Result<Option<Finding>> {
    for page in [4096, 65536] {
        if look.has(page - 10, b"SWAPSPACE2")? {
            let end = (look.u32_le(1028)? + 1).checked_mul(page);
            return Ok(Some(Finding::until("swap", "swap space", end)));
        }
    }
    Ok(None)
}

fn ntfs_or_exfat(look: &Look<'_>) -> io::Result<Option<Finding>> {
    if look.has(3, b"NTFS    ")? {
        // The boot sector's copy lies behind the last sector counted.
        let end = (look.u64_le(0x28)?.saturating_add(1)).checked_mul(look.u16_le(0x0b)?);
        return Ok(Some(Finding::until("ntfs", "an NTFS file system", end)));
    }
    if look.has(3, b"EXFAT   ")? {
        let shift = look.bytes::<1>(108)?[0];
        let end = look.u64_le(72)?.checked_mul(1u64.checked_shl(shift.into()).unwrap_or(0));
        return Ok(Some(Finding::until("exfat", "an exFAT file system", end)));
    }
    Ok(None)
}

fn fat(look: &Look<'_>) -> io::Result<Option<Finding>> {
    let marked = look.has(54, b"FAT12   ")? || look.has(54, b"FAT16   ")?;
    if !marked && !look.has(82, b"FAT32   ")? {
        return Ok(None);
    }
    let few = look.u16_le(19)?;
    let sectors = if few == 0 { look.u32_le(32)? } else { few };
    let end = sectors.checked_mul(look.u16_le(11)?);
    Ok(Some(Finding::until("fat", "a FAT file system", end)))
}

fn md_at_end(look: &Look<'_>) -> io::Result<Option<Finding>> {
    const MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
    let version_0 = (look.disk_bytes & !0xffff).checked_sub(0x1_0000);
    let version_1 = (look.disk_bytes / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    for at in [version_0, version_1].into_iter().flatten() {
        if look.has(at, MAGIC)? {
            return Ok(Some(Finding::whole("md", "a member of an md array")));
        }
    }
    Ok(None)
}

fn drbd(look: &Look<'_>) -> io::Result<Option<Finding>> {
    let Some(at) = (look.disk_bytes & !4095).checked_sub(4096) else { return Ok(None) };
    let known = 0x8374_026a..=0x8374_026d;
    if known.contains(&look.u32_be(at + 60)?) {
        return Ok(Some(Finding::whole("drbd", "a DRBD device with internal metadata")));
    }
    Ok(None)
}

fn zfs(look: &Look<'_>) -> io::Result<Option<Finding>> {
    const UBERBLOCKS: std::ops::Range<u64> = 128 << 10..256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    for at in UBERBLOCKS.step_by(1024) {
        let word = look.u64_le(at)?;
        if word == MAGIC || word.swap_bytes() == MAGIC {
            return Ok(Some(Finding::whole("zfs", "a member of a ZFS pool")));
        }
    }
    Ok(None)
}

/// A DOS partition table; boot sectors of file systems end in the same two bytes, so one of the
/// four entries must make sense, and the file systems are recognised before.
fn mbr(look: &Look<'_>) -> io::Result<Option<Finding>> {
    if !look.has(510, &[0x55, 0xaa])? || ntfs_or_exfat(look)?.is_some() || fat(look)?.is_some() {
        return Ok(None);
    }
    for entry in 0..4 {
        let at = 446 + entry * 16;
        let status = look.bytes::<1>(at)?[0];
        let kind = look.bytes::<1>(at + 4)?[0];
        let sectors = look.u32_le(at + 12)?;
        if (status == 0 || status == 0x80) && kind != 0 && sectors != 0 {
            return Ok(Some(Finding::whole("mbr", "a DOS partition table")));
        }
    }
    Ok(None)
}

/// Data without a known beginning: the first and last MiB and samples between must be zero.
fn unknown_data(look: &Look<'_>) -> io::Result<Option<Finding>> {
    const PIECE: u64 = 64 << 10;
    const ENDS: u64 = 1 << 20;
    let bytes = look.disk_bytes;
    let first = (0..ENDS.min(bytes)).step_by(PIECE as usize);
    let last = (bytes.saturating_sub(ENDS)..bytes).step_by(PIECE as usize);
    let samples = (0..64).map(|number| bytes / 64 * number);
    for at in first.chain(last).chain(samples) {
        let mut piece = vec![0; PIECE as usize];
        let read = look.disk.read_at(&mut piece, at)?;
        if let Some(byte) = piece[..read].iter().position(|byte| *byte != 0) {
            let title = format!("data of an unknown kind (not zero at byte {})", at + byte as u64);
            return Ok(Some(Finding { word: "data", title, end: None }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;

//! The backing disk of a replica: a block device or a file, opened for direct I/O and locked
//! before anything is read (SAFETY.md R2e), and the metadata that lie at its end or elsewhere.
//! Here is what happens before the data loop runs; `data_loop::disk_port` has the rest.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};
use replicator_core::ByteRange;
use replicator_core::metadata::SUPERBLOCK_BYTES;
use replicator_core::room::MetaMove;
use thiserror::Error;

use crate::lock_holders::{is_alive, lock_holder};

/// How often a lock that somebody else holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Bytes of one step of a long read or write before the loop runs.
const STEP_BYTES: u64 = 1 << 20;
/// Assumed where a file system does not tell: every disk can do it.
const BLOCK_BYTES_FALLBACK: u32 = 4096;

/// Replacements of the disk that exist for tests and measurements only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TestBacking {
    /// A real disk.
    #[default]
    Off,
    /// Writes stay in the memory of the process until a flush, so that SIGKILL loses what was not
    /// flushed, as a power cut would.
    Volatile,
    /// Data reads, writes and flushes succeed at once and do nothing; metadata is written. For
    /// measuring everything but the disk.
    NoDisk,
}

/// What to open.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The device or file with the data.
    pub data: &'a Path,
    /// The device or file with the metadata, unless they are at the end of `data`.
    pub meta: Option<&'a Path>,
    /// [`TestBacking::Off`] outside of tests.
    pub test: TestBacking,
}

/// Somebody else holds the disk.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// What is waited for.
    pub path: &'a Path,
    /// Who holds it, where the kernel tells: a process, or nobody when it is a mount, LVM, md.
    pub holder: Option<u32>,
    /// For how long already.
    pub since: Duration,
}

impl std::fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waiting for {}, ", self.path.display())?;
        match self.holder {
            Some(pid) if is_alive(pid) => write!(f, "locked by process {pid}"),
            Some(pid) => write!(
                f,
                "locked by process {pid}, which is dead: its last writes are on their way to the \
                 disk"
            ),
            None => write!(f, "which is mounted, part of LVM or md, or open in a process"),
        }
    }
}

/// Why a disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It does not open.
    #[error("cannot open {path}: {source}")]
    Open {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No direct I/O.
    #[error(
        "{path} cannot be opened with O_DIRECT: its file system does not support it; use a block \
         device or a file on ext4 or xfs"
    )]
    NoDirect {
        /// What.
        path: PathBuf,
    },
    /// A directory, a pipe, ...
    #[error("{path} is neither a block device nor a file")]
    Kind {
        /// What.
        path: PathBuf,
    },
    /// Data and metadata in the same place by mistake.
    #[error("{path} is configured for data and for metadata; leave the metadata path out instead")]
    Same {
        /// What.
        path: PathBuf,
    },
    /// The caller did not want to wait any longer.
    #[error("gave up waiting for the lock of {path}")]
    GaveUp {
        /// What.
        path: PathBuf,
    },
    /// It can be opened and not be used.
    #[error("{during} {path} failed at byte {at}: {source}")]
    Access {
        /// `reading`, `writing`, `flushing`.
        during: &'static str,
        /// What.
        path: PathBuf,
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// The layout does not fit the disk.
    #[error(
        "the metadata say that {path} holds {wanted} bytes, but it has only {present}; it is not \
         the disk that was created, or it has shrunk"
    )]
    TooSmall {
        /// What.
        path: PathBuf,
        /// What the metadata say.
        wanted: u64,
        /// Its size.
        present: u64,
    },
    /// The block size of the resource is below that of the disk.
    #[error(
        "{path} can only be accessed in blocks of {disk} bytes, but the resource has blocks of \
         {resource}; move it to a disk with smaller blocks, or create it anew"
    )]
    BlockSize {
        /// What.
        path: PathBuf,
        /// What the disk needs.
        disk: u32,
        /// What the metadata say.
        resource: u32,
    },
}

/// An open and locked backing disk.
#[derive(Debug)]
pub struct Disk {
    data: Part,
    meta: Option<Part>,
    test: TestBacking,
    can_punch: bool,
    layout: DiskLayout,
}

/// Where things lie; known when the superblock was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskLayout {
    /// Size of the data area, which begins at byte 0 of the data disk.
    pub data_bytes: u64,
    /// Every data range the core orders is a multiple of this.
    pub block_bytes: u32,
    /// Where the metadata region begins, in bytes from the start of the disk that holds it.
    pub region_start: u64,
    /// Length of the metadata region.
    pub region_bytes: u64,
    /// Length of its beginning, where the dirty bitmaps are; a superblock follows, and the log.
    pub bitmaps_bytes: u64,
}

#[derive(Debug)]
struct Part {
    file: File,
    path: PathBuf,
    bytes: u64,
    block_bytes: u32,
    is_device: bool,
}

impl Disk {
    /// Opens and locks. While somebody else holds the disk, `waiting` is called every 50 ms and
    /// may give up. Nothing is read before the lock is held, so a killed predecessor's last write
    /// has landed: the kernel keeps its lock until then.
    pub fn open(
        what: Opening<'_>,
        waiting: &mut dyn FnMut(Waiting<'_>) -> ControlFlow<()>,
    ) -> Result<Self, DiskError> {
        let data = Part::open(what.data, waiting)?;
        let meta = what.meta.map(|path| Part::open(path, waiting)).transpose()?;
        let can_punch = match what.test {
            TestBacking::Off => data.can_punch(),
            TestBacking::Volatile | TestBacking::NoDisk => true,
        };
        let layout = DiskLayout {
            data_bytes: data.bytes,
            block_bytes: data.block_bytes,
            ..DiskLayout::default()
        };
        Ok(Self { data, meta, test: what.test, can_punch, layout })
    }

    /// Size of the disk or file with the data, metadata included when they are internal.
    pub fn device_bytes(&self) -> u64 {
        self.data.bytes
    }

    /// Size of the disk or file that holds the metadata: their place is relative to its end.
    pub fn meta_device_bytes(&self) -> u64 {
        self.meta_part().bytes
    }

    /// The metadata lie where their device ended before it was extended: what is behind them does
    /// not exist for this replica before they have moved.
    pub fn ends_at(&mut self, bytes: u64) {
        self.meta.as_mut().unwrap_or(&mut self.data).bytes = bytes;
    }

    /// How large the devices of metadata and data are now. This waits for no disk.
    pub fn measure(&self) -> io::Result<(u64, u64)> {
        if self.test == TestBacking::NoDisk {
            return Ok((self.meta_part().bytes, self.data.bytes));
        }
        Ok((self.meta_part().measure()?, self.data.measure()?))
    }

    /// Bytes that were added to the device of the metadata and that nothing makes use of yet; 0
    /// when that cannot be told. Asked at every status.
    pub fn added_bytes(&self) -> u64 {
        if self.test == TestBacking::NoDisk {
            return 0;
        }
        let meta = self.meta_part();
        meta.measure().map_or(0, |now| now.saturating_sub(meta.bytes))
    }

    /// A second handle on the metadata to move them in another thread.
    pub(crate) fn mover(&self) -> io::Result<Mover> {
        let meta = self.meta_part();
        let part = Part { file: meta.file.try_clone()?, path: meta.path.clone(), ..*meta };
        Ok(Mover { part, region_start: self.layout.region_start })
    }

    /// The metadata have moved.
    pub(crate) fn meta_moved(&mut self, to: &MetaMove) {
        self.ends_at(to.device_bytes);
        self.layout.region_start = to.region_start;
        self.layout.region_bytes = to.region_bytes;
    }

    /// Whether the metadata lie behind the data on the same disk.
    pub fn is_internal(&self) -> bool {
        self.meta.is_none()
    }

    /// The smallest block that data and metadata can be accessed in, in bytes.
    pub fn logical_block_bytes(&self) -> u32 {
        self.data.block_bytes.max(self.meta_part().block_bytes)
    }

    /// Whether punched holes read as zeroes here (R17).
    pub fn can_punch(&self) -> bool {
        self.can_punch
    }

    /// What was given to [`Disk::use_layout`].
    pub fn layout(&self) -> DiskLayout {
        self.layout
    }

    /// Which replacement of the disk is in use.
    pub fn test_backing(&self) -> TestBacking {
        self.test
    }

    /// Sets what the superblock says; refused when it does not fit the disk.
    pub fn use_layout(&mut self, layout: DiskLayout) -> Result<(), DiskError> {
        let meta = self.meta_part();
        let too_small = |part: &Part, wanted| DiskError::TooSmall {
            path: part.path.clone(),
            wanted,
            present: part.bytes,
        };
        let region_end = layout.region_start.saturating_add(layout.region_bytes);
        if region_end > meta.bytes {
            return Err(too_small(meta, region_end));
        }
        let data_limit = if self.is_internal() { layout.region_start } else { self.data.bytes };
        if layout.data_bytes > data_limit {
            return Err(too_small(&self.data, layout.data_bytes));
        }
        let disk = self.logical_block_bytes();
        if !layout.block_bytes.is_power_of_two() || !layout.block_bytes.is_multiple_of(disk) {
            let path = self.data.path.clone();
            return Err(DiskError::BlockSize { path, disk, resource: layout.block_bytes });
        }
        self.layout = layout;
        Ok(())
    }

    /// Reads from the disk that holds the metadata, at any alignment; waits for the disk.
    pub fn read_meta(&self, at: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = Vec::with_capacity(length);
        self.meta_part().read(at, length as u64, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// Writes to the disk that holds the metadata and makes it durable; waits for the disk. Offset
    /// and length are multiples of [`Disk::logical_block_bytes`].
    pub fn write_meta(&self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let part = self.meta_part();
        part.write(at, bytes.len() as u64, |offset, piece| {
            piece.copy_from_slice(&bytes[offset..offset + piece.len()]);
        })?;
        part.flush()
    }

    /// Zeroes a range of the disk that holds the metadata, durably, as [`Disk::write_meta`] does.
    pub fn zero_meta(&self, at: u64, length: u64) -> Result<(), DiskError> {
        let part = self.meta_part();
        part.write(at, length, |_, piece| piece.fill(0))?;
        part.flush()
    }

    /// Hashes samples of the data area (R12); waits for the disk.
    pub fn fingerprint(&self, samples: &[ByteRange]) -> Result<[u8; 32], DiskError> {
        fingerprint(&self.data, samples)
    }

    /// A second handle on the data for [`Fingerprinter::take`] in another thread.
    pub(crate) fn fingerprinter(&self, samples: Vec<ByteRange>) -> io::Result<Fingerprinter> {
        let data = &self.data;
        let part = Part { file: data.file.try_clone()?, path: data.path.clone(), ..*data };
        Ok(Fingerprinter { part, samples })
    }

    /// Which parts of a range are holes, in order: lengths in bytes and whether it is a hole. A
    /// block device tells nothing.
    pub(crate) fn map(&self, range: ByteRange, runs_max: usize) -> io::Result<Vec<(u64, bool)>> {
        if self.data.is_device || self.test != TestBacking::Off {
            return Ok(vec![(range.length, false)]);
        }
        let mut runs = Vec::new();
        let mut at = range.start;
        let mut is_hole = false;
        while at < range.end() && runs.len() < runs_max {
            // Alternately to the end of the data and to the end of the hole; the first may be 0.
            let whence = if is_hole { Whence::SeekData } else { Whence::SeekHole };
            let end = match lseek(&self.data.file, at as i64, whence) {
                Ok(end) => (end as u64).min(range.end()),
                // No data behind here.
                Err(nix::errno::Errno::ENXIO) => range.end(),
                Err(error) => return Err(error.into()),
            };
            if end > at {
                runs.push((end - at, is_hole));
            }
            at = end;
            is_hole = !is_hole;
        }
        Ok(runs)
    }

    pub(crate) fn data_file(&self) -> &File {
        &self.data.file
    }

    pub(crate) fn meta_file(&self) -> &File {
        &self.meta_part().file
    }

    fn meta_part(&self) -> &Part {
        self.meta.as_ref().unwrap_or(&self.data)
    }
}

/// Moves the metadata to the new end of their device; see `room.rs` of the core.
#[derive(Debug)]
pub(crate) struct Mover {
    part: Part,
    region_start: u64,
}

impl Mover {
    /// Copies, then writes the superblock, then destroys the old ones; waits for the disk.
    pub fn run(&self, to: &MetaMove) -> Result<(), DiskError> {
        if let Err(error) = self.copy(to).and_then(|()| self.write_superblocks(to)) {
            // What is there may be whole, and must not count. Should that fail too, what is
            // written where the metadata lie from now on is newer, and counts.
            let _ = self.zero_superblocks(to.superblocks.map(|at| to.region_start + at));
            return Err(error);
        }
        // Those that stay are older, and zeroed with what is to be room.
        if let Err(error) = self.zero_superblocks(to.old_superblocks) {
            tracing::warn!(%error, "the old superblocks are not destroyed");
        }
        Ok(())
    }

    fn copy(&self, to: &MetaMove) -> Result<(), DiskError> {
        self.part.write(to.region_start, to.region_bytes, |_, piece| piece.fill(0))?;
        for (from, at) in &to.copies {
            let mut done = from.start;
            while done < from.end {
                let length = STEP_BYTES.min(from.end - done);
                let mut bytes = Vec::with_capacity(length as usize);
                let take = |piece: &[u8]| bytes.extend_from_slice(piece);
                self.part.read(self.region_start + done, length, take)?;
                self.write(to.region_start + at + (done - from.start), &bytes)?;
                done += length;
            }
        }
        self.part.flush()
    }

    fn write_superblocks(&self, to: &MetaMove) -> Result<(), DiskError> {
        to.superblocks.iter().try_for_each(|at| {
            self.write(to.region_start + at, &to.superblock)?;
            self.part.flush()
        })
    }

    fn zero_superblocks(&self, places: [u64; 2]) -> Result<(), DiskError> {
        places.iter().try_for_each(|&at| self.write(at, &[0; SUPERBLOCK_BYTES]))?;
        self.part.flush()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.part.write(at, bytes.len() as u64, |offset, piece| {
            piece.copy_from_slice(&bytes[offset..offset + piece.len()]);
        })
    }
}

/// Takes the fingerprint while the loop serves.
#[derive(Debug)]
pub(crate) struct Fingerprinter {
    part: Part,
    samples: Vec<ByteRange>,
}

impl Fingerprinter {
    /// Reads and hashes; waits for the disk.
    pub fn take(&self) -> Result<[u8; 32], DiskError> {
        fingerprint(&self.part, &self.samples)
    }
}

fn fingerprint(part: &Part, samples: &[ByteRange]) -> Result<[u8; 32], DiskError> {
    let mut hasher = blake3::Hasher::new();
    for sample in samples {
        part.read(sample.start, sample.length, |piece| {
            hasher.update(piece);
        })?;
    }
    Ok(hasher.finalize().into())
}

impl Part {
    fn open(
        path: &Path,
        waiting: &mut dyn FnMut(Waiting<'_>) -> ControlFlow<()>,
    ) -> Result<Self, DiskError> {
        let error = |source: io::Error| match source.raw_os_error() {
            Some(libc::EINVAL) => DiskError::NoDirect { path: path.to_owned() },
            _ => DiskError::Open { path: path.to_owned(), source },
        };
        let kind = fs::metadata(path).map_err(error)?.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        // On a block device O_EXCL keeps mounts, LVM and md away, and refuses theirs.
        let exclusive = if is_device { libc::O_EXCL } else { 0 };
        let since = Instant::now();
        let mut wait = |locked: io::Result<fs::Metadata>| {
            let holder = locked.ok().and_then(|file| lock_holder(&file));
            match waiting(Waiting { path, holder, since: since.elapsed() }) {
                ControlFlow::Continue(()) => {
                    thread::sleep(LOCK_POLL);
                    Ok(())
                }
                ControlFlow::Break(()) => Err(DiskError::GaveUp { path: path.to_owned() }),
            }
        };
        let file = loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | exclusive)
                .open(path);
            match opened {
                Ok(file) => break file,
                Err(e) if is_device && e.raw_os_error() == Some(libc::EBUSY) => {
                    // A daemon that was killed has its claim, and its lock, until its last write.
                    wait(fs::metadata(path))?;
                }
                Err(e) => return Err(error(e)),
            }
        };
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) => wait(file.metadata())?,
                Err(fs::TryLockError::Error(e)) => return Err(error(e)),
            }
        }
        let bytes = lseek(&file, 0, Whence::SeekEnd).map_err(|e| error(e.into()))? as u64;
        let block_bytes = block_bytes_of(&file, is_device).map_err(error)?;
        Ok(Self { file, path: path.to_owned(), bytes, block_bytes, is_device })
    }

    /// How large it is now. A seek to the end of a block device would wait for zeroes that are
    /// being written to it: the kernel lets one of both in.
    fn measure(&self) -> io::Result<u64> {
        const SECTOR_BYTES: u64 = 512;
        let metadata = self.file.metadata()?;
        if !self.is_device {
            return Ok(metadata.len());
        }
        let device = metadata.rdev();
        let told =
            fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(device), minor(device)))?;
        let sectors: u64 = told.trim().parse().map_err(io::Error::other)?;
        Ok(sectors * SECTOR_BYTES)
    }

    /// Reads a range of any alignment, in pieces.
    fn read(&self, at: u64, length: u64, mut take: impl FnMut(&[u8])) -> Result<(), DiskError> {
        let wanted = ByteRange::new(at, length);
        let aligned = wanted.align_out(u64::from(self.block_bytes));
        let fail = |at, source| self.failed("reading", at, source);
        let step_bytes = STEP_BYTES.min(aligned.length.max(1));
        let mut bounce = MmapMut::map_anon(step_bytes as usize).map_err(|e| fail(at, e))?;
        let mut at = aligned.start;
        while at < aligned.end() {
            let step = &mut bounce[..STEP_BYTES.min(aligned.end() - at) as usize];
            self.file.read_exact_at(step, at).map_err(|e| fail(at, e))?;
            let from = wanted.start.saturating_sub(at) as usize;
            let to = (wanted.end() - at).min(step.len() as u64) as usize;
            take(&step[from..to]);
            at += step.len() as u64;
        }
        Ok(())
    }

    /// Writes an aligned range in pieces; `fill` gets the offset from its start.
    fn write(
        &self,
        at: u64,
        length: u64,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), DiskError> {
        let range = ByteRange::new(at, length);
        assert!(range.is_aligned(u64::from(self.block_bytes)), "unaligned write at {at}");
        let fail = |at, source| self.failed("writing", at, source);
        let step_bytes = STEP_BYTES.min(length.max(1));
        let mut bounce = MmapMut::map_anon(step_bytes as usize).map_err(|e| fail(at, e))?;
        let mut done = 0;
        while done < length {
            let step = &mut bounce[..STEP_BYTES.min(length - done) as usize];
            fill(done as usize, step);
            self.file.write_all_at(step, at + done).map_err(|e| fail(at + done, e))?;
            done += step.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|source| self.failed("flushing", 0, source))
    }

    fn failed(&self, during: &'static str, at: u64, source: io::Error) -> DiskError {
        DiskError::Access { during, path: self.path.clone(), at, source }
    }

    /// Asks without changing anything: a hole behind the end of a file is none, and a device
    /// tells in sysfs.
    fn can_punch(&self) -> bool {
        if self.is_device {
            return queue_number(&self.file, true, "write_zeroes_max_bytes").is_some_and(|n| n > 0);
        }
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let behind = self.bytes.next_multiple_of(4096) as i64;
        fallocate(&self.file, mode, behind, 4096).is_ok()
    }
}

/// The unit of direct I/O: the logical block size of the device, or of the device below a file.
pub(crate) fn block_bytes_of(file: &File, is_device: bool) -> io::Result<u32> {
    let told = queue_number(file, is_device, "logical_block_size");
    Ok(told
        .and_then(|bytes| u32::try_from(bytes).ok())
        .filter(|bytes| bytes.is_power_of_two() && (512..=65536).contains(bytes))
        .unwrap_or(BLOCK_BYTES_FALLBACK))
}

/// A number from the queue directory of a block device in sysfs, or of the one a file lies on.
fn queue_number(file: &File, is_device: bool, name: &str) -> Option<u64> {
    let metadata = file.metadata().ok()?;
    let device = if is_device { metadata.rdev() } else { metadata.dev() };
    let base = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition has its queue in the directory of the whole disk, one up.
    ["queue", "../queue"].into_iter().find_map(|queue| {
        fs::read_to_string(format!("{base}/{queue}/{name}")).ok()?.trim().parse().ok()
    })
}

//! What the metadata of a replica say, read from the disk without a daemon. Never writes and takes
//! no lock, so it also works beside a running daemon (and may then see an update half done).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use replicator_core::activity_log;
use replicator_core::bitmap::DirtyBitmap;
use replicator_core::block::DIRTY_BLOCK_BYTES;
use replicator_core::metadata::{AttachError, SUPERBLOCK_BYTES, Superblock};
use serde::Serialize;
use thiserror::Error;

use crate::metadata_end::{self, RememberedEnds};

/// Everything that is worth showing.
#[derive(Debug, Serialize)]
pub struct Dump {
    /// Where it was read.
    pub path: PathBuf,
    /// Whether fewer than two copies of the newest superblock were readable: a crash, or damage.
    pub single_copy: bool,
    /// Rises with every update of the superblock.
    pub sequence: u64,
    /// Random id of the resource.
    pub resource_id: String,
    /// Name of the resource.
    pub resource: String,
    /// The node it was made on.
    pub node: String,
    /// Random id of the replica.
    pub replica: String,
    /// Boot id of the last writer.
    pub incarnation: String,
    /// Bytes of the data area.
    pub data_bytes: u64,
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Whether the metadata lie on the disk with the data.
    pub internal: bool,
    /// First byte and length of the metadata region.
    pub region: (u64, u64),
    /// Newest tenure accepted.
    pub tenure: u64,
    /// The register copy.
    pub register: RegisterDump,
    /// `clean`, `invalid`, `syncing`, `discard_diverged`, `assumed_equal`, as far as set.
    pub flags: Vec<&'static str>,
    /// A generation that this replica was told it will join in; 0: none.
    pub coming: u64,
    /// The activity log.
    pub log: LogDump,
    /// What is known of each peer.
    pub peers: Vec<PeerDump>,
}

/// The register copy.
#[derive(Debug, Serialize)]
pub struct RegisterDump {
    /// Its generation.
    pub generation: u64,
    /// Generation in which the last primary took office.
    pub tenure: u64,
    /// Replica id of the primary; empty when there is none.
    pub primary: String,
    /// Replica id of the authority; empty when there is none.
    pub authority: String,
    /// Replica ids of the in-sync set.
    pub set: Vec<String>,
    /// The boot ids that its members were recorded with, in the same order.
    pub set_incarnations: Vec<String>,
    /// Whether the last primary released its office orderly.
    pub released_clean: bool,
}

/// The activity log.
#[derive(Debug, Serialize)]
pub struct LogDump {
    /// Slots in all.
    pub slots: u16,
    /// Its epoch.
    pub epoch: u64,
    /// Extents that count as different after a crash; none when the log cannot be trusted, which
    /// means all.
    pub hot_extents: Option<usize>,
}

/// What is known of one peer.
#[derive(Debug, Serialize)]
pub struct PeerDump {
    /// Node name.
    pub node: String,
    /// The replica met there last; empty: none yet.
    pub replica: String,
    /// The generation at which the bitmap was last empty.
    pub base: u64,
    /// Whether everything counts as dirty.
    pub all_dirty: bool,
    /// Dirty blocks in the bitmap.
    pub dirty_blocks: u64,
    /// The same in bytes.
    pub dirty_bytes: u64,
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum DumpError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no metadata that can be used.
    #[error("{path}: {source}")]
    Metadata {
        /// What.
        path: PathBuf,
        /// Why.
        source: AttachError,
    },
}

/// Reads the metadata of a disk or metadata device; `remembered` says where they may lie when that
/// was extended.
pub fn read(path: &Path, remembered: &RememberedEnds) -> Result<Dump, DumpError> {
    let io = |source| DumpError::Io { path: path.to_owned(), source };
    let bad = |source| DumpError::Metadata { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
    let read = |at| {
        let mut copy = vec![0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut copy, at).map(|()| copy)
    };
    let found = metadata_end::find(bytes, remembered, read).map_err(io)?;
    let (superblock, single_copy, _) = found.map_err(bad)?;
    let layout = superblock.layout();
    if layout.region_start + layout.region_bytes > bytes {
        return Err(bad(AttachError::SizeChanged(superblock.device_bytes, bytes)));
    }
    let part = |range: &std::ops::Range<u64>| {
        let mut part = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut part, layout.region_start + range.start).map(|()| part)
    };
    let log = part(&layout.log).map_err(io)?;
    let mut bitmaps = Vec::new();
    for range in &layout.bitmaps {
        bitmaps.push(part(range).map_err(io)?);
    }
    Ok(describe(path, &superblock, single_copy, &log, &bitmaps))
}

fn id(id: u128) -> String {
    if id == 0 { String::new() } else { format!("{id:032x}") }
}

fn describe(
    path: &Path,
    superblock: &Superblock,
    single_copy: bool,
    log: &[u8],
    bitmaps: &[Vec<u8>],
) -> Dump {
    let register = &superblock.register;
    let layout = superblock.layout();
    let hot_extents = match activity_log::replay(log, superblock.log_epoch, superblock.log_extents)
    {
        activity_log::Replay::Hot(ranges) => Some(ranges.len()),
        activity_log::Replay::Unreadable => None,
    };
    let flags = [
        (superblock.clean, "clean"),
        (superblock.invalid, "invalid"),
        (superblock.syncing, "syncing"),
        (superblock.discard_diverged, "discard_diverged"),
        (superblock.assumed_equal, "assumed_equal"),
    ];
    let peers = superblock.peers.iter().map(|peer| {
        let region = &bitmaps[usize::from(peer.slot)];
        let bitmap = DirtyBitmap::load(superblock.blocks(), peer.base, superblock.tag(), region);
        let dirty_blocks = bitmap.blocks().count();
        PeerDump {
            node: peer.node.clone(),
            replica: id(peer.replica.0),
            base: peer.base,
            all_dirty: peer.all_dirty,
            dirty_blocks,
            dirty_bytes: dirty_blocks * DIRTY_BLOCK_BYTES,
        }
    });
    Dump {
        path: path.to_owned(),
        single_copy,
        sequence: superblock.sequence,
        resource_id: id(superblock.resource_id),
        resource: superblock.resource.clone(),
        node: superblock.node.clone(),
        replica: id(superblock.replica.0),
        incarnation: id(superblock.incarnation.0),
        data_bytes: superblock.data_bytes,
        block_bytes: superblock.block_bytes,
        internal: superblock.internal,
        region: (layout.region_start, layout.region_bytes),
        tenure: superblock.tenure,
        register: RegisterDump {
            generation: register.generation,
            tenure: register.tenure,
            primary: register.primary.map_or(String::new(), |replica| id(replica.0)),
            authority: register.authority.map_or(String::new(), |replica| id(replica.0)),
            set: register.set.iter().map(|member| id(member.replica.0)).collect(),
            set_incarnations: register.set.iter().map(|member| id(member.incarnation.0)).collect(),
            released_clean: register.released_clean,
        },
        flags: flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect(),
        coming: superblock.coming,
        log: LogDump { slots: superblock.log_extents, epoch: superblock.log_epoch, hot_extents },
        peers: peers.collect(),
    }
}

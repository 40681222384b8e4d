//! Making a disk a replica: `replctl create`, without a daemon. It looks first and refuses whatever
//! would destroy something that nobody said may be destroyed; then it writes the metadata and
//! nothing else. The data area begins at offset 0 and stays as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use replicator_core::block::ReplicaId;
use replicator_core::metadata::{self, FormatError, FormatRequest, Layout, Superblock};
use serde::Serialize;
use thiserror::Error;

use crate::config::{ClusterConfig, NodeConfig, ResourceConfig};
use crate::device_use;
use crate::disk::block_bytes_of;
use crate::incarnation;
use crate::key::ClusterKey;
use crate::signature::{self, Finding};

/// Block size of a resource on a disk with smaller or equal sectors.
const BLOCK_BYTES_DEFAULT: u32 = 512;

/// What `replctl create` was asked for.
pub struct CreateRequest<'a> {
    /// The whole configuration.
    pub cluster: &'a ClusterConfig,
    /// The node whose disk it is: this machine.
    pub node: &'a NodeConfig,
    /// The resource.
    pub resource: &'a ResourceConfig,
    /// The key of the cluster, from which the resource's id is derived.
    pub key: &'a ClusterKey,
    /// This disk holds the data (R11b).
    pub origin: bool,
    /// All disks hold the same data already (R10).
    pub assume_equal: bool,
    /// The words of the findings that may be destroyed.
    pub destroy: Vec<String>,
    /// Wanted size of the data area in bytes.
    pub size_bytes: Option<u64>,
    /// Wanted block size in bytes.
    pub block_bytes: Option<u32>,
    /// Tells this resource from an earlier one of the same name.
    pub life: String,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The resource.
    pub resource: String,
    /// The node.
    pub node: String,
    /// The disk with the data.
    pub disk: PathBuf,
    /// Where the metadata lie.
    pub metadata: PathBuf,
    /// Whether that is the disk itself.
    pub internal: bool,
    /// Size of the data area in bytes; must be the same on every node.
    pub size_bytes: u64,
    /// Block size in bytes; must be the same on every node.
    pub block_bytes: u32,
    /// Bytes of the metadata.
    pub metadata_bytes: u64,
    /// The new replica's id.
    pub replica: String,
    /// Whether this disk is the origin of the data.
    pub origin: bool,
    /// Whether the data of all nodes were declared equal.
    pub assume_equal: bool,
    /// What was on the disk and is lost, or will be overwritten by the first resync.
    pub given_up: Vec<String>,
    /// What was on the disk and stays.
    pub kept: Vec<String>,
}

/// Why a disk was not made a replica. Nothing was written then, except for `Write`.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The disk or the metadata device cannot be opened or read.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{0} is neither a block device nor a regular file")]
    NotADisk(PathBuf),
    /// Somebody uses it.
    #[error(
        "{path} is in use: {}; stop that first (a running daemon: `replctl down {resource}`)",
        if users.is_empty() { "the kernel does not say by whom".into() } else { users.join(", ") }
    )]
    InUse {
        /// What.
        path: PathBuf,
        /// By whom.
        users: Vec<String>,
        /// The resource that was to be made.
        resource: String,
    },
    /// It holds something, and nobody said that it may go.
    #[error(
        "{path} holds {}; {fate}. If that is what you want, say so: --force {say}",
        titles(findings)
    )]
    Occupied {
        /// What.
        path: PathBuf,
        /// What is there.
        findings: Vec<Finding>,
        /// What would happen to it.
        fate: &'static str,
        /// All words that have to be given, those included that were.
        say: String,
    },
    /// Internal metadata would overwrite the end of what is to be kept.
    #[error(transparent)]
    FillsDisk(Box<FillsDisk>),
    /// `--force` names something that is not there: the operator thinks of another disk.
    #[error(
        "--force {word} was given, but {path} holds {}; is it the right disk?",
        if findings.is_empty() { "nothing".to_owned() } else { titles(findings) }
    )]
    NotThere {
        /// What was named.
        word: String,
        /// The disk.
        path: PathBuf,
        /// What is there.
        findings: Vec<Finding>,
    },
    /// The disk's sectors are larger than the wanted block size.
    #[error("{path} has sectors of {sector} bytes; the block size cannot be {wanted}")]
    BlockSize {
        /// The disk.
        path: PathBuf,
        /// Its logical sector size in bytes.
        sector: u32,
        /// The wanted block size in bytes.
        wanted: u32,
    },
    /// The core refuses the sizes or names.
    #[error("{path}: {source}")]
    Format {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// Random numbers or the boot id are not to be had.
    #[error("cannot make an id: {0}")]
    Id(io::Error),
    /// `init --from` where it makes no sense.
    #[error("{0}")]
    Origin(String),
}

/// What is to be kept reaches into the place of the metadata.
#[derive(Debug, Error)]
#[error(
    "{path} holds {}, which uses the disk up to byte {end}; metadata at its end need everything \
     from byte {room} on. Keep the metadata elsewhere: write metadata.{node} = \"{external}\" into \
     [resource.{resource}] (a file or partition of {needs} bytes), or shrink it to {room} bytes \
     first",
    finding.title
)]
pub struct FillsDisk {
    /// The disk.
    pub path: PathBuf,
    /// What is there.
    pub finding: Finding,
    /// Where it ends in bytes.
    pub end: u64,
    /// The first byte of the metadata.
    pub room: u64,
    /// Bytes of the metadata.
    pub needs: u64,
    /// The node.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// A good place for the metadata.
    pub external: PathBuf,
}

fn titles(findings: &[Finding]) -> String {
    let titles: Vec<&str> = findings.iter().map(|finding| finding.title.as_str()).collect();
    titles.join(" and ")
}

/// A disk or metadata device that nobody else uses, until it is dropped.
pub struct Claimed {
    path: PathBuf,
    file: Flock<File>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Smallest unit of direct access in bytes.
    pub sector_bytes: u32,
}

impl Claimed {
    /// Opens and locks it: `O_EXCL` on block devices keeps mounts away, the lock keeps daemons
    /// away (R2e).
    pub fn open(path: &Path, resource: &str) -> Result<Self, CreateError> {
        let io = |verb, source| CreateError::Io { verb, path: path.to_owned(), source };
        let in_use = || CreateError::InUse {
            path: path.to_owned(),
            users: device_use::users(path).unwrap_or_default(),
            resource: resource.to_owned(),
        };
        let kind = fs::metadata(path).map_err(|source| io("open", source))?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(CreateError::NotADisk(path.to_owned()));
        }
        let exclusive = if kind.is_block_device() { libc::O_EXCL } else { 0 };
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let file = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => in_use(),
            _ => io("open", error),
        })?;
        let mut file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| in_use())?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| io("measure", source))?;
        let is_device = kind.is_block_device();
        let sector_bytes =
            block_bytes_of(&file, is_device).map_err(|source| io("measure", source))?;
        Ok(Self { path: path.to_owned(), file, bytes, sector_bytes })
    }

    fn io(&self, verb: &'static str) -> impl Fn(io::Error) -> CreateError {
        let path = self.path.clone();
        move |source| CreateError::Io { verb, path: path.clone(), source }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CreateError> {
        let written = self.file.write_all_at(bytes, at).and_then(|()| self.file.sync_all());
        written.map_err(self.io("write"))
    }

    fn zero(&self, range: std::ops::Range<u64>) -> Result<(), CreateError> {
        const PIECE: u64 = 1 << 20;
        let zeroes = vec![0; PIECE as usize];
        let mut at = range.start;
        while at < range.end {
            let length = PIECE.min(range.end - at);
            let written = self.file.write_all_at(&zeroes[..length as usize], at);
            written.map_err(self.io("write"))?;
            at += length;
        }
        self.file.sync_all().map_err(self.io("write"))
    }
}

/// Makes the disk of a node a replica of a resource.
pub fn create(request: &CreateRequest<'_>) -> Result<Created, CreateError> {
    let copy = request.resource.copy_on(&request.node.name);
    let name = &request.resource.name;
    let disk = Claimed::open(&copy.disk, name)?;
    let peers = peer_names(request.cluster, &request.node.name);
    let bitmap_slots = peers.len().max(metadata::BITMAP_SLOTS_MIN);
    let external = match &copy.metadata {
        None => None,
        Some(path) => {
            let wanted = request.size_bytes.unwrap_or(disk.bytes & !4095);
            let needs = Layout::new(u64::MAX / 2, wanted, bitmap_slots).region_bytes;
            Some(open_metadata(path, needs, name)?)
        }
    };
    let sector = external.as_ref().map_or(0, |device| device.sector_bytes).max(disk.sector_bytes);
    let block_bytes = request.block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT.max(sector));
    if block_bytes < sector {
        return Err(CreateError::BlockSize {
            path: copy.disk.clone(),
            sector,
            wanted: block_bytes,
        });
    }
    let format = FormatRequest {
        device_bytes: external.as_ref().unwrap_or(&disk).bytes,
        internal: copy.metadata.is_none(),
        disk_bytes: disk.bytes,
        data_bytes: request.size_bytes,
        room_bytes: None,
        block_bytes,
        log_extents: request.resource.log_extents,
        resource: name.clone(),
        resource_id: request.key.resource_id(&request.cluster.cluster, name, &request.life),
        node: request.node.name.clone(),
        replica: ReplicaId(incarnation::random_id().map_err(CreateError::Id)?),
        peers,
        bitmap_slots,
        incarnation: incarnation::of_this_boot().map_err(CreateError::Id)?,
        origin: request.origin,
        assume_equal: request.assume_equal,
    };
    let refused = |source| CreateError::Format { path: copy.disk.clone(), source };

    let formatted = metadata::format(&format).map_err(refused)?;

    let mut findings = signature::find(&disk.file, disk.bytes).map_err(disk.io("read"))?;
    let (kept, mut given_up) = judge(request, &disk, &findings, &formatted.layout)?;
    if let Some(device) = &external {
        let there = signature::find(&device.file, device.bytes).map_err(device.io("read"))?;
        given_up.extend(must_be_named(request, device, &there, "new metadata would replace it")?);
        findings.extend(there);
    }
    let unknown = |word: &&String| !findings.iter().any(|finding| finding.word == **word);
    if let Some(word) = request.destroy.iter().find(unknown) {
        let path = copy.disk.clone();
        return Err(CreateError::NotThere { word: word.clone(), path, findings });
    }

    let target = external.as_ref().unwrap_or(&disk);
    target.zero(formatted.zero.clone())?;
    for (at, bytes) in &formatted.writes {
        target.write(*at, bytes)?;
    }
    Ok(Created {
        resource: name.clone(),
        node: request.node.name.clone(),
        disk: copy.disk.clone(),
        metadata: target.path.clone(),
        internal: format.internal,
        size_bytes: formatted.data_bytes,
        block_bytes,
        metadata_bytes: formatted.layout.region_bytes,
        replica: format!("{:032x}", format.replica.0),
        origin: request.origin,
        assume_equal: request.assume_equal,
        given_up,
        kept,
    })
}

fn peer_names(cluster: &ClusterConfig, node: &str) -> Vec<String> {
    cluster.peers_of(node).iter().map(|peer| peer.name.clone()).collect()
}

/// Opens the external metadata device; makes the file when it does not exist.
fn open_metadata(path: &Path, needs: u64, resource: &str) -> Result<Claimed, CreateError> {
    if !path.exists() {
        let io = |source| CreateError::Io { verb: "create", path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|file| file.set_len(needs)).map_err(io)?;
    }
    Claimed::open(path, resource)
}

/// What stays on the disk and what is given up, in words; or the refusal.
fn judge(
    request: &CreateRequest<'_>,
    disk: &Claimed,
    findings: &[Finding],
    layout: &Layout,
) -> Result<(Vec<String>, Vec<String>), CreateError> {
    let (ours, others): (Vec<_>, Vec<_>) =
        findings.iter().cloned().partition(|finding| finding.word == "replicator");
    let fate = "its knowledge of what differs from the other nodes would be lost";
    let mut given_up = must_be_named(request, disk, &ours, fate)?;

    let keeps_data = request.origin || request.assume_equal;
    if !keeps_data {
        let fate = "the first resync from the origin would overwrite it (if instead these are the \
                    data to keep, say --origin)";
        given_up.extend(must_be_named(request, disk, &others, fate)?);
        return Ok((Vec::new(), given_up));
    }
    let is_internal = request.resource.copy_on(&request.node.name).metadata.is_none();
    let mut kept = Vec::new();
    for finding in others {
        let fits = finding.end.is_some_and(|end| end <= layout.region_start);
        // Data of an unknown kind are kept as far as they go; only their very end is at stake.
        if !is_internal || fits {
            kept.push(finding.title);
        } else if request.destroy.iter().any(|word| word == finding.word) {
            given_up.push(finding.title);
        } else {
            return Err(fills_disk(request, disk, finding, layout));
        }
    }
    Ok((kept, given_up))
}

fn fills_disk(
    request: &CreateRequest<'_>,
    disk: &Claimed,
    finding: Finding,
    layout: &Layout,
) -> CreateError {
    let resource = request.resource.name.clone();
    CreateError::FillsDisk(Box::new(FillsDisk {
        path: disk.path.clone(),
        end: finding.end.unwrap_or(disk.bytes),
        finding,
        room: layout.region_start,
        needs: layout.region_bytes + request.cluster.nodes.len() as u64 * 4096,
        node: request.node.name.clone(),
        external: request.node.state_dir.join(format!("{resource}.meta")),
        resource,
    }))
}

/// The titles of findings that may go because the operator named them, or the refusal.
fn must_be_named(
    request: &CreateRequest<'_>,
    device: &Claimed,
    findings: &[Finding],
    fate: &'static str,
) -> Result<Vec<String>, CreateError> {
    let named = |finding: &Finding| request.destroy.iter().any(|word| word == finding.word);
    if findings.iter().all(named) {
        return Ok(findings.iter().map(|finding| finding.title.clone()).collect());
    }
    let unnamed = findings.iter().filter(|finding| !named(finding)).map(|finding| finding.word);
    let given = request.destroy.iter().map(String::as_str);
    let say = given.chain(unnamed).collect::<Vec<_>>().join(",");
    let path = device.path.clone();
    Err(CreateError::Occupied { path, findings: findings.to_vec(), fate, say })
}

/// Names this node's replica as the origin of the data of a resource that never had one (R11b):
/// `replctl init RES --from NODE`.
pub fn name_origin(node: &NodeConfig, resource: &ResourceConfig) -> Result<(), CreateError> {
    let copy = resource.copy_on(&node.name);
    let path = copy.metadata.as_deref().unwrap_or(&copy.disk);
    let device = Claimed::open(path, &resource.name)?;
    let offsets = metadata::superblock_offsets(device.bytes);
    let mut copies = [[0; metadata::SUPERBLOCK_BYTES]; 2];
    for (copy, at) in copies.iter_mut().zip(offsets) {
        device.file.read_exact_at(copy, at).map_err(device.io("read"))?;
    }
    let (mut superblock, _) = metadata::read_superblocks([&copies[0], &copies[1]])
        .map_err(|error| CreateError::Origin(format!("{}: {error}", path.display())))?;
    refuse_second_origin(&superblock)?;
    let incarnation = incarnation::of_this_boot().map_err(CreateError::Id)?;
    superblock.sequence += 1;
    superblock.incarnation = incarnation;
    superblock.register = superblock.register.with(superblock.replica, incarnation);
    superblock.register.authority = Some(superblock.replica);
    superblock.register.released_clean = true;
    for at in offsets {
        device.write(at, &superblock.encode())?;
    }
    Ok(())
}

fn refuse_second_origin(superblock: &Superblock) -> Result<(), CreateError> {
    if superblock.register.generation == 0 && superblock.register.set.is_empty() {
        return Ok(());
    }
    Err(CreateError::Origin(format!(
        "{} has an origin already (generation {}): the origin is named once in the life of a \
         resource (R11b). To serve the data of this node use `replctl promote`, to start over use \
         `replctl create` on every node",
        superblock.resource, superblock.register.generation
    )))
}

#[cfg(test)]
mod tests;

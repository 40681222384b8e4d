//! How the device of a primary becomes a block device: `/dev/replicator/RESOURCE`.
//!
//! Whatever the kernel offers, the data loop sees the same: one end of a socket pair on which NBD's
//! transmission phase runs (28-byte requests, simple replies), as if a client had just finished its
//! handshake. Behind the other end is
//! - `kernel_nbd`: the kernel's nbd driver itself, or
//! - `fuse_loop`: a file system of one file that this process serves (`fuse_server`), under a loop
//!   device, for kernels without nbd.
//!
//! Both survive a daemon that is killed: users of the device wait, and the next daemon's [`attach`]
//! goes on with it ([`Attached::adopted`]). The kernel then sends again what was not answered, so a
//! write may be executed twice. That is safe if, and only if, nothing of the old daemon's is under
//! way any more: take the lock of the disk before attaching. And when a stream ends while the loop
//! still works on requests from it, the loop must finish those, or serialise them against the
//! same requests that come again on the next stream.
//!
//! Everything here may block, also on I/O to the device itself: call it from a thread that never
//! serves I/O, while the data loop already runs.

mod disk;
mod error;
mod fuse_loop;
mod fuse_server;
mod fuse_wire;
pub mod holder;
mod keeper;
mod kernel_nbd;
mod loop_device;
mod names;
mod netlink;
mod stream;
mod syscalls;
mod tuning;
mod users;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::Disk;
use fuse_loop::FuseDevice;
use kernel_nbd::NbdDevice;
use names::{Names, Watch};

pub use error::{AttachError, InUse};
pub use keeper::Keeper;
pub use users::{User, UserKind};

/// Gives the data loop its end of a new stream, which must be served from that moment on. The loop
/// closes a stream that has ended; its other streams are not concerned.
pub type Serve<'a> = &'a mut dyn FnMut(OwnedFd);

/// How long udev may look at a new or changed device before that counts as use.
const UDEV_PATIENCE: Duration = Duration::from_secs(3);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// The setting `attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel's nbd if it has it, else FUSE.
    #[default]
    Auto,
    /// Only the kernel's nbd.
    Nbd,
    /// Only a loop device on a FUSE file.
    Fuse,
    /// No block device; clients speak NBD.
    None,
}

impl FromStr for Choice {
    type Err = AttachError;

    fn from_str(text: &str) -> Result<Self, AttachError> {
        match text {
            "auto" => Ok(Self::Auto),
            "nbd" => Ok(Self::Nbd),
            "fuse" => Ok(Self::Fuse),
            "none" => Ok(Self::None),
            _ => Err(bad("attach", text, "auto, nbd, fuse or none")),
        }
    }
}

/// What a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's nbd driver.
    Nbd,
    /// A loop device on a FUSE file.
    Fuse,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        })
    }
}

/// What the NBD side can do beyond reads, writes, flushes and FUA.
#[derive(Debug, Clone, Copy, Default)]
pub struct Features {
    /// TRIM.
    pub trim: bool,
    /// WRITE_ZEROES; discards of the FUSE kind need it too, as they promise zeroes.
    pub write_zeroes: bool,
    /// The disk turns.
    pub rotational: bool,
}

/// What to attach.
#[derive(Debug, Clone)]
pub struct Request {
    /// Name of the device: `RESOURCE`, or `RESOURCE/VOLUME`.
    pub resource: String,
    /// Identity of the resource over restarts: 1 to 48 letters, digits and dashes.
    pub uuid: String,
    /// Size of the device: a multiple of the block size, above 0.
    pub size_bytes: u64,
    /// Logical block size: a power of two from 512 to 4096.
    pub block_size_bytes: u32,
    /// What the NBD side can do.
    pub features: Features,
    /// How long users wait for a new daemon before they get I/O errors, in seconds, above 0. Only
    /// the kernel's nbd has such a limit; users of the FUSE kind wait for ever.
    pub dead_connection_timeout_s: u32,
    /// Where the device's links are made.
    pub device_dir: PathBuf,
    /// Which kind is wanted. A device of another kind that is still there is continued anyway.
    pub choice: Choice,
}

impl Request {
    /// Default of [`Request::dead_connection_timeout_s`].
    pub const DEAD_CONNECTION_TIMEOUT_S: u32 = 600;
    /// Default of [`Request::device_dir`].
    pub const DEVICE_DIR: &str = "/dev/replicator";

    fn check(&self) -> Result<(), AttachError> {
        let name_ok = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
        };
        let mut parts = self.resource.splitn(2, '/');
        if !parts.all(name_ok) || self.resource.len() > 128 {
            let rule = "letters, digits, dots, dashes and at most one slash; up to 128 bytes";
            return Err(bad("the resource's name", &self.resource, rule));
        }
        let uuid_ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if !(1..=48).contains(&self.uuid.len()) || !self.uuid.bytes().all(uuid_ok) {
            return Err(bad("the uuid", &self.uuid, "1 to 48 letters, digits and dashes"));
        }
        let block = self.block_size_bytes;
        if !block.is_power_of_two() || !(512..=4096).contains(&block) {
            return Err(bad("the block size", block, "a power of two from 512 to 4096"));
        }
        let size = self.size_bytes;
        if size == 0 || !size.is_multiple_of(block.into()) || size > i64::MAX as u64 {
            return Err(bad("the size", size, "a multiple of the block size above 0"));
        }
        if self.dead_connection_timeout_s == 0 {
            return Err(bad("the dead connection timeout", 0, "at least 1 second"));
        }
        Ok(())
    }
}

fn bad(field: &'static str, value: impl fmt::Display, rule: &'static str) -> AttachError {
    AttachError::BadRequest { field, value: value.to_string(), rule }
}

/// Something that a daemon which is gone has left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is made of.
    pub kind: Kind,
    /// The kernel's name of the device; `None` for a FUSE descriptor without a device.
    pub device: Option<String>,
    /// Whether it is in use again; else it was removed, or removes itself after its last user.
    pub adopted: bool,
    /// Who still uses it although it was removed: they get I/O errors.
    pub users: Vec<User>,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or("a descriptor without a device");
        let fate = if self.adopted { "adopted" } else { "removed" };
        write!(f, "{} leftover {device}: {fate}", self.kind)?;
        self.users.iter().try_for_each(|user| write!(f, "; {user}"))
    }
}

/// A device that this process serves. Dropping it leaves the device to the next daemon: its users
/// wait. To end it, call [`Attached::detach`] or [`Attached::fail`].
pub struct Attached {
    inner: Inner,
    names: Names,
    /// `None` after the device was detached or failed.
    watch: Option<Watch>,
    leftovers: Vec<Leftover>,
}

enum Inner {
    Nbd(NbdDevice),
    Fuse(FuseDevice),
}

/// Makes the device, or goes on with the one that an earlier daemon left for the same uuid.
///
/// `serve` is called before the device exists, and again for each further try; see [`Serve`].
pub fn attach(
    request: &Request,
    keeper: &Arc<Keeper>,
    serve: Serve<'_>,
) -> Result<Attached, AttachError> {
    request.check()?;
    if request.choice == Choice::None {
        return Err(AttachError::Disabled);
    }
    let mut leftovers = Vec::new();
    let adopted = adopt(request, keeper, serve, &mut leftovers)?;
    let is_new = adopted.is_none();
    let mut inner = match adopted {
        Some(inner) => inner,
        None => create(request, keeper, serve)?,
    };
    let names = Names::new(&request.device_dir, &request.resource);
    match publish(&names, inner.disk()) {
        Ok(watch) => Ok(Attached { inner, names, watch: Some(watch), leftovers }),
        Err(error) => {
            // A device without a name helps nobody. One that had users before keeps waiting.
            if is_new && let Err(second) = inner.fail() {
                tracing::error!("taking the new device down again: {second}");
            }
            Err(error)
        }
    }
}

fn publish(names: &Names, disk: &Disk) -> Result<Watch, AttachError> {
    let at = |action| AttachError::at(action, disk.name());
    names.publish(disk).map_err(at("making the links of the device"))?;
    Watch::start(names.clone(), disk.clone()).map_err(at("following its partitions"))
}

/// Removes what a daemon that is gone has left of the resource: all I/O to it fails from now on.
/// For a node that starts and is not (or no longer) primary.
pub fn fail_leftovers(request: &Request, keeper: &Keeper) -> Result<Vec<Leftover>, AttachError> {
    let mut leftovers = Vec::new();
    let disks = kernel_nbd::find(&request.uuid);
    if !disks.is_empty() {
        let control = kernel_nbd::control().map_err(unavailable("nbd"))?;
        for disk in disks {
            kernel_nbd::disconnect(&control, &disk)?;
            leftovers.push(removed(Kind::Nbd, Some(&disk)));
        }
    }
    let names = Names::new(&request.device_dir, &request.resource);
    let at = |action| AttachError::at(action, &request.resource);
    let held = keeper.get(&request.resource).map_err(at("asking for a kept FUSE descriptor"))?;
    let was_held = held.is_some();
    drop(held);
    if was_held {
        keeper.drop_kept(&request.resource).map_err(at("dropping the FUSE descriptor"))?;
    }
    match loop_device::find(&request.uuid) {
        Some(disk) => {
            fuse_loop::release_loop(&disk)?;
            leftovers.push(removed(Kind::Fuse, Some(&disk)));
        }
        None if was_held => leftovers.push(removed(Kind::Fuse, None)),
        None => {}
    }
    names.remove().map_err(at("removing the links of the device"))?;
    Ok(leftovers)
}

/// Everybody who still uses what an earlier daemon left of the resource, failed or not. Never
/// touches the device itself, and may be asked again until nobody is left.
pub fn users_of_leftovers(request: &Request) -> Result<Vec<User>, AttachError> {
    let mut users = Vec::new();
    for disk in kernel_nbd::find(&request.uuid).into_iter().chain(loop_device::find(&request.uuid))
    {
        match users::find_users(&disk) {
            Ok(found) => users.extend(found),
            // It went away between two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(AttachError::at("looking for users", disk.name())(error)),
        }
    }
    Ok(users)
}

fn removed(kind: Kind, disk: Option<&Disk>) -> Leftover {
    let users = disk.and_then(|disk| users::find_users(disk).ok()).unwrap_or_default();
    Leftover { kind, device: disk.map(|disk| disk.name().to_owned()), adopted: false, users }
}

/// Goes on with what an earlier daemon left, and removes what cannot be continued.
fn adopt(
    request: &Request,
    keeper: &Arc<Keeper>,
    serve: Serve<'_>,
    leftovers: &mut Vec<Leftover>,
) -> Result<Option<Inner>, AttachError> {
    let adopted = |kind, disk: &Disk| Leftover {
        kind,
        device: Some(disk.name().to_owned()),
        adopted: true,
        users: Vec::new(),
    };
    for disk in kernel_nbd::find(&request.uuid) {
        let control = kernel_nbd::control().map_err(unavailable("nbd"))?;
        match NbdDevice::adopt(control, disk.clone(), request, serve)? {
            Some(device) => {
                leftovers.push(adopted(Kind::Nbd, &disk));
                return Ok(Some(Inner::Nbd(device)));
            }
            None => leftovers.push(removed(Kind::Nbd, Some(&disk))),
        }
    }
    let at = AttachError::at("asking for a kept FUSE descriptor", &request.resource);
    if let Some(held) = keeper.get(&request.resource).map_err(at)?
        && let Some(device) = FuseDevice::adopt(held, request, keeper, serve)?
    {
        leftovers.push(adopted(Kind::Fuse, device.disk()));
        return Ok(Some(Inner::Fuse(device)));
    }
    leftovers.extend(fail_leftovers(request, keeper)?.into_iter().filter(|new| {
        // A dead nbd device that its users still hold was told above.
        new.kind == Kind::Fuse
    }));
    Ok(None)
}

fn create(request: &Request, keeper: &Arc<Keeper>, serve: Serve<'_>) -> Result<Inner, AttachError> {
    let fuse = |serve| FuseDevice::create(request, keeper, serve).map(Inner::Fuse);
    let nbd = |control, serve| NbdDevice::connect(control, request, serve).map(Inner::Nbd);
    match request.choice {
        Choice::None => Err(AttachError::Disabled),
        Choice::Nbd => nbd(kernel_nbd::control().map_err(unavailable("nbd"))?, serve),
        Choice::Fuse => {
            fuse_loop::check_available().map_err(unavailable("fuse"))?;
            fuse(serve)
        }
        Choice::Auto => match (kernel_nbd::control(), fuse_loop::check_available()) {
            (Ok(control), _) => nbd(control, serve),
            (Err(_), Ok(())) => fuse(serve),
            (Err(nbd), Err(fuse)) => Err(AttachError::NothingAvailable { nbd, fuse }),
        },
    }
}

fn unavailable(kind: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Unavailable { kind, source }
}

impl Inner {
    fn disk(&self) -> &Disk {
        match self {
            Self::Nbd(device) => device.disk(),
            Self::Fuse(device) => device.disk(),
        }
    }

    fn fail(&mut self) -> Result<(), AttachError> {
        match self {
            Self::Nbd(device) => device.fail(),
            Self::Fuse(device) => device.fail(),
        }
    }
}

impl Attached {
    /// The path that users mount, for example `/dev/replicator/mariadb`.
    pub fn path(&self) -> &Path {
        self.names.path()
    }

    /// The kernel's name of the device, for example `nbd0`.
    pub fn device(&self) -> &str {
        self.inner.disk().name()
    }

    /// What the device is made of.
    pub fn kind(&self) -> Kind {
        match self.inner {
            Inner::Nbd(_) => Kind::Nbd,
            Inner::Fuse(_) => Kind::Fuse,
        }
    }

    /// Whether the device was taken over from an earlier daemon.
    pub fn adopted(&self) -> bool {
        self.leftovers.iter().any(|leftover| leftover.adopted)
    }

    /// What was found of earlier daemons, and what became of it.
    pub fn leftovers(&self) -> &[Leftover] {
        &self.leftovers
    }

    /// Everybody who uses the device or a partition of it.
    pub fn users(&self) -> Result<Vec<User>, AttachError> {
        let disk = self.inner.disk();
        users::find_users(disk).map_err(AttachError::at("looking for users", disk.name()))
    }

    /// Takes the device away if nobody uses it. What was written is flushed first. On
    /// [`AttachError::InUse`] nothing has changed and the device is still served.
    pub fn detach(&mut self) -> Result<(), AttachError> {
        let disk = self.inner.disk().clone();
        if self.watch.is_none() {
            return Err(AttachError::Gone { device: disk.name().to_owned() });
        }
        let exclusive = claim(&disk)?;
        let at = |action| AttachError::at(action, disk.name());
        tuning::flush_by_child(&disk).map_err(at("flushing before the detach"))?;
        self.watch = None;
        match &mut self.inner {
            Inner::Nbd(device) => device.detach(exclusive)?,
            Inner::Fuse(device) => device.detach(exclusive)?,
        }
        self.names.remove().map_err(at("removing the links of the device"))
    }

    /// Fails all I/O from now on, for a primary that was deposed. Nothing is acknowledged after
    /// this returns. Gives who still had the device in use; it goes away when they let it go.
    pub fn fail(&mut self) -> Result<Vec<User>, AttachError> {
        self.watch = None;
        self.inner.fail()?;
        let device = self.device().to_owned();
        self.names
            .remove()
            .map_err(AttachError::at("removing the links of the device", &device))?;
        self.users()
    }

    /// Whether the stream has ended on the device's side, where that can be told (FUSE). The end of
    /// the stream that the data loop sees tells it for both kinds.
    pub fn stream_lost(&self) -> bool {
        match &self.inner {
            Inner::Nbd(_) => false,
            Inner::Fuse(device) => device.stream_lost(),
        }
    }

    /// Connects the device to a new stream, after the data loop lost or dropped the old one.
    pub fn reconnect(&mut self, serve: Serve<'_>) -> Result<(), AttachError> {
        match &mut self.inner {
            Inner::Nbd(device) => device.reconnect(serve),
            Inner::Fuse(device) => device.reconnect(serve),
        }
    }

    /// Changes the size of the device, in bytes: a multiple of the block size.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), AttachError> {
        const SECTOR_BYTES: u64 = 512;
        let sectors = self.inner.disk().read("size").ok().and_then(|text| text.parse().ok());
        if sectors == Some(size_bytes / SECTOR_BYTES) {
            return Ok(());
        }
        match &mut self.inner {
            Inner::Nbd(device) => device.resize(size_bytes),
            Inner::Fuse(device) => device.resize(size_bytes),
        }
    }
}

/// Opens the device so that nobody can mount it any more, or tells who uses it.
fn claim(disk: &Disk) -> Result<File, AttachError> {
    let at = |action| AttachError::at(action, disk.name());
    let in_use = |users| Err(InUse { device: disk.name().to_owned(), users }.into());
    let deadline = Instant::now() + UDEV_PATIENCE;
    loop {
        let users = users::find_users(disk).map_err(at("looking for users"))?;
        if users.is_empty() {
            match disk.open(true) {
                Ok(exclusive) => return Ok(exclusive),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(at("opening")(error)),
            }
        } else if !users.iter().all(is_udev) {
            return in_use(users);
        }
        if Instant::now() > deadline {
            let unknown = User {
                kind: UserKind::Unknown,
                name: disk.name().to_owned(),
                pid: None,
                path: None,
            };
            return in_use(if users.is_empty() { vec![unknown] } else { users });
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// udev opens every new or changed device for a moment.
fn is_udev(user: &User) -> bool {
    let program = user.path.as_deref().and_then(Path::to_str).unwrap_or_default();
    user.kind == UserKind::Process && program.contains("udev")
}

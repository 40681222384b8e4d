//! The attach where the kernel has no nbd: a FUSE file that we serve, under a loop device.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::error::AttachError;
use super::fuse_server::{FuseServer, Served, is_alive};
use super::fuse_wire::IO_BYTES_MAX;
use super::keeper::Keeper;
use super::syscalls::{loop_set_capacity, loop_status, mount_nowhere};
use super::{Request, Serve, loop_device, stream, tuning};

/// How long the kernel may take to end a loop device.
const PATIENCE: Duration = Duration::from_secs(10);

/// A loop device on a FUSE file that this process serves.
pub struct FuseDevice {
    disk: Disk,
    resource: String,
    keeper: Arc<Keeper>,
    served: Served,
    /// Present until the device is detached or failed.
    server: Option<FuseServer>,
}

/// Whether the kernel has what this kind needs; else what is missing.
pub fn check_available() -> io::Result<()> {
    for device in ["/dev/fuse", "/dev/loop-control"] {
        fs::metadata(device)
            .map_err(|error| io::Error::new(error.kind(), format!("no {device}")))?;
    }
    Ok(())
}

impl FuseDevice {
    /// Mounts the file, binds a free loop device to it.
    pub fn create(
        request: &Request,
        keeper: &Arc<Keeper>,
        serve: Serve<'_>,
    ) -> Result<Self, AttachError> {
        let at = |action| AttachError::at(action, &request.resource);
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/fuse")
            .map(OwnedFd::from)
            .map_err(at("opening /dev/fuse"))?;
        // The connection exists from the mount on; only then can it be served, and only when it is
        // served can the file be opened.
        let mount = mount_nowhere_by(&device).map_err(at("mounting the FUSE file"))?;
        let (server_end, loop_end) = stream::pair().map_err(at("making a socket pair"))?;
        serve(loop_end);
        let copy = device.try_clone().map_err(at("duplicating a descriptor"))?;
        let served = served(request);
        let server =
            FuseServer::start(copy, server_end, served).map_err(at("starting to serve FUSE"))?;
        // Before anybody can use the device, so that no user ever depends on this process alone.
        keeper
            .put(&request.resource, device.as_fd())
            .map_err(at("keeping the FUSE descriptor over a restart"))?;
        let bound = open_file(&mount, &request.uuid)
            .and_then(|file| loop_device::bind(&file, request.block_size_bytes));
        let disk = match bound {
            Ok(disk) => disk,
            Err(error) => {
                keeper.drop_kept(&request.resource).map_err(at("dropping the FUSE descriptor"))?;
                return Err(at("binding a loop device to the FUSE file")(error));
            }
        };
        Ok(Self::running(disk, request, keeper, served, server))
    }

    /// Goes on with the device of a daemon that is gone, whose descriptor is `held`. `Ok(None)`
    /// when nothing can be done with it: then it is aborted, and its users see I/O errors.
    pub fn adopt(
        held: OwnedFd,
        request: &Request,
        keeper: &Arc<Keeper>,
        serve: Serve<'_>,
    ) -> Result<Option<Self>, AttachError> {
        let at = |action| AttachError::at(action, &request.resource);
        if !is_alive(&held) {
            return Ok(None);
        }
        let (server_end, loop_end) = stream::pair().map_err(at("making a socket pair"))?;
        serve(loop_end);
        let served = served(request);
        let server = match FuseServer::resume(held, server_end, served) {
            Ok(server) => server,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(at("asking FUSE to send again")(error)),
        };
        let Some(disk) = loop_device::find(&request.uuid) else {
            return Ok(None);
        };
        Ok(Some(Self::running(disk, request, keeper, served, server)))
    }

    /// The device once its file is served, with the settings of its queue.
    fn running(
        disk: Disk,
        request: &Request,
        keeper: &Arc<Keeper>,
        served: Served,
        server: FuseServer,
    ) -> Self {
        let device = Self {
            disk,
            resource: request.resource.clone(),
            keeper: keeper.clone(),
            served,
            server: Some(server),
        };
        device.tune();
        device
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn stream_lost(&self) -> bool {
        self.server.as_ref().is_some_and(FuseServer::stream_lost)
    }

    /// Serves the kernel over a new stream; what the old one left unanswered comes again.
    pub fn reconnect(&mut self, serve: Serve<'_>) -> Result<(), AttachError> {
        let name = self.disk.name().to_owned();
        let at = |action| AttachError::at(action, &name);
        let server = self.server.take().ok_or(AttachError::Gone { device: name.clone() })?;
        let device = server.stop();
        let (server_end, loop_end) = stream::pair().map_err(at("making a socket pair"))?;
        serve(loop_end);
        let server = FuseServer::resume(device, server_end, self.served);
        self.server = Some(server.map_err(at("asking FUSE to send again"))?);
        Ok(())
    }

    /// Makes the device as large as the resource is now.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), AttachError> {
        let at = |action| AttachError::at(action, self.disk.name());
        let gone = || AttachError::Gone { device: self.disk.name().to_owned() };
        self.server.as_ref().ok_or_else(gone)?.set_size(size_bytes);
        self.served.size_bytes = size_bytes;
        let device = self.disk.open(false).map_err(at("opening"))?;
        // To ask for the state makes the kernel ask us for the size, which the second call uses.
        loop_status(device.as_fd()).map_err(at("asking for its state"))?;
        loop_set_capacity(device.as_fd()).map_err(at("resizing"))
    }

    /// Ends the device, which `exclusive` keeps others from.
    pub fn detach(&mut self, exclusive: File) -> Result<(), AttachError> {
        let at = |action| AttachError::at(action, self.disk.name());
        loop_device::clear(exclusive).map_err(at("freeing the loop device"))?;
        loop_device::wait_cleared(&self.disk, PATIENCE).map_err(at("freeing the loop device"))?;
        self.keeper.drop_kept(&self.resource).map_err(at("dropping the FUSE descriptor"))?;
        self.server = None;
        Ok(())
    }

    /// Fails all I/O from now on, whoever uses the device: what is under way, then all that comes.
    pub fn fail(&mut self) -> Result<(), AttachError> {
        // No answer leaves this process after stop. The kernel aborts when the last copy of the
        // descriptor is closed, which fails every request with an error that loop turns into EIO.
        let device = self.server.take().map(FuseServer::stop);
        let dropped = self.keeper.drop_kept(&self.resource);
        drop(device);
        dropped.map_err(AttachError::at("dropping the FUSE descriptor", self.disk.name()))?;
        release_loop(&self.disk)
    }

    fn tune(&self) {
        // A longer request would be split by FUSE into one of this length and a short one.
        let request_kib = (IO_BYTES_MAX >> 10).to_string();
        let settings =
            vec![("queue/scheduler", "none".to_owned()), ("queue/max_sectors_kb", request_kib)];
        tuning::tune(&self.disk, settings);
    }
}

/// Frees a loop device whose file is dead, now or when its last user lets it go.
pub fn release_loop(disk: &Disk) -> Result<(), AttachError> {
    let at = |action| AttachError::at(action, disk.name());
    let device = disk.open(false).map_err(at("opening"))?;
    loop_device::clear(device).map_err(at("freeing the loop device"))
}

fn served(request: &Request) -> Served {
    Served { size_bytes: request.size_bytes, write_zeroes: request.features.write_zeroes }
}

/// Mounts the one-file system where nobody can stumble over it.
fn mount_nowhere_by(device: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = CString::new(device.as_raw_fd().to_string()).expect("digits have no zero byte");
    let options: [(&CStr, &CStr); 5] = [
        (c"source", c"replicator"),
        (c"fd", &fd),
        (c"rootmode", c"40000"),
        (c"user_id", c"0"),
        (c"group_id", c"0"),
    ];
    mount_nowhere(c"fuse", &options)
}

/// Opens the file. Its name is what `losetup` and /sys show, and how the device is found again.
fn open_file(mount: &OwnedFd, uuid: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}/{}", mount.as_raw_fd(), loop_device::file_name(uuid));
    OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
}

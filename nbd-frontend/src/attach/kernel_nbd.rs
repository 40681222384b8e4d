//! The attach by the kernel's own nbd driver.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::error::AttachError;
use super::netlink::{Connect, NbdControl};
use super::{Request, Serve, stream, tuning};
use crate::protocol::{
    TFLAG_HAS_FLAGS, TFLAG_ROTATIONAL, TFLAG_SEND_FLUSH, TFLAG_SEND_FUA, TFLAG_SEND_TRIM,
    TFLAG_SEND_WRITE_ZEROES,
};

/// How long the kernel may take to notice that the old daemon's socket is dead, or to end a device.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(10);

/// The driver looks after a request in this interval and, when its socket was replaced, sends it
/// again: so long does a write that was in flight at a crash wait longer than a new one.
const RESEND_TICK_MS: &str = "1000";
/// Larger requests than the 128 KiB that Linux 6.1 begins with.
const REQUEST_KIB_MAX: u64 = 1024;

/// A device of the nbd driver whose socket we hold the other end of.
pub struct NbdDevice {
    control: NbdControl,
    disk: Disk,
    uuid: String,
    /// A copy of the data loop's end, only to cut the connection. Nothing is read or written here.
    cutter: UnixStream,
}

/// The driver, whose module is loaded if need be.
pub fn control() -> io::Result<NbdControl> {
    match NbdControl::open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let loaded = Command::new("modprobe")
                .args(["-q", "nbd"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
            match loaded {
                Ok(status) if status.success() => NbdControl::open(),
                _ => Err(io::Error::new(io::ErrorKind::NotFound, "no driver or module `nbd`")),
            }
        }
        other => other,
    }
}

/// Devices that belong to the resource with this uuid.
pub fn find(uuid: &str) -> Vec<Disk> {
    let mut disks = Disk::all("nbd");
    disks.retain(|disk| disk.read("backend").is_ok_and(|backend| backend == uuid));
    disks
}

impl NbdDevice {
    /// Connects a free device. The data loop gets its stream first, as the kernel reads at once.
    pub fn connect(
        control: NbdControl,
        request: &Request,
        serve: Serve<'_>,
    ) -> Result<Self, AttachError> {
        let at = |action| AttachError::at(action, &request.resource);
        let (kernel_end, loop_end) = stream::pair().map_err(at("making a socket pair"))?;
        let cutter = duplicate(&loop_end).map_err(at("duplicating a socket"))?;
        serve(loop_end);
        let device = Connect {
            size_bytes: request.size_bytes,
            block_size_bytes: request.block_size_bytes,
            server_flags: server_flags(request),
            dead_connection_timeout_s: request.dead_connection_timeout_s,
            backend: &request.uuid,
        };
        let index =
            control.connect(&device, kernel_end.as_fd()).map_err(at("connecting a nbd device"))?;
        let disk = Disk::new(format!("nbd{index}"));
        let device = Self { control, disk, uuid: request.uuid.clone(), cutter };
        device.tune();
        Ok(device)
    }

    /// Goes on with the device of a daemon that is gone. `Ok(None)` when the driver has given the
    /// device up, so that only its last users still see it.
    pub fn adopt(
        control: NbdControl,
        disk: Disk,
        request: &Request,
        serve: Serve<'_>,
    ) -> Result<Option<Self>, AttachError> {
        let Some(cutter) = replace_socket(&control, &disk, &request.uuid, serve)? else {
            return Ok(None);
        };
        let device = Self { control, disk, uuid: request.uuid.clone(), cutter };
        device.tune();
        Ok(Some(device))
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Gives the device a new stream in place of one that ended or is not wanted any more.
    pub fn reconnect(&mut self, serve: Serve<'_>) -> Result<(), AttachError> {
        let _ = self.cutter.shutdown(Shutdown::Both);
        match replace_socket(&self.control, &self.disk, &self.uuid, serve)? {
            Some(cutter) => {
                self.cutter = cutter;
                Ok(())
            }
            None => Err(AttachError::Gone { device: self.disk.name().to_owned() }),
        }
    }

    /// Tells the kernel a new size. Waits for the I/O under way.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), AttachError> {
        let at = AttachError::at("resizing", self.disk.name());
        self.control.resize(self.disk.number(), &self.uuid, size_bytes).map_err(at)
    }

    /// Ends the device, which `exclusive` keeps others from. The data loop gets an NBD disconnect.
    pub fn detach(&mut self, exclusive: std::fs::File) -> Result<(), AttachError> {
        let at = |action| AttachError::at(action, self.disk.name());
        self.control.disconnect(self.disk.number()).map_err(at("disconnecting"))?;
        drop(exclusive);
        let deadline = Instant::now() + PATIENCE;
        while self.disk.read("pid").is_ok()
            && self.control.is_configured(self.disk.number()).map_err(at("asking for its state"))?
        {
            if Instant::now() > deadline {
                return Err(at("waiting for its end")(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    /// Fails all I/O from now on, whoever uses the device.
    pub fn fail(&mut self) -> Result<(), AttachError> {
        // With a dead socket the driver cannot block on sending us its farewell.
        let _ = self.cutter.shutdown(Shutdown::Both);
        disconnect(&self.control, &self.disk)
    }

    fn tune(&self) {
        let hardware_kib = self.disk.read("queue/max_hw_sectors_kb").ok();
        let hardware_kib = hardware_kib.and_then(|kib| kib.parse().ok());
        let request_kib = REQUEST_KIB_MAX.min(hardware_kib.unwrap_or(REQUEST_KIB_MAX)).to_string();
        let settings = vec![
            ("queue/io_timeout", RESEND_TICK_MS.to_owned()),
            ("queue/max_sectors_kb", request_kib),
            ("queue/scheduler", "none".to_owned()),
        ];
        tuning::tune(&self.disk, settings);
    }
}

/// Fails all I/O of a device without looking at its users.
pub fn disconnect(control: &NbdControl, disk: &Disk) -> Result<(), AttachError> {
    match control.disconnect(disk.number()) {
        // Not configured: it is gone already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other.map_err(AttachError::at("disconnecting", disk.name())),
    }
}

/// Offers sockets until the kernel has taken one, and gives that to the data loop.
fn replace_socket(
    control: &NbdControl,
    disk: &Disk,
    uuid: &str,
    serve: Serve<'_>,
) -> Result<Option<UnixStream>, AttachError> {
    let at = |action| AttachError::at(action, disk.name());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (kernel_end, loop_end) = stream::pair().map_err(at("making a socket pair"))?;
        match control.replace_socket(disk.number(), uuid, kernel_end.as_fd()) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                return Ok(None);
            }
            Err(error) => return Err(at("offering a new socket")(error)),
        }
        // Success is also the answer when the kernel still trusts the old socket and has thrown
        // ours away; then nobody holds the other end any more.
        drop(kernel_end);
        if !stream::is_hung_up(&loop_end).map_err(at("polling the new socket"))? {
            let cutter = duplicate(&loop_end).map_err(at("duplicating a socket"))?;
            serve(loop_end);
            return Ok(Some(cutter));
        }
        if Instant::now() > deadline {
            return Err(AttachError::StillServed { device: disk.name().to_owned() });
        }
        std::thread::sleep(POLL_EVERY);
    }
}

fn duplicate(fd: &OwnedFd) -> io::Result<UnixStream> {
    fd.try_clone().map(UnixStream::from)
}

fn server_flags(request: &Request) -> u16 {
    let features = request.features;
    let optional = [
        (features.trim, TFLAG_SEND_TRIM),
        (features.write_zeroes, TFLAG_SEND_WRITE_ZEROES),
        (features.rotational, TFLAG_ROTATIONAL),
    ];
    optional
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(TFLAG_HAS_FLAGS | TFLAG_SEND_FLUSH | TFLAG_SEND_FUA, |flags, (_, flag)| flags | flag)
}

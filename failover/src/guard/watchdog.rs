//! A watchdog of the kernel: hardware or software that resets the machine when it is not fed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use failover_core::{Span, guard as rules};

use super::table::WatchdogFacts;

/// Devices that `auto` looks at.
const DEVICES_MAX: usize = 10;
/// A device that refuses a time-out as too short is asked for longer ones, up to this. (iTCO of
/// Intel's chip sets takes none below 3 s.)
const ASKED_MAX_S: u32 = 30;
/// Written before an orderly close: the device stops.
const MAGIC_CLOSE: &[u8] = b"V";

/// Which watchdog is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum WatchdogWish {
    /// One that is free; none is a warning.
    #[default]
    Auto,
    /// One that is free; a node without it runs no services, and takes no office that another
    /// node can have.
    Required,
    /// None.
    Off,
    /// This one; as required as the one before.
    Device(PathBuf),
}

impl WatchdogWish {
    /// As the configuration writes it.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "required" => Some(Self::Required),
            "off" => Some(Self::Off),
            path => path.starts_with('/').then(|| Self::Device(path.into())),
        }
    }

    /// The word for it.
    pub fn word(&self) -> PathBuf {
        match self {
            Self::Auto => "auto".into(),
            Self::Required => "required".into(),
            Self::Off => "off".into(),
            Self::Device(path) => path.clone(),
        }
    }

    /// Whether no services run on a node without one.
    pub fn is_required(&self) -> bool {
        matches!(self, Self::Required | Self::Device(_))
    }

    fn devices(&self) -> Vec<PathBuf> {
        match self {
            Self::Off => Vec::new(),
            Self::Device(path) => vec![path.clone()],
            Self::Auto | Self::Required => {
                let numbered = (0..DEVICES_MAX).map(|n| PathBuf::from(format!("/dev/watchdog{n}")));
                let there: Vec<PathBuf> = numbered.filter(|path| path.exists()).collect();
                // Very old drivers have no number.
                if there.is_empty() { vec!["/dev/watchdog".into()] } else { there }
            }
        }
    }
}

/// What can be done with a device.
pub trait Device {
    /// Asks for a time-out.
    fn set_timeout(&mut self, seconds: u32) -> io::Result<()>;
    /// The time-out it really has.
    fn timeout(&mut self) -> io::Result<u32>;
    /// It begins to count again.
    fn feed(&mut self) -> io::Result<()>;
    /// Switches it off.
    fn disarm(&mut self) -> io::Result<()>;
    /// Whether that is possible.
    fn can_be_disarmed(&self) -> bool;
}

/// An armed watchdog.
pub struct Watchdog<D> {
    device: D,
    /// What it is.
    pub facts: WatchdogFacts,
}

/// Opens and arms the first that can be had; else what is wrong with each.
pub fn open(wish: &WatchdogWish, lease: Span) -> Result<Watchdog<Kernel>, String> {
    let mut problems = Vec::new();
    for path in wish.devices() {
        let opened = Kernel::open(&path).map_err(|error| describe(&path, &error));
        match opened.and_then(|device| arm(device, &path, lease)) {
            Ok(armed) => return Ok(armed),
            Err(problem) => problems.push(problem),
        }
    }
    Err(problems.join("; "))
}

fn describe(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => format!(
            "there is no {path}: load the driver of the machine's watchdog, or softdog (modprobe \
             softdog)"
        ),
        Some(libc::EBUSY) => format!(
            "{path} is in use by another program (RuntimeWatchdogSec= of systemd, watchdogd, sbd?)"
        ),
        Some(libc::EACCES | libc::EPERM) => format!("{path} may only be opened by root"),
        _ => format!("{path}: {error}"),
    }
}

/// Sets the time-out, reads it back, and feeds once. A device that takes no time-out keeps its own.
pub fn arm<D: Device>(mut device: D, path: &Path, lease: Span) -> Result<Watchdog<D>, String> {
    let wanted = rules::wanted_timeout_s(lease);
    let set = set_shortest(&mut device, wanted);
    let read = device.timeout();
    let timeout_s = match (&read, &set) {
        (Ok(seconds), _) if *seconds > 0 => *seconds,
        (_, Ok(seconds)) => *seconds,
        _ => {
            // Nobody would know when it fires.
            let _ = device.disarm();
            return Err(format!("{} does not tell its time-out", path.display()));
        }
    };
    if let Err(error) = device.feed() {
        let _ = device.disarm();
        return Err(format!("{} cannot be fed: {error}", path.display()));
    }
    let can_be_disarmed = device.can_be_disarmed();
    let facts = WatchdogFacts {
        is_armed: true,
        device: path.display().to_string(),
        timeout_s,
        can_be_disarmed,
        problem: String::new(),
    };
    Ok(Watchdog { device, facts })
}

/// Sets the shortest time-out that it takes, from this one on.
fn set_shortest(device: &mut impl Device, seconds: u32) -> io::Result<u32> {
    let mut asked = seconds;
    loop {
        match device.set_timeout(asked) {
            Ok(()) => return Ok(asked),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && asked < ASKED_MAX_S => {
                asked += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

impl<D: Device> Watchdog<D> {
    /// After how long without food it fires.
    pub fn timeout(&self) -> Span {
        Span::from_ms(u64::from(self.facts.timeout_s) * 1_000)
    }

    /// It begins to count again.
    pub fn feed(&mut self) -> io::Result<()> {
        self.device.feed()
    }

    /// Asks for another time-out, which may be as good as food: only for who may feed it. One that
    /// takes none keeps what it has.
    pub fn set_timeout(&mut self, seconds: u32) {
        let set = set_shortest(&mut self.device, seconds);
        match (self.device.timeout(), set) {
            (Ok(has), _) if has > 0 => self.facts.timeout_s = has,
            (_, Ok(asked)) => self.facts.timeout_s = asked,
            _ => {}
        }
    }

    /// At an orderly end. One that cannot be switched off (nowayout) is fed a last time: the
    /// machine has its time-out to come down, or another daemon to come up.
    pub fn disarm(&mut self) -> io::Result<()> {
        if self.device.can_be_disarmed() { self.device.disarm() } else { self.device.feed() }
    }
}

mod ioctls {
    //! linux/watchdog.h
    nix::ioctl_read!(get_support, b'W', 0, WatchdogInfo);
    nix::ioctl_read!(keep_alive, b'W', 5, libc::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, libc::c_int);

    #[repr(C)]
    #[derive(Default)]
    pub struct WatchdogInfo {
        pub options: u32,
        pub firmware_version: u32,
        pub identity: [u8; 32],
    }
}

/// The device knows magic close.
const WDIOF_MAGICCLOSE: u32 = 0x0100;

/// A device of the kernel. It counts from the moment it is opened.
pub struct Kernel {
    file: File,
    can_be_disarmed: bool,
}

impl Kernel {
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        let mut info = ioctls::WatchdogInfo::default();
        // SAFETY: `info` is a struct watchdog_info, which the kernel fills.
        let known = unsafe { ioctls::get_support(file.as_raw_fd(), &raw mut info) };
        let has_magic_close = known.is_ok() && info.options & WDIOF_MAGICCLOSE != 0;
        let can_be_disarmed = has_magic_close && !is_nowayout(path);
        Ok(Self { file, can_be_disarmed })
    }
}

fn is_nowayout(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Without a number it is the first one.
    let name = if name == "watchdog" { "watchdog0".into() } else { name };
    let said = fs::read_to_string(format!("/sys/class/watchdog/{name}/nowayout"));
    said.is_ok_and(|text| text.trim() == "1")
}

impl Device for Kernel {
    fn set_timeout(&mut self, seconds: u32) -> io::Result<()> {
        let mut value = seconds as libc::c_int;
        // SAFETY: `value` is an int that lives during the call.
        unsafe { ioctls::set_timeout(self.file.as_raw_fd(), &raw mut value)? };
        Ok(())
    }

    fn timeout(&mut self) -> io::Result<u32> {
        let mut value: libc::c_int = 0;
        // SAFETY: `value` is an int that lives during the call.
        unsafe { ioctls::get_timeout(self.file.as_raw_fd(), &raw mut value)? };
        u32::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn feed(&mut self) -> io::Result<()> {
        let mut value: libc::c_int = 0;
        // SAFETY: the kernel takes no more than an int here, and it lives during the call.
        match unsafe { ioctls::keep_alive(self.file.as_raw_fd(), &raw mut value) } {
            Ok(_) => Ok(()),
            // Drivers without the call are fed by any byte but the magic one.
            Err(_) => self.file.write_all(b"\0"),
        }
    }

    fn disarm(&mut self) -> io::Result<()> {
        // The close that follows stops it.
        self.file.write_all(MAGIC_CLOSE)
    }

    fn can_be_disarmed(&self) -> bool {
        self.can_be_disarmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        timeout_s: u32,
        shortest_s: u32,
        refuses_shorter: bool,
        says_timeout: bool,
        takes_timeout: bool,
        nowayout: bool,
        fed: u32,
        disarmed: u32,
    }

    impl Device for &mut Fake {
        fn set_timeout(&mut self, seconds: u32) -> io::Result<()> {
            if !self.takes_timeout {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if self.refuses_shorter && seconds < self.shortest_s {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            self.timeout_s = seconds.max(self.shortest_s);
            Ok(())
        }

        fn timeout(&mut self) -> io::Result<u32> {
            if self.says_timeout { Ok(self.timeout_s) } else { Err(io::ErrorKind::Other.into()) }
        }

        fn feed(&mut self) -> io::Result<()> {
            self.fed += 1;
            Ok(())
        }

        fn disarm(&mut self) -> io::Result<()> {
            self.disarmed += 1;
            Ok(())
        }

        fn can_be_disarmed(&self) -> bool {
            !self.nowayout
        }
    }

    fn fake() -> Fake {
        Fake { timeout_s: 60, says_timeout: true, takes_timeout: true, ..Fake::default() }
    }

    const LEASE: Span = Span::from_ms(1_000);

    fn armed(device: &mut Fake) -> Watchdog<&mut Fake> {
        arm(device, Path::new("/dev/watchdog3"), LEASE).unwrap()
    }

    #[test]
    fn it_is_armed_with_the_time_out_that_the_lease_wants_and_fed() {
        let mut device = fake();
        let facts = armed(&mut device).facts.clone();
        assert_eq!((facts.timeout_s, facts.device.as_str()), (1, "/dev/watchdog3"));
        assert_eq!(device.fed, 1);
    }

    #[test]
    fn one_that_clamps_tells_what_it_really_has() {
        let mut device = Fake { shortest_s: 10, ..fake() };
        let watchdog = armed(&mut device);
        assert_eq!(watchdog.facts.timeout_s, 10);
        assert!(!rules::is_in_time(watchdog.timeout(), LEASE));
    }

    #[test]
    fn one_that_refuses_short_ones_gets_the_shortest_that_it_takes() {
        let refuses = || Fake { shortest_s: 3, refuses_shorter: true, ..fake() };
        let mut device = refuses();
        assert_eq!(armed(&mut device).facts.timeout_s, 3);
        let mut device = Fake { says_timeout: false, ..refuses() };
        assert_eq!(armed(&mut device).facts.timeout_s, 3);
        let mut device = Fake { shortest_s: 600, ..refuses() };
        let mut watchdog = armed(&mut device);
        assert_eq!(watchdog.facts.timeout_s, 60, "its own");
        watchdog.device.shortest_s = 4;
        watchdog.set_timeout(2);
        assert_eq!(watchdog.facts.timeout_s, 4);
    }

    #[test]
    fn one_that_takes_no_time_out_keeps_its_own() {
        let mut device = Fake { takes_timeout: false, ..fake() };
        assert_eq!(armed(&mut device).facts.timeout_s, 60);
    }

    #[test]
    fn one_of_which_nobody_knows_when_it_fires_is_let_go() {
        let mut device = Fake { takes_timeout: false, says_timeout: false, ..fake() };
        assert!(arm(&mut device, Path::new("/dev/watchdog"), LEASE).is_err());
        assert_eq!((device.fed, device.disarmed), (0, 1));
    }

    #[test]
    fn another_time_out_is_set_and_read_back() {
        let mut device = fake();
        let mut watchdog = armed(&mut device);
        watchdog.set_timeout(5);
        assert_eq!(watchdog.facts.timeout_s, 5);
        let mut device = Fake { takes_timeout: false, ..fake() };
        let mut watchdog = armed(&mut device);
        watchdog.set_timeout(5);
        assert_eq!(watchdog.facts.timeout_s, 60);
    }

    #[test]
    fn an_orderly_end_disarms_and_without_a_way_out_feeds_once_more() {
        let mut device = fake();
        armed(&mut device).disarm().unwrap();
        assert_eq!((device.fed, device.disarmed), (1, 1));
        let mut device = Fake { nowayout: true, ..fake() };
        armed(&mut device).disarm().unwrap();
        assert_eq!((device.fed, device.disarmed), (2, 0));
    }

    #[test]
    fn what_is_wrong_with_a_device_is_said_with_what_to_do() {
        let text =
            |code| describe(Path::new("/dev/watchdog0"), &io::Error::from_raw_os_error(code));
        assert!(text(libc::ENOENT).contains("modprobe softdog"));
        assert!(text(libc::EBUSY).contains("systemd"));
        let missing = WatchdogWish::Device("/dev/replicator-has-no-such-watchdog".into());
        assert!(open(&missing, LEASE).err().unwrap().contains("there is no"));
    }

    #[test]
    fn the_words_of_the_configuration() {
        for word in ["auto", "required", "off", "/dev/watchdog1"] {
            let wish = WatchdogWish::parse(word).unwrap();
            assert_eq!(wish.word(), Path::new(word));
            assert_eq!(wish.is_required(), word == "required" || word.starts_with('/'));
        }
        assert_eq!(WatchdogWish::parse("on"), None);
        assert_eq!(WatchdogWish::parse("watchdog1"), None);
    }
}

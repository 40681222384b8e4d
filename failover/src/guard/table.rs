//! What daemon and guard share: one mapping of a memfd, made of atomics only. There are no locks,
//! since either side may stand still for ever at any instant.
//!
//! A row is written while it is free and then marked as used; the guard looks at used rows only,
//! and takes a row that changed under its eyes for free (the daemon lives then, and needs no
//! guard).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use failover_core::{Span, Time};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::words;
use crate::netlink::Place;

const MAGIC: u64 = u64::from_le_bytes(*b"RPLGRD03");
/// Resources of one node that have services.
pub const OFFICES_MAX: usize = 128;
/// Floating addresses of one node.
pub const ADDRESSES_MAX: usize = 256;
/// Cgroups and process groups of one node.
pub const GROUPS_MAX: usize = 256;
/// The longest path of a cgroup.
pub const PATH_BYTES_MAX: usize = 240;
const TEXT_BYTES_MAX: usize = 240;

const FREE: u32 = 0;
const USED: u32 = 1;

/// The table as every thread of a process sees it: mapped once and never unmapped.
pub type Shared = &'static Table;

/// The whole mapping.
#[repr(C)]
pub struct Table {
    magic: AtomicU64,
    lease_ns: AtomicU64,
    cluster_heartbeat_ns: AtomicU64,
    guard_heartbeat_ns: AtomicU64,
    daemon_pid: AtomicU32,
    is_ended: AtomicU32,
    is_ready: AtomicU32,
    watchdog: WatchdogRow,
    warning: Text,
    offices: [OfficeRow; OFFICES_MAX],
    addresses: [AddressRow; ADDRESSES_MAX],
    groups: [GroupRow; GROUPS_MAX],
}

#[repr(C)]
struct WatchdogRow {
    is_armed: AtomicU32,
    timeout_s: AtomicU32,
    can_be_disarmed: AtomicU32,
    is_starved: AtomicU32,
    device: Text,
    problem: Text,
}

#[repr(C)]
struct OfficeRow {
    state: AtomicU32,
    is_given_up: AtomicU32,
    until_ns: AtomicU64,
    demote_after_ns: AtomicU64,
    services_heartbeat_ns: AtomicU64,
}

#[repr(C)]
struct AddressRow {
    state: AtomicU32,
    office: AtomicU32,
    link: AtomicU32,
    family: AtomicU32,
    prefix: AtomicU32,
    words: [AtomicU32; 4],
    is_removed: AtomicU32,
}

#[repr(C)]
struct GroupRow {
    state: AtomicU32,
    office: AtomicU32,
    path: Text,
}

#[repr(C)]
struct Text {
    length: AtomicU32,
    bytes: [AtomicU8; TEXT_BYTES_MAX],
}

/// The watchdog as the guard found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchdogFacts {
    pub is_armed: bool,
    pub device: String,
    pub timeout_s: u32,
    pub can_be_disarmed: bool,
    pub problem: String,
}

/// A group of processes, with its path in a buffer of fixed size.
pub struct Group {
    pub office: usize,
    pub path: [u8; TEXT_BYTES_MAX],
    pub length: usize,
}

impl Group {
    /// A directory of cgroup v2, or `/proc/PID`.
    pub fn path(&self) -> &[u8] {
        &self.path[..self.length]
    }
}

/// Memory that the guard inherits.
pub fn create() -> io::Result<File> {
    let file = File::from(memfd_create(c"replicator-guard", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(size_of::<Table>() as u64)?;
    Ok(file)
}

impl Table {
    /// Maps it for the life of this process.
    pub fn map(memory: &File) -> io::Result<Shared> {
        const LENGTH: NonZeroUsize =
            NonZeroUsize::new(size_of::<Table>()).expect("a table has a size");
        if memory.metadata()?.len() < LENGTH.get() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no table of a guard"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place; the file is at least as long as the mapping, and
        // nobody ever makes it shorter.
        let start = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, memory, 0)? };
        // SAFETY: a mapping begins at a page, so the table is aligned; it is as long as the table
        // and never unmapped. Every field is an atomic, for which any bytes are a value and which
        // both processes may change at any time.
        Ok(unsafe { start.cast::<Table>().as_ref() })
    }

    // ------------------------------------------------------------------ the daemon writes

    /// A new table of this process.
    pub fn begin(&self, lease: Span, daemon_pid: u32) {
        self.lease_ns.store(lease.0, Ordering::Relaxed);
        self.daemon_pid.store(daemon_pid, Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// The lease is another one from now on.
    pub fn set_lease(&self, lease: Span) {
        self.lease_ns.store(lease.0, Ordering::Release);
    }

    /// The daemon ends orderly.
    pub fn end(&self) {
        self.is_ended.store(1, Ordering::Release);
    }

    /// A sign of life of the thread that renews the lease.
    pub fn beat(&self, at: Time) {
        self.cluster_heartbeat_ns.store(at.0, Ordering::Release);
    }

    /// A sign of life of the thread that carries out what is ordered of an office's services.
    pub fn beat_services(&self, row: usize, at: Time) {
        self.offices[row].services_heartbeat_ns.store(at.0, Ordering::Release);
    }

    /// After how long without a lease the services of an office stop.
    pub fn set_demote_after(&self, row: usize, span: Span) {
        self.offices[row].demote_after_ns.store(span.0, Ordering::Release);
    }

    /// The office of a resource; `None` when there is no room.
    pub fn use_office(&self, row: usize) -> Option<usize> {
        self.offices.get(row)?.state.store(USED, Ordering::Release);
        Some(row)
    }

    /// The end of the lease.
    pub fn set_until(&self, row: usize, until: Option<Time>) {
        self.offices[row].until_ns.store(until.map_or(0, |at| at.0), Ordering::Release);
    }

    /// Whether only a reset is left.
    pub fn set_given_up(&self, row: usize, is_given_up: bool) {
        self.offices[row].is_given_up.store(is_given_up.into(), Ordering::Release);
    }

    /// Takes a row for an address. Rows are taken by one thread at a time.
    pub fn take_address(&self, office: usize, place: &Place) -> Option<usize> {
        let is_free = |row: &AddressRow| row.state.load(Ordering::Acquire) == FREE;
        let index = self.addresses.iter().position(is_free)?;
        let row = &self.addresses[index];
        let (family, words) = words(place.address);
        row.office.store(office as u32, Ordering::Relaxed);
        row.link.store(place.index, Ordering::Relaxed);
        row.family.store(family, Ordering::Relaxed);
        row.prefix.store(place.prefix.into(), Ordering::Relaxed);
        for (cell, word) in row.words.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        row.is_removed.store(0, Ordering::Relaxed);
        row.state.store(USED, Ordering::Release);
        Some(index)
    }

    /// The address is gone.
    pub fn free_address(&self, row: usize) {
        self.addresses[row].state.store(FREE, Ordering::Release);
    }

    /// Whether the guard removed it.
    pub fn was_removed(&self, row: usize) -> bool {
        self.addresses[row].is_removed.load(Ordering::Acquire) != 0
    }

    /// Takes a row for a group. Rows are taken by one thread at a time.
    pub fn take_group(&self, office: usize, path: &Path) -> Option<usize> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > PATH_BYTES_MAX {
            return None;
        }
        let is_free = |row: &GroupRow| row.state.load(Ordering::Acquire) == FREE;
        let index = self.groups.iter().position(is_free)?;
        let row = &self.groups[index];
        row.office.store(office as u32, Ordering::Relaxed);
        row.path.set(bytes);
        row.state.store(USED, Ordering::Release);
        Some(index)
    }

    /// The group is the daemon's own business again.
    pub fn free_group(&self, row: usize) {
        self.groups[row].state.store(FREE, Ordering::Release);
    }

    /// What is known of a guard that is gone.
    pub fn forget_guard(&self, at: Time) {
        self.is_ready.store(0, Ordering::Release);
        self.set_starved(false);
        self.guard_heartbeat_ns.store(at.0, Ordering::Release);
    }

    // ------------------------------------------------------------------ the guard writes

    /// A sign of life of the guard.
    pub fn guard_beat(&self, at: Time) {
        self.guard_heartbeat_ns.store(at.0, Ordering::Release);
    }

    /// The guard does its work from now on.
    pub fn set_ready(&self) {
        self.is_ready.store(1, Ordering::Release);
    }

    /// The watchdog as it is.
    pub fn set_watchdog(&self, facts: &WatchdogFacts) {
        self.watchdog.timeout_s.store(facts.timeout_s, Ordering::Relaxed);
        self.watchdog.can_be_disarmed.store(facts.can_be_disarmed.into(), Ordering::Relaxed);
        self.watchdog.device.set(facts.device.as_bytes());
        self.watchdog.problem.set(facts.problem.as_bytes());
        self.watchdog.is_armed.store(facts.is_armed.into(), Ordering::Release);
    }

    /// Whether renewals are too slow for the watchdog.
    pub fn set_starved(&self, is_starved: bool) {
        self.watchdog.is_starved.store(is_starved.into(), Ordering::Release);
    }

    /// What the kernel refused to the guard.
    pub fn set_warning(&self, text: &str) {
        self.warning.set(text.as_bytes());
    }

    /// The guard removed an address.
    pub fn set_removed(&self, row: usize) {
        self.addresses[row].is_removed.store(1, Ordering::Release);
    }

    // ------------------------------------------------------------------ both read

    /// Whether this is one, of this version.
    pub fn is_valid(&self) -> bool {
        self.magic.load(Ordering::Acquire) == MAGIC
    }

    /// The lease.
    pub fn lease(&self) -> Span {
        Span(self.lease_ns.load(Ordering::Acquire))
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon_pid.load(Ordering::Relaxed) as i32
    }

    /// Whether the daemon ended orderly.
    pub fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire) != 0
    }

    /// The oldest sign of life of those threads of the daemon that an office depends on and that
    /// ever gave one; `None`: there was none.
    pub fn heartbeat(&self, row: usize) -> Option<Time> {
        let of_office = self.offices.get(row).map(|row| &row.services_heartbeat_ns);
        let parts = [Some(&self.cluster_heartbeat_ns), of_office];
        let given = parts.into_iter().flatten().map(|cell| cell.load(Ordering::Acquire));
        given.filter(|at| *at != 0).min().map(Time)
    }

    /// The last sign of life of the guard.
    pub fn guard_heartbeat(&self) -> Time {
        Time(self.guard_heartbeat_ns.load(Ordering::Acquire))
    }

    /// Whether the guard does its work.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire) != 0
    }

    /// The watchdog as the guard found it.
    pub fn watchdog(&self) -> WatchdogFacts {
        WatchdogFacts {
            is_armed: self.watchdog.is_armed.load(Ordering::Acquire) != 0,
            device: self.watchdog.device.get(),
            timeout_s: self.watchdog.timeout_s.load(Ordering::Relaxed),
            can_be_disarmed: self.watchdog.can_be_disarmed.load(Ordering::Relaxed) != 0,
            problem: self.watchdog.problem.get(),
        }
    }

    /// Whether renewals are too slow for the watchdog.
    pub fn is_starved(&self) -> bool {
        self.watchdog.is_starved.load(Ordering::Acquire) != 0
    }

    /// What the kernel refused to the guard, one a line.
    pub fn warnings(&self) -> Vec<String> {
        self.warning.get().lines().map(str::to_owned).collect()
    }

    /// After how long without a lease the services of an office stop.
    pub fn demote_after(&self, row: usize) -> Span {
        Span(self.offices[row].demote_after_ns.load(Ordering::Acquire))
    }

    /// An office in use: the end of its lease, and whether only a reset is left.
    pub fn office(&self, row: usize) -> Option<(Option<Time>, bool)> {
        let row = self.offices.get(row)?;
        if row.state.load(Ordering::Acquire) != USED {
            return None;
        }
        let until = match row.until_ns.load(Ordering::Acquire) {
            0 => None,
            at => Some(Time(at)),
        };
        Some((until, row.is_given_up.load(Ordering::Acquire) != 0))
    }

    /// An address in use, with its office.
    pub fn address(&self, row: usize) -> Option<(usize, Place)> {
        let row = self.addresses.get(row)?;
        if row.state.load(Ordering::Acquire) != USED {
            return None;
        }
        let words = [0, 1, 2, 3].map(|at| row.words[at].load(Ordering::Relaxed));
        let address = match row.family.load(Ordering::Relaxed) {
            4 => IpAddr::V4(Ipv4Addr::from(words[0])),
            6 => {
                let bits = |at: usize| u128::from(words[at]) << (32 * at);
                IpAddr::V6(Ipv6Addr::from(bits(0) | bits(1) | bits(2) | bits(3)))
            }
            _ => return None,
        };
        let place = Place {
            index: row.link.load(Ordering::Relaxed),
            address,
            prefix: row.prefix.load(Ordering::Relaxed) as u8,
        };
        let office = row.office.load(Ordering::Relaxed) as usize;
        (row.state.load(Ordering::Acquire) == USED).then_some((office, place))
    }

    /// A group in use.
    pub fn group(&self, row: usize) -> Option<Group> {
        let row = self.groups.get(row)?;
        if row.state.load(Ordering::Acquire) != USED {
            return None;
        }
        let mut path = [0; TEXT_BYTES_MAX];
        let length = row.path.copy(&mut path);
        let office = row.office.load(Ordering::Relaxed) as usize;
        (row.state.load(Ordering::Acquire) == USED).then_some(Group { office, path, length })
    }
}

impl Text {
    /// What is too long is cut.
    fn set(&self, bytes: &[u8]) {
        let length = bytes.len().min(TEXT_BYTES_MAX);
        for (cell, byte) in self.bytes.iter().zip(bytes) {
            cell.store(*byte, Ordering::Relaxed);
        }
        self.length.store(length as u32, Ordering::Release);
    }

    fn copy(&self, into: &mut [u8; TEXT_BYTES_MAX]) -> usize {
        let length = (self.length.load(Ordering::Acquire) as usize).min(TEXT_BYTES_MAX);
        for (byte, cell) in into.iter_mut().zip(&self.bytes).take(length) {
            *byte = cell.load(Ordering::Relaxed);
        }
        length
    }

    fn get(&self) -> String {
        let mut bytes = [0; TEXT_BYTES_MAX];
        let length = self.copy(&mut bytes);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

const _: () = assert!(PATH_BYTES_MAX <= TEXT_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn two_views() -> (Shared, Shared) {
        let memory = create().unwrap();
        (Table::map(&memory).unwrap(), Table::map(&memory).unwrap())
    }

    #[test]
    fn what_the_daemon_writes_the_guard_reads() {
        let (daemon, guard) = two_views();
        assert!(!guard.is_valid());
        daemon.begin(Span::from_ms(1_000), 42);
        assert!(guard.is_valid());
        assert_eq!((guard.lease(), guard.daemon_pid()), (Span::from_ms(1_000), 42));
        let office = daemon.use_office(0).unwrap();
        daemon.set_until(office, Some(Time(7)));
        assert_eq!(guard.office(office), Some((Some(Time(7)), false)));
        assert_eq!(guard.office(1), None);
        for text in ["192.0.2.100", "2001:db8:1:2:3:4:5:6"] {
            let place = Place { index: 9, address: text.parse().unwrap(), prefix: 24 };
            let row = daemon.take_address(office, &place).unwrap();
            assert_eq!(guard.address(row), Some((office, place)));
            guard.set_removed(row);
            assert!(daemon.was_removed(row));
            daemon.free_address(row);
            assert_eq!(guard.address(row), None);
            assert_eq!(daemon.take_address(office, &place), Some(row));
            assert!(!daemon.was_removed(row), "a new one was not removed");
        }
        let path = Path::new("/sys/fs/cgroup/system.slice/mariadb.service");
        let row = daemon.take_group(office, path).unwrap();
        assert_eq!(guard.group(row).unwrap().path(), path.as_os_str().as_bytes());
        daemon.free_group(row);
        assert!(guard.group(row).is_none());
    }

    #[test]
    fn the_oldest_heartbeat_of_the_parts_that_beat_counts() {
        let (daemon, guard) = two_views();
        assert_eq!(guard.heartbeat(0), None);
        daemon.beat(Time(5));
        assert_eq!(guard.heartbeat(0), Some(Time(5)));
        daemon.beat_services(0, Time(3));
        daemon.beat_services(1, Time(7));
        assert_eq!([guard.heartbeat(0), guard.heartbeat(1)], [Some(Time(3)), Some(Time(5))]);
    }

    #[test]
    fn a_full_table_refuses() {
        let (daemon, _) = two_views();
        let place = Place { index: 1, address: [192, 0, 2, 1].into(), prefix: 24 };
        for _ in 0..ADDRESSES_MAX {
            assert!(daemon.take_address(0, &place).is_some());
        }
        assert_eq!(daemon.take_address(0, &place), None);
        assert_eq!(daemon.use_office(OFFICES_MAX), None);
        assert_eq!(daemon.take_group(0, Path::new(&"x".repeat(PATH_BYTES_MAX + 1))), None);
    }
}

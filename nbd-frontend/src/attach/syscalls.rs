//! The system calls of the attach that no crate wraps: loop ioctls, the new mount calls and
//! descriptors that arrive as plain numbers. All `unsafe` of this module is here.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `LO_FLAGS_PARTSCAN`: the kernel reads the partition table of the loop device.
pub const LOOP_PARTITIONS: u32 = 8;
/// `LO_FLAGS_DIRECT_IO`: no page cache between the loop device and its file.
pub const LOOP_DIRECT_IO: u32 = 16;
/// Bytes of a loop device's name, with the closing zero.
pub const LOOP_NAME_BYTES: usize = 64;

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
pub struct LoopInfo {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    pub offset: u64,
    pub size_limit: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    pub flags: u32,
    pub file_name: [u8; LOOP_NAME_BYTES],
    pub crypt_name: [u8; LOOP_NAME_BYTES],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

impl LoopInfo {
    /// All fields zero.
    pub fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; LOOP_NAME_BYTES],
            crypt_name: [0; LOOP_NAME_BYTES],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The number of a loop device that nobody uses now.
pub fn loop_free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    check(number).map(|number| number as u32)
}

/// Binds `file` to the open loop device `device`. `EBUSY` when another process was faster.
pub fn loop_configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    block_size_bytes: u32,
    info: LoopInfo,
) -> io::Result<()> {
    let config = LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: block_size_bytes,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }).map(drop)
}

/// What the loop device is bound to; `ENXIO` when it is free.
pub fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::empty();
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose layout LoopInfo has.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut info) })?;
    Ok(info)
}

/// Frees the loop device, or lets it free itself when its last user closes it.
pub fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) }).map(drop)
}

/// Makes the loop device as large as its file is now.
pub fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
}

const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

fn fsconfig(
    context: BorrowedFd<'_>,
    command: libc::c_uint,
    option: Option<(&CStr, &CStr)>,
) -> io::Result<()> {
    let (key, value) = option.map_or((std::ptr::null(), std::ptr::null()), |(key, value)| {
        (key.as_ptr(), value.as_ptr())
    });
    // SAFETY: key and value are null or zero-terminated strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key,
            value,
            0 as libc::c_int,
        )
    };
    check(result as libc::c_int).map(drop)
}

/// Mounts a file system of `kind` nowhere: the mount lives as long as the returned descriptor or a
/// file opened through it, and no other process can see it, walk into it or hang on it.
pub fn mount_nowhere(kind: &CStr, options: &[(&CStr, &CStr)]) -> io::Result<OwnedFd> {
    // SAFETY: `kind` is a zero-terminated string that outlives the call.
    let context =
        unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) } as libc::c_int;
    let context = adopt(check(context)?);
    for option in options {
        fsconfig(context.as_fd(), FSCONFIG_SET_STRING, Some(*option))?;
    }
    fsconfig(context.as_fd(), FSCONFIG_CMD_CREATE, None)?;
    let attributes: libc::c_ulong = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    // SAFETY: plain numbers; no memory of ours is touched.
    let mount = unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes)
    } as libc::c_int;
    Ok(adopt(check(mount)?))
}

fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just given us this new descriptor and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of descriptors that came in a message of this process' socket.
pub fn adopt_received(fds: Vec<RawFd>) -> Vec<OwnedFd> {
    fds.into_iter().map(adopt).collect()
}

/// Takes ownership of descriptor `fd`, which the service manager passed at exec.
///
/// It is duplicated with close-on-exec, so that a caller that also owns the number stays right.
pub fn duplicate_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on any number is defined: a bad one gives EBADF.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    check(copy).map(adopt)
}

/// Closes every descriptor behind standard error that this process was started with.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: called first in a program of its own, when nothing here owns a descriptor yet.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) }).map(drop)
}

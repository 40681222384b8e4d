//! What the process asks of the kernel for itself, so that memory pressure on the host of its own
//! block device cannot stop it. All of it is best effort: status warns about what was refused.

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit};

/// From linux/prctl.h, since Linux 5.6; the libc crate does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Marks the process as one that memory reclaim must not wait for, and locks its memory as it is
/// touched. Gives what was refused, in words.
pub fn protect_from_memory_pressure() -> Vec<String> {
    let mut refused = Vec::new();
    // SAFETY: PR_SET_IO_FLUSHER takes plain numbers and touches no memory of ours.
    let flusher = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if flusher != 0 {
        let error = std::io::Error::last_os_error();
        refused.push(format!(
            "not marked as an I/O flusher ({error}): under memory pressure a device on this host \
             may stall; run as root or with CAP_SYS_RESOURCE"
        ));
    }
    // With a limit the lock of future memory would let later allocations fail.
    let is_unlimited = getrlimit(Resource::RLIMIT_MEMLOCK)
        .is_ok_and(|(soft, _)| soft == nix::sys::resource::RLIM_INFINITY);
    if !is_unlimited && !nix::unistd::geteuid().is_root() {
        refused.push(
            "memory is not locked: RLIMIT_MEMLOCK is limited; set LimitMEMLOCK=infinity or run \
             as root"
                .to_owned(),
        );
        return refused;
    }
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(flags) {
        refused.push(format!("memory is not locked ({error}); set LimitMEMLOCK=infinity"));
    }
    refused
}

//! What can go wrong with an attach, and what the operator can do about it.

use std::fmt;
use std::io;

use super::users::User;

/// Why a device could not be attached, detached or failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The configuration says `attach = "none"`.
    #[error("attach = \"none\": no block device is wanted")]
    Disabled,
    /// A field of the request makes no sense; nothing was done.
    #[error("cannot attach: {field} is {value:?}; it must be {rule}")]
    BadRequest {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// `auto` found neither kind.
    #[error(
        "this kernel has neither nbd ({nbd}) nor FUSE with loop devices ({fuse}); load the module \
         `nbd`, or set attach = \"none\" and use an NBD client"
    )]
    NothingAvailable {
        /// What nbd lacks.
        nbd: io::Error,
        /// What FUSE and loop lack.
        fuse: io::Error,
    },
    /// The configured kind is missing.
    #[error("attach = \"{kind}\", but this kernel lacks it: {source}; try attach = \"auto\"")]
    Unavailable {
        /// `nbd` or `fuse`.
        kind: &'static str,
        /// What is missing.
        source: io::Error,
    },
    /// The device of an earlier daemon still has a living server.
    #[error("{device} is still served by another process; stop that first")]
    StillServed {
        /// The kernel's name.
        device: String,
    },
    /// The device cannot be taken away.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// The device was detached or failed before.
    #[error("{device} is no longer attached")]
    Gone {
        /// The kernel's name.
        device: String,
    },
    /// The kernel does not let this process.
    #[error("{action} ({device}): not permitted; run as root, or set attach = \"none\"")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// With which device or resource.
        device: String,
    },
    /// The kernel refused a step.
    #[error("{action} ({device}): {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// With which device or resource.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl AttachError {
    /// For `map_err`: an error of the kernel in the middle of `action`.
    pub(super) fn at(action: &'static str, device: &str) -> impl FnOnce(io::Error) -> Self {
        let device = device.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { action, device },
            _ => Self::System { action, device, source },
        }
    }
}

/// A device that somebody still uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InUse {
    /// The kernel's name of the device.
    pub device: String,
    /// Who uses it; never empty.
    pub users: Vec<User>,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in use: ", self.device)?;
        for (number, user) in self.users.iter().enumerate() {
            write!(f, "{}{user}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

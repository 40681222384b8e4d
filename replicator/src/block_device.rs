//! The block device of one resource on the primary: attached for a tenure, detached before the
//! role is given up, failed when the role is taken away. All of it may block, so every call comes
//! from a thread that serves nothing else.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_frontend::attach::{self, AttachError, Attached, Choice, Features, Keeper, Request, User};

use crate::config::AttachWish;
use crate::report::DeviceReport;

/// What happened to the device; for the log.
pub type Told<'a> = &'a mut dyn FnMut(String);

/// The place where the device of a resource is, or is not.
pub struct BlockDevice {
    wish: AttachWish,
    resource: String,
    device_dir: PathBuf,
    /// Remembers, for the same boot only, the tenure that the device belongs to (R15).
    tenure_path: PathBuf,
    keeper: Arc<Keeper>,
    /// The newest tenure for which this process attached, or tried to.
    newest_tenure: AtomicU64,
    /// One operation at a time; they block, so this is apart from what status reads.
    operation: Mutex<()>,
    state: Mutex<State>,
    /// What an earlier process left and this one failed, while somebody may still use it.
    remains: Mutex<Option<Request>>,
}

enum State {
    Absent,
    /// An operation is under way: `attaching`, `detaching`, ...
    Busy(&'static str),
    Attached(Box<Attached>),
    /// It could not be attached, in words.
    Failed(String),
    /// Taken away, but somebody still has it open: this node is not eligible (R15).
    Leftover(Box<Attached>),
}

/// Why a device was not taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetachError {
    /// Somebody uses it, in words.
    InUse(String),
    /// It does not work any more, for example because somebody removed its loop device.
    Broken(String),
}

/// What a device is attached with; known when the replica is up.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Identity of the replica over restarts: never the one of another node, which may run on this
    /// machine too and has a device of its own.
    pub replica_id: u128,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
}

impl BlockDevice {
    /// The place for a resource; nothing is attached yet.
    pub fn new(
        wish: AttachWish,
        resource: &str,
        device_dir: PathBuf,
        run_dir: &std::path::Path,
        keeper: Arc<Keeper>,
    ) -> Self {
        Self {
            wish,
            resource: resource.to_owned(),
            device_dir,
            tenure_path: run_dir.join(format!("{resource}.tenure")),
            keeper,
            newest_tenure: AtomicU64::new(0),
            operation: Mutex::new(()),
            state: Mutex::new(State::Absent),
            remains: Mutex::new(None),
        }
    }

    /// Whether a device is wanted at all.
    pub fn is_wanted(&self) -> bool {
        self.wish != AttachWish::None
    }

    /// Whether an attach has ended, well or not, or none is wanted.
    pub fn is_settled(&self) -> bool {
        !self.is_wanted() || matches!(*self.lock(), State::Attached(_) | State::Failed(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remains(&self) -> MutexGuard<'_, Option<Request>> {
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate(&self) -> MutexGuard<'_, ()> {
        self.operation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, shape: &Shape) -> Request {
        Request {
            resource: self.resource.clone(),
            uuid: format!("{:032x}", shape.replica_id),
            size_bytes: shape.size_bytes,
            block_size_bytes: shape.block_bytes,
            features: Features { trim: true, write_zeroes: true, rotational: false },
            dead_connection_timeout_s: Request::DEAD_CONNECTION_TIMEOUT_S,
            device_dir: self.device_dir.clone(),
            choice: match self.wish {
                AttachWish::Auto => Choice::Auto,
                AttachWish::Nbd => Choice::Nbd,
                AttachWish::Fuse => Choice::Fuse,
                AttachWish::None => Choice::None,
            },
        }
    }

    /// Attaches the device for a tenure. A device that an earlier process of the same tenure left
    /// is continued; one of another tenure is failed first, so that no request outlives its
    /// tenure (R15).
    pub fn attach(
        &self,
        shape: &Shape,
        tenure: u64,
        serve: &mut dyn FnMut(OwnedFd),
        told: Told<'_>,
    ) {
        if !self.is_wanted() {
            return;
        }
        let _operation = self.operate();
        // Threads come in any order.
        if self.newest_tenure.fetch_max(tenure, Ordering::Relaxed) > tenure {
            return told(format!("no block device for tenure {tenure}, which is over"));
        }
        *self.lock() = State::Busy("attaching");
        let request = self.request(shape);
        if self.remembered_tenure() != Some(tenure) {
            self.fail_leftovers_now(&request, told);
        }
        let remembered = fs::write(&self.tenure_path, tenure.to_string());
        if let Err(error) = remembered {
            told(format!("cannot write {}: {error}", self.tenure_path.display()));
        }
        let state = match attach::attach(&request, &self.keeper, serve) {
            Ok(mut attached) => {
                for leftover in attached.leftovers() {
                    told(leftover.to_string());
                }
                let verb = if attached.adopted() { "continued" } else { "attached" };
                told(format!(
                    "{} is {verb} ({}, {})",
                    attached.path().display(),
                    attached.kind(),
                    attached.device()
                ));
                // One that was continued has the size that it had.
                if let Err(why) = resize(&mut attached, shape.size_bytes) {
                    told(format!("{why}; tell it again: replctl resize {}", self.resource));
                }
                State::Attached(Box::new(attached))
            }
            Err(error) => {
                told(format!("no block device: {error}"));
                State::Failed(error.to_string())
            }
        };
        *self.lock() = state;
    }

    /// Takes the device away if nobody uses it; on an error it is still there and served.
    pub fn detach(&self) -> Result<(), DetachError> {
        let _operation = self.operate();
        // Out of the lock while it blocks, so that status can be asked meanwhile.
        let taken = std::mem::replace(&mut *self.lock(), State::Busy("detaching"));
        let (left, result) = match taken {
            State::Attached(mut attached) => match attached.detach() {
                Ok(()) | Err(AttachError::Gone { .. }) => (State::Absent, Ok(())),
                Err(AttachError::InUse(users)) => {
                    (State::Attached(attached), Err(DetachError::InUse(users.to_string())))
                }
                Err(error) => {
                    (State::Attached(attached), Err(DetachError::Broken(error.to_string())))
                }
            },
            State::Failed(_) => (State::Absent, Ok(())),
            other => (other, Ok(())),
        };
        if matches!(left, State::Absent) {
            let _ = fs::remove_file(&self.tenure_path);
        }
        *self.lock() = left;
        result
    }

    /// Fails all I/O to the device at once, for a primary that was deposed in the tenure `of`;
    /// none: whatever tenure it belongs to. What was attached for a later one meanwhile stays.
    pub fn fail(&self, of: Option<u64>, told: Told<'_>) {
        let _operation = self.operate();
        if of.is_some_and(|of| self.newest_tenure.load(Ordering::Relaxed) > of) {
            return;
        }
        let taken = std::mem::replace(&mut *self.lock(), State::Busy("failing"));
        let _ = fs::remove_file(&self.tenure_path);
        let State::Attached(mut attached) = taken else {
            *self.lock() = if matches!(taken, State::Leftover(_)) { taken } else { State::Absent };
            return;
        };
        let users = in_words(attached.fail());
        if users.is_empty() {
            told("the block device was removed".into());
            *self.lock() = State::Absent;
        } else {
            told(format!("the block device was failed; still there: {}", users.join("; ")));
            *self.lock() = State::Leftover(attached);
        }
    }

    /// Fails what an earlier process left, of the tenure that [`Self::remembered_tenure`] gave; not
    /// what was attached meanwhile.
    pub fn fail_leftovers(&self, shape: &Shape, of: Option<u64>, told: Told<'_>) {
        if !self.is_wanted() {
            return;
        }
        let _operation = self.operate();
        if self.is_attached() || self.remembered_tenure() != of {
            return;
        }
        self.fail_leftovers_now(&self.request(shape), told);
        let _ = fs::remove_file(&self.tenure_path);
    }

    fn fail_leftovers_now(&self, request: &Request, told: Told<'_>) {
        match attach::fail_leftovers(request, &self.keeper) {
            Ok(leftovers) if leftovers.is_empty() => return,
            Ok(leftovers) => leftovers.iter().for_each(|leftover| told(leftover.to_string())),
            // Without the right to attach there is nothing that could have been left either.
            Err(AttachError::Unavailable { .. } | AttachError::NotPermitted { .. }) => return,
            Err(error) => told(format!("cannot look for devices of an earlier daemon: {error}")),
        }
        // It goes away with its last user; until then this node is not eligible (R15).
        *self.remains() = Some(request.clone());
    }

    /// The tenure of the device that an earlier process of this boot may have left.
    pub fn remembered_tenure(&self) -> Option<u64> {
        fs::read_to_string(&self.tenure_path).ok()?.trim().parse().ok()
    }

    /// Leaves the device to the next process: its users wait for it.
    pub fn leave(&self) {
        let _operation = self.operate();
        *self.lock() = State::Absent;
    }

    /// Who uses the device now, or still uses one that was taken away.
    pub fn users(&self) -> Vec<String> {
        match &*self.lock() {
            State::Attached(attached) | State::Leftover(attached) => in_words(attached.users()),
            _ => Vec::new(),
        }
    }

    /// Who keeps an instance of an earlier tenure open, mounted or mapped, which forbids a
    /// promotion (R15): one of this process, or one that an earlier process left. Forgets the
    /// instance when nobody does any more.
    pub fn leftover_users(&self) -> Vec<String> {
        let mut users = Vec::new();
        if matches!(*self.lock(), State::Leftover(_)) {
            users = self.users();
            if users.is_empty() {
                *self.lock() = State::Absent;
            }
        }
        let mut remains = self.remains();
        if let Some(request) = &*remains {
            let left = in_words(attach::users_of_leftovers(request));
            if left.is_empty() {
                *remains = None;
            }
            users.extend(left.into_iter().filter(|user| !users.contains(user)).collect::<Vec<_>>());
        }
        users
    }

    /// Gives an attached device whose stream the loop has dropped a new one.
    pub fn reconnect(&self, serve: &mut dyn FnMut(OwnedFd), told: Told<'_>) {
        let _operation = self.operate();
        let taken = std::mem::replace(&mut *self.lock(), State::Busy("connecting again"));
        let left = match taken {
            State::Attached(mut attached) => {
                match attached.reconnect(serve) {
                    Ok(()) => told("the block device was connected again".into()),
                    Err(error) => told(format!("cannot connect the block device again: {error}")),
                }
                State::Attached(attached)
            }
            other => other,
        };
        *self.lock() = left;
    }

    /// Tells the kernel the size of a device that grew; whoever has it open sees it at once.
    pub fn resize(&self, size_bytes: u64) -> Result<(), String> {
        let _operation = self.operate();
        let taken = std::mem::replace(&mut *self.lock(), State::Busy("growing"));
        let (left, result) = match taken {
            State::Attached(mut attached) => {
                let result = resize(&mut attached, size_bytes);
                (State::Attached(attached), result)
            }
            other => (other, Ok(())),
        };
        *self.lock() = left;
        result
    }

    /// Whether there is an attached device.
    pub fn is_attached(&self) -> bool {
        matches!(*self.lock(), State::Attached(_))
    }

    /// For status.
    pub fn report(&self) -> Option<DeviceReport> {
        let path = self.device_dir.join(&self.resource).display().to_string();
        let report = |state: &str, why: &str| DeviceReport {
            path: path.clone(),
            kind: String::new(),
            state: state.to_owned(),
            why: why.to_owned(),
            users: Vec::new(),
        };
        let (state, kind) = match &*self.lock() {
            State::Absent => ("leftover", String::new()),
            State::Busy(what) => return Some(report(what, "")),
            State::Failed(why) => return Some(report("failed", why)),
            State::Attached(attached) => ("attached", attached.kind().to_string()),
            State::Leftover(attached) => ("leftover", attached.kind().to_string()),
        };
        let users = if state == "attached" { self.users() } else { self.leftover_users() };
        if kind.is_empty() && users.is_empty() {
            return None;
        }
        Some(DeviceReport { kind, users, ..report(state, "") })
    }
}

fn resize(attached: &mut Attached, size_bytes: u64) -> Result<(), String> {
    attached.resize(size_bytes).map_err(|error| {
        let path = attached.path().display();
        format!("{path} does not have its new size of {size_bytes} bytes: {error}")
    })
}

/// Users in words; what keeps them from being told counts as one.
fn in_words(users: Result<Vec<User>, AttachError>) -> Vec<String> {
    match users {
        Ok(users) => users.iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_for_a_former_tenure_leaves_the_device_of_the_next_one_alone() {
        let dir = std::env::temp_dir().join(format!("replicator-device-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let keeper = Arc::new(Keeper::choose(&dir, vec!["/bin/false".into()]));
        let name = "replicator-test-of-late-fails";
        let device = BlockDevice::new(AttachWish::Nbd, name, dir.join("dev"), &dir, keeper);
        // No device has no size: each attach is refused, and its end is there to be seen.
        let shape = Shape { replica_id: 0xdead_beef, size_bytes: 0, block_bytes: 4_096 };
        let attach = |tenure| device.attach(&shape, tenure, &mut |_| (), &mut |_| ());
        let seen = || (device.remembered_tenure(), device.is_settled());
        attach(4);
        assert_eq!(seen(), (Some(4), true));
        // The office was lost and taken again while that took its time.
        attach(6);
        device.fail(Some(4), &mut |_| ());
        assert_eq!(seen(), (Some(6), true), "the device of tenure 6 was failed");
        attach(4);
        assert_eq!(seen(), (Some(6), true), "the device of tenure 6 was attached for 4");
        device.fail(Some(6), &mut |_| ());
        assert_eq!(seen(), (None, false));
        attach(8);
        device.fail(None, &mut |_| ());
        assert_eq!(seen(), (None, false));
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! A volume that grows, around the core: the order of an operator, the block device, the history.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use replicator_core::Command;

use super::orders::{DEVICE_PATIENCE, ROLE_PATIENCE};
use super::{Resource, State};
use crate::cluster::{Resized, ToHistory};
use crate::control::{RefusalReport, Reply};
use crate::events::Weight;

/// A growth that is not over everywhere.
#[derive(Default)]
pub(super) struct Growth {
    /// Since when an operator has waited for it.
    ordered: Option<Instant>,
    device: DeviceSize,
    /// Why no room was made here the last time.
    pub(super) no_room: Option<String>,
}

/// Whether the kernel knows how large the block device is.
#[derive(Default)]
enum DeviceSize {
    #[default]
    Known,
    /// It is being told.
    Telling,
    /// It did not take it, for this reason.
    Refused(String),
}

impl Growth {
    /// Nobody waits for what was ordered any more, or it ended without anybody who heard of it.
    pub(super) fn forget_order(&mut self) {
        self.ordered = None;
    }
}

impl Resource {
    /// Makes the volume larger, and its block device.
    pub fn resize(self: &Arc<Self>, size_bytes: Option<u64>) -> Reply {
        let is_first = self.serving().is_some() && {
            let growth = &mut self.lock().growth;
            growth.no_room = None;
            growth.ordered.replace(growth.ordered.unwrap_or_else(Instant::now)).is_none()
        };
        let reply = self.order(Command::Resize(size_bytes), ROLE_PATIENCE);
        let goes_on = |it: &RefusalReport| it.code == "still_waiting";
        if is_first && !matches!(&reply, Reply::Refused(refusal) if goes_on(refusal)) {
            self.lock().growth.forget_order();
        }
        let size = self.loop_status().map_or(0, |status| status.core.size_bytes);
        match reply {
            Reply::Refused(refusal) => Reply::Refused(self.with_its_place(refusal, size_bytes)),
            Reply::Already(_) => {
                // It may not know yet what it was told before.
                if size > 0 {
                    self.grow_device(size);
                }
                let lacks = || if size_bytes.is_none() { self.lacks_room(size) } else { None };
                self.wait_for_device_size(size).or_else(lacks).unwrap_or_else(|| {
                    let name = self.name();
                    Reply::Already(format!(
                        "{name} has {size} bytes already, as far as every node has room"
                    ))
                })
            }
            _ => self
                .wait_for_device_size(size)
                .unwrap_or_else(|| Reply::Done(format!("{} has {size} bytes", self.name()))),
        }
    }

    /// A refusal because this node does not serve says which one does.
    fn with_its_place(&self, mut refusal: RefusalReport, size_bytes: Option<u64>) -> RefusalReport {
        if refusal.code == "not_primary"
            && let Some(primary) = self.known_primary()
        {
            let size = size_bytes.map_or(String::new(), |size| format!(" --size {size}"));
            let name = self.name();
            refusal.next = format!("give this command on {primary}: replctl resize {name}{size}");
        }
        refusal
    }

    /// Why the volume did not grow although somewhere something was added to a disk.
    fn lacks_room(&self, size: u64) -> Option<Reply> {
        let core = self.loop_status()?.core;
        let peers = core.peers.iter().map(|it| (it.node.as_str(), it.size_and_room_bytes.1));
        // A peer that is not connected has its part to do later.
        let mut rooms: Vec<(&str, u64)> = peers.filter(|(_, room)| *room > 0).collect();
        rooms.insert(0, (&self.node.name, core.room_bytes));
        let own = self.lock().growth.no_room.clone();
        let short: Vec<&str> =
            rooms.iter().filter(|(_, room)| *room <= size).map(|(node, _)| *node).collect();
        if own.is_none() && short.len() == rooms.len() {
            return None;
        }
        let rooms: Vec<String> =
            rooms.iter().map(|(node, room)| format!("{node} {room}")).collect();
        let own = own.map_or(String::new(), |why| format!("; here {why}"));
        let refusal = RefusalReport::new(
            "no_room",
            format!("there is room for so many bytes: {}{own}", rooms.join(", ")),
            format!(
                "make room on {}, whose replctl status says what its disk lacks if it was \
                 extended; then say it again: replctl resize {}",
                short.join(" and on "),
                self.name()
            ),
        );
        Some(Reply::Refused(refusal))
    }

    /// Whoever ordered it uses the device next: waits until the kernel knows its size. What it says
    /// instead of success, if it does not.
    fn wait_for_device_size(&self, size: u64) -> Option<Reply> {
        let is_told = |state: &mut State| matches!(state.growth.device, DeviceSize::Telling);
        let waited = self.changed.wait_timeout_while(self.lock(), DEVICE_PATIENCE, is_told);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (why, next) = match &state.growth.device {
            DeviceSize::Known => return None,
            DeviceSize::Telling => {
                let why = "the kernel does not take it yet: it waits for the I/O under way";
                (why.to_owned(), "it goes on; blockdev --getsize64 says when it is done".into())
            }
            DeviceSize::Refused(why) => {
                let again = format!("replctl resize {}", self.name());
                (why.clone(), format!("mend that, then tell it again: {again}"))
            }
        };
        let why = format!("the volume has {size} bytes, its block device does not: {why}");
        Some(Reply::Refused(RefusalReport::new("device_keeps_size", why, next)))
    }

    /// Clients may know of the new size.
    pub(super) fn resize_device(self: &Arc<Self>, size_bytes: u64) {
        if let Some(run) = &mut self.lock().run {
            run.shape.size_bytes = size_bytes;
        }
        self.tell_hooks("resized", &format!("the volume has {size_bytes} bytes"));
        self.grow_device(size_bytes);
    }

    fn grow_device(self: &Arc<Self>, size_bytes: u64) {
        self.lock().growth.device = DeviceSize::Telling;
        self.in_helper_or_here("resize", move |resource| {
            let result = resource.device.resize(size_bytes);
            if let Err(why) = &result {
                resource.emit(Weight::Warning, why.clone());
            }
            resource.lock().growth.device = match result {
                Ok(()) => DeviceSize::Known,
                Err(why) => DeviceSize::Refused(why),
            };
            resource.changed.notify_all();
        });
    }

    /// The volume grew, as far as this node is concerned.
    pub(super) fn note_resized(&self, from_bytes: u64, to_bytes: u64) {
        let ordered = {
            let growth = &mut self.lock().growth;
            growth.no_room = None;
            growth.ordered.take()
        };
        let status = self.loop_status();
        let replica = status.map(|status| self.replica_report(&status.core, 0)).unwrap_or_default();
        self.tell_history(ToHistory::Resized(Resized {
            resource: self.name().to_owned(),
            primary: replica.primary,
            generation: replica.generation,
            in_sync: replica.in_sync,
            from_bytes,
            to_bytes,
            took_ms: ordered.map(|ordered| ordered.elapsed().as_millis() as u64),
        }));
    }
}

//! The block device that an earlier time in office left on this node (R15). Until its register
//! shows that somebody else took office it waits to be resumed (R6a). Then it is failed, and as
//! long as anybody has it open, mounted or mapped, this node is not eligible.

use super::Resource;
use crate::control::RefusalReport;
use crate::data_loop::LoopStatus;
use crate::events::Weight;

impl Resource {
    /// Why no office can be taken here for the sake of an old device; who uses it is named. An old
    /// device whose users have waited in vain is failed first.
    pub(super) fn old_device(&self, status: &LoopStatus) -> Option<RefusalReport> {
        if self.serving().is_some() {
            return None;
        }
        self.fail_old_device(status);
        let users = self.device.leftover_users();
        (!users.is_empty()).then(|| old_device_in_use(&users))
    }

    /// Fails what an earlier process of this node left, once its tenure is over.
    pub(super) fn fail_old_device(&self, status: &LoopStatus) {
        let Some(remembered) = self.device.remembered_tenure() else { return };
        let (core, register) = (&status.core, &status.core.register);
        let is_mine = register.primary.is_some_and(|primary| primary.0 == core.replica);
        if core.role != "secondary" || (is_mine && register.tenure == remembered) {
            return;
        }
        let Some(shape) = self.lock().run.as_ref().map(|run| run.shape.clone()) else { return };
        let mut told = |text| self.emit(Weight::Warning, text);
        self.device.fail_leftovers(&shape, Some(remembered), &mut told);
    }
}

fn old_device_in_use(users: &[String]) -> RefusalReport {
    RefusalReport {
        code: "old_device_in_use".into(),
        rule: "R15".into(),
        why: format!(
            "a device of an earlier time in office is still in use here: {}",
            users.join("; ")
        ),
        next: "unmount it or end these processes; then this node counts again by itself".into(),
    }
}

//! R5d: an office without end, and who judges that it is over.
//!
//! The holder that is the only member goes on without a lease (`sole`): until it ends that itself,
//! nobody takes its office but by force. Whether a state respects that is judged once: by its
//! proposer, against the committed state that it follows. No acceptor judges it by what it has
//! accepted.
//!
//! This is safe:
//! 1. A state of revision r + 1 is made only from a committed state of revision r: what a proposer
//!    finds and does not know to be committed is settled first, as it is (`proposer.rs`); with etcd
//!    the transaction compares the revision. Of one revision one state is committed. So every state
//!    that is ever sent was judged against the very state that it would follow.
//! 2. Let a holder be sole in the committed state S, and let another node hold the office in a
//!    later one, without force. By 1 the first state after S in which the office is not the
//!    holder's, or not without end, is the holder's own. From that proposal on it goes by its lease
//!    (`office_until`), which every acceptor honours at the accept (L2), however old the state is
//!    that it has accepted itself.
//!
//! An acceptor would judge wrongly. What it has accepted may be older than the end of the office,
//! or may never have been committed at all: then it refused for ever what others had committed, or
//! were to settle, and a cluster that needed its vote stood still (sim --cluster 1795999569002).
//! Nor can it tell its own ignorance from a taking: that a state is more than one revision ahead
//! says that some other state was committed in between, not that this one ended the office.

use crate::acceptor::Denial;
use crate::cluster::ClusterState;
use crate::defect::{Defect, defect};

/// R5d: an office without end is ended by its holder, or by force. `base` is committed, and `next`
/// is to follow it.
pub(crate) fn check_sole(base: &ClusterState, next: &ClusterState) -> Result<(), Denial> {
    for old in base.resources.iter().filter(|old| old.state.sole) {
        let Some(holder) = old.holder.as_ref().filter(|holder| holder.node != next.by) else {
            continue;
        };
        let new = next.resource(&old.name);
        let goes_on = new.is_some_and(|new| new.holder.as_ref() == Some(holder) && new.state.sole);
        let is_forced = new.is_some_and(|new| new.state.basis.lineage > old.state.basis.lineage);
        if !goes_on && !is_forced && !defect(Defect::SoleIgnored) {
            let (holder, resource) = (holder.node.clone(), old.name.clone());
            return Err(Denial::Sole { holder, resource });
        }
    }
    Ok(())
}

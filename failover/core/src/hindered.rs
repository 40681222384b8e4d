//! Since when a replica, of whichever node, could not be promoted for one and the same reason, or
//! services could not run there: for `explain`. Nothing is decided by it.

use alloc::collections::BTreeMap;
use alloc::string::String;

use replicator_core::Time;

use crate::ballot::NodeName;
use crate::facts::Hindrance;

/// The present reason of every replica, by its code, and when it was first told here.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Hindered(BTreeMap<(NodeName, String), (String, Time)>);

impl Hindered {
    /// A node told what holds its replica back, or that nothing does.
    pub(crate) fn note(
        &mut self,
        now: Time,
        (node, resource): (&NodeName, &str),
        hindrance: Option<&Hindrance>,
    ) {
        let key = (node.clone(), String::from(resource));
        let Some(hindrance) = hindrance else {
            self.0.remove(&key);
            return;
        };
        if self.0.get(&key).is_none_or(|(code, _)| *code != hindrance.code) {
            self.0.insert(key, (hindrance.code.clone(), now));
        }
    }

    /// Since when that is the reason; none for one that was not told.
    pub(crate) fn since(&self, node: &NodeName, resource: &str, why: &Hindrance) -> Option<Time> {
        let key = (node.clone(), String::from(resource));
        self.0.get(&key).filter(|(code, _)| *code == why.code).map(|(_, since)| *since)
    }
}

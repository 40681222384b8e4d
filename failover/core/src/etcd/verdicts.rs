//! Why the register in etcd is refused, or not heard of: what `explain` and `check` show.

use alloc::format;
use alloc::string::{String, ToString};

use replicator_core::Time;

use super::store::Contents;
use super::{EtcdRegister, Known};
use crate::cluster::{ClusterState, Resource};
use crate::node::Node;
use crate::verdict::Verdict;

/// What lies below the prefix is not the register of this cluster, as this node knows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Alien {
    /// It belongs to a cluster of another name.
    OtherCluster(String),
    /// It was founded with another key.
    OtherKey,
    /// It is another register of that name and key than the one of this node's record.
    OtherRegister,
    /// It is empty, and this node has seen it at that revision.
    Emptied(u64),
    /// It has a lower revision than was seen.
    WentBack {
        /// What it has.
        revision: u64,
        /// What was seen.
        known: u64,
    },
    /// Keys that belong together do not.
    Damaged(&'static str),
}

impl Alien {
    /// Looks for one; `known` is what was known when the read was sent.
    pub fn find(cluster: &str, contents: &Contents, known: Known) -> Option<Self> {
        let (founder, is_our_key) = match (&contents.founder, &contents.state) {
            (None, None) if known.revision > 0 => return Some(Self::Emptied(known.revision)),
            (None, None) => return None,
            (None, Some(_)) => return Some(Self::Damaged("there is a state and no founder")),
            (Some((founder, is_our_key)), _) => (founder, *is_our_key),
        };
        if founder.cluster != cluster {
            return Some(Self::OtherCluster(founder.cluster.clone()));
        }
        if !is_our_key {
            return Some(Self::OtherKey);
        }
        let Some((_, state)) = &contents.state else {
            return Some(Self::Damaged("there is a founder and no state"));
        };
        if state.epoch.founder != founder.id {
            return Some(Self::Damaged("founder and state name different registers"));
        }
        if known.epoch.number > 0 && known.epoch != state.epoch {
            return Some(Self::OtherRegister);
        }
        let (revision, known) = (state.revision, known.revision);
        (revision < known).then_some(Self::WentBack { revision, known })
    }

    /// The verdict about it.
    pub fn verdict(&self, now: Time) -> Verdict {
        let own_prefix = "give every cluster a prefix of its own: prefix = \"/replicator/NAME\" \
                          in [etcd], the same on all its nodes";
        let restore = "restore the newest state of etcd; if it is gone for ever: stop replicatord \
                       on all nodes, remove the directory register-etcd of their state \
                       directories, delete the prefix in etcd, and start them together";
        let (code, rule, why, next) = match self {
            Self::OtherCluster(name) => (
                "foreign_register",
                "etcd",
                format!("the prefix in etcd belongs to the cluster {name:?}"),
                own_prefix,
            ),
            Self::OtherKey => (
                "foreign_register",
                "etcd",
                "the prefix in etcd belongs to a cluster of this name with another key".into(),
                own_prefix,
            ),
            Self::OtherRegister => (
                "foreign_register",
                "R11c",
                "the register in etcd is another one than this node belongs to: etcd was emptied \
                 and the cluster founded again, or this node comes from another cluster"
                    .into(),
                "if this node's data may go: stop replicatord here, remove the directory \
                 register-etcd of its state directory, and start it",
            ),
            Self::Emptied(known) => (
                "went_back",
                "R11c",
                format!("there is no register in etcd, and this node has seen revision {known}"),
                restore,
            ),
            Self::WentBack { revision, known } => (
                "went_back",
                "R11c",
                format!(
                    "the register in etcd has revision {revision}, and revision {known} was seen: \
                     it went back"
                ),
                restore,
            ),
            Self::Damaged(what) => (
                "damaged",
                "etcd",
                format!("the keys in etcd do not belong together: {what}"),
                restore,
            ),
        };
        Verdict::new(now, code, rule, why, next.into())
    }
}

impl Node {
    /// What etcd holds is this cluster's register; and it answers.
    pub(crate) fn check_etcd(&self) -> Result<(), Verdict> {
        let Some(etcd) = &self.etcd else { return Ok(()) };
        if let Some(alien) = etcd.alien() {
            return Err(alien.verdict(self.now));
        }
        let Some(since) = self.no_majority_since else { return Ok(()) };
        let (why, next) = match etcd.trouble() {
            Some((trouble, _)) => (trouble.why.clone(), trouble.next.clone()),
            None => ("etcd has not answered yet".to_string(), "wait".to_string()),
        };
        let mut verdict = self.say_no("no_etcd", "etcd", &why, &next);
        verdict.since = since;
        Err(verdict)
    }

    /// Why etcd is not heard, its register refused, or its last answer no answer.
    pub fn etcd_trouble(&self) -> Option<Verdict> {
        if let Err(verdict) = self.check_etcd() {
            return Some(verdict);
        }
        let (trouble, since) = self.etcd.as_ref()?.trouble()?;
        let mut verdict = self.say_no(&trouble.code, "etcd", &trouble.why, &trouble.next);
        verdict.since = *since;
        Some(verdict)
    }

    /// Whether etcd, which answers only with a majority of its own, answered within a lease.
    pub(crate) fn hears_etcd(&self, etcd: &EtcdRegister) -> bool {
        let recent = |at: Time| self.now.since(at) < self.lease();
        etcd.alien().is_none() && etcd.answered_at().is_some_and(recent)
    }

    /// The first data node founds the register when every node is there and blank, and nothing
    /// lies below the prefix.
    pub(crate) fn is_etcd_empty(&self, etcd: &EtcdRegister) -> bool {
        etcd.alien().is_none()
            && etcd.newest().is_some_and(|it| it.state.is_none() && it.founder.is_none())
    }

    /// This node itself has seen the holder's lease key unchanged for long enough.
    pub(crate) fn check_watched(
        &self,
        etcd: &EtcdRegister,
        state: &ClusterState,
        entry: &Resource,
    ) -> Result<(), Verdict> {
        let Some(holder) = &entry.holder else { return Ok(()) };
        let remaining = etcd.watching().remaining(self.now, &entry.name, holder);
        let why = match (remaining, etcd.watching().unchanged(&entry.name)) {
            (Some(remaining), _) if remaining.0 == 0 => return Ok(()),
            (Some(remaining), Some((since, term))) => format!(
                "the lease key of {} in etcd is unchanged for {} ms as this node saw it, {} ms are \
                 needed: another {} ms",
                holder.node,
                self.now.since(since).as_ms(),
                term.as_ms(),
                remaining.as_ms()
            ),
            _ => format!(
                "this node has not yet read the lease key of {} in revision {}",
                holder.node, state.revision
            ),
        };
        Err(self.lease_runs(entry, "etcd", &why))
    }

    /// Nodes have no votes where etcd is the register.
    pub(crate) fn refuse_with_etcd(&self, what: &str) -> Result<(), Verdict> {
        if self.etcd.is_none() {
            return Ok(());
        }
        let why = format!("{what}: etcd is the register, nodes have no votes");
        let next = "nothing has to be admitted: a new machine with the cluster's key and file \
                    takes part when it starts; members of etcd are its own matter (etcdctl member)";
        Err(self.say_no("etcd", "etcd", &why, next))
    }
}

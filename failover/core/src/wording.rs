//! Changes of the register, and refusals of them, in the words of history and of operators.

use alloc::string::{String, ToString};

use crate::acceptor::Denial;
use crate::cluster::{Cause, Resource};
use crate::command::{Change, Switch, Unfit};
use crate::decision::Office;
use crate::node::{Local, Node};
use crate::verdict::Verdict;

/// What the change is called by which a primary gives its office up.
pub(crate) const RELEASE: &str = "release";
/// And the one by which a node ends an operator's wish that it cannot fulfil.
pub const WISH_REFUSED: &str = "switchover refused";
/// And the one by which an operator takes his wish back.
pub const SWITCHOVER_CANCELLED: &str = "switchover cancelled";

impl Node {
    /// What a change that is about to be proposed is, and why.
    pub(crate) fn cause_of(&self, change: &Change) -> Cause {
        let Change::Replica { resource, next, forced, .. } = change else {
            return Cause::default();
        };
        let old = self.state().and_then(|state| state.resource(resource));
        let what = match old.map(|entry| &entry.state) {
            _ if *forced => "forced takeover",
            Some(old) if next.primary.is_none() && old.primary.is_some() => RELEASE,
            Some(old) if next.tenure != old.tenure => "takeover",
            Some(old) if next.set.len() < old.set.len() => "shrink",
            Some(old) if next.set.len() > old.set.len() => "grow",
            _ => "resume",
        };
        let why = match what {
            "takeover" | "forced takeover" => self.why_taken(old),
            "shrink" => "a member was lost".into(),
            RELEASE => {
                let gives = |local: &&Local| matches!(local.office, Office::HandingOver { .. });
                let local = self.locals.get(resource).filter(gives);
                local.map_or_else(String::new, |local| local.given_for.clone())
            }
            _ => String::new(),
        };
        Cause { what: what.into(), resource: resource.clone(), why }
    }

    fn why_taken(&self, old: Option<&Resource>) -> String {
        match old.and_then(|old| old.holder.as_ref()) {
            Some(holder) if holder.node == self.config.name => {
                "this node had the office and did not serve".into()
            }
            Some(holder) => match self.detector.silence(self.now, &holder.node) {
                Some(silence) => {
                    alloc::format!("{} was silent for {} ms", holder.node, silence.as_ms())
                }
                None => alloc::format!("{} was never heard", holder.node),
            },
            None => "nobody was primary".into(),
        }
    }

    /// Why an operator's change is not made.
    pub(crate) fn unfit(&self, unfit: &Unfit) -> Verdict {
        let (code, why, next) = match unfit {
            Unfit::Already => ("already", "it is so already".into(), "nothing".into()),
            Unfit::Newer => (
                "changed_meanwhile",
                "the register changed while this was ordered".to_string(),
                "look at replctl status and order it again".to_string(),
            ),
            Unfit::NotFounded => (
                "no_register",
                "the cluster has no register yet: it begins when all nodes of the configuration \
                 have been seen once"
                    .into(),
                "start replicatord on every node".into(),
            ),
            Unfit::Unknown(name) => (
                "unknown",
                alloc::format!("the register has no resource {name}"),
                "look at replctl status".into(),
            ),
            Unfit::TooMany => {
                ("too_many", "the register is full".into(), "remove what is not needed".into())
            }
            Unfit::OneAtATime => (
                "one_at_a_time",
                "more than one voter would come or go".into(),
                "change them one after the other".into(),
            ),
            Unfit::VotersChange => (
                "voters_change",
                "another change of the voters is under way".into(),
                "wait for it, then order it again".into(),
            ),
        };
        Verdict::new(self.now, code, "", why, next)
    }
}

/// A denial in words.
pub fn in_words(why: &Denial) -> String {
    match why {
        Denial::Promised(ballot) => {
            alloc::format!("another proposal, of {}, is under way", ballot.node)
        }
        Denial::Leased { holder, resource, remaining } => alloc::format!(
            "the lease of {holder} on {resource} runs for another {} ms",
            remaining.as_ms()
        ),
        Denial::JustStarted { remaining } => alloc::format!(
            "an acceptor started a short time ago and waits for another {} ms",
            remaining.as_ms()
        ),
        Denial::Sole { holder, resource } => alloc::format!(
            "{holder} was the only member of {resource} and holds its office without end"
        ),
    }
}

/// What a change is called in history.
pub(crate) fn what(change: &Change) -> &'static str {
    match change {
        Change::Read => "read",
        Change::Found { .. } => "founded",
        Change::AddResource { .. } => "resource added",
        Change::RemoveResource { .. } => "resource removed",
        Change::Replica { .. } => "replica",
        Change::Want { node: None, .. } => SWITCHOVER_CANCELLED,
        Change::Want { .. } => "switchover ordered",
        Change::Switch { switch: Switch::Maintenance(true), .. } => "maintenance",
        Change::Switch { switch: Switch::Maintenance(false), .. } => "end of maintenance",
        Change::Switch { switch: Switch::Off { is_off: true, .. }, .. } => "services stopped",
        Change::Switch { .. } => "services started",
        Change::Pause(true) => "paused",
        Change::Pause(false) => "resumed",
        Change::Standby { is_standby: true, .. } => "standby",
        Change::Standby { .. } => "online",
        Change::Lease(_) => "lease changed",
        Change::Voters { .. } | Change::VotersDone { .. } => "voters changed",
    }
}

//! A primary whose clients do not reach it gives the office only to a node that they do reach: one
//! that sees enough of the same targets, by its own looks, all the time. Where nobody sees enough,
//! it stays: a dead gateway is nobody's fault. It never goes round in circles: a node that lost the
//! office in this way has trouble for a minute at least, twice as long each time
//! (`services/trouble.rs`), and none with trouble is given it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::ballot::NodeName;
use crate::cluster::{ClusterState, Resource};
use crate::facts::Facts;
use crate::node::Node;
use crate::services::reach::Seen;
use crate::verdict::Verdict;

/// The trouble of a node that its clients do not reach, and the rule by which the office stays.
pub(crate) const UNREACHED: &str = "clients_unreachable";
/// In place of a rule of SAFETY.md.
pub(crate) const RULE: &str = "reach";

impl Node {
    /// Whether this node's only trouble with a resource is that its clients do not reach it.
    fn is_unreached(&self, entry: &Resource) -> bool {
        let facts = self.facts_of(&self.config.name, &entry.name);
        facts.and_then(|facts| facts.trouble.as_ref()).is_some_and(|it| it.code == UNREACHED)
    }

    /// Whether a node without trouble is better off with the office than this one, which has some.
    pub(crate) fn is_better_off(&self, entry: &Resource, node: &NodeName) -> bool {
        let reach = |node| self.facts_of(node, &entry.name).map(|facts| &facts.reach[..]);
        let own = reach(&self.config.name).unwrap_or_default();
        !self.is_unreached(entry) || !is_enough(own) && reach(node).is_some_and(is_enough)
    }

    /// Why the office is given to a better place; what is compared.
    pub(crate) fn why_better(&self, entry: &Resource, to: &NodeName) -> String {
        let me = &self.config.name;
        if self.is_unreached(entry) {
            return format!("{RULE}: {}", self.compared(entry, &[me, to]).join(", "));
        }
        let trouble = self.facts_of(me, &entry.name).and_then(|facts| facts.trouble.as_ref());
        trouble.map_or_else(String::new, |trouble| format!("{me}: {}", trouble.why))
    }

    /// Clients do not reach this primary, and it stays: why.
    pub(crate) fn check_reached(
        &self,
        state: &ClusterState,
        entry: &Resource,
    ) -> Result<(), Verdict> {
        let own = self.facts_of(&self.config.name, &entry.name).map(|facts| &facts.reach[..]);
        if !self.is_unreached(entry) || is_enough(own.unwrap_or_default()) {
            return Ok(());
        }
        let nodes: Vec<&NodeName> = entry.homes.iter().map(|home| &home.node).collect();
        let compared = self.compared(entry, &nodes).join(", ");
        let why = format!(
            "clients do not reach this primary, and the office goes only to a node without trouble \
             that sees enough: {compared}"
        );
        let next = if state.paused {
            "replctl resume: the automation is paused".into()
        } else {
            format!(
                "mend the network to the targets, of {} or of another node; or: replctl \
                 switchover {} --to NODE",
                self.config.name, entry.name
            )
        };
        let mut verdict = self.say_no(UNREACHED, RULE, &why, &next);
        verdict.since = self.troubled_since(&self.config.name, &entry.name).unwrap_or(self.now);
        Err(verdict)
    }

    /// What each of these nodes sees, and what else keeps the office from it.
    fn compared(&self, entry: &Resource, nodes: &[&NodeName]) -> Vec<String> {
        let told = |node: &&NodeName| {
            let Some(facts) = self.facts_of(node, &entry.name) else {
                return format!("{node} is not heard");
            };
            let seen = in_words(facts);
            let is_me = **node == self.config.name;
            let obstacle = if is_me {
                None
            } else if !entry.has_member(node) {
                Some("is not in sync".to_string())
            } else {
                let trouble = facts.trouble.as_ref();
                trouble.map(|it| format!("had the office and failed: {}", it.why))
            };
            match obstacle {
                Some(obstacle) => format!("{node} sees {seen} and {obstacle}"),
                None => format!("{node} sees {seen}"),
            }
        };
        nodes.iter().map(told).collect()
    }
}

/// Several `reach` services: each must see enough.
fn is_enough(seen: &[Seen]) -> bool {
    !seen.is_empty() && seen.iter().all(Seen::is_enough)
}

/// What a node sees of the clients, in words; nothing without a `reach` service.
fn in_words(facts: &Facts) -> String {
    if facts.reach.is_empty() {
        return "nothing yet".into();
    }
    let seen: Vec<String> = facts.reach.iter().map(ToString::to_string).collect();
    seen.join(" and ")
}

//! What operators order of the cluster: each becomes a change of the register, from any node.

use std::thread;
use std::time::{Duration, Instant};

use failover::core::NodeName;
use failover::core::cluster::{ClusterState, Force, Resource as Entry};
use failover::core::command::{Change, Switch};
use failover::core::node::Node;
use failover::core::verdict::Verdict;
use failover::core::wording::{SWITCHOVER_CANCELLED, WISH_REFUSED};

use super::{ControlPlane, refusal};
use crate::control::{RefusalReport, Reply};

/// A switchover may take so long before the operator is told what it waits for.
const SWITCHOVER_PATIENCE: Duration = Duration::from_secs(150);
pub(super) const POLL: Duration = Duration::from_millis(5);
/// A majority that declines for the moment, because a lease runs, is asked again for so long.
const DECLINED_PATIENCE: Duration = Duration::from_secs(5);
/// What a member says of its replica is up to two beats old: a hindrance that may be over counts
/// only if it stays for so long.
const FACTS_PATIENCE: Duration = Duration::from_secs(1);

impl ControlPlane {
    pub(super) fn look(&self) -> Result<Box<Node>, RefusalReport> {
        self.cluster.look().ok_or_else(|| {
            RefusalReport::new(
                "control_plane_hangs",
                "the control plane of this node does not answer",
                "look at the log of replicatord, restart it if this stays",
            )
        })
    }

    fn entry(&self, node: &Node, resource: &str) -> Result<Entry, RefusalReport> {
        let Some(state) = node.state() else {
            let verdict = node.judge(resource).err();
            return Err(verdict.as_ref().map_or_else(
                || RefusalReport::new("no_register", "the register is not known yet", "wait"),
                refusal,
            ));
        };
        state.resource(resource).cloned().ok_or_else(|| {
            RefusalReport::new(
                "unknown_resource",
                format!("the register has no resource {resource}"),
                "look at replctl status",
            )
        })
    }

    fn check_node(&self, name: &str) -> Result<NodeName, RefusalReport> {
        let data_nodes: Vec<&str> =
            self.config.data_nodes().map(|node| node.name.as_str()).collect();
        if data_nodes.contains(&name) {
            return Ok(NodeName::from(name));
        }
        Err(RefusalReport::new(
            "unknown_node",
            format!("{name} is no data node of this cluster"),
            format!("it has: {}", data_nodes.join(", ")),
        ))
    }

    /// Moves the office without loss; waits until the other node serves.
    pub fn switchover(&self, resource: &str, to: Option<&str>) -> Reply {
        let began = Instant::now();
        let ordered = loop {
            match self.find_target(resource, to) {
                Err((_, true)) if began.elapsed() < FACTS_PATIENCE => thread::sleep(POLL),
                Err((refusal, _)) => break Err(refusal),
                Ok(target) => break Ok(target),
            }
        };
        let target = match ordered {
            Ok(Some(target)) => target,
            Ok(None) => return Reply::Already(format!("{} is primary", to.unwrap_or_default())),
            Err(refusal) => return Reply::Refused(refusal),
        };
        match self.order(wish(resource, Some(&target)), &format!("switchover to {target}")) {
            Err(refusal) => Reply::Refused(refusal),
            Ok(()) => self.wait_for_primary(resource, &target, began),
        }
    }

    /// Takes a switchover back, and waits until its outcome is known: the office stays while
    /// services stop, and goes when it is given up already.
    pub fn cancel_switchover(&self, resource: &str) -> Reply {
        let began = Instant::now();
        let entry = match self.look().and_then(|node| self.entry(&node, resource)) {
            Ok(entry) => entry,
            Err(refusal) => return Reply::Refused(refusal),
        };
        let Some(target) = entry.wanted else {
            return Reply::Already(format!("no switchover of {resource} is under way"));
        };
        let why = format!("switchover to {target} cancelled");
        if let Err(refusal) = self.order(wish(resource, None), &why) {
            return Reply::Refused(refusal);
        }
        let (ordered, old) = (Instant::now(), entry.holder.map(|holder| holder.node));
        while began.elapsed() < SWITCHOVER_PATIENCE {
            let looked = self.look().and_then(|node| Ok((self.entry(&node, resource)?, node)));
            let (entry, node) = match looked {
                Ok(looked) => looked,
                Err(refusal) => return Reply::Refused(refusal),
            };
            match entry.holder.map(|holder| holder.node) {
                Some(holder) if Some(&holder) != old.as_ref() => {
                    let text = format!("it was given up already; {holder} is primary now");
                    return Reply::Done(text);
                }
                // What it says of itself is up to two beats old.
                Some(holder)
                    if ordered.elapsed() >= FACTS_PATIENCE
                        && node.facts_of(&holder, resource).is_some_and(|it| it.serves) =>
                {
                    return Reply::Done(format!("cancelled; {holder} stays primary"));
                }
                _ => thread::sleep(POLL),
            }
        }
        Reply::Refused(takes_long(resource, "nobody is primary"))
    }

    /// Where a switchover is to go; none: it is there. A refusal says whether it may be over in a
    /// moment: it comes from what a member said of itself.
    fn find_target(
        &self,
        resource: &str,
        to: Option<&str>,
    ) -> Result<Option<NodeName>, (RefusalReport, bool)> {
        let stays = |refusal| (refusal, false);
        let node = self.look().map_err(stays)?;
        let entry = self.entry(&node, resource).map_err(stays)?;
        let state = node.state().expect("it has an entry");
        let holder = entry.holder.as_ref().map(|holder| &holder.node);
        let target = match to {
            Some(name) => self.check_node(name).map_err(stays)?,
            None => {
                let mut others = node.heirs(&entry).into_iter().filter(|it| Some(it) != holder);
                others.next().ok_or_else(|| {
                    let refusal = RefusalReport::new(
                        "no_target",
                        format!("no other node can take {resource} without loss"),
                        "look at replctl status; wait for a resync or bring the node back",
                    );
                    (refusal, entry.state.set.len() > 1)
                })?
            }
        };
        if holder == Some(&target) {
            return Ok(None);
        }
        if let Some(refusal) = self.leads_elsewhere(state, resource, &target) {
            return Err((refusal, false));
        }
        node.check_target(state, &entry, &target).map_err(|verdict| {
            let is_of_replica = entry.has_member(&target) && verdict.code != "standby";
            (refusal(&verdict), is_of_replica)
        })?;
        Ok(Some(target))
    }

    /// A resource that goes with another one does not stay where that one is not: it would be moved
    /// back at once.
    fn leads_elsewhere(
        &self,
        state: &ClusterState,
        resource: &str,
        target: &NodeName,
    ) -> Option<RefusalReport> {
        let leader = self.config.resource(resource)?.services.with.as_ref()?;
        let at = &state.resource(leader)?.holder.as_ref()?.node;
        (at != target).then(|| {
            RefusalReport::new(
                "goes_with",
                format!("{resource} goes with {leader}, which is primary on {at}"),
                format!("switch that over: replctl switchover {leader} --to {target}"),
            )
        })
    }

    /// Has a node take the office by force: data may be lost.
    pub fn failover(&self, resource: &str, to: &str, force: Force) -> Reply {
        let began = Instant::now();
        let target = match self.check_node(to) {
            Ok(target) => target,
            Err(refusal) => return Reply::Refused(refusal),
        };
        if let Err(refusal) = self.look().and_then(|node| self.entry(&node, resource)) {
            return Reply::Refused(refusal);
        }
        let change =
            Change::Want { resource: resource.to_owned(), node: Some(target.clone()), force };
        match self.order(change, &format!("failover to {target} by force")) {
            Err(refusal) => Reply::Refused(refusal),
            Ok(()) => self.wait_for_primary(resource, &target, began),
        }
    }

    fn wait_for_primary(&self, resource: &str, target: &NodeName, began: Instant) -> Reply {
        while began.elapsed() < SWITCHOVER_PATIENCE {
            let node = match self.look() {
                Ok(node) => node,
                Err(refusal) => return Reply::Refused(refusal),
            };
            let entry = node.state().and_then(|state| state.resource(resource));
            let holds = entry.is_some_and(|entry| {
                entry.holder.as_ref().is_some_and(|holder| holder.node == *target)
            });
            if holds {
                let took = began.elapsed().as_millis();
                return Reply::Done(format!("{target} is primary, after {took} ms"));
            }
            if entry.is_some_and(|entry| entry.wanted.as_ref() != Some(target)) {
                return Reply::Refused(given_up(&node, resource, target));
            }
            let refused = node.local(resource).and_then(|local| local.refusal.clone());
            let counts = |it: &Verdict| {
                let is_passing = it.code == "not_now" && began.elapsed() < DECLINED_PATIENCE;
                it.since.0 > 0 && is_fresh(it, began) && !is_passing
            };
            if let Some(verdict) = refused.filter(counts) {
                let _ = self.order(wish(resource, None), "switchover refused");
                return Reply::Refused(refusal(&verdict));
            }
            thread::sleep(POLL);
        }
        Reply::Refused(takes_long(resource, &format!("{target} is not primary")))
    }

    /// What an operator wants of services, wherever the resource is primary.
    pub fn switch(&self, resource: &str, switch: Switch) -> Result<(), RefusalReport> {
        let change = Change::Switch { resource: resource.to_owned(), switch };
        self.order(change, "an operator")
    }

    /// Automation off or on.
    pub fn pause(&self, paused: bool) -> Reply {
        let words = if paused { "automation is paused" } else { "automation is on" };
        self.order_simple(Change::Pause(paused), words)
    }

    /// Whether a node is to hold no office.
    pub fn standby(&self, name: &str, is_standby: bool) -> Reply {
        let node = match self.check_node(name) {
            Ok(node) => node,
            Err(refusal) => return Reply::Refused(refusal),
        };
        let words = if is_standby {
            format!("{name} is on standby: what it holds moves away as soon as that loses nothing")
        } else {
            format!("{name} may hold offices")
        };
        self.order_simple(Change::Standby { node, is_standby }, &words)
    }

    fn order_simple(&self, change: Change, words: &str) -> Reply {
        match self.order(change, "an operator") {
            Ok(()) => Reply::Done(words.to_owned()),
            Err(refusal) => Reply::Refused(refusal),
        }
    }

    /// What a witness answers when something is ordered of a resource, which it has no replica of.
    pub fn keeps_no_replica(&self, resource: &str) -> Option<RefusalReport> {
        if !self.node.witness || self.config.resource(resource).is_none() {
            return None;
        }
        let entry = self.look().and_then(|node| self.entry(&node, resource)).ok();
        let holder = entry.and_then(|entry| entry.holder).map(|holder| holder.node);
        let place = holder.map_or("a data node".to_owned(), |node| format!("{node}, its primary"));
        Some(RefusalReport::new(
            "witness",
            format!("{} is a witness and has no replica of {resource}", self.node.name),
            format!("give this command on {place}"),
        ))
    }

    pub(super) fn refuse_witness(&self) -> Result<(), RefusalReport> {
        if self.node.witness {
            return Err(RefusalReport::new(
                "witness",
                format!("{} is a witness and proposes nothing", self.node.name),
                "give this command on a data node",
            ));
        }
        Ok(())
    }

    pub(super) fn order(&self, change: Change, why: &str) -> Result<(), RefusalReport> {
        self.refuse_witness()?;
        let why = format!("{why}, on {}", self.node.name);
        self.cluster.order(change, &why).map_err(|verdict| refusal(&verdict))
    }
}

/// Where an operator wants a resource, without force; none: nowhere else any more.
fn wish(resource: &str, node: Option<&NodeName>) -> Change {
    let (resource, node) = (resource.to_owned(), node.cloned());
    Change::Want { resource, node, force: Force::default() }
}

fn takes_long(resource: &str, what: &str) -> RefusalReport {
    RefusalReport::new(
        "takes_long",
        format!("{what} after {} s", SWITCHOVER_PATIENCE.as_secs()),
        format!("it goes on; replctl explain {resource} says what it waits for"),
    )
}

/// Why a switchover ended elsewhere than at its target.
fn given_up(node: &Node, resource: &str, target: &NodeName) -> RefusalReport {
    let cause = node.state().map(|state| &state.cause);
    if let Some(cause) = cause.filter(|it| it.what == SWITCHOVER_CANCELLED) {
        let next = format!("replctl status shows who is primary of {resource}");
        return RefusalReport::new("cancelled", cause.why.clone(), next);
    }
    let refused = cause.filter(|it| it.what == WISH_REFUSED && it.resource == resource);
    let own = node.local(resource).and_then(|local| local.refusal.as_ref());
    match (refused, own) {
        (Some(cause), _) => RefusalReport::new(
            "given_up",
            format!("{}; the old primary goes on", cause.why),
            format!("replctl explain {resource}, on {target}, says what to do"),
        ),
        (None, Some(own)) => refusal(own),
        (None, None) => RefusalReport::new(
            "given_up",
            format!("{target} did not take {resource}; the old primary goes on"),
            format!("replctl history {resource} and replctl explain {resource} say why"),
        ),
    }
}

/// Whether a refusal came after an order began.
fn is_fresh(verdict: &Verdict, began: Instant) -> bool {
    let age = failover::node::now().since(verdict.since);
    Duration::from_nanos(age.0) < began.elapsed()
}

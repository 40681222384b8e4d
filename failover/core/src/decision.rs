//! When this node takes over, hands over or resumes, and why not: the same function decides and
//! explains.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::ballot::NodeName;
use crate::cluster::{Cause, ClusterState, Force, Home, RESOURCES_MAX, Resource, Voter};
use crate::command::{Asker, Change};
use crate::defect::{Defect, defect};
use crate::facts::{Facts, Hindrance, Placement};
use crate::node::{Effect, Effects, Local, Node};
use crate::verdict::Verdict;
use crate::wording::{RELEASE, WISH_REFUSED};

/// A candidate that does nothing for so long is passed over by the next one.
const CANDIDATE_PATIENCE: Span = Span::from_ms(2_000);
/// A node that a switchover waits for and that does not take the office for so long has failed.
const WANTED_PATIENCE: Span = Span::from_ms(10_000);
/// A replica that refuses the office it was given more often than that keeps nobody waiting.
const WANTED_REFUSALS_MAX: u32 = 1;
/// After a refusal the next attempt waits so long, and twice as long each time.
const RETRY: Span = Span::from_ms(500);
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// See [`Node::rank`].
type Rank = (bool, bool, bool, bool, usize, NodeName);

/// What this node is doing about an office.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Office {
    /// Nothing.
    #[default]
    Idle,
    /// The replica was ordered to take it.
    Promoting {
        /// When.
        since: Time,
    },
    /// The replica was ordered to give it up.
    HandingOver {
        /// When.
        since: Time,
        /// And then to keep it: the operator took back what he wanted.
        is_cancelled: bool,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Move {
    /// All is as it should be.
    Stay,
    /// Take the office.
    Promote {
        /// What an operator gave his word for.
        force: Force,
        /// In words.
        why: String,
    },
    /// Give it to that node.
    HandOver {
        /// The node.
        to: NodeName,
        /// Why, in words; empty where an operator wants it.
        why: String,
    },
    /// The register is to be changed.
    Change(Change, &'static str),
    /// An operator wants it here, and it cannot be: the node that gave it goes on.
    GiveBack {
        /// That node, if it is known.
        to: Option<NodeName>,
        /// Why it cannot be here.
        why: String,
    },
}

impl Node {
    /// Looks at everything and does what is due.
    pub(crate) fn decide(&mut self, effects: &mut Effects) {
        self.watch_majority();
        self.watch_changes();
        self.watch_hand_overs(effects);
        let takes_part = self.is_data_node() && !self.has_no_part();
        if !takes_part || self.recovery.is_some() || !self.proposer.is_idle() {
            return;
        }
        if let Some((change, why)) = self.housekeeping() {
            let cause = Cause { what: why.into(), ..Cause::default() };
            return self.propose(Asker::Own, change, cause, effects);
        }
        let names: Vec<String> = self.locals.keys().cloned().collect();
        for name in names {
            let judged = self.judge(&name);
            if !self.is_promoting(&name) {
                self.note_why(&name, judged.as_ref().err());
            }
            if let Ok(next) = judged {
                self.do_move(name, next, effects);
            }
        }
    }

    /// Remembers since when a reason holds.
    fn note_why(&mut self, resource: &str, why: Option<&Verdict>) {
        let now = self.now;
        let Some(local) = self.locals.get_mut(resource) else { return };
        let is_same = |(code, _): &(String, Time)| why.is_some_and(|why| why.code == *code);
        if !local.explained.as_ref().is_some_and(is_same) {
            local.explained = why.map(|why| (why.code.clone(), now));
        }
    }

    fn is_promoting(&self, resource: &str) -> bool {
        let local = self.locals.get(resource);
        local.is_some_and(|local| matches!(local.office, Office::Promoting { .. }))
    }

    /// Why this node does not take an office, with the time since which that is the reason: also
    /// during the next attempt.
    pub fn explain(&self, resource: &str) -> Option<Verdict> {
        let mut verdict = match self.judge(resource) {
            Ok(_) if self.is_promoting(resource) => self.locals.get(resource)?.refusal.clone()?,
            judged => judged.err()?,
        };
        let known = self.locals.get(resource).and_then(|local| local.explained.as_ref());
        if let Some((_, since)) = known.filter(|(code, _)| *code == verdict.code) {
            verdict.since = verdict.since.min(*since);
        }
        Some(verdict)
    }

    fn do_move(&mut self, resource: String, next: Move, effects: &mut Effects) {
        let now = self.now;
        let local = self.locals.get_mut(&resource).expect("it is one of this node");
        match next {
            Move::Stay => {}
            Move::Promote { force, why } => {
                local.office = Office::Promoting { since: now };
                effects.push(Effect::Promote { resource, force, why });
            }
            Move::HandOver { to, why } => {
                local.office = Office::HandingOver { since: now, is_cancelled: false };
                local.given_for = why;
                effects.push(Effect::HandOver { resource, to });
            }
            Move::Change(change, why) => {
                let cause = Cause { what: why.into(), resource, why: String::new() };
                self.propose(Asker::Own, change, cause, effects);
            }
            Move::GiveBack { to, why } => {
                // The next wish is a new one.
                local.refusals = 0;
                let change =
                    Change::Want { resource: resource.clone(), node: to, force: Force::default() };
                let cause = Cause { what: WISH_REFUSED.into(), resource, why };
                self.propose(Asker::Own, change, cause, effects);
            }
        }
    }

    fn watch_majority(&mut self) {
        let hears = self.hears_majority();
        self.no_majority_since =
            if hears { None } else { self.no_majority_since.or(Some(self.now)) };
    }

    fn watch_changes(&mut self) {
        let revision = |state: Option<&ClusterState>| state.map_or(0, |state| state.revision);
        let is_newer = revision(self.acceptor.accepted()) > revision(self.state());
        self.change_since = if is_newer { self.change_since.or(Some(self.now)) } else { None };
    }

    /// A hand-over is over when the office is gone. One that an operator wanted ends when he wants
    /// it no more.
    fn watch_hand_overs(&mut self, effects: &mut Effects) {
        let Some((_, state)) = &self.known else { return };
        for (name, local) in &mut self.locals {
            let entry = state.resource(name);
            let holder = entry.and_then(|entry| entry.holder.as_ref());
            let is_mine = holder.is_some_and(|holder| holder.node == self.config.name);
            let Office::HandingOver { since, is_cancelled } = local.office else { continue };
            let is_wish = local.given_for.is_empty();
            if is_mine && is_wish && !is_cancelled && entry.is_some_and(|it| it.wanted.is_none()) {
                local.office = Office::HandingOver { since, is_cancelled: true };
                effects.push(Effect::KeepOffice { resource: name.clone() });
            }
            // Its replica gave the office up without the register: for want of a lease, or since
            // its release was never decided.
            let is_stuck =
                self.now.since(since) >= CANDIDATE_PATIENCE && local.facts.role == "secondary";
            if !is_mine || is_stuck {
                local.office = Office::Idle;
            }
        }
    }

    pub(crate) fn hears_voter(&self, voter: &Voter) -> bool {
        if voter.node == self.config.name {
            return voter.acceptor == self.acceptor.record().id;
        }
        self.detector.hears_now(self.now, &voter.node)
            && self.detector.has_answered(&voter.node)
            && self
                .detector
                .node(&voter.node)
                .is_some_and(|node| node.acceptor() == voter.acceptor && !node.went_back())
    }

    pub(crate) fn hears_majority(&self) -> bool {
        if let Some(etcd) = &self.etcd {
            return self.hears_etcd(etcd);
        }
        let Some(state) = self.names_voters() else { return false };
        let heard: Vec<u128> = state
            .all_voters()
            .filter(|voter| self.hears_voter(voter))
            .map(|voter| voter.acceptor)
            .collect();
        state.is_majority(|id| heard.contains(&id))
    }

    /// The newest state this node goes by for who votes: what a promise told it, before it has
    /// settled anything itself (L7).
    fn names_voters(&self) -> Option<&ClusterState> {
        let own = self.state().or(self.acceptor.accepted());
        let told = self.proposer.asks().filter(|_| !self.is_settled);
        // Of equal ones it takes the last.
        told.into_iter().chain(own).max_by_key(|state| state.revision)
    }

    /// The first state of a cluster, a read after a start, a change of voters that is half done.
    fn housekeeping(&self) -> Option<(Change, &'static str)> {
        let is_told = !self.newer_elsewhere().is_empty();
        if self.is_blank() && !is_told {
            return self.founding();
        }
        if !self.is_settled {
            return (self.hears_majority() || is_told).then_some((Change::Read, "read"));
        }
        let state = self.state()?;
        if let Some(next) = &state.next_voters
            && self.hears_majority()
        {
            return Some((Change::VotersDone { next: next.clone() }, "voters changed"));
        }
        None
    }

    /// The first data node founds the cluster when every node is there and blank.
    fn founding(&self) -> Option<(Change, &'static str)> {
        let first = self.config.nodes.iter().filter(|(_, witness)| !witness).map(|node| &node.0);
        if first.min() != Some(&self.config.name) {
            return None;
        }
        if self.etcd.as_ref().is_some_and(|etcd| !self.is_etcd_empty(etcd)) {
            return None;
        }
        let mut voters = Vec::new();
        for (name, witness) in &self.config.nodes {
            let acceptor = if *name == self.config.name {
                self.acceptor.record().id
            } else {
                let node = self.detector.node(name)?;
                let is_there = self.detector.hears_now(self.now, name);
                if !is_there || node.heartbeat.number == 0 || !node.heartbeat.is_blank {
                    return None;
                }
                node.acceptor()
            };
            voters.push(Voter { node: name.clone(), acceptor, witness: *witness });
        }
        voters.sort();
        Some((Change::Found { lease: self.config.lease, voters }, "founded"))
    }

    /// What this node should do about a resource now; or why it does not take the office.
    pub fn judge(&self, resource: &str) -> Result<Move, Verdict> {
        self.check_epoch()?;
        self.check_etcd()?;
        let state = self.state().ok_or_else(|| self.no_register())?;
        self.check_majority(state)?;
        let Some(local) = self.locals.get(resource) else {
            return Err(self.say_no("not_here", "", "this node has no such resource", "nothing"));
        };
        let Some(entry) = state.resource(resource) else {
            if state.resources.len() >= RESOURCES_MAX {
                let why = format!("the register has {RESOURCES_MAX} resources and holds no more");
                return Err(self.say_no(
                    "register_full",
                    "",
                    &why,
                    "take a resource that is no longer needed out of the file: replctl apply",
                ));
            }
            let change = Change::AddResource { name: resource.into() };
            return Ok(Move::Change(change, "resource added"));
        };
        if !self.is_settled {
            return Err(self.say_no(
                "not_settled",
                "R14",
                "since its start this node has not yet asked a majority for the newest state",
                "wait; or bring back the nodes that are missing",
            ));
        }
        match local.office {
            Office::Promoting { .. } | Office::HandingOver { .. } => return Ok(Move::Stay),
            Office::Idle => {}
        }
        let me = &self.config.name;
        if entry.state.generation == 0 {
            return self.judge_origin(entry);
        }
        let promote = |why: String| Ok(Move::Promote { force: Force::default(), why });
        let is_forced = entry.force != Force::default();
        if is_forced && entry.wanted.as_ref() == Some(me) && self.now >= local.retry_at {
            let why = "an operator forces it".into();
            return Ok(Move::Promote { force: entry.force, why });
        }
        match &entry.holder {
            Some(holder) if holder.node == *me && holder.process == self.config.process => {
                self.judge_own(state, entry)
            }
            Some(holder) if holder.node == *me => {
                // An earlier process of this node held it (R6a).
                self.check_candidate(entry, &local.facts)?;
                promote("this node was primary before its restart".into())
            }
            Some(holder) => {
                self.check_switches(state, entry)?;
                self.check_lost(state, entry, &holder.node)?;
                self.check_candidate(entry, &local.facts)?;
                self.check_turn(state, entry)?;
                promote(format!("{} is lost", holder.node))
            }
            None => {
                let is_wanted = entry.wanted.as_ref() == Some(me);
                if !is_wanted {
                    self.check_switches(state, entry)?;
                }
                if let Err(why) = self.check_candidate(entry, &local.facts) {
                    let is_over = is_wanted && !is_forced && self.refuses_wish(local, &why);
                    return if is_over { Ok(self.give_back(state, entry, &why)) } else { Err(why) };
                }
                self.check_turn(state, entry)?;
                let why = if is_wanted { "an operator wants it here" } else { "nobody is primary" };
                promote(why.into())
            }
        }
    }

    /// Whether a switchover to this node has failed: by what holds its replica back and is not
    /// over in a moment by itself, or since the replica has refused the office again.
    fn refuses_wish(&self, local: &Local, why: &Verdict) -> bool {
        if self.now < local.retry_at {
            return local.refusals > WANTED_REFUSALS_MAX;
        }
        let is_passing =
            matches!(why.code.as_str(), "peer_is_primary" | "register_unknown" | "no_disk");
        !is_passing || self.now.since(self.known_since) >= self.lease()
    }

    /// Nobody waits for a node that cannot take the office: who gave it is to go on, also while
    /// the automation is paused.
    fn give_back(&self, state: &ClusterState, entry: &Resource, why: &Verdict) -> Move {
        let is_giver = |home: &&Home| home.node == state.by && home.node != self.config.name;
        let was_released = state.cause.what == RELEASE && state.cause.resource == entry.name;
        let to = entry.homes.iter().find(is_giver).filter(|_| was_released);
        let why = format!("{}: {}", self.config.name, why.why);
        Move::GiveBack { to: to.map(|home| home.node.clone()), why }
    }

    /// R11b: a resource that is new to the register begins with the newest copy on the disks of
    /// all data nodes: the one whose disk an operator named its origin, or a pair's that had no
    /// witness so far.
    fn judge_origin(&self, entry: &Resource) -> Result<Move, Verdict> {
        let mut newest: Option<(&NodeName, &Facts)> = None;
        for (node, _) in self.config.nodes.iter().filter(|(_, witness)| !witness) {
            let Some(facts) = self.facts_of(node, &entry.name).filter(|it| it.replica != 0) else {
                let why = format!(
                    "this resource is new to the register, and the disk of {node} has not been \
                     seen: its data may be the newest"
                );
                let next = format!(
                    "start replicatord on {node}; if its disk is new, on {node}: replctl create \
                     {name}; replctl up {name}",
                    name = entry.name
                );
                return Err(self.say_no("no_origin", "R11b", &why, &next));
            };
            if newest.is_none_or(|(_, other)| facts.copy.order() > other.copy.order()) {
                newest = Some((node, facts));
            }
        }
        let Some((node, facts)) = newest.filter(|(_, facts)| facts.copy.generation > 0) else {
            let next = format!(
                "on NODE, whose disk has the data: replctl down {name}; replctl init {name} --from \
                 NODE; replctl up {name}",
                name = entry.name
            );
            let why = "no replica of this resource was ever named its origin";
            return Err(self.say_no("no_origin", "R11b", why, &next));
        };
        if *node != self.config.name {
            let why = format!("{node} has the newest data and comes first");
            return Err(self.say_no("not_its_turn", "R11b", &why, "wait"));
        }
        let mut next = facts.copy.clone();
        next.generation += 1;
        (next.primary, next.authority) = (None, None);
        Ok(Move::Change(
            Change::Replica {
                resource: entry.name.clone(),
                expected: 0,
                next,
                process: self.config.process,
                homes: self.homes(&entry.name),
                forced: false,
            },
            "origin",
        ))
    }

    /// This process is primary: is it to go elsewhere?
    fn judge_own(&self, state: &ClusterState, entry: &Resource) -> Result<Move, Verdict> {
        let me = &self.config.name;
        let local = &self.locals[&entry.name];
        // Its replica stepped down (no lease for long, a failed disk): it serves again, or makes
        // room for others.
        let is_settled = self.now.since(self.known_since) >= self.lease();
        if is_settled && local.facts.role == "secondary" && self.now >= local.retry_at {
            return Ok(match hindrance(&local.facts) {
                None => Move::Promote {
                    force: Force::default(),
                    why: "this node has the office and does not serve".into(),
                },
                Some(hindrance) => Move::HandOver { to: me.clone(), why: hindrance.why },
            });
        }
        if let Some(wanted) = entry.wanted.as_ref().filter(|wanted| *wanted != me) {
            if self.now < local.retry_at {
                return Ok(Move::Stay);
            }
            return match self.check_target(state, entry, wanted) {
                Ok(()) => Ok(Move::HandOver { to: wanted.clone(), why: String::new() }),
                Err(_) if self.now.since(self.known_since) < WANTED_PATIENCE => Ok(Move::Stay),
                Err(_) => {
                    let change = want(entry, None);
                    Ok(Move::Change(change, "switchover given up"))
                }
            };
        }
        // What this node says of its services is news only after a moment.
        let is_in_office = self.now.since(local.holder_since) >= self.lease();
        if !state.paused
            && is_in_office
            && self.now >= local.retry_at
            && let Some(to) = self.better_place(state, entry)
        {
            let why = self.why_better(entry, &to);
            return Ok(Move::HandOver { to, why });
        }
        if state.standby.contains(me) {
            let mut targets = self.candidates(state, entry).into_iter();
            if let Some(to) = targets.find(|to| to != me) {
                let change = want(entry, Some(to));
                return Ok(Move::Change(change, "standby"));
            }
        }
        self.check_reached(state, entry)?;
        Ok(Move::Stay)
    }

    /// Whether a switchover to that node can be done without loss.
    pub fn check_target(
        &self,
        state: &ClusterState,
        entry: &Resource,
        target: &NodeName,
    ) -> Result<(), Verdict> {
        let next = "look at replctl status; wait for its resync or bring it back";
        if state.standby.contains(target) {
            let why = format!("{target} is on standby");
            let next = format!("replctl online {target}");
            return Err(self.say_no("standby", "operator", &why, &next));
        }
        if !entry.has_member(target) {
            let why = format!(
                "{target} is not in the in-sync set of generation {}",
                entry.state.generation
            );
            return Err(self.say_no("not_a_member", "R11a", &why, next));
        }
        let Some(facts) = self.facts_of(target, &entry.name) else {
            let why = format!("{target} is not heard");
            return Err(self.say_no("not_heard", "L6", &why, next));
        };
        // That somebody else is primary is no hindrance for a hand-over.
        match &facts.hindrance {
            Some(hindrance) if hindrance.code != "peer_is_primary" => {
                Err(self.of_replica(target, &entry.name, hindrance))
            }
            _ => Ok(()),
        }
    }

    /// What a replica says of itself, and since when.
    fn of_replica(&self, node: &NodeName, resource: &str, hindrance: &Hindrance) -> Verdict {
        let since = self.hindered.since(node, resource, hindrance).unwrap_or(self.now);
        Verdict::of_replica(since, hindrance)
    }

    /// For how long a replica could not be promoted for its present reason.
    pub fn hindered_for(&self, node: &NodeName, resource: &str, now: Time) -> Option<Span> {
        let hindrance = self.facts_of(node, resource)?.hindrance.as_ref()?;
        self.hindered.since(node, resource, hindrance).map(|since| now.since(since))
    }

    /// A node told what its replica is and can do.
    pub(crate) fn note_facts(&mut self, node: &NodeName, resource: &str, facts: &Facts) {
        let whose = (node, resource);
        self.hindered.note(self.now, whose, facts.hindrance.as_ref());
        self.troubled.note(self.now, whose, facts.trouble.as_ref());
    }

    /// Since when services cannot run on a node, for its present reason.
    pub fn troubled_since(&self, node: &NodeName, resource: &str) -> Option<Time> {
        let trouble = self.facts_of(node, resource)?.trouble.as_ref()?;
        self.troubled.since(node, resource, trouble)
    }

    /// What a node says of its replica of a resource; none when it is not heard.
    pub fn facts_of(&self, node: &NodeName, resource: &str) -> Option<&Facts> {
        if *node == self.config.name {
            return self.locals.get(resource).map(|local| &local.facts);
        }
        let heard = self.detector.node(node).filter(|_| self.detector.hears_now(self.now, node))?;
        heard.heartbeat.facts.iter().find(|(name, _)| name == resource).map(|(_, facts)| facts)
    }

    // ------------------------------------------------------------------ the reasons

    pub(crate) fn say_no(&self, code: &str, rule: &str, why: &str, next: &str) -> Verdict {
        Verdict::new(self.now, code, rule, why.to_string(), next.to_string())
    }

    pub(crate) fn no_register(&self) -> Verdict {
        let missing: Vec<String> = self
            .config
            .nodes
            .iter()
            .filter(|(name, _)| {
                *name != self.config.name && !self.detector.hears_now(self.now, name)
            })
            .map(|(name, _)| name.to_string())
            .collect();
        let why = if missing.is_empty() {
            String::from("the cluster has no register yet, or it has not been read")
        } else {
            format!("the cluster's register is not known: {} not heard", missing.join(", "))
        };
        let next = "start replicatord on every node of the configuration";
        let mut verdict = self.say_no("no_register", "R14", &why, next);
        verdict.since = self.started_at;
        verdict
    }

    /// That the newest state is known and a majority of its voters is there.
    pub fn check_majority_known(&self) -> Result<(), Verdict> {
        self.check_epoch()?;
        self.check_majority(self.state().ok_or_else(|| self.no_register())?)
    }

    fn check_majority(&self, state: &ClusterState) -> Result<(), Verdict> {
        let Some(since) = self.no_majority_since else { return Ok(()) };
        let missing: Vec<String> = state
            .all_voters()
            .filter(|voter| !self.hears_voter(voter))
            .map(|voter| match self.detector.silence(self.now, &voter.node) {
                Some(silence) => format!("{} silent for {} ms", voter.node, silence.as_ms()),
                None => format!("{} never heard", voter.node),
            })
            .collect();
        let voters = state.all_voters().count();
        let why = format!(
            "{} of {voters} voters are heard, a majority is needed: {}",
            voters - missing.len(),
            missing.join(", ")
        );
        let next = "bring the missing nodes back; if they are gone for ever: replctl recover \
                    --without NODE";
        let mut verdict = self.say_no("no_majority", "L6", &why, next);
        verdict.since = since;
        Err(verdict)
    }

    fn check_switches(&self, state: &ClusterState, entry: &Resource) -> Result<(), Verdict> {
        if state.paused {
            let mut verdict = self.say_no(
                "paused",
                "operator",
                "an operator paused the automation: paused = true in the register",
                "replctl resume; or replctl switchover",
            );
            verdict.since = self.known_since;
            return Err(verdict);
        }
        if state.standby.contains(&self.config.name) {
            let why = format!("{} is on standby", self.config.name);
            let next = format!("replctl online {}", self.config.name);
            let mut verdict = self.say_no("standby", "operator", &why, &next);
            verdict.since = self.known_since;
            return Err(verdict);
        }
        let me = &self.config.name;
        if let Some(wanted) = entry.wanted.as_ref().filter(|wanted| *wanted != me)
            && self.detector.hears_now(self.now, wanted)
            && self.now.since(self.known_since) < WANTED_PATIENCE
        {
            let why = format!("an operator wants it on {wanted}, which is heard");
            return Err(self.say_no("wanted_elsewhere", "operator", &why, "wait"));
        }
        Ok(())
    }

    /// L6: this node and a majority have lost the primary: nobody of the majority has a running
    /// lease of it.
    fn check_lost(
        &self,
        state: &ClusterState,
        entry: &Resource,
        holder: &NodeName,
    ) -> Result<(), Verdict> {
        // A release is in the acceptors, and the lease gone, a moment before it is known.
        let changes = self.acceptor.accepted().filter(|newest| newest.by == *holder);
        if let (Some(since), Some(newest)) = (self.change_since, changes)
            && self.now.since(since) < self.lease()
        {
            let why = format!(
                "{holder} proposes revision {}, not known to be committed",
                newest.revision
            );
            let mut verdict = self.say_no("change_under_way", "L6", &why, "wait");
            verdict.since = since;
            return Err(verdict);
        }
        if entry.state.sole && !defect(Defect::SoleIgnored) {
            let why = format!(
                "{holder} was the only member in generation {} and holds the office without end",
                entry.state.generation
            );
            let next = format!(
                "bring {holder} back; or, if it is off for ever, replctl failover {} --to NODE \
                 --allow-data-loss --old-primary-is-off",
                entry.name
            );
            return Err(self.say_no("sole", "R5d", &why, &next));
        }
        if defect(Defect::TakeoverWhileLeaseRuns) {
            return Ok(());
        }
        let held_for = self.now.since(self.locals[&entry.name].holder_since);
        if held_for < self.lease() && self.detector.hears_now(self.now, holder) {
            // The grants that came with its office may not be known here yet.
            let why = format!("{holder} took the office {} ms ago", held_for.as_ms());
            return Err(self.lease_runs(entry, "L6", &why));
        }
        if let Some(etcd) = &self.etcd {
            return self.check_watched(etcd, state, entry);
        }
        let own = self.acceptor.leases(self.now).find(|lease| lease.resource == entry.name);
        if let Some(lease) = own {
            let why = format!(
                "the lease of {holder} runs here for another {} ms",
                lease.until.since(self.now).as_ms()
            );
            return Err(self.lease_runs(entry, "L2", &why));
        }
        let unsure = self.acceptor.unsure(self.now);
        if unsure > Span(0) {
            let why = format!(
                "this node started a short time ago and may have granted a lease before: it waits \
                 for another {} ms",
                unsure.as_ms()
            );
            return Err(self.say_no("just_started", "L5", &why, "wait: that is over by itself"));
        }
        let has_lost = |voter: &Voter| {
            voter.node == self.config.name
                || self.hears_voter(voter)
                    && self.detector.node(&voter.node).is_some_and(|node| {
                        let sees = node.heartbeat.leases.iter().find(|(r, ..)| *r == entry.name);
                        let gone = self.now.since(node.heartbeat_at);
                        // A lease that had less left than the report is old is over.
                        sees.is_none_or(|(_, _, remaining)| *remaining <= gone)
                    })
        };
        let lost: Vec<u128> =
            state.all_voters().filter(|v| has_lost(v)).map(|voter| voter.acceptor).collect();
        if state.is_majority(|id| lost.contains(&id)) {
            return Ok(());
        }
        let sees: Vec<String> = state
            .all_voters()
            .filter(|voter| !lost.contains(&voter.acceptor))
            .map(|voter| voter.node.to_string())
            .collect();
        let why = format!("{} has granted {holder} a lease that runs", sees.join(", "));
        Err(self.lease_runs(entry, "L6", &why))
    }

    /// Somebody else may serve: that ends by itself, or as an operator wants it.
    pub(crate) fn lease_runs(&self, entry: &Resource, rule: &str, why: &str) -> Verdict {
        let next = format!(
            "wait: a lease that is not renewed ends by itself; or, while it is renewed: replctl \
             switchover {} --to {}",
            entry.name, self.config.name
        );
        self.say_no("lease_runs", rule, why, &next)
    }

    /// Whether this node's replica could be primary.
    fn check_candidate(&self, entry: &Resource, facts: &Facts) -> Result<(), Verdict> {
        let local = &self.locals[&entry.name];
        if self.now < local.retry_at
            && let Some(refusal) = &local.refusal
        {
            return Err(refusal.clone());
        }
        match hindrance(facts) {
            Some(hindrance) => Err(self.of_replica(&self.config.name, &entry.name, &hindrance)),
            None => Ok(()),
        }
    }

    /// The nodes that could take the office, best first: where an operator wants it, then members
    /// by name.
    fn candidates(&self, state: &ClusterState, entry: &Resource) -> Vec<NodeName> {
        let mut nodes: Vec<NodeName> = entry
            .homes
            .iter()
            .map(|home| &home.node)
            .filter(|node| !state.standby.contains(node) && entry.has_member(node))
            .filter(|node| {
                self.facts_of(node, &entry.name).is_some_and(|facts| match hindrance(facts) {
                    Some(hindrance) => hindrance.code == "peer_is_primary",
                    None => true,
                })
            })
            .cloned()
            .collect();
        nodes.sort_by_cached_key(|node| self.rank(state, entry, node));
        nodes
    }

    /// How well a node suits a resource, best first: where an operator wants it; where its services
    /// can run; with the resource that it follows; as the configuration likes it; by name.
    fn rank(&self, state: &ClusterState, entry: &Resource, node: &NodeName) -> Rank {
        let placement = self.locals.get(&entry.name).map(|local| &local.placement);
        let is_apart =
            placement.and_then(|it| leader(state, it)).is_some_and(|leader| leader != node);
        let (is_avoided, place) = placement.map_or((false, 0), |it| it.rank(node));
        let is_elsewhere = entry.wanted.as_ref() != Some(node);
        let has_trouble = self.has_trouble(node, entry);
        (is_elsewhere, has_trouble, is_apart, is_avoided, place, node.clone())
    }

    fn has_trouble(&self, node: &NodeName, entry: &Resource) -> bool {
        self.facts_of(node, &entry.name).is_some_and(|facts| facts.trouble.is_some())
    }

    /// Where the office goes since services cannot run here, or since the resource that this one
    /// follows is elsewhere.
    fn better_place(&self, state: &ClusterState, entry: &Resource) -> Option<NodeName> {
        let me = &self.config.name;
        let placement = &self.locals[&entry.name].placement;
        let mut others = self.candidates(state, entry).into_iter();
        others.find(|node| {
            let is_healthy = node != me && !self.has_trouble(node, entry);
            let is_left = self.has_trouble(me, entry) && self.is_better_off(entry, node);
            is_healthy && (is_left || leader(state, placement) == Some(node))
        })
    }

    /// The nodes that could take the office without loss, best first.
    pub fn heirs(&self, entry: &Resource) -> Vec<NodeName> {
        self.state().map_or_else(Vec::new, |state| self.candidates(state, entry))
    }

    /// One candidate after the other, so that they do not get in each other's way: each has its
    /// time from when the office was free. The one that is lost is none.
    fn check_turn(&self, state: &ClusterState, entry: &Resource) -> Result<(), Verdict> {
        let lost = entry.holder.as_ref().map(|holder| &holder.node);
        let mut candidates = self.candidates(state, entry);
        candidates.retain(|node| Some(node) != lost);
        let Some(place) = candidates.iter().position(|node| *node == self.config.name) else {
            // Not a member any more for the register, but the replica knows better or will say.
            return Ok(());
        };
        let free_since = match lost {
            Some(_) => self.lapsed_since(&entry.name).unwrap_or(self.now),
            None => self.known_since,
        };
        let patience = Span(CANDIDATE_PATIENCE.0 * place as u64);
        if place == 0 || self.now.since(free_since) >= patience {
            return Ok(());
        }
        let why = format!("{} comes first", candidates[0]);
        let next = format!("wait; {} tries when it does nothing", self.config.name);
        Err(self.say_no("not_its_turn", "", &why, &next))
    }

    // ------------------------------------------------------------------ how it went

    pub(crate) fn promotion_ended(&mut self, resource: &str, refused: Option<Hindrance>) {
        let now = self.now;
        let Some(local) = self.locals.get_mut(resource) else { return };
        local.office = Office::Idle;
        match refused {
            None => (local.refusal, local.refusals) = (None, 0),
            Some(why) => local.refused(now, &why),
        }
    }

    pub(crate) fn hand_over_refused(&mut self, resource: &str, why: &Hindrance) {
        let now = self.now;
        let Some(local) = self.locals.get_mut(resource) else { return };
        let office = core::mem::take(&mut local.office);
        if !matches!(office, Office::HandingOver { is_cancelled: true, .. }) {
            local.refused(now, why);
        }
    }
}

impl Local {
    fn refused(&mut self, now: Time, why: &Hindrance) {
        let doublings = self.refusals.min(RETRY_DOUBLINGS_MAX);
        self.refusals += 1;
        self.retry_at = now + Span(RETRY.0 << doublings);
        let former = self.refusal.take().filter(|former| former.code == why.code);
        let since = former.map_or(now, |former| former.since);
        self.refusal = Some(Verdict { since, ..Verdict::of_replica(now, why) });
    }
}

/// Why a replica cannot be promoted, or that nothing is known of it yet.
fn hindrance(facts: &Facts) -> Option<Hindrance> {
    if facts.replica == 0 {
        return Some(Hindrance {
            code: "no_disk".into(),
            rule: "R16".into(),
            why: "the disk of this replica is not attached".into(),
            next: "look at replctl status on that node".into(),
        });
    }
    facts.hindrance.clone()
}

/// The node that holds the resource which this one follows.
fn leader<'a>(state: &'a ClusterState, placement: &Placement) -> Option<&'a NodeName> {
    let leader = state.resource(placement.with.as_ref()?)?;
    leader.holder.as_ref().map(|holder| &holder.node)
}

fn want(entry: &Resource, node: Option<NodeName>) -> Change {
    Change::Want { resource: entry.name.clone(), node, force: Force::default() }
}

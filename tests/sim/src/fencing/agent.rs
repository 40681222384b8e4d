//! The fence agents: what they do to the machines, and what they say of it.

use failover_core::fence::{Ended, Input, Request};

use crate::fencing::Happening;
use crate::occasions::Occasion;
use crate::tell;
use crate::world::{MS, World};

/// The exit code of `status` for a machine that is off.
const OFF: i32 = 2;

/// A run of an agent.
#[derive(Debug)]
pub struct Run {
    /// The node that called it; its peer is what it acts on.
    node: usize,
    life: u64,
    /// The boot of that node: its agents end with its machine, but not with its daemon.
    incarnation: u128,
    request: Request,
}

enum Fate {
    DoesIt,
    Fails,
    TimesOut,
    Lies,
}

impl World {
    pub(super) fn run_agent(&mut self, node: usize, life: u64, request: Request) {
        let longest = if self.is_calm() { 50 } else { self.fencing().plan.agent_ms };
        let delay = (1 + self.draw.below(longest)) * MS;
        let incarnation = self.nodes[node].incarnation;
        self.later(delay, Happening::AgentEnds(Run { node, life, incarnation, request }));
    }

    fn fate_of_agent(&mut self) -> Fate {
        let [fails, times_out, lies] = self.fencing().plan.percent;
        if self.is_calm() {
            return Fate::DoesIt;
        }
        match () {
            () if self.draw.chance(fails) => Fate::Fails,
            () if self.draw.chance(times_out) => Fate::TimesOut,
            () if self.draw.chance(lies) => Fate::Lies,
            () => Fate::DoesIt,
        }
    }

    pub(super) fn agent_ends(&mut self, run: &Run) {
        let Run { node, life, incarnation, request } = *run;
        if self.nodes[node].incarnation != incarnation {
            return;
        }
        let ended = match (request, self.fate_of_agent()) {
            (_, Fate::Fails) => Ended::Exit(1),
            (Request::Off, Fate::TimesOut) => {
                self.happened(Occasion::AgentTimedOut);
                if self.draw.chance(50) {
                    self.switch_off(1 - node);
                }
                Ended::TimedOut
            }
            (_, Fate::TimesOut) => Ended::TimedOut,
            (Request::Off, Fate::Lies) => {
                self.fencing_mut().sides[node].lied = true;
                Ended::Exit(0)
            }
            (Request::Off, Fate::DoesIt) => {
                self.fencing_mut().sides[node].lied = false;
                self.switch_off(1 - node);
                Ended::Exit(0)
            }
            (Request::Status, _) => {
                let says_off = self.nodes[1 - node].held || self.fencing().sides[node].lied;
                Ended::Exit(if says_off { OFF } else { 0 })
            }
            (Request::On, Fate::Lies) => Ended::Exit(0),
            (Request::On, Fate::DoesIt) => {
                self.switch_on(1 - node);
                Ended::Exit(0)
            }
        };
        tell!(self, "the agent of {} ends: {request:?} {ended:?}", self.nodes[node].name);
        let said = String::new();
        let input = Box::new(Input::AgentEnded { request, ended, said });
        self.later(0, Happening::Tell { node, life, input });
    }

    fn switch_off(&mut self, node: usize) {
        if !self.nodes[node].held {
            self.cut_power(node);
            self.nodes[node].held = true;
            self.start_in(node, MS);
        }
        let longest = if self.is_calm() { 2_000 } else { self.fencing().plan.off_ms };
        let delay = (1 + self.draw.below(longest)) * MS;
        self.later(delay, Happening::PowerOn { node });
    }

    pub(super) fn switch_on(&mut self, node: usize) {
        if self.nodes[node].held {
            tell!(self, "{} is switched on", self.nodes[node].name);
            self.nodes[node].held = false;
        }
    }

    /// The address of a node's peer that accepts connections: the kernel of a daemon that stands
    /// still does, too. Where an agent lies, some path is left.
    pub(super) fn accepts_connections(&mut self, node: usize) -> Option<String> {
        let lied = self.fencing().sides[node].lied;
        let listens = self.nodes[1 - node].process.is_some();
        let accepts = listens && (lied || self.is_reachable());
        if accepts && lied {
            self.happened(Occasion::AgentLied);
        }
        accepts.then(|| self.nodes[1 - node].name.into())
    }
}

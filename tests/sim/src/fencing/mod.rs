//! A pair without a witness whose nodes fence each other by themselves: each daemon has the
//! shipping decision core beside its replica (`failover_core::fence`, `replicator_core`'s
//! `fenced.rs`), and an agent that switches the other machine off; or fails, takes long, does not
//! end, or lies.
//!
//! ```text
//!  mod.rs     what each daemon looks at and is told, as `replicator/src/fence.rs` carries it
//!  agent.rs   what the agents do to the machines, and what they say of it
//! ```
//!
//! The oracle is that of every world: never two that serve, and nothing acknowledged is lost. An
//! agent that lies does so only while the node answers somewhere: what says "off" of a node that
//! lives and cannot be reached at all is more than anybody can find out.

mod agent;

use std::collections::BTreeMap;
use std::mem;

use failover_core::fence::{Action, Effect, Facts, Fence, Input, Note, Settings, Waiting};
use history::draw::Draw;
use replicator_core::{
    Answer, Command, Input as ReplicaInput, Refusal, SessionId, Span, Status, Ticket,
};

use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::plan::Plan;
use crate::tell;
use crate::world::{Event, MS, PEER, World};

use agent::Run;

/// The one resource.
const RESOURCE: &str = "sim";
/// How often a daemon looks at its replica.
const LOOK_EVERY: u64 = 200 * MS;
/// How often a silent peer is asked whether it is alive, and for how long the answer counts.
const ASK_EVERY: u64 = 1_000 * MS;
const ANSWER_COUNTS: u64 = 2_000 * MS;
/// A promise to stand back is waited for so long.
const PROMISE_PATIENCE: u64 = 2_000 * MS;

/// What a seed is about besides.
#[derive(Clone, Debug)]
pub struct FencePlan {
    action: Action,
    fence_after: Span,
    /// How much longer each node waits in a duel.
    delays: [Span; 2],
    off_within: Span,
    attempts: u32,
    /// Percent of runs of an agent that fail, that do not end in their time, that lie.
    percent: [u64; 3],
    /// Longest run of an agent, in milliseconds.
    agent_ms: u64,
    /// Longest time until somebody switches a node on again, in milliseconds.
    off_ms: u64,
}

impl FencePlan {
    fn draw(draw: &mut Draw) -> Self {
        let percent = |draw: &mut Draw| [0, 0, 10, 50][draw.below(4) as usize];
        Self {
            action: if draw.chance(50) { Action::Off } else { Action::Reboot },
            fence_after: Span::from_ms([500, 1_500, 4_000][draw.below(3) as usize]),
            delays: [0; 2].map(|_| Span::from_ms([0, 0, 1_000][draw.below(3) as usize])),
            off_within: Span::from_ms(1_000 + draw.below(4_000)),
            attempts: 1 + draw.below(3) as u32,
            percent: [0; 3].map(|_| percent(draw)),
            agent_ms: [50, 1_000, 30_000][draw.below(3) as usize],
            off_ms: [500, 5_000, 30_000][draw.below(3) as usize],
        }
    }
}

/// Something that will happen.
#[expect(missing_docs, reason = "node and life say what they are")]
#[derive(Debug)]
pub enum Happening {
    /// A daemon looks at its replica.
    Look { node: usize, life: u64 },
    /// A daemon asks whether its peer is alive, when it has no session.
    Ask { node: usize, life: u64 },
    /// A fact for the decision core of a daemon.
    Tell { node: usize, life: u64, input: Box<Input> },
    /// An agent comes to its end.
    AgentEnds(Run),
    /// The addresses of the peer were tried.
    Probed { node: usize, life: u64 },
    /// The question whether it stands back arrives at the peer of a node.
    AskedToStandBack { node: usize, life: u64, waiting: Waiting },
    /// No answer came.
    PromiseIsLate { ticket: u64 },
    /// Somebody switches a node on.
    PowerOn { node: usize },
}

/// What an order to a replica was for.
#[derive(Clone, Debug)]
enum Order {
    Promotion {
        node: usize,
        life: u64,
    },
    Proceed,
    /// The answer goes to the peer of that node, if it is still the process that asked.
    StandBack {
        asker: usize,
        life: u64,
        waiting: Waiting,
    },
}

/// One daemon's side.
#[derive(Debug, Default)]
struct Side {
    core: Option<Fence>,
    /// Sessions that had begun at the last look.
    begun: usize,
    /// When the peer answered last, or asked.
    alive_at: Option<u64>,
    /// The agent lied in the present attempt.
    lied: bool,
    /// The process of the peer when the attempt began.
    fences: Option<u64>,
}

/// The fencing of both nodes.
#[derive(Debug)]
pub struct Fencing {
    plan: FencePlan,
    sides: [Side; 2],
    orders: BTreeMap<u64, Order>,
}

impl World {
    /// The world of a seed whose nodes fence each other, before anything happens.
    pub fn of_a_fenced_pair(seed: u64, trace: bool) -> Self {
        let mut draw = Draw::new(seed ^ 0xfe9ce);
        let plan = Plan::draw_for_fencing(&mut draw);
        let fencing = Fencing {
            plan: FencePlan::draw(&mut draw),
            sides: Default::default(),
            orders: BTreeMap::new(),
        };
        let mut world = Self::begin(seed, draw, plan, None, trace);
        tell!(world, "fencing {:?}", fencing.plan);
        world.fencing = Some(Box::new(fencing));
        world
    }

    fn fencing(&self) -> &Fencing {
        self.fencing.as_ref().expect("nodes that fence")
    }

    fn fencing_mut(&mut self) -> &mut Fencing {
        self.fencing.as_mut().expect("nodes that fence")
    }

    fn later(&mut self, delay: u64, happening: Happening) {
        self.after(delay, Event::Fencing(happening));
    }

    /// A process starts, and its fencing with it.
    pub(crate) fn start_fencing(&mut self, node: usize, life: u64) {
        let (local, peer) = (self.local(node), self.nodes[1 - node].name);
        let name = self.nodes[node].name;
        let fencing = self.fencing_mut();
        let plan = &fencing.plan;
        let settings = Settings {
            node: name.into(),
            peer: peer.into(),
            agent: "fence_sim".into(),
            is_automatic: true,
            action: plan.action,
            fence_after: plan.fence_after,
            delay: plan.delays[node],
            off_within: plan.off_within,
            attempts: plan.attempts,
        };
        fencing.sides[node] = Side { core: Some(Fence::new(local, settings)), ..Side::default() };
        self.later(LOOK_EVERY, Happening::Look { node, life });
        self.later(ASK_EVERY, Happening::Ask { node, life });
    }

    pub(crate) fn happen_in_fencing(&mut self, happening: Happening) {
        let awake_at = match &happening {
            Happening::Look { node, life }
            | Happening::Ask { node, life }
            | Happening::Tell { node, life, .. }
            | Happening::Probed { node, life } => {
                if !self.runs(*node, *life) {
                    return;
                }
                self.nodes[*node].paused_until
            }
            _ => 0,
        };
        if awake_at > self.now {
            return self.later(awake_at - self.now, happening);
        }
        match happening {
            Happening::Look { node, life } => {
                self.later(LOOK_EVERY, Happening::Look { node, life });
                let facts = self.facts_of_fencing(node);
                self.step_fencing(node, Input::Looked(facts));
            }
            Happening::Ask { node, life } => {
                self.later(ASK_EVERY, Happening::Ask { node, life });
                self.ask_whether_alive(node);
            }
            Happening::Tell { node, input, .. } => self.step_fencing(node, *input),
            Happening::AgentEnds(run) => self.agent_ends(&run),
            Happening::Probed { node, .. } => {
                let accepted = self.accepts_connections(node);
                self.step_fencing(node, Input::Probed { accepted });
            }
            Happening::AskedToStandBack { node, life, waiting } => {
                self.asked_to_stand_back(node, life, waiting);
            }
            Happening::PromiseIsLate { ticket } => self.promise_is_late(ticket),
            Happening::PowerOn { node } => self.switch_on(node),
        }
    }

    // ------------------------------------------------------------------ what is seen

    /// Whether a packet goes there and its answer comes back.
    fn is_reachable(&self) -> bool {
        self.blocked_until.iter().all(|until| *until <= self.now)
    }

    fn ask_whether_alive(&mut self, node: usize) {
        let process = self.nodes[node].process.as_ref().expect("it runs");
        let peer = &self.nodes[1 - node];
        let answers = peer.process.is_some() && peer.paused_until <= self.now;
        if process.session.is_some() || !answers || !self.is_reachable() {
            return;
        }
        // Who is asked knows that the asker lives.
        let now = self.now;
        self.fencing_mut().sides.iter_mut().for_each(|side| side.alive_at = Some(now));
    }

    fn facts_of_fencing(&mut self, node: usize) -> Facts {
        let (now, local) = (self.now, self.local(node));
        let process = self.nodes[node].process.as_ref().expect("it runs");
        let begun = process.sessions.len();
        let status = process.replica.status(local);
        let is_up = process.session.is_some();
        let side = &mut self.fencing_mut().sides[node];
        let began_meanwhile = mem::replace(&mut side.begun, begun) != begun;
        let answered = side.alive_at.is_some_and(|at| now - at < ANSWER_COUNTS);
        let mut facts =
            Facts { is_heard: is_up || began_meanwhile || answered, ..Facts::default() };
        let resource = String::from(RESOURCE);
        if let Some(wait) = &status.awaits_fence {
            let session = wait.session.0;
            facts.waiting.push(Waiting { resource: resource.clone(), session });
        }
        match standing(&status) {
            Standing::Held => facts.own_offices += 1,
            Standing::Lost => facts.lost.push(resource),
            Standing::NotMine => facts.not_mine.push((resource, "it may not".into())),
            Standing::Nothing => {}
        }
        facts
    }

    // ------------------------------------------------------------------ what is done

    fn step_fencing(&mut self, node: usize, input: Input) {
        let local = self.local(node);
        let Some(core) = &mut self.fencing_mut().sides[node].core else { return };
        let mut effects = Vec::new();
        core.step(local, input, &mut effects);
        self.tally.steps += 1;
        for effect in effects {
            self.carry_out_fencing(node, effect);
        }
    }

    fn carry_out_fencing(&mut self, node: usize, effect: Effect) {
        let life = self.nodes[node].lives;
        match effect {
            Effect::RunAgent(request) => self.run_agent(node, life, request),
            Effect::Probe => {
                let delay = (1 + self.draw.below(500)) * MS;
                self.later(delay, Happening::Probed { node, life });
            }
            Effect::Promote { .. } => {
                self.order_for_fencing(node, Command::TakeFenced, Order::Promotion { node, life });
            }
            Effect::Proceed(waiting) => {
                let command = Command::PeerIsOff(PEER, SessionId(waiting.session));
                self.order_for_fencing(node, command, Order::Proceed);
            }
            Effect::AskToStandBack(waiting) => {
                let delay = (1 + self.draw.below(20)) * MS;
                self.later(delay, Happening::AskedToStandBack { node, life, waiting });
            }
            Effect::Note(note) => self.note_of_fencing(node, &note),
            Effect::Answer(_) => unreachable!("nobody orders a fence here"),
        }
    }

    fn note_of_fencing(&mut self, node: usize, note: &Note) {
        let text = match note {
            Note::Suspected(text) | Note::Back(text) | Note::Failed(text) => text,
            Note::Fencing(text) | Note::Fenced(text) | Note::StoodBack { text, .. } => text,
        };
        tell!(self, "{}: {text}", self.nodes[node].name);
        let peer = self.nodes[1 - node].process.as_ref().map(|process| process.life);
        match note {
            Note::Fencing(_) => self.fencing_mut().sides[node].fences = peer,
            Note::Fenced(_) => {
                self.happened(Occasion::PeerFenced);
                self.check_fenced(node, peer);
            }
            Note::StoodBack { .. } => self.happened(Occasion::PeerStoodBack),
            _ => {}
        }
    }

    /// What counts as off did not live all the time.
    fn check_fenced(&mut self, node: usize, peer: Option<u64>) {
        if peer.is_some() && peer == self.fencing().sides[node].fences {
            let text = format!("{} counts as off, and lives", self.nodes[1 - node].name);
            self.fail(Kind::Safety, "No witness", text);
        }
    }

    /// A member leaves the set only when it cannot take over any more: else what is acknowledged
    /// from now on is lost when it does.
    pub(crate) fn check_who_left(&mut self, node: usize, what: &str) {
        if self.fencing.is_none() || what != "a member left the in-sync set" {
            return;
        }
        let local = self.local(1 - node);
        let peer = self.nodes[1 - node].process.as_ref();
        if peer.is_some_and(|process| process.replica.status(local).takes_fenced) {
            let text = format!("{} left the set, and may take over", self.nodes[1 - node].name);
            self.fail(Kind::Safety, "No witness", text);
        }
    }

    fn order_for_fencing(&mut self, node: usize, command: Command, order: Order) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        let ticket = self.next_ticket();
        tell!(self, "fencing of {} orders {command:?} ({ticket})", self.nodes[node].name);
        self.fencing_mut().orders.insert(ticket, order);
        let input = ReplicaInput::Ordered { ticket: Ticket(ticket), command };
        self.fact(node, life, Box::new(input));
    }

    /// A replica answers; whether that is what fencing ordered.
    pub(crate) fn fencing_answered(
        &mut self,
        node: usize,
        ticket: u64,
        result: &Result<Answer, Box<Refusal>>,
    ) -> bool {
        let Some(fencing) = &mut self.fencing else { return false };
        let Some(order) = fencing.orders.remove(&ticket) else { return false };
        tell!(self, "the replica of {} answers {ticket}: {result:?}", self.nodes[node].name);
        let refused = result.as_ref().err().map(|refusal| refusal.why.clone());
        match order {
            Order::Proceed => {
                if *result == Ok(Answer::Done) {
                    self.happened(Occasion::WentOnAlone);
                }
            }
            Order::Promotion { node, life } => {
                if refused.is_none() {
                    self.happened(Occasion::FencedTakeover);
                }
                let input = Input::PromotionEnded { resource: RESOURCE.into(), refused };
                self.later(MS, Happening::Tell { node, life, input: Box::new(input) });
            }
            Order::StandBack { asker, life, waiting } => {
                let (delay, refused) = match self.is_reachable() {
                    true => (MS, refused),
                    false => (PROMISE_PATIENCE, Some("no answer".into())),
                };
                self.promise_came(asker, life, (delay, waiting, refused));
            }
        }
        true
    }

    fn promise_came(
        &mut self,
        node: usize,
        life: u64,
        (delay, waiting, refused): (u64, Waiting, Option<String>),
    ) {
        let input = Box::new(Input::StoodBack { waiting, refused });
        self.later(delay, Happening::Tell { node, life, input });
    }

    fn asked_to_stand_back(&mut self, asker: usize, life: u64, waiting: Waiting) {
        let peer = 1 - asker;
        if self.nodes[peer].process.is_none() || !self.is_reachable() {
            let nobody = (PROMISE_PATIENCE, waiting, Some("no answer".into()));
            return self.promise_came(asker, life, nobody);
        }
        let now = self.now;
        self.fencing_mut().sides[peer].alive_at = Some(now);
        let order = Order::StandBack { asker, life, waiting };
        // The ticket of the order that follows.
        let ticket = self.orders() + 1;
        self.later(PROMISE_PATIENCE, Happening::PromiseIsLate { ticket });
        self.order_for_fencing(peer, Command::StandBack, order);
    }

    fn promise_is_late(&mut self, ticket: u64) {
        let order = self.fencing_mut().orders.remove(&ticket);
        if let Some(Order::StandBack { asker, life, waiting }) = order {
            self.promise_came(asker, life, (0, waiting, Some("no answer".into())));
        }
    }
}

/// How a replica stands towards the office (`replicator/src/resource/standing.rs`).
enum Standing {
    Held,
    Lost,
    NotMine,
    Nothing,
}

fn standing(status: &Status) -> Standing {
    let is_member = status.register.contains(replicator_core::block::ReplicaId(status.replica));
    match (status.role, status.register.primary) {
        ("primary", _) => Standing::Held,
        ("secondary", Some(_))
            if status.data != "up_to_date" || !is_member || !status.takes_fenced =>
        {
            Standing::NotMine
        }
        ("secondary", Some(_)) => Standing::Lost,
        _ => Standing::Nothing,
    }
}

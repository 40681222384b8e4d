//! Fencing on this node, in a cluster without a witness: looks whether the peer is heard, runs its
//! fence agent, tries its addresses, promotes, and keeps the record. What is decided is decided in
//! `failover-core`; this file only carries facts and orders.

pub mod agent;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use failover::core::Span;
use failover::core::fence::{Effect, Facts, Fence, Input, Note, Request, Settings, Waiting};
use failover::core::verdict::Verdict as Refused;
use failover::node::now;
use serde::{Deserialize, Serialize};

use crate::cluster::{Explanation, Fenced, History, refusal, start_chronicle};
use crate::config::{ClusterConfig, FenceConfig, NodeConfig};
use crate::control::{RefusalReport, Reply};
use crate::events::{Events, Weight};
use crate::peers::Peers;
use crate::resource::{Resource, Standing};

/// How often the resources are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a silent peer is asked whether it is alive.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// For how long the answer counts, and for how much longer with every further address: one that
/// leads nowhere delays the next answer by so much.
const ANSWER_COUNTS: Duration = Duration::from_secs(2);
const ADDRESS_DELAYS: Duration = Duration::from_secs(6);

type OperatorAnswer = Result<String, Refused>;

enum Told {
    Fact(Input),
    /// An operator's order, with where the answer goes; whether the peer is off by his word.
    Order(bool, mpsc::Sender<OperatorAnswer>),
}

/// Fencing of the one peer of this node.
pub struct Fencing {
    core: Mutex<Fence>,
    told: mpsc::Sender<Told>,
    node: String,
    peer: String,
    config: FenceConfig,
    is_automatic: bool,
    resources: Vec<Arc<Resource>>,
    peers: Arc<Peers>,
    events: Arc<Events>,
    answer_counts: Duration,
    /// When the peer last proved that it is alive, outside of sessions.
    alive_at: Mutex<Option<Instant>>,
    /// When the last attempt began, and how long the one that was confirmed took.
    fencing_since: Mutex<Option<Instant>>,
    fence_took: Mutex<Duration>,
    /// What was done, kept across restarts.
    pub history: Arc<History>,
}

/// Fencing as `replctl` shows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FenceReport {
    /// The node that would be switched off.
    pub peer: String,
    /// With which agent.
    pub agent: String,
    /// Whether without an operator.
    pub is_automatic: bool,
    /// `watching`, `suspected`, `fencing`, `fenced`, `failed`.
    pub state: String,
    /// For how long.
    pub state_ms: u64,
    /// What it does or waits for; empty when there is nothing to say.
    pub activity: String,
    /// Why the office of a silent peer is not taken now.
    pub explain: Option<Explanation>,
    /// Why the last attempt failed, unless a later one succeeded.
    pub failure: Option<Explanation>,
    /// The last success of this process, and how long ago.
    pub last_fenced: Option<(String, u64)>,
}

impl Fencing {
    /// Starts it, where there is no witness and the peer has a `fence`.
    pub fn start(
        cluster: &ClusterConfig,
        node: &NodeConfig,
        resources: &[Arc<Resource>],
        peers: Arc<Peers>,
        events: Arc<Events>,
    ) -> std::io::Result<Option<Arc<Self>>> {
        let Some((peer, config)) = cluster.fence_of_peer(&node.name) else { return Ok(None) };
        let (told, facts) = mpsc::channel();
        let settings = settings(cluster, node, &peer.name, config);
        let history = Arc::new(History::open(&node.state_dir)?);
        let chronicle = start_chronicle(history.clone(), events.clone())?;
        resources.iter().for_each(|it| it.keep_history(chronicle.clone()));
        let fencing = Arc::new(Self {
            core: Mutex::new(Fence::new(now(), settings)),
            told,
            node: node.name.clone(),
            peer: peer.name.clone(),
            config: config.clone(),
            is_automatic: cluster.fences_lost_primaries(),
            resources: resources.to_vec(),
            peers,
            events,
            answer_counts: ANSWER_COUNTS + ADDRESS_DELAYS * (peer.addresses.len() as u32 - 1),
            alive_at: Mutex::default(),
            fencing_since: Mutex::default(),
            fence_took: Mutex::default(),
            history,
        });
        let asker = fencing.clone();
        spawn("ask peer", move || asker.ask_for_ever())?;
        let decider = fencing.clone();
        spawn("fence", move || decider.decide_for_ever(&facts))?;
        Ok(Some(fencing))
    }

    /// An operator wants the peer fenced, or says that it is off; waits for the end of it.
    pub fn order(&self, node: &str, is_off: bool) -> Reply {
        if node != self.peer {
            let why = format!("{} cannot fence {node}", self.node);
            let next = format!("it can fence {}", self.peer);
            return Reply::Refused(RefusalReport::new("unknown_peer", why, next));
        }
        let (sender, answer) = mpsc::channel();
        let _ = self.told.send(Told::Order(is_off, sender));
        match answer.recv() {
            Ok(Ok(text)) => Reply::Done(text),
            Ok(Err(refused)) => Reply::Refused(refusal(&refused)),
            Err(_) => Reply::Refused(RefusalReport::new(
                "fence_ended",
                "the fence thread ended",
                "look at the log, then restart the daemon",
            )),
        }
    }

    /// How it stands now.
    pub fn report(&self) -> FenceReport {
        let core = self.lock();
        let now = now();
        let (state, since) = core.state();
        let explain = |verdict: Refused| Explanation {
            refusal: refusal(&verdict),
            since_ms: now.since(verdict.since).as_ms(),
        };
        FenceReport {
            peer: self.peer.clone(),
            agent: self.config.label(),
            is_automatic: self.is_automatic,
            state: state.to_owned(),
            state_ms: now.since(since).as_ms(),
            activity: core.activity(now),
            explain: core.verdict(now).map(explain),
            failure: core.failure().cloned().map(explain),
            last_fenced: core
                .last_fenced()
                .map(|(at, text)| (text.clone(), now.since(*at).as_ms())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fence> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ------------------------------------------------------------------ what is seen

    /// Asks a peer without a session whether it is alive, so that one that only has its resources
    /// down, or was disconnected by an operator, is not taken for dead.
    fn ask_for_ever(&self) {
        loop {
            let has_session = self.resources.iter().any(|resource| resource.sessions().0);
            if !has_session && self.peers.is_alive(&self.peer) {
                let mut alive_at = self.alive_at.lock().unwrap_or_else(PoisonError::into_inner);
                *alive_at = Some(Instant::now());
            }
            thread::sleep(ASK_EVERY);
        }
    }

    fn look(&self, begun_before: &mut u64) -> Facts {
        let sessions: Vec<(bool, u64)> =
            self.resources.iter().map(|resource| resource.sessions()).collect();
        let begun = sessions.iter().map(|(_, begun)| begun).sum();
        let began_meanwhile = begun != std::mem::replace(begun_before, begun);
        let alive_at = *self.alive_at.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = alive_at.is_some_and(|at| at.elapsed() < self.answer_counts);
        let is_up = sessions.iter().any(|(is_up, _)| *is_up);
        let asked = self.peers.has_asked(&self.peer, self.answer_counts);
        let is_heard = is_up || began_meanwhile || answered || asked;
        let mut facts = Facts { is_heard, ..Facts::default() };
        for resource in &self.resources {
            let name = resource.name().to_owned();
            let (standing, waits_since_session) = resource.standing();
            if let Some(session) = waits_since_session {
                facts.waiting.push(Waiting { resource: name.clone(), session });
            }
            match standing {
                Standing::Held => facts.own_offices += 1,
                Standing::Lost => facts.lost.push(name),
                Standing::NotMine(why) => facts.not_mine.push((name, why)),
                Standing::Nothing => {}
            }
        }
        facts
    }

    // ------------------------------------------------------------------ what is done

    fn decide_for_ever(self: &Arc<Self>, facts: &mpsc::Receiver<Told>) {
        let mut begun = self.resources.iter().map(|resource| resource.sessions().1).sum();
        let mut operator: Option<mpsc::Sender<OperatorAnswer>> = None;
        let mut look_at = Instant::now();
        loop {
            let input = match facts.recv_timeout(look_at.duration_since(Instant::now())) {
                Ok(Told::Fact(input)) => input,
                Ok(Told::Order(is_off, answer)) => {
                    self.step_order(is_off, answer, &mut operator);
                    continue;
                }
                Err(_) => {
                    look_at = Instant::now() + LOOK_EVERY;
                    Input::Looked(self.look(&mut begun))
                }
            };
            for effect in self.step(input) {
                if let Effect::Answer(result) = effect {
                    // An operator who went away has decided not to know.
                    let _ = operator.take().map(|operator| operator.send(result));
                } else {
                    self.carry_out(effect);
                }
            }
        }
    }

    fn step(&self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.lock().step(now(), input, &mut effects);
        effects
    }

    /// A refusal is for this operator; an order that is taken up is answered when it ended.
    fn step_order(
        self: &Arc<Self>,
        is_off: bool,
        answer: mpsc::Sender<OperatorAnswer>,
        operator: &mut Option<mpsc::Sender<OperatorAnswer>>,
    ) {
        let mut refused = None;
        for effect in self.step(Input::Ordered { is_off }) {
            match effect {
                Effect::Answer(result) => refused = Some(result),
                effect => self.carry_out(effect),
            }
        }
        match refused {
            Some(result) => drop(answer.send(result)),
            None => *operator = Some(answer),
        }
    }

    fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::RunAgent(request) => self.in_helper("agent", move |it| it.run_agent(request)),
            Effect::Probe => self.in_helper("probe", |it| {
                let accepted = it.peers.accepting_address(&it.peer);
                Input::Probed { accepted: accepted.map(|address| address.to_string()) }
            }),
            Effect::Promote { resource } => {
                self.in_helper("promote", move |it| it.promote(resource));
            }
            Effect::Proceed(waiting) => self.in_thread("proceed", move |it| it.proceed(&waiting)),
            Effect::AskToStandBack(waiting) => self.in_helper("stand back", move |it| {
                let answer = it.peers.ask_to_stand_back(&it.peer, &waiting.resource);
                Input::StoodBack { waiting, refused: answer.err() }
            }),
            Effect::Note(note) => self.note(note),
            Effect::Answer(_) => unreachable!("handled by the callers"),
        }
    }

    /// Runs something that takes time on a thread of its own; what came of it is a fact.
    fn in_helper(self: &Arc<Self>, what: &str, work: impl FnOnce(&Self) -> Input + Send + 'static) {
        self.in_thread(what, move |fencing| {
            let input = work(fencing);
            let _ = fencing.told.send(Told::Fact(input));
        });
    }

    fn in_thread(self: &Arc<Self>, what: &str, work: impl FnOnce(&Self) + Send + 'static) {
        let fencing = self.clone();
        // Without threads nothing is decided any more: better to end as after a crash.
        spawn(what, move || work(&fencing))
            .unwrap_or_else(|error| panic!("cannot start a thread to {what}: {error}"));
    }

    /// The resource goes on alone; its core looks whether that still holds.
    fn proceed(&self, waiting: &Waiting) {
        let Waiting { resource, session } = waiting;
        let Some(found) = self.resources.iter().find(|it| it.name() == resource) else { return };
        let (weight, text) = match found.proceed_alone(*session) {
            Reply::Refused(refusal) => {
                (Weight::Warning, format!("does not go on alone: {}", refusal.why))
            }
            _ => (Weight::Info, format!("goes on without {}", self.peer)),
        };
        self.events.emit(weight, resource, text);
    }

    fn run_agent(&self, request: Request) -> Input {
        let agent::Run { ended, said, .. } = agent::run(&self.config, &self.peer, request.word());
        tracing::info!("{} {}: {ended:?} {said}", self.config.label(), request.word());
        Input::AgentEnded { request, ended, said }
    }

    fn promote(&self, resource: String) -> Input {
        let found = self.resources.iter().find(|it| it.name() == resource);
        let silent_ms = self.lock().silent_for(now()).as_ms();
        let began = Instant::now();
        let refused = match found.map(|it| it.promote_fenced()) {
            Some(Reply::Refused(refusal)) => Some(format!("{} ({})", refusal.why, refusal.rule)),
            Some(_) => None,
            None => Some("it is not configured here".to_owned()),
        };
        if let (None, Some(found)) = (&refused, found) {
            let why = format!("{} was fenced, off confirmed", self.peer);
            let text = format!("{} took the office: {why}", self.node);
            self.events.emit(Weight::Info, &resource, text);
            let took = *self.fence_took.lock().unwrap_or_else(PoisonError::into_inner);
            let fenced_ms = (took.as_millis() as u64).min(silent_ms);
            let promoted_ms = began.elapsed().as_millis() as u64;
            let phases = [
                ("detected", silent_ms - fenced_ms),
                ("fenced", fenced_ms),
                ("drained, committed, device open", promoted_ms),
            ];
            self.history.note_fence(Fenced {
                what: "takeover",
                resource: &resource,
                why: &why,
                by: &self.node,
                generation: found.generation(),
                phases: phases.map(|(phase, ms)| (phase.to_owned(), ms)).to_vec(),
                paused_ms: Some(silent_ms + promoted_ms),
            });
        }
        Input::PromotionEnded { resource, refused }
    }

    fn fencing_since(&self) -> Option<Instant> {
        *self.fencing_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_history(&self, what: &str, resource: &str, why: &str) {
        let by = &self.node;
        self.history.note_fence(Fenced { what, resource, why, by, ..Fenced::default() });
    }

    fn note(&self, note: Note) {
        let (weight, text) = match note {
            Note::Back(text) => (Weight::Info, text),
            Note::StoodBack { resource, text } => {
                self.note_history("stood back", &resource, &text);
                (Weight::Warning, text)
            }
            Note::Suspected(text) => (Weight::Warning, text),
            Note::Fencing(text) => {
                let mut since = self.fencing_since.lock().unwrap_or_else(PoisonError::into_inner);
                *since = Some(Instant::now());
                (Weight::Warning, text)
            }
            Note::Failed(text) => (Weight::Error, text),
            Note::Fenced(text) => {
                let took = self.fencing_since().map_or(Duration::ZERO, |since| since.elapsed());
                *self.fence_took.lock().unwrap_or_else(PoisonError::into_inner) = took;
                self.note_history("fence", "", &text);
                (Weight::Warning, text)
            }
        };
        self.events.emit(weight, "", text);
    }
}

fn settings(
    cluster: &ClusterConfig,
    node: &NodeConfig,
    peer: &str,
    config: &FenceConfig,
) -> Settings {
    Settings {
        node: node.name.clone(),
        peer: peer.to_owned(),
        agent: config.label(),
        is_automatic: cluster.fences_lost_primaries(),
        action: config.action,
        fence_after: Span::from_ms(config.fence_after_ms),
        delay: Span::from_ms(config.delay_ms),
        off_within: Span::from_ms(config.timeout_ms),
        attempts: config.attempts,
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

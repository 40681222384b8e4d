//! Two replicas, their disks and one link, stepped by hand, and a majority whose decisions the test
//! makes itself when it wants to.

use std::collections::VecDeque;

use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{FormatRequest, Image, format};
use replicator_core::note::Note;
use replicator_core::register::RegisterState;
use replicator_core::wire::VERSIONS;
use replicator_core::{
    Answer, BufId, ByteRange, ClientError, ClientRequest, Command, Config, DiskFailure,
    DiskOutcome, Effect, Effects, Input, LinkLoss, PeerConfig, PeerIndex, Refusal, RegisterKeeper,
    Replica, RequestId, SessionId, Status, Ticket, Time, Timing, Undecided,
};

pub const ALPHA: usize = 0;
pub const BETA: usize = 1;
const NAMES: [&str; 2] = ["alpha", "beta"];
const PEER: PeerIndex = PeerIndex(0);
const DISK_BYTES: u64 = 8 << 20;
const REGION_DEVICE_BYTES: u64 = 4 << 20;
/// Connections are taken up again so often before the test goes on.
const CONNECTS_MAX: usize = 8;

/// A proposal without a decision.
#[derive(Debug)]
pub struct Proposal {
    pub node: usize,
    pub number: u64,
    pub next: RegisterState,
    pub expected: u64,
    pub forced: bool,
}

pub struct Node {
    pub replica: Replica,
    region: Vec<u8>,
    pub incarnation: Incarnation,
    /// Every disk operation on the data fails.
    pub broken: bool,
    pub opened: Vec<u64>,
    pub is_open: bool,
    pub offices_lost: usize,
    pub replies: Vec<(u64, Result<(), ClientError>)>,
    pub answers: Vec<(u64, Result<Answer, Refusal>)>,
}

pub struct World {
    pub nodes: [Node; 2],
    pub now: Time,
    /// What the majority has committed.
    pub register: RegisterState,
    /// Decides at once, and tells both nodes.
    pub decides: bool,
    pub proposals: Vec<Proposal>,
    /// The data link is cut.
    pub cut: bool,
    linked: bool,
    session: u64,
    queue: VecDeque<(usize, Input)>,
    next_ticket: u64,
    greetings: usize,
    confirms_reads: bool,
    /// Frames stay on the way.
    pub holds_frames: bool,
    held_frames: VecDeque<(usize, Input)>,
}

pub fn id(node: usize) -> ReplicaId {
    ReplicaId(node as u128 + 1)
}

impl World {
    /// Fresh disks; alpha's is the origin. The majority has answered nobody yet.
    pub fn new() -> Self {
        Self::of(false, true)
    }

    /// The same, and nobody named the origin.
    pub fn without_origin() -> Self {
        Self::of(false, false)
    }

    fn of(confirms_reads: bool, has_origin: bool) -> Self {
        #[cfg(feature = "defects")]
        crate::wake_defect();
        let nodes = [ALPHA, BETA].map(|node| {
            let formatted = format(&FormatRequest {
                device_bytes: REGION_DEVICE_BYTES,
                internal: false,
                disk_bytes: DISK_BYTES,
                data_bytes: Some(DISK_BYTES),
                room_bytes: None,
                block_bytes: 4096,
                log_extents: 64,
                resource: "r".into(),
                resource_id: 7,
                node: NAMES[node].into(),
                replica: id(node),
                peers: vec![NAMES[1 - node].into()],
                bitmap_slots: 1,
                incarnation: Incarnation(100),
                origin: has_origin && node == ALPHA,
                assume_equal: false,
            })
            .expect("the request is valid");
            let layout = formatted.layout;
            let mut region = vec![0; layout.region_bytes as usize];
            for (at, bytes) in formatted.writes {
                let at = (at - layout.region_start) as usize;
                region[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            let incarnation = Incarnation(100);
            Node {
                replica: attach(node, incarnation, confirms_reads, &region, Time(0)),
                region,
                incarnation,
                broken: false,
                opened: Vec::new(),
                is_open: false,
                offices_lost: 0,
                replies: Vec::new(),
                answers: Vec::new(),
            }
        });
        let mut register = nodes[ALPHA].replica.superblock().register.clone();
        register.authority = None;
        let mut world = Self {
            nodes,
            now: Time(0),
            register,
            decides: true,
            proposals: Vec::new(),
            cut: false,
            linked: false,
            session: 0,
            queue: VecDeque::new(),
            next_ticket: 0,
            greetings: 0,
            confirms_reads,
            holds_frames: false,
            held_frames: VecDeque::new(),
        };
        world.input(ALPHA, Input::TimePassed);
        world.input(BETA, Input::TimePassed);
        world
    }

    /// Alpha is primary with a lease of ten seconds, beta is a member.
    pub fn pair() -> Self {
        Self::new().settled()
    }

    /// The same with `reads = "confirmed"`.
    pub fn with_confirmed_reads() -> Self {
        Self::of(true, true).settled()
    }

    fn settled(self) -> Self {
        let mut world = self;
        world.learn(ALPHA);
        world.learn(BETA);
        world.lease(ALPHA, 10_000);
        let ticket = world.promote(ALPHA);
        assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
        world.settle();
        assert_eq!(world.register.set.len(), 2, "beta joins");
        world.decides = false;
        world
    }

    pub fn status(&self, node: usize) -> Status {
        self.nodes[node].replica.status(self.now)
    }

    pub fn waits_for(&self, node: usize, what: &str) -> bool {
        self.status(node).waits.iter().any(|wait| wait.what.contains(what))
    }

    // ------------------------------------------------------------------ what a test does

    /// One fact, and all that follows from it at once.
    pub fn input(&mut self, node: usize, input: Input) {
        self.queue.push_back((node, input));
        self.pump();
    }

    /// Time passes in small steps; deadlines are kept.
    pub fn advance(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(10) {
            self.now = Time(self.now.0 + 10_000_000);
            for node in [ALPHA, BETA] {
                let due = self.nodes[node].replica.next_deadline();
                if due.is_some_and(|due| due <= self.now) {
                    self.input(node, Input::TimePassed);
                }
            }
        }
    }

    /// Connects when there is no connection, until both are content with it.
    pub fn settle(&mut self) {
        for _ in 0..CONNECTS_MAX {
            if self.cut || self.linked {
                return;
            }
            self.session += 1;
            self.linked = true;
            for node in [ALPHA, BETA] {
                let session = SessionId(self.session);
                self.queue.push_back((
                    node,
                    Input::PeerConnected { peer: PEER, session, version: VERSIONS.1 },
                ));
            }
            self.pump();
        }
    }

    /// What was held on the way arrives.
    pub fn let_frames_go(&mut self) {
        self.holds_frames = false;
        self.queue.append(&mut self.held_frames);
        self.pump();
    }

    pub fn cut(&mut self) {
        self.cut = true;
        self.unlink([true, true]);
        self.pump();
    }

    pub fn mend(&mut self) {
        self.cut = false;
        self.settle();
    }

    /// A new process on the disk as it is, on the same boot or after a loss of power.
    pub fn restart(&mut self, node: usize, power_loss: bool) {
        if power_loss {
            self.nodes[node].incarnation.0 += 1;
        }
        self.unlink([node != ALPHA, node != BETA]);
        self.queue.retain(|(to, _)| *to != node);
        self.proposals.retain(|proposal| proposal.node != node);
        let there = &mut self.nodes[node];
        there.is_open = false;
        let confirms = self.confirms_reads;
        there.replica = attach(node, there.incarnation, confirms, &there.region, self.now);
        self.input(node, Input::TimePassed);
    }

    pub fn learn(&mut self, node: usize) {
        let state = Box::new(self.register.clone());
        self.input(node, Input::RegisterLearned(state));
    }

    /// A lease from now on.
    pub fn lease(&mut self, node: usize, ms: u64) {
        let until = Some(Time(self.now.0 + ms * 1_000_000));
        self.input(node, Input::LeaseChanged { until });
    }

    pub fn order(&mut self, node: usize, command: Command) -> u64 {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.input(node, Input::Ordered { ticket, command });
        ticket.0
    }

    pub fn promote(&mut self, node: usize) -> u64 {
        self.promote_with(node, false, false)
    }

    pub fn promote_with(&mut self, node: usize, is_off: bool, data_loss: bool) -> u64 {
        let command = Command::Promote {
            old_primary_is_off: is_off,
            allow_data_loss: data_loss,
            alone: false,
        };
        self.order(node, command)
    }

    /// The answer to a command; `None` while it is open.
    pub fn answer(&self, node: usize, ticket: u64) -> Option<Result<Answer, Refusal>> {
        let answers = &self.nodes[node].answers;
        answers.iter().find(|answer| answer.0 == ticket).map(|answer| answer.1.clone())
    }

    /// The code of a refusal.
    pub fn refusal(&self, node: usize, ticket: u64) -> &'static str {
        match self.answer(node, ticket) {
            Some(Err(refusal)) => refusal.code,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn request(&mut self, node: usize, request: u64, what: ClientRequest) {
        self.input(node, Input::ClientRequested { request: RequestId(request), what });
    }

    pub fn write(&mut self, node: usize, request: u64) {
        let range = ByteRange::new(request * 4096, 4096);
        let buf = BufId(request as u32);
        self.request(node, request, ClientRequest::Write { range, buf, fua: false });
    }

    pub fn read(&mut self, node: usize, request: u64) {
        let range = ByteRange::new(request * 4096, 4096);
        let buf = BufId(request as u32);
        self.request(node, request, ClientRequest::Read { range, buf });
    }

    pub fn reply(&self, node: usize, request: u64) -> Option<Result<(), ClientError>> {
        let replies = &self.nodes[node].replies;
        replies.iter().find(|reply| reply.0 == request).map(|reply| reply.1)
    }

    // ------------------------------------------------------------------ the majority

    /// The only open proposal.
    pub fn proposal(&mut self) -> Proposal {
        assert_eq!(self.proposals.len(), 1, "{:?}", self.proposals);
        self.proposals.remove(0)
    }

    pub fn commit(&mut self, proposal: Proposal) {
        assert_eq!(proposal.expected, self.register.generation, "a stale proposal");
        self.register = proposal.next.clone();
        let result = Ok(Box::new(proposal.next));
        self.input(proposal.node, Input::Decided { number: proposal.number, result });
    }

    /// Committed, and the next change is already known when the proposer comes to record it.
    pub fn commit_and_take_over(&mut self, proposal: Proposal, taker: usize) {
        let Proposal { node, number, next, .. } = proposal;
        self.register = next.clone();
        self.take_over(taker);
        let result = Ok(Box::new(next));
        self.queue.push_back((node, Input::Decided { number, result }));
        self.learn(node);
    }

    pub fn decline(&mut self, proposal: &Proposal) {
        let result = Err(Undecided::NotNow { why: "the old lease runs".into() });
        self.input(proposal.node, Input::Decided { number: proposal.number, result });
    }

    /// Something newer than what the proposal was to replace.
    pub fn supersede(&mut self, proposal: &Proposal) {
        let newer = Err(Undecided::Newer(Box::new(self.register.clone())));
        self.input(proposal.node, Input::Decided { number: proposal.number, result: newer });
    }

    /// Somebody takes the office in the register.
    pub fn take_over(&mut self, taker: usize) {
        let mut next = self.register.without(id(1 - taker));
        next.tenure = next.generation;
        next.primary = Some(id(taker));
        next.released_clean = false;
        self.register = next;
    }

    // ------------------------------------------------------------------ what drives it

    fn unlink(&mut self, tell: [bool; 2]) {
        if !std::mem::take(&mut self.linked) {
            return;
        }
        let session = SessionId(self.session);
        // What was on its way is lost.
        self.queue.retain(|(_, input)| !matches!(input, Input::PeerSaid { .. }));
        for node in [ALPHA, BETA].into_iter().filter(|&node| tell[node]) {
            let why = LinkLoss::Closed;
            self.queue.push_back((node, Input::LinkLost { peer: PEER, session, why }));
        }
    }

    fn pump(&mut self) {
        let mut effects = Effects::new();
        while let Some((node, input)) = self.queue.pop_front() {
            let replica = &mut self.nodes[node].replica;
            replica.step(self.now, input, &mut effects);
            replica.check_invariants();
            for effect in effects.drain(..) {
                self.carry_out(node, effect);
            }
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let there = &mut self.nodes[node];
        let data = if there.broken { Err(DiskFailure::Io(5)) } else { Ok(DiskOutcome::Done) };
        let (op, result) = match effect {
            Effect::ReadDisk { op, .. }
            | Effect::ReadEdges { op, .. }
            | Effect::WriteDisk { op, .. }
            | Effect::ZeroDisk { op, .. }
            | Effect::MapDisk { op, .. }
            | Effect::FlushDisk { op } => (op, data),
            Effect::ReadForResync { op, .. } => (op, Ok(DiskOutcome::Read { data: None })),
            Effect::TakeFingerprint { op, .. } => (op, Ok(DiskOutcome::Fingerprint([0; 32]))),
            Effect::WriteMeta { op, offset, bytes } => {
                let offset = offset as usize;
                there.region[offset..offset + bytes.len()].copy_from_slice(&bytes);
                (op, Ok(DiskOutcome::Done))
            }
            other => return self.carry_out_order(node, other),
        };
        self.queue.push_back((node, Input::DiskDone { op, result }));
    }

    fn carry_out_order(&mut self, node: usize, effect: Effect) {
        let there = &mut self.nodes[node];
        match effect {
            Effect::SendPeer { session, message, data, .. } => {
                let hello = matches!(message, replicator_core::wire::Message::Hello(_));
                self.greetings += usize::from(hello);
                if self.linked && session.0 == self.session {
                    let input = Input::PeerSaid { peer: PEER, session, message, data };
                    let way =
                        if self.holds_frames { &mut self.held_frames } else { &mut self.queue };
                    way.push_back((1 - node, input));
                }
            }
            Effect::ClosePeer { session, .. } if self.linked && session.0 == self.session => {
                // What was sent before still arrives.
                self.linked = false;
                let why = LinkLoss::Closed;
                self.queue.push_back((1 - node, Input::LinkLost { peer: PEER, session, why }));
            }
            Effect::ReplyClient { request, result } => {
                let lease = there.replica.holds_lease(self.now);
                assert!(result.is_err() || lease, "R5a: a reply without a lease");
                there.replies.push((request.0, result));
            }
            Effect::AnswerOperator { ticket, result } => {
                there.answers.push((ticket.0, result.map_err(|refusal| *refusal)));
            }
            Effect::OpenDevice { tenure, .. } => {
                assert!(there.replica.holds_lease(self.now), "R2c: served before the lease");
                there.opened.push(tenure);
                there.is_open = true;
            }
            Effect::CloseDevice { .. } => there.is_open = false,
            Effect::Note(Note::OfficeLost { .. }) => there.offices_lost += 1,
            Effect::Propose { number, next, expected, forced } => {
                let proposal = Proposal { node, number, next: *next, expected, forced };
                if self.decides {
                    self.decide(proposal);
                } else {
                    self.proposals.push(proposal);
                }
            }
            _ => {}
        }
    }

    fn decide(&mut self, proposal: Proposal) {
        let result = if proposal.expected == self.register.generation {
            self.register = proposal.next.clone();
            Ok(Box::new(proposal.next))
        } else {
            Err(Undecided::Newer(Box::new(self.register.clone())))
        };
        let (node, number) = (proposal.node, proposal.number);
        // The other node hears of it first.
        let learned = Input::RegisterLearned(Box::new(self.register.clone()));
        self.queue.push_back((1 - node, learned.clone()));
        self.queue.push_back((node, Input::Decided { number, result }));
        self.queue.push_back((node, learned));
    }

    /// Greetings sent so far by both.
    pub fn greetings(&self) -> usize {
        self.greetings
    }
}

fn attach(
    node: usize,
    incarnation: Incarnation,
    confirms_reads: bool,
    region: &[u8],
    now: Time,
) -> Replica {
    let config = Config {
        node: NAMES[node].into(),
        peers: vec![PeerConfig { node: NAMES[1 - node].into() }],
        incarnation,
        can_punch: true,
        register: RegisterKeeper::Majority,
        confirms_reads,
        timing: Timing::default(),
    };
    let image = Image {
        region,
        device_bytes: REGION_DEVICE_BYTES,
        disk_bytes: DISK_BYTES,
        fingerprint: None,
    };
    Replica::attach(config, image, now).expect("the metadata are sound")
}

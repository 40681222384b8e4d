//! What can be counted in the core's interface: each kind of input, order, note, frame and verdict,
//! by matches that the compiler keeps complete.

use replicator_core::command::REFUSAL_CODES;
use replicator_core::handshake::{Cause, Diverged, Relation};
use replicator_core::wire::Message;
use replicator_core::{
    Answer, ClientError, ClientRequest, Command, DiskFailure, DiskOutcome, Effect, Input, LinkLoss,
    Note, Refusal, Retry,
};

/// Names for the values of a type, and which of them a value has.
macro_rules! kinds {
    ($name:ident of $type:ty: $($kind:ident = $pattern:pat),+ $(,)?) => {
        #[derive(Clone, Copy)]
        enum $name { $($kind),+ }

        impl $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($kind)),+];

            fn of(value: &$type) -> usize {
                let kind = match value { $($pattern => Self::$kind),+ };
                kind as usize
            }
        }
    };
}

kinds! { InputKind of Input:
    ClientRequested = Input::ClientRequested { .. },
    DiskDone = Input::DiskDone { .. },
    PeerConnected = Input::PeerConnected { .. },
    PeerSaid = Input::PeerSaid { .. },
    LinkLost = Input::LinkLost { .. },
    Ordered = Input::Ordered { .. },
    TimePassed = Input::TimePassed,
    Decided = Input::Decided { .. },
    RegisterLearned = Input::RegisterLearned(_),
    LeaseChanged = Input::LeaseChanged { .. },
}

kinds! { DiskAnswer of Result<DiskOutcome, DiskFailure>:
    Done = Ok(DiskOutcome::Done),
    ReadData = Ok(DiskOutcome::Read { data: Some(_) }),
    ReadZeroes = Ok(DiskOutcome::Read { data: None }),
    Measured = Ok(DiskOutcome::Measured { .. }),
    Fingerprint = Ok(DiskOutcome::Fingerprint(_)),
    Digests = Ok(DiskOutcome::Digests(_)),
    Failed = Err(DiskFailure::Io(_)),
    NoSpace = Err(DiskFailure::NoSpace),
}

kinds! { Loss of LinkLoss:
    Closed = LinkLoss::Closed,
    Io = LinkLoss::Io(_),
    Garbled = LinkLoss::Garbled,
    Silent = LinkLoss::Silent,
}

kinds! { Order of Effect:
    ReadDisk = Effect::ReadDisk { .. },
    ReadEdges = Effect::ReadEdges { .. },
    ReadForResync = Effect::ReadForResync { .. },
    WriteDisk = Effect::WriteDisk { .. },
    ZeroDisk = Effect::ZeroDisk { may_punch: false, .. },
    PunchDisk = Effect::ZeroDisk { may_punch: true, .. },
    MapDisk = Effect::MapDisk { .. },
    FlushDisk = Effect::FlushDisk { .. },
    WriteMeta = Effect::WriteMeta { .. },
    DigestDisk = Effect::DigestDisk { .. },
    MeasureDisk = Effect::MeasureDisk { .. },
    MoveMeta = Effect::MoveMeta { .. },
    TakeFingerprint = Effect::TakeFingerprint { .. },
    SendPeer = Effect::SendPeer { .. },
    CloseRetryNow = Effect::ClosePeer { retry: Retry::Now, .. },
    CloseRetryLater = Effect::ClosePeer { retry: Retry::Later, .. },
    CloseRetryRarely = Effect::ClosePeer { retry: Retry::Rarely, .. },
    CloseRetryNever = Effect::ClosePeer { retry: Retry::Never, .. },
    ReplyClient = Effect::ReplyClient { .. },
    ReleaseBuf = Effect::ReleaseBuf { .. },
    AnswerOperator = Effect::AnswerOperator { .. },
    OpenDevice = Effect::OpenDevice { .. },
    ResizeDevice = Effect::ResizeDevice { .. },
    CloseDevice = Effect::CloseDevice { forced: false },
    CloseDeviceByForce = Effect::CloseDevice { forced: true },
    Note = Effect::Note(_),
    Stopped = Effect::Stopped,
    Propose = Effect::Propose { .. },
}

kinds! { NoteKind of Note:
    RoleChanged = Note::RoleChanged { .. },
    Committed = Note::Committed { .. },
    PeerJoined = Note::PeerJoined { .. },
    PeerLost = Note::PeerLost { .. },
    PeerRefused = Note::PeerRefused { .. },
    ResyncStarted = Note::ResyncStarted { .. },
    HeldBack = Note::HeldBack { .. },
    ResyncFinished = Note::ResyncFinished { .. },
    Resized = Note::Resized { .. },
    MetadataMoved = Note::MetadataMoved { .. },
    NoRoomMade = Note::NoRoomMade { .. },
    DiskFailed = Note::DiskFailed { .. },
    HotExtentsMarked = Note::HotExtentsMarked { .. },
    FenceAwaited = Note::FenceAwaited { .. },
    LeaseLapsed = Note::LeaseLapsed,
    LeaseBack = Note::LeaseBack { .. },
    OfficeLost = Note::OfficeLost { .. },
    RegisterWentBack = Note::RegisterWentBack { .. },
    VerifyStarted = Note::VerifyStarted { .. },
    VerifyEnded = Note::VerifyEnded { broken: None, .. },
    VerifyBroken = Note::VerifyEnded { broken: Some(_), .. },
    VerifyRepaired = Note::VerifyRepaired { .. },
}

kinds! { Frame of Message:
    Hello = Message::Hello(_),
    Met = Message::Met,
    InSync = Message::InSync,
    Refused = Message::Refused { .. },
    Bitmap = Message::Bitmap(_),
    Follow = Message::Follow,
    SyncStartPartial = Message::SyncStart { full: false, .. },
    SyncStartFull = Message::SyncStart { full: true, .. },
    SyncReady = Message::SyncReady,
    Write = Message::Write { fua: false, .. },
    WriteFua = Message::Write { fua: true, .. },
    Zero = Message::Zero { fua: false, .. },
    ZeroFua = Message::Zero { fua: true, .. },
    Flush = Message::Flush { .. },
    ResyncData = Message::ResyncData { .. },
    ResyncZero = Message::ResyncZero { .. },
    Ack = Message::Ack { .. },
    Grow = Message::Grow(_),
    GrowReady = Message::GrowReady { .. },
    Committed = Message::Committed(_),
    Leave = Message::Leave { .. },
    LeaveDone = Message::LeaveDone,
    DiskFailed = Message::DiskFailed,
    AuthorityWanted = Message::AuthorityWanted,
    AuthorityGiven = Message::AuthorityGiven(_),
    AuthorityRefused = Message::AuthorityRefused { .. },
    Replicas = Message::Replicas(_),
    Cooled = Message::Cooled { .. },
    MakeRoom = Message::MakeRoom,
    RoomComes = Message::Room { is_growing: true, .. },
    RoomMade = Message::Room { is_growing: false, .. },
    Resize = Message::Resize { .. },
    Resized = Message::Resized { .. },
    Ping = Message::Ping,
    Echo = Message::Echo { .. },
    Verify = Message::Verify { .. },
    VerifyDigests = Message::VerifyDigests { .. },
    VerifyNews = Message::VerifyNews { .. },
    VerifyWanted = Message::VerifyWanted { .. },
    VerifyAnswer = Message::VerifyAnswer(_),
}

kinds! { Verdict of Relation:
    Lead = Relation::Lead,
    Follow = Relation::Follow,
    Idle = Relation::Idle { adopt: false },
    IdleAdopting = Relation::Idle { adopt: true },
    Deposed = Relation::Deposed,
    Wait = Relation::Wait,
    OtherResource = Relation::Refuse { cause: Cause::OtherResource, .. },
    OneId = Relation::Refuse { cause: Cause::OneId, .. },
    Sizes = Relation::Refuse { cause: Cause::Sizes, .. },
    BlockSizes = Relation::Refuse { cause: Cause::BlockSizes, .. },
    Impossible = Relation::Refuse { cause: Cause::Impossible, .. },
    TwoRegisters = Relation::Refuse { cause: Cause::TwoRegisters, .. },
    DivergedHere = Relation::Refuse { cause: Cause::Diverged, diverged: Some(Diverged::Mine), .. },
    DivergedThere = Relation::Refuse { cause: Cause::Diverged, .. },
    NoDisk = Relation::Refuse { cause: Cause::NoDisk, .. },
    FalseClaim = Relation::Refuse { cause: Cause::FalseClaim, .. },
}

kinds! { Asked of ClientRequest:
    Read = ClientRequest::Read { .. },
    Write = ClientRequest::Write { fua: false, .. },
    WriteFua = ClientRequest::Write { fua: true, .. },
    Flush = ClientRequest::Flush,
    Trim = ClientRequest::Trim { fua: false, .. },
    TrimFua = ClientRequest::Trim { fua: true, .. },
    Zero = ClientRequest::WriteZeroes { fua: false, may_punch: false, .. },
    ZeroFua = ClientRequest::WriteZeroes { fua: true, may_punch: false, .. },
    Punch = ClientRequest::WriteZeroes { fua: false, may_punch: true, .. },
    PunchFua = ClientRequest::WriteZeroes { fua: true, may_punch: true, .. },
    Map = ClientRequest::Map { .. },
}

kinds! { Told of Result<(), ClientError>:
    Ok = Ok(()),
    Io = Err(ClientError::Io),
    NoSpace = Err(ClientError::NoSpace),
    Shutdown = Err(ClientError::Shutdown),
}

kinds! { CommandKind of Command:
    Promote = Command::Promote { old_primary_is_off: false, allow_data_loss: false, alone: false },
    PromoteOldIsOff = Command::Promote {
        old_primary_is_off: true, allow_data_loss: false, alone: false
    },
    PromoteAlone = Command::Promote { allow_data_loss: false, alone: true, .. },
    PromoteLossy = Command::Promote { allow_data_loss: true, .. },
    Demote = Command::Demote,
    Connect = Command::Connect(_),
    Disconnect = Command::Disconnect(_),
    Invalidate = Command::Invalidate,
    ResyncFull = Command::ResyncFull(_),
    DiscardDiverged = Command::DiscardDiverged,
    Stop = Command::Stop,
    TakeFenced = Command::TakeFenced,
    PeerIsOff = Command::PeerIsOff(..),
    StandBack = Command::StandBack,
    Verify = Command::Verify { repair: false },
    VerifyAndRepair = Command::Verify { repair: true },
    CancelVerify = Command::CancelVerify,
    Resize = Command::Resize(Some(_)),
    ResizeAsFarAsItGoes = Command::Resize(None),
}

kinds! { AnswerKind of Result<Answer, Box<Refusal>>:
    Done = Ok(Answer::Done),
    Already = Ok(Answer::Already),
    Refused = Err(_),
}

/// What commits are called in notes.
const COMMITS: &[&str] = &[
    "a member left the in-sync set",
    "a replica joined the in-sync set",
    "the office was taken",
    "the office was released",
    "the authority was given away",
    "learned from the peer",
    "told by the primary",
];

/// Why a resync is a full one; the first is that it is none.
const PLANS: &[&str] = &[
    "partial",
    "its data were declared bad, or were changed without us",
    "it is a new replica",
    "its disk was restored from an older copy",
    "it does not know this replica",
    "its bitmap does not continue this one's",
];

/// What a failed disk operation was for, in notes.
const FAILED_DURING: &[&str] = &[
    "flush",
    "metadata write",
    "resync read",
    "verify read",
    "read for a verify",
    "replicated write",
    "write",
    "read",
    "zeroing",
    "move of metadata",
];

/// One thing that was seen: a table and the entry in it.
pub type Seen = (Table, usize);

/// The tables of kinds, in the order of the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    Inputs,
    DiskAnswers,
    Losses,
    Orders,
    Notes,
    Commits,
    Plans,
    FailedDuring,
    Frames,
    Verdicts,
    Requests,
    Commands,
    Refusals,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Inputs,
        Self::DiskAnswers,
        Self::Losses,
        Self::Orders,
        Self::Notes,
        Self::Commits,
        Self::Plans,
        Self::FailedDuring,
        Self::Frames,
        Self::Verdicts,
        Self::Requests,
        Self::Commands,
        Self::Refusals,
    ];

    /// For the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::DiskAnswers => "disk answers",
            Self::Losses => "losses of a link",
            Self::Orders => "orders of the core",
            Self::Notes => "notes",
            Self::Commits => "commits",
            Self::Plans => "plans of a resync",
            Self::FailedDuring => "notes of a failed disk",
            Self::Frames => "frames",
            Self::Verdicts => "verdicts of a handshake",
            Self::Requests => "requests x answer",
            Self::Commands => "commands x answer",
            Self::Refusals => "refusals",
        }
    }

    /// The names of its entries.
    pub fn names(self) -> Vec<String> {
        let plain = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        match self {
            Self::Inputs => plain(InputKind::NAMES),
            Self::DiskAnswers => plain(DiskAnswer::NAMES),
            Self::Losses => plain(Loss::NAMES),
            Self::Orders => plain(Order::NAMES),
            Self::Notes => plain(NoteKind::NAMES),
            Self::Commits => plain(COMMITS),
            Self::Plans => plain(PLANS),
            Self::FailedDuring => plain(FAILED_DURING),
            Self::Frames => plain(Frame::NAMES),
            Self::Verdicts => plain(Verdict::NAMES),
            Self::Requests => product(Asked::NAMES, Told::NAMES),
            Self::Commands => product(CommandKind::NAMES, AnswerKind::NAMES),
            Self::Refusals => plain(REFUSAL_CODES),
        }
    }
}

fn product(rows: &[&str], columns: &[&str]) -> Vec<String> {
    let of = |row| columns.iter().map(move |column| format!("{row}={column}"));
    rows.iter().flat_map(of).collect()
}

/// A text of the core that is in the list, or why not.
fn listed(table: Table, list: &[&str], text: &str) -> Result<Seen, String> {
    let at = list.iter().position(|name| *name == text);
    at.map(|at| (table, at)).ok_or(format!("{text:?} is not listed among the {}", table.title()))
}

/// What an input shows, besides its kind.
pub fn input(input: &Input) -> [Option<Seen>; 2] {
    let more = match input {
        Input::DiskDone { result, .. } => Some((Table::DiskAnswers, DiskAnswer::of(result))),
        Input::LinkLost { why, .. } => Some((Table::Losses, Loss::of(why))),
        _ => None,
    };
    [Some((Table::Inputs, InputKind::of(input))), more]
}

/// What an order shows, besides its kind; an error when it has a text that is not listed.
pub fn order(effect: &Effect) -> Result<[Option<Seen>; 3], String> {
    let mut seen = [Some((Table::Orders, Order::of(effect))), None, None];
    match effect {
        Effect::SendPeer { message, .. } => seen[1] = Some((Table::Frames, Frame::of(message))),
        Effect::AnswerOperator { result: Err(refusal), .. } => {
            seen[1] = Some(listed(Table::Refusals, REFUSAL_CODES, refusal.code)?);
        }
        Effect::Note(note) => {
            seen[1] = Some((Table::Notes, NoteKind::of(note)));
            seen[2] = match note {
                Note::Committed { what, .. } => Some(listed(Table::Commits, COMMITS, what)?),
                Note::ResyncStarted { full_because, .. } => {
                    Some(listed(Table::Plans, PLANS, full_because.unwrap_or(PLANS[0]))?)
                }
                Note::DiskFailed { during, .. } => {
                    Some(listed(Table::FailedDuring, FAILED_DURING, during)?)
                }
                Note::PeerLost { why, .. } => Some((Table::Losses, Loss::of(why))),
                _ => None,
            };
        }
        _ => {}
    }
    Ok(seen)
}

/// The verdict of two greetings.
pub fn verdict(relation: &Relation) -> Seen {
    (Table::Verdicts, Verdict::of(relation))
}

/// A request, to be given to [`answer`] later.
pub fn asked(what: &ClientRequest) -> usize {
    Asked::of(what)
}

/// A request and its answer.
pub fn answer(asked: usize, result: &Result<(), ClientError>) -> Seen {
    (Table::Requests, asked * Told::NAMES.len() + Told::of(result))
}

/// A command, to be given to [`command_answer`] later.
pub fn ordered(command: &Command) -> usize {
    CommandKind::of(command)
}

/// A command and its answer.
pub fn command_answer(ordered: usize, result: &Result<Answer, Box<Refusal>>) -> Seen {
    (Table::Commands, ordered * AnswerKind::NAMES.len() + AnswerKind::of(result))
}

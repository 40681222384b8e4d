//! What a replica is doing, as plain states that can be counted: read by tests that want to know
//! which states and transitions they reached. Every state of the core has its name here, by
//! matches that the compiler keeps complete.

use crate::membership::Change;
use crate::office::promotion::Phase;
use crate::peer::{Join, Lead, Link};
use crate::replica::{Replica, Role};
use crate::request::{Blocked, Stage};

/// An enumeration of states with the list of all of them.
macro_rules! states {
    ($(#[$about:meta])* $name:ident: $($state:ident),+ $(,)?) => {
        $(#[$about])*
        #[allow(missing_docs, reason = "the states are described where they are kept")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $($state),+ }

        impl $name {
            /// All of them, in order: `ALL[state as usize] == state`.
            pub const ALL: &'static [Self] = &[$(Self::$state),+];
        }
    };
}

states! {
    /// The role of a replica; a promotion with its phases.
    Office: Starting, Secondary, Asking, Draining, Flushing, Committing, Primary, Demoting, Deposed,
    Stopping, Stopped, AwaitLease,
}

states! {
    /// The session with a peer.
    Session: Down, Refused, Waiting, Greeting, Idle, Following, AwaitFollow, AwaitShrink, HeldBack,
    AwaitPlan, AwaitSyncReady, Syncing, Draining, Flushing, Recording, Proposed, Current, Leaving,
    Left,
}

states! {
    /// A change of the register that is being made.
    Changing: Nothing, ShrinkFlushing, ShrinkProposed, Grow, TakeOver, Release, GiveAuthority,
    FlushHeir, HandOver, Adopt,
}

states! {
    /// The activity log.
    Log: Idle, Writing, Evicting, EvictingAndWriting, Starved,
}

states! {
    /// A resync, on its source.
    Resync: Nothing, Copying, Clearing, Paused,
}

states! {
    /// Following a leader.
    Following: Nobody, NotReady, Ready,
}

states! {
    /// What is known of the own data and of the disk under them.
    Data: UpToDate, Outdated, Inconsistent, Diverged, Invalid, Unknown, DiskFailed, MetadataFailed,
    BothFailed, RegisterWentBack,
}

states! {
    /// How far a client's request is, and for what a queued one waits.
    Progress: ForOverlap, ForLog, ForWindow, Edges, Running, Flushing, Held,
}

/// A replica at one moment; of its peers the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// Its role.
    pub office: Office,
    /// Its session.
    pub session: Session,
    /// What changes.
    pub changing: Changing,
    /// Its log.
    pub log: Log,
    /// The resync of the peer.
    pub resync: Resync,
    /// Whom it follows.
    pub following: Following,
    /// What its data are.
    pub data: Data,
}

impl Replica {
    /// What the replica is doing now; it must have a peer.
    pub fn view(&self) -> View {
        let peer = &self.peers[0];
        let session = match peer.link {
            Link::Down if peer.refused => Session::Refused,
            _ => session(&peer.link),
        };
        View {
            office: office(&self.role),
            session,
            changing: self.change.as_ref().map_or(Changing::Nothing, changing),
            log: self.log_state(),
            resync: match &peer.resync {
                None => Resync::Nothing,
                Some(resync) if resync.deadline(self.now).is_some() => Resync::Paused,
                Some(resync) if resync.is_clearing() => Resync::Clearing,
                Some(_) => Resync::Copying,
            },
            following: match self.following {
                None => Following::Nobody,
                Some(leader) if leader.ready => Following::Ready,
                Some(_) => Following::NotReady,
            },
            data: self.data_state(),
        }
    }

    /// How far each of the clients' requests is.
    pub fn progress(&self) -> impl Iterator<Item = Progress> + '_ {
        self.requests.iter().map(|(_, request)| match (request.stage, request.blocked) {
            (Stage::Queued, Blocked::Overlap) => Progress::ForOverlap,
            (Stage::Queued, Blocked::Log) => Progress::ForLog,
            (Stage::Queued, Blocked::Window(_)) => Progress::ForWindow,
            (Stage::Edges, _) => Progress::Edges,
            (Stage::Running, _) => Progress::Running,
            (Stage::Flushing, _) => Progress::Flushing,
            (Stage::Held, _) => Progress::Held,
        })
    }

    fn log_state(&self) -> Log {
        let keeper = &self.log_keeper;
        match (keeper.starved, keeper.evicting, self.log_is_writing()) {
            (true, _, _) => Log::Starved,
            (false, true, true) => Log::EvictingAndWriting,
            (false, true, false) => Log::Evicting,
            (false, false, true) => Log::Writing,
            (false, false, false) => Log::Idle,
        }
    }

    pub(crate) fn data_state(&self) -> Data {
        let superblock = &self.superblock;
        match (self.disk_failed, self.metadata_failed) {
            (true, true) => Data::BothFailed,
            (true, false) => Data::DiskFailed,
            (false, true) => Data::MetadataFailed,
            _ if self.majority.register_went_back() => Data::RegisterWentBack,
            _ if superblock.diverged && !superblock.discard_diverged => Data::Diverged,
            _ if superblock.invalid => Data::Invalid,
            _ if superblock.syncing => Data::Inconsistent,
            _ if self.is_up_to_date() => Data::UpToDate,
            _ if self.register.generation == 0 => Data::Unknown,
            _ => Data::Outdated,
        }
    }
}

impl Data {
    /// For status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "up_to_date",
            Self::Outdated => "outdated",
            Self::Inconsistent => "inconsistent",
            Self::Diverged => "diverged",
            Self::Invalid => "invalid",
            Self::Unknown => "unknown",
            Self::RegisterWentBack => "register_went_back",
            Self::DiskFailed | Self::MetadataFailed | Self::BothFailed => "failed",
        }
    }
}

fn office(role: &Role) -> Office {
    match role {
        Role::Starting => Office::Starting,
        Role::Secondary => Office::Secondary,
        Role::Promoting(promotion) => match promotion.phase {
            Phase::Asking(..) => Office::Asking,
            Phase::Draining => Office::Draining,
            Phase::Flushing => Office::Flushing,
            Phase::Committing => Office::Committing,
            Phase::AwaitLease => Office::AwaitLease,
        },
        Role::Primary => Office::Primary,
        Role::Demoting => Office::Demoting,
        Role::Deposed => Office::Deposed,
        Role::Stopping => Office::Stopping,
        Role::Stopped => Office::Stopped,
    }
}

fn session(link: &Link) -> Session {
    match link {
        Link::Down => Session::Down,
        Link::Waiting => Session::Waiting,
        Link::Greeting(_) => Session::Greeting,
        Link::Idle => Session::Idle,
        Link::Following => Session::Following,
        Link::Leading(lead) => match lead {
            Lead::AwaitFollow => Session::AwaitFollow,
            Lead::AwaitShrink => Session::AwaitShrink,
            Lead::HeldBack { .. } => Session::HeldBack,
            Lead::AwaitPlan => Session::AwaitPlan,
            Lead::AwaitSyncReady => Session::AwaitSyncReady,
            Lead::Syncing => Session::Syncing,
            Lead::Joining(Join::Draining(_)) => Session::Draining,
            Lead::Joining(Join::Flushing) => Session::Flushing,
            // Announced, and to be announced once more, are one for those who watch.
            Lead::Joining(Join::Recording(_) | Join::Waiting) => Session::Recording,
            Lead::Joining(Join::Proposed) => Session::Proposed,
            Lead::Current => Session::Current,
            Lead::Leaving { flushed: false } => Session::Leaving,
            Lead::Leaving { flushed: true } => Session::Left,
        },
    }
}

fn changing(change: &Change) -> Changing {
    match change {
        Change::Shrink { proposed: false, .. } => Changing::ShrinkFlushing,
        Change::Shrink { proposed: true, .. } => Changing::ShrinkProposed,
        Change::Grow { .. } => Changing::Grow,
        Change::TakeOver => Changing::TakeOver,
        Change::Release => Changing::Release,
        Change::FlushHeir { .. } => Changing::FlushHeir,
        Change::HandOver => Changing::HandOver,
        Change::Adopt => Changing::Adopt,
        Change::GiveAuthority { .. } => Changing::GiveAuthority,
    }
}

//! What cannot happen by design, and why. Everything else can, and is named when it never did.

use replicator_core::observe::{Changing, Following, Office, Resync, Session};

use super::kinds::Table;

/// Why an entry of a table of kinds cannot be reached.
pub fn kind(table: Table, name: &str) -> Option<&'static str> {
    let kept_off = "the operator keeps the old primary off until a promotion by force is durable";
    match (table, name) {
        (Table::Verdicts, "Deposed" | "FalseClaim" | "TwoRegisters") => Some(kept_off),
        (Table::Verdicts, "Impossible") => Some("both ends run one build"),
        (Table::Requests, "Read=NoSpace" | "Flush=NoSpace" | "Map=NoSpace") => {
            Some("it needs no space")
        }
        (Table::Requests, "Map=Io") => Some("the simulated disk has nothing to look up"),
        (Table::Commands, "Connect=Refused" | "Disconnect=Refused" | "Disconnect=Already") => {
            Some("a replica always can")
        }
        (Table::Commands, "Invalidate=Already" | "ResyncFull=Already" | "Stop=Already") => {
            Some("it is done again, or refused")
        }
        (Table::Commands, "Verify=Already" | "VerifyAndRepair=Already") => {
            Some("one that runs is in the way of another")
        }
        (Table::Refusals, "peer_too_old") => Some("both ends run one build"),
        (Table::Inputs, "Decided" | "RegisterLearned" | "LeaseChanged")
        | (Table::Orders, "Propose")
        | (Table::Notes, "LeaseLapsed" | "LeaseBack" | "OfficeLost" | "RegisterWentBack")
        | (
            Table::Refusals,
            "lost_the_race" | "no_lease" | "not_now" | "register_unknown" | "register_went_back"
            | "sole_primary",
        ) => Some(NO_MAJORITY),
        (Table::Notes, "FenceAwaited")
        | (Table::Frames, "InSync")
        | (Table::Refusals, "stands_back" | "peer_is_heard") => Some(NO_FENCING),
        (Table::Commands, name)
            if ["TakeFenced", "PeerIsOff", "StandBack"]
                .iter()
                .any(|fenced| name.starts_with(fenced)) =>
        {
            Some(NO_FENCING)
        }
        (Table::Frames, "RoomComes") => {
            Some("no disk is extended by so much that zeroing has parts")
        }
        (Table::Frames, "Replicas" | "Cooled") => Some("two replicas have no third"),
        _ => None,
    }
}

const NO_FENCING: &str = "nobody fences anybody in this pair";
const NO_MAJORITY: &str = "no majority keeps the register of this pair";

/// Why a state is never reached.
pub fn state(name: &str) -> Option<&'static str> {
    let of_a_majority = matches!(name, "AwaitLease" | "HandOver" | "Adopt" | "RegisterWentBack");
    of_a_majority.then_some(NO_MAJORITY)
}

/// Why a role never follows another in one step.
pub fn office(from: Office, to: Office) -> Option<&'static str> {
    use Office::*;
    let can = match from {
        Starting => matches!(to, Secondary | Flushing | Stopping),
        Secondary => matches!(to, Asking | Draining | Flushing | Stopping),
        Asking => matches!(to, Secondary | Flushing),
        Draining => matches!(to, Secondary | Flushing),
        Flushing => matches!(to, Secondary | Committing),
        Committing => matches!(to, Secondary | Primary),
        Primary => matches!(to, Demoting | Deposed),
        Demoting => matches!(to, Secondary | Deposed | Stopping),
        Deposed => matches!(to, Secondary | Stopping),
        Stopping => matches!(to, Stopped),
        Stopped | AwaitLease => false,
    };
    let why = match (from, to) {
        (AwaitLease, _) | (_, AwaitLease) => NO_MAJORITY,
        (Stopped, _) => "a process that stopped does nothing more",
        (_, Starting) => "a process starts once",
        (_, Stopped) => "a stop flushes and marks the disk first (R12)",
        (Stopping, _) => "a stop is not taken back",
        (_, Primary) => "an office is durable before it is served (R2c)",
        (_, Committing) => "the own disk is flushed before an office is proposed (R2c)",
        (_, Demoting | Deposed) => "only a primary has an office to lose",
        (Primary | Demoting | Deposed, _) => "an office ends by its release or by its loss",
        (_, Draining) => "a session begins when the writes of the old one have ended (R2d)",
        _ => "a promotion goes forward, or back to what the replica was",
    };
    (!can).then_some(why)
}

/// Why a session never goes from one state to the other in one step.
pub fn session(from: Session, to: Session) -> Option<&'static str> {
    use Session::*;
    let can = match from {
        Down | Refused => matches!(to, Waiting | Greeting),
        Waiting => matches!(to, Down | Refused | Greeting),
        Greeting => matches!(to, Down | Refused | Idle | Following | AwaitFollow),
        Idle | Following | Left => to == Down,
        AwaitFollow => {
            matches!(to, Down | AwaitShrink | HeldBack | AwaitPlan | AwaitSyncReady | Current)
        }
        AwaitShrink => matches!(to, Down | HeldBack | AwaitPlan | AwaitSyncReady),
        HeldBack => matches!(to, Down | AwaitPlan | AwaitSyncReady),
        AwaitPlan => matches!(to, Down | AwaitSyncReady),
        AwaitSyncReady => matches!(to, Down | Syncing | Flushing),
        Syncing => matches!(to, Down | Draining | Flushing | Leaving),
        Draining => matches!(to, Down | Flushing | Leaving),
        Flushing => matches!(to, Down | Recording | Leaving),
        Recording => matches!(to, Down | Proposed | Leaving),
        Proposed => matches!(to, Down | Current | Leaving),
        Current => matches!(to, Down | Leaving),
        Leaving => matches!(to, Down | Left),
    };
    let why = match (from, to) {
        (_, Refused) => "both sides decide from the same two greetings, at the beginning",
        (Refused, Down) => "a refusal is shown until a greeting is agreed on",
        (_, Waiting | Greeting) => "the loss of a session comes before the next one",
        (Down | Refused | Waiting | Greeting, _) => "it begins with two greetings that hold",
        (_, Idle | Following | AwaitFollow) => {
            "what two replicas are to each other is decided once"
        }
        (_, Leaving | Left) => "who is not written to has nothing to wait for when it leaves",
        (Leaving | Left, _) => "who leaves does not stay",
        (Idle | Following, _) => "only a primary leads",
        (AwaitShrink | HeldBack, Current) => "who is out of the set must join first (R4)",
        _ => "the steps of a return have an order (R4)",
    };
    (!can).then_some(why)
}

/// Why a change of the register never follows another in one step.
pub fn changing(from: Changing, to: Changing) -> Option<&'static str> {
    use Changing::*;
    let can = match from {
        Nothing => !matches!(to, ShrinkProposed | HandOver | Adopt),
        ShrinkFlushing => matches!(to, Nothing | ShrinkProposed),
        FlushHeir => to == Nothing,
        Grow => matches!(to, Nothing | ShrinkFlushing),
        ShrinkProposed | TakeOver | Release | GiveAuthority => to == Nothing,
        HandOver | Adopt => false,
    };
    let why = match (from, to) {
        (HandOver | Adopt, _) | (_, HandOver | Adopt) => NO_MAJORITY,
        (_, ShrinkProposed) => "the own disk is flushed before a removal is proposed (R3)",
        (TakeOver, ShrinkFlushing) => "after a hand-over the others have a moment to come",
        _ => "one change at a time, and each begins with a disk's or a peer's word",
    };
    (!can).then_some(why)
}

/// Why a resync never goes from one state to the other in one step.
pub fn resync(from: Resync, to: Resync) -> Option<&'static str> {
    use Resync::*;
    match (from, to) {
        (Nothing, Paused) => Some("nothing was read yet that could fail"),
        (Clearing, Copying | Paused) => Some("a resync that sent everything has nothing to read"),
        (Paused, Clearing) => Some("what could not be read is to be copied first (R10)"),
        _ => None,
    }
}

/// Why following a leader never goes from one state to the other in one step.
pub fn following(from: Following, to: Following) -> Option<&'static str> {
    use Following::*;
    match (from, to) {
        (Nobody, Ready) => Some("tenure and register are durable before a frame is applied (R2a)"),
        (Ready, NotReady) => Some("a leader is lost before the next one is followed"),
        _ => None,
    }
}

//! What an operator may ask of a replica, and the answers: done, or refused with the reason and
//! what to do next.

use alloc::string::String;

use crate::block::{PeerIndex, SessionId};

/// An operator's command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Command {
    /// Become primary. The flags are the operator's word for what the replica cannot know.
    Promote {
        /// The old primary is switched off; nobody but the operator can know that here.
        old_primary_is_off: bool,
        /// Serve these data though they may be old; starts a new lineage (R11d).
        allow_data_loss: bool,
        /// Do not wait for the peer after a restart (only for the holder of the authority).
        alone: bool,
    },
    /// Become primary after the old one was fenced, which is confirmed. Only a replica that was in
    /// sync when it heard the old primary last, and did not promise to stand back since.
    TakeFenced,
    /// A lost peer is off, or has promised to stand back, since this session with it ended: it may
    /// leave the set ([`RegisterKeeper::FencedSuperblock`](crate::RegisterKeeper)).
    PeerIsOff(PeerIndex, SessionId),
    /// Promise not to take over by a fence before the primary was met again: it goes on alone.
    StandBack,
    /// Stop being primary, orderly: drain, flush, empty the log, release.
    Demote,
    /// Take up connections to a peer again after `Disconnect`.
    Connect(PeerIndex),
    /// Hold no connection to a peer until `Connect`.
    Disconnect(PeerIndex),
    /// Declare the data of this replica bad: it is resynced in full.
    Invalidate,
    /// Resync a peer in full although its bitmap says less is needed (on the primary).
    ResyncFull(PeerIndex),
    /// Give up what this replica has that the new lineage does not (R11d), so that it can be
    /// resynced.
    DiscardDiverged,
    /// Compare the copies of the members with the own one (on the primary); with `repair`, the
    /// blocks of a member that differ are copied again.
    Verify {
        /// Whether differences are mended, by the primary's copy.
        repair: bool,
    },
    /// End a verify that is under way.
    CancelVerify,
    /// Make the volume larger, while clients use it (on the primary): to this size in bytes, or as
    /// far as every replica that is here has room.
    Resize(Option<u64>),
    /// Leave orderly: tell the primary, flush, mark the disk clean; then
    /// [`Effect::Stopped`](crate::Effect::Stopped).
    Stop,
}

/// How a command went well.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Answer {
    /// It is done.
    Done,
    /// There was nothing to do.
    Already,
}

/// Why a command was refused. The text names the rule, what was compared, and the next step.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Refusal {
    /// Stable name for programs, for example `not_up_to_date`.
    pub code: &'static str,
    /// The rule of SAFETY.md, for example `R11a`; empty where none is meant.
    pub rule: &'static str,
    /// What is wrong, with the values compared.
    pub why: String,
    /// What the operator may do now.
    pub next: String,
}

/// The codes of all refusals.
pub const REFUSAL_CODES: &[&str] = &[
    "authority_refused",
    "busy",
    "disk_hangs",
    "last_copy",
    "lost_the_race",
    "member_missing",
    "no_disk",
    "no_lease",
    "no_member_to_verify",
    "no_room",
    "not_diverged",
    "not_now",
    "not_primary",
    "not_secondary",
    "not_spoken",
    "not_up_to_date",
    "peer_is_heard",
    "peer_is_primary",
    "peer_too_old",
    "peer_unreachable",
    "power_was_lost",
    "register_unknown",
    "register_went_back",
    "shrinks",
    "sole_primary",
    "stands_back",
    "verify_runs",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_listed_and_made_somewhere() {
        let sources = [
            include_str!("fenced.rs"),
            include_str!("majority.rs"),
            include_str!("office.rs"),
            include_str!("office/promotion.rs"),
            include_str!("office/release.rs"),
            include_str!("office/stop.rs"),
            include_str!("verify.rs"),
            include_str!("resize.rs"),
        ];
        let made = sources.iter().flat_map(|source| source.split("code: \"").skip(1));
        let mut made: alloc::vec::Vec<&str> =
            made.filter_map(|text| text.split('"').next()).collect();
        made.sort_unstable();
        made.dedup();
        assert_eq!(made, REFUSAL_CODES);
    }
}

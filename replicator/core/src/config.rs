//! What the driver tells a replica about itself when it starts: identity, disk, time-outs.

use alloc::string::String;
use alloc::vec::Vec;

use crate::block::Incarnation;
use crate::time::Span;

/// Everything a replica is given at the start; constant for its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node, for messages to people.
    pub node: String,
    /// The other data nodes, in the order of [`PeerIndex`](crate::block::PeerIndex); the order of
    /// the slots of the dirty bitmaps in the metadata.
    pub peers: Vec<PeerConfig>,
    /// Boot id of this machine (R8).
    pub incarnation: Incarnation,
    /// Whether the backing reads zeroes after a punched hole (R17).
    pub can_punch: bool,
    /// Who keeps the register.
    pub register: RegisterKeeper,
    /// A read is answered when every other member has answered to an echo that was sent after it
    /// came in (R5e).
    pub confirms_reads: bool,
    /// Time-outs.
    pub timing: Timing,
}

/// Where a change of the register is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum RegisterKeeper {
    /// In the superblock of the node that holds the authority (no witness).
    #[default]
    OwnSuperblock,
    /// The same, and both nodes fence by themselves: a lost member leaves the set only when it is
    /// off for sure or has promised not to take over, so that the one that takes over lacks
    /// nothing.
    FencedSuperblock,
    /// By a majority outside of this core: changes are proposed, a lease allows answers.
    Majority,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Node name; the key under which its bitmap slot is recorded.
    pub node: String,
}

/// Time-outs of the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A peer that says nothing for so long is lost.
    pub peer_silence: Span,
    /// How often a silent link is pinged; below half of `peer_silence`.
    pub ping_interval: Span,
    /// A frame unanswered for so long means the peer's disk hangs: the peer is lost.
    pub ack_limit: Span,
    /// A disk operation that is to end before a promotion (R2c) may take so long.
    pub drain_limit: Span,
    /// How long a member may be missing at a promotion before it is removed from the set.
    pub join_grace: Span,
    /// After a power loss of every member, how long the others may be silent (R11a).
    pub power_loss_wait: Span,
    /// A primary without a lease for so long gives its office up (L4; only with a majority).
    pub demote_after: Span,
    /// For so long the drops of a peer are remembered (P6).
    pub drops_window: Span,
    /// A peer that was dropped three times in that has to be heard for so long before it is brought
    /// up to date, twice as long after each further drop; zero: never.
    pub rejoin_delay: Span,
    /// But no longer than this.
    pub rejoin_delay_max: Span,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            peer_silence: Span::from_ms(1_000),
            ping_interval: Span::from_ms(250),
            ack_limit: Span::from_ms(10_000),
            drain_limit: Span::from_ms(30_000),
            join_grace: Span::from_ms(1_000),
            power_loss_wait: Span::from_ms(120_000),
            demote_after: Span::from_ms(10_000),
            drops_window: Span::from_ms(600_000),
            rejoin_delay: Span::from_ms(5_000),
            rejoin_delay_max: Span::from_ms(60_000),
        }
    }
}

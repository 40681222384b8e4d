//! What one seed is about: sizes, speeds, and which faults exist and how often (swarm testing:
//! every seed leaves most kinds of trouble out, so that the others get room).

use history::draw::Draw;
use replicator_core::limits::EXTENT_BYTES;
use replicator_core::{Span, Timing};

/// Extents of a wide volume: more than the log has slots.
const EXTENTS: u64 = 72;

/// Where a verify begins: what clients write there meets it when it is ordered beside that.
pub const EARLY_BYTES: u64 = 256 << 10;

/// A kind of trouble.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// SIGKILL of a daemon (H1).
    Kill,
    /// A machine loses its power (H4).
    PowerCut,
    /// Both machines lose their power (H4, D11).
    BothPowerCut,
    /// SIGSTOP, or a machine that stands still (H2, H3).
    Pause,
    /// No frame passes in either direction (P1).
    Partition,
    /// No frame passes in one direction (P3).
    OneWay,
    /// A connection is reset (P6).
    Reset,
    /// A disk is slow (D2).
    SlowDisk,
    /// A disk answers nothing for a while (D2).
    HungDisk,
    /// One operation fails with EIO (D1).
    DiskError,
    /// One write fails with ENOSPC (D3).
    DiskFull,
    /// The operator demotes one node and promotes the other (O3).
    Switchover,
    /// The operator stops a daemon orderly and starts it again (H6).
    Restart,
    /// The operator disconnects and connects.
    Disconnect,
    /// The operator declares a secondary's data bad.
    Invalidate,
    /// The operator orders a full resync.
    ResyncFull,
    /// The operator switches the primary off and promotes the other.
    Fence,
    /// The operator promotes what is not up to date (D13).
    ForcedPromotion,
    /// A secondary's disk is replaced by an empty one, made anew (D6, O7).
    NewDisk,
    /// A secondary's disk was used without us while its daemon was stopped (D20).
    ForeignUse,
    /// A machine stands still for 1 s to 10 min, and its clock too or not (H3).
    LongPause,
    /// A clock jumps forward, or runs at another speed from now on (O1).
    ClockJump,
    /// Frames get lost, so that others wait and connections end (P5).
    FrameLoss,
    /// Frames take up to 500 ms longer (P5).
    SlowLink,
    /// Large packets get lost (P5).
    BlackHole,
    /// A link that flaps (P6).
    Flap,
    /// A connection comes late to one end, after a newer one or when the other end is closed.
    LateConnection,
    /// A disk fails for a while, at one kind of operation or at all (D1, D3).
    DeadDisk,
    /// A disk that is not the node's own, or not of its size (D6, D7).
    ForeignDisk,
    /// A disk is restored from an older copy (D6, H3).
    RestoredDisk,
    /// Some metadata rot (D5).
    BitRot,
    /// A client is gone and comes back.
    ClientGone,
    /// The operator gives a command that does not fit.
    Careless,
    /// Trouble that waits for a certain moment: a commit, a resync, an acknowledgement (D9, P8).
    Ambush,
    /// The daemon or the machine of the witness falls.
    WitnessFalls,
    /// The witness stands still.
    WitnessPauses,
    /// A node, also the witness, is cut off from all others, in one direction or both.
    Isolation,
    /// The control planes of two nodes do not hear each other, or one of them.
    ControlCut,
    /// Many datagrams get lost.
    Storm,
    /// The operator of a cluster moves the office, or switches something.
    Orders,
    /// A node comes back with an older record of its acceptor, and is replaced (L5, H3).
    OldRecord,
    /// A node loses its acceptor's record, and with it its vote, and is replaced (L5, O7).
    LostRecord,
    /// The operator adds or removes a witness (L7, O5).
    Members,
    /// The operator moves the office by force (R11d, D13).
    Forced,
    /// The data loop of a node hangs, or its disk for longer than that is borne; its control plane
    /// goes on (L1).
    HungLoop,
    /// Every acceptor comes back with an old record: the register went back (R11c).
    RegisterBack,
}

/// What befalls a pair, for drawing.
pub const FAULTS_OF_A_PAIR: [Fault; 34] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::BothPowerCut,
    Fault::Pause,
    Fault::Partition,
    Fault::OneWay,
    Fault::Reset,
    Fault::SlowDisk,
    Fault::HungDisk,
    Fault::DiskError,
    Fault::DiskFull,
    Fault::Switchover,
    Fault::Restart,
    Fault::Disconnect,
    Fault::Invalidate,
    Fault::ResyncFull,
    Fault::Fence,
    Fault::ForcedPromotion,
    Fault::NewDisk,
    Fault::ForeignUse,
    Fault::LongPause,
    Fault::ClockJump,
    Fault::FrameLoss,
    Fault::SlowLink,
    Fault::BlackHole,
    Fault::Flap,
    Fault::LateConnection,
    Fault::DeadDisk,
    Fault::ForeignDisk,
    Fault::RestoredDisk,
    Fault::BitRot,
    Fault::ClientGone,
    Fault::Careless,
    Fault::Ambush,
];

/// What befalls a cluster, for drawing.
const FAULTS_OF_A_CLUSTER: [Fault; 31] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::BothPowerCut,
    Fault::Pause,
    Fault::Partition,
    Fault::OneWay,
    Fault::Reset,
    Fault::SlowDisk,
    Fault::HungDisk,
    Fault::DiskError,
    Fault::DiskFull,
    Fault::Switchover,
    Fault::Restart,
    Fault::LongPause,
    Fault::ClockJump,
    Fault::FrameLoss,
    Fault::SlowLink,
    Fault::BlackHole,
    Fault::Flap,
    Fault::LateConnection,
    Fault::DeadDisk,
    Fault::ClientGone,
    Fault::Ambush,
    Fault::WitnessFalls,
    Fault::WitnessFalls,
    Fault::WitnessPauses,
    Fault::Isolation,
    Fault::Isolation,
    Fault::ControlCut,
    Fault::Storm,
    Fault::Orders,
];

/// What befalls a pair whose nodes fence each other, for drawing.
const FAULTS_OF_A_FENCED_PAIR: [Fault; 23] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::BothPowerCut,
    Fault::Pause,
    Fault::Partition,
    Fault::Partition,
    Fault::OneWay,
    Fault::Reset,
    Fault::SlowDisk,
    Fault::HungDisk,
    Fault::DiskError,
    Fault::Switchover,
    Fault::Restart,
    Fault::Disconnect,
    Fault::LongPause,
    Fault::ClockJump,
    Fault::FrameLoss,
    Fault::SlowLink,
    Fault::BlackHole,
    Fault::Flap,
    Fault::LateConnection,
    Fault::ClientGone,
    Fault::Ambush,
];

/// What changes a cluster itself, with the highest weight of each.
pub fn changes_of_clusters() -> [(Fault, u64); 5] {
    [
        (Fault::OldRecord, 3),
        (Fault::LostRecord, 3),
        (Fault::Members, 6),
        (Fault::Forced, 3),
        (Fault::HungLoop, 4),
    ]
}

/// What befalls only clusters.
const FAULTS_OF_CLUSTERS: [Fault; 12] = [
    Fault::WitnessFalls,
    Fault::WitnessPauses,
    Fault::Isolation,
    Fault::ControlCut,
    Fault::Storm,
    Fault::Orders,
    Fault::OldRecord,
    Fault::LostRecord,
    Fault::Members,
    Fault::Forced,
    Fault::HungLoop,
    Fault::RegisterBack,
];

/// All kinds, for counting.
pub fn all_faults() -> impl Iterator<Item = Fault> {
    FAULTS_OF_A_PAIR.into_iter().chain(FAULTS_OF_CLUSTERS)
}

/// Everything a seed decides before it runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the volume at the beginning.
    pub data_bytes: u64,
    /// How far it may grow.
    pub room_bytes: u64,
    /// Whether there is no room until the disks are extended for it.
    pub extends: bool,
    /// When it is to grow, in milliseconds, and to which size.
    pub growths: Vec<(u64, u64)>,
    /// Block size of the resource.
    pub block_bytes: u32,
    /// Places where clients write, as byte offsets: few, so that requests overlap.
    pub spots: Vec<u64>,
    /// Whether clients walk over more extents than the log has slots.
    pub is_wide: bool,
    /// Client requests in all.
    pub requests: u64,
    /// `reads = "confirmed"` (R5e).
    pub confirms_reads: bool,
    /// The requests are spread over the troubles, with so many ahead of them at most: few requests
    /// meet many troubles then, and those that waited come together. Else clients only think.
    pub ahead: Option<u64>,
    /// Clients at work.
    pub workers: usize,
    /// Longest pause of a client, in milliseconds.
    pub think_ms: u64,
    /// Percent of reads, flushes, trims and zeroings; the rest are writes.
    pub percent_read: u64,
    /// See `percent_read`.
    pub percent_flush: u64,
    /// See `percent_read`.
    pub percent_zero: u64,
    /// Percent of requests at the place of the one before.
    pub percent_again: u64,
    /// Percent of writes with FUA.
    pub percent_fua: u64,
    /// Whether each backing can punch holes.
    pub can_punch: [bool; 2],
    /// Kinds of trouble with their weights.
    pub faults: Vec<(Fault, u64)>,
    /// How many troubles.
    pub troubles: u64,
    /// Longest time between two, in milliseconds.
    pub gap_ms: u64,
    /// Longest delay of a frame, in microseconds.
    pub delay_us: u64,
    /// Longest time of a disk operation, in microseconds.
    pub disk_us: u64,
    /// Longest time of a flush, in microseconds.
    pub flush_us: u64,
    /// Whether frames go through the encoder and decoder of the wire.
    pub encodes: bool,
    /// Speed of each node's clock in per mille.
    pub clock_rates: [u64; 2],
    /// Time-outs of the replicas.
    pub timing: Timing,
    /// Sectors rot and somebody orders verifies, with such pauses at most; none: neither.
    pub verify_every_ms: Option<u64>,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(draw: &mut Draw) -> Self {
        let mib = [16, 16, 16, 64, (EXTENTS * EXTENT_BYTES) >> 20][draw.below(5) as usize];
        let data_bytes = mib << 20;
        // A wide seed touches more extents than the log has, so that some must leave it.
        let wide = mib > 100;
        let spread = wide || draw.chance(40);
        let spots = if wide { EXTENTS } else { 3 + draw.below(12) };
        let spots = (0..spots)
            .map(|number| match (wide, spread) {
                (true, _) => number * EXTENT_BYTES + draw.below(900) * 4096,
                (_, true) => draw.below(data_bytes / 4096 - 32) * 4096,
                _ => draw.below(data_bytes.min(8 << 20) / 4096 - 32) * 4096,
            })
            .collect();
        let mut faults = Vec::new();
        while faults.len() < 3 {
            for fault in FAULTS_OF_A_PAIR {
                if draw.chance(45) {
                    faults.push((fault, weight(fault, draw)));
                }
            }
        }
        if wide && faults.iter().all(|(fault, _)| *fault != Fault::Ambush) {
            faults.push((Fault::Ambush, 20));
        }
        let silence = [300, 600, 1000][draw.below(3) as usize];
        let block_bytes = [512, 4096, 4096, 4096][draw.below(4) as usize];
        let requests = 40 + draw.below(120) + if wide { 100 } else { 0 };
        Self {
            data_bytes,
            room_bytes: data_bytes,
            extends: false,
            growths: Vec::new(),
            block_bytes,
            spots,
            is_wide: wide,
            requests,
            confirms_reads: requests % 4 == 1,
            ahead: draw.chance(50).then(|| [1, 4, 12][draw.below(3) as usize]),
            workers: if wide { 8 } else { 1 + draw.below(8) as usize },
            think_ms: [20, 300, if wide { 100 } else { 1500 }][draw.below(3) as usize],
            percent_read: 10 + draw.below(40),
            percent_flush: draw.below(20),
            percent_zero: draw.below(15),
            percent_again: if wide { 5 } else { [10, 40, 80][draw.below(3) as usize] },
            percent_fua: draw.below(25),
            can_punch: [draw.chance(85), draw.chance(85)],
            faults,
            troubles: 20 + draw.below(25),
            gap_ms: [if wide { 4000 } else { 100 }, 700, 2500][draw.below(3) as usize],
            delay_us: [200, 200, 5_000, 60_000][draw.below(4) as usize],
            disk_us: [200, 200, 2_000, 20_000][draw.below(4) as usize],
            flush_us: [1_000, 10_000, 40_000, 200_000][draw.below(4) as usize],
            encodes: draw.chance(20),
            clock_rates: [1000 - draw.below(100), 1000 + draw.below(100)],
            timing: Timing {
                peer_silence: Span::from_ms(silence),
                ping_interval: Span::from_ms(silence / 4),
                ack_limit: Span::from_ms(1_000 + draw.below(3_000)),
                drain_limit: Span::from_ms([10_000, 10_000, 1_500][draw.below(3) as usize]),
                join_grace: Span::from_ms(200 + draw.below(800)),
                power_loss_wait: Span::from_ms(500 + draw.below(4_000)),
                ..Timing::default()
            },
            verify_every_ms: None,
        }
    }
}

impl Plan {
    /// Draws for how long a peer that was dropped too often is held back (P6), from a sequence of
    /// its own: the rest of a seed is what it was before there was such a thing.
    pub fn draw_delays(&mut self, draw: &mut Draw) {
        let first = [0, 100, 500, 2_000, 5_000][draw.below(5) as usize];
        self.timing.rejoin_delay = Span::from_ms(first);
        self.timing.rejoin_delay_max = Span::from_ms(first * [1, 4, 12][draw.below(3) as usize]);
        let window = [10_000, 60_000, 600_000][draw.below(3) as usize];
        self.timing.drops_window = Span::from_ms(window);
    }

    /// Draws whether disks rot and verifies are ordered, from a sequence of its own too. Wide
    /// volumes take long to compare.
    pub fn draw_verifies(&mut self, draw: &mut Draw) {
        let every_ms = [200, 1_000, 5_000][draw.below(3) as usize];
        self.verify_every_ms = (draw.chance(15) && !self.is_wide).then_some(every_ms);
        if self.verify_every_ms.is_some() {
            // In the first steps of a verify.
            self.spots[0] %= EARLY_BYTES;
        }
    }

    /// Draws a plan for a cluster: as for a pair, with other troubles.
    pub fn draw_for_a_cluster(draw: &mut Draw) -> Self {
        let mut plan = Self::draw(draw);
        plan.faults.clear();
        while plan.faults.len() < 4 {
            for fault in FAULTS_OF_A_CLUSTER {
                if draw.chance(40) {
                    plan.faults.push((fault, weight(fault, draw)));
                }
            }
        }
        plan.timing.demote_after = Span::from_ms([2_000, 10_000][draw.below(2) as usize]);
        plan
    }

    /// Draws a plan for a pair whose nodes fence each other.
    pub fn draw_for_fencing(draw: &mut Draw) -> Self {
        let mut plan = Self::draw(draw);
        plan.faults.clear();
        while plan.faults.len() < 4 {
            for fault in FAULTS_OF_A_FENCED_PAIR {
                if draw.chance(40) {
                    plan.faults.push((fault, weight(fault, draw)));
                }
            }
        }
        plan.gap_ms = [700, 2_500, 6_000][draw.below(3) as usize];
        plan
    }

    /// Draws the kind of the next trouble.
    pub fn draw_fault(&self, draw: &mut Draw) -> Fault {
        let total: u64 = self.faults.iter().map(|(_, weight)| weight).sum();
        let mut dice = draw.below(total);
        for &(fault, weight) in &self.faults {
            if dice < weight {
                return fault;
            }
            dice -= weight;
        }
        unreachable!("the dice is below the sum of the weights")
    }
}

fn weight(fault: Fault, draw: &mut Draw) -> u64 {
    match fault {
        Fault::ForcedPromotion | Fault::Invalidate | Fault::ResyncFull | Fault::NewDisk => 1,
        Fault::LongPause | Fault::DeadDisk | Fault::ForeignDisk | Fault::RestoredDisk => 1,
        Fault::DiskError | Fault::DiskFull | Fault::HungDisk => 1 + draw.below(3),
        Fault::Ambush => 2 + draw.below(20),
        _ => 1 + draw.below(8),
    }
}

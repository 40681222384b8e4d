//! Which of the scenarios that must be survived this simulator reaches, by which trouble, and by
//! what one knows that a scenario really occurred: `sim scenarios FROM..TO` prints it with counts,
//! and a test fails when one never occurs.
//!
//! The numbers are those of SCENARIOS.md: for pairs those that concern replication, for clusters
//! those that concern network, hosts, time and operation.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mode::{self, Mode};
use crate::occasions::Occasion::{self, *};

/// A scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Its number.
    pub id: &'static str,
    /// What it is, in short.
    pub what: &'static str,
    /// By which troubles it comes about (kinds of `plan::Fault` and of `ambush::Strike`).
    pub by: &'static str,
    /// What shows that it occurred: each of these must.
    pub occasions: &'static [Occasion],
}

const fn scenario(
    id: &'static str,
    what: &'static str,
    by: &'static str,
    occasions: &'static [Occasion],
) -> Scenario {
    Scenario { id, what, by, occasions }
}

/// All that are reached.
pub const SCENARIOS: &[Scenario] = &[
    scenario(
        "H1",
        "a daemon is killed, and is back at once, late, or when all is over",
        "Kill, ambushes",
        &[KilledPrimary, KilledSecondary, AwayForLong],
    ),
    scenario(
        "H2",
        "a daemon stands still, for less and for more than the peer's patience",
        "Pause",
        &[PausedPrimary, PausedSecondary, PausedBriefly, PausedBeyondSilence],
    ),
    scenario(
        "H3",
        "a machine stands still for 1 s to 10 min, its clock too or not; a restored disk",
        "LongPause, RestoredDisk",
        &[MachineStoodStill, MachineSleptOn, AwayForMinutes, RestoredDiskResynced],
    ),
    scenario(
        "H4",
        "one machine, or both, lose their power and their caches",
        "PowerCut, BothPowerCut, ambushes",
        &[PowerCutPrimary, PowerCutSecondary, PowerCutBoth, CachesLost],
    ),
    scenario(
        "H7",
        "a cold start in every order, with one missing, with a stale one first",
        "BothPowerCut, ambushes",
        &[ColdStartAlpha, ColdStartBeta, ColdStartStaleFirst, ColdStartOneMissing],
    ),
    scenario("P1", "a node is isolated", "Partition, Flap", &[IsolatedPrimary]),
    scenario("P2", "only the link between the data nodes is cut", "Partition", &[IsolatedPrimary]),
    scenario("P3", "loss in one direction", "OneWay", &[DeafPrimary, DeafSecondary]),
    scenario(
        "P5",
        "loss, delay, an MTU black hole, connections that overtake each other",
        "FrameLoss, SlowLink, BlackHole, LateConnection",
        &[
            FrameLost,
            ConnectionTimedOut,
            FrameDelayed,
            LargeFrameSwallowed,
            LateConnection,
            ConnectionsCrossed,
        ],
    ),
    scenario("P6", "a link that flaps", "Flap", &[LinkFlapped, DroppedThreeTimes, HeldBack]),
    scenario(
        "P8",
        "a partition heals in the middle of a promotion, a resync, a set change",
        "ambushes: Heal",
        &[HealedInPromotion, HealedInResync, HealedInSetChange],
    ),
    scenario(
        "D1",
        "EIO on read, write, flush and metadata, on either node, once and for a while",
        "DiskError, DeadDisk",
        &[
            WriteErrorPrimary,
            WriteErrorSecondary,
            ReadErrorPrimary,
            FlushErrorPrimary,
            FlushErrorSecondary,
            MetaErrorPrimary,
            MetaErrorSecondary,
            DiskDeadAtStart,
        ],
    ),
    scenario(
        "D2",
        "a disk hangs for longer than its peer waits",
        "HungDisk, SlowDisk, ambushes: Hang",
        &[HungPrimary, HungSecondary],
    ),
    scenario("D3", "ENOSPC", "DiskFull", &[FullPrimary, FullSecondary]),
    scenario(
        "D4",
        "metadata torn at any byte; unflushed writes lost and reordered",
        "PowerCut, ambushes",
        &[MetaTornAtSector, MetaTornInSector, CachesLost, CachesReordered],
    ),
    scenario(
        "D5",
        "metadata that rot; data that rot, found by a verify and repaired",
        "BitRot; plan, verifies",
        &[
            SuperblockRot,
            LogRot,
            BitsRot,
            DataRot,
            RotFound,
            RotRepaired,
            VerifyEnded,
            VerifyBroken,
        ],
    ),
    scenario(
        "D6",
        "swapped, cloned, re-created, restored, shrunk and grown disks",
        "ForeignDisk, NewDisk, RestoredDisk",
        &[
            SwappedDiskRefused,
            ClonedDiskRefused,
            NewDiskResynced,
            RestoredDiskResynced,
            ShrunkDiskRefused,
            GrownDiskRefused,
        ],
    ),
    scenario("D7", "a peer with a smaller disk", "ForeignDisk", &[SmallerDiskRefused]),
    scenario(
        "D8",
        "failover in the middle of a resync; what is inconsistent is not promoted",
        "ambushes at ResyncStart, Fence",
        &[FailoverInResync, InconsistentRefused],
    ),
    scenario(
        "D9",
        "death between proposal and commit, and between commit and acknowledgement",
        "ambushes at Proposed and Commit",
        &[DiedProposing, DiedCommitted],
    ),
    scenario(
        "D10",
        "source and target of a resync die, also in turn",
        "ambushes at ResyncStart: Turns",
        &[SourceDied, TargetDied, SourceAndTargetDied],
    ),
    scenario(
        "D11",
        "both lose their power with a full log",
        "BothPowerCut in wide seeds, ambushes",
        &[PowerCutFullLog],
    ),
    scenario(
        "D12",
        "a stale replica alone is refused, the last member alone serves",
        "Fence, ambushes",
        &[StaleAloneRefused, LastMemberServes],
    ),
    scenario(
        "D13",
        "a primary whose lineage was given up is refused until an operator says so",
        "ForcedPromotion",
        &[DivergedRefused, DivergedDiscarded],
    ),
    scenario("D14", "equal generations with bits set", "Reset, Kill", &[EqualGenerationsWithBits]),
    scenario(
        "D15",
        "overlapping writes in flight at a crash and during a resync",
        "Kill, PowerCut, ambushes",
        &[OverlapAtCrash, OverlapInResync],
    ),
    scenario(
        "D16",
        "trims and zeroes in flight at a crash and during a resync",
        "Kill, PowerCut, ambushes",
        &[ZeroesAtCrash, ZeroesInResync],
    ),
    scenario(
        "D17",
        "a member without power is back before anyone noticed",
        "ambushes: Doom, Flicker",
        &[BackUnnoticed],
    ),
    scenario(
        "D18",
        "the outcome of a change is unknown, then either way",
        "ambushes at Proposed",
        &[ProposalLanded, ProposalLost],
    ),
    scenario(
        "D19",
        "A to B to A to B with outages between, bitmaps on both",
        "ambushes: PingPong; Fence",
        &[FourthFailover, BitsOnBoth],
    ),
    scenario("D20", "a disk that was used without us", "ForeignUse", &[UsedWithoutUs]),
    scenario("D21", "a killed process's writes land late", "Kill with HungDisk", &[LandedLate]),
    scenario("D22", "the last member's disk fails", "DiskError, DeadDisk", &[LastDiskFailed]),
    scenario(
        "O1",
        "drift of 10 %, clocks that jump",
        "plan, ClockJump",
        &[DriftedApart, ClockJumped],
    ),
    scenario(
        "O3",
        "switchover under load; its target dies half-way",
        "Switchover, ambushes",
        &[SwitchoverUnderLoad, SwitchoverTargetDied],
    ),
    scenario("O7", "a data node is replaced", "NewDisk", &[NewDiskResynced]),
    scenario(
        "O9",
        "online grow of the volume during load and during resync, cut off in between",
        "every fourth seed's plan, ambushes: ResizeAsked, ResizeAnswered, Resized",
        &[
            GrewUnderLoad,
            GrewInResync,
            GrowthCutOff,
            FollowersSizeTakenUp,
            FollowerGrewLater,
            PrimaryMadeRoom,
            SecondaryMadeRoom,
            MoveCutOff,
        ],
    ),
    scenario(
        "R5b",
        "a client is gone while its requests are under way, and comes back",
        "ClientGone",
        &[ClientReconnected],
    ),
];

/// Those of the pair's that clusters must meet too.
const ALSO_OF_CLUSTERS: &[&str] = &[
    "D1", "D2", "D3", "D4", "D9", "D10", "D11", "D14", "D15", "D16", "D17", "D18", "D19", "D21",
    "D22", "O9",
];

/// Those that are not the pair's, or come about in another way. Of SCENARIOS.md's marked S there is
/// not here: D6, D7, D20 (drawn for pairs alone), V1 and V2 (services have a simulator of their
/// own) and O8 (ten thousand failovers in a row: a campaign has more, not in one world).
pub const SCENARIOS_OF_CLUSTERS: &[Scenario] = &[
    scenario(
        "D5",
        "data that rot, found by a verify and repaired",
        "plan, verifies",
        &[DataRot, RotFound, RotRepaired, VerifyEnded, VerifyBroken],
    ),
    // What is inconsistent is not even asked to take the office.
    scenario(
        "D8",
        "failover in the middle of a resync",
        "ambushes at ResyncStart",
        &[FailoverInResync],
    ),
    scenario(
        "H1",
        "a daemon is killed: of the primary, the secondary, a witness",
        "Kill, WitnessFalls, ambushes",
        &[KilledPrimary, KilledSecondary, WitnessKilled, AwayForLong],
    ),
    scenario(
        "H2",
        "a daemon stands still, briefly or beyond the lease",
        "Pause, WitnessPauses, HungLoop",
        &[PausedPrimary, PausedSecondary, PausedBriefly, PausedBeyondSilence, WitnessStoodStill],
    ),
    scenario(
        "H3",
        "a machine stands still for minutes, its clock too or not; an old record is restored, also \
         with the memory of then",
        "LongPause, OldRecord",
        &[MachineStoodStill, MachineSleptOn, AwayForMinutes, OldRecordRefused, OldMemory],
    ),
    scenario(
        "H4",
        "power cuts of each, of both, of all",
        "PowerCut, BothPowerCut, WitnessFalls, RegisterBack",
        &[PowerCutPrimary, PowerCutSecondary, PowerCutBoth, WitnessLostPower, AllLostPower],
    ),
    scenario(
        "H7",
        "a cold start in every order, with one missing, with a stale one first",
        "BothPowerCut, ambushes",
        &[ColdStartAlpha, ColdStartBeta, ColdStartStaleFirst, ColdStartOneMissing],
    ),
    scenario(
        "P1",
        "primary, secondary, witness are isolated",
        "Isolation",
        &[IsolatedPrimary, IsolatedSecondary, IsolatedWitness],
    ),
    scenario("P2", "only the data link is cut", "Partition", &[DataLinkCutOnly]),
    scenario(
        "P3",
        "loss in one direction",
        "OneWay, Isolation",
        &[DeafPrimary, DeafSecondary, OneWayInCluster],
    ),
    scenario(
        "P5",
        "loss, delay, a black hole, datagrams doubled and late (every seed's plan)",
        "FrameLoss, SlowLink, BlackHole, Storm",
        &[FrameLost, FrameDelayed, LargeFrameSwallowed, ManyDatagramsLost],
    ),
    scenario("P6", "a link that flaps", "Flap", &[LinkFlapped, DroppedThreeTimes, HeldBack]),
    scenario(
        "P8",
        "a partition heals in the middle of a promotion, a resync, a set change",
        "ambushes: Heal",
        &[HealedInPromotion, HealedInResync],
    ),
    scenario(
        "L1",
        "a data loop hangs; a disk, for longer",
        "HungLoop",
        &[LoopHung, DiskHungForLong],
    ),
    scenario(
        "D12",
        "the last member comes back alone with the witness and serves",
        "Kill, PowerCut",
        &[LastMemberServes],
    ),
    scenario(
        "D13",
        "a failover by force; the old primary comes back, is refused, and given up",
        "Forced",
        &[ForcedFailover, DivergedRefused, DivergedDiscarded],
    ),
    scenario("O1", "clocks that drift apart", "plan, ClockJump", &[DriftedApart]),
    scenario(
        "O3",
        "switchover under load; cancelled half-way; its target dies half-way",
        "Switchover, Orders",
        &[SwitchoverUnderLoad, SwitchoverCancelled, SwitchoverTargetDied],
    ),
    scenario(
        "O4",
        "the automation is paused and the primary dies; standby",
        "Orders",
        &[PausedAndPrimaryDied, StandbyOrdered],
    ),
    scenario("O5", "an order races a failover", "Orders, Members", &[OrderRacedFailover]),
    scenario(
        "O7",
        "a data node or witness is replaced; a witness comes, goes",
        "LostRecord, OldRecord, Members",
        &[EmptyRecordReplaced, NewDiskResynced, WitnessAdded, WitnessRemoved],
    ),
    scenario("R11c", "the register goes back", "RegisterBack", &[RegisterWentBack]),
];

/// All that are reached by pairs whose nodes fence each other.
pub const SCENARIOS_OF_FENCES: &[Scenario] = &[
    scenario(
        "F1",
        "a primary is lost, switched off for sure, and replaced",
        "Kill, PowerCut, Partition, Pause",
        &[PeerFenced, FencedTakeover],
    ),
    scenario(
        "F2",
        "a secondary is lost; the primary goes on alone when that is off",
        "Kill, PowerCut, Partition, Pause",
        &[WentOnAlone],
    ),
    scenario("F3", "a living peer without a session stands back", "Disconnect", &[PeerStoodBack]),
    scenario(
        "F4",
        "an agent does not end in its time; one lies while the node answers",
        "every seed's plan",
        &[AgentTimedOut, AgentLied],
    ),
];

/// Those of the worlds of this process.
pub fn of_this_mode() -> Vec<&'static Scenario> {
    let of_pairs = SCENARIOS.iter().filter(|it| ALSO_OF_CLUSTERS.contains(&it.id));
    match mode::mode() {
        Mode::Pair => SCENARIOS.iter().collect(),
        Mode::Cluster => SCENARIOS_OF_CLUSTERS.iter().chain(of_pairs).collect(),
        Mode::Fence => SCENARIOS_OF_FENCES.iter().collect(),
    }
}

/// Runs seeds until each occasion occurred or there are no more seeds; how often each did.
pub fn count_until_all(seeds: Range<u64>) -> BTreeMap<Occasion, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        add(&mut counts, seed);
        if missing(&counts).is_empty() {
            break;
        }
    }
    counts
}

/// Runs seeds; how often each occasion occurred.
pub fn count(seeds: Range<u64>) -> BTreeMap<Occasion, u64> {
    let mut counts = BTreeMap::new();
    seeds.for_each(|seed| add(&mut counts, seed));
    counts
}

fn add(counts: &mut BTreeMap<Occasion, u64>, seed: u64) {
    let mut world = mode::world(seed, false);
    world.run();
    for (&occasion, count) in &world.tally.occasions {
        *counts.entry(occasion).or_default() += count;
    }
}

/// Prints the table with the counts.
pub fn print(counts: &BTreeMap<Occasion, u64>) {
    for scenario in of_this_mode() {
        println!("{:4} {} [{}]", scenario.id, scenario.what, scenario.by);
        for occasion in scenario.occasions {
            let count = counts.get(occasion).copied().unwrap_or(0);
            let mark = if count == 0 { "  NEVER" } else { "" };
            println!("     {count:>8} {occasion:?}{mark}");
        }
    }
}

/// What never occurred.
pub fn missing(counts: &BTreeMap<Occasion, u64>) -> Vec<(&'static str, Occasion)> {
    let all = of_this_mode().into_iter().flat_map(|scenario| {
        scenario.occasions.iter().map(move |occasion| (scenario.id, *occasion))
    });
    all.filter(|(_, occasion)| counts.get(occasion).is_none_or(|count| *count == 0)).collect()
}

//! What really occurred in a seed, seen from outside: not that a trouble was caused, but that it
//! met the world in the state that makes the scenario (`scenarios.rs`).

use failover_core::command::Change;
use replicator_core::activity_log::{Replay, replay};
use replicator_core::limits::EXTENT_BYTES;
use replicator_core::{ClientRequest, Command, Note, Refusal};

use crate::cluster::WITNESS;
use crate::disk::{Job, Torn};
use crate::host::Failing;
use crate::world::{MS, World};

/// One thing that occurred. The names say what; `scenarios.rs` says for which scenario.
#[expect(missing_docs, reason = "the names are the description, the table has the rest")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Occasion {
    KilledPrimary,
    KilledSecondary,
    AwayForLong,
    PausedPrimary,
    PausedSecondary,
    PausedBriefly,
    PausedBeyondSilence,
    MachineStoodStill,
    MachineSleptOn,
    AwayForMinutes,
    PowerCutPrimary,
    PowerCutSecondary,
    PowerCutBoth,
    PowerCutFullLog,
    CachesLost,
    CachesReordered,
    ColdStartAlpha,
    ColdStartBeta,
    ColdStartStaleFirst,
    ColdStartOneMissing,
    IsolatedPrimary,
    DeafPrimary,
    DeafSecondary,
    FrameLost,
    ConnectionTimedOut,
    FrameDelayed,
    LargeFrameSwallowed,
    LateConnection,
    ConnectionsCrossed,
    LinkFlapped,
    DroppedThreeTimes,
    HeldBack,
    HealedInPromotion,
    HealedInResync,
    HealedInSetChange,
    WriteErrorPrimary,
    WriteErrorSecondary,
    ReadErrorPrimary,
    FlushErrorPrimary,
    FlushErrorSecondary,
    MetaErrorPrimary,
    MetaErrorSecondary,
    DiskDeadAtStart,
    HungPrimary,
    HungSecondary,
    FullPrimary,
    FullSecondary,
    MetaTornAtSector,
    MetaTornInSector,
    SuperblockRot,
    LogRot,
    BitsRot,
    DataRot,
    RotFound,
    RotRepaired,
    VerifyEnded,
    VerifyBroken,
    SwappedDiskRefused,
    ClonedDiskRefused,
    SmallerDiskRefused,
    ShrunkDiskRefused,
    GrownDiskRefused,
    NewDiskResynced,
    RestoredDiskResynced,
    FailoverInResync,
    InconsistentRefused,
    DiedProposing,
    DiedCommitted,
    SourceDied,
    TargetDied,
    SourceAndTargetDied,
    StaleAloneRefused,
    LastMemberServes,
    DivergedRefused,
    DivergedDiscarded,
    EqualGenerationsWithBits,
    OverlapAtCrash,
    OverlapInResync,
    ZeroesAtCrash,
    ZeroesInResync,
    BackUnnoticed,
    ProposalLanded,
    ProposalLost,
    FourthFailover,
    BitsOnBoth,
    UsedWithoutUs,
    LandedLate,
    LastDiskFailed,
    DriftedApart,
    ClockJumped,
    SwitchoverUnderLoad,
    SwitchoverTargetDied,
    ClientReconnected,
    GrewUnderLoad,
    GrewInResync,
    GrowthCutOff,
    FollowersSizeTakenUp,
    FollowerGrewLater,
    PrimaryMadeRoom,
    SecondaryMadeRoom,
    MoveCutOff,
    // Clusters.
    OldRecordRefused,
    OldMemory,
    EmptyRecordReplaced,
    WitnessAdded,
    WitnessRemoved,
    ForcedFailover,
    RegisterWentBack,
    PeerFenced,
    FencedTakeover,
    WentOnAlone,
    PeerStoodBack,
    AgentTimedOut,
    AgentLied,
    LoopHung,
    DiskHungForLong,
    DataLinkCutOnly,
    IsolatedWitness,
    IsolatedSecondary,
    OneWayInCluster,
    ManyDatagramsLost,
    WitnessKilled,
    WitnessLostPower,
    WitnessStoodStill,
    AllLostPower,
    PausedAndPrimaryDied,
    StandbyOrdered,
    /// An operator took a switchover back while the office was being given up.
    SwitchoverCancelled,
    OrderRacedFailover,
}

/// What must be remembered to know it.
#[derive(Debug, Default)]
pub struct Scene {
    /// The nodes of the last offices, without a node twice in a row.
    offices: Vec<usize>,
    /// When each machine lost its power last, and whether a session lived then.
    power_lost: [Option<u64>; 2],
    /// The source of the resync under way.
    source: Option<usize>,
    /// Whether source and target died since the last resync ended.
    died_in_resync: [bool; 2],
    /// When a node's last commit was made.
    committed_at: [u64; 2],
    /// When sessions were lost.
    lost_at: Vec<u64>,
    /// Nobody runs since both fell.
    is_cold: bool,
    /// The next resync of this node shows that its other disk was recognised.
    pub other_disk: [Option<Occasion>; 2],
}

impl World {
    /// Counts it.
    pub fn happened(&mut self, occasion: Occasion) {
        *self.tally.occasions.entry(occasion).or_default() += 1;
    }

    fn happened_if(&mut self, is_so: bool, occasion: Occasion) {
        if is_so {
            self.happened(occasion);
        }
    }

    pub(crate) fn happened_to(&mut self, node: usize, primary: Occasion, secondary: Occasion) {
        let serves = self.serves(node);
        self.happened(if serves { primary } else { secondary });
    }

    /// Whether a node has the device open.
    pub fn serves(&self, node: usize) -> bool {
        self.nodes[node].process.as_ref().is_some_and(|process| process.device.is_some())
    }

    fn dirty_bytes(&self, node: usize) -> u64 {
        let process = self.nodes[node].process.as_ref();
        process.map_or(0, |process| process.replica.status(self.local(node)).peers[0].dirty_bytes)
    }

    fn role(&self, node: usize) -> &'static str {
        let process = self.nodes[node].process.as_ref();
        process.map_or("", |process| process.replica.status(self.local(node)).role)
    }

    /// Whether a change of the register is on its way to a node's disk.
    pub fn is_proposing(&self, node: usize) -> bool {
        let now = self.superblock(node).register.order();
        self.nodes[node].disk.superblocks_under_way().any(|coming| coming.register.order() > now)
    }

    /// The same, also while only one of the two copies has it.
    fn is_committing(&self, node: usize) -> bool {
        let disk = &self.nodes[node].disk;
        let oldest = disk.superblocks().iter().flatten().map(|copy| copy.register.order()).min();
        disk.superblocks_under_way().any(|coming| Some(coming.register.order()) > oldest)
    }

    /// A process or machine is about to fall.
    pub fn occasions_of_fall(&mut self, node: usize, power: bool) {
        let moves = |job: &Job| matches!(job, Job::Move { .. });
        let is_moving = self.nodes[node].disk.working.values().any(|one| moves(&one.job));
        self.happened_if(is_moving, Occasion::MoveCutOff);
        use Occasion::*;
        if self.nodes[node].process.is_none() {
            return;
        }
        if power {
            self.happened_to(node, PowerCutPrimary, PowerCutSecondary);
            let session = self.nodes[node].process.as_ref().and_then(|process| process.session);
            self.scene.power_lost[node] = session.map(|_| self.now);
        } else {
            self.happened_to(node, KilledPrimary, KilledSecondary);
            let late = self.nodes[node].hung_until.max(self.nodes[node].writes_hang_until);
            let writes = |job: &Job| matches!(job, Job::Write { .. });
            let late = late > self.now + 500 * MS
                && self.nodes[node].disk.working.values().any(|one| writes(&one.job));
            self.happened_if(late, LandedLate);
        }
        let is_target = self.is_target_of_switchover(node) || self.is_wanted_elsewhere(node);
        self.happened_if(is_target, SwitchoverTargetDied);
        let is_paused =
            self.cluster.as_ref().and_then(|it| it.newest()).is_some_and(|it| it.paused);
        self.happened_if(is_paused && self.serves(node), PausedAndPrimaryDied);
        let proposing = self.is_proposing(node);
        self.happened_if(proposing, DiedProposing);
        let fresh = self.now - self.scene.committed_at[node] < 20 * MS;
        self.happened_if(fresh && !self.clients.open.is_empty(), DiedCommitted);
        if self.serves(node) {
            self.happened_if(self.clients.writes_overlap(None), OverlapAtCrash);
            self.happened_if(self.clients.zeroes_are_open(), ZeroesAtCrash);
        }
        if let Some(source) = self.scene.source.take() {
            let (source, target) = (source == node, source != node);
            self.happened(if source { SourceDied } else { TargetDied });
            self.happened_if(source, FailoverInResync);
            self.scene.died_in_resync[usize::from(target)] = true;
            let both = self.scene.died_in_resync == [true; 2];
            self.happened_if(both, SourceAndTargetDied);
        }
        if self.nodes[1 - node].process.is_none() {
            self.scene.is_cold = true;
            if power {
                self.happened(PowerCutBoth);
                let full = (0..2).any(|node| self.log_is_full(node));
                self.happened_if(full, PowerCutFullLog);
            }
        }
    }

    fn log_is_full(&self, node: usize) -> bool {
        let superblock = self.superblock(node);
        let log = self.nodes[node].disk.part(&superblock.layout().log);
        match replay(log, superblock.log_epoch, superblock.log_extents) {
            Replay::Hot(ranges) => {
                let bytes: u64 = ranges.iter().map(|range| range.length).sum();
                bytes / EXTENT_BYTES + 4 >= u64::from(superblock.log_extents)
            }
            Replay::Unreadable => false,
        }
    }

    /// A machine has lost its power: what became of its disk.
    pub fn occasions_of_loss(&mut self, node: usize, torn: Torn, before: Option<(u64, u64)>) {
        use Occasion::*;
        self.happened_if(torn.lost, CachesLost);
        self.happened_if(torn.reordered, CachesReordered);
        self.happened_if(torn.at_sector, MetaTornAtSector);
        self.happened_if(torn.in_sector, MetaTornInSector);
        if let Some(before) = before {
            let landed = self.superblock(node).register.order() > before;
            self.happened(if landed { ProposalLanded } else { ProposalLost });
        }
    }

    /// A process has started.
    pub fn occasions_of_start(&mut self, node: usize) {
        use Occasion::*;
        if std::mem::take(&mut self.scene.is_cold) {
            self.happened(if node == 0 { ColdStartAlpha } else { ColdStartBeta });
            let stale = !self.holds_everything(node);
            self.happened_if(stale, ColdStartStaleFirst);
            let missing = self.nodes[1 - node].start_at.is_none_or(|at| at > self.now + 3_000 * MS);
            self.happened_if(missing, ColdStartOneMissing);
        }
        let since = self.scene.power_lost[node].take();
        let unnoticed = since.is_some()
            && self.nodes[1 - node].process.as_ref().is_some_and(|other| other.session.is_some());
        self.happened_if(unnoticed && self.serves(1 - node), BackUnnoticed);
    }

    /// A core noted something.
    pub fn occasions_of_note(&mut self, node: usize, note: &Note) {
        use Occasion::*;
        match note {
            Note::Committed { .. } => {
                self.scene.committed_at[node] = self.now;
            }
            Note::PeerRefused { why, .. } => self.occasions_of_refusal(why),
            Note::ResyncStarted { full_because, .. } => {
                let target = 1 - node;
                let equal =
                    self.superblock(0).register.order() == self.superblock(1).register.order();
                self.happened_if(full_because.is_none() && equal, EqualGenerationsWithBits);
                if full_because.is_some()
                    && let Some(occasion) = self.scene.other_disk[target].take()
                {
                    self.happened(occasion);
                }
                self.scene.source = Some(node);
            }
            Note::PeerJoined { relation: "leads", .. } => {
                let bits = (0..2).all(|node| self.dirty_bytes(node) > 0);
                self.happened_if(bits, BitsOnBoth);
            }
            Note::HeldBack { .. } => self.happened(HeldBack),
            Note::ResyncFinished { .. } => {
                self.scene.source = None;
                self.scene.died_in_resync = [false; 2];
            }
            Note::PeerLost { .. } => {
                self.scene.source = None;
                self.scene.lost_at.push(self.now);
                let recent = self.now.saturating_sub(600_000 * MS);
                let count = self.scene.lost_at.iter().filter(|&&at| at >= recent).count();
                // Both ends note it.
                self.happened_if(count == 6, DroppedThreeTimes);
            }
            Note::DiskFailed { .. } => {
                let superblock = self.superblock(node);
                let alone = superblock.register.set.len() == 1
                    && superblock.register.contains(superblock.replica);
                let serves = self.serves(node);
                self.happened_if(alone && serves, LastDiskFailed);
            }
            _ => {}
        }
    }

    fn occasions_of_refusal(&mut self, why: &str) {
        use Occasion::*;
        self.happened_if(why.contains("carry the replica id"), ClonedDiskRefused);
        self.happened_if(why.contains("its data area has"), SmallerDiskRefused);
        self.happened_if(why.contains("the new lineage does not have"), DivergedRefused);
    }

    /// A device opens.
    pub fn occasions_of_office(&mut self, node: usize) {
        use Occasion::*;
        if self.scene.offices.last() != Some(&node) {
            self.scene.offices.push(node);
            self.happened_if(self.scene.offices.len() >= 4, FourthFailover);
        }
        let superblock = self.superblock(node);
        let alone = superblock.register.set.len() == 1
            && superblock.register.contains(superblock.replica)
            && self.nodes[1 - node].process.is_none();
        self.happened_if(alone, LastMemberServes);
        // How far the two clocks are apart in speed is fixed by the plan and by ClockJump.
        let rates = [0, 1].map(|node| self.nodes[node].clock.rate());
        self.happened_if(rates[0].abs_diff(rates[1]) >= 100, DriftedApart);
    }

    /// A seat of a cluster is cut off from the others.
    pub fn occasions_of_isolation(&mut self, seat: usize, both_ways: bool) {
        use Occasion::*;
        let primary = self.device().map(|(primary, _)| primary);
        match primary {
            _ if !both_ways => self.happened(OneWayInCluster),
            _ if seat >= WITNESS => self.happened(IsolatedWitness),
            Some(primary) if primary == seat => self.happened(IsolatedPrimary),
            Some(_) => self.happened(IsolatedSecondary),
            None => {}
        }
    }

    /// A witness falls.
    pub fn occasions_of_witness(&mut self, power: bool) {
        use Occasion::*;
        self.happened(if power { WitnessLostPower } else { WitnessKilled });
        let is_down = (0..2).all(|node| self.nodes[node].process.is_none());
        self.happened_if(power && is_down, AllLostPower);
    }

    /// The operator of a cluster gives an order.
    pub fn occasions_of_switch(&mut self, change: &Change) {
        use Occasion::*;
        let is_standby = matches!(change, Change::Standby { is_standby: true, .. });
        self.happened_if(is_standby, StandbyOrdered);
        let promoting = (0..2).any(|node| self.role(node) == "promoting");
        self.happened_if(promoting, OrderRacedFailover);
    }

    /// The operator gives an order.
    pub fn occasions_of_order(&mut self, command: Command) {
        let loaded = !self.clients.open.is_empty();
        self.happened_if(command == Command::Demote && loaded, Occasion::SwitchoverUnderLoad);
    }

    /// A core has answered the operator.
    pub fn occasions_of_answer(
        &mut self,
        node: usize,
        command: Command,
        refusal: Option<&Refusal>,
    ) {
        use Occasion::*;
        match (command, refusal) {
            (Command::Promote { .. }, Some(refusal)) if refusal.code == "not_up_to_date" => {
                let superblock = self.superblock(node);
                self.happened_if(superblock.syncing, InconsistentRefused);
                let alone = self.nodes[1 - node].process.is_none();
                let stale = !superblock.register.contains(superblock.replica);
                self.happened_if(alone && stale, StaleAloneRefused);
            }
            (Command::DiscardDiverged, None) => self.happened(DivergedDiscarded),
            _ => {}
        }
    }

    /// A disk operation is going to fail.
    pub fn occasions_of_error(&mut self, node: usize, failing: Failing) {
        use Occasion::*;
        let (primary, secondary) = match failing {
            Failing::Write => (WriteErrorPrimary, WriteErrorSecondary),
            // Who does not serve reads nothing.
            Failing::Read => (ReadErrorPrimary, ReadErrorPrimary),
            Failing::Flush => (FlushErrorPrimary, FlushErrorSecondary),
            Failing::Meta => (MetaErrorPrimary, MetaErrorSecondary),
            Failing::Space => (FullPrimary, FullSecondary),
            Failing::Everything => return,
        };
        self.happened_to(node, primary, secondary);
    }

    /// An operation begins on a disk that hangs.
    pub fn occasions_of_hang(&mut self, node: usize, delay: u64) {
        if delay > self.plan.timing.ack_limit.0 {
            self.happened_to(node, Occasion::HungPrimary, Occasion::HungSecondary);
        }
    }

    /// A process stands still from now on.
    pub fn occasions_of_pause(&mut self, node: usize, length: u64) {
        use Occasion::*;
        if self.nodes[node].process.is_none() {
            return;
        }
        self.happened_to(node, PausedPrimary, PausedSecondary);
        let brief = length < self.plan.timing.peer_silence.0;
        self.happened(if brief { PausedBriefly } else { PausedBeyondSilence });
        self.happened_if(length >= 60_000 * MS, AwayForMinutes);
    }

    /// A partition begins; `deaf` is the node that hears nothing, or both.
    pub fn occasions_of_cut(&mut self, deaf: Option<usize>) {
        use Occasion::*;
        let Some((primary, _)) = self.device() else { return };
        let stands = self.nodes[primary].process.as_ref().is_some_and(|p| p.session.is_some());
        if !stands {
            return;
        }
        match deaf {
            None => self.happened(IsolatedPrimary),
            Some(node) if node == primary => self.happened(DeafPrimary),
            Some(_) => self.happened(DeafSecondary),
        }
    }

    /// A cut heals before anybody thought that it was over.
    pub fn occasions_of_healing(&mut self) {
        use Occasion::*;
        let promoting = (0..2).any(|node| self.role(node) == "promoting");
        self.happened_if(promoting, HealedInPromotion);
        let resync = self.scene.source.is_some();
        self.happened_if(resync, HealedInResync);
        let change = (0..2).any(|node| self.serves(node) && self.is_committing(node));
        self.happened_if(change, HealedInSetChange);
    }

    /// A client's request is made.
    pub fn occasions_of_request(&mut self, node: usize, what: &ClientRequest) {
        use Occasion::*;
        let (range, zeroes) = match *what {
            ClientRequest::Write { range, .. } => (range, false),
            ClientRequest::Trim { range, .. } | ClientRequest::WriteZeroes { range, .. } => {
                (range, true)
            }
            _ => return,
        };
        let overlaps = self.clients.writes_overlap(Some(range));
        if (zeroes || overlaps) && self.scene.source == Some(node) {
            self.happened(if zeroes { ZeroesInResync } else { OverlapInResync });
        }
    }
}

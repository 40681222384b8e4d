//! Deliberate defects, one for each rule: the proof that the simulator can fail. Without the
//! feature `defects` (a shipping build has none) every question here is `false` at compile time.

macro_rules! defects {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Defect {
            $($(#[$doc])* $name,)*
        }

        /// All of them.
        pub const DEFECTS: &[Defect] = &[$(Defect::$name,)*];
    };
}

defects! {
    /// R1: acknowledges though a member is missing.
    AckWithoutMember,
    /// R1: acknowledges before the own disk has the write.
    AckBeforeOwnDisk,
    /// R1: a secondary removes a member that it lost.
    SecondaryProposes,
    /// R2a: a follower is ready before the tenure is durable.
    TenureNotDurable,
    /// R2b: a taker still applies what it had of the old primary's writes.
    TakerStillApplies,
    /// R2c: a promotion does not wait for the old leader's writes.
    NoDrainAtPromotion,
    /// R2c: a promotion keeps the old sessions.
    SessionsKeptAtPromotion,
    /// R2c: the device opens before the tenure is durable.
    ServesBeforeDurable,
    /// R2c: a promotion does not flush.
    NoFlushAtPromotion,
    /// R2d: a new session begins before the writes of the old one have ended.
    SessionOverOldWrites,
    /// R2d: a greeting counts before its sender has said that it still holds.
    GreetingNotConfirmed,
    /// R3: acknowledges while the removal of a member is only proposed.
    AckWhileRemovalProposed,
    /// R3: what was sent and not acknowledged is not dirty when the peer is lost.
    OutstandingForgotten,
    /// R3, R9: a write does not wait until it is durable that an absent peer may lack it.
    BitAfterAck,
    /// R3: a primary whose disk failed leaves before the heir has flushed.
    HeirNotFlushed,
    /// R3: no flush of the own disk before a member is removed.
    NoFlushAtShrink,
    /// R4a: joins while frames are outstanding.
    JoinWithFramesOut,
    /// R4b: a write during a resync is not required of a joining peer.
    JoiningNotRequired,
    /// R4c: no flush before a peer joins.
    GrowWithoutFlush,
    /// R4d: the coming generation is not recorded.
    ComingNotRecorded,
    /// R4e: an unknown outcome of a growth counts as failed.
    UnknownOutcomeIsFailed,
    /// R4f: resync reads over live writes.
    ResyncOverLiveWrite,
    /// R5a: reads are answered without a lease.
    LeaseIgnoredForReads,
    /// R5a: writes are acknowledged without a lease.
    LeaseIgnoredForAcks,
    /// R5d: a sole primary that may live is replaced by force.
    SoleIgnored,
    /// R2c: a new primary serves before it has a lease.
    ServesBeforeLease,
    /// R3, R6c: a proposal without a decision counts as failed after a while.
    UndecidedIsFailed,
    /// R11c: a register that went back is followed.
    RegisterMayGoBack,
    /// R14: peers are met before the register is known.
    RegisterNotAwaited,
    /// R5e: a read is answered before the members have answered to an echo.
    ReadsNotConfirmed,
    /// R5b: a read does not wait for a write in flight.
    ReadOfWriteInFlight,
    /// R5c: the set is kept by a new process, which reads hot extents.
    ReadOfHotExtent,
    /// R6a: a primary resumes after its machine lost its power.
    ResumeAfterPowerLoss,
    /// R6a: an office goes on in a new process without a new generation.
    ResumeWithoutCommit,
    /// R6b: the set is kept at a takeover.
    SetKeptAtTakeover,
    /// R6c, L4: a release does not wait for the requests, which are served on.
    ReleaseWithoutDrain,
    /// R6c: a release does not flush.
    ReleaseWithoutFlush,
    /// R6c: a release leaves the log as it is.
    ReleaseKeepsLog,
    /// R6c: a release follows a flush that failed.
    ReleaseAfterFailedFlush,
    /// R7: a flush covers the own disk only.
    FlushOfOneSide,
    /// R7: FUA is not passed on.
    FuaOfOneSide,
    /// R7: a follower's flush overtakes the writes before it.
    FlushOvertakesWrites,
    /// R8: what a peer acknowledged and may have lost is forgotten.
    VolatileForgotten,
    /// R8: a member stays one though its incarnation changed.
    MemberKeptAfterRestart,
    /// R9: no log block before the write.
    NoLogBeforeWrite,
    /// R9: an extent leaves without durable bits.
    EvictWithoutBits,
    /// R9: an extent leaves without a flush.
    EvictWithoutFlush,
    /// R9, R14: hot extents are forgotten by a new process.
    HotForgottenAtStart,
    /// R9: the bits of hot extents are not durable before the log begins anew.
    BitsNotDurableAtStart,
    /// R9: hot extents are forgotten after being deposed.
    HotForgottenWhenDeposed,
    /// R10: a bit is cleared before the block is durable.
    ClearedBeforeDurable,
    /// R10: a block written without a peer gets no bit.
    BitNotSet,
    /// R10: "no resync needed" though bits are set.
    CurrentWithBits,
    /// R10: a verify compares a range while it is written.
    VerifyOverLiveWrite,
    /// R10: the blocks of a repair get no bits.
    RepairWithoutBits,
    /// R8: a member that is to be repaired stays one.
    RepairedMemberStays,
    /// R11a: a replica that is not a member is promoted.
    StalePromoted,
    /// R11a: a member that lost its power does not wait for the other.
    NoPowerLossWait,
    /// R11d: a diverged replica is not refused.
    DivergedAccepted,
    /// R12: the older superblock copy counts.
    OlderCopyTrusted,
    /// R12: an update writes one copy only.
    OneCopyWritten,
    /// R12: a replica at a peer's place is taken for the one that was there.
    IdentityNotCompared,
    /// R12: the clean mark stays after the start.
    CleanMarkStays,
    /// R12: a changed fingerprint is ignored.
    FingerprintIgnored,
    /// R13: the follower's bits do not count.
    NoUnionOfBits,
    /// R13: a bitmap with another base is trusted.
    StaleBase,
    /// R13: the bitmap keeps its base when both become members.
    BaseKeptAtGrowth,
    /// R13: an unfinished resync is forgotten.
    SyncingForgotten,
    /// R13: a follower does not keep a log of its own.
    NoMirror,
    /// R13: a follower forgets what was hot under the old leader.
    MirrorForgotten,
    /// R13: a follower does not mark what it applies for those outside the set.
    BitNotSetByFollower,
    /// R13: a follower gets blocks of a resync without marking them for the others.
    ResyncNotMarked,
    /// R13: the bitmaps between two followers keep their base when both become members.
    BaseKeptByFollower,
    /// R14: a new process speaks before its own open proposal is settled.
    OpenProposalNotSettled,
    /// R2e: a new process opens a disk on which writes of the old one are still to land. That is
    /// the driver's duty: the simulator's stand-in asks for it.
    OldWritesNotAwaited,
    /// R2f, R15: requests of a closed device go on.
    OldInstanceGoesOn,
    /// R11b: a resource of which nobody named the origin is served.
    OriginNotNeeded,
    /// R16: a primary hands over to a peer that is not up to date.
    LastMemberDetaches,
    /// R16: a write that failed is acknowledged.
    FailedWriteAcknowledged,
    /// No witness: a member leaves the set though it may take over and is not off.
    LeavesUnfenced,
    /// No witness: a promise to stand back is not kept.
    PromiseNotKept,
    /// P6: the drops of a peer are not counted.
    DropNotCounted,
    /// P6: a peer that is held back stays so.
    HeldBackForEver,
    /// R17: a trim is done on one side.
    TrimOnOneSide,
    /// R17: a long zeroing is done at once.
    ZeroesNotSliced,
    /// Resize: clients see the new end before every member has it.
    ResizedBeforeMembers,
    /// Resize: a follower says that it has the new end before that is durable.
    ResizedBeforeDurable,
    /// Resize: a release does not wait until all members have one size.
    ReleasedWhileResizing,
    /// Resize: what peers lack is forgotten.
    BitsLostByResize,
    /// Resize: what was added to the disk counts as zeroes.
    RoomNotZeroed,
    /// Resize: room counts before its zeroes are durable.
    RoomNotFlushed,
    /// Resize: metadata are written while they move.
    MovedWhileWritten,
    /// Overlapping writes run together on the primary.
    OverlapOnPrimary,
    /// Overlapping writes run together on the secondary.
    OverlapOnSecondary,
}

#[cfg(feature = "defects")]
static ACTIVE: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(usize::MAX);

/// Breaks one rule from now on, in the whole process.
#[cfg(feature = "defects")]
pub fn switch_on(defect: Defect) {
    ACTIVE.store(defect as usize, core::sync::atomic::Ordering::Relaxed);
}

/// Whether a driver is to break its part of a rule.
pub fn is_switched_on(which: Defect) -> bool {
    defect(which)
}

/// Whether a rule is broken on purpose.
#[cfg(feature = "defects")]
pub(crate) fn defect(which: Defect) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == which as usize
}

/// Whether a rule is broken on purpose: never, in this build.
#[cfg(not(feature = "defects"))]
pub(crate) const fn defect(_: Defect) -> bool {
    false
}

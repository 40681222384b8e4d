//! Deliberate defects: the proof that the models and the simulator can fail. Without the feature
//! `defects` (a shipping build has none) every question here is `false` at compile time.

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
    /// Paxos: a restarted acceptor has forgotten its promise.
    PromiseForgotten,
    /// Paxos: a restarted acceptor has forgotten what it accepted.
    AcceptForgotten,
    /// Paxos: the highest accepted value of the promises is not the base of the proposal.
    HighestValueIgnored,
    /// L1: the lease is renewed for a data loop that hangs.
    ProgressIgnored,
    /// L2: a takeover is promised although the lease runs.
    PrepareIgnoresLease,
    /// L2: the lease is not checked again at the accept.
    AcceptIgnoresLease,
    /// L2: a takeover that a read finds is repeated in the name of the reader.
    RepeatInOwnName,
    /// L3: a renewal is granted although the accepted value names somebody else.
    GrantAfterTakeover,
    /// L3: the lease counts from the reply.
    LeaseFromReply,
    /// L3: the newest request counts, not the oldest that makes the majority.
    LeaseFromNewest,
    /// L3: a lease is granted for an office that a crash of the acceptor would make it forget.
    GrantBeforeDurable,
    /// L3: a grant that a former process of the holder asked for counts for the next one.
    FormerGrantCounts,
    /// L3: a grant counts for the lease the holder knows, not for the one the acceptor promised.
    GrantWithoutTerm,
    /// L4: the holder keeps its lease as long as the acceptors.
    HolderKeepsTooLong,
    /// L5: a restarted acceptor does not wait.
    RestartWithoutWait,
    /// L5: a new acceptor does not wait.
    NewAcceptorWithoutWait,
    /// L7: the new acceptor waits when the voters begin to change, not when the change ends.
    NewAcceptorWaitsOnce,
    /// L7: a lease is granted to a holder that does not know the present voters.
    GrantToUninformed,
    /// L5: an acceptor that lost its record votes.
    EmptyRecordVotes,
    /// L5: an acceptor that came back with an old copy of its record votes.
    OldRecordVotes,
    /// L5: an acceptor that was found out to be an old copy has forgotten that after a restart.
    OldCopyForgotten,
    /// L5: an acceptor that starts follows others before they said what they know of its record.
    StrangersFollowed,
    /// L5: a process that names less of its record than it did counts.
    NamesLessCounts,
    /// L5: a process of an old copy counts as new when others tell how far it has come.
    GossipMakesNewer,
    /// L5: an old copy still gives the answers that wait for its disk.
    OldCopyAnswers,
    /// L5: a process that went back with its memory goes on.
    WentBackGoesOn,
    /// L5: a restarted acceptor waits for the lease that the register has now.
    LongerLeaseForgotten,
    /// L6: a takeover is begun while a lease runs.
    TakeoverWhileLeaseRuns,
    /// L7: two voters change at once.
    TwoAtATime,
    /// L7: a change of the voters needs a majority of the new ones only.
    NewMajorityOnly,
    /// A change whose outcome is open is made again although it may have been made and undone.
    OpenChangeRepeated,
    /// R5d: a takeover ignores a sole holder.
    SoleIgnored,
    /// R5d: acceptors judge by what they have accepted whether an office without end is over.
    SoleJudgedByAcceptors,
    /// R5d: a sole holder keeps its office without end while its own next change is open.
    SoleKeptWhileChanging,
    /// No witness: a lost peer counts as off before anything was confirmed.
    FenceNotAwaited,
    /// No witness: an agent is believed though its node accepts connections, or was heard.
    FenceLieBelieved,
    /// No witness: a fence that was confirmed once counts when the peer is lost again.
    OldFenceCounts,
    /// R14: what the own record has is taken for committed, and for the newest, at the start.
    RecordTrustedAtStart,
    /// etcd: an office is taken before its lease key was seen unchanged for long enough.
    EtcdTakenUnwatched,
    /// etcd: a lease key counts as unchanged from the time at which the read was sent.
    EtcdSeenWhenSent,
    /// etcd: a takeover does not compare the revision of the holder's lease key.
    EtcdLeaseNotCompared,
    /// etcd: a lease key is renewed although the state may name somebody else.
    EtcdRenewalUnguarded,
    /// etcd: a transaction whose outcome is not known counts as not done.
    EtcdUnknownIsFailed,
    /// etcd, R14: after a start the state is only read, and what a former process sent may come.
    EtcdSettledByRead,
}

/// Those of a register that is kept by etcd; `tests/etcd` finds them.
pub const ETCD_DEFECTS: &[Defect] = &[
    Defect::EtcdTakenUnwatched,
    Defect::EtcdSeenWhenSent,
    Defect::EtcdLeaseNotCompared,
    Defect::EtcdRenewalUnguarded,
    Defect::EtcdUnknownIsFailed,
    Defect::EtcdSettledByRead,
];

/// Those that need a few messages in one order; the stories of `tests/cluster` find them.
pub const DEFECTS_OF_STORIES: &[Defect] = &[
    Defect::StrangersFollowed,
    Defect::NamesLessCounts,
    Defect::GossipMakesNewer,
    Defect::OldCopyAnswers,
    Defect::WentBackGoesOn,
    Defect::LongerLeaseForgotten,
];

#[cfg(feature = "defects")]
static ACTIVE: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(usize::MAX);

/// Breaks one rule from now on, in the whole process.
#[cfg(feature = "defects")]
pub fn switch_on(defect: Defect) {
    ACTIVE.store(defect as usize, core::sync::atomic::Ordering::Relaxed);
}

/// Mends all rules again.
#[cfg(feature = "defects")]
pub fn switch_off() {
    ACTIVE.store(usize::MAX, core::sync::atomic::Ordering::Relaxed);
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

//! What two replicas are to each other when they meet: one pure function of the two greetings.
//!
//! | their register is | I am primary | they are primary | neither |
//! |---|---|---|---|
//! | older or equal | I lead | they must step down first | we are idle |
//! | newer | I am deposed | I follow | idle, and I take over their register |
//!
//! Before that a pair is refused that cannot replicate at all, or whose data diverged (R11d).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use crate::block::ReplicaId;
use crate::defect::{Defect, defect};
use crate::metadata::PeerRecord;
use crate::register::RegisterState;
use crate::wire::Hello;

/// What a peer is to this replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Relation {
    /// This replica is primary, the peer follows it.
    Lead,
    /// The peer is primary, this replica follows it.
    Follow,
    /// Neither is primary; `adopt` when the peer's register is newer.
    Idle {
        /// Take over the peer's register copy.
        adopt: bool,
    },
    /// The peer knows that this replica's office was taken (R2, R11d).
    Deposed,
    /// The peer is still primary though its office was taken: it steps down on reading the same
    /// greetings. Meet again after that.
    Wait,
    /// They cannot replicate.
    Refuse {
        /// Which of the reasons.
        cause: Cause,
        /// In words, for both sides' status.
        reason: Box<str>,
        /// Whose data diverged, if that is the reason.
        diverged: Option<Diverged>,
    },
}

/// Why two replicas cannot replicate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Their metadata belong to two resources.
    OtherResource,
    /// One disk is a copy of the other.
    OneId,
    /// Their data areas differ in size.
    Sizes,
    /// Their block sizes differ.
    BlockSizes,
    /// The peer sent impossible values.
    Impossible,
    /// Two different registers have one generation.
    TwoRegisters,
    /// Writes of a lineage that was given up (R11d).
    Diverged,
    /// The disk of one of them failed, and the other is primary.
    NoDisk,
    /// The peer claims an office that its register gives to somebody else (R2a).
    FalseClaim,
}

/// Whose data are not those of the newer lineage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Diverged {
    /// This replica's.
    Mine,
    /// The peer's.
    Theirs,
}

/// Decides from the two greetings.
pub fn relation(mine: &Hello, theirs: &Hello) -> Relation {
    let refuse = |cause, reason| Relation::Refuse { cause, reason, diverged: None };
    if let Some((cause, reason)) = mismatch(mine, theirs) {
        return refuse(cause, reason);
    }
    let (me, they) = (mine.register.order(), theirs.register.order());
    if me == they && mine.register != theirs.register {
        let reason = format!(
            "two different registers have generation {} of lineage {}; decide which replica is \
             right and overwrite the other: replctl resync --discard",
            me.1, me.0
        );
        return refuse(Cause::TwoRegisters, reason.into());
    }
    if me < they && has_diverged(mine, theirs) {
        return diverged(mine.is_primary, Diverged::Mine);
    }
    if they < me && has_diverged(theirs, mine) {
        return diverged(false, Diverged::Theirs);
    }
    if !mine.has_disk || !theirs.has_disk {
        // Without a disk there is no copy, but the register may have to be handed over (R16).
        if !mine.is_primary && !theirs.is_primary {
            return Relation::Idle { adopt: me < they };
        }
        let reason = if mine.has_disk { "its disk failed" } else { "this replica's disk failed" };
        return refuse(Cause::NoDisk, reason.into());
    }
    // R2a: only whom the register names may lead.
    if theirs.is_primary && theirs.register.primary != Some(theirs.replica) {
        let reason = "it claims an office that its own register does not give it";
        return refuse(Cause::FalseClaim, reason.into());
    }
    match (mine.is_primary, theirs.is_primary, me < they) {
        (true, _, true) => Relation::Deposed,
        (true, false, false) => Relation::Lead,
        (false, true, true) => Relation::Follow,
        // Equal registers name one primary: the peer, which may have been slow to tell.
        (false, true, false) if me == they => Relation::Follow,
        (_, true, false) => Relation::Wait,
        (false, false, adopt) => Relation::Idle { adopt },
    }
}

fn diverged(still_primary: bool, whose: Diverged) -> Relation {
    if still_primary {
        return Relation::Deposed;
    }
    let reason = match whose {
        Diverged::Mine => "this replica has writes that the new lineage does not have",
        Diverged::Theirs => "it has writes that the new lineage does not have",
    };
    Relation::Refuse { cause: Cause::Diverged, reason: reason.into(), diverged: Some(whose) }
}

/// R11d: whether the replica with the older register may hold acknowledged writes that the newer
/// lineage does not have. It cannot, when the taker was a member and the older register still says
/// so: then nothing was ever acknowledged without the taker.
fn has_diverged(older: &Hello, newer: &Hello) -> bool {
    let gave_up = older.discard_diverged;
    has_other_writes(&older.register, older.replica, gave_up, &newer.register, newer.replica)
}

/// The same of two registers, the replica that has the older one, whether its data were given up,
/// and the taker of the newer lineage.
pub(crate) fn has_other_writes(
    older: &RegisterState,
    holder: ReplicaId,
    gave_up: bool,
    newer: &RegisterState,
    taker: ReplicaId,
) -> bool {
    if defect(Defect::DivergedAccepted) {
        return false;
    }
    let lineages = newer.basis.lineage.saturating_sub(older.basis.lineage);
    let continued = lineages == 1 && newer.basis.taker_was_member && older.contains(taker);
    lineages > 0 && !continued && !gave_up && older.contains(holder)
}

/// Whether this replica's data are not those of the peer's newer lineage.
pub fn diverged_from(mine: &Hello, theirs: &Hello) -> bool {
    mine.register.order() < theirs.register.order() && has_diverged(mine, theirs)
}

fn mismatch(mine: &Hello, theirs: &Hello) -> Option<(Cause, Box<str>)> {
    let (cause, text) = if mine.resource_id != theirs.resource_id {
        let text =
            "its metadata belong to another resource of the same name; create one of the two anew";
        (Cause::OtherResource, text.into())
    } else if mine.replica == theirs.replica {
        let text = format!(
            "both disks carry the replica id {:032x}: one is a copy of the other; create the \
             copy anew with replctl create --force",
            mine.replica.0
        );
        (Cause::OneId, text)
    } else if !may_have_one_size(mine, theirs) {
        (Cause::Sizes, sizes_differ(mine, theirs))
    } else if mine.block_bytes != theirs.block_bytes {
        let text = format!(
            "its block size is {} bytes, this one's {}; create both with --block-size {}",
            theirs.block_bytes,
            mine.block_bytes,
            mine.block_bytes.max(theirs.block_bytes)
        );
        (Cause::BlockSizes, text)
    } else if theirs.replica == ReplicaId::NONE
        || theirs.register.set.len() > crate::limits::PEERS_MAX
            && !theirs.register.contains(mine.replica)
    {
        (Cause::Impossible, "it sent impossible values".into())
    } else {
        return None;
    };
    Some((cause, text.into()))
}

/// The smaller one can grow to the size of the larger one.
fn may_have_one_size(mine: &Hello, theirs: &Hello) -> bool {
    mine.size_bytes == theirs.size_bytes
        || mine.room_bytes.min(theirs.room_bytes) >= mine.size_bytes.max(theirs.size_bytes)
}

fn sizes_differ(mine: &Hello, theirs: &Hello) -> String {
    let sizes = (theirs.size_bytes, mine.size_bytes);
    let (smaller, room, larger) = match sizes.0 < sizes.1 {
        true => ("its", theirs.room_bytes, sizes.1),
        false => ("this one's", mine.room_bytes, sizes.0),
    };
    let how = match room {
        0 => "it runs a build that cannot grow a volume: upgrade it".into(),
        _ => format!("extend {smaller} disk to hold {larger} bytes: replctl resize --help"),
    };
    format!(
        "its data area has {} bytes, this one {}; {how}; or, if the larger one holds nothing yet, \
         create it anew with --size {}",
        sizes.0,
        sizes.1,
        sizes.0.min(sizes.1)
    )
}

/// How a follower is brought up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// It is a member and lacks nothing.
    Current,
    /// Only what the bitmaps say.
    Partial,
    /// Everything, for this reason.
    Full(&'static str),
}

/// R13: a partial resync only if both bitmaps name the same generation at which they were last
/// empty and both know each other's replica. `known` is what the leader remembers of it.
pub fn plan(leader: &Hello, follower: &Hello, known: &PeerRecord, dirty_blocks: u64) -> Plan {
    let met = known.replica;
    let base = follower_base(leader, follower);
    let both_new = met == ReplicaId::NONE && follower.knows_you_as == ReplicaId::NONE;
    let assumed = both_new && leader.assumed_equal && follower.assumed_equal && base == 1;
    if follower.invalid {
        Plan::Full("its data were declared bad, or were changed without us")
    } else if met != follower.replica && !assumed && !defect(Defect::IdentityNotCompared) {
        Plan::Full("it is a new replica")
    } else if met == follower.replica && follower.started_from < known.floor {
        Plan::Full("its disk was restored from an older copy")
    } else if follower.knows_you_as != leader.replica
        && !assumed
        && !defect(Defect::IdentityNotCompared)
    {
        Plan::Full("it does not know this replica")
    } else if (base == 0 || base != leader.base)
        && !(defect(Defect::StaleBase) || defect(Defect::IdentityNotCompared))
    {
        Plan::Full("its bitmap does not continue this one's")
    } else if (dirty_blocks == 0 || defect(Defect::CurrentWithBits))
        && follower.size_bytes >= leader.size_bytes
        && !follower.syncing
        && leader.register.member(follower.replica).is_some_and(|member| {
            member.incarnation == follower.incarnation || defect(Defect::MemberKeptAfterRestart)
        })
    {
        Plan::Current
    } else {
        Plan::Partial
    }
}

/// The generation at which the follower's bitmap for the leader was last empty. A commit it was
/// told to expect and that the leader made counts as known.
pub fn follower_base(leader: &Hello, follower: &Hello) -> u64 {
    if joined_unknowingly(leader, follower) { follower.coming } else { follower.base }
}

/// Whether the follower became a member in the generation it was told to expect, without having
/// heard of the commit (R4d, R4e).
pub fn joined_unknowingly(leader: &Hello, follower: &Hello) -> bool {
    follower.coming != 0
        && follower.coming == leader.base
        && follower.knows_you_as == leader.replica
}

/// R11a: whether the peer may hold what this replica lost. It does not when its data are bad, or
/// of different times because a resync was not finished; a replica that became a member without
/// hearing of it finished its own.
pub fn may_hold_more(mine: &Hello, theirs: &Hello) -> bool {
    !theirs.invalid && (!theirs.syncing || joined_unknowingly(mine, theirs))
}

/// R12: the peer's register names this replica a member, and what this disk remembers does not
/// lead there: it was restored from a copy that is older than the membership.
pub fn is_not_who_joined(theirs: &Hello, mine: &Hello) -> bool {
    theirs.register.contains(mine.replica)
        && (mine.knows_you_as != theirs.replica || follower_base(theirs, mine) != theirs.base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Incarnation;
    use crate::register::Basis;

    const ALPHA: ReplicaId = ReplicaId(1);
    const BETA: ReplicaId = ReplicaId(2);
    const BOOT: Incarnation = Incarnation(7);

    fn register(generation: u64, members: &[ReplicaId]) -> RegisterState {
        let mut state = RegisterState::default();
        for &member in members {
            state = state.with(member, BOOT);
        }
        state.generation = generation;
        state
    }

    fn hello(replica: ReplicaId, register: RegisterState) -> Hello {
        Hello { replica, incarnation: BOOT, has_disk: true, register, base: 5, ..Hello::default() }
    }

    fn forced(mut register: RegisterState, taker_was_member: bool) -> RegisterState {
        register.basis = Basis { lineage: 1, taker_was_member };
        register.primary = Some(BETA);
        register
    }

    fn meet(old: RegisterState, new: RegisterState) -> Relation {
        let mine = hello(ALPHA, old);
        let theirs = Hello { is_primary: true, ..hello(BETA, new) };
        relation(&mine, &theirs)
    }

    #[test]
    fn an_old_primary_whose_taker_was_a_member_follows() {
        let new = forced(register(9, &[BETA]), true);
        assert_eq!(meet(register(8, &[ALPHA, BETA]), new), Relation::Follow);
    }

    #[test]
    fn an_old_primary_that_went_on_alone_is_refused_whatever_its_generation() {
        for generation in [8, 9, 10, 11] {
            let new = forced(register(10, &[BETA]), true);
            let relation = meet(register(generation, &[ALPHA]), new);
            let diverged = Some(Diverged::Mine);
            assert!(
                matches!(&relation, Relation::Refuse { diverged: d, .. } if *d == diverged),
                "generation {generation}: {relation:?}"
            );
        }
    }

    #[test]
    fn a_taker_that_was_no_member_makes_every_old_member_diverged() {
        let new = forced(register(9, &[BETA]), false);
        let relation = meet(register(8, &[ALPHA, BETA]), new);
        assert!(matches!(relation, Relation::Refuse { diverged: Some(Diverged::Mine), .. }));
    }

    #[test]
    fn what_an_operator_gave_up_is_no_longer_in_the_way() {
        let mine = Hello { discard_diverged: true, ..hello(ALPHA, register(11, &[ALPHA])) };
        let new = forced(register(10, &[BETA]), true);
        let theirs = Hello { is_primary: true, ..hello(BETA, new) };
        assert_eq!(relation(&mine, &theirs), Relation::Follow);
    }

    #[test]
    fn a_failed_disk_hands_the_register_over_but_neither_leads_nor_follows() {
        let mine = Hello { has_disk: false, ..hello(ALPHA, register(9, &[BETA])) };
        let theirs = hello(BETA, register(8, &[ALPHA, BETA]));
        assert_eq!(relation(&theirs, &mine), Relation::Idle { adopt: true });
        let theirs = Hello { is_primary: true, ..theirs };
        assert!(matches!(relation(&mine, &theirs), Relation::Refuse { diverged: None, .. }));
    }

    #[test]
    fn data_of_different_times_are_not_waited_for() {
        let mine = hello(ALPHA, register(8, &[ALPHA, BETA]));
        let theirs = Hello { knows_you_as: ALPHA, ..hello(BETA, register(8, &[ALPHA, BETA])) };
        assert!(may_hold_more(&mine, &theirs));
        assert!(!may_hold_more(&mine, &Hello { invalid: true, ..theirs.clone() }));
        let unfinished = Hello { syncing: true, base: 3, ..theirs };
        assert!(!may_hold_more(&mine, &unfinished));
        assert!(may_hold_more(&mine, &Hello { coming: 5, ..unfinished }), "it finished and joined");
    }

    #[test]
    fn a_member_whose_disk_does_not_remember_the_join_is_another_one() {
        let theirs = hello(ALPHA, register(8, &[ALPHA, BETA]));
        let mine = Hello { knows_you_as: ALPHA, ..hello(BETA, register(6, &[ALPHA, BETA])) };
        assert!(!is_not_who_joined(&theirs, &mine), "a member since generation 5");
        let older = Hello { base: 3, ..mine.clone() };
        assert!(is_not_who_joined(&theirs, &older), "a member of generation 3");
        let told = Hello { coming: 5, ..older.clone() };
        assert!(!is_not_who_joined(&theirs, &told), "it was told to expect the join");
        let new = Hello { knows_you_as: ReplicaId::NONE, base: 0, ..mine };
        assert!(is_not_who_joined(&theirs, &new), "it never met the peer");
        let outside = hello(ALPHA, register(8, &[ALPHA]));
        assert!(!is_not_who_joined(&outside, &older), "it is no member");
    }

    #[test]
    fn a_resync_is_partial_only_when_nothing_speaks_against_it() {
        let leader = Hello { is_primary: true, ..hello(ALPHA, register(8, &[ALPHA])) };
        let follower = Hello {
            knows_you_as: ALPHA,
            started_from: 40,
            ..hello(BETA, RegisterState::default())
        };
        let known = PeerRecord { replica: BETA, base: 5, floor: 40, ..PeerRecord::default() };
        assert_eq!(plan(&leader, &follower, &known, 3), Plan::Partial);
        let full = |follower: Hello, known: &PeerRecord| {
            matches!(plan(&leader, &follower, known, 0), Plan::Full(_))
        };
        assert!(full(Hello { base: 4, ..follower.clone() }, &known), "another base");
        assert!(full(Hello { invalid: true, ..follower.clone() }, &known), "bad data");
        assert!(full(Hello { replica: ReplicaId(3), ..follower.clone() }, &known), "new disk");
        assert!(full(Hello { knows_you_as: BETA, ..follower.clone() }, &known), "new leader");
        let left = PeerRecord { floor: 41, ..known };
        assert!(full(follower, &left), "restored from a copy made before it left");
    }

    #[test]
    fn sizes_may_differ_where_the_smaller_one_has_room() {
        let sized = |replica, size_bytes, room_bytes| Hello {
            size_bytes,
            room_bytes,
            ..hello(replica, register(8, &[ALPHA, BETA]))
        };
        let primary = |hello: Hello| {
            let mut register = hello.register.clone();
            register.primary = Some(hello.replica);
            register.generation += 1;
            Hello { is_primary: true, register, ..hello }
        };
        let verdict = |mine: &Hello, theirs: &Hello| match relation(mine, theirs) {
            Relation::Refuse { cause, reason, .. } => Err((cause, reason)),
            other => Ok(other),
        };
        let small = sized(BETA, 10, 20);
        let large = primary(sized(ALPHA, 20, 20));
        assert_eq!(verdict(&large, &small), Ok(Relation::Lead));
        assert_eq!(relation(&small, &large), Relation::Follow);
        assert_eq!(relation(&primary(small), &sized(ALPHA, 20, 30)), Relation::Lead);
        for (short, says) in
            [(sized(BETA, 10, 19), "extend its disk"), (sized(BETA, 10, 0), "upgrade")]
        {
            let (cause, reason) = verdict(&large, &short).unwrap_err();
            assert_eq!(cause, Cause::Sizes);
            assert!(reason.contains(says), "{reason}");
            assert_eq!(verdict(&short, &large).unwrap_err().0, Cause::Sizes);
        }
    }

    #[test]
    fn a_member_that_is_smaller_is_not_current() {
        let known = PeerRecord { replica: BETA, base: 5, ..PeerRecord::default() };
        let leader = hello(ALPHA, register(8, &[ALPHA, BETA]));
        let follower = |size_bytes| Hello {
            size_bytes,
            knows_you_as: ALPHA,
            ..hello(BETA, register(8, &[ALPHA, BETA]))
        };
        let leader = Hello { size_bytes: 20, ..leader };
        assert_eq!(plan(&leader, &follower(20), &known, 0), Plan::Current);
        assert_eq!(plan(&leader, &follower(10), &known, 0), Plan::Partial);
    }
}

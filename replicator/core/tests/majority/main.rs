//! A replica whose register is kept by a majority, told as stories: what it proposes, what it does
//! until a decision comes and after each kind of decision, and what it answers with and without a
//! lease (SAFETY.md R1-R6, R11, R14, R16, L4).

mod world;

use replicator_core::limits;
use replicator_core::register::RegisterState;
use replicator_core::{Answer, ClientError, ClientRequest, Command, Input, Time};
use world::{ALPHA, BETA, World, id};

/// Breaks the rule that the environment names, for [`every_defect_is_found`].
#[cfg(feature = "defects")]
fn wake_defect() {
    use replicator_core::defect::{DEFECTS, switch_on};

    if let Ok(name) = std::env::var("REPLICATOR_DEFECT") {
        let named = DEFECTS.iter().find(|defect| format!("{defect:?}") == name);
        switch_on(*named.expect("a defect has this name"));
    }
}

/// The proof that these stories can fail.
#[cfg(feature = "defects")]
#[test]
fn every_defect_is_found() {
    use replicator_core::defect::Defect;

    let program = std::env::current_exe().expect("this program has a path");
    for defect in [
        Defect::LeaseIgnoredForReads,
        Defect::LeaseIgnoredForAcks,
        Defect::ServesBeforeLease,
        Defect::AckWhileRemovalProposed,
        Defect::UnknownOutcomeIsFailed,
        Defect::UndecidedIsFailed,
        Defect::RegisterMayGoBack,
        Defect::RegisterNotAwaited,
        Defect::SetKeptAtTakeover,
        Defect::NoPowerLossWait,
        Defect::HotForgottenWhenDeposed,
        Defect::ReadsNotConfirmed,
        Defect::OriginNotNeeded,
    ] {
        let run = std::process::Command::new(&program)
            .args(["--skip", "every_defect_is_found"])
            .env("REPLICATOR_DEFECT", format!("{defect:?}"))
            .output()
            .expect("this program starts");
        assert!(!run.status.success(), "the defect {defect:?} is not found");
    }
}

fn has_primary(state: &RegisterState, node: usize) -> bool {
    state.primary == Some(id(node))
}

// ---------------------------------------------------------------------- taking the office

#[test]
fn an_office_is_committed_then_waits_for_the_lease_then_serves() {
    let mut world = World::new();
    world.decides = false;
    world.learn(ALPHA);
    let ticket = world.promote(ALPHA);
    let proposal = world.proposal();
    assert_eq!((proposal.expected, proposal.forced), (1, false));
    assert!(has_primary(&proposal.next, ALPHA) && proposal.next.authority.is_none());
    assert!(!has_primary(&world.nodes[ALPHA].replica.superblock().register, ALPHA));
    world.commit(proposal);
    assert!(has_primary(&world.nodes[ALPHA].replica.superblock().register, ALPHA));
    assert_eq!(world.nodes[ALPHA].opened, [], "R2c: no lease yet");
    assert_eq!(world.answer(ALPHA, ticket), None);
    assert!(world.waits_for(ALPHA, "lease"));
    world.lease(ALPHA, 1_000);
    assert_eq!(world.nodes[ALPHA].opened, [world.register.tenure]);
    assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
}

#[test]
fn of_a_resource_without_an_origin_nobody_takes_the_office() {
    let mut world = World::without_origin();
    for node in [ALPHA, BETA] {
        world.learn(node);
        let ticket = world.promote(node);
        let refusal = world.answer(node, ticket).expect("at once").expect_err("R11b");
        assert_eq!((refusal.code, refusal.rule), ("not_up_to_date", "R11b"));
        assert!(refusal.next.contains("replctl init RESOURCE --from NODE"), "{}", refusal.next);
    }
}

#[test]
fn an_office_without_a_lease_is_given_up_after_a_while() {
    let mut world = World::new();
    world.learn(ALPHA);
    let ticket = world.promote(ALPHA);
    assert_eq!(world.answer(ALPHA, ticket), None);
    world.advance(10_100);
    assert_eq!(world.refusal(ALPHA, ticket), "no_lease");
    // The same process has not served: it may go on with the tenure it took.
    let tenure = world.register.tenure;
    world.lease(ALPHA, 1_000);
    world.promote(ALPHA);
    assert_eq!(world.nodes[ALPHA].opened, [tenure]);
}

#[test]
fn a_take_over_that_is_lost_to_another_is_refused() {
    let mut world = World::pair();
    world.cut();
    world.advance(1_100);
    let shrink = world.proposal();
    let ticket = world.promote(BETA);
    let take_over = world.proposal();
    assert!(has_primary(&take_over.next, BETA));
    assert_eq!(take_over.next.set.len(), 1, "R6b");
    world.commit(shrink);
    world.supersede(&take_over);
    assert_eq!(world.refusal(BETA, ticket), "lost_the_race");
    assert_eq!(world.status(BETA).register, world.register);
    assert_eq!(world.nodes[BETA].opened, []);
    // It is out of the set, and knows it.
    let ticket = world.promote(BETA);
    assert_eq!(world.refusal(BETA, ticket), "not_up_to_date");
}

#[test]
fn a_take_over_that_is_declined_may_be_ordered_again() {
    let mut world = World::pair();
    world.cut();
    world.advance(1_100);
    world.proposals.clear();
    let ticket = world.promote(BETA);
    let proposal = world.proposal();
    world.decline(&proposal);
    assert_eq!(world.refusal(BETA, ticket), "not_now");
    let ticket = world.promote(BETA);
    let proposal = world.proposal();
    world.commit(proposal);
    world.lease(BETA, 1_000);
    assert_eq!(world.answer(BETA, ticket), Some(Ok(Answer::Done)));
}

#[test]
fn a_primary_alone_under_an_endless_lease_is_not_taken_over_without_a_word_for_it() {
    let mut world = World::pair();
    world.cut();
    world.advance(1_100);
    let shrink = world.proposal();
    assert!(shrink.next.sole, "R5d");
    world.commit(shrink);
    world.learn(BETA);
    let ticket = world.promote_with(BETA, false, true);
    assert_eq!(world.refusal(BETA, ticket), "sole_primary");
    world.promote_with(BETA, true, true);
    let proposal = world.proposal();
    assert!(proposal.forced && !proposal.next.sole);
    assert_eq!(proposal.next.basis.lineage, 1, "R11d");
}

#[test]
fn a_member_that_lost_its_power_lets_the_other_go_first() {
    let mut world = World::pair();
    world.cut();
    world.restart(ALPHA, true);
    world.learn(ALPHA);
    let ticket = world.promote(ALPHA);
    assert_eq!(world.refusal(ALPHA, ticket), "power_was_lost");
}

#[test]
fn a_new_process_on_the_same_boot_keeps_its_tenure_in_a_new_generation() {
    let mut world = World::pair();
    let before = world.register.clone();
    world.restart(ALPHA, false);
    world.cut();
    world.lease(ALPHA, 1_000);
    world.learn(ALPHA);
    assert!(world.proposals.is_empty(), "R6a: not by itself");
    world.promote(ALPHA);
    let proposal = world.proposal();
    assert_eq!(proposal.next.tenure, before.tenure);
    assert_eq!(proposal.next.set.len(), 1, "R5c");
    assert!(proposal.next.generation > before.generation);
    world.commit(proposal);
    assert_eq!(world.nodes[ALPHA].opened.last(), Some(&before.tenure));
}

// ---------------------------------------------------------------------- the set

#[test]
fn nothing_is_acknowledged_until_the_removal_of_a_lost_member_is_committed() {
    let mut world = World::pair();
    world.write(ALPHA, 1);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
    world.cut();
    world.write(ALPHA, 2);
    world.read(ALPHA, 3);
    assert_eq!(world.reply(ALPHA, 3), Some(Ok(())), "reads need no member");
    world.advance(5_000);
    assert_eq!(world.reply(ALPHA, 2), None, "R3");
    assert!(world.waits_for(ALPHA, "the removal of beta"));
    let proposal = world.proposal();
    assert_eq!(proposal.next.set.len(), 1);
    world.commit(proposal);
    assert_eq!(world.reply(ALPHA, 2), Some(Ok(())));
    assert_eq!(world.nodes[ALPHA].replica.superblock().register, world.register);
    // Back again, it lacks what was written meanwhile, is resynced and proposed.
    world.learn(BETA);
    world.decides = true;
    world.mend();
    assert_eq!(world.register.set.len(), 2);
    assert!(!world.register.sole);
    world.write(ALPHA, 4);
    assert_eq!(world.reply(ALPHA, 4), Some(Ok(())));
}

#[test]
fn a_removal_that_is_declined_is_proposed_again() {
    let mut world = World::pair();
    world.cut();
    world.write(ALPHA, 1);
    let first = world.proposal();
    world.decline(&first);
    assert_eq!(world.reply(ALPHA, 1), None);
    world.advance(200);
    let again = world.proposal();
    assert!(again.number > first.number);
    assert_eq!(again.next, first.next);
    world.commit(again);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
}

#[test]
fn a_removal_that_comes_too_late_deposes() {
    let mut world = World::pair();
    world.cut();
    world.write(ALPHA, 1);
    let proposal = world.proposal();
    world.take_over(BETA);
    world.supersede(&proposal);
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
    assert!(!world.nodes[ALPHA].is_open);
    let status = world.status(ALPHA);
    assert_eq!((status.role, status.register), ("secondary", world.register.clone()));
    assert_eq!(world.nodes[ALPHA].replica.superblock().register, world.register);
}

#[test]
fn another_set_of_the_own_tenure_is_taken_over() {
    let mut world = World::pair();
    world.cut();
    world.write(ALPHA, 1);
    let proposal = world.proposal();
    // An earlier proposal of the same kind landed after all.
    world.register = proposal.next.clone();
    world.register.sole = false;
    world.supersede(&proposal);
    assert_eq!(world.status(ALPHA).role, "primary");
    assert_eq!(world.status(ALPHA).register, world.register);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
}

#[test]
fn a_joining_replica_is_required_until_the_outcome_is_known() {
    for commits in [true, false] {
        let mut world = World::new();
        world.learn(ALPHA);
        world.learn(BETA);
        world.lease(ALPHA, 60_000);
        world.promote(ALPHA);
        world.decides = false;
        world.settle();
        let grow = world.proposal();
        assert_eq!(grow.next.set.len(), 2);
        world.cut();
        world.write(ALPHA, 1);
        world.advance(5_000);
        assert_eq!(world.reply(ALPHA, 1), None, "R4e");
        if commits {
            world.commit(grow);
            assert_eq!(world.reply(ALPHA, 1), None, "it is a member now, and missing");
            let shrink = world.proposal();
            world.commit(shrink);
        } else {
            world.decline(&grow);
        }
        world.advance(200);
        assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
        // Whatever became of it, only what differs is copied when it comes back.
        world.learn(BETA);
        world.decides = true;
        world.mend();
        assert_eq!(world.register.set.len(), 2);
        let sent = world.status(ALPHA).peers[0].resync_bytes;
        assert_eq!(sent, (0, 0), "no resync is under way");
    }
}

#[test]
fn a_follower_that_heard_of_a_commit_first_does_not_depose_its_primary() {
    let mut world = World::pair();
    world.cut();
    let shrink = world.proposal();
    // Beta hears of it from the majority; alpha's decision is on its way.
    let mut newer = shrink.next.clone();
    newer.generation += 1;
    world.commit(shrink);
    world.input(BETA, Input::RegisterLearned(Box::new(newer.clone())));
    world.mend();
    assert_eq!(world.status(ALPHA).role, "primary");
    world.register = newer;
    world.learn(ALPHA);
    world.decides = true;
    world.mend();
    assert_eq!(world.register.set.len(), 2);
}

// ---------------------------------------------------------------------- the lease

#[test]
fn a_lapse_is_a_pause_and_no_error() {
    let mut world = World::pair();
    world.lease(ALPHA, 1_000);
    let end = Time(world.now.0 + 1_000_000_000);
    assert!(world.nodes[ALPHA].replica.next_deadline().is_some_and(|next| next <= end));
    world.advance(1_000);
    assert!(!world.nodes[ALPHA].replica.holds_lease(world.now));
    world.read(ALPHA, 1);
    world.write(ALPHA, 2);
    world.request(ALPHA, 3, ClientRequest::Flush);
    world.advance(5_000);
    for request in 1..=3 {
        assert_eq!(world.reply(ALPHA, request), None, "R5a");
    }
    assert!(world.waits_for(ALPHA, "lease"));
    assert_eq!(world.status(ALPHA).role, "primary");
    world.lease(ALPHA, 1_000);
    for request in 1..=3 {
        assert_eq!(world.reply(ALPHA, request), Some(Ok(())), "request {request}");
    }
    assert!(!world.waits_for(ALPHA, "lease"));
    assert_eq!(world.nodes[ALPHA].opened.len(), 1, "the device was open all the time");
}

/// Its loop hung beyond the end of the lease; what the disk did meanwhile comes in before the new
/// lease does (sim --cluster 1434).
#[test]
fn what_ended_after_a_lapse_that_nobody_saw_goes_on_with_the_next_lease() {
    let mut world = World::pair();
    world.lease(ALPHA, 1_000);
    world.now = Time(world.now.0 + 1_500_000_000);
    world.read(ALPHA, 1);
    world.write(ALPHA, 2);
    world.request(ALPHA, 3, ClientRequest::Flush);
    for request in 1..=3 {
        assert_eq!(world.reply(ALPHA, request), None, "R5a");
    }
    world.lease(ALPHA, 1_000);
    for request in 1..=3 {
        assert_eq!(world.reply(ALPHA, request), Some(Ok(())), "request {request}");
    }
}

#[test]
fn reads_go_on_with_the_lease_when_a_member_is_still_missing() {
    let mut world = World::pair();
    world.cut();
    world.input(ALPHA, Input::LeaseChanged { until: None });
    world.read(ALPHA, 1);
    world.write(ALPHA, 2);
    world.lease(ALPHA, 1_000);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
    assert_eq!(world.reply(ALPHA, 2), None);
}

#[test]
fn without_a_lease_for_long_the_office_ends_and_requests_fail() {
    let mut world = World::pair();
    world.input(ALPHA, Input::LeaseChanged { until: None });
    world.read(ALPHA, 1);
    world.write(ALPHA, 2);
    world.advance(9_900);
    assert_eq!(world.status(ALPHA).role, "primary");
    world.advance(200);
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
    assert_eq!(world.reply(ALPHA, 2), Some(Err(ClientError::Shutdown)));
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert!(!world.nodes[ALPHA].is_open);
    // The register still names it: a new instance of the device belongs to a new tenure (R15).
    world.lease(ALPHA, 1_000);
    world.promote(ALPHA);
    let proposal = world.proposal();
    assert!(proposal.next.tenure > world.register.tenure);
    assert_eq!(proposal.next.set.len(), 1);
}

#[test]
fn an_endless_lease_needs_no_deadline() {
    let mut world = World::pair();
    world.cut();
    let shrink = world.proposal();
    world.commit(shrink);
    world.input(ALPHA, Input::LeaseChanged { until: Some(Time(u64::MAX)) });
    assert_eq!(world.nodes[ALPHA].replica.next_deadline(), None);
    world.advance(60_000);
    world.write(ALPHA, 1);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
}

// ---------------------------------------------------------------------- losing the office

#[test]
fn a_register_that_names_another_primary_deposes() {
    let mut world = World::pair();
    world.write(ALPHA, 8);
    // Durable on both sides: only the log still says that they may differ.
    world.request(ALPHA, 9, ClientRequest::Flush);
    assert_eq!(world.reply(ALPHA, 9), Some(Ok(())));
    world.cut();
    world.input(ALPHA, Input::LeaseChanged { until: None });
    world.write(ALPHA, 1);
    world.take_over(BETA);
    world.learn(ALPHA);
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
    assert!(!world.nodes[ALPHA].is_open);
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert_eq!(world.nodes[ALPHA].replica.superblock().register, world.register);
    let dirty = world.status(ALPHA).peers[0].dirty_bytes;
    assert!(dirty >= limits::EXTENT_BYTES, "R9: what was hot may differ: {dirty} bytes");
}

#[test]
fn a_forced_take_over_of_a_stale_replica_makes_the_old_primary_diverged() {
    let mut world = World::pair();
    world.cut();
    let shrink = world.proposal();
    world.commit(shrink);
    world.learn(BETA);
    world.promote_with(BETA, true, true);
    let forced = world.proposal();
    world.commit(forced);
    world.lease(BETA, 60_000);
    world.learn(ALPHA);
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert_eq!(world.status(ALPHA).data, "diverged", "R11d");
    world.decides = true;
    world.mend();
    assert_eq!(world.register.set.len(), 1, "it is refused");
    world.order(ALPHA, Command::DiscardDiverged);
    world.settle();
    assert_eq!(world.register.set.len(), 2);
    assert_eq!(world.status(ALPHA).data, "up_to_date");
}

#[test]
fn a_diverged_replica_can_be_chosen_all_the_same() {
    let mut world = World::pair();
    world.cut();
    let shrink = world.proposal();
    world.commit(shrink);
    world.learn(BETA);
    world.promote_with(BETA, true, true);
    let forced = world.proposal();
    world.commit(forced);
    world.learn(ALPHA);
    world.lease(ALPHA, 60_000);
    let ticket = world.promote(ALPHA);
    assert_eq!(world.refusal(ALPHA, ticket), "not_up_to_date");
    world.promote_with(ALPHA, true, true);
    let back = world.proposal();
    assert_eq!(back.next.basis.lineage, 2);
    world.commit(back);
    assert_eq!(world.status(ALPHA).data, "up_to_date");
    assert!(world.nodes[ALPHA].is_open);
}

// ---------------------------------------------------------------------- giving the office up

#[test]
fn while_the_outcome_of_a_release_is_unknown_nobody_answers() {
    let mut world = World::pair();
    world.write(ALPHA, 1);
    let ticket = world.order(ALPHA, Command::Demote);
    let release = world.proposal();
    assert!(release.next.released_clean && release.next.primary.is_none());
    assert_eq!(release.next.set.len(), 2, "R6c keeps the set");
    world.advance(5_000);
    assert!(!world.nodes[ALPHA].replica.holds_lease(world.now), "R6c");
    world.read(ALPHA, 2);
    assert_eq!(world.reply(ALPHA, 2), Some(Err(ClientError::Shutdown)));
    assert_eq!(world.answer(ALPHA, ticket), None);
    assert!(world.waits_for(ALPHA, "the majority's decision"));
    world.commit(release);
    assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
    // Lossless: the other one keeps the set.
    world.learn(BETA);
    world.lease(BETA, 1_000);
    world.promote(BETA);
    let taken = world.proposal();
    assert_eq!(taken.next.set.len(), 2);
    world.commit(taken);
    assert!(world.nodes[BETA].is_open);
}

#[test]
fn a_release_that_is_declined_is_proposed_again_and_one_that_is_lost_deposes() {
    let mut world = World::pair();
    let ticket = world.order(ALPHA, Command::Demote);
    let first = world.proposal();
    world.decline(&first);
    world.advance(200);
    let again = world.proposal();
    assert!(again.next.released_clean);
    world.take_over(BETA);
    world.supersede(&again);
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert_eq!(world.status(ALPHA).register, world.register);
    assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
}

/// The other node was quicker to take the office than this one to record that it gave it up.
#[test]
fn a_release_is_none_the_less_one_when_somebody_takes_the_office_at_once() {
    let mut world = World::pair();
    world.write(ALPHA, 1);
    let ticket = world.order(ALPHA, Command::Demote);
    let release = world.proposal();
    world.commit_and_take_over(release, BETA);
    assert_eq!(world.nodes[ALPHA].offices_lost, 0);
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert_eq!(world.status(ALPHA).register, world.register);
    assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
}

#[test]
fn a_decision_that_comes_after_the_office_was_given_up_still_counts() {
    let mut world = World::pair();
    world.order(ALPHA, Command::Demote);
    let release = world.proposal();
    world.input(ALPHA, Input::LeaseChanged { until: None });
    world.advance(10_100);
    assert_eq!(world.status(ALPHA).role, "secondary");
    let ticket = world.promote(ALPHA);
    assert_eq!(world.refusal(ALPHA, ticket), "register_unknown", "it is still open");
    world.commit(release);
    assert_eq!(world.status(ALPHA).register, world.register);
    assert!(world.status(ALPHA).register.released_clean);
}

#[test]
fn an_office_that_is_only_in_the_register_can_be_given_up() {
    let mut world = World::pair();
    world.restart(ALPHA, false);
    world.learn(ALPHA);
    let ticket = world.order(ALPHA, Command::Demote);
    let proposal = world.proposal();
    assert!(proposal.next.primary.is_none() && !proposal.next.released_clean);
    assert_eq!(proposal.next.set.len(), 2);
    world.commit(proposal);
    assert_eq!(world.answer(ALPHA, ticket), Some(Ok(Answer::Done)));
}

#[test]
fn a_primary_whose_disk_fails_answers_nothing_until_the_hand_over_is_decided() {
    let mut world = World::pair();
    world.nodes[ALPHA].broken = true;
    world.write(ALPHA, 1);
    let proposal = world.proposal();
    assert!(proposal.next.primary.is_none() && !proposal.next.contains(id(ALPHA)));
    assert!(proposal.next.contains(id(BETA)), "R16");
    world.read(ALPHA, 2);
    assert_eq!((world.reply(ALPHA, 1), world.reply(ALPHA, 2)), (None, None));
    world.decline(&proposal);
    world.advance(200);
    let again = world.proposal();
    assert_eq!((world.reply(ALPHA, 1), world.reply(ALPHA, 2)), (None, None));
    world.commit(again);
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
    assert_eq!(world.reply(ALPHA, 2), Some(Err(ClientError::Shutdown)));
    world.learn(BETA);
    world.promote(BETA);
    let taken = world.proposal();
    assert!(has_primary(&taken.next, BETA));
}

/// R5e: the machine stood still with its clock, and somebody else took over meanwhile.
#[test]
fn a_confirmed_read_is_answered_when_every_member_still_follows() {
    let mut world = World::with_confirmed_reads();
    world.read(ALPHA, 1);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
    world.holds_frames = true;
    world.read(ALPHA, 2);
    assert_eq!(world.reply(ALPHA, 2), None, "the echo has not come");
    world.let_frames_go();
    assert_eq!(world.reply(ALPHA, 2), Some(Ok(())));
    world.holds_frames = true;
    world.read(ALPHA, 3);
    world.cut();
    world.advance(1_100);
    assert_eq!(world.reply(ALPHA, 3), None, "beta may have taken over");
    let shrink = world.proposal();
    world.take_over(BETA);
    world.supersede(&shrink);
    assert_eq!(world.reply(ALPHA, 3), Some(Err(ClientError::Shutdown)));
}

/// The office ends for want of a lease, and with it the session (sim --cluster 1796023254500).
#[test]
fn a_confirmed_read_whose_echo_never_came_is_not_answered_by_the_end_of_the_office() {
    let mut world = World::with_confirmed_reads();
    world.holds_frames = true;
    world.read(ALPHA, 1);
    world.now = Time(world.now.0 + 25_000_000_000);
    world.input(ALPHA, Input::TimePassed);
    assert_eq!(world.status(ALPHA).role, "secondary");
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
}

// ---------------------------------------------------------------------- the start

#[test]
fn before_the_register_is_known_nobody_is_greeted_and_nothing_promoted() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.greetings(), 0, "R14");
    let ticket = world.promote(ALPHA);
    assert_eq!(world.refusal(ALPHA, ticket), "register_unknown");
    assert!(world.waits_for(ALPHA, "the register: no majority has answered"));
    world.learn(ALPHA);
    assert_eq!(world.greetings(), 1);
    assert!(!world.waits_for(ALPHA, "the register"));
    world.learn(BETA);
    assert_eq!(world.status(ALPHA).peers[0].state, "idle");
}

#[test]
fn a_register_that_went_back_stops_everything() {
    let mut world = World::pair();
    let newest = world.register.clone();
    world.restart(ALPHA, false);
    let mut older = newest.clone();
    older.generation -= 1;
    world.register = older;
    world.learn(ALPHA);
    assert_eq!(world.status(ALPHA).data, "register_went_back", "R11c");
    let greetings = world.greetings();
    world.settle();
    assert!(world.greetings() <= greetings + 1, "alpha greets nobody");
    assert_eq!(world.status(ALPHA).peers[0].state, "connecting");
    let ticket = world.promote_with(ALPHA, true, true);
    assert_eq!(world.refusal(ALPHA, ticket), "register_went_back");
    world.register = newest;
    world.learn(ALPHA);
    assert_eq!(world.status(ALPHA).data, "up_to_date");
    world.promote(ALPHA);
    assert!(has_primary(&world.proposal().next, ALPHA));
}

#[test]
fn data_that_a_lost_register_named_can_be_given_up() {
    let mut world = World::pair();
    world.restart(BETA, false);
    let mut older = world.register.without(id(BETA));
    older.generation -= 2;
    world.register = older;
    world.learn(BETA);
    assert_eq!(world.status(BETA).data, "register_went_back");
    let ticket = world.order(BETA, Command::Invalidate);
    assert_eq!(world.answer(BETA, ticket), Some(Ok(Answer::Done)));
    assert_eq!(world.status(BETA).data, "invalid");
    assert_eq!(world.nodes[BETA].replica.superblock().register, world.register);
}

#[test]
fn a_serving_primary_stops_when_a_decision_shows_that_the_register_went_back() {
    let mut world = World::pair();
    world.cut();
    world.write(ALPHA, 1);
    let proposal = world.proposal();
    world.register.generation -= 1;
    world.supersede(&proposal);
    assert_eq!(world.reply(ALPHA, 1), Some(Err(ClientError::Shutdown)));
    assert_eq!(world.status(ALPHA).data, "register_went_back");
    assert!(!world.nodes[ALPHA].is_open);
}

#[test]
fn a_late_word_of_the_majority_says_nothing() {
    let mut world = World::pair();
    let mut older = world.register.clone();
    older.generation -= 1;
    for node in [ALPHA, BETA] {
        world.input(node, Input::RegisterLearned(Box::new(older.clone())));
        assert_eq!(world.status(node).data, "up_to_date");
    }
    world.write(ALPHA, 1);
    assert_eq!(world.reply(ALPHA, 1), Some(Ok(())));
}

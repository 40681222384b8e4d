//! Scripted traces: what is told, and every order that follows.

use failover_core::Time;
use failover_core::facts::Hindrance;
use failover_core::services::{
    Change, Condition, Gain, Input, Order, Phase, Place, Release, address_delay,
};

use crate::story::{Story, agent, command, failure, ms, usual};

const FOREVER: Option<Time> = Some(Time(u64::MAX));

fn ignore_asks(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().filter(|line| !line.starts_with("ask ")).collect()
}

#[test]
fn a_start_of_the_daemon_asks_what_runs_and_starts_nothing() {
    let mut story = Story::new(usual());
    story.tell(Input::ResourceUp);
    // Without a lease no address may be here.
    story.expect(&["ask fs", "ask address", "ask db", "withdraw address"]);
    for name in ["fs", "address", "db"] {
        story.is(name, Condition::Stopped);
    }
    story.tell(Input::NotHeld { tenure: 1 });
    story.expect(&[]);
}

#[test]
fn services_start_top_down_and_stop_bottom_up() {
    let mut story = Story::secondary(usual());
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.expect(&["start fs"]);
    story.done("fs");
    story.expect(&["start address"]);
    story.done("address");
    story.expect(&["start db"]);
    story.done("db");
    story.expect(&[]);
    assert!(story.notes.contains(&"all_running".into()));
    story.release(Release::HandOver);
    story.expect(&["stop db"]);
    story.done("db");
    story.expect(&["stop address"]);
    story.done("address");
    story.expect(&["stop fs"]);
    story.done("fs");
    story.expect(&["released"]);
    story.tell(Input::OfficeReleased);
    story.expect(&[]);
}

#[test]
fn services_of_one_step_start_and_stop_together() {
    let mut story = Story::secondary(vec![command("a", 0), command("b", 1), command("c", 1)]);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b", "start c"]);
    story.done("c");
    story.expect(&[]);
    story.done("b");
    story.release(Release::HandOver);
    story.expect(&["stop b", "stop c"]);
    story.done("b");
    story.expect(&[]);
    story.done("c");
    story.expect(&["stop a"]);
}

#[test]
fn after_a_takeover_from_a_silent_holder_the_address_waits() {
    assert_eq!(address_delay(ms(1_000)), ms(300));
    assert_eq!(address_delay(ms(500)), ms(850));
    assert_eq!(address_delay(ms(5_000)), ms(300));
    let mut story = Story::secondary(usual());
    story.lease(FOREVER);
    story.gain(2, Gain::TakenFromSilent);
    story.done("fs");
    story.orders();
    story.wait(ms(299));
    story.expect(&[]);
    story.wait(ms(1));
    story.expect(&["start address"]);
}

#[test]
fn the_address_waits_by_the_lease_of_the_register_and_after_a_change_by_both() {
    let waits = |since_change: u64| {
        let mut story = Story::secondary(usual());
        story.tell(Input::LeaseLengthChanged { lease: ms(200) });
        story.wait(ms(10_000));
        if since_change > 0 {
            story.tell(Input::LeaseLengthChanged { lease: ms(1_000) });
            story.wait(ms(since_change));
        }
        story.lease(FOREVER);
        story.gain(2, Gain::TakenFromSilent);
        story.done("fs");
        story.orders();
        (0..2_000).step_by(10).find(|_| {
            story.wait(ms(10));
            !story.orders().is_empty()
        })
    };
    assert_eq!(waits(0), Some(1_170), "the file says 1 s");
    assert_eq!(waits(1_390), Some(1_170), "the last renewal may have been for 0.2 s");
    assert_eq!(waits(1_400), Some(290));
}

#[test]
fn an_office_that_is_resumed_continues_what_runs() {
    let mut story = Story::new(usual());
    story.tell(Input::ResourceUp);
    story.orders();
    story.is("fs", Condition::Running);
    // It is not known yet whether this office goes on.
    story.expect(&["freeze fs"]);
    story.lease(FOREVER);
    story.gain(2, Gain::Resumed);
    story.expect(&["thaw fs"]);
    story.is("address", Condition::Running);
    story.is("db", Condition::Running);
    story.expect(&[]);
    assert!(story.notes.contains(&"all_running".into()));
}

#[test]
fn what_an_earlier_process_left_stops_when_nobody_says_whose_office_it_is() {
    let mut story = Story::new(vec![command("a", 0)]);
    story.tell(Input::ResourceUp);
    story.is("a", Condition::Running);
    story.expect(&["ask a", "freeze a"]);
    story.wait(ms(11_999));
    assert_eq!(ignore_asks(story.orders()), [""; 0]);
    story.wait(ms(1));
    assert_eq!(ignore_asks(story.orders()), ["kill a"]);
}

/// L4: it was frozen by the guard, or is now; it never goes on beside the new primary's.
#[test]
fn what_an_earlier_process_left_is_killed_as_it_is_when_another_node_has_the_office() {
    let mut story = Story::new(vec![command("a", 0), command("b", 1)]);
    story.tell(Input::ResourceUp);
    story.is("a", Condition::Running);
    story.expect(&["ask a", "ask b", "freeze a"]);
    story.tell(Input::NotHeld { tenure: 3 });
    story.expect(&["kill a"]);
    story.is("b", Condition::Running);
    story.expect(&["kill b"]);
    story.done("a");
    story.done("b");
    // Only when nothing of it is left.
    story.expect(&["thaw a"]);
    assert!(story.engine.is_all_stopped());
}

#[test]
fn what_an_earlier_process_left_and_does_not_answer_stands_still_until_the_office_is_known() {
    let mut story = Story::new(vec![command("a", 0)]);
    story.tell(Input::ResourceUp);
    story.expect(&["ask a"]);
    story.wait(ms(299));
    story.expect(&[]);
    story.wait(ms(1));
    story.expect(&["freeze a"]);
    let mut resumed = story.clone();
    resumed.lease(FOREVER);
    resumed.gain(2, Gain::Resumed);
    resumed.expect(&["thaw a"]);
    resumed.is("a", Condition::Running);
    resumed.expect(&[]);
    story.tell(Input::NotHeld { tenure: 3 });
    story.expect(&["drop a", "kill a"]);
}

#[test]
fn what_is_missing_after_a_resumed_office_is_started_in_order() {
    let mut story = Story::new(usual());
    story.tell(Input::ResourceUp);
    story.lease(FOREVER);
    story.gain(2, Gain::Resumed);
    story.orders();
    story.is("db", Condition::Running);
    story.is("address", Condition::Running);
    story.is("fs", Condition::Stopped);
    // The unit ran on a file system that is not there.
    story.expect(&["start fs", "stop db"]);
}

#[test]
fn what_runs_where_it_must_not_is_stopped() {
    let mut story = Story::new(usual());
    story.tell(Input::ResourceUp);
    story.tell(Input::NotHeld { tenure: 3 });
    story.orders();
    story.is("db", Condition::Running);
    // It runs beside the primary's: there is no time for an orderly stop.
    story.expect(&["kill db"]);
    story.is("fs", Condition::Stopped);
    story.is("address", Condition::Stopped);
    story.done("db");
    // V9: a unit that somebody starts by hand, or that is enabled at boot.
    story.change("db", Change::StartedByHand("db.service was started".into()));
    story.expect(&["stop db"]);
}

#[test]
fn what_ran_before_the_office_came_is_stopped_before_it_is_started() {
    let mut story = Story::new(vec![command("a", 0), command("b", 1)]);
    story.tell(Input::ResourceUp);
    story.lease(FOREVER);
    story.gain(5, Gain::TakenFromSilent);
    story.orders();
    story.is("b", Condition::Running);
    story.is("a", Condition::Running);
    story.expect(&["stop b"]);
    story.done("b");
    story.expect(&["stop a"]);
    story.done("a");
    story.expect(&["start a"]);
}

#[test]
fn a_service_that_dies_is_restarted_at_once_then_after_pauses_then_the_office_moves() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.dies("a");
    story.expect(&["stop a"]);
    story.done("a");
    story.expect(&["start a"]);
    story.done("a");
    story.dies("a");
    story.done("a");
    story.expect(&["stop a"]);
    story.wait(ms(999));
    story.expect(&[]);
    story.wait(ms(1));
    story.expect(&["start a"]);
    assert!(story.engine.trouble().is_none());
    story.fails("a");
    let trouble = story.engine.trouble().expect("three failures, two restarts");
    assert!(trouble.why.contains("a does not run here: it is broken"), "{}", trouble.why);
    story.expect(&["stop a"]);
    story.done("a");
    story.release(Release::Move);
    story.expect(&["released"]);
}

#[test]
fn what_stands_on_a_failed_service_stops_before_it_is_restarted() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1), command("c", 2)]);
    story.dies("b");
    story.expect(&["stop c"]);
    story.done("c");
    story.expect(&["stop b"]);
    story.done("b");
    story.expect(&["start b"]);
    story.done("b");
    story.expect(&["start c"]);
    assert_eq!(story.phase("a"), Phase::Running);
}

#[test]
fn an_address_that_fails_comes_back_under_running_services() {
    let mut story = Story::running(usual());
    story.dies("address");
    story.expect(&["stop address"]);
    story.done("address");
    story.expect(&["start address"]);
    assert_eq!(story.phase("db"), Phase::Running);
}

#[test]
fn a_service_that_is_not_critical_holds_nobody_up() {
    let mut services = vec![command("a", 0), command("b", 1)];
    services[0].is_critical = false;
    services[0].restarts_max = 0;
    let mut story = Story::secondary(services);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.expect(&["start a"]);
    story.fails("a");
    story.expect(&["stop a", "start b"]);
    story.done("a");
    assert!(story.engine.trouble().is_none());
    story.orders();
    story.wait(ms(10_000));
    story.expect(&["start a"]);
}

/// V1: the next node, no endless loop, and nothing is banned for ever.
#[test]
fn a_node_where_services_failed_says_so_for_a_time_that_grows() {
    let mut services = vec![command("a", 0)];
    services[0].restarts_max = 0;
    let mut story = Story::secondary(services);
    let mut lasted = Vec::new();
    for round in 0..8 {
        story.lease(FOREVER);
        story.gain(10 + round, Gain::HandedOver);
        story.fails("a");
        story.done("a");
        assert!(story.engine.trouble().is_some());
        story.release(Release::Move);
        story.tell(Input::OfficeReleased);
        let began = story.now;
        while story.engine.trouble().is_some() {
            story.wait(ms(1_000));
        }
        lasted.push(story.now.since(began).as_ms() / 1_000);
    }
    assert_eq!(lasted, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

#[test]
fn where_no_other_node_takes_the_office_it_is_tried_again_here_after_growing_times() {
    let mut services = vec![command("a", 0)];
    services[0].restarts_max = 0;
    let mut story = Story::secondary(services);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    let mut pauses = Vec::new();
    for _ in 0..4 {
        story.fails("a");
        story.done("a");
        story.orders();
        let began = story.now;
        while story.job("a").is_none() {
            story.wait(ms(100));
        }
        pauses.push(story.now.since(began).as_ms() / 1_000);
    }
    assert_eq!(pauses, [10, 20, 40, 80]);
    assert!(story.engine.trouble().is_some());
    story.done("a");
    assert!(story.engine.trouble().is_none(), "it runs");
}

/// What can be checked beforehand may be known only after the office came.
#[test]
fn a_late_word_that_it_is_not_prepared_does_not_move_an_office_that_is_being_tried() {
    let why = failure(true);
    let mut story = Story::secondary(vec![command("a", 0)]);
    let mut secondary = story.clone();
    secondary.tell(Input::Unprepared { service: 0, why: why.clone() });
    assert!(secondary.engine.trouble().is_some());
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.tell(Input::Unprepared { service: 0, why });
    assert!(story.engine.trouble().is_none());
    story.expect(&["start a"]);
    story.fails_for_good("a");
    assert!(story.engine.trouble().is_some());
}

#[test]
fn a_failure_that_cannot_be_helped_is_not_tried_again_in_place() {
    let mut story = Story::secondary(vec![command("a", 0)]);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.fails_for_good("a");
    assert!(story.engine.trouble().is_some());
}

/// O2: a watchdog that is required and missing.
#[test]
fn where_services_are_forbidden_nothing_of_the_primary_starts_and_what_runs_stops_in_order() {
    let why = |text: &str| Hindrance {
        code: "watchdog_missing".into(),
        why: text.into(),
        ..Hindrance::default()
    };
    let mut story = Story::secondary(usual());
    story.lease(FOREVER);
    story.tell(Input::Forbidden(Some(why("there is none"))));
    story.gain(2, Gain::HandedOver);
    story.wait(ms(3_600_000));
    story.expect(&[]);
    assert_eq!(story.engine.state(story.now).word, "forbidden");
    assert_eq!(story.engine.trouble().unwrap().code, "watchdog_missing");
    assert!(!story.notes.contains(&"all_running".into()));
    // Said again, in other words: not told twice.
    story.tell(Input::Forbidden(Some(why("there is still none"))));
    assert_eq!(story.notes.iter().filter(|it| *it == "services_forbidden").count(), 1);
    story.order(Order::Start(None));
    story.expect(&[]);
    story.tell(Input::Forbidden(None));
    story.expect(&["start fs"]);
    story.done("fs");
    story.done("address");
    story.done("db");
    assert!(story.engine.trouble().is_none());
    assert!(story.notes.contains(&"all_running".into()));
    story.orders();
    story.tell(Input::Forbidden(Some(why("it is gone"))));
    story.expect(&["stop db"]);
    assert_eq!(story.engine.state(story.now).word, "stopping");
    story.done("db");
    story.expect(&["stop address"]);
    story.done("address");
    story.done("fs");
    story.expect(&["stop fs"]);
    assert_eq!(story.engine.state(story.now).word, "forbidden");
    // The office can be given up as ever.
    story.release(Release::Move);
    story.expect(&["released"]);
}

/// V2: a stop that hangs escalates, and is never called done.
#[test]
fn a_stop_that_hangs_when_the_office_is_lost_ends_with_the_watchdog() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.tell(Input::OfficeLost);
    story.expect(&["kill a"]);
    story.wait(ms(5_000));
    story.expect(&["drop a", "detach a"]);
    assert!(!story.engine.must_reset());
    story.wait(ms(5_000));
    story.expect(&["drop a"]);
    assert_eq!(story.phase("a"), Phase::StopHangs);
    assert!(story.engine.must_reset());
    assert!(!story.engine.is_all_stopped());
    // It is tried again, and may still end well. A watchdog may need longer than these pauses.
    story.wait(ms(10_000));
    story.expect(&["detach a"]);
    assert!(story.engine.must_reset());
    story.wait(ms(5_000));
    story.expect(&["drop a"]);
    assert!(story.engine.must_reset());
    story.wait(ms(10_000));
    story.expect(&["detach a"]);
    story.done("a");
    assert!(!story.engine.must_reset());
    assert!(story.engine.is_all_stopped());
}

/// Its stop is the only one that there is, with or without force: of a server in the kernel.
#[test]
fn an_agent_has_its_own_time_for_a_stop_by_force() {
    let mut story = Story::running(vec![agent("a", 0)]);
    story.tell(Input::OfficeLost);
    story.expect(&["kill a"]);
    story.wait(ms(59_000));
    story.expect(&[]);
    story.wait(ms(1_000));
    story.expect(&["drop a", "detach a"]);
    story.wait(ms(59_000));
    story.done("a");
    assert!(story.engine.is_all_stopped());
    assert_eq!(story.engine.stop_limit(), ms(180_000));
}

#[test]
fn a_planned_move_with_a_stop_that_hangs_is_taken_back() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.release(Release::HandOver);
    story.expect(&["stop b"]);
    story.wait(ms(60_000));
    let lines = ignore_asks(story.orders());
    assert_eq!(lines, ["drop b", "kill b"]);
    story.fails("b");
    let lines = story.orders();
    assert!(lines[0].starts_with("not released: b cannot be stopped"), "{lines:?}");
    assert!(lines.contains(&"ask b".to_string()), "{lines:?}");
    story.is("b", Condition::Running);
    assert_eq!(story.phase("a"), Phase::Running);
    assert!(story.engine.trouble().is_none());
}

/// V2: what was killed, does not run and does not end is of no use here. Whoever ordered the move,
/// it goes on with more force.
#[test]
fn a_planned_move_whose_stop_leaves_nothing_that_runs_ends_with_the_watchdog() {
    let stopping = Condition::Changing("stopping".into());
    for answer in [stopping, Condition::Stopped, Condition::Running] {
        let mut story = Story::running(vec![command("a", 0)]);
        story.release(Release::HandOver);
        story.wait(ms(60_000));
        story.fails("a");
        story.expect(&[
            "stop a",
            "drop a",
            "kill a",
            "not released: a cannot be stopped: it is broken",
            "ask a",
        ]);
        story.is("a", answer.clone());
        if answer == Condition::Running {
            assert!(story.engine.trouble().is_none());
            continue;
        }
        let trouble = story.engine.trouble().expect("it is of no use here");
        assert!(trouble.why.contains("a does not run here: it is broken"), "{}", trouble.why);
        story.expect(&["kill a"]);
        story.release(Release::Move);
        story.fails("a");
        story.expect(&["fail the device"]);
        story.tell(Input::DeviceFailed);
        story.expect(&["detach a"]);
        assert!(!story.engine.must_reset());
        story.fails("a");
        assert!(story.engine.must_reset());
    }
}

#[test]
fn a_move_away_from_a_stop_that_hangs_fails_the_device_first() {
    let mut services = vec![command("a", 0)];
    services[0].restarts_max = 0;
    let mut story = Story::running(services);
    story.dies("a");
    story.fails("a");
    story.fails("a");
    story.expect(&["stop a", "kill a"]);
    assert_eq!(story.phase("a"), Phase::StopHangs);
    assert!(story.engine.trouble().is_some());
    story.release(Release::Move);
    story.wait(ms(10_000));
    story.fails("a");
    story.expect(&["kill a", "fail the device"]);
    story.tell(Input::DeviceFailed);
    story.expect(&["detach a"]);
    story.fails("a");
    assert!(story.engine.must_reset());
    // Who asked for the move loses patience and asks again. The device stays failed.
    story.tell(Input::ReleaseCancelled);
    assert!(story.engine.must_reset());
    story.wait(ms(10_000));
    story.expect(&["detach a"]);
    story.release(Release::Move);
    assert!(story.engine.must_reset());
    story.done("a");
    assert!(!story.engine.must_reset());
    story.expect(&["released"]);
}

#[test]
fn without_a_lease_addresses_go_and_the_rest_is_frozen_and_all_comes_back() {
    let mut story = Story::running(usual());
    story.renew();
    story.orders();
    story.wait(ms(900));
    story.expect(&["freeze fs", "withdraw address", "freeze db"]);
    story.wait(ms(5_000));
    story.expect(&[]);
    story.renew();
    story.expect(&["thaw fs", "thaw db"]);
    assert_eq!(story.phase("db"), Phase::Running);
}

#[test]
fn a_start_under_way_is_not_late_for_the_time_without_a_lease() {
    let mut story = Story::secondary(vec![command("a", 0), command("b", 1)]);
    story.renew();
    story.gain(2, Gain::HandedOver);
    story.orders();
    for _ in 0..61 {
        story.wait(ms(800));
        story.renew();
    }
    // 48.8 s of 60 are over.
    story.wait(ms(9_900));
    story.expect(&["freeze a"]);
    story.renew();
    story.expect(&["thaw a"]);
    story.wait(ms(890));
    story.renew();
    story.done("a");
    story.expect(&["start b"]);
}

#[test]
fn without_a_lease_for_too_long_everything_is_killed_as_it_is() {
    let mut story = Story::running(usual());
    story.renew();
    story.wait(ms(900));
    story.orders();
    story.tell(Input::OfficeLost);
    // The file system waits for those who keep it busy.
    story.expect(&["kill address", "kill db"]);
    story.done("db");
    story.expect(&["thaw db"]);
    story.done("address");
    story.expect(&["kill fs"]);
    story.done("fs");
    story.expect(&["thaw fs"]);
    assert!(story.engine.is_all_stopped());
}

#[test]
fn a_replica_that_hangs_does_not_keep_services_alive_without_a_lease() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.renew();
    story.orders();
    story.wait(ms(900 + 12_000));
    story.expect(&["freeze a", "kill a"]);
}

#[test]
fn an_office_that_comes_back_right_after_its_loss_starts_from_nothing() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.tell(Input::OfficeLost);
    story.expect(&["kill a", "kill b"]);
    story.done("b");
    story.gain(7, Gain::HandedOver);
    story.expect(&[]);
    story.done("a");
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b"]);
}

#[test]
fn an_operator_stops_starts_and_restarts() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.order(Order::Stop(Some("a".into())));
    story.expect(&["stop b"]);
    story.done("b");
    story.expect(&["stop a"]);
    story.done("a");
    story.wait(ms(100_000));
    story.expect(&[]);
    story.order(Order::Start(Some("a".into())));
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b"]);
    story.done("b");
    story.order(Order::Restart(Some("b".into())));
    story.expect(&["stop b"]);
    story.done("b");
    story.expect(&["start b"]);
    story.done("b");
    story.order(Order::Restart(None));
    story.expect(&["stop b"]);
    story.done("b");
    story.expect(&["stop a"]);
    story.done("a");
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b"]);
}

#[test]
fn a_service_that_is_stopped_by_hand_comes_back_and_that_is_no_failure() {
    let mut story = Story::running(vec![command("a", 0)]);
    for restarts in 1..=10 {
        story.change("a", Change::StoppedByHand("somebody said systemctl stop".into()));
        story.expect(&["start a"]);
        story.done("a");
        assert_eq!(story.engine.state(story.now).services[0].restarts, restarts);
        story.wait(ms(29_999 + restarts as u64 % 2 * 2));
        ignore_asks(story.orders());
        if story.job("a").is_some() {
            story.is("a", Condition::Running);
        }
    }
    assert!(story.engine.trouble().is_none());
    assert!(!story.notes.contains(&"service_failed".into()));
}

/// A unit bound to one that dies again and again, or a mount that something takes away again.
#[test]
fn a_service_that_is_stopped_again_and_again_fails_and_the_office_moves_in_the_end() {
    let mut story = Story::running(vec![command("a", 0)]);
    let stopped = Change::StoppedByHand("a was stopped by somebody else".into());
    for _ in 0..2 {
        story.change("a", stopped.clone());
        story.expect(&["start a"]);
        story.done("a");
        story.wait(ms(1_000));
    }
    let mut pauses = Vec::new();
    while story.engine.trouble().is_none() {
        story.change("a", stopped.clone());
        story.expect(&["stop a"]);
        story.done("a");
        let began = story.now;
        while story.engine.trouble().is_none() && story.job("a").is_none() {
            story.wait(ms(100));
        }
        pauses.push(story.now.since(began).as_ms() / 100 * 100);
        story.orders();
        if story.engine.trouble().is_none() {
            story.done("a");
        }
        assert!(pauses.len() < 10, "for ever");
    }
    // As often as any other failure: two restarts in place.
    assert_eq!(pauses, [0, 1_000, 0]);
    let trouble = story.engine.trouble().unwrap();
    assert!(trouble.why.contains("stopped by somebody else, again and again"), "{}", trouble.why);
    // Hands off means hands off.
    let mut story = Story::running(vec![command("a", 0)]);
    story.order(Order::Maintenance(true));
    for _ in 0..5 {
        story.change("a", stopped.clone());
        story.change("a", Change::StartedByHand("a was started".into()));
    }
    assert!(!story.notes.contains(&"service_failed".into()));
}

/// V4: a check of a large file system must not be killed midway by the deadline of a mount.
#[test]
fn a_start_that_comes_to_a_step_with_a_deadline_of_its_own_has_that_and_says_what_it_does() {
    let hour = ms(3_600_000);
    let mut story = Story::secondary(vec![command("fs", 0)]);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.wait(ms(10_000));
    let step = Change::Step { what: "fsck runs".into(), limit: Some(hour) };
    story.change("fs", step.clone());
    story.expect(&["start fs"]);
    story.wait(ms(3_599_999));
    story.expect(&[]);
    let state = &story.engine.state(story.now).services[0];
    assert_eq!((state.phase, state.remark.as_str()), (Phase::Starting, "fsck runs"));
    let mut overdue = story.clone();
    overdue.wait(ms(1));
    overdue.expect(&["drop fs", "stop fs"]);
    let state = &overdue.engine.state(overdue.now).services[0];
    let failure = &state.last_failure.as_ref().unwrap();
    let why = "start of fs was not done after 3610000 ms: fsck runs";
    assert!(format!("{failure:?}").contains(why), "{failure:?}");
    // The mount itself has no longer than ever.
    story.change("fs", Change::Step { what: String::new(), limit: None });
    story.wait(ms(59_999));
    story.expect(&[]);
    story.wait(ms(1));
    story.expect(&["drop fs", "stop fs"]);
    // What stops is not given more time.
    story.change("fs", step);
    story.wait(ms(60_000));
    story.expect(&["drop fs", "kill fs"]);
}

#[test]
fn a_warning_has_an_age_and_an_end() {
    let mut story = Story::running(vec![command("a", 0)]);
    let warning = Change::Warning("systemd does not answer".into());
    story.change("a", warning.clone());
    story.wait(ms(4_000));
    story.change("a", warning);
    story.wait(ms(1_000));
    let state = &story.engine.state(story.now).services[0];
    assert_eq!((state.remark.as_str(), state.remark_for), ("systemd does not answer", ms(5_000)));
    let told = story.notes.len();
    story.change("a", Change::Warning(String::new()));
    assert_eq!(story.engine.state(story.now).services[0].remark, "");
    assert_eq!(story.notes.len(), told, "nothing happened");
}

#[test]
fn maintenance_keeps_hands_off_and_asks_at_its_end() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.order(Order::Maintenance(true));
    story.dies("a");
    story.change("b", Change::StoppedByHand("by hand".into()));
    story.wait(ms(100_000));
    let lines = ignore_asks(story.orders());
    assert_eq!(lines, [""; 0]);
    assert!(story.engine.trouble().is_none());
    story.order(Order::Maintenance(false));
    story.expect(&["ask a", "ask b"]);
    story.is("a", Condition::Running);
    story.is("b", Condition::Stopped);
    story.expect(&["start b"]);
}

#[test]
fn an_office_that_goes_during_maintenance_takes_its_services_along() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.order(Order::Maintenance(true));
    story.release(Release::HandOver);
    story.expect(&["stop a"]);
    story.done("a");
    story.expect(&["released"]);
}

#[test]
fn services_of_the_secondary_go_before_those_of_the_primary_come() {
    let mut services = vec![command("a", 0), command("reader", 1), command("always", 2)];
    services[1].place = Place::Secondary;
    services[2].place = Place::All;
    let mut story = Story::secondary(services);
    story.done("reader");
    story.done("always");
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.expect(&["stop reader"]);
    story.done("reader");
    story.expect(&["start a"]);
    story.done("a");
    story.release(Release::HandOver);
    story.expect(&["stop a"]);
    story.done("a");
    story.expect(&["released"]);
    story.tell(Input::OfficeReleased);
    story.expect(&["start reader"]);
    story.done("reader");
    story.release(Release::Down);
    story.expect(&["stop reader", "stop always"]);
    story.done("reader");
    story.done("always");
    story.expect(&["released"]);
}

#[test]
fn a_monitor_that_hangs_is_a_failure_and_answers_that_come_late_mean_nothing() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.wait(ms(30_000));
    story.expect(&["ask a"]);
    story.wait(ms(10_000));
    story.expect(&["drop a", "stop a"]);
    story.tell(Input::Ended {
        service: 0,
        ticket: 1,
        result: Ok(failover_core::services::Answer::Done),
    });
    assert_eq!(story.phase("a"), Phase::Stopping(failover_core::services::Force::Orderly));
}

#[test]
fn a_unit_that_activates_for_ever_fails_in_the_end() {
    let mut story = Story::running(vec![command("a", 0)]);
    story.wait(ms(30_000));
    let began = story.now;
    while story.job("a") == Some(failover_core::services::Action::Monitor) {
        story.is("a", Condition::Changing("activating".into()));
        story.wait(ms(200));
    }
    assert!(story.now.since(began) >= ms(60_000) && story.now.since(began) < ms(61_000));
    assert_eq!(story.orders().last().map(String::as_str), Some("stop a"));
}

/// O3: a switchover is cancelled half-way.
#[test]
fn a_release_that_is_cancelled_brings_everything_back() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.release(Release::HandOver);
    story.done("b");
    story.orders();
    story.tell(Input::ReleaseCancelled);
    // The stop of `a` that is under way ends first.
    story.expect(&[]);
    story.done("a");
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b"]);
}

#[test]
fn a_hand_over_that_is_withdrawn_in_time_fails_and_brings_everything_back() {
    let mut story = Story::running(vec![command("a", 0), command("b", 1)]);
    story.release(Release::HandOver);
    story.done("b");
    story.orders();
    story.tell(Input::HandOverWithdrawn);
    story.expect(&["not released: the switchover was cancelled"]);
    story.done("a");
    story.expect(&["start a"]);
    story.done("a");
    story.expect(&["start b"]);
    // Once all has stopped, the device closes: that is not stopped half-way.
    story.done("b");
    story.release(Release::HandOver);
    story.done("b");
    story.done("a");
    story.orders();
    story.tell(Input::HandOverWithdrawn);
    story.expect(&[]);
    // The end of the resource on this node is no switchover.
    let mut story = Story::running(vec![command("a", 0)]);
    story.release(Release::Down);
    story.orders();
    story.tell(Input::HandOverWithdrawn);
    story.expect(&[]);
}

#[test]
fn an_operator_clears_what_failed() {
    let mut services = vec![command("a", 0)];
    services[0].restarts_max = 0;
    let mut story = Story::secondary(services);
    story.lease(FOREVER);
    story.gain(2, Gain::HandedOver);
    story.fails("a");
    story.done("a");
    story.orders();
    story.order(Order::Clear(None));
    story.expect(&["start a"]);
    assert!(story.engine.trouble().is_none());
}

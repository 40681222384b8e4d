//! Kind `command`: what a start leaves running is the service, watched and ended as a whole.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use failover::core::services::{Kind, Place as Where, ServiceSpec, ServiceTiming};
use failover::services::{Change, Condition, Force, Service, make};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator_core::Span;
use tokio::sync::mpsc::unbounded_channel;

use super::bench::{Place, its_turn, lives, pid_in, site, soon, until};

pub fn spec(name: &str, kind: Kind) -> ServiceSpec {
    let second = Span::from_ms(5_000);
    let timing =
        ServiceTiming { start: second, stop: second, monitor: second, monitor_every: second };
    ServiceSpec {
        name: name.into(),
        kind,
        place: Where::Primary,
        step: 0,
        timing,
        restarts_max: 0,
        is_critical: true,
    }
}

fn command(place: &Place, start: &str, stop: &str, monitor: &str) -> Box<dyn Service> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let kind = Kind::Command { start: start.into(), stop: some(stop), monitor: some(monitor) };
    make(&spec("feed", kind), "db", &place.home(Path::new("/dev/null"))).unwrap()
}

fn here() -> failover::services::Site {
    site(Path::new("/dev/null"))
}

/// A daemon that writes its number, as shell. It is `sleep` when the shell goes on.
pub fn daemon(place: &Place, name: &str) -> String {
    format!(
        "sleep 1000 & until grep -q sleep /proc/$!/comm; do :; done; echo $! > {}",
        place.path(name).display()
    )
}

#[tokio::test]
async fn what_a_start_leaves_running_is_the_service() {
    let place = Place::new("service");
    let service = command(&place, &daemon(&place, "pid"), "", "");
    assert_eq!(service.monitor().await, Ok(Condition::Stopped));
    soon("start", service.start(&here())).await.unwrap();
    let pid = pid_in(&place.path("pid")).await;
    assert_eq!(service.monitor().await, Ok(Condition::Running));
    // Started again, it is the same.
    service.start(&here()).await.unwrap();
    assert_eq!(pid_in(&place.path("pid")).await, pid);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for word in ["REPLICATOR_DEVICE=/dev/null", "REPLICATOR_SERVICE=feed", "REPLICATOR_RESOURCE=db"]
    {
        assert!(environment.contains(word), "{environment}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "0");
    soon("stop", service.stop(Force::Orderly)).await.unwrap();
    assert!(!lives(pid));
    assert_eq!(service.monitor().await, Ok(Condition::Stopped));
    service.stop(Force::Orderly).await.unwrap();
}

#[tokio::test]
async fn the_death_of_a_process_is_noticed_at_once_and_a_stop_is_none() {
    let place = Place::new("death");
    let text = format!("echo began; {}; echo ready >&2", daemon(&place, "pid"));
    let service = command(&place, &text, "", "");
    let (sender, mut changes) = unbounded_channel();
    let watching = service.watch(sender);
    let acting = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            let _ = fs::remove_file(place.path("pid"));
            service.start(&here()).await.unwrap();
            let pid = pid_in(&place.path("pid")).await;
            its_turn().await;
            let killed = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let change = soon("the news", changes.recv()).await.unwrap();
            slowest = slowest.max(killed.elapsed());
            let Change::Failed(why) = change else { panic!("{change:?}") };
            let wanted = format!("process sleep ({pid}) of feed ended; it said: began; ready");
            assert_eq!(why, wanted);
        }
        assert!(slowest < Duration::from_millis(200), "{slowest:?}");
        println!("death noticed after at most {slowest:?}");
        service.start(&here()).await.unwrap();
        service.stop(Force::Orderly).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(changes.try_recv().is_err(), "a stop is no failure");
    };
    tokio::select! {
        () = watching => panic!("it ended by itself"),
        () = acting => {}
    }
}

#[tokio::test]
async fn a_monitor_decides_whether_a_death_matters() {
    let place = Place::new("monitor");
    let mark = place.path("well");
    fs::write(&mark, "").unwrap();
    let both = format!("{}; {}", daemon(&place, "one"), daemon(&place, "two"));
    let monitor = format!("test -e {} || exit 7", mark.display());
    let service =
        command(&place, &format!("rm -f {0}; {both}; touch {0}", mark.display()), "", &monitor);
    fs::remove_file(&mark).unwrap();
    let (sender, mut changes) = unbounded_channel();
    let watching = service.watch(sender);
    let acting = async {
        service.start(&here()).await.unwrap();
        let one = pid_in(&place.path("one")).await;
        its_turn().await;
        kill(Pid::from_raw(one), Signal::SIGKILL).unwrap();
        // It is asked three times within 2.5 s.
        tokio::time::sleep(Duration::from_millis(3_000)).await;
        assert!(changes.try_recv().is_err(), "the monitor said that it runs");
        fs::remove_file(&mark).unwrap();
        let two = pid_in(&place.path("two")).await;
        kill(Pid::from_raw(two), Signal::SIGKILL).unwrap();
        assert!(matches!(soon("the news", changes.recv()).await, Some(Change::Failed(_))));
        service.stop(Force::Kill).await.unwrap();
    };
    tokio::select! {
        () = watching => panic!("it ended by itself"),
        () = acting => {}
    }
}

#[tokio::test]
async fn exit_codes_of_monitors_have_their_meaning_and_words_are_kept() {
    let place = Place::new("codes");
    let monitor = format!(". {}", place.path("answer").display());
    let service = command(&place, "true", "echo cannot >&2; exit 3", &monitor);
    let answer = |text: &str| fs::write(place.path("answer"), text).unwrap();
    answer("exit 0");
    assert_eq!(service.monitor().await, Ok(Condition::Running));
    answer("exit 7");
    assert_eq!(service.monitor().await, Ok(Condition::Stopped));
    answer("seq 1 100000; echo; echo bad state; exit 1");
    let failure = service.monitor().await.unwrap_err();
    let why = "the monitor command of feed ended with 1: 99999; 100000; bad state";
    assert_eq!((failure.code.as_str(), failure.why.as_str()), ("monitor_failed", why));
    answer("kill -9 $$");
    let failure = service.monitor().await.unwrap_err();
    assert_eq!(failure.why, "the monitor command of feed was killed by SIGKILL");
    let failure = service.stop(Force::Orderly).await.unwrap_err();
    assert_eq!(failure.why, "the stop command of feed ended with 3: cannot");
    service.stop(Force::Kill).await.unwrap();

    let missing = command(&place, "/nowhere/feed", "", "");
    let failure = missing.start(&here()).await.unwrap_err();
    assert!(failure.is_permanent && failure.why.contains("/nowhere/feed"), "{failure:?}");
}

#[tokio::test]
async fn a_start_that_is_given_up_dies_with_all_its_children() {
    let place = Place::new("dropped");
    // One child in a session of its own, whose parent is gone: no group and no tree leads to it.
    let pids = place.path("hidden");
    let text = format!(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > {0}; sleep 1000; sleep 1000' & \
         {1}; sleep 1000",
        pids.display(),
        daemon(&place, "child")
    );
    let service = command(&place, &text, "", "");
    let waited = tokio::time::timeout(Duration::from_millis(700), service.start(&here())).await;
    assert!(waited.is_err());
    let (hidden, child) = (pid_in(&pids).await, pid_in(&place.path("child")).await);
    until("both are dead", || !lives(hidden) && !lives(child)).await;
    // And so are those that are not known here, a moment later or earlier.
    let ends = async {
        while service.monitor().await != Ok(Condition::Stopped) {
            tokio::task::yield_now().await;
        }
    };
    soon("nothing is left", ends).await;
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_named_and_then_killed() {
    let place = Place::new("stubborn");
    let text = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' &",
        place.path("pid").display()
    );
    let service = command(&place, &text, "", "");
    service.start(&here()).await.unwrap();
    let pid = pid_in(&place.path("pid")).await;
    let failure = soon("stop", service.stop(Force::Orderly)).await.unwrap_err();
    assert_eq!(failure.code, "processes_left");
    assert!(failure.why.contains(&format!("sh ({pid})")), "{}", failure.why);
    assert!(lives(pid));
    soon("kill", service.stop(Force::Kill)).await.unwrap();
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let place = Place::new("failed");
    let text = format!("{}; echo no luck; exit 1", daemon(&place, "pid"));
    let service = command(&place, &text, "", "");
    let failure = service.start(&here()).await.unwrap_err();
    assert_eq!(failure.why, "the start command of feed ended with 1: no luck");
    assert!(!lives(pid_in(&place.path("pid")).await));
}

#[tokio::test]
async fn a_daemon_that_was_restarted_finds_its_services_again() {
    let place = Place::new("again");
    let text = daemon(&place, "pid");
    let first = command(&place, &text, "", "");
    first.start(&here()).await.unwrap();
    let pid = pid_in(&place.path("pid")).await;
    drop(first);
    let second = command(&place, &text, "", "");
    assert_eq!(second.monitor().await, Ok(Condition::Running));
    let (sender, mut changes) = unbounded_channel();
    // Between the look of a restarted daemon and its watch.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("it is dead", || !lives(pid)).await;
    let acting = async {
        assert!(matches!(soon("the news", changes.recv()).await, Some(Change::Failed(_))));
    };
    tokio::select! {
        () = second.watch(sender) => panic!("it ended by itself"),
        () = acting => {}
    }
    second.start(&here()).await.unwrap();
    second.stop(Force::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_command_that_leaves_nothing_runs_until_its_stop() {
    let place = Place::new("once");
    let service = command(&place, "true", "", "");
    service.start(&here()).await.unwrap();
    assert_eq!(service.monitor().await, Ok(Condition::Running));
    service.stop(Force::Orderly).await.unwrap();
    assert_eq!(service.monitor().await, Ok(Condition::Stopped));
}

#[tokio::test]
async fn a_talkative_service_fills_no_disk_and_lives() {
    let place = Place::new("words");
    let text = format!(
        "sh -c 'echo $$ > {}; i=0; while [ $i -lt 40 ]; do head -c 100000 /dev/zero; i=$((i+1)); \
         done; sleep 1000' &",
        place.path("pid").display()
    );
    let service = command(&place, &text, "", "");
    service.start(&here()).await.unwrap();
    let pid = pid_in(&place.path("pid")).await;
    let size = || {
        let files = fs::read_dir(place.path("run/services")).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    until("all is written", || size() == 4_000_000).await;
    assert_eq!(service.monitor().await, Ok(Condition::Running));
    assert!(size() < 1 << 20);
    assert!(lives(pid));
    service.stop(Force::Kill).await.unwrap();
}

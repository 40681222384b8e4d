//! Units of systemd as services, against a systemd of our own on a private bus.

mod fake;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use failover::core::services::spec::{Kind, Place, ServiceSpec, ServiceTiming};
use failover::services::systemd::limits::UnitLimits;
use failover::services::systemd::{Systemd, Unit};
use failover::services::{Change, Condition, Force, Service, Site};
use fake::{Fake, Goes, Unit as FakeUnit, until};
use replicator_core::Span;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const DB: &str = "mariadb.service";

fn running() -> FakeUnit {
    FakeUnit { active: "active", ..FakeUnit::default() }
}

fn systemd(fake: &Fake) -> Arc<Systemd> {
    Systemd::at(Some(fake.address()), fake.directory.join("units"), "shop", "alpha")
}

fn db(fake: &Fake) -> Arc<Unit> {
    // However slow the machine of the test is.
    Arc::new(Unit::new(systemd(fake), DB).monitored_within(Duration::from_secs(240)))
}

fn site() -> Site {
    Site { device: PathBuf::from("/dev/null"), resource: "r".to_owned(), node: "alpha".to_owned() }
}

struct Watch {
    changes: UnboundedReceiver<Change>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches, and returns when the unit has been looked at.
    async fn new(unit: &Arc<Unit>) -> Self {
        let (sender, changes) = unbounded_channel();
        let watched = unit.clone();
        let task = tokio::spawn(async move { watched.watch(sender).await });
        unit.monitor().await.expect("a unit to watch");
        Self { changes, task }
    }

    async fn next(&mut self) -> Change {
        timeout(Duration::from_secs(5), self.changes.recv()).await.expect("a change").unwrap()
    }

    async fn nothing(&mut self) {
        let told = timeout(Duration::from_millis(300), self.changes.recv()).await;
        assert!(told.is_err(), "told {told:?}");
    }
}

#[tokio::test]
async fn a_start_ends_when_the_job_has_ended_and_the_unit_is_active() {
    let fake = Fake::new(&[(DB, FakeUnit { start: Goes::Well(150), ..FakeUnit::default() })]).await;
    let unit = db(&fake);
    assert_eq!(unit.monitor().await, Ok(Condition::Stopped));
    let began = Instant::now();
    unit.start(&site()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(150), "a start ended before its job");
    assert_eq!(unit.monitor().await, Ok(Condition::Running));
    // Starting what runs is no error.
    unit.start(&site()).await.unwrap();
    unit.stop(Force::Orderly).await.unwrap();
    assert_eq!(unit.monitor().await, Ok(Condition::Stopped));
    unit.stop(Force::Orderly).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_job_that_comes_before_the_answer_is_not_missed() {
    let quick = FakeUnit { start: Goes::WellAtOnce, ..FakeUnit::default() };
    let fake = Fake::new(&[(DB, quick)]).await;
    let unit = db(&fake);
    for round in 0..3 {
        let site = site();
        let started = timeout(Duration::from_secs(20), unit.start(&site)).await;
        started.unwrap_or_else(|_| panic!("round {round}: the end was missed")).unwrap();
    }
}

#[tokio::test]
async fn a_failed_start_says_how_it_ended() {
    let bad = |goes| FakeUnit { start: goes, ..FakeUnit::default() };
    let fake = Fake::new(&[
        ("bad.service", bad(Goes::Badly(3))),
        ("needy.service", bad(Goes::Result("dependency"))),
        ("brief.service", bad(Goes::Nowhere)),
        ("canceled.service", bad(Goes::Result("canceled"))),
    ])
    .await;
    let systemd = systemd(&fake);
    let start = async |name: &str| {
        Unit::new(systemd.clone(), name).start(&site()).await.expect_err("a failure")
    };
    let failure = start("bad.service").await;
    assert_eq!(failure.code, "unit_start_failed");
    assert!(
        failure.why.contains("bad.service") && failure.why.contains("exit code 3"),
        "{failure:?}"
    );
    assert!(failure.next.contains("journalctl -u bad.service"));
    assert!(!failure.is_permanent);
    assert_eq!(start("needy.service").await.code, "unit_dependency");
    assert_eq!(start("canceled.service").await.code, "unit_start_canceled");
    let failure = start("brief.service").await;
    assert_eq!(failure.code, "unit_ended_at_once");
    assert!(failure.next.contains("RemainAfterExit"));
    // What has failed can be started again.
    fake.change("bad.service", |unit| unit.start = Goes::Well(1)).await;
    Unit::new(systemd.clone(), "bad.service").start(&site()).await.unwrap();
    assert_eq!(fake.calls("ResetFailedUnit"), ["ResetFailedUnit bad.service"]);
}

#[tokio::test]
async fn a_unit_that_does_not_exist_or_is_masked_is_a_permanent_failure() {
    let masked = FakeUnit { load: "masked", ..FakeUnit::default() };
    let fake = Fake::new(&[("masked.service", masked)]).await;
    let systemd = systemd(&fake);
    for (name, code) in [("nothing.service", "unit_not_found"), ("masked.service", "unit_masked")] {
        let unit = Unit::new(systemd.clone(), name);
        for failure in [unit.prepare().await.unwrap_err(), unit.start(&site()).await.unwrap_err()] {
            assert_eq!(failure.code, code);
            assert!(failure.is_permanent && failure.why.contains(name), "{failure:?}");
        }
        unit.stop(Force::Orderly).await.unwrap();
    }
    assert!(fake.calls("StartUnit").is_empty());
}

#[tokio::test]
async fn a_unit_that_activates_for_ever_can_be_stopped() {
    let fake = Fake::new(&[(DB, FakeUnit { start: Goes::Hangs, ..FakeUnit::default() })]).await;
    let unit = db(&fake);
    let site = site();
    assert!(timeout(Duration::from_millis(700), unit.start(&site)).await.is_err());
    assert!(matches!(unit.monitor().await, Ok(Condition::Changing(_))));
    unit.stop(Force::Orderly).await.unwrap();
    assert_eq!(unit.monitor().await, Ok(Condition::Stopped));
}

#[tokio::test]
async fn a_stop_that_hangs_is_killed_and_its_failure_is_reset() {
    let fake = Fake::new(&[(DB, FakeUnit { stop: Goes::Hangs, ..running() })]).await;
    let unit = db(&fake);
    let orderly = timeout(Duration::from_millis(700), unit.stop(Force::Orderly)).await;
    assert!(orderly.is_err(), "a stop that hangs ended: {orderly:?}");
    unit.stop(Force::Kill).await.unwrap();
    assert_eq!(fake.calls("KillUnit")[0], "KillUnit mariadb.service all 9");
    assert_eq!(fake.calls("ResetFailedUnit"), ["ResetFailedUnit mariadb.service"]);
    assert_eq!(unit.monitor().await, Ok(Condition::Stopped));
}

/// An NFS server is threads of the kernel: killed at once, its stop command would leave them.
#[tokio::test]
async fn by_force_too_the_stop_command_of_a_unit_without_processes_has_its_time() {
    let fake = Fake::new(&[(DB, FakeUnit { stop: Goes::Well(100), ..running() })]).await;
    let unit = db(&fake);
    unit.stop(Force::Kill).await.unwrap();
    assert!(fake.calls("KillUnit").is_empty(), "{:?}", fake.calls("KillUnit"));
    assert_eq!(unit.monitor().await, Ok(Condition::Stopped));
}

/// At boot systemd may answer nobody for a while: that is no reason for a reset of the machine.
#[tokio::test]
async fn a_unit_without_processes_that_nobody_knows_to_run_is_stopped_also_while_systemd_is_silent()
{
    let mut fake = Fake::new(&[(DB, FakeUnit::default())]).await;
    fake.freeze();
    let unit = db(&fake);
    let stopped = timeout(Duration::from_secs(20), unit.stop(Force::Kill)).await;
    stopped.expect("a stop by force waits for systemd").unwrap();
}

/// What has no process may be in the kernel.
#[tokio::test]
async fn a_unit_that_is_known_to_run_without_processes_is_never_called_stopped_by_guess() {
    let mut fake = Fake::new(&[(DB, running())]).await;
    let unit = db(&fake);
    assert_eq!(unit.monitor().await, Ok(Condition::Running));
    fake.freeze();
    let stopped = timeout(Duration::from_secs(4), unit.stop(Force::Kill)).await;
    assert!(stopped.is_err(), "{stopped:?}");
}

#[tokio::test]
async fn a_failure_is_told_within_200_ms_with_its_cause() {
    let fake = Fake::new(&[(DB, FakeUnit::default())]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    unit.start(&site()).await.unwrap();
    watch.nothing().await;
    let mut delays = Vec::new();
    for _ in 0..3 {
        let died = Instant::now();
        fake.change(DB, |unit| {
            (unit.active, unit.result, unit.main_ended) = ("failed", "signal", (2, 9));
        })
        .await;
        let Change::Failed(why) = watch.next().await else { panic!("not a failure") };
        delays.push(died.elapsed());
        assert!(why.contains(DB) && why.contains("SIGKILL"), "{why}");
        watch.nothing().await;
        unit.start(&site()).await.unwrap();
    }
    // Each of them, but for what else this machine may be doing.
    assert!(*delays.iter().min().unwrap() < Duration::from_millis(200), "{delays:?}");
    // The main process ended and systemd still cleans up: that is a failure already.
    fake.change(DB, |unit| (unit.active, unit.main_ended) = ("deactivating", (1, 7))).await;
    let change = watch.next().await;
    assert!(matches!(&change, Change::Failed(why) if why.contains("exit code 7")), "{change:?}");
    fake.change(DB, |unit| unit.active = "failed").await;
    watch.nothing().await;
}

#[tokio::test]
async fn a_start_or_stop_by_an_operator_is_told_as_such() {
    let fake = Fake::new(&[(DB, FakeUnit::default())]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    fake.by_hand(DB, "StartUnit").await;
    assert!(matches!(watch.next().await, Change::StartedByHand(why) if why.contains(DB)));
    unit.stop(Force::Orderly).await.unwrap();
    watch.nothing().await;
    fake.by_hand(DB, "StartUnit").await;
    assert!(matches!(watch.next().await, Change::StartedByHand(_)));
    // Taken over as it is.
    unit.start(&site()).await.unwrap();
    fake.by_hand(DB, "StopUnit").await;
    assert!(matches!(watch.next().await, Change::StoppedByHand(why) if why.contains(DB)));
    watch.nothing().await;
    // Nothing was ordered in between: a node in maintenance.
    fake.by_hand(DB, "StartUnit").await;
    assert!(matches!(watch.next().await, Change::StartedByHand(why) if why.contains(DB)));
    watch.nothing().await;
}

#[tokio::test]
async fn a_unit_that_starts_at_boot_is_reported_once() {
    let fake = Fake::new(&[(DB, FakeUnit { file_state: "enabled", ..running() })]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    let change = watch.next().await;
    let Change::Warning(text) = change else { panic!("{change:?}") };
    assert!(text.contains("systemctl disable mariadb.service"), "{text}");
    fake.change(DB, |_| {}).await;
    watch.nothing().await;
}

#[tokio::test]
async fn a_reexec_of_systemd_is_never_a_failure() {
    let mut fake = Fake::new(&[(DB, FakeUnit { start: Goes::Hangs, ..FakeUnit::default() })]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    let starting = unit.clone();
    let start = tokio::spawn(async move { starting.start(&site()).await });
    until("the start", async || (!fake.calls("StartUnit").is_empty()).then_some(())).await;

    // A call is under way when systemd goes: NoReply.
    fake.freeze();
    let asking = unit.clone();
    let monitor = tokio::spawn(async move { asking.monitor().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.vanish().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!monitor.is_finished(), "an answer from nobody");
    fake.appear().await;
    assert!(matches!(monitor.await.unwrap(), Ok(Condition::Changing(_))));
    until("the new subscription", async || (fake.calls("Subscribe").len() >= 2).then_some(()))
        .await;
    // It became active while systemd was away.
    fake.change(DB, |unit| (unit.active, unit.job) = ("active", 0)).await;
    start.await.unwrap().unwrap();
    watch.nothing().await;
    fake.change(DB, |unit| (unit.active, unit.main_ended) = ("failed", (1, 1))).await;
    assert!(matches!(watch.next().await, Change::Failed(_)));
}

#[tokio::test]
async fn what_the_file_of_a_unit_allows_is_known() {
    let patient = FakeUnit { limits_us: (900_000_000, 3_600_000_000), ..FakeUnit::default() };
    let endless = FakeUnit { kind: "oneshot", limits_us: (u64::MAX, u64::MAX), ..patient.clone() };
    let fake = Fake::new(&[(DB, patient), ("nfs.service", endless)]).await;
    let systemd = systemd(&fake);
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let wanted = UnitLimits { start: seconds(900), stop: seconds(3_600), is_oneshot: false };
    assert_eq!(systemd.limits(DB).await, Ok(Some(wanted)));
    let wanted = UnitLimits { start: None, stop: None, is_oneshot: true };
    assert_eq!(systemd.limits("nfs.service").await, Ok(Some(wanted)));
    assert_eq!(systemd.limits("shop.target").await, Ok(None));
}

/// A monitor that has no answer would make the engine restart a unit that is well.
#[tokio::test]
async fn a_monitor_during_a_long_reload_of_systemd_answers_in_time_and_is_no_failure() {
    let mut fake = Fake::new(&[(DB, running())]).await;
    let limit = Duration::from_secs(4);
    let unit = Unit::new(systemd(&fake), DB).monitored_within(limit);
    until("it is up", async || (unit.monitor().await == Ok(Condition::Running)).then_some(()))
        .await;
    fake.freeze();
    let monitor = timeout(limit, unit.monitor()).await.expect("an answer in time");
    assert!(
        matches!(&monitor, Ok(Condition::Changing(why)) if why.contains("systemd")),
        "{monitor:?}"
    );
}

/// systemd calls a unit failed also when SIGKILL has not ended its processes.
#[tokio::test]
async fn a_unit_that_left_processes_is_not_called_stopped() {
    let marks = ["cgroup.controllers", "unified/cgroup.controllers", "systemd/cgroup.procs"];
    let root = std::path::Path::new("/sys/fs/cgroup");
    if !marks.iter().any(|mark| root.join(mark).exists()) {
        return eprintln!("skipped: there are no cgroups as systemd has them");
    }
    // Where this test runs, or what started it.
    let left = FakeUnit { active: "failed", control_group: "/", ..FakeUnit::default() };
    let fake = Fake::new(&[(DB, left)]).await;
    let failure = db(&fake).monitor().await.expect_err("processes that are left");
    assert_eq!(failure.code, "unit_left_processes");
    fake.change(DB, |unit| unit.control_group = "/that/is/gone").await;
    assert_eq!(db(&fake).monitor().await, Ok(Condition::Stopped));
}

/// What waits for systemd says so: a start would only be late, and nobody would know why.
#[tokio::test]
async fn a_systemd_that_does_not_answer_for_long_is_told_and_that_it_does_again() {
    let mut fake =
        Fake::new(&[(DB, FakeUnit { start: Goes::Well(1), ..FakeUnit::default() })]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    fake.freeze();
    let starting = unit.clone();
    let start = tokio::spawn(async move { starting.start(&site()).await });
    watch.nothing().await;
    let told = timeout(Duration::from_secs(30), watch.changes.recv()).await;
    let Ok(Some(Change::Warning(why))) = told else { panic!("{told:?}") };
    assert!(why.starts_with("systemd does not answer: "), "{why}");
    fake.vanish().await;
    fake.appear().await;
    start.await.unwrap().unwrap();
    assert_eq!(watch.next().await, Change::Warning(String::new()));
    watch.nothing().await;
}

#[tokio::test]
async fn a_restart_of_the_bus_is_survived() {
    let mut fake = Fake::new(&[(DB, FakeUnit::default())]).await;
    let unit = db(&fake);
    let mut watch = Watch::new(&unit).await;
    unit.start(&site()).await.unwrap();
    fake.kill_bus();
    let asking = unit.clone();
    let monitor = tokio::spawn(async move { asking.monitor().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!monitor.is_finished(), "an answer from nobody");
    // Nobody hears this.
    fake.change(DB, |unit| (unit.active, unit.main_ended) = ("failed", (1, 4))).await;
    fake.restart_bus().await;
    assert_eq!(monitor.await.unwrap(), Ok(Condition::Stopped));
    let change = watch.next().await;
    assert!(matches!(&change, Change::Failed(why) if why.contains("exit code 4")), "{change:?}");
    unit.start(&site()).await.unwrap();
    fake.change(DB, |unit| unit.active = "failed").await;
    assert!(matches!(watch.next().await, Change::Failed(_)));
}

#[tokio::test]
async fn a_machine_without_a_bus_is_a_clear_failure_at_once() {
    let nowhere = Some("unix:path=/nonexistent/bus".to_owned());
    let systemd = Systemd::at(nowhere, std::env::temp_dir(), "shop", "alpha");
    let unit = Unit::new(systemd, DB);
    let began = Instant::now();
    for failure in [unit.monitor().await.unwrap_err(), unit.start(&site()).await.unwrap_err()] {
        assert_eq!(failure.code, "no_bus");
        assert!(failure.why.contains("/nonexistent/bus") && failure.next.contains("dbus"));
        assert!(!failure.is_permanent);
    }
    assert!(unit.stop(Force::Kill).await.is_err(), "stopped, without asking anybody");
    assert!(began.elapsed() < Duration::from_secs(2));
}

fn spec(step: u16, unit: &str) -> ServiceSpec {
    let span = Span::from_ms(1000);
    ServiceSpec {
        name: unit.to_owned(),
        kind: Kind::Systemd { unit: unit.to_owned() },
        place: Place::Primary,
        step,
        timing: ServiceTiming { start: span, stop: span, monitor: span, monitor_every: span },
        restarts_max: 0,
        is_critical: true,
    }
}

#[tokio::test]
async fn drop_ins_are_written_once_and_removed_with_the_service() {
    let known: BTreeMap<&str, FakeUnit> =
        ["a.service", "b.service"].map(|name| (name, FakeUnit::default())).into();
    let fake = Fake::new(&known.into_iter().collect::<Vec<_>>()).await;
    let systemd = systemd(&fake);
    let units = ["a.service", "b.service"].map(|name| Unit::new(systemd.clone(), name));
    systemd.configure(vec![vec![spec(0, "a.service"), spec(1, "b.service")]]);
    for unit in &units {
        unit.prepare().await.unwrap();
    }
    let drop_in = |unit: &str| fake.directory.join(format!("units/{unit}.d/50-replicator.conf"));
    let text = std::fs::read_to_string(drop_in("b.service")).unwrap();
    for line in
        ["After=replicator.service a.service", "Before=replicator-handover.service", "Restart=no"]
    {
        assert!(text.lines().any(|it| it == line), "{line} is missing in {text}");
    }
    assert_eq!(fake.calls("Reload").len(), 1, "one daemon-reload for all");
    systemd.configure(vec![vec![spec(0, "b.service")]]);
    systemd.write_drop_ins().await.unwrap();
    assert!(!drop_in("a.service").exists() && drop_in("b.service").exists());
    assert_eq!(fake.calls("Reload").len(), 2);
}

#[tokio::test]
async fn at_a_shutdown_a_stop_does_not_wait_for_the_hand_over_that_waits_for_it() {
    let fake = Fake::new(&[(DB, FakeUnit { stop: Goes::WaitsForTheHandOver, ..running() })]).await;
    let unit = db(&fake);
    timeout(Duration::from_secs(3), unit.stop(Force::Orderly)).await.expect("it waits").unwrap();
    assert_eq!(
        fake.calls("StopUnit"),
        ["StopUnit mariadb.service replace", "StopUnit mariadb.service ignore-dependencies"]
    );
    assert_eq!(fake.unit(DB).active, "inactive");
}

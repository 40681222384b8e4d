//! Kind `ocf` with agents that do what they are told: every exit code, hanging, deaf to SIGTERM
//! (V7, V8).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use failover::core::Span;
use failover::core::services::Kind;
use failover::services::{Change, Condition, Force, Home, Service, make};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc::unbounded_channel;

use super::bench::{Place, lives, pid_in, site, soon, until};
use super::command::{daemon, spec};

/// Does for each action what the file of that name says.
const AGENT: &str = r#"#!/bin/sh
case $1 in
meta-data) cat "$OCF_ROOT/meta-data"; exit 0;;
esac
env > "$OCF_ROOT/environment.$1"
[ -e "$OCF_ROOT/$1" ] && . "$OCF_ROOT/$1"
exit 0
"#;
const METADATA: &str = r#"<?xml version="1.0"?>
<resource-agent name="Told" version="1.0"><parameters>
<parameter name="ip" required="1"><content type="string"/></parameter>
<parameter name="nic"><content type="string" default="eth0"/></parameter>
</parameters><actions><action name="start" timeout="20s"/></actions></resource-agent>
"#;

pub fn ocf(
    home: &Home,
    provider: &str,
    agent: &str,
    parameters: &[(&str, &str)],
) -> Box<dyn Service> {
    let parameters: BTreeMap<String, String> =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let kind = Kind::Ocf { provider: provider.into(), agent: agent.into(), parameters };
    make(&spec("vip 1", kind), "db", home).unwrap()
}

struct Told {
    place: Place,
    service: Box<dyn Service>,
}

impl Told {
    fn new(name: &str) -> Self {
        let place = Place::new(name);
        place.script("ocf/resource.d/test/Told", AGENT);
        fs::write(place.path("ocf/meta-data"), METADATA).unwrap();
        let service = Self::with(&place, &[("ip", "192.0.2.1")]);
        Self { place, service }
    }

    fn with(place: &Place, parameters: &[(&str, &str)]) -> Box<dyn Service> {
        ocf(&place.home(Path::new("/dev/null")), "test", "Told", parameters)
    }

    fn tell(&self, action: &str, text: &str) {
        fs::write(self.place.path("ocf").join(action), text).unwrap();
    }

    fn environment(&self, action: &str) -> BTreeMap<String, String> {
        let path = self.place.path(&format!("ocf/environment.{action}"));
        let text = fs::read_to_string(path).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

fn here() -> failover::services::Site {
    site(Path::new("/dev/null"))
}

#[tokio::test]
async fn an_agent_has_the_whole_environment_of_its_contract() {
    let told = Told::new("environment");
    told.service.start(&here()).await.unwrap();
    let start = told.environment("start");
    let root = told.place.path("ocf").display().to_string();
    for (key, value) in [
        ("OCF_ROOT", root.as_str()),
        ("OCF_RA_VERSION_MAJOR", "1"),
        ("OCF_RA_VERSION_MINOR", "1"),
        ("OCF_RESOURCE_INSTANCE", "vip_1"),
        ("OCF_RESOURCE_TYPE", "Told"),
        ("OCF_RESOURCE_PROVIDER", "test"),
        ("OCF_EXIT_REASON_PREFIX", "ocf-exit-reason:"),
        ("OCF_OUTPUT_FORMAT", "text"),
        ("OCF_CHECK_LEVEL", "0"),
        ("OCF_RESKEY_ip", "192.0.2.1"),
        ("OCF_RESKEY_CRM_meta_timeout", "5000"),
        ("OCF_RESKEY_CRM_meta_interval", "0"),
        ("OCF_RESKEY_CRM_meta_name", "start"),
        ("OCF_RESKEY_CRM_meta_on_node", "alpha"),
    ] {
        assert_eq!(start.get(key).map(String::as_str), Some(value), "{key}");
    }
    for daemons in ["NOTIFY_SOCKET", "CARGO", "LISTEN_FDS"] {
        assert!(!start.contains_key(daemons), "{daemons}");
    }
    told.service.monitor().await.unwrap();
    // Not a probe: some agents answer that differently.
    assert_eq!(told.environment("monitor")["OCF_RESKEY_CRM_meta_interval"], "5000");
    told.tell("monitor", "exit 7");
    told.service.stop(Force::Orderly).await.unwrap();
    assert_eq!(told.environment("monitor")["OCF_RESKEY_CRM_meta_interval"], "0");
}

/// On a secondary the disk is not there, and with it the configuration of what an agent manages.
#[tokio::test]
async fn what_was_neither_started_nor_found_running_is_asked_by_a_probe() {
    let told = Told::new("probe");
    // As ocf_is_probe of the agents has it.
    told.tell("monitor", "[ $OCF_RESKEY_CRM_meta_interval = 0 ] && exit 7; exit 5");
    assert_eq!(told.service.monitor().await, Ok(Condition::Stopped));
    told.service.start(&here()).await.unwrap();
    let failure = told.service.monitor().await.unwrap_err();
    assert!(failure.why.contains("ended with 5 (not installed)"), "{}", failure.why);
    told.service.stop(Force::Orderly).await.unwrap();
    assert_eq!(told.service.monitor().await, Ok(Condition::Stopped));
    // A daemon that was restarted finds it running, and then it is no probe any more.
    let after = Told::with(&told.place, &[("ip", "192.0.2.1")]);
    told.tell("monitor", "exit 0");
    for (nth, interval) in ["0", "5000"].iter().enumerate() {
        assert_eq!(after.monitor().await, Ok(Condition::Running));
        let asked = &told.environment("monitor")["OCF_RESKEY_CRM_meta_interval"];
        assert_eq!(asked, interval, "monitor {nth}");
    }
}

#[tokio::test]
async fn v7_every_exit_code_of_a_monitor_has_its_meaning() {
    let told = Told::new("codes");
    let says = |code: u8| told.tell("monitor", &format!("echo noise; exit {code}"));
    for code in [0, 8] {
        says(code);
        assert_eq!(told.service.monitor().await, Ok(Condition::Running), "{code}");
    }
    says(7);
    assert_eq!(told.service.monitor().await, Ok(Condition::Stopped));
    for code in [190, 191] {
        told.tell("monitor", &format!("echo 'ocf-exit-reason:one leg' >&2; exit {code}"));
        assert_eq!(told.service.monitor().await, Ok(Condition::Degraded("one leg".into())));
    }
    for (code, meaning, is_permanent) in [
        (1, "error", false),
        (2, "wrong parameters", true),
        (3, "the agent does not do that", true),
        (4, "not permitted", true),
        (5, "not installed", true),
        (6, "not configured", true),
        (9, "failed while promoted", false),
        (99, "an error of its own", false),
    ] {
        says(code);
        let failure = told.service.monitor().await.unwrap_err();
        let why = format!("monitor of vip 1 by ocf:test:Told ended with {code} ({meaning}): noise");
        assert_eq!((failure.why, failure.is_permanent), (why, is_permanent));
    }
    let words = "echo 'ocf-exit-reason:first'; echo 'ocf-exit-reason:no route' >&2; echo x; exit 1";
    told.tell("start", words);
    let failure = told.service.start(&here()).await.unwrap_err();
    assert_eq!(failure.why, "start of vip 1 by ocf:test:Told ended with 1 (error): no route");
}

#[tokio::test]
async fn a_stop_is_believed_only_when_the_monitor_agrees() {
    let told = Told::new("lie");
    for code in [0, 8, 9, 190] {
        told.tell("monitor", &format!("exit {code}"));
        let failure = told.service.stop(Force::Orderly).await.unwrap_err();
        assert_eq!(failure.code, "still_running", "{code}");
    }
    // Agents whose programs were on the file system cannot answer better.
    for code in [7, 5, 1] {
        told.tell("monitor", &format!("exit {code}"));
        told.service.stop(Force::Orderly).await.unwrap();
    }
    told.service.start(&here()).await.unwrap();
    told.tell("stop", "exit 1");
    assert_eq!(told.service.stop(Force::Orderly).await.unwrap_err().code, "stop_failed");
    assert_eq!(told.service.stop(Force::Kill).await.unwrap_err().code, "stop_failed");
}

/// VirtualDomain waits for its guest until 5 s before the end of the time that it is told, and only
/// then switches it off.
#[tokio::test]
async fn an_agent_is_told_how_little_time_a_stop_by_force_has() {
    let told = Told::new("limits");
    told.tell("monitor", "exit 7");
    let (provider, agent) = ("test".into(), "Told".into());
    let mut spec = spec("vip 1", Kind::Ocf { provider, agent, parameters: BTreeMap::new() });
    spec.timing.stop = Span::from_ms(90_000);
    let service = make(&spec, "db", &told.place.home(Path::new("/dev/null"))).unwrap();
    for (force, limit_ms) in FORCES.into_iter().zip(["90000", "5000", "5000"]) {
        service.stop(force).await.unwrap();
        let limit = &told.environment("stop")["OCF_RESKEY_CRM_meta_timeout"];
        assert_eq!(limit, limit_ms, "{force:?}");
    }
}

/// As agents answer whose own daemon (libvirtd) does not run: at boot it may come up later.
const LACKS: &str = "echo 'ocf-exit-reason:no daemon' >&2; exit 1";
const FORCES: [Force; 3] = [Force::Orderly, Force::Kill, Force::Detach];

/// What cannot be stopped asks for a reset of the machine, and after that it is the same again.
#[tokio::test]
async fn what_was_never_here_since_boot_is_stopped_also_when_its_agent_cannot_tell() {
    let told = Told::new("never-here");
    told.tell("monitor", LACKS);
    told.tell("stop", LACKS);
    told.service.monitor().await.unwrap_err();
    for force in FORCES {
        assert_eq!(told.service.stop(force).await, Ok(()), "{force:?}");
    }
    told.tell("stop", "exec sleep 1000");
    let begun = Instant::now();
    assert_eq!(told.service.stop(Force::Detach).await, Ok(()));
    assert!(begun.elapsed() < Duration::from_secs(5), "a stop by force has no longer");
    // Who stops nothing and says that it runs is believed, from then on.
    told.tell("stop", LACKS);
    told.tell("monitor", "exit 0");
    assert_eq!(told.service.stop(Force::Kill).await.unwrap_err().code, "stop_failed");
    told.tell("monitor", LACKS);
    assert_eq!(told.service.stop(Force::Kill).await.unwrap_err().code, "stop_failed");
}

#[tokio::test]
async fn what_was_started_or_found_running_is_here_until_a_stop_is_believed() {
    for way in ["started", "start failed", "start dropped", "found running"] {
        let told = Told::new("here");
        match way {
            "started" => told.service.start(&here()).await.unwrap(),
            "start failed" => {
                told.tell("start", "exit 1");
                told.service.start(&here()).await.unwrap_err();
            }
            "start dropped" => {
                told.tell("start", "touch $OCF_ROOT/begun; exec sleep 1000");
                let site = here();
                tokio::select! {
                    done = told.service.start(&site) => panic!("{done:?}"),
                    () = until("it begins", || told.place.path("ocf/begun").exists()) => {}
                }
            }
            _ => assert_eq!(told.service.monitor().await, Ok(Condition::Running)),
        }
        told.tell("monitor", LACKS);
        told.tell("stop", LACKS);
        // Also for a daemon that was started anew since.
        let after = Told::with(&told.place, &[("ip", "192.0.2.1")]);
        for service in [&told.service, &after] {
            for force in FORCES {
                let failure = service.stop(force).await.unwrap_err();
                assert_eq!(failure.code, "stop_failed", "{way}, {force:?}");
            }
        }
        told.tell("monitor", "exit 7");
        told.tell("stop", "");
        told.service.stop(Force::Orderly).await.unwrap();
        told.tell("monitor", LACKS);
        told.tell("stop", LACKS);
        told.service.stop(Force::Kill).await.unwrap();
    }
}

#[tokio::test]
async fn v7_v8_an_agent_that_hangs_and_ignores_sigterm_is_killed_with_its_children() {
    let told = Told::new("deaf");
    let path = told.place.path("pids");
    let text = format!(
        "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; echo $$ > {0}.child; sleep 1000; :' & \
         echo $$ > {0}; while :; do sleep 1000; done",
        path.display()
    );
    for action in ["start", "monitor", "stop"] {
        told.tell(action, &text);
        let child = told.place.path("pids.child");
        let acting = async {
            match action {
                "start" => told.service.start(&here()).await,
                "stop" => told.service.stop(Force::Orderly).await,
                _ => told.service.monitor().await.map(|_| ()),
            }
        };
        let both = tokio::select! {
            done = acting => panic!("{action}: {done:?}"),
            both = async { (pid_in(&path).await, pid_in(&child).await) } => both,
        };
        // It was given up by now.
        let (agent, child) = both;
        until("both are dead", || !lives(agent) && !lives(child)).await;
        told.tell(action, "");
        fs::remove_file(&path).unwrap();
        fs::remove_file(told.place.path("pids.child")).unwrap();
    }
}

#[tokio::test]
async fn a_daemon_of_an_agent_is_watched_and_the_agent_is_asked_when_it_dies() {
    let told = Told::new("daemon");
    let path = told.place.path("pid");
    told.tell("start", &daemon(&told.place, "pid"));
    let answer = format!(
        "grep -q '^State:.[RS]' /proc/$(cat {})/status 2>/dev/null || \
         {{ echo 'ocf-exit-reason:gone' >&2; exit 1; }}; touch {}",
        path.display(),
        told.place.path("asked").display()
    );
    told.tell("monitor", &answer);
    let (sender, mut changes) = unbounded_channel();
    let acting = async {
        told.service.start(&here()).await.unwrap();
        let pid = pid_in(&path).await;
        until("its start is believed", || told.place.path("asked").exists()).await;
        let killed = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let change = soon("the news", changes.recv()).await.unwrap();
        let took = killed.elapsed();
        println!("the death of an agent's daemon was told after {took:?}");
        assert!(took < Duration::from_secs(1), "asked at once, and told with the answer: {took:?}");
        let Change::Failed(why) = change else { panic!("{change:?}") };
        let wanted = format!(
            "process sleep ({pid}) of vip 1 ended: monitor of vip 1 by ocf:test:Told ended with 1 \
             (error): gone"
        );
        assert_eq!(why, wanted);
    };
    tokio::select! {
        () = told.service.watch(sender) => panic!("it ended by itself"),
        () = acting => {}
    }
}

#[tokio::test]
async fn an_agent_is_asked_after_its_start_since_nobody_saw_what_died_before() {
    let told = Told::new("begun");
    told.tell("start", "sleep 1000 & kill $!; wait");
    told.tell("monitor", "exit 7");
    let (sender, mut changes) = unbounded_channel();
    let acting = async {
        told.service.start(&here()).await.unwrap();
        let change = soon("the news", changes.recv()).await;
        let why = "vip 1 was started: the agent says that it does not run";
        assert_eq!(change, Some(Change::Failed(why.into())));
    };
    tokio::select! {
        () = told.service.watch(sender) => panic!("it ended by itself"),
        () = acting => {}
    }
}

#[tokio::test]
async fn an_agent_is_checked_before_it_is_needed() {
    let told = Told::new("prepare");
    told.service.prepare().await.unwrap();
    let wrong = [
        (
            &[("ip", "x"), ("nci", "y")][..],
            "parameter_unknown",
            "ocf:test:Told knows no parameter `nci`",
        ),
        (&[][..], "parameter_missing", "ocf:test:Told needs the parameter `ip`"),
    ];
    for (parameters, code, why) in wrong {
        let failure = Told::with(&told.place, parameters).prepare().await.unwrap_err();
        assert_eq!((failure.code.as_str(), failure.why.as_str()), (code, why));
        assert!(failure.is_permanent);
        assert_eq!(failure.next, "its parameters are: ip, nic");
    }
    let home = told.place.home(Path::new("/dev/null"));
    let missing = ocf(&home, "test", "Tol", &[]);
    let failure = missing.prepare().await.unwrap_err();
    assert_eq!(failure.code, "agent_missing");
    assert!(failure.next.ends_with("there are Told"), "{}", failure.next);
    assert_eq!(missing.start(&here()).await.unwrap_err().code, "agent_missing");
    missing.stop(Force::Orderly).await.unwrap();
    // Meta-data that nobody understands are no reason to refuse.
    fs::write(told.place.path("ocf/meta-data"), "<resource-agent").unwrap();
    told.service.prepare().await.unwrap();
}

//! The real agents of Debian's `resource-agents`, in a network namespace of their own: an address,
//! a file system, a web server.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Instant;

use failover::services::ocf::Agent;
use failover::services::{Change, Condition, Force, Home, OCF_ROOT};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc::unbounded_channel;

use super::bench::{Disk, Place, has, is_root, its_turn, pid_in, shell, site, soon};
use super::filesystem::source_at;
use super::ocf::ocf;

fn home(place: &Place) -> Home {
    Home { ocf_root: OCF_ROOT.into(), ..place.home(Path::new("/dev/null")) }
}

fn can_run(test: &str, agent: &str, program: &str) -> bool {
    if !is_root(test) {
        return false;
    }
    let is_there = Path::new(OCF_ROOT).join("resource.d/heartbeat").join(agent).exists();
    if !is_there || !has(program) {
        eprintln!("skipped, needs resource-agents and {program}: {test}");
        return false;
    }
    true
}

/// Runs a test in a thread with a network of its own: `lo`, and a `v0` with 192.0.2.1/24.
fn in_own_network<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        shell(
            "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v1 up; \
             ip address add 192.0.2.1/24 dev v0; ip link set v0 up",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work());
    };
    std::thread::spawn(body).join().unwrap();
}

#[test]
fn ipaddr2_of_debian_holds_an_address() {
    if !can_run("ipaddr2_of_debian_holds_an_address", "IPaddr2", "ip") {
        return;
    }
    in_own_network(|| async {
        let place = Place::new("ipaddr2");
        let has_it = || shell("ip -4 -o address show dev v0").contains("192.0.2.7/24");
        let parameters = [("ip", "192.0.2.7"), ("cidr_netmask", "24"), ("nic", "v0")];
        let service = ocf(&home(&place), "heartbeat", "IPaddr2", &parameters);
        service.prepare().await.unwrap();
        let here = site(Path::new("/dev/null"));
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        for _ in 0..2 {
            soon("start", service.start(&here)).await.unwrap();
            assert!(has_it());
        }
        assert_eq!(service.monitor().await, Ok(Condition::Running));
        shell("ip address del 192.0.2.7/24 dev v0");
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        service.start(&here).await.unwrap();
        for _ in 0..2 {
            soon("stop", service.stop(Force::Orderly)).await.unwrap();
            assert!(!has_it());
        }
        let parameters = [("ip", "192.0.2.7"), ("nic", "nosuch0")];
        let wrong = ocf(&home(&place), "heartbeat", "IPaddr2", &parameters);
        let failure = wrong.start(&here).await.unwrap_err();
        let why = "start of vip 1 by ocf:heartbeat:IPaddr2 ended with 6 (not configured): \
                   [findif] failed";
        assert_eq!((failure.why.as_str(), failure.is_permanent), (why, true));
    });
}

#[test]
fn filesystem_of_debian_mounts_and_unmounts() {
    if !can_run("filesystem_of_debian_mounts_and_unmounts", "Filesystem", "mkfs.ext4") {
        return;
    }
    in_own_network(|| async {
        let place = Place::new("agent-fs");
        let (disk, point) = (Disk::ext4(&place, "a.img"), place.path("point"));
        fs::create_dir_all(&point).unwrap();
        let (device, directory) = (disk.device.display().to_string(), point.display().to_string());
        let parameters = [
            ("device", device.as_str()),
            ("directory", directory.as_str()),
            ("fstype", "ext4"),
            ("OCF_CHECK_LEVEL", "20"),
        ];
        let service = ocf(&home(&place), "heartbeat", "Filesystem", &parameters);
        service.prepare().await.unwrap();
        let here = site(&disk.device);
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        soon("start", service.start(&here)).await.unwrap();
        assert_eq!(source_at(&point), device);
        assert_eq!(service.monitor().await, Ok(Condition::Running));
        soon("stop", service.stop(Force::Orderly)).await.unwrap();
        assert_eq!(source_at(&point), "");
        assert_eq!(service.monitor().await, Ok(Condition::Stopped));
    });
}

#[test]
fn apache_of_debian_serves_and_its_death_is_noticed() {
    if !can_run("apache_of_debian_serves_and_its_death_is_noticed", "apache", "apache2") {
        return;
    }
    in_own_network(|| async {
        let place = Place::new("apache");
        let dir = place.dir.display();
        let modules = "/usr/lib/apache2/modules";
        let config = place.path("httpd.conf");
        let text = format!(
            "ServerName 127.0.0.1\nListen 127.0.0.1:8080\nPidFile {dir}/httpd.pid\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             LoadModule status_module {modules}/mod_status.so\n\
             ErrorLog {dir}/error.log\nDocumentRoot {dir}\n\
             <Location /server-status>\nSetHandler server-status\n</Location>\n"
        );
        fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        let parameters = [
            ("configfile", config.as_str()),
            ("httpd", "/usr/sbin/apache2"),
            ("statusurl", "http://127.0.0.1:8080/server-status"),
        ];
        let service = ocf(&home(&place), "heartbeat", "apache", &parameters);
        service.prepare().await.unwrap();
        let here = site(Path::new("/dev/null"));
        let (sender, mut changes) = unbounded_channel();
        let acting = async {
            soon("start", service.start(&here)).await.unwrap();
            assert_eq!(service.monitor().await, Ok(Condition::Running));
            let pid = pid_in(&place.path("httpd.pid")).await;
            its_turn().await;
            let killed = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let change = soon("the news", changes.recv()).await.unwrap();
            println!("the death of apache was told after {:?}", killed.elapsed());
            let Change::Failed(why) = change else { panic!("{change:?}") };
            assert!(why.starts_with(&format!("process apache2 ({pid}) of vip 1 ended: ")), "{why}");
            // Its workers are there, but not its root: the agent starts it anew.
            soon("kill", service.stop(Force::Kill)).await.unwrap();
            soon("start", service.start(&here)).await.unwrap();
            soon("stop", service.stop(Force::Orderly)).await.unwrap();
            assert_eq!(service.monitor().await, Ok(Condition::Stopped));
        };
        tokio::select! {
            () = service.watch(sender) => panic!("it ended by itself"),
            () = acting => {}
        }
    });
}

#[test]
fn the_meta_data_of_debians_agents_are_understood() {
    if !can_run("the_meta_data_of_debians_agents_are_understood", "IPaddr2", "ip") {
        return;
    }
    let place = Place::new("meta-data");
    for (agent, start_ms, stop_ms, every_ms, parameter) in [
        ("IPaddr2", 20_000, 20_000, 10_000, "cidr_netmask"),
        ("Filesystem", 60_000, 60_000, 20_000, "directory"),
        ("nfsserver", 40_000, 20_000, 10_000, "nfs_shared_infodir"),
        ("exportfs", 40_000, 120_000, 10_000, "clientspec"),
        ("apache", 40_000, 60_000, 10_000, "configfile"),
        ("VirtualDomain", 90_000, 90_000, 10_000, "config"),
        ("pgsql", 120_000, 120_000, 30_000, "pgdata"),
        ("mariadb", 120_000, 120_000, 20_000, "datadir"),
    ] {
        let agent = Agent { root: Path::new(OCF_ROOT), provider: "heartbeat", agent };
        let metadata = agent.metadata_now(&place.dir).unwrap().expect("it has meta-data");
        let label = agent.label();
        let action = |name: &str| metadata.action(name).unwrap_or_else(|| panic!("{label} {name}"));
        assert_eq!(action("start").timeout_ms, Some(start_ms), "{label}");
        assert_eq!(action("stop").timeout_ms, Some(stop_ms), "{label}");
        assert_eq!(action("monitor").interval_ms, Some(every_ms), "{label}");
        assert!(metadata.parameters.iter().any(|it| it.name == parameter), "{label}");
    }
}

//! Services in the file: what a right list means, and the mistakes that newcomers make, in exact
//! words.

use std::path::Path;
use std::time::Duration;

use failover::core::services::{FsckPolicy, Kind, Place, ReachTarget};
use failover::services::systemd::limits::UnitLimits;
use replicator_core::Span;

use super::*;

const HEAD: &str = r#"cluster = "shop"
[node.alpha]
address = "192.0.2.1"
[node.beta]
address = "192.0.2.2"
[node.gamma]
address = "192.0.2.3"
witness = true
[resource.db]
disk = "/dev/vg0/db"
"#;

fn parse(text: &str) -> Result<ClusterConfig, String> {
    ClusterConfig::parse(Path::new("r.toml"), text.to_owned()).map_err(|error| error.to_string())
}

/// A file with these services in lines 12 and on.
fn with(services: &str) -> String {
    format!("{HEAD}services = [\n{services}\n]\n")
}

fn refusal(services: &str) -> String {
    parse(&with(services)).expect_err("this file must be refused")
}

fn warnings(services: &str) -> Vec<String> {
    parse(&with(services)).unwrap().warnings
}

#[test]
fn a_good_list_has_its_values_and_defaults() {
    let text = with(
        r#"  { filesystem = "/srv//db/", type = "ext4", options = ["noatime", "discard"] },
  { parallel = [
      { address = "192.0.2.100/24", interface = "eth0", restarts = 1 },
      { address = "2001:db8::100/64", name = "v6" } ] },
  { systemd = "mariadb.service", start_timeout_ms = 300000, monitor_every_ms = 0 },
  { ocf = "heartbeat:IPaddr2", name = "vip", params = { ip = "192.0.2.7", cidr_netmask = 24,
    arp = true } },
  { command = "feed", start = "feed -d", stop = "feed -q", monitor = "feed -s", on = "secondary" },
  { reach = ["192.0.2.254", "arp:192.0.2.253", "tcp:192.0.2.9:443"], need = 2, critical = false },
"#,
    ) + "prefer = \"beta\"\navoid = [\"alpha\"]\n\
           [resource.web]\ndisk = \"/dev/vg0/web\"\nwith = \"db\"\n";
    let config = parse(&text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let services = &config.resource("db").unwrap().services;
    assert_eq!(
        (&services.prefer[..], &services.avoid[..]),
        (&["beta".into()][..], &["alpha".into()][..])
    );
    assert_eq!(config.resource("web").unwrap().services.with.as_deref(), Some("db"));
    let names: Vec<&str> = services.specs.iter().map(|spec| spec.name.as_str()).collect();
    let wanted = ["/srv/db", "192.0.2.100/24", "v6", "mariadb.service", "vip", "feed", "reach"];
    assert_eq!(names, wanted);
    let steps: Vec<u16> = services.specs.iter().map(|spec| spec.step).collect();
    assert_eq!(steps, [0, 1, 1, 2, 3, 4, 5]);

    let [disk, v4, v6, unit, agent, feed, reach] = &services.specs[..] else { unreachable!() };
    assert_eq!(
        disk.kind,
        Kind::Filesystem {
            mount_point: "/srv/db".into(),
            fs_type: Some("ext4".into()),
            options: vec!["noatime".into(), "discard".into()],
            fsck: FsckPolicy::Auto,
        }
    );
    assert_eq!((disk.timing.start, disk.restarts_max), (Span::from_ms(60_000), 1));
    let address = "192.0.2.100".parse().unwrap();
    let interface = Some("eth0".into());
    assert_eq!(v4.kind, Kind::Address { address, prefix: 24, interface });
    assert_eq!((v4.restarts_max, v6.restarts_max, v4.is_critical), (1, 3, true));
    assert_eq!(unit.timing.start, Span::from_ms(300_000));
    assert_eq!((unit.timing.stop, unit.timing.monitor_every), (Span::from_ms(90_000), Span(0)));
    let Kind::Ocf { provider, agent, parameters } = &agent.kind else { unreachable!() };
    assert_eq!((provider.as_str(), agent.as_str()), ("heartbeat", "IPaddr2"));
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(parameters, [("arp", "true"), ("cidr_netmask", "24"), ("ip", "192.0.2.7")]);
    assert_eq!((feed.place, feed.is_critical), (Place::Secondary, false));
    let targets = vec![
        ReachTarget::Ping("192.0.2.254".parse().unwrap()),
        ReachTarget::Neighbour("192.0.2.253".parse().unwrap()),
        ReachTarget::Tcp("192.0.2.9".parse().unwrap(), 443),
    ];
    assert_eq!(reach.kind, Kind::Reach { interface: None, targets, need: 2 });
    assert_eq!((reach.restarts_max, reach.is_critical), (0, false));

    let place = &services.places[3];
    assert!(place.start_is_given && place.every_is_given && !place.stop_is_given);
    assert_eq!(&text[place.span.clone()], "\"mariadb.service\"");
}

#[test]
fn mistake_1_an_address_without_its_prefix() {
    assert_eq!(
        refusal(r#"  { address = "192.0.2.100", interface = "eth0" },"#),
        concat!(
            r#"r.toml:12:15: 192.0.2.100 needs the length of its prefix
 12 |   { address = "192.0.2.100", interface = "eth0" },
    |               ^^^^^^^^^^^^^
   help: write "192.0.2.100/24" with the length that `ip address` shows for "#,
            r#"the interface's own address"#
        )
    );
}

#[test]
fn mistake_2_a_relative_mount_point() {
    assert_eq!(
        refusal(r#"  { filesystem = "srv/db", type = "ext4" },"#),
        r#"r.toml:12:18: `filesystem` must be an absolute path
 12 |   { filesystem = "srv/db", type = "ext4" },
    |                  ^^^^^^^^
   help: write "/.../srv/db""#
    );
}

#[test]
fn mistake_3_a_unit_without_its_suffix() {
    assert_eq!(
        refusal(r#"  { systemd = "mariadb" },"#),
        r#"r.toml:12:15: "mariadb" is not the full name of a unit
 12 |   { systemd = "mariadb" },
    |               ^^^^^^^^^
   help: write systemd = "mariadb.service""#
    );
}

#[test]
fn mistake_4_a_unit_before_its_file_system() {
    let services = "  { systemd = \"mariadb.service\" },\n  { filesystem = \"/srv/db\" },";
    assert_eq!(
        warnings(services),
        ["r.toml:13:18: mariadb.service starts before /srv/db is mounted; services start \
             from the top: put the file system first"]
    );
    let services =
        "  { parallel = [ { filesystem = \"/srv/db\" }, { systemd = \"m.service\" } ] },";
    assert_eq!(
        warnings(services),
        ["r.toml:12:58: m.service starts before /srv/db is mounted; what is in \
             one `parallel` group starts together: put the file system in front of it"]
    );
}

#[test]
fn mistake_5_one_address_twice() {
    let services = "  { address = \"192.0.2.100/24\" },\n  { address = \"192.0.2.100/32\" },";
    assert_eq!(
        refusal(services),
        r#"r.toml:13:15: 192.0.2.100 is used twice
 13 |   { address = "192.0.2.100/32" },
    |               ^^^^^^^^^^^^^^^^
   help: resource db has it already; every floating address belongs to one service"#
    );
}

#[test]
fn mistake_6_the_own_address_of_a_node_as_floating_address() {
    assert_eq!(
        refusal(r#"  { address = "192.0.2.2/24" },"#),
        concat!(
            r#"r.toml:12:15: 192.0.2.2 is the address of node beta itself
 12 |   { address = "192.0.2.2/24" },
    |               ^^^^^^^^^^^^^^
   help: a floating address is one more: it goes from node to node, and no "#,
            r#"node may have it on its own"#
        )
    );
}

#[test]
fn mistake_7_a_misspelt_key() {
    assert_eq!(
        refusal(r#"  { address = "192.0.2.100/24", interfce = "eth0" },"#),
        r#"r.toml:12:33: unknown key `interfce` in a service of kind address
 12 |   { address = "192.0.2.100/24", interfce = "eth0" },
    |                                 ^^^^^^^^
   help: did you mean `interface`?"#
    );
    assert_eq!(
        refusal(r#"  { filesytem = "/srv/db" },"#),
        r#"r.toml:12:5: `filesytem` is no kind of service
 12 |   { filesytem = "/srv/db" },
    |     ^^^^^^^^^
   help: did you mean `filesystem`?"#
    );
}

#[test]
fn mistake_8_no_list_where_one_is_needed() {
    assert_eq!(
        parse(&format!("{HEAD}services = \"mariadb.service\"\n")).unwrap_err(),
        r#"r.toml:11:12: `services` must be a list of tables
 11 | services = "mariadb.service"
    |            ^^^^^^^^^^^^^^^^^
   help: write services = [ { filesystem = "/srv/x" }, { systemd = "x.service" } ]"#
    );
    assert_eq!(
        refusal(r#"  "mariadb.service","#),
        r#"r.toml:12:3: a service must be a table
 12 |   "mariadb.service",
    |   ^^^^^^^^^^^^^^^^^
   help: write services = [ { filesystem = "/srv/x" }, { systemd = "x.service" } ]"#
    );
}

#[test]
fn mistake_9_the_witness_is_preferred() {
    assert_eq!(
        parse(&format!("{HEAD}prefer = [\"gamma\"]\n")).unwrap_err(),
        r#"r.toml:11:11: `prefer` names gamma, which is a witness and runs no services
 11 | prefer = ["gamma"]
    |           ^^^^^^^
   help: the data nodes are: alpha, beta"#
    );
    assert_eq!(
        parse(&format!("{HEAD}avoid = \"alhpa\"\n")).unwrap_err(),
        r#"r.toml:11:9: `avoid` names "alhpa", which is no node of this file
 11 | avoid = "alhpa"
    |         ^^^^^^^
   help: did you mean "alpha"?"#
    );
}

#[test]
fn mistake_10_the_disk_instead_of_the_mount_point() {
    assert_eq!(
        refusal(r#"  { filesystem = "/dev/vg0/db", type = "ext4" },"#),
        concat!(
            r#"r.toml:12:18: `filesystem` is where it is mounted, not the disk
 12 |   { filesystem = "/dev/vg0/db", type = "ext4" },
    |                  ^^^^^^^^^^^^^
   help: write filesystem = "/srv/NAME"; what is mounted there is the "#,
            r#"device of this resource, whose disk stands in `disk`"#
        )
    );
}

#[test]
fn mistake_11_an_interface_that_this_machine_does_not_have() {
    let text = with(r#"  { address = "192.0.2.100/24", interface = "nosuch0" },"#);
    let path = std::env::temp_dir().join(format!("replicator-interface-{}", std::process::id()));
    fs::write(&path, &text).unwrap();
    let config = ClusterConfig::load(&path).unwrap();
    let found = services::local::warnings(&config);
    fs::remove_file(&path).unwrap();
    let start =
        format!("{}:12:45: there is no interface nosuch0 on this machine; it has ", path.display());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(&start), "{}", found[0]);
    let end =
        "; the file is the same on all nodes, so the interface must be called alike on all of them";
    assert!(found[0].contains("lo") && found[0].ends_with(end), "{}", found[0]);
}

#[test]
fn mistake_12_an_agent_or_a_parameter_that_there_is_not() {
    let agents = failover::services::OCF_ROOT;
    if !Path::new(agents).join("resource.d/heartbeat/IPaddr2").exists() {
        eprintln!("skipped, needs resource-agents: mistake_12");
        return;
    }
    let path = std::env::temp_dir().join(format!("replicator-agents-{}", std::process::id()));
    let found = |service: &str| {
        fs::write(&path, with(service)).unwrap();
        let found = services::local::warnings(&ClusterConfig::load(&path).unwrap());
        fs::remove_file(&path).unwrap();
        let place = format!("{}:", path.display());
        found.iter().map(|line| line.replace(&place, "r.toml:")).collect::<Vec<_>>()
    };
    assert_eq!(
        found(
            r#"  { ocf = "heartbeat:IPaddr2", params = { ip = "192.0.2.9", cidr_netmaks = 24 } },"#
        ),
        ["r.toml:12:41: ocf:heartbeat:IPaddr2 knows no parameter `cidr_netmaks`; did you mean \
          `cidr_netmask`?"]
    );
    assert_eq!(
        found(r#"  { ocf = "heartbeat:IPaddr2" },"#),
        ["r.toml:12:11: ocf:heartbeat:IPaddr2 needs the parameter `ip`; write params = { ip = \
          \"...\" }"]
    );
    assert_eq!(
        found(r#"  { ocf = "heartbeat:ipaddr2" },"#),
        [format!(
            "r.toml:12:11: ocf:heartbeat:ipaddr2 cannot be run: \
             {agents}/resource.d/heartbeat/ipaddr2: ENOENT: No such file or directory; install it \
             on every node; there are IPaddr, IPaddr2"
        )]
    );
}

#[test]
fn what_this_machine_lacks_is_said_where_it_stands() {
    let path = std::env::temp_dir().join(format!("replicator-lacks-{}", std::process::id()));
    for (service, said) in [
        (
            r#"  { address = "203.0.113.77/30" },"#,
            "12:15: no interface of this machine has an address of the network of 203.0.113.77/30",
        ),
        (
            r#"  { filesystem = "/nosuch/db", type = "nosuchfs" },"#,
            "12:39: this machine knows no file system `nosuchfs`",
        ),
        (
            r#"  { command = "x", start = "/nosuch/start &", stop = "true" },"#,
            "12:28: `/nosuch/start` cannot be run on this machine: No such file or directory",
        ),
        (
            r#"  { systemd = "nosuch-x.service" },"#,
            "12:15: there is no unit nosuch-x.service on this machine",
        ),
    ] {
        fs::write(&path, with(service)).unwrap();
        let found = services::local::warnings(&ClusterConfig::load(&path).unwrap());
        fs::remove_file(&path).unwrap();
        let place = format!("{}:", path.display());
        let has_no_systemd = found.iter().any(|line| line.contains("there is no systemd"));
        assert!(
            found.len() == 1 && (found[0].starts_with(&(place + said)) || has_no_systemd),
            "{found:?}"
        );
    }
}

#[test]
fn an_agent_that_waits_to_be_promoted_is_named() {
    let agents = Path::new(failover::services::OCF_ROOT).join("resource.d/heartbeat");
    if !["pgsql", "redis"].iter().all(|agent| agents.join(agent).exists()) {
        eprintln!("skipped, needs resource-agents: an_agent_that_waits_to_be_promoted_is_named");
        return;
    }
    let dir = std::env::temp_dir().join(format!("replicator-promoted-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("r.toml");
    for (service, is_named) in [
        (r#"{ ocf = "heartbeat:pgsql" }"#, false),
        (r#"{ ocf = "heartbeat:pgsql", params = { rep_mode = "none" } }"#, false),
        (r#"{ ocf = "heartbeat:pgsql", params = { rep_mode = "sync" } }"#, true),
        (r#"{ ocf = "heartbeat:redis" }"#, true),
    ] {
        fs::write(&path, with(&format!("  {service},"))).unwrap();
        let found = services::local::warnings(&ClusterConfig::load(&path).unwrap());
        let is_found = found.iter().any(|line| line.contains("waits to be promoted"));
        assert_eq!(is_found, is_named, "{service}: {found:?}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn deadlines_of_agents_are_what_they_advise_unless_the_file_says_otherwise() {
    if !Path::new(failover::services::OCF_ROOT).join("resource.d/heartbeat/exportfs").exists() {
        eprintln!("skipped, needs resource-agents: deadlines_of_agents");
        return;
    }
    let text = with(
        r#"  { ocf = "heartbeat:exportfs", start_timeout_ms = 7000, params = { fsid = 1 } },"#,
    );
    let mut config = parse(&text).unwrap();
    services::local::complete(&mut config, &std::env::temp_dir());
    let timing = config.resource("db").unwrap().services.specs[0].timing;
    let ms = [timing.start, timing.stop, timing.monitor, timing.monitor_every].map(Span::as_ms);
    assert_eq!(ms, [7_000, 120_000, 20_000, 10_000]);
}

#[test]
fn deadlines_of_units_are_what_their_files_allow_unless_ours_says_otherwise() {
    let text = with(
        r#"  { systemd = "mariadb.service" },
  { systemd = "postgresql@15-main.service", start_timeout_ms = 300000, stop_timeout_ms = 30000 },"#,
    );
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (start, stop, is_oneshot, wanted) in [
        // What Debian's mariadb.service has: 15 minutes for the recovery of InnoDB.
        (seconds(900), seconds(900), false, [910_000, 900_000]),
        // Debian's postgresql@.service.
        (None, seconds(3_600), false, [3_600_000, 900_000]),
        (None, seconds(90), true, [90_000, 100_000]),
        (seconds(5), seconds(5), false, [90_000, 90_000]),
        (seconds(90_000), None, true, [3_600_000, 900_000]),
    ] {
        let mut config = parse(&text).unwrap();
        let services = &mut config.resources[0].services;
        let limits = UnitLimits { start, stop, is_oneshot };
        for (spec, place) in services.specs.iter_mut().zip(&services.places) {
            services::local::take_limits(spec, place, &limits);
        }
        let ms = |at: usize| {
            let timing = services.specs[at].timing;
            [timing.start, timing.stop].map(Span::as_ms)
        };
        assert_eq!(ms(0), wanted);
        assert_eq!(ms(1), [300_000, 30_000], "the file says so");
    }
}

#[test]
fn a_mount_point_with_files_in_it_is_warned_of() {
    let dir = std::env::temp_dir().join(format!("replicator-hidden-{}", std::process::id()));
    fs::create_dir_all(dir.join("empty")).unwrap();
    let path = dir.join("r.toml");
    for (point, is_warned) in [(dir.clone(), true), (dir.join("empty"), false)] {
        let text = with(&format!("  {{ filesystem = \"{}\" }},", point.display()));
        fs::write(&path, text).unwrap();
        let found = services::local::warnings(&ClusterConfig::load(&path).unwrap());
        assert_eq!(found.len(), usize::from(is_warned), "{found:?}");
        if is_warned {
            let words = "is not empty: its files are hidden by the mount; move them away, or into \
                         the file system of db";
            assert!(found[0].ends_with(words), "{}", found[0]);
        }
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_wrong_with_one_service_is_said_where_it_stands() {
    for (service, said) in [
        (r#"{ name = "x" }"#, "r.toml:12:3: it is not said what this service is"),
        (r#"{ systemd = "x.service", address = "192.0.2.9/24" }"#, "`address` and `systemd`"),
        (r#"{ systemd = "x@.service" }"#, "x@.service is a template, not a unit"),
        (r#"{ systemd = "a b.service" }"#, "\"a b.service\" is no name of a unit"),
        (r#"{ filesystem = "/" }"#, "/ belongs to the operating system"),
        (r#"{ filesystem = "/srv/../etc" }"#, "a mount point without `..`"),
        (r#"{ filesystem = "/srv/x", type = "-t" }"#, "\"-t\" is no type of file system"),
        (r#"{ filesystem = "/srv/x", options = "a b" }"#, "\"a b\" is no list of mount options"),
        (r#"{ filesystem = "/srv/x", fsck = "yes" }"#, "`fsck` cannot be \"yes\""),
        (r#"{ filesystem = "/srv/x", on = "all" }"#, "a file system runs where the primary is"),
        (r#"{ address = "shop.example/24" }"#, "\"shop.example/24\" is not an IP address"),
        (r#"{ address = "192.0.2.100/33" }"#, "/33 is no length of a prefix"),
        (r#"{ address = "192.0.2.0/24" }"#, "192.0.2.0/24 is the network itself"),
        (r#"{ address = "192.0.2.255/24" }"#, "the broadcast address of its network"),
        (r#"{ address = "127.0.0.1/8" }"#, "no address that clients could reach"),
        (r#"{ address = "fe80::1/64" }"#, "a link-local address needs its `interface`"),
        (r#"{ address = "192.0.2.9/24", interface = "eth0:1" }"#, "no name of an interface"),
        (r#"{ ocf = "IPaddr2" }"#, "help: write ocf = \"heartbeat:IPaddr2\""),
        (r#"{ ocf = "heartbeat:../x" }"#, "names no agent"),
        (r#"{ ocf = "heartbeat:Dummy", params = "a=b" }"#, "`params` must be a table"),
        (r#"{ ocf = "heartbeat:Dummy", params = { x = [1] } }"#, "`x` must be a string, a number"),
        (r#"{ ocf = "heartbeat:Dummy", params = { "a b" = 1 } }"#, "\"a b\" is no name of a param"),
        (r#"{ command = "feed" }"#, "command \"feed\" has no `start`"),
        (r#"{ command = "feed", start = " " }"#, "this command is empty"),
        (r#"{ command = "", start = "x" }"#, "a service cannot be called \"\""),
        (r#"{ reach = [] }"#, "`reach` names neither targets nor an `interface`"),
        (r#"{ reach = ["gateway"] }"#, "\"gateway\" is nobody who can be asked"),
        (r#"{ reach = ["192.0.2.9"], need = 2 }"#, "`need` must be a whole number from 1 to 1"),
        (r#"{ systemd = "x.service", monitor_every_ms = 7 }"#, "must be 0 or at least 100"),
        (r#"{ systemd = "x.service", on = "both" }"#, "`on` cannot be \"both\""),
        (r#"{ parallel = { systemd = "x.service" } }"#, "`parallel` must be a list of tables"),
        (r#"{ parallel = [ { parallel = [] } ] }"#, "`parallel` inside of `parallel`"),
        (r#"{ parallel = [], name = "x" }"#, "unknown key `name`"),
    ] {
        let text = refusal(&format!("  {service},"));
        assert!(text.contains(said), "{service}: {text}");
        assert!(text.starts_with("r.toml:12:"), "{service}: {text}");
    }
}

#[test]
fn what_services_are_not_to_each_other() {
    for (services, said) in [
        (
            "{ systemd = \"x.service\" }, { systemd = \"x.service\" }",
            "two services of db are called",
        ),
        (
            "{ systemd = \"x.service\" }, { systemd = \"x.service\", name = \"y\" }",
            "x.service is used twice",
        ),
        (
            "{ filesystem = \"/srv/a\" }, { filesystem = \"/srv/b\" }",
            "/srv/b and /srv/a would mount the same device",
        ),
        (
            "{ filesystem = \"/srv/a/b\", type = \"btrfs\" }, { filesystem = \"/srv/a\", type = \
             \"btrfs\" }",
            "/srv/a hides /srv/a/b, which is mounted before",
        ),
    ] {
        let text = refusal(&format!("  {services},"));
        assert!(text.contains(said), "{services}: {text}");
    }
    let text =
        with("  { filesystem = \"/srv/db\" },").replace("disk =", "attach = \"none\"\ndisk =");
    let text = parse(&text).unwrap_err();
    assert!(text.contains("db has no device to mount: attach = \"none\""), "{text}");
}

#[test]
fn a_resource_goes_with_one_that_there_is_and_not_in_a_circle() {
    let two = |db: &str, web: &str| {
        parse(&format!("{HEAD}{db}\n[resource.web]\ndisk = \"/dev/vg0/web\"\n{web}\n"))
    };
    for (db, web, said) in [
        ("with = \"db\"", "", "db goes with itself"),
        ("with = \"wbe\"", "", "help: did you mean \"web\"?"),
        ("with = \"mail\"", "", "help: the other resources are: web"),
        ("with = \"web\"", "with = \"db\"", "`with` goes in a circle: db -> web -> db"),
        ("prefer = \"alpha\"\navoid = \"alpha\"", "", "[resource.db] prefers alpha and avoids it"),
    ] {
        let text = two(db, web).unwrap_err();
        assert!(text.contains(said), "{db}, {web}: {text}");
    }
    let warned = two("with = \"web\"\nprefer = \"alpha\"", "").unwrap();
    assert_eq!(
        warned.warnings,
        ["r.toml:11:8: db: `prefer` and `avoid` have no effect beside `with`; say it in \
          [resource.web]"]
    );
}

#[test]
fn the_example_of_all_kinds_says_what_the_defaults_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/deploy/examples/services.toml");
    let config = ClusterConfig::parse(&path, fs::read_to_string(&path).unwrap()).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let times: Vec<[u64; 5]> = config.resource("shop").unwrap().services.specs[..7]
        .iter()
        .map(|spec| {
            let timing = &spec.timing;
            let ms = |span: Span| span.as_ms() / 1000;
            let restarts = u64::from(spec.restarts_max);
            [
                ms(timing.start),
                ms(timing.stop),
                ms(timing.monitor),
                ms(timing.monitor_every),
                restarts,
            ]
        })
        .collect();
    let wanted = [
        [60, 30, 10, 10, 1],
        [5, 5, 5, 10, 3],
        [5, 5, 5, 10, 3],
        [90, 90, 10, 30, 3],
        [60, 60, 30, 10, 3],
        [60, 60, 10, 10, 3],
        [5, 1, 2, 2, 0],
    ];
    assert_eq!(times, wanted);
}

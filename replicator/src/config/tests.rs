//! What a wrong file is told, in exact words, and what a right one means.

use std::path::Path;

use failover::etcd::TlsFiles;

use replicator_core::Span;

use super::*;

const GOOD: &str = r#"cluster = "shop"

[node.alpha]
address = ["10.0.0.1", "192.0.2.1:7799"]
[node.beta]
address = "2001:db8::2"
nbd_address = "127.0.0.1"
run_dir = "/tmp/beta"
[node.gamma]
address = "192.0.2.3"
witness = true

[resource.mariadb]
disk = "/dev/vg0/mariadb"
[resource.web]
disk.alpha = "/srv/a.img"
disk.beta = "/srv/b.img"
metadata.beta = "/srv/b.meta"
attach = "none"
log_extents = 128
timing = { peer_silence_ms = 2000, power_loss_wait_ms = "forever" }
"#;

fn parse(text: &str) -> Result<ClusterConfig, String> {
    ClusterConfig::parse(Path::new("r.toml"), text.to_owned()).map_err(|error| error.to_string())
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("this file must be refused")
}

#[test]
fn a_good_file_has_its_values_and_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.cluster, "shop");
    let alpha = config.node("alpha").unwrap();
    assert_eq!(alpha.addresses[0], "10.0.0.1:7788".parse().unwrap());
    assert_eq!(alpha.addresses[1], "192.0.2.1:7799".parse().unwrap());
    assert_eq!(alpha.listen, alpha.addresses);
    assert_eq!(alpha.control_socket, Path::new("/run/replicator/control.sock"));
    assert!(alpha.nbd_listen.is_empty(), "NBD over TCP only where somebody asked for it");
    let beta = config.node("beta").unwrap();
    assert_eq!(beta.addresses[0], "[2001:db8::2]:7788".parse().unwrap());
    assert_eq!(beta.nbd_listen[0], "127.0.0.1:10809".parse().unwrap());
    assert_eq!(beta.nbd_socket, Path::new("/tmp/beta/nbd.sock"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.has_majority());
    assert_eq!(config.lease_ms, 1000);
    assert_eq!(config.peers_of("beta").len(), 1);

    let web = config.resource("web").unwrap();
    assert_eq!(web.copy_on("beta").metadata.as_deref(), Some(Path::new("/srv/b.meta")));
    assert_eq!(web.copy_on("alpha").metadata, None);
    assert_eq!(web.attach, AttachWish::None);
    assert_eq!(web.timing.peer_silence, Span::from_ms(2000));
    assert_eq!(web.timing.power_loss_wait, Span(u64::MAX));
    assert_eq!(config.resource("mariadb").unwrap().timing.peer_silence, Span::from_ms(700));
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_a_suggestion() {
    let text = GOOD.replace("address = \"192.0.2.3\"", "adress = \"192.0.2.3\"");
    assert_eq!(
        refusal(&text),
        "r.toml:9:7: `address` is missing in [node.gamma]\n \
         9 | [node.gamma]\n   \
           |       ^^^^^\n   \
           help: write address = \"192.0.2.1\", or a list with the best address first\n\
         r.toml:10:1: unknown key `adress` in [node.gamma]\n \
         10 | adress = \"192.0.2.3\"\n    \
            | ^^^^^^\n   \
            help: did you mean `address`?"
    );
}

#[test]
fn an_unknown_key_without_a_likely_meaning_gets_the_list() {
    let text = refusal(&format!("volume = 3\n{GOOD}"));
    assert!(text.contains("r.toml:1:1: unknown key `volume` in the top level"), "{text}");
    assert!(text.contains("help: the keys here are: cluster, key, state_dir"), "{text}");
}

#[test]
fn broken_toml_names_line_and_column() {
    let text = refusal("cluster = \"shop\"\n[node.alpha\n");
    assert!(text.starts_with("r.toml:2:"), "{text}");
}

#[test]
fn three_data_nodes_are_their_own_majority_and_a_fourth_is_refused() {
    let three = GOOD.replace("witness = true", "witness = false").replace(
        "disk.beta = \"/srv/b.img\"\n",
        "disk.beta = \"/srv/b.img\"\ndisk.gamma = \"/srv/c.img\"\n",
    );
    let path = std::path::Path::new("r.toml");
    assert!(ClusterConfig::parse(path, three.clone()).expect("it is good").has_majority());
    let text = refusal(&format!("{three}\n[node.zeta]\naddress = \"192.0.2.9\"\n"));
    assert!(text.contains("`zeta` is a fourth data node; this version supports three"), "{text}");
}

#[test]
fn a_cluster_has_as_many_resources_as_its_register_can_hold() {
    let resources = |count: usize| -> String {
        let one = |n| format!("[resource.r{n}]\ndisk = \"/srv/{n}.img\"\n");
        let nodes = "cluster = \"shop\"\n[node.alpha]\naddress = \"192.0.2.1\"\n\
                     [node.beta]\naddress = \"192.0.2.2\"\n";
        nodes.to_owned() + &(0..count).map(one).collect::<String>()
    };
    let path = std::path::Path::new("r.toml");
    ClusterConfig::parse(path, resources(64)).expect("so many are good");
    let text = refusal(&resources(65));
    assert!(text.contains("is one resource more than 64"), "{text}");
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = refusal(
        "cluster = \"a b\"\n\
         [node.alpha]\naddress = \"alpha.example\"\n\
         [resource.x]\ndisk = \"disk.img\"\nattach = \"fues\"\nlog_extents = 3\n\
         timing.ping_interval_ms = 900\n",
    );
    for part in [
        "r.toml:1:11: a cluster cannot be called \"a b\"",
        "r.toml:3:11: \"alpha.example\" is not an IP address",
        "r.toml:5:8: `disk` must be an absolute path",
        "r.toml:6:10: `attach` cannot be \"fues\"",
        "help: did you mean \"fuse\"?",
        "r.toml:7:15: `log_extents` must be a whole number from 64 to 8192",
        "`ping_interval_ms` is 900, but must be below half of `peer_silence_ms`, which is 700",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn a_disk_of_two_resources_is_refused() {
    let text = refusal(&GOOD.replace("/srv/a.img", "/dev/vg0/mariadb"));
    assert!(text.contains("/dev/vg0/mariadb is used twice on node alpha"), "{text}");
}

#[test]
fn a_disk_for_an_unknown_node_is_refused() {
    let text = refusal(&GOOD.replace("disk.beta", "disk.bata"));
    assert!(text.contains("`disk.bata` names no data node"), "{text}");
    assert!(text.contains("did you mean `disk.beta`?"), "{text}");
    assert!(text.contains("[resource.web] has no `disk` for node beta"), "{text}");
}

#[test]
fn an_unknown_node_is_told_the_known_ones() {
    let config = parse(GOOD).unwrap();
    let error = config.choose_node(Some("alhpa")).unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no node \"alhpa\"; the configuration knows alpha, beta, gamma; \
         did you mean --node alpha?"
    );
}

const FENCED: &str = r#"cluster = "shop"
fencing = "auto"
[node.alpha]
address = "10.0.0.1"
fence = { agent = "fence_ipmilan", password_file = "/etc/replicator/ipmi" }
[node.beta]
address = "10.0.0.2"
[node.beta.fence]
agent = "/opt/fence_own"
options = { ip = "10.1.0.2", lanplus = true, plug = 3 }
timeout_ms = 30000
action = "reboot"
attempts = 5
delay_ms = 2000
fence_after_ms = 1500
[resource.web]
disk = "/dev/vg0/web"
"#;

#[test]
fn a_fence_has_its_values_and_defaults() {
    use failover::core::fence::Action;
    let config = parse(FENCED).unwrap();
    assert!(config.fences_lost_primaries());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let (peer, fence) = config.fence_of_peer("beta").unwrap();
    assert_eq!((peer.name.as_str(), fence.label().as_str()), ("alpha", "fence_ipmilan"));
    assert_eq!(fence.agent, Path::new("/usr/sbin/fence_ipmilan"));
    assert_eq!(fence.password_file.as_deref(), Some(Path::new("/etc/replicator/ipmi")));
    assert_eq!((fence.action, fence.attempts, fence.delay_ms), (Action::Off, 3, 0));
    assert_eq!((fence.timeout_ms, fence.fence_after_ms), (60_000, 5_000));
    let (_, fence) = config.fence_of_peer("alpha").unwrap();
    assert_eq!(fence.agent, Path::new("/opt/fence_own"));
    let options = [("ip", "10.1.0.2"), ("lanplus", "true"), ("plug", "3")];
    let options: Vec<(String, String)> =
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(fence.options, options);
    assert_eq!((fence.action, fence.attempts, fence.delay_ms), (Action::Reboot, 5, 2_000));
    assert_eq!((fence.timeout_ms, fence.fence_after_ms), (30_000, 1_500));
}

#[test]
fn fencing_by_itself_must_be_asked_for_and_is_nothing_with_a_witness() {
    let manual = parse(&FENCED.replace("fencing = \"auto\"\n", "")).unwrap();
    assert!(!manual.fences_lost_primaries() && manual.fence_of_peer("beta").is_some());
    let witness = "[node.gamma]\naddress = \"10.0.0.3\"\nwitness = true\n[resource.web]";
    let voting = parse(&FENCED.replace("[resource.web]", witness)).unwrap();
    assert!(!voting.fences_lost_primaries() && voting.fence_of_peer("beta").is_none());
    assert_eq!(
        voting.warnings,
        ["`fence` has no effect: with a witness, three data nodes or etcd a majority decides"]
    );
    let bare = FENCED.lines().filter(|line| !line.starts_with("fence =")).collect::<Vec<_>>();
    let bare = parse(&bare.join("\n")).unwrap();
    let no_effect = "fencing = \"auto\" has no effect: alpha has no `fence`, and a primary has to \
                     fence its lost peer before it goes on alone";
    assert_eq!(bare.warnings, ["nobody can fence alpha: it has no `fence`", no_effect]);
}

#[test]
fn a_wrong_fence_is_refused() {
    for (right, wrong, said) in [
        ("agent = \"/opt/fence_own\"", "", "`agent` is missing in [node.beta.fence]"),
        ("timeout_ms", "timeout", "unknown key `timeout` in [node.beta.fence]"),
        ("\"reboot\"", "\"cycle\"", "`action` cannot be \"cycle\""),
        ("plug = 3", "action = \"off\"", "`action` is given to the agent by the daemon"),
        ("plug = 3", "plug = [3]", "`plug` must be a string of one line"),
        ("plug = 3", "plug = \"3\\nip=1\"", "`plug` must be a string of one line"),
        ("\"auto\"", "\"always\"", "`fencing` cannot be \"always\""),
        ("/opt/fence_own", "opt/fence_own", "`agent` must be an absolute path"),
    ] {
        let text = refusal(&FENCED.replace(right, wrong));
        assert!(text.contains(said), "{wrong}: {text}");
    }
}

#[test]
fn a_file_with_a_password_that_everybody_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("replicator-secret-{}", std::process::id()));
    let with = |key: &str| FENCED.replace("plug = 3", &format!("{key} = \"x\""));
    for (key, mode, is_refused) in [
        ("password", 0o644, true),
        ("passwd", 0o604, true),
        ("snmp_priv_passwd", 0o644, true),
        ("password", 0o600, false),
        ("password_script", 0o644, false),
        ("username", 0o644, false),
    ] {
        fs::write(&path, with(key)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match ClusterConfig::load(&path) {
            Ok(_) => assert!(!is_refused, "{key} {mode:o}"),
            Err(error) => {
                let text = error.to_string();
                assert!(is_refused && text.contains("is a secret"), "{key} {mode:o}: {text}");
            }
        }
    }
    fs::remove_file(path).unwrap();
}

const WITH_ETCD: &str = r#"cluster = "shop"
register = "etcd"
[etcd]
endpoints = ["http://192.0.2.11", "192.0.2.12:2379", "[2001:db8::3]:4001"]
[node.alpha]
address = "10.0.0.1"
[node.beta]
address = "10.0.0.2"
"#;

#[test]
fn etcd_is_a_majority_without_a_witness() {
    let config = parse(WITH_ETCD).unwrap();
    assert!(config.has_majority() && config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.lease_ms, 5_000);
    let etcd = config.etcd.unwrap();
    let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["192.0.2.11:2379", "192.0.2.12:2379", "[2001:db8::3]:4001"]);
    assert_eq!((etcd.prefix.as_str(), etcd.user), ("/replicator/shop", None));
    assert!(parse(GOOD).unwrap().etcd.is_none());
}

#[test]
fn what_does_not_go_with_etcd_is_refused_with_the_cure() {
    let with = |old: &str, new: &str| {
        assert!(WITH_ETCD.contains(old), "{old}");
        refusal(&WITH_ETCD.replacen(old, new, 1))
    };
    for (old, new, words) in [
        ("192.0.2.12:2379", "etcd2:2379", "host names are not taken"),
        (
            "[node.beta]",
            "[node.gamma]\nwitness = true\naddress = \"10.0.0.3\"\n[node.beta]",
            "two nodes with disks suffice",
        ),
        ("register = \"etcd\"", "register = \"etdc\"", "did you mean \"etcd\"?"),
        ("register = \"etcd\"", "register = \"built-in\"", "has no effect without register"),
        ("register = \"etcd\"", "register = \"etcd\"\nlease_ms = 1000", "move it into [etcd]"),
        ("[etcd]\n", "[etcd]\nlease_ms = 1000\n", "from 2000 to 60000"),
        ("[etcd]\n", "[etcd]\nuser = \"me\"\n", "belong together"),
        ("[etcd]\n", "[etcd]\nprefix = \"/\"\n", "`prefix` must be"),
        ("[etcd]\n", "[etcd]\npasword_file = \"/x\"\n", "did you mean `password_file`?"),
    ] {
        let text = with(old, new);
        assert!(text.contains(words), "{new}: {text}");
    }
    let secure = WITH_ETCD.replace("[etcd]\n", "[etcd]\nca = \"/e/ca\"\n");
    let mixed = secure.replace("http://", "https://");
    let all = mixed.replace("\"192", "\"https://192").replace("\"[20", "\"https://[20");
    let parsed = parse(&all).unwrap().etcd.unwrap();
    assert_eq!(parsed.tls, Some(TlsFiles { ca: "/e/ca".into(), own: None }));
    assert_eq!(parsed.place_of(Path::new("/e/ca")), "r.toml:4:6: ");
    for (text, place, words) in [
        (secure, "5:14", "write \"https://192.0.2.11:2379\""),
        (mixed, "5:36", "`ca` has no effect on 192.0.2.12:2379"),
        (all.replace("ca = \"/e/ca\"", ""), "5:14", "https needs `ca`"),
        (all.replace("ca = ", "key = \"/e/key\"\nca = "), "4:1", "`key` without `certificate`"),
        (all.replace("ca = ", "certificate = \"/e\"\nca = "), "4:1", "`certificate` without `key`"),
        (all.replace("/e/ca", "ca.crt"), "4:6", "must be an absolute path"),
    ] {
        let refused = refusal(&text);
        assert!(refused.contains(&format!("r.toml:{place}: ")), "{refused}");
        assert!(refused.contains(words), "{refused}");
    }
    let bare = WITH_ETCD.replace("[etcd]\nendpoints", "# endpoints");
    assert!(refusal(&bare).contains("`[etcd]` is missing"), "{}", refusal(&bare));
}

#[test]
fn the_watchdog_is_that_of_the_top_level_unless_a_node_has_its_own() {
    use failover::guard::WatchdogWish;

    assert_eq!(parse(GOOD).unwrap().node("alpha").unwrap().watchdog, WatchdogWish::Auto);
    let text = GOOD.replace("[node.alpha]", "watchdog = \"required\"\n[node.alpha]");
    let text = text.replace("[node.beta]", "[node.beta]\nwatchdog = \"/dev/watchdog1\"");
    let config = parse(&text).unwrap();
    assert_eq!(config.node("alpha").unwrap().watchdog, WatchdogWish::Required);
    let device = WatchdogWish::Device("/dev/watchdog1".into());
    assert_eq!(config.node("beta").unwrap().watchdog, device);
    let wrong = refusal(&GOOD.replace("[node.alpha]", "watchdog = \"requird\"\n[node.alpha]"));
    assert!(wrong.contains("did you mean \"required\"?"), "{wrong}");
}

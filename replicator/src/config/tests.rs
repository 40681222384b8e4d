//! What a wrong file is told, in exact words, and what a right one means.

use std::path::Path;

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
    assert_eq!(config.resource("mariadb").unwrap().timing.peer_silence, Span::from_ms(1000));
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
fn a_third_data_node_is_refused_for_now() {
    let text = refusal(&GOOD.replace("witness = true", "witness = false"));
    assert!(text.contains("`gamma` is a third data node; this version supports two"), "{text}");
}

#[test]
fn services_are_refused_for_now() {
    let text = refusal(&format!("{GOOD}services = []\n"));
    assert!(text.contains("`services` come in a later version"), "{text}");
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
        "`ping_interval_ms` is 900, but must be below half of `peer_silence_ms`, which is 1000",
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

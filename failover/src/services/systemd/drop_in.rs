//! What units of ours are told beside their own files, in `/run/systemd/system/UNIT.d`.
//!
//! They are written when the configuration is read, never in a failover: a daemon-reload takes long
//! on a big machine. `Restart=no` and no start limit, because restarting is our decision; and an
//! order for the shutdown of the machine: first the hand-over, in which our daemon stops everything
//! in its own order, then what is left of the services in the reverse order of the list, then the
//! daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use failover_core::services::spec::{Kind, ServiceSpec};

/// Where systemd looks for units that live until the next boot.
pub const RUNTIME_UNITS: &str = "/run/systemd/system";
/// The unit whose stop is the hand-over; see tools/deploy/systemd.
pub const HANDOVER_UNIT: &str = "replicator-handover.service";
const FILE_NAME: &str = "50-replicator.conf";

/// Whose drop-ins these are: the first line of each, so that nobody removes another one's.
pub fn owner_line(cluster: &str, node: &str) -> String {
    format!("# Of replicatord, node {node} of cluster {cluster}, which starts and stops this unit.")
}

/// The drop-in of every unit of these lists of services, by unit. `daemon`: the unit that runs us.
pub fn wanted<'a>(
    lists: impl IntoIterator<Item = &'a [ServiceSpec]>,
    daemon: Option<&str>,
) -> BTreeMap<String, String> {
    let mut orders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for list in lists {
        for service in list {
            let Some(unit) = unit_of(&service.kind) else { continue };
            let earlier = list.iter().filter(|other| other.step < service.step);
            let earlier = earlier.filter_map(|other| unit_of(&other.kind));
            orders.entry(unit).or_default().extend(earlier);
        }
    }
    orders.into_iter().map(|(unit, after)| (unit.clone(), text(&unit, &after, daemon))).collect()
}

fn text(unit: &str, after: &BTreeSet<String>, daemon: Option<&str>) -> String {
    let mut lines = vec!["[Unit]".to_owned()];
    if unit.ends_with(".mount") {
        // By itself systemd wants every local mount before local-fs.target, which comes before us:
        // a circle, out of which it throws some job at each shutdown.
        lines.push("DefaultDependencies=no".to_owned());
        lines.push("Conflicts=umount.target".to_owned());
        lines.push("Before=umount.target".to_owned());
    }
    let after: Vec<&str> = daemon
        .into_iter()
        .chain(after.iter().map(String::as_str))
        .filter(|it| *it != unit)
        .collect();
    if !after.is_empty() {
        lines.push(format!("After={}", after.join(" ")));
    }
    if daemon.is_some() {
        lines.push(format!("Before={HANDOVER_UNIT}"));
    }
    if !unit.ends_with(".mount") {
        lines.push("StartLimitIntervalSec=0".to_owned());
    }
    if unit.ends_with(".service") {
        lines.push("[Service]".to_owned());
        lines.push("Restart=no".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The unit that systemd has for a service, if it has one.
fn unit_of(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Systemd { unit } => Some(unit.clone()),
        // What is mounted has a unit, and without an order systemd would unmount it first.
        Kind::Filesystem { mount_point, .. } => Some(mount_unit(mount_point)),
        _ => None,
    }
}

/// `systemd-escape --path --suffix=mount`.
pub fn mount_unit(mount_point: &str) -> String {
    let parts: Vec<&str> = mount_point.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-.mount".to_owned();
    }
    let mut name = String::new();
    for (place, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if place == 0 => name.push_str("\\x2e"),
            b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name + ".mount"
}

/// Makes the drop-ins of this owner below `dir` exactly these: whether systemd has to read them
/// anew.
pub fn write(dir: &Path, owner: &str, wanted: &BTreeMap<String, String>) -> io::Result<bool> {
    let mut has_changed = false;
    for unit_dir in of_owner(dir, owner)? {
        let unit = unit_dir.file_stem().map(|name| name.to_string_lossy().into_owned());
        if unit.is_none_or(|unit| !wanted.contains_key(&unit)) {
            fs::remove_file(unit_dir.join(FILE_NAME))?;
            // Others may have theirs in it.
            let _ = fs::remove_dir(&unit_dir);
            has_changed = true;
        }
    }
    for (unit, text) in wanted {
        let unit_dir = dir.join(format!("{unit}.d"));
        let path = unit_dir.join(FILE_NAME);
        let text = format!("{owner}\n{text}");
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        fs::create_dir_all(&unit_dir)?;
        let new = unit_dir.join(format!(".{FILE_NAME}.new"));
        fs::File::create(&new)?.write_all(text.as_bytes())?;
        fs::rename(&new, &path)?;
        has_changed = true;
    }
    Ok(has_changed)
}

fn of_owner(dir: &Path, owner: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let text = fs::read_to_string(path.join(FILE_NAME)).unwrap_or_default();
        if path.extension().is_some_and(|it| it == "d") && text.lines().next() == Some(owner) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use failover_core::services::spec::{FsckPolicy, Place, ServiceTiming};
    use replicator_core::Span;

    fn spec(step: u16, kind: Kind) -> ServiceSpec {
        let span = Span::from_ms(1);
        ServiceSpec {
            name: format!("service {step}"),
            kind,
            place: Place::Primary,
            step,
            timing: ServiceTiming { start: span, stop: span, monitor: span, monitor_every: span },
            restarts_max: 0,
            is_critical: true,
        }
    }

    fn list() -> Vec<ServiceSpec> {
        let unit = |unit: &str| Kind::Systemd { unit: unit.to_owned() };
        let mount_point = "/srv/my-data".to_owned();
        let options = Vec::new();
        let fsck = FsckPolicy::Auto;
        vec![
            spec(0, Kind::Filesystem { mount_point, fs_type: None, options, fsck }),
            spec(1, unit("mariadb.service")),
            spec(1, unit("redis.service")),
            spec(2, unit("shop.target")),
        ]
    }

    #[test]
    fn every_unit_comes_after_all_earlier_steps_and_before_the_hand_over() {
        let list = list();
        let wanted = wanted([list.as_slice()], Some("replicator.service"));
        assert_eq!(
            wanted["mariadb.service"],
            "[Unit]\nAfter=replicator.service srv-my\\x2ddata.mount\n\
             Before=replicator-handover.service\nStartLimitIntervalSec=0\n\
             [Service]\nRestart=no\n"
        );
        assert_eq!(
            wanted["shop.target"],
            "[Unit]\nAfter=replicator.service mariadb.service redis.service srv-my\\x2ddata.mount\n\
             Before=replicator-handover.service\nStartLimitIntervalSec=0\n"
        );
        assert_eq!(
            wanted["srv-my\\x2ddata.mount"],
            "[Unit]\nDefaultDependencies=no\nConflicts=umount.target\nBefore=umount.target\n\
             After=replicator.service\nBefore=replicator-handover.service\n"
        );
        assert_eq!(wanted.len(), 4);
    }

    /// systemd itself reads what we ship and write, in a root of its own.
    #[test]
    fn mount_daemon_and_boot_are_in_no_circle() {
        let host = Path::new("/usr/lib/systemd/system");
        if !Path::new("/usr/bin/systemd-analyze").exists() || !host.exists() {
            eprintln!("skipped, there is no systemd-analyze");
            return;
        }
        let root = std::env::temp_dir().join(format!("replicator-circle-{}", std::process::id()));
        let units = root.join("usr/lib/systemd/system");
        let _ = fs::remove_dir_all(&root);
        for program in ["/usr/sbin/replicatord", "/usr/bin/replctl", "/bin/true", "/bin/sh"] {
            let place = root.join(&program[1..]);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy("/bin/true", place).unwrap();
        }
        fs::create_dir_all(&units).unwrap();
        let is_needed = |name: &str| {
            name.ends_with(".target") || name.starts_with("modprobe@") || name == "dbus.service"
        };
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/deploy/systemd");
        for entry in [host, &ours].into_iter().flat_map(|dir| fs::read_dir(dir).unwrap().flatten())
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_needed(&name) || name.starts_with("replicator") {
                // Some are links to others; they are files here.
                let _ = fs::copy(entry.path(), units.join(name));
            }
        }
        let mount = "[Mount]\nWhat=/dev/replicator/db\nWhere=/srv/my-data\n";
        fs::write(units.join("srv-my\\x2ddata.mount"), mount).unwrap();
        let list = &list()[..1];
        write(&units, "# test", &wanted([list], Some("replicator.service"))).unwrap();
        let verified = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no", &format!("--root={}", root.display())])
            .args(["replicator.service", HANDOVER_UNIT, "srv-my\\x2ddata.mount"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains("cycle"), "{said}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn mount_points_are_escaped_as_systemd_escape_does() {
        assert_eq!(mount_unit("/srv/mariadb"), "srv-mariadb.mount");
        assert_eq!(mount_unit("//srv//a b/"), "srv-a\\x20b.mount");
        assert_eq!(mount_unit("/.hidden/x.y"), "\\x2ehidden-x.y.mount");
        assert_eq!(mount_unit("/srv/ä"), "srv-\\xc3\\xa4.mount");
        assert_eq!(mount_unit("/"), "-.mount");
    }

    #[test]
    fn only_what_changed_is_written_and_only_ours_is_removed() {
        let dir = std::env::temp_dir().join(format!("replicator-drop-in-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("b.service.d")).unwrap();
        fs::write(dir.join("b.service.d/10-foreign.conf"), "[Service]\n").unwrap();
        let one = |unit: &str| BTreeMap::from([(unit.to_owned(), "[Unit]\n".to_owned())]);
        let (ours, theirs) = (owner_line("shop", "alpha"), owner_line("shop", "beta"));

        assert!(write(&dir, &ours, &one("b.service")).unwrap());
        assert!(!write(&dir, &ours, &one("b.service")).unwrap());
        assert!(write(&dir, &theirs, &one("c.service")).unwrap());
        assert!(write(&dir, &ours, &BTreeMap::new()).unwrap());
        assert!(dir.join("b.service.d/10-foreign.conf").exists());
        assert!(!dir.join("b.service.d/50-replicator.conf").exists());
        assert!(dir.join("c.service.d/50-replicator.conf").exists());
        assert!(write(&dir, &theirs, &BTreeMap::new()).unwrap());
        assert!(!dir.join("c.service.d").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}

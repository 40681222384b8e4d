//! Whether systemd on this machine has a unit, can start it, and leaves its start to us.

use std::io;
use std::path::Path;
use std::process::Command;

/// What is wrong with a unit of the system below `root`, and what helps; `ours` are all units of
/// its resource.
pub(super) fn problem(root: &Path, unit: &str, ours: &[&str]) -> Option<(String, String)> {
    let asked = Command::new("systemctl")
        .arg(format!("--root={}", root.display()))
        .args(["is-enabled", unit])
        .env("LC_ALL", "C")
        .output();
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let help = "use a `command` or an `ocf` agent in its place";
            return Some((
                format!("there is no systemd on this machine to run {unit}"),
                help.into(),
            ));
        }
        Err(_) => return None,
    };
    let state = String::from_utf8_lossy(&answer.stdout);
    let said = String::from_utf8_lossy(&answer.stderr);
    match state.trim() {
        "not-found" => Some(unknown(unit)),
        "" if said.contains("No such file") => Some(unknown(unit)),
        "masked" | "masked-runtime" => {
            let what = format!("{unit} is masked on this machine, so nobody can start it");
            Some((what, format!("systemctl unmask {unit}")))
        }
        "enabled" | "enabled-runtime" => {
            let help = format!(
                "systemctl disable {unit}, on every data node: at boot the device of this resource \
                 is not there, or is another node's"
            );
            Some((format!("{unit} is started at boot too, on this machine"), help))
        }
        _ => pulled_in(root, unit, ours),
    }
}

fn unknown(unit: &str) -> (String, String) {
    let help = "install it on every data node, or correct its name: systemctl list-unit-files";
    (format!("there is no unit {unit} on this machine"), help.into())
}

/// A running systemd knows who else starts it, also what a generator wrote.
fn pulled_in(root: &Path, unit: &str, ours: &[&str]) -> Option<(String, String)> {
    if root != Path::new("/") || !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let asked = Command::new("systemctl")
        .args(["show", "--property=WantedBy,RequiredBy", "--value", unit])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let others = said.split_whitespace().filter(|other| !ours.contains(other));
    let by = others.collect::<Vec<_>>().join(" ");
    (!by.is_empty()).then(|| {
        let what = format!("{unit} is started by {by} too, on this machine");
        let help = "take it out of there, on every data node; for PostgreSQL of Debian write \
                    `manual` into start.conf";
        (what, help.into())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_systemd_would_not_or_should_not_start_is_said() {
        if Command::new("systemctl").arg("--version").output().is_err() {
            eprintln!("skipped, needs systemctl: what_systemd_would_not");
            return;
        }
        let root = std::env::temp_dir().join(format!("replicator-units-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let (shipped, made) =
            (root.join("usr/lib/systemd/system"), root.join("etc/systemd/system"));
        fs::create_dir_all(&shipped).unwrap();
        fs::create_dir_all(made.join("multi-user.target.wants")).unwrap();
        for name in ["off", "on", "masked"] {
            let text = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n";
            fs::write(shipped.join(format!("{name}.service")), text).unwrap();
        }
        symlink(shipped.join("on.service"), made.join("multi-user.target.wants/on.service"))
            .unwrap();
        symlink("/dev/null", made.join("masked.service")).unwrap();
        let said = |unit: &str| problem(&root, unit, &[]).map(|(what, _)| what).unwrap_or_default();
        assert_eq!(said("off.service"), "");
        assert_eq!(said("on.service"), "on.service is started at boot too, on this machine");
        assert!(said("masked.service").starts_with("masked.service is masked on this machine"));
        assert_eq!(said("none.service"), "there is no unit none.service on this machine");
        fs::remove_dir_all(root).unwrap();
    }
}

//! Whether the programs that a command names are on this machine. A command is for the shell, so
//! only what is surely a program is looked for: its first word, and paths with `/bin/` in them.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, access};

/// What systemd gives the daemon.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first program of a command that is not here, and why; `hidden` are mount points of the
/// resource, below which nothing can be seen where it is not mounted.
pub(super) fn missing(command: &str, hidden: &[&str]) -> Option<(String, String)> {
    let separators = |c: char| c.is_whitespace() || "\"'`;&|()<>=".contains(c);
    let first = command.split_whitespace().next().unwrap_or_default();
    let mut paths = command.split(separators).filter(|word| {
        let is_program = word.contains("/bin/") || word.contains("/sbin/") || *word == first;
        word.starts_with('/') && is_program && is_plain(word)
    });
    let is_hidden = |word: &str| hidden.iter().any(|point| Path::new(word).starts_with(point));
    let not_run = paths.find_map(|word| {
        let error =
            access(Path::new(word), AccessFlags::X_OK).err().filter(|_| !is_hidden(word))?;
        Some((word, error.desc()))
    });
    let found = not_run.or_else(|| {
        let is_name = !first.contains('/') && is_plain(first) && !first.is_empty();
        (is_name && !shell_knows(first)).then_some((first, "it is not installed"))
    });
    found.map(|(word, why)| {
        let help = "install it on every data node: the service may have to start there";
        (format!("`{word}` cannot be run on this machine: {why}"), help.into())
    })
}

fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_alphanumeric() || "/._+-@".contains(c))
}

/// A program of the path, or a word of the shell itself.
fn shell_knows(name: &str) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "command -v -- \"$1\"", "sh", name]).env("PATH", PATH);
    let asked = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(command: &str) -> String {
        missing(command, &["/srv/db"]).map(|(what, _)| what).unwrap_or_default()
    }

    #[test]
    fn only_what_is_surely_a_program_is_missed() {
        for command in [
            "/bin/sh -c true",
            "until /bin/true; do sleep 1; done",
            "sleep 1 & exec sleep 2",
            "LANG=C nosuchprogram",
            "$PROGRAM /etc/nosuch.conf",
            "/srv/db/bin/start",
            "cd /nosuch/dir && true",
            "",
        ] {
            assert_eq!(said(command), "", "{command}");
        }
        assert_eq!(
            said("runuser -u x -- /usr/lib/nosuch/bin/pg_ctl -w start"),
            "`/usr/lib/nosuch/bin/pg_ctl` cannot be run on this machine: No such file or directory"
        );
        assert_eq!(
            said("pg=\"/nosuch/bin/pg\"; $pg stop"),
            "`/nosuch/bin/pg` cannot be run on this machine: No such file or directory"
        );
        assert_eq!(
            said("nosuchprogram --start"),
            "`nosuchprogram` cannot be run on this machine: it is not installed"
        );
        assert!(said("/etc/passwd").ends_with("Permission denied"));
    }
}

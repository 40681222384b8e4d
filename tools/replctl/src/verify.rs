//! `verify --wait`, and what a verify found in words.

use std::fmt::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use replicator::control::{Order, Reply};
use replicator::report::{Repair, ResourceReport, VerifyReport};

use crate::progress::new_bar;
use crate::remote::{ask_daemon, fetch_status, refusal_failure};
use crate::show::{ago, bytes, span};
use crate::{EXIT_DONE, EXIT_NOT_SAFE, EXIT_REFUSED, Failure};

const POLL: Duration = Duration::from_millis(200);

/// Orders a verify and waits until it ended, and until what it found is repaired, if that was
/// ordered. Waits for one that runs already.
pub fn run(socket: &Path, resource: &str, repair: bool, wants_json: bool) -> Result<u8, Failure> {
    let order = Order::Verify { resource: resource.to_owned(), repair };
    let ended_before = newest_end(&reports(socket, resource)?);
    match ask_daemon(socket, order)? {
        Reply::Refused(refusal) if refusal.code == "verify_runs" => {
            eprintln!("replctl: {}; waiting for it", refusal.why);
        }
        Reply::Refused(refusal) => return Err(refusal_failure(&refusal)),
        _ => {}
    }
    let bar = new_bar(wants_json);
    let found = loop {
        let reports = reports(socket, resource)?;
        match reports.iter().find(|it| is_under_way(it)) {
            None => break reports,
            Some(running) if running.state == "running" => {
                bar.set_length(running.total_bytes);
                bar.set_position(running.checked_bytes);
                bar.set_message(format!("{resource}: {}", running.copy));
            }
            Some(repairing) => bar.set_message(format!("{resource}: repair of {}", repairing.copy)),
        }
        thread::sleep(POLL);
    };
    bar.finish_and_clear();
    let found: Vec<VerifyReport> =
        found.into_iter().filter(|it| it.ended_unix_ms > ended_before).collect();
    if wants_json {
        println!("{}", serde_json::to_string_pretty(&found).expect("plain values"));
    } else {
        found.iter().for_each(|it| println!("{resource}: {}", line(it, None)));
    }
    Ok(code_of(&found))
}

fn reports(socket: &Path, resource: &str) -> Result<Vec<VerifyReport>, Failure> {
    let report = fetch_status(socket, Some(resource))?;
    Ok(report.resources.into_iter().next().map(|it| it.verifies).unwrap_or_default())
}

fn newest_end(reports: &[VerifyReport]) -> u64 {
    reports.iter().map(|it| it.ended_unix_ms).max().unwrap_or(0)
}

fn is_under_way(report: &VerifyReport) -> bool {
    report.state == "running" || report.repair == Repair::Running
}

fn code_of(found: &[VerifyReport]) -> u8 {
    if found.iter().any(VerifyReport::is_bad) {
        EXIT_NOT_SAFE
    } else if found.is_empty() || found.iter().any(|it| it.state == "broken") {
        EXIT_REFUSED
    } else {
        EXIT_DONE
    }
}

/// One verify in one line; with an earlier status also how fast it goes.
pub fn line(report: &VerifyReport, earlier: Option<(&ResourceReport, Duration)>) -> String {
    let VerifyReport { copy, with, checked_bytes, total_bytes, .. } = report;
    let mut line = match report.state.as_str() {
        "running" => {
            let done = checked_bytes / (total_bytes / 100).max(1);
            let mut line = format!("verify of {copy} {done} %");
            if let Some(rate) = earlier.and_then(|(before, pause)| rate(report, before, pause)) {
                let left_s = total_bytes.saturating_sub(*checked_bytes) / rate;
                let _ = write!(line, " · {}/s · {} left", bytes(rate), span(left_s * 1000));
            }
            line
        }
        "broken" => format!(
            "verify of {copy} ended early {}, after {} of {}: {}",
            ago(report.ended_unix_ms),
            bytes(*checked_bytes),
            bytes(*total_bytes),
            report.why
        ),
        _ => format!(
            "verified {copy} {}: {} compared with {with}",
            ago(report.ended_unix_ms),
            bytes(*checked_bytes)
        ),
    };
    line += &findings(report);
    line
}

fn findings(report: &VerifyReport) -> String {
    let mut text = String::new();
    if report.differing_blocks > 0 {
        let blocks = if report.differing_blocks == 1 { "block differs" } else { "blocks differ" };
        let _ =
            write!(text, " · {} {blocks}: {}", report.differing_blocks, runs(&report.differing));
    } else if report.state == "ended" {
        text += " · no block differs";
    }
    let here = (report.with.as_str(), report.unreadable_here_bytes);
    let there = (report.copy.as_str(), report.unreadable_there_bytes);
    for (node, unreadable) in [here, there].into_iter().filter(|(_, bytes)| *bytes > 0) {
        let _ = write!(text, " · {node} cannot read {}", bytes(unreadable));
    }
    if !report.unreadable.is_empty() {
        let _ = write!(text, ": {}", runs(&report.unreadable));
    }
    text += match report.repair {
        Repair::None => "",
        Repair::Running => " · being repaired",
        Repair::Done => " · repaired",
        Repair::Unknown => " · the end of the repair was not seen; verify again",
    };
    text
}

/// The first ranges: bytes from and to.
fn runs(runs: &[(u64, u64)]) -> String {
    let shown: Vec<String> =
        runs.iter().take(4).map(|(start, length)| format!("{start}+{length}")).collect();
    let more = if runs.len() > 4 { " ..." } else { "" };
    shown.join(" ") + more
}

fn rate(report: &VerifyReport, before: &ResourceReport, pause: Duration) -> Option<u64> {
    let same = before.verifies.iter().find(|it| it.began_unix_ms == report.began_unix_ms)?;
    let done = report.checked_bytes.checked_sub(same.checked_bytes)?;
    let rate = (done as f64 / pause.as_secs_f64()) as u64;
    (rate > 0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> VerifyReport {
        VerifyReport {
            copy: "beta".into(),
            with: "alpha".into(),
            state: "ended".into(),
            checked_bytes: 1 << 20,
            total_bytes: 1 << 20,
            ..VerifyReport::default()
        }
    }

    #[test]
    fn the_exit_code_says_what_was_found() {
        assert_eq!(code_of(&[ended()]), EXIT_DONE);
        let bad = VerifyReport { differing_blocks: 1, ..ended() };
        assert_eq!(code_of(&[ended(), bad.clone()]), EXIT_NOT_SAFE);
        let repaired = VerifyReport { repair: Repair::Done, ..bad };
        assert_eq!(code_of(&[repaired]), EXIT_DONE);
        let unreadable = VerifyReport { unreadable_there_bytes: 65536, ..ended() };
        assert_eq!(code_of(&[unreadable]), EXIT_NOT_SAFE);
        let broken = VerifyReport { state: "broken".into(), ..ended() };
        assert_eq!(code_of(&[broken]), EXIT_REFUSED);
        assert_eq!(code_of(&[]), EXIT_REFUSED, "its result was not seen");
    }

    #[test]
    fn findings_are_named_in_one_line() {
        let differing = vec![(8192, 4096), (65536, 8192)];
        let bad = VerifyReport { differing_blocks: 3, differing, ..ended() };
        assert_eq!(findings(&bad), " · 3 blocks differ: 8192+4096 65536+8192");
        assert_eq!(findings(&ended()), " · no block differs");
    }
}

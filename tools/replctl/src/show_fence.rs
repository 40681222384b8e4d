//! Fencing in words: what it does, why it did not do more, and what to type.

use std::fmt::Write;

use replicator::fence::FenceReport;

use crate::show::{refusal, span};

/// The lines of a status.
pub fn status(out: &mut String, fence: &FenceReport) {
    head(out, fence);
    // The reason it waits for now, or why it failed last.
    for explanation in fence.explain.iter().chain(&fence.failure).take(1) {
        let text = refusal(&explanation.refusal);
        let text = text.trim_start_matches("refused: ");
        let _ = writeln!(out, "  no takeover for {}: {text}", span(explanation.since_ms));
    }
}

fn head(out: &mut String, fence: &FenceReport) {
    let how = if fence.is_automatic { "auto" } else { "manual" };
    let _ = writeln!(
        out,
        "fence: {} by {} · {how} · {} for {}",
        fence.peer,
        fence.agent,
        fence.state,
        span(fence.state_ms)
    );
    if !fence.activity.is_empty() {
        let _ = writeln!(out, "  {}", fence.activity);
    }
    if let Some((text, ago_ms)) = &fence.last_fenced {
        let _ = writeln!(out, "  last: {text} ({} ago)", span(*ago_ms));
    }
}

/// Why this node does not take the office of a silent peer.
pub fn explain(fence: &FenceReport, node: &str) -> String {
    let mut out = String::new();
    head(&mut out, fence);
    match &fence.explain {
        None => {
            let _ = writeln!(out, "{node}: nothing is in the way");
        }
        Some(explanation) => {
            let text = refusal(&explanation.refusal);
            let _ = writeln!(
                out,
                "{node} does not take the office of {} (for {}): {}",
                fence.peer,
                span(explanation.since_ms),
                text.trim_start_matches("refused: ")
            );
        }
    }
    if fence.explain.is_none()
        && let Some(failure) = &fence.failure
    {
        let text = refusal(&failure.refusal);
        let _ = writeln!(out, "attempts failed, the first {} ago: {text}", span(failure.since_ms));
    }
    out
}

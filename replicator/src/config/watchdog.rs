//! `watchdog`: which watchdog of the kernel guards a node's services, at the top level or of one
//! node.

use failover::guard::WatchdogWish;

use super::problem::suggestion;
use super::reader::Section;

const WORDS: [&str; 3] = ["auto", "required", "off"];

/// Reads it, or takes what the top level says.
pub(super) fn watchdog(section: &mut Section<'_>, from: &WatchdogWish) -> WatchdogWish {
    let Some(text) = section.string("watchdog") else { return from.clone() };
    WatchdogWish::parse(&text.value).unwrap_or_else(|| {
        let help = match suggestion(&text.value, &WORDS) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "it is \"auto\", \"required\", \"off\", or a device like \"/dev/watchdog1\""
                .to_owned(),
        };
        section.problem(text.span, format!("`watchdog` cannot be \"{}\"", text.value), help);
        from.clone()
    })
}

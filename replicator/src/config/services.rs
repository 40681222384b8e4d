//! `services = [ ... ]` of a resource: what runs on top of it, in the order of its start; and on
//! which node it prefers to run.
//!
//! ```text
//!   kinds.rs   the keys of each kind, and its defaults
//!   rules.rs   what services may not be to each other, and to the nodes
//!   local.rs   what `replctl check` looks for on the machine it runs on
//! ```

mod kinds;
pub mod local;
mod rules;

use std::collections::BTreeMap;
use std::ops::Range;

use failover::core::services::{Kind, Place, ServiceSpec, ServiceTiming};
use replicator_core::Span;
use toml::Spanned;
use toml::de::DeValue;

pub(super) use rules::check;

use super::reader::{Placed, Problems, Section};

/// Services of one resource; far more than anybody has.
const SERVICES_MAX: usize = 100;
/// The keys that say what a service is.
const KINDS: [&str; 6] = ["filesystem", "address", "systemd", "ocf", "command", "reach"];
const SHAPE: &str = "write services = [ { filesystem = \"/srv/x\" }, { systemd = \"x.service\" } ]";

/// Where a service stands in the file, and which of its deadlines are its own and no defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePlace {
    /// The value of the key that says what it is.
    pub span: Range<usize>,
    /// The values of all its keys.
    pub values: BTreeMap<String, Range<usize>>,
    /// `start_timeout_ms` is in the file.
    pub start_is_given: bool,
    /// `stop_timeout_ms` is in the file.
    pub stop_is_given: bool,
    /// `monitor_timeout_ms` is in the file.
    pub monitor_is_given: bool,
    /// `monitor_every_ms` is in the file.
    pub every_is_given: bool,
}

/// Where a resource is to run, and what runs on top of it.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// In the order of their start.
    pub specs: Vec<ServiceSpec>,
    /// Where each of them stands in the file.
    pub places: Vec<ServicePlace>,
    /// Nodes that it runs on if it can, best first.
    pub prefer: Vec<String>,
    /// Nodes that it runs on only if it must.
    pub avoid: Vec<String>,
    /// The resource on whose node it must run.
    pub with: Option<String>,
    /// Where `with` stands.
    pub(super) with_span: Range<usize>,
}

/// Reads what a resource says about its services.
pub(super) fn services(
    section: &mut Section<'_>,
    data_nodes: &[&str],
    witnesses: &[&str],
) -> Services {
    let mut found = Services {
        prefer: node_names(section, "prefer", data_nodes, witnesses),
        avoid: node_names(section, "avoid", data_nodes, witnesses),
        ..Services::default()
    };
    if let Some(with) = section.string("with") {
        found.with = Some(with.value);
        found.with_span = with.span;
    }
    if let Some(both) = found.prefer.iter().find(|node| found.avoid.contains(node)) {
        let what = format!("{} prefers {both} and avoids it", section.name);
        section.problem(section.key_span("avoid"), what, "remove it from one of the two lists");
    }
    let Some(value) = section.raw("services") else { return found };
    let title = section.name.trim_matches(['[', ']']).trim_start_matches("resource.").to_owned();
    let mut list = List { resource: title, problems: section.problems(), step: 0, found };
    list.entries(value);
    list.found
}

/// The list while it is read.
struct List<'a> {
    resource: String,
    problems: &'a Problems,
    step: u16,
    found: Services,
}

impl<'a> List<'a> {
    fn entries(&mut self, value: &'a Spanned<DeValue<'a>>) {
        let Some(entries) = value.get_ref().as_array() else {
            self.problems.add(value.span(), "`services` must be a list of tables", SHAPE);
            return;
        };
        for entry in entries.iter() {
            let Some(mut section) = self.section(entry) else { continue };
            match section.raw("parallel") {
                Some(group) => {
                    section.finish();
                    self.group(group);
                }
                None => self.service(section),
            }
            self.step += 1;
        }
        if self.found.specs.len() > SERVICES_MAX {
            let what = format!("{} services; {SERVICES_MAX} are possible", self.found.specs.len());
            self.problems.add(value.span(), what, "put some of them into one systemd target");
        }
    }

    /// `{ parallel = [ {...}, {...} ] }`: one step of the order.
    fn group(&mut self, group: &'a Spanned<DeValue<'a>>) {
        let Some(members) = group.get_ref().as_array() else {
            let help = "write { parallel = [ { systemd = \"a.service\" }, { systemd = \
                        \"b.service\" } ] }";
            self.problems.add(group.span(), "`parallel` must be a list of tables", help);
            return;
        };
        for member in members.iter() {
            let Some(mut section) = self.section(member) else { continue };
            if section.raw("parallel").is_some() {
                let span = section.key_span("parallel");
                let help = "its services start together anyway: put them into the outer one";
                self.problems.add(span, "`parallel` inside of `parallel`", help);
                continue;
            }
            self.service(section);
        }
    }

    fn section(&self, entry: &'a Spanned<DeValue<'a>>) -> Option<Section<'a>> {
        let Some(table) = entry.get_ref().as_table() else {
            self.problems.add(entry.span(), "a service must be a table", SHAPE);
            return None;
        };
        let title = format!("a service of {}", self.resource);
        Some(Section::new(title, entry.span(), table, self.problems))
    }

    fn service(&mut self, mut section: Section<'a>) {
        let Some(word) = self.kind_of(&mut section) else { return };
        section.name = format!("a service of kind {word}");
        let span = section.keys().into_iter().find(|(key, ..)| *key == word);
        let span = span.map_or(section.span.clone(), |(.., value)| value);
        let Some((given, kind)) = kinds::kind(word, &mut section) else {
            // What else is wrong with it still shows.
            common(&mut section, word);
            section.finish();
            return;
        };
        let (name, shared) = common(&mut section, word);
        section.finish();
        if matches!(kind, Kind::Filesystem { .. }) && shared.place != Place::Primary {
            let help = "remove `on`: only the primary has the device";
            self.problems.add(span.clone(), "a file system runs where the primary is", help);
        }
        let name = name.unwrap_or(given);
        if self.found.specs.iter().any(|other| other.name == name) {
            let what = format!("two services of {} are called {name:?}", self.resource);
            self.problems.add(span.clone(), what, "give one of them another `name = \"...\"`");
        }
        self.found.specs.push(ServiceSpec {
            name,
            kind,
            place: shared.place,
            step: self.step,
            timing: shared.timing,
            restarts_max: shared.restarts_max,
            is_critical: shared.is_critical,
        });
        self.found.places.push(ServicePlace { span, ..shared.known });
    }

    /// The one key that says what it is.
    fn kind_of(&self, section: &mut Section<'a>) -> Option<&'static str> {
        let mut found = KINDS.into_iter().filter(|word| section.raw(word).is_some());
        let (first, second) = (found.next(), found.next());
        drop(found);
        if let (Some(first), Some(second)) = (first, second) {
            let what = format!("one service cannot be `{first}` and `{second}`");
            let help = format!("write two: {{ {first} = ... }}, {{ {second} = ... }}");
            self.problems.add(section.span.clone(), what, help);
            return None;
        }
        if first.is_none() {
            let meant = section.keys().into_iter().find_map(|(key, span, _)| {
                super::suggestion(key, &KINDS).map(|kind| (key, kind, span))
            });
            let (span, what, help) = match meant {
                Some((key, kind, span)) => (
                    span,
                    format!("`{key}` is no kind of service"),
                    format!("did you mean `{kind}`?"),
                ),
                None => (
                    section.span.clone(),
                    "it is not said what this service is".into(),
                    format!("one of its keys must be: {}", KINDS.join(", ")),
                ),
            };
            self.problems.add(span, what, help);
        }
        first
    }
}

/// What services of every kind have.
struct Shared {
    place: Place,
    timing: ServiceTiming,
    restarts_max: u32,
    is_critical: bool,
    known: ServicePlace,
}

fn common(section: &mut Section<'_>, kind: &str) -> (Option<String>, Shared) {
    let default = kinds::timing(kind);
    let mut given = |key, range| section.number(key, range).map(Span::from_ms);
    let start = given("start_timeout_ms", 100..=3_600_000);
    let stop = given("stop_timeout_ms", 100..=3_600_000);
    let monitor = given("monitor_timeout_ms", 100..=600_000);
    let every = given("monitor_every_ms", 0..=86_400_000);
    let place = match section.word("on", &["primary", "secondary", "all"]) {
        Some("secondary") => Place::Secondary,
        Some("all") => Place::All,
        _ => Place::Primary,
    };
    if every.is_some_and(|every| every.0 > 0 && every.as_ms() < 100) {
        let help = "0 turns it off; the kernel and systemd tell at once what they know anyway";
        let what = "`monitor_every_ms` must be 0 or at least 100";
        section.problem(section.key_span("monitor_every_ms"), what, help);
    }
    let restarts = section.number("restarts", 0..=1_000).map(|count| count as u32);
    let shared = Shared {
        place,
        timing: ServiceTiming {
            start: start.unwrap_or(default.start),
            stop: stop.unwrap_or(default.stop),
            monitor: monitor.unwrap_or(default.monitor),
            monitor_every: every.unwrap_or(default.monitor_every),
        },
        restarts_max: restarts.unwrap_or_else(|| kinds::restarts(kind)),
        is_critical: section.boolean("critical").unwrap_or(place == Place::Primary),
        known: ServicePlace {
            span: 0..0,
            values: section.keys().into_iter().map(|(key, _, at)| (key.to_owned(), at)).collect(),
            start_is_given: start.is_some(),
            stop_is_given: stop.is_some(),
            monitor_is_given: monitor.is_some(),
            every_is_given: every.is_some(),
        },
    };
    let name = section.string("name").and_then(|name| checked_name(section, name));
    (name, shared)
}

/// A name appears in commands, logs and messages: one short line.
fn checked_name(section: &Section<'_>, name: Placed<String>) -> Option<String> {
    let is_good = !name.value.trim().is_empty()
        && name.value.len() <= 100
        && !name.value.chars().any(char::is_control);
    if !is_good {
        let what = format!("a service cannot be called {:?}", name.value);
        section.problem(name.span, what, "a name is one line of 1 to 100 characters");
        return None;
    }
    Some(name.value)
}

/// `prefer` and `avoid`: a node, or a list of nodes.
fn node_names(
    section: &mut Section<'_>,
    key: &'static str,
    data_nodes: &[&str],
    witnesses: &[&str],
) -> Vec<String> {
    let mut names = Vec::new();
    for name in section.strings(key).unwrap_or_default() {
        let word = name.value.as_str();
        if data_nodes.contains(&word) {
            if !names.contains(&name.value) {
                names.push(name.value);
            }
            continue;
        }
        let what = match witnesses.contains(&word) {
            true => format!("`{key}` names {word}, which is a witness and runs no services"),
            false => format!("`{key}` names {word:?}, which is no node of this file"),
        };
        let help = match super::suggestion(word, data_nodes) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("the data nodes are: {}", data_nodes.join(", ")),
        };
        section.problem(name.span, what, help);
    }
    names
}

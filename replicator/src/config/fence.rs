//! `[node.NAME.fence]`: how the others switch that node off when there is no witness, and whether
//! they do it by themselves (`fencing`).

use std::ops::Range;
use std::path::{Path, PathBuf};

use failover::core::fence::Action;

use super::NodeConfig;
use super::reader::{Placed, Section, absolute};

/// Where agents are looked up that are given by name.
const AGENT_DIR: &str = "/usr/sbin";
/// What the daemon says itself to the agent.
const OWN_OPTIONS: [&str; 3] = ["action", "option", "nodename"];
/// Words in the names of options that hold secrets.
const SECRET_WORDS: [&str; 4] = ["passw", "secret", "token", "api_key"];

/// How one node is switched off.
#[derive(Clone, PartialEq, Eq)]
pub struct FenceConfig {
    /// The program.
    pub agent: PathBuf,
    /// What is written to its standard input, one `key=value` a line, besides `action`.
    pub options: Vec<(String, String)>,
    /// A file whose content becomes the option `password`.
    pub password_file: Option<PathBuf>,
    /// The agent is killed after so long, and that counts as a failure.
    pub timeout_ms: u64,
    /// Off, or off and on again once the office is taken.
    pub action: Action,
    /// Attempts in a row before a longer pause.
    pub attempts: u32,
    /// How much longer the node that holds fewer offices waits, when both fence each other.
    pub delay_ms: u64,
    /// A lost primary is fenced when it was silent for so long.
    pub fence_after_ms: u64,
    /// Where a secret stands in the file, and the key.
    pub secret: Option<(Range<usize>, String)>,
}

/// Options may be secrets: they are not shown.
impl std::fmt::Debug for FenceConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FenceConfig").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl FenceConfig {
    /// The agent in messages: its file name.
    pub fn label(&self) -> String {
        let name = self.agent.file_name().unwrap_or(self.agent.as_os_str());
        name.to_string_lossy().into_owned()
    }
}

/// Reads the table of a node, if there is one.
pub(super) fn fence(node: &str, from: &mut Section<'_>, is_witness: bool) -> Option<FenceConfig> {
    let mut section = from.section("fence")?;
    section.name = format!("[node.{node}.fence]");
    if is_witness {
        let span = section.span.clone();
        section.problem(span, format!("{node} is a witness: nobody fences it"), "remove it");
    }
    let agent = agent(&mut section);
    let (options, secret) = options(&mut section);
    let fence = agent.map(|agent| FenceConfig {
        agent,
        options,
        password_file: section.path("password_file"),
        timeout_ms: section.number("timeout_ms", 100..=600_000).unwrap_or(60_000),
        action: match section.word("action", &["off", "reboot"]) {
            Some("reboot") => Action::Reboot,
            _ => Action::Off,
        },
        attempts: section.number("attempts", 1..=20).map_or(3, |attempts| attempts as u32),
        delay_ms: section.number("delay_ms", 0..=600_000).unwrap_or(0),
        fence_after_ms: section.number("fence_after_ms", 500..=3_600_000).unwrap_or(5_000),
        secret,
    });
    // Without an agent the other keys are still known.
    if fence.is_some() {
        section.finish();
    }
    fence
}

fn agent(section: &mut Section<'_>) -> Option<PathBuf> {
    let Some(text) = section.string("agent") else {
        let what = format!("`agent` is missing in {}", section.name);
        let help = "write agent = \"fence_ipmilan\", or the absolute path of a program that keeps \
                    the contract of the fence agents";
        section.problem(section.span.clone(), what, help);
        return None;
    };
    if text.value.contains('/') {
        return absolute(section.problems(), "agent", &text);
    }
    Some(Path::new(AGENT_DIR).join(&text.value))
}

type Options = (Vec<(String, String)>, Option<(Range<usize>, String)>);

/// `options = { ip = "10.1.0.1", lanplus = true, plug = 3 }`.
fn options(section: &mut Section<'_>) -> Options {
    let (mut options, mut secret) = (Vec::new(), None);
    let Some(value) = section.raw("options") else { return (options, secret) };
    let Some(table) = value.get_ref().as_table() else {
        let help = "write options = { ip = \"10.1.0.1\", username = \"admin\" }";
        section.problem(value.span(), "`options` must be a table", help);
        return (options, secret);
    };
    for (name, value) in table.iter() {
        let key: &str = name.get_ref();
        let text = match value.get_ref() {
            value if value.as_str().is_some() => value.as_str().map(str::to_owned),
            value if value.as_bool().is_some() => value.as_bool().map(|it| it.to_string()),
            value => value.as_integer().map(|it| it.as_str().to_owned()),
        };
        let Some(text) = text.filter(|text| !text.contains(['\n', '\r', '\0'])) else {
            let what = format!("`{key}` must be a string of one line, a whole number or a boolean");
            section.problem(value.span(), what, "");
            continue;
        };
        let placed = Placed { value: key.to_owned(), span: name.span() };
        if let Some((what, help)) = wrong_option(key) {
            section.problem(placed.span, what, help);
            continue;
        }
        if is_secret(key) && secret.is_none() {
            secret = Some((placed.span, placed.value));
        }
        options.push((key.to_owned(), text));
    }
    (options, secret)
}

fn wrong_option(key: &str) -> Option<(String, &'static str)> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !key.chars().all(is_plain) || key.is_empty() {
        return Some((format!("{key:?} is no name of an option"), "see `AGENT -o metadata`"));
    }
    if key == "password_file" {
        let help = "move it out of `options`: it belongs beside `agent`";
        return Some(("`password_file` is no option of agents".into(), help));
    }
    OWN_OPTIONS.contains(&key).then(|| {
        let help = "remove it; `action = \"off\"` or \"reboot\" stands beside `agent`";
        (format!("`{key}` is given to the agent by the daemon"), help)
    })
}

/// Whether an option is a secret, by its name; one that only says where the secret is is none.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let elsewhere = key.ends_with("_script") || key.ends_with("_file");
    !elsewhere && SECRET_WORDS.iter().any(|word| key.contains(word))
}

/// What an operator should know about the tables of all nodes together.
pub(super) fn warnings(
    nodes: &[NodeConfig],
    has_majority: bool,
    is_automatic: bool,
) -> Vec<String> {
    let fenced = nodes.iter().filter(|node| node.fence.is_some()).count();
    let data_nodes = nodes.iter().filter(|node| !node.witness).count();
    if has_majority {
        let text =
            "`fence` has no effect: with a witness, three data nodes or etcd a majority decides";
        return if fenced > 0 { vec![text.to_owned()] } else { Vec::new() };
    }
    let mut warnings = Vec::new();
    if is_automatic && fenced == 0 {
        warnings.push("fencing = \"auto\" has no effect: no node has a [node.NAME.fence]".into());
    }
    if fenced > 0 && fenced < data_nodes {
        let bare = nodes.iter().filter(|node| !node.witness && node.fence.is_none());
        let names = bare.map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        warnings.push(format!("nobody can fence {names}: it has no `fence`"));
        if is_automatic {
            warnings.push(format!(
                "fencing = \"auto\" has no effect: {names} has no `fence`, and a primary has to \
                 fence its lost peer before it goes on alone"
            ));
        }
    }
    warnings
}

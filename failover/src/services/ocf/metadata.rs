//! What a resource agent says of itself: its parameters, and how long its actions may take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::Failure;
use super::super::process::{Order, output_of};
use super::super::scope::Scope;

/// Longer meta-data are nobody's.
const OUTPUT_MAX: u64 = 1 << 20;
/// An agent that needs longer to print its meta-data does more than that.
const READ_LIMIT: Duration = Duration::from_secs(15);

/// The meta-data of one agent.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Metadata {
    /// In the order of the agent.
    pub parameters: Vec<Parameter>,
    /// In the order of the agent.
    pub actions: Vec<Action>,
}

/// One parameter of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// It has no default, and nothing works without it.
    pub is_required: bool,
    /// Superseded by another one, but still taken.
    pub is_deprecated: bool,
    /// `string`, `integer`, `boolean`, ...
    pub content: String,
    /// What the agent takes when it is not given.
    pub default: Option<String>,
}

/// One action that an agent advertises.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    /// `start`, `monitor`, ...
    pub name: String,
    /// How long it may take.
    pub timeout_ms: Option<u64>,
    /// How often it is to be run.
    pub interval_ms: Option<u64>,
    /// How deep a monitor looks.
    pub depth: u32,
}

/// Where an agent is.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    /// `/usr/lib/ocf`.
    pub root: &'a Path,
    /// `heartbeat`.
    pub provider: &'a str,
    /// `IPaddr2`.
    pub agent: &'a str,
}

impl Agent<'_> {
    /// The program.
    pub fn path(&self) -> PathBuf {
        self.root.join("resource.d").join(self.provider).join(self.agent)
    }

    /// As messages name it.
    pub fn label(&self) -> String {
        format!("ocf:{}:{}", self.provider, self.agent)
    }

    /// Whether it is there and can be run.
    pub fn is_there(&self) -> Result<(), Failure> {
        let path = self.path();
        nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).map_err(|errno| Failure {
            code: "agent_missing".into(),
            why: format!("{} cannot be run: {}: {errno}", self.label(), path.display()),
            next: match self.others() {
                others if others.is_empty() => "apt install resource-agents".into(),
                others => format!("install it on every node; {others}"),
            },
            is_permanent: true,
        })
    }

    /// Agents with a similar name, most likely the one that was meant.
    fn others(&self) -> String {
        let dir = self.root.join("resource.d").join(self.provider);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let wanted = self.agent.to_ascii_lowercase();
        let is_like = |name: &&String| {
            let name = name.to_ascii_lowercase();
            name.starts_with(&wanted) || wanted.starts_with(&name)
        };
        let like: Vec<&str> = names.iter().filter(is_like).map(String::as_str).take(5).collect();
        match (like.is_empty(), names.len()) {
            (false, _) => format!("there are {}", like.join(", ")),
            (true, 0) => String::new(),
            (true, count) => format!("{} has {count} others", self.provider),
        }
    }

    /// Asks it. An agent that is there and says nothing useful has no meta-data, and that is all.
    pub async fn metadata(&self, scope: &Scope) -> Result<Option<Metadata>, Failure> {
        self.is_there()?;
        let order = Order {
            program: self.path(),
            arguments: vec!["meta-data".into()],
            environment: self.basics(),
        };
        let output = tokio::time::timeout(READ_LIMIT, output_of(&order, scope, OUTPUT_MAX)).await;
        let Ok(Ok((status, bytes))) = output else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        Ok(status.success().then(|| parse(&text)).flatten())
    }

    /// The same, for those who have no runtime.
    pub fn metadata_now(&self, run_dir: &Path) -> Result<Option<Metadata>, Failure> {
        self.is_there()?;
        let scope = Scope::new(run_dir, "check", &self.label(), "meta-data");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return Ok(None) };
        let found = runtime.block_on(self.metadata(&scope));
        scope.tidy();
        found
    }

    /// The part of the environment that every action has.
    pub fn basics(&self) -> Vec<(String, String)> {
        [
            ("OCF_ROOT", self.root.display().to_string()),
            ("OCF_RA_VERSION_MAJOR", "1".into()),
            ("OCF_RA_VERSION_MINOR", "1".into()),
            ("OCF_RESOURCE_TYPE", self.agent.into()),
            ("OCF_RESOURCE_PROVIDER", self.provider.into()),
            ("OCF_EXIT_REASON_PREFIX", super::REASON.into()),
            ("OCF_OUTPUT_FORMAT", "text".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

impl Metadata {
    /// The advice for one action; of several monitors the one that looks least deep.
    pub fn action(&self, name: &str) -> Option<&Action> {
        self.actions.iter().filter(|action| action.name == name).min_by_key(|action| action.depth)
    }

    /// Parameters that the agent does not know.
    pub fn unknown<'a>(&self, given: &'a BTreeMap<String, String>) -> Vec<&'a str> {
        let is_known = |name: &str| {
            name == "OCF_CHECK_LEVEL"
                || name.starts_with("CRM_meta_")
                || self.parameters.iter().any(|parameter| parameter.name == name)
        };
        given.keys().map(String::as_str).filter(|name| !is_known(name)).collect()
    }

    /// Required parameters that are not given.
    pub fn missing(&self, given: &BTreeMap<String, String>) -> Vec<&str> {
        let is_missing = |parameter: &&Parameter| {
            parameter.is_required
                && !parameter.is_deprecated
                && parameter.default.as_deref().unwrap_or_default().is_empty()
                && !given.contains_key(&parameter.name)
        };
        self.parameters.iter().filter(is_missing).map(|it| it.name.as_str()).collect()
    }
}

/// Reads the XML; what it does not understand is left out.
pub fn parse(text: &str) -> Option<Metadata> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text.trim(), options).ok()?;
    let root = document.root_element();
    if !root.has_tag_name("resource-agent") {
        return None;
    }
    let all = |name: &'static str| root.descendants().filter(move |node| node.has_tag_name(name));
    let is_on = |node: roxmltree::Node<'_, '_>, key: &str| {
        matches!(node.attribute(key), Some("1" | "true" | "yes"))
    };
    let parameter = |node: roxmltree::Node<'_, '_>| {
        let content = node.children().find(|child| child.has_tag_name("content"));
        let of_content = |key: &str| content.and_then(|it| it.attribute(key).map(str::to_owned));
        Some(Parameter {
            name: node.attribute("name")?.to_owned(),
            is_required: is_on(node, "required"),
            is_deprecated: is_on(node, "deprecated")
                || node.children().any(|child| child.has_tag_name("deprecated")),
            content: of_content("type").unwrap_or_default(),
            default: of_content("default"),
        })
    };
    let action = |node: roxmltree::Node<'_, '_>| {
        Some(Action {
            name: node.attribute("name")?.to_owned(),
            timeout_ms: node.attribute("timeout").and_then(duration_ms),
            interval_ms: node.attribute("interval").and_then(duration_ms),
            depth: node.attribute("depth").and_then(|it| it.parse().ok()).unwrap_or(0),
        })
    };
    Some(Metadata {
        parameters: all("parameter").filter_map(parameter).collect(),
        actions: all("action").filter_map(action).collect(),
    })
}

/// `20`, `20s`, `500ms`, `2min`, `1h`: plain numbers are seconds.
fn duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "ms" | "msec" => 1,
        "" | "s" | "sec" => 1_000,
        "m" | "min" => 60_000,
        "h" | "hr" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="vip" version="1.0">
<longdesc lang="en">a &gt;= b</longdesc>
<parameters>
<parameter name="ip" unique="1" required="1"><content type="string" default="" /></parameter>
<parameter name="port" required="1"><content type="integer" default="80" /></parameter>
<parameter name="old" required="1"><deprecated/><content type="string"/></parameter>
<parameter name="nic"><content type="string" default="eth0"/></parameter>
</parameters>
<actions>
<action name="start" timeout="20s" />
<action name="stop" timeout="120" />
<action name="monitor" depth="10" timeout="60s" interval="2min" />
<action name="monitor" depth="0" timeout="500ms" interval="10s" />
</actions>
</resource-agent>
"#;

    #[test]
    fn meta_data_tell_parameters_and_times() {
        let metadata = parse(TEXT).unwrap();
        assert_eq!(metadata.action("start").unwrap().timeout_ms, Some(20_000));
        assert_eq!(metadata.action("stop").unwrap().timeout_ms, Some(120_000));
        let monitor = metadata.action("monitor").unwrap();
        assert_eq!((monitor.timeout_ms, monitor.interval_ms), (Some(500), Some(10_000)));
        assert_eq!(metadata.action("promote"), None);
        let given = |names: &[&str]| -> BTreeMap<String, String> {
            names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect()
        };
        assert_eq!(metadata.missing(&given(&[])), ["ip"]);
        assert!(metadata.missing(&given(&["ip"])).is_empty());
        assert_eq!(metadata.unknown(&given(&["ip", "nci", "OCF_CHECK_LEVEL"])), ["nci"]);
    }

    #[test]
    fn what_is_no_meta_data_is_none() {
        for text in ["", "<a/>", "<resource-agent>", "usage: vip start|stop", "\0\u{1}"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse("<resource-agent/>"), Some(Metadata::default()));
        assert_eq!(duration_ms("99999999999999999999"), None);
        assert_eq!(duration_ms("18446744073709551615h"), None);
        assert_eq!(duration_ms("1 week"), None);
    }
}

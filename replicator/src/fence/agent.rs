//! Runs a fence agent: options on its standard input, a process group of its own, an end in time,
//! and what it said. The contract is that of Debian's and Red Hat's `fence-agents`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use failover::core::fence::Ended;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::unistd::{AccessFlags, Pid, access};

use crate::config::FenceConfig;

/// What is kept of the end of its words.
const SAID_MAX: usize = 600;
/// What is kept of its metadata.
const METADATA_MAX: usize = 1 << 20;
const PASSWORD_MAX: u64 = 4096;
/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How long output may follow an end: a child that it left behind may keep the pipes.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(500);

/// A run that is over.
pub struct Run {
    /// How it ended.
    pub ended: Ended,
    /// The end of its standard error, or why it could not be run; one line.
    pub said: String,
    /// Its standard output, bounded.
    pub output: String,
}

/// Runs the agent of `node` with one action. Waits for its end, at most the configured time.
pub fn run(config: &FenceConfig, node: &str, action: &str) -> Run {
    let failed = |said: String| Run { ended: Ended::NotRun, said, output: String::new() };
    let input = match input(config, node, action) {
        Ok(input) => input,
        Err(why) => return failed(why),
    };
    let mut child = match spawn(&config.agent) {
        Ok(child) => child,
        Err(error) => return failed(format!("{}: {error}", config.agent.display())),
    };
    // Smaller than a pipe; an agent that does not read it shows in how it ends.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let words = Words::collect(child.stdout.take(), child.stderr.take());
    let ended = wait(&mut child, Duration::from_millis(config.timeout_ms));
    let (output, said) = words.finish();
    Run { ended, said, output }
}

fn spawn(program: &Path) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: sigprocmask is safe between fork and exec; the closure touches nothing else.
    unsafe {
        command.pre_exec(|| {
            // The daemon's threads block the signals that its main thread waits for.
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    command.spawn()
}

/// The lines for its standard input.
fn input(config: &FenceConfig, node: &str, action: &str) -> Result<String, String> {
    let mut input = format!("action={action}\nnodename={node}\n");
    for (key, value) in &config.options {
        input += &format!("{key}={value}\n");
    }
    if let Some(path) = &config.password_file {
        input += &format!("password={}\n", password(path)?);
    }
    Ok(input)
}

/// The first line of a file that only its owner may read.
pub fn password(path: &Path) -> Result<String, String> {
    let wrong = |error: io::Error| format!("password_file {}: {error}", path.display());
    let file = File::open(path).map_err(wrong)?;
    let mode = file.metadata().map_err(wrong)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "password_file {} has mode {mode:04o}, so that others can read or change it; run \
             `chmod 0600 {}`",
            path.display(),
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(PASSWORD_MAX).read_to_string(&mut text).map_err(wrong)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Waits for its end; after its time the whole process group is killed, so that no child of it
/// switches anything later.
fn wait(child: &mut Child, limit: Duration) -> Ended {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            // One that was killed by a signal did not do what it was asked.
            Ok(Some(status)) => return Ended::Exit(status.code().unwrap_or(128)),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            _ => {
                let group = Pid::from_raw(child.id() as i32);
                let _ = killpg(group, Signal::SIGKILL);
                let _ = child.wait();
                return Ended::TimedOut;
            }
        }
    }
}

/// What it writes, collected by two threads that end with the pipes.
struct Words {
    output: Arc<Mutex<Vec<u8>>>,
    said: Arc<Mutex<Vec<u8>>>,
    over: mpsc::Receiver<()>,
}

impl Words {
    fn collect(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Self {
        let (sender, over) = mpsc::channel();
        let (output, said) = (Arc::default(), Arc::default());
        if let Some(pipe) = stdout {
            keep(pipe, METADATA_MAX, &output, sender.clone());
        }
        if let Some(pipe) = stderr {
            keep(pipe, SAID_MAX, &said, sender);
        }
        Self { output, said, over }
    }

    fn finish(self) -> (String, String) {
        let deadline = Instant::now() + OUTPUT_PATIENCE;
        // An error means that both threads are gone.
        while let Some(left) = deadline.checked_duration_since(Instant::now())
            && self.over.recv_timeout(left).is_ok()
        {}
        let text = |bytes: &Mutex<Vec<u8>>| {
            let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let said = text(&self.said);
        let lines: Vec<&str> =
            said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        (text(&self.output), lines.join("; "))
    }
}

/// Keeps the last bytes of a pipe.
fn keep(
    mut pipe: impl Read + Send + 'static,
    most: usize,
    kept: &Arc<Mutex<Vec<u8>>>,
    over: mpsc::Sender<()>,
) {
    let kept = kept.clone();
    let body = move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..count]);
            let surplus = kept.len().saturating_sub(most);
            kept.drain(..surplus);
        }
        let _ = over.send(());
    };
    // Without the thread the words are lost, and nothing else.
    let _ = thread::Builder::new().name("agent words".into()).spawn(body);
}

/// What can be seen to be missing without running anything: the program, the password.
pub fn missing(config: &FenceConfig) -> Option<String> {
    if let Err(error) = access(&config.agent, AccessFlags::X_OK) {
        let program = config.agent.display();
        return Some(format!(
            "{program} cannot be run: {error}; is it installed (Debian: apt install fence-agents)?"
        ));
    }
    config.password_file.as_deref().and_then(|path| password(path).err())
}

/// What is wrong with an agent as it is configured, asking it for `metadata` and `monitor`; empty
/// when nothing is. Takes as long as the agent does.
pub fn check(config: &FenceConfig, node: &str) -> Vec<String> {
    if let Some(problem) = missing(config) {
        return vec![problem];
    }
    let label = config.label();
    let metadata = run(config, node, "metadata");
    let mut problems = Vec::new();
    match &metadata.ended {
        Ended::Exit(0) => {
            for name in missing_parameters(&metadata.output, config) {
                problems.push(format!("{label} needs the option `{name}`"));
            }
        }
        ended => problems.push(describe(&label, "metadata", ended, &metadata.said)),
    }
    let monitor = run(config, node, "monitor");
    // 2: the device works, and the node is off.
    if !matches!(monitor.ended, Ended::Exit(0 | 2)) {
        problems.push(describe(&label, "monitor", &monitor.ended, &monitor.said));
    }
    problems
}

fn describe(label: &str, action: &str, ended: &Ended, said: &str) -> String {
    match ended {
        Ended::Exit(code) => format!("{label} {action} ended with {code}: {said}"),
        Ended::TimedOut => format!("{label} {action} did not end in its time: {said}"),
        Ended::NotRun => format!("{label} {action} could not be run: {said}"),
    }
}

/// Required parameters that nobody gave. Old names of a parameter count for the new one.
fn missing_parameters(metadata: &str, config: &FenceConfig) -> Vec<String> {
    let given = |name: &str| {
        let is_password = matches!(name, "password" | "passwd") && config.password_file.is_some();
        is_password || config.options.iter().any(|(key, _)| key == name)
    };
    let tags = metadata.split("<parameter ").skip(1).filter_map(|rest| rest.split('>').next());
    let mut missing = Vec::new();
    for tag in tags {
        let name = attribute(tag, "name").unwrap_or_default();
        let is_wanted = attribute(tag, "required") == Some("1")
            && attribute(tag, "deprecated") != Some("1")
            && name != "action";
        let has_old = attribute(tag, "obsoletes").is_some_and(given);
        if is_wanted && !has_old && !given(name) {
            missing.push(name.to_owned());
        }
    }
    missing
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::MutexGuard;

    use failover::core::fence::Action;

    use super::*;

    /// A script that another test's fork still has open for writing cannot be run.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(name: &str, text: &str) -> FenceConfig {
        let path = temporary(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        FenceConfig {
            agent: path,
            options: vec![("ip".into(), "10.1.0.1".into()), ("lanplus".into(), "true".into())],
            password_file: None,
            timeout_ms: 10_000,
            action: Action::Off,
            attempts: 1,
            delay_ms: 0,
            fence_after_ms: 1_000,
            secret: None,
        }
    }

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("replicator-{name}-{}", std::process::id()))
    }

    #[test]
    fn an_agent_gets_its_options_and_its_words_and_code_come_back() {
        let _alone = alone();
        let mut config = script("agent-words", "cat >&2; echo out; exit 2");
        let secret = temporary("agent-password");
        fs::write(&secret, "hush\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        config.password_file = Some(secret.clone());
        let done = run(&config, "alpha", "status");
        assert_eq!(done.ended, Ended::Exit(2));
        let words = "action=status; nodename=alpha; ip=10.1.0.1; lanplus=true; password=hush";
        assert_eq!((done.said.as_str(), done.output.as_str()), (words, "out\n"));

        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let done = run(&config, "alpha", "status");
        assert_eq!(done.ended, Ended::NotRun);
        assert!(done.said.contains("has mode 0640"), "{}", done.said);
        fs::remove_file(secret).unwrap();
        fs::remove_file(config.agent).unwrap();
    }

    #[test]
    fn an_agent_that_does_not_end_is_killed_with_its_children() {
        let _alone = alone();
        let mark = temporary("agent-mark");
        let text = format!("(sleep 1; touch {}) & echo working >&2; wait", mark.display());
        let mut config = script("agent-hangs", &text);
        config.timeout_ms = 300;
        let began = Instant::now();
        let done = run(&config, "alpha", "off");
        assert_eq!((done.ended, done.said.as_str()), (Ended::TimedOut, "working"));
        assert!(began.elapsed() < Duration::from_secs(5));
        // Its child would have left a mark by then.
        let deadline = Instant::now() + Duration::from_millis(1_500);
        while Instant::now() < deadline {
            assert!(!mark.exists(), "a child of the agent lived on");
            thread::sleep(POLL);
        }
        fs::remove_file(config.agent).unwrap();
    }

    #[test]
    fn an_agent_that_is_not_there_is_named() {
        let _alone = alone();
        let mut config = script("agent-gone", "");
        fs::remove_file(&config.agent).unwrap();
        config.agent = "/usr/sbin/fence_of_nowhere".into();
        let done = run(&config, "alpha", "off");
        assert_eq!(done.ended, Ended::NotRun);
        assert!(done.said.starts_with("/usr/sbin/fence_of_nowhere: "), "{}", done.said);
        assert!(check(&config, "alpha")[0].contains("apt install fence-agents"));
    }

    #[test]
    fn metadata_tell_what_is_missing() {
        let _alone = alone();
        let config = script("agent-metadata", "");
        let metadata = "<parameter name=\"action\" unique=\"0\" required=\"1\">\n\
            <parameter name=\"ip\" required=\"1\" obsoletes=\"ipaddr\">\n\
            <parameter name=\"username\" required=\"1\" obsoletes=\"login\">\n\
            <parameter name=\"login\" required=\"1\" deprecated=\"1\">\n\
            <parameter name=\"plug\" required=\"0\">";
        assert_eq!(missing_parameters(metadata, &config), ["username"]);
        fs::remove_file(config.agent).unwrap();
    }
}

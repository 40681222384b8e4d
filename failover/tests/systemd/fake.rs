//! A systemd on a private bus: the few methods that are called, with units that do as the test
//! says.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use zbus::names::BusName;
use zbus::{Connection, Message, MessageStream, ObjectPath, Variant};

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const BUS_CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC
 "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/>
<allow own="*"/><allow user="*"/></policy></busconfig>"#;

/// How a job of a unit goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goes {
    /// It is done after so many milliseconds.
    Well(u64),
    /// It is done, and told, before the answer to the call is sent; who looks at the unit sees the
    /// job still, so only the signal can tell.
    WellAtOnce,
    /// It is done, and what it started ended at once, without an error.
    Nowhere,
    /// It fails: its main process exits with this code.
    Badly(i32),
    /// It ends with this result, and the unit stays as it was.
    Result(&'static str),
    /// It never ends.
    Hangs,
    /// It waits for the stop of the hand-over, as at a shutdown.
    WaitsForTheHandOver,
}

/// A unit.
#[derive(Clone, Debug)]
pub struct Unit {
    pub load: &'static str,
    pub active: &'static str,
    pub file_state: &'static str,
    pub result: &'static str,
    pub main_ended: (i32, i32),
    pub kind: &'static str,
    /// `TimeoutStartUSec` and `TimeoutStopUSec`.
    pub limits_us: (u64, u64),
    pub start: Goes,
    pub stop: Goes,
    pub job: u32,
    /// Where its processes are.
    pub control_group: &'static str,
}

impl Default for Unit {
    fn default() -> Self {
        Self {
            load: "loaded",
            active: "inactive",
            file_state: "disabled",
            result: "success",
            main_ended: (0, 0),
            kind: "notify",
            limits_us: (90_000_000, 90_000_000),
            start: Goes::Well(20),
            stop: Goes::Well(20),
            job: 0,
            control_group: "",
        }
    }
}

#[derive(Debug, Default)]
struct World {
    units: BTreeMap<String, Unit>,
    jobs: u32,
    calls: Vec<String>,
    has_subscriber: bool,
}

/// A bus of our own and a systemd on it.
pub struct Fake {
    pub directory: PathBuf,
    world: Arc<Mutex<World>>,
    daemon: Child,
    serving: Option<(Connection, JoinHandle<()>)>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some((_, task)) = self.serving.take() {
            task.abort();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Fake {
    pub async fn new(units: &[(&str, Unit)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir()
            .join(format!("replicator-systemd-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let units = units.iter().map(|(name, unit)| ((*name).to_owned(), unit.clone())).collect();
        let world = Arc::new(Mutex::new(World { units, ..World::default() }));
        let daemon = start_bus(&directory);
        let mut fake = Self { directory, world, daemon, serving: None };
        fake.appear().await;
        fake
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.directory.join("bus").display())
    }

    /// systemd comes (back) to the bus, knowing of no subscriber.
    pub async fn appear(&mut self) {
        let connection = until("the bus", async || {
            zbus::connection::Builder::address(self.address().as_str()).build().await.ok()
        })
        .await;
        let mut messages = MessageStream::from(&connection);
        connection.request_name("org.freedesktop.systemd1").await.unwrap();
        self.world.lock().unwrap().has_subscriber = false;
        let (world, ours) = (self.world.clone(), connection.clone());
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                if message.message_type() == zbus::message::Type::MethodCall {
                    answer(&world, &ours, &message).await;
                }
            }
        });
        self.serving = Some((connection, task));
    }

    /// systemd leaves the bus, as in a daemon-reexec: whoever waits for an answer gets NoReply.
    pub async fn vanish(&mut self) {
        let (connection, task) = self.serving.take().unwrap();
        task.abort();
        let _ = connection.close().await;
    }

    /// systemd takes calls and does not answer.
    pub fn freeze(&mut self) {
        let (_, task) = self.serving.as_ref().unwrap();
        task.abort();
    }

    pub fn kill_bus(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if let Some((_, task)) = self.serving.take() {
            task.abort();
        }
    }

    pub async fn restart_bus(&mut self) {
        self.daemon = start_bus(&self.directory);
        self.appear().await;
    }

    /// Changes a unit and tells, as systemd does after every change of one.
    pub async fn change(&self, name: &str, change: impl FnOnce(&mut Unit)) {
        change(self.world.lock().unwrap().units.get_mut(name).expect("a unit of the test"));
        if let Some((connection, _)) = &self.serving {
            changed(connection, name).await;
        }
    }

    /// What `systemctl start` and `systemctl stop` of an operator do.
    pub async fn by_hand(&self, name: &str, method: &'static str) {
        let (connection, _) = self.serving.as_ref().unwrap();
        let job = new_job(&self.world, name);
        run(&self.world, connection, name, method, job, None).await;
    }

    pub fn unit(&self, name: &str) -> Unit {
        self.world.lock().unwrap().units[name].clone()
    }

    /// The calls that were made, as `StartUnit mariadb.service replace`.
    pub fn calls(&self, method: &str) -> Vec<String> {
        let world = self.world.lock().unwrap();
        world.calls.iter().filter(|call| call.starts_with(method)).cloned().collect()
    }
}

/// Asks until there is an answer, for at most ten seconds.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "waited for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn start_bus(directory: &std::path::Path) -> Child {
    let (config, socket) = (directory.join("bus.conf"), directory.join("bus"));
    let _ = fs::remove_file(&socket);
    fs::write(&config, BUS_CONFIG.replace("SOCKET", &socket.display().to_string())).unwrap();
    Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nopidfile"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dbus-daemon, of Debian's package dbus")
}

fn unit_path(name: &str) -> String {
    let escaped = name.replace('.', "_2e").replace('-', "_2d").replace('@', "_40");
    format!("{MANAGER_PATH}/unit/{escaped}")
}

fn job_path(job: u32) -> ObjectPath<'static> {
    ObjectPath::try_from(format!("{MANAGER_PATH}/job/{job}")).unwrap()
}

async fn answer(world: &Arc<Mutex<World>>, connection: &Connection, message: &Message) {
    let header = message.header();
    let member = header.member().unwrap().as_str().to_owned();
    let body = message.body();
    let arguments: Vec<String> = match member.as_str() {
        "KillUnit" => {
            let (name, whom, signal) = body.deserialize::<(String, String, i32)>().unwrap();
            vec![name, whom, signal.to_string()]
        }
        "StartUnit" | "StopUnit" | "Get" => {
            let (one, two) = body.deserialize::<(String, String)>().unwrap();
            vec![one, two]
        }
        "LoadUnit" | "ResetFailedUnit" | "GetAll" => vec![body.deserialize::<String>().unwrap()],
        "GetJobBefore" | "GetUnitByPID" => vec![body.deserialize::<u32>().unwrap().to_string()],
        _ => Vec::new(),
    };
    let line = format!("{member} {}", arguments.join(" "));
    world.lock().unwrap().calls.push(line.trim_end().to_owned());
    match member.as_str() {
        "Subscribe" => {
            world.lock().unwrap().has_subscriber = true;
            connection.reply(&header, &()).await.unwrap();
        }
        "Reload" => connection.reply(&header, &()).await.unwrap(),
        "LoadUnit" => {
            let path = ObjectPath::try_from(unit_path(&arguments[0])).unwrap();
            connection.reply(&header, &path).await.unwrap();
        }
        "GetUnitByPID" => {
            let path = ObjectPath::try_from(unit_path("replicator.service")).unwrap();
            connection.reply(&header, &path).await.unwrap();
        }
        "StartUnit" | "StopUnit" => {
            let name = arguments[0].clone();
            if arguments[1] == "ignore-dependencies" {
                let waiting = {
                    let mut world = world.lock().unwrap();
                    let unit = world.units.get_mut(&name).unwrap();
                    unit.stop = Goes::Well(10);
                    unit.job
                };
                connection.reply(&header, &job_path(waiting)).await.unwrap();
                run(world, connection, &name, "StopUnit", waiting, None).await;
                return;
            }
            let job = new_job(world, &name);
            let method = if member == "StartUnit" { "StartUnit" } else { "StopUnit" };
            run(world, connection, &name, method, job, Some(message)).await;
        }
        "KillUnit" => {
            connection.reply(&header, &()).await.unwrap();
            let job = {
                let mut world = world.lock().unwrap();
                let unit = world.units.get_mut(&arguments[0]).unwrap();
                (unit.active, unit.result, unit.main_ended) = ("failed", "signal", (2, 9));
                std::mem::take(&mut unit.job)
            };
            changed(connection, &arguments[0]).await;
            if job != 0 {
                removed(connection, job, &arguments[0], "done").await;
            }
        }
        "ResetFailedUnit" => {
            {
                let mut world = world.lock().unwrap();
                let unit = world.units.get_mut(&arguments[0]).unwrap();
                if unit.active == "failed" {
                    unit.active = "inactive";
                }
            }
            connection.reply(&header, &()).await.unwrap();
            changed(connection, &arguments[0]).await;
        }
        "GetJobBefore" => {
            let is_waiting = {
                let world = world.lock().unwrap();
                world.units.values().any(|unit| unit.stop == Goes::WaitsForTheHandOver)
            };
            let handover = "replicator-handover.service".to_owned();
            let path = ObjectPath::try_from(unit_path(&handover)).unwrap();
            let one =
                (77u32, handover, "stop".to_owned(), "running".to_owned(), job_path(77), path);
            let before = if is_waiting { vec![one] } else { Vec::new() };
            connection.reply(&header, &before).await.unwrap();
        }
        "GetAll" | "Get" => {
            let path = header.path().unwrap().to_string();
            let all = properties(&world.lock().unwrap(), &path);
            if member == "GetAll" {
                connection.reply(&header, &all).await.unwrap();
            } else if let Some(value) = all.get(arguments[1].as_str()) {
                connection.reply(&header, value).await.unwrap();
            } else {
                let error = "org.freedesktop.DBus.Error.UnknownProperty";
                connection.reply_error(&header, error, &"no such property").await.unwrap();
            }
        }
        _ => panic!("a call that the fake does not know: {line}"),
    }
}

fn properties(world: &World, path: &str) -> HashMap<&'static str, Variant<'static>> {
    let found = world.units.iter().find(|(name, _)| unit_path(name) == path);
    let missing = Unit { load: "not-found", ..Unit::default() };
    let (id, unit) = match found {
        Some((name, unit)) => (name.clone(), unit),
        None => ("replicator.service".to_owned(), &missing),
    };
    let job = (unit.job, job_path(unit.job));
    HashMap::from([
        ("Id", Variant::from(id)),
        ("LoadState", Variant::from(unit.load)),
        ("LoadError", Variant::from((String::new(), String::new()))),
        ("ActiveState", Variant::from(unit.active)),
        ("SubState", Variant::from("of-the-fake")),
        ("UnitFileState", Variant::from(unit.file_state)),
        ("ConditionResult", Variant::from(true)),
        ("Job", Variant::from(job)),
        ("ControlGroup", Variant::from(unit.control_group)),
        ("Result", Variant::from(unit.result)),
        ("ExecMainCode", Variant::from(unit.main_ended.0)),
        ("ExecMainStatus", Variant::from(unit.main_ended.1)),
        ("Type", Variant::from(unit.kind)),
        ("TimeoutStartUSec", Variant::from(unit.limits_us.0)),
        ("TimeoutStopUSec", Variant::from(unit.limits_us.1)),
    ])
}

fn new_job(world: &Arc<Mutex<World>>, name: &str) -> u32 {
    let mut world = world.lock().unwrap();
    world.jobs += 1;
    let job = world.jobs;
    world.units.get_mut(name).expect("a unit of the test").job = job;
    job
}

async fn run(
    world: &Arc<Mutex<World>>,
    connection: &Connection,
    name: &str,
    method: &'static str,
    job: u32,
    call: Option<&Message>,
) {
    let is_start = method == "StartUnit";
    let goes = {
        let mut world = world.lock().unwrap();
        let unit = world.units.get_mut(name).unwrap();
        let goes = if is_start { unit.start } else { unit.stop };
        if !matches!(goes, Goes::Result(_) | Goes::WaitsForTheHandOver) {
            unit.active = if is_start { "activating" } else { "deactivating" };
        }
        goes
    };
    let new = (job, job_path(job), name);
    signal(connection, MANAGER_PATH, MANAGER, "JobNew", &new).await;
    changed(connection, name).await;
    if goes == Goes::WellAtOnce {
        finish(world, connection, name, is_start, job, goes).await;
    }
    if let Some(call) = call {
        connection.reply(&call.header(), &job_path(job)).await.unwrap();
    }
    let (world, connection, name) = (world.clone(), connection.clone(), name.to_owned());
    match goes {
        Goes::WellAtOnce | Goes::Hangs | Goes::WaitsForTheHandOver => {}
        _ => {
            let wait_ms = if let Goes::Well(ms) = goes { ms } else { 20 };
            tokio::spawn(async move {
                sleep(Duration::from_millis(wait_ms)).await;
                finish(&world, &connection, &name, is_start, job, goes).await;
            });
        }
    }
}

async fn finish(
    world: &Arc<Mutex<World>>,
    connection: &Connection,
    name: &str,
    is_start: bool,
    job: u32,
    goes: Goes,
) {
    let result = {
        let mut world = world.lock().unwrap();
        let unit = world.units.get_mut(name).unwrap();
        if unit.job != job {
            return; // replaced by a later one
        }
        unit.job = if goes == Goes::WellAtOnce { job } else { 0 };
        let (active, result) = match goes {
            Goes::Badly(code) => {
                (unit.result, unit.main_ended) = ("exit-code", (1, code));
                ("failed", "failed")
            }
            Goes::Result(result) => (unit.active, result),
            Goes::Nowhere => ("inactive", "done"),
            _ => (if is_start { "active" } else { "inactive" }, "done"),
        };
        unit.active = active;
        result
    };
    changed(connection, name).await;
    removed(connection, job, name, result).await;
}

async fn removed(connection: &Connection, job: u32, name: &str, result: &str) {
    let body = (job, job_path(job), name, result);
    signal(connection, MANAGER_PATH, MANAGER, "JobRemoved", &body).await;
}

async fn changed(connection: &Connection, name: &str) {
    let body = (
        "org.freedesktop.systemd1.Unit",
        HashMap::<String, Variant<'_>>::new(),
        vec!["ActiveState".to_owned()],
    );
    let interface = "org.freedesktop.DBus.Properties";
    signal(connection, &unit_path(name), interface, "PropertiesChanged", &body).await;
}

/// A bus that is gone takes no signals; the test has it so.
async fn signal<B>(connection: &Connection, path: &str, interface: &str, name: &str, body: &B)
where
    B: serde::Serialize + zbus::DynamicType,
{
    let _ = connection.emit_signal(None::<BusName<'_>>, path, interface, name, body).await;
}

//! One connection to the system bus for all units of this node: it is made when it is first needed
//! and made again when the bus or systemd was restarted; every unit is looked at again whenever
//! systemd says that something of it changed.
//!
//! A signal only makes us look: what is published about a unit comes from the answers of systemd,
//! one after the other, so an old answer never follows a newer one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use zbus::fdo::{DBusProxy, PropertiesProxy};
use zbus::names::InterfaceName;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant};

use super::proxies::ManagerProxy;
use super::state::{Activity, State, View};
use crate::services::Failure;

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Until one connection is made, with its greeting.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// One call. systemd answers within a millisecond unless it is busy with a daemon-reload.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// A daemon-reload, which is answered when it is done; asked twice it takes twice as long.
const RELOAD_PATIENCE: Duration = Duration::from_secs(120);
/// How long a bus or a systemd that was there may be away before that is an error. A daemon-reload
/// or a daemon-reexec takes seconds on a big machine, and nothing else is answered meanwhile.
const AWAY_PATIENCE: Duration = Duration::from_secs(30);
/// Before a call is repeated whose outcome is not known.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Why that may be.
const SILENT: &str = "it may be reloading, or D-Bus stands still";
const RECONNECT_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nobody knows whether it was done: the bus or systemd is away, or came back meanwhile.
    Unknown(String),
    /// systemd refuses, with the name of the error and its text.
    Refused(String, String),
}

impl From<zbus::Error> for CallError {
    fn from(error: zbus::Error) -> Self {
        use zbus::fdo::Error as Fdo;
        let text = error.to_string();
        match error {
            zbus::Error::MethodError(name, said, _) => {
                Self::Refused(name.to_string(), said.unwrap_or_default())
            }
            zbus::Error::FDO(error) => match *error {
                Fdo::ZBus(error) => error.into(),
                Fdo::AccessDenied(said) | Fdo::AuthFailed(said) => {
                    Self::Refused("AccessDenied".to_owned(), said)
                }
                Fdo::InvalidArgs(said) | Fdo::UnknownMethod(said) | Fdo::NotSupported(said) => {
                    Self::Refused("InvalidArgs".to_owned(), said)
                }
                // NoReply while systemd executes itself anew, a name without an owner, and so on.
                _ => Self::Unknown(text),
            },
            _ => Self::Unknown(text),
        }
    }
}

impl From<zbus::fdo::Error> for CallError {
    fn from(error: zbus::fdo::Error) -> Self {
        zbus::Error::from(error).into()
    }
}

/// The connection as it is now.
#[derive(Clone, Debug)]
enum Link {
    /// Not tried yet.
    New,
    /// Away since then; `was_up` when it was there before.
    Away { since: Instant, why: String, was_up: bool },
    /// There; the number changes with every new one.
    Up(Connection, u64),
}

/// One unit that is looked after.
#[derive(Debug)]
pub(super) struct Tracked {
    pub name: String,
    pub view: watch::Sender<View>,
    /// One look at a time, so that the newest one is published last.
    turn: tokio::sync::Mutex<()>,
    /// Since when a question about it has no answer.
    unanswered_since: Mutex<Option<Instant>>,
    /// The connection and the path whose changes we asked to be told.
    matched: Mutex<Option<(u64, String)>>,
}

impl Tracked {
    fn is_asked(&self) {
        lock(&self.unanswered_since).get_or_insert_with(Instant::now);
    }

    /// There was no answer. Of a moment, as in a daemon-reexec, nobody need hear.
    fn found_silent(&self, why: &str) {
        let since = *lock(&self.unanswered_since);
        if since.is_some_and(|since| since.elapsed() >= CALL_PATIENCE) {
            let why = format!("systemd does not answer: {why}");
            self.view.send_if_modified(|view| view.silent.replace(why.clone()) != Some(why));
        }
    }
}

#[derive(Debug)]
struct Inner {
    address: Option<String>,
    units: Mutex<BTreeMap<String, Arc<Tracked>>>,
    link: watch::Sender<Link>,
    /// Units to look at again.
    dirty: Mutex<BTreeSet<String>>,
    has_dirty: Notify,
    /// systemd has come back to the bus and has to be told again that we listen.
    must_subscribe: Mutex<bool>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bus {
    inner: Arc<Inner>,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these locks can leave it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    /// `address`: of a bus; none: the system bus.
    pub(super) fn new(address: Option<String>) -> Self {
        let inner = Inner {
            address,
            units: Mutex::default(),
            link: watch::Sender::new(Link::New),
            dirty: Mutex::default(),
            has_dirty: Notify::new(),
            must_subscribe: Mutex::new(false),
        };
        Self { inner: Arc::new(inner), task: Mutex::new(None) }
    }

    /// Looks after a unit from now on.
    pub(super) fn track(&self, name: &str) -> Arc<Tracked> {
        let mut units = lock(&self.inner.units);
        let tracked = units.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Tracked {
                name: name.to_owned(),
                view: watch::Sender::new(View::default()),
                turn: tokio::sync::Mutex::new(()),
                unanswered_since: Mutex::new(None),
                matched: Mutex::new(None),
            })
        });
        let tracked = tracked.clone();
        drop(units);
        self.inner.mark_dirty(name);
        tracked
    }

    /// Makes the connection if nobody has yet. Needs a tokio runtime.
    pub(super) fn wake(&self) {
        let mut task = lock(&self.task);
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            let inner = self.inner.clone();
            *task = Some(tokio::spawn(inner.keep_connected()).abort_handle());
        }
    }

    /// The connection, waited for while there is hope.
    async fn connection(&self) -> Result<(Connection, u64), Failure> {
        self.wake();
        let mut link = self.inner.link.subscribe();
        loop {
            let until = match &*link.borrow_and_update() {
                Link::Up(connection, number) => return Ok((connection.clone(), *number)),
                Link::New => Instant::now() + CONNECT_PATIENCE,
                Link::Away { why, was_up: false, .. } => return Err(self.no_bus(why)),
                Link::Away { since, why, .. } => {
                    let until = *since + AWAY_PATIENCE;
                    if until <= Instant::now() {
                        return Err(self.no_bus(why));
                    }
                    until
                }
            };
            let _ = tokio::time::timeout_at(until, link.changed()).await;
        }
    }

    fn no_bus(&self, why: &str) -> Failure {
        let address = self.inner.address.as_deref().unwrap_or("the system bus");
        Failure {
            code: "no_bus".to_owned(),
            why: format!("systemd cannot be asked: {address}: {why}"),
            next: "systemctl status dbus.service; Debian has it in the package dbus".to_owned(),
            is_permanent: false,
        }
    }

    /// Calls a method of the manager until its outcome is known: all of them order a state and not
    /// a change, so they may be called again.
    pub(super) async fn call<T, F>(
        &self,
        what: &str,
        mut call: impl FnMut(ManagerProxy<'static>) -> F,
    ) -> Result<Result<T, (String, String)>, Failure>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let patience = if what == "Reload" { RELOAD_PATIENCE } else { CALL_PATIENCE };
        let since = Instant::now();
        loop {
            let (connection, _) = self.connection().await?;
            let outcome = timeout(patience, async { call(manager(&connection).await?).await });
            let why = match outcome.await {
                Ok(Ok(value)) => return Ok(Ok(value)),
                Ok(Err(error)) => match CallError::from(error) {
                    CallError::Refused(name, text) => return Ok(Err((name, text))),
                    CallError::Unknown(why) => why,
                },
                Err(_) => format!("no answer to {what} for {} s", patience.as_secs()),
            };
            if since.elapsed() > AWAY_PATIENCE {
                return Err(silent(&why));
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Looks at a unit, as often as it takes to get an answer, and publishes what is seen together
    /// with what `also` changes.
    pub(super) async fn look(
        &self,
        unit: &Tracked,
        also: impl Fn(&mut View, &State),
    ) -> Result<State, Failure> {
        let since = Instant::now();
        unit.is_asked();
        loop {
            let Ok(connected) = timeout(CALL_PATIENCE, self.connection()).await else {
                // That has an end of its own.
                unit.found_silent("D-Bus is away");
                continue;
            };
            let (connection, number) = connected?;
            match self.inner.look(&connection, number, unit, &also).await {
                Ok(state) => return Ok(state),
                Err(CallError::Refused(name, text)) => {
                    return Err(refused(&unit.name, &name, &text));
                }
                Err(CallError::Unknown(why)) if since.elapsed() > AWAY_PATIENCE => {
                    return Err(silent(&why));
                }
                Err(CallError::Unknown(why)) => {
                    unit.found_silent(&why);
                    sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// The number of the connection; it changes when signals may have been missed.
    pub(super) fn number(&self) -> Option<u64> {
        match &*self.inner.link.borrow() {
            Link::Up(_, number) => Some(*number),
            _ => None,
        }
    }
}

/// systemd has said nothing for longer than may be.
fn silent(why: &str) -> Failure {
    let why = format!("systemd has not answered for {} s: {why}", AWAY_PATIENCE.as_secs());
    Failure { why, ..no_answer() }
}

/// systemd has not said anything yet.
pub(super) fn no_answer() -> Failure {
    Failure {
        code: "systemd_silent".to_owned(),
        why: format!("systemd does not answer: {SILENT}"),
        next: "systemctl status; busctl status org.freedesktop.systemd1".to_owned(),
        is_permanent: false,
    }
}

/// systemd has said no.
pub(super) fn refused(unit: &str, name: &str, text: &str) -> Failure {
    let short = name.rsplit('.').next().unwrap_or(name);
    let (next, is_permanent) = match short {
        "NoSuchUnit" => (format!("install the package that has {unit}, or correct its name"), true),
        "UnitMasked" => (format!("systemctl unmask {unit}"), true),
        "TransactionIsDestructive" => ("the machine is being shut down".to_owned(), false),
        "AccessDenied" => ("run replicatord as root".to_owned(), true),
        "OnlyByDependency" => (format!("{unit} has RefuseManualStart=; name another unit"), true),
        _ => (format!("systemctl status {unit}; journalctl -u {unit} -n 50"), false),
    };
    Failure {
        code: "systemd_refused".to_owned(),
        why: format!("systemd refuses {unit}: {text} ({short})"),
        next,
        is_permanent,
    }
}

async fn manager(connection: &Connection) -> zbus::Result<ManagerProxy<'static>> {
    ManagerProxy::builder(connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
}

impl Inner {
    fn mark_dirty(&self, name: &str) {
        lock(&self.dirty).insert(name.to_owned());
        self.has_dirty.notify_one();
    }

    fn mark_all_dirty(&self) {
        let names: Vec<String> = lock(&self.units).keys().cloned().collect();
        lock(&self.dirty).extend(names);
        self.has_dirty.notify_one();
    }

    async fn keep_connected(self: Arc<Self>) {
        let mut pause = RECONNECT_FIRST;
        let mut number = 0;
        loop {
            number += 1;
            let was_up =
                !matches!(&*self.link.borrow(), Link::New | Link::Away { was_up: false, .. });
            let why = match timeout(CONNECT_PATIENCE, self.connect()).await {
                Ok(Ok(connection)) => {
                    let (came_up, why) = self.serve(connection, number).await;
                    if came_up {
                        pause = RECONNECT_FIRST;
                    }
                    why
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no greeting for {} s", CONNECT_PATIENCE.as_secs()),
            };
            self.link.send_modify(|link| {
                let (since, was_up) = match link {
                    Link::Away { since, .. } => (*since, was_up),
                    Link::New => (Instant::now(), false),
                    Link::Up(..) => {
                        tracing::warn!("the connection to systemd is lost: {why}");
                        (Instant::now(), true)
                    }
                };
                *link = Link::Away { since, why, was_up };
            });
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.address {
            Some(address) => zbus::connection::Builder::address(address.as_str()),
            None => zbus::connection::Builder::system(),
        };
        builder.build().await
    }

    /// Serves one connection until it is lost: whether it was ever usable, and why it ended.
    async fn serve(&self, connection: Connection, number: u64) -> (bool, String) {
        // Before anything is asked for, so that no answer can overtake a signal.
        let mut messages = MessageStream::from(&connection);
        let mut came_up = false;
        let mut work = pin!(async {
            if let Err(CallError::Refused(_, why) | CallError::Unknown(why)) =
                self.set_up(&connection).await
            {
                return (false, why);
            }
            self.mark_all_dirty();
            self.link.send_replace(Link::Up(connection.clone(), number));
            (true, self.look_again_for_ever(&connection, number).await)
        });
        loop {
            tokio::select! {
                biased;
                message = messages.next() => match message {
                    Some(Ok(message)) => self.take(&message),
                    Some(Err(error)) => return (came_up, error.to_string()),
                    None => return (came_up, "the bus has closed the connection".to_owned()),
                },
                ended = &mut work => return ended,
            }
            came_up |= matches!(&*self.link.borrow(), Link::Up(..));
        }
    }

    async fn set_up(&self, connection: &Connection) -> Result<(), CallError> {
        let bus = DBusProxy::new(connection).await?;
        let manager_rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(SYSTEMD)
            .interface(MANAGER)
            .build()?;
        bus.add_match_rule(manager_rule).await?;
        let owner_rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .add_arg(SYSTEMD)
            .build()?;
        bus.add_match_rule(owner_rule).await?;
        subscribe(connection).await
    }

    /// Takes one message of the bus. Never waits: a full queue would hold back the answers, too.
    fn take(&self, message: &Message) {
        let header = message.header();
        if message.message_type() != zbus::message::Type::Signal {
            return;
        }
        let member = header.member().map_or("", |member| member.as_str());
        match member {
            "JobNew" => {
                let body = message.body();
                if let Ok((_, _, unit)) = body.deserialize::<(u32, OwnedObjectPath, String)>() {
                    self.change(&unit, |view| view.jobs += 1);
                }
            }
            "JobRemoved" => {
                let body = message.body();
                let parts = body.deserialize::<(u32, OwnedObjectPath, String, String)>();
                if let Ok((_, job, unit, result)) = parts {
                    self.change(&unit, |view| view.remember(job.to_string(), result.clone()));
                    self.mark_dirty(&unit);
                }
            }
            // After a daemon-reload units may have come, gone, or been given other paths.
            "Reloading" | "UnitFilesChanged" => self.mark_all_dirty(),
            "NameOwnerChanged" => {
                *lock(&self.must_subscribe) = true;
                self.mark_all_dirty();
            }
            "PropertiesChanged" => {
                let path = header.path().map_or("", |path| path.as_str());
                let units: Vec<_> = lock(&self.units).values().cloned().collect();
                for unit in units {
                    if lock(&unit.matched).as_ref().is_some_and(|(_, its)| its == path) {
                        self.mark_dirty(&unit.name);
                    }
                }
            }
            _ => {}
        }
    }

    /// Signals name a unit by its first name; ours may be another of its names.
    fn change(&self, unit: &str, change: impl Fn(&mut View)) {
        let path = object_path(unit);
        for tracked in lock(&self.units).values() {
            let is_it = tracked.name == unit
                || lock(&tracked.matched).as_ref().is_some_and(|(_, its)| *its == path);
            if is_it {
                tracked.view.send_modify(&change);
                lock(&self.dirty).insert(tracked.name.clone());
            }
        }
        self.has_dirty.notify_one();
    }

    async fn look_again_for_ever(&self, connection: &Connection, number: u64) -> String {
        loop {
            if std::mem::take(&mut *lock(&self.must_subscribe))
                && let Err(error) = subscribe(connection).await
            {
                tracing::debug!("systemd is not back yet: {error:?}");
                *lock(&self.must_subscribe) = true;
                self.mark_all_dirty();
                sleep(ASK_AGAIN).await;
                continue;
            }
            let names = std::mem::take(&mut *lock(&self.dirty));
            if names.is_empty() {
                self.has_dirty.notified().await;
                continue;
            }
            for name in names {
                let Some(unit) = lock(&self.units).get(&name).cloned() else { continue };
                unit.is_asked();
                match self.look(connection, number, &unit, &|_: &mut View, _: &State| {}).await {
                    Ok(_) => {}
                    Err(CallError::Refused(name, text)) => {
                        let why = format!("systemd refuses to say what it is: {text} ({name})");
                        unit.view.send_modify(|view| view.silent = Some(why));
                    }
                    Err(CallError::Unknown(why)) => {
                        unit.found_silent(&why);
                        self.mark_dirty(&name);
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
        }
    }

    async fn look(
        &self,
        connection: &Connection,
        number: u64,
        unit: &Tracked,
        also: &impl Fn(&mut View, &State),
    ) -> Result<State, CallError> {
        let _turn = unit.turn.lock().await;
        let jobs = unit.view.borrow().jobs;
        let state = match timeout(CALL_PATIENCE, self.ask(connection, number, unit)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(CallError::Unknown(SILENT.to_owned())),
        };
        *lock(&unit.unanswered_since) = None;
        unit.view.send_modify(|view| {
            view.silent = None;
            view.jobs_before_look = jobs;
            view.state = Some(state.clone());
            also(view, &state);
        });
        Ok(state)
    }

    async fn ask(
        &self,
        connection: &Connection,
        number: u64,
        unit: &Tracked,
    ) -> Result<State, CallError> {
        let path = manager(connection).await?.load_unit(&unit.name).await?;
        self.listen_to(connection, number, unit, &path).await?;
        let properties = PropertiesProxy::builder(connection)
            .destination(SYSTEMD)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        let all = properties.get_all(InterfaceName::try_from(UNIT)?).await?;
        let active = Activity::parse(&text(&all, "ActiveState"));
        let mut state = State {
            load: text(&all, "LoadState"),
            load_error: second_text(&all, "LoadError"),
            active,
            sub: text(&all, "SubState"),
            job: job_number(&all),
            file_state: text(&all, "UnitFileState"),
            condition_held: flag(&all, "ConditionResult"),
            control_group: None,
            result: String::new(),
            main_ended: (0, 0),
        };
        // Other kinds of units have an interface of their own, with some of these.
        let Some(interface) = interface_of(&unit.name) else { return Ok(state) };
        let interface = InterfaceName::try_from(interface)?;
        let get = |name: &'static str| properties.get(interface.clone(), name);
        if state.load == "loaded" {
            state.control_group =
                get("ControlGroup").await.ok().and_then(|value| String::try_from(value).ok());
            state.control_group = state.control_group.filter(|path| !path.is_empty());
            state.result = get("Result").await.ok().map(into_text).unwrap_or_default();
        }
        if state.load == "loaded"
            && !matches!(active, Activity::Up)
            && unit.name.ends_with(".service")
        {
            let how = get("ExecMainCode").await.ok().map(into_number).unwrap_or_default();
            let number = get("ExecMainStatus").await.ok().map(into_number).unwrap_or_default();
            state.main_ended = (how, number);
        }
        Ok(state)
    }

    async fn listen_to(
        &self,
        connection: &Connection,
        number: u64,
        unit: &Tracked,
        path: &OwnedObjectPath,
    ) -> Result<(), CallError> {
        let wanted = Some((number, path.to_string()));
        if *lock(&unit.matched) == wanted {
            return Ok(());
        }
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(SYSTEMD)
            .interface(PROPERTIES)
            .path(path.as_str())
            .build()?;
        DBusProxy::new(connection).await?.add_match_rule(rule).await?;
        *lock(&unit.matched) = wanted;
        Ok(())
    }
}

async fn subscribe(connection: &Connection) -> Result<(), CallError> {
    let call = async { manager(connection).await?.subscribe().await };
    match timeout(CALL_PATIENCE, call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => match CallError::from(error) {
            CallError::Refused(name, _) if name.ends_with(".AlreadySubscribed") => Ok(()),
            error => Err(error),
        },
        Err(_) => Err(CallError::Unknown("no answer to Subscribe".to_owned())),
    }
}

fn text(all: &HashMap<String, OwnedVariant>, name: &str) -> String {
    all.get(name).and_then(|value| <&str>::try_from(value).ok()).unwrap_or_default().to_owned()
}

fn flag(all: &HashMap<String, OwnedVariant>, name: &str) -> bool {
    all.get(name).and_then(|value| bool::try_from(value).ok()).unwrap_or_default()
}

/// Of a pair of texts the second: `LoadError` is (name of the error, what it means).
fn second_text(all: &HashMap<String, OwnedVariant>, name: &str) -> String {
    let pair = all.get(name).and_then(|value| value.try_clone().ok());
    pair.and_then(|value| <(String, String)>::try_from(value).ok())
        .map(|(_, text)| text)
        .unwrap_or_default()
}

fn job_number(all: &HashMap<String, OwnedVariant>) -> Option<u32> {
    let pair = all.get("Job").and_then(|value| value.try_clone().ok())?;
    let (number, _) = <(u32, OwnedObjectPath)>::try_from(pair).ok()?;
    (number != 0).then_some(number)
}

fn into_text(value: OwnedVariant) -> String {
    String::try_from(value).unwrap_or_default()
}

fn into_number(value: OwnedVariant) -> i32 {
    i32::try_from(value).unwrap_or_default()
}

/// The interface with the properties that only units of this kind have.
fn interface_of(unit: &str) -> Option<&'static str> {
    Some(match unit.rsplit_once('.')?.1 {
        "service" => "org.freedesktop.systemd1.Service",
        "mount" => "org.freedesktop.systemd1.Mount",
        "socket" => "org.freedesktop.systemd1.Socket",
        "scope" => "org.freedesktop.systemd1.Scope",
        "slice" => "org.freedesktop.systemd1.Slice",
        "swap" => "org.freedesktop.systemd1.Swap",
        _ => return None,
    })
}

/// The path of a unit on the bus, as sd_bus_path_encode(3) makes it.
pub(super) fn object_path(unit: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (place, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (place > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

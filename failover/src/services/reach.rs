//! Whether clients can reach this node: the carrier of a link, and how many of some targets answer,
//! by ARP or neighbour discovery, ICMP echo, or a TCP connection.
//!
//! It is a service like others: it runs while enough of them answer. Every data node looks all the
//! time, also one where it does not run, since an office only moves to a node that sees enough
//! (`reached.rs` of the core).

mod ask;

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use failover_core::services::ReachTarget;
use failover_core::services::reach::Seen;
use tokio::sync::mpsc::UnboundedSender;

use super::{Change, Condition, Doing, Failure, Force, Service, Site};
use crate::netlink::{Event, Events, Requests};
use ask::answers;

/// How often all are asked while it runs.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row must find too few before it has failed: packets get lost.
const MISSES_MAX: u32 = 3;
/// How often the events of the link are looked at.
const LINK_EVERY: Duration = Duration::from_millis(50);

/// Who is asked.
#[derive(Clone, Debug)]
pub struct ReachConfig {
    /// The link whose carrier is needed.
    pub interface: Option<String>,
    /// The targets.
    pub targets: Vec<ReachTarget>,
    /// How many of them must answer.
    pub need: u16,
}

/// One look at all targets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// The counts.
    pub seen: Seen,
    /// Who did not answer, and what is wrong with the link, in words.
    pub silent: Vec<String>,
}

/// How well this node reaches its clients.
pub struct Reach {
    config: Arc<ReachConfig>,
    last: Arc<Mutex<Last>>,
}

/// The last look, and how many in a row found too few.
#[derive(Debug)]
struct Last {
    look: Look,
    misses: u32,
}

impl Last {
    fn note(&mut self, look: Look) {
        self.misses = if look.seen.is_enough() { 0 } else { self.misses.saturating_add(1) };
        self.look = look;
    }

    /// Packets get lost: one bad look is a warning.
    fn condition(&self) -> Result<Condition, Failure> {
        if self.misses >= MISSES_MAX {
            return Err(unreachable(&self.look));
        }
        let silent = &self.look.silent;
        let is_well = silent.is_empty();
        Ok(if is_well { Condition::Running } else { Condition::Degraded(silent.join("; ")) })
    }
}

impl Reach {
    /// Asks nobody yet.
    pub fn new(config: ReachConfig) -> Self {
        let of = config.targets.len() as u16;
        let seen = Seen { answer: 0, of, need: config.need, has_carrier: false };
        let last = Last { look: Look { seen, silent: Vec::new() }, misses: MISSES_MAX };
        Self { config: Arc::new(config), last: Arc::new(Mutex::new(last)) }
    }

    /// What the last look found; nothing before the first.
    pub fn seen(&self) -> Seen {
        self.last().look.seen
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all targets at the same time.
    async fn look(&self) -> Look {
        let config = self.config.clone();
        let link = tokio::task::spawn_blocking({
            let interface = config.interface.clone();
            move || interface.map_or(Ok(()), |name| check_carrier(&name))
        });
        let asked: Vec<_> = config
            .targets
            .iter()
            .cloned()
            .map(|target| {
                let interface = config.interface.clone();
                tokio::task::spawn_blocking(move || answers(&target, interface.as_deref()))
            })
            .collect();
        let mut silent = Vec::new();
        let mut seen = Seen {
            answer: 0,
            of: config.targets.len() as u16,
            need: config.need,
            has_carrier: true,
        };
        if let Ok(Err(why)) = link.await {
            seen.has_carrier = false;
            silent.push(why);
        }
        for (target, answer) in config.targets.iter().zip(asked) {
            match answer.await {
                Ok(Ok(())) => seen.answer += 1,
                Ok(Err(why)) => silent.push(format!("{}: {why}", describe(target))),
                Err(error) => silent.push(format!("{}: {error}", describe(target))),
            }
        }
        let look = Look { seen, silent };
        self.last().note(look.clone());
        look
    }

    /// By the looks of [`Service::watch`], which go on all the time; a node that saw nothing good
    /// yet, or no longer, looks so often until it does.
    async fn judge(&self, looks: u32) -> Result<Condition, Failure> {
        for _ in 0..looks {
            let condition = self.last().condition();
            if condition.is_ok() {
                return condition;
            }
            self.look().await;
        }
        self.last().condition()
    }
}

fn unreachable(look: &Look) -> Failure {
    let Seen { answer, of, need, .. } = look.seen;
    Failure {
        code: "clients_unreachable".into(),
        why: format!("{answer} of {of} targets answer, {need} must: {}", look.silent.join("; ")),
        next: "look at this node's network".into(),
        is_permanent: false,
    }
}

fn describe(target: &ReachTarget) -> String {
    match target {
        ReachTarget::Neighbour(address) => format!("{address} on the link"),
        ReachTarget::Ping(address) => format!("{address} by ping"),
        ReachTarget::Tcp(address, port) => {
            format!("{}", std::net::SocketAddr::new(*address, *port))
        }
    }
}

fn check_carrier(name: &str) -> Result<(), String> {
    let links = Requests::open().and_then(|mut requests| requests.links());
    let links = links.map_err(|error| format!("the links cannot be read: {error}"))?;
    match links.iter().find(|link| link.name == name) {
        None => Err(format!("there is no interface {name}")),
        Some(link) if !link.is_up => Err(format!("{name} is down")),
        Some(link) if !link.has_carrier => Err(format!("{name} has no carrier")),
        Some(_) => Ok(()),
    }
}

impl Service for Reach {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async {
            let interface = self.config.interface.clone();
            let known = tokio::task::spawn_blocking(move || {
                let Some(name) = interface else { return Ok(()) };
                let links = Requests::open().and_then(|mut requests| requests.links());
                let is_there = |links: Vec<_>| {
                    links.iter().any(|link: &crate::netlink::Link| link.name == name)
                };
                match links.map(is_there) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(format!("this machine has no interface {name}")),
                    Err(error) => Err(format!("the links cannot be read: {error}")),
                }
            });
            match known.await {
                Ok(Err(why)) => Err(Failure {
                    code: "no_interface".into(),
                    why,
                    next: "correct `interface`".into(),
                    is_permanent: false,
                }),
                _ => Ok(()),
            }
        })
    }

    fn start<'a>(&'a self, _site: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(async { self.judge(MISSES_MAX).await.map(drop) })
    }

    fn stop(&self, _force: Force) -> Doing<'_, Result<(), Failure>> {
        // Nothing of it is anywhere.
        Box::pin(std::future::ready(Ok(())))
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(self.judge(1))
    }

    fn reach(&self) -> Option<Seen> {
        Some(self.seen())
    }

    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()> {
        Box::pin(async move {
            tokio::join!(self.watch_targets(&changes), self.watch_carrier(&changes));
        })
    }
}

impl Reach {
    async fn watch_targets(&self, changes: &UnboundedSender<Change>) {
        let mut every = tokio::time::interval(ASK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut has_failed, mut told) = (false, Vec::new());
        loop {
            every.tick().await;
            let look = self.look().await;
            let misses = self.last().misses;
            let had_failed = mem::replace(&mut has_failed, misses >= MISSES_MAX);
            if has_failed && !had_failed {
                // Nobody listens any more: whoever watches drops this.
                let _ = changes.send(Change::Failed(unreachable(&look).why));
            } else if misses == 0 && look.silent != told {
                told.clone_from(&look.silent);
                if !told.is_empty() {
                    let _ = changes.send(Change::Warning(told.join("; ")));
                }
            }
        }
    }

    /// A carrier that is lost is told by the kernel at once.
    async fn watch_carrier(&self, changes: &UnboundedSender<Change>) {
        let Some(name) = &self.config.interface else { return std::future::pending().await };
        let mut events = match Events::open() {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!("{name}: its carrier is only looked at every second: {error}");
                return std::future::pending().await;
            }
        };
        let mut worked = true;
        loop {
            tokio::time::sleep(LINK_EVERY).await;
            for event in events.read().unwrap_or_default() {
                let works = match event {
                    Event::LinkThere(link) if link.name == *name => link.works(),
                    Event::LinkGone(link) if link.name == *name => false,
                    _ => continue,
                };
                if worked && !works {
                    let _ = changes.send(Change::Failed(format!("{name} has no carrier")));
                }
                worked = works;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn reach(port: u16) -> Reach {
        let targets = vec![ReachTarget::Tcp(Ipv4Addr::LOCALHOST.into(), port)];
        Reach::new(ReachConfig { interface: None, targets, need: 1 })
    }

    #[tokio::test]
    async fn one_bad_look_is_a_warning_and_three_in_a_row_are_a_failure() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let reach = reach(listener.local_addr().unwrap().port());
        assert_eq!(reach.judge(1).await, Ok(Condition::Running));
        drop(listener);
        for bad in 1..MISSES_MAX {
            reach.look().await;
            let condition = reach.judge(1).await;
            assert!(matches!(condition, Ok(Condition::Degraded(_))), "{bad}: {condition:?}");
            assert_eq!(reach.seen().answer, 0);
        }
        reach.look().await;
        let failure = reach.judge(1).await.unwrap_err();
        assert_eq!(failure.code, "clients_unreachable");
    }

    #[tokio::test]
    async fn a_node_that_never_saw_a_target_does_not_reach_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let reach = reach(port);
        assert!(reach.judge(1).await.is_err());
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(reach.judge(1).await, Ok(Condition::Running));
    }
}

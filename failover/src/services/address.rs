//! A floating address: added with a life of a second that every renewal of the lease prolongs, so
//! that the kernel itself removes it when we stand still; announced again and again; watched.
//!
//! ```text
//!   place.rs    on which link it belongs (pure)
//!   keeper.rs   the thread that keeps it: adds, refreshes, announces, watches, removes
//! ```
//!
//! Each address has a thread of its own. A change of addresses may wait for the kernel's lock,
//! which must not hold up other services, and the end of the lease must not wait for a runtime.

mod keeper;
mod place;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failover_core::Span;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::{Change, Condition, Doing, Failure, Force, Service, Site};
use crate::guard::Registry;
use crate::netlink::Requests;
pub use keeper::is_conflict;
use keeper::{Desk, Order};

/// How long leases are. All who hold a clone see each change, at once.
#[derive(Clone, Debug)]
pub struct LeaseLength(Arc<AtomicU64>);

impl LeaseLength {
    /// At first.
    pub fn new(lease: Span) -> Self {
        Self(Arc::new(AtomicU64::new(lease.0)))
    }

    /// From now on.
    pub fn set(&self, lease: Span) {
        self.0.store(lease.0, Ordering::Release);
    }

    /// Now.
    pub fn get(&self) -> Span {
        Span(self.0.load(Ordering::Acquire))
    }
}

/// What an address is and where.
#[derive(Clone, Debug)]
pub struct AddressConfig {
    /// The resource it belongs to.
    pub resource: String,
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The link; none: the one that has an address of the same network.
    pub interface: Option<String>,
    /// Whether the kernel may choose it as the source of new connections.
    pub is_source: bool,
    /// The length of the lease, as the register has it.
    pub lease: LeaseLength,
    /// Where the other nodes are: one of them that still answers for the address is no stranger.
    pub peers: Vec<IpAddr>,
}

impl fmt::Display for AddressConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

/// Whether this machine has a link of the network of an address for which no interface is named.
pub fn place_for(address: IpAddr, prefix: u8) -> Result<(), Failure> {
    let config = AddressConfig {
        resource: String::new(),
        address,
        prefix,
        interface: None,
        is_source: false,
        lease: LeaseLength::new(Span(0)),
        peers: Vec::new(),
    };
    let look = || -> io::Result<_> {
        let mut requests = Requests::open()?;
        Ok((requests.links()?, requests.addresses()?))
    };
    // A machine that does not say is not said to lack anything.
    let Ok((links, addresses)) = look() else { return Ok(()) };
    place::choose(&config, &links, &addresses).map(drop)
}

/// A floating address on this node.
pub struct Address {
    desk: Desk,
}

impl Address {
    /// Starts its keeper, which does nothing until it is told to.
    pub fn new(config: AddressConfig, registry: Registry) -> io::Result<Self> {
        Ok(Self { desk: Desk::open(config, registry)? })
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order + Send + 'a,
    ) -> Doing<'a, Result<T, Failure>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.desk.order(order(reply));
            answer.await.map_err(|_| Failure {
                code: "keeper_ended".into(),
                why: "the thread that keeps this address ended".into(),
                next: "look at the log, then restart the daemon".into(),
                is_permanent: false,
            })
        })
    }
}

impl Service for Address {
    fn prepare(&self) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async move { self.ask(Order::Prepare).await? })
    }

    fn start<'a>(&'a self, _site: &'a Site) -> Doing<'a, Result<(), Failure>> {
        Box::pin(async move { self.ask(Order::Start).await? })
    }

    fn stop(&self, _force: Force) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async move { self.ask(Order::Stop).await? })
    }

    fn monitor(&self) -> Doing<'_, Result<Condition, Failure>> {
        Box::pin(async move { self.ask(Order::Look).await? })
    }

    fn watch(&self, changes: UnboundedSender<Change>) -> Doing<'_, ()> {
        self.desk.order(Order::Watch(changes));
        Box::pin(std::future::pending())
    }

    fn lease(&self, left: Option<Duration>) -> Doing<'_, ()> {
        // Now, not when the future runs: the time that passes until then is not ours.
        let left = left.filter(|left| !left.is_zero());
        let until = left.map(|left| crate::node::now() + Span(left.as_nanos() as u64));
        self.desk.order(Order::Lease(until));
        Box::pin(std::future::ready(()))
    }
}

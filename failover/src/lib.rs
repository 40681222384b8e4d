//! Drives `failover-core`: datagrams between the nodes, the acceptor's record on disk, the clock.
//!
//! ```text
//!   node.rs       one thread that steps the core; the handle that the daemon holds
//!   port.rs       the sockets it hears at, for all clusters of this process
//!   datagram.rs   messages as authenticated datagrams
//!   netlink.rs    addresses, links and neighbours by the kernel's route netlink
//!   guard.rs      the process that withdraws what the daemon cannot, and feeds the watchdog
//!   store.rs      the acceptor's record in two slots, durable
//!   etcd.rs       etcd as the register: HTTP, JSON, deadlines
//!   http.rs       pages for load balancers, Prometheus and people
//!   services.rs   the kinds of services
//! ```

// As in the core.
#![allow(clippy::large_enum_variant, clippy::result_large_err)]

pub mod datagram;
pub mod etcd;
pub mod guard;
pub mod http;
pub mod netlink;
pub mod node;
pub mod port;
mod repeats;
pub mod services;
pub mod store;

pub use failover_core as core;
pub use node::{Before, Cluster, ClusterConfig, Offices, StartError};
pub use port::Ports;

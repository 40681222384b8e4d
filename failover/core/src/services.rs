//! What runs on top of a resource: its services in their order, as a pure state machine.
//!
//! ```text
//!   spec.rs     what is configured
//!   outcome.rs  what a service answers and tells
//!   port.rs     what the engine is told and orders
//!   engine.rs   the services of one resource on this node: the match on facts
//!     goal.rs     what is to run now, and what is to be done about it
//!     service.rs  one service: the table of phases and events, restarts, deadlines
//!     lease.rs    what the lease means to services (L4)
//!     orders.rs   what operators want
//!     trouble.rs  that services cannot run here, and how long that holds
//!   report.rs   what those who look see
//!   reach.rs    what a node sees of the clients
//!   address.rs  how long the kernel may keep a floating address, and when it is announced
//! ```

pub mod address;
pub mod engine;
mod goal;
mod lease;
mod orders;
pub mod outcome;
pub mod port;
pub mod reach;
pub mod report;
pub mod service;
pub mod spec;
mod trouble;

pub use engine::Engine;
pub use lease::address_delay;
pub use outcome::{Change, Condition, Failure, Force};
pub use port::{Answer, Effect, Gain, Input, Note, Order, Release, Settings, Weight};
pub use service::{Action, KILL_LIMIT, Phase};
pub use spec::{FsckPolicy, Kind, Place, ReachTarget, ServiceSpec, ServiceTiming};

//! What runs on top of a resource: its services in their order, as a pure state machine.
//!
//! ```text
//!   spec.rs     what is configured
//! ```

pub mod spec;

pub use spec::{FsckPolicy, Kind, Place, ReachTarget, ServiceSpec, ServiceTiming};

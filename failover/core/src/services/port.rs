//! What the engine of services is told and what it orders: facts and orders as plain values.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::outcome::{Change, Condition, Failure};
use super::service::Action;
use super::spec::ServiceSpec;
use crate::facts::Hindrance;

/// What the engine is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The resource.
    pub resource: String,
    /// Its services.
    pub services: Vec<ServiceSpec>,
    /// The lease, until the register says another one.
    pub lease: Span,
    /// So long without a lease, and everything stops.
    pub demote_after: Span,
}

/// How this node came to its office.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gain {
    /// The last holder was silent: whether it still has the address is not known.
    TakenFromSilent,
    /// The last holder gave it up, or there was none.
    HandedOver,
    /// An earlier process of this boot had it, and nobody since (R6a): what runs is continued.
    Resumed,
}

/// Why the office is to be given up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Release {
    /// An operator moves it. A stop that fails ends that, and the services come back.
    HandOver,
    /// Services cannot run here: what cannot be stopped is detached from a device that fails.
    Move,
    /// The resource goes down on this node, and with it what runs on every node.
    Down,
}

/// An operator's order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Order {
    /// Run it again.
    Start(Option<String>),
    /// Stop it, until started.
    Stop(Option<String>),
    /// Stop it and start it.
    Restart(Option<String>),
    /// Forget all failures.
    Clear(Option<String>),
    /// Hands off, or on again.
    Maintenance(bool),
    /// What the register says: hands off or not, and which services are to be stopped; an empty
    /// name means all.
    Switches {
        /// Hands off.
        is_maintained: bool,
        /// Stopped until started.
        off: Vec<String>,
    },
}

/// What a job answers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// A start or stop is done.
    Done,
    /// A monitor found this.
    Is(Condition),
}

/// A fact.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// The resource runs on this node; its role is not known yet.
    ResourceUp,
    /// This node serves the resource: its device is open.
    OfficeGained {
        /// The tenure.
        tenure: u64,
        /// How it came.
        how: Gain,
    },
    /// A majority's newest state names another primary, or none, in this tenure.
    NotHeld {
        /// The newest tenure.
        tenure: u64,
    },
    /// Until when this node may act as primary; `Time(u64::MAX)`: without end.
    LeaseChanged {
        /// `None`: not at all.
        until: Option<Time>,
    },
    /// The register has this lease, from now on.
    LeaseLengthChanged {
        /// What holder and acceptors go by.
        lease: Span,
    },
    /// The office was taken away, or given up for want of a lease; the device fails.
    OfficeLost,
    /// It is to be given up: stop everything, then say [`Effect::Released`].
    ReleaseWanted(Release),
    /// It was not given up after all.
    ReleaseCancelled,
    /// The operator wants it elsewhere no more: a hand-over whose stops are under way fails, one
    /// that they are done for goes on.
    HandOverWithdrawn,
    /// It was given up.
    OfficeReleased,
    /// The device fails all I/O, as [`Effect::FailDevice`] ordered.
    DeviceFailed,
    /// A job ended.
    Ended {
        /// The service, by its place in the list.
        service: usize,
        /// The job.
        ticket: u64,
        /// How.
        result: Result<Answer, Failure>,
    },
    /// A service changed by itself.
    Changed {
        /// The service.
        service: usize,
        /// How.
        change: Change,
    },
    /// What can be checked beforehand is wrong.
    Unprepared {
        /// The service.
        service: usize,
        /// What.
        why: Failure,
    },
    /// What only the primary runs may not run on this node, for this reason; or may again.
    Forbidden(Option<Hindrance>),
    /// An operator wants something.
    Ordered(Order),
    /// A deadline of [`Engine::next_deadline`] has come.
    TimePassed,
}

/// An order to the driver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Do this; answered by [`Input::Ended`].
    Do {
        /// The service.
        service: usize,
        /// The job.
        ticket: u64,
        /// What.
        action: Action,
    },
    /// What is being done takes too long or is not wanted any more: drop it.
    Drop {
        /// The service.
        service: usize,
        /// The job.
        ticket: u64,
    },
    /// Tell an address how long clients may still be served; `None`: it is to go now.
    Lease {
        /// The service.
        service: usize,
        /// How long.
        left: Option<Span>,
    },
    /// Freeze a service, or let it go on.
    Suspend {
        /// The service.
        service: usize,
        /// Which.
        is_suspended: bool,
    },
    /// Fail all I/O of the device, then say [`Input::DeviceFailed`].
    FailDevice,
    /// Everything is stopped: the office may be given up.
    Released,
    /// It cannot be given up.
    ReleaseFailed(Failure),
    /// Something happened.
    Note(Note),
}

/// How loud a note is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Weight {
    /// For the record.
    Info,
    /// Somebody should look when there is time.
    Warning,
    /// Somebody should look now.
    Error,
}

/// Something that happened: for the log, status and hooks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Note {
    /// Stable name for programs: `service_started`, `service_failed`, `all_running`, ...
    pub code: &'static str,
    /// How loud.
    pub weight: Weight,
    /// The service; none: the resource.
    pub service: Option<usize>,
    /// How long it took, where something was done.
    pub took: Option<Span>,
    /// In words.
    pub text: String,
}

//! The history checker: it is told what clients asked of a block device and what they got back,
//! and says whether any correct device could have behaved so. No I/O, no clock, no randomness.
//!
//! # The model
//! The device is an array of *units* (512 bytes, say). A unit is the grain of atomicity: requests
//! must begin and end on unit bounds, and each unit is one register of its own. Nothing is
//! promised between units: a request that was cut off may have changed some of its units only.
//!
//! **Time** is the order in which the checker is told things. `started` must be told before the
//! request is sent and the end after its reply was received. Telling a start early or an end late
//! only widens an interval, so it can hide a fault but never invent one.
//!
//! **A write** takes effect on each of its units at most once, at one instant:
//! - acknowledged: exactly once, between its start and its acknowledgement;
//! - in flight, failed or of unknown outcome: at some instant after its start, or never;
//! - *fenced*, that is, not acknowledged when a later tenure begins (`tenure_changed`): before
//!   that moment or never. (SAFETY R2c: the new primary drains its disk before it serves. A
//!   caller that cannot tell the tenures apart does not tell them, and loses only this check.)
//! - *optional*, the units of a trim that a device may skip: before its acknowledgement, or never.
//!
//! Zeroing and trimming are writes of the value 0. Before the first write a unit has the initial
//! value of the configuration, which is durable.
//!
//! **A read** returns, for each unit, the value of the write that took effect last before some
//! instant between the read's start and its end. Different units may use different instants.
//!
//! **A flush** that was acknowledged makes durable every write that was acknowledged, or whose
//! value a read had returned, before the flush started. A write with FUA is durable when it is
//! acknowledged. What a loss of power left behind is durable after the next whole flush, whichever
//! value a read then shows it to be.
//!
//! **Power loss** (oracle (a)). When every member lost its power at least once since a write
//! *started* and no flush made it durable, it may be lost. At the moment when that condition
//! becomes newly true for some writes (`power_lost` of the last missing member), each unit falls
//! back to one of: its last durable value, or the value of any write ordered after it, whether
//! acknowledged or not. Which one is open until a read tells. That is the only way to lose an
//! acknowledged value, and the only way to un-read one that was read. Requests in flight at that
//! moment are judged leniently, since their answers may be older than the loss: such a write may
//! be lost even if its acknowledgement is told later, and such a read teaches nothing.
//!
//! **`data_loss_allowed`** (a logged `--allow-data-loss`): each unit falls back to any value that
//! was ever written to it.
//!
//! # How it is decided
//! For each unit and each write to it take two times: `first_end`, the earliest end among the
//! write (its acknowledgement or fence) and the reads that returned it, and `last_start`, the
//! latest start among the same. Write X is *before* Y when `X.first_end < Y.last_start`. A history
//! of one register with distinct values is linearizable if and only if no two writes are before
//! each other (Gibbons and Korach, 1997), where writes that were neither acknowledged nor read
//! are left out. So each read costs one comparison with each write that is still of interest,
//! and the answer is exact, also for overlapping requests. Writes that are before a durable
//! one that ended before every read in flight began can never return and are forgotten; what they
//! knew about the order is handed to that durable write.
//!
//! Values should be distinct. When a read returns a value that several writes could have left (0,
//! mostly), it is accepted if one of them could, and teaches nothing: lenient, never wrong.
//!
//! # What is reported
//! See [`ViolationKind`]. After a violation the unit continues from the value that was read, so
//! that one fault is reported once per unit.
#![forbid(unsafe_code)]

mod checker;
pub mod draw;
pub mod planted;
mod register;
mod violation;

pub use checker::{Checker, Config, PowerLoss, Write};
pub use violation::{Seen, Violation, ViolationKind, WriteReport};

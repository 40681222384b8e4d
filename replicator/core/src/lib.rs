//! What a replica does, as a pure state machine: inputs in, effects out. No I/O, no clock, no
//! randomness, no threads.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod activity_log;
pub mod bitmap;
pub mod block;
pub mod command;
pub mod config;
pub mod defect;
mod digest;
pub mod effect;
mod fenced;
mod flapping;
mod flush;
pub mod handshake;
pub mod input;
pub mod limits;
mod log_keeper;
mod majority;
mod membership;
pub mod metadata;
mod mirror;
pub mod note;
pub mod observe;
mod office;
mod peer;
mod persist;
pub mod recording;
pub mod register;
mod replica;
mod request;
mod resize;
mod resync;
pub mod room;
mod secondary;
mod session;
pub mod status;
pub mod time;
mod verify;
mod verify_news;
mod waits;
pub mod wire;

/// Whether this build can break rules on purpose: only the simulator's should.
pub const HAS_DEFECTS: bool = cfg!(feature = "defects");

pub use block::{BlockDigest, BufId, ByteRange, OpId, PeerIndex, RequestId, SessionId, Ticket};
pub use command::{Answer, Command, Refusal};
pub use config::{Config, PeerConfig, RegisterKeeper, Timing};
pub use effect::{ClientError, Effect, Effects, Retry};
pub use input::{ClientRequest, DiskFailure, DiskOutcome, Input, LinkLoss, Undecided};
pub use note::Note;
pub use replica::Replica;
pub use status::{PeerStatus, Status};
pub use time::{Span, Time};
pub use verify::Findings;
pub use verify_news::VerifyNews;

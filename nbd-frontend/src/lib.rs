//! NBD, the network block device protocol, as plain state machines: bytes in, bytes and requests
//! out. Nothing here opens a socket, starts a thread, reads a clock or waits.
//!
//! The way of a connection on the server: the driver sends [`negotiation::greeting`], feeds what
//! it receives to [`negotiation::Negotiation::feed`] until that yields an export and a
//! [`session::Session`], then calls [`session::Session::next_request`] on its receive buffer and
//! answers with [`reply::Replies`]. All checks of what a client may ask are in `session`; all
//! bytes of answers are made in `reply`; all numbers are in `protocol`. `client` is the other
//! side, for tools and tests.

#![deny(unsafe_code)]

pub mod attach;
pub mod client;
pub mod export;
pub mod negotiation;
pub mod protocol;
pub mod reply;
pub mod session;

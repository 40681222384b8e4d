//! The daemon `replicatord` as a library: what drives the replication core on a real machine.
//! `main.rs` and `replctl` are thin shells around it.
//!
//! Around the data loop: `config` (the file), `key` and `greeting` (who may speak with us),
//! `peers` (connections to the other nodes), `nbd_listen` (connections of clients), `resource`
//! (one resource with its loop), `daemon` (all of them), `control` (what `replctl` says and
//! hears), `fence` (a lost peer is switched off, without a witness), `recording` (the steps of a
//! core into a file), `create` with `signature` and `device_use` (metadata on a disk, without a
//! daemon).

mod at_once;
pub mod block_device;
mod buffers;
pub mod cluster;
pub mod config;
pub mod control;
pub mod control_server;
pub mod create;
pub mod daemon;
pub mod data_loop;
pub mod device_use;
pub mod disk;
pub mod dump;
pub mod events;
pub mod fence;
pub mod greeting;
pub mod guard;
pub mod hooks;
pub mod http;
pub mod incarnation;
pub mod key;
pub mod latency;
pub mod link;
mod lock_holders;
pub mod metadata_end;
pub mod nbd_listen;
mod nbd_port;
mod peer_link;
pub mod peers;
pub mod process;
mod recording;
pub mod report;
pub mod resource;
pub mod signature;
mod state_file;
mod uring;
pub mod verdict;
pub mod verify;

//! The kinds of services against this machine: real processes, real file systems on loop devices,
//! the real agents of Debian. What needs root says so and is skipped without it.

mod bench;
mod command;
mod filesystem;
mod filesystem_holders;
mod ocf;
mod ocf_real;

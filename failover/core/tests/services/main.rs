//! The engine of services: scripted traces, the whole table of phases and events, and a seeded
//! simulator with services that hang, fail, flap and lie.

mod simulator;
mod story;
mod table;
mod traces;

//! replicatord
fn main() {}

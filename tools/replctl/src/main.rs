//! replctl
fn main() {}

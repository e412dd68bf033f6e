//! The `ottava` command.
#![forbid(unsafe_code)]
fn main() {}

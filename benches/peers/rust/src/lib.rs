//! The engine's side of the benchmark's line protocol, for engines written in Rust; see
//! `engines/serve.py` for the protocol itself.
#![forbid(unsafe_code)]

mod aligned;
mod files;
mod nodes;
mod serve;

pub use aligned::Aligned;
pub use files::{Files, Kind};
pub use nodes::{Node, Op, Weight, nodes};
pub use serve::{Model, serve};

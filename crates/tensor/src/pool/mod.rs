//! Pooling.

pub mod int8;

//! Pooling.

pub mod f32;
pub mod int8;

pub use f32::{avg_pool, avg_pool_grad, max_pool, max_pool_grad};

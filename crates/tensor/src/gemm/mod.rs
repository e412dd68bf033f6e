//! Matrix products.

pub mod f32;
pub mod int8;

pub use f32::{matmul, matmul_on};

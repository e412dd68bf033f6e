//! Matrix products.

pub mod f32;
pub mod int8;

pub use f32::{PackedMatrix, matmul, matmul_on};

//! 2-D convolution. [`ConvGeometry::new`] checks once that shapes fit together; kernels panic if tensors do not have
//! them.

pub mod f32;
mod geometry;
pub mod int8;

pub use geometry::{ConvAttrs, ConvGeometry, PoolGeometry};

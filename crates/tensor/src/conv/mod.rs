//! 2-D convolution. [`ConvGeometry::new`] checks the shapes once; no kernel below can fail.

pub mod f32;
mod geometry;
pub mod int8;

pub use geometry::{ConvAttrs, ConvGeometry, PoolGeometry};

//! 2-D convolution. [`ConvGeometry::new`] checks the shapes once; no kernel below can fail.

mod geometry;
pub mod int8;

pub use geometry::{ConvAttrs, ConvGeometry, PoolGeometry};

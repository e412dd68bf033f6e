//! Tensors and kernels of Ottava: strided storage, and exact integer and float arithmetic on every
//! instruction set.
//!
//! Start at [`Tensor`] for data, at [`Level`] for the choice of an instruction set, at [`conv`] and
//! [`gemm`] for the kernels. Not here: scales and zero points (`ottava-quant`), gradients
//! (`ottava-autograd`).

pub mod bits;
pub mod cpu;
mod element;
mod error;
pub mod parallel;
pub mod shape;
mod shared;
mod storage;
mod tensor;

pub mod conv;
pub mod elementwise;
pub mod gemm;
pub mod norm;
pub mod pool;
pub mod simd;

pub use element::Element;
pub use error::{Error, Result};
pub use simd::Level;
pub use storage::SharedBytes;
pub use tensor::Tensor;

//! The exact product of `u8` or `i8` codes and `i8` weights, and the driver that convolutions share.
//!
//! [`Int8Gemm`] holds packed weights; [`reference()`] is the law. A sum is exact for up to
//! [`MAX_TERMS`] terms of any value.

mod code;
mod drive;
mod epilogue;
mod output;
mod panels;
mod product;
mod reference;
mod scratch;
mod tile;

pub use code::Code;
pub(crate) use drive::{Job, MAX_ROW_STEP, RowMap, task};
pub(crate) use epilogue::{Codes, Epilogue, Finish, Keep, MAX_LANES, Sink};
pub use output::Output;
pub(crate) use panels::Panels;
pub use product::Int8Gemm;
pub(crate) use product::{encode, is_narrow};
pub use reference::gemm as reference;
pub(crate) use scratch::Scratch;
pub(crate) use tile::{Copies, Place, Strip};

/// `255 · 128 · k < 2³¹`: the longest sum that no codes and weights overflow.
pub const MAX_TERMS: usize = 65_793;

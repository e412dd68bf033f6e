//! `f32` matrix products: `C = A·B`, with both operands packed into what the register tile reads.
//!
//! ```text
//! B → panels of two or four vectors' width, once, whole                   (panels.rs)
//! for each block of up to DEPTH of k                        one task       (matmul.rs)
//!   for each block of rows                                                 (drive.rs)
//!     pack rows of A, unless they lie well                                 (left.rs)
//!     for each group of panels of B                         stays in L2
//!       for each tile of rows                               stays in L1
//!         for each panel                                    from L2
//!           tile += rows·panel                              in registers   (tile.rs)
//! ```
//!
//! Rows stay rows, a step apart: packing is copying, a convolution packs from the image itself, and rows that lie
//! well in memory are read there. While a tile multiplies, it asks for the rows of the next one and for its share
//! of the next group of panels, so that neither is waited for.
//! An element is summed over `k` in one order, however rows and columns are divided into tasks.

mod drive;
mod left;
mod matmul;
mod panels;
#[cfg(test)]
pub(crate) mod reference;
mod tile;

pub(crate) use drive::{WHOLE, multiply};
pub(crate) use left::{Left, Matrix, copy};
pub use matmul::{PackedMatrix, matmul, matmul_on};
pub(crate) use panels::{Panel, Panels, Widest};
pub(crate) use tile::{
    ASKED, Onto, Row, Strided, accumulate, accumulate_rows, finish, most_rows, next_rows, with_rows,
};

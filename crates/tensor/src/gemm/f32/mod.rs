//! `f32` matrix products: `C = A·B`, with both operands packed into what the register tile reads.
//!
//! ```text
//! B → panels of two vectors' width, once, whole                          (panels.rs)
//! for each block of rows                                  one task       (matmul.rs)
//!   for each block of up to DEPTH of k                                   (drive.rs)
//!     pack tiles of rows of A                                            (left.rs)
//!     for each group of panels of B                       stays in L2
//!       for each tile                                     stays in L1
//!         for each panel                                  from L2
//!           tile += rows·panel                            in registers   (tile.rs)
//! ```
//!
//! Tiles keep rows as rows, at a constant distance: packing is copying, a convolution packs from the
//! image itself, and every element of a tile is at a constant offset from one pointer. Rows that lie
//! well in memory already are read there, if the cache holds all of B.
//! An element is summed over `k` in one order, however rows and columns are divided into tasks.

mod drive;
mod left;
mod matmul;
mod panels;
#[cfg(test)]
pub(crate) mod reference;
mod tile;

pub(crate) use drive::multiply;
pub(crate) use left::{Left, Matrix, copy};
pub use matmul::{PackedMatrix, matmul, matmul_on};
pub(crate) use panels::{Panel, Panels};
pub(crate) use tile::{Onto, Row, Strided, accumulate, asked_for, finish, next_rows, with_rows};

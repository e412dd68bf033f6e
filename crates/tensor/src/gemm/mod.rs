//! Matrix products.

pub mod int8;

//! The integer operations of x86-64: 256-bit vectors, 512-bit vectors.

mod amx;
mod avx2;
mod avx512;

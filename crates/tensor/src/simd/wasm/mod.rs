//! WebAssembly with 128-bit vectors, which a module has or has not as a whole.

use super::Isa;

mod f32;
mod int8;

/// SIMD128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wasm(());

impl Isa for Wasm {
    fn detect() -> Option<Self> {
        Some(Self(()))
    }

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

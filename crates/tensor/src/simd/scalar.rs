//! Plain Rust.

pub(crate) mod int8;

use super::Isa;

mod f32;

/// Plain Rust: on every machine, and the law for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar(());

impl Isa for Scalar {
    fn detect() -> Option<Self> {
        Some(Self(()))
    }

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

//! x86-64: tokens, and what each can do.

mod amx;
mod f32;
mod int8;

pub use amx::Amx;

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use super::{Isa, LINE};

macro_rules! token {
    ($(#[$doc:meta])* $name:ident: $($feature:tt),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(());

        impl Isa for $name {
            fn detect() -> Option<Self> {
                ($(std::arch::is_x86_feature_detected!($feature))&&*).then_some(Self(()))
            }

            #[inline(always)]
            fn enter<R>(self, f: impl FnOnce() -> R) -> R {
                // A function of its own: a register tile inlined into its loops would share their
                // registers, and spill.
                #[inline(never)]
                $(#[target_feature(enable = $feature)])*
                fn run<R>(f: impl FnOnce() -> R) -> R {
                    f()
                }
                // SAFETY: a token exists only if `detect` found every feature that `run` enables.
                unsafe { run(f) }
            }

            #[inline(always)]
            fn prefetch_line<T>(self, at: *const T) {
                prefetch_line::<_MM_HINT_T0, T>(at);
            }

            #[inline(always)]
            fn prefetch_outer<T>(self, data: &[T], at: usize) {
                let line = data.as_ptr().wrapping_add(at).cast::<u8>();
                prefetch_line::<_MM_HINT_T1, u8>(line);
                prefetch_line::<_MM_HINT_T1, u8>(line.wrapping_add(LINE));
            }
        }
    };
}

/// Asks for a cache line.
#[inline(always)]
fn prefetch_line<const HINT: i32, T>(at: *const T) {
    // SAFETY: SSE is part of x86-64; a prefetch may name any address.
    unsafe { _mm_prefetch::<HINT>(at.cast()) }
}

token! {
    /// AVX2 with FMA: the baseline of current x86-64 machines.
    Avx2: "avx2", "fma"
}
token! {
    /// AVX2 with the 256-bit byte dot product.
    AvxVnni: "avx2", "fma", "avxvnni"
}
token! {
    /// AVX-512 (F, BW, DQ, VL) without the byte dot product.
    Avx512: "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"
}
token! {
    /// AVX-512 with the byte dot product.
    Avx512Vnni: "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"
}

//! AArch64: tokens, and what each can do.

use super::Isa;

mod f32;
mod int8;

macro_rules! token {
    ($(#[$doc:meta])* $name:ident: $($feature:tt),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(());

        impl Isa for $name {
            fn detect() -> Option<Self> {
                ($(std::arch::is_aarch64_feature_detected!($feature))&&*).then_some(Self(()))
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
        }
    };
}

token! {
    /// NEON as every AArch64 CPU has it.
    Neon: "neon"
}
token! {
    /// NEON with the byte dot product (`sdot`).
    NeonDot: "neon", "dotprod"
}
token! {
    /// NEON with the byte matrix product (`smmla`).
    NeonI8mm: "neon", "dotprod", "i8mm"
}

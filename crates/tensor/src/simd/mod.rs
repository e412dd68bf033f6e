//! The instruction sets, once: a token each that proves the CPU has it, and the [`Level`] that
//! chooses among them at run time.
//!
//! A kernel is a generic function over a token; `dispatch!` compiles it for every set. Adding an
//! instruction set: one folder with its token and operations, one line in `levels!`.

pub(crate) mod f32;
pub(crate) mod int8;
pub mod limits;

pub(crate) mod scalar;
pub use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub use x86::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub use neon::{Neon, NeonDot, NeonI8mm};

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub use wasm::Wasm;

use std::env::VarError;
use std::sync::OnceLock;

use crate::{Error, Result};

/// Bytes of a cache line.
const LINE: usize = 64;

/// An instruction set. A value of the implementing type is the proof that this CPU has it, so that kernels need no
/// `unsafe` for its instructions.
pub trait Isa: Copy + Send + Sync + 'static {
    /// The token, if this CPU has the instruction set.
    fn detect() -> Option<Self>;

    /// Runs `f` compiled for this instruction set. Everything `f` calls down to the intrinsics must be
    /// `#[inline(always)]`, or it is compiled without the instruction set.
    fn enter<R>(self, f: impl FnOnce() -> R) -> R;

    /// Says that the cache line at this address, which may be any, is about to be read or written.
    #[inline(always)]
    fn prefetch_line<T>(self, _at: *const T) {}

    /// Says that so many bytes from this address on, which may be any, are about to be read or written.
    #[inline(always)]
    fn prefetch_bytes<T>(self, at: *const T, bytes: usize) {
        for offset in (0..bytes).step_by(LINE) {
            self.prefetch_line(at.wrapping_byte_add(offset));
        }
    }

    /// Says that the two cache lines from `data[at]` on are about to be read or written.
    #[inline(always)]
    fn prefetch<T>(self, data: &[T], at: usize) {
        self.prefetch_bytes(data.as_ptr().wrapping_add(at), 2 * LINE);
    }

    /// The same of what is read later: brings it no nearer than the second cache.
    #[inline(always)]
    fn prefetch_outer<T>(self, _data: &[T], _at: usize) {}
}

/// Declares [`Level`] and `dispatch!` from one list, best last.
macro_rules! levels {
    ($($(#[$cfg:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// An instruction set this CPU has: the choice every kernel takes as its first argument.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Level {
            $(
                #[doc = concat!("`", $name, "`")]
                $(#[$cfg])* $variant($variant),
            )*
        }

        impl Level {
            /// Every level of this machine, the plain one first and the best one last.
            pub fn available() -> Vec<Self> {
                let mut levels = Vec::new();
                $(
                    $(#[$cfg])*
                    levels.extend($variant::detect().map(Self::$variant));
                )*
                levels
            }

            /// The name that `OTTAVA_ISA` and reports use.
            pub fn name(self) -> &'static str {
                match self {
                    $($(#[$cfg])* Self::$variant(_) => $name,)*
                }
            }
        }

        /// `dispatch!(level, isa => kernel(isa, …))`: compiles the expression for every level.
        macro_rules! dispatch {
            ($level:expr, $isa:ident => $body:expr) => {
                match $level {
                    $(
                        $(#[$cfg])*
                        $crate::simd::Level::$variant($isa) => {
                            $crate::simd::Isa::enter($isa, #[inline(always)] || $body)
                        }
                    )*
                }
            };
        }
        #[allow(unused_imports)]
        pub(crate) use dispatch;
    };
}

levels! {
    Scalar = "scalar",
    #[cfg(target_arch = "x86_64")] Avx2 = "avx2",
    #[cfg(all(target_arch = "x86_64", feature = "avxvnni"))] AvxVnni = "avxvnni",
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))] Avx512 = "avx512",
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))] Avx512Vnni = "avx512vnni",
    #[cfg(all(target_arch = "x86_64", feature = "amx"))] Amx = "amx",
    #[cfg(target_arch = "aarch64")] Neon = "neon",
    #[cfg(target_arch = "aarch64")] NeonDot = "neon-dotprod",
    #[cfg(target_arch = "aarch64")] NeonI8mm = "neon-i8mm",
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))] Wasm = "wasm-simd128",
}

impl Level {
    /// The best level of this machine.
    pub fn best() -> Self {
        *Self::available().last().expect("the scalar level is always there")
    }

    /// The level called `name`.
    ///
    /// # Errors
    /// [`Error::UnknownLevel`], with the names there are, if this machine or build does not have it.
    pub fn named(name: &str) -> Result<Self> {
        let levels = Self::available();
        levels.iter().copied().find(|level| level.name() == name).ok_or_else(|| {
            Error::UnknownLevel {
                name: name.into(),
                available: levels.into_iter().map(Self::name).collect(),
            }
        })
    }

    /// The level named by the environment variable `OTTAVA_ISA`, or the best one; read once.
    ///
    /// # Errors
    /// [`Error::UnknownLevel`] if the variable names a level that is not available.
    pub fn from_env() -> Result<Self> {
        static CHOSEN: OnceLock<Result<Level>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var("OTTAVA_ISA") {
                Ok(name) if !name.is_empty() => Self::named(&name),
                Ok(_) | Err(VarError::NotPresent) => Ok(Self::best()),
                Err(VarError::NotUnicode(name)) => Self::named(&name.to_string_lossy()),
            })
            .clone()
    }

    /// Runs `f` compiled for this level's vectors, which plain loops over slices then use. What `f` calls
    /// must be `#[inline(always)]`, or it is compiled for any machine.
    ///
    /// ```
    /// use ottava_tensor::Level;
    ///
    /// let (x, mut y) = ([1.0f32, 2.0, 3.0], [0.0; 3]);
    /// Level::current().vectorize(|| y.iter_mut().zip(&x).for_each(|(y, x)| *y = 2.0 * x));
    /// assert_eq!(y, [2.0, 4.0, 6.0]);
    /// ```
    #[inline(always)]
    pub fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        use self::f32::dispatch_f32;
        dispatch_f32!(self, _isa => f())
    }

    /// [`from_env`](Self::from_env), or the best level if the variable is wrong: for places without a
    /// way to report. The command line checks the variable first.
    pub fn current() -> Self {
        Self::from_env().unwrap_or_else(|_| Self::best())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the tests are told what the machine has, they must not pass without it.
    #[test]
    fn the_expected_level_is_there() {
        if let Ok(name) = std::env::var("OTTAVA_EXPECT_ISA") {
            assert_eq!(Level::best().name(), name);
        }
    }

    #[test]
    fn levels_answer_to_their_names() {
        for level in Level::available() {
            assert_eq!(Level::named(level.name()), Ok(level));
        }
        let message = Level::named("mmx").unwrap_err().to_string();
        assert!(message.contains("\"mmx\"") && message.contains("scalar"), "{message}");
    }
}

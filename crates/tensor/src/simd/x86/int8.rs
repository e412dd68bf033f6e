//! The integer operations of x86-64: 256-bit vectors, 512-bit vectors.

/// Declares a product: its memory forms, and the instructions of one step. What it names beside its arguments is of the
/// file that calls it: `Vector`, `LANES`, the most rows and vectors of a `TILE`, `copies!` of a group.
macro_rules! product {
    (
        $(#[$doc:meta])*
        $name:ident<$bound:ident>: $x:ident by $w:ident, groups of $group:literal, $load:ident, $dot:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<I>(I);

        impl<I: $bound> $name<I> {
            #[inline(always)]
            pub(super) fn new(isa: I) -> Self {
                Self(isa)
            }

            /// [`Product::step`] for vectors of weights that lie `apart`.
            ///
            /// # Safety
            /// As there.
            #[inline(always)]
            pub(super) unsafe fn step_of<const MR: usize, const NV: usize>(
                self,
                acc: &mut [[Vector; NV]; MR],
                x: &[*const $x; MR],
                offset: usize,
                w: *const $w,
                apart: usize,
            ) {
                // SAFETY: the token proves what the instructions need; the caller promises
                // LANES·GROUP weights for each vector and, in each row, a group, which is four bytes.
                unsafe {
                    let mut weights = [copies!(0); NV];
                    for (v, weight) in weights.iter_mut().enumerate() {
                        *weight = $load!(w.add(apart * v));
                    }
                    for i in 0..MR {
                        let group = copies!(x[i].add(offset).cast::<i32>().read_unaligned());
                        for v in 0..NV {
                            acc[i][v] = $dot!(acc[i][v], group, weights[v]);
                        }
                    }
                }
            }
        }

        impl<I: $bound> Product for $name<I> {
            type Isa = I;
            type X = $x;
            type W = $w;
            const GROUP: usize = $group;
            const RAW: bool = size_of::<$x>() == 1;
            const ROWS: usize = TILE[0];
            const VECTORS: usize = TILE[1];

            #[inline(always)]
            fn isa(self) -> I {
                self.0
            }
            #[inline(always)]
            fn encode(x: u8, zero: u8) -> $x {
                image::$x(x, zero)
            }
            #[inline(always)]
            fn excess(zero: u8) -> i32 {
                image::$x(zero, zero).into()
            }
            #[inline(always)]
            fn spin(self, acc: Vector) -> Vector {
                // SAFETY: the token proves the instructions.
                unsafe { $dot!(acc, acc, acc) }
            }
            #[inline(always)]
            unsafe fn step<const MR: usize, const NV: usize>(
                self,
                acc: &mut [[Vector; NV]; MR],
                x: &[*const $x; MR],
                offset: usize,
                w: *const $w,
            ) {
                // SAFETY: the caller's promise.
                unsafe { self.step_of(acc, x, offset, w, LANES * $group) }
            }
        }
    };
}

mod amx;
mod avx2;
mod avx512;

/// How an image holds a code: raw bytes, or words without the zero point.
mod image {
    #[inline(always)]
    pub(super) fn u8(x: u8, _zero: u8) -> u8 {
        x
    }
    #[inline(always)]
    pub(super) fn i16(x: u8, zero: u8) -> i16 {
        i16::from(x) - i16::from(zero)
    }
}

//! How fast an instruction set multiplies when nothing else is in the way: operands in registers,
//! enough independent sums to hide latency. Benches print kernels as fractions of this.

use super::f32::{Float, dispatch_f32};
use super::int8::{Int8, Product};
use super::{Isa, dispatch};
use crate::Level;

/// The inner steps there are to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// `u8·i8` products, as the direct kernels add them.
    Bytes,
    /// `i16·i16` products, as Winograd adds them.
    Words,
    /// `f32` products, as the tile of a matrix product adds them.
    Floats,
}

/// Runs `steps` steps from registers and returns how many multiply-accumulates that was.
pub fn run(level: Level, mix: Mix, steps: usize) -> u64 {
    match mix {
        Mix::Bytes => dispatch!(level, isa => isa.bytes().limit(steps)),
        Mix::Words => dispatch!(level, isa => isa.words().limit(steps)),
        Mix::Floats => dispatch_f32!(level, isa => floats(isa, steps)),
    }
}

/// Most independent sums of any tile.
const SUMS: usize = 24;

/// `steps` steps of as many sums as the tile of [`Float::ROWS`] rows and two vectors has.
#[inline(always)]
fn floats<I: Float>(isa: I, steps: usize) -> u64 {
    let count = (2 * I::ROWS).min(SUMS);
    let x = isa.splat(std::hint::black_box(0.5));
    let mut acc = [x; SUMS];
    for _ in 0..steps {
        for acc in &mut acc[..count] {
            *acc = isa.mul_add(x, x, *acc);
        }
    }
    let mut out = [0.0; 64];
    for acc in acc {
        isa.store(&mut out, acc);
        std::hint::black_box(&mut out);
    }
    (steps * count * I::LANES) as u64
}

/// [`Product::limit`] of a product whose sums are vectors.
#[inline(always)]
pub(crate) fn in_registers<P: Product>(product: P, steps: usize) -> u64 {
    const { assert!(P::ROWS * P::VECTORS <= SUMS) };
    let isa = product.isa();
    isa.enter(
        #[inline(always)]
        || {
            let start = std::hint::black_box([3; 64]);
            let mut acc = [isa.load(&start); SUMS];
            for _ in 0..steps {
                for acc in &mut acc[..P::ROWS * P::VECTORS] {
                    *acc = product.spin(*acc);
                }
            }
            let mut out = [0; 64];
            for acc in acc {
                isa.store(acc, &mut out);
                std::hint::black_box(&mut out);
            }
        },
    );
    (steps * P::ROWS * P::VECTORS * <P::Isa as Int8>::LANES * P::GROUP) as u64
}

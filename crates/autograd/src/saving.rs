//! What the way back keeps of the way there.

use half::bf16;
use ottava_tensor::Tensor;

/// How a tape keeps memory small. Neither changes the forward pass.
///
/// ```
/// use ottava_autograd::{Mode, Saving, Tape};
///
/// let tape = Tape::new(Mode::TRAIN).with_saving(Saving { recompute: true, ..Saving::default() });
/// assert!(!tape.saving().half);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saving {
    /// A [`Graph`](crate::Graph) keeps the values between its parts alone, and runs a part again on the
    /// way back: a third more work, and memory for one part at a time. Gradients are the same, bit for
    /// bit, unless a parameter is read three times or more: its gradient is summed part by part then.
    ///
    /// # Source
    /// Chen et al. 2016, arXiv:1604.06174.
    pub recompute: bool,
    /// Convolutions and BatchNorms keep what they read in `bf16`, which is half the memory, and
    /// gradients of weights and statistics rounded to eight bits.
    pub half: bool,
}

/// A tensor that waits for the way back.
pub(crate) enum Saved {
    Full(Tensor<f32>),
    Half(Tensor<bf16>),
}

impl Saved {
    pub(crate) fn full(&self) -> Tensor<f32> {
        match self {
            Self::Full(x) => x.clone(),
            Self::Half(x) => x.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)),
        }
    }
}

/// Each value rounded to `bf16`, ties to even; NaN stays NaN.
pub(crate) fn halved(x: &Tensor<f32>) -> Tensor<bf16> {
    x.map(|x| {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let bits = (0..1u32 << 20).map(|i| i.wrapping_mul(0x9E37_79B1));
        let edges = [0, 1 << 31, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0xFFFF_FFFF, 0x3F80_8000];
        let x: Vec<f32> = bits.chain(edges).map(f32::from_bits).collect();
        let halves = halved(&Tensor::new(&[x.len()], &x).unwrap());
        for (half, x) in halves.iter().zip(x) {
            let expected = bf16::from_f32(x);
            assert!(half.to_bits() == expected.to_bits() || x.is_nan() && half.is_nan(), "{x:e}");
        }
    }
}

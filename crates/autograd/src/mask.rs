use ottava_tensor::{Tensor, parallel};

/// Elements of a word of bits.
pub(crate) const WORD: usize = 64;

/// One bit an element, in memory order: where a straight-through estimator lets the gradient pass.
pub(crate) struct Mask {
    words: Vec<u64>,
    strides: Vec<usize>,
}

impl Mask {
    /// Words that a pass over the elements has made, for a tensor with these strides.
    pub(crate) fn new(words: Vec<u64>, strides: &[usize]) -> Self {
        Self { words, strides: strides.to_vec() }
    }

    /// The bits of `passes(x)` for the elements of a dense tensor.
    pub(crate) fn of(x: &Tensor<f32>, passes: impl Fn(f32) -> bool + Sync + Send) -> Self {
        let dense = if x.as_dense().is_some() { x.clone() } else { x.contiguous() };
        let data = dense.as_dense().expect("dense");
        let mut words = vec![0u64; data.len().div_ceil(WORD)];
        const WORDS: usize = parallel::CHUNK / WORD;
        parallel::for_each_chunk(&mut words, WORDS, |i, words| {
            for (word, x) in words.iter_mut().zip(data[i * parallel::CHUNK..].chunks(WORD)) {
                let mut bytes = [0; WORD];
                for (byte, &x) in bytes.iter_mut().zip(x) {
                    *byte = u8::from(passes(x));
                }
                *word = pack(&bytes);
            }
        });
        Self { words, strides: dense.strides().to_vec() }
    }

    /// `grad` where the bit is set, zero elsewhere.
    pub(crate) fn apply(&self, mut grad: Tensor<f32>) -> Tensor<f32> {
        if grad.strides() != self.strides && grad.len() > 1 {
            // Bring the gradient into the memory order of the mask.
            let mut ordered = match grad.rank() {
                4 => grad.channels_last(),
                _ => grad.contiguous(),
            };
            if ordered.strides() != self.strides {
                ordered = grad.contiguous();
            }
            grad = ordered;
        }
        let words = &self.words;
        parallel::for_each_chunk(grad.data_mut(), parallel::CHUNK, |i, chunk| {
            for (grad, word) in chunk.chunks_mut(WORD).zip(&words[i * (parallel::CHUNK / WORD)..]) {
                for (grad, byte) in grad.chunks_mut(8).zip(word.to_le_bytes()) {
                    let lanes = &LANES[usize::from(byte)];
                    // A select, not a product: a gradient of infinity times zero would be NaN.
                    for (g, lane) in grad.iter_mut().zip(lanes) {
                        *g = f32::from_bits(g.to_bits() & lane);
                    }
                }
            }
        });
        grad
    }
}

/// A bit for each of 64 bytes that are 0 or 1.
pub(crate) fn pack(bytes: &[u8; WORD]) -> u64 {
    // Bit 0 of byte k moves to bit 56 + k of the product; no two terms meet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (eights, _) = bytes.as_chunks::<8>();
    eights
        .iter()
        .rev()
        .fold(0, |word, &eight| word << 8 | u64::from_le_bytes(eight).wrapping_mul(GATHER) >> 56)
}

/// All ones for each bit that is set, for every byte.
static LANES: [[u32; 8]; 256] = {
    let mut lanes = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            lanes[byte][bit] = if byte >> bit & 1 == 1 { u32::MAX } else { 0 };
            bit += 1;
        }
        byte += 1;
    }
    lanes
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_passes_where_its_bit_is_set() {
        for len in [1, 7, 64, 65, 1000, parallel::CHUNK + 3] {
            let value = |i: usize| ((i * 7919) % 1009) as f32 - 500.0;
            let x = Tensor::new(&[len], (0..len).map(value).collect::<Vec<_>>()).unwrap();
            let grad = Tensor::full(&[len], f32::INFINITY);
            let masked = Mask::of(&x, |x| x > 0.0).apply(grad);
            let expected = x.map(|x| if x > 0.0 { f32::INFINITY } else { 0.0 });
            assert_eq!(masked, expected);
        }
    }
}

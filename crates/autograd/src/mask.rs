use ottava_tensor::{Tensor, parallel};

/// One bit an element, in memory order: where a straight-through estimator lets the gradient pass.
pub(crate) struct Mask {
    words: Vec<u64>,
    strides: Vec<usize>,
}

impl Mask {
    /// The bits of `passes(x)` for the elements of a dense tensor.
    pub(crate) fn of(x: &Tensor<f32>, passes: impl Fn(f32) -> bool + Sync + Send) -> Self {
        let dense = if x.as_dense().is_some() { x.clone() } else { x.contiguous() };
        let data = dense.as_dense().expect("dense");
        let mut words = vec![0u64; data.len().div_ceil(64)];
        const WORDS: usize = parallel::CHUNK / 64;
        parallel::for_each_chunk(&mut words, WORDS, |i, words| {
            for (word, x) in words.iter_mut().zip(data[i * parallel::CHUNK..].chunks(64)) {
                *word = x.iter().rev().fold(0, |bits, &x| bits << 1 | u64::from(passes(x)));
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
            for (grad, word) in chunk.chunks_mut(64).zip(&words[i * (parallel::CHUNK / 64)..]) {
                for (bit, g) in grad.iter_mut().enumerate() {
                    // A select, not a product: a gradient of infinity times zero would be NaN.
                    *g = if word >> bit & 1 == 1 { *g } else { 0.0 };
                }
            }
        });
        grad
    }
}

use ottava_tensor::bits::{self, WORD};
use ottava_tensor::{Level, Tensor, parallel};

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
        let level = Level::current();
        const WORDS: usize = parallel::CHUNK / WORD;
        parallel::for_each_chunk(&mut words, WORDS, |i, words| {
            let blocks = words.iter_mut().zip(data[i * parallel::CHUNK..].chunks(WORD));
            level.vectorize(
                #[inline(always)]
                || {
                    for (word, x) in blocks {
                        *word = bits::word(x, &passes);
                    }
                },
            );
        });
        Self { words, strides: dense.strides().to_vec() }
    }

    /// The bits of a tensor that lies in memory as this one.
    pub(crate) fn bits(&self, like: &Tensor<f32>) -> Option<&[u64]> {
        (self.strides == like.strides()).then_some(&self.words)
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
        let (words, level) = (&self.words, Level::current());
        parallel::for_each_chunk(grad.data_mut(), parallel::CHUNK, |i, chunk| {
            bits::keep(level, &words[i * (parallel::CHUNK / WORD)..], chunk);
        });
        grad
    }
}

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

use ottava_tensor::bits::{self, WORD};
use ottava_tensor::norm::{channel_sums, keep_and_sum};
use ottava_tensor::{Level, Tensor, parallel};

/// One bit an element, channels-last or row-major: where a straight-through estimator lets the gradient
/// pass.
pub(crate) struct Mask {
    words: Vec<u64>,
    channels_last: bool,
}

impl Mask {
    /// Words that a pass over the elements of a channels-last tensor has made.
    pub(crate) fn channels_last(words: Vec<u64>) -> Self {
        Self { words, channels_last: true }
    }

    /// The bits of `passes(x)`, channels-last if `x` is.
    pub(crate) fn of(x: &Tensor<f32>, passes: impl Fn(f32) -> bool + Sync + Send) -> Self {
        let channels_last = x.is_channels_last();
        let dense = if channels_last { x.clone() } else { x.contiguous() };
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
        Self { words, channels_last }
    }

    /// The bits of a tensor that lies in memory as this one.
    pub(crate) fn bits(&self, like: &Tensor<f32>) -> Option<&[u64]> {
        let same = if self.channels_last { like.is_channels_last() } else { like.is_contiguous() };
        same.then_some(&self.words)
    }

    /// `grad` where the bit is set, zero elsewhere.
    pub(crate) fn apply(&self, grad: Tensor<f32>) -> Tensor<f32> {
        let grad = if self.channels_last { grad.channels_last() } else { grad.contiguous() };
        bits::keep_all(&self.words, grad, parallel::CHUNK, |_| ()).0
    }

    /// [`apply`](Self::apply), and the sum of each channel of what is left.
    pub(crate) fn apply_and_sum(&self, grad: Tensor<f32>) -> (Tensor<f32>, Vec<f32>) {
        if self.channels_last {
            return keep_and_sum(grad, &self.words);
        }
        let grad = self.apply(grad);
        let sums = channel_sums(&grad);
        (grad, sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the value and the gradient lie in memory: a transposed tensor is dense as well.
    #[test]
    fn every_order_masks_its_own_elements() {
        for shape in [&[2, 3][..], &[2, 3, 5], &[2, 3, 1, 5], &[2, 3, 4, 5], &[1, 2, 3, 4, 5]] {
            let len: usize = shape.iter().product();
            let value = |i: usize| ((i * 7919) % 1009) as f32 - 500.0;
            let x = Tensor::new(shape, (0..len).map(value).collect::<Vec<_>>()).unwrap();
            let one = Tensor::full(shape, 1.0);
            let last = shape.len() - 1;
            let orders = |x: &Tensor<f32>| {
                let turned = x.transpose(0, last).unwrap().contiguous();
                [x.clone(), x.channels_last(), turned.transpose(0, last).unwrap()]
            };
            let expected = x.map(|x| if x > 0.0 { 1.0 } else { 0.0 });
            for x in orders(&x) {
                let mask = Mask::of(&x, |x| x > 0.0);
                for grad in orders(&one) {
                    let sums = channel_sums(&expected);
                    let shared = grad.clone();
                    assert_eq!(mask.apply(shared), expected, "{shape:?}, {:?}", x.strides());
                    assert_eq!(mask.apply_and_sum(grad.clone()), (expected.clone(), sums));
                    assert_eq!(grad, one, "somebody else's memory");
                    assert_eq!(mask.apply(grad), expected, "{shape:?}, {:?}", x.strides());
                }
            }
        }
    }

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

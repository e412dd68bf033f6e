use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry};
use ottava_tensor::{Level, Tensor, parallel};

use crate::instr::contiguous;
use crate::{Error, Result, Scheme, WeightSpec, choose_qparams, quantize, quantize_layer};

/// A linear layer with integer weights whose activations are quantized at run time, to the range of
/// each call's input: no calibration, `f32` in and out.
///
/// `y = (Σ (qx − zx)·qw) · (sx·sw) + bias`, `sx` and `zx` from the smallest and largest element of `x`
/// over all its rows ([`choose_qparams`], affine, 0..=255).
///
/// # Source
/// PyTorch `torch.ao.nn.quantized.dynamic.Linear`, whose weights use −128..=127 and one scale; here
/// they use −127..=127 and the scales of a [`WeightSpec`]. ONNX `DynamicQuantizeLinear` +
/// `MatMulInteger`.
///
/// ```
/// use ottava_quant::{DynamicLinear, WeightSpec};
/// use ottava_tensor::{Level, Tensor};
///
/// let weight = Tensor::new(&[2, 3], [0.5, -1.0, 0.25, 1.0, 0.0, -0.5])?;
/// let linear = DynamicLinear::new(Level::current(), &weight, &[0.1, 0.2], WeightSpec::default())?;
/// let y = linear.run(&Tensor::new(&[1, 3], [1.0, 2.0, -1.0])?)?;
/// assert!((y.at(&[0, 0]) - -1.65).abs() < 0.02 && (y.at(&[0, 1]) - 1.7).abs() < 0.02);
/// # Ok::<(), ottava_quant::Error>(())
/// ```
pub struct DynamicLinear {
    packed: Int8Conv,
    features: [usize; 2],
    scales: Vec<f32>,
    bias: Vec<f32>,
}

impl DynamicLinear {
    /// Quantizes a weight `[o, k]`; `bias` has `o` elements, or none for no bias.
    ///
    /// # Errors
    /// [`Error::BadRange`] if a weight is NaN or infinite, [`Error::ChannelCount`] if `bias` has
    /// another length, [`Error::Tensor`] if the weight is no matrix or `k` is beyond what the kernels
    /// sum exactly.
    pub fn new(level: Level, weight: &Tensor<f32>, bias: &[f32], spec: WeightSpec) -> Result<Self> {
        let [o, _] = weight.dims("dynamic linear")?;
        let bias = if bias.is_empty() { vec![0.0; o] } else { bias.to_vec() };
        if bias.len() != o {
            let shape = weight.shape().to_vec();
            return Err(Error::ChannelCount { axis: 0, shape, params: bias.len() });
        }
        // The bias stays in `f32`: the layer's integers are its weights alone.
        let layer = quantize_layer(weight, &vec![0.0; o], 1.0, spec)?;
        Self::from_codes(level, &layer.codes, layer.scales, bias)
    }

    /// A layer of weight codes `[o, k]` and as many scales and biases as it has outputs.
    pub(crate) fn from_codes(
        level: Level,
        codes: &Tensor<i8>,
        scales: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self> {
        let [o, k] = codes.dims("dynamic linear")?;
        let (codes, attrs) = (contiguous(codes), ConvAttrs::default());
        let packed = Int8Conv::new(level, &codes, [o, k, 1, 1], attrs, Algorithm::Auto)?;
        Ok(Self { packed, features: [o, k], scales, bias })
    }

    /// The features it makes.
    pub(crate) fn outputs(&self) -> usize {
        self.features[0]
    }

    /// `[…, k]` to `[…, o]`.
    ///
    /// # Errors
    /// [`Error::BadRange`] if an element is NaN or infinite, [`Error::Tensor`] if the last axis is not
    /// of size `k`.
    pub fn run(&self, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        let [o, k] = self.features;
        let mut shape = x.shape().to_vec();
        if shape.last() != Some(&k) {
            return Err(Error::Tensor(ottava_tensor::Error::ShapeMismatch {
                op: "dynamic linear",
                left: shape,
                right: self.features.to_vec(),
            }));
        }
        shape.pop();
        let rows: usize = shape.iter().product();
        shape.push(o);
        let Some((low, high)) = x.min_max().filter(|_| rows * o > 0) else {
            return Ok(Tensor::zeros(&shape));
        };
        let grid = choose_qparams(low, high, Scheme::Affine, 0..=255)?;
        let codes = quantize(&x.contiguous(), grid);
        let codes = codes.as_slice().expect("mapped from a contiguous tensor");
        let geometry = ConvGeometry::new([rows, k, 1, 1], [o, k, 1, 1], ConvAttrs::default())?;
        let mut sums = vec![0; rows * o];
        let mut scratch = vec![0; self.packed.scratch_len(&geometry)];
        let output = Output::Accumulate(&mut sums);
        self.packed.run(&geometry, codes, grid.zero_point() as u8, output, &mut scratch);
        let mut y = Tensor::zeros(&shape);
        parallel::for_each_chunk(y.data_mut(), o, |row, y| {
            let channels = self.scales.iter().zip(&self.bias);
            for ((y, &sum), (scale, bias)) in y.iter_mut().zip(&sums[row * o..]).zip(channels) {
                *y = sum as f32 * (grid.scale() * scale) + bias;
            }
        });
        Ok(y)
    }

    /// Bytes the packed weights take.
    pub fn packed_bytes(&self) -> usize {
        self.packed.packed_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The codes of `x` and `w` are each off by half a step at most.
        #[test]
        fn the_error_is_that_of_the_two_roundings(
            (rows, o, k) in (0usize..5, 1usize..20, 1usize..40), seed: u64, per_channel: bool,
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 * 3.0 - 1.0
            };
            let x: Vec<f32> = (0..rows * k).map(|_| next()).collect();
            let w: Vec<f32> = (0..o * k).map(|_| next()).collect();
            let b: Vec<f32> = (0..o).map(|_| next()).collect();
            let spec = WeightSpec { per_channel, ..Default::default() };
            let weight = Tensor::new(&[o, k], &w).unwrap();
            for level in Level::available() {
                let linear = DynamicLinear::new(level, &weight, &b, spec).unwrap();
                let y = linear.run(&Tensor::new(&[rows, k], &x).unwrap()).unwrap();
                prop_assert_eq!(y.shape(), [rows, o]);
                for (r, c) in (0..rows).flat_map(|r| (0..o).map(move |c| (r, c))) {
                    let exact: f32 = (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum();
                    // |x| ≤ 2 in steps of 3/255 (the range holds zero), |w| ≤ 2 in steps of 2/127.
                    let bound = k as f32 * (2.0 * 1.5 / 255.0 + 2.0 * 1.0 / 127.0 + 0.001);
                    prop_assert!((y.at(&[r, c]) - exact - b[c]).abs() <= bound);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let weight = Tensor::new(&[2, 3], [0.5f32; 6]).unwrap();
        let new = |weight: &Tensor<f32>, bias: &[f32]| {
            DynamicLinear::new(Level::current(), weight, bias, WeightSpec::default())
        };
        assert!(matches!(new(&weight, &[1.0]), Err(Error::ChannelCount { params: 1, .. })));
        let vector = weight.reshape(&[6]).unwrap();
        assert!(new(&vector, &[]).is_err());
        let linear = new(&weight, &[]).unwrap();
        assert!(linear.run(&Tensor::zeros(&[3, 2])).is_err());
        assert!(linear.run(&Tensor::full(&[1, 3], f32::NAN)).is_err());
        assert_eq!(linear.run(&Tensor::zeros(&[2, 0, 3])).unwrap().shape(), [2, 0, 2]);
        assert_eq!(linear.run(&Tensor::full(&[3], 2.0)).unwrap().shape(), [2]);
    }
}

use std::ops::Range;

use ottava_autograd::ops::LayerKind;
use ottava_autograd::{Error, Result};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvGeometry;

/// A layer's groups: each a product of a weight `[outputs, inputs]` with windows of the input.
pub(super) struct Groups {
    pub count: usize,
    pub outputs: usize,
    pub inputs: usize,
}

impl Groups {
    /// Those of a weight `[o, c / groups, kh, kw]` or `[o, k]`.
    pub fn of(kind: LayerKind, weight: &[usize]) -> Self {
        let count = match kind {
            LayerKind::Conv(attrs) => attrs.groups.max(1),
            LayerKind::Linear => 1,
        };
        Self { count, outputs: weight[0] / count, inputs: weight[1..].iter().product() }
    }

    /// The output channels of a group.
    pub fn channels(&self, group: usize) -> Range<usize> {
        group * self.outputs..(group + 1) * self.outputs
    }

    /// Its part of a row-major weight.
    pub fn weights(&self, group: usize) -> Range<usize> {
        let Range { start, end } = self.channels(group);
        start * self.inputs..end * self.inputs
    }
}

/// Up to `rows` windows of `x` for each group, `[rows, inputs]`, in the order of the weight's elements. Which
/// windows depends on the sizes alone, so that two inputs of one shape show the same.
pub(super) fn windows(
    kind: LayerKind,
    weight: &[usize],
    x: &Tensor<f32>,
    rows: usize,
) -> Result<Vec<Tensor<f32>>> {
    let groups = Groups::of(kind, weight);
    let values = x.to_vec();
    let mut found = vec![Vec::new(); groups.count];
    match kind {
        LayerKind::Linear => {
            let total = x.shape()[0];
            for row in spread(total, rows) {
                found[0].extend_from_slice(&values[row * groups.inputs..][..groups.inputs]);
            }
        }
        LayerKind::Conv(attrs) => {
            let [n, channels, height, width] = x.dims("windows")?;
            let geometry = ConvGeometry::new([n, channels, height, width], dims(weight)?, attrs)?;
            let [_, _, out_height, out_width] = geometry.output_shape();
            let [_, per_group, kernel_height, kernel_width] = dims(weight)?;
            let [top, left] = [attrs.padding[0], attrs.padding[1]];
            for place in spread(n * out_height * out_width, rows) {
                let (image, y, x) = (
                    place / (out_height * out_width),
                    place / out_width % out_height,
                    place % out_width,
                );
                for channel in 0..channels {
                    let plane = &values[(image * channels + channel) * height * width..];
                    for ky in 0..kernel_height {
                        for kx in 0..kernel_width {
                            let y = y * attrs.stride[0] + ky * attrs.dilation[0];
                            let x = x * attrs.stride[1] + kx * attrs.dilation[1];
                            let inside =
                                y >= top && x >= left && y - top < height && x - left < width;
                            let value =
                                if inside { plane[(y - top) * width + x - left] } else { 0.0 };
                            found[channel / per_group].push(value);
                        }
                    }
                }
            }
        }
    }
    let shaped = |values: Vec<f32>| {
        Ok(Tensor::new(&[values.len() / groups.inputs.max(1), groups.inputs], values)?)
    };
    found.into_iter().map(shaped).collect()
}

fn dims(weight: &[usize]) -> Result<[usize; 4]> {
    weight.try_into().map_err(|_| Error::Op {
        op: "windows",
        reason: format!("the weight's shape is {weight:?}, but a convolution's has four sizes"),
    })
}

/// `rows` of `total` places without a pattern that could meet the sizes of images; all if there are fewer.
fn spread(total: usize, rows: usize) -> Vec<usize> {
    if total <= rows {
        return (0..total).collect();
    }
    // One of each run of places, which one by a multiplicative hash.
    let place = |row: usize| {
        let (start, end) = (row * total / rows, (row + 1) * total / rows);
        start + (row.wrapping_mul(0x9E37_79B9) >> 7) % (end - start)
    };
    (0..rows).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ottava_autograd::ops::Conv2d;
    use ottava_autograd::{Mode, Op, Tape};
    use ottava_tensor::conv::ConvAttrs;
    use ottava_tensor::gemm::matmul;

    /// Windows times weights are the convolution.
    #[test]
    fn windows_are_what_a_convolution_reads() {
        let attrs = ConvAttrs { groups: 2, dilation: [1, 2], ..ConvAttrs::new(2, 1) };
        let values = |n: usize| (0..n).map(|i| ((i * 37) % 23) as f32 - 11.0).collect::<Vec<_>>();
        let x = Tensor::new(&[2, 4, 7, 9], values(2 * 4 * 7 * 9)).unwrap();
        let weight = Tensor::new(&[6, 2, 3, 3], values(6 * 2 * 9)).unwrap();
        let kind = LayerKind::Conv(attrs);
        let tape = Tape::no_grad(Mode::EVAL);
        let op: Op = Conv2d { attrs }.into();
        let y = tape.apply(op, &[tape.input(x.clone()), tape.input(weight.clone())]).unwrap();
        let y = y.tensor().permute(&[0, 2, 3, 1]).unwrap().to_vec();
        let groups = Groups::of(kind, weight.shape());
        let found = windows(kind, weight.shape(), &x, usize::MAX).unwrap();
        assert_eq!(found.len(), 2);
        for (group, windows) in found.iter().enumerate() {
            let part = &weight.to_vec()[groups.weights(group)];
            let part = Tensor::new(&[groups.outputs, groups.inputs], part).unwrap();
            let ours = matmul(windows, &part.transpose(0, 1).unwrap()).unwrap();
            for (row, ours) in ours.to_vec().chunks(groups.outputs).enumerate() {
                assert_eq!(ours, &y[row * 6..][groups.channels(group)]);
            }
        }
        let few = windows(kind, weight.shape(), &x, 5).unwrap();
        assert_eq!(few[1].shape(), [5, 18]);
    }
}

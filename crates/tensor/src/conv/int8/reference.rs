//! The integer convolution as its definition: plain loops, and the law for every kernel.

use crate::conv::ConvGeometry;

/// `acc[n, oy, ox, o] = Σ (x[n, iy, ix, c] − zero_point) · w[o, c, ky, kx]`, the sum over the group's
/// channels and the taps inside the image: padding holds the zero point and adds nothing.
///
/// # Shapes
/// `input`: NHWC codes; `weights`: OIHW; result: NHWC sums.
pub fn conv(
    geometry: &ConvGeometry,
    input: &[u8],
    zero_point: u8,
    weights: &[i8],
    out: &mut [i32],
) {
    let ConvGeometry { in_channels, in_size: [height, width], out_channels, .. } = *geometry;
    let [_, group_channels, kernel_h, kernel_w] = geometry.weight_shape();
    let [out_h, out_w] = geometry.out_size;
    let group_outputs = out_channels / geometry.attrs.groups;
    for (i, out) in out.iter_mut().enumerate() {
        let o = i % out_channels;
        let ox = i / out_channels % out_w;
        let oy = i / out_channels / out_w % out_h;
        let n = i / out_channels / out_w / out_h;
        let first = o / group_outputs * group_channels;
        let mut acc = 0i32;
        for ky in 0..kernel_h {
            for kx in 0..kernel_w {
                let (Some(y), Some(x)) =
                    (geometry.tap(0, oy, ky, height), geometry.tap(1, ox, kx, width))
                else {
                    continue;
                };
                let pixel = ((n * height + y) * width + x) * in_channels;
                for c in 0..group_channels {
                    let x = i32::from(input[pixel + first + c]) - i32::from(zero_point);
                    let w = weights[((o * group_channels + c) * kernel_h + ky) * kernel_w + kx];
                    acc = acc.wrapping_add(x * i32::from(w));
                }
            }
        }
        *out = acc;
    }
}

impl ConvGeometry {
    /// The input coordinate along `axis` that tap `k` of window `o` sees; `None` in padding.
    fn tap(&self, axis: usize, o: usize, k: usize, size: usize) -> Option<usize> {
        let ahead = o * self.attrs.stride[axis] + k * self.attrs.dilation[axis];
        ahead.checked_sub(self.attrs.padding[axis]).filter(|&i| i < size)
    }
}

use std::ops::Range;

use crate::{Error, Result};

/// What a convolution is told besides its tensors (PyTorch `Conv2d`, ONNX `Conv`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvAttrs {
    /// Rows and columns between neighbouring windows.
    pub stride: [usize; 2],
    /// Zeros (for integers: zero points) added at the top, left, bottom and right.
    pub padding: [usize; 4],
    /// Rows and columns between neighbouring taps of a window.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Default for ConvAttrs {
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0; 4], dilation: [1, 1], groups: 1 }
    }
}

impl ConvAttrs {
    /// Equal stride in both directions, equal padding on all sides.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 4], ..Self::default() }
    }

    /// Whether each channel, and there are several, has one filter of its own, if a weight has shape
    /// `[o, c / groups, kh, kw]`.
    pub fn is_depthwise(&self, weight: [usize; 4]) -> bool {
        self.groups > 1 && [self.groups, 1] == weight[..2]
    }
}

/// A convolution whose shapes fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the output.
    pub out_size: [usize; 2],
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Stride, padding, dilation, groups.
    pub attrs: ConvAttrs,
}

impl ConvGeometry {
    /// Checks an input of shape `[n, c, h, w]` against a weight of shape `[o, c / groups, kh, kw]`.
    ///
    /// # Errors
    /// [`Error::Geometry`], with the numbers that do not fit.
    pub fn new(input: [usize; 4], weight: [usize; 4], attrs: ConvAttrs) -> Result<Self> {
        let [batch, in_channels, height, width] = input;
        let [out_channels, group_channels, kernel_h, kernel_w] = weight;
        let refuse =
            |reason: String| Err(Error::Geometry { reason: format!("convolution: {reason}") });
        let ConvAttrs { stride, padding: [top, left, bottom, right], dilation, groups } = attrs;
        if groups == 0 || in_channels % groups != 0 || out_channels % groups != 0 {
            return refuse(format!(
                "{in_channels} input and {out_channels} output channels do not divide into {groups} groups"
            ));
        }
        if in_channels == 0 || out_channels == 0 {
            return refuse(format!("{in_channels} input and {out_channels} output channels"));
        }
        if in_channels / groups != group_channels {
            return refuse(format!(
                "the input has {in_channels} channels in {groups} groups, but the weight of shape {weight:?} expects {group_channels} a group"
            ));
        }
        let rows = windows(height, [top, bottom], kernel_h, stride[0], dilation[0]);
        let columns = windows(width, [left, right], kernel_w, stride[1], dilation[1]);
        let (Some(rows), Some(columns)) = (rows, columns) else {
            return refuse(format!(
                "a {kernel_h}×{kernel_w} window with stride {stride:?}, dilation {dilation:?} and padding {:?} does not fit an input of {height}×{width}",
                attrs.padding
            ));
        };
        // Kernels count elements of a bordered image, up to a stride or a dilation further: no such sum may wrap.
        let reach = |size: usize, before: usize, after: usize, axis: usize| {
            (size + before + after).max(stride[axis]).max(dilation[axis])
        };
        let bordered = [reach(height, top, bottom, 0), reach(width, left, right, 1)];
        if !countable([batch, in_channels], bordered)
            || !countable([batch, out_channels], [rows, columns])
            || !countable([out_channels, group_channels], [kernel_h, kernel_w])
        {
            return refuse(format!(
                "an input of shape {input:?} with padding {:?}, stride {stride:?} and dilation {dilation:?}, or its output, is larger than can be counted",
                attrs.padding
            ));
        }
        Ok(Self {
            batch,
            in_channels,
            in_size: [height, width],
            out_channels,
            out_size: [rows, columns],
            kernel: [kernel_h, kernel_w],
            attrs,
        })
    }

    /// Whether [`new`](Self::new) would make the same of these shapes: fields may be anything.
    pub(crate) fn is_sound(&self) -> bool {
        self.attrs.groups > 0
            && Self::new(self.input_shape(), self.weight_shape(), self.attrs)
                .is_ok_and(|geometry| geometry == *self)
    }

    /// `[n, c, h, w]` of the input.
    pub fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.in_channels, self.in_size[0], self.in_size[1]]
    }

    /// `[o, c / groups, kh, kw]` of the weight.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.attrs.groups, self.kernel[0], self.kernel[1]]
    }

    /// `[n, o, oh, ow]` of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.out_channels, self.out_size[0], self.out_size[1]]
    }

    /// Multiply-accumulates of a direct convolution, padding included; `u64::MAX` if there are more.
    pub fn macs(&self) -> u64 {
        let [_, channels, kh, kw] = self.weight_shape();
        let sizes = self.output_shape().into_iter().chain([channels, kh, kw]);
        sizes.fold(1, |macs: u64, size| macs.saturating_mul(size as u64))
    }
}

/// A pooling whose shapes fit together (PyTorch `MaxPool2d`, `AvgPool2d` with floor division).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolGeometry {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Height and width of the output.
    pub out_size: [usize; 2],
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Rows and columns between neighbouring windows.
    pub stride: [usize; 2],
    /// Rows and columns added at the top, left, bottom and right.
    pub padding: [usize; 4],
}

impl PoolGeometry {
    /// Checks an input of shape `[n, c, h, w]` against a window.
    ///
    /// # Errors
    /// [`Error::Geometry`] if the window does not fit, or if padding exceeds half of it, so that a window
    /// could lie in padding alone.
    pub fn new(
        input: [usize; 4],
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 4],
    ) -> Result<Self> {
        let [batch, channels, height, width] = input;
        let [top, left, bottom, right] = padding;
        let thin = |pad: usize, kernel: usize| pad <= kernel / 2;
        let rows = windows(height, [top, bottom], kernel[0], stride[0], 1)
            .filter(|_| thin(top, kernel[0]) && thin(bottom, kernel[0]));
        let columns = windows(width, [left, right], kernel[1], stride[1], 1)
            .filter(|_| thin(left, kernel[1]) && thin(right, kernel[1]));
        match (rows, columns) {
            (Some(_), Some(_)) if !countable([batch, channels], [height, width]) => {
                let reason =
                    format!("pooling: an input of shape {input:?} is larger than can be counted");
                Err(Error::Geometry { reason })
            }
            (Some(rows), Some(columns)) => Ok(Self {
                batch,
                channels,
                in_size: [height, width],
                out_size: [rows, columns],
                kernel,
                stride,
                padding,
            }),
            _ => Err(Error::Geometry {
                reason: format!(
                    "pooling: a {}×{} window with stride {stride:?} and padding {padding:?} does not fit an input of {height}×{width} (padding may be at most half the window)",
                    kernel[0], kernel[1]
                ),
            }),
        }
    }

    /// The input rows (axis 0) or columns (axis 1) under window `i`, without padding. Never empty, since
    /// padding is at most half the window.
    #[inline(always)]
    pub(crate) fn window(&self, axis: usize, i: usize) -> Range<usize> {
        let (start, padding) = (i * self.stride[axis], self.padding[axis]);
        let end = (start + self.kernel[axis]).saturating_sub(padding);
        start.saturating_sub(padding)..end.min(self.in_size[axis])
    }

    /// `[n, c, h, w]` of the input.
    pub fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.channels, self.in_size[0], self.in_size[1]]
    }

    /// `[n, c, oh, ow]` of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.channels, self.out_size[0], self.out_size[1]]
    }
}

/// Whether so many elements can be counted, and a few times as many bytes.
fn countable(channels: [usize; 2], size: [usize; 2]) -> bool {
    let count = channels.iter().chain(&size).try_fold(1usize, |n, &x| n.checked_mul(x.max(1)));
    count.is_some_and(|count| count <= isize::MAX as usize / 16)
}

/// How many windows fit along one axis; `None` if there is none, or the numbers overflow.
fn windows(
    size: usize,
    padding: [usize; 2],
    kernel: usize,
    stride: usize,
    dilation: usize,
) -> Option<usize> {
    if kernel == 0 || stride == 0 || dilation == 0 || size == 0 {
        return None;
    }
    let padded = size.checked_add(padding[0])?.checked_add(padding[1])?;
    let reach = (kernel - 1).checked_mul(dilation)?.checked_add(1)?;
    // A size beyond i32 would not be an image.
    (padded <= i32::MAX as usize).then_some(())?;
    Some(padded.checked_sub(reach)? / stride + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes_match_pytorch() {
        let stem =
            ConvGeometry::new([1, 3, 224, 224], [64, 3, 7, 7], ConvAttrs::new(2, 3)).unwrap();
        assert_eq!(stem.output_shape(), [1, 64, 112, 112]);
        assert_eq!(stem.macs(), 118_013_952);
        let uneven = ConvAttrs { stride: [2, 2], padding: [0, 0, 1, 1], ..ConvAttrs::default() };
        let geometry = ConvGeometry::new([1, 16, 32, 32], [32, 16, 3, 3], uneven).unwrap();
        assert_eq!(geometry.out_size, [16, 16]);
    }

    #[test]
    fn fields_that_do_not_belong_together_are_noticed() {
        let g = ConvGeometry::new(
            [2, 4, 8, 8],
            [6, 2, 3, 3],
            ConvAttrs { groups: 2, ..ConvAttrs::new(1, 1) },
        );
        let g = g.unwrap();
        assert!(g.is_sound() && ConvGeometry { batch: 5, ..g }.is_sound());
        assert!(!ConvGeometry { out_size: [8, 9], ..g }.is_sound());
        assert!(!ConvGeometry { in_channels: 5, ..g }.is_sound());
        assert!(!ConvGeometry { attrs: ConvAttrs { groups: 0, ..g.attrs }, ..g }.is_sound());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused_with_their_numbers() {
        let wrong =
            ConvGeometry::new([1, 4, 8, 8], [8, 3, 3, 3], ConvAttrs::default()).unwrap_err();
        assert!(wrong.to_string().contains("4 channels"), "{wrong}");
        assert!(ConvGeometry::new([1, 3, 2, 2], [8, 3, 3, 3], ConvAttrs::default()).is_err());
        assert!(ConvGeometry::new([1, 3, 8, 8], [8, 3, 3, 3], ConvAttrs::new(0, 0)).is_err());
        let far = ConvAttrs {
            stride: [(1 << 19) - 1, 1 << 30],
            padding: [0, 0, (1 << 20) - 1, (1 << 30) - 1],
            groups: 8192,
            ..ConvAttrs::default()
        };
        let many = ConvGeometry::new([1, 32768, 1, 1], [8192, 4, 2, 1], far).unwrap_err();
        assert!(many.to_string().contains("larger than can be counted"), "{many}");
        let apart = ConvAttrs { stride: [1, usize::MAX], ..ConvAttrs::default() };
        assert!(ConvGeometry::new([1, 4, 1, 1], [1, 4, 1, 1], apart).is_err());
        assert!(PoolGeometry::new([1, 3, 8, 8], [2, 2], [2, 2], [2; 4]).is_err());
        let many = PoolGeometry::new([1 << 33, 1 << 31, 1, 1], [1, 1], [1, 1], [0; 4]).unwrap_err();
        assert!(many.to_string().contains("larger than can be counted"), "{many}");
    }
}

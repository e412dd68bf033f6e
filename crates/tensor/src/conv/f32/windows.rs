use super::super::ConvGeometry;

/// How windows lie over a channels-last image.
///
/// Tap `(u, v)` of window `(y, x)` reads the pixel
/// `(y·stride[0] + first[0] + u·dilation[0], x·stride[1] + first[1] + v·dilation[1])`, which is zero
/// where there is none.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    /// Height, width and channels of an image.
    pub(super) size: [usize; 3],
    /// Windows in a row.
    pub(super) columns: usize,
    /// Rows and columns of taps.
    pub(super) taps: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) first: [isize; 2],
    pub(super) dilation: [usize; 2],
}

impl Windows {
    /// The windows of a convolution over its input.
    pub(super) fn forward(g: &ConvGeometry) -> Self {
        let [top, left, ..] = g.attrs.padding;
        // To a second window; where there is none, it says nothing, and may be beyond the image.
        let stride = |axis: usize| if g.out_size[axis] > 1 { g.attrs.stride[axis] } else { 1 };
        Self {
            size: [g.in_size[0], g.in_size[1], g.in_channels],
            columns: g.out_size[1],
            taps: g.kernel,
            stride: [stride(0), stride(1)],
            first: [-(top as isize), -(left as isize)],
            dilation: g.attrs.dilation,
        }
    }

    /// How many taps of a row read one run of memory, if `channels` channels of each are read:
    /// all if they are neighbours, without gaps.
    pub(super) fn run_taps(&self, channels: usize) -> usize {
        if channels == self.size[2] && self.dilation[1] == 1 { self.taps[1] } else { 1 }
    }

    /// Rows (axis 0) or columns (axis 1) from the first tap of a window to its last.
    pub(super) fn reach(&self, axis: usize) -> usize {
        (self.taps[axis] - 1) * self.dilation[axis] + 1
    }
}

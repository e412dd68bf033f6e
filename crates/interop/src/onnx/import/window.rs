//! The windows of convolutions and pools, as attributes of a node say them.

use ottava_tensor::conv::{ConvAttrs, ConvGeometry, PoolGeometry};

use super::super::attributes::Check;
use super::super::proto::Node;
use super::check_elements;

/// The window of a convolution or pooling.
pub(super) struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 4],
    pub dilation: [usize; 2],
}

impl Window {
    /// `auto_pad` says where missing rows and columns go: so that the output has `⌈size / stride⌉`.
    fn new(node: &Node, kernel: [usize; 2], [_, height, width]: [usize; 3]) -> Check<Self> {
        let stride: [usize; 2] = node.sizes("strides", 1)?;
        let dilation: [usize; 2] = node.sizes("dilations", 1)?;
        if kernel.contains(&0) || stride.contains(&0) || dilation.contains(&0) {
            return Err(format!("kernel {kernel:?}, stride {stride:?}, dilation {dilation:?}"));
        }
        let mut padding: [usize; 4] = node.sizes("pads", 0)?;
        let mode = node.text("auto_pad");
        match mode {
            "" | "NOTSET" => {}
            "VALID" => padding = [0; 4],
            "SAME_UPPER" | "SAME_LOWER" => {
                for (axis, size) in [height, width].into_iter().enumerate() {
                    let window = (kernel[axis] - 1) * dilation[axis] + 1;
                    let outputs = size.div_ceil(stride[axis]);
                    let missing = ((outputs - 1) * stride[axis] + window).saturating_sub(size);
                    let (less, more) = (missing / 2, missing.div_ceil(2));
                    let upper = mode == "SAME_UPPER";
                    padding[axis] = if upper { less } else { more };
                    padding[axis + 2] = if upper { more } else { less };
                }
            }
            other => return Err(format!("auto_pad {other:?}")),
        }
        Ok(Self { kernel, stride, padding, dilation })
    }

    /// The attributes of a convolution with a weight of shape `dims`.
    pub(super) fn conv(
        node: &Node,
        image: [usize; 3],
        dims: [usize; 4],
    ) -> Check<(ConvAttrs, ConvGeometry)> {
        let [_, _, kh, kw] = dims;
        let kernel: [usize; 2] = match node.ints("kernel_shape") {
            Some(_) => node.sizes("kernel_shape", 0)?,
            None => [kh, kw],
        };
        if kernel != [kh, kw] {
            return Err(format!("kernel_shape {kernel:?} with a weight of shape {dims:?}"));
        }
        let Self { stride, padding, dilation, .. } = Self::new(node, kernel, image)?;
        let groups = usize::try_from(node.int("group", 1)).map_err(|_| "a negative group")?;
        let attrs = ConvAttrs { stride, padding, dilation, groups };
        let [c, h, w] = image;
        let geometry =
            ConvGeometry::new([1, c, h, w], dims, attrs).map_err(|error| error.to_string())?;
        // Kernels hold rows of it with their border.
        let [top, left, bottom, right] = padding;
        check_elements(&[c, h + top + bottom, w + left + right])?;
        Ok((attrs, geometry))
    }

    /// The window of a `MaxPool` and the shape of its output.
    pub(super) fn max_pool(node: &Node, image: [usize; 3]) -> Check<(Self, Vec<usize>)> {
        if node.output.get(1).is_some_and(|name| !name.is_empty()) {
            return Err("the places of the maxima are asked for".into());
        }
        Self::pool(node, image)
    }

    /// The window of an `AveragePool`, whether padding counts, and the shape of its output.
    pub(super) fn average_pool(node: &Node, image: [usize; 3]) -> Check<(Self, bool, Vec<usize>)> {
        let count_include_pad = node.int("count_include_pad", 0) != 0;
        if count_include_pad && node.int("ceil_mode", 0) != 0 {
            return Err("ceil_mode with count_include_pad".into());
        }
        let (window, shape) = Self::pool(node, image)?;
        Ok((window, count_include_pad, shape))
    }

    /// Where `ceil_mode` asks for windows that begin inside and end outside, padding at the end makes
    /// room for them.
    fn pool(node: &Node, image: [usize; 3]) -> Check<(Self, Vec<usize>)> {
        let kernel: [usize; 2] = node.sizes("kernel_shape", 0)?;
        let mut window = Self::new(node, kernel, image)?;
        if window.dilation != [1, 1] {
            return Err(format!("dilation {:?}", window.dilation));
        }
        if node.int("ceil_mode", 0) != 0 {
            for axis in 0..2 {
                let size = image[axis + 1] + window.padding[axis] + window.padding[axis + 2];
                let (kernel, stride) = (kernel[axis], window.stride[axis]);
                let mut steps = size.saturating_sub(kernel).div_ceil(stride);
                // A window must not begin in the padding at the end.
                if steps * stride >= image[axis + 1] + window.padding[axis] {
                    steps -= 1;
                }
                let beyond = (steps * stride + kernel).saturating_sub(size);
                window.padding[axis + 2] += beyond;
                let padding = window.padding[axis + 2];
                if beyond > 0 && padding > kernel / 2 {
                    return Err(format!(
                        "ceil_mode = 1: the last window of {kernel} ends {padding} beyond an image of \
                         {}, more than the half that is supported; export the model with \
                         ceil_mode = 0",
                        image[axis + 1]
                    ));
                }
            }
        }
        let [c, h, w] = image;
        let Self { kernel, stride, padding, .. } = window;
        let geometry = PoolGeometry::new([1, c, h, w], kernel, stride, padding)
            .map_err(|error| error.to_string())?;
        Ok((window, geometry.output_shape()[1..].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::proto::{Attribute, attribute_kind};
    use super::*;

    #[test]
    fn windows_that_end_outside_are_counted_or_refused_by_name() {
        let pool = |size: usize, kernel: i64, stride: i64| {
            let ints = |name: &str, value| Attribute {
                name: name.into(),
                ints: vec![value; 2],
                kind: attribute_kind::INTS,
                ..Default::default()
            };
            let ceil = Attribute {
                name: "ceil_mode".into(),
                i: 1,
                kind: attribute_kind::INT,
                ..Default::default()
            };
            let attribute = vec![ints("kernel_shape", kernel), ints("strides", stride), ceil];
            let node = Node { op_type: "MaxPool".into(), attribute, ..Default::default() };
            Window::max_pool(&node, [1, size, size]).map(|(_, shape)| shape)
        };
        // PyTorch's `MaxPool2d(kernel, stride, ceil_mode=True)`.
        assert_eq!(pool(6, 3, 2), Ok(vec![1, 3, 3]));
        assert_eq!(pool(7, 3, 2), Ok(vec![1, 3, 3]));
        assert_eq!(pool(8, 3, 3), Ok(vec![1, 3, 3]));
        assert!(pool(7, 3, 3).unwrap_err().contains("ceil_mode"));
    }
}

use ottava_tensor::Tensor;
use ottava_tensor::conv::{ConvAttrs, ConvGeometry, PoolGeometry};

use crate::layer::FOUR_BITS;
use crate::{Activation, FloatOp, QParams, QuantizedLayer, add_codes, average};

/// One step of a [`Program`](crate::Program): attributes and constants, no inputs.
///
/// Codes are `u8` on the grid that their producer names. A variant says what it computes for the
/// codes `q` of its input on the grid `x` (scale `sx`, zero-point `zx`) and its output's grid `y`. What
/// keeps the grid of its input only moves values, and moves floats as well.
#[derive(Clone, Debug, PartialEq)]
pub enum Instr {
    /// `f32` to codes on this grid: [`QParams::quantize`].
    Quantize(QParams),
    /// Codes to `f32`: [`QParams::dequantize`].
    Dequantize,
    /// 2-D convolution: `clamp(round((Σ (q − zx)·w + bias) · sx·sw/sy)) + zy`; padding is `zx`.
    Conv {
        /// Weight codes `[o, c / groups, kh, kw]`, scales and bias.
        layer: QuantizedLayer,
        /// Stride, padding, dilation, groups.
        attrs: ConvAttrs,
        /// The grid of the output.
        output: QParams,
        /// What the results are clamped to.
        activation: Activation,
    },
    /// A matrix product with weight codes `[o, k]`, as [`Instr::Conv`] has it.
    Linear {
        /// Weight codes `[o, k]`, scales and bias.
        layer: QuantizedLayer,
        /// The grid of the output.
        output: QParams,
        /// What the results are clamped to.
        activation: Activation,
    },
    /// The sum of two values: [`add_codes`].
    Add {
        /// The grid of the output.
        output: QParams,
        /// What the results are clamped to.
        activation: Activation,
    },
    /// The largest code of each window, padding left out; same grid.
    MaxPool(Window),
    /// The mean of each window, or of the whole image: [`average`].
    AvgPool {
        /// The window; `None` for the whole image.
        window: Option<Window>,
        /// Whether padding counts, as zeros (PyTorch's default), or is left out (ONNX's).
        count_padding: bool,
        /// The grid of the output.
        output: QParams,
    },
    /// ReLU, ReLU6 and others on their own: `min(max(q, quantize(min)), quantize(max))`; same grid.
    Clip(Activation),
    /// Every `step`-th index of `start..end` along an axis; same grid.
    Slice {
        /// The axis, the batch being axis 0 (which cannot be sliced).
        axis: usize,
        /// The first index.
        start: usize,
        /// One past the last index.
        end: usize,
        /// From one index to the next.
        step: usize,
    },
    /// Zeros (the code `zx`) before and after an axis; same grid.
    Pad {
        /// The axis, the batch being axis 0 (which cannot be padded).
        axis: usize,
        /// Zeros before the first index.
        before: usize,
        /// Zeros after the last index.
        after: usize,
    },
    /// `[c, h, w]` to `[c·h·w]` in that order; same grid.
    Flatten,
    /// Values one behind another along an axis, each rounded to one grid: [`crate::requantize_codes`].
    Concat {
        /// The axis, the batch being axis 0 (along which nothing is concatenated).
        axis: usize,
        /// The grid of the output; `None` keeps that of the inputs, which is one, or floats.
        output: Option<QParams>,
    },
    /// Another shape for as many elements, in logical order; same grid.
    Reshape(Vec<usize>),
    /// An operator in `f32`, where there is no integer form or none is wanted.
    Float(FloatOp),
}

/// A pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Rows and columns between neighbouring windows.
    pub stride: [usize; 2],
    /// Rows and columns added at the top, left, bottom and right.
    pub padding: [usize; 4],
}

impl Window {
    /// A square window, the same padding on all sides.
    pub fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 4] }
    }

    /// The window as large as the image.
    pub(crate) fn whole(x: &ValueType) -> Self {
        let [_, h, w] = x.image();
        Self { kernel: [h, w], stride: [1, 1], padding: [0; 4] }
    }

    pub(crate) fn geometry(self, [c, h, w]: [usize; 3]) -> ottava_tensor::Result<PoolGeometry> {
        PoolGeometry::new([1, c, h, w], self.kernel, self.stride, self.padding)
    }
}

/// What the elements of a value are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elements {
    /// `f32`.
    Float,
    /// `u8` codes on this grid.
    Codes(QParams),
}

/// What is known of a value before the program runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueType {
    /// The shape for one image, without the batch: `[c, h, w]`, which lies in memory channels-last, or
    /// `[k]` (or, behind a reshape, another), which lies in logical order.
    pub shape: Vec<usize>,
    /// What its elements are.
    pub elements: Elements,
}

impl ValueType {
    /// The grid of codes; `None` for floats.
    pub fn grid(&self) -> Option<QParams> {
        match self.elements {
            Elements::Float => None,
            Elements::Codes(grid) => Some(grid),
        }
    }

    /// Bytes of the value for one image.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element_bytes()
    }

    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        match self.elements {
            Elements::Float => size_of::<f32>(),
            Elements::Codes(_) => 1,
        }
    }

    /// Channels, height, width; a vector is an image of one pixel.
    pub(crate) fn image(&self) -> [usize; 3] {
        match self.shape[..] {
            [c, h, w] => [c, h, w],
            _ => [self.shape.iter().product(), 1, 1],
        }
    }
}

/// Elements a value may have for one image: far above any network's, and far below what could
/// overflow when multiplied by a batch.
const MAX_ELEMENTS: usize = 1 << 28;

/// The largest window an average can be taken over: `255 · 2²²` fits `i32`.
const MAX_MEAN: usize = 1 << 22;

/// What is wrong with an instruction, in words.
pub(crate) type Check<T> = Result<T, String>;

impl Instr {
    /// The operation's name in files and reports.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantize",
            Self::Dequantize => "dequantize",
            Self::Conv { .. } => "conv",
            Self::Linear { .. } => "linear",
            Self::Add { .. } => "add",
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool { .. } => "avg_pool",
            Self::Clip(Activation::RELU) => "relu",
            Self::Clip(_) => "clip",
            Self::Slice { .. } => "slice",
            Self::Pad { .. } => "pad",
            Self::Flatten => "flatten",
            Self::Reshape(_) => "reshape",
            Self::Concat { .. } => "concat",
            Self::Float(op) => op.name(),
        }
    }

    /// How many values it takes; `None` for any number.
    fn arity(&self) -> Option<usize> {
        match self {
            Self::Concat { .. } => None,
            Self::Add { .. } => Some(2),
            Self::Float(op) => Some(op.arity()),
            Self::Quantize(_)
            | Self::Dequantize
            | Self::Conv { .. }
            | Self::Linear { .. }
            | Self::MaxPool(_)
            | Self::AvgPool { .. }
            | Self::Clip(_)
            | Self::Slice { .. }
            | Self::Pad { .. }
            | Self::Flatten
            | Self::Reshape(_) => Some(1),
        }
    }

    /// The weights, if it has any.
    pub fn layer(&self) -> Option<&QuantizedLayer> {
        match self {
            Self::Conv { layer, .. } | Self::Linear { layer, .. } => Some(layer),
            Self::Quantize(_)
            | Self::Dequantize
            | Self::Add { .. }
            | Self::MaxPool(_)
            | Self::AvgPool { .. }
            | Self::Clip(_)
            | Self::Slice { .. }
            | Self::Pad { .. }
            | Self::Flatten
            | Self::Reshape(_)
            | Self::Concat { .. }
            | Self::Float(_) => None,
        }
    }

    /// Checks every parameter against the inputs; the type of the output if they fit.
    pub(crate) fn check(&self, inputs: &[&ValueType]) -> Check<ValueType> {
        let wanted = self.arity().unwrap_or(inputs.len().max(1));
        if inputs.len() != wanted {
            return Err(format!("takes {wanted} inputs, but got {}", inputs.len()));
        }
        let x = inputs[0];
        let (shape, elements) = match self {
            Self::Quantize(grid) => match x.elements {
                Elements::Float => (x.shape.clone(), Elements::Codes(byte_grid(*grid)?)),
                Elements::Codes(_) => return Err("its input is quantized already".into()),
            },
            Self::Dequantize => {
                codes_of(x)?;
                (x.shape.clone(), Elements::Float)
            }
            Self::Conv { layer, attrs, output, activation } => {
                let grid = codes_of(x)?;
                let weight = layer.codes.dims("conv").map_err(|error| error.to_string())?;
                let geometry = conv_geometry(weight, *attrs, x)?;
                check_layer(layer, grid, *output, *activation)?;
                let [_, c, h, w] = geometry.output_shape();
                (vec![c, h, w], Elements::Codes(byte_grid(*output)?))
            }
            Self::Linear { layer, output, activation } => {
                let grid = codes_of(x)?;
                let [o, k] = layer.codes.dims("linear").map_err(|error| error.to_string())?;
                if x.image() != [k, 1, 1] {
                    return Err(format!(
                        "its weight of shape {:?} takes {k} features, but the input has shape {:?}; flatten it first",
                        layer.codes.shape(),
                        x.shape
                    ));
                }
                check_layer(layer, grid, *output, *activation)?;
                (vec![o], Elements::Codes(byte_grid(*output)?))
            }
            Self::Add { output, activation } => {
                let (a, b) = (codes_of(x)?, codes_of(inputs[1])?);
                if x.shape != inputs[1].shape {
                    return Err(format!("shapes {:?} and {:?} differ", x.shape, inputs[1].shape));
                }
                let y = byte_grid(*output)?;
                check_fused(*activation)?;
                let add = add_codes(a, b, y, *activation);
                // Every intermediate of `AddCodes::apply` is at most this.
                let most = 255.0 * (add.a_ratio + add.b_ratio) + add.fixed.abs();
                if !most.is_finite() {
                    return Err(scales_apart(a.scale().max(b.scale()), y.scale()));
                }
                (x.shape.clone(), Elements::Codes(y))
            }
            Self::MaxPool(window) => (pooled(*window, x)?, x.elements),
            Self::AvgPool { window, output, .. } => {
                let (grid, y) = (codes_of(x)?, byte_grid(*output)?);
                let [c, h, w] = image_of(x)?;
                let (shape, count) = match window {
                    Some(window) => {
                        (pooled(*window, x)?, window.kernel[0].saturating_mul(window.kernel[1]))
                    }
                    None => (vec![c, 1, 1], h * w),
                };
                if count > MAX_MEAN {
                    return Err(format!(
                        "a mean of {count} values; at most {MAX_MEAN} fit 32 bits"
                    ));
                }
                if !average(grid, y, false).multiplier(1).is_finite() {
                    return Err(scales_apart(grid.scale(), y.scale()));
                }
                (shape, Elements::Codes(y))
            }
            Self::Clip(activation) => {
                let Activation { min, max } = *activation;
                let holds_a_value = min <= max && min < f32::INFINITY && max > f32::NEG_INFINITY;
                if !holds_a_value {
                    return Err(empty_interval(*activation));
                }
                (x.shape.clone(), x.elements)
            }
            Self::Slice { axis, start, end, step } => {
                let mut shape = x.shape.clone();
                let size = axis_of(&mut shape, *axis)?;
                if start >= end || *end > *size || *step == 0 {
                    return Err(format!(
                        "{start}..{end} in steps of {step} selects nothing of axis {axis}, whose size is {size}"
                    ));
                }
                *size = (end - start).div_ceil(*step);
                (shape, x.elements)
            }
            Self::Pad { axis, before, after } => {
                let mut shape = x.shape.clone();
                let size = axis_of(&mut shape, *axis)?;
                *size = size
                    .checked_add(*before)
                    .and_then(|size| size.checked_add(*after))
                    .ok_or_else(|| format!("{before} + {size} + {after} overflows"))?;
                (shape, x.elements)
            }
            Self::Flatten => (vec![x.shape.iter().product()], x.elements),
            Self::Reshape(shape) => {
                check_shape(shape)?;
                let elements = |shape: &[usize]| shape.iter().product::<usize>();
                if elements(shape) != elements(&x.shape) {
                    return Err(format!(
                        "{:?} has another number of elements than {shape:?}",
                        x.shape
                    ));
                }
                (shape.clone(), x.elements)
            }
            Self::Concat { axis, output } => {
                let elements = match output {
                    Some(output) => Elements::Codes(byte_grid(*output)?),
                    None => x.elements,
                };
                for input in inputs {
                    match output {
                        Some(_) => drop(codes_of(input)?),
                        None if input.elements == elements => {}
                        None => return Err("its inputs differ in grid, and it has none".into()),
                    }
                }
                (concatenated(inputs, *axis)?, elements)
            }
            Self::Float(op) => (op.check(inputs)?, Elements::Float),
        };
        check_shape(&shape)?;
        Ok(ValueType { shape, elements })
    }
}

/// Axes that a value may have for one image.
const MAX_RANK: usize = 6;

/// A shape that no product of a program can overflow with.
pub(crate) fn check_shape(shape: &[usize]) -> Check<()> {
    let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    match (shape.len(), elements) {
        (1..=MAX_RANK, Some(1..=MAX_ELEMENTS)) => Ok(()),
        (1..=MAX_RANK, _) => Err(format!(
            "a value of shape {shape:?} is empty, or larger than the {MAX_ELEMENTS} elements allowed"
        )),
        _ => Err(format!("a value has 1 to {MAX_RANK} axes for one image, not {shape:?}")),
    }
}

/// The shape of a program's input.
pub(crate) fn check_input(shape: &[usize]) -> Check<()> {
    match shape.len() {
        1 | 3 => check_shape(shape),
        _ => Err(format!("a program takes [c, h, w] or [k] for one image, not {shape:?}")),
    }
}

/// The geometry of a convolution for one image, whose padded image is of a size that kernels can
/// write down.
pub(crate) fn conv_geometry(
    weight: [usize; 4],
    attrs: ConvAttrs,
    x: &ValueType,
) -> Check<ConvGeometry> {
    let [c, h, w] = image_of(x)?;
    let geometry =
        ConvGeometry::new([1, c, h, w], weight, attrs).map_err(|error| error.to_string())?;
    // The geometry's own check keeps each of these sums below 2³¹.
    let [top, left, bottom, right] = attrs.padding;
    check_shape(&[c, h + top + bottom, w + left + right])?;
    Ok(geometry)
}

pub(crate) fn pooled(window: Window, x: &ValueType) -> Check<Vec<usize>> {
    let geometry = window.geometry(image_of(x)?).map_err(|error| error.to_string())?;
    Ok(geometry.output_shape()[1..].to_vec())
}

fn concatenated(inputs: &[&ValueType], axis: usize) -> Check<Vec<usize>> {
    let mut shape = inputs[0].shape.clone();
    *axis_of(&mut shape, axis)? = 0;
    for input in inputs {
        let fits = input.shape.len() == shape.len()
            && (0..shape.len()).all(|i| i + 1 == axis || input.shape[i] == shape[i]);
        let sum = shape[axis - 1].checked_add(*input.shape.get(axis - 1).unwrap_or(&0));
        shape[axis - 1] = sum.filter(|_| fits).ok_or_else(|| {
            format!("shapes {:?} and {:?} differ beside axis {axis}", inputs[0].shape, input.shape)
        })?;
    }
    Ok(shape)
}

fn codes_of(x: &ValueType) -> Check<QParams> {
    x.grid().ok_or_else(|| "its input is f32; quantize it first".into())
}

pub(crate) fn image_of(x: &ValueType) -> Check<[usize; 3]> {
    match x.shape[..] {
        [c, h, w] => Ok([c, h, w]),
        _ => Err(format!("takes an image, but its input has shape {:?}", x.shape)),
    }
}

fn axis_of(shape: &mut [usize], axis: usize) -> Check<&mut usize> {
    let rank = shape.len();
    axis.checked_sub(1)
        .and_then(|axis| shape.get_mut(axis))
        .ok_or_else(|| format!("axis {axis} is none of the axes 1 to {rank} behind the batch"))
}

/// The grid with unsigned codes, if they fit a byte.
fn byte_grid(grid: QParams) -> Check<QParams> {
    let unsigned = grid.to_unsigned();
    if !unsigned.is_unsigned_byte() {
        return Err(format!("codes {}..={} do not fit a byte", grid.qmin(), grid.qmax()));
    }
    Ok(unsigned)
}

fn scales_apart(x: f32, y: f32) -> String {
    format!("the input's scale {x} divided by the output's {y} is beyond f32")
}

fn empty_interval(Activation { min, max }: Activation) -> String {
    format!("{min} to {max} is no interval that values can be clamped to here")
}

/// Zero stays zero behind a fused activation.
fn check_fused(activation: Activation) -> Check<()> {
    activation.holds_zero().then_some(()).ok_or_else(|| empty_interval(activation))
}

/// Checks that a layer is whole and that none of its sums can leave `i32`.
fn check_layer(
    layer: &QuantizedLayer,
    x: QParams,
    y: QParams,
    activation: Activation,
) -> Check<()> {
    check_fused(activation)?;
    let channels = layer.codes.shape()[0];
    let inner = layer.codes.len() / channels.max(1);
    if inner == 0 || layer.scales.len() != channels || layer.bias.len() != channels {
        return Err(format!(
            "a weight of shape {:?} with {} scales and {} biases",
            layer.codes.shape(),
            layer.scales.len(),
            layer.bias.len()
        ));
    }
    let multipliers = layer.requantize(x.scale(), y, activation).multiplier;
    for (channel, (&scale, m)) in layer.scales.iter().zip(multipliers).enumerate() {
        if !(scale > 0.0 && m.is_finite()) {
            return Err(format!(
                "channel {channel}: weight scale {scale} and multiplier {m} must be finite and the scale above zero"
            ));
        }
    }
    // The sum of a channel is largest where positive weights meet the largest code and negative
    // ones the smallest.
    let up = i64::from(x.qmax() - x.zero_point());
    let down = i64::from(x.zero_point() - x.qmin());
    let code = i64::from(i8::MIN).abs();
    let most = |bias: &i32| inner as i64 * code * up.max(down) + i64::from(*bias).abs();
    if layer.bias.iter().all(|bias| most(bias) <= i64::from(i32::MAX)) {
        // So it is for all but enormous filters: weights are looked at only when they are packed.
        return Ok(());
    }
    let codes = contiguous(&layer.codes);
    for (channel, (weights, &bias)) in codes.chunks(inner).zip(&layer.bias).enumerate() {
        let positive: i64 = weights.iter().map(|&w| i64::from(w.max(0))).sum();
        let negative: i64 = weights.iter().map(|&w| -i64::from(w.min(0))).sum();
        let high = positive * up + negative * down + i64::from(bias);
        let low = -(positive * down + negative * up) + i64::from(bias);
        if high > i64::from(i32::MAX) || low < i64::from(i32::MIN) {
            return Err(format!(
                "channel {channel}: its sums reach {low}..={high}, beyond 32 bits (bias {bias}, {inner} weights)"
            ));
        }
    }
    Ok(())
}

impl QuantizedLayer {
    /// Whether all weight codes are in −8..=7: a file then holds two in a byte.
    pub fn fits_four_bits(&self) -> bool {
        contiguous(&self.codes).iter().all(|&code| FOUR_BITS.contains(&code.into()))
    }
}

/// The codes in row-major order, copied only if they lie in another.
pub(crate) fn contiguous(codes: &Tensor<i8>) -> std::borrow::Cow<'_, [i8]> {
    match codes.as_slice() {
        Some(codes) => codes.into(),
        None => codes.to_vec().into(),
    }
}

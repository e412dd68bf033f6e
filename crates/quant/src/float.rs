//! Operators that compute in `f32` inside a program: what has no integer form, or was told to stay as
//! it is. The kernels are those of training, so that a program and its graph agree bit for bit.

#[cfg(feature = "float")]
mod kernel;

#[cfg(feature = "float")]
pub(crate) use kernel::FloatConv;
#[cfg(feature = "float")]
pub use kernel::linear;

use ottava_tensor::conv::ConvAttrs;
use ottava_tensor::{Tensor, shape};

use crate::instr::{Check, conv_geometry, image_of, pooled};
use crate::{QParams, ValueType, Window};

/// An operator in `f32`: attributes and constants. It reads floats and makes floats. Without the feature
/// `float` a program with one is refused ([`FloatOp::DynamicLinear`] multiplies codes, and is not).
#[derive(Clone, Debug, PartialEq)]
pub enum FloatOp {
    /// 2-D convolution.
    Conv {
        /// `[o, c / groups, kh, kw]`.
        weight: Tensor<f32>,
        /// `[o]`.
        bias: Option<Tensor<f32>>,
        /// Stride, padding, dilation, groups.
        attrs: ConvAttrs,
    },
    /// Fully connected layer: `x·weightᵀ + bias`.
    Linear {
        /// `[o, k]`.
        weight: Tensor<f32>,
        /// `[o]`.
        bias: Option<Tensor<f32>>,
    },
    /// Matrix product with a constant `[k, o]`.
    MatMul(Tensor<f32>),
    /// `scale[c]·x + shift[c]`: batch normalization with known statistics.
    Affine {
        /// `[c]`.
        scale: Tensor<f32>,
        /// `[c]`.
        shift: Tensor<f32>,
    },
    /// The sum of two values, or of one and a constant, broadcast.
    Add(Option<Tensor<f32>>),
    /// The product of two values, or of one and a constant, broadcast.
    Mul(Option<Tensor<f32>>),
    /// The mean of each window, or of the whole image.
    AvgPool {
        /// The window; `None` for the whole image.
        window: Option<Window>,
        /// Whether padding counts, as zeros, or is left out.
        count_padding: bool,
    },
    /// `eˣ / Σ eˣ` of a vector.
    Softmax,
    /// `x − log Σ eˣ` of a vector.
    LogSoftmax,
    /// Rounding to a grid and back; one grid, or one for each index of an axis.
    FakeQuant {
        /// The grids.
        grids: Vec<QParams>,
        /// Their axis, the batch being axis 0.
        axis: usize,
    },
    /// Fully connected layer on codes of its input that are chosen at each run:
    /// [`DynamicLinear`](crate::DynamicLinear). A batch with a NaN or an infinity in it becomes NaN.
    DynamicLinear {
        /// Weight codes `[o, k]`.
        codes: Tensor<i8>,
        /// A scale for each output, `[o]`.
        scales: Vec<f32>,
        /// `[o]`.
        bias: Vec<f32>,
    },
}

/// Computes the result of a batch from its inputs.
pub(crate) type FloatKernel = Box<dyn Fn(&[Tensor<f32>]) -> Tensor<f32> + Send + Sync>;

/// A convolution that writes its results where they belong. There is none in this build.
#[cfg(not(feature = "float"))]
pub(crate) enum FloatConv {}

impl FloatOp {
    /// The operation's name in files and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv { .. } => "float_conv",
            Self::Linear { .. } => "float_linear",
            Self::MatMul(_) => "float_matmul",
            Self::Affine { .. } => "float_affine",
            Self::Add(_) => "float_add",
            Self::Mul(_) => "float_mul",
            Self::AvgPool { .. } => "float_avg_pool",
            Self::Softmax => "softmax",
            Self::LogSoftmax => "log_softmax",
            Self::FakeQuant { .. } => "fake_quant",
            Self::DynamicLinear { .. } => "dynamic_linear",
        }
    }

    /// How many values it takes.
    pub(crate) fn arity(&self) -> usize {
        match self {
            Self::Add(None) | Self::Mul(None) => 2,
            Self::Conv { .. }
            | Self::Linear { .. }
            | Self::MatMul(_)
            | Self::Affine { .. }
            | Self::Add(Some(_))
            | Self::Mul(Some(_))
            | Self::AvgPool { .. }
            | Self::Softmax
            | Self::LogSoftmax
            | Self::FakeQuant { .. }
            | Self::DynamicLinear { .. } => 1,
        }
    }

    /// Whether the images of a batch change each other's results, so that a batch cannot run in parts.
    pub(crate) fn joins_images(&self) -> bool {
        matches!(self, Self::DynamicLinear { .. })
    }

    /// Its constants in `f32` and the names that files give them.
    pub(crate) fn constants(&self) -> Vec<(&'static str, Tensor<f32>)> {
        let vector = |values: Vec<f32>| Tensor::new(&[values.len()], values).expect("a vector");
        match self {
            Self::Conv { weight, bias, .. } | Self::Linear { weight, bias } => {
                let bias = bias.clone().map(|bias| ("bias", bias));
                std::iter::once(("weight", weight.clone())).chain(bias).collect()
            }
            Self::MatMul(weight) => vec![("weight", weight.clone())],
            Self::Affine { scale, shift } => {
                vec![("scale", scale.clone()), ("shift", shift.clone())]
            }
            Self::Add(Some(constant)) | Self::Mul(Some(constant)) => {
                vec![("constant", constant.clone())]
            }
            Self::FakeQuant { grids, .. } => vec![
                ("scale", vector(grids.iter().map(QParams::scale).collect())),
                // Codes have at most 16 bits, so floats hold them.
                ("zero_point", vector(grids.iter().map(|g| g.zero_point() as f32).collect())),
            ],
            Self::DynamicLinear { scales, bias, .. } => {
                vec![("scale", vector(scales.clone())), ("bias", vector(bias.clone()))]
            }
            Self::Add(None)
            | Self::Mul(None)
            | Self::AvgPool { .. }
            | Self::Softmax
            | Self::LogSoftmax => vec![],
        }
    }

    /// Checks every parameter against the inputs' shapes; the shape of the output if they fit.
    pub(crate) fn check(&self, inputs: &[&ValueType]) -> Check<Vec<usize>> {
        let x = inputs[0];
        // Dynamic layers multiply codes.
        if !cfg!(feature = "float") && !matches!(self, Self::DynamicLinear { .. }) {
            return Err("computes in f32, for which ottava-quant has the feature \"float\": this \
                        build lacks it"
                .into());
        }
        if inputs.iter().any(|input| input.grid().is_some()) {
            return Err("reads codes; put a dequantize in front of it".into());
        }
        for (name, constant) in self.constants() {
            if constant.iter().any(f32::is_nan) {
                return Err(format!("there is a NaN in its {name}"));
            }
        }
        let text = |error: ottava_tensor::Error| error.to_string();
        match self {
            Self::Conv { weight, bias, attrs } => {
                let geometry = conv_geometry(weight.dims("conv").map_err(text)?, *attrs, x)?;
                of_length("bias", bias.as_ref(), geometry.out_channels)?;
                Ok(geometry.output_shape()[1..].to_vec())
            }
            Self::Linear { weight, bias } => {
                let [o, k] = weight.dims("linear").map_err(text)?;
                of_length("bias", bias.as_ref(), o)?;
                features(x, k)?;
                Ok(vec![o])
            }
            Self::MatMul(weight) => {
                let [k, o] = weight.dims("matmul").map_err(text)?;
                features(x, k)?;
                Ok(vec![o])
            }
            Self::Affine { scale, shift } => {
                of_length("scale", Some(scale), x.shape[0])?;
                of_length("shift", Some(shift), x.shape[0])?;
                Ok(x.shape.clone())
            }
            Self::Add(None) | Self::Mul(None) => {
                let (a, b) = (&x.shape, &inputs[1].shape);
                if a.len() != b.len() {
                    return Err(format!("shapes {a:?} and {b:?} have different ranks"));
                }
                shape::broadcast(self.name(), a, b).map_err(text)
            }
            Self::Add(Some(constant)) | Self::Mul(Some(constant)) => {
                // A constant may spell out the batch's axis, as one image for all.
                let of_image = match constant.shape() {
                    [1, rest @ ..] if rest.len() == x.shape.len() => rest,
                    shape => shape,
                };
                if of_image.len() > x.shape.len() {
                    return Err(format!(
                        "a constant of shape {:?} has more axes than {:?}",
                        constant.shape(),
                        x.shape
                    ));
                }
                shape::broadcast(self.name(), &x.shape, of_image).map_err(text)
            }
            Self::AvgPool { window: Some(window), .. } => pooled(*window, x),
            Self::AvgPool { window: None, .. } => Ok(vec![image_of(x)?[0], 1, 1]),
            Self::Softmax | Self::LogSoftmax => match x.shape[..] {
                [_] => Ok(x.shape.clone()),
                _ => Err(format!("takes a vector, but its input has shape {:?}", x.shape)),
            },
            Self::FakeQuant { grids, axis } => {
                let codes = |grid: &QParams| (grid.qmin(), grid.qmax());
                if let Some(other) = grids.iter().find(|grid| codes(grid) != codes(&grids[0])) {
                    let (one, other) = (codes(&grids[0]), codes(other));
                    return Err(format!(
                        "its grids have codes {one:?} and {other:?}, but there can be one range of codes"
                    ));
                }
                let size = axis.checked_sub(1).and_then(|axis| x.shape.get(axis));
                if grids.len() == 1 && *axis == 0 || size == Some(&grids.len()) {
                    return Ok(x.shape.clone());
                }
                Err(format!("{} grids along axis {axis} of shape {:?}", grids.len(), x.shape))
            }
            Self::DynamicLinear { codes, scales, bias } => {
                let [o, k] = codes.dims("dynamic_linear").map_err(text)?;
                if scales.len() != o || bias.len() != o {
                    let (scales, biases) = (scales.len(), bias.len());
                    return Err(format!("{o} outputs with {scales} scales and {biases} biases"));
                }
                features(x, k)?;
                Ok(vec![o])
            }
        }
    }
}

#[cfg(not(feature = "float"))]
impl FloatOp {
    /// There are none in this build: [`check`](Self::check) accepts no operator that has one.
    pub(crate) fn kernel(&self, _x: &ValueType) -> FloatKernel {
        unreachable!("{} was refused when the program was built", self.name())
    }

    /// As [`kernel`](Self::kernel).
    pub(crate) fn convolution(&self, _x: &ValueType) -> Option<FloatConv> {
        None
    }
}

#[cfg(not(feature = "float"))]
impl FloatConv {
    pub(crate) fn run(&self, _: usize, _: &[f32], _: Option<&[f32]>, _: bool, _: &mut [f32]) {
        match *self {}
    }

    pub(crate) fn packed_bytes(&self) -> usize {
        match *self {}
    }
}

/// A vector of `len` numbers, if there is one.
fn of_length(name: &str, vector: Option<&Tensor<f32>>, len: usize) -> Check<()> {
    match vector.map(Tensor::shape) {
        Some(shape) if shape != [len] => {
            Err(format!("its {name} of shape {shape:?} should have {len} elements"))
        }
        _ => Ok(()),
    }
}

fn features(x: &ValueType, k: usize) -> Check<()> {
    if x.shape == [k] {
        return Ok(());
    }
    Err(format!("takes a vector of {k} features, but its input has shape {:?}", x.shape))
}

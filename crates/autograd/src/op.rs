use half::bf16;
use ottava_tensor::Tensor;

use crate::ops::{
    Add, AvgPool2d, BatchNorm2d, Clip, Concat, Conv2d, CrossEntropy, FakeQuant, Flatten,
    GlobalAvgPool, LearnedFakeQuant, Linear, LogSoftmax, MatMul, MaxPool2d, Mul, Pad, QuantAdd,
    QuantAvgPool, QuantConcat, QuantLayer, Quantize, Relu, Reshape, Slice, Softmax, Sum,
};
use crate::saving::{Saved, halved};
use crate::tape::Spans;
use crate::{Mode, Result, Saving, Value};

/// The mathematics of an operator: its value, and the way back beside it.
pub trait Rule {
    /// The value of `inputs`, and the closure that turns the gradient of that value into the
    /// gradients of the inputs. The closure owns exactly what it saved.
    ///
    /// # Errors
    /// What does not fit, with the numbers.
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output>;
}

/// Turns the gradient of a value into the gradients of its inputs; `wanted` says which of them
/// anybody asked for, the others may be `None`.
pub type Backward = Box<dyn FnOnce(Tensor<f32>, &[bool]) -> Vec<Option<Tensor<f32>>> + Send>;

/// What an operator returns.
pub struct Output {
    pub(crate) value: Value,
    pub(crate) backward: Option<Backward>,
}

impl Output {
    /// A value with a way back.
    pub fn new(
        value: impl Into<Value>,
        backward: impl FnOnce(Tensor<f32>, &[bool]) -> Vec<Option<Tensor<f32>>> + Send + 'static,
    ) -> Self {
        Self { value: value.into(), backward: Some(Box::new(backward)) }
    }

    /// A value with no way back: nobody asked, or the gradient is zero everywhere.
    pub fn constant(value: impl Into<Value>) -> Self {
        Self { value: value.into(), backward: None }
    }
}

/// What an operator is told besides its inputs, and where it puts what it moves.
pub struct Context {
    /// How to behave.
    pub mode: Mode,
    needs: Vec<bool>,
    pub(crate) saving: Saving,
    /// What each input has been saved as, if in halves.
    pub(crate) halves: Vec<Option<Tensor<bf16>>>,
    pub(crate) updates: Vec<(usize, Tensor<f32>)>,
    /// Where times are noted; a rule that is several operators takes it, and notes theirs.
    pub(crate) spans: Option<Spans>,
}

impl Context {
    /// A context in which a gradient will be asked of the inputs that `needs` marks.
    pub fn new(mode: Mode, needs: Vec<bool>) -> Self {
        let saving = Saving::default();
        Self { mode, needs, saving, halves: Vec::new(), updates: Vec::new(), spans: None }
    }

    /// Whether any gradient will be asked for; if not, nothing need be saved.
    pub fn backward(&self) -> bool {
        self.needs.contains(&true)
    }

    /// What is kept for the way back.
    pub fn saving(&self) -> Saving {
        self.saving
    }

    /// Keeps input `index`, whose value is `x`, for the way back; one copy however many keep it.
    pub(crate) fn save(&mut self, index: usize, x: &Tensor<f32>) -> Saved {
        match self.halves.get_mut(index).filter(|_| self.saving.half) {
            Some(half) => Saved::Half(half.get_or_insert_with(|| halved(x)).clone()),
            None => self.save_inner(x),
        }
    }

    /// Keeps a value that is no input.
    pub(crate) fn save_inner(&self, x: &Tensor<f32>) -> Saved {
        if self.saving.half { Saved::Half(halved(x)) } else { Saved::Full(x.clone()) }
    }

    /// Moves the buffer at input `index`.
    pub fn update(&mut self, index: usize, value: Tensor<f32>) {
        self.updates.push((index, value));
    }
}

macro_rules! operators {
    ($($(#[$doc:meta])* $variant:ident($type:ty) = $name:literal),* $(,)?) => {
        /// Every operator, with its attributes. Passes match on it without `_`, so that a new variant
        /// makes the compiler list what must decide about it.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $($(#[$doc])* $variant($type)),*
        }

        impl Op {
            /// The name of every operator.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The operator's name, as reports and errors spell it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name),*
                }
            }

            /// The operator's value in evaluation, with no tape.
            ///
            /// # Errors
            /// What the operator refuses.
            pub fn evaluate(&self, inputs: &[Value]) -> Result<Value> {
                let mut context = Context::new(Mode::EVAL, vec![false; inputs.len()]);
                Ok(self.rule().forward(inputs, &mut context)?.value)
            }

            /// The operator's mathematics.
            pub fn rule(&self) -> &dyn Rule {
                match self {
                    $(Self::$variant(op) => op),*
                }
            }
        }

        $(impl From<$type> for Op {
            fn from(op: $type) -> Self {
                Self::$variant(op)
            }
        })*
    };
}

operators! {
    /// 2-D convolution.
    Conv2d(Conv2d) = "conv2d",
    /// Fully connected layer.
    Linear(Linear) = "linear",
    /// Matrix product.
    MatMul(MatMul) = "matmul",
    /// Batch normalisation.
    BatchNorm2d(BatchNorm2d) = "batch_norm2d",
    /// Rectifier.
    Relu(Relu) = "relu",
    /// Clamp to an interval (ReLU6).
    Clip(Clip) = "clip",
    /// Sum, broadcast.
    Add(Add) = "add",
    /// Product, broadcast.
    Mul(Mul) = "mul",
    /// Maximum over windows.
    MaxPool2d(MaxPool2d) = "max_pool2d",
    /// Mean over windows.
    AvgPool2d(AvgPool2d) = "avg_pool2d",
    /// Mean over each image.
    GlobalAvgPool(GlobalAvgPool) = "global_avg_pool",
    /// All axes but the first made one.
    Flatten(Flatten) = "flatten",
    /// All axes but the first made others.
    Reshape(Reshape) = "reshape",
    /// Every n-th index of a range of an axis.
    Slice(Slice) = "slice",
    /// Zeros before and after an axis.
    Pad(Pad) = "pad",
    /// Values one behind another along an axis.
    Concat(Concat) = "concat",
    /// Logarithm of the softmax of each row.
    LogSoftmax(LogSoftmax) = "log_softmax",
    /// Softmax of each row.
    Softmax(Softmax) = "softmax",
    /// Mean negative log likelihood of class indices.
    CrossEntropy(CrossEntropy) = "cross_entropy",
    /// Sum of all elements.
    Sum(Sum) = "sum",
    /// Rounding to a fixed grid, in float.
    FakeQuant(FakeQuant) = "fake_quant",
    /// Rounding to a learned grid, in float.
    LearnedFakeQuant(LearnedFakeQuant) = "learned_fake_quant",
    /// Observed rounding of floats to codes.
    Quantize(Quantize) = "quantize",
    /// Integer convolution or linear layer, BatchNorm and activation fused.
    QuantLayer(QuantLayer) = "quant_layer",
    /// Integer addition, activation fused.
    QuantAdd(QuantAdd) = "quant_add",
    /// Integer mean over windows.
    QuantAvgPool(QuantAvgPool) = "quant_avg_pool",
    /// Integer values one behind another, on one grid.
    QuantConcat(QuantConcat) = "quant_concat",
}

impl Op {
    /// Whether the operator only moves values, or clamps them: codes pass through it on their grid.
    pub fn keeps_grid(&self) -> bool {
        match self {
            Self::Relu(_)
            | Self::Clip(_)
            | Self::MaxPool2d(_)
            | Self::Flatten(_)
            | Self::Reshape(_)
            | Self::Slice(_)
            | Self::Pad(_) => true,
            Self::Conv2d(_)
            | Self::Linear(_)
            | Self::MatMul(_)
            | Self::BatchNorm2d(_)
            | Self::Add(_)
            | Self::Mul(_)
            | Self::AvgPool2d(_)
            | Self::GlobalAvgPool(_)
            | Self::Concat(_)
            | Self::LogSoftmax(_)
            | Self::Softmax(_)
            | Self::CrossEntropy(_)
            | Self::Sum(_)
            | Self::FakeQuant(_)
            | Self::LearnedFakeQuant(_)
            | Self::Quantize(_)
            | Self::QuantLayer(_)
            | Self::QuantAdd(_)
            | Self::QuantAvgPool(_)
            | Self::QuantConcat(_) => false,
        }
    }
}

/// The `N` inputs of an operator, or an error naming it.
pub(crate) fn inputs<'a, const N: usize>(
    op: &'static str,
    inputs: &'a [Value],
) -> Result<&'a [Value; N]> {
    inputs.try_into().map_err(|_| crate::Error::Op {
        op,
        reason: format!("takes {N} inputs, but got {}", inputs.len()),
    })
}

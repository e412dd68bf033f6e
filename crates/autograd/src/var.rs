//! The operators as methods: how a module's forward pass is written.

use ottava_tensor::conv::ConvAttrs;

use crate::ops::{
    Add, AvgPool2d, BatchNorm2d, Clip, Concat, Conv2d, CrossEntropy, Flatten, GlobalAvgPool,
    Linear, LogSoftmax, MatMul, MaxPool2d, Mul, Pad, Relu, Reshape, Slice, Softmax, Sum,
};
use crate::{Result, Var};

/// Each method refuses what its operator refuses: shapes that do not fit, with the numbers.
#[allow(clippy::missing_errors_doc)] // said once, above, for all of them
impl<'t> Var<'t> {
    fn op<const N: usize>(self, op: impl Into<crate::Op>, inputs: [Var<'t>; N]) -> Result<Self> {
        self.tape().apply(op.into(), &inputs)
    }

    /// [`Conv2d`].
    pub fn conv2d(self, weight: Self, bias: Option<Self>, attrs: ConvAttrs) -> Result<Self> {
        match bias {
            None => self.op(Conv2d { attrs }, [self, weight]),
            Some(bias) => self.op(Conv2d { attrs }, [self, weight, bias]),
        }
    }

    /// [`Linear`].
    pub fn linear(self, weight: Self, bias: Option<Self>) -> Result<Self> {
        match bias {
            None => self.op(Linear, [self, weight]),
            Some(bias) => self.op(Linear, [self, weight, bias]),
        }
    }

    /// [`MatMul`].
    pub fn matmul(self, other: Self) -> Result<Self> {
        self.op(MatMul, [self, other])
    }

    /// [`BatchNorm2d`].
    pub fn batch_norm2d(
        self,
        weight: Self,
        bias: Self,
        running_mean: Self,
        running_var: Self,
        norm: BatchNorm2d,
    ) -> Result<Self> {
        self.op(norm, [self, weight, bias, running_mean, running_var])
    }

    /// [`Relu`].
    pub fn relu(self) -> Result<Self> {
        self.op(Relu, [self])
    }

    /// [`Clip`].
    pub fn clip(self, clip: Clip) -> Result<Self> {
        self.op(clip, [self])
    }

    /// [`Add`].
    #[allow(clippy::should_implement_trait)] // fallible, so not `std::ops::Add`
    pub fn add(self, other: Self) -> Result<Self> {
        self.op(Add, [self, other])
    }

    /// [`Mul`].
    #[allow(clippy::should_implement_trait)] // fallible, so not `std::ops::Mul`
    pub fn mul(self, other: Self) -> Result<Self> {
        self.op(Mul, [self, other])
    }

    /// [`MaxPool2d`].
    pub fn max_pool2d(self, pool: MaxPool2d) -> Result<Self> {
        self.op(pool, [self])
    }

    /// [`AvgPool2d`].
    pub fn avg_pool2d(self, pool: AvgPool2d) -> Result<Self> {
        self.op(pool, [self])
    }

    /// [`GlobalAvgPool`].
    pub fn global_avg_pool(self) -> Result<Self> {
        self.op(GlobalAvgPool, [self])
    }

    /// [`Flatten`].
    pub fn flatten(self) -> Result<Self> {
        self.op(Flatten, [self])
    }

    /// [`Reshape`]: `shape` leaves out the batch.
    pub fn reshape(self, shape: &[usize]) -> Result<Self> {
        self.op(Reshape { shape: shape.to_vec() }, [self])
    }

    /// [`Slice`].
    pub fn slice(self, slice: Slice) -> Result<Self> {
        self.op(slice, [self])
    }

    /// [`Pad`].
    pub fn pad(self, pad: Pad) -> Result<Self> {
        self.op(pad, [self])
    }

    /// [`Concat`]: this value, and the others behind it.
    pub fn concat(self, others: &[Self], axis: usize) -> Result<Self> {
        let inputs: Vec<Self> = std::iter::once(self).chain(others.iter().copied()).collect();
        self.tape().apply(Concat { axis }.into(), &inputs)
    }

    /// [`LogSoftmax`].
    pub fn log_softmax(self) -> Result<Self> {
        self.op(LogSoftmax, [self])
    }

    /// [`Softmax`].
    pub fn softmax(self) -> Result<Self> {
        self.op(Softmax, [self])
    }

    /// [`CrossEntropy`] against the class of each row.
    pub fn cross_entropy(self, targets: &[usize], label_smoothing: f32) -> Result<Self> {
        self.op(CrossEntropy { targets: targets.to_vec(), label_smoothing }, [self])
    }

    /// [`Sum`].
    pub fn sum(self) -> Result<Self> {
        self.op(Sum, [self])
    }
}

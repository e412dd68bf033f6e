//! Layers: those with parameters, and the operators that are layers without any.

use ottava_autograd::{Leaf, Result, Var, ops};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

use crate::init::{self, Fan, Rng};
use crate::{Module, State, module};

pub use ottava_autograd::ops::{
    AvgPool2d, Clip, Flatten, GlobalAvgPool, MaxPool2d, Pad, Relu, Slice,
};

/// 2-D convolution.
///
/// # Shapes
/// `[n, in, h, w]` → `[n, out, oh, ow]`; `weight [out, in / groups, k, k]`, `bias [out]`.
///
/// # Source
/// PyTorch `torch.nn.Conv2d`.
#[derive(Debug)]
pub struct Conv2d {
    /// The windows.
    pub weight: Leaf,
    /// Added to every channel.
    pub bias: Option<Leaf>,
    /// Stride, padding, dilation, groups.
    pub attrs: ConvAttrs,
}

module!(Conv2d { weight, bias });

impl Conv2d {
    /// A convolution of `[in, out]` channels without a bias, initialised as PyTorch does.
    pub fn new(channels: [usize; 2], kernel: usize, attrs: ConvAttrs, rng: &mut Rng) -> Self {
        let shape = Self::weight_shape(channels, kernel, attrs);
        Self::with_weight(init::torch_default(&shape, Fan::In.of(&shape), rng), attrs)
    }

    /// A convolution with these windows and without a bias.
    pub fn with_weight(weight: Tensor<f32>, attrs: ConvAttrs) -> Self {
        Self { weight: Leaf::param(weight), bias: None, attrs }
    }

    /// The same convolution with a bias, initialised as PyTorch does.
    pub fn with_bias(mut self, rng: &mut Rng) -> Self {
        let weight = self.weight.get();
        let (fan_in, channels) = (Fan::In.of(weight.shape()), weight.shape()[..1].to_vec());
        self.bias = Some(Leaf::param(init::torch_default(&channels, fan_in, rng)));
        self
    }

    /// The shape of the windows of a convolution of `[in, out]` channels.
    pub fn weight_shape(channels: [usize; 2], kernel: usize, attrs: ConvAttrs) -> [usize; 4] {
        let [input, output] = channels;
        [output, input / attrs.groups.max(1), kernel, kernel]
    }
}

impl Module for Conv2d {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let tape = x.tape();
        let (weight, bias) = (tape.leaf(&self.weight), self.bias.as_ref().map(|b| tape.leaf(b)));
        x.conv2d(weight, bias, self.attrs)
    }
}

/// Batch normalisation of images: `y = (x − mean) / √(var + eps) · weight + bias`.
///
/// # Shapes
/// `[n, channels, h, w]` → the same; each leaf `[channels]`.
///
/// # Source
/// Ioffe and Szegedy 2015, arXiv:1502.03167; PyTorch `torch.nn.BatchNorm2d`.
#[derive(Debug)]
pub struct BatchNorm2d {
    /// The scale, `γ`.
    pub weight: Leaf,
    /// The shift, `β`.
    pub bias: Leaf,
    /// The mean that evaluation uses.
    pub running_mean: Leaf,
    /// The variance that evaluation uses.
    pub running_var: Leaf,
    /// What is added to the variance, and how far statistics move a step.
    pub attrs: ops::BatchNorm2d,
}

module!(BatchNorm2d { weight, bias, running_mean, running_var });

impl BatchNorm2d {
    /// A normalisation that so far changes nothing; `eps` 1e-5, `momentum` 0.1.
    pub fn new(channels: usize) -> Self {
        let (zeros, ones) = (Tensor::zeros(&[channels]), Tensor::full(&[channels], 1.0));
        Self {
            weight: Leaf::param(ones.clone()),
            bias: Leaf::param(zeros.clone()),
            running_mean: Leaf::buffer(zeros),
            running_var: Leaf::buffer(ones),
            attrs: ops::BatchNorm2d::default(),
        }
    }

    /// The same with another `eps`.
    pub fn with_eps(mut self, eps: f32) -> Self {
        self.attrs.eps = eps;
        self
    }
}

impl Module for BatchNorm2d {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let leaf = |leaf: &Leaf| x.tape().leaf(leaf);
        let (weight, bias) = (leaf(&self.weight), leaf(&self.bias));
        let (mean, var) = (leaf(&self.running_mean), leaf(&self.running_var));
        x.batch_norm2d(weight, bias, mean, var, self.attrs)
    }
}

/// Fully connected layer: `y = x · weightᵀ + bias`.
///
/// # Shapes
/// `[n, in]` → `[n, out]`; `weight [out, in]`, `bias [out]`.
///
/// # Source
/// PyTorch `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: Leaf,
    /// The bias.
    pub bias: Option<Leaf>,
}

module!(Linear { weight, bias });

impl Linear {
    /// A layer with a bias, initialised as PyTorch does.
    pub fn new(inputs: usize, outputs: usize, rng: &mut Rng) -> Self {
        let weight = Leaf::param(init::torch_default(&[outputs, inputs], inputs, rng));
        Self { weight, bias: Some(Leaf::param(init::torch_default(&[outputs], inputs, rng))) }
    }
}

impl Module for Linear {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let tape = x.tape();
        let (weight, bias) = (tape.leaf(&self.weight), self.bias.as_ref().map(|b| tape.leaf(b)));
        x.linear(weight, bias)
    }
}

/// Modules one after another, named by their indices.
#[derive(Default)]
pub struct Sequential(Vec<Box<dyn Module>>);

impl Sequential {
    /// No module: the identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more module at the end.
    pub fn then(mut self, module: impl Module + 'static) -> Self {
        self.0.push(Box::new(module));
        self
    }
}

impl State for Sequential {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf)) {
        self.0.visit(prefix, f);
    }
}

impl Module for Sequential {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        self.0.iter().try_fold(x, |x, module| module.forward(x))
    }
}

macro_rules! operators_as_layers {
    ($($operator:ty),*) => {
        $(module!($operator {});

        impl Module for $operator {
            fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
                x.tape().apply((*self).into(), &[x])
            }
        })*
    };
}

operators_as_layers!(Relu, Clip, MaxPool2d, AvgPool2d, GlobalAvgPool, Flatten, Slice, Pad);

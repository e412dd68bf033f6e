//! The operators: attributes, forward and backward of each on one screen.

mod activation;
mod concat;
mod conv;
mod elementwise;
mod fake_quant;
mod linear;
mod loss;
mod norm;
mod passes;
mod pool;
mod quant_add;
mod quant_layer;
mod quant_pool;
mod quantizer;
mod shape;

pub use activation::{Clip, LogSoftmax, Relu, Softmax};
pub use concat::{Concat, QuantConcat};
pub use conv::Conv2d;
pub use elementwise::{Add, Mul, Sum};
pub use fake_quant::{FakeQuant, LearnedFakeQuant};
pub use linear::{Linear, MatMul};
pub use loss::CrossEntropy;
pub use norm::BatchNorm2d;
pub(crate) use norm::NormRelu;
pub use pool::{AvgPool2d, GlobalAvgPool, MaxPool2d};
pub use quant_add::QuantAdd;
pub use quant_layer::{Folding, LayerKind, QuantLayer};
pub use quant_pool::QuantAvgPool;
pub use quantizer::{ActivationQuant, Learning, Quantize};
pub use shape::{Flatten, Pad, Reshape, Slice};

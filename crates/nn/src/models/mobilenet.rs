use ottava_autograd::{Leaf, Result, Var};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

use super::ModelConfig;
use crate::init::{self, Fan, Rng};
use crate::layers::{BatchNorm2d, Clip, Conv2d, Linear, Sequential};
use crate::{Module, module};

/// Expansion, channels, blocks and stride of each stage: table 2 of the paper.
pub(super) const STAGES: [[usize; 4]; 7] = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
];

/// Inverted residuals with linear bottlenecks. There is no dropout before the classifier: place
/// for it is kept in the parameters' names only.
///
/// # Shapes
/// `[n, in_channels, h, w]` → `[n, classes]`.
///
/// # Source
/// Sandler et al. 2018, arXiv:1801.04381; torchvision `MobileNetV2`: its names, shapes and initial
/// weights.
pub struct MobileNetV2 {
    features: Sequential,
    classifier: Sequential,
}

module!(MobileNetV2 { features, classifier });

impl MobileNetV2 {
    /// The network, of width 1.
    pub fn new(config: &ModelConfig, rng: &mut Rng) -> Self {
        let mut features =
            Sequential::new().then(conv_norm_relu6([config.in_channels, 32], 3, 2, 1, rng));
        let mut channels = 32;
        for [expansion, width, blocks, stride] in STAGES {
            for i in 0..blocks {
                let stride = if i == 0 { stride } else { 1 };
                features =
                    features.then(InvertedResidual::new([channels, width], expansion, stride, rng));
                channels = width;
            }
        }
        let features = features.then(conv_norm_relu6([channels, 1280], 1, 1, 1, rng));
        let fc = Linear::new(1280, config.classes, rng);
        fc.weight.set(init::normal(&[config.classes, 1280], 0.01, rng));
        fc.bias.as_ref().into_iter().for_each(|bias: &Leaf| {
            bias.set(Tensor::zeros(&[config.classes]));
        });
        // Index 0 is torchvision's dropout.
        Self { features, classifier: Sequential::new().then(Sequential::new()).then(fc) }
    }
}

impl Module for MobileNetV2 {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        self.classifier.forward(self.features.forward(x)?.global_avg_pool()?.flatten()?)
    }
}

/// Expand by a 1×1, filter by a depthwise 3×3, project by a linear 1×1; beside the identity where
/// shapes allow it.
struct InvertedResidual {
    conv: Sequential,
    identity: bool,
}

module!(InvertedResidual { conv });

impl InvertedResidual {
    fn new(channels: [usize; 2], expansion: usize, stride: usize, rng: &mut Rng) -> Self {
        let [input, output] = channels;
        let hidden = input * expansion;
        let mut conv = Sequential::new();
        if expansion != 1 {
            conv = conv.then(conv_norm_relu6([input, hidden], 1, 1, 1, rng));
        }
        let conv = conv
            .then(conv_norm_relu6([hidden, hidden], 3, stride, hidden, rng))
            .then(convolution([hidden, output], 1, 1, 1, rng))
            .then(BatchNorm2d::new(output));
        Self { conv, identity: stride == 1 && input == output }
    }
}

impl Module for InvertedResidual {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let y = self.conv.forward(x)?;
        if self.identity { x.add(y) } else { Ok(y) }
    }
}

fn conv_norm_relu6(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    rng: &mut Rng,
) -> Sequential {
    Sequential::new()
        .then(convolution(channels, kernel, stride, groups, rng))
        .then(BatchNorm2d::new(channels[1]))
        .then(Clip::RELU6)
}

fn convolution(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    rng: &mut Rng,
) -> Conv2d {
    let attrs = ConvAttrs { groups, ..ConvAttrs::new(stride, kernel / 2) };
    let shape = Conv2d::weight_shape(channels, kernel, attrs);
    Conv2d::with_weight(init::kaiming_normal(&shape, Fan::Out, rng), attrs)
}

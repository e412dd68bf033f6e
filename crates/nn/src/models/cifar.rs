use ottava_autograd::{Result, Var};
use ottava_tensor::conv::ConvAttrs;

use super::block::{projection, residual};
use super::{BasicBlock, ModelConfig};
use crate::init::{self, Fan, Rng};
use crate::layers::{BatchNorm2d, Conv2d, Linear, Pad, Sequential, Slice};
use crate::{Module, module};

/// What stands in for the identity where a block changes the image's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Every second row and column, and zero channels on both sides: no parameters ("option A").
    Pad,
    /// A strided 1×1 convolution with BatchNorm ("option B").
    Project,
}

impl Shortcut {
    fn build(self, channels: [usize; 2], stride: usize, rng: &mut Rng) -> Option<Sequential> {
        match self {
            Self::Pad => (channels[0] != channels[1]).then(|| pad(channels, stride)),
            Self::Project => projection(channels, stride, rng),
        }
    }
}

/// A residual network of `6 · blocks + 2` layers for images of about 32×32 pixels.
///
/// Where a stage halves the image, the shortcut is what [`Shortcut`] says.
///
/// # Shapes
/// `[n, in_channels, h, w]` → `[n, classes]`.
///
/// # Source
/// He et al. 2015, arXiv:1512.03385, section 4.2; names as in Y. Idelbayev's
/// `pytorch_resnet_cifar10`. Files that say `shortcut` for `downsample` or `fc` for `linear` load too.
pub struct ResNetCifar {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    layer1: Sequential,
    layer2: Sequential,
    layer3: Sequential,
    linear: Linear,
}

module!(ResNetCifar { conv1, bn1, layer1, layer2, layer3, linear });

impl ResNetCifar {
    /// A network of three stages with so many blocks each.
    pub fn new(blocks: usize, shortcut: Shortcut, config: &ModelConfig, rng: &mut Rng) -> Self {
        let conv1 = conv([config.in_channels, 16], 1, rng);
        let mut channels = 16;
        let mut stage = |width: usize, stride: usize| {
            (0..blocks).fold(Sequential::new(), |stage, i| {
                let stride = if i == 0 { stride } else { 1 };
                let block = BasicBlock {
                    conv1: conv([channels, width], stride, rng),
                    bn1: BatchNorm2d::new(width),
                    conv2: conv([width, width], 1, rng),
                    bn2: BatchNorm2d::new(width),
                    downsample: shortcut.build([channels, width], stride, rng),
                };
                channels = width;
                stage.then(residual(block, |block| &block.bn2, config))
            })
        };
        let [layer1, layer2, layer3] = [stage(16, 1), stage(32, 2), stage(64, 2)];
        let linear = Linear::new(64, config.classes, rng);
        linear.weight.set(init::kaiming_normal(&[config.classes, 64], Fan::In, rng));
        Self { conv1, bn1: BatchNorm2d::new(16), layer1, layer2, layer3, linear }
    }
}

impl Module for ResNetCifar {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let x = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        let x = [&self.layer1, &self.layer2, &self.layer3]
            .into_iter()
            .try_fold(x, |x, stage| stage.forward(x))?;
        self.linear.forward(x.global_avg_pool()?.flatten()?)
    }
}

fn conv(channels: [usize; 2], stride: usize, rng: &mut Rng) -> Conv2d {
    let attrs = ConvAttrs::new(stride, 1);
    let shape = Conv2d::weight_shape(channels, 3, attrs);
    Conv2d::with_weight(init::kaiming_normal(&shape, Fan::In, rng), attrs)
}

/// `pad(x[:, :, ::stride, ::stride])`, the new channels half before and half after the old ones.
fn pad(channels: [usize; 2], stride: usize) -> Sequential {
    let [input, output] = channels;
    let every = |axis| Slice { axis, start: 0, end: usize::MAX, step: stride };
    let side = (output - input) / 2;
    Sequential::new().then(every(2)).then(every(3)).then(Pad { axis: 1, before: side, after: side })
}

use ottava_autograd::{Error, Result, Var};
use ottava_tensor::conv::ConvAttrs;

use super::block::residual;
use super::{BasicBlock, ModelConfig};
use crate::init::{self, Fan, Rng};
use crate::layers::{BatchNorm2d, Conv2d, Linear, Sequential};
use crate::{Module, module};

/// The image classifier of MLPerf Tiny: one residual block a stage.
///
/// As in its TensorFlow original, convolutions have biases, strided ones are padded at the bottom and
/// right only, `eps` is 1e-3, and the shortcuts' convolutions have no BatchNorm.
///
/// # Shapes
/// `[n, in_channels, h, w]`, `h` and `w` divisible by 4, of raw pixel values 0 to 255 for the published weights → `[n, classes]`.
///
/// # Source
/// Banbury et al. 2021, arXiv:2106.07597; `mlcommons/tiny`, image classification.
pub struct ResNet8 {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    layer1: Sequential,
    layer2: Sequential,
    layer3: Sequential,
    fc: Linear,
}

module!(ResNet8 { conv1, bn1, layer1, layer2, layer3, fc });

impl ResNet8 {
    /// The network.
    pub fn new(config: &ModelConfig, rng: &mut Rng) -> Self {
        let mut stage = |channels: [usize; 2], stride: usize| {
            let [input, output] = channels;
            let block = BasicBlock {
                conv1: conv([input, output], 3, stride, rng),
                bn1: norm(output),
                conv2: conv([output, output], 3, 1, rng),
                bn2: norm(output),
                downsample: (stride != 1)
                    .then(|| Sequential::new().then(conv([input, output], 1, stride, rng))),
            };
            Sequential::new().then(residual(block, |block| &block.bn2, config))
        };
        let (layer1, layer2, layer3) = (stage([16, 16], 1), stage([16, 32], 2), stage([32, 64], 2));
        Self {
            conv1: conv([config.in_channels, 16], 3, 1, rng),
            bn1: norm(16),
            layer1,
            layer2,
            layer3,
            fc: Linear::new(64, config.classes, rng),
        }
    }
}

impl Module for ResNet8 {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        // Its padding makes a block and its shortcut agree on even sizes alone; others could broadcast.
        if let [.., h, w] = x.shape()[..]
            && (h % 4 != 0 || w % 4 != 0)
        {
            let reason = format!(
                "its images have heights and widths that 4 divides, not {h}×{w}; resize or crop them"
            );
            return Err(Error::Op { op: "resnet8", reason });
        }
        let x = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        let x = [&self.layer1, &self.layer2, &self.layer3]
            .into_iter()
            .try_fold(x, |x, stage| stage.forward(x))?;
        self.fc.forward(x.global_avg_pool()?.flatten()?)
    }
}

/// A convolution with a bias and TensorFlow's "same" padding for images of even size.
fn conv(channels: [usize; 2], kernel: usize, stride: usize, rng: &mut Rng) -> Conv2d {
    // kernel − stride zeros in all; an odd one goes to the end.
    let zeros = kernel.saturating_sub(stride);
    let (before, after) = (zeros / 2, zeros - zeros / 2);
    let padding = [before, before, after, after];
    let attrs = ConvAttrs { stride: [stride; 2], padding, ..ConvAttrs::default() };
    let shape = Conv2d::weight_shape(channels, kernel, attrs);
    Conv2d::with_weight(init::kaiming_normal(&shape, Fan::In, rng), attrs).with_bias(rng)
}

fn norm(channels: usize) -> BatchNorm2d {
    BatchNorm2d::new(channels).with_eps(1e-3)
}

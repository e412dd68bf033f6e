use ottava_autograd::{Result, Var};

use super::block::{conv, residual};
use super::{BasicBlock, Block, Bottleneck, ModelConfig};
use crate::init::Rng;
use crate::layers::{BatchNorm2d, Conv2d, Linear, MaxPool2d, Sequential};
use crate::{Module, module};

/// How a [`ResNet`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stem {
    /// A 7×7 convolution and a max-pooling, each halving the image: for about 224×224 pixels.
    Large,
    /// A 3×3 convolution that keeps the size: for about 32×32 pixels.
    Small,
}

/// A residual network of four stages, for images of about 224×224 pixels or, with [`Stem::Small`],
/// of about 32×32.
///
/// # Shapes
/// `[n, in_channels, h, w]` → `[n, classes]`.
///
/// # Source
/// He et al. 2015, arXiv:1512.03385; torchvision `ResNet`: its names, shapes and initial weights.
/// With the small stem, K. Liu's `pytorch-cifar`, whose `shortcut` and `linear` are torchvision's
/// `downsample` and `fc`.
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    pool: Option<MaxPool2d>,
    layer1: Sequential,
    layer2: Sequential,
    layer3: Sequential,
    layer4: Sequential,
    fc: Linear,
}

module!(ResNet { conv1, bn1, layer1, layer2, layer3, layer4, fc });

impl ResNet {
    /// A network of four stages with so many blocks each.
    pub fn new(
        stem: Stem,
        block: Block,
        blocks: [usize; 4],
        config: &ModelConfig,
        rng: &mut Rng,
    ) -> Self {
        let (kernel, stride, pool) = match stem {
            Stem::Large => {
                let pool = MaxPool2d { kernel: [3, 3], stride: [2, 2], padding: [1; 4] };
                (7, 2, Some(pool))
            }
            Stem::Small => (3, 1, None),
        };
        let conv1 = conv([config.in_channels, 64], kernel, stride, rng);
        let mut channels = 64;
        let mut stage = |width: usize, blocks: usize, stride: usize| {
            (0..blocks).fold(Sequential::new(), |stage, i| {
                let (shape, stride) = ([channels, width], if i == 0 { stride } else { 1 });
                channels = width * block.expansion();
                match block {
                    Block::Basic => {
                        let block = BasicBlock::new(shape, stride, rng);
                        stage.then(residual(block, |block| &block.bn2, config))
                    }
                    Block::Bottleneck => {
                        let block = Bottleneck::new(shape, stride, rng);
                        stage.then(residual(block, |block| &block.bn3, config))
                    }
                }
            })
        };
        let [layer1, layer2, layer3, layer4] = [
            stage(64, blocks[0], 1),
            stage(128, blocks[1], 2),
            stage(256, blocks[2], 2),
            stage(512, blocks[3], 2),
        ];
        let fc = Linear::new(512 * block.expansion(), config.classes, rng);
        Self { conv1, bn1: BatchNorm2d::new(64), pool, layer1, layer2, layer3, layer4, fc }
    }
}

impl Module for ResNet {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let x = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        let x = self.pool.map_or(Ok(x), |pool| x.max_pool2d(pool))?;
        let x = [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
            .into_iter()
            .try_fold(x, |x, stage| stage.forward(x))?;
        self.fc.forward(x.global_avg_pool()?.flatten()?)
    }
}

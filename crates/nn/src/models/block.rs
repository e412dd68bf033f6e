use ottava_autograd::{Result, Var};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

use super::ModelConfig;
use crate::init::{self, Fan, Rng};
use crate::layers::{BatchNorm2d, Conv2d, Sequential};
use crate::{Module, module};

/// The two blocks that residual networks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// [`BasicBlock`].
    Basic,
    /// [`Bottleneck`].
    Bottleneck,
}

impl Block {
    /// How many times wider a block's output is than its 3×3 convolution.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// `relu(bn2(conv2(relu(bn1(conv1(x))))) + downsample(x))`: two 3×3 convolutions beside a shortcut.
///
/// # Source
/// He et al. 2015, arXiv:1512.03385; torchvision `BasicBlock`.
pub struct BasicBlock {
    pub(super) conv1: Conv2d,
    pub(super) bn1: BatchNorm2d,
    pub(super) conv2: Conv2d,
    pub(super) bn2: BatchNorm2d,
    pub(super) downsample: Option<Sequential>,
}

module!(BasicBlock { conv1, bn1, conv2, bn2, downsample });

impl BasicBlock {
    /// A block of `[in, out]` channels whose first convolution has this stride; the shortcut is the
    /// identity where that fits, a strided 1×1 convolution with BatchNorm elsewhere.
    pub fn new(channels: [usize; 2], stride: usize, rng: &mut Rng) -> Self {
        let [input, output] = channels;
        Self {
            conv1: conv([input, output], 3, stride, rng),
            bn1: BatchNorm2d::new(output),
            conv2: conv([output, output], 3, 1, rng),
            bn2: BatchNorm2d::new(output),
            downsample: projection([input, output], stride, rng),
        }
    }
}

impl Module for BasicBlock {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let y = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        let y = self.bn2.forward(self.conv2.forward(y)?)?;
        y.add(shortcut(&self.downsample, x)?)?.relu()
    }
}

/// 1×1, 3×3 and 1×1 convolutions beside a shortcut; the stride is in the 3×3 ("ResNet v1.5").
///
/// # Source
/// He et al. 2015, arXiv:1512.03385; torchvision `Bottleneck`.
pub struct Bottleneck {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    conv3: Conv2d,
    pub(super) bn3: BatchNorm2d,
    downsample: Option<Sequential>,
}

module!(Bottleneck { conv1, bn1, conv2, bn2, conv3, bn3, downsample });

impl Bottleneck {
    /// A block of `[in, width]` channels and `4 · width` channels of output.
    pub fn new(channels: [usize; 2], stride: usize, rng: &mut Rng) -> Self {
        let [input, width] = channels;
        let output = width * Block::Bottleneck.expansion();
        Self {
            conv1: conv([input, width], 1, 1, rng),
            bn1: BatchNorm2d::new(width),
            conv2: conv([width, width], 3, stride, rng),
            bn2: BatchNorm2d::new(width),
            conv3: conv([width, output], 1, 1, rng),
            bn3: BatchNorm2d::new(output),
            downsample: projection([input, output], stride, rng),
        }
    }
}

impl Module for Bottleneck {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let y = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        let y = self.bn2.forward(self.conv2.forward(y)?)?.relu()?;
        let y = self.bn3.forward(self.conv3.forward(y)?)?;
        y.add(shortcut(&self.downsample, x)?)?.relu()
    }
}

fn shortcut<'t>(downsample: &Option<Sequential>, x: Var<'t>) -> Result<Var<'t>> {
    downsample.as_ref().map_or(Ok(x), |downsample| downsample.forward(x))
}

/// A convolution padded to keep the size, initialised as torchvision's ResNets are.
pub(super) fn conv(channels: [usize; 2], kernel: usize, stride: usize, rng: &mut Rng) -> Conv2d {
    let attrs = ConvAttrs::new(stride, kernel / 2);
    let shape = Conv2d::weight_shape(channels, kernel, attrs);
    Conv2d::with_weight(init::kaiming_normal(&shape, Fan::Out, rng), attrs)
}

/// The block, its residual branch starting at zero if the configuration asks for that.
pub(super) fn residual<B>(block: B, last: impl Fn(&B) -> &BatchNorm2d, config: &ModelConfig) -> B {
    if config.zero_init_residual {
        let weight = &last(&block).weight;
        weight.set(Tensor::zeros(weight.get().shape()));
    }
    block
}

/// A strided 1×1 convolution with BatchNorm, where the identity does not fit.
pub(super) fn projection(channels: [usize; 2], stride: usize, rng: &mut Rng) -> Option<Sequential> {
    let [input, output] = channels;
    (stride != 1 || input != output).then(|| {
        Sequential::new().then(conv(channels, 1, stride, rng)).then(BatchNorm2d::new(output))
    })
}

//! Networks by name, with the parameter names and shapes of the files people have weights in.

mod block;
mod cifar;
mod mobilenet;
pub(crate) mod names;
mod resnet;
mod tiny;

use std::fmt;
use std::str::FromStr;

pub use block::{BasicBlock, Block, Bottleneck};
pub use cifar::{ResNetCifar, Shortcut};
pub use mobilenet::MobileNetV2;
pub use resnet::{ResNet, Stem};
pub use tiny::ResNet8;

use crate::{Error, Module, Result, init};

/// What a network is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Classes to tell apart.
    pub classes: usize,
    /// Channels of an image: 3 for colour, 1 for grey.
    pub in_channels: usize,
    /// What the initial weights depend on.
    pub seed: u64,
    /// Starts the last BatchNorm of each residual branch at zero, so that blocks begin as the
    /// identity (Goyal et al. 2017, arXiv:1706.02677).
    pub zero_init_residual: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { classes: 10, in_channels: 3, seed: 0, zero_init_residual: false }
    }
}

/// More classes or channels than this are a mistake, not a task.
const MAX_WIDTH: usize = 1 << 20;

impl ModelConfig {
    fn check(&self) -> Result<()> {
        for (what, value) in [("classes", self.classes), ("input channels", self.in_channels)] {
            if !(1..=MAX_WIDTH).contains(&value) {
                let reason = format!("a network of {value} {what}; needs 1 to {MAX_WIDTH}");
                return Err(Error::Config { reason });
            }
        }
        Ok(())
    }
}

macro_rules! architectures {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $input:literal, $features:literal: $build:expr;)*) => {
        /// The networks there are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Architecture {
            $($(#[$doc])* $variant),*
        }

        impl Architecture {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name, as on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),*
                }
            }

            /// Height and width of the images it was designed for; others work (of ResNet-8 those that 4
            /// divides).
            pub fn input_size(self) -> usize {
                match self {
                    $(Self::$variant => $input),*
                }
            }

            /// How many numbers of an image the classifier reads.
            pub fn features(self) -> usize {
                match self {
                    $(Self::$variant => $features),*
                }
            }

            /// The network, with the weights of `config.seed`.
            ///
            /// # Errors
            /// [`Error::Config`] for no classes or channels, or absurdly many.
            pub fn build(self, config: &ModelConfig) -> Result<Box<dyn Module>> {
                config.check()?;
                let rng = &mut init::rng(config.seed);
                Ok(match self {
                    $(Self::$variant => Box::new($build(config, rng))),*
                })
            }
        }
    };
}

architectures! {
    /// 18 layers of [`BasicBlock`]s, torchvision's.
    ResNet18 = "resnet18", 224, 512: |config, rng| ResNet::new(Stem::Large, Block::Basic, [2, 2, 2, 2], config, rng);
    /// 34 layers of [`BasicBlock`]s, torchvision's.
    ResNet34 = "resnet34", 224, 512: |config, rng| ResNet::new(Stem::Large, Block::Basic, [3, 4, 6, 3], config, rng);
    /// 50 layers of [`Bottleneck`]s, torchvision's.
    ResNet50 = "resnet50", 224, 2048: |config, rng| ResNet::new(Stem::Large, Block::Bottleneck, [3, 4, 6, 3], config, rng);
    /// 101 layers of [`Bottleneck`]s, torchvision's.
    ResNet101 = "resnet101", 224, 2048: |config, rng| ResNet::new(Stem::Large, Block::Bottleneck, [3, 4, 23, 3], config, rng);
    /// 152 layers of [`Bottleneck`]s, torchvision's.
    ResNet152 = "resnet152", 224, 2048: |config, rng| ResNet::new(Stem::Large, Block::Bottleneck, [3, 8, 36, 3], config, rng);
    /// The 20 layers of He et al. 2015, section 4.2, for CIFAR.
    ResNet20 = "resnet20", 32, 64: |config, rng| ResNetCifar::new(3, Shortcut::Pad, config, rng);
    /// The same with 32 layers.
    ResNet32 = "resnet32", 32, 64: |config, rng| ResNetCifar::new(5, Shortcut::Pad, config, rng);
    /// The same with 44 layers.
    ResNet44 = "resnet44", 32, 64: |config, rng| ResNetCifar::new(7, Shortcut::Pad, config, rng);
    /// The same with 56 layers.
    ResNet56 = "resnet56", 32, 64: |config, rng| ResNetCifar::new(9, Shortcut::Pad, config, rng);
    /// [`ResNet20`](Self::ResNet20) with projections as shortcuts ("option B").
    ResNet20B = "resnet20b", 32, 64: |config, rng| ResNetCifar::new(3, Shortcut::Project, config, rng);
    /// The same with 32 layers.
    ResNet32B = "resnet32b", 32, 64: |config, rng| ResNetCifar::new(5, Shortcut::Project, config, rng);
    /// The same with 44 layers.
    ResNet44B = "resnet44b", 32, 64: |config, rng| ResNetCifar::new(7, Shortcut::Project, config, rng);
    /// The same with 56 layers.
    ResNet56B = "resnet56b", 32, 64: |config, rng| ResNetCifar::new(9, Shortcut::Project, config, rng);
    /// [`ResNet18`](Self::ResNet18) with [`Stem::Small`].
    ResNet18Cifar = "resnet18_cifar", 32, 512: |config, rng| ResNet::new(Stem::Small, Block::Basic, [2, 2, 2, 2], config, rng);
    /// [`ResNet34`](Self::ResNet34) with [`Stem::Small`].
    ResNet34Cifar = "resnet34_cifar", 32, 512: |config, rng| ResNet::new(Stem::Small, Block::Basic, [3, 4, 6, 3], config, rng);
    /// [`ResNet50`](Self::ResNet50) with [`Stem::Small`].
    ResNet50Cifar = "resnet50_cifar", 32, 2048: |config, rng| ResNet::new(Stem::Small, Block::Bottleneck, [3, 4, 6, 3], config, rng);
    /// The image classifier of MLPerf Tiny.
    ResNet8 = "resnet8", 32, 64: ResNet8::new;
    /// Inverted residuals, torchvision's.
    MobileNetV2 = "mobilenet_v2", 224, 1280: MobileNetV2::new;
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|model| model.name() == name).ok_or_else(|| Error::Unknown {
            what: "model",
            name: name.into(),
            known: Self::ALL.iter().map(|model| model.name()).collect(),
        })
    }
}

/// The network called `name`.
///
/// ```
/// use ottava_nn::Network as _;
/// use ottava_nn::models::{ModelConfig, build};
///
/// let model = build("resnet20", &ModelConfig::default())?;
/// assert_eq!(model.parameter_count(), 269_722);
/// assert!(build("resnet21", &ModelConfig::default()).is_err());
/// # Ok::<(), ottava_nn::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unknown`], listing the names there are; [`Error::Config`].
pub fn build(name: &str, config: &ModelConfig) -> Result<Box<dyn Module>> {
    name.parse::<Architecture>()?.build(config)
}

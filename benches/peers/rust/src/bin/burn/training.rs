use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use ottava_peers::{Files, Model};

use crate::floats;
use crate::inference::shortcut;

/// One training step: forward, cross-entropy, backward, SGD with momentum.
pub fn load(files: &Files, device: &Device) -> Result<Box<dyn Model>> {
    let device = device.clone().autodiff();
    let network = ResNet::new(&files.model, &device)?;
    let side = if files.model == "resnet18" { 224 } else { 32 };
    let images = Tensor::random([files.batch, 3, side, side], Distribution::Default, &device);
    let targets: Vec<i64> = (0..files.batch as i64).map(|i| i % 10).collect();
    let targets = Tensor::from_data(TensorData::new(targets, [files.batch]), &device);
    let optimizer = SgdConfig::new()
        .with_weight_decay(Some(WeightDecayConfig::new(1e-4)))
        .with_momentum(Some(MomentumConfig::new().with_dampening(0.0)))
        .init();
    Ok(Box::new(Training { network: Some(network), optimizer, images, targets, device }))
}

#[derive(Module, Debug)]
struct Norm {
    conv: Conv2d,
    bn: BatchNorm,
}

impl Norm {
    fn new(channels: [usize; 2], k: usize, stride: usize, device: &Device) -> Self {
        let pad = k / 2;
        let conv = Conv2dConfig::new(channels, [k; 2])
            .with_stride([stride; 2])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(false)
            .init(device);
        Self { conv, bn: BatchNormConfig::new(channels[1]).init(device) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.bn.forward(self.conv.forward(x))
    }
}

#[derive(Module, Debug)]
struct Block {
    first: Norm,
    second: Norm,
    /// A 1×1 convolution where the shape changes; ResNet-20 pads with zeros instead.
    projection: Option<Norm>,
    /// Channels to pad with on either side; the stride is two then.
    side: usize,
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.second.forward(relu(self.first.forward(x.clone())));
        let x = match &self.projection {
            Some(projection) => projection.forward(x),
            None if self.side > 0 => shortcut(x, self.side),
            None => x,
        };
        relu(y + x)
    }
}

#[derive(Module, Debug)]
struct ResNet {
    stem: Norm,
    pool: Option<MaxPool2d>,
    blocks: Vec<Block>,
    fc: Linear,
}

impl ResNet {
    fn new(name: &str, device: &Device) -> Result<Self> {
        let (widths, depth, projects, classes): (&[usize], _, _, _) = match name {
            "resnet20" => (&[16, 32, 64], 3, false, 10),
            "cifar-resnet18" => (&[64, 128, 256, 512], 2, true, 10),
            "resnet18" => (&[64, 128, 256, 512], 2, true, 1000),
            name => bail!("no training step for {name}"),
        };
        let large = name == "resnet18";
        let stem = if large { (7, 2) } else { (3, 1) };
        let pool = MaxPool2dConfig::new([3, 3])
            .with_strides([2, 2])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
        let (mut blocks, mut channels) = (vec![], widths[0]);
        for (stage, &width) in widths.iter().enumerate() {
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let changes = channels != width;
                blocks.push(Block {
                    first: Norm::new([channels, width], 3, stride, device),
                    second: Norm::new([width, width], 3, 1, device),
                    projection: (changes && projects)
                        .then(|| Norm::new([channels, width], 1, stride, device)),
                    side: if projects { 0 } else { (width - channels) / 2 },
                });
                channels = width;
            }
        }
        Ok(Self {
            stem: Norm::new([3, widths[0]], stem.0, stem.1, device),
            pool: large.then(|| pool.init()),
            blocks,
            fc: LinearConfig::new(channels, classes).init(device),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = relu(self.stem.forward(x));
        let x = self.pool.iter().fold(x, |x, pool| pool.forward(x));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let [n, c, ..] = x.dims();
        self.fc.forward(x.mean_dim(3).mean_dim(2).reshape([n, c]))
    }
}

struct Training {
    network: Option<ResNet>,
    optimizer: ModuleOptimizer,
    images: Tensor<4>,
    targets: Tensor<1, Int>,
    device: Device,
}

impl Model for Training {
    fn setting(&self) -> String {
        "flex, autodiff".into()
    }

    fn run(&mut self) -> Result<()> {
        let network = self.network.take().context("a step failed before")?;
        let loss = CrossEntropyLossConfig::new().init(&self.device);
        let loss = loss.forward(network.forward(self.images.clone()), self.targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        self.network = Some(self.optimizer.step(0.1, network, gradients));
        ensure!(floats(loss)?[0].is_finite(), "the loss is not finite");
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
}

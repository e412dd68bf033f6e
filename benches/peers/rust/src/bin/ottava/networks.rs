use std::path::Path;

use anyhow::Result;
use ottava_autograd::{Result as TapeResult, Var};
use ottava_interop::read_safetensors;
use ottava_nn::layers::{BatchNorm2d, Conv2d, Linear, Relu, Sequential};
use ottava_nn::models::{self, BasicBlock, ModelConfig};
use ottava_nn::{Module, Network as _, init, module};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// A network by name, with the weights of its seed.
pub fn build(name: &str) -> Result<Box<dyn Module>> {
    let classes = if name == "resnet18" { 1000 } else { 10 };
    Ok(match name {
        "cifar-resnet18" => Box::new(CifarResNet18::new(classes)),
        name => models::build(name, &ModelConfig { classes, ..Default::default() })?,
    })
}

/// A network by name, or the convolutions that a file holds, each with a ReLU; with its weights.
pub fn read(name: &str, weights: &Path) -> Result<Box<dyn Module>> {
    let state: Vec<(String, Tensor<f32>)> =
        read_safetensors(weights)?.iter().map(|(name, t)| (name.to_owned(), t.clone())).collect();
    let network = if name.starts_with("conv-") {
        Box::new(chain(&state)?) as Box<dyn Module>
    } else {
        build(name)?
    };
    network.load_state_dict(state)?;
    Ok(network)
}

fn chain(state: &[(String, Tensor<f32>)]) -> Result<Sequential> {
    let weights = state.iter().filter(|(name, _)| name.ends_with("weight"));
    let rng = &mut init::rng(0);
    Ok(weights.fold(Sequential::new(), |chain, (_, weight)| {
        let conv = Conv2d::with_weight(weight.clone(), ConvAttrs::new(1, 1));
        chain.then(conv.with_bias(rng)).then(Relu)
    }))
}

/// ResNet-18 as CIFAR uses it: a 3×3 stem without stride, no max-pooling.
struct CifarResNet18 {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    blocks: Sequential,
    fc: Linear,
}

module!(CifarResNet18 { conv1, bn1, blocks, fc });

impl CifarResNet18 {
    fn new(classes: usize) -> Self {
        let rng = &mut init::rng(0);
        let conv1 = Conv2d::new([3, 64], 3, ConvAttrs::new(1, 1), rng);
        let (mut blocks, mut channels) = (Sequential::new(), 64);
        for (stage, width) in [64, 128, 256, 512].into_iter().enumerate() {
            for block in 0..2 {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                blocks = blocks.then(BasicBlock::new([channels, width], stride, rng));
                channels = width;
            }
        }
        Self { conv1, bn1: BatchNorm2d::new(64), blocks, fc: Linear::new(512, classes, rng) }
    }
}

impl Module for CifarResNet18 {
    fn forward<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>> {
        let x = self.bn1.forward(self.conv1.forward(x)?)?.relu()?;
        self.fc.forward(self.blocks.forward(x)?.global_avg_pool()?.flatten()?)
    }
}

use std::path::Path;

use anyhow::Result;
use ottava_interop::read_safetensors;
use ottava_nn::layers::{Conv2d, Relu, Sequential};
use ottava_nn::models::{self, ModelConfig};
use ottava_nn::{Module, Network as _, init};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// A network by name, with the weights of its seed.
pub fn build(name: &str) -> Result<Box<dyn Module>> {
    let classes = if name == "resnet18" { 1000 } else { 10 };
    let ours = if name == "cifar-resnet18" { "resnet18_cifar" } else { name };
    Ok(models::build(ours, &ModelConfig { classes, ..Default::default() })?)
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

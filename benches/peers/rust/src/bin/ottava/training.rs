use anyhow::{Result, ensure};
use ottava_autograd::{Mode, Tape};
use ottava_nn::optim::{self, Optimizer, OptimizerConfig, OptimizerKind};
use ottava_nn::qat::{QConfigMap, prepare};
use ottava_nn::{self as nn, Module, Network, init};
use ottava_peers::{Files, Model};
use ottava_tensor::{Level, Tensor};

use crate::networks;

/// One training step: forward, cross-entropy, backward, SGD with momentum.
pub fn load(files: &Files) -> Result<Box<dyn Model>> {
    let module: Box<dyn Module> = networks::build(&files.model)?;
    let quantized = files.precision == "qat";
    let side = if files.model == "resnet18" { 224 } else { 32 };
    let graph = nn::trace(&*module, &Tensor::zeros(&[1, 3, side, side]))?;
    let network: Box<dyn Network> = Box::new(match quantized {
        true => prepare(&graph, &QConfigMap::default())?.graph,
        false => graph,
    });
    let config = OptimizerConfig::new(OptimizerKind::Sgd, 1e-4);
    let optimizer = config.build(network.parameters(), optim::all)?;
    let shape = [files.batch, 3, side, side];
    let images = init::normal(&shape, 1.0, &mut init::rng(1)).channels_last();
    let targets = (0..files.batch).map(|i| i % 10).collect();
    Ok(Box::new(Training { network, optimizer, images, targets, quantized }))
}

struct Training {
    network: Box<dyn Network>,
    optimizer: Box<dyn Optimizer>,
    images: Tensor<f32>,
    targets: Vec<usize>,
    quantized: bool,
}

impl Model for Training {
    fn setting(&self) -> String {
        let forward = if self.quantized { "integer forward" } else { "f32" };
        format!("{forward}, {}", Level::current().name())
    }

    fn run(&mut self) -> Result<()> {
        let gradients = {
            let tape = Tape::new(Mode::TRAIN);
            let logits = self.network.run(tape.input(self.images.clone()))?;
            let loss = logits.cross_entropy(&self.targets, 0.0)?;
            ensure!(loss.tensor().item()?.is_finite(), "the loss is not finite");
            loss.backward()?
        };
        Ok(self.optimizer.step(&gradients, 0.1)?)
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
}

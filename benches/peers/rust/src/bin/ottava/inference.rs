use anyhow::Result;
use ottava_autograd::ops::ActivationQuant;
use ottava_autograd::{Mode, Observer, Tape};
use ottava_nn::qat::{QConfig, QConfigMap, convert, prepare};
use ottava_nn::{self as nn, Module};
use ottava_peers::{Files, Model};
use ottava_quant::{Engine, Program, Workspace};
use ottava_tensor::{Level, Tensor};

use crate::networks;

/// The network of a workload. An integer network is quantized once and kept in a file, so that a
/// process that only runs it holds nothing else.
pub fn load(files: &Files) -> Result<Box<dyn Model>> {
    let inputs = images(files, "inputs")?;
    if files.precision == "f32" {
        let network = networks::read(&files.model, &files.path("safetensors"))?;
        return Ok(Box::new(Float { network, inputs }));
    }
    let path = files.path("ottava");
    if !path.exists() {
        quantize(files)?.save(&path)?;
    }
    let engine = Engine::new(&Program::load(&path)?)?;
    let outputs = engine.output_shape().iter().product::<usize>() * files.batch;
    let (workspace, output) = (Workspace::default(), vec![0.0; outputs]);
    Ok(Box::new(Integer { engine, workspace, inputs, output }))
}

/// Post-training quantization: per-channel weights, the extremes of the calibration images.
fn quantize(files: &Files) -> Result<Program> {
    let network = networks::read(&files.model, &files.path("safetensors"))?;
    let images = images(files, "calibration")?;
    let observer = Observer::MinMax;
    let activation = ActivationQuant { observer, ..ActivationQuant::default() };
    let config = QConfigMap::new(QConfig { activation, ..QConfig::default() });
    let mut shape = images[0].shape().to_vec();
    shape[0] = 1;
    let graph = prepare(&nn::trace(&*network, &Tensor::zeros(&shape))?, &config)?.graph;
    for batch in images {
        graph.run(Tape::no_grad(Mode::CALIBRATE).input(batch))?;
    }
    Ok(convert(&graph)?)
}

/// Channels-last, as an image decoder leaves them and as the other engines take them at their best.
fn images(files: &Files, kind: &str) -> Result<Vec<Tensor<f32>>> {
    let shape = files.input_shape()?;
    let tensor = |x| Ok(Tensor::new(&shape, x)?.channels_last());
    files.batches(kind)?.into_iter().map(tensor).collect()
}

struct Float {
    network: Box<dyn Module>,
    inputs: Vec<Tensor<f32>>,
}

impl Model for Float {
    fn setting(&self) -> String {
        format!("evaluation on a tape without gradients, {}", Level::current().name())
    }

    fn run(&mut self) -> Result<()> {
        nn::predict(&*self.network, Mode::EVAL, self.inputs[0].clone())?;
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            all.extend(nn::predict(&*self.network, Mode::EVAL, input.clone())?.to_vec());
        }
        Ok(all)
    }
}

struct Integer {
    engine: Engine,
    workspace: Workspace,
    inputs: Vec<Tensor<f32>>,
    output: Vec<f32>,
}

impl Model for Integer {
    fn setting(&self) -> String {
        format!("integer program, {}", self.engine.level().name())
    }

    fn run(&mut self) -> Result<()> {
        Ok(self.engine.run_into(&self.inputs[0], &mut self.output, &mut self.workspace)?)
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            all.extend(self.engine.run(input, &mut self.workspace)?.to_vec());
        }
        Ok(all)
    }
}

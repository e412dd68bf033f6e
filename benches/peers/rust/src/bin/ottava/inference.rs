use std::path::Path;

use anyhow::Result;
use ottava_autograd::ops::ActivationQuant;
use ottava_autograd::{Graph, Mode, Observer, Tape};
use ottava_nn::qat::{QConfig, QConfigMap, convert, fold_norms, prepare};
use ottava_nn as nn;
use ottava_peers::{Files, Model};
use ottava_quant::{Engine, Program, Workspace};
use ottava_tensor::Tensor;

use crate::networks;

/// The network of a workload. An integer network is quantized once by each build and kept in a file, so
/// that a process that only runs it holds nothing else.
pub fn load(files: &Files) -> Result<Box<dyn Model>> {
    let inputs = images(files, "inputs")?;
    let float = files.precision == "f32";
    let program = if float {
        convert(&fold_norms(&graph(files)?)?)?
    } else {
        let path = files.path("ottava");
        if older(&path, &std::env::current_exe()?) {
            quantize(files)?.save(&path)?;
        }
        Program::load(&path)?
    };
    let engine = Engine::new(&program)?;
    let outputs = engine.output_shape().iter().product::<usize>() * files.batch;
    let (workspace, output) = (Workspace::default(), vec![0.0; outputs]);
    let kind = if float { "float" } else { "integer" };
    Ok(Box::new(Deployed { kind, engine, workspace, inputs, output }))
}

/// Whether a file is not there, or from before another.
fn older(file: &Path, than: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    modified(file).is_none_or(|file| Some(file) < modified(than))
}

/// The network in floats.
fn graph(files: &Files) -> Result<Graph> {
    let network = networks::read(&files.model, &files.path("safetensors"))?;
    let mut shape = files.input_shape()?.to_vec();
    shape[0] = 1;
    Ok(nn::trace(&*network, &Tensor::zeros(&shape))?)
}

/// Post-training quantization: per-channel weights, the extremes of the calibration images.
fn quantize(files: &Files) -> Result<Program> {
    let images = images(files, "calibration")?;
    let observer = Observer::MinMax;
    let activation = ActivationQuant { observer, ..ActivationQuant::default() };
    let config = QConfigMap::new(QConfig { activation, ..QConfig::default() });
    let graph = prepare(&graph(files)?, &config)?.graph;
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

struct Deployed {
    kind: &'static str,
    engine: Engine,
    workspace: Workspace,
    inputs: Vec<Tensor<f32>>,
    output: Vec<f32>,
}

impl Model for Deployed {
    fn setting(&self) -> String {
        format!("{} program, {}", self.kind, self.engine.level().name())
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

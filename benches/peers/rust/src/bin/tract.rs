//! tract: `into_optimized`, with its multithread executor where there is more than one thread.

use std::sync::Arc;

use anyhow::{Result, bail};
use ottava_peers::{Files, Kind, Model, serve};
use tract_onnx::prelude::*;

struct Tract {
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<TValue>,
}

impl Model for Tract {
    fn setting(&self) -> String {
        "into_optimized".into()
    }

    fn run(&mut self) -> Result<()> {
        self.plan.run(tvec!(self.inputs[0].clone()))?;
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            let y = self.plan.run(tvec!(input.clone()))?;
            let y = y[0].cast_to::<f32>()?;
            all.extend(y.to_plain_array_view::<f32>()?.iter());
        }
        Ok(all)
    }
}

fn load(files: &Files, threads: usize) -> Result<Box<dyn Model>> {
    let (path, inputs): (_, Vec<TValue>) = match files.kind {
        Kind::Training => bail!("tract does not train"),
        Kind::Gemm => {
            let [m, _, k] = files.mnk;
            let a = match files.precision.as_str() {
                "f32" => Tensor::from_shape(&[m, k], &files.floats("a.f32")?)?,
                _ => Tensor::from_shape(&[m, k], &files.bytes("a.u8")?)?,
            };
            (files.path(&format!("{}.onnx", files.precision)), vec![a.into()])
        }
        Kind::Network => {
            let shape = files.input_shape()?;
            let tensor = |x: Vec<f32>| Ok(Tensor::from_shape(&shape, &x)?.into());
            (files.onnx(), files.batches("inputs")?.into_iter().map(tensor).collect::<Result<_>>()?)
        }
    };
    if threads > 1 {
        multithread::set_default_executor(multithread::Executor::multithread(threads));
    }
    let plan = tract_onnx::onnx().model_for_path(path)?.into_optimized()?.into_runnable()?;
    Ok(Box::new(Tract { plan, inputs }))
}

fn main() -> Result<()> {
    serve(load)
}

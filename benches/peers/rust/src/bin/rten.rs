//! rten: weights prepacked, optimizations on, a thread pool of the given size.

use std::sync::Arc;

use anyhow::{Result, bail};
use ottava_peers::{Files, Kind, Model, serve};
use rten::{ModelOptions, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};

struct Rten {
    model: rten::Model,
    pool: Arc<ThreadPool>,
    inputs: Vec<Value>,
}

impl Rten {
    fn infer(&self, input: &Value) -> Result<Value> {
        let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        Ok(self.model.run_one(ValueOrView::from(input), Some(options))?)
    }
}

impl Model for Rten {
    fn setting(&self) -> String {
        "weights prepacked".into()
    }

    fn run(&mut self) -> Result<()> {
        self.infer(&self.inputs[0]).map(drop)
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            match self.infer(input)? {
                Value::FloatTensor(y) => all.extend(y.to_vec()),
                Value::Int32Tensor(y) => all.extend(y.iter().map(|&y| y as f32)),
                Value::UInt8Tensor(y) => all.extend(y.iter().map(|&y| f32::from(y))),
                _ => bail!("neither floats nor integers"),
            }
        }
        Ok(all)
    }
}

fn load(files: &Files, threads: usize) -> Result<Box<dyn Model>> {
    let (path, inputs) = match files.kind {
        Kind::Training => bail!("rten does not train"),
        Kind::Gemm => {
            let [m, _, k] = files.mnk;
            let a: Value = match files.precision.as_str() {
                "f32" => NdTensor::from_data([m, k], files.floats("a.f32")?).into_dyn().into(),
                _ => NdTensor::from_data([m, k], files.bytes("a.u8")?).into_dyn().into(),
            };
            (files.path(&format!("{}.onnx", files.precision)), vec![a])
        }
        Kind::Network => {
            let shape = files.input_shape()?;
            let tensor = |x| Value::from(Tensor::from_data(&shape, x));
            (files.onnx(), files.batches("inputs")?.into_iter().map(tensor).collect())
        }
    };
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(path)?;
    let pool = Arc::new(ThreadPool::with_num_threads(threads));
    Ok(Box::new(Rten { model, pool, inputs }))
}

fn main() -> Result<()> {
    serve(load)
}

//! burn on `flex`, the CPU backend its documentation recommends: networks, products and training.

mod inference;
mod training;

use anyhow::{Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use ottava_peers::{Files, Kind, Model, serve};

struct Gemm([Tensor<2>; 2]);

impl Model for Gemm {
    fn setting(&self) -> String {
        "flex, matmul".into()
    }

    fn run(&mut self) -> Result<()> {
        self.0[0].clone().matmul(self.0[1].clone());
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        floats(self.0[0].clone().matmul(self.0[1].clone()))
    }
}

fn tensor<const D: usize>(shape: [usize; D], values: Vec<f32>, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn floats<const D: usize>(x: Tensor<D>) -> Result<Vec<f32>> {
    x.into_data().to_vec::<f32>().map_err(|error| anyhow::anyhow!("{error:?}"))
}

fn load(files: &Files, threads: usize) -> Result<Box<dyn Model>> {
    // The pool is made on first use, from the environment that the driver sets.
    ensure!(rayon::current_num_threads() == threads, "RAYON_NUM_THREADS is not {threads}");
    let device = Device::flex();
    match (files.kind, files.precision.as_str()) {
        (Kind::Training, "f32") => training::load(files, &device),
        (Kind::Training, _) => bail!("burn has no quantization-aware training"),
        (_, "int8" | "codes") => {
            bail!("burn's quantized tensors have neither convolution nor u8×s8")
        }
        (Kind::Network, _) => inference::load(files, &device),
        (Kind::Gemm, _) => {
            let [m, n, k] = files.mnk;
            let a = tensor([m, k], files.floats("a.f32")?, &device);
            let b = tensor([k, n], files.floats("b.f32")?, &device);
            Ok(Box::new(Gemm([a, b])))
        }
    }
}

fn main() -> Result<()> {
    serve(load)
}

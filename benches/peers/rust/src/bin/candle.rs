//! candle: the network node by node on its CPU tensors, in f32 (its quantized formats have no
//! convolution).

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use ottava_peers::{Files, Kind, Model, Node, Op, nodes, serve};

struct Network {
    nodes: Vec<Node>,
    weights: HashMap<String, [Tensor; 2]>,
    inputs: Vec<Tensor>,
}

impl Network {
    fn infer(&self, x: &Tensor) -> Result<Tensor> {
        let mut values = HashMap::from([("input", x.clone())]);
        let mut last = x.clone();
        for node in &self.nodes {
            let x = &values[node.inputs[0].as_str()];
            let y = match &node.op {
                Op::Conv { stride, pad, .. } => {
                    let [weight, bias] = &self.weights[&node.name];
                    x.conv2d(weight, *pad, *stride, 1, 1)?.broadcast_add(bias)?
                }
                // Everything pooled is behind a ReLU: padding with zeros is padding with −∞.
                Op::MaxPool { k, stride, pad } => x
                    .pad_with_zeros(2, *pad, *pad)?
                    .pad_with_zeros(3, *pad, *pad)?
                    .max_pool2d_with_stride(*k, *stride)?,
                Op::Shortcut { side } => {
                    let (_, _, h, w) = x.dims4()?;
                    let rows = Tensor::arange_step(0u32, h as u32, 2, &Device::Cpu)?;
                    let columns = Tensor::arange_step(0u32, w as u32, 2, &Device::Cpu)?;
                    x.index_select(&rows, 2)?
                        .index_select(&columns, 3)?
                        .pad_with_zeros(1, *side, *side)?
                }
                Op::Add => (x + &values[node.inputs[1].as_str()])?,
                Op::Mean => x.mean((2, 3))?,
                Op::Linear { .. } => {
                    let [weight, bias] = &self.weights[&node.name];
                    x.matmul(&weight.t()?)?.broadcast_add(bias)?
                }
            };
            last = if node.relu { y.relu()? } else { y };
            values.insert(&node.name, last.clone());
        }
        Ok(last)
    }
}

impl Model for Network {
    fn setting(&self) -> String {
        "f32, CPU".into()
    }

    fn run(&mut self) -> Result<()> {
        self.infer(&self.inputs[0]).map(drop)
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            all.extend(self.infer(input)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(all)
    }
}

struct Gemm([Tensor; 2]);

impl Model for Gemm {
    fn setting(&self) -> String {
        "matmul".into()
    }

    fn run(&mut self) -> Result<()> {
        self.0[0].matmul(&self.0[1])?;
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        Ok(self.0[0].matmul(&self.0[1])?.flatten_all()?.to_vec1::<f32>()?)
    }
}

fn load(files: &Files, threads: usize) -> Result<Box<dyn Model>> {
    // The pool is made on first use, from the environment that the driver sets.
    ensure!(rayon::current_num_threads() == threads, "RAYON_NUM_THREADS is not {threads}");
    ensure!(
        files.precision == "f32",
        "candle's quantized formats have neither convolution nor u8×s8"
    );
    let tensor =
        |(shape, values): (Vec<usize>, Vec<f32>)| Tensor::from_vec(values, shape, &Device::Cpu);
    match files.kind {
        Kind::Training => bail!("no training step is written for candle here"),
        Kind::Gemm => {
            let [m, n, k] = files.mnk;
            let a = tensor((vec![m, k], files.floats("a.f32")?))?;
            Ok(Box::new(Gemm([a, tensor((vec![k, n], files.floats("b.f32")?))?])))
        }
        Kind::Network => {
            let nodes = nodes(files)?;
            let mut weights = HashMap::new();
            for node in &nodes {
                if let Op::Conv { weight, bias, .. } | Op::Linear { weight, bias } = &node.op {
                    let channels = bias.0[0];
                    let shape = if weight.0.len() == 4 {
                        vec![1, channels, 1, 1]
                    } else {
                        vec![1, channels]
                    };
                    let pair = [tensor(weight.clone())?, tensor((shape, bias.1.clone()))?];
                    weights.insert(node.name.clone(), pair);
                }
            }
            let shape = files.input_shape()?;
            let inputs = files.batches("inputs")?.into_iter();
            let inputs = inputs.map(|x| tensor((shape.clone(), x))).collect::<Result<_, _>>()?;
            Ok(Box::new(Network { nodes, weights, inputs }))
        }
    }
}

fn main() -> Result<()> {
    serve(load)
}

use std::collections::HashMap;

use anyhow::{Context, Result};
use burn::tensor::activation::relu;
use burn::tensor::module::{conv2d, linear, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions, PadMode};
use burn::tensor::{Device, Tensor, s};
use ottava_peers::{Files, Model, Node, Op, nodes};

use crate::{floats, tensor};

/// The network of a workload, node by node.
pub fn load(files: &Files, device: &Device) -> Result<Box<dyn Model>> {
    let nodes = nodes(files)?;
    let (mut convs, mut linears) = (HashMap::new(), HashMap::new());
    for node in &nodes {
        match &node.op {
            Op::Conv { weight, bias, .. } => {
                let shape: [usize; 4] = weight.0[..].try_into()?;
                let pair = (tensor(shape, weight.1.clone(), device), vector(&bias.1, device));
                convs.insert(node.name.clone(), pair);
            }
            Op::Linear { weight, bias } => {
                let shape: [usize; 2] = weight.0[..].try_into()?;
                // burn's linear layer holds `[in, out]`.
                let weight = tensor(shape, weight.1.clone(), device).transpose();
                let weight = tensor([shape[1], shape[0]], floats(weight)?, device);
                linears.insert(node.name.clone(), (weight, vector(&bias.1, device)));
            }
            Op::MaxPool { .. } | Op::Shortcut { .. } | Op::Add | Op::Mean => {}
        }
    }
    let shape: [usize; 4] = files.input_shape()?[..].try_into()?;
    let batches = files.batches("inputs")?.into_iter();
    let inputs = batches.map(|x| tensor(shape, x, device)).collect();
    Ok(Box::new(Network { nodes, convs, linears, inputs }))
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    tensor([values.len()], values.to_vec(), device)
}

struct Network {
    nodes: Vec<Node>,
    convs: HashMap<String, (Tensor<4>, Tensor<1>)>,
    linears: HashMap<String, (Tensor<2>, Tensor<1>)>,
    inputs: Vec<Tensor<4>>,
}

impl Network {
    fn infer(&self, input: &Tensor<4>) -> Result<Vec<f32>> {
        let mut images = HashMap::from([("input", input.clone())]);
        let mut vectors: Option<Tensor<2>> = None;
        let mut last = "input";
        for node in &self.nodes {
            let x = || images.get(node.inputs[0].as_str()).cloned().context("not an image");
            last = &node.name;
            let y = match &node.op {
                Op::Conv { stride, pad, .. } => {
                    let (weight, bias) = self.convs[&node.name].clone();
                    let options = ConvOptions::new([*stride; 2], [*pad; 2], [1, 1], 1);
                    conv2d(x()?, weight, Some(bias), options)
                }
                Op::MaxPool { k, stride, pad } => {
                    let options = MaxPoolOptions::new([*k; 2]);
                    max_pool2d(x()?, options.with_stride([*stride; 2]).with_padding([*pad; 2]))
                }
                Op::Shortcut { side } => shortcut(x()?, *side),
                Op::Add => x()? + images[node.inputs[1].as_str()].clone(),
                Op::Mean => {
                    let x = x()?;
                    let [n, c, ..] = x.dims();
                    vectors = Some(x.mean_dim(3).mean_dim(2).reshape([n, c]));
                    continue;
                }
                Op::Linear { .. } => {
                    let (weight, bias) = self.linears[&node.name].clone();
                    vectors = vectors.map(|x| linear(x, weight, Some(bias)));
                    continue;
                }
            };
            images.insert(last, if node.relu { relu(y) } else { y });
        }
        match vectors {
            Some(logits) => floats(logits),
            None => floats(images.remove(last).context("no node")?),
        }
    }
}

/// Every second pixel, `side` zero channels before and after.
pub fn shortcut(x: Tensor<4>, side: usize) -> Tensor<4> {
    let channels = [(side, side), (0, 0), (0, 0)];
    x.slice(s![.., .., ..;2, ..;2]).pad(channels, PadMode::Constant(0.0))
}

impl Model for Network {
    fn setting(&self) -> String {
        "flex, f32".into()
    }

    fn run(&mut self) -> Result<()> {
        self.infer(&self.inputs[0]).map(drop)
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            all.extend(self.infer(input)?);
        }
        Ok(all)
    }
}

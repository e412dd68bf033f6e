use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::Files;

/// A node of a network, for engines that read neither ONNX nor a description of their own.
pub struct Node {
    /// Its name, and that of its value.
    pub name: String,
    /// The values it reads; the network's input is called `input`.
    pub inputs: Vec<String>,
    /// What it does.
    pub op: Op,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// What a node does. Weights are `(shape, values)` with BatchNorm folded in.
pub enum Op {
    /// A convolution with a bias.
    Conv { weight: Weight, bias: Weight, stride: usize, pad: usize },
    /// Max-pooling.
    MaxPool { k: usize, stride: usize, pad: usize },
    /// Every second pixel, `side` zero channels before and after.
    Shortcut { side: usize },
    /// The sum of both inputs.
    Add,
    /// The mean of each channel: `[n, c, h, w]` → `[n, c]`.
    Mean,
    /// A linear layer, weight `[out, in]`.
    Linear { weight: Weight, bias: Weight },
}

/// A shape and its values.
pub type Weight = (Vec<usize>, Vec<f32>);

/// The nodes of a workload's network, in the order they run.
pub fn nodes(files: &Files) -> Result<Vec<Node>> {
    let bytes = files.bytes("folded.safetensors")?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let weights: HashMap<String, Weight> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (name, (view.shape().to_vec(), bytemuck::pod_collect_to_vec(view.data())))
        })
        .collect();
    let weight = |name: &str| weights.get(name).cloned().with_context(|| name.to_owned());
    let json: Value = serde_json::from_slice(&files.bytes("json")?)?;
    let mut made = Vec::new();
    for node in json["nodes"].as_array().context("no nodes")? {
        let number = |key: &str| node[key].as_u64().unwrap_or(0) as usize;
        let name = node["name"].as_str().context("a node without a name")?.to_owned();
        let of = |part: &str| weight(&format!("{name}.{part}"));
        let op = match node["op"].as_str() {
            Some("conv") => Op::Conv {
                weight: of("weight")?,
                bias: of("bias")?,
                stride: number("stride"),
                pad: number("pad"),
            },
            Some("maxpool") => {
                Op::MaxPool { k: number("k"), stride: number("stride"), pad: number("pad") }
            }
            Some("shortcut") => Op::Shortcut { side: number("side") },
            Some("add") => Op::Add,
            Some("mean") => Op::Mean,
            Some("linear") => Op::Linear { weight: of("weight")?, bias: of("bias")? },
            other => bail!("unknown node {other:?}"),
        };
        let inputs = node["inputs"].as_array().context("no inputs")?;
        let inputs = inputs.iter().filter_map(|x| x.as_str().map(str::to_owned)).collect();
        made.push(Node { name, inputs, op, relu: node["relu"].as_bool() == Some(true) });
    }
    Ok(made)
}

//! `ottava inspect`: the layers of a model file.

use anyhow::Result;
use ottava::autograd::{Mode, NodeKind, Op, Tape};
use ottava::quant::{Elements, FloatOp, Instr, Program};
use ottava::tensor::Tensor;
use serde_json::{Value, json};

use crate::args;
use crate::model::{FloatModel, Model, load};
use crate::output::{result, table};

/// A line of the table.
struct Layer {
    name: String,
    op: String,
    kernel: Vec<usize>,
    input: Vec<usize>,
    output: Vec<usize>,
    params: usize,
    bytes: usize,
    macs: u64,
    dtype: String,
    scale: Option<(f32, i32)>,
    /// Why it computes in floats among integers.
    why: String,
}

/// `ottava inspect`.
pub fn run(args: &args::Inspect) -> Result<()> {
    let model = load(&args.model_file, args.model.as_deref())?;
    model.sized(args.size)?;
    let layers = match model {
        Model::Float(model) => float(&model, args.size)?,
        Model::Integer(program) => integer(&program),
    };
    let total = json!({
        "params": layers.iter().map(|layer| layer.params).sum::<usize>(),
        "bytes": layers.iter().map(|layer| layer.bytes).sum::<usize>(),
        "macs": layers.iter().map(|layer| layer.macs).sum::<u64>(),
    });
    let rows: Vec<Vec<String>> = layers.iter().map(Layer::row).collect();
    let header =
        ["layer", "op", "kernel", "in", "out", "params", "bytes", "MMAC", "dtype", "scale", "zero"];
    let text = format!(
        "{}{}total: {} parameters, {} bytes, {:.2} MMAC",
        table(&header, &rows),
        layers.iter().filter(|layer| !layer.why.is_empty()).map(Layer::reason).collect::<String>(),
        total["params"],
        total["bytes"],
        layers.iter().map(|layer| layer.macs).sum::<u64>() as f64 / 1e6
    );
    let list: Vec<Value> = layers.iter().map(Layer::json).collect();
    result(&args.global, json!({"layers": list, "total": total}), &text)
}

/// The rows of a model file, as `--json` has them.
pub fn layers(file: &std::path::Path) -> Result<Vec<Value>> {
    let layers = match load(file, None)? {
        Model::Float(model) => float(&model, None)?,
        Model::Integer(program) => integer(&program),
    };
    Ok(layers.iter().map(Layer::json).collect())
}

impl Layer {
    fn json(&self) -> Value {
        let mut json = json!({
            "name": self.name, "op": self.op, "kernel": self.kernel, "in": self.input, "out": self.output,
            "params": self.params, "bytes": self.bytes, "macs": self.macs, "dtype": self.dtype,
        });
        if !self.why.is_empty() {
            json["why"] = json!(self.why);
        }
        if let Some((scale, zero_point)) = self.scale {
            json["scale"] = json!(scale);
            json["zero_point"] = json!(zero_point);
        }
        json
    }

    fn reason(&self) -> String {
        format!("`{}` ({}) computes in float: {}\n", self.name, self.op, self.why)
    }

    fn row(&self) -> Vec<String> {
        let sizes =
            |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        vec![
            self.name.clone(),
            self.op.clone(),
            sizes(&self.kernel),
            sizes(&self.input),
            sizes(&self.output),
            self.params.to_string(),
            self.bytes.to_string(),
            format!("{:.2}", self.macs as f64 / 1e6),
            self.dtype.clone(),
            self.scale.map_or_else(String::new, |(scale, _)| format!("{scale:.6}")),
            self.scale.map_or_else(String::new, |(_, zero)| zero.to_string()),
        ]
    }
}

/// The instructions of a program.
fn integer(program: &Program) -> Vec<Layer> {
    let layers = program.nodes().iter().zip(program.summary().nodes).map(|(node, line)| {
        let grid = match line.elements {
            Elements::Float => None,
            Elements::Codes(grid) => Some(grid),
        };
        let kernel = match &node.instr {
            Instr::Conv { layer, .. } => layer.codes.shape()[2..].to_vec(),
            Instr::Float(FloatOp::Conv { weight, .. }) => weight.shape()[2..].to_vec(),
            _ => Vec::new(),
        };
        Layer {
            kernel,
            why: line.why.clone(),
            dtype: line.dtype().into(),
            name: line.name,
            op: line.op.into(),
            input: line.inputs.into_iter().next().unwrap_or_default(),
            output: line.output,
            params: line.params,
            bytes: line.bytes,
            macs: line.macs,
            scale: grid.map(|grid| (grid.scale(), grid.zero_point())),
        }
    });
    layers.collect()
}

/// The operators of a float network, traced.
fn float(model: &FloatModel, size: Option<usize>) -> Result<Vec<Layer>> {
    let shape = model.sized(size)?;
    let graph = model.trace(shape)?;
    let tape = Tape::no_grad(Mode::EVAL);
    let mut shapes = std::collections::HashMap::new();
    let [c, h, w] = shape;
    graph.run_with(tape.input(Tensor::zeros(&[1, c, h, w])), |node, var| {
        shapes.insert(node.name.clone(), var.shape());
    })?;
    let of = |id: usize| match &graph.nodes()[id].kind {
        NodeKind::Input(shape) => shape.clone(),
        NodeKind::Leaf(leaf) => leaf.get().shape().to_vec(),
        NodeKind::Op(..) => {
            shapes.get(&graph.nodes()[id].name).map_or_else(Vec::new, |s| s[1..].to_vec())
        }
    };
    let layers = graph.nodes().iter().enumerate().filter_map(|(id, node)| {
        let NodeKind::Op(op, inputs) = &node.kind else { return None };
        let leaves: Vec<Vec<usize>> = inputs
            .iter()
            .filter(|&&input| graph.nodes()[input].leaf().is_some())
            .map(|&input| of(input))
            .collect();
        let params: usize = leaves.iter().map(|shape| shape.iter().product::<usize>()).sum();
        let weight = leaves.first().cloned().unwrap_or_default();
        let output = of(id);
        let macs = match op {
            Op::Conv2d(_) => {
                let pixels: usize = output[1..].iter().product();
                (pixels * weight.iter().product::<usize>()) as u64
            }
            Op::Linear(_) => weight.iter().product::<usize>() as u64,
            _ => 0,
        };
        Some(Layer {
            name: node.name.clone(),
            op: op.name().into(),
            kernel: weight.get(2..).map_or_else(Vec::new, <[usize]>::to_vec),
            input: of(inputs[0]),
            output,
            params,
            bytes: 4 * params,
            macs,
            dtype: "f32".into(),
            scale: None,
            why: String::new(),
        })
    });
    Ok(layers.collect())
}

use std::collections::{HashMap, HashSet};

use ottava_autograd::ops::{LayerKind, QuantLayer};
use ottava_autograd::{Error, Graph, GraphNode, Leaf, NodeId, NodeKind, Op, Result};
use ottava_quant::{
    Activation, Builder, FloatOp, Instr, Program, QParams, ValueId, WeightSpec, Window,
};
use ottava_quant::{Elements, quantize_layer};
use ottava_tensor::Tensor;

use super::float::{WEIGHTS_ALONE, float_op, left_in_float, no_integer_form};

/// Writes the integer program of a prepared graph: scales from the observers, weights folded and
/// rounded, biases in `i32`. Node names are the graph's.
///
/// Each layer's integers come from [`QuantLayer::fold`](ottava_autograd::ops::QuantLayer::fold), the
/// function that the graph itself evaluates with, so the two agree by construction. Converting twice
/// gives the same bytes.
///
/// What stayed in float becomes a float instruction, between a dequantize and a quantize where it meets
/// integers, computed by the graph's own kernels; each says why
/// ([`Node::why`](ottava_quant::Node::why)). What depends on parameters alone is computed now.
///
/// # Errors
/// [`Error::Node`] naming the layer: an observer that saw no data, a weight that is not finite, a loss.
pub fn convert(graph: &Graph) -> Result<Program> {
    write(graph, None)
}

/// [`convert`] with the linear layers that stayed in float quantized at run time: weights to integers
/// now, by `weight`, activations at each call ([`DynamicLinear`](ottava_quant::DynamicLinear)). Of a graph
/// that is not prepared at all, this is PyTorch's `quantize_dynamic`.
///
/// # Errors
/// As [`convert`].
pub fn convert_dynamic(graph: &Graph, weight: WeightSpec) -> Result<Program> {
    write(graph, Some(weight))
}

fn write(graph: &Graph, dynamic: Option<WeightSpec>) -> Result<Program> {
    let mut writer = Writer {
        graph,
        dynamic,
        program: Program::builder(graph.input_shape())?,
        values: HashMap::new(),
        constants: HashMap::new(),
        floats: HashMap::new(),
        names: graph.nodes().iter().map(|node| node.name.clone()).collect(),
    };
    for (id, node) in graph.nodes().iter().enumerate() {
        match &node.kind {
            NodeKind::Input(_) => {
                writer.values.insert(id, writer.program.input());
            }
            NodeKind::Leaf(leaf) => {
                writer.constants.insert(id, leaf.get());
            }
            NodeKind::Op(op, inputs) => {
                writer.node(id, node, op, inputs).map_err(|error| error.at(&node.name))?;
            }
        }
    }
    let output = writer
        .values
        .get(&graph.output())
        .copied()
        .ok_or_else(|| Error::Trace { reason: "the network's output is a parameter".into() })?;
    Ok(writer.program.finish(output)?)
}

struct Writer<'a> {
    graph: &'a Graph,
    /// How linear layers in float are quantized, if they are.
    dynamic: Option<WeightSpec>,
    program: Builder,
    values: HashMap<NodeId, ValueId>,
    /// Parameters, and what is computed from them alone.
    constants: HashMap<NodeId, Tensor<f32>>,
    /// The dequantized value of codes.
    floats: HashMap<ValueId, ValueId>,
    names: HashSet<String>,
}

impl Writer<'_> {
    fn node(&mut self, id: NodeId, node: &GraphNode, op: &Op, inputs: &[NodeId]) -> Result<()> {
        if let Some(constant) = self.folded(op, inputs)? {
            self.constants.insert(id, constant);
            return Ok(());
        }
        let (instr, operands) = match op {
            Op::Quantize(quantize) => {
                let x = self.float(inputs[0])?;
                (Instr::Quantize(self.grid_of(&quantize.output, inputs)?), vec![x])
            }
            Op::QuantLayer(layer) => {
                let Some(quant) = &layer.output else {
                    return self.weights_alone(id, layer, inputs);
                };
                let leaves: Vec<Tensor<f32>> = inputs[1..inputs.len() - 1]
                    .iter()
                    .map(|&id| self.leaf(id))
                    .collect::<Result<_>>()?;
                let input = self.value(inputs[0])?;
                let x = self.program.value(input).grid().ok_or_else(|| Error::Op {
                    op: op.name(),
                    reason: "reads floats; put a quantize in front of it".into(),
                })?;
                let (output, activation) = (self.grid_of(quant, inputs)?, layer.activation);
                let folded = layer.fold(&leaves, x)?;
                let instr = match layer.kind {
                    LayerKind::Conv(attrs) => {
                        Instr::Conv { layer: folded, attrs, output, activation }
                    }
                    LayerKind::Linear => Instr::Linear { layer: folded, output, activation },
                };
                (instr, vec![input])
            }
            Op::QuantAdd(add) => {
                let instr = Instr::Add {
                    output: self.grid_of(&add.output, inputs)?,
                    activation: add.activation,
                };
                (instr, vec![self.value(inputs[0])?, self.value(inputs[1])?])
            }
            Op::QuantAvgPool(pool) => {
                let output = self.grid_of(&pool.output, inputs)?;
                let window =
                    pool.window.map(|(kernel, stride)| Window { kernel, stride, padding: [0; 4] });
                let instr = Instr::AvgPool { window, count_padding: false, output };
                (instr, vec![self.value(inputs[0])?])
            }
            Op::MaxPool2d(pool) => {
                let window =
                    Window { kernel: pool.kernel, stride: pool.stride, padding: pool.padding };
                (Instr::MaxPool(window), vec![self.value(inputs[0])?])
            }
            Op::Relu(_) => (Instr::Clip(Activation::RELU), vec![self.value(inputs[0])?]),
            Op::Clip(clip) => (Instr::Clip(clip.activation()), vec![self.value(inputs[0])?]),
            Op::Slice(slice) => {
                let x = self.value(inputs[0])?;
                // A program's shapes leave out the batch.
                let size = self.program.value(x).shape.get(slice.axis.wrapping_sub(1)).copied();
                let end = slice.end.min(size.unwrap_or(slice.end));
                let instr =
                    Instr::Slice { axis: slice.axis, start: slice.start, end, step: slice.step };
                (instr, vec![x])
            }
            Op::Pad(pad) => {
                let instr = Instr::Pad { axis: pad.axis, before: pad.before, after: pad.after };
                (instr, vec![self.value(inputs[0])?])
            }
            Op::Flatten(_) => (Instr::Flatten, vec![self.value(inputs[0])?]),
            Op::Reshape(reshape) => {
                (Instr::Reshape(reshape.shape.clone()), vec![self.value(inputs[0])?])
            }
            Op::Concat(concat) => {
                let values = inputs.iter().map(|&id| self.value(id)).collect::<Result<Vec<_>>>()?;
                let elements = |&id: &ValueId| self.program.value(id).elements;
                let one_grid = values.iter().all(|id| elements(id) == elements(&values[0]));
                let values = match one_grid {
                    true => values,
                    false => inputs.iter().map(|&id| self.float(id)).collect::<Result<_>>()?,
                };
                (Instr::Concat { axis: concat.axis, output: None }, values)
            }
            Op::QuantConcat(concat) => {
                let output = Some(self.grid_of(&concat.output, inputs)?);
                let values = inputs[..inputs.len() - 1].iter().map(|&id| self.value(id));
                let values = values.collect::<Result<_>>()?;
                (Instr::Concat { axis: concat.axis, output }, values)
            }
            Op::Conv2d(_)
            | Op::Linear(_)
            | Op::MatMul(_)
            | Op::BatchNorm2d(_)
            | Op::Add(_)
            | Op::Mul(_)
            | Op::AvgPool2d(_)
            | Op::GlobalAvgPool(_)
            | Op::LogSoftmax(_)
            | Op::Softmax(_)
            | Op::CrossEntropy(_)
            | Op::Sum(_)
            | Op::FakeQuant(_)
            | Op::LearnedFakeQuant(_) => {
                let constant = |i: usize| self.constants.get(&inputs[i]).cloned();
                let (float, operands) = float_op(op, inputs.len(), constant)?;
                let operands = operands.into_iter().map(|i| self.float(inputs[i]));
                let operands = operands.collect::<Result<Vec<_>>>()?;
                (Instr::Float(self.perhaps_dynamic(float)?), operands)
            }
        };
        let dynamic = matches!(instr, Instr::Float(FloatOp::DynamicLinear { .. }));
        let value = self.program.push(&node.name, instr, &operands)?;
        self.values.insert(id, value);
        if self.program.value(value).elements == Elements::Float {
            let why =
                no_integer_form(op, &self.shapes(inputs)).unwrap_or_else(|| left_in_float(op));
            let why = if dynamic { "its activations are quantized at run time" } else { why };
            self.program.explain(value, why);
        }
        Ok(())
    }

    /// A layer whose weights are rounded and which computes in float.
    fn weights_alone(&mut self, id: NodeId, layer: &QuantLayer, inputs: &[NodeId]) -> Result<()> {
        let leaves = inputs[1..].iter().map(|&id| self.leaf(id)).collect::<Result<Vec<_>>>()?;
        let (weight, bias) = layer.fold_float(&leaves)?;
        let bias = Some(Tensor::new(&[bias.len()], bias)?);
        let x = self.float(inputs[0])?;
        let op = match layer.kind {
            LayerKind::Conv(attrs) => FloatOp::Conv { weight, bias, attrs },
            LayerKind::Linear => FloatOp::Linear { weight, bias },
        };
        // The value has the graph's name, so that the two can be compared.
        let name = self.graph.nodes()[id].name.clone();
        let value = if layer.activation != Activation::NONE {
            let sum = self.unique(format!("{name}.sum"));
            let sum = self.program.push(sum, Instr::Float(op), &[x])?;
            self.program.explain(sum, WEIGHTS_ALONE);
            self.program.push(name, Instr::Clip(layer.activation), &[sum])?
        } else {
            self.program.push(name, Instr::Float(op), &[x])?
        };
        self.program.explain(value, WEIGHTS_ALONE);
        self.values.insert(id, value);
        Ok(())
    }

    /// A name that no node has.
    fn unique(&mut self, mut name: String) -> String {
        while !self.names.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// What an operator makes of parameters alone.
    fn folded(&self, op: &Op, inputs: &[NodeId]) -> Result<Option<Tensor<f32>>> {
        let constants = inputs.iter().map(|id| self.constants.get(id).cloned().map(Into::into));
        let Some(constants) = constants.collect::<Option<Vec<_>>>() else { return Ok(None) };
        Ok(Some(op.evaluate(&constants)?.float()))
    }

    fn perhaps_dynamic(&self, op: FloatOp) -> Result<FloatOp> {
        let (FloatOp::Linear { weight, bias }, Some(spec)) = (&op, self.dynamic) else {
            return Ok(op);
        };
        // The bias stays in `f32`: the layer's integers are its weights alone.
        let zeros = vec![0.0; weight.shape()[0]];
        let layer = quantize_layer(weight, &zeros, 1.0, spec)?;
        let bias = bias.as_ref().map_or(zeros, Tensor::to_vec);
        Ok(FloatOp::DynamicLinear { codes: layer.codes, scales: layer.scales, bias })
    }

    fn value(&self, id: NodeId) -> Result<ValueId> {
        self.values.get(&id).copied().ok_or_else(|| Error::Op {
            op: "convert",
            reason: format!(
                "reads the parameter `{}` where a program has a value",
                self.graph.nodes()[id].name
            ),
        })
    }

    /// The value of a node as floats.
    fn float(&mut self, id: NodeId) -> Result<ValueId> {
        let value = self.value(id)?;
        if self.program.value(value).grid().is_none() {
            return Ok(value);
        }
        if let Some(&float) = self.floats.get(&value) {
            return Ok(float);
        }
        let name = self.unique(format!("{}.dequantize", self.graph.nodes()[id].name));
        let float = self.program.push(name, Instr::Dequantize, &[value])?;
        self.floats.insert(value, float);
        Ok(float)
    }

    /// The shapes of values for one image; parameters have none.
    fn shapes(&self, inputs: &[NodeId]) -> Vec<Option<Vec<usize>>> {
        let shape = |id| match (self.values.get(id), self.graph.nodes()[*id].leaf()) {
            (Some(&value), _) => Some(self.program.value(value).shape.clone()),
            (None, Some(_)) => None,
            (None, None) => self.constants.get(id).map(|constant| constant.shape().to_vec()),
        };
        inputs.iter().map(shape).collect()
    }

    /// The grid of an operator's result: its observer's state is its last input.
    fn grid_of(
        &self,
        quant: &ottava_autograd::ops::ActivationQuant,
        inputs: &[NodeId],
    ) -> Result<QParams> {
        let state = inputs.last().copied().unwrap_or_default();
        quant.params(&self.leaf(state)?)
    }

    fn leaf(&self, id: NodeId) -> Result<Tensor<f32>> {
        let node = &self.graph.nodes()[id];
        node.leaf().map(Leaf::get).ok_or_else(|| Error::Op {
            op: "convert",
            reason: format!("`{}` should be a parameter", node.name),
        })
    }
}

use std::collections::HashMap;

use ottava_autograd::ops::LayerKind;
use ottava_autograd::{Error, Graph, GraphNode, NodeId, NodeKind, Op, Result};
use ottava_quant::{Builder, Instr, Program, QParams, ValueId, Window};
use ottava_tensor::Tensor;

/// Writes the integer program of a prepared graph: scales from the observers, weights folded and
/// rounded, biases in `i32`. Node names are the graph's.
///
/// Each layer's integers come from [`QuantLayer::fold`](ottava_autograd::ops::QuantLayer::fold), the
/// function that the graph itself evaluates with, so the two agree by construction. Converting twice
/// gives the same bytes.
///
/// # Errors
/// [`Error::Node`] naming the layer: an observer that saw no data, a weight that is not finite, an
/// operator without an integer form.
pub fn convert(graph: &Graph) -> Result<Program> {
    let mut writer =
        Writer { graph, program: Program::builder(graph.input_shape())?, values: HashMap::new() };
    for (id, node) in graph.nodes().iter().enumerate() {
        match &node.kind {
            NodeKind::Input(_) => {
                writer.values.insert(id, writer.program.input());
            }
            NodeKind::Leaf(_) => {}
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
    program: Builder,
    values: HashMap<NodeId, ValueId>,
}

impl Writer<'_> {
    fn node(&mut self, id: NodeId, node: &GraphNode, op: &Op, inputs: &[NodeId]) -> Result<()> {
        let (instr, operands) = match op {
            Op::Quantize(quantize) => (Instr::Quantize(self.grid_of(&quantize.output, inputs)?), 1),
            Op::QuantLayer(layer) => {
                let quant = layer.output.as_ref().ok_or_else(|| Error::Op {
                    op: op.name(),
                    reason: "rounds its weights alone and computes in float, and a program has no float instructions yet; choose levels that have integer codes".into(),
                })?;
                let leaves: Vec<Tensor<f32>> = inputs[1..inputs.len() - 1]
                    .iter()
                    .map(|&id| self.leaf(id))
                    .collect::<Result<_>>()?;
                let x = self.values.get(&inputs[0]).and_then(|&x| self.program.value(x).grid());
                let x = x.ok_or_else(|| Error::Op {
                    op: op.name(),
                    reason: "reads floats; put a quantize in front of it".into(),
                })?;
                let (output, relu) = (self.grid_of(quant, inputs)?, layer.relu);
                let folded = layer.fold(&leaves, x)?;
                let instr = match layer.kind {
                    LayerKind::Conv(attrs) => Instr::Conv { layer: folded, attrs, output, relu },
                    LayerKind::Linear => Instr::Linear { layer: folded, output, relu },
                };
                (instr, 1)
            }
            Op::QuantAdd(add) => {
                (Instr::Add { output: self.grid_of(&add.output, inputs)?, relu: add.relu }, 2)
            }
            Op::QuantAvgPool(pool) => {
                let output = self.grid_of(&pool.output, inputs)?;
                let window =
                    pool.window.map(|(kernel, stride)| Window { kernel, stride, padding: [0; 4] });
                (Instr::AvgPool { window, count_padding: false, output }, 1)
            }
            Op::MaxPool2d(pool) => {
                let window =
                    Window { kernel: pool.kernel, stride: pool.stride, padding: pool.padding };
                (Instr::MaxPool(window), 1)
            }
            Op::Relu(_) => (Instr::Relu, 1),
            Op::Slice(slice) => {
                let x = self.values.get(&inputs[0]).map(|&x| &self.program.value(x).shape);
                // A program's shapes leave out the batch.
                let size = x.and_then(|shape| shape.get(slice.axis.wrapping_sub(1))).copied();
                let end = slice.end.min(size.unwrap_or(slice.end));
                (Instr::Slice { axis: slice.axis, start: slice.start, end, step: slice.step }, 1)
            }
            Op::Pad(pad) => {
                (Instr::Pad { axis: pad.axis, before: pad.before, after: pad.after }, 1)
            }
            Op::Flatten(_) => (Instr::Flatten, 1),
            Op::Conv2d(_)
            | Op::Linear(_)
            | Op::MatMul(_)
            | Op::BatchNorm2d(_)
            | Op::Clip(_)
            | Op::Add(_)
            | Op::Mul(_)
            | Op::AvgPool2d(_)
            | Op::GlobalAvgPool(_)
            | Op::Reshape(_)
            | Op::LogSoftmax(_)
            | Op::Softmax(_)
            | Op::CrossEntropy(_)
            | Op::Sum(_)
            | Op::FakeQuant(_)
            | Op::LearnedFakeQuant(_) => {
                return Err(Error::Op {
                    op: op.name(),
                    reason: "stays in float, and a program has no float instructions yet; prepare the graph, and skip no layer".into(),
                });
            }
        };
        let operands: Vec<ValueId> = inputs[..operands]
            .iter()
            .map(|input| {
                self.values.get(input).copied().ok_or_else(|| Error::Op {
                    op: op.name(),
                    reason: "reads a parameter where a program has a value".into(),
                })
            })
            .collect::<Result<_>>()?;
        let value = self.program.push(&node.name, instr, &operands)?;
        self.values.insert(id, value);
        Ok(())
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
        match &self.graph.nodes()[id].kind {
            NodeKind::Leaf(leaf) => Ok(leaf.get()),
            NodeKind::Input(_) | NodeKind::Op(..) => Err(Error::Op {
                op: "convert",
                reason: format!("`{}` should be a parameter", self.graph.nodes()[id].name),
            }),
        }
    }
}

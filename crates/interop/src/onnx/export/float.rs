//! Float graphs.

use std::collections::BTreeMap;

use ottava_autograd::ops::{AvgPool2d, MaxPool2d};
use ottava_autograd::{Graph, Mode, NodeId, NodeKind, Op, Tape};
use ottava_quant::Window;
use ottava_tensor::Tensor;

use super::super::proto::Attribute;
use super::OnnxOptions;
use super::float_op::{average_attributes, conv_attributes, window_attributes};
use super::writer::{INPUT, Writer, float, int};
use crate::{Error, Result};

/// A float graph as an ONNX file, with `metadata`.
///
/// # Errors
/// [`Error::Unsupported`] for versions that cannot be written, for a graph that is prepared for
/// quantization (export the integer program it becomes), or that cannot be run.
pub fn graph_to_onnx(
    graph: &Graph,
    metadata: &BTreeMap<String, String>,
    options: &OnnxOptions,
) -> Result<Vec<u8>> {
    options.check()?;
    let refuse = |reason: String| Error::unsupported("ONNX export", reason);
    // One run on a black image tells the shapes.
    let shape: Vec<usize> = std::iter::once(1).chain(graph.input_shape().iter().copied()).collect();
    let mut shapes: BTreeMap<String, Vec<usize>> = graph
        .leaves()
        .into_iter()
        .map(|(name, leaf)| (name, leaf.get().shape().to_vec()))
        .collect();
    shapes.insert(graph.nodes()[graph.input()].name.clone(), shape.clone());
    let tape = Tape::no_grad(Mode::EVAL);
    let output = graph
        .run_with(tape.input(Tensor::zeros(&shape)), |node, value| {
            shapes.insert(node.name.clone(), value.shape());
        })
        .map_err(|error| refuse(error.to_string()))?
        .shape();

    let mut writer = Writer::new();
    let mut values: Vec<String> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let value = match &node.kind {
            NodeKind::Input(_) => INPUT.into(),
            NodeKind::Leaf(leaf) => writer.tensor(&node.name, &leaf.get()),
            NodeKind::Op(op, inputs) => {
                let shape_of = |id: NodeId| shapes.get(&graph.nodes()[id].name);
                let rank = shape_of(inputs[0]).map_or(0, Vec::len);
                let weight = inputs.get(1).and_then(|&id| shape_of(id));
                let kernel = weight.and_then(|shape| shape.get(2..)).unwrap_or_default();
                let mut inputs: Vec<String> = inputs.iter().map(|&id| values[id].clone()).collect();
                let (name, attributes) = operator(
                    op,
                    &node.name,
                    (rank, kernel),
                    &mut inputs,
                    &mut writer,
                )
                .ok_or_else(|| {
                    refuse(format!(
                        "layer `{}` ({}) has no float form in ONNX; export the converted integer \
                             network",
                        node.name,
                        op.name()
                    ))
                })?;
                writer.node(name, &node.name, inputs, attributes)
            }
        };
        values.push(value);
    }
    let shapes = (graph.input_shape(), &output[1..]);
    Ok(writer.finish(&values[graph.output()], shapes, metadata, options))
}

/// ONNX's name for an operator and its attributes; constants that ONNX takes as inputs are added. `rank`
/// is of what it reads first, `kernel` the size of a convolution's windows.
fn operator(
    op: &Op,
    name: &str,
    (rank, kernel): (usize, &[usize]),
    inputs: &mut Vec<String>,
    writer: &mut Writer,
) -> Option<(&'static str, Vec<Attribute>)> {
    Some(match op {
        Op::Conv2d(op) => ("Conv", conv_attributes(op.attrs, kernel)),
        Op::Linear(_) => ("Gemm", vec![int("transB", 1)]),
        Op::MatMul(_) => ("MatMul", vec![]),
        Op::BatchNorm2d(op) => {
            let attributes = vec![float("epsilon", op.eps), float("momentum", 1.0 - op.momentum)];
            ("BatchNormalization", attributes)
        }
        Op::Relu(_) => ("Relu", vec![]),
        Op::Clip(op) => {
            inputs.push(writer.floats(&format!("{name}.min"), &[], &[op.min]));
            inputs.push(writer.floats(&format!("{name}.max"), &[], &[op.max]));
            ("Clip", vec![])
        }
        Op::Add(_) => ("Add", vec![]),
        Op::Mul(_) => ("Mul", vec![]),
        &Op::MaxPool2d(MaxPool2d { kernel, stride, padding }) => {
            ("MaxPool", window_attributes(&Window { kernel, stride, padding }))
        }
        &Op::AvgPool2d(AvgPool2d { kernel, stride, padding, count_include_pad }) => {
            let window = Window { kernel, stride, padding };
            ("AveragePool", average_attributes(&window, count_include_pad))
        }
        Op::GlobalAvgPool(_) => ("GlobalAveragePool", vec![]),
        Op::Flatten(_) => ("Flatten", vec![int("axis", 1)]),
        Op::Reshape(op) => {
            // Zero keeps the batch.
            let sizes: Vec<i64> =
                std::iter::once(0).chain(op.shape.iter().map(|&size| size as i64)).collect();
            inputs.push(writer.ints(&format!("{name}.shape"), &sizes));
            ("Reshape", vec![])
        }
        Op::Slice(op) => {
            let end = i64::try_from(op.end).unwrap_or(i64::MAX);
            let numbers = [op.start as i64, end, op.axis as i64, op.step as i64];
            for (what, value) in ["starts", "ends", "axes", "steps"].into_iter().zip(numbers) {
                inputs.push(writer.ints(&format!("{name}.{what}"), &[value]));
            }
            ("Slice", vec![])
        }
        Op::Pad(op) => {
            let mut pads = vec![0; 2 * rank];
            *pads.get_mut(op.axis)? = op.before as i64;
            *pads.get_mut(rank + op.axis)? = op.after as i64;
            inputs.push(writer.ints(&format!("{name}.pads"), &pads));
            ("Pad", vec![])
        }
        Op::Concat(op) => ("Concat", vec![int("axis", op.axis as i64)]),
        Op::LogSoftmax(_) => ("LogSoftmax", vec![int("axis", 1)]),
        Op::Softmax(_) => ("Softmax", vec![int("axis", 1)]),
        Op::CrossEntropy(_)
        | Op::Sum(_)
        | Op::FakeQuant(_)
        | Op::LearnedFakeQuant(_)
        | Op::Quantize(_)
        | Op::QuantLayer(_)
        | Op::QuantAdd(_)
        | Op::QuantAvgPool(_)
        | Op::QuantConcat(_) => return None,
    })
}

use std::collections::HashMap;
use std::fmt;

use ottava_autograd::ops::{ActivationQuant, QuantLayer};
use ottava_autograd::{Degenerate, Graph, Leaf, NodeId, NodeKind, Op, Result};
use ottava_quant::QParams;
use ottava_tensor::Tensor;

/// Something about a layer of a prepared graph that has an answer, but most likely not the one that was
/// wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The layer's name.
    pub layer: String,
    /// What was found.
    pub problem: Problem,
}

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Problem {
    /// The observer of its result has seen nothing: it cannot be evaluated or converted.
    NeverObserved,
    /// The observer of its result has a degenerate range.
    Range(Degenerate),
    /// Output channels whose weights all round to zero: a γ of zero, or pruned.
    DeadChannels {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// Output channels whose weight scale was raised because the bias would not have fitted `i32`.
    WidenedChannels {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
}

/// Looks at the observers and weights of a prepared graph after calibration.
///
/// # Errors
/// A weight that is not finite, naming the layer.
pub fn diagnose(graph: &Graph) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut grids: HashMap<NodeId, QParams> = HashMap::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let NodeKind::Op(op, inputs) = &node.kind else { continue };
        let mut found = |problem| findings.push(Finding { layer: node.name.clone(), problem });
        if let Op::QuantLayer(layer) = op
            && let Some(grid) = grids.get(&inputs[0])
        {
            channels(graph, layer, inputs, *grid)
                .map_err(|error| error.at(&node.name))?
                .into_iter()
                .for_each(&mut found);
        }
        match output_of(op) {
            Some(output) => {
                let state = inputs.last().and_then(|&id| graph.nodes()[id].leaf());
                let state = state.map_or_else(|| output.observer.initial(), Leaf::get);
                let Some(ranges) = output.ranges(&state) else {
                    found(Problem::NeverObserved);
                    continue;
                };
                let odd = ranges.iter().find_map(|&(min, max)| Degenerate::of(min, max));
                odd.into_iter().for_each(|odd| found(Problem::Range(odd)));
                grids.insert(id, output.params(&state).map_err(|error| error.at(&node.name))?);
            }
            None if op.keeps_grid() => {
                if let Some(&grid) = grids.get(&inputs[0]) {
                    grids.insert(id, grid);
                }
            }
            None => {}
        }
    }
    Ok(findings)
}

/// How an operator rounds its result, if it does.
pub(super) fn output_of(op: &Op) -> Option<&ActivationQuant> {
    match op {
        Op::Quantize(op) => Some(&op.output),
        Op::QuantLayer(op) => op.output.as_ref(),
        Op::QuantAdd(op) => Some(&op.output),
        Op::QuantAvgPool(op) => Some(&op.output),
        Op::QuantConcat(op) => Some(&op.output),
        Op::Conv2d(_)
        | Op::Linear(_)
        | Op::MatMul(_)
        | Op::BatchNorm2d(_)
        | Op::Relu(_)
        | Op::Clip(_)
        | Op::Add(_)
        | Op::Mul(_)
        | Op::MaxPool2d(_)
        | Op::AvgPool2d(_)
        | Op::GlobalAvgPool(_)
        | Op::Flatten(_)
        | Op::Reshape(_)
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Concat(_)
        | Op::LogSoftmax(_)
        | Op::Softmax(_)
        | Op::CrossEntropy(_)
        | Op::Sum(_)
        | Op::FakeQuant(_)
        | Op::LearnedFakeQuant(_) => None,
    }
}

/// What there is to say about a layer's channels.
fn channels(
    graph: &Graph,
    layer: &QuantLayer,
    inputs: &[NodeId],
    x: QParams,
) -> Result<Vec<Problem>> {
    let end = inputs.len() - usize::from(layer.output.is_some());
    let leaves: Vec<Tensor<f32>> =
        inputs[1..end].iter().filter_map(|&id| graph.nodes()[id].leaf().map(Leaf::get)).collect();
    if leaves.len() != end - 1 || layer.output.is_none() {
        return Ok(Vec::new());
    }
    let folded = layer.fold(&leaves, x)?;
    let of = folded.scales.len();
    let inner = (folded.codes.len() / of.max(1)).max(1);
    let dead = folded.codes.to_vec().chunks(inner).filter(|c| c.iter().all(|&q| q == 0)).count();
    let unwidened = layer.scales(&leaves)?;
    let widened = folded.scales.iter().zip(&unwidened).filter(|(now, then)| now > then).count();
    let mut problems = Vec::new();
    if dead > 0 {
        problems.push(Problem::DeadChannels { count: dead, of });
    }
    if widened > 0 {
        problems.push(Problem::WidenedChannels { count: widened, of });
    }
    Ok(problems)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer `{}` ", self.layer)?;
        match self.problem {
            Problem::NeverObserved => {
                f.write_str("has never been observed: show calibration images to the network")
            }
            Problem::Range(odd) => odd.fmt(f),
            Problem::DeadChannels { count, of } => write!(
                f,
                "has weights of zero in {count} of {of} output channels: they say the same for every image"
            ),
            Problem::WidenedChannels { count, of } => write!(
                f,
                "has biases too large for its weights in {count} of {of} output channels: their weights are \
                 rounded more coarsely, so that the bias fits 32 bits"
            ),
        }
    }
}

use std::fmt;

use ottava_autograd::{Graph, Leaf, Mode, NodeKind, Op, Tape};
use ottava_tensor::Tensor;

use super::diagnose::output_of;
use super::mixed::Mixed;
use crate::{Batch, Error, Metrics, Result};

/// What quantization costs a network, point by point.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// The float network.
    pub float: Metrics,
    /// The network with everything quantized.
    pub quantized: Metrics,
    /// Every point where values are rounded, in the order they run.
    pub nodes: Vec<NodeAnalysis>,
}

/// What quantization costs at one point. Signal-to-quantization-noise ratios are `20 log₁₀(‖x‖ / ‖x − x_q‖)` in
/// decibels over all images; infinite where nothing differs.
#[derive(Clone, Debug)]
pub struct NodeAnalysis {
    /// The node's name.
    pub name: String,
    /// The operator.
    pub op: &'static str,
    /// Of the result in the quantized network against the float network: errors of all nodes before
    /// included.
    pub sqnr: f64,
    /// Of the result of this node alone, quantized, for the float network's values rounded to the grid
    /// it reads.
    pub isolated: f64,
    /// The fraction of the float network's values beyond the ends of the grid.
    pub clipped: f64,
    /// The network with this node quantized and all others in float.
    pub alone: Metrics,
    /// The weights, of a layer that has any.
    pub weights: Option<WeightAnalysis>,
}

/// What rounding does to the weights of a layer, BatchNorm folded in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightAnalysis {
    /// Width of a weight.
    pub bits: u8,
    /// The weights' own ratio in decibels.
    pub sqnr: f64,
    /// The largest bias as a fraction of the largest `i32`. Above a half, the scale of its channel has been
    /// widened ([`diagnose`](super::diagnose) counts such channels).
    pub bias: f64,
}

/// Runs a prepared and calibrated graph in float, rounded, and with each node alone rounded, over `batches`
/// of images and classes, in one pass.
///
/// # Errors
/// [`ottava_autograd::Error::Node`] naming a node whose observer saw nothing; [`Error::Data`].
///
/// # Source
/// The "shadow" comparison of PyTorch's numeric suite (`torch.ao.ns`), and its `compute_sqnr`.
pub fn analyze<E: fmt::Display>(
    graph: &Graph,
    batches: impl IntoIterator<Item = std::result::Result<Batch, E>>,
) -> Result<Analysis> {
    let mixed = Mixed::new(graph)?;
    let points: Vec<(usize, &Op)> = graph
        .nodes()
        .iter()
        .enumerate()
        .filter_map(|(id, node)| Some((id, node.op().filter(|op| output_of(op).is_some())?)))
        .collect();
    let mut sums = vec![Sums::default(); points.len()];
    let (mut float, mut quantized) = (Metrics::default(), Metrics::default());
    for (batch, pair) in batches.into_iter().enumerate() {
        let (images, targets) =
            pair.map_err(|error| Error::Data { batch, reason: error.to_string() })?;
        let exact = mixed.float(images.clone())?;
        add(&mut float, &exact[&graph.output()], &targets)?;
        let tape = Tape::no_grad(Mode::EVAL);
        let mut at = 0;
        let logits = graph.run_with(tape.input(images), |node, var| {
            if at < points.len() && graph.nodes()[points[at].0].name == node.name {
                sums[at].propagated.add(&exact[&points[at].0], &var.tensor());
                at += 1;
            }
        })?;
        add(&mut quantized, &logits.tensor(), &targets)?;
        for (&(id, _), sums) in points.iter().zip(&mut sums) {
            let value = mixed.alone(id, graph, &exact)?;
            sums.isolated.add(&exact[&id], &value);
            if let Some(grid) = mixed.grids.get(&id) {
                sums.clipped += exact[&id].iter().filter(|&x| !grid.covers(x)).count();
            }
            sums.values += value.len();
            add(&mut sums.alone, &mixed.output(id, value, &exact)?, &targets)?;
        }
    }
    let nodes = points.iter().zip(sums).map(|(&(id, op), sums)| {
        Ok(NodeAnalysis {
            name: graph.nodes()[id].name.clone(),
            op: op.name(),
            sqnr: sums.propagated.decibels(),
            isolated: sums.isolated.decibels(),
            clipped: sums.clipped as f64 / sums.values.max(1) as f64,
            alone: sums.alone,
            weights: weights(&mixed, id)?,
        })
    });
    Ok(Analysis { float, quantized, nodes: nodes.collect::<Result<_>>()? })
}

/// Adds a batch to metrics.
pub(super) fn add(metrics: &mut Metrics, logits: &Tensor<f32>, targets: &[usize]) -> Result<()> {
    let tape = Tape::no_grad(Mode::EVAL);
    let loss = tape.input(logits.clone()).cross_entropy(targets, 0.0)?.tensor();
    metrics.add(logits, targets, loss.item().map_err(ottava_autograd::Error::from)?)
}

#[derive(Clone, Default)]
struct Sums {
    propagated: Noise,
    isolated: Noise,
    clipped: usize,
    values: usize,
    alone: Metrics,
}

/// `Σ x²` and `Σ (x − x_q)²`.
#[derive(Clone, Copy, Default)]
struct Noise {
    signal: f64,
    noise: f64,
}

impl Noise {
    fn add(&mut self, exact: &Tensor<f32>, rounded: &Tensor<f32>) {
        for (x, q) in exact.iter().zip(rounded.iter()) {
            self.signal += f64::from(x).powi(2);
            self.noise += (f64::from(x) - f64::from(q)).powi(2);
        }
    }

    fn decibels(self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }
}

/// What rounding does to the weights of node `id`.
fn weights(mixed: &Mixed<'_>, id: usize) -> Result<Option<WeightAnalysis>> {
    let node = &mixed.graph.nodes()[id];
    let NodeKind::Op(Op::QuantLayer(layer), inputs) = &node.kind else { return Ok(None) };
    let Some(&x) = mixed.grids.get(&inputs[0]) else { return Ok(None) };
    let leaf = |&id: &usize| mixed.graph.nodes()[id].leaf().map(Leaf::get);
    let leaves: Vec<Tensor<f32>> = inputs[1..inputs.len() - 1].iter().filter_map(leaf).collect();
    let (exact, _) = layer.fold_exact(&leaves).map_err(|error| error.at(&node.name))?;
    let folded = layer.fold(&leaves, x).map_err(|error| error.at(&node.name))?;
    let mut noise = Noise::default();
    noise.add(&exact, &folded.dequantize());
    let largest = folded.bias.iter().map(|b| b.unsigned_abs()).max().unwrap_or(0);
    Ok(Some(WeightAnalysis {
        bits: layer.weight.bits,
        sqnr: noise.decibels(),
        bias: f64::from(largest) / f64::from(i32::MAX),
    }))
}

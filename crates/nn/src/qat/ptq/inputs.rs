use std::fmt;

use ottava_autograd::ops::{Conv2d, LayerKind, Linear, QuantLayer};
use ottava_autograd::{Graph, Leaf, Mode, NodeId, NodeKind, Op, Result, Tape};
use ottava_quant::QParams;
use ottava_tensor::Tensor;

use super::super::mixed::FLOAT;
use crate::{Error, Result as NnResult};

/// A quantized layer of a prepared graph and its place.
pub(super) struct Site<'a> {
    pub name: &'a str,
    pub layer: &'a QuantLayer,
    /// The nodes it reads.
    pub inputs: &'a [NodeId],
}

/// The quantized layers, in the order they run.
pub(super) fn sites(graph: &Graph) -> Vec<Site<'_>> {
    graph
        .nodes()
        .iter()
        .filter_map(|node| match &node.kind {
            NodeKind::Op(Op::QuantLayer(layer), inputs) => {
                Some(Site { name: &node.name, layer, inputs })
            }
            _ => None,
        })
        .collect()
}

impl Site<'_> {
    /// The parameters behind `x`, without the observer's state.
    pub fn leaves(&self, graph: &Graph) -> Vec<Leaf> {
        let end = self.inputs.len() - usize::from(self.layer.output.is_some());
        self.inputs[1..end].iter().filter_map(|&id| graph.nodes()[id].leaf().cloned()).collect()
    }

    /// Its weight and bias as they are rounded for an input on the grid `x`, and not rounded.
    pub fn parameters(
        &self,
        graph: &Graph,
        x: Option<QParams>,
    ) -> Result<[(Tensor<f32>, Tensor<f32>); 2]> {
        let leaves: Vec<Tensor<f32>> = self.leaves(graph).iter().map(Leaf::get).collect();
        let vector = |values: Vec<f32>| Tensor::new(&[values.len()], values);
        let exact = self.layer.fold_exact(&leaves)?;
        let rounded = match x {
            Some(x) if self.layer.output.is_some() => {
                let folded = self.layer.fold(&leaves, x)?;
                let units = folded.bias.iter().zip(&folded.scales);
                let bias = units.map(|(&b, s)| (f64::from(b) * f64::from(x.scale() * s)) as f32);
                (folded.dequantize(), vector(bias.collect())?)
            }
            _ => {
                let (weight, bias) = self.layer.fold_float(&leaves)?;
                (weight, vector(bias)?)
            }
        };
        Ok([rounded, (exact.0, vector(exact.1)?)])
    }

    /// The float layer's result before its ReLU.
    pub fn apply(
        &self,
        x: &Tensor<f32>,
        (weight, bias): &(Tensor<f32>, Tensor<f32>),
    ) -> Result<Tensor<f32>> {
        let tape = Tape::no_grad(FLOAT);
        let op: Op = match self.layer.kind {
            LayerKind::Conv(attrs) => Conv2d { attrs }.into(),
            LayerKind::Linear => Linear.into(),
        };
        let inputs = [x, weight, bias].map(|value| tape.input(value.clone()));
        Ok(tape.apply(op, &inputs)?.tensor())
    }
}

/// The part of a graph that computes a node; it shares the graph's leaves.
pub(super) fn up_to(graph: &Graph, node: NodeId) -> Result<Graph> {
    Graph::new(graph.nodes()[..=node.max(graph.input())].to_vec(), node)
}

/// What a node of a prepared graph is for `images`, in the float network `reference` and rounded in
/// `graph`; and the grid it is rounded to.
pub(super) fn both(
    reference: &Graph,
    graph: &Graph,
    images: Tensor<f32>,
) -> Result<(Tensor<f32>, Tensor<f32>, Option<QParams>)> {
    let exact = reference.run(Tape::no_grad(FLOAT).input(images.clone()))?.tensor();
    let tape = Tape::no_grad(Mode::EVAL);
    let value = graph.run(tape.input(images))?.value();
    Ok((exact, value.float(), value.codes().map(|codes| codes.params())))
}

/// The batches of one pass, with an error that says which of them could not be read.
pub(super) fn images<E: fmt::Display>(
    batches: impl IntoIterator<Item = std::result::Result<Tensor<f32>, E>>,
) -> impl Iterator<Item = NnResult<Tensor<f32>>> {
    batches.into_iter().enumerate().map(|(batch, images)| {
        images.map_err(|error| Error::Data { batch, reason: error.to_string() })
    })
}

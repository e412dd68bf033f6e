use std::collections::HashMap;

use ottava_autograd::{Error, Graph, Mode, NodeId, NodeKind, Result, Tape, Value};
use ottava_quant::{QParams, QTensor};
use ottava_tensor::Tensor;

use super::diagnose::output_of;

/// Nothing moves and nothing is rounded: the float network in a prepared graph.
pub(super) const FLOAT: Mode = Mode { batch_stats: false, observe: false, quantize: false };

/// The grid of every value of a calibrated graph that is codes.
pub(super) fn grids(graph: &Graph) -> Result<HashMap<NodeId, QParams>> {
    let mut grids = HashMap::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let NodeKind::Op(op, inputs) = &node.kind else { continue };
        let state = || inputs.last().and_then(|&id| graph.nodes()[id].leaf());
        let grid = match output_of(op).map(|output| (output, state())) {
            Some((output, Some(state))) => {
                Some(output.params(&state.get()).map_err(|error| error.at(&node.name))?)
            }
            Some((_, None)) => None,
            None if op.keeps_grid() => grids.get(&inputs[0]).copied(),
            None => None,
        };
        grids.extend(grid.map(|grid| (id, grid)));
    }
    Ok(grids)
}

/// A prepared graph of which any node can be run on its own, rounded or in float.
pub(super) struct Mixed<'a> {
    pub graph: &'a Graph,
    pub grids: HashMap<NodeId, QParams>,
    /// The last node that reads each.
    last_use: Vec<NodeId>,
}

impl<'a> Mixed<'a> {
    pub fn new(graph: &'a Graph) -> Result<Self> {
        let readers = graph.readers();
        let last_use = readers.iter().map(|readers| readers.last().copied().unwrap_or(0)).collect();
        Ok(Self { graph, grids: grids(graph)?, last_use })
    }

    /// Node `id` as `of` has it, a graph with the same nodes, on these values of its inputs: rounded, with
    /// inputs rounded to their grids, or in float.
    fn node(
        &self,
        id: NodeId,
        of: &Graph,
        values: &HashMap<NodeId, Tensor<f32>>,
        rounded: bool,
    ) -> Result<Tensor<f32>> {
        let node = &of.nodes()[id];
        let NodeKind::Op(op, inputs) = &node.kind else { return Ok(values[&id].clone()) };
        let tape = Tape::no_grad(if rounded { Mode::EVAL } else { FLOAT });
        let vars: Vec<_> = inputs
            .iter()
            .map(|input| {
                let value: Value = match (of.nodes()[*input].leaf(), self.grids.get(input)) {
                    (Some(leaf), _) => leaf.get().into(),
                    (_, Some(&grid)) if rounded => QTensor::quantize(&values[input], grid).into(),
                    _ => values[input].clone().into(),
                };
                tape.input(value)
            })
            .collect();
        Ok(tape.apply(op.clone(), &vars).map_err(|error| error.at(&node.name))?.tensor())
    }

    /// The float network's value at every node.
    pub fn float(&self, images: Tensor<f32>) -> Result<HashMap<NodeId, Tensor<f32>>> {
        let mut values = HashMap::from([(self.graph.input(), images)]);
        for (id, node) in self.graph.nodes().iter().enumerate() {
            if node.op().is_some() {
                values.insert(id, self.node(id, self.graph, &values, false)?);
            }
        }
        Ok(values)
    }

    /// The result of node `id` alone rounded, as `of` has it, for the float network's values.
    pub fn alone(
        &self,
        id: NodeId,
        of: &Graph,
        float: &HashMap<NodeId, Tensor<f32>>,
    ) -> Result<Tensor<f32>> {
        self.node(id, of, float, true)
    }

    /// The network's output where node `from` has `value` and all others compute in float.
    pub fn output(
        &self,
        from: NodeId,
        value: Tensor<f32>,
        float: &HashMap<NodeId, Tensor<f32>>,
    ) -> Result<Tensor<f32>> {
        let output = self.graph.output();
        // What differs from the float network, as long as somebody will read it.
        let mut changed = HashMap::from([(from, value)]);
        for (id, node) in self.graph.nodes().iter().enumerate().skip(from + 1) {
            let NodeKind::Op(_, inputs) = &node.kind else { continue };
            if !inputs.iter().any(|input| changed.contains_key(input)) {
                continue;
            }
            let values: HashMap<NodeId, Tensor<f32>> = inputs
                .iter()
                .filter_map(|input| {
                    Some((*input, changed.get(input).or_else(|| float.get(input))?.clone()))
                })
                .collect();
            let value = self.node(id, self.graph, &values, false)?;
            changed.retain(|&id_of, _| self.last_use[id_of] > id || id_of == output);
            changed.insert(id, value);
        }
        let value = changed.remove(&output).or_else(|| float.get(&output).cloned());
        value.ok_or_else(|| Error::Trace { reason: "the network's output is a parameter".into() })
    }
}

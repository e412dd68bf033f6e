//! Running parts of a graph twice instead of keeping what they computed.

use std::collections::HashMap;

use ottava_tensor::Tensor;

use crate::op::{Context, Output, Rule};
use crate::{Graph, GraphNode, Kind, Leaf, NodeId, NodeKind, Result, Saving, Tape, Value, Var};

impl Graph {
    /// Runs the network part by part, each of which keeps nothing but what it reads; the last one as
    /// ever, since its way back comes first.
    pub(crate) fn run_in_parts<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        let mut ends = self.ends_of_parts();
        ends.push(self.output());
        let (mut x, mut from) = (x, self.input());
        for &end in &ends {
            let part = self.part(from, &x.shape(), end)?;
            let read = x;
            x = if end == self.output() {
                part.run_whole(x)?
            } else {
                let NodeKind::Op(op, _) = &self.nodes()[end].kind else {
                    unreachable!("an operator")
                };
                let leaves: Vec<Leaf> = part.leaves().into_iter().map(|(_, leaf)| leaf).collect();
                let inputs: Vec<Var<'t>> = std::iter::once(x)
                    .chain(leaves.iter().map(|leaf| x.tape().leaf(leaf)))
                    .collect();
                let run = x.tape().apply_as(op.clone(), &Part(part), &inputs);
                run.map_err(|error| error.at(&self.nodes()[end].name))?
            };
            if from != self.input() {
                x.tape().release(read);
            }
            from = end;
        }
        Ok(x)
    }

    /// Operators behind which one value alone is left, about √n of them: a chain of n equal layers then
    /// needs memory for 2·√n.
    fn ends_of_parts(&self) -> Vec<NodeId> {
        let is_op = |id: NodeId| self.nodes()[id].op().is_some();
        let is_value = |id: NodeId| self.nodes()[id].leaf().is_none();
        let readers = self.readers();
        let last_use = |id: NodeId| readers[id].last().copied().unwrap_or(id);
        let operators = (0..self.nodes().len()).filter(|&id| is_op(id)).count();
        let least = operators.isqrt().max(1);
        let fused: Vec<NodeId> =
            self.rectified_norms().iter().flatten().flat_map(|fused| fused.absorbed()).collect();
        let (mut ends, mut reach, mut count) = (Vec::new(), 0, 0);
        for id in 0..self.output() {
            count += usize::from(is_op(id));
            // `reach`: where the values before this one are read last.
            let alone = is_op(id) && reach <= id && last_use(id) > id;
            if is_value(id) {
                reach = reach.max(last_use(id));
            }
            // A BatchNorm stays with the ReLU that it runs with.
            if alone && count >= least && !fused.contains(&id) {
                ends.push(id);
                count = 0;
            }
        }
        ends
    }

    /// The nodes that lead from one value, of this shape, to another.
    fn part(&self, from: NodeId, shape: &[usize], end: NodeId) -> Result<Self> {
        let mut needed = vec![false; self.nodes().len()];
        needed[end] = true;
        for id in (from + 1..=end).rev() {
            if needed[id] {
                self.nodes()[id].inputs().iter().for_each(|&input| needed[input] = true);
            }
        }
        let input = GraphNode {
            name: self.nodes()[from].name.clone(),
            kind: NodeKind::Input(shape.get(1..).unwrap_or(&[]).to_vec()),
        };
        let (mut nodes, mut places) = (vec![input], HashMap::from([(from, 0)]));
        for (id, node) in self.nodes().iter().enumerate() {
            if needed[id] && id != from {
                let mut node = node.clone();
                if let NodeKind::Op(_, inputs) = &mut node.kind {
                    inputs.iter_mut().for_each(|input| *input = places[input]);
                }
                places.insert(id, nodes.len());
                nodes.push(node);
            }
        }
        Self::new(nodes, places[&end])
    }

    /// The same graph, its leaves being others with these values.
    fn with_values(&self, values: &[Value]) -> Self {
        let mut values = values.iter();
        self.with_leaves(|leaf| {
            let value = values.next().expect("one for each leaf").float();
            match leaf.kind() {
                Kind::Param => Leaf::param(value),
                Kind::Buffer => Leaf::buffer(value),
            }
        })
    }
}

/// A part as one operator. Inputs: the value it starts from, and its leaves.
struct Part(Graph);

impl Rule for Part {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let (x, leaves) = (&inputs[0], &inputs[1..]);
        let mode = context.mode;
        let graph = self.0.with_values(leaves);
        let spans = context.spans.take();
        let tape = Tape::no_grad(mode).with_spans_of(spans.clone());
        let y = graph.run(tape.input(x.clone()))?.value();
        for (i, (_, leaf)) in graph.leaves().into_iter().enumerate() {
            // Parameters too: a range that is learned is observed once. What was set has other memory.
            let memory = |value: &Tensor<f32>| value.as_dense().map(<[f32]>::as_ptr);
            let value = leaf.get();
            if memory(&value) != memory(&leaves[i].float()) {
                context.update(1 + i, value);
            }
        }
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // Again, from the values there were before: what moved then moves here in vain.
        let (part, inputs) = (self.0.clone(), inputs.to_vec());
        let saving = Saving { recompute: false, ..context.saving() };
        Ok(Output::new(y, move |grad, wanted| {
            let graph = part.with_values(&inputs[1..]);
            let tape = Tape::new(mode).with_saving(saving).with_spans_of(spans);
            let x = match wanted[0] {
                true => tape.variable(inputs[0].clone()),
                false => tape.input(inputs[0].clone()),
            };
            let y = graph.run(x).expect("it ran before");
            let gradients = y.backward_with(grad);
            let of_leaf = |(_, leaf): &(String, Leaf)| gradients.get(leaf).cloned();
            let of_leaves: Vec<Option<Tensor<f32>>> = graph.leaves().iter().map(of_leaf).collect();
            std::iter::once(gradients.of(x).cloned()).chain(of_leaves).collect()
        }))
    }
}

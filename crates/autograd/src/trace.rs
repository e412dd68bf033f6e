use std::collections::HashMap;

use ottava_tensor::Tensor;

use crate::graph::{Graph, GraphNode, NodeKind};
use crate::tape::Origin;
use crate::{Error, Leaf, Mode, Result, Tape, Var};

/// Records `forward` on `example` as a [`Graph`].
///
/// Leaves are named by `leaves`; a captured tensor that has no name there is an error, since it would
/// be frozen into the graph unnoticed. The recording is checked by running it beside `forward` on a
/// second input of another batch size and other values: results must be equal, or the network depends on its
/// input in a way that a graph cannot.
///
/// # Errors
/// [`Error::Trace`], or what an operator refuses.
pub fn trace(
    leaves: &[(String, Leaf)],
    example: &Tensor<f32>,
    forward: impl for<'t> Fn(Var<'t>) -> Result<Var<'t>>,
) -> Result<Graph> {
    let Some((&batch, input_shape)) = example.shape().split_first() else {
        return Err(Error::Trace { reason: "the example must have a batch axis".into() });
    };
    let graph = {
        let tape = Tape::no_grad(Mode::EVAL).traced();
        let x = tape.input(example.clone());
        let output = forward(x)?;
        record(leaves, &tape, x, output, input_shape)?
    };

    // One image more, and no image as the example has it.
    let mut shape = example.shape().to_vec();
    shape[0] = batch + 1;
    let ramp = |i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0;
    let values = example.to_vec().into_iter().rev().cycle().take(shape.iter().product());
    let values: Vec<f32> = values.enumerate().map(|(i, x)| ramp(i) - x).collect();
    let second = Tensor::new(&shape, values)?;
    let (ours, theirs) = (Tape::no_grad(Mode::EVAL), Tape::no_grad(Mode::EVAL));
    let ours = graph.run(ours.input(second.clone()))?.tensor();
    let theirs = forward(theirs.input(second))?.tensor();
    // A NaN of the network's own is no difference.
    let same = ours.shape() == theirs.shape()
        && ours.iter().zip(theirs.iter()).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
    if !same {
        return Err(Error::Trace {
            reason: format!(
                "on a batch of {} the recording and the network differ; forward must not depend on the batch size or on values",
                batch + 1
            ),
        });
    }
    Ok(graph)
}

fn record(
    leaves: &[(String, Leaf)],
    tape: &Tape,
    x: Var<'_>,
    output: Var<'_>,
    input_shape: &[usize],
) -> Result<Graph> {
    let mut nodes: Vec<GraphNode> = Vec::new();
    let mut place = HashMap::new(); // tape id → graph id
    let mut names: HashMap<String, usize> = HashMap::new();
    // A number may make the name of a module that came before.
    let mut unique = |name: String| {
        let mut result = name.clone();
        while names.contains_key(&result) {
            let count = names.entry(name.clone()).or_default();
            *count += 1;
            result = format!("{name}.{count}");
        }
        names.insert(result.clone(), 0);
        result
    };
    for (id, origin) in tape.origins().into_iter().enumerate() {
        let node = match origin {
            Origin::Input if id == x.id() => GraphNode {
                name: unique("input".into()),
                kind: NodeKind::Input(input_shape.to_vec()),
            },
            Origin::Input => {
                return Err(Error::Trace {
                    reason: format!(
                        "value {id} is neither the input nor a named parameter; make it a buffer of the module"
                    ),
                });
            }
            Origin::Leaf(leaf) => {
                // A leaf read twice is one node.
                let known = nodes
                    .iter()
                    .position(|node: &GraphNode| node.leaf().is_some_and(|other| other.is(&leaf)));
                if let Some(known) = known {
                    place.insert(id, known);
                    continue;
                }
                let Some((name, _)) = leaves.iter().find(|(_, named)| named.is(&leaf)) else {
                    return Err(Error::Trace {
                        reason: format!(
                            "a parameter of shape {:?} has no name; let the module's visit show it",
                            leaf.get().shape()
                        ),
                    });
                };
                GraphNode { name: unique(name.clone()), kind: NodeKind::Leaf(leaf) }
            }
            Origin::Op(op, inputs) => {
                let inputs: Vec<usize> = inputs.iter().map(|input| place[input]).collect();
                // A layer is named as the module that owns its parameters, another operator by its kind.
                let owner = inputs.iter().find_map(|&input| match &nodes[input].kind {
                    NodeKind::Leaf(_) => nodes[input].name.rsplit_once('.').map(|(owner, _)| owner),
                    NodeKind::Input(_) | NodeKind::Op(..) => None,
                });
                let name = owner.map_or_else(|| op.name().to_owned(), str::to_owned);
                GraphNode { name: unique(name), kind: NodeKind::Op(op, inputs) }
            }
        };
        place.insert(id, nodes.len());
        nodes.push(node);
    }
    Graph::new(nodes, place[&output.id()])
}

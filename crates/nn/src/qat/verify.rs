use std::collections::HashMap;

use ottava_autograd::{self as autograd, Error, Graph, Mode, Result, Tape};
use ottava_quant::{Engine, Node, Options, Program, Value, Workspace};
use ottava_tensor::Tensor;

/// How one node of a quantization-aware graph and of its program compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDifference {
    /// The node's name, the same in both.
    pub name: String,
    /// The program's instruction.
    pub op: &'static str,
    /// How many elements were compared.
    pub elements: usize,
    /// How many of them differ.
    pub differing: usize,
    /// The largest difference, in steps of the grid (LSB); of floats, in units of the last place.
    pub max_lsb: u32,
}

impl NodeDifference {
    /// Takes in what was found of the same node with other images.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.differing += other.differing;
        self.max_lsb = self.max_lsb.max(other.max_lsb);
    }
}

/// Runs a prepared graph in evaluation mode beside its program and compares every element of every
/// node, codes and floats. The integer rule says that nothing differs.
///
/// # Errors
/// What either refuses; [`Error::Op`] if they do not have the same nodes or shapes.
pub fn verify(graph: &Graph, program: &Program, x: &Tensor<f32>) -> Result<Vec<NodeDifference>> {
    let tape = Tape::no_grad(Mode::EVAL);
    let mut simulated: HashMap<String, autograd::Value> = HashMap::new();
    graph.run_with(tape.input(x.clone()), |node, var| {
        simulated.insert(node.name.clone(), var.value());
    })?;
    let mut rows = Vec::new();
    let mut failure = None;
    // Unfused: a convolution whose addition is fused has no codes to compare.
    let engine = Engine::with_options(program, Options { fuse: false, ..Options::default() })?;
    engine.run_traced(x, &mut Workspace::default(), |index, theirs| {
        let node = &program.nodes()[index];
        match (simulated.get(&node.name), theirs) {
            (Some(autograd::Value::Codes(ours)), Value::Codes(theirs))
                if ours.codes().shape() == theirs.codes().shape() =>
            {
                let row = if ours.params() == theirs.params() {
                    let pairs = ours.codes().iter().zip(theirs.codes().iter());
                    difference(node, pairs.map(|(a, b)| u32::from(a.abs_diff(b))))
                } else {
                    // Codes on different grids are not comparable: every element counts as different.
                    difference(node, ours.codes().iter().map(|_| u32::MAX))
                };
                rows.push(row);
            }
            (Some(autograd::Value::Float(ours)), Value::Float(theirs))
                if ours.shape() == theirs.shape() =>
            {
                let pairs = ours.iter().zip(theirs.iter());
                rows.push(difference(node, pairs.map(|(a, b)| place(a).abs_diff(place(b)))));
            }
            // What the graph's operators do in passing: dequantizing, a sum before its ReLU.
            (None, Value::Float(_)) => {}
            _ => failure = failure.take().or_else(|| Some(node.name.clone())),
        }
    })?;
    match failure {
        None => Ok(rows),
        Some(name) => Err(Error::Op {
            op: "verify",
            reason: format!(
                "the graph has no node `{name}` of the program's shape; was the program converted from it?"
            ),
        }),
    }
}

fn difference(node: &Node, steps: impl Iterator<Item = u32>) -> NodeDifference {
    let (name, op) = (node.name.clone(), node.instr.op());
    let mut row = NodeDifference { name, op, elements: 0, differing: 0, max_lsb: 0 };
    for steps in steps {
        row.elements += 1;
        row.differing += usize::from(steps > 0);
        row.max_lsb = row.max_lsb.max(steps);
    }
    row
}

/// The place of a float among all floats in order.
fn place(x: f32) -> i32 {
    let bits = x.to_bits().cast_signed();
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

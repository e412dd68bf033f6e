use std::collections::HashMap;

use ottava_autograd::{Error, Graph, Mode, Result, Tape};
use ottava_quant::{Engine, Options, Program, QTensor, Value, Workspace};
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
    /// The largest difference, in steps of the grid (LSB).
    pub max_lsb: u32,
}

/// Runs a prepared graph in evaluation mode beside its program and compares every element of every
/// node. The integer rule says that nothing differs.
///
/// # Errors
/// What either refuses; [`Error::Op`] if they do not have the same nodes or shapes.
pub fn verify(graph: &Graph, program: &Program, x: &Tensor<f32>) -> Result<Vec<NodeDifference>> {
    let tape = Tape::no_grad(Mode::EVAL);
    let mut simulated: HashMap<String, QTensor> = HashMap::new();
    graph.run_with(tape.input(x.clone()), |node, var| {
        if let Some(codes) = var.value().codes() {
            simulated.insert(node.name.clone(), codes.clone());
        }
    })?;
    let mut rows = Vec::new();
    let mut failure = None;
    // Unfused: a convolution whose addition is fused has no codes to compare.
    let engine = Engine::with_options(program, Options { fuse: false, ..Options::default() })?;
    engine.run_traced(x, &mut Workspace::default(), |index, value| {
        let (node, Value::Codes(codes)) = (&program.nodes()[index], value) else { return };
        let same_shape = |ours: &&QTensor| ours.codes().shape() == codes.codes().shape();
        match simulated.get(&node.name).filter(same_shape) {
            Some(ours) => rows.push(difference(&node.name, node.instr.op(), ours, codes)),
            None => failure = failure.take().or_else(|| Some(node.name.clone())),
        }
    })?;
    match failure {
        None => Ok(rows),
        Some(name) => Err(Error::Op {
            op: "verify",
            reason: format!(
                "the graph has no integer node `{name}` of the program's shape; was the program converted from it?"
            ),
        }),
    }
}

fn difference(name: &str, op: &'static str, ours: &QTensor, theirs: &QTensor) -> NodeDifference {
    let mut row = NodeDifference {
        name: name.into(),
        op,
        elements: ours.codes().len(),
        differing: 0,
        max_lsb: 0,
    };
    // Codes on different grids are not comparable: every element counts as different.
    if ours.params() != theirs.params() {
        return NodeDifference { differing: row.elements, max_lsb: u32::MAX, ..row };
    }
    for (a, b) in ours.codes().iter().zip(theirs.codes().iter()) {
        row.differing += usize::from(a != b);
        row.max_lsb = row.max_lsb.max(u32::from(a.abs_diff(b)));
    }
    row
}

use std::collections::HashMap;

use crate::ops::NormRelu;
use crate::{Error, Kind, Leaf, Op, Result, Var};

/// A network as data: nodes in the order they run, and named leaves.
///
/// It comes from [`trace`](crate::trace()) or from a file, runs on a tape like the module it came
/// from, and is what passes rewrite: fusing, quantizing, converting, exporting.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<GraphNode>,
    input: NodeId,
    output: NodeId,
}

/// A node's place in its graph.
pub type NodeId = usize;

/// A node of a graph.
#[derive(Clone, Debug)]
pub struct GraphNode {
    /// Unique in the graph; torchvision's spelling for leaves and the layers that own them.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// The network's input, with the size of each axis behind the batch.
    Input(Vec<usize>),
    /// A parameter or buffer.
    Leaf(Leaf),
    /// An operator and the nodes it reads, all before it.
    Op(Op, Vec<NodeId>),
}

impl GraphNode {
    /// The parameter or buffer, if it is one.
    pub fn leaf(&self) -> Option<&Leaf> {
        match &self.kind {
            NodeKind::Leaf(leaf) => Some(leaf),
            NodeKind::Input(_) | NodeKind::Op(..) => None,
        }
    }

    /// The operator, if it is one.
    pub fn op(&self) -> Option<&Op> {
        match &self.kind {
            NodeKind::Op(op, _) => Some(op),
            NodeKind::Input(_) | NodeKind::Leaf(_) => None,
        }
    }

    /// The nodes it reads: none, unless it is an operator.
    pub fn inputs(&self) -> &[NodeId] {
        match &self.kind {
            NodeKind::Op(_, inputs) => inputs,
            NodeKind::Input(_) | NodeKind::Leaf(_) => &[],
        }
    }
}

/// What runs together with the ReLU behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RectifiedNorm {
    norm: NodeId,
    /// The sum in front of the ReLU, and what it adds to the BatchNorm's value.
    sum: Option<[NodeId; 2]>,
}

impl RectifiedNorm {
    /// The nodes that do not run by themselves.
    pub(crate) fn absorbed(&self) -> impl Iterator<Item = NodeId> {
        std::iter::once(self.norm).chain(self.sum.map(|[sum, _]| sum))
    }
}

impl Graph {
    /// A graph of nodes in order.
    ///
    /// # Errors
    /// [`Error::Trace`] if a node reads one that does not come before it, if an operator reads none, if
    /// names repeat, or if there is not exactly one input.
    pub fn new(nodes: Vec<GraphNode>, output: NodeId) -> Result<Self> {
        let refuse = |reason: String| Err(Error::Trace { reason });
        let mut names = HashMap::new();
        let mut input = None;
        for (id, node) in nodes.iter().enumerate() {
            if let Some(other) = names.insert(node.name.as_str(), id) {
                return refuse(format!("nodes {other} and {id} are both named `{}`", node.name));
            }
            match &node.kind {
                NodeKind::Input(_) if input.is_some() => {
                    return refuse("there is more than one input".into());
                }
                NodeKind::Input(_) => input = Some(id),
                NodeKind::Leaf(_) => {}
                NodeKind::Op(_, inputs) if inputs.is_empty() => {
                    return refuse(format!("`{}` reads nothing", node.name));
                }
                NodeKind::Op(_, inputs) => {
                    if let Some(later) = inputs.iter().find(|&&input| input >= id) {
                        return refuse(format!(
                            "`{}` reads node {later}, which comes after it",
                            node.name
                        ));
                    }
                }
            }
        }
        match input {
            Some(input) if output < nodes.len() => Ok(Self { nodes, input, output }),
            _ => refuse("there is no input, or no output".into()),
        }
    }

    /// The nodes, in the order they run.
    pub fn nodes(&self) -> &[GraphNode] {
        &self.nodes
    }

    /// The input node.
    pub fn input(&self) -> NodeId {
        self.input
    }

    /// The output node.
    pub fn output(&self) -> NodeId {
        self.output
    }

    /// The size of each axis of the input behind the batch.
    pub fn input_shape(&self) -> &[usize] {
        match &self.nodes[self.input].kind {
            NodeKind::Input(shape) => shape,
            NodeKind::Leaf(_) | NodeKind::Op(..) => unreachable!("`new` found the input here"),
        }
    }

    /// Every leaf with its name, in order.
    pub fn leaves(&self) -> Vec<(String, Leaf)> {
        self.nodes
            .iter()
            .filter_map(|node| Some((node.name.clone(), node.leaf()?.clone())))
            .collect()
    }

    /// The nodes that read each node.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            for &input in node.inputs() {
                readers[input].push(id);
            }
        }
        readers
    }

    /// Runs the network on the tape `x` is on.
    ///
    /// # Errors
    /// What an operator refuses, naming the node.
    pub fn run<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        match x.tape() {
            // Who records what ran wants each operator by itself.
            tape if tape.is_traced() => self.run_with(x, |_, _| {}),
            tape if tape.saving().recompute => self.run_in_parts(x),
            _ => self.run_whole(x),
        }
    }

    /// Runs the network; what goes back is kept.
    pub(crate) fn run_whole<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        self.run_fused(x, &self.rectified_norms(), |_, _| {})
    }

    /// Runs the network and shows every operator's result to `see`. Values are released as soon as
    /// nobody will read them again.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with<'t>(
        &self,
        x: Var<'t>,
        see: impl FnMut(&GraphNode, Var<'t>),
    ) -> Result<Var<'t>> {
        self.run_fused(x, &vec![None; self.nodes.len()], see)
    }

    /// For each ReLU, the BatchNorm in front of it, or in front of a sum in front of it, if nobody else
    /// reads what is in between.
    pub(crate) fn rectified_norms(&self) -> Vec<Option<RectifiedNorm>> {
        let readers = self.readers();
        let alone = |id: NodeId| id != self.output && readers[id].len() == 1;
        let is_norm = |id: NodeId| {
            alone(id) && matches!(self.nodes[id].kind, NodeKind::Op(Op::BatchNorm2d(_), _))
        };
        let fused = |node: &GraphNode| {
            let NodeKind::Op(Op::Relu(_), inputs) = &node.kind else {
                return None;
            };
            let &[read] = &inputs[..] else {
                return None;
            };
            match &self.nodes[read].kind {
                _ if is_norm(read) => Some(RectifiedNorm { norm: read, sum: None }),
                NodeKind::Op(Op::Add(_), inputs) if alone(read) => match inputs[..] {
                    [norm, other] | [other, norm] if is_norm(norm) => {
                        Some(RectifiedNorm { norm, sum: Some([read, other]) })
                    }
                    _ => None,
                },
                NodeKind::Op(..) | NodeKind::Input(_) | NodeKind::Leaf(_) => None,
            }
        };
        self.nodes.iter().map(fused).collect()
    }

    /// Runs the network; a ReLU with a BatchNorm in `norms` runs together with it.
    fn run_fused<'t>(
        &self,
        x: Var<'t>,
        norms: &[Option<RectifiedNorm>],
        mut see: impl FnMut(&GraphNode, Var<'t>),
    ) -> Result<Var<'t>> {
        let shape = x.shape();
        if shape.get(1..) != Some(self.input_shape()) {
            return Err(Error::Op {
                op: "network",
                reason: format!(
                    "the input's shape is {shape:?}, but the network takes [batch, {}]",
                    self.input_shape().iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
                ),
            });
        }
        // What each node reads as it runs: a fused ReLU what its BatchNorm would, and what is added; those
        // nothing.
        let mut reads: Vec<Vec<NodeId>> =
            self.nodes.iter().map(|node| node.inputs().to_vec()).collect();
        for (id, &norm) in norms.iter().enumerate() {
            if let Some(RectifiedNorm { norm, sum }) = norm {
                reads[id] = std::mem::take(&mut reads[norm]);
                if let Some([sum, other]) = sum {
                    reads[sum].clear();
                    reads[id].push(other);
                }
            }
        }
        let (mut first_use, mut last_use) =
            (vec![usize::MAX; self.nodes.len()], vec![0; self.nodes.len()]);
        for (id, reads) in reads.iter().enumerate() {
            for &input in reads {
                first_use[input] = first_use[input].min(id);
                last_use[input] = id;
            }
        }
        let tape = x.tape();
        let mut vars: Vec<Var<'t>> = Vec::with_capacity(self.nodes.len());
        for (id, node) in self.nodes.iter().enumerate() {
            // Whoever read a buffer before may have moved it.
            let read = |&input: &NodeId| match &self.nodes[input].kind {
                NodeKind::Leaf(leaf) if leaf.kind() == Kind::Buffer && first_use[input] < id => {
                    tape.leaf(leaf)
                }
                NodeKind::Leaf(_) | NodeKind::Op(..) | NodeKind::Input(_) => vars[input],
            };
            let inputs = || reads[id].iter().map(read).collect::<Vec<Var<'t>>>();
            let norm = norms[id].and_then(|fused| match &self.nodes[fused.norm].kind {
                NodeKind::Op(op @ Op::BatchNorm2d(norm), _) => {
                    let rule = NormRelu { norm: *norm, sum: fused.sum.is_some() };
                    Some((op, rule, &self.nodes[fused.norm].name))
                }
                NodeKind::Op(..) | NodeKind::Input(_) | NodeKind::Leaf(_) => None,
            });
            let var = match (&node.kind, norm) {
                (NodeKind::Input(_), _) => x,
                (NodeKind::Leaf(leaf), _) => tape.leaf(leaf),
                // Runs with a ReLU behind it: nobody looks at this variable.
                (NodeKind::Op(..), None) if reads[id].is_empty() => x,
                (NodeKind::Op(..), Some((op, rule, name))) => {
                    let run = tape.apply_as(op.clone(), &rule, &inputs());
                    let var = run.map_err(|error| error.at(name))?;
                    see(node, var);
                    var
                }
                (NodeKind::Op(op, _), None) => {
                    let run = tape.apply(op.clone(), &inputs());
                    let var = run.map_err(|error| error.at(&node.name))?;
                    see(node, var);
                    var
                }
            };
            vars.push(var);
            for &input in &reads[id] {
                if last_use[input] == id && input != self.output && input != self.input {
                    tape.release(vars[input]);
                }
            }
        }
        Ok(vars[self.output])
    }

    /// The same graph with leaves of its own: training the copy leaves this one as it is.
    pub fn detach(&self) -> Self {
        self.with_leaves(Leaf::detach)
    }

    /// The same graph with other leaves.
    pub(crate) fn with_leaves(&self, mut other: impl FnMut(&Leaf) -> Leaf) -> Self {
        let mut copy = self.clone();
        for node in &mut copy.nodes {
            if let NodeKind::Leaf(leaf) = &mut node.kind {
                *leaf = other(leaf);
            }
        }
        copy
    }
}

use std::collections::{HashMap, HashSet};

use ottava_autograd::{Error, Graph, GraphNode, Leaf, NodeId, NodeKind, Op, Result};
use ottava_quant::{BatchNormStats, fold_batch_norm};
use ottava_tensor::Tensor;

use super::super::fuse::{Chain, fuse};

/// A float graph without the BatchNorms behind convolutions: `W' = W · f`, `b' = β + (b − mean) · f`,
/// `f = γ / √(var + eps)`. Every convolution and linear layer gets a bias. It computes what `graph`
/// computes in evaluation, to rounding, with parameters of its own: where the helpers of this module
/// begin.
///
/// # Errors
/// [`Error::Node`] naming a layer whose BatchNorm does not fit it.
///
/// # Source
/// Jacob et al. 2018, section 3.2 (arXiv:1712.05877).
pub fn fold_norms(graph: &Graph) -> Result<Graph> {
    let chains = fuse(graph, true);
    let heads: HashMap<NodeId, &Chain> = chains.iter().map(|chain| (chain.head, chain)).collect();
    let norms: HashMap<NodeId, NodeId> =
        chains.iter().filter_map(|chain| Some((chain.norm?, chain.head))).collect();
    let mut folder =
        Folder { graph, readers: graph.readers(), nodes: Vec::new(), place: HashMap::new() };
    for (id, node) in graph.nodes().iter().enumerate() {
        match (&node.kind, norms.get(&id)) {
            (NodeKind::Op(..), Some(head)) if folder.folds(heads[head]) => {
                let head = folder.place[head];
                folder.place.insert(id, head);
            }
            (NodeKind::Op(op @ (Op::Conv2d(_) | Op::Linear(_)), inputs), _)
                if inputs[1..].iter().all(|&id| folder.leaf(id).is_some()) =>
            {
                let chain = heads.get(&id).copied();
                folder.layer(id, op, inputs, chain).map_err(|error| error.at(&node.name))?;
            }
            (NodeKind::Op(op, inputs), _) => {
                let inputs = inputs.iter().map(|id| folder.place[id]).collect();
                folder.push(Some(id), node.name.clone(), NodeKind::Op(op.clone(), inputs));
            }
            (kind, _) => {
                folder.push(Some(id), node.name.clone(), kind.clone());
            }
        }
    }
    let output = folder.place[&graph.output()];
    Ok(without_unread_leaves(folder.nodes, output)?.detach())
}

struct Folder<'a> {
    graph: &'a Graph,
    readers: Vec<Vec<NodeId>>,
    nodes: Vec<GraphNode>,
    /// Old node → new node.
    place: HashMap<NodeId, NodeId>,
}

impl Folder<'_> {
    fn push(&mut self, old: Option<NodeId>, name: String, kind: NodeKind) -> NodeId {
        self.nodes.push(GraphNode { name, kind });
        let id = self.nodes.len() - 1;
        if let Some(old) = old {
            self.place.insert(old, id);
        }
        id
    }

    fn leaf(&self, id: NodeId) -> Option<&Leaf> {
        self.graph.nodes()[id].leaf()
    }

    /// Whether a chain's layer and BatchNorm both have parameters, not values that are computed.
    fn folds(&self, chain: &Chain) -> bool {
        let inputs = |id: NodeId| self.graph.nodes()[id].inputs();
        let norm = chain.norm.map_or(&[][..], inputs);
        let inputs = inputs(chain.head);
        inputs[1..].iter().chain(norm.iter().skip(1)).all(|&id| self.leaf(id).is_some())
    }

    /// A layer with weights, its BatchNorm folded in.
    fn layer(
        &mut self,
        id: NodeId,
        op: &Op,
        inputs: &[NodeId],
        chain: Option<&Chain>,
    ) -> Result<()> {
        let value =
            |id: NodeId| self.leaf(id).map(Leaf::get).unwrap_or_else(|| Tensor::zeros(&[0]));
        let weight = value(inputs[1]);
        let bias = inputs.get(2).map(|&bias| value(bias).to_vec());
        let norm = chain.filter(|chain| self.folds(chain)).and_then(|chain| chain.norm);
        let (weight, bias) = match norm.map(|norm| &self.graph.nodes()[norm].kind) {
            Some(NodeKind::Op(Op::BatchNorm2d(attrs), leaves)) => {
                let [gamma, beta, mean, var] = [1, 2, 3, 4].map(|i| value(leaves[i]).to_vec());
                let (gamma, beta, mean, var) = (&gamma[..], &beta[..], &mean[..], &var[..]);
                let stats = BatchNormStats { gamma, beta, mean, var, eps: attrs.eps };
                fold_batch_norm(&weight, bias.as_deref(), &stats)?
            }
            _ => {
                let channels = weight.shape().first().copied().unwrap_or(0);
                (weight, bias.unwrap_or_else(|| vec![0.0; channels]))
            }
        };
        let layer = self.graph.nodes()[id].name.clone();
        let name = |folder: &Self, leaf: Option<&NodeId>, last: &str| match leaf {
            Some(&leaf) if folder.readers[leaf].len() == 1 => {
                folder.graph.nodes()[leaf].name.clone()
            }
            _ => format!("{layer}.{last}"),
        };
        let names = [name(self, inputs.get(1), "weight"), name(self, inputs.get(2), "bias")];
        let bias = Tensor::new(&[bias.len()], bias)?;
        let [weight, bias] = [weight, bias].map(|value| NodeKind::Leaf(Leaf::param(value)));
        let [weight_name, bias_name] = names;
        let weight = self.push(None, weight_name, weight);
        let bias = self.push(None, bias_name, bias);
        let inputs = vec![self.place[&inputs[0]], weight, bias];
        self.push(Some(id), layer, NodeKind::Op(op.clone(), inputs));
        Ok(())
    }
}

/// The graph of `nodes` without the leaves that nobody reads any more.
fn without_unread_leaves(nodes: Vec<GraphNode>, output: NodeId) -> Result<Graph> {
    let read: HashSet<NodeId> =
        nodes.iter().flat_map(GraphNode::inputs).copied().chain([output]).collect();
    let mut place = vec![0; nodes.len()];
    let mut kept: Vec<GraphNode> = Vec::new();
    for (id, mut node) in nodes.into_iter().enumerate() {
        if node.leaf().is_some() && !read.contains(&id) {
            continue;
        }
        if let NodeKind::Op(_, inputs) = &mut node.kind {
            inputs.iter_mut().for_each(|input| *input = place[*input]);
        }
        place[id] = kept.len();
        kept.push(node);
    }
    let output = *place.get(output).ok_or_else(|| Error::Trace {
        reason: "the network's output is not one of its nodes".into(),
    })?;
    Graph::new(kept, output)
}

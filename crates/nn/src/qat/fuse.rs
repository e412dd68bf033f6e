use ottava_autograd::{Graph, NodeId, Op};
use ottava_quant::Activation;

/// A layer and what is fused into it: the nodes of a float graph that become one integer operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The convolution, fully connected layer, addition, pooling or concatenation.
    pub head: NodeId,
    /// The BatchNorm behind it.
    pub norm: Option<NodeId>,
    /// The ReLU, or the clip to another interval with zero in it, behind that.
    pub activation: Option<NodeId>,
}

impl Chain {
    /// The last node: the one whose readers read the fused operator.
    pub fn tail(&self) -> NodeId {
        self.activation.or(self.norm).unwrap_or(self.head)
    }
}

/// Finds conv (+ BatchNorm) (+ activation), linear (+ activation), add (+ activation), average pooling
/// and concatenation; an activation only if `with_activation`. A node is fused only if nobody else reads
/// what comes before it.
pub(super) fn fuse(graph: &Graph, with_activation: bool) -> Vec<Chain> {
    let readers = graph.readers();
    let only_reader = |node: NodeId| match readers[node][..] {
        [reader] if node != graph.output() => graph.nodes()[reader].op().map(|op| (reader, op)),
        _ => None,
    };
    let activation_behind = |node| {
        only_reader(node)
            .filter(|(_, op)| activation_of(op).is_some_and(Activation::holds_zero))
            .map(|(id, _)| id)
    };
    let norm_behind = |node| {
        only_reader(node).filter(|(_, op)| matches!(op, Op::BatchNorm2d(_))).map(|(id, _)| id)
    };
    (0..graph.nodes().len())
        .filter_map(|head| {
            let (norm, may_clamp) = match graph.nodes()[head].op()? {
                Op::Conv2d(_) => (norm_behind(head), true),
                Op::Linear(_) | Op::Add(_) => (None, true),
                Op::AvgPool2d(_) | Op::GlobalAvgPool(_) | Op::Concat(_) => (None, false),
                Op::MatMul(_)
                | Op::BatchNorm2d(_)
                | Op::Relu(_)
                | Op::Clip(_)
                | Op::Mul(_)
                | Op::MaxPool2d(_)
                | Op::Flatten(_)
                | Op::Reshape(_)
                | Op::Slice(_)
                | Op::Pad(_)
                | Op::LogSoftmax(_)
                | Op::Softmax(_)
                | Op::CrossEntropy(_)
                | Op::Sum(_)
                | Op::FakeQuant(_)
                | Op::LearnedFakeQuant(_)
                | Op::Quantize(_)
                | Op::QuantLayer(_)
                | Op::QuantAdd(_)
                | Op::QuantAvgPool(_)
                | Op::QuantConcat(_) => return None,
            };
            let fuses = may_clamp && with_activation;
            let activation = fuses.then(|| activation_behind(norm.unwrap_or(head))).flatten();
            Some(Chain { head, norm, activation })
        })
        .collect()
}

/// The interval that an activation clamps to.
pub(super) fn activation_of(op: &Op) -> Option<Activation> {
    match op {
        Op::Relu(_) => Some(Activation::RELU),
        Op::Clip(clip) => Some(clip.activation()),
        _ => None,
    }
}

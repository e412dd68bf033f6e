use ottava_autograd::{Error, Graph, GraphNode, Leaf, Mode, NodeId, NodeKind, Op, Result, Tape};
use ottava_tensor::Tensor;

/// Estimates the running statistics of every BatchNorm anew: forgets them, runs `batches` with rounded
/// weights and activations, and keeps the mean over the batches. Returns how many there were; with none,
/// nothing changes.
///
/// Training leaves an average that lags behind the weights, and below 5 bits behind what rounding does to
/// them. To be done last, before [`convert`](super::convert()), on training images without augmentation;
/// ranges and weights stay. Each batch counts the same.
///
/// # Errors
/// What a batch's source says; what the network refuses, naming the layer. Then the statistics are what
/// they were.
///
/// # Source
/// Sun et al. 2019 (arXiv:1904.06201), section 3; PyTorch `BatchNorm2d(momentum=None)`.
pub fn reestimate_batch_norm<E: From<Error>>(
    graph: &Graph,
    batches: impl IntoIterator<Item = Result<Tensor<f32>, E>>,
) -> Result<usize, E> {
    let leaves: Vec<(Leaf, f32)> =
        graph.nodes().iter().flat_map(|n| statistics(graph, n)).collect();
    let before: Vec<Tensor<f32>> = leaves.iter().map(|(leaf, _)| leaf.get()).collect();
    let mode = Mode { batch_stats: true, observe: false, quantize: true };
    let mut count = 0;
    for batch in batches {
        let step = batch.and_then(|batch| {
            if count == 0 {
                leaves.iter().for_each(|(leaf, start)| {
                    leaf.set(Tensor::full(leaf.get().shape(), *start));
                });
            }
            // The mean of k values moves by 1/k towards the k-th.
            let graph = with_momentum(graph, 1.0 / (count + 1) as f32)?;
            let tape = Tape::no_grad(mode);
            graph.run(tape.input(batch))?;
            Ok(())
        });
        if let Err(error) = step {
            leaves.iter().zip(before).for_each(|((leaf, _), value)| leaf.set(value));
            return Err(error);
        }
        count += 1;
    }
    Ok(count)
}

/// Running mean and variance of a node's BatchNorm, each with the value it starts from.
fn statistics(graph: &Graph, node: &GraphNode) -> Vec<(Leaf, f32)> {
    let NodeKind::Op(op, inputs) = &node.kind else { return Vec::new() };
    let mean = match op {
        Op::BatchNorm2d(_) => 3,
        Op::QuantLayer(layer) if layer.norm.is_some() => 4 + usize::from(layer.bias),
        _ => return Vec::new(),
    };
    let leaf = |&input: &NodeId| graph.nodes()[input].leaf().cloned();
    let found = inputs.iter().skip(mean).take(2).filter_map(leaf);
    found.zip([0.0, 1.0]).collect()
}

/// The same graph, on the same leaves, whose statistics move by another share a batch.
fn with_momentum(graph: &Graph, momentum: f32) -> Result<Graph> {
    let mut nodes = graph.nodes().to_vec();
    for node in &mut nodes {
        let NodeKind::Op(op, _) = &mut node.kind else { continue };
        match op {
            Op::BatchNorm2d(norm) => norm.momentum = momentum,
            Op::QuantLayer(layer) => {
                if let Some(norm) = &mut layer.norm {
                    norm.momentum = momentum;
                }
            }
            _ => {}
        }
    }
    Graph::new(nodes, graph.output())
}

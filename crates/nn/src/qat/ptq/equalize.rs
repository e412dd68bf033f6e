use ottava_autograd::ops::LayerKind;
use ottava_autograd::{Error, Graph, GraphNode, Leaf, NodeId, NodeKind, Op, Result};
use ottava_tensor::Tensor;

/// Two layers between which [`equalize`] moved scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equalized {
    /// The layer whose output channels were divided.
    pub first: String,
    /// The layer whose input channels were multiplied.
    pub second: String,
    /// How many channels have a range in both.
    pub channels: usize,
}

/// Sweeps over all pairs at most.
const SWEEPS: usize = 100;
/// A sweep that changes no channel by more than this share is the last.
const SETTLED: f32 = 1e-4;

/// Makes the weight ranges of neighbouring layers equal, channel by channel: with `r₁` the largest
/// magnitude in output channel i of the first and `r₂` that in input channel i of the second,
/// `t = √(r₁/r₂)`, `W₁[i] /= t`, `b₁[i] /= t`, `W₂[:, i] *= t`, until nothing moves.
///
/// The network computes what it did, to rounding, since what is between (ReLU, pooling, flattening) passes
/// positive factors on. One scale a tensor, or few bits, then lose less: no channel is much smaller than
/// the others. Pairs with anything else between them, such as a BatchNorm (see
/// [`fold_norms`](super::fold_norms)), a ReLU6 or a second reader, are left alone; so are channels of zeros.
///
/// # Errors
/// [`Error::Node`] naming a layer whose weights are not finite.
///
/// # Source
/// Nagel et al. 2019, section 4.1 (arXiv:1906.04721).
pub fn equalize(graph: &Graph) -> Result<Vec<Equalized>> {
    let pairs = pairs(graph)?;
    for _ in 0..SWEEPS {
        let mut change = 0.0f32;
        for pair in &pairs {
            change = change.max(pair.equalize()?);
        }
        if change < SETTLED {
            break;
        }
    }
    let report = |pair: &Pair| {
        let ranges = pair.first.output_ranges().into_iter().zip(pair.second.input_ranges());
        let channels = ranges.filter(|&(a, b)| a > 0.0 && b > 0.0).count();
        Equalized { first: pair.first.name.clone(), second: pair.second.name.clone(), channels }
    };
    Ok(pairs.iter().map(report).collect())
}

/// A float layer with weights.
#[derive(Clone)]
struct Layer {
    name: String,
    kind: LayerKind,
    weight: Leaf,
    bias: Option<Leaf>,
    /// Columns of a linear layer's weight that belong to one channel before flattening.
    columns: usize,
}

impl Layer {
    fn at(graph: &Graph, id: NodeId) -> Option<Self> {
        let NodeKind::Op(op, inputs) = &graph.nodes()[id].kind else { return None };
        let kind = match op {
            Op::Conv2d(conv) => LayerKind::Conv(conv.attrs),
            Op::Linear(_) => LayerKind::Linear,
            _ => return None,
        };
        let leaf = |&id: &NodeId| graph.nodes()[id].leaf().cloned();
        let bias = match inputs.get(2) {
            None => None,
            Some(bias) => Some(leaf(bias)?),
        };
        let weight = inputs.get(1).and_then(leaf)?;
        Some(Self { name: graph.nodes()[id].name.clone(), kind, weight, bias, columns: 1 })
    }

    /// The channel of the input that each element of a weight of this shape multiplies.
    fn input_channel(&self, shape: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let inner: usize = shape.iter().skip(2).product();
        let (out, per_group) = (shape[0], shape[1]);
        let (groups, columns) = match self.kind {
            LayerKind::Conv(attrs) => (attrs.groups.max(1), 1),
            LayerKind::Linear => (1, self.columns),
        };
        let outs_per_group = (out / groups).max(1);
        move |i: usize| {
            let (o, j) = (i / (inner * per_group), i / inner % per_group);
            (o / outs_per_group * per_group + j) / columns
        }
    }

    fn inputs(&self) -> usize {
        let (shape, weight) = (self.weight.get(), &self.kind);
        let per_group = shape.shape()[1];
        match weight {
            LayerKind::Conv(attrs) => per_group * attrs.groups.max(1),
            LayerKind::Linear => per_group / self.columns,
        }
    }

    fn output_ranges(&self) -> Vec<f32> {
        let weight = self.weight.get().to_vec();
        let channels = self.weight.get().shape()[0].max(1);
        let most = |channel: &[f32]| channel.iter().fold(0.0, |most, &w| larger(most, w));
        weight.chunks((weight.len() / channels).max(1)).map(most).collect()
    }

    fn input_ranges(&self) -> Vec<f32> {
        let weight = self.weight.get();
        let channel = self.input_channel(weight.shape());
        let mut ranges = vec![0.0f32; self.inputs()];
        for (i, w) in weight.iter().enumerate() {
            let range = &mut ranges[channel(i)];
            *range = larger(*range, w);
        }
        ranges
    }
}

/// Two layers, the second reading what the first writes.
struct Pair {
    first: Layer,
    second: Layer,
}

impl Pair {
    /// One step; the largest change of a factor from 1.
    fn equalize(&self) -> Result<f32> {
        let (first, second) = (self.first.output_ranges(), self.second.input_ranges());
        let factors: Vec<f32> = first
            .iter()
            .zip(&second)
            .map(|(&r1, &r2)| {
                let nothing = (r1 == 0.0 || r2 == 0.0) && (r1 + r2).is_finite();
                if nothing { 1.0 } else { (r1 / r2).sqrt() }
            })
            .collect();
        if let Some(c) = factors.iter().position(|t| !t.is_finite() || *t == 0.0) {
            let factor = factors[c];
            let reason = format!("the weights are not finite, or too far apart (factor {factor})");
            let layer = if first[c].is_finite() { &self.second } else { &self.first };
            return Err(Error::Op { op: "equalize", reason }.at(&layer.name));
        }
        let divide = |leaf: &Leaf| {
            let value = leaf.get();
            let inner = (value.len() / factors.len().max(1)).max(1);
            let values: Vec<f32> =
                value.iter().enumerate().map(|(i, w)| w / factors[i / inner]).collect();
            leaf.set(Tensor::new(value.shape(), values)?);
            Ok::<_, Error>(())
        };
        divide(&self.first.weight)?;
        self.first.bias.as_ref().map_or(Ok(()), divide)?;
        let weight = self.second.weight.get();
        let channel = self.second.input_channel(weight.shape());
        let values: Vec<f32> =
            weight.iter().enumerate().map(|(i, w)| w * factors[channel(i)]).collect();
        self.second.weight.set(Tensor::new(weight.shape(), values)?);
        Ok(factors.iter().map(|t| (t - 1.0).abs()).fold(0.0, f32::max))
    }
}

/// Every pair of layers with nothing between them but what passes positive factors on.
fn pairs(graph: &Graph) -> Result<Vec<Pair>> {
    let readers = graph.readers();
    let mut pairs = Vec::new();
    for id in 0..graph.nodes().len() {
        let Some(first) = Layer::at(graph, id) else { continue };
        let mut at = id;
        let second = loop {
            let [reader] = readers[at][..] else { break None };
            if at == graph.output() {
                break None;
            }
            let NodeKind::Op(op, inputs) = &graph.nodes()[reader].kind else { break None };
            match op {
                Op::Relu(_)
                | Op::MaxPool2d(_)
                | Op::AvgPool2d(_)
                | Op::GlobalAvgPool(_)
                | Op::Flatten(_) => at = reader,
                Op::Conv2d(_) | Op::Linear(_) if inputs[0] == at => {
                    break Layer::at(graph, reader);
                }
                _ => break None,
            }
        };
        let Some(mut second) = second else { continue };
        // A weight or a bias that two layers share cannot follow both.
        let shared = |leaf: &Leaf| {
            let is_it = |node: &GraphNode| node.leaf().is_some_and(|other| other.is(leaf));
            let places = graph.nodes().iter().zip(&readers).filter(|(node, _)| is_it(node));
            places.map(|(_, readers)| readers.len()).sum::<usize>() > 1
        };
        let leaves = [Some(&first.weight), Some(&second.weight), first.bias.as_ref()];
        if leaves.into_iter().flatten().any(shared) {
            continue;
        }
        let channels = first.weight.get().shape()[0];
        if second.kind == LayerKind::Linear {
            let columns = second.weight.get().shape()[1];
            if channels == 0 || columns % channels != 0 {
                continue;
            }
            second.columns = columns / channels;
        }
        if second.inputs() == channels {
            pairs.push(Pair { first, second });
        }
    }
    Ok(pairs)
}

/// The larger magnitude; NaN is larger than any number.
fn larger(most: f32, w: f32) -> f32 {
    if most.total_cmp(&w.abs()).is_lt() { w.abs() } else { most }
}

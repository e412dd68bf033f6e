use std::fmt;

use ottava_autograd::{Error as TapeError, Graph, NodeKind, Op};
use ottava_quant::WeightSpec;

use super::analyze::add;
use super::mixed::Mixed;
use crate::{Batch, Error, Metrics, Result};

/// A width that a layer could have, and what the network would lose by it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// How its weights are quantized then.
    pub weight: WeightSpec,
    /// Bytes of its weights in a file: [`WeightSpec::bytes`].
    pub bytes: usize,
    /// The network with this layer quantized at this width and everything else in float.
    pub alone: Metrics,
}

/// The widths of one layer: a row of the sensitivity table, widest first.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The layer's name.
    pub layer: String,
    /// What it could be.
    pub candidates: Vec<Candidate>,
}

/// The width of each layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The layers and how their weights are quantized, in the order they run.
    pub weights: Vec<(String, WeightSpec)>,
    /// Bytes of all weights in a file.
    pub bytes: usize,
}

/// How much the network loses by each layer's width. `graphs` are one network prepared with one width of
/// weights after the other and calibrated; a layer that is as wide in two of them, such as the first and the
/// last, gets one candidate. What a layer reads is rounded as in the first graph.
///
/// # Errors
/// [`TapeError::Trace`] if the graphs are not of one network; what [`analyze`](super::analyze) refuses.
pub fn sensitivities<E: fmt::Display>(
    graphs: &[Graph],
    batches: impl IntoIterator<Item = std::result::Result<Batch, E>>,
) -> Result<Vec<Choice>> {
    let refuse = |reason: &str| Err(Error::from(TapeError::Trace { reason: reason.into() }));
    let Some(first) = graphs.first() else { return refuse("no graph to choose widths for") };
    let names = |graph: &Graph| graph.nodes().iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    if graphs.iter().any(|graph| names(graph) != names(first)) {
        return refuse(
            "the graphs of the widths have different nodes: weights without integer codes stay in float",
        );
    }
    let mixed = Mixed::new(first)?;
    let mut rows: Vec<(usize, Choice, Vec<&Graph>)> = Vec::new();
    for (id, node) in first.nodes().iter().enumerate() {
        let NodeKind::Op(Op::QuantLayer(_), inputs) = &node.kind else { continue };
        let Some(weight) = first.nodes()[inputs[1]].leaf() else { continue };
        let count = weight.get().len();
        let mut choice = Choice { layer: node.name.clone(), candidates: Vec::new() };
        let mut of = Vec::new();
        for graph in graphs {
            let NodeKind::Op(Op::QuantLayer(layer), _) = &graph.nodes()[id].kind else {
                return refuse("a layer is quantized at one width and in float at another");
            };
            let weight = layer.weight;
            if choice.candidates.iter().all(|candidate| candidate.weight.bits != weight.bits) {
                let bytes = weight.bytes(count);
                choice.candidates.push(Candidate { weight, bytes, alone: Metrics::default() });
                of.push(graph);
            }
        }
        rows.push((id, choice, of));
    }
    for (batch, pair) in batches.into_iter().enumerate() {
        let (images, targets) =
            pair.map_err(|error| Error::Data { batch, reason: error.to_string() })?;
        let exact = mixed.float(images)?;
        for (id, choice, of) in &mut rows {
            for (candidate, graph) in choice.candidates.iter_mut().zip(of) {
                let value = mixed.alone(*id, graph, &exact)?;
                add(&mut candidate.alone, &mixed.output(*id, value, &exact)?, &targets)?;
            }
        }
    }
    Ok(rows.into_iter().map(|(_, choice, _)| choice).collect())
}

/// Every allocation on the way from the widest to the narrowest, best first: each step narrows the layer
/// that gains the least loss for a byte saved. Take the first whose bytes fit, or the last that is
/// accurate enough.
///
/// ```
/// use ottava_nn::Metrics;
/// use ottava_nn::qat::{Candidate, Choice, allocate};
/// use ottava_quant::WeightSpec;
///
/// let candidate = |bits, bytes, loss| Candidate {
///     weight: WeightSpec { bits, ..WeightSpec::default() },
///     bytes,
///     alone: Metrics { images: 1, loss_sum: loss, ..Metrics::default() },
/// };
/// let layer = |name: &str, bytes, loss| Choice {
///     layer: name.into(),
///     candidates: vec![candidate(8, bytes, 0.1), candidate(4, bytes / 2, loss)],
/// };
/// let path = allocate(&[layer("small", 100, 0.2), layer("large", 1000, 0.3)]);
/// let bytes: Vec<usize> = path.iter().map(|allocation| allocation.bytes).collect();
/// assert_eq!(bytes, [1100, 600, 550]); // the large layer loses less for each byte
/// ```
pub fn allocate(choices: &[Choice]) -> Vec<Allocation> {
    let mut at = vec![0; choices.len()];
    let allocation = |at: &[usize]| {
        let chosen = choices
            .iter()
            .zip(at)
            .filter_map(|(choice, &i)| Some((choice.layer.clone(), choice.candidates.get(i)?)));
        let (mut weights, mut bytes) = (Vec::new(), 0);
        for (layer, candidate) in chosen {
            weights.push((layer, candidate.weight));
            bytes += candidate.bytes;
        }
        Allocation { weights, bytes }
    };
    let mut path = vec![allocation(&at)];
    loop {
        // The cheapest step of any layer to any narrower width that saves bytes.
        let steps = choices.iter().enumerate().flat_map(|(layer, choice)| {
            let now = choice.candidates.get(at[layer]);
            choice.candidates.iter().enumerate().skip(at[layer] + 1).filter_map(
                move |(to, next)| {
                    let saved = now?.bytes.checked_sub(next.bytes).filter(|&saved| saved > 0)?;
                    let lost = next.alone.loss() - now?.alone.loss();
                    // A step that loses nothing comes first, the larger ones before the smaller; one behind which
                    // there is no loss to tell, last.
                    let lost = if lost.is_nan() { f64::INFINITY } else { lost.max(1e-9) };
                    Some((lost / saved as f64, layer, to))
                },
            )
        });
        let Some((_, layer, to)) = steps.min_by(|a, b| a.0.total_cmp(&b.0)) else { return path };
        at[layer] = to;
        path.push(allocation(&at));
    }
}

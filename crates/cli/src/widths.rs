//! Mixed precision: a width for each layer, from a budget and the sensitivity table.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use ottava::autograd::{Graph, Mode};
use ottava::data::Loader;
use ottava::nn::qat::{Allocation, Choice, allocate, convert, prepare, sensitivities};
use ottava::nn::{Metrics, evaluate};
use ottava::quant::{Levels, WeightSpec};
use serde_json::{Value, json};

use crate::args::{Budget, Global};
use crate::output::{note, round, table};
use crate::qat::observe;
use crate::scheme::{Narrowed, Scheme};
use crate::setup::usage;
use crate::task::batches;

/// Widths, and why.
pub struct Chosen {
    /// The scheme with the width of each layer that was narrowed.
    pub scheme: Scheme,
    choices: Vec<Choice>,
    allocation: Allocation,
}

/// What there is to choose from where no flag says it.
const WIDTHS: [u8; 2] = [8, 4];

/// Chooses widths for the layers of a float graph if there is a budget. `images` are both what observers see
/// and what the loss of a width is measured on; `metadata` is what the file will say of its model.
pub fn choose(
    float: &Graph,
    scheme: &Scheme,
    budget: &Budget,
    images: &Loader,
    metadata: BTreeMap<String, String>,
    global: &Global,
) -> Result<Option<Chosen>> {
    if let Some(points) = budget.accuracy_budget.filter(|points| !points.is_finite()) {
        usage!("--accuracy-budget {points}: write percentage points, as in 0.5");
    }
    if budget.size_budget.is_none() && budget.accuracy_budget.is_none() {
        return Ok(None);
    }
    if scheme.weight_bits != Scheme::default().weight_bits {
        usage!(
            "--weight-bits {}: a budget chooses the widths, of those in --widths; name them there",
            scheme.weight_bits
        );
    }
    let levels = scheme.levels();
    if budget.widths.is_empty() && levels != Levels::Uniform {
        usage!(
            "--weight-levels: {levels:?} has no widths to choose from by itself; name them, as in --widths 4,3"
        );
    }
    let mut widths = if budget.widths.is_empty() { WIDTHS.to_vec() } else { budget.widths.clone() };
    if let Some(bits) = widths.iter().find(|&&bits| !levels.has_codes(bits)) {
        usage!(
            "--widths {bits}: weights of {levels:?} have no integer codes so wide; leave it out"
        );
    }
    widths.sort_unstable_by(|a, b| b.cmp(a));
    widths.dedup();
    let widest = widths[0];
    let base = Scheme { weight_bits: widest, ..scheme.clone() };
    let calibrated = |scheme: &Scheme| -> Result<Graph> {
        let graph = prepare(float, &scheme.map()?)?.graph;
        observe(&graph, images, global)?;
        Ok(graph)
    };
    note(global, "measuring what each layer loses by each width");
    let graphs = widths
        .iter()
        .map(|&bits| calibrated(&Scheme { weight_bits: bits, ..scheme.clone() }))
        .collect::<Result<Vec<_>>>()?;
    let choices = sensitivities(&graphs, batches(images, 0))?;
    let path = allocate(&choices);
    let narrowed = |allocation: &Allocation| {
        let wide = &path[0].weights;
        let changed = allocation.weights.iter().zip(wide).filter(|(now, wide)| now != wide);
        let narrowed = changed.map(|((layer, weight), _)| {
            let uniform = weight.levels == Levels::Uniform;
            Narrowed { layer: layer.clone(), bits: weight.bits, uniform }
        });
        Scheme { narrowed: narrowed.collect(), ..base.clone() }
    };
    let allocation = if let Some(most) = budget.size_budget {
        // All of a file but its weights depends on their widths in what it says of them alone: at most as
        // much as of all. Some room is for the shapes of those of four bits.
        let mut program = convert(&graphs[0])?;
        program.metadata_mut().extend(metadata);
        program
            .metadata_mut()
            .extend(path.last().map_or(Ok(BTreeMap::new()), |all| narrowed(all).metadata())?);
        let file = program.to_container()?.to_bytes().len();
        let rest = file.saturating_sub(path[0].bytes) + 64 * (choices.len() + 1);
        let fits = |allocation: &&Allocation| (allocation.bytes + rest) as u64 <= most;
        let least = path.last().map_or(rest, |allocation| allocation.bytes + rest);
        path.iter().find(fits).with_context(|| {
            format!("--size-budget {most}: the narrowest widths take about {least} bytes; allow more, or lower --widths and --first-last")
        })?
    } else {
        let budget = budget.accuracy_budget.unwrap_or_default() / 100.0;
        let top1 = |graph: &Graph, mode| -> Result<f64> {
            let metrics: Metrics = evaluate(graph, mode, batches(images, 0))?;
            Ok(metrics.top1())
        };
        let enough = top1(float, Mode::EVAL)? - budget;
        // The longest way down that stays accurate enough, by bisection.
        let (mut good, mut bad) = (0, path.len());
        if top1(&graphs[0], Mode::EVAL)? < enough {
            bail!(
                "--accuracy-budget: {widest} bits everywhere lose more than that already; allow more"
            );
        }
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            let graph = calibrated(&narrowed(&path[middle]))?;
            match top1(&graph, Mode::EVAL)? >= enough {
                true => good = middle,
                false => bad = middle,
            }
        }
        &path[good]
    };
    let (scheme, allocation) = (narrowed(allocation), allocation.clone());
    Ok(Some(Chosen { scheme, choices, allocation }))
}

impl Chosen {
    /// `[{"layer","bits","bytes","loss":{"8":…,"4":…}}]`.
    pub fn json(&self) -> Value {
        let rows = self.choices.iter().zip(&self.allocation.weights);
        rows.map(|(choice, (layer, weight))| {
            let loss: serde_json::Map<String, Value> = choice
                .candidates
                .iter()
                .map(|c| (c.weight.bits.to_string(), json!(round(c.alone.loss(), 6))))
                .collect();
            json!({"layer": layer, "bits": weight.bits, "bytes": bytes(choice, weight), "loss": loss})
        })
        .collect()
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let rows = self.choices.iter().zip(&self.allocation.weights);
        let rows = rows.map(|(choice, (layer, weight))| {
            let losses: Vec<String> = choice
                .candidates
                .iter()
                .map(|c| format!("{} bit {:.4}", c.weight.bits, c.alone.loss()))
                .collect();
            let bytes = bytes(choice, weight).to_string();
            vec![layer.clone(), weight.bits.to_string(), bytes, losses.join(", ")]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        table(&["layer", "bits", "bytes", "loss with this layer alone quantized"], &rows)
    }
}

/// Bytes of a layer's weights with the width that was chosen.
fn bytes(choice: &Choice, weight: &WeightSpec) -> usize {
    choice.candidates.iter().find(|c| c.weight == *weight).map_or(0, |c| c.bytes)
}

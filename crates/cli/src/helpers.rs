//! What helps where nothing is trained: `ptq --equalize --adaround --bias-correction`.

use anyhow::Result;
use ottava::autograd::Graph;
use ottava::data::Loader;
use ottava::nn::qat::{AdaRound, adaround, correct_bias, equalize, fold_norms};

use crate::args::{Global, Helpers};
use crate::output::{bar, note};

/// The float graph as the helpers want it: BatchNorms folded, ranges equal. Without any, `graph` itself.
pub fn before(graph: &Graph, helpers: &Helpers, global: &Global) -> Result<Graph> {
    if !(helpers.equalize || helpers.adaround || helpers.bias_correction) {
        return Ok(graph.clone());
    }
    let folded = fold_norms(graph)?;
    if helpers.equalize {
        let pairs = equalize(&folded)?;
        let channels: usize = pairs.iter().map(|pair| pair.channels).sum();
        note(
            global,
            format!("equalized {channels} channels between {} pairs of layers", pairs.len()),
        );
    }
    Ok(folded)
}

/// Rounds and corrects a calibrated graph.
pub fn after(graph: &Graph, helpers: &Helpers, images: &Loader, global: &Global) -> Result<()> {
    let batches = || images.epoch(0).map(|batch| batch.map(|batch| batch.images));
    if helpers.adaround {
        let layers = graph.nodes().iter().filter(|node| node.name.ends_with(".weight")).count();
        let bar = bar(global, "adaround", layers);
        let options = AdaRound { iterations: helpers.adaround_iterations, ..AdaRound::default() };
        let rows = adaround(graph, &options, batches, |row| {
            bar.set_message(row.layer.clone());
            bar.inc(1);
        })?;
        bar.finish_and_clear();
        let share = |row: &ottava::nn::qat::Rounded| match row.nearest > 0.0 {
            true => row.adaptive / row.nearest,
            false => 1.0,
        };
        let mean = rows.iter().map(share).sum::<f64>() / rows.len().max(1) as f64;
        let moved: usize = rows.iter().map(|row| row.moved).sum();
        note(
            global,
            format!(
                "adaround: {moved} weights rounded the other way; squared errors of layers are {:.0} % of the nearest's, on average",
                100.0 * mean
            ),
        );
    }
    if helpers.bias_correction {
        let rows = correct_bias(graph, batches)?;
        note(global, format!("corrected the biases of {} layers", rows.len()));
    }
    Ok(())
}

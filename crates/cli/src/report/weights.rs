//! How the weights of a run's networks are distributed.

use std::path::Path;

use anyhow::{Context, Result};
use ottava::nn::Network as _;
use ottava::quant::{Instr, Program};

use crate::model::read_container;

use crate::model::{Model, load};

/// Counts of a layer's weights.
pub struct Histogram {
    pub name: String,
    /// The ends of the bins, one more than there are counts.
    pub low: f64,
    pub high: f64,
    pub counts: Vec<u64>,
}

/// Bins of float weights.
const BINS: usize = 64;

/// Of every layer with a weight: codes of the integer network if the run has one, else float weights.
pub fn histograms(run: &Path) -> Result<Vec<Histogram>> {
    let (int8, best) = (run.join("int8.ottava"), run.join("best.ottava"));
    if int8.is_file() {
        let program = Program::from_container(&read_container(&int8)?)
            .with_context(|| int8.display().to_string())?;
        let layers = program.nodes().iter().filter_map(|node| match &node.instr {
            Instr::Conv { layer, .. } | Instr::Linear { layer, .. } => {
                let codes: Vec<i32> = layer.codes.iter().map(i32::from).collect();
                let most = codes.iter().map(|code| code.abs()).max().unwrap_or(1).max(1);
                let mut counts = vec![0; 2 * most as usize + 1];
                codes.iter().for_each(|code| counts[(code + most) as usize] += 1);
                let half = f64::from(most) + 0.5;
                Some(Histogram { name: node.name.clone(), low: -half, high: half, counts })
            }
            _ => None,
        });
        return Ok(layers.collect());
    }
    if !best.is_file() {
        return Ok(Vec::new());
    }
    let Model::Float(model) = load(&best, None)? else { return Ok(Vec::new()) };
    let leaves = model.network.leaves().into_iter().filter(|(_, leaf)| leaf.get().rank() > 1);
    Ok(leaves.map(|(name, leaf)| float(name, &leaf.get().to_vec())).collect())
}

fn float(name: String, weights: &[f32]) -> Histogram {
    // What is no number, or beyond all, has no place in a picture.
    let finite = || weights.iter().filter(|w| w.is_finite());
    let most = finite().fold(0.0f32, |most, w| most.max(w.abs())).max(f32::MIN_POSITIVE);
    let mut counts = vec![0; BINS];
    for w in finite() {
        let bin = ((w / most + 1.0) / 2.0 * BINS as f32) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    Histogram { name, low: -f64::from(most), high: f64::from(most), counts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_without_bounds_have_a_picture_of_the_others() {
        let histogram = float("w".into(), &[-1.0, f32::INFINITY, f32::NAN, 0.5, 1.0]);
        assert_eq!((histogram.low, histogram.high), (-1.0, 1.0));
        assert_eq!(histogram.counts.iter().sum::<u64>(), 3);
    }
}

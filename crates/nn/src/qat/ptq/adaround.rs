use std::fmt;

use ottava_autograd::{Error, Graph};
use ottava_quant::{Levels, QParams, WeightRange};
use ottava_tensor::Tensor;
use ottava_tensor::gemm::matmul;

use super::inputs::{both, images, sites, up_to};
use super::windows::{Groups, windows};
use crate::Result;

/// How [`adaround`] searches. The default suits layers of a few hundred inputs; each iteration multiplies
/// the weight `[o, k]` with a matrix `[k, k]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaRound {
    /// Steps of gradient descent, a layer.
    pub iterations: usize,
    /// Windows of the calibration images that a layer is fitted to, at most.
    pub rows: usize,
    /// `λ`: weight of the pull of each rounding towards 0 or 1, where the squared error of rounding to the
    /// nearest is 1 a weight.
    pub regularization: f32,
}

impl Default for AdaRound {
    fn default() -> Self {
        Self { iterations: 1000, rows: 8192, regularization: 0.05 }
    }
}

/// What [`adaround`] did to a layer: mean squared errors of its results over the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// The layer's name.
    pub layer: String,
    /// With every weight rounded to the nearest code.
    pub nearest: f64,
    /// With the roundings that were chosen: never more.
    pub adaptive: f64,
    /// Weights that are rounded the other way.
    pub moved: usize,
}

/// Chooses for each weight whether it is rounded up or down, so that each layer's result comes closest to
/// the float network's: minimises `‖W x − W_q x_q‖² + λ Σ (1 − |2h − 1|^β)` with `W_q = s · clamp(⌊W/s⌋ +
/// h(V))`, `h(V) = clip(1.2 · sigmoid(V) − 0.1, 0, 1)`, β falling from 20 to 2 after a warm start; then `h`
/// is rounded. Layers are rounded in order, each for what the rounded layers before it pass on.
///
/// `graph` is prepared from a graph without BatchNorms ([`fold_norms`](super::fold_norms)) and calibrated;
/// `batches` is called twice a layer at most and gives the same images each time. The weights become what was
/// chosen, so that conversion rounds them to just that. Nearest codes remain where the search finds nothing
/// better, channel by channel; for the largest weight of each grid, which holds the grid; and in layers whose
/// levels are not uniform.
///
/// # Errors
/// [`Error::Node`] naming a layer with a BatchNorm, with learned scales or scales of the
/// [`WeightRange::MeanMagnitude`], or whose observer saw nothing;
/// [`crate::Error::Data`].
///
/// # Source
/// Nagel et al. 2020 (arXiv:2004.10568). The sums over windows are taken once, as a Gram matrix, so that every
/// step sees all of them.
pub fn adaround<I, E>(
    graph: &Graph,
    options: &AdaRound,
    mut batches: impl FnMut() -> I,
    mut progress: impl FnMut(&Rounded),
) -> Result<Vec<Rounded>>
where
    I: IntoIterator<Item = std::result::Result<Tensor<f32>, E>>,
    E: fmt::Display,
{
    let reference = graph.detach();
    let rows = options.rows.div_ceil(batches().into_iter().count().max(1)).max(1);
    let mut report = Vec::new();
    for site in sites(graph) {
        let refuse = |reason: &str| {
            Err(Error::Op { op: "adaround", reason: reason.into() }.at(site.name).into())
        };
        if site.layer.norm.is_some() {
            return refuse("has a BatchNorm; prepare what fold_norms returns");
        }
        if site.layer.learn_scales {
            return refuse("learns its scales; prepare it without");
        }
        if site.layer.weight.range == WeightRange::MeanMagnitude {
            return refuse(
                "takes its scale from the mean of its weights, which every rounding moves; choose another range",
            );
        }
        if site.layer.weight.levels != Levels::Uniform {
            continue;
        }
        let leaf = site.leaves(graph)[0].clone();
        let weight = leaf.get();
        let groups = Groups::of(site.layer.kind, weight.shape());
        let (reference, rounded) =
            (up_to(&reference, site.inputs[0])?, up_to(graph, site.inputs[0])?);
        let mut sums: Vec<Sums> = (0..groups.count).map(|_| Sums::new(&groups)).collect();
        let values = weight.to_vec();
        for batch in images(batches()) {
            let (exact, x, _) = both(&reference, &rounded, batch?)?;
            let pairs = windows(site.layer.kind, weight.shape(), &exact, rows)?
                .into_iter()
                .zip(windows(site.layer.kind, weight.shape(), &x, rows)?);
            for ((group, sums), (exact, x)) in sums.iter_mut().enumerate().zip(pairs) {
                let part = &values[groups.weights(group)];
                sums.add(
                    &Tensor::new(&[groups.outputs, groups.inputs], part).map_err(Error::from)?,
                    &exact,
                    &x,
                )?;
            }
        }
        let spec = site.layer.weight;
        let grids = spec.grids(&weight).map_err(Error::from)?;
        let pinned = pinned(&values, &grids, spec.per_channel);
        let mut row = Rounded { layer: site.name.into(), nearest: 0.0, adaptive: 0.0, moved: 0 };
        let mut chosen = Vec::with_capacity(values.len());
        for (group, sums) in sums.into_iter().enumerate() {
            let (range, grids) = (groups.weights(group), &grids[groups.channels(group)]);
            let layer = Layer { weights: &values[range.clone()], grids, pinned: &pinned[range] };
            let found = layer.search(&sums.mean(), options)?;
            row.nearest += found.nearest / weight.shape()[0] as f64;
            row.adaptive += found.adaptive / weight.shape()[0] as f64;
            row.moved += found.moved;
            chosen.extend(found.values);
        }
        leaf.set(Tensor::new(weight.shape(), chosen).map_err(Error::from)?);
        progress(&row);
        report.push(row);
    }
    Ok(report)
}

/// The largest weight on each grid: rounded to the nearest, it holds the grid where it is.
fn pinned(weights: &[f32], grids: &[QParams], per_channel: bool) -> Vec<bool> {
    let channel = (weights.len() / grids.len().max(1)).max(1);
    let shared = if per_channel { channel } else { weights.len().max(1) };
    let of_grid = |weights: &[f32]| {
        let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        weights.iter().map(|w| w.abs() == most).collect::<Vec<_>>()
    };
    weights.chunks(shared).flat_map(of_grid).collect()
}

/// What is known of the windows `x` (float) and `x_q` (rounded) of a group, `y = W x`.
struct Sums {
    /// `Σ x_q x_qᵀ`, `[k, k]`.
    gram: Tensor<f32>,
    /// `Σ y x_qᵀ`, `[o, k]`.
    cross: Tensor<f32>,
    /// `Σ y²`, `[o]`.
    energy: Vec<f64>,
    rows: usize,
}

impl Sums {
    fn new(groups: &Groups) -> Self {
        let (o, k) = (groups.outputs, groups.inputs);
        let (gram, cross) = (Tensor::zeros(&[k, k]), Tensor::zeros(&[o, k]));
        Self { gram, cross, energy: vec![0.0; o], rows: 0 }
    }

    fn add(&mut self, weight: &Tensor<f32>, exact: &Tensor<f32>, x: &Tensor<f32>) -> Result<()> {
        let plus = |sum: &mut Tensor<f32>, more: Tensor<f32>| -> ottava_tensor::Result<()> {
            *sum = sum.zip_map("sum", &more, |a, b| a + b)?;
            Ok(())
        };
        let work = || -> ottava_tensor::Result<Tensor<f32>> {
            plus(&mut self.gram, matmul(&x.transpose(0, 1)?, x)?)?;
            let y = matmul(exact, &weight.transpose(0, 1)?)?;
            plus(&mut self.cross, matmul(&y.transpose(0, 1)?, x)?)?;
            Ok(y)
        };
        let y = { work }().map_err(Error::from)?;
        let outputs = self.energy.len();
        for (i, y) in y.iter().enumerate() {
            self.energy[i % outputs] += f64::from(y).powi(2);
        }
        self.rows += x.shape()[0];
        Ok(())
    }

    /// Means in the place of sums.
    fn mean(self) -> Self {
        let n = self.rows.max(1) as f32;
        let energy = self.energy.iter().map(|e| e / f64::from(n)).collect();
        Self { gram: self.gram.map(|x| x / n), cross: self.cross.map(|x| x / n), energy, rows: 1 }
    }

    /// The mean squared error of each channel with weights `w [o, k]`, and half its slope `w G − C`.
    fn error(&self, w: &Tensor<f32>) -> Result<(Vec<f64>, Vec<f32>)> {
        let product = matmul(w, &self.gram).map_err(Error::from)?.to_vec();
        let (w, cross) = (w.to_vec(), self.cross.to_vec());
        let k = (w.len() / self.energy.len().max(1)).max(1);
        let channels = w.chunks(k).zip(product.chunks(k)).zip(cross.chunks(k)).zip(&self.energy);
        let errors = channels.map(|(((w, product), cross), energy)| {
            let terms = w.iter().zip(product).zip(cross);
            let sum: f64 = terms
                .map(|((&w, &p), &c)| f64::from(w) * (f64::from(p) - 2.0 * f64::from(c)))
                .sum();
            (sum + energy).max(0.0)
        });
        let errors = errors.collect();
        Ok((errors, product.iter().zip(&cross).map(|(p, c)| p - c).collect()))
    }
}

/// The weights `[o, k]` of a group, and the grid of each channel.
struct Layer<'a> {
    weights: &'a [f32],
    grids: &'a [QParams],
    pinned: &'a [bool],
}

/// What a search found: values on the grid, and the sums of all channels' errors.
struct Found {
    values: Vec<f32>,
    nearest: f64,
    adaptive: f64,
    moved: usize,
}

/// Where `h(V)` is stretched to, so that it reaches 0 and 1.
const STRETCH: (f32, f32) = (-0.1, 1.1);
/// Adam's rate, and the moments' decay.
const RATE: f32 = 0.01;
const MOMENTS: (f32, f32) = (0.9, 0.999);
/// The share of the iterations without regularization.
const WARM_START: f32 = 0.2;

impl Layer<'_> {
    fn search(&self, sums: &Sums, options: &AdaRound) -> Result<Found> {
        let (o, total) = (self.grids.len(), self.weights.len());
        let k = (total / o.max(1)).max(1);
        let grid = |i: usize| &self.grids[i / k];
        let nearest: Vec<f32> =
            (0..total).map(|i| grid(i).fake_quantize(self.weights[i])).collect();
        let tensor = |values: &[f32]| Tensor::new(&[o, k], values).map_err(Error::from);
        let (nearest_errors, _) = sums.error(&tensor(&nearest)?)?;

        // V starts where h(V) = frac(W/s).
        let (low, high) = STRETCH;
        let floor: Vec<f32> =
            (0..total).map(|i| (self.weights[i] / grid(i).scale()).floor()).collect();
        let mut v: Vec<f32> = (0..total)
            .map(|i| {
                let fraction = self.weights[i] / grid(i).scale() - floor[i];
                let p = ((fraction - low) / (high - low)).clamp(0.01, 0.99);
                (p / (1.0 - p)).ln()
            })
            .collect();
        let value = |i: usize, h: f32| {
            let (qmin, qmax) = (grid(i).qmin() as f32, grid(i).qmax() as f32);
            if self.pinned[i] {
                nearest[i]
            } else {
                grid(i).scale() * (floor[i] + h).clamp(qmin, qmax)
            }
        };
        let soft = |v: f32| 1.0 / (1.0 + (-v).exp());
        let (mut first, mut second) = (vec![0.0f32; total], vec![0.0f32; total]);
        let (mut w, mut bias) = (vec![0.0f32; total], (1.0f32, 1.0f32));
        let warm = (options.iterations as f32 * WARM_START) as usize;
        for step in 0..options.iterations {
            for (i, w) in w.iter_mut().enumerate() {
                *w = value(i, (soft(v[i]) * (high - low) + low).clamp(0.0, 1.0));
            }
            let (_, slope) = sums.error(&tensor(&w)?)?;
            let progress = (step.saturating_sub(warm)) as f32
                / (options.iterations.saturating_sub(warm)).max(1) as f32;
            let beta = 2.0 + 9.0 * (1.0 + (std::f32::consts::PI * progress).cos());
            let lambda = if step < warm { 0.0 } else { options.regularization };
            bias = (bias.0 * MOMENTS.0, bias.1 * MOMENTS.1);
            for i in 0..total {
                let sigmoid = soft(v[i]);
                let h = sigmoid * (high - low) + low;
                let code = floor[i] + h;
                let open = h > 0.0 && h < 1.0 && !self.pinned[i];
                let in_range = code > grid(i).qmin() as f32 && code < grid(i).qmax() as f32;
                let error = nearest_errors[i / k];
                // ∂/∂h of the error in units of the nearest's, and of 1 − |2h − 1|^β.
                let fit = if open && in_range && error > 0.0 {
                    2.0 * slope[i] * grid(i).scale() * (k as f64 / error) as f32
                } else {
                    0.0
                };
                let far = 2.0 * h - 1.0;
                let pull = -2.0 * lambda * beta * far.abs().powf(beta - 1.0) * far.signum();
                let grad = if open {
                    (fit + pull) * sigmoid * (1.0 - sigmoid) * (high - low)
                } else {
                    0.0
                };
                first[i] = MOMENTS.0 * first[i] + (1.0 - MOMENTS.0) * grad;
                second[i] = MOMENTS.1 * second[i] + (1.0 - MOMENTS.1) * grad * grad;
                let step =
                    (first[i] / (1.0 - bias.0)) / ((second[i] / (1.0 - bias.1)).sqrt() + 1e-8);
                v[i] -= RATE * step;
            }
        }

        let hard: Vec<f32> =
            (0..total).map(|i| value(i, if soft(v[i]) > 0.5 { 1.0 } else { 0.0 })).collect();
        let (errors, _) = sums.error(&tensor(&hard)?)?;
        let better: Vec<bool> =
            errors.iter().zip(&nearest_errors).map(|(ours, theirs)| ours < theirs).collect();
        let values: Vec<f32> =
            (0..total).map(|i| if better[i / k] { hard[i] } else { nearest[i] }).collect();
        let adaptive = errors.iter().zip(&nearest_errors).map(|(a, b)| a.min(*b)).sum();
        let moved = values.iter().zip(&nearest).filter(|(a, b)| a != b).count();
        Ok(Found { values, nearest: nearest_errors.iter().sum(), adaptive, moved })
    }
}

//! Anything that turns images into logits, and how well it does.

use std::time::Instant;

use anyhow::{Result, bail};
use ottava::autograd::{Mode, Tape};
use ottava::data::Loader;
use ottava::nn::{self, Metrics, Network};
use ottava::quant::{Engine, Options, Workspace};
use ottava::tensor::Tensor;
use serde_json::{Value, json};

use crate::args::Global;
use crate::output::{bar, round};
use crate::setup::check_interrupt;

/// What turns images into logits.
pub trait Classifier {
    /// Logits `[n, classes]` of images `[n, c, h, w]`.
    fn logits(&mut self, images: Tensor<f32>) -> Result<Tensor<f32>>;
}

/// A float or quantization-aware network, in evaluation mode.
pub struct Evaluating<'a, N: ?Sized>(pub &'a N);

impl<N: Network + ?Sized> Classifier for Evaluating<'_, N> {
    fn logits(&mut self, images: Tensor<f32>) -> Result<Tensor<f32>> {
        Ok(nn::predict(self.0, Mode::EVAL, images)?)
    }
}

/// A program.
pub struct Deployed {
    engine: Engine,
    workspace: Workspace,
}

impl Deployed {
    pub fn new(program: &ottava::quant::Program) -> Result<Self> {
        Self::with_options(program, Options::fast())
    }

    pub fn with_options(program: &ottava::quant::Program, options: Options) -> Result<Self> {
        let engine = Engine::with_options(program, options)?;
        Ok(Self { engine, workspace: Workspace::default() })
    }
}

impl Classifier for Deployed {
    fn logits(&mut self, images: Tensor<f32>) -> Result<Tensor<f32>> {
        Ok(self.engine.run(&images, &mut self.workspace)?)
    }
}

/// How a classifier did on a data set.
pub struct Judged {
    pub metrics: Metrics,
    /// The class with the largest logit, image by image.
    pub predictions: Vec<usize>,
    /// All logits, `[images, classes]`.
    pub logits: Tensor<f32>,
}

impl Judged {
    /// Percent of images whose class came first.
    pub fn top1(&self) -> f64 {
        round(100.0 * self.metrics.top1(), 4)
    }

    /// `{"top1": …, "top5": …, "loss": …, "correct": …}`.
    pub fn json(&self) -> Value {
        json!({
            "top1": self.top1(),
            "top5": round(100.0 * self.metrics.top5(), 4),
            "loss": round(self.metrics.loss(), 6),
            "correct": self.metrics.correct1,
        })
    }

    /// The fraction of images on which both choose the same class.
    pub fn agreement(&self, other: &Self) -> f64 {
        let same = self.predictions.iter().zip(&other.predictions).filter(|(a, b)| a == b).count();
        same as f64 / self.predictions.len().max(1) as f64
    }
}

/// Runs a classifier over a data set.
pub fn judge(
    classifier: &mut dyn Classifier,
    loader: &Loader,
    what: &str,
    global: &Global,
) -> Result<Judged> {
    let bar = bar(global, what, loader.batches());
    let (mut metrics, mut logits, mut predictions) = (Metrics::default(), Vec::new(), Vec::new());
    let mut classes = 0;
    for batch in loader.epoch(0) {
        check_interrupt("while images were classified")?;
        let batch = batch?;
        let rows = classifier.logits(batch.images)?;
        // A loader of images may hold classes that the network does not know: refused by name.
        let tape = Tape::no_grad(Mode::EVAL);
        let loss = tape.input(rows.clone()).cross_entropy(&batch.labels, 0.0)?.tensor().item()?;
        metrics.add(&rows, &batch.labels, loss)?;
        predictions.extend(rows.argmax_rows()?);
        classes = rows.shape()[1];
        logits.extend(rows.to_vec());
        bar.inc(1);
    }
    bar.finish_and_clear();
    if predictions.is_empty() {
        bail!(
            "no picture of the test split is left: --bad-images refuse names what is wrong with them"
        );
    }
    let logits = Tensor::new(&[predictions.len(), classes], logits)?;
    Ok(Judged { metrics, predictions, logits })
}

/// The median time of one run, in milliseconds, after a warm-up.
pub fn latency(
    classifier: &mut dyn Classifier,
    images: &Tensor<f32>,
    runs: usize,
) -> Result<Timing> {
    for _ in 0..(runs / 5).max(2) {
        classifier.logits(images.clone())?;
    }
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        classifier.logits(images.clone())?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| round(times[((times.len() - 1) as f64 * share).round() as usize], 4);
    Ok(Timing { median: at(0.5), p95: at(0.95) })
}

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median: f64,
    pub p95: f64,
}

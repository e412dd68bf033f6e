//! What a training step costs: forward, cross-entropy, backward, SGD; float beside quantization-aware.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p ottava-nn --example training_step -- resnet20 128 10
//! ```
//!
//! The network (`resnet20`, `resnet18_cifar`), the batch, the steps; then any of `recompute` and `bf16`, which
//! keep memory small, and `frozen`: quantization-aware steps then leave BatchNorm's statistics where they are, as
//! the later epochs of a training do. Float and quantization-aware steps alternate. With one thread, the time is the thread's own on a core, where the system tells it: others
//! on the machine do not count.

use std::time::Instant;

use ottava_autograd::{Mode, Saving, Tape};
use ottava_nn::models::{self, ModelConfig};
use ottava_nn::optim::{self, Optimizer, OptimizerConfig, OptimizerKind};
use ottava_nn::qat::{QConfigMap, prepare};
use ottava_nn::{Network, init, trace};
use ottava_tensor::Tensor;
use ottava_tensor::parallel;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).map_or(default, String::as_str).to_owned();
    let (name, batch, steps) = (arg(0, "resnet20"), arg(1, "128").parse()?, arg(2, "5").parse()?);
    let module = models::build(&name, &ModelConfig::default())?;
    let graph = trace(&*module, &Tensor::zeros(&[1, 3, 32, 32]))?;
    let prepared = prepare(&graph.detach(), &QConfigMap::default())?.graph;
    let saving = Saving {
        recompute: args.iter().any(|arg| arg == "recompute"),
        half: args.iter().any(|arg| arg == "bf16"),
    };
    let frozen = args.iter().any(|arg| arg == "frozen");
    let qat = Mode { batch_stats: !frozen, ..Mode::TRAIN };
    let mut steppers = [
        Stepper::new(&graph, Mode::TRAIN, batch, saving)?,
        Stepper::new(&prepared, qat, batch, saving)?,
    ];
    let mut times = [const { Vec::<f64>::new() }; 2];
    for step in 0..=steps {
        for (stepper, times) in steppers.iter_mut().zip(&mut times) {
            let (start, wall) = (on_core(), Instant::now());
            stepper.step()?;
            let wall = wall.elapsed().as_secs_f64() * 1e3;
            let time = match (start, on_core()) {
                (Some(start), Some(end)) if parallel::threads() == 1 => (end - start) as f64 / 1e6,
                _ => wall,
            };
            // The first step warms up.
            if step > 0 {
                times.push(time);
            }
        }
    }
    let [float, qat] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0])
    });
    println!(
        "{name} batch {batch}, {} threads: f32 {:.1} ms (best {:.1}), QAT {:.1} ms (best {:.1}), ratio {:.3} ({:.3})",
        parallel::threads(),
        float.0,
        float.1,
        qat.0,
        qat.1,
        qat.0 / float.0,
        qat.1 / float.1
    );
    Ok(())
}

/// Nanoseconds the main thread has been on a core.
fn on_core() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse().ok()
}

struct Stepper<'a> {
    network: &'a dyn Network,
    mode: Mode,
    optimizer: Box<dyn Optimizer>,
    saving: Saving,
    images: Tensor<f32>,
    targets: Vec<usize>,
}

impl<'a> Stepper<'a> {
    fn new(
        network: &'a dyn Network,
        mode: Mode,
        batch: usize,
        saving: Saving,
    ) -> ottava_nn::Result<Self> {
        let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 1e-4)
            .build(network.parameters(), optim::all)?;
        let images = init::normal(&[batch, 3, 32, 32], 1.0, &mut init::rng(1)).channels_last();
        let targets = (0..batch).map(|i| i % 10).collect();
        Ok(Self { network, mode, optimizer, saving, images, targets })
    }

    fn step(&mut self) -> ottava_nn::Result<()> {
        let gradients = {
            let tape = Tape::new(self.mode).with_saving(self.saving);
            let logits = self.network.run(tape.input(self.images.clone()))?;
            logits.cross_entropy(&self.targets, 0.0)?.backward()?
        };
        self.optimizer.step(&gradients, 0.01)
    }
}

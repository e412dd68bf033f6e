//! Which algorithm each convolution is fastest with on the machine at hand, measured once and kept in
//! the program's file.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ottava_tensor::conv::int8::Algorithm;
use ottava_tensor::cpu;

use crate::step::Step;
use crate::{Engine, Options, Program, Result};

/// The metadata entry that holds the choice.
const KEY: &str = "tuning";

/// How long each algorithm of each layer is measured.
const TIME: Duration = Duration::from_millis(20);

/// A measured choice, and the machine it is for.
///
/// ```
/// use ottava_quant::{Engine, Options, Program, QParams, Instr, Tuning};
///
/// let mut builder = Program::builder(&[3, 8, 8])?;
/// let codes = builder.push("input", Instr::Quantize(QParams::new(0.1, 128, 0..=255)?), &[builder.input()])?;
/// let mut program = builder.finish(codes)?;
/// Tuning::measure(&program, &Options::default(), 1)?.store(&mut program);
/// let engine = Engine::new(&program)?; // finds the choice in the program
/// # Ok::<(), ottava_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    machine: String,
    algorithms: BTreeMap<String, Algorithm>,
}

impl Tuning {
    /// Times every algorithm of every convolution of `program` on `batch` images, or on as many as run at
    /// a time, on the current thread pool; what is chosen is then followed at any number of threads. Takes a
    /// fraction of a second for a ResNet; alone on the machine it is right.
    ///
    /// # Errors
    /// As [`Engine::with_options`] and [`Engine::workspace_bytes`].
    pub fn measure(program: &Program, options: &Options, batch: usize) -> Result<Self> {
        // As many images as run at a time; what no engine can run is refused.
        let engine = Engine::with_options(program, *options)?;
        engine.workspace_bytes(batch)?;
        let batch = batch.clamp(1, engine.part());
        let mut algorithms = BTreeMap::new();
        for (index, node) in program.nodes().iter().enumerate() {
            if node.instr.layer().is_none() {
                continue;
            }
            let mut best: Option<(Duration, Algorithm)> = None;
            for algorithm in Algorithm::ALL {
                let step = Step::new(program, index, &Options { algorithm, ..*options })?;
                // What does not apply gives way to another, which is measured under its own name.
                if step.algorithm() != Some(algorithm) {
                    continue;
                }
                let time = time(&step, batch);
                if best.is_none_or(|(least, _)| time < least) {
                    best = Some((time, algorithm));
                }
            }
            if let Some((_, algorithm)) = best {
                algorithms.insert(node.name.clone(), algorithm);
            }
        }
        Ok(Self { machine: machine(options), algorithms })
    }

    /// Keeps the choice in a program's metadata, and so in its file.
    pub fn store(&self, program: &mut Program) {
        let mut text = self.machine.clone();
        for (name, algorithm) in &self.algorithms {
            text.push_str(&format!("\n{}\t{name}", algorithm.name()));
        }
        program.metadata_mut().insert(KEY.into(), text);
    }

    /// The choice that a program keeps, if it is for this machine and level; any other is no use.
    pub fn of(program: &Program, options: &Options) -> Option<Self> {
        let mut lines = program.metadata().get(KEY)?.lines();
        let machine = lines.next().filter(|known| *known == machine(options))?.to_owned();
        let algorithms = lines
            .filter_map(|line| {
                let (algorithm, name) = line.split_once('\t')?;
                let known = Algorithm::ALL.into_iter().find(|known| known.name() == algorithm)?;
                Some((name.to_owned(), known))
            })
            .collect();
        Some(Self { machine, algorithms })
    }

    /// The choice for the layer called `name`.
    pub fn algorithm(&self, name: &str) -> Option<Algorithm> {
        self.algorithms.get(name).copied()
    }
}

/// The processor and the instruction set: what a measurement holds for.
fn machine(options: &Options) -> String {
    format!("{} ({})", cpu::name(), options.level.name())
}

/// The least time of a run.
fn time(step: &Step, batch: usize) -> Duration {
    let mut run = step.rehearse(batch);
    run();
    let (start, mut least) = (Instant::now(), Duration::MAX);
    while start.elapsed() < TIME {
        let before = Instant::now();
        run();
        least = least.min(before.elapsed());
    }
    least
}

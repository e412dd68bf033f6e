//! Ratios that mean something on a machine whose speed changes: both sides run in turn, in turns of a
//! few milliseconds, and what is printed is the median of their ratios (and the ratio of their bests).
//!
//! - the share of the multiply limit that products reach, int8 and `f32`;
//! - how much faster exact Winograd is than the direct convolution.
//!
//! One thread: `RAYON_NUM_THREADS=1 cargo bench --bench ratios`, with a word to choose rows by.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ottava_benches::{LAYERS, PRODUCTS, dense};
use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output, Requantize};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry};
use ottava_tensor::gemm::PackedMatrix;
use ottava_tensor::gemm::int8::Int8Gemm;
use ottava_tensor::simd::limits::{self, Mix};
use ottava_tensor::{Level, Tensor};

/// Turns a side has.
const TURNS: usize = 41;
/// How long a turn takes, about.
const TURN: Duration = Duration::from_millis(4);

/// A side of a comparison: one run of it, and how much work that is.
struct Side<'a> {
    run: Box<dyn FnMut() + 'a>,
    work: f64,
    per_turn: usize,
}

impl<'a> Side<'a> {
    fn new(work: usize, mut run: impl FnMut() + 'a) -> Self {
        run();
        let start = Instant::now();
        run();
        let once = start.elapsed().max(Duration::from_nanos(100));
        let per_turn = (TURN.as_secs_f64() / once.as_secs_f64()) as usize;
        Self { run: Box::new(run), work: work as f64, per_turn: per_turn.max(1) }
    }

    /// Work a second over one turn.
    fn turn(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..self.per_turn {
            (self.run)();
        }
        self.work * self.per_turn as f64 / start.elapsed().as_secs_f64()
    }
}

/// The work a second of `one` over that of `other`.
fn compare(name: &str, mut one: Side<'_>, mut other: Side<'_>) {
    let mut ratios = Vec::with_capacity(TURNS);
    let (mut best_one, mut best_other) = (0.0f64, 0.0f64);
    for _ in 0..TURNS {
        let (a, b) = (one.turn(), other.turn());
        ratios.push(a / b);
        (best_one, best_other) = (best_one.max(a), best_other.max(b));
    }
    ratios.sort_by(f64::total_cmp);
    let giga = |rate: f64| rate / 1e9;
    println!(
        "{name:<48} {:5.2} ({:4.2})   {:7.1} and {:7.1} G/s at best",
        ratios[TURNS / 2],
        best_one / best_other,
        giga(best_one),
        giga(best_other)
    );
}

/// The limit of a mix, as a side.
fn limit(level: Level, mix: Mix) -> Side<'static> {
    const STEPS: usize = 2_000;
    let work = limits::run(level, mix, STEPS) as usize;
    Side::new(work, move || {
        limits::run(level, mix, black_box(STEPS));
    })
}

fn law(channels: usize) -> Requantize {
    Requantize {
        bias: vec![0; channels],
        multiplier: vec![1e-3; channels],
        zero_point: 3,
        low: 0,
        high: 255,
    }
}

/// Weights of up to ±127, small ones more often, as training leaves them.
fn weights(len: usize) -> Vec<i8> {
    (0..len as i32).map(|i| ((i * 31 % 255 - 127).pow(3) / 127 / 127) as i8).collect()
}

/// A convolution from codes to codes.
fn layer(level: Level, geometry: ConvGeometry, algorithm: Algorithm) -> Option<Side<'static>> {
    let shape = geometry.weight_shape();
    let weights = weights(shape.iter().product());
    let conv =
        Int8Conv::new(level, &weights, shape, geometry.attrs, algorithm).expect("K is small");
    let input = dense(geometry.input_shape().iter().product(), 5u8);
    let mut out = dense(geometry.output_shape().iter().product(), 0);
    let law = law(geometry.out_channels);
    let mut scratch = vec![0; conv.scratch_len(&geometry)];
    (conv.algorithm() == algorithm).then(|| {
        Side::new(geometry.macs() as usize, move || {
            let input = input.as_slice().expect("dense");
            let output = Output::Requantize(&law, black_box(out.data_mut()));
            conv.run(&geometry, input, 3, output, &mut scratch);
        })
    })
}

fn main() {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    // The plain level is the law, not a competitor.
    let levels: Vec<Level> =
        Level::available().into_iter().filter(|level| level.name() != "scalar").collect();

    println!("share of the limit: median (by bests)");
    for &level in &levels {
        for [m, n, k] in PRODUCTS {
            let macs = m * n * k;
            let name = format!("{} int8 {m}x{n}x{k} sums", level.name());
            if chosen(&name) {
                let gemm = Int8Gemm::new(level, k, n, &weights(k * n)).expect("k is small");
                let (a, mut out) = (dense(m * k, 5u8), dense(m * n, 0));
                let mut scratch = vec![0; gemm.scratch_len(m)];
                let product = Side::new(macs, || {
                    let a = a.as_slice().expect("dense");
                    let output = Output::Accumulate(black_box(out.data_mut()));
                    gemm.run(m, a, 3, output, &mut scratch);
                });
                compare(&name, product, limit(level, Mix::Bytes));
            }
            let name = format!("{} int8 {m}x{n}x{k} codes", level.name());
            if chosen(&name) {
                let geometry = ConvGeometry::new([1, k, m, 1], [n, k, 1, 1], ConvAttrs::new(1, 0))
                    .expect("a product");
                let product = layer(level, geometry, Algorithm::Direct).expect("always there");
                compare(&name, product, limit(level, Mix::Bytes));
            }
            let name = format!("{} f32 {m}x{n}x{k}", level.name());
            if chosen(&name) {
                let a = Tensor::new(&[m, k], vec![0.5; m * k]).expect("a matrix");
                let b = Tensor::new(&[k, n], vec![0.25; k * n]).expect("a matrix");
                let packed = PackedMatrix::new_on(level, &b).expect("a matrix");
                let product = Side::new(macs, || {
                    packed.multiply(black_box(&a)).expect("shapes fit");
                });
                compare(&name, product, limit(level, Mix::Floats));
            }
        }
    }

    println!("\nWinograd over direct: median (by bests)");
    for &level in &levels {
        for [channels, side] in LAYERS {
            let geometry = ConvGeometry::new(
                [1, channels, side, side],
                [channels, channels, 3, 3],
                ConvAttrs::new(1, 1),
            )
            .expect("ResNet's own");
            for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
                let name = format!("{} {algorithm:?} {channels}x{side}x{side}", level.name());
                if !chosen(&name) {
                    continue;
                }
                if let Some(winograd) = layer(level, geometry, algorithm) {
                    let direct = layer(level, geometry, Algorithm::Direct).expect("always there");
                    compare(&name, winograd, direct);
                }
            }
        }
    }
}

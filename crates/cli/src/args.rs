//! Flags. Each is also a key of `--config FILE.toml`; flags on the command line win.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ottava::data::MAX_WORKERS;
use serde::Serialize;

use crate::scheme::Scheme;

/// Train a network, make it quantization-aware, convert it to integers and run it.
#[derive(Debug, Parser)]
#[command(name = "ottava", version, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of them
pub enum Command {
    /// The whole road on embedded images: float training, PTQ, QAT, conversion, evaluation of all
    Demo(Demo),
    /// Train a float network, from scratch or from pretrained weights
    Train(Train),
    /// Quantization-aware training of a float network, then conversion
    Qat(Qat),
    /// Post-training quantization: calibrate and convert, no training
    Ptq(Ptq),
    /// Top-1, top-5 and loss of any model file, float or int8
    Eval(Eval),
    /// The quantization-aware graph against the integer program, node by node
    Verify(Verify),
    /// Classes and probabilities for image files
    Predict(Predict),
    /// Latency and throughput, float beside int8
    Bench(Bench),
    /// Layers, shapes, parameters, bytes, scales, multiply-accumulates
    Inspect(Inspect),
    /// What quantization costs, layer by layer: noise, clipping, accuracy with one layer quantized
    Analyze(Analyze),
    /// A page of a run's curves, histograms and layers: report.html
    Report(Report),
    /// To .onnx (QDQ or QOperator for an integer network), or float weights to .safetensors
    Export(Export),
}

impl Command {
    /// The flags every command has.
    pub fn global(&self) -> &Global {
        match self {
            Self::Demo(args) => &args.global,
            Self::Train(args) => &args.global,
            Self::Qat(args) => &args.global,
            Self::Ptq(args) => &args.global,
            Self::Eval(args) => &args.global,
            Self::Verify(args) => &args.global,
            Self::Predict(args) => &args.global,
            Self::Export(args) => &args.global,
            Self::Bench(args) => &args.global,
            Self::Inspect(args) => &args.global,
            Self::Analyze(args) => &args.global,
            Self::Report(args) => &args.global,
        }
    }
}

/// The largest seed: a configuration file has no larger numbers.
const SEEDS: u64 = i64::MAX as u64;

#[derive(Clone, Debug, Args, Serialize)]
pub struct Global {
    /// Threads to compute with [default: one per core]; results do not depend on it
    #[arg(long, value_name = "N", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Print one JSON object as the last line of standard output
    #[arg(long, global = true)]
    #[serde(skip)]
    pub json: bool,
    /// No progress on standard error
    #[arg(long, global = true)]
    #[serde(skip)]
    pub quiet: bool,
    /// Read flags from a TOML file, one key a flag; flags on the command line win
    #[arg(long, value_name = "FILE.toml", global = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct Data {
    /// Data set: fashion-mini, idx:DIR, cifar10:DIR, cifar100:DIR, folder:DIR or
    /// synthetic:CxHxW:CLASSES:N [default: fashion-mini]
    #[arg(long, value_name = "SPEC")]
    #[serde(serialize_with = "or_embedded")]
    pub data: Option<String>,
    /// What happens to pixels: imagenet, cifar10, fashion, unit, raw or FILE.toml [default: the model
    /// file's, or the data set's]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<String>,
    /// Background threads that load images
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = workers)]
    pub workers: usize,
    /// What to do about pictures that cannot be decoded
    #[arg(long, value_enum, default_value_t = BadImages::Refuse)]
    pub bad_images: BadImages,
}

/// The data set where no flag names one: it is part of the program.
const EMBEDDED: &str = "fashion-mini";

impl Data {
    /// A data set as it is when no flag says more.
    pub fn of(spec: impl Into<String>) -> Self {
        let bad_images = BadImages::Refuse;
        Self { data: Some(spec.into()), preprocess: None, workers: 1, bad_images }
    }

    /// The data set's name.
    pub fn spec(&self) -> &str {
        self.data.as_deref().unwrap_or(EMBEDDED)
    }
}

/// A run's configuration says which data set it was, whatever the default will be.
fn or_embedded<S: serde::Serializer>(data: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(data.as_deref().unwrap_or(EMBEDDED))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BadImages {
    /// The job ends with the first one's name
    Refuse,
    /// They are left out, and named at the end
    Skip,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct Training {
    /// Epochs to train [default: train 30, qat 6]
    #[arg(long, value_name = "N", value_parser = epochs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Images per step [default: train 128, qat 64]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Learning rate, after warm-up; Adam's is at most 0.001 unless it is given [default: train 0.1, qat 0.001]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Who moves the weights: sgd, adam or adamw [default: sgd]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<String>,
    /// How the learning rate falls: constant, step or cosine [default: cosine]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Epochs in which the learning rate rises from zero [default: train 1, qat 0]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f32>,
    /// Pull of the weights towards zero [default: train 0.0005, qat 0.0001]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Share of each target that is spread over all classes
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub label_smoothing: f32,
    /// What training does to images
    #[arg(long, value_enum, default_value_t = Augment::Standard)]
    pub augment: Augment,
    /// Brightness, contrast, saturation and hue change by at most this, as 0.4,0.4,0.4,0.1
    #[arg(long, value_name = "B,C,S,H")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<String>,
    /// What initial weights, order and augmentation depend on
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SEEDS))]
    pub seed: u64,
    /// Directory for the configuration, metrics, checkpoints and models [default: runs/train, runs/qat]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Keep values between parts of the network only, and run each part again on the way back
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Keep what the way back needs in bf16, half the memory
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bf16_activations: bool,
    /// Go on from the checkpoint in --out
    #[arg(long)]
    #[serde(skip)]
    pub resume: bool,
    /// Steps between checkpoints [default: one a minute, and one an epoch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<u64>,
    /// Measure the operators of the first steps: a table, and trace.json in --out for a trace viewer
    #[arg(long)]
    #[serde(skip)]
    pub profile: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Horizontal flips, and random crops: with a border of an eighth of the image, or, where pictures
    /// differ in size, of random size and shape
    Standard,
    /// Images as they are
    None,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct Demo {
    /// What initial weights, order and augmentation depend on
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SEEDS))]
    pub seed: u64,
    /// Directory for the models and metrics
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub out: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct Train {
    /// Network: resnet8, resnet20, resnet32, resnet44, resnet56, resnet18, resnet34, resnet50, …, or a
    /// FILE.onnx, with the weights it has
    #[arg(long, value_name = "NAME", default_value = "resnet20")]
    pub model: String,
    /// Start from these weights: a model file or state dict
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: Data,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: Training,
    #[command(flatten)]
    #[serde(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct Qat {
    /// The float network: a `train` run or a model file
    #[arg(value_name = "MODEL", required_unless_present = "weights")]
    #[serde(skip)]
    pub model_file: Option<PathBuf>,
    /// The same, as a configuration file says it
    #[arg(long, value_name = "MODEL")]
    pub weights: Option<PathBuf>,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Epochs, batch, optimizer, rate and what is frozen when, where no flag says otherwise; the defaults of
    /// the others are of the first
    #[arg(long, value_enum, default_value_t = RecipeName::Published)]
    pub recipe: RecipeName,
    #[command(flatten)]
    #[serde(flatten)]
    pub scheme: Scheme,
    #[command(flatten)]
    #[serde(flatten)]
    pub budget: Budget,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: Data,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: Training,
    /// Images to calibrate observers with before the first step
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub calibration: usize,
    /// First epoch, from 0, that rounds [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize_from: Option<usize>,
    /// First epoch in which ranges no longer move [default: after two thirds]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_observers: Option<usize>,
    /// First epoch in which BatchNorm uses its running statistics, folded [default: half-way]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_bn: Option<usize>,
    /// Batches of training images to estimate BatchNorm's statistics anew from, after the last epoch
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub reestimate_bn: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub global: Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipeName {
    /// A low rate that falls, BatchNorm frozen halfway, observers for the last third
    Published,
    /// Adam at 0.001, batches of 32, 10 epochs, nothing frozen
    Tutorial,
}

/// Widths chosen layer by layer.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Budget {
    /// Choose each layer's width so that the integer network's file has at most so many bytes (k and M
    /// may follow)
    #[arg(long, value_name = "BYTES", value_parser = size, group = "budget")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_budget: Option<u64>,
    /// Choose each layer's width so that calibration on its own costs at most so many percentage points of
    /// top-1 on the calibration images
    #[arg(long, value_name = "POINTS", group = "budget")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_budget: Option<f64>,
    /// The widths of weights to choose from [default: 8,4]
    #[arg(long, value_name = "BITS", value_delimiter = ',', requires = "budget", value_parser = clap::value_parser!(u8).range(2..=8))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<u8>,
}

/// What helps where nothing is trained.
#[derive(Clone, Debug, Args)]
pub struct Helpers {
    /// Make the weight ranges of neighbouring layers equal first (cross-layer equalization)
    #[arg(long)]
    pub equalize: bool,
    /// Take the mean error of each layer out of its bias
    #[arg(long)]
    pub bias_correction: bool,
    /// Choose for each weight whether it is rounded up or down
    #[arg(long)]
    pub adaround: bool,
    /// Steps of that choice, a layer
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "adaround", value_parser = at_least_one)]
    pub adaround_iterations: usize,
}

/// Epochs at the most: more are a slip, and their steps could not be counted.
const MAX_EPOCHS: usize = 1_000_000;

/// A number of epochs.
fn epochs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number <= MAX_EPOCHS => Ok(number),
        _ => Err(format!("write a number up to {MAX_EPOCHS}")),
    }
}

/// A number of threads that load images.
fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number <= MAX_WORKERS => Ok(number),
        _ => Err(format!("write a number up to {MAX_WORKERS}")),
    }
}

/// A number that is not zero.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("write at least 1".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("write a number from 1 on".into()),
    }
}

/// A number of bytes: 60000, 60k, 1.5M.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b');
    let (number, unit) = match number.strip_suffix('k') {
        Some(number) => (number, 1e3),
        None => number.strip_suffix('m').map_or((number, 1.0), |number| (number, 1e6)),
    };
    match number.parse::<f64>() {
        Ok(count) if count.is_finite() && count > 0.0 => Ok((count * unit) as u64),
        _ => Err("write a number of bytes, such as 60000, 60k or 1.5M".into()),
    }
}

#[derive(Clone, Debug, Args)]
pub struct Analyze {
    /// A float network, which is quantized as the flags say; or a `qat` run
    pub model_file: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub scheme: Scheme,
    #[command(flatten)]
    pub data: Data,
    /// Training images to calibrate with
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub calibration: usize,
    /// Test images to analyze on
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub images: usize,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub batch: usize,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Report {
    /// The run directory
    pub run: PathBuf,
    /// The page [default: report.html in the run]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Ptq {
    /// The float network: a `train` run or a model file
    pub model_file: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The integer network's file [default: int8.ottava beside the model, or in the run]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Quantize linear layers alone: weights now, activations at each run; nothing is calibrated
    #[arg(long, conflicts_with_all = [
        "budget", "bias_correction", "adaround", "calibration", "activations", "activation_bits", "observer",
        "learn", "first_last", "weight_levels", "no_relu_fusion", "bn_folding", "layer", "skip",
    ])]
    pub dynamic: bool,
    #[command(flatten)]
    pub scheme: Scheme,
    #[command(flatten)]
    pub budget: Budget,
    #[command(flatten)]
    pub helpers: Helpers,
    #[command(flatten)]
    pub data: Data,
    /// Training images to calibrate with
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    pub calibration: usize,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub batch: usize,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Eval {
    /// A run directory or a model file
    pub model_file: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub data: Data,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub batch: usize,
    /// Save the logits as safetensors
    #[arg(long, value_name = "FILE")]
    pub logits: Option<PathBuf>,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// A `qat` run directory
    pub run: PathBuf,
    /// Test images to compare node by node; the classes are compared on all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub images: usize,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// A run directory or a model file
    pub model_file: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Images per run
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Height and width of an image [default: the model's]
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
    /// Timed runs
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub runs: usize,
    /// What an integer network is prepared for: speed, or little memory
    #[arg(long, value_enum, default_value_t = Plan::Fast)]
    pub plan: Plan,
    /// Measure which algorithm each convolution is fastest with on this machine first, and keep the
    /// choice in the file
    #[arg(long, conflicts_with = "plan")]
    pub tune: bool,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plan {
    /// Weights in whatever form is fastest
    Fast,
    /// The least memory: no Winograd, so no filter takes more than its weights
    Small,
}

#[derive(Clone, Debug, Args)]
pub struct Inspect {
    /// A run directory or a model file
    pub model_file: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Height and width of an image [default: the model's]
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Predict {
    /// A run directory or a model file
    pub model_file: PathBuf,
    /// The pictures
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// What happens to pixels [default: the model file's]
    #[arg(long, value_name = "NAME")]
    pub preprocess: Option<String>,
    /// Classes to name for each picture
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub top: usize,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Debug, Args)]
pub struct Export {
    /// A run directory or a model file
    pub model_file: PathBuf,
    /// The file to write: .onnx, or .safetensors for float weights
    pub out: PathBuf,
    /// The network, where the file does not say
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// How an integer network is written as ONNX
    #[arg(long, value_enum, default_value_t = Format::Qdq)]
    pub format: Format,
    /// Weights as s8, or as u8 with zero-point 128 for runtimes whose s8 products saturate
    #[arg(long, value_enum, default_value_t = Weights::S8)]
    pub weights: Weights,
    /// Version of ONNX's operators, 13 to 21 [default: 17]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(13..=21))]
    pub opset: Option<i64>,
    /// Version of ONNX's file format, 7 to 10 [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(7..=10))]
    pub ir_version: Option<i64>,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Float operators between QuantizeLinear and DequantizeLinear
    Qdq,
    /// Integer operators
    Qoperator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// Signed
    S8,
    /// Unsigned, zero-point 128
    U8,
}

#[cfg(test)]
mod tests;

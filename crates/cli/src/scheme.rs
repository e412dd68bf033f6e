//! How a network is quantized: the flags, what they mean, and how a file remembers them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use ottava::autograd::Observer;
use ottava::autograd::ops::{ActivationQuant, Folding, Learning};
use ottava::nn::qat::{QConfig, QConfigMap};
use ottava::quant::{Levels, WeightRange, WeightSpec};
use serde::{Deserialize, Serialize};

use crate::setup::usage;

/// How a network is quantized.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct Scheme {
    /// Activations: affine (a zero-point anywhere) or symmetric (in the middle)
    #[arg(long, value_enum, default_value_t = Activations::Affine)]
    pub activations: Activations,
    /// One scale for all weights of a layer instead of one per output channel
    #[arg(long)]
    pub per_tensor: bool,
    /// Width of weights, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub weight_bits: u8,
    /// Width of activations, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub activation_bits: u8,
    /// Least width of the first and the last layer's weights and of what they read
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub first_last: u8,
    /// Codes of weights: every number, or those that are (sums of two) powers of two; the first and the
    /// last layer's are uniform
    #[arg(long, value_enum, default_value_t = WeightLevels::Uniform)]
    pub weight_levels: WeightLevels,
    /// What the scale of weights is made to fit [default: largest; below 8 bits and for powers of two,
    /// least-error]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_range: Option<Range>,
    /// Round every scale up to a power of two: each multiplier of the integer network is a shift
    #[arg(long)]
    #[serde(default)]
    pub power_of_two_scales: bool,
    /// Leave each ReLU an operation of its own instead of fusing it into the layer before it
    #[arg(long)]
    #[serde(default)]
    pub no_relu_fusion: bool,
    /// How BatchNorm is folded into rounded weights while it normalises by the batch: as deployed, or as
    /// PyTorch does
    #[arg(long, value_enum, default_value_t = BnFolding::Exact)]
    #[serde(default)]
    pub bn_folding: BnFolding,
    /// Who finds the range of activations [default: moving-average; below 8 bits, least-error]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<ObserverName>,
    /// Train the scales as well: lsq (weights and activations) or pact (activations)
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learn: Option<Learn>,
    /// Other widths for the layers whose name matches: `layer1.*=w4a8`, `fc=float`; repeatable, the last
    /// that matches wins
    #[arg(long = "layer", value_name = "PATTERN=WIDTHS")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer: Vec<String>,
    /// Leave the layers whose name matches in float; `*` stands for anything; repeatable
    #[arg(long, value_name = "PATTERN")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// What a budget chose: other weights for layers of just these names.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub narrowed: Vec<Narrowed>,
}

/// A layer whose weights have a width of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Narrowed {
    pub layer: String,
    pub bits: u8,
    /// Whether its codes are uniform, as the first and the last layer's, whatever the others' are.
    pub uniform: bool,
}

impl Default for Scheme {
    /// The flags' defaults.
    fn default() -> Self {
        Self {
            activations: Activations::Affine,
            per_tensor: false,
            weight_bits: 8,
            activation_bits: 8,
            first_last: 8,
            weight_levels: WeightLevels::Uniform,
            weight_range: None,
            power_of_two_scales: false,
            no_relu_fusion: false,
            bn_folding: BnFolding::Exact,
            observer: None,
            learn: None,
            layer: Vec::new(),
            skip: Vec::new(),
            narrowed: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// u8, zero-point anywhere
    Affine,
    /// s8, zero-point 0
    Symmetric,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightLevels {
    /// Every whole number
    Uniform,
    /// 0 and powers of two, up to 4 bits in integers, 5 to 8 in float; the nearest by value
    PowerOfTwo,
    /// The same; the nearest in log2
    PowerOfTwoLog2,
    /// 0 and sums of two powers of two (APoT), up to 5 bits
    Apot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Range {
    /// The largest weight: nothing is clipped
    Largest,
    /// Least squared rounding error
    LeastError,
    /// Twice the mean magnitude for a step, over the root of the largest code: LSQ's start
    MeanMagnitude,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BnFolding {
    /// What is rounded is what will be deployed
    #[default]
    Exact,
    /// PyTorch's ConvBn2d
    Approximate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObserverName {
    /// Extremes of all batches
    MinMax,
    /// Extremes of each batch, averaged
    MovingAverage,
    /// PyTorch's search in a histogram of all batches
    Histogram,
    /// Least squared rounding error in each batch, averaged
    LeastError,
    /// The 0.01 and 99.99 percentiles of each batch, averaged
    Percentile,
    /// Least Kullback–Leibler divergence in each batch, averaged
    Entropy,
    /// Twice the mean magnitude of each batch for a step, averaged: LSQ's start
    MeanMagnitude,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Learn {
    /// Learned step sizes of weights and activations
    Lsq,
    /// Learned clipping of activations
    Pact,
}

/// Where a file keeps the scheme.
const KEY: &str = "scheme";

/// How fast averages of ranges move.
const AVERAGING: f32 = 0.01;
/// The same for ranges that were searched: each batch's is good, and calibration shows but a few.
const SEARCHED_AVERAGING: f32 = 0.1;

impl Scheme {
    /// The configuration that the flags describe.
    ///
    /// # Errors
    /// A `--layer` that says no widths.
    pub fn map(&self) -> Result<QConfigMap> {
        let wide = |bits: u8| bits.max(self.first_last);
        let ends = QConfig {
            weight: self.weight(wide(self.weight_bits), Levels::Uniform),
            ..self.config(self.weight_bits, wide(self.activation_bits))
        };
        let mut map = QConfigMap::new(self.config(self.weight_bits, self.activation_bits));
        map = map.first_last(ends);
        if self.no_relu_fusion {
            map = map.without_relu_fusion();
        }
        for rule in &self.layer {
            map = match self.rule(rule)? {
                (pattern, Some(config)) => map.with(pattern, config),
                (pattern, None) => map.skip(pattern),
            };
        }
        map = self.skip.iter().fold(map, |map, pattern| map.skip(pattern));
        Ok(self.narrowed.iter().fold(map, |map, Narrowed { layer, bits, uniform }| {
            let levels = if *uniform { Levels::Uniform } else { self.levels() };
            map.with_weight(layer, self.weight(*bits, levels))
        }))
    }

    /// Which codes weights have.
    pub fn levels(&self) -> Levels {
        match self.weight_levels {
            WeightLevels::Uniform => Levels::Uniform,
            WeightLevels::PowerOfTwo => Levels::PowerOfTwo,
            WeightLevels::PowerOfTwoLog2 => Levels::PowerOfTwoLog2,
            WeightLevels::Apot => Levels::AdditivePowerOfTwo,
        }
    }

    /// Refuses what makes a difference in training alone.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn untrained(&self) -> Result<()> {
        if self.bn_folding != BnFolding::Exact {
            usage!(
                "--bn-folding is for `ottava qat`: without training no BatchNorm normalises by the batch"
            );
        }
        Ok(())
    }

    fn config(&self, weight_bits: u8, activation_bits: u8) -> QConfig {
        QConfig {
            weight: self.weight(weight_bits, self.levels()),
            learn_scales: self.learn == Some(Learn::Lsq),
            folding: match self.bn_folding {
                BnFolding::Exact => Folding::Exact,
                BnFolding::Approximate => Folding::Approximate,
            },
            activation: self.activation(activation_bits),
        }
    }

    fn weight(&self, bits: u8, levels: Levels) -> WeightSpec {
        let whole = bits == 8 && levels == Levels::Uniform;
        let default = if whole { Range::Largest } else { Range::LeastError };
        let range = match self.weight_range.unwrap_or(default) {
            Range::Largest => WeightRange::Largest,
            Range::LeastError => WeightRange::LeastError,
            Range::MeanMagnitude => WeightRange::MeanMagnitude,
        };
        let (per_channel, power_of_two) = (!self.per_tensor, self.power_of_two_scales);
        WeightSpec { bits, per_channel, levels, range, power_of_two }
    }

    /// How linear layers are quantized whose activations are quantized at run time: 8 bits, as PyTorch's
    /// `qint8`, unless the flags say otherwise.
    pub fn dynamic(&self) -> WeightSpec {
        self.weight(self.weight_bits, Levels::Uniform)
    }

    fn activation(&self, bits: u8) -> ActivationQuant {
        let scheme = match self.activations {
            Activations::Affine => ottava::quant::Scheme::Affine,
            Activations::Symmetric => ottava::quant::Scheme::Symmetric,
        };
        let (levels, averaging_constant) = (1 << bits, SEARCHED_AVERAGING);
        let default = if bits < 8 { ObserverName::LeastError } else { ObserverName::MovingAverage };
        let observer = match self.observer.unwrap_or(default) {
            ObserverName::MinMax => Observer::MinMax,
            ObserverName::MovingAverage => {
                Observer::MovingAverageMinMax { averaging_constant: AVERAGING }
            }
            ObserverName::Histogram => Observer::Histogram { levels },
            ObserverName::LeastError => Observer::LeastError { levels, averaging_constant },
            ObserverName::Percentile => Observer::Percentile { share: 0.9999, averaging_constant },
            ObserverName::Entropy => Observer::Entropy { levels, averaging_constant },
            ObserverName::MeanMagnitude => Observer::MeanMagnitude { levels, averaging_constant },
        };
        let learn = self.learn.map(|learn| match learn {
            Learn::Lsq => Learning::StepSize,
            Learn::Pact => Learning::Clip,
        });
        let power_of_two = self.power_of_two_scales;
        let quant = ActivationQuant::of_bits(scheme, bits);
        ActivationQuant { observer, power_of_two, learn, ..quant }
    }

    /// `PATTERN=w4a8`, `PATTERN=float`.
    fn rule<'a>(&self, rule: &'a str) -> Result<(&'a str, Option<QConfig>)> {
        let parsed = rule.rsplit_once('=').and_then(|(pattern, widths)| {
            if widths == "float" {
                return Some((pattern, None));
            }
            let (weight, activation) = widths.strip_prefix('w')?.split_once('a')?;
            let bits = |text: &str| text.parse::<u8>().ok().filter(|bits| (2..=8).contains(bits));
            Some((pattern, Some(self.config(bits(weight)?, bits(activation)?))))
        });
        match parsed {
            Some(rule) => Ok(rule),
            None => usage!(
                "--layer {rule}: write PATTERN=wNaM with widths of weights and activations from 2 to 8, such as `layer1.*=w4a8`, or PATTERN=float"
            ),
        }
    }

    /// What a file keeps.
    ///
    /// # Errors
    /// Never for a scheme made of flags.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        Ok(BTreeMap::from([(KEY.to_owned(), serde_json::to_string(self)?)]))
    }

    /// The scheme in a file's metadata.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self> {
        let text = metadata.get(KEY).context("it is not written by `ottava qat`")?;
        serde_json::from_str(text).context("its quantization is not one of this version's")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        scheme: Scheme,
    }

    fn scheme(flags: &str) -> Scheme {
        let words = std::iter::once("ottava").chain(flags.split_whitespace());
        Cli::try_parse_from(words).unwrap().scheme
    }

    #[test]
    fn widths_by_layer() {
        let map = scheme("--weight-bits 4 --activation-bits 4 --layer a.*=w3a8 --layer a.b=float");
        let map = map.map().unwrap();
        let widths = |name| map.get(name, "conv2d").map(|c| (c.weight.bits, c.activation.qmax));
        assert_eq!(widths("conv1"), Some((4, 15)));
        assert_eq!(widths("a.c"), Some((3, 255)));
        assert_eq!(widths("a.b"), None);
        assert!(scheme("--layer a=w9a8").map().is_err());
        assert!(scheme("--layer a").map().is_err());
    }

    #[test]
    fn a_file_remembers_the_flags() {
        let flags = scheme(
            "--learn lsq --weight-levels apot --weight-bits 4 --skip fc --observer entropy --no-relu-fusion --bn-folding approximate --weight-range mean-magnitude",
        );
        assert_eq!(scheme("").map().unwrap(), Scheme::default().map().unwrap());
        let back = Scheme::from_metadata(&flags.metadata().unwrap()).unwrap();
        assert_eq!(back.map().unwrap(), flags.map().unwrap());
        assert_ne!(back.map().unwrap(), Scheme::default().map().unwrap());
        // A file of before there were these flags.
        let old = r#"{"activations":"affine","per_tensor":false,"weight_bits":8,"activation_bits":8,"first_last":8,"weight_levels":"uniform"}"#;
        let old = Scheme::from_metadata(&BTreeMap::from([(KEY.into(), old.into())])).unwrap();
        assert_eq!(old.map().unwrap(), Scheme::default().map().unwrap());
    }
}

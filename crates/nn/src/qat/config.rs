use ottava_autograd::Observer;
use ottava_autograd::ops::{ActivationQuant, Folding, Learning};
use ottava_quant::{WeightRange, WeightSpec, choose_qparams};

use super::glob::matches;

/// How a layer is quantized (PyTorch `QConfig`). The default is safe on every target: symmetric
/// 8-bit weights with a scale per output channel, affine `u8` activations with a moving average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QConfig {
    /// The weights.
    pub weight: WeightSpec,
    /// Whether the weights' scales are learned (LSQ); they have to be per channel.
    pub learn_scales: bool,
    /// How a BatchNorm is folded while it normalises by the batch.
    pub folding: Folding,
    /// The layer's result.
    pub activation: ActivationQuant,
}

impl QConfig {
    /// Why no layer can be quantized so, and what to do instead; `None` if it can.
    pub(super) fn refusal(&self) -> Option<String> {
        let ActivationQuant { scheme, qmin, qmax, observer, learn, .. } = self.activation;
        let out_of = |what: &str, value: f32, range: &str| {
            Some(format!("its observer's {what} is {value}, but should be {range}"))
        };
        if let Err(error) = self.weight.levels.codes(self.weight.bits) {
            return Some(error.to_string());
        }
        if self.learn_scales && !self.weight.per_channel {
            return Some(
                "learned weight scales are per channel; do without per-tensor weights, or without learning"
                    .into(),
            );
        }
        if self.learn_scales && self.weight.power_of_two {
            return Some(
                "weight scales that are powers of two follow the weights; do without them, or without learning"
                    .into(),
            );
        }
        let codes = if qmin < 0 { -128..=127 } else { 0..=255 };
        if qmin >= qmax || !codes.contains(&qmin) || !codes.contains(&qmax) {
            return Some(format!(
                "its activations have codes {qmin}..={qmax}; choose a part of 0..=255 or of -128..=127, such as ActivationQuant::of_bits gives"
            ));
        }
        if let Err(error) = choose_qparams(-1.0, 1.0, scheme, qmin..=qmax) {
            return Some(format!("its activations have no grid of codes {qmin}..={qmax}: {error}"));
        }
        match observer {
            Observer::Histogram { .. } if learn.is_some() => {
                return Some(
                    "a learned range starts from an observed one, not from a histogram; choose another observer"
                        .into(),
                );
            }
            Observer::PerChannelMinMax { .. } | Observer::MovingAveragePerChannelMinMax { .. } => {
                return Some(
                    "activations have one grid, but its observer watches each channel; choose one that watches the whole tensor"
                        .into(),
                );
            }
            Observer::Percentile { share, .. } if !(share > 0.5 && share <= 1.0) => {
                return out_of("share", share, "above 0.5 and at most 1, such as 0.9999");
            }
            Observer::Fixed { min, max } if !(min <= max && min.is_finite() && max.is_finite()) => {
                return Some(format!(
                    "its range {min}..{max} is none; give two finite numbers in order"
                ));
            }
            _ => {}
        }
        match observer {
            Observer::MovingAverageMinMax { averaging_constant: c }
            | Observer::LeastError { averaging_constant: c, .. }
            | Observer::Percentile { averaging_constant: c, .. }
            | Observer::Entropy { averaging_constant: c, .. }
            | Observer::MeanMagnitude { averaging_constant: c, .. }
                if !(c > 0.0 && c <= 1.0) =>
            {
                out_of("averaging constant", c, "above 0 and at most 1, such as 0.01")
            }
            _ => None,
        }
    }

    /// The same with scales that start where LSQ's paper starts them, and are learned: for 2 to 4 bits.
    pub fn lsq(self) -> Self {
        let ActivationQuant { qmin, qmax, .. } = self.activation;
        let levels = (qmax - qmin + 1).max(2) as usize;
        let mut lsq = self.learned();
        lsq.weight.range = WeightRange::MeanMagnitude;
        lsq.activation.observer = Observer::MeanMagnitude { levels, averaging_constant: 0.1 };
        lsq
    }

    /// The same with scales that are learned by LSQ, of weights and activations.
    pub fn learned(mut self) -> Self {
        self.learn_scales = true;
        self.activation.learn = Some(Learning::StepSize);
        self
    }
}

/// Which layer gets which [`QConfig`] (PyTorch `QConfigMapping`). Of the rules that say something about
/// a layer the most specific wins: a name before an operator before the first and the last layer
/// before the default; of several names that match, the last.
///
/// ```
/// use ottava_nn::qat::{QConfig, QConfigMap};
///
/// let map = QConfigMap::new(QConfig::default()).skip("fc").skip("layer4.*");
/// assert!(map.get("conv1", "conv2d").is_some());
/// assert!(map.get("layer4.1.conv2", "conv2d").is_none() && map.get("fc", "linear").is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct QConfigMap {
    default: QConfig,
    first_last: Option<QConfig>,
    fuse_relu: bool,
    operators: Vec<(String, Option<QConfig>)>,
    names: Vec<(String, Option<QConfig>)>,
    weights: Vec<(String, WeightSpec)>,
}

impl Default for QConfigMap {
    fn default() -> Self {
        Self::new(QConfig::default())
    }
}

impl QConfigMap {
    /// The same for every layer.
    pub fn new(default: QConfig) -> Self {
        Self {
            default,
            first_last: None,
            fuse_relu: true,
            operators: Vec::new(),
            names: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Another configuration for the first and the last layer with weights: for their weights, for what
    /// they read, and for the network's result. Below 8 bits they are commonly left at 8.
    pub fn first_last(mut self, config: QConfig) -> Self {
        self.first_last = Some(config);
        self
    }

    /// Leaves each ReLU an operator of its own: it clamps codes on the grid of the layer before it, which
    /// then spends codes on what the ReLU cuts off. To compare with runtimes that do not fuse it.
    pub fn without_relu_fusion(mut self) -> Self {
        self.fuse_relu = false;
        self
    }

    /// Whether a ReLU is fused into the layer before it.
    pub(super) fn fuses_relu(&self) -> bool {
        self.fuse_relu
    }

    /// Another configuration for the layers of an operator: `conv2d`, `linear`, `add`,
    /// `global_avg_pool`, `avg_pool2d`, `concat`; `None` leaves them in float.
    pub fn with_operator(mut self, operator: &str, config: Option<QConfig>) -> Self {
        self.operators.push((operator.into(), config));
        self
    }

    /// Another configuration for the layers whose name matches `pattern`: `*` stands for any characters,
    /// `?` for one, `[0-3]` for one of a range, `[!0-3]` for one of the others.
    pub fn with(mut self, pattern: &str, config: QConfig) -> Self {
        self.names.push((pattern.into(), Some(config)));
        self
    }

    /// Leaves the layers whose name matches `pattern` in float.
    pub fn skip(mut self, pattern: &str) -> Self {
        self.names.push((pattern.into(), None));
        self
    }

    /// Other weights for the layer of just this name, which is no pattern; everything else of it stays as
    /// the rules say. What [`allocate`](super::allocate) chose, for instance.
    pub fn with_weight(mut self, name: &str, weight: WeightSpec) -> Self {
        self.weights.push((name.into(), weight));
        self
    }

    /// What [`with_weight`](Self::with_weight) said of the layer called `name`.
    pub(super) fn weight(&self, name: &str) -> Option<WeightSpec> {
        self.weights.iter().rev().find(|(known, _)| known == name).map(|(_, weight)| *weight)
    }

    /// The configuration of the layer called `name`; `None` if it stays in float. What is said of the
    /// first and the last layer is not looked at, nor of [its weights](Self::with_weight).
    pub fn get(&self, name: &str, operator: &str) -> Option<&QConfig> {
        self.rule(name, operator).unwrap_or(Some(&self.default))
    }

    /// What a rule says of a layer: `Some(None)` to leave it in float, `None` if none says anything.
    fn rule(&self, name: &str, operator: &str) -> Option<Option<&QConfig>> {
        let named = self.names.iter().rev().find(|(pattern, _)| matches(pattern, name));
        let rule = named.or_else(|| self.operators.iter().rev().find(|(op, _)| op == operator));
        rule.map(|(_, config)| config.as_ref())
    }

    /// The configuration of the first or the last layer, if no rule names it otherwise.
    pub(super) fn of_first_last(&self, name: &str, operator: &str) -> Option<QConfig> {
        self.first_last.filter(|_| self.rule(name, operator).is_none())
    }

    /// The operators of rules that no layer can have: most likely misspelt.
    pub fn unknown_operators(&self) -> Vec<&str> {
        let names = self.operators.iter().map(|(operator, _)| operator.as_str());
        names.filter(|name| !Self::OPERATORS.contains(name)).collect()
    }

    /// The operators that have a configuration.
    pub const OPERATORS: [&'static str; 6] =
        ["conv2d", "linear", "add", "concat", "global_avg_pool", "avg_pool2d"];

    /// The patterns that match none of `names`, and the names that are not among them: most likely
    /// misspelt.
    pub fn unmatched<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let misses = |pattern: &&str| !names.iter().any(|name| matches(pattern, name));
        let patterns = self.names.iter().map(|(pattern, _)| pattern.as_str()).filter(misses);
        let exact = self.weights.iter().map(|(name, _)| name.as_str());
        patterns.chain(exact.filter(|name| !names.contains(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_wins() {
        let map = QConfigMap::default().skip("layer*").with("layer2", QConfig::default());
        assert!(map.get("layer1", "conv2d").is_none() && map.get("layer2", "conv2d").is_some());
        assert_eq!(map.unmatched(&["layer1"]), ["layer2"]);
    }

    #[test]
    fn a_name_wins_over_an_operator_and_that_over_the_ends() {
        let low = |bits| QConfig {
            weight: WeightSpec { bits, ..Default::default() },
            ..Default::default()
        };
        let map = QConfigMap::new(low(4))
            .first_last(low(8))
            .with_operator("linear", Some(low(6)))
            .with("conv1", low(5));
        let bits = |name, op| map.get(name, op).map(|config| config.weight.bits);
        assert_eq!(
            [bits("conv1", "conv2d"), bits("fc", "linear"), bits("x", "conv2d")],
            [Some(5), Some(6), Some(4)]
        );
        assert!(
            map.of_first_last("conv1", "conv2d").is_none()
                && map.of_first_last("fc", "linear").is_none()
        );
        assert_eq!(map.of_first_last("x", "conv2d"), Some(low(8)));
    }
}

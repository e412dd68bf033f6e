use ottava_autograd::ops::{ActivationQuant, Learning};
use ottava_quant::WeightSpec;

/// How a layer is quantized (PyTorch `QConfig`). The default is safe on every target: symmetric
/// 8-bit weights with a scale per output channel, affine `u8` activations with a moving average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QConfig {
    /// The weights.
    pub weight: WeightSpec,
    /// Whether the weights' scales are learned (LSQ); they have to be per channel.
    pub learn_scales: bool,
    /// The layer's result.
    pub activation: ActivationQuant,
}

impl QConfig {
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
    operators: Vec<(String, Option<QConfig>)>,
    names: Vec<(String, Option<QConfig>)>,
}

impl Default for QConfigMap {
    fn default() -> Self {
        Self::new(QConfig::default())
    }
}

impl QConfigMap {
    /// The same for every layer.
    pub fn new(default: QConfig) -> Self {
        Self { default, first_last: None, operators: Vec::new(), names: Vec::new() }
    }

    /// Another configuration for the first and the last layer with weights: for their weights, for what
    /// they read, and for the network's result. Below 8 bits they are commonly left at 8.
    pub fn first_last(mut self, config: QConfig) -> Self {
        self.first_last = Some(config);
        self
    }

    /// Another configuration for the layers of an operator: `conv2d`, `linear`, `add`,
    /// `global_avg_pool`, `avg_pool2d`; `None` leaves them in float.
    pub fn with_operator(mut self, operator: &str, config: Option<QConfig>) -> Self {
        self.operators.push((operator.into(), config));
        self
    }

    /// Another configuration for the layers whose name matches `pattern`, in which `*` stands for any
    /// characters.
    pub fn with(mut self, pattern: &str, config: QConfig) -> Self {
        self.names.push((pattern.into(), Some(config)));
        self
    }

    /// Leaves the layers whose name matches `pattern` in float.
    pub fn skip(mut self, pattern: &str) -> Self {
        self.names.push((pattern.into(), None));
        self
    }

    /// The configuration of the layer called `name`; `None` if it stays in float. What is said of the
    /// first and the last layer is not looked at.
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

    /// The patterns that match none of `names`: most likely misspelt.
    pub fn unmatched<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let misses = |pattern: &&str| !names.iter().any(|name| matches(pattern, name));
        self.names.iter().map(|(pattern, _)| pattern.as_str()).filter(misses).collect()
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    (0..=name.len()).any(|i| name.is_char_boundary(i) && matches(rest, &name[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        assert!(
            matches("layer1.*.conv?", "layer1.0.conv?")
                && matches("*", "")
                && matches("a*c", "abc")
        );
        assert!(!matches("layer1.*", "layer10.0") && !matches("a*c", "abd"));
    }

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

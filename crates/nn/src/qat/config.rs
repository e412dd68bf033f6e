use ottava_autograd::ops::ActivationQuant;
use ottava_quant::WeightSpec;

/// How a layer is quantized (PyTorch `QConfig`). The default is safe on every target: symmetric
/// 8-bit weights with a scale per output channel, affine `u8` activations with a moving average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QConfig {
    /// The weights.
    pub weight: WeightSpec,
    /// The layer's result.
    pub activation: ActivationQuant,
}

/// Which layer gets which [`QConfig`] (PyTorch `QConfigMapping`): a default, and rules by name. The
/// last rule that matches wins.
///
/// ```
/// use ottava_nn::qat::{QConfig, QConfigMap};
///
/// let map = QConfigMap::new(QConfig::default()).skip("fc").skip("layer4.*");
/// assert!(map.get("conv1").is_some());
/// assert!(map.get("layer4.1.conv2").is_none() && map.get("fc").is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct QConfigMap {
    default: QConfig,
    rules: Vec<(String, Option<QConfig>)>,
}

impl Default for QConfigMap {
    fn default() -> Self {
        Self::new(QConfig::default())
    }
}

impl QConfigMap {
    /// The same for every layer.
    pub fn new(default: QConfig) -> Self {
        Self { default, rules: Vec::new() }
    }

    /// Another configuration for the layers whose name matches `pattern`, in which `*` stands for any
    /// characters.
    pub fn with(mut self, pattern: &str, config: QConfig) -> Self {
        self.rules.push((pattern.into(), Some(config)));
        self
    }

    /// Leaves the layers whose name matches `pattern` in float.
    pub fn skip(mut self, pattern: &str) -> Self {
        self.rules.push((pattern.into(), None));
        self
    }

    /// The configuration of the layer called `name`; `None` if it stays in float.
    pub fn get(&self, name: &str) -> Option<&QConfig> {
        let rule = self.rules.iter().rev().find(|(pattern, _)| matches(pattern, name));
        rule.map_or(Some(&self.default), |(_, config)| config.as_ref())
    }

    /// The patterns that match none of `names`: most likely misspelt.
    pub fn unmatched<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let misses = |pattern: &&str| !names.iter().any(|name| matches(pattern, name));
        self.rules.iter().map(|(pattern, _)| pattern.as_str()).filter(misses).collect()
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
        assert!(map.get("layer1").is_none() && map.get("layer2").is_some());
        assert_eq!(map.unmatched(&["layer1"]), ["layer2"]);
    }
}

//! Named tensors against the leaves of a network.

use std::collections::HashMap;
use std::fmt;

use ottava_autograd::Leaf;
use ottava_tensor::Tensor;

use crate::{Error, Result};

/// What of a state dict does not fit a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateMismatch {
    /// What the network has and the state dict has not.
    pub missing: Vec<String>,
    /// What the state dict has and the network has not.
    pub unexpected: Vec<String>,
    /// What both have, in different shapes.
    pub misshapen: Vec<Misshapen>,
}

/// A tensor of a state dict whose shape is not the network's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name.
    pub name: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The state dict's shape.
    pub found: Vec<usize>,
}

impl StateMismatch {
    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for StateMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing: {}", self.missing.join(", ")));
        }
        if !self.unexpected.is_empty() {
            parts.push(format!("unexpected: {}", self.unexpected.join(", ")));
        }
        if !self.misshapen.is_empty() {
            let shapes = self.misshapen.iter().map(|Misshapen { name, expected, found }| {
                format!("{name} is {found:?} instead of {expected:?}")
            });
            parts.push(format!("of another shape: {}", shapes.collect::<Vec<_>>().join(", ")));
        }
        f.write_str(if parts.is_empty() { "everything fits" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}

/// What fits, not yet set, and what does not.
pub(crate) struct Matched {
    fits: Vec<(Leaf, Tensor<f32>)>,
    pub(crate) mismatch: StateMismatch,
}

impl Matched {
    /// Sets what fits.
    pub(crate) fn apply(self) -> StateMismatch {
        for (leaf, value) in self.fits {
            leaf.set(value);
        }
        self.mismatch
    }
}

/// Sets every leaf, or none.
pub(crate) fn load(
    of: &'static str,
    leaves: Vec<(String, Leaf)>,
    state: Vec<(String, Tensor<f32>)>,
) -> Result<()> {
    let matched = compare(leaves, state);
    if !matched.mismatch.is_empty() {
        return Err(Error::State { of, mismatch: matched.mismatch });
    }
    matched.apply();
    Ok(())
}

/// Finds the leaf of each tensor.
pub(crate) fn compare(leaves: Vec<(String, Leaf)>, state: Vec<(String, Tensor<f32>)>) -> Matched {
    // PyTorch counts the batches a BatchNorm has seen; nothing reads the count.
    let counter = |name: &str| name.rsplit('.').next() == Some("num_batches_tracked");
    let mut order = Vec::with_capacity(state.len());
    let mut values = HashMap::with_capacity(state.len());
    for (name, value) in state {
        if !counter(&name) {
            order.push(name.clone());
            values.insert(name, value);
        }
    }
    let mut matched = Matched { fits: Vec::new(), mismatch: StateMismatch::default() };
    for (name, leaf) in leaves {
        let Some(value) = values.remove(&name) else {
            matched.mismatch.missing.push(name);
            continue;
        };
        let expected = leaf.get().shape().to_vec();
        if value.shape() == expected {
            matched.fits.push((leaf, value));
        } else {
            let found = value.shape().to_vec();
            matched.mismatch.misshapen.push(Misshapen { name, expected, found });
        }
    }
    matched.mismatch.unexpected =
        order.into_iter().filter(|name| values.remove(name).is_some()).collect();
    matched
}

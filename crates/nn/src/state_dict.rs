//! Named tensors against the leaves of a network.

use std::collections::{HashMap, HashSet};

use ottava_autograd::Leaf;
use ottava_tensor::Tensor;

use crate::mismatch::{Misshapen, Missing, StateMismatch, Unexpected};
use crate::models::names::synonyms;
use crate::{Error, Result};

/// What fits, not yet set, and what does not.
pub(crate) struct Matched {
    fits: Vec<(Leaf, Tensor<f32>)>,
    pub(crate) mismatch: StateMismatch,
}

impl Matched {
    /// Sets what fits, and says of what does not what it may have meant.
    pub(crate) fn apply(self) -> StateMismatch {
        for (leaf, value) in self.fits {
            leaf.set(value);
        }
        self.mismatch.with_nearest()
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
        return Err(Error::State { of, mismatch: matched.mismatch.with_nearest() });
    }
    matched.apply();
    Ok(())
}

/// Finds the leaf of each tensor.
pub(crate) fn compare(leaves: Vec<(String, Leaf)>, state: Vec<(String, Tensor<f32>)>) -> Matched {
    let wrapper = wrapper(&leaves, &state);
    let ours: HashSet<&str> = leaves.iter().map(|(name, _)| name.as_str()).collect();
    let theirs: HashSet<String> =
        state.iter().map(|(name, _)| name[wrapper..].to_owned()).collect();
    let fits = |name: &String| ours.contains(name.as_str()) && !theirs.contains(name);
    // PyTorch counts the batches a BatchNorm has seen; nothing reads the count.
    let counter = |name: &str| name.rsplit('.').next() == Some("num_batches_tracked");
    let mut order = Vec::with_capacity(state.len());
    let mut values = HashMap::with_capacity(state.len());
    for (name, value) in state {
        let name = &name[wrapper..];
        if counter(name) {
            continue;
        }
        let synonym = || synonyms(name).into_iter().find(fits);
        let known = ours.contains(name).then(|| name.to_owned());
        let name = known.or_else(synonym).unwrap_or_else(|| name.to_owned());
        order.push(name.clone());
        values.insert(name, value);
    }
    let (mut fits, mut mismatch) = (Vec::new(), StateMismatch::default());
    for (name, leaf) in leaves {
        let expected = leaf.get().shape().to_vec();
        match values.remove(&name) {
            Some(value) if value.shape() == expected => fits.push((leaf, value)),
            Some(value) => {
                let found = value.shape().to_vec();
                mismatch.misshapen.push(Misshapen { name, expected, found });
            }
            None => mismatch.missing.push(Missing { name, shape: expected, nearest: None }),
        }
    }
    mismatch.unexpected = order
        .into_iter()
        .filter_map(|name| {
            let shape = values.remove(&name)?.shape().to_vec();
            Some(Unexpected { name, shape, nearest: None })
        })
        .collect();
    Matched { fits, mismatch }
}

/// The length of what training wrappers put before every name of a state dict (`module.`, `_orig_mod.`,
/// `model.`): parts that all names begin with, and that no leaf's name begins with.
fn wrapper(leaves: &[(String, Leaf)], state: &[(String, Tensor<f32>)]) -> usize {
    let mut length = 0;
    while let Some((first, _)) = state.first()
        && let Some(dot) = first[length..].find('.')
    {
        let part = &first[length..=length + dot];
        if !state.iter().all(|(name, _)| name[length..].starts_with(part))
            || leaves.iter().any(|(name, _)| name.starts_with(part))
        {
            break;
        }
        length += part.len();
    }
    length
}

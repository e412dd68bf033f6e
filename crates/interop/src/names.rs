use std::collections::HashSet;
use std::fmt;

use ottava_tensor::Tensor;

use crate::StateDict;

/// What a model expects and a file does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name in the model.
    pub name: String,
    /// The shape in the model.
    pub shape: Vec<usize>,
    /// The file's left-over name that resembles it most, if one does.
    pub nearest: Option<String>,
}

/// What a file has and a model does not expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexpected {
    /// The name in the file.
    pub name: String,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// The model's missing name that resembles it most, if one does.
    pub nearest: Option<String>,
}

/// What both have, but not alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// The name in both.
    pub name: String,
    /// The shape in the model.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// Everything about which a model and a file of weights disagree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MismatchReport {
    /// In the model alone.
    pub missing: Vec<Missing>,
    /// In the file alone.
    pub unexpected: Vec<Unexpected>,
    /// In both, with different shapes.
    pub wrong_shape: Vec<WrongShape>,
}

impl MismatchReport {
    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }
}

/// What training wrappers put before every name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// BatchNorm's counter of batches: PyTorch writes it, nobody computes with it.
const COUNTER: &str = "num_batches_tracked";
/// Comparing every left-over name with every other is done for this many at most.
const COMPARED: usize = 1000;

/// The tensors of `found` that a model expects, in the model's order.
///
/// A prefix that a training wrapper put before all names (`module.`, `_orig_mod.`) is not looked at,
/// nor are BatchNorm's counters.
///
/// # Errors
/// Every name that one side lacks, each with the nearest name on the other side, and every shape
/// that differs.
///
/// ```
/// use ottava_interop::{StateDict, match_names};
/// use ottava_tensor::Tensor;
///
/// let found: StateDict = [("module.fc.weigth", Tensor::zeros(&[2, 3]))].into_iter().collect();
/// let report = match_names(&[("fc.weight".into(), vec![2, 3])], &found).unwrap_err();
/// assert_eq!(report.missing[0].nearest.as_deref(), Some("fc.weigth"));
/// ```
pub fn match_names(
    expected: &[(String, Vec<usize>)],
    found: &StateDict,
) -> Result<Vec<Tensor<f32>>, MismatchReport> {
    let mut prefix = String::new();
    while let Some(wrapper) = WRAPPERS.into_iter().find(|wrapper| {
        let wrapped = format!("{prefix}{wrapper}");
        !found.is_empty()
            && found.iter().all(|(name, _)| name.starts_with(&wrapped))
            && !expected.iter().any(|(name, _)| name.starts_with(wrapper))
    }) {
        prefix.push_str(wrapper);
    }
    let counts = |name: &str| name.rsplit('.').next() == Some(COUNTER);

    let mut report = MismatchReport::default();
    let mut tensors = Vec::with_capacity(expected.len());
    for (name, shape) in expected {
        match found.get(&format!("{prefix}{name}")) {
            Some(tensor) if tensor.shape() == shape => tensors.push(tensor.clone()),
            Some(tensor) => report.wrong_shape.push(WrongShape {
                name: name.clone(),
                expected: shape.clone(),
                found: tensor.shape().to_vec(),
            }),
            // A counter that is not there counted nothing.
            None if counts(name) => tensors.push(Tensor::zeros(shape)),
            None => report.missing.push(Missing {
                name: name.clone(),
                shape: shape.clone(),
                nearest: None,
            }),
        }
    }
    let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    report.unexpected = found
        .iter()
        .map(|(name, tensor)| (&name[prefix.len()..], tensor))
        .filter(|(name, _)| !known.contains(name) && !counts(name))
        .map(|(name, tensor)| Unexpected {
            name: name.into(),
            shape: tensor.shape().to_vec(),
            nearest: None,
        })
        .collect();
    if report.is_empty() {
        return Ok(tensors);
    }
    for entry in report.missing.iter_mut().take(COMPARED) {
        let names = report.unexpected.iter().map(|other| (&*other.name, &*other.shape));
        entry.nearest = nearest(&entry.name, &entry.shape, names);
    }
    for entry in report.unexpected.iter_mut().take(COMPARED) {
        let names = report.missing.iter().map(|other| (&*other.name, &*other.shape));
        entry.nearest = nearest(&entry.name, &entry.shape, names);
    }
    Err(report)
}

/// The name that takes the fewest edits, at most half of its length; of equals, one of the same
/// shape.
fn nearest<'a>(
    name: &str,
    shape: &[usize],
    others: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Option<String> {
    others
        .take(COMPARED)
        .map(|(other, its)| (edits(name, other), its != shape, other))
        .filter(|&(edits, _, other)| 2 * edits <= name.len().max(other.len()))
        .min()
        .map(|(_, _, other)| other.into())
}

/// Levenshtein's distance in bytes, of the first 200 of each name.
fn edits(a: &str, b: &str) -> usize {
    let cut = |name: &str| name.bytes().take(200).collect::<Vec<u8>>();
    let (a, b) = (cut(a), cut(b));
    let mut row = Vec::from_iter(0..=b.len());
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

impl fmt::Display for MismatchReport {
    /// The counts, then one entry after the other, separated by semicolons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the weights do not fit the model: {} missing, {} unexpected, {} of another shape",
            self.missing.len(),
            self.unexpected.len(),
            self.wrong_shape.len()
        )?;
        let hint = |nearest: &Option<String>, side: &str| match nearest {
            Some(name) => format!(" (is it {name:?} in the {side}?)"),
            None => String::new(),
        };
        for entry in &self.missing {
            let hint = hint(&entry.nearest, "file");
            write!(f, "; missing {:?} {:?}{hint}", entry.name, entry.shape)?;
        }
        for entry in &self.unexpected {
            let hint = hint(&entry.nearest, "model");
            write!(f, "; unexpected {:?} {:?}{hint}", entry.name, entry.shape)?;
        }
        for entry in &self.wrong_shape {
            let WrongShape { name, expected, found } = entry;
            write!(f, "; {name:?} is {found:?} in the file and {expected:?} in the model")?;
        }
        Ok(())
    }
}

impl std::error::Error for MismatchReport {}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[(&str, &[usize])]) -> StateDict {
        names.iter().map(|(name, shape)| (*name, Tensor::zeros(shape))).collect()
    }

    fn expected() -> Vec<(String, Vec<usize>)> {
        vec![("conv1.weight".into(), vec![4, 3, 3, 3]), ("bn1.bias".into(), vec![4])]
    }

    #[test]
    fn prefixes_and_counters_do_not_matter() {
        for prefix in ["", "module.", "_orig_mod.", "module._orig_mod."] {
            let mut dict = StateDict::new();
            dict.insert(format!("{prefix}bn1.num_batches_tracked"), Tensor::scalar(7.0));
            dict.insert(format!("{prefix}bn1.bias"), Tensor::full(&[4], 2.0));
            dict.insert(format!("{prefix}conv1.weight"), Tensor::zeros(&[4, 3, 3, 3]));
            let tensors = match_names(&expected(), &dict).unwrap();
            assert_eq!(tensors[1], Tensor::full(&[4], 2.0));
        }
    }

    #[test]
    fn everything_is_listed_with_the_nearest_name() {
        let dict = found(&[("conv1.weight", &[4, 1, 3, 3]), ("norm1.bias", &[4]), ("fc", &[1])]);
        let message = match_names(&expected(), &dict).unwrap_err().to_string();
        assert_eq!(
            message,
            "the weights do not fit the model: 1 missing, 2 unexpected, 1 of another shape; missing \
             \"bn1.bias\" [4] (is it \"norm1.bias\" in the file?); unexpected \"norm1.bias\" [4] (is \
             it \"bn1.bias\" in the model?); unexpected \"fc\" [1]; \"conv1.weight\" is [4, 1, 3, 3] \
             in the file and [4, 3, 3, 3] in the model"
        );
    }

    #[test]
    fn distances() {
        assert_eq!((edits("", "abc"), edits("kitten", "sitting"), edits("a", "a")), (3, 3, 0));
    }
}

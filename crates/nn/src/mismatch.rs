//! What of a state dict does not fit a network, for people.

use std::fmt;

/// What a network has and a state dict has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name in the network.
    pub name: String,
    /// The shape in the network.
    pub shape: Vec<usize>,
    /// The state dict's left-over name that resembles it most, if one does.
    pub nearest: Option<String>,
}

/// What a state dict has and a network has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexpected {
    /// The name in the state dict.
    pub name: String,
    /// The shape in the state dict.
    pub shape: Vec<usize>,
    /// The network's missing name that resembles it most, if one does.
    pub nearest: Option<String>,
}

/// A tensor of a state dict whose shape is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The name in both.
    pub name: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The state dict's shape.
    pub found: Vec<usize>,
}

/// Everything about which a network and a state dict disagree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateMismatch {
    /// In the network alone.
    pub missing: Vec<Missing>,
    /// In the state dict alone.
    pub unexpected: Vec<Unexpected>,
    /// In both, with different shapes.
    pub misshapen: Vec<Misshapen>,
}

/// Comparing every left-over name with every other is done for this many at most.
const COMPARED: usize = 300;

impl StateMismatch {
    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }

    /// Finds the nearest name for each that only one side has.
    pub(crate) fn with_nearest(mut self) -> Self {
        for entry in self.missing.iter_mut().take(COMPARED) {
            let names = self.unexpected.iter().map(|other| (&*other.name, &*other.shape));
            entry.nearest = nearest(&entry.name, &entry.shape, names);
        }
        for entry in self.unexpected.iter_mut().take(COMPARED) {
            let names = self.missing.iter().map(|other| (&*other.name, &*other.shape));
            entry.nearest = nearest(&entry.name, &entry.shape, names);
        }
        self
    }
}

impl fmt::Display for StateMismatch {
    /// The counts, then one entry after the other, separated by semicolons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("everything fits");
        }
        write!(
            f,
            "{} missing, {} unexpected, {} of another shape",
            self.missing.len(),
            self.unexpected.len(),
            self.misshapen.len()
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
            let hint = hint(&entry.nearest, "network");
            write!(f, "; unexpected {:?} {:?}{hint}", entry.name, entry.shape)?;
        }
        for Misshapen { name, expected, found } in &self.misshapen {
            write!(f, "; {name:?} is {found:?} in the file and {expected:?} in the network")?;
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!((edits("", "abc"), edits("kitten", "sitting"), edits("a", "a")), (3, 3, 0));
    }
}

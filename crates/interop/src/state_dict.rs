use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use ottava_tensor::Tensor;

use crate::{Error, Result};

/// Named tensors, in the order of their file, and the file's metadata.
///
/// Every number format becomes `f32`; integers beyond 2²⁴ are rounded.
///
/// ```
/// use ottava_interop::StateDict;
/// use ottava_nn::models::{ModelConfig, build};
/// use ottava_nn::Network as _;
/// use ottava_tensor::Tensor;
///
/// // As `read_state_dict` gives it.
/// let dict: StateDict = [("module.fc.weigth", Tensor::zeros(&[10, 64]))].into_iter().collect();
/// let network = build("resnet20", &ModelConfig::default())?;
/// let error = network.load_state_dict(dict.into()).unwrap_err().to_string();
/// assert!(error.contains("97 missing, 1 unexpected"), "{error}");
/// # Ok::<(), ottava_nn::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    entries: Vec<(String, Tensor<f32>)>,
    index: HashMap<String, usize>,
    /// What else the file says: preprocessing, class names.
    pub metadata: BTreeMap<String, String>,
}

impl StateDict {
    /// A dictionary without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor<f32>> {
        self.index.get(name).map(|&i| &self.entries[i].1)
    }

    /// Adds a tensor at the end, or replaces the one of that name where it stands.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor<f32>) {
        let name = name.into();
        match self.index.get(&name) {
            Some(&i) => self.entries[i].1 = tensor,
            None => {
                self.index.insert(name.clone(), self.entries.len());
                self.entries.push((name, tensor));
            }
        }
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor<f32>)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl From<StateDict> for Vec<(String, Tensor<f32>)> {
    /// What `ottava_nn::Network::load_state_dict` takes.
    fn from(dict: StateDict) -> Self {
        dict.entries
    }
}

impl<N: Into<String>> FromIterator<(N, Tensor<f32>)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (N, Tensor<f32>)>>(entries: I) -> Self {
        let mut dict = Self::new();
        entries.into_iter().for_each(|(name, tensor)| dict.insert(name, tensor));
        dict
    }
}

/// Reads weights from a `.safetensors` file or a PyTorch state dict (`.pth`, `.pt`, `.th`, `.bin`);
/// the content decides, not the name.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a damaged file, [`Error::Unsupported`] for another kind of
/// file.
pub fn read_state_dict(path: &Path) -> Result<StateDict> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, &error))?;
    let name = path.display().to_string();
    // The header's length stands before it, which may begin like PyTorch's files; those have no such byte.
    #[cfg(feature = "safetensors")]
    if bytes.get(8) == Some(&b'{') {
        return crate::safetensors_from_bytes(&name, &bytes);
    }
    #[cfg(feature = "pth")]
    if bytes.starts_with(b"PK") || bytes.starts_with(&[0x80]) {
        return crate::pth_from_bytes(&name, &bytes);
    }
    Err(Error::unsupported(
        &name,
        format!(
            "neither safetensors nor a PyTorch state dict; its {} bytes begin {:02x?}",
            bytes.len(),
            &bytes[..bytes.len().min(8)]
        ),
    ))
}

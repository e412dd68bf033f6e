//! A case: what PyTorch or ONNX Runtime was asked, and what it answered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ottava::tensor::Tensor;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One file: see the header of `tools/make_golden.py`.
pub struct Case {
    pub name: String,
    pub family: String,
    pub attrs: Value,
    floats: HashMap<String, Tensor<f32>>,
    integers: HashMap<String, (Vec<usize>, Vec<i64>)>,
}

impl Case {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let mut case = Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            family: metadata["family"].clone(),
            attrs: serde_json::from_str(&metadata["attrs"]).unwrap(),
            floats: HashMap::new(),
            integers: HashMap::new(),
        };
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            let integers: Vec<i64> = match view.dtype() {
                Dtype::F32 => {
                    let read = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
                    let values: Vec<f32> = data.chunks(4).map(read).collect();
                    case.floats.insert(name, Tensor::new(&shape, values).unwrap());
                    continue;
                }
                Dtype::U8 => data.iter().map(|&b| i64::from(b)).collect(),
                Dtype::I8 => data.iter().map(|&b| i64::from(b as i8)).collect(),
                Dtype::I32 => data
                    .chunks(4)
                    .map(|b| i32::from_le_bytes(b.try_into().unwrap()).into())
                    .collect(),
                Dtype::I64 => {
                    data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
                }
                other => panic!("{}: {name} is {other:?}", case.name),
            };
            case.integers.insert(name, (shape, integers));
        }
        case
    }

    pub fn float(&self, name: &str) -> Tensor<f32> {
        self.try_float(name).unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    pub fn try_float(&self, name: &str) -> Option<Tensor<f32>> {
        self.floats.get(name).cloned()
    }

    pub fn integers(&self, name: &str) -> Vec<i64> {
        self.integers.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name)).1.clone()
    }

    pub fn integer_shape(&self, name: &str) -> Vec<usize> {
        self.integers[name].0.clone()
    }

    pub fn number(&self, name: &str) -> f64 {
        self.attrs[name].as_f64().unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    pub fn number_or(&self, name: &str, default: f64) -> f64 {
        self.attrs[name].as_f64().unwrap_or(default)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.attrs[name].as_bool().unwrap_or_default()
    }

    pub fn text(&self, name: &str) -> &str {
        self.attrs[name].as_str().unwrap()
    }

    pub fn pair(&self, name: &str) -> [usize; 2] {
        let list = self.attrs[name].as_array().unwrap();
        [0, 1].map(|i| list[i].as_u64().unwrap() as usize)
    }

    /// Top, left, bottom, right of a `[vertical, horizontal]` padding.
    pub fn padding(&self) -> [usize; 4] {
        let [y, x] = self.pair("padding");
        [y, x, y, x]
    }

    /// Equal to 1e-4 of the largest expected value.
    pub fn assert_close(&self, what: &str, got: &Tensor<f32>, expected: &Tensor<f32>) {
        assert_eq!(got.shape(), expected.shape(), "{} {what}", self.name);
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs())).max(1e-6);
        for (i, (got, expected)) in got.iter().zip(expected.iter()).enumerate() {
            assert!(
                (got - expected).abs() <= 1e-4 * largest,
                "{} {what}[{i}]: {got}, but should be {expected} (largest {largest})",
                self.name
            );
        }
    }

    /// Equal, every bit but the sign of zero.
    pub fn assert_exact(&self, what: &str, got: &Tensor<f32>, expected: &Tensor<f32>) {
        assert_eq!(got.shape(), expected.shape(), "{} {what}", self.name);
        for (i, (got, expected)) in got.iter().zip(expected.iter()).enumerate() {
            assert!(got == expected, "{} {what}[{i}]: {got}, not {expected}", self.name);
        }
    }
}

/// Names another directory of cases.
const DIR: &str = "OTTAVA_GOLDEN_DIR";

/// Whether the cases are others than the committed ones.
pub fn elsewhere() -> bool {
    std::env::var_os(DIR).is_some()
}

/// The cases of `OTTAVA_GOLDEN_DIR`, or the committed ones.
pub fn all() -> Vec<Case> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let dir = std::env::var_os(DIR).map_or_else(|| committed.into(), PathBuf::from);
    let entries =
        std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no cases", dir.display());
    paths.iter().map(|path| Case::read(path)).collect()
}

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What kind of work a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole network, or one layer several times in a row.
    Network,
    /// A product of two matrices.
    Gemm,
    /// A training step.
    Training,
}

/// One workload and where its files are.
pub struct Files {
    directory: PathBuf,
    /// What kind of work it is.
    pub kind: Kind,
    /// The network, or the product, by name.
    pub model: String,
    /// `f32`, `int8` or `qat`.
    pub precision: String,
    /// Images at a time.
    pub batch: usize,
    /// `m`, `n`, `k` of a product; zero elsewhere.
    pub mnk: [usize; 3],
}

impl Files {
    /// Reads a workload as the driver writes it.
    pub fn new(directory: &Path, workload: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(workload)?;
        let text = |key: &str| json[key].as_str().map(str::to_owned).context(key.to_owned());
        let number = |key: &str| json[key].as_u64().unwrap_or(0) as usize;
        Ok(Self {
            directory: directory.to_owned(),
            kind: match json["kind"].as_str() {
                Some("gemm") => Kind::Gemm,
                Some("training") => Kind::Training,
                _ => Kind::Network,
            },
            model: text("model")?,
            precision: text("precision")?,
            batch: number("batch").max(1),
            mnk: [number("m"), number("n"), number("k")],
        })
    }

    /// `MODEL.kind`.
    pub fn path(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", self.model))
    }

    /// The ONNX file of this batch size and precision.
    pub fn onnx(&self) -> PathBuf {
        self.path(&format!("b{}.{}.onnx", self.batch, self.precision))
    }

    /// What the manifest says of this model.
    fn manifest(&self, key: &str) -> Result<Vec<usize>> {
        let text = std::fs::read_to_string(self.directory.join("manifest.json"))?;
        let json: Value = serde_json::from_str(&text)?;
        let list = json[&self.model][key].as_array().context("not in the manifest")?;
        Ok(list.iter().filter_map(|n| n.as_u64().map(|n| n as usize)).collect())
    }

    /// The shape of a batch.
    pub fn input_shape(&self) -> Result<Vec<usize>> {
        Ok([vec![self.batch], self.manifest("input")?].concat())
    }

    /// A raw file of `f32`.
    pub fn floats(&self, kind: &str) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.bytes(kind)?))
    }

    /// A raw file.
    pub fn bytes(&self, kind: &str) -> Result<Vec<u8>> {
        let path = self.path(kind);
        std::fs::read(&path).with_context(|| path.display().to_string())
    }

    /// The check inputs (or other images), in batches of this workload's size.
    pub fn batches(&self, kind: &str) -> Result<Vec<Vec<f32>>> {
        let size = self.input_shape()?.iter().product();
        let floats = self.floats(kind)?;
        ensure!(floats.len().is_multiple_of(size), "{kind}: not a whole number of batches");
        Ok(floats.chunks(size).map(<[f32]>::to_vec).collect())
    }
}

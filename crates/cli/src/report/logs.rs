//! What a run wrote about itself.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::inspect;

/// A run's logs. A training of a run, such as the float and the quantization-aware one of `demo`, is a
/// stage: its steps count from zero.
pub struct Logs {
    pub name: String,
    pub config: String,
    pub stages: Vec<Stage>,
    /// Of `qat` and `demo`.
    pub result: Option<Value>,
    /// Of `analyze`.
    pub analysis: Option<Value>,
    /// The integer network's layers, or the float network's.
    pub layers: Vec<Value>,
}

/// One training.
#[derive(Default)]
pub struct Stage {
    /// Step, loss, learning rate.
    pub steps: Vec<(f64, f64, f64)>,
    pub epochs: Vec<Epoch>,
}

/// Its number from 1; top-1 in training and test; loss in training and test.
pub type Epoch = (f64, [f64; 2], [f64; 2]);

impl Logs {
    /// Reads the files of a run; only `metrics.jsonl` has to be there.
    pub fn read(run: &Path) -> Result<Self> {
        let optional = |name: &str| -> Result<Option<Value>> {
            let path = run.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is no JSON of ours; remove it", path.display()))
        };
        let model = ["int8.ottava", "best.ottava"].map(|name| run.join(name));
        let layers = match model.iter().find(|file| file.is_file()) {
            Some(file) => inspect::layers(file)?,
            None => Vec::new(),
        };
        Ok(Self {
            name: run.display().to_string(),
            config: std::fs::read_to_string(run.join("config.toml")).unwrap_or_default(),
            stages: stages(&run.join("metrics.jsonl"))?,
            result: optional("result.json")?,
            analysis: optional("analysis.json")?,
            layers,
        })
    }
}

fn stages(path: &Path) -> Result<Vec<Stage>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {shown}; is this a run directory?"))?;
    let mut stages: Vec<Stage> = Vec::new();
    // A last line without an end was torn by a kill.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (number, line) in whole.lines().enumerate() {
        let value: Value = serde_json::from_str(line)
            .with_context(|| format!("{shown}, line {}, is no JSON", number + 1))?;
        let at = |pointer: &str| value.pointer(pointer).and_then(Value::as_f64);
        let nan = |pointer: &str| at(pointer).unwrap_or(f64::NAN);
        match (at("/step"), at("/epoch")) {
            (Some(step), _) => {
                let last = stages.last().and_then(|stage| stage.steps.last());
                if last.is_none_or(|last| step <= last.0) {
                    stages.push(Stage::default());
                }
                if let Some(stage) = stages.last_mut() {
                    stage.steps.push((step, nan("/loss"), nan("/lr")));
                }
            }
            (None, Some(epoch)) => {
                if stages.is_empty() {
                    stages.push(Stage::default());
                }
                if let Some(stage) = stages.last_mut() {
                    let pair = |name: &str| {
                        ["train", "test"].map(|split| nan(&format!("/{split}/{name}")))
                    };
                    stage.epochs.push((epoch + 1.0, pair("top1"), pair("loss")));
                }
            }
            // Where the time went: `--profile`.
            (None, None) if value.get("profile").is_some() => {}
            (None, None) => bail!("{shown}, line {}: neither a step nor an epoch", number + 1),
        }
    }
    Ok(stages)
}

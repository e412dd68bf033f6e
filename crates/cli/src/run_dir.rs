//! A run's directory: `config.toml`, `metrics.jsonl`, `checkpoint.ottava`, `best.ottava`, `int8.ottava`.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ottava::nn::{Checkpoint, Metrics, Position};
use ottava::quant::{Container, write_atomic};
use ottava::tensor::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::args::{self, Global};
use crate::model::read_container;
use crate::output::note;

/// The directory of a run that is being made.
pub struct RunDir {
    pub path: PathBuf,
    config: String,
    metrics: File,
}

/// The networks of one run alone.
const NETWORKS: [&str; 7] = [
    "checkpoint.ottava",
    "best.ottava",
    "ptq.ottava",
    "qat.ottava",
    "w4a4.ottava",
    "ptq-w4a4.ottava",
    "qat-w4a4.ottava",
];

/// What commands make of its networks.
const MADE_OF_THEM: [&str; 4] = ["int8.ottava", "result.json", "analysis.json", "report.html"];

/// When its operators ran.
const TRACE: &str = "trace.json";
/// What it was begun with.
const CONFIG: &str = "config.toml";
/// The first line of that: others have files of this name too.
const MARK: &str = "# A run of ottava: the flags it began with.\n";
/// What happened, a line each.
const METRICS: &str = "metrics.jsonl";

/// All that a run makes anew.
fn made() -> impl Iterator<Item = &'static &'static str> {
    NETWORKS.iter().chain(&MADE_OF_THEM).chain([&TRACE])
}

/// More epochs, steps or images no run has; sums of them do not overflow.
const MOST: usize = 1 << 50;

/// Settings that may change when a run is gone on with.
const FREE: [&str; 8] =
    ["resume", "out", "checkpoint_steps", "profile", "workers", "threads", "json", "quiet"];

impl RunDir {
    /// Makes the directory and writes the command's configuration into it, unless it is to be gone on
    /// with: then [`go_on`](Self::go_on) does. An earlier run's files are lost, so whatever can be refused is
    /// refused before.
    pub fn create(
        path: &Path,
        config: &impl Serialize,
        resume: bool,
        global: &Global,
    ) -> Result<Self> {
        let shown = path.display();
        let config = toml::to_string(config).context("cannot write the configuration")?;
        fs::create_dir_all(path).with_context(|| format!("cannot make the directory {shown}"))?;
        remove_unfinished(path);
        let metrics = path.join(METRICS);
        if !resume {
            // What else lies in a directory that holds no run is somebody's own.
            let mut overwritten = made().chain([&CONFIG, &METRICS]);
            if holds_run(path) {
                remove(path, made(), "is of an earlier run", global)?;
            } else if let Some(name) = overwritten.find(|name| path.join(name).exists()) {
                bail!(
                    "--out {shown}: it holds no run, but a {name} of somebody's that a run would overwrite; name another directory"
                );
            }
            write_atomic(path.join(CONFIG), format!("{MARK}{config}").as_bytes())?;
        }
        let metrics = OpenOptions::new()
            .create(true)
            .append(resume)
            .write(true)
            .truncate(!resume)
            .open(&metrics)
            .with_context(|| format!("cannot write {}", metrics.display()))?;
        Ok(Self { path: path.to_owned(), config, metrics })
    }

    /// The path of a file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, line: &Value) -> Result<()> {
        let text = serde_json::to_string(line)?;
        writeln!(self.metrics, "{text}")
            .with_context(|| format!("cannot write {}", self.file(METRICS).display()))
    }

    /// Writes everything that going on needs; `best` is the top-1 of the best epoch so far.
    pub fn save_checkpoint(&self, checkpoint: &Checkpoint, best: Option<f64>) -> Result<()> {
        let mut container = Container::default();
        let position = checkpoint.position;
        for (key, value) in [
            ("kind", "checkpoint".to_owned()),
            ("epoch", position.epoch.to_string()),
            ("step", position.step.to_string()),
            ("total_steps", position.total_steps.to_string()),
            ("train_images", checkpoint.train.images.to_string()),
            ("train_correct1", checkpoint.train.correct1.to_string()),
            ("train_correct5", checkpoint.train.correct5.to_string()),
            ("train_loss_sum", checkpoint.train.loss_sum.to_string()),
        ] {
            container.metadata_mut().insert(key.into(), value);
        }
        if let Some(best) = best {
            container.metadata_mut().insert("best_top1".into(), best.to_string());
        }
        for (prefix, tensors) in
            [("network", &checkpoint.network), ("optimizer", &checkpoint.optimizer)]
        {
            for (name, tensor) in tensors {
                container.put(format!("{prefix}.{name}"), tensor)?;
            }
        }
        container.save(self.file("checkpoint.ottava"))?;
        Ok(())
    }

    /// Reads it back from a run's directory, and the best top-1 with it.
    pub fn load_checkpoint(run: &Path) -> Result<(Checkpoint, Option<f64>)> {
        let path = checkpoint(run)?;
        let container = read_container(&path).context("--resume")?;
        let number = |key: &str| -> Result<usize> {
            let text = container.metadata().get(key);
            text.and_then(|text| text.parse().ok().filter(|&number| number <= MOST)).with_context(
                || format!("{} is no checkpoint: no {key} to go on from", path.display()),
            )
        };
        let position = Position {
            epoch: number("epoch")?,
            step: number("step")?,
            total_steps: number("total_steps")?,
        };
        // Earlier builds did not write these.
        fn or_zero<T: Default + FromStr>(container: &Container, key: &str) -> T {
            let text = container.metadata().get(key);
            text.and_then(|text| text.parse().ok()).unwrap_or_default()
        }
        let train = Metrics {
            images: or_zero::<usize>(&container, "train_images").min(MOST),
            correct1: or_zero::<usize>(&container, "train_correct1").min(MOST),
            correct5: or_zero::<usize>(&container, "train_correct5").min(MOST),
            loss_sum: or_zero(&container, "train_loss_sum"),
        };
        let tensors = |prefix: &str| -> Result<Vec<(String, Tensor<f32>)>> {
            let names = container.tensors().keys();
            names
                .filter_map(|name| Some((name, name.strip_prefix(prefix)?)))
                .map(|(name, short)| Ok((short.to_owned(), container.get(name)?)))
                .collect()
        };
        let best = container.metadata().get("best_top1").and_then(|text| text.parse().ok());
        let (network, optimizer) = (tensors("network.")?, tensors("optimizer.")?);
        Ok((Checkpoint { position, network, optimizer, train }, best))
    }

    /// Takes over from the run as it was left at `position`: drops from `metrics.jsonl` what came later,
    /// since a run that was killed had gone further than its checkpoint, and will go there again. If there are
    /// `further` steps, what was made of its networks is of other weights from now on, and removed.
    pub fn go_on(&mut self, position: Position, further: bool, global: &Global) -> Result<()> {
        let changed = changed(&self.path, &self.config, |key| !FREE.contains(&key))?;
        if further {
            remove(&self.path, &MADE_OF_THEM, "is of the weights before", global)?;
        }
        if !changed.is_empty() {
            note(
                global,
                format!(
                    "going on with other settings than the run began with: {}",
                    changed.join(", ")
                ),
            );
        }
        write_atomic(self.file(CONFIG), self.config.as_bytes())?;
        let path = self.file(METRICS);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let before = |line: &&str| {
            // A line torn by the kill is no JSON.
            let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
            match (line["step"].as_u64(), line["epoch"].as_u64()) {
                (Some(step), _) => step < position.total_steps as u64,
                (None, Some(epoch)) => epoch < position.epoch as u64,
                (None, None) => true,
            }
        };
        let kept: String = text.lines().filter(before).map(|line| format!("{line}\n")).collect();
        write_atomic(&path, kept.as_bytes())?;
        self.metrics = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}

/// A run's checkpoint, which has to be there.
pub fn checkpoint(run: &Path) -> Result<PathBuf> {
    let path = run.join("checkpoint.ottava");
    if !path.is_file() {
        bail!(
            "nothing to resume in {}: it has no checkpoint.ottava; start without --resume",
            run.display()
        );
    }
    Ok(path)
}

/// The data set of a run, as its configuration says it.
pub fn data(run: &Path) -> Result<args::Data> {
    let path = run.join(CONFIG);
    let shown = path.display();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
    let table: toml::Table = toml::from_str(&text).with_context(|| shown.to_string())?;
    let setting = |key: &str| table.get(key).and_then(toml::Value::as_str);
    // `demo` has no such flag.
    let mut data = args::Data::of(setting("data").unwrap_or("fashion-mini"));
    if setting("bad_images") == Some("skip") {
        data.bad_images = args::BadImages::Skip;
    }
    Ok(data)
}

/// Whether a directory holds a run, not files of somebody's that are called like those of one.
fn holds_run(path: &Path) -> bool {
    let config = fs::read_to_string(path.join(CONFIG)).unwrap_or_default();
    // Those of earlier versions have no mark, but a seed and a network.
    let earlier = || {
        let seed = toml::from_str::<toml::Table>(&config).is_ok_and(|t| t.contains_key("seed"));
        seed && NETWORKS.iter().any(|name| path.join(name).is_file())
    };
    path.join(METRICS).is_file() && (config.starts_with(MARK) || earlier())
}

/// Refuses to write over the network that a command reads, or over a file of the run it is of: none but `but`.
pub fn spared(flag: &str, out: &Path, model: &Path, but: Option<&str>) -> Result<()> {
    let shown = out.display();
    if same_file(out, model) {
        bail!("{flag} {shown}: that is the network itself; name another file");
    }
    let run = if model.is_dir() { model } else { model.parent().unwrap_or(Path::new("")) };
    if !model.is_dir() && !holds_run(run) {
        return Ok(());
    }
    let mut names = made().chain([&CONFIG, &METRICS]);
    let of_run = |name: &&&str| Some(**name) != but && same_file(out, &run.join(name));
    match names.find(of_run) {
        Some(_) => bail!("{flag} {shown}: that is a file of the run itself; name another file"),
        None => Ok(()),
    }
}

/// Removes files of a run, each of which is named.
fn remove<'a>(
    run: &Path,
    names: impl IntoIterator<Item = &'a &'a str>,
    why: &str,
    global: &Global,
) -> Result<()> {
    for file in names.into_iter().map(|name| run.join(name)).filter(|file| file.is_file()) {
        let shown = file.display();
        note(global, format!("{shown} {why}, and removed"));
        fs::remove_file(&file).with_context(|| format!("cannot remove {shown}"))?;
    }
    Ok(())
}

/// Removes what a run that was killed while it wrote a file has left of it.
fn remove_unfinished(run: &Path) {
    let ours = |name: &str| {
        let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
        name.is_some_and(|name| made().chain([&CONFIG]).any(|known| name.starts_with(known)))
    };
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(ours)) {
        // It takes room and does no harm.
        let _ = fs::remove_file(entry.path());
    }
}

/// Refuses to begin a run where the network lies that it starts from: an earlier run's are removed.
pub fn elsewhere(out: &Path, start: &Path) -> Result<()> {
    if same_file(out, start) || same_file(&out.join("best.ottava"), start) {
        bail!(
            "--out {}: there is the network that this starts from; name another directory",
            out.display()
        );
    }
    Ok(())
}

/// Whether both paths name one file or directory that exists.
pub fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Refuses to go on with a run under another quantization than it began with: other values of these settings.
pub fn same_settings(run: &Path, config: &impl Serialize, settings: &[String]) -> Result<()> {
    let now = toml::to_string(config).context("cannot write the configuration")?;
    let changed = changed(run, &now, |key| settings.iter().any(|setting| setting == key))?;
    if !changed.is_empty() {
        bail!(
            "--resume: {} began with other flags of quantization: {}; leave them as they were, or name another --out",
            run.display(),
            changed.join(", ")
        );
    }
    Ok(())
}

/// The settings in which a run's configuration differs from what it is `now`, of those that count: all of them, if
/// it has none.
fn changed(run: &Path, now: &str, counts: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let file = run.join(CONFIG);
    let before = fs::read_to_string(&file).unwrap_or_default();
    let before: toml::Table =
        before.parse().with_context(|| format!("{} is no TOML; mend it", file.display()))?;
    let now: toml::Table = now.parse()?;
    let keys: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let differ = |key: &&String| before.get(*key) != now.get(*key) && counts(key);
    let changed = keys.into_iter().filter(differ);
    Ok(changed.map(|key| format!("--{}", key.replace('_', "-"))).collect())
}

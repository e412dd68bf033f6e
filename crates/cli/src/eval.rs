//! `ottava eval`: how well any model file does on a data set.

use std::time::Instant;

use anyhow::Result;
use ottava::interop::{Precision, StateDict, write_safetensors};
use serde_json::json;

use crate::args;
use crate::classifier::judge;
use crate::model::{Model, load};
use crate::output::{can_write, result, round};
use crate::qat::{same_channels, same_classes, same_shape};
use crate::run_dir::spared;
use crate::task::{Task, input_shape, name_skipped};

/// `ottava eval`.
pub fn run(args: &args::Eval) -> Result<()> {
    let model = load(&args.model_file, args.model.as_deref())?;
    if let Some(path) = &args.logits {
        spared("--logits", path, &args.model_file, None)?;
        can_write(path)?;
    }
    let task = Task::new(&args.data, model.preprocess()?)?;
    let test = task.test(args.batch)?;
    same_classes(test.data().classes(), model.class_count())?;
    let images = input_shape(&test)?;
    match (&model, model.only_input()) {
        (_, Some(takes)) => same_shape(images, takes)?,
        (Model::Float(model), None) => same_channels(images, model.in_channels)?,
        (Model::Integer(_), None) => {}
    }
    let start = Instant::now();
    let judged = judge(model.classifier()?.as_mut(), &test, "evaluate", &args.global)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.logits {
        let dict: StateDict = [("logits", judged.logits.clone())].into_iter().collect();
        write_safetensors(path, &dict, Precision::F32)?;
    }
    let metrics = judged.metrics;
    let mut json = judged.json();
    name_skipped(&[&test], &mut json, &args.global);
    json["n"] = json!(metrics.images);
    json["seconds"] = json!(round(seconds, 3));
    let text = format!(
        "top-1 {:.2} % ({} of {}), top-5 {:.2} %, loss {:.4}, {seconds:.1} s",
        judged.top1(),
        metrics.correct1,
        metrics.images,
        100.0 * metrics.top5(),
        metrics.loss()
    );
    result(&args.global, json, &text)
}

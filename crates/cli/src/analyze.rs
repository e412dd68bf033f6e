//! `ottava analyze`: what quantization costs, layer by layer.

use anyhow::Result;
use ottava::data::Loader;
use ottava::nn::qat::{NodeAnalysis, Problem, analyze, diagnose};
use ottava::quant::write_atomic;
use serde_json::{Value, json};

use crate::args::{self, BadImages};
use crate::model::load_float;
use crate::output::{can_write, note, result, round, table};
use crate::qat::{adopt, load_graph, observe, prepare_graph};
use crate::run_dir;
use crate::task::{Task, name_skipped};

/// `ottava analyze`.
pub fn run(args: &args::Analyze) -> Result<()> {
    let global = &args.global;
    let file = args.model_file.is_dir().then(|| args.model_file.join("analysis.json"));
    if let Some(file) = &file {
        can_write(file)?;
    }
    let trained = args.model_file.join("qat.ottava");
    let (graph, task, seen) = if trained.is_file() {
        let (graph, mut model) = load_graph(&trained)?;
        note(
            global,
            "as the run has trained it; --calibration and the scheme's flags do not apply",
        );
        let task = Task::new(&data_of(args)?, model.preprocess.clone())?;
        adopt(&mut model, &task.test(args.batch)?)?;
        (graph, task, None)
    } else {
        args.scheme.untrained()?;
        let mut model = load_float(&args.model_file, args.model.as_deref())?;
        let task = Task::new(&args.data, model.preprocess.clone())?;
        let images = task.calibration(args.batch, args.calibration)?;
        adopt(&mut model, &images)?;
        let float = model.trace(model.input_shape(None))?.detach();
        let graph = prepare_graph(&float, &args.scheme, global)?.graph;
        observe(&graph, &images, global)?;
        (graph, task, Some(images))
    };
    let findings = diagnose(&graph)?;
    let images = task.test_images(args.batch, args.images)?;
    let analysis = analyze(&graph, crate::task::batches(&images, 0))?;

    let float = 100.0 * analysis.float.top1();
    let rows: Vec<Vec<String>> = analysis.nodes.iter().map(|node| row(node, float)).collect();
    let header = [
        "node",
        "op",
        "bits",
        "SQNR dB",
        "alone dB",
        "weights dB",
        "clipped %",
        "bias %",
        "top-1 %",
        "change",
        "loss",
    ];
    let mut text = table(&header, &rows);
    for finding in &findings {
        text += &format!("{finding}\n");
    }
    text += &format!(
        "float: top-1 {float:.2} %, loss {:.4}; all quantized: top-1 {:.2} %, loss {:.4}; {} images\n\
         SQNR: of the result in the quantized network, and of this node alone quantized; bias: the largest, of i32;\n\
         top-1 and loss: of the network with this node alone quantized",
        analysis.float.loss(),
        100.0 * analysis.quantized.top1(),
        analysis.quantized.loss(),
        analysis.float.images,
    );
    let metrics = |metrics: &ottava::nn::Metrics| json!({"top1": round(100.0 * metrics.top1(), 4), "loss": round(metrics.loss(), 6)});
    let nodes: Vec<Value> = analysis
        .nodes
        .iter()
        .map(|node| {
            let mut json = json!({
                "name": node.name, "op": node.op, "sqnr_db": decibels(node.sqnr), "isolated_sqnr_db": decibels(node.isolated),
                "clipped": round(node.clipped, 6), "alone": metrics(&node.alone),
            });
            if let Some(weights) = node.weights {
                json["bits"] = json!(weights.bits);
                json["weight_sqnr_db"] = decibels(weights.sqnr);
                json["bias_of_i32"] = json!(weights.bias);
                let widened = findings.iter().find_map(|finding| match finding.problem {
                    Problem::WidenedChannels { count, .. } if finding.layer == node.name => Some(count),
                    _ => None,
                });
                json["widened_channels"] = json!(widened.unwrap_or(0));
            }
            json
        })
        .collect();
    let mut json = json!({
        "float": metrics(&analysis.float), "quantized": metrics(&analysis.quantized),
        "images": analysis.float.images, "nodes": nodes,
        "findings": findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    let loaders: Vec<&Loader> = seen.iter().chain([&images]).collect();
    name_skipped(&loaders, &mut json, global);
    if let Some(file) = file {
        write_atomic(file, serde_json::to_string(&json)?.as_bytes())?;
    }
    result(global, json, &text)
}

/// The data set of the flags, or else the one that a run was trained on.
fn data_of(args: &args::Analyze) -> Result<args::Data> {
    if args.data.data.is_some() {
        return Ok(args.data.clone());
    }
    let of_run = run_dir::data(&args.model_file)?;
    let args::Data { preprocess, workers, bad_images, .. } = args.data.clone();
    let bad_images = if bad_images == BadImages::Skip { bad_images } else { of_run.bad_images };
    Ok(args::Data { preprocess, workers, bad_images, ..of_run })
}

/// `null` where nothing differs.
fn decibels(ratio: f64) -> Value {
    if ratio.is_finite() { json!(round(ratio, 3)) } else { Value::Null }
}

fn row(node: &NodeAnalysis, float: f64) -> Vec<String> {
    let weights = |cell: fn(ottava::nn::qat::WeightAnalysis) -> String| {
        node.weights.map_or_else(String::new, cell)
    };
    let top1 = 100.0 * node.alone.top1();
    vec![
        node.name.clone(),
        node.op.into(),
        weights(|w| w.bits.to_string()),
        format!("{:.1}", node.sqnr),
        format!("{:.1}", node.isolated),
        weights(|w| format!("{:.1}", w.sqnr)),
        format!("{:.3}", 100.0 * node.clipped),
        weights(|w| format!("{:.4}", 100.0 * w.bias)),
        format!("{top1:.2}"),
        format!("{:+.2}", top1 - float),
        format!("{:.4}", node.alone.loss()),
    ]
}

//! `ottava ptq`: calibrate, convert, no training.

use anyhow::Result;
use serde_json::json;

use crate::args;
use crate::classifier::{Evaluating, Integer, judge};
use crate::model::load_float;
use crate::output::{bytes, result, table};
use crate::qat::{adopt, calibrate, convert_to, float_nodes, prepare_model, size};
use crate::task::{Task, name_skipped};

/// `ottava ptq`.
pub fn run(args: &args::Ptq) -> Result<()> {
    let global = &args.global;
    let mut model = load_float(&args.model_file, args.model.as_deref())?;
    let task = Task::new(&args.data, model.preprocess.clone())?;
    let test = task.test(args.batch)?;
    adopt(&mut model, &test)?;
    let graph = prepare_model(&model, model.input_shape(None), &args.scheme, global)?.graph;
    calibrate(&graph, &task.calibration(args.batch, args.calibration)?, global)?;
    let file = args.out.clone().unwrap_or_else(|| match args.model_file.is_dir() {
        true => args.model_file.join("int8.ottava"),
        false => args.model_file.with_file_name("int8.ottava"),
    });
    let program = convert_to(&graph, &model, &file)?;

    let float = judge(&mut Evaluating(&model.network), &test, "float", global)?;
    let integer = judge(&mut Integer::new(&program)?, &test, "int8", global)?;
    let written = size(&file)?;
    let row = |name: &str, judged: &crate::classifier::Judged, size: String| {
        vec![
            name.to_owned(),
            format!("{:.2}", judged.top1()),
            format!("{:.4}", judged.metrics.loss()),
            size,
        ]
    };
    let rows = [row("float", &float, String::new()), row("ptq_int8", &integer, bytes(written))];
    let text = table(&["network", "top-1 %", "loss", "file"], &rows);
    let mut json = json!({"float": float.json(), "ptq_int8": integer.json(), "agreement": float.agreement(&integer)});
    json["ptq_int8"]["bytes"] = json!(written);
    json["float_nodes"] = float_nodes(&program);
    json["file"] = json!(file.display().to_string());
    name_skipped(&[&test], &mut json, global);
    result(global, json, &format!("{text}the integer network is {}", file.display()))
}

//! `ottava ptq`: calibrate, convert, no training.

use std::path::PathBuf;

use anyhow::{Result, bail};
use ottava::autograd::Graph;
use ottava::data::Loader;
use ottava::nn::qat::{convert, convert_dynamic};
use ottava::quant::Program;
use serde_json::json;

use crate::args;
use crate::classifier::{Deployed, Evaluating, judge};
use crate::helpers;
use crate::model::{FloatModel, load_float};
use crate::output::{bytes, can_write, result, table};
use crate::qat::{
    adopt, calibrate, float_nodes, integer_metadata, prepare_graph, size, write_program,
};
use crate::run_dir::spared;
use crate::setup::usage;
use crate::task::{Task, name_skipped};
use crate::widths::{self, Chosen};

/// `ottava ptq`.
pub fn run(args: &args::Ptq) -> Result<()> {
    let global = &args.global;
    if let Some(out) = &args.out
        && out.extension().is_none_or(|extension| extension != "ottava")
    {
        usage!("--out {}: the file's name must end in .ottava", out.display());
    }
    args.scheme.untrained()?;
    let mut model = load_float(&args.model_file, args.model.as_deref())?;
    let task = Task::new(&args.data, model.preprocess.clone())?;
    let test = task.test(args.batch)?;
    adopt(&mut model, &test)?;
    let file = target(args)?;
    let graph = model.trace(model.input_shape(None))?.detach();
    let float_graph = helpers::before(&graph, &args.helpers, global)?;
    let images = match args.dynamic {
        true => None,
        false => Some(task.calibration(args.batch, args.calibration)?),
    };
    let (program, chosen) = match &images {
        None => (convert_dynamic(&float_graph, args.scheme.dynamic())?, None),
        Some(images) => calibrated(&float_graph, &model, images, args)?,
    };
    // First: what of the images cannot be read is known before anything is written.
    let float = judge(&mut Evaluating(&graph), &test, "float", global)?;
    let program = write_program(program, &model, &file)?;
    let integer = judge(&mut Deployed::new(&program)?, &test, "int8", global)?;
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
    let mut text = table(&["network", "top-1 %", "loss", "file"], &rows);
    let mut json = json!({"float": float.json(), "ptq_int8": integer.json(), "agreement": float.agreement(&integer)});
    json["ptq_int8"]["bytes"] = json!(written);
    json["float_nodes"] = float_nodes(&program);
    json["file"] = json!(file.display().to_string());
    let loaders: Vec<&Loader> = images.iter().chain([&test]).collect();
    name_skipped(&loaders, &mut json, global);
    if let Some(chosen) = &chosen {
        json["widths"] = chosen.json();
        text = format!("{}\n{text}", chosen.text());
    }
    result(global, json, &format!("{text}the integer network is {}", file.display()))
}

/// The file to write, which nobody needs any more.
fn target(args: &args::Ptq) -> Result<PathBuf> {
    let beside = |name: &str| match args.model_file.is_dir() {
        true => args.model_file.join(name),
        false => args.model_file.with_file_name(name),
    };
    if args.out.is_none() && beside("qat.ottava").exists() {
        bail!(
            "{} is the network that was trained quantization-aware; write this one elsewhere, with --out",
            beside("int8.ottava").display()
        );
    }
    let file = args.out.clone().unwrap_or_else(|| beside("int8.ottava"));
    spared("--out", &file, &args.model_file, Some("int8.ottava"))?;
    can_write(&file)?;
    Ok(file)
}

/// The program of a calibrated graph, and the widths that a budget chose.
fn calibrated(
    float: &Graph,
    model: &FloatModel,
    images: &Loader,
    args: &args::Ptq,
) -> Result<(Program, Option<Chosen>)> {
    let global = &args.global;
    let metadata = integer_metadata(model);
    let chosen = widths::choose(float, &args.scheme, &args.budget, images, metadata, global)?;
    let scheme = chosen.as_ref().map_or(&args.scheme, |chosen| &chosen.scheme);
    let graph = prepare_graph(float, scheme, global)?.graph;
    calibrate(&graph, images, global)?;
    helpers::after(&graph, &args.helpers, images, global)?;
    let mut program = convert(&graph)?;
    if let Some(chosen) = &chosen {
        program.metadata_mut().extend(chosen.scheme.metadata()?);
    }
    Ok((program, chosen))
}

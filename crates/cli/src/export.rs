//! `ottava export`: to ONNX, or the float weights to safetensors.

use anyhow::{Result, bail};
use ottava::interop::{
    OnnxFormat, OnnxOptions, Precision, StateDict, graph_to_onnx, program_to_onnx,
    write_safetensors,
};
use ottava::nn::Network as _;
use ottava::quant::write_atomic;
use serde_json::json;

use crate::args::{self, Format, Weights};
use crate::model::{Model, load};
use crate::output::{bytes, result};
use crate::qat::size;
use crate::run_dir::spared;
use crate::setup::usage;

/// `ottava export`.
pub fn run(args: &args::Export) -> Result<()> {
    spared("OUT", &args.out, &args.model_file, None)?;
    let model = load(&args.model_file, args.model.as_deref())?;
    let defaults = OnnxOptions::default();
    let options = OnnxOptions {
        format: match args.format {
            Format::Qdq => OnnxFormat::Qdq,
            Format::Qoperator => OnnxFormat::QOperator,
        },
        unsigned_weights: args.weights == Weights::U8,
        opset: args.opset.unwrap_or(defaults.opset),
        ir_version: args.ir_version.unwrap_or(defaults.ir_version),
    };
    let as_integers = args.format != Format::Qdq || args.weights != Weights::S8;
    if as_integers && matches!(model, Model::Float(_)) {
        bail!("--format and --weights are for an integer network; this one is float");
    }
    let extension = args.out.extension().and_then(|extension| extension.to_str());
    if extension == Some("safetensors") && args.opset.or(args.ir_version).is_some() {
        usage!("--opset and --ir-version are of .onnx; {} is none", args.out.display());
    }
    match (extension, &model) {
        (Some("onnx"), Model::Integer(program)) => {
            write_atomic(&args.out, &program_to_onnx(program, &options)?)?;
        }
        (Some("onnx"), Model::Float(model)) => {
            let graph = model.trace(model.input_shape(None))?;
            write_atomic(&args.out, &graph_to_onnx(&graph, &model.metadata(), &options)?)?;
        }
        (Some("safetensors"), Model::Float(model)) => {
            let mut dict: StateDict = model.network.state_dict().into_iter().collect();
            dict.metadata = model.metadata();
            write_safetensors(&args.out, &dict, Precision::F32)?;
        }
        (Some("safetensors"), Model::Integer(_)) => {
            bail!(
                "safetensors holds float weights; write an integer network as .onnx, or name the float one, such as best.ottava of a run"
            )
        }
        _ => usage!("{}: the file's name must end in .onnx or .safetensors", args.out.display()),
    }
    let written = size(&args.out)?;
    let text = format!("{} ({})", args.out.display(), bytes(written));
    result(&args.global, json!({"file": args.out.display().to_string(), "bytes": written}), &text)
}

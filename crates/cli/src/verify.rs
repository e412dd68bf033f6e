//! `ottava verify`: the quantization-aware graph against the integer program, node by node.

use anyhow::{Context, Result, bail};
use ottava::nn::qat::verify;
use ottava::quant::Program;
use serde_json::json;

use crate::args;
use crate::classifier::{Deployed, Evaluating, judge};
use crate::model::read_container;
use crate::output::{result, table};
use crate::qat::load_graph;
use crate::task::{Task, name_skipped};

/// `ottava verify`.
pub fn run(args: &args::Verify) -> Result<()> {
    let graph = args.run.join("qat.ottava");
    if !graph.is_file() {
        bail!(
            "{} holds no qat.ottava: verify takes the directory that `ottava qat` wrote",
            args.run.display()
        );
    }
    let (graph, model) = load_graph(&graph)?;
    let file = args.run.join("int8.ottava");
    if !file.is_file() {
        bail!(
            "{} holds no int8.ottava yet: `ottava qat` was interrupted; --resume goes on with it",
            args.run.display()
        );
    }
    let program = Program::from_container(&read_container(&file)?)
        .with_context(|| file.display().to_string())?;
    let config = args.run.join("config.toml");
    let text = std::fs::read_to_string(&config)
        .with_context(|| format!("cannot read {}", config.display()))?;
    let table_of_run: toml::Table =
        toml::from_str(&text).with_context(|| format!("{}", config.display()))?;
    let setting = |key: &str| table_of_run.get(key).and_then(|value| value.as_str());
    let mut data = args::Data::of(setting("data").unwrap_or("fashion-mini"));
    if setting("bad_images") == Some("skip") {
        data.bad_images = args::BadImages::Skip;
    }
    let test = Task::new(&data, model.preprocess.clone())?.test(args.images)?;
    let batch = test.epoch(0).next().context("the test set is empty")??;

    let nodes = verify(&graph, &program, &batch.images)?;
    let ours = judge(&mut Evaluating(&graph), &test, "graph", &args.global)?;
    let theirs = judge(&mut Deployed::new(&program)?, &test, "program", &args.global)?;
    let agreement = ours.agreement(&theirs);
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.op.into(),
                node.elements.to_string(),
                node.differing.to_string(),
                node.max_lsb.to_string(),
            ]
        })
        .collect();
    let list: Vec<_> = nodes
        .iter()
        .map(|node| json!({"name": node.name, "op": node.op, "elements": node.elements, "differing": node.differing, "max_lsb": node.max_lsb}))
        .collect();
    let text = table(&["node", "op", "elements", "differing", "max LSB"], &rows);
    let mut json = json!({"nodes": list, "agreement": agreement});
    name_skipped(&[&test], &mut json, &args.global);
    result(&args.global, json, &format!("{text}agreement {agreement}"))?;
    let differing: usize = nodes.iter().map(|node| node.differing).sum();
    if differing > 0 {
        bail!("{differing} elements differ; the file and the run do not belong together");
    }
    Ok(())
}

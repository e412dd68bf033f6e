//! `ottava verify`: the quantization-aware graph against the integer program, node by node.

use anyhow::{Context, Result, bail};
use ottava::nn::qat::verify;
use ottava::quant::{Container, Program};
use serde_json::json;

use crate::args;
use crate::classifier::{Evaluating, Integer, judge};
use crate::output::{result, table};
use crate::qat::load_graph;
use crate::task::Task;

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
    let program = Container::load(&file).and_then(|container| Program::from_container(&container));
    let program = program.with_context(|| format!("{}", file.display()))?;
    let config = args.run.join("config.toml");
    let text = std::fs::read_to_string(&config)
        .with_context(|| format!("cannot read {}", config.display()))?;
    let table_of_run: toml::Table =
        toml::from_str(&text).with_context(|| format!("{}", config.display()))?;
    let data = table_of_run.get("data").and_then(|value| value.as_str()).unwrap_or("fashion-mini");
    let data = args::Data::of(data);
    let test = Task::new(&data, model.preprocess.clone())?.test(args.images)?;
    let batch = test.epoch(0).next().context("the test set is empty")??;

    let nodes = verify(&graph, &program, &batch.images)?;
    let ours = judge(&mut Evaluating(&graph), &test, "graph", &args.global)?;
    let theirs = judge(&mut Integer::new(&program)?, &test, "program", &args.global)?;
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
    result(
        &args.global,
        json!({"nodes": list, "agreement": agreement}),
        &format!("{text}agreement {agreement}"),
    )?;
    let differing: usize = nodes.iter().map(|node| node.differing).sum();
    if differing > 0 {
        bail!("{differing} elements differ; the file and the run do not belong together");
    }
    Ok(())
}

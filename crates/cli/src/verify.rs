//! `ottava verify`: the quantization-aware graph against the integer program, node by node.

use anyhow::{Context, Result, bail};
use ottava::nn::qat::{NodeDifference, verify};
use ottava::quant::Program;
use serde_json::json;

use crate::args;
use crate::classifier::{Deployed, Evaluating, judge};
use crate::model::read_container;
use crate::output::{result, table};
use crate::qat::load_graph;
use crate::run_dir;
use crate::task::{Task, name_skipped};

/// Images that both networks see at a time.
const BATCH: usize = 64;

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
    let task = Task::new(&run_dir::data(&args.run)?, model.preprocess.clone())?;
    let few = task.test_images(args.images, args.images.min(BATCH))?;
    let mut nodes: Vec<NodeDifference> = vec![];
    for batch in few.epoch(0) {
        let found = verify(&graph, &program, &batch?.images)?;
        if nodes.is_empty() {
            nodes = found;
        } else {
            nodes.iter_mut().zip(&found).for_each(|(node, found)| node.add(found));
        }
    }
    if nodes.is_empty() {
        bail!("the test set is empty");
    }
    let test = task.test(BATCH)?;
    let ours = judge(&mut Evaluating(&graph), &test, "graph", &args.global)?;
    let theirs = judge(&mut Deployed::new(&program)?, &test, "program", &args.global)?;
    let agreement = ours.agreement(&theirs);
    let same = |(a, b): (f32, f32)| a.to_bits() == b.to_bits();
    let equal = ours.logits.iter().zip(theirs.logits.iter()).all(same);
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
    if differing > 0 || !equal {
        let what = match differing {
            0 => "logits of other images than were compared node by node differ".to_owned(),
            count => format!("{count} elements differ"),
        };
        bail!("{what}; the file and the run do not belong together");
    }
    Ok(())
}

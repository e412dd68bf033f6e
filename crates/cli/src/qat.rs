//! `ottava qat`: quantization-aware training and conversion, and the parts that `ptq` and `demo` share.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ottava::autograd::{Graph, Mode, Tape};
use ottava::data::Loader;
use ottava::nn::Network as _;
use ottava::nn::ScheduleKind;
use ottava::nn::optim::OptimizerKind;
use ottava::nn::qat::{Milestones, Prepared, convert, diagnose, prepare, reestimate_batch_norm};
use ottava::quant::Program;
use serde_json::{Value, json};

use crate::args::{self, Global};
use crate::classifier::{Deployed, Evaluating, Judged, judge, latency};
use crate::memory::peak_rss;
use crate::model::{FloatModel, load_float, put, read_container};
use crate::output::{bar, bytes, note, result, table};
use crate::run_dir::{RunDir, elsewhere, same_settings};
use crate::scheme::Scheme;
use crate::setup::{catch_interrupts, check_interrupt, usage};
use crate::task::{Task, input_shape, name_skipped};
use crate::train::{Defaults, Job, Options, Recipe};
use crate::widths;

/// The published recipe's shape: few epochs, a low rate, a cosine.
pub const QAT: Defaults = Defaults {
    epochs: 6,
    batch: 64,
    lr: 1e-3,
    optimizer: OptimizerKind::Sgd,
    schedule: ScheduleKind::Cosine,
    warmup: 0.0,
    weight_decay: 1e-4,
};

/// The tutorial's: Adam at its default rate, which stays.
const TUTORIAL: Defaults = Defaults {
    epochs: 10,
    batch: 32,
    lr: 1e-3,
    optimizer: OptimizerKind::Adam,
    schedule: ScheduleKind::Constant,
    warmup: 0.0,
    weight_decay: 0.0,
};

impl args::RecipeName {
    /// Its numbers.
    fn defaults(self) -> Defaults {
        match self {
            Self::Published => QAT,
            Self::Tutorial => TUTORIAL,
        }
    }

    /// What it freezes when.
    fn milestones(self, epochs: usize) -> Milestones {
        match self {
            Self::Published => Milestones::for_epochs(epochs),
            Self::Tutorial => Milestones {
                quantize_from: 0,
                freeze_observers: usize::MAX,
                freeze_batch_norm: usize::MAX,
            },
        }
    }
}

/// A word of warning about a rate that takes a trained network further from where it was than rounding
/// asks for.
fn rate_warning(recipe: &Defaults) -> Option<String> {
    let (most, safer, name) = match recipe.optimizer {
        OptimizerKind::Sgd => (0.01, 0.001, "SGD"),
        OptimizerKind::Adam | OptimizerKind::AdamW => (1e-4, 1e-5, "Adam"),
    };
    (recipe.lr > most).then(|| {
        format!(
            "a learning rate of {} is high for a trained network: {name} above {most} often unlearns more than rounding costs; --lr {safer} is safer",
            recipe.lr
        )
    })
}

/// Runs that time a single image.
const LATENCY_RUNS: usize = 60;

/// Makes a float network quantization-aware: a graph with parameters of its own.
pub fn prepare_model(
    model: &FloatModel,
    input: [usize; 3],
    scheme: &Scheme,
    global: &Global,
) -> Result<Prepared> {
    prepare_graph(&model.trace(input)?.detach(), scheme, global)
}

/// Makes a float graph quantization-aware; it shares the graph's parameters.
pub fn prepare_graph(graph: &Graph, scheme: &Scheme, global: &Global) -> Result<Prepared> {
    let prepared = prepare(graph, &scheme.map()?)?;
    for node in &prepared.float {
        note(global, format!("`{}` ({}) stays in float: {}", node.name, node.op, node.reason));
    }
    Ok(prepared)
}

/// Shows images to the observers, and says which layers deserve a second look.
pub fn calibrate(graph: &Graph, loader: &Loader, global: &Global) -> Result<()> {
    observe(graph, loader, global)?;
    for finding in diagnose(graph)? {
        note(global, finding.to_string());
    }
    Ok(())
}

/// Shows images to the observers.
pub fn observe(graph: &Graph, loader: &Loader, global: &Global) -> Result<()> {
    let bar = bar(global, "calibrate", loader.batches());
    for batch in loader.epoch(0) {
        check_interrupt("while observers looked at images")?;
        let tape = Tape::no_grad(Mode::CALIBRATE);
        graph.run(tape.input(batch?.images))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Estimates BatchNorm's statistics anew from the batches of a loader.
fn reestimate(graph: &Graph, loader: &Loader, global: &Global) -> Result<()> {
    let bar = bar(global, "re-estimate", loader.batches());
    let batches = loader.epoch(0).map(|batch| {
        bar.inc(1);
        anyhow::Ok(batch?.images)
    });
    reestimate_batch_norm(graph, batches)?;
    bar.finish_and_clear();
    Ok(())
}

/// Converts a graph and writes the program with what the model's file says of itself.
pub fn convert_to(graph: &Graph, model: &FloatModel, path: &Path) -> Result<Program> {
    write_program(convert(graph)?, model, path)
}

/// Writes a program with what the model's file says of itself.
pub fn write_program(mut program: Program, model: &FloatModel, path: &Path) -> Result<Program> {
    program.metadata_mut().extend(integer_metadata(model));
    program.save(path)?;
    Ok(program)
}

/// What the file of an integer network says of its model.
pub fn integer_metadata(model: &FloatModel) -> BTreeMap<String, String> {
    let mut metadata = model.metadata();
    metadata.insert("kind".into(), "int8".into());
    metadata
}

/// Writes a quantization-aware graph: its float network, how it is quantized, and the parameters and
/// observers it has now, so that it can be made again.
pub fn save_graph(graph: &Graph, model: &FloatModel, scheme: &Scheme, path: &Path) -> Result<()> {
    let mut container = model.to_container()?;
    container.metadata_mut().insert("kind".into(), "qat".into());
    container.metadata_mut().extend(scheme.metadata()?);
    let state =
        graph.state_dict().into_iter().map(|(name, tensor)| (format!("{GRAPH}{name}"), tensor));
    put(&mut container, state.collect())?;
    Ok(container.save(path)?)
}

/// What the graph's tensors are called in the file, beside the float network's.
const GRAPH: &str = "graph.";

/// Makes it again.
pub fn load_graph(path: &Path) -> Result<(Graph, FloatModel)> {
    let shown = path.display().to_string();
    let mut container = read_container(path)?;
    let scheme = Scheme::from_metadata(container.metadata()).with_context(|| shown.clone())?;
    let names: Vec<String> =
        container.tensors().keys().filter(|name| name.starts_with(GRAPH)).cloned().collect();
    let mut state = Vec::with_capacity(names.len());
    for name in names {
        state.push((name[GRAPH.len()..].to_owned(), container.get(&name)?));
        container.remove(&name);
    }
    let model = FloatModel::from_container(&shown, &container)?;
    let graph = prepare(&model.trace(model.input_shape(None))?.detach(), &scheme.map()?)?.graph;
    graph.load_state_dict(state)?;
    Ok((graph, model))
}

/// A file's size.
pub fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
}

/// What of a program computes in floats, and why: for reports.
pub fn float_nodes(program: &Program) -> Value {
    let nodes = program.nodes().iter().filter(|node| !node.why.is_empty());
    nodes.map(|node| json!({"name": node.name, "op": node.instr.op(), "why": node.why})).collect()
}

/// What `qat` and `demo` report of one network.
pub struct Row {
    pub name: &'static str,
    pub judged: Judged,
    pub bytes: Option<u64>,
    pub latency: Option<f64>,
}

impl Row {
    fn json(&self) -> Value {
        let mut json = self.judged.json();
        if let Some(bytes) = self.bytes {
            json["bytes"] = json!(bytes);
        }
        if let Some(latency) = self.latency {
            json["latency_ms"] = json!(latency);
        }
        json
    }
}

/// Judges a float network, its file, and its latency on one image.
pub fn float_row(model: &FloatModel, file: &Path, test: &Loader, global: &Global) -> Result<Row> {
    let shape = input_shape(test)?;
    let judged = judge(&mut Evaluating(&model.trace(shape)?), test, "float", global)?;
    let mut program = Deployed::new(&model.program(shape)?)?;
    let latency = latency(&mut program, &one_image(test)?, LATENCY_RUNS)?.median;
    Ok(Row { name: "float", judged, bytes: Some(size(file)?), latency: Some(latency) })
}

/// Judges a program, its file, and its latency on one image.
pub fn integer_row(
    name: &'static str,
    program: &Program,
    file: &Path,
    test: &Loader,
    global: &Global,
) -> Result<Row> {
    let mut integer = Deployed::new(program)?;
    let judged = judge(&mut integer, test, name, global)?;
    let latency = latency(&mut integer, &one_image(test)?, LATENCY_RUNS)?.median;
    Ok(Row { name, judged, bytes: Some(size(file)?), latency: Some(latency) })
}

fn one_image(loader: &Loader) -> Result<ottava::tensor::Tensor<f32>> {
    let batch = loader.epoch(0).next().context("the test set is empty")??;
    Ok(batch.images.slice(0, 0..1, 1)?.channels_last())
}

/// The object of `demo` and `qat`, and the table for people.
pub fn report(rows: &[Row], agreement: f64, seconds: f64, seed: u64) -> (Value, String) {
    let mut json = json!({});
    for row in rows {
        json[row.name] = row.json();
    }
    json["agreement"] = json!(agreement);
    if let Some(peak) = peak_rss() {
        json["peak_rss_bytes"] = json!(peak);
    }
    json["seconds"] = json!(crate::output::round(seconds, 2));
    json["seed"] = json!(seed);
    json["threads"] = json!(ottava::tensor::parallel::threads());
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.to_owned(),
                format!("{:.2}", row.judged.top1()),
                format!("{:.4}", row.judged.metrics.loss()),
                row.bytes.map_or_else(String::new, bytes),
                row.latency.map_or_else(String::new, |ms| format!("{ms:.3}")),
            ]
        })
        .collect();
    let text = table(&["network", "top-1 %", "loss", "file", "ms/image"], &lines);
    let text = format!("{text}agreement of qat_fake and qat_int8: {agreement}\n");
    (json, text)
}

/// `ottava qat`.
pub fn run(args: &args::Qat) -> Result<()> {
    catch_interrupts()?;
    // In the run's configuration the network is a flag like any other.
    if args.global.config.is_none() && args.weights.is_some() && args.model_file.is_some() {
        usage!("MODEL and --weights are the same; name one of them");
    }
    let weights = args.model_file.clone().or_else(|| args.weights.clone());
    let args = &args::Qat { weights, ..args.clone() };
    let file = args.weights.as_deref().context("name a float network")?;
    let start = std::time::Instant::now();
    let global = &args.global;
    let recipe = Recipe::new(&args.training, args.recipe.defaults())?;
    if recipe.defaults.epochs == 0 {
        usage!("--epochs 0: nothing would be trained; `ottava ptq` converts without training");
    }
    if let Some(warning) = rate_warning(&recipe.defaults) {
        note(global, warning);
    }
    let mut model = load_float(file, args.model.as_deref())?;
    let task = Task::new(&args.data, model.preprocess.clone())?;
    let Defaults { batch, epochs, .. } = recipe.defaults;
    let train = task.training(batch, &args.training)?;
    let test = task.test(batch)?;
    adopt(&mut model, &train)?;
    let input = model.input_shape(None);

    let out = args.training.out.clone().unwrap_or_else(|| Path::new("runs/qat").to_owned());
    elsewhere(&out, file)?;
    let checkpoint = match args.training.resume {
        true => {
            let (checkpoint, _) = RunDir::load_checkpoint(&out)?;
            same_network(&model, &out.join("best.ottava"))?;
            same_settings(&out, args, &quantization())?;
            Some(checkpoint)
        }
        false => None,
    };

    let images = task.calibration(batch, args.calibration)?;
    let float = model.trace(input)?.detach();
    let metadata = integer_metadata(&model);
    let chosen = widths::choose(&float, &args.scheme, &args.budget, &images, metadata, global)?;
    let scheme = chosen.as_ref().map_or(&args.scheme, |chosen| &chosen.scheme);
    let graph = prepare_graph(&float, scheme, global)?.graph;
    if let Some(checkpoint) = checkpoint {
        // Of a copy: the graph itself is calibrated first, as in the run that is gone on with.
        graph.detach().load_state_dict(checkpoint.network).with_context(|| {
            format!("--resume: {} began with other flags of quantization", out.display())
        })?;
    }
    calibrate(&graph, &images, global)?;

    let mut run = RunDir::create(&out, args, args.training.resume, global)?;
    model.save(&run.file("best.ottava"))?;
    let mut rows = vec![float_row(&model, &run.file("best.ottava"), &test, global)?];
    let file = run.file("ptq.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("ptq_int8", &program, &file, &test, global)?);

    let planned = args.recipe.milestones(epochs);
    let milestones = Milestones {
        quantize_from: args.quantize_from.unwrap_or(planned.quantize_from),
        freeze_observers: args.freeze_observers.unwrap_or(planned.freeze_observers),
        freeze_batch_norm: args.freeze_bn.unwrap_or(planned.freeze_batch_norm),
    };
    // A run of one epoch has no better plan.
    if let Some(warning) = milestones.warning(epochs).filter(|_| milestones != planned) {
        note(global, warning);
    }
    let best = run.file("qat.ottava");
    let save = || save_graph(&graph, &model, scheme, &best);
    let job = Job {
        what: "qat",
        network: &graph,
        recipe: &recipe,
        train: &train,
        test: &test,
        run: &mut run,
        options: Options::from(&args.training),
        global,
    };
    job.run(|epoch| milestones.mode(epoch), save)?;
    let (graph, _) = load_graph(&best)?;
    if args.reestimate_bn > 0 {
        let images = task.whole_batches(batch, args.reestimate_bn)?;
        reestimate(&graph, &images, global)?;
        save_graph(&graph, &model, scheme, &best)?;
    }
    rows.push(Row {
        name: "qat_fake",
        judged: judge(&mut Evaluating(&graph), &test, "qat_fake", global)?,
        bytes: None,
        latency: None,
    });
    let file = out.join("int8.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("qat_int8", &program, &file, &test, global)?);
    let agreement = rows[2].judged.agreement(&rows[3].judged);
    let (mut json, mut text) =
        report(&rows, agreement, start.elapsed().as_secs_f64(), args.training.seed);
    json["float_nodes"] = float_nodes(&program);
    name_skipped(&[&train, &images, &test], &mut json, global);
    if let Some(chosen) = &chosen {
        json["widths"] = chosen.json();
        text = format!("{}\n{text}", chosen.text());
    }
    // Told, whatever becomes of the page.
    let page = crate::report::finish(&out, &json);
    result(global, json, &format!("{text}the integer network is {}", file.display()))?;
    page
}

/// The settings that say how a network is quantized: a run keeps those it began with.
fn quantization() -> Vec<String> {
    let flags = <args::Budget as clap::Args>::augment_args(clap::Command::new("qat"));
    let flags = <Scheme as clap::Args>::augment_args(flags);
    let names = flags.get_arguments().map(|flag| flag.get_id().to_string());
    names.chain(["calibration".to_owned()]).collect()
}

/// Refuses a network that is not the one which a run began with.
fn same_network(model: &FloatModel, begun: &Path) -> Result<()> {
    let earlier = load_float(begun, None)?.network.state_dict();
    let now = model.network.state_dict();
    let same = earlier.len() == now.len()
        && earlier.iter().zip(&now).all(|((a, x), (b, y))| {
            a == b && x.shape() == y.shape() && x.iter().zip(y.iter()).all(|(x, y)| x == y)
        });
    if !same {
        bail!(
            "--resume: the run began with another network, {}; name that one, or another --out",
            begun.display()
        );
    }
    Ok(())
}

/// Refuses images that a network cannot take.
pub fn same_channels(images: [usize; 3], channels: usize) -> Result<()> {
    if images[0] != channels {
        bail!(
            "the images have {} channels, but the network takes {channels}; choose other --data",
            images[0]
        );
    }
    Ok(())
}

/// Refuses images of another size than that of a network which takes one alone.
pub fn same_shape(images: [usize; 3], takes: &[usize]) -> Result<()> {
    if let &[channels, _, _] = takes {
        same_channels(images, channels)?;
    }
    if takes != images {
        bail!(
            "the images are of shape {images:?}, but the network takes {takes:?}; choose other --data, or a --preprocess that makes them of that size"
        );
    }
    Ok(())
}

/// Refuses labels that a network does not give.
pub fn same_classes(names: &[String], count: usize) -> Result<()> {
    if names.len() != count {
        bail!(
            "the data set has {} classes, but the network tells {count} apart; choose other --data",
            names.len(),
        );
    }
    Ok(())
}

/// Lets a model take over what its data set says: shape, classes, preprocessing.
pub fn adopt(model: &mut FloatModel, loader: &Loader) -> Result<()> {
    let input = input_shape(loader)?;
    match model.only_input() {
        Some(takes) => same_shape(input, takes)?,
        None => same_channels(input, model.in_channels)?,
    }
    let classes = loader.data().classes();
    same_classes(classes, model.class_count)?;
    model.input = Some(input);
    model.classes = classes.to_vec();
    model.preprocess = Some(loader.preprocess().clone());
    Ok(())
}

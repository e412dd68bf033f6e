//! `ottava demo`: the whole road on embedded images, in minutes.

use std::time::Instant;

use anyhow::{Result, bail};
use ottava::autograd::{Graph, Mode};
use ottava::data::{Augment, Loader};
use ottava::nn::ScheduleKind;
use ottava::nn::models::{Architecture, ModelConfig};
use ottava::nn::optim::OptimizerKind;
use ottava::nn::qat::Milestones;

use crate::args::{self, Global};
use crate::classifier::{Evaluating, judge};
use crate::model::{FloatModel, Model, load};
use crate::output::{note, result};
use crate::qat::{
    Row, calibrate, convert_to, float_row, integer_row, load_graph, prepare_model, report,
    save_graph,
};
use crate::run_dir::RunDir;
use crate::scheme::{self, Scheme};
use crate::setup::catch_interrupts;
use crate::task::{Task, input_shape};
use crate::train::{Defaults, Job, Options, Recipe};

const FLOAT: Defaults = Defaults {
    epochs: 12,
    batch: 32,
    lr: 0.05,
    optimizer: OptimizerKind::Sgd,
    schedule: ScheduleKind::Cosine,
    warmup: 1.0,
    weight_decay: 5e-4,
};

const QAT: Defaults = Defaults { epochs: 3, lr: 1e-3, warmup: 0.0, ..FLOAT };

/// `ottava demo`.
pub fn run(args: &args::Demo) -> Result<()> {
    catch_interrupts()?;
    let start = Instant::now();
    let (global, seed) = (&args.global, args.seed);
    let task = Task::new(&args::Data::of("fashion-mini"), None)?;
    let train = task.shuffled(FLOAT.batch, seed, |_| Ok(Augment::none()))?;
    let test = task.test(100)?;
    let input = input_shape(&train)?;
    let classes = train.data().classes().to_vec();
    let mut run = RunDir::create(&args.out, args, false, global)?;

    note(global, "1. a float network");
    let config = ModelConfig {
        classes: classes.len(),
        in_channels: input[0],
        seed,
        ..ModelConfig::default()
    };
    let model =
        FloatModel::new(Architecture::ResNet8, config, input, &classes, train.preprocess())?;
    let best = run.file("best.ottava");
    let recipe = Recipe { defaults: FLOAT, label_smoothing: 0.0 };
    let graph = model.trace(input)?;
    let job = Job {
        what: "train",
        network: &graph,
        recipe: &recipe,
        train: &train,
        test: &test,
        run: &mut run,
        options: Options::default(),
        global,
    };
    job.run(|_| Mode::TRAIN, || model.save(&best))?;
    let Model::Float(model) = load(&best, None)? else { bail!("best.ottava is no float network") };
    let mut rows = vec![float_row(&model, &best, &test, global)?];

    note(global, "2. quantized after training: observers see images, nothing learns");
    let scheme = Scheme::default();
    let graph = prepare_model(&model, input, &scheme, global)?.graph;
    calibrate(&graph, &task.calibration(100, 1000)?, global)?;
    let file = run.file("ptq.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("ptq_int8", &program, &file, &test, global)?);

    note(global, "3. quantization-aware training: the forward pass is the integer network's");
    let mut network = Trained {
        model: &model,
        graph: &graph,
        scheme: &scheme,
        train: &train,
        test: &test,
        run: &mut run,
        global,
    };
    let graph = network.train("qat", QAT, "qat.ottava")?;
    let judged = judge(&mut Evaluating(&graph), &test, "qat_fake", global)?;
    rows.push(Row { name: "qat_fake", judged, bytes: None, latency: None });

    note(global, "4. converted to integers");
    let file = run.file("int8.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("qat_int8", &program, &file, &test, global)?);
    let agreement = rows[2].judged.agreement(&rows[3].judged);

    note(
        global,
        "5. four bits (the first and the last layer eight), where rounding alone is not enough",
    );
    let learn = Some(scheme::Learn::Lsq);
    let scheme = Scheme { weight_bits: 4, activation_bits: 4, learn, ..Scheme::default() };
    let graph = prepare_model(&model, input, &scheme, global)?.graph;
    calibrate(&graph, &task.calibration(100, 1000)?, global)?;
    let file = run.file("ptq-w4a4.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("ptq_w4a4", &program, &file, &test, global)?);
    let mut network = Trained {
        model: &model,
        graph: &graph,
        scheme: &scheme,
        train: &train,
        test: &test,
        run: &mut run,
        global,
    };
    let graph = network.train("qat 4 bit", QAT, "qat-w4a4.ottava")?;
    let file = run.file("w4a4.ottava");
    let program = convert_to(&graph, &model, &file)?;
    rows.push(integer_row("qat_w4a4", &program, &file, &test, global)?);

    let (json, text) = report(&rows, agreement, start.elapsed().as_secs_f64(), seed);
    // Told, whatever becomes of the page.
    let page = crate::report::finish(&args.out, &json);
    result(global, json, &format!("{text}everything is in {}", args.out.display()))?;
    page
}

/// A network to train quantization-aware.
struct Trained<'a> {
    model: &'a FloatModel,
    graph: &'a Graph,
    scheme: &'a Scheme,
    train: &'a Loader,
    test: &'a Loader,
    run: &'a mut RunDir,
    global: &'a Global,
}

impl Trained<'_> {
    /// The graph of the epoch that did best, kept in `file`.
    fn train(&mut self, what: &str, defaults: Defaults, file: &str) -> Result<Graph> {
        let recipe = Recipe { defaults, label_smoothing: 0.0 };
        let milestones = Milestones::for_epochs(defaults.epochs);
        let best = self.run.file(file);
        let (graph, model, scheme) = (self.graph, self.model, self.scheme);
        let job = Job {
            what,
            network: graph,
            recipe: &recipe,
            train: self.train,
            test: self.test,
            run: self.run,
            options: Options::default(),
            global: self.global,
        };
        job.run(|epoch| milestones.mode(epoch), || save_graph(graph, model, scheme, &best))?;
        Ok(load_graph(&best)?.0)
    }
}

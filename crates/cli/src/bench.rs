//! `ottava bench`: latency and throughput, float beside int8 where both are there.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ottava::quant::{Options, Tuning};
use ottava::tensor::{Level, Tensor, parallel};
use serde_json::{Value, json};

use crate::args;
use crate::classifier::{Deployed, latency};
use crate::memory::peak_rss;
use crate::model::{Model, load};
use crate::output::{note, result, round, table};
use crate::setup::usage;

/// `ottava bench`.
pub fn run(args: &args::Bench) -> Result<()> {
    if args.batch == 0 || args.runs == 0 {
        usage!("--batch {} --runs {}: both must be at least 1", args.batch, args.runs);
    }
    let mut rows = Vec::new();
    let mut json = json!({
        "threads": parallel::threads(),
        "batch": args.batch,
        "isa": Level::current().name(),
    });
    // A run directory has both networks; a file is one of them.
    let files = match args.model_file.is_dir() {
        true => vec![args.model_file.join("best.ottava"), args.model_file.join("int8.ottava")],
        false => vec![args.model_file.clone()],
    };
    for file in files.iter().filter(|file| files.len() == 1 || file.exists()) {
        let (name, figures, line) = time(args, file)?;
        json[name] = figures;
        rows.push(line);
    }
    if rows.is_empty() {
        bail!("the run {} has no best.ottava or int8.ottava", args.model_file.display());
    }
    if let Some(peak) = peak_rss() {
        json["peak_rss_bytes"] = json!(peak);
    }
    let text = table(&["network", "ms (median)", "ms (p95)", "images/s"], &rows);
    let text = format!(
        "{text}{} threads, batch {}, {}",
        parallel::threads(),
        args.batch,
        Level::current().name()
    );
    result(&args.global, json, &text)
}

/// Values of a batch at the most: a gigabyte.
const MAX_VALUES: usize = 1 << 28;

fn time(args: &args::Bench, file: &Path) -> Result<(&'static str, Value, Vec<String>)> {
    let mut model = load(file, args.model.as_deref())?;
    let options = match args.plan {
        args::Plan::Fast => Options::fast(),
        args::Plan::Small => Options::small(),
    };
    let shape = model.sized(args.size).with_context(|| file.display().to_string())?;
    let shape: Vec<usize> = std::iter::once(args.batch).chain(shape).collect();
    let values = shape.iter().try_fold(1usize, |values, &size| values.checked_mul(size));
    if values.is_none_or(|values| values > MAX_VALUES) {
        usage!(
            "--batch {}: images of shape {:?} are more than {MAX_VALUES} values",
            args.batch,
            &shape[1..]
        );
    }
    // A run has both networks, of which one is tuned.
    let other = args.model_file.is_dir() && file.with_file_name("int8.ottava").exists();
    if args.tune && matches!(model, Model::Float(_)) && !other {
        bail!(
            "{}: --tune is for an integer network, which `ottava ptq` makes of it",
            file.display()
        );
    }
    if args.tune
        && let Model::Integer(program) = &mut model
    {
        if file.extension().is_none_or(|extension| extension != "ottava") {
            bail!("{}: --tune writes into the file, which must be .ottava", file.display());
        }
        note(&args.global, "timing every algorithm of every convolution");
        Tuning::measure(program, &options, args.batch)?.store(program);
        program.save(file)?;
    }
    // Values as a normalised image has them; their pattern costs the same as any other's.
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| (i % 251) as f32 / 125.0 - 1.0).collect();
    let images = Tensor::new(&shape, values)?.channels_last();
    let (name, program) = match &model {
        Model::Float(float) => {
            let program = float.program([shape[1], shape[2], shape[3]]);
            let what = || format!("{}, images of shape {:?}", file.display(), &shape[1..]);
            ("float", &program.with_context(what)?)
        }
        Model::Integer(program) => ("int8", program),
    };
    let timing = latency(&mut Deployed::with_options(program, options)?, &images, args.runs)?;
    let rate = round(shape[0] as f64 * 1e3 / timing.median, 2);
    let figures =
        json!({"ms_median": timing.median, "ms_p95": timing.p95, "images_per_second": rate});
    let line = vec![
        name.into(),
        format!("{:.3}", timing.median),
        format!("{:.3}", timing.p95),
        format!("{rate:.1}"),
    ];
    Ok((name, figures, line))
}

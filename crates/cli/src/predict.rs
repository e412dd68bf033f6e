//! `ottava predict`: classes and probabilities for image files.

use anyhow::{Context, Result, bail};
use ottava::data::{Preprocess, read_image};
use ottava::tensor::Tensor;
use ottava::tensor::elementwise::softmax_rows;
use serde_json::json;

use crate::args;
use crate::classifier::{Classifier, Deployed, Evaluating};
use crate::model::{Model, class_names, load};
use crate::output::{result, round};

/// `ottava predict`.
pub fn run(args: &args::Predict) -> Result<()> {
    let model = load(&args.model_file, args.model.as_deref())?;
    let (preprocess, names) = match &model {
        Model::Float(model) => (model.preprocess.clone(), model.classes.clone()),
        Model::Integer(program) => {
            let metadata = program.metadata();
            (Preprocess::from_metadata(metadata)?, class_names(metadata))
        }
    };
    let preprocess = match (&args.preprocess, preprocess) {
        (Some(name), _) => crate::task::preprocess(name)?,
        (None, Some(preprocess)) => preprocess,
        (None, None) => bail!(
            "{} does not say how images are prepared; use --preprocess",
            args.model_file.display()
        ),
    };
    let mut classifier: Box<dyn Classifier + '_> = match &model {
        Model::Float(model) => Box::new(Evaluating(&model.network)),
        Model::Integer(program) => Box::new(Deployed::new(program)?),
    };
    // Integers take one shape; a float network may take others than it was made for.
    let (made_for, only) = match &model {
        Model::Float(model) => (Some(model.input_shape(None)), false),
        Model::Integer(program) => (program.input_shape().try_into().ok(), true),
    };
    let (mut images, mut text) = (Vec::new(), String::new());
    for path in &args.images {
        let shown = path.display().to_string();
        let picture = read_image(path)?;
        let shape = preprocess.output_shape(picture.shape()).with_context(|| shown.clone())?;
        let problem = match made_for {
            Some(other) if other != shape => {
                format!("{shown} becomes an image of shape {shape:?}, but {}", advice(other))
            }
            _ => shown.clone(),
        };
        if only && made_for.is_some_and(|other| other != shape) {
            bail!("{problem}");
        }
        let ([c, h, w], pixels) = preprocess.apply(picture).with_context(|| shown.clone())?;
        // `apply` gives height, width, channels.
        let image = Tensor::from_nhwc([1, c, h, w], pixels)?;
        let logits = classifier.logits(image).context(problem)?;
        let mut top: Vec<(usize, f32)> = softmax_rows(&logits)?.iter().enumerate().collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(args.top);
        let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
        text += &format!("{shown}:");
        for &(class, p) in &top {
            text += &format!("  {} {:.1} %", name(class), 100.0 * p);
        }
        text.push('\n');
        let top: Vec<_> = top
            .iter()
            .map(
                |&(class, p)| json!({"class": class, "name": name(class), "p": round(p.into(), 6)}),
            )
            .collect();
        images.push(json!({"path": shown, "top": top}));
    }
    result(&args.global, json!({"images": images}), &text)
}

/// What to do about an image of another shape.
fn advice([c, h, w]: [usize; 3]) -> String {
    format!(
        "the network is for [{c}, {h}, {w}]; --preprocess makes images of that size, as in --preprocess cifar10,resize={h}x{w}"
    )
}

//! `ottava predict`: classes and probabilities for image files.

use anyhow::{Context, Result, bail};
use ottava::data::read_image;
use ottava::tensor::Tensor;
use ottava::tensor::elementwise::softmax_rows;
use serde_json::json;

use crate::args;
use crate::model::{Model, load};
use crate::output::{result, round};

/// `ottava predict`.
pub fn run(args: &args::Predict) -> Result<()> {
    let model = load(&args.model_file, args.model.as_deref())?;
    let names = model.classes();
    let preprocess = match (&args.preprocess, model.preprocess()?) {
        (Some(name), _) => crate::task::preprocess(name)?,
        (None, Some(preprocess)) => preprocess,
        (None, None) => bail!(
            "{} does not say how images are prepared; use --preprocess",
            args.model_file.display()
        ),
    };
    let mut classifier = model.classifier()?;
    // Integers take one shape; a float network may take others than it was made for.
    let (made_for, only) = match &model {
        Model::Float(model) => (Some(model.input_shape(None)), false),
        Model::Integer(program) => (program.input_shape().try_into().ok(), true),
    };
    // Where the file says no size, pictures are made of one as a data set's are that differ in it.
    let anything = matches!(&model, Model::Float(model) if model.input.is_none());
    // Files are read in colour; gray ones have the same brightness still.
    let gray = made_for.is_some_and(|[channels, ..]| channels == 1);
    let (mut images, mut text) = (Vec::new(), String::new());
    for path in &args.images {
        let shown = path.display().to_string();
        let mut picture = read_image(path)?;
        if gray {
            picture = picture.into_gray();
        }
        let mut preprocess = preprocess.clone();
        let mut shape = preprocess.output_shape(picture.shape()).with_context(|| shown.clone())?;
        if anything && made_for.is_some_and(|other| other[1..] != shape[1..]) {
            preprocess = preprocess.to_one_size();
            shape = preprocess.output_shape(picture.shape()).with_context(|| shown.clone())?;
        }
        let problem = match made_for {
            Some(other) if other[0] != shape[0] => format!(
                "{shown} has {} channels, but the network is for images of {}",
                shape[0], other[0]
            ),
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

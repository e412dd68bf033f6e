//! A whole ResNet-18: logits in both modes, the loss, every parameter's gradient.

use ottava::autograd::{Kind, Mode, Tape};
use ottava::nn::models::{ModelConfig, build};
use ottava::nn::{Network as _, predict};
use ottava::tensor::Tensor;

use crate::case::Case;

/// The parameters that `network()` of `tools/make_golden.py` describes: numbers from a formula.
fn formula(t: usize, name: &str, kind: Kind, shape: &[usize]) -> Tensor<f32> {
    let len: usize = shape.iter().product();
    let fan_in = len as f64 / shape[0] as f64;
    let values: Vec<f32> = (0..len)
        .map(|i| {
            let r = (12.9898 * i as f64 + 78.233 * t as f64).sin() * 43758.5453;
            let u = (r - r.floor()) * 2.0 - 1.0;
            let value = match (shape.len(), kind, name.rsplit('.').next()) {
                (2.., ..) => u * (6.0 / fan_in).sqrt(),
                (_, _, Some("running_var")) => 1.0 + u / 2.0,
                (_, _, Some("weight")) => 1.0 + u / 4.0,
                _ => u / 10.0,
            };
            value as f32
        })
        .collect();
    Tensor::new(shape, values).unwrap()
}

pub fn resnet18(case: &Case) {
    let classes = case.number("num_classes") as usize;
    let model = build("resnet18", &ModelConfig { classes, ..ModelConfig::default() }).unwrap();
    for (t, (name, leaf)) in model.leaves().into_iter().enumerate() {
        leaf.set(formula(t, &name, leaf.kind(), leaf.get().shape()));
    }
    let logits = predict(&*model, Mode::EVAL, case.float("in.x")).unwrap();
    case.assert_close("eval logits", &logits, &case.float("out.eval_logits"));

    let targets: Vec<usize> = case.integers("in.target").iter().map(|&t| t as usize).collect();
    let tape = Tape::new(Mode::TRAIN);
    let logits = model.run(tape.input(case.float("in.x"))).unwrap();
    case.assert_close("train logits", &logits.tensor(), &case.float("out.train_logits"));
    let loss = logits.cross_entropy(&targets, 0.0).unwrap();
    case.assert_close("loss", &loss.tensor().reshape(&[1]).unwrap(), &case.float("out.loss"));
    let grads = loss.backward().unwrap();
    for (name, leaf) in model.parameters() {
        let grad = grads.get(&leaf).unwrap();
        let norm = grad.iter().map(|g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt() as f32;
        let expected = case.float(&format!("norm.grad.{name}"));
        case.assert_close(&format!("|grad {name}|"), &Tensor::full(&[1], norm), &expected);
        if let Some(expected) = case.try_float(&format!("grad.{name}")) {
            case.assert_close(&format!("grad {name}"), grad, &expected);
        }
    }
    let name = "layer1.0.bn1.running_var";
    let moved = model.state_dict().into_iter().find(|(n, _)| n == name).unwrap().1;
    case.assert_close(name, &moved, &case.float(&format!("after.{name}")));
}

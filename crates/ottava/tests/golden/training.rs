//! What training adds: losses, batch statistics, optimizers.

use ottava::autograd::ops::BatchNorm2d;
use ottava::autograd::{Leaf, Mode, Tape};
use ottava::nn::optim::{self, OptimizerConfig, OptimizerKind};

use crate::case::Case;

pub fn cross_entropy(case: &Case) {
    let targets: Vec<usize> = case.integers("in.target").iter().map(|&t| t as usize).collect();
    let tape = Tape::new(Mode::TRAIN);
    let x = tape.variable(case.float("in.x"));
    let loss = x.cross_entropy(&targets, case.number("label_smoothing") as f32).unwrap();
    case.assert_close("loss", &loss.tensor().reshape(&[1]).unwrap(), &case.float("out.loss"));
    let grads = loss.backward().unwrap();
    case.assert_close("grad x", grads.of(x).unwrap(), &case.float("grad.x"));
}

pub fn batch_norm2d(case: &Case) {
    let norm =
        BatchNorm2d { eps: case.number("eps") as f32, momentum: case.number("momentum") as f32 };
    let mode = if case.flag("training") { Mode::TRAIN } else { Mode::EVAL };
    let [weight, bias] =
        ["weight", "bias"].map(|n| Leaf::param(case.float(&format!("before.{n}"))));
    let [mean, var] =
        ["running_mean", "running_var"].map(|n| Leaf::buffer(case.float(&format!("before.{n}"))));
    let tape = Tape::new(mode);
    let x = tape.variable(case.float("in.x"));
    let leaf = |leaf| tape.leaf(leaf);
    let y = x.batch_norm2d(leaf(&weight), leaf(&bias), leaf(&mean), leaf(&var), norm).unwrap();
    case.assert_close("y", &y.tensor(), &case.float("out.y"));
    let grads = y.backward_with(case.float("grad_out.y"));
    case.assert_close("grad x", grads.of(x).unwrap(), &case.float("grad.x"));
    case.assert_close("grad weight", grads.get(&weight).unwrap(), &case.float("grad.weight"));
    case.assert_close("grad bias", grads.get(&bias).unwrap(), &case.float("grad.bias"));
    case.assert_close("running mean", &mean.get(), &case.float("after.running_mean"));
    case.assert_close("running var", &var.get(), &case.float("after.running_var"));
}

/// Six steps, each from its own gradient.
pub fn optimizer(case: &Case) {
    let kind: OptimizerKind = case.text("kind").parse().unwrap();
    let betas = [0, 1].map(|i| case.attrs["betas"][i].as_f64().unwrap());
    let config = OptimizerConfig {
        momentum: case.number_or("momentum", 0.0) as f32,
        nesterov: case.flag("nesterov"),
        betas,
        eps: case.number("eps"),
        ..OptimizerConfig::new(kind, case.number_or("weight_decay", 0.0) as f32)
    };
    let p = Leaf::param(case.float("before.p"));
    let mut optimizer = config.build(vec![("p".into(), p.clone())], optim::all).unwrap();
    for step in 0..6 {
        // The loss Σ p·g has the gradient g.
        let tape = Tape::new(Mode::TRAIN);
        let gradient = tape.input(case.float(&format!("step.{step}.grad")));
        let loss = tape.leaf(&p).mul(gradient).unwrap().sum().unwrap();
        let gradients = loss.backward().unwrap();
        optimizer.step(&gradients, case.number("lr") as f32).unwrap();
        case.assert_close(
            &format!("step {step}"),
            &p.get(),
            &case.float(&format!("step.{step}.p")),
        );
    }
}

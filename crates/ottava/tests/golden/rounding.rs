//! Rounding to a grid: exact, gradients included.

use ottava::autograd::ops::{FakeQuant, LearnedFakeQuant};
use ottava::autograd::{Mode, Observer, Tape};
use ottava::quant::{QParams, Scheme, choose_qparams};

use crate::case::Case;

fn check(case: &Case, params: Vec<QParams>, axis: usize) {
    let tape = Tape::new(Mode::TRAIN);
    let x = tape.variable(case.float("in.x"));
    let y = tape.apply(FakeQuant { params, axis }.into(), &[x]).unwrap();
    case.assert_exact("y", &y.tensor(), &case.float("out.y"));
    let grads = y.backward_with(case.float("grad_out.y"));
    case.assert_exact("grad x", grads.of(x).unwrap(), &case.float("grad.x"));
}

pub fn fake_quant_per_tensor(case: &Case) {
    let [zero_point, qmin, qmax] = ["zero_point", "qmin", "qmax"].map(|n| case.number(n) as i32);
    let params = QParams::new(case.number("scale") as f32, zero_point, qmin..=qmax).unwrap();
    for (x, q) in case.float("in.x").iter().zip(case.integers("out.q")) {
        assert_eq!(i64::from(params.quantize(x)), q, "{}: the code of {x}", case.name);
    }
    check(case, vec![params], 0);
}

pub fn fake_quant_per_channel(case: &Case) {
    let [qmin, qmax] = ["qmin", "qmax"].map(|n| case.number(n) as i32);
    let scales = case.float("in.scale").to_vec();
    let params = scales.iter().zip(case.integers("in.zero_point"));
    let params = params.map(|(&s, z)| QParams::new(s, z as i32, qmin..=qmax).unwrap()).collect();
    check(case, params, case.number("axis") as usize);
}

pub fn fake_quant_learnable(case: &Case) {
    let [qmin, qmax] = ["qmin", "qmax"].map(|n| case.number(n) as i32);
    let grad_factor = case.number("grad_factor") as f32;
    let op = LearnedFakeQuant { qmin, qmax, axis: None, grad_factor };
    let tape = Tape::new(Mode::TRAIN);
    let names = ["x", "scale", "zero_point"];
    let inputs = names.map(|name| tape.variable(case.float(&format!("in.{name}"))));
    let y = tape.apply(op.into(), &inputs).unwrap();
    case.assert_exact("y", &y.tensor(), &case.float("out.y"));
    let grads = y.backward_with(case.float("grad_out.y"));
    case.assert_exact("grad x", grads.of(inputs[0]).unwrap(), &case.float("grad.x"));
    // Sums, in an order that is each engine's own.
    for i in [1, 2] {
        let expected = case.float(&format!("grad.{}", names[i]));
        case.assert_close(&format!("grad {}", names[i]), grads.of(inputs[i]).unwrap(), &expected);
    }
}

/// Scale and zero-point after each batch of a stream.
pub fn observer(case: &Case) {
    let axis = case.attrs["axis"].as_u64().unwrap_or_default() as usize;
    let averaging_constant = 0.01;
    let observer = match case.text("kind") {
        "MinMax" => Observer::MinMax,
        "MovingAverageMinMax" => Observer::MovingAverageMinMax { averaging_constant },
        "PerChannelMinMax" => Observer::PerChannelMinMax { axis },
        "MovingAveragePerChannelMinMax" => {
            Observer::MovingAveragePerChannelMinMax { axis, averaging_constant }
        }
        // PyTorch counts 256 levels whatever the range of codes.
        "Histogram" => Observer::Histogram { levels: 256 },
        other => panic!("{}: no observer {other}", case.name),
    };
    let scheme = match case.text("scheme") {
        "affine" => Scheme::Affine,
        _ => Scheme::Symmetric,
    };
    let [qmin, qmax] = ["qmin", "qmax"].map(|n| case.number(n) as i32);
    let mut state = observer.initial();
    for step in 0..4 {
        state = observer.observe(&state, &case.float(&format!("step.{step}.x"))).unwrap();
        let ranges = observer.ranges(&state).unwrap();
        let scales = case.float(&format!("step.{step}.scale")).to_vec();
        let zero_points = case.integers(&format!("step.{step}.zero_point"));
        assert_eq!(ranges.len(), scales.len(), "{}", case.name);
        for (((min, max), scale), zero_point) in ranges.into_iter().zip(scales).zip(zero_points) {
            let grid = choose_qparams(min, max, scheme, qmin..=qmax).unwrap();
            assert_eq!(grid.scale(), scale, "{} step {step}: {min}..{max}", case.name);
            assert_eq!(
                i64::from(grid.zero_point()),
                zero_point,
                "{} step {step}: {min}..{max}",
                case.name
            );
        }
    }
}

//! Rounding to a grid: exact, gradients included.

use ottava::autograd::ops::FakeQuant;
use ottava::autograd::{Mode, Tape};
use ottava::quant::QParams;

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

use ottava_tensor::Tensor;

use crate::op::{Context, Op};
use crate::{Error, Mode, Result, Value};

/// Compares an operator's gradients with central differences and returns the largest deviation,
/// relative to the largest gradient there is (at least 1); NaN if anything is NaN.
///
/// The scalar differentiated is `Σ weight · y`, with fixed irregular weights, summed in `f64`. With
/// `step` around `1e-2` and inputs of order one, a right gradient of a smooth operator comes out
/// below about `1e-3`: `f32` forward passes leave no more digits. Inputs where the operator has a
/// kink closer than `step` show a deviation that is no fault.
///
/// # Errors
/// What the operator refuses; [`Error::Op`] if it has no way back.
///
/// ```
/// use ottava_autograd::{Mode, gradcheck, ops::Mul};
/// use ottava_tensor::Tensor;
///
/// let a = Tensor::new(&[2, 3], [0.5, -1.0, 2.0, 0.1, 0.7, -0.3])?;
/// let b = Tensor::new(&[3], [1.5, -0.5, 0.25])?;
/// assert!(gradcheck(&Mul.into(), &[a, b], &[true, true], Mode::TRAIN, 1e-2)? < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gradcheck(
    op: &Op,
    inputs: &[Tensor<f32>],
    wanted: &[bool],
    mode: Mode,
    step: f32,
) -> Result<f32> {
    let run = |inputs: &[Tensor<f32>]| {
        let values: Vec<Value> = inputs.iter().cloned().map(Value::Float).collect();
        op.rule().forward(&values, &mut Context::new(mode, wanted.to_vec()))
    };
    let output = run(inputs)?;
    let y = output.value.float();
    let weights = Tensor::new(y.shape(), (0..y.len()).map(irregular).collect::<Vec<_>>())?;
    let total = |y: &Tensor<f32>| {
        y.iter().zip(weights.iter()).map(|(y, w)| f64::from(y) * f64::from(w)).sum::<f64>()
    };
    let backward = output
        .backward
        .ok_or_else(|| Error::Op { op: op.name(), reason: "has no way back".into() })?;
    let analytic = backward(weights.clone(), wanted);
    let (mut worst, mut largest) = (0.0f32, 1.0f32);
    for (i, grad) in analytic.iter().enumerate().filter(|(i, _)| wanted[*i]) {
        let grad = grad.as_ref().map_or_else(|| Tensor::zeros(inputs[i].shape()), Tensor::clone);
        for (k, grad) in grad.to_vec().into_iter().enumerate() {
            let shifted = |by: f32| -> Result<f64> {
                let mut inputs = inputs.to_vec();
                inputs[i] = inputs[i].contiguous();
                inputs[i].data_mut()[k] += by;
                Ok(total(&run(&inputs)?.value.float()))
            };
            let slope = (shifted(step)? - shifted(-step)?) / (2.0 * f64::from(step));
            worst = larger(worst, (grad - slope as f32).abs());
            largest = larger(largest, grad.abs());
        }
    }
    Ok(worst / largest)
}

/// The larger of two magnitudes; NaN is larger than any number.
fn larger(a: f32, b: f32) -> f32 {
    if a.total_cmp(&b).is_lt() { b } else { a }
}

/// Numbers in −1..1 without a pattern that an operator could cancel.
fn irregular(i: usize) -> f32 {
    ((i as f32 + 1.0) * 12.9898).sin()
}

use ottava_tensor::{Tensor, elementwise};

use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// Mean cross-entropy of logits against class indices, with label smoothing `s`: the target of class
/// `t` is `(1 − s)` at `t` plus `s / classes` everywhere.
///
/// # Shapes
/// Inputs: `logits [n, classes]`; result: a scalar.
///
/// # Source
/// PyTorch `torch.nn.functional.cross_entropy`.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The class of each row.
    pub targets: Vec<usize>,
    /// `s`, from 0 (none) to 1.
    pub label_smoothing: f32,
}

impl Rule for CrossEntropy {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("cross_entropy", inputs)?;
        let x = x.float();
        let [n, classes] = x.dims("cross_entropy")?;
        let refuse = |reason: String| Err(Error::Op { op: "cross_entropy", reason });
        if self.targets.len() != n || n == 0 {
            return refuse(format!("{n} rows of logits for {} targets", self.targets.len()));
        }
        if let Some(wrong) = self.targets.iter().find(|&&t| t >= classes) {
            return refuse(format!("class {wrong} is none of the network's {classes} classes"));
        }
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return refuse(format!(
                "label smoothing must lie in 0..=1, not {}",
                self.label_smoothing
            ));
        }

        // L = −1/n Σ_i [(1−s)·y[i, t_i] + s/classes Σ_c y[i, c]],  y = log softmax x
        let log_p = elementwise::log_softmax_rows(&x)?.contiguous();
        let (hit, share) = (1.0 - self.label_smoothing, self.label_smoothing / classes as f32);
        let rows = log_p.as_slice().expect("contiguous").chunks(classes);
        let total: f64 = rows
            .zip(&self.targets)
            .map(|(row, &t)| {
                let all = if share == 0.0 { 0.0 } else { row.iter().map(|&y| f64::from(y)).sum() };
                f64::from(hit) * f64::from(row[t]) + f64::from(share) * all
            })
            .sum();
        let loss = Tensor::scalar((-total / n as f64) as f32);

        // ∂x = (softmax x − target) / n · ∂L
        let targets = self.targets.clone();
        Ok(Output::new(loss, move |grad, _| {
            let scale = grad.item().expect("the gradient of a scalar") / n as f32;
            let mut result = log_p.map(f32::exp);
            for (row, t) in result.data_mut().chunks_mut(classes).zip(targets) {
                for p in row.iter_mut() {
                    *p = (*p - share) * scale;
                }
                row[t] -= hit * scale;
            }
            vec![Some(result)]
        }))
    }
}

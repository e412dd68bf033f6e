//! Sums, extremes and the like. They run in a fixed order, in fixed chunks, whatever the number of
//! threads.

use super::Tensor;
use crate::shape::Offsets;
use crate::{Error, Result, parallel};

/// Reductions. Sums run in a fixed order, in fixed chunks, whatever the number of threads.
impl Tensor<f32> {
    /// The sum of all elements, accumulated in `f64`.
    pub fn sum(&self) -> f32 {
        let dense = self.dense();
        let data = dense.span();
        let parts = parallel::map(data.len().div_ceil(parallel::CHUNK), |i| {
            let chunk = &data[i * parallel::CHUNK..data.len().min((i + 1) * parallel::CHUNK)];
            chunk.iter().map(|&x| f64::from(x)).sum::<f64>()
        });
        parts.iter().sum::<f64>() as f32
    }

    /// The mean of all elements; NaN if there are none.
    pub fn mean(&self) -> f32 {
        self.sum() / self.len() as f32
    }

    /// The smallest and the largest element, both NaN if any element is; `None` if there are no
    /// elements.
    pub fn min_max(&self) -> Option<(f32, f32)> {
        let dense = self.dense();
        let data = dense.span();
        parallel::map(data.len().div_ceil(parallel::CHUNK), |i| {
            let chunk = &data[i * parallel::CHUNK..data.len().min((i + 1) * parallel::CHUNK)];
            min_max(chunk)
        })
        .into_iter()
        .reduce(|a, b| (least(a.0, b.0), -least(-a.1, -b.1)))
    }

    /// Sums over the named axes, which disappear. Each sum is taken in `f64`, in logical order.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis.
    pub fn sum_axes(&self, axes: &[usize]) -> Result<Self> {
        if let Some(&axis) = axes.iter().find(|&&axis| axis >= self.rank()) {
            return Err(Error::Axis { op: "sum_axes", axis, rank: self.rank() });
        }
        let (reduced, kept): (Vec<usize>, Vec<usize>) =
            (0..self.rank()).partition(|axis| axes.contains(axis));
        let order = [kept.as_slice(), &reduced].concat();
        let view = self.permute(&order)?;
        let (outer, inner) = (kept.len(), &view.shape[kept.len()..]);
        let data = self.storage.as_slice();
        let starts: Vec<usize> =
            Offsets::new(&view.shape[..outer], &view.strides[..outer], view.offset).collect();
        let mut result = Self::zeros(&view.shape[..outer]);
        parallel::for_each_chunk(result.data_mut(), 16, |chunk, targets| {
            for (i, target) in targets.iter_mut().enumerate() {
                let start = starts[chunk * 16 + i];
                let sum = Offsets::new(inner, &view.strides[outer..], start)
                    .map(|offset| f64::from(data[offset]))
                    .sum::<f64>();
                *target = sum as f32;
            }
        });
        Ok(result)
    }

    /// Adds up what broadcasting from `shape` had stretched: the way back of a broadcast.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if `shape` does not broadcast to this tensor's.
    pub fn sum_to(&self, shape: &[usize]) -> Result<Self> {
        if self.shape == shape {
            return Ok(self.clone());
        }
        let lead = self.rank().checked_sub(shape.len());
        let stretches = |lead: usize| {
            shape.iter().enumerate().all(|(i, &size)| size == self.shape[lead + i] || size == 1)
        };
        let Some(lead) = lead.filter(|&lead| stretches(lead)) else {
            let (left, right) = (self.shape.clone(), shape.to_vec());
            return Err(Error::ShapeMismatch { op: "sum_to", left, right });
        };
        let axes: Vec<usize> = (0..self.rank())
            .filter(|&axis| axis < lead || shape[axis - lead] != self.shape[axis])
            .collect();
        self.sum_axes(&axes)?.reshape(shape)
    }

    /// The index of the largest element of each row of a `[rows, columns]` tensor; the first of equals.
    ///
    /// # Errors
    /// [`Error::Rank`] if the tensor is not a matrix; [`Error::Geometry`] if its rows are empty.
    pub fn argmax_rows(&self) -> Result<Vec<usize>> {
        let [rows, columns] = self.dims("argmax_rows")?;
        if columns == 0 && rows > 0 {
            let reason =
                format!("argmax_rows: {rows} rows without a column have no largest element");
            return Err(Error::Geometry { reason });
        }
        Ok(self.to_vec().chunks(columns.max(1)).map(argmax).collect())
    }
}

fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] || row[best].is_nan() {
            best = i;
        }
    }
    best
}

/// The smaller of two values; NaN if either is (unlike `f32::min`).
fn least(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

fn min_max(chunk: &[f32]) -> (f32, f32) {
    // Eight independent lanes, so that the compiler may use a vector register.
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    let mut nan = [false; 8];
    let lanes = chunk.chunks_exact(8);
    let rest = lanes.remainder();
    let mut take = |i: usize, x: f32| {
        low[i] = if x < low[i] { x } else { low[i] };
        high[i] = if x > high[i] { x } else { high[i] };
        nan[i] |= x.is_nan();
    };
    for lane in lanes {
        for (i, &x) in lane.iter().enumerate() {
            take(i, x);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        take(i, x);
    }
    if nan.contains(&true) {
        return (f32::NAN, f32::NAN);
    }
    (
        low.into_iter().fold(f32::INFINITY, f32::min),
        high.into_iter().fold(f32::NEG_INFINITY, f32::max),
    )
}

//! Elementwise passes that training needs often enough to have no closure in them, and softmax.

use crate::simd::f32::dispatch_f32;
use crate::{Error, Level, Result, Tensor, parallel};

/// `max(0, x)`; NaN stays NaN.
pub fn relu(x: &Tensor<f32>) -> Tensor<f32> {
    unary(x, |x| if x < 0.0 { 0.0 } else { x })
}

/// `a + b`, broadcast to a common shape.
///
/// # Errors
/// [`Error::ShapeMismatch`].
pub fn add(a: &Tensor<f32>, b: &Tensor<f32>) -> Result<Tensor<f32>> {
    match binary(a, b, |a, b| a + b) {
        Some(sum) => Ok(sum),
        None => a.zip_map("add", b, |a, b| a + b),
    }
}

/// `y += alpha·x`, in place.
///
/// # Errors
/// [`Error::ShapeMismatch`] unless both have one shape.
pub fn axpy(alpha: f32, x: &Tensor<f32>, y: &mut Tensor<f32>) -> Result<()> {
    same_shape("axpy", x, y)?;
    match x.as_dense().filter(|_| y.as_dense().is_some() && x.strides() == y.strides()) {
        Some(x) => {
            let level = Level::current();
            parallel::for_each_chunk(y.data_mut(), parallel::CHUNK, |i, y| {
                let x = &x[i * parallel::CHUNK..][..y.len()];
                dispatch_f32!(level, _isa => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y += alpha * x;
                    }
                });
            });
        }
        None => *y = y.zip_map("axpy", x, |y, x| y + alpha * x)?,
    }
    Ok(())
}

/// `x *= alpha`, in place.
pub fn scale(alpha: f32, x: &mut Tensor<f32>) {
    let level = Level::current();
    parallel::for_each_chunk(x.data_mut(), parallel::CHUNK, |_, x| {
        dispatch_f32!(level, _isa => {
            for x in x {
                *x *= alpha;
            }
        });
    });
}

/// `eˣ / Σ eˣ` along each row, without overflow. A row whose largest value is infinite is NaN.
///
/// # Shapes
/// `x`: `[rows, classes]`; result: the same, row-major.
///
/// # Errors
/// [`Error::Rank`] unless `x` is a matrix.
pub fn softmax_rows(x: &Tensor<f32>) -> Result<Tensor<f32>> {
    rows("softmax", x, |row| {
        let log_sum = log_sum_exp(row);
        for x in row {
            *x = (f64::from(*x) - log_sum).exp() as f32;
        }
    })
}

/// `x − log Σ eˣ` along each row, without overflow.
///
/// # Shapes
/// `x`: `[rows, classes]`; result: the same, row-major.
///
/// # Errors
/// [`Error::Rank`] unless `x` is a matrix.
pub fn log_softmax_rows(x: &Tensor<f32>) -> Result<Tensor<f32>> {
    rows("log_softmax", x, |row| {
        let log_sum = log_sum_exp(row);
        for x in row {
            *x = (f64::from(*x) - log_sum) as f32;
        }
    })
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + row.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
}

fn rows(
    op: &'static str,
    x: &Tensor<f32>,
    f: impl Fn(&mut [f32]) + Sync + Send,
) -> Result<Tensor<f32>> {
    let [_, columns] = x.dims(op)?;
    let mut y = x.contiguous();
    parallel::for_each_chunk(y.data_mut(), (1024 / columns.max(1)).max(1) * columns, |_, chunk| {
        chunk.chunks_mut(columns).for_each(&f);
    });
    Ok(y)
}

fn same_shape(op: &'static str, a: &Tensor<f32>, b: &Tensor<f32>) -> Result<()> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(Error::ShapeMismatch { op, left: a.shape().to_vec(), right: b.shape().to_vec() })
}

#[inline(always)]
fn unary(x: &Tensor<f32>, f: impl Fn(f32) -> f32 + Sync + Send) -> Tensor<f32> {
    let level = Level::current();
    let x = x.dense();
    let source = x.as_dense().expect("dense");
    let mut y = x.recycled_like();
    parallel::for_each_chunk(y.data_mut(), parallel::CHUNK, |i, y| {
        let x = &source[i * parallel::CHUNK..][..y.len()];
        dispatch_f32!(level, _isa => {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = f(x);
            }
        });
    });
    y
}

/// `None` unless both operands lie in memory alike.
#[inline(always)]
fn binary(
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    f: impl Fn(f32, f32) -> f32 + Sync + Send,
) -> Option<Tensor<f32>> {
    if a.shape() != b.shape() || a.strides() != b.strides() {
        return None;
    }
    let level = Level::current();
    let (left, right) = (a.as_dense()?, b.as_dense()?);
    let mut y = a.recycled_like();
    parallel::for_each_chunk(y.data_mut(), parallel::CHUNK, |i, y| {
        let range = i * parallel::CHUNK..i * parallel::CHUNK + y.len();
        let (a, b) = (&left[range.clone()], &right[range]);
        dispatch_f32!(level, _isa => {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        });
    });
    Some(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(data: &[f32]) -> Tensor<f32> {
        Tensor::new(&[1, data.len()], data).unwrap()
    }

    #[test]
    fn rectified() {
        let y = relu(&row(&[-1.0, 0.0, 2.0, f32::NAN]));
        assert_eq!(y.to_vec()[..3], [0.0, 0.0, 2.0]);
        assert!(y.to_vec()[3].is_nan());
    }

    #[test]
    fn layouts_may_differ() {
        let data: Vec<f32> = (0..24).map(|i| i as f32 - 9.0).collect();
        let x = Tensor::new(&[1, 2, 3, 4], &data).unwrap();
        let last = x.channels_last();
        assert_eq!(add(&x, &last).unwrap(), x.map(|x| 2.0 * x));
        assert_eq!(add(&last, &last).unwrap(), x.map(|x| 2.0 * x));
        assert_eq!(relu(&last), relu(&x));
        let mut y = last.clone();
        axpy(0.5, &x, &mut y).unwrap();
        scale(2.0, &mut y);
        assert_eq!(y, x.map(|x| 3.0 * x));
        let slice = x.slice(3, 0..4, 2).unwrap();
        assert_eq!(relu(&slice), slice.map(|x| x.max(0.0)));
        let bias = Tensor::new(&[2, 1, 1], [1.0f32, 2.0]).unwrap();
        assert_eq!(add(&last, &bias).unwrap().at(&[0, 1, 2, 3]), 14.0 + 2.0);
    }

    #[test]
    fn softmax_does_not_overflow() {
        let x = row(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(softmax_rows(&x).unwrap().to_vec(), [0.5, 0.5, 0.0]);
        let log = log_softmax_rows(&x).unwrap().to_vec();
        assert!((log[0] + 2.0f32.ln()).abs() < 1e-6 && (log[2] + 2000.693).abs() < 1e-3);
        assert!(softmax_rows(&Tensor::zeros(&[3])).is_err());
        assert!(softmax_rows(&Tensor::zeros(&[2, 0])).unwrap().is_empty());
    }
}

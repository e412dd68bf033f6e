//! Shapes, strides and broadcasting: the only code that knows stride arithmetic.

use crate::{Error, Result};

/// How many elements of a type `shape` holds, refusing a product (or a size in bytes) that overflows: the
/// check of a shape that comes from a file.
///
/// # Errors
/// [`Error::Overflow`].
///
/// ```
/// use ottava_tensor::shape::checked_len;
///
/// assert_eq!(checked_len::<f32>(&[2, 0, 5]), Ok(0));
/// assert!(checked_len::<f32>(&[usize::MAX, 2]).is_err());
/// ```
pub fn checked_len<T>(shape: &[usize]) -> Result<usize> {
    // A zero anywhere makes the tensor empty, but the other dimensions must still be addressable.
    let bound = isize::MAX as usize / size_of::<T>().max(1);
    shape
        .iter()
        .try_fold(1usize, |len, &dim| len.checked_mul(dim.max(1)).filter(|&len| len <= bound))
        .map(|len| if shape.contains(&0) { 0 } else { len })
        .ok_or_else(|| Error::Overflow { shape: shape.to_vec() })
}

/// The strides of a dense tensor whose axes lie in memory in the order `order`, outermost first.
pub(crate) fn strides_in_order(shape: &[usize], order: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for &axis in order.iter().rev() {
        strides[axis] = step;
        step *= shape[axis].max(1);
    }
    strides
}

/// Row-major strides: the last axis is contiguous.
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    strides_in_order(shape, &Vec::from_iter(0..shape.len()))
}

/// The order of axes in memory, outermost first. Axes of size one may stand anywhere; they are
/// kept in logical order.
pub(crate) fn memory_order(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut order = Vec::from_iter(0..shape.len());
    order.sort_by_key(|&axis| {
        std::cmp::Reverse(if shape[axis] == 1 { usize::MAX } else { strides[axis] })
    });
    order
}

/// Whether axes laid out in `order` with these strides leave no gap and no overlap. Allocates
/// nothing: a planned program asks it on every run.
pub(crate) fn is_dense_in(
    shape: &[usize],
    strides: &[usize],
    order: impl DoubleEndedIterator<Item = usize>,
) -> bool {
    let mut step = 1;
    order.rev().all(|axis| {
        let fits = shape[axis] == 1 || strides[axis] == step;
        step *= shape[axis].max(1);
        fits
    }) || shape.contains(&0)
}

/// The shape two operands broadcast to: aligned at the last axis, size one stretches (NumPy's rule).
///
/// # Errors
/// [`Error::ShapeMismatch`] if two sizes differ and neither is one.
pub fn broadcast(op: &'static str, left: &[usize], right: &[usize]) -> Result<Vec<usize>> {
    let rank = left.len().max(right.len());
    let size = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
    };
    (0..rank)
        .map(|axis| match (size(left, axis), size(right, axis)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => Err(Error::ShapeMismatch { op, left: left.to_vec(), right: right.to_vec() }),
        })
        .collect()
}

/// Strides that read a tensor of `shape` as if it had the shape `target`; stretched axes step by zero.
pub(crate) fn broadcast_strides(
    shape: &[usize],
    strides: &[usize],
    target: &[usize],
) -> Option<Vec<usize>> {
    let lead = target.len().checked_sub(shape.len())?;
    let mut result = vec![0; target.len()];
    for (axis, (&size, &stride)) in shape.iter().zip(strides).enumerate() {
        if size == target[lead + axis] {
            result[lead + axis] = stride;
        } else if size != 1 {
            return None;
        }
    }
    Some(result)
}

/// Strides that read the same elements, in the same logical order, under another shape; `None` if
/// that needs a copy.
pub(crate) fn reshape_strides(
    shape: &[usize],
    strides: &[usize],
    target: &[usize],
) -> Option<Vec<usize>> {
    if shape.contains(&0) {
        return Some(row_major(target));
    }
    // Walk both shapes from the last axis, matching runs whose products are equal; within a run of
    // the old shape, the axes must step through memory like one axis.
    let old: Vec<(usize, usize)> =
        shape.iter().copied().zip(strides.iter().copied()).filter(|&(size, _)| size != 1).collect();
    let mut result = vec![1; target.len()];
    let mut axis = target.len();
    let mut end = old.len();
    while end > 0 {
        let mut start = end - 1;
        let (mut run, step) = old[start];
        while start > 0 && old[start - 1].1 == old[start].0 * old[start].1 {
            start -= 1;
            run *= old[start].0;
        }
        let mut step = step;
        while run > 1 {
            axis = axis.checked_sub(1)?;
            if run % target[axis] != 0 {
                return None;
            }
            result[axis] = step;
            step *= target[axis];
            run /= target[axis];
        }
        end = start;
    }
    Some(result)
}

/// The offsets of every element in logical (row-major) order.
pub(crate) struct Offsets<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    offset: usize,
    left: usize,
}

impl<'a> Offsets<'a> {
    pub(crate) fn new(shape: &'a [usize], strides: &'a [usize], offset: usize) -> Self {
        let left = shape.iter().product();
        Self { shape, strides, index: vec![0; shape.len()], offset, left }
    }
}

impl Iterator for Offsets<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let current = self.offset;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.offset += self.strides[axis];
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.offset -= self.strides[axis] * self.shape[axis];
            self.index[axis] = 0;
        }
        Some(current)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Offsets<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_the_last_axis() {
        assert_eq!(broadcast("add", &[2, 1, 4], &[3, 1]).unwrap(), [2, 3, 4]);
        assert_eq!(broadcast("add", &[], &[5]).unwrap(), [5]);
        assert!(broadcast("add", &[2, 3], &[2]).is_err());
    }

    #[test]
    fn a_reshape_that_needs_a_copy_is_recognised() {
        let strides = row_major(&[2, 3, 4]);
        assert_eq!(reshape_strides(&[2, 3, 4], &strides, &[6, 4]), Some(vec![4, 1]));
        assert_eq!(reshape_strides(&[2, 3, 4], &strides, &[2, 1, 12]).unwrap()[2], 1);
        // Transposed [4, 3, 2]: no single stride walks it.
        assert_eq!(reshape_strides(&[4, 3, 2], &[1, 4, 12], &[24]), None);
    }

    #[test]
    fn a_shape_beyond_memory_is_refused() {
        assert!(checked_len::<f32>(&[usize::MAX, 2]).is_err());
        assert!(checked_len::<f32>(&[usize::MAX / 4, 0, usize::MAX]).is_err());
        assert_eq!(checked_len::<f32>(&[3, 0]), Ok(0));
    }
}

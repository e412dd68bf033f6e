//! Views, which copy nothing, and the copies between memory layouts.

use std::ops::Range;
use std::sync::Arc;

use super::Tensor;
use crate::shape::{self, Offsets};
use crate::{Element, Error, Result};

/// Views and layouts.
impl<T: Element> Tensor<T> {
    /// The same elements, in the same logical order, under another shape: a view where strides
    /// allow it, a copy otherwise (as `torch.reshape`).
    ///
    /// # Errors
    /// [`Error::Length`] if the new shape holds another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape::checked_len::<T>(shape)? != self.len() {
            return Err(Error::Length { shape: shape.to_vec(), elements: self.len() });
        }
        match shape::reshape_strides(&self.shape, &self.strides, shape) {
            Some(strides) => Ok(Self { shape: shape.to_vec(), strides, ..self.clone() }),
            None => self.contiguous().reshape(shape),
        }
    }

    /// The axes in another order; a view.
    ///
    /// # Errors
    /// [`Error::Axis`] if `axes` does not name each axis once.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        let rank = self.rank();
        for axis in 0..rank.max(axes.len()) {
            if axes.len() != rank || !axes.contains(&axis) {
                return Err(Error::Axis { op: "permute", axis, rank });
            }
        }
        Ok(Self {
            shape: axes.iter().map(|&axis| self.shape[axis]).collect(),
            strides: axes.iter().map(|&axis| self.strides[axis]).collect(),
            ..self.clone()
        })
    }

    /// Two axes exchanged; a view.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let rank = self.rank();
        if a.max(b) >= rank {
            return Err(Error::Axis { op: "transpose", axis: a.max(b), rank });
        }
        let mut axes = Vec::from_iter(0..rank);
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// Every `step`-th index of `range` along `axis`; a view.
    ///
    /// # Errors
    /// [`Error::Axis`]; [`Error::Range`] if the range leaves the axis or `step` is zero.
    pub fn slice(&self, axis: usize, range: Range<usize>, step: usize) -> Result<Self> {
        let Some(&size) = self.shape.get(axis) else {
            return Err(Error::Axis { op: "slice", axis, rank: self.rank() });
        };
        let Range { start, end } = range;
        if start > end || end > size || step == 0 {
            return Err(Error::Range { axis, start, end, size });
        }
        let mut view = self.clone();
        view.shape[axis] = (end - start).div_ceil(step);
        // An empty view points at nothing: its offset must not leave the memory.
        if !view.is_empty() {
            view.offset += start * self.strides[axis];
        }
        // A single index is no step from any other.
        if view.shape[axis] > 1 {
            view.strides[axis] *= step;
        }
        Ok(view)
    }

    /// The tensor stretched to a larger shape by NumPy's rule; a view.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if an axis that is not of size one would have to stretch;
    /// [`Error::Overflow`].
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        shape::checked_len::<T>(shape)?;
        let strides =
            shape::broadcast_strides(&self.shape, &self.strides, shape).ok_or_else(|| {
                Error::ShapeMismatch {
                    op: "broadcast_to",
                    left: self.shape.clone(),
                    right: shape.to_vec(),
                }
            })?;
        Ok(Self { shape: shape.to_vec(), strides, ..self.clone() })
    }

    /// The same tensor in row-major memory; itself if it is already.
    pub fn contiguous(&self) -> Self {
        if self.is_contiguous() {
            self.clone()
        } else {
            self.copy_in_order(&Vec::from_iter(0..self.rank()))
        }
    }

    /// The same tensor without gaps: itself if it has none, else row-major.
    pub(crate) fn dense(&self) -> Self {
        if self.as_dense().is_some() { self.clone() } else { self.contiguous() }
    }

    /// Zeros of the same shape; the axes lie in memory in the same order.
    pub fn zeros_like(&self) -> Self {
        self.with_order_of_self(Self::zeros(&self.shape))
    }

    /// As [`zeros_like`](Self::zeros_like), of any values, for who overwrites them all.
    pub(crate) fn recycled_like(&self) -> Self {
        self.with_order_of_self(Self::recycled(&self.shape))
    }

    fn with_order_of_self(&self, mut like: Self) -> Self {
        let order = shape::memory_order(&self.shape, &self.strides);
        like.strides = shape::strides_in_order(&self.shape, &order);
        like
    }

    /// The same tensor in N, spatial, C memory order; itself if it is already. Without spatial axes that is
    /// row-major.
    pub fn channels_last(&self) -> Self {
        if self.rank() < 3 {
            self.contiguous()
        } else if self.is_channels_last() {
            self.clone()
        } else {
            self.copy_in_order(&channels_last_order(self.rank()))
        }
    }

    pub(super) fn copy_in_order(&self, order: &[usize]) -> Self {
        // Walk the memory of the copy in its order, so that writes are sequential.
        let view = self.permute(order).expect("an order of this tensor's axes");
        let mut copy = Self::recycled(&view.shape);
        let data = view.storage.as_slice();
        let target = Arc::get_mut(&mut copy.storage).expect("new").as_mut_slice();
        let row = view.shape.last().copied().unwrap_or(1);
        let step = view.strides.last().copied().unwrap_or(1);
        if !target.is_empty() {
            let outer = view.rank().saturating_sub(1);
            let starts = Offsets::new(&view.shape[..outer], &view.strides[..outer], view.offset);
            for (target, start) in target.chunks_exact_mut(row).zip(starts) {
                if step == 1 {
                    target.copy_from_slice(&data[start..start + row]);
                } else {
                    for (i, value) in target.iter_mut().enumerate() {
                        *value = data[start + i * step];
                    }
                }
            }
        }
        copy.strides = shape::strides_in_order(&self.shape, order);
        copy.shape = self.shape.clone();
        copy
    }
}

/// Axes outermost first for channels-last memory: 0, 2, 3, …, 1.
pub(super) fn channels_last_order(rank: usize) -> Vec<usize> {
    if rank < 3 {
        return Vec::from_iter(0..rank);
    }
    std::iter::once(0).chain(2..rank).chain(std::iter::once(1)).collect()
}

//! A function of every element, or of corresponding elements of two tensors.

use super::Tensor;
use crate::{Element, Level, Result, parallel, shape};

/// Maps.
impl<T: Element> Tensor<T> {
    /// `f` of every element, in the same memory order.
    ///
    /// # Panics
    /// If elements of the other type are beyond what memory can address: those of a view may be.
    pub fn map<U: Element>(&self, f: impl Fn(T) -> U + Sync + Send) -> Tensor<U> {
        let dense = self.dense();
        let source = dense.span();
        let mut result = Tensor::<U>::recycled(&self.shape);
        let level = Level::current();
        parallel::for_each_chunk(result.data_mut(), parallel::CHUNK, |i, chunk| {
            let source = &source[i * parallel::CHUNK..];
            level.vectorize(
                #[inline(always)]
                || {
                    for (target, &x) in chunk.iter_mut().zip(source) {
                        *target = f(x);
                    }
                },
            );
        });
        result.strides = dense.strides;
        result
    }

    /// `f` of corresponding elements, both operands broadcast to a common shape. The result lies in
    /// memory as the first operand does, if that has the result's shape.
    ///
    /// # Errors
    /// [`crate::Error::ShapeMismatch`], naming `op`; [`crate::Error::Overflow`].
    pub fn zip_map<U: Element, V: Element>(
        &self,
        op: &'static str,
        other: &Tensor<U>,
        f: impl Fn(T, U) -> V + Sync + Send,
    ) -> Result<Tensor<V>> {
        let shape = shape::broadcast(op, &self.shape, &other.shape)?;
        shape::checked_len::<V>(&shape)?;
        let left = self.broadcast_to(&shape)?;
        let right = other.broadcast_to(&shape)?;
        // Bring both into one dense memory order: the left one's, or else the right one's.
        let strides = match (left.as_dense(), right.as_dense()) {
            (Some(_), _) => left.strides.clone(),
            (None, Some(_)) => right.strides.clone(),
            (None, None) => shape::row_major(&shape),
        };
        let order = shape::memory_order(&shape, &strides);
        let strides = shape::strides_in_order(&shape, &order);
        let mut result = Tensor::<V>::recycled(&shape);
        result.strides = strides.clone();
        let channels = per_channel(&right, &order);
        let same =
            |view: &[usize]| (0..shape.len()).all(|i| shape[i] == 1 || view[i] == strides[i]);
        let left = if same(&left.strides) { left } else { left.copy_in_order(&order) };
        let a = left.span();
        if let Some((period, b)) = channels {
            // One value per channel, the innermost axis in memory: no copy of the stretched operand.
            let rows = (parallel::CHUNK / period).max(1) * period;
            parallel::for_each_chunk(result.data_mut(), rows, |i, chunk| {
                let a = &a[i * rows..][..chunk.len()];
                for (target, a) in chunk.chunks_mut(period).zip(a.chunks(period)) {
                    for ((target, &a), &b) in target.iter_mut().zip(a).zip(b) {
                        *target = f(a, b);
                    }
                }
            });
            return Ok(result);
        }
        let right = if same(&right.strides) { right } else { right.copy_in_order(&order) };
        let b = right.span();
        parallel::for_each_chunk(result.data_mut(), parallel::CHUNK, |i, chunk| {
            let start = i * parallel::CHUNK;
            for ((target, &a), &b) in chunk.iter_mut().zip(&a[start..]).zip(&b[start..]) {
                *target = f(a, b);
            }
        });
        Ok(result)
    }
}

/// If `view`, stretched, only varies along the axis that is innermost in `order`: that axis' size
/// and the values.
fn per_channel<'a, T: Element>(view: &'a Tensor<T>, order: &[usize]) -> Option<(usize, &'a [T])> {
    let inner = *order.last()?;
    let varies = |axis: usize| view.shape[axis] != 1 && view.strides[axis] != 0;
    let only_inner = (0..view.rank()).all(|axis| varies(axis) == (axis == inner));
    (only_inner && view.strides[inner] == 1 && !view.is_empty()).then(|| {
        let period = view.shape[inner];
        (period, &view.storage.as_slice()[view.offset..view.offset + period])
    })
}

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::shape::{self, Offsets};
use crate::storage::Storage;
use crate::{Element, Error, Result, parallel};

/// A strided view of shared memory.
///
/// Views ([`reshape`](Self::reshape) where strides allow, [`permute`](Self::permute),
/// [`slice`](Self::slice), [`broadcast_to`](Self::broadcast_to)) and clones copy nothing; writing
/// copies first if anybody else holds the memory. The logical order of images is NCHW, as in
/// PyTorch; *channels-last* is a stride order of the same shape, and the one that convolutions
/// prefer.
///
/// ```
/// use ottava_tensor::Tensor;
///
/// let x = Tensor::new(&[2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(x.transpose(0, 1)?.to_vec(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// assert_eq!(x.map(|x| x * 2.0).sum_axes(&[0])?.to_vec(), [10.0, 14.0, 18.0]);
/// # Ok::<(), ottava_tensor::Error>(())
/// ```
pub struct Tensor<T: Element> {
    storage: Arc<Storage<T>>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<T: Element> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        Self {
            storage: Arc::clone(&self.storage),
            offset: self.offset,
            shape: self.shape.clone(),
            strides: self.strides.clone(),
        }
    }
}

/// Making tensors.
impl<T: Element> Tensor<T> {
    /// A row-major tensor of `data`.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` does not fill `shape` exactly, [`Error::Overflow`].
    pub fn new(shape: &[usize], data: impl AsRef<[T]>) -> Result<Self> {
        let data = data.as_ref();
        if shape::checked_len::<T>(shape)? != data.len() {
            return Err(Error::Length { shape: shape.to_vec(), elements: data.len() });
        }
        Ok(Self::from_storage(shape, Storage::from_slice(data)))
    }

    /// A tensor of zeros (`false`).
    ///
    /// # Panics
    /// If the shape is beyond what memory can address; check a shape that came from a file first.
    pub fn zeros(shape: &[usize]) -> Self {
        let len = shape::checked_len::<T>(shape).expect("shape fits memory");
        Self::from_storage(shape, Storage::zeroed(len))
    }

    /// A tensor of zeros whose axes lie in memory as in channels-last images: N, spatial axes, C.
    ///
    /// # Panics
    /// As [`zeros`](Self::zeros).
    pub fn zeros_channels_last(shape: &[usize]) -> Self {
        let mut tensor = Self::zeros(shape);
        tensor.strides = shape::strides_in_order(shape, &channels_last_order(shape.len()));
        tensor
    }

    /// A tensor of one value.
    ///
    /// # Panics
    /// As [`zeros`](Self::zeros).
    pub fn full(shape: &[usize], value: T) -> Self {
        let mut tensor = Self::zeros(shape);
        tensor.data_mut().fill(value);
        tensor
    }

    /// A tensor without dimensions.
    pub fn scalar(value: T) -> Self {
        Self::full(&[], value)
    }

    /// A channels-last tensor of logical shape `[n, c, h, w]` from `data` in NHWC order.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_nhwc(shape: [usize; 4], data: impl AsRef<[T]>) -> Result<Self> {
        let mut tensor = Self::new(&shape, data)?;
        tensor.strides = shape::strides_in_order(&shape, &channels_last_order(4));
        Ok(tensor)
    }

    fn from_storage(shape: &[usize], storage: Storage<T>) -> Self {
        Self {
            storage: Arc::new(storage),
            offset: 0,
            shape: shape.to_vec(),
            strides: shape::row_major(shape),
        }
    }
}

/// Looking at tensors.
impl<T: Element> Tensor<T> {
    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How far apart in memory, in elements, neighbours along each axis are.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The sizes of exactly `N` axes.
    ///
    /// # Errors
    /// [`Error::Rank`], naming `op`, if the tensor has another rank.
    pub fn dims<const N: usize>(&self, op: &'static str) -> Result<[usize; N]> {
        self.shape.as_slice().try_into().map_err(|_| Error::Rank {
            op,
            expected: N,
            shape: self.shape.clone(),
        })
    }

    /// Whether elements lie in memory in logical order, without gaps.
    pub fn is_contiguous(&self) -> bool {
        shape::is_dense_in(&self.shape, &self.strides, 0..self.rank())
    }

    /// Whether elements lie in memory in the order N, spatial axes, C, without gaps.
    pub fn is_channels_last(&self) -> bool {
        self.rank() >= 3
            && shape::is_dense_in(
                &self.shape,
                &self.strides,
                std::iter::once(0).chain(2..self.rank()).chain(std::iter::once(1)),
            )
    }

    /// Whether anybody else holds this tensor's memory.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.storage) > 1
    }

    /// The elements as they lie in memory, if they lie in logical order without gaps.
    pub fn as_slice(&self) -> Option<&[T]> {
        self.is_contiguous().then(|| self.span())
    }

    /// The elements as they lie in memory, if they lie in N, spatial, C order without gaps.
    pub fn as_nhwc(&self) -> Option<&[T]> {
        self.is_channels_last().then(|| self.span())
    }

    /// The elements as they lie in memory, if there are no gaps, whatever the order of the axes.
    /// Two tensors of equal shape and strides have corresponding elements at equal places.
    pub fn as_dense(&self) -> Option<&[T]> {
        let order = shape::memory_order(&self.shape, &self.strides);
        shape::is_dense_in(&self.shape, &self.strides, order.into_iter()).then(|| self.span())
    }

    /// The elements of a dense tensor as they lie in memory, for writing. A tensor with gaps, or one
    /// whose memory is shared, becomes a copy of its own first (same stride order if it was dense,
    /// row-major otherwise).
    pub fn data_mut(&mut self) -> &mut [T] {
        if self.as_dense().is_none() {
            *self = self.copy_in_order(&Vec::from_iter(0..self.rank()));
        }
        let whole = self.offset == 0 && self.storage.as_slice().len() == self.len();
        if !whole || self.is_shared() {
            self.storage = Arc::new(Storage::from_slice(self.span()));
            self.offset = 0;
        }
        Arc::get_mut(&mut self.storage).expect("made the only owner above").as_mut_slice()
    }

    /// The element at `index`, one number per axis.
    ///
    /// # Panics
    /// If `index` is outside the tensor, as slices do.
    pub fn at(&self, index: &[usize]) -> T {
        assert!(
            index.len() == self.rank() && index.iter().zip(&self.shape).all(|(i, size)| i < size),
            "index {index:?} is outside a tensor of shape {:?}",
            self.shape
        );
        let steps = index.iter().zip(&self.strides).map(|(i, stride)| i * stride);
        self.storage.as_slice()[self.offset + steps.sum::<usize>()]
    }

    /// The only element of a tensor of one.
    ///
    /// # Errors
    /// [`Error::Length`] if there are more, or none.
    pub fn item(&self) -> Result<T> {
        match self.len() {
            1 => Ok(self.storage.as_slice()[self.offset]),
            elements => Err(Error::Length { shape: vec![], elements }),
        }
    }

    /// The elements in logical order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + '_ {
        let data = self.storage.as_slice();
        Offsets::new(&self.shape, &self.strides, self.offset).map(move |offset| data[offset])
    }

    /// The elements in logical order, copied.
    pub fn to_vec(&self) -> Vec<T> {
        match self.as_slice() {
            Some(data) => data.to_vec(),
            None => self.iter().collect(),
        }
    }

    /// The memory from the first element on: what strides lead through.
    pub(crate) fn memory(&self) -> &[T] {
        &self.storage.as_slice()[self.offset..]
    }

    /// The memory from the first element to as many as there are; meaningful for dense tensors only.
    fn span(&self) -> &[T] {
        let len = self.len();
        if len == 0 { &[] } else { &self.storage.as_slice()[self.offset..self.offset + len] }
    }
}

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
        if view.shape[axis] > 0 {
            view.offset += start * self.strides[axis];
            view.strides[axis] *= step;
        }
        Ok(view)
    }

    /// The tensor stretched to a larger shape by NumPy's rule; a view.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if an axis that is not of size one would have to stretch.
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
        let order = shape::memory_order(&self.shape, &self.strides);
        let mut zeros = Self::zeros(&self.shape);
        zeros.strides = shape::strides_in_order(&self.shape, &order);
        zeros
    }

    /// The same tensor in N, spatial, C memory order; itself if it is already.
    pub fn channels_last(&self) -> Self {
        if self.rank() < 3 || self.is_channels_last() {
            self.clone()
        } else {
            self.copy_in_order(&channels_last_order(self.rank()))
        }
    }

    fn copy_in_order(&self, order: &[usize]) -> Self {
        // Walk the memory of the copy in its order, so that writes are sequential.
        let view = self.permute(order).expect("an order of this tensor's axes");
        let mut copy = Self::zeros(&view.shape);
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

/// Maps.
impl<T: Element> Tensor<T> {
    /// `f` of every element, in the same memory order.
    pub fn map<U: Element>(&self, f: impl Fn(T) -> U + Sync + Send) -> Tensor<U> {
        let dense = if self.as_dense().is_some() { self.clone() } else { self.contiguous() };
        let source = dense.span();
        let mut result = Tensor::<U>::zeros(&self.shape);
        parallel::for_each_chunk(result.data_mut(), parallel::CHUNK, |i, chunk| {
            let source = &source[i * parallel::CHUNK..];
            for (target, &x) in chunk.iter_mut().zip(source) {
                *target = f(x);
            }
        });
        result.strides = dense.strides;
        result
    }

    /// `f` of corresponding elements, both operands broadcast to a common shape. The result lies in
    /// memory as the first operand does, if that has the result's shape.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], naming `op`.
    pub fn zip_map<U: Element, V: Element>(
        &self,
        op: &'static str,
        other: &Tensor<U>,
        f: impl Fn(T, U) -> V + Sync + Send,
    ) -> Result<Tensor<V>> {
        let shape = shape::broadcast(op, &self.shape, &other.shape)?;
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
        let mut result = Tensor::<V>::zeros(&shape);
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

/// Reductions. Sums run in a fixed order, in fixed chunks, whatever the number of threads.
impl Tensor<f32> {
    /// The sum of all elements, accumulated in `f64`.
    pub fn sum(&self) -> f32 {
        let dense = if self.as_dense().is_some() { self.clone() } else { self.contiguous() };
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
        let dense = if self.as_dense().is_some() { self.clone() } else { self.contiguous() };
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
    /// [`Error::Rank`] if the tensor is not a matrix.
    pub fn argmax_rows(&self) -> Result<Vec<usize>> {
        let [_, columns] = self.dims("argmax_rows")?;
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

/// Axes outermost first for channels-last memory: 0, 2, 3, …, 1.
fn channels_last_order(rank: usize) -> Vec<usize> {
    if rank < 3 {
        return Vec::from_iter(0..rank);
    }
    std::iter::once(0).chain(2..rank).chain(std::iter::once(1)).collect()
}

impl<T: Element> PartialEq for Tensor<T> {
    /// Equal shapes and equal elements in logical order, however they lie in memory.
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.iter().eq(other.iter())
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        write!(f, "Tensor<{}>{:?} ", T::NAME, self.shape)?;
        let mut list = f.debug_list();
        list.entries(self.iter().take(SHOWN));
        if self.len() > SHOWN {
            list.entry(&format_args!("… {} more", self.len() - SHOWN));
        }
        list.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> Tensor<i32> {
        let data: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
        Tensor::new(shape, data).unwrap()
    }

    #[test]
    fn views_share_memory() {
        let x = counting(&[2, 3, 4]);
        let view = x.permute(&[2, 0, 1]).unwrap().slice(0, 1..4, 2).unwrap();
        assert_eq!(view.shape(), [2, 2, 3]);
        assert_eq!(view.to_vec(), [1, 5, 9, 13, 17, 21, 3, 7, 11, 15, 19, 23]);
        assert!(x.is_shared());
    }

    #[test]
    fn channels_last_changes_strides_and_not_elements() {
        let x = counting(&[2, 3, 4, 5]);
        let y = x.channels_last();
        assert_eq!(y.strides(), [60, 1, 15, 3]);
        assert_eq!(x, y);
        assert_eq!(y.contiguous().strides(), x.strides());
        assert!(y.as_nhwc().is_some() && y.as_slice().is_none() && y.as_dense().is_some());
    }

    #[test]
    fn writing_copies_shared_memory_only() {
        let mut x = counting(&[4]);
        let before = x.as_slice().unwrap().as_ptr();
        x.data_mut()[0] = 7;
        assert_eq!(x.as_slice().unwrap().as_ptr(), before);
        let y = x.clone();
        x.data_mut()[0] = 9;
        assert_eq!((x.at(&[0]), y.at(&[0])), (9, 7));
    }

    #[test]
    fn broadcasting_pairs_channels_in_any_layout() {
        let x = counting(&[2, 3, 2, 2]).map(|x| x as f32);
        let b = Tensor::new(&[3, 1, 1], [10.0f32, 20.0, 30.0]).unwrap();
        let rows = x.zip_map("add", &b, |x, b| x + b).unwrap();
        let last = x.channels_last().zip_map("add", &b, |x, b| x + b).unwrap();
        assert_eq!(rows, last);
        assert_eq!(rows.at(&[1, 2, 0, 1]), 21.0 + 30.0);
        assert_eq!(b.zip_map("sub", &x, |b, x| b - x).unwrap().at(&[0, 1, 1, 1]), 20.0 - 7.0);
    }

    #[test]
    fn reductions() {
        let x = counting(&[2, 3, 4]).map(|x| x as f32);
        assert_eq!(x.sum(), 276.0);
        assert_eq!(x.sum_axes(&[0, 2]).unwrap().to_vec(), [60.0, 92.0, 124.0]);
        assert_eq!(x.sum_to(&[3, 1]).unwrap().shape(), [3, 1]);
        assert_eq!(x.min_max(), Some((0.0, 23.0)));
        assert_eq!(Tensor::<f32>::zeros(&[0]).min_max(), None);
        let poisoned = Tensor::new(&[3], [1.0, f32::NAN, 2.0]).unwrap().min_max().unwrap();
        assert!(poisoned.0.is_nan() && poisoned.1.is_nan());
    }

    #[test]
    fn empty_tensors_are_ordinary() {
        let x = Tensor::<f32>::zeros(&[0, 3]);
        assert_eq!(x.map(|x| x + 1.0).to_vec(), [0.0; 0]);
        assert_eq!(x.sum_axes(&[0]).unwrap().to_vec(), [0.0; 3]);
        assert!(x.slice(1, 3..3, 1).unwrap().is_empty());
        assert_eq!(x.reshape(&[7, 0]).unwrap().shape(), [7, 0]);
    }

    #[test]
    fn a_wrong_length_is_refused_with_its_numbers() {
        let error = Tensor::new(&[2, 2], [1.0f32; 3]).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 2] holds 4 elements, but 3 were given");
    }
}

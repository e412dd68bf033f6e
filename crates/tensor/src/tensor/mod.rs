mod map;
mod reduce;
mod view;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use view::channels_last_order;

use crate::shape::{self, Offsets};
use crate::storage::{Key, SharedBytes, Storage};
use crate::{Element, Error, Result};

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

    /// A row-major tensor of the elements that `range` of `bytes` holds in this machine's byte order. They
    /// stay where they are (a memory map, for example) if they are aligned, and are copied else; who
    /// writes to the tensor gets a copy.
    ///
    /// # Errors
    /// [`Error::Length`] if the bytes do not fill `shape` exactly, or are not there; [`Error::Overflow`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use ottava_tensor::{SharedBytes, Tensor};
    ///
    /// let bytes: SharedBytes = Arc::new([1u8, 2, 3, 255]);
    /// assert_eq!(Tensor::<i8>::from_shared(&[2], &bytes, 2..4)?.to_vec(), [3, -1]);
    /// # Ok::<(), ottava_tensor::Error>(())
    /// ```
    pub fn from_shared(shape: &[usize], bytes: &SharedBytes, range: Range<usize>) -> Result<Self>
    where
        T: AnyBitPattern,
    {
        let len = shape::checked_len::<T>(shape)?;
        let part = (**bytes).as_ref().get(range.clone());
        let elements = part.map_or(0, <[u8]>::len) / size_of::<T>().max(1);
        let Some(part) = part.filter(|part| part.len() == len * size_of::<T>()) else {
            return Err(Error::Length { shape: shape.to_vec(), elements });
        };
        let storage = Storage::lent(bytes, range).unwrap_or_else(|| {
            let mut copy = Storage::zeroed(len);
            copy.as_mut_slice()
                .iter_mut()
                .zip(part.chunks_exact(size_of::<T>()))
                .for_each(|(element, bytes)| *element = bytemuck::pod_read_unaligned(bytes));
            copy
        });
        Ok(Self::from_storage(shape, storage))
    }

    /// A tensor of zeros (`false`).
    ///
    /// # Panics
    /// If the shape is beyond what memory can address; check a shape that came from a file first, with
    /// [`checked_len`](crate::shape::checked_len).
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

    /// A row-major tensor of any values, what another tensor held, or zeros: for who overwrites them all,
    /// and saves a pass over memory.
    ///
    /// # Panics
    /// As [`zeros`](Self::zeros).
    pub fn recycled(shape: &[usize]) -> Self {
        let len = shape::checked_len::<T>(shape).expect("shape fits memory");
        Self::from_storage(shape, Storage::recycled(len))
    }

    /// [`recycled`](Self::recycled), channels-last as
    /// [`zeros_channels_last`](Self::zeros_channels_last).
    ///
    /// # Panics
    /// As [`zeros`](Self::zeros).
    pub fn recycled_channels_last(shape: &[usize]) -> Self {
        let mut tensor = Self::recycled(shape);
        tensor.strides = shape::strides_in_order(shape, &channels_last_order(shape.len()));
        tensor
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

    /// Whether anybody else holds this tensor's memory, or owns it.
    pub fn is_shared(&self) -> bool {
        self.storage.is_lent() || Arc::strong_count(&self.storage) > 1
    }

    /// The elements as they lie in memory, if they lie in logical order without gaps.
    pub fn as_slice(&self) -> Option<&[T]> {
        self.is_contiguous().then(|| self.span())
    }

    /// What `make` derives from the elements of a contiguous tensor. If it is asked for by a key a second
    /// time before they are written, it is kept beside them until then.
    pub(crate) fn derived<R: Send + Sync + 'static>(
        &self,
        key: Option<Key>,
        make: impl FnOnce(&[T]) -> R,
    ) -> Arc<R> {
        let elements = self.as_slice().expect("contiguous");
        match key.filter(|_| elements.len() == self.storage.len()) {
            Some(key) => self.storage.derived(key, || make(elements)),
            None => Arc::new(make(elements)),
        }
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
    fn shared_bytes_are_read_in_place_and_never_written() {
        let words = Arc::new([1.5f32, -2.0, 0.25].map(f32::to_ne_bytes).concat());
        let bytes: SharedBytes = words.clone();
        let aligned = words.as_ptr().align_offset(4) == 0;
        let mut x = Tensor::<f32>::from_shared(&[2], &bytes, 4..12).unwrap();
        assert_eq!(aligned, x.span().as_ptr().cast::<u8>() == words[4..].as_ptr());
        x.data_mut()[0] = 7.0;
        assert_eq!((x.to_vec(), &words[4..8]), (vec![7.0, 0.25], &(-2f32).to_ne_bytes()[..]));

        let shifted: SharedBytes = Arc::new([&[0u8][..], &words[..]].concat());
        for start in 0..2 {
            let x = Tensor::<f32>::from_shared(&[2], &shifted, start..start + 8).unwrap();
            assert_eq!(start == 1, x.to_vec() == [1.5, -2.0]);
        }
        for range in [0..4, 8..16] {
            let refused = Tensor::<f32>::from_shared(&[2], &bytes, range);
            assert!(matches!(refused, Err(Error::Length { .. })));
        }
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

    /// Views of nothing, and steps to no second index, point into the memory there is.
    #[test]
    fn slices_stay_in_memory() {
        let empty = Tensor::<f32>::zeros(&[0, 5]).slice(1, 3..5, 1).unwrap();
        assert_eq!((empty.shape(), empty.to_vec().len()), (&[0, 2][..], 0));
        let product = crate::gemm::matmul(&Tensor::zeros(&[4, 0]), &empty).unwrap();
        assert_eq!(product, Tensor::zeros(&[4, 2]));
        let one = counting(&[4]).slice(0, 1..2, usize::MAX).unwrap();
        assert_eq!(one.to_vec(), [1]);
        assert_eq!(counting(&[2, 3]).slice(0, 1..2, usize::MAX).unwrap().to_vec(), [3, 4, 5]);
    }

    #[test]
    fn what_memory_cannot_address_is_refused() {
        let wide = Tensor::scalar(1u8).broadcast_to(&[1 << 62]).unwrap();
        let sum = wide.zip_map("add", &wide, |a, b| f32::from(a) + f32::from(b));
        assert!(matches!(sum, Err(Error::Overflow { .. })));
        let tall = Tensor::scalar(1.0).broadcast_to(&[1 << 60, 1]).unwrap();
        let product = crate::gemm::matmul(&Tensor::zeros(&[0, 1 << 60]), &tall);
        assert!(matches!(product, Err(Error::Overflow { .. })));
        let beyond = Error::Length { shape: vec![usize::MAX, 2], elements: 3 }.to_string();
        assert!(beyond.contains("more elements than can be counted"), "{beyond}");
        assert!(Tensor::zeros(&[3, 0]).argmax_rows().is_err());
        assert_eq!(Tensor::zeros(&[0, 3]).argmax_rows(), Ok(vec![]));
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
